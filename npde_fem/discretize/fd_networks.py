"""Networks in finite differences: their values at the points and faces of a grid.

A network n(a(u, grad u, x, t; p); W) stands in the lowered flux and source as a placed symbol N (see
:class:`~npde_fem.discretize.stencil.Placed`): before a kernel runs, its input a is evaluated at the places that count,
the points of the domain and its open faces, then the network, and the values are put where the kernel reads them.
Along v, dp and dW it moves by

    dN = N1 (a_u v + a_p dp) + M0,     dN1 = N2 (a_u v + a_p dp) + M1,

where N1 and N2 are its derivatives by the input, M0 = n_W dW, and M1 = dM0/da; these are placed symbols too, so that
derivatives of derivatives are exact. The gradient by the weights is made of the derivatives of the weighted rates by
the symbols, place by place, each face counted once on the rank of its lower point.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from npde_fem.discretize.jit import compile_c
from npde_fem.discretize.networks import Evaluator
from npde_fem.discretize.scalar import components, gateaux, lower
from npde_fem.discretize.semidiscrete import Array
from npde_fem.discretize.stencil import (
    GridArguments,
    Placed,
    Symbols,
    arguments_source,
    cotangents_source,
    pointers_to,
)
from npde_fem.neural_terms import Network, NetworkValue

import numpy as np
import numpy.typing as npt
import ufl
from ufl.core.expr import Expr
from ufl.corealg.traversal import traverse_unique_terminals

if TYPE_CHECKING:
    from npde_fem.discretize.fd import FD

__all__ = ["ByWeights", "FDNetworks", "Needed", "Site"]

Index = npt.NDArray[np.int64]


class Orders(NamedTuple):
    """Of n, and of its derivative along a direction of the weights, which derivatives by a: 0 for none, 1, 2."""

    itself: frozenset[int]
    along: frozenset[int]


Needed = dict[tuple["Site", int], Orders]
"""What a kernel reads, by site and by kind of place: 0 for points, 1 + a for faces across axis a."""


class _Places(NamedTuple):
    """Places of one kind that count: ghosted indices of the owned points ``high`` whose they are, then of those behind
    whom they lie, ``low``; the latter belong to other points too. Values are ``stored`` at indices of their own."""

    high: Index
    low: Index
    stored: Index


class Site:
    """A network at an input.

    Attributes
    ----------
    network, argument
        The network, and its input, lowered, of shape (k,).
    evaluator
        The network's.
    values, along
        Symbols of n, dn/da and d2n/da2, and of the derivative along a direction of the weights and its slope.
    """

    def __init__(self, problem: FD, network: Network, argument: Expr, evaluator: Evaluator) -> None:
        self.network, self.argument, self.evaluator, self._problem = network, argument, evaluator, problem
        m, k = network.outputs, network.inputs
        self.values = [problem.new_field((m, *[k] * order)) for order in range(3)]
        self.along = [problem.new_field((m, *[k] * order)) for order in range(2)]
        self._here: dict[int, _Here] = {}

    @property
    def placed(self) -> list[Placed]:
        """The symbols, as kernels know them."""
        chains = (self.values, self.along)
        return [Placed(s, self.argument, slope) for c in chains for s, slope in zip(c, [*c[1:], None], strict=True)]

    @cached_property
    def still(self) -> bool:
        """Whether the input depends on numbers and place only."""
        s = self._problem.symbols
        return set(traverse_unique_terminals(self.argument)).isdisjoint({s.u, s.t, *(f.symbol for f in s.fields)})

    def orders(self, symbols: set[Expr]) -> Orders:
        """Return which of its symbols are among some."""
        chains = (self.values, self.along)
        return Orders(*(frozenset(order for order, symbol in enumerate(c) if symbol in symbols) for c in chains))

    @cached_property
    def library(self) -> ctypes.CDLL:
        """Compiled functions that evaluate the input."""
        return compile_c(self._problem.comm, arguments_source(self._problem.symbols, self.argument))

    def here(self, kind: int) -> _Here:
        """Return the network at the places of one kind."""
        if kind not in self._here:
            self._here[kind] = _Here(self._problem, self, kind)
        return self._here[kind]


class _Here:
    """A network at the places of one kind.

    Attributes
    ----------
    inputs
        The network's input there, shape (places, k).
    counted
        How many of them, the first ones, are this rank's own.
    """

    def __init__(self, problem: FD, site: Site, kind: int) -> None:
        self._problem, self._site = problem, site
        high, low, self._stored = problem.networks.places(kind)
        self.counted = high.size
        self.inputs = np.zeros((self._stored.size, site.network.inputs))
        names = (("point", high),) if kind == 0 else ((f"high{kind - 1}", high), (f"low{kind - 1}", low))
        self._calls, first = [], 0
        for name, index in names:
            function = getattr(site.library, name)
            function.restype = None
            function.argtypes = [ctypes.POINTER(GridArguments), ctypes.c_void_p, ctypes.c_long, *[ctypes.c_void_p] * 2]
            out = self.inputs[first:]
            self._calls.append((function, index.size, index.ctypes.data, out.ctypes.data))
            first += index.size
        self._itself, self._along = (_Values(problem, site, chain, kind) for chain in (site.values, site.along))
        self._point: object = None
        self._direction: object = None

    def fill(self, needed: Orders, g: GridArguments, state: Array, delta: Array | None, point: object | None) -> None:
        """Bring symbols up to date, unless they are known to be those of this ``point``."""
        at = self._problem.networks.version if self._site.still else point
        if at is None or at is not self._point:
            for function, count, index, out in self._calls:
                function(g, state.ctypes.data, count, index, out)
            self._itself.known.clear()
            self._along.known.clear()
        if point is None or point is not self._direction:
            self._along.known.clear()
        self._point, self._direction = at, point
        self._itself.fill(needed.itself, self.inputs)
        self._along.fill(needed.along, self.inputs, delta)


class _Values:
    """Values of a chain of symbols, each the slope of the one before, at the places of one kind.

    Attributes
    ----------
    known
        Those that are up to date, by their position.
    """

    def __init__(self, problem: FD, site: Site, chain: Sequence[ufl.Coefficient], kind: int) -> None:
        self._problem, self._evaluator, self._chain, self._kind = problem, site.evaluator, chain, kind
        self._stored = problem.networks.places(kind).stored
        self._found: list[Array] = []
        self._arrays: list[Array] = []
        self.known: set[int] = set()

    def fill(self, orders: frozenset[int], inputs: Array, delta: Array | None = None) -> None:
        """Bring some up to date, at inputs of the network and along a direction of its weights."""
        for order in sorted(orders - self.known, reverse=True):
            for symbol in self._chain[len(self._found) : order + 1]:
                self._found.append(np.zeros((self._stored.size, *symbol.ufl_shape)))
                self._arrays.append(self._problem.networks.new_array(symbol, self._kind))
            # A network that is evaluated directly gives lower orders too.
            if order not in self.known:
                for n in self._evaluator.fill(inputs, order, self._found, delta):
                    array = self._arrays[n]
                    array[self._stored] = self._found[n].reshape(self._stored.size, array.shape[1])
                    self.known.add(n)


class FDNetworks:
    """The networks of an equation on a grid.

    Parameters
    ----------
    problem
        The problem.

    Attributes
    ----------
    sites
        The networks at their inputs; those that are equal are one.
    evaluators
        Theirs, one a network.
    version
        Another object after each update of parameters.
    """

    def __init__(self, problem: FD) -> None:
        # The problem owns this: both must go when the last user of the problem does.
        self._problem: FD = weakref.proxy(problem)
        self.sites: list[Site] = []
        self.evaluators: dict[Network, Evaluator] = {}
        self.version = object()
        self._places: dict[int, _Places] = {}

    def written(self, expression: Expr, bind: Callable[[Expr], Expr]) -> Expr:
        """Return an expression bound, with symbols in the place of networks; ``bind`` binds parameters."""
        values = [e for e in traverse_unique_terminals(expression) if isinstance(e, NetworkValue)]
        stand_ins = {}
        for value in sorted(values, key=lambda e: e.count()):
            n = self._site(value.network, lower(bind(value.argument))).values[0]
            stand_ins[value] = n if value.ufl_shape else n[0]
        return ufl.replace(bind(expression), stand_ins)

    def _site(self, network: Network, argument: Expr) -> Site:
        for site in self.sites:
            if (site.network, site.argument) == (network, argument):
                return site
        if network not in self.evaluators:
            self.evaluators[network] = Evaluator(network)
        self.sites.append(Site(self._problem, network, argument, self.evaluators[network]))
        return self.sites[-1]

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The symbols of all sites."""
        return tuple(placed for site in self.sites for placed in site.placed)

    @cached_property
    def pointers(self) -> ctypes.Array[ctypes.c_void_p]:
        """Addresses of the symbols' arrays, in their order: at points, then at faces across each axis; 0 if none."""
        return (ctypes.c_void_p * max(1, len(self.placed) * (1 + self._problem.dim)))()

    def new_array(self, symbol: ufl.Coefficient, kind: int) -> Array:
        """Return a new array of a symbol's values at places of a kind, zero, from where the kernels read them."""
        size = int(np.prod(symbol.ufl_shape))
        array = np.zeros((int(np.prod(self._problem.layout.ghosted_shape)), size))
        position = [placed.symbol for placed in self.placed].index(symbol)
        self.pointers[position * (1 + self._problem.dim) + kind] = array.ctypes.data
        return array

    def places(self, kind: int) -> _Places:
        """Return the places of one kind that count: points of the domain, or open faces of its points."""
        if kind not in self._places:
            layout, mask = self._problem.layout, self._problem.domain.mask.ravel().astype(bool)
            own = np.arange(mask.size).reshape(layout.ghosted_shape)[layout.inner].astype(np.int64)
            inside = own[mask[own]]
            if kind == 0:
                self._places[0] = _Places(inside, inside[:0], inside)
            else:
                stride = int(np.prod(layout.ghosted_shape[::-1][: kind - 1], dtype=int))
                first = np.take(own, [0], axis=layout.dim - kind).ravel()
                high, low = inside[mask[inside + stride]], first[mask[first] & mask[first - stride]]
                self._places[kind] = _Places(high, low, np.concatenate([high, low - stride]))
        return self._places[kind]

    def update(self) -> None:
        """Take over the current weights."""
        for evaluator in self.evaluators.values():
            evaluator.update()
        self.version = object()

    def trained_in(self, symbols: Collection[Expr]) -> set[str]:
        """Return the names of the weights that some symbols depend on."""
        return {site.network.name for site in self.sites if not set(site.values).isdisjoint(symbols)}

    def needed(self, flux: Expr, source: Expr, by: Sequence[Expr] = ()) -> Needed:
        """Return what kernels of a lowered flux and source read, or those of the derivatives by some symbols."""
        found: Needed = {}
        if not self.sites:
            return found
        s = self._problem.symbols
        parts = [(1 + index[-1], part) for index, part in components(flux).items()]
        parts += [(0, part) for part in components(source).values()]
        symbols: dict[int, set[Expr]] = {}
        for kind, part in parts:
            for placed in s.placed_in(part):
                read = symbols.setdefault(kind, set())
                read.add(placed.symbol)
                if placed.slope is not None and not set(by).isdisjoint(traverse_unique_terminals(placed.argument)):
                    read.add(placed.slope)
        for kind, read in symbols.items():
            for site in self.sites:
                if any(orders := site.orders(read)):
                    found[site, kind] = orders
        return found

    def fill(
        self,
        needed: Needed,
        t: float,
        state: Array,
        delta: Mapping[Network, Array] | None = None,
        point: object | None = None,
    ) -> None:
        """Give kernels what they need.

        Parameters
        ----------
        needed
            What :meth:`needed` returned.
        t, state
            Time, and state with its ghosts.
        delta
            Directions of weights.
        point
            An object that stands for time, state and directions: what was filled for the same one is not filled again.
        """
        for (site, kind), orders in needed.items():
            direction = None if delta is None else delta.get(site.network)
            site.here(kind).fill(orders, self._problem.arguments_at(t), state, direction, point)

    def directions(self, along: Mapping[Expr, Expr], moved: Mapping[Network, Array]) -> dict[Expr, Expr]:
        """Return how the networks' symbols move if others move along directions, and the weights of some networks."""
        found: dict[Expr, Expr] = {}
        for site in self.sites:
            value, slope = site.values[:2]
            move = ufl.dot(slope, gateaux(site.argument, along))
            found[value] = move + site.along[0] if site.network in moved else move
        return found


class ByWeights:
    """The transposed derivative of rates by the weights of a network, through one site.

    Parameters
    ----------
    problem
        The problem.
    s, flux, source
        What the rates are made of.
    site
        The site.

    Attributes
    ----------
    needed
        What is to be filled before :meth:`collect`.
    """

    def __init__(self, problem: FD, s: Symbols, flux: Expr, source: Expr, site: Site) -> None:
        self._site = site
        needed = problem.networks.needed(flux, source)
        kinds = {kind: orders for (at, kind), orders in needed.items() if at is site}
        self.needed = needed if kinds else {}
        self._calls = []
        if not kinds:
            return
        symbols = [*site.values[:2], site.along[0]]
        library = compile_c(problem.comm, cotangents_source(s, flux, source, symbols))
        for kind, orders in kinds.items():
            function = getattr(library, f"high{kind - 1}" if kind else "point")
            function.restype = None
            function.argtypes = [ctypes.POINTER(GridArguments), *[ctypes.c_void_p] * 2, ctypes.c_long]
            function.argtypes = [*function.argtypes, ctypes.c_void_p, ctypes.c_void_p]
            here, index = site.here(kind), problem.networks.places(kind).high
            outs = [np.zeros((index.size, *symbol.ufl_shape)) for symbol in symbols]
            by = tuple(outs[: 1 + max(orders.itself, default=-1)])
            along = tuple(outs[2 : 3 + max(orders.along, default=-1)])
            self._calls.append((function, index, outs, pointers_to(outs), here.inputs[: here.counted], by, along))

    def collect(self, g: GridArguments, state: Array, weights: Array, delta: Mapping[Network, Array]) -> None:
        """Add it, for rows weighted by a ghosted array, to what the network's evaluator has collected."""
        for function, index, _, outs, inputs, by, along in self._calls:
            function(g, state.ctypes.data, weights.ctypes.data, index.size, index.ctypes.data, outs)
            self._site.evaluator.collect(inputs, by, delta[self._site.network], along)
