"""Training data: samples in memory, or batches that come anew each time; checked before work begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["LOSSES", "METRICS", "Batch", "Samples", "Stream", "check_batch", "check_labels", "data_from", "loss_from"]

Tensors = tuple[torch.Tensor, ...]
Loss = Callable[..., torch.Tensor]


def accuracy(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the share of samples whose largest output is that of their label."""
    return (output.argmax(1) == labels).double().mean()


LOSSES: Mapping[str, Loss] = {
    "cross_entropy": torch.nn.functional.cross_entropy,
    "mse": torch.nn.functional.mse_loss,
}
"""Losses by name: means over the samples."""

METRICS: Mapping[str, Callable[..., Any]] = {
    "accuracy": accuracy,
    "mse": torch.nn.functional.mse_loss,
}
"""Metrics by name: means over the samples."""


@dataclass(frozen=True)
class Batch:
    """Some samples: the model's inputs, targets (None: there are none), and their number."""

    inputs: Tensors
    targets: torch.Tensor | None
    size: int


class Samples:
    """Samples in memory: tensors whose first axis counts them.

    Attributes
    ----------
    inputs
        The model's inputs, each ``(samples, ...)``.
    targets
        ``(samples, ...)``.
    """

    def __init__(self, inputs: Tensors, targets: torch.Tensor | None) -> None:
        self.inputs, self.targets = inputs, targets
        self.size = len(inputs[0]) if inputs else 1

    def take(self, which: torch.Tensor | slice) -> Batch:
        """Return some of them."""
        if not self.inputs:
            return Batch((), self.targets, 1)
        targets = None if self.targets is None else self.targets[which]
        inputs = tuple(x[which] for x in self.inputs)
        return Batch(inputs, targets, len(inputs[0]))

    def batches(self, size: int | None, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield all samples once, so many at a time, in an order drawn from a generator or in their own."""
        if size is None or not self.inputs:
            yield self.take(slice(None))
            return
        order = torch.arange(self.size) if generator is None else torch.randperm(self.size, generator=generator)
        for which in order.split(size):
            yield self.take(which)

    def first(self) -> Batch:
        """Return the first sample."""
        return self.take(slice(0, 1))


class Stream:
    """Batches that an iterable gives anew each time, in its order: data that need not fit into memory."""

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source

    def batches(self, size: int | None, generator: torch.Generator | None = None) -> Iterator[Batch]:
        """Yield the batches, checked; ``size`` and ``generator`` are the stream's own affair."""
        count = 0
        for count, given in enumerate(self.source, 1):
            if not isinstance(given, tuple) or len(given) != 2:
                raise TypeError(f"data: batch {count - 1} is {_short(given)}; a pair (inputs, targets) allowed")
            yield _samples(f"data: batch {count - 1}: ", *given).take(slice(None))
        if not count:
            raise ValueError("data: the iterable gave no batch; one must give them anew each time it is iterated")

    def first(self) -> Batch:
        """Return the first batch."""
        return next(iter(self.batches(None)))


def data_from(label: str, data: Any) -> Samples | Stream:
    """Return training data, checked.

    Raises
    ------
    TypeError, ValueError
        If it is none of those that :func:`~npde_fem.learn.fit` takes, lengths differ, there are no samples, or a number
        is NaN or infinite.
    """
    if data is None:
        return Samples((), None)
    if isinstance(data, tuple) and len(data) == 2:
        return _samples(f"{label}: ", *data)
    if isinstance(data, Iterable) and not isinstance(data, str | torch.Tensor | np.ndarray | Iterator):
        return Stream(data)
    raise TypeError(
        f"{label}: a pair (inputs, targets), an iterable of such pairs that can be iterated often, or None allowed, "
        f"{_short(data)} given"
    )


def _short(given: Any) -> str:
    return type(given).__name__ if len(repr(given)) > 60 else repr(given)


def _samples(label: str, inputs: Any, targets: Any) -> Samples:
    many = inputs if isinstance(inputs, tuple) else (inputs,)
    names = ["inputs"] if len(many) == 1 else [f"inputs[{k}]" for k in range(len(many))]
    made = tuple(_tensor(f"{label}{name}", x) for name, x in zip(names, many, strict=True))
    wanted = None if targets is None else _tensor(f"{label}targets", targets)
    lengths = {len(x) for x in (*made, *([] if wanted is None else [wanted]))}
    if len(lengths) != 1:
        told = ", ".join(f"{len(x)} {name}" for name, x in zip(names, made, strict=True))
        more = "" if wanted is None else f", {len(wanted)} targets"
        raise ValueError(f"{label}{told}{more} given; as many of each allowed")
    if lengths == {0}:
        raise ValueError(f"{label}no samples given; at least one needed")
    return Samples(made, wanted)


def _tensor(label: str, given: Any) -> torch.Tensor:
    try:
        made = given if isinstance(given, torch.Tensor) else torch.as_tensor(np.asarray(given))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{label}: a tensor or array allowed, {_short(given)} given") from error
    if not made.ndim:
        raise ValueError(f"{label}: a single number given; a first axis that counts samples is needed")
    if made.is_floating_point() or made.is_complex():
        bad = ~torch.isfinite(made)
        if bad.any():
            sample = int(bad.reshape(len(made), -1).any(1).nonzero()[0])
            raise ValueError(f"{label}: {int(bad.sum())} numbers are NaN or infinite, the first in sample {sample}")
    return made.detach()


def check_batch(label: str, batch: Any) -> None:
    """Raise ValueError unless a number of samples is a positive integer, or None for all."""
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"{label}: batch = {batch!r} given; a positive integer, or None for all samples, allowed")


def loss_from(loss: Any, with_targets: bool) -> Loss:
    """Return the loss that a name or function means.

    Raises
    ------
    TypeError, ValueError
        If it is none, or a named one without targets.
    """
    if callable(loss):
        return loss
    if not isinstance(loss, str):
        names = ", ".join(LOSSES)
        raise TypeError(f"loss: a function (output, targets) -> number or one of {names} allowed, {loss!r} given")
    if loss not in LOSSES:
        raise ValueError(f"loss: unknown name {loss!r}; {', '.join(LOSSES)} allowed, or a function")
    if not with_targets:
        raise ValueError(f"loss {loss!r} compares with targets, and data has none; a function of the output allowed")
    return LOSSES[loss]


def check_labels(labels: torch.Tensor | None, classes: int, *, all_seen: bool = True) -> None:
    """Raise ValueError unless labels are integers from 0 to ``classes - 1``, each of them there at least once.

    Raises
    ------
    TypeError, ValueError
        If not; the first sample with a bad label, or the classes without samples, are named.
    """
    if labels is None:
        raise ValueError("targets: none given; a label for each sample is needed")
    if labels.is_floating_point() or labels.is_complex() or labels.ndim != 1:
        raise TypeError(
            f"targets: a tensor of shape {tuple(labels.shape)} and type {labels.dtype} given; one integer label for "
            "each sample allowed"
        )
    outside = ((labels < 0) | (labels >= classes)).nonzero().ravel()
    if len(outside):
        at = int(outside[0])
        raise ValueError(
            f"targets: label {int(labels[at])} of sample {at} is out of range; 0 to {classes - 1} allowed, as the "
            f"model has {classes} outputs"
        )
    empty = sorted(set(range(classes)) - set(labels.unique().tolist()))
    if all_seen and empty:
        raise ValueError(f"targets: no sample has label {', '.join(map(str, empty))}, of {classes} classes")
