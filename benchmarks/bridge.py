"""The torch layer: its cost over a solve and gradient without it, batches, and explicit rollouts written in torch.

Overhead: Fisher-KPP on 8 x 8 cells, one step of Crank-Nicolson, and the gradient of a loss by the initial state and two
numbers. "By hand" is what the layer saves one from writing: the solve, torch's gradient of the same loss by the final
state, and the adjoint sweep with that. Without any torch in the process's caches the same solve and sweep are faster
still; that ratio is shown too.

Rollouts: Fisher-KPP by forward Euler on a grid, float64, one thread, loss and gradient. In torch a step is one
convolution; autograd goes through all steps at once, or, as PNODE does (Zhang and Zhao 2022, J. Comput. Phys. 463), the
states are kept and each step is differentiated alone, the last first.
"""

import time

import npde_fem as npde
from npde_fem import learn
from npde_fem.solve.integrate import solve
from npde_fem.solve.trajectory import Cotangents, Trajectory

import _report
import numpy as np
import torch
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD
QUIET = {"rescue": None, "progress": False}


def seconds(work):
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compared(*works, rounds):
    """Return the seconds of some pieces of work, done in turns, each after a round of its own: the lower quartile.

    Other programs on the machine only ever add to it.
    """
    for work in works:
        work()
    found = []
    for _ in range(rounds):
        row = []
        for work in works:
            work()
            row.append(seconds(work))
        found.append(row)
    return np.percentile(found, 25, axis=0)


def discretise(kind, equation, cells):
    if kind == "FD":
        return npde.FD(equation, npde.Grid(COMM, (cells + 1,) * 2, (0, 0), (1, 1)))
    return npde.FEM(equation, fem.functionspace(dmesh.create_unit_square(COMM, cells, cells), ("Lagrange", 1)))


def some_states(problem, *samples):
    return torch.rand(*samples, problem.n_owned, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def overhead(kind):
    D, r = npde.Parameter("D", 0.1), npde.Parameter("r", 1.0)
    problem, times = discretise(kind, npde.physics.fisher_kpp(D, r), 8), {"t": (0, 1e-3), "dt": 1e-3}
    layer = learn.Layer(problem, **times)
    start, target = some_states(problem).requires_grad_(), some_states(problem)
    values = start.detach().numpy()

    def loss(states):
        return (states - target).square().sum()

    def with_layer():
        start.grad = None
        layer.zero_grad()
        loss(layer(start)).backward()

    def solved():
        trajectory = Trajectory(problem)
        return trajectory, solve(problem, values, **times, **QUIET, recorder=trajectory).values

    def by_hand():
        trajectory, final = solved()
        states = torch.from_numpy(final).requires_grad_()
        loss(states).backward()
        return trajectory.by([D, r]).adjoint(Cotangents(final=states.grad.numpy()))

    def without_torch():
        trajectory, final = solved()
        return trajectory.by([D, r]).adjoint(Cotangents(final=2 * (final - target.numpy())))

    layered, handmade, bare = compared(with_layer, by_hand, without_torch, rounds=200)
    with_layer()
    mine, theirs = start.grad.numpy(), by_hand().initial
    case = f"{kind}, 8 x 8, one step"
    return [
        _report.row(case, "microseconds, layer", 1e6 * layered),
        _report.row(case, "layer / by hand", layered / handmade, at_most=1.35),
        _report.row(case, "layer / without torch", layered / bare),
        _report.row(
            case, "relative difference of gradients", np.abs(mine - theirs).max() / np.abs(theirs).max(), 1e-12
        ),
    ]


def batches(kind, scheme, dt, bar=None, samples=32):
    """The heat equation, 20 steps, by the initial states; then by the diffusion too."""
    problem = discretise(kind, npde.physics.heat(npde.Parameter("D", 0.02)), 32)
    case, rows = f"{kind}, 32 x 32, {scheme.name}, batch of {samples}", []
    for label, trained in (("by initial states", []), ("by initial states and diffusion", ["D"])):
        layer = learn.Layer(problem, (0, 20 * dt), dt, scheme, parameters=trained)
        starts = some_states(problem, samples).requires_grad_()

        def together(layer=layer, starts=starts):
            layer(starts).square().sum().backward()

        def one_by_one(layer=layer, starts=starts):
            for start in starts:
                layer(start).square().sum().backward()

        batch, singles = compared(together, one_by_one, rounds=5)
        rows.append(_report.row(case, f"single calls / batch, {label}", singles / batch, at_least=bar))
    return rows


def rollouts(cells, steps):
    D, r, dt = npde.Parameter("D", 1.0), npde.Parameter("r", 10.0), 0.2 / cells**2
    problem = discretise("FD", npde.physics.fisher_kpp(D, r), cells)
    layer = learn.Layer(problem, (0, steps * dt), dt, npde.ForwardEuler())
    start = some_states(problem).requires_grad_()
    # The outer neighbour of a point on the boundary is mirrored: no flux.
    field = start.detach().view(1, 1, cells + 1, cells + 1).clone().requires_grad_()
    diffusion, rate = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (1.0, 10.0))
    stencil = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64).view(1, 1, 3, 3) * cells**2

    def step(u, d, k):
        laplacian = torch.conv2d(torch.nn.functional.pad(u, (1, 1, 1, 1), mode="reflect"), stencil)
        return u + dt * (d * laplacian + k * u * (1 - u))

    def ours():
        start.grad = None
        layer(start).square().sum().backward()

    def autograd():
        field.grad, u = None, field
        for _ in range(steps):
            u = step(u, diffusion, rate)
        u.square().sum().backward()

    def step_by_step():
        states = [field.detach()]
        with torch.no_grad():
            for _ in range(steps):
                states.append(step(states[-1], diffusion, rate))
        carried, slopes = 2 * states.pop(), [0.0, 0.0]
        for u in reversed(states):
            u = u.requires_grad_()
            carried, *parts = torch.autograd.grad(step(u, diffusion, rate), (u, diffusion, rate), carried)
            slopes = [a + b for a, b in zip(slopes, parts, strict=True)]
        field.grad = carried

    mine, whole, stepwise = compared(ours, autograd, step_by_step, rounds=3)
    ours()
    found = start.grad.numpy().ravel()
    differences = []
    for other in (autograd, step_by_step):
        other()
        expected = field.grad.numpy().ravel()
        differences.append(np.abs(found - expected).max() / np.abs(expected).max())
    case = f"forward Euler, {cells} x {cells}, {steps} steps"
    return [
        _report.row(case, "seconds, layer", mine),
        _report.row(case, "autograd through torch's steps / layer", whole / mine),
        _report.row(case, "torch step by step (PNODE) / layer", stepwise / mine),
        _report.row(case, "relative difference of gradients", max(differences), 1e-10),
    ]


def main():
    arguments = _report.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    rows = [row for kind in ("FEM", "FD") for row in overhead(kind)]
    rows += [row for kind in ("FEM", "FD") for row in batches(kind, npde.CrankNicolson(), 0.01, bar=5.0)]
    rows += batches("FD", npde.ForwardEuler(), 0.005)
    rows += rollouts(64, 200) + rollouts(256, 200)
    _report.finish(rows, arguments.json)


if __name__ == "__main__":
    main()
