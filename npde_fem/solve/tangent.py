"""Marching through a solve again: its steps, and with them the tangent along a direction.

The tangent V of a stage (see :mod:`npde_fem.solve.schemes`) solves, on the free dofs,

    (M - dt g_i R_I'(U_i)) V_i = M sum_j a_ij V_j + dt (b_i R_E'(U_{i-1}) + d_i R_I'(U_{i-1})) V_{i-1}
                                 + dt (b_i R_E,theta + d_i R_I,theta + g_i R_I,theta) delta
                                 - M_theta delta (U_i - sum_j a_ij U_j),

and is ``g_theta(t_i) delta`` (or a mean of such) on the constrained ones. That of Newmark's family is in
:mod:`npde_fem.solve.newmark_sweeps`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from npde_fem.discretize.linearised import Nodal
from npde_fem.discretize.semidiscrete import Array
from npde_fem.solve.history import Everything, March
from npde_fem.solve.integrate import SolveError
from npde_fem.solve.newmark import make_stepper
from npde_fem.solve.steppers import Stepper, combine

import numpy as np

if TYPE_CHECKING:
    from npde_fem.solve.trajectory import Trajectory

__all__ = ["StageSolver", "StageTangent", "Stepping", "Tangent"]


class Stepping(March):
    """Takes the steps of a trajectory again, with the solve's own stepper, or looks them up where they were kept."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._of = trajectory
        self._stepper: Stepper | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._stepper is not None:
            self._stepper.close()

    def start(self, step: int, state: Array) -> None:
        if self._stepper is None:
            self._stepper = make_stepper(self._of.problem, self._of.scheme)
        self._stepper.start(self._of.time_after(step), state[0])

    def step(self, step: int, stages: Array) -> None:
        stepper, (t, dt) = self._stepper, self._of.steps[step]
        if stepper is None or not stepper.step(t, dt):
            reason = "no start" if stepper is None else stepper.failure
            message = f"the step from t = {t:g} with dt = {dt:.3g} failed when repeated: {reason}"
            raise SolveError(message, t, stages[0, 0, : self._of.problem.n_owned])
        stepper.stages(stages[0])
        stepper.accept()


class Tangent(March, ABC):
    """Steps of the state, with those of its tangent along the direction that the parameters move in."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._of = trajectory
        history = trajectory.history
        self._stack = ExitStack()
        self._forward: March = (
            history if isinstance(history, Everything) else self._stack.enter_context(Stepping(trajectory))
        )
        self._v, self._work = np.zeros(trajectory.row_size), np.zeros(trajectory.problem.n_owned)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @abstractmethod
    def beginning(self, initial: Array | None, velocity: Array | None) -> Array:
        """Return the row and its tangent at the start, shape (2, row_size), given those of state and velocity."""

    def _initial(self, data: Nodal | None, moves: Array | None, v: Array) -> None:
        """Write the tangent of initial data."""
        v[:] = 0.0 if moves is None else moves
        if data is not None:
            data.tangent(self._of.steps[0][0], self._work)
            v += self._work

    def _prescribe(self, times: Sequence[float], v: Array, order: int = 0) -> None:
        """Set the constrained dofs of the tangent of a state, or of its time derivatives: the mean over some times."""
        nodal, c = self._of.lin.prescribed(order), self._of.problem.constrained
        v[c] = 0.0
        if nodal is not None:
            for t in times:
                nodal.tangent(t, self._work)
                v[c] += self._work[c] / len(times)

    def start(self, step: int, state: Array) -> None:
        self._forward.start(step, state[:1])
        self._v[:] = state[1]


class StageTangent(Tangent):
    """The tangent of a scheme of stages."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(trajectory)
        self._solver = StageSolver(trajectory)
        self._stack.callback(self._solver.close)
        self._right, self._fixed, self._sum, self._still = (np.zeros(trajectory.problem.n_owned) for _ in range(4))

    def beginning(self, initial: Array | None, velocity: Array | None) -> Array:
        of, v = self._of, np.zeros(self._of.problem.n_owned)
        self._initial(of.initial, initial, v)
        self._prescribe([of.steps[0][0]], v)
        return np.stack([of.start_values, v])

    def step(self, step: int, stages: Array) -> None:
        of, right, work, fixed = self._of, self._right, self._work, self._fixed
        problem, lin, (t, dt) = of.problem, of.lin, of.steps[step]
        self._forward.step(step, stages[:1])
        u, v = stages
        v[0] = self._v
        before = t
        for i, stage in enumerate(of.stages):
            now, times = t + stage.at * dt, stage.data_times(t, dt)
            if stage.flow:
                of.place(t + stage.since * dt, u[i], v[i], step=stage.flow * dt)
                lin.tangent("flow", v[i + 1])
                v[i + 1] /= problem.nodal_weights
                self._prescribe(times, v[i + 1])
                before = now
                continue
            moved = combine(stage.combine, v, self._sum, work)
            if stage.is_combination:
                v[i + 1] = moved
                self._prescribe(times, v[i + 1])
                before = now
                continue
            problem.mass_times(moved, right)
            if stage.explicit or stage.lagged:
                of.place(before, u[i], v[i])
                scheme = of.scheme
                for weight, part in ((stage.explicit, scheme.explicit_part), (stage.lagged, scheme.implicit_part)):
                    if weight:
                        lin.tangent(part, work)
                        work *= dt * weight
                        right += work
            fixed[:] = 0.0
            self._prescribe(times, fixed)
            w = dt * stage.implicit
            if w:
                of.place(now, u[i + 1], fixed)
                lin.tangent(of.scheme.implicit_part, work)
                work *= w
                right += work
            if lin.prescribed() is not None:
                problem.mass_times(fixed, work)
                right -= work
            if lin.with_damping:
                of.place(now, combine(stage.increment, u, self._sum, work), self._still)
                lin.tangent("mass", work)
                right -= work
            right[problem.constrained] = 0.0
            v[i + 1] = v[i]
            v[i + 1][problem.constrained] = 0.0
            self._solver.assemble(now, u[i + 1], w)
            self._solver.solve(right, v[i + 1], transposed=False)
            v[i + 1] += fixed
            before = now
        self._v[:] = v[-1]


class StageSolver:
    """Solves with the matrix of a stage, M - w R_I'(u), or with M alone where the stage is explicit."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._of, self._state, self._w = trajectory, trajectory.problem.new_state(), 0.0
        self._linear = None if trajectory.scheme.is_explicit else trajectory.borrow_solver()

    def assemble(self, t: float, u: Array, w: float) -> None:
        self._w = w
        if w and self._linear is not None:
            self._of.problem.load(u, self._state)
            self._linear.assemble(t, self._state, w)

    def transposed_times(self, values: Array, out: Array) -> None:
        """Write (M - w R')^T values on the free dofs; the stage is implicit."""
        assert self._linear is not None
        self._linear.transposed_times(values, out)

    def solve(self, right: Array, out: Array, transposed: bool) -> None:
        if self._w and self._linear is not None:
            self._linear.solve(right, out, transposed)
        elif not self._of.problem.solve_mass(right, out, transposed):
            out[:] = np.nan

    def close(self) -> None:
        if self._linear is not None:
            self._linear.give_back()
