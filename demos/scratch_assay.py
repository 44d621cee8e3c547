"""A scratch assay: cells that close a wound, and what two models learn from them by finite elements and differences.

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

Diffusivity D, rate r and capacity K are fitted to each experiment: they minimise

    J(D, r, K) = 1/2 sum over wells, strips and times after 0 h of (u(x, t) - measured)^2 / sigma^2,

with sigma the standard deviation of one well about the mean of three. The gradient of J and its Hessian's products with
directions come from the discrete adjoint and are exact; a Newton method needs about ten iterations of them. The same
Hessian tells how well the data determine the numbers: standard errors are the roots of the diagonal of
2 J / (n - p) times its inverse, for n residuals and p numbers.

If a model is right, its numbers are properties of the cells, and cannot depend on how many of them were put into the
well. Jin et al. found that those of porous-Fisher depend on it much less. Does that come out here? A second round holds
K at 1.7e-3 cells/um^2, a full layer, as they did.
"""

import argparse
import sys
from pathlib import Path

import npde_fem as npde
from npde_fem import assay
from npde_fem.datasets import DataUnavailable, scratch_assay
from npde_fem.parallel import say

import numpy as np
from mpi4py import MPI

parser = argparse.ArgumentParser(description="Two models fitted to measured scratch assays by FEM and FD.")
parser.add_argument("--data", help="folder with CellDensity_{10,14,16,20}.csv (default: download once)")
parser.add_argument("--densities", type=int, nargs="+", default=[10, 14, 16, 20], help="initial cells in thousands")
parser.add_argument("--cells", type=int, default=2, help="cells of mesh and grid a strip (default: 2)")
parser.add_argument("--dt", type=float, default=1.0, help="time step in h (default: 1)")
parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the results (default: results)")
parser.add_argument("--quick", action="store_true", help="a coarse run of some seconds")
arguments = parser.parse_args(npde.petsc_options())
if arguments.quick:
    arguments.cells, arguments.dt = 1, 2.0

comm = MPI.COMM_WORLD
try:
    assays = [scratch_assay(density, arguments.data, comm) for density in arguments.densities]
except DataUnavailable as reason:
    say(comm, f"The measurements cannot be had, so this demo has nothing to learn from and stops here.\n{reason}")
    sys.exit(0)
arguments.output.mkdir(parents=True, exist_ok=True)

MODELS = ("fisher", "porous-fisher")


def fits(methods, capacity=None):
    """Fit both models to each experiment by some methods, and print a line for each fit."""
    say(comm, assay.heading())
    found = []
    for measured in assays:
        for model in MODELS:
            for method in methods:
                found.append(
                    assay.fit(
                        measured, model, method, capacity=capacity, cells=arguments.cells, dt=arguments.dt, comm=comm
                    )
                )
                say(comm, assay.row(found[-1]))
    return found


say(comm, "K fitted")
fitted = fits(assay.METHODS)
say(comm, "\n" + assay.selection(fitted))

# Two discretisations of one equation should learn the same from the same data, up to what the data can tell.

apart = max(
    float(abs(fem.parameters[name].value - fd.parameters[name].value) / fem.parameters[name].stderr)
    for fem, fd in zip(fitted[::2], fitted[1::2], strict=True)
    for name in fem.parameters
    if not fem.parameters[name].at_bound
)
say(comm, f"\nFEM and FD differ by {apart:.2f} standard errors at most.")

# How much do the numbers depend on the initial density? Porous-Fisher's equation contains D and K mostly as D/K, the
# slope of D(u) = D u/K, and where growth does not slow down in 48 h, as with the fewest cells, the data put no limit to
# K. So compare the models by D(u) at a full layer, u = 1.7e-3, which for Fisher-KPP is D itself.


def spread(values):
    """Largest over smallest value, and standard deviation over mean."""
    values = np.array(values)
    deviation = values.std(ddof=1) / values.mean() if len(values) > 1 else 0.0
    return f"{values.max() / values.min():10.2f}{deviation:10.0%}"


def say_spread(found):
    say(comm, f"\n{'over initial densities':<24}{'D: max/min':>14}{'deviation':>10}{'r: max/min':>14}{'deviation':>10}")
    for model in MODELS:
        mine = [fit for fit in found if fit.model.name == model and fit.method == "fem"]
        diffusivities = spread([fit.diffusivity(assay.CONFLUENCE)[0] for fit in mine])
        say(comm, f"{model:<24}    {diffusivities}    {spread([fit.parameters['r'].value for fit in mine])}")


say_spread(fitted)
say(comm, f"\nK = {assay.CONFLUENCE:g} cells/um^2")
known = fits(["fem"], assay.CONFLUENCE)
say_spread(known)

# A picture: the measurements with the fitted densities, FEM as lines and FD as diamonds on some of the strips; the laws
# D(u) and f(u) = r u (1 - u/K) with bands of one standard error; and the numbers against the initial density.

picture = arguments.output / "scratch_assay.png"
assay.figure(picture, fitted, comm)
say(comm, f"\nwritten: {picture}")
