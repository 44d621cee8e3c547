"""Networks as symbols: weights shared with the module, values and derivatives at points, what is refused."""

import npde_fem as npde
from npde_fem.discretize.networks import Evaluator

import numpy as np
import pytest
import torch
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from torch import nn

RNG = np.random.default_rng(3)


def perceptron(inputs=1, outputs=1, width=8, activation=nn.Tanh):
    torch.manual_seed(1)
    layers = [nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, outputs)]
    return nn.Sequential(*layers).double()


def space(cells=4):
    return fem.functionspace(mesh.create_unit_interval(MPI.COMM_SELF, cells), ("Lagrange", 1))


def heat(**terms):
    return npde.NPDE(**{"flux": lambda u, x, t: ufl.grad(u), **terms})


# -- weights -------------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_module():
    module = perceptron()
    net = npde.neural(module, "growth")
    flat = torch.cat([p.detach().ravel() for p in module.parameters()]).numpy()
    assert net.weights.name == "growth" and np.array_equal(net.weights.value, flat)
    net.weights.value = flat + 1
    assert np.allclose(module[0].bias.detach(), flat[8:16] + 1)
    with torch.no_grad():
        module[0].bias.zero_()
    assert np.array_equal(net.weights.value[8:16], np.zeros(8))


def test_training_the_module_trains_the_equation():
    """Whoever changes the weights, the next solve has them; what was computed before does not linger."""
    net = npde.neural(perceptron())
    problem = npde.FEM(heat(source=lambda u, x, t: net(u)), space())

    def final():
        return npde.solve(problem, 0.5, t=(0, 0.1), dt=0.1).values

    first = final()
    assert np.array_equal(first, final())
    with torch.no_grad():
        net.module[-1].bias += 1.0
    assert np.allclose(final() - first, 0.1, atol=0.02)
    net.weights.value = np.zeros(net.weights.ufl_shape)
    assert np.allclose(final(), 0.5, atol=1e-13)


@pytest.mark.parametrize("value", [np.zeros(3), np.full(97, np.nan), "heavy"])
def test_bad_weights(value):
    net = npde.neural(perceptron())
    with pytest.raises((TypeError, ValueError), match="weights of 'net'|must be finite"):
        net.weights.value = value


def test_two_networks_of_one_name_clash():
    a, b = npde.neural(perceptron()), npde.neural(perceptron())
    with pytest.raises(ValueError, match="duplicate parameter name 'net'"):
        npde.FEM(heat(source=lambda u, x, t: a(u) + b(u)), space())


# -- values --------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.inner = perceptron(inputs, inputs)

    def forward(self, x):
        return x + self.inner(x)


class NotInUFL(nn.Module):
    """Operations that UFL has no words for."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 5, dtype=torch.float64))

    def forward(self, x):
        rows = self.scale * x.sum(1, keepdim=True)
        return torch.logsumexp(torch.special.i0e(rows), 1, keepdim=True) + torch.cumprod(torch.sinc(rows), 1)[:, -1:]


MODULES = {
    "tanh": perceptron(),
    "sigmoid": perceptron(activation=nn.Sigmoid),
    "softplus": perceptron(activation=nn.Softplus),
    "silu": perceptron(activation=nn.SiLU),
    "gelu": perceptron(activation=nn.GELU),
    "relu": perceptron(activation=nn.ReLU),
    "residual": nn.Sequential(nn.Linear(1, 4), Residual(4), nn.Linear(4, 1)).double(),
    "not in UFL": NotInUFL(),
    "two outputs": perceptron(outputs=2),
    "three inputs": perceptron(3, 2),
}
TABULATED = set(MODULES) - {"relu", "not in UFL", "three inputs"}  # the second has a kink at 0, as exp(-|x|)


def module_of(name):
    return npde.neural(MODULES[name], inputs=3 if name == "three inputs" else 1)


def by_torch(net, a, weights, order):
    """n and its derivatives, by torch's own functional derivatives, point by point."""
    shapes = {n: p.shape for n, p in net.module.named_parameters()}

    def value(x, w):
        sizes = [int(np.prod(s)) for s in shapes.values()]
        parts = {n: p.view(s) for (n, s), p in zip(shapes.items(), w.split(sizes), strict=True)}
        return torch.func.functional_call(net.module, parts, (x[None],))[0]

    found = value
    for _ in range(order):
        found = torch.func.jacrev(found, argnums=0)
    return found, torch.tensor(a), torch.tensor(weights)


@pytest.mark.parametrize("name", MODULES)
def test_values_and_gradient(name):
    """Tabulated or not: n, n', n'', the same along a direction of the weights, and the derivative by the weights."""
    net = module_of(name)
    evaluator, orders = Evaluator(net), (0, 1, 2)
    a = RNG.uniform(-0.9, 1.4, (60, net.inputs))
    w = net.weights.value
    delta = RNG.normal(size=w.shape)
    found, along = evaluator.values(a, 2), evaluator.values(a, 2, delta)
    assert (evaluator.table(0) is not None) == (name in TABULATED)
    for n in orders:
        f, x, weights = by_torch(net, a, w, n)
        exact = torch.vmap(f, (0, None))(x, weights).numpy()
        moved = torch.vmap(lambda x, f=f, w=weights: torch.func.jvp(lambda v: f(x, v), (w,), (torch.tensor(delta),))[1])
        assert np.abs(found[n] - exact).max() <= 1e-10 * max(1, np.abs(exact).max())
        exact = moved(x).numpy()
        assert np.abs(along[n] - exact).max() <= 1e-10 * max(1, np.abs(exact).max())

    by = tuple(RNG.normal(size=found[n].shape) for n in (0, 1))
    by_along = tuple(RNG.normal(size=found[n].shape) for n in (0, 1))
    exact = net.pull(w, a, by, delta, by_along)
    for half in (slice(None, 30), slice(30, None)):
        parts = (tuple(g[half] for g in several) for several in (by, by_along))
        evaluator.collect(a[half], next(parts), delta, next(parts))
    assert np.abs(evaluator.gradient() - exact).max() <= 1e-10 * np.abs(exact).max()
    evaluator.clear()
    assert not evaluator.gradient().any()


def test_the_pull_is_the_transpose_of_the_values():
    net = module_of("three inputs")
    a, delta = RNG.normal(size=(20, 3)), RNG.normal(size=net.weights.ufl_shape)
    along = net.values(net.weights.value, a, 1, delta)
    by = tuple(RNG.normal(size=v.shape) for v in along)
    pulled = net.pull(net.weights.value, a, by)
    assert pulled @ delta == pytest.approx(sum(np.sum(g * v) for g, v in zip(by, along, strict=True)), rel=1e-12)


def test_a_table_follows_its_arguments():
    """It grows with them, and is given up where they are absurd: there the network is evaluated as it is."""
    net = npde.neural(perceptron())
    evaluator = Evaluator(net)
    delta, gradient = RNG.normal(size=net.weights.ufl_shape), np.zeros(net.weights.ufl_shape)
    for a in ([0.5], [0.5, 0.50001], np.linspace(-1, 3, 50), [40.0], [0.1, 1e9], [0.2, np.inf], [-1.0, 0.0]):
        a = np.reshape(a, (-1, 1))
        for direction in (None, delta):
            exact = net.values(net.weights.value, a, 1, direction)
            for found, right in zip(evaluator.values(a, 1, direction), exact, strict=True):
                assert np.allclose(found, right, rtol=1e-10, atol=1e-11, equal_nan=True)
        if np.isfinite(a).all():
            evaluator.collect(a, (np.ones_like(a),))
            gradient += net.pull(net.weights.value, a, (np.ones_like(a),))
    assert np.allclose(evaluator.gradient(), gradient, rtol=1e-10)
    with_nan = evaluator.values(np.array([[0.1], [np.nan], [0.2]]), 0)[0].ravel()
    assert np.isnan(with_nan).tolist() == [False, True, False]


class Scaled(nn.Module):
    """A network in units that are no weights, and that are others in training."""

    def __init__(self):
        super().__init__()
        self.inner = perceptron()
        self.register_buffer("unit", torch.tensor(2.0))

    def forward(self, x):
        return self.inner(x) * self.unit * (3 if self.training else 1)


def test_tables_follow_buffers_modes_and_layers():
    module = Scaled().eval()
    net, a = npde.neural(module), np.linspace(-1, 1, 9)[:, None]
    evaluator = Evaluator(net)

    def check():
        evaluator.update()
        with torch.no_grad():
            assert np.allclose(evaluator.values(a, 0)[0], module(torch.tensor(a)), rtol=1e-11, atol=1e-12)

    check()
    module.load_state_dict({**module.state_dict(), "unit": torch.tensor(5.0)})
    check()
    module.train()
    check()
    module.inner[1] = nn.Sigmoid()
    check()


def test_what_turns_random_later_is_refused():
    module = nn.Sequential(perceptron(), nn.Dropout(0.5)).eval()
    net = npde.neural(module)
    problem = npde.FEM(heat(source=lambda u, x, t: net(u)), space())
    module.train()
    with pytest.raises(ValueError, match="layer '1' is a Dropout in training"):
        problem.update()
    module.eval()
    problem.update()


def test_where_torch_puts_new_tensors_does_not_matter():
    with torch.device("meta"):
        assert npde.neural(MODULES["tanh"]).outputs == 1


def test_one_number_beside_a_kink_is_no_range_to_try_again(monkeypatch):
    net, calls = npde.neural(perceptron(activation=nn.ReLU)), []
    with torch.no_grad():
        net.module[0].bias.zero_()
    evaluator, values = Evaluator(net), net.values
    monkeypatch.setattr(net, "values", lambda *given: calls.append(given) or values(*given))
    evaluator.values(np.zeros((5, 1)), 0)
    calls.clear()
    evaluator.values(np.zeros((5, 1)), 0)
    assert len(calls) == 1


@pytest.mark.parametrize("steepness", [5, 100])
def test_steep_networks_are_tabulated(steepness):
    module = perceptron()
    with torch.no_grad():
        module[0].weight *= steepness
    net = npde.neural(module)
    evaluator, a = Evaluator(net), np.linspace(-1, 1, 5001)[:, None]
    found, exact = evaluator.values(a, 1), net.values(net.weights.value, a, 1)
    assert evaluator.table(0) is not None
    assert all(np.abs(f - e).max() < 1e-10 * np.abs(e).max() for f, e in zip(found, exact, strict=True))


def test_weights_in_single_precision_are_evaluated_in_double():
    module = perceptron().float()
    net, a = npde.neural(module), np.linspace(-1, 1, 9)[:, None]
    exact = perceptron().float().double()(torch.tensor(a)).detach().numpy()
    assert np.abs(Evaluator(net).values(a, 0)[0] - exact).max() < 1e-13


# -- what is refused -----------------------------------------------------------------------------------------


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))


class Mixing(Weighted):
    def forward(self, x):
        return x - x.mean()


class Random(Weighted):
    def forward(self, x):
        return x + torch.rand(x.shape[0], 1, dtype=x.dtype).sum() * 0 + torch.rand(1, dtype=x.dtype)


class Flat(Weighted):
    def forward(self, x):
        return x[:, 0]


class Broken(Weighted):
    def forward(self, x):
        raise RuntimeError("out of order")


class Poles(Weighted):
    def forward(self, x):
        return 1 / (x * 0)


@pytest.mark.parametrize(
    ("module", "inputs", "kind", "match"),
    [
        (lambda x: x, 1, TypeError, "a torch.nn.Module allowed"),
        (nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4)), None, ValueError, "layer '1' is a BatchNorm1d.*LayerNorm"),
        (nn.Conv1d(1, 1, 3), 1, ValueError, "layer 'itself' is a Conv1d: it mixes neighbours"),
        (nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5)), None, ValueError, "layer '1' is a Dropout in training"),
        (Mixing(), 1, ValueError, "another value in other company"),
        (Random(), 1, ValueError, "another value in other company|other values each time"),
        (Flat(), 2, ValueError, r"\(3, m\) allowed"),
        (Broken(), 1, TypeError, "out of order"),
        (Poles(), 1, ValueError, "NaN or infinity"),
        (nn.Tanh(), None, ValueError, "is needed without a Linear"),
        (nn.Tanh(), 1, ValueError, "the module has no parameters"),
        (nn.Tanh(), 0, ValueError, "a positive integer allowed"),
        (nn.Tanh(), True, ValueError, "a positive integer allowed"),
    ],
)
def test_bad_modules(module, inputs, kind, match):
    with pytest.raises(kind, match=match):
        npde.neural(module, inputs=inputs)


def test_bad_inputs():
    net, x = npde.neural(perceptron(2)), ufl.SpatialCoordinate(space().mesh)
    with pytest.raises(ValueError, match="1 inputs given; the network takes 2"):
        net(x[0])
    with pytest.raises(TypeError, match="UFL expressions and numbers allowed"):
        net(x[0], "u")
    with pytest.raises(ValueError, match=r"an input of shape \(1, 1\) given"):
        net(ufl.outer(x, x), 1.0)
    with pytest.raises(ValueError, match="compose them in torch"):
        net(x[0], net(x[0], 1.0))


NET = npde.neural(perceptron())
ELSEWHERE = {
    "damping": (lambda: heat(damping=lambda x, t: NET(x[0])), [], "damping contains the network"),
    "inertia": (lambda: heat(inertia=lambda x, t: NET(x[0])), [], "inertia contains the network"),
    "dirichlet": (heat, [npde.Dirichlet(lambda x, t: NET(t))], "Dirichlet value contains the network"),
    "flux": (heat, [npde.Flux(lambda x, t: NET(x[0]))], "Flux value contains the network"),
    "robin": (heat, [npde.Robin(lambda x, t: NET(t), 0.0)], "Robin coefficient contains the network"),
    "gradient": (
        lambda: heat(flux=lambda u, x, t: ufl.grad(NET(u))),
        [],
        r"flux contains a derivative of a network.*net\(grad\(u\)\), allowed",
    ),
    "divergence": (
        lambda: heat(source=lambda u, x, t: ufl.div(NET(u) * ufl.grad(u))),
        [],
        "source contains a derivative of a network",
    ),
    "manufactured": (
        lambda: npde.manufactured(heat(flux=lambda u, x, t: NET(u) * ufl.grad(u)), lambda x, t: x[0] * t),
        [],
        "no manufactured solution",
    ),
    "complex": (
        lambda: npde.NPDE(source=lambda u, x, t: NET(x[0]) * u, dtype=complex),
        [],
        "a complex equation contains a network",
    ),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_networks_elsewhere_are_refused(case):
    make, bcs, match = ELSEWHERE[case]
    with pytest.raises(ValueError, match=match):
        npde.FEM(make(), space(), bcs)


def test_networks_in_data_and_integrals_are_refused():
    problem = npde.FEM(heat(), space())
    with pytest.raises(ValueError, match="function contains the network"):
        npde.solve(problem, npde.Initial(lambda x: NET(x[0])), t=(0, 0.1), dt=0.1)
    with pytest.raises(ValueError, match="integrand contains the network"):
        problem.write_integral(lambda u, x, t: NET(u))
    with pytest.raises(ValueError, match="flow contains the network"):
        npde.FEM(heat(flow=lambda u, x, t, dt: NET(u)), space())
