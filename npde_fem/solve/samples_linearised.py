"""Derivatives of many states of one problem side by side: what sweeps through :class:`LinearSamples` use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, cast

from npde_fem.discretize.fd import FD
from npde_fem.discretize.fd_linearised import FDLinearised
from npde_fem.discretize.fem_linearised import FEMLinearised
from npde_fem.discretize.linearised import Linearised, Nodal
from npde_fem.discretize.semidiscrete import Array, Part, Term
from npde_fem.neural_terms import Weights
from npde_fem.parameter import Parameter
from npde_fem.solve.blocks import Slope

import numpy as np

if TYPE_CHECKING:
    from npde_fem.solve.samples import LinearSamples

__all__ = ["SampledLinearised", "SampledNodal"]


class SampledLinearised:
    """Derivatives of the samples' terms, as :class:`Linearised`: by state and shared parameters, and batched ones.

    Where the inhomogeneities alone depend on a parameter, its derivatives do not depend on the state; adjoints are then
    summed up, over shared samples and over times where time does not matter, and collected once in the end. By some
    numbers in dR/du, the derivative is that of the inhomogeneities, and ``lambda . (dR/du)_theta u`` by one matrix a
    number. By all other parameters in dR/du it is collected sample by sample, or in a compiled loop over these.
    """

    def __init__(self, samples: LinearSamples, controls: tuple[Parameter, ...]) -> None:
        problem = samples.problem
        self._of, self.controls = samples, controls
        self._all = problem.linearised(controls)
        self.with_damping, self.with_inertia = self._all.with_damping, self._all.with_inertia
        bent = [p for p in controls if p.name in problem.matrix_parameters]
        numbers = self._by_matrices(bent)
        self._bent = problem.linearised([p for p in bent if p not in numbers])
        self._rest = problem.linearised([p for p in controls if p not in bent or p in numbers])
        self._numbers = problem.linearised(numbers)
        self._slopes: dict[Part, list[Slope]] = {}
        self._by_slope = {p.name: np.zeros(p.ufl_shape) for p in numbers}
        self._product = np.zeros((samples.count, problem.n_owned))
        self._states: Array | None = None
        self._direction, self._still = problem.new_state(), problem.new_state()
        self._delta: Mapping[str, Array] = {}
        self._sums: dict[tuple[Term | Literal["data"], float], Array] = {}
        self._tangents: dict[Part, tuple[float, Array]] = {}

    def _by_matrices(self, bent: Sequence[Parameter]) -> list[Parameter]:
        """Which of the parameters in dR/du are collected by matrices: numbers, if these are fewer than the samples."""
        if self.with_damping or not isinstance(self._all, FEMLinearised) or not self._of.is_linear("all"):
            return []
        numbers = [p for p in bent if not (p.is_field or isinstance(p, Weights))]
        return numbers if sum(int(np.prod(p.ufl_shape)) for p in numbers) < self._of.count else []

    def _slopes_of(self, part: Part) -> list[Slope]:
        if part not in self._slopes:
            lin, found = self._numbers, []
            if isinstance(lin, FEMLinearised) and lin.controls and lin.jacobian_along(part) is not None:
                components = [(p.name, k) for p in lin.controls for k in range(int(np.prod(p.ufl_shape)))]
                found = [Slope(part, *component, lin) for component in components]
            self._slopes[part] = found
        return self._slopes[part]

    def at(self, t: float, state: Array, direction: Array | None = None, step: float = 0.0) -> None:
        """Linearise about a state of the samples, as ``Linearised.at``."""
        self._t, self._state, self._v, self._step = t, state, direction, step

    def _place(self, lin: Linearised, b: int) -> None:
        """Linearise about the state of one sample."""
        direction = self._still
        if self._v is not None:
            direction = self._direction
            self._of.problem.load(self._of.rows(self._v)[b], direction)
        lin.at(self._t, self._of.state_of(b, self._state), direction, self._step)

    def move(self, delta: Mapping[str, Array]) -> None:
        """Set the parameters' direction, as ``Linearised.move``; that of batched ones has shape (count, size)."""
        self._delta = delta
        self._tangents.clear()
        self._move(0)

    def move_to(self, b: int) -> None:
        """Let batched parameters move as those of a sample do."""
        if self._of.batched:
            self._move(b)

    def _move(self, b: int) -> None:
        samples = self._of
        of_one = {name: samples.shaped(name, d[b]) if name in samples.batched else d for name, d in self._delta.items()}
        self._all.move(of_one)

    def tangent(self, term: Term, out: Array) -> None:
        """Write ``T_u v + T_theta delta``, as ``Linearised.tangent``."""
        samples, into = self._of, self._of.rows(out)
        bent = self._bent.controls or self._by_slope
        if samples.is_linear(term) and not bent and self._v is not None:
            part = cast(Part, term)
            samples.matrices.times(part, self._t, samples.rows(self._v), into)
            into += self._moved(part)
            into[:, samples.problem.constrained] = 0.0
            return
        for b in samples.each():
            self.move_to(b)
            self._place(self._all, b)
            self._all.tangent(term, into[b])

    def _moved(self, part: Part) -> Array:
        """``R_theta delta`` where it does not depend on the state: one row for all samples, or one each."""
        samples = self._of
        if not samples.known(self._tangents, part, self._t):
            found = np.zeros((samples.count if samples.batched else 1, samples.problem.n_owned))
            for b in samples.some() if self.controls else ():
                self.move_to(b)
                self._all.at(self._t, self._still, self._still)
                self._all.tangent(part, found[b])
            self._tangents[part] = self._t, found
        return self._tangents[part][1]

    def pull(self, term: Term, adjoint: Array, out: Array) -> None:
        """Write ``T_u^T adjoint``, as ``Linearised.pull``."""
        samples, rows, into = self._of, self._of.rows(adjoint), self._of.rows(out)
        if samples.is_linear(term):
            samples.matrices.times(cast(Part, term), self._t, rows, into, True)
            return
        for b in samples.each():
            self._place(self._all, b)
            self._all.pull(term, rows[b], into[b])

    def collect(self, term: Term, adjoint: Array) -> None:
        """Add ``T_theta^T adjoint`` to the gradient, as ``Linearised.collect``."""
        rows = self._of.rows(adjoint)
        known = term == "all" or term == "flux" or term == "source"
        if not (known and self._collected_at_once(term, adjoint)):
            by_sample = [lin for lin in ((self._bent,) if known else (self._bent, self._rest)) if lin.controls]
            for b in self._of.each() if by_sample else ():
                for lin in by_sample:
                    self._place(lin, b)
                    lin.collect(term, rows[b])
        if known and self._rest.controls:
            self.add_up(term, self._t, rows)
        for slope in self._slopes_of(cast(Part, term)) if known else ():
            self._of.matrices.times(slope, self._t, self._of.rows(self._state), self._product)
            self._by_slope[slope.number].reshape(-1)[slope.component] += np.vdot(rows, self._product)

    def _collected_at_once(self, term: Term, adjoint: Array) -> bool:
        """Collect for all samples by one compiled loop, where there is one; return whether there is."""
        problem, lin = self._of.problem, self._bent
        if not (isinstance(problem, FD) and isinstance(lin, FDLinearised)) or not problem.fuses or self._of.batched:
            return False
        if lin.controls:
            if self._states is None:
                self._states = problem.new_states(self._of.count)
            problem.load(self._state, self._states)
            lin.at_many(self._t, self._states)
            lin.collect_many(term, adjoint)
        return True

    def add_up(self, what: Term | Literal["data"], t: float, rows: Array) -> None:
        """Add adjoints to those of the same term, or of the prescribed data, at the same time."""
        key = what, 0.0 if self._of.problem.autonomous else t
        share = rows if self._of.batched else rows.sum(axis=0, keepdims=True)
        if key in self._sums:
            self._sums[key] += share
        else:
            self._sums[key] = share.copy()

    def prescribed(self, order: int = 0) -> SampledNodal | None:
        """Return the prescribed data, as ``Linearised.prescribed``."""
        nodal = self._all.prescribed(order)
        return None if nodal is None else SampledNodal(self._of, self, nodal)

    def clear(self) -> None:
        """Set the gradient to zero."""
        self._sums.clear()
        for lin in (self._bent, self._rest):
            lin.clear()
        for by_slope in self._by_slope.values():
            by_slope[...] = 0.0

    def gradient(self) -> dict[str, Array]:
        """Return what was collected, as ``Linearised.gradient``; that by batched parameters with a row a sample."""
        samples, found, own = self._of, self._rest.gradient(), []
        for b in samples.some():
            self._rest.clear()
            for (what, t), rows in self._sums.items():
                self._collect_sum(what, t, rows[b])
            own.append(self._rest.gradient())
        for name in found:
            parts = [gradient[name] for gradient in own]
            found[name] = np.stack(parts) if name in samples.batched else np.asarray(found[name] + sum(parts))
        for name, by_slope in self._by_slope.items():
            found[name] += samples.comm.allreduce(by_slope)
        return found | self._bent.gradient()

    def _collect_sum(self, what: Term | Literal["data"], t: float, row: Array) -> None:
        if what != "data":
            self._rest.at(t, self._still, self._still)
            self._rest.collect(what, row)
            return
        for lin in (self._bent, self._rest):
            nodal = lin.prescribed() if lin.controls else None
            if nodal is not None:
                nodal.collect(t, row)


class SampledNodal:
    """Prescribed data of all samples, as :class:`Nodal`."""

    def __init__(self, samples: LinearSamples, owner: SampledLinearised, nodal: Nodal) -> None:
        self._of, self._owner, self._nodal = samples, owner, nodal

    def tangent(self, t: float, out: Array) -> None:
        """Write ``g_theta delta`` into the values ``out``."""
        into, c = self._of.rows(out), self._of.problem.constrained
        for b in self._of.some():
            self._owner.move_to(b)
            self._nodal.tangent(t, into[b])
        if not self._of.batched:
            into[1:, c] = into[0, c]

    def collect(self, t: float, adjoint: Array) -> None:
        """Add ``g_theta^T adjoint`` to the gradient."""
        self._owner.add_up("data", t, self._of.rows(adjoint))
