"""The named equations (THEORY.md, section 1), each a few lines on :class:`~npde_fem.equation.NPDE`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npde_fem.equation import NPDE, call

import ufl

__all__ = [
    "allen_cahn",
    "diffusion_reaction",
    "fisher_kpp",
    "glioma",
    "gray_scott",
    "heat",
    "poisson",
    "porous_fisher",
    "reaction_diffusion",
    "telegraph",
    "wave",
]

Coefficient = Any
"""A number, matrix, :class:`~npde_fem.equation.Parameter`, or callable ``(x, t)`` in UFL."""


def _at(coefficient: Coefficient, x: Any, t: Any) -> Any:
    if callable(coefficient) and not isinstance(coefficient, ufl.core.expr.Expr):
        return call("coefficient", coefficient, (x, t))
    return coefficient


def _diffuse(diffusion: Any, u: Any) -> Any:
    """``D grad u`` for a scalar or matrix D."""
    d = ufl.as_tensor(diffusion) if isinstance(diffusion, list | tuple) else ufl.as_ufl(diffusion)
    return d * ufl.grad(u) if d.ufl_shape == () else ufl.dot(ufl.grad(u), ufl.transpose(d))


def reaction_diffusion(diffusion: Coefficient, reaction: Callable, components: int = 1, damping: Any = 1.0) -> NPDE:
    """``B u_t = div(D grad u) + f(u, x, t)``.

    ``diffusion`` is a scalar or a (d, d) tensor for all components; ``reaction`` a callable ``(u, x, t)``.
    """
    return NPDE(
        flux=lambda u, x, t: _diffuse(_at(diffusion, x, t), u),
        source=reaction,
        damping=damping,
        components=components,
        name="reaction-diffusion",
    )


def heat(diffusion: Coefficient = 1.0, source: Coefficient = 0.0) -> NPDE:
    """``u_t = div(D grad u) + s(x, t)``."""
    return NPDE(
        flux=lambda u, x, t: _diffuse(_at(diffusion, x, t), u), source=lambda u, x, t: _at(source, x, t), name="heat"
    )


def poisson(diffusion: Coefficient = 1.0, source: Coefficient = 1.0) -> NPDE:
    """``0 = div(D grad u) + s(x)``, stationary."""
    return NPDE(
        flux=lambda u, x, t: _diffuse(_at(diffusion, x, t), u),
        source=lambda u, x, t: _at(source, x, t),
        damping=0.0,
        name="poisson",
    )


def diffusion_reaction(diffusion: Coefficient, reaction: Callable, components: int = 1) -> NPDE:
    """``0 = div(D grad u) + f(u, x)``, stationary."""
    equation = reaction_diffusion(diffusion, reaction, components, damping=0.0)
    equation.name = "diffusion-reaction"
    return equation


def fisher_kpp(diffusion: Coefficient = 1.0, rate: Coefficient = 1.0, capacity: Coefficient = 1.0) -> NPDE:
    """``u_t = div(D grad u) + r u (1 - u / K)`` (Fisher 1937; Kolmogorov, Petrovsky, Piskunov 1937)."""
    return NPDE(
        flux=lambda u, x, t: _diffuse(_at(diffusion, x, t), u),
        source=lambda u, x, t: _at(rate, x, t) * u * (1 - u / _at(capacity, x, t)),
        name="fisher-kpp",
    )


def porous_fisher(diffusion: Coefficient = 1.0, rate: Coefficient = 1.0, capacity: Coefficient = 1.0) -> NPDE:
    """``u_t = div(D (u / K) grad u) + r u (1 - u / K)`` (Jin et al. 2016, J. Theor. Biol. 390, eq. 3)."""
    return NPDE(
        flux=lambda u, x, t: _diffuse(_at(diffusion, x, t), u) * (u / _at(capacity, x, t)),
        source=lambda u, x, t: _at(rate, x, t) * u * (1 - u / _at(capacity, x, t)),
        name="porous-fisher",
    )


def allen_cahn(thickness: Coefficient = 0.05) -> NPDE:
    """``u_t = eps^2 lap u + u - u^3`` (Allen and Cahn 1979); eps is the interface's thickness."""
    return NPDE(
        flux=lambda u, x, t: _at(thickness, x, t) ** 2 * ufl.grad(u), source=lambda u, x, t: u - u**3, name="allen-cahn"
    )


def gray_scott(
    diffusion_u: Coefficient = 2e-5, diffusion_v: Coefficient = 1e-5, feed: Coefficient = 0.04, kill: Coefficient = 0.06
) -> NPDE:
    """``u_t = D_u lap u - u v^2 + F (1 - u)``, ``v_t = D_v lap v + u v^2 - (F + k) v`` (Pearson 1993, eq. 2)."""

    def flux(w: Any, x: Any, t: Any) -> Any:
        d = ufl.as_matrix([[_at(diffusion_u, x, t), 0], [0, _at(diffusion_v, x, t)]])
        return ufl.dot(d, ufl.grad(w))

    def source(w: Any, x: Any, t: Any) -> Any:
        u, v = w[0], w[1]
        f, k = _at(feed, x, t), _at(kill, x, t)
        return ufl.as_vector([-u * v**2 + f * (1 - u), u * v**2 - (f + k) * v])

    return NPDE(flux=flux, source=source, components=2, name="gray-scott")


def glioma(white: Coefficient, grey: Coefficient, white_matter: Any, grey_matter: Any, rate: Coefficient) -> NPDE:
    """``u_t = div(D(x) grad u) + r u (1 - u)``, ``D = D_w WM(x) + D_g GM(x)``: proliferation and invasion of a glioma.

    ``white_matter`` and ``grey_matter`` are field parameters, the tissue maps in [0, 1]; ``u`` is the cell density over
    its carrying capacity (Swanson, Alvord and Murray 2000, Cell Prolif. 33, eq. 1, with logistic growth).
    """

    def flux(u: Any, x: Any, t: Any) -> Any:
        return (_at(white, x, t) * white_matter + _at(grey, x, t) * grey_matter) * ufl.grad(u)

    return NPDE(flux=flux, source=lambda u, x, t: _at(rate, x, t) * u * (1 - u), name="glioma")


def wave(speed: Coefficient = 1.0, damping: Coefficient = 0.0, source: Coefficient = 0.0) -> NPDE:
    """``u_tt + b u_t = div(c^2 grad u) + s(x, t)``.

    ``Absorbing(c)`` on the boundary lets the waves out.
    """
    return NPDE(
        flux=lambda u, x, t: _at(speed, x, t) ** 2 * ufl.grad(u),
        source=lambda u, x, t: _at(source, x, t),
        damping=damping,
        inertia=1.0,
        name="wave",
    )


def telegraph(
    speed: Coefficient = 1.0, damping: Coefficient = 1.0, decay: Coefficient = 0.0, source: Coefficient = 0.0
) -> NPDE:
    """``u_tt + b u_t + k u = div(c^2 grad u) + s(x, t)``: voltage along a line with losses (Heaviside 1876)."""
    return NPDE(
        flux=lambda u, x, t: _at(speed, x, t) ** 2 * ufl.grad(u),
        source=lambda u, x, t: _at(source, x, t) - _at(decay, x, t) * u,
        damping=damping,
        inertia=1.0,
        name="telegraph",
    )
