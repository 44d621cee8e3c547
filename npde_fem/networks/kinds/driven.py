"""Recurrent networks as equations that are driven: the input of each step is a source, the output is seen at probes."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from npde_fem.boundary import BoundaryCondition
from npde_fem.discretize import Probe, Semidiscrete
from npde_fem.discretize.semidiscrete import Array
from npde_fem.equation import NPDE
from npde_fem.networks.kinds.interpolation import interpolation
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.phases import Phase
from npde_fem.networks.places import place_of
from npde_fem.nonlocal_terms import Integral
from npde_fem.parameter import Parameter, as_numbers
from npde_fem.physics import wave
from npde_fem.solve import Leapfrog, Lie, Solution, solve
from npde_fem.solve.integrate import moving

import dolfinx.mesh as dmesh
import numpy as np
import torch
import ufl
from dolfinx import fem
from mpi4py import MPI

if TYPE_CHECKING:
    from npde_fem.networks.kinds.rnn import ElmanNetwork
    from npde_fem.networks.kinds.waves import WaveNetwork

__all__ = ["Driven", "DrivenElman", "DrivenResult", "DrivenWave"]

_QUIET: dict[str, Any] = {"progress": False, "rescue": None}


class DrivenResult(NamedTuple):
    """What an equation does that inputs drive.

    Attributes
    ----------
    outputs
        What the network's readout makes of the states, as it returns it, without the batch's axis.
    states
        State at the lattice's points after each step, shape ``(T, *shape)``, on all ranks.
    solution
        Solution of the last stretch; its ``u`` is the final state.
    """

    outputs: Array
    states: Array
    solution: Solution


class Driven(ABC):
    """The equation of a recurrent network, with the values its parameters had when this was made.

    Attributes
    ----------
    equation
        The equation, without what drives it or with a field for that.
    lattice
        The neurons' places.
    dt
        Length of a step.
    """

    equation: NPDE

    def __init__(self, network: Any) -> None:
        self.network = copy.deepcopy(network).double().requires_grad_(False).cpu()
        self.lattice: Lattice = network.lattice
        self.dt: float = network.dt

    def solve(
        self,
        inputs: Any,
        state: Any = None,
        *,
        on: dmesh.Mesh | fem.FunctionSpace | None = None,
        comm: MPI.Comm = MPI.COMM_WORLD,
        refine: int = 1,
        bcs: Sequence[BoundaryCondition] | None = None,
        substeps: int = 1,
    ) -> DrivenResult:
        """Solve the equation driven by inputs (collective).

        Parameters
        ----------
        inputs
            One row a step, shape ``(T, inputs)``; the same on every rank.
        state
            State at the start as the network has it, without the batch's axis; at rest by default.
        on
            Mesh, or scalar function space, to solve on by finite elements of which the mass is lumped. By default by
            finite differences on the network's own lattice, where the result is the network's to round-off.
        comm
            Communicator of the lattice's grid; a mesh has its own.
        refine
            On lattices, how many times finer than the network's; what it has at its points is multilinear between.
        bcs
            On a mesh, its boundary conditions; by default those of the lattice if the mesh fills its domain, else
            ``du/dn = 0``.
        substeps
            Steps that one of the network is divided into, where a finer lattice or a mesh needs shorter ones.

        Raises
        ------
        TypeError, ValueError
            If a shape is wrong, ``on`` is neither mesh nor space or misses points of the lattice, or the step is
            unstable there.
        """
        if isinstance(substeps, bool) or not isinstance(substeps, int) or substeps < 1:
            raise ValueError(f"substeps = {substeps!r} given; a positive integer allowed")
        rows = as_numbers("inputs", inputs.detach().cpu().numpy() if isinstance(inputs, torch.Tensor) else inputs)
        if rows.ndim != 2 or rows.shape[1] != self.network.inputs or not len(rows):
            raise ValueError(f"inputs of shape {rows.shape} given; (steps, {self.network.inputs}) allowed")
        place = place_of(on, self.lattice, comm, refine, bcs)
        problem = place.problem(Phase(self.equation, self.lattice, self.dt))
        at_nodes = interpolation(self.lattice, problem.coordinates()[:, : self.lattice.dim], self.lattice.boundary)
        probe = Probe(problem, self.lattice.coordinates().reshape(self.lattice.dim, -1).T)
        states: list[Array] = []

        def see(values: Array) -> None:
            states.append(probe.apply(values)[:, 0])

        solution = self._run(problem, at_nodes, rows, state, substeps, see)
        found = np.array(states)
        outputs = self.network.read(torch.from_numpy(self._signals(found))[None])[0].numpy()
        return DrivenResult(outputs, found.reshape(-1, *self.lattice.shape), solution)

    @abstractmethod
    def _run(
        self,
        problem: Semidiscrete,
        at_nodes: Any,
        rows: Array,
        state: Any,
        substeps: int,
        see: Callable[[Array], None],
    ) -> Solution:
        """Solve stretch by stretch, and show ``see`` the values after each step; return the last solution.

        ``at_nodes`` takes values at the lattice's points to the problem's.
        """

    @abstractmethod
    def _signals(self, states: Array) -> Array:
        """Return what the network's readout takes, given states ``(T, size)``."""

    def _given(self, label: str, state: Any) -> Array:
        """Return a state's values at the lattice's points, flat."""
        array = as_numbers(label, state.detach().cpu().numpy() if isinstance(state, torch.Tensor) else state)
        if array.shape not in {self.lattice.shape, (self.lattice.size,)}:
            raise ValueError(f"{label} of shape {array.shape} given; {self.lattice.shape} allowed")
        return array.reshape(-1)


class DrivenElman(Driven):
    """``u_t = N u + input`` with the reaction's flow: an Elman network as equation.

    The field parameter ``input`` holds ``U x + s`` of the step. N is an :class:`~npde_fem.nonlocal_terms.Integral`, or
    for a local network flux and source with the fields ``mass``, ``drift`` and ``diffusion``.
    """

    def __init__(self, network: ElmanNetwork) -> None:
        super().__init__(network)
        own: ElmanNetwork = self.network
        push = Parameter("input", 0.0, field=True)

        def flow(u: Any, x: Any, t: Any, dt: Any) -> Any:
            return own.reaction.flow(u, dt)

        if not own.local:
            points = self.lattice.coordinates().reshape(self.lattice.dim, -1).T
            self.equation = NPDE(
                source=lambda u, x, t: push,
                flow=flow,
                nonlocal_term=Integral(points, own.kernel.numpy()),
                name="elman network",
            )
            return
        mass, diffusion = (_field(name, self.lattice, getattr(own, name)) for name in ("mass", "diffusion"))
        drift = [_field(f"drift_{a}", self.lattice, own.drift[a]) for a in range(self.lattice.dim)]
        self.equation = NPDE(
            flux=lambda u, x, t: diffusion * ufl.grad(u) - u * ufl.as_vector(drift),
            source=lambda u, x, t: mass * u + push,
            flow=flow,
            name="local elman network",
        )

    def _run(
        self,
        problem: Semidiscrete,
        at_nodes: Any,
        rows: Array,
        state: Any,
        substeps: int,
        see: Callable[[Array], None],
    ) -> Solution:
        u = np.zeros(problem.n_owned) if state is None else at_nodes @ self._given("state", state)
        push, always = at_nodes @ self.network.source_positions.numpy(), at_nodes @ self.network.source.numpy()
        scheme = Lie(substeps, checked=False)
        for x in rows:
            problem.set_field("input", push @ x + always)
            solution = solve(problem, u, (0.0, self.dt), self.dt, scheme, **_QUIET)
            u = solution.values
            see(u)
        return solution

    def _signals(self, states: Array) -> Array:
        return states


class DrivenWave(Driven):
    """``u_tt + b u_t = div(c^2 grad u)``: a wave network as equation, with the fields ``speed`` and ``damping``.

    An input is a kick: before a step of length dt it changes the velocity by ``dt s / ((1 + b dt/2) (1 - b dt/2))``,
    from which leapfrog goes on as the network does. So steps without input are one solve.

    Raises
    ------
    ValueError
        If ``b dt`` is 2 or more: no kick of the velocity outlasts that.
    """

    def __init__(self, network: WaveNetwork) -> None:
        super().__init__(network)
        own: WaveNetwork = self.network
        most = float(own.damping.max())
        if most * self.dt >= 2:
            raise ValueError(
                f"wave_rnn: damping up to {most:g} with dt = {self.dt:g} given; an equation needs damping * dt below 2"
            )
        damping = _field("damping", self.lattice, own.damping) if most > 0 else 0.0
        self.equation = wave(_field("speed", self.lattice, own.speed), damping)

    def _run(
        self,
        problem: Semidiscrete,
        at_nodes: Any,
        rows: Array,
        state: Any,
        substeps: int,
        see: Callable[[Array], None],
    ) -> Solution:
        dt = self.dt / substeps
        beyond = _fields_beyond(self.lattice)
        nodes = problem.coordinates()[:, : self.lattice.dim]
        damping = interpolation(self.lattice, nodes, beyond) @ self.network.damping.numpy().ravel()
        resistance = damping * dt / 2
        push = at_nodes @ self.network.sources.numpy() * (self.dt / (1 - resistance**2))[:, None]
        push[problem.constrained] = 0.0
        u, v = np.zeros((2, problem.n_owned))
        if state is not None:
            if not isinstance(state, tuple | list) or len(state) != 2:
                raise ValueError(f"state: a pair of states, the later one first, allowed, {state!r} given")
            u, before = (at_nodes @ self._given("state", part) for part in state)
            v = self._velocity(problem, u, before, damping)
        driven = [k for k, x in enumerate(rows) if x.any() or k == 0]
        for k, end in zip(driven, [*driven[1:], len(rows)], strict=True):
            times = [self.dt * n for n in range(1, end - k + 1)]
            kicked = v + push @ rows[k]
            solution = solve(problem, u, (0.0, times[-1]), dt, Leapfrog(), times, velocity=kicked, **_QUIET)
            u, v = solution.values, moving(solution.velocity_values)
            for values in solution.states:
                see(values)
        return solution

    def _velocity(self, problem: Semidiscrete, u: Array, before: Array, damping: Array) -> Array:
        """Velocity with which leapfrog has come from a state to the next one."""
        state, rate = problem.new_state(), np.zeros(problem.n_owned)
        problem.load(u, state)
        problem.rate(0.0, state, rate)
        problem.solve_mass(rate, rate, False, 0.0, 1.0)
        found: Array = ((u - before) / self.dt + 0.5 * self.dt * rate) / (1 + 0.5 * self.dt * damping)
        return found

    def _signals(self, states: Array) -> Array:
        return states if self.network.probes is None else states @ self.network.probes.numpy().T


def _fields_beyond(lattice: Lattice) -> str:
    """How coefficients go on beyond the lattice: as at the last point where the state is zero."""
    return "replicate" if lattice.boundary == "zeros" else lattice.boundary


def _field(name: str, lattice: Lattice, values: torch.Tensor) -> Parameter:
    """Return a field parameter, multilinear between the lattice's points."""
    flat = values.numpy().ravel()

    def value(x: Array) -> Array:
        return interpolation(lattice, x[: lattice.dim].T, _fields_beyond(lattice)) @ flat

    return Parameter(name, value, field=True)
