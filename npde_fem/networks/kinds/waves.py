"""The wave network: a recurrent network that is the wave equation, its hidden state two steps of a wave."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Literal

from npde_fem.networks.kinds.interpolation import check_count, checked_points, interpolation, lattice_of
from npde_fem.networks.kinds.leapfrog import Medium, laplacian, march, strain
from npde_fem.networks.network import Network

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

if TYPE_CHECKING:
    from npde_fem.networks.kinds.driven import DrivenWave

__all__ = ["StockWave", "WaveNetwork", "wave_rnn"]

Readout = Literal["last", "all"]

_SAFETY = 0.9


class WaveNetwork(Network):
    """A recurrent network that is ``u_tt + b u_t = div(c(x)^2 grad u) + s``, by leapfrog; see :func:`wave_rnn`.

    Attributes
    ----------
    lattice
        The neurons' places.
    dt
        The step.
    raw_speed
        What is trained: ``c = softplus(raw_speed)``, or ``fastest * sigmoid(raw_speed)``; shape of the lattice.
    sources
        The source s of a step is ``sources @ x``; shape (size, inputs). A parameter, a buffer if positions are given.
    probes
        Interpolation to the probes, shape (probes, size); None if all points are observed.
    damping
        b at the points.
    readout
        Linear layer behind the observations, or None.
    """

    raw_speed: nn.Parameter
    sources: Tensor
    probes: Tensor | None
    damping: Tensor

    def __init__(
        self,
        grid: Any,
        inputs: int,
        outputs: int | None = None,
        *,
        speed: Any = 1.0,
        fastest: float | None = None,
        damping: Any = 0.0,
        dt: float | None = None,
        boundary: str | None = None,
        sources: Any = None,
        probes: Any = None,
        intensity: bool = False,
        observe: Readout = "all",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dtype = torch.get_default_dtype() if dtype is None else dtype
        self.lattice = lattice_of("wave_rnn", grid, boundary)
        check_count("wave_rnn: inputs", inputs)
        if outputs is not None:
            check_count("wave_rnn: outputs", outputs)
        self.inputs, self.intensity, self.observe = inputs, intensity, observe
        if observe not in ("last", "all"):
            raise ValueError(f"wave_rnn: observe {observe!r} given; 'last' or 'all' allowed")
        if intensity and observe == "last":
            raise ValueError("wave_rnn: an intensity is a sum over all steps; observe='all' allowed")
        self.fastest = None if fastest is None else _positive("fastest", fastest)
        c = self._field("speed", speed)
        if c.min() <= 0 or (self.fastest is not None and c.max() >= self.fastest):
            allowed = "above 0" if fastest is None else f"between 0 and fastest = {fastest:g}, without these,"
            raise ValueError(f"wave_rnn: speed from {c.min():g} to {c.max():g} given; values {allowed} allowed")
        b = self._field("damping", damping)
        if b.min() < 0:
            raise ValueError(f"wave_rnn: damping down to {b.min():g} given; 0 or more allowed")
        raw = c + np.log(-np.expm1(-c)) if self.fastest is None else np.log(c) - np.log(self.fastest - c)
        self.raw_speed = nn.Parameter(torch.tensor(raw, dtype=dtype))
        self.register_buffer("damping", torch.tensor(b, dtype=dtype))
        self.dt = 1.0 if dt is None else _positive("dt", dt)
        if dt is None:
            self.dt = _SAFETY * self.stable_step()
        self._check_step()
        self._place(sources, probes, dtype)
        observed = self.lattice.size if self.probes is None else len(self.probes)
        self.readout = None if outputs is None else nn.Linear(observed, outputs, dtype=dtype)

    def _field(self, name: str, value: Any) -> np.ndarray:
        found = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)
        if found.shape not in {(), self.lattice.shape} or not np.all(np.isfinite(found)):
            raise ValueError(
                f"wave_rnn: {name} of shape {found.shape} given; a finite number, or one for each point of "
                f"{self.lattice.shape}, allowed"
            )
        return np.broadcast_to(found, self.lattice.shape)

    def _place(self, sources: Any, probes: Any, dtype: torch.dtype) -> None:
        lattice, inputs = self.lattice, self.inputs
        if sources is None:
            bound = 1 / math.sqrt(inputs)
            self.sources = nn.Parameter(torch.empty(lattice.size, inputs, dtype=dtype).uniform_(-bound, bound))
        else:
            at = checked_points("wave_rnn sources", sources, lattice)
            if len(at) != inputs:
                raise ValueError(f"wave_rnn: {len(at)} sources given; one for each of {inputs} inputs allowed")
            weights = interpolation(lattice, at, "replicate").toarray().T
            self.register_buffer("sources", torch.tensor(weights, dtype=dtype))
        self.register_buffer("probes", None)
        if probes is not None:
            at = checked_points("wave_rnn probes", probes, lattice)
            self.probes = torch.tensor(interpolation(lattice, at, "replicate").toarray(), dtype=dtype)

    @property
    def speed(self) -> Tensor:
        """c at the points, positive."""
        if self.fastest is None:
            return nn.functional.softplus(self.raw_speed)
        return self.fastest * torch.sigmoid(self.raw_speed)

    def _lengths(self) -> list[Tensor]:
        """Length of a point's cell along each axis, in spacings: halved at ends at which the state is mirrored."""
        found = []
        for axis, n in enumerate(self.lattice.shape):
            length = self.damping.new_ones(n)
            if self.lattice.boundary == "reflect":
                length[[0, -1]] = 0.5
            found.append(length.reshape(*(-1 if a == axis else 1 for a in range(self.lattice.dim))))
        return found

    @property
    def medium(self) -> Medium:
        """What the recurrence knows besides the coefficients on the faces."""
        lattice = self.lattice
        volume = math.prod(self._lengths(), start=torch.ones_like(self.damping))
        circular = lattice.boundary == "circular"
        return Medium(lattice.shape, lattice.spacing, circular, self.dt, volume, self.damping * (self.dt / 2))

    def faces(self) -> list[Tensor]:
        """Return c^2 on the faces across each axis, times their area: the square of the mean speed of both sides.

        Where nothing passes the boundary it is 0; else the speed beyond is that of the last point.
        """
        c, lattice, lengths, found = self.speed, self.lattice, self._lengths(), []
        mode = "circular" if lattice.boundary == "circular" else "replicate"
        for axis, n in enumerate(lattice.shape):
            lines = c.movedim(axis, -1)
            longer = pad(lines.reshape(1, -1, n), (1, 1), mode=mode).reshape(*lines.shape[:-1], n + 2)
            k = (0.5 * (longer[..., 1:] + longer[..., :-1])) ** 2
            if lattice.boundary in ("replicate", "reflect"):
                k = pad(k[..., 1:-1], (1, 1))
            area = math.prod(length for a, length in enumerate(lengths) if a != axis)
            found.append(k.movedim(-1, axis) * area)
        return found

    def stable_step(self) -> float:
        """Return a step up to which leapfrog is stable at the present speed, or at ``fastest`` if that is given.

        It is ``2 / sqrt(l)``, with l the largest sum of absolute values in a row of L (Gershgorin), which is not below
        the largest eigenvalue, and equal to it, but for the boundary, where the speed is constant.
        """
        if self.fastest is not None:
            return 2 / math.sqrt(sum(4 * self.fastest**2 / h**2 for h in self.lattice.spacing))
        with torch.no_grad():
            volume = self.medium.volume
            total = torch.zeros_like(volume)
            for axis, (k, h) in enumerate(zip(self.faces(), self.lattice.spacing, strict=True)):
                n = self.lattice.shape[axis]
                total += 2 / h**2 * (k.narrow(axis, 0, n) + k.narrow(axis, 1, n))
            return 2 / math.sqrt(float((total / volume).max()))

    def _check_step(self) -> None:
        limit = self.stable_step()
        if self.dt > limit * (1 + 1e-6):
            fastest = self.fastest or float(self.speed.detach().max())
            raise ValueError(
                f"wave_rnn: dt = {self.dt:g} is above the stability limit {limit:.6g} of leapfrog for a speed up to "
                f"{fastest:.4g}; take a smaller step, or bound the speed by fastest"
            )

    def energy(self, u: Tensor, before: Tensor) -> Tensor:
        """Return the energy of two successive states ``(..., *shape)``, shape ``(...)``.

            E = h^d sum_x V (|u - u_before|^2 / dt^2 - u L u_before) / 2

        is what leapfrog conserves without damping and source: the difference of two successive ones is
        ``<u'' - L u, u_after - u_before> / 2`` = 0. It is positive for stable steps.
        """
        medium = self.medium
        motion = (medium.volume * ((u - before) / self.dt) ** 2).flatten(u.ndim - medium.dim).sum(-1)
        return 0.5 * math.prod(self.lattice.spacing) * (motion + strain(medium, self.faces(), u, before))

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None, *, states: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the outputs for inputs ``(batch, T, inputs)``; with ``states`` also the states.

        Parameters
        ----------
        x
            One input a step.
        state
            The state at the start and one step before it, each ``(batch, *shape)``; at rest by default.
        states
            Whether to return the states after all steps too, shape ``(batch, T, *shape)``.

        Returns
        -------
        Tensor
            Signals ``(batch, T, p)`` at the p probes, ``(batch, p)`` the last ones or the intensities; with a readout
            its outputs instead of p.

        Raises
        ------
        ValueError
            If the shape of the inputs or the state is wrong, or the step is unstable for the present speed.
        """
        self._check_step()
        u, before = self._started(x, state)
        last_only = self.observe == "last"
        watched = self.sources.new_zeros(0, self.lattice.size) if last_only else self.probes
        seen, last, _ = march(self.medium, self.faces(), x, self.sources, None if states else watched, u, before)
        signals = last.flatten(1)[:, None] if last_only else seen
        if self.probes is not None and (states or last_only):
            signals = signals @ self.probes.T
        out = self.read(signals)
        return (out, seen.unflatten(-1, self.lattice.shape)) if states else out

    def read(self, signals: Tensor) -> Tensor:
        """Return the outputs that signals ``(batch, T, p)`` at the probes mean."""
        if self.observe == "last":
            signals = signals[:, -1]
        elif self.intensity:
            signals = self.dt * signals.square().sum(1)
        return signals if self.readout is None else self.readout(signals)

    def _started(self, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        if x.ndim != 3 or x.shape[2] != self.inputs or not x.shape[1]:
            raise ValueError(
                f"wave_rnn: inputs of shape {tuple(x.shape)} given; (batch, steps, {self.inputs}) allowed, at least "
                "one step"
            )
        shape = (x.shape[0], *self.lattice.shape)
        if state is None:
            return x.new_zeros(shape), x.new_zeros(shape)
        if not isinstance(state, tuple | list) or len(state) != 2 or any(tuple(u.shape) != shape for u in state):
            given = [tuple(u.shape) for u in state] if isinstance(state, tuple | list) else state
            raise ValueError(
                f"wave_rnn: state {given} given; a pair of states of shape {shape}, the later one first, allowed"
            )
        return state[0], state[1]

    def as_torch(self) -> StockWave:
        """Return the same network as a recurrence of ``nn.Linear`` layers, with copies of the weights."""
        with torch.no_grad():
            medium, n = self.medium, self.lattice.size
            eye = torch.eye(n, dtype=self.damping.dtype, device=self.damping.device)
            rows = laplacian(medium, self.faces(), eye.unflatten(1, self.lattice.shape)).flatten(1)
            gain = 1 / (1 + medium.resistance.flatten())
            step = gain[:, None] * (2 * eye + self.dt**2 * rows.T)
            back = torch.diag(gain * (1 - medium.resistance.flatten()))
            push = self.dt**2 * gain[:, None] * self.sources
            return StockWave(step, -back, push, self)

    def as_equation(self) -> DrivenWave:
        """Return the wave equation that the network solves, driven by inputs; see :class:`DrivenWave`."""
        from npde_fem.networks.kinds.driven import DrivenWave

        return DrivenWave(self)


class StockWave(nn.Module):
    """The wave network made of ``nn.Linear`` layers: ``u' = step(u) + back(u_before) + push(x)``.

    Outputs, inputs and states are those of :class:`WaveNetwork`.
    """

    def __init__(self, step: Tensor, back: Tensor, push: Tensor, network: WaveNetwork) -> None:
        super().__init__()
        self.step, self.back, self.push = (_linear(weight) for weight in (step, back, push))
        self.probe = nn.Identity() if network.probes is None else _linear(network.probes)
        self.readout = nn.Identity() if network.readout is None else copy.deepcopy(network.readout)
        self.intensity, self.observe, self.dt = network.intensity, network.observe, network.dt

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Tensor:
        n = self.step.in_features
        u, before = (x.new_zeros(len(x), n),) * 2 if state is None else (s.flatten(1) for s in state)
        signals = []
        for push in self.push(x).unbind(1):
            u, before = self.step(u) + self.back(before) + push, u
            signals.append(self.probe(u))
        if self.observe == "last":
            return self.readout(signals[-1])
        seen = torch.stack(signals, 1)
        return self.readout(self.dt * seen.square().sum(1) if self.intensity else seen)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"wave_rnn: {name} = {value!r} given; a positive finite number allowed")
    return float(value)


def wave_rnn(
    grid: Any,
    inputs: int,
    outputs: int | None = None,
    *,
    speed: Any = 1.0,
    fastest: float | None = None,
    damping: Any = 0.0,
    dt: float | None = None,
    boundary: str | None = None,
    sources: Any = None,
    probes: Any = None,
    intensity: bool = False,
    observe: Readout = "all",
    dtype: torch.dtype | None = None,
) -> WaveNetwork:
    """Return a recurrent network that is the wave equation, of second order in time.

    ``u_tt + b u_t = div(c(x)^2 grad u) + sum_j U_j(x) x_j(t)`` on a lattice, by leapfrog, with u from step to step as
    hidden state: Hughes et al. 2019, Sci. Adv. 5, eaay6946, eq. 4 to 8. What is trained is the speed c(x), besides the
    sources U, if no positions are given, and the readout. Without damping a discrete energy is conserved
    (:meth:`WaveNetwork.energy`), so that gradients neither vanish nor explode.

    Parameters
    ----------
    grid
        :class:`~npde_fem.networks.Lattice`, or the shape of one with spacing 1; 1 to 3 dimensions.
    inputs
        Numbers that enter at a step.
    outputs
        Outputs of a linear readout of what is observed; None: the observations are the outputs.
    speed
        c at the start: a positive number, or one for each point.
    fastest
        Bound of the speed, which no training exceeds: the step stays stable.
    damping
        b, 0 or more: a number, or one for each point, such as an absorbing layer at the sides.
    dt
        Step; 0.9 of the stability limit for the speed at the start, or for ``fastest``, by default.
    boundary
        Of the lattice if ``grid`` is a shape: ``"zeros"`` (hard ends, the default), ``"replicate"`` or ``"reflect"``
        (free ends), ``"circular"``.
    sources
        Positions ``(inputs, d)`` at which the inputs enter, spread multilinearly over the points around; by default
        all points are sources, with weights that are trained.
    probes
        Positions ``(p, d)`` at which the wave is observed, likewise; by default at all points.
    intensity
        Whether ``dt sum u^2`` at each probe is observed instead of the signal.
    observe
        ``"all"`` steps or the ``"last"`` one.
    dtype
        torch's default by default.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be, a position lies outside, or dt is above the stability limit.
    """
    return WaveNetwork(
        grid,
        inputs,
        outputs,
        speed=speed,
        fastest=fastest,
        damping=damping,
        dt=dt,
        boundary=boundary,
        sources=sources,
        probes=probes,
        intensity=intensity,
        observe=observe,
        dtype=dtype,
    )
