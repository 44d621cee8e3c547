"""Losses of the torch layer with their gradients and curvature on all ranks; rank 0 prints them as JSON, a line each.

Arguments: names of schemes; or ``memory``, for a training of 1,000 steps, with the growth of memory in MiB after the
first 200.
"""

import gc
import json
import resource
import sys
from pathlib import Path

import npde_fem as npde
from npde_fem import learn
from npde_fem.learn import bridge

sys.path.insert(0, str(Path(__file__).parent))
import adjoint
import numpy as np
import torch
from mpi4py import MPI

COMM = MPI.COMM_WORLD
SCHEMES = ("crank-nicolson", "rk4", "stationary")


def experiment(kind, scheme):
    """A loss of a batch of two, by initial states, a field, numbers and trained parameters of every kind."""
    problem = adjoint.make_problem(kind, stationary=scheme == "stationary")
    arguments = adjoint.arguments(scheme)
    times = arguments.pop("observe", None)
    probe = npde.Probe(problem, adjoint.POINTS)
    inputs = ("b", "r") if scheme == "stationary" else ("u0", "b", "r")
    at_points = learn.Layer(problem, **arguments, inputs=inputs, observe=probe if times is None else (times, probe))
    everywhere = learn.Layer(problem, **arguments, inputs=inputs, observe=times)
    places = adjoint.places(problem, None)
    field = 1 + 0.3 * adjoint.places(problem, problem.parameters["b"])[:, 1]
    leaves = {
        "u0": torch.tensor(0.4 + 0.1 * np.stack([adjoint.wave(places, k) for k in (1, 2)])),
        "b": torch.tensor(field),
        "r": torch.tensor([1.5, 1.2], dtype=torch.float64),
    }
    leaves = {name: leaves[name].requires_grad_() for name in inputs}
    signals, states = at_points(*leaves.values()), everywhere(*leaves.values())
    target = torch.from_numpy(0.2 + 0.1 * adjoint.wave(places, 3)).expand_as(states)
    loss = (signals - 0.1).square().sum() + learn.mse(states, target, COMM)
    leaves |= dict(everywhere.named_parameters())
    return problem, loss, leaves


def products(problem, gradients):
    """The product of each gradient with a function of place, or a sequence: the same on any number of ranks."""
    found = {}
    for name, g in gradients.items():
        control = problem.parameters.get(name)
        if control is None or control.is_field:
            direction = adjoint.wave(adjoint.places(problem, control), 4)
            found[name] = COMM.allreduce(float((g.numpy() * direction).sum()))
        else:
            found[name] = float(g.numpy().ravel() @ np.cos(1.0 + np.arange(g.numel())))
    return found


def derivatives(kind, scheme):
    problem, loss, leaves = experiment(kind, scheme)
    gradients = dict(zip(leaves, torch.autograd.grad(loss, leaves.values(), create_graph=True), strict=True))
    curved = ["b", "r"] if scheme == "stationary" else ["u0", "b", "r"]
    moved = sum(learn.total(gradients[n].square(), COMM) if n != "r" else gradients[n].square().sum() for n in curved)
    curvature = torch.autograd.grad(moved, list(leaves.values()), allow_unused=True)
    return {
        "kind": kind,
        "scheme": scheme,
        "loss": loss.item(),
        "gradient": products(problem, {n: g.detach() for n, g in gradients.items()}),
        "curvature": products(problem, {n: g for n, g in zip(leaves, curvature, strict=True) if g is not None}),
    }


def refuse_what_differs():
    """Ranks that do not agree are told so, all of them."""
    problem = adjoint.make_problem("fd")
    layer = learn.Layer(problem, **adjoint.arguments("rk4"), inputs=("u0", "r"), parameters=[])
    u0, r, first = torch.full((problem.n_owned,), 0.4), torch.tensor(1.0), COMM.rank == 0
    for words, given in (
        ("the values of parameter 'r'", (u0, r + COMM.rank)),
        ("u0 is to be differentiated by", (u0.clone().requires_grad_(first), r)),
        ("the size of the batch", (u0.expand(2 + first, -1), r)),
    ):
        try:
            layer(*given)
        except ValueError as error:
            assert words in str(error) and "all ranks" in str(error), error
        else:
            raise AssertionError(f"{words}: no error")
    layer(u0, r)


def memory(kind, steps=1000):
    """Train for some steps; return the growth of memory after the first fifth, and the records left."""
    D, r = npde.Parameter("D", 0.05, bounds=(0, None)), npde.Parameter("r", lambda x: 1 + x[0], field=True)
    equation = npde.physics.fisher_kpp(D, r)
    if kind == "fd":
        problem = npde.FD(equation, npde.Grid(COMM, (9, 8), (0, 0), (1, 1)))
    else:
        space = adjoint.fem.functionspace(adjoint.mesh.create_unit_square(COMM, 6, 6), ("Lagrange", 1))
        problem = npde.FEM(equation, space)
    layer = learn.Layer(problem, t=(0, 0.2), dt=0.1, bounded=True)
    network = torch.nn.Linear(4, 1, dtype=torch.float64)
    torch.nn.init.constant_(network.weight, 0.1)
    torch.nn.init.constant_(network.bias, 0.1)
    ones = torch.ones(problem.n_owned, dtype=torch.float64)
    learner = torch.optim.Adam([*layer.parameters(), *network.parameters()], lr=1e-3)
    before, losses = 0, []
    for step in range(steps):
        if step == steps // 5:
            gc.collect()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        learner.zero_grad()
        height = learn.spread_use(network(ones[:1].expand(4)), COMM)
        loss = learn.mse(layer(height * ones), 0.7 * ones, COMM)
        loss.backward()
        learner.step()
        losses.append(loss)
        del losses[:-5]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"kind": kind, "loss": loss.item(), "MiB": COMM.allreduce(grown, op=MPI.MAX), "records": len(bridge._alive)}


if __name__ == "__main__":
    if sys.argv[1:] == ["memory"]:
        lines = [memory(kind) for kind in adjoint.KINDS]
    else:
        lines = [derivatives(kind, scheme) for kind in adjoint.KINDS for scheme in sys.argv[1:] or SCHEMES]
        if COMM.size > 1:
            refuse_what_differs()
    if COMM.rank == 0:
        print("\n".join(map(json.dumps, lines)), flush=True)
