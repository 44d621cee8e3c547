"""Minimise a reduced functional over its controls, by TAO or SciPy, in parallel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from npde_fem.discretize.semidiscrete import Array
from npde_fem.optimize.search import Iteration, Reduced, Search
from npde_fem.optimize.tao import HAS_TAO, tao_search
from npde_fem.optimize.variables import Inner, Variables
from npde_fem.parallel import warn_once

import numpy as np
import scipy.optimize
from mpi4py import MPI
from pyadjoint import ReducedFunctional

__all__ = ["METHODS", "Minimum", "check_method", "default_method", "minimize", "run"]


class _Method(NamedTuple):
    """What a method does: whether it keeps bounds and asks for Hessian products; SciPy's name and own stopping."""

    bounds: bool = False
    hessian: bool = False
    scipy: str = ""
    never_stop: Mapping[str, float] = {}


_MANY = 10**9
"""More evaluations or iterations than a search ever makes; it counts its own."""

METHODS: dict[str, _Method] = {
    **{f"tao-{name}": _Method() for name in ("lmvm", "cg")},
    **{f"tao-{name}": _Method(hessian=True) for name in ("nls", "ntr", "ntl")},
    **{f"tao-{name}": _Method(bounds=True) for name in ("blmvm", "bncg", "bqnls", "bqnktr", "bqnktl")},
    **{f"tao-{name}": _Method(bounds=True, hessian=True) for name in ("bnls", "bntr", "bntl")},
    "scipy-lbfgsb": _Method(True, False, "L-BFGS-B", {"ftol": 0.0, "gtol": 0.0, "maxfun": _MANY, "maxiter": _MANY}),
    "scipy-slsqp": _Method(True, False, "SLSQP", {"ftol": 0.0, "maxiter": _MANY}),
    "scipy-tnc": _Method(True, False, "TNC", {"ftol": 0.0, "gtol": 0.0, "xtol": 0.0, "maxfun": _MANY}),
    # Its iterates keep away from bounds, so that it must find out by itself that they press against them.
    "scipy-trust-constr": _Method(True, True, "trust-constr", {"gtol": 0.0, "xtol": 1e-9, "maxiter": _MANY}),
    "scipy-bfgs": _Method(False, False, "BFGS", {"gtol": 0.0, "maxiter": _MANY}),
    "scipy-cg": _Method(False, False, "CG", {"gtol": 0.0, "maxiter": _MANY}),
    "scipy-newton-cg": _Method(False, True, "Newton-CG", {"xtol": 0.0, "maxiter": _MANY}),
    "scipy-trust-ncg": _Method(False, True, "trust-ncg", {"gtol": 0.0, "maxiter": _MANY}),
    "scipy-trust-krylov": _Method(False, True, "trust-krylov", {"gtol": 0.0, "maxiter": _MANY}),
}
"""The methods by name: of PETSc's TAO (see its users manual) and of ``scipy.optimize.minimize``."""


def default_method(hessian: bool = False) -> str:
    """Return the method that is taken where none is named: a quasi-Newton one that keeps bounds.

    With ``hessian`` it is Newton's. Where there is no TAO it is SciPy's L-BFGS-B in either case: the only method of
    SciPy's that takes bounds and Hessian products needs ten times as long.
    """
    if HAS_TAO:
        return "tao-bnls" if hessian else "tao-bqnls"
    return "scipy-lbfgsb"


@dataclass
class Minimum:
    """Where a minimisation ended.

    Attributes
    ----------
    values
        The controls' values by name: floats, arrays, and of fields the flat values that this rank owns.
    loss, gradient_norm
        Loss there, and norm of its (projected, scaled) gradient.
    iterations
        Iterations made, those before a resumption too.
    evaluations
        Evaluations of the loss.
    converged
        Whether a tolerance was met.
    reason
        Why it stopped, in words.
    history
        Every iteration of this call, the start first.
    seconds
        Wall time.
    """

    values: dict[str, Any]
    loss: float
    gradient_norm: float
    iterations: int
    evaluations: int
    converged: bool
    reason: str
    history: list[Iteration] = field(repr=False)
    seconds: float


def minimize(
    reduced: ReducedFunctional,
    method: str | None = None,
    *,
    inner: Inner = "L2",
    length: float | None = None,
    bounds: Mapping[str, tuple[Any, Any]] | None = None,
    gtol: float = 1e-6,
    ftol: float = 1e-12,
    max_iterations: int = 200,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Comm | None = None,
    progress: bool = True,
    log: str | os.PathLike | None = None,
    save: str | os.PathLike | None = None,
    resume: str | os.PathLike | None = None,
) -> Minimum:
    """Minimise a reduced functional from the values its tape holds (collective).

    At the end the controls have the optimum as their values, and so has the tape: ``reduced.derivative()`` is the
    derivative there. Variables are scaled as :mod:`npde_fem.optimize.variables` says. A loss that is NaN or infinite
    at a trial point, or a solve that fails there, counts as a step too long.

    Parameters
    ----------
    reduced
        The reduced functional; controls are Parameters (numbers and fields), GridFunctions, functions of
        dolfinx_adjoint, or AdjFloats.
    method
        One of :data:`METHODS`, by default ``"tao-bqnls"``, or ``"scipy-lbfgsb"`` where PETSc has complex scalars and
        therefore no TAO. Options of TAO have the prefix ``npde_tao_``.
    inner
        Inner product of fields: ``"L2"``; ``"l2"``, that of their values, where convergence depends on the mesh; or
        ``"H1"`` (tao-lmvm and tao-blmvm), which prefers smooth fields.
    length
        Length below which H1 smooths, by default a tenth of the domain's size.
    bounds
        ``{name: (lower, upper)}``, in place of the Parameters' own; ``(None, None)`` lifts them.
    gtol
        Stop when the gradient's norm has fallen by this factor since the start.
    ftol
        Stop when three iterations lower the loss by less than this fraction of it.
    max_iterations
        Stop after so many iterations, those before a resumption too.
    options
        Options of the method: TAO's without the prefix, or SciPy's.
    comm
        Communicator, by default that of the first field, else ``MPI.COMM_WORLD``.
    progress
        Whether to draw a progress line (on a terminal).
    log
        CSV file that rank 0 writes a line to at every iteration.
    save
        File that every iterate is written to, whole or not at all.
    resume
        Such a file to begin from, on as many ranks. A method's memory of curvature begins anew.

    Raises
    ------
    TypeError, ValueError
        If the method is unknown, not there, or keeps no bounds where there are some, an inner product does not fit, the
        controls or their bounds do not (see :class:`Variables`), or the loss is not finite at the start.
    SolveError
        If the first solve fails.
    OSError
        If a file cannot be read or written.

    Warns
    -----
    UserWarning
        If no tolerance was met.
    """
    method = method or default_method()
    check_method(method, inner)
    for label, value in (("gtol", gtol), ("ftol", ftol), ("max_iterations", max_iterations)):
        if not value >= 0:
            raise ValueError(f"{label}: a number from 0 on allowed, {value!r} given")
    variables = Variables(reduced.controls, comm, inner=inner, length=length, bounds=bounds)
    search = Search(Reduced(reduced, variables), variables, gtol, ftol, int(max_iterations), progress, log, save)
    try:
        y = variables.start if resume is None else search.resume(resume)
        reason = run(search, method, y, options)
        last = search.finish()
        minimum = Minimum(
            values=variables.named(last.y),
            loss=last.loss,
            gradient_norm=search.history[-1].gradient_norm,
            iterations=search.history[-1].iteration,
            evaluations=search.evaluations,
            converged=search.converged,
            reason=search.stopped or reason,
            history=search.history,
            seconds=search.seconds(),
        )
    finally:
        search.close()
        variables.destroy()
    if not minimum.converged:
        text = f"minimize: not converged: {minimum.reason} (gradient norm {minimum.gradient_norm:.3g})"
        warn_once(variables.comm, text, UserWarning)
    return minimum


def check_method(method: str, inner: Inner) -> None:
    """Raise ValueError unless a method is known, is there, and takes an inner product."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; one of {', '.join(METHODS)} allowed")
    if method.startswith("tao-") and not HAS_TAO:
        others = ", ".join(name for name in METHODS if not name.startswith("tao-"))
        raise ValueError(
            f"method {method}: PETSc's TAO knows real scalars only, and this PETSc has complex ones; one of {others} "
            "allowed"
        )
    if inner == "H1" and method not in ("tao-lmvm", "tao-blmvm"):
        raise ValueError(f'inner="H1": method tao-lmvm or tao-blmvm allowed, {method} given')


def run(search: Search, method: str, y: Array, options: Mapping[str, Any] | None) -> str:
    """Run a method from this rank's variables until the search stops it (collective).

    Returns
    -------
    str
        Why the method stopped, if it did so by itself.

    Raises
    ------
    ValueError
        If the method keeps no bounds, and there are some.
    """
    how = METHODS[method]
    if search.variables.bounded and not how.bounds:
        keep = ", ".join(name for name, m in METHODS.items() if m.bounds)
        raise ValueError(
            f"method {method} keeps no bounds, and there are some: take one of {keep}, or lift them by "
            "bounds={name: (None, None)}"
        )
    if how.scipy:
        return _scipy_search(search, how, y, dict(options or {}))
    return tao_search(search, method.removeprefix("tao-"), y, how.hessian, dict(options or {}))


class _Stop(Exception):
    """Leaves SciPy when an iterate is the last one."""


def _scipy_search(search: Search, method: _Method, y: Array, options: dict[str, Any]) -> str:
    """Minimise by SciPy from y, with all variables on every rank alike; return why it stopped by itself."""
    variables = search.variables
    comm = variables.comm
    sizes = comm.allgather(y.size)
    own = slice(sum(sizes[: comm.rank]), sum(sizes[: comm.rank + 1]))

    def whole(values: Array) -> Array:
        return np.concatenate(comm.allgather(values))

    def iteration(y: Array, *state: Any) -> None:
        if search.iteration(y[own]):
            raise _Stop

    start = whole(y)
    arguments: dict[str, Any] = {}
    if method.hessian:
        arguments["hessp"] = lambda y, v: whole(search.hessian(y[own], v[own]))
    if method.bounds and variables.bounded:
        arguments["bounds"] = scipy.optimize.Bounds(whole(variables.lower), whole(variables.upper))
    try:
        iteration(start)
        result = scipy.optimize.minimize(
            lambda y: search.loss(y[own]),
            start,
            jac=lambda y: whole(search.gradient(y[own])),
            method=method.scipy,
            # SciPy tells by the number of arguments what to hand over.
            callback=iteration if method.scipy == "trust-constr" else lambda y: iteration(y),
            options={**method.never_stop, **options},
            **arguments,
        )
    except _Stop:
        return search.stopped
    search.converged = bool(result.success)
    return str(result.message)
