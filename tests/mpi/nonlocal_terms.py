"""Nonlocal terms on any number of ranks: the same as on each rank alone. Every assertion holds on every rank."""

import npde_fem as npde
from npde_fem.nonlocal_terms import Integral, Stencil
from npde_fem.solve.integrate import solve
from npde_fem.solve.trajectory import Cotangents, Trajectory

import dolfinx
import numpy as np
from dolfinx.mesh import CellType
from mpi4py import MPI

COMM = MPI.COMM_WORLD
BOTH = (COMM, MPI.COMM_SELF)
rng = np.random.default_rng(5)


def rough(problem, k):
    """Values that depend on coordinates only."""
    x = problem.coordinates()
    waves = [np.sin(k + 17 * x[:, 0] - (9 + c) * x[:, 1] + 23 * x[:, 2]) for c in range(problem.components)]
    return np.stack(waves, axis=1).reshape(-1)


def in_order(problem, values):
    """Values of all ranks, sorted by where their nodes are, on every rank."""
    parts = problem.comm.allgather((problem.coordinates(), values.reshape(-1, problem.components)))
    x, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    return values[np.lexsort(np.round(x, 9).T)]


def results(problem, steps):
    """N u and N^T v; and a short solve with its gradient."""
    operator = problem.nonlocal_operator
    u, v = rough(problem, 1), rough(problem, 2)
    there, back = np.zeros(problem.n_owned), np.zeros(problem.n_owned)
    operator.apply(u, there)
    operator.transpose(v, back)
    one, other = (problem.comm.allreduce(float(a @ b)) for a, b in ((v, there), (back, u)))
    assert abs(one - other) <= 1e-11 * (1 + abs(one)), "not the transpose"
    if not steps:
        return [in_order(problem, values) for values in (there, back)]
    record = Trajectory(problem)
    if problem.second_order:
        solution = solve(problem, u, (0, 0.02), 0.01, npde.Leapfrog(), velocity=v, recorder=record)
    else:
        solution = solve(problem, u, (0, 0.02), 0.01, npde.RK4(), recorder=record)
    gradient = record.by(()).adjoint(Cotangents(final=v)).initial
    return [in_order(problem, values) for values in (there, back, solution.values, gradient)]


def check(name, make, steps=False, tolerance=1e-11):
    """``make`` returns a problem on a communicator."""
    together, alone = (results(make(comm), steps) for comm in BOTH)
    for what, one, other in zip(("N u", "N^T v", "solution", "gradient"), together, alone, strict=False):
        scale = np.abs(other).max()
        assert scale > 0, (name, what)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale, err_msg=f"{name}: {what}")


def equation(term, **terms):
    return npde.NPDE(components=term.components, nonlocal_term=term, **terms)


def kernel(m, *sizes):
    return rng.standard_normal((m, m, *sizes))


# -- grids -----------------------------------------------------------------------------------------------------


def grid(term, shape, lower=0.0, upper=1.0, bcs=(), mask=None, **terms):
    dim = len(shape)
    box = [float(lower)] * dim, [float(upper)] * dim
    return lambda comm: npde.FD(equation(term, **terms), npde.Grid(comm, shape, *box, mask=mask), bcs)


for padding in ("zeros", "replicate", "reflect", "circular"):
    check(f"line {padding}", grid(Stencil(kernel(2, 5), 1 / 8, padding, 0, 1), (9,)))
    check(f"finer plane {padding}", grid(Stencil(kernel(1, 3, 5), 1 / 4, padding, 0, 1), (11, 9)))
    sides = [npde.Periodic(1)]
    check(f"half periodic {padding}", grid(Stencil(kernel(1, 3, 3), 0.2, padding, 0, 0.8), (6, 11), bcs=sides))
check("box", grid(Stencil(kernel(2, 3, 3, 3), 0.25, "replicate", 0, 1), (5, 6, 7)), steps=True)
check("waves", grid(Stencil(kernel(1, 3, 3), 0.25, "zeros", 0, 1), (5, 6), inertia=1.0, damping=0.3), steps=True)
held = [npde.Dirichlet(0.4, lambda x: np.isclose(x[0], 0))]
check("held", grid(Stencil(kernel(1, 3, 3), 0.25, "zeros", 0, 1), (5, 6), bcs=held), steps=True)


def ring(x):
    return np.hypot(x[0] - 0.5, x[1] - 0.5) > 0.3


check("mask", grid(Stencil(kernel(1, 5, 3), 0.13, "replicate", 0, 1.04), (9, 8), mask=ring), steps=True)
lattice = np.stack(np.meshgrid([0.0, 0.5, 1.0], [0.1, 0.4], indexing="ij"), axis=-1).reshape(-1, 2)
dense = Integral(lattice[rng.permutation(6)], rng.standard_normal((2, 6, 2, 6)))
check("integral", grid(dense, (5, 7)), steps=True)


# -- meshes ----------------------------------------------------------------------------------------------------


def fem(term, mesh, degree=1, bcs=(), **terms):
    made = equation(term, **terms)
    return lambda comm: npde.FEM(made, dolfinx.fem.functionspace(mesh(comm), ("Lagrange", degree, made.shape)), bcs)


def square(kind=CellType.triangle, n=5):
    return lambda comm: dolfinx.mesh.create_unit_square(comm, n, n + 1, kind)


def disc(comm, n=8):
    """The unit disc: a square whose lines through the middle are stretched."""
    mesh = dolfinx.mesh.create_rectangle(comm, [(-1, -1), (1, 1)], (n, n), CellType.quadrilateral)
    x, y = mesh.geometry.x[:, 0].copy(), mesh.geometry.x[:, 1].copy()
    mesh.geometry.x[:, 0], mesh.geometry.x[:, 1] = x * np.sqrt(1 - y**2 / 2), y * np.sqrt(1 - x**2 / 2)
    return mesh


def interval(comm):
    return dolfinx.mesh.create_interval(comm, 9, (-1.0, 2.0))


def cube(kind):
    return lambda comm: dolfinx.mesh.create_unit_cube(comm, 2, 3, 3, kind)


for padding in ("zeros", "replicate", "reflect", "circular"):
    check(f"square {padding}", fem(Stencil(kernel(2, 3, 3), 0.25, padding, 0, 0.75), square()))
    check(f"disc {padding}", fem(Stencil(kernel(1, 3, 3), 0.4, padding, -0.8, 0.8), disc))
check("interval", fem(Stencil(kernel(1, 5), 0.5, "replicate", -2, 3), interval, 3))
check("quadrilaterals", fem(Stencil(kernel(1, 3, 3), 0.3, "reflect", 0, 0.9), square(CellType.quadrilateral), 2))
check("tetrahedra", fem(Stencil(kernel(1, 3, 3, 3), 0.5, "replicate", -0.5, 1.5), cube(CellType.tetrahedron)))
check("hexahedra", fem(Stencil(kernel(1, 3, 3, 3), 0.5, "zeros", 0, 1), cube(CellType.hexahedron), 2), steps=True)
check(
    "periodic",
    fem(Stencil(kernel(1, 3, 3), 0.2, "circular", 0, 0.8), square(), 1, [npde.Periodic(0), npde.Periodic(1)]),
    steps=True,
)
check("moving", fem(Stencil(kernel(1, 3, 3), 0.3, "zeros", 0, 0.9), square(), inertia=1.0), steps=True, tolerance=1e-10)
# Two cells: on three ranks one has none.
check(
    "two cells",
    fem(Stencil(kernel(1, 3, 3), 0.5, "replicate", 0, 1), lambda c: dolfinx.mesh.create_unit_square(c, 1, 1)),
    steps=True,
)
check("dense", fem(dense, square()), steps=True)
