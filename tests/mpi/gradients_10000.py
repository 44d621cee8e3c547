"""Many gradients of one small problem; rank 0 prints JSON: resident memory (MB, the largest of all ranks) and seconds.

Arguments: how many gradients (10,000 by default), and "fem" or "fd". Memory is given after one third, two thirds
and all of them. A communicator that is not freed shows as well: MPICH has about 2,000, and ends the job at the next.
"""

import importlib
import json
import sys
import time
import warnings
from pathlib import Path

import npde_fem as npde

from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parent))
cases = importlib.import_module("adjoint")
COMM = MPI.COMM_WORLD


def resident():
    """Resident memory of the largest rank, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return COMM.allreduce(pages * 4096 / 1e6, op=MPI.MAX)


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    kind = sys.argv[2] if len(sys.argv) > 2 else "fem"
    warnings.simplefilter("error")
    problem = cases.make_problem(kind)
    one = cases.Experiment(
        problem,
        lambda: npde.misfit(
            npde.solve(problem, cases.start(problem), t=(0.0, 0.05), dt=0.05, integrals=[cases.density(problem)]), 0.2
        ),
    )
    along = {name: one.direction(name) for name in one.controls}
    looks, memory, begun = {count // 3, 2 * count // 3, count}, [], time.perf_counter()
    for k in range(1, count + 1):
        one.value(along, 0.1 * (k % 7))
        one.derivative()
        if k in looks:
            memory.append(resident())
    if COMM.rank == 0:
        seconds = time.perf_counter() - begun
        print(json.dumps({"kind": kind, "gradients": count, "memory": memory, "seconds": seconds}))


if __name__ == "__main__":
    main()
