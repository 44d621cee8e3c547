"""Stepping through time, and the stationary solve."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, isfinite, sqrt
from typing import Any, Protocol

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.parallel import Refused, is_terminal, warn_once
from npde_fem.solve.newmark import make_stepper
from npde_fem.solve.newton import Newton
from npde_fem.solve.preconditioner import ShiftedLaplacian
from npde_fem.solve.restart import save
from npde_fem.solve.schemes import Newmark, Scheme, scheme_for
from npde_fem.solve.steppers import Stepper

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from tqdm import tqdm

__all__ = [
    "Adaptive",
    "Frozen",
    "Recorder",
    "Solution",
    "SolveError",
    "check_flow",
    "check_stability",
    "moving",
    "planned_steps",
    "solve",
    "spectral_radius",
    "stable_step",
]

_HALVINGS = 6
_POINTS_A_WAVELENGTH = 4


@dataclass(frozen=True)
class Adaptive:
    """Steps chosen by the scheme's error estimate; pass it as ``dt``.

    The next step is ``dt * 0.9 * error^(-1/k)``, at most five times and at least a fifth of the last, where
    ``error`` is the root mean square of estimate / (atol + rtol |u|) and k the estimate's order
    (Hairer, Norsett and Wanner 1993, II.4, eq. 4.13).

    Parameters
    ----------
    rtol, atol
        Relative and absolute tolerance of the error of one step.
    first
        First step; a thousandth of the interval by default.
    smallest
        Below this step the solve fails.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    first: float | None = None
    smallest: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "first", "smallest"):
            value = getattr(self, name)
            if name == "first" and value is None:
                continue
            if not isinstance(value, int | float | np.number):
                raise TypeError(f"Adaptive: {name} must be a number, not {value!r}")
            if not (isfinite(value) and (value > 0 or (name == "smallest" and value == 0))):
                raise ValueError(f"Adaptive: {name} must be positive and finite, not {value}")


@dataclass(frozen=True)
class Frozen:
    """The steps another solve took, to be taken again; pass it as ``dt``.

    Parameters
    ----------
    steps
        ``Solution.steps`` of a solve over the same interval with the same observed times.
    """

    steps: Sequence[tuple[float, float]]

    def between(self, t: float, stop: float) -> list[tuple[float, float]]:
        """Return begin and end of the steps that lead from t to ``stop``."""
        starts = [start for start, _ in self.steps if t <= start < stop]
        return list(pairwise([*starts, stop]))


class Recorder(Protocol):
    """Sees every step of a solve, to remember it."""

    def begin(self, scheme: Scheme | Newmark | None, t: float, row: Array, expected: int | None) -> None:
        """Start at ``t`` with a row (see :mod:`npde_fem.solve.steppers`) and a number of steps to expect.

        That is None if the steps adapt. A stationary solve has no scheme, and is one step.
        """

    def step(self, t: float, dt: float, stepper: Stepper) -> None:
        """A step from ``t`` was taken; the stepper still has its stages."""

    def observe(self) -> None:
        """The state reached is one of those asked for."""

    def stationary(self, values: Array) -> None:
        """The stationary state was found."""


class SolveError(RuntimeError):
    """A solve that could not go on.

    Attributes
    ----------
    time
        Time of the last good state (NaN for a stationary solve).
    values
        Its values.
    """

    def __init__(self, message: str, when: float, values: Array) -> None:
        super().__init__(message)
        self.time, self.values = when, values


@dataclass
class Solution:
    """What :func:`solve` returns.

    Attributes
    ----------
    problem
        The problem solved.
    t
        Final time (0 for a stationary problem).
    values
        Final state, values of the dofs this rank owns.
    times, states
        Observed times and the values there, shape ``(len(times), n_owned)``.
    velocity_values, velocities
        Of equations with inertia: the velocity at the end and at the observed times, as ``values`` and ``states``.
    steps
        Steps taken, as (time, dt), in order.
    rejected
        Steps that were tried and taken back.
    newton_iterations, linear_iterations
        Totals.
    seconds
        Wall time of the solve, compilation of kernels included.
    assembly_seconds
        The part of it spent in evaluating rates, assembling matrices and applying the mass matrix.
    integrals
        Values of the time integrals that were asked for.
    """

    problem: Semidiscrete
    t: float
    values: Array
    times: list[float] = field(default_factory=list)
    states: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    steps: list[tuple[float, float]] = field(default_factory=list)
    rejected: int = 0
    newton_iterations: int = 0
    linear_iterations: int = 0
    seconds: float = 0.0
    assembly_seconds: float = 0.0
    integrals: list[Any] = field(default_factory=list)
    velocity_values: Array | None = None
    velocities: Array | None = None

    @property
    def u(self) -> Any:
        """The final state as a function: a DOLFINx Function, or a GridFunction."""
        return self.problem.function(self.values)

    def at(self, index: int) -> Any:
        """Return the ``index``-th observed state as a function."""
        return self.problem.function(self.states[index])

    @property
    def velocity(self) -> Any:
        """The final velocity as a function; an equation without inertia has none (ValueError)."""
        return self.problem.function(moving(self.velocity_values), "velocity")

    def velocity_at(self, index: int) -> Any:
        """Return the ``index``-th observed velocity as a function."""
        return self.problem.function(moving(self.velocities)[index], "velocity")


def moving(velocities: Array | None) -> Array:
    """Return velocities of a solution, or raise ValueError if it has none."""
    if velocities is None:
        raise ValueError("the solution has no velocity: its equation is not of second order in time")
    return velocities


def solve(
    problem: Semidiscrete,
    u0: Any = 0.0,
    t: tuple[float, float] | None = None,
    dt: float | Adaptive | Frozen | None = None,
    scheme: Scheme | Newmark | None = None,
    observe: Sequence[float] | Callable[[float, Any], None] | tuple | None = None,
    *,
    velocity: Any = None,
    rescue: str | os.PathLike | None = "npde-last-good-state.petsc",
    progress: bool = True,
    preconditioner: ShiftedLaplacian | None = None,
    recorder: Recorder | None = None,
    guesses: Sequence[Array] = (),
) -> Solution:
    """Solve an equation on its mesh or grid (collective), off pyadjoint's tape.

    Arguments and errors are those of :func:`npde_fem.solve`, but for these.

    Parameters
    ----------
    dt
        May be :class:`Frozen` too.
    recorder
        Is told of every step.
    guesses
        Values of other first iterates of a stationary problem than ``u0``: that of least residual is taken.
    """
    begun = time.perf_counter()
    if not isinstance(problem, Semidiscrete):
        raise TypeError(f"problem must be FEM or FD, not {type(problem).__name__}")
    problem.update()
    if velocity is not None and not problem.second_order:
        raise ValueError("solve: velocity is for equations with inertia; this one has none")
    if problem.stationary:
        problem.refuse_nonlocal("a stationary solve")
        values = problem.initial(u0)
        if any(given is not None for given in (t, dt, observe)):
            raise ValueError(
                "solve: t and dt (and observe) are for equations with a time derivative; this one is stationary "
                "(damping = inertia = 0)"
            )
        if preconditioner is not None and not isinstance(preconditioner, ShiftedLaplacian):
            raise TypeError(f"preconditioner must be a ShiftedLaplacian or None, not {preconditioner!r}")
        problem.check_diffusion(0.0, values)
        warn_of_unresolved_waves(problem)
        return _solve_stationary(problem, [values, *guesses], preconditioner, rescue, begun, recorder)
    if preconditioner is not None:
        raise ValueError("preconditioner: for stationary problems only; this one has a time derivative")
    t0, t1 = _interval(t)
    scheme = scheme_for(scheme, problem.second_order)
    if not scheme.is_explicit:
        problem.refuse_nonlocal(f"scheme {scheme.name}")
    check_flow(problem, scheme)
    step = _step(dt, t0, t1, scheme)
    times, callback = _observation(observe, t0, t1)
    values = problem.initial(u0, t0)
    if scheme.checked:
        problem.check_diffusion(t0, values)
    row = values
    if problem.second_order:
        row = np.concatenate([values, problem.initial(0.0 if velocity is None else velocity, t0, "velocity")])
    with ExitStack() as stack:
        stepper = make_stepper(problem, scheme)
        stack.callback(stepper.close)
        stepper.start(t0, row)
        row = np.zeros(scheme.parts * problem.n_owned)
        stepper.values(row)
        if scheme.checked and isinstance(step, float):
            check_stability(problem, scheme, t0, row[: problem.n_owned], min(step, t1 - t0))
        bar = tqdm(
            total=t1 - t0,
            desc=problem.equation.name,
            disable=not (progress and is_terminal(problem.comm)),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| t = {n:.4g}/{total:.4g} [{elapsed}<{remaining}]",
            leave=False,
        )
        run = _Run(problem, scheme, stepper, step, callback, rescue, stack.enter_context(bar), recorder)
        solution = run.through(t0, t1, times, row)
    solution.seconds = time.perf_counter() - begun
    return solution


class _Run:
    """One integration: steps, retries, observations, counts."""

    def __init__(
        self,
        problem: Semidiscrete,
        scheme: Scheme | Newmark,
        stepper: Stepper,
        dt: float | Adaptive | Frozen,
        callback: Callable[[float, Any], None] | None,
        rescue: str | os.PathLike | None,
        bar: Any,
        recorder: Recorder | None,
    ) -> None:
        self.problem, self.scheme, self.stepper, self.dt = problem, scheme, stepper, dt
        self.callback, self.rescue, self.recorder = callback, rescue, recorder
        self.shown: Any = None
        self.steps: list[tuple[float, float]] = []
        self.rejected = 0
        self.bar = bar
        self.next_dt = 0.0
        self.each_step = True
        self.row = np.zeros((scheme.parts, problem.n_owned))
        self.current = self.row[0]

    def through(self, t0: float, t1: float, times: list[float], row: Array) -> Solution:
        """Integrate from t0 to t1, stopping at ``times``."""
        values = row[: self.problem.n_owned]
        states = np.zeros((len(times), self.problem.n_owned))
        velocities = np.zeros_like(states) if self.problem.second_order else None
        if isinstance(self.dt, Adaptive):
            self.next_dt = self.dt.first or (t1 - t0) / 1000
        kept, t = 0, t0
        self.each_step = not times
        if self.each_step:
            self._show(t, values)
        stops = [*times, *([] if times and times[-1] == t1 else [t1])]
        if self.recorder is not None:
            self.recorder.begin(self.scheme, t0, row, self._expected(t0, stops))
        for stop in stops:
            if stop > t:
                self._stretch(t, stop)
                t = stop
            if kept < len(times) and times[kept] == stop:
                self.stepper.values(self.row.reshape(-1))
                states[kept] = self.current
                if velocities is not None:
                    velocities[kept] = self.row[1]
                self._show(stop, states[kept])
                if self.recorder is not None:
                    self.recorder.observe()
                kept += 1
        self.stepper.values(self.row.reshape(-1))
        newton = self.stepper.newton
        return Solution(
            self.problem,
            t1,
            self.current.copy(),
            times,
            states,
            self.steps,
            self.rejected,
            newton.newton_iterations if newton else 0,
            newton.linear_iterations if newton else 0,
            assembly_seconds=self.stepper.assembly_seconds,
            velocity_values=None if velocities is None else self.row[1].copy(),
            velocities=velocities,
        )

    def _expected(self, t: float, stops: list[float]) -> int | None:
        """Steps there will be if none fails, None if they adapt."""
        if isinstance(self.dt, Adaptive):
            return None
        if isinstance(self.dt, Frozen):
            return len(self.dt.steps)
        return sum(_count(a, b, self.dt) for a, b in pairwise([t, *stops]) if b > a)

    def _stretch(self, t: float, stop: float) -> None:
        if isinstance(self.dt, Adaptive):
            self._adaptive_stretch(t, stop, self.dt)
            return
        if isinstance(self.dt, Frozen):
            for begin, end in self.dt.between(t, stop):
                self._advance(begin, end, 0)
            return
        for begin, end in _equal_steps(self.problem.comm, t, stop, self.dt):
            self._advance(begin, end, 0)

    def _advance(self, t: float, end: float, depth: int) -> None:
        """Step from t to end, in halves where a step fails."""
        if self.stepper.step(t, end - t):
            self._done(t, end)
            return
        self.rejected += 1
        if self.scheme.is_explicit or depth == _HALVINGS:
            self._fail(t, end - t)
        middle = 0.5 * (t + end)
        self._advance(t, middle, depth + 1)
        self._advance(middle, end, depth + 1)

    def _adaptive_stretch(self, t: float, stop: float, control: Adaptive) -> None:
        while t < stop:
            h = min(self.next_dt, stop - t)
            h = stop - t if stop - t < 1.01 * h else h
            good = self.stepper.step(t, h)
            error = self.stepper.error(control.atol, control.rtol) if good else np.inf
            good = good and isfinite(error)
            factor = 0.5 if not good else min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** (-1 / self.scheme.error_order)))
            if good and error <= 1:
                self._done(t, t + h)
                t = stop if h == stop - t else t + h
                self.next_dt = max(self.next_dt, h * factor) if h < self.next_dt else h * factor
                continue
            self.rejected += 1
            self.next_dt = h * factor
            least = max(control.smallest, 1e-14 * max(abs(t), abs(stop)))
            if self.next_dt < least:
                if isfinite(error):
                    self.stepper.failure = (
                        f"its error is {error:.3g} times the tolerance (rtol {control.rtol:g}, atol {control.atol:g}); "
                        f"a step below the smallest allowed, {least:.3g}, would be needed"
                    )
                self._fail(t, h)

    def _done(self, t: float, end: float) -> None:
        if self.recorder is not None:
            self.recorder.step(t, end - t, self.stepper)
        self.stepper.accept()
        self.steps.append((t, end - t))
        self.bar.update(end - t)
        if self.each_step and self.callback is not None:
            self.stepper.values(self.row.reshape(-1))
            self._show(end, self.current)

    def _show(self, t: float, values: Array) -> None:
        if self.callback is None:
            return
        if self.shown is None:
            self.shown = self.problem.function(values)
        else:
            self.problem.refill(self.shown, values)
        self.callback(t, self.shown)

    def _fail(self, t: float, dt: float) -> None:
        self.stepper.values(self.row.reshape(-1))
        motion = self.row[:2] if self.problem.second_order else self.current
        message = f"the step from t = {t:g} with dt = {dt:.3g} failed: {self.stepper.failure}"
        raise SolveError(message + _rescue(self.problem, motion, self.rescue), t, self.current.copy())


def _rescue(problem: Semidiscrete, values: Array, path: str | os.PathLike | None) -> str:
    """Write the last good state; return what to say about it."""
    if path is None:
        return ""
    try:
        save(problem, values, path)
    except OSError as error:
        return f"; the last good state could not be written ({error})"
    return f"; the last good state is in {path}"


def _count(t: float, stop: float, dt: float) -> int:
    """Number of equal steps of at most ``dt`` from t to ``stop``."""
    return max(1, ceil((stop - t) / dt * (1 - 1e-10)))


def _equal_steps(comm: MPI.Comm, t: float, stop: float, dt: float) -> Iterator[tuple[float, float]]:
    """Yield begin and end of equal steps of at most ``dt`` from t to ``stop``."""
    count = _count(t, stop, dt)
    h = (stop - t) / count
    if abs(h / dt - 1) > 1e-8:
        text = f"dt = {dt:g} does not divide [{t:g}, {stop:g}]: {count} steps of {h:.6g} are taken"
        warn_once(comm, text, UserWarning)
    for k in range(count):
        yield t + k * h, stop if k == count - 1 else t + (k + 1) * h


def planned_steps(
    comm: MPI.Comm, t: Any, dt: Any, scheme: Scheme | Newmark, observe: Sequence[float] | None
) -> tuple[list[tuple[float, float]], list[int]]:
    """Return the steps, as (time, dt), that a solve takes, and after how many of them it observes.

    Arguments and errors are those of :func:`solve`; steps that adapt cannot be planned (ValueError).
    """
    t0, t1 = _interval(t)
    step = _step(dt, t0, t1, scheme)
    if isinstance(step, Adaptive):
        raise ValueError("dt: Adaptive() given; steps known beforehand allowed")
    times, _ = _observation(observe, t0, t1)
    ends: list[tuple[float, float]] = []
    observed, now = [], t0
    for stop in [*times, *([] if times and times[-1] == t1 else [t1])]:
        if stop > now:
            ends += step.between(now, stop) if isinstance(step, Frozen) else _equal_steps(comm, now, stop, step)
        observed.append(len(ends))
        now = stop
    return [(begin, end - begin) for begin, end in ends], observed[: len(times)]


def _solve_stationary(
    problem: Semidiscrete,
    guesses: Sequence[Array],
    preconditioner: ShiftedLaplacian | None,
    rescue: str | os.PathLike | None,
    begun: float,
    recorder: Recorder | None,
) -> Solution:
    state, scale = problem.new_state(), 0.0
    for guess in guesses:
        problem.load(guess, state)
        problem.constrain(0.0, state)
        problem.store(state, guess)
    values = guesses[0]
    newton = Newton.borrow(problem, "all", True, preconditioner)
    try:
        if len(guesses) > 1 or preconditioner is not None:
            residuals = [newton.residual_at(guess) for guess in guesses]
            scale, values = residuals[0], guesses[int(np.argmin(residuals))]
        if not newton.solve(0.0, values, 1.0, values, scale):
            message = (
                f"the stationary solve failed: Newton's method did not converge (SNES reason "
                f"{newton.snes.getConvergedReason()}, residual {newton.residual_norm:.3e})"
            )
            raise SolveError(message + _rescue(problem, values, rescue), float("nan"), values)
        found = newton.found.copy()
        if recorder is not None:
            recorder.begin(None, 0.0, values, 1)
            recorder.stationary(found)
        return Solution(
            problem,
            0.0,
            found,
            newton_iterations=newton.newton_iterations,
            linear_iterations=newton.linear_iterations,
            seconds=time.perf_counter() - begun,
            assembly_seconds=newton.assembly_seconds,
        )
    finally:
        newton.give_back()


def warn_of_unresolved_waves(problem: Semidiscrete) -> None:
    """Warn, once a problem, of waves that have fewer than four points a wavelength somewhere (collective)."""
    if problem.equation.waves is None or problem.warned_of_waves:
        return
    points = problem.points_a_wavelength()
    if points < _POINTS_A_WAVELENGTH * (1 - 1e-9):
        problem.warned_of_waves = True
        text = (
            f"the mesh does not resolve the waves: {points:.3g} points a wavelength where they are fewest, "
            f"{_POINTS_A_WAVELENGTH} at least, and 10 or more for results of some percent, are needed"
        )
        warn_once(problem.comm, text, UserWarning)


def check_flow(problem: Semidiscrete, scheme: Scheme | Newmark) -> None:
    """Raise ValueError if a scheme needs a flow that the problem has not."""
    if isinstance(scheme, Newmark) or not scheme.needs_flow:
        return
    try:
        _ = problem.flow_data
    except ValueError as error:
        raise ValueError(f"scheme {scheme.name}: {error}") from error


def _interval(t: Any) -> tuple[float, float]:
    if t is None:
        raise ValueError("solve: t = (t0, t1) is needed for an equation with a time derivative")
    try:
        t0, t1 = (float(v) for v in t)
    except (TypeError, ValueError) as error:
        raise TypeError(f"t must be a pair of numbers (t0, t1), not {t!r}") from error
    if not (isfinite(t0) and isfinite(t1) and t0 < t1):
        raise ValueError(f"t = ({t0:g}, {t1:g}) given; finite times with t0 < t1 allowed")
    return t0, t1


def _step(dt: Any, t0: float, t1: float, scheme: Scheme | Newmark) -> float | Adaptive | Frozen:
    if isinstance(dt, Frozen):
        return dt
    if isinstance(dt, Adaptive):
        if not scheme.error:
            raise ValueError(f"dt: scheme {scheme.name} has no error estimate; adaptive steps need SDIRK2")
        return dt
    if dt is None:
        raise ValueError("solve: dt is needed for an equation with a time derivative")
    try:
        step = float(dt)
    except (TypeError, ValueError) as error:
        raise TypeError(f"dt must be a number or Adaptive(), not {dt!r}") from error
    if not (isfinite(step) and step > 0):
        raise ValueError(f"dt = {step} given; a positive finite number allowed")
    return step


def _observation(observe: Any, t0: float, t1: float) -> tuple[list[float], Callable[[float, Any], None] | None]:
    callback = None
    if isinstance(observe, tuple) and len(observe) == 2 and callable(observe[1]):
        observe, callback = observe
    if observe is None:
        return [], callback
    if callable(observe):
        return [], observe
    try:
        times = [float(v) for v in np.atleast_1d(observe)]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"observe must be times, a function (t, u), or a pair (times, function), not {observe!r}"
        ) from error
    if not times:
        raise ValueError("observe: no times given; at least one, or a function alone to see every step")
    slack = 1e-12 * (t1 - t0)
    for v in times:
        if not (t0 - slack <= v <= t1 + slack):
            raise ValueError(f"observe: time {v:g} lies outside of the run [{t0:g}, {t1:g}]")
    if sorted(set(times)) != times:
        raise ValueError(f"observe: times must increase, {times} given")
    return [min(max(v, t0), t1) for v in times], callback


def spectral_radius(problem: Semidiscrete, t: float, values: Array, iterations: int = 40) -> float:
    """Estimate the largest |eigenvalue| of ``M^-1 R'(u)`` by the nonlinear power method (collective).

    Of an equation with inertia that of ``M_A^-1 R'(u)``, the square of the highest frequency.

    Differences of rates along a rough direction that depends on coordinates only, so that every number of ranks gives
    the same estimate (as in RKC; Sommeijer, Shampine and Verwer 1998, J. Comput. Appl. Math. 88, section 2.3). It
    approaches the radius from below, within some percent.
    """
    comm = problem.comm

    def norm(v: Array) -> float:
        return float(np.sqrt(comm.allreduce(float(v @ v))))

    state, rate_state, zero = (problem.new_state() for _ in range(3))
    rate0, rate1 = np.zeros(problem.n_owned), np.zeros(problem.n_owned)

    def find_rate(at: Array, out: Array) -> None:
        problem.load(at, state)
        if problem.second_order:
            problem.rate(t, state, out)
            problem.solve_mass(out, out, False, 0.0, 1.0)
        else:
            problem.advance(t, state, zero, 1.0, t, rate_state)
            problem.store(rate_state, out)

    find_rate(values, rate0)
    x = problem.coordinates()
    extent = comm.allreduce(float(np.max(np.abs(x), initial=0.0)), op=MPI.MAX) or 1.0
    rough = np.sin(x @ np.array([12.9898, 78.233, 37.719]) * (1000.0 / extent)) * 43758.5453
    rough -= np.floor(rough)
    v = np.repeat(rough - 0.5, problem.n_owned // max(1, rough.size))
    v[problem.constrained] = 0.0
    eps = 1e-6 * max(1.0, norm(values) / np.sqrt(problem.n_global))
    radius = 0.0
    for _ in range(iterations):
        size = norm(v) / np.sqrt(problem.n_global)
        if size == 0 or not isfinite(size):
            return radius
        v *= eps / size
        find_rate(values + v, rate1)
        rate1 -= rate0
        rate1[problem.constrained] = 0.0
        previous, radius = radius, norm(rate1) / norm(v)
        v[:] = rate1
        if abs(radius - previous) < 0.005 * radius:
            break
    return radius


def stable_step(problem: Semidiscrete, scheme: Scheme | Newmark, t: float, values: Array) -> float:
    """Return the largest stable step of a scheme at a state, from :func:`spectral_radius` (collective)."""
    if not isfinite(scheme.stable_to):
        return float("inf")
    radius = spectral_radius(problem, t, values)
    return scheme.stable_to / (sqrt(radius) if problem.second_order else radius) if radius else float("inf")


def check_stability(problem: Semidiscrete, scheme: Scheme | Newmark, t: float, values: Array, dt: float) -> None:
    limit = stable_step(problem, scheme, t, values)
    if dt > limit * 1.0001:
        kind = "highest frequency" if problem.second_order else "spectral radius"
        raise Refused(
            f"dt = {dt:g} is above the stability limit {limit:.4g} of {scheme.name} for this problem "
            f"({kind} about {scheme.stable_to / limit:.4g}): take a smaller step or an implicit scheme"
        )
