"""Bad input raises a clear error before any work, alike on all ranks (the cases: ``bad_input_cases.py``)."""

import importlib
import json
import sys
from pathlib import Path

import npde_fem  # noqa: F401

import pytest
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parent))
CASES = importlib.import_module("bad_input_cases").CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_on_one_rank(case):
    fault = case.fault(MPI.COMM_SELF)
    assert not fault, fault


def test_on_two_ranks(mpirun):
    lines = [json.loads(line) for line in mpirun(2, "bad_input.py").stdout.splitlines()]
    assert [line["case"] for line in lines] == [case.name for case in CASES]
    faults = [f"{line['case']}: {fault}" for line in lines for fault in line["faults"]]
    assert not faults, "\n".join(faults)


def test_callback_that_raises_on_one_rank_ends_the_job(mpirun):
    with pytest.raises(pytest.fail.Exception) as failed:
        mpirun(2, "bad_callback.py", timeout=60)
    message = str(failed.value)
    assert "returned 1" in message
    assert "[rank 1] Traceback" in message and "ArithmeticError: the callback tripped" in message
