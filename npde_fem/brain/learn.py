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
from npde_fem.brain.model import D_GREY, D_WHITE, glioma_fd, glioma_fem, seed
from npde_fem.brain.scans import HIDDEN, NOISE, SCAN_DAYS, Scans, Tumour, checked_noise, checked_times, in_mask
from npde_fem.datasets import Brain
from npde_fem.discretize import FEM, Semidiscrete
from npde_fem.discretize.probe import Probe
from npde_fem.equation import Initial
from npde_fem.optimize import misfit, solve
from npde_fem.optimize.problem import PDEConstrainedProblem
from npde_fem.parallel import on_root
from npde_fem.parameter import Parameter

import numpy as np
import numpy.typing as npt
import ufl
from mpi4py import MPI

__all__ = ["Fit", "fit_tumour", "synthetic_scans", "table_of_fits", "write_fits"]

Array = npt.NDArray[np.float64]

WIDTH, PEAK = 4.0, 0.5
"""The seed's standard deviation in mm and its largest density, those of :func:`npde_fem.brain.seed`."""

WHITE_BOUNDS, RATE_BOUNDS = (0.01, 10.0), (1e-4, 0.1)
"""Where ``D_white`` (mm^2/day) and ``r`` (1/day) are looked for. At the largest rate a tumour doubles in a
week; beyond, the linear systems of long steps are not definite."""

REACH = 20.0
"""Typical distance in mm that a seed is looked for over. Its coordinates count from so far off the first guess, as an
optimiser takes the size of a number for that of its changes."""


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
        """Root mean square of the residuals: near the noise, if the model is right."""
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
    times, noise = checked_times(times), checked_noise(noise)
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
        residuals' size. Errors of the discretisation and the model are not in them: under half of a standard error in a
        slice at 2 mm with noise of 5 %; but a volume at 4 mm has so many more voxels that D by FEM is five off.

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
        covered = in_mask(tissue, scans.points)
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
