"""Time schemes as data.

Every scheme here is a sequence of stages ``U_1 .. U_s`` with ``U_0 = u(t_n)`` and ``U_s = u(t_n + dt)``, each

    M U_i = M sum_{j<i} a_ij U_j + dt (b_i R_E(U_{i-1}) + d_i R_I(U_{i-1}) + g_i R_I(U_i)),

with R_E evaluated explicitly and R_I implicitly: only the rates of the stage before and of the stage itself enter, so
no rate has to be kept. Runge-Kutta methods whose stages use one new rate each have this form (the Shu-Osher form;
Shu and Osher 1988, J. Comput. Phys. 77, eq. 2.10, and its implicit kin). An explicit scheme has R_I = 0, an implicit
one R_E = 0; an IMEX scheme puts the source into R_E and the flux, boundary terms included, into R_I.

A splitting scheme has stages of another kind besides, ``U_i = Phi(U_{i-1})`` at each node, with Phi the flow of the
equation (``NPDE(flow=...)``): the exact solution of its source alone over a part of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from npde_fem.discretize.semidiscrete import Part

__all__ = [
    "IMEX",
    "RK4",
    "SDIRK2",
    "SCHEMES",
    "STATIONARY",
    "BackwardEuler",
    "CrankNicolson",
    "ForwardEuler",
    "ImplicitMidpoint",
    "Relaxation",
    "Scheme",
    "Stage",
    "Strang",
    "scheme_named",
]


@dataclass(frozen=True)
class Stage:
    """One stage: its time ``at`` in steps, a_ij (combine), b_i (explicit), d_i (lagged), g_i (implicit).

    With ``flow`` it is the flow over so many steps, begun at ``since``, of the stage before instead.
    """

    at: float
    combine: tuple[float, ...] = ()
    explicit: float = 0.0
    lagged: float = 0.0
    implicit: float = 0.0
    flow: float = 0.0
    since: float = 0.0

    @property
    def is_combination(self) -> bool:
        """Whether no rate enters: ``U_i = sum_j a_ij U_j``."""
        return not (self.explicit or self.lagged or self.implicit or self.flow)

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
    explicit_part, implicit_part
        The parts of R that are R_E, and R_I.
    """

    name: str
    order: int
    stages: tuple[Stage, ...]
    error: tuple[float, ...] = ()
    error_order: int = 2
    stable_to: float = float("inf")
    explicit_part: Part = "all"
    implicit_part: Part = "all"

    @property
    def is_explicit(self) -> bool:
        """Whether no stage needs a solve."""
        return all(stage.implicit == 0 for stage in self.stages)

    @property
    def needs_flow(self) -> bool:
        """Whether the equation must have a flow."""
        return any(stage.flow for stage in self.stages)


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


def ImplicitMidpoint() -> Scheme:
    """The implicit midpoint rule: implicit, order 2, A-stable, half a step of backward Euler continued.

    It conserves every quadratic invariant, so the norm of nonlinear Schroedinger equations too (Hairer, Lubich and
    Wanner 2006, Geometric Numerical Integration, theorem IV.2.1), as Crank-Nicolson does of linear ones.
    """
    return Scheme("implicit-midpoint", 2, (Stage(0.5, (1.0,), implicit=0.5), Stage(1.0, (-1.0, 2.0))))


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
        explicit_part="source",
        implicit_part="flux",
    )


def Strang() -> Scheme:
    """Half a step of the source's exact flow, Crank-Nicolson of the flux, half a step of the flow: order 2.

    Strang 1968, SIAM J. Numer. Anal. 5, eq. 4.3. The equation needs a flow (``NPDE(flow=...)``). For Schroedinger's
    equation each part conserves the norm, that of the nodal values in the flow, so FD conserves it to round-off. The
    matrix of the flux is constant in time where the flux is linear, however nonlinear the source.
    """
    return Scheme(
        "strang",
        2,
        (
            Stage(0.0, flow=0.5, since=0.0),
            Stage(1.0, (0.0, 1.0), lagged=0.5, implicit=0.5),
            Stage(1.0, flow=0.5, since=0.5),
        ),
        implicit_part="flux",
    )


def Relaxation() -> Scheme:
    """The equation's flow once, then Crank-Nicolson: for ``physics.relaxed_schrodinger``, order 2.

    The relaxation scheme of Besse 2004 (SIAM J. Numer. Anal. 42, eq. 2.2): conservative, and each step linear in psi.
    """
    return Scheme("relaxation", 2, (Stage(0.0, flow=1.0, since=0.0), Stage(1.0, (0.0, 1.0), lagged=0.5, implicit=0.5)))


STATIONARY = Scheme("stationary", 0, (Stage(0.0, (0.0,), implicit=1.0),))
"""A stationary solve as a scheme: one stage, with M = 0 and dt = 1."""

_MAKERS = (ForwardEuler, RK4, BackwardEuler, CrankNicolson, ImplicitMidpoint, SDIRK2, IMEX, Strang, Relaxation)
SCHEMES = {s.name: make for make in _MAKERS for s in (make(),)}
"""Makers of the schemes by name."""


def scheme_named(name: str) -> Scheme:
    """Return the scheme called ``name``; KeyError names those there are."""
    if name not in SCHEMES:
        raise KeyError(f"unknown scheme {name!r}; allowed: {', '.join(SCHEMES)}")
    return SCHEMES[name]()
