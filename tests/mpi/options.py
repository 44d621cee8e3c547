"""Solve under the PETSc options of the command line; rank 0 prints which solvers were used and what was warned of."""

import json
import sys
import warnings

import npde_fem as npde
from npde_fem.solve import integrate, newton, steppers

import numpy as np
import ufl
from mpi4py import MPI
from petsc4py import PETSc

COMM = MPI.COMM_WORLD
PETSc.Options().insertString(" ".join(sys.argv[1:]))


class Watched(newton.Newton):
    """Notes what it used when it ends."""

    used, rtol = {}, 0.0

    def give_back(self):
        ksp = self.snes.ksp
        Watched.used = {"ksp": ksp.getType(), "pc": ksp.getPC().getType()}
        Watched.rtol = self.snes.getTolerances()[0]
        super().give_back()


integrate.Newton = steppers.Newton = Watched


def report(equation, bcs, **how):
    problem = npde.FD(equation, npde.Grid(COMM, (12, 11), (0, 0), (1, 1)), bcs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        solution = npde.solve(problem, lambda x: np.sin(3 * x[0]) ** 2 + x[1], rescue=None, **how)
    told = [str(w.message) for w in caught if w.category is RuntimeWarning]
    return {**Watched.used, "warnings": told}, float(problem.total(solution.values)[0])


sink = npde.NPDE(flux=lambda u, x, t: (1 + x[0]) * ufl.grad(u), source=lambda u, x, t: -u)
drift = npde.NPDE(flux=lambda u, x, t: ufl.grad(u) - u * ufl.as_vector([1, 2]))
still = npde.NPDE(flux=sink.flux, source=lambda u, x, t: 1 - u**3, damping=0)
found, values = {}, []
for name, equation, how in (
    ("symmetric", sink, {"t": (0, 0.2), "dt": 0.1}),
    ("drift", drift, {"t": (0, 0.2), "dt": 0.1}),
    ("stationary", still, {}),
):
    found[name], value = report(equation, [npde.Dirichlet(0.5, lambda x: np.isclose(x[0], 0))], **how)
    values.append(value)
found["snes_rtol"] = Watched.rtol
found["values"] = values
if COMM.rank == 0:
    print(json.dumps(found))
