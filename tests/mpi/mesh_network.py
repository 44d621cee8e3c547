"""A mesh that is spread over ranks carries no network."""

import npde_fem as npde

import dolfinx
from mpi4py import MPI

mesh = dolfinx.mesh.create_unit_square(MPI.COMM_WORLD, 4, 4)
try:
    npde.networks.mesh_network(mesh, channels=1, steps=1)
except ValueError as error:
    print(f"rank {MPI.COMM_WORLD.rank}: {error}", flush=True)
