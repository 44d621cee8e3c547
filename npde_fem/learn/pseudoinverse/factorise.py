"""The triangle R of a tall matrix A = QR, whose rows come batch by batch, on many ranks; Q is never formed.

``R^T R = A^T A`` without that product: singular values of R are those of A, to their last digits, and with further
columns Y beside A, ``Q^T Y`` comes along as the last columns of the triangle of [A Y].

Batches are taken in one after the other (the sequential TSQR), then the ranks' triangles are brought together on a
binary tree (the parallel one): Demmel, Grigori, Hoemmen and Langou 2012, SIAM J. Sci. Comput. 34, A206, algorithms 2
and 1 of their section 3. Both use LAPACK's ``tpqrt``, a QR of a triangle and rows below it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from scipy.linalg import lapack

__all__ = ["MOST_COLUMNS", "Triangle"]

Array = npt.NDArray[np.float64]

MOST_COLUMNS = 46340
"""LAPACK and MPI count the entries of a triangle in 32 bits."""

_BLOCK = 64
"""Columns that ``tpqrt`` treats together."""


class Triangle:
    """The triangle R of a matrix, made row by row.

    Memory is that of R and of one block of as many rows, however many rows come.

    Parameters
    ----------
    columns
        Columns of the matrix, at most :data:`MOST_COLUMNS`.

    Attributes
    ----------
    columns
        As given.
    rows
        How many rows were taken in.
    """

    def __init__(self, columns: int) -> None:
        if not 1 <= columns <= MOST_COLUMNS:
            raise ValueError(f"{columns} columns given, with targets and bias; 1 to {MOST_COLUMNS} allowed")
        self.columns, self.rows = columns, 0
        self._r = np.zeros((columns, columns), order="F")

    def add(self, rows: npt.ArrayLike) -> None:
        """Take in rows, shape (any number, columns); no communication.

        Raises
        ------
        ValueError
            If the shape is another.
        """
        given = np.asarray(rows, dtype=np.float64)
        if given.ndim != 2 or given.shape[1] != self.columns:
            raise ValueError(f"rows of shape {given.shape} given; (any number, {self.columns}) allowed")
        for start in range(0, len(given), max(self.columns, _BLOCK)):
            self._eliminate(given[start : start + max(self.columns, _BLOCK)], triangular=False)
        self.rows += len(given)

    def _eliminate(self, rows: Array, triangular: bool) -> None:
        """Make R that of [R; rows]; rows may be a triangle too."""
        below = np.array(rows, order="F")
        height = min(below.shape) if triangular else 0
        r, _, _, info = lapack.dtpqrt(
            height, min(_BLOCK, self.columns), self._r, below, overwrite_a=True, overwrite_b=True
        )
        assert info == 0
        self._r = r

    def reduced(self, comm: MPI.Comm) -> Array:
        """Return R of the rows on all ranks, the same to the last bit on every rank (collective).

        Returns
        -------
        ndarray
            Shape (least of rows and columns, columns), no entry on the diagonal negative.
        """
        step, parent = 1, None
        while step < comm.size and parent is None:
            if comm.rank & step:
                parent = comm.rank - step
            elif comm.rank + step < comm.size:
                self._take(comm, comm.rank + step)
            step *= 2
        if parent is not None:
            comm.send(self.rows, parent)
            self._exchange(comm.Send, parent)
        self.rows = comm.bcast(self.rows)
        height = min(self.rows, self.columns)
        whole = np.empty((height, self.columns))
        if comm.rank == 0:
            whole[:] = np.triu(self._r[:height])
            whole[np.diagonal(whole) < 0] *= -1.0
        comm.Bcast(whole)
        return whole

    def _take(self, comm: MPI.Comm, child: int) -> None:
        """Take in the triangle of another rank."""
        rows = comm.recv(source=child)
        other = Triangle(self.columns)
        other._exchange(comm.Recv, child)
        if self.rows:
            self._eliminate(other._r, triangular=True)
        else:
            self._r = other._r
        self.rows += rows

    def _exchange(self, move: Any, rank: int) -> None:
        """Send or receive R; its transpose is contiguous as MPI wants it."""
        move(self._r.T, rank)
