"""Layers of trained networks as operators: what one convolution, matrix or recurrent cell does in a step.

A layer W (of channels, or of neurons) is one explicit step ``W = E + dt L`` of ``u_t = L u + s``; its moments are mass,
drift and diffusion (THEORY: *Discretising it generates networks*):

* :class:`Convolution`: one set for each pair of channels, from the kernel (:class:`Coefficients`).
* :class:`Nonlocal`: a matrix between neurons, which are points of a lattice: one set for each neuron, the moments of
  its row about its own place, ``m_i = sum_j L_ij``, ``c_i = -sum_j L_ij (x_j - x_i)``,
  ``D_i = 1/2 sum_j L_ij (x_j - x_i)(x_j - x_i)^T``.
* :class:`Recurrent`: such a matrix, run again and again, with a source for each input.

What differences with these coefficients do not do is the rest, so that coefficients and rest together give the layer
back exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Self

from npde_fem.networks.coefficients import Coefficients, identity_kernel

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

__all__ = ["Convolution", "Nonlocal", "Reading", "Recurrent", "by", "stacked"]

Array = npt.NDArray[np.float64]

_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What all readings have.

    Attributes
    ----------
    name
        Dotted name of the layer in its module.
    kind
        Name of its class.
    activation
        What follows it, ``"none"`` if nothing does.
    spacing, dt
        Units: distance of the points along each axis, and length of the step.
    dtype
        Of the layer's weights.
    mass, drift, diffusion
        m ``(...)``, c ``(..., d)``, D ``(..., d, d)`` for each pair of channels ``(C_out, C_in)`` or each neuron
        ``(n_out,)``.
    rest
        What of L is none of these, shaped as the weights.
    source
        s ``(C_out,)`` or ``(n_out,)``: the bias is dt s.
    biased
        Whether the layer has a bias.
    """

    name: str
    kind: str
    activation: str = "none"
    spacing: tuple[float, ...]
    dt: float
    dtype: torch.dtype

    mass: Array
    drift: Array
    diffusion: Array
    rest: Array
    source: Array
    biased: bool = True

    @property
    def dim(self) -> int:
        """Dimension of the lattice."""
        return len(self.spacing)

    @property
    def channels(self) -> tuple[int, int]:
        """Channels, or neurons, that go in and out."""
        raise NotImplementedError

    @property
    def eigenvalues(self) -> Array:
        """Eigenvalues of D, the largest first, shape ``(..., d)``."""
        return np.linalg.eigvalsh(self.diffusion)[..., ::-1]

    @property
    def directions(self) -> Array:
        """Unit eigenvectors of D, ``directions[..., k]`` that of ``eigenvalues[..., k]``; the largest entry is > 0."""
        vectors = np.linalg.eigh(self.diffusion)[1][..., ::-1]
        largest = np.argmax(np.abs(vectors), axis=-2)[..., None, :]
        return vectors * np.where(np.take_along_axis(vectors, largest, axis=-2) < 0, -1.0, 1.0)

    @property
    def step(self) -> Array:
        """L, shaped as the weights."""
        raise NotImplementedError

    @property
    def remainder_norm(self) -> float:
        """Frobenius norm of the rest, in 1 / time."""
        return float(np.linalg.norm(self.rest))

    @property
    def remainder(self) -> float:
        """The same relative to that of L; 0 where L vanishes."""
        whole = float(np.linalg.norm(self.step))
        return self.remainder_norm / whole if whole else 0.0

    @property
    def remainders(self) -> Array:
        """Norm of the rest relative to that of L for each pair of channels, or each neuron; 0 where L vanishes."""
        rest, whole = (np.linalg.norm(a.reshape(*self.mass.shape, -1), axis=-1) for a in (self.rest, self.step))
        return np.divide(rest, whole, out=np.zeros_like(rest), where=whole > 0)

    def to_torch(self) -> nn.Module:
        """Return the stock layer that these coefficients make, with the weights' dtype, on the CPU."""
        raise NotImplementedError

    def heading(self) -> str:
        """Return what stands above the layer's part of the table."""
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """Return numbers: a dictionary for each pair of channels, or one for all neurons with means and spreads."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, lists and strings, fit for JSON."""
        arrays = ("mass", "drift", "diffusion", "eigenvalues", "directions", "source", "rest")
        made: dict[str, Any] = {"name": self.name, "kind": self.kind, "activation": self.activation}
        made |= {"channels": list(self.channels), "spacing": list(self.spacing), "dt": self.dt}
        made |= {"dtype": str(self.dtype).removeprefix("torch."), "biased": self.biased}
        made |= {name: getattr(self, name).tolist() for name in arrays}
        return made | {"remainder_norm": self.remainder_norm, "remainder": self.remainder}


@dataclass(frozen=True, kw_only=True)
class Convolution(Reading):
    """A convolution: coefficients constant in space for each pair of channels.

    Attributes
    ----------
    padding
        Points added on each side along each axis.
    padding_mode
        ``"zeros"``, ``"replicate"``, ``"reflect"`` or ``"circular"``.
    stride
        Along each axis: every so many points of the result are kept.
    """

    padding: tuple[int, ...]
    padding_mode: str
    stride: tuple[int, ...]

    @classmethod
    def of_kernel(
        cls, kernel: Array, bias: Array | None, spacing: tuple[float, ...], dt: float, **described: Any
    ) -> Convolution:
        """Read a kernel ``(C_out, C_in, *size)`` and a bias ``(C_out,)``; the other attributes as they are called."""
        c = Coefficients.of_kernel(kernel, bias, spacing, dt)
        moments: dict[str, Any] = {
            "mass": c.mass,
            "drift": c.drift,
            "diffusion": c.diffusion,
            "rest": c.rest,
            "source": c.source,
        }
        return cls(spacing=c.spacing, dt=c.dt, biased=bias is not None, **moments, **described)

    @property
    def coefficients(self) -> Coefficients:
        """The coefficients of the step."""
        moments = (self.mass, self.drift, self.diffusion, self.rest, self.source)
        return Coefficients(*moments, spacing=self.spacing, dt=self.dt)

    @property
    def size(self) -> tuple[int, ...]:
        """Of the kernel, along each axis."""
        return self.rest.shape[2:]

    @property
    def channels(self) -> tuple[int, int]:
        return self.mass.shape[1], self.mass.shape[0]

    @property
    def same(self) -> bool:
        """Whether the layer pads as much as it needs: as many points after a step as before."""
        return self.padding == self.needed

    @property
    def needed(self) -> tuple[int, ...]:
        """The padding that leaves as many points as there were."""
        return tuple(n // 2 for n in self.size)

    @property
    def boundary(self) -> str:
        """What holds at the boundary, in words."""
        if set(self.size) == {1} and self.same:
            return "no neighbours"
        return self.padding_mode if self.same else f"padding {by(self.padding)} (same: {by(self.needed)})"

    @property
    def step(self) -> Array:
        c = self.coefficients
        return np.asarray((c.kernel() - identity_kernel(len(c.mass), c.mass.shape[1], c.size)) / c.dt)

    def to_torch(self) -> nn.Module:
        """Return the convolution: its kernel is made of the coefficients and the rest."""
        c_in, c_out = self.channels
        made: Any = _CONVOLUTIONS[self.dim](
            c_in,
            c_out,
            self.size,
            stride=self.stride,
            padding=self.padding,
            padding_mode=self.padding_mode,
            bias=self.biased,
            dtype=self.dtype,
        )
        _fill(made.weight, self.coefficients.kernel())
        if self.biased:
            _fill(made.bias, self.coefficients.bias())
        return made

    def heading(self) -> str:
        c_in, c_out = self.channels
        stride = f", stride {by(self.stride)}" if max(self.stride) > 1 else ""
        return f"{self.kind} {c_in} -> {c_out}, {by(self.size)}, {self.boundary}{stride}"

    def rows(self) -> list[dict[str, Any]]:
        eigenvalues, directions, remainders = self.eigenvalues, self.directions, self.remainders
        made = []
        for i, j in product(*map(range, self.mass.shape)):
            row: dict[str, Any] = {"layer": self.name, "kind": self.kind, "from": j, "to": i}
            row |= {"mass": float(self.mass[i, j]), "drift": self.drift[i, j].tolist()}
            row |= {"eigenvalues": eigenvalues[i, j].tolist(), "direction": directions[i, j, :, 0].tolist()}
            row |= {"source": float(self.source[i]), "remainder": float(remainders[i, j])}
            made.append(row)
        return made

    def to_dict(self) -> dict[str, Any]:
        size = {"size": list(self.size), "padding": list(self.padding)}
        return super().to_dict() | size | {"padding_mode": self.padding_mode, "stride": list(self.stride)}


@dataclass(frozen=True, kw_only=True)
class Nonlocal(Reading):
    """A matrix ``(n_out, n_in)`` between neurons, which are points of one lattice: numbers for each neuron.

    Neuron k, in or out, is point k of the lattice (the last axis runs fastest).

    Attributes
    ----------
    shape
        Points of the lattice along each axis, ``max(n_out, n_in)`` in all.
    """

    shape: tuple[int, ...]

    @classmethod
    def of_matrix(
        cls,
        weights: Array,
        bias: Array | None,
        shape: tuple[int, ...],
        spacing: tuple[float, ...],
        dt: float,
        **described: Any,
    ) -> Self:
        """Read a matrix and a bias ``(n_out,)``; the other attributes as they are called."""
        n_out, n_in = weights.shape
        step, places = (weights - np.eye(n_out, n_in)) / dt, _places(shape, spacing)
        away = places[None, :n_in] - places[:n_out, None]
        mass, drift = step.sum(1), -np.einsum("ij,ija->ia", step, away)
        second = np.einsum("ij,ija,ijb->iab", step, away, away)
        diffusion = 0.25 * (second + second.swapaxes(1, 2))
        source = np.zeros(n_out) if bias is None else bias / dt
        moments: dict[str, Any] = {"mass": mass, "drift": drift, "diffusion": diffusion, "rest": step, "source": source}
        whole = cls(shape=shape, spacing=spacing, dt=dt, biased=bias is not None, **moments, **described)
        return replace(whole, rest=step - whole._local())

    @property
    def places(self) -> Array:
        """Coordinates of the neurons, shape ``(n, d)``; the first is at 0."""
        return _places(self.shape, self.spacing)

    @property
    def channels(self) -> tuple[int, int]:
        """Neurons that go in and out."""
        return self.rest.shape[1], self.rest.shape[0]

    def _local(self) -> Array:
        """The matrix of differences with the moments as coefficients; beyond the lattice u = 0."""
        n_out, n_in = self.rest.shape
        zeros = np.zeros((n_out, 1, *(3,) * self.dim))
        columns = Coefficients(
            self.mass[:, None], self.drift[:, None], self.diffusion[:, None], zeros, np.zeros(n_out), self.spacing
        )
        stencils = columns.kernel()
        stencils = (stencils - identity_kernel(n_out, 1, zeros.shape[2:])).reshape(n_out, -1)
        made, here = np.zeros((n_out, n_in)), np.indices(self.shape).reshape(self.dim, -1)[:, :n_out]
        shape = np.array(self.shape)[:, None]
        for k, offset in enumerate(product((-1, 0, 1), repeat=self.dim)):
            there = here + np.array(offset)[:, None]
            rows = np.flatnonzero(np.all((there >= 0) & (there < shape), axis=0))
            column = np.ravel_multi_index(tuple(there[:, rows]), self.shape)
            made[rows[column < n_in], column[column < n_in]] = stencils[rows[column < n_in], k]
        return made

    @property
    def step(self) -> Array:
        return self._local() + self.rest

    def matrix(self) -> Array:
        """Return W, made of the coefficients and the rest."""
        return np.eye(*self.rest.shape) + self.dt * self.step

    def to_torch(self) -> nn.Module:
        """Return the linear layer: its matrix is made of the coefficients and the rest."""
        made = nn.Linear(*self.channels, bias=self.biased, dtype=self.dtype)
        _fill(made.weight, self.matrix())
        if self.biased:
            _fill(made.bias, self.dt * self.source)
        return made

    def heading(self) -> str:
        n_in, n_out = self.channels
        return f"{self.kind} {n_in} -> {n_out}, neurons on a lattice of {by(self.shape)}"

    def rows(self) -> list[dict[str, Any]]:
        row: dict[str, Any] = {"layer": self.name, "kind": self.kind, "from": self.channels[0], "to": self.channels[1]}
        for name, values in (
            ("mass", self.mass),
            ("drift", self.drift),
            ("eigenvalues", self.eigenvalues),
            ("source", self.source),
        ):
            row |= {name: values.mean(0).tolist(), f"{name}_spread": values.std(0).tolist()}
        values, vectors = np.linalg.eigh(self.diffusion.mean(0))
        principal = vectors[:, np.argmax(values)]
        sign = np.sign(principal[np.argmax(np.abs(principal))])
        return [row | {"direction": (sign * principal).tolist(), "remainder": self.remainder}]

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"shape": list(self.shape)}


@dataclass(frozen=True, kw_only=True)
class Recurrent(Nonlocal):
    """A recurrent cell ``u <- phi(W u + U x + b)``: a step of neurons with a source for each input.

    Of the two biases of a stock cell :attr:`source` has the sum.

    Attributes
    ----------
    sources
        Source of each input at each neuron, U / dt, shape ``(n, k)``.
    input_source
        What of :attr:`source` comes with the inputs, shape ``(n,)``: the cell's ``bias_ih`` over dt.
    batch_first
        Of an ``nn.RNN``: its argument of this name.
    continues
        Whether it is a further layer of the same ``nn.RNN``, whose inputs are the states of the one before.
    """

    sources: Array
    input_source: Array
    batch_first: bool = False
    continues: bool = False

    def source_places(self) -> tuple[Array, Array, Array]:
        """Return, for each input, its strength and where it enters.

        Returns
        -------
        tuple of ndarray
            Sum of the source over the neurons ``(k,)``; centre of its size ``(k, d)``; root mean square distance
            from there ``(k,)``.
        """
        size = np.abs(self.sources)
        total = size.sum(0)
        share = np.divide(size, total, out=np.zeros_like(size), where=total > 0)
        centre = share.T @ self.places
        away = self.places[:, None] - centre[None]
        return self.sources.sum(0), centre, np.sqrt(np.einsum("ik,ika,ika->k", share, away, away))

    def to_torch(self) -> nn.Module:
        """Return the cell, or the layer of cells, made of the coefficients, the rest and the sources."""
        return stacked([self])

    def fill(self, layer: nn.Module, suffix: str) -> None:
        """Write the matrices and biases to a stock layer's parameters, whose names end so."""
        values = {"weight_hh": self.matrix(), "weight_ih": self.dt * self.sources}
        if self.biased:
            values |= {"bias_hh": self.dt * (self.source - self.input_source), "bias_ih": self.dt * self.input_source}
        for name, value in values.items():
            _fill(getattr(layer, f"{name}{suffix}"), value)

    def heading(self) -> str:
        n, k = self.sources.shape
        return f"{self.kind} of {n}, neurons on a lattice of {by(self.shape)}, {k} input{'s' * (k > 1)} as sources"

    def rows(self) -> list[dict[str, Any]]:
        strength, centre, width = self.source_places()
        (row,) = super().rows()
        return [row | {"strengths": strength.tolist(), "centres": centre.tolist(), "widths": width.tolist()}]

    def to_dict(self) -> dict[str, Any]:
        strength, centre, width = self.source_places()
        profile = {"sources": self.sources.tolist(), "strengths": strength.tolist()}
        order = {"batch_first": self.batch_first, "continues": self.continues}
        profile |= {"centres": centre.tolist(), "widths": width.tolist()}
        return super().to_dict() | profile | {"input_source": self.input_source.tolist()} | order


def stacked(cells: list[Recurrent]) -> nn.Module:
    """Return the ``nn.RNN`` of some layers, or the ``nn.RNNCell`` of one."""
    first = cells[0]
    n, k = first.sources.shape
    common: dict[str, Any] = {"bias": first.biased, "nonlinearity": first.activation.lower(), "dtype": first.dtype}
    if first.kind == "RNNCell":
        cell = nn.RNNCell(k, n, **common)
        first.fill(cell, "")
        return cell
    layer = nn.RNN(k, n, num_layers=len(cells), batch_first=first.batch_first, **common)
    for number, reading in enumerate(cells):
        reading.fill(layer, f"_l{number}")
    return layer


def _places(shape: tuple[int, ...], spacing: tuple[float, ...]) -> Array:
    return np.asarray(np.indices(shape).reshape(len(shape), -1).T * np.array(spacing))


def _fill(parameter: torch.Tensor, values: Array) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))


def by(numbers: tuple[Any, ...]) -> str:
    """Return numbers as they are told of lattices and kernels: ``3 x 3``."""
    return " x ".join(f"{n:.4g}" if isinstance(n, float) else str(n) for n in numbers)
