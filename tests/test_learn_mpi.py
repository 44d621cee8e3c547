"""Learners on several ranks do what they do on one."""

import numpy as np


def test_iterates_do_not_depend_on_the_number_of_ranks(mpirun, tmp_path):
    mpirun(1, "learners.py", tmp_path / "1.npz")
    one = dict(np.load(tmp_path / "1.npz"))
    assert len(one) == 6
    for name, iterates in one.items():
        if "field" in name:
            assert np.abs(iterates[-1] - iterates[0]).max() > 0.05, name
    for ranks in (2, 4):
        mpirun(ranks, "learners.py", tmp_path / f"{ranks}.npz")
        many = np.load(tmp_path / f"{ranks}.npz")
        for name, iterates in one.items():
            apart = np.abs(many[name] - iterates).max()
            assert apart < (1e-10 if "dam" in name else 1e-8), f"{name} on {ranks} ranks: {apart:.1e}"
