"""Steps of Newmark's family for equations with inertia; see :class:`npde_fem.solve.schemes.Newmark`.

The state at the end of a step is ``u1 = ut + beta dt^2 a1``, its velocity ``v1 = vt + gamma dt a1``, with predictions
ut and vt from what was before. The *balance* of forces, solved for a1, is

    M_A a1 + M (vt + gamma dt a1) = R(ut + beta dt^2 a1, t1)

on the free dofs. On constrained ones u1, v1 and a1 are the data and its time derivatives, which fixes ut and vt there.
The acceleration at the start follows from the same balance with beta = gamma = 0.
"""

from __future__ import annotations

import time
from ctypes import c_double, c_long, c_void_p

from npde_fem.discretize.jit import compile_c
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.solve.newton import Newton
from npde_fem.solve.schemes import Newmark, Scheme
from npde_fem.solve.steppers import ExplicitStepper, ImplicitStepper, Stepper

import numpy as np
from mpi4py import MPI

__all__ = ["NewmarkStepper", "make_stepper"]

_PREDICT = """
void predict(long n, const double *restrict now, double dt, double for_u, double for_v, double *restrict next) {
  for (long i = 0; i < n; ++i) {
    const double v = now[n + i], a = now[2 * n + i];
    next[i] = now[i] + dt * v + for_u * a;
    next[n + i] = v + for_v * a;
  }
}
"""
"""What numpy needs six passes over memory for."""


class NewmarkStepper:
    """Steps of state, velocity and acceleration, which stand in one row, one after the other."""

    def __init__(self, problem: Semidiscrete, scheme: Newmark) -> None:
        n = problem.n_owned
        self.problem, self.scheme, self.failure = problem, scheme, ""
        self.newton = None if scheme.is_explicit else Newton.borrow(problem, "all", False)
        self._now, self._next = np.zeros((3, n)), np.zeros((3, n))
        self._state = problem.new_state()
        self._right, self._work = np.zeros(n), np.zeros(n)
        self._predict = compile_c(problem.comm, _PREDICT).predict
        self._predict.restype = None
        self._predict.argtypes = [c_long, c_void_p, c_double, c_double, c_double, c_void_p]
        self._seconds = 0.0
        self._flag, self._all = np.zeros(1, dtype=np.int32), np.zeros(1, dtype=np.int32)

    @property
    def assembly_seconds(self) -> float:
        """Time spent in evaluating and assembling the equation."""
        return self._seconds + (0.0 if self.newton is None else self.newton.assembly_seconds)

    def start(self, t: float, row: Array) -> None:
        """Begin at state, velocity and acceleration; or at state and velocity, from which the acceleration follows."""
        # All ranks must go on alike, those too that own nothing.
        parts = self.problem.comm.allreduce(row.size) // self.problem.n_global
        given = row.reshape(parts, self.problem.n_owned)
        self._now[: len(given)] = given
        if len(given) < len(self._now):
            for order, part in enumerate(self._now):
                self.problem.prescribe(t, part, order)
            u, v, a = self._now
            self.problem.load(u, self._state)
            self.problem.accelerate(t, self._state, v, 0.0, a)

    def step(self, t: float, dt: float) -> bool:
        u1, v1, a1 = self._next
        beta, gamma, end = self.scheme.beta, self.scheme.gamma, t + dt
        w, g = beta * dt**2, gamma * dt
        now, predicted = self._now.ctypes.data, self._next.ctypes.data
        self._predict(u1.size, now, dt, (0.5 - beta) * dt**2, (1 - gamma) * dt, predicted)
        self._constrain(end, w, g)
        if self.newton is None:
            begun = time.perf_counter()
            self.problem.load(u1, self._state)
            good = self.problem.accelerate(end, self._state, v1, g, a1)
            self._seconds += time.perf_counter() - begun
        else:
            good = self._solve(self.newton, end, dt)
            for part, weight in ((u1, w), (v1, g)):
                np.multiply(a1, weight, out=self._work)
                part += self._work
        self._flag[0] = good
        self.problem.comm.Allreduce(self._flag, self._all, op=MPI.MIN)
        if not self._all[0] and self.newton is None:
            self.failure = "the state became NaN or infinite"
        return bool(self._all[0])

    def _constrain(self, t: float, w: float, g: float) -> None:
        """Let constrained dofs end the step at their data: prescribe the acceleration, and predict what fits to it."""
        c = self.problem.constrained
        if self.problem.unknowns == self.problem.n_global:
            return
        for order, part in enumerate(self._next):
            self.problem.prescribe(t, part, order)
        u1, v1, a1 = self._next
        u1[c] -= w * a1[c]
        v1[c] -= g * a1[c]

    def _solve(self, newton: Newton, t: float, dt: float) -> bool:
        """Solve the balance by Newton's method, to a fraction of the forces that there are."""
        problem, (u1, v1, a1) = self.problem, self._next
        w, g = self.scheme.beta * dt**2, self.scheme.gamma * dt
        c = problem.constrained
        prescribed = a1[c]
        a1[:] = self._now[2]
        a1[c] = prescribed
        problem.mass_times(v1, self._right)
        np.negative(self._right, out=self._right)
        if not newton.accelerate(t, u1, self._right, w, g, a1, self._scale(dt)):
            self.failure = newton.failure
            return False
        a1[:] = newton.found
        return True

    def _scale(self, dt: float) -> float:
        """Norm of the inertia's force, and of the one that would stop the motion within a step."""
        _, v, a = self._now
        total = 0.0
        for part, factor in ((v, 1 / dt), (a, 1.0)):
            self.problem.mass_times(part, self._work, False, 0.0, factor)
            total += float(self._work @ self._work)
        return float(np.sqrt(self.problem.comm.allreduce(total)))

    def accept(self) -> None:
        self._now, self._next = self._next, self._now

    def values(self, out: Array) -> None:
        out.reshape(self._now.shape)[...] = self._now

    def stages(self, out: Array) -> None:
        self.values(out[0])
        out[1].reshape(self._next.shape)[...] = self._next

    def close(self) -> None:
        if self.newton is not None:
            self.newton.give_back()

    def error(self, atol: float, rtol: float) -> float:
        raise ValueError(f"{self.scheme.name} has no error estimate")


def make_stepper(problem: Semidiscrete, scheme: Scheme | Newmark) -> Stepper:
    """Return the stepper a scheme needs."""
    if isinstance(scheme, Newmark):
        return NewmarkStepper(problem, scheme)
    return ExplicitStepper(problem, scheme) if scheme.is_explicit else ImplicitStepper(problem, scheme)
