"""Design of a lens: which index of refraction focuses a wave on a point? Topology optimisation with exact gradients.

    python demos/inverse_design.py
    python demos/inverse_design.py --method fd
    mpirun -n 2 python demos/inverse_design.py --index 1.8

A plane wave exp(i k x) falls on a region in which we may place a material of index n1 as we like; elsewhere is air. All
lengths are in wavelengths, k = 2 pi. The unknown is a density rho(x) in [0, 1], and the light at the focus is what we
want most of:

    maximise   J = mean |u|^2 over a spot around the focus,
    where      0 = lap u + k^2 n^2 u,     n^2 = 1 + (n1^2 - 1) P(f)     in the region,
    and        0 = r^2 lap f - f + rho.

The filter f of the density keeps details above a radius (Lazarov and Sigmund 2011, Int. J. Numer. Methods Eng. 86), and
the projection P, a steep tanh, presses it to air or material; it gets steeper in stages (Wang, Lazarov and Sigmund
2011, Struct. Multidisc. Optim. 43). A gradient by thousands of values of rho costs two solves backwards, the adjoints
of the two equations: pyadjoint's tape holds both solves one after the other. The wave, and so the lens, is symmetric
about the axis, so half of the plane is enough. At its edge the incoming wave enters and the scattered one leaves.

Both methods do it (--method fd). The region's edge runs along lines of the mesh, or of the grid. At the same number of
unknowns FEM of degree two gets the wavelength better than FD of order two, whose design is that for waves a little too
short: its points should be twice as close. Both gradients are exact for what their method computes.
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

parser = argparse.ArgumentParser(description="An index of refraction that focuses a plane wave on a point.")
parser.add_argument("--method", choices=("fem", "fd"), default="fem", help="the discretisation (default: fem)")
parser.add_argument("--index", type=float, default=1.5, help="index n1 of the material (default: 1.5)")
parser.add_argument("--radius", type=float, default=0.3, help="radius of the filter in wavelengths (default: 0.3)")
parser.add_argument("--points", type=int, default=16, help="points a wavelength in air (default: 16)")
parser.add_argument("--iterations", type=int, default=25, help="at most so many in every stage (default: 25)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.points, arguments.iterations = 8, 6

comm = MPI.COMM_WORLD
arguments.output.mkdir(parents=True, exist_ok=True)
k = 2 * np.pi
lower, upper = (-2.0, 0.0), (4.0, 3.0)  # the lower side is the axis of symmetry
region, focus, spot = ((-1.0, 0.0), (0.5, 2.5)), (2.6, 0.0), 0.15


def in_region(x):
    """1 in the region of the design, 0 elsewhere."""
    (left, below), (right, above) = region
    within = ufl.And(
        ufl.And(ufl.ge(x[0], left), ufl.le(x[0], right)), ufl.And(ufl.ge(x[1], below), ufl.le(x[1], above))
    )
    return ufl.conditional(within, 1.0, 0.0)


def brightness(u, x, t):
    """|u|^2 around the focus, with weights whose total over the half plane is 1."""
    distance = (x[0] - focus[0]) ** 2 + (x[1] - focus[1]) ** 2
    return 2 / (np.pi * spot**2) * ufl.exp(-distance / spot**2) * abs(u) ** 2


# The two equations, their discretisation by the same mesh or grid, and the chain of solves.

density = npde.Parameter("density", 0.5, field=True, bounds=(0.0, 1.0))
filtered = npde.Parameter("filtered", 0.5, field=True)
beta = npde.Parameter("beta", 1.0)


def index_squared(x):
    return 1 + (arguments.index**2 - 1) * in_region(x) * npde.projection(filtered, beta)


def incoming(x, t, n):
    """What exp(i k x) brings through the boundary: n . grad v - i k v."""
    return 1j * k * (n[0] - 1) * ufl.exp(1j * k * x[0])


light = npde.physics.helmholtz(k, lambda x: ufl.sqrt(index_squared(x)))
smoothing = npde.density_filter(density, arguments.radius)
open_sides = [
    npde.Robin(-1j * k, incoming, where=lambda x, axis=axis, side=side: np.isclose(x[axis], side))
    for axis, side in ((0, lower[0]), (0, upper[0]), (1, upper[1]))
]
sizes = np.subtract(upper, lower) * arguments.points
if arguments.method == "fem":
    cells = np.rint(sizes / 2).astype(int)  # of degree two: as many dofs as points
    mesh = dolfinx.mesh.create_rectangle(comm, [lower, upper], cells, dolfinx.mesh.CellType.quadrilateral)
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 2))
    waves, filters = npde.FEM(light, space, open_sides, quadrature_degree=6), npde.FEM(smoothing, space)
else:
    grid = npde.Grid(comm, tuple(np.rint(sizes).astype(int) + 1), lower, upper)
    waves, filters = npde.FD(light, grid, open_sides), npde.FD(smoothing, grid)


def darkness(smooth):
    """Minus the light at the focus, for a filtered density: the second solve, which the first one feeds."""
    return -npde.integral(npde.solve(waves, parameters={filtered: smooth.u}), brightness)


def steeper(value):
    """The problem of finding the best density, with a projection as steep as this."""
    beta.value = value
    return npde.PDEConstrainedProblem(filters, darkness, density)


# The gradient is exact: along a direction, what it leaves of the change of J falls as the square of the step.

design = steeper(1.0)
before = -design.loss()
here = filters.field_values(density)
direction = filters.initial(lambda x: np.cos(3 * x[0]) * np.cos(5 * x[1]))
slope = comm.allreduce(float(design.gradient()["density"] @ direction))
left = []
for step in (0.02, 0.01, 0.005):
    filters.set_field(density, here + step * direction)
    left.append(abs(design.loss() + before - step * slope))
filters.set_field(density, here)
say(comm, f"{waves.unknowns // 2} complex unknowns, {filters.n_global} values of the density")
rates = np.log2(np.divide(left[:-1], left[1:]))
say(comm, f"Taylor test of the gradient: rates {rates[0]:.2f} and {rates[1]:.2f}, 2 expected")


# Before: half-way between air and material everywhere. Then stage by stage.

raster = [np.linspace(low, high, count) for low, high, count in zip(lower, upper, (241, 121), strict=True)]
points = np.stack(np.meshgrid(*raster, indexing="ij"), axis=-1).reshape(-1, 2)
eye, ruler = npde.Probe(waves, points), npde.Probe(filters, points)


def look():
    """n and u at the raster, for the present density."""
    smooth = npde.solve(filters)
    shape = [axis.size for axis in raster]
    solution = npde.solve(waves, parameters={filtered: smooth.values})
    u = eye.apply(solution.values).view(complex).reshape(shape)
    f = ruler.apply(smooth.values).reshape(shape)
    inside = np.all([(points[:, a] >= region[0][a]) & (points[:, a] <= region[1][a]) for a in (0, 1)], axis=0)
    share = np.where(inside.reshape(shape), npde.projection(f, float(beta)), 0.0)
    return np.sqrt(1 + (arguments.index**2 - 1) * share), u


views = {"before": look()}
say(comm, f"\nlight at the focus (1 without a lens): {before:.2f} before")
history = [before]
for value in (2.0, 8.0, 32.0):
    stage = steeper(value)
    started = -stage.loss()
    found = stage.minimize("tao-bqnls", max_iterations=arguments.iterations, gtol=1e-4, ftol=2e-3, progress=False)
    history += [-iteration.loss for iteration in found.history]
    say(
        comm,
        f"beta {value:4g}: {started:6.2f} to {-found.loss:6.2f} in {found.iterations} iterations, "
        f"{found.evaluations} evaluations, {found.seconds:.1f} s",
    )
views["after"] = look()
sharp = -steeper(1000.0).loss()
say(comm, f"of nothing but air and material: {sharp:.2f}, that is {sharp / before:.1f} times as bright as before")

if comm.rank == 0:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, 3, figsize=(12.6, 7.4), layout="constrained", gridspec_kw={"width_ratios": (1, 1.17, 1)}
    )
    brightest = np.max(abs(views["after"][1]) ** 2)
    extent = (lower[0], upper[0], -upper[1], upper[1])
    for column, (name, (n, u)) in enumerate(views.items()):
        for row, (values, cmap, low, high, label) in enumerate(
            ((n, "Blues", 1.0, arguments.index, "index n"), (abs(u) ** 2, "inferno", 0.0, brightest, "|u|^2"))
        ):
            axis = axes[row, column]
            whole = np.concatenate([values[:, :0:-1], values], axis=1)  # mirrored at the axis of symmetry
            image = axis.imshow(whole.T, origin="lower", extent=extent, cmap=cmap, vmin=low, vmax=high)
            (left, _), (right, above) = region
            axis.add_patch(
                plt.Rectangle((left, -above), right - left, 2 * above, fill=False, color="0.6", linewidth=0.8)
            )
            axis.plot(*focus, "+", color="tab:green", markersize=10)
            axis.set(xticks=[], yticks=[], title=f"{label}, {name}")
            if column == 1:
                figure.colorbar(image, ax=axis, shrink=0.8)
    rising, across = axes[:, 2]
    rising.plot(history, color="tab:blue")
    rising.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    rising.set(xlabel="iteration", title="light at the focus", ylim=(0, None))
    at = np.argmin(abs(raster[0] - focus[0]))
    y = np.concatenate([-raster[1][:0:-1], raster[1]])
    for (name, (_, u)), color in zip(views.items(), ("0.5", "tab:red"), strict=True):
        line = abs(u[at]) ** 2
        across.plot(y, np.concatenate([line[:0:-1], line]), color=color, label=name)
    across.set(xlabel="y at the focus", title="|u|^2", ylim=(0, None))
    across.legend(frameon=False)
    for axis in (rising, across):
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, arguments.output / "inverse_design.png")
    print(f"written: {arguments.output / 'inverse_design.png'}")
