"""The model: anatomy, equation, the two discretisations, and a first tumour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from npde_fem import physics
from npde_fem.datasets import Brain, brain
from npde_fem.discretize import FD, FEM, Grid
from npde_fem.equation import NPDE
from npde_fem.meshes import outline
from npde_fem.parameter import Parameter

import dolfinx.fem
import numpy as np
import numpy.typing as npt
from mpi4py import MPI

__all__ = ["D_GREY", "D_WHITE", "RATE", "anatomy", "glioma_equation", "glioma_fd", "glioma_fem", "seed"]

Array = npt.NDArray[np.float64]

D_GREY = 0.13
"""Diffusivity in grey matter, mm^2/day: 0.0013 cm^2/day (Swanson, Alvord and Murray 2000, high grade)."""

D_WHITE = 5 * D_GREY
"""Diffusivity in white matter, mm^2/day: five times that in grey matter (same source)."""

RATE = 0.012
"""Net rate of proliferation, 1/day (same source, high grade)."""


def anatomy(
    dim: int = 2, spacing: int | None = None, slice_mm: float | None = None, comm: MPI.Comm | None = None
) -> Brain:
    """Brain maps as :func:`npde_fem.datasets.brain` gives them, the mask reduced to tissue.

    The mask keeps the largest piece of the voxels that are at least a quarter tissue, ``WM + GM >= 0.25``. So
    ventricles and wide sulci are no part of the domain: no tumour cell crosses their walls or grows in the fluid.

    Parameters
    ----------
    dim, spacing, slice_mm, comm
        As for :func:`npde_fem.datasets.brain`.

    Returns
    -------
    Brain
        The maps, the same on every rank.

    Raises
    ------
    ValueError, DataUnavailable
        As for :func:`npde_fem.datasets.brain`; a ValueError also if no tissue is left.
    """
    from scipy import ndimage

    whole = brain(dim, spacing, slice_mm, comm)
    labels, pieces = ndimage.label(whole.mask & (whole.white + whole.grey >= 0.25))
    if pieces == 0:
        raise ValueError(f"there is no tissue in this brain: dim={dim}, spacing={spacing}, slice_mm={slice_mm}")
    mask = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    mask.flags.writeable = False
    return replace(whole, mask=mask)


def seed(
    tissue: Brain, centre: Sequence[float] | None = None, width: float = 4.0, peak: float = 0.5
) -> Callable[[Array], Array]:
    """Initial state: ``peak exp(-|x - centre|^2 / (2 width^2))``.

    Parameters
    ----------
    tissue
        The anatomy.
    centre
        Position in mm, one number a dimension; by default the deep white matter of the right hemisphere,
        (31, -6), at z = 24 in the volume.
    width
        Standard deviation in mm; several of the grid or mesh, so that every resolution sees the same tumour.
    peak
        Largest density, in (0, 1].

    Returns
    -------
    callable
        ``f(x)`` for x of shape (3, n), giving densities of shape (n,).

    Raises
    ------
    ValueError
        If the centre lies outside the tissue, or a number is none of those allowed.
    """
    place = np.asarray((31.0, -6.0, 24.0)[: tissue.dim] if centre is None else centre, dtype=np.float64)
    if place.shape != (tissue.dim,) or not np.isfinite(place).all():
        raise ValueError(f"centre must be {tissue.dim} finite numbers (mm), not {centre!r}")
    if not (np.isfinite(width) and width > 0):
        raise ValueError(f"width must be a positive number (mm), not {width!r}")
    if not 0 < peak <= 1:
        raise ValueError(f"peak must be above 0 and at most 1, not {peak!r}")
    voxel = np.rint((place - tissue.lower) / tissue.spacing).astype(int)
    if np.any(voxel < 0) or np.any(voxel >= tissue.mask.shape) or not tissue.mask[tuple(voxel)]:
        raise ValueError(f"centre {place.tolist()} lies outside the tissue; choose a place in the brain, in mm")

    def density(x: Array) -> Array:
        return peak * np.exp(-np.sum((x[: tissue.dim] - place[:, None]) ** 2, axis=0) / (2 * width**2))

    return density


def glioma_equation(
    tissue: Brain, white: float = D_WHITE, grey: float = D_GREY, rate: float = RATE, field: bool | tuple = True
) -> NPDE:
    """The equation of growth in an anatomy, for either discretisation.

    Its parameters are the numbers ``D_white``, ``D_grey`` (mm^2/day) and ``r`` (1/day), and the fields
    ``white_matter`` and ``grey_matter``, which take the maps' values at voxel centres and are linear between them.

    Parameters
    ----------
    tissue
        The anatomy; maps are continued beyond its mask by the nearest value inside.
    white, grey, rate
        First values of the numbers, not negative.
    field
        Where the maps live, as for :class:`~npde_fem.Parameter`.
    """
    white_map, grey_map = (
        Parameter(name, tissue.interpolate(values), field=field, bounds=(0, None))
        for name, values in (("white_matter", tissue.white), ("grey_matter", tissue.grey))
    )
    d_white, d_grey, r = (
        Parameter(name, value, bounds=(0, None)) for name, value in (("D_white", white), ("D_grey", grey), ("r", rate))
    )
    return physics.glioma(d_white, d_grey, white_map, grey_map, r)


def glioma_fd(comm: MPI.Comm, tissue: Brain, equation: NPDE | None = None) -> FD:
    """Growth by finite differences on the image's own voxels (collective).

    The domain is the union of the mask's voxels; no flux passes its staircase surface, exactly.

    Parameters
    ----------
    comm
        Communicator over which the voxels are spread.
    tissue
        The anatomy.
    equation
        By default ``glioma_equation(tissue)``.
    """
    grid = Grid(comm, tissue.mask.shape, tuple(tissue.lower), tuple(tissue.upper), np.asarray(tissue.mask))
    return FD(equation or glioma_equation(tissue), grid)


def glioma_fem(comm: MPI.Comm, tissue: Brain, size: float, degree: int = 1, equation: NPDE | None = None) -> FEM:
    """Growth by finite elements on a mesh of the tissue's smoothed outline, made by gmsh (collective).

    Parameters
    ----------
    comm
        Communicator over which the mesh is spread.
    tissue
        The anatomy.
    size
        Edge length of the elements in mm.
    degree
        Degree of the Lagrange elements. The maps are interpolated at the vertices, where they cannot become negative.
    equation
        By default ``glioma_equation(tissue)``.
    """
    # The surface of a volume folds. Unless sulci narrower than an element close, only far smaller elements fit it.
    smoothing = 1.0 if tissue.dim == 2 else max(1.0, size / float(tissue.spacing[0]))
    mesh = outline(comm, np.asarray(tissue.mask), tissue.lower, tissue.spacing, size, smoothing)
    if equation is None:
        equation = glioma_equation(tissue, field=True if degree == 1 else ("Lagrange", 1))
    return FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", degree)))
