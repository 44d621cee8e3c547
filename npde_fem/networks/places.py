"""Where the equations of networks are solved: on their own lattice, on finer ones, on meshes of any domain.

A *place* makes problems of phases, and carries states from one phase to the next. A network's own lattice knows pooling
exactly. Elsewhere a change of lattice changes nothing, because there the state is a function of x that no lattice is
needed for: to keep each k-th point (a stride) is exact then, to take means of blocks is so up to O(h^2), and to take
maxima has no meaning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from npde_fem.boundary import BoundaryCondition, Outflow, Periodic
from npde_fem.discretize import FD, FEM, GridFunction, Probe, Semidiscrete, periodic_mesh
from npde_fem.discretize.semidiscrete import Array
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.phases import Phase, Pooling
from npde_fem.parallel import alike
from npde_fem.parameter import as_numbers
from npde_fem.solve import Solution

import dolfinx.mesh as dmesh
import numpy as np
import torch
from dolfinx import fem
from mpi4py import MPI
from scipy.ndimage import map_coordinates

__all__ = ["Ended", "OnLattices", "OnMesh", "Place", "place_of", "pooled", "sampled"]

_BEYOND = {"zeros": "grid-constant", "replicate": "nearest", "reflect": "mirror", "circular": "grid-wrap"}
_ROUND_OFF = 1e-9


def pooled(array: Array, pooling: Pooling | None) -> Array:
    """Return an array ``(C, *shape)`` pooled as torch does: points that fill no whole block are left out."""
    if pooling is None:
        return array
    factor, channels, shape = pooling.factor, array.shape[0], array.shape[1:]
    if pooling.kind == "stride":
        return array[(slice(None), *(slice(None, None, factor) for _ in shape))]
    blocks = [n // factor for n in shape]
    whole = array[(slice(None), *(slice(n * factor) for n in blocks))]
    split = whole.reshape(channels, *(size for n in blocks for size in (n, factor)))
    reduce: Any = np.mean if pooling.kind == "mean" else np.max
    made: Array = reduce(split, axis=tuple(range(2, 2 * len(shape) + 1, 2)))
    return made


def sampled(array: Array, lattice: Lattice, x: Array) -> Array:
    """Return values ``(C, n)`` at points x ``(d, n)`` of an array ``(C, *lattice.shape)``, multilinear between points.

    Beyond the first and last point it goes on as the lattice's boundary says. At points of the lattice it is exact.
    """
    steps = np.array(lattice.spacing)[:, None]
    place = (x[: lattice.dim] - np.array(lattice.lower)[:, None]) / steps
    nearest = np.rint(place)
    place = np.where(np.abs(place - nearest) < _ROUND_OFF, nearest, place)
    mode = _BEYOND[lattice.boundary]
    return np.stack([map_coordinates(channel, place, order=1, mode=mode) for channel in array])


class Ended(NamedTuple):
    """A phase that was solved, and where."""

    place: Place
    phase: Phase
    solution: Solution


class Place(ABC):
    """Where phases are solved.

    Attributes
    ----------
    comm
        Communicator of the problems.
    own
        Whether it is the network's own lattice.
    """

    comm: MPI.Comm
    own: bool

    @abstractmethod
    def problem(self, phase: Phase) -> Semidiscrete:
        """Return the equation of a phase, discretised here (collective)."""

    @abstractmethod
    def carried(self, before: Ended, phase: Phase, problem: Semidiscrete) -> Array:
        """Return the values with which a phase begins, after another one (collective)."""

    @abstractmethod
    def array(self, ended: Ended, *, pool: bool) -> Array:
        """Return the end of a phase at its lattice's points, ``(C_out, *shape)`` on every rank (collective).

        With ``pool`` after the phase's pooling.
        """

    def initial(self, u0: Any, phase: Phase, problem: Semidiscrete, inputs: int | None = None) -> Array:
        """Return the values that given data have (see ``Evolution.solve``), other channels zero (collective).

        With ``inputs`` arrays may have so many numbers, those of the lattice's first points; the others are zero then.
        """
        channels = phase.channels[0]
        if isinstance(u0, Ended):
            return self.carried(u0, phase, problem)
        if isinstance(u0, fem.Function | GridFunction):
            if channels != problem.components:
                raise ValueError(f"u0: a function given; an array or a callable of {channels} channels allowed")
            return problem.initial(u0)
        if callable(u0):
            return problem.initial(_of_components(u0, channels, problem, phase.lattice.dim))
        with alike(self.comm):
            array = as_numbers("u0", u0.detach().cpu().numpy() if isinstance(u0, torch.Tensor) else u0)
            few = [] if inputs is None else [(inputs,), (1, inputs)]
            # The inputs of some neurons must not be taken for the points that a rank owns.
            owned = self._owned(problem) if inputs in (None, phase.lattice.size) else []
            shapes = [*self._shapes(phase), *owned]
            allowed = [*few, *((channels, *shape) for shape in shapes)]
            if array.shape not in allowed:
                told = " or ".join(str(shape) for shape in dict.fromkeys(allowed))
                raise ValueError(
                    f"u0: array of shape {array.shape} given; {told} (channels, then points along each axis) allowed"
                )
        if array.shape in few:
            whole = np.zeros((1, phase.lattice.size))
            whole[0, :inputs] = array.ravel()
            array = whole.reshape(1, *phase.lattice.shape)
        return self._placed(array, phase, problem)

    def _shapes(self, phase: Phase) -> list[tuple[int, ...]]:
        """Return the shapes of points that arrays of all of them may have."""
        return [phase.lattice.shape]

    def _owned(self, problem: Semidiscrete) -> list[tuple[int, ...]]:
        """Return the shape of the points that this rank owns, where arrays may have them."""
        return []

    def _placed(self, array: Array, phase: Phase, problem: Semidiscrete) -> Array:
        """Return the values of an array of one of these shapes: here between the points of the phase's lattice."""
        return self._between(array, phase.lattice, phase, problem)

    def _between(self, array: Array, lattice: Lattice, phase: Phase, problem: Semidiscrete) -> Array:
        function = _of_components(lambda x: sampled(array, lattice, x), phase.channels[0], problem, lattice.dim)
        return problem.initial(function)


class OnLattices(Place):
    """The lattice of each phase, or one ``factor`` times finer."""

    def __init__(self, comm: MPI.Comm, factor: int) -> None:
        self.comm, self.factor, self.own = comm, factor, factor == 1

    def lattice(self, phase: Phase) -> Lattice:
        """The points on which a phase is solved."""
        return phase.lattice.refined(self.factor)

    def problem(self, phase: Phase) -> FD:
        lattice = self.lattice(phase)
        return FD(phase.equation, lattice.grid(self.comm), lattice.conditions)

    def _shapes(self, phase: Phase) -> list[tuple[int, ...]]:
        return [phase.lattice.shape, self.lattice(phase).shape]

    def _owned(self, problem: Any) -> list[tuple[int, ...]]:
        return [problem.layout.local]

    def _placed(self, array: Array, phase: Phase, problem: Any) -> Array:
        coarse = not self.own and array.shape[1:] == phase.lattice.shape
        # A rank may happen to own as many points of the finer lattice as the network's has.
        if self.comm.allreduce(coarse, op=MPI.LAND):
            return super()._placed(array, phase, problem)
        whole = np.moveaxis(_of_channels(array, problem.components), 0, -1)
        return problem.initial(whole[..., 0] if problem.components == 1 else whole)

    def _whole(self, ended: Ended) -> Array:
        """The end of a phase at the points on which it was solved."""
        array = self.comm.bcast(ended.solution.u.gather())
        channels_last = array[..., None] if ended.solution.problem.components == 1 else array
        return np.ascontiguousarray(np.moveaxis(channels_last, -1, 0)[: ended.phase.channels[1]])

    def carried(self, before: Ended, phase: Phase, problem: Semidiscrete) -> Array:
        if not isinstance(before.place, OnLattices):
            raise ValueError("u0: a result on a mesh given; one on lattices allowed, or an array")
        array = self._whole(before)
        if before.place.own and self.own:
            return self._placed(pooled(array, before.phase.pooling), phase, problem)
        return self._between(array, before.place.lattice(before.phase), phase, problem)

    def array(self, ended: Ended, *, pool: bool) -> Array:
        array, lattice = self._whole(ended), self.lattice(ended.phase)
        if self.own:
            return pooled(array, ended.phase.pooling if pool else None)
        points, shape = ended.phase.points(pooled=pool)
        return sampled(array, lattice, points.T).reshape(-1, *shape)


class OnMesh(Place):
    """A mesh, with finite elements of which the mass is lumped.

    On a mesh of the lattice's domain the lattice's boundary conditions hold, on any other ``du/dn = 0``, unless ``bcs``
    are given.
    """

    own = False

    def __init__(
        self, on: dmesh.Mesh | fem.FunctionSpace, lattice: Lattice, bcs: Sequence[BoundaryCondition] | None
    ) -> None:
        mesh = on if isinstance(on, dmesh.Mesh) else on.mesh
        self._degree: int = 1 if isinstance(on, dmesh.Mesh) else on.ufl_element().degree
        if mesh.geometry.dim != lattice.dim:
            raise ValueError(
                f"on: a mesh in {mesh.geometry.dim} dimensions given; the network's lattice has {lattice.dim}"
            )
        self.comm, self._given = mesh.comm, bcs
        self._boxes = {lattice: _is_box(mesh, lattice)}
        axes = {bc.axis for bc in self._conditions(mesh, lattice) if isinstance(bc, Periodic)}
        self.mesh = periodic_mesh(mesh, axes) if axes else mesh

    def _conditions(self, mesh: dmesh.Mesh, lattice: Lattice) -> Sequence[BoundaryCondition]:
        if self._given is not None:
            return self._given
        if lattice not in self._boxes:
            self._boxes[lattice] = _is_box(mesh, lattice)
        return lattice.mesh_conditions if self._boxes[lattice] else [Outflow()]

    def problem(self, phase: Phase) -> FEM:
        space = fem.functionspace(self.mesh, ("Lagrange", self._degree, phase.equation.shape))
        return FEM(phase.equation, space, self._conditions(self.mesh, phase.lattice), mass="lumped")

    def carried(self, before: Ended, phase: Phase, problem: Semidiscrete) -> Array:
        if not (isinstance(before.place, OnMesh) and before.place.mesh is self.mesh):
            raise ValueError("u0: a result that was solved elsewhere given; one on the same mesh allowed, or an array")
        nodes = before.solution.values.reshape(-1, before.solution.problem.components)
        state = nodes[:, : before.phase.channels[1]].T
        return np.ascontiguousarray(_of_channels(state, problem.components).T).reshape(-1)

    def array(self, ended: Ended, *, pool: bool) -> Array:
        points, shape = ended.phase.points(pooled=pool)
        observed = Probe(ended.solution.problem, points).apply(ended.solution.values)
        return np.ascontiguousarray(observed[:, : ended.phase.channels[1]].T).reshape(-1, *shape)


def place_of(on: Any, lattice: Lattice, comm: MPI.Comm, refine: int, bcs: Sequence[BoundaryCondition] | None) -> Place:
    """Return where to solve: on lattices, or on a mesh or function space (collective)."""
    if isinstance(refine, bool) or not isinstance(refine, int | np.integer) or refine < 1:
        raise ValueError(f"refine = {refine!r} given; a positive integer allowed")
    if on is None:
        if bcs is not None:
            raise ValueError("bcs: for meshes only; on lattices the network's padding is the boundary condition")
        return OnLattices(comm, int(refine))
    if not isinstance(on, dmesh.Mesh | fem.FunctionSpace):
        raise TypeError(f"on: None (the lattice), a DOLFINx mesh or function space allowed, {on!r} given")
    if refine != 1:
        raise ValueError(f"refine = {refine} given with a mesh; refine the mesh instead")
    return OnMesh(on, lattice, bcs)


def _of_channels(array: Array, channels: int) -> Array:
    """Return an array ``(channels, ...)``: channels that are new are zero."""
    if len(array) == channels:
        return array
    return np.concatenate([array, np.zeros((channels - len(array), *array.shape[1:]))])


def _of_components(function: Callable, channels: int, problem: Semidiscrete, dim: int) -> Callable:
    """Return a function of x ``(3, n)`` with the state's components, given one of x ``(d, n)`` with channels."""

    def values(x: Array) -> Array:
        given = np.asarray(function(x[:dim]), dtype=np.float64)
        n = x.shape[1]
        if given.shape == (n,) and channels == 1:
            given = given[None]
        if given.shape not in {(channels,), (channels, n)}:
            raise ValueError(f"it returned shape {given.shape}; {(channels, n)} (channels, then points) allowed")
        whole = _of_channels(np.broadcast_to(given.reshape(channels, -1), (channels, n)), problem.components)
        return whole[0] if problem.components == 1 else whole

    return values


def _is_box(mesh: dmesh.Mesh, lattice: Lattice) -> bool:
    """Whether a mesh fills the lattice's domain: its boundary lies on the sides of that box (collective)."""
    lower, upper = (np.array(corner) for corner in lattice.domain)
    near = _ROUND_OFF * np.linalg.norm(upper - lower)
    x = mesh.geometry.x[:, : lattice.dim]
    low, high = np.min(x, axis=0, initial=np.inf), np.max(x, axis=0, initial=-np.inf)
    mesh.comm.Allreduce(MPI.IN_PLACE, low, op=MPI.MIN)
    mesh.comm.Allreduce(MPI.IN_PLACE, high, op=MPI.MAX)
    fdim = mesh.topology.dim - 1
    mesh.topology.create_connectivity(fdim, fdim + 1)
    facets = dmesh.exterior_facet_indices(mesh.topology)
    middles = dmesh.compute_midpoints(mesh, fdim, facets)[:, : lattice.dim]
    on_sides = np.any((np.abs(middles - lower) < near) | (np.abs(middles - upper) < near), axis=1)
    corners = np.allclose(low, lower, rtol=0, atol=near) and np.allclose(high, upper, rtol=0, atol=near)
    return bool(mesh.comm.allreduce(corners and bool(on_sides.all()), op=MPI.LAND))
