"""Helmholtz in an open box, ten or twenty points a wavelength: LU (MUMPS) against the shifted Laplacian; a sweep.

Time is that of a solve, its kernels compiled; memory is the growth of the largest resident set of all ranks.
"""

import json
import resource
import time

import npde_fem as npde

import _report
import numpy as np
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD


def make(dim, wavelengths, points):
    """A narrow source in the unit box, inside layers one wavelength thick, by finite differences."""
    k, n = npde.Parameter("k", 2 * np.pi * wavelengths), round(wavelengths * points)
    lower, upper = (0,) * dim, (1,) * dim
    pml = npde.PML(lower, upper, 1 / wavelengths, 1e-4)

    def source(x, t):
        return ufl.exp(-(wavelengths**2) * 8 * sum((x[a] - 0.5) ** 2 for a in range(dim)))

    equation = npde.physics.helmholtz(k, source=source, pml=pml)
    return k, npde.FD(equation, npde.Grid(COMM, (n + 1,) * dim, lower, upper))


def memory():
    """Largest resident set so far, MB, of all ranks."""
    return COMM.allreduce(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def worker(task):
    kind, dim, wavelengths, points = task.split()
    preconditioner = npde.ShiftedLaplacian() if kind.endswith("shifted") else None
    make_kernels = make(int(dim), 3, int(points))[1]
    npde.solve(make_kernels, preconditioner=preconditioner, progress=False)
    k, problem = make(int(dim), float(wavelengths), int(points))
    before = memory()
    COMM.Barrier()
    begun = time.perf_counter()
    if kind.startswith("sweep"):
        values = float(k) * np.linspace(0.98, 1.0, 9)
        solutions = list(npde.sweep(problem, k, values, preconditioner=preconditioner))
        iterations = np.mean([s.linear_iterations for s in solutions[3:]])
    else:
        iterations = npde.solve(problem, preconditioner=preconditioner, progress=False).linear_iterations
    COMM.Barrier()
    found = {
        "seconds": time.perf_counter() - begun,
        "MB": memory() - before,
        "iterations": float(iterations),
        "unknowns": problem.unknowns // 2,
    }
    if COMM.rank == 0:
        print(json.dumps(found))


def main():
    arguments = _report.parser(__doc__).parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    rows = []
    for dim, wavelengths, points in ((2, 5, 20), (2, 10, 20), (3, 3, 10), (3, 4, 10)):
        for kind in ("direct", "shifted"):
            for ranks in (1, 2):
                found = _report.on_ranks(__file__, ranks, f"{kind} {dim} {wavelengths} {points}")
                case = f"{dim}D, {wavelengths} wavelengths, {points} points, {found['unknowns']} unknowns"
                for name in ("seconds", "MB", "iterations"):
                    if name != "iterations" or kind == "shifted":
                        label = f"{name}, {kind}, {ranks} rank" + ("s" if ranks > 1 else "")
                        rows.append(_report.row(case, label, found[name]))
    for kind in ("direct", "shifted"):
        alone, swept = (_report.on_ranks(__file__, 1, f"{how}{kind} 2 10 20") for how in ("", "sweep-"))
        case = "2D, 10 wavelengths, 20 points, nine values"
        rows.append(
            _report.row(case, f"seconds a solve, alone / swept, {kind}", 9 * alone["seconds"] / swept["seconds"])
        )
        if kind == "shifted":
            ratio = alone["iterations"] / swept["iterations"]
            rows.append(_report.row(case, f"iterations, alone / swept, {kind}", ratio))
    _report.finish(rows, arguments.json)


if __name__ == "__main__":
    main()
