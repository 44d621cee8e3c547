"""The linear read-out: least squares with a penalty on the weights, from a triangle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg
from scipy.optimize import brentq

__all__ = ["Method", "Readout", "Ridge", "checked_method", "checked_ridge", "solved"]

Array = npt.NDArray[np.float64]
Ridge = float | Literal["gcv"]
Method = Literal["qr", "svd"]

_DECADES, _PER_DECADE, _ABOVE = 18, 4, 2
"""Penalties that cross-validation tries: decades, points in each, decades above the largest singular value squared."""


@dataclass(frozen=True)
class Readout:
    """A linear read-out ``H W + b``.

    Attributes
    ----------
    weights
        W, shape (features, outputs); of targets without an axis of outputs (features,).
    bias
        b, shape (outputs,) or (); zeros if none was asked for.
    ridge
        The penalty lambda, as given or found.
    rank
        Numerical rank of the features, less their mean if there is a bias.
    condition
        Ratio of their largest to their smallest singular value; infinite if that is 0.
    score
        Generalised cross-validation: an estimate of the mean squared error of a new sample's outputs. Infinite where
        there are no more samples than degrees of freedom.
    residual
        ``||H W + b - Y|| / ||Y||`` over the samples it was made from; less their mean in the denominator with a bias.
    mean_square
        Mean squared error of the outputs over these samples.
    samples
        Their number.
    """

    weights: Array
    bias: Array
    ridge: float
    rank: int
    condition: float
    score: float
    residual: float
    mean_square: float
    samples: int

    def __call__(self, features: npt.ArrayLike) -> Array:
        """Return the outputs for features (samples, features)."""
        return np.asarray(features, dtype=np.float64) @ self.weights + self.bias


def checked_ridge(ridge: Any) -> Ridge:
    """Return a penalty, or raise TypeError or ValueError."""
    if isinstance(ridge, str) and ridge == "gcv":
        return "gcv"
    if isinstance(ridge, bool | str) or not isinstance(ridge, int | float | np.integer | np.floating):
        raise TypeError(f"ridge: {ridge!r} given; 'gcv' or a number, 0 or more, allowed")
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"ridge: {ridge!r} given; 'gcv' or a finite number, 0 or more, allowed")
    return float(ridge)


def checked_method(method: Any) -> Method:
    """Return a method, or raise ValueError."""
    if method not in ("qr", "svd"):
        raise ValueError(f"method: {method!r} given; 'qr' or 'svd' allowed")
    return method


def solved(
    triangle: Array,
    samples: int,
    features: int,
    *,
    bias: bool,
    ridge: Ridge,
    method: Method,
    standardise: bool = False,
    tolerance: float | None = None,
) -> Readout:
    """Return the read-out, given the triangle of ``[1 H Y]``, without 1 if there is no bias.

    The first column of Q is the constant one. What stands right of the triangle's first row belongs to the means, and
    the rest is the triangle of ``[H Y]`` less their means: so the bias is free of the penalty, and nothing is
    subtracted that could cancel.

    Parameters
    ----------
    triangle
        Shape (least of rows and columns, columns).
    samples, features
        Rows of H (of positive weight), and its columns.
    bias, ridge, method, standardise, tolerance
        As of :func:`npde_fem.learn.pseudoinverse.solve_readout`.
    """
    first = int(bias)
    r = triangle[first : first + features, first : first + features]
    q_y = triangle[first : first + features, first + features :]
    outside = float(np.sum(triangle[first + features :, first + features :] ** 2))
    lengths = np.ones(features)
    if standardise:
        lengths = np.linalg.norm(r, axis=0) / math.sqrt(samples)
        means = np.abs(triangle[0, 1 : 1 + features]) / math.sqrt(samples) if bias else np.zeros(features)
        # What varies by no more than single precision's round-off is constant.
        constant = lengths <= 4 * np.finfo(np.float32).eps * means
        constant |= lengths <= np.finfo(float).eps * max(1.0, lengths.max(initial=0.0))
        lengths[constant] = 1.0
        r = r / lengths
    problem = _Problem.of(r, q_y, outside, samples, first, tolerance)
    penalty = problem.best() if ridge == "gcv" else float(ridge)
    if method == "svd":
        weights = problem.weights(penalty)
    else:
        weights = _by_qr(r, q_y, penalty, problem.cutoff)
    weights /= lengths[:, None]
    offset = np.zeros(weights.shape[1])
    if bias:
        top = triangle[0]
        offset = (top[1 + features :] - top[1 : 1 + features] @ weights) / top[0]
    outputs = weights.shape[1]
    rest, whole = problem.misfit(penalty), float(np.sum(q_y**2)) + outside
    return Readout(
        weights,
        offset,
        penalty,
        len(problem.s),
        problem.condition,
        problem.score(penalty) / outputs,
        math.sqrt(rest / whole) if whole > 0 else 0.0,
        rest / (samples * outputs),
        samples,
    )


def _by_qr(r: Array, q_y: Array, penalty: float, cutoff: float) -> Array:
    """Return the weights by QR with column pivoting of the triangle with ``sqrt(lambda) E`` below it.

    Without a penalty, and where the rank is less than the number of columns, a second QR from the other side makes the
    weights the shortest ones (complete orthogonal factorisation, LAPACK's gelsy).
    """
    if penalty > 0:
        r = np.vstack([r, math.sqrt(penalty) * np.eye(r.shape[1])])
        q_y = np.vstack([q_y, np.zeros((r.shape[1], q_y.shape[1]))])
    if not len(r):
        return np.zeros((r.shape[1], q_y.shape[1]))
    found: Array = scipy.linalg.lstsq(r, q_y, cond=cutoff if penalty == 0 else None, lapack_driver="gelsy")[0]
    return found


@dataclass(frozen=True)
class _Problem:
    """``||R W - C||^2 + outside + lambda ||W||^2`` in terms of singular values, those of the numerical rank.

    ``c`` are the targets' coordinates along the left singular vectors, ``outside`` the square of what no weights reach.
    """

    s: Array
    right: Array
    c: Array
    outside: float
    samples: int
    fixed: int
    condition: float
    cutoff: float

    @classmethod
    def of(cls, r: Array, q_y: Array, outside: float, samples: int, fixed: int, tolerance: float | None) -> _Problem:
        left, s, right = _svd(r)
        cutoff = np.finfo(float).eps * max(samples, r.shape[1]) if tolerance is None else float(tolerance)
        largest = s[0] if len(s) else 0.0
        rank = int(np.sum(s > cutoff * largest))
        c = left.T @ q_y
        lost = max(0.0, float(np.sum(c[rank:] ** 2)))
        condition = float(largest / s[-1]) if len(s) and s[-1] > 0 else math.inf
        return cls(s[:rank], right[:rank], c[:rank], outside + lost, samples, fixed, condition, cutoff)

    def _filters(self, penalty: float) -> Array:
        """What a penalty takes from each coordinate, ``lambda / (s^2 + lambda)``, as a share."""
        return penalty / (self.s**2 + penalty) if penalty > 0 else np.zeros_like(self.s)

    def weights(self, penalty: float) -> Array:
        found: Array = self.right.T @ ((self.s / (self.s**2 + penalty))[:, None] * self.c)
        return found

    def misfit(self, penalty: float) -> float:
        """Return the squared residual over all samples."""
        return self.outside + float(np.sum((self._filters(penalty)[:, None] * self.c) ** 2))

    def score(self, penalty: float) -> float:
        """Return the function of generalised cross-validation.

            V(lambda) = N ||(E - A) Y||^2 / tr(E - A)^2,    A = H (H^T H + lambda)^-1 H^T and the mean,

        Golub, Heath and Wahba 1979, Technometrics 21, 215, eq. 1.4. The trace is summed without cancellation.
        """
        free = max(0, self.samples - self.fixed - len(self.s)) + float(np.sum(self._filters(penalty)))
        return self.samples * self.misfit(penalty) / free**2 if free > 0 else math.inf

    def _slope(self, log_penalty: float) -> float:
        """Return the derivative of the score's logarithm by that of the penalty."""
        f = self._filters(math.exp(log_penalty))
        g = f * (1 - f)
        free = max(0, self.samples - self.fixed - len(self.s)) + float(np.sum(f))
        misfit = self.misfit(math.exp(log_penalty))
        if misfit == 0 or free == 0:
            return 0.0
        return 2 * float(np.sum((f * g)[:, None] * self.c**2)) / misfit - 2 * float(np.sum(g)) / free

    def best(self) -> float:
        """Return the penalty that minimises the score: the best of a grid, refined between its neighbours.

        The zero of the slope is found to far more digits than the least of values that hardly differ.
        """
        if not len(self.s):
            return 0.0
        top = 2 * math.log(self.s[0]) + _ABOVE * math.log(10)
        logs = top - math.log(10) / _PER_DECADE * np.arange(_DECADES * _PER_DECADE + 1)
        k = int(np.argmin([self.score(math.exp(v)) for v in logs]))
        low, high = logs[min(k + 1, len(logs) - 1)], logs[max(k - 1, 0)]
        if self._slope(low) < 0 < self._slope(high):
            return math.exp(brentq(self._slope, low, high, xtol=1e-15, rtol=1e-15))
        return math.exp(logs[k])


def _svd(a: Array) -> tuple[Array, Array, Array]:
    """Return the singular value decomposition; by the slower, surer algorithm where the fast one does not converge."""
    try:
        return scipy.linalg.svd(a, full_matrices=False)
    except np.linalg.LinAlgError:
        return scipy.linalg.svd(a, full_matrices=False, lapack_driver="gesvd")
