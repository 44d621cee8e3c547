"""Densities of topology optimisation: filtered by an equation, and pressed towards 0 and 1 by a projection."""

from __future__ import annotations

import math
from typing import Any

from npde_fem.equation import NPDE
from npde_fem.parameter import Parameter

import numpy as np
import ufl
from ufl.core.expr import Expr

__all__ = ["density_filter", "projection"]


def density_filter(density: Parameter, radius: float) -> NPDE:
    """``0 = r^2 lap f - f + density``, ``r = radius / (2 sqrt(3))``: a density without detail below a radius.

    Its solution f is the density's local mean, with weights that fall off as quickly as those of a cone of this radius;
    without boundary conditions its total is the density's, and a constant stays as it is (Lazarov and Sigmund 2011,
    Int. J. Numer. Methods Eng. 86, eqs. 3 and 5). Discretised as any equation, by FEM in the scalar space of the
    problem that is to have f, or by FD on its grid, the solution is handed on by ``solve(parameters={...: f.u})``.

    Parameters
    ----------
    density
        A scalar field.
    radius
        Length below which detail is smoothed away. Below it a mesh or grid should have several points, else values may
        leave the density's bounds a little.

    Raises
    ------
    TypeError, ValueError
        If the density is no scalar field, or the radius not positive and finite.
    """
    if not isinstance(density, Parameter) or not density.is_field or density.ufl_shape:
        raise TypeError(f"density_filter: density must be a scalar Parameter with field=True, {density!r} given")
    if not (isinstance(radius, int | float | np.number) and math.isfinite(radius) and radius > 0):
        raise ValueError(f"density_filter: radius must be a positive number, {radius!r} given")
    r = float(radius) / (2 * math.sqrt(3))
    return NPDE(
        flux=lambda f, x, t: r**2 * ufl.grad(f),
        source=lambda f, x, t: density - f,
        damping=0.0,
        name="density filter",
    )


def projection(density: Any, beta: Any, eta: Any = 0.5) -> Any:
    """Return ``(tanh(beta eta) + tanh(beta (density - eta))) / (tanh(beta eta) + tanh(beta (1 - eta)))``.

    It maps [0, 1] onto itself and keeps 0 and 1: nearly the identity for a small ``beta``, a step at the threshold
    ``eta`` for a large one (Wang, Lazarov and Sigmund 2011, Struct. Multidisc. Optim. 43, eq. 9). One raises beta in
    stages, and minimises anew at each.

    Parameters
    ----------
    density, beta, eta
        UFL expressions (Parameters), numbers or arrays; beta is positive. If none is in UFL, neither is the result.
    """
    tanh = ufl.tanh if any(isinstance(value, Expr) for value in (density, beta, eta)) else np.tanh
    low = tanh(beta * eta)
    return (low + tanh(beta * (density - eta))) / (low + tanh(beta * (1 - eta)))
