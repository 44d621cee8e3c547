"""What ``npde networks`` does: show, convert and interpret networks. All of it happens on one rank."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from npde_fem import physics
from npde_fem.equation import NPDE
from npde_fem.networks.files import load_interpretation, load_network, save_interpretation, save_network
from npde_fem.networks.kinds.cnn import CNN, cnn
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.reading.interpret import Interpretation, interpret
from npde_fem.parameter import Parameter

import torch
from torch import nn

__all__ = ["EQUATIONS", "convert", "generated", "read", "show"]

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


def read(path: str, units: Mapping[str, Any], boundary: str | None) -> tuple[nn.Module, Interpretation]:
    """Return the stock network that a file has, and its interpretation.

    Parameters
    ----------
    path
        A file ``.json`` that :func:`convert` wrote, or one of ``torch.save``.
    units
        Arguments of :func:`~npde_fem.networks.interpret`: ``spacing``, ``dt``, ``shape``; None where not given.
    boundary
        Padding of the convolutions of a ``state_dict``.

    Raises
    ------
    ValueError
        If the file cannot be read, or has what is given already.
    """
    if Path(path).suffix != ".json":
        network = load_network(path, boundary)
        return network, interpret(network, **units)
    own = [name for name, value in {**units, "boundary": boundary}.items() if value is not None]
    if own:
        raise ValueError(f"{', '.join(f'--{name}' for name in own)}: not for {path}, which has its own")
    found = load_interpretation(path)
    return found.to_torch(), found


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
        If stock layers are wanted and there is a reaction that is none.
    """
    if Path(target).suffix != ".pt":
        save_interpretation(interpretation, target)
        return
    try:
        save_network(interpretation.to_torch(), target)
    except ValueError as error:
        raise ValueError(f"{error}; --output FILE.json takes any") from error
