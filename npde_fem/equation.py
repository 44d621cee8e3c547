"""The neural partial differential equation, its parameters and boundary conditions: symbols only.

An :class:`NPDE` reads, for a state ``u`` with ``m`` components in ``d`` space dimensions,

    A u_tt + B u_t = div F(u, grad u, x, t) + S(u, grad u, x, t),

with inertia ``A``, damping ``B``, flux ``F`` and source ``S`` written as plain UFL callables. Nothing here
knows a mesh, a grid or a solver; :mod:`npde_fem.discretize` does.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from npde_fem.complex_pairs import Pair, as_flux, as_matrix, as_state, is_complex, split
from npde_fem.parallel import alike
from npde_fem.taped import Taped

import basix.ufl
import numpy as np
import ufl
from mpi4py import MPI
from ufl.constantvalue import ScalarValue
from ufl.core.expr import Expr
from ufl.corealg.traversal import traverse_unique_terminals

__all__ = [
    "NPDE",
    "Absorbing",
    "BoundaryCondition",
    "ComplexParameter",
    "Dirichlet",
    "Flux",
    "Initial",
    "Parameter",
    "Periodic",
    "Robin",
    "Terms",
    "abstract_domain",
    "manufactured",
    "parameters_of",
]

Value = Any
"""A number, an array, a :class:`Parameter`, a UFL expression, or a callable that returns one of them."""

Marker = Any
"""``None`` (everywhere), a callable on coordinates, or (FEM only) one or more facet tags."""


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
    """Return a new complex128 array of what is given, or raise TypeError if it is not made of numbers."""
    try:
        return np.array(value, dtype=np.complex128)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{label}: a number or an array of numbers allowed, {value!r} given ({error})") from error


@cache
def _placeholder_space(shape: tuple[int, ...]) -> ufl.FunctionSpace:
    element = basix.ufl.element("Lagrange", "interval", 5, shape=shape or None)
    return ufl.FunctionSpace(_PLACEHOLDER_DOMAIN, element)


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
        return self.expression + _plain(other)

    def __radd__(self, other: Any) -> Expr:
        return _plain(other) + self.expression

    def __sub__(self, other: Any) -> Expr:
        return self.expression - _plain(other)

    def __rsub__(self, other: Any) -> Expr:
        return _plain(other) - self.expression

    def __mul__(self, other: Any) -> Expr:
        return self.expression * _plain(other)

    def __rmul__(self, other: Any) -> Expr:
        return _plain(other) * self.expression

    def __truediv__(self, other: Any) -> Expr:
        return self.expression / _plain(other)

    def __rtruediv__(self, other: Any) -> Expr:
        return _plain(other) / self.expression

    def __pow__(self, other: Any) -> Expr:
        return self.expression**other

    def __neg__(self) -> Expr:
        return -self.expression

    def __abs__(self) -> Expr:
        return abs(self.expression)

    def __getitem__(self, index: Any) -> Expr:
        return self.expression[index]


def _plain(value: Any) -> Any:
    """UFL, or a number, in the place of a complex parameter."""
    return value.expression if isinstance(value, ComplexParameter) else value


class Terms(NamedTuple):
    """The terms of an equation as UFL expressions on one domain.

    Shapes for ``m`` components in ``d`` dimensions: ``flux`` ``(d,)`` or ``(m, d)``, ``source`` ``()`` or
    ``(m,)``, ``damping`` and ``inertia`` ``()`` or ``(m, m)``.
    """

    flux: Expr
    source: Expr
    damping: Expr
    inertia: Expr


class NPDE:
    """``A u_tt + B u_t = div F + S``: a neural partial differential equation, written once in UFL.

    A complex equation (``dtype=complex``) is written in UFL's complex notation; its state is carried as real pairs
    (see :mod:`npde_fem.complex_pairs`), with :attr:`state_components` = 2 m.

    Parameters
    ----------
    flux
        Callable ``(u, x, t)`` that returns the flux ``F``, shape ``(d,)`` for one component and ``(m, d)``
        for ``m``. The sign is that of the equation: diffusion is ``D * grad(u)``, drift ``- c * u``.
    source
        Callable ``(u, x, t)`` that returns ``S``, shape ``()`` or ``(m,)``. May contain ``grad(u)``.
    damping, inertia
        ``B`` and ``A``: number, matrix, :class:`Parameter` or callable ``(x, t)``; scalars act on every
        component. With ``damping=0`` and ``inertia=0`` the problem is stationary.
    components
        ``m``. The state has shape ``()`` for 1 and ``(m,)`` otherwise.
    dtype
        ``float`` or ``complex``: what the state's values are.
    flow
        Exact flow of the source, for splitting schemes: callable ``(u, x, t, dt)`` that returns the solution at
        ``t + dt`` of ``B u_t = S(u)`` that is ``u`` at ``t``, of the state's shape.
    name
        Used in messages and files.

    Attributes
    ----------
    shape
        Shape of the state as its values are: ``()`` for one component, ``(m,)`` for more.
    state_components, state_shape
        Number and shape of the real components that carry it.
    waves
        Callable ``(x, t)``: the wavenumber of the waves that a mesh must resolve, UFL; None if there are none.
    shifted
        Callable ``(beta)``: the equation with its waves absorbed, for a preconditioner; None if there is none.

    Raises
    ------
    TypeError, ValueError
        If a term is not callable or a number where it must be, ``components`` is not a positive integer, or ``dtype``
        neither float nor complex. Shapes are checked when the equation meets a domain.
    """

    def __init__(
        self,
        *,
        flux: Callable | None = None,
        source: Callable | None = None,
        damping: Value = 1.0,
        inertia: Value = 0.0,
        components: int = 1,
        dtype: type = float,
        flow: Callable | None = None,
        name: str = "npde",
    ) -> None:
        for label, term in (("flux", flux), ("source", source), ("flow", flow)):
            if term is not None and not callable(term):
                arguments = "(u, x, t, dt)" if label == "flow" else "(u, x, t)"
                raise TypeError(f"{label} must be a callable {arguments} that returns UFL, not {term!r}")
        if not isinstance(components, int | np.integer) or components < 1:
            raise ValueError(f"components must be a positive integer, not {components!r}")
        if dtype not in (float, complex):
            raise ValueError(f"dtype: float or complex allowed, {dtype!r} given")
        self.flux, self.source, self.damping, self.inertia, self.flow = flux, source, damping, inertia, flow
        self.components, self.dtype, self.name = int(components), dtype, name
        self.waves: Callable | None = None
        self.shifted: Callable[[float], NPDE] | None = None

    @property
    def is_complex(self) -> bool:
        """Whether the state is complex."""
        return self.dtype is complex

    @property
    def has_constraints(self) -> bool:
        """Whether a component has an equation without time derivative, a row of zeros in a damping matrix."""
        rows = np.asarray(self.damping, dtype=object)
        return rows.ndim == 2 and any(all(entry == 0 for entry in row) for row in rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return () if self.components == 1 else (self.components,)

    @property
    def state_components(self) -> int:
        return self.components * (2 if self.is_complex else 1)

    @property
    def state_shape(self) -> tuple[int, ...]:
        return () if self.state_components == 1 else (self.state_components,)

    def written(self, domain: ufl.Mesh, u: Expr, x: Expr, t: Expr) -> Terms:
        """Write the equation on ``domain`` as it stands, with state ``u`` of :attr:`shape`.

        Raises
        ------
        TypeError
            If a callable returns something that is not UFL.
        ValueError
            If a term has the wrong shape, or two parameters share a name.
        """
        d, m, shape = domain.geometric_dimension, self.components, self.shape
        matrix_shapes: list[tuple[int, ...]] = [()] if m == 1 else [(), (m, m)]
        with writing_on(domain):
            terms = Terms(
                flux=_write("flux", self.flux, (u, x, t), [(*shape, d)]),
                source=_write("source", self.source, (u, x, t), [shape]),
                damping=_write("damping", self.damping, (x, t), matrix_shapes),
                inertia=_write("inertia", self.inertia, (x, t), matrix_shapes),
            )
            for label, term in zip(("damping", "inertia"), terms[2:], strict=True):
                if u in set(traverse_unique_terminals(term)):
                    raise ValueError(f"{label} must not depend on the state u")
        parameters_of(terms)
        return terms

    def terms(self, domain: ufl.Mesh, u: Expr, x: Expr, t: Expr) -> Terms:
        """Write the equation on ``domain`` in real terms, with a state ``u`` of :attr:`state_shape`; see `written`."""
        if not self.is_complex:
            terms = self.written(domain, u, x, t)
            return Terms(*(_real(label, term) for label, term in zip(Terms._fields, terms, strict=True)))
        psi, pairs = self._pairs(domain, u)
        m = self.components
        with writing_on(domain):
            parts = (split(term, pairs) for term in self.written(domain, psi, x, t))
            flux, source, damping, inertia = parts
            return Terms(as_flux(flux, m), as_state(source), as_matrix(damping, m), as_matrix(inertia, m))

    def _pairs(self, domain: ufl.Mesh, u: Expr) -> tuple[Expr, dict[Expr, Pair]]:
        """Return a symbol for the complex state, and what stands for it."""
        element = basix.ufl.element("Lagrange", domain.ufl_cell().cellname, 5, shape=self.shape or None)
        psi = ufl.Coefficient(ufl.FunctionSpace(domain, element))
        if self.components == 1:
            return psi, {psi: Pair(u[0], u[1])}
        real, imag = (ufl.as_vector([u[2 * k + part] for k in range(self.components)]) for part in (0, 1))
        return psi, {psi: Pair(real, imag)}

    def write_flow(self, domain: ufl.Mesh, u: Expr, x: Expr, t: Expr, dt: Expr) -> Expr:
        """Write the flow of the source on ``domain``, UFL of :attr:`state_shape` for a state ``u`` of that shape.

        Raises
        ------
        ValueError
            If the equation has no flow.
        """
        if self.flow is None:
            raise ValueError(f"equation {self.name!r} has no flow; splitting schemes need NPDE(flow=...)")
        return self._write_state("flow", self.flow, domain, u, x, t, dt)

    def write_data(self, label: str, value: Value, domain: ufl.Mesh, *arguments: Expr) -> Expr:
        """Write data of the state on ``domain``: a callable of ``arguments`` in UFL, or numbers.

        Returns
        -------
        Expr
            UFL of :attr:`state_shape`.
        """
        with writing_on(domain):
            written = _write(label, value, arguments, [self.shape])
            return as_state(split(written, {})) if self.is_complex else _real(label, written)

    def _write_state(self, label: str, function: Callable, domain: ufl.Mesh, u: Expr, *arguments: Expr) -> Expr:
        if not self.is_complex:
            with writing_on(domain):
                return _real(label, _write(label, function, (u, *arguments), [self.shape]))
        psi, pairs = self._pairs(domain, u)
        with writing_on(domain):
            return as_state(split(_write(label, function, (psi, *arguments), [self.shape]), pairs))

    def write_integrand(self, label: str, function: Callable, domain: ufl.Mesh, u: Expr, *arguments: Expr) -> Expr:
        """Write a scalar callable ``(u, x, t)`` on ``domain``, real for a complex state too.

        Raises
        ------
        ValueError
            If it is not scalar, or not real.
        """
        if not self.is_complex:
            with writing_on(domain):
                return _real(label, _write(label, function, (u, *arguments), [()]))
        psi, pairs = self._pairs(domain, u)
        with writing_on(domain):
            real, imag = split(_write(label, function, (psi, *arguments), [()]), pairs)
        if imag != 0:
            raise ValueError(f"{label} is complex; a real one allowed: abs(u) ** 2, ufl.real(...) or ufl.imag(...)")
        return real

    def rotated(self, factor: complex) -> NPDE:
        """Return a complex equation, without flow, whose flux and source are ``factor`` times this one's.

        With -i it is the equation in imaginary time, ``t = -i tau``.

        Raises
        ------
        ValueError
            If the equation is real.
        """
        if not self.is_complex:
            raise ValueError(f"equation {self.name!r} is real; a complex one allowed")

        def times(term: Callable | None) -> Callable | None:
            return None if term is None else lambda u, x, t: factor * call("term", term, (u, x, t))

        return NPDE(
            flux=times(self.flux),
            source=times(self.source),
            damping=self.damping,
            inertia=self.inertia,
            components=self.components,
            dtype=complex,
            name=f"rotated {self.name}",
        )

    def with_source(self, extra: Callable, name: str | None = None) -> NPDE:
        """Return the same equation, without its flow, with ``extra(u, x, t)`` added to its source."""
        old = self.source

        def source(u: Expr, x: Expr, t: Expr) -> Expr:
            return extra(u, x, t) if old is None else old(u, x, t) + extra(u, x, t)

        result = NPDE(
            flux=self.flux,
            source=source,
            damping=self.damping,
            inertia=self.inertia,
            components=self.components,
            dtype=self.dtype,
            name=name or self.name,
        )
        result.waves, result.shifted = self.waves, self.shifted
        return result


def _write(label: str, term: Value, arguments: tuple, shapes: list[tuple[int, ...]]) -> Expr:
    """Evaluate a term of an equation and check that it is UFL of one of the allowed shapes."""
    if term is None:
        return ufl.zero(*shapes[0])
    result = _plain(call(label, term, arguments) if callable(term) and not isinstance(term, Expr) else term)
    try:
        expression = ufl.as_ufl(result) if np.ndim(result) == 0 else ufl.as_tensor(result)
    except (ValueError, TypeError) as error:
        raise TypeError(
            f"{label} must give a UFL expression or a number, not {result!r} of type {type(result).__name__}; "
            "use functions of ufl such as ufl.exp, not numpy"
        ) from error
    for terminal in traverse_unique_terminals(expression):
        if isinstance(terminal, ScalarValue) and not np.isfinite(complex(terminal)):
            raise ValueError(f"{label} contains the number {terminal}; finite numbers allowed")
    if expression.ufl_free_indices:
        raise ValueError(f"{label} has free indices {expression.ufl_free_indices}; bind them with as_tensor")
    if expression == 0 and () in shapes:
        return ufl.zero()
    if expression == 0 and expression.ufl_shape == ():
        return ufl.zero(*shapes[0])
    if expression.ufl_shape not in shapes:
        allowed = " or ".join(str(s) for s in shapes)
        raise ValueError(f"{label} has shape {expression.ufl_shape}; {allowed} allowed")
    return expression


def _real(label: str, expression: Expr) -> Expr:
    """Return a term of a real equation, or raise ValueError if it has an imaginary part."""
    if not is_complex(expression):
        return expression
    real, imag = split(expression, {})
    if imag != 0:
        raise ValueError(f"{label} is complex ({expression}), but the equation is real; dtype=complex makes it complex")
    return real


def call(label: str, function: Callable, arguments: tuple) -> Value:
    """Call a user's function with as many of ``arguments`` as it takes; errors name the term.

    Raises
    ------
    ValueError
        If UFL finds that shapes or indices do not fit, as where a tensor has another dimension than the domain.
    TypeError
        If the function fails otherwise.
    """
    try:
        signature = inspect.signature(function)
        signature.bind(*arguments)
    except TypeError:
        names = [p for p in signature.parameters.values() if p.default is p.empty]
        arguments = arguments[: len(names)]
    try:
        return function(*arguments)
    except Exception as error:
        kind = ValueError if isinstance(error, ValueError | IndexError) else TypeError
        domain = _writing_on.get()
        where = "" if domain is None else f" in {domain.geometric_dimension} dimensions"
        raise kind(
            f"{label}: calling {getattr(function, '__name__', function)!s}{where} failed: {error}. "
            "It must be written in UFL (ufl.exp, ufl.grad, ...), not numpy, in as many dimensions as the domain has"
        ) from error


def parameters_of(expressions: Sequence[Expr]) -> dict[str, Parameter]:
    """Return the parameters in ``expressions`` by name, in order of their making.

    Raises
    ------
    ValueError
        If two different parameters share a name, or one has no value.
    """
    found: set[Parameter] = set()
    for expression in expressions:
        found |= {p for p in traverse_unique_terminals(expression) if isinstance(p, Parameter)}
    named: dict[str, Parameter] = {}
    for parameter in sorted(found, key=lambda p: p.count()):
        if parameter.name in named:
            raise ValueError(f"duplicate parameter name {parameter.name!r}: two parameters of one problem share it")
        if parameter.value is None:
            raise ValueError(f"parameter {parameter.name!r} is undefined: it was given no value")
        named[parameter.name] = parameter
    return named


@dataclass(frozen=True)
class BoundaryCondition:
    """What all boundary conditions share: where they hold and for which component.

    ``where`` is None (the whole boundary), a callable on coordinates of shape ``(3, n)`` that returns ``(n,)``
    booleans, or (FEM with ``facet_tags`` only) a tag or a list of tags.
    """

    def checked_component(self, components: int) -> int | None:
        """Return the component, None for all; raise ValueError if the state has no such component.

        The one component of a scalar state is all of it.
        """
        component: int | None = getattr(self, "component", None)
        if component is None:
            return None
        try:
            component = operator.index(component)
        except TypeError as error:
            raise TypeError(
                f"{type(self).__name__}: component must be an integer or None, not {component!r}"
            ) from error
        if not 0 <= component < components:
            raise ValueError(
                f"{type(self).__name__}: component {component} given; the state has {components} "
                f"(0 to {components - 1} allowed)"
            )
        return component if components > 1 else None

    def held(self, equation: NPDE) -> list[int]:
        """Return the real components of the state (see ``NPDE.state_components``) that the condition is for."""
        component = self.checked_component(equation.components)
        parts = 2 if equation.is_complex else 1
        if component is None:
            return list(range(equation.state_components))
        return list(range(parts * component, parts * (component + 1)))

    def write(self, value: Value, equation: NPDE, domain: ufl.Mesh, *arguments: Expr) -> Expr:
        """Write boundary data on a domain: UFL, one real value a held component, ``()`` if that is one."""
        m = equation.components
        scalar = m == 1 or self.checked_component(m) is not None
        label = f"{type(self).__name__} value"
        value = _plain(value)
        with writing_on(domain):
            if not scalar and np.ndim(value) == 0 and not callable(value) and not isinstance(value, Expr):
                value = np.full(m, value)
            written = _write(label, value, arguments, [() if scalar else (m,)])
            return as_state(split(written, {})) if equation.is_complex else _real(label, written)

    def write_coefficient(
        self, value: Value, equation: NPDE, domain: ufl.Mesh, *arguments: Expr, name: str = "coefficient"
    ) -> Expr:
        """Write a scalar that multiplies the held components: UFL of shape (), or a matrix if it is complex."""
        label = f"{type(self).__name__} {name}"
        with writing_on(domain):
            written = _write(label, value, arguments, [()])
            if not equation.is_complex:
                return _real(label, written)
            return as_matrix(split(written, {}), len(self.held(equation)) // 2)


def checked_conditions(bcs: Any, components: int) -> list[BoundaryCondition]:
    """Return boundary conditions as a list, or raise TypeError or ValueError if they are not fit for a state."""
    if isinstance(bcs, BoundaryCondition | str) or not isinstance(bcs, Iterable):
        raise TypeError(f"bcs must be a list of boundary conditions, not {bcs!r}")
    conditions = list(bcs)
    for bc in conditions:
        if not isinstance(bc, BoundaryCondition):
            raise TypeError(f"bcs: boundary conditions such as Dirichlet(0.0) allowed, {bc!r} given")
        bc.checked_component(components)
    return conditions


@dataclass(frozen=True)
class Initial:
    """Initial data in UFL: a callable ``(x)`` (or ``(x, t)``) that may contain parameters, taken at the nodes."""

    value: Callable

    def __post_init__(self) -> None:
        if not callable(self.value):
            raise TypeError(f"Initial: a callable (x) that returns UFL allowed, {self.value!r} given")


@dataclass(frozen=True)
class Dirichlet(BoundaryCondition):
    """``u = value``; the value is a number, array, :class:`Parameter` or callable ``(x, t)`` in UFL."""

    value: Value
    where: Marker = None
    component: int | None = None


@dataclass(frozen=True)
class Flux(BoundaryCondition):
    """``n . F = value``, ``n`` the outward normal; value as in :class:`Dirichlet`, or callable ``(x, t, n)``."""

    value: Value
    where: Marker = None
    component: int | None = None


@dataclass(frozen=True)
class Robin(BoundaryCondition):
    """``n . F = value - coefficient * u``; data as in :class:`Flux`, the coefficient a scalar."""

    coefficient: Value
    value: Value = 0.0
    where: Marker = None
    component: int | None = None


@dataclass(frozen=True)
class Absorbing(BoundaryCondition):
    """``n . F = value - impedance * u_t``: lets waves out; data as in :class:`Flux`, the impedance a scalar.

    For ``u_tt = div(c^2 grad u)`` the impedance c absorbs what meets the boundary at right angles, and reflects the
    share ``(1 - cos a) / (1 + cos a)`` of what comes at an angle a to the normal (Engquist and Majda 1977, Math. Comp.
    31, eq. 1.12). It is a damping of the boundary, and like the damping must not depend on time.
    """

    impedance: Value
    value: Value = 0.0
    where: Marker = None
    component: int | None = None


@dataclass(frozen=True)
class Periodic(BoundaryCondition):
    """Identify the two sides of a box across ``axis`` (0, 1 or 2)."""

    axis: int

    def __post_init__(self) -> None:
        if self.axis not in (0, 1, 2):
            raise ValueError(f"Periodic: axis must be 0, 1 or 2, not {self.axis!r}")


def manufactured(equation: NPDE, exact: Callable) -> NPDE:
    """Return ``equation`` with the source that makes ``exact(x, t)`` (UFL) its solution.

    The added source is ``A u_tt + B u_t - div F(u) - S(u)`` at ``u = exact``, by symbolic differentiation
    (the method of manufactured solutions; Roache 2002, J. Fluids Eng. 124, eq. 4).
    """

    def extra(u: Expr, x: Expr, t: Expr) -> Expr:
        domain = ufl.domain.extract_unique_domain(x)
        time = ufl.variable(t)
        solution = exact(x, time)
        rate = ufl.diff(solution, time)
        terms = equation.written(domain, solution, x, time)

        def times(matrix: Expr, vector: Expr) -> Expr:
            return matrix * vector if matrix.ufl_shape == () else ufl.dot(matrix, vector)

        forcing = times(terms.damping, rate) + times(terms.inertia, ufl.diff(rate, time)) - terms.source
        return forcing - ufl.div(terms.flux)

    return equation.with_source(extra, name=f"manufactured {equation.name}")
