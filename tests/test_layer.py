"""The torch layer: derivatives of every kind of solve by every kind of input, and equality with other ways to them."""

import npde_fem as npde
from npde_fem import learn
from npde_fem.optimize.values import as_array

import numpy as np
import pyadjoint
import pytest
import torch
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

COMM = MPI.COMM_WORLD
KINDS = ("fem", "fd")
CELLS, END, DT = 5, 0.1, 0.05
POINTS = [0.33, 0.71]
FIRST_ORDER = [
    "forward-euler",
    "rk4",
    "backward-euler",
    "crank-nicolson",
    "implicit-midpoint",
    "sdirk2",
    "imex",
    "strang",
]


def discretise(kind, equation, bcs=(), cells=CELLS):
    if kind == "fd":
        return npde.FD(equation, npde.Grid(COMM, (cells + 1,), (0,), (1,)), bcs)
    space = fem.functionspace(mesh.create_unit_interval(COMM, cells), ("Lagrange", 1, equation.shape))
    return npde.FEM(equation, space, bcs)


def left(x):
    return np.isclose(x[0], 0)


def growth(kind, **terms):
    """Diffusion D and growth r u (1 - u), a field as source, a number as boundary data that moves."""
    D, r, g = npde.Parameter("D", 0.05), npde.Parameter("r", 0.8), npde.Parameter("g", 0.3)
    s = npde.Parameter("s", lambda x: 0.1 + 0.2 * x[0], field=True)
    logistic = npde.physics.fisher_kpp(D, r).flow
    equation = npde.NPDE(
        flux=lambda u, x, t: D * ufl.grad(u) + s * x,
        source=lambda u, x, t: r * u * (1 - u),
        flow=logistic,
        **terms,
    )
    return discretise(kind, equation, [npde.Dirichlet(lambda x, t: g * (1 + t), left)])


def tensors(*shapes, dtype=torch.float64, seed=0):
    """Leaves with values between 0.2 and 0.8."""
    rng = torch.Generator().manual_seed(seed)
    made = [0.2 + 0.6 * torch.rand(shape, dtype=torch.float64, generator=rng) for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in made]


def function_of(layer, count):
    """The layer as a function of its inputs, ``count`` of them, and its weights; and these weights as leaves."""
    names = [name for name, _ in layer.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def call(*given):
        return functional_call(layer, dict(zip(names, given[count:], strict=True)), given[:count])

    return call, weights


def assert_derivatives(layer, *inputs, modes=True):
    call, weights = function_of(layer, len(inputs))
    # Iterative solvers give the same to their tolerance.
    common = {"nondet_tol": 1e-9, "fast_mode": True}
    assert gradcheck(call, (*inputs, *weights), check_forward_ad=modes, **common)
    assert gradgradcheck(call, (*inputs, *weights), check_fwd_over_rev=modes, **common)


# -- derivatives -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", FIRST_ORDER)
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind, scheme):
    """Of states on the way and at the end by the initial state, a field, boundary data, and trained numbers."""
    problem = growth(kind)
    made = npde.scheme_named(scheme)
    # FEM's stability limit of explicit schemes lies lower.
    times = {"t": (0, END), "dt": DT / 2 if made.is_explicit else DT, "scheme": made}
    layer = learn.Layer(problem, **times, inputs=("u0", "s", "g"), observe=[DT, END], bounded=True)
    assert set(layer.state_dict()) == {"D", "r"}
    assert_derivatives(layer, *tensors(6, 6, ()), modes=scheme in ("crank-nicolson", "rk4"))


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_adaptive_and_checkpointed_solves(kind):
    """A solve that keeps one state has the gradient of one that keeps all; steps that adapt are frozen."""
    problem = growth(kind)
    times = {"t": (0, END), "scheme": npde.SDIRK2(), "inputs": ("u0", "s", "g")}
    inputs = tensors(6, 6, ())
    found = []
    for checkpoints in (None, 1):
        layer = learn.Layer(problem, dt=npde.Adaptive(rtol=1e-2, first=0.02), checkpoints=checkpoints, **times)
        loss = layer(*inputs).square().sum()
        (slope,) = torch.autograd.grad(loss, inputs[0], retain_graph=True)
        (again,) = torch.autograd.grad(loss, inputs[0])
        torch.testing.assert_close(slope, again, rtol=1e-12, atol=1e-14)
        found.append(slope)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_signals(kind):
    problem = growth(kind)
    probe = npde.Probe(problem, POINTS)
    for observe, shape in ((probe, (2, 1)), (([DT, END], probe), (2, 2, 1)), (([DT], probe), (1, 2, 1))):
        layer = learn.Layer(problem, (0, END), DT, observe=observe, parameters=["r"])
        (u0,) = tensors(6)
        assert layer(u0).shape == shape
        assert_derivatives(layer, u0)


@pytest.mark.parametrize("scheme", ["newmark", "leapfrog"])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_waves(kind, scheme):
    """By initial state and velocity, of both, with damping and data that moves."""
    c, b, g = npde.Parameter("c", 0.9), npde.Parameter("b", 0.3), npde.Parameter("g", 0.3)
    problem = discretise(kind, npde.physics.wave(c, b), [npde.Dirichlet(lambda x, t: g * (1 + t), left)])
    arguments = {"scheme": npde.scheme_named(scheme), "inputs": ("u0", "velocity", b), "with_velocity": True}
    layer = learn.Layer(problem, (0, 0.1), 0.05, observe=[0.05, 0.1], **arguments)
    state, velocity = layer(*tensors(6, 6, ()))
    assert state.shape == velocity.shape == (2, 6)
    assert_derivatives(layer, *tensors(6, 6, ()), modes=False)
    layer = learn.Layer(problem, (0, 0.1), 0.05, **arguments, parameters=[])
    assert_derivatives(layer, *tensors(6, 6, ()))


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_stationary_states(kind):
    k, s = npde.Parameter("k", 0.5), npde.Parameter("s", lambda x: 1 + x[0], field=True)
    equation = npde.NPDE(flux=lambda u, x, t: (1 + k * u**2) * ufl.grad(u), source=lambda u, x, t: s, damping=0)
    layer = learn.Layer(discretise(kind, equation, [npde.Dirichlet(0.2, left)]), inputs="s")
    assert_derivatives(layer, *tensors(6))


@pytest.mark.parametrize("scheme", ["crank-nicolson", "strang", "relaxation"])
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_complex_states(kind, scheme):
    V, g = npde.Parameter("V", lambda x: x[0], field=True), npde.Parameter("g", 0.7)
    two = scheme == "relaxation"
    make = npde.physics.relaxed_schrodinger if two else npde.physics.schrodinger
    problem = discretise(kind, make(lambda x, t: V, g=g))
    probe = npde.Probe(problem, POINTS)
    layer = learn.Layer(problem, (0, 0.02), 0.01, npde.scheme_named(scheme), inputs=("u0", V), observe=([0.02], probe))
    (psi,) = tensors(problem.n_owned // 2, dtype=torch.complex128)
    signals = layer(psi, *tensors(6))
    assert signals.dtype == torch.complex128 and signals.shape == (1, 2, 2 if two else 1)
    assert_derivatives(layer, psi, *tensors(6, seed=1), modes=False)
    assert layer(psi.detach().to(torch.complex64), *tensors(6, dtype=torch.float32)).dtype == torch.complex64


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_initial_data_in_symbols(kind):
    problem = growth(kind)
    h = npde.Parameter("h", 0.4)
    layer = learn.Layer(problem, (0, END), DT, inputs=(), u0=npde.Initial(lambda x: h * (1 + x[0])), parameters=["h"])
    assert_derivatives(layer)


# -- batches -----------------------------------------------------------------------------------------------------


def heat(kind):
    """A linear problem, whose samples share a factorisation where source and boundary data differ."""
    D, g = npde.Parameter("D", 0.3), npde.Parameter("g", 0.3)
    s = npde.Parameter("s", lambda x: 0.1 + 0.2 * x[0], field=True)
    equation = npde.NPDE(flux=lambda u, x, t: D * ufl.grad(u), source=lambda u, x, t: s * (1 + t))
    return discretise(kind, equation, [npde.Dirichlet(lambda x, t: g * (1 + t), left)])


@pytest.mark.parametrize("make", [growth, heat], ids=["nonlinear", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches(kind, make):
    """A batch is its samples one by one, whichever inputs have rows; shared inputs get the sum of their gradients."""
    layer = learn.Layer(make(kind), (0, END), DT, inputs=("u0", "s", "g"), observe=[DT, END], parameters=["D"])
    u0, s, g = tensors((3, 6), 6, 3)
    weights = torch.linspace(1, 2, 36, dtype=torch.float64).view(3, 2, 6)
    for inputs in (
        (u0, s, g),
        (u0[0].detach().requires_grad_(), s, g),
        (u0, s, torch.tensor(0.4, dtype=torch.float64)),
    ):
        one_by_one = [
            layer(*(x[b] if x.ndim > rank else x for x, rank in zip(inputs, (1, 1, 0), strict=True))) for b in range(3)
        ]
        together = layer(*inputs)
        assert together.shape == (3, 2, 6)
        torch.testing.assert_close(together, torch.stack(one_by_one), rtol=1e-10, atol=1e-12)
        leaves = [x for x in inputs if x.requires_grad] + list(layer.parameters())
        expected = torch.autograd.grad((torch.stack(one_by_one) * weights).sum(), leaves)
        for found, wanted in zip(torch.autograd.grad((together * weights).sum(), leaves), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("make", [growth, heat], ids=["nonlinear", "linear"])
def test_derivatives_of_batches(make):
    layer = learn.Layer(make("fd"), (0, END), DT, inputs=("u0", "s", "g"), parameters=["D"])
    assert_derivatives(layer, *tensors((2, 6), 6, 2))


# -- other ways to the same ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_pyadjoint(kind):
    problem, data = growth(kind), np.array([[0.2, 0.4], [0.5, 0.1]])
    start = 0.4 + 0.1 * np.sin(np.arange(problem.n_owned))
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        pyadjoint.continue_annotation()
        solution = npde.solve(problem, start, (0, END), DT, observe=[DT, END])
        loss = npde.misfit(solution, data, at=np.array(POINTS)[:, None], sigma=0.5)
        pyadjoint.pause_annotation()
        controls = list(problem.parameters.values())
        reduced = pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(c) for c in controls], tape=tape)
    layer = learn.Layer(problem, (0, END), DT, observe=([DT, END], npde.Probe(problem, POINTS)))
    found = 0.5 * ((layer(torch.from_numpy(start))[..., 0] - torch.from_numpy(data)) / 0.5).square().sum()
    found.backward()
    assert found.item() == pytest.approx(float(loss), rel=1e-12)
    for control, slope in zip(controls, reduced.derivative(), strict=True):
        expected = as_array(slope)
        assert np.abs(expected).max() > 1e-4
        mine = getattr(layer, control.name).grad.numpy()
        np.testing.assert_allclose(mine, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


def test_values_and_gradients_are_those_of_finite_differences_in_torch():
    """Fisher-KPP on a grid by forward Euler; no flux through the boundary, so that outer neighbours are mirrored."""
    D, r = npde.Parameter("D", 0.02), npde.Parameter("r", 1.5)
    n, dt, steps = 9, 0.02, 10
    problem = npde.FD(npde.physics.fisher_kpp(D, r), npde.Grid(COMM, (n, n), (0, 0), (1, 1)))
    layer = learn.Layer(problem, (0, steps * dt), dt, npde.ForwardEuler(), observe=[steps * dt / 2, steps * dt])
    (u0,) = tensors((n, n))
    mirrored = torch.tensor([1, *range(n), n - 2])

    def rollout(u, d, rate):
        seen = []
        for step in range(steps):
            wide = u[mirrored][:, mirrored]
            neighbours = wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:]
            u = u + dt * (d * (neighbours - 4 * u) * (n - 1) ** 2 + rate * u * (1 - u))
            if step in (steps // 2 - 1, steps - 1):
                seen.append(u)
        return torch.stack(seen)

    # Points of a grid are in the order of a flattened array, the first axis x being the fastest.
    order = problem.layout.slice_global(np.arange(n * n).reshape(n, n), "order", 1)
    d, rate = layer.D.detach().clone().requires_grad_(), layer.r.detach().clone().requires_grad_()
    expected = rollout(u0, d, rate).reshape(2, -1)[:, order]
    found = layer(u0.reshape(-1)[order])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    leaves = torch.autograd.grad(expected.pow(3).sum(), (u0, d, rate))
    for mine, wanted in zip(torch.autograd.grad(found.pow(3).sum(), (u0, layer.D, layer.r)), leaves, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)


# -- networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_networks_in_the_equation_are_trained_in_place(kind):
    torch.manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double()
    net = npde.neural(module, "net")
    D = npde.Parameter("D", 0.05)
    equation = npde.NPDE(flux=lambda u, x, t: D * ufl.grad(u), source=lambda u, x, t: net(u))
    layer = learn.Layer(discretise(kind, equation), (0, END), DT)
    assert layer.net is module and set(layer.state_dict()) == {"D", *(f"net.{k}" for k in module.state_dict())}
    (u0,) = tensors(6)
    parameters = list(layer.parameters())
    slopes = torch.autograd.grad(layer(u0).square().sum(), parameters)
    for p, slope in zip(parameters, slopes, strict=True):
        direction, h = torch.randn_like(p), 1e-5
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                p += sign * h * direction
                ends.append(layer(u0).square().sum())
                p -= sign * h * direction
        assert (slope * direction).sum().item() == pytest.approx(((ends[0] - ends[1]) / (2 * h)).item(), rel=1e-6)
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
    before, losses = [p.detach().clone() for p in module.parameters()], []
    for _ in range(5):
        optimiser.zero_grad()
        losses.append((layer(u0) - 0.9).square().sum())
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < losses[0]
    assert not any(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    np.testing.assert_array_equal(net.weights.value, layer.as_tensor_of("net").detach().numpy())
