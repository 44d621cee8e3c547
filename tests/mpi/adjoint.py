"""Gradients and Hessian products of taped solves on all ranks; rank 0 prints them as JSON, a line an experiment.

Arguments: names of schemes, all by default.

One equation holds every kind of control in every place where one may stand; see tests/test_adjoint.py. Products of
gradients with functions of position are the same on any number of ranks.
"""

import json
import sys

import npde_fem as npde
from npde_fem.optimize.values import as_array, with_values

import numpy as np
import pyadjoint
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from pyadjoint import Control, ReducedFunctional

COMM = MPI.COMM_WORLD
END, STEPS = 0.3, 6
POINTS = np.array([[0.21, 0.33], [0.5, 0.5], [0.77, 0.12], [0.4, 0.9]])
KINDS = ("fem", "fd")
FIRST = {"r": 1.5, "g": 0.3, "f": 0.1, "alpha": 0.5, "height": 0.4}
SCHEMES = ("forward-euler", "rk4", "implicit-midpoint", "crank-nicolson", "sdirk2", "imex", "stationary")


def at(axis, value):
    return lambda x: np.isclose(x[axis], value)


def wave(places, k):
    """A smooth function at some places, shape (n, 3)."""
    return np.sin(k + (k + 1) * places[:, 0] + 2.3 * places[:, 1])


def hats(t, amplitudes):
    """A control in time: amplitudes at equal distances, linear between."""
    width = END / (len(amplitudes) - 1)
    return sum(a * ufl.max_value(0.0, 1 - abs(t - i * width) / width) for i, a in enumerate(amplitudes))


def make_problem(kind, stationary=False, comm=COMM):
    """Nonlinear diffusion, drift and growth, with parameters in every term, the boundary data and the damping."""
    D = npde.Parameter("D", lambda x: 0.03 + 0.01 * x[0], field=True)
    b = npde.Parameter("b", lambda x: 1 + 0.3 * x[1], field=True)
    c = npde.Parameter("c", lambda x: 1 + 0.2 * x[0] * x[1], field=("DG", 0))
    K = npde.Parameter("K", [[1.0, 0.2], [0.1, 0.8]])
    q = npde.Parameter("q", [0.3, -0.2])
    a = npde.Parameter("a", [0.5, 0.2, 0.8])
    r, g, f, alpha, height = (npde.Parameter(n, v) for n, v in FIRST.items())

    def source(u, x, t):
        growth = r * u * (1 - u) + hats(t, [a[0], a[1], a[2]]) * x[0] + 0.2 * height**2 * x[1]
        return growth - 2 * b * u if stationary else growth

    equation = npde.NPDE(
        flux=lambda u, x, t: D * c * (1 + u) * ufl.dot(K, ufl.grad(u)) - u**2 * q,
        source=source,
        damping=0 if stationary else lambda x, t: b,
    )
    bcs = [
        npde.Dirichlet(lambda x, t: g**2 * (1 + t + t**2 / 2) * (1 + x[1]) + 4 * D, at(0, 0)),
        npde.Flux(lambda x, t: f**2 * (1 + x[0] * t) * b, at(1, 1)),
        npde.Robin(alpha, lambda x, t: 0.2 * alpha**2 * b, at(0, 1)),
    ]
    if kind == "fd":
        return npde.FD(equation, npde.Grid(comm, (7, 6), (0, 0), (1, 1)), bcs)
    space = fem.functionspace(mesh.create_unit_square(comm, 6, 5), ("Lagrange", 1))
    return npde.FEM(equation, space, bcs, quadrature_degree=3)


def start(problem):
    """Initial data with a parameter."""
    height = problem.parameters["height"]
    return npde.Initial(lambda x, t: height**2 * (1 + x[0] * (1 - x[0])) * (1 + 0.2 * x[1]))


def density(problem):
    """A density to be integrated in space and time."""
    height = problem.parameters["height"]
    return lambda u, x, t: 3 * height**2 * u + u**3 * (1 + t) * x[0]


def arguments(scheme):
    """Arguments of a solve by the scheme of this name."""
    if scheme == "stationary":
        return {}
    made = npde.scheme_named(scheme)
    return {"t": (0, END), "dt": END / STEPS, "observe": [END / 2, END], "scheme": made}


def loss_of(solution):
    """A sum of every kind of functional: at points, over the domain, in time, at the end, of parameters."""
    problem = solution.problem
    D, r = problem.parameters["D"], problem.parameters["r"]
    times = len(solution.times) or 1
    numbers = np.linspace(0.1, 0.4, times * len(POINTS)).reshape(times, -1)
    return (
        npde.misfit(solution, numbers, at=POINTS, sigma=0.4)
        + npde.misfit(solution, [0.1, lambda x: 0.2 + x[0]][:times], sigma=np.array([0.5, 0.3])[:times])
        + 5 * solution.integrals[0] ** 2
        + npde.integral(solution, lambda u, x, t: 20 * D * u**3)
        + npde.integral(problem, lambda u, x, t: 100 * ufl.inner(ufl.grad(D), ufl.grad(D)) * r**2)
    )


def places(problem, control):
    """Where the values of a control lie, shape (n, 3); for numbers any different places."""
    if isinstance(control, npde.Parameter) and not control.is_field:
        return np.arange(1.0, 1 + 3 * control.ufl_shape_size).reshape(-1, 3)
    if isinstance(control, npde.Parameter) and isinstance(problem, npde.FEM):
        space = problem.field(control).function_space
        return space.tabulate_dof_coordinates()[: space.dofmap.index_map.size_local]
    return problem.coordinates()


class Experiment:
    """A loss on a tape of its own, and derivatives of it by controls along directions of arrays."""

    def __init__(self, problem, make_loss, controls=None):
        self.problem = problem
        with pyadjoint.set_working_tape() as tape:
            pyadjoint.continue_annotation()
            self.loss = make_loss()
            pyadjoint.pause_annotation()
            controls = list(problem.parameters.values()) if controls is None else controls
            self.reduced = ReducedFunctional(self.loss, [Control(c) for c in controls], tape=tape)
        self.controls = {c.name: c for c in controls}
        self.at = {name: as_array(c) for name, c in self.controls.items()}

    def direction(self, name, k=2, size=0.1):
        """A smooth direction of a control, of the given size as compared with its value."""
        values, control = self.at[name], self.controls[name]
        scale = size * max(0.1, self.largest(values))
        if not self.is_spread(name):
            return scale * np.cos(k + np.arange(values.size)).reshape(values.shape)
        return scale * wave(places(self.problem, control), k)

    def largest(self, values):
        return COMM.allreduce(float(np.abs(values).max(initial=0.0)), op=MPI.MAX)

    def is_spread(self, name):
        control = self.controls[name]
        return getattr(control, "_ad_spread", hasattr(control, "x"))

    def moved(self, directions, step):
        """The controls, moved along directions by name; those without one stay."""
        return [
            with_values(c, self.at[name] + step * directions[name] if name in directions else self.at[name])
            for name, c in self.controls.items()
        ]

    def value(self, directions, step):
        return float(self.reduced(self.moved(directions, step)))

    def derivative(self):
        return self.by_name(self.reduced.derivative())

    def hessian(self, directions):
        """The Hessian times a direction; where the loss was evaluated last, and after a derivative there."""
        along = [with_values(c, directions.get(n, np.zeros_like(self.at[n]))) for n, c in self.controls.items()]
        return self.by_name(self.reduced.hessian(along))

    def by_name(self, found):
        return {name: as_array(d) for name, d in zip(self.controls, found, strict=True)}

    def dot(self, found, directions):
        """Product of a gradient and a direction."""
        total = 0.0
        for name, d in directions.items():
            product = float(np.vdot(found[name], d))
            total += COMM.allreduce(product) if self.is_spread(name) else product
        return total

    def taylor(self, directions):
        """Rates at which the first and the second remainder fall, along each of several directions."""
        slopes = self.derivative()
        products = [self.hessian(d) for d in directions]
        return [
            self.rates(d, self.dot(slopes, d), self.dot(product, d))
            for d, product in zip(directions, products, strict=True)
        ]

    def rates(self, direction, slope, curvature):
        """Rates of the remainders, each the best of five halvings: long steps see higher terms, short ones rounding.

        That of a second one of nothing but rounding errors is infinite.
        """
        value, steps = float(self.loss), 0.4 * 0.5 ** np.arange(6)
        first = np.array([self.value(direction, e) for e in steps]) - value - steps * slope
        second = first - 0.5 * steps**2 * curvature
        self.value({}, 0.0)
        best = [float(np.log2(np.abs(r[:-1] / r[1:])).max()) for r in (first, second)]
        return [best[0], np.inf if np.abs(second).max() < 1e-13 * abs(value) else best[1]]


def experiment(kind, scheme):
    """The loss of a solve by all parameters, those of the initial data too."""
    problem = make_problem(kind, scheme == "stationary")
    u0 = 0.3 if scheme == "stationary" else start(problem)
    made = arguments(scheme)
    return Experiment(problem, lambda: loss_of(npde.solve(problem, u0, integrals=[density(problem)], **made)))


def measure(one):
    """Loss, products of gradient and Hessian with directions, and the rates of a Taylor test."""
    along = {name: one.direction(name) for name in one.controls}
    gradient, product = one.derivative(), one.hessian(along)
    found = {"loss": [float(one.loss)]}
    for label, values in (("gradient", gradient), ("hessian", product)):
        found[label] = [one.dot(values, {n: one.direction(n, k)}) for n in sorted(one.controls) for k in (1, 2)]
    found["rates"] = one.rates(along, one.dot(gradient, along), one.dot(product, along))
    return found


def main():
    for kind in KINDS:
        for scheme in sys.argv[1:] or SCHEMES:
            found = measure(experiment(kind, scheme))
            if COMM.rank == 0:
                print(json.dumps({"kind": kind, "scheme": scheme, **found}), flush=True)


if __name__ == "__main__":
    main()
