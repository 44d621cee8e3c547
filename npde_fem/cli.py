"""The command line: ``npde compare``, ``solve``, ``learn``, ``networks`` and ``info``, all under ``mpirun`` too."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import ceil
from pathlib import Path
from typing import Any, NoReturn

import npde_fem
from npde_fem import SolveError, assay, brain, cases, comparison, resolution
from npde_fem.datasets import (
    SCRATCH_ASSAY_SHA256,
    ScratchAssay,
    digits,
    mnist5k,
    read_scratch_assay,
    scratch_assay,
    vowels,
)
from npde_fem.discretize import Semidiscrete
from npde_fem.discretize.jit import cache_directory, compiler, compiler_flags, cpu_key
from npde_fem.options import petsc_options
from npde_fem.output import SUFFIXES, Writer
from npde_fem.parallel import on_root, say
from npde_fem.pictures import FILMS
from npde_fem.solve import Adaptive, scheme_named, solve
from npde_fem.solve.schemes import SCHEMES

import dolfinx
import numpy as np
from mpi4py import MPI
from petsc4py import PETSc

__all__ = ["main"]

_COMPARED = [*cases.KNOWN, "glioma"]
_SOLVED = [*cases.SCENES, "glioma"]

_ABOUT = """npde: neural partial differential equations by finite elements and finite differences

examples
  npde info                                              what is installed, and does it work
  npde solve fisher-kpp --output front.png               solve a ready-made problem, look at it
  npde solve gray-scott --method fd --cells 128 --output spots.bp
  npde compare fisher-kpp --cells 16 32 64 --plot orders.png
  npde learn scratch-assay --model all --plot fits.png    fit models of cell migration to measurements
  npde learn optics-digits --plot masks.png               train five masks of light to tell digits apart
  npde networks interpret trained.pt --plot layers.png    a trained network, read as equations
  mpirun -n 4 npde solve glioma --dim 3 --method fd --output tumour.bp

Options of PETSc take the prefix npde_, for instance  -npde_ksp_type gmres -npde_pc_type gamg -npde_snes_monitor
"""


class _Parser(argparse.ArgumentParser):
    """Speaks on rank 0 only."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if MPI.COMM_WORLD.rank == 0:
            super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if wrong:
            message += "; " + (_hint(wrong[1], re.findall(r"[\w-]+", wrong[2])) or "no such name")
        self._print_message(f"npde: error: {message}\n", sys.stderr)
        self.exit(2)


def _hint(text: str, known: Iterable[str]) -> str:
    """Suggest the known name nearest to ``text``, capital letters aside."""
    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(text.lower(), folded, 1, 0.4)
    return f"did you mean {folded[near[0]]!r}? " if near else ""


def _one_of(names: Iterable[str], what: str) -> Any:
    """Return an argparse type that accepts ``names`` and suggests the nearest for another."""
    known = list(names)

    def check(text: str) -> str:
        if text in known:
            return text
        raise argparse.ArgumentTypeError(f"unknown {what} {text!r}; {_hint(text, known)}there are {', '.join(known)}")

    return check


def _positive(kind: type) -> Any:
    def check(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (np.isfinite(value) and value > 0):
            raise argparse.ArgumentTypeError(
                f"a positive {'whole ' if kind is int else ''}number is needed, not {text!r}"
            )
        return value

    return check


def _file(*suffixes: str) -> Any:
    """Return an argparse type: a path with one of the suffixes, in a folder that can be written."""

    def check(text: str) -> str:
        path = Path(text)
        if suffixes and path.suffix not in suffixes:
            raise argparse.ArgumentTypeError(f"{text!r} must end in {' or '.join(suffixes)}")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise argparse.ArgumentTypeError(f"cannot write {text!r}: folder {path.parent} is missing or not writable")
        return text

    return check


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="npde", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"npde_fem        {npde_fem.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    c = commands.add_parser(
        "compare",
        help="solve by FD and FEM, print errors, orders and cost",
        description="Solve a problem with known solution by finite differences and finite elements, and print error,\n"
        "observed order and cost of each, and what the equation conserves. For helmholtz in 2D also the points a\n"
        "wavelength that 1 % needs (drawn as FILE-resolution). For glioma: the difference of the two methods.",
        epilog=_listing({**{n: k.summary for n, k in cases.KNOWN.items()}, "glioma": _GLIOMA}),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    c.add_argument("equation", metavar="EQUATION", type=_one_of(_COMPARED, "equation"), help="one of those below")
    c.add_argument("--dim", type=int, choices=(1, 2, 3), help="space dimension (default 2, or what there is)")
    c.add_argument("--cells", type=_positive(int), nargs="+", metavar="N", help="cells along an axis (16 32 64)")
    c.add_argument("--spacing", type=_positive(int), nargs="+", metavar="MM", help="glioma: voxel sizes (4 2 1)")
    c.add_argument("--degree", type=_positive(int), nargs="+", metavar="P", default=[1, 2], help="FEM degrees (1 2)")
    c.add_argument("--scheme", type=_one_of(SCHEMES, "scheme"), help=f"time scheme: {', '.join(SCHEMES)}")
    c.add_argument("--cell", type=_one_of(_CELLS, "cell"), help=f"FEM cells: {', '.join(_CELLS)} (default simplices)")
    c.add_argument("--json", type=_file(), metavar="FILE", help='write {"rows": [...]}')
    c.add_argument("--plot", type=_file(".png", ".pdf", ".svg"), metavar="FILE", help="draw error against cost")

    s = commands.add_parser(
        "solve",
        help="solve a ready-made problem and write it for ParaView or as a picture",
        description="Solve a ready-made problem by one method; write VTX (.bp), XDMF (.xdmf), a picture (.png) or\n"
        "a film (.gif, .mp4).",
        epilog=_listing({**{n: k.summary for n, k in cases.SCENES.items()}, "glioma": _GLIOMA}),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    s.add_argument("equation", metavar="EQUATION", type=_one_of(_SOLVED, "equation"), help="one of those below")
    s.add_argument("--method", choices=("fem", "fd"), default="fem", help="discretisation (default fem)")
    s.add_argument("--dim", type=int, choices=(1, 2, 3), help="space dimension (default 2, or what there is)")
    s.add_argument("--cells", type=_positive(int), metavar="N", help="cells along an axis (default 64)")
    s.add_argument("--spacing", type=_positive(float), metavar="MM", help="glioma: voxel or element size in mm")
    s.add_argument("--degree", type=_positive(int), default=1, metavar="P", help="FEM degree (default 1)")
    s.add_argument("--cell", type=_one_of(_CELLS, "cell"), help=f"FEM cells: {', '.join(_CELLS)} (default simplices)")
    s.add_argument("--scheme", type=_one_of(SCHEMES, "scheme"), help=f"time scheme: {', '.join(SCHEMES)}")
    s.add_argument("--dt", type=_positive(float), help="time step")
    s.add_argument("--end", type=_positive(float), help="final time")
    s.add_argument("--adaptive", type=_positive(float), metavar="RTOL", help="adaptive steps (scheme sdirk2)")
    s.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="set a parameter, e.g. D=0.2")
    s.add_argument("--frames", type=_positive(int), metavar="N", help="times to write (5; of films 60)")
    s.add_argument("--output", type=_file(*SUFFIXES), metavar="FILE", help=f"file to write: {', '.join(SUFFIXES)}")

    learned = commands.add_parser(
        "learn",
        help="estimate an equation's parameters from data, or train media that recognise sounds and digits",
        description="Estimate the parameters of an equation from data by exact gradients, with standard errors; or\n"
        "let media and generated networks learn to recognise sounds and digits.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = learned.add_subparsers(dest="task", required=True, metavar="TASK")
    _add_scratch_assay(tasks)
    _add_glioma(tasks)
    _add_recognition(tasks)

    _add_networks(commands)
    commands.add_parser("info", help="print versions, solvers, flags, ranks; run a self-check of a few seconds")
    return parser


_GENERATED = ("heat", "fisher-kpp", "allen-cahn", "gray-scott")


def _add_networks(commands: Any) -> None:
    c = commands.add_parser(
        "networks",
        help="make a network of an equation, or read a trained one as an equation",
        description="show: the parameters, the stock layers and the equation of each.  interpret: the equation of\n"
        "each layer as a table, a figure (--plot), numbers (--json).  convert: write FILE.pt (stock layers of torch,\n"
        "for torch.load) or FILE.json (the coefficients of every layer).",
        epilog="SOURCE is an equation (" + ", ".join(_GENERATED) + "), of which a convolutional network is made; a\n"
        "file of torch.save: a module of stock layers, or a state_dict; or FILE.json that convert wrote, whose units\n"
        "are its own. Each layer is one step of length --dt on points --spacing apart. Files are read without running\n"
        "code in them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    c.add_argument("action", choices=("show", "convert", "interpret"))
    c.add_argument("source", metavar="SOURCE", help="an equation, FILE.pt or FILE.json")
    c.add_argument("--output", type=_file(".pt", ".json"), metavar="FILE", help="convert: what to write")
    c.add_argument("--spacing", type=_positive(float), metavar="H", help="distance of points (default 1)")
    c.add_argument("--dt", type=_positive(float), help="time that a layer stands for (default 1)")
    c.add_argument(
        "--boundary",
        choices=("zeros", "replicate", "reflect", "circular"),
        help="padding, of an equation's network or a state_dict's (default zeros)",
    )
    c.add_argument(
        "--shape",
        type=_positive(int),
        nargs="+",
        metavar="N",
        help="points of an equation's lattice (32 32); rows and columns of the neurons of a Linear or RNN",
    )
    c.add_argument("--steps", type=_positive(int), metavar="N", help="layers of an equation (default 1)")
    c.add_argument(
        "--set", type=_setting, nargs="+", default=[], metavar="NAME=NUMBER", help="coefficients of an equation"
    )
    c.add_argument("--plot", type=_file(".png", ".pdf", ".svg"), metavar="FILE", help="draw the equations")
    c.add_argument("--json", type=_file(), metavar="FILE", help='write {"rows": [...]}')


def _setting(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"NAME=NUMBER is needed, such as diffusion=0.1, not {text!r}") from error


def _add_scratch_assay(tasks: Any) -> None:
    c = tasks.add_parser(
        "scratch-assay",
        help="cells that close a wound: diffusion, growth, capacity, or the whole laws D(u) and f(u)",
        description="Fit u_t = (D(u) u_x)_x + f(u) to all wells, strips and times after the first of a scratch assay,\n"
        "for each data set; print estimates with standard errors, and compare models.",
        epilog="models\n"
        + "\n".join(f"  {name:<15}{formula}" for name, (formula, _) in assay.MODELS.items())
        + "\n\nJSON is one object for one fit, and a list of such objects for several.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*assay.MODELS, "all"]
    c.add_argument(
        "--model", type=_one_of(names, "model"), default="porous-fisher", help=f"{', '.join(names)} (porous-fisher)"
    )
    c.add_argument("--method", choices=assay.METHODS, default="fem", help="discretisation (default fem)")
    kind = _one_of(assay.LEARNERS, "learner")
    c.add_argument("--learner", type=kind, default="pde", help="pde: Newton's method; lbfgs: quasi-Newton (pde)")
    c.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="CSV files with columns Time (h), Position (um), Dens1, Dens2, Dens3, AvgDens (cells/um^2), or the folder "
        "of the published files (default: these, downloaded once)",
    )
    c.add_argument(
        "--density", type=int, nargs="+", choices=list(SCRATCH_ASSAY_SHA256), help="which of the published (all)"
    )
    c.add_argument("--hold-out", type=_positive(float), metavar="H", help="a time in h to leave out and predict")
    c.add_argument("--capacity", type=_positive(float), metavar="K", help="fix K, cells/um^2 (default: fitted)")
    c.add_argument("--cells", type=_positive(int), default=2, metavar="N", help="cells a strip of 50 um (default 2)")
    c.add_argument("--dt", type=_positive(float), default=1.0, help="time step in h (default 1)")
    c.add_argument("--json", type=_file(), metavar="FILE", help="write estimates and criteria")
    c.add_argument("--plot", type=_file(".png", ".pdf", ".svg"), metavar="FILE", help="draw fits, data, D(u) and f(u)")


_LEARNERS = ("adam", "lbfgs", "pde", "pseudoinverse")


def _add_recognition(tasks: Any) -> None:
    """Add what recognises classes; the tasks share learners, divisions and output."""

    def add(name: str, brief: str, description: str, divisions: int) -> Any:
        c = tasks.add_parser(
            name,
            help=brief,
            description=description,
            epilog="learners\n  adam           on batches\n"
            "  lbfgs          on all samples at once, strong Wolfe steps\n"
            "  pde            PETSc TAO's L-BFGS with bounds\n"
            "  pseudoinverse  a passive medium and a read-out in closed form\n\n"
            "Under mpirun ranks share the samples of each batch.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        c.add_argument(
            "--learner", type=_one_of(_LEARNERS, "learner"), default="adam", help="one of those below (adam)"
        )
        c.add_argument("--epochs", type=_positive(int), metavar="N", help="of Adam; iterations of the others")
        c.add_argument(
            "--divisions",
            type=int,
            choices=range(1, 6),
            default=divisions,
            metavar="N",
            help=f"how many fifths to leave out, one after the other, and test on ({divisions})",
        )
        c.add_argument("--seed", type=int, default=0, metavar="N", help="of divisions and trainings (0)")
        c.add_argument("--json", type=_file(), metavar="FILE", help="write accuracies, losses, the confusion matrix")
        c.add_argument("--plot", type=_file(".png", ".pdf", ".svg"), metavar="FILE", help="draw how well, and by what")
        return c

    c = add(
        "vowels",
        "spoken vowels by a wave in a plate whose speed is trained",
        "Tell 279 recordings of three vowels apart by a wave in a plate: speech enters at a point, energy is measured\n"
        "at three (Hughes et al. 2019). The pseudoinverse: a plate that is not trained, with a linear read-out.",
        5,
    )
    c.add_argument("--points", type=_positive(int), metavar="N", help="along each side of the plate (60)")
    c.add_argument("--samples", type=_positive(int), metavar="N", help="of each sound, at 10 kHz (700)")
    c.add_argument("--data", metavar="DIR", help="the recordings' folder (default: downloaded once)")
    c.add_argument("--agreement", action="store_true", help="solve the plate by finer FD and FEM too")
    c = add(
        "optics-digits",
        "5,000 digits of MNIST by light in five phase masks",
        "Tell digits apart by light that passes five trained phase masks (Lin et al. 2018), by the paraxial equation.\n"
        "The pseudoinverse: random masks, a camera, and a linear read-out.",
        1,
    )
    c.add_argument("--agreement", action="store_true", help="send a digit's light by finer FD and FEM too")
    for name, text in (("digits", "1,797 digits of 8 x 8 pixels"), ("mnist5k", "5,000 digits of MNIST, 28 x 28")):
        c = add(
            name,
            f"{text}, by generated networks and media",
            f"Tell {text}, apart: by a generated network (adam, lbfgs); by a reaction-diffusion\n"
            "medium whose fields are trained through its adjoint (pde); by a random one and a read-out in closed form\n"
            "(pseudoinverse).",
            1,
        )
        c.add_argument("--method", choices=("fd", "fem"), default="fd", help="on pixels or triangles between (fd)")
        c.add_argument(
            "--layers",
            choices=("npde", "random", "autoencoder"),
            help="of the pseudoinverse: an equation's, random convolutions, autoencoders (npde)",
        )
        c.add_argument(
            "--ranks-per-sample", type=_positive(int), metavar="N", help="pde: ranks that share a sample's domain (1)"
        )


def _add_glioma(tasks: Any) -> None:
    c = tasks.add_parser(
        "glioma",
        help="a tumour in brain anatomy: where it began, how it spreads and grows",
        description="Learn from images of a tumour's density where it began, D_white (D_grey is a fifth of it) and r.\n"
        "The images are made by a solve with hidden numbers on a finer mesh, with noise; or they are your own.",
        epilog="JSON is one object for one method, and a list of two for both.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    c.add_argument("--method", choices=("fem", "fd", "both"), default="both", help="discretisation (default both)")
    c.add_argument("--dim", type=int, choices=(2, 3), default=2, help="2: an axial slice, 3: the volume (default 2)")
    c.add_argument("--resolution", type=_positive(int), metavar="MM", help="voxel and element size (2; in 3D 4)")
    c.add_argument("--slice", type=float, metavar="MM", help="z of the slice in MNI space (default 24)")
    c.add_argument("--dt", type=_positive(float), metavar="DAYS", help="time step (5; in 3D 10)")
    c.add_argument("--images", type=int, choices=(1, 2), default=2, help="images to make (default 2)")
    c.add_argument("--noise", type=_positive(float), default=brain.NOISE, help="its standard deviation (default 0.05)")
    c.add_argument("--seed-rng", type=int, default=0, metavar="N", help="seed of the noise (default 0)")
    c.add_argument(
        "--data",
        nargs="+",
        metavar="FILE",
        help="your own images: NIfTI in MNI space, densities from 0 to 1, one a time",
    )
    c.add_argument("--times", type=_positive(float), nargs="+", metavar="DAYS", help="of the images, since the seed")
    c.add_argument("--json", type=_file(), metavar="FILE", help="write the estimates")
    c.add_argument("--plot", type=_file(".png", ".pdf", ".svg"), metavar="FILE", help="draw images, fits and estimates")


_GLIOMA = "growth of a tumour in brain anatomy: on voxels (FD), on a mesh of their outline (FEM)"

_CELLS = ("interval", "triangle", "quadrilateral", "tetrahedron", "hexahedron")


def _listing(summaries: dict[str, str]) -> str:
    width = max(map(len, summaries)) + 2
    return "equations\n" + "\n".join(f"  {name:<{width}}{text}" for name, text in summaries.items())


def _compare(arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    cells = arguments.cells or [16, 32, 64]
    case = cases.KNOWN[arguments.equation]
    dim = case.dimension(arguments.dim)
    conserved = list(case.pose(dim).conserved)
    say(comm, comparison.table([], conserved=conserved))
    rows = comparison.compare(
        case,
        dim,
        cells,
        arguments.degree,
        scheme=arguments.scheme,
        cell=arguments.cell,
        comm=comm,
        report=lambda row: say(comm, comparison.table([row], head=False, conserved=conserved)),
    )
    tables: dict[str, Any] = {}
    if (case.name, dim) == ("helmholtz", 2):
        tables["resolution"] = resolution.points_needed(comm=comm)
        say(comm, "\nwhat an error of 1 % needs\n" + resolution.resolution_table(tables["resolution"]))
    if arguments.json:
        comparison.write_json(rows, arguments.json, comm, **tables)
    if arguments.plot:
        comparison.draw_orders(rows, f"{arguments.equation}, {dim}D", arguments.plot, comm)
        if tables:
            plot = Path(arguments.plot)
            resolution.draw_resolutions(tables["resolution"], plot.with_stem(f"{plot.stem}-resolution"), comm)


def _compare_glioma(arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    dim = arguments.dim or 2
    if arguments.cells or arguments.scheme or arguments.cell:
        raise ValueError("glioma is compared by --spacing (and --degree); --cells, --scheme and --cell are not for it")
    spacings = sorted(arguments.spacing or ([4, 2, 1] if dim == 2 else [8, 6, 4]), reverse=True)
    degree = arguments.degree[0]
    say(comm, f"{'mm':>4}{'FD unknowns':>13}{'FEM unknowns':>14}{'FD s':>8}{'FEM s':>8}{'L2':>9}{'T1Gd':>9}{'T2':>9}")
    rows: list[dict[str, Any]] = []
    differences = []
    for spacing in spacings:
        (d,) = brain.compare_resolutions(comm, dim, [spacing], degree=degree)
        differences.append(d)
        row = {"spacing_mm": spacing, "degree": degree, "unknowns_fd": d.unknowns[0], "unknowns_fem": d.unknowns[1]}
        row |= {"seconds_fd": d.seconds[0], "seconds_fem": d.seconds[1], "difference_l2": d.relative}
        row |= {"difference_t1gd": d.in_size(brain.T1GD), "difference_t2": d.in_size(brain.T2)}
        rows.append(row)
        say(
            comm,
            f"{spacing:>4}{d.unknowns[0]:>13}{d.unknowns[1]:>14}{d.seconds[0]:>8.2f}{d.seconds[1]:>8.2f}"
            f"{d.relative:>9.2%}{row['difference_t1gd']:>9.2%}{row['difference_t2']:>9.2%}",
        )
    if arguments.json:
        comparison.write_json(rows, arguments.json, comm)
    if arguments.plot:
        tissue = brain.anatomy(dim, spacings[-1], comm=comm)
        u0, times = brain.seed(tissue), np.linspace(0, brain.DAYS, 29).tolist()
        fd = brain.simulate(brain.glioma_fd(comm, tissue), u0, times)
        fem = brain.simulate(brain.glioma_fem(comm, tissue, float(spacings[-1]), degree), u0, times)
        brain.figure(arguments.plot, tissue, fd, fem, [times[k] for k in (10, 16, 22, 28)], differences)


def _solve_glioma(arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    dim = arguments.dim or 2
    if dim == 1 or arguments.cells or arguments.cell or arguments.adaptive:
        raise ValueError("glioma: --dim 2 or 3 and --spacing; --cells, --cell and --adaptive are not for it")
    spacing = arguments.spacing or (1.0 if dim == 2 else 2.0)
    voxel = max(1, round(spacing)) if arguments.method == "fd" else dim - 1
    tissue = brain.anatomy(dim, voxel, comm=comm)
    problem: Semidiscrete
    if arguments.method == "fd":
        problem = brain.glioma_fd(comm, tissue)
    else:
        problem = brain.glioma_fem(comm, tissue, arguments.spacing or 2.0 * (dim - 1), arguments.degree)
    _set_parameters(problem, arguments.set)
    times = np.linspace(0.0, arguments.end or brain.DAYS, _frames(arguments)).tolist()
    say(comm, f"glioma: {arguments.method.upper()}, {problem.unknowns} unknowns, {comm.size} rank(s)")
    writer = Writer(arguments.output, problem) if arguments.output else contextlib.nullcontext()
    with writer as write:
        scheme = scheme_named(arguments.scheme) if arguments.scheme else None
        run = brain.simulate(problem, brain.seed(tissue), times, arguments.dt or brain.DT, scheme, write)
    unit, scale = ("cm^2", 100.0) if dim == 2 else ("cm^3", 1000.0)
    say(comm, f"{'day':>8}{f'u > {brain.T1GD:g}':>14}{f'u > {brain.T2:g}':>14}")
    for k, day in enumerate(times):
        sizes = [run.sizes[level][k] / scale for level in (brain.T1GD, brain.T2)]
        say(comm, f"{day:>8.0f}" + "".join(f"{size:>9.3f} {unit}" for size in sizes))
    say(comm, f"{len(run.solution.steps)} steps, {run.solution.seconds:.2f} s")
    if arguments.output:
        say(comm, f"written: {arguments.output}")


def _frames(arguments: argparse.Namespace) -> int:
    """Return how many times are to be written, both ends at least."""
    a_film = arguments.output and Path(arguments.output).suffix in FILMS
    return max(2, arguments.frames or (60 if a_film else 5))


def _set_parameters(problem: Semidiscrete, settings: Sequence[str]) -> None:
    """Set number parameters from texts NAME=VALUE."""
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in problem.parameters:
            hint = _hint(name, problem.parameters)
            raise ValueError(f"--set: no parameter {name!r}; {hint}there are {', '.join(problem.parameters)}")
        if problem.parameters[name].is_field:
            raise ValueError(f"--set: {name} is a field; numbers can be set")
        try:
            problem.parameters[name].value = float(text)
        except ValueError as error:
            raise ValueError(f"--set {setting}: {error}") from error


def _solve(arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    case = cases.SCENES[arguments.equation]
    idle = {"--spacing": arguments.spacing}
    if case.end is None:
        idle |= {"--end": arguments.end, "--dt": arguments.dt, "--adaptive": arguments.adaptive}
        idle |= {"--scheme": arguments.scheme}
    if arguments.method == "fd":
        idle |= {"--cell": arguments.cell, "--degree": arguments.degree if arguments.degree != 1 else None}
    if any(given is not None for given in idle.values()):
        names = ", ".join(name for name, given in idle.items() if given is not None)
        raise ValueError(f"{names}: not for {case.name} by {arguments.method}")
    dim = case.dimension(arguments.dim)
    scheme = scheme_named(arguments.scheme or ("sdirk2" if arguments.adaptive else case.scheme))
    problem, posed = cases.discretise(
        case, arguments.method, comm, dim, arguments.cells or 64, arguments.degree, arguments.cell, scheme
    )
    _set_parameters(problem, arguments.set)
    options: dict[str, Any] = {}
    frames: list[float] = [0.0]
    if not problem.stationary:
        end = arguments.end or case.end or 1.0
        dt: Any
        if arguments.adaptive:
            dt, frames = Adaptive(rtol=arguments.adaptive), np.linspace(0.0, end, _frames(arguments)).tolist()
        else:
            steps = ceil(end / (arguments.dt or case.step) * (1 - 1e-10))
            dt = end / steps
            frames = [k * dt for k in np.unique(np.linspace(0, steps, _frames(arguments)).round())]
        options = {"t": (0.0, end), "dt": dt, "scheme": scheme}
    say(
        comm,
        f"{case.name}: {case.summary}; {arguments.method.upper()}, {problem.unknowns} unknowns, {comm.size} rank(s)",
    )
    writer = Writer(arguments.output, problem) if arguments.output else contextlib.nullcontext()
    with writer as write:
        if problem.stationary:
            solution = solve(problem, posed.initial)
            if write is not None:
                write(0.0, solution.u)
        else:
            observe = (frames, write) if write is not None else [0.0, frames[-1]]
            solution = solve(problem, posed.initial, observe=observe, **options)
    symbol, values = (
        ("|u|", abs(solution.values.view(complex))) if posed.equation.is_complex else ("u", solution.values)
    )
    lowest = comm.allreduce(float(np.min(values, initial=np.inf)), op=MPI.MIN)
    highest = comm.allreduce(float(np.max(values, initial=-np.inf)), op=MPI.MAX)
    say(
        comm,
        f"{len(solution.steps)} steps ({solution.rejected} rejected), {solution.newton_iterations} Newton and "
        f"{solution.linear_iterations} linear iterations, {solution.seconds:.2f} s; "
        f"{symbol} in [{lowest:.4g}, {highest:.4g}]",
    )
    for name, change in comparison.changes(posed, solution).items():
        say(comm, f"relative change of the {name}: {change:.2e}")
    if arguments.output:
        say(comm, f"written: {arguments.output}")


def _scratch_assays(arguments: argparse.Namespace, comm: MPI.Comm) -> list[ScratchAssay]:
    """Read the data sets asked for."""
    given = [Path(name) for name in arguments.data or ()]
    folders = [path for path in given if path.is_dir()]
    if given and not folders:
        if arguments.density:
            raise ValueError("--density: for the published data only, not for files of one's own")
        found = [re.fullmatch(r"CellDensity_(\d+)", path.stem) for path in given]
        return [
            read_scratch_assay(path, int(match[1]) if match else None, comm)
            for path, match in zip(given, found, strict=True)
        ]
    if len(given) > 1:
        raise ValueError(f"--data: one folder or files allowed, {', '.join(arguments.data)} given")
    densities = arguments.density or list(SCRATCH_ASSAY_SHA256)
    return [scratch_assay(density, folders[0] if folders else None, comm) for density in dict.fromkeys(densities)]


def _learn_scratch_assay(arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    models = list(assay.MODELS) if arguments.model == "all" else [arguments.model]
    data = _scratch_assays(arguments, comm)
    say(comm, assay.heading())
    fits = []
    for measured in data:
        for model in models:
            # All models are compared, also those without a capacity.
            capacity = None if arguments.model == "all" and model == "general" else arguments.capacity
            fits.append(
                assay.fit(
                    measured,
                    model,
                    arguments.method,
                    learner=arguments.learner,
                    hold_out=arguments.hold_out,
                    capacity=capacity,
                    cells=arguments.cells,
                    dt=arguments.dt,
                    comm=comm,
                )
            )
            say(comm, assay.row(fits[-1]))
    if len(models) > 1:
        say(comm, "\n" + assay.selection(fits))
    if arguments.json:
        assay.write_json(fits, arguments.json, comm)
    if arguments.plot:
        assay.figure(arguments.plot, fits, comm)


def _learn_glioma(arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    dim = arguments.dim
    if arguments.slice is not None and dim == 3:
        raise ValueError("--slice: for --dim 2 only")
    if arguments.data and not arguments.times:
        raise ValueError("--data: name the images' --times too, in days since the seed")
    resolution, dt = arguments.resolution or 2 * (dim - 1), arguments.dt or brain.DT * (dim - 1)
    fine = brain.anatomy(dim, dim - 1, arguments.slice, comm)
    if arguments.data:
        scans = brain.read_scans(arguments.data, arguments.times, fine, arguments.noise, comm)
    else:
        times = arguments.times or brain.SCAN_DAYS[-arguments.images :]
        scans = brain.synthetic_scans(
            fine, times, noise=arguments.noise, rng_seed=arguments.seed_rng, dt=dt / 2, comm=comm
        )
    days = " and ".join(f"{t:g}" for t in scans.times)
    say(comm, f"glioma, {dim}D: images of day {days}, {len(scans.index)} voxels each; {comm.size} rank(s)")
    fits = []
    for method in ("fem", "fd") if arguments.method == "both" else (arguments.method,):
        tissue = fine if method == "fem" else brain.anatomy(dim, resolution, arguments.slice, comm)
        fits.append(brain.fit_tumour(scans, method, tissue, resolution, dt, comm=comm))
    say(comm, brain.table_of_fits(fits))
    if arguments.json:
        brain.write_fits(fits, arguments.json, comm)
    if arguments.plot:
        brain.figure_of_fits(arguments.plot, fine, scans, fits, comm)


def _chosen(arguments: argparse.Namespace, comm: MPI.Comm) -> dict[str, Any]:
    """Return what all that recognises takes."""
    if getattr(arguments, "agreement", False) and arguments.learner == "pseudoinverse":
        raise ValueError("--agreement: for what is trained, not for the learner pseudoinverse")
    divisions = range(arguments.divisions)
    return {"divisions": divisions, "epochs": arguments.epochs, "seed": arguments.seed, "comm": comm}


def _learn_vowels(arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    from npde_fem import recognition

    chosen = _chosen(arguments, comm)
    chosen |= {name: getattr(arguments, name) for name in ("points", "samples") if getattr(arguments, name)}
    recordings = vowels(arguments.data, comm)
    _report(recognition.recognise_vowels(recordings, arguments.learner, **chosen), arguments, comm)


def _learn_optics(arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    from npde_fem import recognition

    chosen = _chosen(arguments, comm)
    _report(recognition.recognise_optics(*mnist5k(comm), arguments.learner, **chosen), arguments, comm)


def _learn_digits(arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    from npde_fem import recognition

    if arguments.layers and arguments.learner != "pseudoinverse":
        raise ValueError(f"--layers: for the learner pseudoinverse, not for {arguments.learner}")
    chosen = _chosen(arguments, comm)
    chosen |= {"task": arguments.task, "layers": arguments.layers or "npde"}
    chosen["ranks_per_sample"] = arguments.ranks_per_sample or 1
    data = digits(comm) if arguments.task == "digits" else mnist5k(comm)
    _report(recognition.recognise_digits(*data, arguments.learner, arguments.method, **chosen), arguments, comm)


def _report(found: Any, arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    """Print what was learnt, write it and draw it."""
    from npde_fem import recognition

    say(comm, recognition.heading())
    say(comm, recognition.row(found))
    more: dict[str, Any] = {}
    if getattr(arguments, "agreement", False):
        more["agreement"] = ways = recognition.agreement(found, comm)
        say(comm, recognition.table_of_ways(ways))
    if arguments.json:
        recognition.write_json(found, arguments.json, comm, **more)
    if arguments.plot:
        recognition.figure(arguments.plot, found, comm)


_LEARN = {
    "scratch-assay": _learn_scratch_assay,
    "glioma": _learn_glioma,
    "vowels": _learn_vowels,
    "optics-digits": _learn_optics,
    "digits": _learn_digits,
    "mnist5k": _learn_digits,
}
"""What learns each task; its arguments are added beside those of the others in :func:`_parser`."""


def _info(comm: MPI.Comm) -> None:
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    implementation = MPI.Get_library_version().splitlines()[0].strip("\x00 ")
    packages = ["fenics-ufl", "fenics-ffcx", "fenics-basix", "mpi4py", "numpy", "scipy", "torch", "dolfinx-adjoint"]
    solvers = [p for p in ("mumps", "superlu_dist", "hypre", "ptscotch", "hdf5") if PETSc.Sys.hasExternalPackage(p)]
    cpus = len(os.sched_getaffinity(0))
    lines = [
        f"npde_fem        {npde_fem.__version__}",
        f"python          {sys.version.split()[0]}",
        f"dolfinx         {dolfinx.__version__} (ADIOS2 {'yes' if dolfinx.common.has_adios2 else 'no'})",
        f"petsc           {'.'.join(map(str, PETSc.Sys.getVersion()))}, scalars {np.dtype(PETSc.ScalarType)}, "
        f"integers {np.dtype(PETSc.IntType)}",
        f"solvers         {', '.join(solvers) or 'PETSc only'}",
        f"mpi             {implementation}",
        *(f"{name:<16}{installed(name)}" for name in packages),
        f"compiler        {compiler()}",
        f"flags           {' '.join(compiler_flags())}",
        f"cache           {cache_directory()}",
        f"ranks           {comm.size}, {cpus} CPU(s) each to run on, CPU key {cpu_key()}",
    ]
    say(comm, "\n".join(lines))
    begun = time.perf_counter()
    good = True
    for method in ("fem", "fd"):
        rows = comparison.compare("heat", 2, (8, 16), (1,), (method,), comm=comm)
        order = rows[-1]["order"] or 0.0
        passed = order > 1.8
        good &= passed
        say(
            comm,
            f"self-check      {method}: heat equation, order {order:.2f}: {'good' if passed else 'BAD, 2 expected'}",
        )
    say(comm, f"{'':<16}{time.perf_counter() - begun:.1f} s")
    if not good:
        raise RuntimeError("the self-check failed")


def _networks(arguments: argparse.Namespace, comm: MPI.Comm) -> None:
    if (arguments.action == "convert") != bool(arguments.output):
        raise ValueError("--output: convert needs it, show and interpret have none")
    is_equation = arguments.source in _GENERATED
    idle = [name for name in ("set", "steps") if getattr(arguments, name) and not is_equation]
    if idle:
        raise ValueError(f"{', '.join(f'--{name}' for name in idle)}: for equations ({', '.join(_GENERATED)}) only")
    if not is_equation and not Path(arguments.source).is_file():
        raise ValueError(
            f"no file {arguments.source!r}, and no such equation: {_hint(arguments.source, _GENERATED)}"
            f"there are {', '.join(_GENERATED)}"
        )

    def work() -> tuple[str, list[dict[str, Any]]]:
        from npde_fem.networks import command, interpret  # torch takes longer to import than all the rest

        network: Any
        if is_equation:
            units = arguments.spacing or 1.0, arguments.dt or 1.0
            shape, steps = arguments.shape or (32, 32), arguments.steps or 1
            boundary, values = arguments.boundary or "zeros", dict(arguments.set)
            network = command.generated(arguments.source, shape, *units, steps, boundary, values)
            found = interpret(network)
        else:
            given = {name: getattr(arguments, name) for name in ("spacing", "dt", "shape")}
            network, found = command.read(arguments.source, given, arguments.boundary)
        if arguments.plot:
            found.plot(arguments.plot)
        if arguments.action == "convert":
            command.convert(found, arguments.output)
            return f"{arguments.output} written", found.rows()
        return command.show(network, found) if arguments.action == "show" else str(found), found.rows()

    text, rows = on_root(comm, work)
    say(comm, text)
    if arguments.json:
        comparison.write_json(rows, arguments.json, comm)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a failed solve, 2 for bad input."""
    comm = MPI.COMM_WORLD
    arguments = _parser().parse_args(petsc_options(argv))
    try:
        if arguments.command == "info":
            _info(comm)
        elif arguments.command == "compare":
            (_compare_glioma if arguments.equation == "glioma" else _compare)(arguments, comm)
        elif arguments.command == "learn":
            _LEARN[arguments.task](arguments, comm)
        elif arguments.command == "networks":
            _networks(arguments, comm)
        else:
            (_solve_glioma if arguments.equation == "glioma" else _solve)(arguments, comm)
    except (ValueError, TypeError, KeyError, OSError, ImportError, SolveError, RuntimeError) as error:
        if comm.size > 1 and not _all_failed(comm):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        if comm.rank == 0:
            print(f"npde: error: {text}", file=sys.stderr)
        return 1 if isinstance(error, SolveError) else 2
    return 0


def _all_failed(comm: MPI.Comm) -> bool:
    """Whether every rank comes here within five seconds, so that the error is everyone's."""
    request, end = comm.Ibarrier(), time.monotonic() + 5
    while not request.Test():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


if __name__ == "__main__":
    sys.exit(main())
