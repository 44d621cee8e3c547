"""The corridor between the discretisations and the solvers: ``M_A u'' + M u' = R(u, t)``, ``u = g(t)`` on some dofs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from npde_fem.equation import NPDE, Initial
from npde_fem.parameter import Parameter

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from petsc4py import PETSc

if TYPE_CHECKING:
    from npde_fem.discretize.linearised import Linearised
    from npde_fem.discretize.nonlocal_operator import NonlocalOperator

__all__ = ["SINGULAR", "Array", "Part", "Semidiscrete", "Term"]

Array = npt.NDArray[np.float64]

Part = Literal["all", "flux", "source"]
"""Which terms of the equation: everything; the flux with its boundary terms; or the source alone."""

Term = Literal["all", "flux", "source", "mass", "inertia", "flow"]
"""A part of the rate R; a mass matrix times the state, the damping's M u or the inertia's M_A u; or the flow of the
source at the nodes, N Phi(u)."""

SINGULAR: dict[Term, str] = {
    "mass": "damping is singular: explicit schemes cannot be used, take an implicit one",
    "inertia": "inertia is singular: an equation of second order in time needs one that can be inverted everywhere",
}
"""What to say where the mass matrix of a term cannot be inverted."""


class Semidiscrete(ABC):
    """An equation on a mesh or grid: ``M u' = R(u, t)``, or ``0 = R(u)`` where the equation has no time derivative.

    With inertia it is ``M_A u'' + M u' = R(u, t)``. M is the mass matrix of the damping, that of absorbing boundaries
    included, and M_A that of the inertia.

    Two layouts of a state are used. *Values* are the plain float64 array of the ``n_owned`` dofs this rank owns.
    A *state* holds values together with whatever ghosts the discretisation keeps; solvers make states by
    :meth:`new_state`, combine them by numpy arithmetic, and leave their inside alone. ``R`` and ``M`` are
    integrated quantities (against test functions, over control volumes), so both discretisations scale alike.

    Attributes
    ----------
    comm
        Communicator all methods are collective on.
    equation
        The NPDE.
    parameters
        Its parameters by name.
    n_owned
        Dofs this rank owns.
    unknowns
        Dofs of all ranks that are not constrained.
    constrained
        Owned dofs whose value is prescribed (int32, ascending).
    warned_of_waves
        Whether a solve has warned that the mesh does not resolve the equation's waves.
    """

    method: ClassVar[str]
    comm: MPI.Comm
    equation: NPDE
    parameters: dict[str, Parameter]
    dim: int
    n_owned: int
    n_global: int
    components: int
    unknowns: int
    constrained: npt.NDArray[np.int32]
    warned_of_waves: bool = False

    @abstractmethod
    def with_equation(self, equation: NPDE) -> Semidiscrete:
        """Return another equation on the same space or grid with the same boundary conditions (collective)."""

    @property
    def stationary(self) -> bool:
        """Whether the equation has no time derivative: damping and inertia both vanish."""
        return not self.damped and not self.second_order

    @property
    @abstractmethod
    def second_order(self) -> bool:
        """Whether the equation has inertia: a second derivative in time."""

    @property
    @abstractmethod
    def damped(self) -> bool:
        """Whether M is not zero by the form of the equation."""

    @abstractmethod
    def update(self) -> None:
        """Take over the current values of the parameters; solvers call it once, before they begin."""

    @abstractmethod
    def field_values(self, parameter: Parameter | str) -> Array:
        """Return a copy of the values of a field parameter that this rank owns, flat."""

    @abstractmethod
    def field_size(self, parameter: Parameter | str) -> int:
        """Return how many values of a field parameter this rank owns."""

    @abstractmethod
    def set_field(self, parameter: Parameter | str, values: Array) -> None:
        """Set a field parameter from the flat values that this rank owns, within its bounds (collective)."""

    @abstractmethod
    def put_field(self, parameter: Parameter | str, values: Array) -> None:
        """Do as :meth:`set_field`, without a look at bounds or at pyadjoint's tape (collective)."""

    def holding(self, values: Mapping[str, Array]) -> AbstractContextManager[None]:
        """Let parameters have other values meanwhile, without a look at bounds or at pyadjoint's tape (collective).

        Parameters
        ----------
        values
            By name: a number's array, or the flat values of a field that this rank owns.
        """
        return _Holding(self, values) if values else nullcontext()

    @abstractmethod
    def gram_times(self, values: Array, out: Array) -> None:
        """Write G values into ``out``, where ``v . G u`` is the L2 product of states over the domain.

        G is the mass matrix of the state's space without damping (FEM), or the control volumes (FD).
        """

    @abstractmethod
    def gram_matrix(self) -> PETSc.Mat:
        """Return a new matrix, G of :meth:`gram_times`."""

    @property
    @abstractmethod
    def data_functions(self) -> list[Any]:
        """Functions in the equation and its boundary data that are no parameters: a user's DOLFINx functions."""

    @abstractmethod
    def has_layout(self, function: Any, parameter: Parameter | None = None) -> bool:
        """Whether a function has the layout of the state, or of a field parameter: the same dofs in the same order."""

    def riesz(self, parameter: Parameter, values: Array, kind: Literal["L2", "H1"]) -> Array:
        """Return the values of a field whose inner product with any other is the l2 product of ``values`` with it."""
        from npde_fem.discretize.inner import riesz  # which knows the discretisations, and they this module

        return riesz(self, parameter, values, kind)

    @abstractmethod
    def initial(self, u0: Any, t: float = 0.0, label: str = "u0") -> Array:
        """Return the values of initial data: a number, one number a component, a callable, an array or a function.

        A callable is numpy's, of coordinates (3, n); one in UFL stands in an :class:`~npde_fem.Initial`, and is taken
        at time ``t``. Errors name the data by ``label``.
        """

    @abstractmethod
    def check_diffusion(self, t: float, values: Array) -> None:
        """Raise ValueError if dF/d(grad u) of some component has a negative eigenvalue at this state."""

    @abstractmethod
    def new_state(self) -> Array:
        """Return a new state, zero."""

    @abstractmethod
    def load(self, values: Array, state: Array) -> None:
        """Copy values into a state and bring its ghosts up to date."""

    @abstractmethod
    def store(self, state: Array, values: Array) -> None:
        """Copy the owned dofs of a state into values."""

    @abstractmethod
    def rate(self, t: float, state: Array, out: Array, part: Part = "all") -> None:
        """Write ``R(u, t)``, or a part of it, into the values ``out``; zero on constrained dofs."""

    @abstractmethod
    def source_times(self, values: Array, out: Array) -> None:
        """Write what a source with given values at the nodes adds to R into ``out``: G values, G the mass matrix of R.

        G is symmetric: that of the state's space without damping, lumped if mass matrices are (FEM), or the control
        volumes (FD).
        """

    @cached_property
    def nonlocal_operator(self) -> NonlocalOperator | None:
        """The nonlocal term at the nodes, None if the equation has none (collective when first asked for)."""
        from npde_fem.discretize.nonlocal_operator import nonlocal_operator  # which knows the discretisations

        return nonlocal_operator(self)

    def add_nonlocal(self, term: Term, values: Array, out: Array, transposed: bool = False) -> None:
        """Add ``G N values``, the share of the nonlocal term in a part of R, or ``N^T G values``, to ``out``.

        Collective; ``values`` are those of all owned dofs, and constrained ones of ``out`` have no meaning.
        """
        operator = self.nonlocal_operator
        if operator is None or term not in ("all", "source"):
            return
        one, other = self._for_nonlocal
        if transposed:
            self.source_times(values, one)
            operator.transpose(one, other)
        else:
            operator.apply(values, one)
            self.source_times(one, other)
        out += other

    @cached_property
    def _for_nonlocal(self) -> Array:
        return np.zeros((2, self.n_owned))

    def refuse_nonlocal(self, what: str) -> None:
        """Raise ValueError if the equation has a nonlocal term, which ``what`` does not take into account."""
        if self.equation.nonlocal_term is not None:
            raise ValueError(
                f"{what}: equation {self.equation.name!r} has a nonlocal term, which enters explicit steps only; "
                "ForwardEuler(), RK4(), Lie() with implicit=False, and with inertia Leapfrog(), allowed"
            )

    @property
    @abstractmethod
    def mass_is_diagonal(self) -> bool:
        """Whether M is a diagonal matrix, by its form or by the parameters' values at the last update."""

    @abstractmethod
    def mass_times(
        self, values: Array, out: Array, transposed: bool = False, damping: float = 1.0, inertia: float = 0.0
    ) -> None:
        """Write ``(damping M + inertia M_A) values``, or the product with the transpose, into ``out``."""

    @abstractmethod
    def solve_mass(
        self, values: Array, out: Array, transposed: bool = False, damping: float = 1.0, inertia: float = 0.0
    ) -> bool:
        """Write the solution of ``(damping M + inertia M_A) out = values`` (or of the transpose's) into ``out``.

        Rows and columns of constrained dofs are the identity's. ``out`` may be ``values``. Returns False if NaN or
        infinity is met. Weights that differ from those of the last call by round-off count as the same.

        Raises
        ------
        ValueError
            If the matrix is singular at some place.
        """

    def accelerate(self, t: float, state: Array, v: Array, factor: float, a: Array) -> bool:
        """Solve ``M_A a + M (v + factor a) = R(u, t)`` for the values a, and add ``factor a`` to the values v.

        On constrained dofs a holds the prescribed acceleration, which the others feel through the mass matrices.
        Returns whether this rank's result is finite.

        Raises
        ------
        ValueError
            If the inertia is singular.
        """
        c, (right, work, fixed) = self.constrained, self._for_balance
        self.rate(t, state, right)
        if self.damped:
            self.mass_times(v, work)
            right -= work
        prescribed = a[c]
        if self.unknowns < self.n_global:
            fixed[c] = prescribed
            self.mass_times(fixed, work, False, factor, 1.0)
            right -= work
            right[c] = 0.0
        good = self.solve_mass(right, a, False, factor, 1.0)
        a[c] = prescribed
        np.multiply(a, factor, out=work)
        v += work
        return good

    @cached_property
    def _for_balance(self) -> Array:
        return np.zeros((3, self.n_owned))

    @abstractmethod
    def advance(self, t: float, state: Array, base: Array, step: float, t_out: float, out: Array) -> bool:
        """Write the state ``base + step M^-1 R(u, t)`` into ``out`` (neither ``state`` nor ``base`` unless noted).

        Constrained dofs of ``out`` get their values at time ``t_out``, with their effect on the others through
        ``M``; ghosts are brought up to date. Returns whether this rank's result is finite. ``base`` may be
        ``state``.
        """

    @abstractmethod
    def constrain(self, t: float, state: Array) -> None:
        """Set the constrained dofs of a state to their values at time ``t``, and update its ghosts."""

    @property
    @abstractmethod
    def flow_data(self) -> Any:
        """The equation's flow in UFL on the mesh or grid, its parameters bound.

        Raises
        ------
        TypeError, ValueError
            If the equation has none, or it is not of the state's shape.
        """

    def _meet_flow(self) -> None:
        """Make the parameters of the flow known, which need not occur elsewhere: whoever takes controls looks here."""
        if self.equation.flow is not None:
            _ = self.flow_data

    @abstractmethod
    def flow(self, t: float, step: float, state: Array, out: Array) -> None:
        """Write the equation's flow over ``step``, begun at ``t``, of a state at each node into the values ``out``."""

    @property
    @abstractmethod
    def nodal_weights(self) -> Array:
        """Weights N, positive, one a dof that this rank owns, with which the term "flow" is N Phi(u)."""

    @abstractmethod
    def prescribe(self, t: float, values: Array, order: int = 0) -> None:
        """Set the constrained dofs of values to their data at time ``t``, or to its first or second time derivative."""

    @abstractmethod
    def new_matrix(self, *, whole: bool = False) -> PETSc.Mat:
        """Return a new matrix with the sparsity of the Jacobian, or of the whole one (see :meth:`jacobian`)."""

    @abstractmethod
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
        """Assemble ``mass_factor M + inertia_factor M_A - rate_factor dR/du``.

        Rows and columns of constrained dofs are the identity's, but of a ``whole`` Jacobian, for which the matrix must
        be made: that has the columns of all dofs, and the rows of constrained ones have no meaning.
        """

    @abstractmethod
    def varies(self, part: Part = "all") -> tuple[bool, bool]:
        """Whether ``dR/du`` depends on the state, and whether on time."""

    @property
    @abstractmethod
    def autonomous(self) -> bool:
        """Whether neither R(u, t) nor the prescribed data depend on time."""

    @property
    @abstractmethod
    def matrix_parameters(self) -> frozenset[str]:
        """Names of the parameters that dR/du or a mass matrix may depend on; the others enter as inhomogeneities."""

    def meet(self, initial: Sequence[Any], integrals: Sequence[Callable]) -> None:
        """Make the parameters that initial data and integrands bring known to the problem (collective)."""
        for data in initial:
            if isinstance(data, Initial):
                self.write_nodal(data.value)
        for function in integrals:
            self.write_integral(function)

    @abstractmethod
    def write_nodal(self, function: Callable) -> Any:
        """Write a UFL callable ``(x, t)`` of the state's shape on the mesh or grid, its parameters bound."""

    @abstractmethod
    def write_integral(self, function: Callable) -> Any:
        """Write a scalar UFL callable ``(u, x, t)`` on the mesh or grid, its parameters bound, to be integrated."""

    def linearised(self, controls: Sequence[Parameter]) -> Linearised:
        """Return the problem's terms, differentiable by the state and by some parameters; the same object each time.

        Raises
        ------
        TypeError, ValueError
            If a control is no Parameter, or does not occur in the problem.
        """
        if tuple(controls) not in self._linearised:
            self._linearised[tuple(controls)] = self._linearise(controls)
        return self._linearised[tuple(controls)]

    @cached_property
    def solvers(self) -> dict[tuple, Any]:
        """Solvers that are not in use, kept for the next solve of this problem (see ``solve.newton.Newton.borrow``)."""
        return {}

    @cached_property
    def _linearised(self) -> dict[tuple[Parameter, ...], Linearised]:
        return {}

    @abstractmethod
    def _linearise(self, controls: Sequence[Parameter]) -> Linearised:
        """Make what :meth:`linearised` returns."""

    @abstractmethod
    def function(self, values: Array, name: str | None = None, *, pairs: bool = False) -> Any:
        """Return values as the discretisation's own kind of function, complex if the state or the values are.

        With ``pairs`` a complex state becomes a real function of twice as many components.
        """

    @abstractmethod
    def refill(self, function: Any, values: Array) -> None:
        """Put values into a function that :meth:`function` made."""

    @abstractmethod
    def interpolate(self, function: Callable, t: float = 0.0) -> Array:
        """Return the values of a UFL callable ``(x, t)`` at the owned dofs."""

    @abstractmethod
    def error(self, values: Array, exact: Callable, t: float = 0.0) -> tuple[float, float]:
        """Return L2 norm and largest nodal value of ``u - exact`` (UFL callable ``(x, t)``) over all ranks.

        The L2 norm is that of the function, by quadrature of degree 2p + 3 (FEM), or that of the nodal values weighted
        by control volumes (FD).
        """

    @abstractmethod
    def total(self, values: Array) -> Array:
        """Return the integral of each component over the domain, shape ``(m,)``."""

    def points_a_wavelength(self) -> float:
        """Return the least number of nodes a wavelength, for an equation with ``waves`` (collective)."""
        shortest = float(np.max(self._waves_a_point(), initial=0.0))
        shortest = self.comm.allreduce(shortest, op=MPI.MAX)
        return 2 * np.pi / shortest if shortest else np.inf

    @abstractmethod
    def _waves_a_point(self) -> Array:
        """Return |k| h at places all over this rank: wavenumber times the distance of neighbouring nodes."""

    @abstractmethod
    def coordinates(self) -> Array:
        """Return where the owned nodes lie, shape ``(n_owned / m, 3)``."""


class _Holding:
    """Other values of parameters, meanwhile."""

    def __init__(self, problem: Semidiscrete, values: Mapping[str, Array]) -> None:
        self._problem, self._values, self._before = problem, values, {name: self._now(problem, name) for name in values}

    @staticmethod
    def _now(problem: Semidiscrete, name: str) -> Array:
        parameter = problem.parameters[name]
        # A number's array is never written to: another takes its place.
        return problem.field_values(name) if parameter.is_field else parameter.value

    def _put(self, values: Mapping[str, Array]) -> None:
        for name, value in values.items():
            parameter = self._problem.parameters[name]
            if parameter.is_field:
                self._problem.put_field(name, value)
            else:
                parameter._ad_assign(value)
        self._problem.update()

    def __enter__(self) -> None:
        try:
            self._put(self._values)
        except BaseException:
            self._put(self._before)
            raise

    def __exit__(self, *error: object) -> None:
        self._put(self._before)
