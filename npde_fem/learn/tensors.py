"""Between a user's tensors and those that solves take: flat, float64, real, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.learn.task import Key, name_of
from npde_fem.parameter import Parameter

import torch

__all__ = ["Kind", "Slot", "agreed", "as_complex", "memory_of", "refuse_gradients", "slot_of"]

_REAL = (torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)
_SINGLE = (torch.float32, torch.complex64)


class Kind(NamedTuple):
    """How a user has tensors: precision (of real numbers), device, and samples (None without a batch)."""

    dtype: torch.dtype = torch.float64
    device: torch.device = torch.device("cpu")
    batch: int | None = None

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """Return a result, float64 or complex128 on the CPU, as the user has tensors."""
        return x.to(self.device, self.dtype.to_complex() if x.is_complex() else self.dtype)


@dataclass(frozen=True)
class Slot:
    """A place for a tensor.

    Attributes
    ----------
    label
        What messages call it.
    shape
        Shape of one sample on this rank.
    everywhere
        Number of dofs that all ranks own together; None if the tensor is replicated.
    is_complex
        Whether it holds a complex state.
    """

    label: str
    shape: tuple[int, ...]
    everywhere: int | None = None
    is_complex: bool = False

    def samples(self, x: Any) -> int | None:
        """Return the samples in a tensor, None if it has no leading axis for them; raise if it does not fit here.

        Raises
        ------
        TypeError
            If it is no tensor, or not of float32 or float64 (of a complex state also of complex64 or complex128).
        ValueError
            If its shape does not fit, there are no samples, or it is sparse.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{self.label}: {type(x).__name__} given; a torch.Tensor allowed (torch.as_tensor)")
        allowed = _REAL + _COMPLEX if self.is_complex else _REAL
        if x.dtype not in allowed:
            words = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise TypeError(f"{self.label}: a tensor of {str(x.dtype).removeprefix('torch.')} given; {words} allowed")
        if x.layout != torch.strided:
            raise ValueError(f"{self.label}: a tensor of layout {x.layout} given; a dense one allowed")
        shape = tuple(x.shape)
        if shape == self.shape:
            return None
        if shape[1:] == self.shape and len(shape) == len(self.shape) + 1 and shape[0]:
            return shape[0]
        owned = "" if self.everywhere is None else f"this rank owns {self.shape[-1]} dofs of {self.everywhere}; "
        batch = f"({', '.join(map(str, ('B', *self.shape)))}{'' if self.shape else ','})"
        raise ValueError(f"{self.label}: shape {shape} given; {owned}{self.shape}, or {batch} for a batch, allowed")

    def real(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor that fits as solves take it: float64 on the CPU, a complex state as real pairs.

        There is no copy where there is nothing to convert.
        """
        if not self.is_complex:
            return x.to("cpu", torch.float64)
        pairs = torch.view_as_real(x.to("cpu", torch.complex128).resolve_conj())
        return pairs.reshape(*x.shape[:-1], -1)


def slot_of(problem: Semidiscrete, key: Key) -> Slot:
    """Return the place of an input (collective)."""
    if not isinstance(key, Parameter):
        parts = 2 if problem.equation.is_complex else 1
        return Slot(key, (problem.n_owned // parts,), problem.n_global // parts, problem.equation.is_complex)
    if not key.is_field:
        return Slot(name_of(key), key.ufl_shape)
    size = problem.field_size(key)
    return Slot(name_of(key), (size,), problem.comm.allreduce(size))


def agreed(
    slots: Sequence[Slot], tensors: Sequence[Any], others: Sequence[torch.Tensor] = ()
) -> tuple[Kind, list[bool]]:
    """Return what tensors for some slots have in common, and which have samples.

    Parameters
    ----------
    slots, tensors
        The slots, and what was given for each.
    others
        Further tensors that must be on the same device.

    Raises
    ------
    TypeError, ValueError
        If their number is another, one does not fit its slot, or they are on several devices or have several numbers of
        samples.
    """
    if len(tensors) != len(slots):
        labels = ", ".join(slot.label for slot in slots)
        raise TypeError(f"{len(tensors)} tensors given; {len(slots)} allowed: {labels}")
    samples = [slot.samples(x) for slot, x in zip(slots, tensors, strict=True)]
    numbers = {slot.label: n for slot, n in zip(slots, samples, strict=True) if n is not None}
    if len(set(numbers.values())) > 1:
        given = ", ".join(f"{label} {n}" for label, n in numbers.items())
        raise ValueError(f"batches of unlike sizes given ({given}); one size, or no leading axis, allowed")
    devices = {x.device for x in [*tensors, *others]}
    if len(devices) > 1:
        given = ", ".join(f"{slot.label} on {x.device}" for slot, x in zip(slots, tensors, strict=True))
        trained = "".join(
            f", the layer's own tensors on {device}" for device in sorted({str(x.device) for x in others})
        )
        raise ValueError(f"tensors on several devices given ({given}{trained}); all on one allowed (layer.to(device))")
    single = tensors and all(x.dtype in _SINGLE for x in tensors)
    kind = Kind(
        torch.float32 if single else torch.float64,
        devices.pop() if devices else torch.device("cpu"),
        next(iter(numbers.values()), None),
    )
    return kind, [n is not None for n in samples]


def refuse_gradients(things: dict[str, Any]) -> None:
    """Raise ValueError if one of some things that nothing is differentiated by is a tensor that requires it."""
    for label, thing in things.items():
        for part in thing if isinstance(thing, Sequence) else [thing]:
            if isinstance(part, torch.Tensor) and part.requires_grad:
                raise ValueError(
                    f"{label}: a tensor that requires a gradient given, but results are not differentiated by it; "
                    f"{label}.detach() allowed"
                )


def as_complex(x: torch.Tensor) -> torch.Tensor:
    """Return real pairs, one after the other on the last axis, as complex numbers."""
    return torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))


def memory_of(x: torch.Tensor) -> Array:
    """Return the memory of a real tensor on the CPU; a copy of one that torch keeps with its sign reversed."""
    return x.detach().resolve_neg().numpy()
