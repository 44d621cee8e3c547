"""Trained networks read as physics: operators, tables, figures, equations, and the stock networks again."""

import json

from npde_fem.networks.kinds.cnn import cnn, resnet
from npde_fem.networks.kinds.mlp import mlp
from npde_fem.networks.kinds.rnn import rnn
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.reading.interpret import interpret

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
PADDINGS = ("zeros", "replicate", "reflect", "circular")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(6)


def output(module, x):
    with torch.no_grad():
        return module(x)


def parameters_agree(made, given, atol=1e-12):
    assert type(made) is type(given)
    want = dict(given.named_parameters())
    assert dict(made.named_parameters()).keys() == want.keys()
    for name, value in made.named_parameters():
        assert_allclose(value.detach().numpy(), want[name].detach().numpy(), rtol=0, atol=atol)


# -- there and back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_convolutions_come_back(dim, padding):
    for c_in, c_out, size in [(1, 1, 3), (2, 5, 3), (8, 8, 3), (3, 2, 1), (2, 3, 5), (1, 2, 7)]:
        if dim == 3 and size == 7:
            continue
        layer = CONVOLUTIONS[dim](c_in, c_out, size, padding=size // 2, padding_mode=padding).double()
        found = interpret(layer, spacing=0.3, dt=0.05)
        made = found.to_torch()
        parameters_agree(made, layer)
        x = torch.randn(2, c_in, *(8,) * dim).double()
        assert_allclose(output(made, x), output(layer, x), rtol=0, atol=1e-12)
        assert found.layers[0].channels == (c_in, c_out)


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"padding": 0}, {"padding": "same"}, {"bias": False}])
def test_how_a_convolution_moves_comes_back(options):
    layer = nn.Conv2d(2, 3, 3, **options).double()
    made = interpret(layer).to_torch()
    parameters_agree(made, layer)
    x = torch.randn(1, 2, 9, 8).double()
    assert_allclose(output(made, x), output(layer, x), rtol=0, atol=1e-13)


def test_kernels_that_are_not_square_come_back():
    layer = nn.Conv2d(2, 2, (3, 5), padding=(1, 2)).double()
    parameters_agree(interpret(layer, spacing=(0.5, 2.0)).to_torch(), layer)
    flat = nn.Conv2d(1, 1, (3, 1), padding=(1, 0)).double()
    reading = interpret(flat).layers[0]
    assert reading.drift[0, 0, 1] == 0 and reading.diffusion[0, 0, 1, 1] == 0 and reading.remainder < 1e-15


@pytest.mark.parametrize("widths", [(5, 5), (3, 7), (7, 3), (1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_matrices_come_back(widths, bias):
    layer = nn.Linear(*widths, bias=bias).double()
    parameters_agree(interpret(layer, spacing=0.2, dt=0.1).to_torch(), layer)


def test_matrices_between_images_come_back():
    layer = nn.Linear(12, 7).double()
    found = interpret(layer, shape=(3, 4), spacing=(0.5, 0.25))
    assert found.layers[0].shape == (3, 4) and found.layers[0].diffusion.shape == (7, 2, 2)
    parameters_agree(found.to_torch(), layer)


@pytest.mark.parametrize(
    "layer",
    [
        nn.RNN(3, 6),
        nn.RNN(3, 6, nonlinearity="relu", bias=False, batch_first=True),
        nn.RNN(2, 5, num_layers=3),
        nn.RNNCell(2, 4),
        nn.RNNCell(2, 4, nonlinearity="relu"),
    ],
    ids=["tanh", "relu", "layers", "cell", "relu-cell"],
)
def test_recurrent_layers_come_back(layer):
    layer = layer.double()
    found = interpret(layer, dt=0.2)
    assert len(found.layers) == getattr(layer, "num_layers", 1)
    made = found.to_torch()
    parameters_agree(made, layer)
    assert made.__dict__.get("batch_first") == layer.__dict__.get("batch_first")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtypes_are_kept(dtype):
    layer = nn.Conv2d(2, 2, 3, padding=1, dtype=dtype)
    made = interpret(layer).to_torch()
    assert made.weight.dtype is dtype
    assert_allclose(made.weight.detach(), layer.weight.detach(), rtol=0, atol=torch.finfo(dtype).eps)


# -- known operators -----------------------------------------------------------------------------------------


def convolution(kernel, **options):
    kernel = torch.as_tensor(np.array(kernel, dtype=float))
    size = kernel.shape
    options = {"padding": tuple(n // 2 for n in size), "bias": False} | options
    layer = CONVOLUTIONS[kernel.ndim](1, 1, size, dtype=torch.float64, **options)
    layer.weight.data[0, 0] = kernel
    return layer


def test_an_operator_written_by_hand_is_recognised():
    h, dt, m = np.array([0.5, 0.2]), 0.01, -1.7
    angle = np.radians(30.0)
    axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    tensor = axes @ np.diag([3.0, 0.4]) @ axes.T
    c = np.array([1.3, -0.6])
    one, first, second = np.array([0, 1.0, 0]), np.array([-0.5, 0, 0.5]), np.array([1.0, -2, 1])
    step = m * np.outer(one, one) - c[0] * np.outer(first, one) / h[0] - c[1] * np.outer(one, first) / h[1]
    step += tensor[0, 0] * np.outer(second, one) / h[0] ** 2 + tensor[1, 1] * np.outer(one, second) / h[1] ** 2
    step += 2 * tensor[0, 1] * np.outer(first, first) / (h[0] * h[1])
    reading = interpret(convolution(np.outer(one, one) + dt * step), spacing=tuple(h), dt=dt).layers[0]
    assert_allclose(reading.mass, [[m]], rtol=1e-11)
    assert_allclose(reading.drift[0, 0], c, rtol=1e-11)
    assert_allclose(reading.diffusion[0, 0], tensor, rtol=1e-11)
    assert_allclose(reading.eigenvalues[0, 0], [3.0, 0.4], rtol=1e-11)
    assert_allclose(reading.directions[0, 0, :, 0], axes[:, 0], atol=1e-11)
    assert_allclose(np.abs(reading.directions[0, 0, :, 1] @ axes[:, 1]), 1, rtol=1e-11)
    assert reading.remainder < 1e-13 and not reading.source.any()


def test_sobel_is_drift_and_laplace_is_diffusion():
    still = np.zeros((3, 3))
    still[1, 1] = 1
    sobel = still - np.outer([-1, 0, 1], [1, 2, 1])
    reading = interpret(convolution(sobel)).layers[0]
    # The weights 1, 2, 1 across make it 8 times the difference, and a higher product of differences.
    assert_allclose(reading.drift[0, 0], [8.0, 0.0], atol=1e-14)
    assert_allclose(reading.mass, 0, atol=1e-14)
    assert_allclose(reading.diffusion, 0, atol=1e-14)
    assert reading.remainder > 0.1
    laplace = still + 0.1 * np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    reading = interpret(convolution(laplace), spacing=0.5, dt=0.25).layers[0]
    assert_allclose(reading.eigenvalues[0, 0], 0.1 * 0.5**2 / 0.25, rtol=1e-13)
    assert reading.remainder < 1e-14 and abs(reading.mass[0, 0]) < 1e-14


def test_a_wide_blur_is_isotropic_diffusion_by_its_moments():
    line = np.array([1.0, 4, 6, 4, 1]) / 16
    reading = interpret(convolution(np.outer(line, line)), spacing=0.1, dt=2.0).layers[0]
    # Its variance is 1 along each axis: 2 D dt = h^2.
    assert_allclose(reading.eigenvalues[0, 0], 0.1**2 / (2 * 2.0), rtol=1e-13)
    assert_allclose(reading.mass, 0, atol=1e-15)
    assert_allclose(reading.drift, 0, atol=1e-15)
    assert reading.remainder > 0.1


def test_units_scale_coefficients():
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    here, there = interpret(layer).layers[0], interpret(layer, spacing=0.5, dt=0.1).layers[0]
    assert_allclose(there.mass, here.mass / 0.1)
    assert_allclose(there.drift, here.drift * 0.5 / 0.1)
    assert_allclose(there.diffusion, here.diffusion * 0.25 / 0.1)
    assert_allclose(there.source, here.source / 0.1)
    assert_allclose(there.remainder, here.remainder)
    assert_allclose(there.remainder_norm, here.remainder_norm / 0.1)


def test_a_matrix_of_differences_is_local():
    n, h, dt, diffusion, drift, mass = 9, 0.25, 0.01, 0.7, 0.4, -0.3
    matrix = np.eye(n) * (1 + dt * (mass - 2 * diffusion / h**2))
    matrix += np.eye(n, k=1) * dt * (diffusion / h**2 - drift / (2 * h))
    matrix += np.eye(n, k=-1) * dt * (diffusion / h**2 + drift / (2 * h))
    layer = nn.Linear(n, n, bias=False, dtype=torch.float64)
    layer.weight.data[:] = torch.from_numpy(matrix)
    reading = interpret(layer, spacing=h, dt=dt).layers[0]
    assert_allclose(reading.mass[1:-1], mass, rtol=1e-10)
    assert_allclose(reading.drift[1:-1, 0], drift, rtol=1e-10)
    assert_allclose(reading.diffusion[1:-1, 0, 0], diffusion, rtol=1e-10)
    assert_allclose(reading.remainders[1:-1], 0, atol=1e-13)


def test_a_convolution_as_matrix_has_the_same_moments():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    unit = torch.eye(30).double().reshape(30, 1, 5, 6)
    layer = nn.Linear(30, 30, bias=False).double()
    layer.weight.data[:] = output(conv, unit).reshape(30, 30).T
    a = interpret(conv, spacing=0.5, dt=0.1).layers[0]
    b = interpret(layer, spacing=0.5, dt=0.1, shape=(5, 6)).layers[0]
    inside = np.arange(30).reshape(5, 6)[1:-1, 1:-1].ravel()
    assert_allclose(b.mass[inside], a.mass[0, 0], rtol=1e-11)
    assert_allclose(b.drift[inside], np.broadcast_to(a.drift[0, 0], (12, 2)), rtol=1e-11)
    assert_allclose(b.diffusion[inside], np.broadcast_to(a.diffusion[0, 0], (12, 2, 2)), rtol=1e-11)
    assert_allclose(b.remainders[inside], a.remainder, rtol=1e-11)


def test_inputs_of_a_cell_are_sources_at_places():
    cell = nn.RNNCell(2, 5, bias=False).double()
    cell.weight_ih.data.zero_()
    cell.weight_ih.data[3, 0] = 0.5
    cell.weight_ih.data[0, 1] = cell.weight_ih.data[2, 1] = -1.0
    reading = interpret(cell, spacing=0.1, dt=0.25).layers[0]
    strength, centre, width = reading.source_places()
    assert_allclose(strength, [2.0, -8.0])
    assert_allclose(centre[:, 0], [0.3, 0.1])
    assert_allclose(width, [0.0, 0.1], atol=1e-15)


# -- whole networks ------------------------------------------------------------------------------------------


class Functional(nn.Module):
    """A network as people write it: layers with functions between them."""

    def __init__(self, channels=3):
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4 * 4, 5)

    def forward(self, x):
        x = torch.nn.functional.relu(self.first(x))
        x = torch.nn.functional.max_pool2d(x, 2)
        x = torch.tanh(self.block(x))
        return self.head(x.view(x.size(0), -1))


class Twice(nn.Module):
    """Weights that are shared by two steps."""

    def __init__(self):
        super().__init__()
        self.step = nn.Conv1d(2, 2, 3, padding=1)
        self.act = nn.Tanh()

    def forward(self, x):
        for _ in range(2):
            x = self.act(self.step(x))
        return x


class Sequence(nn.Module):
    """A recurrent network with a read-out."""

    def __init__(self, seen):
        super().__init__()
        self.rnn, self.out, self.seen = nn.RNN(3, 6, batch_first=True), nn.Linear(6, 2), seen

    def forward(self, x):
        states, last = self.rnn(x)
        return self.out({"all": states, "last": states[:, -1], "hidden": last[-1]}[self.seen])


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


def trained(network, seed=0):
    """Statistics of the norms as training leaves them."""
    torch.manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            for parameter in layer.parameters():
                parameter.data.normal_()
    return network.double().eval()


def test_a_network_with_functions_is_followed():
    network = trained(Functional())
    found = interpret(network, spacing=0.5, dt=0.1)
    assert [layer.name for layer in found.layers] == ["first", "block.0 + block.1", "head"]
    assert [layer.activation for layer in found.layers] == ["ReLU", "Tanh", "none"]
    assert [layer.spacing for layer in found.layers] == [(0.5, 0.5), (1.0, 1.0), (0.5,)]
    x = torch.randn(3, 1, 4, 4).double()
    assert_allclose(output(found.to_torch(), x), output(network, x), rtol=0, atol=1e-13)


def test_a_norm_behind_a_linear_is_part_of_it():
    network = trained(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.ReLU(), nn.Linear(5, 2)))
    found = interpret(network, dt=0.3)
    x = torch.randn(3, 4).double()
    assert_allclose(output(found.to_torch(), x), output(network, x), rtol=0, atol=1e-13)


def test_shared_layers_stay_shared():
    network = Twice().double()
    found = interpret(network)
    assert [layer.name for layer in found.layers] == ["step", "step"]
    made = found.to_torch()
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in network.parameters())
    x = torch.randn(1, 2, 7).double()
    assert_allclose(output(made, x), output(network, x), rtol=0, atol=1e-13)
    assert [phase.steps for phase in found.to_npde((7,)).phases] == [2]


@pytest.mark.parametrize("seen", ["all", "last", "hidden"])
def test_a_recurrent_network_is_followed_and_driven(seen):
    network = Sequence(seen).double()
    found = interpret(network, spacing=0.3, dt=0.2)
    x = torch.randn(1, 5, 3).double()
    want = output(network, x)
    assert_allclose(output(found.to_torch(), x), want, rtol=0, atol=1e-13)
    assert_allclose(found.to_npde().solve(x[0]).outputs, want[0], rtol=0, atol=1e-10)


def test_a_small_trained_network_is_read(tmp_path):
    """A CNN that learnt a step of anisotropic diffusion shows it: what was put in comes out."""
    diffusion = np.array([0.2, 0.05])
    truth = convolution(
        [[0, diffusion[0], 0], [diffusion[1], 1 - 2 * diffusion.sum(), diffusion[1]], [0, diffusion[0], 0]],
        padding_mode="circular",
    )
    network = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular").double()
    optimiser = torch.optim.LBFGS(network.parameters(), max_iter=100, line_search_fn="strong_wolfe")
    x = torch.randn(4, 1, 8, 8).double()
    target = output(truth, x)

    def loss():
        optimiser.zero_grad()
        value = ((network(x) - target) ** 2).mean()
        value.backward()
        return value

    optimiser.step(loss)
    reading = interpret(network).layers[0]
    assert_allclose(reading.eigenvalues[0, 0], diffusion, atol=2e-3)
    assert abs(reading.directions[0, 0, 0, 0]) > 0.999 and reading.remainder < 0.02


# -- tables and numbers --------------------------------------------------------------------------------------


def test_table():
    text = str(interpret(trained(Functional()), spacing=0.5, dt=0.1))
    for part in ("3 layers", "first: Conv2d 1 -> 3, 3 x 3, zeros, then ReLU", "h = 0.5 x 0.5, dt = 0.1", "direction"):
        assert part in text
    assert "Linear 16 -> 5" in text and "spread" in text
    lines = text.splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("first"))
    widths = {len(line) for line in lines[start + 2 : start + 6]}
    assert len(widths) == 1 and lines[start + 3].split()[:3] == ["0", "->", "0"]
    many = str(interpret(nn.Conv1d(5, 5, 3, padding=1)))
    assert "13 weaker pairs" in many
    assert "where the inputs enter" in str(interpret(nn.RNN(3, 4)))
    isotropic = str(interpret(convolution([[0, 0.1, 0], [0.1, 0.6, 0.1], [0, 0.1, 0]])))
    assert "any" in isotropic


def test_numbers_are_fit_for_json():
    for module in (trained(Functional()), nn.RNN(3, 4), nn.Conv3d(1, 2, 3, padding=1)):
        found = interpret(module)
        again = json.loads(json.dumps(found.to_dict()))
        assert_allclose(again["layers"][0]["diffusion"], found.layers[0].diffusion)
        rows = json.loads(json.dumps(found.rows()))
        assert {"layer", "mass", "drift", "eigenvalues", "direction", "remainder"} <= rows[0].keys()
    assert len(interpret(nn.Conv2d(3, 4, 3, padding=1)).rows()) == 12


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Functional(10), {}),
        (nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.Tanh()), {}),
        (nn.Conv3d(2, 2, 3, padding=1), {}),
        (nn.Linear(16, 16), {"shape": (4, 4)}),
        (nn.RNN(2, 5), {}),
        (convolution(np.zeros((3, 3)) + 0.0), {}),
    ],
    ids=["cnn", "1d", "3d", "image", "rnn", "zero"],
)
def test_figure(module, options, tmp_path):
    import matplotlib.image

    path = tmp_path / "layers.png"
    interpret(module.eval(), **options).plot(path)
    image = matplotlib.image.imread(path)[..., :3]
    assert min(image.shape[:2]) > 200 and 0.02 < np.mean(image.min(axis=2) < 0.97) < 0.9
    assert [p.name for p in tmp_path.iterdir()] == ["layers.png"]


def test_a_figure_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="nope"):
        interpret(nn.Linear(3, 3)).plot(tmp_path / "layers.nope")
    assert not list(tmp_path.iterdir())


# -- equations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
def test_equations_of_convolutions(padding):
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode=padding),
        nn.Tanh(),
        nn.Conv2d(3, 2, 5, padding=2, padding_mode=padding),
        nn.ReLU(),
    ).double()
    x = torch.randn(1, 1, 7, 6).double()
    equation = interpret(network, spacing=(0.5, 0.25), dt=0.1).to_npde((7, 6), lower=-1.0)
    assert equation.lattice.boundary == padding and equation.lattice.lower == (-1.0, -1.0)
    found = equation.solve(x[0].numpy()).array()
    assert_allclose(found, output(network, x)[0], rtol=0, atol=1e-10)


def test_the_equation_of_a_whole_network():
    network = trained(
        nn.Sequential(
            nn.Unflatten(1, (1, 12, 12)),
            nn.Conv2d(1, 3, 3, padding=1),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(3, 2, 3, padding=1, stride=2),
            nn.BatchNorm2d(2),
            nn.Sigmoid(),
            nn.Conv2d(2, 2, 1),
            nn.Flatten(),
            nn.Linear(18, 4),
        )
    )
    x = torch.randn(1, 144).double()
    equation = interpret(network, spacing=0.1, dt=0.5).to_npde()
    assert [phase.lattice.shape for phase in equation.phases] == [(12, 12), (6, 6), (6, 6), (3, 3)]
    found = equation.solve(x.reshape(1, 12, 12).numpy()).observed
    assert_allclose(found, output(network, x)[0], rtol=0, atol=1e-10)


def test_a_mean_over_all_points_is_a_readout():
    network = nn.Sequential(
        *(nn.AvgPool1d(2), nn.Conv1d(1, 3, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 2)),
    ).double()
    x = torch.randn(1, 1, 12).double()
    equation = interpret(network, spacing=0.5).to_npde((12,))
    assert [phase.lattice.spacing for phase in equation.phases] == [(0.5,), (1.0,)]
    assert_allclose(equation.solve(x[0].numpy()).observed, output(network, x)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"shape": (3, 4), "spacing": (0.5, 0.2)}], ids=["line", "image"])
def test_equations_of_matrices(options):
    network = nn.Sequential(nn.Linear(12, 5), nn.Sigmoid(), nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 2)).double()
    x = torch.randn(1, 12).double()
    equation = interpret(network, dt=0.3, **options).to_npde()
    found = equation.solve(x.reshape(1, *equation.lattice.shape).numpy()).observed
    assert_allclose(found, output(network, x)[0], rtol=0, atol=1e-10)


# -- generated networks --------------------------------------------------------------------------------------


GENERATED = {
    "relu": lambda: cnn(grid=LATTICE, channels=[1, 3, 2], steps=2, reaction="relu", dt=0.1, dtype=torch.float64),
    "flow": lambda: cnn(grid=LATTICE, channels=1, steps=3, reaction="logistic", dt=0.1, shared=True).double(),
    "residual": lambda: resnet(1, LATTICE, 2, dt=0.3, dtype=torch.float64),
}
LATTICE = Lattice((8, 7), (0.5, 0.4), boundary="replicate")


@pytest.mark.parametrize("kind", GENERATED)
def test_generated_convolutions_are_read_in_their_own_units(kind):
    network = GENERATED[kind]()
    found = interpret(network)
    for reading, own in zip(found.layers, network.coefficients(), strict=True):
        assert reading.spacing == own.spacing and reading.dt == own.dt
        for name in ("mass", "drift", "diffusion", "rest", "source"):
            assert_allclose(getattr(reading, name), getattr(own, name), rtol=0, atol=1e-11)
    x = torch.rand(1, 1, 8, 7).double()
    want = output(network, x)
    assert_allclose(output(found.to_torch(), x), want, rtol=0, atol=1e-12)
    again = found.to_npde((8, 7))
    assert [p.steps for p in again.phases] == [p.steps for p in network.as_equation().phases]
    assert_allclose(again.solve(x[0].numpy()).array(), want[0], rtol=0, atol=1e-10)


def test_a_reaction_belongs_to_its_step():
    found = interpret(GENERATED["flow"](), dt=0.2)
    with pytest.raises(ValueError, match=r"over a step of 0.1 was read with dt = 0.2; interpret\(..., dt=0.1\)"):
        found.to_npde((8, 7))


def test_generated_matrices_and_cells_are_read():
    perceptron = mlp([5, 9, 3], reaction="tanh", dt=0.2, spacing=0.3, dtype=torch.float64)
    x = torch.randn(1, 5).double()
    found = interpret(perceptron)
    assert found.layers[0].dt == 0.2 and found.layers[0].spacing == (0.3,)
    assert_allclose(output(found.to_torch(), x), output(perceptron, x), rtol=0, atol=1e-13)
    u0 = np.zeros((1, 9))
    u0[0, :5] = x[0]
    assert_allclose(found.to_npde().solve(u0).observed, output(perceptron, x)[0], rtol=0, atol=1e-10)
    elman = rnn(3, 6, 2, dt=0.2, dtype=torch.float64)
    x = torch.randn(1, 5, 3).double()
    found = interpret(elman)
    assert_allclose(found.layers[0].sources, elman.source_positions.detach(), rtol=0, atol=1e-13)
    assert_allclose(found.to_npde().solve(x[0]).outputs, output(elman, x)[0], rtol=0, atol=1e-10)


# -- what cannot be read -------------------------------------------------------------------------------------


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2, dtype=torch.complex64)

    def forward(self, x):
        return self.inner(x)


def in_training():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def not_finite():
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = float("nan")
    return layer


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 4)), r"'0' is a Conv2d with a kernel of size \(4, 4\); odd sizes"),
        (nn.Conv2d(4, 4, 3, groups=2), "groups = 2; groups = 1"),
        (nn.Conv1d(1, 1, 3, dilation=2), r"dilation = \(2,\); dilation = 1"),
        (nn.ConvTranspose2d(1, 1, 3), "'ConvTranspose2d' is a ConvTranspose2d, which makes"),
        (nn.LazyConv2d(2, 3), "no input yet"),
        (nn.LazyLinear(2), "no input yet"),
        (nn.LSTM(2, 2), "LSTM, whose gates.*RNN and RNNCell"),
        (nn.Sequential(nn.GRUCell(2, 2)), "'0' is a GRUCell, whose gates"),
        (nn.RNN(2, 2, bidirectional=True), "bidirectional=True"),
        (nn.RNN(2, 2, num_layers=2, dropout=0.5), r"dropout in training.*\.eval\(\)"),
        (nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), "'1' is a LayerNorm; .*can be read"),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), "'1' is a Dropout in training"),
        (in_training(), "'1' is a BatchNorm2d in training"),
        (nn.Sequential(nn.BatchNorm2d(1)).eval(), "does not follow"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)).eval(), "'2' is a BatchNorm2d that does not"),
        (Complex(), "'inner' has complex weights"),
        (not_finite(), "NaN or infinite"),
        (Branch(), "Branch combines x, conv at 'add'.*a branch"),
        (nn.Sequential(nn.ReLU()), "no layer with weights"),
        (nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv1d(1, 1, 3)), "'1' has 1 dimensions?, layers before it 2"),
    ],
)
def test_what_cannot_be_read_is_named(module, message):
    with pytest.raises(ValueError, match=message):
        interpret(module)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"dt": 0.0}, ValueError, "dt = 0.0 given; a positive"),
        ({"dt": "fast"}, TypeError, "dt must be a number"),
        ({"spacing": -1.0}, ValueError, "spacing = -1.0"),
        ({"spacing": (1.0, 2.0, 3.0)}, ValueError, "spacing .* given; layer 'Conv2d' has 2 dimensions"),
        ({"boundary": "glass"}, ValueError, "unknown boundary 'glass'; allowed: zeros"),
        ({"shape": (8, 8)}, ValueError, r"shape \(8, 8\) given; no Linear or RNN has 64 neurons"),
        ({"shape": (0,)}, ValueError, "1 to 3 positive integers"),
    ],
)
def test_bad_units(options, kind, message):
    with pytest.raises(kind, match=message):
        interpret(nn.Conv2d(1, 1, 3), **options)


def test_no_module():
    with pytest.raises(TypeError, match="torch.nn.Module allowed"):
        interpret(3)


def chain(*layers):
    return nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), *layers)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (chain(), {}, "shape, the points of the input"),
        (chain(), {"shape": (8,)}, "shape .* given for a Conv2d; 2 numbers"),
        (chain(nn.Conv2d(1, 1, 3)), {"shape": (8, 8)}, "layer '1' has padding 0 x 0 .*no boundary condition"),
        (chain(nn.MaxPool2d(3, 2)), {"shape": (8, 8)}, "blocks that overlap"),
        (chain(nn.Conv2d(1, 1, 3, padding=1, stride=(1, 2))), {"shape": (8, 8)}, "the stride .*the same along all"),
        (chain(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2)), {"shape": (8, 8)}, "more than one Linear"),
        (chain(nn.Softmax(1)), {"shape": (8, 8)}, "unknown reaction or activation Softmax"),
        (nn.RNN(2, 3, num_layers=2), {}, "drive each other"),
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), {"shape": (5,)}, "given for 4 neurons"),
    ],
)
def test_what_has_no_equation_says_why(module, options, message):
    found = interpret(module)
    with pytest.raises(ValueError, match=message):
        found.to_npde(**options)


def test_a_layer_without_padding_takes_a_boundary():
    conv = nn.Conv2d(1, 1, 3).double()
    x = torch.randn(1, 1, 8, 8).double()
    found = interpret(conv, boundary="periodic").to_npde((8, 8)).solve(x[0].numpy()).array()
    assert_allclose(found[:, 1:-1, 1:-1], output(conv, x)[0], rtol=0, atol=1e-12)
