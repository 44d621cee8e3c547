"""Drawings: two runs in one anatomy; images of a tumour and what was learnt from them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from npde_fem.brain.learn import Fit
from npde_fem.brain.measure import T1GD, T2, Difference, Growth, Sampler
from npde_fem.brain.scans import Scans, Tumour
from npde_fem.datasets import Brain
from npde_fem.discretize import FEM
from npde_fem.output import save_figure
from npde_fem.parallel import alike

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

__all__ = ["figure", "figure_of_fits"]

Array = npt.NDArray[np.float64]


def _slice(tissue: Brain, height: float | None) -> tuple[tuple[Any, ...], float]:
    """Index of the axial slice to draw, and its z in mm."""
    if tissue.slice_mm is not None:
        return (slice(None), slice(None)), tissue.slice_mm
    z = tissue.axes[2]
    k = int(np.argmin(np.abs(z - (24.0 if height is None else height))))
    return (slice(None), slice(None), k), float(z[k])


def _triangles(problem: FEM) -> Array | None:
    """Triangles of a 2D mesh on rank 0, shape (n, 3, 2); None elsewhere."""
    mesh = problem.mesh
    owned = mesh.topology.index_map(2).size_local
    parts = problem.comm.gather(mesh.geometry.x[mesh.geometry.dofmaps[0][:owned], :2], root=0)
    return None if parts is None else np.concatenate(parts)


def figure(
    path: str | os.PathLike[str],
    tissue: Brain,
    fd: Growth,
    fem: Growth,
    days: Sequence[float],
    differences: Sequence[Difference] = (),
    height: float | None = None,
) -> None:
    """Draw two runs in one anatomy (collective; rank 0 draws, and the file appears whole or not at all).

    Above: the T1-weighted image with the contours ``u = T2`` and ``u = T1GD`` of both solutions at several times.
    Below: the diffusivity, in 2D on some of the voxels and some of the mesh; the size of the tumour against time; the
    difference FD - FEM against resolution.

    Parameters
    ----------
    path
        File to write; its suffix tells the format.
    tissue
        The anatomy.
    fd, fem
        The runs, with equal times.
    days
        Which of the observed times to draw contours of, one to five.
    differences
        From :func:`compare_resolutions`; without any, that panel is left out.
    height
        z in mm of the slice of a volume to draw, 24 by default.

    Raises
    ------
    ValueError
        If a time was not observed.
    """
    missing = [day for day in days if day not in fd.times or day not in fem.times]
    if missing or not 1 <= len(days) <= 5:
        raise ValueError(f"days must be one to five of the observed times {list(fd.times)}, not {list(days)}")
    problem = fem.problem
    assert isinstance(problem, FEM)
    index, z = _slice(tissue, height)
    inside = tissue.mask[index]
    points = tissue.lower[:2] + tissue.spacing[:2] * np.argwhere(inside)
    if tissue.dim == 3:
        points = np.column_stack([points, np.full(len(points), z)])
    sampler = Sampler(problem, points)
    frames = []
    for day in days:
        whole = fd.problem.function(fd.state(day)).gather()
        by_fem = np.full(inside.shape, np.nan)
        by_fem[inside] = sampler(fem.state(day))
        if whole is not None:
            frames.append((day, np.where(inside, whole[index], np.nan), by_fem))
    triangles = _triangles(problem) if tissue.dim == 2 else None
    with alike(problem.comm):
        if problem.comm.rank == 0:
            _draw(path, tissue, index, z, fd, fem, frames, triangles, differences)


_COLOURS = {T1GD: "#e4572e", T2: "#f2c14e"}


def _draw(
    path: str | os.PathLike[str],
    tissue: Brain,
    index: tuple[Any, ...],
    z: float,
    fd: Growth,
    fem: Growth,
    frames: list[tuple[float, Array, Array]],
    triangles: Array | None,
    differences: Sequence[Difference],
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D

    x, y = tissue.axes[:2]
    half = tissue.spacing[0] / 2
    extent = (x[0] - half, x[-1] + half, y[0] - half, y[-1] + half)
    whole = plt.figure(figsize=(3.3 * max(4, len(frames)), 9.2), layout="constrained")
    above, below = whole.subfigures(2, 1, height_ratios=(1.15, 1), squeeze=False)[:, 0]

    names = {T1GD: "T1Gd", T2: "T2"}
    panels = above.subplots(1, len(frames), squeeze=False)[0]
    for axis, (day, by_fd, by_fem) in zip(panels, frames, strict=True):
        axis.imshow(tissue.template[index].T, origin="lower", extent=extent, cmap="gray", vmin=0, vmax=1.05)
        for level, colour in _COLOURS.items():
            for values, style in ((by_fd, {"colors": colour, "linewidths": 3.5}), (by_fem, {"colors": "k"})):
                if np.nanmax(values) > level:
                    dashes = {} if values is by_fd else {"linewidths": 1.1, "linestyles": "dashed"}
                    axis.contour(x, y, values.T, levels=[level], **style, **dashes)
        axis.set_title(f"day {day:g}", fontsize=11)
        axis.set_axis_off()
    above.legend(
        handles=[
            *(Line2D([], [], color=c, lw=3.5, label=f"FD, u = {k:g} ({names[k]})") for k, c in _COLOURS.items()),
            Line2D([], [], color="k", lw=1.1, ls="--", label="FEM, the same levels"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )

    axes = below.subplots(1, 3 if differences else 2, squeeze=False)[0]
    diffusivity = sum(
        float(fd.problem.parameters[number].value) * values
        for number, values in (("D_white", tissue.white), ("D_grey", tissue.grey))
    )
    shown = np.where(tissue.mask, diffusivity, np.nan)[index]
    limits = {"cmap": "cividis", "vmin": 0, "vmax": float(np.nanmax(shown))}
    if triangles is None:
        image = axes[0].imshow(shown.T, origin="lower", extent=extent, **limits)
        axes[0].set_title("diffusivity", fontsize=11)
    else:
        middle, right, height = extent[1] / 2, extent[1], (y[0] + y[-1]) / 2
        shown[x > middle] = np.nan
        image = axes[0].pcolormesh(x, y, shown.T, edgecolors=(1, 1, 1, 0.4), linewidth=0.1, **limits)
        some = triangles[triangles[:, :, 0].max(axis=1) > middle]
        mesh = PolyCollection(list(some), edgecolor="w", linewidth=0.3)
        mesh.set(array=tissue.interpolate(diffusivity)(some.mean(axis=1).T), cmap=image.cmap, norm=image.norm)
        axes[0].add_collection(mesh)
        axes[0].set(xlim=(0, right), ylim=(height - right / 2, height + right / 2), aspect="equal")
        axes[0].set_title("diffusivity on voxels (left) and mesh (right)", fontsize=11)
    axes[0].set(xlabel="x, mm", ylabel="y, mm")
    below.colorbar(image, ax=axes[0], shrink=0.8, label="D, mm$^2$/day")

    unit, scale = ("area, cm$^2$", 100.0) if tissue.dim == 2 else ("volume, cm$^3$", 1000.0)
    for level, colour in _COLOURS.items():
        label = f"FD, u > {level:g} ({names[level]})"
        axes[1].plot(fd.times, fd.sizes[level] / scale, color=colour, lw=3.5, label=label)
        axes[1].plot(fem.times, fem.sizes[level] / scale, "k--", lw=1.1, label="FEM" if level == T2 else None)
    axes[1].set(xlabel="time, days", ylabel=unit, xlim=(fd.times[0], fd.times[-1]), ylim=(0, None))
    axes[1].set_title("size of the tumour", fontsize=11)
    axes[1].legend(frameon=False)

    if differences:
        h = np.array([d.spacing for d in differences])
        relative = np.array([d.relative for d in differences])
        axes[2].loglog(h, relative, "o-", color="#33658a", label="u, L2")
        for level, colour in _COLOURS.items():
            in_size = [d.in_size(level) for d in differences]
            axes[2].loglog(h, in_size, "s-", color=colour, label=f"size, {names[level]}")
        axes[2].loglog(h, 0.5 * relative[-1] * (h / h[-1]) ** 2, color="0.6", ls=":", label="order 2")
        axes[2].set_xticks(h, [f"{v:g}" for v in h])
        axes[2].minorticks_off()
        axes[2].set(xlabel="voxel and element size, mm", ylabel="relative difference")
        axes[2].set_title(f"FD - FEM on day {fd.times[-1]:g}", fontsize=11)
        axes[2].legend(frameon=False)
    for axis in axes[1:]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, which="major", color="0.9")
    whole.suptitle(f"Growth of a glioma in the ICBM152 anatomy, axial slice z = {z:g} mm", fontsize=13)
    save_figure(whole, path)
    plt.close(whole)


def figure_of_fits(
    path: str | os.PathLike[str], tissue: Brain, scans: Scans, fits: Sequence[Fit], comm: MPI.Comm = MPI.COMM_WORLD
) -> None:
    """Draw images of a tumour, the fitted densities, the residuals, and the numbers learnt (collective; rank 0 draws).

    Parameters
    ----------
    path
        File to write; its suffix tells the format.
    tissue
        The anatomy, for its T1-weighted image.
    scans
        The images; of volumes, the slice nearest to the first fit's seed is drawn.
    fits
        Tumours learnt from them, one at least.
    comm
        Communicator.

    Raises
    ------
    ValueError
        If there is no fit.
    """
    if not fits:
        raise ValueError("fits: none given; at least one is needed")
    with alike(comm):
        if comm.rank == 0:
            _draw_fits(path, tissue, scans, fits)


_NUMBERS = ("seed x, mm", "seed y, mm", "seed z, mm")
_SPREAD_AND_GROWTH = ("D white, mm$^2$/day", "r, 1/day")


def _draw_fits(path: str | os.PathLike[str], tissue: Brain, scans: Scans, fits: Sequence[Fit]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    # Images have voxels of their own, so each of the two is sliced on its own grid.
    index, z = _slice(tissue, fits[0].tumour.seed[2] if tissue.dim == 3 else None)
    cut: tuple[Any, ...] = ()
    if tissue.dim == 3:
        k = int(np.clip(np.rint((z - scans.lower[2]) / scans.spacing[2]), 0, scans.shape[2] - 1))
        cut = (slice(None), slice(None), k)

    def extent(lower: Array, spacing: Array, shape: Sequence[int]) -> tuple[float, ...]:
        first, last = lower[:2] - spacing[:2] / 2, lower[:2] + spacing[:2] * (np.array(shape[:2]) - 0.5)
        return first[0], last[0], first[1], last[1]

    behind: dict[str, Any] = {
        "origin": "lower",
        "extent": extent(tissue.lower, tissue.spacing, tissue.mask.shape),
        "cmap": "gray",
    }
    place = {"origin": "lower", "extent": extent(scans.lower, scans.spacing, scans.shape)}
    columns = 1 + 2 * len(fits)
    whole = plt.figure(figsize=(3.0 * columns, 3.4 * len(scans.times) + 3.2), layout="constrained")
    above, below = whole.subfigures(2, 1, height_ratios=(3.4 * len(scans.times), 3.2), squeeze=False)[:, 0]
    axes = above.subplots(len(scans.times), columns, squeeze=False)
    for row, day, data in zip(range(len(scans.times)), scans.times, scans.density, strict=True):
        panels: list[tuple[str, Array, Tumour | None]] = [(f"image, day {day:g}", data, scans.hidden)]
        residuals: list[tuple[str, Array]] = []
        for fit in fits:
            panels.append((fit.method.upper(), fit.density[row], fit.tumour))
            residuals.append((f"({panels[0][0]} - {panels[-1][0]}) / noise", (data - fit.density[row]) / scans.noise))
        for axis, (title, values, tumour) in zip(axes[row], panels, strict=False):
            axis.imshow(tissue.template[index].T, vmin=0, vmax=1.05, **behind)
            image = scans.image(values)[cut].T
            image[image < 2 * scans.noise] = np.nan
            density = axis.imshow(image, cmap="inferno", vmin=0, vmax=1, **place)
            if tumour is not None:
                axis.plot(*tumour.seed[:2], "c+", markersize=8)
            axis.set_title(title, fontsize=10)
        for axis, (title, values) in zip(axes[row, len(panels) :], residuals, strict=True):
            residual = axis.imshow(scans.image(values)[cut].T, cmap="RdBu_r", vmin=-4, vmax=4, **place)
            axis.set_title(title, fontsize=10)
        for axis in axes[row]:
            axis.set_axis_off()
            axis.set(xlim=behind["extent"][:2], ylim=behind["extent"][2:])
    above.colorbar(density, ax=axes[:, :1].ravel().tolist(), shrink=0.7, location="left", label="density u")
    above.colorbar(residual, ax=axes[:, -1:].ravel().tolist(), shrink=0.7, label="(image - fit) / noise")
    _draw_numbers(below, scans, fits)
    whole.suptitle("A tumour learnt from images; crosses: where it began (hidden, and as found)", fontsize=13)
    save_figure(whole, path)
    plt.close(whole)


def _draw_numbers(figure: Any, scans: Scans, fits: Sequence[Fit]) -> None:
    """Draw a table of the numbers learnt, and beside it how far they are from the hidden ones."""
    hidden = scans.hidden
    names = (*_NUMBERS[: len(fits[0].tumour.seed)], *_SPREAD_AND_GROWTH)
    rows = [[] if hidden is None else [f"{v:.4g}" for v in hidden.numbers]]
    for fit in fits:
        rows.append([f"{v:.4g} ± {e:.2g}" for v, e in zip(fit.tumour.numbers, fit.errors.numbers, strict=True)])
    heads = ["hidden", *(f.method.upper() for f in fits)]
    if hidden is None:
        rows, heads = rows[1:], heads[1:]
    panels = figure.subplots(1, 1 if hidden is None else 2, squeeze=False)[0]
    panels[0].set_axis_off()
    table = panels[0].table(list(zip(*rows, strict=True)), rowLabels=names, colLabels=heads, loc="center right")
    table.set_fontsize(10)
    table.scale(0.78, 1.5)
    if hidden is None:
        return
    axis, places = panels[1], np.arange(len(names))
    axis.axvspan(-2, 2, color="0.93")
    axis.axvline(0, color="0.5", lw=1)
    for k, fit in enumerate(fits):
        shift = 0.2 * (k - (len(fits) - 1) / 2)
        deviations = fit.deviations()
        axis.errorbar(deviations, places + shift, xerr=1.0, fmt="o", capsize=3, label=fit.method.upper())
    axis.set(yticks=places, yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axis.set_xlabel("(found - hidden) / standard error")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
