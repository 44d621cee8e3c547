"""Pseudoinverse learning: linear read-outs in closed form, behind features that are not trained."""

from npde_fem.learn.pseudoinverse.learner import Pseudoinverse, Solved
from npde_fem.learn.pseudoinverse.reservoir import Reservoir, medium
from npde_fem.learn.pseudoinverse.ridge import Readout
from npde_fem.learn.pseudoinverse.samples import one_hot
from npde_fem.learn.pseudoinverse.stream import Stream, solve_readout

__all__ = ["Pseudoinverse", "Readout", "Reservoir", "Solved", "Stream", "medium", "one_hot", "solve_readout"]
