"""A solve with networks in flux and source, its gradient and a Hessian product; rank 0 prints them as JSON."""

import json

import npde_fem as npde
from npde_fem.optimize.values import as_array

import numpy as np
import pyadjoint
import torch
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from torch import nn

COMM = MPI.COMM_WORLD


def network(name, inputs, activation, seed):
    torch.manual_seed(seed)
    return npde.neural(nn.Sequential(nn.Linear(inputs, 6), activation(), nn.Linear(6, 1)).double(), name)


def main():
    D, f, g = network("D", 1, nn.Softplus, 1), network("f", 2, nn.Tanh, 2), network("g", 1, nn.ReLU, 3)
    equation = npde.NPDE(
        flux=lambda u, x, t: (0.3 + 0.1 * D(u)) * ufl.grad(u), source=lambda u, x, t: u * f(u, x[0]) + g(u)
    )
    problem = npde.FEM(equation, fem.functionspace(mesh.create_unit_square(COMM, 6, 5), ("Lagrange", 1)))
    controls = [n.weights for n in (D, f, g)]
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        pyadjoint.continue_annotation()
        u = npde.solve(problem, lambda x: np.sin(3 * x[0]) + x[1], t=(0, 0.2), dt=0.05, scheme=npde.CrankNicolson())
        loss = npde.misfit(u, 0.1)
        pyadjoint.pause_annotation()
    functional = pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(c) for c in controls], tape=tape)
    found = {"loss": float(loss)}
    found |= {c.name: as_array(d).tolist() for c, d in zip(controls, functional.derivative(), strict=True)}
    along = [c.like(np.cos(np.arange(c.ufl_shape[0]))) for c in controls]
    products = functional.hessian(along)
    found |= {f"{c.name} second": as_array(d).tolist() for c, d in zip(controls, products, strict=True)}
    if COMM.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
