"""``npde networks``: what it prints, writes and refuses."""

import json
import re

from npde_fem.cli import main
from npde_fem.networks.files import load_network, save_network

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture
def trained(tmp_path):
    """A file of a network, and the network."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1), nn.Tanh()).double()
    save_network(network, tmp_path / "trained.pt")
    return tmp_path / "trained.pt", network


def rows_of(path):
    return json.loads(path.read_text())["rows"]


def test_interpret_prints_the_moments_of_the_kernels(trained, tmp_path, capsys):
    path, network = trained
    h, dt = 0.5, 0.1
    arguments = ["--spacing", str(h), "--dt", str(dt), "--json", str(tmp_path / "rows.json")]
    assert main(["networks", "interpret", str(path), *arguments, "--plot", str(tmp_path / "layers.png")]) == 0
    rows = rows_of(tmp_path / "rows.json")
    step = network[0].weight.detach().numpy()[2, 0]  # of channel 0 in channel 2, which was not there before
    (row,) = [r for r in rows if r["layer"] == "0" and (r["from"], r["to"]) == (0, 2)]
    assert row["mass"] == pytest.approx(step.sum() / dt)
    across, along = (step * [[-1], [0], [1]]).sum(), (step * [-1, 0, 1]).sum()
    assert row["drift"] == pytest.approx([-h * across / dt, -h * along / dt])
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert "2 layers: u_t = div(D grad u - c u) + m u + s + rest" in capsys.readouterr().out


def test_show_an_equation(tmp_path, capsys):
    arguments = ["--shape", "8", "--dt", "0.5", "--boundary", "replicate", "--set", "diffusion=0.1"]
    assert main(["networks", "show", "heat", *arguments, "--json", str(tmp_path / "rows.json")]) == 0
    printed = capsys.readouterr().out
    assert "Conv1d(1, 1, kernel_size=(3,), stride=(1,), padding=(1,), padding_mode=replicate)" in printed
    assert re.search(r"layers\.0\.transport\.diffusion +1 x 1 x 1 +0\.05 ", printed)  # dt D / h^2
    (row,) = rows_of(tmp_path / "rows.json")
    assert row["eigenvalues"] == pytest.approx([0.1]) and row["mass"] == pytest.approx(0)


def test_an_equation_becomes_a_stock_network(tmp_path):
    target = tmp_path / "pattern.pt"
    arguments = ["--shape", "12", "10", "--steps", "3", "--boundary", "circular", "--set", "diffusion=0.2"]
    assert main(["networks", "convert", "heat", *arguments, "--output", str(target)]) == 0
    u = torch.rand(1, 1, 12, 10, dtype=torch.float64)
    expected = u
    for _ in range(3):
        moved = sum(expected.roll(shift, axis) for axis in (2, 3) for shift in (-1, 1))
        expected = expected + 0.2 * (moved - 4 * expected)
    assert torch.allclose(load_network(target)(u), expected, rtol=0, atol=1e-14)


def test_a_reaction_that_is_no_activation_makes_no_stock_network(tmp_path, capsys):
    assert main(["networks", "convert", "allen-cahn", "--shape", "8", "--output", str(tmp_path / "n.pt")]) == 2
    message = capsys.readouterr().err
    assert "'allen-cahn', is none of torch's own" in message and "--output FILE.json takes any" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("between", ["pt", "json"])
def test_a_network_becomes_coefficients_and_a_network_again(trained, tmp_path, between):
    path, network = trained
    assert main(["networks", "convert", str(path), "--output", str(tmp_path / "c.json")]) == 0
    layers = json.loads((tmp_path / "c.json").read_text())["layers"]
    assert [layer["kind"] for layer in layers] == ["Conv2d", "ReLU", "Conv2d", "Tanh"]
    assert np.array(layers[2]["source"]) == pytest.approx(network[2].bias.detach().numpy())
    source = {"pt": path, "json": tmp_path / "c.json"}[between]
    assert main(["networks", "convert", str(source), "--output", str(tmp_path / "again.pt")]) == 0
    again = load_network(tmp_path / "again.pt")
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-14)
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    assert torch.allclose(again(x), network(x), rtol=0, atol=1e-14)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.pt", "c.json", "trained.pt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "heet"], "did you mean 'heat'"),
        (["interpret", "nothing.pt"], "no file 'nothing.pt'"),
        (["convert", "heat"], "--output: convert needs it"),
        (["show", "heat", "--output", "a.pt"], "--output: convert needs it"),
        (["convert", "heat", "--output", "a.txt"], "'a.txt' must end in .pt or .json"),
        (["show", "heat", "--plot", "a.txt"], "'a.txt' must end in .png"),
        (["show", "heat", "--set", "D=3"], "heat has no coefficient 'D'; there are diffusion, source"),
        (["show", "heat", "--set", "diffusion"], "NAME=NUMBER is needed"),
        (["show", "heat", "--set", "diffusion=3"], "unstable step: layer 0"),
        (["show", "heat", "--boundary", "mirror"], "invalid choice: 'mirror'"),
        (["show", "heat", "--shape", "2", "8"], "at least 3 points"),
        (["show", "heat", "--dt", "-1"], "--dt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["networks", *arguments])
    except SystemExit as end:
        status = end.code
    assert status == 2 and message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"hi\n", b"", b"PK\x03\x04", b"random text " * 20])
def test_files_that_torch_did_not_write(content, tmp_path, capsys):
    (tmp_path / "bad.pt").write_bytes(content)
    assert main(["networks", "interpret", str(tmp_path / "bad.pt")]) == 2
    assert "bad.pt is no file of torch.save" in capsys.readouterr().err


def test_settings_are_for_equations(trained, capsys):
    assert main(["networks", "interpret", str(trained[0]), "--set", "diffusion=1"]) == 2
    assert "--set: for equations (heat, fisher-kpp" in capsys.readouterr().err
