"""Inputs and targets batch by batch, as often as they are needed."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.learn.pseudoinverse.stream import as_rows
from npde_fem.parallel import alike

import numpy as np
import torch
from mpi4py import MPI

__all__ = ["Coding", "Encoded", "Samples", "evaluating", "one_hot", "same_within", "spaces_of"]

Encoded = Literal["signed", "unit"]
Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor]


class Samples:
    """Batches ``(inputs, targets)`` of this rank's samples, given anew each time they are iterated over.

    Parameters
    ----------
    data
        A pair of tensors or arrays, of which the inputs may be a tuple of such, or an iterable of such pairs, which
        begins anew whenever it is iterated over.
    batch
        Samples that are treated together of a pair.

    Raises
    ------
    TypeError, ValueError
        If it is neither, or lengths differ.
    """

    def __init__(self, data: Any, batch: int) -> None:
        self._batch = batch
        self._whole: Batch | None = None
        if isinstance(data, tuple) and len(data) == 2:
            self._whole = _pair(data)
        elif isinstance(data, Iterator) or not isinstance(data, Iterable):
            raise TypeError(
                f"data: {type(data).__name__} given; a pair (inputs, targets), or an iterable of such pairs that can "
                "be iterated over several times (a list, a DataLoader), allowed"
            )
        else:
            self._batches = data

    def __iter__(self) -> Iterator[Batch]:
        if self._whole is None:
            yield from map(_pair, self._batches)
            return
        inputs, targets = self._whole
        for start in range(0, len(targets), self._batch):
            part = slice(start, start + self._batch)
            yield tuple(x[part] for x in inputs), targets[part]


def _pair(data: Any) -> Batch:
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise TypeError(f"data: a pair (inputs, targets) allowed, {type(data).__name__} given")
    inputs, targets = data
    tensors = tuple(map(_tensor, inputs)) if isinstance(inputs, tuple) else (_tensor(inputs),)
    y = torch.as_tensor(targets)
    lengths = [len(x) if x.ndim else -1 for x in (*tensors, y)]
    if len(set(lengths)) > 1 or -1 in lengths:
        raise ValueError(f"data: inputs of {lengths[:-1]} samples and targets of {lengths[-1]} given; as many allowed")
    return tensors, y


def _tensor(x: Any) -> torch.Tensor:
    """Return inputs as a tensor of floating-point numbers."""
    made = torch.as_tensor(x)
    return made if made.is_floating_point() or made.is_complex() else made.to(torch.get_default_dtype())


# -- targets ---------------------------------------------------------------------------------------------------


def one_hot(labels: Any, classes: int, encoded: Encoded = "signed", first: int = 0) -> Array:
    """Return a column for each class, 1 where it is the label's, elsewhere -1 (``"signed"``) or 0 (``"unit"``).

    Raises
    ------
    ValueError
        If a label is not 0 to ``classes - 1``; samples are counted from ``first``.
    """
    numbers = np.asarray(labels)
    wrong = (numbers < 0) | (numbers >= classes)
    if wrong.any():
        k = int(np.argmax(wrong))
        raise ValueError(f"targets: label {numbers[k]} of sample {first + k} given; 0 to {classes - 1} allowed")
    made = np.full((len(numbers), classes), -1.0 if encoded == "signed" else 0.0)
    made[np.arange(len(numbers)), numbers] = 1.0
    return made


class Coding:
    """How targets are regressed on: labels as columns of classes, numbers as they are.

    Made of all samples of all ranks (collective): integers along one axis are labels, of which each must occur.

    Parameters
    ----------
    samples
        This rank's.
    outputs
        Columns that the read-out has, None if it is free to have as many as needed.
    encoded
        As of :func:`one_hot`.
    comm
        Ranks over which the samples are distributed.

    Raises
    ------
    ValueError
        On every rank alike: if labels are out of range, a class has no sample, or outputs do not fit.
    """

    def __init__(self, samples: Samples, outputs: int | None, encoded: Encoded, comm: MPI.Comm) -> None:
        self._encoded = encoded
        counts, labelled, seen = np.zeros(outputs or 0, dtype=np.int64), None, 0
        with alike(comm):
            for _, targets in samples:
                kind = targets.ndim == 1 and not targets.is_floating_point() and not targets.is_complex()
                if labelled not in (None, kind):
                    raise ValueError("targets: labels in some batches and numbers in others given; one kind allowed")
                labelled = kind
                if not labelled:
                    # Numbers need no look ahead.
                    break
                labels = targets.detach().cpu().numpy().astype(np.int64)
                if outputs is not None or (labels < 0).any():
                    one_hot(labels, outputs or int(labels.max(initial=0)) + 1, first=seen)
                found = np.bincount(labels, minlength=len(counts))
                found[: len(counts)] += counts
                counts, seen = found, seen + len(labels)
        kinds = comm.allgather((labelled, seen > 0))
        known = {kind for kind, _ in kinds if kind is not None}
        if len(known) > 1:
            raise ValueError("targets: labels on some ranks and numbers on others given; one kind allowed")
        self.classes: int | None = None
        if known != {True}:
            return
        classes = comm.allreduce(len(counts), op=MPI.MAX)
        total = comm.allreduce(np.pad(counts, (0, classes - len(counts))))
        if not classes or not total.all():
            empty = [int(k) for k in np.flatnonzero(total == 0)]
            raise ValueError(f"targets: classes {empty} of 0 to {classes - 1} have no sample; at least one each needed")
        self.classes = classes

    def __call__(self, targets: torch.Tensor, first: int = 0) -> Array:
        """Return targets as rows (samples, outputs)."""
        if self.classes is not None:
            return one_hot(targets.detach().cpu().numpy(), self.classes, self._encoded, first)
        numbers = as_rows("targets", targets, first)
        return numbers[:, None] if numbers.ndim == 1 else numbers


# -- models that are looked at ---------------------------------------------------------------------------------


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Let a module be in evaluation mode, each part of it afterwards in that in which it was, without gradients."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def spaces_of(module: torch.nn.Module) -> list[MPI.Comm]:
    """Return the communicators of several ranks on which the problems in a module are solved."""
    problems = [getattr(part, "problem", None) for part in module.modules()]
    comms = [problem.comm for problem in problems if isinstance(problem, Semidiscrete) and problem.comm.size > 1]
    return list({comm.handle: comm for comm in comms}.values())


def same_within(features: Array, spaces: list[MPI.Comm]) -> bool:
    """Return whether this rank is to count the samples: of ranks that solve together the first (collective on these).

    Raises
    ------
    ValueError
        If the ranks have unlike features.
    """
    for comm in spaces:
        mine = zlib.crc32(np.ascontiguousarray(features)), features.shape
        if len(set(comm.allgather(mine))) > 1:
            raise ValueError(
                "features: ranks that solve a problem together have unlike ones; the same on all allowed, as those of "
                "a Probe or of learn.gather"
            )
    return all(comm.rank == 0 for comm in spaces)
