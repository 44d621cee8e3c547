"""Parameters of equations: numbers and fields, real and complex, as symbols of UFL with values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from npde_fem.parallel import alike
from npde_fem.taped import Taped

import basix.ufl
import numpy as np
import ufl
from mpi4py import MPI
from ufl.core.expr import Expr
from ufl.corealg.traversal import traverse_unique_terminals

__all__ = [
    "ComplexParameter",
    "Composite",
    "Parameter",
    "Value",
    "abstract_domain",
    "as_complex",
    "as_numbers",
    "parameters_of",
    "plain",
    "terminals_of",
    "writing_on",
    "written_on",
]

Value = Any
"""A number, an array, a :class:`Parameter`, a UFL expression, or a callable that returns one of them."""


def abstract_domain(dim: int) -> ufl.Mesh:
    """Return a UFL mesh of ``dim`` dimensions that stands for no mesh in particular.

    Its cells are tensor products, so that UFL simplifies no derivative of a polynomial to zero.
    """
    cell = {1: "interval", 2: "quadrilateral", 3: "hexahedron"}[dim]
    return ufl.Mesh(basix.ufl.element("Lagrange", cell, 1, shape=(dim,)))


_PLACEHOLDER_DOMAIN = abstract_domain(1)
_writing_on: ContextVar[ufl.Mesh | None] = ContextVar("npde_fem_domain", default=None)


@contextmanager
def writing_on(domain: ufl.Mesh) -> Iterator[None]:
    """Let every :class:`Parameter` live on ``domain`` while an equation is written on it.

    A parameter belongs to no mesh; only ``grad(parameter)`` needs to know the space dimension.
    """
    token = _writing_on.set(domain)
    try:
        yield
    finally:
        _writing_on.reset(token)


def as_numbers(label: str, value: Value) -> np.ndarray:
    """Return a new float64 array of what is given, or raise TypeError if it is not made of numbers."""
    if not callable(value) and np.iscomplexobj(value):
        raise TypeError(f"{label}: complex values given; real ones allowed")
    try:
        if value is None:
            raise TypeError("None is no number")
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{label}: a number or an array of numbers allowed, {value!r} given ({error})") from error


def as_complex(label: str, value: Value) -> np.ndarray:
    """Return a new complex128 array, rows first, of what is given, or raise TypeError if it is not made of numbers."""
    try:
        if value is None:
            raise TypeError("None is no number")
        return np.array(value, dtype=np.complex128, order="C")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{label}: a number or an array of numbers allowed, {value!r} given ({error})") from error


@cache
def _placeholder_space(shape: tuple[int, ...]) -> ufl.FunctionSpace:
    element = basix.ufl.element("Lagrange", "interval", 5, shape=shape or None)
    return ufl.FunctionSpace(_PLACEHOLDER_DOMAIN, element)


def written_on() -> ufl.Mesh | None:
    """Return the domain that an equation is being written on, None outside of :func:`writing_on`."""
    return _writing_on.get()


class Parameter(ufl.Coefficient, Taped):
    """A number, vector, matrix or field in an equation: the symbol, its first value and its bounds.

    It is a UFL terminal and may stand anywhere in a flux, a source, a coefficient or boundary data. One
    parameter may serve many problems. A number, vector or matrix keeps its value here (:attr:`value`), the
    same for every problem; each problem holds its own values of a field (``problem.field(parameter)``).

    On pyadjoint's tape it may be a ``Control``. Derivatives with respect to it, directions and trial values are
    parameters like it (:meth:`like`), whose :attr:`value` is a number's array, or the flat values of the field that
    this rank owns.

    Parameters
    ----------
    name
        Identifies the parameter in an equation, in options and in results.
    value
        A number or array, for a field also a callable of coordinates ``x`` of shape ``(d, n)`` that returns
        ``(n,)`` (or ``shape + (n,)``) values, or an array of the field's values on this rank.
    field
        ``False`` for a number, vector or matrix; ``True`` for a field in the scalar space of the state (on a
        grid: at its points); a DOLFINx element description such as ``("DG", 0)`` for a field in another
        space (on a grid only ``("DG", 0)``, one value per cell between grid points).
    shape
        Value shape of a field, ``()`` by default. A number's shape is that of ``value``.
    bounds
        Lower and upper bound, each a number or None.

    Attributes
    ----------
    home
        The problem whose layout a field's values have on the tape: that of the first taped solve it enters. None
        before, and for numbers.

    Raises
    ------
    TypeError, ValueError
        If the name is not a non-empty string, the value is not finite, lies outside the bounds, or the bounds
        cross.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Parameter:
        return object.__new__(cls)

    def __init__(
        self,
        name: str,
        value: Value = None,
        *,
        field: bool | tuple = False,
        shape: tuple[int, ...] = (),
        bounds: tuple[float | None, float | None] = (None, None),
    ) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"Parameter name must be a non-empty string, not {name!r}")
        if not isinstance(field, bool | tuple):
            raise TypeError(
                f'Parameter {name!r}: field must be True, False or an element such as ("DG", 0), not {field!r}'
            )
        try:
            lower, upper = (None if b is None else float(b) for b in bounds)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"Parameter {name!r}: bounds must be a pair of numbers (or None), not {bounds!r}"
            ) from error
        if np.isnan([b for b in (lower, upper) if b is not None]).any():
            raise ValueError(f"Parameter {name!r}: bounds {bounds} given; numbers or None allowed, not NaN")
        if lower is not None and upper is not None and not lower < upper:
            raise ValueError(f"Parameter {name!r}: bounds cross: lower {lower:g} is not below upper {upper:g}")
        self.name, self.is_field, self.bounds = name, bool(field), (lower, upper)
        self.element: tuple | None = field if isinstance(field, tuple) else None
        if not self.is_field and value is not None and not callable(value):
            value = as_numbers(f"Parameter {name!r}", value)
            shape = value.shape
        if len(shape) > 2:
            raise ValueError(f"Parameter {name!r}: shape {shape} given; scalar, vector or matrix allowed")
        ufl.Coefficient.__init__(self, _placeholder_space(tuple(shape)))
        Taped.__init__(self)
        self.home: Any = None
        self._stands_alone = False
        self._value: Value = None
        if value is not None:
            self.value = value

    @property
    def value(self) -> Value:
        """Value of a number (float64 array of :attr:`ufl_shape`, read-only), or the initial value of a field.

        A number set here is used by the next solve of every problem; a field by problems made later (see
        ``set_field`` for those there are). Of a field made by :meth:`like`, all values that this rank owns.
        """
        return self._value

    @value.setter
    def value(self, value: Value) -> None:
        if callable(value) and not self.is_field:
            raise TypeError(f"Parameter {self.name!r}: a callable value needs field=True (or the field's element)")
        if not callable(value):
            value = np.array(as_numbers(f"Parameter {self.name!r}", value))
            value.flags.writeable = False
            if not self.is_field and value.shape != self.ufl_shape:
                raise ValueError(
                    f"Parameter {self.name!r}: value of shape {value.shape} given, {self.ufl_shape} allowed"
                )
            self.check(value)
            if not self.is_field:
                self.leave_tape(value)
        self._value = value

    def like(self, value: Value) -> Parameter:
        """Return a parameter like this one, without bounds, with another value: to evaluate at, or a direction.

        Parameters
        ----------
        value
            A number or an array of :attr:`ufl_shape`; for a field, a number or the flat values of the dofs that this
            rank owns (collective).

        Raises
        ------
        TypeError, ValueError
            If the value is not made of numbers, or has another shape; for a field also before any taped solve, which
            lays out its values.
        """
        if not self.is_field:
            values = as_numbers(f"Parameter {self.name!r}", value)
            if values.ndim and values.shape != self.ufl_shape:
                raise ValueError(
                    f"Parameter {self.name!r}: value of shape {values.shape} given, {self.ufl_shape} allowed"
                )
            return self._ad_like(np.broadcast_to(values, self.ufl_shape))
        with alike(self._settled().comm):
            values = as_numbers(f"Parameter {self.name!r}", value)
            if values.ndim and values.shape != self._ad_shape():
                raise ValueError(
                    f"Parameter {self.name!r}: values of shape {values.shape} given; a number or the "
                    f"{self._ad_shape()} values that this rank owns allowed"
                )
        return self._ad_like(np.broadcast_to(values, self._ad_shape()))

    def __float__(self) -> float:
        if self.is_field or self.ufl_shape:
            raise TypeError(f"Parameter {self.name!r} is no single number")
        return float(self._ad_values())

    def check(self, values: np.ndarray) -> None:
        """Raise ValueError if ``values`` are not finite or leave the bounds."""
        if not np.all(np.isfinite(values)):
            raise ValueError(f"Parameter {self.name!r}: value must be finite, got {values}")
        lower, upper = self.bounds
        if (lower is not None and np.any(values < lower)) or (upper is not None and np.any(values > upper)):
            raise ValueError(
                f"Parameter {self.name!r}: value outside its bounds [{lower}, {upper}]: "
                f"range [{np.min(values)}, {np.max(values)}] given"
            )

    def ufl_domains(self) -> tuple:
        """Return the domain an equation is being written on, if any (see :func:`writing_on`)."""
        domain = _writing_on.get()
        return () if domain is None else (domain,)

    def ufl_domain(self) -> ufl.Mesh | None:
        """Return the domain an equation is being written on, or None."""
        return _writing_on.get()

    def is_cellwise_constant(self) -> bool:
        """Whether the gradient vanishes: true for all but fields."""
        return not self.is_field

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, #{self._count})"

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return hash((Parameter, self._count))

    # -- on the tape (see npde_fem.taped) --------------------------------------------------------------------

    def _settled(self) -> Any:
        """Return the problem that lays out a field's values."""
        if self.home is None:
            raise ValueError(
                f"Parameter {self.name!r}: a field has values of its own on the tape only after a taped solve of a "
                "problem that contains it"
            )
        return self.home

    def leave_tape(self, values: np.ndarray) -> None:
        if not self.is_field or self.home is not None:
            super().leave_tape(values)

    @property
    def _ad_spread(self) -> bool:  # type: ignore[override]
        return self.is_field

    @property
    def _ad_comm(self) -> MPI.Comm:
        return self._settled().comm if self.is_field else MPI.COMM_WORLD

    def _ad_values(self) -> np.ndarray:
        if self.is_field and not self._stands_alone:
            return np.array(self._settled().field_values(self), dtype=np.float64)
        if self._value is None:
            raise ValueError(f"parameter {self.name!r} is undefined: it was given no value")
        return np.array(self._value)

    def _ad_shape(self) -> tuple[int, ...]:
        return (self._settled().field_size(self),) if self.is_field else self.ufl_shape

    def _ad_assign(self, values: np.ndarray) -> None:
        if self.is_field and not self._stands_alone:
            self._settled().set_field(self, values)
        else:
            self._value = np.array(values, dtype=np.float64)
            self._value.flags.writeable = False

    def _ad_like(self, values: np.ndarray) -> Parameter:
        other = Parameter(self.name, field=self.element or self.is_field, shape=self.ufl_shape)
        other.home, other._stands_alone = self.home, True
        other._ad_assign(values)
        return other

    def _ad_riesz(self, values: np.ndarray, kind: str) -> np.ndarray:
        if kind not in ("L2", "H1"):
            raise ValueError(f"Parameter {self.name!r}: riesz_map {kind!r} given; 'l2', 'L2' and 'H1' allowed")
        return self._settled().riesz(self, values, kind) if self.is_field else values


class Composite(ufl.Coefficient):
    """A terminal of UFL that stands for values made, point by point, from other expressions by means UFL has none for.

    A discretisation replaces it by what holds these values.

    Parameters
    ----------
    shape
        Shape of a value.
    parts
        The expressions, parameters among them.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Composite:
        return object.__new__(cls)

    def __init__(self, shape: tuple[int, ...], parts: Sequence[Expr]) -> None:
        ufl.Coefficient.__init__(self, _placeholder_space(shape))
        self.parts = tuple(parts)

    def ufl_domains(self) -> tuple:
        """Return the domain an equation is being written on, if any (see :func:`writing_on`)."""
        domain = _writing_on.get()
        return () if domain is None else (domain,)

    def ufl_domain(self) -> ufl.Mesh | None:
        """Return the domain an equation is being written on, or None."""
        return _writing_on.get()

    def is_cellwise_constant(self) -> bool:
        """Whether the gradient vanishes: it does not."""
        return False


class ComplexParameter:
    """A complex number or field in an equation: two parameters, its real and its imaginary part.

    It may stand in a flux, a source, a coefficient or boundary data of a complex equation, in arithmetic with UFL
    expressions; :attr:`expression` may stand anywhere. What is differentiated by are the two parts.

    Parameters
    ----------
    name
        The parts are called ``name.real`` and ``name.imag``.
    value
        A complex number or array; for a field also a callable of coordinates (3, n) that returns complex values.
    field, shape
        As of :class:`Parameter`.

    Attributes
    ----------
    real, imag
        The parts, each a :class:`Parameter`.
    """

    def __init__(
        self, name: str, value: Value = None, *, field: bool | tuple = False, shape: tuple[int, ...] = ()
    ) -> None:
        def part(take: Callable) -> Value:
            return (lambda x: take(value(x))) if callable(value) else None if value is None else take(value)

        self.name = name
        self.real = Parameter(f"{name}.real", part(np.real), field=field, shape=shape)
        self.imag = Parameter(f"{name}.imag", part(np.imag), field=field, shape=shape)

    def __repr__(self) -> str:
        return f"ComplexParameter({self.name!r})"

    @property
    def expression(self) -> Expr:
        """``real + i imag`` in UFL."""
        return self.real + 1j * self.imag

    @property
    def value(self) -> Value:
        """Value of a number, complex128; set both parts by assigning to it."""
        return self.real.value + 1j * self.imag.value

    @value.setter
    def value(self, value: Value) -> None:
        self.real.value, self.imag.value = np.real(value), np.imag(value)

    def __add__(self, other: Any) -> Expr:
        return self.expression + plain(other)

    def __radd__(self, other: Any) -> Expr:
        return plain(other) + self.expression

    def __sub__(self, other: Any) -> Expr:
        return self.expression - plain(other)

    def __rsub__(self, other: Any) -> Expr:
        return plain(other) - self.expression

    def __mul__(self, other: Any) -> Expr:
        return self.expression * plain(other)

    def __rmul__(self, other: Any) -> Expr:
        return plain(other) * self.expression

    def __truediv__(self, other: Any) -> Expr:
        return self.expression / plain(other)

    def __rtruediv__(self, other: Any) -> Expr:
        return plain(other) / self.expression

    def __pow__(self, other: Any) -> Expr:
        return self.expression**other

    def __neg__(self) -> Expr:
        return -self.expression

    def __abs__(self) -> Expr:
        return abs(self.expression)

    def __getitem__(self, index: Any) -> Expr:
        return self.expression[index]


def plain(value: Any) -> Any:
    """UFL, or a number, in the place of a complex parameter."""
    return value.expression if isinstance(value, ComplexParameter) else value


def terminals_of(expression: Expr) -> set[Expr]:
    """Return all terminals that an expression is made of, those in the parts of a :class:`Composite` included."""
    found: set[Expr] = set(traverse_unique_terminals(expression))
    for terminal in [t for t in found if isinstance(t, Composite)]:
        found = found.union(*(terminals_of(part) for part in terminal.parts))
    return found


def parameters_of(expressions: Sequence[Expr]) -> dict[str, Parameter]:
    """Return the parameters in ``expressions`` by name, in order of their making.

    Raises
    ------
    ValueError
        If two different parameters share a name, or one has no value.
    """
    found: set[Parameter] = set()
    for expression in expressions:
        found |= {p for p in terminals_of(expression) if isinstance(p, Parameter)}
    named: dict[str, Parameter] = {}
    for parameter in sorted(found, key=lambda p: p.count()):
        if parameter.name in named:
            raise ValueError(f"duplicate parameter name {parameter.name!r}: two parameters of one problem share it")
        if parameter.value is None:
            raise ValueError(f"parameter {parameter.name!r} is undefined: it was given no value")
        named[parameter.name] = parameter
    return named
