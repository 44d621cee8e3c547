"""Derivatives of finite-difference terms: against differences, tangents against adjoints, on one and more ranks."""

import importlib
import sys
from functools import cache
from pathlib import Path

import npde_fem as npde

import numpy as np
import pytest
import ufl
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("fd_linearised")
T, TERMS = cases.T, cases.TERMS
STEP = 1e-5


@cache
def kit(name):
    return cases.Kit(cases.PROBLEMS[name]())


@pytest.fixture(params=cases.PROBLEMS)
def one(request):
    found = kit(request.param)
    yield found
    found.move(0.0)


def close(value, expected, tolerance=1e-7):
    scale = max(1e-3, np.abs(expected).max())
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * scale)


def difference(one, evaluate):
    """Central difference along the directions, of an array or of a dictionary of arrays."""
    values = []
    for e in (STEP, -STEP):
        one.move(e)
        values.append(evaluate())
    one.move(0.0)
    plus, minus = values
    if isinstance(plus, dict):
        return {name: (plus[name] - minus[name]) / (2 * STEP) for name in plus}
    return (plus - minus) / (2 * STEP)


@pytest.mark.parametrize("term", TERMS)
def test_tangent_is_the_derivative(one, term):
    expected = difference(one, lambda: one.value(term))
    close(one.tangent(term), expected)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("term", TERMS)
def test_adjoint_is_the_transposed_tangent(one, term):
    tangent = one.tangent(term)
    size = np.linalg.norm(one.adjoint * tangent)
    assert abs(one.paired(one.back(term)) - one.adjoint @ tangent) < 1e-12 * size


@pytest.mark.parametrize("term", [*TERMS, "integral"])
def test_second_order_is_the_derivative_of_the_adjoint(one, term):
    expected = difference(one, lambda: one.back(term))
    for name, values in one.back(term, second=True).items():
        close(values, expected[name])


def test_integral(one):
    expected = difference(one, lambda: np.array(one.integral.value()))
    close(one.integral.tangent(), expected)
    assert one.paired(one.back("integral")) == pytest.approx(0.8 * one.integral.tangent(), rel=1e-12)


@pytest.mark.parametrize("kind", ["prescribed", "initial"])
def test_nodal_data(one, kind):
    p, nodal = one.problem, getattr(one, kind)
    nan = np.full(p.n_owned, np.nan)

    def value():
        if kind == "initial":
            return p.interpolate(one.start, T)
        state = p.new_state()
        p.load(nan, state)
        p.constrain(T, state)
        out = np.zeros(p.n_owned)
        p.store(state, out)
        return out

    expected, tangent = difference(one, value), nan.copy()
    nodal.tangent(T, tangent)
    held = np.isfinite(tangent)
    outside = ~np.repeat(p.domain.inside, p.components)
    assert (np.isfinite(expected) & ~outside == held).all()
    close(tangent[held], expected[held])
    back = one.back_from_nodes(nodal)
    adjoint = cases.wave(p, 4)
    assert one.paired(back) == pytest.approx(adjoint[held] @ tangent[held], rel=1e-12)
    slope = difference(one, lambda: one.back_from_nodes(nodal))
    for name, values in one.back_from_nodes(nodal, second=True).items():
        close(values, slope[name])


def test_hessian_is_symmetric():
    """w . H v = v . H w, H the Hessian of lambda . R by state and parameters."""
    one = cases.Kit(cases.plane())
    lin, p = one.linearised, one.problem
    other = {c.name: cases.direction(p, c, 7) for c in one.controls}
    along = p.new_state()
    p.load(cases.wave(p, 6), along)

    def dot(back, state, delta):
        inner = state[p.layout.inner].ravel()
        return back["state"] @ inner + sum(float(np.sum(back[n] * d)) for n, d in delta.items())

    forth = dot(one.back("all", second=True), along, other)
    lin.move(other)
    lin.at(T, one.state, along)
    back = dot(one.back("all", second=True), one.along, one.delta)
    assert forth == pytest.approx(back, rel=1e-11)


def test_every_place_of_a_parameter_is_met():
    """Each parameter of the cases has a gradient somewhere: none is there in vain."""
    for name in cases.PROBLEMS:
        one = kit(name)
        found = [one.back(term) for term in (*TERMS, "integral")] + [one.back_from_nodes(one.initial)]
        for c in one.controls:
            assert any(np.abs(back[c.name]).max() > 1e-6 for back in found), (name, c.name)


def test_parameters_of_an_objective_only_and_unmoved_controls():
    D, r, weight = npde.Parameter("D", 0.1), npde.Parameter("r", 1.0, field=True), npde.Parameter("weight", 2.0)
    equation = npde.NPDE(flux=lambda u, x, t: D * ufl.grad(u), source=lambda u, x, t: r * u * (1 - u))
    p = npde.FD(equation, cases.grid(5, 5))
    lin = p.linearised([D, r])
    # The kernels that are there stay right when the problem meets one more parameter.
    state, along, out = p.new_state(), p.new_state(), np.zeros(p.n_owned)
    p.load(cases.wave(p, 2), state)
    p.load(cases.wave(p, 3), along)
    lin.at(0.0, state, along)
    lin.move({"D": np.array(1.0)})
    lin.tangent("all", out)
    before = out.copy()
    integral = lin.integral(lambda u, x, t: weight * u**2 * r)
    assert weight.name in p.parameters
    assert integral.value() == pytest.approx(2.0 * (p.volumes @ cases.wave(p, 2) ** 2))
    lin.tangent("all", out)
    np.testing.assert_array_equal(out, before)
    assert lin.prescribed() is None and not lin.with_damping
    lin.move({})
    lin.at(0.0, state)
    lin.tangent("all", out)
    assert not out.any()
    with pytest.raises(ValueError, match="delta of .*'x'"):
        lin.move({"x": np.array(1.0)})
    with pytest.raises(ValueError, match="this rank owns 25"):
        lin.move({"r": np.zeros(3)})
    with pytest.raises(ValueError, match="does not enter"):
        p.linearised([npde.Parameter("D", 0.1)])


def test_singular_slopes_do_not_reach_rows_that_do_not_count():
    """sqrt(u) at u = 0, prescribed, and in the branch of a conditional that is not taken."""
    k = npde.Parameter("k", 0.5)

    def source(u, x, t):
        return ufl.sqrt(u) * k + ufl.conditional(ufl.gt(u, 0.0), u * ufl.ln(u), 0.0) + abs(u - k) + ufl.max_value(u, k)

    problem = npde.FD(npde.NPDE(source=source), cases.grid(6), [npde.Dirichlet(0.0, cases.at(0, 0))])
    lin = problem.linearised([k])
    state, out = problem.new_state(), np.zeros(problem.n_owned)
    values = np.linspace(0, 1, 6)
    problem.load(values, state)
    lin.at(0.0, state)
    adjoint = np.ones(6)
    adjoint[0] = 0.0
    lin.pull("all", adjoint, out)
    u, volume = values[1:], problem.volumes[1:]
    expected = 0.25 / np.sqrt(u) + np.log(u) + 1 + np.sign(u - 0.5) + (u > 0.5)
    np.testing.assert_allclose(out[1:], volume * expected)
    assert out[0] == 0.0
    lin.clear()
    lin.collect("all", adjoint)
    assert lin.gradient()["k"] == pytest.approx(volume @ (np.sqrt(u) - np.sign(u - 0.5) + (u <= 0.5)))


FUNCTIONS = [
    lambda u, k: ufl.exp(k * u),
    lambda u, k: ufl.ln(u) / k,
    lambda u, k: ufl.sqrt(u * k) + u**k + u**1.5 + u**3 + k**-2 + 2**u,
    lambda u, k: ufl.sin(u) * ufl.cos(k) + ufl.tan(u),
    lambda u, k: ufl.sinh(u) * ufl.cosh(k) + ufl.tanh(u * k),
    lambda u, k: ufl.asin(u) + ufl.acos(u * k) + ufl.atan(u / k) + ufl.atan2(u, k),
    lambda u, k: ufl.erf(u) * ufl.bessel_J(1, u) + ufl.bessel_Y(0, k * u),
    lambda u, k: abs(u - k) * ufl.sign(u - 0.5) + ufl.min_value(u, k) * u + ufl.max_value(u * k, k**2),
    lambda u, k: ufl.conditional(ufl.And(ufl.gt(u, 0.3), ufl.Not(ufl.gt(u, 0.8))), u * k**2, u / k),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions(function):
    """The reverse sweep knows every function that a kernel may contain."""
    k = npde.Parameter("k", 0.55)
    problem = npde.FD(npde.NPDE(source=lambda u, x, t: function(u, k)), cases.grid(6))
    lin = problem.linearised([k])
    values = np.linspace(0.13, 0.93, 6)
    (state, along, moved), (tangent, pulled) = (problem.new_state() for _ in range(3)), np.zeros((2, 6))
    problem.load(values, state)
    problem.load(np.ones(6), along)

    def rate(e):
        problem.load(values + e, moved)
        out = np.zeros(6)
        problem.rate(0.0, moved, out)
        return out

    lin.at(0.0, state, along)
    lin.tangent("all", tangent)
    close(tangent, (rate(STEP) - rate(-STEP)) / (2 * STEP))
    lin.pull("all", np.ones(6), pulled)
    np.testing.assert_allclose(pulled, tangent, rtol=1e-12)
    lin.move({"k": np.array(1.0)})
    lin.at(0.0, state)
    lin.tangent("all", tangent)
    lin.clear()
    lin.collect("all", np.ones(6))
    assert lin.gradient()["k"] == pytest.approx(tangent.sum(), rel=1e-12)


@pytest.mark.parametrize("upper, shape", [((0.4,), (5,)), ((1.0, 1.0, 1.0), (4, 3, 3))])
def test_closed_faces_stay_closed_whatever_the_spacing(upper, shape):
    """A boundary point is told from an inner one whatever its coordinates."""
    grid = npde.Grid(MPI.COMM_WORLD, shape, (0,) * len(shape), upper)
    D = npde.Parameter("D", lambda x: 1 + x[0], field=True)
    problem = npde.FD(npde.NPDE(flux=lambda u, x, t: D * (1 + u) * ufl.grad(u)), grid)
    state, out = problem.new_state(), np.zeros(problem.n_owned)
    problem.load(cases.wave(problem, 1), state)
    problem.rate(0.0, state, out)
    assert abs(out.sum()) < 1e-13 * np.abs(out).sum()


def test_slopes_of_fields_in_boundary_data_are_one_sided():
    """Data at the boundary sees the slope of a field that is linear in x exactly."""
    k = npde.Parameter("k", lambda x: 3 * x[0], field=True)
    equation = npde.NPDE(flux=lambda u, x, t: ufl.grad(u))
    problem = npde.FD(equation, cases.grid(5), [npde.Flux(lambda x, t: k.dx(0), cases.at(0, 1))])
    out = np.zeros(problem.n_owned)
    problem.rate(0.0, problem.new_state(), out)
    np.testing.assert_allclose(out, [0, 0, 0, 0, 3.0], atol=1e-12)


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_gives_the_same_gradient(ranks, mpirun, tmp_path):
    mpirun(1, "fd_linearised.py", tmp_path / "one.npz")
    mpirun(ranks, "fd_linearised.py", tmp_path / "many.npz")
    one, many = np.load(tmp_path / "one.npz"), np.load(tmp_path / "many.npz")
    assert one.files == many.files and len(one.files) > 300
    for name in one.files:
        scale = max(1e-3, np.abs(one[name]).max())
        np.testing.assert_allclose(many[name], one[name], rtol=0, atol=1e-12 * scale, err_msg=name)
