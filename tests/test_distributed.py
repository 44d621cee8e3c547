import pytest


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_losses_whole_arrays_and_ensembles_are_those_of_all_ranks_together(mpirun, ranks):
    assert mpirun(ranks, "distributed.py").stdout.count("ok") == ranks
