"""Adam: gradient flow with inertia, preconditioned by a running mean of squares."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from npde_fem.learn.samples import check_batch
from npde_fem.learn.training import Fit, Training
from npde_fem.parallel import alike

import torch

__all__ = ["Adam"]


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) on batches; AdamW (Loshchilov and Hutter 2019) with weight decay.

    Elementwise, so that it acts on each rank's part of a field as on the whole. The order of samples is drawn from the
    training's seed, alike on every rank.

    Parameters
    ----------
    lr
        Learning rate at the start.
    batch
        Samples a step; None: all. Data that is an iterable has batches of its own.
    betas, eps
        Of the algorithm.
    weight_decay
        Decoupled from the gradient.
    schedule
        None; ``"cosine"``: to zero along half a cosine, over all epochs; or a function of the epoch's number (0 at
        first) that returns a factor of ``lr``.
    clip
        Longest gradient: a longer one is shortened to it. Its norm is that over all weights and ranks.

    Raises
    ------
    ValueError
        If a number is out of range, or the schedule is none.
    """

    lr: float = 1e-3
    batch: int | None = 32
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Literal["cosine"] | Callable[[int], float] | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("eps", self.eps), *([] if self.clip is None else [("clip", self.clip)])):
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"Adam: {name} = {value!r} given; a positive number allowed")
        check_batch("Adam", self.batch)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"Adam: betas = {self.betas!r} given; two numbers from 0 to below 1 allowed")
        if not self.weight_decay >= 0:
            raise ValueError(f"Adam: weight_decay = {self.weight_decay!r} given; a number from 0 on allowed")
        if not (self.schedule in (None, "cosine") or callable(self.schedule)):
            raise ValueError(f"Adam: schedule = {self.schedule!r} given; None, 'cosine' or a function allowed")

    def rate(self, epoch: int, epochs: int) -> float:
        """Return the learning rate of an epoch, of so many."""
        if self.schedule is None:
            return self.lr
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        return self.lr * float(self.schedule(epoch))

    def identity(self) -> dict[str, object]:
        """Return what must be the same for a checkpoint to be gone on from."""
        schedule = self.schedule if self.schedule in (None, "cosine") else "a function"
        return {
            "learner": "Adam",
            "lr": self.lr,
            "batch": self.batch,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "schedule": schedule,
            "clip": self.clip,
        }

    def train(self, training: Training, resumed: tuple[dict, dict] | None = None) -> Fit:
        """Train; ``resumed`` is what a checkpoint has of the learner."""
        weights = training.parameters
        optimiser = torch.optim.AdamW(weights.values(), self.lr, self.betas, self.eps, self.weight_decay)
        if resumed is not None:
            for name, state in resumed[0].items():
                optimiser.state[weights[name]] = state
        while not training.reason:
            done = training.history[-1].epoch if training.history else 0
            if done >= training.epochs:
                return training.finish(reason=f"{done} epochs were done before")
            rate = self.rate(done, training.epochs)
            for group in optimiser.param_groups:
                group["lr"] = rate
            total, count = 0.0, 0
            training.model.train()
            for batch in training.data.batches(self.batch, training.generator):
                training.clear()
                loss = training.backward(batch)
                training.collect()
                self._shorten(training, loss)
                optimiser.step()
                total, count = total + loss * batch.size, count + batch.size
            training.epoch(total / count, rate)
            training.save({name: dict(optimiser.state[p]) for name, p in weights.items()})
        return training.finish()

    def _shorten(self, training: Training, loss: float) -> None:
        """Clip the gradient; raise ArithmeticError alike on all ranks if it, or the loss, is not finite."""
        gradients = {name: p.grad for name, p in training.parameters.items() if p.grad is not None}
        norm = math.sqrt(training.square(gradients))
        with alike(training.comm):
            if not math.isfinite(norm) or not math.isfinite(loss):
                raise ArithmeticError(
                    f"fit: loss {loss}, norm of the gradient {norm} in epoch {len(training.history) + 1}; a smaller "
                    "learning rate, or clip=, may help"
                )
        if self.clip is not None and norm > self.clip:
            for g in gradients.values():
                g.mul_(self.clip / norm)
