"""Functions of one number, tabulated: polynomials on panels of equal width, so that a value costs the same anywhere.

On each panel stands the polynomial through the values at Chebyshev's points (of the first kind). It is kept as powers
of the place within the panel and evaluated in C, several points at a time. The transposed takes weights of points to
weights of the table's nodes, exactly: who differentiates a sum of interpolated values by what they are made from needs
to look at the nodes only.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

from npde_fem.discretize.jit import compile_c

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from numpy.polynomial import chebyshev

__all__ = ["PLACE", "Panels", "Table", "Weighting", "resolving"]

Array = npt.NDArray[np.float64]

NODES = 8
"""Nodes of a panel; the polynomials have one degree less."""

_FEWEST, _MOST = 8, 4096
_MOST_IN_DOUBT = 256

_NODES = np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)
_BETWEEN = np.cos(np.pi * np.arange(NODES + 1) / NODES)
_TO_CHEBYSHEV = chebyshev.chebvander(_NODES, NODES - 1).T * np.where(np.arange(NODES) == 0, 1, 2)[:, None] / NODES
_TO_POWERS = np.array([np.pad(chebyshev.cheb2poly(row), (0, NODES))[:NODES] for row in np.eye(NODES)]).T
_TO_BETWEEN = chebyshev.chebvander(_BETWEEN, NODES - 1) @ _TO_CHEBYSHEV

PLACE = f"""
enum {{ NODES = {NODES} }};

/* The first coefficients of the panels that hold some points, and the places there, from -1 to 1. */
static inline void place(long n, const double *restrict a, double low, double width, long panels,
                         int *restrict first, double *restrict s)
{{
    const double last = panels - 1;
    for (long p = 0; p < n; p++) {{
        const double x = (a[p] - low) / width;
        const double above = x > 0.0 ? x : 0.0;
        const int panel = (int)(above < last ? above : last);
        first[p] = NODES * panel;
        s[p] = 2.0 * (x - panel) - 1.0;
    }}
}}

static inline double polynomial(const double *restrict c, double s)
{{
    double y = c[NODES - 1];
    for (int k = NODES - 2; k >= 0; k--)
        y = y * s + c[k];
    return y;
}}
"""
"""C functions of who evaluates tables in kernels of his own; see :attr:`Table.arguments`."""

_SOURCE = f"""{PLACE}
enum {{ BLOCK = 64 }};

void evaluate(long n, const double *restrict a, double low, double width, long panels, const double *restrict powers,
              long stride, double *restrict out)
{{
    int first[BLOCK];
    double s[BLOCK];
    for (long b = 0; b < n; b += BLOCK) {{
        const long m = n - b < BLOCK ? n - b : BLOCK;
        place(m, a + b, low, width, panels, first, s);
        for (long p = 0; p < m; p++)
            out[(b + p) * stride] = polynomial(powers + first[p], s[p]);
    }}
}}

void weigh(long n, const double *restrict a, double low, double width, long panels, const double *restrict weights,
           long stride, double *restrict moments)
{{
    int first[BLOCK];
    double s[BLOCK];
    for (long b = 0; b < n; b += BLOCK) {{
        const long m = n - b < BLOCK ? n - b : BLOCK;
        place(m, a + b, low, width, panels, first, s);
        for (long p = 0; p < m; p++) {{
            double t[NODES] = {{1.0, s[p]}};
            for (int k = 2; k < NODES; k++)
                t[k] = 2.0 * s[p] * t[k - 1] - t[k - 2];
            for (int k = 0; k < NODES; k++)
                moments[first[p] + k] += weights[(b + p) * stride] * t[k];
        }}
    }}
}}

long outside(long n, const double *restrict a, double low, double high)
{{
    long found = 0;
    for (long p = 0; p < n; p++)
        found += (a[p] < low) | (a[p] > high);
    return found;
}}
"""


@functools.cache
def _kernels() -> ctypes.CDLL:
    # Whether a rank needs a table is its own business, so each one asks for the kernels by itself.
    library = compile_c(MPI.COMM_SELF, _SOURCE)
    long, double, pointer = ctypes.c_long, ctypes.c_double, ctypes.c_void_p
    library.evaluate.argtypes = [long, pointer, double, double, long, pointer, long, pointer]
    library.weigh.argtypes = library.evaluate.argtypes
    library.outside.argtypes = [long, pointer, double, double]
    library.evaluate.restype = library.weigh.restype = None
    library.outside.restype = long
    return library


@dataclass(frozen=True)
class Panels:
    """``count`` panels of equal width from ``low`` to ``high``."""

    low: float
    high: float
    count: int

    def hold(self, a: Array) -> bool:
        """Whether no number of a contiguous array lies outside; one that is NaN does not."""
        return not _kernels().outside(a.size, a.ctypes.data, self.low, self.high)

    @property
    def width(self) -> float:
        return (self.high - self.low) / self.count

    def places(self, within: Array, which: npt.NDArray[np.int64] | None = None) -> Array:
        """Return the numbers at some places of [-1, 1] in all panels, or some: shape (panels, places)."""
        which = np.arange(self.count) if which is None else which
        return self.low + self.width * (which[:, None] + 0.5 * (within + 1))

    @property
    def nodes(self) -> Array:
        """All nodes, panel by panel, shape (panels * NODES,)."""
        return self.places(_NODES).ravel()


def resolving(
    function: Callable[[Array], list[Array]],
    low: float,
    high: float,
    tolerances: tuple[float, ...],
    fewest: int = _FEWEST,
) -> Panels | None:
    """Return panels on which some functions of one number are resolved; None if they are not smooth enough for it.

    Panels are halved until between its nodes a polynomial has the right values; the narrowest needed is the width of
    all. What halving no longer improves, and is nearly good, counts as the round-off of the functions.

    Parameters
    ----------
    function
        Returns the functions' values at numbers of shape (n,), each of shape (n, columns).
    low, high
        The range.
    tolerances
        Largest error of each function, in units of its largest value in the range.
    fewest
        Panels to begin with.
    """
    count = max(_FEWEST, min(_MOST, fewest))
    doubtful = np.arange(count)
    before = np.full(count, np.inf)
    scales = [0.0 for _ in tolerances]
    while count <= _MOST and doubtful.size <= _MOST_IN_DOUBT:
        panels = Panels(low, high, count)
        places = np.concatenate([panels.places(_NODES, doubtful), panels.places(_BETWEEN, doubtful)], axis=1)
        errors = np.zeros(doubtful.size)
        for k, (found, tolerance) in enumerate(zip(function(places.ravel()), tolerances, strict=True)):
            values = found.reshape(*places.shape, -1)
            if not np.isfinite(values).all():
                return None
            scales[k] = max(scales[k], float(np.abs(values).max()))
            missed = np.abs(np.einsum("bn,pnc->pbc", _TO_BETWEEN, values[:, :NODES]) - values[:, NODES:]).max((1, 2))
            if scales[k]:
                errors = np.maximum(errors, missed / (tolerance * scales[k]))
        poor = (errors > 1) & ~((errors <= 100) & (errors > before / 8))
        if not poor.any():
            return panels
        doubtful = np.repeat(2 * doubtful[poor], 2) + np.tile([0, 1], poor.sum())
        before = np.repeat(errors[poor], 2)
        count *= 2
    return None


class Table:
    """A function on panels, of one number, with one or several columns of values.

    Parameters
    ----------
    panels
        The panels.
    values
        Values at their nodes, shape (nodes, columns).
    """

    def __init__(self, panels: Panels, values: Array) -> None:
        nodal = values.reshape(panels.count, NODES, -1)
        # To powers by way of Chebyshev's polynomials, whose coefficients are no larger than the values.
        powers = np.einsum("lk,kn,pnc->cpl", _TO_POWERS, _TO_CHEBYSHEV, nodal, optimize=["einsum_path", (1, 2), (0, 1)])
        self._panels, self._powers = panels, np.ascontiguousarray(powers)

    @property
    def columns(self) -> int:
        return len(self._powers)

    def arguments(self, column: int) -> tuple[float, float, int, int]:
        """Return start and width of the panels, their number, and the address of a column's coefficients."""
        p = self._panels
        return p.low, p.width, p.count, self._powers.ctypes.data + column * self._powers.strides[0]

    def evaluate(self, a: Array, out: Array) -> None:
        """Write the values at numbers a into ``out``, of shape (points, columns), both contiguous."""
        for c in range(self.columns):
            target = out.ctypes.data + c * out.itemsize
            _kernels().evaluate(a.size, a.ctypes.data, *self.arguments(c), self.columns, target)


class Weighting:
    """Sums over points of weight times value of a table, as sums over its nodes."""

    def __init__(self, panels: Panels, columns: int) -> None:
        self._panels = panels
        self._moments = np.zeros((columns, panels.count, NODES))

    def add(self, a: Array, weights: Array) -> None:
        """Add numbers a, contiguous, one a point, with weights, contiguous, of shape (points, columns)."""
        p, columns = self._panels, len(self._moments)
        for c, moments in enumerate(self._moments):
            source = weights.ctypes.data + c * weights.itemsize
            _kernels().weigh(a.size, a.ctypes.data, p.low, p.width, p.count, source, columns, moments.ctypes.data)

    @property
    def at_nodes(self) -> Array:
        """The weights of the nodes, shape (nodes, columns)."""
        return np.ascontiguousarray((self._moments @ _TO_CHEBYSHEV).reshape(len(self._moments), -1).T)
