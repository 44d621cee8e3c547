"""What all ranks must do alike: fail together, speak once."""

from __future__ import annotations

import pickle
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from mpi4py import MPI

__all__ = ["Refused", "alike", "end_job_on_exception", "is_terminal", "on_root", "say", "warn_once"]


_FORWARDING_SECONDS = 0.5
"""What mpiexec needs to pass on the last words of a rank; what it has not read when the job ends is lost."""


class Refused(ValueError):
    """What a problem has become with its parameters' present values cannot be solved, at all or with this scheme.

    Other values may do: an optimiser takes it for a step too long.
    """


@contextmanager
def alike(comm: MPI.Comm) -> Iterator[None]:
    """Run rank-local work; if it raises on any rank, raise on every rank (collective on ``comm``).

    The error is that of the lowest rank that failed; another rank that failed raises its own if it is of the same
    type, so that all ranks can catch it alike. The work inside must not communicate.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:  # noqa: BLE001 - whatever it is, it is raised again, on every rank
        error = caught
    if comm.size == 1:
        if error is not None:
            raise error
        return
    first = comm.allreduce(comm.size if error is None else comm.rank, op=MPI.MIN)
    if first == comm.size:
        return
    told = comm.bcast(_portable(error) if comm.rank == first and error is not None else None, root=first)
    if error is not None and type(error) is type(told):
        raise error
    raise told from error


def end_job_on_exception() -> None:
    """Let an uncaught exception on one rank end the whole job after its traceback, so that no other rank waits."""
    if MPI.COMM_WORLD.size == 1:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(f"[rank {MPI.COMM_WORLD.rank}] {text}")
        sys.stderr.flush()
        time.sleep(_FORWARDING_SECONDS)
        MPI.COMM_WORLD.Abort(1)

    sys.excepthook = hook


def is_terminal(comm: MPI.Comm) -> bool:
    """Whether this rank should draw a progress line: rank 0, and only on a terminal."""
    return comm.rank == 0 and sys.stderr.isatty()


def say(comm: MPI.Comm, text: str) -> None:
    """Print ``text`` on rank 0."""
    if comm.rank == 0:
        print(text, flush=True)


def on_root(comm: MPI.Comm | None, work: Callable[[], Any]) -> Any:
    """Do ``work`` on rank 0 and give its result, or its error, to all ranks.

    Parameters
    ----------
    comm
        Communicator whose rank 0 works (collective call), or None: the caller works alone, without MPI.
    work
        Function without arguments. Its result must be picklable.

    Returns
    -------
    Any
        What ``work`` returned: the same value on every rank.

    Raises
    ------
    Exception
        What ``work`` raised, on every rank alike, so that no rank is left waiting for another.
    """
    if comm is None or comm.size == 1:
        return work()
    result, error = None, None
    if comm.rank == 0:
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - whatever it is, the other ranks wait for it
            error = _portable(raised)
    result, error = comm.bcast((result, error), root=0)
    if error is not None:
        raise error
    return result


def _portable(error: Exception) -> Exception:
    """The error itself if it can travel to another rank, else one with the same words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - a foreign class may raise anything while pickled
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def warn_once(comm: MPI.Comm, text: str, kind: type[Warning]) -> None:
    """Warn on rank 0 (collective); where warnings are made errors, every rank raises."""
    with alike(comm):
        if comm.rank == 0:
            # The warning names the line of the user's that led here.
            warnings.warn(text, kind, skip_file_prefixes=(str(Path(__file__).parent),))
