"""Save a state if there is none, and read it back; print what came of it."""

import sys
from pathlib import Path

import npde_fem as npde

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
problem = npde.FD(npde.physics.heat(1.0), npde.Grid(comm, (9, 8), (0, 0), (1, 1)))
values = problem.initial(lambda x: x[0] + 10 * x[1])
there = Path(sys.argv[1]).exists()
comm.Barrier()
if not there:
    npde.save(problem, values, sys.argv[1])
try:
    said = "same" if np.array_equal(npde.restore(problem, sys.argv[1]), values) else "different"
except ValueError as error:
    said = str(error)
if comm.rank == 0:
    print(said)
