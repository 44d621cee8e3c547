import json

import pytest

SHAPES = [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_losses_whole_arrays_and_ensembles_are_those_of_all_ranks_together(mpirun, ranks):
    assert mpirun(ranks, "distributed.py").stdout.count("ok") == ranks


@pytest.mark.parametrize("method", ["fem", "fd"])
def test_training_is_the_same_on_every_ensemble(mpirun, method):
    # members x ranks in space: 1 x 1, 2 x 1, 1 x 2, 2 x 2, 1 x 4
    runs = [json.loads(mpirun(n, "training.py", method, ranks).stdout) for n, ranks in SHAPES]
    assert runs[0]["losses"][-1] < 0.5 * runs[0]["losses"][0]
    for found in runs[1:]:
        for what in ("losses", "gradients"):
            assert found[what] == pytest.approx(runs[0][what], rel=1e-9, abs=1e-12)
        assert found["weights"] == pytest.approx(runs[0]["weights"], rel=1e-8, abs=1e-9)
