"""UFL expressions as functions of torch, which differentiates them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from npde_fem.discretize.scalar import components, leaf_of, lower

import numpy as np
import torch
from ufl import classes
from ufl.core.expr import Expr

__all__ = ["torch_function"]

Value = torch.Tensor | float
Operation = Callable[..., Value]


def _tensor(value: Value) -> torch.Tensor:
    return value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)


def _of_tensors(function: Callable[..., torch.Tensor]) -> Operation:
    return lambda *operands: function(*(_tensor(operand) for operand in operands))


_OPERATIONS: Mapping[type[Expr], Operation] = {
    classes.Sum: lambda a, b: a + b,
    classes.Product: lambda a, b: a * b,
    classes.Division: lambda a, b: a / b,
    classes.Power: lambda a, b: a**b,
    classes.Abs: abs,
    classes.MinValue: _of_tensors(torch.minimum),
    classes.MaxValue: _of_tensors(torch.maximum),
    classes.Conditional: _of_tensors(torch.where),
    classes.Atan2: _of_tensors(torch.atan2),
    classes.LT: _of_tensors(torch.lt),
    classes.LE: _of_tensors(torch.le),
    classes.GT: _of_tensors(torch.gt),
    classes.GE: _of_tensors(torch.ge),
    classes.EQ: _of_tensors(torch.eq),
    classes.NE: _of_tensors(torch.ne),
    classes.AndCondition: torch.logical_and,
    classes.OrCondition: torch.logical_or,
    classes.NotCondition: torch.logical_not,
}

_FUNCTIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "ln": torch.log,
    "cos": torch.cos,
    "sin": torch.sin,
    "tan": torch.tan,
    "cosh": torch.cosh,
    "sinh": torch.sinh,
    "tanh": torch.tanh,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "erf": torch.erf,
}


def torch_function(expression: Expr, leaves: Sequence[Expr]) -> Callable[..., torch.Tensor]:
    """Return a UFL expression as a function of the values of its leaves.

    Allowed are all pointwise operations of UFL but for Bessel functions, and whatever tensor algebra and derivatives
    lower to them. Where a conditional is not taken, torch still multiplies its slope by zero: it must be finite there.

    Parameters
    ----------
    expression
        Of any shape, without free indices.
    leaves
        The symbols (coefficients, constants, parameters, gradients of coefficients) that it may contain.

    Returns
    -------
    Callable
        Takes a tensor for each leaf, in their order, of the leaf's shape and then any axes, the same for all or
        broadcastable; returns a tensor of the expression's shape and then those axes (without them, if no leaf with
        axes occurs), of the type of the first leaf. Values without axes do not change that type: parameters in float64
        may meet a state in float32.

    Raises
    ------
    ValueError
        If another symbol, or an operation that torch has not, occurs.
    """
    places = {leaf: k for k, leaf in enumerate(leaves)}
    program: list[tuple[Operation, tuple[int, ...]]] = []
    lines: dict[Expr, int] = {}

    def number(value: float) -> Operation:
        return lambda values: value

    def component(place: int, index: tuple[int, ...]) -> Operation:
        return lambda values: values[place][index] if index else values[place]

    def line_of(e: Expr) -> int:
        if e not in lines:
            line = compiled(e)
            lines[e] = len(program)
            program.append(line)
        return lines[e]

    def compiled(e: Any) -> tuple[Operation, tuple[int, ...]]:
        if isinstance(e, classes.Zero):
            return number(0.0), ()
        if isinstance(e, classes.ScalarValue):
            return number(float(e)), ()
        if (leaf := leaf_of(e)) is not None:
            if leaf[0] not in places:
                allowed = ", ".join(map(str, leaves))
                raise ValueError(f"{leaf[0]} in {expression} has no value; allowed are: {allowed}")
            return component(places[leaf[0]], leaf[1]), ()
        operation = _OPERATIONS.get(type(e))
        if operation is None and isinstance(e, classes.MathFunction) and e._name in _FUNCTIONS:
            operation = _of_tensors(_FUNCTIONS[e._name])
        if operation is None:
            raise ValueError(f"{type(e).__name__} has no equal in torch: {e}")
        function = operation
        operands = tuple(line_of(operand) for operand in e.ufl_operands)
        return lambda values, *parts: function(*parts), operands

    shape = expression.ufl_shape
    results = {index: line_of(part) for index, part in components(lower(expression)).items()}

    def evaluate(*values: torch.Tensor) -> torch.Tensor:
        found: list[Value] = []
        for operation, operands in program:
            found.append(operation(values, *(found[k] for k in operands)))
        like = _tensor(values[0]) if values else torch.zeros((), dtype=torch.float64)
        parts = [_tensor(found[results[i]] if i in results else 0.0).to(like) for i in np.ndindex(*shape)]
        if not shape:
            return parts[0]
        stacked = torch.stack(torch.broadcast_tensors(*parts))
        return stacked.reshape(*shape, *stacked.shape[1:])

    return evaluate
