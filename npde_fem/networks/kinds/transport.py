"""One linear step of a network: mass, drift and diffusion on a lattice as a torch module."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, NamedTuple, Self, cast

from npde_fem.networks.coefficients import Coefficients, higher_stencils, kernel_from, split_kernel
from npde_fem.networks.lattice import Lattice

import numpy as np
import torch
from torch.nn import functional

__all__ = ["Convolution", "Parts", "Transport", "stock_convolution"]

Convolution = torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d

_STOCK: dict[int, Any] = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}
_CONVOLVE: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class Parts(NamedTuple):
    """Mass, drift, diffusion, rest and source of a step in units of the lattice: spacing 1 and step 1."""

    mass: torch.Tensor
    drift: torch.Tensor
    diffusion: torch.Tensor
    rest: torch.Tensor
    source: torch.Tensor


@cache
def _rest_basis(size: tuple[int, ...]) -> torch.Tensor:
    """Kernels ``(R, *size)`` that span the rests: those whose moments up to order 2 vanish.

    For kernels 3 wide they are the higher products of differences; for wider ones they are orthonormal.
    """
    if all(n == 3 for n in size):
        return higher_stencils(len(size))
    o = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in size), indexing="ij")).reshape(len(size), -1)
    moments = np.stack([np.ones(o.shape[1]), *o, *(o[a] * o[b] for a, b in _pairs(len(size)))])
    basis = np.linalg.svd(moments)[2][len(moments) :]
    return torch.from_numpy(basis.reshape(-1, *size).copy())


@cache
def _pairs(dim: int) -> tuple[tuple[int, int], ...]:
    """Return the independent entries of a symmetric tensor."""
    return tuple((a, b) for a in range(dim) for b in range(a, dim))


def stock_convolution(
    lattice: Lattice,
    in_channels: int,
    out_channels: int,
    size: tuple[int, ...] | None = None,
    stride: int = 1,
    **options: Any,
) -> Convolution:
    """Return torch's convolution on a lattice, with the lattice's boundary as padding; odd sizes, 3 by default."""
    size = size or (3,) * lattice.dim
    padding = tuple(n // 2 for n in size)
    made: Convolution = _STOCK[lattice.dim](
        in_channels, out_channels, size, stride=stride, padding=padding, padding_mode=lattice.boundary, **options
    )
    return made


class Transport(torch.nn.Module):
    """``u -> W u + dt s`` with ``W = E + dt L``, ``L u = div(D grad u - c u) + m u + N u``, on a lattice.

    The parameters are what an optimiser sees, and are counted in spacings and steps, so that they train alike whatever
    the spacing h and the step dt are:

    * ``mass`` = dt m, shape ``(C_out, C_in)``,
    * ``drift`` = dt c_a / h_a, shape ``(C_out, C_in, d)``,
    * ``diffusion`` = dt D_ab / (h_a h_b), the independent entries a <= b in the order 00, 01, ..., 11, ..., shape
      ``(C_out, C_in, d (d + 1) / 2)``,
    * ``remainder``, by which N takes the higher products of differences, shape ``(C_out, C_in, R)`` with R = 0, 3, 17
      in 1, 2, 3 dimensions; for wider kernels an orthonormal basis of what has no moments up to order 2,
    * ``source`` = dt s, shape ``(C_out,)``.

    :meth:`coefficients` gives them in physical units. At the start they are what torch's convolution draws at random,
    read as coefficients: after the same ``torch.manual_seed`` both are the same map.

    Parameters
    ----------
    lattice
        The points, their spacing and boundary.
    in_channels, out_channels
        Components of the state before and after.
    dt
        Length of the step.
    size
        Odd size of the kernel along each axis, 3 by default.
    stride
        Each how many points the result is taken.
    remainder
        False leaves N out: then the step is mass, drift and diffusion alone (kernels 3 wide).
    options
        ``dtype`` and ``device`` of the parameters.

    Attributes
    ----------
    unit
        Spacing in which the parameters are counted: that of the lattice, or of the one they are shared with.

    Raises
    ------
    ValueError
        If dt is not positive, a size is even or below 3, the lattice has fewer points than the kernel, or the
        remainder is left out of a wider kernel.
    """

    mass: torch.Tensor
    drift: torch.Tensor
    diffusion: torch.Tensor
    remainder: torch.Tensor | None
    source: torch.Tensor

    def __init__(
        self,
        lattice: Lattice,
        in_channels: int,
        out_channels: int,
        *,
        dt: float = 1.0,
        size: tuple[int, ...] | None = None,
        stride: int = 1,
        remainder: bool = True,
        **options: Any,
    ) -> None:
        super().__init__()
        self.size = (3,) * lattice.dim if size is None else size
        if len(self.size) != lattice.dim or any(n < 3 or n % 2 == 0 for n in self.size):
            raise ValueError(f"Transport: kernel of size {self.size}; {lattice.dim} odd sizes of at least 3 allowed")
        if any(n > 3 for n in self.size) and not remainder:
            raise ValueError(f"Transport: a kernel of size {self.size} has a remainder; remainder=True allowed")
        if not (isinstance(dt, float | int | np.number) and 0 < dt < np.inf):
            raise ValueError(f"Transport: dt = {dt!r} given; a positive number allowed")
        if not isinstance(stride, int | np.integer) or stride < 1:
            raise ValueError(f"Transport: stride = {stride!r} given; a positive integer allowed")
        self.lattice, self.unit, self.dt, self.stride = _wide_enough(lattice, self.size), lattice.spacing, dt, stride
        self.in_channels, self.out_channels, self.has_remainder = in_channels, out_channels, remainder
        self._start(stock_convolution(lattice, in_channels, out_channels, self.size, **options))

    def _start(self, conv: Convolution) -> None:
        """Make the parameters, with the values that a convolution's weights have as coefficients."""
        with torch.no_grad():
            mass, drift, diffusion, rest = split_kernel(conv.weight.double(), (1.0,) * self.lattice.dim, 1.0)
        values = {"mass": mass, "drift": drift, "diffusion": _entries(diffusion), "source": conv.bias}
        for name, value in values.items():
            self._register(name, cast(torch.Tensor, value), conv.weight)
        if self.has_remainder:
            self._register("remainder", _along_basis(rest), conv.weight)
        else:
            self.register_parameter("remainder", None)

    def _register(self, name: str, value: torch.Tensor, like: torch.Tensor) -> None:
        self.register_parameter(name, torch.nn.Parameter(value.detach().to(like)))

    @classmethod
    def from_conv(cls, conv: Convolution, lattice: Lattice, dt: float = 1.0) -> Self:
        """Read a convolution as a step on a lattice; kernels narrower than 3 are widened by zeros.

        Raises
        ------
        TypeError, ValueError
            If it is no convolution of the lattice's dimension, has an even size, groups or dilation, unequal strides,
            padding that changes the number of points, or pads otherwise than the lattice's boundary.
        """
        if not isinstance(conv, Convolution) or conv.weight.ndim != lattice.dim + 2:
            raise TypeError(f"Transport.from_conv: nn.Conv{lattice.dim}d allowed, {conv} given")
        same = tuple(n // 2 for n in conv.kernel_size)
        complaints = {
            "kernel_size": any(n % 2 == 0 for n in conv.kernel_size),
            "groups": conv.groups != 1,
            "dilation": any(n != 1 for n in conv.dilation),
            "stride": len(set(conv.stride)) != 1,
            "padding": conv.padding != "same" and conv.padding != same,
            "padding_mode": conv.padding_mode != lattice.boundary and any(same),
        }
        allowed = {
            "kernel_size": "odd sizes",
            "groups": "1",
            "dilation": "1",
            "stride": "the same along every axis",
            "padding": f"{same} or 'same'",
            "padding_mode": f"{lattice.boundary!r}, the lattice's boundary,",
        }
        for name, wrong in complaints.items():
            if wrong:
                raise ValueError(f"Transport.from_conv: {name} = {getattr(conv, name)!r}; {allowed[name]} allowed")
        weight, bias = (None if w is None else w.detach().cpu().double().numpy() for w in (conv.weight, conv.bias))
        coefficients = Coefficients.of_kernel(cast(np.ndarray, weight), bias, lattice.spacing, dt)
        options: dict[str, Any] = {"dtype": conv.weight.dtype, "device": conv.weight.device}
        return cls.from_coefficients(coefficients, lattice, stride=conv.stride[0], **options)

    @classmethod
    def from_coefficients(
        cls, coefficients: Coefficients, lattice: Lattice, dt: float | None = None, **keywords: Any
    ) -> Self:
        """Take a step of an equation's coefficients on a lattice, by default as long as theirs; keywords as above.

        The lattice's spacing may be another than that which the coefficients were read with.

        Raises
        ------
        ValueError
            If the dimensions differ, or there is a rest where it is left out.
        """
        if coefficients.dim != lattice.dim:
            raise ValueError(f"Transport: coefficients in {coefficients.dim}D, lattice in {lattice.dim}D given")
        dt = coefficients.dt if dt is None else dt
        size = tuple(max(n, 3) for n in coefficients.size)
        made = cls(lattice, *coefficients.channels, dt=dt, size=size, **keywords)
        made.assign(coefficients)
        return made

    @torch.no_grad()
    def assign(self, coefficients: Coefficients) -> None:
        """Give the parameters the values of coefficients of the same channels."""
        if not self.has_remainder and coefficients.has_rest:
            raise ValueError("Transport: the coefficients have a rest; remainder=True allowed, or coefficients without")
        h, dt = np.array(self.unit), self.dt
        margins = [((n - k) // 2,) * 2 for n, k in zip(self.size, coefficients.size, strict=True)]
        rest = np.pad(coefficients.rest, [(0, 0), (0, 0), *margins])
        diffusion = torch.from_numpy(dt * coefficients.diffusion / np.outer(h, h))
        self.mass.copy_(torch.from_numpy(dt * coefficients.mass))
        self.drift.copy_(torch.from_numpy(dt * coefficients.drift / h))
        self.diffusion.copy_(_entries(diffusion))
        self.source.copy_(torch.from_numpy(dt * coefficients.source))
        if self.remainder is not None:
            self.remainder.copy_(_along_basis(torch.from_numpy(dt * rest)))

    def on(self, lattice: Lattice, stride: int = 1) -> Self:
        """Return the same step, with the same parameters, on another lattice: its kernel has that one's spacing."""
        if lattice.dim != self.lattice.dim:
            raise ValueError(f"Transport.on: a lattice in {self.lattice.dim}D allowed, {lattice} given")
        made = copy.copy(self)
        made.lattice, made.stride = _wide_enough(lattice, self.size), stride
        return made

    def _ratios(self) -> torch.Tensor | None:
        """Return the parameters' spacing in the lattice's, where it is another."""
        if self.unit == self.lattice.spacing:
            return None
        return self.mass.new_tensor([a / b for a, b in zip(self.unit, self.lattice.spacing, strict=True)])

    def parts(self) -> Parts:
        """Return mass, drift, diffusion ``(C_out, C_in, d, d)``, rest ``(C_out, C_in, *size)`` and source, made of
        the parameters, in units of the lattice's spacing and of :meth:`step`."""
        diffusion, drift = _tensor_of(self.diffusion, self.lattice.dim), self.drift
        ratios = self._ratios()
        if ratios is not None:
            drift, diffusion = drift * ratios, diffusion * torch.outer(ratios, ratios)
        return Parts(self.mass, drift, diffusion, self._rest(), self.source)

    def _rest(self) -> torch.Tensor:
        if self.remainder is None or self.remainder.shape[2] == 0:
            return self.mass.new_zeros(self.out_channels, self.in_channels, *self.size)
        return torch.tensordot(self.remainder, _rest_basis(self.size).to(self.remainder), 1)

    def step(self) -> torch.Tensor | float:
        """Return the length of the step, dt."""
        return self.dt

    def kernel(self) -> torch.Tensor:
        """Return the convolution's kernel, shape ``(C_out, C_in, *size)``, differentiable by the parameters."""
        mass, drift, diffusion, rest, _ = self.parts()
        return kernel_from(mass, drift, diffusion, rest, (1.0,) * self.lattice.dim, 1.0)

    def bias(self) -> torch.Tensor:
        """Return the convolution's bias, shape ``(C_out,)``."""
        return self.parts().source

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Take the step: ``(batch, C_in, *shape)`` to ``(batch, C_out, *shape)``, where stride is 1.

        Raises
        ------
        ValueError
            If the state has another shape.
        """
        check_state(u, self.in_channels, self.lattice.shape)
        parts = self.parts()
        kernel = kernel_from(*parts[:4], (1.0,) * self.lattice.dim, 1.0)
        padding = [n // 2 for n in self.size]
        if self.lattice.boundary != "zeros":
            sides = [n for n in reversed(padding) for _ in range(2)]
            u, padding = functional.pad(u, sides, mode=self.lattice.boundary), [0] * len(padding)
        made: torch.Tensor = _CONVOLVE[self.lattice.dim](u, kernel, parts.source, stride=self.stride, padding=padding)
        return made

    @torch.no_grad()
    def coefficients(self) -> Coefficients:
        """Return the coefficients in physical units, with the values that the parameters have now."""
        mass, drift, diffusion, rest, source = (p.detach().cpu().double().numpy() for p in self.parts())
        h, dt = np.array(self.lattice.spacing), float(self.step())
        diffusion = diffusion * np.outer(h, h) / dt
        return Coefficients(mass / dt, drift * h / dt, diffusion, rest / dt, source / dt, tuple(h.tolist()), dt)

    @torch.no_grad()
    def as_torch(self) -> Convolution:
        """Return torch's convolution with a copy of the weights; its outputs are equal."""
        kernel = self.kernel()
        options = {"dtype": kernel.dtype, "device": kernel.device}
        conv = stock_convolution(self.lattice, self.in_channels, self.out_channels, self.size, self.stride, **options)
        conv.weight.copy_(kernel)
        cast(torch.Tensor, conv.bias).copy_(self.bias())
        return conv

    def extra_repr(self) -> str:
        """Describe the step in torch's way."""
        lattice = self.lattice
        return f"{self.in_channels}, {self.out_channels}, {lattice.shape}, {lattice.boundary}, dt={self.dt:g}"


def check_state(u: torch.Tensor, channels: int, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a state has so many channels on a lattice of that shape."""
    if u.ndim != len(shape) + 2 or u.shape[1] != channels or tuple(u.shape[2:]) != shape:
        raise ValueError(
            f"state of shape {tuple(u.shape)} given; (batch, {channels}, {', '.join(map(str, shape))}) allowed"
        )


def _wide_enough(lattice: Lattice, size: tuple[int, ...]) -> Lattice:
    if any(n < k for n, k in zip(lattice.shape, size, strict=True)):
        raise ValueError(f"Transport: a lattice of shape {lattice.shape} is smaller than the kernel, {size}")
    return lattice


def _entries(tensor: torch.Tensor) -> torch.Tensor:
    """Return the independent entries of symmetric tensors, shape ``(..., d (d + 1) / 2)``."""
    return torch.stack([tensor[..., a, b] for a, b in _pairs(tensor.shape[-1])], -1)


def _tensor_of(entries: torch.Tensor, dim: int) -> torch.Tensor:
    """Return symmetric tensors ``(..., d, d)`` of independent entries."""
    place = {pair: k for k, pair in enumerate(_pairs(dim))}
    order = [place[min(a, b), max(a, b)] for a in range(dim) for b in range(dim)]
    return entries[..., order].unflatten(-1, (dim, dim))


def _along_basis(rest: torch.Tensor) -> torch.Tensor:
    """Return the coefficients of rests in :func:`_rest_basis`, shape ``(C_out, C_in, R)``, float64."""
    basis = _rest_basis(tuple(rest.shape[2:])).flatten(1)
    return rest.double().cpu().flatten(2) @ torch.linalg.pinv(basis)
