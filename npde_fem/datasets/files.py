"""Files that others have published: in a folder that is named, or downloaded once and checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "DataCorrupted", "DataUnavailable", "frozen", "published"]

Array = npt.NDArray[np.float64]


class DataUnavailable(FileNotFoundError):
    """A data set is neither on this machine nor to be downloaded; the message says how to get it."""


class DataCorrupted(ValueError):
    """A downloaded file is not the published one: its checksum differs."""


def frozen(values: npt.ArrayLike, dtype: npt.DTypeLike = np.float64) -> Any:
    """Contiguous copy of an array that cannot be written to."""
    array = np.array(values, dtype=dtype, order="C")
    array.flags.writeable = False
    return array


def published(kind: str, url: str, checksums: dict[str, str], folder: str | os.PathLike[str] | None) -> list[Path]:
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
