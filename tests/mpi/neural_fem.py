"""Solves with networks in flux and source, their gradients and Hessian products; rank 0 prints them as JSON.

The second one has fewer cells than there may be ranks.
"""

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


def derivatives(label, problem, controls, scheme=None):
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        pyadjoint.continue_annotation()
        u = npde.solve(problem, lambda x: np.sin(3 * x[0]) + x[1], t=(0, 0.2), dt=0.05, scheme=scheme)
        loss = npde.misfit(u, 0.1)
        pyadjoint.pause_annotation()
    functional = pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(c) for c in controls], tape=tape)
    found = {f"{label} loss": float(loss)}
    gradients = functional.derivative()
    products = functional.hessian([c.like(np.cos(np.arange(c.ufl_shape[0]))) for c in controls])
    for c, gradient, product in zip(controls, gradients, products, strict=True):
        found |= {f"{label} {c.name}": as_array(gradient).tolist(), f"{label} {c.name} 2": as_array(product).tolist()}
    return found


def main():
    D, f, g = network("D", 1, nn.Softplus, 1), network("f", 2, nn.Tanh, 2), network("g", 1, nn.ReLU, 3)

    def flux(u, x, t):
        return (0.3 + 0.1 * D(u)) * ufl.grad(u)

    equation = npde.NPDE(flux=flux, source=lambda u, x, t: u * f(u, x[0]) + g(u))
    square = npde.FEM(equation, fem.functionspace(mesh.create_unit_square(COMM, 6, 5), ("Lagrange", 1)))
    found = derivatives("square", square, [n.weights for n in (D, f, g)], npde.CrankNicolson())
    few = npde.NPDE(flux=flux, source=lambda u, x, t: u * f(u, x[0]))
    line = npde.FEM(few, fem.functionspace(mesh.create_unit_interval(COMM, 2), ("Lagrange", 1)))
    found |= derivatives("line", line, [n.weights for n in (D, f)])
    if COMM.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
