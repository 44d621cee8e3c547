"""Eigenmodes and a ground state on any number of ranks, written by coordinates to a file."""

import sys

import npde_fem as npde

import dolfinx
import numpy as np
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD
EDGE = [npde.Dirichlet(0.0)]


def sorted_values(problem, values):
    """Values of all ranks in the order of their coordinates, (nodes, components), on every rank."""
    parts = COMM.allgather((problem.coordinates(), values.reshape(-1, problem.components)))
    x, whole = (np.concatenate(part) for part in zip(*parts, strict=True))
    return whole[np.lexsort(np.round(x, 9).T)]


def harmonic(x, t):
    return ufl.dot(x, x) / 2


found = {}
square = dolfinx.mesh.create_unit_square(COMM, 6, 6)
line = dolfinx.mesh.create_interval(COMM, 24, (-6.0, 6.0))
well = npde.physics.schrodinger(harmonic)
drift = npde.NPDE(flux=lambda u, x, t: ufl.grad(u) - 4 * ufl.as_vector([u]))
lossy = npde.physics.schrodinger(lambda x, t: (1 - 0.2j) * x[0] ** 2 / 2)
problems = {
    "heat": lambda: npde.FEM(npde.physics.heat(), dolfinx.fem.functionspace(square, ("Lagrange", 2)), EDGE),
    "well": lambda: npde.FD(well, npde.Grid(COMM, (15, 15), (-5, -5), (5, 5)), EDGE),
    "drift": lambda: npde.FEM(drift, dolfinx.fem.functionspace(line, ("Lagrange", 2)), EDGE),
    "lossy": lambda: npde.FEM(lossy, dolfinx.fem.functionspace(line, ("Lagrange", 2)), EDGE),
}
for name, make in problems.items():
    if sys.argv[2] not in (name, "all"):
        continue
    problem = make()
    modes = npde.eigenmodes(problem, 4)
    assert np.all(modes.residuals < 1e-9), (name, modes.residuals)
    found[f"{name} values"] = modes.values
    found[f"{name} modes"] = np.array([sorted_values(problem, mode) for mode in modes.modes])
if sys.argv[2] == "all":
    space = dolfinx.fem.functionspace(line, ("Lagrange", 2))
    trap = npde.FEM(npde.physics.schrodinger(harmonic, g=30.0), space, EDGE)
    ground = npde.ground_state(trap, lambda x: np.exp(-(x[0] ** 2)))
    found["mu"], found["ground"] = np.array([ground.mu]), sorted_values(trap, ground.values)
if COMM.rank == 0:
    np.savez(sys.argv[1], **found)
