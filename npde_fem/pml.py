"""Perfectly matched layers: what absorbs waves, inside a box, before they meet its boundary; symbols only.

In a layer of thickness L the coordinate across it, x_a, is stretched into the complex plane by
``s_a = 1 + i sigma_a / k`` (waves ``exp(-i omega t)``; Berenger 1994, J. Comput. Phys. 114; Chew and Weedon 1994,
Microw. Opt. Technol. Lett. 7), with the profile

    sigma_a = (p + 1) / (2 L) ln(1 / R) (depth / L)^p,

so that a wave that crosses the layer at normal incidence, is reflected at its end and comes back has, but for errors of
the discretisation, the amplitude R. Nothing is reflected where the layer begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import ufl

__all__ = ["PML"]


@dataclass(frozen=True)
class PML:
    """Perfectly matched layers along the sides of the box ``[lower, upper]``, inside it.

    Parameters
    ----------
    lower, upper
        Corners of the box, one number an axis: the domain's.
    thickness
        A number for all sides; one for each axis; or a pair (low, high) for each axis. 0 is no layer.
    reflection
        R, the amplitude reflected at normal incidence.
    power
        p, the power of the profile.

    Attributes
    ----------
    sides
        Thickness of each layer, a pair (low, high) for each axis.

    Raises
    ------
    TypeError, ValueError
        If the arguments are not numbers, have other shapes, a thickness is negative, the layers of an axis are thicker
        than the box, R is not in (0, 1), or p < 1.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    thickness: Any
    reflection: float = 1e-6
    power: int = 2

    def __post_init__(self) -> None:
        lower, upper, thickness = (
            _numbers(name, getattr(self, name), axes) for name, axes in (("lower", 1), ("upper", 1), ("thickness", 2))
        )
        dim = lower.size
        if upper.shape != (dim,) or not 1 <= dim <= 3:
            raise ValueError(f"PML: lower {self.lower} and upper {self.upper} given; 1, 2 or 3 numbers each allowed")
        if thickness.ndim == 1 and thickness.shape == (dim,):
            thickness = np.stack([thickness, thickness], axis=1)
        if thickness.shape not in {(), (dim, 2)}:
            raise ValueError(
                f"PML: thickness {self.thickness} given; a number, one for each of the {dim} axes, or a pair "
                "(low, high) for each allowed"
            )
        sides = np.broadcast_to(thickness, (dim, 2))
        if np.any(sides < 0):
            raise ValueError(f"PML: thickness {self.thickness} given; it must not be negative")
        for axis, (extent, both) in enumerate(zip(upper - lower, sides.sum(axis=1), strict=True)):
            if not extent > 0:
                raise ValueError(f"PML: lower {self.lower} must be below upper {self.upper} along every axis")
            if both >= extent:
                raise ValueError(
                    f"PML thicker than the domain: along axis {axis} the layers take {both:g} of its {extent:g}"
                )
        for name, good, allowed in (
            ("reflection", lambda v: 0 < v < 1, "a number between 0 and 1"),
            ("power", lambda v: v >= 1 and v == int(v), "an integer from 1 on"),
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float | np.number) or not good(value):
                raise ValueError(f"PML: {name} {value!r} given; {allowed} allowed")
        object.__setattr__(self, "lower", tuple(lower.tolist()))
        object.__setattr__(self, "upper", tuple(upper.tolist()))
        object.__setattr__(self, "sides", tuple(tuple(pair) for pair in sides.tolist()))

    @property
    def dim(self) -> int:
        """Space dimension."""
        return len(self.lower)

    def absorption(self, x: Any) -> list[Any]:
        """Return sigma_a at x, in UFL, one for each axis; 0 where there is no layer.

        Raises
        ------
        ValueError
            If x has another dimension than the box.
        """
        if x.ufl_shape != (self.dim,):
            raise ValueError(f"PML: a box in {self.dim} dimensions given, the domain has {x.ufl_shape[0]}")
        sides: tuple[tuple[float, float], ...] = self.sides  # type: ignore[attr-defined]
        return [
            self._profile(self.lower[a] + low - x[a], low) + self._profile(x[a] - self.upper[a] + high, high)
            for a, (low, high) in enumerate(sides)
        ]

    def _profile(self, depth: Any, thickness: float) -> Any:
        if thickness == 0:
            return ufl.as_ufl(0.0)
        strength = (self.power + 1) / (2 * thickness) * log(1 / self.reflection)
        return ufl.conditional(ufl.gt(depth, 0), strength * (depth / thickness) ** int(self.power), 0.0)

    def stretching(self, x: Any, wavenumber: Any, strength: float = 1.0) -> list[Any]:
        """Return ``s_a = 1 + i strength sigma_a / k`` at x, in complex UFL, one for each axis."""
        return [1 + 1j * strength * sigma / wavenumber for sigma in self.absorption(x)]


def _numbers(name: str, value: Any, most_axes: int) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"PML: {name} must be made of numbers, not {value!r}") from error
    if array.ndim > most_axes or not np.all(np.isfinite(array)):
        raise ValueError(f"PML: {name} {value!r} given; finite numbers, at most {most_axes}-dimensional, allowed")
    return np.atleast_1d(array) if name != "thickness" else array
