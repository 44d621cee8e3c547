"""Compiled forms that are assembled many times, with their coefficients laid out cell by cell in one gather.

DOLFINx lays out one coefficient after the other, cell by cell, at every assembly, which takes a fifth of the time of a
residual's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from dolfinx import fem, la

__all__ = ["Packed"]

Array = npt.NDArray[np.float64]


class Packed:
    """A compiled form; coefficients have their present values at each assembly."""

    def __init__(self, form: fem.Form) -> None:
        self.form = form
        self._packed = fem.pack_coefficients(form)
        self._coefficients = list(form._cpp_object.coefficients)
        # Elements such as Nedelec's turn their dofs from cell to cell, which is DOLFINx's business.
        spaces = [coefficient.function_space for coefficient in self._coefficients]
        self._gathers = not any(space.element.needs_dof_transformations for space in spaces)
        sizes = [coefficient.x.array.size for coefficient in self._coefficients]
        ends = np.cumsum([0, *sizes], dtype=np.int64)
        self._places = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        self._values = np.empty(ends[-1])
        self._dofs: dict[Any, npt.NDArray[np.int64]] = {}
        if self._gathers:
            columns = [_dofs(space) + first for space, first in zip(spaces, ends[:-1], strict=True)]
            for (kind, number), packed in self._packed.items():
                if packed.size:
                    entities = form._cpp_object.domains(kind, number)
                    cells = entities if kind == fem.IntegralType.cell else entities[:, 0]
                    self._dofs[kind, number] = np.concatenate([dofs[cells] for dofs in columns], axis=1)

    def _refresh(self) -> dict[Any, Array]:
        """Return the coefficients' present values, laid out for the kernels."""
        if not self._gathers:
            return fem.pack_coefficients(self.form)
        for coefficient, place in zip(self._coefficients, self._places, strict=True):
            self._values[place] = coefficient.x.array
        for key, dofs in self._dofs.items():
            np.take(self._values, dofs, out=self._packed[key], mode="clip")
        return self._packed

    def add_to(self, vector: Array) -> None:
        """Add a linear form to this rank's part of a vector, ghosts included."""
        fem.assemble_vector(vector, self.form, coeffs=self._refresh())

    def scalar(self) -> float:
        """Return this rank's share of a form without arguments."""
        return float(fem.assemble_scalar(self.form, coeffs=self._refresh()))

    def add_to_matrix(self, matrix: la.MatrixCSR, bcs: Sequence[fem.DirichletBC]) -> None:
        """Add a bilinear form to this rank's part of a matrix, ghost rows included."""
        fem.assemble_matrix(matrix, self.form, list(bcs), coeffs=self._refresh())


def _dofs(space: Any) -> npt.NDArray[np.int64]:
    """Dofs of each cell, blocks unrolled."""
    bs, blocks = space.dofmap.bs, space.dofmap.map().astype(np.int64)
    return (blocks[:, :, None] * bs + np.arange(bs)).reshape(blocks.shape[0], blocks.shape[1] * bs)
