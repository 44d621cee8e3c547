"""Growth of a glioma in human brain anatomy: finite differences on the image's voxels, finite elements on a mesh.

The model of proliferation and invasion (Swanson, Alvord and Murray 2000, Cell Prolif. 33, 317-329, with logistic
growth), for the density ``u`` of tumour cells over its carrying capacity,

    u_t = div(D grad u) + r u (1 - u),   D = D_white WM(x) + D_grey GM(x),   n . D grad u = 0,

with the maps ``WM`` and ``GM`` of white and grey matter of :func:`npde_fem.datasets.brain`. Lengths are millimetres
of MNI space, times are days. The equation is written once, by :func:`glioma_equation`; :func:`glioma_fd` and
:func:`glioma_fem` discretise it. :func:`fit_tumour` learns from images where a tumour began, how it
spreads and how it grows.
"""

from npde_fem.brain.drawing import figure, figure_of_fits
from npde_fem.brain.learn import Fit, fit_tumour, synthetic_scans, table_of_fits, write_fits
from npde_fem.brain.measure import (
    DAYS,
    DT,
    T1GD,
    T2,
    Difference,
    Growth,
    Sampler,
    compare_resolutions,
    difference,
    simulate,
    tumour_size,
)
from npde_fem.brain.model import D_GREY, D_WHITE, RATE, anatomy, glioma_equation, glioma_fd, glioma_fem, seed
from npde_fem.brain.scans import HIDDEN, NOISE, SCAN_DAYS, Scans, Tumour, read_scans

__all__ = [
    "DAYS",
    "D_GREY",
    "D_WHITE",
    "DT",
    "HIDDEN",
    "NOISE",
    "RATE",
    "SCAN_DAYS",
    "T1GD",
    "T2",
    "Difference",
    "Fit",
    "Growth",
    "Sampler",
    "Scans",
    "Tumour",
    "anatomy",
    "compare_resolutions",
    "difference",
    "figure",
    "figure_of_fits",
    "fit_tumour",
    "glioma_equation",
    "glioma_fd",
    "glioma_fem",
    "read_scans",
    "seed",
    "simulate",
    "synthetic_scans",
    "table_of_fits",
    "tumour_size",
    "write_fits",
]
