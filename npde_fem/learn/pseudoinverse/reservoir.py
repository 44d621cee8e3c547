"""Physical reservoirs: an equation's states, driven by the input and seen by detectors, as features.

The medium is not trained and nothing is differentiated; what is learnt is the linear read-out behind it (Tanaka et al.
2019, Neural Networks 115, 100, of physical reservoirs in general).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from npde_fem.discretize import FD, Grid, Probe, Semidiscrete
from npde_fem.discretize.semidiscrete import Array
from npde_fem.equation import NPDE
from npde_fem.learn.bridge import measured
from npde_fem.learn.distributed import gather
from npde_fem.learn.layer import Layer, observation
from npde_fem.learn.tensors import as_complex
from npde_fem.parallel import alike
from npde_fem.parameter import Parameter
from npde_fem.physics import schrodinger
from npde_fem.solve import RK4, CrankNicolson, Scheme
from npde_fem.solve.integrate import Adaptive
from npde_fem.solve.schemes import Newmark

import numpy as np
import scipy.sparse
import torch
import ufl
from mpi4py import MPI

__all__ = ["Medium", "Reservoir", "medium"]

Measure = Literal["state", "intensity"] | Callable[[torch.Tensor], torch.Tensor]
Medium = Literal["reaction-diffusion", "wave", "schrodinger"]


class Reservoir(torch.nn.Module):
    """A medium that inputs drive and detectors look at, as a module without weights: inputs -> features.

    Pictures are initial states: ``u(0) = rest + mask (gain x + offset)``, multilinear between the pixels, of which the
    first and last along each axis lie on the ends of the domain's box. Signals are sources at points, which kick the
    state (with inertia: the velocity) by ``row_time * x`` spread over the point's neighbours, at the beginning of each
    row's time.

    Parameters
    ----------
    problem
        An :class:`~npde_fem.FEM` or :class:`~npde_fem.FD`, on any number of ranks, of any time-dependent equation.
    t, dt, scheme
        As of :func:`npde_fem.solve`. For signals t is the interval (0, row_time) that one row of a signal lasts, and
        the medium must not depend on time.
    inputs
        ``"u0"``: inputs are pictures, shape (samples, *pixels) indexed by x, y, z, or (samples, n), the dofs that this
        rank owns. Points, shape (k, dimension): inputs are signals at these, shape (samples, rows, k), or (samples,
        rows) for one point.
    observe
        What is seen of a picture's solve: as of :class:`~npde_fem.learn.Layer`, times, a probe, or both; without a
        probe all dofs. Of a signal's: a probe, or None for all dofs, after each row.
    measure
        ``"state"``: the state, of a complex one both parts; ``"intensity"``: its squared magnitude; or a function of
        the tensor (samples, ..., components) of observations.
    media
        Values of parameters for each of several solves, whose features stand side by side: for a number its value, for
        a field a number, the values that this rank owns, or, where these are at the state's points, a function of
        coordinates (3, n).
    masks
        For each medium one factor a pixel, shape (media, *pixels), as a diffuser in front of it; 1 by default.
    gain, offset, rest
        As above; rest is a number, or one for each component.
    component
        The component that inputs enter.
    windows
        Of signals: into how many spans of equal numbers of rows they are divided; what is measured is averaged over
        each.

    Raises
    ------
    TypeError, ValueError
        If something fits no problem, point, or other argument.

    Notes
    -----
    On several ranks of the problem's communicator all calls are collective, inputs are the same on all, and so are
    features. Samples are solved together where they share work (see :class:`~npde_fem.solve.batch.Batch`).
    """

    def __init__(
        self,
        problem: Semidiscrete,
        t: tuple[float, float],
        dt: float | Adaptive,
        inputs: Any = "u0",
        observe: Any = None,
        *,
        scheme: Scheme | Newmark | None = None,
        measure: Measure = "intensity",
        media: Sequence[Mapping[str, Any]] = ({},),
        masks: Any = None,
        gain: float = 1.0,
        offset: float = 0.0,
        rest: Any = 0.0,
        component: int = 0,
        windows: int = 1,
    ) -> None:
        super().__init__()
        if not isinstance(problem, Semidiscrete):
            raise TypeError(f"Reservoir: problem must be FEM or FD, not {type(problem).__name__}")
        if problem.stationary:
            raise ValueError("Reservoir: an equation without time given; one with a time derivative allowed")
        if not callable(measure) and measure not in ("state", "intensity"):
            raise ValueError(f"Reservoir: measure {measure!r} given; 'state', 'intensity' or a function allowed")
        m = problem.equation.components
        if not 0 <= component < m:
            raise ValueError(f"Reservoir: component {component!r} given; 0 to {m - 1} allowed")
        if isinstance(windows, bool) or not isinstance(windows, int) or windows < 1:
            raise ValueError(f"Reservoir: windows = {windows!r} given; a positive integer allowed")
        self._problem, self.measure, self.windows, self.component = problem, measure, windows, component
        self.gain, self.offset = float(gain), float(offset)
        self._rest = np.broadcast_to(np.asarray(rest, dtype=np.float64), (m,))
        self._media = _settled(problem, media)
        self._masks = None if masks is None else np.asarray(masks, dtype=np.float64)
        if self._masks is not None and len(self._masks) != len(self._media):
            raise ValueError(f"Reservoir: {len(self._masks)} masks given for {len(self._media)} media; as many allowed")
        self.signals = not (isinstance(inputs, str) and inputs == "u0")
        self._complex = problem.equation.is_complex
        self._points = problem.n_owned // (m * (2 if self._complex else 1))
        self._box = _box(problem)
        self._entrances: dict[tuple[int, ...], Any] = {}
        known: dict[str, Any] = {"scheme": scheme, "parameters": []}
        times, self._probe = observation(problem, observe)
        if not self.signals:
            self._layer = Layer(problem, t, dt, inputs="u0", observe=times, **known)
            return
        if times is not None:
            raise ValueError("Reservoir: times to observe given; signals are seen after each row: a Probe allowed")
        if float(t[0]) != 0:
            raise ValueError(f"Reservoir: t = {t!r} given; for signals (0, time of a row) allowed")
        moving = problem.second_order
        names = ["u0", "velocity"] if moving else ["u0"]
        self._layer = Layer(problem, t, dt, inputs=names, with_velocity=moving, **known)
        self._row_time, self._push = float(t[1]), _push(problem, inputs, component)

    @property
    def problem(self) -> Semidiscrete:
        """The problem that is solved."""
        return self._problem

    def extra_repr(self) -> str:
        """Return equation, discretisation and kind of input for ``repr``."""
        kind = f"{self._push.shape[1]} sources" if self.signals else "pictures"
        return f"{self.problem.equation.name}, {self.problem.method}, {kind}, media={len(self._media)}"

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features of inputs, shape (samples, features), of the inputs' dtype (collective).

        Raises
        ------
        TypeError, ValueError
            If the inputs' shape fits neither pixels nor dofs, or the number of sources.
        SolveError
            If a solve fails.
        """
        with alike(self.problem.comm):
            given = self._checked(x)
        if not len(x):
            raise ValueError("Reservoir: no samples given; at least one allowed")
        seen = []
        for k, values in enumerate(self._media):
            with self.problem.holding(values):
                seen.append(self._driven(given) if self.signals else self._evolved(given, k))
        return torch.cat(seen, dim=1).to(x.device, x.dtype if x.is_floating_point() else torch.float64)

    def _checked(self, x: torch.Tensor) -> Array:
        if not isinstance(x, torch.Tensor) or x.is_complex():
            raise TypeError(
                f"Reservoir: {getattr(x, 'dtype', type(x).__name__)} given; a tensor of real numbers allowed"
            )
        given = x.detach().cpu().numpy().astype(np.float64)
        if not self.signals:
            return self._pictures(given)
        given = given[:, :, None] if given.ndim == 2 else given
        sources = self._push.shape[1]
        if given.ndim != 3 or given.shape[2] != sources or given.shape[1] < self.windows:
            raise ValueError(
                f"Reservoir: signals of shape {tuple(x.shape)} given; (samples, rows, {sources}) with at least "
                f"{self.windows} rows allowed"
            )
        return given

    def _measured(self, states: torch.Tensor) -> torch.Tensor:
        """Return what is measured of states (samples, ..., dofs): (samples, ..., points, components)."""
        if self._probe is None:
            nodes = gather(states, self.problem).reshape(*states.shape[:-1], -1, len(self._rest))
        else:
            pairs = torch.view_as_real(states).flatten(-2) if self._complex else states
            nodes = measured(self._probe, pairs.contiguous())
            nodes = as_complex(nodes) if self._complex else nodes
        if callable(self.measure):
            return self.measure(nodes)
        if self.measure == "intensity":
            return nodes.abs().square()
        return torch.view_as_real(nodes).flatten(-2) if self._complex else nodes

    # -- pictures --------------------------------------------------------------------------------------------

    def _pictures(self, given: Array) -> Array:
        """Return pictures (samples, *pixels), or values at this rank's points (samples, points)."""
        dim = self.problem.dim
        if given.ndim == dim + 2 and given.shape[1] == 1:
            given = given[:, 0]
        pixels = given.shape[1:]
        if len(pixels) == dim and min(pixels) > 0:
            if self._masks is not None and self._masks.shape[1:] != pixels:
                raise ValueError(f"Reservoir: pictures of {pixels} given; {self._masks.shape[1:]}, the masks', allowed")
        elif len(pixels) != 1 or pixels[0] != self._points:
            raise ValueError(
                f"Reservoir: inputs of shape {given.shape} given; (samples, pixels along each of {dim} axes), or "
                f"(samples, {self._points}), the points that this rank owns, allowed"
            )
        return given

    def _entrance(self, pixels: tuple[int, ...]) -> Any:
        """Return the matrix from pixels to the points that this rank owns."""
        if pixels not in self._entrances:
            points = self.problem.coordinates()[:, : self.problem.dim]
            self._entrances[pixels] = _hats(points, pixels, *self._box)
        return self._entrances[pixels]

    def _evolved(self, pictures: Array, k: int) -> torch.Tensor:
        lit = (self.gain * pictures + self.offset).reshape(len(pictures), -1)
        if pictures.ndim == self.problem.dim + 1:
            if self._masks is not None:
                lit *= self._masks[k].reshape(-1)
            lit = (self._entrance(pictures.shape[1:]) @ lit.T).T
        states = self._at_rest(len(lit))
        states[..., self.component] += lit
        found = self._layer(torch.from_numpy(states.reshape(len(lit), -1)))
        return self._measured(found).flatten(1)

    def _at_rest(self, samples: int) -> Array:
        """Return states without input, shape (samples, points, components)."""
        return np.tile(self._rest, (samples, self._points, 1))

    # -- signals ---------------------------------------------------------------------------------------------

    def _driven(self, signals: Array) -> torch.Tensor:
        samples, rows = signals.shape[:2]
        u = torch.from_numpy(self._at_rest(samples).reshape(samples, -1))
        if self._complex:
            u = u.to(torch.complex128)
        v = torch.zeros_like(u) if self.problem.second_order else None
        push = torch.from_numpy(self._row_time * self._push.T)
        means: list[torch.Tensor] = []
        for span in np.array_split(np.arange(rows), self.windows):
            total: torch.Tensor | None = None
            for row in span:
                kick = torch.from_numpy(signals[:, row]) @ push
                if v is None:
                    u = self._layer(u + kick)
                else:
                    u, v = self._layer(u, v + kick)
                seen = self._measured(u)
                total = seen if total is None else total.add_(seen)
            assert total is not None
            means.append(total.flatten(1) / len(span))
        return torch.cat(means, dim=1)


def _settled(problem: Semidiscrete, media: Sequence[Mapping[str, Any]]) -> list[dict[str, Array]]:
    """Return the parameters' values in each medium as problems hold them (collective)."""
    found: list[dict[str, Array]] = []
    for values in media:
        unknown = set(values) - set(problem.parameters)
        if unknown:
            raise ValueError(f"Reservoir: media name {sorted(unknown)}; {sorted(problem.parameters)} allowed")
        settled: dict[str, Array] = {}
        for name, value in values.items():
            parameter = problem.parameters[name]
            shape = (problem.field_size(name),) if parameter.is_field else parameter.ufl_shape
            numbers = value(problem.coordinates().T) if callable(value) else value
            settled[name] = np.broadcast_to(np.asarray(numbers, dtype=np.float64), shape).copy()
        found.append(settled)
    if not found:
        raise ValueError("Reservoir: no media given; at least one allowed, {} for the problem as it is")
    return found


def _box(problem: Semidiscrete) -> tuple[Array, Array]:
    """Return the corners of the box that all points lie in (collective)."""
    points = problem.coordinates()[:, : problem.dim]
    lower, upper = points.min(axis=0, initial=np.inf), points.max(axis=0, initial=-np.inf)
    problem.comm.Allreduce(MPI.IN_PLACE, lower, op=MPI.MIN)
    problem.comm.Allreduce(MPI.IN_PLACE, upper, op=MPI.MAX)
    return lower, upper


def _push(problem: Semidiscrete, points: Any, component: int) -> Array:
    """Return what a unit source at each point adds to this rank's dofs: of unit integral, shape (points, k)."""
    probe, m = Probe(problem, points), problem.equation.components
    parts = probe.components // m
    weights, volume = np.zeros((problem.n_owned, len(probe.points))), np.zeros(problem.n_owned)
    problem.gram_times(np.ones(problem.n_owned), volume)
    for k in range(len(probe.points)):
        unit = np.zeros((len(probe.points), probe.components))
        unit[k, component * parts] = 1.0
        probe.transpose(unit, weights[:, k])
    weights /= volume[:, None]
    return weights[::2] if parts == 2 else weights


def _hats(points: Array, pixels: Sequence[int], lower: Array, upper: Array) -> Any:
    """Return the matrix of multilinear interpolation from pixels, spread over a box, to points in it."""
    rows = np.arange(len(points))
    columns, weights = np.zeros((len(points), 1), dtype=np.int64), np.ones((len(points), 1))
    for axis, n in enumerate(pixels):
        place = (points[:, axis] - lower[axis]) / (upper[axis] - lower[axis]) * (n - 1)
        before = np.clip(np.floor(place).astype(np.int64), 0, max(0, n - 2))
        share = np.clip(place - before, 0.0, 1.0)
        ends = np.stack([before, np.minimum(before + 1, n - 1)], axis=1)
        shares = np.stack([1 - share, share], axis=1)
        columns = (columns[:, :, None] * n + ends[:, None]).reshape(len(points), -1)
        weights = (weights[:, :, None] * shares[:, None]).reshape(len(points), -1)
    at = np.repeat(rows, columns.shape[1]), columns.ravel()
    return scipy.sparse.csr_array((weights.ravel(), at), (len(points), math.prod(pixels)))


# -- ready-made media ------------------------------------------------------------------------------------------


def medium(
    pixels: Sequence[int],
    kind: Medium = "reaction-diffusion",
    media: int = 16,
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    comm: MPI.Comm = MPI.COMM_SELF,
) -> Reservoir:
    """Return a medium for pictures: random, on the grid of the pixels, behind a diffuser of random signs.

    Parameters
    ----------
    pixels
        Shape of the pictures; lengths are in pixels.
    kind
        ``"reaction-diffusion"``: ``u_t = lap u + 3 (u - u^3) + s(x)``, bistable, with a random source s; the state is
        seen at t = 1/2. ``"wave"``: ``u_t = v, v_t = div(c(x)^2 grad u)`` with a random speed, a scatterer; the
        intensity is seen at t = 1, 2 and 3. ``"schrodinger"``: ``i psi_t = -lap psi / 2 + V(x) psi`` with a random
        potential; ``|psi|^2`` is seen at t = 1 and 2.
    media
        Number of random media; each gives a feature for each pixel and time.
    low, high
        Range of the pictures, which is mapped onto -0.8 to 1.2.
    seed, comm
        Of the random numbers, and ranks of the grid; by default this one alone. Media are the same on any number.

    Raises
    ------
    ValueError
        If the kind is unknown, there are no media, or less than 3 pixels along an axis.
    """
    if kind not in _KINDS:
        raise ValueError(f"medium: {kind!r} given; {sorted(_KINDS)} allowed")
    if isinstance(media, bool) or not isinstance(media, int | np.integer) or media < 1:
        raise ValueError(f"medium: media = {media!r} given; a positive integer allowed")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"medium: low = {low!r} and high = {high!r} given; finite numbers, the first below, allowed")
    shape = tuple(int(n) for n in pixels)
    upper = tuple(n - 1.0 for n in shape)
    equation, t, dt, scheme, times, measure, spread = _KINDS[kind]()
    problem = FD(equation, Grid(comm, shape, (0.0,) * len(shape), upper))
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((media, *shape))
    signs = rng.choice([-1.0, 1.0], (media, *shape))

    def field(values: Array) -> Callable:
        return lambda x: _hats(x[: len(shape)].T, shape, np.zeros(len(shape)), np.array(upper)) @ values.ravel()

    gain = 2.0 / (high - low)
    return Reservoir(
        problem,
        t,
        dt,
        "u0",
        times,
        scheme=scheme,
        measure=measure,
        media=[{"random": field(spread(values))} for values in draws],
        masks=signs,
        gain=gain,
        offset=-0.8 - gain * low,
    )


def _bistable() -> tuple:
    source = Parameter("random", 0.0, field=True)
    equation = NPDE(
        flux=lambda u, x, t: ufl.grad(u), source=lambda u, x, t: 3 * (u - u**3) + source, name="bistable medium"
    )
    return equation, (0.0, 0.5), 0.025, RK4(), [0.5], "state", lambda z: 2.0 * z


def _scatterer() -> tuple:
    speed = Parameter("random", 1.0, field=True)

    def flux(u: Any, x: Any, t: Any) -> Any:
        return ufl.dot(ufl.as_matrix([[0, 0], [speed**2, 0]]), ufl.grad(u))

    equation = NPDE(flux=flux, source=lambda u, x, t: ufl.as_vector([u[1], 0 * u[0]]), components=2, name="wave medium")
    return equation, (0.0, 3.0), 0.25, RK4(), [1.0, 2.0, 3.0], _displacement, lambda z: 1.0 + 0.5 * np.tanh(z)


def _displacement(states: torch.Tensor) -> torch.Tensor:
    """Intensity of a wave, which is the first component."""
    return states[..., 0].square()


def _quantum() -> tuple:
    potential = Parameter("random", 0.0, field=True)
    equation = schrodinger(potential)
    return equation, (0.0, 2.0), 0.1, CrankNicolson(), [1.0, 2.0], "intensity", lambda z: 2.0 * z


_KINDS: dict[str, Callable[[], tuple]] = {
    "reaction-diffusion": _bistable,
    "wave": _scatterer,
    "schrodinger": _quantum,
}
