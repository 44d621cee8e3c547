"""A search for a minimum, whatever the method: its evaluations, failures, iterations and files."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from npde_fem.discretize.semidiscrete import Array
from npde_fem.optimize.variables import Variables, Vector
from npde_fem.parallel import Refused, alike, is_terminal
from npde_fem.solve.integrate import SolveError
from npde_fem.solve.restart import read_values, write_values

import numpy as np
from mpi4py import MPI
from pyadjoint import ReducedFunctional
from pyadjoint.enlisting import Enlist
from tqdm import tqdm

__all__ = ["Iteration", "Objective", "Point", "Reduced", "Search"]


_PATIENCE = 50
"""Iterations in a row that may leave the iterate as it is, as those of trust regions that shrink do."""


class Iteration(NamedTuple):
    """One line of the history."""

    iteration: int
    loss: float
    gradient_norm: float


@dataclass
class Point:
    """The loss, and once it is asked for the gradient, at some values of the variables."""

    y: Array
    loss: float
    gradient: Array | None = None
    failed: bool = False


class Objective(Protocol):
    """A loss of this rank's variables, and where it stands; methods are collective."""

    def loss(self, y: Array) -> float:
        """Go to y and return the loss there."""

    def gradient(self) -> Array:
        """Return the derivative by this rank's variables where it stands."""

    def hessian(self, v: Array) -> Array:
        """Return the Hessian, where it stands and a gradient was asked for, times v."""

    def leave(self, y: Array) -> None:
        """Give what is optimised the values y, where it stands."""


class Reduced:
    """A reduced functional of pyadjoint as an objective."""

    def __init__(self, reduced: ReducedFunctional, variables: Variables) -> None:
        self.reduced, self.variables = reduced, variables

    def loss(self, y: Array) -> float:
        """Move the tape to y and return the loss there."""
        return float(self.reduced(self.reduced.controls.delist(self.variables.to_controls(y))))

    def gradient(self) -> Array:
        """Return the derivative where the tape stands."""
        return self.variables.derivative(Enlist(self.reduced.derivative()))

    def hessian(self, v: Array) -> Array:
        """Return the Hessian times v where the tape stands."""
        return self.variables.derivative(Enlist(self.reduced.hessian(self.variables.direction(v))))

    def leave(self, y: Array) -> None:
        """Give the controls themselves the values y."""
        self.variables.assign(y)


class Search:
    """One minimisation: evaluations with their failures, iterations with their files, and when to stop.

    Every method works on this rank's variables, all ranks together. Methods differ in what they ask for, and when; each
    calls :meth:`iteration` once for the start and once for every iterate.

    Attributes
    ----------
    history
        Iterations so far.
    evaluations
        Evaluations of the loss so far.
    stopped
        Why the last iterate is the last one; empty before.
    converged
        Whether it met a tolerance.
    """

    def __init__(
        self,
        objective: Objective,
        variables: Vector,
        gtol: float,
        ftol: float,
        max_iterations: int,
        progress: bool,
        log: str | os.PathLike | None,
        save: str | os.PathLike | None,
    ) -> None:
        self.objective, self.variables, self.comm = objective, variables, variables.comm
        self.gtol, self.ftol, self.max_iterations = gtol, ftol, max_iterations
        self.log, self.save = log, save
        self.history: list[Iteration] = []
        self.evaluations = 0
        self.stopped, self.converged = "", False
        self._iterations_before, self._norm_at_start, self._stalled = 0, 0.0, 0
        self._current: Point | None = None
        self._trial: Point | None = None
        self._stands: Point | None = None
        self._begun = time.perf_counter()
        shown = progress and is_terminal(self.comm)
        self._bar = tqdm(desc="minimize", disable=not shown, bar_format="{desc} [{elapsed}]", leave=False)

    def close(self) -> None:
        """Take the progress line away."""
        self._bar.close()

    # -- evaluations -----------------------------------------------------------------------------------------

    def loss(self, y: Array) -> float:
        """Return the loss at this rank's variables."""
        return self._point(y).loss

    def gradient(self, y: Array) -> Array:
        """Return the derivative of the loss by this rank's variables."""
        point = self._point(y)
        if point.gradient is None:
            self._go_to(point)
            point.gradient = self.objective.gradient()
            if not self._finite(point.gradient):
                if self._current is None:
                    raise ValueError("minimize: the gradient is not finite at the start")
                self._fail(point, self._current)
        assert point.gradient is not None
        return point.gradient

    def hessian(self, y: Array, v: Array) -> Array:
        """Return the Hessian at y times v."""
        point = self._point(y)
        if self._stands is not point or point.gradient is None:
            point.gradient = None
            self.gradient(y)
        return self.objective.hessian(v)

    def _finite(self, values: Array) -> bool:
        return bool(self.comm.allreduce(bool(np.isfinite(values).all()), op=MPI.LAND))

    def _point(self, y: Array) -> Point:
        for known in (self._trial, self._current):
            if known is not None and self.variables.same(known.y, y):
                return known
        point = Point(y.copy(), np.nan)
        self.evaluations += 1
        try:
            self._go_to(point)
        except (SolveError, Refused, ArithmeticError):
            self._stands = None
            if self._current is None:
                raise
        if not np.isfinite(point.loss):
            if self._current is None:
                raise ValueError(f"minimize: the loss is {point.loss} at the start; a finite one is needed")
            self._fail(point, self._current)
        self._trial = point
        return point

    def _go_to(self, point: Point) -> None:
        if self._stands is not point:
            self._stands = None
            point.loss = self.objective.loss(point.y)
            self._stands = point

    def _fail(self, point: Point, base: Point) -> None:
        """Let a failed point look like a parabola with its minimum at a quarter of the step: searches shorten it."""
        step = point.y - base.y
        slope, square = self.comm.allreduce(np.array([self.gradient(base.y) @ step, step @ step]))
        drop = abs(slope) or max(1.0, abs(base.loss))
        point.failed, point.loss = True, base.loss + drop
        point.gradient = 3 * drop / square * step

    # -- iterations ------------------------------------------------------------------------------------------

    def iteration(self, y: Array) -> bool:
        """Take note of an iterate; return whether to stop."""
        before, point = self._current, self._point(y)
        gradient = self.gradient(y)
        if point.failed and before is not None and before.gradient is not None:
            point, gradient = before, before.gradient
        self._current = point
        norm = self.variables.norm(self.variables.projected(point.y, gradient))
        count = self._iterations_before + len(self.history)
        self.history.append(Iteration(count, point.loss, norm))
        self._norm_at_start = self._norm_at_start or norm
        self._bar.set_description_str(f"minimize: iteration {count}, loss {point.loss:.6g}, gradient {norm:.3g}")
        if self.log is not None:
            self._write_log(self.history[-1])
        if self.save is not None:
            self._write_iterate(count, point.y)
        drop = self.history[-4].loss - point.loss if len(self.history) > 3 else 0.0
        self.converged = True
        if norm <= self.gtol * self._norm_at_start:
            self.stopped = f"the gradient fell to {self.gtol:g} of that at the start"
        elif 0 < drop <= self.ftol * max(abs(point.loss), abs(point.loss + drop)):
            self.stopped = f"three iterations lowered the loss by less than {self.ftol:g} of itself"
        else:
            self.converged = False
            self._stalled = self._stalled + 1 if before is point else 0
            if count >= self.max_iterations:
                self.stopped = f"{count} iterations made, as many as allowed"
            elif self._stalled == _PATIENCE:
                self.stopped = f"no step of {_PATIENCE} iterations lowered the loss"
        return bool(self.stopped)

    def seconds(self) -> float:
        """Return the wall time so far."""
        return time.perf_counter() - self._begun

    def finish(self) -> Point:
        """Leave what is optimised at the last iterate, and return it."""
        last = self._current
        assert last is not None
        self._go_to(last)
        self.objective.leave(last.y)
        return last

    def restore(self, history: Sequence[tuple[int, float, float]], norm: float, stalled: int, y: Array) -> None:
        """Go on from the last iterate of a search whose history, first gradient's norm and patience are given."""
        self.history = [Iteration(*row) for row in history]
        self._norm_at_start, self._stalled = norm, stalled
        self._current = self._point(y)
        self.gradient(y)

    # -- files -----------------------------------------------------------------------------------------------

    def _write_log(self, line: Iteration) -> None:
        new = line.iteration == 0
        with alike(self.comm):
            if self.comm.rank == 0 and self.log is not None:
                with Path(self.log).open("w" if new else "a") as file:
                    if new:
                        file.write("iteration,loss,gradient_norm,seconds\n")
                    file.write(f"{line.iteration},{line.loss!r},{line.gradient_norm!r},{self.seconds():.3f}\n")

    def _write_iterate(self, count: int, y: Array) -> None:
        ahead = [float(count), self._norm_at_start] if self.comm.rank == 0 else []
        assert self.save is not None
        write_values(self.comm, np.concatenate([ahead, y * self.variables.scale]), self.save)

    def resume(self, path: str | os.PathLike) -> Array:
        """Read an iterate, and what was before it."""
        ahead = 2 if self.comm.rank == 0 else 0
        stored = read_values(self.comm, ahead + self.variables.start.size, path)
        count, self._norm_at_start = self.comm.bcast(stored[:2] if self.comm.rank == 0 else None, root=0)
        self._iterations_before = int(count)
        return stored[ahead:] / self.variables.scale
