"""Files hold the solution, whole or not at all."""

import subprocess
import sys

import npde_fem as npde
from npde_fem.output import Writer, grid_mesh

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI
from petsc4py import PETSc

COMM = MPI.COMM_WORLD


def linear(x):
    return 1 + 2 * x[0] - 3 * x[1]


def problem_of(method, degree=1, mask=None):
    equation = npde.physics.heat(1.0)
    if method == "fd":
        return npde.FD(equation, npde.Grid(COMM, (9, 7), (0, 0), (2, 1), mask))
    mesh = dolfinx.mesh.create_unit_square(COMM, 6, 6)
    return npde.FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", degree)))


@pytest.mark.parametrize(("method", "degree"), [("fd", 1), ("fem", 1), ("fem", 2)])
def test_xdmf_holds_the_values(method, degree, tmp_path):
    problem = problem_of(method, degree)
    with Writer(tmp_path / "u.xdmf", problem) as writer:
        writer(0.5, problem.function(problem.initial(linear)))
    # h5py brings another HDF5 than DOLFINx's wheel; the two do not load into one process in this order.
    read = (
        "import h5py, numpy, sys; file = h5py.File('u.h5'); (values,) = (v[:] for v in file['Function/u'].values());"
        "numpy.savez('u.npz', x=file['Mesh/mesh/geometry'][:], values=values)"
    )
    subprocess.run([sys.executable, "-c", read], cwd=tmp_path, check=True)
    with np.load(tmp_path / "u.npz") as found:
        x, values = found["x"], found["values"]
    assert values.ravel() == pytest.approx(linear(x.T), abs=1e-12)


def test_grid_mesh_is_the_grid():
    problem = problem_of("fd")
    mesh, index = grid_mesh(problem)
    assert mesh.topology.index_map(2).size_global == 8 * 6
    area = COMM.allreduce(dolfinx.fem.assemble_scalar(dolfinx.fem.form(1.0 * ufl.dx(domain=mesh), dtype=np.float64)))
    assert area == pytest.approx(2.0)
    assert index.size == 9 * 7


def test_grid_mesh_leaves_out_what_is_masked():
    mask = np.ones((9, 7), dtype=bool)
    mask[4, 3] = False
    mesh, _ = grid_mesh(problem_of("fd", mask=mask))
    assert mesh.topology.index_map(2).size_global == 8 * 6 - 4


def test_an_error_leaves_no_file(tmp_path):
    problem = problem_of("fd")
    with pytest.raises(RuntimeError, match="on purpose"), Writer(tmp_path / "u.xdmf", problem) as writer:
        writer(0.0, problem.function(problem.initial(1.0)))
        raise RuntimeError("on purpose")
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_is_replaced(tmp_path):
    problem = problem_of("fem")
    for value in (1.0, 2.0):
        with Writer(tmp_path / "u.bp", problem) as writer:
            writer(0.0, problem.function(problem.initial(value)))
    assert (tmp_path / "u.bp").is_dir() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("name", "error"), [("u.vtk", ValueError), ("nowhere/u.bp", OSError)])
def test_bad_path(name, error, tmp_path):
    with pytest.raises(error, match="allowed|missing"):
        Writer(tmp_path / name, problem_of("fd"))


def test_writer_is_called_at_the_times_asked_for(tmp_path):
    problem, seen = problem_of("fem"), []
    npde.solve(problem, linear, t=(0, 1), dt=0.1, observe=([0.0, 0.35, 1.0], lambda t, u: seen.append(t)))
    assert seen == [0.0, 0.35, 1.0]


def test_no_state_no_figure(tmp_path):
    with pytest.raises(ValueError, match="no state was written"), Writer(tmp_path / "u.png", problem_of("fd")):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["png", "xdmf", "bp"])
def test_error_on_one_rank_ends_the_job(suffix, mpirun, tmp_path):
    with pytest.raises(pytest.fail.Exception, match="on one rank, on purpose"):
        mpirun(2, "bad_writer.py", tmp_path / f"u.{suffix}", timeout=60)
    assert not (tmp_path / f"u.{suffix}").exists()


def test_state_of_other_ranks_is_refused(mpirun, tmp_path):
    path = tmp_path / "state.petsc"
    assert "same" in mpirun(2, "restart.py", path).stdout
    assert "was saved on 2 ranks" in mpirun(1, "restart.py", path).stdout


def test_state_of_a_petsc_with_other_scalars(tmp_path):
    """A file holds real or complex numbers, as PETSc's build has it; either is read."""
    problem, path = problem_of("fd"), tmp_path / "state.petsc"
    values = np.arange(problem.n_owned, dtype=float)
    integers = np.dtype(PETSc.IntType).newbyteorder(">")
    for kind in (">f8", ">c16"):
        parts = [[1211214, values.size], values, [1211214, 1], [values.size]]
        path.write_bytes(
            b"".join(np.array(p, dtype=k).tobytes() for p, k in zip(parts, [integers, kind] * 2, strict=True))
        )
        np.testing.assert_array_equal(npde.restore(problem, path), values)
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(ValueError, match="not whole"):
            npde.restore(problem, path)
