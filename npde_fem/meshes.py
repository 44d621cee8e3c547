"""Unstructured meshes made by gmsh, handed to DOLFINx in parallel.

Rank 0 builds a mesh with gmsh; DOLFINx then spreads it over all ranks. An error on rank 0 is raised on every
rank. gmsh is needed on rank 0 only, is started silently, and is left as it was found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from npde_fem.parallel import on_root

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from dolfinx.mesh import Mesh, MeshTags
    from mpi4py import MPI

__all__ = ["Tagged", "drawn", "load", "outline", "plate_with_hole"]

Array = npt.NDArray[np.float64]


class Tagged(NamedTuple):
    """A mesh with the tags that its gmsh model gave to cells and facets.

    Attributes
    ----------
    mesh
        The distributed mesh.
    cell_tags, facet_tags
        Tags of the physical groups on this rank's cells and facets, ghosts included; None if there are none.
    groups
        Dimension and tag of each named physical group, ``{name: (dimension, tag)}``, the same on every rank.
    """

    mesh: Mesh
    cell_tags: MeshTags | None
    facet_tags: MeshTags | None
    groups: dict[str, tuple[int, int]]


# ------------------------------------------------------------------------------------------ gmsh and DOLFINx


def _gmsh() -> Any:
    """The gmsh module, or an error that says how to get it."""
    try:
        import gmsh
    except ModuleNotFoundError as error:
        if error.name != "gmsh":
            raise
        raise ModuleNotFoundError(
            "making this mesh needs the package gmsh: pip install 'npde-fem[demo]' or pip install gmsh",
            name="gmsh",
        ) from None
    except OSError as error:
        raise ImportError(
            f"gmsh is installed, but a system library it needs is not ({error}); "
            "on Debian: apt install libglu1-mesa libxcursor1 libxft2 libxinerama1",
            name="gmsh",
        ) from error
    return gmsh


@contextmanager
def _session(options: dict[str, float]) -> Iterator[Any]:
    """An empty, silent gmsh model with the given options; gmsh is afterwards as it was before."""
    gmsh = _gmsh()
    running = gmsh.isInitialized()
    if not running:
        gmsh.initialize([], readConfigFiles=False, interruptible=False)
    try:
        options = {"General.Terminal": 0, **options}
        before = {name: gmsh.option.getNumber(name) for name in options}
        current = gmsh.model.getCurrent()
        for name, value in options.items():
            gmsh.option.setNumber(name, value)
        gmsh.model.add("npde_fem")
        try:
            yield gmsh
        finally:
            gmsh.model.remove()
            if running:
                for name, value in before.items():
                    gmsh.option.setNumber(name, value)
                gmsh.model.setCurrent(current)
    finally:
        if not running:
            gmsh.finalize()


def _distribute(comm: MPI.Comm, build: Callable[[ExitStack], tuple[Any, int]]) -> Tagged:
    """Let rank 0 build a gmsh model and make a DOLFINx mesh of it on all ranks (collective).

    ``build`` opens a session on the stack it is given, and returns gmsh and the geometric dimension.
    """
    from dolfinx.io import gmsh as bridge

    with ExitStack() as stack:
        models = []

        def work() -> int:
            gmsh, gdim = build(stack)
            models.append(gmsh.model)
            return gdim

        gdim = on_root(comm, work)
        data = bridge.model_to_mesh(models[0] if models else None, comm, 0, gdim=gdim)
    groups = {name: (int(group.dim), int(group.tag)) for name, group in data.physical_groups.items() if name}
    return Tagged(data.mesh, data.cell_tags, data.facet_tags, groups)


def _qualities(gmsh: Any, dim: int, name: str) -> Array:
    """A quality measure of all elements of a dimension; area or volume is the one called volume."""
    _, tags, _ = gmsh.model.mesh.getElements(dim)
    return np.concatenate([gmsh.model.mesh.getElementQualities(tag, name) for tag in tags])


def _positive(name: str, value: float) -> float:
    if not (np.isscalar(value) and np.isreal(value) and np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, not {value!r}")
    return float(value)


def _vector(name: str, value: npt.ArrayLike, dim: int) -> Array:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != (dim,) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be {dim} finite numbers, not {value!r}")
    return array


# --------------------------------------------------------------------------------------- outline of a mask


def outline(
    comm: MPI.Comm,
    mask: npt.NDArray[np.bool_],
    lower: npt.ArrayLike,
    spacing: npt.ArrayLike,
    size: float,
    smoothing: float = 1.0,
) -> Mesh:
    """Mesh of the smoothed outline of a voxel mask: triangles in 2D, tetrahedra in 3D.

    The mask is blurred by a Gaussian; its outline is the level set that encloses as much as the mask, at a
    value near 1/2. In 2D the level lines are resampled evenly and meshed; in 3D marching cubes on a
    lattice finds the surface, whose vertices are then evened out along it, and gmsh fills it.

    Parameters
    ----------
    comm
        Communicator of the mesh (collective call). The other arguments count on rank 0 only.
    mask
        Boolean voxels, shape (nx, ny) or (nx, ny, nz).
    lower
        Centre of the first voxel, shape (dim,), in the unit the mesh shall have.
    spacing
        Voxel edge along each axis, shape (dim,), or one number for all.
    size
        Edge length the elements shall have.
    smoothing
        Standard deviation of the Gaussian in voxels, not negative. It is at least 0.4 ``size`` in any case:
        elements cannot follow finer detail.

    Returns
    -------
    dolfinx.mesh.Mesh
        Affine cells, float64 coordinates; geometric dimension that of the mask. Distributed over ``comm``,
        with DOLFINx's default ghosting.

    Raises
    ------
    TypeError
        ``mask`` is not boolean.
    ValueError
        Another argument is none of those allowed; the mask is empty; or the outline at this size encloses an
        area or volume that differs from the mask's by more than 15 %, as when the mask falls apart into
        pieces.
    ModuleNotFoundError, ImportError
        gmsh (or contourpy in 2D, scikit-image in 3D) is missing, or a system library of gmsh.
    RuntimeError
        gmsh could not mesh the outline.

    Notes
    -----
    Only the largest piece is meshed. Holes smaller than ``2 size**dim`` are filled.
    """

    def build(stack: ExitStack) -> tuple[Any, int]:
        if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_):
            raise TypeError(f"mask must be a boolean array, not {getattr(mask, 'dtype', type(mask).__name__)}")
        dim = mask.ndim
        if dim not in (2, 3):
            raise ValueError(f"mask must have 2 or 3 dimensions, not {dim}")
        if not mask.any():
            raise ValueError("mask must have a voxel inside, it is empty")
        origin = _vector("lower", lower, dim)
        edges = _vector("spacing", np.full(dim, spacing) if np.isscalar(spacing) else spacing, dim)
        if edges.min() <= 0:
            raise ValueError(f"spacing must be positive, not {spacing!r}")
        edge = _positive("size", size)
        extent = float((edges * mask.shape).max())
        if 2 * edge > extent:
            raise ValueError(f"size={size:g} is too coarse for this mask, which is {extent:g} wide")
        if not (np.isfinite(smoothing) and smoothing >= 0):
            raise ValueError(f"smoothing must be a number not below 0, not {smoothing!r}")
        blurred = _blur(mask, origin, edges, edge, float(smoothing))
        return _mesh_outline(stack, blurred, edge, float(mask.sum() * edges.prod())), dim

    return _distribute(comm, build).mesh


class _Blurred(NamedTuple):
    """A blurred mask: inside is where ``values > level``. Zeros lie all around."""

    values: Array
    level: float
    lower: Array
    spacing: Array


def _blur(mask: npt.NDArray[np.bool_], lower: Array, spacing: Array, size: float, smoothing: float) -> _Blurred:
    from scipy import ndimage, optimize

    deviation = np.maximum(smoothing, 0.4 * size / spacing)
    margin = int(np.ceil(2 * deviation.max())) + 1
    values = ndimage.gaussian_filter(np.pad(mask, margin).astype(np.float64), deviation, mode="constant")
    # The steeper of the two sides along each axis, so that 1/2 is the one right level of an unblurred mask.
    rises = (
        np.maximum(*(np.abs(np.diff(values, axis=axis, **{end: 0})) for end in ("prepend", "append")))
        for axis in range(mask.ndim)
    )
    slope = np.sqrt(sum(rise**2 for rise in rises)).clip(1e-12)

    def excess(level: float) -> float:
        # The share of a voxel that lies inside, for a plane level set through it.
        return float((0.5 + (values - level) / slope).clip(0, 1).sum() - mask.sum())

    level = float(optimize.brentq(excess, 1e-3, 1, xtol=1e-4))
    return _Blurred(values, level, lower - margin * spacing, spacing)


def _mesh_outline(stack: ExitStack, blurred: _Blurred, size: float, wanted: float) -> Any:
    """Open a gmsh session with the meshed outline; ``wanted`` is the area or volume of the mask."""
    dim = blurred.values.ndim
    # Frontal-Delaunay in 2D, Delaunay in 3D: gmsh's faster 3D algorithm, HXT, was seen to damage memory.
    options = {
        "Mesh.MeshSizeMax": size,
        "Mesh.Algorithm": 6,
        "Mesh.Algorithm3D": 1,
        "Mesh.OptimizeThreshold": 0.5,
    }
    failures = []
    for fill, measure in _lines(blurred, size) if dim == 2 else _surfaces(blurred, size):
        if abs(measure / wanted - 1) > 0.15:
            failures.append(f"it encloses {measure:.4g}, the mask {wanted:.4g}")
            continue
        attempt = stack.enter_context(ExitStack())
        gmsh = attempt.enter_context(_session(options))
        try:
            tag = fill(gmsh)
            gmsh.model.addPhysicalGroup(dim, [tag], tag=1, name="inside")
            gmsh.model.mesh.generate(dim)
            if dim == 3 and _qualities(gmsh, dim, "gamma").min() < 0.1:
                gmsh.model.mesh.optimize("Netgen")  # slow, but leaves no slivers
            meshed = float(_qualities(gmsh, dim, "volume").sum())
            if abs(meshed / measure - 1) < 1e-6:
                return gmsh
            failures.append(f"gmsh filled {meshed:.4g} of {measure:.4g}")
        except Exception as error:  # noqa: BLE001 - gmsh raises nothing more specific
            failures.append(f"gmsh: {error}")
        attempt.close()
    if all(reason.startswith("it encloses") for reason in failures):
        raise ValueError(
            f"size={size:g} is too coarse for this mask, or the mask is in pieces: as to its outline, "
            f"{failures[0] if failures else 'there is none'}. "
            "Choose a smaller size, or mesh each piece by itself"
        )
    raise RuntimeError(f"gmsh could not mesh the outline at size={size:g}: {'; '.join(failures)}")


# What gmsh is to fill: a function that draws the boundary and returns the tag of the inside; its measure.
_Boundary = tuple[Callable[[Any], int], float]


def _lines(blurred: _Blurred, size: float) -> Iterator[_Boundary]:
    """Polygons around the largest piece and its holes, finer and finer: coarse ones may cross."""
    import contourpy

    x, y = (
        low + edge * np.arange(n)
        for low, edge, n in zip(blurred.lower, blurred.spacing, blurred.values.shape, strict=True)
    )
    generator = contourpy.contour_generator(x, y, blurred.values.T, fill_type=contourpy.FillType.OuterOffset)
    filled: Any = generator.filled(blurred.level, np.inf)
    pieces, offsets = filled
    if not pieces:
        return
    outer = max(range(len(pieces)), key=lambda i: abs(_area(pieces[i][: offsets[i][1]])))
    rings = [ring[:-1] for ring in np.split(pieces[outer], offsets[outer][1:-1])]
    rings = [rings[0], *(ring for ring in rings[1:] if abs(_area(ring)) >= 2 * size**2)]
    for step in (size, size / 2, size / 4):
        yield _polygons([_resample(ring, step) for ring in rings])


def _polygons(rings: list[Array]) -> _Boundary:
    """Boundary of closed polygons, the first of them the outer one."""
    areas = [abs(_area(ring)) for ring in rings]

    def fill(gmsh: Any) -> int:
        loops = []
        for ring in rings:
            points = [gmsh.model.geo.addPoint(x, y, 0) for x, y in ring]
            lines = [gmsh.model.geo.addLine(*ends) for ends in zip(points, points[1:] + points[:1], strict=True)]
            for line in lines:
                gmsh.model.geo.mesh.setTransfiniteCurve(line, 2)
            loops.append(gmsh.model.geo.addCurveLoop(lines))
        tag = gmsh.model.geo.addPlaneSurface(loops)
        gmsh.model.geo.synchronize()
        return int(tag)

    return fill, areas[0] - sum(areas[1:])


def _area(ring: Array) -> float:
    """Signed area within a closed polygon with vertices of shape (n, 2)."""
    x, y = (ring - ring[0]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _resample(ring: Array, step: float) -> Array:
    """The closed polygon with vertices evenly spaced along it, ``step`` apart, six at least."""
    closed = np.vstack([ring, ring[:1]])
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    count = max(6, round(along[-1] / step))
    even = np.linspace(0, along[-1], count, endpoint=False)
    return np.stack([np.interp(even, along, coordinate) for coordinate in closed.T], axis=1)


def _surfaces(blurred: _Blurred, size: float) -> Iterator[_Boundary]:
    """Triangle surfaces around the largest piece and its holes, from good ones to such as never cross."""
    for step, rounds in ((size, 10), (size, 3), (size / 2, 10), (size / 2, 3), (size, 0), (size / 2, 0)):
        boundary = _surface(blurred, size, step, rounds)
        if boundary is not None:
            yield boundary


def _cross(vertices: Array, triangles: npt.NDArray[np.int64], edges: npt.NDArray[np.int64]) -> bool:
    """Whether any edge of a triangle surface pierces a triangle it does not touch.

    gmsh must not get such a surface: it fails on it, and may damage its memory as it does.
    """
    from scipy.spatial import KDTree

    corners = vertices[triangles]
    centres = corners.mean(axis=1)
    edges = edges[edges[:, 0] < edges[:, 1]]
    starts, ways = vertices[edges[:, 0]], vertices[edges[:, 1]] - vertices[edges[:, 0]]
    reach = np.linalg.norm(ways, axis=1).max() / 2 + np.linalg.norm(corners - centres[:, None], axis=2).max()
    tree = KDTree(centres)
    for some in np.array_split(np.arange(len(edges)), 1 + len(edges) // 20000):
        near = tree.query_ball_point(starts[some] + ways[some] / 2, reach)
        edge, face = np.repeat(some, [len(faces) for faces in near]), np.concatenate(near).astype(np.int64)
        apart = (triangles[face][:, :, None] != edges[edge][:, None, :]).all(axis=(1, 2))
        edge, face = edge[apart], face[apart]
        # start + t way = corner + a side + b other side, by Cramer's rule (Moeller and Trumbore 1997)
        corner, way = corners[face, 0], ways[edge]
        side, other, offset = corners[face, 1] - corner, corners[face, 2] - corner, starts[edge] - corner
        first, second = np.cross(way, other), np.cross(offset, side)
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b, t = np.einsum("kij,kij->ki", (offset, way, other), (first, second, second)) / np.einsum(
                "ij,ij->i", side, first
            )
            pierced = (a >= 0) & (b >= 0) & (a + b <= 1) & (t >= 0) & (t <= 1)
        if pierced.any():
            return True
    return False


def _surface(blurred: _Blurred, size: float, step: float, rounds: int) -> _Boundary | None:
    """Closed triangle surfaces with edges about ``step`` long, evened out; None if empty or crossing.

    Marching cubes gives triangles of all shapes. Moving each vertex towards its neighbours' mean and back
    onto the level set evens them out. Edges are then 0.9 times the lattice's, so that is 1.1 ``step`` wide.
    """
    from scipy import ndimage, sparse
    from skimage.measure import marching_cubes

    values, level, lower, spacing = blurred
    width = 1.1 * step
    counts = [int(np.ceil((n - 1) * edge / width)) + 1 for n, edge in zip(values.shape, spacing, strict=True)]
    nodes = np.meshgrid(*(width * np.arange(n) / edge for n, edge in zip(counts, spacing, strict=True)), indexing="ij")
    lattice = ndimage.map_coordinates(values, nodes, order=1, mode="constant")
    pieces, number = ndimage.label(lattice > level)
    if number == 0:
        return None
    lattice[(pieces > 0) & (pieces != 1 + np.argmax(np.bincount(pieces.ravel())[1:]))] = 0
    holes, _ = ndimage.label(lattice <= level)
    small = np.bincount(holes.ravel()) * width**3 < 2 * size**3
    small[0] = False
    lattice[small[holes]] = values.max()

    vertices, triangles, _, _ = marching_cubes(lattice, level, spacing=(width,) * 3, gradient_direction="ascent")
    vertices, triangles = vertices.astype(np.float64), triangles.astype(np.int64)
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    # Each edge of a closed, consistently oriented surface occurs once each way: the adjacency is symmetric.
    adjacency = sparse.coo_array((np.ones(len(edges)), tuple(edges.T)), shape=(len(vertices),) * 2).tocsr()
    degree = adjacency.sum(axis=1)[:, None]
    slopes = np.gradient(values, *spacing)
    for _ in range(rounds):
        vertices = (vertices + adjacency @ vertices / degree) / 2
        for _ in range(3):  # Newton steps back to the level set, along its gradient
            points = (vertices / spacing).T
            excess = ndimage.map_coordinates(values, points, order=1, mode="nearest") - level
            slope = np.stack([ndimage.map_coordinates(s, points, order=1, mode="nearest") for s in slopes], axis=1)
            shift = -excess[:, None] * slope / np.maximum((slope**2).sum(axis=1), 1e-8 / step**2)[:, None]
            length = np.linalg.norm(shift, axis=1)[:, None]
            vertices = vertices + shift * np.minimum(1, 0.3 * step / np.maximum(length, 1e-12 * step))

    if rounds > 0 and _cross(vertices, triangles, edges):
        return None
    _, part = sparse.csgraph.connected_components(adjacency, directed=False)
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    volume = float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    def fill(gmsh: Any) -> int:
        loops = []
        for k in range(part.max() + 1):
            own = np.flatnonzero(part == k)
            faces = triangles[part[triangles[:, 0]] == k]
            surface = gmsh.model.addDiscreteEntity(2)
            gmsh.model.mesh.addNodes(2, surface, own + 1, (vertices[own] + lower).ravel())
            gmsh.model.mesh.addElementsByType(surface, 2, [], faces.ravel() + 1)
            loops.append(gmsh.model.geo.addSurfaceLoop([surface]))
        # gmsh takes the first loop for the outer one.
        loops.insert(0, loops.pop(int(part[np.argmin(vertices[:, 0])])))
        tag = gmsh.model.geo.addVolume(loops)
        gmsh.model.geo.synchronize()
        return int(tag)

    return fill, volume


# ------------------------------------------------------------------------------------------ plate with a hole


def plate_with_hole(
    comm: MPI.Comm,
    lower: Sequence[float],
    upper: Sequence[float],
    centre: Sequence[float],
    radius: float,
    size: float,
    size_hole: float | None = None,
    cell: Literal["triangle", "quadrilateral"] = "triangle",
) -> Tagged:
    """Mesh of a rectangle with a round hole.

    Parameters
    ----------
    comm
        Communicator of the mesh (collective call).
    lower, upper
        Corners of the rectangle, shape (2,).
    centre, radius
        The hole; it must lie inside the rectangle without touching its edge.
    size
        Edge length the elements shall have at the corners of the rectangle.
    size_hole
        Edge length at the hole, by default ``size`` or a sixteenth of the hole's circumference, whichever is
        smaller.
    cell
        ``"triangle"`` or ``"quadrilateral"``.

    Returns
    -------
    Tagged
        Affine mesh in 2D. Cell tag: plate 1. Facet tags: left 1, right 2, bottom 3, top 4, hole 5; the same
        names are in ``groups``.

    Raises
    ------
    ValueError
        An argument is none of those allowed, or the hole does not lie inside the plate.
    ModuleNotFoundError, ImportError
        gmsh is missing, or a system library it needs.
    """

    def build(stack: ExitStack) -> tuple[Any, int]:
        low, high, middle = (_vector(*pair, 2) for pair in (("lower", lower), ("upper", upper), ("centre", centre)))
        if np.any(low >= high):
            raise ValueError(f"upper must be greater than lower, they are {upper!r} and {lower!r}")
        r, far = _positive("radius", radius), _positive("size", size)
        near = min(far, np.pi * r / 8) if size_hole is None else _positive("size_hole", size_hole)
        if np.any(middle - r <= low) or np.any(middle + r >= high):
            raise ValueError(
                f"the hole (centre {centre!r}, radius {radius!r}) must lie inside the plate from {lower!r} to {upper!r}"
            )
        if cell not in ("triangle", "quadrilateral"):
            raise ValueError(f"cell must be 'triangle' or 'quadrilateral', not {cell!r}")
        # Quadrilaterals are paired triangles, and some stay unpaired. Splitting each cell at its centre
        # leaves none.
        gmsh = stack.enter_context(
            _session(
                {
                    "Mesh.RecombineAll": cell == "quadrilateral",
                    "Mesh.SubdivisionAlgorithm": cell == "quadrilateral",
                }
            )
        )
        occ, model = gmsh.model.occ, gmsh.model
        far, near = (far, near) if cell == "triangle" else (2 * far, 2 * near)
        rectangle = occ.addRectangle(*low, 0, *(high - low))
        disk = occ.addDisk(*middle, 0, r, r)
        ((_, plate),), _ = occ.cut([(2, rectangle)], [(2, disk)])
        occ.synchronize()
        names = ("left", "right", "bottom", "top", "hole")
        x, y = (low + high) / 2
        sides = np.array([(low[0], y), (high[0], y), (x, low[1]), (x, high[1])])
        curves = [tag for _, tag in model.getBoundary([(2, plate)], oriented=False)]
        for curve in curves:
            points = model.getBoundary([(1, curve)], combined=False, oriented=False)
            at_hole = model.getType(1, curve) != "Line"
            place = np.array(occ.getCenterOfMass(1, curve)[:2])
            which = 4 if at_hole else int(np.argmin(np.linalg.norm(sides - place, axis=1)))
            model.addPhysicalGroup(1, [curve], tag=1 + which, name=names[which])
            model.mesh.setSize(points, near if at_hole else far)
        model.addPhysicalGroup(2, [plate], tag=1, name="plate")
        model.mesh.generate(2)
        return gmsh, 2

    return _distribute(comm, build)


# ------------------------------------------------------------------------------------------- a drawing of one's own


def drawn(
    comm: MPI.Comm, draw: Callable[[Any], None], dim: int = 2, options: Mapping[str, float] | None = None
) -> Tagged:
    """Mesh of what a function draws with gmsh.

    Parameters
    ----------
    comm
        Communicator of the mesh (collective call).
    draw
        Function of the module gmsh, called on rank 0 only: it adds entities and physical groups to the model it finds,
        which is empty, and synchronises. Every cell must be in a physical group. The mesh is generated afterwards.
    dim
        Dimension of the cells and of space, 2 or 3.
    options
        gmsh's options by name, such as ``{"Mesh.MeshSizeMax": 0.1}``.

    Returns
    -------
    Tagged
        The mesh and the tags of its physical groups.

    Raises
    ------
    ValueError
        ``dim`` is neither 2 nor 3, or the function drew no physical group of that dimension.
    ModuleNotFoundError, ImportError
        gmsh is missing, or a system library it needs.
    Exception
        What the function raised, on every rank.
    """

    def build(stack: ExitStack) -> tuple[Any, int]:
        if dim not in (2, 3):
            raise ValueError(f"dim must be 2 or 3, not {dim!r}")
        gmsh = stack.enter_context(_session(dict(options or {})))
        draw(gmsh)
        if not gmsh.model.getPhysicalGroups(dim):
            raise ValueError(f"draw must add a physical group of dimension {dim}, which holds the cells")
        gmsh.model.mesh.generate(dim)
        return gmsh, dim

    return _distribute(comm, build)


# ----------------------------------------------------------------------------------------------- gmsh's files


def load(comm: MPI.Comm, path: str | os.PathLike[str], gdim: int | None = None) -> Tagged:
    """Read a mesh that gmsh wrote (``.msh``).

    Parameters
    ----------
    comm
        Communicator of the mesh (collective call). Only rank 0 reads the file.
    path
        The file. Cells must be of one type and each in one physical group; if there is no group of cells at
        all, all get tag 1.
    gdim
        Geometric dimension, from that of the cells up to 3; by default the smallest in which the nodes fit
        (2 if all z are 0).

    Returns
    -------
    Tagged
        The mesh and the tags of its physical groups.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        gmsh cannot read the file; it holds no cells, cells of several types, or cells or facets that are in
        several groups (cells also: in none); ``gdim`` is none of those allowed.
    ModuleNotFoundError, ImportError
        gmsh is missing, or a system library it needs.
    """

    def build(stack: ExitStack) -> tuple[Any, int]:
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"path: there is no mesh file {file}")
        gmsh = stack.enter_context(_session({}))
        model = gmsh.model
        try:
            gmsh.merge(str(file))
        except Exception as error:  # noqa: BLE001 - gmsh raises nothing more specific
            raise ValueError(f"{file}: gmsh cannot read it: {error}") from None
        # gmsh reads a file that begins with a geometry into a model of its own.
        tdim = max((d for d in (1, 2, 3) if len(model.mesh.getElements(d)[0])), default=0)
        if tdim == 0:
            raise ValueError(f"{file}: there are no cells in it")
        types, _, _ = model.mesh.getElements(tdim)
        if len(types) > 1:
            kinds = ", ".join(model.mesh.getElementProperties(t)[0] for t in types)
            raise ValueError(f"{file}: cells must be of one type, found are {kinds}")
        if not model.getPhysicalGroups(tdim):
            model.addPhysicalGroup(tdim, [tag for _, tag in model.getEntities(tdim)], tag=1)
        for dim, tag in model.getEntities():
            groups = len(model.getPhysicalGroupsForEntity(dim, tag))
            if groups > 1 or (dim == tdim and groups == 0 and len(model.mesh.getElements(dim, tag)[0])):
                allowed = "one physical group" if dim == tdim else "at most one physical group"
                raise ValueError(f"{file}: entity {tag} of dimension {dim} must be in {allowed}, it is in {groups}")
        model.mesh.renumberNodes()
        _, nodes, _ = model.mesh.getNodes()
        extent = np.abs(nodes.reshape(-1, 3)).max(axis=0)
        fits = max(tdim, *(d + 1 for d in range(3) if extent[d] > 1e-12 * extent.max()), 1)
        if gdim is not None and gdim not in range(tdim, 4):
            raise ValueError(f"gdim must be from {tdim} (the dimension of the cells) to 3, not {gdim!r}")
        return gmsh, fits if gdim is None else int(gdim)

    return _distribute(comm, build)
