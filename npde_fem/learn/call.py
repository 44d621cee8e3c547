"""One call of a task in terms of arrays: results, and the three products with their derivative.

Arrays come one an input: the owned dofs of a state or field, or a number in its shape. Some may have a leading axis of
samples; the others are the same for every sample. Samples are solved one after the other, or together where that saves
work.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from npde_fem.discretize.data import finite
from npde_fem.discretize.semidiscrete import Array
from npde_fem.equation import Initial
from npde_fem.learn.task import Key, Task, name_of
from npde_fem.parallel import alike
from npde_fem.parameter import Parameter
from npde_fem.solve import integrate
from npde_fem.solve.adjoint import Derivative
from npde_fem.solve.batch import Batch
from npde_fem.solve.history import Checkpoints
from npde_fem.solve.trajectory import Cotangents, Trajectory

import numpy as np
from mpi4py import MPI

__all__ = ["Call", "Singles", "Together", "new_call"]

Maybe = Array | None
"""An array, or None for zeros."""


def new_call(task: Task, batch: int | None, sampled: Collection[Key], needs: Sequence[bool]) -> Call:
    """Return a call of a task, the samples together where that saves work."""
    batched = [key.name for key in sampled if isinstance(key, Parameter)]
    scheme, dt = task.arguments["scheme"], task.arguments["dt"]
    wants = [task.checkpoints, *(task.arguments[name] for name in ("preconditioner", "rescue"))]
    special = task.integrals or any(want is not None for want in wants)
    together = (
        batch is not None
        and not special
        and {"states", "final"}.issuperset(task.outputs)
        and not isinstance(task.initial.get("u0"), Initial)
        and Batch.shares(task.problem, scheme, batched, dt)
    )
    return (Together if together else Singles)(task, batch, sampled, needs)


class Call(ABC):
    """One call of a task.

    What sweeps need of it besides the inputs is its *record*, which :meth:`solve` returns and sweeps take.

    Parameters
    ----------
    task
        The task.
    batch
        Samples, None for one without an axis of its own.
    sampled
        Which inputs have a leading axis of samples.
    needs
        Which inputs the results are to be differentiated by.

    Attributes
    ----------
    recording
        Whether there will be sweeps.
    """

    def __init__(self, task: Task, batch: int | None, sampled: Collection[Key], needs: Sequence[bool]) -> None:
        self.task, self.batch, self.sampled, self.needs = task, batch, sampled, needs
        self.recording = any(needs)
        # A sweep comes later, when these may have other values.
        self._fixed = task.fixed() if self.recording else {}
        self._data = self._data_now() if self.recording else []

    @abstractmethod
    def solve(self, arrays: Sequence[Array]) -> tuple[list[Array], Any]:
        """Return the outputs, of a batch with a leading axis of samples, and the record, if there will be sweeps."""

    @abstractmethod
    def again(self, arrays: Sequence[Array]) -> Any:
        """Return the record of the same solves once more."""

    @abstractmethod
    def adjoint(self, arrays: Sequence[Array], record: Any, wanted: Sequence[int], by: Sequence[Maybe]) -> list[Array]:
        """Return the derivatives by the wanted inputs, given those by the outputs."""

    @abstractmethod
    def tangent(self, arrays: Sequence[Array], record: Any, moves: Sequence[Maybe]) -> list[Array]:
        """Return how the outputs change along moves of the inputs."""

    @abstractmethod
    def second(
        self,
        arrays: Sequence[Array],
        record: Any,
        wanted: Sequence[int],
        by: Sequence[Maybe],
        moves: Sequence[Maybe],
    ) -> list[Array]:
        """Return the change of :meth:`adjoint` along moves of the inputs."""

    # -- values ----------------------------------------------------------------------------------------------

    def check(self, arrays: Sequence[Array]) -> None:
        """Raise, alike on all ranks, if a parameter is not finite or ranks do not agree (collective)."""
        inputs, comm = self.task.inputs, self.task.problem.comm
        with alike(comm):
            for key, values in zip(inputs, arrays, strict=True):
                if isinstance(key, Parameter) and not np.isfinite(values).all():
                    finite(name_of(key), values)
        if comm.size == 1:
            return
        facts: dict[str, float] = {"the size of the batch": self.batch or 0}
        for key, values, needed in zip(inputs, arrays, self.needs, strict=True):
            facts[f"whether {name_of(key)} is to be differentiated by (requires_grad)"] = needed
            if isinstance(key, Parameter) and not key.is_field:
                facts[f"the values of {name_of(key)}"] = zlib.crc32(np.ascontiguousarray(values))
        mine = np.array([sign * fact for fact in facts.values() for sign in (1, -1)], dtype=np.float64)
        comm.Allreduce(MPI.IN_PLACE, mine, op=MPI.MAX)
        for what, (largest, least) in zip(facts, mine.reshape(-1, 2), strict=True):
            if largest != -least:
                raise ValueError(f"{what} must be the same on all ranks; ranks that differ given")

    def _by_key(self, arrays: Sequence[Maybe]) -> dict[Key, Array]:
        """Return arrays by inputs, those that are None left out."""
        return {key: a for key, a in zip(self.task.inputs, arrays, strict=True) if a is not None}

    def _parameters(self, given: Mapping[Key, Array]) -> dict[str, Array]:
        """Return the values of parameters by name."""
        return {key.name: values for key, values in given.items() if isinstance(key, Parameter)}

    def _holding(self, given: Mapping[Key, Array], fixed: Mapping[str, Array]) -> AbstractContextManager[None]:
        return self.task.problem.holding({**fixed, **self._parameters(given)})

    def _holding_then(self, given: Mapping[Key, Array]) -> AbstractContextManager[None]:
        """Let the other parameters too have the values of the solve."""
        if self._data:
            with alike(self.task.problem.comm):
                self._check_data()
        return self._holding(given, self._fixed)

    def _check_data(self) -> None:
        for function, then, now in zip(self.task.problem.data_functions, self._data, self._data_now(), strict=True):
            if not np.array_equal(then, now):
                raise RuntimeError(
                    f"the function {function.name!r} in the equation was changed between a solve and its backward "
                    "pass; a field parameter in its place may be"
                )

    def _data_now(self) -> list[Array]:
        return [function.x.array.copy() for function in self.task.problem.data_functions]

    def _moving(self, moves: Sequence[Maybe]) -> list[int]:
        return [i for i, move in enumerate(moves) if move is not None]

    def _controls(self, which: Iterable[int]) -> tuple[Parameter, ...]:
        keys = [self.task.inputs[i] for i in sorted(set(which))]
        return tuple(key for key in keys if isinstance(key, Parameter))


class Singles(Call):
    """Solves one after the other; the record is a trajectory for each."""

    def solve(self, arrays: Sequence[Array]) -> tuple[list[Array], list[Trajectory]]:
        self.check(arrays)
        return self._solve(arrays, {})

    def again(self, arrays: Sequence[Array]) -> list[Trajectory]:
        return self._solve(arrays, self._fixed)[1]

    def _solve(self, arrays: Sequence[Array], fixed: Mapping[str, Array]) -> tuple[list[Array], list[Trajectory]]:
        rows, record = [], []
        for b in range(self.batch or 1):
            sample = self._sample(arrays, b)
            with self._holding(sample, fixed):
                results, trajectory = self._solve_one(sample, b)
            rows.append(results)
            if self.recording and trajectory is not None:
                record.append(trajectory)
        return self._stacked(rows), record

    def _solve_one(self, sample: Mapping[Key, Array], b: int) -> tuple[list[Array], Trajectory | None]:
        task, recorder = self.task, None
        if self.recording:
            recorder = task.trajectory.another(task.checkpoints)
        elif task.integrals:
            recorder = task.trajectory.another(Checkpoints(1))
        states: dict[str, Array] = {key: values for key, values in sample.items() if isinstance(key, str)}
        arguments: dict[str, Any] = {**task.initial, **states, **task.arguments}
        try:
            solution = integrate.solve(task.problem, **arguments, recorder=recorder)
        except Exception as error:
            if self.batch is not None:
                error.add_note(f"in sample {b} of a batch of {self.batch}")
            raise
        found = {
            "states": solution.states,
            "final": solution.values,
            "integrals": None if recorder is None else recorder.integral_values.copy(),
            "velocities": solution.velocities,
            "final_velocity": solution.velocity_values,
        }
        return [np.asarray(found[name]) for name in task.outputs], recorder

    def adjoint(
        self, arrays: Sequence[Array], record: list[Trajectory], wanted: Sequence[int], by: Sequence[Maybe]
    ) -> list[Array]:
        controls, found = self._controls(wanted), []
        for b, trajectory in enumerate(record):
            with self._holding_then(self._sample(arrays, b)):
                found.append(trajectory.by(controls).adjoint(self._cotangents(by, b)))
        return self._gathered(found, arrays, wanted)

    def tangent(self, arrays: Sequence[Array], record: list[Trajectory], moves: Sequence[Maybe]) -> list[Array]:
        controls, rows = self._controls(self._moving(moves)), []
        for b, trajectory in enumerate(record):
            with self._holding_then(self._sample(arrays, b)):
                change = trajectory.by(controls).tangent(*self._direction(moves, b))
            rows.append([np.asarray(getattr(change, name)) for name in self.task.outputs])
        return self._stacked(rows)

    def second(
        self,
        arrays: Sequence[Array],
        record: list[Trajectory],
        wanted: Sequence[int],
        by: Sequence[Maybe],
        moves: Sequence[Maybe],
    ) -> list[Array]:
        controls, found = self._controls([*wanted, *self._moving(moves)]), []
        for b, trajectory in enumerate(record):
            with self._holding_then(self._sample(arrays, b)):
                delta, *initial = self._direction(moves, b)
                found.append(trajectory.by(controls).second(self._cotangents(by, b), Cotangents(), delta, *initial))
        return self._gathered(found, arrays, wanted)

    def _sample(self, arrays: Sequence[Maybe], b: int) -> dict[Key, Array]:
        return {key: a[b] if key in self.sampled else a for key, a in self._by_key(arrays).items()}

    def _stacked(self, rows: list[list[Array]]) -> list[Array]:
        return rows[0] if self.batch is None else [np.stack(column) for column in zip(*rows, strict=True)]

    def _cotangents(self, by: Sequence[Maybe], b: int) -> Cotangents:
        given = zip(self.task.outputs, by, strict=True)
        return Cotangents(**{name: g if self.batch is None else g[b] for name, g in given if g is not None})  # type: ignore[arg-type]

    def _direction(self, moves: Sequence[Maybe], b: int) -> tuple[dict[str, Array], Maybe, Maybe]:
        sample = self._sample(moves, b)
        return self._parameters(sample), sample.get("u0"), sample.get("velocity")

    def _gathered(self, derivatives: list[Derivative], arrays: Sequence[Array], wanted: Sequence[int]) -> list[Array]:
        """Return the derivatives of all samples together: side by side by what differs among them, else summed."""
        found = []
        for i in wanted:
            key = self.task.inputs[i]
            parts = [self._part(derivative, key) for derivative in derivatives]
            together = np.stack(parts) if key in self.sampled else sum(parts[1:], parts[0])
            found.append(np.asarray(together).reshape(arrays[i].shape))
        return found

    def _part(self, derivative: Derivative, key: Key) -> Array:
        if isinstance(key, Parameter):
            return derivative.parameters[key.name]
        return derivative.initial if key == "u0" else integrate.moving(derivative.velocity)


class Together(Call):
    """Solves that share work; the record is a :class:`~npde_fem.solve.batch.Batch`. Curvature is found one by one."""

    def solve(self, arrays: Sequence[Array]) -> tuple[list[Array], Batch]:
        self.check(arrays)
        return self._solve(arrays, {})

    def again(self, arrays: Sequence[Array]) -> Batch:
        return self._solve(arrays, self._fixed)[1]

    def _solve(self, arrays: Sequence[Array], fixed: Mapping[str, Array]) -> tuple[list[Array], Batch]:
        task = self.task
        solves = Batch(task.problem, *(task.arguments[name] for name in ("t", "dt", "scheme", "observe")))
        given = self._by_key(arrays)
        batched = {
            name: values for name, values in self._flat(given).items() if task.problem.parameters[name] in self.sampled
        }
        u0 = given["u0"] if "u0" in self.sampled else self._repeated(given.get("u0", task.initial.get("u0")))
        with self._holding(self._shared(given), fixed):
            states, final = solves.solve(u0, batched, record=self.recording)
        return self._chosen(states, final), solves

    def adjoint(
        self, arrays: Sequence[Array], record: Batch, wanted: Sequence[int], by: Sequence[Maybe]
    ) -> list[Array]:
        cotangents = dict(zip(self.task.outputs, by, strict=True))
        with self._holding_then(self._shared(self._by_key(arrays))):
            derivative = record.adjoint(self._controls(wanted), **cotangents)
        found = []
        for i in wanted:
            key = self.task.inputs[i]
            if isinstance(key, Parameter):
                found.append(np.reshape(derivative.parameters[key.name], arrays[i].shape))
            else:
                found.append(derivative.initial if key in self.sampled else derivative.initial.sum(axis=0))
        return found

    def tangent(self, arrays: Sequence[Array], record: Batch, moves: Sequence[Maybe]) -> list[Array]:
        moving = self._by_key(moves)
        controls = self._controls(self._moving(moves))
        u0 = moving.get("u0")
        if u0 is not None and "u0" not in self.sampled:
            u0 = self._repeated(u0)
        with self._holding_then(self._shared(self._by_key(arrays))):
            return self._chosen(*record.tangent(controls, self._flat(moving), u0))

    def second(
        self,
        arrays: Sequence[Array],
        record: Batch,
        wanted: Sequence[int],
        by: Sequence[Maybe],
        moves: Sequence[Maybe],
    ) -> list[Array]:
        alone = Singles(self.task, self.batch, self.sampled, self.needs)
        alone._fixed, alone._data = self._fixed, self._data
        return alone.second(arrays, alone.again(arrays), wanted, by, moves)

    def _shared(self, given: Mapping[Key, Array]) -> dict[Key, Array]:
        """Return the values that are the same for every sample."""
        return {key: a for key, a in given.items() if key not in self.sampled}

    def _flat(self, given: Mapping[Key, Array]) -> dict[str, Array]:
        """Return the values of parameters by name, those of samples flat: a row each."""
        return {
            key.name: values.reshape(len(values), -1) if key in self.sampled else values
            for key, values in given.items()
            if isinstance(key, Parameter)
        }

    def _repeated(self, values: Any) -> Array:
        """Return the same values for every sample."""
        return np.tile(values, (self.batch or 1, 1))

    def _chosen(self, states: Array, final: Array) -> list[Array]:
        found = {"states": states, "final": final}
        return [found[name] for name in self.task.outputs]
