"""Readings of layers, drawn.

A convolution is a panel with a cell for each pair of channels. The background's colour is the mass. The ellipse is the
diffusion tensor, its semi-axes in proportion to the roots of the eigenvalues' sizes: green where it diffuses, orange
where it sharpens, grey with axes of both colours where it does the one along and the other across. The arrow is the
drift, the bar below the size of the rest relative to the step. A matrix is drawn as maps, or curves, of the same over
its neurons. Axis 0 points down and axis 1 to the right, as the rows and columns of an image; where there is but one
axis it points to the right.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from npde_fem.figures import save_figure
from npde_fem.networks.reading.readings import Convolution, Nonlocal, Reading, Recurrent, by

import numpy as np
import numpy.typing as npt

__all__ = ["draw_layers"]

Array = npt.NDArray[np.float64]

MOST_CHANNELS = 8
"""Channels in and out of a convolution that are drawn: those of the largest steps."""
MOST_LAYERS = 12

_SPREADS, _SHARPENS, _MIXED, _ARROW, _REST = "#2a7f62", "#e4572e", "0.55", "#1d3557", "0.25"
_CELL = 0.78
"""Inches."""
_WIDTH = 14.2
_TOP = 0.8
_MASS = "RdBu_r"


class _Block:
    """The part of the figure that shows a layer: what it takes, in inches, and how to draw it at a place."""

    def __init__(self, layer: Reading) -> None:
        self.layer = layer
        self.width, self.height = self._size()

    def _size(self) -> tuple[float, float]:
        raise NotImplementedError

    def draw(self, figure: Any, place: Any) -> None:
        """Draw it; ``place(x, y, w, h)`` makes a matplotlib Axes, in inches from the block's lower left corner."""
        raise NotImplementedError

    def title(self) -> str:
        then = "" if self.layer.activation == "none" else f", then {self.layer.activation}"
        name = "" if self.layer.name == self.layer.kind else f"{self.layer.name}: "
        return f"{name}{self.layer.heading()}{then}"


def draw_layers(layers: Sequence[Reading], path: str | os.PathLike[str]) -> None:
    """Draw readings to a file, which appears whole or not at all; its suffix tells the format.

    At most so many layers as :data:`MOST_LAYERS`, the first ones, and so many channels as :data:`MOST_CHANNELS`.

    Parameters
    ----------
    layers
        What to draw, one at least.
    path
        File to write.

    Raises
    ------
    ValueError
        If there are no layers.
    """
    if not layers:
        raise ValueError("layers: none given; at least one is needed")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    blocks: list[_Block] = []
    for layer in layers[:MOST_LAYERS]:
        blocks.append(_Pairs(layer) if isinstance(layer, Convolution) else _neurons(layer))
    lines = _lines(blocks)
    width = max(sum(b.width for b in line) for line in lines)
    height = sum(max(b.height for b in line) for line in lines) + _TOP
    figure = plt.figure(figsize=(width, height))

    def placed(left: float, bottom: float) -> Any:
        return lambda x, y, w, h: figure.add_axes(((left + x) / width, (bottom + y) / height, w / width, h / height))

    top = height - _TOP
    for line in lines:
        tall, left = max(b.height for b in line), 0.0
        for block in line:
            block.draw(figure, placed(left, top - block.height))
            left += block.width
        top -= tall
    left_out = f" (the first {MOST_LAYERS} of {len(layers)} layers)" if len(layers) > MOST_LAYERS else ""
    figure.text(0.1 / width, 1 - 0.12 / height, _HEADING + left_out, fontsize=12, va="top")
    pairs = any(isinstance(layer, Convolution) for layer in layers)
    if pairs:
        _legend(figure, width, height)
    if any(layer.dim > 1 for layer in layers):
        place = (0.1 / width, 1 - (0.62 if pairs else 0.4) / height)
        figure.text(*place, r"axis 0 $\downarrow$, axis 1 $\rightarrow$", fontsize=9, va="top", color="0.35")
    save_figure(figure, path)
    plt.close(figure)


_HEADING = r"Layers as steps of  $u_t = \mathrm{div}(D\,\nabla u - c\,u) + m\,u + s + \mathrm{rest}$"


def _lines(blocks: list[_Block]) -> list[list[_Block]]:
    """Blocks side by side as long as they fit."""
    lines: list[list[_Block]] = []
    for block in blocks:
        if lines and sum(b.width for b in lines[-1]) + block.width <= _WIDTH:
            lines[-1].append(block)
        else:
            lines.append([block])
    return lines


def _legend(figure: Any, width: float, height: float) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    arrow = Line2D([], [], color=_ARROW, marker=r"$\rightarrow$", ls="", ms=12, label="drift c")
    handles = [
        Patch(fc=_SPREADS, alpha=0.75, label="D > 0, diffuses"),
        Patch(fc=_SHARPENS, alpha=0.75, label="D < 0, sharpens"),
        Patch(fc=_MIXED, alpha=0.5, label="D of both signs"),
        arrow,
        Line2D([], [], color=_REST, lw=3, label="rest / step (full: 1 or more)"),
    ]
    place = (0.05 / width, 1 - 0.36 / height)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=place, ncols=5, frameon=False, fontsize=9, borderaxespad=0
    )


class _Pairs(_Block):
    """A convolution's pairs of channels, outputs down and inputs to the right."""

    layer: Convolution

    def _size(self) -> tuple[float, float]:
        step = np.abs(self.layer.step.reshape(*self.layer.mass.shape, -1)).sum(2)
        self.out, self.into = _largest(step.sum(1)), _largest(step.sum(0))
        self.panel = (_CELL * len(self.into), _CELL * len(self.out))
        return max(self.panel[0] + 1.75, 4.4), self.panel[1] + 1.3

    def draw(self, figure: Any, place: Any) -> None:
        layer, rows, columns = self.layer, self.out, self.into
        axis = place(0.6, 0.5, *self.panel)
        pick = np.ix_(rows, columns)
        mass, drift, tensors = layer.mass[pick], layer.drift[pick], layer.diffusion[pick]
        top = float(np.abs(mass).max()) or 1.0
        image = axis.imshow(mass, cmap=_MASS, vmin=-1.6 * top, vmax=1.6 * top, aspect="auto")
        largest = float(np.abs(np.linalg.eigvalsh(layer.diffusion)).max()) or 1.0
        fastest = float(np.linalg.norm(layer.drift, axis=-1).max()) or 1.0
        shares = np.minimum(1.0, layer.remainders[pick])
        for i, j in np.ndindex(mass.shape):
            _ellipse(axis, j, i - 0.05, tensors[i, j] / largest)
            _drift(axis, j, i - 0.05, drift[i, j] / fastest)
            axis.plot([j - 0.42, j - 0.42 + 0.84 * shares[i, j]], [i + 0.43] * 2, color=_REST, lw=2.2)
        axis.set(xticks=range(len(columns)), yticks=range(len(rows)), xticklabels=columns, yticklabels=rows)
        axis.set_xticks(np.arange(len(columns) - 1) + 0.5, minor=True)
        axis.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
        axis.grid(which="minor", color="w", lw=2)
        axis.tick_params(which="both", length=0, labelsize=8)
        axis.spines[:].set_visible(False)
        axis.set_xlabel("channel in", fontsize=9)
        axis.set_ylabel("channel out", fontsize=9)
        bar = figure.colorbar(image, cax=place(0.6 + self.panel[0] + 0.12, 0.5, 0.1, self.panel[1]))
        bar.ax.set_ylim(-top, top)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("mass m", fontsize=9)
        notes = [f"largest D {largest:.3g}, c {fastest:.3g}; rest {100 * layer.remainder:.3g} %"]
        notes += [f"h = {by(layer.spacing)}, dt = {layer.dt:.4g}"]
        if layer.dim == 3:
            notes.append("axes 0 and 1 shown")
        c_in, c_out = layer.channels
        if (len(columns), len(rows)) != (c_in, c_out):
            notes.append(f"strongest {len(columns)} of {c_in} in, {len(rows)} of {c_out} out")
        _write(figure, place, self, "; ".join(notes), self.panel[1] + 0.5)


def _write(figure: Any, place: Any, block: _Block, note: str, above: float) -> None:
    """Write a block's title, and a note below it, above its panels."""
    axis = place(0.6, above, 1.0, 0.5)
    axis.set_axis_off()
    axis.text(0, 0.56, block.title(), fontsize=9.5, va="bottom")
    axis.text(0, 0.2, note, fontsize=8, va="bottom", color="0.35")


def _largest(sizes: Array) -> list[int]:
    """Numbers of the largest entries, at most so many as are drawn, in order."""
    return sorted(int(k) for k in np.argsort(-sizes, kind="stable")[:MOST_CHANNELS])


def _turned(vectors: Array) -> Array:
    """Vectors of space in the picture: axis 1 to the right and axis 0 down, where y points down too."""
    return np.stack([vectors[1], vectors[0]]) if len(vectors) > 1 else np.stack([vectors[0], 0 * vectors[0]])


def _ellipse(axis: Any, x: float, y: float, tensor: Array) -> None:
    """Draw a tensor of size up to 1 as an ellipse."""
    from matplotlib.patches import Ellipse

    values, vectors = np.linalg.eigh(tensor[:2, :2])
    if np.abs(values).max() < 1e-4:
        return
    semi = 0.36 * np.sqrt(np.abs(values))
    if len(values) == 1:
        # One dimension has no width of its own.
        values, semi, vectors = np.array([values[0]] * 2), np.array([semi[0], 0.09]), np.eye(2)
        ends = vectors
    else:
        ends = _turned(vectors)
    colours = [_SPREADS if v >= 0 else _SHARPENS for v in values]
    mixed = values[0] < -1e-4 and values[-1] > 1e-4
    colour = _MIXED if mixed else colours[int(np.argmax(np.abs(values)))]
    angle = np.degrees(np.arctan2(ends[1, 0], ends[0, 0]))
    drawn = np.maximum(semi, 0.02)
    axis.add_patch(Ellipse((x, y), 2 * drawn[0], 2 * drawn[1], angle=angle, fc=colour, ec="w", lw=0.6, alpha=0.75))
    for k in range(2) if mixed else ():
        dx, dy = semi[k] * ends[:, k]
        axis.plot([x - dx, x + dx], [y - dy, y + dy], color=colours[k], lw=1.6, solid_capstyle="round")


def _drift(axis: Any, x: float, y: float, vector: Array) -> None:
    dx, dy = 0.42 * _turned(vector[:2])
    if np.hypot(dx, dy) < 0.02:
        return
    head = "-|>,head_length=0.28,head_width=0.14"
    style = {"arrowstyle": head, "color": _ARROW, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", (x + dx, y + dy), (x, y), arrowprops=style)


def _neurons(layer: Reading) -> _Block:
    assert isinstance(layer, Nonlocal)
    return _Maps(layer) if layer.dim == 2 else _Curves(layer)


class _Curves(_Block):
    """A matrix, and the moments of its rows over the neurons in a line (of a 3D lattice: in their order)."""

    layer: Nonlocal

    def _size(self) -> tuple[float, float]:
        return 13.2, 3.4

    def draw(self, figure: Any, place: Any) -> None:
        layer = self.layer
        step = layer.step
        axis = place(0.6, 0.5, 2.0, 2.0)
        top = float(np.abs(step).max()) or 1.0
        image = axis.imshow(step, cmap=_MASS, vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
        axis.set_xlabel("neuron in", fontsize=9)
        axis.set_ylabel("neuron out", fontsize=9)
        bar = figure.colorbar(image, cax=place(2.68, 0.5, 0.1, 2.0))
        bar.ax.tick_params(labelsize=7)
        axis.set_title("L = (W - E) / dt", fontsize=9)
        _write(figure, place, self, _told(layer), 2.72)
        panels = _profiles(layer)
        if isinstance(layer, Recurrent):
            panels.append(("sources U / dt", layer.sources))
        room = 9.6 / len(panels)
        x = np.arange(len(layer.mass)) * layer.spacing[0] if layer.dim == 1 else np.arange(len(layer.mass))
        for k, (label, values) in enumerate(panels):
            panel = place(3.6 + k * room, 0.5, room - 0.55, 2.0)
            columns = values.reshape(len(x), -1)[:, :MOST_CHANNELS]
            colours = [_ARROW, "#e4572e", _SPREADS, *[f"C{c}" for c in range(MOST_CHANNELS)]]
            for column, colour in zip(columns.T, colours, strict=False):
                panel.plot(x, column, color=colour, lw=1.2, marker="o" if len(x) <= 40 else "", ms=2.5)
            panel.axhline(0.0, color="0.8", lw=0.8, zorder=0)
            panel.set_title(label, fontsize=9)
            panel.set_xlabel("x" if layer.dim == 1 else "neuron", fontsize=9)
            panel.spines[["top", "right"]].set_visible(False)
            panel.tick_params(labelsize=7)
        axis.tick_params(labelsize=7)


class _Maps(_Block):
    """The moments of a matrix's rows over neurons that are points of the plane."""

    layer: Nonlocal

    def _size(self) -> tuple[float, float]:
        return 13.2, 3.3

    def draw(self, figure: Any, place: Any) -> None:
        layer, n_out = self.layer, self.layer.channels[1]
        shape, size = layer.shape, 1.9

        def spread(values: Array) -> Array:
            whole = np.full((int(np.prod(shape)), *values.shape[1:]), np.nan)
            whole[:n_out] = values
            return whole.reshape(*shape, *values.shape[1:])

        trace = np.trace(layer.diffusion, axis1=1, axis2=2) / 2
        speed = np.linalg.norm(layer.drift, axis=1)
        panels: list[tuple[str, Array, str]] = [("mass m", layer.mass, _MASS), ("drift c", speed, "Purples")]
        panels += [
            ("diffusion, trace D / 2", trace, "PRGn"),
            ("source s", layer.source, _MASS),
            ("rest / step", layer.remainders, "Greys"),
        ]
        for k, (label, values, colours) in enumerate(panels):
            axis = place(0.6 + 2.5 * k, 0.45, size, size)
            top = float(np.abs(values).max()) or 1.0
            low = -top if colours in (_MASS, "PRGn") else 0.0
            image = axis.imshow(spread(values), cmap=colours, vmin=low, vmax=top)
            bar = figure.colorbar(image, cax=place(0.6 + 2.5 * k + size + 0.06, 0.45, 0.08, size))
            bar.ax.tick_params(labelsize=7)
            axis.set(xticks=[], yticks=[])
            axis.set_title(label, fontsize=9)
            if label.startswith("drift"):
                arrows, here = spread(layer.drift), np.indices(shape)
                scale = 0.75 / (np.nanmax(speed) or 1.0)
                arrows = scale * arrows
                style = {"angles": "xy", "scale_units": "xy", "scale": 1, "pivot": "mid", "width": 0.011}
                axis.quiver(here[1], here[0], arrows[..., 1], arrows[..., 0], color=_ARROW, **style)
            if label.startswith("diffusion"):
                largest = float(np.abs(layer.eigenvalues).max()) or 1.0
                for i in range(n_out):
                    row, column = np.unravel_index(i, shape)
                    _ellipse(axis, float(column), float(row), layer.diffusion[i] / largest)
        _write(figure, place, self, _told(layer), 0.45 + size + 0.22)


def _told(layer: Nonlocal) -> str:
    return f"h = {by(layer.spacing)}, dt = {layer.dt:.4g}; rest {100 * layer.remainder:.3g} %"


def _profiles(layer: Nonlocal) -> list[tuple[str, Array]]:
    made = [("mass m", layer.mass), ("drift c", layer.drift)]
    return [*made, ("diffusion D", layer.eigenvalues), ("source s", layer.source)]
