"""Systems of two substances: patterns, excitable media, phase separation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npde_fem import physics
from npde_fem.cases.case import Case, Posed, made, radius_squared
from npde_fem.cases.diffusion import cosines, rough
from npde_fem.equation import NPDE
from npde_fem.parameter import Parameter

import numpy as np
import ufl

__all__ = ["KNOWN", "SCENES"]


def _two_bumps(dim: int, first: tuple[float, float], second: tuple[float, float]) -> Callable:
    """Return two multiples of a decaying cosine, each given by its level and height."""

    def exact(x: Any, t: Any) -> Any:
        wave = ufl.exp(-t) * cosines(dim)(x)
        return ufl.as_vector([level + height * wave for level, height in (first, second)])

    return exact


def _gray_scott(diffusion: float, feed: float) -> NPDE:
    return physics.gray_scott(
        Parameter("D_u", 2 * diffusion), Parameter("D_v", diffusion), Parameter("F", feed), Parameter("k", 0.06)
    )


def _dividing_spots(dim: int) -> Posed:
    def seed(x: Any) -> Any:
        distance = np.sqrt(radius_squared(x, dim, 1.25))
        spot = 0.25 * (1 + np.tanh((0.1 - distance) / 0.02)) * (1 + 0.1 * rough(dim)(x))
        return np.array([1 - spot, 0.5 * spot])

    return Posed(_gray_scott(1e-5, 0.035), initial=seed)


def _fitzhugh_nagumo(diffusion: float, timescale: float) -> NPDE:
    return physics.fitzhugh_nagumo(
        Parameter("D", diffusion), Parameter("a", 0.1), Parameter("eps", timescale), Parameter("b", 0.5)
    )


def _spiral(dim: int) -> Posed:
    """A wave cut in half by resting medium: it curls up (Bueno-Orovio, Kay and Burrage 2014, BIT 54, section 4.3)."""

    front = 1.25 if dim > 1 else 0.2

    def cut(x: Any) -> Any:
        resting = (x[1] >= 1.25) & (dim > 1)
        return np.array([np.where((x[0] < front) & ~resting, 1.0, 0.0), np.where(resting, 0.1, 0.0)])

    return Posed(_fitzhugh_nagumo(1e-4, 0.01), initial=cut)


def _phases(dim: int) -> Posed:
    equation = physics.cahn_hilliard(Parameter("eps", 0.02), Parameter("M", 1.0))

    def mixed(x: Any) -> Any:
        waves = rough(dim)(x) * rough(dim)(1.3 - x) if dim > 1 else rough(dim)(x)
        return np.array([waves, 0.0 * x[0]])

    return Posed(equation, initial=mixed)


KNOWN = (
    Case(
        "gray-scott",
        "two species, cubic autocatalysis, manufactured, no flux",
        lambda dim: made(_gray_scott(0.01, 0.04), _two_bumps(dim, (0.75, 0.25), (0.25, -0.125))),
    ),
    Case(
        "fitzhugh-nagumo",
        "an excitable medium, manufactured, no flux",
        lambda dim: made(_fitzhugh_nagumo(0.1, 0.5), _two_bumps(dim, (0.3, 0.4), (0.1, -0.2))),
    ),
    Case(
        "cahn-hilliard",
        "phase separation as a system of concentration and potential, manufactured, no flux",
        lambda dim: made(
            physics.cahn_hilliard(Parameter("eps", 0.2), Parameter("M", 0.1)),
            _two_bumps(dim, (0.1, 0.4), (0.0, 0.3)),
        ),
        scheme="sdirk2",
    ),
)

SCENES = (
    Case(
        "gray-scott",
        "spots that divide (Pearson 1993), on a box of side 2.5",
        _dividing_spots,
        sides=(0.0, 2.5),
        end=2000.0,
        step=2.0,
        scheme="imex",
    ),
    Case(
        "fitzhugh-nagumo",
        "a broken wave curls into a spiral; in 1D a pulse",
        _spiral,
        sides=(0.0, 2.5),
        end=1000.0,
        step=1.0,
        scheme="imex",
    ),
    Case(
        "cahn-hilliard",
        "an alloy separates into its phases, which coarsen",
        _phases,
        end=0.04,
        step=2e-4,
        scheme="sdirk2",
    ),
)
