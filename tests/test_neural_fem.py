"""Networks in finite elements: against torch at the quadrature points, against UFL; Taylor tests of whole solves."""

import json

import npde_fem as npde
from npde_fem.learn import Layer

import basix
import numpy as np
import pyadjoint
import pytest
import torch
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from torch import nn

COMM = MPI.COMM_SELF
RNG = np.random.default_rng(5)
DEGREE = 4


def perceptron(inputs=1, outputs=1, activation=nn.Tanh, width=6, seed=1):
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, outputs)]
    return nn.Sequential(*layers).double()


def positive(inputs=1, **options):
    return nn.Sequential(perceptron(inputs, **options), nn.Softplus()).double()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = perceptron()

    def forward(self, x):
        return x + self.inner(x)


class NotInUFL(nn.Module):
    """Operations that UFL has no words for."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 5, dtype=torch.float64))

    def forward(self, x):
        rows = self.scale * x.sum(1, keepdim=True)
        return torch.logsumexp(torch.special.i1(rows), 1, keepdim=True) + torch.cumprod(torch.sinc(rows), 1)[:, -1:]


def space(cell="triangle", degree=1, shape=(), n=3):
    if cell == "interval":
        return fem.functionspace(mesh.create_unit_interval(COMM, 2 * n), ("Lagrange", degree, shape))
    kind = {"triangle": mesh.CellType.triangle, "quadrilateral": mesh.CellType.quadrilateral}.get(cell)
    if kind is None:
        return fem.functionspace(mesh.create_unit_cube(COMM, 2, 2, 2, mesh.CellType[cell]), ("Lagrange", degree, shape))
    return fem.functionspace(mesh.create_unit_square(COMM, n, n, kind), ("Lagrange", degree, shape))


# -- against torch at the quadrature points ------------------------------------------------------------------


class ByHand:
    """The same weak form, integrated by numpy and torch on affine cells."""

    def __init__(self, V, degree):
        m, element = V.mesh, V.ufl_element()
        points, weights = basix.make_quadrature(m.basix_cell(), degree)
        scalar = element.sub_elements[0] if element.block_size > 1 else element
        table = scalar.basix_element.tabulate(1, points)[..., 0]
        corners = m.geometry.x[m.geometry.dofmaps[0]][:, :, : m.geometry.dim]
        J = np.stack([corners[:, k + 1] - corners[:, 0] for k in range(m.geometry.dim)], axis=2)
        slopes = np.einsum("kqi,ckj->cqij", table[1:], np.linalg.inv(J))
        x = corners[:, None, 0] + np.einsum("cjk,qk->cqj", J, points)
        measure = np.abs(np.linalg.det(J))[:, None] * weights
        self.phi, self.slopes, self.x, self.w = (torch.tensor(v) for v in (table[0], slopes, x, measure))
        self.dofs = torch.tensor(V.dofmap.list.astype(np.int64))
        self.components = element.block_size

    def pairing(self, u, lam, flux, source):
        """lam . R(u): minus (F, grad v) plus (S, v) with the test function of values lam."""
        u, lam = (v.view(-1, self.components)[self.dofs] for v in (u, lam))
        value, test = (torch.einsum("qi,cim->cqm", self.phi, v) for v in (u, lam))
        slope, test_slope = (torch.einsum("cqij,cim->cqmj", self.slopes, v) for v in (u, lam))
        F, S = flux(value, slope, self.x), source(value, slope, self.x)
        return (self.w * ((S * test).sum(-1) - (F * test_slope).sum((-1, -2)))).sum()


def at(net, *inputs):
    """A module at all points of all cells."""
    parts = torch.cat([p.reshape(*p.shape[:2], -1) for p in inputs], -1)
    return net.module(parts.flatten(0, 1)).view(*parts.shape[:2], -1)


def scalar_case(activation_of_source, inner=None):
    """div(D(u) grad u) + n(u) + 0.3 u n2(u, x)."""
    D = npde.neural(positive(), "D")
    n = npde.neural(activation_of_source, "n", inputs=1)
    two = npde.neural(perceptron(2, seed=3), "two")
    equation = npde.NPDE(
        flux=lambda u, x, t: D(u) * ufl.grad(u), source=lambda u, x, t: n(u) + 0.3 * u * two(2 * u, x[0])
    )
    return (
        equation,
        [D, n, two],
        (lambda u, s, x: at(D, u)[..., None] * s),
        (lambda u, s, x: at(n, u) + 0.3 * u * at(two, 2 * u, x[..., :1])),
    )


def system_case():
    """Two components: a network of both with two outputs; one of a component in the flux; one of |grad u_1|^2."""
    n = npde.neural(perceptron(2, 2), "n")
    D = npde.neural(positive(), "D")
    s = npde.neural(perceptron(seed=4), "s")
    equation = npde.NPDE(
        flux=lambda u, x, t: ufl.as_tensor([D(u[1]) * ufl.grad(u[0]), 0.2 * ufl.grad(u[1])]),
        source=lambda u, x, t: n(u) * u[0] + ufl.as_vector([s(ufl.inner(ufl.grad(u[1]), ufl.grad(u[1]))), D(u[0])]),
        components=2,
    )

    def flux(u, slope, x):
        return torch.stack([at(D, u[..., 1:]) * slope[..., 0, :], 0.2 * slope[..., 1, :]], -2)

    def source(u, slope, x):
        steep = (slope[..., 1, :] ** 2).sum(-1, keepdim=True)
        return at(n, u) * u[..., :1] + torch.cat([at(s, steep), at(D, u[..., :1])], -1)

    return equation, [n, D, s], flux, source


CASES = {
    "tanh": lambda: scalar_case(perceptron()),
    "sigmoid": lambda: scalar_case(perceptron(activation=nn.Sigmoid)),
    "softplus": lambda: scalar_case(perceptron(activation=nn.Softplus)),
    "silu": lambda: scalar_case(perceptron(activation=nn.SiLU)),
    "gelu": lambda: scalar_case(perceptron(activation=nn.GELU)),
    "relu": lambda: scalar_case(perceptron(activation=nn.ReLU)),
    "residual": lambda: scalar_case(Residual()),
    "not in UFL": lambda: scalar_case(NotInUFL()),
    "system": system_case,
}
PLACES = [(cell, degree) for cell in ("interval", "triangle") for degree in (1, 2)]
CHOSEN = [(case, *place) for case in ("tanh", "system") for place in PLACES]
CHOSEN += [(case, "triangle", 1) for case in CASES if case not in ("tanh", "system")]


def close(found, exact, tolerance=1e-10):
    return np.abs(found - exact).max() <= tolerance * max(np.abs(exact).max(), 1e-3)


@pytest.mark.parametrize(("case", "cell", "degree"), CHOSEN)
def test_residual_and_gradients_are_torch_s(case, cell, degree):
    """R, R_u^T lam, R_W^T lam and the Jacobian."""
    equation, nets, flux, source = CASES[case]()
    V = space(cell, degree, () if case != "system" else (2,))
    problem = npde.FEM(equation, V, quadrature_degree=DEGREE)
    by_hand = ByHand(V, DEGREE)
    values, lam, v = (RNG.uniform(-0.8, 1.2, problem.n_owned) for _ in range(3))

    u, test = (torch.tensor(a, requires_grad=True) for a in (values, lam))
    pairing = by_hand.pairing(u, test, flux, source)
    residual, state = torch.autograd.grad(pairing, (test, u), create_graph=True)
    by_weights = [torch.autograd.grad(pairing, list(n.module.parameters()), retain_graph=True) for n in nets]
    weights = {n.name: torch.cat([g.ravel() for g in by]) for n, by in zip(nets, by_weights, strict=True)}
    jacobian = torch.autograd.functional.jvp(
        lambda u: torch.autograd.grad(by_hand.pairing(u, test, flux, source), test, create_graph=True)[0],
        u,
        torch.tensor(v),
    )[1]

    rate, pulled = np.zeros(problem.n_owned), np.zeros(problem.n_owned)
    problem.rate(0.0, values, rate)
    assert close(rate, residual.detach().numpy())
    lin = problem.linearised([n.weights for n in nets])
    lin.at(0.0, values)
    lin.clear()
    lin.pull("all", lam, pulled)
    lin.collect("all", lam)
    assert close(pulled, state.detach().numpy())
    gradient = lin.gradient()
    for name, exact in weights.items():
        assert close(gradient[name], exact.numpy())
    J = problem.new_matrix()
    problem.jacobian(0.0, values, 0.0, -1.0, J)
    x, y = J.createVecs()
    x.array[:] = v
    J.mult(x, y)
    assert close(y.array.real, jacobian.detach().numpy())
    for thing in (J, x, y):
        thing.destroy()


# -- second order --------------------------------------------------------------------------------------------


def rich():
    """Networks of the state, its gradient, time, place, numbers and fields, in flux and source, with Dirichlet data."""
    D = npde.neural(positive(2), "D")
    f = npde.neural(perceptron(seed=2), "f")
    g = npde.neural(perceptron(2, 2, seed=3), "g")
    K, k = npde.Parameter("K", 1.3), npde.Parameter("k", lambda x: 1 + x[0], field=True)

    def source(u, x, t):
        pair = g(ufl.grad(u))
        return k * u * f(u / K * k) * ufl.cos(t) + pair[0] * u + pair[1] + f(t * x[1])

    equation = npde.NPDE(flux=lambda u, x, t: (0.1 + D(u * K, x[0])) * ufl.grad(u), source=source)
    return npde.FEM(equation, space(), [npde.Dirichlet(0.3, lambda x: np.isclose(x[0], 0))])


class Kit:
    """A problem linearised by all its parameters, at a point that moves along directions of all of them."""

    def __init__(self, problem):
        self.problem = p = problem
        self.lin = p.linearised(list(p.parameters.values()))
        self.u, self.v, self.adjoint = (RNG.random(p.n_owned) for _ in range(3))
        self.adjoint[p.constrained] = 0.0
        self.base = {n: p.field_values(c) if c.is_field else np.array(c.value) for n, c in p.parameters.items()}
        self.delta = {n: 0.3 * RNG.normal(size=b.shape) for n, b in self.base.items()}

    def move(self, e):
        p = self.problem
        for name, c in p.parameters.items():
            value = self.base[name] + e * self.delta[name]
            if c.is_field:
                p.set_field(c, value)
            else:
                c.value = value
        p.update()
        self.lin.move(self.delta)
        self.lin.at(0.3, self.u + e * self.v, self.v)
        out = np.zeros(p.n_owned)
        p.rate(0.3, self.u + e * self.v, out)
        return out

    def back(self, second=False):
        out = np.zeros(self.problem.n_owned)
        self.lin.clear()
        (self.lin.pull_second if second else self.lin.pull)("all", self.adjoint, out)
        (self.lin.collect_second if second else self.lin.collect)("all", self.adjoint)
        return {"state": out, **self.lin.gradient()}


def test_tangents_adjoints_and_their_derivatives():
    kit, h = Kit(rich()), 1e-5
    up, down = kit.move(h), kit.move(-h)
    kit.move(0.0)
    tangent = np.zeros(kit.problem.n_owned)
    kit.lin.tangent("all", tangent)
    assert close(tangent, (up - down) / (2 * h), 1e-8)
    back, second = kit.back(), kit.back(second=True)
    paired = back["state"] @ kit.v + sum(np.sum(back[n] * kit.delta[n]) for n in kit.base)
    assert paired == pytest.approx(kit.adjoint @ tangent, rel=1e-12)
    kit.move(h)
    up = kit.back()
    kit.move(-h)
    down = kit.back()
    for name, found in second.items():
        assert close(found, (up[name] - down[name]) / (2 * h), 1e-7), name


def test_sweeps_of_different_controls_do_not_mix():
    problem = rich()
    D, f, K = (problem.parameters[n] for n in ("D", "f", "K"))
    u, adjoint = RNG.random(problem.n_owned), RNG.random(problem.n_owned)
    found = []
    for controls in ([D, f, K], [f], [K], [f, D]):
        lin = problem.linearised(controls)
        lin.at(0.3, u)
        lin.clear()
        lin.collect("source", adjoint)
        found.append(lin.gradient())
    assert [sorted(g) for g in found] == [["D", "K", "f"], ["f"], ["K"], ["D", "f"]]
    assert not found[0]["D"].any() and found[0]["f"].any()
    for gradient in found[1:]:
        assert all(np.allclose(gradient[n], found[0][n], rtol=1e-12, atol=0) for n in gradient)


def test_what_varies():
    """Of a network of x alone the Jacobian is the same at any state; of one of x and t, at any state of one time."""
    n, two = npde.neural(perceptron(), "n"), npde.neural(perceptron(2), "two")

    def varies(source):
        return npde.FEM(npde.NPDE(source=source), space("interval")).varies()

    assert varies(lambda u, x, t: n(x[0]) * u) == (False, False)
    assert varies(lambda u, x, t: two(x[0], t) * u) == (False, True)
    assert varies(lambda u, x, t: n(u)) == (True, False)
    assert varies(lambda u, x, t: two(u, t)) == (True, True)
    assert varies(lambda u, x, t: two(x[0], t)) == (False, False)


def test_jacobian_depends_on_parameters_in_inputs():
    """A batch over such a parameter has a matrix for each sample."""
    n, c = npde.neural(perceptron(), "n"), npde.Parameter("c", 0.3)
    equation = npde.NPDE(flux=lambda u, x, t: ufl.grad(u), source=lambda u, x, t: n(x[0] + c) * u)
    problem = npde.FEM(equation, space("interval"))
    assert problem.matrix_parameters == {"n", "c"}
    layer = Layer(problem, (0, 0.2), 0.1, npde.CrankNicolson(), inputs=["c"], u0=1.0)
    samples = torch.tensor([0.3, 1.5, -2.0], dtype=torch.float64)
    with torch.no_grad():
        one_by_one = torch.stack([layer(c) for c in samples])
        assert torch.allclose(layer(samples), one_by_one, rtol=1e-12, atol=0)


# -- against UFL ---------------------------------------------------------------------------------------------


def written_out(net, *inputs):
    """Linear, tanh, Linear in UFL."""
    first, _, last = net.module
    (A, a), (B, b) = ((layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (first, last))
    arguments = [sum(float(w) * e for w, e in zip(row, inputs, strict=True)) for row in A]
    hidden = [ufl.tanh(e + float(c)) for e, c in zip(arguments, a, strict=True)]
    return sum(float(w) * h for w, h in zip(B[0], hidden, strict=True)) + float(b[0])


@pytest.mark.parametrize(
    ("cell", "degree", "options"),
    [
        ("triangle", 1, {}),
        ("triangle", 2, {"quadrature_degree": 5}),
        ("triangle", 1, {"mass": "lumped"}),
        ("interval", 4, {"mass": "lumped", "quadrature_degree": 6}),
        ("interval", 3, {"mass": "lumped"}),
        ("quadrilateral", 2, {"mass": "lumped"}),
        ("tetrahedron", 1, {}),
        ("hexahedron", 1, {}),
    ],
)
def test_a_network_is_what_ufl_says(cell, degree, options):
    """The same quadrature, of the user's or by default, at Gauss's points or at the nodes."""
    torch.manual_seed(0)
    net, one = (
        npde.neural(nn.Sequential(nn.Linear(k, 5), nn.Tanh(), nn.Linear(5, 1)).double(), name)
        for k, name in ((2, "net"), (1, "one"))
    )
    ours, theirs = (
        npde.NPDE(
            flux=lambda u, x, t, n=n: n(net, u, x[0]) * ufl.grad(u),
            source=lambda u, x, t, n=n: n(net, u, x[0]) * ufl.sin(u) + n(one, u),
        )
        for n in (lambda network, *inputs: network(*inputs), written_out)
    )
    V = space(cell, degree)
    options = {"quadrature_degree": 3, **options} if not options.get("mass") else options
    results = []
    for equation in (ours, theirs):
        problem = npde.FEM(equation, V, **options)
        u, out = problem.initial(lambda x: np.sin(3 * x[0]) + x[0] ** 2), np.zeros(problem.n_owned)
        parts = []
        for part in ("flux", "source"):
            problem.rate(0.0, u, out, part)
            parts.append(out.copy())
        results.append(parts)
    same_rule = options.get("quadrature_degree") or options.get("mass") == "lumped" and cell != "triangle"
    for found, exact in zip(*results, strict=True):
        assert close(found, exact, 1e-12 if same_rule else 1e-3)


def test_negative_diffusion_is_refused():
    module = perceptron()
    D = npde.neural(module, "D")
    with torch.no_grad():
        module[-1].bias.fill_(-9.0)
    problem = npde.FEM(npde.NPDE(flux=lambda u, x, t: D(u) * ufl.grad(u)), space())
    with pytest.raises(ValueError, match="negative diffusion"):
        npde.solve(problem, 0.5, t=(0, 0.1), dt=0.1)
    with torch.no_grad():
        module[-1].bias.fill_(9.0)
    assert npde.solve(problem, 0.5, t=(0, 0.1), dt=0.1).values == pytest.approx(0.5)


def test_diffusion_by_a_network_of_the_gradient():
    """dF/d(grad u) has the part that goes through the network's input."""
    D = npde.neural(positive(2), "D")
    problem = npde.FEM(npde.NPDE(flux=lambda u, x, t: D(ufl.grad(u)) * ufl.grad(u)), space())
    u = problem.initial(lambda x: x[0] ** 2 + np.sin(2 * x[1]))
    problem.check_diffusion(0.0, u)
    found = problem._diffusion[0](problem._cells())
    slopes = problem.compile_expression(ufl.grad(problem.state_function), np.array([[1 / 3, 1 / 3]]))
    s = torch.tensor(slopes.eval(problem.mesh, problem._cells())[:, 0])
    exact = torch.vmap(torch.func.jacrev(lambda p: D.module(p[None])[0] * p))(s)
    assert close(found, exact.detach().numpy())


# -- whole solves --------------------------------------------------------------------------------------------


def learned():
    """div(D(u) grad u) + f(u), both networks, from a field."""
    D, f = npde.neural(positive(), "D"), npde.neural(perceptron(seed=2), "f")
    start = npde.Parameter("start", lambda x: 0.5 + 0.4 * np.sin(3 * x[0] + x[1]), field=True)
    equation = npde.NPDE(flux=lambda u, x, t: 0.1 * D(u) * ufl.grad(u), source=lambda u, x, t: u * f(u))
    return equation, start, [D.weights, f.weights, start]


def reduced(scheme, **options):
    equation, start, controls = learned()
    problem = npde.FEM(equation, space(), **options)
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        pyadjoint.continue_annotation()
        try:
            solution = npde.solve(problem, npde.Initial(lambda x: start), t=(0, 0.2), dt=0.05, scheme=scheme)
            loss = npde.misfit(solution, 0.1)
        finally:
            pyadjoint.pause_annotation()
    return pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(c) for c in controls], tape=tape), controls


SCHEMES = {
    "crank-nicolson": (npde.CrankNicolson, {}),
    "sdirk2": (npde.SDIRK2, {}),
    "imex": (npde.IMEX, {}),
    "implicit-midpoint": (npde.ImplicitMidpoint, {"mass": "lumped"}),
    "rk4": (npde.RK4, {"mass": "lumped"}),
    "forward-euler": (npde.ForwardEuler, {}),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_taylor_tests_of_solves(name):
    """On the tape, by the weights and the initial state: first and second order."""
    kind, options = SCHEMES[name]
    functional, controls = reduced(kind(), **options)
    rng = np.random.default_rng(2)
    h = [c.like(0.3 * rng.normal(size=c._ad_shape())) for c in controls]
    here = [c.like(np.array(c._ad_values())) for c in controls]
    rates = pyadjoint.taylor_to_dict(functional, here, h)
    assert min(rates["R1"]["Rate"]) > 1.9
    assert min(rates["R2"]["Rate"]) > 2.9


@pytest.mark.filterwarnings("ignore:.*not converged")
def test_training_by_minimize():
    """Weights of a network as unknowns of an optimisation: a network learns logistic growth."""
    f = npde.neural(perceptron(width=4), "f")
    V = space("interval")
    truth = npde.FEM(npde.physics.fisher_kpp(0.01, 2.0), V)
    problem = npde.FEM(npde.NPDE(flux=lambda u, x, t: 0.01 * ufl.grad(u), source=lambda u, x, t: u * f(u)), V)

    def start(x):
        return 0.1 + 0.5 * x[0]

    when = {"t": (0, 1), "dt": 0.25, "observe": [0.5, 1.0]}
    data = npde.solve(truth, start, **when).states
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        pyadjoint.continue_annotation()
        loss = npde.misfit(npde.solve(problem, start, **when), list(data))
        pyadjoint.pause_annotation()
    functional = pyadjoint.ReducedFunctional(loss, pyadjoint.Control(f.weights), tape=tape)
    before = float(loss)
    npde.minimize(functional, max_iterations=60, ftol=1e-8, progress=False)
    assert functional(f.weights) < 1e-4 * before
    u = np.linspace(0.2, 0.9, 8)[:, None]
    learned = f.values(f.weights.value, u, 0)[0]
    assert np.abs(learned - 2 * (1 - u)).max() < 0.2


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks(ranks, mpirun):
    one, many = (json.loads(mpirun(n, "neural_fem.py").stdout.strip().splitlines()[-1]) for n in (1, ranks))
    for name, exact in one.items():
        assert np.allclose(many[name], exact, rtol=1e-10, atol=1e-10 * np.abs(exact).max()), name


def test_ranks_without_cells_or_points(mpirun):
    """Finite elements and finite differences; on one rank the same."""
    one, three = (json.loads(mpirun(n, "neural_empty.py").stdout.strip().splitlines()[-1]) for n in (1, 3))
    for method, found in three.items():
        assert found["fewest"] == 0 < one[method]["fewest"]
        assert np.allclose(found["values"], one[method]["values"], rtol=1e-8, atol=1e-11)
