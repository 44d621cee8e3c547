"""FD explicit Fisher-KPP step at 2048 x 2048, halo exchange included, in units of a numpy copy of the field.

Beside it the same step by py-pde (numba) and Devito, where they are installed, each in processes of its own, in turn:
where the pages of a field lie changes the time of a step by a third from process to process. py-pde gets zero
derivative at the boundary as ours does, Devito what it does by default.
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
COUNT = 20


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


def ours():
    """Return seconds of a copy of this rank's field and of a step, their ratio, and seconds of a step in a march."""
    problem = npde.FD(npde.physics.fisher_kpp(D, R), npde.Grid(COMM, (N, N), (0, 0), (1, 1)))
    state, after = problem.new_state(), problem.new_state()
    problem.load(problem.initial(start), state)

    def step():
        problem.advance(0.0, state, state, DT, 0.0, after)

    step()
    pairs = [(best(lambda: np.copyto(after, state)), best(step)) for _ in range(5)]
    return [*(min(p[k] for p in pairs) for k in (0, 1)), float(np.median([b / a for a, b in pairs])), march(problem)]


def march(problem):
    """Return seconds a step over many steps from state to state, as the others are timed."""
    now, then = problem.new_state(), problem.new_state()
    problem.load(problem.initial(0.5), now)

    def steps():
        for _ in range(COUNT // 2):
            problem.advance(0.0, now, now, DT, 0.0, then)
            problem.advance(0.0, then, then, DT, 0.0, now)

    return best(steps, 5) / COUNT


def py_pde():
    """Return seconds of a step of py-pde, or None where it is not installed."""
    try:
        import pde
    except ImportError:
        return None
    grid = pde.CartesianGrid([[0, 1], [0, 1]], [N, N])
    equation = pde.PDE({"u": f"{D} * laplace(u) + {R} * u * (1 - u)"}, bc={"derivative": 0})
    state = pde.ScalarField.from_expression(grid, "exp(-50 * ((x - 0.3)**2 + (y - 0.5)**2))")
    stepper = pde.EulerSolver(equation, backend="numba").make_stepper(state, DT)
    stepper(state, 0, 2 * DT)
    return best(lambda: stepper(state, 0, COUNT * DT), 3) / COUNT


def devito():
    """Return seconds of a step of Devito, or None where it is not installed."""
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
    return best(lambda: operator(time_m=0, time_M=COUNT - 1, dt=DT), 5) / COUNT


def main():
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    arguments = _report.parser(__doc__).parse_args()
    if arguments.worker:
        result = {"ours": ours, "py-pde": py_pde, "Devito": devito}[arguments.worker]()
        if COMM.rank == 0:
            print(json.dumps(result))
        return
    case = f"explicit Fisher-KPP {N} x {N}"
    rows = []
    for ranks in (1, 2):
        runs = [_report.on_ranks(__file__, ranks, "ours") for _ in range(5)]
        copy, step, ratio, _ = np.median(runs, axis=0)
        rows += [
            _report.row(f"{case}, {ranks} rank(s)", "seconds a copy of the rank's field", copy),
            _report.row(f"{case}, {ranks} rank(s)", "seconds a step", step),
            _report.row(f"{case}, {ranks} rank(s)", "ratio step / copy", ratio, at_most=3.0),
        ]
    for name in ("py-pde", "Devito"):
        pairs = [(_report.on_ranks(__file__, 1, "ours")[3], _report.on_ranks(__file__, 1, name)) for _ in range(5)]
        if pairs[0][1] is None:
            print(f"{name} is not installed")
            continue
        rows.append(_report.row(f"{case}, {name}", "seconds a step", np.median([b for _, b in pairs])))
        ratio = float(np.median([a / b for a, b in pairs]))
        rows.append(_report.row(f"{case}, {name}", f"our step / step of {name}", ratio, at_most=1.0))
    _report.finish(rows, arguments.json)


if __name__ == "__main__":
    main()
