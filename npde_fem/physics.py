"""The named equations (THEORY.md, section 1), each a few lines on :class:`~npde_fem.equation.NPDE`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npde_fem.equation import NPDE, call
from npde_fem.parameter import ComplexParameter
from npde_fem.pml import PML

import numpy as np
import ufl

__all__ = [
    "allen_cahn",
    "cahn_hilliard",
    "diffusion_reaction",
    "fisher_kpp",
    "fitzhugh_nagumo",
    "glioma",
    "gray_scott",
    "heat",
    "helmholtz",
    "open_wave",
    "paraxial",
    "poisson",
    "porous_fisher",
    "reaction_diffusion",
    "relaxed_schrodinger",
    "schrodinger",
    "schrodinger_energy",
    "telegraph",
    "wave",
]

Coefficient = Any
"""A number, matrix, :class:`~npde_fem.Parameter`, or callable ``(x, t)`` in UFL."""


def _at(coefficient: Coefficient, x: Any, t: Any) -> Any:
    if callable(coefficient) and not isinstance(coefficient, ufl.core.expr.Expr):
        coefficient = call("coefficient", coefficient, (x, t))
    return coefficient.expression if isinstance(coefficient, ComplexParameter) else coefficient


def _scalar(name: str, coefficient: Coefficient, x: Any, t: Any) -> Any:
    value = _at(coefficient, x, t)
    shape = value.ufl_shape if isinstance(value, ufl.core.expr.Expr) else np.shape(value)
    if shape != ():
        raise ValueError(f"{name} has shape {shape}; a scalar allowed")
    return value


def _diffuse(diffusion: Any, u: Any) -> Any:
    """``D grad u`` for a scalar or matrix D."""
    d = ufl.as_tensor(diffusion) if isinstance(diffusion, list | tuple) else ufl.as_ufl(diffusion)
    return d * ufl.grad(u) if d.ufl_shape == () else ufl.dot(ufl.grad(u), ufl.transpose(d))


def reaction_diffusion(diffusion: Coefficient, reaction: Callable, components: int = 1, damping: Any = 1.0) -> NPDE:
    """``B u_t = div(D grad u) + f(u, x, t)``.

    ``diffusion`` is a scalar or a (d, d) tensor for all components; ``reaction`` a callable ``(u, x, t)``.
    """
    return NPDE(
        flux=lambda u, x, t: _diffuse(_at(diffusion, x, t), u),
        source=reaction,
        damping=damping,
        components=components,
        name="reaction-diffusion",
    )


def heat(diffusion: Coefficient = 1.0, source: Coefficient = 0.0) -> NPDE:
    """``u_t = div(D grad u) + s(x, t)``."""
    return NPDE(
        flux=lambda u, x, t: _diffuse(_at(diffusion, x, t), u), source=lambda u, x, t: _at(source, x, t), name="heat"
    )


def poisson(diffusion: Coefficient = 1.0, source: Coefficient = 1.0) -> NPDE:
    """``0 = div(D grad u) + s(x)``, stationary."""
    return NPDE(
        flux=lambda u, x, t: _diffuse(_at(diffusion, x, t), u),
        source=lambda u, x, t: _at(source, x, t),
        damping=0.0,
        name="poisson",
    )


def diffusion_reaction(diffusion: Coefficient, reaction: Callable, components: int = 1) -> NPDE:
    """``0 = div(D grad u) + f(u, x)``, stationary."""
    equation = reaction_diffusion(diffusion, reaction, components, damping=0.0)
    equation.name = "diffusion-reaction"
    return equation


def fisher_kpp(diffusion: Coefficient = 1.0, rate: Coefficient = 1.0, capacity: Coefficient = 1.0) -> NPDE:
    """``u_t = div(D grad u) + r u (1 - u / K)`` (Fisher 1937; Kolmogorov, Petrovsky, Piskunov 1937)."""
    return NPDE(
        flux=lambda u, x, t: _diffuse(_at(diffusion, x, t), u),
        source=lambda u, x, t: _at(rate, x, t) * u * (1 - u / _at(capacity, x, t)),
        flow=_logistic_flow(rate, capacity),
        name="fisher-kpp",
    )


def _logistic_flow(rate: Coefficient, capacity: Coefficient) -> Callable:
    """``u e^(r dt) / (1 + (e^(r dt) - 1) u / K)``, the solution of u' = r u (1 - u / K)."""

    def flow(u: Any, x: Any, t: Any, dt: Any) -> Any:
        growth = ufl.exp(_at(rate, x, t) * dt)
        return growth * u / (1 + (growth - 1) * u / _at(capacity, x, t))

    return flow


def porous_fisher(diffusion: Coefficient = 1.0, rate: Coefficient = 1.0, capacity: Coefficient = 1.0) -> NPDE:
    """``u_t = div(D (u / K) grad u) + r u (1 - u / K)`` (Jin et al. 2016, J. Theor. Biol. 390, eq. 3)."""
    return NPDE(
        flux=lambda u, x, t: _diffuse(_at(diffusion, x, t), u) * (u / _at(capacity, x, t)),
        source=lambda u, x, t: _at(rate, x, t) * u * (1 - u / _at(capacity, x, t)),
        flow=_logistic_flow(rate, capacity),
        name="porous-fisher",
    )


def allen_cahn(thickness: Coefficient = 0.05) -> NPDE:
    """``u_t = eps^2 lap u + u - u^3`` (Allen and Cahn 1979); eps is the interface's thickness."""
    return NPDE(
        flux=lambda u, x, t: _at(thickness, x, t) ** 2 * ufl.grad(u),
        source=lambda u, x, t: u - u**3,
        flow=lambda u, x, t, dt: u / ufl.sqrt(u**2 + (1 - u**2) * ufl.exp(-2 * dt)),
        name="allen-cahn",
    )


def gray_scott(
    diffusion_u: Coefficient = 2e-5, diffusion_v: Coefficient = 1e-5, feed: Coefficient = 0.04, kill: Coefficient = 0.06
) -> NPDE:
    """``u_t = D_u lap u - u v^2 + F (1 - u)``, ``v_t = D_v lap v + u v^2 - (F + k) v`` (Pearson 1993, eq. 2)."""

    def flux(w: Any, x: Any, t: Any) -> Any:
        d = ufl.as_matrix([[_at(diffusion_u, x, t), 0], [0, _at(diffusion_v, x, t)]])
        return ufl.dot(d, ufl.grad(w))

    def source(w: Any, x: Any, t: Any) -> Any:
        u, v = w[0], w[1]
        f, k = _at(feed, x, t), _at(kill, x, t)
        return ufl.as_vector([-u * v**2 + f * (1 - u), u * v**2 - (f + k) * v])

    return NPDE(flux=flux, source=source, components=2, name="gray-scott")


def glioma(white: Coefficient, grey: Coefficient, white_matter: Any, grey_matter: Any, rate: Coefficient) -> NPDE:
    """``u_t = div(D(x) grad u) + r u (1 - u)``, ``D = D_w WM(x) + D_g GM(x)``: proliferation and invasion of a glioma.

    ``white_matter`` and ``grey_matter`` are field parameters, the tissue maps in [0, 1]; ``u`` is the cell density over
    its carrying capacity (Swanson, Alvord and Murray 2000, Cell Prolif. 33, eq. 1, with logistic growth).
    """

    def flux(u: Any, x: Any, t: Any) -> Any:
        return (_at(white, x, t) * white_matter + _at(grey, x, t) * grey_matter) * ufl.grad(u)

    return NPDE(flux=flux, source=lambda u, x, t: _at(rate, x, t) * u * (1 - u), name="glioma")


def wave(speed: Coefficient = 1.0, damping: Coefficient = 0.0, source: Coefficient = 0.0) -> NPDE:
    """``u_tt + b u_t = div(c^2 grad u) + s(x, t)``.

    ``Absorbing(c)`` on the boundary lets the waves out.
    """
    return NPDE(
        flux=lambda u, x, t: _at(speed, x, t) ** 2 * ufl.grad(u),
        source=lambda u, x, t: _at(source, x, t),
        damping=damping,
        inertia=1.0,
        name="wave",
    )


def telegraph(
    speed: Coefficient = 1.0, damping: Coefficient = 1.0, decay: Coefficient = 0.0, source: Coefficient = 0.0
) -> NPDE:
    """``u_tt + b u_t + k u = div(c^2 grad u) + s(x, t)``: voltage along a line with losses (Heaviside 1876)."""
    return NPDE(
        flux=lambda u, x, t: _at(speed, x, t) ** 2 * ufl.grad(u),
        source=lambda u, x, t: _at(source, x, t) - _at(decay, x, t) * u,
        damping=damping,
        inertia=1.0,
        name="telegraph",
    )


def fitzhugh_nagumo(
    diffusion: Coefficient = 1e-3,
    threshold: Coefficient = 0.1,
    timescale: Coefficient = 0.01,
    recovery: Coefficient = 0.5,
    stimulus: Coefficient = 0.0,
) -> NPDE:
    """``v_t = D lap v + v (1 - v) (v - a) - w + s``, ``w_t = eps (b v - w)``: excitable media.

    FitzHugh 1961, Biophys. J. 1; Nagumo, Arimoto and Yoshizawa 1962, Proc. IRE 50, with a = ``threshold``,
    eps = ``timescale``, b = ``recovery``, s = ``stimulus``.
    """

    def flux(u: Any, x: Any, t: Any) -> Any:
        d = ufl.as_matrix([[_at(diffusion, x, t), 0], [0, 0]])
        return ufl.dot(d, ufl.grad(u))

    def source(u: Any, x: Any, t: Any) -> Any:
        v, w = u[0], u[1]
        excite = v * (1 - v) * (v - _at(threshold, x, t)) - w + _at(stimulus, x, t)
        return ufl.as_vector([excite, _at(timescale, x, t) * (_at(recovery, x, t) * v - w)])

    return NPDE(flux=flux, source=source, components=2, name="fitzhugh-nagumo")


def cahn_hilliard(thickness: Coefficient = 0.05, mobility: Coefficient = 1.0) -> NPDE:
    """``c_t = div(M grad mu)``, ``mu = c^3 - c - eps^2 lap c``: phase separation, as the system of (c, mu).

    Cahn and Hilliard 1958, J. Chem. Phys. 28; c from -1 to 1. The damping is singular (mu has no time derivative), so
    schemes must be implicit.
    """

    def flux(u: Any, x: Any, t: Any) -> Any:
        exchange = ufl.as_matrix([[0, _at(mobility, x, t)], [_at(thickness, x, t) ** 2, 0]])
        return ufl.dot(exchange, ufl.grad(u))

    def source(u: Any, x: Any, t: Any) -> Any:
        return ufl.as_vector([0, u[1] + u[0] - u[0] ** 3])

    return NPDE(flux=flux, source=source, damping=((1, 0), (0, 0)), components=2, name="cahn-hilliard")


def schrodinger(
    potential: Coefficient = 0.0, hbar: Coefficient = 1.0, mass: Coefficient = 1.0, g: Coefficient = 0.0
) -> NPDE:
    """``i hbar psi_t = -hbar^2 / (2 m) lap psi + V psi + g |psi|^2 psi``: Schroedinger, with g Gross-Pitaevskii.

    It is written as ``psi_t = i hbar / (2 m) lap psi - (i / hbar) (V + g |psi|^2) psi``, so that its damping is 1. A
    complex potential absorbs where its imaginary part is negative. The flow keeps |psi| at each point; it is exact for
    a real potential constant in time, and takes the potential at the middle of the step.
    """

    def energy(psi: Any, x: Any, t: Any) -> Any:
        return _scalar("potential", potential, x, t) + _at(g, x, t) * abs(psi) ** 2

    def flow(psi: Any, x: Any, t: Any, dt: Any) -> Any:
        return psi * ufl.exp(-1j / _at(hbar, x, t) * dt * energy(psi, x, t + dt / 2))

    return NPDE(
        flux=lambda psi, x, t: 1j * _at(hbar, x, t) / (2 * _at(mass, x, t)) * ufl.grad(psi),
        source=lambda psi, x, t: -1j / _at(hbar, x, t) * energy(psi, x, t) * psi,
        flow=flow,
        dtype=complex,
        name="schrodinger",
    )


def schrodinger_energy(
    potential: Coefficient = 0.0, hbar: Coefficient = 1.0, mass: Coefficient = 1.0, g: Coefficient = 0.0
) -> Callable:
    """Return the density of the energy that :func:`schrodinger` conserves, a callable ``(psi, x, t)`` to integrate.

    ``hbar^2 / (2 m) |grad psi|^2 + V |psi|^2 + g / 2 |psi|^4``, with the real part of V.
    """

    def density(psi: Any, x: Any, t: Any) -> Any:
        kinetic = _at(hbar, x, t) ** 2 / (2 * _at(mass, x, t)) * ufl.real(ufl.inner(ufl.grad(psi), ufl.grad(psi)))
        return kinetic + ufl.real(_at(potential, x, t) * abs(psi) ** 2) + _at(g, x, t) / 2 * abs(psi) ** 4

    return density


def relaxed_schrodinger(
    potential: Coefficient = 0.0, hbar: Coefficient = 1.0, mass: Coefficient = 1.0, g: Coefficient = 1.0
) -> NPDE:
    """:func:`schrodinger` with |psi|^2 as a second component phi, for the scheme ``Relaxation``.

    The state is (psi, phi), phi real. The flow is the relaxation ``phi <- 2 |psi|^2 - phi``, after which a step is
    linear in psi; psi is conserved in norm, and an energy too (Besse 2004, SIAM J. Numer. Anal. 42, eq. 2.2). At the
    start phi = |psi|^2.
    """

    def flux(u: Any, x: Any, t: Any) -> Any:
        d = ufl.as_matrix([[1j * _at(hbar, x, t) / (2 * _at(mass, x, t)), 0], [0, 0]])
        return ufl.dot(d, ufl.grad(u))

    def source(u: Any, x: Any, t: Any) -> Any:
        rotation = -1j / _at(hbar, x, t) * (_scalar("potential", potential, x, t) + _at(g, x, t) * ufl.real(u[1]))
        return ufl.as_vector([rotation * u[0], 0])

    def flow(u: Any, x: Any, t: Any, dt: Any) -> Any:
        return ufl.as_vector([u[0], 2 * abs(u[0]) ** 2 - u[1]])

    return NPDE(flux=flux, source=source, flow=flow, components=2, dtype=complex, name="relaxed schrodinger")


def helmholtz(
    wavenumber: Coefficient, index: Coefficient = 1.0, source: Coefficient = 0.0, pml: PML | None = None
) -> NPDE:
    """``0 = lap u + k^2 n(x)^2 u + s(x)``, stationary and complex: waves ``u exp(-i omega t)``.

    An outgoing wave is exp(i k r). A complex index absorbs where its imaginary part is positive. The first-order
    absorbing (impedance) boundary is ``Robin(-1j * k)``, with ``value`` what an incoming wave v brings,
    ``n . grad v - i k v``. A perfectly matched layer stretches coordinates (see :mod:`npde_fem.pml`):

        0 = div(L grad u) + J (k^2 n^2 u + s),   J = prod s_a,   L = J diag(1 / s_a^2).

    Its shifted sibling has k^2 (1 + i beta) in the place of k^2, and less absorption in the layer: where s_a is far
    from real, multigrid fails.
    """

    def wave(x: Any, t: Any) -> Any:
        return _at(wavenumber, x, t) * _scalar("index", index, x, t)

    def version(shift: complex, absorption: float) -> NPDE:
        def stretching(x: Any, t: Any) -> list[Any]:
            assert pml is not None
            return pml.stretching(x, _at(wavenumber, x, t), absorption)

        def flux(u: Any, x: Any, t: Any) -> Any:
            if pml is None:
                return ufl.grad(u)
            s = stretching(x, t)
            return ufl.as_vector([_product(s) / s[a] ** 2 * u.dx(a) for a in range(len(s))])

        def sources(u: Any, x: Any, t: Any) -> Any:
            terms = (1 + shift) * wave(x, t) ** 2 * u + _scalar("source", source, x, t)
            return terms if pml is None else _product(stretching(x, t)) * terms

        return NPDE(flux=flux, source=sources, damping=0.0, dtype=complex, name="helmholtz")

    equation = version(0, 1.0)
    equation.waves = wave
    equation.shifted = lambda beta: version(1j * beta, 0.4)
    return equation


def _product(factors: list[Any]) -> Any:
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result


def open_wave(speed: Coefficient, pml: PML, source: Coefficient = 0.0) -> NPDE:
    """``u_tt = div(c^2 grad u) + s(x, t)`` in an open domain, of first order in time, with a perfectly matched layer.

    The state is (u, w, phi_1, ..., phi_d), in three dimensions also psi, with w = u_t and auxiliary fields that vanish
    outside of the layers (Grote and Sim 2010, arXiv:1001.0319). With z_a = c sigma_a,

        u_t = w,
        w_t = div(c^2 grad u + phi) - (sum z_a) w - (sum z_a z_b) u - z_1 z_2 z_3 psi + s,
        phi_a,t = -z_a phi_a + (sum of the other z_b - z_a) c^2 u_a + (product of the other z_b) c^2 psi_a,
        psi_t = u,

    where products of z are over different axes, and in two dimensions psi has no part. Initial data has phi = psi = 0.
    With ``mass="lumped"`` take finite elements on quadrilaterals or hexahedra; on triangles and tetrahedra, where the
    mass is lumped but the gradients are not, waves of some cells grow in the layers.
    """
    d = pml.dim
    components = 2 + d + (1 if d == 3 else 0)

    def flux(y: Any, x: Any, t: Any) -> Any:
        c2 = _at(speed, x, t) ** 2
        still = [0] * d
        rows = [still, [c2 * y[0].dx(a) + y[2 + a] for a in range(d)]]
        return ufl.as_matrix(rows + [still] * (components - 2))

    def sources(y: Any, x: Any, t: Any) -> Any:
        c = _at(speed, x, t)
        z = [c * sigma for sigma in pml.absorption(x)]
        others = [[z[b] for b in range(d) if b != a] for a in range(d)]
        pairs = sum(z[a] * z[b] for a in range(d) for b in range(a))
        rate = _at(source, x, t) - sum(z) * y[1] - pairs * y[0]
        auxiliary = [-z[a] * y[2 + a] + (sum(others[a]) - z[a]) * c**2 * y[0].dx(a) for a in range(d)]
        if d < 3:
            return ufl.as_vector([y[1], rate, *auxiliary])
        psi = y[components - 1]
        auxiliary = [old + _product(others[a]) * c**2 * psi.dx(a) for a, old in enumerate(auxiliary)]
        return ufl.as_vector([y[1], rate - _product(z) * psi, *auxiliary, y[0]])

    return NPDE(flux=flux, source=sources, components=components, name="open wave")


def paraxial(wavenumber: Coefficient, index: Coefficient = 1.0, reference: Coefficient = 1.0) -> NPDE:
    """``2 i k n0 psi_z = -lap psi - k^2 (n^2 - n0^2) psi``: the envelope of ``psi exp(i k n0 z)``, z in the place of t.

    ``index`` is n(x, z), ``reference`` n0, ``wavenumber`` that of vacuum, k = 2 pi / wavelength. The laplacian is that
    of the transverse coordinates, which are the domain's (Leontovich and Fock 1946). It is written as
    ``psi_z = i / (2 k n0) lap psi + i k / (2 n0) (n^2 - n0^2) psi``. The flow takes the index at the middle of a step.
    """

    def phase(x: Any, z: Any) -> Any:
        k, n, n0 = (
            _at(wavenumber, x, z),
            _scalar("index", index, x, z),
            _at(reference, x, z),
        )
        return 1j * k / (2 * n0) * (n**2 - n0**2)

    return NPDE(
        flux=lambda psi, x, z: 1j / (2 * _at(wavenumber, x, z) * _at(reference, x, z)) * ufl.grad(psi),
        source=lambda psi, x, z: phase(x, z) * psi,
        flow=lambda psi, x, z, dz: psi * ufl.exp(phase(x, z + dz / 2) * dz),
        dtype=complex,
        name="paraxial",
    )
