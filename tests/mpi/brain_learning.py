"""A tumour learnt from images of made-up tissue on all ranks; rank 0 prints the fits as JSON, a line a method."""

import json

from npde_fem import brain, datasets

import numpy as np
from mpi4py import MPI

COMM = MPI.COMM_WORLD
HIDDEN = brain.Tumour((3.0, -4.0), 0.3, 0.04)
DAYS, DT = (40.0, 80.0), 4.0


def tissue(spacing):
    """Return 60 mm x 56 mm of tissue with a layer of nothing around it, white and grey matter mixed smoothly."""
    mask = np.zeros((60 // spacing + 2, 56 // spacing + 2), dtype=bool)
    mask[1:-1, 1:-1] = True
    lower = -spacing * (np.array(mask.shape) - 1) / 2
    x, y = np.meshgrid(*(low + spacing * np.arange(n) for low, n in zip(lower, mask.shape, strict=True)), indexing="ij")
    white = np.where(mask, 0.6 + 0.3 * np.sin(x / 9) * np.cos(y / 12), 0.0)
    edges = np.full(2, float(spacing))
    return datasets.Brain(white, mask - white, mask, np.zeros(mask.shape, np.float32), lower, edges, 24.0)


def images(times=DAYS, noise=brain.NOISE, rng_seed=5):
    return brain.synthetic_scans(tissue(1), times, HIDDEN, noise, rng_seed, voxel=3.0, size=1.0, dt=DT / 2, comm=COMM)


def fit(scans, method, **arguments):
    return brain.fit_tumour(scans, method, tissue(1), 1.5, DT, comm=COMM, **arguments)


if __name__ == "__main__":
    scans = images()
    for method in ("fem", "fd"):
        found = fit(scans, method)
        if COMM.rank == 0:
            print(json.dumps(found.as_json()), flush=True)
