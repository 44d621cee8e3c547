"""Many states of one problem side by side, as one problem: what steppers and sweeps use of a ``Semidiscrete``.

The values of all samples are one array, one sample after the other: so the steppers, and the sweeps through their
steps, take all samples along unchanged. What is linear is done for all at once, by :class:`BlockMatrices`: a part of
the rate whose derivative does not depend on the state is ``R(u, t) = R'(t) u + R(0, t)``. The rest is done sample by
sample. Samples share all parameters but those said to be *batched*, which may enter the inhomogeneities R(0, t) and the
prescribed data only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any, cast

from npde_fem.discretize.semidiscrete import Array, Part, Semidiscrete, Term
from npde_fem.parameter import Parameter
from npde_fem.solve.blocks import BlockMatrices
from npde_fem.solve.samples_linearised import SampledLinearised
from npde_fem.solve.schemes import Scheme
from npde_fem.solve.steppers import ImplicitStepper

import numpy as np
from mpi4py import MPI

__all__ = ["BlockStageMatrix", "BlockStages", "BlockStepper", "LinearSamples", "Samples"]


class Samples:
    """Samples of a problem.

    Parameters
    ----------
    problem
        The problem.
    count
        How many samples.

    Attributes
    ----------
    batched
        Values of the batched parameters by name, shape (count, size).
    """

    def __init__(self, problem: Semidiscrete, count: int) -> None:
        self.problem, self.count = problem, count
        self.comm, self.stationary, self.second_order = problem.comm, problem.stationary, problem.second_order
        self.n_owned, self.unknowns = count * problem.n_owned, count * problem.unknowns
        first = problem.n_owned * np.arange(count)[:, None]
        self.constrained = (first + problem.constrained).ravel()
        self._is_constrained = problem.unknowns < problem.n_global
        self.batched: dict[str, Array] = {}
        self._data: dict[int, tuple[float, Array]] = {}
        self._one, self._masses = np.zeros(problem.n_owned), np.zeros(problem.n_owned)

    @property
    def as_problem(self) -> Semidiscrete:
        """Itself, for steppers and sweeps."""
        return cast(Semidiscrete, self)

    def rows(self, values: Array) -> Array:
        """View values as one row a sample."""
        return values.reshape(self.count, -1)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Use the parameters' present values meanwhile (collective)."""
        self._data.clear()
        if self.problem.mass_is_diagonal:
            self.problem.mass_times(np.ones(self.problem.n_owned), self._masses)
        yield

    def each(self) -> Iterator[int]:
        """Go through the samples; meanwhile batched parameters have the values of each."""
        for b in range(self.count):
            with self.problem.holding(self._values_of(b)) if self.batched else nullcontext():
                yield b

    def _values_of(self, b: int) -> dict[str, Array]:
        return {name: self.shaped(name, rows[b]) for name, rows in self.batched.items()}

    def shaped(self, name: str, values: Array) -> Array:
        """Return flat values of a parameter as they are, if it is a field, else in its shape."""
        parameter = self.problem.parameters[name]
        return values if parameter.is_field else values.reshape(parameter.ufl_shape)

    def some(self) -> Iterator[int]:
        """Go through the samples if parameters are batched, else only to the first, which stands for all."""
        return self.each() if self.batched else iter(range(1))

    def known(self, kept: Mapping[Any, tuple[float, Array]], key: Any, t: float) -> bool:
        """Whether what is kept is that of a time."""
        return key in kept and (self.problem.autonomous or kept[key][0] == t)

    def prescribe(self, t: float, values: Array, order: int = 0) -> None:
        """Set constrained dofs to their data, as ``Semidiscrete.prescribe``."""
        if not self._is_constrained:
            return
        c = self.problem.constrained
        if not self.known(self._data, order, t):
            found = np.zeros((self.count if self.batched else 1, c.size))
            for b in self.some():
                self.problem.prescribe(t, self._one, order)
                found[b] = self._one[c]
            self._data[order] = t, found
        self.rows(values)[:, c] = self._data[order][1]

    @cached_property
    def nodal_weights(self) -> Array:
        """As of ``Semidiscrete``."""
        return np.tile(self.problem.nodal_weights, self.count)

    def mass_times(self, values: Array, out: Array, transposed: bool = False) -> None:
        """Write M times values, as ``Semidiscrete.mass_times``, for an M that is diagonal."""
        np.multiply(self.rows(values), self._masses, out=self.rows(out))


class LinearSamples(Samples):
    """Samples of a problem whose implicit part is linear.

    Parameters
    ----------
    problem, count
        As of :class:`Samples`.
    part
        The part of R that is implicit.
    """

    def __init__(self, problem: Semidiscrete, part: Part, count: int) -> None:
        super().__init__(problem, count)
        self.part = part
        self._inhomogeneities: dict[Part, tuple[float, Array]] = {}
        self._of_data: dict[Part, tuple[float, Array]] = {}
        self._state = problem.new_state()
        self._linearised: dict[tuple[Parameter, ...], SampledLinearised] = {}
        self._linear_terms: dict[Term, bool] = {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Use the matrices, of the parameters' present values, meanwhile (collective)."""
        self._inhomogeneities.clear()
        self._of_data.clear()
        self.matrices = BlockMatrices.borrow(self.problem, self.part)
        self.matrices.resize(self.count)
        try:
            with super().at_work():
                yield
        finally:
            self.matrices.give_back()
            del self.matrices

    # -- states ----------------------------------------------------------------------------------------------

    def new_state(self) -> Array:
        """Return a new state: values."""
        return np.zeros(self.n_owned)

    def load(self, values: Array, state: Array) -> None:
        """Copy values into a state."""
        state[:] = values

    def state_of(self, b: int, state: Array) -> Array:
        """Return the problem's state of a sample; it holds until the next call."""
        self.problem.load(self.rows(state)[b], self._state)
        return self._state

    # -- the equation ----------------------------------------------------------------------------------------

    def is_linear(self, term: Term) -> bool:
        """Whether a term is a part of R by which the state enters linearly."""
        if term not in self._linear_terms:
            of_rate = term == "all" or term == "flux" or term == "source"
            self._linear_terms[term] = of_rate and not self.problem.varies(cast(Part, term))[0]
        return self._linear_terms[term]

    def rate(self, t: float, state: Array, out: Array, part: Part = "all") -> None:
        """Write R(u, t), or a part of it, as ``Semidiscrete.rate``."""
        into = self.rows(out)
        if self.is_linear(part):
            self.matrices.times(part, t, self.rows(state), into)
            into += self._inhomogeneity(t, part)
            into[:, self.problem.constrained] = 0.0
            return
        for b in self.each():
            self.problem.rate(t, self.state_of(b, state), into[b], part)

    def _inhomogeneity(self, t: float, part: Part) -> Array:
        """R(0, t), one row for all samples or one each."""
        if not self.known(self._inhomogeneities, part, t):
            found = np.zeros((self.count if self.batched else 1, self.problem.n_owned))
            self._one[:] = 0.0
            for b in self.some():
                self.problem.load(self._one, self._state)
                self.problem.rate(t, self._state, found[b], part)
            self._inhomogeneities[part] = t, found
        return self._inhomogeneities[part][1]

    def of_data(self, t: float, w: float, prescribed: Array) -> Array:
        """``M g - w R(g, t)`` of the implicit part, g the prescribed data and zero elsewhere; one row or one each."""
        if not self.known(self._of_data, self.part, t):
            rows, one = np.zeros((2, self.count if self.batched else 1, self.problem.n_owned)), self._one
            for b in self.some():
                one[:] = 0.0
                one[self.problem.constrained] = prescribed[b]
                self.problem.load(one, self._state)
                self.problem.rate(t, self._state, rows[1, b], self.part)
                if not self.stationary:
                    self.problem.mass_times(one, rows[0, b])
            self._of_data[self.part] = t, rows
        masses, rates = self._of_data[self.part][1]
        return np.asarray(masses - w * rates)

    def mass_times(self, values: Array, out: Array, transposed: bool = False) -> None:
        """Write M times values, as ``Semidiscrete.mass_times``."""
        if self.problem.mass_is_diagonal:
            super().mass_times(values, out, transposed)
        elif self.stationary:
            out[:] = 0.0
        else:
            self.matrices.times("mass", 0.0, self.rows(values), self.rows(out), transposed)

    def flow(self, t: float, step: float, state: Array, out: Array) -> None:
        """Write the flow of the source, as ``Semidiscrete.flow``."""
        for b in self.each():
            self.problem.flow(t, step, self.state_of(b, state), self.rows(out)[b])

    def linearised(self, controls: Sequence[Parameter]) -> SampledLinearised:
        """Return the derivatives of the samples' terms, always the same for the same controls."""
        key = tuple(controls)
        if key not in self._linearised:
            self._linearised[key] = SampledLinearised(self, key)
        return self._linearised[key]


class BlockStepper(ImplicitStepper):
    """Implicit steps of all samples: linear solves need neither a scale nor a first guess."""

    def __init__(self, samples: LinearSamples, scheme: Scheme) -> None:
        super().__init__(samples.as_problem, scheme, BlockStages(samples))

    def _scale(self) -> float:
        return 0.0

    def _extrapolate(self, fraction: float, dt: float) -> None:
        """Leave the guess as it is: its prescribed data counts alone."""


class BlockStages:
    """Solves the stages of all samples: a :class:`~npde_fem.solve.steppers.StageEquation`."""

    def __init__(self, samples: LinearSamples) -> None:
        self._samples, self.rate = samples, np.zeros(samples.n_owned)
        self._right, self.found = np.zeros(samples.n_owned), np.zeros(samples.n_owned)
        self.newton_iterations = self.linear_iterations = 0
        self.assembly_seconds = 0.0
        self.failure = "the linear solves failed, or the state became NaN or infinite"

    def evaluate(self, t: float, values: Array) -> None:
        self._samples.rate(t, values, self.rate, self._samples.part)

    def solve(self, t: float, b: Array, w: float, guess: Array, scale: float) -> bool:
        samples, c = self._samples, self._samples.problem.constrained
        right, found, prescribed = samples.rows(self._right), samples.rows(self.found), samples.rows(guess)[:, c]
        np.subtract(samples.rows(b), samples.of_data(t, w, prescribed), out=right)
        right[:, c] = 0.0
        samples.matrices.assemble(t, w)
        good = samples.matrices.solve(right, found)
        found[:, c] = prescribed
        self.linear_iterations += 1
        good = good and bool(np.isfinite(self.found.sum()))
        return bool(samples.comm.allreduce(good, op=MPI.LAND))

    def give_back(self) -> None:
        """Nothing to give back: the samples have the matrices."""


class BlockStageMatrix:
    """Solves with a stage's matrix for all samples: a :class:`~npde_fem.solve.krylov.StageMatrix`."""

    def __init__(self, samples: LinearSamples) -> None:
        self._samples = samples

    def assemble(self, t: float, state: Array, w: float) -> None:
        self._samples.matrices.assemble(t, w)

    def transposed_times(self, values: Array, out: Array) -> None:
        self._samples.matrices.stage_transposed_times(self._samples.rows(values), self._samples.rows(out))

    def solve(self, right: Array, out: Array, transposed: bool) -> None:
        samples = self._samples
        if not samples.matrices.solve(samples.rows(right), samples.rows(out), transposed):
            raise RuntimeError(f"the linear solves of the {'adjoint' if transposed else 'tangent'} equations failed")

    def give_back(self) -> None:
        """Nothing to give back: the samples have the matrices."""
