"""Train a torch network, a number, a field and a network inside the equation for 20 steps of Adam, on any ensemble.

    training.py fem|fd RANKS_PER_MEMBER

Prints losses, gradients and weights, which must depend neither on the number of ranks nor on how they are shared.
"""

import copy
import json
import sys

import npde_fem as npde
from npde_fem import learn

import numpy as np
import torch
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI

SAMPLES, STEPS = 4, 20
method, ranks = sys.argv[1], int(sys.argv[2])
comm = MPI.COMM_WORLD
ensemble = learn.Ensemble(comm, ranks)

torch.manual_seed(3)
inside = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
start = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1), torch.nn.Sigmoid()).double()
D = npde.Parameter("D", 0.05, bounds=(1e-3, 1))
r = npde.Parameter("r", lambda x: 1 + x[0], field=True)
growth = npde.neural(inside, "growth")
equation = npde.NPDE(flux=lambda u, x, t: D * ufl.grad(u), source=lambda u, x, t: r * u * (1 - u) + 0.3 * u * growth(u))
if method == "fem":
    mesh = dmesh.create_unit_square(ensemble.space, 5, 4)
    problem = npde.FEM(equation, fem.functionspace(mesh, ("Lagrange", 1)))
else:
    problem = npde.FD(equation, npde.Grid(ensemble.space, (6, 5), (0, 0), (1, 1)))
layer = learn.Layer(problem, t=(0, 0.2), dt=0.05, observe=[0.1, 0.2], bounded=True)
own = torch.from_numpy(problem.coordinates()[:, :2].copy())
x = torch.stack([learn.gather(column.contiguous(), problem).ravel() for column in own.T], dim=-1)  # of all nodes
latent = torch.linspace(-1, 1, 2 * SAMPLES, dtype=torch.float64).view(SAMPLES, 2)
target = torch.stack(
    [torch.stack([0.5 + 0.2 * torch.sin(3 * own[:, 0] + k + t) * own[:, 1] for t in (1, 2)]) for k in range(SAMPLES)]
)
ensemble.share(copy.deepcopy(layer))  # a copy knows too of which weights each rank has a part
ensemble.share(start)
model = ensemble.share(torch.nn.ModuleList([start, layer]))  # what is shared already is summed once
shape = learn.gather(own[:, 0].contiguous(), problem).shape


def loss():
    mine, wanted = ensemble.mine(latent), ensemble.mine(target)
    rows = torch.cat([x.expand(len(mine), *x.shape), mine[:, None].expand(len(mine), len(x), 2)], dim=-1)
    states = learn.scatter(start(rows)[..., 0].view(len(mine), *shape), problem)
    return learn.mse(layer(states), wanted, comm)


def measured(name, values):
    """Numbers that do not depend on who owns which dof."""
    if name == "r":
        values = learn.gather(values.detach(), problem, "r").ravel()
        weights = torch.cos(x @ torch.tensor([2.0, 5.0], dtype=torch.float64))
        return [float(values.norm()), float(values @ weights)]
    return values.detach().ravel().tolist()


optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
losses, first = [], []
for step in range(STEPS):
    optimiser.zero_grad()
    value = loss()
    value.backward()
    if step == 0:
        first = [v for name, p in model.named_parameters() for v in measured(name.split(".")[-1], p.grad)]
    optimiser.step()
    losses.append(value.item())
weights = [v for name, p in model.named_parameters() for v in measured(name.split(".")[-1], p)]
everyone = comm.allgather(weights)
assert all(np.array_equal(weights, others) for others in everyone) or ranks > 1
if comm.rank == 0:
    print(json.dumps({"losses": losses, "gradients": first, "weights": weights}))
