"""How many points a wavelength a method needs: a plane wave through a box of some wavelengths, ever finer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import ceil, cos, pi, radians, sin
from typing import Any, TypedDict

from npde_fem.boundary import Robin
from npde_fem.discretize import FD, FEM, Grid
from npde_fem.discretize.semidiscrete import Semidiscrete
from npde_fem.parallel import on_root
from npde_fem.physics import helmholtz
from npde_fem.pictures import label_few, save_figure
from npde_fem.solve import solve

import numpy as np
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI

__all__ = ["METHODS", "Resolution", "draw_resolutions", "points_needed", "resolution_table"]

METHODS = ("fd", "P1", "P2", "P4")
_GROWTH = 1.25


class Resolution(TypedDict):
    """One solve; ``needed`` is the number of points a wavelength for the wished error, None until that is bracketed."""

    method: str
    wavelengths: float
    points: float
    unknowns: int
    error: float
    needed: float | None


def points_needed(
    methods: Sequence[str] = METHODS,
    wavelengths: float = 5.0,
    error: float = 0.01,
    angle: float = 20.0,
    comm: MPI.Comm | None = None,
) -> list[Resolution]:
    """Find how many points (degrees of freedom along an axis) a wavelength a wished error needs (collective).

    A plane wave at an angle to the axes crosses the unit square with impedance data on its boundary. Meshes are refined
    by a quarter until the relative L2 error is below the wished one; the number is interpolated, in logarithms,
    between the last two. As waves on a mesh have another speed, it grows with the number of wavelengths (Ihlenburg and
    Babuska 1995, Comput. Math. Appl. 30).

    Parameters
    ----------
    methods
        ``"fd"`` for finite differences, ``"P1"``, ``"P2"``, ... for finite elements on triangles.
    wavelengths
        Wavelengths along the side of the square.
    error
        Wished relative L2 error.
    angle
        Of the wave with the first axis, degrees.
    comm
        Communicator, the world by default.

    Returns
    -------
    list of Resolution
        All solves; the last of each method has the number needed.

    Raises
    ------
    ValueError
        For an unknown method, no wavelengths, or an error that is not between 0 and 1.
    """
    comm = comm or MPI.COMM_WORLD
    for method in methods:
        if method != "fd" and not (method[:1] == "P" and method[1:].isdigit() and int(method[1:]) > 0):
            raise ValueError(f'methods: "fd", "P1", "P2", ... allowed, {method!r} given')
    if not wavelengths > 0:
        raise ValueError(f"wavelengths: a positive number allowed, {wavelengths!r} given")
    if not 0 < error < 1:
        raise ValueError(f"error: a number between 0 and 1 allowed, {error!r} given")
    rows: list[Resolution] = []
    for method in methods:
        degree = 1 if method == "fd" else int(method[1:])
        cells, before = ceil(4 * wavelengths / degree), None
        while True:
            problem, found = _solve(method, degree, cells, wavelengths, radians(angle), comm)
            row = Resolution(
                method=method,
                wavelengths=wavelengths,
                points=cells * degree / wavelengths,
                unknowns=problem.unknowns // 2,
                error=found,
                needed=None,
            )
            rows.append(row)
            if found <= error:
                row["needed"] = _between(before, row, error)
                break
            cells, before = ceil(cells * _GROWTH), row
    return rows


def _between(before: Resolution | None, row: Resolution, error: float) -> float:
    if before is None:
        return row["points"]
    fraction = np.log(before["error"] / error) / np.log(before["error"] / row["error"])
    return float(before["points"] * (row["points"] / before["points"]) ** fraction)


def _solve(
    method: str, degree: int, cells: int, wavelengths: float, angle: float, comm: MPI.Comm
) -> tuple[Semidiscrete, float]:
    k = 2 * pi * wavelengths
    along = ufl.as_vector([k * cos(angle), k * sin(angle)])

    def wave(x: Any, t: Any) -> Any:
        return ufl.exp(1j * ufl.dot(along, x))

    bc = Robin(-1j * k, lambda x, t, n: 1j * (ufl.dot(along, n) - k) * wave(x, t))
    problem: Semidiscrete
    if method == "fd":
        problem = FD(helmholtz(k), Grid(comm, (cells + 1, cells + 1), (0, 0), (1, 1)), [bc])
    else:
        square = mesh.create_unit_square(comm, cells, cells)
        problem = FEM(helmholtz(k), fem.functionspace(square, ("Lagrange", degree)), [bc])
    # The square has area 1 and the wave modulus 1, so this is the relative error.
    return problem, problem.error(solve(problem, rescue=None, progress=False).values, wave)[0]


def resolution_table(rows: Sequence[Resolution]) -> str:
    """Return what is needed as a table to print."""
    lines = [f"{'method':<8}{'wavelengths':>12}{'points a wavelength':>21}{'unknowns':>10}{'error':>11}"]
    for r in rows:
        if r["needed"] is not None:
            lines.append(
                f"{_name(r['method']):<8}{r['wavelengths']:>12g}{r['needed']:>21.1f}{r['unknowns']:>10}{r['error']:>11.3e}"
            )
    return "\n".join(lines)


def _name(method: str) -> str:
    return "FD" if method == "fd" else f"FEM {method}"


def draw_resolutions(rows: Sequence[Resolution], path: str | os.PathLike, comm: MPI.Comm) -> None:
    """Draw error against points a wavelength on rank 0 (collective)."""

    def draw() -> None:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
        for method in dict.fromkeys(r["method"] for r in rows):
            mine = [r for r in rows if r["method"] == method]
            label = f"{_name(method)}: {mine[-1]['needed']:.1f}"
            axis.loglog([r["points"] for r in mine], [r["error"] for r in mine], marker="o", label=label)
        axis.set(xlabel="points a wavelength", ylabel="relative L2 error")
        axis.set_title(f"A plane wave through {rows[0]['wavelengths']:g} wavelengths")
        axis.grid(True, which="major", alpha=0.3)
        label_few(axis.xaxis)
        axis.legend(frameon=False, title="needed")
        save_figure(figure, path)
        plt.close(figure)

    on_root(comm, draw)
