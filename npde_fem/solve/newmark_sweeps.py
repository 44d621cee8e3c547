"""Derivatives of steps of Newmark's family: the tangent, the adjoint and the second-order adjoint.

Rows hold state, velocity and acceleration. A step (see :mod:`npde_fem.solve.newmark`) predicts ut and vt, and with
w = beta dt^2 and g = gamma dt ends at ``u = ut + w a``, ``v = vt + g a``, where the *balance*
``M_A a + M v = R(u, t)`` gives a on the free dofs; on the others u, v and a are the data and its time derivatives. The
start is a balance too, with w = g = 0, ut and vt being the initial data.

Let s_u, s_v, s_a be the derivatives of the functional by u, v, a through all that comes after. The adjoint lambda of a
balance solves, on the free dofs,

    (M_A + g M - w R'(u))^T lambda = s_a + g s_v + w s_u,

and what the balance hands back to its state, velocity and acceleration is

    s_u += R'(u)^T lambda,     s_v -= M^T lambda,     s_a -= M_A^T lambda,
    dJ/dtheta += R_theta(u)^T lambda - (M_theta v + M_A,theta a)^T lambda.

Then s_u, s_v, s_a on the constrained dofs are the derivatives by the data and its time derivatives, and on the free
ones s_u and s_v those by ut and vt. The derivative of all this along a direction is the second-order adjoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from npde_fem.discretize.semidiscrete import Array, Term
from npde_fem.solve.adjoint import Derivative, Sweep
from npde_fem.solve.krylov import LinearSolver
from npde_fem.solve.schemes import Newmark
from npde_fem.solve.tangent import Tangent

import numpy as np

if TYPE_CHECKING:
    from npde_fem.solve.trajectory import Trajectory

__all__ = ["NewmarkSweep", "NewmarkTangent"]

_TERMS: tuple[Term, Term, Term] = ("all", "mass", "inertia")
_SIGNS = (1.0, -1.0, -1.0)
"""The balance as a sum of terms, of state, velocity and acceleration: R(u) - M v - M_A a = 0."""


def _scheme(trajectory: Trajectory) -> Newmark:
    assert isinstance(trajectory.scheme, Newmark)
    return trajectory.scheme


class _BalanceSolver:
    """Solves with the matrix of a balance, ``M_A + g M - w R'(u)``."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._of, self._w, self._g = trajectory, 0.0, 0.0
        self._state = trajectory.problem.new_state()
        explicit = _scheme(trajectory).is_explicit
        self._linear = None if explicit else LinearSolver.borrow(trajectory.problem, "all")

    def assemble(self, t: float, u: Array, w: float, g: float) -> None:
        self._w, self._g = w, g
        if w and self._linear is not None:
            self._of.problem.load(u, self._state)
            self._linear.assemble(t, self._state, w, g, 1.0)

    def solve(self, right: Array, out: Array, transposed: bool) -> None:
        """Solve on the free dofs; ``out`` holds the first guess, and zero on the others."""
        if self._w and self._linear is not None:
            self._linear.solve(right, out, transposed)
        elif not self._of.problem.solve_mass(right, out, transposed, self._g, 1.0):
            out[:] = np.nan

    def close(self) -> None:
        if self._linear is not None:
            self._linear.give_back()


def _terms(trajectory: Trajectory) -> list[int]:
    """Which of the balance's terms are not zero."""
    return [k for k, term in enumerate(_TERMS) if term != "mass" or trajectory.problem.damped]


class NewmarkTangent(Tangent):
    """The tangent of a scheme of Newmark's family."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(trajectory)
        self._solver = _BalanceSolver(trajectory)
        self._stack.callback(self._solver.close)
        n = trajectory.problem.n_owned
        self._right, self._change = np.zeros(n), np.zeros(n)

    def beginning(self, initial: Array | None, velocity: Array | None) -> Array:
        of, n = self._of, self._of.problem.n_owned
        row = np.zeros((3, n))
        self._initial(of.initial, initial, row[0])
        self._initial(of.initial_velocity, velocity, row[1])
        self._balance(of.steps[0][0], of.start_values.reshape(3, n), row, 0.0, 0.0)
        return np.stack([of.start_values, row.reshape(-1)])

    def step(self, step: int, stages: Array) -> None:
        self._forward.step(step, stages[:1])
        scheme, (t, dt) = _scheme(self._of), self._of.steps[step]
        stages[1, 0] = self._v
        values, (before, after) = stages[0, 1].reshape(3, -1), stages[1].reshape(2, 3, -1)
        (u, v, a), (u1, v1, a1) = before, after
        np.multiply(v, dt, out=u1)
        u1 += u
        np.multiply(a, (0.5 - scheme.beta) * dt**2, out=self._work)
        u1 += self._work
        np.multiply(a, (1 - scheme.gamma) * dt, out=v1)
        v1 += v
        a1[:] = a
        self._balance(t + dt, values, after, scheme.beta * dt**2, scheme.gamma * dt)
        self._v[:] = stages[1, 1]

    def _balance(self, t: float, values: Array, row: Array, w: float, g: float) -> None:
        """Complete the tangent's row, which holds predictions and a guess of the acceleration, at a row of values."""
        of, right, work, constrained = self._of, self._right, self._work, self._of.problem.constrained
        self._change[:] = row[2]
        row[2] = 0.0
        for order, part in enumerate(row):
            self._prescribe([t], part, order)
        right[:] = 0.0
        for k in _terms(of):
            of.place(t, values[k], row[k])
            of.lin.tangent(_TERMS[k], work)
            work *= _SIGNS[k]
            right += work
        right[constrained] = self._change[constrained] = 0.0
        self._solver.assemble(t, values[0], w, g)
        self._solver.solve(right, self._change, transposed=False)
        for part, weight in zip(row, (w, g, 1.0), strict=True):
            np.multiply(self._change, weight, out=work)
            part += work


class NewmarkSweep(Sweep):
    """The sweep through steps of Newmark's family."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(trajectory)
        self._solver = _BalanceSolver(trajectory)

    def _close(self) -> None:
        self._solver.close()

    def _prepare(self, orders: int) -> None:
        n = self._of.problem.n_owned
        self._adjoint, self._older = np.zeros((orders, n)), np.zeros((orders, n))
        self._right, self._back = np.zeros(n), np.zeros((3, n))
        self._steps_back = 0

    def _step(self, step: int, stages: Array) -> None:
        scheme, (t, dt) = _scheme(self._of), self._of.steps[step]
        self._balance(t + dt, stages[:, 1], scheme.beta * dt**2, scheme.gamma * dt)
        for s_u, s_v, s_a in self._carried.reshape(self._orders, 3, -1):
            # The predictions are ut = u + dt v + (1/2 - beta) dt^2 a and vt = v + (1 - gamma) dt a.
            np.multiply(s_u, (0.5 - scheme.beta) * dt**2, out=s_a)
            np.multiply(s_v, (1 - scheme.gamma) * dt, out=self._work)
            s_a += self._work
            np.multiply(s_u, dt, out=self._work)
            s_v += self._work
        self._steps_back += 1

    def _balance(self, t: float, row: Array, w: float, g: float) -> None:
        """Go back through the balance at a row: what is carried ends as the derivatives by the predictions."""
        of, n, constrained = self._of, self._of.problem.n_owned, self._of.problem.constrained
        carried, row = self._carried.reshape(self._orders, 3, n), row.reshape(self._orders, 3, n)
        self._solver.assemble(t, row[0, 0], w, g)
        self._extrapolate()
        for order in range(self._orders):
            s_u, s_v, s_a = carried[order]
            if order == 1:
                self._pull(t, row, second=True)
                carried[1] += self._back
            np.multiply(s_v, g, out=self._right)
            self._right += s_a
            if w:
                np.multiply(s_u, w, out=self._work)
                self._right += self._work
            self._right[constrained] = self._adjoint[order][constrained] = 0.0
            self._solver.solve(self._right, self._adjoint[order], transposed=True)
        for order in range(self._orders):
            self._pull(t, row, order)
            carried[order] += self._back
        for k in _terms(of):
            np.multiply(self._adjoint, _SIGNS[k], out=self._weighted)
            of.place(t, *row[:, k])
            self._collect(_TERMS[k], self._weighted)
        for order, part in enumerate(carried.swapaxes(0, 1)):
            self._collect_nodal(of.lin.prescribed(order), [t], part)
        carried[:, :, constrained] = 0.0

    def _pull(self, t: float, row: Array, order: int = 0, *, second: bool = False) -> None:
        """Write what a balance hands back for an adjoint; or, ``second``, for how its terms' derivatives change."""
        of, lin = self._of, self._of.lin
        self._back[:] = 0.0
        for k in _terms(of):
            if second or k == 0:
                of.place(t, *row[:, k])
            if second:
                lin.pull_second(_TERMS[k], self._adjoint[0], self._back[k])
            else:
                lin.pull(_TERMS[k], self._adjoint[order], self._back[k])
            self._back[k] *= _SIGNS[k]

    def _extrapolate(self) -> None:
        """Guess the adjoint from those of later steps."""
        if self._steps_back > 1:
            np.multiply(self._adjoint, 2.0, out=self._weighted)
            self._weighted -= self._older
        else:
            self._weighted[:] = self._adjoint
        self._older[:] = self._adjoint
        self._adjoint[:] = self._weighted

    def _finish(self, start: Array) -> Derivative:
        of, n, t = self._of, self._of.problem.n_owned, self._of.steps[0][0]
        self._balance(t, start, 0.0, 0.0)
        u, v = self._carried[:, :n], self._carried[:, n : 2 * n]
        self._collect_nodal(of.initial, [t], u)
        self._collect_nodal(of.initial_velocity, [t], v)
        return Derivative(of.lin.gradient(), u[-1].copy(), v[-1].copy())
