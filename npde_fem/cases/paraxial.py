"""Beams of light, z in the place of time; the box is the plane across the beam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npde_fem import physics
from npde_fem.boundary import Dirichlet
from npde_fem.cases.case import Case, Posed, product, radius_squared
from npde_fem.cases.conserved import norm
from npde_fem.parameter import Parameter

import numpy as np
import ufl

__all__ = ["KNOWN", "SCENES"]

_K = 20.0


def _gaussian_beam(dim: int) -> Posed:
    """Waist 1/2 at z = 0 (Saleh and Teich 2007, Fundamentals of Photonics, eq. 3.1-5), of Rayleigh range k w^2 / 2."""
    waist = 0.5

    def exact(x: Any, z: Any) -> Any:
        spread = 1 + 2j * z / (_K * waist**2)
        return product(lambda s: ufl.exp(-(s**2) / (waist**2 * spread)) / ufl.sqrt(spread), x, dim)

    return Posed(physics.paraxial(_K), exact, conditions=[Dirichlet(exact)], conserved={"power": norm})


def _graded(dim: int, g: Any) -> Callable:
    """n^2 = 1 - g^2 r^2."""
    return lambda x, z: ufl.sqrt(1 - g**2 * radius_squared(x, dim))


def _graded_lens(dim: int) -> Posed:
    """A Gaussian beam of waist 1 focused by a quarter pitch of a graded-index lens, by the ABCD law.

    Saleh and Teich 2007, Fundamentals of Photonics, eq. 3.2-5, with A = D = cos(g z), B = sin(g z) / g,
    C = -g sin(g z).
    """
    waist, g = 1.0, 0.2
    s = 2 / (_K * waist**2 * g)

    def exact(x: Any, z: Any) -> Any:
        cos, sin = ufl.cos(g * z), ufl.sin(g * z)
        size, bend = cos + 1j * s * sin, -sin + 1j * s * cos
        return product(lambda y: ufl.exp(0.5j * _K * g * y**2 * bend / size) / ufl.sqrt(size), x, dim)

    equation = physics.paraxial(_K, _graded(dim, g))
    return Posed(equation, exact, conditions=[Dirichlet(exact)], conserved={"power": norm})


def _diverging(dim: int) -> Posed:
    return Posed(
        physics.paraxial(Parameter("k", _K)),
        initial=lambda x: np.exp(-radius_squared(x, dim) / 0.3**2) + 0j,
        conditions=[Dirichlet(0.0)],
        conserved={"power": norm},
    )


def _focused(dim: int) -> Posed:
    g = Parameter("g", 0.2)
    return Posed(
        physics.paraxial(Parameter("k", _K), _graded(dim, g)),
        initial=lambda x: np.exp(-radius_squared(x, dim)) + 0j,
        conditions=[Dirichlet(0.0)],
        conserved={"power": norm},
    )


KNOWN = (
    Case("paraxial", "2 i k psi_z = -lap psi, a Gaussian beam spreads", _gaussian_beam, (1, 2), (-2.0, 2.0), end=2.0),
    Case(
        "paraxial-lens",
        "a Gaussian beam focused by a graded-index lens",
        _graded_lens,
        dims=(1, 2),
        sides=(-3.0, 3.0),
        end=4.0,
        step=1 / 8,
    ),
)

SCENES = (
    Case(
        "paraxial",
        "a narrow beam spreads by diffraction",
        _diverging,
        dims=(1, 2),
        sides=(-3.0, 3.0),
        end=4.0,
        step=0.05,
    ),
    Case(
        "paraxial-lens",
        "a graded-index lens focuses a beam, and again",
        _focused,
        dims=(1, 2),
        sides=(-3.0, 3.0),
        end=31.4,
        step=0.1,
        scheme="strang",
    ),
)
