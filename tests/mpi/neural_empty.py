"""Gradients and Hessian products by weights of networks where ranks have no cells or points; rank 0 prints JSON."""

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


def network(name, inputs, outputs):
    torch.manual_seed(inputs)
    module = nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))
    return npde.neural(module.double(), name)


def second_order(discretise):
    """Return loss, gradient and a Hessian product of a solve, and how few cells or points a rank has."""
    one, many = network("one", 1, 1), network("many", 3, 2)
    problem, fewest = discretise(
        npde.NPDE(
            flux=lambda u, x, t: (1 + one(u) ** 2) * ufl.grad(u) + u * many(u, x),
            source=lambda u, x, t: one(0.5 * u) + many(u, ufl.grad(u))[1],
        )
    )
    controls = [n.weights for n in (one, many)]
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        pyadjoint.continue_annotation()
        u = npde.solve(problem, lambda x: np.sin(3 * x[0]) + x[1], t=(0, 0.1), dt=0.05, scheme=npde.CrankNicolson())
        loss = npde.misfit(u, 0.1)
        pyadjoint.pause_annotation()
    functional = pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(c) for c in controls], tape=tape)
    derivatives = functional.derivative()
    products = functional.hessian([c.like(np.cos(np.arange(c.ufl_shape[0]))) for c in controls])
    values = [as_array(d).tolist() for d in (*derivatives, *products)]
    return {"values": [float(loss), *np.concatenate(values).tolist()], "fewest": COMM.allreduce(fewest, MPI.MIN)}


def on_two_cells(equation):
    space = fem.functionspace(mesh.create_unit_square(COMM, 1, 1), ("Lagrange", 1))
    return npde.FEM(equation, space), space.mesh.topology.index_map(2).size_local


def in_a_corner(equation):
    problem = npde.FD(equation, npde.Grid(COMM, (9, 4), (0, 0), (1, 1), mask=lambda x: x[0] < 0.3))
    return problem, int(problem.domain.mask[problem.layout.inner].sum())


found = {discretise.__name__: second_order(discretise) for discretise in (on_two_cells, in_a_corner)}
if COMM.rank == 0:
    print(json.dumps(found))
