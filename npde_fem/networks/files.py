"""Networks in files: what ``torch.save`` wrote, or JSON, read without running code that is in it."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from npde_fem.networks.reactions import FixedStep
from npde_fem.networks.reading.interpret import Interpretation

import torch
from torch import nn

__all__ = ["load_interpretation", "load_network", "save_interpretation", "save_network"]

# The layers of torch itself: a file may name them, and no code besides.
_STOCK: list[Any] = [kind for kind in vars(nn).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
_CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def load_network(path: str | os.PathLike[str], boundary: str | None = None) -> nn.Module:
    """Read a network from a file of ``torch.save``: a module of torch's own layers, or a ``state_dict``.

    A ``state_dict`` says what the weights are, not what runs between them: each weight of 3 to 5 axes becomes a
    convolution that keeps the size, each of 2 axes a Linear, each pair ``weight_ih``, ``weight_hh`` an RNN, in the
    order of the file, without activations.

    Parameters
    ----------
    path
        The file.
    boundary
        Padding of the convolutions of a ``state_dict``, as torch names it; zeros by default. A module has its own.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no file of torch, names code besides torch's layers, or has no weights that are known; or if a boundary
        is given for a module.
    """
    path = _found(path)
    try:
        with torch.serialization.safe_globals(_STOCK):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is no file of torch.save") from error
        with torch.serialization.safe_globals(_STOCK):
            foreign = ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        raise ValueError(
            f"{path} needs code that is not torch's own to be read: {foreign}; a module of stock layers or a "
            "state_dict allowed"
        ) from error
    except (RuntimeError, EOFError, LookupError, ValueError) as error:  # what torch's reader makes of other files
        raise ValueError(f"{path} is no file of torch.save: {type(error).__name__}: {error}") from error
    if isinstance(found, nn.Module):
        if boundary is not None:
            raise ValueError(
                f"boundary = {boundary!r} given; {path} holds a module, whose layers have their own padding"
            )
        return found.eval()
    if isinstance(found, Mapping) and all(isinstance(value, torch.Tensor) for value in found.values()):
        return _of_weights(path, found, boundary or "zeros")
    raise ValueError(f"{path} holds {type(found).__name__}; a module of stock layers or a state_dict allowed")


def _of_weights(path: Path, weights: Mapping[str, torch.Tensor], boundary: str) -> nn.Module:
    made = nn.Sequential()
    for name, weight in weights.items():
        prefix, _, last = name.rpartition(".")
        bias = weights.get(f"{prefix}.bias" if prefix else "bias")
        layer: nn.Module
        if last == "weight" and weight.ndim in _CONVOLUTIONS:
            n_out, n_in, *size = weight.shape
            padding = tuple(n // 2 for n in size)
            layer = _CONVOLUTIONS[weight.ndim](
                n_in, n_out, tuple(size), padding=padding, padding_mode=boundary, bias=bias is not None
            )
            own = {"weight": weight, "bias": bias}
        elif last == "weight" and weight.ndim == 2:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            own = {"weight": weight, "bias": bias}
        elif last.startswith("weight_hh_l") and last.removeprefix("weight_hh_l").isdigit():
            level = last.removeprefix("weight_hh_l")
            dot = f"{prefix}." if prefix else ""
            biases = [weights.get(f"{dot}bias_{part}_l{level}") for part in ("ih", "hh")]
            entering = weights[f"{dot}weight_ih_l{level}"]
            layer = nn.RNN(entering.shape[1], weight.shape[0], bias=biases[0] is not None)
            own = {"weight_ih_l0": entering, "weight_hh_l0": weight, "bias_ih_l0": biases[0], "bias_hh_l0": biases[1]}
        else:
            continue
        given: dict[str, Any] = {key: value for key, value in own.items() if value is not None}
        layer.to(weight.dtype).load_state_dict(given)
        made.add_module((prefix or f"layer{len(made)}").replace(".", "_") + (f"_{last}" if "_l" in last else ""), layer)
    if not len(made):
        raise ValueError(
            f"{path}: no weights of convolutions, Linear or RNN among {', '.join(weights) or 'no tensors'}"
        )
    return made.eval()


def save_network(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a module of torch's own layers with ``torch.save``, whole or not at all; :func:`load_network` reads it.

    Raises
    ------
    ValueError
        If a layer is none of torch's: it is named.
    OSError
        If the folder cannot be written.
    """
    for name, layer in module.named_modules():
        if type(layer) not in _STOCK:
            what = f"reaction {layer.reaction.name!r}" if isinstance(layer, FixedStep) else type(layer).__name__
            raise ValueError(f"{path}: layer {name!r}, {what}, is none of torch's own, which alone are allowed")
    _write(path, lambda aside: torch.save(module, aside))


def load_interpretation(path: str | os.PathLike[str]) -> Interpretation:
    """Read what :func:`save_interpretation` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no JSON, or a key is missing or has a value that is not allowed.
    """
    path = _found(path)
    try:
        data = json.loads(path.read_text())
    except ValueError as error:  # neither JSON nor text
        raise ValueError(f"{path} is no JSON: {error}") from error
    try:
        return Interpretation.from_dict(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_interpretation(interpretation: Interpretation, path: str | os.PathLike[str]) -> None:
    """Write an interpretation's numbers as JSON, whole or not at all.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    text = json.dumps(interpretation.to_dict(), indent=1) + "\n"
    _write(path, lambda aside: aside.write_text(text))


def _found(path: str | os.PathLike[str]) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return Path(path)


def _write(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    path = Path(path)
    aside = path.with_name(f".{path.name}.part")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
