"""Compiled forms that are assembled many times, with their coefficients laid out cell by cell in one gather.

DOLFINx lays out one coefficient after the other, cell by cell, at every assembly, which takes a fifth of the time of a
residual's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from dolfinx import fem, la

__all__ = ["AtPoints", "Packed"]

Array = npt.NDArray[np.float64]


class AtPoints(fem.Function):
    """A coefficient on a quadrature element whose values are computed where a form that has it is assembled.

    Its own array is not used.
    """

    def __init__(self, space: fem.FunctionSpace) -> None:
        super().__init__(space, dtype=np.float64)

    @abstractmethod
    def write(self, out: Array) -> None:
        """Write the present values: a row, contiguous, for each of this rank's own cells, as wide as the element."""


class Packed:
    """A compiled form; coefficients have their present values at each assembly.

    Parameters
    ----------
    form
        The form.
    computed
        Those of its coefficients that are computed; they stand in integrals over all cells only.
    """

    def __init__(self, form: fem.Form, computed: Sequence[AtPoints] = ()) -> None:
        self.form = form
        self._packed = fem.pack_coefficients(form)
        coefficients = list(form._cpp_object.coefficients)
        # Elements such as Nedelec's turn their dofs from cell to cell, which is DOLFINx's business.
        spaces = [coefficient.function_space for coefficient in coefficients]
        self._gathers = not any(space.element.needs_dof_transformations for space in spaces)
        widths = [space.element.space_dimension for space in spaces]
        by_handle = {id(function._cpp_object): function for function in computed}
        columns = [slice(end - width, end) for end, width in zip(np.cumsum(widths), widths, strict=True)]
        handles = [id(coefficient) for coefficient in coefficients]
        self._computed = [(by_handle[h], c) for h, c in zip(handles, columns, strict=True) if h in by_handle]
        self._over_cells = [key for key in self._packed if key[0] == fem.IntegralType.cell]
        plain = [h not in by_handle for h in handles]
        sizes = [c.x.array.size if taken else 0 for c, taken in zip(coefficients, plain, strict=True)]
        ends = np.cumsum([0, *sizes], dtype=np.int64)
        places = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        self._plain = [pair for pair, taken in zip(zip(coefficients, places, strict=True), plain, strict=True) if taken]
        self._values = np.zeros(max(1, ends[-1]))
        self._dofs: dict[Any, npt.NDArray[np.int64]] = {}
        if self._gathers and any(plain):
            # What is computed is written over: meanwhile any value will do there, so that numpy takes whole rows.
            dofs = [
                _dofs(space) + first if taken else np.zeros((space.dofmap.map().shape[0], width), dtype=np.int64)
                for space, first, width, taken in zip(spaces, ends[:-1], widths, plain, strict=True)
            ]
            for (kind, number), packed in self._packed.items():
                if packed.size:
                    entities = form._cpp_object.domains(kind, number)
                    cells = entities if kind == fem.IntegralType.cell else entities[:, 0]
                    self._dofs[kind, number] = np.concatenate([d[cells] for d in dofs], axis=1)

    def _refresh(self) -> dict[Any, Array]:
        """Return the coefficients' present values, laid out for the kernels."""
        if self._gathers:
            for coefficient, place in self._plain:
                self._values[place] = coefficient.x.array
            for key, dofs in self._dofs.items():
                np.take(self._values, dofs, out=self._packed[key], mode="clip")
        else:
            self._packed = fem.pack_coefficients(self.form)
        for function, columns in self._computed:
            for key in self._over_cells:
                function.write(self._packed[key][:, columns])
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
