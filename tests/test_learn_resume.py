"""A killed training goes on, to the bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from npde_fem import learn

import numpy as np
import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).parent / "mpi" / "resumed.py"


def weights_of(path, ranks):
    return [list(np.load(f"{path}.{rank}.npz").values()) for rank in range(ranks)]


def same_bits(one, other):
    return all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("learner", ["adam", "lbfgs"])
def test_kill_9_and_resume(learner, tmp_path):
    def arguments(name, *more):
        return [sys.executable, str(SCRIPT), learner, "14", str(tmp_path / f"{name}.ckpt"), str(tmp_path / name), *more]

    subprocess.run(arguments("whole"), check=True, capture_output=True, timeout=120)
    process = subprocess.Popen(arguments("killed", "slow"), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == "epoch 7":
            break
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert not (tmp_path / "killed.0.npz").exists() and (tmp_path / "killed.ckpt").exists()
    done = subprocess.run(arguments("killed", "slow"), check=True, capture_output=True, text=True, timeout=120)
    first = int(done.stdout.split()[1])
    assert 5 < first < 9  # it did go on
    assert same_bits(weights_of(tmp_path / "whole", 1), weights_of(tmp_path / "killed", 1))


@pytest.mark.parametrize("learner", ["adam", "lbfgs"])
def test_resume_on_two_ranks(learner, mpirun, tmp_path):
    mpirun(2, "resumed.py", learner, "12", tmp_path / "whole.ckpt", tmp_path / "whole")
    mpirun(2, "resumed.py", learner, "5", tmp_path / "part.ckpt", tmp_path / "early")
    assert not same_bits(weights_of(tmp_path / "whole", 2), weights_of(tmp_path / "early", 2))
    mpirun(2, "resumed.py", learner, "12", tmp_path / "part.ckpt", tmp_path / "part")
    assert same_bits(weights_of(tmp_path / "whole", 2), weights_of(tmp_path / "part", 2))
    with pytest.raises(pytest.fail.Exception, match="fields on 2 ranks; as many allowed, here are 3"):
        mpirun(3, "resumed.py", learner, "12", tmp_path / "part.ckpt", tmp_path / "three")


def model(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1)).double()


X = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(10, 2)
Y = X[:, :1] * X[:, 1:]


def train(network, path, epochs, learner=None, **arguments):
    return learn.fit(network, (X, Y), "mse", learner or learn.Adam(0.01), epochs=epochs, checkpoint=path, **arguments)


def test_history_callbacks_and_seconds_go_on(tmp_path):
    path = tmp_path / "a.ckpt"
    whole = train(model(), tmp_path / "b.ckpt", 9, log=tmp_path / "b.csv")
    train(model(), path, 4, log=tmp_path / "a.csv")
    time.sleep(0.05)
    found = train(model(), path, 9, resume=True, log=tmp_path / "a.csv")
    assert [row.loss for row in found.history] == [row.loss for row in whole.history]
    assert found.evaluations == whole.evaluations
    assert all(a.seconds < b.seconds for a, b in zip(found.history, found.history[1:], strict=False))
    columns = [[line.rsplit(",", 1)[0] for line in (tmp_path / f"{n}.csv").read_text().splitlines()] for n in "ab"]
    assert columns[0] == columns[1] and len(columns[0]) == 10
    again = train(model(), path, 9, resume=True)
    assert again.reason == "9 epochs were done before" and again.loss == whole.loss


def test_another_model_or_learner_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    train(model(), path, 2)
    with pytest.raises(ValueError, match=r"weight '0.weight' is of shape \[4, 2\] .* there, of shape \[5, 2\]"):
        train(model(5), path, 4, resume=True)
    with pytest.raises(ValueError, match="another learner: lr = 0.01 there, 0.02 here"):
        train(model(), path, 4, learn.Adam(0.02), resume=True)
    with pytest.raises(ValueError, match="another learner"):
        train(model(), path, 4, learn.LBFGS(), resume=True)
    with pytest.raises(ValueError, match="float64 there, of shape .* float32 here"):
        learn.fit(model().float(), (X.float(), Y.float()), "mse", learn.Adam(0.01), checkpoint=path, resume=True)
    (tmp_path / "text").write_text("no checkpoint\n")
    with pytest.raises(ValueError, match="no checkpoint of a training"):
        train(model(), path, 4, resume=tmp_path / "text")


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    train(model(), path, 2)
    before = path.read_bytes()

    def broken(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="no space left"):
        train(model(), path, 3, resume=True)
    assert path.read_bytes() == before


def test_weights_that_are_no_fields_go_on_on_other_numbers_of_ranks(mpirun, tmp_path):
    path = tmp_path / "a.ckpt"
    train(model(), path, 3)
    whole = train(model(), tmp_path / "b.ckpt", 6)
    printed = mpirun(2, "resumed_elsewhere.py", path).stdout
    assert [float(number) for number in printed.split()] == pytest.approx([whole.loss] * 2, rel=1e-12)
