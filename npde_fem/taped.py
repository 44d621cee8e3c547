"""What npde_fem's own types do on pyadjoint's tape: they stand there as plain float64 arrays."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from pyadjoint.overloaded_type import OverloadedType

__all__ = ["Taped"]

Array = npt.NDArray[np.float64]


class Taped(OverloadedType):
    """A value on pyadjoint's tape: a float64 array, the same on every rank or spread over the ranks.

    The tape keeps fresh arrays (checkpoints and adjoints) and gives back objects of the type. Lists and vectors of all
    values have those of rank 0 first; values that are the same on every rank stand once, on rank 0. A subclass says
    what its values are, where they live, and how another object with other values is made.

    The operators of UFL play no part here: ``+`` of two parameters stays a UFL expression.
    """

    _ad_spread: bool
    """Whether every rank holds a share of its own; otherwise all hold the same values."""

    @property
    def _ad_comm(self) -> MPI.Comm:
        """The communicator over whose ranks the values are spread, or on whose rank 0 they stand."""
        raise NotImplementedError

    def _ad_values(self) -> Array:
        """Return a fresh float64 array of this rank's values."""
        raise NotImplementedError

    def _ad_assign(self, values: Array) -> None:
        """Take over values of the right shape."""
        raise NotImplementedError

    def _ad_like(self, values: Array) -> Self:
        """Return an object like this one, off the tape, with a copy of values of the right shape."""
        raise NotImplementedError

    def leave_tape(self, values: Array) -> None:
        """Begin a new variable of the tape if the values assigned are not those that the tape holds.

        Collective for values that are spread over the ranks.
        """
        variable = self._block_variable()
        known = variable is not None and variable.checkpoint is not None
        differs = known and not np.array_equal(variable.checkpoint.ravel(), np.ravel(values))
        if self._ad_spread and self._ad_comm.allreduce(differs, op=MPI.LOR) or differs:
            self.clear_block_variable()

    # -- pyadjoint's protocol --------------------------------------------------------------------------------

    def _ad_create_checkpoint(self) -> Array:
        return self._ad_values()

    def _ad_restore_at_checkpoint(self, checkpoint: Array) -> Self:
        return self._ad_like(checkpoint)

    def _ad_copy(self) -> Self:
        return self._ad_like(self._ad_values())

    def _ad_init_object(self, obj: Any) -> Self:
        values = self._ad_values_of(obj)
        return self._ad_like(np.broadcast_to(values, self._ad_shape()) if np.ndim(values) == 0 else values)

    def _ad_init_zero(self, dual: bool = False) -> Self:
        return self._ad_like(np.zeros(self._ad_shape()))

    def _ad_add(self, other: Any) -> Self:
        return self._ad_like(self._ad_values() + self._ad_values_of(other))

    def _ad_mul(self, other: Any) -> Self:
        return self._ad_like(self._ad_values() * self._ad_values_of(other))

    def _ad_iadd(self, other: Any) -> None:
        self._ad_assign(self._ad_values() + self._ad_values_of(other))

    def _ad_imul(self, other: Any) -> None:
        self._ad_assign(self._ad_values() * self._ad_values_of(other))

    def _ad_dot(self, other: Any) -> float:
        product = float(np.vdot(self._ad_values(), self._ad_values_of(other)))
        return self._ad_comm.allreduce(product) if self._ad_spread else product

    def _ad_convert_riesz(self, value: Any, riesz_map: Any = None) -> Self:
        values = self._ad_values_of(value)
        if riesz_map is None or riesz_map == "l2":
            return self._ad_like(values)
        return self._ad_like(riesz_map(values) if callable(riesz_map) else self._ad_riesz(values, riesz_map))

    def _ad_riesz(self, values: Array, kind: str) -> Array:
        """Return the values whose inner product of this kind ("L2" or "H1") is the l2 product with ``values``."""
        raise NotImplementedError

    def _ad_dim(self) -> int:
        size = int(np.prod(self._ad_shape(), dtype=int))
        return self._ad_comm.allreduce(size) if self._ad_spread else size

    # Methods, not static ones: the tape hands over bare arrays too, and only the object knows their communicator.

    def _ad_to_list(self, m: Any) -> list[float]:
        values = self._ad_values_of(m).ravel()
        return np.concatenate(self._ad_comm.allgather(values)).tolist() if self._ad_spread else values.tolist()

    def _ad_assign_numpy(self, dst: Any, src: Array, offset: int) -> tuple[Any, int]:
        shape = self._ad_shape()
        size = total = int(np.prod(shape, dtype=int))
        first = offset
        if self._ad_spread:
            sizes = self._ad_comm.allgather(size)
            first, total = offset + sum(sizes[: self._ad_comm.rank]), sum(sizes)
        values = np.array(src[first : first + size], dtype=np.float64).reshape(shape)
        if isinstance(dst, Taped):
            dst._ad_assign(values)
            return dst, offset + total
        return values, offset + total

    def _ad_to_petsc(self, vec: Any = None) -> Any:
        values = self._ad_values().ravel()
        if not self._ad_spread and self._ad_comm.rank > 0:
            values = values[:0]
        if vec is None:
            # Symbols need no PETSc; only one who asks for a vector does.
            from petsc4py import PETSc

            vec = PETSc.Vec().createMPI((values.size, None), comm=self._ad_comm)
        vec.array[:] = values
        return vec

    def _ad_from_petsc(self, vec: Any) -> None:
        values = np.array(vec.array_r.real)
        if not self._ad_spread:
            values = self._ad_comm.bcast(values, root=0)
        self._ad_assign(values.reshape(self._ad_shape()))

    # -- helpers ---------------------------------------------------------------------------------------------

    def _ad_shape(self) -> tuple[int, ...]:
        """Shape of this rank's values."""
        return self._ad_values().shape

    @staticmethod
    def _ad_values_of(other: Any) -> Array:
        """Return the values of an object of this kind, or a number or an array as it is."""
        return other._ad_values() if isinstance(other, Taped) else np.asarray(other, dtype=np.float64)
