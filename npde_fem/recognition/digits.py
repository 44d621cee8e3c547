"""Handwritten digits, told apart by networks that equations generate, by a trained medium, and by a passive one.

adam, lbfgs
    a generated network whose layers are explicit steps of an equation: FD, a convolutional one
    (:func:`~npde_fem.networks.cnn`); FEM, one on triangles between the pixels
    (:func:`~npde_fem.networks.mesh_network`).
pde
    a :class:`Medium` whose coefficients are fields, trained through the equation's adjoint, on the pixels' grid (FD) or
    triangles (FEM).
pseudoinverse
    a random reaction-diffusion medium (:func:`~npde_fem.learn.pseudoinverse.medium`) and a read-out in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import npde_fem as npde
from npde_fem import networks
from npde_fem.learn import LBFGS, Adam, Ensemble, Layer, PDEConstrained, Pseudoinverse
from npde_fem.recognition.report import Recognition
from npde_fem.recognition.trials import Made, recognise

import numpy as np
import numpy.typing as npt
import torch
import ufl
from dolfinx import fem
from dolfinx import mesh as dmesh
from mpi4py import MPI
from torch import Tensor, nn

__all__ = ["Medium", "recognise_digits"]

METHODS = ("fd", "fem")
EPOCHS = {"adam": 20, "lbfgs": 100, "pde": 60}

Layers = Literal["npde", "random", "autoencoder"]

_BATCH, _AT_ONCE = 32, 500


def _triangulation(pixels: tuple[int, int], comm: MPI.Comm) -> dmesh.Mesh:
    """Return triangles between the pixels, whose spacing is 1; x goes along rows, y along columns."""
    last = [float(n - 1) for n in pixels]
    return dmesh.create_rectangle(comm, [[0.0, 0.0], last], [n - 1 for n in pixels])


def _pixel_of(coordinates: npt.NDArray[np.float64], pixels: tuple[int, int]) -> Tensor:
    """Return the place in a flat picture of each coordinate."""
    i, j = (np.rint(coordinates[:, axis]).astype(np.int64) for axis in (0, 1))
    return torch.from_numpy(i * pixels[1] + j)


class _AtNodes(nn.Module):
    """Pictures (batch, rows, columns) -> their values at nodes, (batch, 1, nodes)."""

    place: Tensor

    def __init__(self, place: Tensor) -> None:
        super().__init__()
        self.register_buffer("place", place)

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)[:, None, self.place]


class Medium(nn.Module):
    """A medium that is trained, with a linear read-out of what becomes of the picture.

        u_t = div(D(x) grad u) + a(x) u - u^3 + s(x),   u(0) the picture,   du/dn = 0,   read at the pixels at t = 1

    D (positive), a and s are fields of the equation, and trained through its adjoint; lengths are pixels.

    Parameters
    ----------
    pixels
        Shape of the pictures.
    classes
        Outputs of the read-out.
    method
        ``"fd"`` on the grid of the pixels, ``"fem"`` on triangles between them.
    dt
        Step of the classical Runge-Kutta scheme; the mass of elements is lumped.
    comm
        Ranks that share the domain.
    seed
        Of the read-out at the start.

    Raises
    ------
    ValueError
        If the method is unknown.
    """

    def __init__(
        self,
        pixels: tuple[int, int],
        classes: int,
        method: str = "fd",
        *,
        dt: float = 0.25,
        comm: MPI.Comm = MPI.COMM_SELF,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"Medium: method {method!r} given; {', '.join(METHODS)} allowed")
        diffusion = npde.Parameter("D", 0.2, bounds=(1e-3, 1.0), field=True)
        growth = npde.Parameter("a", 0.5, bounds=(-5.0, 5.0), field=True)
        source = npde.Parameter("s", 0.0, bounds=(-5.0, 5.0), field=True)
        equation = npde.NPDE(
            flux=lambda u, x, t: diffusion * ufl.grad(u),
            source=lambda u, x, t: growth * u - u**3 + source,
            name="medium",
        )
        problem: npde.Semidiscrete
        if method == "fd":
            last = tuple(float(n - 1) for n in pixels)
            problem = npde.FD(equation, npde.Grid(comm, pixels, (0.0, 0.0), last))
        else:
            space = fem.functionspace(_triangulation(pixels, comm), ("P", 1))
            problem = npde.FEM(equation, space, mass="lumped")
        at = np.stack(np.meshgrid(*(np.arange(float(n)) for n in pixels), indexing="ij"), -1).reshape(-1, 2)
        self.pixels = pixels
        self.layer = Layer(problem, (0.0, 1.0), dt, npde.RK4(), observe=npde.Probe(problem, at))
        self.at_nodes = _AtNodes(_pixel_of(problem.coordinates(), pixels))
        torch.manual_seed(seed)
        self.readout = nn.Linear(math.prod(pixels), classes, dtype=torch.float64)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the outputs, shape (batch, classes), for pictures (batch, rows, columns)."""
        out: Tensor = self.readout(self.layer(self.at_nodes(pictures.double())[:, 0]).flatten(1))
        return out

    @torch.no_grad()
    def coefficients(self) -> dict[str, npt.NDArray[np.float64]]:
        """Return D, a and s at the pixels, on every rank (collective)."""
        comm, found = self.layer.problem.comm, {}
        place = np.concatenate(comm.allgather(self.at_nodes.place.numpy()))
        for name in ("D", "a", "s"):
            picture = np.empty(len(place))
            picture[place] = np.concatenate(comm.allgather(getattr(self.layer, name).numpy()))
            found[name] = picture.reshape(self.pixels)
        return found


def _smoothed(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy against labels that are sure by 90 % only, which keeps weights small.

    Szegedy, Vanhoucke, Ioffe, Shlens and Wojna 2016, CVPR, sec. 7.
    """
    return nn.functional.cross_entropy(outputs, labels, label_smoothing=0.1)


def _convolutions(pixels: tuple[int, int], classes: int) -> nn.Module:
    """Return a generated convolutional network for pictures (batch, rows, columns)."""
    pooling = [networks.Pooling("max", 2) if n else None for n in ((1, 0) if min(pixels) < 16 else (1, 1))]
    network = networks.cnn(grid=pixels, channels=(1, 8, 16), pooling=pooling, readout=classes)
    return nn.Sequential(nn.Unflatten(1, (1, pixels[0])), network)


def _on_triangles(pixels: tuple[int, int], classes: int) -> nn.Module:
    """Return a generated network on a triangulation for pictures (batch, rows, columns)."""
    network = networks.mesh_network(_triangulation(pixels, MPI.COMM_SELF), channels=(1, 8, 8))
    nodes = network.operators.coordinates().T
    readout = nn.Linear(8 * len(nodes), classes)
    return nn.Sequential(_AtNodes(_pixel_of(nodes, pixels)), network, nn.Flatten(), readout)


class _Halved(nn.Module):
    """Pictures (batch, rows, columns) -> means over squares of 2 x 2 pixels."""

    def forward(self, pictures: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(pictures[:, None], 2)[:, 0]


def _read_out(pixels: tuple[int, int], layers: Layers) -> Pseudoinverse:
    """Return pseudoinverse learning; what is in pictures of more pixels is seen by a medium of half as many."""
    if layers == "autoencoder":
        return Pseudoinverse(layers=layers, standardise=True)
    large = min(pixels) >= 16
    width = 2000 if large else 1000
    if layers == "random":
        return Pseudoinverse(layers=layers, width=width, kernel=5)
    return Pseudoinverse(layers=[_Halved(), layers] if large else layers, width=width, standardise=True)


def recognise_digits(
    images: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    learner: str = "adam",
    method: str = "fd",
    *,
    task: str = "digits",
    layers: Layers = "npde",
    divisions: Sequence[int] = (0,),
    epochs: int | None = None,
    seed: int = 0,
    comm: MPI.Comm = MPI.COMM_WORLD,
    ranks_per_sample: int = 1,
    progress: bool = True,
) -> Recognition:
    """Train and test on digits: four fifths of each class to learn from, one to test (collective).

    Parameters
    ----------
    images, labels
        The digits, shapes (samples, rows, columns) and (samples,).
    learner, method
        See the module's text.
    task
        What the result is called.
    layers
        Of the pseudoinverse: an equation's, random ones (convolutions), or autoencoders.
    divisions
        Which fifth to leave out, or several one after the other, by number from 0.
    epochs
        Of each training, iterations of L-BFGS; by default those of ``EPOCHS``.
    seed
        Of the divisions, the start and the order of samples.
    comm
        All ranks, which share the samples of each batch.
    ranks_per_sample
        Of the learner ``"pde"``: ranks that share the domain. If there are several, their communicator is gone at the
        end: the trained model has its weights, but solves no more.
    progress
        Whether to draw a line (rank 0, on a terminal).

    Raises
    ------
    ValueError
        If an argument is not as above, or the learner has no such method.
    """
    if method not in METHODS:
        raise ValueError(f"{task}: method {method!r} given; {', '.join(METHODS)} allowed")
    if learner == "pseudoinverse" and method != "fd":
        raise ValueError(f"{task}: method {method!r} given; 'fd' allowed, on which the pseudoinverse's medium lives")
    if ranks_per_sample != 1 and learner != "pde":
        raise ValueError(f"{task}: ranks_per_sample = {ranks_per_sample} given; 1 allowed unless the learner is 'pde'")
    classes, pixels = int(np.max(labels)) + 1, (images.shape[1], images.shape[2])

    def make(ensemble: Ensemble) -> Made:
        if learner == "pseudoinverse":
            return None, _read_out(pixels, layers)
        if learner == "pde":
            space = MPI.COMM_SELF if ranks_per_sample == 1 else ensemble.space
            return Medium(pixels, classes, method, comm=space, seed=seed), PDEConstrained(batch=_AT_ONCE, inner="l2")
        network = (_convolutions if method == "fd" else _on_triangles)(pixels, classes)
        return network, Adam(5e-3, batch=_BATCH, schedule="cosine") if learner == "adam" else LBFGS(batch=_AT_ONCE)

    return recognise(
        task,
        learner,
        method,
        torch.tensor(images, dtype=torch.float32),
        labels,
        [str(k) for k in range(classes)],
        make,
        loss=_smoothed,
        fields=Medium.coefficients if learner == "pde" else None,  # type: ignore[arg-type]
        count=5,
        divisions=divisions,
        epochs=EPOCHS.get(learner, 1) if epochs is None else epochs,
        seed=seed,
        comm=comm,
        ranks_per_sample=ranks_per_sample,
        progress=progress,
    )
