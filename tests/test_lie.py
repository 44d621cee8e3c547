"""Lie splitting: steps of the rate, then the flow; its order, its derivatives, batches, ranks, and bad input."""

import importlib
import json
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import npde_fem as npde
from npde_fem.options import inserted
from npde_fem.solve.batch import Batch
from npde_fem.solve.integrate import solve
from npde_fem.solve.trajectory import Cotangents, Trajectory

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("lie")
COMM = MPI.COMM_WORLD
LOOSE = {"npde_ksp_rtol": 1e-12, "npde_snes_rtol": 1e-12}


def grid(points, padding=None):
    return npde.Grid(COMM, (points,), (0,), (1,), padding=padding)


def logistic(u, x, t, dt):
    return u * ufl.exp(dt) / (1 + u * (ufl.exp(dt) - 1))


def laplacian(u, h, pad="edge"):
    padded = np.pad(u, 1, mode=pad)
    return (padded[2:] - 2 * u + padded[:-2]) / h**2


# -- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("substeps", [1, 3])
def test_explicit_steps_are_a_loop(substeps):
    """Of two components with a source besides the flow, a map of both."""
    equation = npde.NPDE(
        flux=lambda u, x, t: 0.02 * ufl.grad(u),
        source=lambda u, x, t: ufl.as_vector([u[1], -u[0]]),
        flow=lambda u, x, t, dt: ufl.as_vector([ufl.tanh(u[0] + dt * u[1]), ufl.max_value(u[1] + t, 0.0)]),
        components=2,
    )
    problem = npde.FD(equation, grid(9, "reflect"))
    start = np.random.default_rng(0).normal(size=(9, 2))
    dt, u = 0.1, start.copy()
    for step in range(5):
        for _ in range(substeps):
            bent = np.stack([laplacian(c, 1 / 8, "reflect") for c in u.T], axis=1)
            u = u + dt / substeps * (0.02 * bent + np.stack([u[:, 1], -u[:, 0]], axis=1))
        u = np.stack([np.tanh(u[:, 0] + dt * u[:, 1]), np.maximum(u[:, 1] + step * dt, 0.0)], axis=1)
    found = npde.solve(problem, start, (0, 0.5), dt, npde.Lie(substeps), progress=False)
    np.testing.assert_allclose(found.u.array, u, rtol=1e-12, atol=1e-13)


def test_implicit_steps_are_a_loop():
    equation = npde.NPDE(flux=lambda u, x, t: 0.3 * ufl.grad(u), flow=logistic)
    problem = npde.FD(equation, grid(9, "replicate"))
    start, dt = np.linspace(0.1, 0.9, 9) ** 2, 0.1
    half = 0.25 * dt * 0.3 * np.stack([laplacian(e, 1 / 8) for e in np.eye(9)], axis=1)
    step = np.linalg.solve(np.eye(9) - half, np.eye(9) + half)
    u = start
    for _ in range(3):
        u = step @ step @ u
        u = u * np.exp(dt) / (1 + u * (np.exp(dt) - 1))
    with inserted(LOOSE):
        found = npde.solve(problem, start, (0, 0.3), dt, npde.Lie(2, implicit=True), progress=False)
    np.testing.assert_allclose(found.values, u, rtol=1e-9)


def discretise(method, equation, bcs=()):
    if method == "fd":
        return npde.FD(equation, grid(13), bcs)
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_interval(COMM, 12), ("Lagrange", 1))
    return npde.FEM(equation, space, bcs, mass="consistent" if method == "fem" else "lumped")


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("method", ["fd", "fem-lumped"])
def test_order(method, implicit):
    """The error of the whole, growth and diffusion, falls with dt."""

    def flux(u, x, t):
        return 0.02 * ufl.grad(u)

    def start(x):
        return 0.3 + 0.2 * np.cos(np.pi * x[0])

    whole = discretise(method, npde.NPDE(flux=flux, source=lambda u, x, t: u * (1 - u)))
    split = discretise(method, npde.NPDE(flux=flux, flow=logistic))
    exact = npde.solve(whole, start, (0, 0.4), 0.005, npde.RK4(), progress=False).values
    errors = []
    for steps in (8, 16, 32):
        found = npde.solve(split, start, (0, 0.4), 0.4 / steps, npde.Lie(2, implicit), progress=False).values
        errors.append(np.abs(found - exact).max())
    assert all(0.85 < np.log2(a / b) < 1.15 for a, b in pairwise(errors)), errors


@pytest.mark.parametrize("method", ["fd", "fem"])
def test_prescribed_values_stay(method):
    equation = npde.NPDE(flux=lambda u, x, t: 0.02 * ufl.grad(u), flow=lambda u, x, t, dt: u + dt)
    problem = discretise(method, equation, [npde.Dirichlet(lambda x, t: 1 + t)])
    found = npde.solve(problem, 1.0, (0, 0.2), 0.05, npde.Lie(2), progress=False).values
    np.testing.assert_allclose(found[problem.constrained], 1.2, rtol=1e-14)
    assert found.max() > 1.19


def test_stability_and_diffusion_are_checked_unless_told_otherwise():
    """The limit of forward Euler is 2 / (4 d / h^2) a substep."""
    problem = npde.FD(npde.NPDE(flux=lambda u, x, t: ufl.grad(u), flow=logistic), grid(9))
    limit = 2 / (4 * 64)
    for substeps in (1, 4):
        dt = 0.98 * substeps * limit
        npde.solve(problem, 0.5, (0, dt), dt, npde.Lie(substeps), progress=False)
        with pytest.raises(ValueError, match="above the stability limit .* of lie"):
            npde.solve(problem, 0.5, (0, 1), 1.1 * substeps * limit, npde.Lie(substeps), progress=False)
    npde.solve(problem, 0.5, (0, 1), 0.1, npde.Lie(checked=False), progress=False)
    sharp = npde.FD(npde.NPDE(flux=lambda u, x, t: -0.01 * ufl.grad(u), flow=logistic), grid(9))
    npde.solve(sharp, 0.5, (0, 1), 0.1, npde.Lie(checked=False), progress=False)
    Batch(sharp, (0, 1), 0.1, npde.Lie(checked=False)).solve(np.full((2, 9), 0.5))
    with pytest.raises(ValueError, match="negative"):
        npde.solve(sharp, 0.5, (0, 1), 0.1, npde.Lie(), progress=False)


# -- derivatives -------------------------------------------------------------------------------------------------


@cache
def experiment(kind, scheme):
    return cases.experiment(kind, scheme)


@pytest.mark.parametrize("scheme", cases.SCHEMES)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_taylor(kind, scheme):
    """Gradient and Hessian by parameters in flux, source, flow, damping, initial and boundary data."""
    one = experiment(kind, scheme)
    assert {"d", "s", "r", "K", "b", "height"} <= set(one.controls)
    gradient = one.derivative()
    for (name, values), (first, second) in zip(
        gradient.items(), one.taylor([{n: one.direction(n)} for n in one.controls]), strict=True
    ):
        assert np.abs(values).max() > 1e-6, name
        assert first > 1.95 and second > 2.9, (name, first, second)


@pytest.mark.parametrize("method", ["fd", "fem-lumped"])
@pytest.mark.parametrize("implicit", [False, True])
def test_initial_state(method, implicit):
    problem = discretise(method, npde.NPDE(flux=lambda u, x, t: 0.02 * (1 + u) * ufl.grad(u), flow=logistic))
    start, along = np.random.default_rng(1).random((2, problem.n_owned))
    arguments = ((0, 0.2), 0.1, npde.Lie(2, implicit))
    with inserted(LOOSE):
        of = Trajectory(problem)
        final = solve(problem, start, *arguments, progress=False, recorder=of).values
        by = of.by(()).adjoint(Cotangents(final=final)).initial
        moved = of.tangent({}, along).final
        ends = [solve(problem, start + e * along, *arguments, progress=False).values for e in (1e-5, -1e-5)]
    np.testing.assert_allclose(moved, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-8)
    assert by @ along == pytest.approx(final @ moved, rel=1e-9)


@pytest.mark.parametrize("implicit", [False, True])
def test_batches_are_single_solves(implicit):
    d, r = npde.Parameter("d", 0.02), npde.Parameter("r", 0.7)
    equation = npde.NPDE(
        flux=lambda u, x, t: d * ufl.grad(u), flow=lambda u, x, t, dt: ufl.tanh(u + r * dt * u + t), components=1
    )
    problem = npde.FD(equation, grid(9, "zeros"))
    starts, by, along = np.random.default_rng(2).random((3, 4, 9))
    batch = Batch(problem, (0, 0.2), 0.1, npde.Lie(2, implicit))
    _, final = batch.solve(starts)
    _, moved = batch.tangent([d, r], {"d": 0.1, "r": 1.0}, along)
    gradient = batch.adjoint([d, r], final=by)
    sums = {"d": 0.0, "r": 0.0}
    for b in range(4):
        of = Trajectory(problem)
        with inserted(LOOSE):
            one = solve(problem, starts[b], (0, 0.2), 0.1, npde.Lie(2, implicit), progress=False, recorder=of)
            back = of.by([d, r]).adjoint(Cotangents(final=by[b]))
            tangent = of.tangent({"d": 0.1, "r": 1.0}, along[b]).final
        np.testing.assert_allclose(final[b], one.values, rtol=1e-9)
        np.testing.assert_allclose(moved[b], tangent, rtol=1e-7)
        np.testing.assert_allclose(gradient.initial[b], back.initial, rtol=1e-7)
        sums = {name: total + back.parameters[name] for name, total in sums.items()}
    for name, total in sums.items():
        assert gradient.parameters[name] == pytest.approx(total, rel=1e-7)


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks(ranks, mpirun):
    lines = [json.loads(line) for line in mpirun(ranks, "lie.py").stdout.splitlines()]
    assert len(lines) == len(cases.KINDS) * len(cases.SCHEMES)
    for line in lines:
        kind, scheme = line.pop("kind"), line.pop("scheme")
        expected = cases.adjoint.measure(experiment(kind, scheme))
        rates = line.pop("rates")
        assert rates[0] > 1.95 and rates[1] > 2.9
        for what, values in line.items():
            scale = np.abs(expected[what]).max()
            np.testing.assert_allclose(values, expected[what], rtol=1e-8, atol=1e-8 * scale, err_msg=f"{kind} {scheme}")


@pytest.mark.parametrize("padding", ["zeros", "replicate", "reflect"])
def test_steps_are_layers_of_torch(padding):
    """Values and gradients of a batch are those of convolutions, tanh after each, by torch's own differentiation."""
    torch = pytest.importorskip("torch")
    d, c, s = npde.Parameter("d", 0.4), npde.Parameter("c", 0.3), npde.Parameter("s", 0.2)
    equation = npde.NPDE(
        flux=lambda u, x, t: d * ufl.grad(u) - c * u * ufl.as_vector([1.0, 2.0]),
        source=lambda u, x, t: s,
        flow=lambda u, x, t, dt: ufl.tanh(u),
    )
    problem = npde.FD(equation, npde.Grid(COMM, (6, 5), (0, 0), (5, 4), padding=padding))
    layer = npde.learn.Layer(problem, (0, 0.3), 0.1, npde.Lie(checked=False))
    start = torch.from_numpy(np.random.default_rng(3).random((3, 30))).requires_grad_()
    found = torch.autograd.grad(layer(start).square().sum(), [start, layer.d, layer.c, layer.s])

    free = [torch.tensor(p.value.item(), dtype=torch.float64, requires_grad=True) for p in (d, c, s)]
    bend = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
    # The layer's values run over x fastest: a tensor's last axis is x here.
    slope = torch.tensor([[0, -1, 0], [-0.5, 0, 0.5], [0, 1, 0]], dtype=torch.float64)
    u = start.reshape(3, 1, 5, 6)
    for _ in range(3):
        padded = torch.nn.functional.pad(u, [1] * 4, mode="constant" if padding == "zeros" else padding)
        kernel = (free[0] * bend - free[1] * slope)[None, None]
        u = torch.tanh(u + 0.1 * (torch.nn.functional.conv2d(padded, kernel) + free[2]))
    torch.testing.assert_close(layer(start), u.reshape(3, 30), rtol=1e-12, atol=1e-13)
    for one, expected in zip(found, torch.autograd.grad(u.square().sum(), [start, *free]), strict=True):
        torch.testing.assert_close(one, expected.reshape(one.shape), rtol=1e-11, atol=1e-12)


# -- bad input ---------------------------------------------------------------------------------------------------


def test_bad_arguments():
    for substeps, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="Lie: substeps"):
            npde.Lie(substeps)
    assert npde.scheme_named("lie") == npde.Lie()


def test_an_equation_without_a_flow_is_refused():
    with pytest.raises(ValueError, match=r"scheme lie: .* has no flow; splitting schemes need NPDE\(flow=...\)"):
        npde.solve(npde.FD(npde.physics.heat(1.0), grid(5)), 0.5, (0, 1), 0.1, npde.Lie(), progress=False)
    with pytest.raises(ValueError, match="has no flow"):
        Batch(npde.FD(npde.physics.heat(1.0), grid(5)), (0, 1), 0.1, npde.Lie())


@pytest.mark.parametrize("method", ["fd", "fem-lumped"])
def test_a_flow_that_is_not_finite_is_caught(method):
    problem = discretise(method, npde.NPDE(flow=lambda u, x, t, dt: u / ufl.sqrt(1 - u**2 * dt)))
    with pytest.raises(npde.SolveError, match="NaN or infinite") as caught, np.errstate(all="ignore"):
        npde.solve(problem, 3.0, (0, 1), 0.05, npde.Lie(), rescue=None, progress=False)
    assert caught.value.time == pytest.approx(0.1)
