"""Equations of networks that were read: from readings to an :class:`Evolution`, or a driven equation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isclose
from typing import Any

from npde_fem.equation import NPDE
from npde_fem.networks.coefficients import Coefficients
from npde_fem.networks.evolution import Evolution
from npde_fem.networks.kinds.driven import DrivenElman
from npde_fem.networks.kinds.rnn import ElmanNetwork
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.phases import Phase, Pooling, equation_of
from npde_fem.networks.places import sampled
from npde_fem.networks.reactions import FixedStep, Identity, Reaction, Residual, Skip, reaction_named
from npde_fem.networks.reading.readings import Convolution, Nonlocal, Reading, Recurrent, by
from npde_fem.networks.reading.walk import Take
from npde_fem.nonlocal_terms import Integral
from npde_fem.parameter import Parameter

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

__all__ = ["evolution_of"]

Array = npt.NDArray[np.float64]
Part = Reading | nn.Module

_MEANS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def evolution_of(
    parts: Sequence[Part], boundary: str | None, shape: Sequence[int] | None, lower: float | Sequence[float]
) -> Evolution | DrivenElman:
    """Return the equation of a network that was read.

    * Convolutions are phases on a lattice, which strides and pooling make coarser. What follows ``Flatten`` (or a mean
      over all points) is the read-out: one Linear.
    * Linear layers alone are phases on the lattice of the widest one's neurons; neurons beyond a layer's width count
      nothing. The read-out is the last layer's neurons.
    * A recurrent layer, perhaps with a Linear behind it, is an equation that its inputs drive.

    Parameters
    ----------
    parts
        Of an :class:`Interpretation`.
    boundary
        What the equation has at the boundary where a layer does not pad as much as it needs; None refuses such.
    shape
        Points of the input along each axis, needed for convolutions unless an ``Unflatten`` in front tells.
    lower
        Coordinates of the first point.

    Raises
    ------
    ValueError
        If the shape is missing or has another dimension; a layer's padding is no boundary condition; pooling is not of
        separate blocks; an activation is no reaction, or belongs to another dt; or there are layers which no single
        equation has, such as two Linear behind convolutions.
    """
    if any(isinstance(part, Recurrent) for part in parts):
        return _driven(parts, lower)
    if any(isinstance(part, Convolution) for part in parts):
        return _convolutional(list(parts), boundary, shape, lower)
    return _dense(list(parts), boundary, shape, lower)


def _refuse(what: str, instead: str) -> ValueError:
    return ValueError(f"to_npde: {what}; {instead}")


def _reaction(layer: nn.Module, dt: float) -> Reaction:
    """Return the reaction that an activation is, over a step of length dt."""
    made: float = dt
    reaction: Any = layer
    if isinstance(layer, FixedStep):
        reaction, made = layer.reaction, layer.dt
    elif isinstance(layer, Skip):
        inner = getattr(layer.branch, "reaction", layer.branch)
        reaction, made = Residual(inner), layer.dt
    if not isclose(made, dt, rel_tol=1e-12):
        raise _refuse(f"a reaction over a step of {made:g} was read with dt = {dt:g}", f"interpret(..., dt={made:g})")
    return reaction_named(reaction)


class _Chain:
    """Phases in the making: an operator, the reaction that follows, and pooling, then the next.

    Attributes
    ----------
    lattice
        On which the next phase lives.
    channels
        That go into it.
    """

    def __init__(self, lattice: Lattice, dt: float, channels: int) -> None:
        self.lattice, self.dt, self.channels = lattice, dt, channels
        self.phases: list[Phase] = []
        self._known: dict[Any, NPDE] = {}
        self._operator: tuple[str, Callable[[Reaction, Lattice], NPDE], int] | None = None
        self._reaction: nn.Module | None = None
        self._pooling: Pooling | None = None

    def operate(self, name: str, equation: Callable[[Reaction, Lattice], NPDE], channels: int, boundary: str) -> None:
        """Begin a phase with a layer's operator, which leaves so many channels."""
        self.finish()
        self.lattice = replace(self.lattice, boundary=boundary)
        self._operator = name, equation, channels

    def react(self, layer: nn.Module) -> None:
        """Add an activation."""
        free = self._reaction is None and (self._pooling is None or self._pooling.kind == "stride")
        if self._operator is None or not free:
            self._rest()
        self._reaction = layer

    def pool(self, pooling: Pooling) -> None:
        """Add a change of lattice."""
        if self._operator is None or self._pooling is not None:
            self._rest()
        self._pooling = pooling

    def _rest(self) -> None:
        """Begin a phase in which nothing moves."""
        self.finish()
        c, d = self.channels, self.lattice.dim
        zeros = (np.zeros((c, c)), np.zeros((c, c, d)), np.zeros((c, c, d, d)), np.zeros((c, c, *(1,) * d)))
        nothing = Coefficients(*zeros, np.zeros(c), self.lattice.spacing, self.dt)
        self._operator = "", lambda reaction, lattice: equation_of(nothing, reaction, lattice), c

    def finish(self) -> None:
        """End the phase."""
        if self._operator is None:
            return
        name, equation, channels = self._operator
        layer = self._reaction
        # A layer that runs again, with the same activation, is one equation. Weights of an activation are its own.
        same: Any = id(layer) if layer is not None and any(True for _ in layer.parameters()) else repr(layer)
        key = (name, self.lattice, same)
        if not name or key not in self._known:
            reaction = Identity() if layer is None else _reaction(layer, self.dt)
            self._known[key] = equation(reaction, self.lattice)
        self.phases.append(
            Phase(self._known[key], self.lattice, self.dt, channels=(self.channels, channels), pooling=self._pooling)
        )
        if self._pooling is not None:
            self.lattice = self.lattice.coarsened(self._pooling.factor, centred=self._pooling.kind != "stride")
        self.channels, self._operator, self._reaction, self._pooling = channels, None, None, None


def _convolutional(
    parts: list[Part], boundary: str | None, shape: Sequence[int] | None, lower: float | Sequence[float]
) -> Evolution:
    while parts and isinstance(parts[0], nn.Unflatten):
        told = parts.pop(0)
        shape = tuple(told.unflattened_size)[1:] if shape is None else shape  # type: ignore[union-attr, arg-type]
    behind = (nn.Flatten, Nonlocal, *_MEANS)
    end = next((k for k, part in enumerate(parts) if isinstance(part, behind)), len(parts))
    head, tail = parts[:end], parts[end:]
    readings = [p for p in head if isinstance(p, Convolution)]
    if not readings:
        raise _refuse("no convolution before the first Linear", "convolutions, and one Linear after them, allowed")
    first = readings[0]
    if shape is None:
        raise _refuse("shape, the points of the input along each axis, is needed", f"{first.dim} numbers allowed")
    if len(tuple(np.atleast_1d(np.asarray(shape)))) != first.dim:
        raise _refuse(f"shape {shape!r} given for a {first.kind}", f"{first.dim} numbers allowed")
    here = next((_boundary(p, boundary) for p in readings if set(p.size) != {1}), boundary or "replicate")
    start = _spacing_of_input(head, first)
    chain = _Chain(Lattice(tuple(shape), start, lower, here), first.dt, first.channels[0])  # type: ignore[arg-type]
    for part in head:
        if isinstance(part, Convolution):
            here = here if set(part.size) == {1} and part.same else _boundary(part, boundary)
            chain.operate(part.name, _layer_equation(part), part.channels[1], here)
            if max(part.stride) > 1:
                chain.pool(Pooling("stride", _equal("stride", part.stride, part.name)))
        elif isinstance(part, _POOLINGS):
            pooling = _pooling(part)
            if pooling is not None:
                chain.pool(pooling)
        else:
            chain.react(part)  # type: ignore[arg-type]
    chain.finish()
    if tail and any(isinstance(part, Nonlocal) for part in tail):
        cut = next((part for part in readings if not part.same), None)
        if cut is not None:
            raise _refuse(f"layer {cut.name!r} cuts points off, which the Linear at the end has no weights for", _SAME)
    return Evolution(chain.phases, _readout(tail, chain))


_SAME = "padding = kernel_size // 2 allowed"


def _layer_equation(part: Convolution) -> Callable[[Reaction, Lattice], NPDE]:
    return lambda reaction, lattice: equation_of(part.coefficients, reaction, lattice, name=part.name)


def _boundary(part: Convolution, given: str | None) -> str:
    if part.same:
        return part.padding_mode
    if given is not None:
        return given
    raise _refuse(
        f"layer {part.name!r} has padding {by(part.padding)} for a kernel of {by(part.size)}, no boundary condition",
        f"{_SAME}, or interpret(..., boundary=...), whose output agrees away from the boundary",
    )


def _spacing_of_input(head: list[Part], first: Convolution) -> tuple[float, ...]:
    """Spacing before any pooling that comes before the first convolution."""
    coarser = 1
    for part in head[: head.index(first)]:
        if isinstance(part, _POOLINGS):
            pooling = _pooling(part)
            coarser *= 1 if pooling is None else pooling.factor
    return tuple(h / coarser for h in first.spacing)


def _equal(label: str, numbers: Any, name: str) -> int:
    entries = set(numbers) if isinstance(numbers, tuple | list) else {numbers}
    if len(entries) > 1:
        raise _refuse(f"{name} has the {label} {tuple(numbers)}", "the same along all axes allowed")
    return int(entries.pop())


def _pooling(layer: Any) -> Pooling | None:
    kind = type(layer).__name__
    factor = _equal("kernel size", layer.kernel_size, kind)
    stride, padding = (_equal(label, getattr(layer, label), kind) for label in ("stride", "padding"))
    dilation = _equal("dilation", getattr(layer, "dilation", 1), kind)
    if stride != factor or padding or dilation != 1 or layer.ceil_mode or getattr(layer, "divisor_override", None):
        raise _refuse(
            f"{layer} pools blocks that overlap or are not whole", "stride = kernel_size, padding = 0 allowed"
        )
    return None if factor == 1 else Pooling("mean" if "Avg" in kind else "max", factor)


def _readout(tail: list[Part], chain: _Chain) -> tuple[Array, Array | None] | None:
    """Return the observation that is behind the last lattice."""
    left, mean = list(tail), False
    if left and isinstance(left[0], _MEANS):
        if set(np.atleast_1d(np.asarray(left[0].output_size)).tolist()) != {1}:
            raise _refuse(f"{left[0]} makes a lattice of its own", "output_size = 1, the mean of all points, allowed")
        mean = True
        left.pop(0)
    if left and isinstance(left[0], nn.Flatten):
        left.pop(0)
    if not left and not mean:
        return None
    linear = next((part for part in left[:1] if isinstance(part, Nonlocal)), None)
    del left[: 0 if linear is None else 1]
    if left:
        told = ", ".join(p.name if isinstance(p, Reading) else str(p) for p in left)
        raise _refuse(
            f"behind the convolutions there is more than one Linear: {told}",
            "Flatten and one Linear allowed; interpret the network without what comes after them",
        )
    weight = np.eye(chain.channels) if linear is None else linear.matrix()
    bias = None if linear is None else linear.dt * linear.source
    if mean:
        points = len(chain.phases[-1].points(pooled=True)[0])
        weight = np.repeat(weight, points, axis=1) / points
    return weight, bias


def _dense(
    parts: list[Part], boundary: str | None, shape: Sequence[int] | None, lower: float | Sequence[float]
) -> Evolution:
    while parts and isinstance(parts[0], nn.Flatten):
        parts.pop(0)
    other = next((p for p in parts if isinstance(p, (*_MEANS, *_POOLINGS, nn.Flatten, nn.Unflatten, Take))), None)
    if other is not None:
        raise _refuse(f"{other} between Linear layers, which have no lattice", "activations between them allowed")
    readings = [part for part in parts if isinstance(part, Nonlocal)]
    widest = max(readings, key=lambda part: max(part.channels))
    n = max(widest.channels)
    points = widest.shape if shape is None else tuple(int(k) for k in np.atleast_1d(np.asarray(shape)))
    if int(np.prod(points)) != n:
        raise _refuse(f"shape {points} given for {n} neurons", "as many points as the widest layer has neurons allowed")
    spacing = widest.spacing if len(points) == widest.dim else widest.spacing[:1]
    if points == (n,):
        points = (max(n, 3),)
    here = boundary or "replicate"
    chain = _Chain(Lattice(points, spacing, lower, here), widest.dt, 1)  # type: ignore[arg-type]
    for part in parts:
        if isinstance(part, Nonlocal):
            chain.operate(part.name, _matrix_equation(part), 1, here)
        else:
            chain.react(part)  # type: ignore[arg-type]
    chain.finish()
    readout = np.eye(readings[-1].channels[1], chain.lattice.size), None
    return Evolution(chain.phases, readout, readings[0].channels[0])


def _matrix_equation(part: Nonlocal) -> Callable[[Reaction, Lattice], NPDE]:
    """Return what makes the integral equation of a matrix on a lattice, and the reaction's."""

    def equation(reaction: Reaction, lattice: Lattice) -> NPDE:
        n_in, n_out = part.channels
        matrix, values = np.zeros((lattice.size, lattice.size)), np.zeros(lattice.size)
        matrix[:n_out, :n_in] = part.matrix()
        values[:n_out] = part.source
        spread = values.reshape(1, *lattice.shape)
        inner = replace(lattice, boundary="replicate")
        source = Parameter("source", lambda x: sampled(spread, inner, x)[0], field=True)
        points = lattice.coordinates().reshape(lattice.dim, -1).T
        return NPDE(
            source=lambda u, x, t: 1.0 * source,
            nonlocal_term=Integral(points, (matrix - np.eye(lattice.size)) / part.dt),
            flow=lambda u, x, t, dt: reaction.flow(u, dt),
            name=part.name,
        )

    return equation


def _driven(parts: Sequence[Part], lower: float | Sequence[float]) -> DrivenElman:
    cells = [part for part in parts if isinstance(part, Recurrent)]
    if len(cells) > 1:
        names = ", ".join(cell.name for cell in cells)
        raise _refuse(f"recurrent layers {names} drive each other", "one recurrent layer allowed")
    cell, behind = cells[0], list(parts[1:])
    takes: list[Any] = list(itertools.takewhile(lambda part: isinstance(part, Take), behind))
    taken = tuple(part.index for part in takes)
    del behind[: len(takes)]
    readout = next((part for part in behind[:1] if type(part) is Nonlocal), None)
    del behind[: 0 if readout is None else 1]
    if parts[0] is not cell or behind:
        raise _refuse("layers before, or several behind, a recurrent one", "one recurrent layer and one Linear allowed")
    final = (0, (slice(None), -1)) if cell.batch_first else (0, -1)
    everything = taken in ((), (0,)) and cell.kind != "RNNCell"
    if not everything and taken not in ((), final, (1,), (1, -1), (1, 0)):
        raise _refuse(f"{list(taken)} taken of the states of {cell.name!r}", "all of them, or the last, allowed")
    network = ElmanNetwork(
        cell.sources.shape[1],
        grid=Lattice(cell.shape, cell.spacing, lower, "replicate"),  # type: ignore[arg-type]
        reaction=cell.activation.lower(),
        dt=cell.dt,
        observe="all" if everything else "last",
        dtype=torch.float64,
    )
    given = {"kernel": cell.step, "source_positions": cell.sources, "source": cell.source}
    network.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in given.items()}, strict=False)
    if readout is not None:
        network.readout = readout.to_torch().double()  # type: ignore[assignment]
    return network.as_equation()
