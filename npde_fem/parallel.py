"""What all ranks must do alike: fail together, speak once."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from mpi4py import MPI

__all__ = ["alike", "end_job_on_exception", "is_terminal", "say"]


@contextmanager
def alike(comm: MPI.Comm) -> Iterator[None]:
    """Run rank-local work; if it raises on any rank, raise on every rank (collective on ``comm``).

    A rank whose own work went well raises the error of the lowest rank that failed. The work inside must not
    communicate.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    if comm.size == 1:
        if error is not None:
            raise error
        return
    first = comm.allreduce(comm.size if error is None else comm.rank, op=MPI.MIN)
    if first == comm.size:
        return
    message = comm.bcast((type(error), str(error)) if comm.rank == first else None, root=first)
    if error is not None:
        raise error
    kind, text = message
    try:
        remote = kind(text)
    except TypeError:
        remote = RuntimeError(text)
    raise remote


def end_job_on_exception() -> None:
    """Let an uncaught exception on one rank end the whole job after its traceback, so that no other rank waits."""
    if MPI.COMM_WORLD.size == 1:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(f"[rank {MPI.COMM_WORLD.rank}] {text}")
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)

    sys.excepthook = hook


def is_terminal(comm: MPI.Comm) -> bool:
    """Whether this rank should draw a progress line: rank 0, and only on a terminal."""
    return comm.rank == 0 and sys.stderr.isatty()


def say(comm: MPI.Comm, text: str) -> None:
    """Print ``text`` on rank 0."""
    if comm.rank == 0:
        print(text, flush=True)
