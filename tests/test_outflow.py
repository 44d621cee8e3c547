"""Outflow: convergence to solutions without normal slope there, Jacobian and gradients, ranks, and bad input."""

import importlib
import json
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import npde_fem as npde

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("outflow")
COMM = MPI.COMM_WORLD
DIFFUSION = ufl.as_matrix([[0.4, 0.3], [-0.1, 0.5]])


def at_end(x):
    return np.isclose(x[0], 1)


def elsewhere(x):
    return np.isclose(x[0], 0) | np.isclose(x[1], 0) | np.isclose(x[1], 1)


def scalar():
    """Drift and diffusion that leans, both nonlinear."""

    def flux(u, x, t):
        return (1 + u**2) * ufl.dot(DIFFUSION, ufl.grad(u)) - u**2 * ufl.as_vector([1.5, 0.4])

    return npde.NPDE(flux=flux, damping=0.0), lambda x, t: 1 + 0.5 * ufl.cos(np.pi * x[0]) * ufl.sin(2 * x[1])


def system():
    """Each of two components moves along the gradient of the other."""

    def flux(u, x, t):
        first = ufl.dot(DIFFUSION, ufl.grad(u[0])) + 0.3 * ufl.grad(u[1]) * u[0] - u[0] * ufl.as_vector([2.0, x[1]])
        second = 0.5 * ufl.grad(u[1]) + 0.1 * ufl.dot(DIFFUSION, ufl.grad(u[0])) - u[1] * ufl.as_vector([1.0, -0.5])
        return ufl.as_tensor([[first[0], first[1]], [second[0], second[1]]])

    def exact(x, t):
        wave = ufl.cos(np.pi * x[0])
        return ufl.as_vector([1 + 0.5 * wave * ufl.sin(2 * x[1]), 1.5 + 0.3 * wave * x[1] ** 2])

    return npde.NPDE(flux=flux, damping=0.0, components=2), exact


def wavelike():
    """A complex state."""

    def flux(u, x, t):
        return (1 + 0.5j) * ufl.dot(DIFFUSION, ufl.grad(u)) - (1 - 0.5j) * u * ufl.as_vector([1.5, 0.4])

    def exact(x, t):
        return ufl.cos(np.pi * x[0]) * (ufl.cos(x[1]) + 1j * ufl.sin(x[1])) + 2

    return npde.NPDE(flux=flux, damping=0.0, dtype=complex), exact


def error(equation, exact, n, conditions, degree=1):
    mesh = dolfinx.mesh.create_unit_square(COMM, n, n)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree, equation.shape))
    bcs = [npde.Dirichlet(exact, elsewhere), *conditions]
    problem = npde.FEM(npde.manufactured(equation, exact), space, bcs)
    return problem.error(npde.solve(problem, 1.0, progress=False).values, exact)[0]


@pytest.mark.parametrize("make", [scalar, system, wavelike])
def test_order(make):
    equation, exact = make()
    errors = [error(equation, exact, n, [npde.Outflow(at_end)]) for n in (6, 12, 24)]
    assert all(1.85 < np.log2(a / b) < 2.2 for a, b in pairwise(errors)), errors
    assert error(equation, exact, 12, []) > 20 * errors[1]


def test_order_of_degree_two():
    equation, exact = scalar()
    errors = [error(equation, exact, n, [npde.Outflow(at_end)], 2) for n in (4, 8)]
    assert np.log2(errors[0] / errors[1]) > 2.8


@pytest.mark.parametrize("mass", ["consistent", "lumped"])
def test_a_hill_leaves(mass):
    """In one dimension: what a drift carries to the end is gone, and little of it is thrown back."""
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_interval(COMM, 60), ("Lagrange", 1))
    equation = npde.NPDE(flux=lambda u, x, t: 0.01 * ufl.grad(u) - u * ufl.as_vector([1.0]))
    problem = npde.FEM(equation, space, [npde.Outflow(at_end)], mass=mass)
    start = problem.initial(lambda x: np.exp(-100 * (x[0] - 0.5) ** 2))
    left = npde.solve(problem, start, (0, 1.4), 0.01, progress=False).values
    assert np.abs(left).max() < 2e-4 * start.max()
    shut = npde.solve(npde.FEM(equation, space, mass=mass), start, (0, 1.4), 0.01, progress=False).values
    assert np.abs(shut).max() > start.max()


def test_jacobian():
    problem = cases.make_problem()
    u, v = np.random.default_rng(0).random((2, problem.n_owned))
    v[problem.constrained] = 0.0
    state, matrix, rates = problem.new_state(), problem.new_matrix(), np.zeros((2, problem.n_owned))
    for e, out in zip((1e-6, -1e-6), rates, strict=True):
        problem.load(u + e * v, state)
        problem.rate(0.0, state, out)
    problem.load(u, state)
    problem.jacobian(0.0, state, 0.0, -1.0, matrix)
    x, y = matrix.createVecs()
    x.array[:] = v
    matrix.mult(x, y)
    np.testing.assert_allclose(y.array.real, (rates[0] - rates[1]) / 2e-6, atol=1e-7)
    for thing in (x, y, matrix):
        thing.destroy()


@cache
def experiment():
    return cases.experiment()


def test_taylor():
    one = experiment()
    gradient = one.derivative()
    assert set(gradient) == {"D", "k", "w"}
    rates = one.taylor([{n: one.direction(n, 3)} for n in gradient])
    for name, (first, second) in zip(gradient, rates, strict=True):
        assert np.abs(gradient[name]).max() > 1e-6 and first > 1.95 and second > 2.9, (name, first, second)


def test_two_ranks(mpirun):
    found, expected = json.loads(mpirun(2, "outflow.py").stdout), cases.adjoint.measure(experiment())
    rates = found.pop("rates")
    assert rates[0] > 1.95 and rates[1] > 2.9
    for what, values in found.items():
        np.testing.assert_allclose(values, expected[what], rtol=1e-7, atol=1e-7 * np.abs(expected[what]).max())


def test_grids_refuse():
    grid = npde.Grid(COMM, (5,), (0,), (1,))
    with pytest.raises(ValueError, match='Outflow: for FEM only; on a grid .*padding="replicate"'):
        npde.FD(npde.physics.heat(1.0), grid, [npde.Outflow()])


def test_networks_in_the_flux_are_refused():
    torch = pytest.importorskip("torch")
    net = npde.neural(torch.nn.Linear(1, 1).double(), name="net")
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_interval(COMM, 4), ("Lagrange", 1))
    with pytest.raises(ValueError, match="Outflow: the flux contains a network"):
        npde.FEM(npde.NPDE(flux=lambda u, x, t: net(u) * ufl.grad(u)), space, [npde.Outflow()])
