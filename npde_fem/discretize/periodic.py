"""Periodic meshes: the topology identifies two sides of a box, the geometry does not.

Function spaces, assembly and ghosts then are periodic by themselves: facets across the seam are interior ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import basix.ufl
import dolfinx.cpp
import dolfinx.graph
import dolfinx.mesh
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem, la
from dolfinx.common import IndexMap
from mpi4py import MPI
from scipy.spatial import KDTree

__all__ = ["PeriodicMesh", "periodic_mesh"]

TOLERANCE = 1e-8
"""How far two nodes may lie apart that are taken for one, in diameters of the box."""

Array = npt.NDArray[np.float64]
Cells = npt.NDArray[np.int32]
Nodes = npt.NDArray[np.int64]


class _Box(NamedTuple):
    """The box around a mesh, and how far apart nodes may lie that are taken for one."""

    lower: Array
    upper: Array
    tolerance: float


class PeriodicMesh(dolfinx.mesh.Mesh):
    """A mesh that is periodic, made by :func:`periodic_mesh`.

    Attributes
    ----------
    original
        The mesh that it was made of. Each rank owns the same cells of both.
    axes
        The axes along which it is periodic, ascending.
    original_cells
        For each cell that this rank owns its number in ``original``.
    box
        The box around it.
    """

    original: dolfinx.mesh.Mesh
    axes: tuple[int, ...]
    original_cells: Cells
    box: _Box

    def wrap(self, x: Array) -> Array:
        """Return coordinates of shape (n, 3), those on an upper side moved to the lower side that it is one with."""
        wrapped = x.copy()
        for axis in self.axes:
            seam = np.abs(x[:, axis] - self.box.upper[axis]) <= self.box.tolerance
            wrapped[seam, axis] = self.box.lower[axis]
        return wrapped

    def carry(self, source: fem.Function, target: fem.Function) -> None:
        """Interpolate a function on the original mesh into one on this mesh, or the reverse, cell by cell (collective).

        Where the two sides of an original function differ, one of them counts. The elements may differ.

        Parameters
        ----------
        source, target
            Functions of one value shape; one on this mesh, the other on the original one.
        """
        own = np.arange(self.original_cells.size, dtype=np.int32)
        back = source.function_space.mesh._cpp_object is self._cpp_object
        target.interpolate(source, *((own, self.original_cells) if back else (self.original_cells, own)))
        target.x.scatter_forward()

    def carry_tags(self, tags: dolfinx.mesh.MeshTags) -> dolfinx.mesh.MeshTags:
        """Return tags of facets of the original mesh as tags on this mesh.

        Facets on the sides that are glued are left out: they are on the boundary no more.
        """
        fdim = self.topology.dim - 1
        old = _facets_of_cells(self.original)[self.original_cells].ravel()
        new = _facets_of_cells(self)[: self.original_cells.size].ravel()
        facet_map = self.original.topology.index_map(fdim)
        tagged = np.zeros(facet_map.size_local + facet_map.num_ghosts, dtype=bool)
        value = np.zeros(tagged.size, dtype=tags.values.dtype)
        tagged[tags.indices], value[tags.indices] = True, tags.values
        was, is_exterior = (
            np.isin(facets, dolfinx.mesh.exterior_facet_indices(mesh.topology))
            for mesh, facets in ((self.original, old), (self, new))
        )
        keep = tagged[old] & (was == is_exterior)
        kept, first = np.unique(new[keep], return_index=True)
        return dolfinx.mesh.meshtags(self, fdim, kept, value[old[keep]][first])


def _facets_of_cells(mesh: dolfinx.mesh.Mesh) -> Cells:
    """Return the facets of each local cell."""
    topology, tdim = mesh.topology, mesh.topology.dim
    topology.create_connectivity(tdim, tdim - 1)
    topology.create_connectivity(tdim - 1, tdim)
    each = dolfinx.cpp.mesh.cell_num_entities(topology.cell_type, tdim - 1)
    return topology.connectivity(tdim, tdim - 1).array.reshape(-1, each)


class _Side(NamedTuple):
    """One side of a box: global numbers and coordinates of its nodes, and how many facets it has."""

    nodes: Nodes
    x: Array
    facets: int


def periodic_mesh(mesh: dolfinx.mesh.Mesh, axes: int | Iterable[int]) -> PeriodicMesh:
    """Return a mesh whose sides across some axes are identified (collective).

    Cells, their coordinates and their owners remain; vertices, edges and facets of the upper side become those of the
    lower one. At the seam the coordinate jumps: it is that of the cell from which it is seen.

    Parameters
    ----------
    mesh
        A mesh of any cell, of any degree, which between its two extremes along each of the axes looks the same at
        either: a box, or a prism on any base. If it is periodic already, the axes add to those it has.
    axes
        One axis, or several: 0 for x, 1 for y, 2 for z.

    Returns
    -------
    PeriodicMesh
        ``mesh`` itself if it was made by this function and is periodic along all the axes. Otherwise a new one, which
        has ghost cells if ``mesh`` has some (and in 1D).

    Raises
    ------
    TypeError
        If ``mesh`` is no DOLFINx mesh, or an axis no integer.
    ValueError
        If an axis is none of the mesh's; if the mesh has no flat side there, or its two sides do not match, node by
        node and facet by facet (tolerance: 1e-8 diameters); if a cell is half as wide as the mesh or more, as with
        fewer than three cells from side to side.

    Notes
    -----
    The new topology is built by DOLFINx from cells with the vertices of either side given one number (as scifem's
    ``create_periodic_mesh`` does); the geometry is the old one, its nodes numbered anew on each rank.
    """
    if not isinstance(mesh, dolfinx.mesh.Mesh):
        raise TypeError(f"mesh must be a dolfinx.mesh.Mesh, not {type(mesh).__name__}")
    wanted = _checked_axes(mesh, axes)
    if isinstance(mesh, PeriodicMesh):
        if wanted <= set(mesh.axes):
            return mesh
        return periodic_mesh(mesh.original, wanted | set(mesh.axes))
    if mesh.topology.dim != mesh.geometry.dim:
        raise ValueError(f"mesh: topological dimension {mesh.topology.dim} in {mesh.geometry.dim} dimensions given")
    return _glued(mesh, tuple(sorted(wanted)))


def _checked_axes(mesh: dolfinx.mesh.Mesh, axes: Any) -> set[int]:
    given = list(axes) if isinstance(axes, Iterable) else [axes]
    dim = mesh.geometry.dim
    for axis in given:
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(f"Periodic axes: integers allowed, {axis!r} given")
        if not 0 <= axis < dim:
            raise ValueError(f"Periodic: axis {axis} given; the mesh has axes 0 to {dim - 1}")
    return {int(axis) for axis in given}


def _glued(mesh: dolfinx.mesh.Mesh, axes: tuple[int, ...]) -> PeriodicMesh:
    """Make the periodic mesh."""
    comm, tdim, geometry = mesh.comm, mesh.topology.dim, mesh.geometry
    owned = mesh.topology.index_map(tdim).size_local
    local = geometry.dofmaps[0][:owned]
    nodes = geometry.index_map().local_to_global(local.ravel()).reshape(local.shape)
    box = _box(mesh)
    corners = dolfinx.cpp.mesh.cell_num_vertices(mesh.topology.cell_type)
    vertices = _identified(mesh, nodes[:, :corners], axes, box)
    # DOLFINx makes the topology; the geometry that comes with it, of merged nodes, is of no use.
    element = basix.ufl.element("Lagrange", mesh.basix_cell().name, 1, shape=(tdim,))
    x = geometry.x[: geometry.index_map().size_local, :tdim].copy()
    topology = dolfinx.mesh.create_mesh(comm, vertices, element, x, partitioner=_stay(mesh)).topology
    cell_map = topology.index_map(tdim)
    original = topology.original_cell_index[: cell_map.size_local] - (comm.scan(owned) - owned)
    rows = la.vector(cell_map, local.shape[1], dtype=np.int64)
    rows.array[: nodes.size] = nodes[original].ravel()
    rows.scatter_forward()
    made = dolfinx.cpp.mesh.Mesh_float64(
        comm, topology._cpp_object, _geometry(geometry, rows.array.reshape(-1, local.shape[1]))
    )
    periodic = PeriodicMesh(made, ufl.Mesh(mesh.ufl_domain().ufl_coordinate_element()))
    periodic.name = mesh.name
    periodic.original, periodic.axes, periodic.box = mesh, axes, box
    periodic.original_cells = original.astype(np.int32)
    closures = _boundary(periodic)
    for axis in axes:
        bounds = box.lower[axis], box.upper[axis]
        left = sum(_side(periodic, closures, axis, bound, box.tolerance).facets for bound in bounds)
        if left:
            raise ValueError(f"mesh: the nodes of its sides across axis {axis} match, but {left} facets there do not")
    return periodic


def _box(mesh: dolfinx.mesh.Mesh) -> _Box:
    """Return the box around a mesh (collective)."""
    x = mesh.geometry.x[:, : mesh.geometry.dim]
    lower, upper = np.min(x, axis=0, initial=np.inf), np.max(x, axis=0, initial=-np.inf)
    mesh.comm.Allreduce(MPI.IN_PLACE, lower, op=MPI.MIN)
    mesh.comm.Allreduce(MPI.IN_PLACE, upper, op=MPI.MAX)
    return _Box(lower, upper, TOLERANCE * float(np.linalg.norm(upper - lower)))


def _identified(mesh: dolfinx.mesh.Mesh, vertices: Nodes, axes: tuple[int, ...], box: _Box) -> Nodes:
    """Return the vertices of cells with those of the upper sides replaced by their partners (collective)."""
    cells = mesh.geometry.x[mesh.geometry.dofmaps[0][: vertices.shape[0]]]
    widths = np.max(np.ptp(cells, axis=1), axis=0, initial=0.0)
    mesh.comm.Allreduce(MPI.IN_PLACE, widths, op=MPI.MAX)
    closures = _boundary(mesh)
    for axis in axes:
        extent = box.upper[axis] - box.lower[axis]
        # Two vertices then have one edge at most between them, across the seam or not.
        if widths[axis] > 0.5 * extent - box.tolerance:
            raise ValueError(
                f"mesh: a cell is {widths[axis]:.6g} wide along periodic axis {axis}, the mesh {extent:.6g}; at least "
                "three cells from side to side, each narrower than half the mesh, allowed"
            )
        low, high = (_side(mesh, closures, axis, bound[axis], box.tolerance) for bound in (box.lower, box.upper))
        partner = _matched(low, high, axis, box.tolerance)
        place = np.minimum(np.searchsorted(high.nodes, vertices), high.nodes.size - 1)
        vertices = np.where(high.nodes[place] == vertices, partner[place], vertices)
    return vertices


def _boundary(mesh: dolfinx.mesh.Mesh) -> Cells:
    """Return the geometry's nodes on each facet of the boundary that this rank has."""
    tdim = mesh.topology.dim
    mesh.topology.create_connectivity(tdim - 1, tdim)
    mesh.topology.create_connectivity(tdim, tdim - 1)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    return dolfinx.mesh.entities_to_geometry(mesh, tdim - 1, facets)


def _side(mesh: dolfinx.mesh.Mesh, closures: Cells, axis: int, bound: float, tolerance: float) -> _Side:
    """Collect the nodes of the boundary's facets that lie in a plane across an axis, the same on all ranks."""
    x, dim = mesh.geometry.x, mesh.geometry.dim
    flat = np.all(np.abs(x[closures, axis] - bound) <= tolerance, axis=1)
    local = np.unique(closures[flat])
    numbers = mesh.geometry.index_map().local_to_global(local)
    parts = mesh.comm.allgather((numbers, x[local, :dim], int(np.count_nonzero(flat))))
    nodes, first = np.unique(np.concatenate([part[0] for part in parts]), return_index=True)
    return _Side(nodes, np.concatenate([part[1] for part in parts])[first], sum(part[2] for part in parts))


def _matched(low: _Side, high: _Side, axis: int, tolerance: float) -> Nodes:
    """Return the lower side's node that lies across from each of the upper side's."""
    if not (low.facets and high.facets):
        raise ValueError(
            f"mesh: it has no flat sides across axis {axis}: {low.facets} facets of its boundary lie at its lower end, "
            f"{high.facets} at its upper; a box, not periodic along that axis yet, allowed"
        )
    across = np.arange(low.x.shape[1]) != axis
    for one, other in ((high, low), (low, high)):
        distance, partner = KDTree(one.x * across).query(other.x * across)
        k = int(np.argmax(distance))
        if distance[k] > tolerance:
            raise ValueError(
                f"mesh: its sides across axis {axis} do not match: the node at {tuple(other.x[k].tolist())} is "
                f"{distance[k]:.3g} off the nearest on the side across; {tolerance:.3g} allowed"
            )
    return low.nodes[partner]  # of the last search, the upper side's


def _stay(mesh: dolfinx.mesh.Mesh) -> Any:
    """Return a partitioner that leaves cells where they are; a mesh with ghosts gets those across facets."""
    cell_map = mesh.topology.index_map(mesh.topology.dim)
    # In 1D DOLFINx takes what lies between ranks for the boundary unless there are ghosts.
    ghosted = mesh.comm.allreduce(cell_map.num_ghosts) > 0 or mesh.topology.dim == 1
    counts = np.array(mesh.comm.allgather(cell_map.size_local))

    def partition(comm: Any, parts: int, kinds: Any, cells: Any) -> Any:
        rank, count = mesh.comm.rank, counts[mesh.comm.rank]
        owner = np.column_stack([np.arange(count), np.full(count, rank)])
        if ghosted:
            graph = dolfinx.mesh.build_dual_graph(mesh.comm, kinds, cells, 2)
            ranks = np.searchsorted(np.cumsum(counts), graph.array, side="right")
            pairs = np.column_stack([np.repeat(np.arange(count), np.diff(graph.offsets)), ranks])
            pairs = np.unique(pairs[ranks != rank], axis=0)
            owner = np.concatenate([owner, pairs])
            # The owner of a cell comes first.
            owner = owner[np.argsort(owner[:, 0], kind="stable")]
        offsets = np.searchsorted(owner[:, 0], np.arange(count + 1)).astype(np.int32)
        return dolfinx.graph.adjacencylist(owner[:, 1].astype(np.int32), offsets)._cpp_object

    return partition


def _geometry(old: dolfinx.mesh.Geometry, rows: Nodes) -> Any:
    """Return a geometry with the nodes and owners of an old one for cells whose nodes have the given old numbers."""
    old_map = old.index_map()
    comm, owned = old_map.comm, old_map.size_local
    start, end = old_map.local_range
    ghosts = np.unique(rows[(rows < start) | (rows >= end)])
    ends = np.cumsum(comm.allgather(owned))
    owners = np.searchsorted(ends, ghosts, side="right").astype(np.int32)
    index_map = IndexMap(comm, owned, ghosts, owners, 0)
    local = np.where((rows >= start) & (rows < end), rows - start, owned + np.searchsorted(ghosts, rows)).astype(
        np.int32
    )
    x, numbers = la.vector(index_map, 3), la.vector(index_map, 1, dtype=np.int64)
    x.array[: 3 * owned] = old.x[:owned].ravel()
    numbers.array[:owned] = old.input_global_indices[:owned]
    x.scatter_forward()
    numbers.scatter_forward()
    return dolfinx.cpp.mesh.Geometry_float64(
        index_map, local, old.cmaps[0]._cpp_object, x.array.reshape(-1, 3)[:, : old.dim].copy(), numbers.array.copy()
    )
