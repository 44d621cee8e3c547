"""The wave network: as stock layers, as equation by FD and FEM, its energy, its gradients, and bad input."""

import npde_fem as npde
from npde_fem.discretize import Probe

import numpy as np
import pytest
from mpi4py import MPI

torch = pytest.importorskip("torch")

from npde_fem.networks.kinds.rnn import rnn, wave_rnn  # noqa: E402
from npde_fem.networks.lattice import Lattice  # noqa: E402

COMM = MPI.COMM_WORLD
D = torch.float64
BOUNDARIES = ["zeros", "replicate", "reflect", "circular"]
SHAPES = [(7,), (5, 4)]


def lattice(shape, boundary="zeros"):
    return Lattice(shape, tuple(0.5 + 0.3 * a for a in range(len(shape))), 0.1, boundary)


def network(shape, boundary="zeros", outputs=None, **changes):
    """Speed and damping that vary, two sources between the points, two probes."""
    of, some = lattice(shape, boundary), np.random.default_rng(0)
    torch.manual_seed(0)
    middle = np.mean([of.lower, of.last], axis=0) + 0.07
    settings = {
        "speed": 0.5 + some.random(shape),
        "damping": 0.3 * some.random(shape),
        "sources": [of.lower, middle],
        "probes": [of.last, middle],
        **changes,
    }
    return wave_rnn(of, 2, outputs, dtype=D, **settings)


def data(shape, steps=20, batch=2, seed=1):
    """Inputs, and a state with its predecessor."""
    torch.manual_seed(seed)
    x, u, before = torch.randn(batch, steps, 2, dtype=D), *torch.randn(2, batch, *shape, dtype=D)
    return x, (u, before)


def close(found, expected, tolerance):
    assert float((found - expected).abs().max()) < tolerance * float(expected.abs().max())


# -- one network, three ways -------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 4, 3)])
def test_stock_layers(shape, boundary):
    x, state = data(shape)
    for changes in ({}, {"intensity": True, "outputs": 3}, {"observe": "last"}, {"sources": None, "probes": None}):
        net = network(shape, boundary, **changes)
        with torch.no_grad():
            close(net.as_torch()(x, state), net(x, state), 1e-12)
            close(net.as_torch()(x), net(x), 1e-12)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_leapfrog_of_the_library(shape, boundary):
    """With rests of the input, which are one solve each."""
    x, state = data(shape, steps=16, batch=1)
    x[:, 5:12] = 0
    net = network(shape, boundary, outputs=3, intensity=True)
    with torch.no_grad():
        y, states = net(x, state, states=True)
    result = net.as_equation().solve(x[0], (state[0][0], state[1][0]))
    assert len(result.solution.steps) == 1
    close(torch.from_numpy(result.states), states[0], 1e-10)
    close(torch.from_numpy(result.outputs), y[0], 1e-10)


def test_equation_has_inertia_and_fields():
    equation = network((7,)).as_equation().equation
    problem = npde.FD(equation, lattice((7,)).grid(COMM))
    assert problem.second_order and problem.damped and set(problem.parameters) == {"speed", "damping"}
    free = npde.FD(network((7,), damping=0.0).as_equation().equation, lattice((7,)).grid(COMM))
    assert not free.damped


def test_free_evolution_is_one_solve():
    net = network((5, 4), damping=0.0)
    _, state = data((5, 4), batch=1)
    still = torch.zeros(1, 300, 2, dtype=D)
    with torch.no_grad():
        y = net(still, state)
    result = net.as_equation().solve(still[0], tuple(u[0] for u in state))
    assert len(result.solution.steps) == 300
    close(torch.from_numpy(result.outputs), y[0], 1e-10)


@pytest.mark.parametrize("boundary", ["zeros", "replicate", "circular"])
@pytest.mark.parametrize("dim", [1, 2])
def test_finite_elements(dim, boundary):
    """On meshes whose nodes are not the lattice's points the difference falls with order 2."""
    apart = []
    for factor in (1, 2, 4) if dim == 1 else (1, 2):
        of = Lattice((15,) if dim == 1 else (13, 12), 0.15, 0.0, boundary).refined(factor)
        first, last = (np.array(corner).reshape(-1, *(1,) * dim) for corner in of.domain)
        s = (of.coordinates() - first) / (last - first)
        shape = {"zeros": np.sin(np.pi * s), "replicate": np.cos(np.pi * s), "circular": np.sin(2 * np.pi * s)}
        start = np.prod(shape[boundary], axis=0)
        net = wave_rnn(of, 1, speed=1 + 0.2 * np.cos(2 * np.pi * s[0]), damping=0.4, dt=0.04 / factor, dtype=D)
        still, u = torch.zeros(1, 20 * factor, 1, dtype=D), torch.from_numpy(start)[None]
        with torch.no_grad():
            _, states = net(still, (u, u), states=True)
        cells = [round(1.5 * n / h) for n, h in zip((last - first).ravel(), of.spacing, strict=True)]
        result = net.as_equation().solve(still[0], (start, start), on=of.mesh(COMM, cells), substeps=2)
        apart.append(np.sqrt(np.mean((result.states[-1] - states[0, -1].numpy()) ** 2)))
    order = np.log2(apart[0] / apart[-1]) / (len(apart) - 1)
    assert order > 1.8 and apart[-1] < 0.02, (apart, order)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_finer_lattices(boundary):
    """A network's state is multilinear there: towards a standing wave with order 2 in the network's own spacing."""
    apart = []
    for factor in (1, 2, 4):
        of = Lattice((12,), 0.1, 0.0, boundary).refined(factor)
        first, last = (corner[0] for corner in of.domain)
        number = np.pi * (2 if boundary == "circular" else 1) / (last - first)
        x = of.coordinates()[0] - first
        shape = np.sin(number * x) if boundary == "zeros" else np.cos(number * x)
        net = wave_rnn(of, 1, dt=0.04 / factor, dtype=D)
        result = net.as_equation().solve(
            np.zeros((20 * factor, 1)), (shape, shape * np.cos(number * net.dt)), refine=3, substeps=3
        )
        assert len(result.solution.steps) == 60 * factor
        apart.append(np.sqrt(np.mean((result.states[-1] - shape * np.cos(number * 0.8)) ** 2)))
    assert np.log2(apart[0] / apart[2]) / 2 > 1.7 and apart[2] < 0.01, apart


def test_sources_drive_finite_elements():
    """A smooth source; the trained weights are a field, multilinear between the points."""
    apart = []
    for factor in (1, 2):
        of = Lattice((19,), 0.1).refined(factor)
        net = wave_rnn(of, 1, dt=0.05 / factor, dtype=D)
        with torch.no_grad():
            net.sources[:, 0] = torch.from_numpy(np.sin(np.pi * of.coordinates()[0] / 0.5) ** 2)
            x = torch.sin(torch.arange(20 * factor, dtype=D) * net.dt * 5)[:, None]
            _, states = net(x[None], states=True)
        result = net.as_equation().solve(x, on=of.mesh(COMM, [27 * factor]), substeps=2)
        apart.append(np.abs(result.states[-1] - states[0, -1].numpy()).max())
    assert np.log2(apart[0] / apart[1]) > 1.6 and apart[1] < 0.02, apart


def test_probes_of_the_network_are_those_of_the_library():
    net = network((5, 4), sources=[[0.2, 0.3], [1.7, 2.0]])
    problem = npde.FD(net.as_equation().equation, net.lattice.grid(COMM))
    u = np.random.default_rng(3).normal(size=(5, 4))
    points = np.array([net.lattice.last, np.mean([net.lattice.lower, net.lattice.last], axis=0) + 0.07])
    np.testing.assert_allclose(
        net.probes.numpy() @ u.ravel(), Probe(problem, points).apply(problem.initial(u))[:, 0], atol=1e-12
    )
    np.testing.assert_allclose(net.sources.sum(0), 1, atol=1e-12)


# -- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_energy_is_conserved_over_10000_steps(boundary):
    net = network((5, 4), boundary, damping=0.0, sources=None, probes=None)
    _, state = data((5, 4), batch=1)
    with torch.no_grad():
        _, states = net(torch.zeros(1, 10_000, 2, dtype=D), state, states=True)
        energy = net.energy(states[0, 1:], states[0, :-1])
        first = net.energy(*state)[0]
    assert first > 0
    assert float((energy / first - 1).abs().max()) < 1e-9
    damped = network((5, 4), boundary, sources=None, probes=None)
    with torch.no_grad():
        _, states = damped(torch.zeros(1, 500, 2, dtype=D), state, states=True)
        energy = damped.energy(states[0, 1:], states[0, :-1])
    assert float((energy[1:] - energy[:-1]).max()) < 1e-12 * float(energy[0]) and energy[-1] < 0.2 * energy[0]


def norm_through(network, steps, shape, parts):
    """Norm of d(w . u_T)/d(state at the start), over that of w."""
    torch.manual_seed(2)
    x, w = torch.randn(1, steps, network.inputs, dtype=D), torch.randn(1, *shape, dtype=D)
    state = [torch.zeros(1, *shape, dtype=D, requires_grad=True) for _ in range(parts)]
    last = network(x, tuple(state) if parts > 1 else state[0], states=True)[1][:, -1]
    gradient = torch.autograd.grad((last * w.reshape(last.shape)).sum(), state)
    return float(torch.cat([g.flatten() for g in gradient]).norm() / w.norm())


def test_gradients_through_1000_steps():
    """The wave network's stay; the Elman cell's, with the weights that nn.RNN begins with, vanish."""
    some = np.random.default_rng(0)
    wave = wave_rnn((64,), 1, speed=0.5 + some.random(64), dtype=D)
    norms = [norm_through(wave, steps, (64,), 2) for steps in (1, 10, 100, 1000)]
    assert all(1e-3 < value / norms[0] < 1e3 for value in norms), norms
    torch.manual_seed(0)
    elman = rnn(1, 64, dtype=D)
    norms = [norm_through(elman, steps, (64,), 1) for steps in (1, 30, 1000)]
    assert norms[1] / norms[0] < 1e-3 and norms[2] / norms[0] < 1e-30, norms


# -- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape, boundary):
    x, state = data(shape, steps=4)
    for changes in (
        {"sources": None, "intensity": True, "outputs": 2},
        {"sources": None, "probes": None},
        {"sources": None, "observe": "last", "fastest": 2.0},
    ):
        net = network(shape, boundary, **changes)

        def run(raw, sources, x, *state, net=net):
            return torch.func.functional_call(net, {"raw_speed": raw, "sources": sources}, (x, state))

        given = [net.raw_speed, net.sources, *(v.clone().requires_grad_() for v in (x, *state))]
        assert torch.autograd.gradcheck(run, given)


def test_training_finds_the_speed():
    """Of an inclusion, from what probes on both sides hear."""
    true = np.ones(24)
    true[10:15] = 0.7
    settings = {"fastest": 1.5, "sources": [0.0, 23.0], "probes": [1.0, 22.0], "dtype": D}
    measured = wave_rnn((24,), 2, speed=true, **settings)
    net = wave_rnn((24,), 2, speed=0.9, **settings)
    assert net.dt == measured.dt
    x = torch.zeros(2, 100, 2, dtype=D)
    pulse = torch.exp(-(((torch.arange(100, dtype=D) * net.dt - 6) / 2) ** 2))
    x[0, :, 0] = x[1, :, 1] = pulse
    with torch.no_grad():
        heard = measured(x)
    optimiser = torch.optim.Adam([net.raw_speed], 0.03)
    for _ in range(150):
        optimiser.zero_grad()
        loss = (net(x) - heard).square().mean() / heard.square().mean()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 1e-2
    assert float((net.speed.detach() - torch.from_numpy(true)).abs().mean()) < 0.06


def test_a_bounded_speed_stays_stable():
    net = wave_rnn((9,), 1, speed=0.9, fastest=1.0, dtype=D)
    with torch.no_grad():
        net.raw_speed.fill_(50.0)
        out = net(torch.randn(1, 2000, 1, dtype=D))
    assert float(net.speed.detach().max()) <= 1.0 and float(out.abs().max()) < 1e3


def test_single_precision_is_the_default():
    net = wave_rnn((9,), 1, 2, probes=[3.0])
    assert net.raw_speed.dtype == torch.float32 and net(torch.randn(3, 5, 1)).shape == (3, 5, 2)
    assert "raw_speed" in net.describe() and "WaveNetwork" in net.describe()


# -- bad input ---------------------------------------------------------------------------------------------------


def test_unstable_steps():
    net = wave_rnn((9,), 1, speed=2.0)
    limit = net.stable_step()
    assert limit == pytest.approx(0.5) and net.dt == pytest.approx(0.45)
    wave_rnn((9,), 1, speed=2.0, dt=limit)
    with pytest.raises(ValueError, match=r"dt = 0.51 is above the stability limit 0.5 of leapfrog .* speed up to 2"):
        wave_rnn((9,), 1, speed=2.0, dt=0.51)
    with torch.no_grad():
        net.raw_speed += 1
    with pytest.raises(ValueError, match="above the stability limit"):
        net(torch.zeros(1, 3, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": 0.0}, "speed from 0 to 0 given; values above 0"),
        ({"speed": np.ones(5)}, r"speed of shape \(5,\) given"),
        ({"speed": 1.0, "fastest": 1.0}, "between 0 and fastest = 1"),
        ({"damping": -0.1}, "damping down to -0.1 given; 0 or more"),
        ({"damping": np.nan}, "damping of shape .* finite"),
        ({"dt": -1.0}, "dt = -1.0 given; a positive"),
        ({"probes": [[7.5]]}, r"wave_rnn probes: position \[7.5\] lies outside of the lattice"),
        ({"sources": [[-0.5], [1.0]]}, r"wave_rnn sources: position \[-0.5\] lies outside"),
        ({"sources": [[1.0]]}, "1 sources given; one for each of 2 inputs"),
        ({"probes": [[1.0, 2.0]]}, r"positions of shape \(1, 2\) given; \(n, 1\)"),
        ({"observe": "first"}, "observe 'first' given; 'last' or 'all'"),
        ({"observe": "last", "intensity": True}, "intensity is a sum over all steps"),
        ({"boundary": "open"}, "unknown boundary 'open'"),
        ({"inputs": 0}, "inputs = 0 given; a positive integer"),
        ({"outputs": 1.5}, "outputs = 1.5 given; a positive integer"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        wave_rnn((8,), **{"inputs": 2, **changes})


def test_bad_inputs():
    net = wave_rnn((8,), 2)
    for shape in [(2, 5, 3), (5, 2), (1, 0, 2)]:
        with pytest.raises(ValueError, match=r"inputs of shape .* given; \(batch, steps, 2\)"):
            net(torch.zeros(shape))
    with pytest.raises(ValueError, match="state .* given; a pair of states"):
        net(torch.zeros(1, 3, 2), (torch.zeros(1, 8), torch.zeros(1, 7)))
    with pytest.raises(ValueError, match="boundary 'zeros' given besides a Lattice"):
        wave_rnn(Lattice((8,)), 2, boundary="zeros")
    equation = net.as_equation()
    with pytest.raises(ValueError, match=r"inputs of shape \(3,\) given; \(steps, 2\)"):
        equation.solve(np.zeros(3))
    with pytest.raises(ValueError, match="state: a pair of states"):
        equation.solve(np.zeros((3, 2)), np.zeros(8))
    with pytest.raises(TypeError, match="on: None"):
        equation.solve(np.zeros((3, 2)), on="mesh")
    with pytest.raises(ValueError, match="on: a mesh in 2 dimensions given"):
        equation.solve(np.zeros((3, 2)), on=Lattice((3, 3)).mesh(COMM))
    with pytest.raises(ValueError, match="damping \\* dt below 2"):
        wave_rnn((8,), 2, damping=3.0).as_equation()
