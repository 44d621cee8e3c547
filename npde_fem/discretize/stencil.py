"""UFL flux and source -> compiled finite-difference kernels on a uniform grid.

The scheme is a vertex-centred finite volume method. Around grid point p lies the control volume V_p (half as wide
at the boundary of the box), and

    R_p = sum over its faces of  area * n . F(u, grad u, x, t)  +  |V_p| S(u, grad u, x, t).

At the face between the points L and H across axis a the state is (u_L + u_H) / 2, the normal derivative
(u_H - u_L) / h_a, a tangential one the mean of the slopes at L and H; a slope at a point is the central
difference, one-sided where a neighbour is missing. Fluxes through the boundary of the box (or of the mask) are
closed here; boundary conditions open them elsewhere. Each face is seen alike from both sides, so mass is
conserved to round-off.

Arrays are C double, with one layer of ghost points on every side; x runs fastest, components faster still.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from npde_fem.discretize.scalar import Code, components, leaf_of, lower, partial

import basix.ufl
import numpy as np
import ufl
from ufl import classes
from ufl.algorithms.expand_indices import expand_indices
from ufl.core.expr import Expr
from ufl.corealg.traversal import traverse_unique_terminals, unique_pre_traversal

__all__ = [
    "Field",
    "GridArguments",
    "JacobianPattern",
    "Placed",
    "ReverseKernel",
    "Symbols",
    "arguments_source",
    "balance_source",
    "cotangents_source",
    "evaluator_source",
    "jacobian_source",
    "pointers_to",
    "rate_source",
    "reverse_evaluator_source",
    "reverse_source",
]


class GridArguments(ctypes.Structure):
    """What every kernel is told about this rank's part of the grid (x, y, z; unused axes are ignored)."""

    _fields_ = [
        ("n", ctypes.c_long * 3),
        ("start", ctypes.c_long * 3),
        ("size", ctypes.c_long * 3),
        ("periodic", ctypes.c_long * 3),
        ("closed", ctypes.c_long * 3),
        ("lower", ctypes.c_double * 3),
        ("h", ctypes.c_double * 3),
        ("t", ctypes.c_double),
        ("dt", ctypes.c_double),
        ("numbers", ctypes.c_void_p),
        ("fields", ctypes.POINTER(ctypes.c_void_p)),
        ("placed", ctypes.POINTER(ctypes.c_void_p)),
        ("mask", ctypes.c_void_p),
    ]


_HEADER = """#include <float.h>
#include <math.h>

typedef struct {
  long n[3], start[3], size[3], periodic[3], closed[3];
  double lower[3], h[3], t, dt;
  const double *numbers;
  const double *const *fields;
  const double *const *placed;
  const unsigned char *mask;
} grid_t;
"""


def pointers_to(arrays: Sequence[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    """Return the addresses of arrays as a C array; it does not keep them alive."""
    return (ctypes.c_void_p * max(1, len(arrays)))(*(a.ctypes.data for a in arrays))


class Field(NamedTuple):
    """A field parameter: its symbol, and whether its values sit in the cells between points."""

    symbol: ufl.Coefficient
    in_cells: bool


class Placed(NamedTuple):
    """A symbol whose values are given, at every point and face that an expression with it is evaluated at.

    They are values of a function n(a) of other expressions, or derivatives of it by these. They stand in ghosted
    arrays, one of the points and one of the faces across each axis, a face at the index of its lower point.

    Attributes
    ----------
    symbol
        The symbol, of shape (m,), (m, k) or (m, k, k).
    argument
        a, lowered, of shape (k,).
    slope
        The symbol of its derivative by a; None if it is not differentiated.
    """

    symbol: ufl.Coefficient
    argument: Expr
    slope: ufl.Coefficient | None


@dataclass(frozen=True)
class Symbols:
    """The terminals that an expression on the grid may contain, and the grid's kind.

    ``numbers``, ``fields`` and ``placed`` stand in the order in which their values are passed; ``masked`` grids have
    whole control volumes around every point of the mask. On ``padded`` grids values beyond the box are made of those
    within.
    """

    dim: int
    components: int
    u: ufl.Coefficient
    x: classes.SpatialCoordinate
    t: ufl.Constant
    dt: ufl.Constant
    normal: ufl.Constant
    numbers: tuple[ufl.Constant, ...] = ()
    fields: tuple[Field, ...] = ()
    placed: tuple[Placed, ...] = ()
    masked: bool = False
    padded: bool = False

    def strides(self) -> list[str]:
        return ["1", "SY", "SZ"][: self.dim]

    def number_name(self, terminal: Expr, component: tuple[int, ...]) -> str | None:
        """Return the C name of a number's component, or None if ``terminal`` is no number."""
        offset = 0
        for number in self.numbers:
            size = int(np.prod(number.ufl_shape, dtype=int))
            if terminal == number:
                return f"p{offset + _flat(component, number.ufl_shape)}"
            offset += size
        return None

    def number_count(self) -> int:
        return sum(int(np.prod(n.ufl_shape, dtype=int)) for n in self.numbers)

    def placed_at(self, terminal: Expr) -> int | None:
        """Return the position of a placed symbol, or None if ``terminal`` is none."""
        return next((k for k, placed in enumerate(self.placed) if placed.symbol == terminal), None)

    def placed_in(self, expression: Expr) -> list[Placed]:
        """Return the placed symbols in an expression."""
        if not self.placed:
            return []
        terminals = set(traverse_unique_terminals(expression))
        return [placed for placed in self.placed if placed.symbol in terminals]

    def terminals(self, expression: Expr) -> set[Expr]:
        """Return the terminals that the value of an expression depends on, placed symbols and what these depend on."""
        found: set[Expr] = set(traverse_unique_terminals(expression))
        return found.union(*(traverse_unique_terminals(placed.argument) for placed in self.placed_in(expression)))

    def derivatives(self, expression: Expr) -> tuple[Expr, Expr]:
        """Return the derivatives of a lowered expression by u and by grad(u), as if these were independent.

        Placed symbols move with what they depend on.
        """
        domain = ufl.domain.extract_unique_domain(self.u)
        gradient = ufl.Coefficient(ufl.FunctionSpace(domain, _gradient_element(self)))
        whole, found = ufl.grad(self.u), []
        for symbol in (self.u, gradient):
            total = partial(ufl.replace(expression, {whole: gradient}), symbol)
            for placed in self.placed_in(expression):
                inner = partial(ufl.replace(placed.argument, {whole: gradient}), symbol)
                outer = partial(ufl.replace(expression, {whole: gradient}), placed.symbol)
                total += ufl.dot(ufl.dot(outer, placed.slope), inner)
            found.append(lower(ufl.replace(total, {gradient: whole})))
        return found[0], found[1]


def _flat(component: tuple[int, ...], shape: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(component, shape)) if shape else 0


def _mean(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{1 / len(parts)!r} * ({' + '.join(parts)})"


Offset = tuple[int, ...]
"""Steps along the axes from a point to a neighbour."""


def _step(s: Symbols, axis: int, steps: int) -> Offset:
    return tuple(steps if a == axis else 0 for a in range(s.dim))


def _plus(*offsets: Offset) -> Offset:
    return tuple(sum(steps) for steps in zip(*offsets, strict=True))


def _shifted(s: Symbols, offset: Offset) -> str:
    """C expression of the ghosted index of the point that is ``offset`` away from ``P``."""
    moves = {1: " + {}", -1: " - {}", 0: ""}
    return "P" + "".join(moves[steps].format(stride) for steps, stride in zip(offset, s.strides(), strict=True))


class _Place:
    """Where an expression is evaluated: at a point, or at the face between two; names its leaves in C.

    ``offsets`` lead from ``P`` to the points, one or two, of which ``points`` are the ghosted indices in C; ``axis``
    is the axis the face is normal to.
    """

    def __init__(self, s: Symbols, offsets: list[Offset], axis: int | None, x: list[str], openness: str) -> None:
        self.s, self.offsets, self.axis, self.x, self.openness = s, offsets, axis, x, openness
        self.points = [_shifted(s, offset) for offset in offsets]

    def __call__(self, terminal: Expr, component: tuple[int, ...]) -> str:
        s = self.s
        if isinstance(terminal, classes.SpatialCoordinate):
            return self.x[component[0] if component else 0]
        if terminal == s.t:
            return "t"
        if terminal == s.dt:
            return "dt"
        if (name := s.number_name(terminal, component)) is not None:
            return name
        if isinstance(terminal, classes.Grad):
            (operand,) = terminal.ufl_operands
            array, count, index = self._array(operand, component[:-1])
            return self.derivative(array, count, index, component[-1])
        if terminal == s.normal:
            return f"normal[3 * f + {component[0] if component else 0}]"
        for k, field in enumerate(s.fields):
            if terminal == field.symbol and field.in_cells:
                return self._cells(f"F{k}", field.symbol, component)
        if (position := s.placed_at(terminal)) is not None:
            kind = 0 if self.axis is None else 1 + self.axis
            shape = terminal.ufl_shape
            return f"N{position}_{kind}[({self.points[0]}) * {_size(terminal)} + {_flat(component, shape)}]"
        array, count, index = self._array(terminal, component)
        return _mean([f"{array}[({p}) * {count} + {index}]" for p in self.points])

    def _array(self, terminal: Expr, component: tuple[int, ...]) -> tuple[str, int, int]:
        s = self.s
        if terminal == s.u:
            return "U", s.components, component[0] if component else 0
        for k, field in enumerate(s.fields):
            if terminal == field.symbol and not field.in_cells:
                shape = field.symbol.ufl_shape
                return f"F{k}", int(np.prod(shape, dtype=int)), _flat(component, shape)
        raise ValueError(
            f"{terminal} cannot be evaluated on a grid: a flux or source may contain u, grad(u), x, t, parameters "
            "and gradients of field parameters given at grid points, no higher derivative and no foreign function"
        )

    def slope_weights(self, point: str, axis: int) -> tuple[str, str]:
        """C names of the weights of the forward and the backward difference in the slope at a point."""
        if self.s.masked:
            suffix = f"{axis}_{self.points.index(point)}{self.openness}"
        else:
            suffix = str(axis)
        return f"cp{suffix}", f"cm{suffix}"

    def derivative(self, array: str, count: int, index: int, axis: int) -> str:
        stride = self.s.strides()[axis]
        if axis == self.axis:
            low, high = self.points
            return f"({array}[({high}) * {count} + {index}] - {array}[({low}) * {count} + {index}]) * ih{axis}"
        slopes = []
        for p in self.points:
            here, ahead, behind = (
                f"{array}[({q}) * {count} + {index}]" for q in (p, f"{p} + {stride}", f"{p} - {stride}")
            )
            plus, minus = self.slope_weights(p, axis)
            slopes.append(f"({plus} * ({ahead} - {here}) + {minus} * ({here} - {behind}))")
        return _mean(slopes)

    def _touching(self) -> list[tuple[Offset, str]]:
        """Cells that touch this place, by the offset of their lowest point, and whether (C: 1.0 or 0.0) they exist."""
        across = [a for a in range(self.s.dim) if a != self.axis]
        cells = []
        for sides in product((0, 1), repeat=len(across)):
            weight = " * ".join(("bhi" if side else "blo") + str(a) for a, side in zip(across, sides, strict=True))
            back = [_step(self.s, a, side - 1) for a, side in zip(across, sides, strict=True)]
            cells.append((_plus(self.offsets[0], *back), weight or "1.0"))
        return cells

    def _cells(self, array: str, symbol: ufl.Coefficient, component: tuple[int, ...]) -> str:
        """Mean over the cells that touch this place; cells outside the box count nothing."""
        count, index = int(np.prod(symbol.ufl_shape, dtype=int)), _flat(component, symbol.ufl_shape)
        cells = self._touching()
        values = [f"{weight} * {array}[({_shifted(self.s, at)}) * {count} + {index}]" for at, weight in cells]
        return f"({' + '.join(values)}) / ({' + '.join(weight for _, weight in cells)})"

    def shares(self, k: str, axis: int | None = None, in_cells: bool = False) -> list[tuple[Offset, str]]:
        """Return what a weight ``k`` of a quantity's value here, or of its slope along an axis, means for its values.

        This transposes what :meth:`__call__` reads: offsets from ``P``, and terms in C, signs first.
        """
        if in_cells:
            cells = self._touching()
            total = " + ".join(weight for _, weight in cells)
            return [(at, f"+ {k} * {weight} / ({total})") for at, weight in cells]
        if axis is not None and axis == self.axis:
            low, high = self.offsets
            return [(high, f"+ {k} * ih{axis}"), (low, f"- {k} * ih{axis}")]
        if len(self.points) > 1:
            k = f"{1 / len(self.points)!r} * {k}"
        if axis is None:
            return [(at, f"+ {k}") for at in self.offsets]
        found = []
        for point, at in zip(self.points, self.offsets, strict=True):
            plus, minus = self.slope_weights(point, axis)
            found += [
                (_plus(at, _step(self.s, axis, 1)), f"+ {k} * {plus}"),
                (_plus(at, _step(self.s, axis, -1)), f"- {k} * {minus}"),
                (at, f"+ {k} * ({minus} - {plus})"),
            ]
        return found


def _declare(s: Symbols) -> list[str]:
    """C declarations that every kernel begins with."""
    lines = ["const double t = g->t, dt = g->dt; (void)t; (void)dt;"]
    lines += [f"const double p{k} = g->numbers[{k}]; (void)p{k};" for k in range(s.number_count())]
    lines += [f"const double *restrict F{k} = g->fields[{k}]; (void)F{k};" for k in range(len(s.fields))]
    for k, kind in product(range(len(s.placed)), range(1 + s.dim)):
        position = k * (1 + s.dim) + kind
        lines += [f"const double *restrict N{k}_{kind} = g->placed[{position}]; (void)N{k}_{kind};"]
    lines += [f"const double ih{a} = 1.0 / g->h[{a}]; (void)ih{a};" for a in range(s.dim)]
    lines += ["const long SY = g->n[0] + 2; (void)SY;"] if s.dim > 1 else []
    lines += ["const long SZ = SY * (g->n[1] + 2); (void)SZ;"] if s.dim > 2 else []
    lines += ["const unsigned char *restrict mask = g->mask;"] if s.masked else []
    return lines


def _axis_state(s: Symbols, a: int) -> list[str]:
    """C declarations for position ``I{a}`` on axis ``a``: openness of the two sides, slope weights, coordinate."""
    first, last = (f"I{a} == 0", f"I{a} == g->size[{a}] - 1") if a else ("part == 0", "part == 2")
    lines = [
        f"const double blo{a} = ({first} && g->closed[{a}]) ? 0.0 : 1.0;",
        f"const double bhi{a} = ({last} && g->closed[{a}]) ? 0.0 : 1.0;",
        # The face between the last point of a periodic axis and the first has one coordinate, seen from either side.
        f"const double seam{a} = ({first} && g->periodic[{a}]) ? g->h[{a}] * (double)g->size[{a}] : 0.0;",
        f"(void)blo{a}; (void)bhi{a}; (void)seam{a};",
    ]
    if not s.masked:
        lines += [
            f"const double cp{a} = bhi{a} * ih{a} / (blo{a} + bhi{a}), cm{a} = blo{a} * ih{a} / (blo{a} + bhi{a});",
            f"const double width{a} = 0.5 * (blo{a} + bhi{a});",
            f"(void)cp{a}; (void)cm{a};",
        ]
    return lines


def _loop(s: Symbols, body: list[str], strip: int = 0, after_strip: Sequence[str] = ()) -> list[str]:
    """Wrap a body in loops over the owned points of this rank, the innermost cut where the boundary begins.

    Away from the boundary of a box the body is compiled a second time, with all faces known to be open. With
    ``strip`` the innermost loop goes by strips ``s0 <= i0 < s1`` of so many points, followed each by ``after_strip``.
    """
    lines: list[str] = []
    for a in reversed(range(1, s.dim)):
        lines += [f"for (long i{a} = 0; i{a} < g->n[{a}]; ++i{a}) {{", f"const long I{a} = g->start[{a}] + i{a};"]
        lines += [*_axis_state(s, a), f"const double x{a} = g->lower[{a}] + g->h[{a}] * (double)I{a}; (void)x{a};"]
    row = " + ".join(["1", *(f"(i{a} + 1) * {stride}" for a, stride in list(enumerate(s.strides()))[1:])])
    lines += [
        "const long cut[4] = {0, g->start[0] == 0 ? 1 : 0,",
        "  g->start[0] + g->n[0] == g->size[0] ? g->n[0] - 1 : g->n[0], g->n[0]};",
        "for (int part = 0; part < 3; ++part) {",
        *_axis_state(s, 0),
        f"const long row = {row};",
    ]
    first, last = ("s0", "s1") if strip else ("cut[part]", "cut[part + 1]")
    along = [
        f"for (long i0 = {first}; i0 < {last}; ++i0) {{",
        "const long P = row + i0;",
        "const double x0 = g->lower[0] + g->h[0] * (double)(g->start[0] + i0); (void)x0;",
        *body,
        "}",
    ]
    if strip:
        along = [
            f"for (long s0 = cut[part]; s0 < cut[part + 1]; s0 += {strip}) {{",
            f"const long s1 = s0 + {strip} < cut[part + 1] ? s0 + {strip} : cut[part + 1];",
            *along,
            *after_strip,
            "}",
        ]
    if not s.masked:
        lines.append(f"if ({' && '.join(f'width{a} == 1.0 && seam{a} == 0.0' for a in range(s.dim))}) {{")
        for a in range(s.dim):
            lines += [
                f"const double blo{a} = 1.0, bhi{a} = 1.0, width{a} = 1.0, seam{a} = 0.0;",
                f"const double cp{a} = 0.5 * ih{a}, cm{a} = 0.5 * ih{a};",
                f"(void)blo{a}; (void)bhi{a}; (void)width{a}; (void)seam{a}; (void)cp{a}; (void)cm{a};",
            ]
        along = [*along, "} else {", *along, "}"]
    return [*lines, *along, *["}"] * s.dim]


def _point(s: Symbols) -> _Place:
    return _Place(s, [(0,) * s.dim], None, [f"x{a}" for a in range(s.dim)], "")


def _face(s: Symbols, axis: int, high: bool) -> _Place:
    offsets = [_step(s, axis, 0), _step(s, axis, 1)] if high else [_step(s, axis, -1), _step(s, axis, 0)]
    x = [f"x{a}" for a in range(s.dim)]
    x[axis] = f"(x{axis} + 0.5 * g->h[{axis}])" if high else f"(x{axis} - 0.5 * g->h[{axis}] + seam{axis})"
    return _Place(s, offsets, axis, x, f"{'h' if high else 'l'}{axis}")


def _open(s: Symbols, axis: int, high: bool) -> str:
    return f"{'hi' if high else 'lo'}{axis}"


def _openness(s: Symbols) -> list[str]:
    """C declarations of ``lo{a}``, ``hi{a}``, 1 where the face behind or ahead of the point is open, and slope weights.

    On a masked grid every point of a face has slope weights of its own; the compiler drops those not used.
    """
    lines: list[str] = []
    for a, stride in enumerate(s.strides()):
        if s.masked:
            lines += [
                f"const double lo{a} = mask[P] & mask[P - {stride}], hi{a} = mask[P] & mask[P + {stride}];",
            ]
        else:
            lines += [f"const double lo{a} = blo{a}, hi{a} = bhi{a};"]
        lines += [f"(void)lo{a}; (void)hi{a};"]
    if s.masked:
        places = [_point(s)] + [_face(s, a, high) for a in range(s.dim) for high in (False, True)]
        for place in places:
            for point, axis in product(place.points, range(s.dim)):
                if axis == place.axis:
                    continue
                stride = s.strides()[axis]
                plus, minus = place.slope_weights(point, axis)
                ahead = f"(double)(mask[{point}] & mask[{point} + {stride}])"
                behind = f"(double)(mask[{point}] & mask[{point} - {stride}])"
                lines += [
                    f"const double {plus} = {ahead} * ih{axis} / fmax(1.0, {ahead} + {behind});",
                    f"const double {minus} = {behind} * ih{axis} / fmax(1.0, {ahead} + {behind});",
                    f"(void){plus}; (void){minus};",
                ]
    return lines


def _flat_point(s: Symbols) -> str:
    """C expression of the index of an owned point in a plain array."""
    return " + ".join(["i0", *(f"i{a} * {' * '.join(f'g->n[{b}]' for b in range(a))}" for a in range(1, s.dim))])


def _volume(s: Symbols) -> str:
    cell = " * ".join(f"g->h[{a}]" for a in range(s.dim))
    return cell if s.masked else " * ".join([cell, *(f"width{a}" for a in range(s.dim))])


def _face_scale(s: Symbols, axis: int) -> str:
    """Area of a face over the volume of its control volume."""
    return f"ih{axis}" if s.masked else f"ih{axis} / width{axis}"


def _rows(source: Expr) -> int:
    """Rows a point has: components of a source."""
    return int(np.prod(source.ufl_shape, dtype=int))


def _row(index: tuple[int, ...]) -> int:
    return index[0] if index else 0


def _rates(s: Symbols, flux: Expr, source: Expr) -> list[str]:
    """Return C that declares ``r0``, ``r1``, ..., the rates ``R / |V|`` of a point's rows."""
    body = _openness(s)
    terms: dict[int, list[str]] = {c: [] for c in range(_rows(source))}
    for a, high in product(range(s.dim), (True, False)):
        code = Code(_face(s, a, high), prefix=f"f{a}{int(high)}_")
        for index, part in components(flux).items():
            if index[-1] == a:
                value = code.emit(part)
                sign, scale = "+" if high else "-", _face_scale(s, a)
                terms[_row(index[:-1])].append(f"{sign} ({_open(s, a, high)} != 0.0 ? {value} : 0.0) * ({scale})")
        body += code.lines
    code = Code(_point(s), prefix="s_")
    for index, part in components(source).items():
        terms[_row(index)].append(f"+ {code.emit(part)}")
    body += code.lines
    inside, outside = ("mask[P] ? ", " : 0.0") if s.masked else ("", "")
    return [*body, *(f"const double r{c} = {inside}{' '.join(t) or '0.0'}{outside};" for c, t in terms.items())]


def balance_source(s: Symbols, flux: Expr, source: Expr) -> str:
    """Return C source of ``balance(g, U, A, nA, B, nB, factor, a, v)`` for lowered flux and source.

    At every owned point it solves ``A a + B (v + factor a) = R / |V|`` for a, and adds ``factor a`` to v, in one pass.
    A and B have one value for all components of a point, and one for all points if nA, nB are 0, else these are 1. The
    function returns 1 if a value is not finite, else 0.
    """
    m = _rows(source)
    body = [*_rates(s, flux, source), f"const long q = {_flat_point(s)};"]
    body += ["const double inverse = 1.0 / (A[q * nA] + factor * B[q * nB]);"]
    for c in range(m):
        body += [
            f"const double a{c} = (r{c} - B[q * nB] * v[q * {m} + {c}]) * inverse;",
            f"a[q * {m} + {c}] = a{c};",
            f"v[q * {m} + {c}] += factor * a{c};",
            f"sum += a{c};",
        ]
    lines = [
        "int balance(const grid_t *g, const double *restrict U, const double *restrict A, long nA,",
        "            const double *restrict B, long nB, double factor, double *restrict a, double *restrict v) {",
        *_declare(s),
        "double sum = 0.0;",
        *_loop(s, body),
        "return !(fabs(sum) <= DBL_MAX); }",
    ]
    return _HEADER + "\n".join(lines) + "\n"


def rate_source(s: Symbols, flux: Expr, source: Expr) -> str:
    """Return C source of ``rate`` and ``advance`` for lowered flux and source.

    There is one row a point for each component of the source. ``rate(g, U, out)`` writes R (integrated over control
    volumes) to a plain array of the owned points; ``advance(g, U, base, step, out)`` writes ``base + step * R / |V|``
    to the owned points of a ghosted array, and returns 1 if a value is not finite, else 0.
    ``advance_many(g, count, stride, U, base, step, out)`` does so for many states, ``stride`` numbers apart.
    """
    m, body = _rows(source), _rates(s, flux, source)
    rates, advances = [], []
    flat = _flat_point(s)
    for c in range(m):
        rates += [f"const double v{c} = r{c} * ({_volume(s)});", f"out[({flat}) * {m} + {c}] = v{c};"]
        advances += [f"const double v{c} = base[P * {m} + {c}] + step * r{c};", f"out[P * {m} + {c}] = v{c};"]
    # One NaN or infinity makes the sum so; a sum vectorises better than a test of each value.
    check = [f"sum += v{c};" for c in range(m)]
    head = _declare(s)
    functions = [
        "void rate(const grid_t *g, const double *restrict U, double *restrict out) {",
        *head,
        *_loop(s, [*body, *rates]),
        "}",
        # A static function is this library's own, whatever other libraries export: C's has an ``advance`` too.
        "static int advance_one(const grid_t *g, const double *restrict U, const double *base, double step,",
        "                       double *restrict out) {",
        *head,
        "double sum = 0.0;",
        *_loop(s, [*body, *advances, *check]),
        "return !(fabs(sum) <= DBL_MAX); }",
        "int advance(const grid_t *g, const double *U, const double *base, double step, double *out) {",
        "return advance_one(g, U, base, step, out); }",
        "int advance_many(const grid_t *g, long count, long stride, const double *U, const double *base, double step,",
        "                 double *out) {",
        "int bad = 0;",
        "for (long i = 0; i < count * stride; i += stride) bad |= advance_one(g, U + i, base + i, step, out + i);",
        "return bad; }",
    ]
    return _HEADER + "\n".join(functions) + "\n"


class JacobianPattern(NamedTuple):
    """C source of the Jacobian kernel and the stencil's offsets, shape (ns, d), in the order of its entries."""

    source: str
    offsets: np.ndarray


def jacobian_source(s: Symbols, flux: Expr, source: Expr) -> JacobianPattern:
    """Return C source of ``jacobian(g, U, factor, out)``: ``factor * dR/du`` by point, stencil entry and components.

    ``out`` has shape (owned points, ns, m, m).
    """
    m, d = s.components, s.dim
    entries: dict[tuple[Offset, int, int], list[str]] = {}

    def add(place: _Place, row: int, column: int, axis: int | None, k: str) -> None:
        for offset, term in place.shares(k, axis):
            entries.setdefault((offset, row, column), []).append(term)

    body: list[str] = []
    flux_u, flux_g = s.derivatives(flux)
    for a, high in product(range(d), (True, False)):
        place = _face(s, a, high)
        code = Code(place, prefix=f"f{a}{int(high)}_")
        sign = "" if high else "-"

        def scaled(part: Expr, code: Code = code, a: int = a, high: bool = high, sign: str = sign) -> str:
            value = code.emit(part)
            return code._store(f"{_open(s, a, high)} != 0.0 ? {sign}{value} * ({_face_scale(s, a)}) * scale : 0.0")

        for index, part in components(flux_u).items():
            row, axis, column = (index[0], index[1], index[2]) if m > 1 else (0, index[0], 0)
            if axis == a:
                add(place, row, column, None, scaled(part))
        for index, part in components(flux_g).items():
            row, axis, column, b = index if m > 1 else (0, index[0], 0, index[1])
            if axis == a:
                add(place, row, column, b, scaled(part))
        body += code.lines
    place, code = _point(s), Code(_point(s), prefix="s_")
    source_u, source_g = s.derivatives(source)
    for index, part in components(source_u).items():
        row, column = index if m > 1 else (0, 0)
        add(place, row, column, None, f"{code.emit(part)} * scale")
    for index, part in components(source_g).items():
        row, column, b = index if m > 1 else (0, 0, index[0])
        add(place, row, column, b, f"{code.emit(part)} * scale")
    body += code.lines

    offsets = sorted({key[0] for key in entries} | {(0,) * d})
    ns = len(offsets)
    flat = _flat_point(s)
    store = [f"double *restrict J = out + ({flat}) * {ns * m * m};"]
    for n, (offset, row, column) in enumerate(product(offsets, range(m), range(m))):
        text = " ".join(entries.get((offset, row, column), ["0.0"]))
        store.append(f"J[{n}] = {text};")
    if s.masked:
        store = [
            store[0],
            f"if (!mask[P]) {{ for (int k = 0; k < {ns * m * m}; ++k) J[k] = 0.0; continue; }}",
            *store[1:],
        ]
    code_lines = [
        "void jacobian(const grid_t *g, const double *restrict U, double factor, double *restrict out) {",
        *_declare(s),
        *_loop(s, [*_openness(s), f"const double scale = factor * {_volume(s)};", *body, *store]),
        "}",
    ]
    return JacobianPattern(_HEADER + "\n".join(code_lines) + "\n", np.array(offsets, dtype=np.int64).reshape(ns, d))


def _gradient_element(s: Symbols) -> object:
    cell = ufl.domain.extract_unique_domain(s.u).ufl_cell().cellname
    return basix.ufl.element("Lagrange", cell, 5, shape=ufl.grad(s.u).ufl_shape)


def _listed(s: Symbols, body: list[str]) -> list[str]:
    """Wrap a body in a loop over listed points, with the openness of their sides and the weights of their slopes."""
    lines = ["for (long f = 0; f < count; ++f) {", "const long P = index[f];"]
    for a, stride in enumerate(s.strides()):
        position = f"P / {stride} % (g->n[{a}] + 2)"
        lines += [f"const long I{a} = g->start[{a}] + {position} - 1;"]
        if a:
            lines += _axis_state(s, a)
        else:
            lines += ["const int part = I0 == 0 ? 0 : I0 == g->size[0] - 1 ? 2 : 1;", *_axis_state(s, 0)]
    return [*lines, *_openness(s), *body, "}"]


def _listed_place(s: Symbols) -> _Place:
    return _Place(s, [(0,) * s.dim], None, [f"xs[3 * f + {a}]" for a in range(s.dim)], "")


def evaluator_source(s: Symbols, expression: Expr) -> str:
    """Return C source of ``evaluate(g, U, count, index, xs, normal, out)`` for an expression at listed points.

    ``index`` are ghosted indices of owned points, ``xs`` and ``normal`` have shape (count, 3), ``out`` (count, size).
    """
    expression = lower(expression)
    size = int(np.prod(expression.ufl_shape, dtype=int))
    code = Code(_listed_place(s))
    values = {_flat(i, expression.ufl_shape): code.emit(p) for i, p in components(expression).items()}
    lines = [
        "void evaluate(const grid_t *g, const double *restrict U, long count, const long *index, const double *xs,",
        "              const double *normal, double *restrict out) {",
        *_declare(s),
        *_listed(s, [*code.lines, *(f"out[f * {size} + {k}] = {values.get(k, '0.0')};" for k in range(size))]),
        "}",
    ]
    return _HEADER + "\n".join(lines) + "\n"


class _Adjoints(NamedTuple):
    """What a weighted expression sends back to the values it was made from, as C sums.

    ``grids`` by the position of the quantity in the list, offset from ``P``, and component; ``numbers`` by position.
    """

    grids: dict[tuple[int, Offset, int], list[str]]
    numbers: dict[int, list[str]]


def _reverse(
    s: Symbols,
    code: Code,
    place: _Place,
    seeds: list[tuple[Expr, str]],
    by: Sequence[Expr],
    guard: str,
    to: _Adjoints,
    numbers: bool = True,
) -> None:
    """Add the reverse sweep of weighted scalar expressions at a place, and where it leads.

    ``guard`` is C for whether the place counts: the values at one that does not may be anything. Without ``numbers``
    what it means to these is left out.
    """
    grids = [q for q in by if not isinstance(q, ufl.Constant)]
    constants = [q for q in by if isinstance(q, ufl.Constant)]
    begin = dict(zip(constants, np.cumsum([0, *(_size(q) for q in constants)]).tolist(), strict=False))
    in_cells = {field.symbol for field in s.fields if field.in_cells}
    for leaf, bar in _adjoints(s, code, seeds, by):
        terminal, component = leaf_of(leaf) or (leaf, ())
        if guard:
            bar = code._store(f"{guard} ? {bar} : 0.0")
        axis = None
        if isinstance(terminal, classes.Grad):
            (terminal,), axis, component = terminal.ufl_operands, component[-1], component[:-1]
        column = _flat(component, terminal.ufl_shape)
        if terminal in begin:
            if numbers:
                to.numbers.setdefault(begin[terminal] + column, []).append(bar)
            continue
        for offset, term in place.shares(bar, axis, terminal in in_cells):
            to.grids.setdefault((grids.index(terminal), offset, column), []).append(term)


def _adjoints(s: Symbols, code: Code, seeds: list[tuple[Expr, str]], by: Sequence[Expr]) -> list[tuple[Expr, str]]:
    """Return the adjoints of leaves of some symbols; those of placed symbols go on to the leaves of their arguments."""
    wanted = set(by)
    through = {placed.symbol: placed for placed in s.placed if not s.terminals(placed.argument).isdisjoint(wanted)}
    found = code.reverse(seeds, lambda terminal: terminal in wanted or terminal in through)
    further, kept = [], []
    for leaf, bar in found.items():
        terminal, component = leaf_of(leaf) or (leaf, ())
        if terminal in wanted or isinstance(terminal, classes.Grad):
            kept.append((leaf, bar))
            continue
        placed = through[terminal]
        for index, part in components(placed.argument).items():
            assert placed.slope is not None
            slope = code.emit(expand_indices(placed.slope[(*component, *index)]))
            further.append((part, code._store(f"{bar} * {slope}")))
    return [*kept, *code.reverse(further, wanted.__contains__).items()]


def _size(quantity: Expr) -> int:
    return int(np.prod(quantity.ufl_shape, dtype=int))


class ReverseKernel(NamedTuple):
    """C source of a reverse kernel, and whether it gathers (see :func:`reverse_source`)."""

    source: str
    gathers: bool


def _direct(s: Symbols, flux: Expr, source: Expr, by: Sequence[Expr]) -> bool:
    """Whether the quantities ``by`` enter a face by the values at its two ends only, and a point by its own."""
    if {field.symbol for field in s.fields if field.in_cells} & set(by):
        return False
    for expression, at_faces in ((flux, True), (source, False)):
        for index, part in components(expression).items():
            for e in _leaves(s, part):
                terminal, component = leaf_of(e) or (e, ())
                if component and isinstance(terminal, classes.Grad) and terminal.ufl_operands[0] in by:
                    if not at_faces or component[-1] != index[-1]:
                        return False
    return True


def _leaves(s: Symbols, part: Expr) -> Iterator[Expr]:
    """Iterate over all of a scalar expression, and over the arguments of the placed symbols in it."""
    yield from unique_pre_traversal(part)
    for placed in s.placed_in(part):
        for argument in components(placed.argument).values():
            yield from unique_pre_traversal(argument)


_STRIP = 256
"""Points over which a scattering kernel collects before it adds: some buffers of this length fit the fastest cache."""


def reverse_source(s: Symbols, flux: Expr, source: Expr, by: Sequence[Expr], *, plain: bool = False) -> ReverseKernel:
    """Return C source of ``reverse(g, U, L, outs, sums)``: the transposed derivative of :func:`rate_source`'s rate.

    ``L`` are the weights of the rows, a ghosted array. To ``sums``, of all components of the numbers in ``by``, the
    kernel adds the weighted sum of the rates' derivatives by these; to ``outs[k]``, the ghosted array of the k-th
    quantity on the grid in ``by``, those by its values. ``reverse_many(g, count, nU, nL, nout, U, L, outs, sums)`` does
    so for many states, whose arrays are ``nU``, ``nL`` and ``nout`` numbers apart.

    Parameters
    ----------
    s, flux, source
        As of :func:`rate_source`.
    by
        Symbols to differentiate by: quantities on the grid and numbers.
    plain
        Let a kernel that gathers write to plain arrays of the owned points, instead of adding to ghosted ones.

    Notes
    -----
    Where quantities enter a face by the values at its ends only, each owned value *gathers* what it sends into its own
    rows and its neighbours': a face has weight ``L_P - L_Q``. Slopes at points and values in cells reach farther, and
    values beyond a padded box have no row; then each row *scatters* to what it was made from, ghosts included, which
    are to be sent home afterwards. What it scatters is kept for a strip of points before it is added, so that the
    compiler can vectorise both.
    """
    rows, to, gathers = _rows(source), _Adjoints({}, {}), not s.padded and _direct(s, flux, source, by)
    body = [*_openness(s), f"const double volume = {_volume(s)};"]
    for a, high in product(range(s.dim), (True, False)):
        place = _face(s, a, high)
        code = Code(place, prefix=f"f{a}{int(high)}_")
        across = _shifted(s, _step(s, a, 1 if high else -1))
        seeds = []
        for index, part in components(flux).items():
            if index[-1] == a:
                r = _row(index[:-1])
                weight = f"L[P * {rows} + {r}]" + (f" - L[({across}) * {rows} + {r}]" if gathers else "")
                seeds.append((part, code._store(f"{'' if high else '-'}({weight}) * volume * ({_face_scale(s, a)})")))
        # A face that gathers is seen from both sides; for numbers it counts once.
        _reverse(s, code, place, seeds, by, f"{_open(s, a, high)} != 0.0", to, numbers=high or not gathers)
        body += code.lines
    code = Code(_point(s), prefix="s_")
    seeds = [
        (part, code._store(f"L[P * {rows} + {_row(index)}] * volume")) for index, part in components(source).items()
    ]
    _reverse(s, code, _point(s), seeds, by, "mask[P]" if s.masked else "", to)
    body += code.lines
    body += [f"q{k} += {' + '.join(terms)};" for k, terms in to.numbers.items()]
    counts = [_size(q) for q in by if not isinstance(q, ufl.Constant)]
    buffers: list[str] = []
    adding: list[str] = []
    if gathers:
        for k, count in enumerate(counts):
            for c in range(count):
                terms = to.grids.get((k, (0,) * s.dim, c), [])
                if plain:
                    body.append(f"out{k}[({_flat_point(s)}) * {count} + {c}] = {' '.join(terms) or '0.0'};")
                elif terms:
                    body.append(f"out{k}[P * {count} + {c}] += {' '.join(terms)};")
    else:
        additions: dict[tuple[int, Offset], list[str]] = {}
        for n, ((k, offset, c), terms) in enumerate(to.grids.items()):
            # Buffers whose addresses differ by 4 KiB would stand in each other's way.
            buffers.append(f"double b{n}[{_STRIP + 8}];")
            body.append(f"b{n}[i0 - s0] = {' '.join(terms)};")
            additions.setdefault((k, offset), []).append(f"o[i * {counts[k]} + {c}] += b{n}[i];")
        for (k, offset), sums in additions.items():
            start = _shifted(s, offset).replace("P", "row + s0")
            adding += [
                f"{{ double *restrict o = out{k} + ({start}) * {counts[k]};",
                f"for (long i = 0; i < s1 - s0; ++i) {{ {' '.join(sums)} }} }}",
            ]
    lines = [
        "static void reverse_one(const grid_t *g, const double *restrict U, const double *restrict L,",
        "                        double *const *outs, double *restrict sums) {",
        *_declare(s),
        *(f"double *restrict out{k} = outs[{k}];" for k in range(len(counts))),
        *buffers,
        *(f"double q{k} = 0.0;" for k in to.numbers),
        *_loop(s, body, 0 if gathers else _STRIP, adding),
        *(f"sums[{k}] += q{k};" for k in to.numbers),
        "}",
        "void reverse(const grid_t *g, const double *U, const double *L, double *const *outs, double *sums) {",
        "reverse_one(g, U, L, outs, sums); }",
        "void reverse_many(const grid_t *g, long count, long nU, long nL, long nout, const double *U, const double *L,",
        "                  double *const *outs, double *sums) {",
        f"double *moved[{max(1, len(counts))}];",
        "for (long b = 0; b < count; ++b) {",
        f"for (int k = 0; k < {len(counts)}; ++k) moved[k] = outs[k] + b * nout;",
        "reverse_one(g, U + b * nU, L + b * nL, moved, sums); } }",
    ]
    return ReverseKernel(_HEADER + "\n".join(lines) + "\n", gathers)


def reverse_evaluator_source(s: Symbols, expression: Expr, by: Sequence[Expr]) -> str:
    """Return C source of ``reverse(g, U, count, index, xs, normal, L, outs, sums)``, evaluator_source's transposed.

    ``L`` are weights of shape (count, size); the rest as of :func:`evaluator_source` and :func:`reverse_source`.
    """
    to, place = _Adjoints({}, {}), _listed_place(s)
    code, shape = Code(place), expression.ufl_shape
    seeds = [(part, f"L[f * {_size(expression)} + {_flat(i, shape)}]") for i, part in components(expression).items()]
    _reverse(s, code, place, seeds, by, "", to)
    counts = [_size(q) for q in by if not isinstance(q, ufl.Constant)]
    body = [*code.lines]
    for (k, offset, c), terms in to.grids.items():
        body.append(f"outs[{k}][({_shifted(s, offset)}) * {counts[k]} + {c}] += {' '.join(terms)};")
    body += [f"sums[{k}] += {' + '.join(terms)};" for k, terms in to.numbers.items()]
    lines = [
        "void reverse(const grid_t *g, const double *restrict U, long count, const long *index, const double *xs,",
        "             const double *normal, const double *restrict L, double *const *outs, double *restrict sums) {",
        *_declare(s),
        *_listed(s, body),
        "}",
    ]
    return _HEADER + "\n".join(lines) + "\n"


def _listed_places(s: Symbols) -> dict[str, _Place]:
    """Places about listed points ``P``, by name: themselves, and the faces ahead of and behind them across an axis."""
    sides = {f"{'high' if high else 'low'}{a}": _face(s, a, high) for a, high in product(range(s.dim), (True, False))}
    return {"point": _point(s), **sides}


def _listed_function(s: Symbols, head: str, body: list[str]) -> list[str]:
    """C lines of a function over listed points whose coordinates are those of the grid."""
    x = [f"const double x{a} = g->lower[{a}] + g->h[{a}] * (double)I{a}; (void)x{a};" for a in range(s.dim)]
    return [f"void {head} {{", *_declare(s), *_listed(s, [*x, *body]), "}"]


def arguments_source(s: Symbols, argument: Expr) -> str:
    """Return C source of functions that evaluate a vector at the points, or at faces beside them.

    They are ``point``, ``high0``, ``low0``, ``high1``, ..., each called as ``(g, U, count, index, out)``; ``index`` are
    ghosted indices of owned points, the face beside each of which is open, and ``out`` has shape (count, k).
    """
    lines, k = [], _size(argument)
    for name, place in _listed_places(s).items():
        code = Code(place)
        values = {index[0]: code.emit(part) for index, part in components(argument).items()}
        head = f"{name}(const grid_t *g, const double *restrict U, long count, const long *index, double *restrict out)"
        store = [f"out[f * {k} + {j}] = {values.get(j, '0.0')};" for j in range(k)]
        lines += _listed_function(s, head, [*code.lines, *store])
    return _HEADER + "\n".join(lines) + "\n"


def cotangents_source(s: Symbols, flux: Expr, source: Expr, by: Sequence[Expr]) -> str:
    """Return C source of functions that differentiate weighted rates by values of placed symbols, place by place.

    They are ``point``, ``high0``, ``high1``, ..., each called as ``(g, U, L, count, index, outs)``: with ``L`` and the
    rates as in :func:`reverse_source` and listed places as in :func:`arguments_source`, they write the derivatives by
    the values there of the k-th symbol in ``by`` to ``outs[k]``, shape (count, its size). Values of which nothing
    depends are left alone.
    """
    lines, rows = [], _rows(source)
    for name, place in _listed_places(s).items():
        if name.startswith("low"):
            continue
        code, a = Code(place), place.axis
        weight, terms = f"L[P * {rows} + {{0}}] * {_volume(s)}", components(source)
        if a is not None:
            across = _shifted(s, _step(s, a, 1))
            weight = f"(L[P * {rows} + {{0}}] - L[({across}) * {rows} + {{0}}]) * {_volume(s)} * ({_face_scale(s, a)})"
            terms = {index[:-1]: part for index, part in components(flux).items() if index[-1] == a}
        seeds = [(part, code._store(weight.format(_row(index)))) for index, part in terms.items()]
        found = code.reverse(seeds, set(by).__contains__)
        store = []
        for leaf, bar in found.items():
            symbol, component = leaf_of(leaf) or (leaf, ())
            at = f"f * {_size(symbol)} + {_flat(component, symbol.ufl_shape)}"
            store.append(f"outs[{list(by).index(symbol)}][{at}] = {bar};")
        head = f"{name}(const grid_t *g, const double *restrict U, const double *restrict L, long count,"
        lines += _listed_function(s, f"{head} const long *index, double *const *outs)", [*code.lines, *store])
    return _HEADER + "\n".join(lines) + "\n"
