"""Residual connections as steps of forward Euler, of known rates and of learnt ones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from npde_fem.networks.reactions.activations import stock
from npde_fem.networks.reactions.reaction import Reaction, Step

import numpy as np
import torch
import ufl
from torch import nn
from ufl.core.expr import Expr

__all__ = ["Neural", "Pointwise", "Residual", "Skip"]


class Pointwise(nn.Module):
    """A module whose layers act on the last axis, such as ``nn.Linear``, at every point: on the channels, axis 1."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Return the values of ``inner`` at every point."""
        value: torch.Tensor = self.inner(u.movedim(1, -1))
        return value.movedim(-1, 1)


class Skip(nn.Module):
    """A residual connection ``u + dt branch(u)``."""

    def __init__(self, branch: nn.Module, dt: float) -> None:
        super().__init__()
        self.branch, self.dt = branch, dt

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Return u + dt branch(u)."""
        value: torch.Tensor = u + self.dt * self.branch(u)
        return value


class Rate(nn.Module):
    """The rate of a reaction as a module."""

    def __init__(self, reaction: Reaction) -> None:
        super().__init__()
        self.reaction = reaction

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return self.reaction.rate(u)


class Residual(Reaction):
    """Forward Euler, ``u + dt f(u)``: the residual connection.

    Its inverse is found by Newton's method, where 1 + dt f' > 0 (for channels that depend on each other: where the
    determinant of 1 + dt f' is positive).

    Parameters
    ----------
    f
        A reaction that has a rate; or a module that maps channels to as many channels at every point, made of
        ``nn.Sequential``, ``nn.Linear`` (of channels, axis 1), convolutions of size 1 and activations.

    Raises
    ------
    TypeError, ValueError
        If f is neither, has no rate, or has a layer which mixes points.
    """

    invertible = has_rate = True

    def __init__(self, f: Reaction | nn.Module) -> None:
        super().__init__()
        if isinstance(f, Reaction):
            if not f.has_rate:
                raise ValueError(f"Residual: reaction {f.name!r} has no rate f(u): {f._why_no_rate}")
            self.componentwise = f.componentwise
        elif isinstance(f, nn.Module):
            f, self.componentwise = _checked(f)
        else:
            raise TypeError(f"Residual: a reaction or a torch module allowed, {f!r} given")
        self.f = f

    @property
    def name(self) -> str:  # type: ignore[override]
        """``"residual"``, of what."""
        return f"residual {self.f.name}" if isinstance(self.f, Reaction) else "residual"

    def forward(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return u + dt f(u)."""
        return u + dt * self.rate(u)

    def rate(self, u: torch.Tensor) -> torch.Tensor:
        """Return f(u)."""
        value: torch.Tensor = self.f.rate(u) if isinstance(self.f, Reaction) else self.f(u)
        return value

    def as_torch(self, dt: float = 1.0) -> nn.Module:
        """Return a residual connection around f."""
        f = copy.deepcopy(self.f)
        return Skip(Rate(f) if isinstance(f, Reaction) else f, dt)

    def flow(self, u: Expr, dt: Any = 1.0) -> Expr:
        """Return u + dt f(u) in UFL."""
        return u + ufl.as_ufl(dt) * self.source(u)

    def source(self, u: Expr) -> Expr:
        """Return f(u) in UFL."""
        if isinstance(self.f, Reaction):
            return self.f.source(u)
        result = _write(self.f, u if u.ufl_shape else ufl.as_vector([u]), self, "f")
        return result if u.ufl_shape else result[0]


def _checked(module: nn.Module) -> tuple[nn.Module, bool]:
    """Return a pointwise module that acts on axis 1, and whether it is componentwise."""
    layers = [layer for layer in module.modules() if not isinstance(layer, nn.Sequential | Pointwise)]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    for layer in layers:
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            wide = any(n != 1 for n in (*layer.kernel_size, *layer.stride))
            if wide or layer.groups != 1 or any(n != 0 for n in _padding(layer)):
                raise ValueError(f"Residual: {layer} is not pointwise; size and stride 1, no groups or padding allowed")
        elif not isinstance(layer, nn.Linear):
            stock(layer)
    if linear and convolutions:
        raise ValueError("Residual: a module with nn.Linear and with convolutions given; one of them allowed")
    if linear and not any(isinstance(part, Pointwise) for part in module.modules()):
        module = Pointwise(module)
    return module, not linear and not convolutions


def _padding(layer: Any) -> Sequence[int]:
    return (0,) if layer.padding == "valid" else (1,) if layer.padding == "same" else layer.padding


def _write(module: nn.Module, u: Expr, owner: Reaction, name: str) -> Expr:
    """Return a pointwise module of a vector in UFL, with parameters of ``owner``."""
    if isinstance(module, Pointwise):
        return _write(module.inner, u, owner, name)
    if isinstance(module, nn.Sequential):
        for key, layer in module.named_children():
            u = _write(layer, u, owner, f"{name}.{key}")
        return u
    if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return stock(module).flow(u)
    weight = module.weight.flatten(1)
    if weight.shape[1] != u.ufl_shape[0]:
        raise ValueError(f"{owner.name}: {module} given for {u.ufl_shape[0]} channels; {weight.shape[1]} allowed")
    result = ufl.dot(owner.symbol(f"{name}.weight", weight), u)
    return result if module.bias is None else result + owner.symbol(f"{name}.bias", module.bias)


class Neural(Residual):
    """A learnt reaction: a residual step of a tanh network of the channels, the same at every point.

    Parameters
    ----------
    hidden
        Widths of the hidden layers.
    channels
        Number of channels that go in and out.
    dtype
        Of the weights; torch's default if None.

    Raises
    ------
    ValueError
        If a width is not a positive integer.
    """

    def __init__(self, hidden: Sequence[int] = (16,), channels: int = 1, *, dtype: torch.dtype | None = None) -> None:
        widths = (channels, *hidden, channels)
        if any(not isinstance(n, int | np.integer) or n < 1 for n in widths):
            raise ValueError(f"Neural: hidden {hidden!r}, channels {channels!r} given; positive integers allowed")
        layers: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            layers += [nn.Tanh()] if k else []
            layers.append(nn.Linear(inputs, outputs, dtype=dtype))
        super().__init__(nn.Sequential(*layers))

    @property
    def name(self) -> str:  # type: ignore[override]
        """``"neural"``."""
        return "neural"
