"""Gradients with checkpoints: the same as without, at most as many states kept as allowed, and no file left."""

import importlib
import sys
from pathlib import Path

import npde_fem as npde
from npde_fem.solve import history
from npde_fem.solve.history import Checkpoints

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("adjoint")
STEPS = 9
SCHEMES = [npde.RK4(), npde.CrankNicolson()]


def experiment(kind, scheme, checkpoints, dt=0.3 / STEPS):
    problem = cases.make_problem(kind)

    def loss():
        solution = npde.solve(
            problem,
            cases.start(problem),
            t=(0.0, 0.3),
            dt=dt,
            observe=[0.1, 0.3],
            scheme=scheme,
            integrals=[cases.density(problem)],
            checkpoints=checkpoints,
        )
        return cases.loss_of(solution)

    return cases.Experiment(problem, loss)


@pytest.fixture
def kept(monkeypatch):
    """How many states lay in memory and in files after each that was stored."""
    counts = []
    put = history._Store.put

    def counting(store, storage, step, state):
        put(store, storage, step, state)
        files = [] if store._folder is None else list(Path(store._folder.name).iterdir())
        counts.append((len(store._memory), len(files)))

    monkeypatch.setattr(history._Store, "put", counting)
    return counts


def difference(one, found, expected):
    """The largest difference of two gradients, as compared with the largest entry; both times the controls' values."""
    scale = max(np.abs(e * one.at[n]).max() for n, e in expected.items())
    return max(np.abs((found[n] - e) * one.at[n]).max() for n, e in expected.items()) / scale


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_same_derivatives(kind, scheme, kept, tmp_path):
    """Explicit steps repeat to the last bit; implicit ones to what Newton's method leaves (1e-10 of the state)."""
    tolerance = 1e-14 if scheme.is_explicit else 1e-9
    whole = experiment(kind, scheme, None)
    along = {name: whole.direction(name) for name in whole.controls}
    gradient, product = whole.derivative(), whole.hessian(along)
    assert not kept
    for allowed in (1, 3, 10, Checkpoints(1, 2, tmp_path)):
        one = experiment(kind, scheme, allowed)
        for label in ("the sweep after the solve", "a second sweep"):
            assert difference(one, one.derivative(), gradient) <= tolerance, (allowed, label)
        assert difference(one, one.hessian(along), product) <= 10 * tolerance, allowed
        one.value(along, 0.1)
        one.value({}, 0.0)
        assert difference(one, one.derivative(), gradient) <= tolerance, allowed
        limit = allowed if isinstance(allowed, Checkpoints) else Checkpoints(allowed)
        memory, files = np.array(kept).max(axis=0)
        assert memory <= limit.memory and files <= limit.disk, allowed
        assert (memory, files) == (min(limit.memory, STEPS - 1), limit.disk), "fewer than allowed were used"
        assert not list(tmp_path.iterdir()), "files are left"
        kept.clear()


def test_steps_that_adapt(kept):
    """Their number is not known beforehand, so the sweep begins with a march from the start."""
    dt = npde.Adaptive(rtol=1e-2, first=0.02)
    whole, one = (experiment("fd", npde.SDIRK2(), checkpoints, dt) for checkpoints in (None, 2))
    assert difference(one, one.derivative(), whole.derivative()) <= 1e-9
    assert max(memory for memory, _ in kept) == 2


def test_without_a_tape(kept):
    """A solve that nobody differentiates keeps nothing but its integrals."""
    problem = cases.make_problem("fd")
    solution = npde.solve(
        problem, cases.start(problem), t=(0.0, 0.3), dt=0.05, integrals=[cases.density(problem)], checkpoints=3
    )
    assert solution.integrals[0] > 0
    assert max(kept, default=(0, 0)) <= (1, 0)


@pytest.mark.parametrize(
    ("count", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), ("3", TypeError)]
)
def test_counts_that_are_none(count, error):
    problem = cases.make_problem("fd")
    with pytest.raises(error, match="checkpoints"):
        npde.solve(problem, 0.1, t=(0.0, 0.1), dt=0.05, checkpoints=count)
    with pytest.raises(error, match="checkpoints"):
        Checkpoints(0, count)
