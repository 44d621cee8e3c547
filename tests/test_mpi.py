"""The same answer on any number of ranks, and PETSc options, which only a fresh process can be given."""

import json

import numpy as np
import pytest


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """Where the results of one rank are kept, once they are there."""
    return tmp_path_factory.mktemp("serial") / "1.npz"


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_number_of_ranks_gives_the_same_answer(ranks, serial, mpirun, tmp_path):
    if not serial.exists():
        mpirun(1, "cases.py", serial)
    mpirun(ranks, "cases.py", tmp_path / "many.npz")
    one, many = np.load(serial), np.load(tmp_path / "many.npz")
    assert one.files == many.files and len(one.files) > 60
    for name in one.files:
        scale = np.abs(one[name]).max()
        assert scale > 0, name
        tolerance = {"radius": 1e-6, "adaptive steps": 1e-6, "adaptive": 1e-8, "blow-up": 1e-6}.get(name, 1e-10)
        np.testing.assert_allclose(many[name], one[name], rtol=0, atol=tolerance * scale, err_msg=name)


def options_report(mpirun, ranks, *options):
    return json.loads(mpirun(ranks, "options.py", *options).stdout.splitlines()[-1])


def test_default_solvers(mpirun):
    """cg where the Jacobian is symmetric, else bcgs or gmres; no warning."""
    report = options_report(mpirun, 1)
    assert report["symmetric"] == {"ksp": "cg", "pc": "jacobi", "warnings": []}
    assert report["drift"] == {"ksp": "bcgs", "pc": "jacobi", "warnings": []}
    assert report["stationary"] == {"ksp": "cg", "pc": "gamg", "warnings": []}


@pytest.mark.parametrize("ranks", [1, 2])
def test_petsc_options_are_honoured(ranks, mpirun):
    chosen = "-npde_ksp_type gmres -npde_pc_type bjacobi -npde_snes_rtol 1e-5"
    report = options_report(mpirun, ranks, *chosen.split())
    for name in ("symmetric", "drift", "stationary"):
        assert report[name] == {"ksp": "gmres", "pc": "bjacobi", "warnings": []}
    assert report["snes_rtol"] == 1e-5


@pytest.mark.parametrize("ranks", [1, 2])
def test_direct_solver_steps_in_with_a_warning(ranks, mpirun):
    report = options_report(mpirun, ranks, "-npde_ksp_max_it", "1")
    for name in ("symmetric", "drift", "stationary"):
        assert report[name]["ksp"] == "preonly" and report[name]["pc"] == "lu"
        assert len(report[name]["warnings"]) == 1
        assert "LU takes its place" in report[name]["warnings"][0]
    exact = options_report(mpirun, 1)
    assert report["values"] == pytest.approx(exact["values"], rel=1e-7)
