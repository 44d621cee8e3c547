"""What recognises classes, and how well: as lines of a table and as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npde_fem.learn import Fit
from npde_fem.parallel import on_root

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from torch import Tensor

__all__ = ["Recognition", "Trained", "heading", "row", "write_json"]


@dataclass(frozen=True)
class Trained:
    """One training and what it made of data that it had not seen.

    Attributes
    ----------
    fit
        How it ended; its model is trained.
    confusion
        Number of unseen samples by class and answer, shape (classes, classes).
    """

    fit: Fit
    confusion: npt.NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Share of unseen samples that are recognised."""
        return float(np.trace(self.confusion) / self.confusion.sum())


@dataclass(frozen=True)
class Recognition:
    """Trainings of one model on several divisions of the data.

    Attributes
    ----------
    task, learner, method
        What was done.
    classes
        Their names.
    trained
        One for each division.
    examples
        An unseen sample of the first division for each class, one that is recognised if there is such a one.
    fields
        Coefficients that the first division has learnt, as pictures by name, of a :class:`Medium`.
    reference
        Accuracy that others report, and where.
    """

    task: str
    learner: str
    method: str
    classes: tuple[str, ...]
    trained: list[Trained] = field(repr=False)
    examples: Tensor = field(repr=False)
    fields: dict[str, npt.NDArray[np.float64]] = field(repr=False, default_factory=dict)
    reference: tuple[float, str] | None = None

    @property
    def accuracies(self) -> npt.NDArray[np.float64]:
        """Share of unseen samples recognised, one for each division."""
        return np.array([part.accuracy for part in self.trained])

    @property
    def accuracy(self) -> float:
        """Their mean."""
        return float(self.accuracies.mean())

    @property
    def spread(self) -> float:
        """Their standard deviation; nan for a single one."""
        return float(self.accuracies.std(ddof=1)) if len(self.trained) > 1 else float("nan")

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Number of unseen samples by class and answer, over all divisions."""
        return np.sum([part.confusion for part in self.trained], axis=0)

    @property
    def seconds(self) -> float:
        """Time of all trainings."""
        return sum(part.fit.seconds for part in self.trained)


def heading() -> str:
    """Return the line above :func:`row`."""
    return f"{'task':<15}{'learner':<15}{'method':<10}{'loss':>9}{'epochs':>8}{'s':>8}   accuracy on unseen data"


def row(found: Recognition) -> str:
    """Return a line of a table."""
    last = found.trained[-1].fit
    spread = "" if np.isnan(found.spread) else f" +- {100 * found.spread:.1f} over {len(found.trained)} divisions"
    beside = "" if found.reference is None else f"   ({100 * found.reference[0]:.4g} %: {found.reference[1]})"
    return (
        f"{found.task:<15}{found.learner:<15}{found.method:<10}{last.loss:>9.4f}{last.epochs:>8}{found.seconds:>8.1f}"
        f"   {100 * found.accuracy:.2f} %{spread}{beside}"
    )


def record(found: Recognition) -> dict[str, Any]:
    """Return it as it stands in JSON."""
    return {
        "task": found.task,
        "learner": found.learner,
        "method": found.method,
        "accuracy": found.accuracy,
        "spread": None if np.isnan(found.spread) else found.spread,
        "accuracies": found.accuracies.tolist(),
        "losses": [part.fit.loss for part in found.trained],
        "history": [
            [{"epoch": e.epoch, "loss": e.loss, **e.metrics, "seconds": e.seconds} for e in part.fit.history]
            for part in found.trained
        ],
        "epochs": [part.fit.epochs for part in found.trained],
        "seconds": found.seconds,
        "classes": list(found.classes),
        "confusion": found.confusion.tolist(),
        "reference": None
        if found.reference is None
        else {"accuracy": found.reference[0], "source": found.reference[1]},
    }


def write_json(found: Recognition, path: str | os.PathLike[str], comm: MPI.Comm, **more: Any) -> None:
    """Write one as an object, with more beside it by name, whole or not at all (collective)."""

    def write() -> None:
        target = Path(path)
        aside = target.with_name(f".{target.name}.part")
        aside.write_text(json.dumps(record(found) | more, indent=1) + "\n")
        aside.replace(target)

    on_root(comm, write)
