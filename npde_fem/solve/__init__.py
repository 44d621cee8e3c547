"""Semidiscrete operator -> trajectory, and back."""

from npde_fem.solve.history import Checkpoints
from npde_fem.solve.integrate import Adaptive, Solution, SolveError, solve, spectral_radius, stable_step
from npde_fem.solve.restart import restore, save
from npde_fem.solve.schemes import (
    IMEX,
    RK4,
    SDIRK2,
    BackwardEuler,
    CrankNicolson,
    ForwardEuler,
    Leapfrog,
    Newmark,
    Scheme,
    scheme_named,
)

__all__ = [
    "IMEX",
    "RK4",
    "SDIRK2",
    "Adaptive",
    "BackwardEuler",
    "Checkpoints",
    "CrankNicolson",
    "ForwardEuler",
    "Leapfrog",
    "Newmark",
    "Scheme",
    "Solution",
    "SolveError",
    "restore",
    "save",
    "scheme_named",
    "solve",
    "spectral_radius",
    "stable_step",
]
