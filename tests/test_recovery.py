"""Parameters found again from data that the equation made: exactly without noise, within their errors with it."""

import npde_fem as npde
from npde_fem.optimize.minimize import default_method

import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD
WHEN = {"t": (0.0, 0.6), "dt": 0.05, "observe": [0.3, 0.6]}
POINTS = np.stack(np.meshgrid(*[np.linspace(0.1, 0.9, 7)] * 2), axis=-1).reshape(-1, 2)


def start(x):
    return 0.2 + 0.6 * np.exp(-20 * ((x[0] - 0.4) ** 2 + (x[1] - 0.5) ** 2))


def discretise(method, equation, cells):
    if method == "fd":
        return npde.FD(equation, npde.Grid(COMM, (cells + 1, cells + 1), (0, 0), (1, 1)))
    mesh = dmesh.create_unit_square(COMM, cells, cells)
    return npde.FEM(equation, fem.functionspace(mesh, ("Lagrange", 1)))


def observed(problem):
    probe = npde.Probe(problem, POINTS)
    return np.array([probe.apply(state) for state in npde.solve(problem, start, **WHEN).states])


def fisher(diffusion, rate):
    return npde.physics.fisher_kpp(npde.Parameter("D", diffusion), npde.Parameter("r", rate))


@pytest.mark.parametrize("method", ["fem", "fd"])
def test_numbers_without_noise(method):
    diffusion, rate = npde.Parameter("D", 0.03, bounds=(1e-4, 1)), npde.Parameter("r", 4.0, bounds=(0, 20))
    problem = discretise(method, npde.physics.fisher_kpp(diffusion, rate), 12)
    data = observed(problem)
    diffusion.value, rate.value = 0.1, 1.5
    fit = npde.PDEConstrainedProblem(
        problem, lambda s: npde.misfit(s, data, at=POINTS), [diffusion, rate], u0=start, **WHEN
    )
    fit.minimize(default_method(hessian=True), gtol=1e-10)
    assert float(diffusion) == pytest.approx(0.03, rel=1e-6)
    assert float(rate) == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize("method", ["fem", "fd"])
def test_numbers_with_noise(method):
    sigma = 0.01
    noise = np.random.default_rng(2).normal(0, sigma, (2, len(POINTS), 1))
    data = observed(discretise("fem", fisher(0.03, 4.0), 48)) + noise
    diffusion, rate = npde.Parameter("D", 0.1, bounds=(1e-4, 1)), npde.Parameter("r", 1.5, bounds=(0, 20))
    problem = discretise(method, npde.physics.fisher_kpp(diffusion, rate), 24)
    fit = npde.PDEConstrainedProblem(
        problem, lambda s: npde.misfit(s, data, at=POINTS, sigma=sigma), [diffusion, rate], u0=start, **WHEN
    )
    best = fit.minimize(default_method(hessian=True))
    errors = fit.standard_errors()
    assert best.loss == pytest.approx(data.size / 2, rel=0.4)
    assert abs(float(diffusion) - 0.03) < 2 * errors["D"]
    assert abs(float(rate) - 4.0) < 2 * errors["r"]
    assert errors["D"] < 0.1 * 0.03 and errors["r"] < 0.1 * 4.0


@pytest.mark.parametrize("method", ["fem", "fd"])
def test_field(method):
    """The relative error of a diffusion field found from states with 1 % noise."""

    def truth(x):
        return 0.05 * (1 + 0.8 * np.sin(np.pi * x[0]) * np.sin(np.pi * x[1]))

    def equation(diffusion):
        return npde.NPDE(flux=lambda u, x, t: diffusion * ufl.grad(u), source=lambda u, x, t: 2 * u * (1 - u))

    def wavy(x):
        return 0.5 + 0.4 * np.sin(5 * x[0] + 2 * x[1]) * np.cos(4 * x[1] - x[0])

    made = discretise("fem", equation(npde.Parameter("D", truth, field=True)), 48)
    points = np.stack(np.meshgrid(*[np.linspace(0, 1, 17)] * 2), axis=-1).reshape(-1, 2)
    probe = npde.Probe(made, points)
    times = {"t": (0.0, 0.5), "dt": 0.05, "observe": [0.1, 0.2, 0.3, 0.4, 0.5]}
    clean = np.array([probe.apply(u) for u in npde.solve(made, wavy, **times).states])
    data = clean + np.random.default_rng(2).normal(0, 0.01, clean.shape)
    diffusion = npde.Parameter("D", 0.05, field=True, bounds=(1e-3, 1))
    problem = discretise(method, equation(diffusion), 16)
    fit = npde.PDEConstrainedProblem(
        problem,
        lambda s: npde.misfit(s, data, at=points, sigma=0.01),
        diffusion,
        npde.H1(diffusion, 3e4),
        u0=wavy,
        **times,
    )
    fit.minimize(max_iterations=60, gtol=1e-3)
    x = problem.coordinates().T
    exact, found = truth(x), problem.field_values(diffusion)
    before = np.linalg.norm(exact - 0.05) / np.linalg.norm(exact)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    print(f"{method}: relative error of D(x) {error:.3f}, of the first guess {before:.3f}")
    assert error < 0.15 < before
