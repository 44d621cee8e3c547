"""Semidiscrete operator -> trajectory, and back."""

from npde_fem.solve.eigen import Eigenmodes, eigenmodes
from npde_fem.solve.ground import GroundState, ground_state
from npde_fem.solve.history import Checkpoints
from npde_fem.solve.integrate import Adaptive, Solution, SolveError, solve, spectral_radius, stable_step
from npde_fem.solve.preconditioner import ShiftedLaplacian
from npde_fem.solve.restart import restore, save
from npde_fem.solve.schemes import (
    IMEX,
    RK4,
    SDIRK2,
    BackwardEuler,
    CrankNicolson,
    ForwardEuler,
    ImplicitMidpoint,
    Leapfrog,
    Lie,
    Newmark,
    Relaxation,
    Scheme,
    Strang,
    scheme_named,
)
from npde_fem.solve.sweep import sweep

__all__ = [
    "IMEX",
    "RK4",
    "SDIRK2",
    "Adaptive",
    "BackwardEuler",
    "Checkpoints",
    "CrankNicolson",
    "Eigenmodes",
    "ForwardEuler",
    "GroundState",
    "ImplicitMidpoint",
    "Leapfrog",
    "Lie",
    "Newmark",
    "Relaxation",
    "Scheme",
    "ShiftedLaplacian",
    "Solution",
    "SolveError",
    "Strang",
    "eigenmodes",
    "ground_state",
    "restore",
    "save",
    "scheme_named",
    "solve",
    "spectral_radius",
    "stable_step",
    "sweep",
]
