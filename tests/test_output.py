"""Files hold the solution, whole or not at all."""

import subprocess
import sys
from itertools import pairwise

import npde_fem as npde
from npde_fem.output import Writer, grid_mesh
from npde_fem.pictures import film, gather_grid, gather_mesh

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI
from petsc4py import PETSc
from PIL import Image

COMM = MPI.COMM_WORLD


def linear(x):
    return 1 + 2 * x[0] - 3 * x[1]


def wave(x):
    return linear(x) + 1j * (2 - x[0])


def problem_of(method, degree=1, mask=None, equation=None, dim=2):
    equation = equation or npde.physics.heat(1.0)
    if method == "fd":
        return npde.FD(equation, npde.Grid(COMM, (9, 7, 5)[:dim], (0,) * dim, (2, 1, 1)[:dim], mask))
    make = dolfinx.mesh
    mesh = {1: make.create_unit_interval, 2: make.create_unit_square, 3: make.create_unit_cube}[dim](COMM, *(6,) * dim)
    return npde.FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", degree, equation.shape)))


def values_in_xdmf(folder):
    """Coordinates, and the values of each function at the one time in u.h5."""
    # h5py brings another HDF5 than DOLFINx's wheel; the two do not load into one process in this order.
    read = (
        "import h5py, numpy; file = h5py.File('u.h5');"
        "found = {name: next(iter(times.values()))[:] for name, times in file['Function'].items()};"
        "numpy.savez('u.npz', x=file['Mesh/mesh/geometry'][:], **found)"
    )
    subprocess.run([sys.executable, "-c", read], cwd=folder, check=True)
    with np.load(folder / "u.npz") as found:
        return found["x"].T, {name: found[name].ravel() for name in found.files if name != "x"}


@pytest.mark.parametrize(("method", "degree"), [("fd", 1), ("fem", 1), ("fem", 2)])
def test_xdmf_holds_the_values(method, degree, tmp_path):
    problem = problem_of(method, degree)
    with Writer(tmp_path / "u.xdmf", problem) as writer:
        writer(0.5, problem.function(problem.initial(linear)))
    x, values = values_in_xdmf(tmp_path)
    assert values["u"] == pytest.approx(linear(x), abs=1e-12)


@pytest.mark.parametrize(("method", "degree"), [("fd", 1), ("fem", 1), ("fem", 2)])
def test_files_of_complex_states(method, degree, tmp_path):
    """Real part, imaginary part and size."""
    problem = problem_of(method, degree, equation=npde.physics.schrodinger())
    for suffix in ("xdmf", "bp"):
        with Writer(tmp_path / f"u.{suffix}", problem) as writer:
            writer(0.5, problem.function(problem.initial(wave)))
    x, values = values_in_xdmf(tmp_path)
    assert values.keys() == {"u_real", "u_imag", "u_abs"}
    assert values["u_real"] + 1j * values["u_imag"] == pytest.approx(wave(x), abs=1e-12)
    assert values["u_abs"] == pytest.approx(abs(wave(x)), abs=1e-12)
    assert (tmp_path / "u.bp").is_dir()


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


EQUATIONS = {"real": npde.physics.heat, "pair": npde.physics.gray_scott, "complex": npde.physics.schrodinger}


@pytest.mark.parametrize("kind", EQUATIONS)
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("method", ["fd", "fem"])
def test_pictures_and_films(method, dim, kind, tmp_path):
    """Each kind of state in each dimension is drawn, and a film has a frame for each of its times."""
    problem = problem_of(method, equation=EQUATIONS[kind](), dim=dim)
    states = []
    for k in range(3):
        part = 1j if kind == "complex" else 0.0

        def wandering(x, k=k, part=part):
            one = np.sin(3 * x[0] + k) + part * np.cos(2 * x[0])
            return np.array([one, 0.5 * one]) if kind == "pair" else one

        states.append(problem.function(problem.initial(wandering)))
    for name in ("u.png", "u.gif"):
        with Writer(tmp_path / name, problem) as writer:
            for k, state in enumerate(states):
                writer(0.1 * k, state)
    with Image.open(tmp_path / "u.gif") as moving:
        frames = []
        for k in range(moving.n_frames):
            moving.seek(k)
            frames.append(np.asarray(moving.convert("RGB"), dtype=float))
    assert len(frames) == 3 and all(np.abs(b - a).max() > 50 for a, b in pairwise(frames))
    with Image.open(tmp_path / "u.png") as picture:
        assert min(picture.size) > 200 and np.asarray(picture.convert("L")).std() > 5
    assert {path.name for path in tmp_path.iterdir()} == {"u.png", "u.gif"}


@pytest.mark.parametrize(("cell", "degree"), [("triangle", 1), ("triangle", 4), ("quadrilateral", 3)])
def test_maps_of_any_degree_show_every_node(cell, degree):
    mesh = dolfinx.mesh.create_unit_square(COMM, 3, 3, dolfinx.mesh.to_type(cell))
    u = dolfinx.fem.Function(dolfinx.fem.functionspace(mesh, ("Lagrange", degree)))
    u.interpolate(linear)
    frame = gather_mesh([u])
    x, triangles = frame["x"], frame["triangles"]
    assert frame["values"][:, 0] == pytest.approx(linear(x.T))
    assert set(triangles.ravel()) == set(range(len(x)))
    a, b = x[triangles[:, 1]] - x[triangles[:, 0]], x[triangles[:, 2]] - x[triangles[:, 0]]
    areas = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]) / 2
    assert areas.sum() == pytest.approx(1) and areas.min() > 1e-4


def test_long_films_are_thinned(tmp_path):
    """Of very many frames as many as asked for, the first and the last among them."""
    problem = problem_of("fd", dim=1)
    states = (problem.function(problem.initial(lambda x, k=k: np.sin(x[0] + k))) for k in range(31))
    frames = [(float(k), gather_grid(problem, u)) for k, u in enumerate(states)]
    film(frames, "long", tmp_path / "long.gif", most=5)
    film([frames[k] for k in (0, 8, 15, 22, 30)], "long", tmp_path / "short.gif")
    assert (tmp_path / "long.gif").read_bytes() == (tmp_path / "short.gif").read_bytes()


def test_no_frames_no_film(tmp_path):
    with pytest.raises(ValueError, match="no state was written"), Writer(tmp_path / "u.gif", problem_of("fd")):
        pass
    with pytest.raises(ValueError, match=r"stationary solution is no film; \.png"):
        Writer(tmp_path / "u.gif", problem_of("fd", equation=npde.physics.poisson()))
    assert list(tmp_path.iterdir()) == []


def test_mp4_needs_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setattr("npde_fem.output.can_film", lambda suffix: suffix == ".gif")
    with pytest.raises(ValueError, match="no ffmpeg, which .mp4 needs"):
        Writer(tmp_path / "u.mp4", problem_of("fd"))
