"""Layers as numbers, lists and strings, which JSON has, and back: what a ``.json`` file of a network holds.

A layer with weights is what :meth:`Reading.to_dict` gives; numbers that follow from others (eigenvalues, norms, ...)
are not read back. Any other layer is ``{"kind": class, "arguments": {...}}``, with ``"weights"`` if it has some. Only
kinds of a fixed list are made, so that a file runs no code.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from math import isfinite, prod
from typing import Any

from npde_fem.networks.reactions import FixedStep, FromEquation, Identity, Pointwise, Polynomial, Sigmoid, Skip, Tanh
from npde_fem.networks.reactions.residual import Rate
from npde_fem.networks.reading.reader import BETWEEN
from npde_fem.networks.reading.readings import Convolution, Nonlocal, Reading, Recurrent
from npde_fem.networks.reading.walk import Take

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

__all__ = ["part_from", "part_to_dict"]

Array = npt.NDArray[np.float64]
Shape = tuple[int | None, ...]

_DIMENSIONS = {"Conv1d": 1, "Conv2d": 2, "Conv3d": 3}
_CELLS = ("RNN", "RNNCell")
_PADDINGS = ("zeros", "replicate", "reflect", "circular")
_DTYPES = {
    str(kind).removeprefix("torch."): kind for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


def _polynomial(coefficients: torch.Tensor, **arguments: Any) -> Polynomial:
    return Polynomial(coefficients.numpy(), dtype=coefficients.dtype, **arguments)


# Attributes of this package's modules that say all of them, and what makes a module of these.
_OWN: dict[type[nn.Module], tuple[tuple[str, ...], Callable[..., nn.Module]]] = {
    FixedStep: (("reaction", "dt"), FixedStep),
    Skip: (("branch", "dt"), Skip),
    Rate: (("reaction",), Rate),
    Pointwise: (("inner",), Pointwise),
    Take: (("index",), Take),
    Identity: ((), Identity),
    Sigmoid: (("driven",), Sigmoid),
    Tanh: (("driven",), Tanh),
    Polynomial: (("coefficients", "substeps", "order"), _polynomial),
}
# Within a residual connection there are layers with weights too.
_STOCK = (*BETWEEN, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _kind(module: type[nn.Module]) -> str:
    # Sigmoid, Tanh and Identity are names of torch's too.
    return f"Reaction.{module.__name__}" if module in (Identity, Sigmoid, Tanh, Polynomial) else module.__name__


_MAKERS: dict[str, Callable[..., nn.Module]] = {
    **{_kind(module): make for module, (_, make) in _OWN.items()},
    **{module.__name__: module for module in _STOCK},
    "Sequential": lambda layers: nn.Sequential(*layers),
}


def part_to_dict(part: Reading | nn.Module) -> dict[str, Any]:
    """Return a layer as numbers, lists and strings."""
    return part.to_dict() if isinstance(part, Reading) else _module_to_dict(part)


def part_from(data: Any, where: str) -> Reading | nn.Module:
    """Return the layer that :func:`part_to_dict` was given.

    Parameters
    ----------
    data
        What it returned.
    where
        What errors call the layer.

    Raises
    ------
    ValueError
        If a key is missing, or its value is none of those allowed, or the layer is the reaction of an equation, of
        which a file has the numbers only.
    """
    fields = _Fields(data, where)
    kind = fields.text("kind")
    if kind in _DIMENSIONS:
        return _convolution(fields, kind)
    if kind == "Linear":
        return Nonlocal(**_matrix(fields, kind))
    if kind in _CELLS:
        return _cell(fields, kind)
    return _module(fields, kind)


# -- layers with weights ------------------------------------------------------------------------------------------


class _Fields:
    """A dictionary of a file, whose errors name the layer and the key."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, Mapping):
            raise ValueError(f"{where} is {data!r}; a dictionary allowed")
        self.data, self.where = data, where

    def get(self, key: str) -> Any:
        if key not in self.data:
            raise ValueError(f"{self.where}: key {key!r} is missing; there are {', '.join(map(repr, self.data))}")
        return self.data[key]

    def refuse(self, key: str, allowed: str) -> ValueError:
        given = repr(self.data[key])
        return ValueError(
            f"{self.where}: {key!r} is {given if len(given) < 60 else given[:56] + ' ...'}; {allowed} allowed"
        )

    def text(self, key: str) -> str:
        if not isinstance(value := self.get(key), str):
            raise self.refuse(key, "a string")
        return value

    def one_of(self, key: str, allowed: tuple[str, ...]) -> str:
        if self.text(key) not in allowed:
            raise self.refuse(key, ", ".join(map(repr, allowed)))
        return self.text(key)

    def flag(self, key: str) -> bool:
        if not isinstance(value := self.get(key), bool):
            raise self.refuse(key, "true or false")
        return value

    def positive(self, key: str) -> float:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value > 0):
            raise self.refuse(key, "a positive finite number")
        return float(value)

    def integers(self, key: str, count: int, least: int) -> tuple[int, ...]:
        value = self.get(key)
        good = isinstance(value, list | tuple) and len(value) == count
        if not good or not all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in value):
            raise self.refuse(key, f"a list of {count} integers of at least {least}")
        return tuple(value)

    def array(self, key: str, shape: Shape) -> Array:
        """Return an array of a shape, in which None is any length."""
        wanted = f"({', '.join('any' if n is None else str(n) for n in shape)}{',' * (len(shape) == 1)})"
        value = self.get(key)
        try:
            made = np.array(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self.refuse(key, f"numbers in nested lists of shape {wanted}") from error
        if made.ndim != len(shape) or any(n not in (None, k) for n, k in zip(shape, made.shape, strict=True)):
            raise ValueError(f"{self.where}: {key!r} has shape {made.shape}; {wanted} allowed")
        if not np.isfinite(made).all():
            raise ValueError(f"{self.where}: {key!r} has numbers that are NaN or infinite")
        return made

    def common(self, kind: str, dim: int) -> dict[str, Any]:
        """Return what all readings have besides their moments."""
        spacing = self.array("spacing", (dim,))
        if not (spacing > 0).all():
            raise self.refuse("spacing", "positive numbers")
        return {
            "name": self.text("name"),
            "kind": kind,
            "activation": self.text("activation"),
            "spacing": tuple(spacing.tolist()),
            "dt": self.positive("dt"),
            "dtype": _DTYPES[self.one_of("dtype", tuple(_DTYPES))],
            "biased": self.flag("biased"),
        }


def _convolution(fields: _Fields, kind: str) -> Convolution:
    dim = _DIMENSIONS[kind]
    rest = fields.array("rest", (None,) * (2 + dim))
    pair, size = rest.shape[:2], rest.shape[2:]
    if any(n % 2 == 0 for n in size):
        raise ValueError(f"{fields.where}: 'rest' is a kernel of size {size}; odd sizes allowed")
    made = Convolution(
        **fields.common(kind, dim),
        mass=fields.array("mass", pair),
        drift=fields.array("drift", (*pair, dim)),
        diffusion=_symmetric(fields, (*pair, dim, dim)),
        rest=rest,
        source=fields.array("source", pair[:1]),
        padding=fields.integers("padding", dim, 0),
        padding_mode=fields.one_of("padding_mode", _PADDINGS),
        stride=fields.integers("stride", dim, 1),
    )
    try:
        made.coefficients  # noqa: B018 - which checks what shapes do not say
    except ValueError as error:
        raise ValueError(f"{fields.where}: {error}") from error
    return made


def _symmetric(fields: _Fields, shape: Shape) -> Array:
    diffusion = fields.array("diffusion", shape)
    if not np.array_equal(diffusion, diffusion.swapaxes(-1, -2)):
        raise ValueError(f"{fields.where}: 'diffusion' is not symmetric in its last two axes")
    return diffusion


def _matrix(fields: _Fields, kind: str) -> dict[str, Any]:
    rest = fields.array("rest", (None, None))
    n_out, n_in = rest.shape
    given = fields.get("shape")
    dim = len(given) if isinstance(given, list | tuple) else 0
    if not 1 <= dim <= 3 or prod(fields.integers("shape", dim, 1)) != max(rest.shape):
        raise fields.refuse("shape", f"1 to 3 integers whose product is {max(rest.shape)}, the number of neurons,")
    return {
        **fields.common(kind, dim),
        "shape": tuple(given),
        "mass": fields.array("mass", (n_out,)),
        "drift": fields.array("drift", (n_out, dim)),
        "diffusion": _symmetric(fields, (n_out, dim, dim)),
        "rest": rest,
        "source": fields.array("source", (n_out,)),
    }


def _cell(fields: _Fields, kind: str) -> Recurrent:
    matrix = _matrix(fields, kind)
    n, columns = matrix["rest"].shape
    if n != columns:
        raise ValueError(f"{fields.where}: 'rest' has shape {(n, columns)}; as many rows as columns allowed")
    fields.one_of("activation", ("Tanh", "ReLU"))
    return Recurrent(
        **matrix,
        sources=fields.array("sources", (n, None)),
        input_source=fields.array("input_source", (n,)),
        batch_first=fields.flag("batch_first"),
        continues=fields.flag("continues"),
    )


# -- other layers -------------------------------------------------------------------------------------------------


def _module_to_dict(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, FromEquation):
        return {"kind": "FromEquation", "equation": module.name, "numbers": _plain(dict(module.numbers))}
    if isinstance(module, nn.Sequential):
        return {"kind": "Sequential", "arguments": {"layers": _plain(list(module))}}
    own = _OWN.get(type(module))
    if own is not None:
        return {"kind": _kind(type(module)), "arguments": {name: _plain(getattr(module, name)) for name in own[0]}}
    if not isinstance(module, _STOCK):
        return {"kind": type(module).__name__, "printed": repr(module)}
    names = [name for name in inspect.signature(type(module)).parameters if hasattr(module, name)]
    arguments = {name: _plain(getattr(module, name)) for name in names}
    if "bias" in arguments:
        arguments["bias"] = arguments["bias"] is not None
    made: dict[str, Any] = {"kind": type(module).__name__, "arguments": arguments}
    weights = module.state_dict()
    return made | {"weights": _plain(dict(weights))} if weights else made


def _plain(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return _module_to_dict(value)
    if isinstance(value, torch.Tensor):
        made = value.detach().cpu()
        return {"dtype": str(made.dtype).removeprefix("torch."), "values": made.tolist()}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    return "..." if value is Ellipsis else value


def _module(fields: _Fields, kind: str) -> nn.Module:
    if kind == "FromEquation":
        raise ValueError(
            f"{fields.where} is the reaction of the equation {fields.data.get('equation')!r}, of which a file has the "
            "numbers only; interpret a network that networks.cnn makes of the equation instead"
        )
    if kind not in _MAKERS:
        known = [*_DIMENSIONS, "Linear", *_CELLS, *_MAKERS]
        near = difflib.get_close_matches(kind, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{fields.where}: unknown kind {kind!r}; {hint}allowed: {', '.join(dict.fromkeys(known))}")
    given = _Fields(fields.get("arguments"), f"{fields.where}: 'arguments'")
    arguments = {str(key): _value(value, fields.where) for key, value in given.data.items()}
    try:
        made = _MAKERS[kind](**arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{fields.where}: no {kind} of the arguments {sorted(arguments)}: {error}") from error
    if "weights" in fields.data:
        weights = _Fields(fields.get("weights"), f"{fields.where}: 'weights'").data
        tensors = {key: _tensor(value, f"{fields.where}: weight {key!r}") for key, value in weights.items()}
        for tensor in tensors.values():
            made.to(tensor.dtype)
        try:
            made.load_state_dict(tensors)
        except RuntimeError as error:
            told = " ".join(str(error).split())
            raise ValueError(f"{fields.where}: 'weights' are none of a {kind}: {told}") from error
    return made.eval()


def _value(value: Any, where: str) -> Any:
    """Return an argument of a layer; sequences as tuples."""
    if isinstance(value, Mapping):
        if "values" in value:
            return _tensor(value, where)
        if "slice" in value:
            return slice(*_value(value["slice"], where))
        fields = _Fields(value, where)
        return _module(fields, fields.text("kind"))
    if isinstance(value, list | tuple):
        return tuple(_value(entry, where) for entry in value)
    return Ellipsis if value == "..." else value


def _tensor(data: Any, where: str) -> torch.Tensor:
    fields = _Fields(data, where)
    dtype, values = _DTYPES[fields.one_of("dtype", tuple(_DTYPES))], fields.get("values")
    try:
        return torch.tensor(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: 'values' are no numbers in nested lists of one shape") from error
