"""A stationary problem for many values of a parameter, such as the frequencies of a wave."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.parameter import Parameter
from npde_fem.solve.integrate import Solution, solve
from npde_fem.solve.preconditioner import ShiftedLaplacian

import numpy as np

__all__ = ["sweep"]

_REMEMBERED = 3


def sweep(
    problem: Semidiscrete,
    parameter: Parameter,
    values: Sequence[Any],
    u0: Any = 0.0,
    *,
    preconditioner: ShiftedLaplacian | None = None,
    rescue: str | os.PathLike | None = "npde-last-good-state.petsc",
) -> Iterator[Solution]:
    """Solve a stationary problem for one value of a parameter after the other (collective), off pyadjoint's tape.

    Everything but the matrix is made once: kernels, the matrix's pattern, the factorisation's symbolic part. An
    iterative solver begins at what the last solutions, extrapolated as a polynomial of the parameter, let expect, if
    that is better than ``u0``; its accuracy is that of a solve that begins at ``u0``.

    Parameters
    ----------
    problem
        The problem; its equation is stationary.
    parameter
        A number in it. While a solution is looked at it has that solution's value; in the end it has its old one again.
    values
        Its values.
    u0, preconditioner, rescue
        As in :func:`npde_fem.solve`.

    Yields
    ------
    Solution
        That of each value, in order.

    Raises
    ------
    TypeError, ValueError
        If the parameter is no number of the problem, a value does not fit it, or the problem is not stationary; when
        the first solution is asked for.
    SolveError
        If a solve fails.
    """
    if not isinstance(problem, Semidiscrete):
        raise TypeError(f"problem must be FEM or FD, not {type(problem).__name__}")
    if not isinstance(parameter, Parameter):
        raise TypeError(f"sweep: a Parameter allowed, {parameter!r} given")
    if problem.parameters.get(parameter.name) is not parameter or parameter.is_field:
        numbers = sorted(name for name, p in problem.parameters.items() if not p.is_field)
        raise ValueError(f"sweep: parameter {parameter.name!r} given; the problem's numbers are {numbers}")
    if not problem.stationary:
        raise ValueError("sweep: the problem must be stationary; this one has a time derivative")
    before = parameter.value
    known: list[tuple[Array, Array]] = []
    try:
        for value in values:
            parameter.value = value
            guesses = list(_expected(known, np.ravel(parameter.value)))
            solution = solve(problem, u0, preconditioner=preconditioner, rescue=rescue, guesses=guesses)
            known = [*known[-_REMEMBERED + 1 :], (np.ravel(parameter.value).copy(), solution.values)]
            yield solution
    finally:
        parameter.value = before


def _expected(known: Sequence[tuple[Array, Array]], at: Array) -> Iterator[Array]:
    """Extrapolate the last one, two, ... solutions to a value, by Lagrange's polynomials along their line."""
    if not known:
        return
    direction = known[-1][0] - known[0][0]
    length = float(np.linalg.norm(direction)) or 1.0
    places = [float((p - at) @ direction) / length for p, _ in known]
    for count in range(1, len(known) + 1):
        last, states = places[-count:], [state for _, state in known[-count:]]
        if len(set(last)) < count:
            return
        weights = [np.prod([-q / (p - q) for q in last if q != p]) for p in last]
        yield sum(w * state for w, state in zip(weights, states, strict=True))  # type: ignore[misc]
