"""What ``npde networks`` does: show, convert and interpret networks. All of it happens on one rank."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from npde_fem import physics
from npde_fem.equation import NPDE
from npde_fem.networks.files import load_network, save_network
from npde_fem.networks.generated.cnn import CNN, cnn
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.reading.interpret import Interpretation, interpret
from npde_fem.parameter import Parameter

import torch
from torch import nn

__all__ = ["EQUATIONS", "convert", "generated", "interpret", "load_network", "show"]

EQUATIONS: dict[str, Callable[..., NPDE]] = {
    "heat": physics.heat,
    "fisher-kpp": physics.fisher_kpp,
    "allen-cahn": physics.allen_cahn,
    "gray-scott": physics.gray_scott,
}
"""Equations of which the command line makes networks."""


def generated(
    name: str, shape: Sequence[int], spacing: float, dt: float, steps: int, boundary: str, values: Mapping[str, float]
) -> CNN:
    """Return the network that an equation of :data:`EQUATIONS` generates, with some of its coefficients set.

    Raises
    ------
    ValueError
        If the equation has no such coefficient, or a step is unstable.
    """
    make = EQUATIONS[name]
    known = {key: parameter.default for key, parameter in inspect.signature(make).parameters.items()}
    for key in values:
        if key not in known:
            raise ValueError(f"--set: {name} has no coefficient {key!r}; there are {', '.join(known)}")
    coefficients = {key: Parameter(key, value) for key, value in (known | dict(values)).items()}
    lattice = Lattice(tuple(shape), (spacing,), (0.0,), boundary)
    return cnn(make(**coefficients), grid=lattice, steps=steps, dt=dt, dtype=torch.float64)


def show(network: nn.Module, interpretation: Interpretation) -> str:
    """Return text about a network: its parameters, the stock layers that it is, and the equation of each."""
    parts = [network.describe()] if isinstance(network, CNN) else []
    stock = network.as_torch() if isinstance(network, CNN) else network
    return "\n\n".join([*parts, str(stock), str(interpretation)])


def convert(interpretation: Interpretation, target: str) -> None:
    """Write what was read as the target's suffix says: ``.json`` the coefficients of each layer, ``.pt`` stock layers.

    The stock layers are made anew from the coefficients. The file appears whole or not at all.

    Raises
    ------
    ValueError
        If a reaction is no activation of torch, and stock layers are wanted.
    """
    path = Path(target)
    if path.suffix == ".pt":
        try:
            save_network(interpretation.to_torch(), path)
        except ValueError as error:
            raise ValueError(f"convert to {path.name}: {error}; .json has the coefficients") from error
        return
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps(interpretation.to_dict(), indent=1) + "\n")
    aside.replace(path)
