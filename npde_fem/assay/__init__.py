"""Scratch assays: the laws of cell migration and growth that fit measured densities, by either discretisation.

Cells of density ``u`` (cells/um^2) close a wound as

    u_t = (D(u) u_x)_x + f(u),   u_x = 0 at both sides,

from what was measured at first. :data:`MODELS` has the laws ``D`` and ``f`` that compete; :func:`fit` finds their
parameters from all later times and wells jointly, with standard errors and what model selection needs;
:func:`figure` draws fits against data and the laws learnt. Lengths are um, times h.
"""

from npde_fem.assay.drawing import figure
from npde_fem.assay.fit import LEARNERS, METHODS, Estimate, Fit, aicc, bic, fit
from npde_fem.assay.model import CONFLUENCE, MODELS, Model
from npde_fem.assay.report import heading, row, selection, write_json

__all__ = [
    "CONFLUENCE",
    "LEARNERS",
    "METHODS",
    "MODELS",
    "Estimate",
    "Fit",
    "Model",
    "aicc",
    "bic",
    "figure",
    "fit",
    "heading",
    "row",
    "selection",
    "write_json",
]
