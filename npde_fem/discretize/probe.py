"""Values of a state at points: the linear map ``B`` from dofs to observations, and its transpose."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

from npde_fem.discretize.cells import Cells, Indices, basis_functions, extent, tolerance
from npde_fem.discretize.data import finite
from npde_fem.discretize.fd import FD
from npde_fem.discretize.fem import FEM
from npde_fem.discretize.real import values_in
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.parallel import alike
from npde_fem.parameter import as_numbers

import numpy as np
import numpy.typing as npt
import scipy.sparse
from mpi4py import MPI
from petsc4py import PETSc

__all__ = ["Probe"]


class Probe:
    """The linear map ``B`` from the values of a state to its components at points.

    With FEM, ``(B u)_i = sum_j phi_j(x_i) u_j``: the state itself, exact for polynomials of the element's degree. With
    FD it is interpolated multilinearly between the ``2^d`` grid points around ``x_i``, error O(h^2); on a masked grid
    between those of them that belong to the mask, with their weights divided by their sum.

    Each rank holds the columns of its own dofs, so that both maps are local sparse products and neither needs ghosts.

    Parameters
    ----------
    problem
        FEM or FD.
    points
        The same on every rank; shape ``(n, d)``, ``(n, 3)`` with zeros behind the d-th column, or ``(n,)`` for d = 1.
        A point on the boundary, or within 1e-10 diameters of it, is inside. A masked grid consists of the cells
        centred on its points, which reach half a spacing beyond them. Across a periodic axis the box ends too: a
        point beyond is outside.

    Attributes
    ----------
    points
        The points, shape ``(n, d)``.
    components
        Components m of the state.
    n_owned
        Dofs of the state that this rank owns.

    Raises
    ------
    TypeError
        If the problem is neither FEM nor FD, or points are no numbers.
    ValueError
        If points have another shape, are not finite, differ between ranks, or one lies outside of the domain. All
        errors are raised on every rank.

    Notes
    -----
    Making a probe is collective. A point's cell is found in DOLFINx's tree of bounding boxes, and its place therein by
    Newton's method, exact in one step for affine cells.
    """

    def __init__(self, problem: Semidiscrete, points: Any) -> None:
        if not isinstance(problem, FEM | FD):
            raise TypeError(f"problem: FEM or FD allowed, {problem!r} given")
        self.comm, self.components, self.n_owned = problem.comm, problem.components, problem.n_owned
        self.points = _checked(problem, points)
        entries = _in_mesh(problem, self.points) if isinstance(problem, FEM) else _in_grid(problem, self.points)
        nodes = problem.n_owned // self.components
        weights = scipy.sparse.csr_array((entries.weight, (entries.point, entries.node)), (len(self.points), nodes))
        rows = scipy.sparse.kron(weights, scipy.sparse.eye_array(self.components), format="csr")
        index = PETSc.IntType
        csr = (rows.indptr.astype(index), rows.indices.astype(index), rows.data)
        self._matrix = PETSc.Mat().createAIJ(rows.shape, csr=csr, comm=PETSc.COMM_SELF)
        self._values, self._observed = self._matrix.createVecs()

    def apply(self, values: Array, out: Array | None = None) -> Array:
        """Return ``B values``, the same on every rank (collective).

        Parameters
        ----------
        values
            This rank's owned dofs, shape ``(n_owned,)``.
        out
            Contiguous float64 array of shape ``(n, m)`` for the result; a new one by default.

        Returns
        -------
        ndarray
            The state's components at the points, shape ``(n, m)``.
        """
        out = np.empty((len(self.points), self.components)) if out is None else out
        self._values.array[:] = values
        self._matrix.mult(self._values, self._observed)
        out[:] = values_in(self._observed).reshape(out.shape)
        self.comm.Allreduce(MPI.IN_PLACE, out)
        return out

    def transpose(self, weights: Array, out: Array) -> None:
        """Add ``B^T weights`` to ``out`` (no communication).

        Parameters
        ----------
        weights
            One weight a point and component, the same on every rank, shape ``(n, m)``.
        out
            This rank's owned dofs, shape ``(n_owned,)``.
        """
        self._observed.array[:] = np.ravel(weights)
        self._matrix.multTranspose(self._observed, self._values)
        out += values_in(self._values)


class _Entries(NamedTuple):
    """Entries of ``B`` for one component: a point, a node that this rank owns, and the node's weight."""

    point: Indices
    node: Indices
    weight: Array


def _checked(problem: FEM | FD, points: Any) -> Array:
    """Return the points as float64 array of shape (n, d), or raise alike on all ranks."""
    dim, comm = problem.dim, problem.comm
    with alike(comm):
        x = as_numbers("points", points)
        shape = x.shape
        if dim == 1 and x.ndim == 1:
            x = x[:, None]
        if x.ndim != 2 or x.shape[1] not in (dim, 3) or not len(x):
            allowed = " or ".join(["(n,)"] * (dim == 1) + [f"(n, {dim})"] + ["(n, 3)"] * (dim < 3))
            raise ValueError(f"points: shape {shape} given; {allowed} with n from 1 on allowed")
        finite("points", x)
        if np.any(x[:, dim:]):
            raise ValueError(f"points: a problem in {dim}D needs zeros as coordinates {dim + 1} to 3")
    first = comm.bcast(x)
    with alike(comm):
        if not np.array_equal(x, first):
            raise ValueError("points: the ranks were given unlike points; the same on all allowed")
    return np.ascontiguousarray(x[:, :dim])


def _refuse_outside(x: Array, inside: npt.NDArray[np.bool_], domain: str, lower: Array, upper: Array) -> None:
    """Raise ValueError for the first point that is not inside; ``inside`` is the same on all ranks."""
    if not inside.all():
        k = int(np.argmin(inside))
        raise ValueError(
            f"points: point {k} at {tuple(x[k].tolist())} lies outside of the {domain}, whose box extends from "
            f"{tuple(lower.tolist())} to {tuple(upper.tolist())}"
        )


# -- grids -----------------------------------------------------------------------------------------------------


def _in_grid(problem: FD, x: Array) -> _Entries:
    """Return the weights of multilinear interpolation of this rank's points (collective)."""
    grid, layout = problem.grid, problem.layout
    masked, periodic, h = grid.mask is not None, np.array(layout.periodic), np.array(grid.spacing)
    reach = np.where(masked & ~periodic, 0.5 * h, 0.0)
    lower, upper = np.array(grid.lower) - reach, np.array(grid.upper) + reach
    slack = tolerance(lower, upper)
    clipped = np.clip(x, lower, upper)
    place = (clipped - grid.lower) / h
    before = np.floor(place).astype(np.int64)
    found: list[_Entries] = []
    covered, total = np.zeros(len(x), dtype=bool), np.zeros(len(x))
    for corner in product((0, 1), repeat=grid.dim):
        index = before + corner
        distance = np.abs(place - index)
        near = np.all(distance <= 0.5 + slack / h, axis=1)
        local = np.where(periodic, index % layout.points, index) - layout.start
        point = np.flatnonzero(np.all((local >= 0) & (local < layout.local), axis=1))
        node = np.ravel_multi_index(tuple(local[point, ::-1].T), layout.flat_shape)
        within = problem.domain.inside[node]
        point, node = point[within], node[within]
        weight = np.prod(1.0 - distance[point], axis=1)
        covered[point] |= near[point]
        total[point] += weight
        found.append(_Entries(point, node, weight))
    for array, op in ((covered, MPI.LOR), (total, MPI.SUM)):
        problem.comm.Allreduce(MPI.IN_PLACE, array, op=op)
    covered &= np.all(np.abs(x - clipped) <= slack, axis=1)
    _refuse_outside(x, covered, "grid's mask" if masked else "grid", lower, upper)
    point, node, weight = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return _Entries(point, node, weight / total[point])


# -- meshes ----------------------------------------------------------------------------------------------------


def _in_mesh(problem: FEM, x: Array) -> _Entries:
    """Return the values of this rank's basis functions at the points (collective)."""
    comm, dofmap = problem.comm, problem.space.dofmap
    lower, upper = extent(problem)
    point, cell, place, _ = Cells(problem, tolerance(lower, upper)).locate(x)
    owner = np.full(len(x), comm.size)
    owner[point] = comm.rank
    comm.Allreduce(MPI.IN_PLACE, owner, op=MPI.MIN)
    _refuse_outside(x, owner < comm.size, "mesh", lower, upper)
    own = owner[point] == comm.rank
    point, cell, place = point[own], cell[own], place[own]
    node, weight = basis_functions(problem, cell, place)
    return _sent_to_owners(dofmap.index_map, _Entries(np.repeat(point, node.shape[1]), node.ravel(), weight.ravel()))


def _sent_to_owners(index_map: Any, entries: _Entries) -> _Entries:
    """Give every entry, whose node is local to this rank, to the rank that owns the node (collective)."""
    comm, owned = index_map.comm, index_map.size_local
    owner = np.concatenate([np.full(owned, comm.rank), index_map.owners])[entries.node]
    node = index_map.local_to_global(entries.node.astype(np.int32))
    everything = _Entries(entries.point, node, entries.weight)
    parts = comm.alltoall([tuple(column[owner == rank] for column in everything) for rank in range(comm.size)])
    point, node, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Entries(point, node - index_map.local_range[0], weight)
