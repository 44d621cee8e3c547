"""Ready-made problems: equations with known solutions to compare with, and scenes to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from operator import mul
from typing import Any

from npde_fem import physics
from npde_fem.discretize import FD, FEM, Grid, Semidiscrete
from npde_fem.equation import NPDE, BoundaryCondition, Dirichlet, Parameter, manufactured

import dolfinx.fem
import dolfinx.mesh
import numpy as np
import ufl
from mpi4py import MPI

__all__ = ["KNOWN", "SCENES", "Case", "box_mesh", "cell_kind", "discretise"]


@dataclass(frozen=True)
class Case:
    """An equation on a box, with data.

    Attributes
    ----------
    name, summary
        What it is, for the command line.
    equation
        The equation in ``dim`` dimensions, parameters inside.
    exact
        Its solution, a UFL callable ``(x, t)`` for ``dim`` dimensions, or None if unknown.
    initial
        Initial data where there is no exact solution: callable of coordinates (3, n), for ``dim`` dimensions.
    conditions
        Boundary conditions, given the exact solution.
    sides
        Lower and upper end of the box along each axis.
    end
        Final time; None for a stationary problem.
    step
        Step to take for 16 cells (known solutions), or for any number (scenes).
    """

    name: str
    summary: str
    equation: Callable[[int], NPDE]
    exact: Callable[[int], Callable] | None = None
    initial: Callable[[int], Callable] | None = None
    conditions: Callable[[Callable | None], list[BoundaryCondition]] = field(default=lambda exact: [])
    sides: tuple[float, float] = (0.0, 1.0)
    end: float | None = 1.0
    step: float = 1 / 32
    scheme: str = "crank-nicolson"


def cell_kind(dim: int, cell: str | None) -> str:
    """Return ``cell``, or the simplex of ``dim`` dimensions for None; ValueError if it has another dimension."""
    kinds = {1: ("interval",), 2: ("triangle", "quadrilateral"), 3: ("tetrahedron", "hexahedron")}[dim]
    if cell is not None and cell not in kinds:
        raise ValueError(f"cell: {cell} given; in {dim}D {' or '.join(kinds)} allowed")
    return cell or kinds[0]


def box_mesh(comm: MPI.Comm, dim: int, cells: int, sides: tuple[float, float], cell: str | None = None) -> Any:
    """Return a DOLFINx mesh of a box of ``cells`` cells along each axis.

    ``cell`` is the kind of cell; simplices by default.
    """
    kind = cell_kind(dim, cell)
    lower, upper = np.full(dim, sides[0]), np.full(dim, sides[1])
    cell_type = dolfinx.mesh.to_type(kind)
    if dim == 1:
        return dolfinx.mesh.create_interval(comm, cells, [sides[0], sides[1]])
    make = dolfinx.mesh.create_rectangle if dim == 2 else dolfinx.mesh.create_box
    return make(comm, [lower, upper], [cells] * dim, cell_type)


def discretise(
    case: Case, method: str, comm: MPI.Comm, dim: int, cells: int, degree: int = 1, cell: str | None = None
) -> tuple[Semidiscrete, Callable | None]:
    """Return a case as a problem on ``cells`` cells along each axis, and its exact solution if known.

    Parameters
    ----------
    method
        ``"fem"`` (Lagrange of ``degree`` on cells of kind ``cell``) or ``"fd"``.
    """
    equation, exact = case.equation(dim), case.exact(dim) if case.exact else None
    bcs = case.conditions(exact)
    if method == "fd":
        grid = Grid(comm, (cells + 1,) * dim, (case.sides[0],) * dim, (case.sides[1],) * dim)
        return FD(equation, grid, bcs), exact
    mesh = box_mesh(comm, dim, cells, case.sides, cell)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree, equation.shape))
    return FEM(equation, space, bcs, quadrature_degree=2 * degree + 2), exact


def _product(factor: Callable, x: Any, dim: int) -> Any:
    return reduce(mul, (factor(x[a]) for a in range(dim)))


def _cosines(dim: int) -> Callable:
    return lambda x: _product(lambda s: ufl.cos(ufl.pi * s), x, dim)


def _dirichlet(exact: Callable | None) -> list[BoundaryCondition]:
    return [Dirichlet(exact if exact is not None else 0.0)]


def _poisson_exact(dim: int) -> Callable:
    return lambda x, t: ufl.exp(x[0]) * _product(lambda s: ufl.sin(ufl.pi * s), x, dim)


def _poisson(dim: int) -> NPDE:
    plain = physics.poisson(Parameter("D", 1.0), 0.0)
    return manufactured(plain, _poisson_exact(dim))


def _nonlinear(dim: int) -> NPDE:
    return NPDE(
        flux=lambda u, x, t: (1 + u**2) * ufl.grad(u),
        source=lambda u, x, t: -(u**3),
        damping=0.0,
        name="diffusion-reaction",
    )


def _bump(level: float, height: float, decay: float = 1.0) -> Callable[[int], Callable]:
    """``level + height exp(-decay t) prod cos(pi x_i)``: no flux through the unit box."""
    return lambda dim: lambda x, t: level + height * ufl.exp(-decay * t) * _cosines(dim)(x)


def _made(equation: Callable[[int], NPDE], exact: Callable[[int], Callable]) -> Callable[[int], NPDE]:
    return lambda dim: manufactured(equation(dim), exact(dim))


def _heat_exact(dim: int) -> Callable:
    return lambda x, t: ufl.exp(-0.1 * dim * ufl.pi**2 * t) * _cosines(dim)(x)


def _fisher_wave(dim: int) -> Callable:
    """Travelling wave of speed 5/sqrt(6) (Ablowitz and Zeppetella 1979, Bull. Math. Biol. 41, eq. 1.3), diagonal."""

    def exact(x: Any, t: Any) -> Any:
        along = sum(x[a] for a in range(dim)) / np.sqrt(dim)
        return (1 + ufl.exp((along - 5 / np.sqrt(6) * t) / np.sqrt(6))) ** (-2)

    return exact


def _gray_scott_exact(dim: int) -> Callable:
    def exact(x: Any, t: Any) -> Any:
        wave = ufl.exp(-t) * _cosines(dim)(x)
        return ufl.as_vector([0.75 + 0.25 * wave, 0.25 - 0.125 * wave])

    return exact


def _fisher(dim: int) -> NPDE:
    return physics.fisher_kpp(Parameter("D", 1.0), Parameter("r", 1.0), Parameter("K", 1.0))


KNOWN = {
    case.name: case
    for case in (
        Case(
            "poisson",
            "-div(D grad u) = s, manufactured, Dirichlet",
            _poisson,
            _poisson_exact,
            None,
            _dirichlet,
            end=None,
        ),
        Case(
            "diffusion-reaction",
            "-div((1 + u^2) grad u) + u^3 = s, manufactured, no flux",
            _made(_nonlinear, _bump(1.0, 0.5, 0.0)),
            _bump(1.0, 0.5, 0.0),
            end=None,
        ),
        Case(
            "heat",
            "u_t = D lap u, a decaying cosine, no flux",
            lambda dim: physics.heat(Parameter("D", 0.1)),
            _heat_exact,
        ),
        Case(
            "fisher-kpp",
            "u_t = D lap u + r u (1 - u/K), the travelling wave of speed 5/sqrt(6)",
            _fisher,
            _fisher_wave,
            conditions=_dirichlet,
            sides=(-5.0, 5.0),
        ),
        Case(
            "porous-fisher",
            "u_t = div(D u/K grad u) + r u (1 - u/K) + s, manufactured, no flux",
            _made(
                lambda dim: physics.porous_fisher(Parameter("D", 0.1), Parameter("r", 1.0), Parameter("K", 1.0)),
                _bump(0.5, 0.25),
            ),
            _bump(0.5, 0.25),
        ),
        Case(
            "allen-cahn",
            "u_t = eps^2 lap u + u - u^3 + s, manufactured, no flux",
            _made(lambda dim: physics.allen_cahn(Parameter("eps", 0.2)), _bump(0.0, 0.5)),
            _bump(0.0, 0.5),
        ),
        Case(
            "gray-scott",
            "two species, cubic autocatalysis, manufactured, no flux",
            _made(
                lambda dim: physics.gray_scott(
                    Parameter("D_u", 0.02), Parameter("D_v", 0.01), Parameter("F", 0.04), Parameter("k", 0.06)
                ),
                _gray_scott_exact,
            ),
            _gray_scott_exact,
        ),
    )
}
"""Cases with a known solution, by name."""


def _radius(dim: int, centre: float = 0.5) -> Callable:
    return lambda x: sum((x[a] - centre) ** 2 for a in range(dim))


def _spot(dim: int) -> Callable:
    return lambda x: np.exp(-200.0 * _radius(dim)(x))


def _rough(dim: int) -> Callable:
    """Waves of many lengths: rough to look at, the same on every mesh and number of ranks."""

    def waves(x: Any) -> Any:
        total = 0.0
        for k in range(1, 9):
            phase = sum((0.7 + ((k * (a + 2)) % 5)) * k * x[a] for a in range(dim))
            total = total + np.sin(2 * np.pi * phase + k**2) / 8
        return total

    return waves


def _catalyst(dim: int) -> NPDE:
    k = Parameter("k", 1.0)
    return physics.diffusion_reaction(Parameter("D", 0.02), lambda u, x, t: -k * u**3)


def _gray_scott_seed(dim: int) -> Callable:
    def seed(x: Any) -> Any:
        spot = 0.25 * (1 + np.tanh((0.1 - np.sqrt(_radius(dim, 1.25)(x))) / 0.02)) * (1 + 0.1 * _rough(dim)(x))
        return np.array([1 - spot, 0.5 * spot])

    return seed


SCENES = {
    case.name: case
    for case in (
        Case(
            "poisson",
            "a membrane under constant load, fixed at its rim",
            lambda dim: physics.poisson(Parameter("D", 1.0), Parameter("s", 1.0)),
            initial=lambda dim: lambda x: 0.0 * x[0],
            conditions=_dirichlet,
            end=None,
        ),
        Case(
            "diffusion-reaction",
            "a catalyst fed through its surface: -D lap u + k u^3 = 0, u = 1 at the rim",
            _catalyst,
            initial=lambda dim: lambda x: 1.0 + 0.0 * x[0],
            conditions=lambda exact: [Dirichlet(1.0)],
            end=None,
        ),
        Case(
            "heat",
            "a hot spot cools in a cold box",
            lambda dim: physics.heat(Parameter("D", 0.05)),
            initial=_spot,
            conditions=_dirichlet,
            end=0.5,
            step=0.005,
            scheme="sdirk2",
        ),
        Case(
            "fisher-kpp",
            "a population spreads from a spot",
            lambda dim: physics.fisher_kpp(Parameter("D", 1e-3), Parameter("r", 1.0), Parameter("K", 1.0)),
            initial=_spot,
            end=6.0,
            step=0.05,
        ),
        Case(
            "porous-fisher",
            "a population spreads from a spot with a sharp front",
            lambda dim: physics.porous_fisher(Parameter("D", 4e-3), Parameter("r", 1.0), Parameter("K", 1.0)),
            initial=_spot,
            end=6.0,
            step=0.05,
        ),
        Case(
            "allen-cahn",
            "phases separate and coarsen",
            lambda dim: physics.allen_cahn(Parameter("eps", 0.02)),
            initial=lambda dim: lambda x: 0.5 * _rough(dim)(x),
            end=20.0,
            step=0.1,
        ),
        Case(
            "gray-scott",
            "spots that divide (Pearson 1993), on a box of side 2.5",
            lambda dim: physics.gray_scott(
                Parameter("D_u", 2e-5), Parameter("D_v", 1e-5), Parameter("F", 0.035), Parameter("k", 0.06)
            ),
            initial=_gray_scott_seed,
            sides=(0.0, 2.5),
            end=2000.0,
            step=2.0,
            scheme="imex",
        ),
    )
}
"""Scenes to look at, by name."""
