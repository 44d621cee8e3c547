"""Derivatives of finite-difference terms, by compiled stencils.

What a stencil reads (means, differences, slopes) is linear in the values on the grid, so the tangent of a term is the
stencil of the flux's and the source's derivative along (v, delta), which are further quantities on the grid. Its
transpose is a reverse sweep through the expression at each face and point: weights of rows go in, and what comes out
at the leaves is sent back to the values they were read from. Second-order terms are reverse sweeps of the tangent.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from npde_fem.discretize.domain import Points
from npde_fem.discretize.fd_networks import ByWeights, Needed
from npde_fem.discretize.jit import compile_c
from npde_fem.discretize.linearised import Integral, Linearised, Nodal, checked_controls
from npde_fem.discretize.scalar import components, gateaux, lower
from npde_fem.discretize.semidiscrete import Array, Term
from npde_fem.discretize.stencil import (
    Field,
    GridArguments,
    Symbols,
    evaluator_source,
    pointers_to,
    rate_source,
    reverse_evaluator_source,
    reverse_source,
)
from npde_fem.neural_terms import Weights
from npde_fem.parallel import alike
from npde_fem.parameter import Parameter

import numpy as np
import ufl
from ufl.core.expr import Expr
from ufl.corealg.traversal import traverse_unique_terminals

if TYPE_CHECKING:
    from npde_fem.discretize.fd import FD

__all__ = ["FDLinearised"]


class _Rows:
    """Values made by expressions of the state and the parameters, and the transposed derivatives of these.

    Parameters
    ----------
    owner
        Knows the symbols, and where the kernels find their values.
    expressions
        Flux and source of one row a component and point, integrated over control volumes; or, with ``points``, one
        expression there.
    points
        Some of this rank's points.
    """

    def __init__(self, owner: FDLinearised, expressions: Sequence[Expr], points: Points | None = None) -> None:
        self._owner, self._expressions, self._points = owner, expressions, points

    @cached_property
    def second(self) -> _Rows:
        """The derivative along (v, delta)."""
        along = self._owner.directions
        return _Rows(self._owner, [gateaux(e, along) for e in self._expressions], self._points)

    def _needed(self, by: Sequence[Expr] = ()) -> Needed:
        """What kernels read of networks, or those of the derivatives by some symbols."""
        if self._points is not None:
            return {}
        flux, source = self._expressions
        return self._owner.problem.networks.needed(flux, source, by)

    @cached_property
    def _forward(self) -> Callable | None:
        if not any(components(e) for e in self._expressions):
            return None
        if self._points is None:
            flux, source = self._expressions
            return self._compiled(rate_source(self._owner.symbols, flux, source), "rate", 1, self._needed())
        (data,) = self._expressions
        return self._compiled(evaluator_source(self._owner.symbols, data), "evaluate", 1)

    @cached_property
    def _to_state(self) -> tuple[Callable, bool] | None:
        return self._backward([self._owner.problem.symbols.u], plain=True)

    @cached_property
    def _to_controls(self) -> tuple[Callable, bool] | None:
        return self._backward(list(self._owner.bound.values()))

    @cached_property
    def _to_weights(self) -> list[ByWeights]:
        if self._points is not None:
            return []
        flux, source = self._expressions
        sites = self._owner.moved_sites
        return [ByWeights(self._owner.problem, self._owner.symbols, flux, source, site) for site in sites]

    def _backward(self, by: list[Expr], *, plain: bool = False) -> tuple[Callable, bool] | None:
        """Return the kernel of the transposed derivative, and whether it writes to plain arrays; None if it is zero."""
        s, gathers = self._owner.symbols, False
        if all(s.terminals(e).isdisjoint(by) for e in self._expressions):
            return None
        if self._points is None:
            flux, source = self._expressions
            code, gathers = reverse_source(s, flux, source, by, plain=plain)
        else:
            (data,) = self._expressions
            code = reverse_evaluator_source(s, data, by)
        return self._compiled(code, "reverse", 3, self._needed(by)), gathers

    @cached_property
    def _many_to_state(self) -> tuple[Callable, bool] | None:
        return self._backward_many([self._owner.problem.symbols.u], plain=True)

    @cached_property
    def _many_to_controls(self) -> tuple[Callable, bool] | None:
        return self._backward_many(list(self._owner.bound.values()))

    def _backward_many(self, by: list[Expr], *, plain: bool = False) -> tuple[Callable, bool] | None:
        """Return what :meth:`_backward` does, for many states in one array; what is written lies so far apart."""
        if not any(depends(e, by) for e in self._expressions):
            return None
        owner, (flux, source), address = self._owner, self._expressions, ctypes.c_void_p
        code, gathers = reverse_source(owner.symbols, flux, source, by, plain=plain)
        kernel = compile_c(owner.problem.comm, code).reverse_many
        kernel.restype = None
        kernel.argtypes = [ctypes.POINTER(GridArguments), *[ctypes.c_long] * 4, *[address] * 4]

        def run(t: float, states: Array, weights: Array, apart: int, outs: Any, sums: int | None) -> None:
            strides = states[0].size, weights[0].size, apart
            kernel(owner.arguments_at(t), len(states), *strides, states.ctypes.data, weights.ctypes.data, outs, sums)

        return run, gathers

    def _compiled(self, source: str, name: str, arrays: int, needed: Needed | None = None) -> Callable:
        """Return a kernel as a function of time and of the addresses of its last ``arrays`` arrays."""
        owner, points, address = self._owner, self._points, ctypes.c_void_p
        where: list[int] = []
        kinds: list[type] = []
        if points is not None:
            where = [points.flat.size, *(a.ctypes.data for a in (points.ghosted, points.x, points.normal))]
            kinds = [ctypes.c_long, address, address, address]
        kernel = getattr(compile_c(owner.problem.comm, source), name)
        kernel.restype = None
        kernel.argtypes = [ctypes.POINTER(GridArguments), address, *kinds, *[address] * arrays]

        def run(t: float, *last: object) -> None:
            owner.fill_networks(needed, t)
            kernel(owner.arguments_at(t), owner.state.ctypes.data, *where, *last)

        return run

    def write(self, t: float, out: Array) -> None:
        """Write the values into ``out``."""
        if self._forward is None:
            out[...] = 0.0
        else:
            self._forward(t, out.ctypes.data)

    def pull(self, t: float, weights: Array, out: Array) -> None:
        """Write the transposed derivative by the state, times weights, into the values ``out``.

        The weights of rows at all points are a ghosted array. Listed points scatter: see :meth:`_Listed.pull`.
        """
        if self._to_state is None:
            out[:] = 0.0
            return
        kernel, plain = self._to_state
        if plain:
            self._owner.out_pointers[0] = out.ctypes.data
            kernel(t, weights.ctypes.data, self._owner.out_pointers, None)
        else:
            pulled = self._owner.pulled
            pulled[...] = 0.0
            kernel(t, weights.ctypes.data, self._owner.pulled_pointers, None)
            self._owner.problem.halo.reverse(pulled)
            self._owner.problem.store(pulled, out)

    def pull_many(self, t: float, states: Array, weights: Array, pulled: Array, out: Array) -> None:
        """Do as :meth:`pull` for many states in one array; ``pulled`` is room for such."""
        if self._many_to_state is None:
            out[:] = 0.0
            return
        kernel, plain = self._many_to_state
        if plain:
            kernel(t, states, weights, out.size // len(states), pointers_to([out]), None)
        else:
            pulled[...] = 0.0
            kernel(t, states, weights, pulled[0].size, pointers_to([pulled]), None)
            self._owner.problem.halo_of(pulled).reverse(pulled)
            self._owner.problem.store(pulled, out)

    def collect_many(self, t: float, states: Array, weights: Array) -> None:
        """Do as :meth:`collect` for many states in one array."""
        if self._many_to_controls is not None:
            kernel, _ = self._many_to_controls
            kernel(t, states, weights, 0, self._owner.gradient_pointers, self._owner.sums.ctypes.data)

    def scatter(self, t: float, weights: Array) -> bool:
        """Add to the owner's ghosted array for that instead, ghosts not sent home; return whether there is any."""
        if self._to_state is not None:
            self._to_state[0](t, weights.ctypes.data, self._owner.pulled_pointers, None)
        return self._to_state is not None

    def collect(self, t: float, weights: Array) -> None:
        """Add the transposed derivative by the controls, times weights, to the owner's gradient."""
        if self._to_controls is not None:
            kernel, _ = self._to_controls
            kernel(t, weights.ctypes.data, self._owner.gradient_pointers, self._owner.sums.ctypes.data)
        for through in self._to_weights:
            self._owner.fill_networks(through.needed, t)
            through.collect(self._owner.arguments_at(t), self._owner.state, weights, self._owner.weight_moves)


class _Listed:
    """Data at listed points as rows of some dofs, each times a factor."""

    def __init__(self, owner: FDLinearised, data: Expr, points: Points, held: Sequence[int], factor: Array) -> None:
        self._owner, self._rows = owner, _Rows(owner, [data], points)
        self._flat, first = np.unique(points.flat, return_index=True)
        self._ghosted = points.ghosted[first]
        self.dofs = points.flat[:, None] * owner.problem.components + np.asarray(held, dtype=np.int64)
        self._factor, self._values = factor, np.zeros(self.dofs.shape)

    def tangent(self, t: float) -> Array:
        """Return the derivative along (v, delta), of the shape of ``dofs``; it holds until the next call."""
        self._rows.second.write(t, self._values)
        self._values *= self._factor
        return self._values

    def _weights(self, adjoint: Array) -> Array:
        np.take(adjoint, self.dofs, out=self._values)
        self._values *= self._factor
        return self._values

    def pull(self, t: float, adjoint: Array, out: Array, *, second: bool) -> None:
        """Add the transposed derivative by the state, at these points, to the values ``out``."""
        ghosted = self._owner.pulled.reshape(-1, self._owner.problem.components)
        ghosted[self._ghosted] = 0.0
        if (self._rows.second if second else self._rows).scatter(t, self._weights(adjoint)):
            out.reshape(-1, self._owner.problem.components)[self._flat] += ghosted[self._ghosted]

    def collect(self, t: float, adjoint: Array, *, second: bool) -> None:
        (self._rows.second if second else self._rows).collect(t, self._weights(adjoint))


class _Nodal:
    """Nodal data: see :class:`Nodal`. Where two parts share a dof the later one has it."""

    def __init__(self, parts: list[_Listed]) -> None:
        self._parts = parts

    def tangent(self, t: float, out: Array) -> None:
        for part in self._parts:
            out[part.dofs] = part.tangent(t)

    def collect(self, t: float, adjoint: Array) -> None:
        for part in self._parts:
            part.collect(t, adjoint, second=False)

    def collect_second(self, t: float, adjoint: Array) -> None:
        for part in self._parts:
            part.collect(t, adjoint, second=True)


class _Integral:
    """The sum of the one row that an integrand has: see :class:`Integral`."""

    def __init__(self, owner: FDLinearised, integrand: Expr) -> None:
        self._owner = owner
        self._rows = _Rows(owner, [ufl.zero(owner.problem.dim), integrand])
        self._values = np.zeros(owner.problem.layout.n_points)
        self._weights = np.zeros(owner.problem.layout.ghosted_shape)

    def _sum(self, rows: _Rows) -> float:
        rows.write(self._owner.t, self._values)
        return float(self._owner.problem.comm.allreduce(float(self._values.sum())))

    def value(self) -> float:
        return self._sum(self._rows)

    def tangent(self) -> float:
        return self._sum(self._rows.second)

    def _weighted(self, weight: float) -> Array:
        self._weights[...] = weight
        return self._weights

    def pull(self, weight: float, out: Array) -> None:
        self._rows.pull(self._owner.t, self._weighted(weight), out)

    def pull_second(self, weight: float, out: Array) -> None:
        self._rows.second.pull(self._owner.t, self._weighted(weight), out)

    def collect(self, weight: float) -> None:
        self._rows.collect(self._owner.t, self._weighted(weight))

    def collect_second(self, weight: float) -> None:
        self._rows.second.collect(self._owner.t, self._weighted(weight))


class FDLinearised(Linearised):
    """Derivatives of the terms of an :class:`~npde_fem.discretize.fd.FD`; see :class:`Linearised`.

    Kernels are compiled when they are first needed; controls that do not enter a term cost nothing there.

    Parameters
    ----------
    problem
        The problem.
    controls
        Parameters of the problem to differentiate by.

    Raises
    ------
    TypeError, ValueError
        If a control is no Parameter, or none of the problem's.

    Attributes
    ----------
    bound
        The controls' symbols in the problem's expressions, by name.
    directions
        Symbols of v and delta, by the symbols of the state and of the controls.
    state, t
        The point: a state (with ghosts) and a time.
    weight_moves
        delta of the weights of networks, by network.
    moved_sites
        Where the problem has these networks.
    pulled
        Ghosted array in which transposed derivatives by the state are summed up, where rows scatter.
    sums
        What the gradient by the numbers amounts to so far on this rank, one number after the other.
    """

    def __init__(self, problem: FD, controls: Sequence[Parameter]) -> None:
        self.problem: FD = problem
        self.controls = checked_controls(problem, controls)
        # Kernels count the fields and the numbers to differentiate by apart, each in the order of the controls.
        self._trained = [p for p in self.controls if isinstance(p, Weights)]
        self._fields = [p for p in self.controls if p.is_field]
        self._numbers = [p for p in self.controls if not (p.is_field or p in self._trained)]
        self.bound = {p.name: problem.bound(p) for p in (*self._fields, *self._numbers)}
        u = problem.symbols.u
        self._v = problem.new_field(u.ufl_shape)
        self._deltas = {p.name: problem.new_field(p.ufl_shape) for p in self._fields}
        self._deltas |= {p.name: problem.new_number(p.ufl_shape) for p in self._numbers}
        self.directions = {u: self._v, **{self.bound[name]: delta for name, delta in self._deltas.items()}}
        self.weight_moves = {p.network: np.zeros(p.ufl_shape) for p in self._trained}
        self.moved_sites = [site for site in problem.networks.sites if site.network in self.weight_moves]
        self.directions |= problem.networks.directions(self.directions, self.weight_moves)
        sizes = [int(np.prod(p.ufl_shape, dtype=int)) for p in self._numbers]
        self._slices = {
            p.name: slice(end - size, end) for p, size, end in zip(self._numbers, sizes, np.cumsum(sizes), strict=True)
        }
        self._still = problem.new_state()
        self.pulled, self._weights = problem.new_state(), problem.new_state()
        self.state, self.t, self._step = self._still, 0.0, 0.0
        self._direction, self._moved = self._still, np.zeros(problem.n_owned)
        self._point = object()
        self._gradients = {p.name: problem.new_ghosted(p) for p in self._fields}
        self._moves = {p.name: problem.new_ghosted(p) for p in self._fields}
        self.sums, self._number_moves = np.zeros(sum(sizes)), np.zeros(sum(sizes))
        self.pulled_pointers, self.out_pointers = pointers_to([self.pulled]), pointers_to([self.pulled])
        self.gradient_pointers = pointers_to(list(self._gradients.values()))
        self._many_weights, self._many_pulled = problem.new_states(0), problem.new_states(0)
        self._rows: dict[Term, _Rows] = {}
        self._prescribed: dict[int, Nodal | None] = {}
        self._lay_out()

    # -- what the kernels read -------------------------------------------------------------------------------

    @property
    def symbols(self) -> Symbols:
        """The problem's symbols behind those of the directions.

        The problem may meet more parameters later; theirs come last, so kernels compiled before stay right.
        """
        s = self.problem.symbols
        in_cells = {f.symbol: f.in_cells for f in s.fields}
        moved = [Field(self._deltas[p.name], in_cells[self.bound[p.name]]) for p in self._fields]
        return Symbols(
            **{
                **vars(s),
                "fields": (Field(self._v, False), *moved, *s.fields),
                "numbers": (*(self._deltas[p.name] for p in self._numbers), *s.numbers),
            }
        )

    def _lay_out(self) -> None:
        problem = self.problem
        self._known = len(problem.parameters)
        self._number_values = np.concatenate([self._number_moves, problem.number_values])
        self._field_pointers = pointers_to([self._still, *self._moves.values(), *problem.ghosted_fields])
        self._arguments = problem.arguments(self._number_values, self._field_pointers)

    def arguments_at(self, t: float) -> GridArguments:
        """Return what kernels are told of the grid, the time, and the values of all parameters as they are now."""
        if len(self.problem.parameters) > self._known:
            direction = self._field_pointers[0]
            self._lay_out()
            self._field_pointers[0] = direction
        split = self._number_moves.size
        self._number_values[:split], self._number_values[split:] = self._number_moves, self.problem.number_values
        self._arguments.t, self._arguments.dt = t, self._step
        return self._arguments

    def fill_networks(self, needed: Needed | None, t: float) -> None:
        """Give kernels what they need of networks at this point."""
        if needed:
            self.problem.networks.fill(needed, t, self.state, self.weight_moves, self._point)

    def at(self, t: float, state: Array, direction: Array | None = None, step: float = 0.0) -> None:
        self.t, self.state, self._step = t, state, step
        self._point = object()
        self._direction = self._still if direction is None else direction
        self._field_pointers[0] = self._direction.ctypes.data

    def move(self, delta: Mapping[str, Array]) -> None:
        with alike(self.problem.comm):
            names = {p.name for p in self.controls}
            unknown = set(delta) - names
            if unknown:
                raise ValueError(f"delta of {sorted(unknown)} given; the controls are {sorted(names)}")
            for name, ghosted in self._moves.items():
                owned = ghosted[self.problem.layout.inner]
                values = np.asarray(delta.get(name, 0.0), dtype=np.float64)
                if values.size not in (1, owned.size):
                    raise ValueError(f"delta of {name!r}: {values.size} values given; this rank owns {owned.size}")
                owned[...] = values.reshape(owned.shape) if values.size == owned.size else values
            for name, place in self._slices.items():
                values = np.asarray(delta.get(name, 0.0), dtype=np.float64)
                shape = self._deltas[name].ufl_shape
                if values.shape not in ((), shape):
                    raise ValueError(f"delta of {name!r}: shape {values.shape} given, {shape} allowed")
                self._number_moves[place] = np.broadcast_to(values, shape).ravel()
            for p in self._trained:
                values = np.asarray(delta.get(p.name, 0.0), dtype=np.float64)
                if values.shape not in ((), p.ufl_shape):
                    raise ValueError(f"delta of {p.name!r}: shape {values.shape} given, {p.ufl_shape} allowed")
                self.weight_moves[p.network][:] = values
        self._point = object()
        for ghosted in self._moves.values():
            self.problem.fill_field(ghosted)

    # -- the terms -------------------------------------------------------------------------------------------

    def depends(self, expression: Expr) -> bool:
        """Whether a control occurs in an expression."""
        return depends(expression, self.bound.values())

    @property
    def with_damping(self) -> bool:
        return self.depends(self.problem.damping) or any(self.depends(a.data) for a in self.problem.absorbers)

    @property
    def with_inertia(self) -> bool:
        return self.depends(self.problem.inertia)

    def prescribed(self, order: int = 0) -> Nodal | None:
        if order not in self._prescribed:
            self._prescribed[order] = self._prescribe(order)
        return self._prescribed[order]

    def _prescribe(self, order: int) -> Nodal | None:
        problem = self.problem
        given = problem.prescribed_of(order)
        if not any(self.depends(p.data) for p in given):
            return None
        parts, taken = [], np.zeros(problem.n_owned, dtype=bool)
        for p in reversed(given):
            dofs = p.points.flat[:, None] * problem.components + np.asarray(p.components)
            parts.append(_Listed(self, p.data, p.points, p.components, 1.0 - taken[dofs]))
            taken[dofs] = True
        return _Nodal(parts[::-1])

    def initial(self, function: Callable) -> Nodal:
        problem = self.problem
        data = problem.write_nodal(function)
        points = problem.domain.points(np.flatnonzero(problem.domain.inside))
        held = range(problem.components)
        return _Nodal([_Listed(self, data, points, held, np.ones((points.flat.size, len(held))))])

    def integral(self, function: Callable) -> Integral:
        return _Integral(self, self.problem.write_integral(function))

    def _term(self, term: Term) -> _Rows:
        if term not in self._rows:
            problem = self.problem
            if term == "mass" or term == "inertia":
                u, b = problem.symbols.u, problem.inertia if term == "inertia" else problem.damping
                flux = ufl.zero(*u.ufl_shape, problem.dim)
                self._rows[term] = _Rows(self, [flux, lower(b * u if b.ufl_shape == () else ufl.dot(b, u))])
            elif term == "flow":
                self._rows[term] = _Rows(self, [ufl.zero(*problem.symbols.u.ufl_shape, problem.dim), problem.flow_data])
            else:
                self._rows[term] = _Rows(self, problem.split(term))
        return self._rows[term]

    @cached_property
    def _boundary(self) -> list[_Listed]:
        return [
            _Listed(self, e.data, e.faces.points, e.components, e.faces.area[:, None]) for e in self.problem.exchanges
        ]

    @cached_property
    def _absorbing(self) -> list[_Listed]:
        return [
            _Listed(self, a.data, a.faces.points, a.components, a.faces.area[:, None]) for a in self.problem.absorbers
        ]

    def _boundary_of(self, term: Term) -> list[_Listed]:
        if term == "mass":
            return self._absorbing
        return self._boundary if term in ("all", "flux") else []

    def tangent(self, term: Term, out: Array) -> None:
        self._term(term).second.write(self.t, out)
        for faces in self._boundary_of(term):
            np.add.at(out, faces.dofs, faces.tangent(self.t))
        if self.problem.equation.nonlocal_term is not None:
            self.problem.store(self._direction, self._moved)
            self.problem.add_nonlocal(term, self._moved, out)
        if term not in ("mass", "inertia"):
            out[self.problem.constrained] = 0.0

    def _pull(self, term: Term, adjoint: Array, out: Array, *, second: bool) -> None:
        rows = self._term(term)
        self.problem.load(adjoint, self._weights)
        (rows.second if second else rows).pull(self.t, self._weights, out)
        for faces in self._boundary_of(term):
            faces.pull(self.t, adjoint, out, second=second)
        if not second:
            self.problem.add_nonlocal(term, adjoint, out, transposed=True)

    def pull(self, term: Term, adjoint: Array, out: Array) -> None:
        self._pull(term, adjoint, out, second=False)

    def pull_second(self, term: Term, adjoint: Array, out: Array) -> None:
        self._pull(term, adjoint, out, second=True)

    def _collect(self, term: Term, adjoint: Array, *, second: bool) -> None:
        rows = self._term(term)
        self.problem.load(adjoint, self._weights)
        (rows.second if second else rows).collect(self.t, self._weights)
        for faces in self._boundary_of(term):
            faces.collect(self.t, adjoint, second=second)

    def collect(self, term: Term, adjoint: Array) -> None:
        self._collect(term, adjoint, second=False)

    def collect_second(self, term: Term, adjoint: Array) -> None:
        self._collect(term, adjoint, second=True)

    # -- terms of many states --------------------------------------------------------------------------------

    def at_many(self, t: float, states: Array, step: float = 0.0) -> None:
        """Linearise about many states in one array (of ``FD.new_states``), for :meth:`pull_many` and others."""
        self.at(t, states[0], step=step)
        self._states = states
        if self._many_weights.shape != states.shape:
            self._many_weights, self._many_pulled = np.zeros_like(states), np.zeros_like(states)

    def pull_many(self, term: Term, adjoint: Array, out: Array) -> None:
        """Do as :meth:`pull` for all of these states; values are those of one state after the other."""
        self.problem.load(adjoint, self._many_weights)
        self._term(term).pull_many(self.t, self._states, self._many_weights, self._many_pulled, out)
        for faces in self._boundary_of(term):
            for state, weights, into in self._each_of(adjoint, out):
                self.state = state
                faces.pull(self.t, weights, into, second=False)

    def collect_many(self, term: Term, adjoint: Array) -> None:
        """Do as :meth:`collect` for all of these states."""
        self.problem.load(adjoint, self._many_weights)
        self._term(term).collect_many(self.t, self._states, self._many_weights)
        for faces in self._boundary_of(term):
            for state, weights in self._each_of(adjoint):
                self.state = state
                faces.collect(self.t, weights, second=False)

    def _each_of(self, *values: Array) -> Iterator[tuple[Array, ...]]:
        """Iterate over the states with their values."""
        return zip(self._states, *(v.reshape(len(self._states), -1) for v in values), strict=True)

    # -- the gradient ----------------------------------------------------------------------------------------

    def clear(self) -> None:
        self.sums[:] = 0.0
        for p in self._trained:
            self.problem.networks.evaluators[p.network].clear()
        for ghosted in self._gradients.values():
            ghosted[...] = 0.0

    def gradient(self) -> dict[str, Array]:
        problem, found = self.problem, {}
        summed = np.zeros_like(self.sums)
        problem.comm.Allreduce(self.sums, summed)
        for p in self.controls:
            if p.is_field:
                ghosted = self._gradients[p.name].copy()
                problem.layout.field_halo(ghosted.shape[-1]).reverse(ghosted)
                found[p.name] = ghosted[problem.layout.inner].flatten()
            elif p in self._trained:
                found[p.name] = problem.comm.allreduce(problem.networks.evaluators[p.network].gradient())
            else:
                found[p.name] = summed[self._slices[p.name]].reshape(p.ufl_shape)
        return found


def depends(expression: Expr, symbols: Collection[Expr]) -> bool:
    """Whether one of some symbols occurs in an expression."""
    return not set(symbols).isdisjoint(traverse_unique_terminals(expression))
