"""Solutions as files: VTX (ADIOS2) and XDMF for ParaView, PNG to look at. Files appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from npde_fem.discretize import FD, FEM, PeriodicMesh, Semidiscrete
from npde_fem.discretize.grid import GridFunction
from npde_fem.parallel import alike

import basix.ufl
import dolfinx.graph
import dolfinx.mesh
import dolfinx.plot
import numpy as np
import numpy.typing as npt
from dolfinx import fem
from dolfinx.io import VTXWriter, XDMFFile
from mpi4py import MPI

__all__ = ["SUFFIXES", "Writer", "draw", "grid_mesh", "save_figure"]

SUFFIXES = (".bp", ".xdmf", ".png")


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
    """A function of the problem as a DOLFINx function that files can hold, refreshed by :meth:`take`.

    A function on a periodic mesh is shown on the mesh that it was made of, where each side has nodes of its own.
    """

    def __init__(self, problem: Semidiscrete, degree_one: bool) -> None:
        self.problem = problem
        shape = problem.equation.state_shape
        if isinstance(problem, FD):
            mesh, self._index = grid_mesh(problem)
            space = fem.functionspace(mesh, ("Lagrange", 1, shape))
            # Nodes of the geometry and dofs of degree one are numbered differently.
            self._nodes, self._dofs = mesh.geometry.dofmaps[0].reshape(-1), space.dofmap.list.reshape(-1)
            self._state = problem.new_state()
        else:
            assert isinstance(problem, FEM)
            self._pairs = fem.Function(problem.space)
            mesh = problem.mesh.original if isinstance(problem.mesh, PeriodicMesh) else problem.mesh
            element = problem.space.ufl_element()
            if degree_one and element.degree > 1:
                space = fem.functionspace(mesh, ("Lagrange", 1, shape))
            else:
                space = problem.space if mesh is problem.mesh else fem.functionspace(mesh, element)
        self.function = fem.Function(space, name="u")

    def take(self, u: Any) -> None:
        """Take over the values of ``u`` (collective)."""
        if isinstance(self.problem, FD):
            m = self.problem.components
            self.problem.load(u.values, self._state)
            values = self._state.reshape(-1, m)[self._index]
            self.function.x.array.reshape(-1, m)[self._dofs] = values[self._nodes]
            return
        # A complex value is the pair of its real and its imaginary part.
        self._pairs.x.array[:] = u.x.array.view(np.float64)
        shown, known = self.function.function_space, self._pairs.function_space
        if shown == known:
            self.function.x.array[:] = self._pairs.x.array
        elif isinstance(known.mesh, PeriodicMesh):
            known.mesh.carry(self._pairs, self.function)
        else:
            self.function.interpolate(self._pairs)


class Writer:
    """Write a solution to a file on the way; use as observer, in a ``with`` block.

    ``.bp`` (VTX, any degree) and ``.xdmf`` (degree 1) hold all times given, ``.png`` a figure of them. The file appears
    when the block ends well.

    >>> with Writer("u.bp", problem) as writer:                        # doctest: +SKIP
    ...     solve(problem, u0, t=(0, 1), dt=0.01, observe=([0, 0.5, 1], writer))

    Raises
    ------
    ValueError, OSError
        If the suffix is another, or the folder is missing or not writable; before any work, alike on all ranks.
    """

    def __init__(self, path: str | os.PathLike, problem: Semidiscrete) -> None:
        self.path, self.problem = Path(path), problem
        comm = problem.comm
        with alike(comm):
            if self.path.suffix not in SUFFIXES:
                raise ValueError(
                    f"output {str(self.path)!r}: suffix {self.path.suffix!r} given; {', '.join(SUFFIXES)} allowed"
                )
            if not os.access(self.path.parent, os.W_OK):
                raise OSError(f"cannot write {self.path}: folder {self.path.parent} is missing or not writable")
        scratch = tempfile.mkdtemp(prefix=".npde-", dir=self.path.parent) if comm.rank == 0 else None
        self._scratch = Path(comm.bcast(scratch, root=0))
        self._file: Any = None
        self._frames: list[tuple[float, Any]] = []
        if self.path.suffix != ".png" or isinstance(problem, FEM):
            self._on_mesh = _OnMesh(problem, self.path.suffix == ".xdmf")
        if self.path.suffix != ".png":
            target = self._scratch / self.path.name
            if self.path.suffix == ".bp":
                self._file = VTXWriter(comm, target, [self._on_mesh.function])
            else:
                self._file = XDMFFile(comm, target, "w")
                self._file.write_mesh(self._on_mesh.function.function_space.mesh)

    def __call__(self, t: float, u: Any) -> None:
        """Add the state ``u`` at time ``t`` (collective)."""
        if self._file is None:
            if isinstance(self.problem, FD):
                frame = _gather_grid(self.problem, u)
            else:
                self._on_mesh.take(u)
                frame = _gather_mesh(self._on_mesh.function)
            if frame is not None:
                self._frames.append((t, frame))
            return
        self._on_mesh.take(u)
        if self.path.suffix == ".bp":
            self._file.write(t)
        else:
            self._file.write_function(self._on_mesh.function, t)

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
        """Draw the figure if it is one, and move what was written to its place."""
        if self._file is None:
            if not self._frames:
                raise ValueError(f"output {str(self.path)!r}: no state was written, so there is nothing to draw")
            draw(self._frames, self.problem.equation.name, self._scratch / self.path.name)
        for made in self._scratch.iterdir():
            _replace(made, self.path.parent / made.name)


def _replace(made: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    made.replace(target)


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Save a matplotlib figure whole or not at all."""
    path = Path(path)
    aside = path.with_name(f".{path.stem}.part{path.suffix}")
    figure.savefig(aside, dpi=150, bbox_inches="tight")
    aside.replace(path)


def _gather_grid(problem: FD, u: GridFunction) -> dict[str, Any] | None:
    """Collect on rank 0 what a figure needs: values on the grid, and where it lies."""
    whole = u.gather()
    inside = GridFunction(problem.layout, problem.domain.inside.astype(float), 1).gather()
    if whole is None or inside is None:
        return None
    shaped = np.where(inside[..., None] > 0, whole.reshape(*problem.layout.points, problem.components), np.nan)
    low, h = np.array(problem.grid.lower), np.array(problem.grid.spacing)
    return {"grid": shaped, "lower": low, "upper": low + h * (np.array(problem.layout.points) - 1), "h": h}


def _gather_mesh(u: fem.Function) -> dict[str, Any] | None:
    """Collect on rank 0 what a figure needs: coordinates, values (n, m), and triangles in 2D."""
    space = u.function_space
    mesh, m = space.mesh, space.dofmap.index_map_bs
    dim, x, triangles = mesh.geometry.dim, space.tabulate_dof_coordinates(), np.zeros((0, 3), dtype=int)
    if dim == 2:
        topology, _, x = dolfinx.plot.vtk_mesh(space)
        width = int(topology[0]) if topology.size else 1
        cells = topology.reshape(-1, width + 1)[:, 1:]
        kind = mesh.topology.cell_type.name
        triangles = cells[:, :3] if kind == "triangle" else np.vstack([cells[:, :3], cells[:, [0, 2, 3]]])
    parts = mesh.comm.gather((x, u.x.array.reshape(-1, m), triangles), root=0)
    if parts is None:
        return None
    starts = np.cumsum([0, *(len(p[0]) for p in parts)])
    return {
        "x": np.concatenate([p[0] for p in parts]),
        "values": np.concatenate([p[1] for p in parts]),
        "triangles": np.concatenate([p[2] + s for p, s in zip(parts, starts, strict=False)]),
        "dim": dim,
    }


def draw(frames: list[tuple[float, Any]], title: str, path: str | os.PathLike, most: int = 6) -> None:
    """Draw gathered states: curves over x in 1D, a map per time in 2D (3D: the middle slice), a row per component."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if len(frames) > most:
        frames = [frames[int(round(k))] for k in np.linspace(0, len(frames) - 1, most)]
    first = frames[0][1]
    m = first["grid"].shape[-1] if "grid" in first else first["values"].shape[1]
    one_dimensional = first["grid"].ndim == 2 if "grid" in first else first["dim"] == 1
    if one_dimensional:
        figure, axes = plt.subplots(1, m, figsize=(5 * m, 3.5), squeeze=False)
        for c in range(m):
            for k, (t, frame) in enumerate(frames):
                x, y = _curve(frame, c)
                axes[0, c].plot(x, y, color=plt.colormaps["viridis"](k / max(1, len(frames) - 1)), label=f"t = {t:g}")
            axes[0, c].set(xlabel="x", ylabel="u" if m == 1 else f"u[{c}]")
            axes[0, c].legend(frameon=False)
    else:
        columns = len(frames)
        figure, axes = plt.subplots(
            m, columns, figsize=(3.2 * columns + 0.8, 3.0 * m), squeeze=False, layout="constrained"
        )
        for c in range(m):
            values = np.concatenate([np.ravel(_component(f, c)) for _, f in frames])
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            for k, (t, frame) in enumerate(frames):
                image = _map(axes[c, k], frame, c, low, high)
                axes[c, k].set_title(f"t = {t:g}" if m == 1 else f"u[{c}], t = {t:g}", fontsize=10)
                axes[c, k].set_aspect("equal")
                axes[c, k].set_axis_off()
            figure.colorbar(image, ax=axes[c, :].tolist(), shrink=0.85)
    figure.suptitle(title)
    save_figure(figure, path)
    plt.close(figure)


def _component(frame: dict[str, Any], c: int) -> npt.NDArray:
    return frame["grid"][..., c] if "grid" in frame else frame["values"][:, c]


def _curve(frame: dict[str, Any], c: int) -> tuple[npt.NDArray, npt.NDArray]:
    if "grid" in frame:
        values = frame["grid"][..., c]
        return np.linspace(frame["lower"][0], frame["upper"][0], values.size), values
    order = np.argsort(frame["x"][:, 0])
    return frame["x"][order, 0], frame["values"][order, c]


def _map(axis: Any, frame: dict[str, Any], c: int, low: float, high: float) -> Any:
    if "grid" in frame:
        values = frame["grid"][..., c]
        if values.ndim == 3:
            values = values[:, :, values.shape[2] // 2]
        half = 0.5 * frame["h"][:2]
        (x0, y0), (x1, y1) = frame["lower"][:2] - half, frame["upper"][:2] + half
        return axis.imshow(values.T, origin="lower", extent=(x0, x1, y0, y1), vmin=low, vmax=high, cmap="viridis")
    x, values = frame["x"], frame["values"][:, c]
    if frame["dim"] == 3:
        height = 0.5 * (x[:, 2].min() + x[:, 2].max())
        near = np.abs(x[:, 2] - height) <= 0.05 * np.ptp(x[:, 2])
        return axis.scatter(x[near, 0], x[near, 1], c=values[near], s=4, vmin=low, vmax=high, cmap="viridis")
    return axis.tripcolor(
        x[:, 0], x[:, 1], frame["triangles"], values, shading="gouraud", vmin=low, vmax=high, cmap="viridis"
    )
