"""One step of any scheme of first order in time: explicit ones on states with ghosts, the others by Newton's method.

What a step starts from is called a row: the values of the state; of second order (:mod:`npde_fem.solve.newmark`) those
of state, velocity and acceleration, one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.solve.newton import Newton
from npde_fem.solve.schemes import Scheme

import numpy as np
from mpi4py import MPI

__all__ = ["ExplicitStepper", "ImplicitStepper", "StageEquation", "Stepper", "combine"]


class StageEquation(Protocol):
    """Solves the equation of an implicit stage, ``M u - b - w R(u, t) = 0``: see :class:`Newton`."""

    newton_iterations: int
    linear_iterations: int
    assembly_seconds: float
    rate: Array

    @property
    def failure(self) -> str:
        """Why the last solve did not end well."""

    @property
    def found(self) -> Array:
        """The state that :meth:`solve` found, values."""

    def evaluate(self, t: float, values: Array) -> None:
        """Make :attr:`rate` the implicit rate at a state."""

    def solve(self, t: float, b: Array, w: float, guess: Array, scale: float) -> bool:
        """Solve, beginning at a guess that has the prescribed values; return whether it went well."""

    def give_back(self) -> None:
        """Leave the solver to the next one."""


class Stepper(Protocol):
    """Advances a state it keeps."""

    failure: str

    @property
    def newton(self) -> StageEquation | None:
        """What solves the stages, if steps are implicit."""

    @property
    def assembly_seconds(self) -> float:
        """Time spent in evaluating and assembling the equation."""

    def start(self, t: float, row: Array) -> None:
        """Begin at a row; constrained dofs of its state are set to their data."""

    def step(self, t: float, dt: float) -> bool:
        """Try a step; the state is as before until :meth:`accept`. Returns whether it went well, alike on all ranks."""

    def accept(self) -> None:
        """Make the result of the last step the state."""

    def values(self, out: Array) -> None:
        """Copy the row into ``out``."""

    def stages(self, out: Array) -> None:
        """Copy the row and the stages of the last step, before :meth:`accept`, into ``out`` (s + 1, size of a row)."""

    def close(self) -> None:
        """Give back the solver, on all ranks together."""

    def error(self, atol: float, rtol: float) -> float:
        """Weighted root-mean-square norm of the last step's error estimate, 1 at the tolerance."""


def combine(weights: Sequence[float], states: Sequence[Array], out: Array, work: Array) -> Array:
    """Return the weighted sum of states: one of them if its weight is all, else ``out``."""
    used = [(w, s) for w, s in zip(weights, states, strict=False) if w]
    if len(used) == 1 and used[0][0] == 1.0:
        return used[0][1]
    if not used:
        out[:] = 0.0
        return out
    np.multiply(used[0][1], used[0][0], out=out)
    for weight, state in used[1:]:
        np.multiply(state, weight, out=work)
        out += work
    return out


class ExplicitStepper:
    """Steps of an explicit scheme, matrix-free."""

    def __init__(self, problem: Semidiscrete, scheme: Scheme) -> None:
        self.problem, self.scheme, self.failure = problem, scheme, ""
        self.newton: StageEquation | None = None
        self._states = [problem.new_state() for _ in range(len(scheme.stages) + 1)]
        self._flowed = np.zeros(problem.n_owned if scheme.needs_flow else 0)
        several = len(scheme.stages) > 1
        self._base, self._work = (problem.new_state(), problem.new_state()) if several else (self._states[0],) * 2
        self.assembly_seconds = 0.0
        self._flag, self._all = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.int32)

    def start(self, t: float, row: Array) -> None:
        self.problem.load(row, self._states[0])
        self.problem.constrain(t, self._states[0])

    def step(self, t: float, dt: float) -> bool:
        begun, before, good = time.perf_counter(), t, True
        for i, stage in enumerate(self.scheme.stages):
            now = t + stage.at * dt
            if stage.flow:
                good &= self._flow(t + stage.since * dt, stage.flow * dt, now, i)
                before = now
                continue
            base = combine(stage.combine, self._states, self._base, self._work)
            good &= self.problem.advance(before, self._states[i], base, dt * stage.explicit, now, self._states[i + 1])
            before = now
        self.assembly_seconds += time.perf_counter() - begun
        self._flag[0] = good
        self.problem.comm.Allreduce(self._flag, self._all, op=MPI.MIN)
        if not self._all[0]:
            self.failure = "the state became NaN or infinite"
        return bool(self._all[0])

    def _flow(self, since: float, step: float, now: float, i: int) -> bool:
        """Make the next state the flow of the ``i``-th; return whether this rank's part of it is finite."""
        after = self._states[i + 1]
        self.problem.flow(since, step, self._states[i], self._flowed)
        self.problem.load(self._flowed, after)
        self.problem.constrain(now, after)
        return bool(np.isfinite(self._flowed.sum()))

    def accept(self) -> None:
        self._states[0], self._states[-1] = self._states[-1], self._states[0]

    def values(self, out: Array) -> None:
        self.problem.store(self._states[0], out)

    def stages(self, out: Array) -> None:
        for state, values in zip(self._states, out, strict=True):
            self.problem.store(state, values)

    def close(self) -> None:
        """Nothing to give back: states are numpy arrays."""

    def error(self, atol: float, rtol: float) -> float:
        raise ValueError(f"{self.scheme.name} has no error estimate")


class ImplicitStepper:
    """Steps of an implicit or IMEX scheme: each stage is a nonlinear solve that starts from an extrapolation."""

    def __init__(self, problem: Semidiscrete, scheme: Scheme, newton: StageEquation | None = None) -> None:
        n = problem.n_owned
        self.problem, self.scheme, self.failure = problem, scheme, ""
        self.newton: StageEquation = newton or Newton.borrow(problem, scheme.implicit_part, False)
        self._u = [np.zeros(n) for _ in range(len(scheme.stages) + 1)]
        self._base, self._work, self._b = np.zeros(n), np.zeros(n), np.zeros(n)
        self._source = np.zeros(n)
        self._guess, self._state = np.zeros(n), problem.new_state()
        self._previous = [np.zeros(n), np.zeros(n)]
        self._steps_known: list[float] = []
        self._last_dt = 0.0

    def start(self, t: float, row: Array) -> None:
        np.copyto(self._u[0], row)
        self._prescribe([t], self._u[0])
        self._steps_known.clear()

    def _prescribe(self, times: Sequence[float], values: Array) -> None:
        """Put the mean of the data at some times on the constrained dofs."""
        problem, c = self.problem, self.problem.constrained
        problem.prescribe(times[0], values)
        for t in times[1:]:
            others = values[c]
            problem.prescribe(t, values)
            values[c] += others
        if len(times) > 1:
            values[c] /= len(times)

    @property
    def assembly_seconds(self) -> float:
        """Time spent in evaluating and assembling the equation."""
        return self.newton.assembly_seconds

    def _scale(self) -> float:
        self.problem.mass_times(self._u[0], self._work)
        return float(np.sqrt(self.problem.comm.allreduce(self._work @ self._work)))

    def _extrapolate(self, fraction: float, dt: float) -> None:
        """First guess of a stage from the last two or three states (Lagrange extrapolation)."""
        u, known = self._u[0], self._steps_known
        s = fraction * dt
        np.copyto(self._guess, u)
        if len(known) == 1:
            np.subtract(u, self._previous[0], out=self._work)
            self._work *= s / known[0]
            self._guess += self._work
        elif len(known) == 2:
            h1, h2 = known[0], known[0] + known[1]
            at_u = (s + h1) * (s + h2) / (h1 * h2)
            at_1 = s * (s + h2) / (h1 * (h1 - h2))
            at_2 = s * (s + h1) / (h2 * (h2 - h1))
            self._guess *= at_u
            np.multiply(self._previous[0], at_1, out=self._work)
            self._guess += self._work
            np.multiply(self._previous[1], at_2, out=self._work)
            self._guess += self._work

    def step(self, t: float, dt: float) -> bool:
        problem, newton = self.problem, self.newton
        scale, before = self._scale(), t
        self._last_dt = dt
        for i, stage in enumerate(self.scheme.stages):
            now = t + stage.at * dt
            times = stage.data_times(t, dt)
            if stage.flow:
                if not self._flow(t + stage.since * dt, stage.flow * dt, self._u[i], self._u[i + 1]):
                    return False
                self._prescribe(times, self._u[i + 1])
                before = now
                continue
            base = combine(stage.combine, self._u, self._base, self._work)
            if stage.is_combination:
                np.copyto(self._u[i + 1], base)
                self._prescribe(times, self._u[i + 1])
                before = now
                continue
            problem.mass_times(base, self._b)
            if stage.explicit:
                problem.load(self._u[i], self._state)
                problem.rate(before, self._state, self._source, self.scheme.explicit_part)
                self._source *= dt * stage.explicit
                self._b += self._source
            if stage.lagged:
                newton.evaluate(before, self._u[i])
                np.multiply(newton.rate, dt * stage.lagged, out=self._work)
                self._b += self._work
            self._extrapolate(stage.at, dt)
            self._prescribe(times, self._guess)
            if not newton.solve(now, self._b, dt * stage.implicit, self._guess, scale):
                self.failure = f"{newton.failure}, scale {scale:.3e}"
                return False
            self._u[i + 1][:] = newton.found
            before = now
        return True

    def _flow(self, since: float, step: float, values: Array, out: Array) -> bool:
        """Write the flow of a state into ``out``; return whether it is finite, alike on all ranks."""
        self.problem.load(values, self._state)
        self.problem.flow(since, step, self._state, out)
        good = bool(self.problem.comm.allreduce(np.isfinite(out.sum()), op=MPI.LAND))
        if not good:
            self.failure = "the flow became NaN or infinite"
        return good

    def accept(self) -> None:
        self._previous[1], self._previous[0] = self._previous[0], self._previous[1]
        self._previous[0][:] = self._u[0]
        self._steps_known = [self._last_dt, *self._steps_known][:2]
        self._u[0], self._u[-1] = self._u[-1], self._u[0]

    def values(self, out: Array) -> None:
        out[:] = self._u[0]

    def stages(self, out: Array) -> None:
        for u, values in zip(self._u, out, strict=True):
            values[:] = u

    def close(self) -> None:
        self.newton.give_back()

    def error(self, atol: float, rtol: float) -> float:
        self._base[:] = 0.0
        for weight, u in zip(self.scheme.error, self._u, strict=True):
            np.multiply(u, weight, out=self._work)
            self._base += self._work
        np.abs(self._u[-1], out=self._work)
        self._work *= rtol
        self._work += atol
        self._base /= self._work
        self._base[self.problem.constrained] = 0.0
        total = self.problem.comm.allreduce(float(self._base @ self._base))
        return float(np.sqrt(total / max(1, self.problem.unknowns)))
