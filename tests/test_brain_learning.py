"""What is learnt of a tumour from images of it: hidden numbers are found again, within the errors stated."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

from npde_fem import brain
from npde_fem.brain import learn
from npde_fem.cli import main

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("brain_learning")
METHODS = ("fem", "fd")

try:
    import gmsh  # noqa: F401
    import nibabel
    import nilearn  # noqa: F401
except (ModuleNotFoundError, OSError) as missing:
    pytest.skip(f"brain anatomy needs gmsh, nilearn and nibabel: {missing}", allow_module_level=True)


@pytest.fixture(scope="module")
def scans():
    return cases.images()


@pytest.fixture(scope="module")
def fits(scans):
    return {method: cases.fit(scans, method) for method in METHODS}


def test_images_are_the_hidden_tumour_and_noise():
    noisy, clean = cases.images(), cases.images(noise=1e-9)
    noise = noisy.density - clean.density
    assert noise.std() == pytest.approx(brain.NOISE, rel=0.08) and abs(noise.mean()) < 0.2 * brain.NOISE
    assert abs(np.corrcoef(noise)[0, 1]) < 0.15
    np.testing.assert_array_equal(noisy.density, cases.images().density)
    assert not np.array_equal(noisy.density, cases.images(rng_seed=1).density)
    np.testing.assert_allclose(noisy.points[:, 0] % 3, noisy.points[0, 0] % 3)
    np.testing.assert_allclose(clean.centre(), cases.HIDDEN.seed, atol=1.0)
    image = noisy.image(noisy.density[1])
    assert np.isfinite(image).sum() == len(noisy.index) and image.shape == noisy.shape


def test_hidden_numbers_are_found_within_two_standard_errors(fits):
    for fit in fits.values():
        assert np.all(np.abs(fit.deviations()) < 2)
        assert fit.residual == pytest.approx(brain.NOISE, rel=0.1)
        relative = fit.errors.numbers / np.abs(cases.HIDDEN.numbers)
        assert np.all(relative < 0.05) and np.all(relative > 0.001)
    apart = fits["fem"].tumour.numbers - fits["fd"].tumour.numbers
    assert np.all(np.abs(apart) < fits["fd"].errors.numbers)


def test_standard_errors_are_those_of_repeated_images():
    """Over six times the same images with other noise, estimates scatter about the hidden numbers as the errors say."""
    clean, deviations = cases.images(noise=1e-9), []
    for k in range(6):
        noise = brain.NOISE * np.random.default_rng(k).standard_normal(clean.density.shape)
        again = dataclasses.replace(clean, density=clean.density + noise, noise=brain.NOISE)
        deviations.append(cases.fit(again, "fd", start=cases.HIDDEN).deviations())
    assert np.mean(np.abs(deviations) < 2) > 0.8
    assert 0.7 < np.sqrt(np.mean(np.square(deviations))) < 1.4
    assert np.all(np.abs(np.mean(deviations, axis=0)) < 2.5 / np.sqrt(6))


def test_discretisation_errs_less_than_half_a_standard_error(fits):
    clean = cases.images(noise=1e-6)
    for method in METHODS:
        found = cases.fit(clean, method).tumour.numbers
        assert np.all(np.abs(found - cases.HIDDEN.numbers) < 0.5 * fits[method].errors.numbers)


def test_standard_errors_are_those_of_gauss_and_newton(scans, fits):
    """Referee: differences of the densities by every number; without the residuals' part, which noise makes small."""
    fit, tissue = fits["fd"], cases.tissue(1)
    inside = np.isfinite(fit.density[0])

    def densities(numbers):
        model = learn._model(cases.COMM, "fd", tissue, 0.0, brain.Tumour(tuple(numbers[:2]), *numbers[2:]))
        solution = learn.solve(model.problem, model.u0, (0, scans.times[-1]), cases.DT, observe=scans.times)
        probe = learn.Probe(model.problem, scans.points[inside])
        return np.ravel([probe.apply(values) for values in solution.states])

    best = fit.tumour.numbers
    steps = np.diag(1e-4 * np.abs(best))
    slopes = np.transpose([(densities(best + s) - densities(best - s)) / (2 * s.sum()) for s in steps])
    referee = np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes))) * scans.noise
    np.testing.assert_allclose(fit.errors.numbers, referee, rtol=0.1)
    np.testing.assert_allclose(fit.density[:, inside].ravel(), densities(best), atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_one_image_at_a_known_time_suffices(method):
    fit = cases.fit(cases.images(times=(80.0,)), method)
    assert np.all(np.abs(fit.deviations()) < 2.5)
    assert np.all(np.isfinite(fit.errors.numbers))


def test_measured_images_take_their_noise_from_the_residuals(scans, fits):
    measured = dataclasses.replace(scans, noise=5 * scans.noise, hidden=None)
    fit = cases.fit(measured, "fd")
    np.testing.assert_allclose(fit.tumour.numbers, fits["fd"].tumour.numbers, rtol=1e-3)
    np.testing.assert_allclose(fit.errors.numbers, fits["fd"].errors.numbers, rtol=0.05)
    assert fit.deviations() is None and "hidden" not in fit.as_json()["parameters"]["r"]
    assert "hidden" not in brain.table_of_fits([fit]) and "hidden" in brain.table_of_fits([fits["fd"]])


def test_two_ranks_learn_the_same(mpirun, fits):
    records = [json.loads(line) for line in mpirun(2, "brain_learning.py").stdout.splitlines() if line.startswith("{")]
    assert [record["method"] for record in records] == [*METHODS]
    for record in records:
        one = fits[record["method"]].as_json()
        for name, entry in record["parameters"].items():
            for key in ("value", "stderr"):
                np.testing.assert_allclose(entry[key], one["parameters"][name][key], rtol=1e-5)


# ------------------------------------------------------------------------------------------------- images as files


def write(path, values, lower, spacing):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = lower
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.fixture
def files(tmp_path, scans):
    """The images as volumes of three slices, the middle one at the anatomy's height, NaN outside of the tissue."""
    paths = []
    for k, values in enumerate(scans.density):
        volume = np.repeat(scans.image(values)[..., None], 3, axis=2)
        volume[..., [0, 2]] = 9.0
        paths.append(write(tmp_path / f"{k}.nii.gz", volume, (*scans.lower, 20.0), (3.0, 3.0, 4.0)))
    return paths


def test_images_are_read_as_they_were_written(tmp_path, files, scans):
    inner = dataclasses.replace(cases.tissue(1), mask=np.pad(np.ones((54, 50), dtype=bool), 4))
    read = brain.read_scans(files, cases.DAYS, inner)
    kept = [np.flatnonzero((scans.index == i).all(axis=1))[0] for i in read.index]
    assert 200 < len(kept) < len(scans.index)
    np.testing.assert_allclose(read.density, scans.density[:, kept], rtol=1e-12)
    np.testing.assert_allclose(read.points, scans.points[kept])
    assert read.hidden is None and read.times == cases.DAYS
    # A slice alone, with its axes turned round.
    values = scans.image(scans.density[1])
    affine = np.diag([-3.0, 3.0, 1.0, 1.0])
    affine[:3, 3] = (scans.lower[0] + 3.0 * (scans.shape[0] - 1), scans.lower[1], 24.0)
    nibabel.save(nibabel.Nifti1Image(values[::-1], affine), tmp_path / "slice.nii")
    again = brain.read_scans([tmp_path / "slice.nii"], [80.0], inner)
    np.testing.assert_allclose(again.density[0], read.density[1], rtol=1e-12)


def test_bad_images_are_refused(tmp_path, files, scans):
    tissue = dataclasses.replace(cases.tissue(1), mask=np.pad(np.ones((54, 50), dtype=bool), 4))
    good = np.full((*scans.shape, 1), 0.5)

    def refused(message, paths, times=(80.0,), kind=ValueError):
        with pytest.raises(kind, match=message):
            brain.read_scans(paths, times, tissue)

    def one(values, lower=(*scans.lower, 24.0), spacing=(3.0, 3.0, 4.0)):
        return [write(tmp_path / "one.nii", values, lower, spacing)]

    refused("there is no image", [tmp_path / "none.nii"], kind=FileNotFoundError)
    (tmp_path / "text.nii").write_text("no image")
    refused("no NIfTI image", [tmp_path / "text.nii"])
    refused("one each is needed", files)
    refused("must be positive numbers", files, (80.0, 40.0))
    refused("must be positive numbers", files, (0.0, 40.0))
    refused("grid differs", [files[0], *one(good, (0.0, 0.0, 24.0))], (40.0, 80.0))
    refused("no voxel lies in the tissue", one(good, (500.0, 0.0, 24.0)))
    refused("has no slice at 24 mm", one(good, (*scans.lower, 60.0)))
    refused("are not finite", one(np.where(np.arange(scans.shape[0])[:, None, None] == 9, np.nan, good)))
    refused("densities over carrying capacity", one(200 * good))
    refused("densities over carrying capacity", one(0 * good))
    refused("an image of one time", one(np.repeat(good[..., None], 2, axis=3)))


def test_bad_arguments_are_named(scans):
    tissue = cases.tissue(1)
    with pytest.raises(ValueError, match="'fem' or 'fd'"):
        brain.fit_tumour(scans, "fdm", tissue)
    with pytest.raises(ValueError, match="noise must be"):
        brain.synthetic_scans(tissue, noise=0.0)
    with pytest.raises(ValueError, match="outside the tissue"):
        brain.synthetic_scans(tissue, hidden=brain.Tumour((200.0, 0.0)))
    flat = dataclasses.replace(scans, shape=(*scans.shape, 1))
    with pytest.raises(ValueError, match="images in 3D"):
        brain.fit_tumour(flat, "fd", tissue)
    with pytest.raises(ValueError, match="none given"):
        brain.figure_of_fits("fits.png", tissue, scans, [])


# ------------------------------------------------------------------------------------------------ the command line


def test_command_line(tmp_path, capsys):
    """On the real slice, coarsely; then from the files that somebody else might have."""
    out, plot = tmp_path / "fit.json", tmp_path / "fit.png"
    arguments = ["learn", "glioma", "--images", "1", "--dt", "10", "--resolution", "4", "--json", str(out)]
    assert main([*arguments, "--plot", str(plot)]) == 0
    both = json.loads(out.read_text())
    assert [fit["method"] for fit in both] == [*METHODS] and all(fit["times"] == [240.0] for fit in both)
    for fit in both:
        assert fit["parameters"]["seed"]["value"] == pytest.approx(fit["parameters"]["seed"]["hidden"], abs=1.5)
        for name in ("D_white", "r"):
            assert fit["parameters"][name]["value"] == pytest.approx(fit["parameters"][name]["hidden"], rel=0.25)
    assert plot.read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob(".*"))
    assert "seed x, mm" in capsys.readouterr().out

    x, y = np.meshgrid(np.arange(-70, 70, 4.0), np.arange(-100, 70, 4.0), indexing="ij")
    blob = 0.7 * np.exp(-((x - 30) ** 2 + (y + 8) ** 2) / (2 * 12**2))
    image = write(tmp_path / "mine.nii.gz", blob[..., None], (-70.0, -100.0, 24.0), (4.0, 4.0, 4.0))
    arguments = ["learn", "glioma", "--method", "fd", "--data", str(image), "--times", "200", "--json", str(out)]
    assert main([*arguments, "--dt", "10", "--resolution", "4"]) == 0
    fit = json.loads(out.read_text())
    assert fit["parameters"]["seed"]["value"] == pytest.approx([30, -8], abs=3)
    assert "hidden" not in fit["parameters"]["r"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "image.nii"], "--times"),
        (["--data", "image.nii", "--times", "80"], "there is no image image.nii"),
        (["--dim", "3", "--slice", "10"], "--slice: for --dim 2 only"),
        (["--times", "80", "40"], "must be positive numbers"),
    ],
)
def test_command_line_refuses(arguments, message, capsys):
    assert main(["learn", "glioma", *arguments]) == 2
    assert message in capsys.readouterr().err
