"""What is added to a loss so that its minimum is well posed: L2, H1 and total variation of a parameter."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from npde_fem.parameter import Parameter, Value

import numpy as np
import ufl
from ufl.core.expr import Expr

__all__ = ["H1", "L2", "TV", "Regularisation"]


@dataclass(frozen=True)
class Regularisation(ABC):
    """A parameter, and how much its term weighs.

    Raises
    ------
    TypeError, ValueError
        If the parameter is no Parameter, has no gradient where one is needed, or a number is not from 0 on.
    """

    parameter: Parameter
    weight: float

    def __post_init__(self) -> None:
        if not isinstance(self.parameter, Parameter):
            raise TypeError(f"{self._kind}: a Parameter allowed, {self.parameter!r} given")
        _check(f"{self._kind} of {self.parameter.name!r}: weight", self.weight)

    @property
    def _kind(self) -> str:
        return type(self).__name__

    def _check_gradient(self) -> None:
        parameter = self.parameter
        if not parameter.is_field or (parameter.element is not None and parameter.element[1] == 0):
            raise ValueError(
                f"{self._kind} of {parameter.name!r}: it has no gradient, for it is no field, or one that is constant "
                "in every cell; L2 allowed"
            )

    @abstractmethod
    def integrand(self, u: Expr, x: Expr, t: Expr) -> Expr:
        """Return in UFL what the term is the integral of; of a number, the term itself."""


@dataclass(frozen=True)
class L2(Regularisation):
    """``weight / 2 int |m - reference|^2 dx``; of a number m, without the integral (Tikhonov).

    The reference is a number, an array, a Parameter, or a callable of the coordinates in UFL.
    """

    reference: Value = 0.0

    def integrand(self, u: Expr, x: Expr, t: Expr) -> Expr:
        """Return ``weight / 2 |m - reference|^2``."""
        difference = self.parameter
        reference = self.reference
        if isinstance(reference, Expr) or not callable(reference):
            if not (isinstance(reference, int | float) and reference == 0):
                difference = difference - _as_ufl(reference, self.parameter.ufl_shape)
        else:
            difference = difference - reference(x)
        return 0.5 * self.weight * ufl.inner(difference, difference)


@dataclass(frozen=True)
class H1(Regularisation):
    """``weight / 2 int |grad m|^2 dx`` of a field."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_gradient()

    def integrand(self, u: Expr, x: Expr, t: Expr) -> Expr:
        """Return ``weight / 2 |grad m|^2``."""
        return 0.5 * self.weight * ufl.inner(ufl.grad(self.parameter), ufl.grad(self.parameter))


@dataclass(frozen=True)
class TV(Regularisation):
    """``weight int sqrt(|grad m|^2 + epsilon^2) dx`` of a field: it keeps edges, which H1 smooths.

    Epsilon, a slope, makes it differentiable (Acar and Vogel 1994, Inverse Problems 10).
    """

    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_gradient()
        _check(f"TV of {self.parameter.name!r}: epsilon", self.epsilon)
        if self.epsilon == 0:
            raise ValueError(f"TV of {self.parameter.name!r}: epsilon above 0 allowed, 0 given")

    def integrand(self, u: Expr, x: Expr, t: Expr) -> Expr:
        """Return ``weight sqrt(|grad m|^2 + epsilon^2)``."""
        slope = ufl.grad(self.parameter)
        return self.weight * ufl.sqrt(ufl.inner(slope, slope) + self.epsilon**2)


def _check(label: str, value: Any) -> None:
    if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
        raise ValueError(f"{label}: a finite number from 0 on allowed, {value!r} given")


def _as_ufl(value: Value, shape: tuple[int, ...]) -> Expr:
    if isinstance(value, Expr):
        return value
    filled = np.broadcast_to(np.asarray(value, dtype=np.float64), shape)
    return ufl.as_ufl(float(filled)) if shape == () else ufl.as_tensor(filled.tolist())
