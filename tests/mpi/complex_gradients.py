"""Rates of Taylor remainders of complex problems on all ranks, and gradients; rank 0 prints them as JSON lines.

See tests/test_complex_gradients.py. Every kind of complex control stands in every place where one may.
"""

import json
import sys
from pathlib import Path

import npde_fem as npde

sys.path.insert(0, str(Path(__file__).parent))
import adjoint
import numpy as np
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD
SCHEMES = ("crank-nicolson", "implicit-midpoint", "strang", "relaxation", "helmholtz")
POINTS = np.array([[0.21, 0.33], [0.5, 0.5], [0.77, 0.12]])


def discretise(kind, equation, bcs):
    if kind == "fd":
        return npde.FD(equation, npde.Grid(COMM, (7, 6), (0, 0), (1, 1)), bcs)
    space = fem.functionspace(mesh.create_unit_square(COMM, 6, 5), ("Lagrange", 1, equation.shape))
    return npde.FEM(equation, space, bcs, quadrature_degree=4)


def experiment(kind, scheme):
    """A loss of a Schroedinger or Helmholtz problem by its potential or index, source, boundary and initial data."""
    field = npde.Parameter("V", lambda x: 0.5 * x[0] ** 2 + 0.3, field=True)
    g, k = npde.Parameter("g", 0.7), npde.Parameter("k", 2.0)
    w, amplitude = npde.ComplexParameter("w", 0.3 - 0.1j), npde.ComplexParameter("amplitude", 0.5 + 0.2j)
    phase = npde.Parameter("phase", 0.4)
    two = scheme == "relaxation"

    def widen(value):
        return ufl.as_vector([value, abs(value) ** 2]) if two else value

    bcs = [
        npde.Robin(lambda x, t: w * 0.3, lambda x, t: widen(0.1 * amplitude.expression), adjoint.at(0, 1)),
        npde.Dirichlet(lambda x, t: widen(amplitude * ufl.exp(1j * phase) * (1 + x[1]) * (1 + t)), adjoint.at(0, 0)),
    ]
    if scheme == "helmholtz":
        index = lambda x, t: 1 + field + 0.1 * w  # noqa: E731
        source = lambda x, t: amplitude * ufl.exp(1j * phase * x[0])  # noqa: E731
        problem = discretise(kind, npde.physics.helmholtz(k, index, source), bcs)
        u0, arguments = 0.0, {}
    else:
        make = npde.physics.relaxed_schrodinger if two else npde.physics.schrodinger
        problem = discretise(kind, make(lambda x, t: field + w * ufl.exp(-(x[1] ** 2)) * (1 + t), g=g), bcs)
        u0 = npde.Initial(lambda x, t: widen(amplitude * ufl.exp(1j * x[0]) * (1 + x[1])))
        arguments = {"t": (0, 0.3), "dt": 0.05, "scheme": npde.scheme_named(scheme), "observe": [0.15, 0.3]}

    def loss():
        integrals = [lambda u, x, t: abs(u[0]) ** 2 if two else abs(u) ** 2]
        solution = npde.solve(problem, u0, **arguments, integrals=integrals)
        times = len(solution.times) or 1
        data = np.exp(1j * np.arange(3 * times * (2 if two else 1))).reshape((times, 3, 2) if two else (times, 3))
        entries = [[0.1 + 0.2j, 0.1] if two else 0.1 + 0.2j] * times
        gradient = lambda u, x, t: abs(ufl.grad(u)[0, 0] if two else ufl.grad(u)[0]) ** 2  # noqa: E731
        return (
            npde.misfit(solution, data, at=POINTS, sigma=0.5)
            + npde.misfit(solution, entries)
            + solution.integrals[0] ** 2
            + npde.integral(solution, gradient)
        )

    return adjoint.Experiment(problem, loss)


def main(schemes):
    for kind in adjoint.KINDS:
        for scheme in schemes or SCHEMES:
            one = experiment(kind, scheme)
            gradient = one.derivative()
            slopes = {n: one.dot(gradient, {n: one.direction(n)}) for n in one.controls}
            rates = dict(zip(one.controls, one.taylor([{n: one.direction(n)} for n in one.controls]), strict=True))
            if COMM.rank == 0:
                print(json.dumps({"kind": kind, "scheme": scheme, "slopes": slopes, "rates": rates}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
