"""Write what recurrent networks do as equations, on any number of ranks, to a file."""

import sys

from npde_fem.networks.kinds.rnn import rnn, wave_rnn
from npde_fem.networks.lattice import Lattice

import numpy as np
import torch
from mpi4py import MPI

COMM = MPI.COMM_WORLD
D = torch.float64

torch.manual_seed(0)
plane = Lattice((7, 6), (0.5, 0.6), 0.1, "replicate")
some = np.random.default_rng(0)
speed, damping = 0.5 + some.random((2, 7, 6))
wave = wave_rnn(plane, 2, 3, speed=speed, damping=damping, probes=[[0.3, 0.8], [3.1, 2.0]], intensity=True, dtype=D)
elman = rnn(2, 9, 3, dt=0.4, dtype=D)
local = rnn(2, outputs=3, grid=plane, local=True, dt=0.2, dtype=D)
x, pair = torch.randn(12, 2, dtype=D), torch.randn(2, 7, 6, dtype=D)
x[4:9] = 0

found = {}
for name, network, state in (("wave", wave, tuple(pair)), ("elman", elman, None), ("local", local, pair[0])):
    result = network.as_equation().solve(x, state)
    batched = None if state is None else tuple(u[None] for u in state) if name == "wave" else state.reshape(1, -1)
    with torch.no_grad():
        expected, states = network(x[None], batched, states=True)
    np.testing.assert_allclose(result.outputs, expected[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(result.states.ravel(), states.numpy().ravel(), rtol=0, atol=1e-10)
    found[name] = result.states
on_mesh = wave.as_equation().solve(x, tuple(pair), on=plane.mesh(COMM, [10, 9]), substeps=2)
found["mesh"] = on_mesh.states
if COMM.rank == 0:
    np.savez(sys.argv[1], **found)
