"""Hidden layers that are not trained: random ones, and those that pseudoinverse autoencoders give."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from npde_fem.discretize.semidiscrete import Array
from npde_fem.learn.pseudoinverse.ridge import Readout
from npde_fem.learn.pseudoinverse.stream import Stream, United
from npde_fem.parallel import alike

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

__all__ = [
    "ACTIVATIONS",
    "Moments",
    "activation_of",
    "encoder",
    "linear",
    "moments",
    "random_convolutions",
    "random_features",
]


class _Sine(nn.Module):
    """sin, one by one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "sin": _Sine,
}


def activation_of(given: Any) -> nn.Module:
    """Return an activation by its name, or a module as it is; raise ValueError for anything else."""
    if isinstance(given, nn.Module):
        return given
    if not isinstance(given, str) or given not in ACTIVATIONS:
        raise ValueError(f"activation: {given!r} given; a module, or one of {sorted(ACTIVATIONS)}, allowed")
    return ACTIVATIONS[given]()


def linear(weight: Array, bias: Array | None, dtype: torch.dtype) -> nn.Linear:
    """Return the layer ``x -> x W + b`` with W of shape (inputs, outputs), which needs no gradient."""
    inputs, outputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight.T)))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))
    return layer.requires_grad_(False)


class Moments(NamedTuple):
    """What is known of inputs beforehand: mean of each, and one standard deviation, least and largest value of all."""

    mean: Array
    deviation: float
    low: float
    high: float


def moments(batches: Iterable[Array], comm: MPI.Comm) -> Moments:
    """Return the moments of the samples on all ranks, shape (samples, inputs) in each batch (collective).

    Raises
    ------
    ValueError
        If there are no samples, or their shapes differ between ranks.
    """
    count, total, square, low, high = 0, np.zeros(0), 0.0, math.inf, -math.inf
    shift: Array | None = None
    with alike(comm):
        for rows in batches:
            # Sums of squares cancel less about a point among the values.
            shift = rows[0].copy() if shift is None else shift
            total = np.zeros(rows.shape[1]) if not count else total
            count, total = count + len(rows), total + (rows - shift).sum(axis=0)
            square += float(np.sum((rows - shift) ** 2))
            low, high = min(low, float(rows.min())), max(high, float(rows.max()))
    parts = comm.allgather((count, total, square, shift, low, high))
    parts = [part for part in parts if part[0]]
    if not parts:
        raise ValueError("data: no samples given on any rank; at least one is needed")
    if len({part[1].shape for part in parts}) > 1:
        raise ValueError("data: inputs of unlike shapes given on different ranks; one shape allowed")
    number = sum(part[0] for part in parts)
    mean = sum(part[1] + part[0] * part[3] for part in parts) / number
    spread = 0.0
    for n, sums, squares, about, _, _ in parts:
        spread += squares - 2 * float(sums @ (mean - about)) + n * float(np.sum((mean - about) ** 2))
    deviation = math.sqrt(max(0.0, spread) / (number * len(mean)))
    return Moments(mean, deviation, min(part[4] for part in parts), max(part[5] for part in parts))


def _deviation(known: Moments) -> float:
    return known.deviation if known.deviation > 0 else 1.0


def random_features(
    known: Moments, width: int, activation: Any, gain: float, rng: np.random.Generator, dtype: torch.dtype
) -> list[nn.Module]:
    """Return ``sigma(gain ((x - mean) G / (deviation sqrt(d)) + b))``: G normal, b even in [-1, 1].

    Random layers with a linear read-out: Schmidt, Kraaijveld and Duin 1992 (ICPR 11, B, 1); Pao, Park and Sobajic
    1994 (Neurocomputing 6, 163).
    """
    d = len(known.mean)
    g = rng.standard_normal((d, width)) * (gain / (_deviation(known) * math.sqrt(d)))
    b = gain * rng.uniform(-1.0, 1.0, width)
    return [nn.Flatten(), linear(g, b - known.mean @ g, dtype), activation_of(activation)]


def random_convolutions(
    known: Moments,
    shape: Sequence[int],
    width: int,
    kernel: int,
    activation: Any,
    gain: float,
    rng: np.random.Generator,
    dtype: torch.dtype,
) -> list[nn.Module]:
    """Return random convolutions with a bias, an activation, and means over blocks of 2 by 2: about ``width`` features.

    Parameters
    ----------
    known
        Moments of the inputs.
    shape
        Of one input: (height, width) or (channels, height, width).
    width
        Features wanted; channels are rounded up.
    kernel
        Edge of the kernels.
    activation, gain, rng, dtype
        As of :func:`random_features`; zeros surround the input less its mean over all pixels.
    """
    if len(shape) not in (2, 3) or min(shape[-2:]) < 2:
        raise ValueError(
            f"kernel: inputs of shape {tuple(shape)} given; (height, width) or with channels before allowed"
        )
    channels, (height, breadth) = (1 if len(shape) == 2 else shape[0]), shape[-2:]
    if not 1 <= kernel <= min(height, breadth) or kernel % 2 == 0:
        raise ValueError(f"kernel: {kernel} given; an odd number up to {min(height, breadth)} allowed")
    made = math.ceil(width / ((height // 2) * (breadth // 2)))
    entries = channels * kernel**2
    g = rng.standard_normal((made, channels, kernel, kernel)) * (gain / (_deviation(known) * math.sqrt(entries)))
    b = gain * rng.uniform(-1.0, 1.0, made)
    mean = float(known.mean.mean())
    layer = nn.Conv2d(channels, made, kernel, padding=kernel // 2, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(g))
        layer.bias.copy_(torch.from_numpy(b - mean * g.sum(axis=(1, 2, 3))))  # type: ignore[union-attr]
    found: list[nn.Module] = [nn.Unflatten(1, (1, height))] if len(shape) == 2 else []
    return [*found, layer.requires_grad_(False), activation_of(activation), nn.AvgPool2d(2), nn.Flatten()]


def encoder(
    known: United,
    inputs: Callable[[], Iterable[Array]],
    width: int | None,
    activation: Any,
    gain: float,
    ridge: float,
    rng: np.random.Generator,
    dtype: torch.dtype,
    comm: MPI.Comm,
) -> list[nn.Module]:
    """Return the encoder of a pseudoinverse autoencoder as a hidden layer (collective).

    The input X, less its mean, is ``U S V^T``, from the triangle. The truncated pseudoinverse encodes, the decoder is
    the least-squares one, and its transpose becomes the layer's weight (Wang, Guo, Xin and Ye 2017, IEEE SMC 2017; Guo,
    Zhou and Wang 2018, arXiv 1811.01545):

        W_e = sqrt(N) V_p S_p^-1,  H = sigma(X W_e),  W_d = argmin ||H W - X||^2 + k ||W||^2,  layer sigma(X W_d^T).

    Parameters
    ----------
    known
        Triangle of ``[1 X Y]``.
    inputs
        Gives the batches of X anew.
    width
        Neurons; by default the rank of the input. More than that combine the left singular vectors at random.
    activation, gain
        sigma of ``gain`` times what is scaled to a standard deviation of 1.
    ridge
        k, relative to the number of samples.
    rng, dtype
        Random numbers, the same on every rank, and precision of the layer.
    comm
        Ranks over which the samples are distributed.
    """
    d = known.features
    top, r = known.triangle[0], known.triangle[1 : 1 + d, 1 : 1 + d]
    mean, root = top[1 : 1 + d] / top[0], math.sqrt(known.samples)
    _, s, right = np.linalg.svd(r, full_matrices=False)
    rank = int(np.sum(s > np.finfo(float).eps * max(known.samples, d) * s.max(initial=0.0)))
    if not rank:
        raise ValueError("data: inputs that are all alike given; an autoencoder needs some that differ")
    width = rank if width is None else width
    encoding = root * right[:rank].T / s[:rank]
    if width > rank:
        encoding = encoding @ rng.standard_normal((rank, width)) / math.sqrt(rank)
    else:
        encoding = encoding[:, :width]
    sigma, stream = activation_of(activation), Stream()
    with alike(comm):
        for x in inputs():
            stream.add(sigma(torch.from_numpy(gain * ((x - mean) @ encoding))), x)
    decoded: Readout = stream.solve(ridge * known.samples, comm=comm)
    tied = decoded.weights.T
    lengths = np.linalg.norm(r @ tied, axis=0) / root
    tied = gain * tied / np.where(lengths > 0, lengths, 1.0)
    return [linear(tied, -mean @ tied, dtype), activation_of(activation)]
