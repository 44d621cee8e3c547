"""Parameters and grid functions on pyadjoint's tape."""

import subprocess
import sys
import time

import npde_fem as npde
from npde_fem.discretize.inner import inner_product, lumped_mass, riesz

import numpy as np
import pyadjoint
import pytest
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from petsc4py import PETSc
from pyadjoint import AdjFloat, Block, Control, ReducedFunctional, taylor_to_dict
from pyadjoint.reduced_functional_numpy import ReducedFunctionalNumPy


class Cubes(Block):
    """The sum of the cubes of one object's values."""

    def __init__(self, thing):
        super().__init__()
        self.add_dependency(thing)

    def recompute_component(self, inputs, variable, index, prepared):
        return AdjFloat(np.sum(inputs[0]._ad_values() ** 3))

    def evaluate_adj_component(self, inputs, adj_inputs, variable, index, prepared=None):
        return adj_inputs[0] * 3 * inputs[0]._ad_values() ** 2

    def evaluate_tlm_component(self, inputs, tlm_inputs, variable, index, prepared=None):
        return np.sum(3 * inputs[0]._ad_values() ** 2 * tlm_inputs[0]._ad_values())

    def evaluate_hessian_component(self, inputs, hessian_inputs, adj_inputs, variable, index, relevant, prepared=None):
        values = inputs[0]._ad_values()
        return adj_inputs[0] * 6 * values * variable.tlm_value._ad_values() + hessian_inputs[0] * 3 * values**2


def cubes(thing):
    """A reduced functional that calls :class:`Cubes` twice, so that adjoints are summed."""
    with pyadjoint.set_working_tape() as tape:
        pyadjoint.continue_annotation()
        parts = []
        for _ in range(2):
            block, part = Cubes(thing), AdjFloat(np.sum(thing._ad_values() ** 3))
            tape.add_block(block)
            block.add_output(part.block_variable)
            parts.append(part)
        loss = parts[0] + parts[1]
        pyadjoint.pause_annotation()
        return ReducedFunctional(loss, Control(thing), tape=tape)


def field_on(kind, shape=(), field=True, value=1.5):
    """A field parameter at home in a problem."""
    m = npde.Parameter("m", value, field=field, shape=shape)
    scale = m if shape == () else ufl.inner(m, m)
    equation = npde.NPDE(flux=lambda u, x, t: scale * ufl.grad(u), source=lambda u, x, t: -u, damping=0)
    if kind == "fd":
        problem = npde.FD(equation, npde.Grid(MPI.COMM_SELF, (5, 4), (0, 0), (2, 1)))
    else:
        domain = mesh.create_rectangle(MPI.COMM_SELF, [(0, 0), (2, 1)], (4, 3))
        problem = npde.FEM(equation, fem.functionspace(domain, ("P", 1)))
    m.home = problem
    return m, problem


def things():
    yield "number", npde.Parameter("D", 0.5, bounds=(0.1, 2))
    yield "vector", npde.Parameter("c", [0.5, -2.0])
    yield "matrix", npde.Parameter("K", [[1.0, 2.0], [0.0, -1.0]])
    yield "field on a grid", field_on("fd")[0]
    yield "field on a mesh", field_on("fem")[0]
    yield "field of vectors", field_on("fem", shape=(2,), value=lambda x: np.stack([x[0], x[1]]))[0]
    yield "cells", field_on("fem", field=("DG", 0))[0]
    problem = field_on("fd")[1]
    yield "grid function", problem.function(problem.initial(lambda x: x[0] - x[1]))


@pytest.fixture(params=list(things()), ids=lambda pair: pair[0])
def thing(request):
    return request.param[1]


def test_arithmetic(thing):
    a = thing._ad_values()
    other = thing._ad_init_object(a + 1)
    np.testing.assert_allclose(thing._ad_add(other)._ad_values(), 2 * a + 1, atol=1e-14)
    np.testing.assert_array_equal(thing._ad_mul(3.0)._ad_values(), 3 * a)
    np.testing.assert_array_equal(thing._ad_init_zero()._ad_values(), 0 * a)
    np.testing.assert_array_equal(thing._ad_init_object(2.0)._ad_values(), 0 * a + 2)
    assert thing._ad_dot(other) == pytest.approx(np.sum(a * (a + 1)))
    assert thing._ad_dim() == a.size
    copy = thing._ad_copy()
    copy._ad_iadd(other)
    copy._ad_imul(2)
    np.testing.assert_allclose(copy._ad_values(), 4 * a + 2, atol=1e-14)
    np.testing.assert_array_equal(thing._ad_values(), a)
    assert type(copy) is type(thing) and copy is not thing


def test_lists_and_vectors(thing):
    a = thing._ad_values()
    assert thing._ad_to_list(thing) == a.ravel().tolist()
    numbers = np.arange(1.0, a.size + 3)
    copy, offset = thing._ad_assign_numpy(thing._ad_copy(), numbers, 1)
    assert offset == a.size + 1
    np.testing.assert_array_equal(copy._ad_values().ravel(), numbers[1:-1])
    bare, _ = thing._ad_assign_numpy(a, numbers, 0)
    np.testing.assert_array_equal(bare.ravel(), numbers[: a.size])
    vector = thing._ad_to_petsc()
    vector.scale(2.0)
    copy._ad_from_petsc(vector)
    np.testing.assert_array_equal(copy._ad_values(), 2 * a)
    thing._ad_to_petsc(vector)
    np.testing.assert_array_equal(vector.array_r, a.ravel())
    vector.destroy()


def test_derivatives(thing):
    """Values, gradient and Hessian by the tape: a cubic's third remainder is h^3."""
    reduced, a = cubes(thing), thing._ad_values()
    np.testing.assert_allclose(reduced.derivative()._ad_values(), 6 * a**2)
    h = thing._ad_init_object(np.cos(np.arange(a.size)).reshape(a.shape))
    rates = taylor_to_dict(reduced, thing._ad_copy(), h)
    assert min(rates["R1"]["Rate"]) > 1.9 and min(rates["R2"]["Rate"]) > 2.9
    np.testing.assert_array_equal(thing._ad_values(), a)


def test_reduced_functional_of_arrays(thing):
    reduced, a = cubes(thing), thing._ad_values()
    flat = ReducedFunctionalNumPy(reduced)
    assert flat(2 * a.ravel()) == pytest.approx(16 * np.sum(a**3))
    np.testing.assert_allclose(flat.derivative(), 6 * (2 * a.ravel()) ** 2)


def test_plain_use():
    D, c = npde.Parameter("D", 0.5, bounds=(0, 1)), npde.Parameter("c", [1.0, 2.0])
    assert float(D) == 0.5 and float(D.like(-3)) == -3 and D.like(7).bounds == (None, None)
    assert D.like(0.5) is not D and D.like(0.5) != D
    assert isinstance(D + D, ufl.core.expr.Expr)
    with pytest.raises(TypeError, match="'c' is no single number"):
        float(c)
    with pytest.raises(ValueError, match=r"'c': value of shape \(3,\) given, \(2,\) allowed"):
        c.like([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(c.like(4).value, [4, 4])


def test_a_field_needs_a_home():
    m = npde.Parameter("m", 1.0, field=True)
    with pytest.raises(ValueError, match="'m': a field has values of its own on the tape only after a taped solve"):
        m.like(2.0)
    m, problem = field_on("fd")
    with pytest.raises(ValueError, match=r"'m': values of shape \(3,\) given"):
        m.like(np.zeros(3))
    assert m.like(2.0).home is problem and m.like(2.0).value.shape == (20,)


def test_a_new_value_is_a_new_variable():
    """A tape keeps the value it was written with: the next solve must not find it under a changed parameter."""
    D = npde.Parameter("D", 0.5)
    before = Control(D)
    D.value = 0.6
    assert D.block_variable is before.block_variable, "not yet on a tape"
    reduced = cubes(D)
    taped = D.block_variable
    D.value = 0.6
    assert D.block_variable is taped
    D.value = 0.7
    assert D.block_variable is not taped
    assert reduced.derivative().value == pytest.approx(6 * 0.6**2)


@pytest.mark.parametrize("kind", ["fd", "fem"])
def test_inner_products(kind):
    m, problem = field_on(kind)
    x = problem.coordinates().T
    f = x[0] + 2 * x[1]
    weights = lumped_mass(problem, m)
    assert weights.min() > 0 and weights.sum() == pytest.approx(2)
    for kind, exact in (("L2", 28 / 3), ("H1", 28 / 3 + 5 * 2 * 0.25)):
        matrix = inner_product(problem, m, kind, 0.5)
        y, out = matrix.createVecs()
        y.array[:] = f
        matrix.mult(y, out)
        ones = np.ones_like(f)
        assert out.array_r @ ones == pytest.approx(weights @ f, rel=1e-12)
        assert out.array_r @ f == pytest.approx(exact, rel=0.05)
        for made in (y, out, matrix):
            made.destroy()


@pytest.mark.parametrize("kind", ["fd", "fem"])
@pytest.mark.parametrize("inner", ["L2", "H1"])
def test_riesz_map(kind, inner):
    """The representer's inner product with any field is the derivative along it."""
    m, problem = field_on(kind)
    derivative = np.sin(np.arange(problem.n_owned))
    representer = riesz(problem, m, derivative, inner)
    matrix = inner_product(problem, m, inner)
    y, out = matrix.createVecs()
    y.array[:] = representer
    matrix.mult(y, out)
    np.testing.assert_allclose(out.array_r, derivative, atol=1e-9)
    np.testing.assert_allclose(m._ad_convert_riesz(derivative, inner).value, representer, atol=1e-9)
    for made in (y, out, matrix):
        made.destroy()


def test_riesz_map_of_a_grid_function():
    _, problem = field_on("fd")
    u = problem.function(np.ones(problem.n_owned))
    gradient = u._ad_convert_riesz(problem.layout.control_volumes(), "L2")
    np.testing.assert_allclose(gradient.values, 1.0)
    assert problem.layout.control_volumes().sum() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="riesz_map 'H1' given; 'l2' and 'L2' allowed"):
        u._ad_convert_riesz(u, "H1")


def test_no_gradient_in_cells():
    m, problem = field_on("fem", field=("DG", 0))
    assert lumped_mass(problem, m) == pytest.approx(np.full(24, 1 / 12))
    with pytest.raises(ValueError, match="constant in every cell and has no gradient"):
        inner_product(problem, m, "H1")


def test_positive_weights_of_higher_degree():
    """Row sums of the mass matrix vanish at the vertices of P2."""
    m, problem = field_on("fem", field=("P", 2))
    weights = lumped_mass(problem, m)
    assert weights.min() > 1e-3 and weights.sum() == pytest.approx(2)


def test_making_a_parameter_is_cheap():
    D = npde.Parameter("D", 0.5)
    best = np.inf
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(100):
            D.like(0.3)
            npde.Parameter("D", 0.5)
        best = min(best, (time.perf_counter() - begun) / 200)
    assert best < 200e-6


def test_import_stays_light():
    code = "import sys, npde_fem; sys.exit('dolfinx_adjoint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_vectors_hold_numbers_on_rank_0():
    vector = npde.Parameter("c", [1.0, 2.0])._ad_to_petsc()
    assert vector.getSize() == 2 and isinstance(vector, PETSc.Vec)
    vector.destroy()
