"""Convolution kernels as coefficients of an equation, and back.

One explicit step of length dt of ``u_t = div(D grad u - c u) + m u + s`` on points of spacing h is a convolution with

    K = E + dt (m 1 - sum_a c_a d_a + sum_ab D_ab d_a d_b + rest),

where E is the identity (of the channels that go in and out alike), ``d_a`` the central first difference divided by
h_a and ``d_a d_a`` the second one divided by h_a^2. The moments of a kernel give the coefficients: with offsets o in
steps,

    m = sum_o L_o,    c_a = -h_a sum_o L_o o_a,    D_ab = h_a h_b / 2 sum_o L_o o_a o_b,    L = (K - E) / dt.

What is left is the rest. For kernels 3 wide it lies in the span of the higher products of the differences 1, d, dd
(none in 1D, 3 in 2D, 17 in 3D); for wider ones it is any kernel whose moments up to order 2 vanish.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Coefficients", "higher_stencils", "identity_kernel", "kernel_from", "split_kernel"]

Array = npt.NDArray[np.float64]

# The differences 1, d and dd, in units of the spacing.
_LINE = np.array([[0.0, 1.0, 0.0], [-0.5, 0.0, 0.5], [1.0, -2.0, 1.0]])


def _product(orders: tuple[int, ...]) -> Array:
    """Stencil, 3 wide along each axis, of a product of differences of these orders."""
    stencil = np.ones(())
    for order in orders:
        stencil = np.multiply.outer(stencil, _LINE[order])
    return stencil


@cache
def _higher(dim: int) -> Array:
    orders = [o for o in product(range(3), repeat=dim) if sum(o) > 2]
    return np.array([_product(o) for o in orders]).reshape(len(orders), *(3,) * dim)


def higher_stencils(dim: int) -> torch.Tensor:
    """Return the products of differences, in units of the spacing, that are no mass, drift or diffusion.

    Returns
    -------
    torch.Tensor
        float64, shape ``(R, 3, ..., 3)`` with R = 0, 3, 17 in 1, 2, 3 dimensions.
    """
    return torch.from_numpy(_higher(dim).copy())


@cache
def _stencils(size: tuple[int, ...]) -> tuple[Array, Array]:
    """Stencils of the first differences (d, *size) and of their products (d, d, *size), in units of the spacing.

    Along an axis where the kernel is one point wide they vanish.
    """
    dim = len(size)
    first, second = np.zeros((dim, *size)), np.zeros((dim, dim, *size))

    def put(into: Array, orders: tuple[int, ...]) -> None:
        if all(order == 0 or n > 1 for order, n in zip(orders, size, strict=True)):
            middle = tuple(slice(n // 2 - 1, n // 2 + 2) if n > 1 else slice(None) for n in size)
            narrow = tuple(slice(None) if n > 1 else slice(1, 2) for n in size)
            into[middle] = _product(orders)[narrow]

    for a in range(dim):
        put(first[a], tuple(int(k == a) for k in range(dim)))
        for b in range(dim):
            put(second[a, b], tuple(int(k == a) + int(k == b) for k in range(dim)))
    return first, second


@cache
def _offsets(size: tuple[int, ...]) -> Array:
    """Offsets of a kernel's entries from its middle, in steps, shape (d, *size)."""
    return np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in size), indexing="ij")).astype(np.float64)


def identity_kernel(out_channels: int, in_channels: int, size: tuple[int, ...]) -> Array:
    """Return the kernel E, shape ``(C_out, C_in, *size)``, that leaves the channels which go in and out as they are."""
    kernel = np.zeros((out_channels, in_channels, *size))
    middle: tuple[Any, ...] = (slice(None), slice(None), *(n // 2 for n in size))
    kernel[middle] = np.eye(out_channels, in_channels)
    return kernel


def kernel_from(
    mass: torch.Tensor,
    drift: torch.Tensor,
    diffusion: torch.Tensor,
    rest: torch.Tensor,
    spacing: tuple[float, ...],
    dt: float,
) -> torch.Tensor:
    """Return the kernel of one explicit step, which torch can differentiate.

    Parameters
    ----------
    mass, drift, diffusion, rest
        m ``(C_out, C_in)``, c ``(C_out, C_in, d)``, symmetric D ``(C_out, C_in, d, d)``, and what is left
        ``(C_out, C_in, *size)``, odd sizes.
    spacing, dt
        Distance of the points along each axis, length of the step.

    Returns
    -------
    torch.Tensor
        Shape ``(C_out, C_in, *size)``, a convolution in torch's sense: ``(K u)(x) = sum_o K_o u(x + o h)``.
    """
    size = tuple(rest.shape[2:])
    h = _tensor(np.array(spacing), mass)
    first, second = (_tensor(stencils, mass) for stencils in _stencils(size))
    one = _tensor(identity_kernel(1, 1, size)[0], mass)
    step = torch.tensordot(mass[..., None], one, 1) - torch.tensordot(drift / h, first, 1)
    step = step + torch.tensordot(diffusion / torch.outer(h, h), second, 2) + rest
    return _identity(step) + dt * step


def _tensor(array: Array, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(array, dtype=like.dtype, device=like.device)


def _identity(like: torch.Tensor) -> torch.Tensor:
    return _tensor(identity_kernel(like.shape[0], like.shape[1], tuple(like.shape[2:])), like)


def split_kernel(
    kernel: torch.Tensor, spacing: tuple[float, ...], dt: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mass, drift, diffusion and rest of a kernel: the inverse of :func:`kernel_from`, for any odd sizes."""
    h = _tensor(np.array(spacing), kernel)
    step = (kernel - _identity(kernel)) / dt
    flat, o = step.flatten(2), _tensor(_offsets(tuple(kernel.shape[2:])), kernel).flatten(1)
    mass, drift = flat.sum(2), -h * (flat @ o.T)
    second = torch.einsum("ijk,ak,bk->ijab", flat, o, o)
    diffusion = 0.25 * torch.outer(h, h) * (second + second.mT)
    local = kernel_from(mass, drift, diffusion, torch.zeros_like(step), spacing, 1.0) - _identity(kernel)
    return mass, drift, diffusion, step - local


def _numbers(label: str, given: Any) -> Array:
    try:
        return np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{label}: {given!r} given; numbers allowed") from error


def _finite(label: str, given: Any) -> Array:
    values = _numbers(label, given)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{label} has values that are NaN or infinite; finite ones allowed")
    return values


def _units(label: str, spacing: Any, dt: Any, dim: int) -> tuple[tuple[float, ...], float]:
    """Return the spacing along each axis, and the step, or raise ValueError."""
    h, step = _numbers(f"{label}: spacing", spacing), _numbers(f"{label}: dt", dt)
    for name, values, shapes in (("spacing", h, {(), (1,), (dim,)}), ("dt", step, {()})):
        if values.shape not in shapes or not np.all((values > 0) & np.isfinite(values)):
            count = "a positive finite number" + (f", or one for each of {dim} axes," if name == "spacing" else "")
            raise ValueError(f"{label}: {name} = {values.tolist()} given; {count} allowed")
    return tuple(np.broadcast_to(h, (dim,)).tolist()), float(step)


@dataclass(frozen=True)
class Coefficients:
    """The coefficients, constant in space, of one linear step of a network; see the module's text.

    Attributes
    ----------
    mass
        m, shape ``(C_out, C_in)``, in 1 / time.
    drift
        c, shape ``(C_out, C_in, d)``, in length / time.
    diffusion
        D, shape ``(C_out, C_in, d, d)``, symmetric in the last two, in length^2 / time.
    rest
        What is left of the kernel, shape ``(C_out, C_in, *size)`` with odd sizes, in 1 / time.
    source
        s, shape ``(C_out,)``: the bias is dt s.
    spacing
        Distance of the points along each axis.
    dt
        Length of the step.

    Raises
    ------
    ValueError
        If shapes do not fit each other, a size is even, a number is not finite, or a spacing or dt is not positive.
    """

    mass: Array
    drift: Array
    diffusion: Array
    rest: Array
    source: Array
    spacing: tuple[float, ...] = (1.0,)
    dt: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mass", "drift", "diffusion", "rest", "source"):
            value = _finite(f"Coefficients: {name}", getattr(self, name))
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        if self.mass.ndim != 2:
            raise ValueError(f"Coefficients: mass of shape {self.mass.shape} given; (C_out, C_in) allowed")
        pair, d = self.mass.shape, self.rest.ndim - 2
        shapes = {"drift": (*pair, d), "diffusion": (*pair, d, d), "source": pair[:1]}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"Coefficients: {name} of shape {getattr(self, name).shape} given; {shape} allowed")
        if self.rest.shape[:2] != pair or not 1 <= d <= 3:
            raise ValueError(f"Coefficients: rest of shape {self.rest.shape} given; {pair} and 1 to 3 sizes allowed")
        if any(n % 2 == 0 for n in self.size):
            raise ValueError(f"Coefficients: kernel of size {self.size} given; odd sizes allowed, they have a middle")
        if not np.array_equal(self.diffusion, self.diffusion.swapaxes(2, 3)):
            raise ValueError("Coefficients: diffusion must be symmetric in its last two axes")
        flat = [a for a, n in enumerate(self.size) if n == 1]
        if np.any(self.drift[..., flat]) or np.any(self.diffusion[..., flat]):
            raise ValueError(f"Coefficients: a kernel of size {self.size} has no drift or diffusion along axes {flat}")
        spacing, dt = _units("Coefficients", self.spacing, self.dt, d)
        object.__setattr__(self, "spacing", spacing)
        object.__setattr__(self, "dt", dt)

    @classmethod
    def of_kernel(
        cls,
        kernel: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        spacing: float | tuple[float, ...] = 1.0,
        dt: float = 1.0,
    ) -> Coefficients:
        """Read a kernel ``(C_out, C_in, *size)`` of odd sizes, and a bias ``(C_out,)``, as coefficients.

        Raises
        ------
        ValueError
            If these are no finite numbers of such shapes, or a spacing or dt is not positive.
        """
        weights = _finite("kernel", kernel)
        if not 3 <= weights.ndim <= 5 or any(n % 2 == 0 for n in weights.shape[2:]):
            raise ValueError(
                f"kernel of shape {weights.shape} given; (C_out, C_in, *size) with 1 to 3 odd sizes allowed"
            )
        values = np.zeros(len(weights)) if bias is None else _finite("bias", bias)
        if values.shape != weights.shape[:1]:
            raise ValueError(f"bias of shape {values.shape} given; {weights.shape[:1]}, one a channel, allowed")
        h, dt = _units("kernel", spacing, dt, weights.ndim - 2)
        mass, drift, diffusion, rest = (p.numpy() for p in split_kernel(torch.from_numpy(weights), h, dt))
        return cls(mass, drift, diffusion, rest, values / dt, h, dt)

    @property
    def channels(self) -> tuple[int, int]:
        """Channels that go in and out."""
        return self.mass.shape[1], self.mass.shape[0]

    @property
    def dim(self) -> int:
        """Space dimension."""
        return self.rest.ndim - 2

    @property
    def size(self) -> tuple[int, ...]:
        """Size of the kernel along each axis."""
        return self.rest.shape[2:]

    def kernel(self) -> Array:
        """Return the kernel K, shape ``(C_out, C_in, *size)``."""
        mass, drift, diffusion, rest = (
            torch.from_numpy(p.copy()) for p in (self.mass, self.drift, self.diffusion, self.rest)
        )
        made: Array = kernel_from(mass, drift, diffusion, rest, self.spacing, self.dt).numpy()
        return made

    def bias(self) -> Array:
        """Return dt s, shape ``(C_out,)``."""
        return self.dt * self.source

    @property
    def remainder(self) -> float:
        """Share of the rest in the step: ``||rest|| / ||(K - E) / dt||`` (Frobenius norms), 0 for no step at all."""
        step = (self.kernel() - identity_kernel(len(self.mass), self.mass.shape[1], self.size)) / self.dt
        whole = float(np.linalg.norm(step))
        return float(np.linalg.norm(self.rest)) / whole if whole else 0.0

    @property
    def has_rest(self) -> bool:
        """Whether the rest is more than round-off of the kernel."""
        return bool(np.abs(self.rest).max(initial=0.0) * self.dt > 1e-14 * np.abs(self.kernel()).max(initial=0.0))
