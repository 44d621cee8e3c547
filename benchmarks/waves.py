"""Leapfrog: a step on a grid in units of a copy of the field, and spectral elements against a plain DOLFINx loop."""

import time

import npde_fem as npde
from npde_fem.solve.newmark import NewmarkStepper

import _report
import numpy as np
import ufl
from dolfinx import fem, la
from dolfinx import mesh as dmesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD
POINTS, CELLS, DEGREE, STEPS = 1024, 32, 4, 50
LUMPED = {"quadrature_rule": "GLL", "quadrature_degree": 2 * DEGREE - 1}


def start(x):
    return np.exp(-100 * ((x[0] - 0.5) ** 2 + (x[1] - 0.5) ** 2))


def seconds(work):
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def on_a_grid():
    """A step of leapfrog, and a copy of as many numbers, taken in turn."""
    problem = npde.FD(npde.physics.wave(), npde.Grid(COMM, (POINTS, POINTS), (0, 0), (1, 1)))
    u = problem.initial(start)
    copy, stepper = np.empty_like(u), NewmarkStepper(problem, npde.Leapfrog())
    stepper.start(0.0, np.concatenate([u, 0 * u]))

    def step():
        assert stepper.step(0.0, 0.5 / POINTS)
        stepper.accept()

    step()
    times = np.array([(seconds(step), seconds(lambda: np.copyto(copy, u))) for _ in range(40)])
    case = f"wave, differences {POINTS} x {POINTS}"
    return [
        _report.row(case, "ns a point and step", 1e9 * times[:, 0].min() / u.size),
        _report.row(case, "step / copy of the field", times[:, 0].min() / times[:, 1].min()),
    ]


def plain(V, dt):
    """Return a function that runs the loop a DOLFINx user writes, and the values it ends in."""
    u, v = fem.Function(V), ufl.TestFunction(V)
    stiffness = fem.form(-ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx(metadata=LUMPED))
    ones = fem.Constant(V.mesh, 1.0)
    mass = fem.assemble_vector(fem.form(ones * v * ufl.dx(metadata=LUMPED))).array
    force = la.vector(V.dofmap.index_map)

    def acceleration():
        force.array[:] = 0.0
        fem.assemble_vector(force.array, stiffness)
        return force.array / mass

    def run():
        u.interpolate(start)
        velocity, a = np.zeros_like(u.x.array), acceleration()
        begun = time.perf_counter()
        for _ in range(STEPS):
            velocity += 0.5 * dt * a
            u.x.array[:] += dt * velocity
            a = acceleration()
            velocity += 0.5 * dt * a
        return time.perf_counter() - begun

    return run, u


def spectral_elements():
    domain = dmesh.create_unit_square(COMM, CELLS, CELLS, dmesh.CellType.quadrilateral)
    V = fem.functionspace(domain, ("Lagrange", DEGREE))
    problem = npde.FEM(npde.physics.wave(), V, mass="lumped")
    dt = 0.05 / CELLS
    run, u = plain(V, dt)
    values = npde.solve(problem, start, t=(0, STEPS * dt), dt=dt, scheme=npde.Leapfrog()).values
    stepper = NewmarkStepper(problem, npde.Leapfrog())

    def ours():
        stepper.start(0.0, np.concatenate([problem.initial(start), np.zeros(problem.n_owned)]))
        begun = time.perf_counter()
        for _ in range(STEPS):
            assert stepper.step(0.0, dt)
            stepper.accept()
        return time.perf_counter() - begun

    ours(), run()
    times = np.array([(ours(), run()) for _ in range(7)])
    case = f"wave, degree {DEGREE}, {CELLS} x {CELLS} quadrilaterals"
    return [
        _report.row(case, "ms a step, ours", 1e3 * times[:, 0].min() / STEPS),
        _report.row(case, "ms a step, plain loop", 1e3 * times[:, 1].min() / STEPS),
        _report.row(case, "ratio ours / plain", float(np.median(times[:, 0] / times[:, 1])), at_most=1.0),
        _report.row(case, "difference / largest value", np.abs(values - u.x.array).max() / np.abs(values).max(), 1e-10),
    ]


def main():
    arguments = _report.parser(__doc__).parse_args()
    _report.finish(on_a_grid() + spectral_elements(), arguments.json)


if __name__ == "__main__":
    main()
