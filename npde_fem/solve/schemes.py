"""Time schemes as data.

Every scheme for equations of first order in time is a sequence of stages ``U_1 .. U_s`` with ``U_0 = u(t_n)`` and
``U_s = u(t_n + dt)``, each

    M U_i = M sum_{j<i} a_ij U_j + dt (b_i R_E(U_{i-1}) + d_i R_I(U_{i-1}) + g_i R_I(U_i)),

with R_E evaluated explicitly and R_I implicitly: only the rates of the stage before and of the stage itself enter, so
no rate has to be kept. Runge-Kutta methods whose stages use one new rate each have this form (the Shu-Osher form;
Shu and Osher 1988, J. Comput. Phys. 77, eq. 2.10, and its implicit kin). An explicit scheme has R_I = 0, an implicit
one R_E = 0; an IMEX scheme puts the source into R_E and the flux, boundary terms included, into R_I.

A splitting scheme has stages of another kind besides, ``U_i = Phi(U_{i-1})`` at each node, with Phi the flow of the
equation (``NPDE(flow=...)``): for :func:`Strang` and :func:`Relaxation` the exact solution of its source alone over a
part of the step, for :func:`Lie` that of a reaction besides the source, or any map of the values at a node.

Equations with inertia are integrated by :class:`Newmark`'s family.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, sqrt

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
    "Leapfrog",
    "Lie",
    "Newmark",
    "Relaxation",
    "Scheme",
    "Stage",
    "Strang",
    "scheme_named",
]


@dataclass(frozen=True)
class Stage:
    """One stage: its time ``at`` in steps, a_ij (combine), b_i (explicit), d_i (lagged), g_i (implicit).

    With ``flow`` it is the flow over so many steps, begun at ``since``, of the stage before instead. Constrained dofs
    have the data at its time, or, with ``data``, the mean of the data at these times in steps.
    """

    at: float
    combine: tuple[float, ...] = ()
    explicit: float = 0.0
    lagged: float = 0.0
    implicit: float = 0.0
    flow: float = 0.0
    since: float = 0.0
    data: tuple[float, ...] = ()

    def data_times(self, t: float, dt: float) -> list[float]:
        """Return when, in a step from ``t``, the data is taken whose mean the constrained dofs have."""
        return [t + at * dt for at in self.data or (self.at,)]

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
    checked
        Whether a solve refuses steps above the stability limit, and diffusion that is negative.
    """

    name: str
    order: int
    stages: tuple[Stage, ...]
    error: tuple[float, ...] = ()
    error_order: int = 2
    stable_to: float = float("inf")
    explicit_part: Part = "all"
    implicit_part: Part = "all"
    checked: bool = True

    @property
    def kept(self) -> int:
        """States a step that are remembered for a gradient."""
        return len(self.stages)

    @property
    def parts(self) -> int:
        """Arrays of the state's size that a step starts from: the state alone."""
        return 1

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
    """Crank-Nicolson, the trapezoidal rule: implicit, order 2, A-stable.

    For an equation with inertia it is ``Newmark(1/4, 1/2)``, which is the trapezoidal rule for state and velocity.
    """
    return Scheme("crank-nicolson", 2, (Stage(1.0, (1.0,), lagged=0.5, implicit=0.5),))


def ImplicitMidpoint() -> Scheme:
    """The implicit midpoint rule: implicit, order 2, A-stable, half a step of backward Euler continued.

    It conserves every quadratic invariant, so the norm of nonlinear Schroedinger equations too (Hairer, Lubich and
    Wanner 2006, Geometric Numerical Integration, theorem IV.2.1), as Crank-Nicolson does of linear ones.

    Half-way, Dirichlet data is the mean of that at both ends. So the continuation leads to the data at the end, as a
    mass matrix needs that couples others to it; data of the time half-way would make the scheme one of order 1.
    """
    half = Stage(0.5, (1.0,), implicit=0.5, data=(0.0, 1.0))
    return Scheme("implicit-midpoint", 2, (half, Stage(1.0, (-1.0, 2.0))))


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

    The flow moves the free dofs only. Where it would move Dirichlet data too (zero is left alone by most), errors near
    the boundary grow: in time to those of an order below 2, on meshes in space to those of degree 1.
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


def Lie(substeps: int = 1, implicit: bool = False, checked: bool = True) -> Scheme:
    """Steps of everything but the flow, then the equation's flow once over the whole step: order 1.

    The splitting of Lie and Trotter (Hairer, Lubich and Wanner 2006, Geometric Numerical Integration, eq. II.5.5). R
    counts with flux and source, and the flow besides, so that the equation solved is ``B u_t = R(u, t) + f(u)`` with f
    the rate of the flow. A residual network's layer is a step: a convolution, then an activation.

    Parameters
    ----------
    substeps
        Steps of ``dt / substeps`` each, of forward Euler or of Crank-Nicolson.
    implicit
        Whether these are Crank-Nicolson's.
    checked
        False to leave it to the user whether steps are stable and diffusion is positive: a map that was learned need
        not be a discretisation of a well-posed problem.

    Raises
    ------
    TypeError, ValueError
        If ``substeps`` is no integer from 1 on.
    """
    if isinstance(substeps, bool) or not isinstance(substeps, int):
        raise TypeError(f"Lie: substeps must be an integer, not {substeps!r}")
    if substeps < 1:
        raise ValueError(f"Lie: substeps = {substeps} given; 1 or more allowed")
    part = 1 / substeps
    explicit, half = (0.0, 0.5 * part) if implicit else (part, 0.0)
    stages = [Stage((k + 1) / substeps, (*[0.0] * k, 1.0), explicit, half, half) for k in range(substeps)]
    stable_to = float("inf") if implicit else 2.0 * substeps
    flow = Stage(1.0, flow=1.0, since=0.0)
    return Scheme("lie", 1, (*stages, flow), stable_to=stable_to, checked=bool(checked))


@dataclass(frozen=True)
class Newmark:
    """Newmark's family of schemes for equations with inertia (Newmark 1959, J. Eng. Mech. Div. ASCE 85, eq. 1 to 3).

    State u, velocity v and acceleration a fulfil ``A a + B v = R(u, t)`` at the end of every step, with

        u1 = u0 + dt v0 + dt^2 ((1/2 - beta) a0 + beta a1),      v1 = v0 + dt ((1 - gamma) a0 + gamma a1).

    Parameters
    ----------
    beta
        From 0 to 1/2; 0 needs no solve but with the mass matrices. 1/4 by default.
    gamma
        From 1/2 to 1; 1/2, the default, is of order 2 and does not damp, all others are of order 1 and do.

    Raises
    ------
    TypeError, ValueError
        If one is no number, or out of its range.
    """

    beta: float = 0.25
    gamma: float = 0.5

    def __post_init__(self) -> None:
        for name, low, high in (("beta", 0.0, 0.5), ("gamma", 0.5, 1.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"Newmark: {name} must be a number, not {value!r}")
            if not (isfinite(value) and low <= value <= high):
                raise ValueError(f"Newmark: {name} = {value:g} given; {low:g} to {high:g} allowed")

    @property
    def name(self) -> str:
        """Name in messages and on the command line."""
        known = {(0.25, 0.5): "newmark", (0.0, 0.5): "leapfrog"}
        return known.get((self.beta, self.gamma), f"newmark({self.beta:g}, {self.gamma:g})")

    @property
    def order(self) -> int:
        """Order of accuracy in time."""
        return 2 if self.gamma == 0.5 else 1

    @property
    def is_explicit(self) -> bool:
        """Whether a step needs no solve but with the mass matrices."""
        return self.beta == 0

    @property
    def stable_to(self) -> float:
        """Largest ``dt * frequency`` that is stable (Hughes 1987, The Finite Element Method, eq. 9.1.18)."""
        excess = 0.5 * self.gamma - self.beta
        return float("inf") if excess <= 0 else 1 / sqrt(excess)

    @property
    def kept(self) -> int:
        """States a step that are remembered for a gradient."""
        return 1

    @property
    def parts(self) -> int:
        """Arrays of the state's size that a step starts from: state, velocity and acceleration."""
        return 3

    @property
    def error(self) -> tuple[float, ...]:
        """Empty: there is no estimate of the error."""
        return ()

    @property
    def error_order(self) -> int:
        """As of :class:`Scheme`; without an estimate nothing is made of it."""
        return 2

    @property
    def explicit_part(self) -> Part:
        """As of :class:`Scheme`: nothing is split."""
        return "all"

    @property
    def implicit_part(self) -> Part:
        """As of :class:`Scheme`: nothing is split."""
        return "all"

    @property
    def checked(self) -> bool:
        """As of :class:`Scheme`: always."""
        return True


def Leapfrog() -> Newmark:
    """Leapfrog, the method of Stoermer and Verlet: explicit, order 2, for equations with inertia.

    ``Newmark(0, 1/2)``: stable up to 2 / (largest frequency). Each step evaluates the rate once and solves once with
    ``A + dt/2 B``, which is diagonal on grids and, with ``mass="lumped"``, for finite elements.
    """
    return Newmark(0.0, 0.5)


STATIONARY = Scheme("stationary", 0, (Stage(0.0, (0.0,), implicit=1.0),))
"""A stationary solve as a scheme: one stage, with M = 0 and dt = 1."""

_MAKERS: tuple[Callable[[], Scheme | Newmark], ...] = (
    ForwardEuler,
    RK4,
    BackwardEuler,
    CrankNicolson,
    ImplicitMidpoint,
    SDIRK2,
    IMEX,
    Strang,
    Lie,
    Relaxation,
    Newmark,
    Leapfrog,
)

SCHEMES = {made.name: make for make in _MAKERS for made in (make(),)}
"""Makers of the schemes by name."""


def scheme_for(scheme: Scheme | Newmark | None, inertia: bool) -> Scheme | Newmark:
    """Return the scheme that integrates an equation with or without inertia, given what was asked for.

    Raises
    ------
    TypeError, ValueError
        If it is no scheme, or none for such equations.
    """
    scheme = CrankNicolson() if scheme is None else scheme
    if not isinstance(scheme, Scheme | Newmark):
        raise TypeError(f"scheme must be a Scheme such as CrankNicolson(), not {scheme!r}")
    if inertia and scheme == CrankNicolson():
        return Newmark()
    if inertia and not isinstance(scheme, Newmark):
        raise ValueError(
            f"scheme {scheme.name} is for equations of first order in time; this one has inertia: Leapfrog(), "
            "Newmark() and CrankNicolson() allowed"
        )
    if not inertia and isinstance(scheme, Newmark):
        others = ", ".join(name for name, make in SCHEMES.items() if isinstance(make(), Scheme))
        raise ValueError(f"scheme {scheme.name} is for equations with inertia; this one has none: {others} allowed")
    return scheme


def scheme_named(name: str) -> Scheme | Newmark:
    """Return the scheme called ``name``; KeyError names those there are."""
    if name not in SCHEMES:
        raise KeyError(f"unknown scheme {name!r}; allowed: {', '.join(SCHEMES)}")
    return SCHEMES[name]()
