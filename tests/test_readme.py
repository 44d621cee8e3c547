"""Every code block of the README runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.special

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
SCRIPTS = [code for kind, code in BLOCKS if kind == "python"]
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, code in BLOCKS
    if kind == "sh"
    for line in code.splitlines()
    if shlex.split(line, comments=True)
]


def run(command, folder, timeout=300):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_readme_has_code():
    assert len(SCRIPTS) == 6 and COMMANDS
    assert {kind for kind, _ in BLOCKS} == {"python", "sh"}


def output_of(code, folder):
    script = folder / "readme.py"
    script.write_text(code)
    return run([sys.executable, str(script)], folder)


def test_both_discretisations(tmp_path):
    fem, fd = (float(line.split("mass")[1]) for line in output_of(SCRIPTS[0], tmp_path).splitlines())
    assert fem == pytest.approx(fd, rel=2e-3)


def test_waves(tmp_path):
    (line,) = output_of(SCRIPTS[1], tmp_path).splitlines()
    energies = [float(number) for number in re.findall(r"[\d.]+", line.split("[")[1].split("]")[0])]
    # In z = pi x / 16 this is Mathieu's equation: a = 2 (E - 2) / k^2, q = 2 / k^2, k = pi / 16.
    k = np.pi / 16
    characteristic = [scipy.special.mathieu_a(0, 2 / k**2), scipy.special.mathieu_b(2, 2 / k**2)]
    characteristic.append(scipy.special.mathieu_a(2, 2 / k**2))
    assert energies == pytest.approx([2 + k**2 * a / 2 for a in characteristic], abs=1e-4)


def test_gradients(tmp_path):
    estimates = output_of(SCRIPTS[2], tmp_path).splitlines()[1]
    (d, d_error), (r, r_error) = re.findall(r"= ([\d.]+) \+- ([\d.]+)", estimates)
    assert abs(float(d) - 0.03) < 2 * float(d_error) and abs(float(r) - 4) < 2 * float(r_error)


def test_learning(tmp_path):
    (line,) = output_of(SCRIPTS[3], tmp_path).splitlines()
    loss, diffusivity = (float(number) for number in re.findall(r"[\d.]+(?:e-\d+)?", line.split("growth")[0]))
    growth = [float(number) for number in re.findall(r"[\d.]+", line.split("[")[1])]
    assert loss < 1e-4
    assert diffusivity == pytest.approx(0.02, rel=0.1)
    assert growth == pytest.approx([2.4, 1.5, 0.6], abs=0.2)


def test_networks(tmp_path):
    *differences, grid, triangles = output_of(SCRIPTS[4], tmp_path).splitlines()
    assert len(differences) == 2 and all(float(line.split("by")[1]) < 1e-12 for line in differences)
    (mass, most), (other_mass, other_most) = (re.findall(r"\d+\.\d+", line) for line in (grid, triangles))
    assert float(mass) == pytest.approx(float(other_mass), rel=2e-3) and float(mass) > 5
    assert float(most) == pytest.approx(float(other_most), rel=3e-2)


def test_learners(tmp_path):
    lines = [line.split() for line in output_of(SCRIPTS[5], tmp_path).splitlines()]
    assert [line[0] for line in lines] == ["Adam:", "LBFGS:", "Pseudoinverse:"]
    assert all(float(line[1]) > 93 for line in lines)
    assert len((tmp_path / "digits.csv").read_text().splitlines()) == 102 and (tmp_path / "digits.pt").is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "npde"], ids=lambda c: c[1])
def test_npde_command(command, tmp_path):
    run(command, tmp_path)
    for option in ("--plot", "--json", "--output"):
        if option in command:
            assert (tmp_path / command[command.index(option) + 1]).stat().st_size > 100


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "make"], ids=lambda c: c[1])
def test_make_target(command):
    # Running them for real is what continuous integration does, around these tests.
    plan = run([*command, "--dry-run", "--always-make"], ROOT)
    assert "pip install ./packaging/fenics-dolfinx" in plan
    assert ("demos/glioma.py" if "demo" in command else "pytest") in plan


def test_all_commands_are_covered():
    assert {c[0] for c in COMMANDS} == {"npde", "make"}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target
