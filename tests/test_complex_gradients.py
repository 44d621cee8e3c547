"""Gradients and Hessians of Schroedinger and Helmholtz problems by complex and real controls, on 1 and 2 ranks."""

import importlib
import json
import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
runs = importlib.import_module("complex_gradients")


@cache
def slopes_and_rates(kind, scheme):
    one = runs.experiment(kind, scheme)
    gradient = one.derivative()
    slopes = {n: one.dot(gradient, {n: one.direction(n)}) for n in one.controls}
    return slopes, dict(zip(one.controls, one.taylor([{n: one.direction(n)} for n in one.controls]), strict=True))


@pytest.mark.parametrize("scheme", runs.SCHEMES)
@pytest.mark.parametrize("kind", ["fem", "fd"])
def test_taylor(kind, scheme):
    slopes, rates = slopes_and_rates(kind, scheme)
    assert {"V", "w.real", "w.imag", "amplitude.real", "amplitude.imag", "phase"} <= set(rates)
    for name, (first, second) in rates.items():
        assert slopes[name] != 0
        assert first > 1.95, f"{name}: gradient, rate {first}"
        assert second > 2.9, f"{name}: Hessian, rate {second}"


def test_gradients_are_the_same_on_two_ranks(mpirun):
    lines = [json.loads(line) for line in mpirun(2, "complex_gradients.py", "strang", "helmholtz").stdout.splitlines()]
    assert len(lines) == 4
    for line in lines:
        slopes, _ = slopes_and_rates(line["kind"], line["scheme"])
        assert line["slopes"] == pytest.approx(slopes, rel=1e-8)
        for name, (first, second) in line["rates"].items():
            assert first > 1.95 and second > 2.9, (line["kind"], line["scheme"], name)
