"""Pseudoinverse learning: read-outs against NumPy, streaming, layers that are grown, media, digits, ranks."""

import copy
import json
import subprocess
import sys
import textwrap

import npde_fem as npde
from npde_fem import datasets, learn
from npde_fem.learn.pseudoinverse import Pseudoinverse, Reservoir, Stream, medium, one_hot, solve_readout
from npde_fem.learn.pseudoinverse.factorise import Triangle

import numpy as np
import pytest
import torch
from mpi4py import MPI

SELF = MPI.COMM_SELF
METHODS = ("qr", "svd")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def explicit(h, y, ridge, weights=None):
    """Weights and bias by least squares of the centred features with rows for the penalty below them."""
    w = np.ones(len(h)) if weights is None else weights
    mean_h, mean_y = w @ h / w.sum(), w @ y / w.sum()
    root = np.sqrt(w)[:, None]
    a = np.vstack([root * (h - mean_h), np.sqrt(ridge) * np.eye(h.shape[1])])
    found = np.linalg.lstsq(a, np.vstack([root * (y - mean_y), np.zeros((h.shape[1], y.shape[1]))]))[0]
    return found, mean_y - mean_h @ found


# -- read-outs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 5), (70, 64), (9, 20)])
def test_triangle_has_the_products_of_the_matrix(shape):
    a = numbers(*shape)
    triangle = Triangle(shape[1])
    for part in np.array_split(a, 4):
        triangle.add(part)
    r = triangle.reduced(SELF)
    assert r.shape == (min(shape), shape[1]) and (np.diagonal(r) >= 0).all() and not np.tril(r, -1).any()
    assert np.allclose(r.T @ r, a.T @ a, rtol=0, atol=1e-12 * np.linalg.norm(a) ** 2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(200, 20), (20, 50), (3, 1), (1, 3)])
def test_least_squares_is_numpys(shape, method):
    """Also of fewer samples than features: the shortest weights."""
    h, y = numbers(*shape), numbers(shape[0], 3, seed=1)
    found = solve_readout(h, y, 0.0, method, bias=False)
    assert np.allclose(found.weights, np.linalg.lstsq(h, y)[0], rtol=1e-10, atol=1e-12)
    assert found.rank == min(shape) and found.condition == pytest.approx(np.linalg.cond(h), rel=1e-10)
    if shape[0] > shape[1]:
        found = solve_readout(h, y, 0.0, method)
        whole = np.linalg.lstsq(np.hstack([h, np.ones((len(h), 1))]), y)[0]
        assert np.allclose(np.vstack([found.weights, found.bias]), whole, rtol=1e-10, atol=1e-12)
        rest = y - whole[-1] - h @ whole[:-1]
        assert found.mean_square == pytest.approx((rest**2).mean())
        assert found.residual == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(y - y.mean(axis=0)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(80, 12), (10, 30)])
def test_ridge_is_explicit_ridge(shape, weighted, method):
    """The bias is free: targets moved by a constant move nothing else."""
    h, y = 1e3 + numbers(*shape), numbers(shape[0], 2, seed=1)
    weights = np.random.default_rng(2).uniform(0, 2, shape[0]) if weighted else None
    found = solve_readout(h, y, 0.7, method, weights=weights)
    wanted, bias = explicit(h, y, 0.7, weights)
    assert np.allclose(found.weights, wanted, rtol=1e-10, atol=1e-10)
    assert np.allclose(found.bias, bias, rtol=1e-10)
    moved = solve_readout(h, y + 50, 0.7, method, weights=weights)
    assert np.allclose(moved.weights, found.weights, atol=1e-10) and np.allclose(moved(h), found(h) + 50)


def test_weights_of_samples_are_repetitions_and_0_leaves_out():
    h, y = numbers(30, 4), numbers(30, 2, seed=1)
    weights = np.arange(30) % 3
    found = solve_readout(h, y, 0.2, weights=weights)
    again = solve_readout(np.repeat(h, weights, axis=0), np.repeat(y, weights, axis=0), 0.2)
    assert np.allclose(found.weights, again.weights, atol=1e-12) and found.samples == 20
    h[0] = 1e6
    assert np.allclose(solve_readout(h, y, 0.2, weights=weights).weights, found.weights, atol=1e-12)


def test_standardise_is_ridge_of_standardised_features():
    h, y = numbers(50, 6) * np.logspace(-3, 3, 6), numbers(50, 2, seed=1)
    found = solve_readout(h, y, 0.3, standardise=True)
    wanted, _ = explicit(h / h.std(axis=0), y, 0.3)
    assert np.allclose(found.weights * h.std(axis=0)[:, None], wanted, atol=1e-11)


def test_targets_along_one_axis():
    h, y = numbers(40, 5), numbers(40, seed=1)
    found = solve_readout(torch.from_numpy(h), torch.from_numpy(y), 0.1)
    assert found.weights.shape == (5,) and found.bias.shape == () and found(h).shape == (40,)
    assert np.allclose(found.weights, explicit(h, y[:, None], 0.1)[0][:, 0], atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_condition_1e12(method):
    """Predictions meet targets of the features' range; normal equations lose them by five orders."""
    u, v = np.linalg.qr(numbers(500, 40))[0], np.linalg.qr(numbers(40, 40))[0]
    h = u * np.logspace(0, -12, 40) @ v.T
    y = h @ numbers(40, 2, seed=3)
    found = solve_readout(h, y, 0.0, method, bias=False)
    assert found.rank == 40 and found.condition == pytest.approx(1e12, rel=1e-2)
    assert np.abs(found(h) - y).max() < 1e-13
    assert np.abs(found.weights - v @ np.linalg.solve(np.eye(40), v.T @ numbers(40, 2, seed=3))).max() < 1e-3
    normal = np.linalg.pinv(h.T @ h) @ h.T @ y
    assert np.abs(h @ normal - y).max() > 1e-10
    # What is below the tolerance is left out: the weights become short.
    short = solve_readout(h, y + 1e-9 * numbers(500, 2, seed=4), 0.0, method, bias=False, tolerance=1e-8)
    assert short.rank == 27 and np.abs(short.weights).max() < 10 and np.abs(short(h) - y).max() < 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_features_that_repeat(method):
    h = numbers(30, 3)
    y = numbers(30, 2, seed=1)
    found = solve_readout(np.hstack([h, h, np.ones((30, 1))]), y, 0.0, method)
    once = solve_readout(h, y, 0.0, method)
    assert found.rank == 3 and np.allclose(found.weights[:3], once.weights / 2, atol=1e-12)
    assert np.allclose(found.weights[6], 0, atol=1e-12)


def gcv(h, y, ridge):
    """Score by its definition, with the influence matrix."""
    n = len(h)
    centred = h - h.mean(axis=0)
    influence = centred @ np.linalg.solve(centred.T @ centred + ridge * np.eye(h.shape[1]), centred.T) + 1 / n
    return n * ((y - influence @ y) ** 2).sum() / (n - np.trace(influence)) ** 2 / y.shape[1]


@pytest.mark.parametrize("shape", [(60, 12), (30, 45)])
def test_cross_validation(shape):
    h = numbers(*shape) * np.linspace(2, 0.1, shape[1])
    y = h[:, :2] @ numbers(2, 2, seed=1) + numbers(shape[0], 2, seed=2)
    found = solve_readout(h, y)
    assert found.score == pytest.approx(gcv(h, y, found.ridge), rel=1e-8)
    scores = [gcv(h, y, found.ridge * factor) for factor in (1e-3, 0.1, 0.9, 1.1, 10, 1e3)]
    assert min(scores) > found.score
    assert np.allclose(found.weights, explicit(h, y, found.ridge)[0], rtol=1e-9, atol=1e-11)
    assert np.allclose(solve_readout(h, y, method="qr").weights, found.weights, rtol=1e-9, atol=1e-11)


def test_cross_validation_foresees_new_samples():
    """Of noise the penalty is large, without it small; the score estimates the error of new samples."""
    h, truth = numbers(400, 150), numbers(150, 1, seed=1)
    train, new = slice(0, 200), slice(200, None)
    y = h @ truth + 5 * numbers(400, 1, seed=2)
    found, exact = solve_readout(h[train], y[train]), solve_readout(h[train], (h @ truth)[train])
    assert found.score == pytest.approx(((found(h[new]) - y[new]) ** 2).mean(), rel=0.2)
    assert exact.ridge < 1e-6 < 10 < found.ridge
    overfitted = solve_readout(h[train], y[train], 0.0)
    assert ((found(h[new]) - y[new]) ** 2).mean() < 0.8 * ((overfitted(h[new]) - y[new]) ** 2).mean()


# -- streaming ---------------------------------------------------------------------------------------------------


def test_stream_is_all_at_once():
    h, y = numbers(500, 30), numbers(500, 3, seed=1)
    stream = Stream()
    for part in np.array_split(np.arange(500), 13):
        stream.add(h[part], y[part])
    found, whole = stream.solve(0.1), solve_readout(h, y, 0.1)
    assert stream.samples == 500 and np.allclose(found.weights, whole.weights, rtol=1e-10, atol=1e-12)


def test_features_ten_times_larger_than_the_memory():
    """400 MB of features in 40 MB more than before; one that has them all takes more."""
    script = """
        import sys
        import numpy as np
        from npde_fem.learn.pseudoinverse import Stream, solve_readout

        def peak():  # of this program alone: what getrusage tells is inherited from the one that starts it
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

        columns, rows, parts = 100, 5000, 100
        def batch(k):
            h = np.random.default_rng(k).standard_normal((rows, columns))
            return h, h[:, :2] + 1

        warm = Stream()
        warm.add(*batch(0))
        warm.solve()
        before = peak()
        held = [batch(k) for k in range(parts)] if sys.argv[1] == "held" else None
        stream = Stream()
        for k in range(parts):
            stream.add(*batch(k))
        found = stream.solve(1.0)
        print(peak() - before, found.residual)
        """
    grown = {}
    for kind in ("streamed", "held"):
        made = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), kind], capture_output=True, text=True, timeout=120
        )
        assert not made.returncode, made.stderr
        grown[kind], residual = map(float, made.stdout.split())
        assert residual < 1e-5
    assert grown["streamed"] < 40 and grown["held"] > 380


def test_a_feature_of_which_only_round_off_varies_is_not_blown_up():
    """Standardised, it would be noise as large as the others."""
    rng = np.random.default_rng(0)
    h, y = rng.standard_normal((400, 5)), rng.standard_normal((400, 2))
    constant = np.float32(3.7) * (1 + np.float32(1.2e-7) * rng.integers(0, 2, 400).astype(np.float32))
    plain = solve_readout(h, y, 0.1, standardise=True)
    found = solve_readout(np.column_stack([h, constant]), y, 0.1, standardise=True)
    assert 0 < np.ptp(constant) < 1e-6
    assert np.allclose(found.weights[:5], plain.weights, rtol=1e-5, atol=1e-6)
    assert np.abs(found.weights[5]).max() < 1e-3


def test_data_that_comes_in_batches():
    """Through every kind of layer, as the same data at once."""
    x, labels = numbers(50, 6), np.arange(50) % 3
    x[np.arange(50), labels] += 2
    batches = [(x[part], labels[part]) for part in np.array_split(np.arange(50), 4)]
    for settings in ({"layers": "random"}, {"layers": "autoencoder", "depth": 2}, {"layers": torch.sin}):
        learner = Pseudoinverse(width=10, ridge=0.1, **settings)
        once, parts = (learner.solve(None, data).readout for data in ((x, labels), batches))
        assert np.allclose(once.weights, parts.weights, rtol=1e-9, atol=1e-11)


# -- models and layers -------------------------------------------------------------------------------------------


def labelled(count=90, classes=3, shape=(6, 6), seed=0):
    """Pictures with a bright place for each class, and noise."""
    rng = np.random.default_rng(seed)
    x, labels = 0.2 * rng.uniform(size=(count, *shape)), np.arange(count) % classes
    for k in range(classes):
        x[labels == k, 2 * k, 1:4] += rng.uniform(0.4, 0.8, ((labels == k).sum(), 3))
    return torch.from_numpy(x), torch.from_numpy(labels)


def accuracy(model, x, labels):
    with torch.no_grad():
        return (model(x).argmax(1) == labels).double().mean().item()


def test_last_layer_of_a_model():
    """The features of the rest, in evaluation mode; other weights and modes stay."""
    torch.manual_seed(0)
    x, labels = labelled()
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(36, 20), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(20, 3)
    ).double()
    before = copy.deepcopy(model.state_dict())
    solved = Pseudoinverse(ridge=0.1).solve(model, (x, labels))
    assert solved.model is model and model.training and model[3].training and model[4].weight.requires_grad
    assert torch.equal(model[1].weight, before["1.weight"])
    hidden = torch.tanh(model[1](x.flatten(1))).detach().numpy()
    wanted, bias = explicit(hidden, one_hot(labels, 3), 0.1)
    assert np.allclose(model[4].weight.detach().numpy().T, wanted, atol=1e-11)
    assert np.allclose(model[4].bias.detach().numpy(), bias, atol=1e-11)
    assert accuracy(model.eval(), x, labels) == 1


def test_regression_without_bias_and_in_single_precision():
    torch.manual_seed(0)
    x = torch.randn(50, 4)
    y = torch.randn(50, 7, 2)
    model = torch.nn.Sequential(torch.nn.Unflatten(1, (1, 4)), torch.nn.Upsample(7 * 4), torch.nn.Flatten())
    model.append(torch.nn.Unflatten(1, (7, 4))).append(torch.nn.Linear(4, 2, bias=False))
    solved = Pseudoinverse(ridge=0.0).solve(model, (x, y))
    h = model[:-1](x).reshape(-1, 4).double().numpy()
    assert np.allclose(solved.readout.weights, np.linalg.lstsq(h, y.reshape(-1, 2).double().numpy())[0], atol=1e-10)
    assert model[-1].weight.dtype == torch.float32 and solved.classes is None


def test_generated_networks():
    from npde_fem import networks

    torch.manual_seed(0)
    x, labels = labelled()
    cnn = networks.cnn(grid=(6, 6), channels=(1, 4, 4), readout=3, dtype=torch.float64)
    Pseudoinverse().solve(cnn, (x[:, None], labels))
    assert accuracy(cnn, x[:, None], labels) == 1
    rnn = networks.wave_rnn((6, 6), 1, 3, intensity=True, probes=[[1, 1], [4, 4], [2, 5], [5, 0]], dtype=torch.float64)
    signals = torch.sin(torch.arange(40) * (0.2 + 0.2 * labels[:, None]))[:, :, None].double()
    Pseudoinverse().solve(rnn, (signals, labels))
    assert accuracy(rnn, signals, labels) == 1


def test_models_that_are_refused():
    x, labels = labelled(9)
    flat = torch.nn.Flatten()
    with pytest.raises(ValueError, match="no nn.Linear"):
        Pseudoinverse().solve(flat, (x, labels))
    with pytest.raises(ValueError, match="without softmax"):
        behind = torch.nn.Sequential(flat, torch.nn.Linear(36, 3, dtype=torch.float64), torch.nn.Softmax(1))
        Pseudoinverse().solve(behind, (x, labels))
    with pytest.raises(TypeError, match="layers to make one of"):
        Pseudoinverse().solve(None, (x, labels))
    with pytest.raises(ValueError, match="layers and a model"):
        Pseudoinverse(layers="random").solve(flat, (x, labels))
    with pytest.raises(TypeError, match="several times"):
        Pseudoinverse(layers="random").solve(None, iter([(x, labels)]))
    with pytest.raises(ValueError, match="2 inputs"):
        Pseudoinverse(layers="random").solve(None, ((x, x), labels))


def test_random_features_depend_on_the_seed_only():
    x, labels = labelled()
    learner = Pseudoinverse(layers="random", width=30, depth=2)
    first, again, other = (learner.solve(None, (x, labels), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.model(x), again.model(x)) and not torch.equal(first.model(x), other.model(x))
    assert first.depth == 2 and accuracy(first.model, x, labels) == 1
    hidden = first.model[:3](x)  # tanh of about unit spread
    assert 0.3 < hidden.std() < 0.9 and hidden.shape == (90, 30)
    moved = learner.solve(None, (1e3 + 5 * x, labels), seed=1)
    assert torch.allclose(moved.model[:3](1e3 + 5 * x), hidden, atol=1e-9)


def test_the_model_made_is_an_ordinary_module(tmp_path):
    x, labels = labelled()
    solved = Pseudoinverse(layers=["random", torch.sin], kernel=3, width=40).solve(None, (x.float(), labels))
    assert solved.model(x.float()).dtype == torch.float32
    trained = [p for p in solved.model.parameters() if p.requires_grad]
    assert len(trained) == 2 and trained[0].shape == (3, solved.readout.weights.shape[0])
    other = copy.deepcopy(solved.model)
    torch.nn.init.zeros_(other[-1].weight)
    other.load_state_dict(solved.model.state_dict())
    assert torch.equal(other(x.float()), solved.model(x.float()))


def test_growing_ends_as_soon_as_the_rank_is_that_of_the_samples():
    """Guo and Lyu's criterion: then any targets are met."""
    x, y = numbers(25, 8), numbers(25, 2, seed=1)
    solved = Pseudoinverse(0.0, layers="autoencoder", width=40).solve(None, (x, y))
    assert solved.depth == 1 and "rank 24" in solved.reason and solved.readout.residual < 1e-10
    assert np.allclose(solved.model(torch.from_numpy(x)).detach().numpy(), y, atol=1e-8)


def test_growing_ends_with_the_tolerance_the_score_or_the_depth():
    x = numbers(60, 5)
    linear = Pseudoinverse(0.0, layers="autoencoder").solve(None, (x, x @ numbers(5, 2, seed=1)))
    assert linear.depth == 0 and "tolerance" in linear.reason
    noise = Pseudoinverse(layers="autoencoder").solve(None, (x, numbers(60, 2, seed=2)))
    assert noise.depth < 10 and "raised the score" in noise.reason
    # What was left out is not in the model.
    assert noise.model[-1].in_features == noise.readout.weights.shape[0]
    with torch.no_grad():
        outputs = noise.model(torch.from_numpy(x)).numpy()
    assert np.mean((outputs - numbers(60, 2, seed=2)) ** 2) == pytest.approx(noise.readout.mean_square)
    curved = np.tanh(x @ numbers(5, 2, seed=1))
    deep = Pseudoinverse(layers="autoencoder", depth=1, width=25, gain=0.5).solve(None, (x, curved))
    assert deep.depth == 1 and deep.reason == "depth 1 reached"
    assert deep.readout.score < solve_readout(x, curved).score


def test_autoencoder_of_a_layer_of_full_rank_keeps_the_input():
    """The layer's neurons have unit spread, and from them the input can be had back."""
    x = numbers(200, 6) @ numbers(6, 9, seed=1)  # rank 6 of 9
    solved = Pseudoinverse(layers="autoencoder", depth=1, gain=0.3).solve(None, (x, np.tanh(x[:, :2])))
    layers = solved.model[: 1 + 2 * solved.depth]
    with torch.no_grad():
        before, hidden = layers[:2](torch.from_numpy(x)).numpy(), layers(torch.from_numpy(x)).numpy()
    assert hidden.shape == (200, 6) and np.allclose(before.std(axis=0), 0.3) and np.allclose(before.mean(axis=0), 0)
    assert solve_readout(hidden, x, 0.0).residual < 0.1


# -- media -------------------------------------------------------------------------------------------------------


def heat_exact(x, t):
    return np.exp(-(np.pi**2) * t) * np.cos(np.pi * x)


@pytest.mark.parametrize("method", ["fem", "fd"])
def test_pictures_are_initial_states(method):
    """Pixels between the ends of the box; what is seen is the equation's solution there."""
    if method == "fem":
        from dolfinx import fem
        from dolfinx import mesh as dmesh

        mesh = dmesh.create_unit_interval(SELF, 64)
        problem = npde.FEM(npde.physics.heat(1.0), fem.functionspace(mesh, ("Lagrange", 1)))
    else:
        problem = npde.FD(npde.physics.heat(1.0), npde.Grid(SELF, (65,), (0,), (1,)))
    probe = npde.Probe(problem, [0.2, 0.6])
    reservoir = Reservoir(
        problem, (0, 0.1), 0.002, observe=([0.05, 0.1], probe), scheme=npde.CrankNicolson(), measure="state", gain=2.0
    )
    picture = torch.from_numpy(np.cos(np.pi * np.linspace(0, 1, 33)))
    seen = reservoir(torch.stack([picture, 3 * picture]))
    wanted = 2 * np.concatenate([heat_exact(np.array([0.2, 0.6]), t) for t in (0.05, 0.1)])
    assert seen.shape == (2, 4) and np.allclose(seen[0], wanted, atol=3e-3) and np.allclose(seen[1], 3 * seen[0])
    assert reservoir(picture[None].float()).dtype == torch.float32
    squared = Reservoir(problem, (0, 0.1), 0.002, observe=([0.05, 0.1], probe), scheme=npde.CrankNicolson(), gain=2.0)
    assert np.allclose(squared(picture[None])[0], seen[0] ** 2)


def test_signals_are_sources():
    """A kick a row, and free motion between: the same as solving so."""
    equation = npde.physics.wave(1.0, damping=0.2)
    problem = npde.FD(equation, npde.Grid(SELF, (11, 9), (0, 0), (1, 0.8)))
    source, points = [[0.5, 0.4]], [[0.2, 0.2], [0.8, 0.5]]
    probe = npde.Probe(problem, points)
    reservoir = Reservoir(problem, (0, 0.05), 0.025, source, probe, windows=2)
    signal = np.sin(np.arange(6.0))
    push = np.zeros(problem.n_owned)
    npde.Probe(problem, source).transpose([[1.0]], push)
    push /= problem.volumes
    u, v, seen = np.zeros(problem.n_owned), np.zeros(problem.n_owned), []
    for s in signal:
        solution = npde.solve(problem, u, (0, 0.05), 0.025, velocity=v + 0.05 * s * push, progress=False)
        u, v = solution.values, solution.velocity_values
        seen.append(probe.apply(u)[:, 0] ** 2)
    wanted = np.concatenate([np.mean(seen[:3], axis=0), np.mean(seen[3:], axis=0)])
    assert np.allclose(reservoir(torch.from_numpy(signal)[None])[0], wanted, rtol=1e-10, atol=1e-14)
    assert problem.volumes @ push == pytest.approx(1)


@pytest.mark.parametrize("kind", ["reaction-diffusion", "wave", "schrodinger"])
def test_ready_made_media(kind):
    x, labels = labelled()
    made = medium((6, 6), kind, 3, seed=1)
    features = made(x)
    assert features.shape == (90, 3 * 36 * {"reaction-diffusion": 1, "wave": 3, "schrodinger": 2}[kind])
    assert torch.equal(made(x[:7]), made(x[:7])) and torch.isfinite(features).all()
    assert torch.allclose(made(x[5:6])[0], features[5], rtol=1e-9, atol=1e-12)
    assert torch.allclose(medium((6, 6), kind, 3, seed=1)(x), features)
    assert not torch.allclose(medium((6, 6), kind, 3, seed=2)(x), features)
    assert features.std(dim=0).min() > 1e-4  # every feature tells pictures apart
    solved = Pseudoinverse(layers=made).solve(None, (x, labels))
    assert accuracy(solved.model, x, labels) == 1 and accuracy(solved.model, *labelled(seed=5)) > 0.95


def test_media_leave_the_problem_as_it_was():
    rate = npde.Parameter("r", 0.5)
    field = npde.Parameter("s", lambda x: x[0], field=True)
    equation = npde.NPDE(source=lambda u, x, t: rate * u + field)
    problem = npde.FD(equation, npde.Grid(SELF, (5,), (0,), (1,)))
    before = problem.field_values("s").copy()
    media = [{"r": 0.0, "s": lambda x: 1 + 0 * x[0]}, {"r": 1.0, "s": 0.0}]
    reservoir = Reservoir(problem, (0, 1), 0.01, scheme=npde.RK4(), measure="state", media=media)
    seen = reservoir(torch.ones(1, 5, dtype=torch.float64))[0]
    assert np.allclose(seen[:5], 2) and np.allclose(seen[5:], np.e, rtol=1e-6)
    assert rate.value == 0.5 and np.array_equal(problem.field_values("s"), before)


def test_reservoirs_that_are_refused():
    problem = npde.FD(npde.physics.heat(1.0), npde.Grid(SELF, (5, 5), (0, 0), (1, 1)))
    with pytest.raises(ValueError, match="measure"):
        Reservoir(problem, (0, 1), 0.1, measure="phase")
    with pytest.raises(ValueError, match="media name"):
        Reservoir(problem, (0, 1), 0.1, media=[{"nu": 1.0}])
    with pytest.raises(ValueError, match="without time"):
        Reservoir(npde.FD(npde.physics.poisson(), npde.Grid(SELF, (5,), (0,), (1,))), (0, 1), 0.1)
    with pytest.raises(ValueError, match="pixels along each of 2 axes"):
        Reservoir(problem, (0, 1), 0.1, scheme=npde.BackwardEuler())(torch.zeros(3, 7))
    driven = Reservoir(problem, (0, 1), 0.1, [[0.5, 0.5]], scheme=npde.BackwardEuler(), windows=4)
    with pytest.raises(ValueError, match="at least 4 rows"):
        driven(torch.zeros(3, 2, 1))
    with pytest.raises(ValueError, match="outside"):
        Reservoir(problem, (0, 1), 0.1, [[1.5, 0.5]])
    with pytest.raises(ValueError, match="kind|given"):
        medium((6, 6), "quantum")


# -- digits ------------------------------------------------------------------------------------------------------


def test_digits():
    images, labels = datasets.digits()
    assert images.shape == (1797, 8, 8) and images.dtype == np.float64 and labels.dtype == np.int64
    assert images.min() == 0 and images.max() == 1 and np.bincount(labels).min() == 174
    assert not images.flags.writeable


@pytest.mark.parametrize("layers", ["npde", "random"])
def test_digits_are_learnt_without_iterations(layers):
    """97 % of 450 unseen digits, for two seeds of data and features."""
    images, labels = datasets.digits()
    right = []
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(labels))
        unseen, seen = order[:450], order[450:]
        solved = Pseudoinverse(layers=layers).solve(None, (images[seen], labels[seen]), seed=seed)
        right.append(accuracy(solved.model, torch.from_numpy(images[unseen]), torch.from_numpy(labels[unseen])))
    assert min(right) >= 0.97


# -- ranks and bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["readouts", "layers", "medium"])
def test_any_number_of_ranks(mpirun, what):
    """Unequal shares of the samples, a rank without any; a medium on all ranks."""
    found = [json.loads(mpirun(n, "pseudoinverse.py", what).stdout) for n in (1, 2, 3)]
    for others in found[1:]:
        for k, (row, other) in enumerate(zip(found[0], others, strict=True)):
            # Without a penalty, condition 1e12 magnifies round-off: targets are not in the features' range.
            loose = what == "readouts" and k in (20, 21)
            assert np.allclose(row, other, rtol=0, atol=1e-3 if loose else 1e-10), k


def test_errors_are_alike_on_all_ranks(mpirun):
    for n in (1, 2):
        mpirun(n, "pseudoinverse.py", "errors")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ridge": -1.0}, "ridge"),
        ({"ridge": float("nan")}, "ridge"),
        ({"method": "lu"}, "'qr' or 'svd'"),
        ({"layers": "fourier"}, "layers"),
        ({"layers": ["random", 3]}, "layers"),
        ({"width": 0}, "width"),
        ({"batch": None}, "batch"),
        ({"activation": "step"}, "activation"),
        ({"gain": 0.0}, "gain"),
        ({"targets": "binary"}, "targets"),
    ],
)
def test_settings_that_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Pseudoinverse(**settings)


def test_read_outs_that_are_refused():
    h, y = numbers(6, 3), numbers(6, 2)
    with pytest.raises(TypeError, match="ridge"):
        solve_readout(h, y, "aic")
    with pytest.raises(ValueError, match="weights"):
        solve_readout(h, y, weights=-np.ones(6))
    with pytest.raises(ValueError, match="no samples"):
        solve_readout(h, y, weights=np.zeros(6))
    with pytest.raises(ValueError, match="46340"):
        Stream().add(np.zeros((1, 50_000)), np.zeros((1, 1)))
    with pytest.raises(ValueError, match="tolerance"):
        solve_readout(h, y, tolerance=2)
    stream = Stream()
    stream.add(h, y)
    with pytest.raises(ValueError, match="sample 8"):
        bad = h.copy()
        bad[2, 1] = np.inf
        stream.add(bad, y)
    with pytest.raises(ValueError, match="batches before"):
        stream.add(h[:, :2], y)


def test_kernels_that_are_refused():
    x, labels = labelled(9)
    with pytest.raises(ValueError, match="odd number"):
        Pseudoinverse(layers="random", kernel=4).solve(None, (x, labels))
    with pytest.raises(ValueError, match="height"):
        Pseudoinverse(layers="random", kernel=3).solve(None, (x[:, 0], labels))


def test_as_the_learner_of_fit():
    x, labels = labelled()
    right = {"right": lambda output, wanted: (output.argmax(1) == wanted).double().mean()}
    learner = learn.Pseudoinverse(layers="random", width=40)
    done = learn.fit(None, (x, labels), None, learner, validation=labelled(seed=3), metrics=right, progress=False)
    assert done.converged and done.epochs == 1 and done.history[0].metrics["right"] > 0.9
    assert accuracy(done.model, x, labels) == 1


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


def test_what_fit_has_no_use_for_is_refused():
    x, y = torch.randn(40, 5), torch.arange(40) % 3
    learner = learn.Pseudoinverse(layers="random", width=10)
    with pytest.raises(ValueError, match="minimises squares"):
        learn.fit(None, (x, y), "cross_entropy", learner)
    with pytest.raises(ValueError, match="checkpoint: given, but pseudoinverse learning has no epochs"):
        learn.fit(None, (x, y), learner=learner, checkpoint="c")
    with pytest.raises(ValueError, match="layers and a model given"):
        learn.fit(torch.nn.Linear(5, 3), (x, y), learner=learner)
