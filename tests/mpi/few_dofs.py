"""The gradient of a problem of four dofs, by a number and a field, and a wave on three; rank 0 prints their sum."""

import npde_fem as npde

import numpy as np
import pyadjoint
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD
space = fem.functionspace(dmesh.create_unit_square(COMM, 1, 1), ("Lagrange", 1))
diffusion, rate = npde.Parameter("D", 0.1, field=True), npde.Parameter("r", 1.5)
problem = npde.FEM(npde.physics.fisher_kpp(diffusion, rate), space)
pyadjoint.continue_annotation()
solution = npde.solve(problem, lambda x: 0.2 + 0.3 * x[0], t=(0, 0.2), dt=0.1, observe=[0.1, 0.2])
functional = npde.misfit(solution, [0.1, 0.2]) + npde.misfit(solution, [[0.1], [0.2]], at=[(0.4, 0.3)])
pyadjoint.pause_annotation()
reduced = pyadjoint.ReducedFunctional(functional, [pyadjoint.Control(diffusion), pyadjoint.Control(rate)])
by_diffusion, by_rate = reduced.derivative()
total = COMM.allreduce(float(np.sum(by_diffusion.value))) + float(by_rate)
string = npde.FEM(npde.physics.wave(), fem.functionspace(dmesh.create_unit_interval(COMM, 2), ("Lagrange", 1)))
moved = npde.solve(string, lambda x: x[0] ** 2, velocity=0.0, t=(0, 0.3), dt=0.1)
total += COMM.allreduce(float(np.sum(moved.values**2)))
if COMM.rank == 0:
    print(total)
