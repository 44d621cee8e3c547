"""Order in time, adaptive steps, and what solve does when asked to stop, show, retry or give up."""

import warnings

import npde_fem as npde
from npde_fem.solve.newton import Newton

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD


def left(x):
    return np.isclose(x[0], 0)


def discretise(method, eq, bcs=(), n=8, **options):
    if method == "fd":
        return npde.FD(eq, npde.Grid(COMM, (n + 1,), (0,), (1,)), bcs)
    mesh = dolfinx.mesh.create_unit_interval(COMM, n)
    return npde.FEM(eq, dolfinx.fem.functionspace(mesh, ("Lagrange", 1)), bcs, **options)


def reaction(diffusion=0.05):
    """A nonlinear diffusion and a nonlinear, time-dependent reaction."""
    return npde.NPDE(
        flux=lambda u, x, t: diffusion * (1 + u**2) * ufl.grad(u),
        source=lambda u, x, t: 2 * u * (1 - u) + ufl.sin(5 * t) * x[0],
        damping=lambda x: 1 + 0.5 * x[0],
    )


def bump(x):
    return 0.2 + 0.6 * np.cos(np.pi * x[0]) ** 2


@pytest.mark.parametrize("method", ["fd", "fem"])
@pytest.mark.parametrize(
    ("scheme", "counts"),
    [
        (npde.ForwardEuler(), (64, 128, 256)),
        (npde.BackwardEuler(), (32, 64, 128)),
        (npde.CrankNicolson(), (8, 16, 32)),
        (npde.SDIRK2(), (16, 32, 64)),
        (npde.IMEX(), (16, 32, 64)),
        (npde.RK4(), (16, 32, 64)),
    ],
    ids=lambda value: value.name if isinstance(value, npde.Scheme) else "",
)
@pytest.mark.parametrize("bcs", [[], [npde.Dirichlet(0.8, left)]], ids=["zero flux", "dirichlet"])
def test_order(method, scheme, counts, bcs):
    """Against a much finer time step of the same spatial problem."""
    problem = discretise(method, reaction(), bcs, n=6)

    def final(scheme, steps):
        return npde.solve(problem, bump, t=(0, 1), dt=1 / steps, scheme=scheme, rescue=None).values

    reference = final(npde.RK4(), 640)
    errors = [np.abs(final(scheme, n) - reference).max() for n in counts]
    assert errors[-1] > 1e-11  # above round-off and the tolerance of Newton's method
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(orders - scheme.order) < 0.15 if scheme.order < 4 else orders > 3.7), orders


def test_orders_are_as_documented():
    schemes = (npde.ForwardEuler, npde.BackwardEuler, npde.CrankNicolson, npde.SDIRK2, npde.IMEX, npde.RK4)
    assert [make().order for make in schemes] == [1, 1, 2, 2, 2, 4]
    assert [make().is_explicit for make in schemes] == [True, False, False, False, False, True]


@pytest.mark.parametrize("method", ["fd", "fem"])
@pytest.mark.parametrize("scheme", [npde.ForwardEuler(), npde.RK4()], ids=lambda s: s.name)
def test_moving_dirichlet_data_in_explicit_steps(method, scheme):
    """The data at t acts on its neighbours through the consistent mass matrix as in implicit steps."""
    eq = npde.NPDE(flux=lambda u, x, t: 0.2 * ufl.grad(u), source=lambda u, x, t: -(u**2))
    bcs = [npde.Dirichlet(lambda x, t: 1 + ufl.sin(6 * t), left)]
    problem = discretise(method, eq, bcs, n=8)
    reference = npde.solve(problem, 1.0, t=(0, 1), dt=1 / 2000, scheme=npde.CrankNicolson(), rescue=None).values
    steps = (256, 512) if scheme.order == 1 else (128, 256)
    errors = [
        np.abs(npde.solve(problem, 1.0, t=(0, 1), dt=1 / n, scheme=scheme, rescue=None).values - reference).max()
        for n in steps
    ]
    assert errors[1] < (2e-3 if scheme.order == 1 else 2e-5)
    assert errors[0] / errors[1] > 1.8
    assert np.isclose(problem.coordinates()[problem.constrained, 0], 0).all()


@pytest.mark.parametrize("method", ["fd", "fem"])
@pytest.mark.parametrize(
    "scheme", [npde.CrankNicolson(), npde.ImplicitMidpoint(), npde.SDIRK2(), npde.IMEX()], ids=lambda s: s.name
)
def test_moving_dirichlet_data_in_implicit_steps(method, scheme):
    """Order 2 with data that accelerates, which others feel through the consistent mass matrix."""
    eq = npde.NPDE(flux=lambda u, x, t: ufl.grad(u), source=lambda u, x, t: -u)
    problem = discretise(method, eq, [npde.Dirichlet(lambda x, t: ufl.sin(8 * t) * (1 + x[0]))], n=4)

    def final(scheme, steps):
        return npde.solve(problem, 0.0, t=(0, 1), dt=1 / steps, scheme=scheme, rescue=None).values

    reference = final(npde.CrankNicolson(), 4000)
    errors = [np.abs(final(scheme, n) - reference).max() for n in (80, 160, 320)]
    assert np.all(np.abs(np.log2(np.array(errors[:-1]) / errors[1:]) - 2) < 0.15), errors


class TestAdaptive:
    def test_error_falls_with_the_tolerance(self):
        for method in ("fd", "fem"):
            problem = discretise(method, reaction())
            reference = npde.solve(problem, bump, t=(0, 1), dt=1 / 1280, scheme=npde.RK4(), rescue=None).values
            errors, counts = [], []
            for rtol in (1e-2, 1e-3, 1e-4, 1e-5):
                control = npde.Adaptive(rtol=rtol, atol=rtol / 10)
                solution = npde.solve(problem, bump, t=(0, 1), dt=control, scheme=npde.SDIRK2(), rescue=None)
                errors.append(np.abs(solution.values - reference).max())
                counts.append(len(solution.steps))
                assert sum(dt for _, dt in solution.steps) == pytest.approx(1.0, abs=1e-12)
            assert np.all(np.array(errors[:-1]) / errors[1:] > 3)
            assert errors[-1] < 1e-4
            # The estimate is of second order: a tolerance ten times finer takes about sqrt(10) times the steps.
            assert np.all(np.diff(counts) > 0)
            assert 2.2 < counts[-1] / counts[-2] < 4

    def test_steps_follow_the_solution(self):
        """A pulse at t = 0.5: small steps there, steps rejected on the way in, large ones elsewhere."""
        eq = npde.NPDE(source=lambda u, x, t: ufl.exp(-(((t - 0.5) / 0.01) ** 2)) * (50 - u) - u)
        problem = discretise("fd", eq, n=2)
        solution = npde.solve(problem, 1.0, t=(0, 1), dt=npde.Adaptive(1e-4, 1e-6), scheme=npde.SDIRK2(), rescue=None)
        times, steps = np.array(solution.steps).T
        assert solution.rejected > 0
        assert steps[np.abs(times - 0.5) < 0.01].max() < 0.1 * steps.max()
        fine = npde.solve(problem, 1.0, t=(0, 1), dt=1e-4, scheme=npde.RK4(), rescue=None)
        np.testing.assert_allclose(solution.values, fine.values, rtol=2e-3)

    def test_first_step_and_smallest(self):
        problem = discretise("fd", reaction(), n=3)
        control = npde.Adaptive(1e-3, 1e-5, first=0.03)
        assert npde.solve(problem, bump, t=(0, 1), dt=control, scheme=npde.SDIRK2(), rescue=None).steps[0] == (
            0.0,
            0.03,
        )
        with pytest.raises(npde.SolveError, match="failed"):
            control = npde.Adaptive(1e-9, 1e-12, first=0.5, smallest=0.2)
            npde.solve(problem, bump, t=(0, 1), dt=control, scheme=npde.SDIRK2(), rescue=None)

    def test_stops_at_observed_times(self):
        problem = discretise("fd", reaction(), n=3)
        seen = [0.1, 0.25, 0.7]
        solution = npde.solve(
            problem, bump, t=(0, 1), dt=npde.Adaptive(1e-3), scheme=npde.SDIRK2(), observe=seen, rescue=None
        )
        ends = np.array([t + dt for t, dt in solution.steps])
        assert all(np.abs(ends - t).min() < 1e-12 for t in seen)
        assert solution.times == seen


class TestObserve:
    decay = npde.NPDE(source=lambda u, x, t: -u)

    def test_times(self):
        problem = discretise("fd", self.decay, n=3)
        solution = npde.solve(
            problem, 1.0, t=(0, 1), dt=1e-2, scheme=npde.RK4(), observe=[0, 0.25, 0.5, 1], rescue=None
        )
        assert solution.times == [0, 0.25, 0.5, 1]
        assert solution.states.shape == (4, problem.n_owned)
        np.testing.assert_allclose(solution.states, np.exp(-np.array(solution.times))[:, None] * np.ones(4), rtol=1e-9)
        np.testing.assert_array_equal(solution.states[-1], solution.values)
        np.testing.assert_array_equal(solution.at(1).values, solution.states[1])

    @pytest.mark.parametrize("method", ["fd", "fem"])
    def test_function(self, method):
        problem, seen = discretise(method, self.decay, n=3), []

        def watch(t, u):
            seen.append((t, float(np.max(u.values if method == "fd" else u.x.array))))

        solution = npde.solve(problem, 1.0, t=(0, 1), dt=0.1, observe=watch, rescue=None)
        np.testing.assert_allclose([t for t, _ in seen], np.linspace(0, 1, 11), atol=1e-12)
        factor = (1 - 0.05) / (1 + 0.05)
        np.testing.assert_allclose([u for _, u in seen], factor ** np.arange(11), rtol=1e-8)
        assert len(solution.steps) == 10 and solution.times == []

    def test_pair(self):
        problem, seen = discretise("fd", self.decay, n=3), []
        solution = npde.solve(
            problem,
            1.0,
            t=(0, 1),
            dt=0.1,
            observe=([0.5, 1.0], lambda t, u: seen.append((t, u.values.copy()))),
            rescue=None,
        )
        assert solution.times == [0.5, 1.0]
        assert [t for t, _ in seen] == [0.5, 1.0]
        np.testing.assert_array_equal([u for _, u in seen], solution.states)

    def test_step_that_does_not_divide_the_interval(self):
        problem = discretise("fd", self.decay, n=3)
        with pytest.warns(UserWarning, match=r"dt = 0.3 does not divide \[0, 1\]: 4 steps of 0.25"):
            solution = npde.solve(problem, 1.0, t=(0, 1), dt=0.3, rescue=None)
        assert solution.t == 1.0 and len(solution.steps) == 4
        assert solution.steps[-1][0] + solution.steps[-1][1] == 1.0

    def test_step_that_divides_but_for_round_off(self):
        problem = discretise("fd", self.decay, n=3)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for dt, t1, count in ((0.1, 0.3, 3), (1e-3, 0.7, 700), (1 / 3, 5, 15)):
                solution = npde.solve(problem, 1.0, t=(0, t1), dt=dt, rescue=None)
                assert len(solution.steps) == count


class TestTrouble:
    """Steps that fail."""

    blow_up = npde.NPDE(source=lambda u, x, t: u**2)

    def test_failing_step_is_retried_with_a_smaller_one(self):
        """Backward Euler for u' = exp(u) has a solution only where dt exp(u) <= 1 / e."""
        eq = npde.NPDE(source=lambda u, x, t: ufl.exp(u))
        problem = discretise("fd", eq, n=2)
        solution = npde.solve(problem, 0.0, t=(0, 0.5), dt=0.5, scheme=npde.BackwardEuler(), rescue=None)
        assert solution.rejected > 0
        assert len(solution.steps) > 1
        assert sum(dt for _, dt in solution.steps) == pytest.approx(0.5)
        starts = [t for t, _ in solution.steps]
        np.testing.assert_allclose(starts[1:], np.cumsum([dt for _, dt in solution.steps])[:-1])

    @pytest.mark.parametrize("method", ["fd", "fem"])
    def test_give_up_and_restore(self, method, tmp_path):
        problem, path = discretise(method, self.blow_up, n=2), tmp_path / "last.petsc"
        with pytest.raises(npde.SolveError, match=r"t = .*residual") as caught:
            npde.solve(problem, 1.0, t=(0, 2), dt=0.05, scheme=npde.BackwardEuler(), rescue=path)
        assert 0.8 < caught.value.time < 1.3
        assert f"{caught.value.time:g}" in str(caught.value) and str(path) in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        last = npde.restore(problem, path)
        np.testing.assert_array_equal(last, caught.value.values)
        assert np.all(np.isfinite(last)) and np.all(last > 1)
        resumed = npde.solve(problem, last, t=(0, 1e-4), dt=1e-4, rescue=None)
        np.testing.assert_allclose(resumed.values, last, rtol=0.1)

    def test_no_rescue_wanted(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(npde.SolveError):
            npde.solve(discretise("fd", self.blow_up, n=2), 1.0, t=(0, 2), dt=0.05, rescue=None)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("method", ["fd", "fem"])
    def test_explicit_nan_is_caught_the_step_it_appears(self, method):
        """The source is the logarithm of a negative number from t = 0.5 on."""
        problem = discretise(method, npde.NPDE(source=lambda u, x, t: ufl.ln(0.505 - t)), n=2)
        with pytest.raises(npde.SolveError, match="NaN or infinite") as caught:
            npde.solve(problem, 1.0, t=(0, 1), dt=0.01, scheme=npde.ForwardEuler(), rescue=None)
        assert caught.value.time == pytest.approx(0.51)
        assert np.all(np.isfinite(caught.value.values))

    def test_implicit_nan_is_caught_the_step_it_appears(self):
        problem = discretise("fd", npde.NPDE(source=lambda u, x, t: ufl.ln(0.505 - t)), n=2)
        with pytest.raises(npde.SolveError) as caught:
            npde.solve(problem, 1.0, t=(0, 1), dt=0.01, scheme=npde.BackwardEuler(), rescue=None)
        assert 0.49 < caught.value.time < 0.51
        assert np.all(np.isfinite(caught.value.values))

    @pytest.mark.parametrize("method", ["fd", "fem"])
    def test_a_flow_that_is_not_finite_is_caught_the_step_it_appears(self, method):
        """u' = u^3 / 2 from 3 is infinite at 1/9; its flow is the root of a negative number from then on."""
        eq = npde.NPDE(
            flux=lambda u, x, t: 1e-3 * ufl.grad(u),
            source=lambda u, x, t: u**3 / 2,
            flow=lambda u, x, t, dt: u / ufl.sqrt(1 - u**2 * dt),
        )
        problem = discretise(method, eq, n=2)
        for start, end in ((3.0, 0.2), (2.9, 0.15)):  # in the first half of the only step, and in the second
            with pytest.raises(npde.SolveError, match="flow became NaN or infinite") as caught:
                npde.solve(problem, start, t=(0, end), dt=end, scheme=npde.Strang(), rescue=None)
            assert caught.value.time < 1 / start**2
            assert np.all(np.isfinite(caught.value.values))

    def test_explicit_step_above_the_limit(self):
        """Forward Euler for u_t = u_xx on a grid of spacing h: dt <= h^2 / 2."""
        problem = discretise("fd", npde.physics.heat(), n=64)
        h = 1 / 64
        with pytest.raises(ValueError, match="stability limit") as caught:
            npde.solve(problem, 1.0, t=(0, 1), dt=0.6 * h**2, scheme=npde.ForwardEuler(), rescue=None)
        limit = float(str(caught.value).split("stability limit ")[1].split()[0])
        assert limit == pytest.approx(h**2 / 2, rel=0.08)


class TestStationary:
    @pytest.mark.parametrize("method", ["fd", "fem"])
    def test_starting_from_the_solution(self, method):
        """A solve that begins at its solution, or at zero without a source, ends there."""
        eq = npde.NPDE(flux=lambda u, x, t: (1 + u**2) * ufl.grad(u), source=lambda u, x, t: x[0], damping=0)
        problem = discretise(method, eq, [npde.Dirichlet(0.0, left)])
        first = npde.solve(problem, 0.0, rescue=None)
        again = npde.solve(problem, first.values, rescue=None)
        np.testing.assert_allclose(again.values, first.values, atol=1e-9)
        empty = discretise(method, npde.NPDE(flux=eq.flux, damping=0), [npde.Dirichlet(0.0, left)])
        np.testing.assert_array_equal(npde.solve(empty, 0.0, rescue=None).values, 0.0)

    @pytest.mark.parametrize("method", ["fd", "fem"])
    def test_dirichlet_data_is_met_exactly(self, method):
        eq = npde.NPDE(flux=lambda u, x, t: (1 + u**2) * ufl.grad(u), source=lambda u, x, t: -ufl.exp(u), damping=0)
        problem = discretise(method, eq, [npde.Dirichlet(lambda x, t: 1 - 2 * x[0])], n=20)
        values = npde.solve(problem, 0.0, rescue=None).values
        np.testing.assert_allclose(np.sort(values[problem.constrained]), [-1, 1], atol=1e-12)

    def test_unsymmetric_jacobian_that_looks_symmetric_at_first(self):
        """At u = 0 the drift u^2 has no slope; conjugate gradients must not be kept."""
        eq = npde.NPDE(
            flux=lambda u, x, t: (0.2 + u**2) * ufl.grad(u) - ufl.as_vector([2 * u**2]),
            source=lambda u, x, t: 1 + x[0],
        )
        problem = discretise("fd", eq, [npde.Dirichlet(0.0, left)], n=32)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            solution = npde.solve(problem, 0.0, t=(0, 2), dt=0.05, rescue=None)
        assert solution.rejected == 0

    @pytest.mark.filterwarnings("ignore:the iterative linear solver:RuntimeWarning")
    def test_failure(self):
        """u'' + 10 exp(u) = 0 with u = 0 at both ends has no solution (Bratu; critical factor 3.51)."""
        eq = npde.NPDE(flux=lambda u, x, t: ufl.grad(u), source=lambda u, x, t: 10 * ufl.exp(u), damping=0)
        problem = discretise("fd", eq, [npde.Dirichlet(0.0)], n=16)
        with pytest.raises(npde.SolveError, match="stationary solve failed.*residual"):
            npde.solve(problem, 0.0, rescue=None)


def test_parameters_may_change_between_solves():
    """Numbers, fields, boundary data and damping are read anew by each solve, implicit or explicit."""
    rate, lag = npde.Parameter("rate", 1.0), npde.Parameter("lag", 1.0)
    place = npde.Parameter("place", 1.0, field=True)
    edge = npde.Parameter("edge", 1.0)
    eq = npde.NPDE(source=lambda u, x, t: -rate * place * u, damping=lag)
    for method in ("fd", "fem"):
        problem = discretise(method, eq, [npde.Dirichlet(edge, left)], n=2)
        for scheme in (npde.RK4(), npde.SDIRK2()):
            for r, l, p, e in ((1.0, 1.0, 1.0, 1.0), (0.5, 3.0, 2.0, 4.0)):
                rate.value, lag.value, edge.value = r, l, e
                values = problem.field(place)
                array = values.values if method == "fd" else values.x.array
                problem.set_field(place, np.full(array.size, p))
                found = npde.solve(problem, 1.0, t=(0, 1), dt=0.01, scheme=scheme, rescue=None).values
                far = np.isclose(problem.coordinates()[:, 0], 1)
                if method == "fd":
                    np.testing.assert_allclose(found[far], np.exp(-r * p / l), rtol=1e-4)
                assert found[problem.constrained] == pytest.approx(e, abs=1e-12)
                if (r, method) == (0.5, "fem"):
                    fresh = npde.FEM(eq, problem.space, [npde.Dirichlet(edge, left)])
                    fresh.set_field(place, np.full(array.size, p))
                    expected = npde.solve(fresh, 1.0, t=(0, 1), dt=0.01, scheme=scheme, rescue=None).values
                    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("method", ["fd", "fem"])
@pytest.mark.parametrize("inertia", [0.0, 1.0])
def test_a_solve_takes_over_the_solver_of_the_one_before(method, inertia, monkeypatch):
    """But not its tolerance, as of a state at rest, whose own size sets none."""
    made, make = [], Newton._make_snes
    monkeypatch.setattr(Newton, "_make_snes", lambda solver: (made.append(solver), make(solver)))
    eq = npde.NPDE(flux=lambda u, x, t: ufl.grad(u), source=lambda u, x, t: 1e-6 * x[0], inertia=inertia)
    problem = discretise(method, eq, [npde.Dirichlet(0.0)])
    first = npde.solve(problem, 0.0, t=(0, 0.2), dt=0.1, rescue=None).values
    npde.solve(problem, lambda x: 1e8 * np.sin(np.pi * x[0]), t=(0, 0.2), dt=0.1, rescue=None)
    np.testing.assert_allclose(npde.solve(problem, 0.0, t=(0, 0.2), dt=0.1, rescue=None).values, first, rtol=1e-9)
    assert len(made) == 1
