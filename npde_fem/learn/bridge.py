"""Solves as operations of torch: forwards, backwards, backwards again, and along a direction.

Let y = S(x) be the results of a solve for the inputs x. Derivatives are made of the pairing

    P(x, w, d) = w . S'(x) d

of a cotangent w, derivatives by the results, with a direction d of the inputs: :class:`Adjoint` is ``P_d = S'(x)^T w``
and :class:`Tangent` is ``P_w = S'(x) d``, which differentiate into each other and :class:`Curvature`, ``P_x``, by the
second-order adjoint. That has no derivatives.

Each forward pass has a record of its own, so that many may be outstanding. It lives as long as torch keeps what a
backward pass needs, and no longer (:class:`Record`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from itertools import count
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from npde_fem.discretize.probe import Probe
from npde_fem.discretize.semidiscrete import Array
from npde_fem.learn.call import Call, new_call
from npde_fem.learn.task import Task
from npde_fem.learn.tensors import Kind, Slot, agreed, memory_of, refuse_gradients
from npde_fem.parallel import alike

import numpy as np
import torch
from mpi4py import MPI
from torch.autograd import Function
from torch.autograd.forward_ad import unpack_dual

__all__ = ["Record", "measured", "solved"]

_ANY_ARGUMENTS = Signature([Parameter("arguments", Parameter.VAR_POSITIONAL)])
_numbers = count()
_alive: WeakValueDictionary[int, Record] = WeakValueDictionary()


def solved(
    task: Task, slots: Sequence[Slot], tensors: Sequence[Any], weights: Sequence[torch.Tensor] = ()
) -> tuple[dict[str, torch.Tensor], Kind]:
    """Solve a task (collective).

    Parameters
    ----------
    task
        The task.
    slots, tensors
        The places of its first inputs, and a user's tensors for them.
    weights
        Tensors for its other inputs, on the same device; the same for every sample.

    Returns
    -------
    dict of Tensor, Kind
        The outputs by name, float64 on the CPU and real, differentiable by the inputs; and how the user has tensors.

    Raises
    ------
    TypeError, ValueError
        If a tensor does not fit its slot, is not finite, or the ranks do not agree.
    SolveError
        If a solve fails.
    """
    with alike(task.problem.comm):
        kind, in_batch = agreed(slots, tensors, weights)
        if task.problem.stationary:
            refuse_gradients({s.label: x for s, x in zip(slots, tensors, strict=True) if s.label == "u0"})
    inputs = [slot.real(x) for slot, x in zip(slots, tensors, strict=True)]
    inputs += [x.to("cpu", torch.float64) for x in weights]
    recording = torch.is_grad_enabled()
    needs = [recording and x.requires_grad or unpack_dual(x).tangent is not None for x in inputs]
    sampled = {key for key, has_axis in zip(task.inputs, in_batch, strict=False) if has_axis}
    _, *outputs = Solve.apply(new_call(task, kind.batch, sampled, needs), *inputs)
    return dict(zip(task.outputs, outputs, strict=True)), kind


def measured(probe: Probe, states: torch.Tensor) -> torch.Tensor:
    """Return the values of states ``(..., n_owned)`` at points, ``(..., points, m)``, replicated (collective)."""
    found: torch.Tensor = _Measure.apply(states, probe)
    return found


class Record(ctypes.c_int64):
    """What sweeps need of some solves, owned by the memory of a tensor that the graph saves.

    torch frees such a tensor after the last backward pass, throws it away in checkpoint regions to make it again, and
    lets hooks move it. So it goes with the record, whose own number is the memory of :meth:`tensor`.
    """

    def __init__(self, content: Any) -> None:
        ctypes.c_int64.__init__(self, next(_numbers))
        self.content = content
        _alive[self.value] = self

    def tensor(self) -> torch.Tensor:
        """Return the tensor by which :func:`_recorded` finds the record."""
        return torch.frombuffer(self, dtype=torch.int64)


def _recorded(tensor: torch.Tensor, call: Call, arrays: Sequence[Array]) -> Any:
    """Return the record of a call; where its tensor was moved, that of the same solves once more."""
    _in_order()
    record = _alive.get(int(tensor.item()))
    return call.again(arrays) if record is None else record.content


def _in_order() -> None:
    """Raise RuntimeError in a thread that may not communicate."""
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED and not MPI.Is_thread_main():
        raise RuntimeError(
            "a solve, or its backward pass, was called in another thread than the one that initialised MPI, which "
            "serves no other: call it there, or initialise MPI with MPI.THREAD_MULTIPLE"
        )


def _quickly_bound(forward: Callable) -> Callable:
    """Let torch bind arguments without looking at the function anew, which takes longer than small solves may."""
    forward.__signature__ = _ANY_ARGUMENTS  # type: ignore[attr-defined]
    return forward


class Solve(Function):
    """S(x): ``(call, *x)`` -> ``(record, *y)``."""

    @staticmethod
    @_quickly_bound
    def forward(call: Call, *x: torch.Tensor) -> tuple:
        _in_order()
        outputs, record = call.solve(_arrays(x))
        return Record(record if call.recording else None).tensor(), *map(torch.from_numpy, outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.call, *x = inputs
        ctx.mark_non_differentiable(output[0])
        _save(ctx, output[0], *x)

    @staticmethod
    def backward(ctx: Any, _: None, *w: torch.Tensor | None) -> tuple:
        return None, *_adjoint(ctx.call, ctx.needs_input_grad[1:], *ctx.saved_tensors, *w)

    @staticmethod
    def jvp(ctx: Any, _: None, *d: torch.Tensor | None) -> tuple:
        return None, *Tangent.apply(ctx.call, *ctx.saved_tensors, *d)


class Adjoint(Function):
    """P_d(x, w): ``(call, wanted, record, *x, *w)`` -> derivatives by the wanted inputs."""

    @staticmethod
    @_quickly_bound
    def forward(call: Call, wanted: list[int], record: torch.Tensor, *given: torch.Tensor | None) -> tuple:
        x, w = _parted(call, _arrays(given))
        return tuple(map(torch.from_numpy, call.adjoint(x, _recorded(record, call, x), wanted, w)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.call, ctx.wanted, *tensors = inputs
        _save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, *d_wanted: torch.Tensor | None) -> tuple:
        needs_x, needs_w = _parted(ctx.call, ctx.needs_input_grad[3:])
        d = _placed(ctx.wanted, d_wanted, len(needs_x))
        by_x = _curvature(ctx.call, needs_x, *ctx.saved_tensors, *d)
        x = ctx.saved_tensors[1 : 1 + len(d)]
        by_w = _done(Tangent, ctx.call, ctx.saved_tensors[0], *x, *d) if any(needs_w) else [None] * len(needs_w)
        return None, None, None, *by_x, *by_w

    @staticmethod
    def jvp(ctx: Any, _call: None, _wanted: None, _record: None, *moves: torch.Tensor | None) -> tuple:
        record, *given = ctx.saved_tensors
        (x, w), (d, change) = _parted(ctx.call, given), _parted(ctx.call, moves)
        by_w = Adjoint.apply(ctx.call, ctx.wanted, record, *x, *change)
        by_x = Curvature.apply(ctx.call, ctx.wanted, record, *x, *w, *d)
        return tuple(a + b for a, b in zip(by_w, by_x, strict=True))


class Tangent(Function):
    """P_w(x, d): ``(call, record, *x, *d)`` -> changes of the outputs."""

    @staticmethod
    @_quickly_bound
    def forward(call: Call, record: torch.Tensor, *given: torch.Tensor | None) -> tuple:
        x, d = _parted(call, _arrays(given))
        return tuple(map(torch.from_numpy, call.tangent(x, _recorded(record, call, x), d)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.call, *tensors = inputs
        _save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, *w: torch.Tensor | None) -> tuple:
        needs_x, needs_d = _parted(ctx.call, ctx.needs_input_grad[2:])
        record, *given = ctx.saved_tensors
        x, d = _parted(ctx.call, given)
        by_x = _curvature(ctx.call, needs_x, record, *x, *w, *d)
        return None, None, *by_x, *_adjoint(ctx.call, needs_d, record, *x, *w)


class Curvature(Function):
    """P_x(x, w, d): ``(call, wanted, record, *x, *w, *d)`` -> derivatives by the wanted inputs."""

    @staticmethod
    @_quickly_bound
    def forward(call: Call, wanted: list[int], record: torch.Tensor, *given: torch.Tensor | None) -> tuple:
        x, others = _parted(call, _arrays(given))
        w, d = others[: -len(x)], others[-len(x) :]
        return tuple(map(torch.from_numpy, call.second(x, _recorded(record, call, x), wanted, w, d)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        """Keep nothing: there is no derivative."""

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> NoReturn:
        raise RuntimeError("a solve is differentiable twice; a third derivative was asked for")


def _done(operation: type[Function], *arguments: Any) -> tuple:
    """Do an operation; without a graph to be made of it, by a shorter way."""
    found: tuple = (operation.apply if torch.is_grad_enabled() else operation.forward)(*arguments)
    return found


def _adjoint(call: Call, needs: Sequence[bool], *given: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Return P_d by those of the inputs that need it; what is given begins with the record."""
    return _placed(_chosen(needs), _done(Adjoint, call, _chosen(needs), *given) if any(needs) else (), len(needs))


def _curvature(call: Call, needs: Sequence[bool], *given: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Return P_x by those of the inputs that need it; what is given begins with the record."""
    return _placed(_chosen(needs), _done(Curvature, call, _chosen(needs), *given) if any(needs) else (), len(needs))


def _save(ctx: Any, *tensors: torch.Tensor | None) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _arrays(tensors: Sequence[torch.Tensor | None]) -> list[Any]:
    """Return the tensors' memory as arrays."""
    return [None if x is None else memory_of(x) for x in tensors]


def _parted(call: Call, things: Sequence[Any]) -> tuple[Any, Any]:
    """Return what belongs to the inputs, which comes first, and the rest."""
    n = len(call.task.inputs)
    return things[:n], things[n:]


def _chosen(needs: Sequence[bool]) -> list[int]:
    return [i for i, needed in enumerate(needs) if needed]


def _placed(places: Sequence[int], values: Sequence[Any], size: int) -> list[Any]:
    """Return ``size`` entries: values at their places, None elsewhere."""
    found = dict(zip(places, values, strict=True))
    return [found.get(i) for i in range(size)]


# -- signals ---------------------------------------------------------------------------------------------------


class _Measure(Function):
    """B u of each state, replicated."""

    @staticmethod
    def forward(states: torch.Tensor, probe: Probe) -> torch.Tensor:
        _in_order()
        rows = memory_of(states).reshape(states.shape[:-1].numel(), states.shape[-1])
        found = np.empty((len(rows), len(probe.points), probe.components))
        for row, out in zip(rows, found, strict=True):
            probe.apply(row, out)
        return torch.from_numpy(found).reshape(*states.shape[:-1], *found.shape[1:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        states, ctx.probe = inputs
        ctx.size = states.shape[-1]

    @staticmethod
    def backward(ctx: Any, weights: torch.Tensor) -> tuple:
        return _Spread.apply(weights, ctx.probe, ctx.size), None

    @staticmethod
    def jvp(ctx: Any, moves: torch.Tensor, _: None) -> torch.Tensor:
        return measured(ctx.probe, moves)


class _Spread(Function):
    """B^T w of each set of replicated signals."""

    @staticmethod
    def forward(weights: torch.Tensor, probe: Probe, size: int) -> torch.Tensor:
        rows = memory_of(weights).reshape(-1, len(probe.points), probe.components)
        found = np.zeros((len(rows), size))
        for row, out in zip(rows, found, strict=True):
            probe.transpose(row, out)
        return torch.from_numpy(found).reshape(*weights.shape[:-2], size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        _, ctx.probe, ctx.size = inputs

    @staticmethod
    def backward(ctx: Any, states: torch.Tensor) -> tuple:
        return measured(ctx.probe, states), None, None

    @staticmethod
    def jvp(ctx: Any, moves: torch.Tensor, _probe: None, _size: None) -> torch.Tensor:
        found: torch.Tensor = _Spread.apply(moves, ctx.probe, ctx.size)
        return found
