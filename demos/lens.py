"""A beam of light through a lens whose index varies: the paraxial equation against the whole of Helmholtz'.

    python demos/lens.py
    mpirun -n 2 python demos/lens.py --waist 2

In a slab of graded index, n^2 = 1 - a^2 x^2, light is slower in the middle, so that beams bend inwards: a lens with
flat faces, which are blurred a little here, lest they reflect. All lengths are in wavelengths, k = 2 pi. A beam along
z, u = psi exp(i k z), obeys Helmholtz' equation,

    0 = lap u + k^2 n^2 u,

and if it is narrow in its directions, so that psi changes slowly along z, the paraxial one,

    2 i k psi_z = -psi_xx - k^2 (n^2 - 1) psi,

in which z plays the part of time: it costs a march in one dimension less. For it a Gaussian beam stays Gaussian, and
its complex parameter q, of which 1/q = curvature + i wavelength / (pi w^2), goes through the system by the matrices of
ray optics, q -> (A q + B) / (C q + D) (Kogelnik and Li 1966, Appl. Opt. 5, eqs. 43, 48 and table I):

    free space   1  z       graded index   cos(a z)     sin(a z) / a
                 0  1                     -a sin(a z)   cos(a z)

The beam starts at its waist w0, and spreads by the angle 1 / (pi w0). Helmholtz' equation is solved by FEM of degree
six, the paraxial one by FD and by FEM; both begin with the same wave. Behind the lens a layer that absorbs, by an
index with an imaginary part that rises slowly, takes up the light.

How good is the paraxial equation? It replaces the wavenumber along z, sqrt(k^2 - kx^2), by k - kx^2 / (2 k), and the
next term, kx^4 / (8 k^3), goes as the fourth power of the angle. Let wide and narrow beams pass the same lens, scaled
so that the paraxial picture is the same: across as w0, along as w0^2. Then the error should go as the angle squared.
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

parser = argparse.ArgumentParser(description="A Gaussian beam through a graded-index lens: paraxial and Helmholtz.")
parser.add_argument("--waist", type=float, default=3.0, help="waist w0 of the beam in wavelengths (default: 3)")
parser.add_argument("--strength", type=float, default=0.75, help="a w0^2 of the lens (default: 0.75)")
parser.add_argument("--size", type=float, default=0.75, help="length of the elements in wavelengths (default: 0.75)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
waists = sorted({arguments.waist, *((1.8, 2.2) if arguments.quick else (1.8, 2.2, 2.6, 3.5))}, reverse=True)

comm = MPI.COMM_WORLD
arguments.output.mkdir(parents=True, exist_ok=True)
k, strength = 2 * np.pi, arguments.strength

# The system in units of w0^2 along and of w0 across: the lens, the end, the absorbing layer behind it. Where the index
# would fall below 1/2, far from the beam, it stays.

front, back, blur, end, layer, half = 0.6, 1.8, 0.1, 3.6, 0.6, 3.6
waist = npde.Parameter("waist", arguments.waist)


def lens(z, tanh):
    """1 in the lens and 0 outside."""
    return (tanh((z - front) / blur) - tanh((z - back) / blur)) / 2


def index_squared(x, z):
    """n^2 at a distance from the axis and a place along it."""
    steepness = strength / waist**2 * x
    return 1 - lens(z / waist**2, ufl.tanh) * ufl.min_value(steepness**2, 0.75)


def index(x):
    """The index in the plane, with the absorbing layer."""
    depth = ufl.max_value(x[0] / waist**2 - end, 0.0) / layer
    return ufl.sqrt(index_squared(x[1], x[0])) + 0.4j * depth**2


def in_the_plane(w0):
    """Helmholtz in the plane of (z, x)."""
    sides = np.array([end + layer, 2 * half]) * [w0**2, w0]
    corners = [(0.0, -half * w0), (sides[0], half * w0)]
    cells = [round(side / size) for side, size in zip(sides, (arguments.size, 2 * arguments.size), strict=True)]
    mesh = dolfinx.mesh.create_rectangle(comm, corners, cells, dolfinx.mesh.CellType.quadrilateral)
    conditions = [
        npde.Dirichlet(lambda x: ufl.exp(-(x[1] ** 2) / waist**2), where=lambda x: np.isclose(x[0], 0.0)),
        npde.Robin(-1j * k),  # on the rest of the boundary; hardly any light gets there
    ]
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 6))
    return npde.FEM(npde.physics.helmholtz(k, index), space, conditions, quadrature_degree=12)


def on_the_line(w0):
    """The paraxial equation on the line of x, by FD and FEM."""
    equation = npde.physics.paraxial(k, lambda x, z: ufl.sqrt(index_squared(x[0], z)))
    points = 401 if arguments.quick else 801
    grid = npde.Grid(comm, (points,), -half * w0, half * w0)
    mesh = dolfinx.mesh.create_interval(comm, (points - 1) // 4, [-half * w0, half * w0])
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 4))
    closed = [npde.Dirichlet(0.0)]
    return {"FD": npde.FD(equation, grid, closed), "FEM": npde.FEM(equation, space, closed)}


# Solve both, and read them at the points of one raster, the same for all beams in units of w0^2 and w0. The paraxial
# envelope gets its carrier back, exp(i k z).

raster = np.linspace(0, end, 241), np.linspace(-half, half, 201)


def beams(w0):
    """Each method's wave at the raster, shape (z, x), and its seconds."""

    def gaussian(y):
        return np.exp(-(y[0] ** 2) / w0**2)

    waist.value = w0
    z, x = raster[0] * w0**2, raster[1] * w0
    problem = in_the_plane(w0)
    solution = npde.solve(problem)
    points = np.stack(np.meshgrid(z, x, indexing="ij"), axis=-1).reshape(-1, 2)
    waves = npde.Probe(problem, points).apply(solution.values).view(complex)
    found, seconds = {"Helmholtz": waves.reshape(z.size, x.size)}, {"Helmholtz": solution.seconds}
    for name, march in on_the_line(w0).items():
        steps = (1 if arguments.quick else 2) * (z.size - 1)
        solution = npde.solve(march, gaussian, (0, z[-1]), z[-1] / steps, npde.Strang(), observe=z)
        probe = npde.Probe(march, x)
        envelope = np.array([probe.apply(values).view(complex).ravel() for values in solution.states])
        found[name], seconds[name] = envelope * np.exp(1j * k * z)[:, None], solution.seconds
    return found, seconds, problem.unknowns // 2


def width(u):
    """w(z) in units of w0, of a Gaussian with the same power and the same intensity on the axis."""
    intensity = abs(u) ** 2
    step = raster[1][1] - raster[1][0]
    return np.sqrt(2 / np.pi) * step * intensity.sum(axis=1) / intensity[:, raster[1].size // 2]


def width_by_rays():
    """w(z) in units of w0 by the matrices of ray optics, slice by slice."""
    places = np.linspace(0, end, 8 * (raster[0].size - 1) + 1)
    step, q = places[1], [-1j * np.pi]
    for z in places[:-1]:
        a = strength * np.sqrt(lens(z + step / 2, np.tanh)) + 1e-9
        q.append((np.cos(a * step) * q[-1] + np.sin(a * step) / a) / (-a * np.sin(a * step) * q[-1] + np.cos(a * step)))
    return np.sqrt(1 / (np.pi * np.imag(1 / np.array(q[::8]))))


far, rays = raster[0] > back, width_by_rays()
say(comm, "  w0   angle   unknowns  seconds: Helmholtz  paraxial   u differs   widths from rays: Helmholtz, FD, FEM")
rows = []
for w0 in waists:
    found, seconds, unknowns = beams(w0)
    widths = {name: width(u) for name, u in found.items()}
    if w0 == arguments.waist:
        shown, curves = found, widths
    exact = found["Helmholtz"][far]
    wrong = np.linalg.norm(found["FEM"][far] - exact) / np.linalg.norm(exact)
    off = {name: np.max(abs(w / rays - 1)[far]) for name, w in widths.items()}
    rows.append((1 / (np.pi * w0), wrong, off["Helmholtz"]))
    say(
        comm,
        f"{w0:4.2f} {rows[-1][0]:7.3f} {unknowns:10d} {seconds['Helmholtz']:19.2f} {seconds['FD']:9.2f} {wrong:11.2%} "
        f"{off['Helmholtz']:27.2%} {off['FD']:6.2%} {off['FEM']:6.2%}",
    )
tilts, errors, width_errors = np.array(rows).T
focus = {name: raster[0][np.argmin(w)] * arguments.waist**2 for name, w in {**curves, "rays": rays}.items()}
say(comm, f"\nfocus of the beam of w0 = {arguments.waist:g} at z = {focus['Helmholtz']:.1f}; rays {focus['rays']:.1f}")
for name, values in (("u", errors), ("its width", width_errors)):
    order = np.polyfit(np.log(tilts), np.log(values), 1)[0]
    say(comm, f"the error of {name} grows as the angle to the power {order:.2f}")

if comm.rank == 0:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(13, 7), layout="constrained")
    grid = figure.add_gridspec(2, 4, width_ratios=(1.2, 1.2, 0.9, 0.9))
    z, x = raster[0] * arguments.waist**2, raster[1] * arguments.waist
    slab = np.array([front, back]) * arguments.waist**2
    look = {"origin": "lower", "extent": (0, z[-1], x[0], x[-1]), "aspect": "auto", "interpolation": "bilinear"}
    for row, (name, label) in enumerate((("Helmholtz", "Helmholtz"), ("FD", "paraxial"))):
        axis = figure.add_subplot(grid[row, :2])
        axis.imshow(shown[name].real.T, cmap="RdBu_r", vmin=-1, vmax=1, **look)
        for sign in (-1, 1):
            axis.plot(z, sign * rays * arguments.waist, color="black", linewidth=1)
        axis.axvspan(*slab, color="tab:green", alpha=0.12, linewidth=0)
        axis.set(title=f"Re u, {label}", ylabel="x", ylim=(-2.4 * arguments.waist, 2.4 * arguments.waist))
    axis.set_xlabel("z in wavelengths")
    axis = figure.add_subplot(grid[0, 2:])
    axis.plot(z, curves["Helmholtz"] * arguments.waist, color="tab:red", linewidth=2.5, label="Helmholtz, FEM")
    axis.plot(z, curves["FD"] * arguments.waist, color="tab:blue", label="paraxial, FD")
    axis.plot(z, curves["FEM"] * arguments.waist, color="tab:green", linestyle="--", label="paraxial, FEM")
    axis.plot(z, rays * arguments.waist, color="black", linestyle=":", label="matrices of ray optics")
    axis.axvspan(*slab, color="tab:green", alpha=0.12, linewidth=0)
    axis.set(xlabel="z in wavelengths", title="width w", xlim=(0, z[-1]), ylim=(0, None))
    axis.legend(frameon=False, fontsize=9)
    axis = figure.add_subplot(grid[1, 2:])
    axis.loglog(tilts, errors, "o-", color="tab:blue", label="u behind the lens, L2")
    axis.loglog(tilts, width_errors, "s-", color="tab:red", label="width behind the lens, at most")
    axis.loglog(tilts, errors[0] * (tilts / tilts[0]) ** 2, color="0.6", linewidth=0.8, label="angle^2")
    axis.set(xlabel="angle of the beam, 1 / (pi w0)", title="error of the paraxial equation")
    axis.set_xticks(tilts, [f"{tilt:.2f}" for tilt in tilts])
    axis.set_xticks([], minor=True)
    axis.legend(frameon=False, fontsize=9)
    for axis in figure.axes[2:]:
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, arguments.output / "lens.png")
    print(f"written: {arguments.output / 'lens.png'}")
