"""PDE-constrained optimisation: solves on pyadjoint's tape, functionals of them, and their minimisation."""

from npde_fem.optimize.block import States, TapedSolution, solve
from npde_fem.optimize.functionals import integral, misfit

__all__ = ["States", "TapedSolution", "integral", "misfit", "solve"]
