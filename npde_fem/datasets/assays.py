"""Densities of cells that close a wound, measured: the scratch assay."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from npde_fem.datasets.files import Array, frozen, published
from npde_fem.parallel import on_root

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["SCRATCH_ASSAY_SHA256", "SCRATCH_ASSAY_URL", "ScratchAssay", "read_scratch_assay", "scratch_assay"]

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
    return ScratchAssay(density, frozen(positions[0]), frozen(times), frozen(replicates))


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
        (path,) = published("scratch_assay", SCRATCH_ASSAY_URL, {name: SCRATCH_ASSAY_SHA256[density]}, folder)
        assay = _read_scratch_assay(path, density)
        if assay.replicates.shape != (5, 3, 38):
            raise ValueError(
                f"{path}: the published file has 5 times and 38 columns, this one {len(assay.times)} and "
                f"{len(assay.position)}; read other data with read_scratch_assay"
            )
        return assay

    return on_root(comm, read)
