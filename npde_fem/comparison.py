"""FD against FEM: errors, observed orders and cost on problems with known solutions."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from math import ceil, log
from pathlib import Path
from typing import Any, TypedDict

from npde_fem.cases import KNOWN, Case, Posed, case_named, cell_kind, discretise, velocity_of
from npde_fem.parallel import is_terminal, on_root
from npde_fem.pictures import label_few, save_figure
from npde_fem.solve import Newmark, Scheme, Solution, scheme_named, solve, stable_step

import numpy as np
from mpi4py import MPI

__all__ = ["Row", "compare", "draw_orders", "table", "write_json"]


class Row(TypedDict):
    """One solve.

    ``order`` is the observed one against the row before, None for the first. ``changes`` are relative changes, from
    begin to end, of what the equation conserves.
    """

    method: str
    degree: int
    cells: int
    unknowns: int
    error_l2: float
    error_max: float
    order: float | None
    seconds: float
    seconds_assembly: float
    memory_mb: float
    steps: int
    changes: dict[str, float]


def compare(
    case: str | Case,
    dim: int | None = None,
    cells: Sequence[int] = (16, 32, 64),
    degrees: Sequence[int] = (1, 2),
    methods: Sequence[str] = ("fd", "fem"),
    scheme: str | Scheme | Newmark | None = None,
    cell: str | None = None,
    comm: MPI.Comm | None = None,
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Solve a problem with known solution by finite differences and finite elements (collective).

    Time steps shrink so that the error in time falls as that in space. Each solve is run twice and the second is timed,
    so that compilation does not count.

    Parameters
    ----------
    case
        A :class:`~npde_fem.cases.Case` with an exact solution, or the name of one in ``cases.KNOWN``.
    dim
        Space dimension; by default two, or the only one there is.
    cells
        Cells along each axis, increasing.
    degrees
        Degrees of the finite elements.
    methods
        ``"fd"``, ``"fem"`` or both.
    scheme
        Time scheme or its name; the case's own by default. Explicit schemes take steps below their stability limit.
    cell
        Kind of the finite elements' cells; simplices by default.
    comm
        Communicator, the world by default.
    report
        Called with each row as soon as it is known.

    Returns
    -------
    list of Row
        ``seconds`` is the wall time of the solve, ``seconds_assembly`` the part of it in evaluating and assembling the
        equation, ``memory_mb`` the growth of all ranks' memory from making the problem to the end of its solve.

    Raises
    ------
    KeyError, ValueError
        For an unknown case, one without an exact solution or not made for ``dim`` dimensions, fewer than two cells, or
        the scheme of a stationary problem.
    """
    comm = comm or MPI.COMM_WORLD
    if isinstance(case, str):
        case = case_named(KNOWN, case)
    dim = case.dimension(dim)
    if case.pose(dim).exact is None:
        raise ValueError(f"case {case.name!r} has no exact solution to compare with")
    if not cells or min(cells) < 2 or sorted(set(cells)) != list(cells):
        raise ValueError(f"cells must increase from 2 on, {list(cells)} given")
    cell_kind(dim, cell)
    if not set(methods) <= {"fd", "fem"}:
        raise ValueError(f'methods: "fd" and "fem" allowed, {list(methods)} given')
    if case.end is None and scheme is not None:
        raise ValueError(f"scheme: not for {case.name}, which is stationary")
    if isinstance(scheme, str) or scheme is None:
        scheme = scheme_named(scheme or case.scheme)
    rows: list[Row] = []
    for method, degree in [(m, d) for m in methods for d in (degrees if m == "fem" else (1,))]:
        before: Row | None = None
        for count in cells:
            row = _solve_one(case, scheme, method, degree, dim, count, cell, comm, before)
            if before is not None and row["error_l2"] > 0:
                row["order"] = log(before["error_l2"] / row["error_l2"]) / log(row["cells"] / before["cells"])
            rows.append(row)
            if report is not None:
                report(row)
            before = row
    return rows


def _solve_one(
    case: Case,
    scheme: Scheme | Newmark,
    method: str,
    degree: int,
    dim: int,
    cells: int,
    cell: str | None,
    comm: MPI.Comm,
    before: Row | None,
) -> Row:
    gc.collect()
    memory = _memory()
    problem, posed = discretise(case, method, comm, dim, cells, degree, cell, scheme)
    exact = posed.exact
    assert exact is not None
    arguments: dict[str, Any] = {"progress": is_terminal(comm), "rescue": None}
    end = 0.0
    start = problem.interpolate(exact, 0.0)
    if problem.second_order:
        arguments["velocity"] = problem.interpolate(velocity_of(exact), 0.0)
    if case.end is not None:
        end = case.end
        power = (degree + 1) / scheme.order
        steps = ceil(case.end / case.step * (cells / 16) ** power * (1 - 1e-12))
        if before is not None:
            steps = max(steps, ceil(before["steps"] * (cells / before["cells"]) ** power * (1 - 1e-12)))
        if scheme.is_explicit:
            problem.update()
            steps = max(steps, ceil(1.2 * case.end / stable_step(problem, scheme, 0.0, start)))
        dt = case.end / steps
        arguments |= {"t": (0.0, case.end), "dt": dt, "scheme": scheme, "observe": [0.0, case.end]}
    else:
        start = problem.initial(0.0 * start + 0.5)
    solve(problem, start, **(arguments if case.end is None else arguments | {"t": (0.0, dt), "observe": [0.0, dt]}))
    comm.Barrier()
    begun = time.perf_counter()
    solution: Solution = solve(problem, start, **arguments)
    seconds = comm.allreduce(time.perf_counter() - begun, op=MPI.MAX)
    grown = comm.allreduce(_memory() - memory)
    l2, largest = problem.error(solution.values, exact, end)
    return Row(
        method=method,
        degree=degree,
        cells=cells,
        unknowns=problem.unknowns,
        error_l2=l2,
        error_max=largest,
        order=None,
        seconds=seconds,
        seconds_assembly=comm.allreduce(solution.assembly_seconds, op=MPI.MAX),
        memory_mb=grown / 2**20,
        steps=len(solution.steps),
        changes=changes(posed, solution),
    )


def changes(posed: Posed, solution: Solution) -> dict[str, float]:
    """Return by how much, relatively, what is conserved changed from the first observed state to the last (collective).

    What is zero at the start changes absolutely.
    """
    found = {}
    for name, measure in posed.conserved.items():
        before, after = measure(solution, 0), measure(solution, len(solution.times) - 1)
        found[name] = (after - before) / (abs(before) or 1.0)
    return found


def _memory() -> int:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


_HEAD = f"{'method':<8}{'cells':>6}{'unknowns':>10}{'L2 error':>11}{'max error':>11}{'order':>7}"
_HEAD += f"{'steps':>7}{'assembly':>10}{'solve':>9}{'memory':>9}"


def table(rows: Sequence[Row], head: bool = True, conserved: Sequence[str] = ()) -> str:
    """Return rows as a table to print: times in seconds, memory in MB, relative changes of what is conserved."""
    lines = [_HEAD + "".join(f"{name:>11}" for name in conserved)] if head else []
    for r in rows:
        name = "FD" if r["method"] == "fd" else f"FEM P{r['degree']}"
        order = "" if r["order"] is None else f"{r['order']:.2f}"
        lines.append(
            f"{name:<8}{r['cells']:>6}{r['unknowns']:>10}{r['error_l2']:>11.3e}{r['error_max']:>11.3e}{order:>7}"
            f"{r['steps']:>7}{r['seconds_assembly']:>10.3f}{r['seconds']:>9.3f}{r['memory_mb']:>9.1f}"
            + "".join(f"{r['changes'][name]:>11.1e}" for name in conserved)
        )
    return "\n".join(lines)


def write_json(rows: Sequence[Any], path: str | os.PathLike, comm: MPI.Comm, **tables: Sequence[Any]) -> None:
    """Write ``{"rows": [...]}``, and other tables beside it, on rank 0, whole or not at all (collective)."""

    def write() -> None:
        target = Path(path)
        aside = target.with_name(f".{target.name}.part")
        clean = {
            name: [{k: None if v != v else v for k, v in row.items()} for row in part]
            for name, part in ({"rows": rows} | tables).items()
        }
        aside.write_text(json.dumps(clean, indent=2) + "\n")
        aside.replace(target)

    on_root(comm, write)


def draw_orders(rows: Sequence[Row], title: str, path: str | os.PathLike, comm: MPI.Comm) -> None:
    """Draw error against unknowns and against time, with reference slopes, on rank 0 (collective)."""

    def draw() -> None:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
        groups = dict.fromkeys((r["method"], r["degree"]) for r in rows)
        for method, degree in groups:
            mine = [r for r in rows if (r["method"], r["degree"]) == (method, degree)]
            label = "FD" if method == "fd" else f"FEM, degree {degree}"
            error = [r["error_l2"] for r in mine]
            style = {"marker": "s" if method == "fd" else "o", "label": label}
            (line,) = axes[0].loglog([r["unknowns"] for r in mine], error, **style)
            axes[1].loglog([r["seconds"] for r in mine], error, **style)
            n = np.array([mine[0]["unknowns"], mine[-1]["unknowns"]], dtype=float)
            cells = np.array([mine[0]["cells"], mine[-1]["cells"]], dtype=float)
            order = degree + 1
            slope = 0.7 * error[0] * (cells / cells[0]) ** -order
            axes[0].loglog(n, slope, ":", color=line.get_color(), lw=1)
            place, colour = (n[-1], slope[-1]), line.get_color()
            axes[0].annotate(f"order {order}", place, fontsize=8, color=colour, va="top", ha="right")
        axes[0].set(xlabel="unknowns", ylabel="L2 error")
        axes[1].set(xlabel="seconds to solve")
        for axis in axes:
            axis.grid(True, which="major", alpha=0.3)
            label_few(axis.xaxis)
        axes[0].legend(frameon=False)
        figure.suptitle(title)
        save_figure(figure, path)
        plt.close(figure)

    on_root(comm, draw)
