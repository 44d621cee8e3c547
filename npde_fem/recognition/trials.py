"""Training on one part of labelled samples, and testing on the rest, for any learner and number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from npde_fem.learn import Ensemble, Pseudoinverse, fit
from npde_fem.learn.fit import Learner
from npde_fem.recognition.report import Recognition, Trained

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI
from torch import Tensor, nn

__all__ = ["LEARNERS", "Made", "folds", "recognise"]

LEARNERS = ("adam", "lbfgs", "pde", "pseudoinverse")
"""Adam; L-BFGS with strong Wolfe steps; TAO's bounded L-BFGS; the read-out alone, in closed form."""

Made = tuple[nn.Module | None, Learner | Pseudoinverse]
"""A fresh model (None: the pseudoinverse makes it), and how it learns."""

Loss = str | Callable[[Tensor, Tensor], Tensor]

_AT_ONCE = 24


def folds(labels: npt.ArrayLike, count: int = 5, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the fold of each sample; each class is divided as evenly as can be.

    Raises
    ------
    ValueError
        If there are fewer than two folds, or a class has fewer samples than folds.
    """
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    fewest = np.bincount(labels).min()
    if not 2 <= count <= fewest:
        raise ValueError(f"folds: {count} given; 2 to {fewest}, the samples of the smallest class, allowed")
    found = np.zeros(len(labels), dtype=np.int64)
    for k in np.unique(labels):
        found[rng.permutation(np.flatnonzero(labels == k))] = np.arange((labels == k).sum()) % count
    return found


def recognise(
    task: str,
    learner: str,
    method: str,
    x: Tensor,
    labels: npt.NDArray[np.int64],
    names: Sequence[str],
    make: Callable[[Ensemble], Made],
    *,
    loss: Loss = "cross_entropy",
    fields: Callable[[nn.Module], dict[str, npt.NDArray[np.float64]]] | None = None,
    count: int,
    divisions: Sequence[int],
    epochs: int,
    seed: int,
    comm: MPI.Comm,
    ranks_per_sample: int = 1,
    progress: bool = True,
    reference: tuple[float, str] | None = None,
) -> Recognition:
    """Train and test a fresh model on divisions of the samples, of which each leaves one fold out (collective).

    Parameters
    ----------
    task, learner, method
        What is done, by name.
    x, labels, names
        Samples along the first axis; the number of the class of each; the classes' names.
    make
        Makes a model, whose problems live on ``ensemble.space``, and a learner.
    loss
        Of outputs and labels, for all learners but the pseudoinverse.
    fields
        Returns what :attr:`Recognition.fields` shall have of a trained model (collective on ``ensemble.space``).
    count
        Number of folds (:func:`folds`).
    divisions
        Which of them to leave out, one after the other.
    epochs
        Of each training.
    seed
        Of folds and trainings.
    comm, ranks_per_sample
        All ranks, and how many of them work on one sample; see :class:`~npde_fem.learn.Ensemble`.
    progress
        Whether to draw a line (rank 0, on a terminal).
    reference
        Accuracy that others report, and where.

    Raises
    ------
    ValueError
        If a division is none of the folds, or as :func:`folds` and :func:`~npde_fem.learn.fit` raise it.
    """
    if learner not in LEARNERS:
        raise ValueError(f"{task}: learner {learner!r} given; {', '.join(LEARNERS)} allowed")
    chosen = list(divisions)
    if not chosen or not set(chosen) <= set(range(count)):
        raise ValueError(f"{task}: divisions {chosen} given; numbers from 0 to {count - 1} allowed")
    fold = folds(labels, count, seed)
    y = torch.from_numpy(labels.copy())
    trained: list[Trained] = []
    examples, kept = x[:0], dict[str, npt.NDArray[np.float64]]()
    ensemble = Ensemble(comm, ranks_per_sample)
    for k in chosen:
        seen, unseen = (torch.from_numpy(np.flatnonzero(part)) for part in (fold != k, fold == k))
        torch.manual_seed(seed + k)
        model, how = make(ensemble)
        solves_for_weights = isinstance(how, Pseudoinverse)
        found = fit(
            model,
            (x[seen], y[seen]),
            None if solves_for_weights else loss,
            how,
            epochs=epochs,
            validation=(x[unseen], y[unseen]),
            metrics=("accuracy",),
            seed=seed + k,
            comm=comm,
            ensemble=ensemble,
            progress=progress,
        )
        answers = _answers(found.model, x[unseen], ensemble)
        confusion = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(confusion, (labels[unseen.numpy()], answers), 1)
        if not trained:
            examples = x[unseen][_examples(labels[unseen.numpy()], answers)]
            kept = {} if fields is None else fields(found.model)
        trained.append(Trained(found, confusion))
    ensemble.free()
    return Recognition(task, learner, method, tuple(names), trained, examples, kept, reference)


def _answers(model: nn.Module, x: Tensor, ensemble: Ensemble) -> npt.NDArray[np.int64]:
    """Return the class of each sample; the members share them."""
    part = slice(*(len(x) * k // ensemble.members for k in (ensemble.member, ensemble.member + 1)))
    mine = [np.zeros(0, dtype=np.int64)]
    with torch.no_grad():
        mine += [model(some).argmax(1).numpy() for some in x[part].split(_AT_ONCE) if len(some)]
    return np.concatenate(ensemble.across.allgather(np.concatenate(mine)))


def _examples(labels: npt.NDArray[np.int64], answers: npt.NDArray[np.int64]) -> list[int]:
    """Return one sample of each class, if there is one that is recognised such a one."""
    order = np.argsort(labels != answers, kind="stable")
    return [int(order[labels[order] == k][0]) for k in np.unique(labels)]


def positive(task: str, **numbers: Any) -> None:
    """Raise ValueError unless all are positive integers."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{task}: {name} = {value!r} given; a positive integer allowed")
