"""Maps of human brain tissue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npde_fem.datasets.files import Array, DataUnavailable, frozen
from npde_fem.parallel import on_root

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Brain", "brain"]


@dataclass(frozen=True, eq=False)
class Brain:
    """Maps of brain tissue on a regular grid of voxels: an axial slice or the whole volume.

    Array index (i, j[, k]) is the voxel centred at ``lower + spacing * (i, j[, k])`` in millimetres of MNI
    space: x from left to right, y from back to front, z from foot to head.

    Attributes
    ----------
    white, grey
        Fraction of white and of grey matter in [0, 1], float64, shape (nx, ny[, nz]). Their sum is at most 1
        (+ 1e-7).
    mask
        The brain, bool, same shape; one face-connected piece, with one layer of voxels outside it on every
        side.
    template
        T1-weighted image in [0, 1], float32, same shape, for display.
    lower
        Centre of the first voxel in mm, shape (dim,).
    spacing
        Voxel edge in mm along each axis, shape (dim,).
    slice_mm
        z of the slice in mm; None for the volume.

    Notes
    -----
    Arrays are read-only. The mask is the T1 image's brain (intensity above 0.2), which takes in the
    ventricles: they are not holes of the mask, but voxels where ``white + grey`` is nearly 0, where a
    diffusivity built from the maps all but vanishes. ``mask & (white + grey > 0.5)`` leaves them out.

    References
    ----------
    Fonov, Evans, McKinstry, Almli, Collins (2009), Unbiased nonlinear average age-appropriate brain templates
    from birth to adulthood, NeuroImage 47, S102 (ICBM 2009a nonlinear symmetric), as carried by the package
    nilearn.
    """

    white: Array
    grey: Array
    mask: npt.NDArray[np.bool_]
    template: npt.NDArray[np.float32]
    lower: Array
    spacing: Array
    slice_mm: float | None = None

    @property
    def dim(self) -> int:
        """2 for a slice, 3 for the volume."""
        return self.mask.ndim

    @property
    def upper(self) -> Array:
        """Centre of the last voxel in mm, shape (dim,)."""
        return self.lower + self.spacing * (np.array(self.mask.shape) - 1)

    @property
    def axes(self) -> tuple[Array, ...]:
        """Coordinates of the voxel centres in mm along each axis: ``dim`` arrays."""
        return tuple(
            low + step * np.arange(n) for low, step, n in zip(self.lower, self.spacing, self.mask.shape, strict=True)
        )

    def interpolate(self, values: npt.ArrayLike, extend: bool = True) -> Callable[[npt.ArrayLike], Array]:
        """Continuous function through voxel values, to put a map onto a finite-element mesh.

        Linear in each coordinate between voxel centres; a point beyond the grid takes the value of the
        nearest point on its edge. The function is finite everywhere.

        Parameters
        ----------
        values
            Numbers at the voxels, shape of ``mask``; finite inside the mask, and everywhere unless
            ``extend``.
        extend
            First give each voxel outside the mask the value of the nearest voxel inside it. So a mesh whose
            smoothed outline reaches past the mask sees tissue up to its edge, not a fade to nothing.

        Returns
        -------
        callable
            ``f(x)`` with x of shape (n_coordinates >= dim, n) in mm (rows beyond ``dim`` are ignored: DOLFINx
            hands over three), giving float64 of shape (n,). It equals ``values`` at the centres of the mask's
            voxels.

        Raises
        ------
        ValueError
            ``values`` has another shape or is not finite; later, x has fewer rows than ``dim``.
        """
        from scipy import ndimage

        data = np.array(values, dtype=np.float64)
        if data.shape != self.mask.shape:
            raise ValueError(f"values must have the shape {self.mask.shape} of the mask, not {data.shape}")
        if extend:
            nearest = ndimage.distance_transform_edt(~self.mask, return_distances=False, return_indices=True)
            data = data[tuple(nearest)]
        if not np.isfinite(data).all():
            raise ValueError("values must be finite" + (" inside the mask" if extend else ""))
        lower, spacing, dim = self.lower[:, None], self.spacing[:, None], self.dim

        def at(x: npt.ArrayLike) -> Array:
            points = np.asarray(x, dtype=np.float64)
            if points.ndim != 2 or len(points) < dim:
                raise ValueError(f"x must have the shape (n_coordinates >= {dim}, n), not {points.shape}")
            return ndimage.map_coordinates(data, (points[:dim] - lower) / spacing, order=1, mode="nearest")

        return at


def brain(
    dim: int = 2, spacing: int | None = None, slice_mm: float | None = None, comm: MPI.Comm | None = None
) -> Brain:
    """White and grey matter of an average human brain, the ICBM 2009a symmetric template.

    Parameters
    ----------
    dim
        2: an axial slice, 1 mm thick. 3: the whole volume.
    spacing
        Voxel edge in whole mm; by default 1 for the slice, 2 for the volume. Maps are means over blocks of
        the 1 mm voxels; a block belongs to the mask if at least half of it does.
    slice_mm
        z of the slice in mm of MNI space, rounded to whole mm; by default 24, where the lateral deep white
        matter is wide and the bodies of the lateral ventricles show. For ``dim=2`` only.
    comm
        Communicator whose rank 0 loads and hands out (collective call); None loads on the caller. Either way
        every caller holds the whole maps (1 mm volume: about 200 MB, 2 mm: 25 MB, slice: 1 MB).

    Returns
    -------
    Brain
        The maps, cropped to the mask and one voxel around it; the same on every rank.

    Raises
    ------
    ValueError
        An argument is none of those allowed, or the slice misses the brain.
    DataUnavailable
        The package nilearn, which carries the maps, is not installed.

    Notes
    -----
    Takes 2 to 4 s, most of it nilearn's import. No network is used.
    """
    if dim not in (2, 3):
        raise ValueError(f"dim must be 2 (slice) or 3 (volume), not {dim!r}")
    if spacing is None:
        spacing = 1 if dim == 2 else 2
    if not 1 <= spacing <= 20 or spacing != int(spacing):
        raise ValueError(f"spacing must be whole millimetres from 1 to 20, not {spacing!r}")
    if slice_mm is not None and dim == 3:
        raise ValueError(f"slice_mm is for dim=2 only, given was {slice_mm!r} with dim=3")
    if slice_mm is not None and not np.isfinite(slice_mm):
        raise ValueError(f"slice_mm must be finite, not {slice_mm!r}")
    height = 24.0 if slice_mm is None else float(slice_mm)
    edge = int(spacing)
    return on_root(comm, lambda: _brain(dim, edge, height))


def _brain(dim: int, edge: int, height: float) -> Brain:
    try:
        from nilearn import datasets
    except ModuleNotFoundError as error:
        if error.name != "nilearn":
            raise
        raise DataUnavailable(
            "the brain maps come with the package nilearn: pip install 'npde-fem[demo]' (or nilearn)"
        ) from None

    template, origin = _canonical(datasets.load_mni152_template(resolution=1))
    white, _ = _canonical(datasets.load_mni152_wm_template(resolution=1))
    grey, _ = _canonical(datasets.load_mni152_gm_template(resolution=1))
    inside, _ = _canonical(datasets.load_mni152_brain_mask(resolution=1))
    maps = [white, grey, inside, template]

    if dim == 2:
        k = round(height - origin[2])
        present = np.flatnonzero(inside.any(axis=(0, 1)))
        if not present[0] <= k <= present[-1]:
            low, high = present[[0, -1]] + origin[2]
            raise ValueError(f"slice_mm must be from {low:g} to {high:g}, where the brain is, not {height:g}")
        height = k + origin[2]
        maps = [image[:, :, k] for image in maps]
        origin = origin[:2]

    maps = [_blocks(image, edge) for image in maps]
    lower = origin + (edge - 1) / 2
    mask = _largest_piece(maps[2] >= 0.5)
    box = [(index.min() - 1, index.max() + 2) for index in np.nonzero(mask)]
    # A block at the edge of the image may be brain: pad, so that there always is a layer outside the mask.
    window = tuple(slice(first + 1, last + 1) for first, last in box)
    white, grey, _, template = (np.pad(image, 1)[window] for image in maps)
    lower = lower + edge * np.array([first for first, _ in box])
    return Brain(
        white=frozen(white.clip(0, 1)),
        grey=frozen(grey.clip(0, 1)),
        mask=frozen(np.pad(mask, 1)[window], np.bool_),
        template=frozen(template, np.float32),
        lower=frozen(lower),
        spacing=frozen(np.full(dim, edge)),
        slice_mm=float(height) if dim == 2 else None,
    )


def _canonical(image: Any) -> tuple[Array, Array]:
    """Voxels of a 1 mm image, axes left-right, back-front, foot-head, and the first one's centre in mm."""
    import nibabel

    image = nibabel.as_closest_canonical(image)
    if not np.allclose(image.affine[:3, :3], np.eye(3)):
        raise ValueError(f"the brain maps must be upright with 1 mm voxels, their affine map is {image.affine}")
    return np.asarray(image.dataobj, dtype=np.float64), np.array(image.affine[:3, 3], dtype=np.float64)


def _blocks(image: Array, edge: int) -> Array:
    """Means over blocks of ``edge`` voxels along each axis; the last blocks are filled up with zeros."""
    image = np.pad(image, [(0, -n % edge) for n in image.shape])
    shape = [m for n in image.shape for m in (n // edge, edge)]
    return image.reshape(shape).mean(axis=tuple(range(1, 2 * image.ndim, 2)))


def _largest_piece(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The largest face-connected piece of a mask."""
    from scipy import ndimage

    labels, pieces = ndimage.label(mask)
    if pieces == 0:
        raise ValueError("no brain is left in the mask; choose a smaller spacing")
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
