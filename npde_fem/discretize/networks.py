"""Networks of an equation at the points of a discretisation: values, derivatives, and gradients by their weights."""

from __future__ import annotations

from npde_fem.discretize.semidiscrete import Array
from npde_fem.neural_terms import Network

import numpy as np

__all__ = ["Evaluator"]


class Evaluator:
    """Evaluates a network of a problem, and sums up the derivatives by its weights that a sweep collects.

    Parameters
    ----------
    network
        The network.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._gradient = np.zeros(network.weights.ufl_shape)
        self.update()

    def update(self) -> None:
        """Take over the current weights."""
        self._weights = np.array(self.network.weights.value)

    def values(self, a: Array, order: int, delta: Array | None = None) -> list[Array]:
        """Return the network and its derivatives by the inputs; see :meth:`~npde_fem.neural_terms.Network.values`."""
        return self.network.values(self._weights, a, order, delta)

    def clear(self) -> None:
        """Set the gradient to zero."""
        self._gradient[:] = 0.0

    def collect(
        self, a: Array, by: tuple[Array, ...], delta: Array | None = None, by_along: tuple[Array, ...] = ()
    ) -> None:
        """Add the derivative by the weights; see :meth:`~npde_fem.neural_terms.Network.pull`."""
        self._gradient += self.network.pull(self._weights, a, by, delta, by_along)

    def gradient(self) -> Array:
        """Return a copy of what this rank has collected, shape ``(P,)``."""
        return self._gradient.copy()
