"""A problem, a loss and its controls: PDE-constrained optimisation in one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.optimize.block import solve
from npde_fem.optimize.functionals import integral
from npde_fem.optimize.minimize import Minimum
from npde_fem.optimize.minimize import minimize as minimize_reduced
from npde_fem.optimize.regularisation import Regularisation
from npde_fem.parallel import warn_once
from npde_fem.parameter import ComplexParameter, Parameter

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from pyadjoint import AdjFloat, Control, ReducedFunctional, Tape
from pyadjoint.tape import annotate_tape, continue_annotation, pause_annotation, set_working_tape

__all__ = ["PDEConstrainedProblem"]


class PDEConstrainedProblem:
    """Minimise ``J(u, theta) + regularisation`` over parameters theta, under the equation that u solves.

    The problem is solved once when this is made, on a tape of its own.

    Parameters
    ----------
    problem
        The problem.
    loss
        Function of the solution that returns an AdjFloat, a sum of misfits and integrals.
    controls
        A parameter or several, numbers or fields; a ComplexParameter is two, its parts.
    regularisation
        Terms such as :class:`~npde_fem.optimize.L2` that are added to the loss.
    **arguments
        Arguments of the taped :func:`~npde_fem.optimize.solve`.

    Attributes
    ----------
    reduced
        pyadjoint's reduced functional.
    controls
        The controls.

    Raises
    ------
    TypeError, ValueError
        If there are no controls, one stands there twice, is no Parameter or does not enter the loss, the loss is no
        single number of the tape, or not finite, or an argument is not fit for the solve.
    SolveError
        If the solve fails.
    """

    def __init__(
        self,
        problem: Semidiscrete,
        loss: Callable[[Any], AdjFloat],
        controls: Parameter | Sequence[Parameter],
        regularisation: Sequence[Regularisation] = (),
        **arguments: Any,
    ) -> None:
        self.problem, self.controls = problem, _checked_controls(controls)
        if not callable(loss):
            raise TypeError(f"loss must be a function of the solution, not {loss!r}")
        terms = [regularisation] if isinstance(regularisation, Regularisation) else list(regularisation)
        for term in terms:
            if not isinstance(term, Regularisation):
                raise TypeError(f"regularisation: terms such as L2(parameter, weight) allowed, {term!r} given")
        known = {*problem.parameters.values(), *self.controls, *(t.parameter for t in terms)}
        with _own_tape(problem, known) as tape:
            total = _checked_loss(loss(solve(problem, **arguments)))
            for term in terms:
                total = total + self._regularise(term)
            if not np.isfinite(float(total)):
                raise ValueError(f"loss: {float(total)} at the parameters' values; a finite number is needed")
            self._variables = {p: p.block_variable for p in {*known, *problem.parameters.values()}}
            self.reduced = ReducedFunctional(total, [Control(c) for c in self.controls], tape=tape)
        with tape.marked_functional_dependencies(total):
            idle = [c.name for c in self.controls if not self._variables[c].is_functional_dependency]
        if idle:
            raise ValueError(
                f"controls {idle} do not enter the loss: neither the equation, nor its boundary or initial data, nor a "
                "regularisation contains them"
            )
        self._stands = True

    def _regularise(self, term: Regularisation) -> AdjFloat:
        if term.parameter.is_field:
            return integral(self.problem, term.integrand)
        volume = float(self.problem.total(np.ones(self.problem.n_owned))[0])
        return integral(self.problem, lambda u, x, t: term.integrand(u, x, t) / volume)

    def _move(self) -> None:
        """Let the tape stand at the present values of all parameters."""
        changed = not self._stands
        for parameter, variable in self._variables.items():
            values = parameter._ad_values()
            if variable.checkpoint is None:
                continue
            same = np.array_equal(variable.checkpoint, values)
            if not self.problem.comm.allreduce(same, op=MPI.LAND):
                variable.checkpoint, changed = values, True
        if changed:
            self._stands = False
            self.reduced([c._ad_copy() for c in self.controls])
            self._stands = True

    def loss(self) -> float:
        """Return the loss at the parameters' present values (collective, as all methods)."""
        self._move()
        return float(self.reduced.functional.block_variable.saved_output)

    def gradient(self) -> dict[str, Array]:
        """Return the derivative of the loss by each control, by name: in its shape, a field's owned values flat."""
        self._move()
        return self._named(self.reduced.derivative())

    def hessian_product(self, direction: Mapping[str, Any]) -> dict[str, Array]:
        """Return the Hessian of the loss times a direction, as :meth:`gradient`.

        Parameters
        ----------
        direction
            By name what :meth:`Parameter.like` takes; controls left out do not move.

        Raises
        ------
        ValueError
            If a name is no control's.
        """
        if unknown := set(direction) - {c.name for c in self.controls}:
            raise ValueError(f"direction: {sorted(unknown)} given; the controls are {[c.name for c in self.controls]}")
        self._move()
        self.reduced.derivative()
        return self._product(direction)

    def _product(self, direction: Mapping[str, Any]) -> dict[str, Array]:
        return self._named(self.reduced.hessian([c.like(direction.get(c.name, 0.0)) for c in self.controls]))

    def _named(self, values: Sequence[Parameter]) -> dict[str, Array]:
        return {c.name: v._ad_values() for c, v in zip(self.controls, values, strict=True)}

    def minimize(self, method: str | None = None, **arguments: Any) -> Minimum:
        """Minimise from the parameters' present values; see :func:`~npde_fem.optimize.minimize`."""
        self._move()
        self._stands = False
        result = minimize_reduced(self.reduced, method, **{"comm": self.problem.comm, **arguments})
        self._stands = True
        return result

    def covariance(
        self, noise: float | None = None, residuals: int | None = None, held: npt.ArrayLike | None = None
    ) -> Array:
        """Return the covariance ``noise^2 H^-1`` of number controls, H the Hessian at their present values.

        It is that of the estimate, to first order in the noise, where the loss is half a sum of squared residuals
        (Seber and Wild 1989, Nonlinear Regression, section 2.1; with the full Hessian in place of Gauss and Newton's).

        Parameters
        ----------
        noise
            Standard deviation of the data. 1 by default: the loss divides residuals by it already.
        residuals
            Their number n, where the noise is unknown: then ``noise^2 = 2 J / (n - p)`` with p numbers estimated.
        held
            Which of the p numbers, as booleans, are held where they are, for example by a bound; none by default.

        Returns
        -------
        Array
            Shape ``(p, p)``, the numbers in the order of the controls and their entries; zero for those held. NaN, with
            a warning, where the Hessian of the others is not positive definite, so that this is no minimum.

        Raises
        ------
        TypeError, ValueError
            If a control is a field, both arguments are given, or there are not more residuals than numbers.
        """
        if fields := [c.name for c in self.controls if c.is_field]:
            raise TypeError(f"covariance: of numbers only; the controls {fields} are fields")
        if noise is not None and residuals is not None:
            raise ValueError("covariance: noise or the number of residuals allowed, both given")
        sizes = [int(np.prod(c.ufl_shape, dtype=int)) for c in self.controls]
        p = sum(sizes)
        variance = 1.0 if noise is None else float(noise) ** 2
        if residuals is not None:
            if not residuals > p:
                raise ValueError(f"covariance: {residuals} residuals given; more than the {p} numbers estimated needed")
            variance = 2 * self.loss() / (residuals - p)
        free = np.ones(p, dtype=bool) if held is None else ~np.asarray(held, dtype=bool)
        found = np.zeros((p, p))
        if not free.any():
            return found
        self._move()
        self.reduced.derivative()
        rows = []
        for unit in np.eye(p)[free]:
            parts = np.split(unit, np.cumsum(sizes)[:-1])
            direction = {c.name: v.reshape(c.ufl_shape) for c, v in zip(self.controls, parts, strict=True)}
            rows.append(np.concatenate([v.ravel() for v in self._product(direction).values()])[free])
        hessian = 0.5 * (np.array(rows) + np.transpose(rows))
        size = np.sqrt(np.abs(np.diag(hessian)))
        # Parameters may differ by orders of magnitude, so definiteness is that of the Hessian with unit diagonal.
        if not np.all(size > 0) or np.linalg.eigvalsh(hessian / np.outer(size, size))[0] <= 1e-12:
            text = "covariance: the Hessian is not positive definite: this is no minimum that the data determine"
            warn_once(self.problem.comm, text, UserWarning)
            inverse = np.full_like(hessian, np.nan)
        else:
            inverse = np.linalg.inv(hessian / np.outer(size, size)) / np.outer(size, size)
        found[np.ix_(free, free)] = variance * inverse
        return found

    def standard_errors(self, noise: float | None = None, residuals: int | None = None) -> dict[str, Array]:
        """Return the standard errors of number controls by name, in their shapes; arguments of :meth:`covariance`."""
        errors = np.sqrt(np.diag(self.covariance(noise, residuals)))
        ends = np.cumsum([np.prod(c.ufl_shape, dtype=int) for c in self.controls])[:-1]
        parts = np.split(errors, ends)
        return {c.name: v.reshape(c.ufl_shape) for c, v in zip(self.controls, parts, strict=True)}


def _checked_controls(controls: Any) -> list[Parameter]:
    given = [controls] if isinstance(controls, Parameter | ComplexParameter) else list(controls)
    parts = ([c.real, c.imag] if isinstance(c, ComplexParameter) else [c] for c in given)
    listed = [part for pair in parts for part in pair]
    if not listed:
        raise ValueError("controls: none given; at least one is needed")
    for control in listed:
        if not isinstance(control, Parameter):
            raise TypeError(f"controls: Parameters allowed, {control!r} given")
    names = [c.name for c in listed]
    if len(set(names)) < len(names):
        raise ValueError(f"controls: {names} given; each may stand there once, and names must differ")
    return listed


def _checked_loss(value: Any) -> AdjFloat:
    if isinstance(value, AdjFloat):
        return value
    if np.ndim(value) > 0:
        raise TypeError(f"loss must return one number, not an array of shape {np.shape(value)}")
    raise TypeError(
        f"loss must return an AdjFloat, made of misfit() and integral(), not {value!r}, a {type(value).__name__} that "
        "the tape knows nothing of"
    )


@contextmanager
def _own_tape(problem: Semidiscrete, known: set[Parameter]) -> Iterator[Tape]:
    """Annotate on a new tape, on which parameters have variables of their own; then all is as it was."""
    before = {p: p._block_variable for p in known}
    annotated = annotate_tape()
    for parameter in known:
        parameter.clear_block_variable()
    try:
        with set_working_tape(Tape()) as tape:
            continue_annotation()
            yield tape
    finally:
        if not annotated:
            pause_annotation()
        for parameter in {*problem.parameters.values(), *known}:
            parameter.clear_block_variable()
            if parameter in before:
                parameter._block_variable = before[parameter]
