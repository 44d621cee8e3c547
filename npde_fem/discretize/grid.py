"""Uniform grids, their distribution over ranks by a PETSc DMDA, and functions on them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from npde_fem.parallel import alike
from npde_fem.taped import Taped

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from petsc4py import PETSc

__all__ = ["PADDINGS", "Grid", "GridFunction", "Halo", "Layout"]

PADDINGS = ("zeros", "replicate", "reflect")
"""What lies one point beyond the first and the last: 0, the value of the last point, or of the one before the last."""


@dataclass(frozen=True)
class Grid:
    """A uniform grid of points on a box, ends included.

    Parameters
    ----------
    comm
        Communicator over whose ranks the grid is spread.
    shape
        Points along each axis, 1 to 3 axes, at least 3 points each. The spacing is
        ``(upper - lower) / (shape - 1)``. Along a periodic axis the last plane of points is the first one.
    lower, upper
        Corners of the box.
    mask
        Boolean array of ``shape``, or callable of coordinates ``(3, n)``: the domain is the union of the cells of
        width h *centred on the points* of the mask (the voxels of an image). Without a mask the domain is the box.
    padding
        How the state goes on beyond the first and last point of every axis that is not periodic, as the padding of a
        convolution does: "zeros" (it is 0), "replicate" (as at the last point) or "reflect" (as at the one before the
        last). Then the grid has no boundary: all points are alike, each in the middle of a whole control volume, fluxes
        pass through all faces, and no boundary condition but Periodic can be given. Field parameters go on as at the
        last point, or mirrored with "reflect".

    Raises
    ------
    TypeError, ValueError
        If lengths differ, a shape is below 3, the box is empty or not finite, the mask has another shape, is
        not boolean, or is empty, or the padding is unknown or comes with a mask.
    """

    comm: MPI.Comm
    shape: tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    mask: npt.NDArray[np.bool_] | Callable | None = None
    padding: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.comm, MPI.Comm):
            raise TypeError(f"Grid: comm must be an MPI communicator, not {self.comm!r}")
        kinds: tuple[tuple[str, Callable, str], ...] = (
            ("shape", operator.index, "integers"),
            ("lower", float, "numbers"),
            ("upper", float, "numbers"),
        )
        for name, kind, what in kinds:
            value = getattr(self, name)
            try:
                entries = tuple(kind(v) for v in np.atleast_1d(np.asarray(value)))
            except (TypeError, ValueError) as error:
                raise TypeError(f"Grid: {name} must be {what}, one for each axis, not {value!r}") from error
            object.__setattr__(self, name, entries)
        if not 1 <= len(self.shape) <= 3:
            raise ValueError(f"Grid: shape {self.shape} has {len(self.shape)} axes; 1, 2 or 3 allowed")
        if not len(self.shape) == len(self.lower) == len(self.upper):
            raise ValueError(
                f"Grid: shape {self.shape}, lower {self.lower} and upper {self.upper} must have the same length"
            )
        if min(self.shape) < 3:
            raise ValueError(f"Grid: shape {self.shape} given; at least 3 points along every axis are needed")
        if not np.all(np.isfinite([*self.lower, *self.upper])):
            raise ValueError(f"Grid: lower {self.lower} and upper {self.upper} must be finite")
        if not all(a < b for a, b in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f"Grid: lower {self.lower} must be below upper {self.upper} along every axis")
        if self.padding is not None and self.padding not in PADDINGS:
            allowed = ", ".join(f'"{rule}"' for rule in PADDINGS)
            raise ValueError(f"Grid: padding {self.padding!r} given; {allowed} or None allowed")
        if self.padding is not None and self.mask is not None:
            raise ValueError("Grid: padding and mask given; a grid can have one of them")
        if self.mask is not None and not callable(self.mask):
            mask = np.asarray(self.mask)
            if mask.dtype != np.bool_:
                raise TypeError(f"Grid: mask must be boolean, not {mask.dtype}")
            if mask.shape != self.shape:
                raise ValueError(f"Grid: mask of shape {mask.shape} given; the grid has shape {self.shape}")
            if not mask.any():
                raise ValueError("Grid: mask selects no point")
            object.__setattr__(self, "mask", mask)

    @property
    def dim(self) -> int:
        """Space dimension."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance of neighbouring points along each axis."""
        return tuple((b - a) / (n - 1) for a, b, n in zip(self.lower, self.upper, self.shape, strict=True))


class Layout:
    """How the points of a grid, with some axes periodic, lie on this rank.

    Flat arrays run over x fastest, then y, z; components of a system faster still. A *ghosted* array has one more
    layer of points on every side.

    Attributes
    ----------
    points
        Global number of distinct points along each axis.
    start, local
        First owned point and number of owned points along each axis.
    padding
        The grid's padding along each axis, None along periodic ones.
    padded
        Whether some axis is padded.
    closed
        Whether each axis ends at boundaries: it is neither periodic nor padded.
    """

    def __init__(self, grid: Grid, periodic: tuple[bool, ...], dof: int) -> None:
        self.grid, self.periodic, self.dof, self.comm = grid, periodic, dof, grid.comm
        self.dim = grid.dim
        self.points = tuple(n - 1 if p else n for n, p in zip(grid.shape, periodic, strict=True))
        self.padding = tuple(None if p else grid.padding for p in periodic)
        self.padded = any(rule is not None for rule in self.padding)
        self.closed = tuple(not p and grid.padding is None for p in periodic)
        kind = PETSc.DM.BoundaryType
        with alike(self.comm):
            self.dm = PETSc.DMDA().create(
                dim=self.dim,
                dof=dof,
                sizes=self.points,
                boundary_type=tuple(kind.PERIODIC if p else kind.GHOSTED for p in periodic),
                stencil_type=PETSc.DMDA.StencilType.BOX,
                stencil_width=1,
                comm=self.comm,
                setup=False,
            )
            self.dm.setOptionsPrefix("npde_")
            self.dm.setFromOptions()
        try:
            self.dm.setUp()
        except PETSc.Error as error:
            raise ValueError(
                f"Grid: {self.points} points cannot be spread over {self.comm.size} ranks; "
                "use fewer ranks or more points"
            ) from error
        (self.start, self.end) = (tuple(c) for c in zip(*self.dm.getRanges(), strict=True))
        self.local = tuple(e - s for s, e in zip(self.start, self.end, strict=True))
        self.n_points = int(np.prod(self.local))
        self._halos: dict[tuple[int, ...], Halo] = {}
        self._field_halos: dict[int, Halo] = {}

    def halo(self, components: int, *copies: int) -> Halo:
        """Return the exchange of ghosts of arrays with ``components`` values a point, always the same one.

        With ``copies`` these are so many ghosted arrays in one.
        """
        key = (components, *copies)
        if key not in self._halos:
            self._halos[key] = Halo(self, components, self.padding, copies)
        return self._halos[key]

    def field_halo(self, components: int) -> Halo:
        """Return the exchange of ghosts of a field parameter: beyond the box it goes on, mirrored on such a grid."""
        if components not in self._field_halos:
            beyond = "reflect" if self.grid.padding == "reflect" else "replicate"
            padding = tuple(None if periodic else beyond for periodic in self.periodic)
            self._field_halos[components] = Halo(self, components, padding)
        return self._field_halos[components]

    @cached_property
    def flat_shape(self) -> tuple[int, ...]:
        """Shape of owned points in memory order, slowest axis first."""
        return self.local[::-1]

    @cached_property
    def ghosted_shape(self) -> tuple[int, ...]:
        """Shape of ghosted points in memory order, slowest axis first."""
        return tuple(n + 2 for n in self.local[::-1])

    @cached_property
    def inner(self) -> tuple[slice, ...]:
        """Index of the owned points in a ghosted array."""
        return (slice(1, -1),) * self.dim

    def axis_coordinates(self, axis: int, ghosted: bool = False) -> npt.NDArray[np.float64]:
        """Coordinates of the owned (or ghosted) points along one axis."""
        reach = 1 if ghosted else 0
        index = np.arange(self.start[axis] - reach, self.end[axis] + reach)
        return self.grid.lower[axis] + self.grid.spacing[axis] * index

    def coordinates(self, shift: float = 0.0) -> npt.NDArray[np.float64]:
        """Coordinates of the owned points, moved by ``shift`` spacings along every axis, shape (3, n)."""
        axes = [self.axis_coordinates(a) + shift * self.grid.spacing[a] for a in range(self.dim)]
        mesh = np.meshgrid(*axes[::-1], indexing="ij")[::-1]
        x = np.zeros((3, self.n_points))
        for a in range(self.dim):
            x[a] = mesh[a].ravel()
        return x

    def control_volumes(self) -> npt.NDArray[np.float64]:
        """Volume of the cell about every owned point: half as long at an end of the box, whole with mask or padding."""
        volumes = np.ones(self.flat_shape)
        for axis, spacing in enumerate(self.grid.spacing):
            lengths = np.full(self.local[axis], spacing)
            if self.grid.mask is None and self.closed[axis]:
                index = np.arange(self.start[axis], self.end[axis])
                lengths[(index == 0) | (index == self.points[axis] - 1)] *= 0.5
            volumes *= lengths.reshape(-1, *(1,) * axis)
        return volumes.ravel()

    def on_grid(self, flat: npt.NDArray, components: int) -> npt.NDArray:
        """View flat owned values as an array of shape ``local`` (and ``(components,)`` behind it, if more than 1)."""
        shaped = flat.reshape(*self.flat_shape, components).transpose(*range(self.dim)[::-1], self.dim)
        return shaped[..., 0] if components == 1 else shaped

    def slice_global(self, array: npt.NDArray, name: str, components: int = 1) -> npt.NDArray:
        """Return this rank's part, flat, of an array over all points of the grid (or of those distinct).

        Raises
        ------
        ValueError
            If the shape fits neither, or the two sides of a periodic axis differ.
        """
        tail = () if components == 1 else (components,)
        if array.shape not in {(*self.grid.shape, *tail), (*self.points, *tail), (*self.local, *tail)}:
            raise ValueError(
                f"{name}: array of shape {array.shape} given; {(*self.grid.shape, *tail)} (all points) or "
                f"{(*self.local, *tail)} (this rank's) allowed"
            )
        if array.shape == (*self.grid.shape, *tail):
            for axis, periodic in enumerate(self.periodic):
                if periodic and not np.array_equal(array.take(0, axis), array.take(-1, axis)):
                    raise ValueError(
                        f"{name}: the two sides of periodic axis {axis} are unequal; they are the same points"
                    )
        if array.shape != (*self.local, *tail) or self.comm.size == 1:
            array = array[tuple(slice(s, e) for s, e in zip(self.start, self.end, strict=True))]
        order = [*range(self.dim)[::-1], *range(self.dim, array.ndim)]
        return np.ascontiguousarray(array.transpose(order)).reshape(-1)

    def global_indices(self) -> npt.NDArray[np.int32]:
        """PETSc's global number of every ghosted point, in memory order.

        Outside of the box it is that of the point whose value stands there, -1 if there is none.
        """
        numbers: npt.NDArray[np.int32] = self.dm.getLGMap().block_indices.reshape(self.ghosted_shape)
        if self.padded:
            from_one = np.zeros((*self.ghosted_shape, 1))
            from_one[self.inner] = 1 + numbers[self.inner][..., None]
            self.halo(1).exchange(from_one)
            numbers = from_one[..., 0].astype(np.int32) - 1
        return numbers


class Halo:
    """Exchange of the ghost layer of ghosted arrays with ``components`` values a point, or of some copies in one array.

    Axes are exchanged one after the other, so that corners arrive too; a message carries one layer of points,
    described to MPI by a subarray type, and nothing is copied or allocated. ``padding`` says what stands beyond the box
    along each axis; for None and "zeros" these ghosts are left alone, and in a new array are 0.
    """

    def __init__(
        self, layout: Layout, components: int, padding: tuple[str | None, ...], copies: tuple[int, ...] = ()
    ) -> None:
        self._comm = layout.comm
        self._moves: list[tuple[Any, ...]] = []
        sizes = (*copies, *layout.ghosted_shape, components)
        processes = layout.dm.getProcSizes()
        strides = np.cumprod([1, *processes[:-1]])
        place = [(layout.comm.rank // int(strides[a])) % processes[a] for a in range(layout.dim)]
        for axis in range(layout.dim):
            along = len(copies) + layout.dim - 1 - axis
            count, periodic, n = processes[axis], layout.periodic[axis], sizes[along]

            def plane(index: int, along: int = along) -> tuple:
                return (*(slice(None),) * along, index)

            copied = []
            if count == 1 and periodic:
                copied = [(plane(0), plane(n - 2)), (plane(n - 1), plane(1))]
            elif padding[axis] in ("replicate", "reflect"):
                reach = 1 if padding[axis] == "replicate" else 2
                copied += [(plane(0), plane(reach))] if place[axis] == 0 else []
                copied += [(plane(n - 1), plane(n - 1 - reach))] if place[axis] == count - 1 else []
            if count == 1:
                self._moves += [("copy", *move) for move in copied]
                continue

            def neighbour(step: int, axis: int = axis, count: int = count, periodic: bool = periodic) -> int:
                there = place[axis] + step
                if not periodic and not 0 <= there < count:
                    return MPI.PROC_NULL
                return layout.comm.rank + (there % count - place[axis]) * int(strides[axis])

            def layer(index: int, along: int = along) -> MPI.Datatype:
                sub, at = list(sizes), [0] * len(sizes)
                sub[along], at[along] = 1, index
                return MPI.DOUBLE.Create_subarray(list(sizes), sub, at).Commit()

            received = [np.zeros(sizes[:along] + sizes[along + 1 :]) for _ in range(2)]
            self._moves.append(
                (
                    *("send", neighbour(-1), neighbour(1), layer(1), layer(n - 1), layer(n - 2), layer(0)),
                    *(plane(1), plane(n - 2), *received),
                )
            )
            # The plane that is mirrored may be a neighbour's, where a rank has one plane only.
            self._moves += [("copy", *move) for move in copied]

    def exchange(self, array: npt.NDArray[np.float64]) -> None:
        """Fill the ghosts of ``array`` (of ghosted shape) from the neighbours that own them, or by the padding."""
        for kind, *move in self._moves:
            if kind == "copy":
                ghost, source = move
                array[ghost] = array[source]
                continue
            before, after, first, high_ghost, last, low_ghost, *_ = move
            requests = [
                self._comm.Irecv([array, 1, low_ghost], before, 1),
                self._comm.Irecv([array, 1, high_ghost], after, 2),
                self._comm.Isend([array, 1, last], after, 1),
                self._comm.Isend([array, 1, first], before, 2),
            ]
            MPI.Request.Waitall(requests)

    def reverse(self, array: npt.NDArray[np.float64]) -> None:
        """Add the ghosts of ``array`` to the values they are copies of: the transpose of :meth:`exchange`.

        The ghosts have no meaning afterwards.
        """
        for kind, *move in reversed(self._moves):
            if kind == "copy":
                ghost, source = move
                array[source] += array[ghost]
                continue
            before, after, _, high_ghost, _, low_ghost, first_plane, last_plane, *received = move
            from_before, from_after = received
            requests = [
                self._comm.Irecv(from_before, before, 3),
                self._comm.Irecv(from_after, after, 4),
                self._comm.Isend([array, 1, high_ghost], after, 3),
                self._comm.Isend([array, 1, low_ghost], before, 4),
            ]
            MPI.Request.Waitall(requests)
            array[first_plane] += from_before
            array[last_plane] += from_after


class GridFunction(Taped):
    """A function on a grid, one value (or ``m``) a point; each rank holds the points it owns.

    On pyadjoint's tape it may be a ``Control``, with Riesz maps "l2" and "L2" (control volumes), if it is real.

    Attributes
    ----------
    values
        Flat float64 or complex128 array of the owned values.
    """

    def __init__(self, layout: Layout, values: npt.NDArray, components: int, name: str = "u") -> None:
        super().__init__()
        self.layout, self.values, self.components, self.name = layout, values, components, name

    @property
    def grid(self) -> Grid:
        """The grid."""
        return self.layout.grid

    @property
    def array(self) -> npt.NDArray:
        """View of the owned values, shape ``local`` or ``local + (m,)``, indexed by x, y, z."""
        return self.layout.on_grid(self.values, self.components)

    @property
    def coordinates(self) -> npt.NDArray[np.float64]:
        """Coordinates of the owned points, shape (3, n), in the order of :attr:`values`."""
        return self.layout.coordinates()

    def gather(self) -> npt.NDArray | None:
        """Return the whole array on rank 0, None elsewhere (collective). Periodic axes list distinct points once."""
        layout = self.layout
        parts = layout.comm.gather((layout.start, layout.end, np.ascontiguousarray(self.array)), root=0)
        if parts is None:
            return None
        tail = () if self.components == 1 else (self.components,)
        whole = np.empty((*layout.points, *tail), dtype=self.values.dtype)
        for start, end, part in parts:
            whole[tuple(slice(s, e) for s, e in zip(start, end, strict=True))] = part
        return whole

    # -- on the tape (see npde_fem.taped) --------------------------------------------------------------------

    _ad_spread = True

    @property
    def _ad_comm(self) -> MPI.Comm:
        return self.layout.comm

    @property
    def _ad_str(self) -> str:
        return self.name

    def _ad_values(self) -> npt.NDArray[np.float64]:
        return self.values.copy()

    def _ad_shape(self) -> tuple[int, ...]:
        return self.values.shape

    def _ad_assign(self, values: npt.NDArray[np.float64]) -> None:
        self.values[:] = values

    def _ad_like(self, values: npt.NDArray[np.float64]) -> GridFunction:
        return GridFunction(self.layout, np.array(values), self.components, self.name)

    def _ad_riesz(self, values: npt.NDArray[np.float64], kind: str) -> npt.NDArray[np.float64]:
        if kind != "L2":
            raise ValueError(f"GridFunction {self.name!r}: riesz_map {kind!r} given; 'l2' and 'L2' allowed")
        return values / np.repeat(self.layout.control_volumes(), self.components)
