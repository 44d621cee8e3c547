"""Rates, solves and derivatives on grids with padding on all ranks; rank 0 saves them to the .npz file named."""

import importlib
import sys

import npde_fem as npde

import numpy as np
import ufl
from mpi4py import MPI

linearised = importlib.import_module("fd_linearised")
COMM = MPI.COMM_WORLD
PADDINGS = ("zeros", "replicate", "reflect")
SHAPES = {1: (9,), 2: (7, 6), 3: (5, 4, 6)}
SPACINGS = (0.2, 0.35, 0.25)


def grid(dim, padding, shape=None):
    shape = SHAPES[dim] if shape is None else shape
    upper = [0.1 * a + SPACINGS[a] * (n - 1) for a, n in enumerate(shape)]
    return npde.Grid(COMM, shape, [0.1 * a for a in range(dim)], upper, padding=padding)


def coefficients(dim, m=2, seed=0):
    """Mass, drift and diffusion of m components: every entry another number, the tensors not symmetric."""
    some = np.random.default_rng(seed)
    diffusion = 0.2 * some.normal(size=(m, m, dim, dim)) + np.eye(m)[:, :, None, None] * np.eye(dim)
    return 0.5 * some.normal(size=(m, m)), 0.5 * some.normal(size=(m, m, dim)), diffusion


def linear(dim, m=2):
    """The equation u_t = div(D grad u - c u) + m u."""
    mass, drift, diffusion = (ufl.as_tensor(c.tolist()) for c in coefficients(dim, m))
    i, j, a, b = ufl.indices(4)
    return npde.NPDE(
        flux=lambda u, x, t: ufl.as_tensor(diffusion[i, j, a, b] * ufl.grad(u)[j, b] - drift[i, j, a] * u[j], (i, a)),
        source=lambda u, x, t: ufl.dot(mass, u),
        components=m,
        name="linear",
    )


def nonlinear(dim, padding, periodic=(), shape=None):
    """Two components with parameters of every kind in flux, source and damping."""
    d, w = npde.Parameter("d", [0.2, 0.1]), linearised.field("w", (dim,))
    k, b = linearised.field("k"), npde.Parameter("b", 1.3)

    def flux(u, x, t):
        first = d[0] * k * (1 + u[1] ** 2) * ufl.grad(u[0]) - w * u[0] * u[1] + 0.1 * u[1] * ufl.grad(k)
        second = (1 + t) * d[1] * ufl.grad(u[1]) + d[0] * x[0] * ufl.as_vector([u[0].dx(dim - 1)] * dim)
        return ufl.as_tensor([[first[a] for a in range(dim)], [second[a] for a in range(dim)]])

    def source(u, x, t):
        slopes = ufl.dot(ufl.grad(u[0]), w)
        return ufl.as_vector([k * u[0] * (1 - u[1]) + 0.1 * slopes, ufl.sin(u[0] * b) - u[1] ** 2])

    equation = npde.NPDE(flux=flux, source=source, damping=lambda x, t: b * (1 + 0.2 * k), components=2)
    return npde.FD(equation, grid(dim, padding, shape), [npde.Periodic(axis) for axis in periodic])


PROBLEMS = {
    "line-zeros": lambda: nonlinear(1, "zeros"),
    "line-reflect": lambda: nonlinear(1, "reflect"),
    "plane-replicate": lambda: nonlinear(2, "replicate"),
    "plane-reflect": lambda: nonlinear(2, "reflect"),
    "plane-zeros-periodic": lambda: nonlinear(2, "zeros", [1]),
    "plane-replicate-periodic": lambda: nonlinear(2, "replicate", [0]),
    "room-reflect": lambda: nonlinear(3, "reflect"),
    # On three ranks each has one plane of points, which the mirrored one is not.
    "thin-reflect": lambda: nonlinear(2, "reflect", shape=(3, 3)),
}


def jacobian_times(problem, state, values):
    """The product of dR/du with values, by the assembled matrix."""
    matrix = problem.new_matrix()
    problem.jacobian(linearised.T, state, 0.0, -1.0, matrix)
    x, y = matrix.createVecs()
    x.array[:] = values
    matrix.mult(x, y)
    found = y.array.real.copy()
    for thing in (x, y, matrix):
        thing.destroy()
    return found


def measured():
    """Everything of all problems, as whole grids, on rank 0."""
    found = {}
    for name, make in PROBLEMS.items():
        kit = linearised.Kit(make())
        p = kit.problem
        start = p.initial(lambda x: np.stack([1 + 0.5 * np.sin(3 * x[0] + x[1]), np.cos(x[1] + 2 * x[0])]))
        results = {"value": {"": kit.value("all")}, "matrix": {"": jacobian_times(p, kit.state, kit.v)}}
        for term in (*linearised.TERMS, "integral"):
            results[term], results[f"{term} second"] = kit.back(term), kit.back(term, second=True)
        for scheme in (npde.RK4(), npde.CrankNicolson()):
            solution = npde.solve(p, start, (0, 0.02), 0.01, scheme, progress=False)
            results[scheme.name] = {"": solution.values}
        numbers = {c.name for c in kit.controls if not c.is_field}
        for what, parts in results.items():
            for part, values in parts.items():
                found[f"{name} {what} {part}"] = values if part in numbers else linearised.whole(p, values)
    return found


def main():
    found = measured()
    if COMM.rank == 0:
        np.savez(sys.argv[1], **found)


if __name__ == "__main__":
    main()
