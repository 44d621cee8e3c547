"""Finite elements on any DOLFINx mesh: the weak form of an equation.

With test functions v of the state's space,

    M(u', v) = (B u', v) + sum over absorbing boundary parts of (Z u', v),   M_A(u'', v) = (A u'', v),
    R(u; v) = -(F, grad v) + (S, v) + sum over boundary parts of (q - alpha u, v),

integrals over the mesh and its boundary; where there is outflow, q is the flux of a state without normal slope,
``n . F(u, grad u - n (n . grad u))``. Dirichlet data is imposed at dofs. Lumped mass matrices are those that a
quadrature gives whose points are the nodes: at the vertices (degree 1), or the rule of Gauss, Lobatto and Legendre for
Lagrange elements of any degree p on intervals, quadrilaterals and hexahedra, exact to degree 2p - 1 (spectral elements;
Cohen 2002, Higher-Order Numerical Methods for Transient Wave Equations, chapter 11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
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
from npde_fem.discretize.facets import BoundaryFacets
from npde_fem.discretize.fem_linearised import FEMLinearised
from npde_fem.discretize.fem_networks import FEMNetworks, networks_in, quadrature_for, symbols_in
from npde_fem.discretize.jit import form_options
from npde_fem.discretize.matrices import Assembler, Diagonal, Mass
from npde_fem.discretize.networks import Evaluator
from npde_fem.discretize.packing import Packed
from npde_fem.discretize.periodic import PeriodicMesh, periodic_mesh
from npde_fem.discretize.quadrature import check_nodes, is_tensor, lumping, over_nodes, told_apart, with_fixed_degree
from npde_fem.discretize.real import compiled, new_function, real_values
from npde_fem.discretize.scalar import components, lower, partial
from npde_fem.discretize.semidiscrete import SINGULAR, Array, Part, Semidiscrete, Term
from npde_fem.equation import NPDE, Initial, Terms
from npde_fem.neural_terms import Network, Weights
from npde_fem.parallel import Refused, alike
from npde_fem.parameter import Composite, Parameter, as_numbers, parameters_of

import basix
import basix.ufl
import dolfinx.cpp
import numpy as np
import numpy.typing as npt
import ufl
from dolfinx import fem, la
from dolfinx import mesh as dmesh
from mpi4py import MPI
from petsc4py import PETSc
from ufl import classes
from ufl.core.expr import Expr
from ufl.corealg.traversal import traverse_unique_terminals

__all__ = ["FEM"]

_ROUND_OFF = 1e-12


class _Prescribed(NamedTuple):
    """Dirichlet data: owned dofs, the function that holds their values, and how to refresh it."""

    condition: fem.DirichletBC
    dofs: npt.NDArray[np.int32]
    values: fem.Function
    value_dofs: npt.NDArray[np.int32]
    data: Expr
    refresh: Callable[[], None]
    in_time: bool


class _Absorber(NamedTuple):
    """An absorbing part of the boundary: its number, the components that it damps, and the impedance."""

    number: int
    held: list[int]
    impedance: Expr


class _Operator(NamedTuple):
    """Assembles ``mass_factor M + inertia_factor M_A - rate_factor dR/du``; and what dR/du, and all, depends on."""

    assembler: Assembler
    with_state: bool
    with_time: bool
    parameters: frozenset[str]


class FEM(Semidiscrete):
    """An equation discretised by finite elements.

    Parameters
    ----------
    equation
        The NPDE.
    space
        DOLFINx function space of the state: Lagrange of any degree, of shape ``(m,)`` for ``m`` > 1 components,
        on a mesh of any cell. With :class:`Periodic` among the conditions, :attr:`space` and :attr:`mesh` become
        those of :func:`periodic_mesh`, unless the mesh is periodic along these axes already.
    bcs
        Boundary conditions; where none holds, no flux passes. Markers select the boundary facets whose vertices
        all satisfy them. At the seam of a periodic mesh data in UFL have the value of either side, so that they
        should be periodic; numpy callables get coordinates of the lower side.
    facet_tags
        Mesh tags that integer markers refer to.
    mass
        ``"consistent"``, or ``"lumped"``: mass matrices by quadrature at the nodes, diagonal. Of degree 1 on any cells;
        of higher degree on intervals, quadrilaterals and hexahedra, with the nodes that DOLFINx's Lagrange elements
        have by default.
    quadrature_degree
        Degree of the quadrature; UFL's estimate by default. With a lumped mass on intervals, quadrilaterals and
        hexahedra all integrals over cells are by default at the nodes too, which makes them spectral elements. A
        network is evaluated at the points of the quadrature; in UFL's estimate it counts as tanh of its inputs would,
        two degrees more than these have, and all terms with networks have the degree of the highest one.

    Raises
    ------
    TypeError, ValueError
        If the space does not fit the equation, a term of the equation is not UFL or has a wrong shape, parameters
        clash or lack a value, a marker selects nothing or raises, or a component does not exist; if the mesh cannot
        be made periodic (see :func:`periodic_mesh`).
    """

    method = "fem"

    def __init__(
        self,
        equation: NPDE,
        space: fem.FunctionSpace,
        bcs: Sequence[BoundaryCondition] = (),
        *,
        facet_tags: dmesh.MeshTags | None = None,
        mass: str = "consistent",
        quadrature_degree: int | None = None,
    ) -> None:
        self._check_space(equation, space, mass)
        self._options: dict[str, Any] = {"facet_tags": facet_tags, "mass": mass, "quadrature_degree": quadrature_degree}
        bcs = checked_conditions(bcs, equation.components)
        self._given_conditions = tuple(bcs)
        axes = {bc.axis for bc in bcs if isinstance(bc, Periodic)}
        mesh = periodic_mesh(space.mesh, axes) if axes else space.mesh
        if mesh is not space.mesh:
            space = fem.functionspace(mesh, space.ufl_element())
        self.equation, self.mesh, self.comm = equation, mesh, mesh.comm
        self.given_space = space
        self.space = _space_of_pairs(space, equation) if equation.is_complex else space
        space = self.space
        self.dim, self.components = mesh.geometry.dim, equation.state_components
        self._lumped = mass == "lumped"
        self._check_options(facet_tags, quadrature_degree)
        self._facets = BoundaryFacets(mesh, facet_tags)
        metadata = {} if quadrature_degree is None else {"quadrature_degree": quadrature_degree}
        self._metadata = metadata
        index_map, bs = space.dofmap.index_map, space.dofmap.index_map_bs
        self.n_owned, self.n_global = index_map.size_local * bs, index_map.size_global * bs
        self._u = new_function(space)
        self._x, self._t = ufl.SpatialCoordinate(self.mesh), fem.Constant(self.mesh, 0.0)
        self._step = fem.Constant(self.mesh, 0.0)
        self._factors = fem.Constant(self.mesh, 0.0), fem.Constant(self.mesh, 0.0), fem.Constant(self.mesh, 0.0)
        self.parameters: dict[str, Parameter] = {}
        self._bound: dict[Parameter, fem.Function | fem.Constant] = {}
        self._data_functions: list[fem.Function] = []
        terms = equation.terms(self.mesh.ufl_domain(), self._u, self._x, self._t)
        self._terms = Terms(*(self._bind(label, term) for label, term in zip(Terms._fields, terms, strict=True)))
        if any(self._t in set(traverse_unique_terminals(e)) for e in self._terms[2:]):
            raise ValueError("damping and inertia must not depend on time")
        self._weak_form([bc for bc in bcs if isinstance(bc, Flux | Robin | Absorbing | Outflow)])
        self._dirichlet = [bc for bc in bcs if isinstance(bc, Dirichlet)]
        self._prescribed = [p for bc in self._dirichlet for p in self._prescribe(bc)]
        self._prescribed_rates: dict[int, list[_Prescribed]] = {}
        dofs = [np.zeros(0, dtype=np.int32), *(p.dofs for p in self._prescribed)]
        self.constrained = np.unique(np.concatenate(dofs)).astype(np.int32)
        self.unknowns = int(self.comm.allreduce(self.n_owned - self.constrained.size))
        self._rate_vector = la.vector(index_map, bs)
        self._rates, self._jump, self._other = (np.zeros(self.n_owned) for _ in range(3))
        self._masses: dict[Term, Mass | Diagonal] = {}
        self._diagonal_forms: dict[Term, Packed] = {}
        self._both: Mass | Diagonal | None = None
        self._ratio = np.nan
        self.update()
        self._meet_flow()

    def with_equation(self, equation: NPDE) -> FEM:
        """Return another equation on the same space with the same boundary conditions."""
        return FEM(equation, self.given_space, self._given_conditions, **self._options)

    # -- setting up ------------------------------------------------------------------------------------------

    @staticmethod
    def _check_space(equation: NPDE, space: Any, mass: str) -> None:
        if not isinstance(equation, NPDE):
            raise TypeError(f"equation must be an NPDE, not {equation!r}")
        if not isinstance(space, fem.FunctionSpace):
            raise TypeError(f"space must be a dolfinx.fem.FunctionSpace, not {type(space).__name__}")
        element = space.ufl_element()
        if element.family_name not in ("P", "Q") or element.discontinuous:
            kind = "discontinuous" if element.discontinuous else "continuous"
            raise ValueError(
                f"space: continuous Lagrange elements (P or Q) allowed, {kind} {element.family_name} of degree "
                f"{element.degree} given"
            )
        if tuple(space.value_shape) != equation.shape:
            raise ValueError(
                f"space has value shape {tuple(space.value_shape)}; the state of an equation of {equation.components} "
                f"components has {equation.shape}"
            )
        if space.mesh.topology.dim != space.mesh.geometry.dim:
            raise ValueError(
                f"space: mesh of topological dimension {space.mesh.topology.dim} in {space.mesh.geometry.dim} "
                "dimensions given; both must be equal"
            )
        if mass not in ("consistent", "lumped"):
            raise ValueError(f'mass: "consistent" or "lumped" allowed, {mass!r} given')
        if mass == "lumped" and element.degree != 1:
            check_nodes(space)

    def _check_options(self, facet_tags: Any, quadrature_degree: Any) -> None:
        fdim = self.mesh.topology.dim - 1
        if facet_tags is not None and not isinstance(facet_tags, dmesh.MeshTags):
            raise TypeError(f"facet_tags must be dolfinx.mesh.MeshTags, not {type(facet_tags).__name__}")
        if facet_tags is not None and facet_tags.dim != fdim:
            raise ValueError(f"facet_tags: tags of entities of dimension {facet_tags.dim} given; {fdim} allowed")
        if quadrature_degree is not None and not (isinstance(quadrature_degree, int) and quadrature_degree >= 0):
            raise ValueError(f"quadrature_degree: an integer from 0 on, or None, allowed; {quadrature_degree!r} given")

    def _bind(self, label: str, expression: Expr) -> Expr:
        """Replace parameters by DOLFINx constants and functions, made as they are met."""
        for name, parameter in parameters_of([expression]).items():
            if self.parameters.setdefault(name, parameter) is not parameter:
                raise ValueError(f"duplicate parameter name {name!r}: two parameters of one problem share it")
            if parameter in self._bound or isinstance(parameter, Weights):
                continue
            if parameter.is_field:
                self._bound[parameter] = self._field_function(parameter)
            else:
                self._bound[parameter] = fem.Constant(self.mesh, parameter.value)
        bound = ufl.replace(expression, {p: b for p, b in self._bound.items()})
        for terminal in traverse_unique_terminals(bound):
            if isinstance(terminal, Composite):
                continue
            if isinstance(terminal, ufl.Coefficient | ufl.Constant) and not isinstance(
                terminal, fem.Function | fem.Constant
            ):
                raise ValueError(
                    f"{label} contains {terminal!r}, a {type(terminal).__name__} of UFL without values; a Parameter, "
                    "or a DOLFINx function on the same mesh, allowed"
                )
            if any(domain != self.mesh.ufl_domain() for domain in ufl.domain.extract_domains(terminal)):
                raise ValueError(
                    f"{label} contains {terminal!r}, which lives on another mesh; a Parameter, or a DOLFINx function "
                    "on the same mesh, allowed"
                    + (", made by periodic_mesh beforehand" if isinstance(self.mesh, PeriodicMesh) else "")
                )
            if isinstance(terminal, fem.Function | fem.Constant) and terminal.dtype != np.float64:
                raise TypeError(
                    f"{label} contains {str(terminal)!r}, of {np.dtype(terminal.dtype)} values; a Parameter, or a "
                    "DOLFINx function made with dtype=numpy.float64, allowed"
                )
            own = terminal is self._u or any(terminal is function for function in self._bound.values())
            if isinstance(terminal, fem.Function) and not own and terminal not in self._data_functions:
                self._data_functions.append(terminal)
        return bound

    def _field_function(self, parameter: Parameter) -> fem.Function:
        element = self.space.ufl_element()
        description = parameter.element or (element.family_name, element.degree)
        try:
            space = fem.functionspace(self.mesh, (*description[:2], parameter.ufl_shape))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"Parameter {parameter.name!r}: field={parameter.element!r} is no element on this mesh: {error}"
            ) from error
        function = new_function(space, parameter.name)
        function.x.array[:] = self._values("Parameter " + repr(parameter.name), parameter.value, space)
        with alike(self.comm):
            parameter.check(function.x.array)
        function.x.scatter_forward()
        return function

    def _values(self, label: str, data: Any, space: fem.FunctionSpace) -> Array:
        """Values of all local dofs of a space from a number, callable, array of owned values, or Function."""
        shape, bs = tuple(space.value_shape), space.dofmap.index_map_bs
        index_map = space.dofmap.index_map
        owned = index_map.size_local * bs
        out = np.zeros(owned + index_map.num_ghosts * bs)
        given = self._values_of_function(label, data, space) if isinstance(data, fem.Function) else None
        with alike(self.comm):
            if given is not None:
                out[:] = real_values(label, given)
            elif callable(data):
                out[:] = evaluate_callable(label, data, self._points(space).T, shape).reshape(-1)
            else:
                array = as_numbers(label, data)
                if array.shape in {(), shape}:
                    out[:] = np.broadcast_to(array, (out.size // bs, *shape)).reshape(-1)
                elif array.shape == (owned,):
                    out[:owned] = array
                else:
                    raise ValueError(
                        f"{label}: array of shape {array.shape} given; {shape} or this rank's owned dofs ({owned},) "
                        "allowed"
                    )
            finite(label, out)
        return out

    def _values_of_function(self, label: str, function: fem.Function, space: fem.FunctionSpace) -> npt.NDArray[Any]:
        """Values, of its own type, that a function has at all local dofs of a space."""
        if function.function_space == space:
            return function.x.array
        made, mesh = fem.Function(space, dtype=function.dtype), self.mesh
        try:
            if isinstance(mesh, PeriodicMesh) and function.function_space.mesh is mesh.original:
                mesh.carry(function, made)
            else:
                made.interpolate(function)
        except RuntimeError as error:
            raise ValueError(
                f"{label}: a function on another mesh or of another shape given ({error}); the problem's mesh and "
                f"shape {tuple(space.value_shape)} allowed"
            ) from error
        return made.x.array

    def _points(self, space: fem.FunctionSpace) -> Array:
        """Coordinates of all local dofs of a space, shape (n, 3)."""
        x = space.tabulate_dof_coordinates()
        return self.mesh.wrap(x) if isinstance(self.mesh, PeriodicMesh) else x

    def _outflow(self, normal: Expr) -> Expr:
        """The flux through a boundary that the state meets without normal slope."""
        flux = self._terms.flux
        if networks_in(flux):
            raise ValueError("Outflow: the flux contains a network; fluxes without networks allowed")
        slope = ufl.grad(self._u)
        across = ufl.dot(slope, normal)
        tangential = slope - (across * normal if across.ufl_shape == () else ufl.outer(across, normal))
        return ufl.dot(ufl.replace(lower(flux), {slope: tangential}), normal)

    def _weak_form(self, bcs: Sequence[Flux | Robin | Absorbing | Outflow]) -> None:
        v, u, t = ufl.TestFunction(self.space), self._u, self._t
        at_nodes = self._lumped and is_tensor(self.space) and not self._metadata
        cells = lumping(self.space, self.dim) if at_nodes else self._metadata
        dx = ufl.Measure("dx", domain=self.mesh, metadata=cells)
        marked = []
        for k, bc in enumerate(bcs):
            facets = self._facets.select(type(bc).__name__, bc.where)
            kind = fem.IntegralType.exterior_facet
            marked.append((k, fem.compute_integration_domains(kind, self.mesh.topology, facets)))
        self._marked = marked or None
        self._absorbers: list[_Absorber] = []
        ds = ufl.Measure("ds", domain=self.mesh, subdomain_data=self._marked, metadata=self._metadata)
        flux, source = self._terms.flux, self._terms.source
        integrands = [-ufl.inner(flux, ufl.grad(v)), ufl.inner(source, v)]
        neural = [integrand for integrand in integrands if networks_in(integrand)]
        self._inputs = {
            value: self._bind(f"an input of {value.network.name}", value.argument)
            for integrand in neural
            for value in networks_in(integrand)
        }
        rule = quadrature_for(neural, self._inputs, self.space, cells, self._lumped)
        self._evaluators: dict[Network, Evaluator] = {}
        self.networks = FEMNetworks(self, self._inputs, rule, self._evaluators)
        at_points = ufl.Measure("dx", domain=self.mesh, metadata=rule)
        terms_flux, terms_source = (
            [self.networks.written(e) * (at_points if e in neural else dx)] if term != 0 else []
            for term, e in zip((flux, source), integrands, strict=True)
        )
        normal = ufl.FacetNormal(self.mesh)
        domain = self.mesh.ufl_domain()
        for k, bc in enumerate(bcs):
            if isinstance(bc, Outflow):
                terms_flux.append(ufl.inner(self._outflow(normal), v) * ds(k))
                continue
            held, label = bc.held(self.equation), type(bc).__name__
            q = self._bind(f"{label} value", bc.write(bc.value, self.equation, domain, self._x, t, normal))
            if q != 0:
                terms_flux.append(ufl.inner(q, _part(v, held)) * ds(k))
            if isinstance(bc, Robin):
                alpha = bc.write_coefficient(bc.coefficient, self.equation, domain, self._x, t, normal)
                alpha = self._bind("Robin coefficient", alpha)
                terms_flux.append(-ufl.inner(_times(alpha, _part(u, held)), _part(v, held)) * ds(k))
            if isinstance(bc, Absorbing):
                z = bc.write_coefficient(bc.impedance, self.equation, domain, self._x, t, normal, name="impedance")
                self._absorbers.append(_Absorber(k, held, self._bind("Absorbing impedance", z)))
        if any(self._t in set(traverse_unique_terminals(a.impedance)) for a in self._absorbers):
            raise ValueError("Absorbing: the impedance must not depend on time")
        parts: dict[Part, list[ufl.Form]] = {
            "flux": terms_flux,
            "source": terms_source,
            "all": terms_flux + terms_source,
        }
        self._residuals = {part: with_fixed_degree(terms) if terms else None for part, terms in parts.items()}
        if self._lumped:
            self._residuals = {
                part: None if r is None else told_apart(r, self.space) for part, r in self._residuals.items()
            }
        self._rate_forms: dict[Part, Packed | None] = {}
        self._operators: dict[Part, _Operator] = {}

    def _mass_form(self, term: Term, u: Any, v: Any) -> ufl.Form | None:
        """Return the form of the damping's mass matrix ("mass") or of the inertia's, None if it vanishes."""
        cells = facets = self._metadata
        if self._lumped:
            cells, facets = lumping(self.space, self.dim), lumping(self.space, self.dim - 1)
        forms = []
        b = self._terms.inertia if term == "inertia" else self._terms.damping
        if b != 0:
            dx = ufl.Measure("dx", domain=self.mesh, metadata=cells)
            forms.append(ufl.inner(_times(b, u), v) * dx)
        if term == "mass" and self._absorbers:
            ds = ufl.Measure("ds", domain=self.mesh, subdomain_data=self._marked, metadata=facets)
            for number, held, impedance in self._absorbers:
                forms.append(ufl.inner(_times(impedance, _part(u, held)), _part(v, held)) * ds(number))
        return sum(forms[1:], forms[0]) if forms else None

    def residual(self, term: Term) -> ufl.Form | None:
        """Return the linear form of a term, M u, M_A u or (part of) R, at :attr:`state_function`; None for zero."""
        if term == "mass" or term == "inertia":
            form = self._mass_form(term, self._u, ufl.TestFunction(self.space))
            return None if form is None else with_fixed_degree([form])
        if term == "flow":
            return self._flow_form
        return self._residuals[term]

    @cached_property
    def flow_data(self) -> Expr:
        domain = self.mesh.ufl_domain()
        return self._bind("flow", self.equation.write_flow(domain, self._u, self._x, self._t, self._step))

    @cached_property
    def _flow_form(self) -> ufl.Form:
        return ufl.inner(self.flow_data, ufl.TestFunction(self.space)) * over_nodes(self.space)

    def compile(self, form: ufl.Form) -> Packed:
        """Compile a form with this project's compiler options."""
        return Packed(compiled(form), symbols_in(form))

    def compile_expression(self, expression: Expr, points: Array) -> fem.Expression:
        """Compile an expression at points of the reference cell with this project's compiler options."""
        return fem.Expression(expression, points, comm=self.comm, jit_options=form_options(), dtype=np.float64)

    def _prescribe(self, bc: Dirichlet, order: int = 0) -> list[_Prescribed]:
        facets, held = self._facets.select("Dirichlet", bc.where), bc.held(self.equation)
        data = bc.write(bc.value, self.equation, self.mesh.ufl_domain(), self._x, self._t)
        data = self._bind("Dirichlet value", data)
        for _ in range(order):
            data = partial(data, self._t)
        if len(held) == self.components:
            return [self._prescribe_part(None, facets, data)]
        parts = [data] if len(held) == 1 else [data[k] for k in range(len(held))]
        return [self._prescribe_part(c, facets, part) for c, part in zip(held, parts, strict=True)]

    def _prescribe_part(self, component: int | None, facets: npt.NDArray, data: Expr) -> _Prescribed:
        fdim = self.mesh.topology.dim - 1
        bs, owned = self.space.dofmap.index_map_bs, self.n_owned
        if component is None:
            values = new_function(self.space)
            blocks = fem.locate_dofs_topological(self.space, fdim, facets)
            condition = fem.dirichletbc(values, blocks)
            dofs = (blocks[:, None] * bs + np.arange(bs)).ravel().astype(np.int32)
            value_dofs = dofs
        else:
            sub = self.space.sub(component)
            values = new_function(sub.collapse()[0])
            pairs = fem.locate_dofs_topological((sub, values.function_space), fdim, facets)
            condition = fem.dirichletbc(values, pairs, sub)
            dofs, value_dofs = pairs
            blocks = value_dofs
        keep = dofs < owned
        refresh, in_time = self._refresher(data, values, blocks)
        return _Prescribed(condition, dofs[keep], values, value_dofs[keep], data, refresh, in_time)

    def _refresher(self, data: Expr, values: fem.Function, blocks: npt.NDArray) -> tuple[Callable[[], None], bool]:
        """Return how to put boundary data into ``values`` at some dofs, and whether it depends on time."""
        space = values.function_space
        constant = _constant_values(data)
        if constant is not None:

            def fill() -> None:
                values.x.array[:] = np.tile(constant, values.x.array.size // constant.size)

            return fill, False
        expression = self.compile_expression(data, space.element.interpolation_points)
        chosen = np.zeros(space.dofmap.index_map.size_local + space.dofmap.index_map.num_ghosts, dtype=bool)
        chosen[blocks] = True
        cells = np.flatnonzero(chosen[space.dofmap.list].any(axis=1)).astype(np.int32)

        def interpolate() -> None:
            values.interpolate(expression, cells0=cells)

        return interpolate, self._t in set(traverse_unique_terminals(data))

    # -- fields ----------------------------------------------------------------------------------------------

    def bound(self, parameter: Parameter) -> fem.Function | fem.Constant:
        """Return what stands in the forms for a parameter."""
        return self._bound[parameter]

    @property
    def state_function(self) -> fem.Function:
        """The function that stands in the forms for the state."""
        return self._u

    @property
    def time_constant(self) -> fem.Constant:
        """The constant that stands in the forms for the time."""
        return self._t

    def _prescribed_of(self, order: int) -> list[_Prescribed]:
        """Dirichlet data, or its time derivative of some order."""
        if order == 0:
            return self._prescribed
        if order not in self._prescribed_rates:
            self._prescribed_rates[order] = [p for bc in self._dirichlet for p in self._prescribe(bc, order)]
            for p in self._prescribed_rates[order]:
                p.refresh()
        return self._prescribed_rates[order]

    def prescribed_data(self, order: int = 0) -> list[tuple[Expr, fem.FunctionSpace, npt.NDArray, npt.NDArray]]:
        """Dirichlet data: expression, its space, the owned dofs it holds at, and their numbers in that space.

        Where two conditions share a dof the later one has it. The expression is the data's time derivative of a given
        order.
        """
        found, taken = [], np.zeros(self.n_owned, dtype=bool)
        for p in reversed(self._prescribed_of(order)):
            free = ~taken[p.dofs]
            taken[p.dofs] = True
            found.append((p.data, p.values.function_space, p.dofs[free], p.value_dofs[free]))
        return found

    def field(self, parameter: Parameter | str) -> fem.Function:
        """Return a copy of a field parameter."""
        return self._known(parameter).copy()

    def set_field(self, parameter: Parameter | str, values: Array) -> None:
        """Set a field parameter from the values of this rank's owned dofs (collective)."""
        function, owned = self._known(parameter), self.field_size(parameter)
        known = self.parameters[function.name]
        with alike(self.comm):
            flat = np.asarray(values, dtype=np.float64)
            if flat.shape != (owned,):
                raise ValueError(f"field {function.name!r}: shape {flat.shape} given; this rank owns ({owned},)")
            known.check(flat)
        known.leave_tape(flat)
        self.put_field(parameter, flat)

    def put_field(self, parameter: Parameter | str, values: Array) -> None:
        function = self._known(parameter)
        function.x.array[: values.size] = values
        function.x.scatter_forward()
        self.networks.forget()

    def field_size(self, parameter: Parameter | str) -> int:
        space = self._known(parameter).function_space
        return int(space.dofmap.index_map.size_local * space.dofmap.index_map_bs)

    def field_values(self, parameter: Parameter | str) -> Array:
        return self._known(parameter).x.array[: self.field_size(parameter)].copy()

    def _known(self, parameter: Parameter | str) -> fem.Function:
        name = parameter if isinstance(parameter, str) else parameter.name
        fields = {p.name: f for p, f in self._bound.items() if p.is_field}
        if name not in fields:
            raise KeyError(f"no field parameter {name!r} in this problem; it has {sorted(fields)}")
        return fields[name]

    # -- what solvers use ------------------------------------------------------------------------------------

    @cached_property
    def second_order(self) -> bool:
        return bool(self._terms.inertia != 0)

    @cached_property
    def damped(self) -> bool:
        return bool(self._terms.damping != 0 or self._absorbers)

    def update(self) -> None:
        """Take over the current values of the parameters."""
        for parameter, bound in self._bound.items():
            if not parameter.is_field:
                bound.value[...] = parameter.value
        for evaluator in self._evaluators.values():
            evaluator.update()
        self.networks.forget()
        for p in [*self._prescribed, *(p for rates in self._prescribed_rates.values() for p in rates)]:
            p.refresh()
        for term, mass in self._masses.items():
            if self._mass_varies(term):
                self._fill(term, mass)
                self._ratio = np.nan
        self._invertible: set[Term] = set()

    @property
    def data_functions(self) -> list[fem.Function]:
        return self._data_functions

    def has_layout(self, function: Any, parameter: Parameter | None = None) -> bool:
        if not isinstance(function, fem.Function):
            return False
        mine = self.space if parameter is None else self._known(parameter).function_space
        other = function.function_space
        same_mesh = other.mesh._cpp_object is mine.mesh._cpp_object
        return same_mesh and other.ufl_element() == mine.ufl_element()

    def initial(self, u0: Any, t: float = 0.0, label: str = "u0") -> Array:
        if isinstance(u0, Initial):
            return self.interpolate(u0.value, t)
        if self.equation.is_complex:
            return self._complex_values(label, u0)
        return self._values(label, u0, self.space)[: self.n_owned].copy()

    def _complex_values(self, label: str, u0: Any) -> Array:
        """Values of a complex state from what a user gives: complex numbers, or a function in the space given."""
        if isinstance(u0, fem.Function) and u0.function_space.value_shape == self.space.value_shape:
            return self._values(label, u0, self.space)[: self.n_owned].copy()
        if isinstance(u0, fem.Function):
            values = self._values_of_function(label, u0, self.given_space)[: self.n_owned // 2]
            with alike(self.comm):
                finite(label, values)
            return values.astype(np.complex128).view(np.float64)
        x = self.coordinates().T
        with alike(self.comm):
            return complex_values(label, u0, x, self.equation.shape)

    @cached_property
    def _diffusion(self) -> list[Callable[[npt.NDArray[np.int32]], Array]]:
        """dF/d(grad u) of each component, as functions (see :meth:`_at_midpoints`)."""
        u, m = self._u, self.components
        shape, cell = ufl.grad(u).ufl_shape, self.space.ufl_element().cell_type.name
        element = basix.ufl.element("Lagrange", cell, 2, shape=shape)
        gradient = ufl.Coefficient(ufl.FunctionSpace(self.mesh.ufl_domain(), element))
        flux = lower(self._networks_at_midpoints.written(self._terms.flux))
        by_gradient = self._networks_at_midpoints.slopes(flux, ufl.grad(u), gradient)
        blocks = [by_gradient] if m == 1 else [by_gradient[c, :, c, :] for c in range(m)]
        return [self._at_midpoints(ufl.as_tensor(block)) for block in blocks]

    @cached_property
    def _networks_at_midpoints(self) -> FEMNetworks:
        inputs = {value: self._inputs[value] for value in networks_in(self._terms.flux)}
        return FEMNetworks(self, inputs, {"quadrature_degree": 1}, self._evaluators)

    def _cells(self) -> npt.NDArray[np.int32]:
        """This rank's own cells."""
        return np.arange(self.mesh.topology.index_map(self.mesh.topology.dim).size_local, dtype=np.int32)

    def check_diffusion(self, t: float, values: Array) -> None:
        if self.equation.is_complex:
            return
        self.set_state(t, values)
        cells, diffusion = self._cells(), self._diffusion
        self._networks_at_midpoints.store()

        def midpoint(k: int) -> Array:
            return dmesh.compute_midpoints(self.mesh, self.mesh.topology.dim, cells[k : k + 1])[0]

        refuse_negative(self.comm, [evaluate(cells) for evaluate in diffusion], midpoint, t)

    def _at_midpoints(self, expression: Expr) -> Callable[[npt.NDArray[np.int32]], Array]:
        """Return a function that gives an expression's values at the midpoints of cells, shape (n, *its shape).

        If the expression is a number or made of numbers, that is n = 1.
        """
        expression, shape = lower(expression), expression.ufl_shape
        if not ufl.domain.extract_domains(expression):
            constant = np.zeros((1, *shape))
            for index, part in components(expression).items():
                constant[(0, *index)] = part(())
            return lambda cells: constant[: cells.size]
        tdim, kind = self.mesh.topology.dim, dolfinx.cpp.mesh.CellType
        simplex = self.mesh.topology.cell_type in (kind.interval, kind.triangle, kind.tetrahedron)
        point = np.full((1, tdim), 1 / (tdim + 1) if simplex else 0.5)
        compiled = self.compile_expression(expression, point)
        mesh = self.mesh
        return lambda cells: np.asarray(compiled.eval(mesh, cells), dtype=np.float64).reshape(-1, *shape)

    def new_state(self) -> Array:
        return np.zeros(self.n_owned)

    def load(self, values: Array, state: Array) -> None:
        state[:] = values

    def store(self, state: Array, values: Array) -> None:
        values[:] = state

    def set_state(self, t: float, state: Array, step: float = 0.0) -> None:
        """Let the forms be evaluated at a state and a time; ``step`` is that of the flow."""
        self._t.value, self._step.value = t, step
        self._u.x.array[: self.n_owned] = state
        self._u.x.scatter_forward()

    def set_time(self, t: float) -> None:
        """Let expressions be evaluated at a time."""
        self._t.value = t

    def rate(self, t: float, state: Array, out: Array, part: Part = "all") -> None:
        if part not in self._rate_forms:
            residual = self._residuals[part]
            self._rate_forms[part] = None if residual is None else self.compile(residual)
        form = self._rate_forms[part]
        if form is None:
            out[:] = 0.0
        else:
            self.set_state(t, state)
            self._assemble(form, out)
        self.add_nonlocal(part, state, out)
        out[self.constrained] = 0.0

    @cached_property
    def _source_mass(self) -> Mass | Diagonal:
        """The mass matrix without damping, by the rules that R and M are integrated by."""
        none, v = np.zeros(0, dtype=np.int32), ufl.TestFunction(self.space)
        cells = lumping(self.space, self.dim) if self._lumped else self._metadata
        dx = ufl.Measure("dx", domain=self.mesh, metadata=cells)
        if not self._lumped:
            u = ufl.TrialFunction(self.space)
            return Mass(Assembler(self.comm, self.compile(ufl.inner(u, v) * dx)), none, "cg")
        ones = ufl.as_ufl(1.0) if self.components == 1 else ufl.as_vector([1.0] * self.components)
        entries = np.zeros(self.n_owned)
        self._assemble(self.compile(ufl.inner(ones, v) * dx), entries)
        return Diagonal(entries, none)

    def source_times(self, values: Array, out: Array) -> None:
        self._source_mass.times(values, out)

    # -- mass matrices ---------------------------------------------------------------------------------------

    def _coefficient(self, term: Term) -> Expr:
        return self._terms.inertia if term == "inertia" else self._terms.damping

    def _mass_varies(self, term: Term) -> bool:
        """Whether a parameter, or a user's function, may change a mass matrix from one solve to the next."""
        expressions = [self._coefficient(term), *(a.impedance for a in self._absorbers if term == "mass")]
        return any(
            isinstance(e, ufl.Coefficient | ufl.Constant) for b in expressions for e in traverse_unique_terminals(b)
        )

    def _is_scalar(self, term: Term) -> bool:
        """Whether a mass matrix couples no components, and so is symmetric."""
        impedances = [a.impedance for a in self._absorbers if term == "mass"]
        return all(b.ufl_shape == () for b in (self._coefficient(term), *impedances))

    def _is_diagonal(self, *terms: Term) -> bool:
        return self._lumped and all(self._is_scalar(term) for term in terms)

    def _new_mass(self, form: ufl.Form, *terms: Term) -> Mass:
        symmetric = all(self._is_scalar(term) for term in terms)
        return Mass(Assembler(self.comm, self.compile(form)), self.constrained, "cg" if symmetric else "gmres")

    def _mass(self, term: Term) -> Mass | Diagonal:
        """The mass matrix of the damping ("mass") or of the inertia."""
        if term not in self._masses:
            mass: Mass | Diagonal
            if self._is_diagonal(term):
                mass = Diagonal(np.zeros(self.n_owned), self.constrained)
                self._fill(term, mass)
            else:
                form = self._mass_form(term, ufl.TrialFunction(self.space), ufl.TestFunction(self.space))
                mass = self._new_mass(form, term)
            self._masses[term] = mass
        return self._masses[term]

    def _fill(self, term: Term, mass: Mass | Diagonal) -> None:
        """Assemble a mass matrix anew; a diagonal is what the matrix makes of ones."""
        if isinstance(mass, Diagonal):
            self._assemble(self._diagonal_form(term), mass.entries)
        mass.refresh()

    def _diagonal_form(self, term: Term) -> Packed:
        if term not in self._diagonal_forms:
            ones = ufl.as_ufl(1.0) if self.components == 1 else ufl.as_vector([1.0] * self.components)
            form = self._mass_form(term, ones, ufl.TestFunction(self.space))
            self._diagonal_forms[term] = self.compile(form)
        return self._diagonal_forms[term]

    def _assemble(self, form: Packed, out: Array) -> None:
        """Write a linear form on the state's space into values."""
        b = self._rate_vector
        b.array[:] = 0.0
        form.add_to(b.array)
        if self.comm.size > 1:
            b.scatter_reverse(la.InsertMode.add)
        out[:] = b.array[: self.n_owned]

    @cached_property
    def _packed_flow(self) -> Packed:
        return self.compile(self._flow_form)

    @cached_property
    def nodal_weights(self) -> Array:
        v, found = ufl.TestFunction(self.space), np.zeros(self.n_owned)
        ones = 1.0 if v.ufl_shape == () else ufl.as_vector([1.0] * v.ufl_shape[0])
        self._assemble(self.compile(ufl.inner(ones, v) * over_nodes(self.space)), found)
        return found

    def flow(self, t: float, step: float, state: Array, out: Array) -> None:
        packed = self._packed_flow
        self.set_state(t, state, step)
        self._assemble(packed, out)
        out /= self.nodal_weights

    @property
    def mass_is_diagonal(self) -> bool:
        return self._is_diagonal("mass")

    def mass_times(
        self, values: Array, out: Array, transposed: bool = False, damping: float = 1.0, inertia: float = 0.0
    ) -> None:
        used = self._used(damping, inertia)
        into = out
        for term, weight in used:
            self._mass(term).times(values, into, transposed and not self._is_scalar(term))
            if weight != 1.0:
                into *= weight
            into = self._other
        if not used:
            out[:] = 0.0
        elif len(used) > 1:
            out += self._other

    def _used(self, damping: float, inertia: float) -> list[tuple[Term, float]]:
        """Mass matrices that a weighted sum has, with their weights; those that are zero left out."""
        pairs: list[tuple[Term, float]] = []
        if damping and self.damped:
            pairs.append(("mass", damping))
        if inertia and self.second_order:
            pairs.append(("inertia", inertia))
        return pairs

    def _sum_of_masses(self, ratio: float) -> Mass | Diagonal:
        """The matrix ``ratio M + M_A``."""
        if self._both is None:
            if self._is_diagonal("mass", "inertia"):
                self._both = Diagonal(np.zeros(self.n_owned), self.constrained)
            else:
                u, v = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
                mass_factor, _, inertia_factor = self._factors
                form = mass_factor * self._mass_form("mass", u, v) + inertia_factor * self._mass_form("inertia", u, v)
                self._factors[0].value, self._factors[2].value = ratio, 1.0
                self._both = self._new_mass(form, "mass", "inertia")
        if not abs(ratio - self._ratio) <= _ROUND_OFF * abs(ratio):
            self._factors[0].value, self._factors[2].value = ratio, 1.0
            if isinstance(self._both, Diagonal):
                self._mass("mass").times(np.full(self.n_owned, ratio), self._both.entries)
                self._mass("inertia").times(np.ones(self.n_owned), self._other)
                self._both.entries += self._other
            self._both.refresh()
            self._ratio = ratio
        return self._both

    @cached_property
    def _gram(self) -> Mass:
        u, v = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
        dx = ufl.Measure("dx", domain=self.mesh)
        return Mass(Assembler(self.comm, self.compile(ufl.inner(u, v) * dx)), np.zeros(0, dtype=np.int32), "cg")

    def gram_times(self, values: Array, out: Array) -> None:
        self._gram.times(values, out)

    def gram_matrix(self) -> PETSc.Mat:
        return self._gram.copied()

    def solve_mass(
        self, values: Array, out: Array, transposed: bool = False, damping: float = 1.0, inertia: float = 0.0
    ) -> bool:
        used = self._used(damping, inertia)
        term, weight = used[-1] if used else ("mass", damping)
        if term not in self._invertible:
            self._check_invertible(term)
        mass = self._mass(term) if len(used) < 2 else self._sum_of_masses(damping / inertia)
        good = mass.solve(values, out, transposed and not all(self._is_scalar(t) for t, _ in used))
        if weight != 1.0:
            out /= weight
            out[self.constrained] *= weight
        return good

    @cached_property
    def _at_cells(self) -> dict[Term, Callable[[npt.NDArray[np.int32]], Array]]:
        """Damping and inertia at the midpoints of cells."""
        return {"mass": self._at_midpoints(self._terms.damping), "inertia": self._at_midpoints(self._terms.inertia)}

    def _check_invertible(self, term: Term) -> None:
        """Raise ValueError if damping or inertia cannot be inverted at some cell's midpoint, or node if lumped."""
        b, mass = self._at_cells[term](self._cells()), self._mass(term)
        singular = np.any((np.linalg.det(b) if b.ndim > 1 else b) == 0)
        if isinstance(mass, Diagonal):
            zero = mass.entries == 0
            zero[self.constrained] = False
            singular |= zero.any()
        if self.comm.allreduce(bool(singular), op=MPI.LOR):
            raise Refused(SINGULAR[term])
        self._invertible.add(term)

    def advance(self, t: float, state: Array, base: Array, step: float, t_out: float, out: Array) -> bool:
        rates, jump = self._rates, self._jump
        self.rate(t, state, rates)
        rates *= step
        if self.unknowns < self.n_global:
            # Prescribed dofs move as their data says; the others feel that through M.
            out[:] = base
            self.constrain(t_out, out)
            jump[self.constrained] = out[self.constrained] - base[self.constrained]
            self.mass_times(jump, out)
            rates -= out
            rates[self.constrained] = jump[self.constrained]
        good = self.solve_mass(rates, out)
        out += base
        return good and bool(np.all(np.isfinite(out)))

    def constrain(self, t: float, state: Array) -> None:
        self._t.value = t
        for p in self._prescribed:
            if p.in_time:
                p.refresh()
            state[p.dofs] = p.values.x.array[p.value_dofs]

    def prescribe(self, t: float, values: Array, order: int = 0) -> None:
        self._t.value = t
        for p in self._prescribed_of(order):
            if p.in_time:
                p.refresh()
            values[p.dofs] = p.values.x.array[p.value_dofs]

    def _operator(self, part: Part) -> _Operator:
        if part not in self._operators:
            u, v = ufl.TrialFunction(self.space), ufl.TestFunction(self.space)
            mass_factor, rate_factor, inertia_factor = self._factors
            residual = self._residuals[part]
            mass, inertia = self._mass_form("mass", u, v), self._mass_form("inertia", u, v)
            form = None if mass is None else mass_factor * mass
            if inertia is not None:
                form = inertia_factor * inertia if form is None else form + inertia_factor * inertia
            with_state = with_time = False
            if residual is not None:
                inputs = self.networks.inputs_along(lambda e: lower(ufl.derivative(e, self._u, u)))
                symbols, moves = self.networks.moves(residual, inputs)
                tangent = ufl.algorithms.expand_derivatives(ufl.derivative(residual, [self._u, *symbols], [u, *moves]))
                if not tangent.empty():
                    with_state = self._u in tangent.coefficients() or self.networks.depends(tangent, self._u)
                    with_time = self._t in tangent.constants() or self.networks.depends(tangent, self._t)
                    term = -rate_factor * tangent
                    form = term if form is None else form + term
            if form is None:
                raise ValueError("the equation has neither a time derivative nor a term that depends on the state")
            used = {*form.coefficients(), *form.constants()}.union(*self.networks.inputs_in(form))
            names = frozenset(parameter.name for parameter, bound in self._bound.items() if bound in used)
            self._operators[part] = _Operator(Assembler(self.comm, self.compile(form)), with_state, with_time, names)
        return self._operators[part]

    def varies(self, part: Part = "all") -> tuple[bool, bool]:
        operator = self._operator(part)
        return operator.with_state, operator.with_time

    @cached_property
    def autonomous(self) -> bool:
        residual = self._residuals["all"]
        if residual is not None and (self._t in residual.constants() or self.networks.depends(residual, self._t)):
            return False
        return not any(p.in_time for p in self._prescribed)

    @property
    def matrix_parameters(self) -> frozenset[str]:
        weights = {name for name, parameter in self.parameters.items() if isinstance(parameter, Weights)}
        return self._operator("all").parameters | weights

    def new_matrix(self, *, whole: bool = False) -> PETSc.Mat:
        return self._operator("all").assembler.new_matrix()

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
        operator = self._operator(part)
        self.set_state(t, state)
        for constant, factor in zip(self._factors, (mass_factor, rate_factor, inertia_factor), strict=True):
            constant.value = factor
        operator.assembler.fill(matrix, [] if whole else [p.condition for p in self._prescribed])

    def _linearise(self, controls: Sequence[Parameter]) -> FEMLinearised:
        return FEMLinearised(self, controls)

    def function(self, values: Array, name: str | None = None, *, pairs: bool = False) -> fem.Function:
        """Return values as a DOLFINx function in the space given, complex if the state or they are; or of pairs."""
        whole = self.equation.is_complex and not pairs
        if whole or np.iscomplexobj(values):
            space = self.given_space if whole else self.space
            function = fem.Function(space, name=name or "u", dtype=np.complex128)
        else:
            function = new_function(self.space, name or "u")
        self.refill(function, values)
        return function

    def write_nodal(self, function: Callable) -> Expr:
        """Write a UFL callable ``(x, t)`` of the state's shape on the mesh, its parameters bound."""
        domain = self.mesh.ufl_domain()
        return self._bind("function", self.equation.write_data("function", function, domain, self._x, self._t))

    def write_integral(self, function: Callable) -> ufl.Form | None:
        """Write the integral of a scalar UFL callable ``(u, x, t)``, its parameters bound; None if it vanishes."""
        domain = self.mesh.ufl_domain()
        integrand = self.equation.write_integrand("integrand", function, domain, self._u, self._x, self._t)
        dx = ufl.Measure("dx", domain=self.mesh, metadata=self._metadata)
        return None if integrand == 0 else with_fixed_degree([self._bind("integrand", integrand) * dx])

    def interpolate(self, function: Callable, t: float = 0.0) -> Array:
        points = self.space.element.interpolation_points
        data = self.write_nodal(function)
        self.update()
        constant = _constant_values(data)
        if constant is not None:
            return np.tile(constant, self.n_owned // constant.size)
        expression = self.compile_expression(data, points)
        self._t.value = t
        found = new_function(self.space)
        found.interpolate(expression)
        return found.x.array[: self.n_owned].copy()

    def error(self, values: Array, exact: Callable, t: float = 0.0) -> tuple[float, float]:
        self.set_state(t, values)
        difference = self._u - self.write_nodal(exact)
        degree = 2 * self.space.ufl_element().degree + 3
        dx = ufl.Measure("dx", domain=self.mesh, metadata={"quadrature_degree": degree})
        square = self.compile(ufl.inner(difference, difference) * dx).scalar()
        largest = float(np.max(np.abs(values - self.interpolate(exact, t)), initial=0.0))
        return float(np.sqrt(self.comm.allreduce(square))), float(self.comm.allreduce(largest, op=MPI.MAX))

    def refill(self, function: fem.Function, values: Array) -> None:
        owned = values.view(function.x.array.dtype)
        function.x.array[: owned.size] = owned
        function.x.scatter_forward()

    @cached_property
    def _waves(self) -> Callable[[npt.NDArray[np.int32]], Array]:
        """The wavenumber as a function (see :meth:`_at_midpoints`)."""
        assert self.equation.waves is not None
        return self._at_midpoints(self.write_nodal(self.equation.waves))

    @cached_property
    def _node_distance(self) -> Array:
        """Distance of neighbouring nodes in this rank's cells: of a cube's diagonal, the edge, by the degree."""
        dim = self.mesh.topology.dim
        return self.mesh.h(dim, self._cells()) / np.sqrt(dim) / self.space.ufl_element().degree

    def _waves_a_point(self) -> Array:
        waves = self._waves(self._cells())
        return np.linalg.norm(waves.reshape(waves.shape[0], -1), axis=1) * self._node_distance

    def coordinates(self) -> Array:
        owned = self.n_owned // self.components
        return self._points(self.space)[:owned]

    @cached_property
    def _total_forms(self) -> list[Packed]:
        dx = ufl.Measure("dx", domain=self.mesh, metadata=self._metadata)
        return [self.compile(part * dx) for part in ([self._u] if self.components == 1 else list(self._u))]

    def total(self, values: Array) -> Array:
        """Return the integral of each component over the mesh, shape (m,) (collective)."""
        self.set_state(self._t.value.item(), values)
        local = np.array([form.scalar() for form in self._total_forms])
        return np.asarray(self.comm.allreduce(local, op=MPI.SUM))


def _part(w: Any, held: list[int]) -> Any:
    """Some components of a function: itself if they are all, a scalar if it is one."""
    if len(held) == max(1, int(np.prod(w.ufl_shape, dtype=int))):
        return w
    return w[held[0]] if len(held) == 1 else ufl.as_vector([w[c] for c in held])


def _times(matrix: Expr, vector: Expr) -> Expr:
    return matrix * vector if matrix.ufl_shape == () else ufl.dot(matrix, vector)


def _space_of_pairs(space: fem.FunctionSpace, equation: NPDE) -> fem.FunctionSpace:
    """Return the real space that carries complex functions of a space: twice as many components, the same nodes."""
    element = space.ufl_element()
    scalar = basix.ufl.element(
        element.element_family, element.cell_type, element.degree, lagrange_variant=element.lagrange_variant
    )
    pairs = fem.functionspace(space.mesh, basix.ufl.blocked_element(scalar, shape=equation.state_shape))
    if not np.array_equal(pairs.dofmap.list, space.dofmap.list):
        raise RuntimeError("DOLFINx numbers the nodes of a space and of its pairs differently")
    return pairs


def _constant_values(data: Expr) -> npt.NDArray[np.float64] | None:
    """Return the numbers a UFL constant consists of, or None if it is more than that."""
    if isinstance(data, classes.Zero):
        return np.zeros(max(1, int(np.prod(data.ufl_shape, dtype=int))))
    if isinstance(data, classes.ScalarValue):
        return np.array([float(data)])
    if isinstance(data, classes.ListTensor):
        parts = [_constant_values(operand) for operand in data.ufl_operands]
        if any(part is None for part in parts):
            return None
        return np.concatenate(parts)  # type: ignore[arg-type]
    return None
