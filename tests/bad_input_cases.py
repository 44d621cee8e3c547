"""Bad input and the error it must raise: one table for one rank (pytest) and for several (``mpi/bad_input.py``).

A case is a function of a :class:`Kit`. Where it says so, only one rank of the communicator meets the bad input; the
error must still be raised on all of them.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, NoReturn

import npde_fem as npde
from npde_fem import learn, networks
from npde_fem.parallel import Refused

import dolfinx
import numpy as np
import pyadjoint
import torch
import ufl
from mpi4py import MPI
from torch import nn

CASES: list[Case] = []


@dataclass(frozen=True)
class Case:
    """What is done, by which method, what it raises (or warns of, on rank 0) and what the message contains."""

    name: str
    method: str
    act: Callable[[Kit], Any]
    error: type[Exception]
    fragments: tuple[str, ...]

    def fault(self, comm: MPI.Comm) -> str:
        """Do it; return what is wrong with the outcome on this rank, empty if nothing is."""
        outcome: Exception | str | None = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.act(Kit(self.method, comm))
            except Exception as error:  # noqa: BLE001 - which one it is, is the question
                outcome = error
        if issubclass(self.error, Warning) and outcome is None:
            if comm.rank > 0:
                return f"a rank other than 0 warns: {caught[0].message}" if caught else ""
            if caught and caught[0].filename != __file__:
                return f"the warning points to {caught[0].filename}, not to the caller of solve"
            outcome = caught[0].message if caught else None
        if type(outcome) not in (self.error, Refused) or not isinstance(outcome, self.error):
            return f"{self.error.__name__} expected, got {outcome!r}"
        missing = [f for f in self.fragments if f not in str(outcome)]
        return f"{missing} missing in the message: {outcome}" if missing else ""


def case(error: type[Exception], *fragments: str, of: tuple[str, ...] = ("fem", "fd")) -> Callable:
    """Add a function to the table, once for each of the methods ``of``."""

    def add(act: Callable[[Kit], Any]) -> Callable[[Kit], Any]:
        for method in of:
            CASES.append(Case(f"{act.__name__}-{method}", method, act, error, fragments))
        return act

    return add


FEM, FD, ANY = ("fem",), ("fd",), ("any",)


def _no_work(t: float, u: Any) -> NoReturn:
    raise AssertionError("the integration began")


@dataclass(frozen=True)
class Kit:
    """Makes small problems on the unit square (5 x 5 points) by one method, and solves them."""

    method: str
    comm: MPI.Comm

    @property
    def chosen(self) -> bool:
        """Whether this is the one rank that meets the bad input."""
        return self.comm.rank == self.comm.size - 1

    def trip(self) -> None:
        """Raise an error of the user's on the chosen rank."""
        if self.chosen:
            raise ArithmeticError("tripped")

    def mesh(self) -> dolfinx.mesh.Mesh:
        return dolfinx.mesh.create_unit_square(self.comm, 4, 4)

    def space(self, components: int = 1, element: tuple = ("Lagrange", 1)) -> dolfinx.fem.FunctionSpace:
        return dolfinx.fem.functionspace(self.mesh(), (*element, (components,) if components > 1 else ()))

    def grid(self, **options: Any) -> npde.Grid:
        return npde.Grid(self.comm, **{"shape": (5, 5), "lower": (0, 0), "upper": (1, 1), **options})

    def problem(self, equation: Any = None, bcs: Any = (), **options: Any) -> npde.FEM | npde.FD:
        equation = npde.physics.heat() if equation is None else equation
        if self.method == "fem":
            return npde.FEM(equation, self.space(getattr(equation, "components", 1)), bcs, **options)
        return npde.FD(equation, self.grid(**options), bcs)

    def solve(self, equation: Any = None, u0: Any = 0.5, bcs: Any = (), **options: Any) -> npde.Solution:
        """Solve; that fails the case if a step is taken (unless ``observe`` is given)."""
        options = {"t": (0, 1), "dt": 0.25, "observe": _no_work, "rescue": None, **options}
        return npde.solve(self.problem(equation, bcs), u0, **options)


def system(**terms: Any) -> npde.NPDE:
    """Two components."""
    return npde.NPDE(**{"flux": lambda u, x, t: ufl.grad(u), "components": 2, **terms})


def left(x: np.ndarray) -> np.ndarray:
    return np.isclose(x[0], 0)


def inner_left(x: np.ndarray) -> np.ndarray:
    """The left side without its ends, which belong to the sides above and below as well."""
    return left(x) & (x[1] > 0.1) & (x[1] < 0.9)


# -- the equation ------------------------------------------------------------------------------------------------


@case(TypeError, "flux", "UFL", "numpy")
def flux_in_numpy(kit: Kit) -> None:
    kit.problem(npde.NPDE(flux=lambda u, x, t: np.exp(u) * ufl.grad(u)))


@case(TypeError, "flux", "'grad u'", "str", "UFL")
def flux_is_text(kit: Kit) -> None:
    kit.problem(npde.NPDE(flux=lambda u, x, t: "grad u"))


@case(TypeError, "flux", "None", "UFL")
def flux_returns_none(kit: Kit) -> None:
    kit.problem(npde.NPDE(flux=lambda u, x, t: None))


@case(TypeError, "source", "dtype=object", "UFL")
def source_is_an_array_of_anything(kit: Kit) -> None:
    kit.problem(system(source=lambda u, x, t: np.array(["a", None])))


@case(TypeError, "flux", "callable", "3.0", of=ANY)
def flux_is_a_number(kit: Kit) -> None:
    npde.NPDE(flux=3.0)


@case(ValueError, "source", "nan", "finite")
def source_contains_nan(kit: Kit) -> None:
    kit.problem(npde.NPDE(source=lambda u, x, t: u * float("nan")))


@case(ValueError, "flux", "(2,)", "(2, 2)")
def flux_of_wrong_shape(kit: Kit) -> None:
    kit.problem(system(flux=lambda u, x, t: u))


@case(ValueError, "source", "(2,)", "()")
def source_of_wrong_shape(kit: Kit) -> None:
    kit.problem(npde.NPDE(source=lambda u, x, t: ufl.grad(u)))


@case(ValueError, "damping", "(3, 3)", "(2, 2)")
def damping_of_wrong_shape(kit: Kit) -> None:
    kit.problem(system(damping=np.eye(3)))


@case(ValueError, "damping", "(2, 2)", "()")
def damping_matrix_of_one_component(kit: Kit) -> None:
    kit.problem(npde.NPDE(damping=[[1, 0], [0, 1]]))


@case(ValueError, "flux", "free indices")
def flux_with_free_index(kit: Kit) -> None:
    kit.problem(npde.NPDE(flux=lambda u, x, t: x[ufl.indices(1)[0]] * ufl.grad(u)))


@case(ValueError, "damping", "state u")
def damping_depends_on_the_state(kit: Kit) -> None:
    kept: list = []

    def flux(u: Any, x: Any, t: Any) -> Any:
        kept.append(u)
        return ufl.grad(u)

    kit.problem(npde.NPDE(flux=flux, damping=lambda x, t: 1 + kept[-1] ** 2))


@case(ValueError, "damping", "time")
def damping_depends_on_time(kit: Kit) -> None:
    kit.problem(npde.NPDE(damping=lambda x, t: 1 + t))


@case(ValueError, "components", "0", of=ANY)
def no_component(kit: Kit) -> None:
    npde.NPDE(components=0)


@case(TypeError, "equation", "NPDE", "'heat'")
def equation_is_text(kit: Kit) -> None:
    kit.problem("heat")


@case(ValueError, "rk4", "inertia", "Leapfrog()", "CrankNicolson()")
def scheme_of_first_order_for_a_wave(kit: Kit) -> None:
    kit.solve(npde.physics.wave(), scheme=npde.RK4())


@case(ValueError, "leapfrog", "inertia", "crank-nicolson")
def leapfrog_without_inertia(kit: Kit) -> None:
    kit.solve(scheme=npde.Leapfrog())


@case(ValueError, "inertia is singular")
def inertia_that_vanishes(kit: Kit) -> None:
    kit.solve(npde.NPDE(inertia=lambda x: ufl.conditional(ufl.lt(x[0], 0.6), 0.0, 1.0)), scheme=npde.Newmark())


@case(ValueError, "inertia is singular")
def inertia_parameter_that_vanishes(kit: Kit) -> None:
    a = npde.Parameter("a", 1.0)
    problem = kit.problem(npde.NPDE(inertia=a))
    a.value = 0.0
    npde.solve(problem, 1.0, t=(0, 1), dt=0.1, observe=_no_work)


@case(ValueError, "inertia is singular")
def inertia_that_vanishes_in_a_corner(kit: Kit) -> None:
    """On one rank only."""
    kit.solve(npde.NPDE(inertia=lambda x: ufl.conditional(ufl.lt(x[0] + x[1], 0.4), 0.0, 1.0)), scheme=npde.Newmark())


@case(ValueError, "inertia is singular")
def inertia_matrix_that_is_singular(kit: Kit) -> None:
    kit.solve(system(inertia=[[1, 1], [1, 1]]), u0=[0, 0])


@case(ValueError, "stability limit", "leapfrog", "frequency")
def leapfrog_above_its_limit(kit: Kit) -> None:
    kit.solve(npde.physics.wave(2.0), scheme=npde.Leapfrog(), dt=0.2)


@case(ValueError, "velocity", "inertia")
def velocity_without_inertia(kit: Kit) -> None:
    kit.solve(velocity=1.0)


@case(ValueError, "velocity", "finite")
def velocity_that_is_not_finite(kit: Kit) -> None:
    kit.solve(npde.physics.wave(), velocity=np.nan)


@case(ValueError, "velocity", "NaN")
def complex_velocity_that_is_not_finite(kit: Kit) -> None:
    waves = npde.NPDE(flux=lambda u, x, t: ufl.grad(u), inertia=1.0, dtype=complex)
    kit.solve(waves, velocity=lambda x: np.full(x.shape[1], np.nan if kit.chosen else 1j))


@case(TypeError, "u0", "None")
def complex_u0_is_none(kit: Kit) -> None:
    kit.solve(npde.physics.schrodinger(), u0=None)


@case(ValueError, "error estimate")
def adaptive_newmark(kit: Kit) -> None:
    kit.solve(npde.physics.wave(), dt=npde.Adaptive())


@case(ValueError, "Newmark", "beta", "0.6", of=ANY)
def newmark_beta_out_of_range(kit: Kit) -> None:
    npde.Newmark(0.6)


@case(TypeError, "Newmark", "gamma", "'1/2'", of=ANY)
def newmark_gamma_is_text(kit: Kit) -> None:
    npde.Newmark(0.25, "1/2")


@case(ValueError, "Absorbing", "time")
def impedance_depends_on_time(kit: Kit) -> None:
    kit.problem(npde.physics.wave(), [npde.Absorbing(lambda x, t: 1 + t)])


@case(ValueError, "Absorbing impedance", "shape")
def impedance_is_a_vector(kit: Kit) -> None:
    kit.problem(npde.physics.wave(), [npde.Absorbing([1.0, 2.0])])


@case(ValueError, "damping is singular", "implicit")
def explicit_with_singular_damping(kit: Kit) -> None:
    equation = system(damping=[[1, 1], [1, 1]], source=lambda u, x, t: u)
    kit.solve(equation, u0=[1, 2], dt=1e-3, scheme=npde.RK4())


@case(ValueError, "damping is singular", "implicit")
def explicit_with_vanishing_damping(kit: Kit) -> None:
    b = npde.Parameter("b", 1.0)
    problem = kit.problem(npde.NPDE(damping=b))
    b.value = 0.0
    npde.solve(problem, 1.0, t=(0, 1), dt=0.1, scheme=npde.ForwardEuler(), observe=_no_work)


@case(ValueError, "flux", "2 dimensions")
def tensor_parameter_of_another_dimension(kit: Kit) -> None:
    k = npde.Parameter("K", np.eye(3))
    kit.problem(npde.NPDE(flux=lambda u, x, t: ufl.dot(k, ufl.grad(u))))


@case(ValueError, "flux", "2 dimensions")
def tensor_of_another_dimension(kit: Kit) -> None:
    kit.problem(npde.physics.heat(np.eye(3).tolist()))


@case(ValueError, "flux", "(3,)", "(2,)")
def flux_of_another_dimension(kit: Kit) -> None:
    kit.problem(npde.NPDE(flux=lambda u, x, t: ufl.as_vector([u, u, u])))


@case(ValueError, "flux", "2 dimensions")
def coordinate_of_another_dimension(kit: Kit) -> None:
    kit.problem(npde.NPDE(flux=lambda u, x, t: x[2] * ufl.grad(u)))


@case(ValueError, "flux", "higher derivative", "grad(u)", of=FD)
def higher_derivative(kit: Kit) -> None:
    kit.problem(npde.NPDE(flux=lambda u, x, t: ufl.grad(u) - ufl.grad(ufl.div(ufl.grad(u)))))


@case(ValueError, "flux", "Coefficient", "Parameter", of=FEM)
@case(ValueError, "flux", "foreign function", "parameters", of=FD)
def coefficient_of_ones_own(kit: Kit) -> None:
    own = ufl.Coefficient(kit.space().ufl_function_space())
    kit.problem(npde.NPDE(flux=lambda u, x, t: own * ufl.grad(u)))


@case(ValueError, "flux", "another mesh", "Parameter", of=FEM)
@case(ValueError, "flux", "foreign function", "parameters", of=FD)
def function_on_another_mesh(kit: Kit) -> None:
    own = dolfinx.fem.Function(kit.space())
    kit.problem(npde.NPDE(flux=lambda u, x, t: own * ufl.grad(u)))


@case(TypeError, "flux", "complex128", "dtype=numpy.float64", of=FEM)
def function_of_complex_values(kit: Kit) -> None:
    space = kit.space()
    own = dolfinx.fem.Function(space, dtype=np.complex128)
    npde.FEM(npde.NPDE(flux=lambda u, x, t: own * ufl.grad(u)), space)


@case(ValueError, "Dirichlet value", "foreign function", of=FD)
@case(ValueError, "Dirichlet value", "Coefficient", of=FEM)
def coefficient_of_ones_own_in_boundary_data(kit: Kit) -> None:
    own = ufl.Coefficient(kit.space().ufl_function_space())
    kit.problem(bcs=[npde.Dirichlet(own)])


# -- parameters --------------------------------------------------------------------------------------------------


@case(ValueError, "'D'", "undefined", "no value")
def undefined_parameter(kit: Kit) -> None:
    kit.problem(npde.physics.heat(npde.Parameter("D")))


@case(ValueError, "'g'", "undefined", "no value")
def undefined_parameter_at_the_boundary(kit: Kit) -> None:
    kit.problem(bcs=[npde.Dirichlet(npde.Parameter("g"), left)])


@case(ValueError, "duplicate", "'D'")
def duplicate_parameter_name(kit: Kit) -> None:
    kit.problem(npde.physics.heat(npde.Parameter("D", 1.0), npde.Parameter("D", 2.0)))


@case(ValueError, "duplicate", "'D'")
def duplicate_parameter_name_at_the_boundary(kit: Kit) -> None:
    kit.problem(npde.physics.heat(npde.Parameter("D", 1.0)), [npde.Dirichlet(npde.Parameter("D", 2.0))])


@case(TypeError, "name", "5", of=ANY)
def parameter_name_is_a_number(kit: Kit) -> None:
    npde.Parameter(5, 1.0)


@case(ValueError, "'D'", "finite", "nan", of=ANY)
def parameter_is_nan(kit: Kit) -> None:
    npde.Parameter("D", float("nan"))


@case(ValueError, "'D'", "finite", "inf", of=ANY)
def parameter_becomes_infinite(kit: Kit) -> None:
    npde.Parameter("D", 1.0).value = float("inf")


@case(TypeError, "'D'", "'fast'", "number", of=ANY)
def parameter_is_text(kit: Kit) -> None:
    npde.Parameter("D", "fast")


@case(ValueError, "'D'", "[0.0, 1.0]", "2.0", of=ANY)
def parameter_outside_of_its_bounds(kit: Kit) -> None:
    npde.Parameter("D", 2.0, bounds=(0.0, 1.0))


@case(ValueError, "'D'", "lower 2 is not below upper 1", of=ANY)
def crossing_bounds(kit: Kit) -> None:
    npde.Parameter("D", 2.0, bounds=(2, 1))


@case(ValueError, "'D'", "bounds", "nan", of=ANY)
def bound_is_nan(kit: Kit) -> None:
    npde.Parameter("D", 2.0, bounds=(float("nan"), None))


@case(TypeError, "'D'", "bounds", "pair", of=ANY)
def bound_is_a_number(kit: Kit) -> None:
    npde.Parameter("D", 2.0, bounds=1.0)


@case(ValueError, "'D'", "(2,)", "()", of=ANY)
def parameter_changes_shape(kit: Kit) -> None:
    npde.Parameter("D", 1.0).value = [1.0, 2.0]


@case(TypeError, "'D'", "field=True", of=ANY)
def callable_without_field(kit: Kit) -> None:
    npde.Parameter("D", lambda x: x[0])


@case(ValueError, "'D'", "[0.0, 1.0]")
def field_outside_of_its_bounds_on_one_rank(kit: Kit) -> None:
    high = 2.0 if kit.chosen else 0.5
    kit.problem(npde.physics.heat(npde.Parameter("D", lambda x: 0 * x[0] + high, field=True, bounds=(0, 1))))


@case(ValueError, "'D'", "NaN")
def field_is_nan_on_one_rank(kit: Kit) -> None:
    value = float("nan") if kit.chosen else 0.5
    kit.problem(npde.physics.heat(npde.Parameter("D", lambda x: 0 * x[0] + value, field=True)))


@case(TypeError, "'D'", "tripped", "numpy")
def field_raises_on_one_rank(kit: Kit) -> None:
    def field(x: np.ndarray) -> np.ndarray:
        kit.trip()
        return x[0] + 1

    kit.problem(npde.physics.heat(npde.Parameter("D", field, field=True)))


@case(ValueError, "'D'", "(2,", "points")
def field_returns_wrong_shape(kit: Kit) -> None:
    kit.problem(npde.physics.heat(npde.Parameter("D", lambda x: x[:2], field=True)))


@case(ValueError, "'D'", "(3, 7)")
def field_array_of_wrong_shape(kit: Kit) -> None:
    kit.problem(npde.physics.heat(npde.Parameter("D", np.ones((3, 7)), field=True)))


@case(ValueError, "'D'", "element", "Nope", of=FEM)
@case(ValueError, "'D'", "field=('Nope', 1)", "DG", of=FD)
def field_in_unknown_element(kit: Kit) -> None:
    kit.problem(npde.physics.heat(npde.Parameter("D", 1.0, field=("Nope", 1))))


@case(ValueError, "'D'", "3", "owns")
def set_field_of_wrong_size_on_one_rank(kit: Kit) -> None:
    problem = kit.problem(npde.physics.heat(npde.Parameter("D", 1.0, field=True)))
    n = problem.n_owned
    problem.set_field("D", np.ones(3 if kit.chosen else n))


@case(ValueError, "'D'", "unequal", "periodic axis 0", of=FD)
def periodic_field_with_unequal_sides(kit: Kit) -> None:
    values = 1.0 + np.arange(25.0).reshape(5, 5)
    kit.problem(npde.physics.heat(npde.Parameter("D", values, field=True)), [npde.Periodic(0)])


# -- diffusion ---------------------------------------------------------------------------------------------------


@case(ValueError, "negative diffusion", "-1", "x = [", "t = 0")
def negative_diffusion(kit: Kit) -> None:
    kit.solve(npde.physics.heat(-1.0))


@case(ValueError, "negative diffusion", "-1", "x = [")
def negative_diffusion_parameter(kit: Kit) -> None:
    kit.solve(npde.physics.heat(npde.Parameter("D", -1.0)))


@case(ValueError, "negative diffusion", "eigenvalue -")
def negative_diffusion_on_one_rank(kit: Kit) -> None:
    value = -1.0 if kit.chosen else 1.0
    kit.solve(npde.physics.heat(npde.Parameter("D", lambda x: 0 * x[0] + value, field=True)))


@case(ValueError, "negative diffusion", "eigenvalue -1")
def indefinite_diffusion_tensor(kit: Kit) -> None:
    kit.solve(npde.physics.heat(npde.Parameter("K", [[1.0, 2.0], [2.0, 1.0]])))


@case(ValueError, "negative diffusion", "component 1")
def negative_diffusion_of_one_component(kit: Kit) -> None:
    kit.solve(npde.physics.gray_scott(1.0, -1.0))


@case(ValueError, "negative diffusion", "-0.5")
def diffusion_negative_at_the_initial_state(kit: Kit) -> None:
    kit.solve(npde.physics.porous_fisher(), u0=-0.5)


@case(ValueError, "negative diffusion")
def negative_diffusion_in_a_stationary_problem(kit: Kit) -> None:
    kit.solve(npde.physics.poisson(-1.0), t=None, dt=None, observe=None, bcs=[npde.Dirichlet(0.0)])


# -- boundary conditions -----------------------------------------------------------------------------------------


@case(ValueError, "Dirichlet", "selects nothing")
def marker_selects_nothing(kit: Kit) -> None:
    kit.problem(bcs=[npde.Dirichlet(0.0, lambda x: x[0] > 2)])


@case(ValueError, "Flux", "selects nothing")
def flux_marker_selects_nothing(kit: Kit) -> None:
    kit.problem(bcs=[npde.Flux(0.0, lambda x: x[0] > 2)])


@case(TypeError, "Robin", "marker", "KeyError")
def marker_raises(kit: Kit) -> None:
    kit.problem(bcs=[npde.Robin(1.0, 0.0, lambda x: {}["side"])])


@case(TypeError, "Dirichlet", "marker", "ArithmeticError", "tripped")
def marker_raises_on_one_rank(kit: Kit) -> None:
    def marker(x: np.ndarray) -> np.ndarray:
        kit.trip()
        return left(x)

    kit.problem(bcs=[npde.Dirichlet(0.0, marker)])


@case(TypeError, "Robin", "marker", "ArithmeticError", "tripped")
def marker_fails_in_another_way_on_each_rank(kit: Kit) -> None:
    def marker(x: np.ndarray) -> np.ndarray:
        if kit.comm.rank == 0:
            raise ArithmeticError("tripped")
        return np.ones(7, dtype=bool)

    kit.problem(bcs=[npde.Robin(1.0, where=marker)])


@case(TypeError, "Flux", "marker", "ArithmeticError", "tripped", of=FEM)
def marker_raises_late_on_one_rank(kit: Kit) -> None:
    calls: list = []

    def marker(x: np.ndarray) -> np.ndarray:
        calls.append(x)
        if len(calls) > 1:
            kit.trip()
        return left(x)

    kit.problem(bcs=[npde.Flux(0.0, marker), npde.Flux(0.0, marker)])


@case(ValueError, "Dirichlet", "marker", "(7,)", "booleans")
def marker_returns_wrong_shape(kit: Kit) -> None:
    kit.problem(bcs=[npde.Dirichlet(0.0, lambda x: np.ones(7, dtype=bool))])


@case(ValueError, "Flux", "marker", "float64", "booleans")
def marker_returns_numbers(kit: Kit) -> None:
    kit.problem(bcs=[npde.Flux(0.0, lambda x: x[0])])


@case(ValueError, "Dirichlet", "component 5", "0 to 1")
def component_that_does_not_exist(kit: Kit) -> None:
    kit.problem(system(), [npde.Dirichlet(0.0, left, component=5)])


@case(ValueError, "Flux", "component -1", "1")
def negative_component(kit: Kit) -> None:
    kit.problem(bcs=[npde.Flux(0.0, left, component=-1)])


@case(TypeError, "Dirichlet", "component", "'v'", "integer")
def component_is_text(kit: Kit) -> None:
    kit.problem(system(), [npde.Dirichlet(0.0, left, component="v")])


@case(ValueError, "Dirichlet value", "(3,)", "(2,)")
def dirichlet_value_of_wrong_shape(kit: Kit) -> None:
    kit.problem(system(), [npde.Dirichlet([1, 2, 3])])


@case(TypeError, "Dirichlet value", "UFL")
def dirichlet_value_in_numpy(kit: Kit) -> None:
    kit.problem(bcs=[npde.Dirichlet(lambda x, t: np.sin(x[0]))])


@case(ValueError, "Dirichlet value", "nan", "finite")
def dirichlet_value_is_nan(kit: Kit) -> None:
    kit.problem(bcs=[npde.Dirichlet(float("nan"))])


@case(ValueError, "Robin coefficient", "(2,)", "()")
def robin_coefficient_of_wrong_shape(kit: Kit) -> None:
    kit.problem(bcs=[npde.Robin([1.0, 2.0])])


@case(TypeError, "bcs", "'left'")
def condition_is_text(kit: Kit) -> None:
    kit.problem(bcs=["left"])


@case(TypeError, "bcs", "list", "Dirichlet")
def one_condition_without_a_list(kit: Kit) -> None:
    kit.problem(bcs=npde.Dirichlet(0.0))


@case(ValueError, "Periodic", "axis", "3", of=ANY)
def axis_beyond_space(kit: Kit) -> None:
    npde.Periodic(3)


@case(ValueError, "Periodic", "axis 2", "0 to 1")
def axis_that_does_not_exist(kit: Kit) -> None:
    kit.problem(bcs=[npde.Periodic(2)])


@case(ValueError, "three cells", "axis 1", "0.5", of=FEM)
def two_cells_around(kit: Kit) -> None:
    npde.periodic_mesh(dolfinx.mesh.create_unit_square(kit.comm, 4, 2), 1)


@case(ValueError, "do not match", "axis 1", "1e-", of=FEM)
def unlike_sides(kit: Kit) -> None:
    mesh = kit.mesh()
    x = mesh.geometry.x
    x[np.isclose(x[:, 0], 0.25) & np.isclose(x[:, 1], 1), 0] += 1e-6
    npde.periodic_mesh(mesh, (0, 1))


@case(ValueError, "facets", "match", "axis 0", of=FEM)
def unlike_diagonals(kit: Kit) -> None:
    """Tetrahedra whose sides across axis 0 have the same nodes, but another diagonal in each square."""
    upright = dolfinx.mesh.create_unit_cube(kit.comm, 3, 3, 3)
    x, cells = np.zeros((0, 3)), np.zeros((0, 4), dtype=np.int64)
    if kit.comm.rank == 0:
        nodes = np.arange(4**3).reshape(4, 4, 4)
        corners = np.array([nodes[:-1, :-1, :-1].ravel() + n for n in nodes[:2, :2, :2].ravel()]).T
        # The way from corner to corner along the axes in each order; in the last layer seen in a mirror.
        ways = [np.cumsum([0, *order]) for order in permutations((1, 2, 4))]
        mirrored = [way ^ 1 for way in ways]
        last = corners[:, 0] >= nodes[-2, 0, 0]
        cells = np.concatenate([corners[~last][:, way] for way in ways] + [corners[last][:, way] for way in mirrored])
        x = np.stack(np.unravel_index(np.arange(4**3), (4, 4, 4)), axis=1) / 3.0
    npde.periodic_mesh(dolfinx.mesh.create_mesh(kit.comm, cells, upright.ufl_domain(), x), 0)


@case(ValueError, "no flat sides", "axis 0", of=FEM)
def slanted_sides(kit: Kit) -> None:
    mesh = kit.mesh()
    mesh.geometry.x[:, 0] += mesh.geometry.x[:, 1]
    npde.FEM(npde.physics.heat(), dolfinx.fem.functionspace(mesh, ("Lagrange", 1)), [npde.Periodic(0)])


@case(ValueError, "flux", "another mesh", "periodic_mesh", of=FEM)
def function_on_the_mesh_before(kit: Kit) -> None:
    space = kit.space()
    npde.FEM(npde.physics.heat(dolfinx.fem.Function(space)), space, [npde.Periodic(0)])


@case(ValueError, "facet_tags", "another mesh", of=FEM)
def tags_of_another_mesh(kit: Kit) -> None:
    none = np.zeros(0, dtype=np.int32)
    kit.problem(facet_tags=dolfinx.mesh.meshtags(kit.mesh(), 1, none, none))


@case(TypeError, "mesh", "Grid", of=FEM)
def periodic_mesh_of_a_grid(kit: Kit) -> None:
    npde.periodic_mesh(kit.grid(), 0)


@case(TypeError, "axes", "'x'", of=FEM)
def axis_is_text(kit: Kit) -> None:
    npde.periodic_mesh(kit.mesh(), "x")


@case(ValueError, "Dirichlet", "selects nothing", "periodic")
def dirichlet_on_a_periodic_side(kit: Kit) -> None:
    kit.problem(bcs=[npde.Periodic(0), npde.Dirichlet(0.0, inner_left)])


@case(ValueError, "Flux", "selects nothing", "periodic")
def flux_on_a_periodic_side(kit: Kit) -> None:
    kit.problem(bcs=[npde.Flux(0.0, inner_left), npde.Periodic(0)])


@case(ValueError, "Dirichlet", "1", "facet_tags", of=FEM)
@case(TypeError, "Dirichlet", "1", "tags are for FEM", of=FD)
def tag_without_tags(kit: Kit) -> None:
    kit.problem(bcs=[npde.Dirichlet(0.0, 1)])


def _tagged(kit: Kit, tag: Any) -> None:
    space = kit.space()
    space.mesh.topology.create_entities(1)
    facets = dolfinx.mesh.locate_entities_boundary(space.mesh, 1, left)
    tags = dolfinx.mesh.meshtags(space.mesh, 1, facets, np.full(facets.size, 3, dtype=np.int32))
    npde.FEM(npde.physics.heat(), space, [npde.Dirichlet(0.0, tag)], facet_tags=tags)


@case(ValueError, "Dirichlet", "selects nothing", "4", "[3]", of=FEM)
def tag_that_selects_nothing(kit: Kit) -> None:
    _tagged(kit, 4)


@case(TypeError, "Dirichlet", "'left'", "tag", of=FEM)
def tag_is_text(kit: Kit) -> None:
    _tagged(kit, "left")


@case(TypeError, "facet_tags", "MeshTags", "dict", of=FEM)
def tags_are_no_mesh_tags(kit: Kit) -> None:
    kit.problem(facet_tags={"left": 1})


@case(ValueError, "facet_tags", "dimension 2", "1", of=FEM)
def tags_of_cells(kit: Kit) -> None:
    space = kit.space()
    cells = np.arange(2, dtype=np.int32)
    tags = dolfinx.mesh.meshtags(space.mesh, 2, cells, cells)
    npde.FEM(npde.physics.heat(), space, [npde.Dirichlet(0.0, 1)], facet_tags=tags)


# -- meshes, spaces and grids ------------------------------------------------------------------------------------


@case(ValueError, "space", "()", "2", "(2,)", of=FEM)
def space_of_wrong_value_shape(kit: Kit) -> None:
    npde.FEM(system(), kit.space())


@case(ValueError, "space", "continuous Lagrange", "discontinuous", of=FEM)
def discontinuous_space(kit: Kit) -> None:
    npde.FEM(npde.physics.heat(), kit.space(element=("DG", 1)))


@case(ValueError, "space", "Lagrange", "N1E", of=FEM)
def edge_elements(kit: Kit) -> None:
    npde.FEM(npde.physics.heat(), dolfinx.fem.functionspace(kit.mesh(), ("N1curl", 1)))


@case(TypeError, "space", "FunctionSpace", "Mesh", of=FEM)
def mesh_for_a_space(kit: Kit) -> None:
    npde.FEM(npde.physics.heat(), kit.mesh())


@case(TypeError, "grid", "Grid", "tuple", of=FD)
def shape_for_a_grid(kit: Kit) -> None:
    npde.FD(npde.physics.heat(), (5, 5))


@case(ValueError, "lumped", "degree 2", "degree 1", of=FEM)
def lumped_mass_of_degree_2(kit: Kit) -> None:
    npde.FEM(npde.physics.heat(), kit.space(element=("Lagrange", 2)), mass="lumped")


@case(ValueError, "mass", "'diagonal'", "lumped", of=FEM)
def unknown_mass(kit: Kit) -> None:
    kit.problem(mass="diagonal")


@case(ValueError, "quadrature_degree", "-1", of=FEM)
def negative_quadrature_degree(kit: Kit) -> None:
    kit.problem(quadrature_degree=-1)


@case(ValueError, "Grid", "(2, 5)", "at least 3 points", of=FD)
def grid_of_two_points(kit: Kit) -> None:
    kit.grid(shape=(2, 5))


@case(TypeError, "Grid", "shape", "4.5", "integer", of=FD)
def grid_of_half_a_point(kit: Kit) -> None:
    kit.grid(shape=(4.5, 5))


@case(TypeError, "Grid", "lower", "number", of=FD)
def corner_is_text(kit: Kit) -> None:
    kit.grid(lower=("a", "b"))


@case(ValueError, "Grid", "lower", "(1.0, 0.0)", "below", of=FD)
def corners_swapped(kit: Kit) -> None:
    kit.grid(lower=(1, 0))


@case(ValueError, "Grid", "nan", "finite", of=FD)
def corner_is_nan(kit: Kit) -> None:
    kit.grid(lower=(float("nan"), 0))


@case(ValueError, "Grid", "same length", of=FD)
def corners_of_another_dimension(kit: Kit) -> None:
    kit.grid(lower=(0, 0, 0))


@case(ValueError, "Grid", "4 axes", of=FD)
def grid_of_four_axes(kit: Kit) -> None:
    kit.grid(shape=(5,) * 4, lower=(0,) * 4, upper=(1,) * 4)


@case(TypeError, "Grid", "comm", "None", of=FD)
def grid_without_communicator(kit: Kit) -> None:
    npde.Grid(None, (5, 5), (0, 0), (1, 1))


@case(ValueError, "mask", "(4, 5)", "(5, 5)", of=FD)
def mask_of_wrong_shape(kit: Kit) -> None:
    kit.grid(mask=np.ones((4, 5), dtype=bool))


@case(TypeError, "mask", "boolean", "float64", of=FD)
def mask_of_numbers(kit: Kit) -> None:
    kit.grid(mask=np.ones((5, 5)))


@case(ValueError, "mask", "no point", of=FD)
def empty_mask(kit: Kit) -> None:
    kit.grid(mask=np.zeros((5, 5), dtype=bool))


@case(ValueError, "mask", "no point", of=FD)
def mask_that_selects_nothing(kit: Kit) -> None:
    kit.problem(mask=lambda x: x[0] > 2)


@case(TypeError, "mask", "tripped", of=FD)
def mask_raises_on_one_rank(kit: Kit) -> None:
    def mask(x: np.ndarray) -> np.ndarray:
        kit.trip()
        return x[0] < 2

    kit.problem(mask=mask)


@case(ValueError, "mask", "unequal", "periodic axis 0", of=FD)
def periodic_mask_with_unequal_sides(kit: Kit) -> None:
    mask = np.ones((5, 5), dtype=bool)
    mask[0] = False
    kit.problem(bcs=[npde.Periodic(0)], mask=mask)


# -- initial data ------------------------------------------------------------------------------------------------


@case(ValueError, "u0", "NaN")
def initial_number_is_nan(kit: Kit) -> None:
    kit.solve(u0=float("nan"))


@case(ValueError, "u0", "NaN", "1 of")
def initial_array_has_a_nan_on_one_rank(kit: Kit) -> None:
    problem = kit.problem()
    u0 = np.ones(problem.n_owned)
    if kit.chosen:
        u0[-1] = np.inf
    npde.solve(problem, u0, t=(0, 1), dt=0.1, observe=_no_work)


@case(ValueError, "u0", "NaN")
def initial_callable_returns_nan_on_one_rank(kit: Kit) -> None:
    value = float("nan") if kit.chosen else 1.0
    kit.solve(u0=lambda x: 0 * x[0] + value)


@case(TypeError, "u0", "tripped", "numpy")
def initial_callable_raises_on_one_rank(kit: Kit) -> None:
    def u0(x: np.ndarray) -> np.ndarray:
        kit.trip()
        return x[0]

    kit.solve(u0=u0)


@case(TypeError, "u0", "numpy")
def initial_callable_in_ufl(kit: Kit) -> None:
    kit.solve(u0=lambda x: ufl.sin(x[0]))


@case(ValueError, "u0", "(4, 4)", "(5, 5)", of=FD)
@case(ValueError, "u0", "(4, 4)", "owned dofs", of=FEM)
def initial_array_of_wrong_shape(kit: Kit) -> None:
    kit.solve(u0=np.ones((4, 4)))


@case(ValueError, "u0", "(3,)", "(2,)", of=FEM)
@case(ValueError, "u0", "(3,)", "(5, 5, 2)", of=FD)
def initial_vector_of_wrong_length(kit: Kit) -> None:
    kit.solve(system(), u0=[1.0, 2.0, 3.0])


@case(TypeError, "u0", "'hot'")
def initial_data_is_text(kit: Kit) -> None:
    kit.solve(u0="hot")


@case(TypeError, "u0", "None")
def initial_data_is_none(kit: Kit) -> None:
    kit.solve(u0=None)


@case(ValueError, "u0", "unequal", "periodic axis 1", of=FD)
def initial_array_with_unequal_periodic_sides(kit: Kit) -> None:
    kit.solve(u0=np.arange(25.0).reshape(5, 5), bcs=[npde.Periodic(1)])


@case(ValueError, "u0", "grid function", "(9, 9)", "(5, 5)", of=FD)
def initial_function_on_another_grid(kit: Kit) -> None:
    other = npde.FD(npde.physics.heat(), kit.grid(shape=(9, 9)))
    kit.solve(u0=other.function(np.ones(other.n_owned)))


@case(TypeError, "u0", "complex", "real", of=FEM)
def initial_function_is_complex(kit: Kit) -> None:
    problem = kit.problem()
    u0 = dolfinx.fem.Function(problem.space, dtype=np.complex128)
    u0.x.array[:] = 1 + 1j * kit.chosen
    npde.solve(problem, u0, t=(0, 1), dt=0.1, observe=_no_work)


@case(ValueError, "u0", "another mesh", of=FEM)
def initial_function_on_another_mesh(kit: Kit) -> None:
    kit.solve(u0=dolfinx.fem.Function(kit.space()))


# -- time --------------------------------------------------------------------------------------------------------


@case(ValueError, "dt = 0", "positive")
def step_is_zero(kit: Kit) -> None:
    kit.solve(dt=0)


@case(ValueError, "dt = -0.1", "positive")
def step_is_negative(kit: Kit) -> None:
    kit.solve(dt=-0.1)


@case(ValueError, "dt = nan", "finite")
def step_is_nan(kit: Kit) -> None:
    kit.solve(dt=float("nan"))


@case(TypeError, "dt", "'fast'", "number")
def step_is_text(kit: Kit) -> None:
    kit.solve(dt="fast")


@case(ValueError, "dt", "needed")
def step_is_missing(kit: Kit) -> None:
    kit.solve(dt=None)


@case(ValueError, "t = (1, 0)", "t0 < t1")
def interval_runs_backwards(kit: Kit) -> None:
    kit.solve(t=(1, 0))


@case(ValueError, "t = (0, inf)", "finite")
def interval_without_end(kit: Kit) -> None:
    kit.solve(t=(0, float("inf")))


@case(ValueError, "t = (t0, t1)", "needed")
def interval_is_missing(kit: Kit) -> None:
    kit.solve(t=None)


@case(TypeError, "t ", "pair", "1.0")
def interval_is_a_number(kit: Kit) -> None:
    kit.solve(t=1.0)


@case(ValueError, "t and dt", "stationary")
def interval_of_a_stationary_problem(kit: Kit) -> None:
    kit.solve(npde.physics.poisson(), bcs=[npde.Dirichlet(0.0)])


@case(ValueError, "observe", "stationary")
def observation_of_a_stationary_problem(kit: Kit) -> None:
    kit.solve(npde.physics.poisson(), bcs=[npde.Dirichlet(0.0)], t=None, dt=None)


@case(UserWarning, "dt = 0.3", "[0, 1]", "4 steps of 0.25")
def step_does_not_divide_the_interval(kit: Kit) -> None:
    solution = kit.solve(dt=0.3, observe=None)
    assert len(solution.steps) == 4 and solution.t == 1.0


@case(ValueError, "dt = 0.25", "stability limit", "rk4", "implicit")
def explicit_step_above_its_limit(kit: Kit) -> None:
    kit.solve(u0=lambda x: x[0], scheme=npde.RK4())


@case(ValueError, "observe", "2", "[0, 1]")
def observation_after_the_end(kit: Kit) -> None:
    kit.solve(observe=[0.5, 2.0])


@case(ValueError, "observe", "nan", "[0, 1]")
def observation_at_nan(kit: Kit) -> None:
    kit.solve(observe=[float("nan")])


@case(ValueError, "observe", "increase", "[0.5, 0.25]")
def observations_unsorted(kit: Kit) -> None:
    kit.solve(observe=[0.5, 0.25])


@case(TypeError, "observe", "'often'")
def observation_is_text(kit: Kit) -> None:
    kit.solve(observe="often")


@case(TypeError, "scheme", "'rk4'", "CrankNicolson()")
def scheme_is_a_name(kit: Kit) -> None:
    kit.solve(scheme="rk4")


@case(TypeError, "scheme", "RK4", "CrankNicolson()")
def scheme_is_not_called(kit: Kit) -> None:
    kit.solve(scheme=npde.RK4)


@case(KeyError, "'rk5'", "rk4", "sdirk2", of=ANY)
def unknown_scheme(kit: Kit) -> None:
    npde.scheme_named("rk5")


@case(ValueError, "crank-nicolson", "no error estimate", "SDIRK2")
def adaptive_steps_without_estimate(kit: Kit) -> None:
    kit.solve(dt=npde.Adaptive(), scheme=npde.CrankNicolson())


@case(ValueError, "Adaptive", "rtol", "-1", of=ANY)
def adaptive_with_negative_tolerance(kit: Kit) -> None:
    npde.Adaptive(rtol=-1)


@case(ValueError, "Adaptive", "first", "-0.1", of=ANY)
def adaptive_with_negative_first_step(kit: Kit) -> None:
    npde.Adaptive(first=-0.1)


@case(ValueError, "Adaptive", "smallest", "nan", of=ANY)
def adaptive_with_nan_for_the_smallest_step(kit: Kit) -> None:
    npde.Adaptive(smallest=float("nan"))


@case(TypeError, "Adaptive", "atol", "'tight'", of=ANY)
def adaptive_with_text(kit: Kit) -> None:
    npde.Adaptive(atol="tight")


@case(TypeError, "problem", "FEM", "FD", "NPDE", of=ANY)
def equation_for_a_problem(kit: Kit) -> None:
    npde.solve(npde.physics.heat(), 0.0, t=(0, 1), dt=0.1)


# -- a solve that fails, and files -------------------------------------------------------------------------------


def _blow_up(kit: Kit, scheme: npde.Scheme, rescue: Path | None, dt: float = 0.05) -> None:
    """``u' = u^3`` from 1, which is infinite at t = 1/2."""
    equation = npde.NPDE(source=lambda u, x, t: u**3)
    kit.solve(equation, 1.0, t=(0, 2), dt=dt, scheme=scheme, observe=None, rescue=rescue)


def _with_folder(kit: Kit, act: Callable[[Path], None]) -> None:
    """Act with one folder for all ranks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(kit.comm.bcast(name))
        try:
            act(folder)
        finally:
            kit.comm.Barrier()


@case(npde.SolveError, "from t = ", "NaN or infinite", "last good state is in", "state.petsc")
def explicit_blow_up(kit: Kit) -> None:
    _with_folder(kit, lambda folder: _blow_up(kit, npde.ForwardEuler(), folder / "state.petsc"))


@case(npde.SolveError, "from t = ", "residual", "last good state is in", "state.petsc")
def implicit_blow_up(kit: Kit) -> None:
    _with_folder(kit, lambda folder: _blow_up(kit, npde.BackwardEuler(), folder / "state.petsc"))


@case(npde.SolveError, "NaN or infinite", "could not be written", "missing")
def rescue_folder_is_missing(kit: Kit) -> None:
    _with_folder(kit, lambda folder: _blow_up(kit, npde.ForwardEuler(), folder / "missing" / "state.petsc"))


@case(npde.SolveError, "NaN or infinite", "could not be written", "file")
def rescue_folder_is_a_file(kit: Kit) -> None:
    def act(folder: Path) -> None:
        (folder / "file").touch()
        kit.comm.Barrier()
        _blow_up(kit, npde.ForwardEuler(), folder / "file" / "state.petsc")

    _with_folder(kit, act)


@case(npde.SolveError, "NaN or infinite", "could not be written", "taken")
def rescue_file_is_a_folder(kit: Kit) -> None:
    def act(folder: Path) -> None:
        (folder / "taken").mkdir(exist_ok=True)
        kit.comm.Barrier()
        _blow_up(kit, npde.ForwardEuler(), folder / "taken")

    _with_folder(kit, act)


@case(FileNotFoundError, "nowhere.petsc")
def restore_from_nowhere(kit: Kit) -> None:
    npde.restore(kit.problem(), "nowhere.petsc")


@case(ValueError, "state.petsc", "25", "9")
def restore_a_state_of_another_size(kit: Kit) -> None:
    def act(folder: Path) -> None:
        problem = kit.problem()
        npde.save(problem, np.zeros(problem.n_owned), folder / "state.petsc")
        other = npde.FD(npde.physics.heat(), kit.grid(shape=(3, 3)))
        npde.restore(other, folder / "state.petsc")

    _with_folder(kit, act)


@case(ValueError, "state.petsc", "saved state")
def restore_a_file_of_another_kind(kit: Kit) -> None:
    def act(folder: Path) -> None:
        if kit.comm.rank == 0:
            (folder / "state.petsc").write_bytes(b"x" * (8 + 8 * 25))
        kit.comm.Barrier()
        npde.restore(kit.problem(), folder / "state.petsc")

    _with_folder(kit, act)


# -- gradients ---------------------------------------------------------------------------------------------------


def _solved(kit: Kit, **options: Any) -> npde.Solution:
    return kit.solve(t=(0, 0.1), dt=0.05, observe=[0.05, 0.1], **options)


@case(ValueError, "'other'", "does not enter the equation", "['r']")
def control_that_does_not_enter(kit: Kit) -> None:
    r = npde.Parameter("r", 1.0)
    kit.problem(npde.NPDE(source=lambda u, x, t: r * u)).linearised([npde.Parameter("other", 1.0)])


@case(TypeError, "controls", "Parameters", "'r'")
def control_that_is_a_name(kit: Kit) -> None:
    kit.problem().linearised(["r"])


@case(ValueError, "parameters", "other", "['r']")
def value_for_a_parameter_that_does_not_enter(kit: Kit) -> None:
    r = npde.Parameter("r", 1.0)
    kit.solve(npde.NPDE(source=lambda u, x, t: r * u), parameters={npde.Parameter("other", 1.0): 2.0})


@case(ValueError, "parameters", "'r'", "(2,)", "()")
def value_of_a_parameter_of_another_shape(kit: Kit) -> None:
    r = npde.Parameter("r", 1.0)
    kit.solve(npde.NPDE(source=lambda u, x, t: r * u), parameters={r: [1.0, 2.0]})


@case(ValueError, "checkpoints", "0 given")
def no_checkpoints(kit: Kit) -> None:
    kit.solve(checkpoints=0)


@case(TypeError, "checkpoints", "1.5")
def half_a_checkpoint(kit: Kit) -> None:
    kit.solve(checkpoints=1.5)


@case(ValueError, "integrand", "(2,)")
def integrand_that_is_a_vector(kit: Kit) -> None:
    kit.solve(integrals=[lambda u, x, t: ufl.grad(u)])


@case(ValueError, "outside", "(2.0, 0.5)")
def observation_outside_the_domain(kit: Kit) -> None:
    npde.misfit(_solved(kit), np.zeros((2, 2)), at=[[0.5, 0.5], [2.0, 0.5]])


@case(ValueError, "misfit: data", "1 values", "not finite")
def data_that_is_not_finite(kit: Kit) -> None:
    data = np.zeros((2, 1))
    data[1] = np.nan
    npde.misfit(_solved(kit), data, at=[[0.5, 0.5]])


@case(ValueError, "misfit: data", "not finite")
def data_that_is_not_finite_on_one_rank(kit: Kit) -> None:
    npde.misfit(_solved(kit), np.full((2, 1), np.inf if kit.chosen else 0.0), at=[[0.5, 0.5]])


@case(ValueError, "misfit: data of shape (3, 1)", "(2, 1)")
def data_for_another_number_of_times(kit: Kit) -> None:
    npde.misfit(_solved(kit), np.zeros((3, 1)), at=[[0.5, 0.5]])


@case(ValueError, "misfit: data for 3 times", "observed 2")
def states_for_another_number_of_times(kit: Kit) -> None:
    npde.misfit(_solved(kit), [0.0, 0.0, 0.0])


@case(TypeError, "misfit: data", "'cold'")
def data_that_is_text(kit: Kit) -> None:
    npde.misfit(_solved(kit), "cold", at=[[0.5, 0.5]])


@case(ValueError, "sigma", "positive", "0.0")
def sigma_of_zero(kit: Kit) -> None:
    npde.misfit(_solved(kit), np.zeros((2, 1)), at=[[0.5, 0.5]], sigma=0.0)


@case(ValueError, "sigma", "positive", "-1")
def sigma_that_is_negative_on_one_rank(kit: Kit) -> None:
    npde.misfit(_solved(kit), [0.0, 0.0], sigma=[1.0, -1.0 if kit.chosen else 1.0])


@case(ValueError, "sigma", "(3,)")
def sigma_of_another_shape(kit: Kit) -> None:
    npde.misfit(_solved(kit), np.zeros((2, 1)), at=[[0.5, 0.5]], sigma=[1.0, 1.0, 1.0])


@case(ValueError, "integrand", "(2,)")
def integral_of_a_vector(kit: Kit) -> None:
    npde.integral(_solved(kit), lambda u, x, t: ufl.grad(u))


@case(TypeError, "integral", "FEM", "FD", "float")
def integral_of_a_number(kit: Kit) -> None:
    npde.integral(1.0, lambda u, x, t: u)


# -- complex equations -------------------------------------------------------------------------------------------


@case(TypeError, "u0", "complex values given", "real")
def complex_start_of_a_real_equation(kit: Kit) -> None:
    kit.solve(u0=0.5 + 1j)


@case(TypeError, "u0", "complex values")
def complex_start_of_a_real_equation_on_one_rank(kit: Kit) -> None:
    kit.solve(u0=lambda x: x[0] + (1j if kit.chosen else 0))


@case(ValueError, "source is complex", "dtype=complex")
def complex_source_of_a_real_equation(kit: Kit) -> None:
    kit.problem(npde.physics.heat(source=lambda x, t: 1j * x[0]))


@case(ValueError, "Dirichlet value is complex", "dtype=complex")
def complex_boundary_data_of_a_real_equation(kit: Kit) -> None:
    kit.problem(bcs=[npde.Dirichlet(1j)])


@case(ValueError, "dtype: float or complex allowed", "int")
def values_of_integers(kit: Kit) -> None:
    npde.NPDE(dtype=int)


@case(ValueError, "integrand is complex", "abs(u) ** 2")
def complex_integrand(kit: Kit) -> None:
    kit.solve(npde.physics.schrodinger(), integrals=[lambda u, x, t: u])


@case(ValueError, "(2,)")
def potential_that_is_a_vector(kit: Kit) -> None:
    kit.problem(npde.physics.schrodinger(lambda x, t: x))


@case(ValueError, "u0", "(7,)", "allowed")
def complex_start_of_another_size(kit: Kit) -> None:
    kit.solve(npde.physics.schrodinger(), np.zeros(7, dtype=complex))


@case(ValueError, "u0", "NaN or infinite")
def complex_start_that_is_not_finite_on_one_rank(kit: Kit) -> None:
    kit.solve(npde.physics.schrodinger(), lambda x: x[0] + (np.nan * 1j if kit.chosen else 0))


@case(TypeError, "the power", "integer exponents")
def power_of_a_complex_state(kit: Kit) -> None:
    kit.problem(npde.NPDE(source=lambda u, x, t: u**0.5, dtype=complex))


@case(ValueError, "strang", "flow", "NPDE(flow=...)")
def splitting_without_a_flow(kit: Kit) -> None:
    kit.solve(scheme=npde.Strang())


@case(TypeError, "flow", "(u, x, t, dt)")
def flow_that_is_a_number(kit: Kit) -> None:
    npde.NPDE(flow=1.0)


@case(ValueError, "flow", "shape (2,)")
def flow_that_is_a_vector(kit: Kit) -> None:
    kit.solve(npde.NPDE(flow=lambda u, x, t, dt: x), scheme=npde.Strang())


@case(ValueError, "film.gif", "stationary", ".png")
def film_of_a_stationary_solution(kit: Kit) -> None:
    npde.Writer(Path(tempfile.gettempdir()) / "film.gif", kit.problem(npde.physics.poisson()))


@case(KeyError, "no case 'schroedinger'", "schrodinger", of=("fd",))
def comparison_of_an_unknown_case(kit: Kit) -> None:
    npde.compare("schroedinger", comm=kit.comm)


@case(ValueError, "schrodinger-soliton", "dim 3 given", "1 allowed", of=("fd",))
def comparison_in_a_wrong_dimension(kit: Kit) -> None:
    npde.compare("schrodinger-soliton", 3, comm=kit.comm)


# -- open domains ------------------------------------------------------------------------------------------------


def _layered(kit: Kit, *layer: Any, **options: Any) -> npde.Solution:
    return kit.solve(npde.physics.helmholtz(5.0, pml=npde.PML(*layer)), t=None, dt=None, observe=None, **options)


@case(ValueError, "PML", "thickness", "negative")
def layer_of_negative_thickness(kit: Kit) -> None:
    _layered(kit, (0, 0), (1, 1), -0.1)


@case(ValueError, "PML thicker than the domain", "axis 1", "1.2", "of its 1")
def layers_that_meet(kit: Kit) -> None:
    _layered(kit, (0, 0), (1, 1), (0.2, 0.6))


@case(ValueError, "PML", "thickness", "pair")
def layer_of_bad_shape(kit: Kit) -> None:
    _layered(kit, (0, 0), (1, 1), (0.1, 0.1, 0.1))


@case(TypeError, "PML", "lower", "numbers")
def layer_of_text(kit: Kit) -> None:
    _layered(kit, "here", (1, 1), 0.1)


@case(ValueError, "PML", "reflection", "between 0 and 1")
def layer_that_reflects_all(kit: Kit) -> None:
    _layered(kit, (0, 0), (1, 1), 0.1, 1.0)


@case(ValueError, "PML", "3 dimensions", "the domain has 2")
def layer_of_another_dimension(kit: Kit) -> None:
    _layered(kit, (0, 0, 0), (1, 1, 1), 0.1)


@case(ValueError, "ShiftedLaplacian", "shift", "positive")
def shift_that_is_negative(kit: Kit) -> None:
    npde.ShiftedLaplacian(-0.5)


@case(TypeError, "preconditioner", "ShiftedLaplacian", "'gamg'")
def preconditioner_that_is_a_name(kit: Kit) -> None:
    _layered(kit, (0, 0), (1, 1), 0.1, preconditioner="gamg")


@case(ValueError, "preconditioner", "shifted sibling", "poisson")
def preconditioner_of_an_equation_without_waves(kit: Kit) -> None:
    shifted = npde.ShiftedLaplacian()
    kit.solve(npde.physics.poisson(), bcs=[npde.Dirichlet(0.0)], t=None, dt=None, observe=None, preconditioner=shifted)


@case(ValueError, "preconditioner", "stationary")
def preconditioner_of_a_time_step(kit: Kit) -> None:
    kit.solve(preconditioner=npde.ShiftedLaplacian())


@case(UserWarning, "points a wavelength")
def waves_that_the_mesh_does_not_resolve(kit: Kit) -> None:
    kit.solve(npde.physics.helmholtz(50.0), bcs=[npde.Robin(-50j)], t=None, dt=None, observe=None)


@case(ValueError, "sweep", "'q'", "['D']")
def sweep_of_a_parameter_that_is_not_there(kit: Kit) -> None:
    next(npde.sweep(kit.problem(npde.physics.poisson(npde.Parameter("D", 1.0))), npde.Parameter("q", 1.0), [1.0]))


@case(ValueError, "sweep", "stationary")
def sweep_of_time_steps(kit: Kit) -> None:
    d = npde.Parameter("D", 1.0)
    next(npde.sweep(kit.problem(npde.physics.heat(d)), d, [1.0]))


# -- tensors -----------------------------------------------------------------------------------------------------


def _growing(kit: Kit) -> npde.FEM | npde.FD:
    D, r = npde.Parameter("D", 0.1, bounds=(0, None)), npde.Parameter("r", lambda x: 1 + x[0], field=True)
    return kit.problem(npde.physics.fisher_kpp(D, r))


def _layer(kit: Kit, **options: Any) -> learn.Layer:
    return learn.Layer(_growing(kit), **{"t": (0, 0.1), "dt": 0.1, **options})


def _state(layer: learn.Layer, **options: Any) -> torch.Tensor:
    return torch.full((layer.problem.n_owned,), 0.5, **{"dtype": torch.float64, **options})


@case(TypeError, "u0", "ndarray", "torch.Tensor")
def layer_of_an_array(kit: Kit) -> None:
    layer = _layer(kit)
    layer(_state(layer).numpy() if kit.chosen else _state(layer))


@case(TypeError, "u0", "int64", "float32, float64")
def layer_of_integers(kit: Kit) -> None:
    layer = _layer(kit)
    layer(_state(layer).long() if kit.chosen else _state(layer))


@case(TypeError, "u0", "complex128", "float32, float64")
def layer_of_complex_numbers(kit: Kit) -> None:
    layer = _layer(kit)
    layer(_state(layer, dtype=torch.complex128))


@case(ValueError, "u0", "this rank owns", "dofs of 25", "for a batch")
def layer_of_a_wrong_shape(kit: Kit) -> None:
    layer = _layer(kit)
    layer(_state(layer)[1:] if kit.chosen else _state(layer))


@case(ValueError, "parameter 'r'", "this rank owns", "dofs of 25")
def layer_of_a_field_of_wrong_shape(kit: Kit) -> None:
    layer = _layer(kit, inputs=("u0", "r"))
    layer(_state(layer), _state(layer)[:-1] if kit.chosen else _state(layer))


@case(ValueError, "parameter 'D'", "(2, 2)", "()", "(B,)")
def layer_of_a_number_of_wrong_shape(kit: Kit) -> None:
    layer = _layer(kit, inputs=("u0", "D"))
    layer(_state(layer), torch.ones(2, 2))


@case(ValueError, "shape (0, ", "for a batch")
def layer_of_an_empty_batch(kit: Kit) -> None:
    layer = _layer(kit)
    layer(_state(layer).expand(0, -1))


@case(ValueError, "unlike sizes", "u0 2", "parameter 'D' 3")
def layer_of_batches_of_unlike_sizes(kit: Kit) -> None:
    layer = _layer(kit, inputs=("u0", "D"))
    layer(_state(layer).expand(2, -1), torch.ones(3))


@case(ValueError, "u0", "NaN")
def layer_of_nan(kit: Kit) -> None:
    layer = _layer(kit)
    layer(_state(layer) * (float("nan") if kit.chosen else 1))


@case(ValueError, "parameter 'D'", "NaN")
def layer_with_a_weight_of_nan(kit: Kit) -> None:
    layer = _layer(kit)
    with torch.no_grad():
        layer.D.fill_(float("nan"))
    layer(_state(layer))


@case(ValueError, "several devices", "u0 on meta", "the layer's own tensors on cpu")
def layer_of_tensors_on_several_devices(kit: Kit) -> None:
    layer = _layer(kit)
    layer(_state(layer, device="meta"))


@case(ValueError, "u0", "sparse", "dense")
def layer_of_a_sparse_tensor(kit: Kit) -> None:
    layer = _layer(kit)
    layer(_state(layer).to_sparse())


@case(TypeError, "2 tensors given", "1 allowed: u0")
def layer_of_too_many_tensors(kit: Kit) -> None:
    layer = _layer(kit)
    layer(_state(layer), _state(layer))


@case(ValueError, "u0", "requires a gradient", "detach()")
def layer_by_a_first_iterate(kit: Kit) -> None:
    problem = kit.problem(npde.physics.poisson(npde.Parameter("D", 1.0)), [npde.Dirichlet(0.0)])
    learn.Layer(problem, inputs="u0")(torch.zeros(problem.n_owned, requires_grad=True))


@case(ValueError, "dt", "requires a gradient", "detach()")
def layer_by_its_step(kit: Kit) -> None:
    _layer(kit, dt=torch.tensor(0.1, requires_grad=True))


@case(ValueError, "t: ", "requires a gradient")
def solve_by_its_interval(kit: Kit) -> None:
    learn.differentiable(npde.solve)(_growing(kit), 0.5, (0.0, torch.tensor(0.1, requires_grad=True)), 0.1)


@case(ValueError, "u0", "requires a gradient")
def layer_by_fixed_data(kit: Kit) -> None:
    _layer(kit, inputs="r", u0=torch.zeros(25, requires_grad=True))


@case(TypeError, "observe", "function", "Probe")
def layer_with_a_callback(kit: Kit) -> None:
    _layer(kit, observe=_no_work)


@case(TypeError, "observe", "function")
def differentiable_solve_with_a_callback(kit: Kit) -> None:
    learn.differentiable(npde.solve)(_growing(kit), 0.5, (0, 0.1), 0.1, observe=([0.1], _no_work))


@case(TypeError, "observe", "'late'")
def layer_that_observes_text(kit: Kit) -> None:
    _layer(kit, observe="late")


@case(ValueError, "observe", "another problem")
def layer_with_a_foreign_probe(kit: Kit) -> None:
    _layer(kit, observe=npde.Probe(kit.problem(system()), [[0.5, 0.5]]))


@case(ValueError, "inputs", "'q'", "does not enter", "'u0'", "'D'")
def layer_by_what_enters_nothing(kit: Kit) -> None:
    _layer(kit, inputs=("u0", npde.Parameter("q", 1.0)))


@case(TypeError, "inputs", "two parts", "'w.real'")
def layer_by_a_complex_parameter(kit: Kit) -> None:
    _layer(kit, inputs=("u0", npde.ComplexParameter("w", 1.0)))


@case(TypeError, "inputs", "3")
def layer_by_a_number(kit: Kit) -> None:
    _layer(kit, inputs=3)


@case(ValueError, "'velocity'", "inertia")
def layer_by_a_velocity_without_inertia(kit: Kit) -> None:
    _layer(kit, inputs=("u0", "velocity"))


@case(ValueError, "with_velocity", "inertia")
def layer_with_a_velocity_without_inertia(kit: Kit) -> None:
    _layer(kit, with_velocity=True)


@case(ValueError, "'D' given twice")
def layer_of_an_input_that_is_trained(kit: Kit) -> None:
    _layer(kit, inputs=("u0", "D"), parameters=["D"])


@case(ValueError, "'s'", "does not enter the problem", "'D'", "'r'")
def layer_that_trains_what_is_not_there(kit: Kit) -> None:
    _layer(kit, parameters=["s"])


@case(ValueError, "'D'", "bounded", "inside the bounds [0.0, None]")
def layer_of_a_value_on_its_bound(kit: Kit) -> None:
    problem = _growing(kit)
    problem.parameters["D"].value = 0.0
    learn.Layer(problem, (0, 0.1), 0.1, bounded=True)


@case(TypeError, "problem", "NPDE", of=ANY)
def layer_of_an_equation(kit: Kit) -> None:
    learn.Layer(npde.physics.heat(), (0, 1), 0.1)


@case(ValueError, "'r'", "those that this layer trains are ['D']")
def layer_asked_for_what_it_does_not_train(kit: Kit) -> None:
    _layer(kit, parameters=["D"]).as_tensor_of("r")


@case(ValueError, "'D'", "outside its bounds")
def layer_that_writes_back_beyond_bounds(kit: Kit) -> None:
    layer = _layer(kit)
    with torch.no_grad():
        layer.D.fill_(-1.0)
    layer.write_back()


@case(TypeError, "differentiable", "npde_fem.solve", "ReducedFunctional", of=ANY)
def differentiable_square(kit: Kit) -> None:
    learn.differentiable(lambda x: x**2)


def _reduced(kit: Kit) -> Callable:
    problem = _growing(kit)
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        pyadjoint.continue_annotation()
        loss = npde.integral(npde.solve(problem, 0.5, (0, 0.1), 0.1, rescue=None), lambda u, x, t: u**2)
        pyadjoint.pause_annotation()
        controls = [pyadjoint.Control(p) for p in problem.parameters.values()]
        return learn.differentiable(pyadjoint.ReducedFunctional(loss, controls, tape=tape))


@case(ValueError, "control 1", "shape (3,)", "dofs of 25")
def reduced_functional_of_a_wrong_shape(kit: Kit) -> None:
    _reduced(kit)(torch.tensor(0.1), torch.ones(3))


@case(TypeError, "1 tensors given", "2")
def reduced_functional_of_too_few_tensors(kit: Kit) -> None:
    _reduced(kit)(torch.tensor(0.1))


@case(ValueError, "one sample only")
def reduced_functional_of_a_batch(kit: Kit) -> None:
    loss = _reduced(kit)
    loss(torch.ones(4), torch.ones(loss.slots[1].shape))


@case(ValueError, "control 0", "NaN")
def reduced_functional_of_nan(kit: Kit) -> None:
    loss = _reduced(kit)
    loss(torch.tensor(float("nan")), torch.ones(loss.slots[1].shape))


# -- networks ----------------------------------------------------------------------------------------------------


def _network(**arguments: Any) -> Any:
    return networks.cnn(**{"grid": (8, 8), "channels": (1, 2), "dtype": torch.float64, **arguments})


@case(ValueError, "layer '1'", "(4, 4)", "odd sizes", of=ANY)
def reading_an_even_kernel(kit: Kit) -> None:
    networks.interpret(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 4, padding=1)))


@case(ValueError, "layer '1'", "groups = 2", "groups = 1", of=ANY)
def reading_groups(kit: Kit) -> None:
    networks.interpret(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2)))


@case(ValueError, "layer '0'", "dilation = (2, 2)", "dilation = 1", of=ANY)
def reading_dilation(kit: Kit) -> None:
    networks.interpret(nn.Sequential(nn.Conv2d(1, 1, 3, padding=2, dilation=2)))


@case(ValueError, "layer '0'", "LSTM", "RNN and RNNCell", of=ANY)
def reading_gates(kit: Kit) -> None:
    networks.interpret(nn.Sequential(nn.LSTM(3, 3)))


@case(TypeError, "interpret", "torch.nn.Module", "'net.pt'", of=ANY)
def reading_a_name(kit: Kit) -> None:
    networks.interpret("net.pt")


@case(ValueError, "spacing = -1.0", "positive", of=ANY)
def reading_on_a_negative_spacing(kit: Kit) -> None:
    networks.interpret(nn.Conv2d(1, 1, 3, padding=1), spacing=-1.0)


@case(ValueError, "padding 0 x 0", "3 x 3", "kernel_size // 2", of=ANY)
def equation_of_a_convolution_that_shrinks(kit: Kit) -> None:
    networks.interpret(nn.Conv2d(1, 1, 3)).to_npde((8, 8))


@case(ValueError, "shape (5, 5)", "smaller than the kernel", "(9, 9)", of=ANY)
def equation_on_fewer_points_than_the_kernel_has(kit: Kit) -> None:
    networks.interpret(nn.Sequential(nn.Conv2d(1, 1, 9, padding=4))).to_npde((5, 5))


@case(ValueError, "'relo'", "'relu' meant", "tanh", of=ANY)
def network_of_an_unknown_activation(kit: Kit) -> None:
    _network(reaction="relo")


@case(ValueError, "shape (2, 8)", "at least 3", of=ANY)
def network_on_fewer_points_than_a_kernel_has(kit: Kit) -> None:
    _network(grid=(2, 8))


@case(ValueError, "'mirror'", "zeros, replicate, reflect, circular", of=ANY)
def network_with_an_unknown_boundary(kit: Kit) -> None:
    _network(boundary="mirror")


@case(ValueError, "channels (1, 2, 3)", "6 numbers", "5 steps", of=ANY)
def network_of_channels_that_are_not_those_of_its_steps(kit: Kit) -> None:
    _network(channels=(1, 2, 3), steps=5)


@case(ValueError, "dt = -1.0", "positive", of=ANY)
def network_of_negative_steps(kit: Kit) -> None:
    _network(dt=-1.0)


@case(ValueError, "dt", "0.1", "stable", of=ANY)
def network_of_unstable_steps(kit: Kit) -> None:
    networks.cnn(npde.physics.heat(1.0), grid=networks.Lattice((8, 8), 0.1), steps=2, dt=0.1)


@case(ValueError, "dt = 1", "stability limit", "0.0785", "leapfrog", of=ANY)
def wave_network_of_unstable_steps(kit: Kit) -> None:
    networks.wave_rnn((8, 8), 1, 2, speed=9.0, dt=1.0)


@case(ValueError, "'wave'", "second order in time", "wave_rnn", of=ANY)
def convolutional_network_of_waves(kit: Kit) -> None:
    networks.cnn(npde.physics.wave(), grid=(8, 8), steps=2)


@case(ValueError, "widths [4, 0]", "positive integers", of=ANY)
def perceptron_without_neurons(kit: Kit) -> None:
    networks.mlp((4, 0))


@case(ValueError, "state of shape (1, 3, 8, 8)", "(batch, 1, 8, 8)", of=ANY)
def state_of_more_channels_than_the_network_has(kit: Kit) -> None:
    _network()(torch.zeros(1, 3, 8, 8, dtype=torch.float64))


@case(ValueError, "u0", "(1, 8, 9)", "(1, 8, 8)", of=ANY)
def evolution_from_a_state_of_a_wrong_shape(kit: Kit) -> None:
    _network().as_equation().solve(np.zeros((1, 8, 9 if kit.chosen else 8)), comm=kit.comm)


@case(ValueError, "u0", "NaN", of=ANY)
def evolution_from_nan(kit: Kit) -> None:
    _network().as_equation().solve(np.full((1, 8, 8), np.nan if kit.chosen else 0.0), comm=kit.comm)


@case(ValueError, "substeps = 0", "positive integer or 'auto'", of=ANY)
def evolution_without_substeps(kit: Kit) -> None:
    _network().as_equation().solve(np.zeros((1, 8, 8)), comm=kit.comm, substeps=0)


@case(ValueError, "mesh in 1 dimensions", "lattice has 2", of=ANY)
def evolution_on_a_line(kit: Kit) -> None:
    _network().as_equation().solve(np.zeros((1, 8, 8)), dolfinx.mesh.create_interval(kit.comm, 4, (0.0, 1.0)))


LATTICE = networks.Lattice((6, 5))


def _evolution(**options: Any) -> networks.Evolution:
    return networks.cnn(**{"grid": LATTICE, "channels": 2, "steps": 1, **options}).as_equation()


def _evolve(kit: Kit, u0: Any = None, evolution: networks.Evolution | None = None, **options: Any) -> None:
    """Solve a network's equation of two channels on 6 x 5 points; that fails the case if a step is taken."""
    options = {"comm": kit.comm, "callback": _no_work, **options}
    (evolution or _evolution()).solve(np.zeros((2, 6, 5)) if u0 is None else u0, **options)


def _coefficients(diffusion: float = 0.1, size: int = 3) -> networks.Coefficients:
    tensor = diffusion * np.eye(2)[None, None]
    return networks.Coefficients([[0.0]], np.zeros((1, 1, 2)), tensor, np.zeros((1, 1, size, size)), [0.0])


@case(ValueError, "'0' is a ConvTranspose2d", "Conv1d, Conv2d, Conv3d, Linear", of=ANY)
def network_read_that_makes_points(kit: Kit) -> None:
    networks.interpret(nn.Sequential(nn.ConvTranspose2d(1, 1, 3)))


@case(ValueError, "dt = -2", "positive", of=ANY)
def network_read_with_a_negative_dt(kit: Kit) -> None:
    networks.interpret(nn.Conv1d(1, 1, 3), dt=-2)


@case(ValueError, "shape (2, 'a')", "positive integers", of=ANY)
def network_read_on_a_lattice_of_text(kit: Kit) -> None:
    networks.interpret(nn.Linear(4, 4), shape=(2, "a"))


@case(ValueError, "layers[1]", "'drift' is missing", of=ANY)
def network_of_a_dictionary_without_drift(kit: Kit) -> None:
    data = networks.interpret(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))).to_dict()
    del data["layers"][1]["drift"]
    networks.Interpretation.from_dict(data)


@case(ValueError, "shape (1, 1, 2, 2)", "odd sizes", of=ANY)
def coefficients_of_an_even_kernel(kit: Kit) -> None:
    networks.Coefficients.of_kernel(np.zeros((1, 1, 2, 2)))


@case(ValueError, "kernel", "NaN", of=ANY)
def coefficients_of_nan(kit: Kit) -> None:
    networks.Coefficients.of_kernel(np.full((1, 1, 3), np.nan))


@case(ValueError, "bias of shape (3,)", "(2,)", of=ANY)
def coefficients_of_a_bias_of_other_channels(kit: Kit) -> None:
    networks.Coefficients.of_kernel(np.zeros((2, 1, 3)), np.zeros(3))


@case(ValueError, "dt = 0.0", "positive", of=ANY)
def coefficients_of_no_time(kit: Kit) -> None:
    networks.Coefficients.of_kernel(np.zeros((1, 1, 3)), dt=0)


@case(ValueError, "spacing = [1.0, 2.0]", "1 axes", of=ANY)
def coefficients_of_too_many_spacings(kit: Kit) -> None:
    networks.Coefficients.of_kernel(np.zeros((1, 1, 3)), spacing=(1, 2))


@case(ValueError, "drift of shape (1, 1)", "(1, 1, 1)", of=ANY)
def coefficients_of_a_wrong_shape(kit: Kit) -> None:
    networks.Coefficients([[1.0]], [[1.0]], [[[[1.0]]]], np.zeros((1, 1, 3)), [0.0])


@case(ValueError, "dt = -1.0", "positive", of=ANY)
def network_of_an_equation_with_a_negative_dt(kit: Kit) -> None:
    networks.cnn(npde.physics.heat(), grid=LATTICE, steps=1, dt=-1.0)


@case(ValueError, "activation Softmax(dim=1)", "nn.ReLU", of=ANY)
def network_of_an_activation_that_is_no_reaction(kit: Kit) -> None:
    _evolution(reaction=nn.Softmax(1))


@case(ValueError, "shape (4, 5) is smaller than the kernel, (5, 5)", of=ANY)
def network_of_wide_kernels_on_a_small_grid(kit: Kit) -> None:
    networks.cnn(_coefficients(size=5), grid=(4, 5), steps=1)


@case(TypeError, "shape must be integers", "(4.5, 5)", of=ANY)
def network_on_half_a_point(kit: Kit) -> None:
    _evolution(grid=(4.5, 5))


@case(ValueError, "channels (3, 3) of layer 0", "(2, 2)", of=ANY)
def network_of_channels_that_the_equation_has_not(kit: Kit) -> None:
    networks.cnn(npde.physics.gray_scott(), grid=LATTICE, steps=1, channels=3, dt=0.1)


@case(ValueError, "unknown boundary ['zeros']", "zeros, replicate", of=ANY)
def lattice_of_a_list_of_paddings(kit: Kit) -> None:
    networks.Lattice((5, 5), boundary=["zeros"])


@case(ValueError, "boundary = 'reflect'", "'zeros'", of=ANY)
def network_of_two_paddings(kit: Kit) -> None:
    _evolution(boundary="reflect")


@case(ValueError, "dt = -1.0", "positive", of=ANY)
def perceptron_with_a_negative_dt(kit: Kit) -> None:
    networks.mlp((3, 2), dt=-1.0)


@case(ValueError, "dt = -1.0", "positive", of=ANY)
def recurrent_network_with_a_negative_dt(kit: Kit) -> None:
    networks.rnn(1, 3, dt=-1.0)


@case(ValueError, "steps = 1.5", "integer", of=ANY)
def phase_of_half_a_step(kit: Kit) -> None:
    networks.Phase(npde.physics.heat(), LATTICE, 1.0, steps=1.5)


@case(ValueError, "dt = -0.1", "positive", of=ANY)
def phase_with_a_negative_dt(kit: Kit) -> None:
    networks.Phase(npde.physics.heat(), LATTICE, -0.1)


@case(ValueError, "phase 1 takes 3 channels", "leaves 1", of=ANY)
def evolution_of_phases_with_other_channels(kit: Kit) -> None:
    first, last = (networks.Phase(npde.NPDE(components=m), LATTICE, 0.1) for m in (1, 3))
    networks.Evolution([first, last])


@case(ValueError, "u0", "shape (1, 2, 6, 5)", "(2, 6, 5)", of=ANY)
def evolution_from_a_batch(kit: Kit) -> None:
    _evolve(kit, torch.zeros(1, 2, 6, 5))


@case(ValueError, "u0", "shape (3, 6, 5)", "(2, 6, 5)", of=ANY)
def evolution_on_a_mesh_from_other_channels(kit: Kit) -> None:
    _evolve(kit, np.zeros((3, 6, 5)), on=kit.mesh())


@case(ValueError, "u0", "shape (7,)", "(6,) or (1, 6) or (1, 9)", of=ANY)
def evolution_from_an_input_of_another_width(kit: Kit) -> None:
    _evolve(kit, np.zeros(7 if kit.chosen else 6), networks.mlp((6, 9, 4)).as_equation())


@case(TypeError, "u0", "complex", of=ANY)
def evolution_from_complex_numbers(kit: Kit) -> None:
    _evolve(kit, np.zeros((2, 6, 5), complex))


@case(TypeError, "u0", "(3, ", "(2, ", "(channels, then points)", of=ANY)
def evolution_from_a_callable_of_other_channels(kit: Kit) -> None:
    _evolve(kit, lambda x: np.zeros((3 if kit.chosen else 2, x.shape[1])))


@case(TypeError, "callback", "function", "3", of=ANY)
def evolution_with_a_callback_that_is_a_number(kit: Kit) -> None:
    _evolve(kit, callback=3)


@case(ValueError, "refine = 1.5", "positive integer", of=ANY)
def evolution_on_half_a_lattice(kit: Kit) -> None:
    _evolve(kit, refine=1.5)


@case(TypeError, "on", "mesh", "'disc'", of=ANY)
def evolution_on_a_name(kit: Kit) -> None:
    _evolve(kit, on="disc")


@case(ValueError, "bcs", "meshes only", "padding", of=ANY)
def evolution_on_its_lattice_with_boundary_conditions(kit: Kit) -> None:
    _evolve(kit, bcs=[npde.Dirichlet(0.0)])


@case(ValueError, "implicit", "phase 0", "nonlocal", of=ANY)
def evolution_of_a_remainder_implicitly(kit: Kit) -> None:
    _evolve(kit, implicit=True)


@case(ValueError, "phase 0", "maximum of 3", "own lattice", of=ANY)
def evolution_of_max_pooling_elsewhere(kit: Kit) -> None:
    evolution = _evolution(grid=(9, 9), pooling=[networks.Pooling("max", 3)])
    _evolve(kit, np.zeros((2, 9, 9)), evolution, refine=2)


@case(ValueError, "phase 0", "substeps = 1", "0.2", "substeps='auto'", "implicit=True", of=ANY)
def evolution_of_unstable_steps(kit: Kit) -> None:
    evolution = networks.cnn(npde.physics.heat(), grid=LATTICE, steps=1, dt=0.2).as_equation()
    _evolve(kit, np.zeros((1, 6, 5)), evolution, refine=2)


@case(ValueError, "phase 0", "negative diffusion", "-1", of=ANY)
def evolution_of_negative_diffusion(kit: Kit) -> None:
    evolution = networks.cnn(_coefficients(-1.0), grid=LATTICE, steps=1).as_equation()
    _evolve(kit, np.zeros((1, 6, 5)), evolution, refine=2)


@case(ValueError, "no readout", "array()", of=ANY)
def evolution_observed_without_a_readout(kit: Kit) -> Any:
    return _evolution().solve(np.zeros((2, 6, 5)), comm=kit.comm).observed
