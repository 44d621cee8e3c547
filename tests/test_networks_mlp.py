"""Perceptrons: integral equations, and implicit steps of local equations, are stock networks and solves."""

import re

import npde_fem as npde
from npde_fem.networks import Lattice, Pooling, mlp
from npde_fem.networks.kinds.mlp import LocalStep, NonlocalStep
from npde_fem.networks.reactions import Neural, Polynomial

import numpy as np
import pytest
import torch
import ufl
from mpi4py import MPI

SELF = MPI.COMM_SELF
DOUBLE = torch.float64
BOUNDARIES = ("zeros", "replicate", "reflect", "circular")


def outputs(network, u):
    with torch.no_grad():
        return network(u).numpy()


def solved(network, u, shape):
    return network.as_equation().solve(u.detach().numpy().reshape(1, *shape), comm=SELF, progress=False)


# -------------------------------------------------------------------------------------------- integral equations


def test_after_the_same_seed_it_is_the_stock_network_and_trains_alike():
    def stock():
        parts = (torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
        return torch.nn.Sequential(*parts)

    u, wanted, found = torch.rand(16, 5), torch.rand(16, 3), []
    for make in (stock, lambda: mlp((5, 7, 4), readout=3, dt=0.01, spacing=0.2)):
        torch.manual_seed(4)
        network = make()
        optimiser = torch.optim.Adam(network.parameters(), 0.01)
        losses = []
        for _ in range(20):
            optimiser.zero_grad()
            loss = ((network(u) - wanted) ** 2).mean()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        found.append(losses)
    assert found[0][-1] < 0.8 * found[0][0]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


@pytest.mark.parametrize("reaction", ["relu", "sigmoid", "tanh", "logistic", "identity"])
def test_integral_equation_solved_is_the_network(reaction):
    torch.manual_seed(0)
    network = mlp((6, 3, 8, 2), reaction=reaction, readout=3, dt=0.3, spacing=0.5, dtype=DOUBLE)
    u = 0.1 + 0.8 * torch.rand(3, 6, dtype=DOUBLE)
    if reaction == "logistic":  # whose states are densities, from 0 to 1
        with torch.no_grad():
            for step in network.steps:
                step.kernel.copy_(torch.full_like(step.matrix(), 0.1) - torch.eye(*step.kernel.shape))
                step.source.fill_(0.05)
    expected = outputs(network, u)
    np.testing.assert_allclose(outputs(network.as_torch(), u), expected, atol=1e-12)
    found = solved(network, torch.nn.functional.pad(u[1], (0, 2)), (8,))
    np.testing.assert_allclose(found.observed, expected[1], atol=1e-10)


@pytest.mark.parametrize("make", [lambda: Polynomial(degree=3), Neural])
def test_learnt_reactions_act_on_the_one_channel(make):
    torch.manual_seed(1)
    network = mlp((4, 5), reaction=make().double(), dt=0.1, dtype=DOUBLE)
    u = torch.rand(2, 4, dtype=DOUBLE)
    expected = outputs(network, u)
    np.testing.assert_allclose(outputs(network.as_torch(), u), expected, atol=1e-12)
    found = solved(network, torch.nn.functional.pad(u[0], (0, 1)), (5,))
    np.testing.assert_allclose(found.observed, expected[0], atol=1e-10)


def test_linear_layers_are_read_as_kernels():
    layer = torch.nn.Linear(4, 3, dtype=DOUBLE)
    step = NonlocalStep.from_linear(layer, dt=0.5, spacing=0.25)
    found = step.coefficients()
    kernel = (layer.weight.detach().numpy() - np.eye(3, 4)) / (0.5 * 0.25)
    np.testing.assert_allclose(found["kernel"], kernel, rtol=1e-14)
    np.testing.assert_allclose(found["source"], layer.bias.detach().numpy() / 0.5, rtol=1e-14)
    np.testing.assert_allclose(step.matrix().detach(), layer.weight.detach(), atol=1e-15)
    u = torch.rand(2, 4, dtype=DOUBLE)
    np.testing.assert_allclose(outputs(step, u), outputs(layer, u), atol=1e-14)
    without = NonlocalStep.from_linear(torch.nn.Linear(2, 2, bias=False))
    assert not without.source.any()


# ----------------------------------------------------------------------------------------------- local equations


@pytest.mark.parametrize("shape, spacing", [((9,), 0.1), ((5, 4), (0.2, 0.3))])
@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("scheme", ["implicit", "explicit"])
def test_local_equation_solved_is_the_network(shape, spacing, boundary, scheme):
    torch.manual_seed(2)
    lattice = Lattice(shape, spacing, 0.0, boundary)
    network = mlp(grid=lattice, steps=3, scheme=scheme, reaction="tanh", readout=4, dt=0.5, dtype=DOUBLE)
    u = torch.randn(2, lattice.size, dtype=DOUBLE)
    expected = outputs(network, u)
    np.testing.assert_allclose(outputs(network.as_torch(), u), expected, atol=1e-12)
    np.testing.assert_allclose(solved(network, u[0], shape).observed, expected[0], atol=1e-12)


def test_implicit_matrix_is_the_discrete_green_function():
    """One source point, far from both ends: exp(-|x - y| / l) of (1 + mu) v - D v'' = delta, up to O(h^2)."""
    errors = []
    for n in (40, 80, 160):
        lattice = Lattice((n + 1,), 8 / n, -4.0, "reflect")
        step = LocalStep(lattice, dt=0.5, values={"diffusion": 0.5, "mass": -2.0}, dtype=DOUBLE)
        x, length = lattice.coordinates()[0], np.sqrt(0.25 / 2)
        exact = np.exp(-np.abs(x) / length) / (2 * length * 2)
        errors.append(np.abs(step.matrix().detach().numpy()[:, n // 2] * n / 8 - exact).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] < 2e-3 and np.all(orders > 1.8)
    assert np.count_nonzero(np.abs(step.matrix().detach().numpy()) > 1e-12) > 0.9 * 161**2


@pytest.mark.parametrize(
    "dim, boundary", [(1, "zeros"), (1, "replicate"), (1, "reflect"), (2, "circular"), (2, "zeros")]
)
def test_finite_elements_differ_by_order_two(dim, boundary):
    differences = []
    for n in (8, 16, 32):
        points, first = {"zeros": (n - 1, 1), "replicate": (n, 0.5), "reflect": (n + 1, 0), "circular": (n, 0)}[
            boundary
        ]
        lattice = Lattice((points,) * dim, 1 / n, first / n, boundary)

        def wave(x):
            return np.prod(np.cos(2 * np.pi * x), axis=0)

        def start(x):
            return np.prod(np.sin(np.pi * x) ** 2, axis=0)[None] if boundary == "zeros" else 0.5 + wave(x)[None]

        x = lattice.coordinates()
        network = mlp(
            grid=lattice,
            steps=2,
            shared=True,
            reaction="tanh",
            dt=0.02,
            diffusion=0.1 + 0.03 * wave(x),
            drift=0.2 * np.cos(2 * np.pi * x),
            mass=1 + wave(x),
            source=start(x)[0],
            dtype=DOUBLE,
        )
        expected = outputs(network, torch.from_numpy(start(x).reshape(1, -1))).reshape(lattice.shape)
        found = network.as_equation().solve(start, on=lattice.mesh(SELF), progress=False).array()[0]
        differences.append(np.abs(found - expected).max())
    orders = np.log2(np.array(differences[:-1]) / differences[1:])
    assert differences[-1] < 0.02 and orders[-1] > 1.7, (differences, orders)


def test_equations_give_their_coefficients():
    equation = npde.NPDE(
        flux=lambda u, x, t: (0.1 + 0.05 * ufl.sin(x[0])) * ufl.grad(u) - u * ufl.as_vector([0.1 * x[0], 0.2]),
        source=lambda u, x, t: -0.3 * x[1] * u + ufl.cos(x[0]),
        flow=lambda u, x, t, dt: u * ufl.exp(dt) / (1 - u + u * ufl.exp(dt)),
    )
    network = mlp(equation=equation, grid=Lattice((6, 5), 0.2), steps=2, dt=0.1, dtype=DOUBLE, shared=True)
    (x, y), found = network.lattice.coordinates(), network.coefficients()[0]
    np.testing.assert_allclose(found["diffusion"], 0.1 + 0.05 * np.sin(x), rtol=1e-13)
    np.testing.assert_allclose(found["drift"], [0.1 * x, np.full_like(x, 0.2)], atol=1e-15)
    np.testing.assert_allclose(found["mass"], -0.3 * y, atol=1e-15)
    np.testing.assert_allclose(found["source"], np.cos(x), rtol=1e-13)
    same = mlp(grid=network.lattice, steps=2, dt=0.1, dtype=DOUBLE, shared=True, reaction="logistic", **found)
    u = 0.2 + 0.5 * torch.rand(2, 30, dtype=DOUBLE)
    np.testing.assert_allclose(outputs(network, u), outputs(same, u), rtol=1e-13)


def test_shared_steps_are_one_equation():
    torch.manual_seed(3)
    shared = mlp(grid=Lattice((7,)), steps=3, shared=True, reaction="tanh", dtype=DOUBLE)
    assert len(list(shared.parameters())) == 4 and len(shared.as_equation().phases) == 1
    u = torch.rand(2, 7, dtype=DOUBLE)
    found = solved(shared, u[0], (7,))
    assert found.solution.t == pytest.approx(3.0)
    np.testing.assert_allclose(found.observed, outputs(shared, u)[0], atol=1e-12)
    assert len(shared.as_torch()) == 6 and len(shared.coefficients()) == 3


@pytest.mark.parametrize("scheme", ["implicit", "explicit"])
@pytest.mark.parametrize("positive", [False, True])
def test_gradients(scheme, positive):
    torch.manual_seed(5)
    lattice = Lattice((3, 3), (0.5, 0.4), 0.0, "replicate")
    network = mlp(grid=lattice, scheme=scheme, positive=positive, reaction="tanh", dt=0.3, dtype=DOUBLE)
    u = torch.rand(2, 9, dtype=DOUBLE, requires_grad=True)
    names, values = zip(*network.named_parameters(), strict=True)
    call = torch.func.functional_call
    assert torch.autograd.gradcheck(lambda u, *p: call(network, dict(zip(names, p, strict=True)), u), (u, *values))


def test_positive_diffusion_stays_so():
    torch.manual_seed(6)
    network = mlp(grid=Lattice((5,)), positive=True, diffusion=0.3, dtype=DOUBLE)
    np.testing.assert_allclose(network.coefficients()[0]["diffusion"], 0.3, rtol=1e-12)
    optimiser = torch.optim.SGD(network.parameters(), 1.0)
    for _ in range(20):
        optimiser.zero_grad()
        network.steps[0].diffusion.sum().backward()
        optimiser.step()
    assert 0 < network.coefficients()[0]["diffusion"].min() < 0.1


# -------------------------------------------------------------------------------------------------------- errors


def nonlinear(u, x, t):
    return u * ufl.grad(u)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(), "either widths or a grid"),
        (dict(widths=(3, 3), grid=Lattice((4,))), "either widths or a grid"),
        (dict(widths=(3,)), "at least two positive integers"),
        (dict(widths=(3, 0)), "at least two positive integers"),
        (dict(widths=(3, 2), mass=1.0), "mass given with widths"),
        (dict(widths=(3, 2), reaction="rely"), "rely"),
        (dict(widths=(3, 2), dt=-1.0), "dt = -1"),
        (dict(widths=(3, 2), readout=0), "readout = 0"),
        (dict(grid=Lattice((4,)), scheme="midpoint"), "unknown scheme 'midpoint'; allowed: implicit, explicit"),
        (dict(grid=Lattice((4,)), steps=0), "steps = 0"),
        (dict(grid=Lattice((65, 65))), "4225 neurons given; 4096 allowed"),
        (dict(grid=Lattice((4,)), mass=np.ones(5)), r"mass of shape \(5,\)"),
        (dict(grid=Lattice((4,)), mass=np.nan), "mass is not finite"),
        (dict(grid=Lattice((4,)), diffusion=-1.0, positive=True), "not positive"),
        (dict(grid=Lattice((4,)), equation=npde.NPDE(flux=nonlinear)), "not linear"),
        (dict(grid=Lattice((4,)), equation=npde.NPDE(source=lambda u, x, t: u**2)), "not linear"),
        (dict(grid=Lattice((4,)), equation=npde.NPDE(components=2)), "one component"),
        (dict(grid=Lattice((4,)), equation=npde.NPDE(damping=2.0)), "damping 1"),
        (dict(grid=Lattice((4,)), equation=npde.NPDE(), mass=1.0), "mass given beside an equation"),
        (
            dict(
                grid=Lattice((4, 4)),
                equation=npde.NPDE(flux=lambda u, x, t: ufl.dot(ufl.diag(ufl.as_vector([1, 2])), ufl.grad(u))),
            ),
            "diffusion tensor",
        ),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        mlp(**arguments)


def test_bad_types_and_states_are_named():
    with pytest.raises(TypeError, match="grid must be a Lattice"):
        mlp(grid=(8, 8))
    with pytest.raises(TypeError, match="equation must be an NPDE"):
        mlp(grid=Lattice((4,)), equation=Pooling("max"))
    for network in (mlp((3, 2)), mlp(grid=Lattice((3,)))):
        with pytest.raises(ValueError, match=r"\(batch, 3\)"):
            network(torch.zeros(2, 4))
        with pytest.raises(ValueError, match="batch, neurons"):
            network(torch.zeros(3))
    with pytest.raises(ValueError, match="a scheme of its own"):
        mlp(grid=Lattice((3,))).as_equation().solve(np.zeros((1, 3)), comm=SELF, substeps=2)


# ----------------------------------------------------------------------------------------- inputs of few neurons


@pytest.mark.parametrize("refine", [1, 2])
@pytest.mark.parametrize("shape", [(6,), (1, 6)])
def test_solve_takes_an_input_of_the_network(shape, refine):
    torch.manual_seed(0)
    network = mlp((6, 9, 4), reaction="tanh", readout=3, dt=0.3, spacing=0.5, dtype=DOUBLE)
    u = torch.rand(6, dtype=DOUBLE)
    expected, padded = outputs(network, u[None])[0], np.zeros((1, 9))
    padded[0, :6] = u
    equation = network.as_equation()
    found = equation.solve(u.reshape(shape), comm=SELF, refine=refine, progress=False).observed
    whole = equation.solve(padded, comm=SELF, refine=refine, progress=False).observed
    assert np.array_equal(found, whole)
    if refine == 1:
        assert np.abs(found - expected).max() < 1e-12
        assert np.abs(expected).max() > 0.1


def test_images_may_be_flat():
    torch.manual_seed(0)
    network = mlp(grid=Lattice((4, 3), 0.2), steps=2, reaction="tanh", scheme="explicit", dtype=DOUBLE)
    u = torch.rand(1, 12, dtype=DOUBLE)
    for given in (u, u[0].tolist(), u.reshape(1, 4, 3)):
        found = network.as_equation().solve(given, comm=SELF, progress=False)
        assert np.abs(found.array().ravel() - outputs(network, u)[0]).max() < 1e-12


def test_perceptrons_that_were_read_take_their_input():
    stock = torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.Tanh(), torch.nn.Linear(12, 2)).double()
    u = torch.rand(5, dtype=DOUBLE)
    for options in ({}, {"shape": (3, 4)}):
        equation = npde.networks.interpret(stock, **options).to_npde()
        assert np.abs(equation.solve(u, comm=SELF, progress=False).observed - outputs(stock, u)).max() < 1e-12


@pytest.mark.parametrize("shape", [(7,), (1, 5), (6, 1), (2, 6), (1, 1, 9)])
def test_inputs_of_other_widths_are_refused(shape):
    with pytest.raises(
        ValueError, match=rf"u0: array of shape {re.escape(str(shape))} given; \(6,\) or \(1, 6\) or \(1, 9\)"
    ):
        mlp((6, 9, 4)).as_equation().solve(np.zeros(shape), comm=SELF)
