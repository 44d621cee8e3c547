"""One training: a model, its data and loss on many ranks; gradients, epochs, files. What every learner shares."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from npde_fem.learn.callbacks import Callback, Epoch
from npde_fem.learn.checkpoint import Checkpoint
from npde_fem.learn.distributed import Distributed, Ensemble
from npde_fem.learn.samples import Batch, Samples, Stream, check_labels
from npde_fem.parallel import alike, is_terminal

import numpy as np
import torch
from mpi4py import MPI
from tqdm import tqdm

__all__ = ["Fit", "Training"]


@dataclass
class Fit:
    """How a training ended.

    Attributes
    ----------
    model
        What was trained.
    history
        Every epoch (of L-BFGS: iteration).
    loss
        The last epoch's loss.
    best
        Lowest validation loss, or lowest loss where there is no validation data.
    epochs
        Epochs done, those before a resumption too.
    evaluations
        Times that the model ran over all data, or a part of it, with a gradient.
    converged
        Whether a tolerance was met.
    reason
        Why it stopped, in words.
    seconds
        Wall time, that before a resumption too.
    """

    model: Any
    history: list[Epoch] = field(repr=False)
    loss: float
    best: float
    epochs: int
    evaluations: int
    converged: bool
    reason: str
    seconds: float


class Training:
    """What a learner works on; methods are collective on ``comm``.

    Parameters
    ----------
    model, data, validation, loss, metrics, callbacks, seed, comm, ensemble, epochs, every, progress
        See :func:`~npde_fem.learn.fit`, which has checked them.
    checkpoint
        Where to write, or None.

    Attributes
    ----------
    parameters
        Weights that are trained, by name.
    history
        Epochs so far.
    evaluations
        Evaluations with a gradient so far.
    reason
        Why the last epoch was the last one; empty before.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data: Samples | Stream,
        loss: Callable[..., torch.Tensor],
        *,
        validation: Samples | Stream | None = None,
        metrics: Mapping[str, Callable[..., Any]] | None = None,
        callbacks: Sequence[Callable[..., Any]] = (),
        seed: int = 0,
        comm: MPI.Comm = MPI.COMM_SELF,
        ensemble: Ensemble | None = None,
        epochs: int = 100,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int = 1,
        progress: bool = True,
    ) -> None:
        self.model, self.data, self.loss, self.validation = model, data, loss, validation
        self.metrics, self.callbacks = dict(metrics or {}), list(callbacks)
        self.seed, self.comm, self.ensemble, self.epochs = seed, comm, ensemble, epochs
        self.every, self.history, self.evaluations, self.reason = every, list[Epoch](), 0, ""
        self._first = 1
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("model: no weight that is trained (requires_grad); at least one needed")
        self.generator = torch.Generator().manual_seed(seed)
        self.checkpoint = None if checkpoint is None else Checkpoint(self, checkpoint)
        self._seconds_before, self._begun = 0.0, time.perf_counter()
        shown = progress and is_terminal(comm)
        self._bar = tqdm(desc="fit", disable=not shown, bar_format="{desc} [{elapsed}]", leave=False)

    # -- ranks -----------------------------------------------------------------------------------------------

    @property
    def ranks(self) -> int:
        """Number of ranks that work on this together."""
        return self.comm.size

    def share(self) -> None:
        """Let all members of the ensemble begin with the same weights and buffers.

        Fields and buffers are a rank's own, as the places of its dofs are, and those of the first member's.
        """
        if self.ensemble is None:
            return
        for p in (*self.model.parameters(), *self.model.buffers()):
            replicated = isinstance(p, torch.nn.Parameter) and not isinstance(p, Distributed)
            group = self.ensemble.comm if replicated else self.ensemble.across
            first = group.bcast(p.detach().cpu(), root=0)
            with torch.no_grad():
                p.copy_(first)

    def _mine(self, batch: Batch) -> Batch:
        """Return this member's part of a batch; it may be empty."""
        if self.ensemble is None or not batch.inputs:
            return batch
        members, k = self.ensemble.members, self.ensemble.member
        part = slice(batch.size * k // members, batch.size * (k + 1) // members)
        targets = None if batch.targets is None else batch.targets[part]
        return Batch(tuple(x[part] for x in batch.inputs), targets, part.stop - part.start)

    def _summed(self, values: np.ndarray) -> np.ndarray:
        if self.ensemble is not None and self.ensemble.members > 1:
            self.ensemble.across.Allreduce(MPI.IN_PLACE, values)
        return values

    # -- loss and gradient -----------------------------------------------------------------------------------

    def _run(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(*batch.inputs)
        return output, self._loss(output, batch)

    def _loss(self, output: torch.Tensor, batch: Batch) -> torch.Tensor:
        value = self.loss(output) if batch.targets is None else self.loss(output, batch.targets)
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            what = f"shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            raise ValueError(f"loss: {what} returned; a tensor of a single number allowed")
        return value.reshape(())

    def backward(self, batch: Batch, share: float = 1.0) -> float:
        """Add the gradient of a batch's mean loss, times ``share``, to ``.grad`` of the weights; return the mean loss.

        With an ensemble every member adds that of its own samples only: :meth:`collect` sums over the members.
        """
        self.evaluations += 1
        mine, value = self._mine(batch), 0.0
        if mine.size:
            part = mine.size / batch.size if self.ensemble is not None else 1.0
            loss = self._run(mine)[1]
            (loss * (part * share)).backward()
            value = part * float(loss.detach())
        return float(self._summed(np.array([value]))[0])

    def collect(self) -> None:
        """Sum gradients over the members of an ensemble, where each has those of its samples; fill in zeros."""
        for p in self.parameters.values():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.ensemble is None or self.ensemble.members == 1:
            return
        flat = np.concatenate([p.grad.detach().double().cpu().numpy().ravel() for p in self.parameters.values()])  # type: ignore[union-attr]
        first = 0
        for p, summed in zip(self.parameters.values(), [self._summed(flat)] * len(self.parameters), strict=True):
            values = torch.from_numpy(summed[first : first + p.numel()]).reshape(p.shape)
            p.grad.copy_(values)  # type: ignore[union-attr]
            first += p.numel()

    def clear(self) -> None:
        """Forget the gradients."""
        for p in self.parameters.values():
            p.grad = None

    def square(self, tensors: Mapping[str, torch.Tensor]) -> float:
        """Return the sum of squares of one tensor for each weight: those of fields over all ranks, others once."""
        own = np.zeros(1)
        alone = 0.0
        for name, value in tensors.items():
            square = float(value.detach().double().square().sum())
            if isinstance(self.parameters[name], Distributed):
                own[0] += square
            else:
                alone += square
        space = self.comm if self.ensemble is None else self.ensemble.space
        return alone + float(space.allreduce(own)[0])

    def check(self, classes: bool) -> None:
        """Run the first sample through model and loss before any work, as every epoch will.

        Raises
        ------
        ValueError
            If the loss is no finite number or depends on no weight that is trained; with ``classes``, if a label is out
            of range or a class has no sample.
        """
        state, was = torch.get_rng_state(), self.model.training
        self.model.eval()
        try:
            first = self.data.first()
            output = self.model(*first.inputs)
            with alike(self.comm):
                if classes:
                    self._check_classes(output)
            loss = self._loss(output, first)
            with alike(self.comm):
                if not math.isfinite(float(loss.detach())):
                    raise ValueError(f"loss: {float(loss.detach())} for the first sample, at the start; not finite")
                if not loss.requires_grad:
                    raise ValueError("loss: it does not depend on the model's weights")
            found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
            with alike(self.comm):
                if all(g is None for g in found):
                    raise ValueError(f"loss: it depends on none of the weights {', '.join(self.parameters)}")
        finally:
            self.model.train(was)
            torch.set_rng_state(state)

    def _check_classes(self, output: torch.Tensor) -> None:
        if output.ndim != 2:
            raise ValueError(
                f"model: outputs of shape {tuple(output.shape)} given; (samples, classes) needed by cross_entropy"
            )
        if isinstance(self.data, Samples):
            check_labels(self.data.targets, output.shape[1])
        if isinstance(self.validation, Samples):
            check_labels(self.validation.targets, output.shape[1], all_seen=False)

    def run(self, learner: Any, resume: bool | str | os.PathLike[str], *, classes: bool) -> Fit:
        """Check everything, go on from a checkpoint if that is asked for, and let a learner work (collective)."""
        if self.checkpoint is not None:
            self.checkpoint.learner = learner.identity()
        source = None if isinstance(resume, bool) else Checkpoint(self, resume)
        if resume is True and self.checkpoint is not None and self.comm.bcast(self.checkpoint.path.is_file(), root=0):
            source = self.checkpoint
        resumed = None
        try:
            torch.manual_seed(self.seed)
            self.share()
            self.check(classes)
            if source is not None:
                source.learner = learner.identity()
                resumed = source.read()
            found: Fit = learner.train(self, resumed)
            return found
        finally:
            self._bar.close()

    # -- epochs ----------------------------------------------------------------------------------------------

    def begin_at(self, epoch: int) -> None:
        """Let the first epoch that is noted be this one: 0 where the start itself is noted."""
        self._first = epoch

    def seconds(self) -> float:
        """Return the wall time so far."""
        return self._seconds_before + time.perf_counter() - self._begun

    def measured(self, data: Samples | Stream, size: int | None = 256) -> tuple[float, dict[str, float]]:
        """Return the mean loss and metrics of some data at the present weights."""
        sums, count = np.zeros(1 + len(self.metrics)), 0
        was = self.model.training
        self.model.eval()
        with torch.no_grad():
            for batch in data.batches(size):
                mine = self._mine(batch)
                if mine.size:
                    output, value = self._run(mine)
                    seen = [float(value), *(float(metric(output, mine.targets)) for metric in self.metrics.values())]
                    sums += mine.size * np.array(seen)
                count += batch.size
        self.model.train(was)
        means = self._summed(sums) / count
        if self.ensemble is None:
            means = sums / count
        return float(means[0]), dict(zip(self.metrics, means[1:].tolist(), strict=True))

    def epoch(self, loss: float, rate: float = math.nan) -> bool:
        """Take note of an epoch: history, progress, callbacks, checkpoint; return whether to stop."""
        number = self.history[-1].epoch + 1 if self.history else self._first
        validation, metrics = None, dict[str, float]()
        if self.validation is not None:
            validation, metrics = self.measured(self.validation)
        elif self.metrics:
            metrics = self.measured(self.data)[1]
        self.history.append(Epoch(number, loss, validation, metrics, rate, self.seconds()))
        parts = [f"fit: epoch {number}", f"loss {loss:.4g}"]
        parts += [f"validation {validation:.4g}"] if validation is not None else []
        parts += [f"{name} {value:.4g}" for name, value in metrics.items()]
        parts += [f"rate {rate:.2g}"] if not math.isnan(rate) else []
        self._bar.set_description_str(", ".join(parts))
        with alike(self.comm):
            if not math.isfinite(loss):
                raise ArithmeticError(
                    f"fit: the loss of epoch {number} is {loss}; a smaller learning rate, or clip=, may help"
                )
        stops = [bool(callback(self)) for callback in self.callbacks]
        if self.comm.allreduce(any(stops), op=MPI.LOR):
            self.reason = "a callback stopped it"
        elif number >= self.epochs:
            self.reason = f"{number} epochs done, as many as asked for"
        return bool(self.reason)

    def save(self, moments: Mapping[str, Any], rest: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint if one is due, or this is the end, with the state of the learner.

        ``moments`` has what belongs to each weight, by its name.
        """
        if self.checkpoint is not None and (self.reason or self.history[-1].epoch % self.every == 0):
            self.checkpoint.write(moments, rest or {})

    def states(self) -> dict[str, Any]:
        """Return what a checkpoint must have besides weights and the learner's state."""
        return {
            "history": [tuple(row) for row in self.history],
            "evaluations": self.evaluations,
            "seconds": self.seconds(),
            "callbacks": [(type(c).__name__, c.state()) for c in self.callbacks if isinstance(c, Callback)],
            "generator": self.generator.get_state(),
        }

    def restore(self, states: Mapping[str, Any]) -> None:
        """Take what :meth:`states` returned."""
        self.history = [Epoch(*row) for row in states["history"]]
        self.evaluations, self._seconds_before = states["evaluations"], states["seconds"]
        self._begun = time.perf_counter()
        stored = list(states["callbacks"])
        for callback in self.callbacks:
            names = [name for name, _ in stored]
            if isinstance(callback, Callback) and type(callback).__name__ in names:
                callback.restore(stored.pop(names.index(type(callback).__name__))[1])
        self.generator.set_state(states["generator"])

    def finish(self, *, converged: bool = False, reason: str = "") -> Fit:
        """End the training; return how it ended."""
        for callback in self.callbacks:
            if isinstance(callback, Callback):
                callback.finish(self)
        self._bar.close()
        losses = [row.loss if row.validation is None else row.validation for row in self.history]
        last = self.history[-1]
        return Fit(
            self.model, self.history, last.loss, min(losses), last.epoch, self.evaluations, converged,
            reason or self.reason, self.seconds(),
        )  # fmt: skip
