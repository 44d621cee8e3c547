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
        integers = np.dtype(PETSc.IntType).newbyteorder(">")
        header = np.fromfile(path, dtype=integers, count=2)
        if header.size < 2 or header[0] != _VECTOR:
            raise ValueError(f"{path} is no saved state, or not whole")
        first = header.nbytes + 8 * int(header[1])
        second = np.fromfile(path, dtype=integers, count=2, offset=min(first, path.stat().st_size))
        if second.size < 2 or path.stat().st_size != first + second.nbytes + 8 * int(second[1]):
            raise ValueError(f"{path} is no saved state, or not whole")
        if several and header[1] and header[1] % sum(owns) == 0:
            rows = int(header[1]) // sum(owns)
            owns = [rows * n for n in owns]
        if header[1] != sum(owns):
            raise ValueError(f"{path} holds {header[1]} values; {sum(owns)} are needed")
        owned = np.fromfile(path, dtype=">f8", offset=first + second.nbytes).astype(int).tolist()
    if owned != owns:
        raise ValueError(
            f"{path} was saved on {len(owned)} ranks that owned {owned} values; it can be read back on the same ranks "
            f"only, here are {comm.size}"
        )
    vector = PETSc.Vec().createMPI((rows * n_owned, None), comm=comm)
    viewer = PETSc.Viewer().createBinary(str(path), "r", comm=comm)
    vector.load(viewer)
    values = np.array(vector.array_r)
    viewer.destroy()
    vector.destroy()
    return values if rows == 1 else values.reshape(rows, n_owned)
