"""Networks of an equation at the points of a discretisation: values, derivatives, and gradients by their weights.

A network of one input is a function of one number: it is tabulated (:mod:`~npde_fem.discretize.tables`) over the range
of its arguments, which costs a few thousand evaluations, and a value then no more than a polynomial does, whatever the
network's size. n, n' and n'' have tables of their own, of torch's derivatives at the same nodes, and so have their
derivatives along a direction of the weights; n and n' between the nodes are checked to 1e-13 and 1e-12 of their largest
values. The gradient by the weights is exact for the interpolated values: weights of points are summed up as weights of
nodes, which go through the network once for a whole sweep.

A network of several inputs, or one that is not smooth enough (kinks, as of ReLU; single precision inside), is evaluated
by torch at every point. Which it is, is found out as arguments come in, anew whenever the weights have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from npde_fem.discretize.semidiscrete import Array
from npde_fem.discretize.tables import Panels, Table, Weighting, resolving
from npde_fem.neural_terms import Network

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["Evaluator"]

_TOLERANCES = (1e-13, 1e-12)
_MARGIN = 0.25
"""What a table has to spare on each side, in units of its range."""


class Evaluator:
    """Evaluates a network of a problem, and sums up the derivatives by its weights that a sweep collects.

    Every rank has its own tables, over the range of its own arguments; nothing here communicates.

    Parameters
    ----------
    network
        The network.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._weights = np.array(network.weights.value)
        self._layers, self._buffers = network.circumstances()
        self._gradient = np.zeros(network.weights.ufl_shape)
        self._fewest = 0
        self._sums: dict[tuple[bool, int], Weighting] = {}
        self._sums_along: Array | None = None
        self._start()

    def _start(self) -> None:
        """Forget tables."""
        self._panels: Panels | None = None
        self._too_wide = np.inf
        self._tables: dict[tuple[bool, int], Table] = {}
        self._along: Array | None = None

    def update(self) -> None:
        """Take over the current weights, and the module's modes and buffers.

        Raises
        ------
        TypeError, ValueError
            If layers or modes have changed, and :func:`~npde_fem.neural` would refuse the module as it is now.
        """
        weights, (layers, buffers) = np.array(self.network.weights.value), self.network.circumstances()
        if layers != self._layers:
            self.network.check()
        same = layers == self._layers and _all_equal(buffers, self._buffers)
        if not (same and np.array_equal(weights, self._weights)):
            self._pull_sums()
            self._weights, self._layers, self._buffers = weights, layers, buffers
            self._start()

    # -- values ----------------------------------------------------------------------------------------------

    def values(
        self, a: Array, order: int, delta: Array | None = None, out: Sequence[Array] | None = None
    ) -> list[Array]:
        """Return the network and its derivatives by the inputs; see :meth:`~npde_fem.neural_terms.Network.values`.

        ``out`` is as of :meth:`fill`, or None for new arrays.
        """
        if out is None:
            shape = len(a), self.network.outputs
            out = [np.empty((*shape, *[self.network.inputs] * n)) for n in range(order + 1)]
        for n in range(self.fill(a, order, out, delta).start):
            self.fill(a, n, out, delta)
        return list(out)

    def fill(self, a: Array, order: int, out: Sequence[Array], delta: Array | None = None) -> range:
        """Write a derivative by the inputs, and what comes with it at no cost, into arrays.

        Parameters
        ----------
        a, order, delta
            As of :meth:`values`.
        out
            Contiguous arrays for orders 0 to ``order``, of the shapes that :meth:`values` gives.

        Returns
        -------
        range
            The orders written: all of them where the network is evaluated directly, else ``order`` alone.
        """
        a = np.ascontiguousarray(a)
        panels = self._panels_for(a)
        if panels is None:
            self.network.values(self._weights, a, order, delta, out[: order + 1])
            return range(order + 1)
        self._table(panels, order, delta).evaluate(a, out[order])
        return range(order, order + 1)

    def table(self, order: int, delta: Array | None = None) -> Table | None:
        """Return the present table of a derivative by the input, if there is one."""
        return None if self._panels is None else self._table(self._panels, order, delta)

    def _table(self, panels: Panels, order: int, delta: Array | None) -> Table:
        if delta is not None and not _equal(delta, self._along):
            self._along = delta.copy()
            self._tables = {key: table for key, table in self._tables.items() if not key[0]}
        key = delta is not None, order
        if key not in self._tables:
            made = self.network.values(self._weights, panels.nodes[:, None], order, delta)
            for n, values in enumerate(made):
                self._tables[key[0], n] = Table(panels, values.reshape(panels.nodes.size, -1))
        return self._tables[key]

    def _panels_for(self, a: Array) -> Panels | None:
        """Return the panels of the tables, which reach over some arguments; None if there are to be none."""
        if self.network.inputs > 1 or not len(a):
            return None
        old = self._panels
        if old is not None and old.hold(a):
            return old
        low, high = float(np.fmin.reduce(a, axis=None)), float(np.fmax.reduce(a, axis=None))
        if not np.isfinite([low, high]).all():
            return None
        low, high = self._wider(low, high)
        if high - low >= self._too_wide:
            return None

        def sample(places: Array) -> list[Array]:
            return [v.reshape(len(places), -1) for v in self.network.values(self._weights, places[:, None], 1)]

        panels = resolving(sample, low, high, _TOLERANCES, self._fewest)
        if panels is None:
            # A narrower range, as after a step too long that was taken back, may do.
            self._too_wide = 0.5 * (high - low)
            return None
        self._pull_sums()
        self._start()
        # The next weights will be much like these.
        self._panels, self._fewest = panels, panels.count // 2
        return panels

    def _wider(self, low: float, high: float) -> tuple[float, float]:
        """Return a range with room around arguments, over the one that was known too, so that it seldom has to grow."""
        old = self._panels
        least = 1e-3 * max(abs(low), abs(high), 1e-3)
        if old is None:
            room = max(_MARGIN * (high - low), least)
            return low - room, high + room
        room = _MARGIN * (max(high, old.high) - min(low, old.low))
        return low - room if low < old.low else old.low, high + room if high > old.high else old.high

    # -- the gradient ----------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Set the gradient to zero."""
        self._gradient[:] = 0.0
        self._sums.clear()

    def collect(
        self, a: Array, by: tuple[Array, ...], delta: Array | None = None, by_along: tuple[Array, ...] = ()
    ) -> None:
        """Add the derivative by the weights; see :meth:`~npde_fem.neural_terms.Network.pull`."""
        a = np.ascontiguousarray(a)
        panels = self._panels_for(a)
        if panels is None:
            self._gradient += self.network.pull(self._weights, a, by, delta, by_along)
            return
        if by_along and delta is not None and not _equal(delta, self._sums_along):
            self._pull_sums()
            self._sums_along = delta.copy()
        for along, several in ((False, by), (True, by_along)):
            for n, weights in enumerate(several):
                if (along, n) not in self._sums:
                    self._sums[along, n] = Weighting(panels, self.network.outputs)
                self._sums[along, n].add(a, np.ascontiguousarray(weights))

    def gradient(self) -> Array:
        """Return a copy of what this rank has collected, shape ``(P,)``."""
        self._pull_sums()
        return self._gradient.copy()

    def _pull_sums(self) -> None:
        """Take the weights of nodes, summed up so far, through the network."""
        if not self._sums or self._panels is None:
            return
        nodes, m = self._panels.nodes, self.network.outputs
        weights = {
            key: total.at_nodes.reshape(nodes.size, m, *[1] * key[1]) for key, total in sorted(self._sums.items())
        }
        by, by_along = (tuple(self._filled(weights, along, nodes.size)) for along in (False, True))
        self._gradient += self.network.pull(self._weights, nodes[:, None], by, self._sums_along, by_along)
        self._sums.clear()

    def _filled(self, weights: dict[tuple[bool, int], Array], along: bool, nodes: int) -> list[Array]:
        """Weights of orders 0, 1, ...; zero where there are none."""
        most = max((n for a, n in weights if a == along), default=-1)
        shape = nodes, self.network.outputs
        return [weights.get((along, n), np.zeros((*shape, *[1] * n))) for n in range(most + 1)]


def _equal(a: Array, b: Array | None) -> bool:
    return b is not None and np.array_equal(a, b)


def _all_equal(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    if len(some) != len(others):
        return False
    return all(a.dtype == b.dtype and a.equal(b) for a, b in zip(some, others, strict=True))
