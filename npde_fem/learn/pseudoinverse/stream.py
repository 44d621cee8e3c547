"""Read-outs from samples that come in batches, on many ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from npde_fem.learn.pseudoinverse.factorise import MOST_COLUMNS, Triangle
from npde_fem.learn.pseudoinverse.ridge import Method, Readout, Ridge, checked_method, checked_ridge, solved
from npde_fem.parallel import alike

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI

__all__ = ["Stream", "as_rows", "solve_readout"]

Array = npt.NDArray[np.float64]


class Stream:
    """Features and targets that are taken in batch by batch: their triangle is kept, they are not.

    Parameters
    ----------
    bias
        Whether there is a constant beside the features, which is not penalised.

    Attributes
    ----------
    samples
        Rows of positive weight that this rank has taken in.

    Examples
    --------
    >>> stream = Stream()
    >>> for features, targets in batches:
    ...     stream.add(features, targets)
    >>> readout = stream.solve("gcv")
    """

    def __init__(self, bias: bool = True) -> None:
        self.bias, self.samples = bool(bias), 0
        self._seen, self._shape = 0, (-1, -1)
        self._flat = False
        self._triangle: Triangle | None = None

    def add(self, features: Any, targets: Any, weights: Any = None) -> None:
        """Take in a batch of this rank's own samples (no communication).

        Parameters
        ----------
        features
            Shape (samples, features), array or tensor; samples may be none.
        targets
            Shape (samples, outputs) or (samples,).
        weights
            Shape (samples,), 0 or more; that of the squared error of each sample.

        Raises
        ------
        TypeError, ValueError
            If they are no real numbers, one is not finite (the message names the sample, counted over all batches of
            this rank), shapes do not fit each other or earlier batches, or there are too many columns.
        """
        first = self._seen
        h, y = as_rows("features", features, first), as_rows("targets", targets, first)
        if h.ndim != 2:
            raise ValueError(f"features: shape {h.shape} given; (samples, features) allowed")
        if y.ndim not in (1, 2) or len(y) != len(h):
            raise ValueError(f"targets: shape {y.shape} given; ({len(h)},) or ({len(h)}, outputs) allowed")
        flat, y = y.ndim == 1, y.reshape(len(h), 1 if y.ndim == 1 else y.shape[1])
        root = _roots(weights, len(h), first)
        shape = (h.shape[1], y.shape[1])
        if self._triangle is None:
            if not min(shape):
                raise ValueError(f"features and targets: {shape[0]} and {shape[1]} columns given; 1 or more allowed")
            if sum(shape) + self.bias > MOST_COLUMNS:
                raise ValueError(
                    f"features: {shape[0]} columns given beside {shape[1]} of targets; {MOST_COLUMNS} in all allowed"
                )
            self._triangle, self._shape, self._flat = Triangle(self.bias + sum(shape)), shape, flat
        if (shape, flat) != (self._shape, self._flat):
            raise ValueError(
                f"features and targets: {shape[0]} and {shape[1]} columns given; {self._shape[0]} and {self._shape[1]} "
                "allowed, as in the batches before"
            )
        # A block at a time: a batch is not to be copied as a whole.
        for start in range(0, len(h), self._triangle.columns):
            part = slice(start, start + self._triangle.columns)
            ones = [np.ones((len(h[part]), 1))] if self.bias else []
            block = np.hstack([*ones, h[part], y[part]])
            if root is not None:
                block *= root[part, None]
                block = block[root[part] > 0]
            self._triangle.add(block)
            self.samples += len(block)
        self._seen += len(h)

    def solve(
        self,
        ridge: Ridge = "gcv",
        method: Method = "svd",
        comm: MPI.Comm | None = None,
        *,
        standardise: bool = False,
        tolerance: float | None = None,
    ) -> Readout:
        """Return the read-out of the samples of all ranks, the same on each (collective on ``comm``).

        More samples may be taken in afterwards on one rank only: on several, the triangles have been united.

        Parameters
        ----------
        ridge, method, comm, standardise, tolerance
            As of :func:`solve_readout`. Ranks may have taken in nothing at all.

        Raises
        ------
        TypeError, ValueError
            As :func:`solve_readout`.
        """
        return self.united(comm).readout(ridge, method, standardise=standardise, tolerance=tolerance)

    def united(self, comm: MPI.Comm | None = None) -> United:
        """Return the triangle of the samples of all ranks (collective on ``comm``)."""
        comm = MPI.COMM_SELF if comm is None else comm
        known = [facts for facts in comm.allgather((self._shape, self._flat, self.bias)) if facts[0] != (-1, -1)]
        if not known or not comm.allreduce(self.samples):
            raise ValueError("features: no samples of positive weight given on any rank; at least one is needed")
        if len(set(known)) > 1:
            shapes = sorted({shape for shape, _, _ in known})
            raise ValueError(f"features and targets: ranks have {shapes} columns; the same on all ranks allowed")
        (shape, flat, bias), samples = known[0], comm.allreduce(self.samples)
        if self._triangle is None:
            self._triangle = Triangle(bias + sum(shape))
        return United(self._triangle.reduced(comm), samples, shape[0], flat, bias)


class United:
    """The triangle of ``[1 H Y]`` of all samples, replicated.

    Attributes
    ----------
    triangle
        Shape (least of rows and columns, columns).
    samples, features
        How many there are.
    """

    def __init__(self, triangle: Array, samples: int, features: int, flat: bool, bias: bool) -> None:
        self.triangle, self.samples, self.features = triangle, samples, features
        self._flat, self._bias = flat, bias

    def readout(
        self,
        ridge: Ridge = "gcv",
        method: Method = "svd",
        *,
        standardise: bool = False,
        tolerance: float | None = None,
    ) -> Readout:
        """Return the read-out; parameters as of :func:`solve_readout` (no communication)."""
        ridge, method = checked_ridge(ridge), checked_method(method)
        if tolerance is not None and not 0 <= tolerance < 1:
            raise ValueError(f"tolerance: {tolerance!r} given; a number from 0 to below 1 allowed")
        found = solved(
            self.triangle,
            self.samples,
            self.features,
            bias=self._bias,
            ridge=ridge,
            method=method,
            standardise=standardise,
            tolerance=tolerance,
        )
        if not self._flat:
            return found
        return replace(found, weights=found.weights[:, 0], bias=found.bias[0])


def solve_readout(
    H: Any,
    Y: Any,
    ridge: Ridge = "gcv",
    method: Method = "svd",
    comm: MPI.Comm | None = None,
    *,
    weights: Any = None,
    bias: bool = True,
    standardise: bool = False,
    tolerance: float | None = None,
) -> Readout:
    """Return the linear read-out of features: ``argmin ||H W + b - Y||^2 + lambda ||W||^2`` (collective on ``comm``).

    By orthogonal factorisations only: the product ``H^T H``, which would square the condition, is never formed.

    Parameters
    ----------
    H
        Features of this rank's samples, shape (samples, features), array or tensor; a rank may have none, (0, n).
    Y
        Targets, shape (samples, outputs) or (samples,).
    ridge
        lambda, or ``"gcv"``: that which minimises generalised cross-validation (Golub, Heath and Wahba 1979,
        Technometrics 21, 215), one for all outputs.
    method
        ``"svd"``: singular values of the triangle. ``"qr"``: pivoted QR of it with ``sqrt(lambda) E`` below (Golub
        1965; for ``"gcv"`` lambda comes from the singular values nevertheless). Both give the same.
    comm
        Ranks over which the samples are distributed; by default this rank alone has them all.
    weights
        Of the squared errors of this rank's samples, shape (samples,), 0 or more; 1 by default.
    bias
        Whether there is a bias b. It is not penalised.
    standardise
        Penalise the weights of features divided by their standard deviation (without a bias: by their root mean
        square), as if these were what was given. The weights returned are those of the features themselves.
    tolerance
        Singular values below this share of the largest one count as 0, and weights are the shortest of the best ones.
        By default the precision of floating-point numbers times the larger of samples and features.

    Returns
    -------
    Readout
        The same, to the last bit, on every rank; for other numbers of ranks to round-off.

    Raises
    ------
    TypeError, ValueError
        On every rank alike: if ``ridge`` is negative, something is not finite, shapes do not fit or differ between
        ranks, there are no samples at all, or more columns than 46340 with targets and bias.

    Notes
    -----
    Time is of order ``samples * columns^2 / ranks + columns^3 * (1 + log2 ranks)``, memory ``2 columns^2`` beside the
    features. For features that do not fit memory see :class:`Stream`.
    """
    comm = MPI.COMM_SELF if comm is None else comm
    stream = Stream(bias)
    with alike(comm):
        stream.add(H, Y, weights)
    with alike(comm):
        checked_ridge(ridge)
        checked_method(method)
    return stream.solve(ridge, method, comm, standardise=standardise, tolerance=tolerance)


def as_rows(label: str, given: Any, first: int = 0) -> Array:
    """Return real, finite numbers as float64 array, or raise TypeError or ValueError that names the sample."""
    array = given.detach().cpu().resolve_conj().resolve_neg().numpy() if isinstance(given, torch.Tensor) else given
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{label}: {array.dtype} given; real numbers allowed (of complex ones .real, .imag or abs)")
    array = array.astype(np.float64, copy=False)
    # The sum is finite where all are, but for overflow; then all are looked at.
    if array.size and not np.isfinite(array.sum()):
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1) if array.ndim else np.array([True])
        if bad.any():
            k = int(np.argmax(bad))
            raise ValueError(
                f"{label}: NaN or infinity in sample {first + k} (and in {int(bad.sum()) - 1} more of this batch); "
                "finite numbers allowed"
            )
    return array


def _roots(weights: Any, count: int, first: int) -> Array | None:
    """Return the square roots of the samples' weights."""
    if weights is None:
        return None
    w = as_rows("weights", weights, first)
    if w.shape != (count,) or (w < 0).any():
        raise ValueError(f"weights: shape {w.shape} from {w.min(initial=0.0):g} given; ({count},), 0 or more, allowed")
    return np.sqrt(w)
