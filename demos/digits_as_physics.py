"""Handwritten digits classified by an equation: what a convolutional network has learnt, in terms of physics.

    python demos/digits_as_physics.py
    python demos/digits_as_physics.py --channels 8 --layers 4

Each layer of a convolutional network with kernels 3 wide is one explicit step of an equation,

    u_t = div(D grad u - c u) + m u + N u + s,      followed by a reaction, here max(u, 0):

its channels are the components of u, its depth is time, its padding a boundary condition (zeros: u = 0 one pixel beyond
the picture), and the nine numbers of each kernel are a mass m, a drift c (2), a diffusion D (3) and three higher terms
N. Here these are what is trained, on scikit-learn's 1,797 digits of 8 x 8 pixels (Alpaydin and Kaynak 1998, UCI Machine
Learning Repository). Beside it are trained, in the same way,

* the stock network of ``nn.Conv2d`` and ``nn.ReLU``, the same function at the start, through its weights;
* a network without N whose diffusion is positive and whose every step is stable by construction, whatever is learnt: an
  honest reaction-drift-diffusion system;
* and the linear read-out alone, of the digit itself: what the layers before it are worth.

Then the trained layers are read: tables of the coefficients, drift arrows and diffusion ellipses for each pair of
channels. And one digit is followed on its way: its equation, solved by finite differences, takes the states of the
layers one after the other.
"""

import argparse
import time
from pathlib import Path

import npde_fem as npde
from npde_fem import networks
from npde_fem.output import save_figure

import numpy as np
import torch
from mpi4py import MPI
from sklearn.datasets import load_digits

parser = argparse.ArgumentParser(description="A convolutional network on digits, read as physics.")
parser.add_argument("--channels", type=int, default=6, help="components of the state (default: 6)")
parser.add_argument("--layers", type=int, default=3, help="layers, which are time steps (default: 3)")
parser.add_argument("--epochs", type=int, default=30, help="passes over the digits (default: 30)")
parser.add_argument("--digit", type=int, default=0, help="which of the unseen digits to follow (default: the first)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.channels, arguments.layers, arguments.epochs = 5, 3, 4
arguments.output.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)

pixels, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(pixels))
x = torch.tensor(pixels[order] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
y = torch.tensor(labels[order])
unseen = 450


def generated(first, **settings):
    """Return a fresh network, always the same, of some channels at first."""
    torch.manual_seed(0)
    channels = (first, *[arguments.channels] * arguments.layers)
    return networks.cnn(grid=(8, 8), channels=channels, readout=10, **settings)


def train(network, x):
    """Train with Adam; return the share of unseen digits that are recognised, and the seconds it took."""
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    shuffle = torch.Generator().manual_seed(0)
    begun = time.perf_counter()
    for _ in range(arguments.epochs):
        for batch in (torch.randperm(len(x) - unseen, generator=shuffle) + unseen).split(32):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        right = (network(x[:unseen]).argmax(1) == y[:unseen]).double().mean().item()
    return right, time.perf_counter() - begun


# A stable step keeps the number of channels: the digit is the first one, and the others begin at zero, as channels that
# are new do in the other networks.
network, sound = generated(1), generated(arguments.channels, stable=True)
whole = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, arguments.channels - 1))
torch.manual_seed(0)
trained = {
    "read-out alone": (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), x),
    "stock network": (network.as_torch(), x),
    "generated network": (network, x),
    "stable, without N": (sound, whole),
}
for name, (one, inputs) in trained.items():
    right, seconds = train(one, inputs)
    count = sum(p.numel() for p in one.parameters())
    print(f"{name:<18}{count:>6} numbers: {100 * right:.1f} % of {unseen} unseen digits, trained in {seconds:.0f} s")

# The layers of convolutions, without the linear read-out behind them.
reading, sound_reading = (networks.interpret(one.as_torch()[: 2 * arguments.layers]) for one in (network, sound))
print(f"\nThe generated network, h = 1 pixel, dt = 1 layer:\n{reading}")


def least_diffusion(one):
    """Smallest eigenvalue of sum_ab n_a n_b D_ab, a matrix of the channels, over layers and directions n."""
    angles = np.linspace(0, np.pi, 60)
    normals = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    square = [c.diffusion for c in one.coefficients() if c.channels[0] == c.channels[1]]
    along = [np.einsum("na,nb,ijab->nij", normals, normals, diffusion) for diffusion in square]
    return min(float(np.linalg.eigvalsh(0.5 * (d + d.swapaxes(1, 2))).min()) for d in along)


print("\nSmallest eigenvalue of the channels' diffusion along any direction, and share of N in each step:")
for name, one, found in (("generated", network, reading), ("stable", sound, sound_reading)):
    shares = ", ".join(f"{100 * layer.remainder:.3g} %" for layer in found.layers)
    print(f"{name:<12}{least_diffusion(one):>9.3g}   {shares}")
reading.plot(arguments.output / "digits_as_physics.png")
sound_reading.plot(arguments.output / "digits_as_physics_stable.png")

# One digit on its way, as the network has it, and as its equation does: solved by finite differences.

digit = x[arguments.digit].double()
exact = network.double()
with torch.no_grad():
    scores = exact(digit[None])[0].numpy()
solved = exact.as_equation().solve(digit.numpy(), comm=MPI.COMM_SELF, progress=False)
apart = np.abs(solved.observed - scores).max()
print(f"\nThe digit is a {y[arguments.digit]}, the network says {scores.argmax()}.")
print(f"Finite differences of the equation and the network differ by {apart:.1e}.")

states = [digit.numpy(), *solved.states]


def draw(path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, columns = len(states), arguments.channels
    figure = plt.figure(figsize=(1.5 * columns + 3.8, 1.55 * rows + 0.6), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 2)
    for k, state in enumerate(states):
        axes = [figure.add_subplot(grid[k, c]) for c in range(len(state))]
        for c, (axis, component) in enumerate(zip(axes, state, strict=True)):
            image = axis.imshow(component, cmap="magma", vmin=0.0, vmax=float(state.max()))
            axis.set(xticks=[], yticks=[])
            if k < 2:
                axis.set_title("the digit" if k == 0 else f"$u_{{{c}}}$", fontsize=10)
        axes[0].set_ylabel(f"t = {k}")
        if k:
            figure.colorbar(image, ax=axes, pad=0.01, aspect=12)
    bars = figure.add_subplot(grid[:, columns:])
    bars.barh(range(10), scores, color=["#e4572e" if k == int(y[arguments.digit]) else "0.6" for k in range(10)])
    bars.axvline(0.0, color="0.3", lw=0.8)
    bars.set(yticks=range(10), xlabel="score (log-probability + constant)", title="read from the last state")
    bars.invert_yaxis()
    bars.spines[["top", "right"]].set_visible(False)
    figure.suptitle(r"A digit under $u_t = \mathrm{div}(D\,\nabla u - c\,u) + m\,u + N\,u + s$,  $u \geq 0$")
    save_figure(figure, path)
    plt.close(figure)


draw(arguments.output / "digit_in_time.png")
for name in ("digits_as_physics", "digits_as_physics_stable", "digit_in_time"):
    print(f"written: {arguments.output / (name + '.png')}")
