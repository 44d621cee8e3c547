"""A solve as a layer of a torch model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from npde_fem.discretize.probe import Probe
from npde_fem.discretize.semidiscrete import Semidiscrete
from npde_fem.equation import Initial
from npde_fem.learn import bounds
from npde_fem.learn.bridge import measured, solved
from npde_fem.learn.distributed import Distributed
from npde_fem.learn.task import Key, Task
from npde_fem.learn.tensors import as_complex, refuse_gradients, slot_of
from npde_fem.neural_terms import Weights
from npde_fem.parallel import alike
from npde_fem.parameter import ComplexParameter, Parameter
from npde_fem.solve.history import Checkpoints
from npde_fem.solve.integrate import Adaptive
from npde_fem.solve.preconditioner import ShiftedLaplacian
from npde_fem.solve.schemes import Newmark, Scheme

import numpy as np
import torch

__all__ = ["Layer", "key_of", "observation", "settled"]

Name = Parameter | str


class Layer(torch.nn.Module):
    """A solve as a module of torch: tensors in, states or signals out, the equation's parameters as its weights.

    Called with tensors for ``inputs``, it solves the problem and returns the result. All is differentiable: backwards
    by one adjoint sweep, twice by the second-order adjoint, and forwards. Solves are in float64 on the CPU; tensors of
    float32, or on another device, are converted and results come back as the inputs are (without inputs: in float64).

    Parameters
    ----------
    problem
        An :class:`~npde_fem.FEM` or :class:`~npde_fem.FD`.
    t, dt, scheme, checkpoints, preconditioner
        As of :func:`npde_fem.solve`. Adaptive steps are frozen in derivatives.
    inputs
        What the tensors stand for, in order: ``"u0"``, ``"velocity"`` (the initial one), a parameter of the problem or
        its name. Sources, coefficients and boundary data are inputs by the parameters that stand in them. By default
        ``("u0",)``, and nothing for a stationary problem.
    observe
        None: the final state is returned; times: the states then; a :class:`~npde_fem.Probe`: the final state at its
        points; a pair (times, probe): the states at these times and points.
    parameters
        The parameters to train; by default all of the problem that are no inputs. The others keep the values that they
        have in the equation when the layer is called.
    bounded
        Keep trained parameters inside their bounds: what is trained, and stands in the ``state_dict``, is then a free
        value f, with ``p = lower + log(1 + e^f)``, ``p = upper - log(1 + e^f)``, or, of two bounds,
        ``p = lower + (upper - lower) / (1 + e^-f)``; without it, bounds are not looked at.
    u0, velocity
        Initial data that is no input, as of :func:`npde_fem.solve`.
    with_velocity
        Return a pair, the state and its time derivative; for equations with inertia.

    Attributes
    ----------
    problem
        The problem.

    Raises
    ------
    TypeError, ValueError
        If an input or parameter is none of the problem, is named twice, or what is observed is no times or probe; if
        ``bounded`` and a value lies on a bound or beyond.

    Notes
    -----
    *Names.* Weights are named as in the equation; what torch takes for no name, as a dot, becomes ``_``, and a name
    that modules need themselves, as ``half``, gets a ``_`` behind it. A network in the equation (``npde_fem.neural``)
    is a submodule by its name: training the layer trains the user's module.

    *On several ranks* every call is collective, as are ``backward`` and ``write_back``. States and fields are
    distributed: a rank's tensor has the dofs that it owns; numbers, weights and signals are replicated. The loss must
    be replicated (see :func:`~npde_fem.learn.mean`); then the gradient by a replicated tensor is complete on every
    rank. A ``state_dict`` has this rank's part of the fields.

    *Kept for a backward pass* are the states of all steps, or ``checkpoints`` of them, as long as torch keeps the
    graph; under ``no_grad`` nothing is.

    *Copies* (``copy.deepcopy``) have weights of their own and share the problem. A problem cannot be pickled; save
    the ``state_dict``.
    """

    def __init__(
        self,
        problem: Semidiscrete,
        t: tuple[float, float] | None = None,
        dt: float | Adaptive | None = None,
        scheme: Scheme | Newmark | None = None,
        *,
        inputs: Sequence[Name] | Name | None = None,
        observe: Any = None,
        parameters: Sequence[Name] | None = None,
        bounded: bool = False,
        u0: Any = 0.0,
        velocity: Any = None,
        with_velocity: bool = False,
        checkpoints: int | Checkpoints | None = None,
        preconditioner: ShiftedLaplacian | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(problem, Semidiscrete):
            raise TypeError(f"problem must be FEM or FD, not {type(problem).__name__}")
        problem.meet([u0, velocity], ())
        if inputs is None:
            inputs = () if problem.stationary else ("u0",)
        keys = [key_of(problem, "inputs", given) for given in _listed("inputs", inputs)]
        trained = [p for p in problem.parameters.values() if p not in keys]
        if parameters is not None:
            trained = [_parameter(problem, given) for given in _listed("parameters", parameters)]
        _refuse_twice([*keys, *trained])
        if with_velocity and not problem.second_order:
            raise ValueError("with_velocity: for equations with inertia; this one has none")
        times, self._probe = observation(problem, observe)
        refuse_gradients({"t": t, "dt": dt, "observe": times})
        if isinstance(checkpoints, int):
            checkpoints = Checkpoints(checkpoints)
        state, rate = ("states", "velocities") if times is not None else ("final", "final_velocity")
        arguments = {"t": t, "dt": dt, "scheme": scheme, "observe": times, "preconditioner": preconditioner}
        self._task = Task(
            problem,
            tuple([*keys, *trained]),
            (state, rate) if with_velocity else (state,),
            settled(problem, {"u0": u0, "velocity": velocity}, keys),
            {**arguments, "rescue": None, "progress": False},
            checkpoints=checkpoints,
        )
        self._slots = [slot_of(problem, key) for key in keys]
        self._bounded, self._names = bool(bounded), dict[str, str]()
        for parameter in trained:
            self._names[parameter.name] = self._attribute(parameter.name)
            self._register(parameter)

    def _register(self, parameter: Parameter) -> None:
        """Make a parameter a weight of the module, or its network a part of it."""
        attribute = self._names[parameter.name]
        if isinstance(parameter, Weights):
            self.add_module(attribute, parameter.network.module)
            return
        problem = self._task.problem
        values = problem.field_values(parameter) if parameter.is_field else np.array(parameter.value)
        if self._bounded:
            with alike(problem.comm):
                values = bounds.free(parameter, values)
        kind = Distributed if parameter.is_field else torch.nn.Parameter
        self.register_parameter(attribute, kind(torch.as_tensor(values)))

    def _attribute(self, name: str) -> str:
        """Return the attribute that holds a parameter's weight."""
        attribute = re.sub(r"\W", "_", name)
        while hasattr(self, attribute):
            attribute += "_"
        return attribute

    @property
    def problem(self) -> Semidiscrete:
        """The problem that is solved."""
        return self._task.problem

    def extra_repr(self) -> str:
        """Return equation, discretisation and inputs for ``repr``."""
        labels = ", ".join(slot.label for slot in self._slots)
        return f"{self.problem.equation.name}, {self.problem.method}, inputs=({labels})"

    # -- weights ---------------------------------------------------------------------------------------------

    def as_tensor_of(self, parameter: Name) -> torch.Tensor:
        """Return a trained parameter's value, differentiable by the module's weights.

        Returns
        -------
        Tensor
            Of the parameter's shape; a field's owned dofs; a network's weights, float64, one after the other.

        Raises
        ------
        TypeError, ValueError
            If it is no parameter that this layer trains.
        """
        known = _parameter(self.problem, parameter)
        if known.name not in self._names:
            raise ValueError(f"parameter {known.name!r} given; those that this layer trains are {sorted(self._names)}")
        return self._tensor(known.name)

    def trained(self) -> list[tuple[torch.Tensor, Parameter]]:
        """Return the weights that are a parameter's own value, with it: without networks, and none if ``bounded``."""
        parameters = self.problem.parameters
        pairs = [(getattr(self, attribute), parameters[name]) for name, attribute in self._names.items()]
        return [] if self._bounded else [pair for pair in pairs if isinstance(pair[0], torch.nn.Parameter)]

    def _tensor(self, name: str) -> torch.Tensor:
        held = getattr(self, self._names[name])
        if isinstance(held, torch.nn.Module):
            parts = [p.reshape(-1).to(torch.float64) for p in held.parameters()]
            return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
        return bounds.value(self.problem.parameters[name], held) if self._bounded else held

    def write_back(self) -> None:
        """Give the equation's parameters the values that the layer has (collective).

        Raises
        ------
        ValueError
            If a value is not finite, or outside of the parameter's bounds.
        """
        problem = self.problem
        for name in self._names:
            parameter, values = problem.parameters[name], self._tensor(name).detach().cpu().double().numpy()
            if parameter.is_field:
                problem.set_field(parameter, values)
            else:
                parameter.value = values

    # -- solving ---------------------------------------------------------------------------------------------

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Solve the problem (collective).

        Parameters
        ----------
        *tensors
            One for each of ``inputs``, in order. A state: the dofs that this rank owns, ``(n,)``, of a complex state
            complex numbers; a field likewise; a number: of its shape. A leading axis of samples on some of them makes
            a batch, for which the others are the same.

        Returns
        -------
        Tensor
            The final state ``(n,)``, the states ``(times, n)``, or signals ``(points, m)`` or ``(times, points, m)``;
            of a batch with samples before all that. A pair of such if ``with_velocity``.

        Raises
        ------
        TypeError, ValueError
            If the number of tensors, a type, shape, device or value does not fit, or ranks do not agree.
        SolveError
            If a solve fails.
        """
        found, kind = solved(self._task, self._slots, tensors, [self._tensor(name) for name in self._names])
        results = [kind.like(self._seen(found[name])) for name in self._task.outputs]
        return results[0] if len(results) == 1 else (results[0], results[1])

    def _seen(self, states: torch.Tensor) -> torch.Tensor:
        """Return states as they are observed."""
        seen = states if self._probe is None else measured(self._probe, states)
        return as_complex(seen) if self.problem.equation.is_complex else seen


def key_of(problem: Semidiscrete, label: str, given: Any) -> Key:
    """Return what an input means, or raise TypeError or ValueError."""
    if given == "velocity" and not problem.second_order:
        raise ValueError(f"{label}: 'velocity' given; it is for equations with inertia, and this one has none")
    if given == "u0" or given == "velocity":
        return given
    return _parameter(problem, given, label, ("u0", "velocity") if problem.second_order else ("u0",))


def _parameter(problem: Semidiscrete, given: Any, label: str = "parameters", others: Sequence[str] = ()) -> Parameter:
    """Return a parameter of the problem by itself or its name."""
    if isinstance(given, ComplexParameter):
        raise TypeError(f"{label}: {given!r} given; its two parts allowed: {given.real.name!r}, {given.imag.name!r}")
    if not isinstance(given, Parameter | str):
        raise TypeError(f"{label}: a Parameter or its name allowed, {given!r} given")
    known = problem.parameters.get(given if isinstance(given, str) else given.name)
    if known is None or (isinstance(given, Parameter) and known is not given):
        allowed = [*others, *sorted(problem.parameters)]
        raise ValueError(f"{label}: {given!r} given, which does not enter the problem; {allowed} allowed")
    return known


def _listed(label: str, given: Any) -> list[Any]:
    """Return one or several names as a list."""
    if isinstance(given, Parameter | ComplexParameter | str):
        return [given]
    if not isinstance(given, Sequence):
        raise TypeError(f"{label}: a sequence of Parameters and names allowed, {given!r} given")
    return list(given)


def _refuse_twice(keys: Sequence[Key]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            name = key.name if isinstance(key, Parameter) else key
            raise ValueError(f"inputs and parameters: {name!r} given twice; once allowed")


def observation(problem: Semidiscrete, observe: Any) -> tuple[list[float] | None, Probe | None]:
    """Return times and probe of what is observed."""
    times, probe = observe, None
    if isinstance(observe, Probe):
        times, probe = None, observe
    elif isinstance(observe, tuple) and len(observe) == 2 and (isinstance(observe[1], Probe) or callable(observe[1])):
        times, probe = observe
    if callable(times) or callable(probe):
        raise TypeError("observe: a function given, through which nothing is differentiated; times and a Probe allowed")
    if probe is not None:
        with alike(problem.comm):
            if (probe.components, probe.n_owned) != (problem.components, problem.n_owned):
                raise ValueError("observe: a probe of another problem given; one of this problem allowed")
    if times is None:
        return None, probe
    refuse_gradients({"observe": times})
    try:
        return [float(v) for v in np.atleast_1d(times)], probe
    except (TypeError, ValueError) as error:
        raise TypeError(f"observe: times, a Probe, or a pair (times, Probe) allowed, {observe!r} given") from error


def settled(problem: Semidiscrete, given: dict[str, Any], keys: Sequence[Key]) -> dict[str, Any]:
    """Return the initial data that is no input: in UFL, or values."""
    found: dict[str, Any] = {}
    for label, data in given.items():
        if label in keys or data is None:
            continue
        refuse_gradients({label: data})
        if isinstance(data, torch.Tensor):
            data = data.detach().cpu().resolve_conj().resolve_neg().numpy()
        found[label] = data if isinstance(data, Initial) else problem.initial(data, label=label)
    return found
