"""Laws nobody wrote down: how cells migrate and grow, learnt as neural networks inside the equation.

    python demos/learned_laws.py                 # downloads a small file once, and checks it
    python demos/learned_laws.py --density 20 --hidden 8
    mpirun -n 2 python demos/learned_laws.py

The scratch assay of demos/scratch_assay.py again: PC-3 cells close a wound, counted in 38 strips at 0, 12, 24, 36 and
48 h in three wells (Jin et al. 2016, J. Theor. Biol. 390, 136-145). There two laws competed, each a formula with two or
three numbers. Here both laws are unknown functions of the density, small networks of one input:

    u_t = (D(u) u_x)_x + f(u),      D(u) = 1000 softplus(n1(u / u_max)) um^2/h,      f(u) = 0.05 u n2(u / u_max) 1/h.

What is known stays: cells are conserved but for growth, diffusion is positive, and nothing grows from nothing. This is
a universal differential equation (Rackauckas et al. 2020, arXiv:2001.04385). The networks stand in the flux and the
source; finite elements evaluate them at quadrature points, finite differences at faces and points. The whole solve is
one layer of torch, whose gradients by the weights come from the discrete adjoint and are exact; Adam finds the basin,
L-BFGS its bottom.

Are the laws worth their weights? Akaike's and Schwarz's criteria charge for each of them. And a law should tell what it
has not seen: everything is fitted again without the last images, which the laws then predict.
"""

import argparse
import sys
import time
from pathlib import Path

import npde_fem as npde
from npde_fem import assay, learn
from npde_fem.datasets import DataUnavailable, scratch_assay
from npde_fem.output import save_figure
from npde_fem.parallel import on_root, say

import dolfinx
import numpy as np
import torch
import ufl
from mpi4py import MPI

parser = argparse.ArgumentParser(description="Laws of migration and growth as networks inside a PDE.")
parser.add_argument("--data", help="folder with CellDensity_16.csv, ... (default: download once)")
parser.add_argument("--density", type=int, default=16, help="initial cells in thousands: 10, 14, 16, 20 (default: 16)")
parser.add_argument("--hidden", type=int, default=6, help="width of the networks' hidden layer (default: 6)")
parser.add_argument("--adam", type=int, default=150, help="steps of Adam (default: 150)")
parser.add_argument("--lbfgs", type=int, default=60, help="iterations of L-BFGS (default: 60)")
parser.add_argument("--dt", type=float, default=2.0, help="time step in h (default: 2)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.adam, arguments.lbfgs, arguments.dt = 10, 5, 4.0

comm = MPI.COMM_WORLD
try:
    measured = scratch_assay(arguments.density, arguments.data, comm)
except DataUnavailable as reason:
    say(comm, f"The measurements cannot be had, so this demo has nothing to learn from and stops here.\n{reason}")
    sys.exit(0)
arguments.output.mkdir(parents=True, exist_ok=True)

highest = float(measured.mean.max())
left, right = measured.interval
cells = 2 * len(measured.position)
sigma = float(np.sqrt(np.mean(measured.std[1:] ** 2)))


def networks():
    """Return two fresh networks: of migration, positive, and of growth a cell."""
    torch.manual_seed(1)

    def small(*last):
        n = arguments.hidden
        return torch.nn.Sequential(torch.nn.Linear(1, n), torch.nn.Tanh(), torch.nn.Linear(n, 1), *last).double()

    return small(torch.nn.Softplus()), small()


def discretised(method, migration, growth):
    """Return the equation with the two networks in it, discretised."""
    spread, grow = npde.neural(migration, "migration"), npde.neural(growth, "growth")
    equation = npde.NPDE(
        flux=lambda u, x, t: 1000 * spread(u / highest) * ufl.grad(u),
        source=lambda u, x, t: 0.05 * u * grow(u / highest),
        name="learnt laws",
    )
    if method == "fd":
        return npde.FD(equation, npde.Grid(comm, (cells + 1,), (left,), (right,)))
    mesh = dolfinx.mesh.create_interval(comm, cells, (left, right))
    return npde.FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", 1)))


# A layer is an ordinary torch module. Its parameters are the networks' own; it takes no inputs here, as the initial
# state is measured, and gives the densities at the strips at some times, the same on every rank. Loss and weights are
# the same on every rank too, so that torch's optimisers need to know nothing of MPI.


def train(method, times):
    """Learn both laws from the images at some times; return them with the layer that predicts all images."""
    migration, growth = networks()
    problem = discretised(method, migration, growth)
    probe = npde.Probe(problem, measured.position[:, None])
    start = dict(u0=lambda x: np.interp(x[0], measured.position, measured.mean[0]))

    def layer(until):
        return learn.Layer(
            problem, t=(0.0, float(until[-1])), dt=arguments.dt, inputs=(), observe=(until.tolist(), probe), **start
        )

    model, rows = layer(times), np.isin(measured.times, times)
    wanted = torch.from_numpy(measured.mean[rows])

    def loss():
        return (((model()[..., 0] - wanted) / sigma) ** 2).mean()

    weights = list(model.parameters())
    adam = torch.optim.Adam(weights, lr=0.03)
    values = []
    for _ in range(arguments.adam):
        adam.zero_grad()
        value = loss()
        value.backward()
        adam.step()
        values.append(value.item())
    lbfgs = torch.optim.LBFGS(weights, max_iter=arguments.lbfgs, history_size=20, line_search_fn="strong_wolfe")

    def closure():
        lbfgs.zero_grad()
        value = loss()
        value.backward()
        values.append(value.item())
        return value

    lbfgs.step(closure)
    with torch.no_grad():
        predicted = layer(measured.times[1:])()[..., 0].numpy()
    return migration, growth, predicted, values


later = measured.times[1:]
wells = measured.replicates[1:]
within = float(np.sum((wells - measured.mean[1:, None]) ** 2))


def criteria(predicted, numbers):
    """Return AICc and BIC of what a model says of all wells, given the count of its fitted numbers."""
    rss = within + wells.shape[1] * float(np.sum((predicted - measured.mean[1:]) ** 2))
    return assay.aicc(rss, wells.size, numbers + 1), assay.bic(rss, wells.size, numbers + 1)


rows, learnt, shown = [], {}, {}
for name in ("fisher", "porous-fisher"):
    whole = assay.fit(measured, name, "fem", comm=comm, progress=False)
    blind = assay.fit(measured, name, "fem", hold_out=later[-1], comm=comm, progress=False)
    numbers = whole.estimated - 1
    rows.append((name, numbers, *criteria(whole.states[1:], numbers), blind.prediction_error))
    shown[name] = whole
for method in ("fem", "fd"):
    begun = time.perf_counter()
    migration, growth, predicted, values = train(method, later)
    *_, blind, _ = train(method, later[:-1])
    error = float(np.sqrt(np.mean((blind[-1] - measured.mean[-1]) ** 2)))
    numbers = sum(p.numel() for p in (*migration.parameters(), *growth.parameters()))
    rows.append((f"learnt laws, {method.upper()}", numbers, *criteria(predicted, numbers), error))
    learnt[method] = migration, growth, predicted, values
    say(comm, f"{method.upper()}: loss {values[0]:.3f} -> {values[-1]:.3f} in {time.perf_counter() - begun:.0f} s")

say(comm, f"\n{arguments.density},000 cells; one well differs from the mean of three by {sigma:.3g} cells/um^2")
say(
    comm,
    f"{'law':<20}{'numbers':>8}{'AICc - best':>13}{'BIC - best':>12}   error of the prediction at 48 h, cells/um^2",
)
best = [min(row[k] for row in rows) for k in (2, 3)]
for name, numbers, aicc, bic, error in rows:
    say(comm, f"{name:<20}{numbers:>8}{aicc - best[0]:>13.1f}{bic - best[1]:>12.1f}   {error:.3g}")

apart = np.abs(learnt["fem"][2] - learnt["fd"][2]).max() / sigma
say(comm, f"\nThe densities that FEM and FD learnt differ by {apart:.2f} standard deviations of a well at most.")

# A picture: data and learnt densities; the two laws, with the formulas that were fitted; the loss.

u = np.linspace(0, highest, 200)
inputs = torch.from_numpy(u[:, None] / highest)
laws = {}
with torch.no_grad():
    for method, (migration, growth, *_) in learnt.items():
        laws[method] = 1000 * migration(inputs)[:, 0].numpy(), 0.05 * u * growth(inputs)[:, 0].numpy()
picture = arguments.output / "learned_laws.png"


def draw():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ((data, spread), (progress, grow)) = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(later)))
    for k, (hour, colour) in enumerate(zip(later, colours, strict=True)):
        wells = dict(fmt=".", color=colour, alpha=0.35)
        data.errorbar(measured.position, 1e3 * measured.mean[k + 1], 1e3 * measured.std[k + 1], **wells)
        data.plot(measured.position, 1e3 * learnt["fem"][2][k], color=colour, label=f"{hour:g} h")
        data.plot(measured.position[::3], 1e3 * learnt["fd"][2][k][::3], "D", color=colour, ms=4, mfc="none")
    data.set(xlabel="position (µm)", ylabel="density (cells/1000 µm²)", title="learnt: FEM lines, FD diamonds")
    data.legend(frameon=False)
    styles = {"fem": "-", "fd": "--"}
    for method, (diffusivity, rate) in laws.items():
        spread.plot(1e3 * u, diffusivity, styles[method], color="#6a4c93", label=f"network, {method.upper()}")
        grow.plot(1e3 * u, 1e3 * rate, styles[method], color="#6a4c93", label=f"network, {method.upper()}")
        progress.semilogy(learnt[method][3], styles[method], color="#6a4c93", label=method.upper())
    for name, colour in (("fisher", "#33658a"), ("porous-fisher", "#e4572e")):
        spread.plot(1e3 * u, shown[name].diffusivity(u)[0], color=colour, label=name)
        grow.plot(1e3 * u, 1e3 * shown[name].growth(u)[0], color=colour, label=name)
    spread.set(xlabel="density (cells/1000 µm²)", ylabel="D(u) (µm²/h)", title="migration")
    grow.set(xlabel="density (cells/1000 µm²)", ylabel="f(u) (cells/1000 µm²/h)", title="growth")
    progress.axvline(arguments.adam, color="0.7", lw=1)
    progress.set(xlabel="evaluations: Adam, then L-BFGS", ylabel="loss", title="training")
    for axes in (spread, grow, progress):
        axes.legend(frameon=False)
    save_figure(figure, picture)
    plt.close(figure)


on_root(comm, draw)
say(comm, f"written: {picture}")
