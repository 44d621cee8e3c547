"""A whole solve as one operation of pyadjoint's tape.

While pyadjoint records (``pyadjoint.continue_annotation()``), :func:`solve` puts one block on the tape. It depends on
the problem's parameters and on the initial state (and velocity, of an equation with inertia); its outputs are the
states, with the velocities, and the time integrals. Played again with other values it solves again; asked for
derivatives it sweeps through the solve it made last (:class:`~npde_fem.solve.trajectory.Trajectory`), after making sure
that this was for the values the tape has now.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from npde_fem.discretize.grid import GridFunction
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.equation import Initial
from npde_fem.optimize.operation import Operation
from npde_fem.optimize.values import as_adjoint, as_array, is_function, with_values
from npde_fem.parameter import Parameter
from npde_fem.solve import integrate
from npde_fem.solve.history import Checkpoints
from npde_fem.solve.preconditioner import ShiftedLaplacian
from npde_fem.solve.schemes import Newmark, Scheme
from npde_fem.solve.trajectory import Cotangents, Derivative, Trajectory
from npde_fem.taped import Taped

import numpy as np
from mpi4py import MPI
from pyadjoint import AdjFloat, Tape, annotate_tape, get_working_tape, set_working_tape
from pyadjoint.overloaded_type import OverloadedType
from pyadjoint.tape import stop_annotating

__all__ = ["States", "TapedSolution", "solve"]


class States(Taped):
    """The states of a solve on the tape, or their velocities: those observed, and the final one last.

    Attributes
    ----------
    problem
        The problem they belong to.
    values
        Shape ``(times + 1, n_owned)``: the dofs that this rank owns.
    times
        Their times.
    """

    _ad_spread = True

    def __init__(self, problem: Semidiscrete, values: Array, times: Sequence[float]) -> None:
        super().__init__()
        self.problem, self.values, self.times = problem, values, tuple(times)

    @property
    def _ad_comm(self) -> MPI.Comm:
        return self.problem.comm

    def _ad_values(self) -> Array:
        return self.values.copy()

    def _ad_shape(self) -> tuple[int, ...]:
        return self.values.shape

    def _ad_assign(self, values: Array) -> None:
        self.values[:] = values

    def _ad_like(self, values: Array) -> States:
        return States(self.problem, np.array(values), self.times)


@dataclass
class TapedSolution(integrate.Solution):
    """A solution that the tape knows: :attr:`u`, :meth:`at` and :attr:`integrals` may enter further operations.

    So may :attr:`velocity` and :meth:`velocity_at`.

    Attributes
    ----------
    on_tape, velocities_on_tape
        The states, and the velocities of an equation with inertia, as the tape has them.
    """

    on_tape: States | None = field(default=None, kw_only=True)
    velocities_on_tape: States | None = field(default=None, kw_only=True)

    @property
    def u(self) -> Any:
        """The final state: a ``dolfinx_adjoint.Function``, or a :class:`~npde_fem.GridFunction`.

        The tape knows real functions only: a complex state is one of its real pairs.
        """
        return _extract(self.on_tape, len(self.times))

    def at(self, index: int) -> Any:
        """Return the ``index``-th observed state, as :attr:`u`."""
        return _extract(self.on_tape, range(len(self.times))[index])

    @property
    def velocity(self) -> Any:
        """The final velocity, as :attr:`u`; an equation without inertia has none (ValueError)."""
        integrate.moving(self.velocity_values)
        return _extract(self.velocities_on_tape, len(self.times))

    def velocity_at(self, index: int) -> Any:
        """Return the ``index``-th observed velocity, as :attr:`u`."""
        integrate.moving(self.velocities)
        return _extract(self.velocities_on_tape, range(len(self.times))[index])


def solve(
    problem: Semidiscrete,
    u0: Any = 0.0,
    t: tuple[float, float] | None = None,
    dt: float | integrate.Adaptive | None = None,
    scheme: Scheme | Newmark | None = None,
    observe: Sequence[float] | Callable[[float, Any], None] | tuple | None = None,
    *,
    velocity: Any = None,
    parameters: Mapping[Parameter, Any] | None = None,
    integrals: Sequence[Callable] = (),
    checkpoints: int | Checkpoints | None = None,
    preconditioner: ShiftedLaplacian | None = None,
    rescue: str | os.PathLike | None = "npde-last-good-state.petsc",
    progress: bool = True,
) -> integrate.Solution:
    """Solve an equation on its mesh or grid (collective); while pyadjoint records, as one operation on its tape.

    Parameters
    ----------
    problem
        An :class:`~npde_fem.FEM` or :class:`~npde_fem.FD`.
    u0
        Initial state (first iterate of a stationary problem): a number, one number a component, a callable of
        coordinates (3, n), an :class:`~npde_fem.Initial` (UFL, with parameters), an array of owned dofs, a function,
        or for FD an array over the grid. Dirichlet data replaces it on its dofs. A ``dolfinx_adjoint.Function`` or a
        GridFunction may be a control, in the space of the problem.
    t
        Interval (t0, t1); not for a stationary problem.
    dt
        Largest step, or :class:`~npde_fem.Adaptive`. Steps of equal length, at most ``dt``, lead from t0 over every
        observed time to t1; where ``dt`` does not divide a stretch a warning says which step is taken. On the tape
        adaptive steps are frozen: it takes the same ones for other values.
    scheme
        Time scheme, Crank-Nicolson by default; for an equation with inertia that, :class:`~npde_fem.Newmark` or
        :func:`~npde_fem.Leapfrog`.
    observe
        Times at which to keep the state; or a function ``(t, u)`` called at t0 and after every step; or a pair
        (times, function): the states are kept and the function is called at these times only. ``u`` is the same
        object each time.
    velocity
        Initial velocity of an equation with inertia: what ``u0`` may be; zero by default.
    parameters
        Values for this solve in the place of the parameters' own: numbers, arrays, or objects on the tape (``AdjFloat``
        for a number, ``dolfinx_adjoint.Function`` or GridFunction for a field), which the result then depends on.
    integrals
        UFL callables ``(u, x, t)``: ``int int j dx dt`` by the trapezoidal rule over the steps (of a stationary problem
        ``int j dx``), in ``solution.integrals``.
    checkpoints
        For gradients: how many states to keep, an integer or :class:`~npde_fem.Checkpoints`; None for all. The states
        between are computed again, the gradient is the same.
    preconditioner
        :class:`~npde_fem.ShiftedLaplacian` for large Helmholtz problems, for which LU, their default, needs too much
        memory; of stationary problems only. It serves their adjoints too.
    rescue
        If a solve fails, its last good state is written here (see :func:`~npde_fem.restore`); None for nowhere.
    progress
        Show a progress line on rank 0 if that is a terminal.

    Returns
    -------
    Solution
        With ``u``, ``at(k)``, ``states``, ``times`` and ``integrals``; of an equation with inertia also with
        ``velocity``, ``velocity_at(k)`` and ``velocities``; a :class:`TapedSolution` while pyadjoint records.

    Raises
    ------
    TypeError, ValueError
        For bad arguments, initial data that is not finite, negative diffusion, or an explicit step above its
        stability limit; before any step.
    SolveError
        If a step fails even when halved six times, or an explicit state becomes NaN or infinite. The message names
        time and residual.
    """
    arguments: dict[str, Any] = {
        "t": t,
        "dt": dt,
        "scheme": scheme,
        "observe": observe,
        "rescue": rescue,
        "progress": progress,
        "preconditioner": preconditioner,
    }
    if not isinstance(problem, Semidiscrete):
        raise TypeError(f"problem must be FEM or FD, not {type(problem).__name__}")
    if checkpoints is not None and not isinstance(checkpoints, Checkpoints):
        checkpoints = Checkpoints(checkpoints)
    with stop_annotating():
        problem.meet([u0, velocity], integrals)
        given = _given(problem, parameters or {})
    if not annotate_tape():
        with problem.holding({name: as_array(value) for name, value in given.items()}):
            return _plain(problem, u0, velocity, integrals, arguments)
    if get_working_tape() is None:
        set_working_tape(Tape())
    return SolveOperation(problem, u0, velocity, arguments, given, integrals, checkpoints).first()


def rows_of(solution: integrate.Solution) -> Array:
    """Return the observed states and the final one, shape (times + 1, n_owned)."""
    return np.vstack([solution.states.reshape(len(solution.times), solution.problem.n_owned), solution.values])


def _velocities_of(solution: integrate.Solution) -> Array:
    """Return the observed velocities and the final one, as :func:`rows_of`."""
    return np.vstack([integrate.moving(solution.velocities), integrate.moving(solution.velocity_values)])


def _plain(
    problem: Semidiscrete, u0: Any, velocity: Any, integrals: Sequence[Callable], arguments: dict[str, Any]
) -> integrate.Solution:
    if not integrals:
        return integrate.solve(problem, u0, velocity=velocity, **arguments)
    recorder = Trajectory(problem, None, integrals, Checkpoints(1))
    solution = integrate.solve(problem, u0, velocity=velocity, **arguments, recorder=recorder)
    solution.integrals = recorder.integral_values.tolist()
    return solution


def _given(problem: Semidiscrete, parameters: Mapping[Parameter, Any]) -> dict[str, Any]:
    """Return the values given for parameters by name, those that are not on the tape as arrays of the right shape."""
    found: dict[str, Any] = {}
    for parameter, value in parameters.items():
        if not isinstance(parameter, Parameter) or problem.parameters.get(parameter.name) is not parameter:
            raise ValueError(
                f"parameters: {parameter!r} given; the problem's parameters are {sorted(problem.parameters)}"
            )
        if is_function(value) or isinstance(value, GridFunction):
            _check_layout(problem, f"parameters: the value of {parameter.name!r}", value, parameter)
        array = as_array(value)
        shape = (problem.field_size(parameter),) if parameter.is_field else parameter.ufl_shape
        if array.shape != shape and not (array.shape == () and not isinstance(value, OverloadedType)):
            raise ValueError(
                f"parameters: a value of shape {array.shape} given for {parameter.name!r}; {shape} allowed"
            )
        found[parameter.name] = value if isinstance(value, OverloadedType) else np.broadcast_to(array, shape).copy()
    return found


def _check_layout(problem: Semidiscrete, label: str, function: Any, parameter: Parameter | None = None) -> None:
    if not problem.has_layout(function, parameter):
        raise ValueError(
            f"{label}: a function on another mesh or grid, or of another element, given; on the tape it must be in the "
            f"space of the problem's {'state' if parameter is None else 'field'}"
        )


def _is_complex_state(problem: Semidiscrete, function: Any) -> bool:
    """Whether a function holds a complex state, not its real pairs as on the tape; there it is data like an array."""
    values = function.x.array if is_function(function) else as_array(function)
    return problem.equation.is_complex and np.iscomplexobj(values) and not problem.has_layout(function)


class SolveOperation(Operation):
    """One solve on the tape."""

    def __init__(
        self,
        problem: Semidiscrete,
        u0: Any,
        velocity: Any,
        arguments: dict[str, Any],
        given: Mapping[str, Any],
        integrals: Sequence[Callable],
        checkpoints: Checkpoints | None,
    ) -> None:
        super().__init__()
        self._problem, self._arguments = problem, arguments
        self._initial: dict[str, Any] = {"u0": u0}
        if velocity is not None:
            self._initial["velocity"] = velocity
        taped = [
            label
            for label, data in self._initial.items()
            if isinstance(data, OverloadedType) and not _is_complex_state(problem, data)
        ]
        for label, data in self._initial.items():
            if label in taped:
                _check_layout(problem, label, data)
            elif not isinstance(data, Initial):
                # The tape's own copy: what was given may change later.
                with stop_annotating():
                    self._initial[label] = problem.initial(data, label=label)
        for function in problem.data_functions:
            if isinstance(function, OverloadedType):
                raise ValueError(
                    f"the equation contains {function.name!r}, a function on the tape, which is no input of the solve: "
                    "write a Parameter with field=True in its place, and hand the function over by "
                    "solve(parameters={parameter: function})"
                )
        self._fixed = {name: value for name, value in given.items() if not isinstance(value, OverloadedType)}
        in_ufl = [data if isinstance(data, Initial) else None for data in (u0, velocity)]
        self._trajectory = Trajectory(
            problem, in_ufl[0], integrals, checkpoints, in_ufl[1], arguments["preconditioner"]
        )
        self._names: list[str] = []  # of the parameters among the inputs
        for name, parameter in problem.parameters.items():
            if name in self._fixed:
                continue
            if name not in given:
                settle(parameter, problem)
            self._names.append(name)
            self.add_dependency(given.get(name, parameter))
        self._functions = taped  # initial data among the inputs, which come after the parameters
        for label in taped:
            self.add_dependency(self._initial[label])
        self._solved_for: list[Array] | None = None

    def first(self) -> TapedSolution:
        """Solve, and put the operation and its outputs on the tape."""
        with stop_annotating():
            solution = self._solve(self.values())
        # Played again, the solve is silent: an observer saw it, and a trial that fails is the optimiser's business.
        self._arguments |= {"observe": solution.times or None, "rescue": None, "progress": False}
        if isinstance(self._arguments["dt"], integrate.Adaptive):
            self._arguments["dt"] = integrate.Frozen(solution.steps)
        times = [*solution.times, solution.t]
        states = [States(self._problem, rows, times) for rows in self._rows_of(solution)]
        numbers = [AdjFloat(value) for value in self._trajectory.integral_values]
        self.record(*states, *numbers)
        velocities = states[1] if self._problem.second_order else None
        taped = TapedSolution(**vars(solution), on_tape=states[0], velocities_on_tape=velocities)
        taped.integrals = numbers
        return taped

    def __str__(self) -> str:
        return f"solve {self._problem.equation.name}"

    # -- solving ---------------------------------------------------------------------------------------------

    def _holding(self, inputs: list[Array]) -> AbstractContextManager[None]:
        return self._problem.holding({**self._fixed, **dict(zip(self._names, inputs, strict=False))})

    def _solve(self, inputs: list[Array]) -> integrate.Solution:
        functions = dict(zip(self._functions, inputs[len(self._names) :], strict=True))
        initial = {**self._initial, **functions}
        self._solved_for = None
        with self._holding(inputs):
            solution = integrate.solve(self._problem, **initial, **self._arguments, recorder=self._trajectory)
        self._solved_for = [*inputs, *self._data()]
        return solution

    def _data(self) -> list[Array]:
        """Values of functions in the equation that are no inputs, to notice where a user has changed them."""
        return [as_array(function) for function in self._problem.data_functions]

    def is_current(self) -> bool:
        before, now = self._solved_for, [*self.values(), *self._data()]
        same = before is not None and all(np.array_equal(a, b) for a, b in zip(before, now, strict=True))
        return bool(self._problem.comm.allreduce(same, op=MPI.LAND))

    @contextmanager
    def _solved(self) -> Iterator[Trajectory]:
        """The trajectory, while the parameters have the values it was made for."""
        with self._holding(self.values()):
            yield self._trajectory

    def evaluate(self) -> list[Any]:
        rows = self._rows_of(self._solve(self.values()))
        return [*rows, *(AdjFloat(value) for value in self._trajectory.integral_values)]

    def _rows_of(self, solution: integrate.Solution) -> list[Array]:
        """The outputs that are arrays: states, and velocities of an equation with inertia."""
        return [rows_of(solution), *([_velocities_of(solution)] if self._problem.second_order else [])]

    # -- derivatives -----------------------------------------------------------------------------------------

    def _parameters(self, which: Iterable[int]) -> list[Parameter]:
        return [self._problem.parameters[self._names[i]] for i in sorted(set(which)) if i < len(self._names)]

    def _cotangents(self, values: Sequence[Any]) -> Cotangents:
        arrays = 2 if self._problem.second_order else 1
        parts = [part for rows in values[:arrays] for part in ((None, None) if rows is None else (rows[:-1], rows[-1]))]
        states, final, *velocities = parts
        return Cotangents(states, final, [0.0 if v is None else float(v) for v in values[arrays:]], *velocities)

    def _direction(self) -> tuple[list[int], dict[str, Array], tuple[Array | None, Array | None]]:
        """Which inputs move, how the parameters among them do, and how initial state and velocity do."""
        moves = self.moves()
        delta = {name: move for name, move in zip(self._names, moves, strict=False) if move is not None}
        functions = dict(zip(self._functions, moves[len(self._names) :], strict=True))
        moving = [i for i, move in enumerate(moves) if move is not None]
        return moving, delta, (functions.get("u0"), functions.get("velocity"))

    def _as_adjoints(self, derivative: Derivative, wanted: Sequence[int]) -> dict[int, Any]:
        initial: dict[str, Any] = {"u0": derivative.initial, "velocity": derivative.velocity}
        found = {}
        for i in wanted:
            first = len(self._names)
            values = derivative.parameters[self._names[i]] if i < first else initial[self._functions[i - first]]
            found[i] = as_adjoint(self.get_dependencies()[i].output, values)
        return found

    def adjoint(self, wanted: Sequence[int], by: Sequence[Any]) -> dict[int, Any]:
        with self._solved() as trajectory:
            derivative = trajectory.by(self._parameters(wanted)).adjoint(self._cotangents(by))
        return self._as_adjoints(derivative, wanted)

    def tangent(self) -> list[Any]:
        moving, delta, initial = self._direction()
        with self._solved() as trajectory:
            change = trajectory.by(self._parameters(moving)).tangent(delta, *initial)
        pairs = [(change.states, change.final), (change.velocities, change.final_velocity)]
        rows = [np.vstack([part for part in pair if part is not None]) for pair in pairs if pair[1] is not None]
        states = [self.get_outputs()[k].output._ad_like(values) for k, values in enumerate(rows)]
        return [*states, *(AdjFloat(v) for v in change.integrals)]

    def second(self, wanted: Sequence[int], by: Sequence[Any], change: Sequence[Any]) -> dict[int, Any]:
        moving, delta, initial = self._direction()
        with self._solved() as trajectory:
            trajectory.by(self._parameters([*wanted, *moving]))
            derivative = trajectory.second(self._cotangents(by), self._cotangents(change), delta, *initial)
        return self._as_adjoints(derivative, wanted)


def settle(parameter: Parameter, problem: Semidiscrete) -> None:
    """Make a parameter ready to be an input: its present value counts, and a field is laid out as this problem has it.

    A tape that was played with other values has left these with the parameter's variable there. A field that no tape
    knows any more may get another layout.

    Raises
    ------
    ValueError
        If a field is on the tape with the layout of another problem.
    """
    if parameter.is_field and parameter.home is not problem:
        unknown = problem.comm.allreduce(parameter._block_variable() is None, op=MPI.LAND)
        if parameter.home is None or unknown:
            parameter.clear_block_variable()
            parameter.home = problem
    if parameter.is_field and parameter.home is not problem:
        raise ValueError(
            f"field parameter {parameter.name!r} is on the tape with its values in another problem; give each problem "
            "a parameter of its own, or its values by solve(parameters={...: function})"
        )
    parameter.leave_tape(parameter._ad_values())


class _Extraction(Operation):
    """One state of a solve as a function."""

    def __init__(self, states: States, index: int) -> None:
        super().__init__()
        self._index = index
        self.add_dependency(states)

    def _row(self, values: Array) -> Any:
        return with_values(self.get_outputs()[0].output, values[self._index])

    def _spread(self, values: Any) -> dict[int, Any]:
        states = np.zeros(self.get_dependencies()[0].output._ad_shape())
        states[self._index] = as_array(values)
        return {0: states}

    def evaluate(self) -> list[Any]:
        made = self._row(self.values()[0])
        return [made._ad_values() if isinstance(made, Taped) else made]

    def adjoint(self, wanted: Sequence[int], by: Sequence[Any]) -> dict[int, Any]:
        return self._spread(by[0])

    def tangent(self) -> list[Any]:
        (move,) = self.moves()
        return [None if move is None else self._row(move)]

    def second(self, wanted: Sequence[int], by: Sequence[Any], change: Sequence[Any]) -> dict[int, Any]:
        return self._spread(change[0])


def _extract(states: States | None, index: int) -> Any:
    """Return a state as an overloaded function, by a block of its own while pyadjoint records."""
    assert states is not None
    with stop_annotating():
        function = _overloaded(states.problem, states.values[index])
    if annotate_tape():
        _Extraction(states, index).record(function)
    return function


def _overloaded(problem: Semidiscrete, values: Array) -> Any:
    function = problem.function(values, pairs=True)
    if isinstance(function, Taped):
        return function
    tape = get_working_tape()
    # Only one who uses finite elements on the tape needs dolfinx_adjoint. Its import sets a tape of its own.
    import dolfinx_adjoint

    if get_working_tape() is not tape:
        set_working_tape(tape)
    made = dolfinx_adjoint.Function(function.function_space, name=function.name)
    made.x.array[:] = function.x.array
    return made
