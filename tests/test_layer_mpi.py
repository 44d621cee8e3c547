"""The torch layer on several ranks: the same losses and derivatives, and memory that does not grow."""

import importlib
import json
import sys
from functools import cache
from pathlib import Path

import npde_fem  # noqa: F401

import pytest

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
runs = importlib.import_module("layer")
empty_rank = importlib.import_module("empty_rank")


@cache
def on_one_rank(kind, scheme):
    return runs.derivatives(kind, scheme)


@pytest.mark.parametrize("ranks", [2, 3])
def test_losses_and_derivatives_are_those_of_one_rank(mpirun, ranks):
    """Those by distributed and replicated inputs and weights; and ranks that do not agree are refused."""
    lines = [json.loads(line) for line in mpirun(ranks, "layer.py").stdout.splitlines()]
    assert len(lines) == 2 * len(runs.SCHEMES)
    for line in lines:
        expected = on_one_rank(line["kind"], line["scheme"])
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-9)
        for what in ("gradient", "curvature"):
            assert line[what].keys() == expected[what].keys() >= {"b", "r", "D", "K", "q", "a", "g", "f", "alpha"}
            assert all(expected[what].values())
            assert line[what] == pytest.approx(expected[what], rel=1e-9, abs=1e-12)


def test_ranks_that_own_nothing(mpirun):
    found = json.loads(mpirun(3, "empty_rank.py").stdout)
    assert found == pytest.approx(empty_rank.derivatives(), rel=1e-9, abs=1e-12)


def test_memory_stays_flat_in_a_long_training(mpirun):
    lines = [json.loads(line) for line in mpirun(2, "layer.py", "memory", timeout=600).stdout.splitlines()]
    for line in lines:
        assert line["loss"] < 1e-3 and line["records"] == 0
        assert line["MiB"] < 2, line
