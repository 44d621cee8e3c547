"""Parameters: what is set before a solve is what the solve uses, in every place an equation has; mesh tags."""

import npde_fem as npde

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD
METHODS = ["fem", "fd"]


def problem_of(method, equation, bcs=(), n=9):
    if method == "fd":
        return npde.FD(equation, npde.Grid(COMM, (n, n), (0, 0), (1, 1)), bcs)
    mesh = dolfinx.mesh.create_unit_square(COMM, n - 1, n - 1)
    return npde.FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", 1)), bcs)


def run(problem, scheme=None):
    return npde.solve(problem, lambda x: 1 + x[0] * x[1], (0, 0.02), 0.001, scheme or npde.CrankNicolson()).values


def everywhere(value):
    """An equation and conditions with one number in every place, and the number."""
    p = npde.Parameter("p", value)
    equation = npde.NPDE(
        flux=lambda u, x, t: (1 + p) * ufl.grad(u), source=lambda u, x, t: p * u * (1 - u), damping=1 + p
    )
    left, right = (lambda x: x[0] < 1e-9), (lambda x: x[0] > 1 - 1e-9)
    bcs = [
        npde.Dirichlet(lambda x, t: 1 + p * x[1], left),
        npde.Robin(p, lambda x, t: p * x[1], right),
        npde.Flux(p, lambda x: x[1] < 1e-9),
    ]
    return p, equation, bcs


@pytest.mark.parametrize("scheme", [npde.CrankNicolson(), npde.IMEX(), npde.ForwardEuler()], ids=lambda s: s.name)
@pytest.mark.parametrize("method", METHODS)
def test_a_changed_number_is_used_everywhere(method, scheme):
    p, equation, bcs = everywhere(0.3)
    problem = problem_of(method, equation, bcs)
    before = run(problem, scheme)
    p.value = 0.6
    after = run(problem, scheme)
    _, equation, bcs = everywhere(0.6)
    np.testing.assert_allclose(after, run(problem_of(method, equation, bcs), scheme), atol=1e-9)
    assert np.abs(after - before).max() > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_a_set_field_is_used(method):
    def value(x):
        return 1 + x[0] + 2 * x[1]

    k = npde.Parameter("k", 1.0, field=True, bounds=(0, None))
    equation = npde.NPDE(flux=lambda u, x, t: k * ufl.grad(u))
    problem = problem_of(method, equation)
    problem.set_field(k, value(problem.coordinates().T))
    fresh = npde.Parameter("k", value, field=True)
    other = problem_of(method, npde.NPDE(flux=lambda u, x, t: fresh * ufl.grad(u)))
    np.testing.assert_allclose(run(problem), run(other), atol=1e-9)
    field = problem.field("k")
    values = field.values if method == "fd" else field.x.array
    np.testing.assert_allclose(values, value(problem.coordinates().T), atol=1e-14)
    with pytest.raises(ValueError, match="outside its bounds"):
        problem.set_field(k, -np.ones(problem.n_owned))
    with pytest.raises(KeyError, match="no field parameter 'q'"):
        problem.field("q")


@pytest.mark.parametrize("method", METHODS)
def test_vectors_and_matrices(method):
    c, d = npde.Parameter("c", [1.0, -2.0]), npde.Parameter("d", [[2.0, 0.5], [0.5, 1.0]])
    plain = npde.NPDE(
        flux=lambda u, x, t: ufl.dot(ufl.as_matrix([[2.0, 0.5], [0.5, 1.0]]), ufl.grad(u)) - ufl.as_vector([1, -2]) * u
    )
    with_parameters = npde.NPDE(flux=lambda u, x, t: ufl.dot(d, ufl.grad(u)) - c * u)
    a, b = run(problem_of(method, plain)), run(problem_of(method, with_parameters))
    np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_material_in_cells(method):
    """Two materials, one value a cell: the flux of the exact stationary solution is the same in both."""
    k = npde.Parameter("k", lambda x: np.where(x[0] < 0.5, 1.0, 3.0), field=("DG", 0))
    ends = [npde.Dirichlet(lambda x, t: x[0])]
    equation = npde.NPDE(flux=lambda u, x, t: k * ufl.grad(u), damping=0)
    if method == "fd":
        problem = npde.FD(equation, npde.Grid(COMM, (9,), (0,), (1,)), ends)
    else:
        mesh = dolfinx.mesh.create_unit_interval(COMM, 8)
        problem = npde.FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", 1)), ends)
    x = problem.coordinates()[:, 0]
    exact = np.where(x < 0.5, 1.5 * x, 0.75 + 0.5 * (x - 0.5))
    np.testing.assert_allclose(npde.solve(problem).values, exact, atol=1e-9)


def test_one_parameter_serves_two_problems():
    p, equation, bcs = everywhere(0.3)
    problems = [problem_of(method, equation, bcs, n=17) for method in METHODS]
    totals = []
    for value in (0.3, 0.8):
        p.value = value
        totals.append([problem.total(run(problem))[0] for problem in problems])
    for fem, fd in totals:
        assert fem == pytest.approx(fd, rel=2e-3)
    assert abs(totals[0][0] - totals[1][0]) > 1e-2


def test_mesh_tags_say_the_same_as_coordinates():
    mesh = dolfinx.mesh.create_unit_square(COMM, 6, 6)
    places = {3: lambda x: x[0] < 1e-9, 5: lambda x: x[0] > 1 - 1e-9, 8: lambda x: x[1] < 1e-9}
    facets = [dolfinx.mesh.locate_entities_boundary(mesh, 1, where) for where in places.values()]
    values = np.concatenate([np.full(f.size, tag) for f, tag in zip(facets, places, strict=True)]).astype(np.int32)
    order = np.argsort(np.concatenate(facets))
    tags = dolfinx.mesh.meshtags(mesh, 1, np.concatenate(facets)[order], values[order])
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 2))
    heat = npde.physics.heat(1.0)

    def conditions(left, right, both):
        return [npde.Dirichlet(2.0, left), npde.Robin(3.0, 1.0, right), npde.Flux(0.5, both)]

    def right_or_bottom(x):
        return (x[0] > 1 - 1e-9) | (x[1] < 1e-9)

    by_tag = npde.FEM(heat, space, conditions(3, [5], [5, 8]), facet_tags=tags)
    by_place = npde.FEM(heat, space, conditions(places[3], places[5], right_or_bottom))
    assert by_tag.unknowns == by_place.unknowns < by_tag.n_global
    np.testing.assert_allclose(run(by_tag), run(by_place), atol=1e-9)


@pytest.mark.parametrize("field", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_an_exact_solution_may_bring_a_parameter(method, field):
    problem = problem_of(method, npde.physics.heat(npde.Parameter("D", 1.0)))
    e = npde.Parameter("e", (lambda x: 5.0 + 0 * x[0]) if field else 5.0, field=field)
    np.testing.assert_allclose(problem.interpolate(lambda x, t: e * x[0]), 5 * problem.coordinates()[:, 0], atol=1e-12)
    np.testing.assert_allclose(problem.interpolate(lambda x, t: e), 5.0, atol=1e-12)
    assert problem.error(np.ones(problem.n_owned), lambda x, t: e)[1] == pytest.approx(4.0)
    assert np.isfinite(run(problem)).all()


@pytest.mark.parametrize("method", METHODS)
def test_error_against_a_constant(method):
    problem = problem_of(method, npde.physics.heat(1.0))
    assert problem.error(np.full(problem.n_owned, 3.0), lambda x, t: 1.0) == pytest.approx((2.0, 2.0))


def test_material_in_cells_from_an_array():
    values = np.arange(1.0, 9.0)
    k = npde.Parameter("k", values, field=("DG", 0))
    equation = npde.NPDE(flux=lambda u, x, t: k * ufl.grad(u), damping=0)
    problem = npde.FD(equation, npde.Grid(COMM, (9,), (0,), (1,)), [npde.Dirichlet(lambda x, t: x[0])])
    resistance = np.concatenate([[0.0], np.cumsum(1 / values)])
    np.testing.assert_allclose(npde.solve(problem).values, resistance / resistance[-1], atol=1e-9)


def test_bounds_cannot_be_bypassed():
    p = npde.Parameter("p", 1.0, bounds=(0, 2))
    with pytest.raises(ValueError, match="read-only"):
        p.value[...] = -5
    with pytest.raises(TypeError, match="field=True"):
        p.value = lambda x: x[0]
    with pytest.raises(TypeError, match="field must be"):
        npde.Parameter("q", 1.0, field="DG")


@pytest.mark.parametrize("condition", [npde.Flux, lambda q, where: npde.Robin(0.0, q, where)])
def test_tagged_facets_inside_the_mesh_are_no_boundary(condition):
    mesh = dolfinx.mesh.create_unit_square(COMM, 4, 4)
    facets = dolfinx.mesh.locate_entities(mesh, 1, lambda x: np.isclose(x[0], 0.5) | np.isclose(x[0], 1.0))
    tags = dolfinx.mesh.meshtags(mesh, 1, facets, np.full(facets.size, 2, dtype=np.int32))
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
    problem = npde.FEM(npde.physics.heat(1.0), space, [condition(1.0, 2)], facet_tags=tags)
    solution = npde.solve(problem, 0.0, (0, 1), 0.1)
    assert problem.total(solution.values)[0] == pytest.approx(1.0, rel=1e-8)


def test_no_damping_outside_of_the_mask():
    mask = np.zeros((9, 9), dtype=bool)
    mask[2:7, 2:7] = True
    b = npde.Parameter("b", mask.astype(float), field=True)
    problem = npde.FD(
        npde.NPDE(flux=lambda u, x, t: ufl.grad(u), damping=b), npde.Grid(COMM, (9, 9), (0, 0), (1, 1), mask)
    )
    start = problem.initial(lambda x: x[0])
    after = npde.solve(problem, start, (0, 0.01), 0.001, npde.ForwardEuler()).values
    assert problem.total(after)[0] == pytest.approx(problem.total(start)[0], rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_drift_that_begins_later_needs_no_direct_solver(method, recwarn):
    equation = npde.NPDE(
        flux=lambda u, x, t: 0.01 * ufl.grad(u) - ufl.conditional(ufl.gt(t, 0.5), 1.0, 0.0) * u * ufl.as_vector([1, 0])
    )
    solution = npde.solve(problem_of(method, equation, n=17), lambda x: 1 + x[0], (0, 1), 0.1)
    assert solution.linear_iterations < 500
    assert not [w for w in recwarn if w.category is RuntimeWarning]
