"""Growth of a glioma in human brain anatomy, by finite differences and by finite elements.

    python demos/glioma.py                        # an axial slice, 1 mm voxels against 2 mm triangles
    mpirun -n 2 python demos/glioma.py --dim 3    # the whole brain, 2 mm voxels against 4 mm tetrahedra

A glioma is a brain tumour whose cells multiply and wander. Let u(x, t) be their density over the most that tissue can
hold. The model of proliferation and invasion of Swanson, Alvord and Murray (2000, Cell Prolif. 33, 317-329), with
logistic growth, is one equation of reaction and diffusion,

    u_t = div(D(x) grad u) + r u (1 - u),     D(x) = D_white WM(x) + D_grey GM(x),     n . D grad u = 0,

where WM and GM are the fractions of white and grey matter. Cells wander five times as fast along white matter, so the
tumour takes the shape of the anatomy. For a high-grade glioma r = 0.012/day and D_grey = 0.0013 cm^2/day, which is
0.13 mm^2/day. In a uniform tissue the front would move at 2 sqrt(r D): 6.4 cm a year in white matter, 2.9 in grey.

The anatomy is the ICBM152 template that the package nilearn carries; nothing is downloaded. What a scan shows is not u
but a contour of it: T1-weighted images with gadolinium show u > 0.8, T2-weighted ones u > 0.16. The rest is invisible,
which is why such tumours come back after surgery.

At last the question is turned round (in the slice): two noisy images of a tumour are given, and its numbers are not.
Where did it begin, how fast does it spread, how fast does it grow? The adjoint equation tells.
"""

import argparse
import time
from contextlib import ExitStack
from pathlib import Path

import npde_fem as npde
from npde_fem import brain
from npde_fem.output import Writer
from npde_fem.parallel import say

import numpy as np
from mpi4py import MPI

parser = argparse.ArgumentParser(description="Growth of a glioma in brain anatomy by FD and FEM.")
parser.add_argument("--dim", type=int, choices=(2, 3), default=2, help="2: an axial slice, 3: the volume")
parser.add_argument("--spacing", type=int, help="voxel edge in mm (default: 1 for the slice, 2 for the volume)")
parser.add_argument("--size", type=float, help="element size in mm (default: twice the voxel edge)")
parser.add_argument("--degree", type=int, default=1, help="degree of the elements (default: 1)")
parser.add_argument("--days", type=float, default=brain.DAYS, help=f"days to simulate (default: {brain.DAYS:g})")
parser.add_argument("--dt", type=float, default=brain.DT, help=f"time step in days (default: {brain.DT:g})")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if not 0 < 4 * arguments.dt <= arguments.days:
    parser.error(f"--dt must be positive, and --days four steps at least, not {arguments.dt:g} and {arguments.days:g}")

comm = MPI.COMM_WORLD
dim, output = arguments.dim, arguments.output
spacing = arguments.spacing or (dim - 1) * (2 if arguments.quick else 1)
size = arguments.size or 2.0 * spacing
output.mkdir(parents=True, exist_ok=True)

# The anatomy: maps of white and grey matter, and the mask of the tissue. Ventricles and wide sulci hold fluid, so they
# are no part of it.

tissue = brain.anatomy(dim, spacing, comm=comm)
say(comm, f"anatomy: {tissue.mask.sum()} voxels of {spacing} mm in a box of {' x '.join(map(str, tissue.mask.shape))}")

# One equation, two discretisations. FD works on the image's own voxels: its domain is an irregular subset of the grid,
# and no flux passes its staircase surface. FEM works on a mesh of the smoothed outline of the same voxels.

started = time.perf_counter()
by_fd = brain.glioma_fd(comm, tissue)
fd_setup = time.perf_counter() - started
started = time.perf_counter()
by_fem = brain.glioma_fem(comm, tissue, size, arguments.degree)
fem_setup = time.perf_counter() - started

# The tumour starts as a small Gaussian in the deep white matter. At first it thins out, as diffusion outruns growth; it
# becomes visible on T1-weighted images after more than a year.

u0 = brain.seed(tissue)
steps = round(arguments.days / arguments.dt)
times = arguments.days * np.unique(np.linspace(0, steps, 29).round()) / steps  # whole steps lead from each to the next
shown = [times[round(share * (len(times) - 1))] for share in (0.36, 0.57, 0.79, 1.0)]
runs = []
for problem, setup in ((by_fd, fd_setup), (by_fem, fem_setup)):
    with ExitStack() as stack:
        writer = stack.enter_context(Writer(output / f"glioma_{dim}d_{problem.method}.bp", problem))

        def write(t, u, writer=writer):
            if t in shown:
                writer(t, u)

        runs.append(brain.simulate(problem, u0, times, arguments.dt, callback=write))
    done = runs[-1].solution
    say(
        comm,
        f"{problem.method.upper():>4}: {problem.unknowns} unknowns, set up in {setup:.1f} s; {len(done.steps)} steps "
        f"in {done.seconds:.1f} s with {done.newton_iterations} Newton and {done.linear_iterations} linear iterations",
    )
fd, fem = runs

# How far the two are apart at the end.

end = brain.difference(tissue, fd, fem, size)
unit, scale = ("cm^2", 100.0) if dim == 2 else ("cm^3", 1000.0)
say(comm, f"\nday {arguments.days:g}          FD         FEM   difference")
for threshold, name in ((brain.T1GD, "T1Gd"), (brain.T2, "T2")):
    first, second = (value / scale for value in end.sizes[threshold])
    say(comm, f"u > {threshold:<4g} {name:<4} {first:6.2f} {unit} {second:6.2f} {unit} {end.in_size(threshold):8.2%}")
say(comm, f"u, L2 on the common voxels              {end.relative:8.2%}")

# And against resolution: both methods on voxels and elements of equal size, finer and finer.

coarse_to_fine = {2: (4, 2, 1), 3: (8, 6, 4)}[dim]
if arguments.quick:
    coarse_to_fine = {2: (8, 4), 3: (10, 8)}[dim]
differences = brain.compare_resolutions(comm, dim, coarse_to_fine, days=arguments.days, dt=arguments.dt)
say(comm, "\n size, mm   unknowns FD / FEM     seconds FD / FEM   u, L2   T1Gd size   T2 size")
for d in differences:
    say(
        comm,
        f"{d.spacing:9g} {d.unknowns[0]:11d} / {d.unknowns[1]:<8d} {d.seconds[0]:9.2f} / {d.seconds[1]:<6.2f} "
        f"{d.relative:8.2%} {d.in_size(brain.T1GD):10.2%} {d.in_size(brain.T2):10.2%}",
    )

picture = output / f"glioma_{dim}d.png"
brain.figure(picture, tissue, fd, fem, shown, differences)
pictures = [str(picture)]

# The other way round. The images are made by a solve on a finer mesh, with numbers that the fit does not know, and with
# noise of 5 % of the largest density. The fit looks for the seed, D_white (D_grey is always a fifth of it) and r whose
# tumour is nearest to both images: by FEM, and by FD on other voxels than the image's. Every step needs one solve, and
# one of the adjoint equation backwards in time, which gives the gradient by all numbers at once. The Hessian at the
# minimum tells how well the images determine each number, as its standard error.

if dim == 2:
    fine, coarse = (brain.anatomy(2, voxel, comm=comm) for voxel in (1, 2))
    step = 10.0 if arguments.quick else 5.0
    scans = brain.synthetic_scans(fine, dt=step / 2, comm=comm)
    fits = [
        brain.fit_tumour(scans, "fem", fine, 2.0, step, comm=comm),
        brain.fit_tumour(scans, "fd", coarse, dt=step, comm=comm),
    ]
    say(comm, f"\nlearnt from two images, of days {scans.times[0]:g} and {scans.times[1]:g}")
    say(comm, brain.table_of_fits(fits))
    pictures.append(str(output / "glioma_2d_learnt.png"))
    brain.figure_of_fits(pictures[-1], tissue, scans, fits, comm)

say(comm, f"\nwritten: {' and '.join(pictures)}, and the solutions for ParaView beside (.bp)")
