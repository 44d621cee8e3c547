"""What a torch operation solves: all of a solve but its inputs' values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NoReturn, Self

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.equation import Initial
from npde_fem.parameter import Parameter
from npde_fem.solve.history import Checkpoints
from npde_fem.solve.trajectory import Trajectory

import numpy as np

__all__ = ["Key", "Task", "name_of"]

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

    @cached_property
    def trajectory(self) -> Trajectory:
        """A recorder, of which calls make others."""
        in_ufl = [data if isinstance(data, Initial) else None for data in map(self.initial.get, ("u0", "velocity"))]
        preconditioner = self.arguments["preconditioner"]
        return Trajectory(self.problem, in_ufl[0], self.integrals, None, in_ufl[1], preconditioner)

    def fixed(self) -> dict[str, Array]:
        """Return copies of the present values of the parameters that are no inputs, by name."""
        problem, found = self.problem, {}
        for name, parameter in problem.parameters.items():
            if parameter not in self.inputs:
                found[name] = problem.field_values(name) if parameter.is_field else np.array(parameter.value)
        return found
