"""``learn.fit``: what it trains, with which learners, what it refuses."""

import csv
import math

import npde_fem as npde
from npde_fem import learn, networks

import dolfinx
import numpy as np
import pytest
import scipy.optimize
import torch
from mpi4py import MPI
from torch import nn

SELF = MPI.COMM_SELF
D = torch.float64


def points(n=60, seed=0):
    """Points in the plane, labelled by the quadrant pair that they are in."""
    x = torch.randn(n, 2, dtype=D, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] * x[:, 1] > 0).long()


def perceptron(seed=0, outputs=2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, outputs)).double()


def growth(field=False):
    """Fisher-KPP with D and r (a number, or a field) on 9 points, and what D = 0.05, r = 2 make of three states."""
    r = npde.Parameter("r", (lambda x: 2 + x[0]) if field else 2.0, field=field, bounds=(0, 10))
    d = npde.Parameter("D", 0.05, bounds=(1e-3, 1))
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_interval(SELF, 8, (0.0, 1.0)), ("Lagrange", 1))
    layer = learn.Layer(npde.FEM(npde.physics.fisher_kpp(d, r), space), (0, 0.4), 0.1, observe=[0.2, 0.4])
    x = torch.linspace(0, 1, 9, dtype=D)
    starts = torch.stack([0.5 + 0.3 * torch.cos(k * torch.pi * x) for k in range(3)])
    with torch.no_grad():
        data = layer(starts)
        layer.D.fill_(0.2)
        layer.r.fill_(1.0)
    return layer, starts, data


# -- learners --------------------------------------------------------------------------------------------------------


def test_adam_is_torch_s():
    (x, y), model = points(), perceptron()
    found = learn.fit(model, (x, y), "cross_entropy", learn.Adam(lr=0.01, batch=16, clip=0.5), epochs=5, seed=3)
    own, generator = perceptron(), torch.Generator().manual_seed(3)
    optimiser = torch.optim.Adam(own.parameters(), 0.01)
    for _ in range(5):
        for which in torch.randperm(60, generator=generator).split(16):
            optimiser.zero_grad()
            nn.functional.cross_entropy(own(x[which]), y[which]).backward()
            norm = torch.sqrt(sum((p.grad**2).sum() for p in own.parameters()))
            for p in own.parameters():
                p.grad *= min(1, 0.5 / norm)
            optimiser.step()
    for a, b in zip(model.parameters(), own.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert [row.epoch for row in found.history] == [1, 2, 3, 4, 5] and found.epochs == 5
    assert found.history[-1].loss < found.history[0].loss and found.evaluations == 20


@pytest.mark.parametrize("schedule", [None, "cosine", lambda epoch: 0.5**epoch])
def test_schedules(schedule):
    found = learn.fit(perceptron(), points(), "cross_entropy", learn.Adam(0.1, schedule=schedule), epochs=4)
    expected = {None: [1, 1, 1, 1], "cosine": [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]}
    assert [row.rate for row in found.history] == pytest.approx(
        [0.1 * f for f in expected.get(schedule, [1, 0.5, 0.25, 0.125])]
    )


@pytest.mark.parametrize("learner", [learn.LBFGS(gtol=1e-7), learn.PDEConstrained(method="scipy-lbfgsb", gtol=1e-7)])
def test_weights_of_a_layer_are_found(learner):
    layer, starts, data = growth()
    found = learn.fit(layer, (starts, data), "mse", learner, epochs=60)
    assert found.converged and found.loss < 1e-12
    assert layer.D.item() == pytest.approx(0.05, rel=1e-4) and layer.r.item() == pytest.approx(2, rel=1e-4)
    assert found.history[0].epoch == 0 and math.isnan(found.history[0].rate)


@pytest.mark.parametrize("inner", ["l2", "L2", "H1"])
def test_fields_of_a_layer_are_trained(inner):
    layer, starts, data = growth(field=True)
    found = learn.fit(layer, (starts, data), "mse", learn.LBFGS(inner=inner, gtol=1e-5), epochs=200)
    assert found.loss < 1e-6 * found.history[0].loss


def test_bounds_are_kept():
    layer, starts, data = growth()
    learn.fit(layer, (starts, data), "mse", learn.LBFGS(bounds={"D": (0.1, 1.0)}), epochs=40)
    assert layer.D.item() == pytest.approx(0.1, abs=1e-12)


def test_lbfgs_finds_rosenbrock_s_valley_as_scipy_does():
    class Rosenbrock(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.tensor([-1.2, 1.0, -0.5, 0.8], dtype=D))

        def forward(self):
            return (100 * (self.x[1:] - self.x[:-1] ** 2) ** 2 + (1 - self.x[:-1]) ** 2).sum()

    for bounds, scipy_bounds in ((None, None), ((-2.0, 0.7), [(-2.0, 0.7)] * 4)):
        model = Rosenbrock()
        with torch.no_grad():
            model.x.clamp_(max=0.7 if bounds else 9.0)
        start = model.x.detach().numpy().copy()
        learner = learn.LBFGS(gtol=1e-10, ftol=0, bounds=None if bounds is None else {"x": bounds})
        learn.fit(model, None, lambda value: value, learner, epochs=300)
        best = scipy.optimize.minimize(
            scipy.optimize.rosen, start, jac=scipy.optimize.rosen_der, method="L-BFGS-B", bounds=scipy_bounds,
            options={"ftol": 0, "gtol": 1e-10},
        ).x  # fmt: skip
        np.testing.assert_allclose(model.x.detach().numpy(), best, atol=1e-6)


def test_problems_with_their_own_data():
    d = npde.Parameter("D", 0.2, bounds=(1e-3, 1))
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_interval(SELF, 8, (0.0, 1.0)), ("Lagrange", 1))
    fem = npde.FEM(npde.physics.heat(d), space)
    times = {"u0": lambda x: np.cos(np.pi * x[0]), "t": (0, 0.2), "dt": 0.05}
    d.value = 0.1
    truth = npde.solve(fem, **times, progress=False).values
    d.value = 0.2
    problem = npde.PDEConstrainedProblem(fem, lambda s: npde.misfit(s, truth), d, **times)
    for learner in (learn.PDEConstrained(method="tao-bnls"), learn.LBFGS()):
        d.value = 0.2
        found = learn.fit(problem, learner=learner, progress=False)
        assert float(d) == pytest.approx(0.1, rel=1e-4) and found.epochs == found.history[-1].epoch > 1
    with pytest.raises(ValueError, match="data: given, but a PDEConstrainedProblem has its own"):
        learn.fit(problem, points(), learner=learn.LBFGS())
    with pytest.raises(TypeError, match="LBFGS or PDEConstrained allowed"):
        learn.fit(problem, learner=learn.Adam())


def test_generated_and_mixed_networks():
    torch.manual_seed(0)
    x, y = torch.rand(20, 1, 6, 6, dtype=D), torch.arange(20) % 2
    x[y == 1] += 0.3
    cnn = networks.cnn(grid=(6, 6), channels=(1, 2), readout=2, dtype=D)
    found = learn.fit(cnn, (x, y), "cross_entropy", learn.Adam(0.02), epochs=40, metrics=["accuracy"])
    assert found.history[-1].metrics["accuracy"] == 1
    layer, starts, data = growth()
    mixed = nn.Sequential(nn.Linear(9, 9).double(), layer)
    found = learn.fit(mixed, (starts, data), "mse", learn.LBFGS(), epochs=20)
    assert found.loss < 0.01 * found.history[0].loss


def test_streams_are_the_samples_they_give():
    (x, y), models = points(), [perceptron(), perceptron()]

    class Pieces:
        def __iter__(self):
            for k in (0, 10, 35):
                yield x[k : {0: 10, 10: 35, 35: 60}[k]], y[k : {0: 10, 10: 35, 35: 60}[k]]

    for model, data in zip(models, ((x, y), Pieces()), strict=True):
        learn.fit(model, data, "cross_entropy", learn.LBFGS(), epochs=10)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_single_precision_trains_by_lbfgs():
    (x, y), model = points(), perceptron().float()
    found = learn.fit(model, (x.float(), y), "cross_entropy", learn.LBFGS(), epochs=60)
    assert found.loss < 0.1 < found.history[0].loss


# -- epochs ----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits():
    def run(seed):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 12), nn.Dropout(0.3), nn.Tanh(), nn.Linear(12, 2)).double()
        learn.fit(model, points(), "cross_entropy", learn.Adam(0.01), epochs=3, seed=seed)
        return torch.cat([p.detach().ravel() for p in model.parameters()])

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_early_stopping_goes_back_to_the_best_weights():
    model, seen = perceptron(), []

    def watch(training):
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})

    stop = learn.EarlyStopping(patience=3)
    found = learn.fit(
        model,
        points(12),
        "cross_entropy",
        learn.Adam(0.3),
        epochs=200,
        validation=points(40, 1),
        callbacks=[watch, stop],
    )
    losses = [row.validation for row in found.history]
    best = int(np.argmin(losses))
    assert found.epochs == best + 4 < 200 and found.reason == "a callback stopped it" and found.best == losses[best]
    assert all(torch.equal(p, seen[best][name]) for name, p in model.named_parameters())


def test_log_and_metrics(tmp_path):
    x, y = points()
    found = learn.fit(
        perceptron(), (x, y), "cross_entropy", epochs=3, validation=points(30, 1), metrics=["accuracy"],
        log=tmp_path / "log.csv",
    )  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [float(row["loss"]) for row in rows] == [row.loss for row in found.history]
    assert [float(row["accuracy"]) for row in rows] == [row.metrics["accuracy"] for row in found.history]
    with torch.no_grad():
        held, labels = points(30, 1)
        expected = nn.functional.cross_entropy(found.model(held), labels).item()
    assert found.history[-1].validation == pytest.approx(expected, abs=1e-12)


def test_tensorboard_is_named_where_it_is_missing(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        learn.TensorBoardLog(tmp_path)


# -- bad input -------------------------------------------------------------------------------------------------------

X, Y = points()
BAD = {
    "nan": (dict(data=(X.clone().fill_(torch.nan), Y)), ValueError, "inputs: 120 numbers are NaN or infinite"),
    "lengths": (dict(data=(X, Y[:50])), ValueError, "60 inputs, 50 targets given"),
    "label": (dict(data=(X, Y + 1)), ValueError, "label 2 of sample .* is out of range; 0 to 1 allowed"),
    "empty class": (dict(data=(X, Y * 0)), ValueError, "no sample has label 1, of 2 classes"),
    "labels as numbers": (dict(data=(X, Y.double())), TypeError, "one integer label for each sample"),
    "data": (dict(data=3.0), TypeError, "data: a pair .* 3.0 given"),
    "once only": (dict(data=iter([(X, Y)])), TypeError, "iterated often"),
    "no batches": (dict(data=[]), ValueError, "gave no batch"),
    "loss": (dict(loss="hinge"), ValueError, "unknown name 'hinge'; cross_entropy, mse allowed"),
    "vector loss": (
        dict(loss=lambda o, y: o),
        ValueError,
        r"loss: shape \(1, 2\) returned; a tensor of a single number",
    ),
    "constant": (dict(loss=lambda o, y: torch.tensor(1.0)), ValueError, "does not depend on the model's weights"),
    "other weights": (
        dict(loss=lambda o, y: torch.tensor(1.0, requires_grad=True) * 2),
        ValueError,
        "depends on none of the weights 0.weight, 0.bias",
    ),
    "infinite": (dict(loss=lambda o, y: o.sum() / 0), ValueError, "not finite"),
    "learner": (dict(learner="adam"), TypeError, "Adam"),
    "class of learner": (dict(learner=learn.Adam), TypeError, "Adam"),
    "epochs": (dict(epochs=0), ValueError, "epochs = 0 given; a positive integer"),
    "metric": (dict(metrics=["f1"]), ValueError, r"\['f1'\] given; accuracy, mse allowed"),
    "resume": (dict(resume=True), ValueError, "resume = True given without checkpoint"),
    "no such file": (dict(resume="nowhere"), FileNotFoundError, "nowhere"),
    "bounds": (dict(learner=learn.LBFGS(bounds={"w": (0, 1)})), ValueError, r"\['w'\] given; the weights are"),
    "method": (dict(learner=learn.PDEConstrained(method="tao-bnls")), ValueError, "asks for Hessians"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(case):
    arguments, error, match = BAD[case]
    model = perceptron()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error, match=match):
        learn.fit(**{"model": model, "data": (X, Y), "loss": "cross_entropy", "epochs": 2, **arguments})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: learn.Adam(lr=-1), "lr = -1 given"),
        (lambda: learn.Adam(batch=0), "batch = 0 given"),
        (lambda: learn.Adam(schedule="step"), "schedule = 'step'"),
        (lambda: learn.Adam(betas=(0.9, 1.0)), "betas"),
        (lambda: learn.LBFGS(inner="H2"), "inner = 'H2'"),
        (lambda: learn.PDEConstrained(method="newton"), "'newton' is unknown"),
        (lambda: learn.EarlyStopping(0), "patience = 0"),
    ],
)
def test_learners_are_checked(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_models_without_weights_are_refused():
    with pytest.raises(ValueError, match="no weight that is trained"):
        learn.fit(nn.Flatten(), (X, Y), "cross_entropy")
    with pytest.raises(TypeError, match="a torch module or a PDEConstrainedProblem allowed, str given"):
        learn.fit("model", (X, Y))


def test_a_loss_that_explodes_is_told():
    with pytest.raises(ArithmeticError, match="smaller learning rate"):
        learn.fit(perceptron(), (X, X), lambda o, y: (o**2).sum().exp(), learn.Adam(lr=50.0), epochs=20)
