"""Complex UFL as pairs of real UFL.

A complex state psi = p + i q is carried as the real pair (p, q), so that one real engine serves all. Equations are
written in UFL's own complex notation (``1j * ufl.grad(psi)``, ``abs(psi) ** 2 * psi``, ``ufl.conj``, ``ufl.real``);
:func:`split` finds the real and the imaginary part of what was written.

A vector of m complex components is laid out as (Re psi_1, Im psi_1, Re psi_2, ...), which is how numpy lays out an
array of complex numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ufl
from ufl import classes
from ufl.algorithms.apply_algebra_lowering import apply_algebra_lowering
from ufl.core.expr import Expr

__all__ = ["Pair", "as_matrix", "as_state", "is_complex", "split"]


class Pair(NamedTuple):
    """Real and imaginary part, of the same shape."""

    real: Expr
    imag: Expr


def split(expression: Expr, pairs: Mapping[Expr, Pair]) -> Pair:
    """Return real and imaginary part of an expression.

    Parameters
    ----------
    expression
        UFL with complex numbers and functions; powers of what is not real are integers.
    pairs
        What stands for the complex terminals; all others are real.

    Raises
    ------
    TypeError
        If a function is applied to a complex argument that has no such parts here.
    """
    return _Splitter(pairs).visit(apply_algebra_lowering(expression))


def is_complex(expression: Expr) -> bool:
    """Whether complex numbers occur in an expression."""
    return any(isinstance(e, classes.ComplexValue) for e in ufl.corealg.traversal.traverse_unique_terminals(expression))


def as_state(pair: Pair) -> Expr:
    """Return a pair of shape ``()`` or ``(m, ...)`` as one real tensor of shape ``(2,)`` or ``(2 m, ...)``."""
    real, imag = pair
    if real.ufl_shape == ():
        return ufl.as_vector([real, imag])
    rest = (slice(None),) * (len(real.ufl_shape) - 1)
    return ufl.as_tensor([part[(k, *rest)] for k in range(real.ufl_shape[0]) for part in (real, imag)])


def as_flux(pair: Pair, components: int) -> Expr:
    """Return a pair of shape ``(d,)`` (one component) or ``(m, d)`` as one real tensor ``(2 m, d)``."""
    return ufl.as_tensor(list(pair)) if components == 1 else as_state(pair)


def as_matrix(pair: Pair, components: int) -> Expr:
    """Return what multiplication by a number or an (m, m) matrix does to the real pairs of ``m`` components.

    A real number stays a number; else the result has shape (2 m, 2 m), with blocks ``[[re, -im], [im, re]]``.
    """
    real, imag = pair
    if real.ufl_shape == () and isinstance(imag, classes.Zero):
        return real
    rows: list[list[Any]] = []
    for i in range(components):
        upper, lower = [], []
        for j in range(components):
            a, b = (real, imag) if real.ufl_shape == () else (real[i, j], imag[i, j])
            if real.ufl_shape == () and i != j:
                a = b = ufl.as_ufl(0)
            upper += [a, -b]
            lower += [b, a]
        rows += [upper, lower]
    return ufl.as_matrix(rows)


def _zero(like: Expr) -> Expr:
    return classes.Zero(like.ufl_shape, like.ufl_free_indices, like.ufl_index_dimensions)


def _is_zero(e: Expr) -> bool:
    return isinstance(e, classes.Zero)


def _square(pair: Pair) -> Expr:
    # UFL takes no power of what has free indices, and its * would sum over them.
    squares = [classes.Product(p, p) if p.ufl_free_indices else p**2 for p in pair if not _is_zero(p)]
    return sum(squares[1:], squares[0]) if squares else pair.real


def _times(a: Pair, b: Pair) -> Pair:
    # UFL's * would sum over repeated indices, which here are summed over outside.
    times = classes.Product
    return Pair(times(a.real, b.real) - times(a.imag, b.imag), times(a.real, b.imag) + times(a.imag, b.real))


def _over(a: Pair, b: Pair) -> Pair:
    if _is_zero(b.imag):
        return Pair(a.real / b.real, a.imag / b.real)
    product, size = _times(a, Pair(b.real, -b.imag)), _square(b)
    return Pair(product.real / size, product.imag / size)


def _conjugate(a: Expr, b: Expr) -> bool:
    """Whether one of two expressions is written as the conjugate of the other."""
    return any(isinstance(x, classes.Conj) and x.ufl_operands[0] == y for x, y in ((a, b), (b, a)))


def _integer_power(base: Pair, n: int) -> Pair:
    if n < 0:
        return _over(Pair(ufl.as_ufl(1), ufl.as_ufl(0)), _integer_power(base, -n))
    result = Pair(ufl.as_ufl(1), ufl.as_ufl(0))
    for _ in range(n):
        result = _times(result, base)
    return result


def _sqrt(z: Pair) -> Pair:
    """Return the root of positive real part, by the larger of its parts: their difference would cancel for the other."""
    rightwards = ufl.ge(z.real, 0)
    larger = ufl.sqrt((ufl.sqrt(_square(z)) + ufl.conditional(rightwards, z.real, -z.real)) / 2)
    smaller = z.imag / (2 * ufl.conditional(ufl.gt(larger, 0), larger, 1))
    upwards = ufl.conditional(ufl.lt(z.imag, 0), -1, 1)
    return Pair(
        ufl.conditional(rightwards, larger, upwards * smaller), ufl.conditional(rightwards, smaller, upwards * larger)
    )


_FUNCTIONS: dict[str, Callable[[Pair], Pair]] = {
    "exp": lambda z: Pair(ufl.exp(z.real) * ufl.cos(z.imag), ufl.exp(z.real) * ufl.sin(z.imag)),
    "ln": lambda z: Pair(ufl.ln(_square(z)) / 2, ufl.atan2(z.imag, z.real)),
    "sqrt": _sqrt,
    "cos": lambda z: Pair(ufl.cos(z.real) * ufl.cosh(z.imag), -ufl.sin(z.real) * ufl.sinh(z.imag)),
    "sin": lambda z: Pair(ufl.sin(z.real) * ufl.cosh(z.imag), ufl.cos(z.real) * ufl.sinh(z.imag)),
    "cosh": lambda z: Pair(ufl.cosh(z.real) * ufl.cos(z.imag), ufl.sinh(z.real) * ufl.sin(z.imag)),
    "sinh": lambda z: Pair(ufl.sinh(z.real) * ufl.cos(z.imag), ufl.cosh(z.real) * ufl.sin(z.imag)),
}

_LINEAR = (
    classes.Derivative,
    classes.Indexed,
    classes.IndexSum,
    classes.ComponentTensor,
    classes.Variable,
    classes.Restricted,
)


class _Splitter:
    def __init__(self, pairs: Mapping[Expr, Pair]) -> None:
        self._seen: dict[Expr, Pair] = dict(pairs)

    def visit(self, e: Any) -> Pair:
        if e not in self._seen:
            self._seen[e] = self._split(e)
        return self._seen[e]

    def _split(self, e: Any) -> Pair:
        if isinstance(e, classes.ComplexValue):
            return Pair(ufl.as_ufl(complex(e).real), ufl.as_ufl(complex(e).imag))
        if isinstance(e, classes.Terminal):
            return Pair(e, e if isinstance(e, classes.MultiIndex | classes.Label) else _zero(e))
        if isinstance(e, _LINEAR):
            return self._linear(e)
        if isinstance(e, classes.ListTensor):
            parts = [self.visit(o) for o in e.ufl_operands]
            return Pair(ufl.as_tensor([p.real for p in parts]), self._whole(e, [p.imag for p in parts]))
        if isinstance(e, classes.Condition):
            return self._real_operation(e)
        if isinstance(e, classes.Conditional):
            condition, *cases = (self.visit(o) for o in e.ufl_operands)
            real = ufl.conditional(condition.real, *(c.real for c in cases))
            same = all(_is_zero(c.imag) for c in cases)
            return Pair(real, _zero(real) if same else ufl.conditional(condition.real, *(c.imag for c in cases)))
        if isinstance(e, classes.Power):
            return self._power(e)
        parts = [self.visit(o) for o in e.ufl_operands]
        match e:
            case classes.Conj():
                return Pair(parts[0].real, -parts[0].imag)
            case classes.Real():
                return Pair(parts[0].real, _zero(e))
            case classes.Imag():
                return Pair(parts[0].imag, _zero(e))
            case classes.Sum():
                return Pair(parts[0].real + parts[1].real, parts[0].imag + parts[1].imag)
            case classes.Product() if _conjugate(*e.ufl_operands):
                return Pair(_square(parts[0]), _zero(e))
            case classes.Product():
                return _times(*parts)
            case classes.Division():
                return _over(*parts)
            case classes.Abs() if not _is_zero(parts[0].imag):
                return Pair(ufl.sqrt(_square(parts[0])), _zero(e))
            case classes.MathFunction() if not _is_zero(parts[0].imag) and e._name in _FUNCTIONS:
                return _FUNCTIONS[e._name](parts[0])
        return self._real_operation(e)

    def _linear(self, e: Any) -> Pair:
        operand, *rest = e.ufl_operands
        if isinstance(e, classes.VariableDerivative) and not _is_zero(self.visit(rest[0]).imag):
            raise TypeError(f"a derivative by a complex variable has no meaning here: {e}")
        real, imag = self.visit(operand)
        rest = [self.visit(o).real for o in rest]
        return Pair(*(_zero(e) if _is_zero(part) else e._ufl_expr_reconstruct_(part, *rest) for part in (real, imag)))

    def _whole(self, e: Expr, parts: list[Expr]) -> Expr:
        return _zero(e) if all(map(_is_zero, parts)) else ufl.as_tensor(parts)

    def _power(self, e: Any) -> Pair:
        base, exponent = e.ufl_operands
        n = float(exponent) if isinstance(exponent, classes.RealValue | classes.IntValue) else None
        if isinstance(base, classes.Abs) and n is not None and n == int(n) and int(n) % 2 == 0:
            size = _square(self.visit(base.ufl_operands[0]))
            return Pair(size if n == 2 else size ** int(n / 2), _zero(e))
        z, power = self.visit(base), self.visit(exponent)
        if _is_zero(z.imag) and _is_zero(power.imag):
            return Pair(z.real**power.real, _zero(e))
        if n is not None and n == int(n):
            return _integer_power(z, int(n))
        raise TypeError(f"the power {e} of a complex number: integer exponents allowed")

    def _real_operation(self, e: Any) -> Pair:
        parts = [self.visit(o) for o in e.ufl_operands]
        if not all(isinstance(p.imag, classes.Zero | classes.MultiIndex | classes.Condition) for p in parts):
            raise TypeError(f"{type(e).__name__} of a complex argument has no meaning here: {e}")
        result = e._ufl_expr_reconstruct_(*(p.real for p in parts))
        return Pair(result, result if isinstance(e, classes.Condition) else _zero(e))
