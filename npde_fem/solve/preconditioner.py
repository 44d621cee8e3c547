"""The complex shifted Laplacian: waves are solved for iteratively, preconditioned by the same waves absorbed.

The matrix of ``div grad u + k^2 u`` is indefinite, and multigrid fails on it. Where ``(1 + i beta) k^2`` stands for
k^2, waves decay within some wavelengths; multigrid can solve that, and it is a good preconditioner (Erlangga, Vuik and
Oosterlee 2004, Appl. Numer. Math. 50; 2006, SIAM J. Sci. Comput. 27). Its inverse is approximated here by a V-cycle
of algebraic multigrid (PETSc's GAMG), smoothed by four iterations of GMRES with SOR, with LU on the coarsest grid.
Such a cycle is no linear map, so the method outside is flexible GMRES. Iterations hardly depend on the mesh, and grow
with k.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import ceil, isfinite

from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.options import inserted, option_given

import numpy as np
from petsc4py import PETSc

__all__ = ["Shifted", "ShiftedLaplacian", "preconditioned"]

_OPTIONS = {
    "pc_type": "gamg",
    "pc_gamg_aggressive_coarsening": 0,
    "pc_gamg_threshold": 0.02,
    "mg_levels_ksp_type": "gmres",
    "mg_levels_ksp_max_it": 4,
    "mg_levels_pc_type": "sor",
    "ksp_gmres_restart": 100,
    "ksp_max_it": 1000,
}
_COARSEST = 5.0  # points a wavelength on the grid that LU solves on, about


@dataclass(frozen=True)
class ShiftedLaplacian:
    """Solve by flexible GMRES, preconditioned by the complex shifted Laplacian; of equations with ``NPDE.shifted``.

    PETSc options override its choices: ``-npde_ksp_type``, ``-npde_pc_type``, ``-npde_mg_levels_pc_type``, ...

    Parameters
    ----------
    shift
        beta. Larger ones make multigrid better and the preconditioner worse.

    Raises
    ------
    TypeError, ValueError
        If the shift is no positive number.
    """

    shift: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.shift, int | float | np.number):
            raise TypeError(f"ShiftedLaplacian: shift must be a number, not {self.shift!r}")
        if not (isfinite(self.shift) and self.shift > 0):
            raise ValueError(f"ShiftedLaplacian: shift {self.shift} given; a positive number allowed")

    def of(self, problem: Semidiscrete) -> Shifted:
        """Return the preconditioner of a problem (collective).

        Raises
        ------
        ValueError
            If the equation has no shifted sibling.
        """
        if problem.equation.shifted is None:
            raise ValueError(
                f"preconditioner: equation {problem.equation.name!r} has no shifted sibling; physics.helmholtz has one"
            )
        return Shifted(problem, self.shift)


class Shifted:
    """The shifted matrix of a problem, and how to precondition with it.

    Parameters
    ----------
    problem
        The problem.
    shift
        beta.
    """

    def __init__(self, problem: Semidiscrete, shift: float) -> None:
        assert problem.equation.shifted is not None
        self._sibling = problem.with_equation(problem.equation.shifted(shift))
        self.matrix = self._sibling.new_matrix()
        resolved = 1.0
        if problem.equation.waves is not None:
            resolved = min(1.0, _COARSEST / problem.points_a_wavelength())
        # A grid too coarse for the waves must not be coarsened further: smoothers fail there.
        unknowns = max(1000, ceil(problem.n_global * resolved**problem.dim))
        self.options = _OPTIONS | {"pc_gamg_coarse_eq_limit": unknowns}

    def assemble(self, problem: Semidiscrete, t: float, state: Array) -> None:
        """Assemble the shifted matrix for the present values of the problem's parameters."""
        for name, parameter in self._sibling.parameters.items():
            if parameter.is_field:
                self._sibling.put_field(name, problem.field_values(name))
        self._sibling.update()
        self._sibling.jacobian(t, state, 0.0, 1.0, self.matrix)

    def configure(self, ksp: PETSc.KSP) -> None:
        """Choose the Krylov method."""
        ksp.setType(PETSc.KSP.Type.FGMRES)
        ksp.setPCSide(PETSc.PC.Side.RIGHT)
        ksp.setNormType(PETSc.KSP.NormType.UNPRECONDITIONED)

    def destroy(self) -> None:
        """Free the matrix."""
        self.matrix.destroy()


def preconditioned(shifted: Shifted | None) -> AbstractContextManager[None]:
    """Let what PETSc sets up meanwhile read our choice of multigrid, where there is one and the user has made none."""
    if shifted is None:
        return nullcontext()
    ours = {name: value for name, value in shifted.options.items() if not option_given(name)}
    if any(option_given(name) for name in ("pc_type", "mg_levels_ksp_type", "mg_levels_pc_type")):
        ours = {name: value for name, value in ours.items() if not name.startswith("mg_levels")}
    return inserted({f"npde_{name}": value for name, value in ours.items()})
