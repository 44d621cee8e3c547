"""Probes on any number of ranks: every assertion holds on every rank, or the job ends."""

import itertools

import npde_fem as npde
from npde_fem.discretize.probe import Probe

import basix.ufl
import dolfinx
import numpy as np
from dolfinx.mesh import CellType
from mpi4py import MPI

COMM = MPI.COMM_WORLD
HEAT, SYSTEM = npde.physics.heat(1.0), npde.physics.gray_scott()
EDGE = 1e-11


def random(*shape):
    """Return the same numbers on every rank."""
    return np.random.default_rng(7).random(shape)


def whole(problem, values):
    """Return nodes and values of all ranks, on every rank; shapes (n, 3) and (n, m)."""
    parts = COMM.allgather((problem.coordinates(), values.reshape(-1, problem.components)))
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def with_corners(points, lower=0.0, upper=1.0):
    """Return points, and the corners of the box, a little outside of it."""
    dim = points.shape[1]
    corners = np.array(list(itertools.product((lower - EDGE, upper + EDGE), repeat=dim)))
    return np.concatenate([points, corners])


def check(problem, points, exact=None):
    """Check B on random values, on the nodes, and on an exact function; return B u, u random."""
    probe, m, rng = Probe(problem, points), problem.components, np.random.default_rng(COMM.rank)
    values, start = rng.standard_normal((2, problem.n_owned))
    found = probe.apply(values)
    assert found.shape == (len(points), m) and found.dtype == np.float64
    assert all(np.array_equal(found, other) for other in COMM.allgather(found))
    out = np.full_like(found, np.nan)
    assert probe.apply(values, out) is out and np.array_equal(out, found)

    weights = random(len(points), m) - 0.5
    pulled = start.copy()
    probe.transpose(weights, pulled)
    right = COMM.allreduce(values @ (pulled - start))
    assert abs(np.sum(weights * found) - right) <= 1e-13 * len(points), "B^T is not the transpose of B"

    if exact is not None:
        expected = exact(np.asarray(points, dtype=float).reshape(len(points), -1).T)
        got = probe.apply(problem.initial(exact))
        np.testing.assert_allclose(got, np.reshape(expected, (m, -1)).T, rtol=0, atol=2e-13)
    inside = np.ones(problem.n_owned // m, dtype=bool) if problem.method == "fem" else problem.domain.inside
    nodes = np.concatenate(COMM.allgather(problem.coordinates()[inside]))
    at_nodes = np.concatenate(COMM.allgather(values.reshape(-1, m)[inside]))
    np.testing.assert_allclose(Probe(problem, nodes).apply(values), at_nodes, rtol=0, atol=1e-12)
    return whole(problem, values), found


# -- meshes ----------------------------------------------------------------------------------------------------


def fem(mesh, degree=1, equation=HEAT):
    shape = (equation.components,) if equation.components > 1 else ()
    return npde.FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", degree, shape)))


def bent(mesh):
    """Move the inner nodes of a mesh of the unit box: its quadrilaterals and hexahedra are no longer affine."""
    x, dim = mesh.geometry.x, mesh.geometry.dim
    bump = np.prod(np.sin(np.pi * x[:, :dim]), axis=1)
    x[:, 0] += 0.15 * bump
    x[:, 1] -= 0.1 * bump * x[:, 0]
    return mesh


def curved_triangles(n):
    """A mesh of the unit square whose triangles have curved sides."""
    element = basix.ufl.element("Lagrange", "triangle", 2, shape=(2,))
    cells, x = np.zeros((0, 6), dtype=np.int64), np.zeros((0, 2))
    if COMM.rank == 0:
        flat = dolfinx.mesh.create_unit_square(MPI.COMM_SELF, n, n)
        space = dolfinx.fem.functionspace(flat, ("Lagrange", 2))
        cells, x = space.dofmap.list.astype(np.int64), space.tabulate_dof_coordinates()[:, :2].copy()
        x += 0.06 * (np.sin(np.pi * x[:, :1]) * np.sin(2 * np.pi * x[:, 1:])) * (1, -1)
    return dolfinx.mesh.create_mesh(COMM, cells, element, x)


square, cube = dolfinx.mesh.create_unit_square, dolfinx.mesh.create_unit_cube
line = dolfinx.mesh.create_interval(COMM, 7, (-1.0, 2.0))
check(fem(line, 3), np.array([-1 - EDGE, 2.0, 0.1, 3 / 7 - 1, 1.9]), lambda x: x[0] ** 3 - x[0])
check(fem(line, 1), [[0.5, 0.0, 0.0]], lambda x: 2 - x[0])

plane, space = with_corners(random(60, 2)), with_corners(random(60, 3))
triangles = square(COMM, 4, 3)
check(fem(triangles), plane, lambda x: 1 + x[0] - 2 * x[1])
check(fem(triangles, 2, SYSTEM), plane, lambda x: np.array([x[0] * x[1] - 1, x[1] ** 2]))
check(fem(triangles, 5), plane, lambda x: x[0] ** 2 * x[1] ** 3 - x[0] ** 5)
check(fem(curved_triangles(4)), plane, lambda x: np.ones(x.shape[1]))  # P1 on curved cells holds no other polynomial
check(fem(curved_triangles(4), 2), plane, lambda x: 1 + x[0] - 2 * x[1])
check(fem(bent(square(COMM, 4, 3, CellType.quadrilateral))), plane, lambda x: 1 + x[0] - 2 * x[1])
check(fem(bent(square(COMM, 4, 3, CellType.quadrilateral)), 2, SYSTEM), plane, lambda x: np.array([x[0] * x[1], x[0]]))
check(fem(cube(COMM, 2, 3, 2), 4), space, lambda x: x[0] ** 3 * x[1] - x[2] ** 4)
check(fem(bent(cube(COMM, 2, 2, 2, CellType.hexahedron)), 2), space, lambda x: x[0] * x[1] - x[2] ** 2)
check(fem(cube(COMM, 2, 2, 2, CellType.prism)), space, lambda x: x[0] - x[2])

# Two cells: on three ranks one has none. The points lie on the cells' common side, and at an end of it.
check(fem(square(COMM, 1, 1)), np.array([[0.25, 0.25], [0.5, 0.5], [1.0, 1.0]]), lambda x: x[0] + 3 * x[1])

# A tiny mesh far from the origin: neither the search nor the weights suffer. All coordinates are exact in binary.
unit, tiny = fem(square(COMM, 4, 8)), fem(square(COMM, 4, 8))
tiny.mesh.geometry.x[:, :2] = 4 + 2**-20 * tiny.mesh.geometry.x[:, :2]
points, values = np.round(plane * 2**20) / 2**20, np.random.default_rng(COMM.rank).random(unit.n_owned)
there = Probe(tiny, 4 + 2**-20 * points).apply(values)
np.testing.assert_allclose(there, Probe(unit, points).apply(values), rtol=0, atol=1e-13)
Probe(tiny, [[np.nextafter(4.0, 0.0), 4.0]])


# -- grids -----------------------------------------------------------------------------------------------------


def interpolated(problem, nodes, values, points):
    """Multilinear interpolation, point by point, from all nodes of a grid."""
    grid, out = problem.grid, []
    used = np.concatenate(COMM.allgather(problem.domain.inside))
    for point in points:
        apart = np.abs(nodes[:, : grid.dim] - point)
        for a in np.flatnonzero(problem.layout.periodic):
            apart[:, a] = np.minimum(apart[:, a], grid.upper[a] - grid.lower[a] - apart[:, a])
        weight = np.prod(np.clip(1 - apart / grid.spacing, 0, None), axis=1) * used
        out.append(weight @ values / weight.sum())
    return np.array(out)


def check_grid(problem, points, exact=None):
    # A point a little outside of the grid has the value of the boundary.
    bounded = exact and (lambda x: exact(np.clip(x, 0, 1)))
    (nodes, values), found = check(problem, points, bounded)
    np.testing.assert_allclose(found, interpolated(problem, nodes, values, points), rtol=0, atol=1e-9)


def grid(*shape, **options):
    return npde.Grid(COMM, shape, (0,) * len(shape), (1,) * len(shape), **options)


def hole(x):
    return np.hypot(x[0] - 0.5, x[1] - 0.5) > 0.25


check_grid(npde.FD(HEAT, grid(9)), with_corners(random(20, 1)), lambda x: 1 - 3 * x[0])
check_grid(npde.FD(SYSTEM, grid(6, 7)), plane, lambda x: np.array([x[0] * x[1], 1 - x[0]]))
check_grid(npde.FD(HEAT, grid(5, 6, 4)), space, lambda x: x[0] * x[1] * x[2] - x[1] * x[2])
check_grid(npde.FD(HEAT, grid(7, 6), [npde.Periodic(0)]), plane, lambda x: 2 * x[1])
check_grid(npde.FD(SYSTEM, grid(4, 5, 6), [npde.Periodic(0), npde.Periodic(2)]), space)

# The cells of a masked grid reach half a spacing beyond its points, but not across a periodic axis.
masked = npde.FD(HEAT, grid(11, 9, mask=hole))
around = with_corners(np.concatenate([0.2 * random(30, 2), 0.8 + 0.2 * random(20, 2)]))
around = np.concatenate([around, [[-0.05, 0.5], [0.25, 0.5], [1.05, 1.0625]]])
check_grid(masked, around, lambda x: np.ones(x.shape[1]))
masked_periodic = npde.FD(HEAT, grid(11, 9, mask=hole), [npde.Periodic(1)])
check_grid(masked_periodic, [[-0.05, 0.97], [0.2, 1.0], [1.0, 0.0]])


# -- errors ----------------------------------------------------------------------------------------------------


def refused(error, problem, points, *fragments):
    try:
        Probe(problem, points)
    except error as raised:
        missing = [fragment for fragment in fragments if fragment not in str(raised)]
        assert not missing, f"{missing} not in {raised}"
    else:
        raise AssertionError(f"{points} accepted")
    COMM.Barrier()


inner = [0.4, 0.1]
for problem, domain in ((fem(triangles), "mesh"), (npde.FD(HEAT, grid(6, 7)), "grid")):
    extent = f"outside of the {domain}, whose box extends from (0.0, 0.0) to (1.0, 1.0)"
    refused(ValueError, problem, [inner, inner, [1.5, 0.5], [2.0, 0.5]], "point 2 at (1.5, 0.5)", extent)
    refused(ValueError, problem, [[1 + 1e-9, 0.5]], "point 0", extent)
    refused(ValueError, problem, np.zeros((0, 2)), "(0, 2)", "(n, 2) or (n, 3)")
    refused(ValueError, problem, inner, "(2,)", "(n, 2) or (n, 3)")
    refused(ValueError, problem, [[0.5, 0.5, 0.1]], "zeros as coordinates 3 to 3")
    refused(ValueError, problem, [[0.5, np.nan]], "points", "finite")
    refused(TypeError, problem, "here", "points", "'here'")
    if COMM.size > 1:
        refused(ValueError, problem, [inner] * (1 + COMM.rank), "unlike points")
        refused(ValueError, problem, [inner if COMM.rank else [0.0, np.inf]], "points", "finite")
refused(ValueError, masked, [[0.1, 0.1], [0.2501, 0.5]], "point 1 at (0.2501, 0.5)", "grid's mask")
refused(ValueError, masked, [[-0.051, 0.0]], "point 0", "(-0.05, -0.0625) to (1.05, 1.0625)")
refused(ValueError, masked_periodic, [[0.0, 1.01]], "point 0 at (0.0, 1.01)")
refused(ValueError, npde.FD(HEAT, grid(6, 6), [npde.Periodic(0)]), [[1.1, 0.5]], "point 0 at (1.1, 0.5)")
refused(TypeError, triangles, [inner], "FEM or FD")
