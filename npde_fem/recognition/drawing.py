"""What has learnt to recognise, drawn: how well, and what it has become."""

from __future__ import annotations

import os
from typing import Any

from npde_fem.figures import save_figure
from npde_fem.parallel import on_root
from npde_fem.recognition.optics import Camera, Diffraction
from npde_fem.recognition.report import Recognition
from npde_fem.recognition.vowels import PassivePlate, Plate

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor, nn

__all__ = ["figure"]

_BLUE, _RED = "#33658a", "#e4572e"


def figure(path: str | os.PathLike[str], found: Recognition, comm: MPI.Comm | None = None) -> None:
    """Draw a recognition (collective; rank 0 draws, and the file appears whole or not at all).

    On top: loss and accuracy on unseen samples by epoch, of all divisions, and the confusion matrix. Below, of the
    first division, what the model has become:

    * a plate: its speed with source and probes, and where the energy of one sound of each class goes;
    * masks of light: their phases, and one digit's light as it comes to them and to the detectors;
    * a medium: its coefficients D, a and s.

    Parameters
    ----------
    path
        File to write; its suffix tells the format.
    found
        What to draw.
    comm
        Communicator, ``MPI.COMM_WORLD`` by default.
    """
    comm = comm or MPI.COMM_WORLD
    model = found.trained[0].fit.model
    on_root(comm, lambda: _draw(path, found, model))


def _draw(path: Any, found: Recognition, model: nn.Module) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parts = [part for part in model.modules() if isinstance(part, Plate | PassivePlate | Diffraction | Camera)]
    below = parts[0] if parts else None
    heights = [3.2] + ([3.4] if isinstance(below, Plate | PassivePlate) or found.fields else [])
    heights += [4.6] if isinstance(below, Diffraction | Camera) else []
    whole = plt.figure(figsize=(12.5, sum(heights) + 0.5), layout="constrained")
    top, *rest = whole.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _performance(top, found)
    if isinstance(below, Plate | PassivePlate):
        _plate(rest[0], below, found)
    elif isinstance(below, Diffraction | Camera):
        _optics(rest[0], below, found)
    elif found.fields:
        _medium(rest[0], found.fields)
    reference = "" if found.reference is None else f"   ({100 * found.reference[0]:.4g} %: {found.reference[1]})"
    spread = "" if np.isnan(found.spread) else f" $\\pm$ {100 * found.spread:.1f}"
    whole.suptitle(f"{found.task}, {found.learner}: {100 * found.accuracy:.1f}{spread} %{reference}", fontsize=12)
    save_figure(whole, path)
    plt.close(whole)


def _performance(part: Any, found: Recognition) -> None:
    many = len(found.trained[0].fit.history) > 1
    axes = part.subplots(1, 3 if many else 1)
    *curves, matrix = np.atleast_1d(axes)
    for trained in found.trained if many else ():
        epochs = [e.epoch for e in trained.fit.history]
        curves[0].plot(epochs, [e.loss for e in trained.fit.history], color=_BLUE, lw=1.2)
        curves[1].plot(epochs, [100 * e.metrics["accuracy"] for e in trained.fit.history], color=_RED, lw=1.2)
    if many:
        curves[0].set(title="loss", xlabel="epoch", yscale="log")
        curves[1].set(title="accuracy on unseen data, %", xlabel="epoch")
        if found.reference is not None:
            curves[1].axhline(100 * found.reference[0], color="0.6", ls=":", lw=1)
        for axis in curves:
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.spines[["top", "right"]].set_visible(False)
    confusion, names = found.confusion, found.classes
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    matrix.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(confusion):
        matrix.text(
            j, i, confusion[i, j], ha="center", va="center", fontsize=8, color="w" if share[i, j] > 0.5 else "k"
        )
    matrix.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
    matrix.set(title="unseen samples", xlabel="answer", ylabel="class")


def _image(part: Any, axis: Any, values: Any, title: str, cmap: str, **settings: Any) -> None:
    image = axis.imshow(np.asarray(values), origin="lower", cmap=cmap, **settings)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)
    part.colorbar(image, ax=axis, shrink=0.8, pad=0.02)


def _plate(part: Any, plate: Plate | PassivePlate, found: Recognition) -> None:
    wave = plate if isinstance(plate, Plate) else plate.wave
    axes = part.subplots(1, 1 + len(found.classes))
    with torch.no_grad():
        _image(part, axes[0], wave.speed.cpu().T, "speed $c(x)$", "Greys_r", vmin=0.0, vmax=1.0)
        for name, sound, axis in zip(found.classes, found.examples, axes[1:], strict=True):
            _, states = wave(sound[None].to(wave.damping.dtype), states=True)
            energy = states[0].square().mean(0)
            decibels = 10 * torch.log10(energy / energy.max() + 1e-12)
            _image(part, axis, decibels.T, f"energy of “{name}”, dB", "inferno", vmin=-40, vmax=0)
    rows, columns = wave.lattice.shape
    for axis in axes:
        for weights, mark, colour in ((wave.sources.T, "o", "#2a9d8f"), (wave.probes, "s", "#f4a261")):
            assert weights is not None
            share = weights.reshape(-1, rows, columns).cpu().numpy()
            x = (share.sum(2) * np.arange(rows)).sum(1)
            y = (share.sum(1) * np.arange(columns)).sum(1)
            axis.plot(x, y, mark, color=colour, ms=5 if len(x) < 10 else 2, mec="k", mew=0.4)
            if mark == "s" and len(x) == len(found.classes):
                for name, a, b in zip(found.classes, x, y, strict=True):
                    axis.annotate(name, (a, b), textcoords="offset points", xytext=(5, 0), color=colour, fontsize=8)


def _optics(part: Any, model: Diffraction | Camera, found: Recognition) -> None:
    optics = model if isinstance(model, Diffraction) else model.optics
    layers = len(optics.phases)
    axes = part.subplots(2, layers + 2)
    shown = min(3, len(found.examples) - 1)
    with torch.no_grad():
        picture = found.examples[shown : shown + 1]
        planes = optics.planes(picture)
        masks = [optics.splines @ phases @ optics.splines.T for phases in optics.phases]
        begun = optics.light(picture)

    def window(values: Tensor) -> Any:
        return optics.window(values).cpu().numpy()

    for axis in axes[:, [0, -1]].flat:
        axis.set_axis_off()
    upright = {"origin": "upper"}
    for k, mask in enumerate(masks):
        axes[0, k + 1].imshow(np.mod(window(mask), 2 * np.pi), cmap="twilight", vmin=0, vmax=2 * np.pi, **upright)
        axes[0, k + 1].set_title(f"phases, mask {k + 1}", fontsize=9)
    titles = ["picture", *(f"light at mask {k + 1}" for k in range(layers)), "light at the detectors"]
    for axis, field, title in zip(axes[1], [begun, *planes], titles, strict=True):
        axis.imshow(window(field[0].abs()), cmap="magma", **upright)
        axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    if isinstance(model, Diffraction):
        edge = optics.neurons * optics.fineness / 8
        for k, (row, column) in enumerate((optics.squares() - optics.neurons / 4) * optics.fineness - 0.5):
            colour = "#2a9d8f" if k == shown else "w"
            axes[1, -1].add_patch(_rectangle((column, row), edge, colour))
            axes[1, -1].text(column + edge / 2, row - 1, found.classes[k], color=colour, fontsize=7, ha="center")


def _rectangle(corner: tuple[float, float], edge: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, edge, edge, fill=False, edgecolor=colour, lw=0.8)


def _medium(part: Any, fields: dict[str, Any]) -> None:
    axes = part.subplots(1, len(fields))
    for axis, (name, values) in zip(axes, fields.items(), strict=True):
        most = np.abs(values).max()
        signed = {} if name == "D" else {"vmin": -most, "vmax": most}
        _image(part, axis, values[::-1], f"${name}(x)$", "RdBu_r" if signed else "viridis", **signed)
