"""What a solve remembers, so that a sweep can go backwards through its steps: everything, or checkpoints.

The steps are those the solve took. To *march* is to take them again: from the state at the start of step n, kept as an
array of shape (k, n_owned), to the stages of that step, shape (k, s + 1, n_owned), the first of which is that state.
For a gradient k = 1, the state itself; for second order k = 2, the state and its tangent.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from npde_fem.discretize.semidiscrete import Array

import checkpoint_schedules as schedules
import numpy as np
from checkpoint_schedules import StorageType

__all__ = ["Checkpoints", "Everything", "History", "March", "make_history"]

_BLOCK = 64
"""Steps whose stages lie in one array."""


@dataclass(frozen=True)
class Checkpoints:
    """How many states a solve keeps for its gradient; the others are computed again, after a binomial schedule.

    The schedule is that of Griewank and Walther (2000, ACM Trans. Math. Softw. 26, algorithm 799: Revolve), in the form
    for memory and disk of ``checkpoint_schedules.MultistageCheckpointSchedule``.

    Parameters
    ----------
    memory
        States kept in memory.
    disk
        States kept in files besides, one a rank, which are removed at the end.
    folder
        Where these files go: a fast local disk; the system's folder for temporary files by default.

    Raises
    ------
    TypeError, ValueError
        If a count is not an integer, is negative, or both are zero.
    """

    memory: int = 10
    disk: int = 0
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("memory", "disk"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"checkpoints: {name} must be an integer, not {value!r}")
            if value < 0:
                raise ValueError(f"checkpoints: {name} = {value} given; 0 or more allowed")
        if self.memory + self.disk < 1:
            raise ValueError("checkpoints: 0 given; at least 1 is needed")


class March(Protocol):
    """Takes steps of a solve again."""

    def start(self, step: int, state: Array) -> None:
        """Stand at the start of a step, with a state of shape (k, n_owned)."""

    def step(self, step: int, stages: Array) -> None:
        """Take a step; write its stages, shape (k, s + 1, n_owned)."""


class History(ABC):
    """Remembers a solve of ``stages`` stages a step on this rank's ``size`` dofs."""

    def __init__(self, stages: int, size: int) -> None:
        self._stages, self._size = stages, size
        self._start = np.zeros((0, size))
        self.steps = 0

    @abstractmethod
    def begin(self, state: Array, expected: int | None) -> None:
        """Forget all; start with a state (k, n_owned), with so many steps to be kept (None: unknown)."""

    @abstractmethod
    def keep(self, stages: Array) -> None:
        """Remember the next step, by its stages (k, s + 1, n_owned)."""

    @abstractmethod
    def backwards(self, march: March, steps: int) -> Iterator[tuple[int, Array]]:
        """Yield number and stages (k, s + 1, n_owned) of each step, the last first; the array is used again.

        What was not kept is marched again.
        """

    def _new_stages(self) -> Array:
        return np.empty((self._start.shape[0], self._stages + 1, self._size))


class Everything(History, March):
    """Keeps the stages of every step in memory: ``steps * s * n_owned`` numbers. To march is to look them up."""

    def __init__(self, stages: int, size: int) -> None:
        super().__init__(stages, size)
        self._blocks: list[Array] = []

    def begin(self, state: Array, expected: int | None) -> None:
        if state.shape != self._start.shape:
            self._start, self._blocks = state.copy(), []
        self._start[:] = state
        self.steps = 0

    def keep(self, stages: Array) -> None:
        block, place = divmod(self.steps, _BLOCK)
        if block == len(self._blocks):
            self._blocks.append(np.empty((_BLOCK, self._start.shape[0], self._stages, self._size)))
        self._blocks[block][place] = stages[:, 1:]
        self.steps += 1

    def start(self, step: int, state: Array) -> None:
        """Nothing to do: the states are here."""

    def step(self, step: int, stages: Array) -> None:
        block, place = divmod(step, _BLOCK)
        before, last = divmod(step - 1, _BLOCK)
        stages[:, 0] = self._start if step == 0 else self._blocks[before][last][:, -1]
        stages[:, 1:] = self._blocks[block][place]

    def backwards(self, march: March, steps: int) -> Iterator[tuple[int, Array]]:
        stages = self._new_stages()
        if self.steps < steps:
            self.begin(self._start, steps)
            march.start(0, self._start)
            for step in range(steps):
                march.step(step, stages)
                self.keep(stages)
        for step in reversed(range(steps)):
            self.step(step, stages)
            yield step, stages


class Checkpointed(History):
    """Keeps the start and some checkpoints; what lies between is marched again.

    The first sweep back uses the checkpoints that were set during the solve, if the solve took as many steps as
    expected; another one begins with a march from the start.
    """

    def __init__(self, stages: int, size: int, checkpoints: Checkpoints) -> None:
        super().__init__(stages, size)
        self._checkpoints, self._store = checkpoints, _Store(checkpoints)
        self._planned: dict[int, StorageType] = {}
        self._expected: int | None = None
        self._last: Array | None = None

    def begin(self, state: Array, expected: int | None) -> None:
        self._start, self.steps, self._expected = state.copy(), 0, expected
        self._store.clear()
        self._planned = {} if expected is None else dict(_forward_part(self._schedule(expected)))
        self._last = None

    def _schedule(self, steps: int) -> schedules.CheckpointSchedule:
        # More snapshots than steps have no use, and the schedule does not take them.
        memory = min(self._checkpoints.memory, max(1, steps - 1))
        disk = min(self._checkpoints.disk, max(1, steps - 1) - memory)
        return schedules.MultistageCheckpointSchedule(steps, memory, disk)

    def keep(self, stages: Array) -> None:
        if self.steps in self._planned:
            self._store.put(self._planned[self.steps], self.steps, stages[:, 0])
        self.steps += 1
        if self.steps == self._expected:
            self._last = stages.copy()

    def backwards(self, march: March, steps: int) -> Iterator[tuple[int, Array]]:
        stages, fresh = self._new_stages(), self._last is not None and self.steps == steps == self._expected
        if fresh and self._last is not None:
            stages[...] = self._last
        else:
            self._store.clear()
            march.start(0, self._start)
        self._last, forward_done, work = None, False, self._start.copy()
        standing, reached, end = not fresh, steps, np.empty_like(work)
        for action in self._schedule(steps):
            match action:
                case schedules.Forward() if forward_done or not fresh:
                    for step in action:
                        if action.write_ics and step == action.n0:
                            self._store.put(action.storage, step, work)
                        if self._stages == 1 and forward_done and step + 1 == reached:
                            # A step of one stage ends where the one just yielded began.
                            stages[:, 0], stages[:, 1] = work, end
                            continue
                        if not standing:
                            march.start(step, work)
                            standing = True
                        march.step(step, stages)
                        work[:] = stages[:, -1]
                case schedules.EndForward():
                    forward_done = True
                case schedules.Copy() | schedules.Move():
                    self._store.get(action.from_storage, action.n, work, drop=isinstance(action, schedules.Move))
                    standing = False
                case schedules.Reverse():
                    for step in action:
                        yield step, stages
                        reached, end[:] = step, stages[:, 0]
        self._store.clear()


def _forward_part(schedule: schedules.CheckpointSchedule) -> Iterator[tuple[int, StorageType]]:
    """Yield the steps at whose start a checkpoint is set on the way forward, and where it goes."""
    for action in schedule:
        if isinstance(action, schedules.EndForward):
            return
        if isinstance(action, schedules.Forward) and action.write_ics:
            yield action.n0, action.storage


class _Store:
    """Checkpoints in memory and in files."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._wanted = checkpoints
        self._folder: tempfile.TemporaryDirectory | None = None
        self._memory: dict[int, Array] = {}

    def put(self, storage: StorageType, step: int, state: Array) -> None:
        if storage == StorageType.DISK:
            np.save(self._path(step), state)
        else:
            self._memory[step] = state.copy()

    def get(self, storage: StorageType, step: int, out: Array, drop: bool) -> None:
        if storage == StorageType.DISK:
            out[:] = np.load(self._path(step))
            if drop:
                self._path(step).unlink()
        else:
            out[:] = self._memory[step]
            if drop:
                del self._memory[step]

    def _path(self, step: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="npde-checkpoints-", dir=self._wanted.folder)
        return Path(self._folder.name) / f"{step}.npy"

    def clear(self) -> None:
        self._memory.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def make_history(checkpoints: int | Checkpoints | None, stages: int, size: int) -> History:
    """Return the history that ``checkpoints`` asks for: everything (None), or so many states."""
    if checkpoints is None:
        return Everything(stages, size)
    return Checkpointed(stages, size, checkpoints if isinstance(checkpoints, Checkpoints) else Checkpoints(checkpoints))
