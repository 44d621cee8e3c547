"""Equations as layers: coefficients and reactions of the named equations, UFL in torch, and what is refused."""

import copy

import npde_fem as npde
from npde_fem import physics
from npde_fem.networks.reactions import FromEquation, Identity, ReLU
from npde_fem.networks.reactions.from_equation import coefficients_of, torch_function
from npde_fem.nonlocal_terms import Stencil
from npde_fem.parameter import abstract_domain

import basix.ufl
import numpy as np
import pytest
import torch
import ufl
from mpi4py import MPI
from scipy.integrate import solve_ivp

F64 = torch.float64
H, DT = (0.1, 0.2), 0.01
EYE = np.eye(2)


def read(equation, dim=2):
    return coefficients_of(equation, dim, H[:dim], DT)


def flow_on_grid(reaction, values, dt):
    """Values (components, points) after the reaction's UFL flow, by a kernel of finite differences."""
    m, n = values.shape
    equation = npde.NPDE(components=m, flow=lambda u, x, t, dt: reaction.flow(u, dt))
    problem = npde.FD(equation, npde.Grid(MPI.COMM_SELF, (n,), (0.0,), (1.0,)))
    start = problem.initial(0.0 if m == 1 else (0.0,) * m)
    start[...] = values.T.reshape(start.shape)
    state, out = problem.new_state(), np.zeros_like(start)
    problem.load(start, state)
    problem.flow(0.0, dt, state, out)
    return out.reshape(n, m).T


def numbers(reaction):
    return {name: p.item() for name, p in reaction.numbers.items()}


# -- the named equations, by hand ----------------------------------------------------------------------------------


def test_heat_is_a_convolution():
    tensor = ((1.0, 0.25), (0.35, 2.0))
    coefficients, reaction = read(physics.heat(tensor, npde.Parameter("s", 3.0)))
    assert isinstance(reaction, Identity)
    assert np.allclose(coefficients.diffusion, [[[[1.0, 0.3], [0.3, 2.0]]]], atol=1e-15)  # its symmetric part acts
    assert np.allclose(coefficients.source, [3.0]) and coefficients.spacing == H and coefficients.dt == DT
    assert not coefficients.mass.any() and not coefficients.drift.any() and not coefficients.rest.any()
    assert coefficients.rest.shape == (1, 1, 3, 3)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_heat_in_all_dimensions(dim):
    coefficients, _ = coefficients_of(physics.heat(0.5), dim, 0.1, 0.01)
    assert np.array_equal(coefficients.diffusion, 0.5 * np.eye(dim)[None, None])


def test_fisher_kpp_keeps_its_flow_and_its_numbers():
    d, r, k = npde.Parameter("D", 0.3), npde.Parameter("r", 2.0), npde.Parameter("K", 1.5)
    coefficients, reaction = read(physics.fisher_kpp(d, r, k))
    assert np.allclose(coefficients.diffusion, 0.3 * EYE) and not coefficients.mass.any()
    assert isinstance(reaction, FromEquation) and reaction.is_flow and reaction.componentwise
    assert numbers(reaction) == {"r": 2.0, "K": 1.5} and reaction.name == "fisher-kpp"
    u = torch.linspace(0.1, 1.2, 6, dtype=F64)
    growth = np.exp(2.0 * 0.3)
    assert torch.allclose(reaction(u, 0.3), growth * u / (1 + (growth - 1) * u / 1.5), rtol=1e-14)
    assert torch.allclose(reaction.rate(u), 2.0 * u * (1 - u / 1.5), rtol=1e-14)
    assert torch.allclose(reaction(reaction(u, 0.1), 0.2), reaction(u, 0.3), rtol=0, atol=1e-14)
    assert torch.allclose(reaction.inverse(reaction(u, 0.3), 0.3), u, rtol=0, atol=1e-13)


def test_allen_cahn():
    coefficients, reaction = read(physics.allen_cahn(npde.Parameter("eps", 0.2)))
    assert np.allclose(coefficients.diffusion, 0.04 * EYE)
    assert reaction.is_flow and not numbers(reaction)
    u = torch.linspace(-0.9, 0.9, 7, dtype=F64)
    solved = solve_ivp(lambda t, y: y - y**3, (0, 0.5), u.numpy(), method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    assert np.allclose(reaction(u, 0.5), solved, rtol=0, atol=1e-9)


def test_gray_scott_is_a_residual_step():
    f, k = npde.Parameter("feed", 0.04), npde.Parameter("kill", 0.06)
    coefficients, reaction = read(physics.gray_scott(2e-5, 1e-5, f, k))
    assert np.allclose(coefficients.diffusion, np.einsum("ij,ab->ijab", np.diag([2e-5, 1e-5]), EYE))
    assert coefficients.channels == (2, 2) and not coefficients.mass.any() and not coefficients.source.any()
    assert not reaction.is_flow and reaction.has_rate and not reaction.componentwise
    assert numbers(reaction) == {"feed": 0.04, "kill": 0.06}
    w = torch.rand(3, 2, 4, 5, dtype=F64)
    u, v = w[:, 0], w[:, 1]
    rate = torch.stack([-u * v**2 + 0.04 * (1 - u), u * v**2 - 0.1 * v], dim=1)
    assert torch.allclose(reaction.rate(w), rate, rtol=0, atol=1e-15)
    assert torch.allclose(reaction(w, 0.5), w + 0.5 * rate, rtol=0, atol=1e-15)
    assert torch.allclose(reaction.inverse(reaction(w, 0.5), 0.5), w, rtol=0, atol=1e-12)


def test_fitzhugh_nagumo():
    coefficients, reaction = read(physics.fitzhugh_nagumo(stimulus=npde.Parameter("stimulus", 0.2)))
    assert np.allclose(coefficients.diffusion, np.einsum("ij,ab->ijab", np.diag([1e-3, 0.0]), EYE))
    w = torch.rand(2, 2, 5, dtype=F64)
    v, z = w[:, 0], w[:, 1]
    rate = torch.stack([v * (1 - v) * (v - 0.1) - z + 0.2, 0.01 * (0.5 * v - z)], dim=1)
    assert torch.allclose(reaction.rate(w), rate, rtol=0, atol=1e-15)


def test_reaction_diffusion_divides_by_its_damping():
    b, k = npde.Parameter("B", 4.0), npde.Parameter("k", 2.0)
    linear = physics.reaction_diffusion(0.5, lambda u, x, t: k * u + 1.0, damping=b)
    coefficients, reaction = read(linear)
    assert isinstance(reaction, Identity)
    assert np.allclose(coefficients.mass, 0.5) and np.allclose(coefficients.source, 0.25)
    assert np.allclose(coefficients.diffusion, 0.125 * EYE)
    coefficients, reaction = read(physics.reaction_diffusion(0.5, lambda u, x, t: k * ufl.sin(u), damping=b))
    assert numbers(reaction) == {"B": 4.0, "k": 2.0} and not coefficients.mass.any()
    u = torch.linspace(-1, 1, 5, dtype=F64)
    assert torch.allclose(reaction.rate(u), 0.5 * torch.sin(u), rtol=1e-15)


# -- all that a linear part may have ---------------------------------------------------------------------------------


def test_systems_with_drift_and_mass():
    """Every coefficient of a system of two, those of the source's gradient terms among them."""
    rng = np.random.default_rng(1)
    d, c, g = rng.normal(size=(2, 2, 2, 2)), rng.normal(size=(2, 2, 2)), rng.normal(size=(2, 2, 2))
    m, s = rng.normal(size=(2, 2)), rng.normal(size=2)
    i, j, a, b = ufl.indices(4)

    def flux(u):
        tensor = [[[[float(d[p, q, k, l]) for l in range(2)] for k in range(2)] for q in range(2)] for p in range(2)]
        spread = ufl.as_tensor(ufl.as_tensor(tensor)[i, j, a, b] * ufl.grad(u)[j, b], (i, a))
        return spread - ufl.as_tensor(ufl.as_tensor(c.transpose(0, 2, 1).tolist())[i, a, j] * u[j], (i, a))

    def source(u):
        slope = ufl.as_tensor(ufl.as_tensor(g.tolist())[i, j, a] * ufl.grad(u)[j, a], (i,))
        return ufl.dot(ufl.as_matrix(m.tolist()), u) + slope + ufl.as_vector(s.tolist())

    coefficients, reaction = read(npde.NPDE(flux=flux, source=source, components=2))
    assert isinstance(reaction, Identity)
    assert np.allclose(coefficients.diffusion, 0.5 * (d + d.swapaxes(2, 3)), atol=1e-14)
    assert np.allclose(coefficients.drift, c - g, atol=1e-14)
    assert np.allclose(coefficients.mass, m, atol=1e-14) and np.allclose(coefficients.source, s, atol=1e-14)


def test_layer_is_a_step_of_finite_differences():
    """Convolution and reaction do what forward Euler does to the equation, away from the boundary."""
    velocity = ufl.as_vector([0.4, -0.7])

    equation = npde.NPDE(flux=lambda u: 0.3 * ufl.grad(u) - velocity * u, source=lambda u: 0.2 * u + 0.1)
    coefficients, _ = read(equation)
    problem = npde.FD(equation, npde.Grid(MPI.COMM_SELF, (7, 6), (0.0, 0.0), (0.6, 1.0)))
    u0 = problem.initial(lambda x: np.sin(3 * x[0]) * np.cos(2 * x[1]) + x[0] * x[1] ** 2)
    after = npde.solve(problem, u0, t=(0, DT), dt=DT, scheme=npde.ForwardEuler()).values.reshape(6, 7).T
    image = torch.from_numpy(np.array(u0).reshape(1, 1, 6, 7)).mT
    kernel, bias = torch.from_numpy(coefficients.kernel()), torch.from_numpy(coefficients.bias())
    layer = torch.nn.functional.conv2d(image, kernel, bias)[0, 0]
    assert np.allclose(after[1:-1, 1:-1], layer, rtol=0, atol=1e-13)


def test_gradient_terms_leave_a_nonlinear_source():
    """u_t = -b . grad u + u - u^3: the drift is read, the rest is the reaction."""
    equation = npde.NPDE(source=lambda u: -ufl.dot(ufl.as_vector([0.5, 1.0]), ufl.grad(u)) + u - u**3)
    coefficients, reaction = read(equation)
    assert np.allclose(coefficients.drift, [[[0.5, 1.0]]])
    u = torch.linspace(-1, 1, 5, dtype=F64)
    assert torch.allclose(reaction.rate(u), u - u**3, rtol=0, atol=1e-15)


def test_stencils_are_the_rest():
    weights = np.random.default_rng(2).normal(size=(2, 2, 5, 3))
    term = Stencil(weights, H, "zeros", (0.0, 0.0), (1.0, 2.0))
    base = {"flux": lambda u: 0.3 * ufl.grad(u), "source": lambda u: 0.5 * u, "components": 2}
    coefficients, _ = read(npde.NPDE(**base, nonlocal_term=term))
    local, _ = read(npde.NPDE(**base))
    expected = np.zeros((2, 2, 5, 3))
    expected[:, :, 1:4] = local.kernel()
    assert np.allclose(coefficients.kernel(), expected + DT * weights, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"stencil in 2 dimensions of spacing \(0.1, 0.2\)"):
        coefficients_of(npde.NPDE(**base, nonlocal_term=term), 2, 0.1, DT)


def test_flow_besides_a_linear_source_is_the_reaction():
    """A network's equation: its flow is an activation, whatever the source."""
    equation = npde.NPDE(
        flux=lambda u: 0.1 * ufl.grad(u), source=lambda u: 2.0 * u + 1.0, flow=lambda u, x, t, dt: ReLU().flow(u, dt)
    )
    coefficients, reaction = read(equation)
    assert np.allclose(coefficients.mass, 2.0) and np.allclose(coefficients.source, 1.0)
    u = torch.linspace(-1, 1, 5, dtype=F64)
    assert torch.equal(reaction(u, 0.1), torch.relu(u)) and not reaction.has_rate
    for ask in (lambda: reaction.rate(u), lambda: reaction.source(ufl.as_ufl(1.0))):
        with pytest.raises(ValueError, match="no rate.*its flow is not that"):
            ask()
    decay = npde.NPDE(source=lambda u: -2.0 * u, flow=lambda u, x, t, dt: u * ufl.exp(-2.0 * dt))
    coefficients, reaction = read(decay)
    assert isinstance(reaction, Identity) and np.allclose(coefficients.mass, -2.0)


# -- reactions of equations in torch -----------------------------------------------------------------------------------


REACTIONS = {
    "fisher-kpp": physics.fisher_kpp(0.1, npde.Parameter("r", 2.0), npde.Parameter("K", 1.5)),
    "allen-cahn": physics.allen_cahn(),
    "gray-scott": physics.gray_scott(feed=npde.Parameter("feed", 0.3)),
    "fitzhugh-nagumo": physics.fitzhugh_nagumo(threshold=npde.Parameter("threshold", 0.2)),
}
each_reaction = pytest.mark.parametrize("equation", REACTIONS.values(), ids=REACTIONS.keys())


@each_reaction
def test_ufl_flow_is_that_of_torch(equation):
    reaction = FromEquation(equation)
    with torch.no_grad():
        for p in reaction.parameters():
            p.mul_(1.1)  # what was learnt since counts, not what the equation has
    values = np.linspace(0.05, 0.95, 6 * equation.components).reshape(equation.components, 6)
    found = flow_on_grid(reaction, values, 0.4)
    assert np.abs(found - reaction(torch.from_numpy(values)[None], 0.4)[0].detach().numpy()).max() < 1e-13


@each_reaction
def test_rate_is_that_of_finite_differences(equation):
    """Of a state that is the same everywhere the rate is the source's."""
    problem = npde.FD(equation, npde.Grid(MPI.COMM_SELF, (4,), (0.0,), (1.0,)))
    level = np.linspace(0.3, 0.6, equation.components)
    u0 = problem.initial(tuple(level) if equation.components > 1 else float(level[0]))
    state, out = problem.new_state(), np.zeros_like(u0)
    problem.load(u0, state)
    problem.rate(0.0, state, out)
    out = (out / problem.nodal_weights.reshape(out.shape)).reshape(4, -1)
    found = FromEquation(equation).rate(torch.from_numpy(level)[None]).detach().numpy()
    assert np.abs(out - found).max() < 1e-13


@each_reaction
def test_derivative_is_that_of_autograd(equation):
    reaction, m = FromEquation(equation), equation.components
    u = torch.rand(3, m, 4, dtype=F64, requires_grad=True)
    slope = reaction.derivative(u.detach(), 0.2)
    rows = [torch.autograd.grad(reaction(u, 0.2)[:, i].sum(), u)[0] for i in range(m)]
    assert torch.allclose(slope, torch.stack(rows, dim=1) if m > 1 else rows[0], rtol=0, atol=1e-13)
    assert torch.allclose(reaction.as_torch(0.2)(u), reaction(u, 0.2), rtol=0, atol=1e-14)


def test_physics_is_learnt():
    """Rate and capacity of logistic growth, from states before and after."""
    truth = FromEquation(physics.fisher_kpp(1.0, 2.0, 1.5))
    learnt = FromEquation(physics.fisher_kpp(1.0, npde.Parameter("rate", 1.0), npde.Parameter("K", 1.0)))
    u = torch.linspace(0.05, 1.4, 20, dtype=F64)
    after = truth(u, 0.5).detach()
    optimiser = torch.optim.LBFGS(
        learnt.parameters(),
        max_iter=200,
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        loss = torch.mean((learnt(u, 0.5) - after) ** 2)
        loss.backward()
        return loss

    optimiser.step(closure)
    assert numbers(learnt)["rate"] == pytest.approx(2.0, abs=1e-5)
    assert numbers(learnt)["K"] == pytest.approx(1.5, abs=1e-5)


def test_numbers_are_named_as_in_the_equation():
    """Also where torch has another use for the name, or does not allow it."""
    names = ["rate", "forward", "a.b", "keys"]
    p = [npde.Parameter(name, float(k + 1)) for k, name in enumerate(names)]
    w = npde.Parameter("W", [[0.0, 1.0], [2.0, 0.0]])
    equation = npde.NPDE(
        source=lambda u: ufl.dot(w, u) + ufl.as_vector([p[0] * u[0] ** 2 + p[1], p[2] * ufl.exp(p[3] * u[1])]),
        components=2,
    )
    reaction = FromEquation(equation)
    assert list(reaction.state_dict()) == [f"numbers.{key}" for key in ("rate", "forward_", "a_b", "keys_", "W")]
    u = torch.rand(2, 2, 3, dtype=F64)
    expected = [u[:, 1] + u[:, 0] ** 2 + 2, 2 * u[:, 0] + 3 * torch.exp(4 * u[:, 1])]
    assert torch.allclose(reaction.rate(u), torch.stack(expected, 1), rtol=1e-14)
    twin = copy.deepcopy(reaction)
    with torch.no_grad():
        twin.numbers["W"].zero_()
    assert torch.allclose(reaction.rate(u), torch.stack(expected, 1), rtol=1e-14)
    values = u[0].numpy()
    for r in (reaction, twin):
        assert np.allclose(flow_on_grid(r, values, 0.1), r(u[:1], 0.1)[0].detach(), rtol=0, atol=1e-13)


def test_types_and_shapes():
    reaction = FromEquation(physics.fisher_kpp(1.0, npde.Parameter("r", 2.0)))
    assert reaction(torch.rand(2, 1, 3, 3), 0.1).dtype == torch.float32
    system = FromEquation(physics.gray_scott(feed=npde.Parameter("F", 0.1)))
    assert system(torch.rand(2, 2, 3), 0.1).dtype == torch.float32 and system(torch.rand(4, 2), 0.1).shape == (4, 2)
    with pytest.raises(ValueError, match=r"shape \(4, 3\) given; 2 channels on axis 1"):
        system(torch.rand(4, 3), 0.1)


# -- UFL in torch ------------------------------------------------------------------------------------------------------

DOMAIN = abstract_domain(2)


def coefficient(*shape):
    element = basix.ufl.element("Lagrange", "quadrilateral", 5, shape=shape or None)
    return ufl.Coefficient(ufl.FunctionSpace(DOMAIN, element))


V, U, P = coefficient(), coefficient(2), ufl.Constant(DOMAIN, shape=(2, 2))
OPERATIONS = {
    "sum": (lambda v: v + 2 - v / 3, lambda v: v + 2 - v / 3),
    "power": (lambda v: v**3 + v**-2 + abs(v) ** 1.5, lambda v: v**3 + v**-2 + np.abs(v) ** 1.5),
    "exponents": (lambda v: abs(v) ** v + 2**v, lambda v: np.abs(v) ** v + 2**v),
    "roots": (lambda v: ufl.sqrt(abs(v)), lambda v: np.sqrt(np.abs(v))),
    "exp": (lambda v: ufl.exp(v) + ufl.ln(2 + v), lambda v: np.exp(v) + np.log(2 + v)),
    "trig": (lambda v: ufl.sin(v) * ufl.cos(v) / ufl.tan(v), lambda v: np.sin(v) * np.cos(v) / np.tan(v)),
    "hyperbolic": (lambda v: ufl.sinh(v) + ufl.cosh(v) * ufl.tanh(v), lambda v: np.sinh(v) + np.cosh(v) * np.tanh(v)),
    "arcs": (
        lambda v: ufl.asin(v) + ufl.acos(v) + ufl.atan(v) + ufl.atan2(v, 1 - v),
        lambda v: np.arcsin(v) + np.arccos(v) + np.arctan(v) + np.arctan2(v, 1 - v),
    ),
    "min and max": (
        lambda v: ufl.min_value(v, 0.1) * ufl.max_value(0.2, v),
        lambda v: np.minimum(v, 0.1) * np.maximum(0.2, v),
    ),
    "conditional": (
        lambda v: ufl.conditional(ufl.And(ufl.lt(v, 0.5), ufl.Not(ufl.le(v, -0.5))), v, 2.0),
        lambda v: np.where((v < 0.5) & ~(v <= -0.5), v, 2.0),
    ),
    "either": (
        lambda v: ufl.conditional(ufl.Or(ufl.ge(v, 0.5), ufl.gt(-0.5, v)), v**2, v),
        lambda v: np.where((v >= 0.5) | (-0.5 > v), v**2, v),
    ),
    "equal": (
        lambda v: ufl.conditional(ufl.eq(v, v), 1.0, v) + ufl.conditional(ufl.ne(v, v), 1.0, v),
        lambda v: 1.0 + v,
    ),
    "sign": (lambda v: ufl.sign(v), np.sign),
    "derivative": (lambda v: ufl.diff(ufl.sin(ufl.variable(v) ** 2), ufl.variable(v)) + 0 * v, None),
}


@pytest.mark.parametrize("written, wanted", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_operations_of_ufl(written, wanted):
    v = np.array([-0.9, -0.4, 0.3, 0.8])
    if wanted is None:
        variable = ufl.variable(V)
        expression, expected = ufl.diff(ufl.sin(variable**2), variable), 2 * v * np.cos(v**2)
    else:
        expression, expected = written(V), wanted(v)
    found = torch_function(expression, [V])(torch.from_numpy(v))
    assert np.allclose(found, expected, rtol=1e-14, atol=1e-15)


def test_error_function():
    v = torch.linspace(-2, 2, 5, dtype=F64)
    assert torch.allclose(torch_function(ufl.erf(V), [V])(v), torch.erf(v))


def test_tensors_of_ufl():
    """Products of matrices, inverses, norms and indices, of values at points and of numbers."""
    rng = np.random.default_rng(3)
    u, p = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 2))
    i, j = ufl.indices(2)
    expression = ufl.dot(ufl.inv(P), U) * ufl.inner(U, U) + ufl.as_vector(P[i, j] * U[j], i) + ufl.det(P) * ufl.perp(U)
    found = torch_function(expression, [U, P])(torch.from_numpy(u), torch.from_numpy(p))
    expected = np.einsum("ij,j...->i...", np.linalg.inv(p), u) * (u**2).sum(0) + np.einsum("ij,j...->i...", p, u)
    expected += np.linalg.det(p) * np.stack([-u[1], u[0]])
    assert np.allclose(found, expected, rtol=0, atol=1e-12)
    outer = torch_function(ufl.outer(U, U), [U])(torch.from_numpy(u))
    assert np.allclose(outer, np.einsum("i...,j...->ij...", u, u))
    g = torch_function(ufl.div(U), [ufl.grad(U)])(torch.from_numpy(rng.normal(size=(2, 2, 5))))
    assert g.shape == (5,)
    assert torch_function(ufl.zero(2), [U])(torch.from_numpy(u)).shape == (2,)


def test_torch_differentiates_by_values_and_parameters():
    v = torch.tensor([0.3, 0.8], dtype=F64, requires_grad=True)
    c = ufl.Constant(DOMAIN)
    k = torch.tensor(2.0, dtype=F64, requires_grad=True)
    function = torch_function(ufl.sin(c * V) ** 2, [V, c])
    assert torch.autograd.gradcheck(function, (v, k))


def test_what_torch_has_not_is_refused():
    with pytest.raises(ValueError, match="has no value; allowed are"):
        torch_function(V + U[0], [V])
    with pytest.raises(ValueError, match="BesselJ has no equal in torch"):
        torch_function(ufl.bessel_J(0, V), [V])


# -- what is no convolution --------------------------------------------------------------------------------------------

FIELD = npde.Parameter("k", lambda x: x[0], field=True)
NET = npde.neural(torch.nn.Linear(1, 1).double())
REFUSED = {
    "wave": (physics.wave(), "has inertia.*wave_rnn"),
    "telegraph": (physics.telegraph(), "has inertia"),
    "poisson": (physics.poisson(), "is stationary"),
    "diffusion_reaction": (physics.diffusion_reaction(1.0, lambda u: u), "is stationary"),
    "porous_fisher": (physics.porous_fisher(), "flux.*is not linear"),
    "cahn_hilliard": (physics.cahn_hilliard(), "a matrix for its damping"),
    "schrodinger": (physics.schrodinger(), "is complex"),
    "relaxed_schrodinger": (physics.relaxed_schrodinger(), "is complex"),
    "helmholtz": (physics.helmholtz(1.0), "is complex"),
    "paraxial": (physics.paraxial(1.0), "is complex"),
    "glioma": (physics.glioma(1.0, 0.1, FIELD, npde.Parameter("g", 0.0, field=True), 1.0), "the fields k, g"),
    "diffusion of x": (physics.heat(lambda x, t: 1 + x[0]), "flux.*depends on x"),
    "diffusion of t": (physics.heat(lambda x, t: 1 + t), "flux.*depends on t"),
    "source of x": (physics.heat(1.0, lambda x, t: x[0]), "source.*depends on x"),
    "damping of x": (npde.NPDE(damping=lambda x, t: 1 + x[0]), "damping.*depends on x"),
    "rate of t": (physics.fisher_kpp(1.0, lambda x, t: t), "source.*depends on t"),
    "field": (physics.fisher_kpp(1.0, FIELD), "the fields k"),
    "gradient squared": (npde.NPDE(source=lambda u: ufl.inner(ufl.grad(u), ufl.grad(u))), "not linear in grad"),
    "Burgers": (npde.NPDE(source=lambda u: u * u.dx(0)), "not linear in grad"),
    "second derivatives": (npde.NPDE(source=lambda u: u.dx(0).dx(0)), "second derivatives"),
    "total variation": (npde.NPDE(flux=lambda u: ufl.grad(u) / abs(ufl.grad(u)[0])), "flux.*is not linear"),
    "network": (npde.NPDE(source=lambda u: NET(u)), "source.*contains the network"),
    "constant": (npde.NPDE(source=lambda u: ufl.Constant(DOMAIN) * u), "parameters that are numbers"),
    "wrong flow": (npde.NPDE(source=lambda u: u - u**3, flow=lambda u, x, t, dt: u), "not that of its source"),
}


@pytest.mark.parametrize("equation, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_convolution_is_refused(equation, message):
    with pytest.raises(ValueError, match=message):
        read(equation)


def test_absorbing_layers_are_refused():
    pml = npde.PML((0.0, 0.0), (1.0, 1.0), 0.2)
    with pytest.raises(ValueError, match="depends on x"):
        read(physics.open_wave(1.0, pml))


def test_dimensions_are_checked():
    with pytest.raises(ValueError, match="dim = 4 given"):
        coefficients_of(physics.heat(), 4)
    with pytest.raises(ValueError, match="spacing"):
        coefficients_of(physics.heat(), 2, -1.0)
    with pytest.raises(ValueError, match=r"flux has shape \(2,\); \(1,\) allowed"):
        coefficients_of(npde.NPDE(flux=lambda u: ufl.as_vector([0, 1]) * u), 1)
