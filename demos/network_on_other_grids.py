"""One trained network, other discretisations: learnt on 32 x 32 points, solved on finer grids and on a disc.

    python demos/network_on_other_grids.py

A convolutional network is an equation in explicit steps. This one is trained on pairs of pictures, the state of a
population before and after a time T, which grows and spreads along a grain:

    u_t = div(D grad u) + r u (1 - u),    du/dn = 0,

with a tensor D and a rate r that the network is not told. Each of its layers, all alike, is a convolution 3 x 3 and
the flow of a polynomial reaction; its parameters are drift, diffusion and the polynomial. Once trained, it is no longer
bound to its grid: ``as_equation()`` is an equation, which finite differences solve on finer grids, and finite elements
on a disc that no picture had. Nothing is trained again. The truth is a solve on a grid, or a mesh, four times
as fine, with steps so short that they do not count.
"""

import argparse
from pathlib import Path

import npde_fem as npde
from npde_fem.networks.reactions.polynomial import Polynomial
from npde_fem.output import save_figure

import numpy as np
import torch
import ufl
from dolfinx import fem
from dolfinx.mesh import create_rectangle
from mpi4py import MPI

parser = argparse.ArgumentParser(description="A network trained on one grid, solved on others and on a disc.")
parser.add_argument("--layers", type=int, default=24, help="layers of the network (default: 24)")
parser.add_argument("--pairs", type=int, default=6, help="pairs of pictures to learn from (default: 6)")
parser.add_argument("--iterations", type=int, default=150, help="iterations of L-BFGS (default: 150)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.pairs, arguments.layers = 3, 16
arguments.output.mkdir(parents=True, exist_ok=True)

n, T, r = 32, 0.16, 2.0
D = np.array([[0.012, 0.004], [0.004, 0.006]])
truth = npde.NPDE(
    flux=lambda u, x, t: ufl.dot(ufl.as_matrix(D.tolist()), ufl.grad(u)),
    source=lambda u, x, t: r * u * (1 - u),
    name="population",
)
lattice = npde.networks.Lattice((n, n), 1 / n, 0.5 / n, "replicate")


def start(x, seed):
    """A smooth state between 0.1 and 0.9 that is drawn by chance; x has shape (2, ...)."""
    rng, waves = np.random.default_rng(seed), range(4)
    parts = [
        rng.normal() / (1 + i * i + j * j) * np.cos(np.pi * i * x[0]) * np.cos(np.pi * j * x[1])
        for i in waves
        for j in waves
    ]
    return 0.5 + 0.1 * np.clip(sum(parts) - parts[0], -4, 4)


def evolved(points, seed):
    """The true state after T on some lattice, solved four times as fine; means over blocks."""
    fine = points.refined(4)
    problem = npde.FD(truth, fine.grid(MPI.COMM_SELF))
    steps = int(np.ceil(T / (0.2 * min(fine.spacing) ** 2 / D.max())))
    after = npde.solve(problem, start(fine.coordinates(), seed), (0, T), T / steps, scheme=npde.RK4()).u.array
    return blocks(after)


def blocks(fine):
    """Means over blocks of 4 x 4 points."""
    rows, columns = fine.shape
    return fine.reshape(rows // 4, 4, columns // 4, 4).mean(axis=(1, 3))


# Learning.

before = torch.tensor(np.array([[blocks(start(lattice.refined(4).coordinates(), k))] for k in range(arguments.pairs)]))
after = torch.tensor(np.array([[evolved(lattice, k)] for k in range(arguments.pairs)]))
network = npde.networks.cnn(
    grid=lattice,
    channels=1,
    steps=arguments.layers,
    shared=True,
    reaction=Polynomial([0.0, 1.0, -1.0], dtype=torch.float64),
    remainder=False,
    dt=T / arguments.layers,
    dtype=torch.float64,
)
transport = network.layers[0].transport
for parameter in transport.parameters():
    torch.nn.init.zeros_(parameter)  # from no transport at all, and some growth
for parameter in (transport.mass, transport.source):
    parameter.requires_grad_(False)  # the polynomial has these terms
optimiser = torch.optim.LBFGS(
    [parameter for parameter in network.parameters() if parameter.requires_grad],
    max_iter=arguments.iterations,
    line_search_fn="strong_wolfe",
    tolerance_grad=1e-12,
    tolerance_change=1e-14,
)


def loss():
    """Mean square of what the network gets wrong."""
    optimiser.zero_grad()
    wrong = (network(before) - after).square().mean()
    wrong.backward()
    return wrong


optimiser.step(loss)
with torch.no_grad():
    print(f"trained: root mean square error {float((network(before) - after).square().mean()) ** 0.5:.1e}")

learnt = network.coefficients()[0]
reaction = network.layers[0].reaction.coefficients.detach().numpy().ravel()
found = learnt.diffusion[0, 0]
# The linear and the quadratic term of r u (1 - u) are r and -r.
wrong = {
    "diffusion": np.linalg.norm(found - D) / np.linalg.norm(D),
    "growth": abs(reaction[1] / r - 1),
    "competition": abs(-reaction[2] / r - 1),
}
for name, error in wrong.items():
    print(f"{name}: {100 * error:.2f} % off")

# The same network elsewhere.

equation, unseen = network.as_equation(), arguments.pairs + 7
rows = []
for factor in (1, 2, 4):
    points = lattice.refined(factor)
    state = equation.solve(start(points.coordinates(), unseen)[None], refine=factor, substeps="auto", progress=False)
    grid = state.solution.u.array
    error = np.sqrt(np.mean((grid - evolved(points, unseen)) ** 2))
    rows.append((points.shape[0], error, grid))
    print(f"on {points.shape[0]} x {points.shape[0]} points: error {error:.2e}")


def disc(cells):
    """A mesh of the disc of radius 1/2 about (1/2, 1/2): a square whose lines are bent."""
    mesh = create_rectangle(MPI.COMM_SELF, [[-1.0, -1.0], [1.0, 1.0]], [cells, cells])
    x, y = mesh.geometry.x[:, 0].copy(), mesh.geometry.x[:, 1].copy()
    mesh.geometry.x[:, 0] = 0.5 + 0.5 * x * np.sqrt(1 - y**2 / 2)
    mesh.geometry.x[:, 1] = 0.5 + 0.5 * y * np.sqrt(1 - x**2 / 2)
    return mesh


reference = npde.FEM(truth, fem.functionspace(disc(4 * n), ("Lagrange", 2)), [npde.Outflow()])
exact = npde.solve(reference, lambda x: start(x, unseen), (0, T), T / 64, progress=False)
discs = []
for cells in (n // 4, n // 2, n):
    state = equation.solve(lambda x: start(x, unseen)[None], disc(cells), substeps="auto", progress=False)
    inside = state.solution.u.function_space.tabulate_dof_coordinates()[:, :2]
    values = state.solution.u.x.array
    from_centre = inside - 0.5
    radius = np.linalg.norm(from_centre, axis=1, keepdims=True)
    near = 0.5 + from_centre * np.minimum(1, 0.4995 / np.maximum(radius, 0.1))  # the meshes' polygons differ at the rim
    error = np.sqrt(np.mean((values - npde.Probe(reference, near).apply(exact.values).ravel()) ** 2))
    discs.append((cells, error))
    print(f"on a disc of {len(values)} nodes: error {error:.2e}")

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
axes = axes.ravel()
low, high = rows[-1][2].min(), rows[-1][2].max()
look = {"vmin": low, "vmax": high, "cmap": "viridis"}
box = {"origin": "lower", "extent": (0, 1, 0, 1)}
axes[0].imshow(start(lattice.coordinates(), unseen).T, **look, **box)
axes[0].set_title("before")
for axis, (points, error, grid) in zip(axes[1:3], (rows[0], rows[1]), strict=True):
    axis.imshow(grid.T, **look, **box)
    axis.set_title(f"after, {points} x {points} (error {error:.1e})")
axes[3].tricontourf(*inside.T, values, 40, **look)
axes[3].set(aspect="equal", title=f"after, on a disc ({discs[-1][1]:.1e})")
for axis in axes[:4]:
    axis.set(xticks=[], yticks=[])
figure.colorbar(axes[2].images[0], ax=axes[2], label="population", shrink=0.9)
for label, colour, results in (("grids, FD", "tab:blue", rows), ("discs, FEM", "tab:orange", discs)):
    axes[4].loglog([row[0] for row in results], [row[1] for row in results], "o-", color=colour, label=label)
axes[4].axvline(n, color="0.6", linestyle="--", linewidth=1)
axes[4].annotate(
    "learnt here", (n, axes[4].get_ylim()[0]), rotation=90, va="bottom", ha="right", color="0.4", fontsize=9
)
sides = sorted({row[0] for row in (*rows, *discs)})
axes[4].set_xticks(sides, [str(side) for side in sides])
axes[4].minorticks_off()
axes[4].set(xlabel="points along a side", title="root mean square error")
axes[4].legend()
axes[5].bar(list(wrong), [100 * error for error in wrong.values()], color="tab:blue", width=0.5)
axes[5].set(ylabel="%", title="coefficients: how far off")
axes[5].axhline(2, color="0.6", linestyle="--", linewidth=1)
for axis in axes[4:]:
    axis.spines[["top", "right"]].set_visible(False)
save_figure(figure, arguments.output / "network_on_other_grids.png")
print(f"written: {arguments.output / 'network_on_other_grids.png'}")
