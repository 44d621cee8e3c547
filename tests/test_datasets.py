import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from npde_fem import datasets
from npde_fem.datasets import assays, files, speech

import numpy as np
import pytest
from scipy import ndimage
from scipy.io import wavfile

HEADER = "Column,Position,Dens1,Dens2,Dens3,AvgDens,CV,Time"


def rows(times=(0, 12), columns=3):
    """Densities that grow with time and position; replicates 10 % apart."""
    for time in times:
        for column in range(columns):
            middle = 1e-4 * (1 + column + time)
            densities = ",".join(f"{middle * factor:.3e}" for factor in (0.9, 1, 1.1, 1))
            yield f"{column + 1},{25 + 50 * column},{densities},,{time}"


def written(folder, lines, header=HEADER, name="assay.csv"):
    path = Path(folder) / name
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8-sig")
    return path


def test_reads_a_file_with_byte_order_mark_in_any_row_order(tmp_path):
    assay = datasets.read_scratch_assay(written(tmp_path, reversed(list(rows()))), density=7)
    assert assay.density == 7
    np.testing.assert_array_equal(assay.position, [25, 75, 125])
    np.testing.assert_array_equal(assay.times, [0, 12])
    assert assay.replicates.shape == (2, 3, 3) and assay.replicates.dtype == np.float64
    np.testing.assert_allclose(assay.mean, 1e-4 * np.array([[1, 2, 3], [13, 14, 15]]), rtol=1e-3)
    np.testing.assert_allclose(assay.std, 0.1 * assay.mean, rtol=1e-3)
    assert assay.spacing == 50 and assay.interval == (0, 150)
    with pytest.raises(ValueError, match="read-only"):
        assay.replicates[0] = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("Dens2", "Density2"), "no column Dens2; needed are"),
        (lambda text: text.replace("9.000e-05", "nan"), "line 2: Dens1 must be finite, not 'nan'"),
        (lambda text: text.replace("9.000e-05", "many"), "line 2: Dens1 must be a number, not 'many'"),
        (lambda text: text.replace("9.000e-05", "-9.0e-05"), "must not be negative"),
        (lambda text: text.replace("9.000e-05", "7.000e-05"), "AvgDens is not the mean"),
        (lambda text: text.replace("\n2,75", "\n2,76"), "evenly spaced and the same at every time"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "3 at Time 0, 2 at Time 12"),
        (lambda text: text.splitlines()[0], "no rows"),
        (lambda text: "", "found are none"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path, change, message):
    path = written(tmp_path, rows())
    path.write_text(change(path.read_text(encoding="utf-8-sig")), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        datasets.read_scratch_assay(path)


def test_says_that_a_file_is_no_text(tmp_path):
    path = tmp_path / "assay.csv"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match="not a text file"):
        datasets.read_scratch_assay(path)


def test_says_that_a_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        datasets.read_scratch_assay(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("density", sorted(datasets.SCRATCH_ASSAY_SHA256))
def test_published_data(density):
    if not os.environ.get("NPDE_FEM_DATA"):
        pytest.skip("the measured data are not here: NPDE_FEM_DATA is not set")
    assay = datasets.scratch_assay(density)
    assert assay.density == density
    assert assay.replicates.shape == (5, 3, 38)
    np.testing.assert_array_equal(assay.times, [0, 12, 24, 36, 48])
    assert assay.interval == (0, 1900)
    # The scratch is open at first and the cells grow.
    assert assay.mean[0, 15:23].mean() < 0.2 * assay.mean[0].max()
    assert assay.mean[-1].sum() > 1.3 * assay.mean[0].sum()
    name, checksum = f"CellDensity_{density}.csv", datasets.SCRATCH_ASSAY_SHA256[density]
    (path,) = files.published("scratch_assay", assays.SCRATCH_ASSAY_URL, {name: checksum}, None)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == checksum


@pytest.mark.parametrize("inner", ["", "scratch_assay"])
def test_takes_a_folder_as_argument_before_the_environment(tmp_path, monkeypatch, inner):
    (tmp_path / inner).mkdir(exist_ok=True)
    written(tmp_path / inner, rows(range(5), 38), name="CellDensity_10.csv")
    monkeypatch.setenv("NPDE_FEM_DATA", str(tmp_path / "elsewhere"))
    assert datasets.scratch_assay(10, tmp_path).replicates.shape == (5, 3, 38)
    monkeypatch.setenv("NPDE_FEM_DATA", str(tmp_path))
    assert datasets.scratch_assay(10).replicates.shape == (5, 3, 38)


def test_says_how_to_get_data_that_a_named_folder_lacks(tmp_path, monkeypatch):
    with pytest.raises(datasets.DataUnavailable, match=r"folder is .*CellDensity_14.csv.*NPDE_FEM_DATA"):
        datasets.scratch_assay(14, tmp_path)
    monkeypatch.setenv("NPDE_FEM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"variable NPDE_FEM_DATA is .*https://.*--data"):
        datasets.scratch_assay(14)


def test_refuses_other_densities_and_other_contents(tmp_path):
    with pytest.raises(ValueError, match="density must be one of 10, 14, 16, 20, not 12"):
        datasets.scratch_assay(12)
    written(tmp_path, rows(), name="CellDensity_10.csv")
    with pytest.raises(ValueError, match="5 times and 38 columns, this one 2 and 3"):
        datasets.scratch_assay(10, tmp_path)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder that a web server on this machine offers as the published one, and an empty cache."""
    pooch = pytest.importorskip("pooch", reason="pooch is not installed")
    folder, cache = tmp_path / "served", tmp_path / "cache"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            """Keep the test's output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.delenv("NPDE_FEM_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: cache)
    monkeypatch.setattr(assays, "SCRATCH_ASSAY_URL", f"http://127.0.0.1:{server.server_port}/")

    def stop():
        if thread.is_alive():
            server.shutdown()
            thread.join()
            server.server_close()

    yield folder, cache, stop
    stop()


def test_downloads_once_and_checks(served, monkeypatch):
    folder, cache, stop = served
    path = written(folder, rows(range(5), 38), name="CellDensity_16.csv")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(datasets.SCRATCH_ASSAY_SHA256, 16, checksum)
    first = datasets.scratch_assay(16)
    stop()
    np.testing.assert_array_equal(datasets.scratch_assay(16).replicates, first.replicates)
    (cache / "scratch_assay" / path.name).write_text("damaged since")
    with pytest.raises(datasets.DataUnavailable, match="cannot be downloaded"):
        datasets.scratch_assay(16)


def test_refuses_a_corrupted_download(served):
    folder, cache, _ = served
    written(folder, rows(range(5), 38), name="CellDensity_16.csv")
    with pytest.raises(datasets.DataCorrupted, match=r"CellDensity_16.csv .* not the published file"):
        datasets.scratch_assay(16)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_says_how_to_get_data_that_cannot_be_downloaded(served):
    _, _, stop = served
    with pytest.raises(datasets.DataUnavailable, match=r"404.*NPDE_FEM_DATA"):
        datasets.scratch_assay(20)
    stop()
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded.*by hand.*--data"):
        datasets.scratch_assay(20)


# ---------------------------------------------------------------------------------------- digits, vowels


def test_mnist_digits():
    images, labels = datasets.mnist5k()
    assert images.shape == (5000, 28, 28) and (images.min(), images.max()) == (0, 1)
    assert np.bincount(labels).tolist() == [500] * 10
    # A one is a narrow stroke, a zero has a hole in its middle.
    assert images[labels == 1].mean() < 0.6 * images[labels == 0].mean()
    assert images[labels == 0][:, 14, 14].mean() < 0.1 < 0.5 < images[labels == 1][:, 14, 14].mean()


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """Two recordings in the place of the published ones, in a folder; the package's checksums are theirs."""
    folder, package = tmp_path / "vowels", tmp_path / "package"
    folder.mkdir()
    package.mkdir()
    lines = []
    for name, frequency in (("m01ae", 200), ("w07iy", 400)):
        wave = np.sin(2 * np.pi * frequency * np.arange(1600) / 16_000)
        wavfile.write(folder / f"{name}.wav", 16_000, np.round(16384 * wave).astype(np.int16))
        lines.append(f"{name}.wav {hashlib.sha256((folder / f'{name}.wav').read_bytes()).hexdigest()}")
    (package / "vowels.sha256").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(speech, "__file__", str(package / "speech.py"))
    return folder


def test_recordings(sounds):
    for folder in (sounds, sounds.parent):
        found = datasets.vowels(folder)
        assert found.labels.tolist() == [0, 2] and found.names == ("ae", "ei", "iy")
        assert found.speakers == ["m01", "w07"] and found.rate == 16_000
        assert [len(signal) for signal in found.signals] == [1600, 1600]
        assert np.abs(found.signals[0]).max() == pytest.approx(0.5, abs=1e-3)
        assert not found.signals[0].flags.writeable


def test_damaged_or_missing_recordings(sounds, monkeypatch):
    path = sounds / "w07iy.wav"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(datasets.DataCorrupted, match=r"w07iy.wav is not the published file"):
        datasets.vowels(sounds)
    path.unlink()
    with pytest.raises(
        datasets.DataUnavailable, match=r"folder is .* the 2 files of vowels cannot be found in .* https://"
    ):
        datasets.vowels(sounds)
    monkeypatch.setenv("NPDE_FEM_DATA", str(sounds))
    with pytest.raises(datasets.DataUnavailable, match="variable NPDE_FEM_DATA is"):
        datasets.vowels()


def test_recordings_are_downloaded_once_and_checked(sounds, served, monkeypatch):
    folder, cache, stop = served
    monkeypatch.setattr(speech, "VOWELS_URL", assays.SCRATCH_ASSAY_URL)
    for path in sounds.iterdir():
        shutil.copy(path, folder)
    first = datasets.vowels()
    stop()
    assert np.array_equal(datasets.vowels().signals[1], first.signals[1])
    assert sorted(path.name for path in (cache / "vowels").iterdir()) == ["m01ae.wav", "w07iy.wav"]


def test_recordings_of_which_a_download_is_corrupted(sounds, served, monkeypatch):
    folder, cache, stop = served
    monkeypatch.setattr(speech, "VOWELS_URL", assays.SCRATCH_ASSAY_URL)
    for path in sounds.iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[:-1])
    with pytest.raises(datasets.DataCorrupted, match="is not the published file"):
        datasets.vowels()
    stop()
    with pytest.raises(datasets.DataUnavailable, match="cannot be downloaded"):
        datasets.vowels()
    assert not [path for path in cache.rglob("*") if path.is_file()]


# ---------------------------------------------------------------------------------------------- brain maps


@pytest.fixture(scope="module")
def maps():
    """The slice at 1 mm and the volume at 4 mm."""
    pytest.importorskip("nilearn", reason="nilearn, which carries the brain maps, is not installed")
    return {2: datasets.brain(), 3: datasets.brain(3, spacing=4)}


@pytest.mark.parametrize(("dim", "edge"), [(2, 1), (3, 4)])
def test_brain_is_sane(maps, dim, edge):
    brain = maps[dim]
    shape = brain.mask.shape
    assert brain.dim == len(shape) == dim and brain.mask.dtype == bool
    np.testing.assert_array_equal(brain.spacing, np.full(dim, edge))
    for image in (brain.white, brain.grey):
        assert image.shape == shape and image.dtype == np.float64
        assert image.min() >= 0 and image.max() <= 1
    assert brain.template.shape == shape
    assert (brain.white + brain.grey).max() <= 1 + 1e-6
    assert (brain.white + brain.grey)[brain.mask].mean() > 0.85
    assert ndimage.label(brain.mask)[1] == 1
    # One layer outside the mask on every side, and no more.
    for axis in range(dim):
        others = tuple(a for a in range(dim) if a != axis)
        touched = brain.mask.any(axis=others)
        assert not touched[[0, -1]].any() and touched[[1, -2]].all()
    assert [len(axis) for axis in brain.axes] == list(shape)
    np.testing.assert_allclose([axis[-1] for axis in brain.axes], brain.upper)
    # The left half of this symmetric template mirrors the right one.
    assert abs(brain.lower[0] + brain.upper[0]) <= edge
    with pytest.raises(ValueError, match="read-only"):
        brain.mask[:] = True


def test_brain_slice_is_where_it_says(maps):
    from nilearn import datasets as source

    brain = maps[2]
    assert brain.slice_mm == 24
    i, j = 30 - int(brain.lower[0]), -6 - int(brain.lower[1])
    for values, load in (
        (brain.white, source.load_mni152_wm_template),
        (brain.grey, source.load_mni152_gm_template),
        (brain.template, source.load_mni152_template),
    ):
        image = load(resolution=1)
        voxel = np.linalg.inv(image.affine) @ (30, -6, 24, 1)
        assert values[i, j] == pytest.approx(image.dataobj[tuple(voxel[:3].round().astype(int))], abs=1e-6)


def test_brain_blocks_are_means(maps):
    fine, coarse = maps[2], datasets.brain(spacing=2)
    assert fine.white.sum() == pytest.approx(4 * coarse.white.sum(), rel=1e-3)
    assert fine.mask.sum() == pytest.approx(4 * coarse.mask.sum(), rel=0.02)
    x, y = coarse.lower + coarse.spacing * (40, 50)
    i, j = round(x - 0.5 - fine.lower[0]), round(y - 0.5 - fine.lower[1])
    assert coarse.white[40, 50] == pytest.approx(fine.white[i : i + 2, j : j + 2].mean())


@pytest.mark.parametrize("dim", [2, 3])
def test_interpolation_passes_through_the_voxels(maps, dim):
    brain = maps[dim]
    x = np.stack([grid[brain.mask] for grid in np.meshgrid(*brain.axes, indexing="ij")])
    np.testing.assert_allclose(brain.interpolate(brain.white)(x), brain.white[brain.mask], atol=1e-14)
    # Exact for a linear function, inside the grid; three rows of coordinates as DOLFINx gives them.
    slope = np.arange(1, dim + 1)
    values = np.tensordot(slope, np.meshgrid(*brain.axes, indexing="ij"), axes=1)
    points = np.zeros((3, 50))
    points[:dim] = np.random.default_rng(0).uniform(brain.lower, brain.upper, (50, dim)).T
    at = brain.interpolate(values, extend=False)
    np.testing.assert_allclose(at(points), slope @ points[:dim], atol=1e-10)
    corner = np.full((3, 1), 1e6)
    np.testing.assert_allclose(at(corner), values[(-1,) * dim])


def test_interpolation_extends_the_tissue_beyond_the_mask(maps):
    brain = maps[2]
    values = np.where(brain.mask, 0.25, np.nan)
    x = np.random.default_rng(1).uniform(-1000, 1000, (2, 500))
    np.testing.assert_allclose(brain.interpolate(values)(x), 0.25)
    with pytest.raises(ValueError, match="values must be finite"):
        brain.interpolate(values, extend=False)
    with pytest.raises(ValueError, match="shape"):
        brain.interpolate(values[1:])
    with pytest.raises(ValueError, match=r"x must have the shape \(n_coordinates >= 2, n\)"):
        brain.interpolate(values)(np.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 1}, "dim must be 2"),
        ({"spacing": 0.5}, "spacing must be whole millimetres"),
        ({"spacing": 0}, "spacing must be whole millimetres"),
        ({"spacing": float("nan")}, "spacing must be whole millimetres"),
        ({"dim": 3, "slice_mm": 4}, "slice_mm is for dim=2 only"),
        ({"slice_mm": float("nan")}, "slice_mm must be finite"),
    ],
)
def test_brain_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.brain(**arguments)


def test_brain_refuses_a_slice_beyond_the_brain(maps):
    with pytest.raises(ValueError, match="slice_mm must be from -72 to 82"):
        datasets.brain(slice_mm=300)


def test_brain_says_that_nilearn_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(datasets.DataUnavailable, match=r"npde-fem\[demo\]"):
        datasets.brain()


# --------------------------------------------------------------------------------------------------- MPI

TWO_RANKS = """
import npde_fem
from mpi4py import MPI
from npde_fem import datasets, parallel
import sys, numpy as np
comm = MPI.COMM_WORLD
assay = datasets.read_scratch_assay(sys.argv[1] if comm.rank == 0 else "not looked at", 10, comm)
assert np.array_equal(comm.bcast(assay.replicates), assay.replicates)
if sys.argv[3] == "brain":
    brain = datasets.brain(spacing=4, comm=comm)
    assert np.array_equal(comm.bcast(brain.white), brain.white)
    assert ("nilearn" in sys.modules) == (comm.rank == 0)
class Odd(Exception):
    def __init__(self, one, two):
        super().__init__("odd")
def odd():
    raise Odd(1, 2)
def missing():
    datasets.scratch_assay(10, sys.argv[2], comm)
for work, kind in ((missing, datasets.DataUnavailable), (lambda: parallel.on_root(comm, odd), RuntimeError)):
    try:
        work()
    except Exception as error:
        assert type(error) is kind, error
    else:
        raise AssertionError("no error")
print("rank", comm.rank, "is done")
"""


def test_two_ranks_get_the_same_data_and_the_same_errors(tmp_path):
    beside_python = str(Path(sys.executable).parent)
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([beside_python, os.environ["PATH"]]))
    if mpiexec is None:
        pytest.skip("there is no mpiexec")
    if int(os.environ.get("PMI_SIZE", os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))) > 1:
        pytest.skip("already under mpiexec, which does not nest")
    try:
        import nilearn
    except ModuleNotFoundError:
        nilearn = None
    arguments = [str(written(tmp_path, rows())), str(tmp_path), "brain" if nilearn else "no brain"]
    root = str(Path(datasets.__file__).parents[2])
    done = subprocess.run(
        [mpiexec, "-n", "2", sys.executable, "-c", TWO_RANKS, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is done") == 2
