"""Pseudoinverse learning with samples, or a medium, spread over ranks: what is printed must not depend on their number.

pseudoinverse.py readouts|layers|medium|errors
"""

import json
import sys

import npde_fem as npde
from npde_fem import learn
from npde_fem.learn.pseudoinverse import Pseudoinverse, Reservoir, Stream, solve_readout

import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI

comm = MPI.COMM_WORLD
rng = np.random.default_rng(5)


def mine(*arrays):
    """This rank's rows: unequal shares, and none for the second of several ranks."""
    ranks = [r for r in range(comm.size) if r != 1 or comm.size == 1]
    bounds = np.linspace(0, 1, len(ranks) + 1) ** 2 * len(arrays[0])
    if comm.rank not in ranks:
        return [a[:0] for a in arrays]
    k = ranks.index(comm.rank)
    return [a[int(bounds[k]) : int(bounds[k + 1])] for a in arrays]


def readouts():
    tall, wide = rng.standard_normal((120, 9)), rng.standard_normal((14, 30))
    u, v = np.linalg.qr(rng.standard_normal((120, 12)))[0], np.linalg.qr(rng.standard_normal((12, 12)))[0]
    ill = u * np.logspace(0, -12, 12) @ v.T
    shares = rng.uniform(0, 2, 120)
    shares[::7] = 0
    found = []
    for h, w in ((tall, None), (tall, shares), (wide, None), (ill, None)):
        y = rng.standard_normal((len(h), 3))
        rows = mine(h, y) if w is None else mine(h, y, w)
        for ridge in ("gcv", 0.0, 0.3):
            for method in ("qr", "svd"):
                made = solve_readout(rows[0], rows[1], ridge, method, comm, weights=None if w is None else rows[2])
                same = comm.allgather(made.weights.tobytes() + made.bias.tobytes())
                assert len(set(same)) == 1  # to the last bit
                score = made.score if np.isfinite(made.score) else 0.0
                found.append([made.rank, score, made.residual, *made(h).ravel()])
    stream = Stream()
    for part in range(0, 120, 10):
        if part // 10 % comm.size == comm.rank:
            stream.add(tall[part : part + 10], tall[part : part + 10, :2] ** 2)
    found.append(stream.solve("gcv", comm=comm)(tall).ravel().tolist())
    return found


def layers():
    x, labels = rng.uniform(0, 1, (60, 6, 6)), np.arange(60) % 3
    x[labels == 1, :3] *= 0.3
    x[labels == 2, :, 3:] *= 0.3
    found = []
    for kind, settings in (
        ("random", {"width": 20}),
        ("random", {"width": 20, "kernel": 3}),
        ("autoencoder", {"width": 8, "depth": 2}),
        ("npde", {"width": 40}),
        (["npde", "random"], {"width": 30}),
    ):
        learner = Pseudoinverse(layers=kind, batch=16, ridge=0.1, **settings)
        solved = learner.solve(None, tuple(mine(x, labels)), comm=comm)
        with torch.no_grad():
            found.append(solved.model(torch.from_numpy(x)).ravel().tolist())
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    Pseudoinverse(batch=11).solve(model.double(), tuple(mine(x, labels)), comm=comm)
    found.append(model[-1].weight.ravel().tolist())
    return found


def medium():
    """A medium on all ranks: the same samples on each, which count once; beside that members with a medium each."""
    x, y = rng.uniform(0, 1, (12, 5, 5)), rng.standard_normal((12, 2))
    points = np.array([[0.2, 0.3], [0.7, 0.6], [0.9, 0.1]])
    found = []
    for method in ("fem", "fd"):
        equation = npde.physics.heat(0.05)
        if method == "fem":
            mesh = dmesh.create_unit_square(comm, 6, 6)
            problem = npde.FEM(equation, fem.functionspace(mesh, ("Lagrange", 1)))
        else:
            problem = npde.FD(equation, npde.Grid(comm, (7, 7), (0, 0), (1, 1)))
        probe = npde.Probe(problem, points)
        scheme = npde.CrankNicolson()
        pictures = Reservoir(problem, (0, 0.2), 0.05, observe=([0.1, 0.2], probe), scheme=scheme)
        found.append(pictures(torch.from_numpy(x)).ravel().tolist())
        signals = Reservoir(problem, (0, 0.1), 0.05, points[:1], probe, scheme=scheme, measure="state", windows=2)
        found.append(signals(torch.from_numpy(x[:, 0])).ravel().tolist())
        made = Pseudoinverse(layers=pictures, ridge=1e-3).solve(None, (x, y), comm=comm)
        assert made.readout.samples == 12
        found.append(made.readout.weights.ravel().tolist())
    wave = npde.FD(npde.physics.wave(1.0), npde.Grid(comm, (7, 7), (0, 0), (1, 1)))
    driven = Reservoir(wave, (0, 0.1), 0.05, points[:1], npde.Probe(wave, points))
    found.append(driven(torch.from_numpy(x[:2, 0])).ravel().tolist())
    return found


def refused(kind, words, call):
    try:
        call()
    except kind as error:
        assert words in str(error), f"{words!r} not in {error}"
        assert len(set(comm.allgather(str(error)))) == 1
    else:
        raise AssertionError(f"nothing raised; {words!r} expected")


def errors():
    last = comm.rank == comm.size - 1
    h, y, labels = rng.standard_normal((9, 4)), rng.standard_normal((9, 2)), np.arange(9) % 3
    bad = h.copy()
    bad[5, 2] = np.nan
    refused(ValueError, "sample 5", lambda: solve_readout(bad if last else h, y, comm=comm))
    refused(ValueError, "(9,) or (9, outputs)", lambda: solve_readout(h, y[:3] if last else y, comm=comm))
    refused(ValueError, "-1", lambda: solve_readout(h, y, -1, comm=comm))
    refused(ValueError, "no samples", lambda: solve_readout(h[:0], y[:0], comm=comm))
    refused(TypeError, "complex128", lambda: solve_readout(h + 0j if last else h, y, comm=comm))
    if comm.size > 1:
        refused(ValueError, "columns", lambda: solve_readout(h[:, :3] if last else h, y, comm=comm))
        refused(ValueError, "labels on some ranks", lambda: trained(h, labels if last else y))
    wrong = labels.copy()
    wrong[4] = 3
    model = torch.nn.Linear(4, 3).double()
    refused(ValueError, "label 3 of sample 4", lambda: trained(h, wrong if last else labels, model))
    wrong[4] = -1
    refused(ValueError, "label -1 of sample 4", lambda: trained(h, wrong if last else labels))
    refused(ValueError, "classes [1]", lambda: trained(h, np.where(labels == 1, 0, labels)))
    refused(ValueError, "sample 5", lambda: trained(bad if last else h, labels))
    if comm.size > 1:
        problem = npde.FD(npde.physics.heat(0.05), npde.Grid(comm, (7, 7), (0, 0), (1, 1)))
        layer = learn.Layer(problem, (0, 0.1), 0.05)
        part = learn.scatter(torch.from_numpy(rng.standard_normal((9, 7, 7))), problem)
        refused(ValueError, "learn.gather", lambda: Pseudoinverse(layers=layer).solve(None, (part, y), comm=comm))
    return []


def trained(x, targets, model=None):
    return Pseudoinverse(layers=None if model else "random", width=5).solve(model, (x, targets), comm=comm)


made = {"readouts": readouts, "layers": layers, "medium": medium, "errors": errors}[sys.argv[1]]()
if comm.rank == 0:
    print(json.dumps(made))
