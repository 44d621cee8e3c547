"""Networks in finite differences: against torch's autograd, UFL, differences, and on any number of ranks."""

import importlib
import sys
from functools import cache
from pathlib import Path

import npde_fem as npde
from npde_fem.neural_terms import Weights
from npde_fem.solve.batch import Batch
from npde_fem.solve.integrate import solve
from npde_fem.solve.trajectory import Cotangents, Trajectory

import numpy as np
import pyadjoint
import pytest
import ufl
from mpi4py import MPI

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
terms, solves, cases = (importlib.import_module(name) for name in ("fd_linearised", "adjoint", "neural_fd"))
COMM = MPI.COMM_WORLD
STEP = 1e-5


def close(value, expected, tolerance):
    value, expected = np.asarray(value), np.asarray(expected)
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * max(1e-3, np.abs(expected).max()))


# -- the terms and their derivatives -----------------------------------------------------------------------------


@cache
def kit(name):
    return terms.Kit(cases.PROBLEMS[name]())


@pytest.fixture(params=cases.PROBLEMS)
def one(request):
    found = kit(request.param)
    yield found
    found.move(0.0)


def difference(one, evaluate):
    """Central difference along the directions of state, parameters and weights."""
    values = []
    for e in (STEP, -STEP):
        one.move(e)
        values.append(evaluate())
    one.move(0.0)
    plus, minus = values
    if isinstance(plus, dict):
        return {name: (plus[name] - minus[name]) / (2 * STEP) for name in plus}
    return (plus - minus) / (2 * STEP)


@pytest.mark.parametrize("term", ["all", "flux", "source"])
def test_tangent_and_adjoint(one, term):
    expected, tangent = difference(one, lambda: one.value(term)), one.tangent(term)
    close(tangent, expected, 1e-7)
    assert np.abs(expected).max() > 1e-3
    assert abs(one.paired(one.back(term)) - one.adjoint @ tangent) < 1e-12 * np.linalg.norm(one.adjoint * tangent)


@pytest.mark.parametrize("term", ["all", "flux", "source"])
def test_second_order_is_the_derivative_of_the_adjoint(one, term):
    expected = difference(one, lambda: one.back(term))
    for name, values in one.back(term, second=True).items():
        close(values, expected[name], 1e-6)


@pytest.mark.parametrize("part", ["all", "flux", "source"])
def test_jacobian(one, part):
    """Of the state's direction alone; a part's matrix is the tangent's."""
    p, matrix = one.problem, one.problem.new_matrix()
    free = np.ones(p.n_owned)
    free[p.constrained] = 0.0
    v, rates = free * one.v, []
    p.jacobian(terms.T, one.state, 0.0, -1.0, matrix, part)
    x, y = matrix.createVecs()
    x.array[:] = v
    matrix.mult(x, y)
    moved, out = p.new_state(), np.zeros(p.n_owned)
    for e in (STEP, -STEP):
        p.load(one.moved + e * v, moved)
        p.rate(terms.T, moved, out, part)
        rates.append(out.copy())
    close(free * y.array.real, (rates[0] - rates[1]) / (2 * STEP), 1e-7)


def test_terms_on_more_ranks(mpirun, tmp_path):
    """Of terms and of whole solves."""
    expected = saved(mpirun, 1, tmp_path)
    for n in (2, 3):
        found = saved(mpirun, n, tmp_path)
        assert found.keys() == expected.keys()
        for name, values in found.items():
            scale = max(1e-3, np.abs(expected[name]).max())
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-10 * scale, err_msg=f"{n} {name}")


def saved(mpirun, n, folder):
    path = folder / f"{n}.npz"
    mpirun(n, "neural_fd.py", path, timeout=300)
    with np.load(path) as found:
        return dict(found)


# -- against torch -----------------------------------------------------------------------------------------------


class ByHand:
    """The same scheme on a box without flux through its sides, in torch; axis y first, periodic along y if asked."""

    def __init__(self, diffusion, growth, spacing, periodic):
        self.D, self.f, (self.hx, self.hy), self.periodic = diffusion, growth, spacing, periodic

    def widths(self, n, h, periodic):
        w = torch.full((n,), h, dtype=torch.float64)
        if not periodic and n > 1:
            w[0] = w[-1] = 0.5 * h
        return w

    def volumes(self, u):
        return torch.outer(self.widths(u.shape[0], self.hy, self.periodic), self.widths(u.shape[1], self.hx, False))

    def rate(self, u):
        """Rates over volumes; the source is f(u, x), the flux (1 + D(u)^2) grad(u)."""

        def at(network, *parts):
            return network(torch.stack(torch.broadcast_tensors(*parts), -1).reshape(-1, len(parts))).reshape(u.shape)

        def flux(a, b, h):
            return (1 + self.D(((a + b) / 2).reshape(-1, 1)).reshape(a.shape) ** 2) * (b - a) / h

        x = self.hx * torch.arange(u.shape[1], dtype=torch.float64)[None, :]
        across = torch.nn.functional.pad(flux(u[:, :-1], u[:, 1:], self.hx), (1, 1))
        total = (across[:, 1:] - across[:, :-1]) / self.widths(u.shape[1], self.hx, False)[None, :]
        if self.periodic:
            up = flux(u, torch.roll(u, -1, 0), self.hy)
            total = total + (up - torch.roll(up, 1, 0)) / self.hy
        elif u.shape[0] > 1:
            up = torch.nn.functional.pad(flux(u[:-1], u[1:], self.hy), (0, 0, 1, 1))
            total = total + (up[1:] - up[:-1]) / self.widths(u.shape[0], self.hy, False)[:, None]
        return total + at(self.f, u, x)


ACTIVATIONS = {"tanh": torch.nn.Tanh, "gelu": torch.nn.GELU, "relu": torch.nn.ReLU}


def pair(dim, periodic=False, kind="tanh"):
    """The same equation as a problem and by hand."""
    D, f = cases.layers(1, 1, last=ACTIVATIONS[kind]), cases.layers(2, 1, seed=1, last=ACTIVATIONS[kind])
    D_net, f_net = npde.neural(D, "D"), npde.neural(f, "f")
    equation = npde.NPDE(flux=lambda u, x, t: (1 + D_net(u) ** 2) * ufl.grad(u), source=lambda u, x, t: f_net(u, x[0]))
    shape = (9, 8)[:dim]
    problem = npde.FD(
        equation,
        npde.Grid(COMM, shape, (0,) * dim, (1,) * dim),
        [npde.Periodic(1)] if periodic else [],
    )
    h = problem.grid.spacing
    return problem, ByHand(D, f, (*h, 1.0)[:2], periodic)


def recorded(problem, u0, **options):
    recorder = Trajectory(problem)
    final = solve(problem, u0, recorder=recorder, **options).u.values
    return recorder, np.array(final)


def values_of(problem):
    x = problem.coordinates()
    return 0.4 + 0.9 * np.sin(3 * x[:, 0] + 1) * np.cos(4 * x[:, 1] + 0.3)


def as_plane(problem, values):
    n = problem.layout.local
    return torch.from_numpy(np.array(values)).reshape((1, *n) if len(n) == 1 else n[::-1]).requires_grad_()


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize(("dim", "periodic"), [(1, False), (2, False), (2, True)])
def test_rate_and_jacobian_against_autograd(dim, periodic, kind):
    problem, by_hand = pair(dim, periodic, kind)
    values, state, out = values_of(problem), problem.new_state(), np.zeros(problem.n_owned)
    u = as_plane(problem, values)
    problem.load(values, state)
    problem.rate(0.0, state, out)
    weighed = (by_hand.volumes(u) * by_hand.rate(u)).detach()
    close(out, weighed.ravel(), 1e-12)
    matrix = problem.new_matrix()
    problem.jacobian(0.0, state, 0.0, -1.0, matrix)
    expected = torch.autograd.functional.jacobian(lambda v: by_hand.volumes(v) * by_hand.rate(v), u)
    close(np.real(matrix.convert("dense").getDenseArray()), expected.reshape(out.size, -1), 1e-11)


@pytest.mark.parametrize("scheme", ["forward-euler", "rk4"])
@pytest.mark.parametrize(("dim", "periodic"), [(1, False), (2, False), (2, True)])
def test_gradient_of_a_rollout_against_autograd(dim, periodic, scheme):
    problem, by_hand = pair(dim, periodic)
    values, steps, dt = values_of(problem), 12, 5e-4
    lin, final = recorded(problem, values, t=(0, steps * dt), dt=dt, scheme=npde.scheme_named(scheme))
    nets = [problem.parameters[name] for name in ("D", "f")]
    weight = np.cos(np.arange(problem.n_owned))
    found = lin.by(nets).adjoint(Cotangents(None, weight))

    u0 = u = as_plane(problem, values)
    for _ in range(steps):
        k1 = by_hand.rate(u)
        if scheme == "rk4":
            k2 = by_hand.rate(u + dt / 2 * k1)
            k3 = by_hand.rate(u + dt / 2 * k2)
            k1 = (k1 + 2 * k2 + 2 * k3 + by_hand.rate(u + dt * k3)) / 6
        u = u + dt * k1
    (torch.from_numpy(weight).reshape(u.shape) * u).sum().backward()
    close(final, u.detach().ravel(), 1e-12)
    close(found.initial, u0.grad.ravel(), 1e-10)
    for name, module in (("D", by_hand.D), ("f", by_hand.f)):
        close(found.parameters[name], torch.cat([p.grad.ravel() for p in module.parameters()]), 1e-10)


# -- against UFL -------------------------------------------------------------------------------------------------


def in_ufl(module, *inputs):
    """Linear, tanh, Linear with one output, written out."""
    first, _, last = module
    hidden = [
        ufl.tanh(sum(w.item() * a for w, a in zip(row, inputs, strict=True)) + b.item())
        for row, b in zip(first.weight, first.bias, strict=True)
    ]
    return sum(w.item() * z for w, z in zip(last.weight[0], hidden, strict=True)) + last.bias[0].item()


@pytest.mark.parametrize("mask", [None, lambda x: (x[0] - 0.5) ** 2 + (x[1] - 0.5) ** 2 < 0.2], ids=["box", "disc"])
def test_equal_to_what_ufl_would_make_of_it(mask):
    module = cases.layers(4, 1)
    network = npde.neural(module)
    r = npde.Parameter("r", lambda x: 1 + x[0], field=True)

    def problem(n):
        equation = npde.NPDE(
            flux=lambda u, x, t: ufl.exp(n(u, x[0], r, u.dx(1))) * ufl.grad(u),
            source=lambda u, x, t: n(u, x[0], t, u.dx(0)) * r,
        )
        return npde.FD(equation, npde.Grid(COMM, (8, 7), (0, 0), (1, 1), mask))

    found = []
    for p in (problem(network), problem(lambda *inputs: in_ufl(module, *inputs))):
        state, direction, out = p.new_state(), p.new_state(), np.zeros(p.n_owned)
        inside = p.domain.inside
        p.load(values_of(p) * inside, state)
        p.load(np.cos(np.arange(p.n_owned)) * inside, direction)
        p.rate(0.3, state, out)
        matrix = p.new_matrix()
        p.jacobian(0.3, state, 1.0, 1.0, matrix)
        lin, weights = p.linearised([r]), np.sin(np.arange(p.n_owned)) * inside
        lin.at(0.3, state, direction)
        lin.move({"r": np.cos(3 * np.arange(p.n_owned)) * inside})
        pulled = np.zeros((2, p.n_owned))
        lin.pull("all", weights, pulled[0])
        lin.pull_second("all", weights, pulled[1])
        lin.clear()
        lin.collect_second("all", weights)
        dense = np.real(matrix.convert("dense").getDenseArray())
        found.append([out.copy(), dense, *pulled, lin.gradient()["r"]])
        p.check_diffusion(0.3, values_of(p) * inside)
    for value, expected in zip(*found, strict=True):
        close(value, expected, 1e-12)


def test_negative_diffusion_through_a_network():
    """It is found in the derivative of the network by the slope, too."""
    module = torch.nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        module.weight[:] = torch.tensor([[0.0, -3.0]])
    net = npde.neural(module)
    equation = npde.NPDE(flux=lambda u, x, t: ufl.grad(u) + ufl.as_vector([net(u, u.dx(0))]))
    problem = npde.FD(equation, npde.Grid(COMM, (9,), (0,), (1,)))
    with pytest.raises(ValueError, match="negative diffusion"):
        npde.solve(problem, lambda x: x[0], t=(0, 0.1), dt=0.01)


# -- whole solves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", cases.SCHEMES)
@pytest.mark.parametrize("make", cases.SOLVED)
def test_taylor(make, scheme):
    """By weights, by the initial state, and by everything at once."""
    one = cases.experiment(make, scheme)
    along = {name: one.direction(name) for name in one.controls}
    weights = {name: d for name, d in along.items() if isinstance(one.controls[name], Weights)}
    for first, second in one.taylor([along, weights, {"height": along["height"]}]):
        assert first > 1.95 and second > 2.9


def test_control_on_the_tape_and_minimisation():
    """Weights that made data are found again, as far as the data say."""
    truth, module = cases.layers(1, 1, width=4, seed=3), cases.layers(1, 1, width=4, seed=4)

    def problem(network):
        equation = npde.NPDE(flux=lambda u, x, t: 0.05 * ufl.grad(u), source=lambda u, x, t: network(u))
        return npde.FD(equation, npde.Grid(COMM, (17,), (0,), (1,)))

    net, when = npde.neural(module), {"t": (0, 0.5), "dt": 0.05, "scheme": npde.CrankNicolson()}
    data = npde.solve(problem(npde.neural(truth)), lambda x: x[0], **when).u.values.copy()
    learnt = problem(net)
    with pyadjoint.set_working_tape() as tape:
        pyadjoint.continue_annotation()
        loss = npde.misfit(npde.solve(learnt, lambda x: x[0], **when), data, sigma=0.01)
        pyadjoint.pause_annotation()
        reduced = pyadjoint.ReducedFunctional(loss, pyadjoint.Control(net.weights), tape=tape)
    before = float(loss)
    minimum = npde.minimize(reduced)
    assert minimum.loss < 1e-4 * before
    close(torch.cat([p.detach().ravel() for p in module.parameters()]), minimum.values["net"], 0.0)


# -- what problems must know of networks -------------------------------------------------------------------------


def simple(source, **options):
    return npde.FD(
        npde.NPDE(flux=lambda u, x, t: 0.1 * ufl.grad(u), source=source, **options), npde.Grid(COMM, (9,), (0,), (1,))
    )


def test_what_depends_on_state_and_time():
    net = cases.net(2)
    nonlinear = simple(lambda u, x, t: net(u, x[0]))
    assert nonlinear.varies() == (True, False) and nonlinear.autonomous
    assert nonlinear.matrix_parameters == {"net"}
    forced = simple(lambda u, x, t: net(x[0], t))
    assert forced.varies() == (False, False) and not forced.autonomous
    assert forced.matrix_parameters == set()
    linear = simple(lambda u, x, t: net(x[0], t) * u)
    assert linear.varies() == (False, True) and linear.matrix_parameters == {"net"}


def test_new_weights_and_fields_are_seen():
    """By problems whose network has an input that does not move, too."""
    net, r = cases.net(1), npde.Parameter("r", 1.0, field=True)
    for source, given in ((lambda u, x, t: net(x[0]), net.weights), (lambda u, x, t: net(r), r)):
        problem = simple(source)
        rates, state = np.zeros((3, problem.n_owned)), problem.new_state()
        problem.rate(0.0, state, rates[0])
        problem.rate(0.0, state, rates[1])
        if given is r:
            problem.set_field(r, np.full(problem.n_owned, 2.0))
        else:
            net.weights.value = net.weights.value + 1.0
            problem.update()
        problem.rate(0.0, state, rates[2])
        close(rates[1], rates[0], 0.0)
        assert np.abs(rates[2] - rates[0]).max() > 1e-3


def test_batch_of_linear_solves_with_a_network():
    """A network that drives a linear equation: all samples at once, and one by one."""
    net = cases.net(2)
    problem, scheme = simple(lambda u, x, t: net(x[0], t) - u), npde.CrankNicolson()
    batch = Batch(problem, (0.0, 0.2), 0.05, scheme)
    u0 = np.stack([np.sin(k * problem.coordinates()[:, 0]) for k in (1, 2, 3)])
    _, final = batch.solve(u0)
    weight = np.cos(np.arange(final.size)).reshape(final.shape)
    found = batch.adjoint([net.weights], final=weight)
    total = 0.0
    for k, row in enumerate(u0):
        one, single = recorded(problem, row, t=(0.0, 0.2), dt=0.05, scheme=scheme)
        close(final[k], single, 1e-8)
        total = total + one.by([net.weights]).adjoint(Cotangents(None, weight[k])).parameters["net"]
    close(found.parameters["net"], total, 1e-8)
    assert not Batch.shares(problem, npde.RK4())


# -- errors ------------------------------------------------------------------------------------------------------


def grid():
    return npde.Grid(COMM, (5, 4), (0, 0), (1, 1))


@pytest.mark.parametrize("where", ["damping", "flow", "Dirichlet", "Robin", "derivative", "complex", "manufactured"])
def test_networks_where_none_may_stand(where):
    net, bcs, terms_of = cases.net(1), [], {"source": lambda u, x, t: net(u)}
    everywhere = lambda x: np.ones(x.shape[1], dtype=bool)  # noqa: E731
    match where:
        case "damping":
            terms_of["damping"] = lambda x, t: net(x[0])
        case "Dirichlet":
            bcs = [npde.Dirichlet(lambda x, t: net(x[0]), everywhere)]
        case "Robin":
            bcs = [npde.Robin(1.0, lambda x, t: net(x[0]), everywhere)]
        case "derivative":
            terms_of["source"] = lambda u, x, t: net(u).dx(0)
        case "complex":
            terms_of = {"source": lambda u, x, t: net(ufl.real(u)) * u, "dtype": complex}
        case "flow":
            terms_of["flow"] = lambda u, x, t, dt: net(u)
    equation = npde.NPDE(**terms_of)
    if where == "manufactured":
        diffusion = npde.NPDE(flux=lambda u, x, t: net(u) * ufl.grad(u))
        equation = npde.equation.manufactured(diffusion, lambda x, t: ufl.sin(x[0]) * t)
    with pytest.raises(ValueError, match="network"):
        problem = npde.FD(equation, grid(), bcs)
        npde.solve(problem, 0.1, t=(0, 0.1), dt=0.1, scheme=npde.Strang() if where == "flow" else None)


def test_networks_in_integrals_and_initial_data():
    net = cases.net(1)
    problem = npde.FD(npde.NPDE(source=lambda u, x, t: net(u)), grid())
    with pytest.raises(ValueError, match="network"):
        problem.write_integral(lambda u, x, t: net(u))
    with pytest.raises(ValueError, match="network"):
        problem.write_nodal(lambda x, t: net(x[0]))


def test_directions_of_another_shape():
    net = cases.net(1)
    lin = simple(lambda u, x, t: net(u)).linearised([net.weights])
    with pytest.raises(ValueError, match="delta of 'net': shape"):
        lin.move({"net": np.zeros(3)})
    with pytest.raises(ValueError, match="the controls are"):
        lin.move({"nets": np.zeros(3)})
