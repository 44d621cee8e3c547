"""Nonlinear stages and stationary problems by PETSc SNES.

``F(u) = M u - b - w R(u) = 0`` with the Jacobian ``M - w R'(u)``. Of an equation with inertia the unknown is the
acceleration a, M a sum of the mass matrices of inertia and damping, and R, without w, is taken at ``u = base + w a``;
the Jacobian is the same. It is kept as long as Newton's method converges fast with it (chord Newton), within a step and
from step to step. Everything listens to PETSc options with the prefix ``npde_``: ``-npde_snes_rtol``,
``-npde_ksp_type``, ``-npde_pc_type``, ...
"""

from __future__ import annotations

import sys
import time
import weakref

from npde_fem.discretize.real import values_in
from npde_fem.discretize.semidiscrete import Array, Part, Semidiscrete
from npde_fem.options import option_given
from npde_fem.solve.krylov import Lent, SymmetryTest, same, set_method, use_lu
from npde_fem.solve.preconditioner import ShiftedLaplacian, preconditioned

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

__all__ = ["Newton"]

_TOLERANCE = 1e-10
# Of complex states: norms that schemes conserve drift by this much a step. Round-off of stiff equations may lie above
# it; then iterations end by their own size, each being much smaller than the one before.
_CONSERVING, _SMALL_STEP = 1e-13, 1e-12
_TINY = float(np.finfo(float).tiny)
_CHORD_ITERATIONS = 3


class Newton(Lent):
    """Solver of ``M u - b - w R(u, t) = 0`` for one problem; it owns the vectors, the matrix and the SNES.

    Parameters
    ----------
    problem
        The semidiscrete problem.
    part
        The part of R that is implicit.
    stationary
        Solve ``R(u) = 0`` instead (w = 1, without M), by Newton with a backtracking line search.
    preconditioner
        What the linear solver is preconditioned by; the one that fits the matrix by default.

    Attributes
    ----------
    rate
        R at the state last evaluated, values.
    newton_iterations, linear_iterations, assembly_seconds
        Totals since the making.
    """

    def __init__(
        self,
        problem: Semidiscrete,
        part: Part,
        stationary: bool = False,
        preconditioner: ShiftedLaplacian | None = None,
    ) -> None:
        problem.refuse_nonlocal("Newton's method")
        super().__init__(problem)
        self.part, self.stationary = part, stationary
        self._with_state, self._with_time = problem.varies(part)
        self._shifted = None if preconditioner is None else preconditioner.of(problem)
        self.matrix = problem.new_matrix()
        self.x, self._f = self.matrix.createVecs()
        self._is_symmetric = SymmetryTest(self.matrix)
        self.rate = np.zeros(problem.n_owned)
        self._state, self._work = problem.new_state(), np.zeros(problem.n_owned)
        self._evaluated, self._evaluated_at = np.full(problem.n_owned, np.nan), np.nan
        self._flags = np.zeros(2, dtype=np.int32)
        self._b: Array = np.zeros(problem.n_owned)
        self._prescribed: Array = np.zeros(problem.constrained.size)
        self._w = self._t = 0.0
        self._damping, self._point = 0.0, np.zeros(problem.n_owned)
        self._base: Array | None = None
        self._assembled_for: tuple[float, float, float] | None = None
        self._stale = True
        self.newton_iterations = self.linear_iterations = 0
        self.assembly_seconds = 0.0
        self.residual_norm = 0.0
        self._make_snes()

    def forget(self) -> None:
        self._evaluated_at, self._assembled_for, self._stale, self._configured = np.nan, None, True, False
        self._evaluated[:] = np.nan
        self.newton_iterations = self.linear_iterations = 0
        self.assembly_seconds = 0.0

    def destroy(self) -> None:
        self._is_symmetric.destroy()
        if self._shifted is not None:
            self._shifted.destroy()
        for thing in (self.snes, self.matrix, self.x, self._f):
            thing.destroy()

    def _make_snes(self) -> None:
        snes = PETSc.SNES().create(self.problem.comm)
        snes.setOptionsPrefix("npde_")
        # What PETSc holds, the garbage collector does not see: a method would keep this object alive for ever.
        residual = weakref.WeakMethod(self._residual)
        snes.setFunction(lambda *given: residual()(*given), self._f)  # type: ignore[misc]
        self._set_matrices(snes, self.matrix if self._shifted is None else self._shifted.matrix)
        snes.setType(PETSc.SNES.Type.NEWTONLS)
        search = PETSc.SNESLineSearch.Type.BT if self.stationary else PETSc.SNESLineSearch.Type.BASIC
        snes.getLineSearch().setType(search)
        # A stationary solve may begin at its solution: no residual to reduce, or none beyond round-off.
        atol, stol = (_TINY, _TOLERANCE) if self.stationary else (0.0, 0.0)
        rtol = _TOLERANCE
        if self.problem.equation.is_complex and not self.stationary:
            rtol, stol = _CONSERVING, _SMALL_STEP
        snes.setTolerances(rtol=rtol, atol=atol, stol=stol, max_it=50 if self.stationary else 25)
        # A Newton correction needs few digits, a linear solve all; the absolute tolerance, set a step, ends both.
        snes.ksp.setTolerances(rtol=1e-4 if self._with_state else 1e-12, max_it=10_000)
        self.snes = snes
        self._configured = self._symmetric = False

    def _set_matrices(self, snes: PETSc.SNES, preconditioning: PETSc.Mat) -> None:
        jacobian = weakref.WeakMethod(self._jacobian)
        snes.setJacobian(lambda *given: jacobian()(*given), self.matrix, preconditioning)  # type: ignore[misc]

    def _configure(self) -> None:
        """Choose the linear solver, once the matrix is there to look at; options override."""
        if self._configured:
            return
        symmetric = self._is_symmetric()
        if self._shifted is None:
            set_method(self.snes.ksp, self.problem, symmetric)
        else:
            self._shifted.configure(self.snes.ksp)
        self._symmetric = symmetric and (self._with_state or self._with_time) and not option_given("ksp_type")
        with preconditioned(self._shifted):
            self.snes.setFromOptions()
        self._rtol = self.snes.getTolerances()[0]
        self._set_snes_atol = not option_given("snes_atol")
        self._set_ksp_atol = not (option_given("ksp_atol") or option_given("ksp_type"))
        self._configured = True

    def use_direct_solver(self) -> None:
        """Replace the linear solver by an LU factorisation, with a warning."""
        if self._shifted is not None:
            self._set_matrices(self.snes, self.matrix)
        use_lu(self.snes.ksp, self.problem.comm)
        self.direct = True
        self._stale = True

    def _residual(self, snes: PETSc.SNES, x: PETSc.Vec, f: PETSc.Vec) -> None:
        begun = time.perf_counter()
        values = values_in(x)
        self.evaluate(self._t, self._state_at(values))
        out = f.array
        if self.stationary:
            np.negative(self.rate, out=out)
        else:
            self.problem.mass_times(values, self._work, False, *self._masses())
            np.subtract(self._work, self._b, out=out)
            if self._base is None:
                np.multiply(self.rate, self._w, out=self._work)
                out -= self._work
            else:
                out -= self.rate
        constrained = self.problem.constrained
        out[constrained] = values[constrained] - self._prescribed
        self.assembly_seconds += time.perf_counter() - begun

    def _masses(self) -> tuple[float, float]:
        """Weights of the mass matrices of damping and inertia."""
        return (1.0, 0.0) if self._base is None else (self._damping, 1.0)

    def _state_at(self, values: Array) -> Array:
        """The state that an iterate stands for."""
        if self._base is None:
            return values
        np.multiply(values, self._w, out=self._point)
        self._point += self._base
        return self._point

    def evaluate(self, t: float, values: Array) -> None:
        """Make :attr:`rate` the implicit rate at a state, unless it is that already."""
        # What is skipped communicates, so all ranks must agree to skip it.
        self._flags[0] = t == self._evaluated_at and np.array_equal(values, self._evaluated)
        self.problem.comm.Allreduce(self._flags[:1], self._flags[1:], op=MPI.MIN)
        if self._flags[1]:
            return
        self.problem.load(values, self._state)
        self.problem.rate(t, self._state, self.rate, self.part)
        self._evaluated[:] = values
        self._evaluated_at = t

    def residual_at(self, values: Array) -> float:
        """Return the norm of a stationary problem's residual at a state that has its prescribed values (collective)."""
        self.evaluate(0.0, values)
        return float(np.sqrt(self.problem.comm.allreduce(float(self.rate @ self.rate))))

    def _jacobian(self, snes: PETSc.SNES, x: PETSc.Vec, j: PETSc.Mat, p: PETSc.Mat) -> None:
        iteration = snes.getIterationNumber()
        if not self._stale and not (self._with_state and iteration >= _CHORD_ITERATIONS):
            return
        self._assemble(values_in(x))

    def _assemble(self, values: Array) -> None:
        begun = time.perf_counter()
        self.problem.load(self._state_at(values), self._state)
        damping, inertia = (0.0, 0.0) if self.stationary else self._masses()
        w = 1.0 if self.stationary else self._w
        self.problem.jacobian(self._t, self._state, damping, w, self.matrix, self.part, inertia)
        if self._shifted is not None and not self.direct:
            self._shifted.assemble(self.problem, self._t, self._state)
        # A constant first state can hide that the Jacobian of a nonlinear flux is not symmetric.
        if self._symmetric and self._shifted is None and not self.direct and not self._is_symmetric():
            self._symmetric = False
            set_method(self.snes.ksp, self.problem, symmetric=False)
        self._stale = self.stationary and self._with_state
        self._assembled_for = (self._w, self._t, self._damping)
        self.assembly_seconds += time.perf_counter() - begun

    @property
    def failure(self) -> str:
        """Why the last solve did not end well."""
        reason = self.snes.getConvergedReason()
        return f"Newton's method did not converge (SNES reason {reason}, residual {self.residual_norm:.3e})"

    @property
    def found(self) -> Array:
        """A view of the state that :meth:`solve` found, values."""
        return values_in(self.x)

    def accelerate(self, t: float, base: Array, b: Array, w: float, damping: float, guess: Array, scale: float) -> bool:
        """Solve ``(M_A + damping M) a - b - R(base + w a, t) = 0`` for the acceleration a; otherwise as :meth:`solve`.

        ``guess`` carries prescribed accelerations.
        """
        self._base, self._damping = base, damping
        return self._solve(t, b, w, guess, scale)

    def solve(self, t: float, b: Array, w: float, guess: Array, scale: float) -> bool:
        """Solve for the state; the result is in :attr:`found`.

        Parameters
        ----------
        t
            Time of the stage.
        b
            ``b``, values.
        w
            ``w``, the step times the scheme's coefficient.
        guess
            First iterate; its constrained dofs carry their prescribed values.
        scale
            Norm that tolerances are relative to; that of ``M u`` at the beginning of a step. Of a stationary problem 0,
            for the residual of the guess, or that of a worse guess.

        Returns
        -------
        bool
            Whether Newton's method converged; if not, :attr:`residual_norm` holds where it stopped.
        """
        self._base, self._damping = None, 0.0
        return self._solve(t, b, w, guess, scale)

    def _solve(self, t: float, b: Array, w: float, guess: Array, scale: float) -> bool:
        self._b, self._w, self._t = b, w, t
        self._prescribed = guess[self.problem.constrained]
        if not self._fits():
            self._stale = True
        self.x.array[:] = guess
        if not self._configured:
            self._assemble(guess)
            self._configure()
        floor = self._rtol * scale if scale > 0 or not self.stationary else _TINY
        # The scale of a state that blows up overflows; PETSc would keep an infinite tolerance, and refuse it later.
        floor = min(sys.float_info.max, floor)
        if self._set_snes_atol:
            self.snes.setTolerances(atol=floor)
        if self._set_ksp_atol:
            self.snes.ksp.setTolerances(atol=0.5 * floor)
        converged = self._run()
        if (
            not converged
            and not self.direct
            and self.snes.getConvergedReason() == PETSc.SNES.ConvergedReason.DIVERGED_LINEAR_SOLVE
        ):
            self.use_direct_solver()
            self.x.array[:] = guess
            converged = self._run()
        return converged

    def _fits(self) -> bool:
        """Whether the Jacobian was assembled for such a step, and time where it depends on that."""
        if self._assembled_for is None:
            return False
        w, t, damping = self._assembled_for
        return same(w, self._w) and same(damping, self._damping) and not (self._with_time and t != self._t)

    def _run(self) -> bool:
        with preconditioned(self._shifted):
            self.snes.solve(None, self.x)
        iterations = self.snes.getIterationNumber()
        self.newton_iterations += iterations
        self.linear_iterations += self.snes.getLinearSolveIterations()
        self.residual_norm = self.snes.getFunctionNorm()
        converged = self.snes.getConvergedReason() > 0
        if self._with_state and (not converged or iterations > _CHORD_ITERATIONS - 1):
            self._stale = True
        return bool(converged)
