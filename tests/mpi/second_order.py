"""Gradients and Hessian products of waves on all ranks; rank 0 prints them as JSON, a line an experiment.

Arguments: names of schemes, all by default. See tests/test_second_order.py, and adjoint.py for the experiments.
"""

import importlib
import json
import sys
from pathlib import Path

import npde_fem as npde

import numpy as np
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parent))
adjoint = importlib.import_module("adjoint")

COMM = MPI.COMM_WORLD
END, STEPS = 0.3, 6
KINDS = ("fem", "gll", "fd")
FIRST = {"a": 0.8, "g": 0.3, "z": 0.7, "q": 0.2, "height": 0.4, "push": 0.6}
SCHEMES = {
    "leapfrog": npde.Leapfrog(),
    "crank-nicolson": npde.CrankNicolson(),
    "newmark(0.3, 0.6)": npde.Newmark(0.3, 0.6),
}


def make_problem(kind, comm=COMM):
    """A nonlinear, damped wave with parameters in every term and in all boundary data."""
    c = npde.Parameter("c", lambda x: 0.5 + 0.1 * x[0], field=True)
    b = npde.Parameter("b", lambda x: 0.4 + 0.3 * x[1], field=True)
    A = npde.Parameter("A", lambda x: 1 + 0.2 * x[0] * x[1], field=True)
    a, g, z, q, *_ = (npde.Parameter(n, FIRST[n]) for n in FIRST)
    equation = npde.NPDE(
        flux=lambda u, x, t: c**2 * (1 + 0.3 * u) * ufl.grad(u),
        source=lambda u, x, t: a**2 * ufl.sin(9 * t) * x[0] - 2 * u**3,
        damping=lambda x: b**2,
        inertia=lambda x: A,
    )
    bcs = [
        npde.Dirichlet(lambda x, t: g**2 * (1 + t + ufl.sin(5 * t)) * (1 + x[1]) * A, adjoint.at(0, 0)),
        npde.Absorbing(lambda x, t, n: z**2 * c, lambda x, t: q**2 * x[1] * ufl.cos(3 * t), adjoint.at(0, 1)),
    ]
    if kind == "fd":
        return npde.FD(equation, npde.Grid(comm, (6, 5), (0, 0), (1, 1)), bcs)
    if kind == "gll":
        quads = mesh.create_unit_square(comm, 2, 2, mesh.CellType.quadrilateral)
        return npde.FEM(equation, fem.functionspace(quads, ("Lagrange", 2)), bcs, mass="lumped", quadrature_degree=4)
    triangles = mesh.create_unit_square(comm, 4, 3)
    return npde.FEM(equation, fem.functionspace(triangles, ("Lagrange", 1)), bcs, quadrature_degree=3)


def starts():
    """Initial state and velocity, with a parameter each."""
    height, push = npde.Parameter("height", FIRST["height"]), npde.Parameter("push", FIRST["push"])
    u0 = npde.Initial(lambda x, t: height**2 * (1 + x[0] * (1 - x[0])) * (1 + 0.2 * x[1]))
    return u0, npde.Initial(lambda x, t: push**2 * x[0] * (1 + x[1]))


def density(u, x, t):
    """A density to be integrated in space and time."""
    return u**3 * (1 + t) * x[0] + u


def loss_of(solution):
    """A sum of every kind of functional."""
    numbers = np.linspace(0.1, 0.4, 2 * len(adjoint.POINTS)).reshape(2, -1)
    return (
        npde.misfit(solution, numbers, at=adjoint.POINTS, sigma=0.4)
        + 5 * solution.integrals[0] ** 2
        + npde.integral(solution, lambda u, x, t: 4 * u**3)
    )


def solved(problem, u0, velocity, scheme, **options):
    return npde.solve(
        problem,
        u0,
        t=(0, END),
        dt=END / STEPS,
        velocity=velocity,
        scheme=SCHEMES[scheme],
        observe=[END / 2, END],
        integrals=[density],
        **options,
    )


def experiment(kind, scheme, **options):
    """The loss of a solve by all parameters, those of the initial data too."""
    problem, (u0, velocity) = make_problem(kind), starts()
    return adjoint.Experiment(problem, lambda: loss_of(solved(problem, u0, velocity, scheme, **options)))


def main():
    for kind in KINDS:
        for scheme in sys.argv[1:] or SCHEMES:
            found = adjoint.measure(experiment(kind, scheme))
            if COMM.rank == 0:
                print(json.dumps({"kind": kind, "scheme": scheme, **found}), flush=True)


if __name__ == "__main__":
    main()
