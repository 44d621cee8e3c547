"""Reactions: flows against an ODE solver, derivatives, inverses, stock modules, and the same in UFL on a grid."""

import copy

import npde_fem as npde
from npde_fem.networks.reactions import (
    Identity,
    Neural,
    Polynomial,
    ReLU,
    Residual,
    Sigmoid,
    Tanh,
    reaction_named,
)

import numpy as np
import pytest
import torch
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from scipy.integrate import solve_ivp
from torch import nn

F64 = torch.float64
DT = 0.3


def neural(channels=2, hidden=(5, 4)):
    torch.manual_seed(2)
    return Neural(hidden, channels, dtype=F64)


def polynomial(coefficients, **options):
    return Polynomial(coefficients, dtype=F64, **options)


FLOWS = {
    "identity": Identity(),
    "logistic": Sigmoid(driven=False),
    "tanh flow": Tanh(driven=False),
    "constant": polynomial([0.3]),
    "linear": polynomial([0.3, -0.7]),
    "real roots": polynomial([0.1, 0.5, -1.0]),
    "double root": polynomial([0.0, 0.0, -0.4]),
    "no root": polynomial([0.5, 0.2, 0.4]),
    "cubic": polynomial([0.05, 1.0, 0.1, -1.0]),
    "quintic": polynomial([0.1, -0.4, 0.0, -0.1, 0.0, -0.1]),
    "each its own": polynomial([[0.0, 0.5, -0.3, 0.1], [0.2, 0.0, -0.3, -0.2]]),
}
MAPS = {
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "relu": ReLU(),
    "residual": Residual(polynomial([0.0, 1.0, 0.0, -1.0])),
    "residual module": Residual(nn.Tanh()),
    "neural": neural(),
    **{name: reaction_named(name) for name in ("leaky_relu", "elu", "softplus", "gelu", "silu")},
    "gelu by tanh": reaction_named(nn.GELU(approximate="tanh")),
    "steep softplus": reaction_named(nn.Softplus(beta=3.0, threshold=2.0)),
}
ALL = FLOWS | MAPS


def by_name(cases):
    return pytest.mark.parametrize("reaction", cases.values(), ids=cases.keys())


def states(low=-0.9, high=0.9, channels=2):
    """Values of both signs, (batch, channels, points)."""
    flat = torch.linspace(low, high, 6 * channels, dtype=F64)
    return flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))].reshape(2, channels, 3)


def close(a, b, tolerance):
    assert a.shape == b.shape
    assert torch.max(torch.abs(a - b)) <= tolerance


# -- flows ---------------------------------------------------------------------------------------------------


@by_name(FLOWS)
def test_flow_is_that_of_its_rate(reaction):
    """The solution of u' = rate(u), by another method."""
    u = states()

    def rate(t, y):
        return reaction.rate(torch.from_numpy(y).reshape(u.shape)).detach().numpy().ravel()

    solved = solve_ivp(rate, (0, DT), u.numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    close(reaction(u, DT), torch.from_numpy(solved).reshape(u.shape), 1e-9)


@by_name(FLOWS)
def test_flows_make_a_semigroup(reaction):
    u = states()
    close(reaction(u, 0.0), u, 1e-15)
    close(reaction(reaction(u, 0.1), 0.15), reaction(u, 0.25), 2e-12)


def test_taylor_series_is_as_exact_as_it_says():
    """Below 1e-10 for dt |f'| = 0.5, where the order counts."""
    u = torch.linspace(-1.0, 1.0, 9, dtype=F64)
    coefficients = [0.0, 1.0, 0.0, -1.0]  # |f'| <= 2, and the flow of Allen and Cahn's equation
    dt = 0.25

    def error(substeps):
        exact = u / torch.sqrt(u**2 + (1 - u**2) * np.exp(-2 * dt))
        return torch.max(torch.abs(polynomial(coefficients, substeps=substeps)(u, dt) - exact)).item()

    assert error(2) < 1e-10
    assert polynomial(coefficients).substeps == 2
    coarse = [
        torch.max(torch.abs(polynomial(coefficients, order=p)(u, dt) - polynomial(coefficients)(u, dt))).item()
        for p in (2, 4, 6)
    ]
    assert coarse[0] > 5 * coarse[1] > 25 * coarse[2] > 0


def test_quadratic_reaction_is_the_logistic():
    u = states(0.05, 0.95)
    close(polynomial([0.0, 1.0, -1.0])(u, 2.0), Sigmoid(driven=False)(u, 2.0), 1e-13)
    close(polynomial([1.0, 0.0, -1.0])(u, 2.0), Tanh(driven=False)(u, 2.0), 1e-13)
    close(Sigmoid(driven=False)(u, 2.0), torch.sigmoid(torch.logit(u) + 2.0), 1e-14)
    close(Tanh(driven=False)(u, 2.0), torch.tanh(torch.atanh(u) + 2.0), 1e-14)


def test_riccati_is_smooth_where_the_discriminant_vanishes():
    """The branches of T meet, in values and in gradients, also exactly at 0."""
    u = torch.tensor([0.4], dtype=F64)
    for s in (1e-3, -1e-3):
        values = []
        for q in (s * (1 - 1e-9), s * (1 + 1e-9)):
            reaction = polynomial([-q, 0.0, 1.0])
            value = reaction(u, 1.0)
            value.sum().backward()
            values.append((value.item(), *reaction.coefficients.grad.tolist()))
        assert np.allclose(*values, rtol=0, atol=1e-10)
    reaction = polynomial([0.0, 0.0, 0.0])
    reaction(u, 1.0).sum().backward()
    assert np.allclose(reaction.coefficients.grad, [1.0, 0.4, 0.16], atol=1e-14)


@pytest.mark.parametrize("reaction, stock", [(Sigmoid(), torch.sigmoid), (Tanh(), torch.tanh)])
def test_driven_activations_solve_their_equation(reaction, stock):
    """v' = z f(v) from ``start`` is at v = sigma(z), or tanh(z), at time 1."""
    z = torch.linspace(-3, 3, 7, dtype=F64)

    def rate(t, v):
        return reaction.rate(torch.from_numpy(v), z).numpy()

    solved = solve_ivp(rate, (0, 1), np.full(7, reaction.start), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    close(torch.from_numpy(solved), reaction(z), 1e-9)
    close(reaction(z), stock(z), 0.0)


# -- derivatives and inverses ----------------------------------------------------------------------------------


@by_name(ALL)
def test_derivative_is_that_of_the_map(reaction):
    u = states().requires_grad_()
    slope = reaction.derivative(u.detach(), DT)
    step = 1e-6
    if reaction.componentwise:
        (exact,) = torch.autograd.grad(reaction(u, DT).sum(), u, materialize_grads=True)
        differences = (reaction(u + step, DT) - reaction(u - step, DT)) / (2 * step)
    else:
        rows = [torch.autograd.grad(reaction(u, DT)[:, i].sum(), u)[0] for i in range(2)]
        exact = torch.stack(rows, dim=1)
        ways = [torch.zeros_like(u).index_fill(1, torch.tensor([j]), step) for j in range(2)]
        differences = torch.stack([(reaction(u + w, DT) - reaction(u - w, DT)) / (2 * step) for w in ways], dim=2)
    close(slope, exact, 1e-13)
    close(slope, differences.detach(), 1e-8)


@by_name(ALL)
def test_inverse_undoes_the_map(reaction):
    u = states()
    if not reaction.invertible:
        with pytest.raises(ValueError, match=f"{reaction.name}.*no inverse"):
            reaction.inverse(u, DT)
        return
    close(reaction.inverse(reaction(u, DT), DT), u, 1e-12)


def test_inverse_of_a_residual_step_has_its_gradient():
    reaction = neural()
    v = reaction(states(), DT).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(reaction.inverse(v, DT)[:, 0].sum(), v)
    slope = reaction.derivative(states(), DT).movedim((1, 2), (-2, -1))
    close(gradient, torch.linalg.inv(slope)[..., 0, :].movedim(-1, 1), 1e-12)
    assert torch.autograd.grad(reaction.inverse(v, DT).sum(), reaction.f.inner[0].weight)[0].abs().max() > 1e-3


def test_inverse_refuses_a_step_that_folds():
    reaction = Residual(polynomial([0.0, 0.0, 0.0, -1.0]))  # u - dt u^3 turns back at u = 1 / sqrt(3 dt)
    v = reaction(states(), 0.1)
    close(reaction.inverse(v, 0.1), states(), 1e-12)
    with pytest.raises(ValueError, match=r"residual polynomial.*dt = 2.*not positive at .* points.*shorter"):
        reaction.inverse(v, 2.0)
    with pytest.raises(ValueError, match="did not converge|not positive"):
        Residual(nn.ReLU()).inverse(torch.tensor([float("nan")], dtype=F64), 0.1)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu", "gelu", "elu"])
def test_what_has_no_rate_says_why(name):
    reaction = reaction_named(name)
    for ask in (lambda: reaction.rate(states()), lambda: reaction.source(ufl.as_ufl(1.0)), lambda: Residual(reaction)):
        with pytest.raises(ValueError, match=f"reaction '{name}' has no rate.*: it"):
            ask()


# -- torch and UFL -----------------------------------------------------------------------------------------------


@by_name(ALL)
def test_as_torch_is_the_same(reaction):
    u = states(-4.0, 4.0) if reaction.name in ("sigmoid", "tanh", "gelu") else states()
    module = reaction.as_torch(DT)
    close(module(u), reaction(u, DT), 1e-14)
    shared = {id(p) for p in reaction.parameters()} & {id(p) for p in module.parameters()}
    assert not shared


def test_as_torch_is_stock_where_torch_has_it():
    kinds = {"identity": nn.Identity, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
    for name, kind in kinds.items():
        assert type(reaction_named(name).as_torch()) is kind
    layers = [m for m in neural().as_torch(0.1).branch.modules() if not list(m.children())]
    assert [type(m) for m in layers] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]


def on_grid(reaction, values, dt):
    """Values (components, points) after the reaction's flow, by the kernel that finite differences compile."""
    m, n = values.shape
    equation = npde.NPDE(components=m, flow=lambda u, x, t, dt: reaction.flow(u, dt), name=reaction.name)
    problem = npde.FD(equation, npde.Grid(MPI.COMM_SELF, (n,), (0.0,), (1.0,)))
    start = problem.initial(0.0 if m == 1 else (0.0,) * m)
    start[...] = values.T.reshape(start.shape)
    state, out = problem.new_state(), np.zeros_like(start)
    problem.load(start, state)
    problem.flow(0.0, dt, state, out)
    return out.reshape(n, m).T


@by_name(ALL)
def test_ufl_is_the_same_on_a_grid(reaction):
    u = torch.linspace(-0.9, 0.9, 12, dtype=F64).reshape(2, 6)
    found = on_grid(reaction, u.numpy(), DT)
    assert np.abs(found - reaction(u[None], DT)[0].detach().numpy()).max() < 1e-13


@pytest.mark.parametrize("reaction", [ALL["cubic"], neural()], ids=["cubic", "neural"])
def test_ufl_is_the_same_on_a_mesh(reaction):
    space = fem.functionspace(mesh.create_unit_interval(MPI.COMM_SELF, 5), ("Lagrange", 1, (2,)))
    problem = npde.FEM(npde.NPDE(components=2, flow=lambda u, x, t, dt: reaction.flow(u, dt)), space)
    start = problem.initial(lambda x: np.stack([x[0] - 0.5, 0.9 - x[0] ** 2]))
    state, out = problem.new_state(), np.zeros_like(start)
    problem.load(start, state)
    problem.flow(0.0, DT, state, out)
    u = torch.from_numpy(np.array(start).reshape(-1, 2))
    assert np.abs(out.reshape(-1, 2) - reaction(u, DT).detach().numpy()).max() < 1e-13


def one_channel():
    own = {name: r for name, r in ALL.items() if name in ("logistic", "cubic", "relu", "residual")}
    return own | {"neural": neural(1, (6,)), "its own": polynomial([[0.0, 1.0, -1.0]])}


@by_name(one_channel())
def test_ufl_of_one_channel_is_scalar(reaction):
    u = torch.linspace(-0.9, 0.9, 7, dtype=F64).reshape(1, 7)
    found = on_grid(reaction, u.numpy(), DT)
    assert np.abs(found - reaction(u[None], DT)[0].detach().numpy()).max() < 1e-13


def test_saturated_activations_stay_finite():
    """Far out, where e^-u overflows, and where torch's softplus is linear by decree."""
    u = torch.tensor([[-800.0, -40.0, -5.0, 5.0, 30.0, 800.0]], dtype=F64)
    for name in ("sigmoid", "tanh", "softplus", "silu", "elu", "gelu"):
        reaction = reaction_named(name)
        assert np.allclose(on_grid(reaction, u.numpy(), DT), reaction(u, DT), rtol=1e-13, atol=1e-15), name


@pytest.mark.parametrize("reaction", [neural(1, (4,)), polynomial([0.1, 1.0, 0.0, -1.0])], ids=["neural", "cubic"])
def test_source_in_ufl_is_the_rate(reaction):
    """Forward Euler of u_t = f(u), by the equation and by hand."""
    equation = npde.NPDE(source=lambda u, x, t: reaction.source(u))
    problem = npde.FD(equation, npde.Grid(MPI.COMM_SELF, (5,), (0.0,), (1.0,)))
    u = torch.linspace(-0.5, 0.5, 5, dtype=F64).reshape(1, 1, 5)
    u0 = problem.initial(lambda x: x[0] - 0.5)
    found = npde.solve(problem, u0, t=(0, 0.1), dt=0.1, scheme=npde.ForwardEuler()).values
    assert np.allclose(found.ravel(), (u + 0.1 * reaction.rate(u)).detach().ravel(), atol=1e-14)


def test_equation_has_the_values_of_when_it_was_written():
    reaction = polynomial([0.0, -1.0])
    u = np.ones((1, 3))
    assert np.allclose(on_grid(reaction, u, 1.0), np.exp(-1.0), atol=1e-14)
    twin = copy.deepcopy(reaction)
    with torch.no_grad():
        reaction.coefficients[1] = -2.0
    assert np.allclose(on_grid(reaction, u, 1.0), np.exp(-2.0), atol=1e-14)
    assert np.allclose(on_grid(twin, u, 1.0), np.exp(-1.0), atol=1e-14)


def test_convolutions_of_size_one_are_pointwise():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Tanh(), nn.Conv1d(3, 2, 1, bias=False)).double()
    reaction, u = Residual(branch), torch.linspace(-0.9, 0.9, 12, dtype=F64).reshape(2, 6)
    assert np.abs(on_grid(reaction, u.numpy(), DT) - reaction(u[None], DT)[0].detach().numpy()).max() < 1e-13


# -- training --------------------------------------------------------------------------------------------------


def test_polynomial_learns_a_reaction():
    """From the identity to u - u^3, from states before and after."""
    torch.manual_seed(0)
    truth, learnt = polynomial([0.0, 1.0, 0.0, -1.0]), Polynomial(degree=3, dtype=F64)
    u = torch.linspace(-1.3, 1.3, 40, dtype=F64)
    after = truth(u, 0.2).detach()
    optimiser = torch.optim.LBFGS(
        learnt.parameters(), max_iter=200, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        loss = torch.mean((learnt(u, 0.2) - after) ** 2)
        loss.backward()
        return loss

    optimiser.step(closure)
    close(learnt.coefficients.detach(), truth.coefficients.detach(), 1e-5)


def test_any_shape_and_type_where_componentwise():
    for name in ("relu", "logistic", "polynomial"):
        reaction = reaction_named(name)
        value = reaction(torch.rand(3, 1) if name == "polynomial" else torch.rand(()), 0.1)
        assert value.dtype == torch.float32
    assert Polynomial(degree=2)(torch.rand(4, 2, 3, 5), 0.1).shape == (4, 2, 3, 5)
    assert neural()(torch.rand(3, 2, dtype=F64), 0.1).shape == (3, 2)
    assert not any(p.requires_grad for p in Polynomial(degree=2, trainable=False).parameters())


# -- by name, and what is refused ----------------------------------------------------------------------------------


def test_reactions_by_name_and_by_activation():
    assert isinstance(reaction_named("relu"), ReLU)
    assert isinstance(reaction_named(nn.Tanh()), Tanh) and reaction_named(nn.Tanh()).driven
    assert not reaction_named("logistic").driven
    assert reaction_named("polynomial", 3).coefficients.shape == (3, 4)
    reaction = neural()
    assert reaction_named(reaction) is reaction
    for name in ("identity", "sigmoid", "tanh", "relu", "logistic", "tanh_flow", "elu", "softplus", "gelu", "silu"):
        assert reaction_named(name).name == name
    u = torch.linspace(-2, 2, 5)
    assert torch.equal(reaction_named(nn.LeakyReLU(0.2))(u), nn.LeakyReLU(0.2)(u))


def test_unknown_reactions_are_refused():
    with pytest.raises(ValueError, match=r"'rellu' \('relu' meant\?\).*identity.*nn.GELU"):
        reaction_named("rellu")
    for other in (nn.PReLU(), nn.Conv1d(1, 1, 3), 3, None, nn.ReLU):
        with pytest.raises(ValueError, match="unknown reaction or activation.*allowed: identity"):
            reaction_named(other)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Polynomial(), "coefficients or a degree"),
        (lambda: Polynomial([1.0], degree=2), "coefficients or a degree"),
        (lambda: Polynomial(degree=-1), "degree -1 given"),
        (lambda: Polynomial([0.0, np.nan]), "finite"),
        (lambda: Polynomial([[0.0, 1.0]], channels=2), "for 1 channels given, 2 allowed"),
        (lambda: Polynomial(degree=3, substeps=0), "substeps 0 given"),
        (lambda: Polynomial(degree=3, channels=2)(torch.rand(1, 3)), "2 channels"),
        (lambda: Neural((0,)), "positive integers"),
        (lambda: Residual(nn.Conv2d(1, 1, 3)), "not pointwise"),
        (lambda: Residual(nn.Sequential(nn.Conv1d(2, 2, 1), nn.Linear(2, 2))), "one of them"),
        (lambda: Residual(nn.Softmax(dim=1)), "unknown activation Softmax"),
        (lambda: neural().source(ufl.as_vector([1.0, 2.0, 3.0])), "for 3 channels; 2 allowed"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="a reaction or a torch module"):
        Residual(3)
