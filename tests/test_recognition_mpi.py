"""What recognises does on several ranks what it does on one."""

import json

import numpy as np
import pytest


def flat(found):
    if isinstance(found, dict):
        return np.concatenate([flat(found[name]) for name in sorted(found)])
    return np.concatenate([flat(one) for one in found]) if isinstance(found, list) else np.array([found], dtype=float)


def result(done):
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("what", "tolerance"),
    [("members", {"medium": 1e-8, "passive medium": 1e-5, "": 2e-3}), ("space", {"": 1e-6}), ("ways", {"": 1e-8})],
)
def test_any_number_of_ranks_gives_the_same(mpirun, what, tolerance):
    """Single precision where a network has it: sums in another order change its last digits."""
    one = result(mpirun(1, "recognition.py", what))
    for ranks in (2, 3):
        many = result(mpirun(ranks, "recognition.py", what))
        assert many.keys() == one.keys()
        for name in one:
            apart = np.abs(flat(many[name]) - flat(one[name])).max()
            assert apart <= tolerance.get(name, tolerance[""]), f"{name} on {ranks} ranks: {apart:.1e}"
