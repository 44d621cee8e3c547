"""Which steps of a network are stable, and steps that are so by construction.

A step ``W = E + dt L`` multiplies the wave exp(i theta . x / h) by its symbol, a matrix of channels,
``W^(theta) = sum_o K_o exp(i theta . o)``. On a circular lattice its spectral norm, at the lattice's wavenumbers, is
the norm of the step; with zeros beyond the lattice it bounds it, as the step is then a part of the one on an infinite
lattice.

**Stable by construction.** :class:`StableTransport` writes

    L u = div(D grad u - c u) + (S - P) u,    D, P positive semidefinite, c_a symmetric, S skew,

so that diffusion and decay dissipate, and drift and rotation between channels keep, the norm. The explicit step is an
average, with weights w that sum to 1, of steps that do each one of these things 1 / w times as fast:

* diffusion and decay ``1 + dt/w (D_h - P)``, where D_h is the difference operator: a contraction if
  ``dt/2 ||q sum_a D_aa / h_a^2 + P|| <= w``, with q = 4, 4, 4.5 in 1, 2, 3 dimensions, as
  ``-D_h <= q sum_a D_aa / h_a^2`` at every wavenumber;
* drift along axis a, by the scheme of Lax and Wendroff (1960, Comm. Pure Appl. Math. 13), which adds the diffusion
  ``dt c_a^2 / (2 w)``: if ``dt ||c_a|| / h_a <= w``;
* rotation ``1 + dt/w S - (dt/w)^2 S^T S``: if ``dt ||S|| <= w``.

An average of contractions is one. The weights are taken in proportion to these numbers, and the step is

    min(dt, 0.95 limit),    1 / limit = ||q sum_a D_aa / h_a^2 + P|| / 2 + sum_a ||c_a|| / h_a + ||S||.

This limit, which costs the norms of a few C x C matrices, is exact for diffusion along the axes and for drift along one
axis. It is conservative where several things happen at once.
"""

from __future__ import annotations

from typing import Any

from npde_fem.networks.coefficients import Coefficients
from npde_fem.networks.kinds.transport import Parts, Transport
from npde_fem.networks.lattice import Lattice

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["StableTransport", "amplification", "check_step", "stable_dt", "symbols"]

Array = npt.NDArray[np.float64]

_SAFETY = 0.95
_DIFFUSION_BOUND = {1: 4.0, 2: 4.0, 3: 4.5}
_ROUND_OFF = 1e-10
_LEAST = 1e-8
"""Where drift or rotation vanish: they keep a weight, by which is divided."""


def symbols(kernel: Array, lattice: Lattice) -> tuple[Array, npt.NDArray[np.complex128]]:
    """Return a kernel's symbol at wavenumbers of a lattice.

    Parameters
    ----------
    kernel
        Shape ``(C_out, C_in, *size)``.
    lattice
        The points. The wavenumbers of a circular one are its own; those of others lie twice as dense.

    Returns
    -------
    angles, values
        Wavenumber times spacing, shape ``(n, d)``, half of all as the rest is conjugate; matrices
        ``(n, C_out, C_in)``.
    """
    d = lattice.dim
    shape = lattice.shape if lattice.boundary == "circular" else tuple(2 * n for n in lattice.shape)
    axes = [2 * np.pi * np.fft.fftfreq(n) for n in shape[:-1]] + [2 * np.pi * np.fft.rfftfreq(shape[-1])]
    values: Any = np.asarray(kernel, dtype=np.complex128)
    for angles in axes:  # one axis of the kernel after the other becomes an axis of wavenumbers, the last one
        n = values.shape[2]
        values = np.tensordot(values, np.exp(1j * np.outer(np.arange(n) - n // 2, angles)), ([2], [0]))
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, d)
    return points, np.moveaxis(values.reshape(*values.shape[:2], -1), -1, 0)


def amplification(transport: Transport) -> float:
    """Return ``max ||W^||_2`` over the wavenumbers: by how much a step can make a state's norm grow, without source."""
    _, values = symbols(transport.coefficients().kernel(), transport.lattice)
    return float(np.linalg.svd(values, compute_uv=False)[:, 0].max())


def _modes(coefficients: Coefficients, lattice: Lattice) -> tuple[Array, npt.NDArray[np.complex128]]:
    """Wavenumbers, and the eigenvalues of L at them."""
    n_in, n_out = coefficients.channels
    if n_in != n_out:
        raise ValueError(f"stability: as many channels out as in allowed, {n_in} in and {n_out} out given")
    angles, values = symbols(coefficients.kernel(), lattice)
    rates = (np.linalg.eigvals(values) - 1.0) / coefficients.dt
    return angles, rates


def _limits(rates: npt.NDArray[np.complex128], dt: float) -> Array:
    """Return for each eigenvalue of L the longest explicit step that lets it grow no faster than the equation does.

    |1 + s dt| <= max(1, exp(Re s dt)): -2 Re s / |s|^2 for what decays; any for growth that is not slower than the
    oscillation it comes with; none for other oscillations.
    """
    decay, size = -rates.real, np.abs(rates)
    still = size * dt < _ROUND_OFF
    decays = decay > _ROUND_OFF * size
    grows = (-decay >= np.abs(rates.imag)) & ~decays
    limits = np.zeros(rates.shape)
    np.divide(2 * decay, size**2, out=limits, where=decays & ~still)
    limits[still | grows] = np.inf
    return limits


def stable_dt(coefficients: Coefficients, lattice: Lattice) -> float:
    """Return the longest explicit step that is stable on a lattice, after von Neumann: infinite if all are, 0 if none.

    Stable is what lets no wave grow faster than the equation itself does, by the eigenvalues of L at the lattice's
    wavenumbers. Drift without diffusion, by central differences, never is.
    """
    return float(_limits(_modes(coefficients, lattice)[1], coefficients.dt).min())


def check_step(coefficients: Coefficients, lattice: Lattice, label: str = "step") -> None:
    """Raise ValueError if an explicit step of ``coefficients.dt`` on a lattice is unstable; see :func:`stable_dt`."""
    angles, rates = _modes(coefficients, lattice)
    dt = coefficients.dt
    limits = _limits(rates, dt)
    limit = float(limits.min())
    if dt <= limit * (1 + _ROUND_OFF):
        return
    factors = np.where(dt > limits, np.abs(1 + dt * rates), 0.0)
    worst = int(factors.max(axis=1).argmax())
    wave = ", ".join(f"{k:.4g}" for k in angles[worst] / np.array(lattice.spacing))
    remedy = f"dt <= {limit:.4g}" if limit > 0 else "no dt is stable without diffusion: more diffusion"
    raise ValueError(
        f"unstable step: {label} amplifies wavenumber ({wave}) by {factors[worst].max():.4g} with dt = {dt:.4g}; "
        f"{remedy}, or stable=True"
    )


class StableTransport(Transport):
    """A step that is stable by construction: the difference of two states never grows; see the module's text.

    As many channels go out as in, there is no remainder, and the boundary is zeros or circular (through the others the
    sum of squares can grow). Parameters, in spacings and steps as those of :class:`Transport`:

    * ``diffusion``, shape ``(C d, C d)``: the matrix A of ``D = A A^T``, rows and columns (channel, axis),
    * ``mass``, shape ``(2, C, C)``: B and R of ``P = B B^T`` and ``S = (R - R^T) / 2``,
    * ``drift``, shape ``(C, C, d)``, whose symmetric part is c,
    * ``source``, shape ``(C,)``.

    :meth:`coefficients` are those of the step that is taken, with the diffusion that stabilises drift, and
    the shorter dt where dt is above its limit.

    Parameters
    ----------
    lattice, in_channels, out_channels, dt, options
        As of :class:`Transport`. The start is that of a random convolution: its symmetric and skew
        parts, and the square roots of the absolute values of its diffusion and decay.

    Raises
    ------
    ValueError
        If the channels differ, the boundary is none of those allowed, or a remainder or wider kernel is asked for.
    """

    def __init__(
        self, lattice: Lattice, in_channels: int, out_channels: int, *, dt: float = 1.0, stride: int = 1, **options: Any
    ) -> None:
        if in_channels != out_channels:
            raise ValueError(
                f"stable=True: {in_channels} channels in and {out_channels} out; as many out as in allowed"
            )
        if lattice.boundary not in ("zeros", "circular"):
            raise ValueError(f"stable=True: boundary {lattice.boundary!r} given; zeros and circular allowed")
        if options.pop("remainder", False) or options.pop("size", (3,) * lattice.dim) != (3,) * lattice.dim:
            raise ValueError("stable=True: a step without remainder, 3 points wide, allowed")
        super().__init__(lattice, in_channels, out_channels, dt=dt, stride=stride, remainder=False, **options)
        with torch.no_grad():
            mass, drift, diffusion = (p.double() for p in super().parts()[:3])
            values = self._roots(mass, drift, _blocks(diffusion), sign=True)
        for name, value in zip(("mass", "drift", "diffusion"), values, strict=True):
            setattr(self, name, torch.nn.Parameter(value.to(self.source)))

    @staticmethod
    def _roots(
        mass: torch.Tensor, drift: torch.Tensor, blocks: torch.Tensor, *, sign: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what the parameters are for mass, drift and blocks of diffusion; with ``sign`` by absolute values."""
        rotation = mass - mass.T
        decay = _root(-0.5 * (mass + mass.T), sign)
        return torch.stack([decay, 0.5 * (rotation - rotation.T)]), drift, _root(0.5 * (blocks + blocks.T), sign)

    @torch.no_grad()
    def assign(self, coefficients: Coefficients) -> None:
        """Give the parameters the values of coefficients.

        Raises
        ------
        ValueError
            If these have growth, a rest, drift that is not symmetric, or diffusion that is not positive semidefinite.
        """
        h = torch.tensor(self.unit, dtype=torch.float64)
        mass, drift, diffusion = (
            torch.from_numpy(self.dt * p) for p in (coefficients.mass, coefficients.drift, coefficients.diffusion)
        )
        drift, blocks = drift / h, _blocks(diffusion / torch.outer(h, h))
        refused = {
            "a rest": coefficients.has_rest,
            "drift that is not symmetric in its channels": not _symmetric(drift.permute(2, 0, 1)),
            "diffusion that is not positive semidefinite": not _symmetric(blocks) or _negative(blocks),
            "a mass that lets the state grow": _negative(-(mass + mass.T)),
        }
        for what, found in refused.items():
            if found:
                raise ValueError(f"stable=True: the coefficients have {what}")
        values = self._roots(mass, drift, blocks, sign=False)
        for name, value in zip(("mass", "drift", "diffusion"), values, strict=True):
            getattr(self, name).copy_(value)
        self.source.copy_(torch.from_numpy(self.dt * coefficients.source))

    def _terms(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return P, S, c ``(C, C, d)`` and D ``(C, C, d, d)`` in spacings and steps of dt."""
        decay, rotation = self.mass[0] @ self.mass[0].T, 0.5 * (self.mass[1] - self.mass[1].T)
        drift = 0.5 * (self.drift + self.drift.transpose(0, 1))
        c, d = self.in_channels, self.lattice.dim
        blocks = (self.diffusion @ self.diffusion.T).view(c, d, c, d).permute(0, 2, 1, 3)
        diffusion = 0.5 * (blocks + blocks.mT)
        ratios = self._ratios()
        if ratios is not None:
            drift, diffusion = drift * ratios, diffusion * torch.outer(ratios, ratios)
        return decay, rotation, drift, diffusion

    def _speeds(self) -> torch.Tensor:
        """Return dt times what the limit is made of: diffusion with decay, drift along each axis, and rotation."""
        decay, rotation, drift, diffusion = self._terms()
        bound = _DIFFUSION_BOUND[self.lattice.dim] * torch.diagonal(diffusion, dim1=2, dim2=3).sum(-1) + decay
        norms = torch.linalg.matrix_norm(torch.cat([bound[None] / 2, drift.permute(2, 0, 1), rotation[None]]), ord=2)
        return torch.clamp(norms, min=_LEAST)

    def _fraction(self, speeds: torch.Tensor) -> torch.Tensor:
        """Return the step that is taken in units of dt."""
        return torch.clamp(_SAFETY / speeds.sum(), max=1.0)

    def step(self) -> torch.Tensor | float:
        """Return the length of the step that is taken, min(dt, 0.95 limit), differentiable."""
        return self.dt * self._fraction(self._speeds())

    def parts(self) -> Parts:
        """Return the coefficients of the step that is taken, in units of the lattice's spacing and of :meth:`step`."""
        decay, rotation, drift, diffusion = self._terms()
        speeds = self._speeds()
        s, weights = self._fraction(speeds), speeds / speeds.sum()
        d = self.lattice.dim
        along = drift.permute(2, 0, 1)
        upwind = torch.diag_embed((along @ along / (2 * weights[1 : 1 + d, None, None])).permute(1, 2, 0))
        mass = s * (rotation - decay) - s**2 / weights[-1] * rotation.T @ rotation
        return Parts(mass, s * drift, s * diffusion + s**2 * upwind, self._rest(), s * self.source)


def _blocks(diffusion: torch.Tensor) -> torch.Tensor:
    """Return the matrix (channel, axis) x (channel, axis) of diffusion tensors ``(C, C, d, d)``."""
    c, d = diffusion.shape[0], diffusion.shape[2]
    return diffusion.permute(0, 2, 1, 3).reshape(c * d, c * d)


def _root(matrix: torch.Tensor, sign: bool) -> torch.Tensor:
    """Return A with A A^T = matrix, symmetric; of its absolute value with ``sign``, else of its positive part."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * (values.abs() if sign else values.clamp(min=0)).sqrt() @ vectors.T


def _symmetric(matrices: torch.Tensor) -> bool:
    return bool((matrices - matrices.mT).abs().max() <= _ROUND_OFF * matrices.abs().max())


def _negative(matrix: torch.Tensor) -> bool:
    values = torch.linalg.eigvalsh(0.5 * (matrix + matrix.T))
    return bool(values[0] < -_ROUND_OFF * values.abs().max())
