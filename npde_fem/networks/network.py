"""What all generated networks share: they are torch modules, stock networks and equations at once."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

__all__ = ["Network"]


class Network(torch.nn.Module):
    """A network that an equation generates: its layers are time steps, its parameters coefficients."""

    @abstractmethod
    def as_torch(self) -> torch.nn.Module:
        """Return the same network made of torch's own layers, with copies of the weights.

        Its outputs are equal to round-off.
        """

    @abstractmethod
    def as_equation(self) -> Any:
        """Return the equation that the network solves, with the values that the parameters have now.

        An :class:`~npde_fem.networks.evolution.Evolution`, or one that inputs drive; each has ``solve``.
        """

    def describe(self) -> str:
        """Return a table of the parameters, as they are trained: name, shape, range of values."""
        rows = [("parameter", "shape", "smallest", "largest")]
        for name, p in self.named_parameters():
            low, high = (f"{float(v):.4g}" for v in torch.aminmax(p.detach())) if p.numel() else ("", "")
            rows.append((name, " x ".join(map(str, p.shape)) or "number", low, high))
        widths = [max(len(row[k]) for row in rows) for k in range(4)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        count = sum(p.numel() for p in self.parameters())
        return "\n".join([f"{type(self).__name__}: {count} numbers, in units of spacing and step", *lines])
