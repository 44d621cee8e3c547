"""Media that recognise: vowels by waves in a plate."""

from npde_fem.recognition.report import Recognition, Trained, confusion_of, heading, row, write_json
from npde_fem.recognition.vowels import PassivePlate, Plate, agreement, folds, recognise_vowels, sounds

__all__ = [
    "PassivePlate",
    "Plate",
    "Recognition",
    "Trained",
    "agreement",
    "confusion_of",
    "folds",
    "heading",
    "recognise_vowels",
    "row",
    "sounds",
    "write_json",
]
