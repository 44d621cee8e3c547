"""States on disk, written whole or not at all, to restart from on the same number of ranks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from petsc4py import PETSc

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.parallel import alike

__all__ = ["restore", "save"]


def save(problem: Semidiscrete, values: Array, path: str | os.PathLike) -> None:
    """Write the values of a state to one PETSc binary file, all ranks together (collective).

    The order of dofs is that of the problem's distribution: read it back on as many ranks.

    Raises
    ------
    OSError
        If the folder is missing or cannot be written, alike on all ranks.
    """
    path = Path(path)
    with alike(problem.comm):
        if not os.access(path.parent, os.W_OK):
            raise OSError(f"cannot write {path}: folder {path.parent} is missing or not writable")
    aside = path.with_name(path.name + ".part")
    vector = PETSc.Vec().createMPI((problem.n_owned, problem.n_global), comm=problem.comm)
    vector.array[:] = values
    viewer = PETSc.Viewer().create(problem.comm)
    viewer.setType(PETSc.Viewer.Type.BINARY)
    viewer.setFileMode(PETSc.Viewer.FileMode.WRITE)
    PETSc.Options()["viewer_binary_skip_info"] = ""
    viewer.setFileName(str(aside))
    vector.view(viewer)
    viewer.destroy()
    vector.destroy()
    problem.comm.Barrier()
    with alike(problem.comm):
        if problem.comm.rank == 0:
            aside.replace(path)
            Path(f"{aside}.info").unlink(missing_ok=True)


def restore(problem: Semidiscrete, path: str | os.PathLike) -> Array:
    """Read the values that :func:`save` wrote (collective).

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing, or of another size than the problem's state.
    """
    with alike(problem.comm):
        if not Path(path).exists():
            raise FileNotFoundError(f"no saved state {path}")
        count = (Path(path).stat().st_size - 8) // 8
        if count != problem.n_global:
            raise ValueError(f"{path} holds {count} values; the problem has {problem.n_global}")
    vector = PETSc.Vec().createMPI((problem.n_owned, problem.n_global), comm=problem.comm)
    viewer = PETSc.Viewer().createBinary(str(path), "r", comm=problem.comm)
    vector.load(viewer)
    values = np.array(vector.array_r)
    viewer.destroy()
    vector.destroy()
    return values
