"""Activations as flows of reactions: pointwise maps that torch and UFL compute alike.

A :class:`Reaction` is the second half of a layer, ``u -> Phi(u)``. For a flow, Phi is the solution after dt of
u' = f(u) that starts at u. Stock activations are flows too: sigma(z) is the value at time 1 of the *driven* reaction
v' = z v (1 - v), v(0) = 1/2, whose rate is the signal z; tanh(z) that of v' = z (1 - v^2), v(0) = 0. ReLU is the
projection onto u >= 0, a residual connection one step of forward Euler.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from npde_fem.networks.reactions.activations import STOCK, Identity, Map, ReLU, Sigmoid, Tanh, stock
from npde_fem.networks.reactions.from_equation import FromEquation
from npde_fem.networks.reactions.polynomial import Polynomial
from npde_fem.networks.reactions.reaction import FixedStep, Reaction
from npde_fem.networks.reactions.residual import Neural, Pointwise, Residual, Skip

from torch import nn

__all__ = [
    "FixedStep",
    "FromEquation",
    "Identity",
    "Map",
    "Neural",
    "Pointwise",
    "Polynomial",
    "ReLU",
    "Reaction",
    "Residual",
    "Sigmoid",
    "Skip",
    "Tanh",
    "reaction_named",
]

_NAMED: Mapping[str, Callable[[int], Reaction]] = {
    "identity": lambda channels: Identity(),
    "sigmoid": lambda channels: Sigmoid(),
    "tanh": lambda channels: Tanh(),
    "relu": lambda channels: ReLU(),
    "logistic": lambda channels: Sigmoid(driven=False),
    "tanh_flow": lambda channels: Tanh(driven=False),
    "leaky_relu": lambda channels: stock(nn.LeakyReLU()),
    "elu": lambda channels: stock(nn.ELU()),
    "softplus": lambda channels: stock(nn.Softplus()),
    "gelu": lambda channels: stock(nn.GELU()),
    "silu": lambda channels: stock(nn.SiLU()),
    "polynomial": lambda channels: Polynomial(degree=3, channels=channels),
    "neural": lambda channels: Neural(channels=channels),
}


def reaction_named(reaction: str | nn.Module, channels: int = 1) -> Reaction:
    """Return the reaction that a name, or an activation of torch, means.

    Parameters
    ----------
    reaction
        A :class:`Reaction`, returned as it is; a name; or a stock activation (``nn.ReLU()``, ``nn.Tanh()``, ...).
        ``"sigmoid"`` and ``"tanh"`` are the activations, ``"logistic"`` and ``"tanh_flow"`` the flows over dt of the
        same reactions; ``"polynomial"`` is cubic, ``"neural"`` has 16 hidden units, both trained.
    channels
        Number of channels, for the reactions that have numbers of their own for each.

    Raises
    ------
    ValueError
        If there is none. The message has those that are allowed.
    """
    if isinstance(reaction, Reaction):
        return reaction
    if isinstance(reaction, str) and reaction in _NAMED:
        return _NAMED[reaction](channels)
    if isinstance(reaction, nn.Module) and type(reaction) in STOCK:
        return stock(reaction)
    modules = ", ".join(f"nn.{kind.__name__}" for kind in STOCK)
    near = difflib.get_close_matches(reaction.lower(), _NAMED, n=1) if isinstance(reaction, str) else []
    hint = f" ({near[0]!r} meant?)" if near else ""
    raise ValueError(
        f"unknown reaction or activation {reaction!r}{hint}; allowed: {', '.join(_NAMED)}; the modules {modules}; "
        "any Reaction"
    )
