"""Ground states of Schroedinger equations, linear and nonlinear, by a flow in imaginary time.

With ``t = -i tau`` the equation ``psi_t = -i H(psi) psi`` becomes ``psi_tau = -H(psi) psi``, which lowers the energy
and damps the ground state least. A step is one of backward Euler, after which the norm is made 1 again: the normalised
gradient flow of Bao and Du 2004 (SIAM J. Sci. Comput. 25, eqs. 2.13 and 3.17). The chemical potential mu of the state
before a step is subtracted from H in it, so that ground states stay where they are for every length of the step,

    (psi' - psi) / tau = -(H(psi') - mu) psi',    psi <- psi' / |psi'|.

The step is ``1 / |(H - mu) psi|`` unless it is given: long near the ground state, where the flow becomes Newton's
method. A step that does not lower the energy is taken back, and tried with a quarter of its length.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from npde_fem.discretize.real import values_in
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.equation import NPDE
from npde_fem.solve.newton import Newton

import numpy as np

__all__ = ["GroundState", "ground_state"]

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(4)
_ROUND_OFF = 1e-12
_REJECTIONS = 40


@dataclass(frozen=True)
class GroundState:
    """What :func:`ground_state` returns.

    Attributes
    ----------
    problem
        The problem.
    values
        The state, values of the dofs this rank owns; its L2 norm is 1.
    mu
        Chemical potential ``<psi, H(psi) psi>`` for hbar = 1, that of an equation with another hbar over hbar. The
        state in time is ``psi exp(-i mu t)``.
    energy
        Energy over hbar; equal to mu for a linear equation.
    residual
        L2 norm of ``H(psi) psi - mu psi``.
    energies
        Energies of all states passed through, the first one included.
    """

    problem: Semidiscrete
    values: Array
    mu: float
    energy: float
    residual: float
    energies: list[float]

    @property
    def u(self) -> Any:
        """The state as a complex function: a DOLFINx Function, or a GridFunction."""
        return self.problem.function(self.values)

    @property
    def iterations(self) -> int:
        """Steps taken."""
        return len(self.energies) - 1


def ground_state(
    problem: Semidiscrete, u0: Any, *, tol: float = 1e-8, dt: float | None = None, max_steps: int = 1000
) -> GroundState:
    """Find the state of norm 1 with the lowest energy (collective).

    Parameters
    ----------
    problem
        A :class:`~npde_fem.FEM` or :class:`~npde_fem.FD` of ``psi_t = -i H(|psi|^2) psi``, such as
        ``physics.schrodinger``, with a real potential and a nonlinearity up to ``|psi|^6 psi``; boundary values, if
        any, zero.
    u0
        First state, of any norm but zero, not orthogonal to the ground state: a positive one.
    tol
        Steps end where ``|H(psi) psi - mu psi|`` is below ``tol |mu|``, in L2.
    dt
        Step in imaginary time; found for each step by default.
    max_steps
        Most steps to take.

    Raises
    ------
    TypeError, ValueError
        If the equation is real, stationary, of second order in time or not conservative, its coefficients depend on
        time or are not finite, its damping is not 1, boundary data is not zero, or an argument is not as it must be.
    RuntimeError
        If the steps end before the residual is small.
    """
    if not isinstance(problem, Semidiscrete):
        raise TypeError(f"ground_state: problem must be FEM or FD, not {type(problem).__name__}")
    _check_equation(problem.equation)
    for name, value in (("tol", tol), ("dt", 1.0 if dt is None else dt), ("max_steps", max_steps)):
        if not isinstance(value, int | float | np.number) or not (isfinite(value) and value > 0):
            raise ValueError(f"ground_state: {name} must be a positive number, not {value!r}")
    flow = _Flow(problem, u0)
    try:
        return flow.descend(tol, dt, int(max_steps))
    finally:
        flow.newton.destroy()


def _check_equation(equation: NPDE) -> None:
    plain = all(isinstance(c, int | float | np.number) for c in (equation.damping, equation.inertia))
    if not (equation.is_complex and plain and equation.damping == 1 and equation.inertia == 0):
        raise ValueError(
            f"ground_state: a complex equation with damping 1 and inertia 0, such as physics.schrodinger(), allowed; "
            f"{equation.name!r} has damping {equation.damping!r}, inertia {equation.inertia!r}, and values that are "
            f"{'complex' if equation.is_complex else 'real'}"
        )


class _Flow:
    """The normalised gradient flow of one problem."""

    def __init__(self, problem: Semidiscrete, u0: Any) -> None:
        problem.update()
        self.problem, self.comm = problem, problem.comm
        self.turned = turned = problem.with_equation(problem.equation.rotated(-1j))
        for parameter in problem.parameters.values():
            if parameter.is_field:
                turned.put_field(parameter, problem.field_values(parameter))
        if turned.varies()[1]:
            raise ValueError("ground_state: the equation's coefficients depend on time; constant ones allowed")
        self.state, n = problem.new_state(), problem.n_owned
        self.rate, self.mass, self.work, self.b = (np.zeros(n) for _ in range(4))
        self.values = problem.initial(u0)
        self.values[problem.constrained] = 0.0
        if not 0 < self._norm(self.values):
            raise ValueError("ground_state: u0 vanishes; a state of any norm but zero allowed")
        self._check_conditions()
        self.newton = Newton.borrow(turned, "all", False)

    def _check_conditions(self) -> None:
        """Raise ValueError unless the equation turns as a whole, and does so to a flow that lowers an energy."""
        problem, values = self.problem, self.values
        problem.load(values, self.state)
        problem.constrain(0.0, self.state)
        problem.store(self.state, self.work)
        if self._dot(self.work - values, self.work - values) > 0:
            raise ValueError("ground_state: Dirichlet values other than zero given; zero allowed")
        problem.load(values, self.state)
        problem.rate(0.0, self.state, self.work)
        self.turned.rate(0.0, self.state, self.rate)
        size = self._dot(self.work, self.work)
        if not isfinite(size):
            raise ValueError("ground_state: the equation is not finite at u0: a coefficient, or u0, is NaN or infinite")
        turned = (-1j * self.work.view(np.complex128)).view(np.float64) - self.rate
        if self._dot(turned, turned) > 1e-20 * size:
            raise ValueError("ground_state: Flux and Robin conditions given; Dirichlet(0), Periodic or none allowed")
        if abs(self._dot(values, self.work)) > 1e-8 * abs(self._dot(values, self.rate)):
            raise ValueError("ground_state: the equation does not conserve the norm; real potentials allowed")

    def _dot(self, a: Array, b: Array) -> float:
        return float(self.comm.allreduce(float(a @ b)))

    def _norm(self, values: Array) -> float:
        self.turned.mass_times(values, self.mass)
        return float(np.sqrt(self._dot(values, self.mass)))

    def _rate(self, values: Array) -> Array:
        """Return ``-H(psi) psi``, integrated."""
        self.turned.load(values, self.state)
        self.turned.rate(0.0, self.state, self.rate)
        return self.rate

    def _energy(self, values: Array) -> float:
        """Return ``2 int_0^1 <psi, H(s psi) s psi> ds``, whose derivative is ``2 H(psi) psi``."""
        points = 0.5 + 0.5 * _POINTS
        return -sum(w * self._dot(values, self._rate(s * values)) for s, w in zip(points, _WEIGHTS, strict=True))

    def _residual(self, values: Array) -> tuple[float, float]:
        """Return mu, and the L2 norm of ``H(psi) psi - mu psi``, of a state of norm 1."""
        mu = -self._dot(values, self._rate(values))
        self.turned.mass_times(values, self.mass)
        self.rate += mu * self.mass
        self.rate[self.problem.constrained] = 0.0
        self.turned.solve_mass(self.rate, self.work)
        return mu, float(np.sqrt(max(self._dot(self.rate, self.work), 0.0)))

    def descend(self, tol: float, dt: float | None, max_steps: int) -> GroundState:
        """Take steps until the residual is small."""
        values = self.values / self._norm(self.values)
        energies, brake = [self._energy(values)], 1.0
        mu, residual = self._residual(values)
        while residual > tol * abs(mu):
            for _ in range(_REJECTIONS):
                tried = self._step(values, mu, brake * (1 / residual if dt is None else dt))
                if tried is not None:
                    energy = self._energy(tried)
                    if energy <= energies[-1] + _ROUND_OFF * max(abs(energy), abs(mu)):
                        break
                brake /= 4
            else:
                raise RuntimeError(
                    f"ground_state: no step lowers the energy {energies[-1]:.10g}; the residual is {residual:.3e}"
                )
            values, brake = tried, min(1.0, 2 * brake)
            energies.append(energy)
            mu, residual = self._residual(values)
            if len(energies) > max_steps and residual > tol * abs(mu):
                raise RuntimeError(
                    f"ground_state: after {max_steps} steps the residual is {residual:.3e}, mu {mu:.10g}; "
                    "max_steps allows more"
                )
        return GroundState(self.problem, values, mu, energies[-1], residual, energies)

    def _step(self, values: Array, mu: float, tau: float) -> Array | None:
        """Return the state after a step of tau, of norm 1; None if it fails, or turns away from the state."""
        # (1 / tau - mu) M psi' - R(psi') = M psi / tau, divided so that M stands alone
        stays = 1 - mu * tau or _ROUND_OFF
        self.turned.mass_times(values, self.mass)
        np.divide(self.mass, stays, out=self.b)
        if not self.newton.solve(0.0, self.b, tau / stays, values, float(np.sqrt(self._dot(self.b, self.b)))):
            return None
        tried = np.array(values_in(self.newton.x))
        if self._dot(tried, self.mass) <= 0:
            return None
        return tried / self._norm(tried)
