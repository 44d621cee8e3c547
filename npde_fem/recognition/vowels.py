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
from typing import Any

from npde_fem.datasets import Vowels
from npde_fem.learn import LBFGS, Adam, Ensemble, Fit, Pseudoinverse, fit
from npde_fem.networks import wave_rnn
from npde_fem.networks.kinds.waves import WaveNetwork
from npde_fem.recognition.report import Recognition, Trained, confusion_of

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI
from torch import Tensor, nn

__all__ = ["PassivePlate", "Plate", "agreement", "folds", "recognise_vowels", "sounds"]

RATE, SAMPLES, POINTS, EPOCHS = 10_000, 700, 60, 10
DT = 0.68
HUGHES = (0.86, "Hughes et al. 2019, linear medium, trained speed")
PASSIVE = (0.914, "arXiv 2304.08380, passive wave medium with a trained read-out")

_SPONGE = 8


def sounds(vowels: Vowels, rate: int = RATE, samples: int = SAMPLES, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the middle of each recording at another rate, of mean square 1; shape (recordings, samples, 1).

    Raises
    ------
    ValueError
        If the rate or the number of samples is not positive.
    """
    from scipy.signal import resample_poly

    for name, value in (("rate", rate), ("samples", samples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"vowels: {name} = {value!r} given; a positive integer allowed")
    common = math.gcd(rate, vowels.rate)
    found = np.zeros((len(vowels.signals), samples))
    for line, signal in zip(found, vowels.signals, strict=True):
        heard = resample_poly(signal, rate // common, vowels.rate // common)
        begin = max(0, (len(heard) - samples) // 2)
        part = heard[begin : begin + samples]
        line[: len(part)] = part / np.sqrt(np.mean(part**2))
    return torch.tensor(found[..., None], dtype=dtype)


def folds(labels: npt.ArrayLike, count: int = 5, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the fold of each sample; each class is divided as evenly as can be.

    Raises
    ------
    ValueError
        If there are fewer than two folds, or a class has fewer samples than folds.
    """
    labels, rng = np.asarray(labels), np.random.default_rng(seed)
    fewest = np.bincount(labels).min()
    if not 2 <= count <= fewest:
        raise ValueError(f"folds: {count} given; 2 to {fewest}, the samples of the smallest class, allowed")
    found = np.zeros(len(labels), dtype=np.int64)
    for k in np.unique(labels):
        found[rng.permutation(np.flatnonzero(labels == k))] = np.arange((labels == k).sum()) % count
    return found


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
        plate = Plate(points, slow, radius=1.5, seed=seed, dtype=dtype)
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


_BATCH = 12


def _answers(model: nn.Module, x: Tensor) -> npt.NDArray[np.int64]:
    with torch.no_grad():
        return np.concatenate([model(part).argmax(1).numpy() for part in x.split(_BATCH)])


def recognise_vowels(
    vowels: Vowels,
    learner: str = "adam",
    *,
    count: int = 5,
    only: Sequence[int] | None = None,
    epochs: int = EPOCHS,
    points: int = POINTS,
    samples: int = SAMPLES,
    seed: int = 0,
    comm: MPI.Comm = MPI.COMM_WORLD,
    progress: bool = True,
    **settings: Any,
) -> Recognition:
    """Train and test on ``count`` divisions of the recordings, of which each leaves one fold out (collective).

    Ranks share the samples of each batch (:class:`~npde_fem.learn.Ensemble`).

    Parameters
    ----------
    vowels
        The recordings.
    learner
        ``"adam"`` and ``"lbfgs"`` train a :class:`Plate`; ``"pseudoinverse"`` the read-out of a :class:`PassivePlate`.
    count
        Number of folds.
    only
        Which of them to do, by number from 0; by default all.
    epochs
        Of each training.
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

    Raises
    ------
    ValueError
        If an argument is not as above.
    """
    if learner not in ("adam", "lbfgs", "pseudoinverse"):
        raise ValueError(f"vowels: learner {learner!r} given; 'adam', 'lbfgs' or 'pseudoinverse' allowed")
    chosen = list(range(count)) if only is None else list(only)
    if not chosen or not set(chosen) <= set(range(count)):
        raise ValueError(f"vowels: folds {chosen} given; numbers from 0 to {count - 1} allowed")
    fold = folds(vowels.labels, count, seed)
    x, labels = sounds(vowels, samples=samples), torch.from_numpy(vowels.labels.copy())
    ensemble = Ensemble(comm)
    trained = []
    try:
        for k in chosen:
            seen, unseen = (torch.from_numpy(np.flatnonzero(part)) for part in (fold != k, fold == k))
            known: dict[str, Any] = {"seed": seed + k, "comm": comm, "ensemble": ensemble, "progress": progress}
            data = x[seen], labels[seen]
            found: Fit
            if learner == "pseudoinverse":
                layer = PassivePlate(points, seed=seed, **settings)
                found = fit(None, data, learner=Pseudoinverse(layers=layer, standardise=True, batch=24), **known)
            else:
                plate = Plate(points, classes=len(vowels.names), seed=seed, **settings)
                how = Adam(0.1, batch=_BATCH, schedule="cosine") if learner == "adam" else LBFGS(batch=_BATCH)
                found = fit(plate, data, "cross_entropy", how, epochs=epochs, **known)
            answers = _answers(found.model, x[unseen])
            trained.append(Trained(found, confusion_of(answers, vowels.labels[unseen], len(vowels.names))))
    finally:
        ensemble.free()
    reference = PASSIVE if learner == "pseudoinverse" else HUGHES
    return Recognition("vowels", learner, "fd", vowels.names, trained, reference)


def agreement(plate: Plate, sound: Tensor, refine: int = 2, comm: MPI.Comm = MPI.COMM_WORLD) -> dict[str, Any]:
    """Return the shares of energy at the probes by three ways to solve the plate's equation (collective).

    Parameters
    ----------
    plate
        The plate.
    sound
        One sound, shape (samples, 1).
    refine
        How many times finer than the plate's own lattice FD and FEM are.
    comm
        Ranks of grid and mesh.

    Returns
    -------
    dict
        ``network``: of the plate's recurrence; ``fd``: finite differences on the plate's lattice, the same to
        round-off; ``fd fine`` and ``fem fine``: finite differences on a finer lattice, and linear elements of lumped
        mass on triangles between its points. The speed is multilinear between the plate's points.
    """
    from dolfinx import mesh as dmesh

    n = plate.lattice.shape[0]
    equation = plate.as_equation()
    cells = (n + 1) * refine
    mesh = dmesh.create_rectangle(comm, [[-1.0, -1.0], [float(n), float(n)]], [cells, cells])
    with torch.no_grad():
        known = {"network": plate(sound[None].to(plate.damping.dtype))[0].double().numpy()}
    known["fd"] = equation.solve(sound.double(), comm=comm).outputs
    known["fd fine"] = equation.solve(sound.double(), comm=comm, refine=refine, substeps=refine).outputs
    known["fem fine"] = equation.solve(sound.double(), on=mesh, substeps=refine + 1).outputs
    return {name: torch.softmax(torch.from_numpy(np.asarray(z)), -1).numpy() for name, z in known.items()}
