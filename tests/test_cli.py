"""The command line: what it prints, writes and refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import npde_fem as npde
from npde_fem import cases
from npde_fem.cli import main
from npde_fem.resolution import points_needed

import numpy as np
import pytest
from PIL import Image


def rows_of(path):
    return json.loads(Path(path).read_text())["rows"]


def test_compare_writes_table_json_and_figure(tmp_path, capsys):
    out, plot = tmp_path / "heat.json", tmp_path / "heat.png"
    assert (
        main(["compare", "heat", "--cells", "8", "16", "--degree", "1", "--json", str(out), "--plot", str(plot)]) == 0
    )
    rows = rows_of(out)
    assert [(r["method"], r["cells"]) for r in rows] == [("fd", 8), ("fd", 16), ("fem", 8), ("fem", 16)]
    assert rows[0]["order"] is None and rows[1]["order"] == pytest.approx(2, abs=0.1)
    assert rows[3]["order"] == pytest.approx(2, abs=0.1)
    assert rows[0]["unknowns"] == 81 and rows[1]["unknowns"] == 289
    assert all(r["seconds"] >= r["seconds_assembly"] > 0 for r in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert "FEM P1" in text and f"{rows[0]['error_l2']:.3e}" in text


@pytest.mark.parametrize("equation", ["poisson", "diffusion-reaction", "porous-fisher", "allen-cahn", "gray-scott"])
def test_compare_one_dimension(equation, tmp_path):
    out = tmp_path / "rows.json"
    assert main(["compare", equation, "--dim", "1", "--cells", "16", "32", "--degree", "1", "--json", str(out)]) == 0
    assert all(r["order"] > 1.9 for r in rows_of(out) if r["order"] is not None)


def test_compare_explicit_scheme(tmp_path):
    out = tmp_path / "rows.json"
    arguments = ["compare", "fisher-kpp", "--dim", "1", "--cells", "16", "32", "--degree", "1", "--scheme", "rk4"]
    assert main([*arguments, "--json", str(out)]) == 0
    assert all(r["order"] > 1.9 for r in rows_of(out) if r["order"] is not None)


def test_compare_from_python():
    rows = npde.compare("heat", dim=1, cells=(8, 16), degrees=(2,), methods=("fem",))
    assert [r["degree"] for r in rows] == [2, 2] and rows[1]["order"] == pytest.approx(3, abs=0.2)
    with pytest.raises(KeyError, match="no case 'warmth'"):
        npde.compare("warmth")


@pytest.mark.parametrize("suffix", [".bp", ".xdmf", ".png"])
@pytest.mark.parametrize("method", ["fem", "fd"])
def test_solve_writes(method, suffix, tmp_path, capsys):
    out = tmp_path / f"u{suffix}"
    arguments = ["solve", "heat", "--method", method, "--cells", "12", "--dt", "0.05", "--frames", "3"]
    assert main([*arguments, "--output", str(out)]) == 0
    assert out.exists() and f"written: {out}" in capsys.readouterr().out
    assert not list(tmp_path.glob(".npde*"))


@pytest.mark.parametrize("equation", cases.SCENES)
def test_every_scene_is_solved(equation, tmp_path, capsys):
    """A few steps of each, by both methods, in one dimension where it has one, with its parameters."""
    case = cases.SCENES[equation]
    dim = min(case.dims)
    steps = [] if case.end is None else ["--end", str(2 * case.step)]
    for method in ("fd", "fem"):
        out = tmp_path / f"{method}.png"
        arguments = ["solve", equation, "--dim", str(dim), "--cells", "40", "--method", method, *steps]
        assert main([*arguments, "--output", str(out)]) == 0
        printed = capsys.readouterr().out
        assert out.exists() and ("|u| in" in printed) == case.pose(dim).equation.is_complex


def test_solve_complex(tmp_path, capsys):
    """The example of the design, smaller; parameters reach potential and boundary; what is conserved is told."""
    out = tmp_path / "packet.bp"
    arguments = ["solve", "schrodinger", "--method", "fem", "--degree", "2", "--cells", "12", "--end", "0.1"]
    assert main([*arguments, "--set", "V=0", "--scheme", "crank-nicolson", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    changes = [float(c) for c in re.findall(r"relative change of the (?:norm|energy): (\S+)", printed)]
    assert len(changes) == 2 and max(map(abs, changes)) < 1e-10 and out.is_dir()
    sizes = []
    for k in ("5", "10"):
        assert main(["solve", "helmholtz", "--dim", "1", "--cells", "200", "--set", f"k={k}"]) == 0
        sizes.append(float(re.search(r"\|u\| in \[\S+, (\S+)\]", capsys.readouterr().out)[1]))
    # A point source in 1D makes waves of size 1 / (2 k), if no wave comes back from the boundary.
    assert sizes == pytest.approx([1 / 10, 1 / 20], rel=0.03)


def test_film(tmp_path):
    out = tmp_path / "film.gif"
    assert main(["solve", "heat", "--cells", "6", "--end", "0.05", "--output", str(out)]) == 0
    with Image.open(out) as film:
        assert film.n_frames == 11  # every step of 0.005
    assert list(tmp_path.iterdir()) == [out]


def test_compare_complex(tmp_path, capsys):
    out = tmp_path / "rows.json"
    arguments = ["compare", "schrodinger-soliton", "--cells", "32", "64", "--degree", "2", "--json", str(out)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "norm" in text.splitlines()[0] and "energy" in text.splitlines()[0]
    rows = rows_of(out)
    assert abs(rows[1]["changes"]["norm"]) < 1e-8 and rows[3]["order"] > 2.9


def test_compare_helmholtz_tells_what_waves_need(tmp_path, capsys, monkeypatch):
    found = points_needed(("fd", "P4"), wavelengths=2)
    monkeypatch.setattr("npde_fem.resolution.points_needed", lambda comm: found)
    out, plot = tmp_path / "rows.json", tmp_path / "h.png"
    arguments = ["compare", "helmholtz", "--cells", "8", "--degree", "1", "--json", str(out), "--plot", str(plot)]
    assert main(arguments) == 0
    assert "points a wavelength" in capsys.readouterr().out
    assert json.loads(out.read_text())["resolution"] == found
    assert plot.exists() and (tmp_path / "h-resolution.png").exists()
    assert main(["compare", "helmholtz", "--dim", "1", "--cells", "16", "--degree", "1"]) == 0
    assert "points a wavelength" not in capsys.readouterr().out


def test_solve_parameter_and_adaptive(capsys):
    assert main(["solve", "heat", "--cells", "8", "--set", "D=0", "--adaptive", "1e-3"]) == 0
    still = capsys.readouterr().out
    assert "u in [0, 1]" in still


def test_petsc_options_reach_the_solver(capsys):
    assert main(["solve", "poisson", "--cells", "8", "-npde_snes_monitor", "-npde_ksp_type", "gmres"]) == 0
    from petsc4py import PETSc

    options = PETSc.Options()
    assert options.getString("npde_ksp_type") == "gmres"
    for name in ("npde_snes_monitor", "npde_ksp_type"):
        options.delValue(name)


@pytest.fixture
def assay_file(tmp_path):
    """A wound in 12 strips that closes, growth and noise made up."""
    rng, path = np.random.default_rng(5), tmp_path / "CellDensity_11.csv"
    rows = ["Time,Position,Dens1,Dens2,Dens3,AvgDens"]
    for t in (0.0, 12.0, 24.0, 48.0):
        for x in np.arange(25, 600, 50):
            level = 1.7e-3 / (1 + 4 * np.exp(-0.05 * t)) * (1 - np.exp(-t / 30 - abs(x - 300) / 100))
            wells = level * (1 + 0.05 * rng.standard_normal(3))
            rows.append(",".join(str(float(v)) for v in (t, x, *wells, wells.mean())))
    path.write_text("\n".join(rows) + "\n")
    return path


def test_learn_scratch_assay(assay_file, tmp_path, capsys):
    out, plot = tmp_path / "fit.json", tmp_path / "fit.png"
    task = ["learn", "scratch-assay", "--data", str(assay_file), "--method", "fd", "--json", str(out)]
    assert main([*task, "--model", "fisher", "--hold-out", "48", "--plot", str(plot)]) == 0
    fit = json.loads(out.read_text())
    assert {"model", "method", "density", "parameters", "loss", "aicc", "bic", "prediction_error_48h"} <= fit.keys()
    assert {"iterations", "seconds"} <= fit.keys()
    assert (fit["model"], fit["method"], fit["density"]) == ("fisher", "fd", 11)
    assert {name: p["unit"] for name, p in fit["parameters"].items()} == {
        "D": "um^2/h", "r": "1/h", "K": "cells/um^2"
    }  # fmt: skip
    assert fit["parameters"]["D"]["value"] > 0 and fit["prediction_error_48h"] > 0 and fit["iterations"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "11,000 cells  fisher" in printed and "at 48 h, left out of the fit" in printed
    # Several fits make a list, and a table that compares them.
    assert main([*task, "--model", "all", "--capacity", "1.7e-3"]) == 0
    fits = json.loads(out.read_text())
    assert [f["model"] for f in fits] == ["fisher", "porous-fisher", "general"]
    assert fits[0]["prediction_error_48h"] is None and fits[0]["parameters"]["K"]["stderr"] == 0
    assert len(fits[2]["parameters"]["D"]["value"]) == 3
    assert "AICc - best" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hold-out", "30"], "hold_out: 30 h given; times after the first one in the data: 12, 24, 48"),
        (["--model", "general", "--capacity", "1e-3"], "general has no K"),
        (["--density", "10"], "--density: for the published data only"),
        (["--data", "missing.csv"], "no scratch-assay file missing.csv"),
    ],
)
def test_learn_scratch_assay_bad_values(arguments, message, assay_file, capsys):
    given = [] if "--data" in arguments else ["--data", str(assay_file)]
    assert main(["learn", "scratch-assay", *given, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_learn_scratch_assay_bad_files(assay_file, capsys):
    good = assay_file.read_text()
    for text, message in (
        (good.replace("Dens2", "Cells2"), "no column Dens2"),
        (good.replace("\n12.0,25.0,", "\n12.0,25.0,nan,", 1), "Dens1 must be finite, not 'nan'"),
    ):
        assay_file.write_text(text)
        assert main(["learn", "scratch-assay", "--data", str(assay_file)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["learn", "scratch-essay"], "did you mean 'scratch-assay'?"),
        (["learn", "scratch-assay", "--model", "porous"], "did you mean 'porous-fisher'?"),
        (["compare", "fisher-kp"], "did you mean 'fisher-kpp'?"),
        (["solve", "grey-scott"], "did you mean 'gray-scott'?"),
        (["compare", "heat", "--scheme", "cranknicolson"], "did you mean 'crank-nicolson'?"),
        (["compare", "heat", "--cells", "0"], "positive whole number"),
        (["compare", "heat", "--json", "/nowhere/rows.json"], "missing or not writable"),
        (["solve", "heat", "--output", "u.vtk"], "must end in .bp or .xdmf or .png or .gif or .mp4"),
        (["solve", "heat", "--dt", "nan"], "positive number"),
        (["compare", "schrodinger-solitons"], "did you mean 'schrodinger-soliton'?"),
        (["solve", "schroedinger"], "did you mean 'schrodinger'?"),
        (["solv", "heat"], "did you mean 'solve'?"),
        (["solve", "heat", "--method", "fdm"], "did you mean 'fd'?"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "heat", "--cells", "16", "8"], "cells must increase"),
        (["compare", "schrodinger-soliton", "--dim", "2"], "schrodinger-soliton: dim 2 given; 1 allowed"),
        (["compare", "helmholtz", "--scheme", "strang"], "scheme: not for helmholtz, which is stationary"),
        (["solve", "paraxial", "--dim", "3"], "paraxial: dim 3 given; 1 or 2 allowed"),
        (["solve", "poisson", "--cells", "8", "--output", "film.gif"], "a stationary solution is no film"),
        (["compare", "heat", "--cell", "hexahedron"], "in 2D triangle or quadrilateral allowed"),
        (["solve", "poisson", "--end", "5", "--scheme", "rk4"], "--end, --scheme: not for poisson"),
        (["solve", "heat", "--method", "fd", "--degree", "2"], "--degree: not for heat by fd"),
        (["solve", "heat", "--cells", "8", "--set", "d=1"], "did you mean 'D'?"),
        (["solve", "heat", "--cells", "8", "--set", "D=much"], "--set D=much"),
        (["solve", "heat", "--cells", "8", "--set", "D=-1"], "negative diffusion"),
        (["solve", "heat", "--method", "fd", "--scheme", "rk4", "--dt", "0.5"], "stability limit"),
    ],
)
def test_bad_values(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_help_is_readable(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = capsys.readouterr().out
    assert "travelling wave" in text and "--cells" in text and max(map(len, text.splitlines())) < 130


def test_under_mpirun(tmp_path):
    """Table and files come once, with the same errors as on one rank; a bad name is refused once."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec) if mpiexec.exists() else "mpiexec", "-n", "2", sys.executable, "-m", "npde_fem.cli"]
    out, one = tmp_path / "two.json", tmp_path / "one.json"
    arguments = ["compare", "fisher-kpp", "--cells", "8", "16", "--degree", "1"]
    run = subprocess.run(
        [*command, *arguments, "--json", str(out)], capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("unknowns") == 1 and run.stdout.count("FEM P1") == 2
    assert main([*arguments, "--json", str(one)]) == 0
    for a, b in zip(rows_of(one), rows_of(out), strict=True):
        assert a["error_l2"] == pytest.approx(b["error_l2"], rel=1e-6)
    bad = subprocess.run([*command, "solve", "heet"], capture_output=True, text=True, timeout=100, check=False)
    assert bad.returncode != 0 and bad.stderr.count("did you mean 'heat'?") == 1
    film = tmp_path / "film.gif"
    arguments = ["solve", "schrodinger-oscillator", "--cells", "8", "--end", "0.06", "--output", str(film)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    with Image.open(film) as frames:
        assert frames.n_frames == 4
    info = subprocess.run([*command, "info"], capture_output=True, text=True, timeout=200, check=False)
    assert info.returncode == 0 and "ranks           2" in info.stdout and info.stdout.count("good") == 2
