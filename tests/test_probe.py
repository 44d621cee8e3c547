"""Pointwise observation; what it has to satisfy stands in ``mpi/probe.py``."""

import pytest


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_probes(ranks, mpirun):
    mpirun(ranks, "probe.py")
