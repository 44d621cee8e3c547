"""Batches of solves against single ones on all ranks; rank 0 prints the differences as JSON lines.

See tests/test_batch.py.
"""

import json
import sys

import npde_fem as npde
from npde_fem.options import inserted
from npde_fem.solve.batch import Batch
from npde_fem.solve.integrate import solve
from npde_fem.solve.trajectory import Cotangents, Trajectory

import numpy as np
import ufl
from dolfinx import fem, mesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD
SAMPLES = 3
DIRECT = {"npde_ksp_type": "preonly", "npde_pc_type": "lu"}


def left(x):
    return np.isclose(x[0], 0.0)


def right(x):
    return np.isclose(x[0], 1.0)


def discretise(kind, equation, bcs=()):
    if kind == "fd":
        return npde.FD(equation, npde.Grid(COMM, (7, 6), (0, 0), (1, 1)), bcs)
    space = fem.functionspace(mesh.create_unit_square(COMM, 6, 5), ("Lagrange", 1, equation.shape))
    return npde.FEM(equation, space, bcs, quadrature_degree=4)


def heat(kind, moving, periodic=False, power=0, damping=1.0):
    """Parameters of every kind: fields and numbers in the matrix, in inhomogeneities, in Dirichlet and Robin data."""
    d, k = npde.Parameter("d", lambda x: 0.3 + 0.1 * x[0], field=True), npde.Parameter("k", 0.2)
    f, a = npde.Parameter("f", lambda x: x[0] + 1, field=True), npde.Parameter("a", 0.7)
    q, r, b = npde.Parameter("q", [0.4, 0.2]), npde.Parameter("r", 1.3), npde.Parameter("b", damping)
    wave = (lambda t: 1 + ufl.sin(3 * t)) if moving else (lambda t: 1.0)
    equation = npde.NPDE(
        flux=lambda u, x, t: d * (1 + 0.1 * u**power if power else 1) * ufl.grad(u),
        source=lambda u, x, t: f * wave(t) - k * u + (0.1 * u.dx(0) ** power if power else 0),
        damping=b,
    )
    bcs = [
        npde.Dirichlet(lambda x, t: a * (1 + ufl.cos(2 * ufl.pi * x[1])) * wave(t), left),
        npde.Robin(r, lambda x, t: q[0] + q[1] * wave(t), right),
    ]
    return discretise(kind, equation, [*bcs, npde.Periodic(1)] if periodic else bcs)


def logistic(kind):
    """A linear flux and a nonlinear source."""
    d, g, f = npde.Parameter("d", 0.3), npde.Parameter("g", 0.9), npde.Parameter("f", 0.4, field=True)
    return discretise(
        kind, npde.NPDE(flux=lambda u, x, t: d * ufl.grad(u), source=lambda u, x, t: g * u * (1 - u) + f * (1 + t))
    )


def heating(kind):
    """A matrix that depends on time, and is not symmetric."""
    v, f = npde.Parameter("v", [0.4, 0.1]), npde.Parameter("f", 0.4, field=True)
    equation = npde.NPDE(
        flux=lambda u, x, t: (0.2 + t) * ufl.grad(u) - (1 + t) * u * ufl.as_vector([v[0], v[1]]),
        source=lambda u, x, t: f,
    )
    return discretise(kind, equation, [npde.Dirichlet(lambda x, t: 1 + t * x[1], left)])


def two(kind):
    """Two components, coupled by damping and source."""
    c, f = npde.Parameter("c", 0.2), npde.Parameter("f", 0.4, field=True)
    equation = npde.NPDE(
        flux=lambda u, x, t: ufl.grad(u),
        source=lambda u, x, t: ufl.as_vector([u[1] - u[0], c * u[0] + f]),
        damping=lambda x, t: ufl.as_matrix([[1.0, c], [0.0, 2.0]]),
        components=2,
    )
    return discretise(kind, equation, [npde.Dirichlet(lambda x, t: t, left, component=0)])


def schrodinger(kind, **terms):
    w = npde.ComplexParameter("w", 0.5 - 0.1j)
    potential = npde.Parameter("v", lambda x: 0.5 * x[0] ** 2, field=True)
    equation = npde.physics.schrodinger(potential, **terms)
    bcs = [npde.Dirichlet(lambda x, t: w * (1 + x[1]) * (1 + t), left)]
    return discretise(kind, equation, bcs)


def poisson(kind):
    f, a, k = npde.Parameter("f", 1.0, field=True), npde.Parameter("a", 0.3), npde.Parameter("k", 0.4)
    equation = npde.NPDE(flux=lambda u, x, t: k * ufl.grad(u), source=lambda u, x, t: f - k * u, damping=0.0)
    return discretise(kind, equation, [npde.Dirichlet(lambda x, t: a * x[1], left)])


SLOW, FAST = ((0, 0.3), 0.1), ((0, 0.012), 0.004)
MIDDLE, SOON = [0.0, 0.1, 0.3], [0.004, 0.012]
FIXED, INHOMOGENEOUS = ("b", "d", "k", "r"), ("a", "f", "q")

CASES = {
    "moving": (lambda kind: heat(kind, True), SLOW, npde.CrankNicolson, MIDDLE, (*FIXED, *INHOMOGENEOUS), ()),
    "moving-batched": (lambda kind: heat(kind, True), SLOW, npde.CrankNicolson, None, FIXED, INHOMOGENEOUS),
    "still": (lambda kind: heat(kind, False), SLOW, npde.ImplicitMidpoint, MIDDLE, INHOMOGENEOUS, ()),
    "still-batched": (lambda kind: heat(kind, False), SLOW, npde.SDIRK2, MIDDLE, ("a", "q", "k"), ("f",)),
    "all-batched": (lambda kind: heat(kind, False), SLOW, npde.BackwardEuler, None, (), INHOMOGENEOUS),
    "periodic": (lambda kind: heat(kind, True, True), SLOW, npde.CrankNicolson, None, ("d",), ("a", "f")),
    "imex": (lambda kind: heat(kind, True), SLOW, npde.IMEX, None, ("k", "f"), ("a", "q")),
    "logistic": (logistic, SLOW, npde.IMEX, MIDDLE, ("d", "g"), ("f",)),
    "heating": (heating, SLOW, npde.CrankNicolson, None, ("v", "f"), ()),
    "two": (two, SLOW, npde.CrankNicolson, None, ("c",), ("f",)),
    "schrodinger": (schrodinger, SLOW, npde.CrankNicolson, MIDDLE, ("v", "w.real", "w.imag"), ()),
    "strang": (lambda kind: schrodinger(kind, g=0.8), SLOW, npde.Strang, None, ("v", "w.real"), ()),
    "stationary": (poisson, None, None, None, ("k", "a"), ("f",)),
    "euler": (lambda kind: heat(kind, True), FAST, npde.ForwardEuler, SOON, (*FIXED, *INHOMOGENEOUS), ()),
    "rk4": (lambda kind: heat(kind, True, True, 2), FAST, npde.RK4, None, (*FIXED, *INHOMOGENEOUS), ()),
}
EXPLICIT = ("euler", "rk4")


class Comparison:
    """One batch and the single solves that it stands for, with all derivatives along random directions."""

    def __init__(self, kind, name):
        make, times, scheme, self.observe, self.shared, self.batched = CASES[name]
        self.problem = make(kind)
        self.arguments = () if times is None else (*times, scheme())
        self.controls = [self.problem.parameters[n] for n in (*self.shared, *self.batched)]
        self._owned, self._common = np.random.default_rng(COMM.rank + 1), np.random.default_rng(0)
        self.u0 = self._owned.random((SAMPLES, self.problem.n_owned))
        self.values = {n: 0.5 + self.direction(n) for n in self.batched}
        self.delta = {n: self.direction(n) for n in (*self.shared, *self.batched)}
        count = len(self.observe or ())
        self.by_final, self.along = self._owned.random((2, *self.u0.shape))
        self.by_states = self._owned.random((SAMPLES, count, self.problem.n_owned)) if count else None

    def direction(self, name):
        parameter, problem = self.problem.parameters[name], self.problem
        lead = (SAMPLES,) if name in self.batched else ()
        if parameter.is_field:
            return self._owned.random((*lead, problem.field_size(name)))
        return self._common.random((*lead, np.size(parameter.value)) if lead else np.shape(parameter.value))

    def of_sample(self, values, b):
        shapes = {n: np.shape(self.problem.parameters[n].value) for n in self.batched}
        return {
            n: (v[b] if self.problem.parameters[n].is_field else v[b].reshape(shapes[n])) if n in self.batched else v
            for n, v in values.items()
        }

    def many(self):
        batch = Batch(self.problem, *self.arguments, observe=self.observe)
        states, final = batch.solve(self.u0, self.values)
        moved_states, moved = batch.tangent(self.controls, self.delta, self.along)
        gradient = batch.adjoint(self.controls, self.by_states, self.by_final)
        return {
            "final": final,
            "states": states,
            "tangent": moved,
            "tangents": moved_states,
            "initial": gradient.initial,
            **gradient.parameters,
        }

    def single(self):
        found = []
        for b in range(SAMPLES):
            with self.problem.holding(self.of_sample(self.values, b)):
                of = Trajectory(self.problem)
                solution = solve(
                    self.problem, self.u0[b], *self.arguments, observe=self.observe, recorder=of, progress=False
                )
                of.by(self.controls)
                moved = of.tangent(self.of_sample(self.delta, b), self.along[b])
                by = Cotangents(None if self.by_states is None else self.by_states[b], self.by_final[b])
                gradient = of.adjoint(by)
                states = solution.states.reshape(-1, self.problem.n_owned)
                parts = {"final": solution.values, "states": states, "tangent": moved.final, "tangents": moved.states}
                found.append({**parts, "initial": gradient.initial, **gradient.parameters})
        return {
            n: sum(part[n] for part in found) if n in self.shared else np.stack([part[n] for part in found])
            for n in found[0]
        }

    def differences(self):
        many = self.many()
        with inserted(DIRECT):
            single = self.single()
        found = {}
        for name, expected in single.items():
            if expected.size == 0 or (name == "initial" and self.problem.stationary):
                continue
            assert isinstance(many[name], np.ndarray), name
            difference = np.abs(many[name].reshape(expected.shape) - expected).max(initial=0.0)
            scale = COMM.allreduce(np.abs(expected).max(initial=0.0), op=MPI.MAX)
            found[name] = COMM.allreduce(difference, op=MPI.MAX) / scale
        return found


def main(names):
    for kind in ("fem", "fd"):
        for name in names or CASES:
            if kind == "fem" and name in EXPLICIT:
                continue
            differences = Comparison(kind, name).differences()
            if COMM.rank == 0:
                print(json.dumps({"kind": kind, "case": name, "differences": differences}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
