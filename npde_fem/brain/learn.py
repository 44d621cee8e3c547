"""Where a tumour began, how it spreads and how it grows, learnt from images of its density.

With ``u`` as in :func:`~npde_fem.brain.glioma_equation`, ``D_grey`` a fixed share of ``D_white``, and

    u(x, 0) = PEAK exp(-|x - seed|^2 / (2 WIDTH^2)),

the seed (one number a dimension), ``D_white`` and the rate ``r`` are those that minimise

    J = 1/2 sum_k sum_i (u(x_i, t_k) - d_ki)^2 / noise^2

over the images' voxel centres ``x_i`` and times ``t_k``. The gradient comes from the adjoint equation, the standard
errors from the Hessian of J.

Times count from the seed, and are taken as known. One image cannot tell them: if ``u(x, t)`` solves the equation with
(D, r), then ``u(x, c t)`` solves it with (c D, c r), so one image tells ``D t`` and ``r t``, and with the time known
everything. Two images tell ``D`` and ``r`` by the change between them as well. They could tell the time since the seed
only as far as the seed's width and peak are known, which are conventions: an older and narrower seed looks the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from npde_fem import physics
from npde_fem.brain.measure import DT, Sampler
from npde_fem.brain.model import D_GREY, D_WHITE, RATE, glioma_fd, glioma_fem, seed
from npde_fem.datasets import Brain, DataUnavailable
from npde_fem.discretize import FEM, Semidiscrete
from npde_fem.discretize.probe import Probe
from npde_fem.equation import Initial, Parameter
from npde_fem.optimize import misfit, solve
from npde_fem.optimize.problem import PDEConstrainedProblem
from npde_fem.parallel import on_root

import numpy as np
import numpy.typing as npt
import ufl
from mpi4py import MPI

__all__ = [
    "HIDDEN",
    "NOISE",
    "SCAN_DAYS",
    "Fit",
    "Scans",
    "Tumour",
    "fit_tumour",
    "read_scans",
    "synthetic_scans",
    "table_of_fits",
    "write_fits",
]

Array = npt.NDArray[np.float64]

NOISE = 0.05
"""Default standard deviation of an image's noise, in densities: a twentieth of the carrying capacity."""

SCAN_DAYS = (120.0, 240.0)
"""Default times of two images, in days since the seed."""

WIDTH, PEAK = 4.0, 0.5
"""The seed's standard deviation in mm and its largest density, those of :func:`npde_fem.brain.seed`."""

WHITE_BOUNDS, RATE_BOUNDS = (0.01, 10.0), (1e-4, 0.1)
"""Where ``D_white`` (mm^2/day) and ``r`` (1/day) are looked for. At the largest rate a tumour doubles in a
week; beyond, the linear systems of long steps are not definite."""

REACH = 20.0
"""Typical distance in mm that a seed is looked for over. Its coordinates count from so far off the first guess, as an
optimiser takes the size of a number for that of its changes."""


@dataclass(frozen=True)
class Tumour:
    """What is learnt of a tumour, or the standard errors of that.

    Attributes
    ----------
    seed
        Where it began, in mm, one number a dimension.
    white
        Diffusivity in white matter, mm^2/day.
    rate
        Net rate of proliferation, 1/day.
    """

    seed: tuple[float, ...]
    white: float = D_WHITE
    rate: float = RATE

    @property
    def numbers(self) -> Array:
        """All numbers: the seed's coordinates, ``white``, ``rate``."""
        return np.array([*self.seed, self.white, self.rate])


HIDDEN = Tumour((29.0, -10.0, 24.0), white=0.45, rate=0.018)
"""The tumour of synthetic images, by default; in a slice without its third coordinate."""


@dataclass(frozen=True, eq=False)
class Scans:
    """Images of one tumour's density at some times, on one grid of voxels; the same on every rank.

    Attributes
    ----------
    times
        Days since the seed, increasing.
    lower, spacing, shape
        Centre of the first voxel and voxel edges in mm, and the number of voxels, along each axis.
    index
        Which voxels have values: those in the tissue; integers of shape (n, dim).
    density
        Their values, shape (times, n).
    noise
        Standard deviation of the values.
    hidden
        The tumour they were made of; None for measured images.
    """

    times: tuple[float, ...]
    lower: Array
    spacing: Array
    shape: tuple[int, ...]
    index: npt.NDArray[np.int64]
    density: Array
    noise: float
    hidden: Tumour | None = None

    @property
    def points(self) -> Array:
        """Centres of the voxels in mm, shape (n, dim)."""
        return self.lower + self.spacing * self.index

    def image(self, values: Array) -> Array:
        """Return values at the voxels, shape (n,), as an image of shape :attr:`shape`, NaN elsewhere."""
        whole = np.full(self.shape, np.nan)
        whole[tuple(self.index.T)] = values
        return whole

    def centre(self) -> tuple[float, ...]:
        """Return the centre of mass, in mm, of where the first image shows at least half of its largest density."""
        first = self.density[0]
        weights = np.where(first >= 0.5 * first.max(), first, 0.0)
        return tuple((weights @ self.points / weights.sum()).tolist())


@dataclass(frozen=True, eq=False)
class Fit:
    """A tumour learnt from images.

    Attributes
    ----------
    method
        ``"fem"`` or ``"fd"``.
    scans
        The images.
    tumour, errors
        The estimates and their standard errors (NaN where the images do not determine them).
    density
        The fitted densities at the images' voxels, shape (times, n), NaN outside of the discretised domain.
    loss, iterations, reason
        Where the minimisation ended, after how many iterations, and why.
    unknowns
        Of one state.
    seconds
        Wall time, the discretisation included.
    """

    method: str
    scans: Scans
    tumour: Tumour
    errors: Tumour
    density: Array
    loss: float
    iterations: int
    reason: str
    unknowns: int
    seconds: float

    @property
    def residual(self) -> float:
        """Root mean square of the residuals; where the model is right about the noise."""
        return float(np.sqrt(np.nanmean((self.density - self.scans.density) ** 2)))

    def deviations(self) -> Array | None:
        """Return how many standard errors each number is from the hidden one, signed; None for measured images."""
        hidden = self.scans.hidden
        return None if hidden is None else (self.tumour.numbers - hidden.numbers) / self.errors.numbers

    def as_json(self) -> dict[str, Any]:
        """Return the numbers as a dictionary that JSON can hold; standard errors that are NaN are None."""
        hidden = self.scans.hidden
        parameters: dict[str, dict[str, Any]] = {}
        for name, attribute, unit in (("seed", "seed", "mm"), ("D_white", "white", "mm^2/day"), ("r", "rate", "1/day")):
            error = getattr(self.errors, attribute)
            entry = {
                "value": getattr(self.tumour, attribute),
                "stderr": error if np.all(np.isfinite(error)) else None,
                "unit": unit,
            }
            parameters[name] = entry if hidden is None else entry | {"hidden": getattr(hidden, attribute)}
        return {
            "method": self.method,
            "dim": len(self.tumour.seed),
            "parameters": parameters,
            "times": list(self.scans.times),
            "noise": self.scans.noise,
            "residual": self.residual,
            "voxels": int(np.isfinite(self.density[0]).sum()),
            "unknowns": self.unknowns,
            "loss": self.loss,
            "iterations": self.iterations,
            "reason": self.reason,
            "seconds": self.seconds,
        }


class _Model(NamedTuple):
    """A discretised tumour whose numbers are parameters; the seed's coordinates count from an origin."""

    problem: Semidiscrete
    u0: Initial
    origin: Array
    seed: Parameter
    white: Parameter
    rate: Parameter


def _model(comm: MPI.Comm, method: str, tissue: Brain, size: float, tumour: Tumour) -> _Model:
    """Discretise a tumour (collective)."""
    origin = np.array(tumour.seed) - REACH
    place = Parameter("seed", np.array(tumour.seed) - origin)
    white = Parameter("D_white", tumour.white, bounds=WHITE_BOUNDS)
    rate = Parameter("r", tumour.rate, bounds=RATE_BOUNDS)
    white_map, grey_map = (
        Parameter(name, tissue.interpolate(values), field=True, bounds=(0, None))
        for name, values in (("white_matter", tissue.white), ("grey_matter", tissue.grey))
    )
    equation = physics.glioma(white, white * (D_GREY / D_WHITE), white_map, grey_map, rate)

    def begin(x: Any) -> Any:
        squares = sum((x[a] - origin[a] - place[a]) ** 2 for a in range(tissue.dim))
        return PEAK * ufl.exp(-squares / (2 * WIDTH**2))

    problem: Semidiscrete
    if method == "fd":
        problem = glioma_fd(comm, tissue, equation)
    else:
        problem = glioma_fem(comm, tissue, size, equation=equation)
    return _Model(problem, Initial(begin), origin, place, white, rate)


def _checked_times(times: Sequence[float]) -> tuple[float, ...]:
    checked = tuple(float(t) for t in times)
    if not checked or not np.all(np.isfinite(checked)) or checked[0] <= 0 or np.any(np.diff(checked) <= 0):
        raise ValueError(f"times must be positive numbers (days since the seed) that increase, not {list(times)!r}")
    return checked


def _checked_noise(noise: float) -> float:
    if not (np.isfinite(noise) and noise > 0):
        raise ValueError(f"noise must be a positive number (a density), not {noise!r}")
    return float(noise)


def _in_mask(tissue: Brain, points: Array) -> npt.NDArray[np.bool_]:
    """Which points lie in the anatomy's voxels."""
    voxel = np.rint((points - tissue.lower) / tissue.spacing).astype(np.int64)
    inside = np.all((voxel >= 0) & (voxel < tissue.mask.shape), axis=1)
    inside[inside] = tissue.mask[tuple(voxel[inside].T)]
    return inside


def synthetic_scans(
    tissue: Brain,
    times: Sequence[float] = SCAN_DAYS,
    hidden: Tumour | None = None,
    noise: float = NOISE,
    rng_seed: int = 0,
    voxel: float = 4.0,
    size: float | None = None,
    dt: float = DT / 2,
    comm: MPI.Comm = MPI.COMM_WORLD,
) -> Scans:
    """Make noisy images of a hidden tumour by a solve of its own (collective).

    The solve is by finite elements on a mesh, and with a step, finer than those of a fit; its values at the voxels'
    centres get independent Gaussian noise.

    Parameters
    ----------
    tissue
        The anatomy.
    times
        Days since the seed.
    hidden
        The tumour; by default :data:`HIDDEN`.
    noise
        Standard deviation of the noise, in densities.
    rng_seed
        Seed of the random numbers.
    voxel
        Voxel edge of the images in mm.
    size, dt
        Element size in mm and step in days of the solve; by default the anatomy's voxel in a slice, 1.5 voxels in a
        volume.
    comm
        Communicator.

    Raises
    ------
    ValueError
        If the hidden seed lies outside the tissue, or an argument is none of those allowed.
    """
    times, noise = _checked_times(times), _checked_noise(noise)
    if hidden is None:
        hidden = replace(HIDDEN, seed=HIDDEN.seed[: tissue.dim])
    seed(tissue, hidden.seed, WIDTH, PEAK)  # for its look at the place
    if not (np.isfinite(voxel) and voxel > 0):
        raise ValueError(f"voxel must be a positive number (mm), not {voxel!r}")
    if size is None:
        size = float(tissue.spacing[0]) * (1.0 if tissue.dim == 2 else 1.5)
    problem, u0, *_ = _model(comm, "fem", tissue, size, hidden)
    assert isinstance(problem, FEM)
    solution = solve(problem, u0, (0.0, times[-1]), dt, observe=times, rescue=None)
    lower = tissue.lower + 0.5 * (voxel - tissue.spacing)
    shape = tuple(int(n) for n in np.ceil(tissue.spacing * tissue.mask.shape / voxel))
    index = np.argwhere(np.ones(shape, dtype=bool))
    sampler = Sampler(problem, lower + voxel * index)
    clean = np.array([sampler(values) for values in solution.states])
    inside = np.isfinite(clean[0])
    density = clean[:, inside]
    density += noise * np.random.default_rng(rng_seed).standard_normal(density.shape)
    return Scans(times, lower, np.full(tissue.dim, voxel), shape, index[inside], density, noise, hidden)


def read_scans(
    paths: Sequence[str | os.PathLike[str]],
    times: Sequence[float],
    tissue: Brain,
    noise: float = NOISE,
    comm: MPI.Comm = MPI.COMM_WORLD,
) -> Scans:
    """Read images of a tumour's density from NIfTI files (collective; rank 0 reads).

    Parameters
    ----------
    paths
        One file a time, all on one grid in millimetres of MNI space, whose axes are those of space. A volume, or for
        the anatomy of a slice also that slice alone; of a volume the slice nearest to the anatomy's is taken. Values
        are densities over carrying capacity, in the tissue finite and from 0 to 1 but for noise.
    times
        Days since the seed.
    tissue
        The anatomy; voxels outside its mask are ignored.
    noise
        Standard deviation of the values. It weighs the fit only; standard errors come from the residuals.
    comm
        Communicator.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If there is not one time a file, a file is no such image, grids differ or miss the tissue, or values in the
        tissue are not finite, no such densities, or nowhere positive.
    DataUnavailable
        If the package nibabel, which reads NIfTI, is not installed.
    """
    times, noise = _checked_times(times), _checked_noise(noise)
    if len(paths) != len(times):
        raise ValueError(f"times: {len(times)} given for {len(paths)} image(s); one each is needed")

    def read() -> Scans:
        images = [_read_image(Path(path), tissue) for path in paths]
        values, lower, spacing = images[0]
        for path, other in zip(paths[1:], images[1:], strict=True):
            if other[0].shape != values.shape or not np.allclose([*other[1:]], [lower, spacing]):
                raise ValueError(f"{path}: its grid differs from that of {paths[0]}; resample one to the other")
        index = np.argwhere(np.ones(values.shape, dtype=bool))
        index = index[_in_mask(tissue, lower + spacing * index)]
        if not len(index):
            upper = lower + spacing * (np.array(values.shape) - 1)
            raise ValueError(
                f"{paths[0]}: no voxel lies in the tissue; the image reaches from {lower.tolist()} to {upper.tolist()} "
                f"mm, the anatomy from {tissue.lower.tolist()} to {tissue.upper.tolist()} mm"
            )
        density = np.array([image[tuple(index.T)] for image, *_ in images])
        for path, found in zip(paths, density, strict=True):
            if not np.all(np.isfinite(found)):
                raise ValueError(f"{path}: {np.sum(~np.isfinite(found))} values in the tissue are not finite")
            if found.max() <= 0 or found.min() < -1 or found.max() > 2:
                raise ValueError(
                    f"{path}: values in the tissue from {found.min():g} to {found.max():g}; densities over carrying "
                    "capacity needed, from 0 to 1 but for noise, and somewhere positive"
                )
        return Scans(times, lower, spacing, values.shape, index, density, noise)

    return on_root(comm, read)


def _read_image(path: Path, tissue: Brain) -> tuple[Array, Array, Array]:
    """Values of an image in the anatomy's dimension, the centre of its first voxel, and its voxel edges."""
    try:
        import nibabel
    except ModuleNotFoundError:
        raise DataUnavailable("reading NIfTI needs the package nibabel: pip install 'npde-fem[demo]'") from None
    if not path.is_file():
        raise FileNotFoundError(f"there is no image {path}")
    try:
        image: Any = nibabel.load(path)
        values = np.asarray(image.dataobj, dtype=np.float64)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, TypeError) as error:
        raise ValueError(f"{path}: no NIfTI image of numbers: {error}") from None
    shape = values.shape
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise ValueError(f"{path}: an image of one time, 2D or 3D, needed; this one has the shape {shape}")
    upright = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, image.affine))
    values, affine = np.asarray(upright.dataobj), upright.affine
    spacing, lower = np.diag(affine)[:3].copy(), affine[:3, 3].copy()
    if not np.allclose(affine[:3, :3], np.diag(spacing), atol=1e-4 * spacing.max()):
        raise ValueError(f"{path}: its axes are not those of space; resample it, its affine is {affine.tolist()}")
    if tissue.dim == 3:
        if min(values.shape) < 2:
            raise ValueError(f"{path}: a volume needed, this is a slice of shape {values.shape}")
        return values, lower, spacing
    assert tissue.slice_mm is not None
    k = round((tissue.slice_mm - lower[2]) / spacing[2])
    if not 0 <= k < values.shape[2]:
        upper = lower[2] + spacing[2] * (values.shape[2] - 1)
        raise ValueError(
            f"{path}: it reaches from z = {lower[2]:g} to {upper:g} mm and has no slice at {tissue.slice_mm:g} mm"
        )
    return values[:, :, k], lower[:2], spacing[:2]


def fit_tumour(
    scans: Scans,
    method: str,
    tissue: Brain,
    size: float | None = None,
    dt: float = DT,
    start: Tumour | None = None,
    comm: MPI.Comm = MPI.COMM_WORLD,
    progress: bool = True,
) -> Fit:
    """Learn a tumour's seed, diffusivity and rate from images of it (collective).

    Parameters
    ----------
    scans
        The images.
    method
        ``"fem"`` or ``"fd"``.
    tissue
        The anatomy; FD takes its voxels as grid.
    size
        Element size of FEM in mm, by default twice the anatomy's voxel.
    dt
        Step in days.
    start
        First guess; by default the centre of the first image's mass, and textbook values.
    comm
        Communicator.
    progress
        Whether to draw a progress line (on a terminal).

    Returns
    -------
    Fit
        Standard errors are those that the noise makes: of known size for synthetic images, for measured ones of the
        residuals' size. Errors of the discretisation and the model are not in them.

    Raises
    ------
    ValueError
        If the method is neither, dimensions differ, or no voxel lies in the discretised domain.
    SolveError
        If the first solve fails.
    """
    begun = time.perf_counter()
    if method not in ("fem", "fd"):
        raise ValueError(f"method must be 'fem' or 'fd', not {method!r}")
    if len(scans.shape) != tissue.dim:
        raise ValueError(f"images in {len(scans.shape)}D given for an anatomy in {tissue.dim}D")
    size = 2.0 * float(tissue.spacing[0]) if size is None else float(size)
    model = _model(comm, method, tissue, size, start or Tumour(scans.centre()))
    problem = model.problem
    # The smoothed outline of a mesh, or a coarser grid, leaves out a few voxels at the surface.
    if isinstance(problem, FEM):
        covered = np.isfinite(Sampler(problem, scans.points)(np.zeros(problem.n_owned)))
    else:
        covered = _in_mask(tissue, scans.points)
    if not covered.any():
        raise ValueError("images: no voxel lies in the discretised tissue")
    points, data = scans.points[covered], scans.density[:, covered]
    arguments: dict[str, Any] = {"u0": model.u0, "t": (0.0, scans.times[-1]), "dt": dt, "observe": scans.times}
    arguments |= {"rescue": None, "progress": False}
    inverse = PDEConstrainedProblem(
        problem,
        lambda solution: misfit(solution, data, at=points, sigma=scans.noise),
        [model.seed, model.white, model.rate],
        **arguments,
    )
    # Its first step is no longer than the numbers' typical sizes. TAO's is, as the noise has a share in the loss, and
    # leads to tumours that cannot be computed.
    found = inverse.minimize(
        "scipy-lbfgsb",
        bounds={"seed": (tissue.lower - model.origin, tissue.upper - model.origin)},
        gtol=1e-5,
        progress=progress,
    )
    errors = inverse.standard_errors(residuals=None if scans.hidden else data.size)
    probe = Probe(problem, points)
    density = np.full(scans.density.shape, np.nan)
    for k, values in enumerate(solve(problem, **arguments).states):
        density[k, covered] = probe.apply(values)[:, 0]

    return Fit(
        method=method,
        scans=scans,
        tumour=Tumour(
            tuple((model.origin + found.values["seed"]).tolist()), found.values["D_white"], found.values["r"]
        ),
        errors=Tumour(tuple(errors["seed"].tolist()), float(errors["D_white"]), float(errors["r"])),
        density=density,
        loss=found.loss,
        iterations=found.iterations,
        reason=found.reason,
        unknowns=problem.unknowns,
        seconds=time.perf_counter() - begun,
    )


def table_of_fits(fits: Sequence[Fit]) -> str:
    """Return as text what was learnt from the same images, by one method or several, with standard errors."""
    hidden = fits[0].scans.hidden
    names = [f"seed {axis}, mm" for axis in "xyz"[: len(fits[0].tumour.seed)]] + ["D_white, mm^2/day", "r, 1/day"]
    head = f"{'':<19}" + ("" if hidden is None else f"{'hidden':>9}")
    lines = [head + "".join(f"{fit.method.upper():>13}{'':<11}" for fit in fits).rstrip()]
    for k, name in enumerate(names):
        line = f"{name:<19}" + ("" if hidden is None else f"{hidden.numbers[k]:9g}")
        line += "".join(f"{f.tumour.numbers[k]:13.4g} +- {f.errors.numbers[k]:<7.2g}" for f in fits)
        lines.append(line.rstrip())
    for f in fits:
        values = int(np.isfinite(f.density).sum())
        lines.append(
            f"{f.method.upper()}: {f.unknowns} unknowns, {f.iterations} iterations in {f.seconds:.1f} s; residual "
            f"{f.residual:.4f} over {values} values, noise {f.scans.noise:g}"
        )
    return "\n".join(lines)


def write_fits(fits: Sequence[Fit], path: str | os.PathLike[str], comm: MPI.Comm) -> None:
    """Write :meth:`Fit.as_json` of one fit, or a list of several, whole or not at all (collective; rank 0 writes)."""

    def write() -> None:
        target = Path(path)
        aside = target.with_name(f".{target.name}.part")
        records = [fit.as_json() for fit in fits]
        aside.write_text(json.dumps(records[0] if len(records) == 1 else records, indent=2) + "\n")
        aside.replace(target)

    on_root(comm, write)
