"""Networks in finite elements: their values at the quadrature points of the cells, as coefficients of the weak form.

A network n(a(u, x, t; p); W) stands in the forms as a symbol N on a quadrature element, whose values are computed from
those of its input a before a kernel runs. What differentiates the forms lets N move with its input: along v, dp and dW

    dN = n_a (a_u v + a_p dp) + n_W dW,

with n_a a symbol too, which moves by n_aa (...) in its turn, and with it the derivative along dW; so derivatives of
derivatives are exact. The derivatives of a form by the symbols, at each point, are what the gradient by the weights is
made of (see :class:`~npde_fem.discretize.networks.Evaluator`).
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from npde_fem.discretize.jit import compile_c
from npde_fem.discretize.networks import Evaluator
from npde_fem.discretize.packing import AtPoints, Packed
from npde_fem.discretize.quadrature import told_apart, with_fixed_degree
from npde_fem.discretize.scalar import lower, partial
from npde_fem.discretize.semidiscrete import Array
from npde_fem.discretize.tables import PLACE, Table
from npde_fem.neural_terms import Network, NetworkValue
from npde_fem.parameter import terminals_of

import basix.ufl
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem
from mpi4py import MPI
from ufl.core.expr import Expr
from ufl.corealg.traversal import traverse_unique_terminals

if TYPE_CHECKING:
    from npde_fem.discretize.fem import FEM

__all__ = ["ByWeights", "Direction", "FEMNetworks", "Site", "Symbol", "networks_in", "quadrature_for", "symbols_in"]


def networks_in(expression: Expr) -> list[NetworkValue]:
    """Return the networks' values in an expression."""
    found = [e for e in traverse_unique_terminals(expression) if isinstance(e, NetworkValue)]
    return sorted(found, key=lambda e: e.count())


def quadrature_for(
    integrands: Sequence[Expr],
    inputs: Mapping[NetworkValue, Expr],
    space: fem.FunctionSpace,
    given: dict[str, Any],
    lumped: bool,
) -> dict[str, Any]:
    """Return the rule by which all integrals over cells with networks are computed, as metadata of a measure.

    Its degree is what UFL estimates for the highest one, with a network in the place of which stands tanh of its
    inputs: UFL counts a function that is no polynomial as two degrees more than its argument.

    Parameters
    ----------
    integrands
        The integrands, test functions in them.
    inputs
        Inputs of the networks in them, parameters bound.
    space
        Of the state.
    given
        Metadata that the user, or lumping, asks for.
    lumped
        Whether mass matrices are lumped (see :func:`~npde_fem.discretize.quadrature.told_apart`).
    """
    forms = []
    for integrand in integrands:
        likes = {}
        for value in networks_in(integrand):
            like = ufl.tanh(sum(inputs[value]))
            likes[value] = like if value.ufl_shape == () else ufl.as_vector([like] * value.network.outputs)
        forms.append(ufl.replace(integrand, likes) * ufl.Measure("dx", domain=space.mesh, metadata=given))
    form = with_fixed_degree(forms)
    if lumped:
        form = told_apart(form, space)
    degree = max((integral.metadata()["quadrature_degree"] for integral in form.integrals()), default=0)
    return {**given, "quadrature_degree": degree}


class Symbol(AtPoints):
    """A network's values or derivatives at the points, flattened, as a coefficient of forms.

    Attributes
    ----------
    source
        Where its values come from, a :class:`Site` or a :class:`Direction` of the weights there.
    order
        How often it is differentiated by the inputs.
    """

    def __init__(self, space: fem.FunctionSpace, source: Site | Direction, order: int) -> None:
        super().__init__(space)
        self.source, self.order = source, order

    def write(self, out: Array) -> None:
        self.source.write(self.order, out)

    def store(self) -> None:
        """Put the present values into the function's own array."""
        dofmap = self.function_space.dofmap
        blocks = dofmap.list[self.source.site.cells]
        values = self.source.values(self.order)
        bs = dofmap.index_map_bs
        self.x.array.reshape(-1, bs)[blocks] = values.reshape(*blocks.shape, bs)


class _Source:
    """Derivatives by the inputs at the points, computed when asked for and kept as long as the inputs are the same."""

    def __init__(self, cells: int, points: int, network: Network, evaluator: Evaluator) -> None:
        self.network, self.evaluator = network, evaluator
        self._points = cells * points
        self._room: list[Array] = []
        self._known: set[int] = set()

    def _values(self, inputs: Array, order: int, delta: Array | None = None) -> Array:
        for n in range(len(self._room), order + 1):
            self._room.append(np.empty((self._points, self.network.outputs, *[self.network.inputs] * n)))
        if order not in self._known:
            self._known.update(self.evaluator.fill(inputs, order, self._room, delta))
        return self._room[order]


class Site(_Source):
    """A network at an input, at the points of all of this rank's own cells.

    Attributes
    ----------
    network, argument, evaluator
        The network, its input in UFL, parameters bound, and who evaluates it.
    cells
        The cells.
    """

    def __init__(self, owner: FEMNetworks, network: Network, argument: Expr) -> None:
        super().__init__(owner.cells.size, len(owner.points), network, owner.evaluator(network))
        self._owner: FEMNetworks = weakref.proxy(owner)
        self.argument, self.cells = argument, owner.cells
        self._inputs = np.empty((self.cells.size, len(owner.points), network.inputs))
        self._version = -1
        problem = owner.problem
        self._expression = problem.compile_expression(argument, owner.points)
        place = _place_in_state(argument[0], problem.state_function) if network.inputs == 1 else None
        self.of_state = None if place is None else _OfState(problem.state_function, place, self.cells, owner.points)

    @property
    def site(self) -> Site:
        return self

    def refresh(self) -> int:
        """Bring the inputs up to date; return a number that is another one for other inputs."""
        version = self._owner.version()
        if version != self._version:
            self._expression.eval(self._owner.problem.mesh, self.cells, self._inputs)
            self._version = version
            self._known.clear()
        return version

    @property
    def inputs(self) -> Array:
        """The inputs at the present state, shape (points, k)."""
        self.refresh()
        return self._inputs.reshape(-1, self.network.inputs)

    def values(self, order: int) -> Array:
        """Return a derivative by the inputs, shape (points, m, k, ...), at the present state."""
        return self._values(self.inputs, order)

    def write(self, order: int, out: Array, along: Direction | None = None) -> None:
        """Write what :meth:`values` returns into ``out``, a row a cell; or what it is along a direction."""
        if self.of_state is not None:
            table = self.evaluator.table(order, None if along is None else along.delta)
            if table is not None and self.of_state.evaluate(table, out):
                return
        out[:] = (along or self).values(order).reshape(out.shape)


class Direction(_Source):
    """The derivative of a network along a direction of its weights, at a site.

    Attributes
    ----------
    site
        The site.
    delta
        The direction, shape (P,).
    """

    def __init__(self, site: Site) -> None:
        super().__init__(len(site.inputs), 1, site.network, site.evaluator)
        self.site, self.delta = site, np.zeros(site.network.weights.ufl_shape)
        self._version = -1

    def move(self, delta: Array | float) -> None:
        """Take another direction."""
        self.delta[:] = delta
        self._known.clear()

    def values(self, order: int) -> Array:
        """Return what :meth:`Site.values` does, differentiated along the direction."""
        version = self.site.refresh()
        if version != self._version:
            self._version = version
            self._known.clear()
        return self._values(self.site.inputs, order, self.delta)

    def write(self, order: int, out: Array) -> None:
        """Write what :meth:`values` returns into ``out``, a row a cell."""
        self.site.write(order, out, self)


def _place_in_state(part: Expr, u: fem.Function) -> int | None:
    """Return which component of the state an input is; None if it is none."""
    if part == u:
        return 0
    if isinstance(part, ufl.classes.Indexed) and part.ufl_operands[0] == u:
        return int(part.ufl_operands[1][0])
    return None


class _OfState:
    """A table of a component of the state at the points of cells: interpolated, looked up and laid out in one pass.

    Parameters
    ----------
    u, component
        The state, a Lagrange function, and the component.
    cells, points
        The cells, and the points in the reference cell.
    """

    def __init__(self, u: fem.Function, component: int, cells: npt.NDArray[np.int32], points: Array) -> None:
        space = u.function_space
        self._u, self._component = u, component
        self._basis = space.ufl_element().basix_element.tabulate(0, points)[0, :, :, 0].T.copy()
        self._dofs, self._step = np.ascontiguousarray(space.dofmap.list[cells]), space.dofmap.bs

    def evaluate(self, table: Table, out: Array) -> bool:
        """Write the values into ``out``, a row a cell, and return True; False if the table does not reach that far."""
        kernel, columns = _cell_kernel(*self._basis.shape), table.columns
        u, dofs, basis = self._u.x.array, self._dofs.ctypes.data, self._basis.ctypes.data
        begin, row = u.ctypes.data + self._component * u.itemsize, out.strides[0] // out.itemsize
        for c in range(columns):
            target = out.ctypes.data + c * out.itemsize
            if kernel(len(out), dofs, self._step, begin, basis, *table.arguments(c), row, columns, target):
                return False
        return True


@functools.cache
def _cell_kernel(nodes: int, points: int) -> Any:
    """Return the function in C that :class:`_OfState` calls; it counts the points outside the table."""
    source = f"""{PLACE}
enum {{ DOFS = {nodes}, POINTS = {points}, CELLS = {max(1, 256 // points)}, BLOCK = CELLS * POINTS }};

long evaluate(long cells, const int *restrict dofs, long step, const double *restrict u, const double *restrict basis,
              double low, double width, long panels, const double *restrict powers, long row, long columns,
              double *restrict out)
{{
    const double high = low + width * panels;
    long outside = 0;
    double a[BLOCK], s[BLOCK];
    int first[BLOCK];
    for (long begin = 0; begin < cells; begin += CELLS) {{
        const long count = cells - begin < CELLS ? cells - begin : CELLS;
        for (long c = 0; c < count; c++) {{
            double at[POINTS] = {{0.0}};
            for (int i = 0; i < DOFS; i++) {{
                const double value = u[dofs[(begin + c) * DOFS + i] * step];
                for (int q = 0; q < POINTS; q++)
                    at[q] += value * basis[i * POINTS + q];
            }}
            for (int q = 0; q < POINTS; q++)
                a[c * POINTS + q] = at[q];
        }}
        for (long p = 0; p < count * POINTS; p++)
            outside += (a[p] < low) | (a[p] > high);
        place(count * POINTS, a, low, width, panels, first, s);
        for (long c = 0; c < count; c++)
            for (int q = 0; q < POINTS; q++)
                out[(begin + c) * row + q * columns] = polynomial(powers + first[c * POINTS + q], s[c * POINTS + q]);
    }}
    return outside;
}}
"""
    long, double, pointer = ctypes.c_long, ctypes.c_double, ctypes.c_void_p
    kernel = compile_c(MPI.COMM_SELF, source).evaluate
    kernel.argtypes = [long, pointer, long, pointer, pointer, double, double, long, pointer, long, long, pointer]
    kernel.restype = long
    return kernel


class FEMNetworks:
    """The networks of an equation at the points of one quadrature rule in the cells.

    Parameters
    ----------
    problem
        The problem.
    inputs
        Inputs of the networks' values, parameters bound.
    metadata
        The rule, as metadata of a measure: degree, and kind if it is not the default.
    evaluators
        Those of the networks; the missing ones are made.

    Attributes
    ----------
    points, cells
        Its points in the reference cell, and this rank's own cells.
    sites
        The networks at their inputs; those that are equal are one.
    """

    def __init__(
        self,
        problem: FEM,
        inputs: Mapping[NetworkValue, Expr],
        metadata: Mapping[str, Any],
        evaluators: dict[Network, Evaluator],
    ) -> None:
        self.problem: FEM = weakref.proxy(problem)
        self._evaluators = evaluators
        mesh = problem.mesh
        self._rule = {
            "cell": mesh.basix_cell(),
            "scheme": metadata.get("quadrature_rule", "default"),
            "degree": metadata.get("quadrature_degree", 0),
        }
        self.points = basix.ufl.quadrature_element(**self._rule).custom_quadrature()[0]
        self.cells = np.arange(mesh.topology.index_map(mesh.topology.dim).size_local, dtype=np.int32)
        self._state, self._time, self._version = np.zeros(problem.state_function.x.array.size), np.nan, 0
        self._symbols: dict[tuple[Site | Direction, int], Symbol] = {}
        self._spaces: dict[int, fem.FunctionSpace] = {}
        found = {(value.network, a): None for value, a in inputs.items()}
        sites = {key: Site(self, *key) for key in found}
        self.sites = list(sites.values())
        self._replacements = {value: self.symbol(sites[value.network, a], 0) for value, a in inputs.items()}

    def evaluator(self, network: Network) -> Evaluator:
        """Return the network's evaluator."""
        if network not in self._evaluators:
            self._evaluators[network] = Evaluator(network)
        return self._evaluators[network]

    def written(self, term: Expr) -> Expr:
        """Put symbols in the place of the networks."""
        return ufl.replace(term, self._replacements)

    def forget(self) -> None:
        """Evaluate anew whatever the state is: data or weights may have changed."""
        self._time = np.nan

    def version(self) -> int:
        """Return a number that is another one as soon as the state, the time or data have changed."""
        state, t = self.problem.state_function.x.array, float(self.problem.time_constant.value)
        if t != self._time or not np.array_equal(state, self._state):
            self._state[:], self._time = state, t
            self._version += 1
        return self._version

    # -- symbols ---------------------------------------------------------------------------------------------

    def symbol(self, source: Site | Direction, order: int) -> Symbol:
        """Return the symbol of a derivative by the inputs."""
        if (source, order) not in self._symbols:
            network = source.site.network
            size = network.outputs * network.inputs**order
            self._symbols[source, order] = Symbol(self.space(size), source, order)
        return self._symbols[source, order]

    def space(self, size: int) -> fem.FunctionSpace:
        """Return the space of ``size`` numbers a point."""
        if size not in self._spaces:
            element = basix.ufl.quadrature_element(**self._rule, value_shape=() if size == 1 else (size,))
            self._spaces[size] = fem.functionspace(self.problem.mesh, element)
        return self._spaces[size]

    def moves(
        self, form: ufl.Form | Expr, da: dict[Site, Expr], along: dict[Site, Direction] | None = None
    ) -> tuple[list[Symbol], list[Expr]]:
        """Return the symbols in a form, and how they move.

        Parameters
        ----------
        form
            The form, or an expression.
        da
            How the inputs move, UFL of shape (k,); those that do not are left out.
        along
            How the weights move; none if left out.
        """
        what, directions = [], []
        for symbol in symbols_in(form):
            source, order = symbol.source, symbol.order
            site = source.site
            parts: list[list[Expr]] = []
            if site in da:
                parts.append(self._times(self.symbol(source, order + 1), da[site]))
            if along and site in along and source is site:
                parts.append(_flat(self.symbol(along[site], order)))
            if parts:
                moved = [sum(several[1:], several[0]) for several in zip(*parts, strict=True)]
                what.append(symbol)
                directions.append(moved[0] if symbol.ufl_shape == () else ufl.as_vector(moved))
        return what, directions

    @staticmethod
    def _times(slope: Symbol, da: Expr) -> list[Expr]:
        """Components of a derivative by the inputs times a move of them."""
        flat, k = _flat(slope), da.ufl_shape[0]
        return [sum(flat[c * k + j] * da[j] for j in range(k)) for c in range(len(flat) // k)]

    def inputs_along(self, moved: Any) -> dict[Site, Expr]:
        """Return how the inputs move; ``moved`` makes of an expression its derivative, lowered."""
        found = {site: moved(site.argument) for site in self.sites}
        return {site: da for site, da in found.items() if not isinstance(da, ufl.classes.Zero)}

    def depends(self, form: ufl.Form, symbol: Expr) -> bool:
        """Whether the input of a network in a form depends on a symbol."""
        return any(symbol in found for found in self.inputs_in(form))

    def inputs_in(self, form: ufl.Form) -> list[set[Expr]]:
        """Return the terminals in the inputs of the networks in a form."""
        return [terminals_of(s.source.site.argument) for s in symbols_in(form)]

    def slopes(self, expression: Expr, shared: Expr, symbol: Expr) -> Expr:
        """Return the derivative of an expression, networks replaced, by ``shared``, through the inputs too.

        Parameters
        ----------
        expression
            The expression.
        shared
            What to differentiate by, for example the gradient of the state.
        symbol
            A coefficient of its shape, to stand for it.
        """
        split = ufl.replace(expression, {shared: symbol})
        total = partial(split, symbol)
        for s in symbols_in(expression):
            by_input = partial(ufl.replace(lower(s.source.site.argument), {shared: symbol}), symbol)
            if isinstance(by_input, ufl.classes.Zero):
                continue
            slope, k = _flat(self.symbol(s.source, 1)), s.source.site.network.inputs
            by_value = partial(split, s)
            for c in range(len(slope) // k):
                one = by_value if s.ufl_shape == () else by_value[..., c]
                for j in range(k):
                    total += slope[c * k + j] * ufl.outer(one, by_input[j, ...])
        return lower(ufl.replace(total, {symbol: shared}))

    def store(self) -> None:
        """Put the present values of all symbols into their own arrays, for who evaluates expressions of them."""
        self.forget()
        for symbol in self._symbols.values():
            symbol.store()


class ByWeights:
    """The derivative of a functional by the weights of a network, through one site.

    Parameters
    ----------
    compiling
        Makes kernels of forms.
    form
        The functional.
    along
        The direction of the weights at the site, whose symbols the functional may contain.
    """

    def __init__(self, compiling: Callable[[ufl.Form], Packed], form: ufl.Form, along: Direction) -> None:
        self._along = along
        symbols = {(s.source, s.order): s for s in symbols_in(form)}
        self._by, self._by_along = (
            [_Seed(compiling, form, s, order) for order in (0, 1) if (s := symbols.get((source, order))) is not None]
            for source in (along.site, along)
        )

    def collect(self) -> None:
        """Add it to what the network's evaluator has collected."""
        site = self._along.site
        if self._by or self._by_along:
            by, along = (_in_order(site, seeds) for seeds in (self._by, self._by_along))
            site.evaluator.collect(site.inputs, by, self._along.delta, along)


class _Seed:
    """The derivative of a functional by a symbol, at each point."""

    def __init__(self, compiling: Callable[[ufl.Form], Packed], form: ufl.Form, symbol: Symbol, order: int) -> None:
        space, site = symbol.function_space, symbol.source.site
        derivative = ufl.derivative(form, symbol, ufl.TestFunction(space))
        self.order, self._form = order, compiling(ufl.algorithms.expand_derivatives(derivative))
        self._blocks = space.dofmap.list[site.cells].ravel()
        self._vector = np.zeros(symbol.x.array.size).reshape(-1, space.dofmap.index_map_bs)
        self._shape = (-1, site.network.outputs, *[site.network.inputs] * order)

    def values(self) -> Array:
        """Return the derivative, shape (points, m, k, ...)."""
        self._vector[:] = 0.0
        self._form.add_to(self._vector.ravel())
        return self._vector[self._blocks].reshape(self._shape)


def _in_order(site: Site, seeds: Sequence[_Seed]) -> tuple[Array, ...]:
    """Seeds of orders 0, 1, ...; zeros for those that are not there."""
    found = {seed.order: seed.values() for seed in seeds}
    shape = len(site.inputs), site.network.outputs
    return tuple(
        found.get(n, np.zeros((*shape, *[site.network.inputs] * n))) for n in range(max(found, default=-1) + 1)
    )


def symbols_in(form: ufl.Form | Expr) -> list[Symbol]:
    """Return the symbols in a form or an expression."""
    coefficients = form.coefficients() if isinstance(form, ufl.Form) else traverse_unique_terminals(form)
    return sorted((c for c in coefficients if isinstance(c, Symbol)), key=lambda c: c.count())


def _flat(symbol: Symbol) -> list[Expr]:
    return [symbol] if symbol.ufl_shape == () else [symbol[k] for k in range(symbol.ufl_shape[0])]
