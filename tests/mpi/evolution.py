"""Write how networks go on as equations, on any number of ranks, to a file."""

import sys

from npde_fem import networks

import numpy as np
import torch
from mpi4py import MPI

COMM = MPI.COMM_WORLD

torch.manual_seed(0)
lattice = networks.Lattice((12, 10), (0.5, 0.4), 0.1, "replicate")
network = networks.cnn(
    grid=lattice,
    channels=(1, 3, 2, 2),
    reaction="tanh",
    pooling=[networks.Pooling("mean", 2), None, None],
    dt=0.1,
    dtype=torch.float64,
)
x = torch.randn(1, 1, 12, 10, dtype=torch.float64)
with torch.no_grad():
    expected = network(x)[0].numpy()
equation = network.as_equation()
own = equation.solve(x[0].numpy(), comm=COMM)
np.testing.assert_allclose(own.array(), expected, rtol=0, atol=1e-13)
smooth = networks.cnn(
    networks.Coefficients(
        [[0.1]], [[[0.3, -0.2]]], [[[[0.3, 0.1], [0.1, 0.2]]]], np.zeros((1, 1, 3, 3)), [0.1], lattice.spacing, 0.1
    ),
    grid=lattice,
    steps=3,
    reaction="tanh",
    dtype=torch.float64,
)
finer = smooth.as_equation().solve(x[0].numpy(), comm=COMM, refine=2, substeps="auto")
on_mesh = smooth.as_equation().solve(x[0].numpy(), lattice.mesh(COMM, [14, 9]), substeps="auto")
implicit = smooth.as_equation().solve(x[0].numpy(), lattice.mesh(COMM, [14, 9]), implicit=True)
found = {"own": own.states[0], "finer": finer.array(), "mesh": on_mesh.array(), "implicit": implicit.array()}

# every rank may give its own points
layout = own.ended[0].solution.problem.layout
owned = tuple(slice(a, b) for a, b in zip(layout.start, layout.end, strict=True))
mine = x[0].numpy()[:, *owned]
np.testing.assert_array_equal(equation.solve(mine, comm=COMM).array(), own.array())

periodic = networks.Lattice((9, 8), (0.5, 0.4), 0.1, "circular")
around = networks.cnn(grid=periodic, channels=(2, 3), reaction="sigmoid", dt=0.1, dtype=torch.float64)
y = torch.randn(1, 2, 9, 8, dtype=torch.float64)
with torch.no_grad():
    np.testing.assert_allclose(
        around.as_equation().solve(y[0], comm=COMM).array(), around(y)[0].numpy(), rtol=0, atol=1e-13
    )
found["circular"] = around.as_equation().solve(y[0], comm=COMM, refine=2, substeps=4, checked=False).array()

perceptron = networks.mlp((5, 10, 4), reaction="tanh", readout=3, dt=0.3, dtype=torch.float64)
z = torch.randn(5, dtype=torch.float64)  # as many numbers as each of two ranks owns
observed = perceptron.as_equation().solve(z, comm=COMM).observed
with torch.no_grad():
    np.testing.assert_allclose(observed, perceptron(z[None])[0].numpy(), rtol=0, atol=1e-13)
found["perceptron"] = perceptron.as_equation().solve(z, comm=COMM, refine=2).observed
if COMM.rank == 0:
    np.savez(sys.argv[1], **found)
