"""A search by PETSc's TAO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from npde_fem.discretize.semidiscrete import Array
from npde_fem.optimize.search import Search
from npde_fem.options import inserted

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

__all__ = ["HAS_TAO", "tao_search"]

HAS_TAO = np.issubdtype(PETSc.ScalarType, np.floating)
"""Whether TAO is there: it knows real scalars only."""

_PREFIX = "npde_"
"""TAO puts its own ``tao_`` behind it."""

_QUASI_NEWTON = {"hist_size": "10", "scale_type": "scalar"}
"""PETSc's own choice, a diagonal that follows the curvature, needs ten times the iterations to tight tolerances."""

_REASONS = {
    PETSc.TAO.Reason.DIVERGED_LS_FAILURE: "the line search found no lower loss",
    PETSc.TAO.Reason.DIVERGED_NAN: "TAO met NaN",
    PETSc.TAO.Reason.DIVERGED_TR_REDUCTION: "the trust region shrank to nothing",
    PETSc.TAO.Reason.CONVERGED_STEPTOL: "steps became too short",
}


class _Shell:
    """A matrix known by its products with this rank's arrays; TAO's Newton methods add multiples of the identity."""

    def __init__(self, product: Callable[[Array, Array], None]) -> None:
        self.product, self.shifted = product, 0.0

    def mult(self, matrix: PETSc.Mat, x: PETSc.Vec, y: PETSc.Vec) -> None:
        self.product(x.array_r, y.array)
        if self.shifted:
            y.axpy(self.shifted, x)

    def shift(self, matrix: PETSc.Mat, by: float) -> None:
        self.shifted += by


class _Inverse:
    """A preconditioner known by its products."""

    def __init__(self, product: Callable[[Array, Array], None]) -> None:
        self.product = product

    def apply(self, pc: PETSc.PC, x: PETSc.Vec, y: PETSc.Vec) -> None:
        self.product(x.array_r, y.array)


class _Made(ExitStack):
    """PETSc objects of one rank's share of the variables, destroyed at the end."""

    def __init__(self, comm: MPI.Comm, size: int) -> None:
        super().__init__()
        self.comm, self.size = comm, size

    def keep(self, thing: Any) -> Any:
        self.callback(thing.destroy)
        return thing

    def vector(self, values: Array) -> PETSc.Vec:
        result = self.keep(PETSc.Vec().createMPI((self.size, None), comm=self.comm))
        result.array[:] = values
        return result

    def shell(self, product: Callable[[Array, Array], None]) -> PETSc.Mat:
        sizes = ((self.size, None), (self.size, None))
        matrix = self.keep(PETSc.Mat().createPython(sizes, _Shell(product), comm=self.comm))
        matrix.setOption(PETSc.Mat.Option.SYMMETRIC, True)
        matrix.setUp()
        return matrix


def tao_search(search: Search, kind: str, y: Array, with_hessian: bool, options: Mapping[str, Any]) -> str:
    """Minimise by a type of TAO from this rank's variables (collective); return why it stopped by itself.

    Parameters
    ----------
    search
        What evaluates, and says when to stop.
    kind
        TAO's type.
    with_hessian
        Whether it asks for products with the Hessian; its equations are solved by conjugate gradients.
    options
        TAO's options without their prefix.
    """
    variables = search.variables
    seen = -1

    def gradient(tao: PETSc.TAO, x: PETSc.Vec, g: PETSc.Vec) -> None:
        g.array[:] = search.gradient(x.array_r)

    def both(tao: PETSc.TAO, x: PETSc.Vec, g: PETSc.Vec) -> float:
        gradient(tao, x, g)
        return search.loss(x.array_r)

    def test(tao: PETSc.TAO) -> int:
        nonlocal seen
        if tao.getIterationNumber() > seen:
            seen = tao.getIterationNumber()
            search.iteration(tao.getSolution().array_r)
        if not search.stopped:
            return PETSc.TAO.Reason.CONTINUE_ITERATING
        return PETSc.TAO.Reason.CONVERGED_USER if search.converged else PETSc.TAO.Reason.DIVERGED_MAXITS

    with _Made(variables.comm, y.size) as made:
        x = made.vector(y)
        tao = made.keep(PETSc.TAO().create(variables.comm))
        tao.setOptionsPrefix(_PREFIX)
        tao.setType(kind)
        tao.setObjective(lambda tao, x: search.loss(x.array_r))
        tao.setGradient(gradient)
        tao.setObjectiveGradient(both)
        if with_hessian:
            point = y.copy()

            def move(tao: PETSc.TAO, x: PETSc.Vec, hessian: PETSc.Mat, _: PETSc.Mat) -> None:
                point[:] = x.array_r
                hessian.getPythonContext().shifted = 0.0

            tao.setHessian(move, made.shell(lambda v, out: np.copyto(out, search.hessian(point, v))))
        if variables.bounded:
            tao.setVariableBounds(made.vector(variables.lower), made.vector(variables.upper))
        # The search alone decides when to stop.
        tao.setMaximumIterations(10**9)
        tao.setMaximumFunctionEvaluations(10**9)
        tao.setConvergenceTest(test)
        tao.setSolution(x)
        if variables.inner == "H1":
            _precondition(tao, made, search)
        with inserted(_all_options(options, kind, variables.inner)):
            tao.setFromOptions()
            try:
                tao.solve()
            except PETSc.Error as error:
                # What a callback raised comes wrapped.
                raise error.__cause__ or error from None
        return _REASONS.get(tao.getConvergedReason(), f"TAO stopped for its reason {tao.getConvergedReason()}")


def _precondition(tao: PETSc.TAO, made: _Made, search: Search) -> None:
    """Let a quasi-Newton method begin with the inner product's matrix as its Hessian."""
    variables = search.variables
    tao.setGradientNorm(made.shell(variables.riesz))
    first = made.shell(variables.inner_times)
    inverse = made.keep(PETSc.PC().createPython(_Inverse(variables.riesz), comm=variables.comm))
    inverse.setOperators(first)
    tao.setLMVMH0(first)
    ksp = tao.getLMVMH0KSP()
    ksp.setType(PETSc.KSP.Type.PREONLY)
    ksp.setPC(inverse)


def _all_options(options: Mapping[str, Any], kind: str, inner: str) -> dict[str, Any]:
    """Return TAO's options by their whole names, with our choices where the user has made none."""
    given = {f"{_PREFIX}tao_{name}": value for name, value in options.items()}
    database = PETSc.Options()
    for name, value in _QUASI_NEWTON.items():
        full = f"{_PREFIX}tao_{kind}_mat_lmvm_{name}"
        value = "user" if inner == "H1" and name == "scale_type" else value
        given.setdefault(full, database.getString(full, value))
        if kind == "lmvm":  # it does not hand its prefix on
            given[full.removeprefix(_PREFIX)] = given[full]
    return given
