"""Linear solvers of forward and adjoint equations: which Krylov method, and what to do when it fails.

All listen to PETSc options with the prefix ``npde_``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Any, Protocol, Self

from npde_fem.discretize.real import values_in
from npde_fem.discretize.semidiscrete import Array, Part, Semidiscrete
from npde_fem.options import option_given
from npde_fem.parallel import warn_once
from npde_fem.solve.preconditioner import ShiftedLaplacian, preconditioned

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

__all__ = [
    "Lent",
    "LinearSolver",
    "StageMatrix",
    "SymmetryTest",
    "factorise",
    "options_now",
    "same",
    "set_method",
    "use_lu",
]

_RTOL = 1e-11
_LAGGED_ITERATIONS = 10


def options_now() -> tuple:
    """Return all PETSc options that solvers here listen to, as a key: a solver made under others is another one."""
    return tuple(sorted((k, v) for k, v in PETSc.Options().getAll().items() if k.startswith("npde_")))


def same(one: float, other: float) -> bool:
    """Whether two coefficients differ by no more than the round-off of step lengths."""
    return abs(one - other) <= 1e-12 * max(abs(one), abs(other))


def set_method(ksp: PETSc.KSP, problem: Semidiscrete, symmetric: bool) -> None:
    """Choose the linear solver: LU for complex states and constraints, whose matrices defeat simple Krylov methods.

    Otherwise a Krylov method and a preconditioner; its residual is measured in the norm that Newton's method uses.
    """
    stationary = problem.stationary
    hard = problem.equation.is_complex or (problem.equation.has_constraints and not stationary)
    if hard and not (option_given("ksp_type") or option_given("pc_type")):
        factorise(ksp, problem.comm)
        return
    unsymmetric = PETSc.KSP.Type.GMRES if stationary else PETSc.KSP.Type.BCGS
    ksp.setType(PETSc.KSP.Type.CG if symmetric else unsymmetric)
    if not option_given("ksp_type"):  # another method may not know that norm
        ksp.setPCSide(PETSc.PC.Side.LEFT if symmetric else PETSc.PC.Side.RIGHT)
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
    if not option_given("pc_type"):
        ksp.getPC().setType(PETSc.PC.Type.GAMG if stationary else PETSc.PC.Type.JACOBI)


def use_lu(ksp: PETSc.KSP, comm: MPI.Comm) -> None:
    """Replace a linear solver by an LU factorisation (MUMPS where PETSc has it), with a warning."""
    warn_once(
        comm,
        f"the iterative linear solver ({ksp.getType()}, {ksp.getPC().getType()}) failed; LU takes its place. "
        "Choose a solver by PETSc options such as -npde_pc_type gamg",
        RuntimeWarning,
    )
    factorise(ksp, comm)


def factorise(ksp: PETSc.KSP, comm: MPI.Comm, pivots: bool = True) -> None:
    """Make a linear solver one by LU factorisation: MUMPS where PETSc has it; PETSc's own has no pivots."""
    ksp.setType(PETSc.KSP.Type.PREONLY)
    ksp.setPCSide(PETSc.PC.Side.LEFT)
    ksp.setNormType(PETSc.KSP.NormType.NONE)
    ksp.getPC().setType(PETSc.PC.Type.LU)
    if comm.size > 1 or (pivots and PETSc.Sys.hasExternalPackage("mumps")):
        ksp.getPC().setFactorSolverType(PETSc.Mat.SolverType.MUMPS)


def conjugate(vector: PETSc.Vec) -> None:
    """Conjugate a vector of real pairs."""
    vector.array[1::2] *= -1.0


class SymmetryTest:
    """Whether a matrix is symmetric: compares x.Ay with y.Ax for two fixed rough vectors."""

    def __init__(self, matrix: PETSc.Mat) -> None:
        self._matrix = matrix
        self._x, self._y = matrix.createVecs()
        self._z = self._x.duplicate()
        start, end = self._x.getOwnershipRange()
        index = np.arange(start, end, dtype=np.float64)
        self._x.array[:] = np.sin(1.0 + 12.9898 * index) + 0.5
        self._y.array[:] = np.cos(2.0 + 78.233 * index) + 0.25

    def __call__(self) -> bool:
        x, y, z = self._x, self._y, self._z
        self._matrix.mult(y, z)
        one = x.dot(z)
        scale = x.norm() * z.norm()
        self._matrix.mult(x, z)
        return bool(abs(one - y.dot(z)) <= 1e-12 * max(scale, 1e-300))

    def up_to_conjugation(self) -> bool:
        """Whether the matrix, of real pairs, is that of a symmetric complex one: A^T = C A C, C the conjugation."""
        x, y, z = self._x, self._y, self._z
        self._matrix.mult(y, z)
        one = x.dot(z)
        scale = x.norm() * z.norm()
        for vector in (x, y):
            conjugate(vector)
        self._matrix.mult(x, z)
        mirrored = abs(one - y.dot(z)) <= 1e-12 * max(scale, 1e-300)
        for vector in (x, y):
            conjugate(vector)
        return bool(mirrored)

    def destroy(self) -> None:
        """Free the vectors."""
        for vector in (self._x, self._y, self._z):
            vector.destroy()


class Lent(ABC):
    """A solver that a problem keeps: who needs it borrows it, and gives it back for the next one.

    Parameters
    ----------
    problem
        The problem.

    Attributes
    ----------
    direct
        Whether LU has taken the place of the iterative method.
    """

    def __init__(self, problem: Semidiscrete) -> None:
        self.problem, self.direct = problem, False
        self._key: tuple[Hashable, ...] = ()

    @classmethod
    def borrow(cls, problem: Semidiscrete, *what: Any) -> Self:
        """Return a solver that was given back, as good as new, or make one (collective).

        ``what`` are the further arguments of its making, by which solvers of this kind differ.
        """
        key = (cls, *what, options_now())
        kept = problem.solvers.pop(key, None)
        if kept is None:
            PETSc.garbage_cleanup(problem.comm)
            kept = cls(problem, *what)
            kept._key = key
        else:
            kept.problem = problem
            kept.forget()
        return kept

    def give_back(self) -> None:
        """Leave the solver with the problem; one that had to turn to LU, or that is there already, is freed."""
        if self.direct or self._key in self.problem.solvers:
            self.destroy()
        else:
            self.problem.solvers[self._key] = self
            # The problem owns it now: both must go when the last user of the problem does.
            del self.problem

    @abstractmethod
    def forget(self) -> None:
        """Forget all that an earlier use left."""

    @abstractmethod
    def destroy(self) -> None:
        """Free the PETSc objects now, on all ranks together, rather than when the garbage collector comes by."""


class StageMatrix(Protocol):
    """Solves with the matrix of a stage, ``A = M - w R'(u)``: see :class:`LinearSolver`."""

    def assemble(self, t: float, state: Array, w: float) -> None:
        """Assemble A at a state, unless it is that already."""

    def transposed_times(self, values: Array, out: Array) -> None:
        """Write ``A^T values`` into ``out``; free dofs count only."""

    def solve(self, right: Array, out: Array, transposed: bool) -> None:
        """Solve ``A out = right``, or with the transpose; ``out`` holds the first guess."""

    def give_back(self) -> None:
        """Leave the solver to the next one."""


class LinearSolver(Lent):
    """Solves with ``A = M - w R'(u)`` and with its transpose; a stationary problem's A is ``-R'(u)``.

    With inertia M is a sum of both mass matrices.

    Parameters
    ----------
    problem
        The semidiscrete problem.
    part
        The part of R that is implicit.
    preconditioner
        What the Krylov method is preconditioned by; the one that fits the matrix by default.
    """

    def __init__(self, problem: Semidiscrete, part: Part, preconditioner: ShiftedLaplacian | None = None) -> None:
        super().__init__(problem)
        self.part = part
        self._with_state, self._with_time = problem.varies(part)
        self._shifted = None if preconditioner is None else preconditioner.of(problem)
        self._matrix = problem.new_matrix()
        self._x, self._b = self._matrix.createVecs()
        self._is_symmetric = SymmetryTest(self._matrix)
        self._symmetric = self._mirrored = False
        self._assembled_for: tuple[float, float, float] | None = None
        ksp = PETSc.KSP().create(problem.comm)
        ksp.setOptionsPrefix("npde_")
        ksp.setOperators(self._matrix, None if self._shifted is None else self._shifted.matrix)
        ksp.setTolerances(rtol=_RTOL, max_it=10_000)
        ksp.setInitialGuessNonzero(True)
        self._ksp = ksp
        self._configured = self._lagged = False

    def forget(self) -> None:
        self._assembled_for, self._configured = None, False

    def destroy(self) -> None:
        self._is_symmetric.destroy()
        if self._shifted is not None:
            self._shifted.destroy()
        for thing in (self._ksp, self._matrix, self._x, self._b):
            thing.destroy()

    def assemble(self, t: float, state: Array, w: float, damping: float = 1.0, inertia: float = 0.0) -> None:
        """Assemble A at a state, unless it does not depend on what has changed; M = ``damping M + inertia M_A``."""
        wanted = (t if self._with_time else 0.0, w, damping)
        if self._assembled_for is not None and not self._with_state:
            before, known_w, known_damping = self._assembled_for
            if before == wanted[0] and same(known_w, w) and same(known_damping, damping):
                return
        damping = 0.0 if self.problem.stationary else damping
        self.problem.jacobian(t, state, damping, w, self._matrix, self.part, inertia)
        self._assembled_for = wanted
        if self._shifted is not None and not self.direct:
            self._shifted.assemble(self.problem, t, state)
            self._mirrored = self._is_symmetric.up_to_conjugation()
        symmetric = self._is_symmetric()
        if not self._configured or (symmetric != self._symmetric and not self.direct):
            if self._shifted is None:
                set_method(self._ksp, self.problem, symmetric)
            else:
                self._shifted.configure(self._ksp)
            with preconditioned(self._shifted):
                self._ksp.setFromOptions()
            # The tolerance of Newton's corrections, which users may loosen, is not that of a derivative.
            self._ksp.setTolerances(rtol=_RTOL)
            self._lagged = self._with_state and self._ksp.getType() == PETSc.KSP.Type.PREONLY and not self.direct
            if self._lagged and not option_given("ksp_type"):
                # The factors of one step's matrix precondition those of many.
                self._ksp.setType(PETSc.KSP.Type.GMRES)
                self._ksp.setPCSide(PETSc.PC.Side.RIGHT)
                self._ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)
            self._configured = True
        self._symmetric = symmetric

    def transposed_times(self, values: Array, out: Array) -> None:
        """Write ``A^T values`` into ``out``; constrained dofs are left as they are in ``values``."""
        self._x.array[:] = values
        (self._matrix.mult if self._symmetric else self._matrix.multTranspose)(self._x, self._b)
        out[:] = values_in(self._b)

    def solve(self, right: Array, out: Array, transposed: bool) -> None:
        """Solve ``A out = right``, or with the transpose; ``out`` holds the first guess.

        Raises
        ------
        RuntimeError
            If neither the Krylov method nor LU finds the solution.
        """
        found = self._try(right, out, transposed)
        if not found and not self.direct:
            self._ksp.setOperators(self._matrix)
            use_lu(self._ksp, self.problem.comm)
            self.direct = True
            found = self._try(right, out, transposed)
        if not found:
            raise RuntimeError(
                f"a linear solve of the {'adjoint' if transposed else 'tangent'} equation failed "
                f"(KSP reason {self._ksp.getConvergedReason()})"
            )
        out[:] = values_in(self._x)

    def _try(self, right: Array, guess: Array, transposed: bool) -> bool:
        self._b.array[:] = right
        self._x.array[:] = guess
        return self._run(transposed)

    def _run(self, transposed: bool) -> bool:
        # PREONLY takes no guess.
        self._ksp.setInitialGuessNonzero(self._ksp.getType() != PETSc.KSP.Type.PREONLY)
        if transposed and not self._symmetric and self._shifted is not None and not self.direct:
            return self._run_conjugated()
        with preconditioned(self._shifted):
            if transposed and not self._symmetric:
                self._ksp.solveTranspose(self._b, self._x)
            else:
                self._ksp.solve(self._b, self._x)
        if self._lagged:
            self._ksp.getPC().setReusePreconditioner(self._ksp.getIterationNumber() <= _LAGGED_ITERATIONS)
        return bool(self._ksp.getConvergedReason() > 0)

    def _run_conjugated(self) -> bool:
        """Solve with the transpose of a symmetric complex matrix, which is its conjugate; multigrid knows no other."""
        if not self._mirrored:
            return False
        for vector in (self._b, self._x):
            conjugate(vector)
        found = self._run(transposed=False)
        conjugate(self._x)
        return found
