"""torch: solves as layers of learners, on many ranks; learners, and one way to call them."""

from npde_fem.learn.adam import Adam
from npde_fem.learn.callbacks import Callback, CSVLog, EarlyStopping, Epoch, TensorBoardLog
from npde_fem.learn.distributed import Ensemble, gather, mean, mse, scatter, spread_use, total
from npde_fem.learn.fit import fit
from npde_fem.learn.functional import TensorSolution, differentiable
from npde_fem.learn.layer import Layer
from npde_fem.learn.lbfgs import LBFGS, PDEConstrained
from npde_fem.learn.pseudoinverse import Pseudoinverse, Reservoir
from npde_fem.learn.training import Fit, Training

__all__ = [
    "LBFGS",
    "Adam",
    "CSVLog",
    "Callback",
    "EarlyStopping",
    "Ensemble",
    "Epoch",
    "Fit",
    "Layer",
    "PDEConstrained",
    "Pseudoinverse",
    "Reservoir",
    "TensorBoardLog",
    "TensorSolution",
    "Training",
    "differentiable",
    "fit",
    "gather",
    "mean",
    "mse",
    "scatter",
    "spread_use",
    "total",
]
