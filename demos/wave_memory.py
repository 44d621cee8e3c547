"""What a network remembers: a wave keeps its energy and its gradients, an Elman cell forgets.

    python demos/wave_memory.py

A recurrent network takes an input at every step, and its hidden state is all that it knows about the past. To learn
from something that happened T steps ago, a derivative must come back through T steps, multiplied by T matrices. Of an
Elman cell (Elman 1990),

    u' = tanh(W u + U x + s),

these are contractions where W is small, and the product vanishes (Bengio, Simard and Frasconi 1994, IEEE Trans. Neural
Networks 5); where W is large, the cell is chaotic, and it explodes. In between it must be tuned.

Both networks discretise an equation. Elman's is of first order in time, u_t = N u + U x + s with a reaction. The wave
equation is of second order,

    u_tt = div(c(x)^2 grad u) + s,

and its leapfrog steps are a recurrent network too, linear, with the hidden state (u, u before). It conserves

    E = h sum |u - u_before|^2 / (2 dt^2) - u L u_before / 2

to round-off, whatever the speed c(x) is that is trained. So derivatives stay between fixed bounds. All of it is solved
once more as an equation, by finite differences and leapfrog, to the same numbers.
"""

import argparse
from pathlib import Path

import npde_fem as npde
from npde_fem.networks.kinds.rnn import rnn, wave_rnn
from npde_fem.output import save_figure

import numpy as np
import torch

parser = argparse.ArgumentParser(description="Memory of a wave network and of Elman cells.")
parser.add_argument("--neurons", type=int, default=64, help="hidden units of each (default: 64)")
parser.add_argument("--steps", type=int, default=10_000, help="steps of the free wave (default: 10000)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.neurons = 24
arguments.output.mkdir(parents=True, exist_ok=True)
n, real = arguments.neurons, torch.float64
torch.manual_seed(0)

# A wave with a speed of its own at each point, plucked in the middle, and left alone.

speed = 0.4 + 0.6 * np.random.default_rng(0).random(n)
wave = wave_rnn((n,), 1, speed=speed, sources=[0.0], dtype=real)
pluck = torch.exp(-(((torch.arange(n, dtype=real) - n / 2) / 3) ** 2))
nothing = torch.zeros(1, arguments.steps, 1, dtype=real)
with torch.no_grad():
    states = wave(nothing, (pluck[None], pluck[None]), states=True)[1][0]
    energy = wave.energy(states[1:], states[:-1])
drift = (energy / energy[0] - 1).abs().numpy()
print(f"energy after {arguments.steps} steps of {wave.dt:.3f}: within {drift.max():.1e} of that in the beginning")

short = 200
solved = wave.as_equation().solve(np.zeros((short, 1)), (pluck, pluck))
apart = np.abs(solved.states - states[:short].numpy()).max()
print(f"solved as an equation by finite differences: {short} steps differ by {apart:.1e}")

# Derivatives of an observation of the last state, by the states before it.

length, before = 1000, 200
observation = torch.randn(1, n, dtype=real)
noise = torch.randn(1, before + length, 1, dtype=real)
back = np.unique(np.geomspace(1, length, 60).astype(int))


def through_wave():
    """Norm of the derivative by (u, u before), so many steps back, over that of the observation."""
    norms = []
    for steps in back:
        start = [torch.zeros(1, n, dtype=real, requires_grad=True) for _ in range(2)]
        last = wave(noise[:, -steps:], tuple(start), states=True)[1][:, -1]
        gradient = torch.autograd.grad((last * observation).sum(), start)
        norms.append(float(torch.cat(gradient).norm() / observation.norm()))
    return np.array(norms)


def through_cell(radius):
    """The same of an Elman cell whose matrix W has this spectral radius; None: as nn.RNN begins."""
    cell = rnn(1, n, dtype=real)
    if radius is not None:
        with torch.no_grad():
            matrix = torch.randn(n, n, dtype=real)
            matrix *= radius / torch.linalg.eigvals(matrix).abs().max()
            cell.kernel.copy_(matrix - torch.eye(n, dtype=real))
    norms = []
    for steps in back:
        with torch.no_grad():
            start = cell(noise[:, :-steps])
        start.requires_grad_()
        (gradient,) = torch.autograd.grad((cell(noise[:, -steps:], start) * observation).sum(), start)
        norms.append(float(gradient.norm() / observation.norm()))
    return np.array(norms)


curves = {"wave": through_wave(), "Elman, stock": through_cell(None)}
for radius in (0.9, 1.0, 1.2, 2.0):
    curves[f"Elman, radius {radius:g}"] = through_cell(radius)
for name, norms in curves.items():
    print(f"{name}: the derivative through {length} steps is {norms[-1] / norms[0]:.2e} of that through one")

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained", width_ratios=(1, 1, 1.4))
shown = states[: 6 * n].numpy()
limit = 0.7 * np.abs(shown).max()
left.imshow(shown, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="bilinear")
left.set(xlabel="neuron", ylabel="step", title="the wave, plucked in the middle")
middle.semilogy(np.arange(1, arguments.steps), np.maximum(drift, 1e-17), linewidth=0.6, color="tab:blue")
middle.set(xlabel="step", ylim=(1e-17, 1e-6), title="|E / E at the start - 1|")
for name, norms in curves.items():
    style = {"color": "black", "linewidth": 2} if name == "wave" else {}
    right.loglog(back, np.maximum(norms, 1e-30), label=name, **style)
right.axhspan(1e-3, 1e3, color="0.93", zorder=0)
right.set(xlabel="steps back", ylim=(1e-20, 1e4), title="norm of the derivative by the hidden state")
right.legend(frameon=False, fontsize=9, loc="lower left")
for axis in (middle, right):
    axis.spines[["top", "right"]].set_visible(False)
save_figure(figure, arguments.output / "wave_memory.png")
print(f"written: {arguments.output / 'wave_memory.png'}")
