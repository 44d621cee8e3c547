"""Fitting a model to a scratch assay: estimates, standard errors, and how well it predicts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from npde_fem.assay.model import Law, Model, model_for
from npde_fem.datasets import ScratchAssay
from npde_fem.discretize import FD, FEM, Grid, Probe, Semidiscrete
from npde_fem.optimize import Minimum, PDEConstrainedProblem, misfit, solve
from npde_fem.optimize.minimize import default_method
from npde_fem.parameter import Parameter
from npde_fem.solve import CrankNicolson

import dolfinx
import numpy as np
import numpy.typing as npt
from mpi4py import MPI

__all__ = ["LEARNERS", "METHODS", "Estimate", "Fit", "aicc", "bic", "fit"]

Array = npt.NDArray[np.float64]

METHODS = ("fem", "fd")
"""Finite elements (P1), finite differences."""

LEARNERS = ("pde", "lbfgs")
"""Newton's method with the exact Hessian, a quasi-Newton one."""


@dataclass(frozen=True)
class Estimate:
    """A parameter's value with its standard error: scalars, or arrays of one shape.

    The error is NaN where the value lies on a bound, and 0 where it was given and not fitted.
    """

    value: Array
    stderr: Array
    unit: str
    at_bound: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Fit:
    """A model fitted to a scratch assay.

    Attributes
    ----------
    model
        The model; its parameters have the fitted values.
    method
        ``"fem"`` or ``"fd"``.
    assay
        The data.
    parameters
        The estimates by name.
    covariance
        Of the fitted numbers, parameter by parameter, shape (p, p); zero for those on a bound.
    loss
        ``1/2 sum (residual/sigma)^2`` over wells, strips and fitted times.
    sigma
        Standard deviation of one well about the mean of all, pooled over the fitted times; cells/um^2.
    residuals
        Number n of residuals.
    states
        The fitted density at all times of the data and all strips, shape (times, columns); cells/um^2.
    hold_out
        The time that was left out, or None.
    minimum
        What the optimiser reports.
    seconds
        Wall time, with the standard errors.
    """

    model: Model
    method: str
    assay: ScratchAssay
    parameters: dict[str, Estimate]
    covariance: Array
    loss: float
    sigma: float
    residuals: int
    states: Array
    hold_out: float | None
    minimum: Minimum
    seconds: float
    _free: list[Parameter] = field(repr=False)

    @property
    def rss(self) -> float:
        """Sum of squared residuals, (cells/um^2)^2."""
        return 2 * self.loss * self.sigma**2

    @property
    def estimated(self) -> int:
        """How many numbers were estimated from the data: the fitted ones, and the variance of the noise."""
        return len(self.covariance) + 1

    @property
    def aicc(self) -> float:
        """Akaike's criterion; see :func:`aicc`."""
        return aicc(self.rss, self.residuals, self.estimated)

    @property
    def bic(self) -> float:
        """Schwarz's criterion; see :func:`bic`."""
        return bic(self.rss, self.residuals, self.estimated)

    @property
    def prediction_error(self) -> float | None:
        """Root mean square over strips of prediction minus mean measurement at the held-out time, cells/um^2."""
        return None if self.hold_out is None else self.error_at(self.hold_out)

    def error_at(self, t: float) -> float:
        """Return the root mean square over strips of the state minus the mean measurement at a time of the data."""
        k = int(np.flatnonzero(self.assay.times == t)[0])
        return float(np.sqrt(np.mean((self.states[k] - self.assay.mean[k]) ** 2)))

    def diffusivity(self, u: npt.ArrayLike) -> tuple[Array, Array]:
        """Return ``D(u)`` and its standard error in um^2/h, shape of ``u``."""
        return self._law(self.model.diffusivity, u)

    def growth(self, u: npt.ArrayLike) -> tuple[Array, Array]:
        """Return ``f(u)`` and its standard error in cells/um^2/h, shape of ``u``."""
        return self._law(self.model.growth, u)

    def _law(self, law: Law, u: npt.ArrayLike) -> tuple[Array, Array]:
        """A law and, to first order in the noise, its standard error."""
        density = np.asarray(u, dtype=np.float64)
        best = {name: e.value for name, e in self.parameters.items()}

        def at(values: dict[str, Any]) -> Array:
            return np.broadcast_to(np.asarray(law(values, density), dtype=np.float64), density.shape)

        slopes = []
        for parameter in self._free:
            value = best[parameter.name]
            for index in np.ndindex(value.shape):
                step = np.zeros_like(value)
                step[index] = 1e-4 * max(abs(value[index]), 1e-4 * np.abs(value).max())
                above, below = (at({**best, parameter.name: value + sign * step}) for sign in (1, -1))
                slopes.append((above - below) / (2 * step[index]))
        gradient = np.array(slopes)
        variance = np.einsum("i...,ij,j...->...", gradient, self.covariance, gradient)
        return at(best).copy(), np.sqrt(variance)


def aicc(rss: float, residuals: int, estimated: int) -> float:
    """Return Akaike's criterion for small samples, ``n ln(RSS/n) + 2 p + 2 p (p + 1)/(n - p - 1)``.

    Infinite without enough residuals. Source: Hurvich and Tsai 1989, Biometrika 76.

    Parameters
    ----------
    rss, residuals
        Sum of squares of the n residuals.
    estimated
        How many numbers p were estimated from the data, the variance of the noise among them.
    """
    n, p = residuals, estimated
    if n <= p + 1:
        return np.inf
    return float(n * np.log(rss / n) + 2 * p + 2 * p * (p + 1) / (n - p - 1))


def bic(rss: float, residuals: int, estimated: int) -> float:
    """Return Schwarz's criterion, ``n ln(RSS/n) + p ln n``; parameters as of :func:`aicc`."""
    return float(residuals * np.log(rss / residuals) + estimated * np.log(residuals))


def fit(
    assay: ScratchAssay,
    model: str = "porous-fisher",
    method: str = "fem",
    *,
    learner: str = "pde",
    hold_out: float | None = None,
    capacity: float | None = None,
    cells: int = 2,
    dt: float = 1.0,
    comm: MPI.Comm | None = None,
    progress: bool = True,
) -> Fit:
    """Fit a model to all wells, strips and times after the first jointly (collective).

    The state begins with the mean of the wells at the first time, linear between strips. The loss is
    ``1/2 sum (u(x, t) - measured)^2 / sigma^2``, minimised with bounds by exact gradients. The covariance of the
    estimates is ``s^2 H^-1`` with ``s^2 = 2 loss/(n - p)`` and H the exact Hessian at the minimum, without the rows of
    the numbers that lie on a bound.

    Parameters
    ----------
    assay
        The data.
    model
        One of :data:`~npde_fem.assay.MODELS`.
    method
        One of :data:`METHODS`.
    learner
        ``"pde"``: TAO's Newton method, with Hessian products too; ``"lbfgs"``: its quasi-Newton method. (SciPy's
        L-BFGS-B for both, where PETSc has complex scalars and so no TAO.)
    hold_out
        A time of the data to leave out of the fit, and to predict.
    capacity
        K in cells/um^2, where it is known; by default it is fitted.
    cells
        Cells of the mesh or grid a strip.
    dt
        Largest time step in h. Steps of several hours may push the foot of a steep front below zero, where the
        diffusivity of porous-Fisher is negative and the solve fails.
    comm
        Communicator, ``MPI.COMM_WORLD`` by default.
    progress
        Whether to draw a progress line (on a terminal).

    Returns
    -------
    Fit
        The same numbers on every rank.

    Raises
    ------
    ValueError
        If the model or method is unknown, the time held out is none of the data's after the first or the only one, the
        data has too few residuals, or a number is none of those allowed.
    SolveError
        If the equation cannot be solved at the first values.

    Warns
    -----
    UserWarning
        If the optimiser does not converge, or the data do not determine the parameters.

    Notes
    -----
    Standard errors, AICc and BIC take residuals as independent with one variance. Those of neighbouring strips are not
    quite, nor is a model the truth; so they are on the small side.
    """
    begun = time.perf_counter()
    comm = comm or MPI.COMM_WORLD
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; {', '.join(METHODS)} allowed")
    if learner not in LEARNERS:
        raise ValueError(f"learner {learner!r} is unknown; {', '.join(LEARNERS)} allowed")
    fitted = _fitted_times(assay, hold_out)
    law = model_for(assay, model, capacity)
    free = [p for p in law.parameters if p.name != "K" or capacity is None]
    problem = _discretise(law, method, assay, cells, comm)
    mean, wells = assay.mean[fitted], assay.replicates[fitted]
    numbers = sum(int(np.prod(p.ufl_shape, dtype=int)) for p in free)
    if wells.size <= numbers + 2:
        raise ValueError(f"assay: {wells.size} densities to fit {numbers} numbers to; at least {numbers + 3} needed")
    # Only a scale. Wells that do not differ at all have none.
    sigma = float(np.sqrt(np.mean(assay.std[fitted] ** 2))) or 0.01 * float(assay.mean.max())
    # Wells differ from the model by what they differ from their mean, and by what that differs from the model.
    within = float(np.sum((wells - mean[:, None]) ** 2)) / (2 * sigma**2)
    points = assay.position[:, None]

    def loss(solution: Any) -> Any:
        return misfit(solution, mean, points, sigma / np.sqrt(wells.shape[1])) + within

    start, scheme = _initial(assay), CrankNicolson()
    interval = float(assay.times[0]), float(assay.times[fitted][-1])
    constrained = PDEConstrainedProblem(
        problem,
        loss,
        free,
        u0=start,
        t=interval,
        dt=dt,
        scheme=scheme,
        observe=assay.times[fitted].tolist(),
        rescue=None,
        progress=False,
    )
    first = _flat(free)
    minimum = constrained.minimize(default_method(hessian=learner == "pde"), gtol=1e-5, progress=progress)
    bound = _at_bound(free, first)
    covariance = constrained.covariance(residuals=wells.size, held=bound)
    solution = solve(
        problem,
        start,
        (interval[0], float(assay.times[-1])),
        dt,
        scheme,
        observe=assay.times.tolist(),
        rescue=None,
        progress=False,
    )
    probe = Probe(problem, points)
    return Fit(
        model=law,
        method=method,
        assay=assay,
        parameters=_estimates(law, free, covariance, bound),
        covariance=covariance,
        loss=minimum.loss,
        sigma=sigma,
        residuals=wells.size,
        states=np.array([probe.apply(values)[:, 0] for values in solution.states]),
        hold_out=hold_out,
        minimum=minimum,
        seconds=time.perf_counter() - begun,
        _free=free,
    )


def _fitted_times(assay: ScratchAssay, hold_out: float | None) -> npt.NDArray[np.bool_]:
    """Mark the times to fit."""
    later = assay.times > assay.times[0]
    if hold_out is None:
        fitted = later
    else:
        fitted = later & (assay.times != hold_out)
        if hold_out not in assay.times[later]:
            times = ", ".join(f"{t:g}" for t in assay.times[later])
            raise ValueError(
                f"hold_out: {hold_out:g} h given; times after the first one in the data: {times or 'none'}"
            )
    if not fitted.any():
        raise ValueError("assay: no time is left to fit; at least one after the first is needed, beside one held out")
    return fitted


def _discretise(law: Model, method: str, assay: ScratchAssay, cells: int, comm: MPI.Comm) -> Semidiscrete:
    if cells < 1 or cells != int(cells):
        raise ValueError(f"cells a strip: a positive whole number allowed, {cells!r} given")
    left, right = assay.interval
    count = int(cells) * len(assay.position)
    if method == "fd":
        return FD(law.equation, Grid(comm, (count + 1,), (left,), (right,)))
    mesh = dolfinx.mesh.create_interval(comm, count, (left, right))
    return FEM(law.equation, dolfinx.fem.functionspace(mesh, ("Lagrange", 1)))


def _initial(assay: ScratchAssay) -> Callable[[Array], Array]:
    first = assay.mean[0]
    return lambda x: np.interp(x[0], assay.position, first)


def _flat(parameters: list[Parameter]) -> Array:
    return np.concatenate([np.ravel(p.value) for p in parameters])


def _at_bound(parameters: list[Parameter], first: Array) -> npt.NDArray[np.bool_]:
    """Which numbers lie on a bound, seen at the scale of their first values."""

    def ends(which: int, none: float) -> Array:
        return np.concatenate(
            [np.full(np.size(p.value), none if p.bounds[which] is None else p.bounds[which]) for p in parameters]
        )

    values, near = _flat(parameters), 1e-6 * np.abs(first)
    return (values <= ends(0, -np.inf) + near) | (values >= ends(1, np.inf) - near)


def _estimates(
    law: Model, free: list[Parameter], covariance: Array, bound: npt.NDArray[np.bool_]
) -> dict[str, Estimate]:
    errors = np.where(bound, np.nan, np.sqrt(np.diag(covariance)))
    found, first = {}, 0
    for p in law.parameters:
        value = np.array(p.value, dtype=np.float64)
        if p in free:
            part = slice(first, first + value.size)
            first += value.size
            error, at = errors[part].reshape(value.shape), bound[part].reshape(value.shape)
        else:
            error, at = np.zeros_like(value), np.zeros(value.shape, dtype=bool)
        found[p.name] = Estimate(value, error, law.units[p.name], at)
    return found
