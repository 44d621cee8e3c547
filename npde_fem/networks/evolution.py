"""Networks as equations: solved on their own lattice, on finer ones, on meshes.

A layer is a step of Lie splitting (THEORY: *Discretising it generates networks*),

    u^{k+1} = Phi(W u^k + dt s),    W = E + dt L,    L u = div(D grad u - c u) + m u + N u,

so layers are the steps of a solve of

    u_t = div(D grad u - c u) + m u + N u + s,    with the flow Phi,

by ``Lie()``. Layers that share weights are one *phase*; strides and pooling change the lattice between phases. What was
trained on one lattice can thus be solved on any other discretisation of the same equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any, Literal

from npde_fem.boundary import BoundaryCondition
from npde_fem.discretize import Probe, Semidiscrete
from npde_fem.discretize.semidiscrete import Array
from npde_fem.equation import NPDE
from npde_fem.networks.coefficients import Coefficients
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.places import Ended, Place, place_of
from npde_fem.nonlocal_terms import Stencil
from npde_fem.options import inserted, option_given
from npde_fem.parallel import Refused
from npde_fem.parameter import Parameter
from npde_fem.solve import Lie, Scheme, Solution, solve, stable_step

import numpy as np
import ufl
from mpi4py import MPI
from ufl.core.expr import Expr

if TYPE_CHECKING:
    from npde_fem.networks.reactions import Reaction

__all__ = ["Evolution", "EvolutionResult", "Phase", "Pooling", "equation_of"]

_AXES = "xyz"
_ROUND_OFF = 1e-14
_TIGHT = {"npde_snes_rtol": "1e-13"}
"""With which an implicit step is the network's layer to round-off."""
_MARGIN = 1.02
"""By how much the power method may fall short of the spectral radius."""


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
        if (
            not isinstance(self.steps, int | np.integer)
            or self.steps < 1
            or (self.steps > 1 and self.channels != (m, m))
        ):
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


class Evolution:
    """The equation of a network: phases that follow each other in time, and a linear observation of the end.

    Phases that follow each other with the same equation (the same object) on the same lattice become one.

    Parameters
    ----------
    phases
        In order; each begins with the channels and on the lattice with which the one before ends.
    readout
        Weight ``(n, C_out * points)`` and bias ``(n,)`` (or None) of a linear observation of the final state, flattened
        as torch does: channels slowest, the last axis of space fastest.
    inputs
        Of a perceptron: neurons that its input has, the first points of the lattice. None: its input is a state.

    Attributes
    ----------
    phases
        The phases.
    readout, inputs
        As given; the read-out in float64.

    Raises
    ------
    ValueError
        If phases do not fit each other, or the read-out does not fit the final state.
    """

    def __init__(
        self, phases: Sequence[Phase], readout: tuple[Any, Any] | None = None, inputs: int | None = None
    ) -> None:
        if not phases:
            raise ValueError("Evolution: no phases given; at least one allowed")
        merged: list[Phase] = []
        for phase in phases:
            last = merged[-1] if merged else None
            if last is not None and _goes_on(last, phase):
                merged[-1] = replace(phase, steps=last.steps + phase.steps)
                continue
            if last is not None:
                _check_sequence(len(merged), last, phase)
            merged.append(phase)
        self.phases, self.inputs = tuple(merged), inputs
        self.readout = None if readout is None else self._checked_readout(*readout)

    def _checked_readout(self, weight: Any, bias: Any) -> tuple[Array, Array]:
        last = self.phases[-1]
        size = last.channels[1] * len(last.points(pooled=True)[0])
        w = np.array(weight, dtype=np.float64)
        if w.ndim != 2 or w.shape[1] != size:
            raise ValueError(f"readout: weight of shape {w.shape} given; (n, {size}) allowed (channels times points)")
        b = np.zeros(len(w)) if bias is None else np.array(bias, dtype=np.float64)
        if b.shape != (len(w),):
            raise ValueError(f"readout: bias of shape {b.shape} given; ({len(w)},) allowed")
        return w, b

    @property
    def lattice(self) -> Lattice:
        """The lattice on which it begins."""
        return self.phases[0].lattice

    @property
    def duration(self) -> float:
        """Time from the beginning to the end."""
        return sum(phase.steps * phase.dt for phase in self.phases)

    @property
    def equation(self) -> NPDE:
        """The equation, if there is but one phase.

        Raises
        ------
        ValueError
            If there are more.
        """
        if len(self.phases) > 1:
            names = ", ".join(
                f"{k}: {phase.equation.name!r} ({phase.channels[0]} to {phase.channels[1]} channels, {phase.steps} "
                f"step{'s' * (phase.steps > 1)} on {' x '.join(map(str, phase.lattice.shape))} points)"
                for k, phase in enumerate(self.phases)
            )
            raise ValueError(
                f"the network has {len(self.phases)} phases with an equation each; phases[k].equation: {names}"
            )
        return self.phases[0].equation

    def solve(
        self,
        u0: Any,
        on: Any = None,
        *,
        comm: MPI.Comm = MPI.COMM_WORLD,
        refine: int = 1,
        substeps: int | Literal["auto"] = 1,
        implicit: bool = False,
        checked: bool | None = None,
        bcs: Sequence[BoundaryCondition] | None = None,
        callback: Callable[[float, Any], None] | None = None,
        progress: bool = True,
    ) -> EvolutionResult:
        """Solve the equation (collective).

        On the network's own lattice (the default) the result is the network's output to round-off. Elsewhere it
        differs from that by the error of the network's lattice, of order h^2 for smooth states. A change of lattice
        between phases then has no effect but with ``"mean"``, which is one of order h^2 that is left out.

        Parameters
        ----------
        u0
            The input. An array or tensor of shape ``(C_in, *shape)`` at the lattice's points, the same on every rank;
            on finer lattices and meshes it is multilinear between the points, and beyond them as the lattice's boundary
            says. On a finer lattice also of that one's shape, and on lattices of the shape of the points that this rank
            owns. Of a perceptron instead also its own input ``(n_in,)`` or ``(1, n_in)``: other neurons are zero. Or a
            callable of x ``(d, n)`` that returns ``(C_in, n)``; a function on the mesh; or the result of another
            evolution on the same lattice or mesh, whose final state is gone on from.
        on
            None for finite differences on the lattice; a DOLFINx mesh of any domain for finite elements of degree 1
            with a lumped mass, or a function space, whose degree is taken.
        comm
            Communicator of the lattices; a mesh has its own.
        refine
            Solve on lattices of the same domain whose spacing is so many times smaller.
        substeps
            Steps of the transport that a step consists of; the flow is applied once. "auto": as many as are stable.
        implicit
            Transport by Crank-Nicolson, which is stable with one substep; not for equations with nonlocal terms.
        checked
            Whether to refuse what is ill-posed or unstable. By default so but for the network itself, as a trained one
            need not be stable.
        bcs
            Boundary conditions on a mesh. By default those of the lattice if the mesh fills its domain, else du/dn = 0.
        callback
            Is called with (t, u) at the start and after every step of each phase, as ``npde.solve``'s ``observe`` is.
        progress
            Whether to show a progress bar on terminals.

        Raises
        ------
        TypeError, ValueError
            If an argument is none of those allowed; if the substeps are unstable, diffusion is negative, or a phase
            cannot be solved there: one with max pooling but on its own lattice, one with a nonlocal term implicitly.
        """
        if substeps != "auto" and (isinstance(substeps, bool) or not isinstance(substeps, int) or substeps < 1):
            raise ValueError(f"substeps = {substeps!r} given; a positive integer or 'auto' allowed")
        if (substeps not in (1, "auto") or implicit) and any(phase.scheme is not None for phase in self.phases):
            raise ValueError(
                f"substeps = {substeps}, implicit = {implicit} given; the network's steps are those of a scheme of its "
                "own, without substeps: 1 (or 'auto') and False allowed"
            )
        if callback is not None and not callable(callback):
            raise TypeError(f"callback: a function of (t, u) allowed, {callback!r} given")
        place = place_of(on, self.lattice, comm, refine, bcs)
        self._check_place(place, implicit)
        itself = place.own and substeps == 1 and not implicit
        checked = not itself if checked is None else checked
        ended: list[Ended] = []
        t, state = 0.0, u0.ended[-1] if isinstance(u0, EvolutionResult) else u0
        for k, phase in enumerate(self.phases):
            problem = place.problem(phase)
            values = place.initial(state, phase, problem, self.inputs if k == 0 else None)
            try:
                if checked:
                    problem.check_diffusion(t, values)
                scheme = phase.scheme or Lie(
                    _substeps(problem, phase, values, substeps, implicit, checked), implicit=implicit, checked=False
                )
            except ValueError as error:
                raise type(error)(f"phase {k} ({phase.equation.name}): {error}") from error
            end = t + phase.steps * phase.dt
            with inserted(_TIGHT if itself and not option_given("snes_rtol") else {}):
                solution = solve(problem, values, (t, end), phase.dt, scheme, callback, rescue=None, progress=progress)
            state = Ended(place, phase, solution)
            ended.append(state)
            t = end
        return EvolutionResult(self, tuple(ended))

    def _check_place(self, place: Place, implicit: bool) -> None:
        for k, phase in enumerate(self.phases):
            label = f"phase {k} ({phase.equation.name})"
            if implicit and phase.equation.nonlocal_term is not None:
                raise ValueError(f"implicit: {label} has a nonlocal term; explicit steps allowed")
            if not place.own and phase.pooling is not None and phase.pooling.kind == "max":
                raise ValueError(
                    f"{label} ends with a maximum of {phase.pooling.factor} points along each axis, which is no "
                    "function of a state on other points: on the network's own lattice (on=None, refine=1) allowed"
                )


def _goes_on(last: Phase, phase: Phase) -> bool:
    """Whether a phase is but more steps of the one before."""
    same = last.equation is phase.equation and last.lattice == phase.lattice and last.dt == phase.dt
    same = same and last.scheme == phase.scheme
    return same and last.pooling is None and last.channels == phase.channels and last.channels[0] == last.channels[1]


def _check_sequence(k: int, last: Phase, phase: Phase) -> None:
    if last.channels[1] != phase.channels[0]:
        raise ValueError(
            f"Evolution: phase {k} takes {phase.channels[0]} channels; the one before leaves {last.channels[1]}"
        )
    before, after = last.axes(pooled=True), phase.axes(pooled=False)
    if [len(x) for x in before] != [len(x) for x in after]:
        raise ValueError(
            f"Evolution: phase {k} lives on {[len(x) for x in after]} points; the one before leaves "
            f"{[len(x) for x in before]}"
        )
    for a, (x, y) in enumerate(zip(before, after, strict=True)):
        if not np.allclose(x, y, rtol=0, atol=1e-9 * (abs(x[-1] - x[0]) or 1.0)):
            raise ValueError(
                f"Evolution: along axis {a} the points of phase {k} lie from {y[0]:g} to {y[-1]:g}; the phase before "
                f"leaves points from {x[0]:g} to {x[-1]:g}"
            )


def _substeps(
    problem: Semidiscrete, phase: Phase, values: Array, wanted: int | str, implicit: bool, checked: bool
) -> int:
    """Return the number of substeps, or raise Refused if those wanted are unstable (collective)."""
    if wanted != "auto" and (implicit or not checked):
        return int(wanted)
    if implicit:
        return 1
    limit = stable_step(problem, Lie(), 0.0, values)
    if wanted == "auto":
        return max(1, ceil(_MARGIN * phase.dt / limit))
    if int(wanted) * limit * 1.0001 < phase.dt:
        raise Refused(
            f"substeps = {wanted} given; steps of {phase.dt:g} are stable here from {ceil(phase.dt / limit)} substeps "
            "on (substeps='auto'), or with implicit=True"
        )
    return int(wanted)


@dataclass(frozen=True)
class EvolutionResult:
    """What :meth:`Evolution.solve` returns.

    Attributes
    ----------
    evolution
        What was solved.
    ended
        Its phases, each with its solution and where it was solved.
    """

    evolution: Evolution
    ended: tuple[Ended, ...]

    @property
    def solution(self) -> Solution:
        """The solution of the last phase, before its pooling."""
        return self.ended[-1].solution

    def array(self) -> Array:
        """Return the final state at the lattice's points, after all pooling (collective; all ranks gather all of it).

        Returns
        -------
        ndarray
            Shape ``(C_out, *shape)``, the same on every rank.

        Raises
        ------
        ValueError
            If points of the lattice lie outside of the mesh; see :meth:`at`.
        """
        last = self.ended[-1]
        return last.place.array(last, pool=True)

    @cached_property
    def states(self) -> list[Array]:
        """The state at the end of each phase, before pooling, as :meth:`array` (collective the first time)."""
        return [ended.place.array(ended, pool=False) for ended in self.ended]

    def at(self, points: Any) -> Array:
        """Return the final state, before pooling, at points ``(n, d)``, shape ``(C_out, n)`` (collective)."""
        last = self.ended[-1]
        return Probe(self.solution.problem, points).apply(self.solution.values)[:, : last.phase.channels[1]].T

    @cached_property
    def observed(self) -> Array:
        """The read-out of the final state, shape ``(n,)``, the same on every rank (collective the first time).

        Raises
        ------
        ValueError
            If the network has no read-out.
        """
        if self.evolution.readout is None:
            raise ValueError("the network has no readout; array() gives its final state")
        weight, bias = self.evolution.readout
        return weight @ self.array().reshape(-1) + bias
