"""Values on disk, written whole or not at all, to restart from on the same number of ranks."""

from __future__ import annotations

import os
from pathlib import Path

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.parallel import alike

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

__all__ = ["read_values", "restore", "save", "write_values"]

_VECTOR = 1211214
"""PETSc's mark of a vector, the first integer of the file (VEC_FILE_CLASSID, petscvec.h); the second is its length."""

_SCALARS = (">f8", ">c16")
"""What a PETSc writes, by its build; all numbers here are real, so that a file of either can be read."""


def save(problem: Semidiscrete, values: Array, path: str | os.PathLike) -> None:
    """Write the values of a state to one PETSc binary file, all ranks together (collective).

    To go on with an equation of second order in time, state and velocity are needed: ``values`` of shape
    ``(2, n_owned)``, ``[solution.values, solution.velocity_values]``. The acceleration follows from these.

    The order of dofs is that of the problem's distribution: read it back on as many ranks.

    Raises
    ------
    OSError
        If the folder is missing or cannot be written, alike on all ranks.
    """
    values = np.asarray(values)
    write_values(problem.comm, np.broadcast_to(values, (*values.shape[:-1], problem.n_owned)).ravel(), path)


def write_values(comm: MPI.Comm, values: Array, path: str | os.PathLike) -> None:
    """Write an array that is spread over the ranks to one PETSc binary file (collective); see :func:`save`."""
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    with alike(comm):
        if path.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder")
        if comm.rank == 0:
            try:
                aside.touch()
            except OSError as error:
                raise OSError(f"cannot write {path}: {error}") from error
    vector = PETSc.Vec().createMPI((values.size, None), comm=comm)
    vector.array[:] = values
    viewer = PETSc.Viewer().create(comm)
    viewer.setType(PETSc.Viewer.Type.BINARY)
    viewer.setFileMode(PETSc.Viewer.FileMode.WRITE)
    viewer.setFileName(str(aside))
    vector.view(viewer)
    vector.destroy()
    shares = PETSc.Vec().createMPI((1, comm.size), comm=comm)
    shares.array[:] = values.size
    shares.view(viewer)
    shares.destroy()
    viewer.destroy()
    comm.Barrier()
    with alike(comm):
        if comm.rank == 0:
            aside.replace(path)
            Path(f"{aside}.info").unlink(missing_ok=True)


def restore(problem: Semidiscrete, path: str | os.PathLike) -> Array:
    """Read the values that :func:`save` wrote, of shape ``(n_owned,)`` or ``(k, n_owned)`` (collective).

    Raises
    ------
    OSError, ValueError
        If the file is missing (FileNotFoundError) or cannot be read, holds no whole state, one of another size than
        the problem's, or one from another distribution over ranks.
    """
    return read_values(problem.comm, problem.n_owned, path, several=True)


def read_values(comm: MPI.Comm, n_owned: int, path: str | os.PathLike, *, several: bool = False) -> Array:
    """Read an array of which this rank has ``n_owned`` values, written by :func:`write_values`; see :func:`restore`.

    With ``several`` the file may hold k such arrays in one, of shape ``(k, n_owned)``.
    """
    path = Path(path)
    owns, rows = comm.allgather(n_owned), 1
    with alike(comm):
        if not path.exists():
            raise FileNotFoundError(f"no saved state {path}")
        kind, start, length, shares = _contents(path)
        if several and length and length % sum(owns) == 0:
            rows = length // sum(owns)
            owns = [rows * n for n in owns]
        if length != sum(owns):
            raise ValueError(f"{path} holds {length} values; {sum(owns)} are needed")
        if shares != owns:
            raise ValueError(
                f"{path} was saved on {len(shares)} ranks that owned {shares} values; it can be read back on the same "
                f"ranks only, here are {comm.size}"
            )
        first = start + kind.itemsize * sum(owns[: comm.rank])
        values = np.fromfile(path, dtype=kind, count=rows * n_owned, offset=first).real.astype(np.float64)
    return values if rows == 1 else values.reshape(rows, n_owned)


def _contents(path: Path) -> tuple[np.dtype, int, int, list[int]]:
    """Return what numbers a file consists of, where the first one stands, how many there are, and each rank's share."""
    integers, size = np.dtype(PETSc.IntType).newbyteorder(">"), path.stat().st_size
    header = np.fromfile(path, dtype=integers, count=2)
    if header.size == 2 and header[0] == _VECTOR:
        for kind in map(np.dtype, _SCALARS):
            second = header.nbytes + kind.itemsize * int(header[1])
            shares = np.fromfile(path, dtype=integers, count=2, offset=min(second, size))
            if shares.size == 2 and shares[0] == _VECTOR:
                last = second + shares.nbytes
                if size == last + kind.itemsize * int(shares[1]):
                    owned = np.fromfile(path, dtype=kind, offset=last).real.astype(int).tolist()
                    return kind, header.nbytes, int(header[1]), owned
    raise ValueError(f"{path} is no saved state, or not whole")
