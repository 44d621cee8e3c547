"""Many solves of one problem at once, which can be differentiated.

Two kinds share work. Where the implicit part of the scheme is linear, all samples have one matrix, one factorisation,
and products and solves with many right-hand sides (:mod:`npde_fem.solve.blocks`). Explicit schemes on grids go through
all samples in one compiled loop. Steps and sweeps are those of single solves, which are given all samples as one
problem: :mod:`npde_fem.solve.samples` and :mod:`npde_fem.solve.fused`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from npde_fem.discretize.fd import FD
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.parallel import alike
from npde_fem.parameter import Parameter
from npde_fem.solve.adjoint import Derivative
from npde_fem.solve.fused import FusedSamples
from npde_fem.solve.integrate import (
    Adaptive,
    Frozen,
    SolveError,
    check_flow,
    check_stability,
    planned_steps,
    warn_of_unresolved_waves,
)
from npde_fem.solve.krylov import StageMatrix
from npde_fem.solve.samples import BlockStageMatrix, BlockStepper, LinearSamples, Samples
from npde_fem.solve.schemes import STATIONARY, Newmark, Scheme, scheme_for
from npde_fem.solve.steppers import ExplicitStepper, Stepper
from npde_fem.solve.trajectory import Cotangents, Trajectory

import numpy as np

__all__ = ["Batch"]


class Batch:
    """Solves of one problem from many initial states, and with many values of some parameters.

    A batch remembers its last solve; tangents and gradients use the parameters' current values, which must be those of
    the solve. All methods are collective. Ranks hold the same samples, of each the dofs they own.

    Parameters
    ----------
    problem
        The problem.
    t, dt, scheme
        As of :func:`npde_fem.solve`; steps do not adapt.
    observe
        Times whose states are wanted.

    Raises
    ------
    TypeError, ValueError
        As :func:`npde_fem.solve`; ValueError too if the solves cannot share work.
    """

    def __init__(
        self,
        problem: Semidiscrete,
        t: tuple[float, float] | None = None,
        dt: float | Frozen | None = None,
        scheme: Scheme | Newmark | None = None,
        observe: Sequence[float] | None = None,
    ) -> None:
        self.problem = problem
        self._steps: list[tuple[float, float]] = [(0.0, 1.0)]
        self._observed: list[int] = []
        if problem.stationary:
            if any(given is not None for given in (t, dt, observe)):
                raise ValueError("batch: t, dt and observe are for equations with a time derivative")
            scheme = STATIONARY
        else:
            scheme = scheme_for(scheme, problem.second_order)
            check_flow(problem, scheme)
            self._steps, self._observed = planned_steps(problem.comm, t, dt, scheme, observe)
        if not self.shares(problem, scheme, (), dt) or not isinstance(scheme, Scheme):
            raise ValueError(f"batch: solves of this problem by {scheme.name} share no work; see Batch.shares")
        self.scheme: Scheme = scheme
        self._samples: Samples | None = None

    @staticmethod
    def shares(
        problem: Semidiscrete, scheme: Scheme | Newmark | None, batched: Collection[str] = (), dt: Any = None
    ) -> bool:
        """Return whether solves can share work.

        So it is where the implicit part of the scheme is linear (one matrix, one factorisation, many right-hand sides),
        and for explicit schemes on grids where the damping is one number (one compiled loop), without batched
        parameters. Steps must not adapt; equations of second order in time, or with a nonlocal term, share none.

        Parameters
        ----------
        problem, scheme, dt
            As above.
        batched
            Names of the parameters that differ between the samples: they may enter inhomogeneities and prescribed data,
            not dR/du, mass matrices or the flow.
        """
        scheme = STATIONARY if problem.stationary else scheme_for(scheme, problem.second_order)
        local = problem.equation.nonlocal_term is None
        if isinstance(scheme, Newmark) or isinstance(dt, Adaptive) or not local:
            return False
        if scheme.is_explicit:
            return isinstance(problem, FD) and problem.fuses and not batched
        if not problem.matrix_parameters.isdisjoint(batched) or (batched and scheme.needs_flow):
            return False
        return not problem.varies(scheme.implicit_part)[0]

    # -- solving ---------------------------------------------------------------------------------------------

    def solve(
        self, u0: Array, parameters: Mapping[str, Array] | None = None, *, record: bool = True
    ) -> tuple[Array, Array]:
        """Solve for all samples.

        Parameters
        ----------
        u0
            Initial values, shape (B, n_owned).
        parameters
            Values of the batched parameters by name, shape (B, size): of a field the owned dofs, of a number all its
            components.
        record
            Whether to remember the steps, for derivatives.

        Returns
        -------
        states, final
            States at the observed times, shape (B, times, n_owned), and the final ones, (B, n_owned).

        Raises
        ------
        TypeError, ValueError
            If shapes or values do not fit, or a parameter cannot be batched.
        SolveError
            If a step fails for one of the samples.
        """
        parameters = {} if parameters is None else parameters
        u0 = self._checked(u0, parameters)
        samples = self._samples_for(len(u0), parameters)
        with samples.at_work():
            return self._march(samples, u0.reshape(-1), record)

    def _checked(self, u0: Array, parameters: Mapping[str, Array]) -> Array:
        problem, t0 = self.problem, self._steps[0][0]
        problem.update()
        with alike(problem.comm):
            shape = np.shape(u0)
            if len(shape) != 2 or not shape[0] or shape[1] != problem.n_owned:
                raise ValueError(
                    f"batch: u0 of shape {shape} given; (samples, {problem.n_owned}) allowed, the dofs that this rank "
                    f"owns of {problem.n_global}"
                )
            for name, values in parameters.items():
                if name not in problem.parameters:
                    raise ValueError(f"batch: no parameter {name!r}; there are {sorted(problem.parameters)}")
                parameter = problem.parameters[name]
                size = problem.field_size(name) if parameter.is_field else np.size(parameter.value)
                if np.shape(values) != (shape[0], size):
                    raise ValueError(f"batch: {name!r} of shape {np.shape(values)} given; {(shape[0], size)} allowed")
        counts = problem.comm.allgather(shape[0])
        if len(set(counts)) > 1:
            raise ValueError(f"batch: {counts} samples given on the ranks; all must have the same samples")
        if not self.shares(problem, self.scheme, parameters):
            raise ValueError(f"batch: of {sorted(parameters)} at least one enters dR/du, a mass matrix or the flow")
        values = np.stack([problem.initial(row, t0) for row in u0])
        if self.scheme.checked:
            for row in values if problem.varies("flux")[0] else values[:1]:
                problem.check_diffusion(t0, row)
        if problem.stationary:
            warn_of_unresolved_waves(problem)
        if self.scheme.checked and self.scheme.is_explicit:
            check_stability(problem, self.scheme, t0, values[0], min(dt for _, dt in self._steps))
        return values

    def _samples_for(self, count: int, parameters: Mapping[str, Array]) -> Samples:
        if self._samples is None or self._samples.count != count:
            if self.scheme.is_explicit:
                self._samples = FusedSamples(cast(FD, self.problem), count)
            else:
                self._samples = LinearSamples(self.problem, self.scheme.implicit_part, count)
            self._trajectory = _Recorded(self._samples)
        self._samples.batched = {name: np.array(values, dtype=np.float64) for name, values in parameters.items()}
        return self._samples

    def _march(self, samples: Samples, u0: Array, record: bool) -> tuple[Array, Array]:
        """Take all steps."""
        stepper = self._stepper(samples)
        (t0, _), recorder = self._steps[0], self._trajectory
        stepper.start(t0, u0)
        row, observed = np.zeros(samples.n_owned), []
        stepper.values(row)
        if record:
            recorder.begin(self.scheme, t0, row, len(self._steps))
        for step in range(len(self._steps) + 1):
            for _ in range(self._observed.count(step)):
                stepper.values(row)
                observed.append(samples.rows(row).copy())
                if record:
                    recorder.observe()
            if step == len(self._steps):
                break
            t, dt = self._steps[step]
            if not stepper.step(t, dt):
                stepper.values(row)
                raise SolveError(f"the step from t = {t:g} with dt = {dt:.3g} failed: {stepper.failure}", t, row)
            if record:
                recorder.step(t, dt, stepper)
            stepper.accept()
        stepper.values(row)
        return self._by_sample(observed, samples.count), samples.rows(row)

    def _stepper(self, samples: Samples) -> Stepper:
        if isinstance(samples, LinearSamples):
            return BlockStepper(samples, self.scheme)
        return ExplicitStepper(samples.as_problem, self.scheme)

    def _by_sample(self, observed: Sequence[Array], count: int) -> Array:
        """Order states by samples, then times."""
        return np.stack(observed, axis=1) if observed else np.zeros((count, 0, self.problem.n_owned))

    # -- derivatives -----------------------------------------------------------------------------------------

    def adjoint(
        self, controls: Sequence[Parameter], states: Array | None = None, final: Array | None = None
    ) -> Derivative:
        """Return the gradient of a functional of the solve's results.

        Parameters
        ----------
        controls
            Parameters to differentiate by.
        states, final
            Derivatives by the results of :meth:`solve`, of their shapes, or None.

        Returns
        -------
        Derivative
            By the parameters, summed over the samples, or with a row a sample, (B, ...), of batched ones; and by the
            initial states, (B, n_owned).
        """
        samples, trajectory = self._recorded()
        by = Cotangents(
            None if states is None else np.swapaxes(states, 0, 1).reshape(len(self._observed), samples.n_owned),
            None if final is None else np.reshape(final, -1),
        )
        with samples.at_work():
            found = trajectory.by(controls).adjoint(by)
        return Derivative(found.parameters, samples.rows(found.initial))

    def tangent(
        self, controls: Sequence[Parameter], delta: Mapping[str, Array], initial: Array | None = None
    ) -> tuple[Array, Array]:
        """Return how the results of :meth:`solve` change along a direction.

        Parameters
        ----------
        controls
            Parameters that move.
        delta
            Their direction by name, of batched ones with a row a sample.
        initial
            Direction of the initial states, shape (B, n_owned), or None.
        """
        samples, trajectory = self._recorded()
        with samples.at_work():
            found = trajectory.by(controls).tangent(delta, None if initial is None else np.reshape(initial, -1))
        states = [] if found.states is None else [samples.rows(state) for state in found.states]
        return self._by_sample(states, samples.count), samples.rows(np.asarray(found.final))

    def _recorded(self) -> tuple[Samples, Trajectory]:
        if self._samples is None or not self._trajectory.steps:
            raise RuntimeError("batch: no solve was recorded")
        return self._samples, self._trajectory


class _Recorded(Trajectory):
    """A recorded solve of all samples."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        super().__init__(samples.as_problem)

    def borrow_solver(self) -> StageMatrix:
        return BlockStageMatrix(cast(LinearSamples, self._samples))
