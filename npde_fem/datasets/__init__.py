"""Measured data: cells of a scratch assay, maps of human brain tissue, handwritten digits, and spoken vowels.

Nothing here is shipped with the package. The scratch assay and the vowels are read from a folder the user names, or
downloaded once with checksums; brain maps and digits come with wheels of the extra ``demo``. Importing this module
costs next to nothing: what is heavy is imported when it is used.
"""

from npde_fem.datasets.anatomy import Brain, brain
from npde_fem.datasets.assays import SCRATCH_ASSAY_SHA256, ScratchAssay, read_scratch_assay, scratch_assay
from npde_fem.datasets.files import DataCorrupted, DataUnavailable
from npde_fem.datasets.handwriting import digits, mnist5k
from npde_fem.datasets.speech import Vowels, vowels

__all__ = [
    "SCRATCH_ASSAY_SHA256",
    "Brain",
    "DataCorrupted",
    "DataUnavailable",
    "ScratchAssay",
    "Vowels",
    "brain",
    "digits",
    "mnist5k",
    "read_scratch_assay",
    "scratch_assay",
    "vowels",
]
