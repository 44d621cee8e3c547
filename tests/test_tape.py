"""What a tape must not get wrong: data changed behind its back, layouts that do not fit, controls that were moved."""

import gc
import weakref

import npde_fem as npde

import numpy as np
import pyadjoint
import pytest
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD
WHEN = {"t": (0.0, 0.2), "dt": 0.1}


def start(x):
    return 0.2 + 0.3 * x[0]


def mesh_space(cells=(4, 3), kind=("Lagrange", 1)):
    return fem.functionspace(dmesh.create_unit_square(COMM, *cells), kind)


def problem_of(equation, method="fem"):
    if method == "fem":
        return npde.FEM(equation, mesh_space())
    return npde.FD(equation, npde.Grid(COMM, (5, 4), (0, 0), (1, 1)))


def taped(build):
    """Return the functional that ``build`` makes on a tape of its own, and that tape."""
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        pyadjoint.continue_annotation()
        try:
            return build(), tape
        finally:
            pyadjoint.pause_annotation()


def reduced(build, *controls):
    functional, tape = taped(build)
    return pyadjoint.ReducedFunctional(functional, [pyadjoint.Control(c) for c in controls], tape=tape)


def assert_derivatives(functional, control, direction):
    """Gradient and Hessian against central differences."""
    h, eps = control.like(direction), 1e-4

    def slope():
        return h._ad_dot(functional.derivative()[0])

    gradient = slope()
    curvature = h._ad_dot(functional.hessian([h])[0])
    up, slope_up = float(functional([control._ad_add(h._ad_mul(eps))])), slope()
    down, slope_down = float(functional([control._ad_add(h._ad_mul(-eps))])), slope()
    assert gradient == pytest.approx((up - down) / (2 * eps), rel=1e-5)
    assert curvature == pytest.approx((slope_up - slope_down) / (2 * eps), rel=1e-5)


@pytest.mark.parametrize("scheme", [npde.CrankNicolson(), npde.IMEX(), npde.SDIRK2()], ids=lambda s: s.name)
@pytest.mark.parametrize("method", ["fem", "fd"])
def test_damping_alone(method, scheme):
    """Without controlled Dirichlet data the sweep takes a shortcut, which a controlled M forbids."""
    damping = npde.Parameter("b", 1.3)
    equation = npde.NPDE(flux=lambda u, x, t: (1 + u) * ufl.grad(u), source=lambda u, x, t: -u, damping=damping)
    problem = problem_of(equation, method)
    functional = reduced(lambda: npde.misfit(npde.solve(problem, start, scheme=scheme, **WHEN), 0.1), damping)
    assert_derivatives(functional, damping, 1.0)


@pytest.mark.parametrize("where", ["initial", "dirichlet"])
def test_data_that_jumps_between_cells(where):
    level = npde.Parameter("c", lambda x: 0.3 + np.sin(9 * x[0] + 5 * x[1]), field=("DG", 0))
    bcs = [npde.Dirichlet(level)] if where == "dirichlet" else []
    u0 = npde.Initial(lambda x: level**2) if where == "initial" else 0.2
    problem = npde.FEM(npde.physics.heat(0.1), mesh_space(), bcs)
    functional = reduced(lambda: npde.misfit(npde.solve(problem, u0, scheme=npde.BackwardEuler(), **WHEN), 0.1), level)
    assert_derivatives(functional, level, np.cos(np.arange(problem.field_size(level))))


@pytest.mark.parametrize("method", ["fem", "fd"])
def test_initial_data_at_the_first_time(method):
    height = npde.Parameter("a", 0.4)
    problem = problem_of(npde.physics.heat(0.1), method)
    u0 = npde.Initial(lambda x, t: height * (1 + t) * (1 + x[0]))
    begins = npde.solve(problem, u0, t=(1, 1.2), dt=0.1, observe=[1.0, 1.2]).states[0]
    assert begins.max() == pytest.approx(0.4 * 2 * 2)
    functional = reduced(lambda: npde.misfit(npde.solve(problem, u0, t=(1, 1.2), dt=0.1), 0.1), height)
    assert_derivatives(functional, height, 1.0)


def test_initial_array_changed_later():
    rate = npde.Parameter("r", 1.0)
    problem = problem_of(npde.physics.fisher_kpp(0.1, rate))
    u0 = np.full(problem.n_owned, 0.3)
    functional = reduced(lambda: npde.misfit(npde.solve(problem, u0, **WHEN), 0.1), rate)
    before = functional([rate.like(2.0)])
    u0[:] = 0.6
    assert functional([rate.like(2.0)]) == before


def test_function_in_the_equation_changed_later():
    rate = npde.Parameter("r", 1.0)
    space = mesh_space()
    growth = fem.Function(space, dtype=np.float64)
    growth.x.array[:] = 1.0
    equation = npde.NPDE(flux=lambda u, x, t: 0.1 * ufl.grad(u), source=lambda u, x, t: rate * growth * u)
    problem = npde.FEM(equation, space)

    def build():
        return npde.misfit(npde.solve(problem, start, **WHEN), 0.1)

    functional, tape = taped(build)
    functional = pyadjoint.ReducedFunctional(functional, pyadjoint.Control(rate), tape=tape)
    growth.x.array[:] = 3.0
    with pytest.raises(RuntimeError, match="evaluate the reduced functional before"):
        functional.derivative()
    with pyadjoint.set_working_tape(tape):
        found = float(functional.derivative())
    assert found == pytest.approx(float(reduced(build, rate).derivative()[0]), rel=1e-12)


def test_controls_moved_without_playing():
    """As pyadjoint's optimisers leave them: the derivative is that where they stand."""
    rate = npde.Parameter("r", 1.0)
    problem = problem_of(npde.physics.fisher_kpp(0.1, rate))

    def build():
        solution = npde.solve(problem, start, integrals=[lambda u, x, t: u], **WHEN)
        regular = npde.integral(problem, lambda u, x, t: rate**2)
        return npde.misfit(solution, 0.1) ** 2 + solution.integrals[0] ** 3 + regular**2

    functional, tape = taped(build)
    with pyadjoint.set_working_tape(tape):
        functional = pyadjoint.ReducedFunctional(functional, pyadjoint.Control(rate))
        functional.controls[0].update(np.array(2.5))
        moved = float(functional.derivative())
        functional(rate.like(2.5))
        assert moved == pytest.approx(float(functional.derivative()), rel=1e-12)
        best = pyadjoint.minimize(functional)
        left = float(functional.derivative())
        functional(best)
        assert left == pytest.approx(float(functional.derivative()), rel=1e-9, abs=1e-12)


def test_layouts_that_do_not_fit():
    rate = npde.Parameter("k", 1.0, field=True)
    grid = npde.FD(npde.physics.fisher_kpp(0.1, rate), npde.Grid(COMM, (9, 5), (0, 0), (1, 1)))
    other = npde.FD(npde.physics.heat(0.1), npde.Grid(COMM, (5, 9), (0, 0), (1, 1)))
    wrong = other.function(np.ones(other.n_owned))
    for given in ({"u0": wrong}, {"u0": 0.3, "parameters": {rate: wrong}}):
        with pytest.raises(ValueError, match="another mesh or grid"):
            taped(lambda given=given: npde.solve(grid, **WHEN, **given))


def test_function_on_the_tape_inside_the_equation():
    dolfinx_adjoint = pytest.importorskip("dolfinx_adjoint")
    pyadjoint.pause_annotation()  # which its import continues
    space = mesh_space()
    growth = dolfinx_adjoint.Function(space, name="growth", dtype=np.float64)
    problem = npde.FEM(npde.NPDE(source=lambda u, x, t: growth * u), space)
    with pytest.raises(ValueError, match="growth"):
        taped(lambda: npde.solve(problem, start, **WHEN))


def test_values_for_one_solve():
    """They hold for that solve, bring parameters of integrals along, and leave the parameters as they were."""
    weight, rate = npde.Parameter("w", 1.0), npde.Parameter("r", 1.0)
    problem = problem_of(npde.physics.fisher_kpp(0.1, rate))
    kinds = [lambda u, x, t: weight * u]
    (once,) = npde.solve(problem, start, integrals=kinds, **WHEN).integrals
    (twice,) = npde.solve(problem, start, integrals=kinds, parameters={weight: 2.0}, **WHEN).integrals
    assert twice == pytest.approx(2 * once, rel=1e-12)
    assert float(weight) == 1.0


@pytest.mark.parametrize("method", ["tao-lmvm", "scipy-bfgs"])
def test_trial_points_that_cannot_be_solved(method):
    """Negative diffusion in a line search is a step too long, not the end."""
    diffusion = npde.Parameter("D", 0.3)
    problem = problem_of(npde.physics.heat(diffusion))
    when = {"u0": lambda x: np.cos(3 * x[0]), **WHEN}
    truth = npde.solve(problem, parameters={diffusion: 0.02}, **when).values
    fit = npde.PDEConstrainedProblem(problem, lambda s: npde.misfit(s, [truth], sigma=1e-3), diffusion, **when)
    fit.minimize(method)
    assert float(diffusion) == pytest.approx(0.02, rel=1e-3)


def test_a_rank_without_dofs(mpirun):
    """Two cells on three ranks."""
    one, three = (float(mpirun(n, "few_dofs.py").stdout.split()[-1]) for n in (1, 3))
    assert one == pytest.approx(three, rel=1e-9)


@pytest.mark.parametrize("method", ["fem", "fd"])
@pytest.mark.parametrize("on_tape", [False, True])
def test_problems_end(method, on_tape):
    """A problem that nobody uses any more goes, with its solvers and what these hold of MPI."""

    def use():
        rate = npde.Parameter("r", 1.0)
        problem = problem_of(npde.physics.fisher_kpp(0.1, rate), method)
        npde.solve(problem, start, **WHEN)
        if on_tape:
            reduced(lambda: npde.misfit(npde.solve(problem, start, **WHEN), 0.1), rate).derivative()
        return weakref.ref(problem)

    gone = use()
    gc.collect()
    assert gone() is None
