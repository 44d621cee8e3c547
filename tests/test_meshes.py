import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from npde_fem import datasets, meshes

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

try:
    import gmsh
except (ModuleNotFoundError, OSError) as error:
    pytest.skip(f"gmsh cannot be imported: {error}", allow_module_level=True)

COMM = MPI.COMM_WORLD


def integral(measure):
    one = dolfinx.fem.Constant(measure.ufl_domain(), 1.0)
    return COMM.allreduce(dolfinx.fem.assemble_scalar(dolfinx.fem.form(one * measure, dtype=np.float64)))


def volume(mesh):
    return integral(ufl.dx(domain=mesh))


def edge_lengths(mesh):
    """Lengths of this rank's edges."""
    mesh.topology.create_entities(1)
    mesh.topology.create_connectivity(1, mesh.topology.dim)
    edges = np.arange(mesh.topology.index_map(1).size_local, dtype=np.int32)
    ends = mesh.geometry.x[dolfinx.mesh.entities_to_geometry(mesh, 1, edges)]
    return np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)


def ball(dim, radius, hole=0.0, n=41, lower=-1.0, upper=1.0):
    """Mask of a ball with a hole inside it, and its lower corner and spacing."""
    axes = [np.linspace(lower, upper, n)] * dim
    distance = np.linalg.norm(np.meshgrid(*axes, indexing="ij"), axis=0)
    return (
        (distance < radius) & (distance >= hole),
        np.full(dim, lower),
        np.full(dim, (upper - lower) / (n - 1)),
    )


@pytest.mark.parametrize(("dim", "size"), [(2, 0.05), (2, 0.2), (3, 0.15), (3, 0.3)])
@pytest.mark.parametrize("hole", [0.0, 0.45])
def test_outline_has_the_size_of_the_mask(dim, size, hole):
    mask, lower, spacing = ball(dim, 0.9, hole)
    mesh = meshes.outline(COMM, mask, lower, spacing, size)
    assert mesh.geometry.dim == mesh.topology.dim == dim
    assert volume(mesh) == pytest.approx(mask.sum() * spacing.prod(), rel=0.06 if size > 0.2 else 0.03)
    lengths = edge_lengths(mesh)
    assert 0.75 * size < np.median(lengths) < 1.25 * size
    assert lengths.min() > 0.2 * size and lengths.max() < 2.6 * size
    radii = np.linalg.norm(mesh.geometry.x, axis=1)
    assert radii.max() < 0.95 and radii.min() > hole - 0.08


def test_outline_follows_lower_and_spacing():
    mask = np.zeros((30, 12), dtype=bool)
    mask[1:-1, 1:-1] = True
    mesh = meshes.outline(COMM, mask, (100, -50), (0.5, 2), 0.5, smoothing=0)
    extent = [[COMM.allreduce(f(mesh.geometry.x[:, i]), op=op) for i in (0, 1)] for f, op in EXTREMES]
    np.testing.assert_allclose(extent, [[100.25, -49], [114.25, -29]], atol=0.4)
    assert volume(mesh) == pytest.approx(14 * 20, rel=0.01)


EXTREMES = ((np.min, MPI.MIN), (np.max, MPI.MAX))


def test_outline_fills_holes_too_small_for_the_elements():
    mask, lower, spacing = ball(2, 0.9)
    mask[20, 20] = False
    mesh = meshes.outline(COMM, mask, lower, spacing, 0.2, smoothing=0)
    assert volume(mesh) == pytest.approx(np.pi * 0.81, rel=0.03)


def test_outline_of_a_tangle():
    """Thin and folded parts, narrower than the elements, on which the first attempts fail."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal((20, 20, 20)), 2)
    labels, _ = ndimage.label(noise > 0)
    mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    mesh = meshes.outline(COMM, mask, np.zeros(3), 1, 2.5)
    assert volume(mesh) == pytest.approx(mask.sum(), rel=0.15)


@pytest.mark.parametrize(("dim", "edge", "size", "cells"), [(2, 1, 4, 2900), (2, 1, 8, 710), (3, 4, 8, 16500)])
def test_outline_of_the_brain(dim, edge, size, cells):
    pytest.importorskip("nilearn", reason="nilearn, which carries the brain maps, is not installed")
    brain = datasets.brain(dim, spacing=edge, comm=COMM)
    mesh = meshes.outline(COMM, brain.mask, brain.lower, brain.spacing, size)
    assert volume(mesh) == pytest.approx(brain.mask.sum() * brain.spacing.prod(), rel=0.02)
    assert mesh.topology.index_map(dim).size_global == pytest.approx(cells, rel=0.2)
    assert np.all(mesh.geometry.x[:, :dim] > brain.lower) and np.all(mesh.geometry.x[:, :dim] < brain.upper)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    white = dolfinx.fem.Function(space, dtype=np.float64)
    white.interpolate(brain.interpolate(brain.white))
    assert white.x.array.min() >= 0 and white.x.array.max() <= 1
    mean = COMM.allreduce(dolfinx.fem.assemble_scalar(dolfinx.fem.form(white * ufl.dx, dtype=np.float64))) / volume(
        mesh
    )
    assert mean == pytest.approx(brain.white[brain.mask].mean(), rel=0.03)


DISK = ball(2, 0.9)
TWO = np.zeros((20, 20), dtype=bool)
TWO[2:8, 2:18] = TWO[12:18, 2:18] = True


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"mask": DISK[0].astype(int)}, TypeError, "mask must be a boolean array, not int"),
        ({"mask": None}, TypeError, "mask must be a boolean array, not NoneType"),
        ({"mask": np.zeros((5, 5), dtype=bool)}, ValueError, "mask must have a voxel inside"),
        ({"mask": np.ones(5, dtype=bool)}, ValueError, "mask must have 2 or 3 dimensions, not 1"),
        ({"mask": TWO, "lower": (0, 0), "spacing": 1, "size": 1}, ValueError, "in pieces"),
        ({"lower": (0, 0, 0)}, ValueError, "lower must be 2 finite numbers"),
        ({"lower": (0, np.nan)}, ValueError, "lower must be 2 finite numbers"),
        ({"spacing": (0.1, -0.1)}, ValueError, "spacing must be positive"),
        ({"size": 0}, ValueError, "size must be a positive number, not 0"),
        ({"size": float("nan")}, ValueError, "size must be a positive number, not nan"),
        ({"size": "fine"}, ValueError, "size must be a positive number, not 'fine'"),
        ({"size": 50}, ValueError, "size=50 is too coarse for this mask"),
        ({"smoothing": -1}, ValueError, "smoothing must be a number not below 0"),
    ],
)
def test_outline_refuses_bad_arguments(change, kind, message):
    arguments = {"mask": DISK[0], "lower": DISK[1], "spacing": DISK[2], "size": 0.2} | change
    with pytest.raises(kind, match=message):
        meshes.outline(COMM, **arguments)


# ------------------------------------------------------------------------------------------ plate with a hole


@pytest.mark.parametrize("cell", ["triangle", "quadrilateral"])
def test_plate_with_hole(cell):
    mesh, cell_tags, facet_tags, groups = meshes.plate_with_hole(
        COMM, (-1, 0), (1, 1), (-0.3, 0.6), 0.25, 0.1, 0.05, cell=cell
    )
    assert mesh.topology.cell_name() == cell and mesh.geometry.dim == 2
    assert volume(mesh) == pytest.approx(2 - np.pi * 0.25**2, rel=2e-3)
    assert np.all(cell_tags.values == 1) and groups["plate"] == (2, 1)
    ds = ufl.Measure("ds", domain=mesh, subdomain_data=facet_tags)
    for tag, (name, length) in enumerate(
        {"left": 1, "right": 1, "bottom": 2, "top": 2, "hole": 2 * np.pi * 0.25}.items(), start=1
    ):
        assert groups[name] == (1, tag)
        assert integral(ds(tag)) == pytest.approx(length, rel=5e-3 if name == "hole" else 1e-12)
    hole = facet_tags.find(5)
    nodes = dolfinx.mesh.entities_to_geometry(mesh, 1, hole).ravel()
    np.testing.assert_allclose(np.linalg.norm(mesh.geometry.x[nodes, :2] - (-0.3, 0.6), axis=1), 0.25)
    assert COMM.allreduce(len(hole)) >= 28
    assert 0.03 < np.median(edge_lengths(mesh)) < 0.12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upper": (-1, 1)}, "upper must be greater than lower"),
        ({"lower": (0,)}, "lower must be 2 finite numbers"),
        ({"centre": (0.1, 0.5)}, "must lie inside the plate"),
        ({"centre": (5, 5)}, "must lie inside the plate"),
        ({"radius": 0.5}, "must lie inside the plate"),
        ({"radius": 0}, "radius must be a positive number"),
        ({"size": -1}, "size must be a positive number"),
        ({"size_hole": 0}, "size_hole must be a positive number"),
        ({"cell": "hexagon"}, "cell must be 'triangle' or 'quadrilateral', not 'hexagon'"),
    ],
)
def test_plate_refuses_bad_arguments(change, message):
    arguments = {"lower": (0, 0), "upper": (2, 1), "centre": (0.5, 0.5), "radius": 0.2, "size": 0.2} | change
    with pytest.raises(ValueError, match=message):
        meshes.plate_with_hole(COMM, **arguments)


# ------------------------------------------------------------------------------------------------------ files


@pytest.fixture
def write(tmp_path):
    """A function writing the square that ``draw`` completes to a file."""

    def write(draw=lambda geo, model, square: None, before=lambda: None, dim=2):
        gmsh.initialize([], readConfigFiles=False, interruptible=False)
        try:
            gmsh.option.setNumber("General.Terminal", 0)
            gmsh.option.setNumber("Mesh.MeshSizeMax", 0.3)
            before()
            gmsh.model.add("square")
            geo = gmsh.model.geo
            points = [geo.addPoint(x, y, 0) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))]
            lines = [geo.addLine(points[i], points[i - 3]) for i in range(4)]
            square = geo.addPlaneSurface([geo.addCurveLoop(lines)])
            geo.synchronize()
            draw(geo, gmsh.model, square)
            gmsh.model.mesh.generate(dim)
            gmsh.write(str(tmp_path / "square.msh"))
        finally:
            gmsh.finalize()
        return tmp_path / "square.msh"

    return write


def test_load_with_tags(write):
    def draw(geo, model, square):
        model.addPhysicalGroup(2, [square], tag=7, name="inside")
        model.addPhysicalGroup(1, [1], tag=3, name="bottom")

    tagged = meshes.load(COMM, write(draw))
    assert tagged.groups == {"inside": (2, 7), "bottom": (1, 3)}
    assert tagged.mesh.geometry.dim == 2 and volume(tagged.mesh) == pytest.approx(1)
    assert np.all(tagged.cell_tags.values == 7)
    ds = ufl.Measure("ds", domain=tagged.mesh, subdomain_data=tagged.facet_tags)
    assert integral(ds(3)) == pytest.approx(1)
    assert meshes.load(COMM, write(draw), gdim=3).mesh.geometry.dim == 3


def test_load_without_groups_with_stray_points_and_gaps_in_numbering(write):
    def draw(geo, model, square):
        geo.addPoint(5, 5, 0)
        geo.synchronize()
        model.mesh.generate(0)
        model.mesh.renumberNodes([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])

    tagged = meshes.load(COMM, write(draw))
    assert tagged.groups == {} and tagged.facet_tags is None
    assert volume(tagged.mesh) == pytest.approx(1)


def test_load_refuses_what_dolfinx_cannot_take(write, tmp_path):
    def two_groups(geo, model, square):
        model.addPhysicalGroup(2, [square], tag=1)
        model.addPhysicalGroup(2, [square], tag=2)

    def mixed(geo, model, square):
        other = geo.copy([(2, square)])
        geo.translate(other, 2, 0, 0)
        geo.synchronize()
        model.mesh.setRecombine(2, other[0][1])

    def untagged(geo, model, square):
        other = geo.copy([(2, square)])
        geo.translate(other, 2, 0, 0)
        geo.synchronize()
        model.addPhysicalGroup(2, [square], tag=1)
        gmsh.option.setNumber("Mesh.SaveAll", 1)

    with pytest.raises(ValueError, match="must be in one physical group, it is in 2"):
        meshes.load(COMM, write(two_groups))
    with pytest.raises(ValueError, match="must be in one physical group, it is in 0"):
        meshes.load(COMM, write(untagged))
    with pytest.raises(ValueError, match="cells must be of one type, found are Triangle 3, Quadrilateral 4"):
        meshes.load(COMM, write(mixed))
    with pytest.raises(ValueError, match="there are no cells"):
        meshes.load(COMM, write(dim=0))
    with pytest.raises(ValueError, match="gdim must be from 2"):
        meshes.load(COMM, write(), gdim=1)
    (tmp_path / "noise.msh").write_text("this is no mesh")
    with pytest.raises(ValueError, match=r"noise.msh"):
        meshes.load(COMM, tmp_path / "noise.msh")
    with pytest.raises(FileNotFoundError, match=r"there is no mesh file .*nowhere.msh"):
        meshes.load(COMM, tmp_path / "nowhere.msh")


# --------------------------------------------------------------------------------------------- gmsh's manners


def test_gmsh_is_left_as_it_was_found():
    gmsh.initialize([], readConfigFiles=False, interruptible=False)
    try:
        gmsh.option.setNumber("General.Terminal", 0)
        gmsh.option.setNumber("Mesh.MeshSizeMax", 0.123)
        gmsh.model.add("mine")
        gmsh.model.geo.addPoint(0, 0, 0)
        meshes.outline(COMM, *DISK, 0.2)
        with pytest.raises(ValueError, match="size"):
            meshes.outline(COMM, *DISK, -1)
        assert gmsh.isInitialized() and gmsh.model.getCurrent() == "mine"
        assert gmsh.option.getNumber("Mesh.MeshSizeMax") == 0.123
        assert "npde_fem" not in gmsh.model.list()
    finally:
        gmsh.finalize()
    meshes.outline(COMM, *DISK, 0.2)
    assert not gmsh.isInitialized()


def test_gmsh_is_silent(capfd):
    meshes.plate_with_hole(COMM, (0, 0), (1, 1), (0.5, 0.5), 0.2, 0.2)
    meshes.outline(COMM, *DISK, 0.2)
    assert capfd.readouterr() == ("", "")


def test_says_that_gmsh_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gmsh", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'npde-fem\[demo\]'"):
        meshes.outline(COMM, *DISK, 0.2)


# ------------------------------------------------------------------------------------------- a drawing of one's own


def wedge(gmsh):
    """A triangle with legs 2 and 1, the longer one tagged."""
    corners = [gmsh.model.geo.addPoint(*x, 0) for x in ((0, 0), (2, 0), (0, 1))]
    lines = [gmsh.model.geo.addLine(corners[i], corners[i - 2]) for i in range(3)]
    surface = gmsh.model.geo.addPlaneSurface([gmsh.model.geo.addCurveLoop(lines)])
    gmsh.model.geo.synchronize()
    gmsh.model.addPhysicalGroup(2, [surface], tag=4, name="wedge")
    gmsh.model.addPhysicalGroup(1, lines[:1], tag=7, name="leg")


def test_a_drawing_is_meshed_with_its_tags():
    found = meshes.drawn(COMM, wedge, options={"Mesh.MeshSizeMax": 0.1})
    assert volume(found.mesh) == pytest.approx(1.0)
    assert found.groups == {"wedge": (2, 4), "leg": (1, 7)}
    assert integral(ufl.ds(7, domain=found.mesh, subdomain_data=found.facet_tags)) == pytest.approx(2.0)
    assert edge_lengths(found.mesh).max() < 0.2


def test_a_bad_drawing_is_named():
    with pytest.raises(ValueError, match="physical group of dimension 2"):
        meshes.drawn(COMM, lambda gmsh: None)
    with pytest.raises(ValueError, match="dim must be 2 or 3"):
        meshes.drawn(COMM, wedge, dim=1)
    assert not gmsh.isInitialized()


# ------------------------------------------------------------------------------------------------------- MPI

TWO_RANKS = """
import npde_fem, json, sys
from mpi4py import MPI
import dolfinx, numpy as np, ufl
from npde_fem import meshes
comm = MPI.COMM_WORLD
r = np.linalg.norm(np.meshgrid(*[np.linspace(-1, 1, 21)] * 3, indexing="ij"), axis=0)
mask, lower, spacing = (r < 0.9, np.full(3, -1.0), 0.1) if comm.rank == 0 else (None, None, None)
result = []
for make in (
    lambda: meshes.outline(comm, mask, lower, spacing, 0.3),
    lambda: meshes.plate_with_hole(comm, (0, 0), (2, 1), (0.5, 0.5), 0.2, 0.1).mesh,
):
    mesh = make()
    own = mesh.topology.index_map(mesh.topology.dim)
    one = dolfinx.fem.Constant(mesh, 1.0)
    part = dolfinx.fem.assemble_scalar(dolfinx.fem.form(one * ufl.dx, dtype=float))
    share = comm.allreduce(own.size_local, op=MPI.MAX) / own.size_global
    result.append((own.size_global, comm.allreduce(part), share))
for work, kind in (
    (lambda: meshes.outline(comm, mask, lower, spacing, -1), ValueError),
    (lambda: meshes.plate_with_hole(comm, (0, 0), (2, 1), (0, 0), 0.2, 0.1), ValueError),
    (lambda: meshes.load(comm, "nowhere.msh"), FileNotFoundError),
):
    try:
        work()
    except kind:
        pass
    else:
        raise AssertionError("no error")
if comm.rank == 0:
    print(json.dumps(result))
"""


def test_any_number_of_ranks_gives_the_same_mesh():
    if COMM.size > 1:
        pytest.skip("already under mpiexec, which does not nest")
    beside_python = str(Path(sys.executable).parent)
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([beside_python, os.environ["PATH"]]))
    if mpiexec is None:
        pytest.skip("there is no mpiexec")
    root = str(Path(meshes.__file__).parents[1])
    found = []
    for ranks in ("1", "2"):
        done = subprocess.run(
            [mpiexec, "-n", ranks, sys.executable, "-c", TWO_RANKS],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(json.loads(done.stdout))
    for (cells, size, _), (cells_two, size_two, share) in zip(*found, strict=True):
        assert cells == cells_two
        assert size == pytest.approx(size_two, rel=1e-12)
        assert share < 0.7
