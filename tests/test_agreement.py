"""Finite elements and finite differences against each other."""

import npde_fem as npde

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD


def by_coordinates(problem, values):
    """Values in the lexical order of the coordinates of their nodes, shape (n, m)."""
    x = problem.coordinates().round(9)
    return values.reshape(-1, problem.components)[np.lexsort(x.T)]


def pair_of(eq, n, dim=2, bcs=(), **options):
    fd = npde.FD(eq, npde.Grid(COMM, (n + 1,) * dim, (0,) * dim, (1,) * dim), bcs)
    if dim == 1:
        mesh = dolfinx.mesh.create_unit_interval(COMM, n)
    else:
        mesh = dolfinx.mesh.create_unit_square(COMM, n, n, diagonal=dolfinx.mesh.DiagonalType.right)
    return fd, npde.FEM(eq, dolfinx.fem.functionspace(mesh, ("Lagrange", 1)), bcs, **options)


def test_agree_to_second_order_without_a_known_solution():
    """Fisher-KPP on three grids: the difference at shared vertices falls by four where the spacing halves."""
    rate = npde.Parameter("r", lambda x: 2 + np.sin(3 * x[0]), field=True)
    eq = npde.NPDE(flux=lambda u, x, t: 0.05 * (1 + x[1]) * ufl.grad(u), source=lambda u, x, t: rate * u * (1 - u))
    bcs = [npde.Dirichlet(0.1, lambda x: np.isclose(x[0], 0)), npde.Robin(0.5, 0.2, lambda x: np.isclose(x[0], 1))]

    def u0(x):
        return 0.1 + 0.5 * np.sin(0.5 * np.pi * x[0]) ** 2 * np.cos(0.5 * np.pi * x[1]) ** 2

    differences = []
    for n in (8, 16, 32):
        fd, fem = pair_of(eq, n, bcs=bcs)
        ends = [
            by_coordinates(p, npde.solve(p, u0, t=(0, 1), dt=0.25 / n, scheme=npde.SDIRK2(), rescue=None).values)
            for p in (fd, fem)
        ]
        difference = ends[0] - ends[1]
        differences.append([np.sqrt(np.mean(difference**2)), np.abs(difference).max()])
        assert np.ptp(ends[0]) > 0.3
    orders = np.log2(np.array(differences[:-1]) / differences[1:])
    assert np.all(orders[:, 0] > 1.95), orders
    # The largest difference is at the corners that one triangle covers, where elements converge as h^2 log h.
    assert np.all(orders[:, 1] > 1.5), orders
    assert differences[-1][1] < 1e-3


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("closed", [True, False])
def test_laplacian_equals_lumped_elements(dim, closed):
    """On a uniform grid, right-diagonal triangles: integrated rates agree to round-off, at the boundary too.

    So do rates over masses, but at the corners of the square: there the lumped mass is that of one or two thirds of
    triangles, h^2 / 6 or h^2 / 3, the control volume h^2 / 4.
    """
    bcs = [] if closed else [npde.Dirichlet(0.5, lambda x: np.isclose(x[0], 0)), npde.Flux(0.7)]
    fd, fem = pair_of(npde.physics.heat(diffusion=0.7), 6, dim, bcs, mass="lumped")
    found = []
    for problem in (fd, fem):
        # A rough function of the coordinates alone.
        values = problem.initial(lambda x: np.sin(40 * x[0] + 17 * x[1] ** 2) + x[0])
        state, out = problem.new_state(), problem.new_state()
        problem.load(values, state)
        problem.constrain(0.0, state)
        rates, masses = np.zeros(problem.n_owned), np.zeros(problem.n_owned)
        problem.rate(0.0, state, rates)
        problem.mass_times(np.ones(problem.n_owned), masses)
        assert problem.advance(0.0, state, problem.new_state(), 1.0, 0.0, out)
        moved = np.zeros(problem.n_owned)
        problem.store(out, moved)
        found.append([by_coordinates(problem, v) for v in (rates, rates / masses, moved)])
    x = np.sort(fd.coordinates().round(9).view("f8,f8,f8").ravel()).view(float).reshape(-1, 3)[:, :dim]
    edges = np.isclose(x, 0) | np.isclose(x, 1)
    same = np.full(len(x), True) if dim == 1 else ~edges.all(axis=1)
    assert np.sum(~same) == (0 if dim == 1 else 4)
    for k, where in ((0, slice(None)), (1, same), (2, same)):
        expected = found[1][k][where]
        np.testing.assert_allclose(found[0][k][where], expected, atol=1e-13 * np.abs(expected).max())


def test_lumped_steps_are_the_same():
    """So explicit steps of the heat equation are the same numbers."""
    ends = []
    for problem in pair_of(npde.physics.heat(), 16, 1, mass="lumped"):
        solution = npde.solve(problem, lambda x: x[0] ** 2, t=(0, 0.1), dt=1e-3, scheme=npde.RK4(), rescue=None)
        ends.append(by_coordinates(problem, solution.values))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)
