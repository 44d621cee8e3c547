"""Places of neurons: lattices, positions in them, and interpolation between their points."""

from __future__ import annotations

from itertools import product
from typing import Any

from npde_fem.networks.lattice import Lattice
from npde_fem.parameter import as_numbers

import numpy as np
import numpy.typing as npt
import scipy.sparse

__all__ = ["check_count", "checked_points", "interpolation", "lattice_of"]


def check_count(label: str, count: Any) -> None:
    """Raise ValueError unless a number of inputs or outputs is a positive integer."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{label} = {count!r} given; a positive integer allowed")


def lattice_of(label: str, grid: Any, boundary: str | None) -> Lattice:
    """Return a lattice, or that of a shape with spacing 1 and a boundary ("zeros" by default).

    Raises
    ------
    TypeError, ValueError
        If the shape or the boundary is none, or a boundary is given besides a lattice.
    """
    if not isinstance(grid, Lattice):
        return Lattice(grid, boundary=boundary or "zeros")
    if boundary is not None:
        raise ValueError(f"{label}: boundary {boundary!r} given besides a Lattice, which has one")
    return grid


def checked_points(label: str, points: Any, lattice: Lattice) -> npt.NDArray[np.float64]:
    """Return positions in a lattice as an array (n, d).

    Parameters
    ----------
    label
        What they are, for messages.
    points
        Shape ``(n, d)``, or ``(n,)`` in one dimension.
    lattice
        Its first to last points bound the box that the positions must lie in.

    Raises
    ------
    TypeError, ValueError
        If they are no numbers, of another shape, not finite, or one lies outside.
    """
    found = as_numbers(label, points)
    if lattice.dim == 1 and found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or found.shape[1] != lattice.dim or not len(found):
        raise ValueError(f"{label}: positions of shape {found.shape} given; (n, {lattice.dim}) allowed, n at least 1")
    slack = 1e-9 * np.array(lattice.spacing)
    outside = ~np.all((found >= lattice.lower - slack) & (found <= lattice.last + slack), axis=1)
    if outside.any():
        raise ValueError(
            f"{label}: position {found[outside][0].tolist()} lies outside of the lattice; {lattice.lower} to "
            f"{lattice.last} allowed"
        )
    return found


def interpolation(lattice: Lattice, points: npt.NDArray[np.float64], beyond: str) -> scipy.sparse.csr_array:
    """Return the matrix ``(n, lattice.size)`` that takes values at a lattice's points to ``n`` positions (n, d).

    Beyond the first and last points the values go on as torch's padding of the name ``beyond`` would have them.
    """
    steps = (points - lattice.lower) / lattice.spacing
    low = np.floor(steps + 1e-9).astype(np.int64)
    share = np.maximum(steps - low, 0.0)
    rows, columns, weights = [], [], []
    for corner in product((0, 1), repeat=lattice.dim):
        index = low + corner
        weight = np.prod(np.where(corner, share, 1 - share), axis=1)
        last = np.array(lattice.shape) - 1
        if beyond == "zeros":
            weight = np.where(np.all((index >= 0) & (index <= last), axis=1), weight, 0.0)
        elif beyond == "circular":
            index %= last + 1
        elif beyond == "reflect":
            index = last - abs(last - index % (2 * last))
        index = np.clip(index, 0, last)
        kept = np.flatnonzero(weight)
        rows.append(kept)
        columns.append(np.ravel_multi_index(tuple(index[kept].T), lattice.shape))
        weights.append(weight[kept])
    entries = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
    return scipy.sparse.csr_array(entries, shape=(len(points), lattice.size))
