"""Loss, gradient and Hessian of a solve with outflow on all ranks; rank 0 prints them as JSON."""

import importlib
import json

import npde_fem as npde

import numpy as np
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI

adjoint = importlib.import_module("adjoint")
COMM = MPI.COMM_WORLD


def make_problem():
    """Two components that diffuse each along the other's gradient, and leave with a drift that is a field."""
    D, k = npde.Parameter("D", [[0.3, 0.1], [0.05, 0.2]]), npde.Parameter("k", [0.2, 0.4])
    w = npde.Parameter("w", lambda x: 1 + 0.2 * x[1], field=True)

    def flux(u, x, t):
        drift = ufl.as_vector([w, 0.3 * w * x[0]])
        first = (1 + k[0] * u[1] ** 2) * ufl.dot(D, ufl.grad(u[0])) - u[0] * drift
        second = D[1, 1] * ufl.grad(u[1]) + k[1] * u[1] * ufl.dot(D, ufl.grad(u[0])) - u[1] * drift
        return ufl.as_tensor([[first[0], first[1]], [second[0], second[1]]])

    space = fem.functionspace(mesh.create_unit_square(COMM, 5, 4), ("Lagrange", 1, (2,)))
    bcs = [npde.Dirichlet([1.0, 0.5], adjoint.at(0, 0)), npde.Outflow(lambda x: np.isclose(x[0], 1) | (x[1] > 0.99))]
    return npde.FEM(npde.NPDE(flux=flux, components=2), space, bcs, quadrature_degree=4)


def experiment(scheme=None):
    problem = make_problem()

    def loss():
        solution = npde.solve(problem, [0.2, 0.1], t=(0, 0.3), dt=0.1, scheme=scheme, progress=False)
        return npde.integral(solution, lambda u, x, t: u[0] ** 3 * x[1] + u[1] ** 2)

    return adjoint.Experiment(problem, loss)


if __name__ == "__main__":
    found = adjoint.measure(experiment())
    if COMM.rank == 0:
        print(json.dumps(found), flush=True)
