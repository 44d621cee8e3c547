"""Media that recognise: vowels by waves in a plate, digits by light in masks and by generated networks."""

from npde_fem.recognition.agreement import agreement, table_of_ways
from npde_fem.recognition.digits import METHODS, Medium, recognise_digits
from npde_fem.recognition.drawing import figure
from npde_fem.recognition.optics import Camera, Diffraction, light_by_pde, recognise_optics
from npde_fem.recognition.report import Recognition, Trained, heading, row, write_json
from npde_fem.recognition.trials import LEARNERS, folds, recognise
from npde_fem.recognition.vowels import PassivePlate, Plate, recognise_vowels, sound_by_pde, sounds

__all__ = [
    "LEARNERS",
    "METHODS",
    "Camera",
    "Diffraction",
    "Medium",
    "PassivePlate",
    "Plate",
    "Recognition",
    "Trained",
    "agreement",
    "figure",
    "folds",
    "heading",
    "light_by_pde",
    "recognise",
    "recognise_digits",
    "recognise_optics",
    "recognise_vowels",
    "row",
    "sound_by_pde",
    "sounds",
    "table_of_ways",
    "write_json",
]
