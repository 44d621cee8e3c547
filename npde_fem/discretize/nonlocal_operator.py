"""Nonlocal terms on any grid or mesh: ``(N u)(x_i)`` at the nodes x_i from a state's values, and the transposed map.

The state between the nodes is what it is elsewhere: a finite-element function, on a grid the multilinear interpolant.
So on a lattice's own grid both kinds of term are exactly the convolution or matrix product they were given as, and
elsewhere of the interpolation's order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import product

from npde_fem.discretize.cells import Cells, Indices, Places, basis_functions, extent, tolerance
from npde_fem.discretize.fd import FD
from npde_fem.discretize.fem import FEM
from npde_fem.discretize.periodic import PeriodicMesh
from npde_fem.discretize.probe import Probe
from npde_fem.discretize.real import values_in
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.nonlocal_terms import Integral, Stencil
from npde_fem.parallel import alike

import numpy as np
import numpy.typing as npt
import scipy.sparse
from mpi4py import MPI
from petsc4py import PETSc
from scipy.spatial import KDTree

__all__ = ["IntegralOperator", "NonlocalOperator", "StencilOperator", "nonlocal_operator"]

_SNAP = 1e-9
"""How near to a lattice's or a grid's point, in spacings, a point counts as one with it."""

_NO_WEIGHT = 1e-13
"""Basis functions below this count as zero."""

Booleans = npt.NDArray[np.bool_]


class NonlocalOperator(ABC):
    """A nonlocal term of a problem; both maps are collective and allocate nothing."""

    @abstractmethod
    def apply(self, values: Array, out: Array) -> None:
        """Write N u at the owned nodes, of the layout of values, into ``out``; ``values`` are all owned dofs."""

    @abstractmethod
    def transpose(self, values: Array, out: Array) -> None:
        """Write the product of ``values`` with the transpose of :meth:`apply` into ``out``."""


def nonlocal_operator(problem: Semidiscrete) -> NonlocalOperator | None:
    """Return the nonlocal term of a problem's equation on its mesh or grid, None if it has none (collective).

    Raises
    ------
    TypeError, ValueError
        If the problem is neither FEM nor FD, or points of an :class:`Integral` lie outside of its domain.
    """
    term = problem.equation.nonlocal_term
    if term is None:
        return None
    if not isinstance(problem, FEM | FD):
        raise TypeError(f"nonlocal_term: FEM or FD allowed, {type(problem).__name__} given")
    return StencilOperator(problem, term) if isinstance(term, Stencil) else IntegralOperator(problem, term)


def _snapped(place: Array) -> Array:
    """Return places in spacings, those next to a point moved there."""
    near = np.round(place)
    return np.where(np.abs(place - near) <= _SNAP, near, place)


def _corners(place: Array) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the points around places in a lattice, by index, and the multilinear weights.

    Shapes (2^d, n, d) and (2^d, n).
    """
    before = np.floor(place).astype(np.int64)
    index = before + np.array(list(product((0, 1), repeat=place.shape[1])))[:, None]
    return index, np.prod(1.0 - np.abs(place - index), axis=-1)


# -- stencils --------------------------------------------------------------------------------------------------


class StencilOperator(NonlocalOperator):
    """``(N u)(x) = sum_o W_o u(x + o h)``, a sparse matrix from and to the dofs.

    A displaced point that the lattice's padding covers is brought back first. The lattice's first and last point lie
    where they were given; where the problem's domain goes on beyond them (as that does whose boundary condition the
    padding is), u is itself there too: up to one spacing with "zeros", where it falls linearly to 0 from the domain's
    end on, and up to half a spacing with "replicate". A point that still is not in the domain, as on a mesh or mask
    that fills no box, takes the value at the nearest point of the mesh's boundary, or the mask's nearest point. (Those
    of a polygon that stands for a curved boundary are the curve's to the first order of its edges.)

    Parameters
    ----------
    problem
        The problem.
    term
        Its nonlocal term.

    Raises
    ------
    ValueError
        If a displaced point lies outside of a mesh of prisms.
    """

    def __init__(self, problem: FEM | FD, term: Stencil) -> None:
        domain = _Mesh(problem) if isinstance(problem, FEM) else _Grid(problem)
        matrix = _stencil_matrix(problem, term, domain)
        index = PETSc.IntType
        csr = (matrix.indptr.astype(index), matrix.indices.astype(index), matrix.data)
        size = (problem.n_owned, problem.n_global)
        self._matrix = PETSc.Mat().createAIJ((size, size), csr=csr, comm=problem.comm)
        self._values, self._found = self._matrix.createVecs()

    def apply(self, values: Array, out: Array) -> None:
        self._values.array[:] = values
        self._matrix.mult(self._values, self._found)
        out[:] = values_in(self._found)

    def transpose(self, values: Array, out: Array) -> None:
        self._found.array[:] = values
        self._matrix.multTranspose(self._found, self._values)
        out[:] = values_in(self._values)


def _stencil_matrix(problem: FEM | FD, term: Stencil, domain: _Mesh | _Grid) -> scipy.sparse.csr_array:
    """Return this rank's rows of a stencil's matrix, columns of all ranks (collective)."""
    nodes, m = np.flatnonzero(domain.inside), problem.components
    x = problem.coordinates()[nodes, : problem.dim]
    rows, everywhere = problem.n_owned // m, problem.n_global // m
    places, shares, kernels = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros((m, m))]
    for offset in np.ndindex(*term.sizes):
        kernel = term.weights[(slice(None), slice(None), *offset)]
        if not kernel.any():
            continue
        step = (np.array(offset) - np.array(term.sizes) // 2) * np.array(term.spacing)
        y, factor = _padded(term, x + step, domain)
        found, weight = domain.interpolated(y)
        weight = weight * factor[:, None]
        point, k = np.nonzero(np.abs(weight) > _NO_WEIGHT)
        places.append(nodes[point] * everywhere + found[point, k])
        shares.append(weight[point, k])
        kernels.append(kernel)
    entries, slots = np.unique(np.concatenate(places), return_inverse=True)
    blocks, first = np.zeros((entries.size, m, m)), 0
    for share, kernel in zip(shares, kernels, strict=True):
        # One offset has no node twice in a row.
        blocks[slots[first : first + share.size]] += share[:, None, None] * kernel
        first += share.size
    counts = np.bincount(entries // everywhere, minlength=rows)
    pattern = entries % everywhere, np.concatenate([[0], np.cumsum(counts)])
    matrix = scipy.sparse.bsr_array((blocks, *pattern), (rows * m, everywhere * m)).tocsr()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def _padded(term: Stencil, y: Array, domain: _Mesh | _Grid) -> tuple[Array, Array]:
    """Return where points take their values by a stencil's padding, and what these are multiplied by."""
    lower, upper, h, n = (np.array(v) for v in (term.lower, term.upper, term.spacing, term.shape))
    place, factor = _snapped((y - lower) / h), np.ones(len(y))
    if term.padding == "circular":
        place = np.mod(place, n)
    elif term.padding == "reflect":
        place = (n - 1) - np.abs(np.mod(place, 2 * (n - 1)) - (n - 1))
    else:
        # How far the domain goes on beyond the first and the last point.
        most = 1.0 if term.padding == "zeros" else 0.5
        below, above = _snapped((lower - domain.lower) / h), _snapped((domain.upper - upper) / h)
        first = -np.clip(np.where(domain.periodic, most, below), 0.0, most)
        last = n - 1 + np.clip(np.where(domain.periodic, most, above), 0.0, most)
        if term.padding == "zeros":
            fall = np.clip(np.minimum(_share(place + 1, first + 1), _share(n - place, n - last)), 0.0, 1.0)
            factor = np.prod(fall, axis=1)
        place = np.clip(place, first, last)
    return lower + place * h, factor


def _share(left: Array, room: Array) -> Array:
    """Return which part of the way from the domain's end to the first point outside is left, 0 beyond that point."""
    return np.where(left <= 0, 0.0, left / np.where(room > 0, room, np.finfo(float).tiny ** 0.5))


class _Grid:
    """A grid as places to interpolate at.

    Attributes
    ----------
    lower, upper
        Corners of its box, shape (d,).
    periodic
        Whether each axis is periodic, and so has no end.
    inside
        Which of the owned nodes belong to the domain.
    """

    def __init__(self, problem: FD) -> None:
        layout, grid = problem.layout, problem.grid
        self._layout, self.inside = layout, problem.domain.inside
        self._spacing, self.periodic = np.array(grid.spacing), np.array(layout.periodic)
        self.lower, self.upper = np.array(grid.lower), np.array(grid.upper)
        self._mask = self._whole_mask() if problem.domain.masked else None
        self._starts = [np.concatenate([[0], np.cumsum(count)]) for count in layout.dm.getOwnershipRanges()]

    def _whole_mask(self) -> Booleans:
        """Whether points belong to the domain, of all ranks (collective)."""
        layout, whole = self._layout, np.zeros(self._layout.points, dtype=bool)
        for start, end, part in layout.comm.allgather((layout.start, layout.end, layout.on_grid(self.inside, 1))):
            whole[tuple(slice(s, e) for s, e in zip(start, end, strict=True))] = part
        return whole

    def interpolated(self, y: Array) -> tuple[Indices, Array]:
        """Return the nodes (global numbers) between which points lie, and their weights; shapes (n, 2^d).

        A point beyond the box is moved to it; weights of points outside of a mask are shared among the others.
        """
        place = _snapped((y - self.lower) / self._spacing)
        points = np.array(self._layout.points)
        place = np.where(self.periodic, place, np.clip(place, 0, points - 1))
        index, weight = _corners(place)
        # Beyond the last point stands none, but none has weight there.
        index = np.where(self.periodic, index % points, np.minimum(index, points - 1))
        if self._mask is not None:
            weight = weight * self._mask[tuple(np.moveaxis(index, -1, 0))]
            total = weight.sum(axis=0)
            if (lost := np.flatnonzero(total <= _NO_WEIGHT)).size:
                members = np.argwhere(self._mask)
                _, nearest = KDTree(members * self._spacing).query(place[lost] * self._spacing)
                index[:, lost], weight[:, lost] = members[nearest], 0.0
                weight[0, lost] = total[lost] = 1.0
            weight = weight / total
        return self._numbers(index).T, weight.T

    def _numbers(self, index: npt.NDArray[np.int64]) -> Indices:
        """PETSc's global numbers of points: blocks of ranks one after the other, in each the first axis fastest."""
        block = [np.searchsorted(starts, index[..., a], side="right") - 1 for a, starts in enumerate(self._starts)]
        first = [starts[b] for starts, b in zip(self._starts, block, strict=True)]
        size = [np.diff(starts)[b] for starts, b in zip(self._starts, block, strict=True)]
        number = np.zeros(index.shape[:-1], np.int64)
        for a in reversed(range(len(first))):
            # Along the slowest axis: whole layers of the box lie before the block, then layers of the block itself.
            number *= size[a]
            number += index[..., a] - first[a]
        for a, start in enumerate(first):
            behind = np.prod(np.stack([np.ones_like(start), *size[a + 1 :]]), axis=0)
            number += start * behind * int(np.prod(self._layout.points[:a]))
        return number


class _Mesh:
    """A mesh as places to interpolate at; attributes as of :class:`_Grid`."""

    def __init__(self, problem: FEM) -> None:
        self._problem, self._comm = problem, problem.comm
        self.inside = np.ones(problem.n_owned // problem.components, dtype=bool)
        self.lower, self.upper = extent(problem)
        self.periodic = np.zeros(problem.dim, dtype=bool)
        if isinstance(problem.mesh, PeriodicMesh):
            self.periodic[list(problem.mesh.axes)] = True
        self._cells = Cells(problem, tolerance(self.lower, self.upper))
        self._boxes = problem.comm.allgather(self._cells.box)
        self._per_cell = problem.space.dofmap.list.shape[1]

    def interpolated(self, y: Array) -> tuple[Indices, Array]:
        """Return the nodes (global numbers) of the cells in which points lie, and the basis functions there.

        Shapes (n, k) (collective). A point outside of the mesh is moved to the nearest one of its boundary.
        """
        width = self.upper - self.lower
        turns = _snapped((y - self.lower) / width)
        y = np.where(self.periodic, self.lower + (turns - np.floor(turns)) * width, y)
        within = [np.all((y >= low) & (y <= high), axis=1) for low, high in self._boxes]
        distance, node, weight = self._asked(y, within, self._cells.locate)
        lost = np.flatnonzero(np.isinf(distance))
        if self._comm.allreduce(lost.size):
            everywhere = [np.ones(lost.size, dtype=bool)] * self._comm.size
            distance[lost], node[lost], weight[lost] = self._asked(y[lost], everywhere, self._cells.nearest)
            with alike(self._comm):
                if np.isinf(distance).any():
                    k = int(np.argmax(distance))
                    raise ValueError(f"nonlocal_term: no cell found for the displaced point {tuple(y[k].tolist())}")
        return node, weight

    def _asked(self, y: Array, whom: list[Booleans], find: Callable[[Array], Places]) -> tuple[Array, Indices, Array]:
        """Let each rank find some of this rank's points; return the nearest findings, of the lowest rank among such.

        Distances are infinite where nobody found anything.
        """
        asked = [np.flatnonzero(wanted) for wanted in whom]
        questions = self._comm.alltoall([y[rows] for rows in asked])
        answers = self._comm.alltoall([self._answer(find(points)) for points in questions])
        distance = np.full(len(y), np.inf)
        node, weight = np.zeros((len(y), self._per_cell), np.int64), np.zeros((len(y), self._per_cell))
        for rows, (point, away, nodes, weights) in zip(asked, answers, strict=True):
            nearer = away < distance[rows[point]]
            at = rows[point[nearer]]
            distance[at], node[at], weight[at] = away[nearer], nodes[nearer], weights[nearer]
        return distance, node, weight

    def _answer(self, found: Places) -> tuple[Indices, Array, Indices, Array]:
        node, weight = basis_functions(self._problem, found.cell, found.place)
        index_map = self._problem.space.dofmap.index_map
        numbers = index_map.local_to_global(node.ravel().astype(np.int32)).reshape(node.shape)
        return found.point, found.distance, numbers.astype(np.int64), weight


# -- integrals -------------------------------------------------------------------------------------------------


class IntegralOperator(NonlocalOperator):
    """``(N u)(x) = sum_j K(x, y_j) u(y_j)``: values at the lattice, a dense product, interpolation to the nodes.

    Each rank has the rows of K that its own nodes need.

    Parameters
    ----------
    problem
        The problem, in whose domain all y_j must lie.
    term
        Its nonlocal term.
    """

    def __init__(self, problem: FEM | FD, term: Integral) -> None:
        m, n = term.components, len(term.points)
        self._comm, self._probe = problem.comm, Probe(problem, term.points)
        place = _snapped((problem.coordinates()[:, : problem.dim] - term.lower) / term.spacing)
        last = np.array(term.shape) - 1
        index, weight = _corners(np.clip(place, 0, last))
        points = term.order[np.ravel_multi_index(tuple(np.moveaxis(np.minimum(index, last), -1, 0)), term.shape)]
        corner, node = np.nonzero(weight > _NO_WEIGHT)
        needed, column = np.unique(points[corner, node], return_inverse=True)
        shape = (len(place), needed.size)
        scalar = scipy.sparse.csr_array((weight[corner, node], (node, column)), shape)
        rows = scipy.sparse.kron(scalar, scipy.sparse.eye_array(m), format="csr")
        kind = PETSc.IntType
        csr = (rows.indptr.astype(kind), rows.indices.astype(kind), rows.data)
        self._to_nodes = PETSc.Mat().createAIJ(rows.shape, csr=csr, comm=PETSc.COMM_SELF)
        self._at_points, self._at_nodes = self._to_nodes.createVecs()
        kernel = term.weights.transpose(1, 0, 3, 2)[needed]
        self._kernel = np.ascontiguousarray(kernel).reshape(needed.size * m, n * m)
        self._observed, self._product = np.zeros((n, m)), np.zeros(needed.size * m)

    def apply(self, values: Array, out: Array) -> None:
        self._probe.apply(values, self._observed)
        np.dot(self._kernel, self._observed.reshape(-1), out=self._product)
        self._at_points.array[:] = self._product
        self._to_nodes.mult(self._at_points, self._at_nodes)
        out[:] = values_in(self._at_nodes)

    def transpose(self, values: Array, out: Array) -> None:
        self._at_nodes.array[:] = values
        self._to_nodes.multTranspose(self._at_nodes, self._at_points)
        self._product[:] = values_in(self._at_points)
        np.dot(self._product, self._kernel, out=self._observed.reshape(-1))
        self._comm.Allreduce(MPI.IN_PLACE, self._observed)
        out[:] = 0.0
        self._probe.transpose(self._observed, out)
