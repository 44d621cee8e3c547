"""Growth of a glioma in human brain anatomy: finite differences on the image's voxels, finite elements on a mesh.

The model of proliferation and invasion (Swanson, Alvord and Murray 2000, Cell Prolif. 33, 317-329, with logistic
growth), for the density ``u`` of tumour cells over its carrying capacity,

    u_t = div(D grad u) + r u (1 - u),   D = D_white WM(x) + D_grey GM(x),   n . D grad u = 0,

with the maps ``WM`` and ``GM`` of white and grey matter of :func:`npde_fem.datasets.brain`. Lengths are millimetres
of MNI space, times are days. The equation is written once, by :func:`glioma_equation`; :func:`glioma_fd` and
:func:`glioma_fem` discretise it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from npde_fem import physics
from npde_fem.datasets import Brain, brain
from npde_fem.discretize import FD, FEM, Grid
from npde_fem.discretize.semidiscrete import Semidiscrete
from npde_fem.equation import NPDE, Parameter
from npde_fem.meshes import outline
from npde_fem.output import save_figure
from npde_fem.parallel import alike
from npde_fem.solve import CrankNicolson, Scheme, Solution, solve

import dolfinx.fem
import dolfinx.geometry
import numpy as np
import numpy.typing as npt
from mpi4py import MPI

__all__ = [
    "DAYS",
    "D_GREY",
    "D_WHITE",
    "DT",
    "RATE",
    "T1GD",
    "T2",
    "Difference",
    "Growth",
    "Sampler",
    "anatomy",
    "compare_resolutions",
    "difference",
    "figure",
    "glioma_equation",
    "glioma_fd",
    "glioma_fem",
    "seed",
    "simulate",
    "tumour_size",
]

Array = npt.NDArray[np.float64]

D_GREY = 0.13
"""Diffusivity in grey matter, mm^2/day: 0.0013 cm^2/day (Swanson, Alvord and Murray 2000, high grade)."""

D_WHITE = 5 * D_GREY
"""Diffusivity in white matter, mm^2/day: five times that in grey matter (same source)."""

RATE = 0.012
"""Net rate of proliferation, 1/day (same source, high grade)."""

T1GD = 0.8
"""Density above which a tumour shows on T1-weighted images with gadolinium (Swanson et al. 2008, Br. J. Cancer 98)."""

T2 = 0.16
"""Density above which a tumour shows on T2-weighted images (same source)."""

DAYS = 700.0
"""Default length of a run in days."""

DT = 5.0
"""Default step in days."""


# ------------------------------------------------------------------------------------------------------- anatomy


def anatomy(
    dim: int = 2, spacing: int | None = None, slice_mm: float | None = None, comm: MPI.Comm | None = None
) -> Brain:
    """Brain maps as :func:`npde_fem.datasets.brain` gives them, the mask reduced to tissue.

    The mask keeps the largest piece of the voxels that are at least a quarter tissue, ``WM + GM >= 0.25``. So
    ventricles and wide sulci are no part of the domain: no tumour cell crosses their walls or grows in the fluid.

    Parameters
    ----------
    dim, spacing, slice_mm, comm
        As for :func:`npde_fem.datasets.brain`.

    Returns
    -------
    Brain
        The maps, the same on every rank.

    Raises
    ------
    ValueError, DataUnavailable
        As for :func:`npde_fem.datasets.brain`; a ValueError also if no tissue is left.
    """
    from scipy import ndimage

    whole = brain(dim, spacing, slice_mm, comm)
    labels, pieces = ndimage.label(whole.mask & (whole.white + whole.grey >= 0.25))
    if pieces == 0:
        raise ValueError(f"there is no tissue in this brain: dim={dim}, spacing={spacing}, slice_mm={slice_mm}")
    mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    mask.flags.writeable = False
    return replace(whole, mask=mask)


def seed(
    tissue: Brain, centre: Sequence[float] | None = None, width: float = 4.0, peak: float = 0.5
) -> Callable[[Array], Array]:
    """Initial state: ``peak exp(-|x - centre|^2 / (2 width^2))``.

    Parameters
    ----------
    tissue
        The anatomy.
    centre
        Position in mm, one number a dimension; by default the deep white matter of the right hemisphere,
        (31, -6), at z = 24 in the volume.
    width
        Standard deviation in mm; several of the grid or mesh, so that every resolution sees the same tumour.
    peak
        Largest density, in (0, 1].

    Returns
    -------
    callable
        ``f(x)`` for x of shape (3, n), giving densities of shape (n,).

    Raises
    ------
    ValueError
        If the centre lies outside the tissue, or a number is none of those allowed.
    """
    place = np.asarray((31.0, -6.0, 24.0)[: tissue.dim] if centre is None else centre, dtype=np.float64)
    if place.shape != (tissue.dim,) or not np.isfinite(place).all():
        raise ValueError(f"centre must be {tissue.dim} finite numbers (mm), not {centre!r}")
    if not (np.isfinite(width) and width > 0):
        raise ValueError(f"width must be a positive number (mm), not {width!r}")
    if not 0 < peak <= 1:
        raise ValueError(f"peak must be above 0 and at most 1, not {peak!r}")
    voxel = np.rint((place - tissue.lower) / tissue.spacing).astype(int)
    if np.any(voxel < 0) or np.any(voxel >= tissue.mask.shape) or not tissue.mask[tuple(voxel)]:
        raise ValueError(f"centre {place.tolist()} lies outside the tissue; choose a place in the brain, in mm")

    def density(x: Array) -> Array:
        return peak * np.exp(-np.sum((x[: tissue.dim] - place[:, None]) ** 2, axis=0) / (2 * width**2))

    return density


# ----------------------------------------------------------------------------------------------------- problems


def glioma_equation(
    tissue: Brain, white: float = D_WHITE, grey: float = D_GREY, rate: float = RATE, field: bool | tuple = True
) -> NPDE:
    """The equation of growth in an anatomy, for either discretisation.

    Its parameters are the numbers ``D_white``, ``D_grey`` (mm^2/day) and ``r`` (1/day), and the fields
    ``white_matter`` and ``grey_matter``, which take the maps' values at voxel centres and are linear between them.

    Parameters
    ----------
    tissue
        The anatomy; maps are continued beyond its mask by the nearest value inside.
    white, grey, rate
        First values of the numbers, not negative.
    field
        Where the maps live, as for :class:`~npde_fem.Parameter`.
    """
    white_map, grey_map = (
        Parameter(name, tissue.interpolate(values), field=field, bounds=(0, None))
        for name, values in (("white_matter", tissue.white), ("grey_matter", tissue.grey))
    )
    d_white, d_grey, r = (
        Parameter(name, value, bounds=(0, None)) for name, value in (("D_white", white), ("D_grey", grey), ("r", rate))
    )
    return physics.glioma(d_white, d_grey, white_map, grey_map, r)


def glioma_fd(comm: MPI.Comm, tissue: Brain, equation: NPDE | None = None) -> FD:
    """Growth by finite differences on the image's own voxels (collective).

    The domain is the union of the mask's voxels; no flux passes its staircase surface, exactly.

    Parameters
    ----------
    comm
        Communicator over which the voxels are spread.
    tissue
        The anatomy.
    equation
        By default ``glioma_equation(tissue)``.
    """
    grid = Grid(comm, tissue.mask.shape, tuple(tissue.lower), tuple(tissue.upper), np.asarray(tissue.mask))
    return FD(equation or glioma_equation(tissue), grid)


def glioma_fem(comm: MPI.Comm, tissue: Brain, size: float, degree: int = 1, equation: NPDE | None = None) -> FEM:
    """Growth by finite elements on a mesh of the tissue's smoothed outline, made by gmsh (collective).

    Parameters
    ----------
    comm
        Communicator over which the mesh is spread.
    tissue
        The anatomy.
    size
        Edge length of the elements in mm.
    degree
        Degree of the Lagrange elements. The maps are interpolated at the vertices, where they cannot become negative.
    equation
        By default ``glioma_equation(tissue)``.
    """
    # The surface of a volume folds. Unless sulci narrower than an element close, only far smaller elements fit it.
    smoothing = 1.0 if tissue.dim == 2 else max(1.0, size / float(tissue.spacing[0]))
    mesh = outline(comm, np.asarray(tissue.mask), tissue.lower, tissue.spacing, size, smoothing)
    if equation is None:
        equation = glioma_equation(tissue, field=True if degree == 1 else ("Lagrange", 1))
    return FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", degree)))


# ------------------------------------------------------------------------------------------ size of the tumour


def tumour_size(problem: Semidiscrete, values: Array, threshold: float) -> float:
    """Area in mm^2 (volume in mm^3 in 3D) where the density exceeds a threshold (collective).

    FEM: exact for the linear function through the values at each simplex's vertices. FD: each voxel contributes the
    share of it beyond the plane level set through it, ``1/2 + (u - threshold) / (h |grad u|)`` cut to [0, 1], with
    the gradient by differences to the neighbours inside the mask. Both are of second order in the mesh width.

    Parameters
    ----------
    problem
        A problem of one component in 2D or 3D: FD on a masked grid of equal spacings, or FEM on simplices.
    values
        Its values, shape ``(n_owned,)``.
    threshold
        The density.
    """
    if isinstance(problem, FD):
        local = _size_on_grid(problem, values, threshold)
    else:
        assert isinstance(problem, FEM)
        local = _size_on_mesh(problem, values, threshold)
    return float(problem.comm.allreduce(local))


def _size_on_grid(problem: FD, values: Array, threshold: float) -> float:
    layout, d = problem.layout, problem.dim
    state = problem.new_state()
    problem.load(values, state)
    u = state[..., 0]
    inside = problem.inside(np.arange(u.size)).reshape(u.shape)
    inner, squares = layout.inner, np.zeros(layout.flat_shape)
    for axis in range(d):
        along = d - 1 - axis
        change, count = np.zeros(layout.flat_shape), np.zeros(layout.flat_shape)
        for step in (-1, 1):
            near = tuple(slice(1 + step * (a == along), u.shape[a] - 1 + step * (a == along)) for a in range(d))
            there = inside[near]
            change += np.where(there, step * (u[near] - u[inner]), 0.0)
            count += there
        squares += (change / np.maximum(count, 1)) ** 2
    across = np.maximum(np.sqrt(squares), 1e-12)  # h |grad u|
    share = np.clip(0.5 + (u[inner] - threshold) / across, 0, 1)
    return float(problem.volumes @ share.ravel())


def _size_on_mesh(problem: FEM, values: Array, threshold: float) -> float:
    u, mesh = problem.function(values), problem.mesh
    if problem.space.ufl_element().degree > 1:
        linear = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1)))
        linear.interpolate(u)
        u = linear
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    corners = u.x.array[u.function_space.dofmap.list[:owned]]
    x = mesh.geometry.x[mesh.geometry.dofmaps[0][:owned], : problem.dim]
    measures = np.abs(np.linalg.det(x[:, 1:] - x[:, :1])) / (2 if problem.dim == 2 else 6)
    return float(measures @ _share_above(np.sort(corners, axis=1), threshold))


def _share_above(v: Array, threshold: float) -> Array:
    """Share of each simplex where the linear function with ascending vertex values ``v`` exceeds a threshold.

    Triangles: similar triangles cut off at one corner. Tetrahedra: Bloechl, Jepsen and Andersen 1994, Phys. Rev. B 49,
    appendix A.
    """
    t, n = np.full(len(v), threshold), v.shape[1]

    def gap(i: int, j: int) -> Array:
        return np.maximum(v[:, i] - v[:, j], 1e-300)

    # Vertices below the threshold tell the case. A gap that a case divides by holds the threshold, or is not empty.
    below = np.sum(v <= threshold, axis=1)
    low, high = np.ones(len(v)), np.ones(len(v))
    for k in range(1, n):
        low *= np.clip((t - v[:, 0]) / gap(k, 0), 0, 1)
        high *= np.clip((v[:, -1] - t) / gap(n - 1, n - 1 - k), 0, 1)
    share = np.where(below == 1, 1 - low, np.where(below == n - 1, high, np.where(below == 0, 1.0, 0.0)))
    if n == 4:
        two = below == 2
        v, e = v[two], threshold - v[two, 1]
        v21, v31, v32, v42 = (v[:, i] - v[:, j] for i, j in ((1, 0), (2, 0), (2, 1), (3, 1)))
        cubic = e**3 * (v31 + v42) / (v32 * v42)
        share[two] = 1 - (v21**2 + 3 * v21 * e + 3 * e**2 - cubic) / (v31 * (v[:, 3] - v[:, 0]))
    return share


# --------------------------------------------------------------------------------------------------- simulation


@dataclass(frozen=True)
class Growth:
    """A run: its solution at the observed times, and the size of the tumour there.

    Attributes
    ----------
    solution
        What :func:`npde_fem.solve` returned.
    sizes
        Size of the tumour above each threshold, mm^2 or mm^3, shape ``(len(times),)``.
    """

    solution: Solution
    sizes: dict[float, Array]

    @property
    def problem(self) -> Semidiscrete:
        """The problem solved."""
        return self.solution.problem

    @property
    def times(self) -> list[float]:
        """The observed times in days."""
        return self.solution.times

    def state(self, time: float) -> Array:
        """Return this rank's values at one of the observed times."""
        return self.solution.states[self.times.index(time)]


def simulate(
    problem: Semidiscrete,
    u0: Any,
    times: Sequence[float],
    dt: float = DT,
    scheme: Scheme | None = None,
    callback: Callable[[float, Any], None] | None = None,
    thresholds: Sequence[float] = (T1GD, T2),
) -> Growth:
    """Let a tumour grow and measure it (collective).

    Parameters
    ----------
    problem
        From :func:`glioma_fd` or :func:`glioma_fem`.
    u0
        Initial state, such as :func:`seed` gives.
    times
        Times in days at which to keep the state; the first is that of ``u0``, the last one the end.
    dt, scheme
        As for :func:`npde_fem.solve`; Crank-Nicolson by default.
    callback
        Called as ``callback(t, u)`` at the times, to write files for example.
    thresholds
        Densities above which to measure the tumour.
    """
    if len(times) < 2:
        raise ValueError(f"times must be two at least, the first and the last, not {list(times)!r}")
    observe = list(times) if callback is None else (list(times), callback)
    solution = solve(problem, u0, (times[0], times[-1]), dt, scheme or CrankNicolson(), observe, rescue=None)
    sizes = {
        threshold: np.array([tumour_size(problem, values, threshold) for values in solution.states])
        for threshold in thresholds
    }
    return Growth(solution, sizes)


class Sampler:
    """Values of finite-element functions at points that all ranks name alike.

    Parameters
    ----------
    problem
        The FEM problem, of one component.
    points
        Coordinates, shape (n, dim), the same on every rank (collective).
    """

    def __init__(self, problem: FEM, points: Array) -> None:
        self._problem, self._count = problem, len(points)
        x = np.zeros((len(points), 3))
        x[:, : problem.dim] = points
        mesh = problem.mesh
        tree = dolfinx.geometry.bb_tree(mesh, mesh.topology.dim, padding=1e-10)
        near = dolfinx.geometry.compute_collisions_points(tree, x)
        hits = dolfinx.geometry.compute_colliding_cells(mesh, near, x)
        self._found = np.flatnonzero(np.diff(hits.offsets))
        self._cells, self._x = hits.array[hits.offsets[self._found]], x[self._found]

    def __call__(self, values: Array) -> Array:
        """Return the values at the points, shape (n,), NaN outside the mesh, the same on every rank (collective)."""
        everywhere = np.full(self._count, -np.inf)
        if self._found.size:
            everywhere[self._found] = self._problem.function(values).eval(self._x, self._cells).ravel()
        self._problem.comm.Allreduce(MPI.IN_PLACE, everywhere, op=MPI.MAX)
        return np.where(np.isfinite(everywhere), everywhere, np.nan)


def _centres(tissue: Brain) -> Array:
    """Centres of the mask's voxels in mm, shape (n, dim)."""
    return tissue.lower + tissue.spacing * np.argwhere(tissue.mask)


# --------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Difference:
    """How much FD and FEM differ at one resolution.

    Attributes
    ----------
    spacing, size
        Voxel edge of FD and edge length of FEM in mm.
    unknowns
        Of FD and FEM.
    seconds
        Time of the two solves, s.
    relative
        ``||u_FD - u_FEM|| / ||u_FD||`` at the last time, L2 over the voxels whose centre lies in the mesh.
    sizes
        Size of the tumour at the last time by FD and FEM, by threshold.
    """

    spacing: float
    size: float
    unknowns: tuple[int, int]
    seconds: tuple[float, float]
    relative: float
    sizes: dict[float, tuple[float, float]]

    def in_size(self, threshold: float) -> float:
        """Relative difference ``|FEM - FD| / FD`` of the tumour's size; NaN if FD shows no tumour."""
        by_fd, by_fem = self.sizes[threshold]
        return abs(by_fem - by_fd) / by_fd if by_fd > 0 else float("nan")


def difference(tissue: Brain, fd: Growth, fem: Growth, size: float) -> Difference:
    """Compare two runs in one anatomy at their last time (collective); ``size`` is that of the FEM mesh."""
    problem = fem.problem
    assert isinstance(problem, FEM)
    sampled = Sampler(problem, _centres(tissue))(fem.solution.values)
    whole = fd.solution.u.gather()
    relative = None
    if whole is not None:
        on_voxels = whole[tissue.mask]
        common = np.isfinite(sampled)
        error = np.linalg.norm((on_voxels - sampled)[common])
        relative = float(error / np.linalg.norm(on_voxels[common]))
    return Difference(
        spacing=float(tissue.spacing[0]),
        size=size,
        unknowns=(fd.problem.unknowns, problem.unknowns),
        seconds=(fd.solution.seconds, fem.solution.seconds),
        relative=problem.comm.bcast(relative, root=0),
        sizes={k: (float(fd.sizes[k][-1]), float(fem.sizes[k][-1])) for k in fd.sizes},
    )


def compare_resolutions(
    comm: MPI.Comm,
    dim: int = 2,
    spacings: Sequence[int] = (4, 2, 1),
    slice_mm: float | None = None,
    days: float = DAYS,
    dt: float = DT,
    degree: int = 1,
    centre: Sequence[float] | None = None,
) -> list[Difference]:
    """Run both methods at equal voxel and element size, finer and finer (collective).

    Parameters
    ----------
    comm
        Communicator.
    dim, slice_mm
        Slice or volume, as for :func:`anatomy`.
    spacings
        Voxel and element sizes in whole mm.
    days, dt
        Length of each run and its step.
    degree
        Degree of the elements.
    centre
        Where the tumour begins, as for :func:`seed`.

    Returns
    -------
    list of Difference
        One for each spacing, in their order.
    """
    found = []
    for spacing in spacings:
        tissue = anatomy(dim, spacing, slice_mm, comm)
        u0 = seed(tissue, centre)
        fd = simulate(glioma_fd(comm, tissue), u0, (0.0, days), dt)
        fem = simulate(glioma_fem(comm, tissue, float(spacing), degree), u0, (0.0, days), dt)
        found.append(difference(tissue, fd, fem, float(spacing)))
    return found


# ------------------------------------------------------------------------------------------------------- figure


def _slice(tissue: Brain, height: float | None) -> tuple[tuple[Any, ...], float]:
    """Index of the axial slice to draw, and its z in mm."""
    if tissue.slice_mm is not None:
        return (slice(None), slice(None)), tissue.slice_mm
    z = tissue.axes[2]
    k = int(np.argmin(np.abs(z - (24.0 if height is None else height))))
    return (slice(None), slice(None), k), float(z[k])


def _triangles(problem: FEM) -> Array | None:
    """Triangles of a 2D mesh on rank 0, shape (n, 3, 2); None elsewhere."""
    mesh = problem.mesh
    owned = mesh.topology.index_map(2).size_local
    parts = problem.comm.gather(mesh.geometry.x[mesh.geometry.dofmaps[0][:owned], :2], root=0)
    return None if parts is None else np.concatenate(parts)


def figure(
    path: str | os.PathLike[str],
    tissue: Brain,
    fd: Growth,
    fem: Growth,
    days: Sequence[float],
    differences: Sequence[Difference] = (),
    height: float | None = None,
) -> None:
    """Draw two runs in one anatomy (collective; rank 0 draws, and the file appears whole or not at all).

    Above: the T1-weighted image with the contours ``u = T2`` and ``u = T1GD`` of both solutions at several times.
    Below: the diffusivity, in 2D on some of the voxels and some of the mesh; the size of the tumour against time; the
    difference FD - FEM against resolution.

    Parameters
    ----------
    path
        File to write; its suffix tells the format.
    tissue
        The anatomy.
    fd, fem
        The runs, with equal times.
    days
        Which of the observed times to draw contours of, one to five.
    differences
        From :func:`compare_resolutions`; without any, that panel is left out.
    height
        z in mm of the slice of a volume to draw, 24 by default.

    Raises
    ------
    ValueError
        If a time was not observed.
    """
    missing = [day for day in days if day not in fd.times or day not in fem.times]
    if missing or not 1 <= len(days) <= 5:
        raise ValueError(f"days must be one to five of the observed times {list(fd.times)}, not {list(days)}")
    problem = fem.problem
    assert isinstance(problem, FEM)
    index, z = _slice(tissue, height)
    inside = tissue.mask[index]
    points = tissue.lower[:2] + tissue.spacing[:2] * np.argwhere(inside)
    if tissue.dim == 3:
        points = np.column_stack([points, np.full(len(points), z)])
    sampler = Sampler(problem, points)
    frames = []
    for day in days:
        whole = fd.problem.function(fd.state(day)).gather()
        by_fem = np.full(inside.shape, np.nan)
        by_fem[inside] = sampler(fem.state(day))
        if whole is not None:
            frames.append((day, np.where(inside, whole[index], np.nan), by_fem))
    triangles = _triangles(problem) if tissue.dim == 2 else None
    with alike(problem.comm):
        if problem.comm.rank == 0:
            _draw(path, tissue, index, z, fd, fem, frames, triangles, differences)


_COLOURS = {T1GD: "#e4572e", T2: "#f2c14e"}


def _draw(
    path: str | os.PathLike[str],
    tissue: Brain,
    index: tuple[Any, ...],
    z: float,
    fd: Growth,
    fem: Growth,
    frames: list[tuple[float, Array, Array]],
    triangles: Array | None,
    differences: Sequence[Difference],
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D

    x, y = tissue.axes[:2]
    half = tissue.spacing[0] / 2
    extent = (x[0] - half, x[-1] + half, y[0] - half, y[-1] + half)
    whole = plt.figure(figsize=(3.3 * max(4, len(frames)), 9.2), layout="constrained")
    above, below = whole.subfigures(2, 1, height_ratios=(1.15, 1), squeeze=False)[:, 0]

    names = {T1GD: "T1Gd", T2: "T2"}
    panels = above.subplots(1, len(frames), squeeze=False)[0]
    for axis, (day, by_fd, by_fem) in zip(panels, frames, strict=True):
        axis.imshow(tissue.template[index].T, origin="lower", extent=extent, cmap="gray", vmin=0, vmax=1.05)
        for level, colour in _COLOURS.items():
            for values, style in ((by_fd, {"colors": colour, "linewidths": 3.5}), (by_fem, {"colors": "k"})):
                if np.nanmax(values) > level:
                    dashes = {} if values is by_fd else {"linewidths": 1.1, "linestyles": "dashed"}
                    axis.contour(x, y, values.T, levels=[level], **style, **dashes)
        axis.set_title(f"day {day:g}", fontsize=11)
        axis.set_axis_off()
    above.legend(
        handles=[
            *(Line2D([], [], color=c, lw=3.5, label=f"FD, u = {k:g} ({names[k]})") for k, c in _COLOURS.items()),
            Line2D([], [], color="k", lw=1.1, ls="--", label="FEM, the same levels"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )

    axes = below.subplots(1, 3 if differences else 2, squeeze=False)[0]
    diffusivity = sum(
        float(fd.problem.parameters[number].value) * values
        for number, values in (("D_white", tissue.white), ("D_grey", tissue.grey))
    )
    shown = np.where(tissue.mask, diffusivity, np.nan)[index]
    limits = {"cmap": "cividis", "vmin": 0, "vmax": float(np.nanmax(shown))}
    if triangles is None:
        image = axes[0].imshow(shown.T, origin="lower", extent=extent, **limits)
        axes[0].set_title("diffusivity", fontsize=11)
    else:
        middle, right, height = extent[1] / 2, extent[1], (y[0] + y[-1]) / 2
        shown[x > middle] = np.nan
        image = axes[0].pcolormesh(x, y, shown.T, edgecolors=(1, 1, 1, 0.4), linewidth=0.1, **limits)
        some = triangles[triangles[:, :, 0].max(axis=1) > middle]
        mesh = PolyCollection(list(some), edgecolor="w", linewidth=0.3)
        mesh.set(array=tissue.interpolate(diffusivity)(some.mean(axis=1).T), cmap=image.cmap, norm=image.norm)
        axes[0].add_collection(mesh)
        axes[0].set(xlim=(0, right), ylim=(height - right / 2, height + right / 2), aspect="equal")
        axes[0].set_title("diffusivity on voxels (left) and mesh (right)", fontsize=11)
    axes[0].set(xlabel="x, mm", ylabel="y, mm")
    below.colorbar(image, ax=axes[0], shrink=0.8, label="D, mm$^2$/day")

    unit, scale = ("area, cm$^2$", 100.0) if tissue.dim == 2 else ("volume, cm$^3$", 1000.0)
    for level, colour in _COLOURS.items():
        label = f"FD, u > {level:g} ({names[level]})"
        axes[1].plot(fd.times, fd.sizes[level] / scale, color=colour, lw=3.5, label=label)
        axes[1].plot(fem.times, fem.sizes[level] / scale, "k--", lw=1.1, label="FEM" if level == T2 else None)
    axes[1].set(xlabel="time, days", ylabel=unit, xlim=(fd.times[0], fd.times[-1]), ylim=(0, None))
    axes[1].set_title("size of the tumour", fontsize=11)
    axes[1].legend(frameon=False)

    if differences:
        h = np.array([d.spacing for d in differences])
        relative = np.array([d.relative for d in differences])
        axes[2].loglog(h, relative, "o-", color="#33658a", label="u, L2")
        for level, colour in _COLOURS.items():
            in_size = [d.in_size(level) for d in differences]
            axes[2].loglog(h, in_size, "s-", color=colour, label=f"size, {names[level]}")
        axes[2].loglog(h, 0.5 * relative[-1] * (h / h[-1]) ** 2, color="0.6", ls=":", label="order 2")
        axes[2].set_xticks(h, [f"{v:g}" for v in h])
        axes[2].minorticks_off()
        axes[2].set(xlabel="voxel and element size, mm", ylabel="relative difference")
        axes[2].set_title(f"FD - FEM on day {fd.times[-1]:g}", fontsize=11)
        axes[2].legend(frameon=False)
    for axis in axes[1:]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, which="major", color="0.9")
    whole.suptitle(f"Growth of a glioma in the ICBM152 anatomy, axial slice z = {z:g} mm", fontsize=13)
    save_figure(whole, path)
    plt.close(whole)
