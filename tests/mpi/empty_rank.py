"""Derivatives by the torch layer on two cells and three ranks, of which one owns no dof; rank 0 prints them."""

import json

import npde_fem as npde
from npde_fem import learn

import torch
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD


def derivatives():
    D, f = npde.Parameter("D", 0.1), npde.Parameter("f", lambda x: x[0], field=True)
    space = fem.functionspace(mesh.create_unit_interval(COMM, 2), ("Lagrange", 1))
    found = []
    for source in (lambda u, x, t: f, lambda u, x, t: f * u * u):
        problem = npde.FEM(npde.NPDE(flux=lambda u, x, t: D * ufl.grad(u), source=source), space)
        if COMM.size == 3:
            assert COMM.allreduce(problem.n_owned, op=MPI.MIN) == 0
        probe = npde.Probe(problem, [0.3])
        for observe in (None, [0.05, 0.1], probe, ([0.05, 0.1], probe)):
            layer = learn.Layer(problem, (0, 0.1), 0.05, npde.CrankNicolson(), observe=observe)
            start = torch.full((3, problem.n_owned), 1.2, dtype=torch.float64, requires_grad=True)
            seen = layer(start)
            replicated = observe is probe or isinstance(observe, tuple)
            loss = seen.square().sum() if replicated else learn.total(seen.square(), COMM)
            leaves = [start, layer.D, layer.f]
            gradient = torch.autograd.grad(loss, leaves, create_graph=True)
            moved = learn.total(gradient[0].square(), COMM) + gradient[1].square()
            curvature = torch.autograd.grad(moved, leaves)
            found += [learn.total(g, COMM).item() / (COMM.size if g.ndim == 0 else 1) for g in (*gradient, *curvature)]
    return found


if __name__ == "__main__":
    found = derivatives()
    if COMM.rank == 0:
        print(json.dumps(found), flush=True)
