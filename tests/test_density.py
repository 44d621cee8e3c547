"""The filter and the projection of densities: limits, exact solutions, and gradients through two solves."""

import npde_fem as npde

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD


def maker(kind, n):
    """Makes problems on the unit square, on one mesh by FEM of degree two or on one grid by FD."""
    if kind == "fd":
        grid = npde.Grid(COMM, (n + 1, n + 1), (0, 0), (1, 1))
        return lambda equation, conditions=(): npde.FD(equation, grid, conditions)
    mesh = dolfinx.mesh.create_unit_square(COMM, n // 2, n // 2, dolfinx.mesh.CellType.quadrilateral)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 2))
    return lambda equation, conditions=(): npde.FEM(equation, space, conditions)


# -------------------------------------------------------------------------------------------------- the projection


@pytest.mark.parametrize("eta", [0.3, 0.5])
def test_projection_keeps_its_ends_and_order(eta):
    density = np.linspace(0, 1, 101)
    for beta in (1e-3, 1.0, 8.0, 64.0):
        projected = npde.projection(density, beta, eta)
        assert projected[0] == pytest.approx(0, abs=1e-15) and projected[-1] == pytest.approx(1)
        assert np.all(np.diff(projected) >= 0)


def test_projection_is_the_identity_or_a_step_in_the_limits():
    density = np.linspace(0, 1, 101)
    np.testing.assert_allclose(npde.projection(density, 1e-3, 0.3), density, atol=1e-6)
    away = abs(density - 0.3) > 0.02
    np.testing.assert_allclose(npde.projection(density, 1000.0, 0.3)[away], (density > 0.3)[away], atol=1e-12)


def test_projection_is_the_same_in_ufl():
    beta = npde.Parameter("beta", 6.0)
    for density in (0.1, 0.45, 0.9):
        in_ufl = npde.projection(ufl.as_ufl(density), beta, 0.4)
        assert in_ufl({beta: 6.0}) == pytest.approx(npde.projection(density, 6.0, 0.4), rel=1e-14)


# ------------------------------------------------------------------------------------------------------ the filter


@pytest.mark.parametrize("kind", ["fem", "fd"])
def test_filter_damps_a_wave_as_it_should_and_keeps_the_total(kind):
    radius, wave = 0.4, 2 * np.pi
    density = npde.Parameter("rho", lambda x: 0.5 + 0.5 * np.cos(wave * x[0]), field=True, bounds=(0.0, 1.0))
    problem = maker(kind, 32)(npde.density_filter(density, radius))
    smooth = npde.solve(problem)
    share = 1 / (1 + radius**2 / 12 * wave**2)
    expected = problem.initial(lambda x: 0.5 + 0.5 * share * np.cos(wave * x[0]))
    np.testing.assert_allclose(smooth.values, expected, atol={"fem": 1e-4, "fd": 1e-3}[kind])
    assert problem.total(smooth.values)[0] == pytest.approx(0.5, rel=1e-8)
    problem.set_field(density, np.full(problem.field_size(density), 0.25))
    np.testing.assert_allclose(npde.solve(problem).values, 0.25, rtol=1e-8)


@pytest.mark.parametrize("kind", [pytest.param("fem", marks=pytest.mark.real_scalars("dolfinx_adjoint")), "fd"])
def test_derivatives_through_filter_projection_and_helmholtz(kind):
    density = npde.Parameter("rho", lambda x: 0.5 + 0.3 * np.sin(4 * x[0]) * np.cos(3 * x[1]), field=True)
    filtered = npde.Parameter("filtered", 0.5, field=True)
    beta = npde.Parameter("beta", 4.0)
    light = npde.physics.helmholtz(6.0, lambda x: ufl.sqrt(1 + 1.25 * npde.projection(filtered, beta)))
    shining = npde.Robin(-6j, lambda x, t, n: 6j * (n[0] - 1) * ufl.exp(6j * x[0]))
    make = maker(kind, 12)
    waves, filters = make(light, [shining]), make(npde.density_filter(density, 0.3))

    def loss(smooth):
        return npde.integral(
            npde.solve(waves, parameters={filtered: smooth.u}), lambda u, x, t: x[0] ** 4 * abs(u) ** 2
        )

    reduced = npde.PDEConstrainedProblem(filters, loss, density)
    here, direction = filters.field_values(density), filters.initial(lambda x: np.cos(5 * x[0] + 2 * x[1]))
    start = reduced.loss()
    slope = reduced.gradient()["rho"] @ direction
    curve = reduced.hessian_product({"rho": direction})["rho"] @ direction
    first, second = [], []
    for step in (0.02, 0.01, 0.005):
        filters.set_field(density, here + step * direction)
        change = reduced.loss() - start - step * slope
        first.append(abs(change))
        second.append(abs(change - step**2 / 2 * curve))
    assert slope != 0 and curve != 0
    assert np.log2(first[1] / first[2]) > 1.95
    assert np.log2(second[1] / second[2]) > 2.9


def test_bad_input_is_named():
    number, vector = npde.Parameter("k", 1.0), npde.Parameter("v", field=True, shape=(2,))
    for wrong in (number, vector, 1.0):
        with pytest.raises(TypeError, match="scalar Parameter with field=True"):
            npde.density_filter(wrong, 0.1)
    for radius in (0, -1.0, np.nan, np.inf, "wide"):
        with pytest.raises(ValueError, match="radius must be a positive number"):
            npde.density_filter(npde.Parameter("rho", 0.5, field=True), radius)
