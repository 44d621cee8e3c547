"""Reads the layers of a torch module, one after the other."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from npde_fem.networks.reactions import FixedStep, Reaction, Skip
from npde_fem.networks.reading.readings import Convolution, Nonlocal, Reading, Recurrent
from npde_fem.networks.reading.walk import Step, Take, is_reaction

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

__all__ = ["BETWEEN", "READABLE", "Reader"]

Array = npt.NDArray[np.float64]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_GLOBAL = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_SHAPES = (nn.Flatten, nn.Unflatten)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink),
    *(nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Softmax, nn.LogSoftmax),
)
BETWEEN: tuple[type[nn.Module], ...] = (*_ACTIVATIONS, *_POOLINGS, *_GLOBAL, *_SHAPES)
"""Layers without an equation of their own that are kept as they are, between those which have one."""
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
READABLE = (
    "Conv1d, Conv2d, Conv3d, Linear, RNN, RNNCell, BatchNorm after them, activations, AvgPool, MaxPool, "
    "AdaptiveAvgPool, Flatten, Unflatten, Identity and Dropout can be read"
)


class Reader:
    """Reads layers in order: what came before decides a layer's spacing, and what a BatchNorm belongs to.

    Attributes
    ----------
    parts
        Readings, and the layers without weights between them.
    """

    def __init__(self, spacing: tuple[float, ...], dt: float, shape: tuple[int, ...] | None) -> None:
        self.spacing, self.dt, self.shape = spacing, dt, shape
        self.parts: list[Reading | nn.Module] = []
        self._coarser: tuple[int, ...] | None = None

    def read(self, step: Step) -> None:
        """Read a layer."""
        name, layer = step.name or type(step.layer).__name__, step.layer
        self._check(name, layer)
        last = self.parts[-1] if self.parts else None
        if isinstance(layer, _CONVOLUTIONS):
            self._convolution(name, layer)
        elif isinstance(layer, nn.Linear):
            weights, bias = _array(name, layer.weight), _array(name, layer.bias)
            self.parts.append(self._matrix(Nonlocal, name, "Linear", weights, bias, dtype=layer.weight.dtype))
        elif isinstance(layer, nn.RNN | nn.RNNCell):
            self._recurrent(name, layer)
        elif isinstance(layer, _NORMS):
            self._norm(name, layer)
        elif isinstance(layer, nn.Identity) or isinstance(layer, nn.modules.dropout._DropoutNd):
            return
        elif isinstance(layer, _ACTIVATIONS) or is_reaction(layer):
            if isinstance(last, Reading) and last.activation == "none":
                self.parts[-1] = replace(last, activation=_called(layer))
            self.parts.append(layer)
        else:
            self._coarsen(name, layer)
            self.parts.append(layer)

    def _check(self, name: str, layer: nn.Module) -> None:
        """Raise ValueError for a layer that cannot be read."""
        kind = type(layer).__name__
        label = f"interpret: layer {name!r} is a {kind}"
        lazy = any(nn.parameter.is_lazy(p) for p in layer.parameters())
        if lazy:
            raise ValueError(f"{label} that has seen no input yet, so has no weights; run the network once")
        if isinstance(layer, _TRANSPOSED):
            raise ValueError(f"{label}, which makes the lattice finer; {READABLE}")
        if isinstance(layer, nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell):
            raise ValueError(f"{label}, whose gates multiply states; RNN and RNNCell with tanh or ReLU can be read")
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            raise ValueError(f"{label} in training, which is random; call .eval() on the network")
        known = (*_CONVOLUTIONS, *_NORMS, *BETWEEN, nn.Linear, nn.RNN, nn.RNNCell)
        others = (nn.Identity, nn.modules.dropout._DropoutNd, Take)
        if not isinstance(layer, (*known, *others)) and not is_reaction(layer):
            raise ValueError(f"{label}; {READABLE}")

    def _convolution(self, name: str, layer: Any) -> None:
        kind, dim = type(layer).__name__, layer.weight.ndim - 2
        label = f"interpret: layer {name!r} is a {kind} with"
        if layer.groups != 1:
            raise ValueError(f"{label} groups = {layer.groups}; groups = 1, where all channels meet, can be read")
        if set(layer.dilation) != {1}:
            raise ValueError(f"{label} dilation = {layer.dilation}; dilation = 1, between neighbours, can be read")
        size = tuple(layer.kernel_size)
        if any(n % 2 == 0 for n in size):
            raise ValueError(f"{label} a kernel of size {size}; odd sizes, which have a middle, can be read")
        padding = layer.padding
        if isinstance(padding, str):
            padding = tuple(n // 2 for n in size) if padding == "same" else (0,) * dim
        described = {"padding": tuple(padding), "padding_mode": layer.padding_mode, "stride": tuple(layer.stride)}
        kernel, bias = _array(name, layer.weight), _array(name, layer.bias)
        assert kernel is not None
        units, dtype = (self._spacing(name, dim), self.dt), layer.weight.dtype
        self.parts.append(Convolution.of_kernel(kernel, bias, *units, name=name, kind=kind, dtype=dtype, **described))
        self._coarsen_by(tuple(layer.stride))

    def _matrix(
        self, reading: type[Nonlocal], name: str, kind: str, weights: Array | None, bias: Array | None, **described: Any
    ) -> Nonlocal:
        assert weights is not None
        n = max(weights.shape)
        shape = self.shape if self.shape is not None and prod(self.shape) == n else (n,)
        h = self.spacing if len(self.spacing) == len(shape) else (self._one_spacing(name, len(shape)),) * len(shape)
        made: Nonlocal = reading.of_matrix(weights, bias, shape, h, self.dt, name=name, kind=kind, **described)
        return made

    def _recurrent(self, name: str, layer: Any) -> None:
        kind, label = type(layer).__name__, f"interpret: layer {name!r} is an RNN with"
        if isinstance(layer, nn.RNNCell):
            self.parts.append(self._cell(name, kind, layer, ""))
            return
        if layer.bidirectional:
            raise ValueError(f"{label} bidirectional=True; time has one direction, False can be read")
        if layer.dropout and layer.training and layer.num_layers > 1:
            raise ValueError(f"{label} dropout in training, which is random; call .eval() on the network")
        for k in range(layer.num_layers):
            called = name if layer.num_layers == 1 else f"{name}.l{k}"
            order = {"batch_first": layer.batch_first, "continues": k > 0}
            self.parts.append(self._cell(called, kind, layer, f"_l{k}", **order))

    def _cell(self, name: str, kind: str, layer: Any, suffix: str, **order: bool) -> Nonlocal:
        def part(which: str) -> Array | None:
            return _array(name, getattr(layer, f"{which}{suffix}", None))

        hidden, inputs, input_bias = part("bias_hh"), part("weight_ih"), part("bias_ih")
        assert inputs is not None
        both = None if hidden is None or input_bias is None else hidden + input_bias
        described = {
            "dtype": getattr(layer, f"weight_hh{suffix}").dtype,
            "activation": {"tanh": "Tanh", "relu": "ReLU"}[layer.nonlinearity],
            "sources": inputs / self.dt,
            "input_source": np.zeros(len(inputs)) if input_bias is None else input_bias / self.dt,
        }
        return self._matrix(Recurrent, name, kind, part("weight_hh"), both, **described, **order)

    def _norm(self, name: str, layer: Any) -> None:
        label = f"interpret: layer {name!r} is a {type(layer).__name__}"
        if layer.training or layer.running_mean is None:
            why = "in training" if layer.training else "without running statistics"
            raise ValueError(f"{label} {why}: what it does depends on the batch; call .eval() on the network")
        last = self.parts[-1] if self.parts else None
        if not isinstance(last, Convolution | Nonlocal) or isinstance(last, Recurrent):
            raise ValueError(f"{label} that does not follow a convolution or a Linear directly, where it is part of it")
        variance, mean = _array(name, layer.running_var), _array(name, layer.running_mean)
        assert variance is not None and mean is not None
        scale, shift = _array(name, layer.weight), _array(name, layer.bias)
        factor = (1.0 if scale is None else scale) / np.sqrt(variance + layer.eps)
        bias = (last.dt * last.source - mean) * factor + (0.0 if shift is None else shift)
        kept: dict[str, Any] = {"name": f"{last.name} + {name}", "kind": last.kind, "dtype": last.dtype}
        if isinstance(last, Convolution):
            kernel = last.coefficients.kernel()
            kernel = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
            kept |= {"padding": last.padding, "padding_mode": last.padding_mode, "stride": last.stride}
            self.parts[-1] = Convolution.of_kernel(kernel, bias, last.spacing, last.dt, **kept)
        else:
            weights = last.matrix() * factor[:, None]
            self.parts[-1] = Nonlocal.of_matrix(weights, bias, last.shape, last.spacing, last.dt, **kept)

    def _coarsen(self, name: str, layer: Any) -> None:
        if not isinstance(layer, _POOLINGS):
            return
        dim = int(type(layer).__name__[-2])
        stride = layer.stride if isinstance(layer.stride, tuple) else (layer.stride,) * dim
        self._spacing(name, dim)
        self._coarsen_by(stride)

    def _coarsen_by(self, factor: tuple[int, ...]) -> None:
        before = self._coarser or (1,) * len(factor)
        self._coarser = tuple(a * b for a, b in zip(before, factor, strict=True))

    def _spacing(self, name: str, dim: int) -> tuple[float, ...]:
        """Spacing of the points on which a layer works."""
        if self._coarser is not None and len(self._coarser) != dim:
            raise ValueError(f"interpret: layer {name!r} has {dim} dimensions, layers before it {len(self._coarser)}")
        h = self.spacing if len(self.spacing) == dim else (self._one_spacing(name, dim),) * dim
        return tuple(a * b for a, b in zip(h, self._coarser or (1,) * dim, strict=True))

    def _one_spacing(self, name: str, dim: int) -> float:
        if len(set(self.spacing)) > 1 and not (dim == 1 and self._coarser):
            has = f"{dim} dimension{'s' * (dim > 1)}"
            raise ValueError(f"interpret: spacing {self.spacing} given; layer {name!r} has {has}")
        return self.spacing[0]


def _array(name: str, values: torch.Tensor | None) -> Array | None:
    """Return a layer's numbers in float64 on the CPU."""
    if values is None:
        return None
    if values.is_complex():
        raise ValueError(f"interpret: layer {name!r} has complex weights; real ones can be read")
    made = values.detach().to("cpu", torch.float64).numpy().copy()
    if not np.isfinite(made).all():
        raise ValueError(f"interpret: layer {name!r} has weights that are NaN or infinite")
    return made


def _called(layer: nn.Module) -> str:
    if isinstance(layer, FixedStep):
        layer = layer.reaction
    if isinstance(layer, Skip):
        return "residual step"
    return layer.name if isinstance(layer, Reaction) else type(layer).__name__
