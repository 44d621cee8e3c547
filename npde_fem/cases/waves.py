"""Waves in time, of speed 1."""

from __future__ import annotations

from typing import Any

from npde_fem import physics
from npde_fem.boundary import Absorbing, Dirichlet
from npde_fem.cases.case import Case, Posed, radius_squared
from npde_fem.cases.conserved import wave_energy
from npde_fem.cases.diffusion import cosines
from npde_fem.parameter import Parameter

import numpy as np
import ufl

__all__ = ["KNOWN", "SCENES"]


def _standing(dim: int) -> Posed:
    def exact(x: Any, t: Any) -> Any:
        return cosines(dim)(x) * ufl.cos(np.pi * np.sqrt(dim) * t)

    return Posed(physics.wave(), exact, conserved={"energy": wave_energy})


def _travelling(dim: int) -> Posed:
    """A pulse f(x - t) that comes in on the left and leaves on the right (d'Alembert 1747)."""

    def exact(x: Any, t: Any) -> Any:
        return ufl.exp(-50 * (x[0] - t - 0.2) ** 2)

    ends = [Dirichlet(exact, lambda x: np.isclose(x[0], 0)), Absorbing(1.0, where=lambda x: np.isclose(x[0], 1))]
    return Posed(physics.wave(), exact, conditions=ends)


def _decaying(dim: int) -> Posed:
    """A standing wave of the damped equation: frequency^2 = d pi^2 + k - b^2 / 4."""
    b, k = 2.0, 3.0
    frequency = np.sqrt(dim * np.pi**2 + k - b**2 / 4)

    def exact(x: Any, t: Any) -> Any:
        return cosines(dim)(x) * ufl.exp(-b / 2 * t) * ufl.cos(frequency * t)

    return Posed(physics.telegraph(1.0, b, k), exact)


def _drop(dim: int) -> Posed:
    return Posed(
        physics.wave(Parameter("c", 1.0)),
        initial=lambda x: np.exp(-200 * radius_squared(x, dim, 0.4)),
        conserved={"energy": wave_energy},
    )


def _ring(dim: int) -> Posed:
    c = Parameter("c", 1.0)
    equation = physics.wave(c)
    return Posed(equation, initial=lambda x: np.exp(-200 * radius_squared(x, dim, 0.5)), conditions=[Absorbing(c)])


def _signal(dim: int) -> Posed:
    equation = physics.telegraph(Parameter("c", 1.0), Parameter("b", 1.0), Parameter("k", 1.0))
    return Posed(equation, initial=lambda x: np.exp(-200 * (x[0] - 0.2) ** 2))


KNOWN = (
    Case("wave", "u_tt = lap u, a standing wave", _standing),
    Case("wave-travelling", "a pulse that leaves through an absorbing boundary, after d'Alembert", _travelling),
    Case("telegraph", "u_tt + b u_t + k u = lap u, a standing wave that decays", _decaying),
)

SCENES = (
    Case("wave", "a drop falls into a pool with walls", _drop, end=2.0, step=0.01),
    Case("wave-open", "a ring leaves through absorbing walls", _ring, step=0.01),
    Case("telegraph", "a signal fades along a line with losses", _signal, end=1.0, step=0.01),
)
