"""Manufactured solutions: observed order of the L2 error in space."""

import npde_fem as npde
from npde_fem.cases import KNOWN, discretise

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD

# Full, unsymmetric, positive tensors.
TENSOR = {1: [[1.0]], 2: [[1.0, 0.3], [0.1, 0.6]], 3: [[1.0, 0.3, 0.1], [0.1, 0.7, 0.2], [0.0, 0.1, 0.9]]}
DRIFT = (0.4, -0.3, 0.2)


def flux(u, x, t):
    """Nonlinear, space-dependent, anisotropic diffusion and a nonlinear drift; for two components they couple."""
    d = len(x)
    tensor = (1 + 0.3 * x[0]) * ufl.as_matrix(TENSOR[d])
    drift = ufl.as_vector(DRIFT[:d])
    if u.ufl_shape == ():
        return (1 + 0.5 * u**2) * ufl.dot(tensor, ufl.grad(u)) - u * (1 + u) * drift
    first = (1 + 0.5 * u[1] ** 2) * ufl.dot(tensor, ufl.grad(u[0])) + 0.1 * ufl.grad(u[1]) - u[0] * u[1] * drift
    second = (1 + u[0] * u[1]) * ufl.dot(ufl.transpose(tensor), ufl.grad(u[1])) - 0.2 * u[0] * ufl.grad(u[0])
    return ufl.as_tensor([[v[i] for i in range(d)] for v in (first, second)])


def source(u, x, t):
    return -(u**3) if u.ufl_shape == () else ufl.as_vector([-u[0] * u[1], u[0] ** 2 - u[1]])


def wave(x, phase, lib):
    product = lib.sin(1.3 * x[0] + 0.4 + phase)
    for i in range(1, len(x)):
        product = product * lib.cos((1.7 - 0.4 * i) * x[i] - 0.3 - phase)
    return product


# Exact solutions, in UFL or (lib=np) in numpy.


def scalar(x, t, *, lib=ufl):
    return 0.3 + 0.6 * wave(x, 0.0, lib)


def pair(x, t, *, lib=ufl):
    return vector([0.4 + 0.5 * wave(x, 0.0, lib), 0.5 + 0.4 * wave(x, 0.5, lib)], lib)


def vector(parts, lib):
    return ufl.as_vector(parts) if lib is ufl else np.array(parts)


def at(axis, value):
    return lambda x: np.isclose(x[axis], value)


def through(exact):
    """The exact flux through the boundary, for ``Flux`` and ``Robin``."""
    return lambda x, t, n: ufl.dot(flux(exact(x, t), x, t), n)


def robin(exact, alpha):
    return lambda x, t, n: ufl.dot(flux(exact(x, t), x, t), n) + alpha(x, t) * exact(x, t)


def mixed(exact, dim):
    """Dirichlet, Flux and Robin conditions on the sides of the unit box."""

    def alpha(x, t):
        return 1.5 + x[0]

    bcs = [npde.Dirichlet(exact, at(0, 0)), npde.Flux(through(exact), at(0, 1))]
    if dim > 1:
        bcs += [npde.Robin(alpha, robin(exact, alpha), at(1, 1)), npde.Flux(through(exact), at(1, 0))]
    if dim > 2:
        bcs += [npde.Dirichlet(exact, at(2, 0)), npde.Flux(through(exact), at(2, 1))]
    return bcs


def by_component(dim):
    """Different conditions for the two components on the same sides."""
    first, second = (lambda x, t: pair(x, t)[0]), (lambda x, t: pair(x, t)[1])

    def flux_of(c):
        return lambda x, t, n: ufl.dot(flux(pair(x, t), x, t), n)[c]

    bcs = [
        npde.Dirichlet(first, at(0, 0), component=0),
        npde.Flux(flux_of(1), at(0, 0), component=1),
        npde.Dirichlet(second, at(0, 1), component=1),
        npde.Robin(2.0, lambda x, t, n: flux_of(0)(x, t, n) + 2.0 * first(x, t), at(0, 1), component=0),
    ]
    if dim > 1:
        bcs += [npde.Dirichlet(pair, at(1, 0)), npde.Flux(through(pair), at(1, 1))]
    return bcs


def equation(exact, damping=0.0):
    m = 1 if exact is scalar else 2
    return npde.manufactured(npde.NPDE(flux=flux, source=source, damping=damping, components=m), exact)


def at_points(exact, points, t=0.0):
    """Values of an exact solution at points of shape (n, d), shape (n, m)."""
    return exact(points.T, t, lib=np).reshape(-1, len(points)).T


def fd_error(problem, values, exact, t=0.0):
    dim, m = problem.dim, problem.components
    error = values.reshape(-1, m) - at_points(exact, problem.coordinates()[:, :dim], t)
    return float(np.sqrt(problem.volumes @ (error**2).sum(axis=1)))


def fem_error(problem, values, exact, t=0.0, degree=6):
    u = problem.function(values)
    x = ufl.SpatialCoordinate(problem.mesh)
    difference = u - exact(x, t)
    dx = ufl.Measure("dx", domain=problem.mesh, metadata={"quadrature_degree": degree})
    form = dolfinx.fem.form(ufl.inner(difference, difference) * dx, dtype=np.float64)
    return float(np.sqrt(COMM.allreduce(dolfinx.fem.assemble_scalar(form))))


def orders(errors, sizes):
    e, n = np.array(errors), np.array(sizes, dtype=float)
    return np.log(e[:-1] / e[1:]) / np.log(n[1:] / n[:-1])


def fd_orders(eq, exact, dim, sizes, bcs, t=0.0, **how):
    errors = []
    for n in sizes:
        periodic = {bc.axis for bc in bcs if isinstance(bc, npde.Periodic)}
        upper = [2 * np.pi if a in periodic else 1.0 for a in range(dim)]
        problem = npde.FD(eq, npde.Grid(COMM, (n + 1,) * dim, (0,) * dim, upper), bcs)
        errors.append(fd_error(problem, npde.solve(problem, start(exact), rescue=None, **how).values, exact, t))
    return orders(errors, sizes)


def fem_orders(eq, exact, cell, degree, sizes, bcs, quadrature_degree, t=0.0, **how):
    errors = []
    for n in sizes:
        mesh = box(cell, n)
        shape = () if exact is scalar else (2,)
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree, shape))
        problem = npde.FEM(eq, space, bcs, quadrature_degree=quadrature_degree)
        errors.append(fem_error(problem, npde.solve(problem, start(exact), rescue=None, **how).values, exact, t))
    return orders(errors, sizes)


def start(exact):
    return 0.3 if exact is scalar else (0.4, 0.5)


def box(cell, n):
    kind = getattr(dolfinx.mesh.CellType, cell)
    if cell == "interval":
        return dolfinx.mesh.create_unit_interval(COMM, n)
    if cell in ("triangle", "quadrilateral"):
        return dolfinx.mesh.create_unit_square(COMM, n, n, kind)
    return dolfinx.mesh.create_unit_cube(COMM, n, n, n, kind)


@pytest.mark.parametrize(
    ("dim", "exact", "sizes"),
    [(1, scalar, (32, 64)), (2, scalar, (16, 32, 64)), (3, scalar, (10, 20)), (1, pair, (32, 64)), (3, pair, (8, 16))],
)
def test_fd_mixed_conditions(dim, exact, sizes):
    assert np.all(fd_orders(equation(exact), exact, dim, sizes, mixed(exact, dim)) > 1.95)


@pytest.mark.parametrize("dim", [1, 2])
def test_fd_conditions_by_component(dim):
    assert np.all(fd_orders(equation(pair), pair, dim, (16, 32, 64), by_component(dim)) > 1.95)


@pytest.mark.parametrize(
    ("cell", "exact", "degree", "sizes", "quadrature_degree"),
    [
        ("interval", scalar, 1, (16, 32), 4),
        ("interval", pair, 2, (8, 16), 6),
        ("triangle", scalar, 1, (16, 32), 3),
        ("triangle", scalar, 2, (6, 12), 5),
        ("quadrilateral", scalar, 1, (16, 32), 3),
        ("quadrilateral", scalar, 2, (6, 12), 5),
        ("tetrahedron", scalar, 1, (6, 12), 2),
        ("tetrahedron", scalar, 2, (3, 6), 4),
        ("hexahedron", scalar, 1, (6, 12), 2),
        ("hexahedron", scalar, 2, (3, 6), 4),
        ("tetrahedron", pair, 1, (6, 12), 2),
    ],
)
def test_fem_mixed_conditions(cell, exact, degree, sizes, quadrature_degree):
    dim = {"interval": 1, "triangle": 2, "quadrilateral": 2}.get(cell, 3)
    found = fem_orders(equation(exact), exact, cell, degree, sizes, mixed(exact, dim), quadrature_degree)
    assert np.all(found > (1.95 if degree == 1 else 2.9))


@pytest.mark.parametrize(("cell", "degree", "quadrature_degree"), [("triangle", 1, 3), ("quadrilateral", 2, 5)])
def test_fem_conditions_by_component(cell, degree, quadrature_degree):
    sizes = (16, 32) if degree == 1 else (6, 12)
    found = fem_orders(equation(pair), pair, cell, degree, sizes, by_component(2), quadrature_degree)
    assert np.all(found > (1.95 if degree == 1 else 2.9))


@pytest.mark.parametrize(("exact", "axes"), [("scalar", (0,)), ("scalar", (0, 1)), ("pair", (1,))])
def test_fd_periodic(exact, axes):
    """Period 2 pi along ``axes``; Dirichlet on what remains of the boundary."""

    def one(x, t, *, lib=ufl):
        return 0.4 + 0.3 * lib.sin(x[0]) * lib.cos(x[1])

    def two(x, t, *, lib=ufl):
        return vector([one(x, t, lib=lib), 0.5 + 0.3 * lib.cos(x[0] + x[1])], lib)

    def periodic_flux(u, x, t):
        tensor = (2 + ufl.sin(x[0]) * ufl.cos(x[1])) * ufl.as_matrix(TENSOR[2])
        drift = ufl.as_vector([0.5 + ufl.cos(x[1]), ufl.sin(x[0])])
        if u.ufl_shape == ():
            return (1 + u**2) * ufl.dot(tensor, ufl.grad(u)) - u * drift
        rows = [ufl.dot(tensor, ufl.grad(u[c])) - u[0] * u[1] * drift for c in (0, 1)]
        return ufl.as_tensor([list(row) for row in rows])

    solution, m = (one, 1) if exact == "scalar" else (two, 2)
    eq = npde.NPDE(flux=periodic_flux, source=lambda u, x, t: -u, damping=0, components=m)
    sizes, errors = (16, 32, 64), []
    bcs = [npde.Periodic(a) for a in axes] + ([npde.Dirichlet(solution)] if len(axes) == 1 else [])
    for n in sizes:
        grid = npde.Grid(COMM, (n + 1, n + 1), (0, 0), (2 * np.pi,) * 2)
        problem = npde.FD(npde.manufactured(eq, solution), grid, bcs)
        values = npde.solve(problem, 0.4 if m == 1 else (0.4, 0.5), rescue=None).values
        errors.append(fd_error(problem, values, solution))
        assert problem.n_global == m * np.prod([n if a in axes else n + 1 for a in (0, 1)])
    assert np.all(orders(errors, sizes) > 1.95)


@pytest.mark.parametrize("shape", ["square", "L"])
@pytest.mark.parametrize("exact", [scalar, pair])
def test_fd_masked(shape, exact):
    """Voxels centred on the points of a mask, with the exact flux through its staircase surface."""
    eq, sizes, errors = equation(exact), (16, 32, 64), []
    for n in sizes:
        h = 1 / n
        mask = np.ones((n, n), dtype=bool)
        if shape == "L":
            mask[n // 2 :, n // 2 :] = False
        grid = npde.Grid(COMM, (n, n), (h / 2,) * 2, (1 - h / 2,) * 2, mask=mask)
        problem = npde.FD(eq.with_source(lambda u, x, t: exact(x, t) - u), grid, [npde.Flux(through(exact))])
        assert problem.volumes.sum() == pytest.approx(0.75 if shape == "L" else 1.0)
        errors.append(fd_error(problem, npde.solve(problem, start(exact), rescue=None).values, exact))
    assert np.all(orders(errors, sizes) > 1.95)


def moving(x, t, *, lib=ufl):
    return 0.3 + 0.5 * wave(x, 0.0, lib) * lib.exp(-t) + 0.1 * lib.sin(3 * t) * x[0]


def moving_pair(x, t, *, lib=ufl):
    return vector([moving(x, t, lib=lib), 0.5 + 0.4 * wave(x, 0.5, lib) * lib.cos(t)], lib)


@pytest.mark.parametrize("method", ["fd", "triangle", "quadrilateral"])
def test_time_dependent_data(method):
    """Time-dependent Dirichlet, Flux and Robin data and source, with a small step of a second-order scheme."""
    eq = npde.manufactured(npde.NPDE(flux=flux, source=source, damping=lambda x: 1 + x[0]), moving)
    sizes, errors = (8, 16) if method == "quadrilateral" else (8, 16, 32), []
    degree = 2 if method == "quadrilateral" else 1
    for n in sizes:
        if method == "fd":
            problem = npde.FD(eq, npde.Grid(COMM, (n + 1, n + 1), (0, 0), (1, 1)), mixed(moving, 2))
        else:
            space = dolfinx.fem.functionspace(box(method, n), ("Lagrange", degree))
            problem = npde.FEM(eq, space, mixed(moving, 2), quadrature_degree=5)
        u0 = at_points(moving, problem.coordinates()[:, :2]).ravel()
        dt = 0.2 / n if degree == 1 else 0.005
        scheme = npde.CrankNicolson() if degree == 1 else npde.SDIRK2()
        values = npde.solve(problem, u0, t=(0, 0.2), dt=dt, scheme=scheme, rescue=None).values
        errors.append((fd_error if method == "fd" else fem_error)(problem, values, moving, 0.2))
    assert np.all(orders(errors, sizes) > (1.95 if degree == 1 else 2.9))


def test_damping_matrix():
    """Two components whose rates are coupled by a matrix, with time-dependent Dirichlet data, by both methods."""
    damping = [[1.0, 0.3], [-0.2, 2.0]]
    eq = npde.manufactured(npde.NPDE(flux=flux, source=source, damping=damping, components=2), moving_pair)
    for method in ("fd", "fem"):
        errors, sizes = [], (16, 32)
        for n in sizes:
            if method == "fd":
                problem = npde.FD(eq, npde.Grid(COMM, (n + 1,), (0,), (1,)), mixed(moving_pair, 1))
            else:
                space = dolfinx.fem.functionspace(box("interval", n), ("Lagrange", 1, (2,)))
                problem = npde.FEM(eq, space, mixed(moving_pair, 1), quadrature_degree=5)
            u0 = at_points(moving_pair, problem.coordinates()[:, :1]).ravel()
            for scheme, dt in ((npde.SDIRK2(), 0.2 / n), (npde.RK4(), 0.02 / n**2)):
                values = npde.solve(problem, u0, t=(0, 0.2), dt=dt, scheme=scheme, rescue=None).values
                errors.append((fd_error if method == "fd" else fem_error)(problem, values, moving_pair, 0.2))
        assert np.all(orders(errors[::2], sizes) > 1.95), f"{method}, implicit"
        assert np.all(orders(errors[1::2], sizes) > 1.95), f"{method}, explicit"


READY_MADE = [
    ("fitzhugh-nagumo", 2, (8, 16)),
    ("cahn-hilliard", 1, (16, 32)),
    ("schrodinger", 1, (32, 64)),
    ("schrodinger-oscillator", 2, (16, 32)),
    ("schrodinger-coherent", 1, (32, 64)),
    ("schrodinger-soliton", 1, (64, 128)),
    ("helmholtz", 2, (16, 32)),
    ("helmholtz-source", 2, (16, 32)),
    ("helmholtz-cylinder", 2, (8, 16)),
    ("paraxial", 1, (16, 32)),
    ("paraxial-lens", 1, (16, 32)),
    ("wave", 2, (8, 16)),
    ("wave-travelling", 1, (32, 64)),
    ("telegraph", 2, (8, 16)),
]


def test_all_ready_made_cases_are_compared():
    """Here, or on the command line (tests/test_cli.py)."""
    real = {"poisson", "diffusion-reaction", "heat", "fisher-kpp", "porous-fisher", "allen-cahn", "gray-scott"}
    assert {name for name, *_ in READY_MADE} | real == set(KNOWN)


@pytest.mark.parametrize(("name", "dim", "sizes"), READY_MADE)
def test_ready_made_cases(name, dim, sizes):
    """Orders of FD and FEM against exact solutions; splitting on FEM conserves the norm to its order only."""
    for method, degree, least in (("fd", 1, 1.8), ("fem", 1, 1.7), ("fem", 2, 2.85)):
        rows = npde.compare(name, dim, sizes, (degree,), (method,))
        assert rows[1]["order"] > least, (method, degree)
        if method == "fd" or name != "schrodinger-soliton":
            assert abs(rows[1]["changes"].get("norm", 0.0)) < 1e-8, (method, degree)
            assert abs(rows[1]["changes"].get("power", 0.0)) < 1e-7, (method, degree)
        if name == "wave":
            assert abs(rows[1]["changes"]["energy"]) < 1e-9, (method, degree)


@pytest.mark.parametrize(
    ("name", "dim", "sizes"),
    [("schrodinger-soliton", 1, (32, 64)), ("helmholtz", 2, (8, 16)), ("helmholtz-cylinder", 2, (4, 8))],
)
def test_degree_four(name, dim, sizes):
    assert npde.compare(name, dim, sizes, (4,), ("fem",))[1]["order"] > 4.7


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_leapfrog_on_spectral_elements(degree):
    """Steps are below the limit of stability on the coarser mesh, and shrink from there as the error in space does."""
    rows = npde.compare("wave", 2, (4, 8), (degree,), ("fem",), scheme="leapfrog", cell="quadrilateral")
    assert rows[1]["order"] > degree + 0.8
    assert rows[1]["steps"] >= rows[0]["steps"] * 2 ** ((degree + 1) / 2)


def test_three_dimensions():
    assert npde.compare("helmholtz-source", 3, (8, 16), (1,), ("fd",))[1]["order"] > 1.9


@pytest.mark.parametrize("method", ["fd", "fem"])
def test_norm_and_energy_of_the_oscillator(method):
    """Crank-Nicolson conserves both to round-off, for it is the discrete energy that is measured; and it is 1 + d/2."""
    problem, posed = discretise(KNOWN["schrodinger-oscillator"], method, COMM, 1, 128, 2)
    solution = npde.solve(problem, problem.interpolate(posed.exact), t=(0, 1), dt=0.1, observe=[0, 1], rescue=None)
    for measure in posed.conserved.values():
        assert measure(solution, 1) == pytest.approx(measure(solution, 0), rel=1e-12)
    assert posed.conserved["norm"](solution, 0) == pytest.approx(1.0, abs=1e-4)
    assert posed.conserved["energy"](solution, 0) == pytest.approx(1.5, abs=1e-4 if method == "fem" else 5e-3)
