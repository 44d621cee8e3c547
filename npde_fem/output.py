"""Solutions as files: VTX (ADIOS2) and XDMF for ParaView, pictures and films. Files appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from npde_fem.discretize import FD, FEM, PeriodicMesh, Semidiscrete
from npde_fem.discretize.real import new_function
from npde_fem.parallel import alike
from npde_fem.pictures import FILMS, can_film, draw, film, gather_grid, gather_mesh, save_figure

import basix.ufl
import dolfinx.graph
import dolfinx.mesh
import numpy as np
import numpy.typing as npt
from dolfinx import fem
from dolfinx.io import VTXWriter, XDMFFile
from mpi4py import MPI

__all__ = ["SUFFIXES", "Writer", "grid_mesh", "save_figure"]

SUFFIXES = (".bp", ".xdmf", ".png", *FILMS)


def grid_mesh(problem: FD) -> tuple[dolfinx.mesh.Mesh, npt.NDArray[np.int64]]:
    """Return a mesh of the cells between grid points, for output only, and where its nodes' values lie.

    Every rank makes the cells ahead of its own points, so nothing is moved; nodes between ranks are doubled. Cells that
    touch a point outside of the mask are left out.

    Returns
    -------
    mesh
        Intervals, quadrilaterals or hexahedra.
    index
        For each node of this rank's geometry the index of its point in a ghosted array.
    """
    layout, d = problem.layout, problem.dim
    ahead = [1 if p or e < n else 0 for p, e, n in zip(layout.periodic, layout.end, layout.points, strict=True)]
    counts = [n + a for n, a in zip(layout.local, ahead, strict=True)]
    nodes = np.indices(counts).reshape(d, -1)
    x = np.array([layout.grid.lower[a] + layout.grid.spacing[a] * (layout.start[a] + nodes[a]) for a in range(d)]).T
    ghosted = np.ravel_multi_index(tuple((nodes + 1)[::-1]), layout.ghosted_shape)
    corners = np.indices([c - 1 for c in counts]).reshape(d, -1)
    offsets = np.array(np.meshgrid(*[[0, 1]] * d, indexing="ij")).reshape(d, -1)[::-1]
    cells = np.ravel_multi_index(tuple(corners[a][:, None] + offsets[a] for a in range(d)), counts)
    inside = problem.inside(ghosted)
    cells = cells[inside[cells].all(axis=1)]
    first = MPI.Intracomm(layout.comm).scan(x.shape[0]) - x.shape[0]
    kind = {1: "interval", 2: "quadrilateral", 3: "hexahedron"}[d]

    def stay(comm: Any, parts: int, kinds: Any, topology: Any) -> Any:
        count = cells.shape[0]
        return dolfinx.graph.adjacencylist(np.full((count, 1), layout.comm.rank, dtype=np.int32))._cpp_object

    mesh = dolfinx.mesh.create_mesh(
        layout.comm,
        (cells + first).astype(np.int64),
        basix.ufl.element("Lagrange", kind, 1, shape=(d,)),
        np.ascontiguousarray(x),
        partitioner=stay,
    )
    return mesh, ghosted[mesh.geometry.input_global_indices - first]


class _OnMesh:
    """A state of the problem as real DOLFINx functions that files can hold, refreshed by :meth:`take`.

    One function, u, of a real state; of a complex one u_real, u_imag and u_abs. A function on a periodic mesh is shown
    on the mesh that it was made of, where each side has nodes of its own.
    """

    def __init__(self, problem: Semidiscrete, degree_one: bool) -> None:
        self.problem = problem
        shape, is_complex = problem.equation.shape, problem.equation.is_complex
        names = ("u_real", "u_imag", "u_abs") if is_complex else ("u",)
        if isinstance(problem, FD):
            mesh, self._index = grid_mesh(problem)
            space = fem.functionspace(mesh, ("Lagrange", 1, shape))
            # Nodes of the geometry and dofs of degree one are numbered differently.
            self._nodes, self._dofs = mesh.geometry.dofmaps[0].reshape(-1), space.dofmap.list.reshape(-1)
            self._state = problem.new_state()
        else:
            assert isinstance(problem, FEM)
            known = problem.given_space
            mesh = problem.mesh.original if isinstance(problem.mesh, PeriodicMesh) else problem.mesh
            if degree_one and known.ufl_element().degree > 1:
                space = fem.functionspace(mesh, ("Lagrange", 1, shape))
            else:
                space = known if mesh is problem.mesh else fem.functionspace(mesh, known.ufl_element())
        self.functions = [new_function(space, name) for name in names]
        self.parts = self.functions[: 1 + is_complex]
        """The value, or its real and its imaginary part."""
        self._whole = self.parts
        if isinstance(problem, FEM) and space is not known:
            self._whole = [new_function(known) for _ in self.parts]

    def take(self, u: Any) -> None:
        """Take over the values of ``u`` (collective)."""
        if isinstance(self.problem, FD):
            self._take_grid(u.values)
        else:
            for whole, shown, values in zip(self._whole, self.parts, (u.x.array.real, u.x.array.imag), strict=False):
                whole.x.array[:] = values
                mesh = whole.function_space.mesh
                if whole is not shown and isinstance(mesh, PeriodicMesh):
                    mesh.carry(whole, shown)
                elif whole is not shown:
                    shown.interpolate(whole)
        if self.problem.equation.is_complex:
            real, imag, size = (function.x.array for function in self.functions)
            np.hypot(real, imag, out=size)

    def _take_grid(self, values: npt.NDArray) -> None:
        m = self.problem.equation.components
        self.problem.load(values.view(np.float64), self._state)
        nodal = self._state.view(values.dtype).reshape(-1, m)[self._index]
        for function, part in zip(self.parts, (nodal.real, nodal.imag), strict=False):
            function.x.array.reshape(-1, m)[self._dofs] = part[self._nodes]


class Writer:
    """Write a solution to a file on the way; use as observer, in a ``with`` block.

    ``.bp`` (VTX, any degree) and ``.xdmf`` (degree 1) hold all times given: u, or of a complex state u_real, u_imag and
    u_abs. ``.png`` is a figure of six of them at most, ``.gif`` and ``.mp4`` (by ffmpeg) a film of a hundred; see
    :mod:`npde_fem.pictures`. The file appears when the block ends well.

    >>> with Writer("u.bp", problem) as writer:                        # doctest: +SKIP
    ...     solve(problem, u0, t=(0, 1), dt=0.01, observe=([0, 0.5, 1], writer))

    Raises
    ------
    ValueError, OSError
        If the suffix is another, a film is asked for of a stationary problem or without ffmpeg for .mp4, or the folder
        is missing or not writable; before any work, alike on all ranks.
    """

    def __init__(self, path: str | os.PathLike, problem: Semidiscrete) -> None:
        self.path, self.problem = Path(path), problem
        comm = problem.comm
        with alike(comm):
            if self.path.suffix not in SUFFIXES:
                raise ValueError(
                    f"output {str(self.path)!r}: suffix {self.path.suffix!r} given; {', '.join(SUFFIXES)} allowed"
                )
            if self.path.suffix in FILMS and problem.stationary:
                raise ValueError(f"output {str(self.path)!r}: a stationary solution is no film; .png draws it")
            if self.path.suffix in FILMS and not can_film(self.path.suffix):
                raise ValueError(
                    f"output {str(self.path)!r}: matplotlib finds no ffmpeg, which .mp4 needs; .gif does not"
                )
            if not os.access(self.path.parent, os.W_OK):
                raise OSError(f"cannot write {self.path}: folder {self.path.parent} is missing or not writable")
        scratch = tempfile.mkdtemp(prefix=".npde-", dir=self.path.parent) if comm.rank == 0 else None
        self._scratch = Path(comm.bcast(scratch, root=0))
        self._file: Any = None
        self._frames: list[tuple[float, Any]] = []
        drawn = self.path.suffix not in (".bp", ".xdmf")
        if not drawn or isinstance(problem, FEM):
            self._on_mesh = _OnMesh(problem, self.path.suffix == ".xdmf")
        if not drawn:
            target = self._scratch / self.path.name
            if self.path.suffix == ".bp":
                self._file = VTXWriter(comm, target, self._on_mesh.functions)
            else:
                self._file = XDMFFile(comm, target, "w")
                self._file.write_mesh(self._on_mesh.functions[0].function_space.mesh)

    def __call__(self, t: float, u: Any) -> None:
        """Add the state ``u`` at time ``t`` (collective)."""
        if self._file is None:
            if isinstance(self.problem, FD):
                frame = gather_grid(self.problem, u)
            else:
                self._on_mesh.take(u)
                frame = gather_mesh(self._on_mesh.parts)
            if frame is not None:
                self._frames.append((t, frame))
            return
        self._on_mesh.take(u)
        if self.path.suffix == ".bp":
            self._file.write(t)
        else:
            for function in self._on_mesh.functions:
                self._file.write_function(function, t)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        comm = self.problem.comm
        if kind is not None:
            # The error may be one rank's own, while the others wait elsewhere: nothing collective here.
            if self._file is not None and comm.size == 1:
                self._file.close()
            if comm.rank == 0:
                shutil.rmtree(self._scratch, ignore_errors=True)
            return
        if self._file is not None:
            self._file.close()
        comm.Barrier()
        with alike(comm):
            if comm.rank == 0:
                try:
                    self._finish()
                finally:
                    shutil.rmtree(self._scratch)

    def _finish(self) -> None:
        """Draw the picture or film if it is one, and move what was written to its place."""
        if self._file is None:
            if not self._frames:
                raise ValueError(f"output {str(self.path)!r}: no state was written, so there is nothing to draw")
            render = film if self.path.suffix in FILMS else draw
            render(self._frames, self.problem.equation.name, self._scratch / self.path.name)
        for made in self._scratch.iterdir():
            _replace(made, self.path.parent / made.name)


def _replace(made: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    made.replace(target)
