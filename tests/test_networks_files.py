"""Networks in files."""

import os

from npde_fem.networks.files import load_network, save_network

import pytest
import torch
from torch import nn


class Harmful(nn.Module):
    def __reduce__(self):
        return os.system, ("true",)


def digits():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 10)
    )


def test_a_module_comes_back(tmp_path):
    network, x = digits(), torch.rand(2, 1, 8, 8)
    save_network(network, tmp_path / "n.pt")
    assert torch.equal(load_network(tmp_path / "n.pt")(x), network(x))
    assert [p.name for p in tmp_path.iterdir()] == ["n.pt"]


@pytest.mark.parametrize("boundary", ["zeros", "replicate"])
def test_weights_alone_make_layers(tmp_path, boundary):
    network = nn.ModuleDict(
        {"a": nn.Conv1d(2, 3, 5, padding=2, padding_mode=boundary), "b": nn.Linear(4, 2, bias=False), "c": nn.RNN(2, 3)}
    ).double()
    torch.save(network.state_dict(), tmp_path / "n.pt")
    made = load_network(tmp_path / "n.pt", boundary)
    conv, linear, rnn = made
    x = torch.rand(2, 2, 7, dtype=torch.float64)
    assert torch.equal(conv(x), network["a"](x))
    assert torch.equal(linear.weight, network["b"].weight) and linear.bias is None
    sequence = torch.rand(5, 1, 2, dtype=torch.float64)
    assert torch.equal(rnn(sequence)[0], network["c"](sequence)[0])


def test_modules_have_their_own_padding(tmp_path):
    save_network(digits(), tmp_path / "n.pt")
    with pytest.raises(ValueError, match="boundary = 'circular' given; .*n.pt holds a module"):
        load_network(tmp_path / "n.pt", "circular")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_network(tmp_path / "nowhere.pt")
    torch.save(Harmful(), tmp_path / "harmful.pt")
    with pytest.raises(ValueError, match="needs code .*: posix.system; a module of stock layers or a state_dict"):
        load_network(tmp_path / "harmful.pt")
    for content in (b"no network", b"", b"\x89PNG\r\n", (tmp_path / "harmful.pt").read_bytes()[:200]):
        (tmp_path / "other.pt").write_bytes(content)
        with pytest.raises(ValueError, match="other.pt is no file of torch.save"):
            load_network(tmp_path / "other.pt")
    torch.save({"x": torch.zeros(3)}, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match="no weights"):
        load_network(tmp_path / "empty.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="list"):
        load_network(tmp_path / "list.pt")
