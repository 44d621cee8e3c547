"""Numbers made of a solve and of parameters, on the tape: misfits to data, and integrals over the domain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from npde_fem.discretize.linearised import Integral, Linearised
from npde_fem.discretize.probe import Probe
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.optimize.block import States, TapedSolution, rows_of, settle
from npde_fem.optimize.operation import Operation
from npde_fem.optimize.values import as_adjoint
from npde_fem.parallel import alike
from npde_fem.parameter import Parameter, as_complex, as_numbers
from npde_fem.solve.integrate import Solution

import numpy as np
from mpi4py import MPI
from pyadjoint import AdjFloat, annotate_tape
from pyadjoint.tape import stop_annotating

__all__ = ["integral", "misfit"]


def misfit(solution: Solution, data: Any, at: Any = None, sigma: Any = 1.0) -> AdjFloat:
    """Return half the sum of squared residuals between a solve's observed states and data.

    Pointwise, with B the values at the points (:class:`~npde_fem.discretize.probe.Probe`),

        J = 1/2 sum_k sum_i sum_c ((B u(t_k))_ic - d_kic)^2 / sigma_kic^2,

    and without points, with the L2 norm over the domain (see ``Semidiscrete.gram_times``),

        J = 1/2 sum_k || u(t_k) - d_k ||^2 / sigma_k^2.

    The times t_k are those the solve observed, or the final time if it observed none.

    Parameters
    ----------
    solution
        What :func:`~npde_fem.solve` returned.
    data
        With points: numbers of shape ``(times, points)`` or ``(times, points, m)``, the same on every rank (for one
        time the first axis may be left out), complex for a complex state, whose residuals count with |.|^2. Without
        points: one entry a time, each of what ``u0`` of a solve may be.
    at
        Points, shape (n, d), inside the domain, the same on every rank; see :class:`~npde_fem.discretize.probe.Probe`.
    sigma
        Standard deviation of the data: a number, or an array that broadcasts to the data (without points: one number a
        time).

    Returns
    -------
    AdjFloat
        J, the same on every rank; on the tape if the solution is.

    Raises
    ------
    TypeError, ValueError
        If the data is not finite or has another shape, a point lies outside the domain, or sigma is not positive.
    """
    problem = solution.problem
    rows = list(range(len(solution.times))) or [0]
    gap: _Gap
    if at is None:
        with alike(problem.comm):
            entries, spread = _entries(data, len(rows)), _sigma(sigma, (len(rows), 1))
        gap = _Gap(problem, rows, np.array([problem.initial(entry) for entry in entries]), spread)
    else:
        probe = Probe(problem, at)
        with alike(problem.comm):
            shape = (len(rows), len(probe.points), problem.equation.components)
            numbers, spread = _measurements(data, sigma, shape, problem.equation.dtype)
        gap = _Gap(problem, rows, numbers, spread, probe)
    with stop_annotating():
        states = rows_of(solution)
        value = AdjFloat(gap.value(states))
    if annotate_tape() and isinstance(solution, TapedSolution):
        _Misfit(gap, solution.on_tape).record(value)
    return value


def _measurements(data: Any, sigma: Any, shape: tuple[int, int, int], dtype: type) -> tuple[Array, Array]:
    """Data at points and their standard deviations, shape (times, points, m), or (times, points, 2 m) of pairs."""
    times, _, components = shape
    numbers = as_complex("misfit: data", data) if dtype is complex else as_numbers("misfit: data", data)
    allowed = {shape, shape[:2]} if components == 1 else {shape}
    if times == 1:
        allowed |= {s[1:] for s in allowed}
    if numbers.shape not in allowed:
        wanted = " or ".join(map(str, sorted(allowed)))
        raise ValueError(f"misfit: data of shape {numbers.shape} given; {wanted} allowed")
    if not np.all(np.isfinite(numbers)):
        raise ValueError(f"misfit: data has {np.sum(~np.isfinite(numbers))} values that are not finite")
    spread = as_numbers("misfit: sigma", sigma)
    if spread.ndim == numbers.ndim and spread.size == numbers.size:
        spread = spread.reshape(shape)
    elif spread.ndim:
        spread = _broadcast(spread, numbers.shape).reshape(shape)
    numbers, spread = numbers.reshape(shape), _sigma(spread, shape)
    if dtype is complex:
        return numbers.view(np.float64), np.repeat(spread, 2, axis=-1)
    return numbers, spread


def _entries(data: Any, count: int) -> Any:
    """The data of each time."""
    single = not isinstance(data, list | tuple) and not (isinstance(data, np.ndarray) and data.ndim > 1)
    entries = [data] if single and count == 1 else data
    if single and count > 1 or len(entries) != count:
        raise ValueError(f"misfit: data for {1 if single else len(entries)} times given; the solve observed {count}")
    return entries


def _sigma(sigma: Any, shape: tuple[int, ...]) -> Array:
    values = as_numbers("misfit: sigma", sigma)
    if values.shape == shape[:1]:
        values = values.reshape(-1, *(1,) * (len(shape) - 1))
    if not np.all(np.isfinite(values)) or np.any(values <= 0):
        raise ValueError(f"misfit: sigma must be positive and finite, {values.tolist()} given")
    return _broadcast(values, shape)


def _broadcast(sigma: Array, shape: tuple[int, ...]) -> Array:
    try:
        return np.broadcast_to(sigma, shape)
    except ValueError as error:
        raise ValueError(f"misfit: sigma of shape {sigma.shape} given; it must broadcast to {shape}") from error


class _Gap:
    """Residuals of states against data, and the quadratic form of their squares."""

    def __init__(
        self, problem: Semidiscrete, rows: Sequence[int], data: Array, sigma: Array, probe: Probe | None = None
    ) -> None:
        self.problem, self.rows, self._data, self._probe = problem, rows, data, probe
        self._weight = sigma**-2.0

    def _observe(self, values: Array) -> Array:
        return values if self._probe is None else self._probe.apply(values)

    def _times_weight(self, k: int, observed: Array) -> Array:
        weighted = self._weight[k] * observed
        if self._probe is None:
            out = np.zeros_like(weighted)
            self.problem.gram_times(weighted, out)
            return out
        return weighted

    def _product(self, a: Array, b: Array) -> float:
        product = float(np.vdot(a, b))
        return self.problem.comm.allreduce(product) if self._probe is None else product

    def value(self, states: Array) -> float:
        total = 0.0
        for k, row in enumerate(self.rows):
            residual = self._observe(states[row]) - self._data[k]
            total += 0.5 * self._product(residual, self._times_weight(k, residual))
        return total

    def derivative(self, states: Array) -> Array:
        """dJ/du, shape of ``states``."""
        return self._transposed(states, with_data=True)

    def hessian_times(self, change: Array) -> Array:
        """d2J/du2 times a change of the states."""
        return self._transposed(change, with_data=False)

    def _transposed(self, states: Array, with_data: bool) -> Array:
        out = np.zeros_like(states)
        for k, row in enumerate(self.rows):
            observed = self._observe(states[row])
            if with_data:
                observed = observed - self._data[k]
            weighted = self._times_weight(k, observed)
            if self._probe is None:
                out[row] += weighted
            else:
                self._probe.transpose(weighted, out[row])
        return out


class _Misfit(Operation):
    """A misfit on the tape."""

    def __init__(self, gap: _Gap, states: States | None) -> None:
        super().__init__()
        self._gap = gap
        self.add_dependency(states)

    def evaluate(self) -> list[Any]:
        return [AdjFloat(self._gap.value(self.values()[0]))]

    def adjoint(self, wanted: Sequence[int], by: Sequence[Any]) -> dict[int, Any]:
        return {0: float(by[0]) * self._gap.derivative(self.values()[0])}

    def tangent(self) -> list[Any]:
        (move,) = self.moves()
        product = 0.0 if move is None else float(np.vdot(self._gap.derivative(self.values()[0]), move))
        return [AdjFloat(self._gap.problem.comm.allreduce(product))]

    def second(self, wanted: Sequence[int], by: Sequence[Any], change: Sequence[Any]) -> dict[int, Any]:
        (found,) = self.adjoint(wanted, change).values()
        (move,) = self.moves()
        if move is not None:
            found += float(by[0]) * self._gap.hessian_times(move)
        return {0: found}


def integral(of: Semidiscrete | Solution, function: Callable, index: int = -1) -> AdjFloat:
    """Return ``int j(u, x, t) dx`` over the domain, at a state of a solve or of parameters alone.

    Parameters
    ----------
    of
        A solution, or a problem (then u is zero and t = 0: for functionals of parameters, such as a regularisation).
    function
        UFL callable ``(u, x, t)`` of scalar value; it may contain gradients and the problem's parameters.
    index
        Which observed state of a solution; -1 is the last one observed, or the final one if none was.

    Returns
    -------
    AdjFloat
        The integral, the same on every rank; on the tape while pyadjoint records.

    Raises
    ------
    TypeError, ValueError
        If the callable does not give a scalar in UFL.
    IndexError
        If there is no such state.
    """
    solution = of if isinstance(of, Solution) else None
    problem = of.problem if isinstance(of, Solution) else of
    if not isinstance(problem, Semidiscrete):
        raise TypeError(f"integral: a solution, FEM or FD allowed, not {type(of).__name__}")
    row, t = 0, 0.0
    if solution is not None:
        times = solution.times or [solution.t]
        row = range(len(times))[index]
        t = times[row]
    with stop_annotating():
        problem.meet((), [function])
    block = _IntegralOperation(problem, function, row, t, solution)
    with stop_annotating():
        value = AdjFloat(block.value(None if solution is None else rows_of(solution)))
    if annotate_tape():
        block.record(value)
    return value


class _IntegralOperation(Operation):
    """An integral over the domain on the tape."""

    def __init__(
        self, problem: Semidiscrete, function: Callable, row: int, t: float, solution: Solution | None
    ) -> None:
        super().__init__()
        self._problem, self._function, self._row, self._t = problem, function, row, t
        self._state, self._direction = problem.new_state(), problem.new_state()
        self._known: dict[tuple[Parameter, ...], tuple[Linearised, Integral]] = {}
        self._names: list[str | None] = []  # of the parameters among the inputs; the states have none
        self._evaluated_for: dict[str, Array] | None = None
        if not annotate_tape():
            return
        for name, parameter in problem.parameters.items():
            settle(parameter, problem)
            self._names.append(name)
            self.add_dependency(parameter)
        if isinstance(solution, TapedSolution):
            self._names.append(None)
            self.add_dependency(solution.on_tape)
        self._evaluated_for, _ = self._sorted(self.values())

    def _by(self, names: Iterable[str | None]) -> tuple[Linearised, Integral]:
        chosen = set(names)
        key = tuple(p for name, p in self._problem.parameters.items() if name in chosen)
        if key not in self._known:
            lin = self._problem.linearised(key)
            self._known[key] = lin, lin.integral(self._function)
        return self._known[key]

    def value(self, states: Array | None) -> float:
        """Return the integral for the parameters' present values, and states (times + 1, n_owned)."""
        lin, j = self._by(())
        self._problem.update()
        self._place(lin, states, None)
        return j.value()

    def _place(self, lin: Linearised, states: Array | None, change: Array | None) -> None:
        if states is not None:
            self._problem.load(states[self._row], self._state)
        if change is not None:
            self._problem.load(change[self._row], self._direction)
        else:
            self._direction[...] = 0.0
        lin.at(self._t, self._state, self._direction)

    def _sorted(self, arrays: Sequence[Array | None]) -> tuple[dict[str, Array], Array | None]:
        """Return what belongs to parameters by name, and what to the states."""
        pairs = list(zip(self._names, arrays, strict=True))
        named = {name: a for name, a in pairs if name is not None and a is not None}
        return named, next((a for name, a in pairs if name is None), None)

    def is_current(self) -> bool:
        values, _ = self._sorted(self.values())
        before = self._evaluated_for
        same = before is not None and all(np.array_equal(before[name], values[name]) for name in values)
        return bool(self._problem.comm.allreduce(same, op=MPI.LAND))

    def evaluate(self) -> list[Any]:
        values, states = self._sorted(self.values())
        with self._problem.holding(values):
            found = [AdjFloat(self.value(states))]
        self._evaluated_for = values
        return found

    def adjoint(self, wanted: Sequence[int], by: Sequence[Any]) -> dict[int, Any]:
        return self._derivative(wanted, float(by[0]), None)

    def tangent(self) -> list[Any]:
        (values, states), (delta, change) = self._sorted(self.values()), self._sorted(self.moves())
        lin, j = self._by(delta)
        with self._problem.holding(values):
            lin.move(delta)
            self._place(lin, states, change)
            return [AdjFloat(j.tangent())]

    def second(self, wanted: Sequence[int], by: Sequence[Any], change: Sequence[Any]) -> dict[int, Any]:
        return self._derivative(wanted, float(change[0]), float(by[0]))

    def _derivative(self, wanted: Sequence[int], weight: float, second: float | None) -> dict[int, Any]:
        """``weight`` times the derivative by the wanted inputs, and ``second`` times its change."""
        (values, states), (delta, change) = self._sorted(self.values()), self._sorted(self.moves())
        lin, j = self._by({self._names[i] for i in wanted} | (set() if second is None else set(delta)))
        out, more = np.zeros(self._problem.n_owned), np.zeros(self._problem.n_owned)
        with self._problem.holding(values):
            if second is not None:
                lin.move(delta)
            self._place(lin, states, change)
            lin.clear()
            j.pull(weight, out)
            j.collect(weight)
            if second is not None:
                j.pull_second(second, more)
                out += more
                j.collect_second(second)
        gradient, found = lin.gradient(), {}
        for i in wanted:
            name, output = self._names[i], self.get_dependencies()[i].output
            if name is None:
                found[i] = np.zeros(output._ad_shape())
                found[i][self._row] = out
            else:
                found[i] = as_adjoint(output, gradient[name])
        return found
