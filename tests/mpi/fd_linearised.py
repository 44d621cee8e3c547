"""Derivatives of finite-difference terms on all ranks; rank 0 saves them, whole grids, to the .npz file named.

The problems hold every kind of parameter in every place where one may stand; see tests/test_fd_linearised.py.
"""

import sys

import npde_fem as npde

import numpy as np
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD
T = 0.3
TERMS = ("all", "flux", "source", "mass")


def at(axis, value):
    return lambda x: np.isclose(x[axis], value)


def number(name, value):
    return npde.Parameter(name, value)


def field(name, shape=(), cells=False):
    def values(x):
        one = 1 + 0.3 * np.sin(3 * x[0] + x[1] + 2 * x[2])
        return one if not shape else one * np.arange(1.0, 1 + np.prod(shape)).reshape(*shape, 1)

    return npde.Parameter(name, values, field=("DG", 0) if cells else True, shape=shape)


def grid(*shape, mask=None):
    return npde.Grid(COMM, shape, (0,) * len(shape), (1,) * len(shape), mask)


def line():
    """Drift, growth and diffusion in one dimension; boundary data and damping with numbers, fields and time."""
    D, c, r, k, b = number("D", 0.4), number("c", 0.3), field("r"), field("k", cells=True), field("b")
    g, alpha = number("g", 0.2), number("alpha", 1.5)
    equation = npde.NPDE(
        flux=lambda u, x, t: D * k * ufl.grad(u) - c * u**2 * ufl.as_vector([1 + t]) + 0.1 * u * ufl.grad(r),
        source=lambda u, x, t: r * u * (1 - u) + c * u * u.dx(0),
        damping=lambda x, t: b * D * (1 + x[0]),
    )
    bcs = [
        npde.Dirichlet(lambda x, t: g**2 * (1 + ufl.sin(t)) * r, at(0, 0)),
        npde.Robin(lambda x, t: alpha * r * (1 + t), lambda x, t: g * r.dx(0) * k, at(0, 1)),
    ]
    return npde.FD(equation, grid(9), bcs)


def plane(mask=None):
    """Porous-medium diffusion by a full tensor, drift by a field of vectors; data with normals and slopes of fields."""
    A, w, q, s = number("A", [[0.4, 0.1], [0.05, 0.3]]), field("w", (2,)), number("q", 0.7), field("s")
    equation = npde.NPDE(
        flux=lambda u, x, t: u * ufl.dot(A, ufl.grad(u)) / (1 + s**2) - u * w,
        source=lambda u, x, t: s * ufl.dot(ufl.grad(u), ufl.grad(u)) + ufl.exp(-q * u),
        damping=q,
    )
    inside = None if mask is None else mask
    bcs = [
        npde.Dirichlet(lambda x, t: s * q * (1 + t), at(0, 0) if mask is None else lambda x: x[0] > 0.9),
        npde.Flux(
            lambda x, t, n: q * n[0] * t + ufl.dot(n, ufl.grad(s)) + w[0] * x[1], at(1, 1) if mask is None else None
        ),
    ]
    if mask is None:
        # Of two conditions at one point the later one holds.
        bcs.append(npde.Dirichlet(lambda x, t: q**2, lambda x: np.isclose(x[0], 0) & (x[1] < 0.4)))
    return npde.FD(equation, grid(7, 6, mask=inside), bcs)


def disc():
    return plane(lambda x: (x[0] - 0.6) ** 2 + (x[1] - 0.5) ** 2 < 0.23)


def gray_scott(mask=None):
    """Two components, coupled in every term; one component prescribed; periodic or on a mask."""
    d, F, k = number("d", [0.2, 0.1]), number("F", 0.3), field("k")
    B, h = number("B", [[1.0, 0.2], [-0.1, 2.0]]), field("h", (2, 2))
    equation = npde.NPDE(
        flux=lambda u, x, t: ufl.as_tensor(
            [[d[0] * u[0].dx(0), d[0] * u[0].dx(1)], [d[1] * u[0] * u[1].dx(0), d[1] * u[1].dx(1) - F * u[0] * u[1]]]
        ),
        source=lambda u, x, t: ufl.as_vector(
            [-u[0] * u[1] ** 2 + F * (1 - u[0]), u[0] * u[1] ** 2 - (F + k) * u[1] * ufl.cos(t)]
        ),
        damping=(lambda x, t: B) if mask is None else (lambda x, t: B + ufl.dot(h, h)),
        components=2,
    )
    bcs = [
        npde.Dirichlet(lambda x, t: k * F, (lambda x: x[0] > 0.9) if mask else at(0, 1), component=1),
        npde.Robin(F, lambda x, t: ufl.as_vector([k, F * t]), None if mask else at(0, 0)),
        npde.Robin(lambda x, t: k * x[0], 0.1, None if mask else at(0, 1), component=0),
    ]
    return npde.FD(equation, grid(6, 7, mask=mask), bcs if mask else [npde.Periodic(1), *bcs])


def gray_scott_on_a_disc():
    return gray_scott(lambda x: (x[0] - 0.5) ** 2 + (x[1] - 0.5) ** 2 < 0.3)


def room():
    """Three dimensions, periodic along one: diffusion by a tensor whose size is a field in the cells."""
    D, e = field("D", cells=True), number("e", 0.2)
    tensor = ufl.as_matrix((np.eye(3) + 0.2 * np.triu(np.ones((3, 3)), 1)).tolist())
    equation = npde.NPDE(
        flux=lambda u, x, t: D * (1 + e * u**2) * ufl.dot(tensor, ufl.grad(u)), source=lambda u, x, t: D * e * u**3
    )
    bcs = [npde.Periodic(1), npde.Flux(lambda x, t: D * e, at(2, 1)), npde.Dirichlet(e, at(0, 0))]
    return npde.FD(equation, grid(5, 6, 4), bcs)


PROBLEMS = {f.__name__: f for f in (line, plane, disc, gray_scott, gray_scott_on_a_disc, room)}


def integrand(problem):
    """A density with a number of its own, a parameter of the problem, slopes, and time."""
    weight, first = number("weight", 0.6), next(iter(problem.parameters.values()))
    size = first[(0,) * len(first.ufl_shape)] if first.ufl_shape else first

    def density(u, x, t):
        return weight * ufl.inner(u, u) * size + ufl.inner(ufl.grad(u), ufl.grad(u)) * weight**2 + x[0] * t * size

    return density


def start(problem):
    """Initial data with a field of its own and a number."""
    hill, height = field("hill"), number("height", 1.2)
    shape = problem.equation.state_shape

    def data(x, t):
        one = height * hill**2 + hill.dx(0)
        return ufl.as_vector([one, x[0] * hill]) if shape else one

    return data


def wave(problem, k, size=None):
    """Values at this rank's points, the same on any number of ranks."""
    x, size = problem.layout.coordinates(), size or problem.components
    phase = 2.1 * x[0] + 3.3 * x[1] + 1.7 * x[2]
    return np.stack([np.sin(k * phase + 1.3 * c + k) for c in range(size)], axis=1).ravel()


def direction(problem, parameter, k=5):
    if parameter.is_field:
        return wave(problem, k, int(np.prod(parameter.ufl_shape, dtype=int)))
    shape = parameter.ufl_shape
    return np.cos(k + np.arange(np.prod(shape, dtype=int))).reshape(shape)


class Kit:
    """A problem linearised by all its parameters, with a state, directions and an adjoint."""

    def __init__(self, problem):
        self.problem = p = problem
        density, data = integrand(p), start(p)
        p.write_nodal(data)
        p.write_integral(density)
        self.controls = list(p.parameters.values())
        self.linearised = lin = p.linearised(self.controls)
        self.integral, self.initial, self.prescribed = lin.integral(density), lin.initial(data), lin.prescribed()
        self.start = data
        inside = np.repeat(p.domain.inside, p.components)
        self.u, self.v = ((0.7 + 0.2 * wave(p, 2)) * inside, wave(p, 3) * inside)
        self.state, self.along = p.new_state(), p.new_state()
        p.load(self.u, self.state)
        p.load(self.v, self.along)
        self.delta = {c.name: direction(p, c) for c in self.controls}
        self.adjoint = wave(p, 4)
        self.adjoint[p.constrained] = 0.0
        self.base = {c.name: p.field_values(c) if c.is_field else c.value for c in self.controls}
        lin.move(self.delta)
        self.move(0.0)

    def move(self, e):
        """Put state and parameters to their values plus ``e`` times the directions."""
        p = self.problem
        for c in self.controls:
            value = self.base[c.name] + e * self.delta[c.name]
            if c.is_field:
                p.set_field(c, value)
            else:
                c.value = value
        p.update()
        self.moved = self.u + e * self.v
        p.load(self.moved, self.state)
        self.linearised.at(T, self.state, self.along)

    def value(self, term):
        out = np.zeros(self.problem.n_owned)
        if term == "mass":
            self.problem.mass_times(self.moved, out)
        else:
            self.problem.rate(T, self.state, out, term)
        return out

    def tangent(self, term):
        out = np.zeros(self.problem.n_owned)
        self.linearised.tangent(term, out)
        return out

    def back(self, term, second=False):
        """What comes back from a term, or from the integral: the pull and the gradient, by name."""
        lin, out = self.linearised, np.zeros(self.problem.n_owned)
        lin.clear()
        of, weight = (self.integral, (0.8,)) if term == "integral" else (lin, (term, self.adjoint))
        (of.pull_second if second else of.pull)(*weight, out)
        (of.collect_second if second else of.collect)(*weight)
        return {"state": out, **lin.gradient()}

    def back_from_nodes(self, nodal, second=False):
        self.linearised.clear()
        (nodal.collect_second if second else nodal.collect)(T, wave(self.problem, 4))
        return self.linearised.gradient()

    def dot(self, a, b):
        return self.problem.comm.allreduce(float(a @ b))

    def paired(self, back):
        """The directions dotted with what came back."""
        total = self.dot(back["state"], self.v) if "state" in back else 0.0
        for c in self.controls:
            found = back[c.name]
            total += self.dot(found, self.delta[c.name]) if c.is_field else float(np.sum(found * self.delta[c.name]))
        return total


def whole(problem, values):
    """Values of all ranks in the order of the grid, on rank 0."""
    return npde.discretize.grid.GridFunction(problem.layout, values, values.size // problem.layout.n_points).gather()


def measured(problems):
    """All derivatives of some problems, as whole grids, on rank 0."""
    found = {}
    for name, make in problems.items():
        kit = Kit(make())
        results = {}
        for term in (*TERMS, "integral"):
            results[term], results[f"{term} second"] = kit.back(term), kit.back(term, second=True)
        for label, nodal in (("prescribed", kit.prescribed), ("initial", kit.initial)):
            results[label], results[f"{label} second"] = (kit.back_from_nodes(nodal, s) for s in (False, True))
        results["tangent"] = {term: kit.tangent(term) for term in TERMS}
        results["value"] = {"": np.array([kit.integral.value(), kit.integral.tangent()])}
        numbers = {c.name for c in kit.controls if not c.is_field} | {""}
        for what, parts in results.items():
            for part, values in parts.items():
                found[f"{name} {what} {part}"] = values if part in numbers else whole(kit.problem, values)
    return found


def main():
    found = measured(PROBLEMS)
    if COMM.rank == 0:
        np.savez(sys.argv[1], **found)


if __name__ == "__main__":
    main()
