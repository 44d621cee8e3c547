"""Readings as a table."""

from __future__ import annotations

from collections.abc import Sequence
from math import atan2, degrees
from typing import Any

from npde_fem.networks.reading.readings import Convolution, Nonlocal, Reading, Recurrent, by

import numpy as np

__all__ = ["strongest", "table"]

MOST = 12
"""Pairs of channels that a layer's table shows, and inputs of a recurrent cell."""

_TITLE = "u_t = div(D grad u - c u) + m u + s + rest, a layer being one step"
_LEGEND = (
    "m: mass, s: source (1 / time); c: drift (length / time), along axes 0, 1, ...;\n"
    "D: eigenvalues of the diffusion (length^2 / time), and direction of the first{angle};\n"
    "rest: norm of what is none of these, relative to that of the whole step,\n"
    "above 100 % where moments do not tell much: a layer that is not local"
)
_ANGLE = ", an angle from axis 0 to axis 1"


def strongest(reading: Convolution, most: int) -> list[tuple[int, int]]:
    """Return the pairs (out, in) of channels of the largest steps, at most so many, in order of their numbers."""
    sizes = np.linalg.norm(reading.step.reshape(*reading.mass.shape, -1), axis=2)
    flat = np.sort(np.argsort(-sizes, axis=None, kind="stable")[:most])
    return [(int(k) // sizes.shape[1], int(k) % sizes.shape[1]) for k in flat]


def table(layers: Sequence[Reading]) -> str:
    """Return readings as an aligned table with units: a line for each pair of channels, or mean and spread of neurons.

    Of many pairs the strongest are shown.
    """
    count = f"{len(layers)} layer{'s' * (len(layers) != 1)}"
    angle = _ANGLE if any(layer.dim == 2 for layer in layers) else ""
    blocks = [f"{count}: {_TITLE}\n{_LEGEND.format(angle=angle)}"]
    return "\n\n".join([*blocks, *(_block(layer) for layer in layers)])


def _block(layer: Reading) -> str:
    then = "" if layer.activation == "none" else f", then {layer.activation}"
    share = f"rest {100 * layer.remainder:.3g} % (norm {layer.remainder_norm:.4g})"
    above = [f"{layer.name}: {layer.heading()}{then}", f"h = {by(layer.spacing)}, dt = {layer.dt:.4g}, {share}"]
    axes = range(layer.dim)
    head = ["", "m", *(f"c_{a}" for a in axes), *(f"D_{a + 1}" for a in axes), *["direction"][: layer.dim - 1], "s"]
    if isinstance(layer, Convolution):
        lines, notes = _pairs(layer)
        head.append("rest")
    else:
        assert isinstance(layer, Nonlocal)
        lines, notes = _neurons(layer)
    return "\n".join([*above, *_aligned([head, *lines]), *notes])


def _pairs(layer: Convolution) -> tuple[list[list[str]], list[str]]:
    rows = layer.rows()
    c_in, c_out = layer.channels
    shown = strongest(layer, MOST)
    lines = []
    for i, j in shown:
        row = rows[i * c_in + j]
        numbers = [row["mass"], *row["drift"], *row["eigenvalues"]]
        line = [f"{j} -> {i}", *map(_number, numbers), *_direction(row["direction"], row["eigenvalues"])]
        lines.append([*line, _number(row["source"]), f"{100 * row['remainder']:.3g} %"])
    left = c_in * c_out - len(shown)
    return lines, [f"  and {left} weaker pairs of channels"] * (left > 0)


def _neurons(layer: Nonlocal) -> tuple[list[list[str]], list[str]]:
    row = layer.rows()[0]
    lines = []
    for name, suffix in (("mean", ""), ("spread", "_spread")):
        numbers = [row[f"mass{suffix}"], *row[f"drift{suffix}"], *row[f"eigenvalues{suffix}"]]
        direction = _direction(row["direction"], row["eigenvalues"]) if not suffix else [""] * (layer.dim > 1)
        lines.append([name, *map(_number, numbers), *direction, _number(row[f"source{suffix}"])])
    if not isinstance(layer, Recurrent):
        return lines, []
    inputs = [["input", "strength", *(f"x_{a}" for a in range(layer.dim)), "width"]]
    k = len(row["strengths"])
    for j in range(min(k, MOST)):
        inputs.append([str(j), *map(_number, (row["strengths"][j], *row["centres"][j], row["widths"][j]))])
    more = [f"  and {k - MOST} more inputs"] * (k > MOST)
    return lines, ["  where the inputs enter, as sources:", *_aligned(inputs), *more]


def _direction(vector: Sequence[float], eigenvalues: Sequence[float]) -> list[str]:
    if len(vector) == 1:
        return []
    if max(eigenvalues) - min(eigenvalues) <= 1e-12 * max(map(abs, eigenvalues)):
        return ["any"]
    if len(vector) == 2:
        # A direction and its opposite are one: angles from -90 to 90 degrees.
        angle = (degrees(atan2(vector[1], vector[0])) + 90.0) % 180.0 - 90.0
        return [f"{angle:.1f}°"]
    return [f"({', '.join(f'{v:.2f}' for v in vector)})"]


def _number(value: Any) -> str:
    return f"{0.0 if abs(value) < 1e-14 else value:.4g}"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return ["  " + "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
