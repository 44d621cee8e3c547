"""Solves and reduced functionals as functions of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.learn.bridge import solved
from npde_fem.learn.distributed import spread_sum, spread_use
from npde_fem.learn.layer import key_of, observation, settled
from npde_fem.learn.task import Key, Task
from npde_fem.learn.tensors import Slot, agreed, as_complex, memory_of, refuse_gradients, slot_of
from npde_fem.optimize.block import solve
from npde_fem.optimize.values import as_array, is_function, with_values
from npde_fem.parallel import alike
from npde_fem.parameter import Parameter
from npde_fem.solve.history import Checkpoints
from npde_fem.solve.integrate import Adaptive
from npde_fem.solve.preconditioner import ShiftedLaplacian
from npde_fem.solve.schemes import Newmark, Scheme
from npde_fem.taped import Taped

import numpy as np
import torch
from mpi4py import MPI
from pyadjoint import ReducedFunctional
from pyadjoint.tape import stop_annotating
from torch.autograd import Function

__all__ = ["TensorSolution", "differentiable"]


def differentiable(thing: Any) -> Callable:
    """Return a solve or a reduced functional as a function of tensors, differentiable by torch, twice.

    Parameters
    ----------
    thing
        * :func:`npde_fem.solve`: the function returned has its arguments, of which ``u0``, ``velocity`` and the values
          in ``parameters`` may be tensors, as of :class:`~npde_fem.learn.Layer`, and returns a :class:`TensorSolution`.
        * A ``pyadjoint.ReducedFunctional``: the function returned takes a tensor for each control, in order (of a
          function or field the dofs that this rank owns, of a number its entries), and returns the functional, a
          tensor of no axes, the same on every rank. The tape is played at each call, and again at a derivative if it
          was played with other values since.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if thing is solve:
        return _solve
    if isinstance(thing, ReducedFunctional):
        return _Reduced(thing)
    raise TypeError(f"differentiable: npde_fem.solve or a pyadjoint.ReducedFunctional allowed, {thing!r} given")


# -- solves ----------------------------------------------------------------------------------------------------


@dataclass
class TensorSolution:
    """What a differentiable solve gives.

    Attributes
    ----------
    problem
        The problem solved.
    t
        Final time (0 for a stationary problem).
    values
        The final state, ``(n,)``: the dofs that this rank owns; of a batch with samples before.
    times, states
        Observed times and the states there, ``(times, n)``; None without.
    velocity_values, velocities
        Of equations with inertia: the velocity, as ``values`` and ``states``.
    integrals
        The time integrals, one number each, replicated; None without.
    """

    problem: Semidiscrete
    t: float
    values: torch.Tensor
    times: list[float]
    states: torch.Tensor | None = None
    velocity_values: torch.Tensor | None = None
    velocities: torch.Tensor | None = None
    integrals: torch.Tensor | None = None


def _solve(
    problem: Semidiscrete,
    u0: Any = 0.0,
    t: tuple[float, float] | None = None,
    dt: float | Adaptive | None = None,
    scheme: Scheme | Newmark | None = None,
    observe: Sequence[float] | None = None,
    *,
    velocity: Any = None,
    parameters: Mapping[Parameter, Any] | None = None,
    integrals: Sequence[Callable] = (),
    checkpoints: int | Checkpoints | None = None,
    preconditioner: ShiftedLaplacian | None = None,
    rescue: Any = None,
    progress: bool = False,
) -> TensorSolution:
    """Do as :func:`npde_fem.solve`, with tensors."""
    if not isinstance(problem, Semidiscrete):
        raise TypeError(f"problem must be FEM or FD, not {type(problem).__name__}")
    refuse_gradients({"t": t, "dt": dt})
    times, probe = observation(problem, observe)
    if probe is not None:
        raise TypeError("observe: a Probe given; times allowed here, and probes by a learn.Layer")
    initial = {label: data for label, data in (("u0", u0), ("velocity", velocity)) if data is not None}
    problem.meet(list(initial.values()), integrals)
    given: dict[Key, Any] = {
        key_of(problem, "solve", label): data for label, data in initial.items() if isinstance(data, torch.Tensor)
    }
    slots = {key: slot_of(problem, key) for key in given}
    for parameter, value in (parameters or {}).items():
        key = key_of(problem, "parameters", parameter)
        slots[key] = slot_of(problem, key)
        given[key] = value if isinstance(value, torch.Tensor) else _as_tensor(problem.comm, slots[key], value)
    moving = ("final_velocity",) if problem.second_order else ()
    seen = ("states", "velocities")[: 1 + len(moving)] if times else ()
    arguments = {"t": t, "dt": dt, "scheme": scheme, "observe": times, "preconditioner": preconditioner}
    task = Task(
        problem,
        tuple(given),
        ("final", *moving, *seen, *(("integrals",) if integrals else ())),
        settled(problem, initial, list(given)),
        {**arguments, "rescue": rescue, "progress": progress},
        integrals,
        Checkpoints(checkpoints) if isinstance(checkpoints, int) else checkpoints,
    )
    found, kind = solved(task, list(slots.values()), list(given.values()))
    pairs = problem.equation.is_complex
    found = {name: kind.like(as_complex(x) if pairs and name != "integrals" else x) for name, x in found.items()}
    return TensorSolution(
        problem,
        0.0 if problem.stationary or t is None else float(t[1]),
        found["final"],
        times or [],
        found.get("states"),
        found.get("final_velocity"),
        found.get("velocities"),
        found.get("integrals"),
    )


def _as_tensor(comm: MPI.Comm, slot: Slot, value: Any) -> torch.Tensor:
    """Return a parameter's value that is no tensor as one."""
    with alike(comm):
        array = as_array(value)
        if array.shape not in {(), slot.shape}:
            raise ValueError(f"{slot.label}: a value of shape {array.shape} given; {slot.shape} allowed")
        return torch.from_numpy(np.broadcast_to(array, slot.shape).copy())


# -- reduced functionals -----------------------------------------------------------------------------------------


class _Reduced:
    """A reduced functional as a function of tensors."""

    def __init__(self, functional: ReducedFunctional) -> None:
        self.functional = functional
        self.controls = [control.control for control in functional.controls]
        self.slots = [_slot_of_control(i, control) for i, control in enumerate(self.controls)]
        # Numbers are the same on every rank, whichever ranks these are: what is made of them needs no agreement.
        comms = [comm for comm in map(_comm_of, self.controls) if comm is not None]
        self.comm = comms[0] if comms else MPI.COMM_SELF
        self._others = self._other_leaves()

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        with alike(self.comm):
            kind, _ = agreed(self.slots, tensors)
            if kind.batch is not None:
                raise ValueError("a tensor with a leading axis of samples given; a tape is played for one sample only")
            for slot, x in zip(self.slots, tensors, strict=True):
                if not torch.isfinite(x).all():
                    raise ValueError(f"{slot.label}: NaN or infinity given; finite values allowed")
        return kind.like(_Value.apply(self, *(slot.real(x) for slot, x in zip(self.slots, tensors, strict=True))))

    def evaluate(self, arrays: Sequence[Array]) -> float:
        """Play the tape."""
        return float(self.functional(self._as_controls(arrays)))

    def others(self) -> list[Any]:
        """Return what the rest of the tape starts from: another functional of it may have other controls."""
        return [variable.checkpoint for variable in self._others]

    def gradient(self, arrays: Sequence[Array], others: Sequence[Any]) -> list[Array]:
        """Return the derivatives by all controls at these values of theirs, and of all others'."""
        with self._at(arrays, others):
            return self._as_arrays(self.functional.derivative())

    def curvature(self, arrays: Sequence[Array], others: Sequence[Any], moves: Sequence[Array]) -> list[Array]:
        """Return the change of the gradient along moves of the controls, at these values of theirs."""
        with self._at(arrays, others):
            self.functional.derivative()  # which leaves its sweep on the tape
            moving = self._as_controls(moves)
            return self._as_arrays(self.functional.hessian(moving if len(moving) > 1 else moving[0]))

    def _as_controls(self, arrays: Sequence[Array]) -> list[Any]:
        with stop_annotating():
            return [with_values(control, values) for control, values in zip(self.controls, arrays, strict=True)]

    def _as_arrays(self, derivatives: Any) -> list[Array]:
        parts = derivatives if isinstance(derivatives, list | tuple) else [derivatives]
        return [as_array(part).reshape(slot.shape) for slot, part in zip(self.slots, parts, strict=True)]

    @contextmanager
    def _at(self, arrays: Sequence[Array], others: Sequence[Any]) -> Iterator[None]:
        """Play the tape with these values, unless it was played with them last; the others get theirs back."""
        then, now = self._values(), self.others()
        moved = self.comm.allreduce(any(a is not b for a, b in zip(now, others, strict=True)), op=MPI.LOR)
        same = all(np.array_equal(a, b) for a, b in zip(then, arrays, strict=True))
        self._put(others)
        if moved or not self.comm.allreduce(same, op=MPI.LAND):
            self.evaluate(arrays)
        yield
        if moved:
            self._put(now)
            self.evaluate(then)

    def _values(self) -> list[Array]:
        return [as_array(control.block_variable.saved_output) for control in self.functional.controls]

    def _put(self, others: Sequence[Any]) -> None:
        for variable, checkpoint in zip(self._others, others, strict=True):
            variable.checkpoint = checkpoint

    def _other_leaves(self) -> list[Any]:
        """Return the variables of the tape that nothing on it computes, but for the controls."""
        made = {id(control.block_variable) for control in self.functional.controls}
        found: dict[int, Any] = {}
        for block in self.functional.tape.get_blocks():
            found |= {id(v): v for v in block.get_dependencies() if id(v) not in made}
            made |= {id(v) for v in block.get_outputs()}
        return list(found.values())


def _comm_of(control: Any) -> MPI.Comm | None:
    """Return the communicator over whose ranks a control is distributed, None if it is replicated."""
    if isinstance(control, Taped):
        return control._ad_comm if control._ad_spread else None
    return control.function_space.mesh.comm if is_function(control) else None


def _slot_of_control(number: int, control: Any) -> Slot:
    shape, comm = as_array(control).shape, _comm_of(control)
    return Slot(f"control {number}", shape, None if comm is None else comm.allreduce(int(np.prod(shape))))


class _Value(Function):
    """J(x): ``(functional, *x)`` -> J."""

    @staticmethod
    def forward(functional: _Reduced, *x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(functional.evaluate(_arrays(x)), dtype=torch.float64)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.functional, *x = inputs
        ctx.others = ctx.functional.others()
        ctx.save_for_backward(*x)
        ctx.save_for_forward(*x)

    @staticmethod
    def backward(ctx: Any, w: torch.Tensor) -> tuple:
        of, gradient = ctx.functional, _Gradient.apply(ctx.functional, ctx.others, *ctx.saved_tensors)
        pairs = zip(of.slots, gradient, strict=True)
        return None, *(g * (w if slot.everywhere is None else spread_use(w, of.comm)) for slot, g in pairs)

    @staticmethod
    def jvp(ctx: Any, _: None, *moves: torch.Tensor) -> torch.Tensor:
        of, gradient = ctx.functional, _Gradient.apply(ctx.functional, ctx.others, *ctx.saved_tensors)
        products = [(g * d).sum() for g, d in zip(gradient, moves, strict=True)]
        pairs = zip(of.slots, products, strict=True)
        return torch.stack([p if slot.everywhere is None else spread_sum(p, of.comm) for slot, p in pairs]).sum()


class _Gradient(Function):
    """J'(x): ``(functional, others, *x)`` -> derivatives by all controls."""

    @staticmethod
    def forward(functional: _Reduced, others: Sequence[Any], *x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(map(torch.from_numpy, functional.gradient(_arrays(x), others)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.functional, ctx.others, *x = inputs
        ctx.save_for_backward(*x)

    @staticmethod
    def backward(ctx: Any, *moves: torch.Tensor) -> tuple:
        return None, None, *_Hessian.apply(ctx.functional, ctx.others, *ctx.saved_tensors, *moves)


class _Hessian(Function):
    """J''(x) d: ``(functional, others, *x, *d)`` -> changes of the derivatives by all controls."""

    @staticmethod
    def forward(functional: _Reduced, others: Sequence[Any], *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, moves = _arrays(given[: len(given) // 2]), _arrays(given[len(given) // 2 :])
        return tuple(map(torch.from_numpy, functional.curvature(x, others, moves)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        """Keep nothing: there is no derivative."""

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> NoReturn:
        raise RuntimeError("a reduced functional is differentiable twice; a third derivative was asked for")


def _arrays(tensors: Sequence[torch.Tensor]) -> list[Array]:
    return [memory_of(x) for x in tensors]
