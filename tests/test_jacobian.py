"""Jacobians against central differences of the rate; mass matrices; the parts of the rate."""

import npde_fem as npde

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD
T = 0.3


def parameters(dim):
    """A number, a vector, a field at the points and a field in the cells."""
    tensor = np.eye(dim) + 0.2 * np.triu(np.ones((dim, dim)), 1)
    return {
        "a": npde.Parameter("a", 0.7),
        "c": npde.Parameter("c", [0.4, -0.3, 0.2][:dim]),
        "k": npde.Parameter("k", lambda x: 1 + x[0] ** 2 + 0.5 * x[dim - 1], field=True),
        "D": npde.Parameter(
            "D",
            lambda x: tensor[..., None] * (1 + np.floor(3 * x[0])),
            field=("DG", 0),
            shape=(dim, dim),
        ),
    }


def equation(dim, m, cells=True):
    p = parameters(dim)
    tensor = p["D"] if cells else ufl.as_matrix((np.eye(dim) + 0.2 * np.triu(np.ones((dim, dim)), 1)).tolist())

    def flux(u, x, t):
        def one(v, w):
            diffusion = (
                ufl.dot(tensor, ufl.grad(v)) * p["k"] * (1 + w**2) * (1 + 0.1 * ufl.dot(ufl.grad(v), ufl.grad(v)))
            )
            return diffusion + 0.1 * w * ufl.grad(p["k"]) - ufl.exp(0.3 * w) * (1 + t) * p["c"]

        if m == 1:
            return one(u, u)
        return ufl.as_tensor([list(one(u[0], u[1])), list(one(u[1], u[0]) + u[0] * ufl.grad(u[0]))])

    def source(u, x, t):
        def one(v, w):
            return p["a"] * ufl.sin(v * w) + ufl.dot(p["c"], ufl.grad(v)) * w + x[0] * t * v**3

        return one(u, u) if m == 1 else ufl.as_vector([one(u[0], u[1]), one(u[1], u[0])])

    damping = (lambda x, t: 1 + x[0] ** 2) if m == 1 else [[1.0, 0.2], [-0.1, 2.0]]
    return npde.NPDE(flux=flux, source=source, damping=damping, components=m)


def at(axis, value):
    return lambda x: np.isclose(x[axis], value)


def conditions(dim, m):
    bcs = [
        npde.Dirichlet(0.3, at(0, 0), component=None if m == 1 else 1),
        npde.Robin(lambda x, t: 1 + x[0] + t, 0.4, at(0, 1)),
        npde.Flux(lambda x, t, n: n[0] * x[0] * t, at(0, 1), component=m - 1),
    ]
    if dim > 1:
        bcs.append(npde.Robin(2.5, 0.2, at(1, 1), component=m - 1))
        bcs.append(npde.Flux(lambda x, t: 0.5 if m == 1 else ufl.as_vector([x[0], t]), at(1, 0)))
    return bcs


def fd(dim, m, kind=""):
    shape = {1: (7,), 2: (5, 4), 3: (4, 3, 3)}[dim]
    bcs, mask = conditions(dim, m), None
    if kind == "periodic":
        bcs = [npde.Periodic(dim - 1), *(bcs[:2] if dim > 1 else [])]
    elif kind == "mask":
        mask = np.ones(shape, dtype=bool)
        mask[3:, 2:], mask[0, 0] = False, False
        bcs = [npde.Robin(1.5, 0.2), npde.Dirichlet(0.3, lambda x: x[0] > 0.9, component=m - 1)]
    grid = npde.Grid(COMM, shape, (0,) * dim, (1,) * dim, mask=mask)
    return npde.FD(equation(dim, m, cells=kind != "mask"), grid, bcs)


def fem(cell, m, degree, mass="consistent"):
    kind = getattr(dolfinx.mesh.CellType, cell)
    if cell == "interval":
        mesh = dolfinx.mesh.create_unit_interval(COMM, 4)
    elif cell in ("triangle", "quadrilateral"):
        mesh = dolfinx.mesh.create_unit_square(COMM, 3, 2, kind)
    else:
        mesh = dolfinx.mesh.create_unit_cube(COMM, 2, 1, 2, kind)
    dim = mesh.geometry.dim
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree, () if m == 1 else (m,)))
    return npde.FEM(equation(dim, m), space, conditions(dim, m), quadrature_degree=4, mass=mass)


PROBLEMS = {
    "fd-1d": lambda: fd(1, 1),
    "fd-1d-m2-periodic": lambda: fd(1, 2, "periodic"),
    "fd-2d": lambda: fd(2, 1),
    "fd-2d-m2": lambda: fd(2, 2),
    "fd-2d-periodic": lambda: fd(2, 1, "periodic"),
    "fd-2d-mask": lambda: fd(2, 1, "mask"),
    "fd-2d-m2-mask": lambda: fd(2, 2, "mask"),
    "fd-3d": lambda: fd(3, 1),
    "fd-3d-m2-periodic": lambda: fd(3, 2, "periodic"),
    "fem-interval-m2": lambda: fem("interval", 2, 1),
    "fem-triangle": lambda: fem("triangle", 1, 2),
    "fem-triangle-m2-lumped": lambda: fem("triangle", 2, 1, "lumped"),
    "fem-quadrilateral-m2": lambda: fem("quadrilateral", 2, 2),
    "fem-hexahedron": lambda: fem("hexahedron", 1, 1),
}


@pytest.fixture(scope="module", params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]()


def some_state(problem):
    values = problem.initial(0.5 + 0.4 * np.sin(1.0 + 3.7 * np.arange(problem.n_owned)))
    state = problem.new_state()
    problem.load(values, state)
    problem.constrain(T, state)
    problem.store(state, values)
    return values


def rate(problem, values, part="all"):
    state, out = problem.new_state(), np.zeros(problem.n_owned)
    problem.load(values, state)
    problem.rate(T, state, out, part)
    return out


def jacobian(problem, values, mass_factor, rate_factor, part="all"):
    state, matrix = problem.new_state(), problem.new_matrix()
    problem.load(values, state)
    problem.jacobian(T, state, mass_factor, rate_factor, matrix, part)
    return matrix.convert("dense").getDenseArray().copy()


def free(problem):
    return np.setdiff1d(np.arange(problem.n_owned), problem.constrained)


@pytest.mark.parametrize("part", ["all", "flux", "source"])
def test_jacobian_is_the_derivative_of_the_rate(problem, part):
    values, inside = some_state(problem), free(problem)
    found = jacobian(problem, values, 0.0, 1.0, part)
    expected, eps = np.zeros_like(found), 1e-5
    for j in inside:
        step = np.zeros_like(values)
        step[j] = eps
        expected[:, j] = -(rate(problem, values + step, part) - rate(problem, values - step, part)) / (2 * eps)
    expected[problem.constrained] = 0.0
    expected[problem.constrained, problem.constrained] = 1.0
    np.testing.assert_allclose(found, expected, atol=1e-7 * np.abs(expected[np.ix_(inside, inside)]).max())


def test_factors(problem):
    """mass_factor M - rate_factor R', with M as mass_times applies it."""
    values, inside = some_state(problem), free(problem)
    minus_derivative = jacobian(problem, values, 0.0, 1.0)
    mass = jacobian(problem, values, 1.0, 0.0)
    both = jacobian(problem, values, 3.0, 0.7)
    block = np.ix_(inside, inside)
    scale = np.abs(both).max()
    np.testing.assert_allclose(both[block], 3.0 * mass[block] + 0.7 * minus_derivative[block], atol=1e-13 * scale)
    direction, out = np.zeros(problem.n_owned), np.zeros(problem.n_owned)
    direction[inside] = np.cos(np.arange(inside.size))
    problem.mass_times(direction, out)
    np.testing.assert_allclose(
        out[inside], (mass @ direction)[inside], rtol=0, atol=1e-14 * np.abs(mass[block]).max() * 10
    )


def test_parts_add_up(problem):
    values = some_state(problem)
    whole, flux, source = (rate(problem, values, part) for part in ("all", "flux", "source"))
    assert np.abs(flux).max() > 0 and np.abs(source).max() > 0
    np.testing.assert_allclose(whole, flux + source, atol=1e-13 * np.abs(whole).max())
    assert np.all(whole[problem.constrained] == 0)


def test_advance_is_the_rate_divided_by_the_mass(problem):
    values, inside, step = some_state(problem), free(problem), 0.01
    state, out = problem.new_state(), problem.new_state()
    problem.load(values, state)
    assert problem.advance(T, state, state, step, T, out)
    after, moved = np.zeros(problem.n_owned), np.zeros(problem.n_owned)
    problem.store(out, after)
    problem.mass_times(after - values, moved)
    np.testing.assert_allclose(moved[inside], step * rate(problem, values)[inside], atol=1e-10 * np.abs(moved).max())
    np.testing.assert_array_equal(after[problem.constrained], values[problem.constrained])


def test_symmetric_tensor_gives_a_symmetric_jacobian():
    """A diagonal tensor that varies in space, on any grid; a constant full one on the box."""

    def diagonal(u, x, t):
        return (1 + x[0] + x[1] ** 2) * ufl.dot(ufl.as_matrix([[1, 0], [0, 2]]), ufl.grad(u))

    def full(u, x, t):
        return ufl.dot(ufl.as_matrix([[1, 0.4], [0.4, 1]]), ufl.grad(u))

    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=bool)
    for flux, where in ((diagonal, None), (diagonal, mask), (full, None)):
        grid = npde.Grid(COMM, (4, 4), (0, 0), (1, 1), mask=where)
        problem = npde.FD(npde.NPDE(flux=flux), grid, [npde.Robin(1.0)])
        found = jacobian(problem, np.zeros(problem.n_owned), 0.0, 1.0)
        assert np.abs(found - np.diag(np.diag(found))).max() > 0.1
        np.testing.assert_allclose(found, found.T, atol=1e-14)


@pytest.mark.parametrize("method", ["fd", "fem"])
def test_varies(method):
    """Whether the Jacobian depends on the state and on time."""

    def varies(flux, source, bcs=()):
        eq = npde.NPDE(flux=flux, source=source)
        if method == "fd":
            return npde.FD(eq, npde.Grid(COMM, (4,), (0,), (1,)), bcs).varies()
        mesh = dolfinx.mesh.create_unit_interval(COMM, 3)
        return npde.FEM(eq, dolfinx.fem.functionspace(mesh, ("Lagrange", 1)), bcs).varies()

    linear = lambda u, x, t: (1 + x[0]) * ufl.grad(u)  # noqa: E731
    assert varies(linear, lambda u, x, t: t * x[0] - 2 * u) == (False, False)
    assert varies(linear, lambda u, x, t: -t * u) == (False, True)
    assert varies(linear, lambda u, x, t: -(u**2)) == (True, False)
    assert varies(lambda u, x, t: u * ufl.grad(u), None) == (True, False)
    assert varies(linear, None, [npde.Robin(lambda x, t: 1 + t, 0.5)]) == (False, True)
    assert varies(linear, None, [npde.Robin(1.0, lambda x, t: t)]) == (False, False)
