"""Integrals of one form that need different quadratures do not disturb each other."""

import npde_fem as npde
from npde_fem.solve import integrate
from npde_fem.solve.trajectory import Cotangents, Trajectory

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

MESH = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 4, 3)
SPACE = dolfinx.fem.functionspace(MESH, ("Lagrange", 1))


@pytest.mark.parametrize(
    "equation",
    [
        npde.physics.porous_fisher(),
        npde.NPDE(flux=lambda u, x, t: ufl.as_vector([u, 2 * u]), source=lambda u, x, t: u * (1 - u)),
    ],
    ids=["porous-fisher", "drift"],
)
def test_rates_are_the_sum_of_their_parts(equation):
    problem = npde.FEM(equation, SPACE)
    u = np.random.default_rng(0).random(problem.n_owned)
    parts = {part: np.zeros(problem.n_owned) for part in ("all", "flux", "source")}
    for part, out in parts.items():
        problem.rate(0.0, u, out, part)
    assert parts["all"] == pytest.approx(parts["flux"] + parts["source"], rel=1e-13, abs=1e-15)


def test_gradients_by_data_and_coefficient_of_one_boundary_condition():
    h, q = npde.Parameter("h", 1.3), npde.Parameter("q", 0.4)
    right = npde.Robin(h, q, lambda x: np.isclose(x[0], 1))
    problem = npde.FEM(npde.NPDE(flux=lambda u, x, t: ufl.grad(u)), SPACE, [right])
    random = np.random.default_rng(0)
    u0, weights = random.random(problem.n_owned), random.random(problem.n_owned)
    trajectory = Trajectory(problem)

    def functional(value):
        with problem.holding({"h": np.array(value)}):
            solution = integrate.solve(problem, u0, (0, 0.3), 0.1, recorder=trajectory, progress=False)
        return solution.values @ weights

    e = 1e-4
    expected = (functional(1.3 + e) - functional(1.3 - e)) / (2 * e)
    functional(1.3)
    found = trajectory.by([q, h]).adjoint(Cotangents(None, weights)).parameters["h"]
    assert found == pytest.approx(expected, rel=1e-6)
