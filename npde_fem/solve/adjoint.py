"""Exact derivatives of a discrete solve: tangent, adjoint and second-order adjoint, one sweep through its steps each.

A stage of a scheme (see :mod:`npde_fem.solve.schemes`) is, on the free dofs,

    M (U_i - sum_j a_ij U_j) = dt (b_i R_E(U_{i-1}) + d_i R_I(U_{i-1}) + g_i R_I(U_i)),

and ``U_i = g(t_i; theta)`` (or a mean of such) on the constrained ones. Let s_i be the derivative of the functional by
U_i through all that comes after. Walking back, each stage has one linear solve with the transpose of its matrix, on the
free dofs,

    (M - dt g_i R_I'(U_i))^T lambda_i = s_i,      mu_i = s_i - (M - dt g_i R_I'(U_i))^T lambda_i,

the second on the constrained dofs, and hands on

    s_j     += a_ij M^T lambda_i                                               for j < i,
    s_{i-1} += dt (b_i R_E'(U_{i-1}) + d_i R_I'(U_{i-1}))^T lambda_i,
    dJ/dtheta += dt (b_i R_E,theta(U_{i-1}) + d_i R_I,theta(U_{i-1}) + g_i R_I,theta(U_i))^T lambda_i
                 + g_theta^T mu_i - (M_theta (U_i - sum_j a_ij U_j))^T lambda_i.

So it is the derivative of what is computed, not a discretisation of the adjoint equation (discretise, then optimise).
The steps are frozen: how their lengths depend on the state is not differentiated. The second-order adjoint is the
directional derivative of all this (Griewank and Walther 2008, Evaluating Derivatives, section 5.3). A stationary
problem is one stage with M = 0 and dt g = 1. The sweep through steps of Newmark's family is in
:mod:`npde_fem.solve.newmark_sweeps`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from npde_fem.discretize.linearised import Nodal
from npde_fem.discretize.semidiscrete import Array, Term
from npde_fem.solve.schemes import Stage
from npde_fem.solve.steppers import combine
from npde_fem.solve.tangent import StageSolver

import numpy as np

if TYPE_CHECKING:
    from npde_fem.solve.trajectory import Cotangents, Trajectory

__all__ = ["Derivative", "StageSweep", "Sweep"]


@dataclass
class Derivative:
    """A gradient: by the parameters, by name (see ``Linearised.gradient``), and by initial state and velocity (values).

    Only equations with inertia have a velocity.
    """

    parameters: dict[str, Array]
    initial: Array
    velocity: Array | None = None


class Sweep(ABC):
    """One walk back through the steps: the adjoint, and its derivative along a direction if tangents come along.

    Arrays of adjoints have a leading axis: 0 the adjoint, 1 (second order only) its derivative along the direction. So
    have the stages: 0 the state, 1 its tangent.
    """

    def __init__(self, trajectory: Trajectory) -> None:
        self._of = trajectory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def run(self, steps: Iterator[tuple[int, Array]], cotangents: list[Cotangents]) -> Derivative:
        """Walk through the stages of the steps, the last first; one set of cotangents for each order."""
        orders, n = len(cotangents), self._of.problem.n_owned
        self._orders, self._cotangents = orders, cotangents
        # What is carried from step to step: derivatives by the row between them.
        self._carried, start = np.zeros((orders, self._of.row_size)), np.zeros((orders, self._of.row_size))
        self._work, self._weighted = np.zeros(n), np.zeros((orders, n))
        self._prepare(orders)
        self._of.lin.clear()
        for step, stages in steps:
            self._add_cotangents(step + 1, stages[:, -1])
            self._step(step, stages)
            start[:] = stages[:, 0]
        self._add_cotangents(0, start)
        return self._finish(start)

    @abstractmethod
    def _prepare(self, orders: int) -> None:
        """Make room for a walk."""

    @abstractmethod
    def _step(self, step: int, stages: Array) -> None:
        """Take what is carried from the end of a step to its start."""

    @abstractmethod
    def _finish(self, start: Array) -> Derivative:
        """Add what the initial data, and all at the start, contribute; return the gradient."""

    @abstractmethod
    def _close(self) -> None:
        """Give back the solver."""

    def _add_cotangents(self, step: int, row: Array) -> None:
        """Add the derivatives by the row that ``step`` steps lead to, and by parameters in the integrals there."""
        of, work, n = self._of, self._work, self._of.problem.n_owned
        for carried, by in zip(self._carried, self._cotangents, strict=True):
            for k, (states, final) in enumerate(((by.states, by.final), (by.velocities, by.final_velocity))):
                part = carried[k * n : (k + 1) * n]
                if states is not None:
                    for observed, at in enumerate(of.observed):
                        if at == step:
                            part += states[observed]
                if final is not None and step == len(of.steps):
                    part += final
        for k, integral, weight in of.integrals_after(step):
            weights = [weight * by.integrals[k] if len(by.integrals) else 0.0 for by in self._cotangents]
            of.place(of.time_after(step), *row[:, :n])
            for carried, c in zip(self._carried, weights, strict=True):
                integral.pull(c, work)
                carried[:n] += work
            integral.collect(weights[-1])
            if self._orders == 2:
                integral.pull_second(weights[0], work)
                self._carried[1, :n] += work
                integral.collect_second(weights[0])

    def _collect(self, term: Term, adjoint: Array) -> None:
        self._of.lin.collect(term, adjoint[-1])
        if self._orders == 2:
            self._of.lin.collect_second(term, adjoint[0])

    def _collect_nodal(self, nodal: Nodal | None, times: Sequence[float], adjoint: Array) -> None:
        """Collect the sensitivities of nodal data, its mean over some times, if there is any that a control enters."""
        if nodal is None:
            return
        share = adjoint if len(times) == 1 else adjoint / len(times)
        for t in times:
            nodal.collect(t, share[-1])
            if self._orders == 2:
                nodal.collect_second(t, share[0])


class StageSweep(Sweep):
    """The sweep through a scheme of stages."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(trajectory)
        self._solver = StageSolver(trajectory)

    def _close(self) -> None:
        self._solver.close()

    def _prepare(self, orders: int) -> None:
        n, count = self._of.problem.n_owned, len(self._of.stages)
        self._sources = np.zeros((count + 1, orders, n))
        self._adjoint, self._older = np.zeros((count, orders, n)), np.zeros((count, orders, n))
        self._later, self._later_mass = np.zeros((orders, n)), np.zeros((orders, n))
        self._later_weights = (0.0, 0.0)
        self._right, self._mu = np.zeros(n), np.zeros((orders, n))
        self._steps_back = 0

    def _step(self, step: int, stages: Array) -> None:
        of, (t, dt) = self._of, self._of.steps[step]
        sources = self._sources
        sources[:-1] = 0.0
        sources[-1] = self._carried
        for i, stage in reversed(list(enumerate(of.stages))):
            now, times, w = t + stage.at * dt, stage.data_times(t, dt), dt * stage.implicit
            if stage.flow:
                self._use_later(now, times, stages[:, i + 1], sources[i + 1])
                self._flow(t + stage.since * dt, dt * stage.flow, stages[:, i], sources[i + 1], sources[i])
                continue
            if stage.is_combination:
                self._use_later(now, times, stages[:, i + 1], sources[i + 1])
                for j, weight in enumerate(stage.combine):
                    np.multiply(sources[i + 1], weight, out=self._weighted)
                    sources[j] += self._weighted
                continue
            self._solver.assemble(now, stages[0, i + 1], w)
            of.place(now, *stages[:, i + 1])
            self._pull_later(sources[i + 1], w)
            self._solve(i, sources[i + 1], w)
            adjoint = self._adjoint[i]
            self._collect_rates(adjoint, w)
            mass = self._mass_transposed(adjoint)
            if of.lin.prescribed() is not None:
                self._collect_prescribed(times, sources[i + 1], adjoint, w)
            if of.lin.with_damping:
                self._collect_mass(now, stage, stages[:, : i + 2], adjoint)
            for j, weight in enumerate(stage.combine[: i + 1]):
                if weight:
                    np.multiply(mass, weight, out=self._weighted)
                    sources[j] += self._weighted
            self._later[:] = adjoint
            self._later_weights = (dt * stage.explicit, dt * stage.lagged)
        self._carried[:] = sources[0]
        self._steps_back += 1

    def _use_later(self, now: float, times: Sequence[float], state: Array, source: Array) -> None:
        """Finish the source at a stage without a solve; what is left of it on the constrained dofs is the data's."""
        of = self._of
        if any(self._later_weights):
            of.place(now, *state)
            self._pull_later(source, 0.0)
            self._collect_rates()
            self._later_weights = (0.0, 0.0)
        self._collect_nodal(of.lin.prescribed(), times, source)
        source[:, of.problem.constrained] = 0.0

    def _flow(self, since: float, step: float, state: Array, after: Array, before: Array) -> None:
        """Hand the source after a flow ``U_1 = Phi(U_0)`` to the stage before: ``s_0 += Phi'^T s_1``.

        The term "flow" is N Phi(U) with the nodal weights N, so this is its pull of N^-1 s_1.
        """
        adjoint = np.divide(after, self._of.problem.nodal_weights, out=self._mu)
        u, *v = state
        self._of.place(since, u, *v, step=step)
        self._pull("flow", adjoint, 1.0, before)
        self._collect("flow", adjoint)

    def _pull_later(self, source: Array, w: float) -> None:
        """Add to the source at a stage what the next stage's rates there hand back: weight * R'^T lambda."""
        of, lin, work = self._of, self._of.lin, self._work
        explicit, lagged = self._later_weights
        if explicit:
            self._pull(of.scheme.explicit_part, self._later, explicit, source)
        if lagged and w and lin.prescribed() is None and not lin.with_damping:
            # The matrix at hand gives R'^T lambda = (M^T lambda - A^T lambda) / w on the free dofs.
            for order, (s, later, mass) in enumerate(zip(source, self._later, self._later_mass, strict=True)):
                self._solver.transposed_times(later, work)
                np.subtract(mass, work, out=work)
                work *= lagged / w
                s += work
                if order == 1:
                    lin.pull_second(of.scheme.implicit_part, self._later[0], work)
                    work *= lagged
                    s += work
        elif lagged:
            self._pull(of.scheme.implicit_part, self._later, lagged, source)

    def _pull(self, part: Term, adjoint: Array, weight: float, source: Array) -> None:
        """Add ``weight R'^T lambda``, and its derivative, to a source."""
        lin, work = self._of.lin, self._work
        for s, a in zip(source, adjoint, strict=True):
            lin.pull(part, a, work)
            work *= weight
            s += work
        if self._orders == 2:
            lin.pull_second(part, adjoint[0], work)
            work *= weight
            source[1] += work

    def _solve(self, i: int, source: Array, w: float) -> None:
        """Find the adjoint of a stage, and its derivative, starting from what later steps let expect."""
        of, lin, right, work = self._of, self._of.lin, self._right, self._work
        adjoint, older = self._adjoint[i], self._older[i]
        if self._steps_back > 1:
            np.multiply(adjoint, 2.0, out=self._weighted)
            self._weighted -= older
        else:
            self._weighted[:] = adjoint
        older[:] = adjoint
        adjoint[:] = self._weighted
        for order in range(self._orders):
            right[:] = source[order]
            if order == 1 and w:
                lin.pull_second(of.scheme.implicit_part, adjoint[0], work)
                work *= w
                right += work
            if order == 1 and lin.with_damping:
                lin.pull_second("mass", adjoint[0], work)
                right -= work
            right[of.problem.constrained] = 0.0
            adjoint[order][of.problem.constrained] = 0.0
            self._solver.solve(right, adjoint[order], transposed=True)

    def _collect_rates(self, adjoint: Array | None = None, w: float = 0.0) -> None:
        """Collect the sensitivities of the rates at a stage, with the adjoints of all that uses them.

        The stage's own adjoint counts if the stage is implicit, with weight ``w``.
        """
        of, weighted = self._of, self._weighted
        explicit, lagged = self._later_weights
        if explicit:
            np.multiply(self._later, explicit, out=weighted)
            self._collect(of.scheme.explicit_part, weighted)
        if lagged or w:
            np.multiply(self._later, lagged, out=weighted)
            for a, x in zip(() if adjoint is None else adjoint, weighted, strict=False):
                np.multiply(a, w, out=self._work)
                x += self._work
            self._collect(of.scheme.implicit_part, weighted)

    def _mass_transposed(self, adjoint: Array) -> Array:
        """Return M^T lambda, and its derivative."""
        of, mass = self._of, self._later_mass
        for a, m in zip(adjoint, mass, strict=True):
            of.problem.mass_times(a, m, transposed=True)
        if self._orders == 2 and of.lin.with_damping:
            of.lin.pull_second("mass", adjoint[0], self._work)
            mass[1] += self._work
        return mass

    def _collect_prescribed(self, times: Sequence[float], source: Array, adjoint: Array, w: float) -> None:
        """Collect the sensitivities of Dirichlet data: mu = s - (M - w R')^T lambda on the constrained dofs."""
        mu = np.subtract(source, self._later_mass, out=self._mu)
        if w:
            self._pull(self._of.scheme.implicit_part, adjoint, w, mu)
        self._collect_nodal(self._of.lin.prescribed(), times, mu)

    def _collect_mass(self, t: float, stage: Stage, stages: Array, adjoint: Array) -> None:
        """Collect the sensitivities of the damping, by M_theta (U_i - sum_j a_ij U_j)."""
        sums = zip(stages, self._mu, strict=True)
        u, *v = (combine(stage.increment, part, out, self._work) for part, out in sums)
        self._of.place(t, u, *v)
        np.negative(adjoint, out=self._weighted)
        self._collect("mass", self._weighted)

    def _finish(self, start: Array) -> Derivative:
        of, lin, carried = self._of, self._of.lin, self._carried
        t, constrained = of.steps[0][0], of.problem.constrained
        if any(self._later_weights):
            of.place(t, *start)
            self._pull_later(carried, 0.0)
            self._collect_rates()
        self._collect_nodal(lin.prescribed(), [t], carried)
        carried[:, constrained] = 0.0
        self._collect_nodal(of.initial, [t], carried)
        return Derivative(lin.gradient(), carried[-1].copy())
