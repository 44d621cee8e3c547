"""The Elman network: as nn.RNN, as equation by FD and FEM, read from nn.RNN, trained, and bad input."""

import npde_fem as npde

import numpy as np
import pytest
from mpi4py import MPI

torch = pytest.importorskip("torch")

from npde_fem.networks.kinds.rnn import ElmanNetwork, rnn  # noqa: E402
from npde_fem.networks.lattice import Lattice  # noqa: E402

COMM = MPI.COMM_WORLD
D = torch.float64
BOUNDARIES = ["zeros", "replicate", "reflect", "circular"]


def inputs(batch=3, steps=9, seed=1):
    torch.manual_seed(seed)
    return torch.randn(batch, steps, 2, dtype=D)


def local(shape, boundary, outputs=3):
    """A network with coefficients that vary in space."""
    torch.manual_seed(0)
    of = Lattice(shape, tuple(0.5 + 0.3 * a for a in range(len(shape))), 0.1, boundary)
    net = rnn(2, outputs=outputs, local=True, grid=of, dt=0.3, probes=[of.lower, of.last], dtype=D)
    with torch.no_grad():
        net.mass.normal_()
        net.drift.normal_()
        net.diffusion.uniform_(0.0, 0.2)
    return net


def apart(found, expected):
    return float(np.abs(np.asarray(found) - np.asarray(expected.detach())).max())


# -- one network, three ways -------------------------------------------------------------------------------------


@pytest.mark.parametrize("observe", ["last", "all"])
@pytest.mark.parametrize("reaction", ["tanh", "relu"])
@pytest.mark.parametrize("dt", [1.0, 0.2])
def test_stock_network(dt, reaction, observe):
    x, start = inputs(), torch.randn(3, 6, dtype=D)
    for changes in ({}, {"outputs": 4}, {"outputs": 4, "probes": [0.0, 2.5]}, {"probes": [4.0]}):
        net = rnn(2, 6, reaction=reaction, dt=dt, observe=observe, dtype=D, **changes)
        stock = net.as_torch()
        assert isinstance(stock.rnn, torch.nn.RNN)
        for state in (None, start):
            assert apart(stock(x, state).detach(), net(x, state)) < 1e-12


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_from_a_stock_network_and_back(kind, bias):
    cell = torch.nn.RNN(2, 5, nonlinearity=kind, bias=bias, batch_first=True, dtype=D)
    readout = torch.nn.Linear(5, 3, dtype=D)
    net = ElmanNetwork.from_torch(cell, readout, dt=0.3)
    x = inputs()
    assert apart(net(x).detach(), readout(cell(x)[1][0])) < 1e-12
    again = net.as_torch().rnn
    assert apart(again.weight_hh_l0.detach(), cell.weight_hh_l0) < 1e-12
    assert apart(again.weight_ih_l0.detach(), cell.weight_ih_l0) < 1e-12


@pytest.mark.parametrize("reaction", ["tanh", "relu", "sigmoid", "identity", "tanh_flow", "polynomial"])
def test_equation(reaction):
    """A nonlocal one on the neurons, by Lie splitting."""
    torch.manual_seed(0)
    net = rnn(2, 6, 3, reaction=reaction, dt=0.05 if reaction in ("tanh_flow", "polynomial") else 0.4, dtype=D)
    with torch.no_grad():
        net.source_positions *= 0.1 * net.dt
        net.source *= 0.1 * net.dt
    x, start = inputs(1), 0.3 * torch.rand(1, 6, dtype=D)
    for state in (None, start[0]):
        y, states = net(x, None if state is None else state[None], states=True)
        result = net.as_equation().solve(x[0], state)
        assert apart(result.states, states[0]) < 1e-10 and apart(result.outputs, y[0]) < 1e-10


def test_equation_has_a_field_for_the_input():
    equation = rnn(2, 6).as_equation().equation
    problem = npde.FD(equation, Lattice((6,)).grid(COMM))
    assert set(problem.parameters) == {"input"} and equation.nonlocal_term is not None


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [(7,), (5, 4)])
def test_local_network(shape, boundary):
    """Mass, drift and diffusion that vary in space: nn.RNN, and flux and source by finite differences."""
    net, x = local(shape, boundary), inputs(1)
    start = torch.randn(1, net.lattice.size, dtype=D)
    y, states = net(x, start, states=True)
    assert apart(net.as_torch()(x, start).detach(), y) < 1e-12
    result = net.as_equation().solve(x[0], start[0])
    assert apart(result.states.reshape(9, -1), states[0]) < 1e-10 and apart(result.outputs, y[0]) < 1e-10


def test_finite_elements():
    """Of a local network on a mesh whose nodes are not the lattice's points, from a smooth state on."""
    differences = []
    for factor in (1, 2, 4):
        of = Lattice((15,), 1 / 16, 1 / 16).refined(factor)
        net = rnn(1, local=True, grid=of, dt=0.01 / factor**2, reaction="identity", dtype=D)
        x = torch.from_numpy(of.coordinates()[0])
        with torch.no_grad():
            net.mass[:] = torch.cos(3 * x)
            net.drift[0] = 0.5 + 0.3 * x
            net.diffusion[:] = 0.05 * (1 + x**2)
            net.source_positions[:, 0] = torch.sin(np.pi * x) ** 2
            net.source.zero_()
            drive = torch.ones(10 * factor**2, 1, dtype=D)
            states = net(drive[None], torch.sin(np.pi * x)[None], states=True)[1]
        mesh = of.mesh(COMM, [23 * factor])
        found = net.as_equation().solve(drive, torch.sin(np.pi * x), on=mesh).states[-1]
        differences.append(np.abs(found - states[0, -1].numpy()).max())
    orders = np.log2(np.divide(differences[:-1], differences[1:]))
    assert orders[-1] > 1.8 and differences[-1] < 1e-3, (differences, orders)


# -- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nonlocal", "local"])
def test_gradients(kind):
    net = rnn(2, 5, 2, dt=0.5, dtype=D) if kind == "nonlocal" else local((4, 3), "circular", 2)
    names = [name for name, _ in net.named_parameters()]
    x, start = inputs(2, 4).requires_grad_(), torch.randn(2, net.lattice.size, dtype=D, requires_grad=True)

    def run(x, start, *values):
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), (x, start))

    assert torch.autograd.gradcheck(run, (x, start, *net.parameters()))


def test_parameters_are_named_for_physics():
    assert set(dict(rnn(2, 5, 3).named_parameters())) == {
        *("kernel", "source_positions", "source", "readout.weight", "readout.bias")
    }
    assert {"mass", "drift", "diffusion", "source"} < set(dict(local((5,), "zeros").named_parameters()))
    assert "source_positions  5 x 2" in rnn(2, 5).describe()


def test_trained_as_its_twin():
    """The same start, Adam and batches: the same network, but for the one bias that nn.RNN has twice."""
    torch.manual_seed(0)
    cell, readout = torch.nn.RNN(2, 8, batch_first=True, bias=False, dtype=D), torch.nn.Linear(8, 1, dtype=D)
    net = ElmanNetwork.from_torch(cell, readout)
    net.source.requires_grad_(False)
    x = inputs(64, 5)
    wanted = (x[:, 4, :1] - x[:, 3, 1:]).tanh()
    losses = []
    for run, parameters in (
        (net, [p for p in net.parameters() if p.requires_grad]),
        (lambda x: readout(cell(x)[1][0]), [*cell.parameters(), *readout.parameters()]),
    ):
        optimiser, loss = torch.optim.Adam(parameters, 0.01), torch.zeros(())
        for _ in range(40):
            optimiser.zero_grad()
            loss = (run(x) - wanted).square().mean()
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] < 0.6 * float(wanted.square().mean())


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": None}, "either hidden, the number of neurons, or a grid"),
        ({"grid": (3, 3)}, "either hidden, the number of neurons, or a grid"),
        ({"hidden": 2}, "at least 3 points"),
        ({"inputs": 0}, "inputs = 0 given; a positive integer"),
        ({"outputs": -1}, "outputs = -1 given; a positive integer"),
        ({"dt": 0.0}, "dt = 0.0 given; a positive"),
        ({"observe": "some"}, "observe 'some' given; 'last' or 'all'"),
        ({"probes": [6.5]}, r"rnn probes: position \[6.5\] lies outside of the lattice"),
        ({"probes": []}, r"positions of shape \(0, 1\) given"),
        ({"reaction": "swishy"}, "swishy"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        rnn(**{"inputs": 2, "hidden": 6, **changes})


def test_bad_inputs():
    net = rnn(2, 6)
    for shape in [(2, 5, 3), (5, 2), (1, 0, 2)]:
        with pytest.raises(ValueError, match=r"rnn: inputs of shape .* given; \(batch, steps, 2\)"):
            net(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"state of shape \(1, 5\) given; \(1, 6\)"):
        net(torch.zeros(1, 3, 2), torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"state of shape \(5,\) given"):
        net.as_equation().solve(np.zeros((3, 2)), np.zeros(5))
    with pytest.raises(ValueError, match="nn.RNN has no reaction 'identity'; 'tanh' and 'relu' allowed"):
        rnn(2, 6, reaction="identity").as_torch()
    with pytest.raises(ValueError, match="2 layers in both directions given; one layer"):
        ElmanNetwork.from_torch(torch.nn.RNN(2, 5, num_layers=2, bidirectional=True))


# -- ranks -------------------------------------------------------------------------------------------------------


def test_ranks(mpirun, tmp_path):
    mpirun(1, "recurrent.py", tmp_path / "one.npz")
    mpirun(3, "recurrent.py", tmp_path / "three.npz")
    one, three = np.load(tmp_path / "one.npz"), np.load(tmp_path / "three.npz")
    assert set(one.files) == {"wave", "elman", "local", "mesh"}
    for name in one.files:
        np.testing.assert_allclose(three[name], one[name], rtol=0, atol=1e-10 * np.abs(one[name]).max())
