"""Train, perhaps until killed; write the weights: resumed.py LEARNER EPOCHS CHECKPOINT RESULT [SLOW]."""

import sys
import time

import npde_fem as npde
from npde_fem import learn

import dolfinx
import numpy as np
import torch
from mpi4py import MPI

COMM = MPI.COMM_WORLD
kind, epochs, checkpoint, result = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
slow = len(sys.argv) > 5

r = npde.Parameter("r", lambda x: 1 + 0 * x[0], field=True)
d = npde.Parameter("D", 0.2)
space = dolfinx.fem.functionspace(dolfinx.mesh.create_interval(COMM, 12, (0.0, 1.0)), ("Lagrange", 1))
problem = npde.FEM(npde.physics.fisher_kpp(d, r), space)
starts = torch.from_numpy(
    np.array([problem.initial(lambda x, k=k: 0.5 + 0.3 * np.cos(k * np.pi * x[0])) for k in range(5)])
)
layer = learn.Layer(problem, (0, 0.2), 0.1)
with torch.no_grad():
    data = 0.8 * layer(starts) ** 2
model = torch.nn.Sequential(torch.nn.Dropout(0.1), layer) if COMM.size == 1 else layer
learner = {
    "adam": learn.Adam(lr=0.05, batch=2, schedule=lambda epoch: 0.9**epoch),
    "lbfgs": learn.LBFGS(gtol=0, ftol=0),
}[kind]


def wait(training):
    """Leave time for a signal after each epoch."""
    if slow:
        print(f"epoch {training.history[-1].epoch}", flush=True)
        time.sleep(0.05)


learn.fit(
    model,
    (starts, data),
    lambda output, target: learn.mse(output, target, COMM),
    learner,
    epochs=epochs,
    seed=4,
    checkpoint=checkpoint,
    every=None if kind == "adam" else 5,
    resume=True,
    callbacks=[wait, learn.EarlyStopping(patience=1000, on="loss", restore_best=False)],
)
np.savez(f"{result}.{COMM.rank}.npz", *[p.detach().numpy() for p in model.parameters()])
