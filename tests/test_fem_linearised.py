"""Derivatives of finite-element terms: against differences, and tangents against adjoints."""

from functools import cache

import npde_fem as npde

import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI

T, STEP = 0.3, 1e-5
TERMS = ("all", "flux", "source", "mass")


def at(axis, value):
    return lambda x: np.isclose(x[axis], value)


def field(name, shape=(), element=True):
    def values(x):
        one = 1 + 0.3 * np.sin(3 * x[0] + x[1])
        return one if not shape else one * np.arange(1.0, 1 + np.prod(shape)).reshape(*shape, 1)

    return npde.Parameter(name, values, field=element, shape=shape)


def space(degree=1, shape=(), cell=mesh.CellType.triangle):
    return fem.functionspace(mesh.create_unit_square(MPI.COMM_SELF, 4, 3, cell), ("Lagrange", degree, shape))


def lumped():
    """Triangles: diffusion by a tensor that grows with the state; a field in the cells, one in the damping."""
    A, q = npde.Parameter("A", [[0.4, 0.1], [0.05, 0.3]]), npde.Parameter("q", [0.7, 0.2])
    k, s = field("k", element=("DG", 0)), field("s")
    equation = npde.NPDE(
        flux=lambda u, x, t: k * (1 + u**2) * ufl.dot(A, ufl.grad(u)) - u * q,
        source=lambda u, x, t: s * ufl.dot(ufl.grad(u), ufl.grad(s)) + ufl.exp(-q[0] * u) * (1 + t),
        damping=lambda x, t: s**2 * q[0],
    )
    bcs = [
        npde.Dirichlet(lambda x, t: s * q[0] * (1 + t) * x[1], at(0, 0)),
        npde.Flux(lambda x, t, n: q[1] * n[1] * t + k * s, at(1, 1)),
        npde.Robin(lambda x, t: s * q[0], lambda x, t: s**2, at(0, 1)),
        # Of two conditions at one dof the later one holds.
        npde.Dirichlet(lambda x, t: q[1] ** 2 * s, at(1, 0)),
    ]
    return npde.FEM(equation, space(), bcs, mass="lumped", quadrature_degree=3)


def gray_scott():
    """Quadrilaterals of degree 2, two components: a drift by a field of vectors, one component prescribed."""
    d, F, w = npde.Parameter("d", [0.2, 0.1]), npde.Parameter("F", 0.3), field("w", (2,))
    equation = npde.NPDE(
        flux=lambda u, x, t: ufl.as_tensor([d[0] * ufl.grad(u[0]), d[1] * u[0] * ufl.grad(u[1]) - u[1] * w]),
        source=lambda u, x, t: ufl.as_vector(
            [-u[0] * u[1] ** 2 + F * (1 - u[0]), u[0] * u[1] ** 2 - (F + w[0]) * u[1] * ufl.cos(t)]
        ),
        components=2,
    )
    bcs = [
        npde.Dirichlet(lambda x, t: w[1] * F * (1 + t), at(0, 1), component=1),
        npde.Dirichlet(lambda x, t: ufl.as_vector([F**2, d[0] * d[1]]), at(1, 0)),
        npde.Robin(F, lambda x, t: w, at(0, 0)),
    ]
    return npde.FEM(equation, space(2, (2,), mesh.CellType.quadrilateral), bcs, quadrature_degree=3)


def coupled():
    """Triangles, two components, coupled by the damping, a matrix of a number and of a field."""
    B, h = npde.Parameter("B", [[1.0, 0.2], [-0.1, 2.0]]), field("h")
    equation = npde.NPDE(
        flux=lambda u, x, t: h * ufl.grad(u),
        source=lambda u, x, t: ufl.dot(B, u) * u[0] ** 2,
        damping=lambda x, t: B + h * ufl.dot(B, B),
        components=2,
    )
    return npde.FEM(equation, space(1, (2,)), [npde.Dirichlet(lambda x, t: h, at(0, 0), component=0)])


PROBLEMS = {f.__name__: f for f in (lumped, gray_scott, coupled)}


class Kit:
    """A problem linearised by all its parameters, with a state, an adjoint and directions."""

    def __init__(self, problem):
        self.problem = p = problem
        first = next(iter(p.parameters.values()))
        size = first[(0,) * len(first.ufl_shape)] if first.ufl_shape else first
        height = npde.Parameter("height", 1.2)

        def density(u, x, t):
            slopes = ufl.inner(ufl.grad(u), ufl.grad(u))
            return height * ufl.inner(u, u) * size + slopes * height**2 * x[0] + x[0] * t * size

        def start(x, t):
            one = height**2 * x[0] + size**2 * height
            return ufl.as_vector([one, x[1] * size]) if p.components > 1 else one

        self.start = start
        p.write_nodal(start)
        p.write_integral(density)
        self.lin = lin = p.linearised(list(p.parameters.values()))
        self.integral, self.initial, self.prescribed = lin.integral(density), lin.initial(start), lin.prescribed()
        rng = np.random.default_rng(1)
        self.u, self.v, self.adjoint = (rng.random(p.n_owned) for _ in range(3))
        self.free = np.ones(p.n_owned)
        self.free[p.constrained] = 0.0
        self.base = {n: p.field_values(c) if c.is_field else np.array(c.value) for n, c in p.parameters.items()}
        self.delta = {n: 0.3 * rng.random(b.shape) for n, b in self.base.items()}

    def move(self, e):
        """Go ``e`` along the directions of the state and of the parameters."""
        p = self.problem
        for name, c in p.parameters.items():
            value = self.base[name] + e * self.delta[name]
            if c.is_field:
                p.set_field(c, value)
            else:
                c.value = value
        p.update()
        self.lin.move(self.delta)
        self.now = self.u + e * self.v
        self.lin.at(T, self.now, self.v)

    def value(self, term):
        out = np.zeros(self.problem.n_owned)
        if term == "mass":
            self.problem.mass_times(self.now, out)
        else:
            self.problem.rate(T, self.now, out, term)
        return out

    def tangent(self, term):
        out = np.zeros(self.problem.n_owned)
        self.lin.tangent(term, out)
        return out

    def back(self, term, second=False):
        """What comes back from a term, or from the integral: the pull and the gradient, by name."""
        lin, out = self.lin, np.zeros(self.problem.n_owned)
        lin.clear()
        of, weight = (self.integral, (0.8,)) if term == "integral" else (lin, (term, self.adjoint * self.free))
        (of.pull_second if second else of.pull)(*weight, out)
        (of.collect_second if second else of.collect)(*weight)
        return {"state": out, **lin.gradient()}

    def back_from_nodes(self, nodal, second=False):
        self.lin.clear()
        (nodal.collect_second if second else nodal.collect)(T, self.adjoint)
        return self.lin.gradient()

    def paired(self, back):
        """The directions dotted with what came back."""
        return sum(float(np.vdot(b, {"state": self.v, **self.delta}[n])) for n, b in back.items())

    def slope(self, evaluate):
        """Central difference along the directions, of an array or of a dictionary of arrays."""
        values = []
        for e in (STEP, -STEP):
            self.move(e)
            values.append(evaluate())
        self.move(0.0)
        plus, minus = values
        if isinstance(plus, dict):
            return {name: (plus[name] - minus[name]) / (2 * STEP) for name in plus}
        return (plus - minus) / (2 * STEP)


@cache
def kit(name):
    return Kit(PROBLEMS[name]())


@pytest.fixture(params=PROBLEMS)
def one(request):
    found = kit(request.param)
    found.move(0.0)
    return found


def close(value, expected, tolerance=1e-7):
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * max(1e-2, np.abs(expected).max()))


@pytest.mark.parametrize("term", TERMS)
def test_tangent_is_the_derivative(one, term):
    expected = one.slope(lambda: one.value(term))
    close(one.tangent(term), expected)
    assert np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("term", TERMS)
def test_adjoint_is_the_transposed_tangent(one, term):
    adjoint, tangent = one.adjoint * one.free, one.tangent(term)
    back = one.back(term)
    assert one.paired(back) == pytest.approx(adjoint @ tangent, rel=1e-12)
    assert term == "mass" or np.abs(back["state"][one.problem.constrained]).max() > 0


@pytest.mark.parametrize("term", [*TERMS, "integral"])
def test_second_order_is_the_derivative_of_the_adjoint(one, term):
    expected = one.slope(lambda: one.back(term))
    for name, values in one.back(term, second=True).items():
        close(values, expected[name])


def test_integral(one):
    assert one.integral.tangent() == pytest.approx(one.slope(lambda: one.integral.value()), rel=1e-7)
    assert one.paired(one.back("integral")) == pytest.approx(0.8 * one.integral.tangent(), rel=1e-12)


@pytest.mark.parametrize("kind", ["prescribed", "initial"])
def test_nodal_data(one, kind):
    p, nodal = one.problem, getattr(one, kind)
    nan = np.full(p.n_owned, np.nan)

    def value():
        if kind == "initial":
            return p.interpolate(one.start, T)
        state = nan.copy()
        p.constrain(T, state)
        return state

    expected, tangent = one.slope(value), np.zeros(p.n_owned)
    nodal.tangent(T, tangent)
    held = np.arange(p.n_owned) if kind == "initial" else p.constrained
    close(tangent[held], expected[held])
    back = one.back_from_nodes(nodal)
    assert one.paired(back) == pytest.approx(one.adjoint[held] @ tangent[held], rel=1e-12)
    slope = one.slope(lambda: one.back_from_nodes(nodal))
    for name, values in one.back_from_nodes(nodal, second=True).items():
        close(values, slope[name])


def test_hessian_is_symmetric(one):
    """w . H v = v . H w, H the Hessian of lambda . R by state and parameters."""
    rng = np.random.default_rng(2)
    other = {name: rng.random(d.shape) for name, d in one.delta.items()}
    w = rng.random(one.problem.n_owned)
    first = one.back("all", second=True)
    one.lin.move(other)
    one.lin.at(T, one.u, w)
    second = one.back("all", second=True)
    forwards = sum(float(np.vdot(b, {"state": w, **other}[n])) for n, b in first.items())
    assert forwards == pytest.approx(one.paired(second), rel=1e-10) and abs(forwards) > 1e-3


@pytest.mark.parametrize("kind", [("N1curl", 2), ("DG", 1), ("Lagrange", 3)])
def test_a_users_function_in_the_equation(kind):
    """Whatever its element does from cell to cell, the rate is that of DOLFINx's own assembly, also after a change."""
    cube = mesh.create_unit_cube(MPI.COMM_WORLD, 2, 2, 1)
    drift = fem.Function(fem.functionspace(cube, kind), dtype=np.float64)
    space = fem.functionspace(cube, ("Lagrange", 1))
    size = ufl.inner(drift, drift)
    problem = npde.FEM(npde.NPDE(source=lambda u, x, t: size * u), space)
    u, v = fem.Function(space, dtype=np.float64), ufl.TestFunction(space)
    rate = np.zeros(problem.n_owned)
    u.x.array[:] = np.cos(np.arange(u.x.array.size))
    for shift in (0.0, 1.0):
        drift.x.array[:] = np.sin(np.arange(drift.x.array.size) + shift)
        problem.rate(0.0, u.x.array, rate)
        expected = fem.assemble_vector(fem.form(size * u * v * ufl.dx, dtype=np.float64)).array
        np.testing.assert_allclose(rate, expected, rtol=1e-11, atol=1e-14)
