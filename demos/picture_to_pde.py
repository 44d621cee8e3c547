"""From a picture to the future: a CNN that sees cells, followed by the PDE that moves them, trained end to end.

    python demos/picture_to_pde.py
    mpirun -n 2 python demos/picture_to_pde.py                # two members of an ensemble, half of the samples each
    mpirun -n 2 python demos/picture_to_pde.py --ranks 2      # one member, each sample on two ranks in space

A camera takes one picture of a culture: unevenly lit, out of focus, noisy. Later the density of cells is measured, at
two times. What is the density in the picture? Nobody has labelled it. But whatever it is, it grows and spreads by

    u_t = div(D grad u) + r u (1 - u),

and must lead to what was measured. So a convolutional network maps the picture to an initial state, a layer solves the
equation from there, and the loss compares with the later densities; its gradient flows back through the solve into the
network. The network learns to see, and D and r, which start far off, are learnt on the way. All of it is made up here,
so that the truth is known: both the states, which no training step sees, and D = 2e-3, r = 1.5.

A batch of pictures is a batch of initial states: one fused kernel steps all of them. Under mpirun an ensemble shares
the samples among its members, and each member's solves may be spread over ranks in space; the gradients are the same.
"""

import argparse
import time
from pathlib import Path

import npde_fem as npde
from npde_fem import learn
from npde_fem.output import save_figure
from npde_fem.parallel import on_root, say

import numpy as np
import torch
from mpi4py import MPI

parser = argparse.ArgumentParser(description="A CNN and a PDE layer trained end to end.")
parser.add_argument("--ranks", type=int, default=1, help="ranks in space of one member of the ensemble (default: 1)")
parser.add_argument("--samples", type=int, default=48, help="pictures to learn from (default: 48)")
parser.add_argument("--epochs", type=int, default=60, help="passes through them (default: 60)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.samples, arguments.epochs = 8, 3

comm = MPI.COMM_WORLD
ensemble = learn.Ensemble(comm, arguments.ranks)
arguments.output.mkdir(parents=True, exist_ok=True)
n, batch, times = 32, 8, [0.25, 1.0]
torch.manual_seed(0)
random = np.random.default_rng(0)

D = npde.Parameter("D", 2e-3, bounds=(1e-4, 1e-2))
r = npde.Parameter("r", 1.5, bounds=(0, 5))
equation = npde.physics.fisher_kpp(D, r)
problem = npde.FD(equation, npde.Grid(ensemble.space, (n, n), (0, 0), (1, 1)))


def layer():
    """Return the layer that leads from initial states, shape (batch, dofs), to those at both times."""
    return learn.Layer(problem, t=(0, times[-1]), dt=0.0125, scheme=npde.ForwardEuler(), observe=times, bounded=True)


# The truth, and the pictures of it: clusters of cells; a light that is stronger on one side, a blur, and noise.


def blur(images, passes):
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    kernel = (kernel[:, None] * kernel / 16)[None, None]
    for _ in range(passes):
        images = torch.nn.functional.conv2d(torch.nn.functional.pad(images, (1, 1, 1, 1), "replicate"), kernel)
    return images


def cultures(count):
    """Return initial states and pictures, shape (count, 1, n, n) each, the same on every rank."""
    x, y = np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij")
    states = np.zeros((count, n, n))
    for state in states:
        for _ in range(random.integers(3, 7)):
            cx, cy, size = *random.uniform(0.1, 0.9, 2), random.uniform(0.04, 0.12)
            state += random.uniform(0.3, 0.8) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * size**2))
    states = torch.from_numpy(np.minimum(states, 0.95))[:, None]
    light = torch.from_numpy(0.6 + 0.5 * x + 0.2 * y)
    noise = torch.from_numpy(random.normal(size=states.shape))
    return states, 0.3 + light * blur(states, 2) ** 1.5 + 0.03 * noise


truth, pictures = cultures(arguments.samples + batch)
truth_layer = layer()
with torch.no_grad():
    later = torch.cat([truth_layer(learn.scatter(s[:, 0], problem)) for s in truth.split(batch)])
D.value, r.value = 6e-3, 0.5  # what training begins with

eye = torch.nn.Sequential(
    *(torch.nn.Conv2d(3, 12, 5, padding=2, padding_mode="replicate"), torch.nn.SiLU()),
    *(torch.nn.Conv2d(12, 12, 5, padding=2, padding_mode="replicate"), torch.nn.SiLU()),
    *(torch.nn.Conv2d(12, 1, 5, padding=2, padding_mode="replicate"),),
).double()
x, y = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=torch.float64)] * 2, indexing="ij")


def see(images):
    """Return the densities that the network sees, 0 to 1: it begins with the picture, and is told where it looks."""
    corrected = 6 * images - 5 + eye(torch.cat([images, x.expand_as(images), y.expand_as(images)], dim=1))
    return torch.sigmoid(corrected)[:, 0]


physics = layer()
ensemble.share(eye)
ensemble.share(physics)
optimiser = torch.optim.Adam([{"params": eye.parameters(), "lr": 4e-3}, {"params": physics.parameters(), "lr": 0.05}])
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, arguments.epochs)


def loss(images, wanted):
    """Return the mean square error over all members' samples, all times and all points: one number."""
    return learn.mse(physics(learn.scatter(see(images), problem)), wanted, comm)


begun, history = time.perf_counter(), []
for epoch in range(arguments.epochs):
    order = torch.randperm(arguments.samples)
    values = []
    for part in order.split(batch):
        part = ensemble.mine(part)
        optimiser.zero_grad()
        value = loss(pictures[part], later[part])
        value.backward()
        optimiser.step()
        values.append(value.item())
    schedule.step()
    physics.write_back()
    history.append((np.mean(values), float(D.value), float(r.value)))
    if epoch % 10 == 9 or epoch + 1 == arguments.epochs:
        say(
            comm, f"epoch {epoch + 1:>3}: loss {history[-1][0]:.2e}, D = {history[-1][1]:.2e}, r = {history[-1][2]:.3f}"
        )

fresh = slice(arguments.samples, None)
with torch.no_grad():
    seen = see(pictures[fresh])
    guessed = learn.gather(physics(learn.scatter(seen, problem)), problem)
    wanted = learn.gather(later[fresh], problem)


def error(x, y):
    return float((x - y).norm() / y.norm())


say(comm, f"{time.perf_counter() - begun:.0f} s on {comm.size} ranks, {ensemble.members} members")
say(comm, f"D = {history[-1][1]:.3e} (truth 2e-3), r = {history[-1][2]:.3f} (truth 1.5)")
say(comm, f"fresh pictures: initial state, never shown, within {error(seen, truth[fresh, 0]):.1%};")
say(comm, f"densities at t = {times[0]:g} and {times[1]:g} within {error(guessed, wanted):.1%} (relative L2)")
picture = arguments.output / "picture_to_pde.png"


def draw():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 6, figsize=(15, 5), layout="constrained")
    for row, k in zip(axes, (0, 1), strict=True):
        shots = [
            ("picture", pictures[fresh][k, 0], "gray", None),
            ("density it sees", seen[k], "viridis", 1),
            ("true, never shown", truth[fresh][k, 0], "viridis", 1),
            (f"predicted, t = {times[-1]:g}", guessed[k, -1], "viridis", 1),
            (f"true, t = {times[-1]:g}", wanted[k, -1], "viridis", 1),
        ]
        for panel, (title, image, colours, top) in zip(row, shots, strict=False):
            panel.imshow(image.numpy().T, origin="lower", cmap=colours, vmin=0 if top else None, vmax=top)
            panel.set(title=title, xticks=[], yticks=[])
    losses, diffusivities, rates = zip(*history, strict=True)
    axes[0, 5].semilogy(losses)
    axes[0, 5].set(title="loss", xlabel="epoch")
    axes[1, 5].plot(np.array(diffusivities) / 2e-3, label="D / truth")
    axes[1, 5].plot(np.array(rates) / 1.5, label="r / truth")
    axes[1, 5].axhline(1, color="0.7", lw=1)
    axes[1, 5].set(title="learnt of the equation", xlabel="epoch", yscale="log")
    axes[1, 5].legend(frameon=False)
    save_figure(figure, picture)
    plt.close(figure)


on_root(comm, draw)
say(comm, f"written: {picture}")
