"""Fit a scratch assay read from a file, by both methods; rank 0 saves estimates and errors to the .npz file named."""

import sys

from npde_fem import assay
from npde_fem.datasets import read_scratch_assay

import numpy as np
from mpi4py import MPI

data, out = sys.argv[1:]
measured = read_scratch_assay(data, comm=MPI.COMM_WORLD)
results = {}
for method in assay.METHODS:
    fit = assay.fit(measured, "porous-fisher", method, dt=4.0)
    estimates = fit.parameters.values()
    results[method] = np.array([[e.value, e.stderr] for e in estimates])
    results[f"{method}_states"] = fit.states
    for mine in (results[method], fit.states, fit.loss):
        assert np.ptp(MPI.COMM_WORLD.allgather(mine), axis=0).max() == 0, "ranks differ"
if MPI.COMM_WORLD.rank == 0:
    np.savez(out, **results)
