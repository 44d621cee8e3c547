"""Waves of one frequency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npde_fem import physics
from npde_fem.boundary import Dirichlet, Robin
from npde_fem.cases.case import Case, Posed, radius_squared
from npde_fem.equation import NPDE
from npde_fem.parameter import Parameter

import numpy as np
import scipy.special
import ufl

__all__ = ["KNOWN", "SCENES"]

_OBLIQUE = {1: (1.0,), 2: (np.cos(0.5), np.sin(0.5)), 3: (2 / 3, 2 / 3, 1 / 3)}


def _open(k: Any, incoming: Callable) -> Robin:
    """Return the absorbing boundary that brings what the wave ``incoming(x)`` does."""
    return Robin(-1j * k, lambda x, t, n: ufl.dot(ufl.grad(incoming(x)), n) - 1j * k * incoming(x))


def _plane_wave(dim: int) -> Posed:
    k = 4 * np.pi

    def wave(x: Any) -> Any:
        return ufl.exp(1j * k * sum(c * x[a] for a, c in enumerate(_OBLIQUE[dim])))

    return Posed(physics.helmholtz(k), lambda x, t: wave(x), conditions=[_open(k, wave)])


def _neighbour(dim: int) -> Posed:
    """The wave of a point source near the box, its fundamental solution."""
    k = 4 * np.pi

    def wave(x: Any) -> Any:
        r = ufl.sqrt((x[0] + 0.25) ** 2 + sum((x[a] - 0.4) ** 2 for a in range(1, dim)))
        if dim == 2:
            return 0.25j * (ufl.bessel_J(0, k * r) + 1j * ufl.bessel_Y(0, k * r))
        return ufl.exp(1j * k * r) / (-2j * k if dim == 1 else 4 * np.pi * r)

    return Posed(physics.helmholtz(k), lambda x, t: wave(x), conditions=[_open(k, wave)])


def _cylinder(dim: int) -> Posed:
    """A plane wave scattered by a sound-soft cylinder, the scattered wave in polar coordinates (r, angle).

    The series of Bessel functions is that of Bowman, Senior and Uslenghi 1969, Electromagnetic and Acoustic Scattering
    by Simple Shapes, eq. 2.27.
    """
    k, inner, outer = 2 * np.pi, 0.5, 1.5
    orders = range(int(k * inner) + 9)
    weights = [
        (-1 if n == 0 else -2) * 1j**n * scipy.special.jv(n, k * inner) / scipy.special.hankel1(n, k * inner)
        for n in orders
    ]

    def scattered(x: Any, t: Any) -> Any:
        terms = [
            complex(a) * (ufl.bessel_J(n, k * x[0]) + 1j * ufl.bessel_Y(n, k * x[0])) * ufl.cos(n * x[1])
            for n, a in zip(orders, weights, strict=True)
        ]
        return sum(terms[1:], terms[0])

    equation = NPDE(
        flux=lambda u, x, t: ufl.as_vector([x[0] * u.dx(0), u.dx(1) / x[0]]),
        source=lambda u, x, t: k**2 * x[0] * u,
        damping=0.0,
        dtype=complex,
        name="helmholtz",
    )
    soft = Dirichlet(lambda x, t: -ufl.exp(1j * k * inner * ufl.cos(x[1])), lambda x: np.isclose(x[0], inner))
    rim = Robin(
        -1j * k * outer,
        lambda x, t, n: outer * (ufl.grad(scattered(x, t))[0] - 1j * k * scattered(x, t)),
        lambda x: np.isclose(x[0], outer),
    )
    return Posed(equation, scattered, conditions=[soft, rim])


def _point_source(dim: int) -> Posed:
    k = Parameter("k", 30.0)

    def spot(x: Any) -> Any:
        return ufl.exp(-radius_squared(x, dim, 0.4) / (2 * 0.02**2)) / (2 * np.pi * 0.02**2) ** (dim / 2)

    return Posed(physics.helmholtz(k, source=spot), initial=0.0, conditions=[Robin(-1j * k)])


def _glass(dim: int) -> Posed:
    """A plane wave from the left meets a disc (in 1D a plate, in 3D a ball) of higher index."""
    k, n = Parameter("k", 20.0), Parameter("n", 1.5)

    def index(x: Any) -> Any:
        distance = ufl.sqrt(radius_squared(x, dim) + 1e-12)
        return 1 + (n - 1) * 0.5 * (1 - ufl.tanh((distance - 0.35) / 0.03))

    def wave(x: Any) -> Any:
        return ufl.exp(1j * k * x[0])

    return Posed(physics.helmholtz(k, index), initial=0.0, conditions=[_open(k, wave)])


KNOWN = (
    Case("helmholtz", "lap u + k^2 u = 0, an oblique plane wave, impedance boundary", _plane_wave, end=None),
    Case("helmholtz-source", "the wave of a point source near the box, impedance boundary", _neighbour, end=None),
    Case(
        "helmholtz-cylinder",
        "a plane wave scattered by a soft cylinder, in polar coordinates, against its Bessel series",
        _cylinder,
        dims=(2,),
        sides=((0.5, 1.5), (0.0, np.pi)),
        end=None,
    ),
)

SCENES = (
    Case("helmholtz", "a point source in a box whose walls absorb", _point_source, end=None),
    Case("helmholtz-cylinder", "a plane wave meets a cylinder of glass", _glass, sides=(-1.0, 1.0), end=None),
)
