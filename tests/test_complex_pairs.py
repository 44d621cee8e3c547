"""Complex UFL split into real pairs, against numpy's complex arithmetic; complex data in and out of problems."""

import npde_fem as npde
from npde_fem import complex_pairs
from npde_fem.complex_pairs import Pair
from npde_fem.parameter import abstract_domain

import basix.ufl
import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.algorithms.apply_derivatives import apply_derivatives

DOMAIN = abstract_domain(2)


def symbol(shape=()):
    element = basix.ufl.element("Lagrange", "quadrilateral", 5, shape=shape or None)
    return ufl.Coefficient(ufl.FunctionSpace(DOMAIN, element))


Z, W = symbol(), symbol()
VALUES = {Z: 0.7 - 0.4j, W: -0.3 + 1.1j}


def evaluate(expression):
    """Value of an expression of Z and W by its real and imaginary part."""
    parts = {s: (symbol(), symbol()) for s in VALUES}
    pair = complex_pairs.split(expression, {s: Pair(*parts[s]) for s in VALUES})
    numbers = {part: v for s, z in VALUES.items() for part, v in zip(parts[s], (z.real, z.imag), strict=True)}
    return complex(*(float(part((0.0, 0.0), numbers)) for part in pair))


@pytest.mark.parametrize(
    ("write", "value"),
    [
        (lambda z, w: z + 2j * w - 1, lambda z, w: z + 2j * w - 1),
        (lambda z, w: z * w / (1j + w), lambda z, w: z * w / (1j + w)),
        (lambda z, w: z**3 - w**-2, lambda z, w: z**3 - w**-2),
        (lambda z, w: abs(z) ** 2 * w + abs(w), lambda z, w: abs(z) ** 2 * w + abs(w)),
        (lambda z, w: abs(z) ** 4, lambda z, w: abs(z) ** 4),
        (
            lambda z, w: ufl.conj(z) * w + ufl.real(w) + 1j * ufl.imag(z),
            lambda z, w: np.conj(z) * w + w.real + 1j * z.imag,
        ),
        (lambda z, w: ufl.exp(1j * z) * ufl.cos(w) + ufl.sin(z), lambda z, w: np.exp(1j * z) * np.cos(w) + np.sin(z)),
        (lambda z, w: ufl.sinh(z) * ufl.cosh(w), lambda z, w: np.sinh(z) * np.cosh(w)),
        (lambda z, w: ufl.sqrt(z) * ufl.sqrt(w) + ufl.ln(w), lambda z, w: np.sqrt(z) * np.sqrt(w) + np.log(w)),
        (lambda z, w: ufl.inner(z, w), lambda z, w: z * np.conj(w)),
        (
            lambda z, w: ufl.dot(ufl.as_vector([z, 1j]), ufl.as_vector([w, 2 + z])),
            lambda z, w: z * w + 1j * (2 + z),
        ),
        (lambda z, w: ufl.conditional(ufl.gt(ufl.real(z), 0), w, 1j), lambda z, w: w if z.real > 0 else 1j),
        (lambda z, w: ufl.diff((a := ufl.variable(ufl.real(w))) ** 2 * z, a), lambda z, w: 2 * w.real * z),
        (lambda z, w: ufl.det(ufl.as_matrix([[z, w], [1j, 2]])), lambda z, w: 2 * z - 1j * w),
    ],
)
def test_split_is_complex_arithmetic(write, value):
    assert evaluate(write(Z, W)) == pytest.approx(value(*VALUES.values()), rel=1e-14)


@pytest.mark.parametrize("z", [5.4, -5.4, -5.4 + 1e-9j, -5.4 - 1e-9j, 2j, -2j, 3 - 4j])
def test_roots_and_their_derivatives_near_the_axes(z):
    parts = Pair(*(ufl.variable(ufl.as_ufl(float(part))) for part in (z.real, z.imag)))
    pair = complex_pairs.split(ufl.sqrt(Z), {Z: parts})
    root = np.sqrt(complex(z))
    assert complex(*(float(part(())) for part in pair)) == pytest.approx(root, rel=1e-15)
    for variable, slope in zip(parts, (1, 1j), strict=True):
        found = [apply_derivatives(apply_algebra_lowering(ufl.diff(part, variable))) for part in pair]
        assert complex(*(float(part(())) for part in found)) == pytest.approx(slope / (2 * root), rel=1e-12)


def test_what_has_no_parts_is_refused():
    v = ufl.variable(Z)
    for bad in (ufl.erf(Z), Z**0.5, 2**Z, ufl.max_value(ufl.real(Z), W), ufl.diff(v**2, v)):
        with pytest.raises((TypeError, ValueError)):
            complex_pairs.split(bad, {Z: Pair(symbol(), symbol()), W: Pair(symbol(), symbol())})


def test_matrices_act_as_complex_ones():
    rng = np.random.default_rng(0)
    a, z = rng.normal(size=(2, 3, 3)), rng.normal(size=3) + 1j * rng.normal(size=3)
    matrix = complex_pairs.as_matrix(Pair(ufl.as_matrix(a[0].tolist()), ufl.as_matrix(a[1].tolist())), 3)
    real = np.array([[float(matrix[i, j](())) for j in range(6)] for i in range(6)])
    np.testing.assert_allclose((real @ z.view(float)).view(complex), (a[0] + 1j * a[1]) @ z, rtol=1e-14)


def problems(equation, cells=6):
    comm = MPI.COMM_WORLD
    space = dolfinx.fem.functionspace(
        dolfinx.mesh.create_unit_square(comm, cells, cells), ("Lagrange", 2, equation.shape)
    )
    yield npde.FEM(equation, space)
    yield npde.FD(equation, npde.Grid(comm, (cells + 1,) * 2, (0, 0), (1, 1)))


@pytest.mark.parametrize("components", [1, 2])
def test_complex_data_goes_in_and_out(components):
    def data(x):
        waves = np.array([np.exp(1j * k * x[0]) * (1 + x[1]) for k in range(1, components + 1)])
        return waves[0] if components == 1 else waves

    equation = npde.NPDE(flux=lambda u, x, t: 1j * ufl.grad(u), components=components, dtype=complex)
    for problem in problems(equation):
        values = problem.initial(data)
        expected = np.moveaxis(np.atleast_2d(data(problem.coordinates().T)), 0, -1)
        np.testing.assert_array_equal(values.view(complex).reshape(-1, components), expected)
        for again in (values, values.view(complex), problem.function(values)):
            np.testing.assert_array_equal(problem.initial(again), values)
        function = problem.function(values)
        array = function.values if problem.method == "fd" else function.x.array
        assert array.dtype == complex and array.size == values.size // 2
        number = problem.initial(2 - 1j).view(complex)
        np.testing.assert_array_equal(number, np.full(values.size // 2, 2 - 1j))


def test_complex_numbers_need_a_complex_equation():
    heat = npde.physics.heat()
    for problem in problems(heat):
        for bad in (1j, lambda x: 1j * x[0], np.full(problem.n_owned, 1 + 0j)):
            with pytest.raises(TypeError, match="u0.*complex"):
                problem.initial(bad)
    with pytest.raises(ValueError, match="source is complex"):
        list(problems(npde.physics.heat(source=lambda x, t: 1j * x[0])))
    with pytest.raises(ValueError, match="dtype: float or complex allowed"):
        npde.NPDE(dtype=int)


def test_functionals_must_be_real():
    for problem in problems(npde.physics.schrodinger()):
        with pytest.raises(ValueError, match="integrand is complex"):
            npde.integral(problem, lambda u, x, t: u)
        assert float(npde.integral(problem, lambda u, x, t: abs(u) ** 2 + 2)) == pytest.approx(2.0)


@pytest.mark.parametrize("components", [1, 2])
def test_misfit_to_complex_data(components):
    """As numpy's arrays may lie in memory: by columns too."""
    points, shift = np.array([[0.25, 0.25], [0.5, 0.5], [0.75, 0.25]]), 0.3 - 0.4j

    def waves(x):
        return np.array([x[0] + 1j * x[1], 2 * x[0] - 1j])[:components].squeeze()

    for problem in problems(npde.NPDE(source=lambda u, x, t: 0 * u, components=components, dtype=complex)):
        solution = npde.solve(problem, waves, t=(0, 1), dt=1.0, observe=[0.0, 1.0])
        data = np.stack([waves(points.T).T + shift] * 2)
        sigma = np.full(data.shape, 0.5)
        for layout in (np.ascontiguousarray, np.asfortranarray):
            found = npde.misfit(solution, layout(data), points, sigma=layout(sigma))
            assert found == pytest.approx(0.5 * abs(shift) ** 2 / 0.25 * data.size, rel=1e-9)


def test_complex_parameters():
    a = npde.ComplexParameter("a", 2 - 3j)
    assert a.value == 2 - 3j
    a.value = 1 + 1j
    assert (float(a.real), float(a.imag)) == (1.0, 1.0)
    source = npde.NPDE(
        source=lambda u, x, t: a * x[0] + (1 - a) / 2 * u - a**2 + abs(a), damping=0, dtype=complex, name="linear"
    )
    for problem in problems(source):
        values = npde.solve(problem, 0.0).values.view(complex)
        x, number = problem.coordinates()[:, 0], a.value
        expected = (number**2 - abs(number) - number * x) / ((1 - number) / 2)
        np.testing.assert_allclose(values, expected, rtol=1e-9)


def test_damping_and_robin_coefficient_may_be_complex():
    """``i u_t = u_xx`` has the solution exp(i (k x + k^2 t)); what it sends through the ends is i k u."""
    k = 2.0

    def exact(x, t):
        return ufl.exp(1j * (k * x[0] + k**2 * t))

    equation = npde.NPDE(flux=lambda u, x, t: ufl.grad(u), damping=1j, dtype=complex)
    errors = []
    for cells in (16, 32):
        space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_interval(MPI.COMM_WORLD, cells), ("Lagrange", 1))
        ends = [
            npde.Robin(-1j * k, 0.0, lambda x: np.isclose(x[0], 1)),
            npde.Robin(1j * k, 0.0, lambda x: np.isclose(x[0], 0)),
        ]
        fem = npde.FEM(equation, space, ends)
        fd = npde.FD(equation, npde.Grid(MPI.COMM_WORLD, (cells + 1,), (0,), (1,)), ends)
        row = []
        for problem in (fem, fd):
            solution = npde.solve(problem, lambda x: np.exp(1j * k * x[0]), t=(0, 0.5), dt=0.5 / cells)
            row.append(problem.error(solution.values, exact, 0.5)[0])
        errors.append(row)
    assert np.all(np.log2(np.divide(*errors)) > 1.9)
