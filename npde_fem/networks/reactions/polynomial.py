"""The flow of a polynomial reaction, whose coefficients are learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from npde_fem.networks.reactions.reaction import Reaction, Step, number

import numpy as np
import numpy.typing as npt
import torch
import ufl
from torch import nn
from ufl.core.expr import Expr

__all__ = ["Polynomial"]


class Polynomial(Reaction):
    """The flow of ``f(u) = sum_k a_k u^k``, of a channel by itself.

    Up to degree 2 it is computed exactly (Riccati's equation; q = a_1^2 / 4 - a_0 a_2 is the same along a solution):

        Phi(u) = u + T f(u) / (1 - T f'(u) / 2),    T = tanh(sqrt(q) dt) / sqrt(q),

    with tan for negative q. Above, each of ``substeps`` steps sums the Taylor series in time of the solution up to
    ``order``, with coefficients by recurrence (Griewank and Walther 2008, Evaluating Derivatives, chapter 13). By
    default its error is below 1e-10 for dt |f'| <= 0.5 and solutions of order 1; it grows as (dt / r)^13, where r is
    the time at which the series stops to converge. Solutions that reach infinity before dt have no flow: values are
    then meaningless or not finite.

    Parameters
    ----------
    coefficients
        a_0, a_1, ...: shape ``(K + 1,)``, or ``(channels, K + 1)``, one row for each channel. By default zeros: the
        identity, from which training starts.
    degree
        K, in the place of coefficients.
    channels
        Number of channels that have their own coefficients; None: the same for all.
    trainable
        Whether the coefficients are trained.
    substeps, order
        Of the Taylor series, above degree 2.
    dtype
        Of the coefficients; torch's default if None.

    Raises
    ------
    ValueError
        If neither coefficients nor a degree is given, or both; or shapes or numbers are not allowed.
    """

    name = "polynomial"
    invertible = is_flow = has_rate = True

    def __init__(
        self,
        coefficients: npt.ArrayLike | None = None,
        *,
        degree: int | None = None,
        channels: int | None = None,
        trainable: bool = True,
        substeps: int = 2,
        order: int = 12,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for label, value in (("degree", degree), ("channels", channels), ("substeps", substeps), ("order", order)):
            least = 0 if label == "degree" else 1
            if value is not None and (not isinstance(value, int | np.integer) or value < least):
                raise ValueError(f"Polynomial: {label} {value!r} given; an integer of at least {least} allowed")
        if (coefficients is None) == (degree is None):
            raise ValueError("Polynomial: coefficients or a degree must be given, one of them")
        if degree is not None:
            coefficients = np.zeros(degree + 1)
        values = np.array(coefficients, dtype=np.float64)
        if channels is not None and values.ndim == 1:
            values = np.tile(values, (channels, 1))
        if values.ndim not in (1, 2) or values.size == 0 or not np.all(np.isfinite(values)):
            raise ValueError(f"Polynomial: coefficients {coefficients!r} given; finite (K + 1,) or (channels, K + 1)")
        if channels is not None and len(values) != channels:
            raise ValueError(f"Polynomial: coefficients for {len(values)} channels given, {channels} allowed")
        numbers = torch.tensor(values, dtype=dtype or torch.get_default_dtype())
        self.coefficients = nn.Parameter(numbers, requires_grad=trainable)
        self.substeps, self.order = substeps, order

    @property
    def degree(self) -> int:
        """K, the highest power."""
        return self.coefficients.shape[-1] - 1

    def _terms(self, u: torch.Tensor) -> list[torch.Tensor]:
        """The coefficients, to be multiplied with ``u``."""
        terms = self.coefficients.unbind(-1)
        if self.coefficients.ndim == 1:
            return list(terms)
        if u.ndim < 2 or u.shape[1] != len(self.coefficients):
            raise ValueError(
                f"Polynomial: input of shape {tuple(u.shape)} given; {len(self.coefficients)} channels (axis 1) allowed"
            )
        return [a.reshape(-1, *(1,) * (u.ndim - 2)) for a in terms]

    def _written_terms(self, channel: int) -> list[Expr]:
        a = self.symbol(f"{self.name}.coefficients", self.coefficients)
        if self.coefficients.ndim == 1:
            return [a[k] for k in range(self.degree + 1)]
        return [a[channel, k] for k in range(self.degree + 1)]

    def forward(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return the flow over dt."""
        a, dt = self._terms(u), number(dt, u)
        return _riccati(a, u, dt, _tangent) if self.degree <= 2 else self._series(a, u, dt)

    def inverse(self, v: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return the flow over -dt; of a series, with a step of Newton's method that makes it undo the computed one."""
        u = self(v, -dt)
        return u if self.degree <= 2 else u - (self(u, dt) - v) / self.derivative(u, dt)

    def rate(self, u: torch.Tensor) -> torch.Tensor:
        """Return f(u)."""
        return _horner(self._terms(u), u).expand_as(u)

    def _flow(self, u: Expr, channel: int, dt: Expr) -> Expr:
        a = self._written_terms(channel)
        return _riccati(a, u, dt, _written_tangent) if self.degree <= 2 else self._series(a, u, dt)

    def _source(self, u: Expr, channel: int) -> Expr:
        return _horner(self._written_terms(channel), u)

    def _series(self, a: Sequence[Any], u: Any, dt: Any) -> Any:
        """Sum the Taylor series of the solution, of tensors or of UFL."""
        h = dt / self.substeps
        for _ in range(self.substeps):
            series = [u]  # c_k h^k
            powers: list[list[Any]] = [series, *([] for _ in a[2:])]  # those of u, u^2, u^3, ...
            for k in range(self.order):
                rate = a[1] * series[k] if k else a[0] + a[1] * u
                for j in range(1, self.degree):
                    powers[j].append(_cauchy(series, powers[j - 1], k))
                    rate = rate + a[j + 1] * powers[j][k]
                series.append(h / (k + 1) * rate)
            for term in series[1:]:
                u = u + term
        return u

    def extra_repr(self) -> str:
        """Return what torch prints of the module."""
        own = "" if self.coefficients.ndim == 1 else f", channels={len(self.coefficients)}"
        return f"degree={self.degree}{own}"


def _cauchy(a: Sequence[Any], b: Sequence[Any], k: int) -> Any:
    """Coefficient k of the product of two series; what is newest comes last, so that UFL's trees stay shallow."""
    total = a[k] * b[0]
    if k:
        inner = [a[i] * b[k - i] for i in range(1, k)]
        total = sum(inner[1:], inner[0]) + total if inner else total
        total = total + a[0] * b[k]
    return total


def _horner(a: Sequence[Any], u: Any) -> Any:
    value = a[-1]
    for coefficient in reversed(a[:-1]):
        value = coefficient + u * value
    return value


def _riccati(a: Sequence[Any], u: Any, dt: Any, tangent: Callable) -> Any:
    """The flow of a_0 + a_1 u + a_2 u^2, of tensors or of UFL."""
    constant, linear, square = (*a, 0.0, 0.0)[:3]
    half = 0.5 * linear
    t = dt * tangent((half * half - constant * square) * dt**2)
    return u + t * (constant + u * (linear + u * square)) / (1 - t * (half + u * square))


# tanh(x) / x = sum of these times x^(2 k) (Abramowitz and Stegun 4.5.64).
_TANH_SERIES = (1.0, -1.0 / 3.0, 2.0 / 15.0, -17.0 / 315.0, 62.0 / 2835.0)
_NEAR = 1e-3


def _tangent(s: Any) -> torch.Tensor:
    """tanh(sqrt(s)) / sqrt(s), for negative s tan(sqrt(-s)) / sqrt(-s), smooth about 0."""
    root = torch.sqrt(torch.clamp(torch.abs(s), min=_NEAR))
    near = torch.clamp(s, -_NEAR, _NEAR)
    far = torch.where(s > 0, torch.tanh(root), torch.tan(root)) / root
    return torch.where(torch.abs(s) < _NEAR, _horner(_TANH_SERIES, near), far)


def _written_tangent(s: Expr) -> Expr:
    s = ufl.as_ufl(s)
    root = ufl.sqrt(ufl.max_value(abs(s), _NEAR))
    far = ufl.conditional(ufl.gt(s, 0), ufl.tanh(root), ufl.tan(root)) / root
    return ufl.conditional(ufl.lt(abs(s), _NEAR), _horner([ufl.as_ufl(c) for c in _TANH_SERIES], s), far)
