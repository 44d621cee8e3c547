"""Patterns of Gray and Scott: on a square by finite differences, on a plate with a hole by finite elements.

    python demos/gray_scott.py
    mpirun -n 2 python demos/gray_scott.py --cells 160 --time 6000

Two chemicals of concentrations u and v diffuse; v feeds on u and makes more of itself (Pearson 1993, Science 261,
189-192):

    u_t = D_u lap u - u v^2 + F (1 - u)
    v_t = D_v lap v + u v^2 - (F + k) v

Fresh u flows in at the rate F, and v is taken out at the rate F + k. The uniform state u = 1, v = 0 is stable, but a
finite disturbance grows into spots that split, worms, or labyrinths, which depend on the geometry and its edge.

The same equation object is solved twice: by FD on a square that is periodic, and by FEM on a plate of the same size
with a round hole, through whose edges nothing flows, on an unstructured mesh by gmsh. The time scheme takes diffusion
implicitly and the reaction, which is not stiff, explicitly; so the matrix stays the same and is assembled once.
"""

import argparse
from pathlib import Path

import npde_fem as npde
from npde_fem.meshes import plate_with_hole
from npde_fem.output import Writer, save_figure
from npde_fem.parallel import say

import dolfinx
import numpy as np
from mpi4py import MPI

PATTERNS = {  # F and k
    "labyrinth": (0.037, 0.060),
    "spots": (0.030, 0.062),
    "holes": (0.039, 0.058),
}

parser = argparse.ArgumentParser(description="Gray-Scott patterns by FD on a square, by FEM on a plate with a hole.")
parser.add_argument("--pattern", choices=PATTERNS, default="labyrinth", help="which one (default: labyrinth)")
parser.add_argument("--cells", type=int, default=96, help="cells along a side (default: 96)")
parser.add_argument("--time", type=float, default=3000.0, help="length of the run (default: 3000)")
parser.add_argument("--dt", type=float, default=5.0, help="time step (default: 5)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse, short run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.cells, arguments.time = 48, 400.0

comm = MPI.COMM_WORLD
arguments.output.mkdir(parents=True, exist_ok=True)
feed, kill = PATTERNS[arguments.pattern]
equation = npde.physics.gray_scott(diffusion_u=2e-5, diffusion_v=1e-5, feed=feed, kill=kill)

# A square and a plate of the same side. A wave of the pattern is some 0.15 long, so a cell must be far smaller.

side, n = 1.25, arguments.cells
square = npde.FD(equation, npde.Grid(comm, (n + 1, n + 1), (0, 0), (side, side)), [npde.Periodic(0), npde.Periodic(1)])
plate = plate_with_hole(comm, (0, 0), (side, side), centre=(0.6 * side, 0.5 * side), radius=0.2 * side, size=side / n)
holed = npde.FEM(equation, dolfinx.fem.functionspace(plate.mesh, ("Lagrange", 1, (2,))))

# The disturbance: some drops of v, at fixed random places, the same for both and for any number of ranks.

drops = np.random.default_rng(7).uniform(0.05 * side, 0.95 * side, size=(12, 2))


def disturbed(x):
    """u = 1, v = 0 but for smooth drops, in which u = 1/2 and v = 1/4."""
    near = np.max([np.exp(-((((x[0] - a) ** 2 + (x[1] - b) ** 2) / 0.05**2) ** 2)) for a, b in drops], axis=0)
    return np.array([1 - 0.5 * near, 0.25 * near])


times = [arguments.time * share for share in (0.1, 0.4, 1.0)]
solutions = []
for problem in (square, holed):
    with Writer(arguments.output / f"gray_scott_{problem.method}.bp", problem) as writer:
        solutions.append(
            npde.solve(problem, disturbed, (0, arguments.time), arguments.dt, npde.IMEX(), observe=(times, writer))
        )
    area = problem.total(np.ones(problem.n_owned))[0]
    mean = problem.total(solutions[-1].values) / area
    say(
        comm,
        f"{problem.method.upper():>3}: {problem.unknowns} unknowns, {len(solutions[-1].steps)} steps in "
        f"{solutions[-1].seconds:.1f} s; in the mean u = {mean[0]:.3f}, v = {mean[1]:.3f}",
    )

# The figure shows v. Rank 0 collects the grid's values, and the mesh's triangles with theirs.

on_grid = [solutions[0].at(k).gather() for k in range(len(times))]
owned = plate.mesh.topology.index_map(2).size_local
corners = holed.space.dofmap.list[:owned]
triangles = comm.gather(plate.mesh.geometry.x[plate.mesh.geometry.dofmaps[0][:owned], :2], root=0)
on_mesh = [comm.gather(solutions[1].at(k).x.array.reshape(-1, 2)[corners, 1], root=0) for k in range(len(times))]

if comm.rank == 0:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x, y = np.concatenate(triangles).reshape(-1, 2).T
    numbers = np.arange(x.size).reshape(-1, 3)
    figure, axes = plt.subplots(2, len(times), figsize=(4 * len(times) + 0.8, 8.4), layout="constrained")
    look = {"cmap": "magma", "vmin": 0.0, "vmax": 0.4}
    for k, t in enumerate(times):
        values = on_grid[k][..., 1]
        whole = np.pad(values, ((0, 1), (0, 1)), mode="wrap")  # a periodic grid lists its points once
        image = axes[0, k].imshow(whole.T, origin="lower", extent=(0, side, 0, side), interpolation="bilinear", **look)
        axes[1, k].tripcolor(x, y, numbers, np.concatenate(on_mesh[k]).ravel(), shading="gouraud", **look)
        axes[0, k].set_title(f"t = {t:g}")
        for axis in axes[:, k]:
            axis.set(aspect="equal", xlim=(0, side), ylim=(0, side), xticks=[], yticks=[])
            axis.set_frame_on(False)
    axes[0, 0].set_ylabel("FD, periodic square")
    axes[1, 0].set_ylabel("FEM, plate with a hole")
    figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.6, label="v")
    figure.suptitle(f"Gray-Scott, {arguments.pattern}: F = {feed:g}, k = {kill:g}")
    save_figure(figure, arguments.output / "gray_scott.png")
    print(f"written: {arguments.output / 'gray_scott.png'}")
