"""UFL -> C: expressions compiled for the grid against the same formulas in numpy."""

import npde_fem as npde
from npde_fem.discretize.scalar import Code, components, lower, partial

import basix.ufl
import numpy as np
import pytest
import scipy.special
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD


def source_values(expression, u0):
    """Values of ``expression(u, x, t)`` as the source of an equation on a 4 x 3 grid at t = 0.7, and x, y there."""
    problem = npde.FD(npde.NPDE(source=expression), npde.Grid(COMM, (4, 3), (0.2, 0.1), (1.1, 0.9)))
    state, out = problem.new_state(), np.zeros(problem.n_owned)
    problem.load(problem.initial(u0), state)
    problem.rate(0.7, state, out)
    x, y = problem.coordinates().T[:2]
    return out / problem.volumes, x, y


FORMULAS = {
    "polynomial": (
        lambda u, x, t: u**2 - 3 * u**3 + u**5 / 7 + u**8,
        lambda u, x, y: u**2 - 3 * u**3 + u**5 / 7 + u**8,
    ),
    "powers": (
        lambda u, x, t: u**-2 + u**0.5 + u**1.7 + u ** x[0] + 2**u + u**-0.5,
        lambda u, x, y: u**-2.0 + u**0.5 + u**1.7 + u**x + 2**u + u**-0.5,
    ),
    "exponentials": (
        lambda u, x, t: ufl.exp(-u) + ufl.ln(u + 1) + ufl.sqrt(u) + ufl.erf(u),
        lambda u, x, y: np.exp(-u) + np.log(u + 1) + np.sqrt(u) + scipy.special.erf(u),
    ),
    "circular": (
        lambda u, x, t: ufl.sin(u) * ufl.cos(x[0]) + ufl.tan(x[1]) + ufl.atan2(u, x[0] - 0.5),
        lambda u, x, y: np.sin(u) * np.cos(x) + np.tan(y) + np.arctan2(u, x - 0.5),
    ),
    "arcs": (
        lambda u, x, t: ufl.asin(u / 2) + ufl.acos(u / 3) + ufl.atan(5 * u),
        lambda u, x, y: np.arcsin(u / 2) + np.arccos(u / 3) + np.arctan(5 * u),
    ),
    "hyperbolic": (
        lambda u, x, t: ufl.sinh(u) + ufl.cosh(x[0]) + ufl.tanh(x[1]),
        lambda u, x, y: np.sinh(u) + np.cosh(x) + np.tanh(y),
    ),
    "bessel": (
        lambda u, x, t: ufl.bessel_J(1, 3 * u) + ufl.bessel_Y(0, u),
        lambda u, x, y: scipy.special.jv(1, 3 * u) + scipy.special.yv(0, u),
    ),
    "branches": (
        lambda u, x, t: (
            ufl.conditional(ufl.And(ufl.gt(u, 0.6), ufl.le(x[0], 0.9)), u, -x[1])
            + ufl.conditional(ufl.Or(ufl.lt(u, 0.5), ufl.Not(ufl.ge(x[1], 0.3))), 10.0, t)
            + ufl.max_value(u, x[0])
            - ufl.min_value(u, x[1])
            + ufl.sign(u - 0.7)
            + abs(x[0] - u)
        ),
        lambda u, x, y: (
            np.where((u > 0.6) & (x <= 0.9), u, -y)
            + np.where((u < 0.5) | ~(y >= 0.3), 10.0, 0.7)
            + np.maximum(u, x)
            - np.minimum(u, y)
            + np.sign(u - 0.7)
            + np.abs(x - u)
        ),
    ),
    "a branch that is not taken may be undefined": (
        lambda u, x, t: ufl.conditional(ufl.gt(x[0], 0.5), ufl.ln(x[0] - 0.5), -1.0),
        lambda u, x, y: np.log(x - 0.5, where=x > 0.5, out=np.full_like(x, -1.0)),
    ),
    "tensors": (
        lambda u, x, t: (
            ufl.inner(ufl.outer(x, x), ufl.as_matrix([[1, 2], [3, u]])) + ufl.det(ufl.as_matrix([[u, x[0]], [t, 2]]))
        ),
        lambda u, x, y: x * x + 5 * x * y + u * y * y + 2 * u - 0.7 * x,
    ),
    "derivatives": (
        lambda u, x, t: ufl.div(x) + ufl.inner(ufl.grad(ufl.sin(x[0] * x[1])), ufl.as_vector([1, 2])),
        lambda u, x, y: 2 + np.cos(x * y) * (y + 2 * x),
    ),
    "a derivative by a variable": (
        lambda u, x, t: (lambda v: ufl.diff(v**3 + ufl.sin(v), v))(ufl.variable(u)),
        lambda u, x, y: 3 * u**2 + np.cos(u),
    ),
    "a derivative by a vector": (
        lambda u, x, t: (lambda v: ufl.dot(ufl.diff(v[0] * v[1] ** 2, v), ufl.as_vector([1, 10])))(
            ufl.variable(ufl.as_vector([u, x[0]]))
        ),
        lambda u, x, y: x**2 + 20 * u * x,
    ),
    "small and large numbers": (
        lambda u, x, t: 1e-300 * u + 1e17 * x[0] - 1 / 3,
        lambda u, x, y: 1e17 * x - 1 / 3,
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_source_in_c(name):
    in_ufl, in_numpy = FORMULAS[name]

    def u0(x):
        return 0.35 + 0.5 * x[0] + 0.1 * x[1]

    found, x, y = source_values(in_ufl, u0)
    np.testing.assert_allclose(found, in_numpy(u0((x, y)), x, y), rtol=1e-13, atol=1e-14)


def test_gradients_at_points():
    """Central differences are exact for a polynomial of degree 2; one-sided at the boundary of the box."""
    eq = npde.NPDE(source=lambda u, x, t: ufl.grad(u)[0] + 10 * ufl.grad(u)[1])
    problem = npde.FD(eq, npde.Grid(COMM, (5, 4), (0, 0), (1, 1)))
    state, out = problem.new_state(), np.zeros(problem.n_owned)
    problem.load(problem.initial(lambda x: x[0] ** 2 + 3 * x[1]), state)
    problem.rate(0.0, state, out)
    slope = problem.function(out / problem.volumes).array - 30
    np.testing.assert_allclose(slope[:, 0], [0.25, 0.5, 1.0, 1.5, 1.75], atol=1e-13)
    np.testing.assert_allclose(slope, slope[:, :1] * np.ones((1, 4)), atol=1e-12)


def test_foreign_terms_are_refused():
    element = basix.ufl.element("Lagrange", "interval", 1)
    u = ufl.Coefficient(ufl.FunctionSpace(npde.parameter.abstract_domain(1), element))
    with pytest.raises(ValueError, match="cannot be evaluated on a grid"):
        source_values(lambda v, x, t: v * u, 1.0)
    with pytest.raises(ValueError, match="no higher derivative"):
        source_values(lambda v, x, t: ufl.div(ufl.grad(v)), 1.0)


def two_components():
    element = basix.ufl.element("Lagrange", "quadrilateral", 5, shape=(2,))
    return ufl.Coefficient(ufl.FunctionSpace(npde.parameter.abstract_domain(2), element))


def evaluate(expression, values):
    """The value of a lowered scalar expression in the components of a coefficient, by way of its code."""
    code = Code(lambda terminal, component: f"values[{component[0]}]")
    result = code.emit(expression)
    names = {"values": values, "sin": np.sin, "cos": np.cos, "exp": np.exp, "pow": pow}
    for line in code.lines:
        name, text = line.removeprefix("const double ").removesuffix(";").split(" = ", 1)
        names[name] = eval(text, names)
    return eval(result, names)


@pytest.mark.parametrize(
    ("expression", "gradient"),
    [
        (lambda u: u[0] * u[1], lambda a, b: (b, a)),
        (lambda u: ufl.dot(u, u), lambda a, b: (2 * a, 2 * b)),
        (lambda u: ufl.sin(u[0] * u[1]), lambda a, b: (b * np.cos(a * b), a * np.cos(a * b))),
        (lambda u: u[0] ** 2 * ufl.exp(u[1]), lambda a, b: (2 * a * np.exp(b), a**2 * np.exp(b))),
        (lambda u: u[0] ** 2 + 3, lambda a, b: (2 * a, 0)),
    ],
)
def test_partial(expression, gradient):
    """Partial derivatives by a vector, where products of its components must not be mixed up."""
    u, values = two_components(), (0.3, 0.8)
    parts = components(partial(lower(expression(u)), u))
    for i, expected in enumerate(gradient(*values)):
        assert ((i,) in parts) == (expected != 0)
        if expected:
            assert evaluate(parts[i,], values) == pytest.approx(expected, rel=1e-14)


def test_the_gradient_is_independent_of_its_function():
    u = two_components()
    assert components(partial(lower(ufl.grad(u)[0, 0] * 3), u)) == {}


def test_common_subexpressions_are_computed_once():
    u = two_components()
    code = Code(lambda terminal, component: f"u{component[0]}")
    square = ufl.sin(u[0]) ** 2
    code.emit(components(lower(square + square * u[1] + ufl.exp(square)))[()])
    assert sum("sin(" in line for line in code.lines) == 1
