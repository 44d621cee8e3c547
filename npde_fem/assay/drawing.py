"""Fits against data, the laws learnt, and estimates against initial density, drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from npde_fem.assay.fit import Fit
from npde_fem.assay.model import CONFLUENCE
from npde_fem.assay.report import title
from npde_fem.output import save_figure
from npde_fem.parallel import on_root

import numpy as np
from mpi4py import MPI

__all__ = ["figure"]

_COLOURS = {"fisher": "#33658a", "porous-fisher": "#e4572e", "general": "#6a994e"}


def figure(path: str | os.PathLike[str], fits: Sequence[Fit], comm: MPI.Comm | None = None) -> None:
    """Draw fits (collective; rank 0 draws, and the file appears whole or not at all).

    A row for each data set: a panel a model, with the data (mean and standard deviation of the wells) and the fitted
    states, FEM as lines and FD as diamonds, then the laws ``D(u)`` and ``f(u)`` with bands of one standard error over
    the densities measured. Below, where there are several initial densities: ``D`` at confluence, ``r`` and ``K``
    against them with standard errors.

    Parameters
    ----------
    path
        File to write; its suffix tells the format.
    fits
        What to draw, any models, methods and data; the laws are those of the first method of a model.
    comm
        Communicator, ``MPI.COMM_WORLD`` by default.

    Raises
    ------
    ValueError
        If there are no fits.
    """
    if not fits:
        raise ValueError("fits: none given; at least one is needed")
    on_root(comm or MPI.COMM_WORLD, lambda: _draw(path, fits))


def _draw(path: str | os.PathLike[str], fits: Sequence[Fit]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    assays = list({id(f.assay): f.assay for f in fits}.values())
    models = list(dict.fromkeys(f.model.name for f in fits))
    trends = len({a.density for a in assays if a.density is not None}) > 1
    columns = len(models) + 2
    rows = len(assays) + trends
    whole = plt.figure(figsize=(3.9 * columns, 2.9 * rows + 0.6), layout="constrained")
    parts = whole.subfigures(rows, 1, squeeze=False)[:, 0]
    colours = plt.colormaps["viridis"](np.linspace(0, 0.85, max(len(a.times) for a in assays)))
    for assay, part in zip(assays, parts, strict=False):
        mine = [f for f in fits if f.assay is assay]
        panels = part.subplots(1, columns)
        part.suptitle(title(mine[0]), fontsize=12)
        for name, axis in zip(models, panels, strict=False):
            _draw_states(axis, assay, [f for f in mine if f.model.name == name], colours)
            axis.set_title(name, fontsize=11)
        panels[0].set_ylabel("density, 10$^{-3}$ cells/um$^2$")
        _draw_laws(panels[-2], panels[-1], list({f.model.name: f for f in reversed(mine)}.values()))
    if trends:
        _draw_trends(parts[-1].subplots(1, 3), fits)
    longest = max((a.times for a in assays), key=len)
    handles = [plt.Line2D([], [], color=c, lw=2, label=f"{t:g} h") for t, c in zip(longest, colours, strict=True)]
    handles += [
        plt.Line2D([], [], color="0.5", marker="o", ms=3, ls="", label="measured, mean and s.d. of wells"),
        plt.Line2D([], [], color="0.3", lw=2, label="FEM"),
        plt.Line2D([], [], color="0.3", marker="D", ms=4, mfc="w", ls="", label="FD"),
        plt.Line2D([], [], color="0.3", lw=2, ls=":", label="at a time left out of the fit"),
    ]
    whole.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    for part in parts:
        for axis in part.axes:
            axis.spines[["top", "right"]].set_visible(False)
    save_figure(whole, path)
    plt.close(whole)


def _draw_states(axis: Any, assay: Any, fits: Sequence[Fit], colours: Any) -> None:
    x = assay.position
    for k, colour in zip(range(len(assay.times)), colours, strict=False):
        style: dict[str, Any] = {"fmt": "o", "ms": 3, "color": colour, "alpha": 0.4, "elinewidth": 0.8}
        axis.errorbar(x, 1e3 * assay.mean[k], 1e3 * assay.std[k], **style)
        for fit in fits:
            if fit.method == "fem":
                dashes = ":" if assay.times[k] == fit.hold_out else "-"
                axis.plot(x, 1e3 * fit.states[k], color=colour, lw=2, ls=dashes)
            else:
                axis.plot(x[k::5], 1e3 * fit.states[k, k::5], "D", ms=4, mfc="w", color=colour)
    axis.set(xlabel="position, um", ylim=(-0.02e3 * assay.mean.max(), 1.35e3 * assay.mean.max()))


def _draw_laws(diffusivity: Any, growth: Any, fits: Sequence[Fit]) -> None:
    for fit in fits:
        u = np.linspace(0, fit.assay.mean.max(), 101)
        for axis, (value, error), scale in ((diffusivity, fit.diffusivity(u), 1), (growth, fit.growth(u), 1e6)):
            colour = _COLOURS[fit.model.name]
            axis.plot(1e3 * u, scale * value, color=colour, lw=2, label=fit.model.name)
            axis.fill_between(1e3 * u, scale * (value - error), scale * (value + error), color=colour, alpha=0.2, lw=0)
    for axis, text in ((diffusivity, "$D(u)$, um$^2$/h"), (growth, "$f(u)$, 10$^{-6}$ cells/um$^2$/h")):
        axis.set(xlabel="density $u$, 10$^{-3}$ cells/um$^2$", xlim=(0, None))
        axis.set_title(text, fontsize=11)
    diffusivity.set_ylim(bottom=0)
    diffusivity.legend(frameon=False, fontsize=9)


def _draw_trends(axes: Any, fits: Sequence[Fit]) -> None:
    known = [f for f in fits if f.assay.density is not None]
    series = list(dict.fromkeys((f.model.name, f.method) for f in known))
    for i, (name, method) in enumerate(series):
        mine = [f for f in known if (f.model.name, f.method) == (name, method)]
        x = np.array([f.assay.density for f in mine], dtype=float) + 0.15 * (i - (len(series) - 1) / 2)
        style: dict[str, Any] = {"fmt": "o" if method == "fem" else "D", "color": _COLOURS[name], "capsize": 3}
        style |= {"mfc": _COLOURS[name] if method == "fem" else "w", "label": f"{name}, {method.upper()}"}
        at_confluence = np.array([f.diffusivity(CONFLUENCE) for f in mine])
        axes[0].errorbar(x, *at_confluence.T, **style)
        for axis, parameter, scale in ((axes[1], "r", 1.0), (axes[2], "K", 1e3)):
            estimates = [f.parameters[parameter] for f in mine if parameter in f.parameters]
            if estimates and estimates[0].value.ndim == 0:
                value, error = (scale * np.array([getattr(e, part) for e in estimates]) for part in ("value", "stderr"))
                axis.errorbar(x, value, np.nan_to_num(error), **style)
    axes[0].set_yscale("log")
    labels = (f"$D({1e3 * CONFLUENCE:g}\\cdot 10^{{-3}})$, um$^2$/h", "$r$, 1/h", "$K$, 10$^{-3}$ cells/um$^2$")
    for axis, label in zip(axes, labels, strict=True):
        axis.set(xlabel="cells at the start, thousands")
        axis.set_title(label, fontsize=11)
        axis.grid(axis="y", color="0.9")
    axes[1].set_ylim(bottom=0)
    axes[2].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=9)
