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
    bcs = [npde.Dirichlet(0.1, lambda x: np.isclose(x[0], 0)), npde.Robin(0.5, 0.2, lambda x: np.isclose(x[1], 1))]

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
    assert np.all(orders[:, 0] > 1.9), orders
    assert np.all(orders[:, 1] > 1.7), orders
    assert differences[-1][1] < 1e-3


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("bcs", [[], [npde.Dirichlet(0.5, lambda x: np.isclose(x[0], 0)), npde.Flux(0.7)]], ids=["", "bcs"])
def test_laplacian_equals_lumped_elements(dim, bcs):
    """On a uniform grid, right-diagonal triangles: rates over masses agree to round-off, at the boundary too."""
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
    scale = np.abs(found[0][1]).max()
    if dim == 1 or not bcs:
        np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-13 * scale)
        np.testing.assert_allclose(found[0][2], found[1][2], atol=1e-13 * scale)


def test_lumped_steps_are_the_same():
    """So explicit steps of the heat equation are the same numbers."""
    fd, fem = pair_of(npde.physics.heat(), 8, 2, mass="lumped")
    ends = [
        by_coordinates(p, npde.solve(p, lambda x: x[0] ** 2 + x[1], t=(0, 0.1), dt=1e-3, scheme=npde.RK4(), rescue=None).values)
        for p in (fd, fem)
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)
