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
from typing import Any, Literal, cast

from npde_fem.discretize.fd import FD
from npde_fem.discretize.fd_linearised import FDLinearised
from npde_fem.discretize.fem_linearised import FEMLinearised
from npde_fem.discretize.linearised import Linearised, Nodal
from npde_fem.discretize.semidiscrete import Array, Part, Semidiscrete, Term
from npde_fem.neural_terms import Weights
from npde_fem.parameter import Parameter
from npde_fem.solve.blocks import BlockMatrices, Slope
from npde_fem.solve.schemes import Scheme
from npde_fem.solve.steppers import ImplicitStepper

import numpy as np
from mpi4py import MPI

__all__ = ["BlockStageMatrix", "BlockStepper", "LinearSamples", "SampledLinearised", "SampledNodal", "Samples"]


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
        self._of_data: dict[tuple[Part, float], tuple[float, Array]] = {}
        self._state, self._row = problem.new_state(), np.zeros(problem.n_owned)
        self._linearised: dict[tuple[Parameter, ...], SampledLinearised] = {}
        self._linear_terms: dict[Term, bool] = {}

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Use the matrices, of the parameters' present values, meanwhile (collective)."""
        self._inhomogeneities.clear()
        self._of_data.clear()
        self.matrices = BlockMatrices.borrow(self.problem, self.part, self.count)
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
        key = self.part, w
        if not self.known(self._of_data, key, t):
            found, one = np.zeros((self.count if self.batched else 1, self.problem.n_owned)), self._one
            for b in self.some():
                one[:] = 0.0
                one[self.problem.constrained] = prescribed[b]
                self.problem.load(one, self._state)
                self.problem.rate(t, self._state, found[b], self.part)
                found[b] *= -w
                if not self.stationary:
                    self.problem.mass_times(one, self._row)
                    found[b] += self._row
            self._of_data = {key: (t, found)}
        return self._of_data[key][1]

    def mass_times(self, values: Array, out: Array, transposed: bool = False) -> None:
        """Write M times values, as ``Semidiscrete.mass_times``."""
        if self.problem.mass_is_diagonal:
            super().mass_times(values, out, transposed)
        elif self.stationary:
            out[:] = 0.0
        else:
            self.matrices.times("mass", 0.0, self.rows(values), self.rows(out), transposed)

    @property
    def nodal_weights(self) -> Array:
        """As of ``Semidiscrete``."""
        return np.tile(self.problem.nodal_weights, self.count)

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


class SampledLinearised:
    """Derivatives of the samples' terms, as :class:`Linearised`: by state and shared parameters, and batched ones.

    Where the inhomogeneities alone depend on a parameter, its derivatives do not depend on the state; adjoints are then
    summed up, over shared samples and over times where time does not matter, and collected once in the end. By some
    numbers in dR/du, the derivative is that of the inhomogeneities, and ``lambda . (dR/du)_theta u`` by one matrix a
    number. By all other parameters in dR/du it is collected sample by sample, or in a compiled loop over these.
    """

    def __init__(self, samples: LinearSamples, controls: tuple[Parameter, ...]) -> None:
        problem = samples.problem
        self._of, self.controls = samples, controls
        self._all = problem.linearised(controls)
        self.with_damping, self.with_inertia = self._all.with_damping, self._all.with_inertia
        bent = [p for p in controls if p.name in problem.matrix_parameters]
        numbers = self._by_matrices(bent)
        self._bent = problem.linearised([p for p in bent if p not in numbers])
        self._rest = problem.linearised([p for p in controls if p not in bent or p in numbers])
        self._numbers = problem.linearised(numbers)
        self._slopes: dict[Part, list[Slope]] = {}
        self._by_slope = {p.name: np.zeros(p.ufl_shape) for p in numbers}
        self._product = np.zeros((samples.count, problem.n_owned))
        self._states: Array | None = None
        self._direction, self._still = problem.new_state(), problem.new_state()
        self._delta: Mapping[str, Array] = {}
        self._sums: dict[tuple[Term | Literal["data"], float], Array] = {}
        self._tangents: dict[Part, tuple[float, Array]] = {}

    def _by_matrices(self, bent: Sequence[Parameter]) -> list[Parameter]:
        """Which of the parameters in dR/du are collected by matrices: numbers, if these are fewer than the samples."""
        if self.with_damping or not isinstance(self._all, FEMLinearised) or not self._of.is_linear("all"):
            return []
        numbers = [p for p in bent if not (p.is_field or isinstance(p, Weights))]
        return numbers if sum(int(np.prod(p.ufl_shape)) for p in numbers) < self._of.count else []

    def _slopes_of(self, part: Part) -> list[Slope]:
        if part not in self._slopes:
            lin, found = self._numbers, []
            if isinstance(lin, FEMLinearised) and lin.controls and lin.jacobian_along(part) is not None:
                components = [(p.name, k) for p in lin.controls for k in range(int(np.prod(p.ufl_shape)))]
                found = [Slope(part, *component, lin) for component in components]
            self._slopes[part] = found
        return self._slopes[part]

    def at(self, t: float, state: Array, direction: Array | None = None, step: float = 0.0) -> None:
        """Linearise about a state of the samples, as ``Linearised.at``."""
        self._t, self._state, self._v, self._step = t, state, direction, step

    def _place(self, lin: Linearised, b: int) -> None:
        """Linearise about the state of one sample."""
        direction = self._still
        if self._v is not None:
            direction = self._direction
            self._of.problem.load(self._of.rows(self._v)[b], direction)
        lin.at(self._t, self._of.state_of(b, self._state), direction, self._step)

    def move(self, delta: Mapping[str, Array]) -> None:
        """Set the parameters' direction, as ``Linearised.move``; that of batched ones has shape (count, size)."""
        self._delta = delta
        self._tangents.clear()
        self._move(0)

    def move_to(self, b: int) -> None:
        """Let batched parameters move as those of a sample do."""
        if self._of.batched:
            self._move(b)

    def _move(self, b: int) -> None:
        samples = self._of
        of_one = {name: samples.shaped(name, d[b]) if name in samples.batched else d for name, d in self._delta.items()}
        self._all.move(of_one)

    def tangent(self, term: Term, out: Array) -> None:
        """Write ``T_u v + T_theta delta``, as ``Linearised.tangent``."""
        samples, into = self._of, self._of.rows(out)
        bent = self._bent.controls or self._by_slope
        if samples.is_linear(term) and not bent and self._v is not None:
            part = cast(Part, term)
            samples.matrices.times(part, self._t, samples.rows(self._v), into)
            into += self._moved(part)
            into[:, samples.problem.constrained] = 0.0
            return
        for b in samples.each():
            self.move_to(b)
            self._place(self._all, b)
            self._all.tangent(term, into[b])

    def _moved(self, part: Part) -> Array:
        """``R_theta delta`` where it does not depend on the state: one row for all samples, or one each."""
        samples = self._of
        if not samples.known(self._tangents, part, self._t):
            found = np.zeros((samples.count if samples.batched else 1, samples.problem.n_owned))
            for b in samples.some() if self.controls else ():
                self.move_to(b)
                self._all.at(self._t, self._still, self._still)
                self._all.tangent(part, found[b])
            self._tangents[part] = self._t, found
        return self._tangents[part][1]

    def pull(self, term: Term, adjoint: Array, out: Array) -> None:
        """Write ``T_u^T adjoint``, as ``Linearised.pull``."""
        samples, rows, into = self._of, self._of.rows(adjoint), self._of.rows(out)
        if samples.is_linear(term):
            samples.matrices.times(cast(Part, term), self._t, rows, into, True)
            return
        for b in samples.each():
            self._place(self._all, b)
            self._all.pull(term, rows[b], into[b])

    def collect(self, term: Term, adjoint: Array) -> None:
        """Add ``T_theta^T adjoint`` to the gradient, as ``Linearised.collect``."""
        rows = self._of.rows(adjoint)
        known = term == "all" or term == "flux" or term == "source"
        if not (known and self._collected_at_once(term, adjoint)):
            by_sample = [lin for lin in ((self._bent,) if known else (self._bent, self._rest)) if lin.controls]
            for b in self._of.each() if by_sample else ():
                for lin in by_sample:
                    self._place(lin, b)
                    lin.collect(term, rows[b])
        if known and self._rest.controls:
            self.add_up(term, self._t, rows)
        for slope in self._slopes_of(cast(Part, term)) if known else ():
            self._of.matrices.times(slope, self._t, self._of.rows(self._state), self._product)
            self._by_slope[slope.number].reshape(-1)[slope.component] += np.vdot(rows, self._product)

    def _collected_at_once(self, term: Term, adjoint: Array) -> bool:
        """Collect for all samples by one compiled loop, where there is one; return whether there is."""
        problem, lin = self._of.problem, self._bent
        if not (isinstance(problem, FD) and isinstance(lin, FDLinearised)) or not problem.fuses or self._of.batched:
            return False
        if lin.controls:
            if self._states is None:
                self._states = problem.new_states(self._of.count)
            problem.load(self._state, self._states)
            lin.at_many(self._t, self._states)
            lin.collect_many(term, adjoint)
        return True

    def add_up(self, what: Term | Literal["data"], t: float, rows: Array) -> None:
        """Add adjoints to those of the same term, or of the prescribed data, at the same time."""
        key = what, 0.0 if self._of.problem.autonomous else t
        share = rows if self._of.batched else rows.sum(axis=0, keepdims=True)
        if key in self._sums:
            self._sums[key] += share
        else:
            self._sums[key] = share.copy()

    def prescribed(self, order: int = 0) -> SampledNodal | None:
        """Return the prescribed data, as ``Linearised.prescribed``."""
        nodal = self._all.prescribed(order)
        return None if nodal is None else SampledNodal(self._of, self, nodal)

    def clear(self) -> None:
        """Set the gradient to zero."""
        self._sums.clear()
        for lin in (self._bent, self._rest):
            lin.clear()
        for by_slope in self._by_slope.values():
            by_slope[...] = 0.0

    def gradient(self) -> dict[str, Array]:
        """Return what was collected, as ``Linearised.gradient``; that by batched parameters with a row a sample."""
        samples, found, own = self._of, self._rest.gradient(), []
        for b in samples.some():
            self._rest.clear()
            for (what, t), rows in self._sums.items():
                self._collect_sum(what, t, rows[b])
            own.append(self._rest.gradient())
        for name in found:
            parts = [gradient[name] for gradient in own]
            found[name] = np.stack(parts) if name in samples.batched else found[name] + sum(parts)
        for name, by_slope in self._by_slope.items():
            found[name] += samples.comm.allreduce(by_slope)
        return found | self._bent.gradient()

    def _collect_sum(self, what: Term | Literal["data"], t: float, row: Array) -> None:
        if what != "data":
            self._rest.at(t, self._still, self._still)
            self._rest.collect(what, row)
            return
        for lin in (self._bent, self._rest):
            nodal = lin.prescribed() if lin.controls else None
            if nodal is not None:
                nodal.collect(t, row)


class SampledNodal:
    """Prescribed data of all samples, as :class:`Nodal`."""

    def __init__(self, samples: LinearSamples, owner: SampledLinearised, nodal: Nodal) -> None:
        self._of, self._owner, self._nodal = samples, owner, nodal

    def tangent(self, t: float, out: Array) -> None:
        """Write ``g_theta delta`` into the values ``out``."""
        into, c = self._of.rows(out), self._of.problem.constrained
        for b in self._of.some():
            self._owner.move_to(b)
            self._nodal.tangent(t, into[b])
        if not self._of.batched:
            into[1:, c] = into[0, c]

    def collect(self, t: float, adjoint: Array) -> None:
        """Add ``g_theta^T adjoint`` to the gradient."""
        self._owner.add_up("data", t, self._of.rows(adjoint))
