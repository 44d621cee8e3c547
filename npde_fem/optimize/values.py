"""Between pyadjoint's overloaded objects and the flat arrays that solves and sweeps work with.

A parameter, a state or a number may stand on the tape as one of our own types (:class:`~npde_fem.taped.Taped`), as an
``AdjFloat``, or as a ``dolfinx_adjoint.Function``, which is known by its attributes, so that nothing here imports it.
"""

from __future__ import annotations

from typing import Any

from npde_fem.discretize.real import real_values
from npde_fem.discretize.semidiscrete import Array
from npde_fem.taped import Taped

import numpy as np
from pyadjoint import AdjFloat

__all__ = ["as_adjoint", "as_array", "is_function", "with_values"]


def as_array(thing: Any) -> Array:
    """Return the values of an overloaded object, a checkpoint, or an adjoint of one, on this rank (owned dofs)."""
    if isinstance(thing, Taped):
        return thing._ad_values()
    if is_function(thing):
        owned = thing.x.index_map.size_local * thing.x.block_size
        return real_values(f"function {getattr(thing, 'name', '')!r}", thing.x.array[:owned]).copy()
    return np.array(thing, dtype=np.float64)


def is_function(thing: Any) -> bool:
    """Whether this is a function of DOLFINx, or a vector of dolfinx_adjoint, which stands for one."""
    return hasattr(thing, "function_space") and hasattr(thing, "x")


def as_adjoint(output: Any, values: Array) -> Any:
    """Return what pyadjoint keeps as the adjoint of an overloaded object: an array of its own, a float, or a vector."""
    if isinstance(output, Taped):
        return values
    if isinstance(output, AdjFloat):
        return float(values)
    return with_values(output, values).x


def with_values(like: Any, values: Array) -> Any:
    """Return an overloaded object of the same kind with other values, those that this rank owns."""
    if isinstance(like, Taped):
        return like._ad_like(values.reshape(like._ad_shape()))
    if isinstance(like, AdjFloat):
        return AdjFloat(values.item())
    made = like._ad_new_like()
    made.x.array[: values.size] = values
    made.x.scatter_forward()
    return made
