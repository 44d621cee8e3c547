"""Networks that were read, as JSON and back: every number the same, and what is wrong with a file is named."""

import copy
import json

from npde_fem import Parameter
from npde_fem.networks import Lattice, cnn, interpret, resnet, rnn
from npde_fem.networks.files import load_interpretation, save_interpretation, save_network
from npde_fem.networks.reading.interpret import Interpretation
from npde_fem.physics import fisher_kpp

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(3)


class LastState(nn.Module):
    """The last state of a recurrent layer, and a Linear."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.RNN(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.cell(x)[0][:, -1])


def shared():
    conv = nn.Conv1d(2, 2, 3, padding=1)
    return nn.Sequential(conv, nn.Tanh(), conv, nn.Tanh())


def everything_between():
    return nn.Sequential(
        *(nn.Unflatten(1, (2, 12, 12)), nn.Conv2d(2, 3, (3, 5), padding=(1, 2), padding_mode="reflect"), nn.PReLU(3)),
        *(nn.AvgPool2d(2), nn.Conv2d(3, 2, 3, stride=2, padding=1, bias=False), nn.LeakyReLU(0.3), nn.MaxPool2d(3)),
        *(nn.Conv2d(2, 2, 1), nn.Softplus(2.0, 10.0), nn.Hardtanh(-0.5, 0.7), nn.Threshold(0.1, 0.2), nn.GELU("tanh")),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 4), nn.Softmax(1)),
    )


NETWORKS = {
    "line": lambda: (nn.Conv1d(2, 3, 5, padding=2, padding_mode="circular"), (1, 2, 9)),
    "room": lambda: (nn.Conv3d(1, 2, 3, padding="same"), (1, 1, 4, 5, 6)),
    "between": lambda: (everything_between(), (2, 288)),
    "shared": lambda: (shared(), (1, 2, 7)),
    "matrices": lambda: (nn.Sequential(nn.Linear(6, 4, bias=False), nn.SELU(), nn.Linear(4, 6)), (3, 6)),
    "layers": lambda: (nn.RNN(3, 5, num_layers=2, nonlinearity="relu"), (4, 1, 3)),
    "cell": lambda: (nn.RNNCell(3, 5, bias=False), (1, 3)),
    "last": lambda: (LastState(), (2, 6, 2)),
}


def stored(found):
    """An interpretation that went through text."""
    return Interpretation.from_dict(json.loads(json.dumps(found.to_dict())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_everything_comes_back(name, dtype):
    network, shape = NETWORKS[name]()
    network = network.to(dtype).eval()
    found = interpret(network, spacing=0.3, dt=0.7)
    again = stored(found)
    assert again.to_dict() == found.to_dict()
    assert str(again) == str(found) and again.rows() == found.rows()
    direct, made = found.to_torch(), again.to_torch()
    assert repr(made) == repr(direct)
    wanted = direct.state_dict()
    assert made.state_dict().keys() == wanted.keys()
    for key, value in made.state_dict().items():
        assert value.dtype is dtype and torch.equal(value, wanted[key]), key
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        out, expected = made(x), network(x)
    out, expected = (y[0] if isinstance(y, tuple) else y for y in (out, expected))
    assert torch.allclose(out, expected, rtol=0, atol=1e-12 if dtype is torch.float64 else 1e-6)


def test_weights_are_those_of_the_trained_network():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    for dtype, tolerance in ((torch.float32, 0.0), (torch.float64, 1e-15)):
        made = stored(interpret(network.to(dtype))).to_torch()
        for a, b in zip(made.parameters(), network.parameters(), strict=True):
            assert float((a - b).detach().abs().max()) <= tolerance


def test_layers_that_share_weights_share_them_on():
    made = stored(interpret(shared())).to_torch()
    assert made[0] is made[2]


def test_units_boundary_and_equation_come_back():
    found = interpret(nn.Conv2d(1, 1, 3).double(), spacing=(0.5, 0.25), dt=0.1, boundary="no-flux")
    again = stored(found)
    assert again.boundary == "replicate" and again.layers[0].spacing == (0.5, 0.25) and again.layers[0].dt == 0.1
    u = np.random.default_rng(0).normal(size=(1, 6, 5))
    a, b = (kind.to_npde((6, 5)).solve(u, progress=False).array() for kind in (found, again))
    assert np.array_equal(a, b)


LATTICE = Lattice((6, 5), (0.5, 0.4), 0.0, "replicate")
REACTIONS = {
    "logistic": lambda: cnn(grid=LATTICE, channels=2, steps=2, reaction="logistic", dt=0.1),
    "tanh_flow": lambda: cnn(grid=LATTICE, channels=2, steps=1, reaction="tanh_flow", dt=0.1),
    "polynomial": lambda: cnn(grid=LATTICE, channels=2, steps=1, reaction="polynomial", dt=0.1),
    "residual": lambda: resnet(2, LATTICE, 2, hidden=(3,), dt=0.1),
}


@pytest.mark.parametrize("name", REACTIONS)
def test_reactions_come_back(name):
    network = REACTIONS[name]().double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    found = interpret(network)
    again = stored(found)
    assert again.to_dict() == found.to_dict()
    u = torch.rand(1, 2, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        want = network(u)
        assert torch.allclose(again.to_torch()(u), want, rtol=0, atol=1e-13)
    solved = again.to_npde((6, 5)).solve(u[0], progress=False).array()
    assert np.abs(solved - want[0].numpy()).max() < 1e-10


def test_driven_cells_come_back():
    elman = rnn(3, 6, 2, dt=0.2, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    found = interpret(elman)
    a, b = (kind.to_npde().solve(x).outputs for kind in (found, stored(found)))
    assert np.array_equal(a, b)


def test_reactions_of_equations_are_written_but_not_read():
    network = cnn(fisher_kpp(0.1, Parameter("rate", 2.0)), grid=LATTICE, steps=1, dt=0.1)
    data = json.loads(json.dumps(interpret(network).to_dict()))
    inner = data["layers"][1]["arguments"]["reaction"]
    assert inner["kind"] == "FromEquation" and inner["numbers"]["rate"]["values"] == 2.0
    with pytest.raises(ValueError, match=r"layers\[1\] is the reaction of the equation 'fisher-kpp'.*networks\.cnn"):
        Interpretation.from_dict(data)


# -- malformed ----------------------------------------------------------------------------------------------------


def data_of(module):
    return interpret(module).to_dict()


CONV, LINEAR, CELL = (
    data_of(module)
    for module in (
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.PReLU()),
        nn.Linear(4, 3),
        nn.RNN(2, 4),
    )
)


def change(data, key, value, layer=0):
    made = copy.deepcopy(data)
    made["layers"][layer][key] = value
    return made


@pytest.mark.parametrize(
    ("data", "key"),
    [
        *((CONV, key) for key in ("name", "kind", "activation", "spacing", "dt", "dtype", "biased", "mass", "drift")),
        *((CONV, key) for key in ("diffusion", "rest", "source", "padding", "padding_mode", "stride")),
        *((LINEAR, key) for key in ("shape", "mass", "rest")),
        *((CELL, key) for key in ("sources", "input_source", "batch_first", "continues")),
    ],
)
def test_keys_that_are_missing_are_named(data, key):
    made = copy.deepcopy(data)
    del made["layers"][0][key]
    with pytest.raises(
        ValueError, match=rf"Interpretation: layers\[0\]: key '{key}' is missing; there are 'name'|'kind'"
    ):
        Interpretation.from_dict(made)


ZEROS = np.zeros((3, 2, 2, 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (change(CONV, "mass", [[0.0, 0.0]]), r"layers\[0\]: 'mass' has shape \(1, 2\); \(3, 2\) allowed"),
        (change(CONV, "drift", ZEROS.tolist()), r"'drift' has shape \(3, 2, 2, 2\); \(3, 2, 2\) allowed"),
        (change(CONV, "rest", ZEROS.tolist()), r"'rest' is a kernel of size \(2, 2\); odd sizes allowed"),
        (change(CONV, "rest", [[0.0]]), r"'rest' has shape \(1, 1\); \(any, any, any, any\) allowed"),
        (
            change(CONV, "mass", [[0, 0], [0]]),
            r"'mass' is \[\[0, 0\], \[0\]\]; numbers in nested lists of shape \(3, 2\)",
        ),
        (change(CONV, "source", [0, 0, float("nan")]), "'source' has numbers that are NaN"),
        (change(CONV, "diffusion", (ZEROS + [[0, 1], [0, 0]]).tolist()), "'diffusion' is not symmetric"),
        (change(CONV, "dt", 0), "'dt' is 0; a positive finite number"),
        (change(CONV, "dt", "1"), "'dt' is '1'; a positive"),
        (change(CONV, "spacing", [1.0]), r"'spacing' has shape \(1,\); \(2,\) allowed"),
        (change(CONV, "spacing", [1.0, -1.0]), r"'spacing' is \[1.0, -1.0\]; positive numbers"),
        (change(CONV, "padding", [1]), r"'padding' is \[1\]; a list of 2 integers of at least 0"),
        (change(CONV, "stride", [0, 1]), "integers of at least 1"),
        (change(CONV, "padding_mode", "mirror"), "'padding_mode' is 'mirror'; 'zeros', 'replicate'"),
        (change(CONV, "dtype", "int8"), "'dtype' is 'int8'; 'float16'"),
        (change(CONV, "biased", 1), "'biased' is 1; true or false"),
        (change(CONV, "name", None), "'name' is None; a string"),
        (change(CONV, "kind", "Conv2D"), r"layers\[0\]: unknown kind 'Conv2D'; did you mean 'Conv2d'\?"),
        (change(CONV, "kind", "PReLu", 1), r"layers\[1\]: unknown kind 'PReLu'; did you mean 'PReLU'\?"),
        (change(CONV, "arguments", {"size": 3}, 1), r"layers\[1\]: no PReLU of the arguments \['size'\]"),
        (change(CONV, "weights", {}, 1), r"layers\[1\]: 'weights' are none of a PReLU: .*weight"),
        (change(CONV, "weights", {"weight": {"dtype": "float32"}}, 1), "weight 'weight': key 'values' is missing"),
        (change(CONV, "weights", {"weight": {"dtype": "float32", "values": "x"}}, 1), "'values' are no numbers"),
        (change(LINEAR, "shape", [2, 3]), r"'shape' is \[2, 3\]; 1 to 3 integers whose product is 4"),
        (change(LINEAR, "shape", 4), "'shape' is 4; 1 to 3 integers"),
        (change(CELL, "activation", "GELU"), "'activation' is 'GELU'; 'Tanh', 'ReLU'"),
        (change(CELL, "sources", [[0.0]]), r"'sources' has shape \(1, 1\); \(4, any\) allowed"),
        (change(CELL, "rest", np.zeros((3, 4)).tolist()), r"'mass' has shape \(4,\); \(3,\) allowed"),
        ({"layers": []}, "the keys 'layers' given; 'boundary' and 'layers', a list, needed"),
        ({"boundary": None, "layers": {}}, "'layers', a list, needed"),
        ([1], r"\[1\] given; 'boundary' and 'layers'"),
        ({"boundary": "glass", "layers": []}, "unknown boundary 'glass'; allowed: null, zeros"),
        ({"boundary": None, "layers": [3]}, r"layers\[0\] is 3; a dictionary"),
        ({"boundary": None, "layers": []}, "none of 0 layers has weights"),
        ({"boundary": None, "layers": CONV["layers"][1:]}, "none of 1 layers has weights"),
    ],
)
def test_what_is_wrong_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        Interpretation.from_dict(data)


def test_a_flat_kernel_has_no_drift_across():
    data = data_of(nn.Conv2d(1, 1, (3, 1), padding=(1, 0)))
    data["layers"][0]["drift"] = [[[0.0, 1.0]]]
    with pytest.raises(ValueError, match=r"layers\[0\]: .*no drift or diffusion along axes \[1\]"):
        Interpretation.from_dict(data)


# -- files --------------------------------------------------------------------------------------------------------


def test_files_appear_whole_or_not_at_all(tmp_path):
    found, target = interpret(everything_between().eval()), tmp_path / "n.json"
    save_interpretation(found, target)
    assert load_interpretation(target).to_dict() == found.to_dict()
    before = target.read_bytes()
    broken = Interpretation([*found.parts, nn.Flatten(start_dim=object())])
    with pytest.raises(TypeError, match="JSON"):
        save_interpretation(broken, target)
    network = interpret(cnn(fisher_kpp(), grid=LATTICE, steps=1, dt=0.01)).to_torch()
    with pytest.raises(ValueError, match=r"n.pt: layer '1', reaction 'fisher-kpp', is none of torch's own"):
        save_network(network, tmp_path / "n.pt")
    with pytest.raises(RuntimeError):
        save_network(nn.Sequential(nn.Linear(2, 2)), tmp_path / "no" / "n.pt")
    layer = nn.Linear(2, 2)
    layer.note = lambda: None  # which fails when part of the file is written
    with pytest.raises(Exception, match="pickle|local object"):
        save_network(layer, tmp_path / "n.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["n.json"] and target.read_bytes() == before


def test_files_that_are_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        load_interpretation(tmp_path / "nowhere.json")
    for content, message in (
        (b"{", "bad.json is no JSON"),
        (b"\xff\xfe\x80", "no JSON"),
        (b"3", "bad.json: .* 3 given"),
    ):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_interpretation(tmp_path / "bad.json")
