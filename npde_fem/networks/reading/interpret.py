"""Trained networks read as physics: which equation each layer is a step of.

:func:`interpret` follows a torch module from layer to layer and reads each
(:mod:`npde_fem.networks.reading.readings`); the :class:`Interpretation` tells what it found as a table, as numbers, as
a figure and as an equation, and makes the stock network of it again.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from math import isfinite, prod
from typing import TYPE_CHECKING, Any

from npde_fem.networks.lattice import BOUNDARIES
from npde_fem.networks.network import Network
from npde_fem.networks.reading.reader import READABLE, Reader
from npde_fem.networks.reading.readings import Nonlocal, Reading, Recurrent, stacked
from npde_fem.networks.reading.stored import part_from, part_to_dict
from npde_fem.networks.reading.table import table
from npde_fem.networks.reading.walk import steps_of

import numpy as np
from torch import nn

if TYPE_CHECKING:
    from npde_fem.networks.evolution import Evolution
    from npde_fem.networks.kinds.driven import DrivenElman

__all__ = ["Interpretation", "interpret"]


def interpret(
    module: nn.Module,
    *,
    spacing: float | Sequence[float] | None = None,
    dt: float | None = None,
    boundary: str | None = None,
    shape: Sequence[int] | None = None,
) -> Interpretation:
    """Read the layers of a trained network as steps of equations.

    Parameters
    ----------
    module
        A layer, ``nn.Sequential``, any module whose ``forward`` runs layers one after the other, or a generated
        network. Layers read: ``nn.Conv1d``, ``Conv2d``, ``Conv3d`` of odd size (3 wide exactly, wider ones by their
        moments), ``nn.Linear``, ``nn.RNN`` and ``nn.RNNCell`` (several layers one by one), and ``BatchNorm`` in
        evaluation mode after one of the first two, which becomes part of it. Between them: activations, pooling,
        ``Flatten``, ``Unflatten``, ``Identity``, ``Dropout`` in evaluation mode.
    spacing
        Distance h of neighbouring points (pixels, neurons) of the input, one number or one for each axis. After a
        stride or pooling by s it is s h. Where a network has layers of several dimensions it is one number, and
        neurons of ``Linear`` and ``RNN`` are spaced so. By default that of a generated network, 1 for others.
    dt
        Time that a layer stands for; likewise.
    boundary
        What the equation of layers without padding has at its boundary, by the names of :class:`Lattice`; with it
        ``to_npde`` takes them, and keeps the points that they cut off.
    shape
        Rows and columns (or more) of the neurons of a ``Linear`` or ``RNN`` that has so many: an image, say. Else they
        stand in a line.

    Returns
    -------
    Interpretation
        The layers' operators.

    Raises
    ------
    TypeError, ValueError
        If it is no module, a layer cannot be read (even kernels, groups, dilation, transposed, lazy, complex ones,
        bidirectional recurrent ones, unknown modules: it is named, with what can), ``forward`` is no chain of layers,
        or a unit is not positive.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"interpret: a torch.nn.Module allowed, {module!r} given")
    own = _own(module) if isinstance(module, Network) else {}
    h, step = own.get("spacing", 1.0) if spacing is None else spacing, own.get("dt", 1.0) if dt is None else dt
    reader = Reader(_units(h), _positive("dt", step), _shape(own.get("shape") if shape is None else shape))
    if boundary is not None and boundary not in BOUNDARIES:
        raise ValueError(f"interpret: unknown boundary {boundary!r}; allowed: {', '.join(BOUNDARIES)}")
    for step in steps_of(module):
        reader.read(step)
    if not any(isinstance(part, Reading) for part in reader.parts):
        raise ValueError(f"interpret: {type(module).__name__} has no layer with weights; {READABLE}")
    if shape is not None and not any(isinstance(p, Nonlocal) and p.shape == reader.shape for p in reader.parts):
        raise ValueError(
            f"interpret: shape {reader.shape} given; no Linear or RNN has {prod(reader.shape or ())} neurons"
        )
    return Interpretation(reader.parts, None if boundary is None else BOUNDARIES[boundary])


def _own(network: Any) -> dict[str, Any]:
    """Return units, and the shape of the lattice, of a generated network."""
    lattice, found = getattr(network, "lattice", None), {}
    if lattice is not None:
        found = {"spacing": lattice.spacing, "shape": lattice.shape}
    steps = {network.dt} if hasattr(network, "dt") else {layer.dt for layer in network.coefficients()}
    if len(steps) == 1:
        found["dt"] = steps.pop()
    return found


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"interpret: {name} must be a number, not {value!r}") from error
    if not (isfinite(number) and number > 0):
        raise ValueError(f"interpret: {name} = {value!r} given; a positive finite number allowed")
    return number


def _units(spacing: Any) -> tuple[float, ...]:
    return tuple(_positive("spacing", h) for h in np.atleast_1d(np.asarray(spacing, dtype=object)).tolist())


def _shape(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    made = np.atleast_1d(np.asarray(shape))
    if made.ndim != 1 or not 1 <= len(made) <= 3 or made.dtype.kind not in "iu" or made.min() < 1:
        raise ValueError(f"interpret: shape {shape!r} given; 1 to 3 positive integers allowed")
    return tuple(made.tolist())


class Interpretation:
    """What :func:`interpret` found; ``print`` it for a table.

    Attributes
    ----------
    parts
        All layers in order: readings of those with weights, and the others as they are.
    boundary
        As given to :func:`interpret`.
    """

    def __init__(self, parts: Sequence[Reading | nn.Module], boundary: str | None = None) -> None:
        self.parts, self.boundary = tuple(parts), boundary

    @property
    def layers(self) -> tuple[Reading, ...]:
        """The readings, one for each layer with weights (a shared one as often as it runs)."""
        return tuple(part for part in self.parts if isinstance(part, Reading))

    def __str__(self) -> str:
        return table(self.layers)

    def __repr__(self) -> str:
        return f"<Interpretation of {len(self.layers)} layers>"

    def rows(self) -> list[dict[str, Any]]:
        """Return the table's numbers: a dictionary for each pair of channels, or for all neurons of a matrix."""
        return [row for layer in self.layers for row in layer.rows()]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, lists and strings, fit for JSON: ``boundary``, and ``layers`` in their order.

        Among these are the layers without weights, as kind and arguments. :meth:`from_dict` makes the same
        interpretation of it; but the reactions of equations (not of torch, and no polynomial) cannot be read again.
        """
        return {"boundary": self.boundary, "layers": [part_to_dict(part) for part in self.parts]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Interpretation:
        """Return the interpretation of which :meth:`to_dict` made a dictionary: all numbers are the same.

        What follows from other numbers (eigenvalues, directions, norms) is not read, but computed of them.

        Raises
        ------
        ValueError
            If a key is missing, or its value has another type or shape than it must have; layer and key are named.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("layers"), list | tuple) or "boundary" not in data:
            told = f"the keys {', '.join(map(repr, data))}" if isinstance(data, Mapping) else repr(data)
            raise ValueError(f"Interpretation: {told} given; 'boundary' and 'layers', a list, needed")
        boundary = data["boundary"]
        if boundary is not None and (not isinstance(boundary, str) or boundary not in BOUNDARIES):
            raise ValueError(f"Interpretation: unknown boundary {boundary!r}; allowed: null, {', '.join(BOUNDARIES)}")
        parts = [part_from(layer, f"Interpretation: layers[{k}]") for k, layer in enumerate(data["layers"])]
        if not any(isinstance(part, Reading) for part in parts):
            raise ValueError(f"Interpretation: none of {len(parts)} layers has weights; {READABLE}")
        return cls(parts, None if boundary is None else BOUNDARIES[boundary])

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the layers to a file, which appears whole or not at all; its suffix tells the format.

        Not collective: of several ranks let one draw. See :func:`npde_fem.networks.reading.drawing.draw_layers`.
        """
        from npde_fem.networks.reading.drawing import draw_layers

        draw_layers(self.layers, path)

    def to_torch(self) -> nn.Module:
        """Return the stock network that the readings make: kernels and matrices are made of the coefficients.

        A BatchNorm is part of the layer before it; ``Identity`` and ``Dropout`` are left out. A module whose
        ``forward`` was followed becomes an ``nn.Sequential``. Dtypes are those of the layers that were read.
        """
        made: list[nn.Module] = []
        known: dict[str, nn.Module] = {}
        parts = list(self.parts)
        while parts:
            part = parts.pop(0)
            if isinstance(part, Recurrent):
                stack = [part]
                while parts and isinstance(following := parts[0], Recurrent) and following.continues:
                    stack.append(following)
                    del parts[0]
                made.append(known.setdefault(part.name, stacked(stack)))
            elif isinstance(part, Reading):
                made.append(known.setdefault(part.name, part.to_torch()))
            else:
                made.append(copy.deepcopy(part))
        return made[0] if len(made) == 1 else nn.Sequential(*made)

    def to_npde(
        self, shape: Sequence[int] | None = None, lower: float | Sequence[float] = 0.0
    ) -> Evolution | DrivenElman:
        """Return the equation of the network, to be solved on its lattice, on others and on meshes.

        For convolutions ``shape`` is that of the input, ``lower`` the place of its first point. A recurrent network's
        equation is driven by inputs. See :func:`npde_fem.networks.reading.equations.evolution_of`.
        """
        from npde_fem.networks.reading.equations import evolution_of

        return evolution_of(self.parts, self.boundary, shape, lower)
