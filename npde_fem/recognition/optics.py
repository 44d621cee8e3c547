"""Handwritten digits, told apart by light that passes five phase masks: diffractive deep neural networks.

    2 i k psi_z = -lap psi   between the masks,      psi <- exp(i phi_l(x)) psi   at each,
    P(digit j) = E_j / sum_k E_k,   E_j = int_{D_j} |psi|^2 dx   at the end.

The phases phi_l are trained, as those of Lin, Rivenson, Yardimci, Veli, Luo, Jarrahi and Ozcan 2018, Science 361, 1004,
who take Huygens' wavelets where this takes the paraxial equation, on which they agree for small angles (Goodman 2005,
Introduction to Fourier Optics, sec. 4.2). Here it is solved exactly for what the lattice resolves, by Fourier
transforms: ``psi^ <- exp(-i |kappa|^2 z / (2 k)) psi^``. Lengths are widths of a neuron. Phases and pictures are
quadratic B-splines of their neurons and pixels, functions of the plane that any lattice or mesh can take:
:func:`light_by_pde` lets the same light go by finite differences and finite elements.

Beside it masks of random phases that nobody trains, a camera, and a linear read-out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import npde_fem as npde
from npde_fem import physics
from npde_fem.learn import LBFGS, Adam, Ensemble, PDEConstrained, Pseudoinverse
from npde_fem.recognition.report import Recognition
from npde_fem.recognition.trials import Made, positive, recognise

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI
from torch import Tensor, nn

__all__ = ["Camera", "Diffraction", "light_by_pde", "recognise_optics"]

LIN = (0.9175, "Lin et al. 2018, five layers, trained on 55,000 digits")
EPOCHS = {"adam": 10, "lbfgs": 40, "pde": 40}

# Width of a detector, of the picture, and of the strip in which the aperture fades, as parts of the aperture.
_DETECTOR, _PICTURE, _EDGE = 1 / 8, 0.6, 1 / 16
_DARK, _FAINT = 1e-9, 1e-3
_BATCH = 32

Array = npt.NDArray[np.float64]


class Diffraction(nn.Module):
    """Pictures ``(batch, rows, columns)`` become light, which goes through masks to detectors.

    The plane is a periodic square. In its middle is an aperture, ``neurons`` wide, with a margin of a quarter of that
    at either side, for light that leaves it; what is beyond the aperture at a mask is lost.

    Parameters
    ----------
    neurons
        Of a mask, along each side.
    layers
        Number of masks.
    distance
        ``2 pi z / k`` from the picture to the first mask, from mask to mask, and to the detectors: light of a spatial
        frequency of f cycles a neuron goes aside by ``distance * f``.
    classes
        Number of detectors, in three rows.
    fineness
        Points of the lattice a neuron.
    seed
        Of random phases at the start; None: all are 0.
    dtype
        Of the phases; fields are of the complex type of the same precision.

    Attributes
    ----------
    phases
        Coefficients of the splines of each mask, shape (layers, neurons, neurons).
    width
        Of the plane.
    points
        Of the lattice, along each side.

    Raises
    ------
    ValueError
        If a number is none of those allowed.
    """

    phases: nn.Parameter
    gap: Tensor
    splines: Tensor
    stop: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        neurons: int = 32,
        layers: int = 5,
        distance: float = 16.0,
        classes: int = 10,
        *,
        fineness: int = 2,
        seed: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        positive("Diffraction", neurons=neurons, layers=layers, classes=classes, fineness=fineness)
        if neurons % 4 or neurons < 8:
            raise ValueError(f"Diffraction: neurons = {neurons} given; a multiple of 4 from 8 on allowed")
        if not 0 < distance < math.inf:
            raise ValueError(f"Diffraction: distance = {distance!r} given; a positive number allowed")
        self.neurons, self.distance, self.classes, self.fineness = neurons, float(distance), classes, fineness
        start = torch.zeros(layers, neurons, neurons, dtype=dtype)
        if seed is not None:
            start.uniform_(-math.pi, math.pi, generator=torch.Generator().manual_seed(seed))
        self.phases = nn.Parameter(start)
        self.width = 1.5 * neurons
        self.points = round(self.width * fineness)
        x = np.arange(self.points) / fineness
        frequency = np.fft.fftfreq(self.points, 1 / fineness)
        turn = torch.tensor(-math.pi * self.distance * np.add.outer(frequency**2, frequency**2))
        wide = torch.complex128 if dtype == torch.float64 else torch.complex64
        self.register_buffer("gap", torch.polar(torch.ones_like(turn), turn).to(wide))
        rows, columns = self.detectors(x)
        edge = self.edge(x)
        for name, values in (
            ("splines", self.mask_splines(x)),
            ("stop", edge[:, None] * edge),
            ("rows", rows),
            ("columns", columns),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=dtype))

    # -- functions of the plane, along one axis each -----------------------------------------------------------------

    def mask_splines(self, x: Array) -> Array:
        """Return the values of a mask's splines, shape (len(x), neurons)."""
        return _splines(x - self.neurons / 4, 1.0, self.neurons)

    def picture_splines(self, x: Array, pixels: int) -> Array:
        """Return the values of a picture's splines, shape (len(x), pixels)."""
        edge = _PICTURE * self.neurons
        return _splines(x - (self.width - edge) / 2, edge / pixels, pixels)

    def edge(self, x: Array) -> Array:
        """Return what the aperture lets through: 1 inside, down to 0 in a strip along its edge."""
        depth = np.minimum(x - self.neurons / 4, 5 * self.neurons / 4 - x) / (_EDGE * self.neurons)
        return np.sin(np.pi / 2 * np.clip(depth, 0, 1)) ** 2

    def squares(self) -> Array:
        """Return the detectors' lower ends along both axes, shape (classes, 2); each is ``neurons / 8`` wide."""
        counts = [(self.classes + (1, 2, 0)[r]) // 3 for r in range(3)]
        places = [((r + 0.5) / 3, (c + 0.5) / n) for r, n in enumerate(counts) for c in range(n)]
        return self.neurons * (0.25 + 0.05 + 0.9 * np.array(places) - _DETECTOR / 2)

    def detectors(self, x: Array) -> tuple[Array, Array]:
        """Return the share of the cell around each coordinate that each detector covers, along both axes."""
        half, first = 0.5 * (x[1] - x[0]), self.squares()[..., None]
        covered = np.minimum(x + half, first + _DETECTOR * self.neurons) - np.maximum(x - half, first)
        shares = np.clip(covered / (2 * half), 0, 1)
        return shares[:, 0], shares[:, 1]

    # -- light -------------------------------------------------------------------------------------------------------

    def light(self, pictures: Tensor) -> Tensor:
        """Return the field behind pictures, of power 1, shape (batch, points, points)."""
        if pictures.ndim != 3:
            raise ValueError(
                f"Diffraction: pictures of shape {tuple(pictures.shape)} given; (batch, rows, columns) allowed"
            )
        x = np.arange(self.points) / self.fineness
        left, right = (
            torch.tensor(self.picture_splines(x, n), dtype=self.stop.dtype, device=self.stop.device)
            for n in pictures.shape[1:]
        )
        field = left @ pictures.to(self.stop.dtype) @ right.T
        power = field.square().sum((1, 2), keepdim=True) / self.fineness**2
        return (field / power.clamp(min=torch.finfo(field.dtype).tiny).sqrt()).to(self.gap.dtype)

    def planes(self, pictures: Tensor) -> list[Tensor]:
        """Return the fields as they come to each mask, and to the detectors."""
        field, found = self.light(pictures), []
        for phases in self.phases:
            found.append(self._onwards(field))
            phase = self.splines @ phases @ self.splines.T
            field = found[-1] * torch.polar(self.stop, phase)
        return [*found, self._onwards(field)]

    def _onwards(self, field: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(field) * self.gap)

    def energies(self, field: Tensor) -> Tensor:
        """Return the power on each detector, shape (batch, classes)."""
        intensity = field.real.square() + field.imag.square()
        return torch.einsum("ki,bij,kj->bk", self.rows, intensity, self.columns) / self.fineness**2

    def window(self, values: Tensor) -> Tensor:
        """Return the values, shape (..., points, points), of the points in the aperture."""
        margin = self.points // 6
        return values[..., margin:-margin, margin:-margin]

    def forward(self, pictures: Tensor) -> Tensor:
        """Return ``log E``, whose softmax is the probability of each class."""
        return torch.log(self.energies(self.planes(pictures)[-1]) + _DARK)

    def refined(self, times: int) -> Diffraction:
        """Return the same masks on a lattice so many times finer, in double precision."""
        positive("Diffraction", times=times)
        layers, fineness = len(self.phases), self.fineness * times
        finer = Diffraction(self.neurons, layers, self.distance, self.classes, fineness=fineness, dtype=torch.float64)
        with torch.no_grad():
            finer.phases.copy_(self.phases)
        return finer


def _splines(x: Array, spacing: float, count: int) -> Array:
    """Return quadratic B-splines, the k-th around (k + 1/2) spacing, at coordinates."""
    t = np.abs(x[:, None] / spacing - np.arange(count) - 0.5)
    return np.where(t < 0.5, 0.75 - t**2, 0.5 * np.clip(1.5 - t, 0, None) ** 2)


class Camera(nn.Module):
    """Random masks, and a camera in the place of detectors: pictures -> logarithms of ``pixels^2`` powers.

    Parameters
    ----------
    pixels
        Of the camera, along each side of the aperture.
    seed, **settings
        As of :class:`Diffraction`.
    """

    def __init__(self, pixels: int = 32, *, seed: int = 0, **settings: Any) -> None:
        super().__init__()
        positive("Camera", pixels=pixels)
        self.pixels = pixels
        self.optics = Diffraction(seed=seed, **settings).requires_grad_(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Return the features, shape (batch, pixels^2)."""
        field = self.optics.planes(pictures)[-1]
        intensity = self.optics.window(field.real.square() + field.imag.square())
        seen = nn.functional.adaptive_avg_pool2d(intensity, self.pixels).flatten(1)
        return torch.log(seen * self.optics.neurons**2 + _FAINT)


def recognise_optics(
    images: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    learner: str = "adam",
    *,
    divisions: Sequence[int] = (0,),
    epochs: int | None = None,
    seed: int = 0,
    comm: MPI.Comm = MPI.COMM_WORLD,
    progress: bool = True,
    **settings: Any,
) -> Recognition:
    """Train and test masks on digits: four fifths of each to learn from, one to test (collective).

    Ranks share the samples of each batch.

    Parameters
    ----------
    images, labels
        The digits, shapes (samples, rows, columns) and (samples,).
    learner
        ``"adam"``, ``"lbfgs"`` and ``"pde"`` train the masks of :class:`Diffraction`; ``"pseudoinverse"`` the read-out
        of a :class:`Camera`.
    divisions
        Which fifth to leave out, or several one after the other, by number from 0.
    epochs
        Of each training, iterations of L-BFGS; by default those of ``EPOCHS``.
    seed
        Of the divisions, the order of samples, and of a camera's masks.
    comm
        All ranks that take part.
    progress
        Whether to draw a line (rank 0, on a terminal).
    **settings
        Of the :class:`Diffraction` or :class:`Camera`.

    Raises
    ------
    ValueError
        If an argument is not as above.
    """
    classes = int(np.max(labels)) + 1

    def make(ensemble: Ensemble) -> Made:
        if learner == "pseudoinverse":
            return None, Pseudoinverse(layers=Camera(seed=seed, **settings), standardise=True, batch=_BATCH)
        how: dict[str, Any] = {
            "adam": Adam(0.05, batch=_BATCH, schedule="cosine"),
            "lbfgs": LBFGS(batch=_BATCH),
            "pde": PDEConstrained(batch=_BATCH),
        }
        return Diffraction(classes=classes, **settings), how[learner]

    return recognise(
        "optics-digits",
        learner,
        "fourier",
        torch.tensor(images, dtype=torch.float32),
        labels,
        [str(k) for k in range(classes)],
        make,
        count=5,
        divisions=divisions,
        epochs=EPOCHS.get(learner, 1) if epochs is None else epochs,
        seed=seed,
        comm=comm,
        progress=progress,
        reference=LIN,
    )


def light_by_pde(
    optics: Diffraction,
    picture: Tensor,
    method: Literal["fd", "fem"] = "fem",
    *,
    refine: int = 2,
    degree: int = 2,
    steps: int = 32,
    comm: MPI.Comm = MPI.COMM_WORLD,
) -> npt.NDArray[np.float64]:
    """Return the shares of light on the detectors, by the paraxial equation from mask to mask (collective).

    Crank-Nicolson along z, on a periodic grid or mesh whose nodes are the points of a lattice ``refine`` times finer.
    What it tends to is ``optics.refined(n)`` for large n.

    Parameters
    ----------
    optics
        The masks.
    picture
        Shape (rows, columns).
    method
        Finite differences or elements.
    refine
        How many times finer than the lattice.
    degree
        Of the elements, triangles; ``refine`` times the lattice's points must be divisible by it.
    steps
        From mask to mask.
    comm
        Ranks of grid and mesh.

    Raises
    ------
    ValueError
        If an argument is not as above.
    """
    positive("light_by_pde", refine=refine, degree=degree, steps=steps)
    if method not in ("fd", "fem"):
        raise ValueError(f"light_by_pde: method {method!r} given; 'fd' or 'fem' allowed")
    n = optics.points * refine
    if method == "fem" and n % degree:
        raise ValueError(f"light_by_pde: degree = {degree} given; a divisor of {n}, the points of the lattice, allowed")
    # The wavenumber is a matter of units: z = 1 from mask to mask.
    equation = physics.paraxial(2 * math.pi / optics.distance)
    bcs = [npde.Periodic(0), npde.Periodic(1)]
    problem: npde.Semidiscrete
    if method == "fd":
        problem = npde.FD(equation, npde.Grid(comm, (n + 1, n + 1), (0.0, 0.0), (optics.width, optics.width)), bcs)
    else:
        from dolfinx import fem
        from dolfinx import mesh as dmesh

        corners, cells = [[0.0, 0.0], [optics.width, optics.width]], [n // degree, n // degree]
        problem = npde.FEM(
            equation, fem.functionspace(dmesh.create_rectangle(comm, corners, cells), ("P", degree)), bcs
        )
    nodes = problem.coordinates()
    x, y = nodes[:, 0] % optics.width, nodes[:, 1] % optics.width
    pixels = picture.double().numpy()

    def of_plane(weights: Array, left: Array, right: Array) -> Array:
        return np.einsum("ni,ij,nj->n", left, weights, right, optimize=True)

    field = of_plane(
        pixels, optics.picture_splines(x, pixels.shape[0]), optics.picture_splines(y, pixels.shape[1])
    ).astype(complex)
    stop = optics.edge(x) * optics.edge(y)
    across = optics.mask_splines(x), optics.mask_splines(y)
    phases = [of_plane(p, *across) for p in optics.phases.detach().double().numpy()]
    for phase in [*phases, None]:
        known = npde.solve(problem, field, (0.0, 1.0), 1 / steps, npde.CrankNicolson(), progress=False)
        field = known.values.view(complex).copy()
        if phase is not None:
            field *= stop * np.exp(1j * phase)
    lattice = np.linspace(0.0, optics.width, n, endpoint=False, dtype=np.float64)
    points = np.stack(np.meshgrid(lattice, lattice, indexing="ij"), -1).reshape(-1, 2)
    seen = npde.Probe(problem, points).apply(field.view(float)).reshape(n * n, -1)
    intensity = (seen**2).sum(1).reshape(n, n)
    rows, columns = optics.detectors(lattice)
    energies = np.einsum("ki,ij,kj->k", rows, intensity, columns)
    return np.asarray(energies / energies.sum())
