"""Equations with inertia: orders, energy, absorbing boundaries, restart, and exact derivatives."""

import importlib
import json
import sys
from functools import cache
from pathlib import Path

import npde_fem as npde
from npde_fem.discretize.matrices import Diagonal
from npde_fem.solve.integrate import solve as plain_solve
from npde_fem.solve.trajectory import Cotangents, Trajectory

import basix.ufl
import dolfinx_adjoint
import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("second_order")
wave_of = cases.adjoint.wave
COMM = MPI.COMM_WORLD
SECOND_ORDER = [npde.Leapfrog(), npde.Newmark()]
PI = np.pi


def name(thing):
    return getattr(thing, "name", str(thing))


def discretise(method, equation, n, bcs=(), dim=1):
    """By ``fd``, or ``p``/``gll`` and a degree: consistent and lumped elements with n nodes a side, on simple cells."""
    if method == "fd":
        return npde.FD(equation, npde.Grid(COMM, (n + 1,) * dim, (0,) * dim, (1,) * dim), bcs)
    degree = int(method[-1])
    if dim == 1:
        domain = mesh.create_unit_interval(COMM, n // degree)
    else:
        cell = mesh.CellType.quadrilateral if method.startswith("gll") else mesh.CellType.triangle
        domain = mesh.create_unit_square(COMM, n // degree, n // degree, cell)
    lumped = "lumped" if method.startswith("gll") else "consistent"
    return npde.FEM(equation, fem.functionspace(domain, ("Lagrange", degree)), bcs, mass=lumped)


def at(axis, value):
    return lambda x: np.isclose(x[axis], value)


# -- accuracy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SECOND_ORDER, ids=name)
@pytest.mark.parametrize("damping", [0.0, 1.0])
@pytest.mark.parametrize(
    ("method", "dim", "sizes"),
    [("fd", 1, (16, 32)), ("p1", 1, (16, 32)), ("p2", 1, (16, 32)), ("p4", 1, (8, 16)), ("fd", 2, (8, 16))]
    + [("gll1", 2, (8, 16)), ("gll2", 2, (16, 32)), ("gll4", 2, (8, 16)), ("gll4", 1, (8, 16))],
)
def test_standing_wave(method, dim, sizes, damping, scheme):
    """Order 2 in space (differences, degree 1), degree + 1 else, with steps that make the error in time fall alike."""
    order = 2 if method == "fd" else int(method[-1]) + 1
    frequency = np.sqrt(dim * PI**2 - damping**2 / 4)

    def exact(x, t):
        shape = ufl.cos(PI * x[0]) * (ufl.cos(PI * x[1]) if dim == 2 else 1)
        swing = ufl.cos(frequency * t) + damping / (2 * frequency) * ufl.sin(frequency * t)
        return shape * ufl.exp(-damping / 2 * t) * swing

    errors = []
    for n in sizes:
        problem = discretise(method, npde.physics.wave(1.0, damping), n, dim=dim)
        steps = round(16 * (n / 8) ** (order / 2)) * (2 if method == "p4" else 1)
        solution = npde.solve(problem, npde.Initial(exact), t=(0, 0.5), dt=0.5 / steps, scheme=scheme, rescue=None)
        errors.append(problem.error(solution.values, exact, 0.5)[0])
    assert np.log2(errors[0] / errors[1]) > order - 0.25, errors
    assert errors[1] < (2e-2 if order == 2 else 1e-3)


@pytest.mark.parametrize("scheme", SECOND_ORDER, ids=name)
@pytest.mark.parametrize("method", ["fd", "p1", "gll1"])
def test_moving_dirichlet_data(method, scheme):
    """Data that moves, with its velocity and acceleration, through consistent and lumped masses and the damping."""

    def exact(x, t):
        return ufl.sin(2 * t + x[0]) + t**2 * x[0]

    equation = npde.manufactured(npde.physics.telegraph(0.8, 0.7, 1.3), exact)
    velocity = npde.Initial(lambda x, t: 2 * ufl.cos(2 * t + x[0]) + 2 * t * x[0])
    errors = []
    for n in (16, 32):
        problem = discretise(method, equation, n, [npde.Dirichlet(exact)])
        solution = npde.solve(
            problem, npde.Initial(exact), t=(0.2, 1), dt=0.4 / n, scheme=scheme, velocity=velocity, rescue=None
        )
        errors.append(problem.error(solution.values, exact, 1.0)[0])
        derivative = problem.interpolate(velocity.value, 1.0)
        assert np.abs(solution.velocity_values - derivative).max() < 20 / n**2
        c = problem.constrained
        np.testing.assert_allclose(solution.velocity_values[c], derivative[c], rtol=0, atol=1e-9)
    assert np.log2(errors[0] / errors[1]) > 1.8, errors
    assert errors[1] < 1e-3


@pytest.mark.parametrize("scheme", SECOND_ORDER, ids=name)
@pytest.mark.parametrize("method", ["fd", "p1", "gll2"])
def test_wave_leaves_through_an_absorbing_boundary(method, scheme):
    """d'Alembert's travelling wave f(x - c t): half-way out, and gone."""
    c = 2.0

    def exact(x, t):
        return ufl.exp(-(((x[0] - 0.5 - c * t) / 0.08) ** 2))

    def velocity(x, t):
        return 2 * c * (x[0] - 0.5 - c * t) / 0.08**2 * exact(x, t)

    errors, left = [], []
    for n in (64, 128):
        problem = discretise(method, npde.physics.wave(c), n, [npde.Absorbing(c)])
        solution = npde.solve(
            problem,
            npde.Initial(exact),
            t=(0, 0.75),
            dt=0.125 / n,
            scheme=scheme,
            velocity=npde.Initial(velocity),
            observe=[0.25, 0.75],
            rescue=None,
        )
        errors.append(problem.error(solution.states[0], exact, 0.25)[1])
        left.append(np.abs(solution.values).max())
    assert np.log2(errors[0] / errors[1]) > 1.7 and errors[1] < 0.02, errors
    assert left[1] < 3e-3 and left[1] < left[0] / 3, left


@pytest.mark.parametrize("method", ["fd", "p1", "gll2"])
def test_absorbing_boundary_of_first_order(method):
    """A boundary that stores: ``int u dx + z int u ds`` is constant."""
    z = 0.6
    problem = discretise(method, npde.physics.heat(0.5), 16, [npde.Absorbing(z)])
    start = problem.initial(lambda x: np.exp(-20 * (x[0] - 0.1) ** 2))
    end = npde.solve(problem, start, t=(0, 0.2), dt=0.01, rescue=None).values
    ends = np.isclose(np.abs(problem.coordinates()[:, 0] - 0.5), 0.5)
    before, after = (problem.total(u)[0] + z * u[ends].sum() for u in (start, end))
    assert after == pytest.approx(before, rel=1e-9)
    assert abs(problem.total(end)[0] - problem.total(start)[0]) > 1e-3


@pytest.mark.parametrize("method", ["fd", "p1"])
def test_crank_nicolson_is_the_trapezoidal_rule(method):
    """Newmark(1/4, 1/2) to the bit; and that of the system of first order, to the solver's tolerance."""
    c, b = 0.9, 0.8
    problem = discretise(method, npde.physics.wave(c, b), 16)

    def start(x):
        return np.exp(-30 * (x[0] - 0.4) ** 2)

    def push(x):
        return np.sin(3 * x[0])

    options = {"t": (0, 1), "dt": 0.05, "rescue": None}
    one = npde.solve(problem, start, velocity=push, **options)
    two = npde.solve(problem, start, velocity=push, scheme=npde.Newmark(0.25, 0.5), **options)
    np.testing.assert_array_equal(one.values, two.values)
    system = npde.NPDE(
        flux=lambda w, x, t: ufl.as_matrix([[0.0], [c**2 * ufl.grad(w)[0, 0]]]),
        source=lambda w, x, t: ufl.as_vector([w[1], -b * w[1]]),
        components=2,
    )
    if method == "fd":
        pair = npde.FD(system, problem.grid)
    else:
        pair = npde.FEM(system, fem.functionspace(problem.mesh, ("Lagrange", 1, (2,))))
    first = npde.solve(pair, lambda x: np.stack([start(x), push(x)]), **options).values.reshape(-1, 2)
    np.testing.assert_allclose(one.values, first[:, 0], rtol=0, atol=1e-8)
    np.testing.assert_allclose(one.velocity_values, first[:, 1], rtol=0, atol=1e-7)


def energy(problem, solution):
    """Kinetic and elastic energy of a linear wave at the observed times; and the products a . M_A a there."""
    state, force, momentum, found = problem.new_state(), *np.zeros((2, problem.n_owned)), []
    for u, v in zip(solution.states, solution.velocities, strict=True):
        problem.load(u, state)
        problem.rate(0.0, state, force)
        problem.mass_times(v, momentum, damping=0.0, inertia=1.0)
        total = 0.5 * (v @ momentum - u @ force)
        problem.solve_mass(force, momentum, damping=0.0, inertia=1.0)
        found.append((total, force @ momentum))
    return np.transpose(found)


@pytest.mark.parametrize(("method", "cfl"), [("fd", 0.9), ("gll2", 0.4)])
def test_energy_of_leapfrog_stays_in_its_range(method, cfl):
    problem, steps = discretise(method, npde.physics.wave(), 16), 10_000
    times = (np.arange(1, steps + 1) * cfl / 16).tolist()
    solution = npde.solve(
        problem,
        lambda x: np.exp(-30 * (x[0] - 0.4) ** 2),
        t=(0, times[-1]),
        dt=cfl / 16,
        scheme=npde.Leapfrog(),
        observe=times,
        rescue=None,
    )
    found, product = energy(problem, solution)
    first, last = found[:1000], found[-1000:]
    assert len(solution.steps) == steps
    assert np.ptp(first) > 1e-3 * first.mean()  # it swings, so the comparison means something
    assert last.max() <= first.max() + 0.2 * np.ptp(first) and last.min() >= first.min() - 0.2 * np.ptp(first)
    # The energy that leapfrog conserves exactly (Hairer, Lubich and Wanner 2003, Acta Numerica 12, section 4).
    conserved = found - (cfl / 16) ** 2 / 8 * product
    np.testing.assert_allclose(conserved, conserved[0], rtol=1e-10)


@pytest.mark.parametrize("method", ["fd", "p1", "gll2"])
def test_newmark_conserves_energy(method):
    problem = discretise(method, npde.physics.wave(), 16)
    times = np.linspace(0.1, 50, 500).tolist()
    solution = npde.solve(
        problem, lambda x: np.exp(-30 * (x[0] - 0.4) ** 2), t=(0, 50), dt=0.1, observe=times, rescue=None
    )
    found, _ = energy(problem, solution)
    np.testing.assert_allclose(found, found[0], rtol=1e-8)


def test_lumped_mass_is_diagonal():
    """By the rule of Gauss and Lobatto at the nodes: no solver is made, and row sums are those of the exact matrix."""
    for cell, degree in ((mesh.CellType.quadrilateral, 4), (mesh.CellType.hexahedron, 2)):
        make = mesh.create_unit_square if cell == mesh.CellType.quadrilateral else mesh.create_unit_cube
        domain = make(COMM, *[2] * (2 if make is mesh.create_unit_square else 3), cell)
        space = fem.functionspace(domain, ("Lagrange", degree))
        bcs = [npde.Absorbing(lambda x: 1 + x[0])]
        lumped, exact = (npde.FEM(npde.physics.wave(1.0, 0.5), space, bcs, mass=m) for m in ("lumped", "consistent"))
        assert isinstance(lumped._mass("mass"), Diagonal) and isinstance(lumped._mass("inertia"), Diagonal)
        ones, one, two = np.ones(lumped.n_owned), *np.zeros((2, lumped.n_owned))
        for weights in ({}, {"damping": 0.3, "inertia": 1.0}):
            lumped.mass_times(ones, one, **weights)
            exact.mass_times(ones, two, **weights)
            np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-15)
    element = basix.ufl.element("Lagrange", "quadrilateral", 3, lagrange_variant=basix.LagrangeVariant.equispaced)
    space = fem.functionspace(mesh.create_unit_square(COMM, 2, 2, mesh.CellType.quadrilateral), element)
    with pytest.raises(ValueError, match="Gauss, Lobatto and Legendre"):
        npde.FEM(npde.physics.wave(), space, mass="lumped")


@pytest.mark.parametrize("scheme", SECOND_ORDER, ids=name)
@pytest.mark.parametrize("method", ["fd", "p1", "gll2"])
def test_system_of_waves(method, scheme):
    """Two waves with a matrix of inertia and an absorbing boundary for one: as either alone."""

    def system(inertia, components=2):
        return npde.NPDE(flux=lambda u, x, t: ufl.grad(u), inertia=inertia, damping=0.2, components=components)

    def start(x):
        return np.exp(-30 * (x[0] - 0.6) ** 2)

    options = {"t": (0, 0.6), "dt": 0.02, "scheme": scheme, "rescue": None}
    alone = [
        npde.solve(discretise(method, system(a, 1), 16, bcs), start, velocity=1.0, **options).values
        for a, bcs in ((1.0, [npde.Absorbing(1.0, 0.1)]), (2.0, []))
    ]
    one = discretise(method, system(1.0, 1), 16)
    bcs = [npde.Absorbing(1.0, 0.1, component=0)]
    if method == "fd":
        both = npde.FD(system([[1, 0], [0, 2]]), one.grid, bcs)
    else:
        degree, mass = int(method[-1]), "lumped" if method.startswith("gll") else "consistent"
        space = fem.functionspace(one.mesh, ("Lagrange", degree, (2,)))
        both = npde.FEM(system([[1, 0], [0, 2]]), space, bcs, mass=mass)
    found = npde.solve(both, lambda x: np.stack([start(x)] * 2), velocity=[1.0, 1.0], **options).values.reshape(-1, 2)
    for k in (0, 1):
        np.testing.assert_allclose(found[:, k], alone[k], rtol=0, atol=1e-8)


# -- going on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SECOND_ORDER, ids=name)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_restart(kind, scheme, tmp_path):
    """State and velocity on disk are enough to go on as if nothing had been."""
    problem, (u0, velocity) = cases.make_problem(kind), cases.starts()
    options = {"dt": 0.05, "scheme": scheme, "rescue": None}
    whole = npde.solve(problem, u0, t=(0, 0.6), velocity=velocity, observe=[0.3, 0.6], **options)
    half = npde.solve(problem, u0, t=(0, 0.3), velocity=velocity, **options)
    np.testing.assert_array_equal(half.velocity_values, whole.velocities[0])
    npde.save(problem, [half.values, half.velocity_values], tmp_path / "half")
    u, v = npde.restore(problem, tmp_path / "half")
    rest = npde.solve(problem, u, t=(0.3, 0.6), velocity=v, **options)
    tolerance = 1e-12 if kind != "fem" and scheme == npde.Leapfrog() else 1e-8
    np.testing.assert_allclose(rest.values, whole.values, rtol=0, atol=tolerance)
    np.testing.assert_allclose(rest.velocity_values, whole.velocity_values, rtol=0, atol=10 * tolerance)
    again = npde.solve(problem, half.u, t=(0.3, 0.6), velocity=whole.velocity_at(0), **options)
    np.testing.assert_array_equal(again.values, rest.values)


def test_failure_leaves_state_and_velocity(tmp_path):
    """An unstable leapfrog (the limit depends on the state) ends in an error that names the file."""
    equation = npde.NPDE(flux=lambda u, x, t: (1 + u**4) * ufl.grad(u), inertia=1.0, damping=0.0)
    problem, path = discretise("fd", equation, 16), tmp_path / "last"
    with pytest.raises(npde.SolveError, match="NaN or infinite") as caught:
        npde.solve(problem, 0.0, t=(0, 5), dt=0.05, scheme=npde.Leapfrog(), velocity=lambda x: 9 * x[0], rescue=path)
    u, v = npde.restore(problem, path)
    np.testing.assert_array_equal(u, caught.value.values)
    assert np.all(np.isfinite(v)) and np.abs(v).max() > 1


# -- derivatives -------------------------------------------------------------------------------------------------


@cache
def experiment(kind, scheme):
    return cases.experiment(kind, scheme)


def close(found, expected, tolerance=1e-8):
    assert found.keys() == expected.keys()
    for label, values in found.items():
        scale = np.abs(expected[label]).max()
        np.testing.assert_allclose(values, expected[label], rtol=0, atol=tolerance * scale, err_msg=label)
        assert scale > 0, label


@pytest.mark.parametrize("scheme", cases.SCHEMES)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_taylor(kind, scheme):
    one = experiment(kind, scheme)
    names = list(one.controls)
    for label, (first, second) in zip(names, one.taylor([{n: one.direction(n)} for n in names]), strict=True):
        assert first > 1.95, f"{label}: gradient, rate {first}"
        assert second > 2.9, f"{label}: Hessian, rate {second}"


@pytest.mark.parametrize("scheme", cases.SCHEMES)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_differences(kind, scheme):
    """Gradient and Hessian against central differences: a small part that is missing shows here."""
    one, e, noise = experiment(kind, scheme), 4e-3, 1e-11
    gradient = one.derivative()
    for label in one.controls:
        along = {label: one.direction(label)}
        slope = (one.value(along, e) - one.value(along, -e)) / (2 * e)
        assert one.dot(gradient, along) == pytest.approx(slope, rel=3e-5, abs=noise / e), label
    one.value({}, 0.0)
    one.derivative()
    along = {label: one.direction(label) for label in one.controls}
    product, slopes = one.hessian(along), []
    for step in (e, -e):
        one.value(along, step)
        slopes.append(one.derivative())
    one.value({}, 0.0)
    close(product, {label: (slopes[0][label] - slopes[1][label]) / (2 * e) for label in product}, 3e-5)


@pytest.mark.parametrize("scheme", cases.SCHEMES)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_checkpoints_change_nothing(kind, scheme):
    one, few = experiment(kind, scheme), cases.experiment(kind, scheme, checkpoints=2)
    assert float(few.loss) == pytest.approx(float(one.loss), rel=1e-14)
    # Steps that are taken again find the Jacobian of another one, and agree to the tolerance of Newton's method.
    tolerance = 1e-12 if kind != "fem" and scheme == "leapfrog" else 1e-8
    close(few.derivative(), one.derivative(), tolerance)
    along = {label: one.direction(label) for label in one.controls}
    close(few.hessian(along), one.hessian(along), 10 * tolerance)


def test_on_two_ranks(mpirun):
    experiments = [(kind, scheme) for kind in cases.KINDS for scheme in cases.SCHEMES]
    lines = [json.loads(line) for line in mpirun(2, "second_order.py", timeout=300).stdout.splitlines()]
    assert [(line.pop("kind"), line.pop("scheme")) for line in lines] == experiments
    for (kind, scheme), line in zip(experiments, lines, strict=True):
        rates, expected = line.pop("rates"), cases.adjoint.measure(experiment(kind, scheme))
        assert rates[0] > 1.95 and rates[1] > 2.9, (kind, scheme, rates)
        for what, values in line.items():
            scale = np.abs(expected[what]).max()
            np.testing.assert_allclose(
                values, expected[what], rtol=1e-8, atol=1e-9 * scale, err_msg=f"{kind} {scheme} {what}"
            )


def function_on(problem, values, label):
    """A function that may be a control."""
    if isinstance(problem, npde.FD):
        return problem.function(values, label)
    made = dolfinx_adjoint.Function(problem.space, name=label)
    made.x.array[:] = values
    return made


@pytest.mark.parametrize("scheme", ["leapfrog", "crank-nicolson"])
@pytest.mark.parametrize("kind", ["gll", "fd"])
def test_functions_as_initial_data_and_a_solve_in_two_parts(kind, scheme):
    """Stopping half-way, and going on from ``solution.u`` and ``solution.velocity``, changes no derivative."""
    problem = cases.make_problem(kind)
    where, made = problem.coordinates(), cases.SCHEMES[scheme]
    u0 = function_on(problem, 0.3 + 0.1 * wave_of(where, 1), "u0")
    v0 = function_on(problem, 0.5 * wave_of(where, 2), "v0")
    options = {"dt": 0.05, "scheme": made}

    def whole():
        return npde.misfit(npde.solve(problem, u0, t=(0, 0.3), velocity=v0, **options), 0.2) * 10

    def parts():
        half = npde.solve(problem, u0, t=(0, 0.3), velocity=v0, observe=[0.15, 0.3], **options)
        rest = npde.solve(problem, half.at(0), t=(0.15, 0.3), velocity=half.velocity_at(0), **options)
        return npde.misfit(rest, 0.2) * 10

    controls = [u0, v0, *problem.parameters.values()]
    one, two = (cases.adjoint.Experiment(problem, loss, controls) for loss in (whole, parts))
    close(two.derivative(), one.derivative(), 1e-7)
    along = {label: one.direction(label) for label in one.controls}
    close(two.hessian(along), one.hessian(along), 1e-7)
    first, second = two.taylor([{label: two.direction(label) for label in ("u0", "v0")}])[0]
    assert first > 1.95 and second > 2.9


@pytest.mark.parametrize("scheme", cases.SCHEMES)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_adjoint_is_the_transposed_tangent(kind, scheme):
    """Along all controls and the initial data together, for states and velocities, with steps of two lengths."""
    problem, (u0, velocity) = cases.make_problem(kind), cases.starts()
    problem.meet([u0, velocity], [])
    where, made = problem.coordinates(), cases.SCHEMES[scheme]
    recorder = Trajectory(problem, u0, [cases.density], velocity=velocity)
    with pytest.warns(UserWarning, match="does not divide"):
        plain_solve(
            problem,
            u0,
            t=(0.0, 0.3),
            dt=0.05,
            scheme=made,
            observe=[0.13, 0.3],
            velocity=velocity,
            recorder=recorder,
            rescue=None,
        )
    controls = tuple(problem.parameters.values())
    trajectory = recorder.by(controls)
    places = cases.adjoint.places
    delta = {p.name: wave_of(places(problem, p), 2) if p.is_field else np.ones(p.ufl_shape) for p in controls}
    numbers = [np.stack([wave_of(where, k) for k in (i, i + 1)]) for i in (1, 4)]
    by = Cotangents(numbers[0], wave_of(where, 3), [0.7], numbers[1], wave_of(where, 6))
    u, v = wave_of(where, 7), wave_of(where, 8)
    change, gradient = trajectory.tangent(delta, u, v), trajectory.adjoint(by)
    forwards = np.vdot(by.states, change.states) + by.final @ change.final + 0.7 * change.integrals[0]
    forwards += np.vdot(by.velocities, change.velocities) + by.final_velocity @ change.final_velocity
    backwards = sum(np.vdot(gradient.parameters[n], d) for n, d in delta.items())
    assert backwards + gradient.initial @ u + gradient.velocity @ v == pytest.approx(forwards, rel=1e-9)
