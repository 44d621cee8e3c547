"""TAO and SciPy on functions that need no PDE: optima, bounds, failures, files, scaling, and any number of ranks."""

import importlib
import sys
import warnings
from pathlib import Path

import npde_fem as npde
from npde_fem.optimize.minimize import METHODS, default_method, minimize
from npde_fem.options import inserted

import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from petsc4py import PETSc
from pyadjoint import AdjFloat

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
functions = importlib.import_module("minimize")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def valley(bounds=(None, None)):
    a, b = npde.Parameter("a", -1.2, bounds=bounds), npde.Parameter("b", 1.0)
    return functions.rosenbrock(a, b), a, b


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_minimum(method):
    reduced, a, b = valley()
    minimum = minimize(reduced, method, gtol=1e-7)
    assert minimum.converged and minimum.reason == "the gradient fell to 1e-07 of that at the start"
    assert minimum.values == {"a": pytest.approx(1, abs=1e-4), "b": pytest.approx(1, abs=1e-4)}
    assert (float(a), float(b)) == (minimum.values["a"], minimum.values["b"])
    assert minimum.loss == minimum.history[-1].loss < 1e-8
    assert minimum.iterations == len(minimum.history) - 1 <= minimum.evaluations
    assert [h.iteration for h in minimum.history] == list(range(minimum.iterations + 1))


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.bounds])
def test_bounds_are_kept(method):
    """Above a <= 0.5 the valley's lowest point is (0.5, 0.25)."""
    reduced, a, _ = valley(bounds=(-2, 0.5))
    minimum = minimize(reduced, method)
    assert minimum.converged
    assert minimum.values["a"] == pytest.approx(0.5, abs=1e-5) and minimum.values["a"] <= 0.5
    assert minimum.values["b"] == pytest.approx(0.25, abs=1e-4)
    assert float(a) == minimum.values["a"]


def test_the_tape_stands_at_the_optimum():
    """The last trial of a line search is not always the iterate it leads to."""
    reduced, a, b = valley()
    minimum = minimize(reduced, gtol=0.1)
    at_end = [float(d) for d in reduced.derivative()]
    x, y = minimum.values["a"], minimum.values["b"]
    assert at_end == pytest.approx([-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)])
    assert float(reduced([a._ad_copy(), b._ad_copy()])) == minimum.loss


@pytest.mark.parametrize("method", ["tao-bqnls", "tao-blmvm", "tao-lmvm", "tao-nls", "tao-bnls", "scipy-lbfgsb"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, npde.SolveError("failed", 0.0, np.zeros(0))])
def test_trial_points_that_fail(method, wrong):
    """log(4 x)^2 from 0.6: the first step, of every kind, overshoots to where the loss does not exist."""
    x = npde.Parameter("x", 0.6)
    failures = []

    def value(x):
        if x > 0.2:
            return float(np.log(4 * x) ** 2)
        failures.append(x)
        if isinstance(wrong, Exception):
            raise wrong
        return wrong

    reduced = functions.reduced(
        [x],
        value,
        lambda x: [2 * np.log(4 * np.asarray(x)) / x],
        lambda m, d: [2 * (1 - np.log(4 * m[0])) / m[0] ** 2 * d[0]],
    )
    minimum = minimize(reduced, method, inner="l2")
    assert failures and minimum.converged
    assert minimum.values["x"] == pytest.approx(0.25, abs=1e-4)


def test_failure_at_the_start():
    x = npde.Parameter("x", 1.0)
    values = iter([1.0, np.nan])
    reduced = functions.reduced([x], lambda x: next(values), lambda x: [np.ones(())], None)
    with pytest.raises(ValueError, match="the loss is nan at the start"):
        minimize(reduced)

    def broken(x):
        if x != 1:
            raise npde.SolveError("no solution", 0.0, np.zeros(0))
        return 1.0

    reduced = functions.reduced([x], broken, lambda x: [np.ones(())], None)
    reduced.controls[0].update(x.like(2.0))
    with pytest.raises(npde.SolveError, match="no solution"):
        minimize(reduced)


def test_no_convergence_is_a_warning():
    reduced, _, _ = valley()
    with pytest.warns(UserWarning, match="not converged: 3 iterations made, as many as allowed"):
        minimum = minimize(reduced, max_iterations=3)
    assert not minimum.converged and minimum.iterations == 3


def test_ftol():
    reduced, _, _ = valley()
    loose = minimize(reduced, ftol=0.5, gtol=0)
    assert loose.converged and loose.reason == "three iterations lowered the loss by less than 0.5 of itself"


def test_start_at_the_optimum():
    a, b = npde.Parameter("a", 1.0), npde.Parameter("b", 1.0)
    minimum = minimize(functions.rosenbrock(a, b))
    assert minimum.converged and minimum.iterations == 0 and minimum.loss == 0


@pytest.mark.parametrize("method", ["tao-bqnls", "scipy-lbfgsb"])
def test_log_save_and_resume(method, tmp_path):
    log, file = tmp_path / "fit.csv", tmp_path / "fit.petsc"
    reduced, a, b = valley()
    with pytest.warns(UserWarning, match="as many as allowed"):
        first = minimize(reduced, method, max_iterations=5, log=log, save=file)
    stopped_at = float(a), float(b)
    reduced, a, b = valley()
    second = minimize(reduced, method, log=log, resume=file)
    assert second.history[0].iteration == 5 and second.history[0].loss == pytest.approx(first.loss)
    assert second.values["a"] == pytest.approx(1, abs=1e-4) != stopped_at[0]
    lines = log.read_text().splitlines()
    assert lines[0] == "iteration,loss,gradient_norm,seconds"
    assert [int(line.split(",")[0]) for line in lines[1:]] == [*range(6), *range(5, second.iterations + 1)]
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".csv"] == ["fit.petsc"]
    with pytest.raises(ValueError, match="fit.csv is no saved state"):
        minimize(reduced, resume=log)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        minimize(reduced, log=tmp_path / "nowhere" / "fit.csv")


@pytest.mark.parametrize("method", ["tao-bqnls", "scipy-lbfgsb"])
def test_scaling_of_numbers(method):
    """The same fit in units of 1e-6 and 1e6 takes the same iterations."""
    counts = []
    for s in (1.0, 1e-6):
        a, b = npde.Parameter("a", -1.2 * s), npde.Parameter("b", 1.0 / s)
        reduced = functions.reduced(
            [a, b],
            lambda a, b, s=s: float((1 - a / s) ** 2 + (b * s - (a / s) ** 2) ** 2),
            lambda a, b, s=s: [
                np.asarray((-2 * (1 - a / s) - 4 * a / s * (b * s - (a / s) ** 2)) / s),
                np.asarray(2 * s * (b * s - (a / s) ** 2)),
            ],
            None,
        )
        minimum = minimize(reduced, method)
        assert minimum.values == {"a": pytest.approx(s, rel=1e-4), "b": pytest.approx(1 / s, rel=1e-4)}
        counts.append(minimum.iterations)
    assert counts[0] == counts[1]


def graded(n, inner, method):
    """Iterations on a mesh whose cells shrink by powers of three towards a side."""
    domain = mesh.create_unit_square(MPI.COMM_SELF, n, n)
    domain.geometry.x[:, 0] **= 3
    m, k = npde.Parameter("m", 1.0, field=True), npde.Parameter("k", 1.0)
    equation = npde.NPDE(flux=lambda u, x, t: m * ufl.grad(u), source=lambda u, x, t: 1.0 + 0 * u, damping=0)
    problem = npde.FEM(equation, fem.functionspace(domain, ("P", 1)))
    reduced = functions.quadratic(problem, m, k, *functions.field_of(problem, m))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minimum = minimize(reduced, method, inner=inner, gtol=1e-8, ftol=0, max_iterations=200)
    np.testing.assert_array_equal(problem.field_values(m), minimum.values["m"])
    return minimum.iterations


@pytest.mark.parametrize("method", ["tao-bqnls", "tao-lmvm", "scipy-lbfgsb"])
def test_iterations_do_not_depend_on_the_mesh(method):
    counts = [graded(n, "L2", method) for n in (8, 16, 32)]
    assert max(counts) < 40 and counts[2] < 1.3 * counts[1], counts
    assert graded(16, "l2", method) > 4 * counts[1]


@pytest.mark.real_scalars("PETSc's TAO")
@pytest.mark.parametrize("kind", ["fd", "fem"])
def test_h1_inner_product(kind):
    """1/2 |m - goal|^2 in H1 is solved in a step or two on every mesh; in L2 it is ill-conditioned."""
    from npde_fem.discretize.inner import inner_product

    counts = {}
    for n in (8, 24):
        for inner in ("H1", "L2"):
            m = npde.Parameter("m", 1.0, field=True)
            equation = npde.NPDE(flux=lambda u, x, t, m=m: m * ufl.grad(u), source=lambda u, x, t: -u, damping=0)
            if kind == "fd":
                problem = npde.FD(equation, npde.Grid(MPI.COMM_SELF, (n + 1, n + 1), (0, 0), (1, 1)))
            else:
                domain = mesh.create_unit_square(MPI.COMM_SELF, n, n)
                problem = npde.FEM(equation, fem.functionspace(domain, ("P", 1)))
            m.home = problem
            goal = functions.target(problem.coordinates().T)
            matrix = inner_product(problem, m, "H1", 0.5)
            x, y = matrix.createVecs()

            def apply(v, matrix=matrix, x=x, y=y):
                x.array[:] = v
                matrix.mult(x, y)
                return y.array_r.copy()

            reduced = functions.reduced(
                [m],
                lambda v, goal=goal, apply=apply: float(0.5 * (v - goal) @ apply(v - goal)),
                lambda v, goal=goal, apply=apply: [apply(v - goal)],
                None,
            )
            counts[n, inner] = minimize(reduced, "tao-lmvm", inner=inner, length=0.5, gtol=1e-6).iterations
            for made in (x, y, matrix):
                made.destroy()
    assert max(counts[8, "H1"], counts[24, "H1"]) <= 3, counts
    assert counts[24, "L2"] > 10 * counts[24, "H1"], counts


def test_other_kinds_of_control():
    """An AdjFloat, a grid function and a function of dolfinx_adjoint."""
    import dolfinx_adjoint
    import pyadjoint

    with pyadjoint.set_working_tape() as tape:
        pyadjoint.continue_annotation()
        x, y = AdjFloat(2.0), AdjFloat(-1.0)
        loss = (x - 3.0) ** 2 + (x * y - 6.0) ** 2
        pyadjoint.pause_annotation()
        reduced = pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(x), pyadjoint.Control(y)], tape=tape)
    minimum = minimize(reduced)
    assert list(minimum.values.values()) == pytest.approx([3, 2], abs=1e-4)

    problem = functions.on_grid(MPI.COMM_SELF, 6)[3]
    u = problem.function(np.ones(36))
    goal = functions.target(problem.coordinates().T)
    w = problem.layout.control_volumes()
    reduced = functions.reduced(
        [u], lambda v: float(0.5 * w @ (v - goal) ** 2), lambda v: [w * (v - goal)], lambda m, d: [w * d[0]]
    )
    assert minimize(reduced, default_method(hessian=True)).values["u"] == pytest.approx(goal, abs=1e-5)
    np.testing.assert_allclose(u.values, goal, atol=1e-5)

    with pyadjoint.set_working_tape() as tape:
        pyadjoint.continue_annotation()
        problem = npde.FEM(
            npde.physics.heat(1e-3), fem.functionspace(mesh.create_unit_square(MPI.COMM_SELF, 4, 4), ("P", 1))
        )
        f = dolfinx_adjoint.Function(problem.space, name="f")
        loss = npde.misfit(npde.solve(problem, f, t=(0.0, 1.0), dt=0.5), 2.0)
        pyadjoint.pause_annotation()
        reduced = pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(f)], tape=tape)
    assert minimize(reduced).values["f"] == pytest.approx(2, abs=1e-5)
    assert f.x.array == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ({"method": "adam"}, ValueError, "method 'adam' is unknown; one of tao-lmvm, "),
        ({"inner": "H2"}, ValueError, 'inner: "L2", "l2" or "H1" allowed, \'H2\' given'),
        ({"inner": "H1", "method": "scipy-lbfgsb"}, ValueError, "tao-lmvm or tao-blmvm allowed, scipy-lbfgsb given"),
        ({"bounds": {"c": (0, 1)}}, ValueError, r"bounds: \['c'\] given; the controls are \['a', 'b'\]"),
        ({"bounds": {"a": (1, -2)}}, ValueError, "bounds of 'a' cross"),
        ({"bounds": {"a": (0, 1)}}, ValueError, "control 'a' starts outside of its bounds"),
        ({"bounds": {"a": 3}}, ValueError, "bounds of 'a': a pair of numbers"),
        ({"bounds": {"a": (None, [1, 2, 3])}}, ValueError, "bounds of 'a': a pair of numbers"),
        ({"bounds": {"a": (-2, 2)}, "method": "scipy-bfgs"}, ValueError, "scipy-bfgs keeps no bounds"),
        ({"gtol": -1}, ValueError, "gtol: a number from 0 on allowed, -1 given"),
        ({"max_iterations": np.nan}, ValueError, "max_iterations: a number from 0 on allowed, nan given"),
    ],
)
def test_bad_arguments(arguments, kind, message):
    reduced, _, _ = valley()
    with pytest.raises(kind, match=message):
        minimize(reduced, **arguments)


def test_the_same_control_twice():
    reduced, _, _ = valley()
    reduced.controls[1] = reduced.controls[0]
    with pytest.raises(ValueError, match="each may stand there once"):
        minimize(reduced)


@pytest.mark.parametrize("there", [True, False])
def test_tao_is_for_real_scalars(there, monkeypatch):
    monkeypatch.setattr(importlib.import_module("npde_fem.optimize.minimize"), "HAS_TAO", there)
    assert default_method() == ("tao-bqnls" if there else "scipy-lbfgsb") and METHODS[default_method()].bounds
    newton = METHODS[default_method(hessian=True)]
    assert newton.bounds and newton.hessian == there
    if not there:
        with pytest.raises(ValueError, match="method tao-nls: .* real scalars only, .* one of scipy-lbfgsb, "):
            minimize(valley()[0], "tao-nls")
        assert minimize(valley()[0]).converged


def test_lifted_bounds():
    reduced, _, _ = valley(bounds=(-2, 0.5))
    assert minimize(reduced, "scipy-bfgs", bounds={"a": (None, None)}).values["a"] == pytest.approx(1, abs=1e-4)


@pytest.mark.real_scalars("PETSc's TAO")
def test_a_scaled_functional():
    """In the same iterations, for Newton's method too."""
    counts = []
    for scale in (1.0, 1e3):
        reduced, _, _ = valley()
        reduced.scale = scale
        counts.append(minimize(reduced, "tao-nls").iterations)
    assert counts[0] == counts[1]


@pytest.mark.real_scalars("PETSc's TAO")
def test_options_of_the_method():
    reduced, _, _ = valley()
    one = minimize(reduced, "tao-lmvm", options={"ls_type": "armijo"}).evaluations
    reduced, _, _ = valley()
    assert one != minimize(reduced, "tao-lmvm").evaluations


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return tmp_path_factory.mktemp("serial") / "1.npz"


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_takes_the_same_way(ranks, serial, mpirun, tmp_path):
    if not serial.exists():
        mpirun(1, "minimize.py", serial)
    mpirun(ranks, "minimize.py", tmp_path / "many.npz")
    one, many = np.load(serial), np.load(tmp_path / "many.npz")
    assert one.files == many.files and len(one.files) == 4 * len(functions.METHODS) + 4
    for name in one.files:
        np.testing.assert_allclose(many[name], one[name], rtol=0, atol=1e-8, err_msg=name)
    optima = [one[name] for name in one.files if name.endswith("L2: m")]
    for other in optima[1:]:
        np.testing.assert_allclose(other, optima[0], atol=1e-3)


def test_options_of_the_user_outlast_a_search():
    """What was set for a while goes, and what the user has set comes back."""
    name = "npde_tao_bqnls_mat_lmvm_hist_size"
    database = PETSc.Options()
    database.setValue(name, "3")
    try:
        with inserted({name: "7", "npde_tao_passing": "1"}):
            assert database.getString(name) == "7" and database.hasName("npde_tao_passing")
        assert database.getString(name) == "3" and not database.hasName("npde_tao_passing")
    finally:
        database.delValue(name)
