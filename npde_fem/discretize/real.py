"""Real numbers in the objects of DOLFINx and PETSc, whichever scalars PETSc was built with.

All values here are float64: a complex state is a real pair. So functions and forms are made for float64, whatever
DOLFINx would make by default. PETSc's own objects have its scalars; real values are assigned to a vector's array as
they are, and come out by :func:`values_in`. A complex scalar costs memory and time there, and nothing else.
"""

from __future__ import annotations

from typing import Any

from npde_fem.discretize.jit import form_options

import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from petsc4py import PETSc

__all__ = ["compiled", "new_function", "real_values", "values_in"]

Array = npt.NDArray[np.float64]


def new_function(space: fem.FunctionSpace, name: str | None = None) -> fem.Function:
    """Return a new DOLFINx function of float64 values, zero."""
    return fem.Function(space, name=name, dtype=np.float64)


def compiled(form: ufl.Form) -> fem.Form:
    """Return a form compiled for float64, with this project's compiler options."""
    return fem.form(form, dtype=np.float64, jit_options=form_options())


def values_in(vector: PETSc.Vec) -> Array:
    """Return a read-only view of the real values that this rank owns in a PETSc vector."""
    return vector.array_r.real


def real_values(label: str, values: npt.NDArray[Any]) -> Array:
    """Return values as they are, or the real part of complex ones; no copy.

    Raises
    ------
    TypeError
        If an imaginary part is not zero.
    """
    if np.any(values.imag):
        raise TypeError(f"{label}: complex values given; real ones allowed")
    return values.real
