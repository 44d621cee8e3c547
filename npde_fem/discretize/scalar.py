"""UFL expressions as C: lowered to scalar operations, each computed once.

:class:`Code` walks the components of an expression and prints one ``const double`` a distinct operation. What a
leaf of the expression (the state, its gradient, a coordinate, a parameter) is called in C, the caller says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import ufl
from ufl import classes
from ufl.algorithms import strip_variables
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.algorithms.apply_derivatives import apply_derivatives
from ufl.algorithms.expand_indices import expand_indices
from ufl.algorithms.remove_complex_nodes import remove_complex_nodes
from ufl.core.expr import Expr

__all__ = ["Code", "components", "lower", "partial"]

Leaf = Callable[[Expr, tuple[int, ...]], str]

_FUNCTIONS = {
    "ln": "log",
    "cyl_bessel_j": "jn",
    "cyl_bessel_y": "yn",
}
_COMPARISONS = {
    classes.LT: "<",
    classes.LE: "<=",
    classes.GT: ">",
    classes.GE: ">=",
    classes.EQ: "==",
    classes.NE: "!=",
    classes.AndCondition: "&&",
    classes.OrCondition: "||",
}


def lower(expression: Expr) -> Expr:
    """Expand compound algebra and derivatives, leaving gradients of terminals only.

    Variables go once they are differentiated by: expand_indices mixes up the components of one that is a vector.
    """
    return strip_variables(apply_derivatives(remove_complex_nodes(apply_algebra_lowering(expression))))


def partial(expression: Expr, symbol: ufl.Coefficient) -> Expr:
    """Return d expression / d symbol, of shape ``expression.ufl_shape + symbol.ufl_shape``, lowered.

    The symbol counts as independent of everything else, its own gradient included.
    """
    variable = ufl.variable(symbol)
    return lower(ufl.diff(ufl.replace(expression, {symbol: variable}), variable))


def components(expression: Expr) -> dict[tuple[int, ...], Expr]:
    """Return the scalar components of a lowered expression by index; components that vanish are left out."""
    found = {}
    for index in np.ndindex(*expression.ufl_shape):
        part = expand_indices(expression[index] if index else expression)
        if not isinstance(part, classes.Zero):
            found[index] = part
    return found


class Code:
    """Straight-line C code for scalar expressions, with common subexpressions computed once.

    Parameters
    ----------
    leaf
        Given a terminal (or its gradient) and a component, returns its C expression; raises ValueError for a
        terminal that has no place here.
    prefix
        Start of the names of the temporaries.
    """

    def __init__(self, leaf: Leaf, prefix: str = "s") -> None:
        self._leaf, self._prefix = leaf, prefix
        self._names: dict[str, str] = {}
        self._seen: dict[Expr, str] = {}
        self.lines: list[str] = []

    def emit(self, expression: Expr) -> str:
        """Add code for a scalar expression and return the C expression of its value."""
        if expression not in self._seen:
            self._seen[expression] = self._visit(expression)
        return self._seen[expression]

    def _store(self, text: str) -> str:
        if text not in self._names:
            self._names[text] = f"{self._prefix}{len(self._names)}"
            self.lines.append(f"const double {self._names[text]} = {text};")
        return self._names[text]

    def _visit(self, e: Any) -> str:
        if isinstance(e, classes.Zero):
            return "0.0"
        if isinstance(e, classes.ScalarValue):
            return f"({float(e)!r})"
        if isinstance(e, classes.Indexed):
            operand, index = e.ufl_operands
            return self._store(self._leaf(operand, tuple(int(i) for i in index)))
        if isinstance(e, classes.Terminal | classes.Grad):
            return self._store(self._leaf(e, ()))
        if isinstance(e, classes.Power):
            return self._power(*e.ufl_operands)
        if isinstance(e, classes.BesselJ | classes.BesselY):
            order, argument = e.ufl_operands
            return self._store(f"{_FUNCTIONS[e._name]}({int(order)}, {self.emit(argument)})")
        parts = [self.emit(operand) for operand in e.ufl_operands]
        if isinstance(e, classes.Condition):
            if isinstance(e, classes.NotCondition):
                return f"(!{parts[0]})"
            return f"({parts[0]} {_COMPARISONS[type(e)]} {parts[1]})"
        return self._store(self._operation(e, parts))

    def _operation(self, e: Any, parts: list[str]) -> str:
        match e:
            case classes.Sum():
                return " + ".join(parts)
            case classes.Product():
                return " * ".join(parts)
            case classes.Division():
                return f"{parts[0]} / {parts[1]}"
            case classes.Abs():
                return f"fabs({parts[0]})"
            case classes.MinValue():
                return f"fmin({parts[0]}, {parts[1]})"
            case classes.MaxValue():
                return f"fmax({parts[0]}, {parts[1]})"
            case classes.Conditional():
                return f"{parts[0]} ? {parts[1]} : {parts[2]}"
            case classes.Atan2():
                return f"atan2({parts[0]}, {parts[1]})"
            case classes.MathFunction():
                return f"{_FUNCTIONS.get(e._name, e._name)}({parts[0]})"
        raise ValueError(f"{type(e).__name__} has no meaning in a finite-difference kernel: {e}")

    def _power(self, base: Expr, exponent: Expr) -> str:
        b = self.emit(base)
        if isinstance(exponent, classes.ScalarValue):
            p = float(exponent)
            if p == int(p) and 2 <= p <= 8:
                return self._power_of(b, int(p))
            if p == 0.5:
                return self._store(f"sqrt({b})")
        return self._store(f"pow({b}, {self.emit(exponent)})")

    def _power_of(self, base: str, p: int) -> str:
        if p == 1:
            return base
        root = self._power_of(base, p // 2)
        square = self._store(f"{root} * {root}")
        return self._store(f"{square} * {base}") if p % 2 else square
