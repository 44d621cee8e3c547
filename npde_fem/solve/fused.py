"""Many states of one problem on a grid, by an explicit scheme: one pass of the kernels over all samples.

As :mod:`npde_fem.solve.samples`, with the ghosts of all samples in one array: a stage is one call of a compiled loop
over samples and one exchange of ghosts, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

from npde_fem.discretize.fd import FD
from npde_fem.discretize.fd_linearised import FDLinearised
from npde_fem.discretize.linearised import Nodal
from npde_fem.discretize.semidiscrete import Array, Term
from npde_fem.parameter import Parameter
from npde_fem.solve.samples import Samples

import numpy as np

__all__ = ["FusedLinearised", "FusedSamples"]


class FusedSamples(Samples):
    """Samples of a problem on a grid whose mass matrix is one number times the control volumes (``FD.fuses``).

    Parameters
    ----------
    problem, count
        As of :class:`Samples`.
    """

    def __init__(self, problem: FD, count: int) -> None:
        super().__init__(problem, count)
        self._grid_problem = problem
        self._inverses = np.zeros(problem.n_owned)
        self._linearised: dict[tuple[Parameter, ...], FusedLinearised] = {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self.problem.solve_mass(np.ones(self.problem.n_owned), self._inverses)
        with super().at_work():
            yield

    def new_state(self) -> Array:
        """Return a new state: those of all samples, one array."""
        return self._grid_problem.new_states(self.count)

    def load(self, values: Array, state: Array) -> None:
        """Copy values into a state, and bring its ghosts up to date."""
        self.problem.load(values, state)

    def store(self, state: Array, values: Array) -> None:
        """Copy a state into values."""
        self.problem.store(state, values)

    def constrain(self, t: float, state: Array) -> None:
        """Set constrained dofs to their data, and bring ghosts up to date."""
        self.problem.constrain(t, state)

    def advance(self, t: float, state: Array, base: Array, step: float, t_out: float, out: Array) -> bool:
        """Write ``base + step M^-1 R(u, t)``, as ``Semidiscrete.advance``."""
        return self.problem.advance(t, state, base, step, t_out, out)

    def flow(self, t: float, step: float, state: Array, out: Array) -> None:
        """Write the equation's flow, as ``Semidiscrete.flow``."""
        for one, into in zip(state, self.rows(out), strict=True):
            self.problem.flow(t, step, one, into)

    def solve_mass(self, values: Array, out: Array, transposed: bool = False) -> bool:
        """Solve with M, as ``Semidiscrete.solve_mass``."""
        np.multiply(self.rows(values), self._inverses, out=self.rows(out))
        return bool(np.isfinite(out.sum()))

    def linearised(self, controls: Sequence[Parameter]) -> FusedLinearised:
        """Return the derivatives of the samples' terms, always the same for the same controls."""
        key = tuple(controls)
        if key not in self._linearised:
            self._linearised[key] = FusedLinearised(self, self._grid_problem, key)
        return self._linearised[key]


class FusedLinearised:
    """Derivatives of the samples' terms, as ``Linearised``."""

    def __init__(self, samples: FusedSamples, problem: FD, controls: tuple[Parameter, ...]) -> None:
        self._of, self._lin, self.controls = samples, cast(FDLinearised, problem.linearised(controls)), controls
        self.with_damping, self.with_inertia = self._lin.with_damping, self._lin.with_inertia

    def at(self, t: float, state: Array, direction: Array | None = None, step: float = 0.0) -> None:
        """Linearise about a state of the samples, as ``Linearised.at``."""
        self._t, self._state, self._v, self._step = t, state, direction, step
        self._lin.at_many(t, state, step)

    def move(self, delta: Mapping[str, Array]) -> None:
        """Set the parameters' direction, as ``Linearised.move``."""
        self._lin.move(delta)

    def tangent(self, term: Term, out: Array) -> None:
        """Write ``T_u v + T_theta delta``, as ``Linearised.tangent``."""
        directions = [None] * self._of.count if self._v is None else self._v
        for state, v, into in zip(self._state, directions, self._of.rows(out), strict=True):
            self._lin.at(self._t, state, v, self._step)
            self._lin.tangent(term, into)

    def pull(self, term: Term, adjoint: Array, out: Array) -> None:
        """Write ``T_u^T adjoint``, as ``Linearised.pull``."""
        self._lin.pull_many(term, adjoint, out)

    def collect(self, term: Term, adjoint: Array) -> None:
        """Add ``T_theta^T adjoint`` to the gradient, as ``Linearised.collect``."""
        self._lin.collect_many(term, adjoint)

    def prescribed(self, order: int = 0) -> FusedNodal | None:
        """Return the prescribed data, as ``Linearised.prescribed``."""
        nodal = self._lin.prescribed(order)
        return None if nodal is None else FusedNodal(self._of, nodal)

    def clear(self) -> None:
        """Set the gradient to zero."""
        self._lin.clear()

    def gradient(self) -> dict[str, Array]:
        """Return what was collected, the sum over the samples."""
        return self._lin.gradient()


class FusedNodal:
    """Prescribed data, the same for all samples, as ``Nodal``."""

    def __init__(self, samples: Samples, nodal: Nodal) -> None:
        self._of, self._nodal = samples, nodal

    def tangent(self, t: float, out: Array) -> None:
        """Write ``g_theta delta`` into the values ``out``."""
        into, c = self._of.rows(out), self._of.problem.constrained
        self._nodal.tangent(t, into[0])
        into[1:, c] = into[0, c]

    def collect(self, t: float, adjoint: Array) -> None:
        """Add ``g_theta^T adjoint`` to the gradient."""
        self._nodal.collect(t, self._of.rows(adjoint).sum(axis=0))
