"""Generated networks beside stock ones of the same shape on scikit-learn's 1,797 digits of 8 x 8 pixels.

A generated CNN, MLP and RNN are trained through their coefficients (mass, drift, diffusion, remainder; kernels; sources),
their stock twins (``as_torch()`` of the same start) through torch's weights: the same optimiser, batches and epochs.
450 digits, drawn anew for each seed, are for the test.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import npde_fem as npde

import numpy as np
import torch
from _report import finish, parser, row
from sklearn.datasets import load_digits
from torch import nn

SEEDS, TESTED, BATCH = 5, 450, 32


def cnn() -> nn.Module:
    channels = (1, 8, 16)
    return npde.networks.cnn(
        grid=(8, 8), channels=channels, pooling=[npde.networks.Pooling("max", 2), None], readout=10
    )


def mlp() -> nn.Module:
    return npde.networks.mlp((64, 64, 32), readout=10)


def rnn() -> nn.Module:
    return npde.networks.rnn(8, 64, 10)


# How a network is made, how it sees a digit, and its learning rate and epochs.
TASKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], float, int]] = {
    "CNN": (cnn, (1, 8, 8), 2e-3, 30),
    "MLP": (mlp, (64,), 1e-3, 40),
    "RNN": (rnn, (8, 8), 3e-3, 60),
}


def accuracy(network: nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float, epochs: int, seed: int) -> float:
    """Train a network; return its share of right answers on the digits it has not seen, in %."""
    order = np.random.default_rng(seed).permutation(len(x))
    unseen, seen = torch.from_numpy(order[:TESTED]), torch.from_numpy(order[TESTED:])
    optimiser = torch.optim.Adam(network.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in seen[torch.randperm(len(seen), generator=generator)].split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        return 100.0 * float((network(x[unseen]).argmax(1) == y[unseen]).double().mean())


def main() -> None:
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    pixels, labels = load_digits(return_X_y=True)
    y, rows = torch.tensor(labels), []
    for case, (make, shape, rate, epochs) in TASKS.items():
        x = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, *shape)
        found: dict[str, list[float]] = {"generated": [], "stock": []}
        seconds = {"generated": 0.0, "stock": 0.0}
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            generated = make()
            for kind, network in (("stock", generated.as_torch()), ("generated", generated)):
                begun = time.perf_counter()
                found[kind].append(accuracy(network, x, y, rate, epochs, seed))
                seconds[kind] += time.perf_counter() - begun
        for kind, values in found.items():
            rows.append(row(case, f"{kind}: test accuracy, %", np.mean(values)))
            rows.append(row(case, f"{kind}: its standard deviation", np.std(values, ddof=1)))
        lost = np.mean(found["stock"]) - np.mean(found["generated"])
        rows.append(row(case, "stock - generated, points", lost, at_most=1.0))
        rows.append(row(case, "time of training / stock", seconds["generated"] / seconds["stock"]))
        print(f"{case} done", flush=True)
    finish(rows, arguments.json)


if __name__ == "__main__":
    main()
