"""Values from what users give: numbers, callables on coordinates, arrays. Shared by both discretisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from npde_fem.parallel import Refused, alike
from npde_fem.parameter import as_complex

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

__all__ = ["complex_values", "evaluate_callable", "finite", "refuse_negative", "select"]


def evaluate_callable(
    label: str,
    function: Callable,
    x: npt.NDArray[np.float64],
    shape: tuple[int, ...] = (),
    dtype: type = float,
) -> npt.NDArray:
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
    dtype
        float or complex.

    Returns
    -------
    ndarray
        Float64 or complex128 values of shape ``(n,) + shape``.

    Raises
    ------
    TypeError, ValueError
        If the callable raises, returns another shape, or values that are not finite.
    """
    n = x.shape[1]
    try:
        values = np.asarray(function(x))
        if dtype is float and np.iscomplexobj(values):
            raise TypeError("it returned complex values; real ones allowed")
        values = values.astype(dtype)
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


def complex_values(
    label: str, data: Any, x: npt.NDArray[np.float64], shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """Return the real pairs of complex data at nodes.

    Parameters
    ----------
    label
        Names the argument in errors.
    data
        A number, one number a component, a numpy callable of coordinates, an array of one complex number a node and
        component, or of its real pairs.
    x
        Coordinates of the nodes, shape (3, n).
    shape
        Value shape at a node, () or (m,).

    Returns
    -------
    ndarray
        Flat float64 array of real and imaginary part in turn.

    Raises
    ------
    TypeError, ValueError
        If the data is not made of numbers, has another shape, or is not finite.
    """
    n = x.shape[1]
    size = n * int(np.prod(shape, dtype=int))
    if callable(data):
        return evaluate_callable(label, data, x, shape, complex).reshape(-1).view(np.float64)
    array = as_complex(label, data)
    pairs = None if np.iscomplexobj(data) else array.real
    finite(label, array)
    if array.shape in {(), shape}:
        return np.broadcast_to(array, (n, *shape)).reshape(-1).copy().view(np.float64)
    if array.shape == (size,):
        return array.view(np.float64)
    if pairs is not None and pairs.shape == (2 * size,):
        return pairs.copy()
    raise ValueError(
        f"{label}: array of shape {array.shape} given; {shape}, or this rank's ({size},) complex values, allowed"
    )


def finite(label: str, values: Any) -> None:
    """Raise ValueError if values are not all finite."""
    if not np.isfinite(values).all():
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


def refuse_negative(
    comm: MPI.Comm,
    tensors: Sequence[npt.NDArray[np.float64]],
    place: Callable[[int], npt.NDArray[np.float64]],
    t: float,
) -> None:
    """Raise Refused, alike on all ranks, if the symmetric part of a diffusion tensor has a negative eigenvalue.

    Parameters
    ----------
    comm
        Communicator.
    tensors
        For each component dF/d(grad u) at some places of this rank, shape (n, d, d); -0 and round-off pass.
    place
        Coordinates of the k-th place.
    t
        Time, for the message.
    """
    with alike(comm):
        for component, tensor in enumerate(tensors):
            if not tensor.size:
                continue
            lowest = np.linalg.eigvalsh(0.5 * (tensor + tensor.transpose(0, 2, 1)))[:, 0]
            k = int(np.argmin(lowest))
            if lowest[k] < -1e-12 * np.max(np.abs(tensor)):
                x = place(k)[: tensor.shape[-1]].round(6).tolist()
                raise Refused(
                    f"negative diffusion: dF/d(grad u) of component {component} has the eigenvalue {lowest[k]:.3g} "
                    f"near x = {x}, t = {t:g}"
                )
