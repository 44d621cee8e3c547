"""npde_fem: neural partial differential equations on FEniCSx.

Write an equation once in UFL (:class:`NPDE`), discretise it by finite elements (:class:`FEM`) or finite differences
(:class:`FD`), and :func:`solve` it in parallel.
"""

import contextlib
import importlib
from typing import Any

# h5py's wheel and DOLFINx's bring an HDF5 each; they get along if h5py's is loaded first.
with contextlib.suppress(ModuleNotFoundError):
    importlib.import_module("h5py")
# DOLFINx's binary wheel wants MPI loaded before its bindings; its own module sees to that where it is installed.
with contextlib.suppress(ModuleNotFoundError):
    import dolfinx_solver  # noqa: F401
from mpi4py import MPI  # noqa: F401, I001

from npde_fem import physics
from npde_fem.comparison import compare
from npde_fem.discretize import FD, FEM, Grid, GridFunction, PeriodicMesh, Probe, Semidiscrete, periodic_mesh
from npde_fem.boundary import Absorbing, Dirichlet, Flux, Outflow, Periodic, Robin
from npde_fem.equation import NPDE, Initial, manufactured
from npde_fem.neural_terms import neural
from npde_fem.parameter import ComplexParameter, Parameter
from npde_fem.optimize import (
    H1,
    L2,
    TV,
    Minimum,
    PDEConstrainedProblem,
    TapedSolution,
    density_filter,
    integral,
    minimize,
    misfit,
    projection,
    solve,
)
from npde_fem.options import petsc_options
from npde_fem.output import Writer
from npde_fem.parallel import end_job_on_exception
from npde_fem.pml import PML
from npde_fem.solve import (
    IMEX,
    RK4,
    SDIRK2,
    Adaptive,
    BackwardEuler,
    Checkpoints,
    CrankNicolson,
    Eigenmodes,
    ForwardEuler,
    GroundState,
    ImplicitMidpoint,
    Leapfrog,
    Lie,
    Newmark,
    Relaxation,
    Scheme,
    ShiftedLaplacian,
    Solution,
    SolveError,
    Strang,
    eigenmodes,
    ground_state,
    restore,
    save,
    scheme_named,
    spectral_radius,
    sweep,
)

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what uses torch when it is asked for: torch takes longer than all the rest."""
    if name in ("learn", "networks"):
        return importlib.import_module(f"npde_fem.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


end_job_on_exception()
petsc_options()

__all__ = [
    "FD",
    "FEM",
    "H1",
    "IMEX",
    "L2",
    "NPDE",
    "PML",
    "RK4",
    "SDIRK2",
    "TV",
    "Absorbing",
    "Adaptive",
    "BackwardEuler",
    "Checkpoints",
    "ComplexParameter",
    "CrankNicolson",
    "Dirichlet",
    "Eigenmodes",
    "Flux",
    "ForwardEuler",
    "Grid",
    "GridFunction",
    "GroundState",
    "ImplicitMidpoint",
    "Initial",
    "Leapfrog",
    "Lie",
    "Minimum",
    "Newmark",
    "Outflow",
    "PDEConstrainedProblem",
    "Parameter",
    "Periodic",
    "PeriodicMesh",
    "Probe",
    "Relaxation",
    "Robin",
    "Scheme",
    "Semidiscrete",
    "ShiftedLaplacian",
    "Solution",
    "SolveError",
    "Strang",
    "TapedSolution",
    "Writer",
    "compare",
    "density_filter",
    "eigenmodes",
    "ground_state",
    "integral",
    "manufactured",
    "minimize",
    "misfit",
    "neural",
    "periodic_mesh",
    "petsc_options",
    "physics",
    "projection",
    "restore",
    "save",
    "scheme_named",
    "solve",
    "spectral_radius",
    "sweep",
]
