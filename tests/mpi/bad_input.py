"""Every case of ``bad_input_cases.py`` on all ranks; rank 0 prints a line of JSON a case: its name and the faults.

Cases run on a communicator of their own, so that a rank left behind in one waits there and is not taken for a rank
that checks in; after a while it prints its traceback and ends the job.
"""

import faulthandler
import importlib
import json
import sys
from pathlib import Path

import npde_fem  # noqa: F401

from mpi4py import MPI

LIMIT = 100.0

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
cases = importlib.import_module("bad_input_cases").CASES
world = MPI.COMM_WORLD
comm = world.Dup()
for case in cases:
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    faults = world.gather(case.fault(comm), root=0)
    faulthandler.cancel_dump_traceback_later()
    if world.rank == 0:
        found = [f"rank {rank}: {fault}" for rank, fault in enumerate(faults) if fault]
        print(json.dumps({"case": case.name, "faults": found}), flush=True)
