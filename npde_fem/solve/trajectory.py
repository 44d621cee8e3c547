"""A solve that was recorded, and what can be asked of it: tangent, gradient, Hessian times a direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from npde_fem.discretize.linearised import Integral, Linearised, Nodal
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.equation import Initial
from npde_fem.parameter import Parameter
from npde_fem.solve.adjoint import Derivative, StageSweep, Sweep
from npde_fem.solve.history import Checkpoints, make_history
from npde_fem.solve.integrate import Recorder
from npde_fem.solve.krylov import LinearSolver, StageMatrix
from npde_fem.solve.newmark_sweeps import NewmarkSweep, NewmarkTangent
from npde_fem.solve.preconditioner import ShiftedLaplacian
from npde_fem.solve.schemes import STATIONARY, Newmark, Scheme, Stage
from npde_fem.solve.steppers import Stepper
from npde_fem.solve.tangent import StageTangent, Stepping, Tangent

import numpy as np

__all__ = ["Cotangents", "Derivative", "Trajectory"]


@dataclass
class Cotangents:
    """Derivatives of a functional by what a solve gives.

    Attributes
    ----------
    states
        By the observed states, shape (times, n_owned), or None.
    final
        By the final state, values, or None.
    integrals
        By the time integrals, one number each.
    velocities, final_velocity
        As ``states`` and ``final``, by the velocity; for equations with inertia only.
    """

    states: Array | None = None
    final: Array | None = None
    integrals: Sequence[float] = ()
    velocities: Array | None = None
    final_velocity: Array | None = None


class Trajectory(Recorder):
    """A solve that can be differentiated: hand it to ``solve`` as ``recorder``, then call the sweeps.

    Sweeps use the parameters' current values, which must be those of the solve, and are collective.

    Parameters
    ----------
    problem
        The problem.
    initial
        The initial data, if it is in UFL.
    integrals
        UFL callables ``(u, x, t)``: time integrals ``int int j dx dt``, by the trapezoidal rule over the steps (of a
        stationary problem: ``int j dx``); their values are in :attr:`integral_values`.
    checkpoints
        How many states to keep; None for all.
    velocity
        The initial velocity, if it is in UFL.
    preconditioner
        That of the solve.
    """

    def __init__(
        self,
        problem: Semidiscrete,
        initial: Initial | None = None,
        integrals: Sequence[Callable] = (),
        checkpoints: int | Checkpoints | None = None,
        velocity: Initial | None = None,
        preconditioner: ShiftedLaplacian | None = None,
    ) -> None:
        self.problem, self.preconditioner = problem, preconditioner
        self._initial_data, self._integrands, self._checkpoints = (initial, velocity), list(integrals), checkpoints
        self._known: dict[tuple[Parameter, ...], tuple[Linearised, list[Nodal | None], list[Integral]]] = {}
        self.by(())
        self.scheme: Scheme | Newmark = STATIONARY
        self.steps: list[tuple[float, float]] = []
        self.observed: list[int] = []
        self.integral_values = np.zeros(len(integrals))
        self._densities = np.zeros(len(integrals))
        self._state, self._direction = problem.new_state(), problem.new_state()
        self._stages = np.zeros((1, 0, 0))
        self.start_values = np.zeros(0)

    def another(self, checkpoints: int | Checkpoints | None) -> Trajectory:
        """Return a recorder of another solve of the same kind; what is compiled serves both."""
        initial, velocity = self._initial_data
        made = Trajectory(self.problem, initial, self._integrands, checkpoints, velocity, self.preconditioner)
        made._known = self._known
        return made

    def by(self, controls: Sequence[Parameter]) -> Self:
        """Choose the parameters to differentiate by; returns the trajectory itself.

        Raises
        ------
        TypeError, ValueError
            If one is no parameter of the problem.
        """
        key = tuple(controls)
        if key not in self._known:
            lin = self.problem.linearised(key)
            initial = [None if data is None or not key else lin.initial(data.value) for data in self._initial_data]
            self._known[key] = lin, initial, [lin.integral(j) for j in self._integrands]
        self.lin, (self.initial, self.initial_velocity), self._integrals = self._known[key]
        return self

    # -- recording -------------------------------------------------------------------------------------------

    def begin(self, scheme: Scheme | Newmark | None, t: float, row: Array, expected: int | None) -> None:
        scheme = STATIONARY if scheme is None else scheme
        count, size = scheme.kept, row.size
        if scheme != self.scheme or self._stages.shape[1] != count + 1:
            self.scheme, self._stages = scheme, np.zeros((1, count + 1, size))
            self.history = make_history(None if scheme is STATIONARY else self._checkpoints, count, size)
            self._pairs = make_history(None if scheme is STATIONARY else self._checkpoints, count, size)
        self.start_values = row.copy()
        self.history.begin(self.start_values[None], expected)
        self.steps, self.observed = [], []
        self.integral_values[:] = 0.0
        if scheme is not STATIONARY:
            self._densities[:] = self._evaluate_integrals(t, row)

    def step(self, t: float, dt: float, stepper: Stepper) -> None:
        stepper.stages(self._stages[0])
        self.history.keep(self._stages)
        self.steps.append((t, dt))
        if self._integrals:
            self.integral_values += 0.5 * dt * self._densities
            self._densities[:] = self._evaluate_integrals(t + dt, self._stages[0, -1])
            self.integral_values += 0.5 * dt * self._densities

    def observe(self) -> None:
        self.observed.append(len(self.steps))

    def stationary(self, values: Array) -> None:
        self._stages[0, 0], self._stages[0, 1] = self.start_values, values
        self.history.keep(self._stages)
        self.steps.append((0.0, 1.0))
        self.integral_values[:] = self._evaluate_integrals(0.0, values)

    def _evaluate_integrals(self, t: float, row: Array) -> list[float]:
        if not self._integrals:
            return []
        self.problem.load(row[: self.problem.n_owned], self._state)
        self.lin.at(t, self._state)
        return [integral.value() for integral in self._integrals]

    # -- what the sweeps ask ---------------------------------------------------------------------------------

    def place(self, t: float, u: Array, v: Array | None = None, *, step: float = 0.0) -> None:
        """Linearise about the values ``u``, with the direction ``v``; ``step`` is that of a flow."""
        self.problem.load(u, self._state)
        if v is not None:
            self.problem.load(v, self._direction)
        self.lin.at(t, self._state, None if v is None else self._direction, step)

    @property
    def row_size(self) -> int:
        """Numbers that a step starts from on this rank; see :mod:`npde_fem.solve.steppers`."""
        return self.start_values.size

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages of the scheme; none of Newmark's family."""
        return () if isinstance(self.scheme, Newmark) else self.scheme.stages

    def borrow_solver(self) -> StageMatrix:
        """Return the solver with the matrix of a stage, to be given back."""
        return LinearSolver.borrow(self.problem, self.scheme.implicit_part, self.preconditioner)

    def time_after(self, step: int) -> float:
        """Time that ``step`` steps lead to."""
        if step < len(self.steps):
            return self.steps[step][0]
        t, dt = self.steps[-1]
        return 0.0 if self.problem.stationary else t + dt

    def integrals_after(self, step: int) -> list[tuple[int, Integral, float]]:
        """Number and kind of the time integrals, with the weight of the state that ``step`` steps lead to."""
        if self.problem.stationary:
            weight = float(step == 1)
        else:
            before = self.steps[step - 1][1] if step else 0.0
            after = self.steps[step][1] if step < len(self.steps) else 0.0
            weight = 0.5 * (before + after)
        return [(k, integral, weight) for k, integral in enumerate(self._integrals) if weight]

    # -- sweeps ----------------------------------------------------------------------------------------------

    def _tangent(self) -> Tangent:
        return NewmarkTangent(self) if isinstance(self.scheme, Newmark) else StageTangent(self)

    def _sweep(self) -> Sweep:
        return NewmarkSweep(self) if isinstance(self.scheme, Newmark) else StageSweep(self)

    def tangent(
        self, delta: Mapping[str, Array], initial: Array | None = None, velocity: Array | None = None
    ) -> Cotangents:
        """Return how the results change along a direction of the parameters and of the initial state.

        Parameters
        ----------
        delta
            Direction of the parameters, by name; those left out do not move.
        initial, velocity
            Direction of the initial state, and of the initial velocity, values, or None.
        """
        self.lin.move(delta)
        n = self.problem.n_owned
        found = np.zeros((len(self.observed), self.row_size))
        integrals = np.zeros(len(self._integrals))
        stages = np.zeros((2, *self._stages.shape[1:]))

        def reach(step: int, u: Array, v: Array) -> None:
            found[[at == step for at in self.observed]] = v
            for k, integral, weight in self.integrals_after(step):
                self.place(self.time_after(step), u[:n], v[:n])
                integrals[k] += weight * integral.tangent()

        with self._tangent() as march:
            start = march.beginning(initial, velocity)
            march.start(0, start)
            reach(0, *start)
            for step in range(len(self.steps)):
                march.step(step, stages)
                reach(step + 1, *stages[:, -1])
        final, moving = stages[1, -1], self.problem.second_order
        return Cotangents(
            found[:, :n].copy(),
            final[:n].copy(),
            integrals.tolist(),
            found[:, n : 2 * n].copy() if moving else None,
            final[n : 2 * n].copy() if moving else None,
        )

    def adjoint(self, by: Cotangents) -> Derivative:
        """Return the gradient of the functional whose derivatives by the solve's results are ``by``."""
        with Stepping(self) as march, self._sweep() as sweep:
            return sweep.run(self.history.backwards(march, len(self.steps)), [by])

    def second(
        self,
        by: Cotangents,
        change: Cotangents,
        delta: Mapping[str, Array],
        initial: Array | None = None,
        velocity: Array | None = None,
    ) -> Derivative:
        """Return the derivative of :meth:`adjoint` along a direction: the Hessian times that direction.

        Parameters
        ----------
        by
            The functional's derivatives by the solve's results.
        change
            Their change along the direction.
        delta, initial, velocity
            The direction, as in :meth:`tangent`.
        """
        self.lin.move(delta)
        with self._tangent() as march, self._sweep() as sweep:
            self._pairs.begin(march.beginning(initial, velocity), None)
            return sweep.run(self._pairs.backwards(march, len(self.steps)), [by, change])
