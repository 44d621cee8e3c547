"""What a run shows: the size of the tumour, and how far two runs are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from npde_fem.brain.model import anatomy, glioma_fd, glioma_fem, seed
from npde_fem.datasets import Brain
from npde_fem.discretize import FD, FEM
from npde_fem.discretize.real import new_function
from npde_fem.discretize.semidiscrete import Semidiscrete
from npde_fem.solve import CrankNicolson, Newmark, Scheme, Solution, solve

import dolfinx.geometry
import numpy as np
import numpy.typing as npt
from mpi4py import MPI

__all__ = [
    "DAYS",
    "DT",
    "T1GD",
    "T2",
    "Difference",
    "Growth",
    "Sampler",
    "compare_resolutions",
    "difference",
    "simulate",
    "tumour_size",
]

Array = npt.NDArray[np.float64]

T1GD = 0.8
"""Density above which a tumour shows on T1-weighted images with gadolinium (Swanson et al. 2008, Br. J. Cancer 98)."""

T2 = 0.16
"""Density above which a tumour shows on T2-weighted images (same source)."""

DAYS = 700.0
"""Default length of a run in days."""

DT = 5.0
"""Default step in days."""


def tumour_size(problem: Semidiscrete, values: Array, threshold: float) -> float:
    """Area in mm^2 (volume in mm^3 in 3D) where the density exceeds a threshold (collective).

    FEM: exact for the linear function through the values at each simplex's vertices. FD: each voxel contributes the
    share of it beyond the plane level set through it, ``1/2 + (u - threshold) / (h |grad u|)`` cut to [0, 1], with
    the gradient by differences to the neighbours inside the mask. Both are of second order in the mesh width.

    Parameters
    ----------
    problem
        A problem of one component in 2D or 3D: FD on a masked grid of equal spacings, or FEM on simplices.
    values
        Its values, shape ``(n_owned,)``.
    threshold
        The density.
    """
    if isinstance(problem, FD):
        local = _size_on_grid(problem, values, threshold)
    else:
        assert isinstance(problem, FEM)
        local = _size_on_mesh(problem, values, threshold)
    return float(problem.comm.allreduce(local))


def _size_on_grid(problem: FD, values: Array, threshold: float) -> float:
    layout, d = problem.layout, problem.dim
    state = problem.new_state()
    problem.load(values, state)
    u = state[..., 0]
    inside = problem.inside(np.arange(u.size)).reshape(u.shape)
    inner, squares = layout.inner, np.zeros(layout.flat_shape)
    for axis in range(d):
        along = d - 1 - axis
        change, count = np.zeros(layout.flat_shape), np.zeros(layout.flat_shape)
        for step in (-1, 1):
            near = tuple(slice(1 + step * (a == along), u.shape[a] - 1 + step * (a == along)) for a in range(d))
            there = inside[near]
            change += np.where(there, step * (u[near] - u[inner]), 0.0)
            count += there
        squares += (change / np.maximum(count, 1)) ** 2
    across = np.maximum(np.sqrt(squares), 1e-12)  # h |grad u|
    share = np.clip(0.5 + (u[inner] - threshold) / across, 0, 1)
    return float(problem.volumes @ share.ravel())


def _size_on_mesh(problem: FEM, values: Array, threshold: float) -> float:
    u, mesh = problem.function(values), problem.mesh
    if problem.space.ufl_element().degree > 1:
        linear = new_function(dolfinx.fem.functionspace(mesh, ("Lagrange", 1)))
        linear.interpolate(u)
        u = linear
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    corners = u.x.array[u.function_space.dofmap.list[:owned]]
    x = mesh.geometry.x[mesh.geometry.dofmaps[0][:owned], : problem.dim]
    measures = np.abs(np.linalg.det(x[:, 1:] - x[:, :1])) / (2 if problem.dim == 2 else 6)
    return float(measures @ _share_above(np.sort(corners, axis=1), threshold))


def _share_above(v: Array, threshold: float) -> Array:
    """Share of each simplex where the linear function with ascending vertex values ``v`` exceeds a threshold.

    Triangles: similar triangles cut off at one corner. Tetrahedra: Bloechl, Jepsen and Andersen 1994, Phys. Rev. B 49,
    appendix A.
    """
    t, n = np.full(len(v), threshold), v.shape[1]

    def gap(i: int, j: int) -> Array:
        return np.maximum(v[:, i] - v[:, j], 1e-300)

    # Vertices below the threshold tell the case. A gap that a case divides by holds the threshold, or is not empty.
    below = np.sum(v <= threshold, axis=1)
    low, high = np.ones(len(v)), np.ones(len(v))
    for k in range(1, n):
        low *= np.clip((t - v[:, 0]) / gap(k, 0), 0, 1)
        high *= np.clip((v[:, -1] - t) / gap(n - 1, n - 1 - k), 0, 1)
    share = np.where(below == 1, 1 - low, np.where(below == n - 1, high, np.where(below == 0, 1.0, 0.0)))
    if n == 4:
        two = below == 2
        v, e = v[two], threshold - v[two, 1]
        v21, v31, v32, v42 = (v[:, i] - v[:, j] for i, j in ((1, 0), (2, 0), (2, 1), (3, 1)))
        cubic = e**3 * (v31 + v42) / (v32 * v42)
        share[two] = 1 - (v21**2 + 3 * v21 * e + 3 * e**2 - cubic) / (v31 * (v[:, 3] - v[:, 0]))
    return share


@dataclass(frozen=True)
class Growth:
    """A run: its solution at the observed times, and the size of the tumour there.

    Attributes
    ----------
    solution
        What :func:`npde_fem.solve` returned.
    sizes
        Size of the tumour above each threshold, mm^2 or mm^3, shape ``(len(times),)``.
    """

    solution: Solution
    sizes: dict[float, Array]

    @property
    def problem(self) -> Semidiscrete:
        """The problem solved."""
        return self.solution.problem

    @property
    def times(self) -> list[float]:
        """The observed times in days."""
        return self.solution.times

    def state(self, time: float) -> Array:
        """Return this rank's values at one of the observed times."""
        return self.solution.states[self.times.index(time)]


def simulate(
    problem: Semidiscrete,
    u0: Any,
    times: Sequence[float],
    dt: float = DT,
    scheme: Scheme | Newmark | None = None,
    callback: Callable[[float, Any], None] | None = None,
    thresholds: Sequence[float] = (T1GD, T2),
) -> Growth:
    """Let a tumour grow and measure it (collective).

    Parameters
    ----------
    problem
        From :func:`glioma_fd` or :func:`glioma_fem`.
    u0
        Initial state, such as :func:`seed` gives.
    times
        Times in days at which to keep the state; the first is that of ``u0``, the last one the end.
    dt, scheme
        As for :func:`npde_fem.solve`; Crank-Nicolson by default.
    callback
        Called as ``callback(t, u)`` at the times, to write files for example.
    thresholds
        Densities above which to measure the tumour.
    """
    if len(times) < 2:
        raise ValueError(f"times must be two at least, the first and the last, not {list(times)!r}")
    observe = list(times) if callback is None else (list(times), callback)
    solution = solve(problem, u0, (times[0], times[-1]), dt, scheme or CrankNicolson(), observe, rescue=None)
    sizes = {
        threshold: np.array([tumour_size(problem, values, threshold) for values in solution.states])
        for threshold in thresholds
    }
    return Growth(solution, sizes)


class Sampler:
    """Values of finite-element functions at points that all ranks name alike.

    Parameters
    ----------
    problem
        The FEM problem, of one component.
    points
        Coordinates, shape (n, dim), the same on every rank (collective).
    """

    def __init__(self, problem: FEM, points: Array) -> None:
        self._problem, self._count = problem, len(points)
        x = np.zeros((len(points), 3))
        x[:, : problem.dim] = points
        mesh = problem.mesh
        tree = dolfinx.geometry.bb_tree(mesh, mesh.topology.dim, padding=1e-10)
        near = dolfinx.geometry.compute_collisions_points(tree, x)
        hits = dolfinx.geometry.compute_colliding_cells(mesh, near, x)
        self._found = np.flatnonzero(np.diff(hits.offsets))
        self._cells, self._x = hits.array[hits.offsets[self._found]], x[self._found]

    def __call__(self, values: Array) -> Array:
        """Return the values at the points, shape (n,), NaN outside the mesh, the same on every rank (collective)."""
        everywhere = np.full(self._count, -np.inf)
        if self._found.size:
            everywhere[self._found] = self._problem.function(values).eval(self._x, self._cells).ravel()
        self._problem.comm.Allreduce(MPI.IN_PLACE, everywhere, op=MPI.MAX)
        return np.where(np.isfinite(everywhere), everywhere, np.nan)


def _centres(tissue: Brain) -> Array:
    """Centres of the mask's voxels in mm, shape (n, dim)."""
    return tissue.lower + tissue.spacing * np.argwhere(tissue.mask)


@dataclass(frozen=True)
class Difference:
    """How much FD and FEM differ at one resolution.

    Attributes
    ----------
    spacing, size
        Voxel edge of FD and edge length of FEM in mm.
    unknowns
        Of FD and FEM.
    seconds
        Time of the two solves, s.
    relative
        ``||u_FD - u_FEM|| / ||u_FD||`` at the last time, L2 over the voxels whose centre lies in the mesh.
    sizes
        Size of the tumour at the last time by FD and FEM, by threshold.
    """

    spacing: float
    size: float
    unknowns: tuple[int, int]
    seconds: tuple[float, float]
    relative: float
    sizes: dict[float, tuple[float, float]]

    def in_size(self, threshold: float) -> float:
        """Relative difference ``|FEM - FD| / FD`` of the tumour's size; NaN if FD shows no tumour."""
        by_fd, by_fem = self.sizes[threshold]
        return abs(by_fem - by_fd) / by_fd if by_fd > 0 else float("nan")


def difference(tissue: Brain, fd: Growth, fem: Growth, size: float) -> Difference:
    """Compare two runs in one anatomy at their last time (collective); ``size`` is that of the FEM mesh."""
    problem = fem.problem
    assert isinstance(problem, FEM)
    sampled = Sampler(problem, _centres(tissue))(fem.solution.values)
    whole = fd.solution.u.gather()
    relative = None
    if whole is not None:
        on_voxels = whole[tissue.mask]
        common = np.isfinite(sampled)
        error = np.linalg.norm((on_voxels - sampled)[common])
        relative = float(error / np.linalg.norm(on_voxels[common]))
    return Difference(
        spacing=float(tissue.spacing[0]),
        size=size,
        unknowns=(fd.problem.unknowns, problem.unknowns),
        seconds=(fd.solution.seconds, fem.solution.seconds),
        relative=problem.comm.bcast(relative, root=0),
        sizes={k: (float(fd.sizes[k][-1]), float(fem.sizes[k][-1])) for k in fd.sizes},
    )


def compare_resolutions(
    comm: MPI.Comm,
    dim: int = 2,
    spacings: Sequence[int] = (4, 2, 1),
    slice_mm: float | None = None,
    days: float = DAYS,
    dt: float = DT,
    degree: int = 1,
    centre: Sequence[float] | None = None,
) -> list[Difference]:
    """Run both methods at equal voxel and element size, finer and finer (collective).

    Parameters
    ----------
    comm
        Communicator.
    dim, slice_mm
        Slice or volume, as for :func:`anatomy`.
    spacings
        Voxel and element sizes in whole mm.
    days, dt
        Length of each run and its step.
    degree
        Degree of the elements.
    centre
        Where the tumour begins, as for :func:`seed`.

    Returns
    -------
    list of Difference
        One for each spacing, in their order.
    """
    found = []
    for spacing in spacings:
        tissue = anatomy(dim, spacing, slice_mm, comm)
        u0 = seed(tissue, centre)
        fd = simulate(glioma_fd(comm, tissue), u0, (0.0, days), dt)
        fem = simulate(glioma_fem(comm, tissue, float(spacing), degree), u0, (0.0, days), dt)
        found.append(difference(tissue, fd, fem, float(spacing)))
    return found
