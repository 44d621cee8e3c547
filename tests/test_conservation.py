"""Without flux through the boundary and without source, the mass of each component stays what it was."""

import npde_fem as npde

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD
SCHEMES = [npde.ForwardEuler(), npde.RK4(), npde.BackwardEuler(), npde.CrankNicolson(), npde.SDIRK2(), npde.IMEX()]


def one(u, x, t):
    """Nonlinear and anisotropic diffusion with a drift that vanishes nowhere."""
    d = len(x)
    tensor = ufl.as_matrix((np.eye(d) + 0.3 * np.triu(np.ones((d, d)), 1)).tolist())
    drift = ufl.as_vector([0.3] * d) * (1 + ufl.sin(9 * t))
    return (0.1 + u**2) * (1.2 + ufl.sin(2 * np.pi * x[0])) * ufl.dot(tensor, ufl.grad(u)) - u * drift


def two(u, x, t):
    first = (0.1 + u[1] ** 2) * ufl.grad(u[0]) - 0.5 * u[0] * ufl.grad(u[1])
    return ufl.as_tensor([list(first), list(0.2 * ufl.grad(u[1]))])


def rough(x):
    return 0.6 + 0.4 * np.sin(37 * x[0] + 11 * x[1] + 5 * x[2])


def rough_pair(x):
    return np.array([rough(x), 0.5 + 0.4 * np.cos(23 * x[0] - 19 * x[1])])


def hole(shape):
    mask = np.ones(shape, dtype=bool)
    mask[tuple(slice(n // 3, n // 2 + 1) for n in shape)] = False
    mask[(0,) * len(shape)] = False
    return mask


@pytest.mark.parametrize(
    ("flux", "dim", "kind"),
    [
        (one, 1, ""),
        (one, 2, ""),
        (one, 2, "mask"),
        (one, 2, "periodic"),
        (one, 3, "mask"),
        (two, 2, ""),
        (two, 2, "mask"),
    ],
)
def test_fd_conserves_mass_to_round_off(flux, dim, kind):
    m, shape = (1 if flux is one else 2), {1: (17,), 2: (9, 8), 3: (6, 5, 6)}[dim]
    grid = npde.Grid(COMM, shape, (0,) * dim, (1,) * dim, mask=hole(shape) if kind == "mask" else None)
    bcs = [npde.Periodic(a) for a in range(dim)] if kind == "periodic" else []
    problem = npde.FD(npde.NPDE(flux=flux, components=m), grid, bcs)
    first = problem.initial(rough if m == 1 else rough_pair)
    before = problem.total(first)
    for scheme in SCHEMES:
        dt = 4e-4 if scheme.is_explicit else 4e-3
        solution = npde.solve(problem, first, t=(0, 20 * dt), dt=dt, scheme=scheme, rescue=None)
        assert np.abs(solution.values - first).max() > 0.02
        # Explicit: round-off. Implicit: every equation is solved to the tolerance, and so is their sum.
        np.testing.assert_allclose(
            problem.total(solution.values), before, rtol=2e-14 if scheme.is_explicit else 2e-9, err_msg=scheme.name
        )


@pytest.mark.parametrize("kind", ["", "mask", "periodic"])
def test_fd_rates_sum_to_zero(kind):
    """What makes the above exact: the rates of all points cancel, faces being seen alike from both sides."""
    for flux, m in ((one, 1), (two, 2)):
        grid = npde.Grid(COMM, (9, 8), (0, 0), (1, 1), mask=hole((9, 8)) if kind == "mask" else None)
        problem = npde.FD(npde.NPDE(flux=flux, components=m), grid, [npde.Periodic(1)] if kind == "periodic" else [])
        state, out = problem.new_state(), np.zeros(problem.n_owned)
        problem.load(problem.initial(rough if m == 1 else rough_pair), state)
        problem.rate(0.1, state, out)
        assert np.all(np.abs(out.reshape(-1, m).sum(axis=0)) < 1e-13 * np.abs(out).sum())


@pytest.mark.parametrize("mass", ["consistent", "lumped"])
@pytest.mark.parametrize(("flux", "cell"), [(one, "triangle"), (two, "quadrilateral")])
def test_fem_conserves_mass_to_the_solvers_tolerance(flux, cell, mass):
    m = 1 if flux is one else 2
    mesh = dolfinx.mesh.create_unit_square(COMM, 6, 7, getattr(dolfinx.mesh.CellType, cell))
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1, () if m == 1 else (m,)))
    problem = npde.FEM(npde.NPDE(flux=flux, components=m), space, mass=mass, quadrature_degree=3)
    u0 = rough if m == 1 else rough_pair
    before = problem.total(problem.initial(u0))
    for scheme in SCHEMES:
        dt = 2e-4 if scheme.is_explicit else 4e-3
        solution = npde.solve(problem, u0, t=(0, 20 * dt), dt=dt, scheme=scheme, rescue=None)
        np.testing.assert_allclose(problem.total(solution.values), before, rtol=1e-8, err_msg=scheme.name)


def test_total():
    """The integral of a function: exact for what each method integrates exactly."""
    grid = npde.Grid(COMM, (5, 4), (0, 1), (2, 3))
    fd = npde.FD(npde.NPDE(components=2), grid)
    found = fd.total(fd.initial(lambda x: np.array([x[0] * x[1], 1 + 0 * x[0]])))
    np.testing.assert_allclose(found, [8, 4], rtol=1e-14)
    masked = npde.FD(npde.NPDE(), npde.Grid(COMM, (5, 4), (0, 1), (2, 3), mask=hole((5, 4))))
    cell = 0.5 * 2 / 3
    assert masked.total(masked.initial(1.0)) == pytest.approx([hole((5, 4)).sum() * cell])
    mesh = dolfinx.mesh.create_rectangle(COMM, [(0, 1), (2, 3)], (4, 3))
    fem = npde.FEM(npde.NPDE(components=2), dolfinx.fem.functionspace(mesh, ("Lagrange", 2, (2,))))
    found = fem.total(fem.initial(lambda x: np.array([x[0] * x[1], x[0] ** 2])))
    np.testing.assert_allclose(found, [8, 16 / 3], rtol=1e-13)


@pytest.mark.parametrize("method", ["fd", "mask", "fem"])
def test_mass_enters_through_the_boundary_as_prescribed(method):
    """One time unit of a flux q(t) through one side: the mass grows by the integral of q over side and time."""
    bcs = [npde.Flux(lambda x, t, n: 0.3 * n[0] * t, lambda x: x[0] > 0.999)]
    eq = npde.NPDE(flux=lambda u, x, t: (1 + u**2) * ufl.grad(u))
    if method == "fem":
        mesh = dolfinx.mesh.create_unit_square(COMM, 4, 4)
        problem = npde.FEM(eq, dolfinx.fem.functionspace(mesh, ("Lagrange", 1)), bcs)
    elif method == "fd":
        problem = npde.FD(eq, npde.Grid(COMM, (5, 5), (0, 0), (1, 1)), bcs)
    else:
        grid = npde.Grid(COMM, (4, 4), (1 / 8,) * 2, (7 / 8,) * 2, mask=np.ones((4, 4), dtype=bool))
        problem = npde.FD(eq, grid, bcs)
    solution = npde.solve(problem, 1.0, t=(0, 1), dt=0.1, rescue=None)
    assert problem.total(solution.values) == pytest.approx([1 + 0.3 / 2], rel=1e-8)
