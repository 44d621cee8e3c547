"""A scratch assay: cells that close a wound, measured, and by two models, each by finite elements and differences.

    python demos/scratch_assay.py                  # downloads four small files once, and checks them
    python demos/scratch_assay.py --data FOLDER    # reads CellDensity_10.csv, ... from a folder

A layer of PC-3 prostate cancer cells covers the bottom of a well; a scratch is made down its middle, and a camera
watches the cells move in. Jin et al. (2016, J. Theor. Biol. 390, 136-145) counted them in 38 strips of 50 um, at 0, 12,
24, 36 and 48 h, in three wells for each of four initial densities. The picture hardly varies along the scratch, so the
density u(x, t) in cells/um^2 needs one dimension. Two models compete:

    Fisher-KPP       u_t = (D u_x)_x         + r u (1 - u / K)
    porous-Fisher    u_t = (D (u / K) u_x)_x + r u (1 - u / K)

In the first, a lone cell wanders as fast as one in a crowd; in the second, cells are pushed by their neighbours, and
the edge of the layer stays sharp. No cell leaves the picture on balance: u_x = 0 at both sides. The initial state is
what was measured at 0 h.

The parameters are not a fit. They are round numbers, the same for all four experiments, picked from a coarse scan of a
dozen pairs (D, r) a model for a small misfit over all of them. So the misfits show how far one set of plain numbers
carries each model, and not which model is right. The misfit is the root mean square of
model minus mean measurement over all strips and the times after 0 h; beside it stands the standard deviation s of one
well about the mean of three.
"""

import argparse
import sys
from pathlib import Path

import npde_fem as npde
from npde_fem.datasets import DataUnavailable, scratch_assay
from npde_fem.output import save_figure
from npde_fem.parallel import say

import dolfinx
import numpy as np
from mpi4py import MPI

CAPACITY = 1.7e-3  # cells/um^2
MODELS = {
    "Fisher-KPP": npde.physics.fisher_kpp(diffusion=600.0, rate=0.05, capacity=CAPACITY),  # um^2/h, 1/h
    "porous-Fisher": npde.physics.porous_fisher(diffusion=2500.0, rate=0.05, capacity=CAPACITY),
}

parser = argparse.ArgumentParser(description="Measured scratch assays against two models by FEM and FD.")
parser.add_argument("--data", help="folder with CellDensity_{10,14,16,20}.csv (default: download once)")
parser.add_argument("--densities", type=int, nargs="+", default=[10, 14, 16, 20], help="initial cells in thousands")
parser.add_argument("--cells", type=int, default=190, help="cells of mesh and grid (default: 190, five a strip)")
parser.add_argument("--dt", type=float, default=0.5, help="time step in h (default: 0.5)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.cells, arguments.dt = 76, 2.0

comm = MPI.COMM_WORLD
try:
    assays = {density: scratch_assay(density, arguments.data, comm) for density in arguments.densities}
except DataUnavailable as reason:
    say(comm, f"The measurements cannot be had, so this demo has nothing to compare with and stops here.\n{reason}")
    sys.exit(0)
arguments.output.mkdir(parents=True, exist_ok=True)

# The picture reaches half a strip beyond the outermost centres. A mesh and a grid with the same points cover it.

left, right = assays[arguments.densities[0]].interval
mesh = dolfinx.mesh.create_interval(comm, arguments.cells, (left, right))
space = dolfinx.fem.functionspace(mesh, ("Lagrange", 1))
grid = npde.Grid(comm, (arguments.cells + 1,), (left,), (right,))


def at_strips(solution, time_index, position):
    """Values at the strips' centres, the same on every rank: linear between the nodes."""
    values = solution.states[time_index]
    parts = comm.allgather((solution.problem.coordinates()[:, 0], values))
    x, u = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(x)
    return np.interp(position, x[order], u[order])


# Each model by each method, on each experiment.

say(comm, "misfit in 1e-4 cells/um^2 over 12 ... 48 h\n")
say(comm, "cells     " + "".join(f"{name + ' FEM':>20}{name + ' FD':>20}" for name in MODELS) + f"{'one well':>12}")
curves, apart = {}, 0.0
for density, assay in assays.items():

    def measured(x, assay=assay):
        return np.interp(x[0], assay.position, assay.mean[0])

    misfits = []
    for name, equation in MODELS.items():
        states = []
        for problem in (npde.FEM(equation, space), npde.FD(equation, grid)):
            solution = npde.solve(
                problem, measured, (0, assay.times[-1]), arguments.dt, npde.CrankNicolson(), observe=assay.times
            )
            states.append(np.array([at_strips(solution, k, assay.position) for k in range(len(assay.times))]))
            misfits.append(np.sqrt(np.mean((states[-1][1:] - assay.mean[1:]) ** 2)))
        apart = max(apart, float(np.max(np.abs(states[0] - states[1]))))
        curves[density, name] = states
    noise = np.sqrt(np.mean(assay.std[1:] ** 2))
    row = "".join(f"{1e4 * m:12.2f} ({m / noise:.2f} s)" for m in misfits)
    say(comm, f"{density:4d},000 {row}{1e4 * noise:12.2f}")
say(comm, f"\ns: standard deviation of one well. FEM and FD differ by {1e4 * apart:.2g}e-4 cells/um^2 at most.")

# A picture for each experiment: what was measured (mean and standard deviation of three wells), and the models. FEM is
# drawn as a line; FD, which would cover it, as dots on some of the strips.

if comm.rank == 0:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    times = assays[arguments.densities[0]].times
    colours = plt.colormaps["viridis"](np.linspace(0, 0.85, len(times)))
    figure, axes = plt.subplots(
        len(assays), len(MODELS), figsize=(12, 2.9 * len(assays)), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for (density, assay), row in zip(assays.items(), axes, strict=True):
        for name, axis in zip(MODELS, row, strict=True):
            by_fem, by_fd = curves[density, name]
            for k, colour in enumerate(colours):
                x = assay.position
                axis.errorbar(
                    x, 1e3 * assay.mean[k], 1e3 * assay.std[k], fmt="o", ms=3, color=colour, alpha=0.4, elinewidth=0.8
                )
                axis.plot(x, 1e3 * by_fem[k], color=colour, lw=2)
                axis.plot(x[k::5], 1e3 * by_fd[k, k::5], "D", ms=4, mfc="w", color=colour)
            axis.set_title(f"{density},000 cells, {name}", fontsize=11)
            axis.set_ylim(-0.05, 2.2)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("density, 10$^{-3}$ cells/um$^2$")
    for axis in axes[-1]:
        axis.set_xlabel("position, um")
    handles = [plt.Line2D([], [], color=c, lw=2, label=f"{t:g} h") for t, c in zip(times, colours, strict=True)]
    handles += [
        plt.Line2D([], [], color="0.5", marker="o", ms=3, ls="", alpha=0.6, label="measured, mean and s.d. of 3 wells"),
        plt.Line2D([], [], color="0.3", lw=2, label="FEM"),
        plt.Line2D([], [], color="0.3", marker="D", ms=4, mfc="w", ls="", label="FD"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    save_figure(figure, arguments.output / "scratch_assay.png")
    print(f"written: {arguments.output / 'scratch_assay.png'}")
