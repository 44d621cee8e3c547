"""Where points lie in a mesh: their cells, and the basis functions there."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import basix
import numpy as np
import numpy.typing as npt
from dolfinx import geometry
from dolfinx import mesh as dmesh
from mpi4py import MPI

if TYPE_CHECKING:
    from npde_fem.discretize.fem import FEM

__all__ = ["Cells", "Indices", "Places", "basis_functions", "extent", "tolerance"]

_CHUNK = 10_000
"""Points that are located in a mesh at once, which bounds the memory that takes."""

_ITERATIONS = 25
"""Newton's steps to a point's place in a cell; in the cell that holds it a handful suffice."""

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class Places(NamedTuple):
    """Some of the points asked for: their numbers, cells, places ``X`` therein, and distances from there."""

    point: Indices
    cell: Indices
    place: Array
    distance: Array


def tolerance(lower: Array, upper: Array) -> float:
    """Return how far outside of a domain a point still counts as on its boundary: 1e-10 diameters, or round-off."""
    round_off = 16 * np.finfo(np.float64).eps * np.max(np.abs([lower, upper]))
    return max(1e-10 * float(np.linalg.norm(upper - lower)), float(round_off))


def extent(problem: FEM) -> tuple[Array, Array]:
    """Return the corners of the box around the mesh (collective)."""
    x = problem.mesh.geometry.x[:, : problem.dim]
    lower = np.min(x, axis=0, initial=np.inf)
    upper = np.max(x, axis=0, initial=-np.inf)
    problem.comm.Allreduce(MPI.IN_PLACE, lower, op=MPI.MIN)
    problem.comm.Allreduce(MPI.IN_PLACE, upper, op=MPI.MAX)
    return lower, upper


def basis_functions(problem: FEM, cell: Indices, place: Array) -> tuple[Indices, Array]:
    """Return the nodes (local numbers) of cells, and the basis functions' values at a place in each; shapes (n, k)."""
    weight = problem.space.ufl_element().basix_element.tabulate(0, place)[0, :, :, 0]
    return problem.space.dofmap.list[cell].astype(np.int64), weight


class Cells:
    """This rank's own cells, of any kind and degree, in which points are located.

    A cell is the image of its reference cell under ``x(X) = sum_k phi_k(X) x_k``. Points are looked for in DOLFINx's
    tree of bounding boxes, and their places by Newton's method, exact in one step for affine cells.

    Parameters
    ----------
    problem
        The problem whose mesh they belong to.
    tolerance
        How far from a cell a point may lie to belong to it.
    """

    def __init__(self, problem: FEM, tolerance: float) -> None:
        mesh, dim = problem.mesh, problem.dim
        self._mesh = mesh
        self._tolerance, self._dim = tolerance, dim
        self._nodes, self._x = mesh.geometry.dofmaps[0], mesh.geometry.x[:, :dim]
        self._element = mesh.ufl_domain().ufl_coordinate_element().basix_element
        kind = self._element.cell_type
        corners = basix.geometry(kind)
        self._middle = corners.mean(axis=0)
        self._normals = basix.cell.facet_outward_normals(kind)
        self._on_facets = corners[[facet[0] for facet in basix.topology(kind)[dim - 1]]]
        owned = mesh.topology.index_map(dim).size_local
        x = self._x[self._nodes[:owned].ravel()]
        self.box = np.min(x, axis=0, initial=np.inf) - tolerance, np.max(x, axis=0, initial=-np.inf) + tolerance
        self._tree = geometry.bb_tree(mesh, dim, padding=tolerance, entities=np.arange(owned, dtype=np.int32))

    def locate(self, x: Array) -> Places:
        """Return which of the points lie in these cells, one cell for each."""
        point, cell, place = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], [np.zeros((0, self._dim))]
        for start in range(0, len(x), _CHUNK):
            part = np.zeros((len(x[start : start + _CHUNK]), 3))
            part[:, : self._dim] = x[start : start + _CHUNK]
            candidates = geometry.compute_collisions_points(self._tree, part)
            numbers = np.repeat(np.arange(len(part)), np.diff(candidates.offsets))
            cells = candidates.array.astype(np.int64)
            places, distance = self._pull_back(part[numbers, : self._dim], cells)
            near = np.flatnonzero(distance <= self._tolerance)
            numbers, first = np.unique(numbers[near], return_index=True)
            point.append(start + numbers)
            cell.append(cells[near[first]])
            place.append(places[near[first]])
        found = np.concatenate(point)
        return Places(found, np.concatenate(cell), np.concatenate(place), np.zeros(len(found)))

    def nearest(self, x: Array) -> Places:
        """Return for each point, outside of the mesh, the nearest one of this rank's share of the mesh's boundary.

        Facets count as the hull of their vertices. A rank that has no boundary finds nothing.

        Raises
        ------
        ValueError
            If the mesh's cells have facets of several kinds, as prisms have.
        """
        facets, cells, corners, tree, middles = self._boundary
        if not (facets.size and len(x)):
            return Places(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, self._dim)), np.zeros(0))
        points = np.zeros((len(x), 3))
        points[:, : self._dim] = x
        which = np.searchsorted(facets, geometry.compute_closest_entity(tree, middles, self._mesh, points))
        away = np.array(
            [geometry.compute_distance_gjk(p[None], c) for p, c in zip(points, corners[which], strict=True)]
        )
        place, _ = self._pull_back((points - away)[:, : self._dim], cells[which])
        return Places(np.arange(len(x)), cells[which], place, np.linalg.norm(away, axis=1))

    @cached_property
    def _boundary(self) -> tuple[Indices, Indices, Array, Any, Any]:
        """This rank's facets of the mesh's boundary, their cells and vertices, and the trees for a search."""
        mesh, dim, kind = self._mesh, self._dim, self._element.cell_type
        if kind in (basix.CellType.prism, basix.CellType.pyramid):
            raise ValueError(f"points outside of a mesh of cells of the kind {kind.name} have no nearest one yet")
        for one, other in ((dim - 1, dim), (dim, dim - 1), (dim - 1, 0)):
            mesh.topology.create_connectivity(one, other)
        facets = np.sort(dmesh.exterior_facet_indices(mesh.topology))
        to_cells = mesh.topology.connectivity(dim - 1, dim)
        cells = np.array([to_cells.links(f)[0] for f in facets], dtype=np.int64)
        corners = mesh.geometry.x[dmesh.entities_to_geometry(mesh, dim - 1, facets)]
        tree = geometry.bb_tree(mesh, dim - 1, entities=facets)
        return facets.astype(np.int64), cells, corners, tree, geometry.create_midpoint_tree(mesh, dim - 1, facets)

    def _pull_back(self, x: Array, cells: Indices) -> tuple[Array, Array]:
        """Return the places of points, each with a cell, and how far outside of its cell each lies at least.

        That is the distance to the plane of a facet, or what Newton's method left of ``x - x(X)``.
        """
        corners = self._x[self._nodes[cells]]
        # Seen from a node of their cell, coordinates lose nothing where the mesh lies far from the origin.
        x, corners = x - corners[:, 0], corners - corners[:, :1]
        place, missed, outside = np.tile(self._middle, (len(x), 1)), np.full(len(x), np.inf), np.full(len(x), np.inf)
        left = np.arange(len(x))
        for _ in range(_ITERATIONS):
            table = self._element.tabulate(1, place[left])[..., 0]
            error = x[left] - np.einsum("pk,pkd->pd", table[0], corners[left])
            jacobian = np.einsum("jpk,pkd->pdj", table[1:], corners[left])
            # A search that has left its cell may meet a point where the cell's map folds over; it may go on anyhow.
            jacobian[np.linalg.det(jacobian) == 0] = np.eye(self._dim)
            inverse = np.linalg.inv(jacobian)
            beyond = np.einsum("pfd,fd->pf", place[left, None] - self._on_facets, self._normals)
            scale = np.linalg.norm(np.einsum("fj,pjd->pfd", self._normals, inverse), axis=-1)
            missed[left], outside[left] = np.linalg.norm(error, axis=1), np.max(beyond / scale, axis=1)
            step = np.einsum("pjd,pd->pj", inverse, error)
            place[left] = np.clip(place[left] + step, -100.0, 100.0)
            left = left[missed[left] > 0.1 * self._tolerance]
            if not left.size:
                break
        return place, np.maximum(missed, outside)
