"""Phases: layers as steps of an equation on a lattice, and what is done to the state after them.

A layer is a step of Lie splitting (THEORY: *Discretising it generates networks*),

    u^{k+1} = Phi(W u^k + dt s),    W = E + dt L,    L u = div(D grad u - c u) + m u + N u,

so layers are the steps of a solve of

    u_t = div(D grad u - c u) + m u + N u + s,    with the flow Phi,

by ``Lie()``. Layers that share weights are one *phase*; strides and pooling change the lattice between phases.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Literal

from npde_fem.discretize.semidiscrete import Array
from npde_fem.equation import NPDE
from npde_fem.networks.coefficients import Coefficients
from npde_fem.networks.lattice import Lattice
from npde_fem.nonlocal_terms import Stencil
from npde_fem.parameter import Parameter
from npde_fem.solve import Scheme

import numpy as np
import ufl
from ufl.core.expr import Expr

if TYPE_CHECKING:
    from npde_fem.networks.reactions import Reaction

__all__ = ["Phase", "Pooling", "equation_of"]

_AXES = "xyz"
_ROUND_OFF = 1e-14


def equation_of(coefficients: Coefficients, reaction: Reaction, lattice: Lattice, *, name: str = "network") -> NPDE:
    """Return the equation of which a layer is one step of length ``coefficients.dt`` by ``Lie()``.

    Its state has ``C = max(C_in, C_out)`` components. Channels that are new begin at zero; those that end stay as they
    are during the step, and the flow leaves them alone. The coefficients are parameters ``mass``, ``drift_x``,
    ``diffusion_xx``, ``diffusion_xy``, ..., ``source``: numbers for one component, else ``C x C`` matrices and a
    vector; those that vanish are left out. The rest of the kernel is a :class:`~npde_fem.nonlocal_terms.Stencil`.

    Parameters
    ----------
    coefficients
        Of the layer's kernel and bias.
    reaction
        Its flow over ``coefficients.dt`` is the layer's activation.
    lattice
        The layer's points, as far apart as the coefficients say.
    name
        Of the equation.

    Raises
    ------
    ValueError
        If lattice and coefficients differ in dimension or spacing, or the kernel is larger than the lattice.
    """
    _check_lattice(coefficients, lattice)
    n_in, n_out = coefficients.channels
    m, d, h, dt = max(n_in, n_out), coefficients.dim, coefficients.spacing, coefficients.dt
    least = _ROUND_OFF * np.abs(coefficients.kernel()).max(initial=0.0)

    def embedded(label: str, matrix: Array, unit: float) -> Parameter | None:
        """The C x C matrix of a coefficient; None if its part of the kernel, ``matrix * unit``, is round-off."""
        if np.abs(matrix).max(initial=0.0) * unit <= least:
            return None
        whole = np.zeros((m, m))
        whole[:n_out, :n_in] = matrix
        return Parameter(label, whole if m > 1 else whole[0, 0])

    mass = embedded("mass", coefficients.mass, dt)
    drift = [embedded(f"drift_{_AXES[a]}", coefficients.drift[..., a], dt / h[a]) for a in range(d)]
    diffusion: dict[tuple[int, int], Parameter | None] = {}
    for a in range(d):
        for b in range(a, d):
            label = f"diffusion_{_AXES[a]}{_AXES[b]}"
            entry = embedded(label, coefficients.diffusion[..., a, b], dt / (h[a] * h[b]))
            diffusion[a, b] = diffusion[b, a] = entry
    source = None
    if np.any(coefficients.source):
        values = np.zeros(m)
        values[:n_out] = coefficients.source
        source = Parameter("source", values if m > 1 else values[0])

    def flux(u: Expr) -> Expr:
        slope = ufl.grad(u)
        columns = []
        for a in range(d):
            terms = [_times(diffusion[a, b], slope[..., b]) for b in range(d)]
            columns.append(sum(terms) - _times(drift[a], u))
        return ufl.as_vector(columns) if m == 1 else ufl.transpose(ufl.as_tensor(columns))

    def sources(u: Expr) -> Expr:
        return _times(mass, u) + (ufl.zero(*u.ufl_shape) if source is None else source)

    def flow(u: Expr, x: Expr, t: Expr, step: Expr) -> Expr:
        if n_out == m:
            return reaction.flow(u, step)
        active = u[0] if n_out == 1 else ufl.as_vector([u[i] for i in range(n_out)])
        moved = reaction.flow(active, step)
        return ufl.as_vector([*([moved] if n_out == 1 else moved), *(u[i] for i in range(n_out, m))])

    nonlocal_term = None
    if coefficients.has_rest:
        weights = np.zeros((m, m, *coefficients.size))
        weights[:n_out, :n_in] = coefficients.rest
        nonlocal_term = Stencil(weights, h, lattice.boundary, lattice.lower, lattice.last)
    return NPDE(
        flux=flux if any(p is not None for p in (*drift, *diffusion.values())) else None,
        source=sources if mass is not None or source is not None else None,
        components=m,
        flow=flow,
        nonlocal_term=nonlocal_term,
        name=name,
    )


def _times(matrix: Parameter | None, vector: Expr) -> Expr:
    if matrix is None:
        return ufl.zero(*vector.ufl_shape)
    return matrix * vector if matrix.ufl_shape == () else ufl.dot(matrix, vector)


def _check_lattice(coefficients: Coefficients, lattice: Lattice) -> None:
    if coefficients.dim != lattice.dim:
        raise ValueError(
            f"lattice of shape {lattice.shape} given; the coefficients have {coefficients.dim} space dimensions"
        )
    if not np.allclose(coefficients.spacing, lattice.spacing, rtol=1e-12):
        raise ValueError(
            f"lattice of spacing {lattice.spacing} given; the coefficients have spacing {coefficients.spacing}"
        )
    if any(n < k for n, k in zip(lattice.shape, coefficients.size, strict=True)):
        raise ValueError(
            f"lattice of shape {lattice.shape} given; it is smaller than the kernel of size {coefficients.size}"
        )


@dataclass(frozen=True)
class Pooling:
    """How a lattice becomes coarser after a phase.

    Parameters
    ----------
    kind
        ``"stride"``: each ``factor``-th point is kept; ``"mean"``, ``"max"``: of blocks of so many points along each
        axis.
    factor
        At least 2.

    Raises
    ------
    ValueError
        If one is not allowed.
    """

    kind: Literal["stride", "mean", "max"]
    factor: int = 2

    def __post_init__(self) -> None:
        if self.kind not in ("stride", "mean", "max"):
            raise ValueError(f"Pooling: unknown kind {self.kind!r}; allowed: stride, mean, max")
        if not isinstance(self.factor, int | np.integer) or self.factor < 2:
            raise ValueError(f"Pooling: factor {self.factor!r} given; an integer from 2 on allowed")


@dataclass(frozen=True)
class Phase:
    """Some steps of one equation on one lattice.

    Parameters
    ----------
    equation
        The equation, with a flow.
    lattice
        The points of the layers.
    dt
        Length of a step.
    steps
        Their number; 1 if channels begin or end.
    channels
        Channels that go in and out, components 0, 1, ... of the state: as many as it has by default.
    pooling
        What follows the last step.
    scheme
        The scheme whose steps these are; ``Lie()``, as the evolution is asked to take it, by default.

    Raises
    ------
    ValueError
        If the channels do not fit the equation, or a number is not positive.
    """

    equation: NPDE
    lattice: Lattice
    dt: float
    steps: int = 1
    channels: tuple[int, int] = (0, 0)
    pooling: Pooling | None = None
    scheme: Scheme | None = None

    def __post_init__(self) -> None:
        m = self.equation.components
        if self.channels == (0, 0):
            object.__setattr__(self, "channels", (m, m))
        if max(self.channels) != m or min(self.channels) < 1:
            raise ValueError(f"Phase: channels {self.channels} given; the equation has {m} components")
        whole = isinstance(self.steps, int | np.integer) and self.steps >= 1
        if not whole or (self.steps > 1 and self.channels != (m, m)):
            allowed = "an integer from 1 on" if self.channels == (m, m) else "1, as channels begin or end,"
            raise ValueError(f"Phase: steps = {self.steps!r} given; {allowed} allowed")
        if not isinstance(self.dt, int | float | np.number) or not (isfinite(self.dt) and self.dt > 0):
            raise ValueError(f"Phase: dt = {self.dt!r} given; a positive finite number allowed")

    def axes(self, *, pooled: bool) -> list[Array]:
        """Coordinates of the lattice's points along each axis, of the points after pooling if ``pooled``."""
        lattice = self.lattice
        ranges = zip(lattice.lower, lattice.spacing, lattice.shape, strict=True)
        axes: list[Array] = [x + h * np.arange(n, dtype=np.float64) for x, h, n in ranges]
        if not pooled or self.pooling is None:
            return axes
        k = self.pooling.factor
        if self.pooling.kind == "stride":
            return [x[::k] for x in axes]
        return [x[: len(x) // k * k].reshape(-1, k).mean(axis=1) for x in axes]

    def points(self, *, pooled: bool) -> tuple[Array, tuple[int, ...]]:
        """The same points as one array ``(n, d)``, last axis fastest, and how many there are along each axis."""
        axes = self.axes(pooled=pooled)
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))
        return points, tuple(len(x) for x in axes)
