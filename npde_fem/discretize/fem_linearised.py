"""Derivatives of finite-element terms: UFL differentiates the weak forms, DOLFINx assembles them.

With the test function replaced by the adjoint lambda, a term T(u; theta; v) becomes a functional; its derivatives by u
and by theta are linear forms, assembled into vectors. A number is differentiated by as a function that is constant
over the mesh, so all numbers share one form and one pass over the cells.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from npde_fem.discretize.fem_networks import ByWeights, Direction, FEMNetworks
from npde_fem.discretize.linearised import Integral, Linearised, Nodal, checked_controls
from npde_fem.discretize.matrices import Assembler
from npde_fem.discretize.packing import Packed
from npde_fem.discretize.real import new_function
from npde_fem.discretize.scalar import lower
from npde_fem.discretize.semidiscrete import Array, Part, Term
from npde_fem.neural_terms import Weights
from npde_fem.parameter import Parameter

import basix.ufl
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem, la
from mpi4py import MPI
from ufl.core.expr import Expr

if TYPE_CHECKING:
    from npde_fem.discretize.fem import FEM

__all__ = ["FEMLinearised"]


class _Symbols:
    """The controls as UFL sees them: what is differentiated by, along which direction, tested by what.

    UFL differentiates by coefficients only, so each number has a stand-in, a coefficient that is constant in space.
    """

    def __init__(self, problem: FEM, controls: Sequence[Parameter]) -> None:
        mesh = problem.mesh
        self.networks: FEMNetworks = weakref.proxy(problem.networks)
        weights = [p for p in controls if isinstance(p, Weights)]
        self.along = {site: Direction(site) for site in self.networks.sites if site.network.weights in weights}
        self.fields = {p.name: problem.bound(p) for p in controls if p.is_field}
        self.numbers = {p.name: problem.bound(p) for p in controls if not (p.is_field or p in weights)}
        domain, cell = mesh.ufl_domain(), mesh.basix_cell()

        def constant_space(shape: tuple[int, ...]) -> ufl.FunctionSpace:
            return ufl.FunctionSpace(domain, basix.ufl.real_element(cell, value_shape=shape))

        self.stand_ins = {name: ufl.Coefficient(constant_space(c.ufl_shape)) for name, c in self.numbers.items()}
        self.field_directions = {name: new_function(f.function_space) for name, f in self.fields.items()}
        self.number_directions = {name: fem.Constant(mesh, np.zeros(c.ufl_shape)) for name, c in self.numbers.items()}
        self.sizes = {name: int(np.prod(c.ufl_shape, dtype=int)) for name, c in self.numbers.items()}
        self.number_space: fem.FunctionSpace | None = None
        if self.numbers:
            total = sum(self.sizes.values())
            element = basix.ufl.real_element(cell, value_shape=(total,) if total > 1 else ())
            self.number_space = fem.functionspace(mesh, element)

    def stand_in(self, expression: Any) -> Any:
        """Put the stand-ins in the place of the numbers."""
        return ufl.replace(expression, {c: self.stand_ins[name] for name, c in self.numbers.items()})

    def stand_back(self, expression: Any) -> Any:
        """Put the numbers back."""
        return ufl.replace(expression, {self.stand_ins[name]: c for name, c in self.numbers.items()})

    def along_directions(self) -> tuple[list[Any], list[Any]]:
        """The controls and their directions, in the same order."""
        what = [*self.fields.values(), *self.stand_ins.values()]
        directions = [*self.field_directions.values(), *self.number_directions.values()]
        return what, directions

    def derivative(self, form: ufl.Form, what: list[Any], tests: list[Any], weights: bool = False) -> ufl.Form | None:
        """Return the derivative of a form by coefficients, with the networks that follow them; None if it vanishes.

        Parameters
        ----------
        form
            The form.
        what, tests
            Coefficients, or stand-ins of numbers, and their directions.
        weights
            Whether the weights move along their directions too.
        """
        inputs = self.networks.inputs_along(
            lambda e: self.stand_back(lower(ufl.derivative(self.stand_in(e), what, tests)))
        )
        symbols, moves = self.networks.moves(form, inputs, self.along if weights else {})
        derived = ufl.derivative(self.stand_in(form), [*what, *symbols], [*tests, *moves])
        found = self.stand_back(ufl.algorithms.expand_derivatives(derived))
        return None if found.empty() else found

    def number_tests(self) -> list[Expr]:
        """A test function for each number, of its shape: the components of one function constant in space."""
        v = ufl.TestFunction(self.number_space)
        flat = [v] if v.ufl_shape == () else list(v)
        tests, first = [], 0
        for name, c in self.numbers.items():
            part = flat[first : first + self.sizes[name]]
            first += self.sizes[name]
            tests.append(
                part[0]
                if c.ufl_shape == ()
                else ufl.as_tensor(np.reshape(np.array(part, object), c.ufl_shape).tolist())
            )
        return tests


class _Collector:
    """The gradient as it is summed up: each rank's share, ghosts included, until :meth:`total`."""

    def __init__(self, comm: MPI.Comm, symbols: _Symbols) -> None:
        self._comm, self._symbols = comm, symbols
        self.fields = {
            name: la.vector(f.function_space.dofmap.index_map, f.function_space.dofmap.index_map_bs)
            for name, f in symbols.fields.items()
        }
        self.numbers = np.zeros(sum(symbols.sizes.values()))
        self._evaluators = {site.network.name: site.evaluator for site in symbols.along}

    def clear(self) -> None:
        self.numbers[:] = 0.0
        for evaluator in self._evaluators.values():
            evaluator.clear()
        for vector in self.fields.values():
            vector.array[:] = 0.0

    def total(self) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name, vector in self.fields.items():
            vector.scatter_reverse(la.InsertMode.add)
            owned = vector.index_map.size_local * vector.block_size
            found[name] = vector.array[:owned].copy()
            vector.array[owned:] = 0.0
        if self.numbers.size:
            summed, first = self._comm.allreduce(self.numbers), 0
            for name, c in self._symbols.numbers.items():
                size = self._symbols.sizes[name]
                found[name] = summed[first : first + size].reshape(c.ufl_shape).copy()
                first += size
        for name, evaluator in self._evaluators.items():
            found[name] = self._comm.allreduce(evaluator.gradient())
        return found


class _Functional:
    """A functional F(u; theta) with its derivatives, compiled when first asked for.

    ``second`` is F_u v + F_theta delta, a functional too.
    """

    def __init__(self, owner: FEMLinearised, form: ufl.Form | None) -> None:
        self._owner: FEMLinearised = _weak(owner)
        self._form = form

    @cached_property
    def second(self) -> _Functional:
        owner, symbols = self._owner, self._owner.symbols
        if self._form is None:
            return _Functional(owner, None)
        what, directions = symbols.along_directions()
        form = symbols.derivative(self._form, [owner.u, *what], [owner.direction, *directions], weights=True)
        return _Functional(owner, form)

    def _derivative(self, what: list[Any], tests: list[Any]) -> Packed | None:
        if self._form is None:
            return None
        form = self._owner.symbols.derivative(self._form, what, tests)
        return None if form is None else self._owner.compile(form)

    @cached_property
    def by_state(self) -> Packed | None:
        return self._derivative([self._owner.u], [ufl.TestFunction(self._owner.problem.space)])

    @cached_property
    def by_fields(self) -> dict[str, Packed | None]:
        return {
            name: self._derivative([f], [ufl.TestFunction(f.function_space)])
            for name, f in self._owner.symbols.fields.items()
        }

    @cached_property
    def by_numbers(self) -> Packed | None:
        symbols = self._owner.symbols
        if not symbols.numbers:
            return None
        return self._derivative(list(symbols.stand_ins.values()), symbols.number_tests())

    @cached_property
    def by_weights(self) -> list[ByWeights]:
        if self._form is None:
            return []
        along = self._owner.symbols.along
        return [ByWeights(self._owner.compile, self._form, direction) for direction in along.values()]

    @cached_property
    def itself(self) -> Packed | None:
        return None if self._form is None else self._owner.compile(self._form)

    def value(self) -> float:
        form = self.itself
        return 0.0 if form is None else float(self._owner.problem.comm.allreduce(form.scalar()))

    def pull(self, out: Array) -> None:
        self._owner.assemble(self.by_state, out)

    def collect(self) -> None:
        collector = self._owner.collector
        for name, form in self.by_fields.items():
            if form is not None:
                form.add_to(collector.fields[name].array)
        if self.by_numbers is not None:
            self.by_numbers.add_to(collector.numbers)
        for weights in self.by_weights:
            weights.collect()


def _weak(owner: FEMLinearised) -> FEMLinearised:
    """A reference to the owner that does not keep it alive: the owner keeps those that have it."""
    return owner if isinstance(owner, weakref.ProxyType) else weakref.proxy(owner)


class FEMLinearised(Linearised):
    """The terms of a :class:`~npde_fem.FEM`, differentiable."""

    problem: FEM

    def __init__(self, problem: FEM, controls: Sequence[Parameter]) -> None:
        # The problem owns this; a strong reference back would leave both, and what they hold of MPI, to the garbage
        # collector, which comes by at another time on each rank.
        self.problem = weakref.proxy(problem)
        self.controls = checked_controls(problem, controls)
        self.symbols = _Symbols(problem, self.controls)
        self.collector = _Collector(problem.comm, self.symbols)
        self.u = problem.state_function
        self.direction, self.adjoint = new_function(problem.space), new_function(problem.space)
        self._vector = la.vector(problem.space.dofmap.index_map, problem.space.dofmap.index_map_bs)
        self._work = np.zeros(problem.n_owned)
        self._functionals: dict[Term, _Functional] = {}
        self._prescribed: dict[int, FEMNodal | None] = {}
        self._tangents: dict[Term, Packed | None] = {}
        self._jacobians: dict[Part, Assembler | None] = {}

    def compile(self, form: ufl.Form) -> Packed:
        return self.problem.compile(form)

    def assemble(self, form: Packed | None, out: Array) -> None:
        """Assemble a linear form on the state's space into values, constrained dofs too."""
        if form is None:
            out[:] = 0.0
            return
        b = self._vector
        b.array[:] = 0.0
        form.add_to(b.array)
        if self.problem.comm.size > 1:
            b.scatter_reverse(la.InsertMode.add)
        out[:] = b.array[: self.problem.n_owned]

    # -- what depends on what --------------------------------------------------------------------------------

    @cached_property
    def with_damping(self) -> bool:
        return self._enters("mass")

    @cached_property
    def with_inertia(self) -> bool:
        return self._enters("inertia")

    def _enters(self, term: Term) -> bool:
        """Whether a control enters a term."""
        form = self.problem.residual(term)
        if form is None:
            return False
        controls = {*self.symbols.fields.values(), *self.symbols.numbers.values()}
        return not controls.isdisjoint([*form.coefficients(), *form.constants()])

    def _is_fixed(self, term: Term) -> bool:
        """Whether a term is a mass matrix, by which the state enters linearly, and no control enters it."""
        return (term == "mass" and not self.with_damping) or (term == "inertia" and not self.with_inertia)

    def _mass_times(self, term: Term, values: Array, out: Array, transposed: bool) -> None:
        weights = {"damping": float(term == "mass"), "inertia": float(term == "inertia")}
        self.problem.mass_times(values, out, transposed, **weights)

    def _depends(self, expression: Any) -> bool:
        terminals = set(ufl.corealg.traversal.traverse_unique_terminals(expression))
        return bool(terminals & {*self.symbols.fields.values(), *self.symbols.numbers.values()})

    def prescribed(self, order: int = 0) -> FEMNodal | None:
        if order not in self._prescribed:
            parts = [
                _NodalPart(self, data, space, dofs, value_dofs)
                for data, space, dofs, value_dofs in self.problem.prescribed_data(order)
                if self._depends(data)
            ]
            self._prescribed[order] = FEMNodal(parts) if parts else None
        return self._prescribed[order]

    def initial(self, function: Callable) -> FEMNodal:
        problem = self.problem
        dofs = np.arange(problem.n_owned, dtype=np.int32)
        data = problem.write_nodal(function)
        return FEMNodal([_NodalPart(self, data, problem.space, dofs, dofs)] if self._depends(data) else [])

    def integral(self, function: Callable) -> FEMIntegral:
        return FEMIntegral(self, self.problem.write_integral(function))

    # -- the point and the directions ------------------------------------------------------------------------

    def at(self, t: float, state: Array, direction: Array | None = None, step: float = 0.0) -> None:
        self.problem.set_state(t, state, step)
        if direction is not None:
            self._fill(self.direction, direction)

    def _fill(self, function: fem.Function, values: Array) -> None:
        function.x.array[: self.problem.n_owned] = values
        function.x.scatter_forward()

    def move(self, delta: Mapping[str, Array]) -> None:
        for name, function in self.symbols.field_directions.items():
            owned = function.function_space.dofmap.index_map.size_local * function.function_space.dofmap.index_map_bs
            function.x.array[:owned] = delta.get(name, 0.0)
            function.x.scatter_forward()
        for name, constant in self.symbols.number_directions.items():
            constant.value[...] = delta.get(name, 0.0)
        for site, direction in self.symbols.along.items():
            direction.move(delta.get(site.network.name, 0.0))

    # -- terms -----------------------------------------------------------------------------------------------

    def _functional(self, term: Term) -> _Functional:
        if term not in self._functionals:
            form = self.problem.residual(term)
            if form is not None:
                form = ufl.replace(form, {form.arguments()[0]: self.adjoint})
            self._functionals[term] = _Functional(self, form)
        return self._functionals[term]

    def _tangent_form(self, term: Term) -> Packed | None:
        if term not in self._tangents:
            form, symbols = self.problem.residual(term), self.symbols
            if form is not None:
                what, directions = symbols.along_directions()
                form = symbols.derivative(form, [self.u, *what], [self.direction, *directions], weights=True)
            self._tangents[term] = None if form is None else self.compile(form)
        return self._tangents[term]

    def jacobian_along(self, part: Part) -> Assembler | None:
        """Return what assembles the derivative of dR/du along the direction that controls move in; None if it is zero.

        It is taken at the point of :meth:`at`; its rows and columns are those of all dofs, constrained ones too.
        """
        if part not in self._jacobians:
            form, symbols = self.problem.residual(part), self.symbols
            if form is not None:
                form = symbols.derivative(form, [self.u], [ufl.TrialFunction(self.problem.space)])
            if form is not None:
                form = symbols.derivative(form, *symbols.along_directions(), weights=True)
            self._jacobians[part] = None if form is None else Assembler(self.problem.comm, self.compile(form))
        return self._jacobians[part]

    def tangent(self, term: Term, out: Array) -> None:
        if self._is_fixed(term):
            self._mass_times(term, self.direction.x.array[: self.problem.n_owned], out, transposed=False)
            return
        self.assemble(self._tangent_form(term), out)
        self.problem.add_nonlocal(term, self.direction.x.array[: self.problem.n_owned], out)
        if term not in ("mass", "inertia"):
            out[self.problem.constrained] = 0.0

    def pull(self, term: Term, adjoint: Array, out: Array) -> None:
        if term in ("mass", "inertia"):
            self._mass_times(term, adjoint, out, transposed=True)
            return
        self._fill(self.adjoint, adjoint)
        self._functional(term).pull(out)
        self.problem.add_nonlocal(term, adjoint, out, transposed=True)

    def collect(self, term: Term, adjoint: Array) -> None:
        if self._is_fixed(term):
            return
        self._fill(self.adjoint, adjoint)
        self._functional(term).collect()

    def pull_second(self, term: Term, adjoint: Array, out: Array) -> None:
        if self._is_fixed(term):
            out[:] = 0.0
            return
        self._fill(self.adjoint, adjoint)
        self._functional(term).second.pull(out)

    def collect_second(self, term: Term, adjoint: Array) -> None:
        if self._is_fixed(term):
            return
        self._fill(self.adjoint, adjoint)
        self._functional(term).second.collect()

    # -- the gradient ----------------------------------------------------------------------------------------

    def clear(self) -> None:
        self.collector.clear()

    def gradient(self) -> dict[str, Array]:
        return self.collector.total()


class FEMIntegral(Integral):
    """An integral over the mesh."""

    def __init__(self, owner: FEMLinearised, form: ufl.Form | None) -> None:
        self._weight = fem.Constant(owner.problem.mesh, 1.0)
        self._plain = _Functional(owner, form)
        self._weighted = _Functional(owner, None if form is None else self._weight * form)

    def value(self) -> float:
        return self._plain.value()

    def tangent(self) -> float:
        return self._plain.second.value()

    def pull(self, weight: float, out: Array) -> None:
        self._weight.value = weight
        self._weighted.pull(out)

    def collect(self, weight: float) -> None:
        self._weight.value = weight
        self._weighted.collect()

    def pull_second(self, weight: float, out: Array) -> None:
        self._weight.value = weight
        self._weighted.second.pull(out)

    def collect_second(self, weight: float) -> None:
        self._weight.value = weight
        self._weighted.second.collect()


class FEMNodal(Nodal):
    """Nodal data, of one or several expressions each at its own dofs; the later ones win where dofs are shared."""

    def __init__(self, parts: Sequence[_NodalPart]) -> None:
        self._parts = parts

    def tangent(self, t: float, out: Array) -> None:
        for part in self._parts:
            part.tangent(t, out)

    def collect(self, t: float, adjoint: Array) -> None:
        for part in self._parts:
            part.collect(t, adjoint, part.data)

    def collect_second(self, t: float, adjoint: Array) -> None:
        for part in self._parts:
            part.collect(t, adjoint, part.moved)


class _NodalPart:
    """One expression at the nodes of some owned dofs.

    Parameters
    ----------
    owner
        The linearised problem.
    data
        The expression, parameters bound.
    space
        Lagrange space whose nodes carry it.
    dofs
        Owned dofs of the state.
    value_dofs
        The same dofs, in the numbering of ``space``.
    """

    def __init__(
        self,
        owner: FEMLinearised,
        data: Expr,
        space: fem.FunctionSpace,
        dofs: npt.NDArray[np.int32],
        value_dofs: npt.NDArray[np.int32],
    ) -> None:
        self._owner: FEMLinearised = _weak(owner)
        self.data, self._dofs = data, dofs
        self._points = space.element.interpolation_points
        bs = space.dofmap.index_map_bs
        # One cell, and the node's place in it, for every dof.
        of_cells = space.dofmap.list
        cell_of = np.full(space.dofmap.index_map.size_local + space.dofmap.index_map.num_ghosts, -1, dtype=np.int32)
        place_of = np.zeros_like(cell_of)
        # Data that jumps between cells has the value of the last one at a shared node, as DOLFINx interpolates it.
        number = np.arange(of_cells.shape[0], dtype=np.int32)
        np.maximum.at(cell_of, of_cells, number[:, None])
        for k in range(of_cells.shape[1]):
            last = cell_of[of_cells[:, k]] == number
            place_of[of_cells[last, k]] = k
        block = value_dofs // bs
        self._component = value_dofs % bs
        self._cells, self._which = np.unique(cell_of[block], return_inverse=True)
        self._place = place_of[block]
        self._compiled: dict[tuple[Expr, str], fem.Expression | None] = {}

    @cached_property
    def moved(self) -> Expr:
        """The data's derivative along the direction of the controls."""
        symbols = self._owner.symbols
        what, directions = symbols.along_directions()
        return symbols.stand_back(lower(ufl.derivative(symbols.stand_in(self.data), what, directions)))

    def _expression(self, data: Expr, target: str) -> fem.Expression | None:
        """Compile the data (target ""), or its derivative tested by a field, or by the numbers ("numbers")."""
        if (data, target) not in self._compiled:
            symbols = self._owner.symbols
            if target == "numbers":
                what, tests = list(symbols.stand_ins.values()), symbols.number_tests()
            elif target:
                what, tests = [symbols.fields[target]], [ufl.TestFunction(symbols.fields[target].function_space)]
            derived = data
            if target:
                derived = symbols.stand_back(lower(ufl.derivative(symbols.stand_in(data), what, tests)))
            empty = isinstance(derived, ufl.classes.Zero)
            self._compiled[data, target] = (
                None if empty else self._owner.problem.compile_expression(derived, self._points)
            )
        return self._compiled[data, target]

    def _evaluate(self, expression: fem.Expression, t: float) -> npt.NDArray[np.float64]:
        """Values at this part's dofs, shape (dofs,) or (dofs, basis functions of the argument)."""
        problem = self._owner.problem
        problem.set_time(t)
        values = np.asarray(expression.eval(problem.mesh, self._cells.astype(np.int32)))
        size = int(np.prod(expression.ufl_expression.ufl_shape, dtype=int))
        functions = 1 if expression.argument_space is None else values.shape[-1]
        values = values.reshape(self._cells.size, self._points.shape[0], size, functions)
        return values[self._which, self._place, self._component]

    def tangent(self, t: float, out: Array) -> None:
        expression = self._expression(self.moved, "")
        out[self._dofs] = 0.0 if expression is None else self._evaluate(expression, t)[:, 0]

    def collect(self, t: float, adjoint: Array, data: Expr) -> None:
        symbols, collector = self._owner.symbols, self._owner.collector
        weights = adjoint[self._dofs]
        if symbols.numbers:
            expression = self._expression(data, "numbers")
            if expression is not None:
                collector.numbers += weights @ self._evaluate(expression, t)
        for name, function in symbols.fields.items():
            expression = self._expression(data, name)
            if expression is None:
                continue
            bs, dofmap = function.function_space.dofmap.index_map_bs, function.function_space.dofmap.list
            blocks = dofmap[self._cells[self._which]]
            dofs = (blocks[:, :, None] * bs + np.arange(bs)).reshape(blocks.shape[0], bs * blocks.shape[1])
            np.add.at(collector.fields[name].array, dofs, weights[:, None] * self._evaluate(expression, t))
