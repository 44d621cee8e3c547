"""Learners that see the whole loss as one function: L-BFGS and the other methods of TAO and SciPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from npde_fem.discretize.inner import lumped_mass
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.learn.distributed import Distributed
from npde_fem.learn.layer import Layer
from npde_fem.learn.samples import check_batch
from npde_fem.learn.training import Fit, Training
from npde_fem.optimize.minimize import METHODS, check_method, default_method, run
from npde_fem.optimize.search import Search
from npde_fem.optimize.tao import HAS_TAO
from npde_fem.optimize.variables import Inner, Vector, number_scale, typical_size
from npde_fem.parallel import alike
from npde_fem.parameter import Parameter

import numpy as np
import torch

__all__ = ["LBFGS", "PDEConstrained", "WeightVector", "known_parameters"]

_PAUSE = "pause"
_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class _Minimiser:
    """What the learners of this module have in common."""

    max_iterations: int | None = None
    gtol: float = 1e-6
    ftol: float = 1e-12
    batch: int | None = None
    inner: Inner = "L2"
    length: float | None = None
    bounds: Mapping[str, tuple[Any, Any]] | None = None
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        for label, value in (("gtol", self.gtol), ("ftol", self.ftol)):
            if not value >= 0:
                raise ValueError(f"{name}: {label} = {value!r} given; a number from 0 on allowed")
        if self.inner not in ("L2", "l2", "H1"):
            raise ValueError(f'{name}: inner = {self.inner!r} given; "L2", "l2" or "H1" allowed')
        check_batch(name, self.batch)

    def _method(self, bounded: bool) -> str:
        raise NotImplementedError

    def arguments(self) -> dict[str, Any]:
        """Return what :func:`npde_fem.optimize.minimize` takes of this."""
        return {
            "inner": self.inner,
            "length": self.length,
            "bounds": self.bounds,
            "gtol": self.gtol,
            "ftol": self.ftol,
            "options": self.options,
        }

    def identity(self) -> dict[str, object]:
        """Return what must be the same for a checkpoint to be gone on from."""
        held = {k: v for k, v in asdict(self).items() if k not in ("max_iterations", "bounds")}
        bounds = None if self.bounds is None else {k: [repr(end) for end in pair] for k, pair in self.bounds.items()}
        held["options"] = None if self.options is None else {k: str(v) for k, v in self.options.items()}
        return {"learner": type(self).__name__, **held, "bounds": bounds}

    def train(self, training: Training, resumed: tuple[dict, dict] | None = None) -> Fit:
        """Train; ``resumed`` is what a checkpoint has of the learner."""
        vector = WeightVector(training, inner=self.inner, length=self.length, bounds=self.bounds)
        try:
            method = self._method(vector.bounded)
            check_method(method, self.inner)
            if METHODS[method].hessian:
                raise ValueError(f"{type(self).__name__}: method {method} asks for Hessians; one without allowed here")
            search = _TrainingSearch(_Loss(training, vector, self.batch), vector, self, training)
            y = vector.start if resumed is None else search.go_on(resumed[1])
            try:
                while not search.stopped:
                    reason = run(search, method, y, self.options)
                    if search.stopped == _PAUSE:
                        search.stopped, y = "", search.last
                    elif not search.stopped:
                        search.stopped = reason
                search.finish()
            finally:
                search.close()
        finally:
            vector.destroy()
        return training.finish(converged=search.converged, reason=search.stopped)


@dataclass(frozen=True, kw_only=True)
class LBFGS(_Minimiser):
    """Quasi-Newton with limited memory (Nocedal and Wright 2006, algorithm 7.4), PETSc TAO's, on all data at once.

    TAO's LMVM, or BLMVM where there are bounds; line searches meet the strong Wolfe conditions (More and Thuente 1994).
    All inner products are global: iterates are the same on any number of ranks, to round-off. Where PETSc has complex
    scalars there is no TAO, and SciPy's L-BFGS-B runs.

    Parameters
    ----------
    max_iterations
        Iterations, by default the epochs of the training.
    gtol
        Stop when the norm of the (projected) gradient has fallen by this factor since the start.
    ftol
        Stop when three iterations lower the loss by less than this fraction of it.
    batch
        Samples that run at once, to save memory; the loss is that of all of them anyway.
    inner
        Inner product of trained fields: ``"L2"``, and ``"H1"`` which prefers smooth ones, are independent of the mesh;
        ``"l2"`` is that of their values. Other weights have the plain one.
    length
        Length below which H1 smooths.
    bounds
        ``{name: (lower, upper)}`` of weights; those of a Layer's parameters by default.
    options
        TAO's options without the prefix ``npde_tao_``.
    memory
        Pairs that are kept.

    Notes
    -----
    With checkpoints the memory of curvature begins anew after each, in the training that is not interrupted as well,
    so that a resumed one goes the same way to the bit. ``every`` of :func:`~npde_fem.learn.fit` is 20 by default.

    Raises
    ------
    ValueError
        If a number is out of range.
    """

    memory: int = 10

    def _method(self, bounded: bool) -> str:
        if not HAS_TAO:
            return "scipy-lbfgsb"
        return "tao-blmvm" if bounded else "tao-lmvm"

    def arguments(self) -> dict[str, Any]:
        """Return what :func:`npde_fem.optimize.minimize` takes of this."""
        return {**super().arguments(), "method": self._method(True)}

    def train(self, training: Training, resumed: tuple[dict, dict] | None = None) -> Fit:
        """Train; ``resumed`` is what a checkpoint has of the learner."""
        return super().train(training, resumed)


@dataclass(frozen=True, kw_only=True)
class PDEConstrained(_Minimiser):
    """PDE-constrained optimisation by any gradient method of :data:`npde_fem.optimize.METHODS`, on all data at once.

    Of a :class:`~npde_fem.PDEConstrainedProblem` the methods with Hessians too.

    Parameters
    ----------
    method
        Such as ``"tao-blmvm"`` or ``"scipy-lbfgsb"``; by default one that keeps bounds.
    max_iterations, gtol, ftol, batch, inner, length, bounds, options
        As for :class:`LBFGS`.

    Raises
    ------
    ValueError
        If a number is out of range, or the method unknown.
    """

    method: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method is not None:
            check_method(self.method, self.inner)

    def _method(self, bounded: bool) -> str:
        return self.method or default_method()

    def arguments(self) -> dict[str, Any]:
        """Return what :func:`npde_fem.optimize.minimize` takes of this."""
        return {**super().arguments(), "method": self.method}


def known_parameters(model: torch.nn.Module) -> dict[int, tuple[Semidiscrete, Parameter]]:
    """Return by the ``id`` of weights the equations' parameters that they are, with the problems of their layers."""
    found = {}
    for part in model.modules():
        if isinstance(part, Layer):
            found.update({id(weight): (part.problem, parameter) for weight, parameter in part.trained()})
    return found


class WeightVector(Vector):
    """The trained weights of a model as variables: fields on the ranks that own them, others on rank 0.

    Parameters
    ----------
    training
        What is trained.
    inner, length, bounds
        As of :class:`LBFGS`.

    Raises
    ------
    ValueError
        If bounds name no weight, cross, do not fit, or the start is outside of them; if ``"H1"`` is asked for a field
        that is no Layer's.
    """

    def __init__(
        self,
        training: Training,
        *,
        inner: Inner = "L2",
        length: float | None = None,
        bounds: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> None:
        super().__init__(training.comm, inner)
        self.weights = training.parameters
        self.ensemble = training.ensemble
        given = dict(bounds or {})
        if unknown := set(given) - set(self.weights):
            raise ValueError(f"bounds: {sorted(unknown)} given; the weights are {sorted(self.weights)}")
        known = known_parameters(training.model)
        first_member = self.ensemble is None or self.ensemble.member == 0
        starts: list[Array] = []
        scales: list[Array] = []
        ends: list[tuple[Array, Array]] = []
        self._places: dict[str, slice] = {}
        first = 0
        for name, p in self.weights.items():
            spread, parameter = isinstance(p, Distributed), known.get(id(p))
            values = _numbers(p)
            with alike(self.comm):
                lower, upper = _limits(
                    name, given.get(name, (None, None) if parameter is None else parameter[1].bounds), p
                )
            owns = first_member if spread else self.comm.rank == 0
            size = values.size if owns else 0
            self._places[name] = place = slice(first, first + size)
            first += size
            scale = np.ones(values.size)
            if inner != "l2" and parameter is not None and not spread:
                scale = number_scale(values, upper - lower)
            elif inner != "l2" and spread:
                scale = self._field_scale(name, parameter, values, upper - lower, place, length, owns)
            starts.append(values[:size])
            scales.append(scale[:size])
            ends.append((lower[:size], upper[:size]))
        self._ends = ends
        self._set(starts, scales, ends)

    def _field_scale(
        self,
        name: str,
        field: tuple[Semidiscrete, Parameter] | None,
        values: Array,
        width: Array,
        place: slice,
        length: float | None,
        owns: bool,
    ) -> Array:
        if field is None:
            raise ValueError(f'inner = {self.inner!r}: for fields of Layers; {name!r} is none, "l2" allowed')
        weights = lumped_mass(*field)
        space = self.comm if self.ensemble is None else self.ensemble.space
        volume, typical = typical_size(space, weights, values, width)
        if self.inner == "L2":
            return typical * np.sqrt(volume / weights)
        if owns:
            self._prefer_smooth(place, *field, volume, length)
        return np.full(values.size, typical)

    def rescale(self, scale: Array) -> None:
        """Take the scale that a training had before."""
        if scale.size == self.scale.size:
            self.start = self.start * self.scale / scale
            self.scale = scale
            self.lower, self.upper = (np.concatenate(e) / scale for e in zip(*self._ends, strict=True))

    def assign(self, y: Array) -> None:
        """Give the weights the values that the variables mean, within the bounds, on all ranks."""
        lower, upper = self.lower * self.scale, self.upper * self.scale
        values = np.clip(y * self.scale, lower, upper)
        for name, p in self.weights.items():
            part = values[self._places[name]]
            if isinstance(p, Distributed):
                whole = part if self.ensemble is None else self.ensemble.across.bcast(part, root=0)
            else:
                whole = self.comm.bcast(part, root=0)
            _set_numbers(p, whole)

    def derivative(self) -> Array:
        """Return the gradients of the weights by this rank's variables."""
        parts = []
        for name, p in self.weights.items():
            place = self._places[name]
            parts.append(_gradient(p)[: place.stop - place.start])
        return np.concatenate(parts) * self.scale


def _numbers(p: torch.Tensor) -> Array:
    made = torch.view_as_real(p.detach()) if p.is_complex() else p.detach()
    return np.array(made.cpu().double().numpy().ravel())


def _gradient(p: torch.Tensor) -> Array:
    return np.zeros(_numbers(p).size) if p.grad is None else _numbers(p.grad)


def _set_numbers(p: torch.Tensor, values: Array) -> None:
    with torch.no_grad():
        target = torch.view_as_real(p) if p.is_complex() else p
        target.copy_(torch.from_numpy(values).reshape(target.shape))


def _limits(name: str, pair: Any, p: torch.Tensor) -> tuple[Array, Array]:
    """Return a weight's bounds as flat arrays, infinite where there is none."""
    values = _numbers(p)
    try:
        low, high = pair
        lower, upper = (
            np.array(np.broadcast_to(end if b is None else np.asarray(b, dtype=np.float64).ravel(), values.shape))
            for b, end in ((low, -math.inf), (high, math.inf))
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"bounds of {name!r}: a pair of numbers, arrays of {values.size} values, or None, allowed; {pair!r} given"
        ) from error
    if not np.all(lower <= upper):
        raise ValueError(f"bounds of {name!r} cross, or are NaN: {pair!r} given")
    if np.any(values < lower) or np.any(values > upper):
        raise ValueError(f"weight {name!r} starts outside of its bounds {pair!r}: {values.min():g} to {values.max():g}")
    return lower, upper


class _Loss:
    """The mean loss of all samples as an objective; its gradient comes with it."""

    def __init__(self, training: Training, vector: WeightVector, batch: int | None) -> None:
        self.training, self.vector, self.batch = training, vector, batch
        self._gradient = np.zeros(0)

    def loss(self, y: Array) -> float:
        training = self.training
        self.vector.assign(y)
        training.clear()
        training.model.train()
        torch.manual_seed(training.seed)  # dropout, if any, is the same every time
        total, count = 0.0, 0
        for batch in training.data.batches(self.batch):
            total += batch.size * training.backward(batch, batch.size)
            count += batch.size
        training.collect()
        self._gradient = self.vector.derivative() / count
        training.clear()
        return total / count

    def gradient(self) -> Array:
        return self._gradient

    def hessian(self, v: Array) -> Array:
        raise NotImplementedError("no Hessian of a torch model")

    def leave(self, y: Array) -> None:
        self.vector.assign(y)


class _TrainingSearch(Search):
    """A search whose iterations are the epochs of a training."""

    def __init__(self, objective: _Loss, vector: WeightVector, learner: _Minimiser, training: Training) -> None:
        self.limit = training.epochs if learner.max_iterations is None else learner.max_iterations
        training.epochs = self.limit
        super().__init__(objective, vector, learner.gtol, learner.ftol, self.limit, False, None, None)
        self.training, self.vector, self._known = training, vector, False
        training.begin_at(0)

    @property
    def last(self) -> Array:
        """The variables of the last iterate."""
        assert self._current is not None
        return self._current.y

    def go_on(self, rest: Mapping[str, Any]) -> Array:
        """Take the state of a checkpoint; return its variables."""
        self.vector.rescale(rest["scale"].numpy())
        y = rest["y"].numpy()
        if y.size != self.vector.start.size:
            y = self.vector.start
        self.restore([tuple(row) for row in rest["iterations"]], rest["norm"], rest["stalled"], y)
        self.training.evaluations = rest["evaluations"]
        self._known = True
        return np.array(y)

    def iteration(self, y: Array) -> bool:
        if self._known:  # the start of a segment is the last iterate of the one before
            self._known = False
            return bool(self.stopped)
        super().iteration(y)
        point = self._current
        assert point is not None
        self._go_to(point)
        if self.training.epoch(point.loss) and not self.stopped:
            self.stopped = self.training.reason
        self.training.reason = self.stopped
        due = self.training.checkpoint is not None and self.history[-1].iteration % self.training.every == 0
        if due or self.stopped:
            self._save(point.y)
        if due and not self.stopped:
            self.stopped, self._known = _PAUSE, True
        return bool(self.stopped)

    def _save(self, y: Array) -> None:
        self.training.save(
            {},
            {
                "y": torch.from_numpy(y.copy()),
                "scale": torch.from_numpy(self.vector.scale.copy()),
                "iterations": [tuple(row) for row in self.history],
                "norm": self._norm_at_start,
                "stalled": self._stalled,
                "evaluations": self.training.evaluations,
            },
        )
