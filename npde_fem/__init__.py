"""npde_fem: neural partial differential equations on FEniCSx.

Write an equation once in UFL (:class:`NPDE`), discretise it by finite elements (:class:`FEM`) or finite differences
(:class:`FD`), and :func:`solve` it in parallel.
"""

import contextlib
import importlib

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
from npde_fem.equation import (
    NPDE,
    ComplexParameter,
    Dirichlet,
    Flux,
    Initial,
    Parameter,
    Periodic,
    Robin,
    manufactured,
)
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
from npde_fem.solve import (
    IMEX,
    RK4,
    SDIRK2,
    Adaptive,
    BackwardEuler,
    Checkpoints,
    CrankNicolson,
    ForwardEuler,
    ImplicitMidpoint,
    Relaxation,
    Scheme,
    Solution,
    SolveError,
    Strang,
    restore,
    save,
    scheme_named,
    spectral_radius,
)

__version__ = "0.1.0"

end_job_on_exception()
petsc_options()

__all__ = [
    "FD",
    "FEM",
    "H1",
    "IMEX",
    "L2",
    "NPDE",
    "RK4",
    "SDIRK2",
    "TV",
    "Adaptive",
    "BackwardEuler",
    "Checkpoints",
    "ComplexParameter",
    "CrankNicolson",
    "Dirichlet",
    "Flux",
    "ForwardEuler",
    "Grid",
    "GridFunction",
    "ImplicitMidpoint",
    "Initial",
    "Minimum",
    "PDEConstrainedProblem",
    "Parameter",
    "Periodic",
    "PeriodicMesh",
    "Probe",
    "Relaxation",
    "Robin",
    "Scheme",
    "Semidiscrete",
    "Solution",
    "SolveError",
    "Strang",
    "TapedSolution",
    "Writer",
    "compare",
    "density_filter",
    "integral",
    "manufactured",
    "minimize",
    "misfit",
    "periodic_mesh",
    "petsc_options",
    "physics",
    "projection",
    "restore",
    "save",
    "scheme_named",
    "solve",
    "spectral_radius",
]
