"""Finite-element matrices: assembled by DOLFINx into its own CSR, handed to PETSc as COO values.

Native assembly is markedly faster than insertion into a PETSc matrix one cell at a time, and setting COO values is one
pass over the entries, on one rank and on many.
"""

from __future__ import annotations

from collections.abc import Sequence

from npde_fem.discretize.packing import Packed
from npde_fem.discretize.real import values_in

import numpy as np
import numpy.typing as npt
from dolfinx import fem
from mpi4py import MPI
from petsc4py import PETSc

__all__ = ["Assembler", "Diagonal", "Mass"]

Array = npt.NDArray[np.float64]


class Assembler:
    """A compiled bilinear form and the matrix it is assembled into."""

    def __init__(self, comm: MPI.Comm, form: Packed) -> None:
        self.comm, self._form, self._csr = comm, form, fem.create_matrix(form.form)

    def new_matrix(self) -> PETSc.Mat:
        """Return a PETSc matrix whose COO entries are the owned entries of the CSR matrix, in its order."""
        csr, bs = self._csr, self._csr.block_size[0]
        rows_map, columns_map = csr.index_map(0), csr.index_map(1)
        owned = rows_map.size_local
        indptr = csr.indptr[: owned + 1]
        row = np.repeat(np.arange(owned, dtype=np.int64) + rows_map.local_range[0], np.diff(indptr))
        column = columns_map.local_to_global(csr.indices[: int(indptr[-1])].astype(np.int32))
        inside, block = np.arange(bs), np.zeros((bs, bs), dtype=np.int64)
        rows = (row[:, None, None] * bs + inside[:, None] + block).ravel()
        columns = (column[:, None, None] * bs + inside[None, :] + block).ravel()
        matrix = PETSc.Mat().create(self.comm)
        matrix.setSizes(((owned * bs, None), (owned * bs, None)), bsize=bs)
        matrix.setOptionsPrefix("npde_")
        matrix.setFromOptions()
        matrix.setPreallocationCOO(rows.astype(PETSc.IntType), columns.astype(PETSc.IntType))
        return matrix

    def fill(self, matrix: PETSc.Mat, bcs: Sequence[fem.DirichletBC] = ()) -> None:
        """Assemble into a matrix made by :meth:`new_matrix`; rows and columns of ``bcs`` are the identity's."""
        csr = self._csr
        csr.set_value(0.0)
        self._form.add_to_matrix(csr, bcs)
        if self.comm.size > 1:
            csr.scatter_reverse()
        bs, owned = csr.block_size[0], csr.index_map(0).size_local
        matrix.setValuesCOO(csr.data[: int(csr.indptr[owned]) * bs * bs])


class Diagonal:
    """A mass matrix that is diagonal, by its entries at the owned dofs; it does as :class:`Mass` does.

    Parameters
    ----------
    entries
        The diagonal, values.
    constrained
        As of :class:`Mass`.
    """

    def __init__(self, entries: Array, constrained: npt.NDArray[np.int32]) -> None:
        self.entries, self._constrained = entries, constrained
        self._divisors: Array | None = None

    def refresh(self) -> None:
        """Take over changes of :attr:`entries`."""
        self._divisors = None

    def times(self, values: Array, out: Array, transposed: bool = False) -> None:
        np.multiply(self.entries, values, out=out)

    def solve(self, values: Array, out: Array, transposed: bool = False) -> bool:
        if self._divisors is None:
            self._divisors = self.entries.copy()
            self._divisors[self._constrained] = 1.0
        np.divide(values, self._divisors, out=out)
        return bool(np.isfinite(out.sum()))


class Mass:
    """The mass matrix M, and the solver of ``M x = y`` on the free dofs.

    Parameters
    ----------
    assembler
        Of the form (B u, v) or (A u, v).
    constrained
        Owned constrained dofs; their rows and columns are the identity's in :meth:`solve`, not in :meth:`times`.
    solver
        Type of PETSc's KSP, with a Jacobi preconditioner; options have the prefix ``npde_mass_``.
    """

    def __init__(self, assembler: Assembler, constrained: npt.NDArray[np.int32], solver: str) -> None:
        self._assembler, self._constrained = assembler, constrained
        self._matrix = assembler.new_matrix()
        self._x, self._y = self._matrix.createVecs()
        self._free: PETSc.Mat | None = None
        self._ksp = PETSc.KSP().create(assembler.comm)
        self._ksp.setOptionsPrefix("npde_mass_")
        self._ksp.setType(solver)
        self._ksp.getPC().setType(PETSc.PC.Type.JACOBI)
        self._ksp.setTolerances(rtol=1e-12)
        self._ksp.setFromOptions()
        self.refresh()

    def refresh(self) -> None:
        """Assemble anew, for example after a parameter has changed."""
        self._assembler.fill(self._matrix)
        if self._free is not None:
            self._free.destroy()
            self._free = None

    def copied(self) -> PETSc.Mat:
        """Return a copy of M."""
        return self._matrix.copy()

    def times(self, values: Array, out: Array, transposed: bool = False) -> None:
        """Write ``M values``, or that of its transpose, into ``out``."""
        self._x.array[:] = values
        (self._matrix.multTranspose if transposed else self._matrix.mult)(self._x, self._y)
        out[:] = values_in(self._y)

    def solve(self, values: Array, out: Array, transposed: bool = False) -> bool:
        """Write the solution of ``M out = values``, or of the transpose's, into ``out``; False if NaN is met.

        Raises
        ------
        RuntimeError
            If the solver does not converge.
        """
        if self._free is None:
            self._free = self._matrix.duplicate(copy=True)
            start, _ = self._free.getOwnershipRange()
            self._free.zeroRowsColumns(self._constrained + start, diag=1.0)
            self._ksp.setOperators(self._free)
        self._y.array[:] = values
        (self._ksp.solveTranspose if transposed else self._ksp.solve)(self._y, self._x)
        reason = self._ksp.getConvergedReason()
        if reason == PETSc.KSP.ConvergedReason.DIVERGED_NANORINF:
            return False
        if reason < 0:
            raise RuntimeError(
                f"the solve with the mass matrix did not converge (KSP reason {reason}); its solver is set by PETSc "
                "options such as -npde_mass_ksp_type"
            )
        out[:] = values_in(self._x)
        return True
