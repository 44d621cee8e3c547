"""States as pictures and films: curves over x in 1D, maps in 2D, maps of the middle slice in 3D.

Of a real state each component is shown; of a complex one the density |u|^2 and the real part. Scales are the same at
all times.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npde_fem.discretize import FD
from npde_fem.discretize.grid import GridFunction
from npde_fem.figures import save_figure

import numpy as np
import numpy.typing as npt
import scipy.spatial
from dolfinx import fem

__all__ = ["FILMS", "can_film", "draw", "film", "gather_grid", "gather_mesh", "label_few", "save_figure"]

FILMS = {".gif": "pillow", ".mp4": "ffmpeg"}
"""Suffixes of films, and the matplotlib writer that makes them."""

_ABOVE: dict[str, Any] = {
    "frameon": False,
    "ncols": 3,
    "fontsize": 8,
    "loc": "lower right",
    "bbox_to_anchor": (1.0, 1.0),
    "borderaxespad": 0.0,
}

Frame = dict[str, Any]
"""A state as :func:`gather_grid` and :func:`gather_mesh` return it, on rank 0."""


def label_few(axis: Any) -> None:
    """Label 1, 2 and 5 of each decade of a logarithmic matplotlib Axis, whatever its range."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def can_film(suffix: str) -> bool:
    """Whether matplotlib finds what it needs to make a film of this suffix."""
    from matplotlib import animation

    return animation.writers.is_available(FILMS[suffix])


def gather_grid(problem: FD, u: GridFunction) -> Frame | None:
    """Collect on rank 0 what a picture needs: values on the grid, and where it lies (collective)."""
    whole = u.gather()
    inside = GridFunction(problem.layout, problem.domain.inside.astype(float), 1).gather()
    if whole is None or inside is None:
        return None
    shaped = np.where(inside[..., None] > 0, whole.reshape(*problem.layout.points, u.components), np.nan)
    low, h = np.array(problem.grid.lower), np.array(problem.grid.spacing)
    upper = low + h * (np.array(problem.layout.points) - 1)
    return {"grid": shaped, "lower": low, "upper": upper, "h": h, "dim": problem.dim}


def gather_mesh(parts: Sequence[fem.Function]) -> Frame | None:
    """Collect on rank 0 what a picture needs: coordinates, values (n, m), and triangles in 2D (collective).

    ``parts`` is a real function, or real and imaginary part of a complex one.
    """
    space = parts[0].function_space
    mesh, m = space.mesh, space.dofmap.index_map_bs
    dim, x, triangles = mesh.geometry.dim, space.tabulate_dof_coordinates(), np.zeros((0, 3), dtype=int)
    if dim == 2:
        cells = space.dofmap.list[: mesh.topology.index_map(2).size_local]
        triangles = cells[:, _triangles(space.element.interpolation_points)].reshape(-1, 3)
    value = parts[0].x.array if len(parts) == 1 else parts[0].x.array + 1j * parts[1].x.array
    pieces = mesh.comm.gather((x, value.reshape(-1, m), triangles), root=0)
    if pieces is None:
        return None
    starts = np.cumsum([0, *(len(p[0]) for p in pieces)])
    return {
        "x": np.concatenate([p[0] for p in pieces]),
        "values": np.concatenate([p[1] for p in pieces]),
        "triangles": np.concatenate([p[2] + s for p, s in zip(pieces, starts, strict=False)]),
        "dim": dim,
    }


def _triangles(nodes: npt.NDArray) -> npt.NDArray:
    """Triangulate the nodes of a reference cell: indices, (n, 3)."""
    found = scipy.spatial.Delaunay(nodes).simplices
    along, across = nodes[found[:, 1]] - nodes[found[:, 0]], nodes[found[:, 2]] - nodes[found[:, 0]]
    return found[np.abs(np.linalg.det(np.stack([along, across], axis=1))) > 1e-9]  # none between nodes of one side


@dataclass
class _View:
    """A scalar made of a component of a state: its label, what it is, its colours, and its range over all frames."""

    label: str
    component: int
    part: Callable[[npt.NDArray], npt.NDArray]
    colours: str = "viridis"
    low: float = 0.0
    high: float = 0.0

    def take(self, frame: Frame) -> npt.NDArray:
        return self.part(_component(frame, self.component))


def _density(u: npt.NDArray) -> npt.NDArray:
    return np.abs(u) ** 2


def _component(frame: Frame, c: int) -> npt.NDArray:
    return frame["grid"][..., c] if "grid" in frame else frame["values"][:, c]


def _views(frames: list[tuple[float, Frame]]) -> list[_View]:
    """What is drawn as a map of each state, with scales for all of them."""
    values = frames[0][1]["grid" if "grid" in frames[0][1] else "values"]
    m, views = values.shape[-1], []
    for c in range(m):
        name = "u" if m == 1 else f"u[{c}]"
        if np.iscomplexobj(values):
            views += [_View(f"|{name}|$^2$", c, _density), _View(f"Re {name}", c, np.real, "RdBu_r")]
        else:
            views.append(_View(name, c, np.asarray))
    for view in views:
        ranges = [(np.nanmin(v), np.nanmax(v)) for v in (view.take(frame) for _, frame in frames)]
        view.low, view.high = float(min(r[0] for r in ranges)), float(max(r[1] for r in ranges))
        if view.colours == "RdBu_r":
            view.high = max(-view.low, view.high)
            view.low = -view.high
    return views


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _thinned(frames: list[tuple[float, Frame]], most: int) -> list[tuple[float, Frame]]:
    if len(frames) <= most:
        return frames
    return [frames[int(round(k))] for k in np.linspace(0, len(frames) - 1, most)]


def draw(frames: list[tuple[float, Frame]], title: str, path: str | os.PathLike, most: int = 6) -> None:
    """Draw gathered states, at most so many: curves, or a map per time with a row per view; of one alone no time."""
    plt = _pyplot()
    frames = _thinned(frames, most)
    first = frames[0][1]
    if first["dim"] > 1:
        figure = _draw_maps(plt, frames)
    elif np.iscomplexobj(_component(first, 0)):
        figure = _draw_waves(plt, frames)
    else:
        figure = _draw_curves(plt, frames)
    figure.suptitle(title)
    save_figure(figure, path)
    plt.close(figure)


def _draw_maps(plt: Any, frames: list[tuple[float, Frame]]) -> Any:
    views, columns = _views(frames), len(frames)
    rows = len(views)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns + 0.8, 3.0 * rows), squeeze=False, layout="constrained"
    )
    for row, view in zip(axes, views, strict=True):
        for axis, (t, frame) in zip(row, frames, strict=True):
            image = _map(axis, frame, view)
            label = [view.label] * (rows > 1) + [f"t = {t:g}"] * (columns > 1)
            axis.set_title(", ".join(label), fontsize=10)
        figure.colorbar(image, ax=row.tolist(), shrink=0.85)
    return figure


def _draw_curves(plt: Any, frames: list[tuple[float, Frame]]) -> Any:
    """All times of a component in one panel."""
    views = _views(frames)
    figure, axes = plt.subplots(1, len(views), figsize=(5 * len(views), 3.5), squeeze=False)
    for axis, view in zip(axes[0], views, strict=True):
        for k, (t, frame) in enumerate(frames):
            x, order = _along(frame)
            colour = plt.colormaps["viridis"](k / max(1, len(frames) - 1))
            axis.plot(x, view.take(frame)[order], color=colour, label=f"t = {t:g}")
        axis.set(xlabel="x", ylabel=view.label)
        if len(frames) > 1:
            axis.legend(frameon=False)
    return figure


def _draw_waves(plt: Any, frames: list[tuple[float, Frame]]) -> Any:
    """A row a time, with real part, imaginary part and envelope of each component."""
    m = frames[0][1]["grid" if "grid" in frames[0][1] else "values"].shape[-1]
    size = (6 * m, 1.6 * len(frames) + 0.8)
    figure, axes = plt.subplots(len(frames), m, figsize=size, squeeze=False, sharex=True, layout="constrained")
    for c, column in enumerate(axes.T):
        top = _highest(frames, c)
        for axis, (t, frame) in zip(column, frames, strict=True):
            _wave(axis, frame, c, top)
            if len(frames) > 1:
                axis.set_ylabel(f"t = {t:g}", fontsize=9)
        column[0].legend(**_ABOVE)
        column[-1].set_xlabel("x")
    return figure


def _highest(frames: list[tuple[float, Frame]], c: int) -> float:
    return 1.05 * max(float(np.nanmax(np.abs(_component(frame, c)))) for _, frame in frames) or 1.0


def _along(frame: Frame) -> tuple[npt.NDArray, npt.NDArray]:
    """Ascending coordinates in 1D, and the order of the values along them."""
    if "grid" in frame:
        n = frame["grid"].shape[0]
        return np.linspace(frame["lower"][0], frame["upper"][0], n), np.arange(n)
    x = frame["x"][:, 0]
    order = np.argsort(x)
    return x[order], order


Update = Callable[[Frame], None]
"""Shows another frame in a picture that is there."""


def _wave(axis: Any, frame: Frame, c: int, top: float) -> Update:
    x, order = _along(frame)
    parts: tuple[Callable, ...] = (np.real, np.imag, np.abs, lambda u: -np.abs(u))
    styles = (("C0", "Re u"), ("C1", "Im u"), ("0.4", "|u|"), ("0.4", None))
    value = _component(frame, c)[order]
    lines = [
        axis.plot(x, part(value), color=colour, lw=1, label=label)[0]
        for part, (colour, label) in zip(parts, styles, strict=True)
    ]
    axis.set_ylim(-top, top)

    def update(frame: Frame) -> None:
        value = _component(frame, c)[order]
        for line, part in zip(lines, parts, strict=True):
            line.set_ydata(part(value))

    return update


def _map(axis: Any, frame: Frame, view: _View) -> Any:
    axis.set_aspect("equal")
    axis.set_axis_off()
    scale = {"vmin": view.low, "vmax": view.high, "cmap": view.colours}
    values = _flat(frame, view)
    if "grid" in frame:
        half = 0.5 * frame["h"][:2]
        (x0, y0), (x1, y1) = frame["lower"][:2] - half, frame["upper"][:2] + half
        return axis.imshow(values, origin="lower", extent=(x0, x1, y0, y1), **scale)
    x = frame["x"]
    if frame["dim"] == 3:
        near = _near_the_middle(frame)
        return axis.scatter(x[near, 0], x[near, 1], c=values, s=4, **scale)
    return axis.tripcolor(x[:, 0], x[:, 1], frame["triangles"], values, shading="gouraud", **scale)


def _flat(frame: Frame, view: _View) -> npt.NDArray:
    """The values of a map: an image of a grid, or values at nodes; of 3D the middle slice."""
    values = view.take(frame)
    if "grid" in frame:
        return (values[:, :, values.shape[2] // 2] if values.ndim == 3 else values).T
    return values[_near_the_middle(frame)] if frame["dim"] == 3 else values


def _near_the_middle(frame: Frame) -> npt.NDArray[np.bool_]:
    z = frame["x"][:, 2]
    return np.abs(z - 0.5 * (z.min() + z.max())) <= 0.05 * np.ptp(z)


def film(
    frames: list[tuple[float, Frame]], title: str, path: str | os.PathLike, most: int = 100, fps: int = 12
) -> None:
    """Make a film of gathered states, at most so many, with one scale and the time above; .gif or .mp4."""
    from matplotlib import animation

    plt = _pyplot()
    frames = _thinned(frames, most)
    first = frames[0][1]
    m = first["grid" if "grid" in first else "values"].shape[-1]
    updates: list[Update]
    if first["dim"] > 1:
        views = _views(frames)
        size = (4.2 * len(views), 3.9)
        figure, axes = plt.subplots(1, len(views), figsize=size, squeeze=False, layout="constrained")
        updates = [_shown(figure, axis, first, view) for axis, view in zip(axes[0], views, strict=True)]
    else:
        figure, axes = plt.subplots(1, m, figsize=(6 * m, 3.2), squeeze=False, layout="constrained")
        updates = [_moving_curve(axis, frames, c) for c, axis in enumerate(axes[0])]
    figure.suptitle(title)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not for each frame
    writer = animation.writers[FILMS[Path(path).suffix]](fps=fps)
    with writer.saving(figure, str(path), dpi=80):
        for t, frame in frames:
            for update in updates:
                update(frame)
            figure.suptitle(f"{title}, t = {t:.4g}")
            writer.grab_frame()
    plt.close(figure)


def _shown(figure: Any, axis: Any, frame: Frame, view: _View) -> Update:
    image = _map(axis, frame, view)
    axis.set_title(view.label, fontsize=10)
    figure.colorbar(image, ax=axis, shrink=0.85)
    return lambda frame: image.set_array(_flat(frame, view))


def _moving_curve(axis: Any, frames: list[tuple[float, Frame]], c: int) -> Update:
    first = frames[0][1]
    axis.set_xlabel("x")
    if np.iscomplexobj(_component(first, c)):
        update = _wave(axis, first, c, _highest(frames, c))
        axis.legend(**_ABOVE)
        return update
    view, (x, order) = _views(frames)[c], _along(first)
    (line,) = axis.plot(x, view.take(first)[order])
    margin = 0.05 * (view.high - view.low) or 1.0
    axis.set(ylim=(view.low - margin, view.high + margin), ylabel=view.label)

    def show(frame: Frame) -> None:
        line.set_ydata(view.take(frame)[order])

    return show
