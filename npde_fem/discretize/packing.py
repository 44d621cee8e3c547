"""Compiled forms with their coefficients laid out cell by cell, laid out anew only where they may have changed.

DOLFINx lays out all coefficients at every assembly, which takes a fifth of the time of a residual's; but fields of
parameters change between solves only.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from dolfinx import fem, la

__all__ = ["Packed", "Version"]

Array = npt.NDArray[np.float64]


class Version:
    """A number that goes up whenever something may have changed."""

    def __init__(self) -> None:
        self.number = 0

    def next(self) -> None:
        """Tell of a change."""
        self.number += 1


class _Columns(NamedTuple):
    """Where one coefficient's values stand in the array that an integral's kernel reads."""

    coefficient: Any
    dofs: npt.NDArray[np.int64]
    target: Array
    work: Array


class Packed:
    """A compiled form that is assembled many times.

    Parameters
    ----------
    form
        The form.
    settled
        Functions whose values change only when the version does. All others are laid out at every assembly.
    version
        Goes up whenever values of settled functions may have changed.
    """

    def __init__(self, form: fem.Form, settled: Collection[fem.Function], version: Version) -> None:
        self.form, self._version, self._packed_at = form, version, version.number
        self._packed = fem.pack_coefficients(form)
        self._columns: list[_Columns] = []
        at_rest = {function._cpp_object for function in settled}
        first = 0
        for coefficient in form._cpp_object.coefficients:
            dofmap = coefficient.function_space.dofmap
            dofs = dofmap.map().astype(np.int64)[:, :, None] * dofmap.bs + np.arange(dofmap.bs)
            dofs = dofs.reshape(dofs.shape[0], dofs.shape[1] * dofs.shape[2])
            if coefficient not in at_rest:
                self._follow(coefficient, dofs, slice(first, first + dofs.shape[1]))
            first += dofs.shape[1]

    def _follow(self, coefficient: Any, dofs: npt.NDArray[np.int64], columns: slice) -> None:
        for (kind, number), packed in self._packed.items():
            if packed.size:
                entities = self.form._cpp_object.domains(kind, number)
                cells = entities if kind == fem.IntegralType.cell else entities[:, 0]
                target = packed[:, columns]
                self._columns.append(_Columns(coefficient, dofs[cells], target, np.empty(target.shape)))

    def _coefficients(self) -> dict[Any, Array]:
        """Return the coefficients' present values, laid out for the kernels."""
        if self._packed_at != self._version.number:
            for key, packed in fem.pack_coefficients(self.form).items():
                self._packed[key][...] = packed
            self._packed_at = self._version.number
        for coefficient, dofs, target, work in self._columns:
            np.take(coefficient.x.array, dofs, out=work, mode="clip")
            target[...] = work
        return self._packed

    def add_to(self, vector: Array) -> None:
        """Add a linear form to this rank's part of a vector, ghosts included."""
        fem.assemble_vector(vector, self.form, coeffs=self._coefficients())

    def scalar(self) -> float:
        """Return this rank's share of a form without arguments."""
        return float(fem.assemble_scalar(self.form, coeffs=self._coefficients()))

    def add_to_matrix(self, matrix: la.MatrixCSR, bcs: Sequence[fem.DirichletBC]) -> None:
        """Add a bilinear form to this rank's part of a matrix, ghost rows included."""
        fem.assemble_matrix(matrix, self.form, list(bcs), coeffs=self._coefficients())
