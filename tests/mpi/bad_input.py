"""Every case of ``bad_input_cases.py`` on all ranks; rank 0 prints a line of JSON a case: its name and the fault found.

Cases run on a communicator of their own, so that a rank left behind in one waits there and is not taken for a rank
that checks in; after two minutes it prints its traceback and ends the job.
"""

import faulthandler
import json
import sys
import warnings
from pathlib import Path

import npde_fem as npde

from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bad_input_cases import CASES, Case

LIMIT = 120.0


def outcome(case: Case, comm: MPI.Comm) -> str:
    """Run a case; return what is wrong on this rank."""
    error: BaseException | Warning | None = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            case.run(comm)
        except Exception as raised:
            error = raised
    if issubclass(case.error, Warning) and error is None:
        if comm.rank > 0:
            return "" if not caught else f"a rank other than 0 warns: {caught[0].message}"
        error = caught[0].message if caught else None
    return case.fault(error)


def main() -> None:
    world = MPI.COMM_WORLD
    comm = world.Dup()
    assert npde.__version__
    for case in CASES:
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        faults = world.gather(outcome(case, comm), root=0)
        faulthandler.cancel_dump_traceback_later()
        if faults is not None:
            found = [f"rank {rank}: {fault}" for rank, fault in enumerate(faults) if fault]
            print(json.dumps({"case": case.name, "fault": "\n".join(found)}), flush=True)


main()
