"""Convolutional networks that an equation generates: layers are time steps, channels components, padding a boundary."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from math import prod
from typing import Any

from npde_fem.discretize import Grid
from npde_fem.equation import NPDE
from npde_fem.networks.coefficients import Coefficients
from npde_fem.networks.evolution import Evolution
from npde_fem.networks.kinds.stability import StableTransport, amplification, check_step
from npde_fem.networks.kinds.transport import Transport
from npde_fem.networks.lattice import BOUNDARIES, Lattice
from npde_fem.networks.network import Network
from npde_fem.networks.phases import Phase, Pooling, equation_of
from npde_fem.networks.reactions import Neural, reaction_named
from npde_fem.networks.reactions.from_equation import coefficients_of
from npde_fem.networks.reactions.reaction import Reaction
from npde_fem.solve import Lie

import numpy as np
import torch
from torch import nn

__all__ = ["CNN", "Layer", "cnn", "lattice_of", "resnet"]

_POOLS: dict[tuple[str, int], Any] = {
    ("mean", 1): nn.AvgPool1d,
    ("mean", 2): nn.AvgPool2d,
    ("mean", 3): nn.AvgPool3d,
    ("max", 1): nn.MaxPool1d,
    ("max", 2): nn.MaxPool2d,
    ("max", 3): nn.MaxPool3d,
}


class Layer(nn.Module):
    """One step of Lie splitting, ``u -> Phi(W u + dt s)``, and the change of lattice after it.

    Attributes
    ----------
    transport, reaction
        W with its source, and Phi.
    pooling
        What follows, or None; a stride is taken by the transport, as only the points that stay need be computed.
    """

    def __init__(self, transport: Transport, reaction: Reaction, pooling: Pooling | None = None) -> None:
        super().__init__()
        self.transport, self.reaction, self.pooling = transport, reaction, pooling
        self.pool = nn.Identity()
        if pooling is not None and pooling.kind != "stride":
            self.pool = _POOLS[pooling.kind, transport.lattice.dim](pooling.factor)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Take the step."""
        made: torch.Tensor = self.pool(self.reaction(self.transport(u), self.transport.step()))
        return made


class CNN(Network):
    """A convolutional network as an equation: ``u_t = div(D grad u - c u) + m u + N u + s`` with a reaction.

    Tensors are ``(batch, C_0, *shape)`` to ``(batch, C_last, *shape)``, or to ``(batch, n)`` with a read-out.

    Parameters
    ----------
    layers
        In order; the same object may occur several times.
    readout
        A linear observation of the final state, flattened, or None.

    Attributes
    ----------
    layers, readout
        As given.
    """

    def __init__(self, layers: Sequence[Layer], readout: nn.Linear | None = None) -> None:
        super().__init__()
        self.layers, self.readout = nn.ModuleList(layers), readout

    @property
    def lattice(self) -> Lattice:
        """The lattice of the input."""
        return self._steps[0].transport.lattice

    @property
    def _steps(self) -> list[Layer]:
        return list(self.layers)  # type: ignore[arg-type]

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Return the output for a state.

        Raises
        ------
        ValueError
            If the state has other channels or another shape than the first layer.
        """
        for layer in self.layers:
            u = layer(u)
        return u if self.readout is None else self.readout(u.flatten(1))

    def as_torch(self) -> nn.Sequential:
        """Return the same network made of torch's convolutions, activations, pooling and ``nn.Linear``.

        Weights are copied. Steps that share coefficients on one lattice are one convolution, which occurs as often.
        """
        made: list[nn.Module] = []
        stock: dict[tuple[int, ...], nn.Module] = {}
        for layer in self._steps:
            transport, reaction = layer.transport, layer.reaction
            if (id(transport),) not in stock:
                stock[id(transport),] = transport.as_torch()
            activation = id(transport), id(reaction)
            if activation not in stock:
                stock[activation] = reaction.as_torch(transport.coefficients().dt)
            made += [stock[id(transport),], stock[activation]]
            if not isinstance(layer.pool, nn.Identity):
                made.append(copy.deepcopy(layer.pool))
        if self.readout is not None:
            made += [nn.Flatten(), copy.deepcopy(self.readout)]
        return nn.Sequential(*made)

    def as_equation(self) -> Evolution:
        """Return the equation that the network solves: one phase for each run of layers with the same coefficients."""
        equations: dict[tuple[int, int], NPDE] = {}
        phases = []
        for k, (layer, found) in enumerate(zip(self._steps, self.coefficients(), strict=True)):
            key, lattice = (id(layer.transport), id(layer.reaction)), layer.transport.lattice
            if key not in equations:
                equations[key] = equation_of(found, layer.reaction, lattice, name=f"layer {k}")
            phases.append(Phase(equations[key], lattice, found.dt, channels=found.channels, pooling=layer.pooling))
        if self.readout is None:
            return Evolution(phases)
        weight, bias = (p.detach().cpu().double().numpy() for p in (self.readout.weight, self.readout.bias))
        return Evolution(phases, (weight, bias))

    def coefficients(self) -> list[Coefficients]:
        """Return the coefficients of each layer, in physical units, with the values that the parameters have now."""
        return [layer.transport.coefficients() for layer in self._steps]

    def stability(self) -> list[float]:
        """Return for each layer the largest factor by which its linear step makes a state's norm grow, without source.

        It is ``max ||W^||_2`` over wavenumbers: exact on circular lattices, a bound up to sampling with zeros around.
        """
        return [amplification(layer.transport) for layer in self._steps]

    def check_stability(self) -> None:
        """Raise ValueError, naming layer, wavenumber and the dt allowed, if a step lets a wave grow that should not.

        A wave may grow as fast as the layer's equation says, but no faster (von Neumann; by the eigenvalues of the
        symbol, for layers with as many channels out as in).
        """
        checked: set[int] = set()
        for k, layer in enumerate(self._steps):
            if id(layer.transport) not in checked:
                check_step(layer.transport.coefficients(), layer.transport.lattice, f"layer {k}")
            checked.add(id(layer.transport))


def lattice_of(grid: Any, boundary: str | None = None) -> Lattice:
    """Return the lattice that a shape, a :class:`Lattice` or a grid of finite differences means.

    A shape has spacing 1. A grid's points are the lattice's, but for the last ones along each axis of a circular one,
    which are its first. The boundary is that of the lattice, of the grid's padding, or zeros, unless it is given.

    Raises
    ------
    TypeError, ValueError
        If it is none of these, the grid has a mask, or the boundary is unknown or not that which it has already.
    """
    if boundary is not None and (not isinstance(boundary, str) or boundary not in BOUNDARIES):
        raise ValueError(f"unknown boundary {boundary!r}; allowed: {', '.join(BOUNDARIES)}")
    given = None if boundary is None else BOUNDARIES[boundary]
    own = grid.boundary if isinstance(grid, Lattice) else grid.padding if isinstance(grid, Grid) else None
    if own is not None and given not in (None, own):
        raise ValueError(f"boundary = {boundary!r} given, but the grid has {own!r}; one of them allowed")
    if isinstance(grid, Lattice):
        return grid
    kind = given or own or "zeros"
    if not isinstance(grid, Grid):
        return Lattice(grid, boundary=kind)
    if grid.mask is not None:
        raise ValueError("grid: a grid with a mask given; boxes allowed, for others networks on meshes")
    shape = tuple(n - 1 for n in grid.shape) if kind == "circular" else grid.shape
    return Lattice(shape, grid.spacing, grid.lower, kind)


def cnn(
    equation_or_coefficients: NPDE | Coefficients | Sequence[Coefficients] | None = None,
    *,
    grid: Any,
    channels: int | Sequence[int] | None = None,
    steps: int | None = None,
    reaction: Any = None,
    boundary: str | None = None,
    scheme: Any = "lie",
    dt: float | None = None,
    shared: bool | None = None,
    pooling: Sequence[Any] | None = None,
    readout: int | None = None,
    remainder: bool | None = None,
    stable: bool = False,
    check: bool | None = None,
    dtype: torch.dtype | None = None,
) -> CNN:
    """Generate a convolutional network: explicit steps of Lie splitting of an equation on a lattice.

    Parameters
    ----------
    equation_or_coefficients
        An equation, whose flux and source become coefficients and reaction; coefficients, one or one for each layer;
        or None: what torch's convolution starts from, to be learnt.
    grid
        A shape (spacing 1), a :class:`Lattice`, or a grid of finite differences.
    channels
        Components: a number, or one for the input and one for each layer's output, ``(C_0, ..., C_steps)``. Needed
        without equation and coefficients, which have theirs.
    steps
        Number of layers. Needed unless ``channels`` is a sequence, or there are coefficients for each layer.
    reaction
        A name, a :class:`Reaction` or an activation of torch; or one for each layer. By default that of the equation,
        else ReLU. One with parameters is copied for each layer unless ``shared``.
    boundary
        Padding in torch's words or in physics'; by default that of the grid, else zeros.
    scheme
        ``"lie"`` or ``npde.Lie()``: explicit, one substep.
    dt
        Length of a step; by default that of the coefficients, else 1.
    shared
        Whether all layers have the same coefficients: an autonomous equation. By default so for an equation or one set
        of coefficients. Where pooling changes the lattice, the coefficients stay and the kernel changes with the
        spacing.
    pooling
        For each layer None, a stride (an integer), or a :class:`~npde_fem.networks.phases.Pooling`.
    readout
        Number of outputs of a linear observation of the final state, such as classes; None: the state itself.
    remainder
        Whether layers have a remainder. By default if the coefficients have one; so when they are learnt from None.
    stable
        Stable by construction, whatever is learnt: see :mod:`npde_fem.networks.kinds.stability`.
    check
        Whether to refuse unstable steps; by default for an equation.
    dtype
        Of the parameters; torch's default if None.

    Returns
    -------
    CNN
        The network.

    Raises
    ------
    TypeError, ValueError
        If numbers do not fit each other, a name is unknown, the lattice is smaller than a kernel or does not divide
        into a pooling's blocks, the equation is none of a network, or a step is unstable.
    """
    lattice = lattice_of(grid, boundary)
    _check_scheme(scheme)
    given, own = _given(equation_or_coefficients, lattice, dt)
    steps, widths = _widths(steps, channels, given)
    shared = len(given) == 1 if shared is None else shared
    if shared and steps > 1 and (len(given) > 1 or len(set(widths)) > 1):
        raise ValueError(f"shared=True: the same coefficients and channels in every layer allowed, {widths} given")
    pools = _poolings(pooling, steps)
    reactions = _reactions(reaction if reaction is not None else own or "relu", widths[1:], shared)
    kind = StableTransport if stable else Transport
    first: Transport | None = None
    layers: list[Layer] = []
    for k, (pool, phi) in enumerate(zip(pools, reactions, strict=True)):
        if k:
            lattice = _pooled(lattice, pools[k - 1])
        stride = pool.factor if pool is not None and pool.kind == "stride" else 1
        last = layers[-1] if layers else None
        if last is not None and shared and last.transport.lattice == lattice and last.pooling == pool:
            layers.append(last)
            continue
        if first is not None and shared:
            transport = first.on(lattice, stride)
        elif given:
            found = given[k % len(given)]
            # Wide kernels are written by their rest, be it zero.
            written = found.has_rest or max(found.size) > 3
            keep = (written if remainder is None else remainder) and not stable
            transport = kind.from_coefficients(found, lattice, dt, stride=stride, remainder=keep, dtype=dtype)
        else:
            keep = remainder is not False and not stable
            length = 1.0 if dt is None else dt
            transport = kind(lattice, *widths[k : k + 2], dt=length, stride=stride, remainder=keep, dtype=dtype)
        first = first or transport
        layers.append(Layer(transport, phi, pool))
    network = CNN(layers, _readout(readout, widths[-1], _points(layers[-1]), dtype))
    if isinstance(equation_or_coefficients, NPDE) if check is None else check:
        network.check_stability()
    return network


def resnet(
    channels: int | Sequence[int],
    grid: Any,
    steps: int | None = None,
    *,
    hidden: int | Sequence[int] = 16,
    boundary: str | None = None,
    dt: float = 1.0,
    shared: bool = False,
    pooling: Sequence[Any] | None = None,
    readout: int | None = None,
    remainder: bool = True,
    stable: bool = False,
    dtype: torch.dtype | None = None,
) -> CNN:
    """Generate a residual network: ``v = u + dt (L u + s)``, then ``v + dt f(v)`` with a learnt f at each point.

    At the start L and s, not ``E + dt L``, are what torch's convolution draws; a stable one starts as :func:`cnn`'s do.

    Parameters
    ----------
    hidden
        Widths of the hidden layers of f, a tanh network of the channels; an integer for one.
    channels, grid, steps, boundary, dt, shared, pooling, readout, remainder, stable, dtype
        As for :func:`cnn`.

    Raises
    ------
    TypeError, ValueError
        As :func:`cnn` does.
    """
    steps, widths = _widths(steps, channels, [])
    inner = (hidden,) if isinstance(hidden, int | np.integer) else tuple(hidden)
    count = 1 if shared else steps
    reactions = [Neural(inner, widths[1 + k], dtype=dtype) for k in range(count)]
    network = cnn(
        grid=grid, channels=widths, steps=steps, reaction=reactions[0] if shared else reactions, boundary=boundary,
        dt=dt, shared=shared, pooling=pooling, readout=readout, remainder=remainder, stable=stable, dtype=dtype,
    )  # fmt: skip
    if not stable:
        _start_small(network, dt)
    return network


@torch.no_grad()
def _start_small(network: CNN, dt: float) -> None:
    """Let every step be ``E + dt K`` where it was K."""
    transports = {id(layer.transport.mass): layer.transport for layer in network._steps}
    for transport in transports.values():
        transport.mass += torch.eye(*transport.mass.shape).to(transport.mass)
        for parameter in transport.parameters():
            parameter.mul_(dt)


def _check_scheme(scheme: Any) -> None:
    if scheme not in ("lie", Lie(), Lie(checked=False)):
        raise ValueError(
            f"scheme = {scheme!r} given; 'lie' or npde.Lie() allowed: a convolution is an explicit step "
            "(implicit ones are dense, see networks.mlp)"
        )


def _given(what: Any, lattice: Lattice, dt: float | None) -> tuple[list[Coefficients], Reaction | None]:
    """Return the coefficients that are given, and the reaction of an equation."""
    if what is None:
        return [], None
    if isinstance(what, NPDE):
        coefficients, reaction = coefficients_of(what, lattice.dim, lattice.spacing, 1.0 if dt is None else dt)
        return [coefficients], reaction
    found = [what] if isinstance(what, Coefficients) else list(what)
    if not found or not all(isinstance(c, Coefficients) for c in found):
        raise TypeError(f"cnn: an NPDE, Coefficients, one for each layer, or None allowed; {what!r} given")
    return found, None


def _integer(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name} = {value!r} given; a positive integer allowed")
    return number


def _widths(
    steps: int | None, channels: int | Sequence[int] | None, given: list[Coefficients]
) -> tuple[int, tuple[int, ...]]:
    """Return the number of layers and the channels before, between and after them."""
    if steps is None:
        if isinstance(channels, Sequence):
            steps = len(channels) - 1
        elif len(given) > 1:
            steps = len(given)
        else:
            raise ValueError("steps, the number of layers, is needed unless channels is a sequence (C_0, ..., C_steps)")
    steps = _integer("steps", steps)
    if len(given) > 1 and len(given) != steps:
        raise ValueError(f"coefficients for {len(given)} layers given; {steps} allowed")
    if channels is None and not given:
        raise ValueError("channels, a number or a sequence (C_0, ..., C_steps), is needed without an equation")
    if channels is None:
        channels = [given[0].channels[0], *(given[k % len(given)].channels[1] for k in range(steps))]
    numbers: list[Any] = list(channels) if isinstance(channels, Sequence) else [channels] * (steps + 1)
    widths = tuple(_integer("channels", n) for n in numbers)
    if len(widths) != steps + 1:
        raise ValueError(f"channels {widths} given; {steps + 1} numbers (C_0, ..., C_steps) allowed for {steps} steps")
    for k in range(steps if given else 0):
        pair = given[k % len(given)].channels
        if pair != widths[k : k + 2]:
            raise ValueError(f"channels {widths[k : k + 2]} of layer {k} given; its coefficients have {pair}")
    return steps, widths


def _reactions(reaction: Any, widths: Sequence[int], shared: bool) -> list[Reaction]:
    """Return the reaction of each layer."""
    if isinstance(reaction, Sequence) and not isinstance(reaction, str):
        if len(reaction) != len(widths):
            raise ValueError(f"reaction: {len(reaction)} given; one, or {len(widths)}, one for each layer, allowed")
        return [reaction_named(each, n) for each, n in zip(reaction, widths, strict=True)]
    first = reaction_named(reaction, widths[0])
    if shared or not any(True for _ in first.parameters()):
        return [first] * len(widths)
    return [first, *(copy.deepcopy(reaction_named(reaction, n)) for n in widths[1:])]


def _poolings(pooling: Sequence[Any] | None, steps: int) -> list[Pooling | None]:
    if pooling is None:
        return [None] * steps
    if not isinstance(pooling, Sequence) or isinstance(pooling, str) or len(pooling) != steps:
        raise ValueError(f"pooling = {pooling!r} given; a list with one entry for each of {steps} layers allowed")
    made: list[Pooling | None] = []
    for entry in pooling:
        if entry is None or isinstance(entry, Pooling):
            made.append(entry)
        elif isinstance(entry, int | np.integer) and not isinstance(entry, bool) and entry >= 1:
            made.append(Pooling("stride", int(entry)) if entry > 1 else None)
        else:
            raise ValueError(f"pooling: {entry!r} given; None, a stride (a positive integer) or a Pooling allowed")
    return made


def _pooled(lattice: Lattice, pooling: Pooling | None) -> Lattice:
    """Return the lattice of the next layer."""
    if pooling is None:
        return lattice
    _check_division(lattice, pooling)
    return lattice.coarsened(pooling.factor, centred=pooling.kind != "stride")


def _check_division(lattice: Lattice, pooling: Pooling) -> None:
    if any(n % pooling.factor for n in lattice.shape):
        raise ValueError(f"pooling: factor {pooling.factor} does not divide the lattice's shape {lattice.shape}")


def _points(layer: Layer) -> int:
    """Return the number of points after a layer."""
    lattice, pooling = layer.transport.lattice, layer.pooling
    if pooling is None:
        return lattice.size
    _check_division(lattice, pooling)
    return prod(n // pooling.factor for n in lattice.shape)


def _readout(classes: int | None, channels: int, points: int, dtype: torch.dtype | None) -> nn.Linear | None:
    if classes is None:
        return None
    return nn.Linear(channels * points, _integer("readout", classes), dtype=dtype)
