"""A quantum particle tunnels through a wall: by finite differences and by finite elements.

    python demos/tunnelling.py
    mpirun -n 2 python demos/tunnelling.py --momentum 3.5

A particle of mass 1 (hbar = 1) is a packet of waves psi(x, y, t), and |psi|^2 is the probability to find it at a place:

    i psi_t = -1/2 lap psi + V(x) psi,     V(x) = V0 / cosh^2(x / a).

A wall of height V0 stands along x = 0. A ball would need the energy V0 to get across it. The packet has less in the
mean, and yet a part of it comes out on the other side. How much of a plane wave of momentum k does is known exactly
(Landau and Lifshitz 1977, Quantum Mechanics, section 25, problem 4; it is Eckart's barrier):

    T(k) = sinh^2(pi k a) / (sinh^2(pi k a) + cosh^2(pi/2 sqrt(8 V0 a^2 - 1))).

A Gaussian packet whose |psi|^2 is s wide holds momenta k0 +- 1/(2 s), so its chance to tunnel is the average of T over
a Gaussian. The packet comes in at an angle; its motion along the wall is free and changes nothing in that.

The same equation, written once in complex notation, is solved twice: by FD with Strang's splitting, whose flow of the
potential is exact, and by FEM of degree two with Crank-Nicolson. Both conserve the norm, which is 1, to round-off. On
as many unknowns FEM finds T to three digits. FD, of order two, makes the waves a little too slow, and T by a thirtieth
too small; half the spacing leaves a quarter of that.
"""

import argparse
from pathlib import Path

import npde_fem as npde
from npde_fem.output import save_figure
from npde_fem.parallel import say

import dolfinx
import numpy as np
import ufl
from mpi4py import MPI

parser = argparse.ArgumentParser(description="A packet tunnels through a wall, by FD and FEM.")
parser.add_argument("--momentum", type=float, default=3.0, help="momentum towards the wall (default: 3)")
parser.add_argument("--height", type=float, default=6.0, help="height of the wall (default: 6)")
parser.add_argument("--thickness", type=float, default=0.4, help="length a of the wall (default: 0.4)")
parser.add_argument("--spacing", type=float, default=0.125, help="distance of grid points (default: 0.125)")
parser.add_argument("--dt", type=float, default=0.03, help="time step (default: 0.03)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.spacing, arguments.dt = 0.25, 0.06

comm = MPI.COMM_WORLD
arguments.output.mkdir(parents=True, exist_ok=True)
k0, height, a, width = arguments.momentum, arguments.height, arguments.thickness, 1.0
equation = npde.physics.schrodinger(lambda x: height / ufl.cosh(x[0] / a) ** 2)

# The box is so large that nothing reaches its edge before the packet has passed the wall, or been thrown back.

start, sideways = np.array([-5.0, -1.5]), 0.9
end = 2 * abs(start[0]) / k0
lower, upper = np.array([-11.0, -5.5]), np.array([11.0, 5.5])
points = tuple(np.rint((upper - lower) / arguments.spacing).astype(int) + 1)
cells = tuple(np.rint((upper - lower) / (2 * arguments.spacing)).astype(int))  # of degree two: as many dofs as points
closed = [npde.Dirichlet(0.0)]
mesh = dolfinx.mesh.create_rectangle(comm, [lower, upper], cells, dolfinx.mesh.CellType.quadrilateral)
methods = {
    "FD, Strang": (npde.FD(equation, npde.Grid(comm, points, lower, upper), closed), npde.Strang()),
    "FEM, Crank-Nicolson": (
        npde.FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", 2)), closed),
        npde.CrankNicolson(),
    ),
}


def packet(x):
    """A Gaussian packet of norm 1 with the momentum (k0, sideways)."""
    along, across = x[0] - start[0], x[1] - start[1]
    envelope = np.exp(-(along**2 + across**2) / (4 * width**2)) / np.sqrt(2 * np.pi * width**2)
    return envelope * np.exp(1j * (k0 * along + sideways * across))


# What theory says: the average of T over the packet's momenta.


def transmission(k):
    """Share of a plane wave that passes Eckart's barrier."""
    through = np.sinh(np.pi * k * a) ** 2
    barrier = 8 * height * a**2 - 1
    held = np.cosh(np.pi / 2 * np.sqrt(barrier)) if barrier > 0 else np.cos(np.pi / 2 * np.sqrt(-barrier))
    return through / (through + held**2)


momenta = np.linspace(max(k0 - 3 / width, 1e-3), k0 + 3 / width, 2001)
share_of = np.exp(-2 * width**2 * (momenta - k0) ** 2) * np.sqrt(2 / np.pi) * width
expected = np.trapezoid(transmission(momenta) * share_of, momenta)
energy = k0**2 / 2
say(comm, f"energy towards the wall {energy:.2f}, wall {height:.2f}: by theory {expected:.4f} of the packet tunnels")

# Solve, and look at the packet on the way: its norm, and what is beyond the wall. For the pictures a probe reads it at
# the points of a raster, by FEM and FD alike.

steps = int(np.ceil(end / arguments.dt))
times = end * np.unique(np.linspace(0, steps, 37).round()) / steps
raster = [np.linspace(low, high, count) for low, high, count in zip(lower, upper, (265, 133), strict=True)]
spots = np.stack(np.meshgrid(*raster, indexing="ij"), axis=-1)
films, passed = {}, {}
for name, (problem, scheme) in methods.items():
    solution = npde.solve(problem, packet, (0, end), end / steps, scheme, observe=times)

    def amount(where, k, solution=solution):
        return float(npde.integral(solution, lambda psi, x, t: where(x) * abs(psi) ** 2, k))

    norms = [amount(lambda x: 1.0, k) for k in (0, len(times) // 2, -1)]
    passed[name] = [amount(lambda x: ufl.conditional(ufl.gt(x[0], 0), 1.0, 0.0), k) for k in range(len(times))]
    probe = npde.Probe(problem, spots.reshape(-1, 2))
    films[name] = [probe.apply(values).view(complex).reshape(spots.shape[:2]) for values in solution.states]
    say(
        comm,
        f"{name}: {problem.unknowns // 2} complex unknowns, {len(solution.steps)} steps in {solution.seconds:.1f} s; "
        f"tunnelled {passed[name][-1]:.4f}, norm changed by {max(abs(n - norms[0]) for n in norms):.1e}",
    )

# Pictures: colour is the phase of psi, so that stripes are waves; brightness is |psi|.

if comm.rank == 0:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.animation import FuncAnimation, PillowWriter

    def coloured(psi):
        hue = plt.colormaps["hsv"](np.angle(psi) / (2 * np.pi) % 1)[..., :3]
        light = np.clip(np.abs(psi) / 0.3, 0, 1)[..., None] ** 0.8
        return np.swapaxes((0.85 * hue + 0.15) * light, 0, 1)

    def wall(axis):
        axis.axvspan(-a, a, color="white", alpha=0.25, linewidth=0)
        axis.set(xticks=[], yticks=[], xlim=(lower[0], upper[0]), ylim=(lower[1], upper[1]))

    look = {"origin": "lower", "extent": (lower[0], upper[0], lower[1], upper[1]), "interpolation": "bilinear"}
    shown = [0, len(times) // 2, len(times) - 1]
    figure = plt.figure(figsize=(12.6, 7.8), layout="constrained")
    grid = figure.add_gridspec(3, 6, height_ratios=(1, 1, 1))
    for row, (name, film) in enumerate(films.items()):
        for column, k in enumerate(shown):
            axis = figure.add_subplot(grid[row, 2 * column : 2 * column + 2])
            axis.imshow(coloured(film[k]), **look)
            wall(axis)
            if row == 0:
                axis.set_title(f"t = {times[k]:.2f}")
            if column == 0:
                axis.set_ylabel(name)
    over_time, over_momentum = figure.add_subplot(grid[2, :3]), figure.add_subplot(grid[2, 3:])
    for (name, curve), style in zip(passed.items(), ("-", "--"), strict=True):
        over_time.plot(times, curve, style, color="tab:blue" if style == "-" else "tab:orange", label=name)
    over_time.axhline(expected, color="black", linewidth=0.8, linestyle=":", label="theory, in the end")
    over_time.set(xlabel="t", ylabel="probability beyond the wall", ylim=(0, None))
    over_momentum.plot(momenta, transmission(momenta), color="black", label="T(k), Eckart")
    over_momentum.fill_between(momenta, share_of, color="tab:blue", alpha=0.3, label="momenta of the packet")
    over_momentum.axvline(np.sqrt(2 * height), color="tab:red", linewidth=0.8, label="as energetic as the wall is high")
    over_momentum.set(xlabel="momentum k towards the wall", ylim=(0, 1.02), xlim=(momenta[0], momenta[-1]))
    for axis in (over_time, over_momentum):
        axis.legend(frameon=False, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, arguments.output / "tunnelling.png")

    figure, axes = plt.subplots(2, 1, figsize=(5.4, 5.2), facecolor="black", layout="constrained")
    images = []
    for axis, (name, film) in zip(axes, films.items(), strict=True):
        images.append(axis.imshow(coloured(film[0]), **look))
        wall(axis)
        axis.set_title(name, color="white", fontsize=10)

    def draw(k):
        for image, film in zip(images, films.values(), strict=True):
            image.set_data(coloured(film[k]))
        return images

    FuncAnimation(figure, draw, len(times)).save(arguments.output / "tunnelling.gif", PillowWriter(fps=12), dpi=64)
    print(f"written: {arguments.output / 'tunnelling.png'} and {arguments.output / 'tunnelling.gif'}")
