"""The neural partial differential equation: symbols only.

An :class:`NPDE` reads, for a state ``u`` with ``m`` components in ``d`` space dimensions,

    A u_tt + B u_t = div F(u, grad u, x, t) + S(u, grad u, x, t) + N u,

with inertia ``A``, damping ``B``, flux ``F`` and source ``S`` written as plain UFL callables, and perhaps a nonlocal
term ``N`` (see :mod:`npde_fem.nonlocal_terms`). Nothing here knows a mesh, a grid or a solver;
:mod:`npde_fem.discretize` does.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from npde_fem.complex_pairs import Pair, as_flux, as_matrix, as_state, is_complex, split
from npde_fem.nonlocal_terms import Integral, NonlocalTerm, Stencil
from npde_fem.parameter import Composite, Value, parameters_of, plain, terminals_of, writing_on, written_on

import basix.ufl
import numpy as np
import ufl
from ufl.classes import Derivative
from ufl.constantvalue import ScalarValue
from ufl.core.expr import Expr
from ufl.corealg.traversal import traverse_unique_terminals, unique_pre_traversal

__all__ = ["NPDE", "Initial", "Terms", "as_real", "call", "manufactured", "write_term"]


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
        What splitting schemes apply at every node: callable ``(u, x, t, dt)`` of the state's shape. For Strang and
        Relaxation it is the exact flow of the source, the solution at ``t + dt`` of ``B u_t = S(u)`` that is ``u`` at
        ``t``; for Lie the flow of a reaction besides the source, or any map of the values at a point.
    nonlocal_term
        ``N``, a :class:`~npde_fem.nonlocal_terms.Stencil` or :class:`~npde_fem.nonlocal_terms.Integral` of ``m``
        components, for real equations with a time derivative; it counts as a part of the source. Explicit schemes
        (ForwardEuler, RK4, Lie, Leapfrog) alone take it into account, all others refuse it.
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
        neither float nor complex; if the nonlocal term is of another kind or another number of components, or the
        equation complex or stationary. Shapes are checked when the equation meets a domain.
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
        nonlocal_term: NonlocalTerm | None = None,
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
        self.nonlocal_term = nonlocal_term
        self._check_nonlocal_term()
        self.waves: Callable | None = None
        self.shifted: Callable[[float], NPDE] | None = None

    def _check_nonlocal_term(self) -> None:
        term = self.nonlocal_term
        if term is None:
            return
        if not isinstance(term, Stencil | Integral):
            raise TypeError(f"nonlocal_term: a Stencil or an Integral allowed, {term!r} given")
        if term.components != self.components:
            raise ValueError(
                f"nonlocal_term has {term.components} components; {self.components}, as equation {self.name!r}, allowed"
            )
        if self.is_complex:
            raise ValueError(f"nonlocal_term: equation {self.name!r} is complex; real equations allowed")
        if _is_zero(self.damping) and _is_zero(self.inertia):
            raise ValueError(f"nonlocal_term: equation {self.name!r} is stationary; one with a time derivative allowed")

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
            If a term has the wrong shape or dimension, or two parameters share a name.
        """
        d, m, shape = domain.geometric_dimension, self.components, self.shape
        if self.nonlocal_term is not None and self.nonlocal_term.dim != d:
            raise ValueError(f"nonlocal_term is one in {self.nonlocal_term.dim} dimensions; the domain has {d}")
        matrix_shapes: list[tuple[int, ...]] = [()] if m == 1 else [(), (m, m)]
        with writing_on(domain):
            terms = Terms(
                flux=write_term("flux", self.flux, (u, x, t), [(*shape, d)]),
                source=write_term("source", self.source, (u, x, t), [shape]),
                damping=write_term("damping", self.damping, (x, t), matrix_shapes),
                inertia=write_term("inertia", self.inertia, (x, t), matrix_shapes),
            )
            for label, term in zip(("damping", "inertia"), terms[2:], strict=True):
                if u in terminals_of(term):
                    raise ValueError(f"{label} must not depend on the state u")
            if self.is_complex and any(isinstance(e, Composite) for term in terms for e in terminals_of(term)):
                raise ValueError("a complex equation contains a network; networks allowed in real equations")
        parameters_of(terms)
        return terms

    def terms(self, domain: ufl.Mesh, u: Expr, x: Expr, t: Expr) -> Terms:
        """Write the equation on ``domain`` in real terms, with a state ``u`` of :attr:`state_shape`; see `written`."""
        if not self.is_complex:
            terms = self.written(domain, u, x, t)
            return Terms(*(as_real(label, term) for label, term in zip(Terms._fields, terms, strict=True)))
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
            written = write_term(label, value, arguments, [self.shape])
            return as_state(split(written, {})) if self.is_complex else as_real(label, written)

    def _write_state(self, label: str, function: Callable, domain: ufl.Mesh, u: Expr, *arguments: Expr) -> Expr:
        if not self.is_complex:
            with writing_on(domain):
                return as_real(label, write_term(label, function, (u, *arguments), [self.shape]))
        psi, pairs = self._pairs(domain, u)
        with writing_on(domain):
            return as_state(split(write_term(label, function, (psi, *arguments), [self.shape]), pairs))

    def write_integrand(self, label: str, function: Callable, domain: ufl.Mesh, u: Expr, *arguments: Expr) -> Expr:
        """Write a scalar callable ``(u, x, t)`` on ``domain``, real for a complex state too.

        Raises
        ------
        ValueError
            If it is not scalar, or not real.
        """
        if not self.is_complex:
            with writing_on(domain):
                return as_real(label, write_term(label, function, (u, *arguments), [()]))
        psi, pairs = self._pairs(domain, u)
        with writing_on(domain):
            real, imag = split(write_term(label, function, (psi, *arguments), [()]), pairs)
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

        flux, source = times(self.flux), times(self.source)
        return self._with(flux=flux, source=source, waves=None, shifted=None, name=f"rotated {self.name}")

    def with_source(self, extra: Callable, name: str | None = None) -> NPDE:
        """Return the same equation, without its flow, with ``extra(u, x, t)`` added to its source."""
        old = self.source

        def source(u: Expr, x: Expr, t: Expr) -> Expr:
            return extra(u, x, t) if old is None else old(u, x, t) + extra(u, x, t)

        return self._with(source=source, name=name or self.name)

    def _with(self, **changes: Any) -> NPDE:
        """Return the same equation but for some attributes, and for its flow, which these would not fit."""
        result = copy.copy(self)
        vars(result).update(flow=None, **changes)
        return result


def _is_zero(coefficient: Value) -> bool:
    """Whether a coefficient is zero by its form."""
    return not callable(coefficient) and all(entry == 0 for entry in np.ravel(np.asarray(coefficient, dtype=object)))


def write_term(label: str, term: Value, arguments: tuple, shapes: list[tuple[int, ...]]) -> Expr:
    """Evaluate a term of an equation and check that it is UFL of one of the allowed shapes."""
    if term is None:
        return ufl.zero(*shapes[0])
    result = plain(call(label, term, arguments) if callable(term) and not isinstance(term, Expr) else term)
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
    _check_networks(label, expression)
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


def _check_networks(label: str, expression: Expr) -> None:
    """Raise ValueError unless networks stand where their values, and not their derivatives, are needed."""
    for node in unique_pre_traversal(expression):
        if isinstance(node, Composite) and label not in ("flux", "source"):
            raise ValueError(f"{label} contains the network {node}; networks allowed in flux and source only")
        if isinstance(node, Derivative) and any(isinstance(e, Composite) for e in traverse_unique_terminals(node)):
            raise ValueError(
                f"{label} contains a derivative of a network, {node}; networks of derivatives, such as net(grad(u)), "
                "allowed; an equation with one in its flux has no manufactured solution"
            )


def as_real(label: str, expression: Expr) -> Expr:
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
        domain = written_on()
        where = "" if domain is None else f" in {domain.geometric_dimension} dimensions"
        raise kind(
            f"{label}: calling {getattr(function, '__name__', function)!s}{where} failed: {error}. "
            "It must be written in UFL (ufl.exp, ufl.grad, ...), not numpy, in as many dimensions as the domain has"
        ) from error


@dataclass(frozen=True)
class Initial:
    """Initial data in UFL: a callable ``(x)`` (or ``(x, t)``) that may contain parameters, taken at the nodes."""

    value: Callable

    def __post_init__(self) -> None:
        if not callable(self.value):
            raise TypeError(f"Initial: a callable (x) that returns UFL allowed, {self.value!r} given")


def manufactured(equation: NPDE, exact: Callable) -> NPDE:
    """Return ``equation`` with the source that makes ``exact(x, t)`` (UFL) its solution.

    The added source is ``A u_tt + B u_t - div F(u) - S(u)`` at ``u = exact``, by symbolic differentiation
    (the method of manufactured solutions; Roache 2002, J. Fluids Eng. 124, eq. 4).

    Raises
    ------
    ValueError
        If the equation has a nonlocal term, which is no symbol.
    """
    if equation.nonlocal_term is not None:
        raise ValueError(f"manufactured: equation {equation.name!r} has a nonlocal term; one without allowed")

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
