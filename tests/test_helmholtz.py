"""Waves in open domains: layers, Helmholtz solvers, sweeps, against exact solutions."""

import importlib
import json
import sys
import warnings
from pathlib import Path

import npde_fem as npde
from npde_fem import physics

import numpy as np
import pytest
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI
from petsc4py import PETSc
from scipy.special import hankel1, jv

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
gradients = importlib.import_module("helmholtz")
COMM = MPI.COMM_WORLD


def discretised(method, equation, cells, upper, degree=1, bcs=(), lower=None, **options):
    """A problem on a box with some cells along each axis."""
    lower = (0.0,) * len(upper) if lower is None else lower
    if method == "fd":
        return npde.FD(equation, npde.Grid(COMM, tuple(n + 1 for n in cells), lower, upper), bcs)
    mesh = dmesh.create_rectangle(COMM, [lower, upper], cells)
    shape = () if equation.components == 1 else (equation.components,)
    return npde.FEM(equation, fem.functionspace(mesh, ("Lagrange", degree, shape)), bcs, **options)


def source(centre, width, height=1.0):
    """A Gaussian of integral ``height``, in UFL."""

    def at(x, t):
        square = sum((x[a] - c) ** 2 for a, c in enumerate(centre))
        return height * ufl.exp(-square / (2 * width**2)) / (2 * np.pi * width**2)

    return at


@pytest.mark.parametrize(
    "method, degree, cells", [("fd", 1, (32, 64)), ("fem", 1, (32, 64)), ("fem", 2, (16, 32)), ("fem", 4, (4, 8))]
)
def test_plane_wave_through_impedance_boundary(method, degree, cells):
    k, angle = 8.0, 0.5
    along = k * np.cos(angle), k * np.sin(angle)

    def wave(x, t):
        return ufl.exp(1j * (along[0] * x[0] + along[1] * x[1]))

    bc = npde.Robin(-1j * k, lambda x, t, n: 1j * (along[0] * n[0] + along[1] * n[1] - k) * wave(x, t))
    errors = []
    for n in cells:
        problem = discretised(method, physics.helmholtz(k), (n, n), (1.0, 1.0), degree, [bc])
        errors.append(problem.error(npde.solve(problem).values, wave)[0])
    order = 2 if method == "fd" else degree + 1
    assert np.log2(errors[0] / errors[1]) > order - 0.3, errors
    assert errors[1] < 0.05


@pytest.mark.parametrize("method", ["fd", "fem"])
@pytest.mark.parametrize("angle", [0.0, 45.0])
def test_what_a_layer_reflects(method, angle):
    """A mode cos(k_y y) of a channel runs into a layer one wavelength thick; what comes back is fitted."""
    k, points = 2 * np.pi, 40 if method == "fd" else 8
    ky = k * np.sin(np.deg2rad(angle))
    height = np.pi / ky if ky else 0.5
    pml = npde.PML((0, 0), (2, height), ((0, 1), (0, 0)))
    inlet = npde.Dirichlet(lambda x, t: ufl.cos(ky * x[1]), where=lambda x: np.isclose(x[0], 0))
    cells = (2 * points, max(4, round(height * points)))
    problem = discretised(method, physics.helmholtz(k, pml=pml), cells, (2.0, height), 4, [inlet])
    x, u = problem.coordinates(), npde.solve(problem).values.view(complex)
    along = np.sqrt(k**2 - ky**2)
    if method == "fd":  # the wavenumber on the grid
        h, hy = problem.grid.spacing
        along = np.arccos(1 - h**2 / 2 * (k**2 - (2 - 2 * np.cos(ky * hy)) / hy**2)) / h
    open_part = x[:, 0] < 1 - 1e-9
    x, u = x[open_part], u[open_part]
    waves = np.exp(1j * along * np.outer(x[:, 0], [1, -1])) * np.cos(ky * x[:, 1])[:, None]
    (forward, back), *_ = np.linalg.lstsq(waves, u)
    assert abs(back) < 1e-3 * abs(forward)
    assert np.abs(waves @ [forward, back] - u).max() < 1e-3


@pytest.mark.parametrize("method, degree, cells, most", [("fd", 1, 128, 0.04), ("fem", 4, 32, 2e-4)])
def test_point_source_in_open_domain(method, degree, cells, most):
    """i/4 H_0(k r), weakened as the source is wide: its transform at k is exp(-k^2 w^2 / 2)."""
    k, width, thickness = 20.0, 0.06, 0.4
    pml = npde.PML((0, 0), (2, 2), thickness)
    equation = physics.helmholtz(k, source=source((1, 1), width), pml=pml)
    problem = discretised(method, equation, (cells, cells), (2.0, 2.0), degree)
    x = problem.coordinates()[:, :2] - 1
    r = np.linalg.norm(x, axis=1)
    seen = (r > 6 * width) & (np.abs(x).max(axis=1) < 1 - thickness)
    exact = 0.25j * hankel1(0, k * r[seen]) * np.exp(-((k * width) ** 2) / 2)
    found = npde.solve(problem).values.view(complex)[seen]
    assert np.linalg.norm(found - exact) < most * np.linalg.norm(exact)


def test_scattering_by_a_soft_cylinder():
    """exp(i k x) on a cylinder, u = 0 there: the series of Bessel and Hankel functions."""
    pytest.importorskip("gmsh")
    from npde_fem import meshes

    k, a = 6.0, 0.5
    tagged = meshes.plate_with_hole(COMM, (-2, -2), (2, 2), (0, 0), a, 0.14, 0.07)
    pml = npde.PML((-2, -2), (2, 2), 0.7, 1e-4)
    incident = npde.Dirichlet(lambda x, t: -ufl.exp(1j * k * x[0]), where=5)
    space = fem.functionspace(tagged.mesh, ("Lagrange", 3))
    problem = npde.FEM(physics.helmholtz(k, pml=pml), space, [incident], facet_tags=tagged.facet_tags)
    x = problem.coordinates()[:, :2]
    r, angle = np.linalg.norm(x, axis=1), np.arctan2(x[:, 1], x[:, 0])
    seen = (np.abs(x).max(axis=1) < 1.3) & (r > a + 0.02)
    orders = np.arange(-30, 31)[:, None]
    terms = 1j**orders * jv(orders, k * a) / hankel1(orders, k * a) * hankel1(orders, k * r[seen])
    exact = -np.sum(terms * np.exp(1j * orders * angle[seen]), axis=0)
    found = npde.solve(problem).values.view(complex)[seen]
    assert np.linalg.norm(found - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("method, dim", [("fd", 1), ("fd", 2), ("fem", 2)])
def test_waves_in_time_leave_through_layers(method, dim):
    """Against the same grid so large that nothing comes back; and long after, stability."""
    n, half, far, thickness = 24 if method == "fem" else 60, 1.2, 1.8, 0.6

    def run(size, pml, end):
        equation = physics.open_wave(1.0, pml)
        cells = (round(2 * size * n),) * dim
        box = ((-size,) * dim, (size,) * dim)
        options = {"mass": "lumped"} if method == "fem" else {}
        problem = discretised(method, equation, cells, box[1], 1, lower=box[0], **options)

        def start(x):
            return np.stack([np.exp(-np.sum(x[:dim] ** 2, axis=0) / 0.08)] + [0 * x[0]] * (equation.components - 1))

        u = npde.solve(problem, start, (0, end), 0.4 / n, npde.RK4()).values.reshape(-1, equation.components)[:, 0]
        x = problem.coordinates()[:, :dim]
        seen = np.abs(x).max(axis=1) < half - thickness + 1e-9
        return u[seen][np.lexsort(x[seen].round(9).T)]

    layers = npde.PML((-half,) * dim, (half,) * dim, thickness, 1e-3)
    none = npde.PML((-far,) * dim, (far,) * dim, 0.0)
    assert np.abs(run(half, layers, 2.2) - run(far, none, 2.2)).max() < 1e-3
    assert np.abs(run(half, layers, 8.0)).max() < 2e-3


def test_open_wave_in_three_dimensions():
    """A spherical pulse: u = (f(r - t) + f(r + t)) / r passes, and nothing is left when it has."""
    pml = npde.PML((-1,) * 3, (1,) * 3, 0.5, 1e-3)
    equation = physics.open_wave(1.0, pml)
    assert equation.components == 6
    problem = npde.FD(equation, npde.Grid(COMM, (21,) * 3, (-1,) * 3, (1,) * 3))

    def start(x):
        return np.stack([np.exp(-np.sum(x**2, axis=0) / 0.08)] + [0 * x[0]] * 5)

    u = npde.solve(problem, start, (0, 3), 0.05, npde.RK4()).values.reshape(-1, 6)
    assert np.abs(u[np.abs(problem.coordinates()).max(axis=1) < 0.5, 0]).max() < 1e-2
    late = npde.solve(problem, start, (0, 15), 0.05, npde.RK4()).values
    assert np.abs(late).max() < 0.05


@pytest.mark.parametrize("kind, degree, cells", [("fd", 1, 12), ("fem", 1, 12), ("fem", 2, 6), ("fem", 4, 3)])
@pytest.mark.parametrize("thickness", [((0, 0.4), (0, 0)), ((0.4, 0.3), (0.4, 0.3))], ids=["one side", "all sides"])
def test_nothing_grows_in_a_layer(kind, degree, cells, thickness):
    """No eigenvalue has a positive real part, where gradients are integrated as the mass is."""
    equation, ends = physics.open_wave(1.0, npde.PML((-1, -1), (1, 1), thickness, 1e-3)), ((-1, -1), (1, 1))
    if kind == "fd":
        problem = npde.FD(equation, npde.Grid(COMM, (cells + 1, cells + 1), *ends))
    else:
        mesh = dmesh.create_rectangle(COMM, ends, (cells, cells), dmesh.CellType.quadrilateral)
        space = fem.functionspace(mesh, ("Lagrange", degree, (4,)))
        problem = npde.FEM(equation, space, mass="lumped")
    problem.update()
    rates, mass, rest = problem.new_matrix(), problem.new_matrix(), problem.new_state()
    problem.jacobian(0.0, rest, 0.0, -1.0, rates)
    problem.jacobian(0.0, rest, 1.0, 0.0, mass)
    dense = [matrix.convert("dense").getDenseArray() for matrix in (mass, rates)]
    assert np.linalg.eigvals(np.linalg.solve(*dense)).real.max() < 1e-6


@pytest.fixture(scope="module")
def open_problem():
    k = npde.Parameter("k", 20.0)
    pml = npde.PML((0, 0), (1, 1), 0.25, 1e-4)
    equation = physics.helmholtz(k, source=source((0.4, 0.5), 0.04), pml=pml)
    return k, {method: discretised(method, equation, (48, 48), (1.0, 1.0)) for method in ("fd", "fem")}


@pytest.mark.parametrize("method", ["fd", "fem"])
def test_shifted_laplacian_gives_what_lu_gives(open_problem, method):
    problem = open_problem[1][method]
    direct = npde.solve(problem)
    iterated = npde.solve(problem, preconditioner=npde.ShiftedLaplacian(0.5))
    assert 10 < iterated.linear_iterations < 100
    assert np.linalg.norm(iterated.values - direct.values) < 1e-8 * np.linalg.norm(direct.values)


def test_iterations_hardly_depend_on_the_mesh_and_grow_with_k():
    def iterations(k, cells):
        pml = npde.PML((0, 0), (1, 1), 0.25, 1e-4)
        equation = physics.helmholtz(k, source=source((0.4, 0.5), 0.04), pml=pml)
        problem = discretised("fd", equation, (cells, cells), (1.0, 1.0))
        return npde.solve(problem, preconditioner=npde.ShiftedLaplacian()).linear_iterations

    coarse, fine, twice = iterations(15.0, 32), iterations(15.0, 80), iterations(30.0, 64)
    assert fine < 1.5 * coarse
    assert twice < 2.5 * coarse


def test_petsc_options_override_the_preconditioner(open_problem):
    options = PETSc.Options("npde_")
    options.setValue("ksp_max_it", 3)
    try:
        with pytest.warns(RuntimeWarning, match="LU takes its place"):
            found = npde.solve(open_problem[1]["fd"], preconditioner=npde.ShiftedLaplacian())
    finally:
        options.delValue("ksp_max_it")
    direct = npde.solve(open_problem[1]["fd"])
    np.testing.assert_allclose(found.values, direct.values, atol=1e-9)
    assert not options.hasName("pc_type")


@pytest.mark.parametrize("preconditioner", [None, npde.ShiftedLaplacian()])
def test_a_sweep_gives_what_single_solves_give(open_problem, preconditioner):
    k, problems = open_problem
    values = np.linspace(19, 20, 5)
    iterations = []
    for value, solution in zip(
        values, npde.sweep(problems["fd"], k, values, preconditioner=preconditioner), strict=True
    ):
        assert float(k) == value
        iterations.append(solution.linear_iterations)
        alone = npde.solve(problems["fd"])
        assert np.linalg.norm(solution.values - alone.values) < 1e-8 * np.linalg.norm(alone.values)
    assert float(k) == 20.0
    if preconditioner is not None:
        assert iterations[-1] < iterations[0]


def test_a_sweep_factorises_symbolically_once(open_problem):
    k, problems = open_problem
    PETSc.Log.begin()
    symbolic, numeric = PETSc.Log.Event("MatLUFactorSym"), PETSc.Log.Event("MatLUFactorNum")
    npde.solve(problems["fem"])
    before = symbolic.getPerfInfo()["count"], numeric.getPerfInfo()["count"]
    list(npde.sweep(problems["fem"], k, [18.0, 18.5, 19.0]))
    assert symbolic.getPerfInfo()["count"] == before[0]
    assert numeric.getPerfInfo()["count"] == before[1] + 3


@pytest.mark.parametrize("method, degree, cells", [("fd", 1, 12), ("fem", 1, 12), ("fem", 3, 4)])
def test_a_mesh_too_coarse_for_the_waves_is_warned_of_once(method, degree, cells):
    """Index 2 in one half: 2 pi / (2 k) / h = 3 points a wavelength there."""
    k = 2 * np.pi * 12 / 6
    index = lambda x, t: ufl.conditional(ufl.gt(x[0], 0.5), 2.0, 1.0)  # noqa: E731
    problem = discretised(
        method, physics.helmholtz(k, index), (cells, cells), (1.0, 1.0), degree, [npde.Robin(-1j * k)]
    )
    with pytest.warns(UserWarning, match="3 points a wavelength"):
        npde.solve(problem)
    fine = discretised(method, physics.helmholtz(k), (cells, cells), (1.0, 1.0), degree, [npde.Robin(-1j * k)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        npde.solve(problem)
        npde.solve(fine)


@pytest.fixture(scope="module", params=["fem", "fd"])
def by_lu(request):
    return request.param, gradients.experiment(request.param)


def test_taylor(by_lu):
    rates = gradients.rates(by_lu[1])
    assert {"n", "k", "phase", "amplitude.real", "amplitude.imag"} <= set(rates)
    for name, (first, second) in rates.items():
        assert first > 1.95, f"{name}: gradient, rate {first}"
        assert second > 2.9, f"{name}: Hessian, rate {second}"


def test_gradients_by_the_shifted_laplacian(by_lu):
    kind, one = by_lu
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iterated = gradients.slopes(gradients.experiment(kind, npde.ShiftedLaplacian()))
    assert iterated == pytest.approx(gradients.slopes(one), rel=1e-7)


def test_gradients_on_two_ranks(mpirun):
    for line in map(json.loads, mpirun(2, "helmholtz.py").stdout.splitlines()):
        here = gradients.slopes(gradients.experiment(line["kind"]))
        assert line["slopes"] == pytest.approx(here, rel=1e-8)
        assert line["iterated"] == pytest.approx(here, rel=1e-7)
        for name, (first, second) in line["rates"].items():
            assert first > 1.95 and second > 2.9, (line["kind"], name)
