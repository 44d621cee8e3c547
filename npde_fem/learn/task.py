"""What a torch operation solves, and one call of it, in terms of arrays: results, and the three products with their
derivative.

Arrays come one an input, flat: the owned dofs of a state or field, a number's entries, shape ``(size,)``; or with one
row a sample, ``(batch, size)``. What has no rows is the same for every sample.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, Self

from npde_fem.discretize.data import finite
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.equation import Initial
from npde_fem.parallel import alike
from npde_fem.parameter import Parameter
from npde_fem.solve import integrate
from npde_fem.solve.history import Checkpoints
from npde_fem.solve.trajectory import Cotangents, Derivative, Trajectory

import numpy as np
from mpi4py import MPI

__all__ = ["Call", "Key", "Task", "name_of"]

Key = Parameter | Literal["u0", "velocity"]
"""An input: a parameter, the initial state, or the initial velocity."""


def name_of(key: Key) -> str:
    """Return what messages call an input."""
    return f"parameter {key.name!r}" if isinstance(key, Parameter) else key


@dataclass(eq=False)
class Task:
    """All of a solve but its inputs' values.

    Attributes
    ----------
    problem
        The problem.
    inputs
        What the tensors stand for.
    outputs
        Which results are wanted: names of :class:`~npde_fem.solve.trajectory.Cotangents`.
    initial
        Initial state and velocity, as far as they are no inputs.
    given
        Values of parameters that are no inputs, in the place of their own: by name, as ``Semidiscrete.holding`` takes.
    arguments
        What ``solve.integrate.solve`` takes besides.
    integrals, checkpoints
        As of :class:`~npde_fem.solve.trajectory.Trajectory`.
    """

    problem: Semidiscrete
    inputs: tuple[Key, ...]
    outputs: tuple[str, ...]
    initial: dict[str, Any]
    arguments: dict[str, Any]
    given: Mapping[str, Array] = field(default_factory=dict)
    integrals: Sequence[Callable] = ()
    checkpoints: int | Checkpoints | None = None

    def __deepcopy__(self, memo: dict) -> Self:
        """Return the task itself: meshes, compiled kernels and communicators are shared."""
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a problem holds meshes, compiled kernels and communicators, which no file can hold: save "
            "layer.state_dict(), make the problem and the layer again, and load that into it"
        )

    def new_trajectory(self, checkpoints: int | Checkpoints | None) -> Trajectory:
        """Return a recorder of a solve."""
        in_ufl = [data if isinstance(data, Initial) else None for data in map(self.initial.get, ("u0", "velocity"))]
        preconditioner = self.arguments.get("preconditioner")
        return Trajectory(self.problem, in_ufl[0], self.integrals, checkpoints, in_ufl[1], preconditioner)

    def fixed(self) -> dict[str, Array]:
        """Return copies of the present values of the parameters that are no inputs, by name."""
        problem, found = self.problem, dict(self.given)
        for name, parameter in problem.parameters.items():
            if parameter not in self.inputs and name not in found:
                found[name] = problem.field_values(name) if parameter.is_field else np.array(parameter.value)
        return found


class Call:
    """One call of a task, of one sample or of a batch.

    Parameters
    ----------
    task
        The task.
    batch
        Samples, None for one without a row of its own.
    needs
        Which inputs the results are to be differentiated by.
    """

    def __init__(self, task: Task, batch: int | None, needs: Sequence[bool]) -> None:
        self.task, self.batch, self.needs = task, batch, tuple(needs)
        self.recording = any(needs)
        # A sweep comes later, when these may have other values.
        self._fixed = task.fixed() if self.recording else dict(task.given)
        self._data = self._data_now() if self.recording else []

    # -- solving ---------------------------------------------------------------------------------------------

    def solve(self, arrays: Sequence[Array]) -> tuple[list[Array], list[Trajectory]]:
        """Return the outputs, with a leading axis of samples for a batch, and the trajectories if it is recording."""
        self._check(arrays)
        return self._solve(arrays, self.task.given)

    def again(self, arrays: Sequence[Array]) -> list[Trajectory]:
        """Return the trajectories of the same solves once more."""
        return self._solve(arrays, self._fixed)[1]

    def _solve(self, arrays: Sequence[Array], fixed: Mapping[str, Array]) -> tuple[list[Array], list[Trajectory]]:
        rows, trajectories = [], []
        for b in range(self.batch or 1):
            sample = self._sample(arrays, b)
            with self._holding(sample, fixed), self._naming(b):
                results, recorder = self._solve_one(sample)
            rows.append(results)
            if self.recording and recorder is not None:
                trajectories.append(recorder)
        if self.batch is None:
            return rows[0], trajectories
        return [np.stack(column) for column in zip(*rows, strict=True)], trajectories

    def _solve_one(self, sample: Mapping[Key, Array]) -> tuple[list[Array], Trajectory | None]:
        task, recorder = self.task, None
        if self.recording:
            recorder = task.new_trajectory(task.checkpoints)
        elif task.integrals:
            recorder = task.new_trajectory(Checkpoints(1))
        states: dict[str, Array] = {key: values for key, values in sample.items() if isinstance(key, str)}
        arguments: dict[str, Any] = {**task.initial, **states, **task.arguments}
        solution = integrate.solve(task.problem, **arguments, recorder=recorder)
        found = {
            "states": solution.states,
            "final": solution.values,
            "integrals": None if recorder is None else recorder.integral_values.copy(),
            "velocities": solution.velocities,
            "final_velocity": solution.velocity_values,
        }
        return [np.asarray(found[name]) for name in task.outputs], recorder

    def _sample(self, arrays: Sequence[Array | None], b: int) -> dict[Key, Array]:
        """Return the inputs of a sample, those that are None left out."""
        given = zip(self.task.inputs, arrays, strict=True)
        return {key: a if a.ndim == 1 else a[b] for key, a in given if a is not None}

    def _parameters(self, sample: Mapping[Key, Array]) -> dict[str, Array]:
        """Return the values of the parameters in a sample, by name."""
        parameters = [(key, values) for key, values in sample.items() if isinstance(key, Parameter)]
        return {p.name: values if p.is_field else values.reshape(p.ufl_shape) for p, values in parameters}

    @contextmanager
    def _holding(self, sample: Mapping[Key, Array], fixed: Mapping[str, Array]) -> Iterator[None]:
        with self.task.problem.holding({**fixed, **self._parameters(sample)}):
            yield

    @contextmanager
    def _naming(self, b: int) -> Iterator[None]:
        """Say in errors which sample of a batch they are about."""
        try:
            yield
        except Exception as error:
            if self.batch is not None:
                error.add_note(f"in sample {b} of a batch of {self.batch}")
            raise

    def _check(self, arrays: Sequence[Array]) -> None:
        """Raise, alike on all ranks, if a parameter is not finite or ranks do not agree (collective)."""
        inputs, comm = self.task.inputs, self.task.problem.comm
        with alike(comm):
            for key, values in zip(inputs, arrays, strict=True):
                if isinstance(key, Parameter):
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

    # -- derivatives -----------------------------------------------------------------------------------------

    def adjoint(
        self,
        arrays: Sequence[Array],
        trajectories: Sequence[Trajectory],
        wanted: Sequence[int],
        by: Sequence[Array | None],
    ) -> list[Array]:
        """Return the derivatives by the wanted inputs, given those by the outputs (None for zero)."""
        found = [np.zeros(arrays[i].shape) for i in wanted]
        for b, trajectory in enumerate(trajectories):
            with self._as_then(arrays, b):
                derivative = trajectory.by(self._controls(wanted)).adjoint(self._cotangents(by, b))
            self._add(derivative, wanted, b, found)
        return found

    def tangent(
        self, arrays: Sequence[Array], trajectories: Sequence[Trajectory], moves: Sequence[Array | None]
    ) -> list[Array]:
        """Return how the outputs change along moves of the inputs (None for zero)."""
        rows = []
        for b, trajectory in enumerate(trajectories):
            with self._as_then(arrays, b):
                trajectory.by(self._controls(i for i, move in enumerate(moves) if move is not None))
                change = trajectory.tangent(*self._direction(moves, b))
            rows.append([np.asarray(getattr(change, name)) for name in self.task.outputs])
        return rows[0] if self.batch is None else [np.stack(column) for column in zip(*rows, strict=True)]

    def second(
        self,
        arrays: Sequence[Array],
        trajectories: Sequence[Trajectory],
        wanted: Sequence[int],
        by: Sequence[Array | None],
        change: Sequence[Array | None],
        moves: Sequence[Array | None],
    ) -> list[Array]:
        """Return the change of :meth:`adjoint` along moves of the inputs, ``change`` being that of ``by``."""
        found = [np.zeros(arrays[i].shape) for i in wanted]
        moving = [i for i, move in enumerate(moves) if move is not None]
        for b, trajectory in enumerate(trajectories):
            with self._as_then(arrays, b):
                trajectory.by(self._controls([*wanted, *moving]))
                delta, *initial = self._direction(moves, b)
                derivative = trajectory.second(self._cotangents(by, b), self._cotangents(change, b), delta, *initial)
            self._add(derivative, wanted, b, found)
        return found

    @contextmanager
    def _as_then(self, arrays: Sequence[Array], b: int) -> Iterator[None]:
        """Let parameters have the values of the solve."""
        functions = self.task.problem.data_functions
        if functions:
            with alike(self.task.problem.comm):
                for function, before, now in zip(functions, self._data, self._data_now(), strict=True):
                    if not np.array_equal(before, now):
                        raise RuntimeError(
                            f"the function {function.name!r} in the equation was changed between a solve and its "
                            "backward pass; a field parameter may be"
                        )
        with self._holding(self._sample(arrays, b), self._fixed):
            yield

    def _data_now(self) -> list[Array]:
        return [function.x.array.copy() for function in self.task.problem.data_functions]

    def _controls(self, which: Any) -> tuple[Parameter, ...]:
        keys = [self.task.inputs[i] for i in sorted(set(which))]
        return tuple(key for key in keys if isinstance(key, Parameter))

    def _cotangents(self, by: Sequence[Array | None], b: int) -> Cotangents:
        given = zip(self.task.outputs, by, strict=True)
        return Cotangents(**{name: g if self.batch is None else g[b] for name, g in given if g is not None})  # type: ignore[arg-type]

    def _direction(self, moves: Sequence[Array | None], b: int) -> tuple[dict[str, Array], Array | None, Array | None]:
        sample = self._sample(moves, b)
        return self._parameters(sample), sample.get("u0"), sample.get("velocity")

    def _add(self, derivative: Derivative, wanted: Sequence[int], b: int, found: Sequence[Array]) -> None:
        """Add a sample's derivative to those of the batch."""
        initial: dict[str, Any] = {"u0": derivative.initial, "velocity": derivative.velocity}
        for i, total in zip(wanted, found, strict=True):
            key = self.task.inputs[i]
            values = derivative.parameters[key.name] if isinstance(key, Parameter) else initial[key]
            part = total if total.ndim == 1 else total[b]
            part += np.ravel(values)
