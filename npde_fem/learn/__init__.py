"""torch: solves as layers of learners, on many ranks."""

from npde_fem.learn.distributed import Ensemble, gather, mean, mse, scatter, spread_use, total
from npde_fem.learn.functional import TensorSolution, differentiable
from npde_fem.learn.layer import Layer
from npde_fem.learn.pseudoinverse import Pseudoinverse, Reservoir

__all__ = [
    "Ensemble",
    "Layer",
    "Pseudoinverse",
    "Reservoir",
    "TensorSolution",
    "differentiable",
    "gather",
    "mean",
    "mse",
    "scatter",
    "spread_use",
    "total",
]
