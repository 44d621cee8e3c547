"""The points on which a network lives, and what its padding means for an equation."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from npde_fem.boundary import BoundaryCondition, Dirichlet, Outflow, Periodic
from npde_fem.discretize import Grid

import dolfinx.mesh as dmesh
import numpy as np
import numpy.typing as npt
from mpi4py import MPI

__all__ = ["BOUNDARIES", "Lattice"]

BOUNDARIES = {
    "zeros": "zeros",
    "replicate": "replicate",
    "reflect": "reflect",
    "circular": "circular",
    "dirichlet": "zeros",
    "neumann": "replicate",
    "no-flux": "replicate",
    "periodic": "circular",
}
"""Names of boundaries: torch's padding modes, and what physics calls them."""

# How far the domain goes on beyond the first and the last point, in spacings: to where u = 0 or du/dn = 0 holds.
_MARGINS = {"zeros": (1.0, 1.0), "replicate": (0.5, 0.5), "reflect": (0.0, 0.0), "circular": (0.0, 1.0)}


@dataclass(frozen=True)
class Lattice:
    """Uniform points, one for each neuron of a channel: axis a of space is axis ``2 + a`` of torch's tensors.

    Parameters
    ----------
    shape
        Points along each of 1 to 3 axes, at least 3 each.
    spacing
        Their distance, one number or one for each axis.
    lower
        Coordinates of the first point, likewise.
    boundary
        How torch pads, and the condition which that is: ``"zeros"`` (or ``"dirichlet"``: u = 0 one spacing beyond the
        last point), ``"replicate"`` (``"neumann"``, ``"no-flux"``: du/dn = 0 half a spacing beyond), ``"reflect"``
        (du/dn = 0 at the last point), ``"circular"`` (``"periodic"``).

    Raises
    ------
    TypeError, ValueError
        If a length is wrong, an axis has fewer than 3 points, a spacing is not positive, or the boundary is unknown.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] = (1.0,)
    lower: tuple[float, ...] = (0.0,)
    boundary: str = "zeros"

    def __post_init__(self) -> None:
        try:
            shape = tuple(operator.index(n) for n in np.atleast_1d(np.asarray(self.shape)))
        except TypeError as error:
            raise TypeError(f"Lattice: shape must be integers, one for each axis, not {self.shape!r}") from error
        if not 1 <= len(shape) <= 3:
            raise ValueError(f"Lattice: shape {shape} has {len(shape)} axes; 1, 2 or 3 allowed")
        if min(shape) < 3:
            raise ValueError(
                f"Lattice: shape {shape} given; at least 3 points along every axis, as many as a kernel has"
            )
        object.__setattr__(self, "shape", shape)
        for name in ("spacing", "lower"):
            try:
                values = np.atleast_1d(np.asarray(getattr(self, name), dtype=np.float64))
            except (TypeError, ValueError) as error:
                raise TypeError(f"Lattice: {name} must be numbers, not {getattr(self, name)!r}") from error
            if values.shape not in {(1,), (len(shape),)} or not np.all(np.isfinite(values)):
                raise ValueError(f"Lattice: {name} {values.tolist()} given; one finite number for each axis of {shape}")
            object.__setattr__(self, name, tuple(np.broadcast_to(values, len(shape)).tolist()))
        if min(self.spacing) <= 0:
            raise ValueError(f"Lattice: spacing {self.spacing} given; positive numbers allowed")
        if not isinstance(self.boundary, str) or self.boundary not in BOUNDARIES:
            raise ValueError(f"Lattice: unknown boundary {self.boundary!r}; allowed: {', '.join(BOUNDARIES)}")
        object.__setattr__(self, "boundary", BOUNDARIES[self.boundary])

    @property
    def dim(self) -> int:
        """Space dimension."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of points."""
        return prod(self.shape)

    @property
    def last(self) -> tuple[float, ...]:
        """Coordinates of the last point."""
        return tuple(x + (n - 1) * h for x, n, h in zip(self.lower, self.shape, self.spacing, strict=True))

    @property
    def domain(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Corners of the box at whose sides the boundary condition holds."""
        below, above = _MARGINS[self.boundary]
        first = tuple(x - below * h for x, h in zip(self.lower, self.spacing, strict=True))
        return first, tuple(x + above * h for x, h in zip(self.last, self.spacing, strict=True))

    def coordinates(self) -> npt.NDArray[np.float64]:
        """Coordinates of the points, shape ``(d, *shape)``."""
        axes = [x + h * np.arange(n) for x, n, h in zip(self.lower, self.shape, self.spacing, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"))

    def refined(self, factor: int) -> Lattice:
        """Return the points of the same domain whose spacing is ``factor`` times smaller."""
        _check_factor("refined", factor)
        below, above = _MARGINS[self.boundary]
        spacing = tuple(h / factor for h in self.spacing)
        shape = tuple(round((n - 1 + below + above) * factor - below - above) + 1 for n in self.shape)
        lower = tuple(x + below * h for x, h in zip(self.domain[0], spacing, strict=True))
        return Lattice(shape, spacing, lower, self.boundary)

    def coarsened(self, factor: int, *, centred: bool = False) -> Lattice:
        """Return each ``factor``-th point, from the first one on; or the centres of blocks of so many points.

        Points that fill no whole block are left out, as torch's pooling does.
        """
        _check_factor("coarsened", factor)
        shape = tuple(n // factor if centred else -(-n // factor) for n in self.shape)
        if min(shape) < 3:
            raise ValueError(
                f"Lattice: shape {self.shape} coarsened by {factor} is {shape}; at least 3 points are needed"
            )
        shift = 0.5 * (factor - 1) if centred else 0.0
        lower = tuple(x + shift * h for x, h in zip(self.lower, self.spacing, strict=True))
        return Lattice(shape, tuple(factor * h for h in self.spacing), lower, self.boundary)

    def grid(self, comm: MPI.Comm) -> Grid:
        """Return the grid of the same points for finite differences; :attr:`conditions` belong to it."""
        if self.boundary == "circular":
            return Grid(comm, tuple(n + 1 for n in self.shape), *self.domain)
        return Grid(comm, self.shape, self.lower, self.last, padding=self.boundary)

    @property
    def conditions(self) -> list[BoundaryCondition]:
        """Boundary conditions that belong to :meth:`grid`, whose padding does the rest."""
        return [Periodic(axis) for axis in range(self.dim)] if self.boundary == "circular" else []

    @property
    def mesh_conditions(self) -> list[BoundaryCondition]:
        """The same boundary as conditions on a mesh of :attr:`domain`."""
        if self.boundary == "circular":
            return self.conditions
        return [Dirichlet(0.0) if self.boundary == "zeros" else Outflow()]

    def mesh(self, comm: MPI.Comm, cells: Sequence[int] | None = None, cell_type: Any = None) -> dmesh.Mesh:
        """Return a mesh of :attr:`domain`, by default with cells as long as the spacing."""
        first, last = self.domain
        if cells is None:
            cells = [round((b - a) / h) for a, b, h in zip(first, last, self.spacing, strict=True)]
        if self.dim == 1:
            return dmesh.create_interval(comm, cells[0], (first[0], last[0]))
        create = dmesh.create_rectangle if self.dim == 2 else dmesh.create_box
        default = dmesh.CellType.triangle if self.dim == 2 else dmesh.CellType.tetrahedron
        return create(comm, [np.array(first), np.array(last)], list(cells), cell_type or default)


def _check_factor(verb: str, factor: int) -> None:
    if not isinstance(factor, int | np.integer) or factor < 1:
        raise ValueError(f"Lattice.{verb}: factor {factor!r} given; a positive integer allowed")
