"""Conservative finite differences on a PETSc DMDA grid: the reference path.

The scheme stands in :mod:`npde_fem.discretize.stencil`. Second order in space for smooth solutions; without flux
through the boundary and without source the mass (sum of ``|V_p| u_p``) is constant to round-off.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from npde_fem.boundary import (
    Absorbing,
    BoundaryCondition,
    Dirichlet,
    Flux,
    Outflow,
    Periodic,
    Robin,
    checked_conditions,
)
from npde_fem.discretize.data import complex_values, evaluate_callable, finite, refuse_negative
from npde_fem.discretize.domain import Domain, Faces, Points
from npde_fem.discretize.fd_linearised import FDLinearised
from npde_fem.discretize.fd_networks import FDNetworks, Needed
from npde_fem.discretize.grid import Grid, GridFunction, Halo, Layout
from npde_fem.discretize.jit import compile_c
from npde_fem.discretize.scalar import lower, partial
from npde_fem.discretize.semidiscrete import SINGULAR, Array, Part, Semidiscrete, Term
from npde_fem.discretize.stencil import (
    Field,
    GridArguments,
    Symbols,
    balance_source,
    evaluator_source,
    jacobian_source,
    pointers_to,
    rate_source,
)
from npde_fem.equation import NPDE, Initial, Terms
from npde_fem.neural_terms import Weights
from npde_fem.parallel import Refused, alike
from npde_fem.parameter import Parameter, abstract_domain, as_numbers, parameters_of

import basix.ufl
import numpy as np
import numpy.typing as npt
import ufl
from mpi4py import MPI
from petsc4py import PETSc
from ufl.core.expr import Expr
from ufl.corealg.traversal import traverse_unique_terminals

__all__ = ["FD"]

_ROUND_OFF = 1e-12

_DOUBLE = ctypes.POINTER(ctypes.c_double)
_LONG = ctypes.POINTER(ctypes.c_long)


def _address(array: npt.NDArray) -> int:
    return array.ctypes.data


class _Prescribed(NamedTuple):
    """Dirichlet data at points: which dofs, and the expression of their values."""

    points: Points
    components: list[int]
    data: Expr
    evaluate: Callable[[float, Array | None], Array]
    in_time: bool


class _Exchange(NamedTuple):
    """Flux through boundary faces: ``area * (value - coefficient u)`` enters some components of a point.

    ``data`` is ``value - coefficient u``; the coefficient is one number a face, or a matrix of the components, flat.
    """

    faces: Faces
    components: list[int]
    data: Expr
    value: Callable[[float, Array | None], Array]
    coefficient: Callable[[float, Array | None], Array] | None
    in_time: bool


class _Absorber(NamedTuple):
    """Boundary faces that add ``area * impedance`` to the damping of a component; ``data`` is ``impedance * u``."""

    faces: Faces
    components: list[int]
    data: Expr
    impedance: Callable[[float, Array | None], Array]


class _Jacobian(NamedTuple):
    """The compiled Jacobian of a part of the equation: its stencil, a buffer, and what it depends on.

    ``slots`` says which entries of the whole equation's stencil the part's are, ``values`` has shape (n, ns, m, m).
    """

    kernel: Callable
    offsets: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    values: Array
    with_state: bool
    with_time: bool


class _Entries(NamedTuple):
    """COO rows and columns of the Jacobian's entries (-1: none), and the diagonal's place in the stencil."""

    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]
    centre: int


class FD(Semidiscrete):
    """An equation discretised by finite differences on a grid.

    A network in the source is evaluated at the points, one in the flux at the faces between them, from the same means,
    differences and slopes as the flux itself.

    Parameters
    ----------
    equation
        The NPDE.
    grid
        The grid; its ``comm`` is the problem's.
    bcs
        Boundary conditions; on a grid with padding Periodic only. Where none holds, no flux passes. Dirichlet wins over
        flux conditions at the same
        point; markers of Dirichlet conditions are evaluated at boundary points, those of Flux and Robin at the
        centres of boundary faces. On a masked grid the boundary is the staircase surface of the mask.

    Raises
    ------
    TypeError, ValueError
        If a term of the equation is not UFL or has a wrong shape, parameters clash or lack a value, a marker
        selects nothing or raises, a component does not exist, a condition is given on a periodic side, or a grid with
        padding has other conditions than Periodic or networks in the flux.
    """

    method = "fd"

    def __init__(self, equation: NPDE, grid: Grid, bcs: Sequence[BoundaryCondition] = ()) -> None:
        if not isinstance(equation, NPDE):
            raise TypeError(f"equation must be an NPDE, not {equation!r}")
        if not isinstance(grid, Grid):
            raise TypeError(f"grid must be a Grid, not {type(grid).__name__}: {grid!r}")
        self.equation, self.grid, self.comm, self.dim = equation, grid, grid.comm, grid.dim
        self._given_conditions = tuple(bcs) if isinstance(bcs, Iterable) else bcs
        self.components = m = equation.state_components
        bcs = checked_conditions(bcs, equation.components)
        periodic_axes = [bc.axis for bc in bcs if isinstance(bc, Periodic)]
        if any(axis >= self.dim for axis in periodic_axes):
            raise ValueError(f"Periodic: axis {max(periodic_axes)} given; the grid has axes 0 to {self.dim - 1}")
        self._check_conditions(bcs)
        self.layout = Layout(grid, tuple(a in periodic_axes for a in range(self.dim)), m)
        self._write_equation()
        self.domain = Domain(self.layout)
        self.volumes, self._inside = self.domain.volumes, self.domain.inside
        self.n_owned, self.n_global = self.layout.n_points * m, int(np.prod(self.layout.points)) * m
        self.halo = self.layout.halo(m)
        self._buffer = self.new_state()
        self._rates = np.zeros(self.n_owned)
        self._kernels: dict[str, Callable] = {}
        self._jacobians: dict[Part, _Jacobian] = {}
        self._dirichlet = [bc for bc in bcs if isinstance(bc, Dirichlet)]
        self.prescribed = [self._prescribe(bc) for bc in self._dirichlet]
        self._prescribed_rates: dict[int, list[_Prescribed]] = {}
        self.absorbers = [self._absorb(bc) for bc in bcs if isinstance(bc, Absorbing)]
        self.exchanges = [self._open_faces(bc) for bc in bcs if isinstance(bc, Flux | Robin)]
        self.exchanges += [e for bc in bcs if isinstance(bc, Absorbing) and (e := self._open_faces(bc)).data != 0]
        self._finish_constraints()
        # Boundary data may bring parameters of its own, so their values are laid out last.
        self._fields: dict[str, Array] = {}
        self._lay_out()
        self._masses_known = False
        self.update()
        self._meet_flow()

    def with_equation(self, equation: NPDE) -> FD:
        """Return another equation on the same grid with the same boundary conditions."""
        return FD(equation, self.grid, self._given_conditions)

    # -- setting up ------------------------------------------------------------------------------------------

    def _check_conditions(self, bcs: Sequence[BoundaryCondition]) -> None:
        for bc in bcs:
            if self.grid.padding is not None and not isinstance(bc, Periodic):
                raise ValueError(
                    f"{type(bc).__name__}: given on a grid with padding={self.grid.padding!r}, which says what lies "
                    "beyond its points; Periodic allowed"
                )
            if isinstance(bc, Outflow):
                raise ValueError(
                    'Outflow: for FEM only; on a grid Grid(..., padding="replicate") or padding="reflect" lets the '
                    "state leave without normal slope"
                )

    def _write_equation(self) -> None:
        self._ufl_domain = domain = abstract_domain(self.dim)
        u, x, t = self.new_field(self.equation.state_shape), ufl.SpatialCoordinate(domain), ufl.Constant(domain)
        normal = ufl.Constant(domain, shape=(self.dim,))
        terms = self.equation.terms(domain, u, x, t)
        self.parameters: dict[str, Parameter] = {}
        self._bound: dict[Parameter, Expr] = {}
        dt = ufl.Constant(domain)
        masked, padded = self.grid.mask is not None, self.layout.padded
        self.symbols = Symbols(self.dim, self.components, u, x, t, dt, normal, masked=masked, padded=padded)
        self.networks = FDNetworks(self)
        self._terms = Terms(*(lower(self._bind(term)) for term in terms))
        for label, term in zip(Terms._fields, self._terms, strict=True):
            self._evaluator_source(label, term)
        if any(t in set(traverse_unique_terminals(e)) for e in self._terms[2:]):
            raise ValueError("damping and inertia must not depend on time")
        if self.layout.padded and self.symbols.placed_in(self._terms.flux):
            raise ValueError("flux contains a network; on a grid with padding networks allowed in the source only")

    def _bind(self, expression: Expr) -> Expr:
        """Replace parameters by symbols of the grid's domain, making the symbols of those not met before."""
        s = self.symbols
        for name, parameter in parameters_of([expression]).items():
            if self.parameters.setdefault(name, parameter) is not parameter:
                raise ValueError(f"duplicate parameter name {name!r}: two parameters of one problem share it")
            if parameter in self._bound or isinstance(parameter, Weights):
                continue
            symbol: Expr
            if parameter.is_field:
                in_cells = parameter.element is not None
                if parameter.element not in (None, ("DG", 0), ("DP", 0), ("Discontinuous Lagrange", 0)):
                    raise ValueError(
                        f"Parameter {name!r}: field={parameter.element} given; on a grid True (values at the points) "
                        'or ("DG", 0) (values in the cells) allowed'
                    )
                if in_cells and (self.grid.mask is not None or self.layout.padded):
                    kind = "masked grid" if self.grid.mask is not None else "grid with padding"
                    raise ValueError(f"Parameter {name!r}: on a {kind} fields live at points: field=True")
                symbol = self.new_field(parameter.ufl_shape)
                s = replace(s, fields=(*s.fields, Field(symbol, in_cells)))
            else:
                symbol = self.new_number(parameter.ufl_shape)
                s = replace(s, numbers=(*s.numbers, symbol))
            self._bound[parameter] = symbol
        self.symbols = s
        bound = self.networks.written(expression, lambda e: ufl.replace(e, {p: b for p, b in self._bound.items()}))
        self.symbols = replace(self.symbols, placed=self.networks.placed)
        return bound

    def bound(self, parameter: Parameter) -> Expr:
        """Return what stands in the problem's expressions for a parameter."""
        return self._bound[parameter]

    def new_number(self, shape: tuple[int, ...]) -> ufl.Constant:
        """Return a new symbol of a number on the grid."""
        return ufl.Constant(self._ufl_domain, shape=shape)

    def new_field(self, shape: tuple[int, ...]) -> ufl.Coefficient:
        """Return a new symbol of a quantity on the grid."""
        cell = self._ufl_domain.ufl_cell().cellname
        element = basix.ufl.element("Lagrange", cell, 5, shape=shape or None)
        return ufl.Coefficient(ufl.FunctionSpace(self._ufl_domain, element))

    @property
    def damping(self) -> Expr:
        """The damping, lowered, parameters bound."""
        return self._terms.damping

    @property
    def inertia(self) -> Expr:
        """The inertia, lowered, parameters bound."""
        return self._terms.inertia

    @property
    def _field_parameters(self) -> list[Parameter]:
        return [p for p in self._bound if p.is_field]

    @property
    def _number_parameters(self) -> list[Parameter]:
        return [p for p in self._bound if not p.is_field]

    def arguments(self, numbers: Array, fields: ctypes.Array) -> GridArguments:
        """Return what kernels are told of this rank's grid.

        ``numbers`` and pointers to ghosted ``fields`` are what the kernels' symbols stand for, in their order; the
        caller keeps them alive.
        """
        layout, pad = self.layout, (0,) * (3 - self.dim)
        g = GridArguments()
        g.n, g.start, g.size = (*layout.local, *pad), (*layout.start, *pad), (*layout.points, *pad)
        g.periodic = (*(int(p) for p in layout.periodic), *pad)
        g.closed = (*(int(c) for c in layout.closed), *pad)
        g.lower, g.h = (*self.grid.lower, *pad), (*self.grid.spacing, *pad)
        g.mask = _address(self.domain.mask)
        g.numbers = _address(numbers)
        g.fields = ctypes.cast(fields, ctypes.POINTER(ctypes.c_void_p))
        g.placed = ctypes.cast(self.networks.pointers, ctypes.POINTER(ctypes.c_void_p))
        return g

    def arguments_at(self, t: float) -> GridArguments:
        """Return what the problem's own kernels are told of the grid and the time."""
        self._arguments.t = t
        return self._arguments

    def _lay_out(self) -> None:
        """Make room for the values of all parameters met so far, where the kernels find them."""
        for parameter in self._field_parameters:
            if parameter.name not in self._fields:
                self._fields[parameter.name] = self._field_values(parameter)
        self.number_values = np.zeros(self.symbols.number_count())
        self._field_pointers = pointers_to(self.ghosted_fields)
        self._arguments = self.arguments(self.number_values, self._field_pointers)

    def _field_values(self, parameter: Parameter) -> Array:
        """Ghosted values of a field parameter, from its initial value."""
        layout, shape = self.layout, parameter.ufl_shape
        size = int(np.prod(shape, dtype=int))
        label = f"Parameter {parameter.name!r}"
        in_cells = parameter.element is not None
        with alike(self.comm):
            if callable(parameter.value):
                x = layout.coordinates(0.5 if in_cells else 0.0)
                if in_cells:
                    for a in range(self.dim):
                        if not layout.periodic[a]:
                            x[a] = np.minimum(x[a], self.grid.upper[a] - 0.5 * self.grid.spacing[a])
                flat = evaluate_callable(label, parameter.value, x, shape)
            elif np.shape(parameter.value) in {(), shape}:
                flat = np.broadcast_to(parameter.value, (layout.n_points, *shape))
            elif in_cells and np.shape(parameter.value) == (*(n - 1 for n in layout.grid.shape), *shape):
                # One value a cell; along axes that are not periodic the last point has no cell of its own.
                ends = [(0, 0 if periodic else 1) for periodic in layout.periodic] + [(0, 0)] * len(shape)
                flat = layout.slice_global(np.pad(parameter.value, ends, mode="edge"), label, size)
            else:
                flat = layout.slice_global(parameter.value, label, size)
            parameter.check(np.asarray(flat))
        ghosted = np.zeros((*layout.ghosted_shape, size))
        ghosted[layout.inner] = np.asarray(flat).reshape(*layout.flat_shape, size)
        self.fill_field(ghosted)
        return ghosted

    def fill_field(self, ghosted: Array) -> None:
        """Fill a field's ghosts: from neighbours, and outside of the box by the nearest value, or the mirrored one."""
        self.layout.field_halo(ghosted.shape[-1]).exchange(ghosted)

    @property
    def ghosted_fields(self) -> list[Array]:
        """The values of the field parameters with their ghosts, in the order of their symbols."""
        return list(self._fields.values())

    def new_ghosted(self, parameter: Parameter) -> Array:
        """Return a new ghosted array, zero, for values of a field parameter."""
        return np.zeros((*self.layout.ghosted_shape, int(np.prod(parameter.ufl_shape, dtype=int))))

    def field(self, parameter: Parameter | str) -> GridFunction:
        """Return a copy of the values of a field parameter (this rank's points)."""
        name = self._known(parameter)
        ghosted = self._fields[name]
        size = ghosted.shape[-1]
        return GridFunction(self.layout, ghosted[self.layout.inner].reshape(-1).copy(), size, name)

    def set_field(self, parameter: Parameter | str, values: Array) -> None:
        """Set the values of a field parameter from this rank's flat values (collective)."""
        name = self._known(parameter)
        ghosted = self._fields[name]
        with alike(self.comm):
            flat = np.asarray(values, dtype=np.float64)
            owned = ghosted[self.layout.inner]
            if flat.size != owned.size:
                raise ValueError(f"field {name!r}: {flat.size} values given; this rank owns {owned.size}")
            self.parameters[name].check(flat)
        self.parameters[name].leave_tape(flat)
        self.put_field(parameter, flat)

    def put_field(self, parameter: Parameter | str, values: Array) -> None:
        ghosted = self._fields[self._known(parameter)]
        inner = ghosted[self.layout.inner]
        inner[...] = values.reshape(inner.shape)
        self.fill_field(ghosted)
        self.networks.forget()

    def field_size(self, parameter: Parameter | str) -> int:
        return int(self._fields[self._known(parameter)][self.layout.inner].size)

    def field_values(self, parameter: Parameter | str) -> Array:
        return self._fields[self._known(parameter)][self.layout.inner].reshape(-1).copy()

    def _known(self, parameter: Parameter | str) -> str:
        name = parameter if isinstance(parameter, str) else parameter.name
        if name not in self._fields:
            raise KeyError(f"no field parameter {name!r} in this problem; it has {sorted(self._fields)}")
        return name

    # -- boundary conditions ---------------------------------------------------------------------------------

    def _prescribe(self, bc: Dirichlet, order: int = 0) -> _Prescribed:
        s = self.symbols
        points = self.domain.boundary_points("Dirichlet", bc.where)
        data = self._bind(bc.write(bc.value, self.equation, self._ufl_domain, s.x, s.t))
        for _ in range(order):
            data = partial(data, s.t)
        evaluate, in_time = self._evaluator("Dirichlet value", data, points)
        return _Prescribed(points, bc.held(self.equation), lower(data), evaluate, in_time)

    def prescribed_of(self, order: int) -> list[_Prescribed]:
        """Dirichlet data, or its time derivative of some order."""
        if order == 0:
            return self.prescribed
        if order not in self._prescribed_rates:
            self._prescribed_rates[order] = [self._prescribe(bc, order) for bc in self._dirichlet]
        return self._prescribed_rates[order]

    def _absorb(self, bc: Absorbing) -> _Absorber:
        s, held = self.symbols, bc.held(self.equation)
        faces = self.domain.boundary_faces("Absorbing", bc.where)
        z = bc.write_coefficient(bc.impedance, self.equation, self._ufl_domain, s.x, s.t, s.normal, name="impedance")
        z = self._bind(z)
        evaluate, in_time = self._evaluator("Absorbing impedance", z, faces.points)
        if in_time:
            raise ValueError("Absorbing: the impedance must not depend on time")
        u = self._held(held)
        return _Absorber(faces, held, lower(z * u if z.ufl_shape == () else ufl.dot(z, u)), evaluate)

    def _held(self, held: list[int]) -> Expr:
        """Some components of the state: itself if they are all, a scalar if it is one."""
        u = self.symbols.u
        if len(held) == self.components:
            return u
        return u[held[0]] if len(held) == 1 else ufl.as_vector([u[c] for c in held])

    def _open_faces(self, bc: Flux | Robin | Absorbing) -> _Exchange:
        label, s, held = type(bc).__name__, self.symbols, bc.held(self.equation)
        faces = self.domain.boundary_faces(label, bc.where)
        value = self._bind(bc.write(bc.value, self.equation, self._ufl_domain, s.x, s.t, s.normal))
        evaluate, _ = self._evaluator(f"{label} value", value, faces.points)
        coefficient, in_time, data = None, False, value
        if isinstance(bc, Robin):
            alpha = bc.write_coefficient(bc.coefficient, self.equation, self._ufl_domain, s.x, s.t, s.normal)
            alpha = self._bind(alpha)
            coefficient, in_time = self._evaluator("Robin coefficient", alpha, faces.points)
            u = self._held(held)
            data = value - (alpha * u if alpha.ufl_shape == () else ufl.dot(alpha, u))
        return _Exchange(faces, held, lower(data), evaluate, coefficient, in_time)

    def _evaluator_source(self, label: str, expression: Expr) -> str:
        """Return :func:`evaluator_source`; an error for what cannot be evaluated on a grid names the term."""
        try:
            return evaluator_source(self.symbols, expression)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from error

    def _evaluator(
        self, label: str, expression: Expr, points: Points
    ) -> tuple[Callable[[float, Array | None], Array], bool]:
        """Compile an expression to a function of (t, state) that gives its values at points, shape (n, size).

        The second result says whether it depends on time.
        """
        expression = lower(expression)
        source = self._evaluator_source(label, expression)
        function = compile_c(self.comm, source).evaluate
        size = int(np.prod(expression.ufl_shape, dtype=int))
        out = np.zeros((points.flat.size, size))
        needed = self.networks.needed(ufl.zero(self.dim), expression)

        def evaluate(t: float, state: Array | None) -> Array:
            self._arguments.t = t
            u = self._buffer if state is None else state
            self.networks.fill(needed, t, u)
            function(
                ctypes.byref(self._arguments),
                ctypes.c_void_p(_address(u)),
                ctypes.c_long(points.flat.size),
                ctypes.c_void_p(_address(points.ghosted)),
                ctypes.c_void_p(_address(points.x)),
                ctypes.c_void_p(_address(points.normal)),
                ctypes.c_void_p(_address(out)),
            )
            return out

        return evaluate, self.symbols.t in set(traverse_unique_terminals(expression))

    def _finish_constraints(self) -> None:
        m, constrained = self.components, np.zeros((self.layout.n_points, self.components), dtype=bool)
        constrained[~self._inside] = True
        for p in self.prescribed:
            for c in p.components:
                constrained[p.points.flat, c] = True
        self.constrained = np.flatnonzero(constrained.ravel()).astype(np.int32)
        self._is_constrained = constrained
        free = self.n_owned - self.constrained.size
        self.unknowns = int(self.comm.allreduce(free))
        ghosted = np.zeros((*self.layout.ghosted_shape, m))
        ghosted[self.layout.inner] = constrained.reshape(*self.layout.flat_shape, m)
        self.layout.halo(m).exchange(ghosted)
        self._constrained_ghosted = ghosted.astype(bool)

    # -- what solvers use ------------------------------------------------------------------------------------

    @cached_property
    def second_order(self) -> bool:
        return bool(self._terms.inertia != 0)

    @cached_property
    def damped(self) -> bool:
        return bool(self._terms.damping != 0 or self.absorbers)

    def update(self) -> None:
        """Take over the current values of the parameters."""
        numbers = [np.ravel(p.value) for p in self._number_parameters]
        if numbers:
            self.number_values[:] = np.concatenate(numbers)
        self.networks.update()
        if self._masses_vary or not self._masses_known:
            self._damping, self._inertia = self._evaluate_damping(), self._evaluate("inertia")
            self._inverses: dict[str, Array] = {}
            self._divisors: dict[str, Array] = {}
            self._ratio = np.nan
            self._masses_known = True
        self._fixed = [None if p.in_time else p.evaluate(0.0, None).copy() for p in self.prescribed]

    @cached_property
    def _masses_vary(self) -> bool:
        """Whether damping or inertia may contain a parameter."""
        parameters = {*self.symbols.numbers, *(field.symbol for field in self.symbols.fields)}
        terminals = [set(traverse_unique_terminals(term)) for term in (self.damping, self.inertia)]
        return bool(self.absorbers) or any(parameters & found for found in terminals)

    def _evaluate(self, term: Term) -> Array:
        """Damping ("mass") or inertia as array: ``()``, ``(n, 1)``, ``(m, m)`` or ``(n, m, m)``."""
        expression = self.inertia if term == "inertia" else self.damping
        if expression == 0:
            return np.zeros(())
        if term not in self._evaluators:
            places = {self.symbols.x, *(f.symbol for f in self.symbols.fields)}
            # What is the same everywhere is evaluated at one point.
            uniform = not places & set(traverse_unique_terminals(expression))
            points = self.domain.points(np.arange(1)) if uniform else self.domain.everywhere()
            label = "inertia" if term == "inertia" else "damping"
            self._evaluators[term] = self._evaluator(label, expression, points)[0], uniform
        evaluate, uniform = self._evaluators[term]
        values, shape = evaluate(0.0, None).copy(), expression.ufl_shape
        with alike(self.comm):
            finite("inertia" if term == "inertia" else "damping", values)
        return values[0].reshape(shape) if uniform else values.reshape(-1, *(shape or (1,)))

    @cached_property
    def _evaluators(self) -> dict[Term, tuple[Callable[[float, Array | None], Array], bool]]:
        return {}

    def _evaluate_damping(self) -> Array:
        """The damping with that of absorbing boundaries, spread over the control volumes there."""
        b, m, n = self._evaluate("mass"), self.components, self.layout.n_points
        if not self.absorbers:
            return b
        impedances = [a.impedance(0.0, None) for a in self.absorbers]
        coupled = any(len(a.components) < m or z.shape[1] > 1 for a, z in zip(self.absorbers, impedances, strict=True))
        by_component = self._is_matrix(b) or coupled
        b = np.array(np.broadcast_to(self._as_matrix(b) if by_component else b, (n, m, m) if by_component else (n, 1)))
        for (faces, held, *_), z in zip(self.absorbers, impedances, strict=True):
            at = faces.points.flat
            share = z * (faces.area / self.volumes[at])[:, None]
            if by_component:
                k = len(held)
                blocks = share.reshape(-1, k, k) if z.shape[1] > 1 else share[:, :, None] * np.eye(k)
                np.add.at(b, (at[:, None, None], np.array(held)[:, None], np.array(held)), blocks)
            else:
                np.add.at(b, at, share)
        return b

    def _is_matrix(self, b: Array) -> bool:
        """Whether damping or inertia, as an array, is a matrix at a point."""
        return self.components > 1 and b.shape[-2:] == (self.components, self.components)

    def _as_matrix(self, b: Array) -> Array:
        return b if self._is_matrix(b) else b[..., None] * np.eye(self.components)

    def _inverse(self, kind: str, b: Array) -> Array:
        """Return the inverse of damping, inertia or a sum of both, each kind kept until it is dropped."""
        if kind not in self._inverses:
            matrix = self._is_matrix(b)
            if matrix and self.prescribed:
                b = np.where(self._is_constrained[:, :, None], np.eye(self.components), b)
            elif not matrix and b.ndim:
                b = np.where(self._inside[:, None], b, 1.0)
            singular = np.any(np.abs(np.linalg.det(b)) == 0) if matrix else np.any(b == 0)
            if self.comm.allreduce(bool(singular), op=MPI.LOR):
                raise Refused(SINGULAR["mass" if kind == "mass" else "inertia"])
            self._inverses[kind] = np.linalg.inv(b) if matrix else 1.0 / b
        return self._inverses[kind]

    def _weighted(self, damping: float, inertia: float) -> Array:
        """A weighted sum of damping and inertia."""
        if inertia == 0 or damping == 0:
            b, weight = (self._damping, damping) if inertia == 0 else (self._inertia, inertia)
            return b if weight == 1.0 else b * weight
        b, a = self._damping, self._inertia
        if self._is_matrix(a) or self._is_matrix(b):
            a, b = self._as_matrix(a), self._as_matrix(b)
        return damping * b + inertia * a

    @cached_property
    def _dividing_volumes(self) -> Array:
        """Volumes to divide by, shape (n, 1): 1 outside of the mask."""
        return np.where(self.volumes > 0, self.volumes, 1.0)[:, None]

    @property
    def data_functions(self) -> list[Any]:
        return []

    def has_layout(self, function: Any, parameter: Parameter | None = None) -> bool:
        if not isinstance(function, GridFunction):
            return False
        components = self.components if parameter is None else self._fields[parameter.name].shape[-1]
        mine, other = self.layout, function.layout
        same = (mine.points, mine.start, mine.end) == (other.points, other.start, other.end)
        return same and function.components == components

    def initial(self, u0: Any, t: float = 0.0, label: str = "u0") -> Array:
        if isinstance(u0, Initial):
            return self.interpolate(u0.value, t)
        m, layout = self.components, self.layout
        with alike(self.comm):
            if self.equation.is_complex:
                flat = self._complex_values(label, u0)
            elif isinstance(u0, GridFunction):
                flat, other = u0.values.copy(), u0.layout
                if (other.start, other.end, u0.components) != (layout.start, layout.end, m):
                    raise ValueError(
                        f"{label}: a grid function of {u0.components} components on {other.points} points given; {m} "
                        f"components on {layout.points} points, spread alike over the ranks, allowed"
                    )
            elif callable(u0):
                flat = evaluate_callable(label, u0, layout.coordinates(), self.equation.state_shape).reshape(-1)
            else:
                array = as_numbers(label, u0)
                if array.shape in {(), self.equation.state_shape}:
                    flat = np.broadcast_to(array, (layout.n_points, m)).reshape(-1).copy()
                elif array.shape == (self.n_owned,):
                    flat = array.copy()
                else:
                    flat = layout.slice_global(array, label, m).copy()
            flat.reshape(-1, m)[~self._inside] = 0.0
            finite(label, flat)
        return flat

    def _complex_values(self, label: str, u0: Any) -> Array:
        """Real pairs of a complex state from what a user gives."""
        m, layout = self.equation.components, self.layout
        if isinstance(u0, GridFunction):
            other = u0.layout
            of_pairs = not np.iscomplexobj(u0.values) and u0.components == self.components
            if (other.start, other.end) != (layout.start, layout.end) or not (of_pairs or u0.components == m):
                raise ValueError(
                    f"{label}: a grid function of {u0.components} components on {other.points} points given; {m} "
                    f"components on {layout.points} points, spread alike over the ranks, allowed"
                )
            return u0.values.copy() if of_pairs else u0.values.astype(np.complex128).view(np.float64)
        if (
            not callable(u0)
            and np.ndim(u0) >= self.dim
            and np.shape(u0)[: self.dim]
            in {
                self.grid.shape,
                layout.points,
                layout.local,
            }
        ):
            u0 = layout.slice_global(np.asarray(u0, dtype=np.complex128), label, m)
        return complex_values(label, u0, layout.coordinates(), self.equation.shape)

    @cached_property
    def _diffusion(self) -> list[Callable[[float, Array | None], Array]]:
        """dF/d(grad u) of each component at all points, as functions."""
        m, (_, by_gradient) = self.components, self.symbols.derivatives(self._terms.flux)
        blocks = [by_gradient] if m == 1 else [by_gradient[c, :, c, :] for c in range(m)]
        return [self._evaluator("flux", ufl.as_tensor(b), self.domain.everywhere())[0] for b in blocks]

    def check_diffusion(self, t: float, values: Array) -> None:
        if self.equation.is_complex:
            return
        self.load(values, self._buffer)
        tensors = [
            evaluate(t, self._buffer).reshape(-1, self.dim, self.dim)[self._inside] for evaluate in self._diffusion
        ]
        refuse_negative(self.comm, tensors, lambda k: self.coordinates()[self._inside][k], t)

    def new_state(self) -> Array:
        return np.zeros((*self.layout.ghosted_shape, self.components))

    def new_states(self, count: int) -> Array:
        """Return many states in one array, which :meth:`load`, :meth:`store` and :meth:`constrain` take for a state.

        So does :meth:`advance` if :attr:`fuses` holds. Their values are those of one state after the other.
        """
        return np.zeros((count, *self.layout.ghosted_shape, self.components))

    @property
    def fuses(self) -> bool:
        """Whether a step is one pass over the grid: the mass matrix is one number times the control volumes.

        Networks and nonlocal terms need a pass of their own.
        """
        one_number = self._damping.shape == () and self._damping != 0 and not self.second_order
        return bool(one_number and not self.networks.sites and self.equation.nonlocal_term is None)

    def _inner(self, state: Array) -> Array:
        """View the owned points of one state or of many."""
        index: tuple[Any, ...] = (..., *self.layout.inner, slice(None))
        inner: Array = state[index]
        return inner

    def halo_of(self, state: Array) -> Halo:
        """Return the exchange of ghosts of one state or of many."""
        return self.halo if state.ndim == self.dim + 1 else self.layout.halo(self.components, len(state))

    def load(self, values: Array, state: Array) -> None:
        inner = self._inner(state)
        inner[...] = values.reshape(inner.shape)
        self.halo_of(state).exchange(state)

    def store(self, state: Array, values: Array) -> None:
        inner = self._inner(state)
        values.reshape(inner.shape)[...] = inner

    def _kernel(self, name: str, part: Part) -> Callable:
        key = f"{name} {part}"
        if key not in self._kernels:
            library = compile_c(self.comm, rate_source(self.symbols, *self.split(part)))
            library.rate.restype = None
            library.rate.argtypes = [ctypes.POINTER(GridArguments), ctypes.c_void_p, ctypes.c_void_p]
            library.advance.argtypes = [*library.rate.argtypes, ctypes.c_double, ctypes.c_void_p]
            grid, *arrays = library.advance.argtypes
            library.advance_many.argtypes = [grid, ctypes.c_long, ctypes.c_long, *arrays]
            self._kernels |= {f"{k} {part}": getattr(library, k) for k in ("rate", "advance", "advance_many")}
        return self._kernels[key]

    @cached_property
    def flow_data(self) -> Expr:
        s = self.symbols
        return self._meet("flow", self.equation.write_flow(self._ufl_domain, s.u, s.x, s.t, s.dt))

    @cached_property
    def _flow_kernel(self) -> Callable:
        zero = ufl.zero(*self.symbols.u.ufl_shape, self.dim)
        kernel = compile_c(self.comm, rate_source(self.symbols, zero, self.flow_data)).rate
        kernel.restype = None
        kernel.argtypes = [ctypes.POINTER(GridArguments), ctypes.c_void_p, ctypes.c_void_p]
        return kernel

    @cached_property
    def nodal_weights(self) -> Array:
        return np.repeat(self._dividing_volumes, self.components)

    def flow(self, t: float, step: float, state: Array, out: Array) -> None:
        self._arguments.t, self._arguments.dt = t, step
        self._flow_kernel(self._arguments, _address(state), _address(out))
        out /= self.nodal_weights

    def _boundary_flux(self, t: float, state: Array) -> list[tuple[_Exchange, Array]]:
        """Flux times area through the faces of each Flux or Robin condition, (n, components); many states' too."""
        found, flat = [], self._flat(state)
        for e in self.exchanges:
            flux = e.value(t, None).copy()
            if e.coefficient is not None:
                u = flat[..., e.faces.points.ghosted, :][..., e.components]
                alpha, k = e.coefficient(t, None), len(e.components)
                flux = flux - (alpha * u if alpha.shape[1] == 1 else (alpha.reshape(-1, k, k) @ u[..., None])[..., 0])
            found.append((e, flux * e.faces.area[:, None]))
        return found

    def _flat(self, state: Array) -> Array:
        """View one state or many with all points, ghosts too, along one axis."""
        return state.reshape(*state.shape[: -self.dim - 1], -1, self.components)

    def rate(self, t: float, state: Array, out: Array, part: Part = "all") -> None:
        self._arguments.t = t
        self.networks.fill(self._needed(part), t, state)
        self._kernel("rate", part)(self._arguments, _address(state), _address(out))
        if part != "source":
            for e, flux in self._boundary_flux(t, state):
                for k, c in enumerate(e.components):
                    np.add.at(out.reshape(-1, self.components)[:, c], e.faces.points.flat, flux[:, k])
        if self.equation.nonlocal_term is not None:
            self.store(state, self._owned)
            self.add_nonlocal(part, self._owned, out)
        out[self.constrained] = 0.0

    @cached_property
    def _owned(self) -> Array:
        return np.zeros(self.n_owned)

    def source_times(self, values: Array, out: Array) -> None:
        self.gram_times(values, out)

    @property
    def mass_is_diagonal(self) -> bool:
        return not self._is_matrix(self._damping)

    def mass_times(
        self, values: Array, out: Array, transposed: bool = False, damping: float = 1.0, inertia: float = 0.0
    ) -> None:
        self._times(self._weighted(damping, inertia), values, out, transposed)
        result = out.reshape(-1, self.components)
        np.multiply(result, self.volumes[:, None], out=result)

    def _times(self, b: Array, values: Array, out: Array, transposed: bool) -> None:
        """Write damping, inertia, or an inverse, times values into ``out``."""
        shaped, result = values.reshape(-1, self.components), out.reshape(-1, self.components)
        if self._is_matrix(b):
            result[...] = np.einsum("...ji,...j->...i" if transposed else "...ij,...j->...i", b, shaped)
        else:
            np.multiply(shaped, b, out=result)

    def gram_times(self, values: Array, out: Array) -> None:
        np.multiply(values.reshape(-1, self.components), self.volumes[:, None], out=out.reshape(-1, self.components))

    def gram_matrix(self) -> PETSc.Mat:
        matrix = self.new_matrix()
        diagonal = matrix.createVecRight()
        diagonal.array[:] = np.repeat(self.volumes, self.components)
        matrix.zeroEntries()
        matrix.setDiagonal(diagonal)
        diagonal.destroy()
        return matrix

    def solve_mass(
        self, values: Array, out: Array, transposed: bool = False, damping: float = 1.0, inertia: float = 0.0
    ) -> bool:
        kind, ratio = "mass", damping
        if inertia:
            kind, ratio = ("both", damping / inertia) if damping and self.damped else ("inertia", 0.0)
        if kind == "both" and not abs(ratio - self._ratio) <= _ROUND_OFF * abs(ratio):
            self._ratio = ratio
            self._inverses.pop(kind, None)
            self._divisors.pop(kind, None)
        if kind not in self._divisors:
            b = self._damping if kind == "mass" else self._weighted(ratio, 1.0)
            inverse = self._inverse(kind, b)
            volumes = self._dividing_volumes[..., None] if self._is_matrix(inverse) else self._dividing_volumes
            self._divisors[kind] = inverse / volumes
        fixed = values[self.constrained]
        self._times(self._divisors[kind], values, out, transposed)
        if (weight := inertia or damping) != 1.0:
            out /= weight
        out[self.constrained] = fixed
        return bool(np.isfinite(out.sum()))

    def advance(self, t: float, state: Array, base: Array, step: float, t_out: float, out: Array) -> bool:
        finite = self._advance(t, state, base, step, t_out, out)
        self.constrain(t_out, out)
        return finite

    def _advance(self, t: float, state: Array, base: Array, step: float, t_out: float, out: Array) -> bool:
        inverse = self._inverse("mass", self._damping)
        if inverse.shape == () and self.equation.nonlocal_term is None:
            self._arguments.t = t
            self.networks.fill(self._needed("all"), t, state)
            factor = step * float(inverse)
            addresses = _address(state), _address(base), factor, _address(out)
            if state.ndim == self.dim + 1:
                bad = self._kernel("advance", "all")(self._arguments, *addresses)
            else:
                many = len(state), state[0].size
                bad = self._kernel("advance_many", "all")(self._arguments, *many, *addresses)
            flat = self._flat(out)
            for e, flux in self._boundary_flux(t, state):
                scaled = factor * flux / self.volumes[e.faces.points.flat, None]
                for k, c in enumerate(e.components):
                    index: tuple[Any, ...] = (..., e.faces.points.ghosted, c)
                    np.add.at(flat, index, scaled[..., k])
                bad = bad or not np.all(np.isfinite(scaled))
            return not bad
        self.rate(t, state, self._rates)
        change = self._rates.reshape(-1, self.components) / self._dividing_volumes
        change *= step
        before, inner = base[self.layout.inner], out[self.layout.inner]
        if not self._is_matrix(inverse):
            change *= inverse
        else:
            # A prescribed component moves as its data says; the others feel that through the matrix.
            self.constrain(t_out, out)
            change = np.where(self._is_constrained, (inner - before).reshape(change.shape), change)
            change = np.einsum("...ij,...j->...i", inverse, change)
        np.add(before, change.reshape(inner.shape), out=inner)
        return bool(np.all(np.isfinite(inner)))

    def accelerate(self, t: float, state: Array, v: Array, factor: float, a: Array) -> bool:
        inertia, damping, c = self._inertia, self._damping, self.constrained
        simple = self.grid.mask is None and self.equation.nonlocal_term is None
        if self._is_matrix(inertia) or self._is_matrix(damping) or not simple:
            return super().accelerate(t, state, v, factor, a)
        self._inverse("inertia", inertia)  # raises if there is none
        self._arguments.t = t
        self.networks.fill(self._needed("all"), t, state)
        prescribed, predicted = a[c], v[c]
        good = not self._balance(
            self._arguments,
            _address(state),
            *(_address(inertia), min(1, inertia.ndim), _address(damping), min(1, damping.ndim)),
            *(factor, _address(a), _address(v)),
        )
        for e, flux in self._boundary_flux(t, state):
            at = e.faces.points.flat
            mass = self.volumes * (inertia + factor * damping).ravel()
            change = flux / mass[at, None]
            good = good and bool(np.all(np.isfinite(change)))
            for k, component in enumerate(e.components):
                np.add.at(a.reshape(-1, self.components)[:, component], at, change[:, k])
                np.add.at(v.reshape(-1, self.components)[:, component], at, factor * change[:, k])
        a[c], v[c] = prescribed, predicted + factor * prescribed
        return good

    @cached_property
    def _balance(self) -> Callable:
        kernel = compile_c(self.comm, balance_source(self.symbols, *self.split("all"))).balance
        address, number = ctypes.c_void_p, ctypes.c_long
        kernel.restype = ctypes.c_int
        kernel.argtypes = [ctypes.POINTER(GridArguments), address, address, number, address, number, ctypes.c_double]
        kernel.argtypes = [*kernel.argtypes, address, address]
        return kernel

    def constrain(self, t: float, state: Array) -> None:
        flat = self._flat(state)
        for p, fixed in zip(self.prescribed, self._fixed, strict=True):
            values = p.evaluate(t, None) if fixed is None else fixed
            for k, c in enumerate(p.components):
                flat[..., p.points.ghosted, c] = values[:, k]
        self.halo_of(state).exchange(state)

    def prescribe(self, t: float, values: Array, order: int = 0) -> None:
        flat = values.reshape(-1, self.components)
        for p in self.prescribed_of(order):
            flat[p.points.flat[:, None], p.components] = p.evaluate(t, None)

    def split(self, part: Part) -> tuple[Expr, Expr]:
        """Flux and source of a part of the equation."""
        flux, source = self._terms[:2]
        return (
            ufl.zero(*flux.ufl_shape) if part == "source" else flux,
            ufl.zero(*source.ufl_shape) if part == "flux" else source,
        )

    def _needed(self, part: Part, slopes: bool = False) -> Needed:
        """What kernels of a part of the equation read of networks, or those of its derivatives by the state."""
        if (part, slopes) not in self._needs:
            by = [self.symbols.u] if slopes else []
            self._needs[part, slopes] = self.networks.needed(*self.split(part), by)
        return self._needs[part, slopes]

    @cached_property
    def _needs(self) -> dict[tuple[Part, bool], Needed]:
        return {}

    def _jacobian(self, part: Part) -> _Jacobian:
        if part not in self._jacobians:
            flux, source = self.split(part)
            pattern = jacobian_source(self.symbols, flux, source)
            kernel = compile_c(self.comm, pattern.source).jacobian
            kernel.restype = None
            kernel.argtypes = [ctypes.POINTER(GridArguments), ctypes.c_void_p, ctypes.c_double, ctypes.c_void_p]
            offsets, m = pattern.offsets, self.components
            whole = offsets if part == "all" else self._jacobian("all").offsets
            slots = np.array([(whole == offset).all(axis=1).argmax() for offset in offsets])
            values = np.zeros((self.layout.n_points, len(offsets), m, m))
            self._jacobians[part] = _Jacobian(kernel, offsets, slots, values, *self._dependence(flux, source))
        return self._jacobians[part]

    def _dependence(self, flux: Expr, source: Expr) -> tuple[bool, bool]:
        """Whether the Jacobian depends on the state, and on time."""
        s = self.symbols
        found = set().union(*(s.terminals(by) for e in (flux, source) for by in s.derivatives(e)))
        return s.u in found, s.t in found

    def varies(self, part: Part = "all") -> tuple[bool, bool]:
        *_, with_state, with_time = self._jacobian(part)
        if part != "source":
            with_time = with_time or any(e.in_time for e in self.exchanges)
        return with_state, with_time

    @cached_property
    def autonomous(self) -> bool:
        data = [*self._terms[:2], *(e.data for e in self.exchanges), *(p.data for p in self.prescribed)]
        return not any(self.symbols.t in self.symbols.terminals(e) for e in data)

    @cached_property
    def matrix_parameters(self) -> frozenset[str]:
        s = self.symbols
        written = [self.damping, self.inertia, *(a.data for a in self.absorbers)]
        for e in (*self._terms[:2], *(e.data for e in self.exchanges)):
            written += s.derivatives(e)
        terminals = set().union(*(s.terminals(e) for e in written))
        names = {parameter.name for parameter, symbol in self._bound.items() if symbol in terminals}
        return frozenset(names | self.networks.trained_in(terminals))

    @cached_property
    def _entries(self) -> _Entries:
        return self._places(whole=False)

    @cached_property
    def _whole_entries(self) -> _Entries:
        return self._places(whole=True)

    def _places(self, whole: bool) -> _Entries:
        """Where the entries of the Jacobian, or of the whole one, go."""
        layout, m = self.layout, self.components
        offsets = self._jacobian("all").offsets
        numbers = layout.global_indices()
        ns, n = len(offsets), layout.n_points
        owned = numbers[layout.inner].reshape(n)
        rows = np.empty((n, ns, m, m), dtype=np.int32)
        columns = np.empty((n, ns, m, m), dtype=np.int32)
        component = np.arange(m, dtype=np.int32)
        for k, offset in enumerate(offsets):
            window = tuple(slice(1 + o, 1 + o + size) for o, size in zip(offset[::-1], layout.flat_shape, strict=True))
            neighbour = numbers[window].reshape(n)
            rows[:, k] = owned[:, None, None] * m + component[None, :, None]
            columns[:, k] = neighbour[:, None, None] * m + component[None, None, :]
            fixed = self._constrained_ghosted[window].reshape(n, m)
            drop = (neighbour < 0)[:, None, None]
            if not whole:
                drop = drop | self._is_constrained[:, :, None] | fixed[:, None, :]
            rows[:, k][np.broadcast_to(drop, (n, m, m))] = -1
        centre = int(np.flatnonzero((offsets == 0).all(axis=1))[0])
        point, c = np.nonzero(self._is_constrained)
        rows[point, centre, c, c] = columns[point, centre, c, c] = owned[point] * m + c
        columns[rows < 0] = -1
        return _Entries(rows.ravel(), columns.ravel(), centre)

    def new_matrix(self, *, whole: bool = False) -> PETSc.Mat:
        entries = self._whole_entries if whole else self._entries
        matrix = PETSc.Mat().create(self.comm)
        matrix.setSizes(((self.n_owned, self.n_global), (self.n_owned, self.n_global)), bsize=self.components)
        matrix.setOptionsPrefix("npde_")
        matrix.setFromOptions()
        # PETSc overwrites the index arrays it is given.
        matrix.setPreallocationCOO(entries.rows.copy(), entries.columns.copy())
        return matrix

    def jacobian(
        self,
        t: float,
        state: Array,
        mass_factor: float,
        rate_factor: float,
        matrix: PETSc.Mat,
        part: Part = "all",
        inertia_factor: float = 0.0,
        *,
        whole: bool = False,
    ) -> None:
        if rate_factor and part != "flux":
            self.refuse_nonlocal("jacobian")
        m, own, centre = self.components, self._jacobian(part), self._entries.centre
        values = self._jacobian("all").values
        self._arguments.t = t
        self.networks.fill(self._needed(part, slopes=True), t, state)
        own.kernel(self._arguments, _address(state), -rate_factor, _address(own.values))
        if part != "all":
            values[...] = 0.0
            values[:, own.slots] = own.values
        diagonal = values[:, centre]
        for factor, b in ((mass_factor, self._damping), (inertia_factor, self._inertia)):
            if factor and self._is_matrix(b):
                diagonal += factor * self.volumes[:, None, None] * b
            elif factor:
                for c in range(m):
                    diagonal[:, c, c] += factor * self.volumes * (b if b.shape == () else b[:, 0])
        if part != "source":
            for e in self.exchanges:
                if e.coefficient is not None:
                    alpha, k = e.coefficient(t, state), len(e.components)
                    block = alpha[:, :, None] * np.eye(k) if alpha.shape[1] == 1 else alpha.reshape(-1, k, k)
                    weight = rate_factor * e.faces.area[:, None, None] * block
                    for (i, c), (j, other) in product(enumerate(e.components), repeat=2):
                        if i == j or alpha.shape[1] > 1:
                            np.add.at(diagonal[:, c, other], e.faces.points.flat, weight[:, i, j])
        for c in range(0 if whole else m):
            diagonal[self._is_constrained[:, c], c, c] = 1.0
        matrix.setValuesCOO(values.ravel())

    def function(self, values: Array, name: str | None = None, *, pairs: bool = False) -> GridFunction:
        """Return values as a :class:`GridFunction`, complex if the state is; or as real pairs."""
        if self.equation.is_complex and not pairs:
            return GridFunction(self.layout, values.view(np.complex128).copy(), self.equation.components, name or "u")
        return GridFunction(self.layout, values.copy(), self.components, name or "u")

    def inside(self, ghosted: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether points, given by their index in a ghosted array, belong to the mask; all do without one."""
        return self.domain.mask.ravel()[ghosted].astype(bool) | (self.grid.mask is None)

    def _meet(self, label: str, written: Expr) -> Expr:
        """Take in what a user's callable wrote on the grid; its parameters, if new, become the problem's."""
        known = len(self._bound)
        expression = lower(self._bind(written))
        if len(self._bound) > known:
            self._lay_out()
            self.update()
        self._evaluator_source(label, expression)
        return expression

    def write_nodal(self, function: Callable) -> Expr:
        """Write a UFL callable ``(x, t)`` of the state's shape on the grid, its parameters bound."""
        s = self.symbols
        return self._meet("function", self.equation.write_data("function", function, self._ufl_domain, s.x, s.t))

    def write_integral(self, function: Callable) -> Expr:
        """Write a scalar UFL callable ``(u, x, t)`` on the grid, its parameters bound."""
        s, domain = self.symbols, self._ufl_domain
        return self._meet("integrand", self.equation.write_integrand("integrand", function, domain, s.u, s.x, s.t))

    def _linearise(self, controls: Sequence[Parameter]) -> FDLinearised:
        return FDLinearised(self, controls)

    def interpolate(self, function: Callable, t: float = 0.0) -> Array:
        expression = self.write_nodal(function)
        self.update()
        values = self._evaluator("function", expression, self.domain.everywhere())[0](t, None)
        return np.where(self._inside[:, None], values, 0.0).reshape(-1)

    def error(self, values: Array, exact: Callable, t: float = 0.0) -> tuple[float, float]:
        difference = (values - self.interpolate(exact, t)).reshape(-1, self.components)
        square = float(np.sum(self.volumes[:, None] * difference**2))
        largest = float(np.max(np.abs(difference), initial=0.0))
        return float(np.sqrt(self.comm.allreduce(square))), float(self.comm.allreduce(largest, op=MPI.MAX))

    def refill(self, function: GridFunction, values: Array) -> None:
        function.values[:] = values.view(function.values.dtype)

    @cached_property
    def _waves(self) -> Callable[[float, Array | None], Array]:
        """The wavenumber at all points, as a function."""
        assert self.equation.waves is not None
        return self._evaluator("waves", self.write_nodal(self.equation.waves), self.domain.everywhere())[0]

    def _waves_a_point(self) -> Array:
        waves = self._waves(0.0, None).reshape(self.layout.n_points, -1)[self._inside]
        return np.linalg.norm(waves, axis=1) * max(self.grid.spacing)

    def coordinates(self) -> Array:
        return np.ascontiguousarray(self.layout.coordinates().T)

    def total(self, values: Array) -> Array:
        """Return the integral of each component over the domain, shape (m,) (collective)."""
        local = self.volumes @ values.reshape(-1, self.components)
        return np.asarray(self.comm.allreduce(local))
