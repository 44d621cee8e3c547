"""Batches of solves: all that single solves give, at once; what shares work, and what cannot."""

import importlib
import json
import sys
from pathlib import Path

import npde_fem as npde
from npde_fem.options import inserted
from npde_fem.solve.batch import Batch
from npde_fem.solve.integrate import SolveError

import numpy as np
import pytest
import ufl

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("batch")


def on_line(equation, bcs=()):
    return npde.FD(equation, npde.Grid(cases.COMM, (9,), (0,), (1,)), bcs)


def heat_on_line():
    d, f = npde.Parameter("d", 0.1), npde.Parameter("f", 0.5, field=True)
    return on_line(npde.physics.heat(d, f), [npde.Dirichlet(0.0)])


# -- equality with single solves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.parametrize("kind", ["fem", "fd"])
def test_equals_single_solves(kind, name):
    if kind == "fem" and name in cases.EXPLICIT:
        pytest.skip("explicit schemes share work on grids only")
    for what, difference in cases.Comparison(kind, name).differences().items():
        assert difference < 1e-11, what


@pytest.mark.parametrize(
    ("n", "names"), [(2, ["moving", "still-batched", "schrodinger", "stationary", "rk4"]), (3, ["stationary", "rk4"])]
)
def test_on_ranks(mpirun, n, names):
    lines = [json.loads(line) for line in mpirun(n, "batch.py", *names).stdout.splitlines()]
    assert len(lines) == 2 * len(names) - 1
    for line in lines:
        assert max(line["differences"].values()) < 1e-11, line


def test_explicit_states_are_bitwise_those_of_single_solves():
    comparison = cases.Comparison("fd", "rk4")
    assert np.array_equal(comparison.many()["final"], comparison.single()["final"])


def test_options_rule():
    """A Krylov method takes the place of LU if the user asks for it, and keeps its tolerance."""
    comparison = cases.Comparison("fem", "moving-batched")
    exact = comparison.many()
    with inserted({"npde_ksp_type": "gmres", "npde_pc_type": "jacobi", "npde_ksp_rtol": 1e-8}):
        loose = comparison.many()
    for name, expected in exact.items():
        difference = np.abs(loose[name] - expected).max(initial=0.0)
        assert difference <= 1e-6 * np.abs(expected).max(initial=0.0), name
    assert not np.array_equal(loose["final"], exact["final"])


def test_sweeps_can_be_repeated():
    problem = heat_on_line()
    batch, u0 = Batch(problem, (0, 0.1), 0.02), np.random.default_rng(0).random((4, 9))
    _, final = batch.solve(u0)
    controls = list(problem.parameters.values())
    first = batch.adjoint(controls, final=final)
    batch.tangent(controls, {"d": 1.0})
    again = batch.adjoint(controls, final=final)
    for name, values in first.parameters.items():
        assert np.array_equal(values, again.parameters[name])
    assert np.array_equal(first.initial, again.initial)


def test_changed_parameters_count():
    """Matrices are those of the parameters' values at each solve."""
    problem = heat_on_line()
    batch, u0 = Batch(problem, (0, 0.1), 0.02), np.random.default_rng(0).random((2, 9))
    batch.solve(u0)
    problem.parameters["d"].value = 0.3
    _, final = batch.solve(u0)
    assert np.array_equal(final, Batch(problem, (0, 0.1), 0.02).solve(u0)[1])


# -- what shares ---------------------------------------------------------------------------------------------------


def test_shares():
    heat, fisher = heat_on_line(), on_line(npde.physics.fisher_kpp(npde.Parameter("d", 0.1), 1.0))
    wave = on_line(npde.physics.wave(1.0))
    assert Batch.shares(heat, npde.CrankNicolson())
    assert Batch.shares(heat, npde.CrankNicolson(), ["f"])
    assert not Batch.shares(heat, npde.CrankNicolson(), ["d"])
    assert not Batch.shares(heat, npde.SDIRK2(), dt=npde.Adaptive())
    assert Batch.shares(heat, npde.RK4())
    assert not Batch.shares(heat, npde.RK4(), ["f"])
    assert not Batch.shares(fisher, npde.CrankNicolson())
    assert Batch.shares(fisher, npde.IMEX()) and Batch.shares(fisher, npde.RK4())
    assert not Batch.shares(wave, npde.Leapfrog())
    assert not Batch.shares(cases.heat("fem", False), npde.ForwardEuler())


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("u0", "parameters", "message"),
    [
        (np.zeros(9), {}, r"u0 of shape \(9,\) given; \(samples, 9\)"),
        (np.zeros((2, 8)), {}, r"u0 of shape \(2, 8\) given"),
        (np.zeros((0, 9)), {}, r"u0 of shape \(0, 9\) given"),
        (np.full((2, 9), np.nan), {}, "NaN"),
        (np.zeros((2, 9)), {"g": np.zeros((2, 1))}, "no parameter 'g'"),
        (np.zeros((2, 9)), {"f": np.zeros((3, 9))}, r"'f' of shape \(3, 9\) given; \(2, 9\) allowed"),
        (np.zeros((2, 9)), {"d": np.ones((2, 1))}, r"\['d'\] at least one enters dR/du"),
    ],
)
def test_bad_samples(u0, parameters, message):
    with pytest.raises(ValueError, match=message):
        Batch(heat_on_line(), (0, 0.1), 0.02).solve(u0, parameters)


def test_what_shares_nothing_is_refused():
    with pytest.raises(ValueError, match="share no work"):
        Batch(on_line(npde.physics.fisher_kpp(0.1, 1.0)), (0, 1), 0.1)
    with pytest.raises(ValueError, match="steps known beforehand"):
        Batch(heat_on_line(), (0, 1), npde.Adaptive(), npde.SDIRK2())


def test_without_a_record_there_is_no_gradient():
    batch = Batch(heat_on_line(), (0, 0.1), 0.02)
    _, final = batch.solve(np.ones((2, 9)), record=False)
    with pytest.raises(RuntimeError, match="no solve was recorded"):
        batch.adjoint([], final=final)


def test_a_sample_that_blows_up_is_reported():
    explosive = on_line(npde.NPDE(flux=lambda u, x, t: 0.001 * ufl.grad(u), source=lambda u, x, t: u**3))
    for scheme in (npde.IMEX(), npde.RK4()):
        with pytest.raises(SolveError, match="NaN or infinite"), np.errstate(all="ignore"):
            Batch(explosive, (0, 1), 0.05, scheme).solve(np.stack([np.full(9, 0.1), np.full(9, 5.0)]))
