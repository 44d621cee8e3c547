"""Ready-made problems: equations with known solutions to compare with, and scenes to look at."""

from npde_fem.cases import diffusion, helmholtz, paraxial, schrodinger, systems, waves
from npde_fem.cases.case import Case, Posed, box_mesh, case_named, cell_kind, discretise, velocity_of

__all__ = ["KNOWN", "SCENES", "Case", "Posed", "box_mesh", "case_named", "cell_kind", "discretise", "velocity_of"]

_ROOMS = (diffusion, systems, schrodinger, helmholtz, paraxial, waves)

KNOWN = {case.name: case for room in _ROOMS for case in room.KNOWN}
"""Cases with a known solution, by name."""

SCENES = {case.name: case for room in _ROOMS for case in room.SCENES}
"""Scenes to look at, by name."""
