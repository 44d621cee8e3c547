"""Gradients of waves in a box with a layer, by LU and by the shifted Laplacian; rank 0 prints them as JSON lines.

See tests/test_helmholtz.py.
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
CELLS = 12


def experiment(kind, preconditioner=None):
    """A loss by the index, the source's amplitude and phase, and the wavenumber."""
    index = npde.Parameter("n", lambda x: 1 + 0.1 * x[0], field=True)
    k, phase = npde.Parameter("k", 8.0), npde.Parameter("phase", 0.4)
    amplitude = npde.ComplexParameter("amplitude", 10 - 5j)

    def source(x, t):
        return amplitude * ufl.exp(1j * phase - 40 * ((x[0] - 0.4) ** 2 + (x[1] - 0.5) ** 2))

    equation = npde.physics.helmholtz(k, index, source, npde.PML((0, 0), (1, 1), 0.25, 1e-3))
    if kind == "fd":
        problem = npde.FD(equation, npde.Grid(COMM, (CELLS + 1, CELLS + 1), (0, 0), (1, 1)))
    else:
        space = fem.functionspace(mesh.create_unit_square(COMM, CELLS, CELLS), ("Lagrange", 1))
        problem = npde.FEM(equation, space, quadrature_degree=3)

    def loss():
        points = np.array([[0.61, 0.4], [0.35, 0.7]])
        solution = npde.solve(problem, preconditioner=preconditioner, integrals=[lambda u, x, t: abs(u) ** 2])
        return npde.misfit(solution, np.array([[0.1, 0.2j]]), at=points, sigma=0.5) + solution.integrals[0] ** 2

    return adjoint.Experiment(problem, loss)


def slopes(one):
    gradient = one.derivative()
    return {n: one.dot(gradient, {n: one.direction(n, size=0.02)}) for n in one.controls}


def rates(one):
    return dict(zip(one.controls, one.taylor([{n: one.direction(n, size=0.02)} for n in one.controls]), strict=True))


def main():
    for kind in adjoint.KINDS:
        one = experiment(kind)
        iterated = slopes(experiment(kind, npde.ShiftedLaplacian()))
        found = {"kind": kind, "slopes": slopes(one), "iterated": iterated, "rates": rates(one)}
        if COMM.rank == 0:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
