"""Train by Adam and L-BFGS on any number of ranks: in space, and over samples; write weights and iterates."""

import sys

import npde_fem as npde
from npde_fem import learn

import dolfinx
import numpy as np
import torch
from mpi4py import MPI

COMM = MPI.COMM_WORLD
D = torch.float64


def layer_on(comm, field):
    r = npde.Parameter("r", (lambda x: 1 + 0 * x[0]) if field else 1.0, field=field, bounds=(0, 10))
    d = npde.Parameter("D", 0.2, bounds=(1e-3, 1))
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_interval(comm, 20, (0.0, 1.0)), ("Lagrange", 1))
    problem = npde.FEM(npde.physics.fisher_kpp(d, r), space)
    return problem, learn.Layer(problem, (0, 0.3), 0.1)


def states_on(problem):
    """Three initial states, and what D = 0.05, r = 2 + x make of them."""
    r = npde.Parameter("r", lambda x: 2 + x[0], field=True)
    truth = npde.FEM(npde.physics.fisher_kpp(0.05, r), problem.space)
    starts = [truth.initial(lambda x, k=k: 0.5 + 0.3 * np.cos(k * np.pi * x[0])) for k in range(3)]
    starts = torch.from_numpy(np.array(starts))
    with torch.no_grad():
        return starts, learn.Layer(truth, (0, 0.3), 0.1)(starts)


def of_the_model(layer, problem):
    """Weights as every rank can compare them: fields gathered, in the order of space."""
    x = learn.gather(torch.from_numpy(problem.initial(lambda x: x[0])), problem)
    found = [layer.D.detach().reshape(1)]
    r = layer.r.detach()
    found.append(r.reshape(1) if not r.ndim else learn.gather(r, problem, "r")[torch.argsort(x)])
    return torch.cat(found).numpy()


found = {}
for field in (False, True):
    for learner in ("adam", "lbfgs"):
        problem, layer = layer_on(COMM, field)
        starts, data = states_on(problem)
        made = learn.Adam(lr=0.05, batch=2, clip=0.05) if learner == "adam" else learn.LBFGS(gtol=0, ftol=0)
        steps = []
        learn.fit(
            layer,
            (starts, data),
            lambda output, target, comm=COMM: learn.mse(output, target, comm),
            made,
            epochs=12,
            callbacks=[lambda training, l=layer, p=problem, s=steps: s.append(of_the_model(l, p)) is None and None],
        )
        found[f"{learner} field {field}"] = np.array(steps)

ensemble = learn.Ensemble(COMM, 1)
for learner in (learn.Adam(lr=0.05, batch=5), learn.LBFGS(gtol=0, ftol=0)):
    problem, layer = layer_on(ensemble.space, False)
    torch.manual_seed(COMM.rank)  # the members begin alike all the same
    network = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 21)).double()
    if COMM.rank == 0:
        torch.manual_seed(0)
        for p in network.parameters():
            torch.nn.init.uniform_(p, -0.5, 0.5)
    model = torch.nn.Sequential(network, torch.nn.Sigmoid(), layer)
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.rand(11, n, dtype=D, generator=generator) for n in (2, 21))
    result = learn.fit(model, (x, y), "mse", learner, epochs=8, ensemble=ensemble, validation=(x[:4], y[:4]))
    weights = torch.cat([p.detach().ravel() for p in model.parameters()]).numpy()
    together = np.array(COMM.allgather(weights))
    assert np.array_equal(together, np.broadcast_to(weights, together.shape)), "members differ"
    found[f"ensemble {type(learner).__name__}"] = np.concatenate([weights, [row.validation for row in result.history]])
if COMM.rank == 0:
    np.savez(sys.argv[1], **found)
