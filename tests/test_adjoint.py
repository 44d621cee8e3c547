"""Gradients and Hessians of taped solves: every scheme, method and kind of control; the tape's state."""

import importlib
import json
import sys
from functools import cache
from pathlib import Path

import npde_fem as npde
from npde_fem.optimize.minimize import minimize
from npde_fem.optimize.values import as_array
from npde_fem.solve.integrate import solve as plain_solve
from npde_fem.solve.trajectory import Cotangents, Trajectory

import dolfinx_adjoint
import numpy as np
import pytest
import ufl
from pyadjoint import AdjFloat
from pyadjoint.tape import stop_annotating

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("adjoint")
END, KINDS, SCHEMES = cases.END, cases.KINDS, cases.SCHEMES


@cache
def experiment(kind, scheme):
    return cases.experiment(kind, scheme)


@cache
def plain(kind, stationary=False):
    """A problem whose controls stay as they are made."""
    return cases.make_problem(kind, stationary)


def rates_are_right(one, names=None):
    names = list(one.controls) if names is None else names
    for name, (first, second) in zip(names, one.taylor([{n: one.direction(n)} for n in names]), strict=True):
        assert first > 1.95, f"{name}: gradient, rate {first}"
        assert second > 2.9, f"{name}: Hessian, rate {second}"


def close(found, expected, tolerance=1e-8):
    assert found.keys() == expected.keys()
    for name, values in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=tolerance * scale, err_msg=name)
        assert scale > 0, name


# -- controls, schemes, methods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_taylor(kind, scheme):
    rates_are_right(experiment(kind, scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_differences(kind, scheme):
    """Gradient and Hessian against central differences: a small part that is missing shows here."""
    one, e, noise = experiment(kind, scheme), 4e-3, 1e-11
    gradient = one.derivative()
    for name in one.controls:
        along = {name: one.direction(name)}
        slope = (one.value(along, e) - one.value(along, -e)) / (2 * e)
        assert one.dot(gradient, along) == pytest.approx(slope, rel=3e-5, abs=noise / e), name
    one.value({}, 0.0)
    one.derivative()
    along = {name: one.direction(name) for name in one.controls}
    product, slopes = one.hessian(along), []
    for step in (e, -e):
        one.value(along, step)
        slopes.append(one.derivative())
    one.value({}, 0.0)
    close(product, {name: (slopes[0][name] - slopes[1][name]) / (2 * e) for name in product}, 3e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_hessian_is_symmetric(kind, scheme):
    one = experiment(kind, scheme)
    v, w = ({name: one.direction(name, k) for name in one.controls} for k in (3, 4))
    one.derivative()
    first, second = one.dot(one.hessian(v), w), one.dot(one.hessian(w), v)
    assert first == pytest.approx(second, rel=1e-9) and abs(first) > 1e-6


@pytest.mark.parametrize(("n", "schemes"), [(2, SCHEMES), (3, ("crank-nicolson", "imex"))])
def test_any_number_of_ranks(mpirun, n, schemes):
    experiments = [(kind, scheme) for kind in KINDS for scheme in schemes]
    lines = [json.loads(line) for line in mpirun(n, "adjoint.py", *schemes, timeout=300).stdout.splitlines()]
    assert [(line.pop("kind"), line.pop("scheme")) for line in lines] == experiments
    for (kind, scheme), line in zip(experiments, lines, strict=True):
        rates, expected = line.pop("rates"), here(kind, scheme)
        assert rates[0] > 1.95 and rates[1] > 2.9, (kind, scheme, rates)
        for what, values in line.items():
            scale = np.abs(expected[what]).max()
            np.testing.assert_allclose(
                values, expected[what], rtol=1e-9, atol=1e-9 * scale, err_msg=f"{kind} {scheme} {what}"
            )


@cache
def here(kind, scheme):
    return cases.measure(experiment(kind, scheme))


# -- states as functions, and solves among other operations ------------------------------------------------------


def initial_function(problem):
    """An initial state that may be a control."""
    values = 0.3 + 0.2 * cases.wave(problem.coordinates(), 1)
    if isinstance(problem, npde.FD):
        return problem.function(values, "u0")
    u0 = dolfinx_adjoint.Function(problem.space, name="u0")
    u0.x.array[:] = values
    return u0


def run(problem, u0, t=(0.0, END), scheme=None, **options):
    return npde.solve(problem, u0, t=t, dt=END / 8, scheme=scheme or npde.CrankNicolson(), **options)


@pytest.mark.parametrize("scheme", [npde.RK4(), npde.CrankNicolson()], ids=lambda s: s.name)
@pytest.mark.parametrize("kind", KINDS)
def test_initial_state_and_a_solve_in_two_parts(kind, scheme):
    """A function u0 as control; stopping half-way, and going on from ``solution.u``, changes no derivative."""
    problem = plain(kind)
    u0, data = initial_function(problem), [[0.2, 0.3, 0.1, 0.4]]
    controls = [u0, *problem.parameters.values()]

    def whole():
        return npde.misfit(run(problem, u0, scheme=scheme), data, at=cases.POINTS)

    def parts():
        half = run(problem, u0, (0.0, END / 2), scheme)
        return npde.misfit(run(problem, half.u, (END / 2, END), scheme), data, at=cases.POINTS)

    one, two = (cases.Experiment(problem, loss, controls) for loss in (whole, parts))
    rates_are_right(two, ["u0", "D"])
    close(two.derivative(), one.derivative())
    along = {name: one.direction(name) for name in one.controls}
    close(two.hessian(along), one.hessian(along))


@pytest.mark.real_scalars("dolfinx_adjoint")
def test_states_in_forms_of_dolfinx():
    """``solution.u`` and ``solution.at(k)`` in assemble_scalar, against the same integrals by npde.integral."""
    problem = plain("fem")
    D, r = problem.parameters["D"], problem.parameters["r"]

    def ours():
        s = run(problem, cases.start(problem), observe=[END / 2, END])
        return npde.integral(s, lambda u, x, t: u**3, 0) + npde.integral(
            s, lambda u, x, t: ufl.inner(ufl.grad(u), ufl.grad(u))
        )

    def theirs():
        s = run(problem, cases.start(problem), observe=[END / 2, END])
        form = s.at(0) ** 3 * ufl.dx + ufl.inner(ufl.grad(s.u), ufl.grad(s.u)) * ufl.dx
        return dolfinx_adjoint.assemble_scalar(form)

    one, two = (cases.Experiment(problem, loss, [D, r, problem.parameters["height"]]) for loss in (ours, theirs))
    assert float(two.loss) == pytest.approx(float(one.loss), rel=1e-12)
    close(two.derivative(), one.derivative())
    along = {name: one.direction(name) for name in one.controls}
    close(two.hessian(along), one.hessian(along))
    rates_are_right(two)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_computed_before(kind):
    """A parameter's value from other operations on the tape."""
    problem = plain(kind)
    r, g = problem.parameters["r"], problem.parameters["g"]
    x = AdjFloat(1.1)
    x.name = "x"

    def loss(growth):
        s = run(problem, cases.start(problem), parameters={r: growth()})
        return npde.misfit(s, 0.2) * 10

    one = cases.Experiment(problem, lambda: loss(lambda: x**2 + 0.1), [x, g])
    rates_are_right(one)
    found = one.derivative()
    two = cases.Experiment(problem, lambda: loss(lambda: AdjFloat(1.1**2 + 0.1)), [g])
    assert float(one.loss) == pytest.approx(float(two.loss), rel=1e-12)
    np.testing.assert_allclose(found["g"], two.derivative()["g"], rtol=1e-9)


@pytest.mark.real_scalars("dolfinx_adjoint")
def test_field_that_an_elliptic_filter_makes():
    """D solves D - div(0.01 grad D) = m in dolfinx_adjoint, and enters a solve; m is the control."""
    problem = plain("fem")
    D, V = problem.parameters["D"], problem.space
    m = dolfinx_adjoint.Function(V, name="m")
    m.x.array[:] = 0.03 + 0.01 * cases.wave(problem.coordinates(), 1)
    trial, test = ufl.TrialFunction(V), ufl.TestFunction(V)
    kept = []

    def loss():
        filtered = dolfinx_adjoint.Function(V, name="filtered")
        kept.append(
            dolfinx_adjoint.LinearProblem(
                (trial * test + 0.01 * ufl.inner(ufl.grad(trial), ufl.grad(test))) * ufl.dx,
                m * test * ufl.dx,
                u=filtered,
                petsc_options={"ksp_type": "preonly", "pc_type": "lu", "ksp_error_if_not_converged": True},
                petsc_options_prefix="filter_",
            )
        )
        kept[-1].solve()
        s = run(problem, cases.start(problem), parameters={D: filtered})
        return npde.misfit(s, 0.2) * 10

    one = cases.Experiment(problem, loss, [m, problem.parameters["r"]])
    rates_are_right(one)
    assert np.abs(one.derivative()["m"]).max() > 1e-6


# -- steps that adapt --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_adaptive_steps_are_frozen(kind):
    """The gradient is that of the steps as they were taken: of as many solves of one step each, and the tangent's."""
    problem = plain(kind)
    controls = list(problem.parameters.values())
    steps = run_adaptive(problem).steps
    assert len(steps) > 4 and np.ptp([dt for _, dt in steps]) > 0.01

    def adapted():
        return npde.misfit(run_adaptive(problem), 0.2)

    def stepped():
        u = cases.start(problem)
        for t, dt in steps:
            solution = npde.solve(problem, u, t=(t, t + dt), dt=dt, scheme=npde.SDIRK2())
            u = solution.u
        return npde.misfit(solution, 0.2)

    one, two = (cases.Experiment(problem, loss, controls) for loss in (adapted, stepped))
    close(one.derivative(), two.derivative(), 1e-7)
    along = {name: one.direction(name) for name in one.controls}
    close(one.hessian(along), two.hessian(along), 1e-7)
    rates_are_right(two, ["D", "r", "g"])


def run_adaptive(problem):
    return npde.solve(
        problem, cases.start(problem), t=(0.0, END), dt=npde.Adaptive(rtol=1e-2, first=0.02), scheme=npde.SDIRK2()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_adjoint_is_the_transposed_tangent(kind):
    """With steps that adapt, along all controls and the initial state together."""
    problem = plain(kind)
    where = problem.coordinates()
    recorder = Trajectory(problem, cases.start(problem), [cases.density(problem)])
    plain_solve(
        problem,
        cases.start(problem),
        t=(0.0, END),
        dt=npde.Adaptive(rtol=1e-2),
        scheme=npde.SDIRK2(),
        observe=[0.13, END],
        recorder=recorder,
    )
    controls = tuple(problem.parameters.values())
    trajectory = recorder.by(controls)
    delta = {p.name: cases.wave(cases.places(problem, p), 2) if p.is_field else np.ones(p.ufl_shape) for p in controls}
    by = Cotangents(np.stack([cases.wave(where, k) for k in (1, 2)]), cases.wave(where, 3), [0.7])
    v = cases.wave(where, 4)
    change, gradient = trajectory.tangent(delta, v), trajectory.adjoint(by)
    forwards = np.vdot(by.states, change.states) + by.final @ change.final + 0.7 * change.integrals[0]
    backwards = sum(np.vdot(gradient.parameters[n], d) for n, d in delta.items()) + gradient.initial @ v
    assert backwards == pytest.approx(forwards, rel=1e-10)


# -- the values that the tape stands at --------------------------------------------------------------------------


class Trap:
    """An experiment, and what its derivatives are where it stands."""

    def __init__(self, kind):
        self.problem = cases.make_problem(kind)
        self.one = cases.Experiment(
            self.problem, lambda: npde.misfit(run(self.problem, cases.start(self.problem)), 0.2) * 10
        )
        self.along = {name: self.one.direction(name) for name in self.one.controls}

    def derivatives(self):
        return self.one.derivative(), self.one.hessian(self.along)


@pytest.fixture(params=KINDS)
def trap(request):
    return Trap(request.param)


def still_the_same(trap, before):
    for found, expected in zip(trap.derivatives(), before, strict=True):
        close(found, expected, 1e-9)


def test_derivative_at_a_trial_point(trap):
    """After evaluations elsewhere the derivative is that where the last one was."""
    one, at_start = trap.one, trap.derivatives()
    one.value(trap.along, 0.3)
    elsewhere = trap.derivatives()
    fresh = Trap("fd" if isinstance(trap.problem, npde.FD) else "fem").one
    fresh.value(trap.along, 0.3)
    close(fresh.derivative(), elsewhere[0], 1e-9)
    assert abs(elsewhere[0]["r"] / at_start[0]["r"] - 1) > 1e-3
    one.taylor([trap.along])
    still_the_same(trap, at_start)
    one.value(trap.along, 0.3)
    still_the_same(trap, elsewhere)


def test_derivative_after_the_problem_was_used(trap):
    """Solves with other values, off the tape and on another one, leave the tape where it is."""
    before, problem = trap.derivatives(), trap.problem
    r, D = problem.parameters["r"], problem.parameters["D"]
    with stop_annotating():
        run(problem, cases.start(problem), parameters={r: 0.3, D: 0.02})
    still_the_same(trap, before)
    cases.Experiment(problem, lambda: npde.misfit(run(problem, 0.1, scheme=npde.BackwardEuler()), 0.5)).derivative()
    still_the_same(trap, before)


def test_derivative_after_values_were_set_by_hand(trap):
    before, problem = trap.derivatives(), trap.problem
    r, D = problem.parameters["r"], problem.parameters["D"]
    r.value = 0.4
    problem.set_field(D, np.full(problem.field_size(D), 0.05))
    still_the_same(trap, before)
    assert float(r) == 0.4 and np.all(problem.field_values(D) == 0.05)
    with stop_annotating():
        run(problem, cases.start(problem))
    still_the_same(trap, before)


def test_derivative_after_a_minimisation(trap):
    """The tape stands at the optimum, and the parameters have its values."""
    one = trap.one
    with pytest.warns(UserWarning, match="as many as allowed"):
        minimum = minimize(one.reduced, max_iterations=2)
    found = one.derivative()
    at_optimum = {name: as_array(c) for name, c in one.controls.items()}
    assert minimum.loss < float(one.loss)
    fresh = Trap("fd" if isinstance(trap.problem, npde.FD) else "fem").one
    fresh.value({name: at_optimum[name] - fresh.at[name] for name in at_optimum}, 1.0)
    close(found, fresh.derivative())


@pytest.mark.parametrize("kind", KINDS)
def test_new_tape_takes_the_present_values(kind):
    """An old tape that stands elsewhere has no say in what is recorded later."""
    one = Trap(kind)
    expected = float(one.one.loss)
    one.one.value(one.along, 0.3)
    problem = one.problem
    new = cases.Experiment(problem, lambda: npde.misfit(run(problem, cases.start(problem)), 0.2) * 10)
    assert float(new.loss) == pytest.approx(expected, rel=1e-12)


def test_many_gradients(mpirun):
    """Memory stays, and so does the number of communicators (10,000 of them: run the script by hand)."""
    for kind in KINDS:
        found = json.loads(mpirun(2, "gradients_10000.py", 300, kind).stdout)
        first, _, last = found["memory"]
        assert last < first + 2.0, found
