"""Spoken vowels."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from npde_fem.datasets.files import Array, DataCorrupted, frozen, published
from npde_fem.parallel import on_root

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["VOWELS_URL", "Vowels", "vowels"]

VOWELS_URL = (
    "https://raw.githubusercontent.com/fancompute/wavetorch/927ad02dc9db83f72b8df1d91418a6681e60fd56/data/vowels/"
)
"""Folder the recordings of vowels are downloaded from; their checksums are in ``vowels.sha256`` beside this module."""


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
    paths = published("vowels", VOWELS_URL, registry, folder)
    names = ("ae", "ei", "iy")
    signals, rates = [], set()
    for path in paths:
        if hashlib.sha256(path.read_bytes()).hexdigest() != registry[path.name]:
            raise DataCorrupted(f"{path} is not the published file: its checksum differs")
        rate, samples = wavfile.read(path)
        rates.add(int(rate))
        signals.append(frozen(samples / 32768))
    labels = [names.index(path.stem[3:]) for path in paths]
    return Vowels(signals, frozen(labels, np.int64), names, [path.stem[:3] for path in paths], rates.pop())
