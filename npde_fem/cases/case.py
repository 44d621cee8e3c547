"""What a ready-made problem is: an equation with its data on a box, in each dimension that it is made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import mul
from typing import Any

from npde_fem.boundary import BoundaryCondition
from npde_fem.cases.conserved import Measure
from npde_fem.discretize import FD, FEM, Grid, Semidiscrete
from npde_fem.equation import NPDE, manufactured
from npde_fem.solve import Newmark, Scheme

import dolfinx.fem
import dolfinx.mesh
import numpy as np
import ufl
from mpi4py import MPI

__all__ = [
    "Case",
    "Posed",
    "box_mesh",
    "case_named",
    "cell_kind",
    "discretise",
    "made",
    "product",
    "radius_squared",
    "velocity_of",
]


@dataclass(frozen=True)
class Posed:
    """An equation in some dimension with all its data.

    Attributes
    ----------
    equation
        The equation, parameters inside; conditions and data may share them.
    exact
        Its solution, a UFL callable ``(x, t)``, or None if unknown.
    initial
        Initial data where there is no exact solution, as ``solve`` takes them.
    conditions
        Boundary conditions.
    conserved
        What stays as it is, by name.
    """

    equation: NPDE
    exact: Callable | None = None
    initial: Any = None
    conditions: Sequence[BoundaryCondition] = ()
    conserved: Mapping[str, Measure] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A ready-made problem on a box.

    Attributes
    ----------
    name, summary
        What it is, for the command line.
    pose
        Poses it in a number of dimensions, afresh.
    dims
        The dimensions it is made for.
    sides
        Lower and upper end of the box, one pair for all axes or one an axis.
    end
        Final time; None for a stationary problem.
    step
        Step to take for 16 cells (known solutions), or for any number (scenes).
    scheme
        Name of the time scheme.
    """

    name: str
    summary: str
    pose: Callable[[int], Posed]
    dims: tuple[int, ...] = (1, 2, 3)
    sides: tuple = (0.0, 1.0)
    end: float | None = 1.0
    step: float = 1 / 32
    scheme: str = "crank-nicolson"

    def dimension(self, asked: int | None) -> int:
        """Return the dimension asked for, two (or the first there is) for None; ValueError if it has no such one."""
        if asked is None:
            return 2 if 2 in self.dims else self.dims[0]
        if asked not in self.dims:
            allowed = " or ".join(map(str, self.dims))
            raise ValueError(f"{self.name}: dim {asked!r} given; {allowed} allowed")
        return asked

    def box(self, dim: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the lower and the upper corner of the box."""
        pairs = self.sides if isinstance(self.sides[0], tuple) else (self.sides,) * dim
        return tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)


def case_named(table: Mapping[str, Case], name: str) -> Case:
    """Return the case called ``name``; KeyError names those there are."""
    if name not in table:
        raise KeyError(f"no case {name!r}; there are {', '.join(table)}")
    return table[name]


def cell_kind(dim: int, cell: str | None) -> str:
    """Return ``cell``, or the simplex of ``dim`` dimensions for None; ValueError if it has another dimension."""
    kinds = {1: ("interval",), 2: ("triangle", "quadrilateral"), 3: ("tetrahedron", "hexahedron")}[dim]
    if cell is not None and cell not in kinds:
        raise ValueError(f"cell: {cell} given; in {dim}D {' or '.join(kinds)} allowed")
    return cell or kinds[0]


def box_mesh(
    comm: MPI.Comm, cells: int, lower: Sequence[float], upper: Sequence[float], cell: str | None = None
) -> Any:
    """Return a DOLFINx mesh of a box of ``cells`` cells along each axis.

    ``cell`` is the kind of cell; simplices by default.
    """
    dim = len(lower)
    cell_type = dolfinx.mesh.to_type(cell_kind(dim, cell))
    if dim == 1:
        return dolfinx.mesh.create_interval(comm, cells, [lower[0], upper[0]])
    make = dolfinx.mesh.create_rectangle if dim == 2 else dolfinx.mesh.create_box
    return make(comm, [np.array(lower), np.array(upper)], [cells] * dim, cell_type)


def discretise(
    case: Case,
    method: str,
    comm: MPI.Comm,
    dim: int,
    cells: int,
    degree: int = 1,
    cell: str | None = None,
    scheme: Scheme | Newmark | None = None,
) -> tuple[Semidiscrete, Posed]:
    """Return a case as a problem on ``cells`` cells along each axis, and the data it was posed with.

    Parameters
    ----------
    method
        ``"fem"`` (Lagrange of ``degree`` on cells of kind ``cell``) or ``"fd"``.
    scheme
        With leapfrog the mass is lumped where it can be: degree 1, and any degree on intervals and boxes.
    """
    posed = case.pose(case.dimension(dim))
    lower, upper = case.box(dim)
    if method == "fd":
        return FD(posed.equation, Grid(comm, (cells + 1,) * dim, lower, upper), posed.conditions), posed
    mesh = box_mesh(comm, cells, lower, upper, cell)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree, posed.equation.shape))
    leaps = isinstance(scheme, Newmark) and scheme.is_explicit
    lumped = leaps and (degree == 1 or cell_kind(dim, cell) in ("interval", "quadrilateral", "hexahedron"))
    mass = "lumped" if lumped else "consistent"
    return FEM(posed.equation, space, posed.conditions, mass=mass, quadrature_degree=2 * degree + 2), posed


def velocity_of(exact: Callable) -> Callable:
    """Return the time derivative of a UFL callable ``(x, t)``, another one."""

    def velocity(x: Any, t: Any) -> Any:
        time = ufl.variable(t)
        return ufl.diff(exact(x, time), time)

    return velocity


def made(equation: NPDE, exact: Callable, conditions: Sequence[BoundaryCondition] = ()) -> Posed:
    """Pose an equation with the source that makes ``exact`` its solution."""
    return Posed(manufactured(equation, exact), exact, conditions=conditions)


def product(factor: Callable, x: Any, dim: int) -> Any:
    """Return the product of ``factor(x_a)`` over the axes."""
    return reduce(mul, (factor(x[a]) for a in range(dim)))


def radius_squared(x: Any, dim: int, centre: float = 0.0) -> Any:
    """Return the square of the distance to the point whose coordinates all are ``centre``."""
    return sum((x[a] - centre) ** 2 for a in range(dim))
