"""Learning from scratch assays: made-up data with known laws, and referees that share nothing with the fit."""

import json

import npde_fem as npde
from npde_fem import assay
from npde_fem.datasets import read_scratch_assay

import numpy as np
import pytest

TRUTH = {"D": 2500.0, "r": 0.05, "K": 1.7e-3}
NOISE = 3e-5
POSITION = np.arange(25.0, 1500.0, 50.0)
TIMES = np.array([0.0, 12.0, 24.0, 36.0, 48.0])


def wound(x):
    """A layer with a scratch, piecewise linear between strips."""
    at_strips = 8e-4 * np.clip((np.abs(POSITION - 700) - 150) / 200, 0, 1) + 1e-4
    return np.interp(x, POSITION, at_strips)


def march(diffusivity, growth, cells=4, dt=0.02):
    """Density at strips and times by explicit finite volumes in NumPy; shape (times, columns)."""
    h = 50.0 / cells
    x = h * (np.arange(cells * len(POSITION)) + 0.5)
    u, rows = wound(x), []
    for step in range(round(TIMES[-1] / dt) + 1):
        if np.min(np.abs(step * dt - TIMES)) < dt / 2:
            rows.append(np.interp(POSITION, x, u))
        flux = np.zeros(len(u) + 1)
        flux[1:-1] = diffusivity((u[1:] + u[:-1]) / 2) * np.diff(u) / h
        u = u + dt * (np.diff(flux) / h + growth(u))
    return np.array(rows)


def write_csv(path, clean, noise=NOISE, seed=2):
    """Three wells each: the clean densities and noise; at the first time none, so that the initial state is known."""
    rng = np.random.default_rng(seed)
    lines = ["Time,Position,Dens1,Dens2,Dens3,AvgDens"]
    for t, row in zip(TIMES, clean, strict=True):
        wells = np.abs(row + (t > 0) * noise * rng.standard_normal((3, row.size)))
        for position, three in zip(POSITION, wells.T, strict=True):
            lines.append(",".join(repr(float(v)) for v in (t, position, *three, three.mean())))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    D, r, K = TRUTH.values()
    clean = march(lambda u: D * u / K, lambda u: r * u * (1 - u / K))
    return write_csv(tmp_path_factory.mktemp("assay") / "CellDensity_12.csv", clean)


@pytest.fixture(scope="module")
def measured(file):
    return read_scratch_assay(file, 12)


@pytest.fixture(scope="module")
def fits(measured):
    return {method: assay.fit(measured, "porous-fisher", method) for method in assay.METHODS}


def numbers(fit):
    return np.concatenate([np.ravel(e.value) for e in fit.parameters.values()])


def test_hidden_parameters_are_found(fits):
    for fit in fits.values():
        assert fit.minimum.converged
        for name, true in TRUTH.items():
            estimate = fit.parameters[name]
            assert abs(estimate.value - true) < 2 * estimate.stderr
            assert 0 < estimate.stderr < 0.15 * true
        # sigma is that of the noise, and residuals are explained by it.
        assert fit.sigma == pytest.approx(NOISE, rel=0.1)
        assert 2 * fit.loss / fit.residuals == pytest.approx(1, rel=0.15)


def test_fem_and_fd_agree(fits):
    fem, fd = fits["fem"], fits["fd"]
    for name in TRUTH:
        a, b = fem.parameters[name], fd.parameters[name]
        assert abs(a.value - b.value) < 0.5 * min(a.stderr, b.stderr)
        assert a.stderr == pytest.approx(b.stderr, rel=0.05)
    assert fem.loss == pytest.approx(fd.loss, rel=0.01)


@pytest.mark.parametrize("method", assay.METHODS)
def test_minimum_and_standard_errors_against_differences(fits, measured, method):
    """The loss by plain solves: its gradient vanishes, and its Hessian by differences gives the standard errors."""
    fit = fits[method]
    model, names = fit.model, list(TRUTH)
    best = numbers(fit)

    left, right = measured.interval
    equation = model.equation
    if method == "fd":
        problem = npde.FD(equation, npde.Grid(npde.MPI.COMM_WORLD, (61,), (left,), (right,)))
    else:
        import dolfinx

        mesh = dolfinx.mesh.create_interval(npde.MPI.COMM_WORLD, 60, (left, right))
        problem = npde.FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", 1)))
    x = problem.coordinates()[:, 0]
    order = np.argsort(x)

    def residuals(values):
        for name, value in zip(names, values, strict=True):
            problem.parameters[name].value = value
        solution = npde.solve(problem, lambda x: np.interp(x[0], POSITION, measured.mean[0]), (0, 48), 1.0,
                              observe=TIMES[1:].tolist(), progress=False)  # fmt: skip
        states = np.array([np.interp(POSITION, x[order], row[order]) for row in solution.states])
        return ((states[:, None] - measured.replicates[1:]) / fit.sigma).ravel()

    def loss(values):
        return 0.5 * np.sum(residuals(values) ** 2)

    try:
        assert loss(best) == pytest.approx(fit.loss, rel=1e-8)
        h = np.diag(2e-3 * best)
        gradient = np.array([(loss(best + e) - loss(best - e)) / 2 for e in h])
        hessian = np.array(
            [[(loss(best + a + b) - loss(best + a - b) - loss(best - a + b) + loss(best - a - b)) / 4 for a in h]
             for b in h]
        )  # fmt: skip
    finally:
        for name, value in zip(names, best, strict=True):
            problem.parameters[name].value = value
    # By steps of a thousandth the loss falls less than it curves.
    assert np.all(np.abs(gradient) < 0.01 * np.diag(hessian))
    variance = 2 * fit.loss / (fit.residuals - 3)
    errors = np.sqrt(variance * np.diag(np.linalg.inv(hessian))) * np.diag(h)
    found = [float(fit.parameters[name].stderr) for name in names]
    np.testing.assert_allclose(found, errors, rtol=0.01)
    # Gauss and Newton's Hessian, without second derivatives of the states, is near it.
    jacobian = np.array([(residuals(best + e) - residuals(best - e)) / 2 for e in h])
    for name, value in zip(names, best, strict=True):
        problem.parameters[name].value = value
    near = np.sqrt(variance * np.diag(np.linalg.inv(jacobian @ jacobian.T))) * np.diag(h)
    np.testing.assert_allclose(found, near, rtol=0.15)


def test_criteria_by_hand(fits, measured):
    fit = fits["fem"]
    residuals = fit.states[1:, None] - measured.replicates[1:]
    n, rss = residuals.size, np.sum(residuals**2)
    assert fit.residuals == n == 4 * 3 * 30
    assert fit.rss == pytest.approx(rss, rel=1e-9)
    assert fit.estimated == 4
    assert fit.aicc == pytest.approx(n * np.log(rss / n) + 8 + 2 * 4 * 5 / (n - 5), abs=1e-6)
    assert fit.bic == pytest.approx(n * np.log(rss / n) + 4 * np.log(n), abs=1e-6)


def test_general_learns_the_laws_and_selection_names_the_true_model(measured):
    right, wrong, general = (
        assay.fit(measured, name, "fem", dt=4.0) for name in ("porous-fisher", "fisher", "general")
    )
    assert wrong.aicc > right.aicc + 10 and wrong.bic > right.bic + 10
    assert general.bic > right.bic and general.loss < right.loss + 0.05  # it contains the truth, at a price
    u = np.linspace(2e-4, 1.3e-3, 6)
    D, r, K = TRUTH.values()
    for (value, error), true in ((general.diffusivity(u), D * u / K), (general.growth(u), r * u * (1 - u / K))):
        assert np.all(np.abs(value - true) < 4 * error + 0.02 * true.max())
        assert np.all(error < 0.25 * true.max())
    table = assay.selection([wrong, right, general])
    assert [float(line.split()[-1]) == 0 for line in table.splitlines()[1:]] == [False, True, False]
    assert np.isnan(general.parameters["D"].stderr).tolist() == general.parameters["D"].at_bound.tolist()


def test_bands_are_the_standard_errors(fits):
    """At u = K the diffusivity of porous-Fisher is D; near 0 a cell grows with r."""
    fit = fits["fem"]
    D, r, K = (fit.parameters[name] for name in TRUTH)
    value, error = fit.growth([1e-9])
    assert value[0] / 1e-9 == pytest.approx(r.value, rel=1e-5)
    assert error[0] / 1e-9 == pytest.approx(r.stderr, rel=1e-4)
    value, _ = fit.diffusivity(K.value)
    assert value == pytest.approx(D.value)


def test_hold_out_is_predicted_and_not_seen(measured, file, tmp_path):
    fit = assay.fit(measured, "porous-fisher", "fd", hold_out=48.0)
    assert fit.residuals == 3 * 3 * 30
    error = np.sqrt(np.mean((fit.states[-1] - measured.mean[-1]) ** 2))
    assert fit.prediction_error == pytest.approx(error) and error < NOISE
    # Other numbers at 48 h change the error, and nothing else.
    lines = file.read_text().splitlines()
    late = [",".join([*line.split(",")[:2], *["1e-3"] * 4]) if line.startswith("48") else line for line in lines]
    (tmp_path / "late.csv").write_text("\n".join(late))
    other = assay.fit(read_scratch_assay(tmp_path / "late.csv"), "porous-fisher", "fd", hold_out=48.0)
    np.testing.assert_allclose(numbers(other), numbers(fit), rtol=1e-3)
    assert other.prediction_error > 2 * error
    inner = assay.fit(measured, "porous-fisher", "fd", hold_out=24.0)
    assert inner.prediction_error == pytest.approx(inner.error_at(24.0)) and inner.prediction_error < NOISE
    assert fit.model.parameters[0] is not inner.model.parameters[0]


def test_known_capacity_is_kept(measured):
    fit = assay.fit(measured, "fisher", "fd", capacity=1.7e-3)
    assert fit.parameters["K"].value == 1.7e-3 and fit.parameters["K"].stderr == 0
    assert fit.estimated == 3 and fit.covariance.shape == (2, 2)


def test_learners_end_in_the_same_minimum(fits, measured):
    newton, quasi = fits["fd"], assay.fit(measured, "porous-fisher", "fd", learner="lbfgs", progress=False)
    assert quasi.loss == pytest.approx(newton.loss, rel=1e-7)
    assert quasi.minimum.iterations != newton.minimum.iterations
    for name, estimate in newton.parameters.items():
        assert quasi.parameters[name].value == pytest.approx(estimate.value, rel=1e-3), name


def test_what_the_data_do_not_limit_is_said(tmp_path):
    """Growth without a limit: K runs to its bound, has no error there, and is null in JSON."""
    clean = march(lambda u: 500.0 + 0 * u, lambda u: 0.02 * u)
    fit = assay.fit(read_scratch_assay(write_csv(tmp_path / "open.csv", clean, noise=1e-6)), "fisher", "fd")
    assert fit.parameters["K"].at_bound and np.isnan(fit.parameters["K"].stderr)
    assert "(bound)" in assay.row(fit)
    assay.write_json([fit], tmp_path / "fit.json", npde.MPI.COMM_WORLD)
    written = json.loads((tmp_path / "fit.json").read_text())
    assert written["parameters"]["K"]["stderr"] is None and written["parameters"]["K"]["at_bound"] is True
    assert written["parameters"]["D"]["stderr"] > 0


def test_two_ranks_find_the_same(measured, file, tmp_path, mpirun):
    mpirun(2, "assay.py", file, tmp_path / "two.npz")
    two = np.load(tmp_path / "two.npz")
    for method in assay.METHODS:
        one = assay.fit(measured, "porous-fisher", method, dt=4.0)
        estimates = [[e.value, e.stderr] for e in one.parameters.values()]
        np.testing.assert_allclose(two[method], estimates, rtol=1e-6)
        np.testing.assert_allclose(two[f"{method}_states"], one.states, rtol=1e-7)


def test_bad_input_is_named(measured):
    for arguments, message in (
        ({"model": "fischer"}, "fisher, porous-fisher, general allowed"),
        ({"method": "fdm"}, "fem, fd allowed"),
        ({"learner": "adam"}, "learner 'adam' is unknown; pde, lbfgs allowed"),
        ({"hold_out": 30.0}, "times after the first one in the data: 12, 24, 36, 48"),
        ({"hold_out": 0.0}, "hold_out: 0 h given"),
        ({"capacity": -1.0}, "capacity must be a positive number"),
        ({"model": "general", "capacity": 1e-3}, "general has no K"),
        ({"cells": 0}, "cells a strip"),
    ):
        with pytest.raises(ValueError, match=message):
            assay.fit(measured, **{"model": "fisher", "method": "fd", **arguments})
    with pytest.raises(ValueError, match="none given"):
        assay.figure("fits.png", [])


def test_data_that_cannot_be_fitted_is_refused(tmp_path):
    still = tmp_path / "empty.csv"
    write_csv(still, np.zeros((5, POSITION.size)), noise=0.0)
    with pytest.raises(ValueError, match="all densities are zero"):
        assay.fit(read_scratch_assay(still), "fisher", "fd")
    rows = ["Time,Position,Dens1,Dens2,Dens3,AvgDens"]
    rows += [f"0,{x},1e-3,1e-3,1e-3,1e-3" for x in (25, 75)]
    (tmp_path / "one.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="no time is left to fit"):
        assay.fit(read_scratch_assay(tmp_path / "one.csv"), "fisher", "fd")
    rows += [f"12,{x},1e-3,1.1e-3,1e-3,1.033e-3" for x in (25, 75)]
    (tmp_path / "few.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="6 densities to fit 6 numbers"):
        assay.fit(read_scratch_assay(tmp_path / "few.csv"), "general", "fd")


def test_figure_shows_everything(fits, measured, tmp_path):
    assay.figure(tmp_path / "fits.png", list(fits.values()))
    picture = (tmp_path / "fits.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 50_000
