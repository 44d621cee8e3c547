"""Peak memory per rank from 1 to 8 ranks (oversubscribed where there are fewer cores), FEM and FD.

What making a problem and solving it adds to a rank's memory, beyond libraries and DOLFINx's mesh, should fall as
1 / ranks. Needs Linux: the peak is read, and reset once the mesh is there, in /proc.
"""

import json
from pathlib import Path

import npde_fem as npde

import _report
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD


def peak():
    """Return the peak of this process's resident memory since its last reset, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")


def worker(method):
    """Print what a rank holds before, and the largest growth of its peak over three implicit steps, MB."""
    equation = npde.physics.fisher_kpp(0.01, 5.0)
    space = None
    if method == "fem":
        space = fem.functionspace(dmesh.create_unit_square(COMM, 400, 400), ("Lagrange", 1))
    COMM.Barrier()
    reset_peak()
    before = peak()
    if method == "fd":
        problem = npde.FD(equation, npde.Grid(COMM, (801, 801), (0, 0), (1, 1)))
    else:
        problem = npde.FEM(equation, space)
    npde.solve(problem, lambda x: 0.1 + 0.1 * x[0], t=(0, 0.03), dt=0.01)
    grown = COMM.allreduce(peak() - before, op=MPI.MAX)
    if COMM.rank == 0:
        print(json.dumps([before, grown]))


def main():
    arguments = _report.parser(__doc__).parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return
    rows = []
    for method, what in (("fd", "FD 801 x 801 points"), ("fem", "FEM P1 400 x 400")):
        one = None
        for ranks in (1, 2, 4, 8):
            before, grown = _report.on_ranks(__file__, ranks, method)
            one = one or grown
            case = f"{what}, {ranks} rank(s)"
            rows.append(_report.row(case, "MB a rank, problem and solve", grown))
            share = None if ranks == 1 else 1.6 / ranks + 0.1
            rows.append(_report.row(case, "share of the memory on 1 rank", grown / one, at_most=share))
        rows.append(_report.row(what, "MB a rank before, on 8 ranks", before))
    _report.finish(rows, arguments.json)


if __name__ == "__main__":
    main()
