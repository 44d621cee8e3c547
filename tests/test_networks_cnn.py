"""Convolutional networks generated from equations: the same maps as torch's, as finite differences, and stable."""

import copy

import npde_fem as npde
from npde_fem import physics
from npde_fem.networks.coefficients import Coefficients
from npde_fem.networks.kinds.cnn import cnn, lattice_of, resnet
from npde_fem.networks.kinds.stability import StableTransport, amplification, check_step, stable_dt, symbols
from npde_fem.networks.kinds.transport import Transport, stock_convolution
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.phases import Pooling
from npde_fem.networks.reactions import Polynomial

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn

BOUNDARIES = ("zeros", "replicate", "reflect", "circular")
SHAPE, SPACING = (8, 6, 4), (0.1, 0.25, 3.0)


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def lattice(dim, boundary="zeros"):
    return Lattice(SHAPE[:dim], SPACING[:dim], 0.0, boundary)


def largest(tensor):
    return float(tensor.detach().abs().max())


# -- one step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_step_is_torchs_convolution(dim, boundary):
    place = lattice(dim, boundary)
    for channels in ((1, 1), (2, 3), (8, 8)):
        for size, stride in ((3, 1), (3, 2), (1, 1)):
            conv = stock_convolution(place, *channels, (size,) * dim, stride)
            transport = Transport.from_conv(conv, place, dt=0.01)
            u = torch.randn(2, channels[0], *place.shape)
            expected = conv(u)
            assert largest(transport(u) - expected) < 1e-12
            assert largest(transport.as_torch()(u) - expected) < 1e-12
            assert transport.as_torch().padding_mode == boundary
            again = Transport.from_coefficients(transport.coefficients(), place, stride=stride)
            assert largest(again(u) - expected) < 1e-12


def test_wide_kernels_and_convolutions_without_bias():
    place = Lattice((9, 8), (0.1, 2.0), 0.0, "reflect")
    conv = nn.Conv2d(2, 3, (5, 3), padding="same", padding_mode="reflect", bias=False)
    transport = Transport.from_conv(conv, place, dt=0.2)
    u = torch.randn(1, 2, 9, 8)
    assert transport.remainder.shape == (3, 2, 15 - 6)
    assert largest(transport(u) - conv(u)) < 1e-12
    assert largest(torch.from_numpy(transport.coefficients().kernel()) - conv.weight) < 1e-12


def test_wide_kernels_without_a_rest():
    kernel = np.zeros((1, 1, 5, 5))
    kernel[0, 0, 2, 1:4] = 0.1, 0.8, 0.1
    network = cnn(Coefficients.of_kernel(kernel), grid=(6, 6), steps=1, reaction="identity")
    assert largest(network.layers[0].transport.kernel() - torch.from_numpy(kernel)) < 1e-15


def test_starts_as_torchs_convolution_does():
    torch.manual_seed(5)
    transport = Transport(Lattice((5, 5), 0.01), 2, 4, dt=1e-3)
    torch.manual_seed(5)
    conv = nn.Conv2d(2, 4, 3, padding=1)
    assert largest(transport.kernel() - conv.weight) < 1e-15
    assert largest(transport.bias() - conv.bias) == 0
    assert max(largest(p) for p in transport.parameters()) < 10  # whatever h and dt


def test_coefficients_are_physical():
    place = Lattice((6, 5), (0.1, 0.5), 0.0, "circular")
    diffusion = np.array([[[[0.3, 0.05], [0.05, 0.2]]]])
    made = Coefficients(
        np.full((1, 1), -0.7),
        np.array([[[0.2, -0.4]]]),
        diffusion,
        np.zeros((1, 1, 3, 3)),
        np.ones(1),
        (0.1, 0.5),
        2e-3,
    )
    transport = Transport.from_coefficients(made, place, remainder=False)
    assert transport.remainder is None
    assert np.allclose(transport.mass.detach(), 2e-3 * -0.7)
    assert np.allclose(transport.drift.detach(), [[[2e-3 * 0.2 / 0.1, 2e-3 * -0.4 / 0.5]]])
    assert np.allclose(transport.diffusion.detach(), 2e-3 * np.array([[[30.0, 1.0, 0.8]]]))
    found = transport.coefficients()
    for name in ("mass", "drift", "diffusion", "rest", "source", "dt"):
        assert np.allclose(getattr(found, name), getattr(made, name), rtol=1e-13, atol=1e-15), name
    finer = place.refined(2)
    assert np.allclose(transport.on(finer).coefficients().diffusion, diffusion)
    expected = Transport.from_coefficients(made, finer).kernel()
    assert largest(transport.on(finer).kernel() - expected) < 1e-13


@pytest.mark.parametrize("kind", [Transport, StableTransport])
def test_gradients_of_a_step(kind):
    place = Lattice((3, 4), (0.3, 0.2), 0.0, "circular")
    transport = kind(place, 2, 2, dt=0.4)
    names = [name for name, _ in transport.named_parameters()]

    def output(u, *values):
        return torch.func.functional_call(transport, dict(zip(names, values, strict=True)), (u,))

    u = torch.randn(1, 2, 3, 4, requires_grad=True)
    assert torch.autograd.gradcheck(output, (u, *transport.parameters()))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (nn.Conv2d(1, 1, 2), "kernel_size"),
        (nn.Conv2d(2, 2, 3, padding=1, groups=2), "groups"),
        (nn.Conv2d(1, 1, 3, padding=2, dilation=2), "dilation"),
        (nn.Conv2d(1, 1, 3, padding=1, stride=(1, 2)), "stride"),
        (nn.Conv2d(1, 1, 3), "padding"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "padding_mode"),
        (nn.Conv2d(1, 1, 7, padding=3), "smaller than the kernel"),
    ],
)
def test_convolutions_that_are_no_step(wrong, message):
    with pytest.raises(ValueError, match=message):
        Transport.from_conv(wrong, Lattice((5, 5)))


def test_convolution_of_another_dimension():
    with pytest.raises(TypeError, match="Conv2d allowed"):
        Transport.from_conv(nn.Conv1d(1, 1, 3, padding=1), Lattice((5, 5)))


# -- networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_network_is_a_stock_network(dim, boundary):
    place = Lattice((8, 12, 8)[:dim], SPACING[:dim], 0.0, boundary)
    cases = [
        {"channels": (1, 3, 8), "pooling": [Pooling("max", 2), None], "readout": 3},
        {"channels": (2, 4, 2), "pooling": [2, Pooling("mean", 2)]},
        {"channels": (3, 1, 1), "remainder": False},
        {"channels": 2, "steps": 2, "shared": True, "pooling": [Pooling("mean", 2), None]},
    ]
    for case in cases:
        network = cnn(grid=place, reaction="sigmoid", dt=0.3, **case)
        u = torch.randn(2, network.layers[0].transport.in_channels, *place.shape)
        stock = network.as_torch()
        assert all(type(layer).__module__.startswith("torch.nn") for layer in stock)
        assert largest(stock(u) - network(u)) < 1e-12
        assert not {id(p) for p in stock.parameters()} & {id(p) for p in network.parameters()}


def test_shared_steps_share_their_parameters():
    network = cnn(
        grid=(6, 6), channels=2, steps=5, shared=True, reaction="polynomial", pooling=[None, 2, None, None, None]
    )
    apart = cnn(grid=(6, 6), channels=2, steps=5, reaction="polynomial")
    sizes = [sum(p.numel() for p in made.parameters()) for made in (network, apart)]
    assert sizes[1] == 5 * sizes[0]
    assert [phase.steps for phase in network.as_equation().phases] == [1, 1, 3]
    plain = cnn(grid=(6, 6), channels=2, steps=5, shared=True)
    assert len(plain.as_equation().phases) == 1
    assert sum(p.numel() for p in plain.as_torch().parameters()) == sum(p.numel() for p in plain.parameters())
    # copies share on, and the kernels on the coarser lattice are those of the same coefficients
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied.layers[0].transport.diffusion += 1.0
    first, last = copied.coefficients()[0], copied.coefficients()[-1]
    assert np.allclose(first.diffusion, last.diffusion) and first.spacing != last.spacing


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_network_is_its_equation(boundary):
    place = Lattice((8, 6), (0.1, 0.2), (1.0, -1.0), boundary)
    network = cnn(
        grid=place, channels=(1, 2, 2), reaction="tanh", dt=0.3, pooling=[Pooling("mean", 2), None], readout=3
    )
    u = torch.randn(1, 1, 8, 6)
    solved = network.as_equation().solve(u[0].numpy(), progress=False)
    assert np.abs(solved.observed - network(u)[0].detach().numpy()).max() < 1e-10


def test_residual_network():
    network = resnet((1, 2, 2), Lattice((8, 8), 0.1, 0.0, "periodic"), hidden=(3, 4), dt=0.05)
    u = torch.randn(2, 1, 8, 8)
    assert largest(network.as_torch()(u) - network(u)) < 1e-12
    solved = network.as_equation().solve(u[0].numpy(), progress=False)
    assert np.abs(solved.array() - network(u)[0].detach().numpy()).max() < 1e-10
    near = resnet(2, (5, 5), 3, dt=1e-6)  # one step more changes little
    v = torch.randn(1, 2, 5, 5)
    assert largest(near(v) - v) < 1e-4
    assert len(list(resnet(2, (5, 5), 3, shared=True).parameters())) * 3 == len(list(resnet(2, (5, 5), 3).parameters()))


def test_training_moves_the_coefficients():
    network = cnn(grid=(6, 6), channels=1, steps=2, shared=True, boundary="periodic", reaction=Polynomial(degree=3))
    u = torch.randn(4, 1, 6, 6)
    network(u).square().mean().backward()
    assert all(p.grad is not None and largest(p.grad) > 0 for p in network.parameters())


# -- generated from equations -------------------------------------------------------------------------------------


def lap(u, h):
    return (np.roll(u, 1, -1) + np.roll(u, -1, -1) + np.roll(u, 1, -2) + np.roll(u, -1, -2) - 4 * u) / h**2


def fisher_step(u, h, dt):
    v = u + dt * 0.5 * lap(u, h)
    growth = np.exp(2.0 * dt)
    return growth * v / (1 + (growth - 1) * v)


def allen_cahn_step(u, h, dt):
    v = u + dt * 0.3**2 * lap(u, h)
    return v / np.sqrt(v**2 + (1 - v**2) * np.exp(-2 * dt))


def gray_scott_step(w, h, dt):
    u, v = w + dt * np.array([0.2, 0.1])[:, None, None] * lap(w, h)
    eaten = u * v**2
    return np.array([u + dt * (-eaten + 0.04 * (1 - u)), v + dt * (eaten - 0.1 * v)])


@pytest.mark.parametrize(
    "equation, step",
    [
        (physics.fisher_kpp(0.5, 2.0), fisher_step),
        (physics.allen_cahn(0.3), allen_cahn_step),
        (physics.gray_scott(0.2, 0.1), gray_scott_step),
    ],
)
def test_generated_from_an_equation(equation, step):
    h, dt = 0.1, 4e-3
    network = cnn(equation, grid=Lattice((7, 6), h, 0.0, "periodic"), steps=5, dt=dt, dtype=torch.float64)
    assert len({id(layer) for layer in network.layers}) == 1  # autonomous
    expected = np.random.default_rng(0).random((equation.components, 7, 6))
    u = torch.from_numpy(expected)[None]
    for _ in range(5):
        expected = step(expected, h, dt)
    assert np.abs(network(u)[0].detach().numpy() - expected).max() < 1e-12
    assert network.as_equation().phases[0].steps == 5


def test_drift_and_mass_of_an_equation():
    """u_t = -c u_x - k u + D u_xx against the loop, with zeros around."""
    import ufl

    equation = npde.NPDE(
        flux=lambda u: 0.05 * ufl.grad(u) - u * ufl.as_vector([0.3]), source=lambda u: 0.2 - 1.5 * u, name="advection"
    )
    h, dt = 0.1, 0.01
    network = cnn(equation, grid=Lattice((9,), h, 0.0, "dirichlet"), steps=20, dt=dt)
    u = np.random.default_rng(0).random(9)
    found = network(torch.from_numpy(u)[None, None])[0, 0].detach().numpy()
    for _ in range(20):
        w = np.pad(u, 1)
        slope, curvature = (w[2:] - w[:-2]) / (2 * h), (w[2:] - 2 * u + w[:-2]) / h**2
        u = u + dt * (0.05 * curvature - 0.3 * slope - 1.5 * u + 0.2)
    assert np.abs(found - u).max() < 1e-12


# -- stability ----------------------------------------------------------------------------------------------------


def one_dimensional(mass=0.0, drift=0.0, diffusion=0.0, dt=1.0, h=0.1):
    blank = np.zeros((1, 1, 3))
    return Coefficients(
        np.full((1, 1), mass), np.full((1, 1, 1), drift), np.full((1, 1, 1, 1), diffusion), blank, np.zeros(1), (h,), dt
    )


def randomise(transport, rng):
    with torch.no_grad():
        for name in ("mass", "drift", "diffusion"):
            size = 10 ** rng.uniform(-2, 2) * rng.choice([0.0, 1.0], p=[0.2, 0.8])
            parameter = getattr(transport, name)
            parameter.copy_(torch.from_numpy(size * rng.normal(size=tuple(parameter.shape))))


@pytest.mark.parametrize("boundary", ["circular", "zeros"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_stable_by_construction_for_any_coefficients(dim, boundary):
    rng = np.random.default_rng(dim)
    for channels in (1, 2, 4):
        transport = StableTransport(lattice(dim, boundary), channels, channels, dt=10 ** rng.uniform(-2, 2))
        for _ in range(12):
            randomise(transport, rng)
            assert amplification(transport) < 1 + 1e-12


@pytest.mark.parametrize("boundary", ["circular", "zeros"])
@pytest.mark.parametrize("reaction", [nn.Identity(), nn.ReLU(), nn.Tanh()])
def test_norm_never_grows_over_ten_thousand_steps(boundary, reaction):
    rng = np.random.default_rng(0)
    place = Lattice((6, 5), (0.1, 0.3), 0.0, boundary)
    convolutions = []
    for _ in range(100):
        transport = StableTransport(place, 2, 2, dt=0.1)
        randomise(transport, rng)
        with torch.no_grad():
            transport.source.zero_()
        convolutions.append(transport.as_torch())
    with torch.no_grad():
        fall = 1.0
        u = torch.randn(4, 2, 6, 5)
        for k in rng.integers(100, size=10_000):
            v = reaction(convolutions[k](u))
            before, after = (w.square().sum().sqrt() for w in (u, v))
            assert after <= before * (1 + 1e-12)
            fall *= float(after / before)
            u = v / after if after > 0 else torch.randn_like(u)  # so that there is a state to look at
            if not isinstance(reaction, nn.Tanh):
                assert abs(float(u.norm()) - 1) < 1e-9 or after == 0
    assert fall < 1


def test_drift_alone_keeps_most_of_the_norm():
    """The diffusion that stabilises drift is that of Lax and Wendroff: no more than of second order in the step."""
    place = Lattice((64,), 1.0, 0.0, "circular")
    transport = StableTransport.from_coefficients(one_dimensional(drift=1.0, dt=0.5, h=1.0), place)
    u = torch.sin(2 * torch.pi * torch.arange(64) / 64)[None, None]
    kept = u
    for _ in range(128):
        kept = transport(kept)
    assert 0.99 < float((kept.norm() / u.norm()).detach()) < 1
    assert largest(kept - u) < 0.1  # once around
    assert transport.coefficients().diffusion.item() == pytest.approx(0.5 / 2, rel=1e-6)


@pytest.mark.parametrize(
    "coefficients, limit",
    [
        (one_dimensional(diffusion=2.0), 0.1**2 / 4),
        (one_dimensional(drift=2.0), 0.1 / 2),
        (one_dimensional(mass=-3.0), 2 / 3),
    ],
)
def test_limit_is_exact_in_simple_cases(coefficients, limit):
    transport = StableTransport.from_coefficients(coefficients, Lattice((8,), 0.1, 0.0, "circular"))
    assert transport.coefficients().dt == pytest.approx(0.95 * limit, rel=1e-5)
    if not coefficients.drift.any():
        assert stable_dt(coefficients, transport.lattice) == pytest.approx(limit)
    short = StableTransport.from_coefficients(coefficients, transport.lattice, dt=0.1 * limit)
    assert short.coefficients().dt == pytest.approx(0.1 * limit, rel=1e-12)


def test_stable_networks_train_and_are_their_equations():
    network = cnn(grid=Lattice((6, 6), 0.1, 0.0, "zeros"), channels=2, steps=3, stable=True, reaction="tanh", dt=2.0)
    with torch.no_grad():
        network.layers[1].transport.drift.mul_(100.0)
    u = torch.randn(2, 2, 6, 6)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        (-network(u).square().sum()).backward()  # to grow is what it would learn
        optimizer.step()
        assert max(network.stability()) < 1 + 1e-12
    assert largest(network.as_torch()(u) - network(u)) < 1e-12
    solved = network.as_equation().solve(u[0].numpy(), progress=False)
    assert np.abs(solved.array() - network(u)[0].detach().numpy()).max() < 1e-10
    assert network.coefficients()[1].dt < 0.5 < network.layers[1].transport.dt


def test_amplification_is_the_norm_of_the_matrix():
    place = Lattice((5, 4), (0.1, 0.3), 0.0, "circular")
    transport = Transport(place, 2, 3)
    basis = torch.eye(2 * 20).view(40, 2, 5, 4)
    with torch.no_grad():
        transport.source.zero_()
        matrix = transport(basis).flatten(1).T
    assert amplification(transport) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-12)
    angles, values = symbols(transport.coefficients().kernel(), place)
    assert len(angles) == len(values) == 5 * 3


def test_unstable_steps_of_an_equation_are_refused():
    place = Lattice((8, 8), 0.1, 0.0, "periodic")
    with pytest.raises(ValueError, match=r"unstable step: layer 0 amplifies .* by 7 .*dt <= 0.0025, or stable=True"):
        cnn(physics.heat(1.0), grid=place, steps=2, dt=0.01)
    cnn(physics.heat(1.0), grid=place, steps=2, dt=0.0025)
    cnn(physics.heat(1.0), grid=place, steps=2, dt=0.01, check=False)
    made = cnn(physics.heat(1.0), grid=place, steps=2, dt=0.01, stable=True)
    assert max(made.stability()) < 1 + 1e-12 and made.coefficients()[0].dt == pytest.approx(0.95 * 0.0025, rel=1e-5)
    with pytest.raises(ValueError, match="no dt is stable without diffusion"):
        check_step(one_dimensional(drift=1.0, dt=0.01), Lattice((8,), 0.1, 0.0, "circular"))
    check_step(one_dimensional(mass=1.0, diffusion=0.1, dt=0.01), Lattice((8,), 0.1))  # may grow: the equation does


def test_what_cannot_be_stable_by_construction():
    with pytest.raises(ValueError, match="as many out as in"):
        cnn(grid=(5, 5), channels=(1, 2), stable=True)
    with pytest.raises(ValueError, match="zeros and circular"):
        cnn(grid=(5, 5), channels=1, steps=1, stable=True, boundary="reflect")
    place = Lattice((8,), 0.1, 0.0, "circular")
    for wrong, message in (
        (one_dimensional(diffusion=-1.0), "positive semidefinite"),
        (one_dimensional(mass=1.0), "lets the state grow"),
    ):
        with pytest.raises(ValueError, match=message):
            StableTransport.from_coefficients(wrong, place)


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"steps": 0}, "steps = 0"),
        ({"steps": None}, "steps, the number of layers"),
        ({"steps": 1.5}, "positive integer"),
        ({"channels": None}, "channels, a number"),
        ({"channels": 0}, "channels = 0"),
        ({"channels": (1, 2)}, r"3 numbers \(C_0"),
        ({"channels": (1, 2, 3), "shared": True}, "shared=True"),
        ({"reaction": "rleu"}, "relu"),
        ({"reaction": ["relu"]}, "one, or 2"),
        ({"boundary": "mirror"}, "unknown boundary 'mirror'; allowed: zeros"),
        ({"grid": (2, 8)}, "at least 3 points"),
        ({"pooling": [2]}, "2 layers"),
        ({"pooling": [0, None]}, "0 given"),
        ({"pooling": ["max", None]}, "Pooling allowed"),
        ({"pooling": [3, None]}, "factor 3 does not divide"),
        ({"pooling": [None, 3], "readout": 2}, "factor 3 does not divide"),
        ({"pooling": [4, None]}, "at least 3 points"),
        ({"readout": 0}, "readout = 0"),
        ({"scheme": "strang"}, "npde.Lie"),
        ({"scheme": npde.Lie(implicit=True)}, "explicit"),
        ({"dt": -1.0}, "dt = -1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        cnn(**({"grid": (8, 8), "channels": 1, "steps": 2} | arguments))


def test_unknown_poolings():
    with pytest.raises(ValueError, match="unknown kind 'median'"):
        Pooling("median", 2)


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 1, 8, 7), (1, 8, 8), (8, 8)])
def test_states_of_another_shape(shape):
    network = cnn(grid=(8, 8), channels=1, steps=1)
    with pytest.raises(ValueError, match=r"\(batch, 1, 8, 8\) allowed"):
        network(torch.zeros(shape))


def test_coefficients_that_do_not_fit():
    with pytest.raises(ValueError, match="coefficients in 1D, lattice in 2D"):
        cnn(one_dimensional(), grid=(8, 8), steps=1)
    with pytest.raises(ValueError, match=r"its coefficients have \(1, 1\)"):
        cnn(one_dimensional(), grid=(8,), steps=1, channels=2)
    with pytest.raises(ValueError, match="for 2 layers"):
        cnn([one_dimensional()] * 2, grid=(8,), steps=3)
    with pytest.raises(TypeError, match="an NPDE, Coefficients"):
        cnn("heat", grid=(8,), steps=3)
    rest = Coefficients.of_kernel(np.random.default_rng(0).normal(size=(1, 1, 3, 3)))
    with pytest.raises(ValueError, match="have a rest"):
        cnn(rest, grid=(8, 8), steps=1, remainder=False)


def test_grids_that_are_meant():
    grid = npde.Grid(MPI.COMM_SELF, (9, 5), (0.0, 0.0), (0.8, 2.0))
    assert lattice_of(grid, "periodic") == Lattice((8, 4), (0.1, 0.5), 0.0, "circular")
    assert lattice_of(grid, "zeros").shape == (9, 5)
    padded = npde.Grid(MPI.COMM_SELF, (9,), (0.0,), (0.8,), padding="reflect")
    assert lattice_of(padded).boundary == "reflect"
    assert lattice_of((4, 4)) == Lattice((4, 4))
    with pytest.raises(ValueError, match="the grid has 'reflect'"):
        lattice_of(padded, "zeros")
    with pytest.raises(ValueError, match="mask"):
        lattice_of(npde.Grid(MPI.COMM_SELF, (9, 9), (0, 0), (1, 1), mask=np.ones((9, 9), bool)))
