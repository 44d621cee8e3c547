"""Derivatives of a problem's terms: what tangents, adjoints and second-order adjoints are made of.

A *term* T(u, t; theta) is a vector in the space of the rates: the rate R or one of its parts, or a mass matrix times
the state, M u or M_A u. Let lambda be an adjoint (values, zero on constrained dofs), v a direction of the state, and
delta one of the parameters. Then

    tangent          T_u v + T_theta delta
    pull             T_u^T lambda                                  (all dofs, constrained ones too)
    collect          gradient += T_theta^T lambda
    pull_second      d/du     of lambda . (T_u v + T_theta delta)
    collect_second   gradient += d/dtheta of lambda . (T_u v + T_theta delta)

The same five exist for an *integral* J(u, t; theta) = int j(u, grad u, x, t) dx, with a number in the place of lambda,
and, without u, for *nodal data* g(t; theta): Dirichlet data and initial data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from npde_fem.discretize.semidiscrete import Array, Semidiscrete, Term
from npde_fem.parameter import Parameter

__all__ = ["Integral", "Linearised", "Nodal", "checked_controls"]


class Integral(Protocol):
    """``int j(u, grad u, x, t) dx`` of a problem, made by :meth:`Linearised.integral`.

    Evaluated at the point that :meth:`Linearised.at` has set; every method is collective.
    """

    def value(self) -> float:
        """Return J, the same on every rank."""

    def tangent(self) -> float:
        """Return J_u v + J_theta delta, the same on every rank."""

    def pull(self, weight: float, out: Array) -> None:
        """Write ``weight J_u`` into ``out`` (values)."""

    def collect(self, weight: float) -> None:
        """Add ``weight J_theta`` to the gradient."""

    def pull_second(self, weight: float, out: Array) -> None:
        """Write ``weight`` times the derivative of J_u v + J_theta delta by u into ``out``."""

    def collect_second(self, weight: float) -> None:
        """Add ``weight`` times the derivative of J_u v + J_theta delta by theta to the gradient."""


class Nodal(Protocol):
    """Data g(t; theta) at some nodes; arrays are values, of which other dofs are left alone or not read."""

    def tangent(self, t: float, out: Array) -> None:
        """Write g_theta delta into ``out``."""

    def collect(self, t: float, adjoint: Array) -> None:
        """Add ``g_theta^T adjoint`` to the gradient."""

    def collect_second(self, t: float, adjoint: Array) -> None:
        """Add the derivative of ``adjoint . g_theta delta`` by theta to the gradient."""


class Linearised(ABC):
    """A problem's terms, differentiable by its state and by some of its parameters.

    Parameters
    ----------
    problem
        The problem.
    controls
        The parameters that are differentiated by; each occurs in the problem.
    """

    problem: Semidiscrete
    controls: tuple[Parameter, ...]

    @property
    @abstractmethod
    def with_damping(self) -> bool:
        """Whether M depends on a control."""

    @property
    @abstractmethod
    def with_inertia(self) -> bool:
        """Whether M_A depends on a control."""

    @abstractmethod
    def prescribed(self, order: int = 0) -> Nodal | None:
        """Return all Dirichlet data of the problem together, or its first or second time derivative.

        None if no control enters it.
        """

    @abstractmethod
    def initial(self, function: Callable) -> Nodal:
        """Return initial data, a UFL callable ``(x, t)`` (see ``Semidiscrete.interpolate``), at all dofs."""

    @abstractmethod
    def integral(self, function: Callable) -> Integral:
        """Return the integral of a UFL callable ``(u, x, t)`` of scalar value over the domain."""

    # -- the point and the directions ------------------------------------------------------------------------

    @abstractmethod
    def at(self, t: float, state: Array, direction: Array | None = None, step: float = 0.0) -> None:
        """Linearise about a state (of ``Semidiscrete.new_state``), with a direction v of it, a state too.

        Both are read as long as this point holds; parameters have their current values. ``step`` is the time that the
        term "flow" goes on from ``t``.
        """

    @abstractmethod
    def move(self, delta: Mapping[str, Array]) -> None:
        """Set delta by the names of the controls, in the shapes of :meth:`gradient`; controls left out do not move."""

    # -- terms -----------------------------------------------------------------------------------------------

    @abstractmethod
    def tangent(self, term: Term, out: Array) -> None:
        """Write T_u v + T_theta delta into the values ``out``; zero on constrained dofs, but for M u and M_A u."""

    @abstractmethod
    def pull(self, term: Term, adjoint: Array, out: Array) -> None:
        """Write T_u^T adjoint into the values ``out``."""

    @abstractmethod
    def collect(self, term: Term, adjoint: Array) -> None:
        """Add T_theta^T adjoint to the gradient."""

    @abstractmethod
    def pull_second(self, term: Term, adjoint: Array, out: Array) -> None:
        """Write the derivative of ``adjoint . (T_u v + T_theta delta)`` by u into the values ``out``."""

    @abstractmethod
    def collect_second(self, term: Term, adjoint: Array) -> None:
        """Add the derivative of ``adjoint . (T_u v + T_theta delta)`` by theta to the gradient."""

    # -- the gradient ----------------------------------------------------------------------------------------

    @abstractmethod
    def clear(self) -> None:
        """Set the gradient to zero."""

    @abstractmethod
    def gradient(self) -> dict[str, Array]:
        """Return a copy of what was collected, by name (collective, once at the end of a sweep).

        A number's has its shape, and is the sum over all ranks, the same on each; a field's is flat, this rank's
        owned dofs in the order that ``set_field`` takes.
        """


def checked_controls(problem: Semidiscrete, controls: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """Return the controls, or raise if one is no parameter of the problem (ValueError) or no Parameter (TypeError)."""
    for control in controls:
        if not isinstance(control, Parameter):
            raise TypeError(f"controls: Parameters allowed, {control!r} given")
        if problem.parameters.get(control.name) is not control:
            raise ValueError(
                f"control {control.name!r} does not enter the equation, its boundary or initial data; the problem's "
                f"parameters are {sorted(problem.parameters)}"
            )
    return tuple(controls)
