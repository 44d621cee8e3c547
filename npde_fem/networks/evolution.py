"""Networks as equations: solved on their own lattice, on finer ones, on meshes.

The layers are phases (:mod:`npde_fem.networks.phases`) that follow each other in time. What was trained on one lattice
can thus be solved on any other discretisation of the same equations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any, Literal

from npde_fem.boundary import BoundaryCondition
from npde_fem.discretize import Probe, Semidiscrete
from npde_fem.discretize.semidiscrete import Array
from npde_fem.equation import NPDE
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.phases import Phase
from npde_fem.networks.places import Ended, Place, place_of
from npde_fem.options import inserted, option_given
from npde_fem.parallel import Refused
from npde_fem.solve import Lie, Solution, solve, stable_step

import numpy as np
from mpi4py import MPI

__all__ = ["Evolution", "EvolutionResult"]

_TIGHT = {"npde_snes_rtol": "1e-13"}
"""With which an implicit step is the network's layer to round-off."""
_MARGIN = 1.02
"""By how much the power method may fall short of the spectral radius."""


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
