"""Nonlocal terms N u of an equation: what an equation read from a network has beyond flux and source.

    A u_tt + B u_t = div F + S + N u,

linear in the state, written about a lattice of points: a :class:`Stencil` of displaced values, what is left of a
convolution, or an :class:`Integral` over the lattice, a dense layer. Numpy only; :mod:`npde_fem.discretize` carries
them to any grid or mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PADDINGS", "Integral", "NonlocalTerm", "Stencil"]

PADDINGS = ("zeros", "replicate", "reflect", "circular")
"""What lies beyond the first and the last point of a lattice, as torch names it."""

_ON_LATTICE = 1e-6
"""How far from its lattice a point may lie, in spacings."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stencil:
    """``(N u)(x) = sum_o weights[:, :, o] u(x + o * spacing)``, the offsets o counted from the middle of the kernel.

    On its lattice that is a convolution of torch, padded; ``weights`` are its kernel, and axis a of space is axis
    2 + a of it.

    Parameters
    ----------
    weights
        Shape ``(m, m, *sizes)``, one odd size for each of 1 to 3 axes: rows (out) first.
    spacing
        Distance of the lattice's points along each axis; one number for all axes will do.
    padding
        How a displaced point beyond the lattice gets a value: ``"zeros"`` (0 at the first lattice point outside),
        ``"replicate"`` (that of the nearest point), ``"reflect"`` (mirrored about the first or last point), or
        ``"circular"`` (the period is ``upper - lower + spacing``).
    lower, upper
        First and last point of the lattice.

    Raises
    ------
    TypeError, ValueError
        If an argument is not made of finite numbers or has a wrong shape, a size is even, the lattice is no whole
        number of spacings wide, the padding is unknown, or is to reach further than the lattice goes.
    """

    weights: Array
    spacing: tuple[float, ...]
    padding: str
    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def __post_init__(self) -> None:
        weights = _numbers("Stencil", "weights", self.weights)
        shape = weights.shape
        if not 3 <= len(shape) <= 5 or shape[0] != shape[1] or not weights.size:
            raise ValueError(
                f"Stencil: weights of shape {shape} given; (m, m, *sizes) with one size for each of 1 to 3 axes allowed"
            )
        even = [size for size in shape[2:] if size % 2 == 0]
        if even:
            raise ValueError(f"Stencil: weights have the even sizes {even} in {shape[2:]}; odd sizes allowed")
        _set(self, "weights", weights)
        for name in ("spacing", "lower", "upper"):
            values = _numbers("Stencil", name, getattr(self, name))
            if values.shape not in {(), (1,), (self.dim,)}:
                raise ValueError(f"Stencil: {name} of shape {values.shape} given; ({self.dim},) allowed")
            object.__setattr__(self, name, tuple(np.broadcast_to(values, self.dim).tolist()))
        if min(self.spacing) <= 0:
            raise ValueError(f"Stencil: spacing {self.spacing} given; positive numbers allowed")
        if self.padding not in PADDINGS:
            raise ValueError(f"Stencil: padding {self.padding!r} given; {', '.join(PADDINGS)} allowed")
        self._check_lattice()

    def _check_lattice(self) -> None:
        steps = (np.array(self.upper) - self.lower) / self.spacing
        if np.any(steps < 1 - _ON_LATTICE) or np.any(np.abs(steps - np.round(steps)) > _ON_LATTICE):
            raise ValueError(
                f"Stencil: lower {self.lower} and upper {self.upper} given; upper must be a whole number, from 1 on, "
                f"of spacings {self.spacing} above lower"
            )
        most = {"reflect": -1, "circular": 0}.get(self.padding)
        for size, points in zip(self.sizes, self.shape, strict=True):
            if most is not None and size // 2 > points + most:
                raise ValueError(
                    f"Stencil: a kernel of size {size} on {points} points given; padding {self.padding!r} reaches "
                    f"{points + most} points at most"
                )

    @property
    def components(self) -> int:
        """Components m of the state."""
        return int(self.weights.shape[0])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Size of the kernel along each axis."""
        return self.weights.shape[2:]

    @property
    def dim(self) -> int:
        """Space dimension."""
        return len(self.sizes)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Points of the lattice along each axis."""
        steps = (np.array(self.upper) - self.lower) / self.spacing
        return tuple(int(n) + 1 for n in np.round(steps))


@dataclass(frozen=True, eq=False)
class Integral:
    """``(N u)(x) = sum_j K(x, y_j) u(y_j)``, given at the points y_j of a lattice and multilinear in x between them.

    Beyond the lattice it is constant: that of the nearest point of its box.

    Parameters
    ----------
    points
        The lattice's points, shape ``(n, d)`` (or ``(n,)`` for d = 1), in any order: all those of a uniform tensor
        lattice, once each.
    weights
        ``K[a, i, b, j]``, what component b at point j adds to component a at point i, shape ``(m, n, m, n)``; or as
        matrix ``(m n, m n)``, the points of a component one after the other.

    Raises
    ------
    TypeError, ValueError
        If an argument is not made of finite numbers or has a wrong shape, or the points are no lattice.
    """

    points: Array
    weights: Array

    def __post_init__(self) -> None:
        points = _numbers("Integral", "points", self.points)
        given = points.shape
        points = points[:, None] if points.ndim == 1 else points
        if points.ndim != 2 or not 1 <= points.shape[1] <= 3 or not len(points):
            raise ValueError(
                f"Integral: points of shape {given} given; (n, d) with n from 1 on and d from 1 to 3 allowed"
            )
        _set(self, "points", points)
        if len(np.unique(self._flat)) != len(points) or prod(self.shape) != len(points):
            raise ValueError(
                f"Integral: {len(points)} points given, not those of a lattice of {self.shape} points, once each"
            )
        weights, n = _numbers("Integral", "weights", self.weights), len(points)
        shape = weights.shape
        if len(shape) == 2 and shape[0] == shape[1] and shape[0] and shape[0] % n == 0:
            weights = weights.reshape(shape[0] // n, n, shape[0] // n, n)
        if weights.ndim != 4 or weights.shape != (weights.shape[0], n, weights.shape[0], n) or not weights.size:
            raise ValueError(
                f"Integral: weights of shape {shape} given; (m, {n}, m, {n}), as there are {n} points, allowed"
            )
        _set(self, "weights", weights)

    @property
    def components(self) -> int:
        """Components m of the state."""
        return int(self.weights.shape[0])

    @property
    def dim(self) -> int:
        """Space dimension."""
        return int(self.points.shape[1])

    @cached_property
    def lower(self) -> tuple[float, ...]:
        """First point of the lattice."""
        return tuple(self.points.min(axis=0).tolist())

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Distance of neighbouring points along each axis; 1 where there is one point only."""
        found = []
        for x in self.points.T:
            apart = np.diff(np.sort(x))
            apart = apart[apart > _ON_LATTICE * np.ptp(x) / len(x)]
            # The mean over all steps is exact where the smallest one has round-off.
            found.append(float(np.ptp(x) / np.round(np.ptp(x) / apart.min())) if apart.size else 1.0)
        return tuple(found)

    @cached_property
    def _index(self) -> npt.NDArray[np.int64]:
        """Place of each point in the lattice, shape (n, d)."""
        place = (self.points - self.lower) / self.spacing
        index = np.round(place)
        if np.any(np.abs(place - index) > _ON_LATTICE):
            k = int(np.argmax(np.max(np.abs(place - index), axis=1)))
            raise ValueError(
                f"Integral: point {k} at {tuple(self.points[k].tolist())} lies off the uniform lattice of spacing "
                f"{self.spacing} from {self.lower} on"
            )
        return index.astype(np.int64)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Points of the lattice along each axis."""
        return tuple(int(k) + 1 for k in self._index.max(axis=0))

    @cached_property
    def _flat(self) -> npt.NDArray[np.int64]:
        return np.ravel_multi_index(tuple(self._index.T), self.shape).astype(np.int64)

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """Which of the points stands where in the lattice, the last axis fastest."""
        return np.argsort(self._flat)


NonlocalTerm = Stencil | Integral


def _numbers(owner: str, name: str, value: Any) -> Array:
    """Return a new float64 array of finite numbers."""
    if np.iscomplexobj(value):
        raise TypeError(f"{owner}: {name} is complex; real numbers allowed")
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{owner}: {name} must be made of numbers, not {value!r}") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{owner}: {name} has {np.sum(~np.isfinite(array))} values that are NaN or infinite")
    return array


def _set(owner: Any, name: str, array: Array) -> None:
    array.setflags(write=False)
    object.__setattr__(owner, name, array)
