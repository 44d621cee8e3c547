"""Losses, whole arrays and ensembles on any number of ranks: against numpy on the whole, and Taylor expansions."""

import sys

import npde_fem as npde
from npde_fem.learn import distributed as learn

import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD


def problems(comm):
    mesh = dmesh.create_unit_square(comm, 3, 4)
    yield npde.FEM(npde.physics.heat(1.0), fem.functionspace(mesh, ("Lagrange", 2)))
    yield npde.FD(npde.physics.heat(1.0), npde.Grid(comm, (5, 7), (0, 0), (1, 1)), [npde.Periodic(1)])
    two = npde.physics.gray_scott()
    yield npde.FD(two, npde.Grid(comm, (4, 6), (0, 0), (1, 1)))
    yield npde.FEM(two, fem.functionspace(mesh, ("Lagrange", 1, (2,))))


def arrays(comm):
    for problem in problems(comm):
        x = problem.coordinates()
        components = problem.components
        values = np.stack([np.sin(3 * x[:, 0]) + x[:, 1] * (k + 1) for k in range(components)], axis=1).ravel()
        own = torch.from_numpy(values).requires_grad_()
        whole = learn.gather(own, problem)
        assert whole.numel() == problem.n_global
        # replicated, and back again
        assert np.array_equal(comm.bcast(whole.detach().numpy()), whole.detach().numpy())
        back = learn.scatter(whole, problem)
        assert torch.equal(back, own)
        if isinstance(problem, npde.FD):
            expected = problem.function(values).gather()
            if comm.rank == 0:
                assert np.array_equal(expected, whole.detach().numpy())
        # a loss of the whole, which every rank computes: its gradient by what each rank owns
        weights = torch.arange(problem.n_global, dtype=torch.float64).view(whole.shape) / 7
        ((weights * whole**2).sum()).backward()
        assert torch.allclose(own.grad, 2 * own.detach() * learn.scatter(weights, problem), rtol=1e-14)
        # a replicated array, each rank uses its own part: the gradient is complete on each
        image = torch.linspace(0, 1, problem.n_global, dtype=torch.float64).view(whole.shape).requires_grad_()
        learn.total(learn.scatter(image, problem) ** 2, comm).backward()
        assert torch.allclose(image.grad, 2 * image.detach(), rtol=1e-14)
        batch = learn.scatter(torch.stack([image.detach(), 2 * image.detach()]), problem)
        assert batch.shape == (2, problem.n_owned) and torch.equal(batch[1], 2 * batch[0])


def losses(comm):
    n = comm.rank + 2
    everything = np.concatenate([np.arange(k + 2) + 10.0 * k for k in range(comm.size)])
    own = torch.from_numpy(np.arange(n) + 10.0 * comm.rank).requires_grad_()
    target = torch.ones(n, dtype=torch.float64)
    assert np.isclose(learn.total(own, comm).item(), everything.sum(), rtol=1e-14)
    assert np.isclose(learn.mean(own, comm).item(), everything.mean(), rtol=1e-14)
    loss = learn.mse(own, target, comm)
    assert np.isclose(loss.item(), ((everything - 1) ** 2).mean(), rtol=1e-14)
    (gradient,) = torch.autograd.grad(loss, own, create_graph=True)
    assert torch.allclose(gradient, 2 * (own - 1) / everything.size, rtol=1e-14)
    # differentiated again: the derivative of |gradient|^2
    (second,) = torch.autograd.grad(learn.total(gradient**2, comm), own)
    assert torch.allclose(second, 8 * (own - 1) / everything.size**2, rtol=1e-13)
    z = torch.complex(own.detach(), 2 * own.detach()).requires_grad_()
    loss = learn.mse(z, torch.zeros_like(z), comm)
    assert not loss.is_complex() and np.isclose(loss.item(), (5 * everything**2).mean(), rtol=1e-14)
    single = own.detach().float().requires_grad_()
    loss = learn.mean(single, comm)
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.allclose(single.grad, torch.full((n,), 1 / everything.size))
    # a number that each rank multiplies by something of its own
    a = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    learn.total(learn.spread_use(a, comm) * own.detach(), comm).backward()
    assert np.isclose(a.grad.item(), everything.sum(), rtol=1e-14)


def ensembles(comm):
    for ranks in [r for r in range(1, comm.size + 1) if comm.size % r == 0]:
        ensemble = learn.Ensemble(comm, ranks)
        assert ensemble.space.size == ranks and ensemble.across.size == ensemble.members == comm.size // ranks
        torch.manual_seed(comm.rank)
        net = ensemble.share(torch.nn.Linear(2, 1, dtype=torch.float64))
        assert np.array_equal(comm.bcast(net.weight.detach().numpy()), net.weight.detach().numpy())
        samples = torch.linspace(0, 1, 4 * ensemble.members, dtype=torch.float64).view(-1, 2)
        loss = learn.total(net(ensemble.mine(samples)).sum() ** 2 / ranks, comm)
        loss.backward()
        alone = torch.nn.Linear(2, 1, dtype=torch.float64)
        alone.load_state_dict(net.state_dict())
        share = 2
        parts = [alone(samples[k * share : (k + 1) * share]).sum() ** 2 for k in range(ensemble.members)]
        # each member counts once, however many ranks it has: within a member the loss is replicated
        expected = torch.stack(parts).sum()
        expected.backward()
        assert torch.allclose(loss, expected, rtol=1e-13)
        assert torch.allclose(net.weight.grad * ranks, alone.weight.grad, rtol=1e-13)
        if ensemble.members > 1:
            try:
                ensemble.mine(torch.zeros(ensemble.members + 1))
            except ValueError as error:
                assert "members" in str(error)
            else:
                raise AssertionError("a batch that cannot be shared was taken")
        ensemble.free()
    try:
        learn.Ensemble(comm, comm.size + 1)
    except ValueError as error:
        assert "ranks_per_member" in str(error)
    else:
        raise AssertionError("more ranks than there are were taken")


def errors(comm):
    problem = next(problems(comm))
    short = torch.zeros(problem.n_owned - (comm.rank == comm.size - 1))
    for call, word in (
        (lambda: learn.gather(short, problem), "owns"),
        (lambda: learn.scatter(torch.zeros(3), problem), "scatter"),
        (lambda: learn.mean(torch.zeros(2, dtype=torch.int64), comm), "int64"),
        (lambda: learn.mse(torch.zeros(2), torch.zeros(3 if comm.rank == 0 else 2), comm), "shapes"),
        (lambda: learn.mean(torch.zeros(0), comm), "no entries"),
    ):
        try:
            call()
        except (TypeError, ValueError) as error:
            assert word in str(error), (word, error)
        else:
            raise AssertionError(f"nothing was raised about {word}")


for part in (arrays, losses, ensembles, errors):
    part(COMM)
print("ok", flush=True)
sys.exit()
