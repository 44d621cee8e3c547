"""Pseudoinverse learning: a network whose last layer is solved for, and whose hidden ones are not trained."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from npde_fem.discretize.semidiscrete import Array
from npde_fem.learn.pseudoinverse.features import (
    activation_of,
    encoder,
    linear,
    moments,
    random_convolutions,
    random_features,
)
from npde_fem.learn.pseudoinverse.reservoir import medium
from npde_fem.learn.pseudoinverse.ridge import Method, Readout, Ridge, checked_method, checked_ridge
from npde_fem.learn.pseudoinverse.samples import Coding, Encoded, Samples, evaluating, same_within, spaces_of
from npde_fem.learn.pseudoinverse.stream import Stream, United, as_rows
from npde_fem.parallel import alike

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

__all__ = ["Pseudoinverse", "Solved"]

Layer = Literal["random", "autoencoder", "npde"] | nn.Module | Callable[[torch.Tensor], torch.Tensor]

_NAMES = ("random", "autoencoder", "npde")
_WIDTH, _DEPTH = 1000, 10


@dataclass(frozen=True)
class Solved:
    """What pseudoinverse learning gives.

    Attributes
    ----------
    model
        The network, its last layer solved for.
    readout
        The read-out, in double precision.
    depth
        Hidden layers that were grown.
    reason
        Why no more were.
    classes
        Number of classes, None for a regression.
    seconds
        Time that it took.
    """

    model: nn.Module
    readout: Readout
    depth: int
    reason: str
    classes: int | None
    seconds: float


@dataclass(frozen=True)
class Pseudoinverse:
    """Pseudoinverse learning: the last linear layer in closed form, no iterations, no back-propagation.

        W, b = argmin ||H W + b - Y||^2 + lambda ||W||^2,    H what the layers before give,

    by orthogonal factorisation; see :func:`~npde_fem.learn.pseudoinverse.solve_readout`. Labels (integers along one
    axis) are regressed on as columns of classes, and the largest output is the class.

    Parameters
    ----------
    ridge
        lambda, or ``"gcv"``: found by generalised cross-validation. The bias is not penalised.
    method
        ``"svd"`` or ``"qr"``.
    layers
        What is before the read-out. None: the model as it is, whose last ``nn.Linear`` is solved for, and must be what
        gives its output. Otherwise there must be no model, and one is made of: ``"random"``, random features, or random
        convolutions with ``kernel``; ``"npde"``, a random reaction-diffusion medium whose initial state is the picture
        (:func:`~npde_fem.learn.pseudoinverse.medium`); ``"autoencoder"``, layers grown one by one by pseudoinverse
        autoencoders; a module, as a :class:`~npde_fem.learn.Reservoir` or a :class:`~npde_fem.learn.Layer`; a function
        of tensors; or a sequence of such, in order.
    width
        Features of ``"random"``, and of ``"npde"`` about, 1000 by default; neurons of each layer of ``"autoencoder"``,
        the rank of its input by default.
    depth
        Layers of ``"random"``, 1 by default; most layers of ``"autoencoder"``, 10 by default.
    activation
        Name or module: of ``"random"`` and ``"autoencoder"``.
    gain
        Standard deviation of what the activation is applied to.
    kernel
        Edge of random convolutions; None for none.
    standardise
        Penalise as if features had standard deviation 1.
    tolerance
        Relative training error ``||H W + b - Y|| / ||Y||`` at which no more layers are grown.
    decay
        Penalty, relative to the number of samples, of the autoencoders' decoders.
    targets
        Columns of classes: ``"signed"``, -1 and 1; ``"unit"``, 0 and 1.
    batch
        Samples whose features are computed together.
    seed
        Of random numbers; None for the seed that the caller gives.

    Raises
    ------
    TypeError, ValueError
        If one is not allowed.

    Notes
    -----
    *Growing* (Guo and Lyu 2004, Neurocomputing 56, 101) ends when the features have as many independent rows as there
    are samples, so that any target is met; when the training error is below ``tolerance``; when a further layer raises
    the score of generalised cross-validation, which then is left out; or at ``depth`` layers.

    *On several ranks* samples are distributed over ``comm``; a rank may have none. Ranks that solve a problem of the
    model together have the same samples, which count once. The features of a batch are forgotten once the triangle has
    them, so that they may be many times larger than the memory.

    Examples
    --------
    >>> solved = Pseudoinverse(layers="npde").solve(None, (pictures, labels))
    >>> solved.model(pictures).argmax(1)
    """

    ridge: Ridge = "gcv"
    method: Method = "svd"
    layers: Layer | Sequence[Layer] | None = None
    width: int | None = None
    depth: int | None = None
    activation: str | nn.Module = "tanh"
    gain: float = 1.0
    kernel: int | None = None
    standardise: bool = False
    tolerance: float = 1e-8
    decay: float = 1e-3
    targets: Encoded = "signed"
    batch: int = 512
    seed: int | None = None

    def __post_init__(self) -> None:
        checked_ridge(self.ridge)
        checked_method(self.method)
        for layer in self._stages:
            if not callable(layer) and layer not in _NAMES:
                raise ValueError(f"layers: {layer!r} given; {_NAMES}, a module or a function of tensors allowed")
        for name in ("width", "depth", "kernel", "batch"):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if (value is None and name != "batch") or (whole and value >= 1):
                continue
            raise ValueError(f"{name}: {value!r} given; a positive integer allowed")
        for name in ("gain", "tolerance", "decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name == "gain" and value == 0):
                raise ValueError(f"{name}: {value!r} given; a finite number above 0 allowed")
        activation_of(self.activation)
        if self.targets not in ("signed", "unit"):
            raise ValueError(f"targets: {self.targets!r} given; 'signed' or 'unit' allowed")

    @property
    def _stages(self) -> list[Layer]:
        if self.layers is None:
            return []
        several = isinstance(self.layers, Sequence) and not isinstance(self.layers, str)
        return list(self.layers) if several else [self.layers]  # type: ignore[arg-type, list-item]

    def solve(self, model: nn.Module | None, data: Any, *, comm: MPI.Comm | None = None, seed: int = 0) -> Solved:
        """Return the network for some data (collective on ``comm``).

        Parameters
        ----------
        model
            Whose last linear layer is solved for, in place; None where ``layers`` make one.
        data
            This rank's samples: a pair (inputs, targets), or an iterable of such batches that can be gone through
            several times.
        comm
            Ranks over which the samples are distributed; by default this rank alone has them all.
        seed
            Of random numbers unless the learner has one.

        Raises
        ------
        TypeError, ValueError
            On every rank alike: if there is no linear layer to solve for, labels are out of range, a class has no
            sample, a feature is not finite (with the sample's number on its rank), or shapes do not fit.
        """
        begun = time.perf_counter()
        comm = MPI.COMM_SELF if comm is None else comm
        with alike(comm):
            samples = Samples(data, self.batch)
            trunk = self._trunk(model)
        outputs = trunk.readout.out_features if trunk is not None else None
        coding = Coding(samples, outputs, self.targets, comm)
        if trunk is not None:
            flow = _Flow(trunk, trunk.model, samples, coding, comm)
            readout = self._readout(flow.united(bias=trunk.readout.bias is not None))
            trunk.set(readout)
            return Solved(trunk.model, readout, 0, "nothing to grow", coding.classes, time.perf_counter() - begun)
        grown = _Grown(self, samples, coding, comm, self.seed if self.seed is not None else seed)
        for stage in self._stages:
            grown.add(stage)
        found = grown.readout or self._readout(grown.flow().united())
        last = linear(found.weights, found.bias, grown.dtype).requires_grad_(True)
        whole = nn.Sequential(*grown.modules, nn.Flatten(), last)
        return Solved(whole, found, grown.depth, grown.reason, coding.classes, time.perf_counter() - begun)

    def _trunk(self, model: nn.Module | None) -> _Trunk | None:
        if self.layers is None:
            if not isinstance(model, nn.Module):
                raise TypeError(
                    f"model: {type(model).__name__} given; a torch module allowed, or layers to make one of"
                )
            return _Trunk(model)
        if model is not None:
            raise ValueError("layers and a model given; one of them allowed (a model may be one of the layers)")
        return None

    def _readout(self, united: United) -> Readout:
        return united.readout(self.ridge, self.method, standardise=self.standardise)


class _Trunk:
    """What a model does before its last linear layer."""

    def __init__(self, model: nn.Module) -> None:
        layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
        if not layers:
            raise ValueError("model: no nn.Linear in it to solve for; layers=model makes its output features of one")
        self.model, self.readout = model, layers[-1]

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        hook = self.readout.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
        try:
            output = self.model(*inputs)
        finally:
            hook.remove()
        if len(seen) != 1 or output is not seen[0][1]:
            raise ValueError(
                "model: its output is not that of its last nn.Linear, used once; models that end with it allowed, "
                "without softmax or the like behind"
            )
        return seen[0][0]

    @torch.no_grad()
    def set(self, readout: Readout) -> None:
        """Give the linear layer its weights."""
        self.readout.weight.copy_(torch.from_numpy(np.ascontiguousarray(readout.weights.T)))
        if self.readout.bias is not None:
            self.readout.bias.copy_(torch.from_numpy(readout.bias))


class _Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it."""
        return self.function(x)


class _Flow:
    """Samples on their way through some layers, as often as they are wanted."""

    def __init__(
        self,
        through: Callable[..., torch.Tensor],
        module: nn.Module,
        samples: Samples,
        coding: Coding | None,
        comm: MPI.Comm,
    ) -> None:
        self._through, self._module, self._samples, self._coding, self.comm = through, module, samples, coding, comm
        self._spaces = spaces_of(module)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        """Yield features and coded targets of the samples that count on this rank, batch by batch."""
        first = 0
        with evaluating(self._module):
            for inputs, targets in self._samples:
                if not len(targets):
                    continue
                x = as_rows("features", self._through(*inputs), first)
                y = as_rows("targets", targets, first) if self._coding is None else self._coding(targets, first)
                first += len(targets)
                if same_within(x, self._spaces):
                    yield x, y

    def features(self) -> Iterator[Array]:
        """Yield features only."""
        return (x for x, _ in self)

    def united(self, bias: bool = True) -> United:
        """Return the triangle of ``[1 H Y]``, the last axis of features and targets being that of columns."""
        stream = Stream(bias)
        with alike(self.comm):
            for x, y in self:
                stream.add(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))
        return stream.united(self.comm)


class _Grown:
    """Hidden layers that are made one after the other."""

    def __init__(self, learner: Pseudoinverse, samples: Samples, coding: Coding, comm: MPI.Comm, seed: int) -> None:
        self._learner, self._samples, self._coding, self._comm = learner, samples, coding, comm
        self._rng = np.random.default_rng(seed)
        self.modules: list[nn.Module] = []
        self.depth, self.reason = 0, "all layers made"
        self.readout: Readout | None = None
        self.dtype = self._first(lambda inputs: inputs[0].dtype)

    def _first(self, look: Callable[[tuple[torch.Tensor, ...]], Any]) -> Any:
        """Return what is seen of the first batch of the first rank that has samples (collective)."""
        found = None
        with alike(self._comm):
            for inputs, targets in self._samples:
                if len(inputs) > 1:
                    raise ValueError(f"data: {len(inputs)} inputs given; layers made one after the other take one")
                if len(targets):
                    found = look(inputs)
                    break
        known = [one for one in self._comm.allgather(found) if one is not None]
        if not known:
            raise ValueError("data: no samples given on any rank; at least one is needed")
        return known[0]

    def flow(self) -> _Flow:
        """Return the samples behind the layers that there are, flat."""
        through = nn.Sequential(*self.modules, nn.Flatten())
        return _Flow(through, through, self._samples, self._coding, self._comm)

    def _shape(self) -> tuple[int, ...]:
        """Return the shape of one sample behind the layers that there are (collective)."""
        through = nn.Sequential(*self.modules)
        with evaluating(through):
            return self._first(lambda inputs: tuple(through(inputs[0][:1]).shape[1:]))

    def add(self, stage: Layer) -> None:
        """Make a layer, or several (collective)."""
        self.readout = None
        if stage == "autoencoder":
            self._grow()
        elif stage == "random":
            for _ in range(self._learner.depth or 1):
                self.modules += self._random()
                self.depth += 1
        else:
            if stage == "npde":
                stage = self._medium()
            assert callable(stage)
            self.modules.append(stage if isinstance(stage, nn.Module) else _Apply(stage))
            self.depth += 1

    def _random(self) -> list[nn.Module]:
        by, known = self._learner, moments(self.flow().features(), self._comm)
        width = by.width or _WIDTH
        if by.kernel is None:
            return random_features(known, width, by.activation, by.gain, self._rng, self.dtype)
        return random_convolutions(
            known, self._shape(), width, by.kernel, by.activation, by.gain, self._rng, self.dtype
        )

    def _medium(self) -> nn.Module:
        known, shape = moments(self.flow().features(), self._comm), self._shape()
        pixels = shape[1:] if len(shape) > 1 and shape[0] == 1 else shape
        with alike(self._comm):
            if not known.low < known.high:
                raise ValueError("data: pictures that are all alike given; a medium needs some that differ")
            media = math.ceil((self._learner.width or _WIDTH) / math.prod(pixels))
            seed = int(self._rng.integers(2**31))
            return medium(pixels, media=media, low=known.low, high=known.high, seed=seed)

    def _grow(self) -> None:
        """Add layers of pseudoinverse autoencoders until one more is of no use."""
        by = self._learner
        self.modules.append(nn.Flatten())
        for depth in range((by.depth or _DEPTH) + 1):
            united = self.flow().united()
            readout = by._readout(united)
            # a score that is infinite says that the targets are met, as Guo and Lyu want it
            if self.readout is not None and self.readout.score <= readout.score < math.inf:
                del self.modules[-2:]
                self.depth -= 1
                self.reason = f"layer {depth} raised the score from {self.readout.score:.4g} to {readout.score:.4g}"
                return
            self.readout = readout
            if readout.rank + 1 >= readout.samples:
                self.reason = (
                    f"features of rank {readout.rank} and a bias meet any targets of {readout.samples} samples"
                )
                return
            if readout.residual <= by.tolerance:
                self.reason = f"relative error {readout.residual:.2g} is within the tolerance"
                return
            if depth == (by.depth or _DEPTH):
                self.reason = f"depth {depth} reached"
                return
            self.modules += encoder(
                united,
                self.flow().features,
                by.width,
                by.activation,
                by.gain,
                by.decay,
                self._rng,
                self.dtype,
                self._comm,
            )
            self.depth += 1
