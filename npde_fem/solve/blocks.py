"""Matrices of a linear problem, and the solver of its implicit stages, for many states at once.

A block is an array of shape (count, n_owned) whose rows are values. Its transpose, in the order of Fortran, is what
PETSc calls a dense matrix: products and solves with all rows are one call. One factorisation serves all rows, and all
steps of one length where the matrix does not depend on time, so LU is the default. PETSc options with the prefix
``npde_`` rule as they do elsewhere; a Krylov method takes row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from npde_fem.discretize.real import values_in
from npde_fem.discretize.semidiscrete import Array, Part, Semidiscrete
from npde_fem.options import option_given
from npde_fem.solve.krylov import Lent, SymmetryTest, factorise, same, set_method, use_lu

import numpy as np
from petsc4py import PETSc

if TYPE_CHECKING:
    from npde_fem.discretize.fem_linearised import FEMLinearised
    from npde_fem.discretize.matrices import Assembler

__all__ = ["BlockMatrices", "Slope"]

_RTOL = 1e-12


@dataclass(frozen=True)
class Slope:
    """The derivative of a part's dR/du by one component of a number, where it is not zero.

    Attributes
    ----------
    part
        The part of R.
    number, component
        The name of the number, a control of ``lin``, and which of its components, counted flat.
    lin
        The problem's derivatives by numbers.
    """

    part: Part
    number: str
    component: int
    lin: FEMLinearised = field(compare=False)

    def assembler(self, t: float, state: Array) -> Assembler:
        """Return what assembles it, at a time."""
        (direction,) = (np.zeros(p.ufl_shape) for p in self.lin.controls if p.name == self.number)
        direction.reshape(-1)[self.component] = 1.0
        self.lin.move({self.number: direction})
        self.lin.at(t, state)
        found = self.lin.jacobian_along(self.part)
        assert found is not None
        return found


_Kind = Part | Literal["mass"] | Slope


_Block = tuple[PETSc.Mat, Array]
"""A block as PETSc sees it, and as numpy does."""


class BlockMatrices(Lent):
    """The mass matrix M, the rates' dR/du, and ``M - w dR/du`` with its solver, for blocks.

    Parameters
    ----------
    problem
        The problem.
    part
        The part of R that is implicit; its dR/du does not depend on the state.
    """

    def __init__(self, problem: Semidiscrete, part: Part) -> None:
        super().__init__(problem)
        self.part, self._count = part, 0
        self._blocks: dict[tuple[_Kind | Literal["given", "found", "stage"], bool], _Block] = {}
        self._factors: dict[tuple[_Kind, bool], PETSc.Mat] = {}
        self._in_time: dict[_Kind, bool] = {}
        self._factor_times: dict[tuple[_Kind, bool], float] = {}
        self._stage = problem.new_matrix()
        self._x, self._b = self._stage.createVecs()
        self._is_symmetric, self._symmetric = SymmetryTest(self._stage), False
        self._stage_for: tuple[float, float] | None = None
        self._state = problem.new_state()
        self._ksp = PETSc.KSP().create(problem.comm)
        self._ksp.setOptionsPrefix("npde_")
        self._ksp.setOperators(self._stage)
        self._ksp.setTolerances(rtol=_RTOL, max_it=10_000)

    def resize(self, count: int) -> None:
        """Take blocks of so many rows from now on (collective)."""
        if count != self._count:
            self._destroy_blocks()
            self._count = count

    def _destroy_blocks(self) -> None:
        for block, _ in self._blocks.values():
            block.destroy()
        self._blocks.clear()

    def _block(self, what: _Kind | Literal["given", "found", "stage"], transposed: bool = False) -> _Block:
        """Return the block that is for something; products by a matrix have one of their own, as PETSc wants it."""
        key = what, transposed
        if key not in self._blocks:
            rows = np.zeros((self._count, self.problem.n_owned), dtype=PETSc.ScalarType)
            sizes = ((self.problem.n_owned, self.problem.n_global), (None, self._count))
            block = PETSc.Mat().createDense(sizes, array=rows.T, comm=self.problem.comm)
            block.assemble()
            self._blocks[key] = block, rows
        return self._blocks[key]

    def forget(self) -> None:
        self._factor_times.clear()
        self._stage_for = None

    def destroy(self) -> None:
        self._is_symmetric.destroy()
        self._destroy_blocks()
        for matrix in self._factors.values():
            matrix.destroy()
        for thing in (self._ksp, self._stage, self._x, self._b):
            thing.destroy()

    def times(self, what: _Kind, t: float, rows: Array, out: Array, transposed: bool = False) -> None:
        """Write M, dR/du of a part or a slope of it at time t, or the transpose, times all rows into ``out``.

        Columns of constrained dofs count; their rows have no meaning.
        """
        matrix = self._factor(what, t, transposed)
        (given, given_rows), (product, found) = self._block("given"), self._block(what, transposed)
        given_rows[...] = rows
        matrix.matMult(given, product)
        out[...] = found.real

    def _factor(self, what: _Kind, t: float, transposed: bool) -> PETSc.Mat:
        key = what, transposed
        wanted = t if self._depends_on_time(what) else 0.0
        if self._factor_times.get(key) != wanted:
            if key not in self._factors:
                self._factors[key] = self._new_matrix(what, t, transposed)
            self._fill(what, t, transposed, self._factors[key])
            self._factor_times[key] = wanted
        return self._factors[key]

    def _new_matrix(self, what: _Kind, t: float, transposed: bool) -> PETSc.Mat:
        if transposed:
            return PETSc.Mat()  # made as it is filled
        if isinstance(what, Slope):
            return what.assembler(t, self._state).new_matrix()
        return self.problem.new_matrix(whole=True)

    def _fill(self, what: _Kind, t: float, transposed: bool, matrix: PETSc.Mat) -> None:
        if transposed:
            self._factor(what, t, False).transpose(matrix)
        elif isinstance(what, Slope):
            what.assembler(t, self._state).fill(matrix)
        elif what == "mass":
            self.problem.jacobian(t, self._state, 1.0, 0.0, matrix, self.part, whole=True)
        else:
            self.problem.jacobian(t, self._state, 0.0, -1.0, matrix, what, whole=True)

    def _depends_on_time(self, what: _Kind) -> bool:
        if what not in self._in_time:
            part = what.part if isinstance(what, Slope) else what
            self._in_time[what] = part != "mass" and self.problem.varies(part)[1]
        return self._in_time[what]

    def assemble(self, t: float, w: float) -> None:
        """Assemble ``M - w dR/du`` at time t, unless it is that already; a stationary problem's is ``-dR/du``."""
        wanted = t if self._depends_on_time(self.part) else 0.0
        if self._stage_for is not None and self._stage_for[0] == wanted and same(self._stage_for[1], w):
            return
        mass = 0.0 if self.problem.stationary else 1.0
        self.problem.jacobian(t, self._state, mass, w, self._stage, self.part)
        self._symmetric = self._is_symmetric()
        if self._stage_for is None:
            self._choose_method()
        self._stage_for = wanted, w

    def _choose_method(self) -> None:
        problem, ksp = self.problem, self._ksp
        if option_given("ksp_type") or option_given("pc_type"):
            set_method(ksp, problem, self._symmetric)
        else:
            # MUMPS is the faster one in space; in the plane PETSc's own LU is, which will do for matrices like M.
            like_mass = not (problem.stationary or problem.equation.is_complex or problem.equation.has_constraints)
            factorise(ksp, problem.comm, pivots=problem.dim > 2 or not like_mass)
        ksp.setFromOptions()

    def stage_transposed_times(self, rows: Array, out: Array) -> None:
        """Write the transpose of the matrix last assembled times all rows into ``out``."""
        (given, given_rows), (product, found) = self._block("given"), self._block("stage")
        given_rows[...] = rows
        (self._stage.matMult if self._symmetric else self._stage.transposeMatMult)(given, product)
        out[...] = found.real

    def solve(self, rows: Array, out: Array, transposed: bool = False) -> bool:
        """Solve with the matrix last assembled, or its transpose, for all rows; return whether that went well.

        Rows and columns of constrained dofs are the identity's.
        """
        if self._run(rows, out, transposed):
            return True
        if self.direct or self._ksp.getType() == PETSc.KSP.Type.PREONLY:
            return False
        use_lu(self._ksp, self.problem.comm)
        self.direct = True
        return self._run(rows, out, transposed)

    def _run(self, rows: Array, out: Array, transposed: bool) -> bool:
        transposed = transposed and not self._symmetric
        if self._ksp.getType() != PETSc.KSP.Type.PREONLY:
            return all(self._run_one(row, into, transposed) for row, into in zip(rows, out, strict=True))
        (given, given_rows), (solution, found) = self._block("given"), self._block("found")
        given_rows[...] = rows
        (self._ksp.matSolveTranspose if transposed else self._ksp.matSolve)(given, solution)
        out[...] = found.real
        return bool(self._ksp.getConvergedReason() >= 0)

    def _run_one(self, row: Array, out: Array, transposed: bool) -> bool:
        self._b.array[:] = row
        (self._ksp.solveTranspose if transposed else self._ksp.solve)(self._b, self._x)
        out[:] = values_in(self._x)
        return bool(self._ksp.getConvergedReason() > 0)
