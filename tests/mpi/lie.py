"""Loss, gradient and Hessian of solves by Lie splitting on all ranks; rank 0 prints them as JSON, a line a solve."""

import importlib
import json

import npde_fem as npde

import numpy as np
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI

adjoint = importlib.import_module("adjoint")
COMM = MPI.COMM_WORLD
SCHEMES = {"explicit": npde.Lie(2), "implicit": npde.Lie(2, implicit=True)}
KINDS = ("fd", "fd-padded", "fem")


def make_problem(kind):
    """Diffusion, a source, and the flow of logistic growth, with parameters in each and in the boundary data."""
    d, s = npde.Parameter("d", lambda x: 0.05 + 0.02 * x[0], field=True), npde.Parameter("s", 0.3)
    r, K = npde.Parameter("r", 1.5), npde.Parameter("K", lambda x: 1 + 0.3 * x[1], field=True)
    g, b = npde.Parameter("g", 0.4), npde.Parameter("b", 1.2)

    def flow(u, x, t, dt):
        grown = u * ufl.exp(r * dt)
        return grown / (1 + (grown - u) / K) + 0.1 * dt * t

    equation = npde.NPDE(
        flux=lambda u, x, t: d * (1 + u**2) * ufl.grad(u),
        source=lambda u, x, t: s**2 * x[0] * (1 + t) - 0.1 * u,
        damping=b,
        flow=flow,
    )
    bcs = [npde.Dirichlet(lambda x, t: g**2 * (1 + t) * (1 + x[1]), adjoint.at(0, 0))]
    if kind == "fem":
        space = fem.functionspace(mesh.create_unit_square(COMM, 5, 4), ("Lagrange", 1))
        return npde.FEM(equation, space, bcs, mass="lumped")
    padding = "replicate" if kind == "fd-padded" else None
    return npde.FD(equation, npde.Grid(COMM, (7, 6), (0, 0), (1, 1), padding=padding), [] if padding else bcs)


def experiment(kind, scheme):
    """A loss of states on the way and at the end, by all parameters."""
    problem = make_problem(kind)
    height = npde.Parameter("height", 0.6)
    u0 = npde.Initial(lambda x: height**2 * (1 + x[0] * (1 - x[0])) * (1 + 0.2 * x[1]))

    def loss():
        made = SCHEMES[scheme]
        solution = npde.solve(problem, u0, t=(0, 0.12), dt=0.04, scheme=made, observe=[0.04, 0.12], progress=False)
        numbers = np.linspace(0.1, 0.4, 2 * len(adjoint.POINTS)).reshape(2, -1)
        return npde.misfit(solution, numbers, at=adjoint.POINTS, sigma=0.4) + npde.integral(
            solution, lambda u, x, t: u**3 * x[0]
        )

    return adjoint.Experiment(problem, loss)


def main():
    for kind in KINDS:
        for scheme in SCHEMES:
            found = adjoint.measure(experiment(kind, scheme))
            if COMM.rank == 0:
                print(json.dumps({"kind": kind, "scheme": scheme, **found}), flush=True)


if __name__ == "__main__":
    main()
