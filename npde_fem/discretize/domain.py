"""Which points of a grid belong to the domain, how large their control volumes are, and where its boundary is."""

from __future__ import annotations

from typing import Any, NamedTuple

from npde_fem.discretize.data import select
from npde_fem.discretize.grid import Layout
from npde_fem.parallel import alike

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

__all__ = ["Domain", "Faces", "Points"]

Array = npt.NDArray[np.float64]


class Points(NamedTuple):
    """Some of this rank's points: flat and ghosted index, coordinates and normals of shape (n, 3)."""

    flat: npt.NDArray[np.int64]
    ghosted: npt.NDArray[np.int64]
    x: Array
    normal: Array


class Faces(NamedTuple):
    """Boundary faces: the points they belong to, with their outward normals, and their areas."""

    points: Points
    area: Array


class Domain:
    """The box of a layout, or the union of the cells around the points of its mask.

    Attributes
    ----------
    masked
        Whether there is a mask.
    mask
        1 where a ghosted point is inside, 0 elsewhere; uint8 of ghosted shape.
    inside
        Whether each owned point is inside, shape (n,).
    volumes
        Volume of the control volume of each owned point, shape (n,); 0 outside.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.comm = layout, layout.comm
        mask = layout.grid.mask
        self.masked = mask is not None
        with alike(self.comm):
            if mask is None:
                self.inside = np.ones(layout.n_points, dtype=bool)
            elif callable(mask):
                self.inside = select("Grid mask", mask, layout.coordinates())
            else:
                self.inside = layout.slice_global(mask, "Grid mask")
        if not self.comm.allreduce(bool(self.inside.any()), op=MPI.LOR):
            raise ValueError("Grid mask selects no point")
        ghosted = np.zeros((*layout.ghosted_shape, 1))
        ghosted[layout.inner] = self.inside.reshape(*layout.flat_shape, 1)
        layout.halo(1).exchange(ghosted)
        self.mask: npt.NDArray[np.uint8] = ghosted[..., 0].astype(np.uint8)
        self.volumes: Array = np.where(self.inside, layout.control_volumes(), 0.0)

    def points(self, flat: npt.NDArray, x: Array | None = None, normal: Array | None = None) -> Points:
        """Return points by flat index; ``x`` of shape (3, n) stands in for their own coordinates."""
        layout = self.layout
        index = np.array(np.unravel_index(flat, layout.flat_shape)) + 1
        ghosted = np.ravel_multi_index(tuple(index), layout.ghosted_shape).astype(np.int64)
        x = layout.coordinates()[:, flat] if x is None else x
        normal = np.zeros((flat.size, 3)) if normal is None else normal
        return Points(flat.astype(np.int64), ghosted, np.ascontiguousarray(x.T), np.ascontiguousarray(normal))

    def everywhere(self) -> Points:
        """Return all of this rank's points."""
        return self.points(np.arange(self.layout.n_points))

    def boundary_points(self, label: str, where: Any) -> Points:
        """Return the boundary points that a marker selects.

        Raises
        ------
        TypeError, ValueError
            If the marker fails, or selects no point on any rank.
        """
        flat = np.unique(self._closed_faces()[0])
        return self.points(flat[self._chosen(label, where, self.layout.coordinates()[:, flat])])

    def boundary_faces(self, label: str, where: Any) -> Faces:
        """Return the boundary faces whose centres a marker selects.

        Their data is evaluated at the points of the box's boundary, or at the centres of a mask's faces.

        Raises
        ------
        TypeError, ValueError
            If the marker fails, or selects no face on any rank.
        """
        layout, h = self.layout, self.layout.grid.spacing
        flat, axes, sides = self._closed_faces()
        x = layout.coordinates()[:, flat]
        centre, area = x.copy(), np.ones(flat.size)
        normal = np.zeros((flat.size, 3))
        normal[np.arange(flat.size), axes] = sides
        position = np.array(np.unravel_index(flat, layout.flat_shape))[::-1]
        for a in range(layout.dim):
            across = axes != a
            if self.masked:
                centre[a] += np.where(across, 0.0, 0.5 * h[a] * sides)
                area *= np.where(across, h[a], 1.0)
                continue
            index = layout.start[a] + position[a]
            low = (index == 0) & layout.closed[a]
            high = (index == layout.points[a] - 1) & layout.closed[a]
            centre[a] += np.where(across, 0.25 * h[a] * (low.astype(float) - high), 0.0)
            area *= np.where(across, np.where(low | high, 0.5, 1.0) * h[a], 1.0)
        chosen = self._chosen(label, where, centre)
        at = (centre if self.masked else x)[:, chosen]
        return Faces(self.points(flat[chosen], at, normal[chosen]), area[chosen])

    def _closed_faces(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Flat index of the point, axis and side (-1 or 1) of every face of this rank's points on the boundary."""
        layout, dim = self.layout, self.layout.dim
        found = [np.zeros((3, 0), dtype=np.int64)]
        inside = self.inside.reshape(layout.flat_shape)
        for a in range(dim):
            along = dim - 1 - a
            for side in (-1, 1):
                if self.masked:
                    shifted = [slice(1, -1)] * dim
                    shifted[along] = slice(0, -2) if side < 0 else slice(2, None)
                    closed = inside & (self.mask[tuple(shifted)] == 0)
                else:
                    closed = np.zeros(layout.flat_shape, dtype=bool)
                    at_end = layout.start[a] == 0 if side < 0 else layout.end[a] == layout.points[a]
                    if at_end and layout.closed[a]:
                        closed[(slice(None),) * along + (0 if side < 0 else -1,)] = True
                index = np.flatnonzero(closed)
                found.append(np.array([index, np.full_like(index, a), np.full_like(index, side)]))
        points, axes, sides = np.concatenate(found, axis=1)
        return points, axes, sides

    def _chosen(self, label: str, where: Any, x: Array) -> npt.NDArray[np.bool_]:
        layout = self.layout
        with alike(self.comm):
            chosen = select(label, where, x)
        if not self.comm.allreduce(int(chosen.sum())):
            axes = [a for a, periodic in enumerate(layout.periodic) if periodic]
            raise ValueError(
                f"{label}: the marker selects nothing on the boundary of the grid from {layout.grid.lower} to "
                f"{layout.grid.upper}" + (f", which has none across its periodic axes {axes}" if axes else "")
            )
        return chosen
