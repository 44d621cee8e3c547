"""What may be done after each epoch: stop early, write a log."""

from __future__ import annotations

import copy
import csv
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from npde_fem.parallel import alike

if TYPE_CHECKING:
    from npde_fem.learn.training import Training

__all__ = ["CSVLog", "Callback", "EarlyStopping", "Epoch", "TensorBoardLog"]


class Epoch(NamedTuple):
    """One line of the history.

    Attributes
    ----------
    epoch
        How many are done; 0 is the start (of L-BFGS).
    loss
        Mean over the samples; of Adam as they were met, while the weights moved.
    validation
        Loss of the validation data, or None.
    metrics
        By name, of the validation data, or of the training data if there is none.
    rate
        Learning rate; NaN where there is none.
    seconds
        Wall time so far, that before a resumption too.
    """

    epoch: int
    loss: float
    validation: float | None
    metrics: dict[str, float]
    rate: float
    seconds: float


class Callback:
    """What is called after each epoch, on all ranks; any function of the training does as well.

    Its attributes that :meth:`state` returns are part of checkpoints.
    """

    def __call__(self, training: Training) -> bool | None:
        """Do it; return True to stop."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return what must be kept to go on after a resumption."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take a state that :meth:`state` returned."""

    def finish(self, training: Training) -> None:
        """Do what is left to be done at the end."""


class EarlyStopping(Callback):
    """Stop when a loss has not fallen for some epochs, and go back to the best weights.

    Parameters
    ----------
    patience
        Epochs to wait for a lower loss.
    least
        By how much it must be lower to count.
    on
        ``"validation"``, ``"loss"``, or the name of a metric, of which the largest is best.
    restore_best
        Whether the model has the weights of the best epoch at the end.

    Raises
    ------
    ValueError
        If ``patience`` is no positive integer, or there is nothing of that name when training begins.
    """

    def __init__(
        self, patience: int = 10, least: float = 0.0, on: str = "validation", restore_best: bool = True
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"EarlyStopping: patience = {patience!r} given; a positive integer allowed")
        self.patience, self.least, self.on, self.restore_best = patience, least, on, restore_best
        self.best, self.waited = math.inf, 0
        self.weights: dict[str, Any] | None = None

    def __call__(self, training: Training) -> bool:
        """Compare the last epoch with the best one."""
        last = training.history[-1]
        known: dict[str, float | None] = {"validation": last.validation, "loss": last.loss, **last.metrics}
        value = known.get(self.on)
        if value is None:
            there = ", ".join(repr(name) for name, v in known.items() if v is not None)
            raise ValueError(f"EarlyStopping: on = {self.on!r} given, which this training has not; {there} allowed")
        value = -value if self.on in last.metrics else value
        if value < self.best - self.least:
            self.best, self.waited = value, 0
            if self.restore_best:
                self.weights = copy.deepcopy(training.model.state_dict())
            return False
        self.waited += 1
        return self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """Return the best loss and its weights."""
        return {"best": self.best, "waited": self.waited, "weights": self.weights}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them."""
        self.best, self.waited, self.weights = state["best"], state["waited"], state["weights"]

    def finish(self, training: Training) -> None:
        """Go back to the best weights."""
        if self.restore_best and self.weights is not None:
            training.model.load_state_dict(self.weights)


class CSVLog(Callback):
    """Write a line for each epoch to a CSV file, on rank 0. A resumed training writes the lines before it anew."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self._begun = Path(path), False

    def __call__(self, training: Training) -> None:
        """Write the last epoch."""
        with alike(training.comm):
            if training.comm.rank == 0:
                rows = training.history[-1:] if self._begun else training.history
                with self.path.open("a" if self._begun else "w", newline="") as file:
                    writer = csv.writer(file)
                    if not self._begun:
                        names = ["epoch", "loss", "validation", *training.history[-1].metrics, "rate", "seconds"]
                        writer.writerow(names)
                    for row in rows:
                        validation = "" if row.validation is None else repr(row.validation)
                        values = [repr(v) for v in row.metrics.values()]
                        writer.writerow(
                            [row.epoch, repr(row.loss), validation, *values, repr(row.rate), f"{row.seconds:.3f}"]
                        )
        self._begun = True


class TensorBoardLog(Callback):
    """Write losses, metrics and the learning rate for TensorBoard, on rank 0.

    Raises
    ------
    ImportError
        If there is no ``tensorboard``; the message has the command that installs it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardLog needs tensorboard: pip install tensorboard") from error
        self.folder, self._make = folder, SummaryWriter
        self._writer: Any = None

    def __call__(self, training: Training) -> None:
        """Write the last epoch."""
        if training.comm.rank:
            return
        self._writer = self._writer or self._make(self.folder)
        last = training.history[-1]
        values = {"loss": last.loss, "rate": last.rate, **last.metrics}
        if last.validation is not None:
            values["validation"] = last.validation
        for name, value in values.items():
            if not math.isnan(value):
                self._writer.add_scalar(name, value, last.epoch)

    def finish(self, training: Training) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
