"""Which facets of a mesh a boundary condition holds on: by coordinates, by tags, or all of the boundary."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from npde_fem.discretize.data import select
from npde_fem.discretize.periodic import PeriodicMesh
from npde_fem.parallel import alike

import dolfinx.cpp
import numpy as np
import numpy.typing as npt
from dolfinx import mesh as dmesh

__all__ = ["BoundaryFacets"]


class BoundaryFacets:
    """The facets of a mesh, to be selected.

    Parameters
    ----------
    mesh
        The mesh.
    tags
        Tags that integer markers refer to, on the mesh, or on the one that a periodic mesh was made of.

    Raises
    ------
    ValueError
        If the tags are those of another mesh.
    """

    def __init__(self, mesh: dmesh.Mesh, tags: dmesh.MeshTags | None) -> None:
        self._mesh, self._comm = mesh, mesh.comm
        if tags is not None and tags.topology != mesh.topology._cpp_object:
            if not (isinstance(mesh, PeriodicMesh) and tags.topology == mesh.original.topology._cpp_object):
                raise ValueError("facet_tags: tags on another mesh given; tags on the mesh of the space allowed")
            tags = mesh.carry_tags(tags)
        self._tags = tags

    def select(self, label: str, where: Any) -> npt.NDArray[np.int32]:
        """Return the facets of this rank that a marker selects (collective).

        Tags may also select interior facets, for Dirichlet data only.

        Parameters
        ----------
        label
            Kind of the condition, named in errors.
        where
            None (the whole boundary), a callable on coordinates (3, n), or one or more tags.

        Raises
        ------
        TypeError, ValueError
            If the marker fails, or selects nothing on any rank.
        """
        mesh, fdim = self._mesh, self._mesh.topology.dim - 1
        mesh.topology.create_connectivity(fdim, fdim + 1)
        mesh.topology.create_connectivity(fdim + 1, fdim)
        if where is None:
            facets = dmesh.exterior_facet_indices(mesh.topology)
        elif callable(where):
            facets = self._marked(label, where)
        else:
            facets = self._tagged(label, where)
            if label != "Dirichlet":
                facets = np.intersect1d(facets, dmesh.exterior_facet_indices(mesh.topology))
        if not self._comm.allreduce(facets.size):
            axes = f", periodic along axes {list(mesh.axes)}" if isinstance(mesh, PeriodicMesh) else ""
            raise ValueError(f"{label}: the marker selects nothing on the boundary of the mesh{axes}")
        return facets.astype(np.int32)

    def _marked(self, label: str, where: Callable) -> npt.NDArray[np.int32]:
        """Facets of the boundary whose vertices all satisfy a marker.

        Unlike DOLFINx, which knows one place of a vertex, this asks for the coordinates that the facet's own cell has:
        at the seam of a periodic mesh a vertex has several.
        """
        mesh, fdim = self._mesh, self._mesh.topology.dim - 1
        facets = dmesh.exterior_facet_indices(mesh.topology)
        corners = dolfinx.cpp.mesh.cell_num_vertices(
            dolfinx.cpp.mesh.cell_entity_type(mesh.topology.cell_type, fdim, 0)
        )
        nodes, place = np.unique(dmesh.entities_to_geometry(mesh, fdim, facets)[:, :corners], return_inverse=True)
        with alike(self._comm):
            chosen = select(label, where, mesh.geometry.x[nodes].T)
        return facets[chosen[place].reshape(-1, corners).all(axis=1)]

    def _tagged(self, label: str, where: Any) -> npt.NDArray[np.int32]:
        try:
            tags = [operator.index(tag) for tag in np.atleast_1d(where)]
        except TypeError as error:
            raise TypeError(
                f"{label}: where must be None, a callable on coordinates, or tags (integers), not {where!r}"
            ) from error
        if self._tags is None:
            raise ValueError(f"{label}: marker {where!r} is a tag, but FEM was given no facet_tags")
        found = np.concatenate([self._tags.find(tag) for tag in tags])
        if not self._comm.allreduce(found.size):
            parts = self._comm.allgather(np.unique(self._tags.values).tolist())
            raise ValueError(
                f"{label}: tag {where!r} selects nothing; facet_tags has {sorted({v for part in parts for v in part})}"
            )
        return found
