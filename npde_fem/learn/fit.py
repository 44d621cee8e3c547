"""One way to call all learners."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from npde_fem.learn.adam import Adam
from npde_fem.learn.callbacks import CSVLog, Epoch
from npde_fem.learn.distributed import Ensemble
from npde_fem.learn.layer import Layer
from npde_fem.learn.lbfgs import LBFGS, PDEConstrained
from npde_fem.learn.pseudoinverse import Pseudoinverse
from npde_fem.learn.samples import METRICS, Samples, Stream, data_from, loss_from
from npde_fem.learn.training import Fit, Training
from npde_fem.optimize import PDEConstrainedProblem
from npde_fem.parallel import alike

import torch
from mpi4py import MPI

__all__ = ["Learner", "fit"]


_LEARNERS = "Adam(...), LBFGS(...), PDEConstrained(...) or Pseudoinverse(...)"


class Learner(Protocol):
    """How to learn: data, and one method."""

    def train(self, training: Training, resumed: Any = None) -> Fit:
        """Train."""

    def identity(self) -> dict[str, object]:
        """Return what must be the same for a checkpoint to be gone on from."""


def fit(
    model: torch.nn.Module | PDEConstrainedProblem | None,
    data: Any = None,
    loss: Any = None,
    learner: Learner | Pseudoinverse | None = None,
    *,
    epochs: int = 100,
    validation: Any = None,
    metrics: Sequence[str] | Mapping[str, Callable[..., Any]] = (),
    callbacks: Sequence[Callable[[Training], bool | None]] = (),
    seed: int = 0,
    comm: MPI.Comm | None = None,
    ensemble: Ensemble | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int | None = None,
    resume: bool | str | os.PathLike[str] = False,
    log: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Fit:
    """Train a model (collective): minimise the mean of ``loss(model(inputs), targets)`` over the samples.

    Parameters
    ----------
    model
        A torch module: a :class:`Layer`, a generated network, a stock module with layers inside. Weights with
        ``requires_grad`` are trained. Or a :class:`~npde_fem.PDEConstrainedProblem`, which has data and loss. None
        where a :class:`Pseudoinverse` makes the layers.
    data
        A pair ``(inputs, targets)`` of tensors or arrays whose first axis counts samples; ``inputs`` may be a tuple of
        several. Or an iterable of such pairs, batches that need not fit into memory, which is iterated once an epoch.
        None for a model without inputs: then the loss is a function of its output.
    loss
        ``"cross_entropy"``, ``"mse"``, or a function of output and targets: a mean over the samples it is given. On
        several ranks it must be one number for all (:func:`mse`, :func:`mean`).
    learner
        :class:`Adam` (the default), :class:`LBFGS`, :class:`PDEConstrained` or :class:`Pseudoinverse`.
    epochs
        Passes over the data; of L-BFGS and its like iterations. A resumed training goes on to this number.
    validation
        Data as ``data``, of which loss and metrics are taken after each epoch.
    metrics
        Names (``"accuracy"``, ``"mse"``) or functions of output and targets by name; of the validation data, or else of
        the training data.
    callbacks
        Functions of the :class:`~npde_fem.learn.training.Training`, called after each epoch; True stops it.
        :class:`EarlyStopping`, :class:`CSVLog`, :class:`TensorBoardLog` are there.
    seed
        Of the order of samples and of torch's random numbers (dropout). The same seed gives the same bits.
    comm
        All ranks that work on this; by default that of the ensemble, of the model's first layer, or else the world.
    ensemble
        Members that share the samples of each batch; the weights begin as those of the first rank.
    checkpoint
        File to write, whole or not at all, after each ``every`` epochs and at the end.
    every
        By default 1, of L-BFGS 20.
    resume
        True: go on from ``checkpoint`` if there is such a file, and begin anew otherwise; a path: go on from that file.
        On as many ranks the weights become the same, to the bit, as those of a training that was never interrupted.
        Where no weight is a field, another number of ranks may go on.
    log
        CSV file with a line for each epoch.
    progress
        Whether to draw a progress line (rank 0, on a terminal).

    Returns
    -------
    Fit
        How it ended. The model has the trained weights; :meth:`Layer.write_back` gives them to the equation.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above; if numbers are NaN, labels are out of range, a class has no sample, or the loss
        depends on no weight; if a checkpoint is of another model or learner. Nothing has been done then.
    ArithmeticError
        If the loss becomes NaN or infinite.
    SolveError
        If a solve fails.
    """
    learner = Adam() if learner is None else learner
    known = isinstance(learner, Pseudoinverse) or all(hasattr(learner, name) for name in ("train", "identity"))
    if not known or isinstance(learner, type):
        raise TypeError(
            f"learner: Adam(...), LBFGS(...), PDEConstrained(...) or Pseudoinverse(...) allowed, {learner!r} given"
        )
    for name, value in (("epochs", epochs), ("every", 1 if every is None else every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} = {value!r} given; a positive integer allowed")
    if isinstance(model, PDEConstrainedProblem):
        given = {"data": data, "loss": loss, "validation": validation, "ensemble": ensemble}
        return _constrained(model, learner, epochs, checkpoint, resume, log, progress, given)
    if isinstance(learner, Pseudoinverse):
        idle = {"callbacks": callbacks, "checkpoint": checkpoint, "every": every, "resume": resume, "log": log}
        return _closed_form(model, data, loss, learner, validation, _metrics(metrics), seed, comm, ensemble, idle)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: a torch module or a PDEConstrainedProblem allowed, {type(model).__name__} given")
    comm = comm or _comm(model, ensemble)
    with alike(comm):
        samples = data_from("data", data)
        held_out = None if validation is None else data_from("validation", validation)
        with_targets = not isinstance(samples, Samples) or samples.targets is not None
        training = Training(
            model,
            samples,
            loss_from("mse" if loss is None else loss, with_targets),
            validation=held_out,
            metrics=_metrics(metrics),
            callbacks=[*callbacks, *([] if log is None else [CSVLog(log)])],
            seed=seed,
            comm=comm,
            ensemble=ensemble,
            epochs=epochs,
            checkpoint=checkpoint,
            every=every if every is not None else 20 if isinstance(learner, LBFGS | PDEConstrained) else 1,
            progress=progress,
        )
        if resume is True and checkpoint is None:
            raise ValueError("resume = True given without checkpoint, the file to go on from")
    return training.run(learner, resume, classes=loss == "cross_entropy")


def _comm(model: torch.nn.Module, ensemble: Ensemble | None, alone: MPI.Comm = MPI.COMM_WORLD) -> MPI.Comm:
    if ensemble is not None:
        return ensemble.comm
    comms = [part.problem.comm for part in model.modules() if isinstance(part, Layer)]
    return comms[0] if comms else alone


def _metrics(given: Any) -> dict[str, Callable[..., Any]]:
    if isinstance(given, Mapping):
        if bad := [name for name, metric in given.items() if not callable(metric)]:
            raise TypeError(f"metrics: {bad} are no functions of output and targets")
        return dict(given)
    names = [given] if isinstance(given, str) else list(given)
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"metrics: {unknown} given; {', '.join(METRICS)} allowed, or functions by name")
    return {name: METRICS[name] for name in names}


def _closed_form(
    model: Any,
    data: Any,
    loss: Any,
    learner: Pseudoinverse,
    validation: Any,
    metrics: dict[str, Callable[..., Any]],
    seed: int,
    comm: MPI.Comm | None,
    ensemble: Ensemble | None,
    idle: Mapping[str, Any],
) -> Fit:
    """Solve for the read-out; a history of one epoch, whose loss is the mean squared error of the coded targets."""
    if extra := [name for name, value in idle.items() if value]:
        raise ValueError(f"{', '.join(extra)}: given, but pseudoinverse learning has no epochs; none allowed")
    if loss not in (None, "mse"):
        raise ValueError(f"loss: {loss!r} given; pseudoinverse learning minimises squares: None or 'mse' allowed")
    comm = comm or (MPI.COMM_SELF if model is None and ensemble is None else _comm(model, ensemble, MPI.COMM_SELF))
    with alike(comm):
        samples = data_from("data", data)
        held_out = None if validation is None else data_from("validation", validation)
    begun = time.perf_counter()
    solved = learner.solve(model, _part(data, samples, ensemble), comm=comm, seed=seed)
    seen, labels = held_out or samples, solved.classes is not None
    training = Training(
        solved.model,
        seen,
        _squares(solved.classes, learner.targets) if labels else loss_from("mse", True),
        metrics=metrics or ({"accuracy": METRICS["accuracy"]} if labels else {}),
        comm=comm,
        ensemble=ensemble,
        progress=False,
    )
    value, found = training.measured(seen, learner.batch)
    error = solved.readout.mean_square
    row = Epoch(1, error, value if held_out else None, found, math.nan, time.perf_counter() - begun)
    best = error if held_out is None else value
    return Fit(solved.model, [row], error, best, 1, 1, True, solved.reason, row.seconds)


def _part(data: Any, samples: Samples | Stream, ensemble: Ensemble | None) -> Any:
    """Return the samples of this member: each has a share, of batches that come one by one each its own."""
    if ensemble is None or ensemble.members == 1:
        return data
    members, k = ensemble.members, ensemble.member
    if isinstance(samples, Stream):
        return _Every(samples.source, k, members)
    part = slice(samples.size * k // members, samples.size * (k + 1) // members)
    inputs = tuple(x[part] for x in samples.inputs)
    return (inputs if len(inputs) > 1 else inputs[0]), samples.targets[part]  # type: ignore[index]


class _Every:
    """Each n-th batch of a stream."""

    def __init__(self, source: Any, first: int, step: int) -> None:
        self.source, self.first, self.step = source, first, step

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.source), self.first, None, self.step)


def _squares(classes: int | None, targets: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the mean squared error of columns of classes."""

    def loss(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        columns = torch.nn.functional.one_hot(labels.long(), int(classes or 0)).to(output.dtype)
        return (output - (columns if targets == "unit" else 2 * columns - 1)).square().mean()

    return loss


def _constrained(
    problem: PDEConstrainedProblem,
    learner: Any,
    epochs: int,
    checkpoint: Any,
    resume: Any,
    log: Any,
    progress: bool,
    given: Mapping[str, Any],
) -> Fit:
    """Minimise a problem that has data and loss."""
    if extra := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(extra)}: given, but a PDEConstrainedProblem has its own; None allowed")
    if not isinstance(learner, LBFGS | PDEConstrained):
        raise TypeError(f"learner: LBFGS or PDEConstrained allowed for a PDEConstrainedProblem, {learner!r} given")
    if resume is True and checkpoint is None:
        raise ValueError("resume = True given without checkpoint, the file to go on from")
    source = resume if resume not in (True, False) else None
    if resume is True and problem.problem.comm.bcast(os.path.isfile(checkpoint), root=0):
        source = checkpoint
    found = problem.minimize(
        max_iterations=epochs if learner.max_iterations is None else learner.max_iterations,
        save=checkpoint,
        resume=source,
        log=log,
        progress=progress,
        **learner.arguments(),
    )
    history = [Epoch(row.iteration, row.loss, None, {}, math.nan, math.nan) for row in found.history]
    best = min(row.loss for row in history)
    return Fit(
        problem,
        history,
        found.loss,
        best,
        found.iterations,
        found.evaluations,
        found.converged,
        found.reason,
        found.seconds,
    )
