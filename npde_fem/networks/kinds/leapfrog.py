"""The leapfrog recurrence of the wave equation on a lattice, for torch, with its adjoint.

On points of spacing h, with coefficients k on the faces between them (and on the outer ones),

    (1 + b dt/2) u' = 2 u + dt^2 (L u + s) - (1 - b dt/2) u_before,      L u = sum_a  d_a (k d_a u) / V,

where d_a is the difference across an axis over h_a and V the volume of a point's cell in h^d. The adjoint of the
recurrence is the same one, run backwards: L is symmetric with respect to V. Forward and backward are one loop each
without torch's graph, and remember the states alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["Medium", "laplacian", "march", "strain"]


@dataclass(frozen=True)
class Medium:
    """What the recurrence knows about the lattice: all but the coefficients on the faces.

    Attributes
    ----------
    shape, spacing
        Of the lattice.
    circular
        Whether the axes are periodic; where not, the state is 0 beyond the last points (a face without coefficient
        keeps it from being felt).
    dt
        The step.
    volume
        V, of the lattice's shape.
    resistance
        b dt / 2, of the lattice's shape.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    circular: bool
    dt: float
    volume: Tensor
    resistance: Tensor

    @property
    def dim(self) -> int:
        """Space dimension."""
        return len(self.shape)

    def padded(self, *leading: int) -> Tensor:
        """Return zeros with one more layer of points on every side."""
        return self.volume.new_zeros(*leading, *(n + 2 for n in self.shape))

    def inner(self, padded: Tensor) -> Tensor:
        """View the points of a padded tensor."""
        for a, n in enumerate(self.shape):
            padded = padded.narrow(a - self.dim, 1, n)
        return padded

    def wrap(self, padded: Tensor) -> None:
        """Bring the outer layers of a padded tensor up to date."""
        if not self.circular:
            return
        for axis in range(-self.dim, 0):
            padded.select(axis, 0).copy_(padded.select(axis, -2))
            padded.select(axis, padded.shape[axis] - 1).copy_(padded.select(axis, 1))

    def across(self, padded: Tensor, axis: int, out: Tensor | None = None) -> Tensor:
        """Return the differences of a padded tensor across the faces normal to an axis."""
        lines = padded
        for a in set(range(self.dim)) - {axis}:
            lines = lines.narrow(a - self.dim, 1, self.shape[a])
        along, count = axis - self.dim, self.shape[axis] + 1
        return torch.sub(lines.narrow(along, 1, count), lines.narrow(along, 0, count), out=out)

    def add_divergence(self, flux: Tensor, axis: int, out: Tensor) -> None:
        """Add the differences of what passes the faces normal to an axis to ``out``, at the points."""
        along, count = axis - self.dim, self.shape[axis]
        out += flux.narrow(along, 1, count)
        out -= flux.narrow(along, 0, count)


def _padded(medium: Medium, u: Tensor) -> Tensor:
    """Return states with one more layer of points on every side, differentiably."""
    sides = (1, 1) * medium.dim
    if medium.circular:
        flat = u.reshape(-1, 1, *medium.shape)
        return torch.nn.functional.pad(flat, sides, mode="circular").reshape(
            *u.shape[: u.ndim - medium.dim], *(n + 2 for n in medium.shape)
        )
    return torch.nn.functional.pad(u, sides)


def laplacian(medium: Medium, faces: Sequence[Tensor], u: Tensor) -> Tensor:
    """Return ``L u`` of states ``(..., *shape)``; ``faces[a]`` are the coefficients, one more than points along a."""
    padded, total = _padded(medium, u), torch.zeros_like(u)
    for axis, (k, h) in enumerate(zip(faces, medium.spacing, strict=True)):
        flux = medium.across(padded, axis) * k / h**2
        along, count = axis - medium.dim, medium.shape[axis]
        total = total + flux.narrow(along, 1, count) - flux.narrow(along, 0, count)
    return total / medium.volume


def strain(medium: Medium, faces: Sequence[Tensor], u: Tensor, v: Tensor) -> Tensor:
    """Return ``- sum V u L v`` of states ``(..., *shape)``, shape ``(...)``."""
    return -(medium.volume * u * laplacian(medium, faces, v)).flatten(u.ndim - medium.dim).sum(-1)


class _March(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        medium: Medium,
        x: Tensor,
        sources: Tensor,
        probes: Tensor | None,
        u: Tensor,
        before: Tensor,
        *faces: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, steps, _ = x.shape
        gain, loss = 1 / (1 + medium.resistance), (1 - medium.resistance) / (1 + medium.resistance)
        weights = [k * (medium.dt / h) ** 2 for k, h in zip(faces, medium.spacing, strict=True)]
        push = (medium.dt**2 * gain).reshape(-1, 1) * sources
        twice, loose = 2 * gain, gain / medium.volume
        states = medium.padded(steps + 2, batch)
        inner = medium.inner(states)
        inner[0], inner[1] = before, u
        medium.wrap(states[0])
        medium.wrap(states[1])
        fluxes = [medium.across(states[0], axis) for axis in range(medium.dim)]
        spread = inner.new_empty(batch, *medium.shape)
        for k in range(steps):
            spread.zero_()
            for axis, (weight, flux) in enumerate(zip(weights, fluxes, strict=True)):
                medium.across(states[k + 1], axis, out=flux).mul_(weight)
                medium.add_divergence(flux, axis, spread)
            torch.mul(spread, loose, out=spread)
            spread.addcmul_(inner[k + 1], twice).addcmul_(inner[k], loss, value=-1)
            spread.view(batch, -1).addmm_(x[:, k], push.T)
            inner[k + 2] = spread
            medium.wrap(states[k + 2])
        ctx.medium, ctx.with_probes = medium, probes is not None
        ctx.save_for_backward(states, x, sources, *(() if probes is None else (probes,)), *faces)
        seen = inner[2:].flatten(2).transpose(0, 1)
        seen = seen.contiguous() if probes is None else seen @ probes.T
        return seen, inner[-1].clone(), inner[-2].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, seen: Tensor, last: Tensor, but_last: Tensor) -> tuple[Tensor | None, ...]:
        medium: Medium = ctx.medium
        states, x, sources, *rest = ctx.saved_tensors
        probes, faces = (rest[0], rest[1:]) if ctx.with_probes else (None, rest)
        batch, steps, _ = x.shape
        gain, loss = 1 / (1 + medium.resistance), (1 - medium.resistance) / (1 + medium.resistance)
        weights = [k * (medium.dt / h) ** 2 for k, h in zip(faces, medium.spacing, strict=True)]
        padded = medium.padded(batch)
        inner = medium.inner(padded)
        fluxes = [medium.across(padded, axis) for axis in range(medium.dim)]
        slopes = [torch.zeros_like(flux) for flux in fluxes]
        products = [torch.zeros_like(flux) for flux in fluxes]
        push, to_x, to_sources = inner.new_empty(inner.shape), torch.empty_like(x), torch.zeros_like(sources)
        flat = push.view(batch, -1)
        now, before = (g.clone(memory_format=torch.contiguous_format) for g in (last, but_last))
        for k in reversed(range(steps)):
            if probes is None:
                now.view(batch, -1).add_(seen[:, k])
            else:
                now.view(batch, -1).addmm_(seen[:, k], probes)
            torch.mul(now, gain, out=push)
            to_x[:, k] = flat @ sources
            to_sources.addmm_(flat.T, x[:, k])
            torch.div(push, medium.volume, out=inner)
            medium.wrap(padded)
            before.add_(push, alpha=2)
            for axis, weight in enumerate(weights):
                medium.across(padded, axis, out=fluxes[axis])
                medium.across(states[k + 1], axis, out=slopes[axis])
                products[axis].addcmul_(fluxes[axis], slopes[axis], value=-1)
                medium.add_divergence(fluxes[axis].mul_(weight), axis, before)
            now.mul_(loss).neg_()
            now, before = before, now
        to_x *= medium.dt**2
        to_sources *= medium.dt**2
        to_faces = [p.sum(0) * (medium.dt / h) ** 2 for p, h in zip(products, medium.spacing, strict=True)]
        if medium.circular:
            for axis, along in enumerate(to_faces):
                along.select(axis, -1).zero_()  # the first face once more
        return None, to_x, to_sources, None, now, before, *to_faces


def march(
    medium: Medium,
    faces: Sequence[Tensor],
    x: Tensor,
    sources: Tensor,
    probes: Tensor | None,
    u: Tensor,
    before: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take as many steps as there are inputs; return what is observed after each, and the last two states.

    Derivatives of first order with respect to ``faces``, ``x``, ``sources``, ``u`` and ``before`` are exact.

    Parameters
    ----------
    medium
        The lattice.
    faces
        Coefficients k on the faces, one tensor an axis with one more face than points along it. Of a circular lattice
        the last face is the first one: the coefficients must be equal, and the derivative is that of the first.
    x
        Inputs, shape ``(batch, T, k)``.
    sources
        The source s of a step is ``sources @ x``; shape ``(size, k)``.
    probes
        Observations are ``probes @ u``; shape ``(p, size)``. None: of all points.
    u, before
        State at the start and one step before, shape ``(batch, *shape)``.

    Returns
    -------
    tuple of Tensor
        Observations ``(batch, T, p)``, the last state and the one before it.
    """
    return _March.apply(medium, x, sources, probes, u, before, *faces)
