"""FD explicit Fisher-KPP step at 2048 x 2048, halo exchange included, in units of a numpy copy of the field.

Beside it the same step by py-pde (numba) and Devito, where they are installed. Devito and py-pde get periodic or
zero-derivative boundaries as they come by default; ours closes the box (zero flux).
"""

import json
import os
import time

import npde_fem as npde

import _report
import numpy as np
from mpi4py import MPI

COMM = MPI.COMM_WORLD
N, D, R = 2048, 0.1, 1.0
H = 1 / (N - 1)
DT = 0.2 * H**2 / D


def start(x):
    return np.exp(-50 * ((x[0] - 0.3) ** 2 + (x[1] - 0.5) ** 2))


def best(work, count=15):
    """Return the shortest of some runs, the slowest rank's, in seconds."""
    times = []
    for _ in range(count):
        COMM.Barrier()
        begun = time.perf_counter()
        work()
        times.append(COMM.allreduce(time.perf_counter() - begun, op=MPI.MAX))
    return min(times)


def worker():
    """Print seconds of a copy of this rank's field and of a step."""
    problem = npde.FD(npde.physics.fisher_kpp(D, R), npde.Grid(COMM, (N, N), (0, 0), (1, 1)))
    state, after = problem.new_state(), problem.new_state()
    problem.load(problem.initial(start), state)

    def step():
        problem.advance(0.0, state, state, DT, 0.0, after)

    step()
    pairs = [(best(lambda: np.copyto(after, state)), best(step)) for _ in range(5)]
    if COMM.rank == 0:
        print(json.dumps([min(p[k] for p in pairs) for k in (0, 1)] + [float(np.median([b / a for a, b in pairs]))]))


def copy_time():
    a, b = np.ones((N, N)), np.zeros((N, N))
    return best(lambda: np.copyto(b, a), 30)


def py_pde():
    """Return a step of py-pde over a copy, or None where it is not installed."""
    try:
        import pde
    except ImportError:
        return None
    grid = pde.CartesianGrid([[0, 1], [0, 1]], [N, N])
    equation = pde.PDE({"u": f"{D} * laplace(u) + {R} * u * (1 - u)"}, bc={"derivative": 0})
    state = pde.ScalarField.from_expression(grid, "exp(-50 * ((x - 0.3)**2 + (y - 0.5)**2))")
    stepper = pde.EulerSolver(equation, backend="numba").make_stepper(state, DT)
    stepper(state, 0, 2 * DT)
    count, begun = 20, time.perf_counter()
    stepper(state, 0, count * DT)
    return (time.perf_counter() - begun) / count / copy_time()


def devito():
    """Return a step of Devito over a copy, or None where it is not installed."""
    try:
        from devito import Eq, Grid, Operator, TimeFunction, configuration
    except ImportError:
        return None
    configuration["log-level"] = "ERROR"
    grid = Grid(shape=(N, N), extent=(1, 1))
    u = TimeFunction(name="u", grid=grid, space_order=2, dtype=np.float64)
    u.data[:] = 0.5
    operator = Operator([Eq(u.forward, u + grid.stepping_dim.spacing * (D * u.laplace + R * u * (1 - u)))])
    operator(time_m=0, time_M=4, dt=DT)
    count, begun = 50, time.perf_counter()
    operator(time_m=0, time_M=count - 1, dt=DT)
    return (time.perf_counter() - begun) / count / copy_time()


def main():
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    arguments = _report.parser(__doc__).parse_args()
    if arguments.worker:
        worker()
        return
    case = f"explicit Fisher-KPP {N} x {N}"
    rows = []
    for ranks in (1, 2):
        copy, step, ratio = _report.on_ranks(__file__, ranks, "step")
        rows += [
            _report.row(f"{case}, {ranks} rank(s)", "seconds a copy of the rank's field", copy),
            _report.row(f"{case}, {ranks} rank(s)", "seconds a step", step),
            _report.row(f"{case}, {ranks} rank(s)", "ratio step / copy", ratio, at_most=3.0),
        ]
    ours = rows[2]["value"]
    for name, other in (("py-pde", py_pde()), ("Devito", devito())):
        if other is not None:
            rows.append(_report.row(f"{case}, {name}", "ratio step / copy", other))
            rows.append(_report.row(f"{case}, {name}", f"our step / step of {name}", ours / other, at_most=1.0))
        else:
            print(f"{name} is not installed")
    _report.finish(rows, arguments.json)


if __name__ == "__main__":
    main()
