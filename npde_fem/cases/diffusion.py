"""Diffusion and reaction of one substance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npde_fem import physics
from npde_fem.boundary import Dirichlet
from npde_fem.cases.case import Case, Posed, made, product, radius_squared
from npde_fem.equation import NPDE
from npde_fem.parameter import Parameter

import numpy as np
import ufl

__all__ = ["KNOWN", "SCENES", "cosines", "rough"]


def cosines(dim: int) -> Callable:
    """Return ``prod cos(pi x_i)``, which has no flux through the unit box."""
    return lambda x: product(lambda s: ufl.cos(ufl.pi * s), x, dim)


def rough(dim: int) -> Callable:
    """Return waves of many lengths: rough to look at, the same on every mesh and number of ranks."""

    def waves(x: Any) -> Any:
        total = 0.0
        for k in range(1, 9):
            phase = sum((0.7 + ((k * (a + 2)) % 5)) * k * x[a] for a in range(dim))
            total = total + np.sin(2 * np.pi * phase + k**2) / 8
        return total

    return waves


def _bump(dim: int, level: float, height: float, decay: float = 1.0) -> Callable:
    """``level + height exp(-decay t) prod cos(pi x_i)``."""
    return lambda x, t: level + height * ufl.exp(-decay * t) * cosines(dim)(x)


def _spot(dim: int) -> Callable:
    return lambda x: np.exp(-200.0 * radius_squared(x, dim, 0.5))


def _poisson(dim: int) -> Posed:
    def exact(x: Any, t: Any) -> Any:
        return ufl.exp(x[0]) * product(lambda s: ufl.sin(ufl.pi * s), x, dim)

    return made(physics.poisson(Parameter("D", 1.0), 0.0), exact, [Dirichlet(exact)])


def _nonlinear(dim: int) -> Posed:
    equation = NPDE(
        flux=lambda u, x, t: (1 + u**2) * ufl.grad(u),
        source=lambda u, x, t: -(u**3),
        damping=0.0,
        name="diffusion-reaction",
    )
    return made(equation, _bump(dim, 1.0, 0.5, 0.0))


def _heat(dim: int) -> Posed:
    def exact(x: Any, t: Any) -> Any:
        return ufl.exp(-0.1 * dim * ufl.pi**2 * t) * cosines(dim)(x)

    return Posed(physics.heat(Parameter("D", 0.1)), exact)


def _fisher_wave(dim: int) -> Posed:
    """Travelling wave of speed 5/sqrt(6) (Ablowitz and Zeppetella 1979, Bull. Math. Biol. 41, eq. 1.3), diagonal."""

    def exact(x: Any, t: Any) -> Any:
        along = sum(x[a] for a in range(dim)) / np.sqrt(dim)
        return (1 + ufl.exp((along - 5 / np.sqrt(6) * t) / np.sqrt(6))) ** (-2)

    return Posed(_fisher(1.0), exact, conditions=[Dirichlet(exact)])


def _fisher(diffusion: float) -> NPDE:
    return physics.fisher_kpp(Parameter("D", diffusion), Parameter("r", 1.0), Parameter("K", 1.0))


def _porous_fisher(diffusion: float) -> NPDE:
    return physics.porous_fisher(Parameter("D", diffusion), Parameter("r", 1.0), Parameter("K", 1.0))


def _catalyst(dim: int) -> Posed:
    k = Parameter("k", 1.0)
    equation = physics.diffusion_reaction(Parameter("D", 0.02), lambda u, x, t: -k * u**3)
    return Posed(equation, initial=1.0, conditions=[Dirichlet(1.0)])


KNOWN = (
    Case("poisson", "-div(D grad u) = s, manufactured, Dirichlet", _poisson, end=None),
    Case("diffusion-reaction", "-div((1 + u^2) grad u) + u^3 = s, manufactured, no flux", _nonlinear, end=None),
    Case("heat", "u_t = D lap u, a decaying cosine, no flux", _heat),
    Case(
        "fisher-kpp",
        "u_t = D lap u + r u (1 - u/K), the travelling wave of speed 5/sqrt(6)",
        _fisher_wave,
        sides=(-5.0, 5.0),
    ),
    Case(
        "porous-fisher",
        "u_t = div(D u/K grad u) + r u (1 - u/K) + s, manufactured, no flux",
        lambda dim: made(_porous_fisher(0.1), _bump(dim, 0.5, 0.25)),
    ),
    Case(
        "allen-cahn",
        "u_t = eps^2 lap u + u - u^3 + s, manufactured, no flux",
        lambda dim: made(physics.allen_cahn(Parameter("eps", 0.2)), _bump(dim, 0.0, 0.5)),
    ),
)

SCENES = (
    Case(
        "poisson",
        "a membrane under constant load, fixed at its rim",
        lambda dim: Posed(
            physics.poisson(Parameter("D", 1.0), Parameter("s", 1.0)), initial=0.0, conditions=[Dirichlet(0.0)]
        ),
        end=None,
    ),
    Case(
        "diffusion-reaction",
        "a catalyst fed through its surface: -D lap u + k u^3 = 0, u = 1 at the rim",
        _catalyst,
        end=None,
    ),
    Case(
        "heat",
        "a hot spot cools in a cold box",
        lambda dim: Posed(physics.heat(Parameter("D", 0.05)), initial=_spot(dim), conditions=[Dirichlet(0.0)]),
        end=0.5,
        step=0.005,
        scheme="sdirk2",
    ),
    Case(
        "fisher-kpp",
        "a population spreads from a spot",
        lambda dim: Posed(_fisher(1e-3), initial=_spot(dim)),
        end=6.0,
        step=0.05,
    ),
    Case(
        "porous-fisher",
        "a population spreads from a spot with a sharp front",
        lambda dim: Posed(_porous_fisher(4e-3), initial=_spot(dim)),
        end=6.0,
        step=0.05,
    ),
    Case(
        "allen-cahn",
        "phases separate and coarsen",
        lambda dim: Posed(physics.allen_cahn(Parameter("eps", 0.02)), initial=lambda x: 0.5 * rough(dim)(x)),
        end=20.0,
        step=0.1,
    ),
)
