"""PDE-constrained optimisation: solves on pyadjoint's tape, functionals of them, and their minimisation."""

from npde_fem.optimize.block import States, TapedSolution, solve
from npde_fem.optimize.density import density_filter, projection
from npde_fem.optimize.functionals import integral, misfit
from npde_fem.optimize.minimize import METHODS, Minimum, minimize
from npde_fem.optimize.problem import PDEConstrainedProblem
from npde_fem.optimize.regularisation import H1, L2, TV, Regularisation

__all__ = [
    "H1",
    "L2",
    "METHODS",
    "TV",
    "Minimum",
    "PDEConstrainedProblem",
    "Regularisation",
    "States",
    "TapedSolution",
    "density_filter",
    "integral",
    "minimize",
    "misfit",
    "projection",
    "solve",
]
