"""Spoken vowels, told apart by a wave in a plate: speech enters at a point, energy is measured at three.

    u_tt + b u_t = div(c(x)^2 grad u) + s(t) delta(x - x_s),
    P(vowel k) = E_k^q / sum_j E_j^q,   E_k = int u(x_k, t)^2 dt

The speed c(x) is trained, by leapfrog and its exact adjoint: Hughes, Williamson, Minkov and Fan 2019, Sci. Adv. 5,
eaay6946, of a linear medium. Lengths are points of the lattice, the speed of the empty plate is 1, and a sample of the
sound takes ``dt`` of time. What is trained is a density between empty plate and material, smoothed by a cone and then
projected (Wang, Lazarov and Sigmund 2011, Struct. Multidisc. Optim. 43, 767, eq. 9), so that structures are wider than
the cone and nearly of two materials.

Beside it a passive medium: random scatterers that nobody trains, energies at many points, and a linear read-out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from npde_fem.datasets import Vowels
from npde_fem.learn import LBFGS, Adam, Ensemble, PDEConstrained, Pseudoinverse
from npde_fem.networks import wave_rnn
from npde_fem.networks.kinds.waves import WaveNetwork
from npde_fem.recognition.report import Recognition
from npde_fem.recognition.trials import Made, positive, recognise

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI
from torch import Tensor, nn

__all__ = ["PassivePlate", "Plate", "recognise_vowels", "sound_by_pde", "sounds"]

RATE, SAMPLES, POINTS = 10_000, 700, 60
EPOCHS = {"adam": 10, "lbfgs": 30, "pde": 30}
DT = 0.68
HUGHES = (0.86, "Hughes et al. 2019, linear medium, trained speed")
PASSIVE = (0.914, "arXiv 2304.08380, passive wave medium with a trained read-out")

_SPONGE, _BATCH = 8, 12


def sounds(vowels: Vowels, rate: int = RATE, samples: int = SAMPLES, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the middle of each recording at another rate, of mean square 1; shape (recordings, samples, 1).

    Raises
    ------
    ValueError
        If the rate or the number of samples is not positive.
    """
    from scipy.signal import resample_poly

    positive("vowels", rate=rate, samples=samples)
    common = math.gcd(rate, vowels.rate)
    found = np.zeros((len(vowels.signals), samples))
    for line, signal in zip(found, vowels.signals, strict=True):
        heard = resample_poly(signal, rate // common, vowels.rate // common)
        begin = max(0, (len(heard) - samples) // 2)
        part = heard[begin : begin + samples]
        line[: len(part)] = part / np.sqrt(np.mean(part**2))
    return torch.tensor(found[..., None], dtype=dtype)


def _sponge(points: int) -> npt.NDArray[np.float64]:
    """Return the damping: zero inside, up to 1 in a layer along the sides, in which waves die out."""
    edge = np.minimum(np.arange(points), np.arange(points)[::-1])
    return (np.clip(_SPONGE - np.minimum.outer(edge, edge), 0, None) / _SPONGE) ** 2


class Plate(WaveNetwork):
    """A square plate whose speed is trained, with a source, absorbing sides and one probe for each class.

    Parameters
    ----------
    points
        Points along each side of the square.
    slow
        Speed of the material; that of the empty plate is 1.
    classes
        Number of probes.
    radius
        Of the cone that smooths the density, in points.
    steepness
        Of the projection.
    sharpness
        The exponent q.
    seed
        Of the random density at the start.
    dtype
        Of states and weights.
    """

    cone: Tensor
    region: Tensor

    def __init__(
        self,
        points: int = POINTS,
        slow: float = 0.5,
        classes: int = 3,
        *,
        radius: float = 1.5,
        steepness: float = 20.0,
        sharpness: float = 1.5,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        least = 2 * _SPONGE + 16
        if isinstance(points, bool) or not isinstance(points, int) or points < least:
            raise ValueError(f"Plate: points = {points!r} given; an integer from {least} on allowed")
        if not 0 < slow < 1:
            raise ValueError(f"Plate: slow = {slow!r} given; a speed between 0 and 1 allowed")
        for name, value in (("radius", radius), ("steepness", steepness), ("sharpness", sharpness)):
            if not 0 < value < math.inf:
                raise ValueError(f"Plate: {name} = {value!r} given; a positive number allowed")
        middle, source, last = (points - 1) / 2, _SPONGE + 3.0, points - _SPONGE - 4.0
        across = (points - 2 * _SPONGE) / 4 * np.linspace(-1, 1, classes)
        rng = np.random.default_rng(seed)
        super().__init__(
            (points, points),
            1,
            speed=1 / (1 + np.exp(-0.2 * rng.standard_normal((points, points)))),
            fastest=1.0,
            damping=_sponge(points),
            dt=DT,
            boundary="zeros",
            sources=[(source, middle)],
            probes=[(last, middle + y) for y in across],
            intensity=True,
            dtype=dtype,
        )
        self.slow, self.steepness, self.sharpness = float(slow), float(steepness), float(sharpness)
        reach = math.ceil(radius)
        distance = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1])
        cone = np.clip(radius + 1 - distance, 0, None)
        self.register_buffer("cone", torch.tensor(cone / cone.sum(), dtype=dtype))
        region = np.zeros((points, points))
        region[int(source) + 3 : int(last) - 2, _SPONGE + 1 : points - _SPONGE - 1] = 1.0
        self.register_buffer("region", torch.tensor(region, dtype=dtype))

    @property
    def density(self) -> Tensor:
        """Share of material at the points, 0 in the empty plate."""
        reach = len(self.cone) // 2
        rough = nn.functional.pad(torch.sigmoid(-self.raw_speed)[None, None], (reach,) * 4, mode="replicate")
        smooth = nn.functional.conv2d(rough, self.cone[None, None])[0, 0]
        top = math.tanh(self.steepness / 2)
        return self.region * (0.5 + torch.tanh(self.steepness * (smooth - 0.5)) / (2 * top))

    @property
    def speed(self) -> Tensor:
        """c at the points, between that of the material and 1."""
        return 1 - (1 - self.slow) * self.density

    def read(self, signals: Tensor) -> Tensor:
        """Return ``q log E`` at the probes, whose softmax is the probability of each class."""
        energy = super().read(signals)
        return self.sharpness * torch.log(energy + torch.finfo(energy.dtype).tiny)


class PassivePlate(nn.Module):
    """Random scatterers in a plate: sounds (batch, samples, 1) -> log energies at random points, in spans of time.

    Parameters
    ----------
    points, slow, dtype
        As of :class:`Plate`.
    probes
        Number of points.
    windows
        Number of spans of equal length.
    seed
        Of scatterers and points.
    """

    def __init__(
        self,
        points: int = POINTS,
        slow: float = 0.5,
        probes: int = 60,
        windows: int = 2,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        positive("PassivePlate", probes=probes, windows=windows)
        plate = Plate(points, slow, seed=seed, dtype=dtype)
        rng = np.random.default_rng(seed)
        with torch.no_grad():
            plate.raw_speed.copy_(torch.tensor(3 * rng.standard_normal((points, points)), dtype=dtype))
            speed = plate.speed.numpy()
        at = rng.uniform(_SPONGE + 1, points - _SPONGE - 2, (probes, 2))
        self.windows = windows
        self.wave = wave_rnn(
            (points, points),
            1,
            speed=np.clip(speed, None, 0.999),
            fastest=1.0,
            damping=_sponge(points),
            dt=DT,
            boundary="zeros",
            sources=[(_SPONGE + 3.0, (points - 1) / 2)],
            probes=at,
            dtype=dtype,
        ).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the features, shape (batch, probes * windows)."""
        seen = self.wave(x.to(self.wave.damping.dtype)).square()
        spans = [part.mean(1) for part in seen.tensor_split(self.windows, dim=1)]
        return torch.log(torch.cat(spans, 1) + torch.finfo(seen.dtype).tiny)


def recognise_vowels(
    vowels: Vowels,
    learner: str = "adam",
    *,
    count: int = 5,
    divisions: Sequence[int] | None = None,
    epochs: int | None = None,
    points: int = POINTS,
    samples: int = SAMPLES,
    seed: int = 0,
    comm: MPI.Comm = MPI.COMM_WORLD,
    progress: bool = True,
    **settings: Any,
) -> Recognition:
    """Train and test on divisions of the recordings, of which each leaves one fold out (collective).

    Ranks share the samples of each batch.

    Parameters
    ----------
    vowels
        The recordings.
    learner
        ``"adam"``, ``"lbfgs"`` and ``"pde"`` train a :class:`Plate`; ``"pseudoinverse"`` the read-out of a
        :class:`PassivePlate`.
    count
        Number of folds.
    divisions
        Which of them to leave out, by number from 0; by default each in turn.
    epochs
        Of each training, iterations of L-BFGS; by default those of ``EPOCHS``.
    points, samples
        Along a side of the plate, and of the sound.
    seed
        Of the folds, the start and the order of samples.
    comm
        All ranks that take part.
    progress
        Whether to draw a line (rank 0, on a terminal).
    **settings
        Of the :class:`Plate` or :class:`PassivePlate`.

    Returns
    -------
    Recognition
        Of the method ``"fd"``: leapfrog on a lattice is finite differences; see :func:`sound_by_pde` for elements.

    Raises
    ------
    ValueError
        If an argument is not as above.
    """
    passive = learner == "pseudoinverse"

    def make(ensemble: Ensemble) -> Made:
        if passive:
            layer = PassivePlate(points, seed=seed, **settings)
            return None, Pseudoinverse(layers=layer, standardise=True, batch=24)
        how: dict[str, Any] = {
            "adam": Adam(0.1, batch=_BATCH, schedule="cosine"),
            "lbfgs": LBFGS(batch=_BATCH),
            "pde": PDEConstrained(batch=_BATCH),
        }
        return Plate(points, classes=len(vowels.names), seed=seed, **settings), how[learner]

    return recognise(
        "vowels",
        learner,
        "fd",
        sounds(vowels, samples=samples),
        vowels.labels,
        vowels.names,
        make,
        count=count,
        divisions=range(count) if divisions is None else divisions,
        epochs=EPOCHS.get(learner, 1) if epochs is None else epochs,
        seed=seed,
        comm=comm,
        progress=progress,
        reference=PASSIVE if passive else HUGHES,
    )


def sound_by_pde(
    plate: Plate,
    sound: Tensor,
    method: Literal["fd", "fem"] = "fem",
    *,
    refine: int = 2,
    comm: MPI.Comm = MPI.COMM_WORLD,
) -> npt.NDArray[np.float64]:
    """Return the probabilities of the classes of a sound, by another discretisation of the plate (collective).

    Leapfrog on a lattice ``refine`` times finer; ``"fem"``: linear elements of lumped mass on triangles between its
    points. The speed is multilinear between the plate's points. With ``"fd"`` and ``refine`` 1 it is the plate itself.

    Parameters
    ----------
    plate
        The plate.
    sound
        Shape (samples, 1).
    method
        Finite differences or elements.
    refine
        How many times finer than the plate's own lattice.
    comm
        Ranks of grid or mesh.

    Raises
    ------
    ValueError
        If an argument is not as above.
    """
    positive("sound_by_pde", refine=refine)
    if method not in ("fd", "fem"):
        raise ValueError(f"sound_by_pde: method {method!r} given; 'fd' or 'fem' allowed")
    equation, n = plate.as_equation(), plate.lattice.shape[0]
    if method == "fd":
        solved = equation.solve(sound.double(), comm=comm, refine=refine, substeps=refine)
    else:
        from dolfinx import mesh as dmesh

        cells = (n + 1) * refine
        mesh = dmesh.create_rectangle(comm, [[-1.0, -1.0], [float(n), float(n)]], [cells, cells])
        solved = equation.solve(sound.double(), on=mesh, substeps=refine + 1)
    return np.asarray(torch.softmax(torch.from_numpy(np.asarray(solved.outputs)), -1))
