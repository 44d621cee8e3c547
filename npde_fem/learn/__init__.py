"""torch: solves as layers of learners, on many ranks."""

from npde_fem.learn.distributed import Ensemble, gather, mean, mse, scatter, spread_use, total
from npde_fem.learn.functional import TensorSolution, differentiable
from npde_fem.learn.layer import Layer

__all__ = [
    "Ensemble",
    "Layer",
    "TensorSolution",
    "differentiable",
    "gather",
    "mean",
    "mse",
    "scatter",
    "spread_use",
    "total",
]
