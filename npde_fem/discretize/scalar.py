"""UFL expressions as C: lowered to scalar operations, each computed once.

:class:`Code` walks the components of an expression and prints one ``const double`` a distinct operation. What a
leaf of the expression (the state, its gradient, a coordinate, a parameter) is called in C, the caller says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from npde_fem.parameter import abstract_domain

import numpy as np
import ufl
from ufl import classes
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.algorithms.apply_derivatives import apply_derivatives
from ufl.algorithms.expand_indices import IndexExpander
from ufl.algorithms.remove_complex_nodes import remove_complex_nodes
from ufl.algorithms.transformer import VariableStripper
from ufl.core.expr import Expr

__all__ = ["Code", "components", "gateaux", "leaf_of", "lower", "partial"]

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


_DOMAIN = abstract_domain(1)


def lower(expression: Expr) -> Expr:
    """Expand compound algebra and derivatives, leaving gradients of terminals only.

    Variables go once they are differentiated by: expand_indices mixes up the components of one that is a vector.
    """
    expression = apply_derivatives(remove_complex_nodes(apply_algebra_lowering(expression)))
    return _Stripper().visit(remove_complex_nodes(expression))  # the derivative of abs brings new ones


def partial(expression: Expr, symbol: ufl.Coefficient | ufl.Constant) -> Expr:
    """Return d expression / d symbol, of shape ``expression.ufl_shape + symbol.ufl_shape``, lowered.

    The symbol counts as independent of everything else, its own gradient included.
    """
    variable = ufl.variable(symbol)
    return lower(ufl.diff(ufl.replace(expression, {symbol: variable}), variable))


def gateaux(expression: Expr, directions: Mapping[Expr, Expr]) -> Expr:
    """Return the derivative of a lowered expression along directions of its symbols, lowered.

    A symbol's gradient moves with it: d/de of ``expression`` with every symbol ``s`` put to ``s + e directions[s]``,
    at e = 0.
    """
    e = ufl.Constant(ufl.domain.extract_unique_domain(next(iter(directions.values()))))
    moved = ufl.replace(expression, {symbol: symbol + e * along for symbol, along in directions.items()})
    return lower(ufl.replace(partial(lower(moved), e), {e: ufl.zero()}))


# UFL's own visit a subexpression as often as it occurs: a number of times that doubles with each step of a recurrence.
class _Stripper(VariableStripper):
    """UFL's removal of variables, which visits each subexpression once."""

    def __init__(self) -> None:
        super().__init__()
        self._stripped: dict[Expr, Expr] = {}

    def visit(self, o: Any) -> Expr:
        if o not in self._stripped:
            self._stripped[o] = super().visit(o)
        return self._stripped[o]


class _Expander(IndexExpander):
    """UFL's expansion of indices, which visits each subexpression once for each value of its indices."""

    def __init__(self) -> None:
        super().__init__()
        self._expanded: dict[tuple, Expr] = {}

    def visit(self, o: Any) -> Expr:
        if isinstance(o, classes.Terminal):
            return super().visit(o)
        indices = (self._index2value[classes.Index(i)] for i in o.ufl_free_indices)
        key = (o, tuple(self.component()), tuple(indices))
        if key not in self._expanded:
            self._expanded[key] = super().visit(o)
        return self._expanded[key]


def expand_indices(expression: Expr) -> Expr:
    """Return an expression with fixed indices only, and without tensors made of components."""
    return _Expander().visit(expression)


def components(expression: Expr) -> dict[tuple[int, ...], Expr]:
    """Return the scalar components of a lowered expression by index; components that vanish are left out."""
    found = {}
    for index in np.ndindex(*expression.ufl_shape):
        part = expand_indices(expression[index] if index else expression)
        if not isinstance(part, classes.Zero):
            found[index] = part
    return found


def leaf_of(expression: Expr) -> tuple[Expr, tuple[int, ...]] | None:
    """Return the terminal (or gradient of one) that a scalar expression is, and its component; None for others."""
    if isinstance(expression, classes.Indexed):
        operand, index = expression.ufl_operands
        return operand, tuple(int(i) for i in index)
    return (expression, ()) if isinstance(expression, classes.Terminal | classes.Grad) else None


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

    def reverse(self, seeds: Sequence[tuple[Expr, str]], wanted: Callable[[Expr], bool]) -> dict[Expr, str]:
        """Add code of a reverse sweep and return the adjoints of leaves: the sum of weight times derivative.

        The cost is a small multiple of the expressions' own, however many leaves there are (Griewank and Walther
        2008, Evaluating Derivatives, section 3.2).

        Parameters
        ----------
        seeds
            Scalar expressions and the C expressions of their weights.
        wanted
            Whether a terminal is one to differentiate by.

        Returns
        -------
        dict
            C expression of the adjoint by leaf (see :func:`leaf_of`). Where a weight is zero the adjoint is zero
            unless an operand of a sum, a product or a power overflows.
        """
        order: dict[Expr, bool] = {}
        for expression, _ in seeds:
            _sort(expression, wanted, order)
        adjoints: dict[Expr, list[str]] = {e: [] for e, active in order.items() if active}
        for expression, weight in seeds:
            if order[expression]:
                adjoints[expression].append(weight)
        found: dict[Expr, str] = {}
        for e in reversed(adjoints):
            if not adjoints[e]:
                continue
            bar = self._store(" + ".join(adjoints[e]))
            if leaf_of(e) is not None:
                found[e] = bar
                continue
            for k, operand in enumerate(e.ufl_operands):
                if operand in adjoints:
                    adjoints[operand].append(self._times(bar, _slope(e, k)))
        return found

    def _times(self, bar: str, slope: Expr) -> str:
        if slope == 1:
            return bar
        product = f"{bar} * {self.emit(slope)}"
        # Of a branch not taken, and of rows that do not count, the slope may be infinite.
        return self._store(product if _finite(slope) else f"{bar} != 0.0 ? {product} : 0.0")

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
        if (leaf := leaf_of(e)) is not None:
            return self._store(self._leaf(*leaf))
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


def _sort(e: Any, wanted: Callable[[Expr], bool], order: dict[Expr, bool]) -> bool:
    """Add a scalar expression and its operands to ``order``, operands first; return whether a wanted leaf is in it."""
    if e not in order:
        leaf = leaf_of(e)
        if leaf is not None:
            terminal = leaf[0]
            order[e] = wanted(terminal.ufl_operands[0] if isinstance(terminal, classes.Grad) else terminal)
        elif isinstance(e, classes.Condition):
            order[e] = False
        else:
            active = [_sort(operand, wanted, order) for operand in e.ufl_operands]
            order[e] = any(active)
    return order[e]


@cache
def _symbols(count: int) -> list[ufl.Constant]:
    return [ufl.Constant(_DOMAIN) for _ in range(count)]


def _slope(e: Any, k: int) -> Expr:
    """Derivative of an operation by its k-th operand, the others held, as an expression in the operands."""
    if isinstance(e, classes.Sum):
        return ufl.as_ufl(1)
    if isinstance(e, classes.Product):
        return e.ufl_operands[1 - k]
    # The rules are UFL's, applied to the operation alone: its operands may be large.
    operands = list(e.ufl_operands)
    free = [n for n, o in enumerate(operands) if not isinstance(o, classes.Condition | classes.ConstantValue)]
    for symbol, n in zip(_symbols(len(operands)), free, strict=False):
        operands[n] = symbol
    slope = partial(e._ufl_expr_reconstruct_(*operands), operands[k])
    return ufl.replace(slope, {operands[n]: e.ufl_operands[n] for n in free})


def _finite(e: Any) -> bool:
    """Whether an expression of finite leaves is finite: it has no operation that may be singular."""
    if isinstance(e, classes.ScalarValue) or leaf_of(e) is not None:
        return True
    if isinstance(e, classes.Condition):
        return True
    if isinstance(e, classes.Power):
        base, exponent = e.ufl_operands
        whole = isinstance(exponent, classes.ScalarValue) and float(exponent) == int(float(exponent)) >= 0
        return whole and _finite(base)
    if isinstance(e, classes.Division):
        above, below = e.ufl_operands
        leaf = leaf_of(below)
        number = isinstance(below, classes.ScalarValue) or (leaf is not None and isinstance(leaf[0], classes.Constant))
        return number and _finite(above)
    plain = (classes.Sum, classes.Product, classes.Abs, classes.MinValue, classes.MaxValue, classes.Conditional)
    return isinstance(e, plain) and all(_finite(operand) for operand in e.ufl_operands)
