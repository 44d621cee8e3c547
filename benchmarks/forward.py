"""Fisher-KPP, P1, Crank-Nicolson, 100 steps: ours against a plain DOLFINx NonlinearProblem loop, and on 2 ranks.

Both solve the same discrete equations; their errors are measured against a run with steps eight times smaller.
"""

import json
import time

import npde_fem as npde

import _report
import numpy as np
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from dolfinx.fem.petsc import NonlinearProblem
from mpi4py import MPI

COMM = MPI.COMM_WORLD
D, R, END, STEPS = 0.01, 5.0, 1.0, 100


def start(x):
    return np.exp(-50 * ((x[0] - 0.5) ** 2 + (x[1] - 0.5) ** 2))


def space(cells):
    return fem.functionspace(dmesh.create_unit_square(COMM, cells, cells), ("Lagrange", 1))


def ours(problem, steps=STEPS, end=END):
    """Return seconds and final state of our solve."""
    COMM.Barrier()
    begun = time.perf_counter()
    solution = npde.solve(problem, start, t=(0, end), dt=END / steps, scheme=npde.CrankNicolson())
    COMM.Barrier()
    return time.perf_counter() - begun, solution.values


def plain(V):
    """Return a function that runs the loop a DOLFINx user writes, and the Function it ends in."""
    u, before, v = fem.Function(V), fem.Function(V), ufl.TestFunction(V)

    def rate(w):
        return -D * ufl.inner(ufl.grad(w), ufl.grad(v)) + R * w * (1 - w) * v

    dt = END / STEPS
    form = (u - before) * v * ufl.dx - dt / 2 * (rate(u) + rate(before)) * ufl.dx
    problem = NonlinearProblem(
        form,
        u,
        petsc_options_prefix="plain_",
        petsc_options={"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-8, "snes_rtol": 1e-8},
    )

    def run():
        u.interpolate(start)
        before.interpolate(start)
        begun = time.perf_counter()
        for _ in range(STEPS):
            problem.solve()
            before.x.array[:] = u.x.array
        return time.perf_counter() - begun

    return run, u


def against_plain(cells):
    V = space(cells)
    problem = npde.FEM(npde.physics.fisher_kpp(D, R), V)
    run, u = plain(V)
    ours(problem, end=2 * END / STEPS), run()
    times = [(ours(problem)[0], run()) for _ in range(5)]
    values = ours(problem)[1]
    reference = ours(problem, 8 * STEPS)[1]
    mine = np.abs(values - reference).max()
    theirs = np.abs(u.x.array[: values.size] - reference).max()
    best_ours, best_plain = (min(t[k] for t in times) for k in (0, 1))
    case = f"Fisher-KPP {cells} x {cells}"
    return [
        _report.row(case, "seconds, ours", best_ours),
        _report.row(case, "seconds, plain loop", best_plain),
        _report.row(case, "ratio ours / plain", float(np.median([a / b for a, b in times])), at_most=0.5),
        _report.row(case, "error ours / error plain", mine / theirs, at_most=1.01),
    ]


def worker(cells):
    problem = npde.FEM(npde.physics.fisher_kpp(D, R), space(cells))
    ours(problem, end=2 * END / STEPS)
    seconds = min(ours(problem)[0] for _ in range(3))
    if COMM.rank == 0:
        print(json.dumps(seconds))


def main():
    arguments = _report.parser(__doc__).parse_args()
    if arguments.worker:
        worker(int(arguments.worker))
        return
    rows = against_plain(64) + against_plain(128)
    pairs = [[_report.on_ranks(__file__, n, "256") for n in (1, 2)] for _ in range(3)]
    rows += [
        _report.row("Fisher-KPP 256 x 256", "seconds, 1 rank", min(p[0] for p in pairs)),
        _report.row("Fisher-KPP 256 x 256", "seconds, 2 ranks", min(p[1] for p in pairs)),
        _report.row(
            "Fisher-KPP 256 x 256", "speed-up on 2 ranks", float(np.median([a / b for a, b in pairs])), at_least=1.7
        ),
    ]
    _report.finish(rows, arguments.json)


if __name__ == "__main__":
    main()
