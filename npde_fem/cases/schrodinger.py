"""Schroedinger's equation, linear and nonlinear, with hbar = m = 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npde_fem import physics
from npde_fem.boundary import Dirichlet
from npde_fem.cases.case import Case, Posed, product, radius_squared
from npde_fem.cases.conserved import Measure, norm, schrodinger_energy
from npde_fem.parameter import Parameter

import numpy as np
import ufl

__all__ = ["KNOWN", "SCENES"]


def _conserved(g: Any = 0.0) -> dict[str, Measure]:
    return {"norm": norm, "energy": schrodinger_energy(g)}


def _free_packet(dim: int, width: float = 1.0, momentum: float = 2.0) -> Posed:
    """A Gaussian packet that moves along x and spreads (Schiff 1968, Quantum Mechanics, section 12)."""

    def exact(x: Any, t: Any) -> Any:
        spread = 1 + 1j * t / (2 * width**2)

        def factor(s: Any) -> Any:
            return ufl.exp(-(s**2) / (4 * width**2 * spread)) / ufl.sqrt(spread)

        along = x[0] - momentum * (t - 0.5)
        carrier = ufl.exp(1j * (momentum * x[0] - momentum**2 / 2 * t))
        return carrier * product(factor, [along, *(x[a] for a in range(1, dim))], dim)

    return Posed(physics.schrodinger(), exact, conditions=[Dirichlet(exact)], conserved=_conserved())


def _bowl(dim: int) -> Callable:
    return lambda x: radius_squared(x, dim) / 2


def _eigenstate(dim: int) -> Posed:
    """The harmonic oscillator's first excited state along x, ground state across: energy 1 + d/2."""

    def exact(x: Any, t: Any) -> Any:
        turning = ufl.exp(-1j * (1 + dim / 2) * t)
        return np.sqrt(2) * np.pi ** (-dim / 4) * x[0] * ufl.exp(-radius_squared(x, dim) / 2) * turning

    return Posed(physics.schrodinger(_bowl(dim)), exact, conditions=[Dirichlet(0.0)], conserved=_conserved())


def _swinging(dim: int, lib: Any) -> Callable:
    """A coherent state, the oscillator's ground state displaced by 2 along x (Schroedinger 1926)."""

    def exact(x: Any, t: Any) -> Any:
        place, momentum = 2 * lib.cos(t), -2 * lib.sin(t)
        across = sum(x[a] ** 2 for a in range(1, dim)) if dim > 1 else 0.0
        phase = momentum * (x[0] - place / 2) - dim / 2 * t
        return np.pi ** (-dim / 4) * lib.exp(-((x[0] - place) ** 2 + across) / 2 + 1j * phase)

    return exact


def _coherent(dim: int) -> Posed:
    exact = _swinging(dim, ufl)
    return Posed(physics.schrodinger(_bowl(dim)), exact, conditions=[Dirichlet(exact)], conserved=_conserved())


def _swing(dim: int) -> Posed:
    w = Parameter("omega", 1.0)
    start = _swinging(dim, np)
    return Posed(
        physics.schrodinger(lambda x: w**2 * _bowl(dim)(x)),
        initial=lambda x: start(x, 0.0),
        conditions=[Dirichlet(0.0)],
        conserved=_conserved(),
    )


def _soliton(dim: int) -> Posed:
    """The bright soliton of speed 1 (Zakharov and Shabat 1972, Sov. Phys. JETP 34)."""

    def exact(x: Any, t: Any) -> Any:
        return ufl.exp(1j * x[0]) / ufl.cosh(x[0] - t + 0.5)

    return Posed(physics.schrodinger(g=-1.0), exact, conditions=[Dirichlet(exact)], conserved=_conserved(-1.0))


def _two_solitons(dim: int) -> Posed:
    def start(x: Any) -> Any:
        return np.exp(1j * x[0]) / np.cosh(x[0] + 5) + np.exp(-1j * x[0]) / np.cosh(x[0] - 5)

    g = Parameter("g", -1.0)
    return Posed(physics.schrodinger(g=g), initial=start, conditions=[Dirichlet(0.0)], conserved=_conserved(g))


def _tunnelling(dim: int) -> Posed:
    """A packet of energy 4.5 meets a smooth barrier."""
    height, momentum = Parameter("V", 5.0), 3.0

    def barrier(x: Any) -> Any:
        return height / ufl.cosh(4 * x[0]) ** 2

    def start(x: Any) -> Any:
        across = sum(x[a] ** 2 for a in range(1, dim)) if dim > 1 else 0.0
        return np.exp(-((x[0] + 4) ** 2 + across) / 3 + 1j * momentum * x[0])

    return Posed(physics.schrodinger(barrier), initial=start, conditions=[Dirichlet(0.0)], conserved=_conserved())


KNOWN = (
    Case(
        "schrodinger",
        "i psi_t = -lap psi / 2, a Gaussian packet that moves and spreads",
        _free_packet,
        sides=(-8.0, 8.0),
        step=1 / 16,
    ),
    Case(
        "schrodinger-oscillator",
        "an eigenstate of the harmonic oscillator, energy 1 + d/2",
        _eigenstate,
        sides=(-6.0, 6.0),
        step=1 / 16,
    ),
    Case(
        "schrodinger-coherent",
        "a coherent state swings in the harmonic oscillator",
        _coherent,
        sides=(-7.0, 7.0),
        step=1 / 16,
    ),
    Case(
        "schrodinger-soliton",
        "the bright soliton of i psi_t = -psi_xx / 2 - |psi|^2 psi",
        _soliton,
        dims=(1,),
        sides=(-12.0, 12.0),
        step=1 / 16,
        scheme="strang",
    ),
)

SCENES = (
    Case(
        "schrodinger",
        "a packet tunnels through a barrier",
        _tunnelling,
        sides=(-10.0, 10.0),
        end=3.0,
        step=0.02,
        scheme="strang",
    ),
    Case(
        "schrodinger-oscillator",
        "a coherent state swings in a bowl",
        _swing,
        sides=(-6.0, 6.0),
        end=6.2,
        step=0.02,
        scheme="strang",
    ),
    Case(
        "schrodinger-soliton",
        "two bright solitons pass through each other",
        _two_solitons,
        dims=(1,),
        sides=(-12.0, 12.0),
        end=10.0,
        step=0.01,
        scheme="strang",
    ),
)
