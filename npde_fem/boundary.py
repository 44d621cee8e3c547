"""Boundary conditions: where they hold, for which components, with what data. Symbols only."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from npde_fem.complex_pairs import as_matrix, as_state, split
from npde_fem.equation import NPDE, as_real, write_term
from npde_fem.parameter import Value, plain, writing_on

import numpy as np
import ufl
from ufl.core.expr import Expr

__all__ = [
    "Absorbing",
    "BoundaryCondition",
    "Dirichlet",
    "Flux",
    "Outflow",
    "Periodic",
    "Robin",
    "checked_conditions",
]

Marker = Any
"""``None`` (everywhere), a callable on coordinates, or (FEM only) one or more facet tags."""


@dataclass(frozen=True)
class BoundaryCondition:
    """What all boundary conditions share: where they hold and for which component.

    ``where`` is None (the whole boundary), a callable on coordinates of shape ``(3, n)`` that returns ``(n,)``
    booleans, or (FEM with ``facet_tags`` only) a tag or a list of tags.
    """

    def checked_component(self, components: int) -> int | None:
        """Return the component, None for all; raise ValueError if the state has no such component.

        The one component of a scalar state is all of it.
        """
        component: int | None = getattr(self, "component", None)
        if component is None:
            return None
        try:
            component = operator.index(component)
        except TypeError as error:
            raise TypeError(
                f"{type(self).__name__}: component must be an integer or None, not {component!r}"
            ) from error
        if not 0 <= component < components:
            raise ValueError(
                f"{type(self).__name__}: component {component} given; the state has {components} "
                f"(0 to {components - 1} allowed)"
            )
        return component if components > 1 else None

    def held(self, equation: NPDE) -> list[int]:
        """Return the real components of the state (see ``NPDE.state_components``) that the condition is for."""
        component = self.checked_component(equation.components)
        parts = 2 if equation.is_complex else 1
        if component is None:
            return list(range(equation.state_components))
        return list(range(parts * component, parts * (component + 1)))

    def write(self, value: Value, equation: NPDE, domain: ufl.Mesh, *arguments: Expr) -> Expr:
        """Write boundary data on a domain: UFL, one real value a held component, ``()`` if that is one."""
        m = equation.components
        scalar = m == 1 or self.checked_component(m) is not None
        label = f"{type(self).__name__} value"
        value = plain(value)
        with writing_on(domain):
            if not scalar and np.ndim(value) == 0 and not callable(value) and not isinstance(value, Expr):
                value = np.full(m, value)
            written = write_term(label, value, arguments, [() if scalar else (m,)])
            return as_state(split(written, {})) if equation.is_complex else as_real(label, written)

    def write_coefficient(
        self, value: Value, equation: NPDE, domain: ufl.Mesh, *arguments: Expr, name: str = "coefficient"
    ) -> Expr:
        """Write a scalar that multiplies the held components: UFL of shape (), or a matrix if it is complex."""
        label = f"{type(self).__name__} {name}"
        with writing_on(domain):
            written = write_term(label, value, arguments, [()])
            if not equation.is_complex:
                return as_real(label, written)
            return as_matrix(split(written, {}), len(self.held(equation)) // 2)


def checked_conditions(bcs: Any, components: int) -> list[BoundaryCondition]:
    """Return boundary conditions as a list, or raise TypeError or ValueError if they are not fit for a state."""
    if isinstance(bcs, BoundaryCondition | str) or not isinstance(bcs, Iterable):
        raise TypeError(f"bcs must be a list of boundary conditions, not {bcs!r}")
    conditions = list(bcs)
    for bc in conditions:
        if not isinstance(bc, BoundaryCondition):
            raise TypeError(f"bcs: boundary conditions such as Dirichlet(0.0) allowed, {bc!r} given")
        bc.checked_component(components)
    return conditions


@dataclass(frozen=True)
class Dirichlet(BoundaryCondition):
    """``u = value``; the value is a number, array, :class:`Parameter` or callable ``(x, t)`` in UFL."""

    value: Value
    where: Marker = None
    component: int | None = None


@dataclass(frozen=True)
class Flux(BoundaryCondition):
    """``n . F = value``, ``n`` the outward normal; value as in :class:`Dirichlet`, or callable ``(x, t, n)``."""

    value: Value
    where: Marker = None
    component: int | None = None


@dataclass(frozen=True)
class Robin(BoundaryCondition):
    """``n . F = value - coefficient * u``; data as in :class:`Flux`, the coefficient a scalar."""

    coefficient: Value
    value: Value = 0.0
    where: Marker = None
    component: int | None = None


@dataclass(frozen=True)
class Absorbing(BoundaryCondition):
    """``n . F = value - impedance * u_t``: lets waves out; data as in :class:`Flux`, the impedance a scalar.

    For ``u_tt = div(c^2 grad u)`` the impedance c absorbs what meets the boundary at right angles, and reflects the
    share ``(1 - cos a) / (1 + cos a)`` of what comes at an angle a to the normal (Engquist and Majda 1977, Math. Comp.
    31, eq. 1.12). It is a damping of the boundary, and like the damping must not depend on time.
    """

    impedance: Value
    value: Value = 0.0
    where: Marker = None
    component: int | None = None


@dataclass(frozen=True)
class Outflow(BoundaryCondition):
    """``du/dn = 0``: the state leaves as it arrives, carried by the drift; FEM only.

    The flux through the boundary is that of the state there without its normal slope, ``n . F(u, grad u - n (n . grad
    u), x, t)``: weakly, as the other conditions on the flux. For all components alike.
    """

    where: Marker = None


@dataclass(frozen=True)
class Periodic(BoundaryCondition):
    """Identify the two sides of a box across ``axis`` (0, 1 or 2)."""

    axis: int

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise ValueError(f"Periodic: axis must be 0, 1 or 2, not {self.axis!r}")
