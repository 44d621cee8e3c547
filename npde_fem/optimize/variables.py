"""The controls of a reduced functional as one vector of variables, scaled, spread over the ranks.

Variables are y = m / s for the values m of the controls. Of a number the scale s is a typical size; of a field with
typical size c (its root mean square) on a domain of measure V, with lumped mass w,

    s_i = c sqrt(V / w_i),   so that   sum_i y_i^2 = 1/V int (m / c)^2 dx.

The plain inner product of y is then the L2 product of fields, whatever the mesh, and bounds stay bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from npde_fem.discretize.grid import GridFunction
from npde_fem.discretize.inner import inner_product, lumped_mass, lumped_mass_on, riesz_solver
from npde_fem.discretize.real import values_in
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.optimize.values import as_array, is_function, with_values
from npde_fem.parallel import alike
from npde_fem.parameter import Parameter
from npde_fem.taped import Taped

import numpy as np
from mpi4py import MPI
from petsc4py import PETSc
from pyadjoint import AdjFloat, Control
from pyadjoint.overloaded_type import OverloadedType

__all__ = ["Inner", "Variables", "Vector", "name_of", "number_scale", "typical_size", "values_of"]

Inner = Literal["L2", "l2", "H1"]


def name_of(control: OverloadedType, index: int) -> str:
    """Return a control's name; one without a name is called after its place."""
    return str(getattr(control, "name", f"control {index}"))


def is_spread(control: OverloadedType) -> bool:
    """Whether every rank holds values of its own."""
    return control._ad_spread if isinstance(control, Taped) else is_function(control)


def values_of(thing: Any) -> Array:
    """Return a copy of the flat values that this rank owns of a control, or of a derivative by one."""
    return as_array(thing).ravel()


def _fill(function: Any, values: Array) -> None:
    function.x.array[: values.size] = values
    function.x.scatter_forward()


def _comm_of(control: OverloadedType) -> MPI.Comm:
    return control._ad_comm if isinstance(control, Taped) else control.function_space.mesh.comm


@dataclass
class _Slot:
    """A control's place among this rank's variables: numbers have it on rank 0."""

    name: str
    control: OverloadedType
    place: slice
    scale: Array
    lower: Array
    upper: Array


class _Block(NamedTuple):
    """An inner product among some of the variables that is more than the plain one."""

    place: slice
    matrix: PETSc.Mat
    solver: PETSc.KSP
    x: PETSc.Vec
    b: PETSc.Vec


class Vector:
    """Scaled variables, each rank's own, with bounds and an inner product; methods are collective.

    Attributes
    ----------
    comm
        Communicator.
    inner
        Name of the inner product.
    start
        This rank's variables at the start.
    lower, upper
        Their bounds, infinite where there is none.
    scale
        Values by variables.
    """

    def __init__(self, comm: MPI.Comm, inner: Inner) -> None:
        self.comm, self.inner = comm, inner
        self._blocks: list[_Block] = []

    def _set(self, starts: Sequence[Array], scales: Sequence[Array], bounds: Sequence[tuple[Array, Array]]) -> None:
        """Take the variables of each thing that has some: values at the start, scales, and bounds of values."""
        self.scale = np.concatenate(scales)
        self.start = np.concatenate(starts) / self.scale
        self.lower, self.upper = (np.concatenate(ends) / self.scale for ends in zip(*bounds, strict=True))
        parts = np.split(self.start, np.cumsum([len(values) for values in starts])[:-1])
        sizes = [self.comm.allreduce(float(np.abs(y).max(initial=0.0)), op=MPI.MAX) or 1.0 for y in parts]
        # Rounding may leave a variable a little before its bound.
        self._near = np.concatenate([np.full(y.size, 1e-10 * size) for y, size in zip(parts, sizes, strict=True)])

    def _prefer_smooth(
        self, place: slice, home: Semidiscrete, field: Parameter, volume: float, length: float | None
    ) -> None:
        """Let the variables of a field on a problem have the inner product of H1."""
        size = int(np.prod(field.ufl_shape, dtype=int))
        reach = length or 0.1 * (volume / size) ** (1 / home.dim)
        matrix = inner_product(home, field, "H1", reach)
        matrix.scale(1 / volume)
        self._blocks.append(_Block(place, matrix, riesz_solver(matrix), *matrix.createVecs()))

    @property
    def bounded(self) -> bool:
        """Whether any variable has a bound."""
        return bool(self.comm.allreduce(bool(np.isfinite([self.lower, self.upper]).any()), op=MPI.LOR))

    def inner_times(self, y: Array, out: Array) -> None:
        """Write what turns a direction into a derivative: the matrix of the inner product, times y."""
        out[:] = y
        for place, matrix, _, x, b in self._blocks:
            x.array[:] = y[place]
            matrix.mult(x, b)
            out[place] = values_in(b)

    def riesz(self, g: Array, out: Array) -> None:
        """Write what turns a derivative into a direction: the solution with the matrix of the inner product."""
        out[:] = g
        for place, _, ksp, x, b in self._blocks:
            b.array[:] = g[place]
            ksp.solve(b, x)
            out[place] = values_in(x)

    def projected(self, y: Array, g: Array) -> Array:
        """Return the derivative without what the bounds forbid."""
        blocked = ((y <= self.lower + self._near) & (g > 0)) | ((y >= self.upper - self._near) & (g < 0))
        return np.where(blocked, 0.0, g)

    def norm(self, g: Array) -> float:
        """Return the norm of a derivative in the inner product."""
        direction = np.empty_like(g)
        self.riesz(g, direction)
        return float(np.sqrt(self.comm.allreduce(float(g @ direction))))

    def same(self, a: Array, b: Array) -> bool:
        """Whether two vectors are equal on all ranks."""
        return bool(self.comm.allreduce(np.array_equal(a, b), op=MPI.LAND))

    def destroy(self) -> None:
        """Free the PETSc objects."""
        for block in self._blocks:
            for thing in block[1:]:
                thing.destroy()
        self._blocks = []


class Variables(Vector):
    """The controls as one vector; methods are collective.

    Parameters
    ----------
    controls
        Controls of pyadjoint: of Parameters, GridFunctions, functions of dolfinx_adjoint and AdjFloats.
    comm
        Communicator; by default that of the first field, else ``MPI.COMM_WORLD``.
    inner
        ``"L2"``: as the module describes; ``"l2"``: y = m; ``"H1"``: y = m / c, with the inner product
        ``1/V int a b + length^2 grad a . grad b dx`` (see :meth:`riesz`).
    length
        The length of H1, by default a tenth of V^(1/d).
    bounds
        ``(lower, upper)`` by the names of controls, each a number, an array of the owned values, or None. A Parameter
        that is not named has its own bounds.

    Attributes
    ----------
    comm
        Communicator.
    start
        This rank's variables at the values that the tape has.
    lower, upper
        Their bounds, infinite where there is none.
    scale
        Values of controls by variables.

    Raises
    ------
    TypeError, ValueError
        If there are no controls, one stands there twice or is of another type, bounds cross, the start is outside of
        them, or an inner product does not exist.
    """

    def __init__(
        self,
        controls: Sequence[Control],
        comm: MPI.Comm | None = None,
        *,
        inner: Inner = "L2",
        length: float | None = None,
        bounds: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> None:
        if inner not in ("L2", "l2", "H1"):
            raise ValueError(f'inner: "L2", "l2" or "H1" allowed, {inner!r} given')
        if not controls:
            raise ValueError("controls: none given; at least one is needed")
        fields = [c.control for c in controls if is_spread(c.control)]
        super().__init__(comm or (_comm_of(fields[0]) if fields else MPI.COMM_WORLD), inner)
        self._slots: list[_Slot] = []
        starts: list[Array] = []
        given = dict(bounds or {})
        names = [name_of(c.control, i) for i, c in enumerate(controls)]
        if unknown := set(given) - set(names):
            raise ValueError(f"bounds: {sorted(unknown)} given; the controls are {names}")
        if len({id(c.block_variable) for c in controls}) < len(names) or len(set(names)) < len(names):
            raise ValueError(f"controls: {names} given; each may stand there once, and names must differ")
        first = 0
        for name, control in zip(names, controls, strict=True):
            thing = control.control
            if not isinstance(thing, Taped | AdjFloat) and not is_function(thing):
                raise TypeError(
                    f"control {name!r} is a {type(thing).__name__}; a Parameter, GridFunction, AdjFloat or function of "
                    "dolfinx_adjoint allowed"
                )
            values = values_of(control.tape_value())
            lower, upper = self._limits(name, thing, given.get(name), values)
            size = values.size if is_spread(thing) or self.comm.rank == 0 else 0
            place = slice(first, first + size)
            first += size
            if inner == "l2":
                scale = np.ones(values.size)
            elif is_spread(thing):
                scale = self._field_scale(thing, values, upper - lower, place, length)
            else:
                scale = number_scale(values, upper - lower)
            self._slots.append(_Slot(name, thing, place, scale[:size], lower[:size], upper[:size]))
            starts.append(values[:size])
        self._set(starts, [s.scale for s in self._slots], [(s.lower, s.upper) for s in self._slots])

    def _limits(self, name: str, thing: OverloadedType, pair: Any, values: Array) -> tuple[Array, Array]:
        """Return a control's bounds as arrays, infinite where there is none."""
        with alike(self.comm):
            pair = getattr(thing, "bounds", (None, None)) if pair is None else pair
            try:
                lower, upper = (
                    np.array(np.broadcast_to(end if b is None else values_of_bound(b), values.shape))
                    for b, end in zip(pair, (-np.inf, np.inf), strict=True)
                )
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"bounds of {name!r}: a pair of numbers, arrays of {values.size} values, or None, allowed; "
                    f"{pair!r} given"
                ) from error
            if np.any(lower > upper) or np.isnan(lower).any() or np.isnan(upper).any():
                raise ValueError(f"bounds of {name!r} cross: lower {lower} must not be above upper {upper}")
            if np.any(values < lower) or np.any(values > upper):
                raise ValueError(
                    f"control {name!r} starts outside of its bounds: values from {values.min():g} to {values.max():g}"
                )
        return lower, upper

    def _field_scale(
        self, thing: OverloadedType, values: Array, width: Array, place: slice, length: float | None
    ) -> Array:
        weights = _weights(thing)
        volume, typical = typical_size(self.comm, weights, values, width)
        if self.inner == "L2":
            return typical * np.sqrt(volume / weights)
        if not isinstance(thing, Parameter):
            raise ValueError(
                f'inner="H1": for fields that are Parameters only, not for a {type(thing).__name__}; "L2" allowed'
            )
        self._prefer_smooth(place, thing.home, thing, volume, length)
        return np.full(values.size, typical)

    @property
    def controls(self) -> list[OverloadedType]:
        """The controls."""
        return [s.control for s in self._slots]

    def physical(self, y: Array) -> list[Array]:
        """Return the values of every control, within the bounds; numbers on every rank."""
        result = []
        for s in self._slots:
            values = np.clip(y[s.place] * s.scale, s.lower, s.upper)
            result.append(values if is_spread(s.control) else self.comm.bcast(values, root=0))
        return result

    def to_controls(self, y: Array) -> list[OverloadedType]:
        """Return the value of every control, as a reduced functional takes them."""
        return [with_values(s.control, v) for s, v in zip(self._slots, self.physical(y), strict=True)]

    def direction(self, v: Array) -> list[OverloadedType]:
        """Return a direction of every control."""
        result = []
        for s in self._slots:
            values = v[s.place] * s.scale
            values = values if is_spread(s.control) else self.comm.bcast(values, root=0)
            result.append(with_values(s.control, values))
        return result

    def derivative(self, derivatives: Sequence[Any]) -> Array:
        """Return derivatives by the controls as derivatives by this rank's variables."""
        return np.concatenate(
            [values_of(d)[: s.scale.size] * s.scale for s, d in zip(self._slots, derivatives, strict=True)]
        )

    def assign(self, y: Array) -> None:
        """Give the controls themselves these values."""
        for s, values in zip(self._slots, self.physical(y), strict=True):
            if isinstance(s.control, Taped):
                s.control._ad_assign(values.reshape(s.control._ad_shape()))
                s.control.leave_tape(values)
            elif is_function(s.control):
                _fill(s.control, values)

    def named(self, y: Array) -> dict[str, Any]:
        """Return the values by name: floats, arrays, and of fields the flat values that this rank owns."""
        named: dict[str, Any] = {}
        for s, values in zip(self._slots, self.physical(y), strict=True):
            shape = s.control._ad_shape() if isinstance(s.control, Taped) else values.shape
            scalar = shape == () or isinstance(s.control, AdjFloat)
            named[s.name] = float(values[0]) if scalar else values.reshape(shape)
        return named


def values_of_bound(bound: Any) -> Array:
    """Return a bound's value, or flat values."""
    return values_of(bound) if isinstance(bound, OverloadedType) else np.asarray(bound, dtype=np.float64).ravel()


def typical_size(comm: MPI.Comm, weights: Array, values: Array, width: Array) -> tuple[float, float]:
    """Return the measure of a field's domain and the field's typical size; ``width`` is that of its bounds."""
    volume, square = comm.allreduce(np.array([weights.sum(), weights @ values**2]))
    typical = float(np.sqrt(square / volume))
    if typical == 0:
        widest = width[np.isfinite(width)].max(initial=0.0)
        typical = comm.allreduce(float(widest), op=MPI.MAX) or 1.0
    return float(volume), typical


def number_scale(values: Array, width: Array) -> Array:
    """Return typical sizes of numbers: their own, else the width of their bounds, else 1."""
    scale = np.abs(values)
    scale = np.where((scale == 0) & np.isfinite(width), width, scale)
    return np.where(scale == 0, 1.0, scale)


def _weights(thing: Any) -> Array:
    """Return the lumped mass of a field's values."""
    if isinstance(thing, Parameter):
        return lumped_mass(thing.home, thing)
    if isinstance(thing, GridFunction):
        return np.repeat(thing.layout.control_volumes(), thing.components)
    return lumped_mass_on(thing.function_space)
