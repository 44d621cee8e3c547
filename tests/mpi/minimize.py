"""Minimise on all ranks functions that need no PDE; rank 0 saves losses and optima to the .npz file named."""

import sys
import warnings
from pathlib import Path

import npde_fem as npde
from npde_fem.optimize.functionals import misfit
from npde_fem.optimize.minimize import minimize
from npde_fem.optimize.problem import PDEConstrainedProblem
from npde_fem.optimize.regularisation import H1, L2
from npde_fem.optimize.tao import HAS_TAO

import numpy as np
import pyadjoint
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI
from pyadjoint import AdjFloat, Block, Control, ReducedFunctional
from pytest import approx

METHODS = [
    *([("tao-bqnls", "L2", 2.4), ("tao-blmvm", "H1", None), ("tao-bnls", "L2", 2.4)] if HAS_TAO else []),
    ("scipy-lbfgsb", "L2", 2.4),
]
"""Method, inner product, upper bound."""


class Function(Block):
    """A number made of parameters; value, gradient and Hessian product are functions of their arrays."""

    def __init__(self, parameters, value, gradient, product):
        super().__init__()
        self.value, self.gradient, self.product = value, gradient, product
        for parameter in parameters:
            self.add_dependency(parameter)

    def recompute_component(self, inputs, variable, index, prepared):
        return AdjFloat(self.value(*(m._ad_values() for m in inputs)))

    def evaluate_adj_component(self, inputs, adj_inputs, variable, index, prepared=None):
        return adj_inputs[0] * self.gradient(*(m._ad_values() for m in inputs))[index]

    def evaluate_tlm_component(self, inputs, tlm_inputs, variable, index, prepared=None):
        gradient = self.gradient(*(m._ad_values() for m in inputs))
        return sum(m._ad_init_object(g)._ad_dot(d) for m, g, d in zip(inputs, gradient, tlm_inputs, strict=True))

    def evaluate_hessian_component(self, inputs, hessian_inputs, adj_inputs, variable, index, relevant, prepared=None):
        point = [m._ad_values() for m in inputs]
        direction = [v.tlm_value._ad_values() for v in self.get_dependencies()]
        second = self.product(point, direction)[index]
        return adj_inputs[0] * second + hessian_inputs[0] * self.gradient(*point)[index]


def reduced(parameters, value, gradient, product):
    """The reduced functional of such a number, on a tape of its own."""
    with pyadjoint.set_working_tape() as tape:
        block = Function(parameters, value, gradient, product)
        loss = AdjFloat(value(*(m._ad_values() for m in parameters)))
        tape.add_block(block)
        block.add_output(loss.block_variable)
        return ReducedFunctional(loss, [Control(m) for m in parameters], tape=tape)


def rosenbrock(a, b):
    """(1 - a)^2 + 100 (b - a^2)^2 of two numbers (Rosenbrock 1960, Comput. J. 3)."""
    return reduced(
        [a, b],
        lambda a, b: float((1 - a) ** 2 + 100 * (b - a**2) ** 2),
        lambda a, b: [np.array(-2 * (1 - a) - 400 * a * (b - a**2)), np.array(200 * (b - a**2))],
        lambda m, d: [
            np.array((2 - 400 * (m[1] - 3 * m[0] ** 2)) * d[0] - 400 * m[0] * d[1]),
            np.array(-400 * m[0] * d[0] + 200 * d[1]),
        ],
    )


def target(x):
    return 2 + np.sin(3 * x[0]) * x[1]


def field_of(problem, field):
    """The coordinates of the field's values, and the weights that make a sum an integral."""
    field.home = problem
    ones = np.zeros(problem.n_owned)
    if isinstance(problem, npde.FD):
        return problem.coordinates().T, problem.layout.control_volumes()
    problem.rate(0.0, ones, ones)  # R = 1 everywhere: the lumped mass
    return problem.coordinates().T, ones


def quadratic(problem, field, number, x, weights):
    """1/2 int (1 + 9 y) (m - target)^2 dx + 1/2 (k - 3)^2 + (mean of m - k)^2 / 10 of a field m and a number k."""
    comm, w, goal = problem.comm, weights * (1 + 9 * x[1]), target(x)

    def total(a):
        return float(comm.allreduce(float(np.sum(a))))

    def value(m, k):
        return 0.5 * total(w * (m - goal) ** 2) + float(0.5 * (k - 3) ** 2 + 0.1 * (total(weights * m) - k) ** 2)

    def gradient(m, k):
        gap = 0.2 * (total(weights * m) - k)
        return [w * (m - goal) + gap * weights, np.array(k - 3 - gap)]

    def product(point, direction):
        gap = 0.2 * (total(weights * direction[0]) - direction[1])
        return [w * direction[0] + gap * weights, np.array(direction[1] - gap)]

    return reduced([field, number], value, gradient, product)


def on_grid(comm, n, bounds=(None, None)):
    """The quadratic on a grid of n x n points, with its field, number and problem."""
    m, k = npde.Parameter("m", 1.0, field=True, bounds=bounds), npde.Parameter("k", 1.0)
    equation = npde.NPDE(flux=lambda u, x, t: m * ufl.grad(u), source=lambda u, x, t: -u, damping=0)
    problem = npde.FD(equation, npde.Grid(comm, (n, n), (0, 0), (1, 1)))
    return quadratic(problem, m, k, *field_of(problem, m)), m, k, problem


def identified(comm, kind):
    """Growth, diffusion and a field of sources of a reaction-diffusion equation from its states, by FD or FEM."""
    D, r = npde.Parameter("D", 0.1, bounds=(1e-3, None)), npde.Parameter("r", 0.5)
    m = npde.Parameter("m", 0.5, field=True, bounds=(0, None))
    equation = npde.NPDE(flux=lambda u, x, t: D * ufl.grad(u), source=lambda u, x, t: r * u * (1 - u) + m)
    if kind == "fd":
        problem = npde.FD(equation, npde.Grid(comm, (9, 8), (0, 0), (1, 1)))
    else:
        domain = mesh.create_unit_square(comm, 8, 7)
        problem = npde.FEM(equation, fem.functionspace(domain, ("P", 1)))
    goal = problem.interpolate(lambda x, t: 0.5 + 0.3 * ufl.sin(3 * x[0]) * x[1])
    pdeco = PDEConstrainedProblem(
        problem,
        lambda s: misfit(s, goal),
        [D, m, r],
        [H1(m, 1e-2), L2(m, 1e-2), L2(r, 1e-2, reference=0.4)],
        u0=lambda x: 0.5 + 0 * x[0],
        t=(0, 0.2),
        dt=0.1,
        progress=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minimum = pdeco.minimize(max_iterations=6)
    D.value = 0.1
    product = pdeco.hessian_product({"D": 1.0, "m": 1.0})
    return minimum, product, comm.allreduce(float(product["m"] @ product["m"]))


def fail_on_one_rank(comm):
    """What all ranks say where a start is out of its bounds on one of them."""
    functional, m, k, problem = on_grid(comm, 9)
    values = problem.field_values(m)
    if comm.rank == comm.size - 1:
        values[-1] = 9.0
    problem.set_field(m, values)
    functional(functional.controls.delist([m, k]))
    try:
        minimize(functional, bounds={"m": (0, 3)})
    except ValueError as error:
        return comm.allgather(str(error))
    return ["nothing"]


if __name__ == "__main__":
    results = {}
    for method, inner, upper in METHODS:
        functional, m, k, problem = on_grid(MPI.COMM_WORLD, 9, bounds=(None, upper))
        folder, name = Path(sys.argv[1]).parent, f"{method} {inner}"
        log, file = folder / f"{method}.csv", folder / f"{method}.petsc"
        limit = 12 if inner == "H1" else 200
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            minimum = minimize(functional, method, inner=inner, gtol=1e-5, max_iterations=limit, log=log, save=file)
        results[f"{name}: history"] = np.array([[h.loss, h.gradient_norm] for h in minimum.history])
        results[f"{name}: m"] = problem.field(m).gather()
        results[f"{name}: k"] = np.array([minimum.values["k"], float(k)])
        gradient = functional.derivative()[0]
        results[f"{name}: gradient"] = problem.function(gradient.value).gather()
        assert len(log.read_text().splitlines()) == len(minimum.history) + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = minimize(functional, method, inner=inner, max_iterations=0, resume=file)
        assert again.iterations == minimum.iterations and again.loss == approx(minimum.loss, rel=1e-14)
    for kind in ("fd", "fem"):
        minimum, product, square = identified(MPI.COMM_WORLD, kind)
        results[f"{kind}: history"] = np.array([[h.loss, h.gradient_norm] for h in minimum.history])
        results[f"{kind}: end"] = np.array(
            [minimum.values["D"], minimum.values["r"], product["D"], product["r"], square]
        )
    said = fail_on_one_rank(MPI.COMM_WORLD)
    assert len(set(said)) == 1 and "'m' starts outside of its bounds" in said[0], said
    if MPI.COMM_WORLD.rank == 0:
        np.savez(sys.argv[1], **results)
