"""Stock activations as reactions: the flows of sigmoid and tanh, the projection ReLU, and maps that are no flows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

from npde_fem.networks.reactions.reaction import Reaction, Step, number

import torch
import ufl
from torch import nn
from ufl.core.expr import Expr

__all__ = ["STOCK", "Identity", "Map", "ReLU", "Sigmoid", "Tanh", "stock"]


class Identity(Reaction):
    """No reaction: f = 0, Phi(u) = u."""

    name = "identity"
    invertible = is_flow = has_rate = True

    def forward(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return u."""
        return u

    def rate(self, u: torch.Tensor) -> torch.Tensor:
        """Return zeros."""
        return torch.zeros_like(u)

    def derivative(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return ones."""
        return torch.ones_like(u)

    def as_torch(self, dt: float = 1.0) -> nn.Module:
        """Return ``nn.Identity``."""
        return nn.Identity()

    def _flow(self, u: Expr, channel: int, dt: Expr) -> Expr:
        return u

    def _source(self, u: Expr, channel: int) -> Expr:
        return ufl.zero()


class _Saturating(Reaction):
    """What sigmoid and tanh have in common: an activation driven by its signal, or the flow of the same reaction.

    Parameters
    ----------
    driven
        True: torch's activation, whatever dt. False: the flow over dt that starts at u.
    """

    invertible = True
    _why_no_rate = (
        "its argument is the signal that drives it, not a state; rate(v, signal) is the rate of the state v, and "
        "driven=False the flow of a rate f(u)"
    )
    start = 0.0

    def __init__(self, driven: bool = True) -> None:
        super().__init__()
        self.driven = driven
        self.is_flow = self.has_rate = not driven

    def rate(self, u: torch.Tensor, signal: torch.Tensor | None = None) -> torch.Tensor:
        """Return f(u) of the flow, or of a driven reaction ``signal * f(u)``.

        The activation is the state at time 1 of a driven one that starts at :attr:`start`.

        Raises
        ------
        ValueError
            If the reaction is driven and no signal is given.
        """
        if not self.driven:
            return self._rate(u)
        return super().rate(u) if signal is None else signal * self._rate(u)

    def _rate(self, u: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Sigmoid(_Saturating):
    """Logistic growth f(u) = u (1 - u): ``sigma(u)``, driven by u, or the flow ``sigma(logit(u) + dt)``.

    The flow is computed as ``u e^dt / (1 - u + u e^dt)``, for u outside of [0, 1] too: there it exists until
    1 - u + u e^dt = 0, where the solution has reached infinity (u < 0 and dt > 0, or u > 1 and dt < 0); beyond, values
    are finite again but solve nothing. The inverse of the driven one is logit, which loses digits as 1 - v does.

    Attributes
    ----------
    start
        Where the driven state starts: 1/2.
    """

    start = 0.5

    @property
    def name(self) -> str:  # type: ignore[override]
        """``"sigmoid"``, or ``"logistic"`` for the flow."""
        return "sigmoid" if self.driven else "logistic"

    def forward(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return sigma(u), or the flow over dt."""
        if self.driven:
            return torch.sigmoid(u)
        growth = torch.exp(number(dt, u))
        return u * growth / (1 - u + u * growth)

    def _rate(self, u: torch.Tensor) -> torch.Tensor:
        return u * (1 - u)

    def derivative(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return sigma (1 - sigma), or e^dt / (1 - u + u e^dt)^2."""
        if self.driven:
            value = torch.sigmoid(u)
            return value * (1 - value)
        growth = torch.exp(number(dt, u))
        return growth / (1 - u + u * growth) ** 2

    def inverse(self, v: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return logit(v), not finite outside of (0, 1), or the flow over -dt."""
        return torch.logit(v) if self.driven else self(v, -dt)

    def as_torch(self, dt: float = 1.0) -> nn.Module:
        """Return ``nn.Sigmoid``, or the flow over dt."""
        return nn.Sigmoid() if self.driven else super().as_torch(dt)

    def _flow(self, u: Expr, channel: int, dt: Expr) -> Expr:
        if self.driven:
            return 1 / (1 + ufl.exp(-u))
        growth = ufl.exp(dt)
        return u * growth / (1 - u + u * growth)

    def _source(self, u: Expr, channel: int) -> Expr:
        return u * (1 - u)


class Tanh(_Saturating):
    """f(u) = 1 - u^2: ``tanh(u)``, driven by u, or the flow ``tanh(artanh(u) + dt)``.

    The flow is computed as ``(u + tanh dt) / (1 + u tanh dt)``, for u outside of [-1, 1] too: there it exists until
    1 + u tanh dt = 0 (u < -1 and dt > 0, or u > 1 and dt < 0); beyond, values are finite again but solve nothing. The
    inverse of the driven one is artanh, which loses digits as 1 - |v| does.

    Attributes
    ----------
    start
        Where the driven state starts: 0.
    """

    @property
    def name(self) -> str:  # type: ignore[override]
        """``"tanh"``, or ``"tanh_flow"`` for the flow."""
        return "tanh" if self.driven else "tanh_flow"

    def forward(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return tanh(u), or the flow over dt."""
        if self.driven:
            return torch.tanh(u)
        shift = torch.tanh(number(dt, u))
        return (u + shift) / (1 + u * shift)

    def _rate(self, u: torch.Tensor) -> torch.Tensor:
        return 1 - u**2

    def derivative(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return 1 - tanh^2 u, or (1 - tanh^2 dt) / (1 + u tanh dt)^2."""
        if self.driven:
            return 1 - torch.tanh(u) ** 2
        shift = torch.tanh(number(dt, u))
        return (1 - shift**2) / (1 + u * shift) ** 2

    def inverse(self, v: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return artanh(v), not finite outside of (-1, 1), or the flow over -dt."""
        return torch.atanh(v) if self.driven else self(v, -dt)

    def as_torch(self, dt: float = 1.0) -> nn.Module:
        """Return ``nn.Tanh``, or the flow over dt."""
        return nn.Tanh() if self.driven else super().as_torch(dt)

    def _flow(self, u: Expr, channel: int, dt: Expr) -> Expr:
        if self.driven:
            return ufl.tanh(u)
        shift = ufl.tanh(dt)
        return (u + shift) / (1 + u * shift)

    def _source(self, u: Expr, channel: int) -> Expr:
        return 1 - u**2


class ReLU(Reaction):
    """Projection onto u >= 0, the constraint of an obstacle problem: ``max(u, 0)``.

    It is no flow, since a projection is reached at once, and has no inverse. Its derivative at 0 is 0, as torch's.
    """

    name = "relu"
    _why_no_rate = "it projects onto u >= 0 at once, whatever dt"
    _why_no_inverse = "it takes all u <= 0 to 0"

    def forward(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return max(u, 0)."""
        return torch.relu(u)

    def derivative(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return 1 where u > 0, else 0."""
        return (u > 0).to(u.dtype)

    def as_torch(self, dt: float = 1.0) -> nn.Module:
        """Return ``nn.ReLU``."""
        return nn.ReLU()

    def _flow(self, u: Expr, channel: int, dt: Expr) -> Expr:
        return ufl.conditional(ufl.lt(u, 0), 0, u)  # what is not a number stays so, for solvers to see


class Map(Reaction):
    """An activation of torch that is a pointwise map and no flow, with the same in UFL.

    Parameters
    ----------
    name
        What it is called.
    module
        The stock activation.
    written
        Callable ``u -> UFL`` for a scalar u.
    undo
        Callable ``v -> u``, its inverse in torch; None if there is none.
    """

    _why_no_rate = "it is a map that is applied at once, whatever dt"

    def __init__(
        self,
        name: str,
        module: nn.Module,
        written: Callable[[Expr], Expr],
        undo: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.module, self.written, self.undo = name, module, written, undo
        self.invertible = undo is not None

    def forward(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return the activation of u."""
        value: torch.Tensor = self.module(u)
        return value

    def inverse(self, v: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return the u whose activation is v."""
        return super().inverse(v, dt) if self.undo is None else self.undo(v)

    def as_torch(self, dt: float = 1.0) -> nn.Module:
        """Return the stock activation."""
        return copy.deepcopy(self.module)

    def _flow(self, u: Expr, channel: int, dt: Expr) -> Expr:
        return self.written(u)


def _leaky_relu(module: nn.LeakyReLU) -> Map:
    slope = float(module.negative_slope)

    def undo(v: torch.Tensor) -> torch.Tensor:
        return torch.where(v < 0, v / slope, v)

    return Map(
        "leaky_relu",
        nn.LeakyReLU(slope),
        lambda u: ufl.conditional(ufl.lt(u, 0), slope * u, u),
        undo if slope > 0 else None,
    )


def _elu(module: nn.ELU) -> Map:
    alpha = float(module.alpha)

    def undo(v: torch.Tensor) -> torch.Tensor:
        return torch.where(v < 0, torch.log1p(torch.where(v < 0, v, 0.0) / alpha), v)

    return Map(
        "elu",
        nn.ELU(alpha),
        lambda u: ufl.conditional(ufl.lt(u, 0), alpha * (ufl.exp(ufl.min_value(u, 0)) - 1), u),
        undo if alpha > 0 else None,
    )


def _softplus(module: nn.Softplus) -> Map:
    beta, threshold = float(module.beta), float(module.threshold)

    def written(u: Expr) -> Expr:
        small = ufl.min_value(beta * u, threshold)
        return ufl.conditional(ufl.gt(beta * u, threshold), u, ufl.ln(1 + ufl.exp(small)) / beta)

    def undo(v: torch.Tensor) -> torch.Tensor:
        return torch.where(beta * v > threshold, v, v + torch.log(-torch.expm1(-beta * v)) / beta)

    return Map("softplus", nn.Softplus(beta, threshold), written, undo)


def _gelu(module: nn.GELU) -> Map:
    def exact(u: Expr) -> Expr:
        return 0.5 * u * (1 + ufl.erf(u / math.sqrt(2.0)))

    def by_tanh(u: Expr) -> Expr:
        return 0.5 * u * (1 + ufl.tanh(math.sqrt(2.0 / math.pi) * (u + 0.044715 * u**3)))

    written = exact if module.approximate == "none" else by_tanh
    return Map("gelu", nn.GELU(approximate=module.approximate), written)


def _silu(module: nn.SiLU) -> Map:
    return Map("silu", nn.SiLU(), lambda u: u / (1 + ufl.exp(-u)))


STOCK: Mapping[type[nn.Module], Callable[[Any], Reaction]] = {
    nn.Identity: lambda module: Identity(),
    nn.Sigmoid: lambda module: Sigmoid(),
    nn.Tanh: lambda module: Tanh(),
    nn.ReLU: lambda module: ReLU(),
    nn.LeakyReLU: _leaky_relu,
    nn.ELU: _elu,
    nn.Softplus: _softplus,
    nn.GELU: _gelu,
    nn.SiLU: _silu,
}
"""Activations of torch that have an equal in UFL, and how it is made."""


def stock(module: nn.Module) -> Reaction:
    """Return the reaction that an activation of torch is.

    Raises
    ------
    ValueError
        If it has no equal in UFL.
    """
    if type(module) not in STOCK:
        allowed = ", ".join(f"nn.{kind.__name__}" for kind in STOCK)
        raise ValueError(f"unknown activation {module!r}; allowed: {allowed}")
    return STOCK[type(module)](module)
