"""Values from what users give: numbers, callables on coordinates, arrays. Shared by both discretisations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["evaluate_callable", "select"]


def evaluate_callable(
    label: str, function: Callable, x: npt.NDArray[np.float64], shape: tuple[int, ...] = ()
) -> npt.NDArray[np.float64]:
    """Evaluate a user's numpy callable at points.

    Parameters
    ----------
    label
        Names the argument in errors.
    function
        Takes coordinates of shape (3, n), returns values that broadcast to ``shape + (n,)``.
    x
        Coordinates, shape (3, n).
    shape
        Value shape at a point.

    Returns
    -------
    ndarray
        Float64 values of shape ``(n,) + shape``.

    Raises
    ------
    TypeError, ValueError
        If the callable raises, returns another shape, or values that are not finite.
    """
    n = x.shape[1]
    try:
        values = np.asarray(function(x))
        values = values.astype(np.float64)
    except Exception as error:
        raise TypeError(
            f"{label}: calling it with coordinates of shape {x.shape} failed: {error}. It must be written in numpy"
        ) from error
    if values.shape == shape:
        values = np.repeat(values[..., None], n, axis=-1)
    if values.shape != (*shape, n):
        raise ValueError(f"{label}: returned shape {values.shape} for {n} points; {(*shape, n)} allowed")
    finite(label, values)
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))


def finite(label: str, values: Any) -> None:
    """Raise ValueError if values are not all finite."""
    if not np.all(np.isfinite(values)):
        count = int(np.sum(~np.isfinite(values)))
        raise ValueError(f"{label}: {count} of {np.size(values)} values are NaN or infinite; finite values allowed")


def select(label: str, marker: Callable | None, x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Evaluate a marker at points; None selects all.

    Raises
    ------
    TypeError, ValueError
        If the marker raises, or does not return one boolean a point.
    """
    n = x.shape[1]
    if marker is None:
        return np.ones(n, dtype=bool)
    if not callable(marker):
        raise TypeError(f"{label}: marker must be a callable on coordinates or None, not {marker!r}; tags are for FEM")
    try:
        chosen = np.asarray(marker(x))
    except Exception as error:
        raise TypeError(f"{label}: the marker raised {type(error).__name__}: {error}") from error
    if chosen.shape == ():
        chosen = np.full(n, chosen)
    if chosen.shape != (n,) or chosen.dtype != np.bool_:
        raise ValueError(
            f"{label}: the marker returned {chosen.dtype} of shape {chosen.shape} for {n} points; "
            f"({n},) booleans allowed"
        )
    return chosen
