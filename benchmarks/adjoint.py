"""Gradients: their cost against our forward solve, a plain loop's, and dolfinx-adjoint's tape; checkpoints; ranks.

Fisher-KPP, P1, 100 Crank-Nicolson steps, controls D (a field) and r (a number). Then what Farrell, Ham, Funke and
Rognes (2013, SIAM J. Sci. Comput. 35) report: (forward + adjoint) / forward of Gray-Scott, Cahn-Hilliard and
Gross-Pitaevskii.
"""

import json
import resource
import time

import npde_fem as npde

import _report
import dolfinx_adjoint
import forward
import numpy as np
import pyadjoint
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI

COMM = MPI.COMM_WORLD
STEPS = 100


def seconds(work):
    """Return the wall time of a piece of work, on all ranks together."""
    COMM.Barrier()
    begun = time.perf_counter()
    work()
    COMM.Barrier()
    return time.perf_counter() - begun


class Reduced:
    """A solve and the square of its final state on a tape: evaluated by moving a number, differentiated by controls."""

    def __init__(self, problem, start, controls, moved, **arguments):
        self.moved = moved
        with pyadjoint.set_working_tape(pyadjoint.Tape()):
            pyadjoint.continue_annotation()
            solution = npde.solve(problem, start, **arguments)
            loss = npde.integral(solution, lambda u, x, t: ufl.inner(u, u))
            pyadjoint.pause_annotation()
            self.reduced = pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(c) for c in [moved, *controls]])
        self.others = [c._ad_copy() for c in controls]
        self.gradient = self.reduced.derivative

    def forward(self, factor):
        return self.reduced([self.moved.like(factor * self.moved.value), *self.others])

    def times(self, repeats=3):
        """Return the least seconds of forward solve and gradient."""
        self.gradient()
        pairs = [(seconds(lambda k=k: self.forward(1 + 1e-3 * k)), seconds(self.gradient)) for k in range(repeats)]
        return min(p[0] for p in pairs), min(p[1] for p in pairs)


def fisher(space, steps=STEPS, **arguments):
    diffusion = npde.Parameter("D", lambda x: 0.01 + 0 * x[0], field=True)
    rate = npde.Parameter("r", forward.R)
    problem = npde.FEM(npde.physics.fisher_kpp(diffusion, rate), space)
    end = forward.END * steps / STEPS
    return Reduced(problem, forward.start, [diffusion], rate, t=(0, end), dt=forward.END / STEPS, **arguments)


def per_step_tape(V):
    """Return seconds of forward solve and gradient, one block a step on dolfinx-adjoint's tape, and dJ/dr."""
    with pyadjoint.set_working_tape(pyadjoint.Tape()):
        u, before, v = dolfinx_adjoint.Function(V), dolfinx_adjoint.Function(V), ufl.TestFunction(V)
        diffusion, rate = dolfinx_adjoint.Function(V), dolfinx_adjoint.Constant(V.mesh, forward.R)
        diffusion.x.array[:] = forward.D

        def rates(w):
            return -diffusion * ufl.inner(ufl.grad(w), ufl.grad(v)) + rate * w * (1 - w) * v

        dt = forward.END / STEPS
        form = (u - before) * v * ufl.dx - dt / 2 * (rates(u) + rates(before)) * ufl.dx
        problem = dolfinx_adjoint.NonlinearProblem(
            form,
            u,
            petsc_options={"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-8, "snes_rtol": 1e-8},
            adjoint_petsc_options={"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-8},
        )
        u.interpolate(forward.start)
        before.interpolate(forward.start)
        pyadjoint.continue_annotation()
        begun = time.perf_counter()
        for _ in range(STEPS):
            problem.solve()
            dolfinx_adjoint.assign(u, before)
        loss = dolfinx_adjoint.assemble_scalar(u**2 * ufl.dx)
        solved = time.perf_counter() - begun
        pyadjoint.pause_annotation()
        reduced = pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(rate), pyadjoint.Control(diffusion)])
        reduced.derivative()
        begun = time.perf_counter()
        derivative = reduced.derivative()
        return solved, time.perf_counter() - begun, float(derivative[0].x.array[0])


def against_others(cells, least_gain):
    V = forward.space(cells)
    ours = fisher(V)
    run, _ = forward.plain(V)
    run()
    rounds = []
    for _ in range(3):
        rounds.append((*ours.times(1), run()))
    taped = per_step_tape(V)
    taped = min(taped, per_step_tape(V), key=lambda times: sum(times[:2]))
    ours.forward(1.0)
    mine = float(ours.gradient()[0])
    case = f"Fisher-KPP {cells} x {cells}"
    solve_, gradient, plain = (float(np.median([r[k] for r in rounds])) for k in range(3))
    ratios = np.median([[g / f, (f + g) / p] for f, g, p in rounds], axis=0)
    return [
        _report.row(case, "seconds, forward", solve_),
        _report.row(case, "seconds, gradient", gradient),
        _report.row(case, "seconds, plain loop", plain),
        _report.row(case, "seconds, dolfinx-adjoint, forward", taped[0]),
        _report.row(case, "seconds, dolfinx-adjoint, gradient", taped[1]),
        _report.row(case, "gradient / forward", ratios[0], at_most=1.0),
        _report.row(case, "(forward + gradient) / plain loop", ratios[1], at_most=0.75),
        _report.row(case, "dolfinx-adjoint / ours", sum(taped[:2]) / (solve_ + gradient), at_least=least_gain),
        _report.row(case, "relative difference of dJ/dr", abs(mine - taped[2]) / abs(mine), at_most=1e-5),
    ]


def cahn_hilliard(space, mobility):
    """``c_t = div(M grad mu)``, ``0 = mu - 200 c (1 - c) (1 - 2 c) + lambda div grad c``, lambda = 0.01."""

    def flux(w, x, t):
        return ufl.as_tensor([mobility * ufl.grad(w[1]), 0.01 * ufl.grad(w[0])])

    def source(w, x, t):
        c, mu = w[0], w[1]
        return ufl.as_vector([0 * c, mu - 200 * c * (1 - c) * (1 - 2 * c)])

    damping = ((1.0, 0.0), (0.0, 0.0))
    return npde.FEM(npde.NPDE(flux=flux, source=source, damping=damping, components=2), space)


def after_farrell():
    """(forward + adjoint) / forward of three equations, the saddle point of Cahn-Hilliard by LU."""
    rng = np.random.default_rng(1)
    mesh = dmesh.create_unit_square(COMM, 48, 48)
    space = fem.functionspace(mesh, ("Lagrange", 1, (2,)))

    def spots(x):
        inside = (abs(x[0] - 0.5) < 0.1) & (abs(x[1] - 0.5) < 0.1)
        return np.array([np.where(inside, 0.5, 1.0), np.where(inside, 0.25, 0.0)])

    feed = npde.Parameter("F", 0.04)
    gray_scott = npde.FEM(npde.physics.gray_scott(feed=feed), space)
    mobility = npde.Parameter("M", 1.0)
    phases = cahn_hilliard(space, mobility)
    repulsion = npde.Parameter("g", 10.0)
    trap = fem.functionspace(dmesh.create_rectangle(COMM, [(-6, -6), (6, 6)], [64, 64]), ("Lagrange", 1))
    condensate = npde.physics.schrodinger(lambda x, t: 0.5 * (x[0] ** 2 + x[1] ** 2), g=repulsion)
    condensate = npde.FEM(condensate, trap)

    def vortex(x):
        return (x[0] - 0.5 + 1j * x[1]) * np.exp(-(x[0] ** 2 + x[1] ** 2) / 4) / 2.5

    noise = np.zeros(phases.n_owned)
    noise[::2] = 0.63 + 0.02 * (0.5 - rng.random(phases.n_owned // 2))
    rows = []
    for name, options, task, published, optimum in (
        ("Gray-Scott", [], (gray_scott, spots, feed, 100, 1.0), 2.04, 2.0),
        (
            "Cahn-Hilliard",
            ["-npde_ksp_type", "preonly", "-npde_pc_type", "lu"],
            (phases, noise, mobility, 50, 5e-6),
            1.22,
            1.2,
        ),
        ("Gross-Pitaevskii", [], (condensate, vortex, repulsion, 50, 0.01), 1.54, 1.5),
    ):
        npde.petsc_options(options)
        problem, start, control, steps, dt = task
        solve_, gradient = Reduced(problem, start, [], control, t=(0, steps * dt), dt=dt).times()
        case = f"{name}, {problem.unknowns} unknowns"
        rows += [
            _report.row(case, "(forward + adjoint) / forward", (solve_ + gradient) / solve_),
            _report.row(case, "Farrell et al. 2013", published),
            _report.row(case, "their theoretical optimum", optimum),
        ]
    return rows


def worker(task, argument):
    if task == "gradient":
        result = sum(fisher(forward.space(int(argument))).times())
    else:
        checkpoints, steps = (int(v) for v in argument.split(","))
        reduced = fisher(forward.space(48), steps, checkpoints=checkpoints or None)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        took = sum(reduced.times(1))
        result = [took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, before]
    if COMM.rank == 0:
        print(json.dumps(result))


def checkpointing():
    found = {
        (count, steps): _report.on_ranks(__file__, 1, f"memory {count},{steps}")
        for count in (0, 10)
        for steps in (250, 1000)
    }
    case = "1000 steps, 48 x 48, 10 checkpoints"
    all_growth = found[0, 1000][1] - found[0, 250][1]
    growth = found[10, 1000][1] - found[10, 250][1]
    return [
        _report.row(case, "MiB more than 250 steps, all states kept", all_growth),
        _report.row(case, "MiB more than 250 steps", growth),
        _report.row(case, "growth / growth with all states kept", growth / all_growth, at_most=0.2),
        _report.row(case, "time / time with all states kept", found[10, 1000][0] / found[0, 1000][0], at_most=3.0),
    ]


def main():
    arguments = _report.parser(__doc__).parse_args()
    if arguments.worker:
        worker(*arguments.worker.split(maxsplit=1))
        return
    rows = against_others(64, 4.0) + against_others(128, 3.0)
    pairs = [[_report.on_ranks(__file__, n, "gradient 128") for n in (1, 2)] for _ in range(3)]
    speed_up = float(np.median([a / b for a, b in pairs]))
    rows.append(_report.row("Fisher-KPP 128 x 128", "speed-up on 2 ranks", speed_up, at_least=1.7))
    rows += checkpointing() + after_farrell()
    _report.finish(rows, arguments.json)


if __name__ == "__main__":
    main()
