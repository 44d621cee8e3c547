"""Eigenmodes of linear equations by SLEPc: ``u = phi exp(lambda t)`` with ``R' phi = lambda M phi``.

Rows and columns of constrained dofs are left out, so that they bring no eigenvalues. The problem solved is
``c R' phi = mu M phi`` with the factor c of 1, -1, i, -i that brings ``c R'`` nearest to a Hermitian matrix whose high
modes have large positive mu: decay rates of a heat equation, energies of a Schroedinger equation. Unless a target is
given, mu of least real part come first, by a shift to the left of the spectrum, which Sylvester's law of inertia
finds (Parlett 1998, The Symmetric Eigenvalue Problem, section 3.3). The same law tells if a mode was missed.

A complex equation is carried as real pairs. A matrix of pairs has the eigenvalues of the complex operator and their
conjugates; ``psi = p + i q`` of its eigenvectors (p, q) vanishes for those that are the conjugates' alone.

With inertia and without damping, ``R' phi = lambda^2 M_A phi`` is solved in this way; with both, the quadratic problem
``lambda^2 M_A phi + lambda M phi = R' phi``, by SLEPc's two-level orthogonal Arnoldi method.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.solve.krylov import SymmetryTest

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from petsc4py import PETSc

__all__ = ["Eigenmodes", "eigenmodes"]

Complex = npt.NDArray[np.complex128]

_TOLERANCE = 1e-11
_SAME = 1e-9
_INDEPENDENT = 1e-6
_MORE = 2
_SEARCHES = 40


@dataclass(frozen=True)
class Eigenmodes:
    """What :func:`eigenmodes` returns.

    Attributes
    ----------
    problem
        The problem.
    values
        Eigenvalues lambda, (n,).
    modes
        Modes as values of the dofs this rank owns, (n, n_owned), each of L2 norm 1: real pairs of a complex equation;
        of a real one complex numbers if a mode is complex.
    residuals
        ``|R' phi - lambda M phi| / (s |M phi|)``, with s the largest of |lambda| and its distance from the target;
        alike with ``lambda^2 M_A`` and ``s^2 M_A``.
    """

    problem: Semidiscrete
    values: Complex
    modes: npt.NDArray
    residuals: Array

    def function(self, index: int) -> Any:
        """Return a mode as a function: a DOLFINx Function, or a GridFunction, complex if the mode is.

        Of a complex equation that was linearised to one that is not complex linear, the real part of a mode of pairs.
        """
        mode = self.modes[index]
        return self.problem.function(mode.real.copy() if self.problem.equation.is_complex else mode)

    @property
    def frequencies(self) -> Array:
        """Angular frequencies ``|Im lambda|`` of modes that oscillate, (n,)."""
        return np.abs(self.values.imag)

    @property
    def energies(self) -> Array:
        """Energies ``E = i hbar lambda`` of a Schroedinger equation for hbar = 1, their real parts, (n,).

        Those of an equation with another hbar are hbar times these.
        """
        return -self.values.imag


def eigenmodes(
    problem: Semidiscrete, n: int, *, target: complex | None = None, t: float | None = None, at: Any = None
) -> Eigenmodes:
    """Find modes ``u = phi exp(lambda t)`` of a linear equation without its data (collective).

    Boundary data and sources that do not depend on u are left out, ``R' phi = lambda M phi``; of a stationary equation
    M is the mass matrix (FEM) or the control volumes (FD), so that a Laplacian has the eigenvalues ``-k^2``. Modes are
    orthonormal in L2 within an eigenspace, and chosen by their products with fixed functions of the coordinates, so
    that any number of ranks gives the same: the product with a certain positive function is real and positive.

    Of two conjugate modes of a real equation, that with ``Im lambda > 0`` stands for both; of the two eigenvalues of a
    mode of an equation with inertia and without damping, ``+- i omega``, the first.

    Solver options have the prefix ``npde_``: ``-npde_eps_tol``, ``-npde_eps_ncv``, ``-npde_st_pc_type``, ... PETSc must
    have real scalars and MUMPS.

    Parameters
    ----------
    problem
        A :class:`~npde_fem.FEM` or :class:`~npde_fem.FD`.
    n
        Number of modes.
    target
        Find the eigenvalues nearest to this number, sorted by the distance. By default those that decay slowest or
        grow fastest, of a Schroedinger equation those of lowest energy, with inertia those of lowest frequency. A real
        number for a real equation; energies of a Schroedinger equation near E are found by ``target=-1j * E``, and
        frequencies of waves without damping near omega by ``target=1j * omega``.
    t
        Time at which to take an operator that depends on it.
    at
        State to linearise a nonlinear equation about, in any form that ``u0`` of a solve may have. A complex equation
        whose linearisation is not complex linear (it contains conjugates) has modes of real pairs,
        ``Re(phi exp(lambda t))``, given as complex numbers.

    Raises
    ------
    TypeError, ValueError
        If ``n`` is not positive or above the number of unknowns, the equation is nonlinear or depends on time and
        ``at`` or ``t`` is not given, or the target is not on the axis of the real shifts.
    RuntimeError
        If fewer than ``n`` modes converge, or PETSc has complex scalars: MUMPS then counts no eigenvalues.
    """
    if np.issubdtype(PETSc.ScalarType, np.complexfloating):
        raise RuntimeError("eigenmodes: PETSc has complex scalars here; a build with real ones is needed")
    if not isinstance(problem, Semidiscrete):
        raise TypeError(f"eigenmodes: problem must be FEM or FD, not {type(problem).__name__}")
    problem.refuse_nonlocal("eigenmodes")
    n = _checked_number(problem, n)
    problem.update()
    with_state, with_time = problem.varies()
    if with_state and at is None:
        raise ValueError(
            f"eigenmodes: equation {problem.equation.name!r} is nonlinear; at=u linearises it about a state u"
        )
    if with_time and t is None:
        raise ValueError(
            f"eigenmodes: the operator of equation {problem.equation.name!r} depends on time; t=... takes it at a time"
        )
    pencil = _Pencil(problem, 0.0 if t is None else float(t), at)
    try:
        return pencil.find(n, target)
    finally:
        pencil.destroy()


def _checked_number(problem: Semidiscrete, n: Any) -> int:
    try:
        number = operator.index(n)
    except TypeError as error:
        raise TypeError(f"eigenmodes: n must be an integer, not {n!r}") from error
    most = problem.unknowns // (2 if problem.equation.is_complex else 1)
    if not 1 <= number <= most:
        raise ValueError(f"eigenmodes: n = {number} given; 1 to {most}, the number of unknowns, allowed")
    return number


class _Pencil:
    """``A phi = mu M phi`` with ``A = c R'`` on the free dofs, and what phi means for the state.

    M is that of the inertia if there is any. With damping D besides, c is 1 and ``mu^2 M phi + mu D phi = A phi``.

    The vectors here are those of the matrices. A *mode* is an array of this rank's dofs: complex numbers of a complex
    state, of a real one its values.
    """

    def __init__(self, problem: Semidiscrete, t: float, at: Any) -> None:
        self.problem, self.comm = problem, problem.comm
        self._kept: list[Any] = []
        free = np.setdiff1d(np.arange(problem.n_owned, dtype=np.int64), problem.constrained)
        self.squared = problem.second_order and not problem.damped
        self.quadratic = problem.second_order and problem.damped
        rates, self.M, *self.D = self._operators(t, at, free)
        self.of_pairs = problem.equation.is_complex and _commutes_with_i(rates)
        self.real, self.per_mode = not self.of_pairs, 2 if self.of_pairs else 1
        self.factor, self.A = (1 + 0j, rates) if self.quadratic else self._nearest_to_hermitian(rates)
        self._free = free[::2] // 2 if self.of_pairs else free
        self._take_real_part()
        self.hermitian = all(self._passes(SymmetryTest(matrix)) for matrix in (self.A, self.M))
        self.definite = self._passes(SymmetryTest(self.M)) and sum(_inertia(self.M)[:2]) == 0
        self.hermitian &= self.definite and not self.quadratic
        self.x, self.y = self.A.createVecs()
        self._kept += [self.x, self.y]

    def destroy(self) -> None:
        for thing in self._kept:
            thing.destroy()

    def _keep(self, matrix: PETSc.Mat) -> PETSc.Mat:
        self._kept.append(matrix)
        return matrix

    @staticmethod
    def _passes(test: SymmetryTest) -> bool:
        try:
            return test()
        finally:
            test.destroy()

    def _operators(self, t: float, at: Any, free: npt.NDArray[np.int64]) -> list[PETSc.Mat]:
        """Return R' and M, and D if there is one, on the free dofs."""
        problem, state = self.problem, self.problem.new_state()
        problem.load(problem.initial(0.0 if at is None else at, t), state)
        problem.constrain(t, state)
        rates = problem.new_matrix()
        problem.jacobian(t, state, 0.0, -1.0, rates)
        whole = [rates, problem.gram_matrix() if problem.stationary else problem.new_matrix()]
        if problem.second_order:
            problem.jacobian(t, state, 0.0, 0.0, whole[1], inertia_factor=1.0)
        elif not problem.stationary:
            problem.jacobian(t, state, 1.0, 0.0, whole[1])
        if self.quadratic:
            whole.append(problem.new_matrix())
            problem.jacobian(t, state, 1.0, 0.0, whole[2])
        rows = PETSc.IS().createGeneral((free + rates.getOwnershipRange()[0]).astype(PETSc.IntType), comm=self.comm)
        restricted = [self._keep(matrix.createSubMatrix(rows, rows)) for matrix in whole]
        for thing in (*whole, rows):
            thing.destroy()
        return restricted

    def _nearest_to_hermitian(self, rates: PETSc.Mat) -> tuple[complex, PETSc.Mat]:
        """Return c of 1, -1, i, -i and ``c R'``."""
        factor, nearest = -1 + 0j, rates
        if self.of_pairs:
            rotation = _rotation(rates)
            turned = self._keep(rotation.matMult(rates))
            rotation.destroy()
            if _skewness(turned) < _skewness(rates):
                factor, nearest = 1j, turned
        if factor == -1:
            nearest.scale(-1.0)
        # Diagonals tell the sign of high modes; where M vanishes, an equation has no time derivative and no say.
        diagonal, weights = nearest.getDiagonal(), self.M.getDiagonal()
        if diagonal.dot(weights) < 0:
            factor = -factor
            nearest.scale(-1.0)
        diagonal.destroy()
        weights.destroy()
        return factor, nearest

    def _take_real_part(self) -> None:
        """Halve matrices of pairs that do not couple real and imaginary parts."""
        if not self.of_pairs:
            return
        start, end = self.A.getOwnershipRange()
        even, odd = (
            PETSc.IS().createStride((end - start) // 2, first=start + k, step=2, comm=self.comm) for k in (0, 1)
        )
        matrices = (self.A, self.M, *self.D)
        coupling = [matrix.createSubMatrix(even, odd) for matrix in matrices]
        if all(c.norm() <= 1e-14 * m.norm() for c, m in zip(coupling, matrices, strict=True)):
            self.A, self.M, *self.D = (self._keep(matrix.createSubMatrix(even, even)) for matrix in matrices)
            self.per_mode = 1
        for thing in (*coupling, even, odd):
            thing.destroy()

    # -- the way to a result -------------------------------------------------------------------------------------

    def find(self, n: int, target: complex | None) -> Eigenmodes:
        """Solve for n modes; see :func:`eigenmodes`."""
        shift = self._left_of_spectrum() if target is None else self._shift(target)
        wanted = (n + _MORE) * (2 if self.real and not self.hermitian else self.per_mode)
        pairs = self._solve(min(wanted, self.A.getSize()[0]), shift, target is None)
        if self.hermitian and target is None:
            self._find_missed(pairs, n, shift)
        if self.real:
            pairs = _without_conjugates(pairs, shift, self.factor.real)
        values: list[complex] = []
        modes: list[Complex] = []
        for mu, vectors in _grouped(pairs, shift, target is None and not self.quadratic):
            for mode in self._chosen(self._orthonormal([self._mode(v) for v in vectors])):
                values.append(mu)
                modes.append(mode)
        if len(values) < n:
            raise RuntimeError(
                f"eigenmodes: {len(values)} of {n} modes converged; more may with PETSc options such as "
                "-npde_eps_max_it 10000 or -npde_eps_ncv 100"
            )
        residuals = np.array([self._residual(mu, mode, shift) for mu, mode in zip(values[:n], modes, strict=False)])
        found = np.array([self._eigenvalue(mu) for mu in values[:n]], dtype=np.complex128)
        return Eigenmodes(self.problem, found, self._values(modes[:n]), residuals)

    def _eigenvalue(self, mu: complex) -> complex:
        """Return lambda."""
        value = mu / self.factor + 0.0  # without negative zeros
        if not self.squared:
            return value
        root = complex(np.sqrt(value))
        return root if root.imag >= 0 else -root

    def _shift(self, target: complex) -> float:
        shift = self.factor * complex(target) ** (2 if self.squared else 1)
        if abs(shift.imag) > 1e-12 * abs(shift):
            allowed = "imaginary" if self.factor.imag else "real or imaginary" if self.squared else "real"
            raise ValueError(f"eigenmodes: target = {target} given; {allowed} numbers allowed for this equation")
        return shift.real

    def _left_of_spectrum(self) -> float:
        """Return a number to the left of all mu, somewhat below zero if none is negative; of D one above zero."""
        rough = self._mode_functions(1)[0][self._free]
        self._put(rough if self.per_mode == 2 else rough.real)
        self.A.mult(self.x, self.y)
        quotient = abs(self.x.dot(self.y))
        self.M.mult(self.x, self.y)
        step = 0.1 * quotient / abs(self.x.dot(self.y)) or 1.0
        if self.quadratic:  # mu is to the left, and its square is what the quotient is like
            return float(np.sqrt(step))
        shift = -step
        if not self.definite:
            return shift
        symmetric = self.A.copy()
        symmetric.transpose()
        symmetric.axpy(1.0, self.A)
        symmetric.scale(0.5)
        for _ in range(_SEARCHES):
            if not self._count_below(shift, symmetric):
                break
            step *= 4
            shift -= step
        symmetric.destroy()
        return shift

    def _count_below(self, shift: float, matrix: PETSc.Mat | None = None) -> int:
        """Return how many eigenvalues of ``matrix`` (of A by default), symmetric, and M lie below a number."""
        shifted = (self.A if matrix is None else matrix).copy()
        shifted.axpy(-shift, self.M)
        count = _inertia(shifted)[0]
        shifted.destroy()
        return count

    def _solve(
        self, number: int, shift: float, leftmost: bool, known: Sequence[Complex] = ()
    ) -> list[tuple[complex, Complex]]:
        """Return eigenvalues mu nearest to the shift, with vectors; orthogonal to those ``known``."""
        from slepc4py import SLEPc

        if self.quadratic:
            eps = SLEPc.PEP().create(self.comm)
            minus = self.A.copy()
            minus.scale(-1.0)
            eps.setOperators([minus, self.D[0], self.M])
            eps.setProblemType(SLEPc.PEP.ProblemType.GENERAL)
            eps.setExtract(SLEPc.PEP.Extract.RESIDUAL)  # its default spoils modes of eigenvalue zero
            eps.setWhichEigenpairs(SLEPc.PEP.Which.TARGET_MAGNITUDE)
        else:
            eps = SLEPc.EPS().create(self.comm)
            minus = None
            eps.setOperators(self.A, self.M)
            eps.setProblemType(SLEPc.EPS.ProblemType.GHEP if self.hermitian else SLEPc.EPS.ProblemType.GNHEP)
            by_distance = SLEPc.EPS.Which.TARGET_MAGNITUDE
            eps.setWhichEigenpairs(SLEPc.EPS.Which.TARGET_REAL if self.hermitian and leftmost else by_distance)
        eps.setOptionsPrefix("npde_")
        eps.setTarget(shift)
        eps.setDimensions(number)
        eps.setTolerances(_TOLERANCE, 1000)
        st = eps.getST()
        st.setType(SLEPc.ST.Type.SINVERT)
        ksp = st.getKSP()
        ksp.setType(PETSc.KSP.Type.PREONLY)
        ksp.getPC().setType(PETSc.PC.Type.CHOLESKY if self.hermitian else PETSc.PC.Type.LU)
        ksp.getPC().setFactorSolverType(PETSc.Mat.SolverType.MUMPS)
        first = self._mode_functions(1 + len(known))[-1][self._free]
        self._put(first if self.per_mode == 2 else first.real)
        eps.setInitialSpace([self.x])
        deflated = []
        for vector in known:
            self._put_array(vector.real)
            deflated.append(self.x.copy())
        if deflated:
            eps.setDeflationSpace(deflated)
        eps.setFromOptions()
        eps.solve()
        found = []
        for k in range(eps.getConverged()):
            mu = complex(eps.getEigenpair(k, self.x, self.y))
            found.append((mu, self.x.array_r + 1j * self.y.array_r if mu.imag else self.x.array_r + 0j))
        for thing in (*deflated, eps, *([minus] if minus else [])):
            thing.destroy()
        return found

    def _find_missed(self, pairs: list[tuple[complex, Complex]], n: int, shift: float) -> None:
        """Complete the lowest n modes: Krylov methods may miss some of a multiple eigenvalue."""
        for _ in range(_SEARCHES):
            values = np.sort([mu.real for mu, _ in pairs])
            end = min(n * self.per_mode, values.size) - 1
            apart = np.flatnonzero(np.diff(values[end:]) > 1e3 * _SAME * (values[end:-1] - shift))
            last = end + int(apart[0]) if apart.size else values.size - 1
            above = values[last + 1] if apart.size else values[last] + 1e4 * _SAME * (values[last] - shift)
            missing = self._count_below(0.5 * (values[last] + above)) - (last + 1)
            if missing <= 0:
                return
            more = self._solve(missing, shift, True, [vector for _, vector in pairs])
            if not more:
                return
            pairs += more

    # -- modes ---------------------------------------------------------------------------------------------------

    def _put_array(self, values: Array) -> None:
        self.x.array[:] = values

    def _put(self, free: npt.NDArray) -> None:
        """Put the free dofs of a mode into the vector x: real and imaginary parts if A is of pairs, else real ones."""
        self._put_array(
            np.ascontiguousarray(free, dtype=np.complex128).view(np.float64) if self.per_mode == 2 else free
        )

    def _mode(self, vector: Complex) -> Complex:
        """Return the mode that an eigenvector stands for, zero if it is that of the conjugate operator alone."""
        parts = self.problem.n_owned // (2 if self.of_pairs else 1)
        mode = np.zeros(parts, dtype=np.complex128)
        if self.per_mode == 1:
            mode[self._free] = vector
            return mode
        mode[self._free] = vector[::2] + 1j * vector[1::2]
        local = [np.sum(np.abs(v) ** 2) for v in (mode, vector)]
        size, whole = self.comm.allreduce(np.array(local))
        return mode if size > _INDEPENDENT**2 * whole else np.zeros_like(mode)

    def _gram(self, mode: Complex) -> Complex:
        """Return G times a mode."""
        if self.of_pairs:
            out = np.zeros(self.problem.n_owned)
            self.problem.gram_times(mode.view(np.float64), out)
            return out.view(np.complex128)
        real, imag = np.zeros(self.problem.n_owned), np.zeros(self.problem.n_owned)
        self.problem.gram_times(np.ascontiguousarray(mode.real), real)
        self.problem.gram_times(np.ascontiguousarray(mode.imag), imag)
        return real + 1j * imag

    def _products(self, left: Sequence[Complex], right: Sequence[Complex]) -> Complex:
        """Return the inner products of modes, (len(left), len(right))."""
        weighted = np.array([self._gram(mode) for mode in right])
        return np.asarray(self.comm.allreduce(np.conj(np.array(left)) @ weighted.T))

    def _orthonormal(self, modes: list[Complex]) -> list[Complex]:
        """Return an orthonormal basis of what modes span; those that vanish, or depend on others, go."""
        squares, vectors = np.linalg.eigh(self._products(modes, modes))
        size = max(squares[-1], 0.0)
        return [
            np.array(modes).T @ (vectors[:, k] / np.sqrt(squares[k]))
            for k in range(squares.size)
            if squares[k] > _INDEPENDENT**2 * size and size > 0
        ]

    def _chosen(self, basis: list[Complex]) -> list[Complex]:
        """Return the orthonormal basis of a space that fixed functions choose, whatever basis is given."""
        if not basis:
            return []
        products = self._products(basis, self._mode_functions(len(basis)))
        turn, triangle = np.linalg.qr(products)
        phase = np.diag(triangle) / np.abs(np.diag(triangle))
        return list((np.array(basis).T @ (turn * phase)).T)

    def _mode_functions(self, number: int) -> list[Complex]:
        """Return smooth functions without symmetries, the first one positive: nodal values of modes."""
        x = self.problem.coordinates()
        ends = np.concatenate([np.min(x, axis=0, initial=np.inf), np.min(-x, axis=0, initial=np.inf)])
        self.comm.Allreduce(MPI.IN_PLACE, ends, op=MPI.MIN)
        lower, extent = ends[:3], float(np.max(-ends[3:] - ends[:3])) or 1.0
        parts = self.problem.components // (2 if self.of_pairs else 1)
        axis, part = np.arange(3), np.arange(parts)
        functions = []
        for k in range(number):
            along = 1.5 * np.sin(1 + k * (axis + 1) + axis)
            weights = 1 + 0.5 * np.cos(part) if k == 0 else np.cos(3.0 * k * (part + 1))
            functions.append(np.outer(np.exp((x - lower) / extent @ along), weights).ravel() + 0j)
        return functions

    def _residual(self, mu: complex, mode: Complex, shift: float) -> float:
        parts = [mode[self._free]] if self.per_mode == 2 else [mode[self._free].real, mode[self._free].imag]
        images = []
        for matrix in (self.A, self.M, *self.D):
            image: Any = 0.0
            for part, unit in zip(parts, (1, 1j), strict=False):
                self._put(part)
                matrix.mult(self.x, self.y)
                found = self.y.array_r.copy()
                image = image + unit * (found.view(np.complex128) if self.per_mode == 2 else found)
            images.append(image)
        power = 2 if self.quadratic else 1
        defect = images[0] - mu**power * images[1]
        if self.quadratic:
            defect -= mu * images[2]
        squares = [float(np.sum(np.abs(v) ** 2)) for v in (defect, images[1])]
        error, size = np.sqrt(self.comm.allreduce(np.array(squares)))
        return float(error / (max(abs(mu), abs(mu - shift)) ** power * size))

    def _values(self, modes: list[Complex]) -> npt.NDArray:
        """Return modes as values of the state."""
        array = np.array(modes)
        if self.of_pairs:
            return array.view(np.float64)
        return array if self.comm.allreduce(bool(np.any(array.imag)), op=MPI.LOR) else array.real.copy()


def _commutes_with_i(rates: PETSc.Mat) -> bool:
    """Whether a matrix of pairs is that of a complex operator: ``R' (i v) = i R' v`` for a rough v."""
    x, y = rates.createVecs()
    index = np.arange(*rates.getOwnershipRange(), dtype=np.float64)
    v = np.sin(1.0 + 12.9898 * index) + 0.5
    x.array[:] = v
    rates.mult(x, y)
    image = 1j * y.array_r.view(np.complex128)
    x.array[:] = (1j * v.view(np.complex128)).view(np.float64)
    rates.mult(x, y)
    other = y.array_r.view(np.complex128)
    local = np.array([np.sum(np.abs(image - other) ** 2), np.sum(np.abs(image) ** 2)])
    difference, size = rates.comm.tompi4py().allreduce(local)
    x.destroy()
    y.destroy()
    return bool(difference <= 1e-24 * size)


def _rotation(like: PETSc.Mat) -> PETSc.Mat:
    """Return the matrix of pairs that multiplies by i."""
    start, end = like.getOwnershipRange()
    rows = np.arange(start, end, dtype=PETSc.IntType)
    matrix = PETSc.Mat().create(like.comm)
    matrix.setSizes(like.getSizes())
    matrix.setType(PETSc.Mat.Type.AIJ)
    matrix.setPreallocationCOO(rows, (rows + 1 - 2 * (rows % 2)).astype(PETSc.IntType))
    matrix.setValuesCOO(np.where(rows % 2, 1.0, -1.0))
    return matrix


def _skewness(matrix: PETSc.Mat) -> float:
    """Return the norm of ``A - A^T``."""
    other = matrix.copy()
    other.transpose()
    other.axpy(-1.0, matrix)
    size = other.norm()
    other.destroy()
    return float(size)


def _inertia(matrix: PETSc.Mat) -> tuple[int, int, int]:
    """Return how many eigenvalues of a symmetric matrix are negative, zero and positive, by its LDL^T factors."""
    pc = PETSc.PC().create(matrix.comm)
    pc.setOperators(matrix)
    pc.setType(PETSc.PC.Type.CHOLESKY)
    pc.setFactorSolverType(PETSc.Mat.SolverType.MUMPS)
    pc.setFactorSetUpSolverType()
    factors = pc.getFactorMatrix()
    factors.setMumpsIcntl(13, 1)  # MUMPS counts right only without ScaLAPACK
    factors.setMumpsIcntl(24, 1)
    pc.setUp()
    counts = factors.getInertia()
    pc.destroy()
    return counts


def _without_conjugates(
    pairs: list[tuple[complex, Complex]], shift: float, factor: float
) -> list[tuple[complex, Complex]]:
    """Return one of each pair of conjugates, with ``Im mu / factor > 0``; what is real but for round-off in parts."""
    kept: list[tuple[complex, Complex]] = []
    for mu, vector in pairs:
        if abs(mu.imag) <= _SAME * max(abs(mu - shift), abs(mu)):
            kept += [(mu.real + 0j, part.astype(np.complex128)) for part in (vector.real, vector.imag)]
        elif mu.imag / factor > 0:
            kept.append((mu, vector))
    return kept


def _grouped(pairs: list[tuple[complex, Complex]], shift: float, leftmost: bool) -> list[tuple[complex, list[Complex]]]:
    """Return eigenspaces in the order asked for: their mean eigenvalue, and the vectors found."""
    spaces: list[tuple[list[complex], list[Complex]]] = []
    for mu, vector in pairs:
        for values, vectors in spaces:
            if abs(mu - values[0]) <= _SAME * max(abs(mu - shift), abs(mu)):
                values.append(mu)
                vectors.append(vector)
                break
        else:
            spaces.append(([mu], [vector]))
    means = [(complex(np.mean(values)), vectors) for values, vectors in spaces]
    return sorted(means, key=lambda space: space[0].real if leftmost else abs(space[0] - shift))
