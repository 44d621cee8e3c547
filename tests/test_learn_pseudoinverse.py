"""Pseudoinverse learning: read-outs in closed form, against numpy; features that are not trained."""

import json
import subprocess
import sys

from npde_fem import datasets, learn, networks
from npde_fem.learn.pseudoinverse import Stream, solve_readout

import numpy as np
import pytest
import torch
from torch import nn

RNG = np.random.default_rng(3)
H, Y = RNG.standard_normal((80, 7)), RNG.standard_normal((80, 3))


def by_hand(h, y, ridge):
    """Weights and bias by numpy: ridge on centred data, the bias not penalised."""
    centred, shifted = h - h.mean(0), y - y.mean(0)
    rows = np.vstack([centred, np.sqrt(ridge) * np.eye(h.shape[1])])
    weights = np.linalg.lstsq(rows, np.vstack([shifted, np.zeros((h.shape[1], y.shape[1]))]), rcond=None)[0]
    return weights, y.mean(0) - h.mean(0) @ weights


@pytest.mark.parametrize("method", ["qr", "svd"])
@pytest.mark.parametrize("ridge", [0.0, 0.1, 30.0])
def test_readout_is_numpy_s_least_squares(method, ridge):
    found = solve_readout(H, Y, ridge, method)
    weights, bias = by_hand(H, Y, ridge)
    np.testing.assert_allclose(found.weights, weights, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.bias, bias, rtol=0, atol=1e-12)
    error = H @ weights + bias - Y
    assert found.mean_square == pytest.approx((error**2).mean(), rel=1e-10)


def test_generalised_cross_validation_by_hand():
    """The score of Golub, Heath and Wahba is least at the penalty that is found."""
    h = RNG.standard_normal((40, 25)) * np.logspace(0, -2, 25)
    y = h @ RNG.standard_normal((25, 1)) + 0.3 * RNG.standard_normal((40, 1))

    def score(ridge):
        centred = h - h.mean(0)
        hat = centred @ np.linalg.solve(centred.T @ centred + ridge * np.eye(25), centred.T) + 1 / 40
        return 40 * np.sum((y - hat @ y) ** 2) / np.trace(np.eye(40) - hat) ** 2 / 1

    found = solve_readout(h, y, "gcv")
    scores = [score(found.ridge * factor) for factor in (0.5, 0.9, 1.0, 1.1, 2.0)]
    assert min(scores) == scores[2]
    assert found.score == pytest.approx(scores[2], rel=1e-8)


@pytest.mark.parametrize("method", ["qr", "svd"])
def test_ill_conditioned_features(method):
    u, v = np.linalg.qr(RNG.standard_normal((100, 12)))[0], np.linalg.qr(RNG.standard_normal((12, 12)))[0]
    h = u * np.logspace(0, -12, 12) @ v.T
    wanted = RNG.standard_normal((12, 2))
    y = h @ wanted
    found = solve_readout(h, y, 0.0, method)
    assert found.condition > 1e10
    assert np.abs(found(h) - y).max() < 1e-11
    # normal equations, with the condition squared, do much worse
    normal = np.linalg.solve(h.T @ h + 1e-18 * np.eye(12), h.T @ y)
    assert np.abs(h @ normal - y).max() > 10 * np.abs(found(h) - y).max()


@pytest.mark.parametrize("what", ["readouts", "layers", "medium", "errors"])
def test_any_number_of_ranks(what, mpirun):
    def told(ranks):
        return json.loads(mpirun(ranks, "pseudoinverse.py", what).stdout.splitlines()[-1])

    def compare(one, other, off):
        if isinstance(one, list):
            assert len(one) == len(other)
            for a, b in zip(one, other, strict=True):
                compare(a, b, off)
        elif isinstance(one, str):
            assert one == other
        else:
            assert one == pytest.approx(other, rel=off, abs=0.01 * off)

    one = told(1) if what != "errors" else []
    for ranks in (2, 3):
        for k, (a, b) in enumerate(zip(one, told(ranks), strict=True)):
            # The last read-outs of one matrix follow features of condition 1e12: any rounding is seen 1e12 times.
            compare(a, b, 1e-3 if what == "readouts" and 18 <= k < 24 else 1e-8)


def test_features_larger_than_memory_stream_through():
    """400 MB of features in a process that may hold 40 MB of them."""
    code = """
import tracemalloc
import numpy as np
from npde_fem.learn.pseudoinverse import Stream

tracemalloc.start()
stream, rows = Stream(), 2500
rng = np.random.default_rng(0)
w = rng.standard_normal((200, 2))
for part in range(100):
    h = rng.standard_normal((rows, 200))
    stream.add(h, h @ w + 1)
found = stream.solve(0.0)
assert np.abs(found.weights - w).max() < 1e-10 and np.abs(found.bias - 1).max() < 1e-10
print(tracemalloc.get_traced_memory()[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert int(done.stdout) < 100 * 2500 * 200 * 8 / 10


def test_streamed_is_whole():
    stream = Stream()
    for part in range(0, 80, 13):
        stream.add(H[part : part + 13], Y[part : part + 13])
    np.testing.assert_allclose(stream.solve(0.2).weights, solve_readout(H, Y, 0.2).weights, rtol=0, atol=1e-13)


# -- layers ----------------------------------------------------------------------------------------------------------


def split(seed):
    pictures, labels = datasets.digits()
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = torch.tensor(pictures[order]), torch.tensor(labels[order])
    return (x[450:], y[450:]), (x[:450], y[:450])


@pytest.mark.parametrize("layers", ["random", "npde"])
def test_digits_without_iterations(layers):
    pytest.importorskip("sklearn")
    right = []
    for seed in range(3):
        seen, unseen = split(seed)
        learner = learn.Pseudoinverse(layers=layers, width=1200 if layers == "random" else None)
        found = learn.fit(None, seen, learner=learner, validation=unseen, seed=seed)
        right.append(found.history[-1].metrics["accuracy"])
    assert np.mean(right) >= 0.97, right


def test_layers_are_grown_until_the_targets_are_met():
    x = torch.tensor(RNG.uniform(-1, 1, (30, 4)))
    y = (x[:, :1] * x[:, 1:2]) ** 2
    found = learn.fit(
        None, (x, y), learner=learn.Pseudoinverse(layers="autoencoder", width=40, ridge=0.0, tolerance=1e-6)
    )
    with torch.no_grad():
        assert (found.model(x) - y).abs().max() < 1e-4
    assert "rank" in found.reason or "tolerance" in found.reason


def test_the_last_layer_of_a_network_is_solved_for():
    torch.manual_seed(0)
    x, y = torch.randn(50, 1, 6, 6, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    network = networks.cnn(grid=(6, 6), channels=(1, 2), readout=3, dtype=torch.float64)
    before = [p.detach().clone() for p in network.layers.parameters()]
    found = learn.fit(network, (x, y), learner=learn.Pseudoinverse(ridge=0.1))
    assert all(torch.equal(a, b) for a, b in zip(before, network.layers.parameters(), strict=True))
    with torch.no_grad():
        features = network.layers[0](x).flatten(1).numpy()
    weights, bias = by_hand(features, y.numpy(), 0.1)
    np.testing.assert_allclose(network.readout.weight.detach().T, weights, rtol=0, atol=1e-10)
    np.testing.assert_allclose(network.readout.bias.detach(), bias, rtol=0, atol=1e-10)
    with torch.no_grad():
        assert found.loss == pytest.approx(nn.functional.mse_loss(network(x), y).item(), rel=1e-9)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x, y: (x.clone().index_fill_(0, torch.tensor([7]), torch.nan), y), "in sample 7"),
        (lambda x, y: (x, y - 1), "-1"),
        (lambda x, y: (x, torch.where(y == 1, 2, y)), "1"),
        (lambda x, y: (x, y[:20]), "40 inputs, 20 targets"),
    ],
)
def test_bad_data_is_refused(change, match):
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    with pytest.raises(ValueError, match=match):
        learn.fit(None, change(x, y), learner=learn.Pseudoinverse(layers="random", width=10))


def test_bad_arguments_are_refused():
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    for arguments in ({"ridge": -1.0}, {"method": "lu"}, {"layers": "rnadom"}, {"width": 0}, {"targets": "onehot"}):
        with pytest.raises((TypeError, ValueError), match=str(next(iter(arguments.values())))):
            learn.Pseudoinverse(**arguments)
    learner = learn.Pseudoinverse(layers="random", width=10)
    with pytest.raises(ValueError, match="minimises squares"):
        learn.fit(None, (x, y), "cross_entropy", learner)
    with pytest.raises(ValueError, match="checkpoint: given, but pseudoinverse learning has no epochs"):
        learn.fit(None, (x, y), learner=learner, checkpoint="c")
    with pytest.raises(ValueError, match="layers and a model given"):
        learn.fit(nn.Linear(5, 3), (x, y), learner=learner)
