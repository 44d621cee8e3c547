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
        everything = list(form._cpp_object.coefficients)
        widths = [coefficient.function_space.element.space_dimension for coefficient in everything]
        columns = [slice(b - w, b) for w, b in zip(widths, np.cumsum(widths), strict=True)]
        by_handle = {id(function._cpp_object): function for function in computed}
        self._computed = [(by_handle[id(c)], s) for c, s in zip(everything, columns, strict=True) if id(c) in by_handle]
        self._over_cells = [key for key in self._packed if key[0] == fem.IntegralType.cell]
        plain = [(c, s) for c, s in zip(everything, columns, strict=True) if id(c) not in by_handle]
        self._coefficients = [c for c, _ in plain]
        # Elements such as Nedelec's turn their dofs from cell to cell, which is DOLFINx's business.
        spaces = [coefficient.function_space for coefficient in self._coefficients]
        self._gathers = not any(space.element.needs_dof_transformations for space in spaces)
        sizes = [coefficient.x.array.size for coefficient in self._coefficients]
        ends = np.cumsum([0, *sizes], dtype=np.int64)
        self._places = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        self._values = np.empty(ends[-1])
        self._dofs: dict[Any, list[tuple[slice, npt.NDArray[np.int64], Array | None]]] = {}
        if self._gathers:
            dofs = [(s, _dofs(c.function_space) + first) for (c, s), first in zip(plain, ends[:-1], strict=True)]
            for (kind, number), packed in self._packed.items():
                if packed.size and dofs:
                    entities = form._cpp_object.domains(kind, number)
                    cells = entities if kind == fem.IntegralType.cell else entities[:, 0]
                    self._dofs[kind, number] = _merged([(s, d[cells]) for s, d in dofs], packed.shape[1])

    def _refresh(self) -> dict[Any, Array]:
        """Return the coefficients' present values, laid out for the kernels."""
        if self._gathers:
            for coefficient, place in zip(self._coefficients, self._places, strict=True):
                self._values[place] = coefficient.x.array
            for key, parts in self._dofs.items():
                for columns, dofs, buffer in parts:
                    packed = self._packed[key]
                    np.take(self._values, dofs, out=packed if buffer is None else buffer, mode="clip")
                    if buffer is not None:
                        packed[:, columns] = buffer
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


def _merged(
    parts: list[tuple[slice, npt.NDArray[np.int64]]], width: int
) -> list[tuple[slice, npt.NDArray[np.int64], Array | None]]:
    """Join neighbouring columns; those that are no whole rows get a buffer, as numpy takes into whole arrays only."""
    joined: list[tuple[slice, list[npt.NDArray[np.int64]]]] = []
    for columns, dofs in parts:
        if joined and joined[-1][0].stop == columns.start:
            joined[-1] = slice(joined[-1][0].start, columns.stop), [*joined[-1][1], dofs]
        else:
            joined.append((columns, [dofs]))
    found = []
    for columns, several in joined:
        dofs = np.concatenate(several, axis=1)
        found.append((columns, dofs, None if dofs.shape[1] == width else np.empty(dofs.shape)))
    return found
