"""A function given to ``observe`` that raises on one rank only, uncaught: the job must end, not hang."""

import npde_fem as npde

from mpi4py import MPI

comm = MPI.COMM_WORLD


def watch(t, u):
    if t > 0.1 and comm.rank == comm.size - 1:
        raise ArithmeticError("the callback tripped")


problem = npde.FD(npde.physics.heat(), npde.Grid(comm, (9, 9), (0, 0), (1, 1)))
npde.solve(problem, 1.0, t=(0, 1), dt=0.1, observe=watch)
