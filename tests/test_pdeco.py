"""PDE-constrained optimisation: parameters found again, regularisation, standard errors, bad input."""

import warnings

import npde_fem as npde
from npde_fem.optimize.block import solve
from npde_fem.optimize.functionals import integral, misfit
from npde_fem.optimize.minimize import default_method
from npde_fem.optimize.problem import PDEConstrainedProblem
from npde_fem.optimize.regularisation import H1, L2, TV

import numpy as np
import pyadjoint
import pytest
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from pyadjoint import AdjFloat

POINTS = np.linspace(0.05, 0.95, 7)[:, None]
TIMES = (0.2, 0.4)
RUN = {"u0": lambda x: np.exp(-20 * (x[0] - 0.4) ** 2), "t": (0.0, 0.4), "dt": 0.1, "observe": TIMES, "progress": False}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def on(kind, equation, n=20):
    if kind == "fd":
        return npde.FD(equation, npde.Grid(MPI.COMM_SELF, (n + 1,), (0,), (1,)))
    return npde.FEM(equation, fem.functionspace(mesh.create_unit_interval(MPI.COMM_SELF, n), ("P", 1)))


def fisher(D=0.05, r=1.5, bounds=(0, 10)):
    """Fisher-KPP, growth and diffusion unknown."""
    D, r = npde.Parameter("D", D, bounds=bounds), npde.Parameter("r", r, bounds=bounds)
    return npde.NPDE(flux=lambda u, x, t: D * ufl.grad(u), source=lambda u, x, t: r * u * (1 - u)), D, r


@pytest.fixture(scope="module")
def data():
    """What the true parameters give at the points, without noise."""
    found = {}
    for kind in ("fd", "fem"):
        equation, _, _ = fisher()
        problem = on(kind, equation)
        solution = solve(problem, **RUN)
        probe = npde.discretize.probe.Probe(problem, POINTS)
        found[kind] = np.array([probe.apply(u) for u in solution.states])
    return found


def fit(kind, data, regularisation=(), D=0.1, r=0.8, sigma=1.0, controls=None):
    equation, D, r = fisher(D, r)
    problem = on(kind, equation)
    return (
        PDEConstrainedProblem(
            problem, lambda s: misfit(s, data, at=POINTS, sigma=sigma), controls or [D, r], regularisation, **RUN
        ),
        D,
        r,
    )


@pytest.mark.parametrize("kind", ["fd", "fem"])
@pytest.mark.parametrize("method", ["tao-bqnls", "tao-bnls", "scipy-lbfgsb"])
def test_parameters_are_found_again(kind, method, data):
    pdeco, D, r = fit(kind, data[kind])
    minimum = pdeco.minimize(method, gtol=1e-8)
    assert minimum.converged
    assert (float(D), float(r)) == (pytest.approx(0.05, rel=1e-4), pytest.approx(1.5, rel=1e-4))
    assert pdeco.loss() == minimum.loss < 1e-10


@pytest.mark.parametrize("kind", ["fd", "fem"])
def test_gradient_and_hessian(kind, data):
    """Against differences, at the parameters' present values, whatever they were when this was made."""
    pdeco, D, r = fit(kind, data[kind], regularisation=[L2(npde.Parameter("idle", 1.0), 1e-9)])
    D.value, r.value = 0.07, 1.1
    gradient, product = pdeco.gradient(), pdeco.hessian_product({"D": 1.0})
    h, losses, gradients = 1e-4, [], []
    for value in (0.07 - h, 0.07 + h):
        D.value = value
        losses.append(pdeco.loss())
        gradients.append(pdeco.gradient())
    assert gradient["D"] == pytest.approx((losses[1] - losses[0]) / (2 * h), rel=1e-4)
    for name in ("D", "r"):
        assert product[name] == pytest.approx((gradients[1][name] - gradients[0][name]) / (2 * h), rel=1e-4)
    with pytest.raises(ValueError, match=r"direction: \['K'\] given; the controls are \['D', 'r'\]"):
        pdeco.hessian_product({"K": 1.0})


def test_other_parameters_may_change(data):
    """Only D is a control; the loss follows r all the same."""
    equation, D, r = fisher()
    pdeco = PDEConstrainedProblem(on("fd", equation), lambda s: misfit(s, data["fd"], at=POINTS), D, **RUN)
    assert pdeco.loss() < 1e-20
    r.value = 1.0
    assert pdeco.loss() > 1e-4
    r.value = 1.5
    assert pdeco.loss() < 1e-20


def test_the_users_tape_is_left_alone(data):
    equation, D, r = fisher()
    problem = on("fd", equation)
    with pyadjoint.set_working_tape() as tape:
        pyadjoint.continue_annotation()
        loss = misfit(solve(problem, **RUN), data["fd"] + 0.1, at=POINTS)
        variable, blocks = D.block_variable, len(tape.get_blocks())
        pdeco = PDEConstrainedProblem(problem, lambda s: misfit(s, data["fd"] + 0.2, at=POINTS), [D, r], **RUN)
        assert pyadjoint.annotate_tape() and pyadjoint.get_working_tape() is tape
        assert len(tape.get_blocks()) == blocks and D.block_variable is variable
        pyadjoint.pause_annotation()
        reduced = pyadjoint.ReducedFunctional(loss, pyadjoint.Control(D), tape=tape)
    before = float(reduced.derivative())
    pdeco.minimize()
    assert D.block_variable is not variable, "the value is another one"
    assert float(reduced.derivative()) == pytest.approx(before, rel=1e-12)
    equation, D, r = fisher()
    PDEConstrainedProblem(on("fd", equation), lambda s: misfit(s, data["fd"], at=POINTS), D, **RUN)
    assert not pyadjoint.annotate_tape()


def test_standard_errors_of_a_linear_model():
    """u = s sin(pi x) at the end of u_t = s sin(pi x) over unit time: the errors of least squares, exactly."""
    s = npde.Parameter("s", 1.0)
    equation = npde.NPDE(flux=lambda u, x, t: 0 * ufl.grad(u), source=lambda u, x, t: s * ufl.sin(ufl.pi * x[0]))
    problem = on("fd", equation)
    probe = npde.discretize.probe.Probe(problem, POINTS)
    shape = probe.apply(problem.interpolate(lambda x, t: ufl.sin(ufl.pi * x[0]))).ravel()
    rng = np.random.default_rng(1)
    noisy = 2.0 * shape + 0.1 * rng.standard_normal(shape.size)
    run = {"u0": 0.0, "t": (0.0, 1.0), "dt": 0.5, "progress": False}
    pdeco = PDEConstrainedProblem(problem, lambda u: misfit(u, noisy, at=POINTS, sigma=0.1), s, **run)
    assert pdeco.minimize(default_method(hessian=True)).converged
    assert float(s) == pytest.approx(shape @ noisy / (shape @ shape), rel=1e-6)
    error = 0.1 / np.sqrt(shape @ shape)
    assert pdeco.standard_errors()["s"] == pytest.approx(error, rel=1e-8)
    assert pdeco.covariance() == pytest.approx(np.array([[error**2]]), rel=1e-8)
    plain = PDEConstrainedProblem(problem, lambda u: misfit(u, noisy, at=POINTS), s, **run)
    assert plain.standard_errors(noise=0.1)["s"] == pytest.approx(error, rel=1e-8)
    left = noisy - float(s) * shape
    estimated = np.sqrt(left @ left / (shape.size - 1) / (shape @ shape))
    assert plain.standard_errors(residuals=shape.size)["s"] == pytest.approx(estimated, rel=1e-6)
    with pytest.raises(ValueError, match="both given"):
        plain.standard_errors(noise=0.1, residuals=7)
    with pytest.raises(ValueError, match="1 residuals given; more than the 1"):
        plain.standard_errors(residuals=1)


def test_standard_errors_where_there_is_no_minimum(data):
    """Two parameters of which the data sees the product only."""
    a, b = npde.Parameter("a", 2.0), npde.Parameter("b", 0.5)
    equation = npde.NPDE(flux=lambda u, x, t: 0.1 * ufl.grad(u), source=lambda u, x, t: a * b * u)
    pdeco = PDEConstrainedProblem(on("fd", equation), lambda s: misfit(s, data["fd"], at=POINTS), [a, b], **RUN)
    with pytest.warns(UserWarning, match="Hessian is not positive definite"):
        errors = pdeco.standard_errors()
    assert np.isnan(errors["a"]) and np.isnan(errors["b"])


def test_standard_errors_of_a_vector():
    """Two noise levels of a Monte Carlo experiment's spread agree with what one fit says of its own."""
    c = npde.Parameter("c", [1.0, 0.5])
    equation = npde.NPDE(
        flux=lambda u, x, t: 0.01 * ufl.grad(u), source=lambda u, x, t: c[0] * ufl.cos(3 * x[0]) - c[1] * u
    )
    problem = on("fd", equation)
    run = {**RUN, "t": (0.0, 1.0), "observe": (0.5, 1.0), "dt": 0.25}
    probe = npde.discretize.probe.Probe(problem, POINTS)
    clean = np.array([probe.apply(u) for u in solve(problem, **run).states])
    rng, found = np.random.default_rng(0), []
    for _ in range(40):
        c.value = [1.0, 0.5]
        noisy = clean + 0.02 * rng.standard_normal(clean.shape)
        pdeco = PDEConstrainedProblem(problem, lambda s, d=noisy: misfit(s, d, at=POINTS, sigma=0.02), c, **run)
        pdeco.minimize(gtol=1e-4)
        found.append(c.value)
    errors = pdeco.standard_errors()["c"]
    assert errors.shape == (2,)
    np.testing.assert_allclose(np.std(found, axis=0), errors, rtol=0.35)


@pytest.mark.parametrize("kind", ["fd", "fem"])
def test_regularisation_terms(kind):
    """Their values, by integrals known in closed form."""
    m = npde.Parameter("m", lambda x: 3 * x[0], field=True)
    k, v = npde.Parameter("k", 2.0), npde.Parameter("v", [1.0, 2.0])
    equation = npde.NPDE(
        flux=lambda u, x, t: ufl.grad(u), source=lambda u, x, t: -(1 + k**2 + v[0] ** 2) * u + m, damping=0
    )
    for term, value in (
        (L2(m, 2.0), 3.0),
        (L2(m, 2.0, reference=lambda x: 3 * x[0] - 1), 1.0),
        (L2(m, 2.0, reference=1.0), 1.0),
        (H1(m, 2.0), 9.0),
        (TV(m, 2.0, 4.0), 10.0),
        (L2(k, 3.0), 6.0),
        (L2(k, 3.0, reference=1.0), 1.5),
        (L2(v, 3.0, reference=[1.0, 1.0]), 1.5),
    ):
        problem = on(kind, equation, 60)
        m.home = None
        pdeco = PDEConstrainedProblem(
            problem, lambda u: integral(u, lambda u, x, t: 1e-12 * u), term.parameter, term, progress=False
        )
        assert pdeco.loss() == pytest.approx(value, rel=2e-3), term


@pytest.mark.parametrize("kind", ["fd", "fem"])
@pytest.mark.parametrize("inner", ["L2", pytest.param("H1", marks=pytest.mark.real_scalars("PETSc's TAO"))])
def test_a_source_is_found_again(kind, inner):
    """-u'' + u = m with m from the state all over the domain, by H1 regularisation of small weight."""
    counts = []
    for n in (16, 64):
        m = npde.Parameter("m", lambda x: 1 + np.cos(np.pi * x[0]), field=True)
        equation = npde.NPDE(flux=lambda u, x, t, m=m: ufl.grad(u), source=lambda u, x, t, m=m: m - u, damping=0)
        problem = on(kind, equation, n)
        truth = npde.solve(problem).values
        goal = problem.field_values(m) if kind == "fd" else problem.field(m).x.array.copy()
        problem.set_field(m, np.ones(n + 1))
        pdeco = PDEConstrainedProblem(problem, lambda s, d=truth: misfit(s, d), m, H1(m, 1e-7), progress=False)
        method = "tao-lmvm" if inner == "H1" else None
        minimum = pdeco.minimize(method, inner=inner, gtol=1e-4, ftol=0, max_iterations=400)
        assert minimum.converged
        assert np.abs(minimum.values["m"] - goal).max() < 0.15
        np.testing.assert_array_equal(problem.field_values(m), minimum.values["m"])
        counts.append(minimum.iterations)
    assert counts[1] <= 2 * counts[0] + 5, counts


BAD = [
    ("no controls", dict(controls=[]), ValueError, "controls: none given"),
    ("a number as control", dict(controls=[0.1]), TypeError, "controls: Parameters allowed, 0.1 given"),
    ("loss of vectors", dict(loss=lambda s: np.zeros(3)), TypeError, r"not an array of shape \(3,\)"),
    ("loss of floats", dict(loss=lambda s: 1.0), TypeError, "the tape knows nothing of"),
    ("loss of nothing", dict(loss=lambda s: None), TypeError, "loss must return an AdjFloat"),
    ("loss of NaN", dict(loss=lambda s: AdjFloat(np.nan)), ValueError, "loss: nan at the parameters' values"),
    ("constant loss", dict(loss=lambda s: AdjFloat(1.0)), ValueError, r"controls \['D', 'r'\] do not enter the loss"),
    ("no loss", dict(loss=3), TypeError, "loss must be a function"),
    ("no term", dict(regularisation=[0.1]), TypeError, "terms such as L2"),
]


@pytest.mark.parametrize("given, kind, message", [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input(given, kind, message, data):
    equation, D, r = fisher()
    arguments = {"loss": lambda s: misfit(s, data["fd"], at=POINTS), "controls": [D, r], **given}
    with pytest.raises(kind, match=message):
        PDEConstrainedProblem(on("fd", equation), **arguments, **RUN)
    assert not pyadjoint.annotate_tape()


def test_bad_controls(data):
    equation, D, r = fisher()
    for controls, message in (
        ([D, D], r"\['D', 'D'\] given; each may stand there once"),
        ([D, npde.Parameter("K", 1.0)], r"controls \['K'\] do not enter the loss"),
    ):
        with pytest.raises(ValueError, match=message):
            PDEConstrainedProblem(on("fd", equation), lambda s: misfit(s, data["fd"], at=POINTS), controls, **RUN)


def test_bad_regularisation():
    k, cells = npde.Parameter("k", 1.0), npde.Parameter("c", 1.0, field=("DG", 0))
    for make, kind, message in (
        (lambda: H1(k, 1.0), ValueError, "H1 of 'k': it has no gradient"),
        (lambda: TV(cells, 1.0), ValueError, "TV of 'c': it has no gradient"),
        (lambda: L2(k, -1.0), ValueError, "L2 of 'k': weight: a finite number from 0 on allowed, -1.0 given"),
        (lambda: L2(3.0, 1.0), TypeError, "L2: a Parameter allowed, 3.0 given"),
        (lambda: TV(npde.Parameter("m", 1.0, field=True), 1.0, 0.0), ValueError, "epsilon above 0 allowed, 0 given"),
    ):
        with pytest.raises(kind, match=message):
            make()


def test_covariance_of_fields():
    m = npde.Parameter("m", 1.0, field=True)
    equation = npde.NPDE(flux=lambda u, x, t: ufl.grad(u), source=lambda u, x, t: m - u, damping=0)
    pdeco = PDEConstrainedProblem(on("fd", equation), lambda s: misfit(s, 0.0), m, progress=False)
    with pytest.raises(TypeError, match=r"covariance: of numbers only; the controls \['m'\] are fields"):
        pdeco.covariance()
