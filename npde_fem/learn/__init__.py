"""torch: solves as layers of learners, on many ranks."""

from npde_fem.learn.distributed import Ensemble, gather, mean, mse, scatter, spread_use, total

__all__ = ["Ensemble", "gather", "mean", "mse", "scatter", "spread_use", "total"]
