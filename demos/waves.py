"""A pulse of sound runs against a pillar, bends around it, and leaves: the wave equation by FEM and by FD.

    python demos/waves.py
    mpirun -n 2 python demos/waves.py --size 0.05

A clap of hands at one end of a yard. Its pressure u(x, y, t) obeys

    u_tt = c^2 lap u,     n . c^2 grad u = 0 at a hard wall,     n . c^2 grad u = -c u_t where waves leave,

the last to first order (Engquist and Majda 1977, Math. Comp. 31): what meets an open side at right angles leaves whole,
what comes at an angle a leaves the share ((1 - cos a) / (1 + cos a))^2 of its energy behind. A round pillar stands in
the way.

FEM of degree four on quadrilaterals by gmsh, with nodes where Gauss, Lobatto and Legendre want them, so that the mass
matrix is diagonal: spectral elements. FD on a grid, with the pillar as a staircase. Both march by leapfrog, which is
explicit, and solves nothing; its step is bounded by the highest frequency that the mesh or grid can hold.

The energy, the integral of (u_t^2 + c^2 |grad u|^2) / 2, stays as it is while the yard is closed, up to an oscillation
that goes as the step squared. With open sides all but a little of it leaves.
"""

import argparse
from pathlib import Path

import npde_fem as npde
from npde_fem.meshes import plate_with_hole
from npde_fem.output import save_figure
from npde_fem.parallel import say

import dolfinx
import numpy as np
import ufl
from mpi4py import MPI

parser = argparse.ArgumentParser(description="A pulse of sound and a pillar, by FEM and FD.")
parser.add_argument("--size", type=float, default=0.07, help="size of the elements (default: 0.07)")
parser.add_argument("--time", type=float, default=3.2, help="length of the run (default: 3.2)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.size = 0.15

comm = MPI.COMM_WORLD
arguments.output.mkdir(parents=True, exist_ok=True)
lower, upper, centre, radius = (0.0, 0.0), (2.4, 1.6), (1.4, 0.8), 0.25
source, width, speed = (0.6, 0.8), 0.06, 1.0
equation = npde.physics.wave(speed)
yard = plate_with_hole(comm, lower, upper, centre, radius, arguments.size, arguments.size, cell="quadrilateral")
space = dolfinx.fem.functionspace(yard.mesh, ("Lagrange", 4))
spacing = arguments.size / 8  # half as far apart as the nodes of the elements, for order two
points = tuple(np.rint(np.subtract(upper, lower) / spacing).astype(int) + 1)
outside = npde.Grid(comm, points, lower, upper, lambda x: np.hypot(x[0] - centre[0], x[1] - centre[1]) > radius)


def at_the_edge(x):
    """The outer sides; a masked grid reaches half a spacing beyond its points."""
    far = [abs(x[a] - side) < 0.6 * spacing for a in (0, 1) for side in (lower[a], upper[a])]
    return np.any(far, axis=0)


problems = {
    "FEM, open": npde.FEM(
        equation, space, [npde.Absorbing(speed, where=[1, 2, 3, 4])], facet_tags=yard.facet_tags, mass="lumped"
    ),
    "FD, open": npde.FD(equation, outside, [npde.Absorbing(speed, where=at_the_edge)]),
    "FEM, closed": npde.FEM(equation, space, mass="lumped"),
}


def clap(x):
    """A round pulse, at rest."""
    return np.exp(-((x[0] - source[0]) ** 2 + (x[1] - source[1]) ** 2) / (2 * width**2))


# Solve. Two ears listen: one before the pillar, one in its shadow. A film reads the pressure at a raster.

frames = np.linspace(0, arguments.time, 65 if arguments.quick else 129)
ears = np.array([[1.0, 0.8], [2.0, 0.8]])
films, heard, energies = {}, {}, {}
for name, problem in problems.items():
    start = problem.initial(clap)
    limit = 2 / np.sqrt(npde.spectral_radius(problem, 0.0, start))
    dt = frames[1] / np.ceil(frames[1] / (0.8 * limit))
    solution = npde.solve(problem, start, (0, arguments.time), dt, npde.Leapfrog(), observe=frames)
    heard[name] = np.array([npde.Probe(problem, ears).apply(values).ravel() for values in solution.states])
    product = np.zeros(problem.n_owned)

    def energy(k, problem=problem, solution=solution, product=product):
        problem.gram_times(solution.velocities[k], product)
        motion = comm.allreduce(float(solution.velocities[k] @ product)) / 2
        return motion + float(npde.integral(solution, lambda u: speed**2 / 2 * ufl.dot(ufl.grad(u), ufl.grad(u)), k))

    energies[name] = np.array([energy(k) for k in range(len(frames))])
    say(
        comm,
        f"{name}: {problem.unknowns} unknowns, {len(solution.steps)} steps of {dt:.4f} in {solution.seconds:.1f} s; "
        f"energy in the end {energies[name][-1] / energies[name][0]:.4f} of that in the beginning",
    )
    if "open" in name:
        x, y = (np.linspace(low, high, count) for low, high, count in zip(lower, upper, (193, 129), strict=True))
        raster = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)
        free = np.hypot(*(raster - centre).transpose(2, 0, 1)) > radius + spacing
        probe = npde.Probe(problem, raster[free])
        films[name] = np.full((len(frames), *free.shape), np.nan)
        for k, values in enumerate(solution.states):
            films[name][k][free] = probe.apply(values).ravel()
closed = energies["FEM, closed"]
say(comm, f"closed, the energy stays within {np.max(abs(closed / closed[0] - 1)):.2e}")
apart = np.linalg.norm(heard["FD, open"] - heard["FEM, open"], axis=0) / np.linalg.norm(heard["FEM, open"], axis=0)
say(comm, f"FD differs from FEM by {apart[0]:.1%} before the pillar and {apart[1]:.1%} in its shadow")

if comm.rank == 0:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter

    look = {"origin": "lower", "extent": (lower[0], upper[0], lower[1], upper[1]), "cmap": "RdBu_r"}
    look |= {"vmin": -0.25, "vmax": 0.25, "interpolation": "bilinear"}

    def scene(axis, name, k):
        image = axis.imshow(films[name][k].T, **look)
        axis.add_patch(plt.Circle(centre, radius, color="0.35"))
        axis.plot(*ears.T, "k.", markersize=4)
        axis.set(xticks=[], yticks=[])
        return image

    figure = plt.figure(figsize=(13, 7.6), layout="constrained")
    grid = figure.add_gridspec(3, 4, height_ratios=(1, 1, 1))
    for column, share in enumerate((0.12, 0.3, 0.45, 0.7)):
        k = round(share * (len(frames) - 1))
        for row, name in enumerate(films):
            axis = figure.add_subplot(grid[row, column])
            scene(axis, name, k)
            if row == 0:
                axis.set_title(f"t = {frames[k]:.2f}")
            if column == 0:
                axis.set_ylabel(name)
    left, right = figure.add_subplot(grid[2, :2]), figure.add_subplot(grid[2, 2:])
    for ear, (place, color) in enumerate((("before the pillar", "tab:blue"), ("in its shadow", "tab:red"))):
        left.plot(frames, heard["FEM, open"][:, ear], color=color, label=f"{place}, FEM")
        left.plot(frames, heard["FD, open"][:, ear], color="black", linestyle=":", label="FD" if ear else None)
    left.set(xlabel="t", title="what the ears hear")
    for name, energy in energies.items():
        right.plot(frames, energy / closed[0], ":" if "FD" in name else "-", label=name)
    right.set(xlabel="t", title="energy", ylim=(0, None))
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, arguments.output / "waves.png")

    figure, axis = plt.subplots(figsize=(4.8, 3.2))
    figure.subplots_adjust(0, 0, 1, 1)
    image = scene(axis, "FEM, open", 0)

    def draw(k):
        image.set_data(films["FEM, open"][k].T)
        return [image]

    FuncAnimation(figure, draw, range(0, len(frames), 2)).save(
        arguments.output / "waves.gif", PillowWriter(fps=16), dpi=72
    )
    print(f"written: {arguments.output / 'waves.png'} and {arguments.output / 'waves.gif'}")
