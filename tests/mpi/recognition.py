"""What recognises, trained and solved on several ranks: what is printed must not depend on their number.

recognition.py members|space|ways
"""

import json
import sys
from pathlib import Path

from npde_fem import datasets, recognition

import numpy as np
import torch
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_recognition_vowels import SMALL, tones

comm = MPI.COMM_WORLD
images, labels = datasets.digits()


def numbers(found):
    """Return the losses of all epochs, and all answers."""
    return {
        "losses": [[e.loss for e in one.fit.history] for one in found.trained],
        "answers": found.confusion.tolist(),
    }


def members():
    """Ranks share the samples of each batch; 17 recordings and so on do not divide evenly."""
    mnist = [part[::25] for part in datasets.mnist5k()]
    few = {"divisions": [0], "progress": False, "comm": comm}
    return {
        "plate": numbers(recognition.recognise_vowels(tones(7), epochs=2, **few, **SMALL)),
        "passive plate": numbers(recognition.recognise_vowels(tones(7), "pseudoinverse", probes=8, **few, **SMALL)),
        "masks": numbers(recognition.recognise_optics(*mnist, epochs=2, neurons=8, **few)),
        "convolutions": numbers(recognition.recognise_digits(images[:301], labels[:301], epochs=2, **few)),
        "medium": numbers(recognition.recognise_digits(images[:301], labels[:301], "pde", epochs=5, **few)),
        "passive medium": numbers(recognition.recognise_digits(images[:301], labels[:301], "pseudoinverse", **few)),
    }


def space():
    """All ranks share the domain of a sample."""
    few = {"divisions": [0], "progress": False, "comm": comm, "ranks_per_sample": comm.size}
    found = {}
    for method, count, epochs in (("fd", 301, 5), ("fem", 100, 2)):
        one = recognition.recognise_digits(images[:count], labels[:count], "pde", method, epochs=epochs, **few)
        found[method] = numbers(one) | {name: values.tolist() for name, values in one.fields.items()}
    return found


def ways():
    """One sound and one picture on a distributed grid or mesh."""
    plate = recognition.Plate(34, seed=1, dtype=torch.float64)
    masks = recognition.Diffraction(8, 2, 2.0, seed=1, dtype=torch.float64)
    (sound,) = recognition.sounds(tones(1), samples=40, dtype=torch.float64)[:1]
    picture = torch.outer(torch.arange(6.0), torch.ones(7))
    return {
        method: [
            recognition.sound_by_pde(plate, sound, method, comm=comm).tolist(),
            recognition.light_by_pde(masks, picture, method, steps=4, comm=comm).tolist(),
        ]
        for method in ("fd", "fem")
    }


found = {"members": members, "space": space, "ways": ways}[sys.argv[1]]()
alike = comm.allgather(json.dumps(found))
assert all(np.array_equal(one, alike[0]) for one in alike)
if comm.rank == 0:
    print(json.dumps(found))
