"""``npde networks``: what show, interpret and convert print, write and refuse."""

import json
import re
import subprocess
import sys
from pathlib import Path

from npde_fem.cli import main
from npde_fem.networks.files import load_network

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Files are named without their folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(2)


def networks(*arguments):
    return main(["networks", *map(str, arguments)])


def rows_of(path):
    return json.loads(Path(path).read_text())["rows"]


def small():
    return nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(2, 1, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(16, 3)),
    )


def fitting(text, *shape):
    """Whether a table has a line of such cells."""
    return any(re.sub(r"\s+", " ", line).strip() == " ".join(shape) for line in text.splitlines())


# -- equations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_heat_is_read_as_heat(dim, capsys):
    shape = ("6",) * dim
    arguments = ("heat", "--shape", *shape, "--spacing", "0.5", "--dt", "0.02", "--set", "diffusion=0.3", "source=-2")
    assert networks("interpret", *arguments, "--json", "rows.json") == 0
    (row,) = rows_of("rows.json")
    assert_allclose(row["eigenvalues"], [0.3] * dim, rtol=1e-13)
    assert_allclose(
        [row["source"], row["mass"], row["remainder"], *row["drift"]], [-2.0] + [0.0] * (2 + dim), atol=1e-13
    )
    text = capsys.readouterr().out
    assert f"h = {' x '.join(['0.5'] * dim)}, dt = 0.02" in text
    direction = ["any"] if dim > 1 else []
    assert fitting(text, "0 -> 0", "0", *["0"] * dim, *["0.3"] * dim, *direction, "-2", "0 %")


def test_show_tells_parameters_layers_and_equation(capsys):
    arguments = ("heat", "--shape", 8, 9, "--spacing", 0.5, "--dt", 0.05, "--steps", 3, "--boundary", "circular")
    assert networks("show", *arguments, "--set", "diffusion=0.2") == 0
    text = capsys.readouterr().out
    # what an optimiser sees is dt D / h^2
    assert fitting(text, "layers.0.transport.diffusion", "1 x 1 x 3", "0", "0.04")
    stock = re.search(r"\(0\): Conv2d\(1, 1, kernel_size=\(3, 3\).*padding_mode=circular\)", text)
    assert stock and "3 layers: u_t = div(D grad u - c u)" in text
    assert text.count("0 -> 0") == 3 and text.count("h = 0.5 x 0.5, dt = 0.05, rest 0 %") == 3


def test_gray_scott_has_two_channels_and_its_reaction(capsys):
    arguments = ("gray-scott", "--shape", 6, 6, "--dt", 0.1, "--set", "diffusion_u=0.2", "diffusion_v=0.1")
    assert networks("show", *arguments, "--json", "rows.json") == 0
    rows = {(row["from"], row["to"]): row for row in rows_of("rows.json")}
    assert rows.keys() == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for pair, diffusion in {(0, 0): 0.2, (1, 1): 0.1, (0, 1): 0.0, (1, 0): 0.0}.items():
        assert_allclose(rows[pair]["eigenvalues"], [diffusion] * 2, atol=1e-14)
    assert "Conv2d 2 -> 2, 3 x 3, zeros, then gray-scott" in capsys.readouterr().out


def test_heat_converted_is_the_stencil_of_heat(capsys):
    arguments = ("heat", "--shape", 8, 8, "--spacing", 0.5, "--dt", 0.05, "--boundary", "replicate")
    assert networks("convert", *arguments, "--set", "diffusion=0.2", "--output", "heat.pt") == 0
    assert capsys.readouterr().out == "heat.pt written\n"
    layer = load_network("heat.pt")
    r = 0.05 * 0.2 / 0.5**2
    assert_allclose(layer.weight.detach()[0, 0], [[0, r, 0], [r, 1 - 4 * r, r], [0, r, 0]], atol=1e-15)
    assert layer.padding_mode == "replicate" and layer.weight.dtype is torch.float64 and layer.bias.tolist() == [0.0]


# -- files --------------------------------------------------------------------------------------------------------


def test_units_of_a_file_are_those_given(capsys):
    torch.save(small().double(), "small.pt")
    found = {}
    for h, dt in ((1.0, 1.0), (0.5, 0.1)):
        units = () if h == 1 else ("--spacing", h, "--dt", dt)
        assert networks("interpret", "small.pt", *units, "--json", "rows.json") == 0
        found[h] = rows_of("rows.json")
        text = capsys.readouterr().out
        # the second convolution stands behind a pooling by 2, the Linear's neurons on a line
        assert [f"h = {size}, dt = {dt:g}" in text for size in (f"{h:g} x {h:g}", f"{2 * h:g} x {2 * h:g}")] == [
            True
        ] * 2
    assert [row["kind"] for row in found[1.0]] == ["Conv2d"] * 4 + ["Linear"]
    kernel = load_network("small.pt")[0].weight.detach().numpy()
    for k in (0, 1):
        moment = np.array([[-1, -1, -1], [0, 0, 0], [1, 1, 1]])
        drift = -float((kernel[k, 0] * moment).sum())
        assert found[1.0][k]["drift"][0] == pytest.approx(drift)
        assert found[0.5][k]["drift"][0] == pytest.approx(drift * 0.5 / 0.1)
        mass = float(kernel[k, 0].sum()) - (1 if k == 0 else 0)
        assert found[0.5][k]["mass"] == pytest.approx(mass / 0.1)


def test_neurons_stand_in_an_image(capsys):
    torch.save(nn.Linear(12, 12), "linear.pt")
    assert networks("interpret", "linear.pt", "--shape", 3, 4) == 0
    assert "neurons on a lattice of 3 x 4" in capsys.readouterr().out
    assert networks("interpret", "linear.pt") == 0
    assert "neurons on a lattice of 12" in capsys.readouterr().out


@pytest.mark.parametrize("boundary", [None, "reflect"])
def test_weights_alone_are_padded_as_asked(boundary, capsys):
    torch.save(small()[:3].state_dict(), "weights.pt")
    assert networks("show", "weights.pt", *(() if boundary is None else ("--boundary", boundary))) == 0
    text = capsys.readouterr().out
    assert f"Conv2d 1 -> 2, 3 x 3, {boundary or 'zeros'}" in text and "kernel_size=(3, 3)" in text


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_plots(suffix):
    assert networks("interpret", "heat", "--shape", 5, 5, "--dt", 0.1, "--plot", f"layers.{suffix}") == 0
    start = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix]
    assert Path(f"layers.{suffix}").read_bytes().startswith(start)
    assert [p.name for p in Path().iterdir()] == [f"layers.{suffix}"]


def test_there_and_back_by_json(capsys):
    network = small().double()
    torch.save(network, "small.pt")
    assert networks("convert", "small.pt", "--spacing", 0.5, "--dt", 0.1, "--output", "small.json") == 0
    assert networks("convert", "small.json", "--output", "again.pt") == 0
    assert networks("convert", "small.json", "--output", "again.json") == 0
    assert Path("again.json").read_text() == Path("small.json").read_text()
    made = load_network("again.pt")
    assert [type(layer) for layer in made] == [type(layer) for layer in network]
    wanted = network.state_dict()
    assert made.state_dict().keys() == wanted.keys()
    for name, value in made.state_dict().items():
        # a Linear's moments are sums over all of its neurons
        assert float((value - wanted[name]).abs().max()) < (1e-13 if name.startswith("5") else 1e-15), name
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert_allclose(made(x), network(x), atol=1e-13)
    capsys.readouterr()
    texts = []
    for source in (("small.pt", "--spacing", 0.5, "--dt", 0.1), ("small.json",)):
        for action in ("interpret", "show"):
            assert networks(action, *source, "--json", f"{len(texts)}.json") == 0
            texts.append(capsys.readouterr().out)
    assert texts[2:] == texts[:2]
    assert rows_of("2.json") == rows_of("0.json")


def test_single_precision_comes_back_exactly():
    network = small()
    torch.save(network, "small.pt")
    assert networks("convert", "small.pt", "--spacing", 0.3, "--dt", 0.7, "--output", "small.json") == 0
    assert networks("convert", "small.json", "--output", "again.pt") == 0
    made = load_network("again.pt").state_dict()
    assert all(torch.equal(made[name], value) for name, value in network.state_dict().items())


# -- refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "heatt"], "no file 'heatt', and no such equation: did you mean 'heat'? there are heat, fisher-kpp"),
        (["interpret", "missing.pt"], "no file 'missing.pt', and no such equation: there are heat"),
        (["convert", "heat"], "--output: convert needs it"),
        (["show", "heat", "--output", "x.pt"], "--output: convert needs it, show and interpret have none"),
        (["show", "heat", "--dt", "0.1", "--set", "D=2"], "heat has no coefficient 'D'; there are diffusion, source"),
        (["show", "heat"] + ["--dt", "0.5"], "unstable step: layer 0 amplifies"),
        (["show", "heat", "--dt", "0.5"], "with dt = 0.5; dt <= 0.25"),
        (["show", "heat", "--shape", "2", "8"], "shape (2, 8) given; at least 3 points"),
        (["show", "heat", "--shape", "5", "5", "5", "5"], "has 4 axes; 1, 2 or 3 allowed"),
        (["show", "good.pt", "--set", "diffusion=1"], "--set: for equations (heat, fisher-kpp"),
        (["show", "good.pt", "--set", "diffusion=1", "--steps", "2"], "--set, --steps: for equations"),
        (["show", "good.pt", "--boundary", "circular"], "good.pt holds a module, whose layers have their own"),
        (["show", "good.pt", "--shape", "5", "5"], "shape (5, 5) given; no Linear or RNN has 25 neurons"),
        (["show", "good.json", "--dt", "2", "--boundary", "zeros"], "--dt, --boundary: not for good.json, which"),
        (["show", "text.pt"], "text.pt is no file of torch.save"),
        (["show", "even.pt"], "layer 'Conv2d' is a Conv2d with a kernel of size (4, 4); odd sizes"),
        (["show", "text.json"], "text.json is no JSON: "),
        (["show", "broken.json"], "broken.json: Interpretation: layers[0]: key 'drift' is missing"),
        (["convert", "allen-cahn", "--dt", "0.1", "--output", "x.pt"], "layer '1', reaction 'allen-cahn', is none"),
        (["convert", "allen-cahn", "--dt", "0.1", "--output", "x.pt"], "--output FILE.json takes any"),
        (["show", "kpp.json"], "layers[1] is the reaction of the equation 'fisher-kpp'"),
    ],
)  # fmt: skip
def test_bad_values(arguments, message, capsys):
    torch.save(nn.Conv2d(1, 1, 3), "good.pt")
    torch.save(nn.Conv2d(1, 1, 4), "even.pt")
    Path("text.pt").write_text("no network")
    Path("text.json").write_text("no network")
    assert networks("convert", "good.pt", "--output", "good.json") == 0
    broken = json.loads(Path("good.json").read_text())
    del broken["layers"][0]["drift"]
    Path("broken.json").write_text(json.dumps(broken))
    if "kpp.json" in arguments:
        assert networks("convert", "fisher-kpp", "--dt", 0.1, "--output", "kpp.json") == 0
    before = sorted(Path().iterdir())
    capsys.readouterr()
    assert networks(*arguments) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.startswith("npde: error: ") and not told.out
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "heat", "--output", "x.npz"], "'x.npz' must end in .pt or .json"),
        (["convert", "heat", "--output", "no/x.pt"], "folder no is missing or not writable"),
        (["show", "heat", "--plot", "x.txt"], "'x.txt' must end in .png or .pdf or .svg"),
        (["show", "heat", "--set", "diffusion"], "NAME=NUMBER is needed, such as diffusion=0.1, not 'diffusion'"),
        (["show", "heat", "--set", "diffusion=much"], "NAME=NUMBER is needed"),
        (["show", "heat", "--dt", "-1"], "a positive number is needed, not '-1'"),
        (["show", "heat", "--steps", "1.5"], "a positive whole number is needed, not '1.5'"),
        (["show", "heat", "--boundary", "zeroes"], "did you mean 'zeros'?"),
        (["shew", "heat"], "did you mean 'show'?"),
        (["show"], "SOURCE"),
    ],
)
def test_bad_arguments(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("npde_fem.cli._networks", lambda *_: pytest.fail("work began"))
    with pytest.raises(SystemExit) as stop:
        networks(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_under_mpirun():
    """One rank works; what is printed and written comes once, and errors too."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec) if mpiexec.exists() else "mpiexec", "-n", "2", sys.executable, "-m", "npde_fem.cli"]

    def run(*arguments):
        given = [*command, "networks", *arguments]
        return subprocess.run(given, capture_output=True, text=True, timeout=100, check=False)

    heat = ("heat", "--shape", "5", "6", "--dt", "0.1", "--set", "diffusion=0.7")
    done = run("convert", *heat, "--output", "two.json", "--json", "rows.json", "--plot", "two.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "two.json written\n"
    assert_allclose(rows_of("rows.json")[0]["eigenvalues"], [0.7, 0.7])
    assert networks("convert", *heat, "--output", "one.json") == 0
    assert Path("two.json").read_text() == Path("one.json").read_text()
    assert sorted(p.name for p in Path().iterdir()) == ["one.json", "rows.json", "two.json", "two.png"]
    bad = run("show", *heat[:-1], "diffusion=3")
    assert bad.returncode == 2 and bad.stderr.count("npde: error: unstable step") == 1, bad.stderr


@pytest.mark.parametrize("content", [b"hi\n", b"", b"PK\x03\x04", b"random text " * 20])
def test_files_that_torch_did_not_write(content, capsys):
    Path("bad.pt").write_bytes(content)
    assert networks("interpret", "bad.pt") == 2
    assert "bad.pt is no file of torch.save" in capsys.readouterr().err


def test_drift_and_mass_are_moments_of_the_kernel():
    conv, h, dt = nn.Conv2d(1, 3, 3, padding=1).double(), 0.5, 0.1
    torch.save(conv, "conv.pt")
    assert networks("interpret", "conv.pt", "--spacing", h, "--dt", dt, "--json", "rows.json") == 0
    step = conv.weight.detach().numpy()[2, 0]  # of channel 0 in channel 2, which was not there before
    (row,) = [r for r in rows_of("rows.json") if (r["from"], r["to"]) == (0, 2)]
    moments = [-h * (step * [[-1], [0], [1]]).sum() / dt, -h * (step * [-1, 0, 1]).sum() / dt]
    assert row["mass"] == pytest.approx(step.sum() / dt) and row["drift"] == pytest.approx(moments)
