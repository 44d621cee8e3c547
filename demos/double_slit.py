"""Light passes two slits: Helmholtz' equation on an unstructured mesh, against Fraunhofer's formula.

    python demos/double_slit.py
    mpirun -n 2 python demos/double_slit.py --distance 4 --slit 1.2

A plane wave exp(i k x) meets a wall with two slits of width b, whose middles are d apart. All lengths are in
wavelengths, so k = 2 pi. The wave u exp(-i omega t) obeys

    0 = lap u + k^2 u,     n . grad u = 0 at the wall,

as sound does at a hard wall, and light at metal if its magnetic field is along the slits. What leaves never comes back:
on a circle of radius R around the slits, to first order in 1 / (k R),

    du/dr = (i k - 1 / (2 R)) u     (Bayliss, Gunzburger and Turkel 1982, SIAM J. Appl. Math. 42),

a Robin condition with a complex coefficient. Before the wall it holds for what differs from the standing wave
exp(i k x) + exp(-i k x) that there would be without slits.

What arrives behind the wall is, by the integral of Rayleigh and Sommerfeld over the slits (Born and Wolf 1999,
Principles of Optics, section 8.11),

    u(x) = -i/2 int H0(k |x - y|) du/dx(y) dy,

where du/dx = i k if the wave in the slits is the incoming one; it is so nearly. Fraunhofer's formula is the limit of
that for a screen far away:

    |u|^2 = 4 b^2 / R  sinc^2(b sin(theta))  cos^2(pi d sin(theta)),     sinc(s) = sin(pi s) / (pi s).
"""

import argparse
from pathlib import Path

import npde_fem as npde
from npde_fem.meshes import drawn
from npde_fem.output import save_figure
from npde_fem.parallel import say

import dolfinx
import numpy as np
import ufl
from mpi4py import MPI
from scipy.special import hankel1

parser = argparse.ArgumentParser(description="Double slit: Helmholtz against Fraunhofer.")
parser.add_argument("--slit", type=float, default=1.5, help="width b of a slit in wavelengths (default: 1.5)")
parser.add_argument("--distance", type=float, default=4.0, help="distance d of the slits' middles (default: 4)")
parser.add_argument("--radius", type=float, default=24.0, help="radius R of the screen (default: 24)")
parser.add_argument("--size", type=float, default=0.6, help="size of the elements in wavelengths (default: 0.6)")
parser.add_argument("--degree", type=int, default=4, help="degree of the elements (default: 4)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.radius, arguments.size = 12.0, 0.8

comm = MPI.COMM_WORLD
arguments.output.mkdir(parents=True, exist_ok=True)
b, d, far, near, thick = arguments.slit, arguments.distance, arguments.radius, 0.4 * arguments.radius, 0.25
k = 2 * np.pi

# The mesh: half a disc before the wall, half a disc behind it, and two channels between. It is fine at the slits, whose
# corners make the wave singular.

LIGHT, SCREEN, WALL = 1, 2, 3


def draw(gmsh):
    """Draw what is not wall. The wall's back is the line x = 0."""
    shapes = gmsh.model.occ
    halves = []
    for centre, radius, side in ((0.0, far, 1), (-thick, near, -1)):
        disc = shapes.addDisk(centre, 0, 0, radius, radius)
        other = shapes.addRectangle(centre - (radius if side > 0 else 0), -radius, 0, radius, 2 * radius)
        halves += shapes.cut([(2, disc)], [(2, other)])[0]
    slits = [(2, shapes.addRectangle(-thick, middle - b / 2, 0, thick, b)) for middle in (-d / 2, d / 2)]
    shapes.fragment(halves, slits)
    shapes.synchronize()
    model = gmsh.model
    model.addPhysicalGroup(2, [tag for _, tag in model.getEntities(2)], tag=1)
    edges = {LIGHT: [], SCREEN: [], WALL: []}
    for _, tag in model.getBoundary(model.getEntities(2), oriented=False, combined=True):
        arc = model.getType(1, tag) != "Line"
        edges[WALL if not arc else SCREEN if shapes.getCenterOfMass(1, tag)[0] > 0 else LIGHT].append(tag)
    for kind, tags in edges.items():
        model.addPhysicalGroup(1, tags, tag=kind)
    fine = model.mesh.field.add("Box")
    for name, value in {
        "VIn": arguments.size / 4,
        "VOut": arguments.size,
        "XMin": -1.5 * thick,
        "XMax": 0.5 * thick,
        "YMin": -d / 2 - b / 2 - 0.2,
        "YMax": d / 2 + b / 2 + 0.2,
        "Thickness": 2.0,
    }.items():
        model.mesh.field.setNumber(fine, name, value)
    model.mesh.field.setAsBackgroundMesh(fine)


plate = drawn(comm, draw, options={"Mesh.MeshSizeExtendFromBoundary": 0, "Mesh.MeshSizeFromPoints": 0})

# The problem. Where light comes in, the boundary brings n . grad w + c w of the standing wave w.

before, behind = -1j * k + 1 / (2 * near), -1j * k + 1 / (2 * far)


def standing(x):
    """The wave without slits: incoming and reflected."""
    return ufl.exp(1j * k * (x[0] + thick)) + ufl.exp(-1j * k * (x[0] + thick))


problem = npde.FEM(
    npde.physics.helmholtz(k),
    dolfinx.fem.functionspace(plate.mesh, ("Lagrange", arguments.degree)),
    [
        npde.Robin(behind, where=SCREEN),
        npde.Robin(before, lambda x, t, n: ufl.dot(n, ufl.grad(standing(x))) + before * standing(x), where=LIGHT),
    ],
    facet_tags=plate.facet_tags,
)
solution = npde.solve(problem)
say(comm, f"{problem.unknowns // 2} complex unknowns, solved in {solution.seconds:.1f} s")


def waves(points):
    """The computed wave at points (n, 2)."""
    return npde.Probe(problem, points).apply(solution.values).view(complex).ravel()


# The screen, a little before the mesh's edge, and what it shows, by the solution and by the formulas.

angles = np.linspace(-75, 75, 601)
theta, screen = np.deg2rad(angles), 0.98 * far
spots = screen * np.stack([np.cos(theta), np.sin(theta)], axis=1)
computed = abs(waves(spots)) ** 2
sine = np.sin(theta)
fraunhofer = 4 * b**2 / screen * (np.sinc(b * sine) * np.cos(np.pi * d * sine)) ** 2

nodes, weights = np.polynomial.legendre.leggauss(60)
along = np.concatenate([middle + b / 2 * nodes for middle in (-d / 2, d / 2)])
slits = np.stack([np.zeros_like(along), along], axis=1)
step = np.array([0.01, 0.0])
slopes = {"of the incoming wave": 1j * k, "computed": (waves(slits + step) - waves(slits - step)) / (2 * step[0])}
kernel = -0.5j * hankel1(0, k * np.linalg.norm(spots[:, None, :] - slits, axis=2)) * np.tile(b / 2 * weights, 2)
sommerfeld = {name: abs(kernel @ np.broadcast_to(slope, along.shape)) ** 2 for name, slope in slopes.items()}

within = abs(angles) < 60


def apart(other):
    """How far an intensity is from the computed one, at most, as a share of the greatest."""
    return np.max(abs(other - computed)[within]) / computed.max()


dark = np.rad2deg(np.arcsin(0.5 / d))
first = abs(angles[angles > 0][np.argmin(computed[(angles > 0) & (angles < 1.6 * dark)])])
say(comm, f"first dark fringe at {first:.2f} degrees; Fraunhofer: {dark:.2f}")
say(comm, f"intensity within 60 degrees, of the greatest: Fraunhofer errs by {apart(fraunhofer):.1%}")
for name, intensity in sommerfeld.items():
    say(comm, f"Rayleigh and Sommerfeld's integral with the slope {name} errs by {apart(intensity):.1%}")

# Pictures of the wave, read at a raster: nothing where there is wall or no mesh.

x, y = np.meshgrid(np.linspace(-near - thick, far, 421), np.linspace(-0.8 * far, 0.8 * far, 481), indexing="ij")
inside = ((x > 0) & (np.hypot(x, y) < 0.99 * far)) | ((x < -thick) & (np.hypot(x + thick, y) < 0.97 * near))
inside |= (abs(abs(y) - d / 2) < b / 2) & (abs(x) <= thick)
picture = np.full(x.shape, np.nan, dtype=complex)
picture[inside] = waves(np.stack([x[inside], y[inside]], axis=1))

if comm.rank == 0:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(14, 5.6), layout="constrained", gridspec_kw={"width_ratios": (1, 1, 0.9)}
    )
    look = {"origin": "lower", "extent": (x[0, 0], x[-1, 0], y[0, 0], y[0, -1]), "interpolation": "bilinear"}
    left.imshow(picture.real.T, cmap="RdBu_r", vmin=-1.2, vmax=1.2, **look)
    middle.imshow(abs(picture.T) ** 2, cmap="inferno", vmin=0, vmax=2, **look)
    left.set_title("Re u")
    middle.set_title("|u|^2")
    for axis in (left, middle):
        edges = [-near, -d / 2 - b / 2, -d / 2 + b / 2, d / 2 - b / 2, d / 2 + b / 2, near]
        for low, high in zip(edges[::2], edges[1::2], strict=True):
            axis.fill([-thick, 0, 0, -thick], [low, low, high, high], color="0.25", linewidth=0)
        axis.plot(*spots[within].T, color="tab:green", linewidth=1)
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    right.plot(angles, computed, color="tab:green", linewidth=2.5, label="Helmholtz, on the green screen")
    for (name, intensity), style in zip(sommerfeld.items(), (":", "--"), strict=True):
        label = f"Rayleigh, Sommerfeld; slope {name}"
        right.plot(angles, intensity, color="black", linewidth=0.9, linestyle=style, label=label)
    right.plot(angles, fraunhofer, color="tab:red", linewidth=1, label="Fraunhofer")
    right.set(xlabel="angle in degrees", title="intensity", xlim=(-75, 75), ylim=(0, 1.45 * computed.max()))
    right.legend(frameon=False, fontsize=9, loc="upper left")
    right.spines[["top", "right"]].set_visible(False)
    save_figure(figure, arguments.output / "double_slit.png")
    print(f"written: {arguments.output / 'double_slit.png'}")
