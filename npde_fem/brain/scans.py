"""Images of a tumour's density at some times, and their reading from files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npde_fem.brain.model import D_WHITE, RATE
from npde_fem.datasets import Brain, DataUnavailable
from npde_fem.parallel import on_root

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

__all__ = ["HIDDEN", "NOISE", "SCAN_DAYS", "Scans", "Tumour", "checked_noise", "checked_times", "in_mask", "read_scans"]

Array = npt.NDArray[np.float64]

NOISE = 0.05
"""Default standard deviation of an image's noise, in densities: a twentieth of the carrying capacity."""

SCAN_DAYS = (120.0, 240.0)
"""Default times of two images, in days since the seed."""


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


def checked_times(times: Sequence[float]) -> tuple[float, ...]:
    """Return the times of images as a tuple, or raise ValueError if they do not increase from above 0."""
    checked = tuple(float(t) for t in times)
    if not checked or not np.all(np.isfinite(checked)) or checked[0] <= 0 or np.any(np.diff(checked) <= 0):
        raise ValueError(f"times must be positive numbers (days since the seed) that increase, not {list(times)!r}")
    return checked


def checked_noise(noise: float) -> float:
    """Return the noise of images, or raise ValueError if it is not positive."""
    if not (np.isfinite(noise) and noise > 0):
        raise ValueError(f"noise must be a positive number (a density), not {noise!r}")
    return float(noise)


def in_mask(tissue: Brain, points: Array) -> npt.NDArray[np.bool_]:
    """Return which points, shape (n, dim), lie in the voxels of the anatomy's mask."""
    voxel = np.rint((points - tissue.lower) / tissue.spacing).astype(np.int64)
    inside = np.all((voxel >= 0) & (voxel < tissue.mask.shape), axis=1)
    inside[inside] = tissue.mask[tuple(voxel[inside].T)]
    return inside


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
    times, noise = checked_times(times), checked_noise(noise)
    if len(paths) != len(times):
        raise ValueError(f"times: {len(times)} given for {len(paths)} image(s); one each is needed")

    def read() -> Scans:
        images = [_read_image(Path(path), tissue) for path in paths]
        values, lower, spacing = images[0]
        for path, other in zip(paths[1:], images[1:], strict=True):
            if other[0].shape != values.shape or not np.allclose([*other[1:]], [lower, spacing]):
                raise ValueError(f"{path}: its grid differs from that of {paths[0]}; resample one to the other")
        index = np.argwhere(np.ones(values.shape, dtype=bool))
        index = index[in_mask(tissue, lower + spacing * index)]
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
