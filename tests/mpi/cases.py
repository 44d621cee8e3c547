"""Solve many small problems on all ranks; rank 0 saves their values, sorted by coordinates, to the .npz file named."""

import sys
import warnings

import npde_fem as npde

import dolfinx
import numpy as np
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD


def at(axis, value):
    return lambda x: np.isclose(x[axis], value)


def fisher(dim):
    """Nonlinear, anisotropic diffusion with a drift; growth whose rate is a field."""
    rate = npde.Parameter("rate", lambda x: 1 + x[0], field=True)
    cells = npde.Parameter("cells", lambda x: 1 + np.floor(4 * x[0] + 1e-6), field=("DG", 0))
    tensor = ufl.as_matrix((np.eye(dim) + 0.2 * np.triu(np.ones((dim, dim)), 1)).tolist())

    def flux(u, x, t):
        return 0.1 * cells * (1 + u**2) * ufl.dot(tensor, ufl.grad(u)) - u * ufl.as_vector([0.3] * dim)

    return npde.NPDE(flux=flux, source=lambda u, x, t: rate * u * (1 - u) * (1 + ufl.sin(t)))


def predators():
    def flux(u, x, t):
        return ufl.as_tensor([list(0.02 * ufl.grad(u[0])), list((0.01 + 0.02 * u[0]) * ufl.grad(u[1]))])

    def source(u, x, t):
        return ufl.as_vector([u[0] * (1 - u[0]) - u[0] * u[1], u[0] * u[1] - 0.3 * u[1]])

    return npde.NPDE(flux=flux, source=source, damping=[[1.0, 0.1], [0.0, 1.5]], components=2)


def conditions(dim):
    last = dim - 1
    return [npde.Dirichlet(lambda x, t: 0.2 + 0.1 * ufl.sin(3 * t), at(0, 0)), npde.Robin(1.5, 0.4, at(last, 1))]


def bump(x):
    return 0.2 + 0.5 * np.sin(2 * x[0] + 1) * np.cos(3 * x[1]) + 0.1 * x[2]


def packet(x):
    return bump(x) * np.exp(3j * x[1])


def bumps(x):
    return np.array([bump(x), 0.3 + 0.1 * np.cos(4 * x[1])])


def disc(x):
    return (x[0] - 0.5) ** 2 + (x[1] - 0.5) ** 2 < 0.2


def grid(shape, mask=None):
    return npde.Grid(COMM, shape, (0,) * len(shape), (1,) * len(shape), mask)


def fem(eq, mesh, degree=1, bcs=(), **options):
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree, eq.shape))
    return npde.FEM(eq, space, bcs, quadrature_degree=options.pop("quadrature_degree", 4), **options)


def square(n, cell="triangle"):
    return dolfinx.mesh.create_unit_square(COMM, n, n, getattr(dolfinx.mesh.CellType, cell))


def problems():
    """Yield name, problem, initial data, scheme, dt."""
    sdirk, rk4, imex = npde.SDIRK2(), npde.RK4(), npde.IMEX()
    yield "fd implicit", npde.FD(fisher(2), grid((13, 11)), conditions(2)), bump, sdirk, 0.02
    yield "fd explicit", npde.FD(fisher(2), grid((13, 11)), conditions(2)), bump, rk4, 1e-3
    yield "fd 1d", npde.FD(fisher(1), grid((33,)), [npde.Periodic(0)]), bump, npde.CrankNicolson(), 0.02
    periodic = [npde.Periodic(1), *conditions(1)]
    yield "fd periodic implicit", npde.FD(fisher(2), grid((9, 14)), periodic), bump, imex, 0.02
    yield "fd periodic explicit", npde.FD(fisher(2), grid((9, 14)), periodic[:1]), bump, rk4, 1e-3
    masked = npde.FD(npde.physics.fisher_kpp(0.1), grid((14, 14), disc), [npde.Robin(1.0, 0.3)])
    yield "fd masked implicit", masked, bump, npde.BackwardEuler(), 0.02
    yield "fd masked explicit", masked, bump, npde.ForwardEuler(), 1e-3
    # Some ranks have no point of the mask.
    corner = npde.FD(npde.physics.fisher_kpp(0.01), grid((16, 16), lambda x: np.maximum(x[0], x[1]) < 0.3))
    yield "fd masked corner implicit", corner, bump, sdirk, 0.02
    yield "fd masked corner explicit", corner, bump, rk4, 0.01
    few = [npde.Dirichlet(0.5, at(0, 0), component=1), npde.Flux(0.1, at(1, 1), component=0)]
    yield "fd m=2 implicit", npde.FD(predators(), grid((10, 9)), few), bumps, sdirk, 0.05
    yield "fd m=2 explicit", npde.FD(predators(), grid((10, 9)), few), bumps, rk4, 0.01
    yield "fd 3d", npde.FD(fisher(3), grid((7, 6, 8)), conditions(3)), bump, sdirk, 0.05
    yield "fd 3d explicit", npde.FD(fisher(3), grid((7, 6, 8)), conditions(3)), bump, rk4, 1e-3
    yield "fem implicit", fem(fisher(2), square(8), bcs=conditions(2)), bump, sdirk, 0.02
    yield "fem explicit", fem(fisher(2), square(8), bcs=conditions(2)), bump, rk4, 5e-4
    yield "fem degree 2", fem(fisher(2), square(5, "quadrilateral"), 2, conditions(2)), bump, imex, 0.02
    yield "fem m=2 implicit", fem(predators(), square(7), bcs=few), bumps, sdirk, 0.05
    yield "fem m=2 lumped", fem(predators(), square(7), bcs=few, mass="lumped"), bumps, rk4, 0.01
    cube = dolfinx.mesh.create_unit_cube(COMM, 4, 3, 4)
    yield "fem 3d", fem(fisher(3), cube, bcs=conditions(3)), bump, sdirk, 0.05
    trapped = npde.physics.schrodinger(lambda x: 9 * x[0] ** 2, g=0.5)
    yield "fd complex", npde.FD(trapped, grid((13, 11)), [npde.Dirichlet(0.2j, at(0, 0))]), packet, npde.Strang(), 0.02
    midpoint = npde.ImplicitMidpoint()
    yield "fem complex", fem(trapped, square(7), 2, [npde.Dirichlet(0.2j, at(0, 0))]), packet, midpoint, 0.02
    separating = npde.physics.cahn_hilliard(0.2)
    yield "fd constraint", npde.FD(separating, grid((12, 11))), bumps, npde.SDIRK2(), 1e-3
    # Most ranks see nothing but zeros, exactly.
    quiet = npde.NPDE(flux=lambda u, x, t: 1e-3 * ufl.grad(u), source=lambda u, x, t: u * (1 - u))
    yield "fd front", npde.FD(quiet, grid((65,))), lambda x: np.where(x[0] < 0.1, 1.0, 0.0), npde.CrankNicolson(), 0.05
    interval = dolfinx.mesh.create_unit_interval(COMM, 64)
    yield "fem front", fem(quiet, interval), lambda x: np.where(x[0] < 0.1, 1.0, 0.0), npde.CrankNicolson(), 0.05


def stationary():
    """Yield name, problem, first iterate."""
    eq = fisher(2)
    eq = npde.NPDE(flux=eq.flux, source=lambda u, x, t: 1 + x[0] - u**3, damping=0)
    yield "fd stationary", npde.FD(eq, grid((13, 11)), conditions(2)), 0.5
    yield "fem stationary", fem(eq, square(8), bcs=conditions(2)), 0.5
    waves = npde.physics.helmholtz(9.0, source=lambda x: ufl.exp(-50 * (x[0] - 0.4) ** 2))
    yield "fd complex stationary", npde.FD(waves, grid((13, 11)), [npde.Robin(-9j, 1.0 + 2j)]), 0.0
    yield "fem complex stationary", fem(waves, square(8), 2, [npde.Robin(-9j, 1.0 + 2j)]), 0.0


def gathered(problem, values):
    """All values, sorted by the coordinates of their nodes, on rank 0; a node is owned by one rank."""
    parts = COMM.gather((problem.coordinates(), values.reshape(-1, problem.components)))
    if parts is None:
        return None
    x, u = (np.concatenate(p) for p in zip(*parts, strict=True))
    order = np.lexsort(x.round(9).T)
    assert np.all(np.any(np.diff(x[order].round(9), axis=0) != 0, axis=1)), "a node is listed twice"
    return u[order]


def main():
    warnings.simplefilter("error", RuntimeWarning)
    results = {}
    for name, problem, u0, scheme, dt in problems():
        solution = npde.solve(problem, u0, t=(0, 4 * dt), dt=dt, scheme=scheme, observe=[2 * dt], rescue=None)
        results[name] = gathered(problem, solution.values)
        results[name + ", half way"] = gathered(problem, solution.states[0])
        results[name + ", total"] = problem.total(solution.values)
    for name, problem, u0 in stationary():
        results[name] = gathered(problem, npde.solve(problem, u0, rescue=None).values)
    problem = npde.FD(fisher(2), grid((13, 11)), conditions(2))
    control = npde.Adaptive(1e-3, 1e-5)
    adaptive = npde.solve(problem, bump, t=(0, 0.1), dt=control, scheme=npde.SDIRK2(), rescue=None)
    results["adaptive"], results["adaptive steps"] = gathered(problem, adaptive.values), np.array(adaptive.steps)
    npde.save(problem, adaptive.values, sys.argv[1] + ".state")
    assert np.array_equal(npde.restore(problem, sys.argv[1] + ".state"), adaptive.values)
    # Every rank gives up at the same step and has the last good state.
    blow_up = npde.FD(npde.NPDE(source=lambda u, x, t: u**2 * (1 + x[0])), grid((9, 9)))
    try:
        npde.solve(blow_up, 1.0, t=(0, 2), dt=0.05, scheme=npde.BackwardEuler(), rescue=None)
    except npde.SolveError as error:
        results["blow-up"], results["blow-up time"] = gathered(blow_up, error.values), np.array(error.time)
    results["radius"] = np.array(npde.spectral_radius(problem, 0.0, problem.initial(bump)))
    whole = problem.function(problem.initial(bump)).gather()
    waves = npde.FD(npde.physics.schrodinger(), grid((13, 11)))
    whole_wave = waves.function(waves.initial(packet)).gather()
    if COMM.rank == 0:
        results["gathered"], results["gathered, complex"] = whole, whole_wave
        np.savez(sys.argv[1], **results)


main()
