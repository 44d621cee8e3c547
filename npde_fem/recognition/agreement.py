"""Trained structures, solved by other discretisations than that in which they were trained."""

from __future__ import annotations

from typing import Any

from npde_fem.recognition.optics import Diffraction, light_by_pde
from npde_fem.recognition.report import Recognition
from npde_fem.recognition.vowels import Plate, sound_by_pde

import torch
from mpi4py import MPI
from torch import Tensor

__all__ = ["agreement", "table_of_ways"]


def agreement(found: Recognition, comm: MPI.Comm = MPI.COMM_WORLD, refine: int = 2) -> list[dict[str, Any]]:
    """Solve the first division's model by finite differences and finite elements on finer lattices too (collective).

    Parameters
    ----------
    found
        Of trained plates or masks.
    comm
        Ranks of grids and meshes.
    refine
        How many times finer.

    Returns
    -------
    list of dict
        For an example of each vowel, or of one digit: ``class``, and the probabilities of all classes by each way:
        ``trained``, ``fd`` and ``fem``; of masks also ``fourier``, their own way on the finer lattice.

    Raises
    ------
    ValueError
        If the model is neither.
    """
    model = found.trained[0].fit.model
    if not isinstance(model, Plate | Diffraction):
        raise ValueError(f"agreement: a trained {type(model).__name__} given; a Plate or Diffraction allowed")

    def shares(one: torch.nn.Module, sample: Tensor) -> list[float]:
        with torch.no_grad():
            return torch.softmax(one(sample[None])[0].double(), -1).tolist()

    if isinstance(model, Plate):
        return [
            {
                "class": name,
                "trained": shares(model, sound),
                "fd": sound_by_pde(model, sound, "fd", refine=refine, comm=comm).tolist(),
                "fem": sound_by_pde(model, sound, "fem", refine=refine, comm=comm).tolist(),
            }
            for name, sound in zip(found.classes, found.examples, strict=True)
        ]
    k = min(3, len(found.examples) - 1)
    picture = found.examples[k]
    return [
        {
            "class": found.classes[k],
            "trained": shares(model, picture),
            "fourier": shares(model.refined(refine), picture),
            "fd": light_by_pde(model, picture, "fd", refine=refine, comm=comm).tolist(),
            "fem": light_by_pde(model, picture, "fem", refine=refine, comm=comm).tolist(),
        }
    ]


def table_of_ways(ways: list[dict[str, Any]]) -> str:
    """Return what :func:`agreement` gives as a table of probabilities in %."""
    lines = ["", "the same structure, solved otherwise: probability of each class, %"]
    for one in ways:
        for way, shares in one.items():
            if way != "class":
                lines.append(f"{one['class']:<6}{way:<10}" + "".join(f"{100 * share:>7.1f}" for share in shares))
    return "\n".join(lines)
