"""Gradients and Hessians of taped solves: Taylor tests of every scheme, method and kind of control; the tape's state."""

import importlib
import json
import sys
from functools import cache
from pathlib import Path

import npde_fem as npde
from npde_fem.optimize.minimize import minimize
from npde_fem.optimize.values import as_array
from npde_fem.solve.trajectory import Cotangents, Trajectory

import dolfinx_adjoint
import numpy as np
import pytest
import ufl
from pyadjoint import AdjFloat
from pyadjoint.tape import stop_annotating

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("adjoint")
END, KINDS, SCHEMES = cases.END, cases.KINDS, cases.SCHEMES


@cache
def experiment(kind, scheme):
    return cases.experiment(kind, scheme)


@cache
def plain(kind, stationary=False):
    """A problem whose controls stay as they are made."""
    return cases.make_problem(kind, stationary)


def rates_are_right(one, names=None):
    names = list(one.controls) if names is None else names
    for name, (first, second) in zip(names, one.taylor([{n: one.direction(n)} for n in names]), strict=True):
        assert first > 1.95, f"{name}: gradient, rate {first}"
        assert second > 2.9, f"{name}: Hessian, rate {second}"


def close(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for name, values in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=tolerance * scale, err_msg=name)
        assert scale > 0, name


# -- controls, schemes, methods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_taylor(kind, scheme):
    rates_are_right(experiment(kind, scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_hessian_is_symmetric(kind, scheme):
    one = experiment(kind, scheme)
    v, w = ({name: one.direction(name, k) for name in one.controls} for k in (3, 4))
    one.derivative()
    first, second = one.dot(one.hessian(v), w), one.dot(one.hessian(w), v)
    assert first == pytest.approx(second, rel=1e-9) and abs(first) > 1e-6


@pytest.mark.parametrize("n", [2, 3])
def test_any_number_of_ranks(mpirun, n):
    lines = [json.loads(line) for line in mpirun(n, "adjoint.py", timeout=300).stdout.splitlines()]
    assert [(line.pop("kind"), line.pop("scheme")) for line in lines] == [(k, s) for k in KINDS for s in SCHEMES]
    for (kind, scheme), line in zip(((k, s) for k in KINDS for s in SCHEMES), lines, strict=True):
        rates, expected = line.pop("rates"), here(kind, scheme)
        assert rates[0] > 1.95 and rates[1] > 2.9, (kind, scheme, rates)
        for what, values in line.items():
            scale = np.abs(expected[what]).max()
            np.testing.assert_allclose(values, expected[what], rtol=1e-9, atol=1e-9 * scale, err_msg=f"{kind} {scheme} {what}")


@cache
def here(kind, scheme):
    return cases.measure(experiment(kind, scheme))


def test_ranks():
    print(here("fd", "rk4"))
