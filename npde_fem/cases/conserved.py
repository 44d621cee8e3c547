"""What equations conserve, measured on solutions: functions of a solution and the index of an observed state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from npde_fem.optimize import integral
from npde_fem.solve import Solution
from npde_fem.solve.integrate import moving

import numpy as np
from mpi4py import MPI

__all__ = ["Measure", "norm", "schrodinger_energy", "wave_energy"]

Measure = Callable[[Solution, int], float]


def norm(solution: Solution, index: int) -> float:
    """Return ``int |psi|^2 dx`` (collective)."""
    return float(integral(solution, lambda psi, x, t: abs(psi) ** 2, index))


def schrodinger_energy(g: Any = 0.0) -> Measure:
    """Return the energy ``int |grad psi|^2 / 2 + V |psi|^2 + g / 2 |psi|^4 dx`` of equations with hbar = 1.

    It is that of the discrete equation, ``Re int conj(psi) i psi_t dx - g / 2 int |psi|^4 dx``, so that schemes which
    conserve it do so on any mesh or grid.
    """

    def energy(solution: Solution, index: int) -> float:
        problem, values = solution.problem, solution.states[index]
        problem.update()
        state, rate = problem.new_state(), np.zeros(problem.n_owned)
        problem.load(values, state)
        problem.rate(solution.times[index], state, rate)
        product = np.vdot(values.view(np.complex128), 1j * rate.view(np.complex128)).real
        quartic = integral(solution, lambda psi, x, t: g / 2 * abs(psi) ** 4, index)
        return float(problem.comm.allreduce(product, op=MPI.SUM)) - float(quartic)

    return energy


def wave_energy(solution: Solution, index: int) -> float:
    """Return the energy ``int u_t^2 / 2 + c^2 |grad u|^2 / 2 dx`` of a linear wave, as the discrete equation has it."""
    problem, velocity = solution.problem, moving(solution.velocities)[index]
    problem.update()
    state, rate, momentum = problem.new_state(), np.zeros(problem.n_owned), np.zeros(problem.n_owned)
    problem.load(solution.states[index], state)
    problem.rate(solution.times[index], state, rate)
    problem.mass_times(velocity, momentum, damping=0.0, inertia=1.0)
    energy = velocity @ momentum - solution.states[index] @ rate
    return 0.5 * float(problem.comm.allreduce(energy, op=MPI.SUM))
