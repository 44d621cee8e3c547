"""Time schemes as data.

Every scheme here is a sequence of stages ``U_1 .. U_s`` with ``U_0 = u(t_n)`` and ``U_s = u(t_n + dt)``, each

    M U_i = M sum_{j<i} a_ij U_j + dt (b_i R_E(U_{i-1}) + d_i R_I(U_{i-1}) + g_i R_I(U_i)),

with R_E evaluated explicitly and R_I implicitly: only the rates of the stage before and of the stage itself enter, so
no rate has to be kept. Runge-Kutta methods whose stages use one new rate each have this form (the Shu-Osher form;
Shu and Osher 1988, J. Comput. Phys. 77, eq. 2.10, and its implicit kin). An explicit scheme has R_I = 0, an implicit
one R_E = 0; an IMEX scheme puts the source into R_E and the flux, boundary terms included, into R_I.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

__all__ = [
    "IMEX",
    "RK4",
    "SDIRK2",
    "SCHEMES",
    "STATIONARY",
    "BackwardEuler",
    "CrankNicolson",
    "ForwardEuler",
    "Scheme",
    "Stage",
    "scheme_named",
]


@dataclass(frozen=True)
class Stage:
    """One stage: its time ``at`` in steps, a_ij (combine), b_i (explicit), d_i (lagged), g_i (implicit)."""

    at: float
    combine: tuple[float, ...]
    explicit: float = 0.0
    lagged: float = 0.0
    implicit: float = 0.0

    @property
    def increment(self) -> tuple[float, ...]:
        """Weights of ``U_0 .. U_i`` in ``U_i - sum_j a_ij U_j``."""
        return (*(-a for a in self.combine), 1.0)


@dataclass(frozen=True)
class Scheme:
    """A time scheme.

    Attributes
    ----------
    name
        Name on the command line.
    order
        Order of accuracy in time.
    stages
        The stages; the last one is the new state.
    error
        Weights of ``U_0 .. U_s`` in the estimate of the local error, for adaptive steps; empty if there is none.
    error_order
        Order in dt of that estimate.
    stable_to
        Explicit schemes: largest ``dt * |lambda|`` on the negative real axis that is stable.
    """

    name: str
    order: int
    stages: tuple[Stage, ...]
    error: tuple[float, ...] = ()
    error_order: int = 2
    stable_to: float = float("inf")

    @property
    def is_explicit(self) -> bool:
        """Whether no stage needs a solve."""
        return all(stage.implicit == 0 for stage in self.stages)

    @property
    def is_split(self) -> bool:
        """Whether source and flux are treated differently (IMEX)."""
        return not self.is_explicit and any(stage.explicit for stage in self.stages)


def ForwardEuler() -> Scheme:
    """Forward Euler: explicit, order 1."""
    return Scheme("forward-euler", 1, (Stage(1.0, (1.0,), explicit=1.0),), stable_to=2.0)


def RK4() -> Scheme:
    """The classical Runge-Kutta method: explicit, order 4 (for time-independent Dirichlet data; lower otherwise)."""
    return Scheme(
        "rk4",
        4,
        (
            Stage(0.5, (1.0,), explicit=0.5),
            Stage(0.5, (1.0, 0.0), explicit=0.5),
            Stage(1.0, (1.0, 0.0, 0.0), explicit=1.0),
            Stage(1.0, (-1 / 3, 1 / 3, 2 / 3, 1 / 3), explicit=1 / 6),
        ),
        stable_to=2.785,
    )


def BackwardEuler() -> Scheme:
    """Backward Euler: implicit, order 1, L-stable."""
    return Scheme("backward-euler", 1, (Stage(1.0, (1.0,), implicit=1.0),))


def CrankNicolson() -> Scheme:
    """Crank-Nicolson, the trapezoidal rule: implicit, order 2, A-stable."""
    return Scheme("crank-nicolson", 2, (Stage(1.0, (1.0,), lagged=0.5, implicit=0.5),))


def SDIRK2() -> Scheme:
    """Singly diagonally implicit Runge-Kutta method of order 2, L-stable, with an error estimate.

    g = 1 - 1/sqrt(2) (Alexander 1977, SIAM J. Numer. Anal. 14, theorem 5). The estimate is the distance to the
    first-order solution u + dt R(U_1).
    """
    g = 1 - 1 / sqrt(2)
    ratio = (1 - g) / g
    return Scheme(
        "sdirk2",
        2,
        (Stage(g, (1.0,), implicit=g), Stage(1.0, (1 - ratio, ratio), implicit=g)),
        error=(1 / g - 1, -1 / g, 1.0),
    )


def IMEX() -> Scheme:
    """Implicit flux, explicit source: order 2, the implicit part L-stable.

    The scheme (2,2,2) of Ascher, Ruuth and Spiteri 1997, Appl. Numer. Math. 25, section 2.6, with
    g = 1 - 1/sqrt(2) and delta = 1 - 1/(2 g).
    """
    g = 1 - 1 / sqrt(2)
    delta = 1 - 1 / (2 * g)
    return Scheme(
        "imex",
        2,
        (
            Stage(g, (1.0,), explicit=g, implicit=g),
            Stage(1.0, (1 - delta / g, delta / g), explicit=1 - delta, lagged=1 - g - delta, implicit=g),
        ),
    )


STATIONARY = Scheme("stationary", 0, (Stage(0.0, (0.0,), implicit=1.0),))
"""A stationary solve as a scheme: one stage, with M = 0 and dt = 1."""

SCHEMES = {s.name: make for make in (ForwardEuler, RK4, BackwardEuler, CrankNicolson, SDIRK2, IMEX) for s in (make(),)}
"""Makers of the schemes by name."""


def scheme_named(name: str) -> Scheme:
    """Return the scheme called ``name``; KeyError names those there are."""
    if name not in SCHEMES:
        raise KeyError(f"unknown scheme {name!r}; allowed: {', '.join(SCHEMES)}")
    return SCHEMES[name]()
