"""An error of one rank inside a Writer's block; the job must end, not hang."""

import sys

import npde_fem as npde

from mpi4py import MPI

problem = npde.FD(npde.physics.heat(1.0), npde.Grid(MPI.COMM_WORLD, (9, 9), (0, 0), (1, 1)))
with npde.Writer(sys.argv[1], problem) as writer:

    def show(t, u):
        writer(t, u)
        if t > 0.3 and MPI.COMM_WORLD.rank == 1:
            raise RuntimeError("on one rank, on purpose")

    npde.solve(problem, 1.0, t=(0, 1), dt=0.1, observe=show)
