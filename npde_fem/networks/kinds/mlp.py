"""Multi-layer perceptrons: steps whose matrix is dense, because the equation is nonlocal or the step implicit.

Neurons are points of a lattice, layers time steps, ``u -> Phi(W u + b)``. There are two ways to a dense W (THEORY:
*Discretising it generates networks*):

* **Any matrix** is one explicit step of ``u_t = int K(x, y) u(y) dy + s``, the integral by quadrature with the weight
  h, the spacing: ``W = E + dt h K`` and ``b = dt s``. E is the identity, cut to the shape of W: a W that is not square
  is a change of grid, on which neurons that are new begin at 0 (:class:`NonlocalMLP`).
* **The discrete Green's function** ``W = (I - dt L)^{-1}``, ``b = dt W s``, is one step of backward Euler of the local
  equation ``u_t = div(D grad u - c u) + m u + s``, whose coefficients vary in x (:class:`LocalMLP`).

Parameters are what an optimiser sees, and are counted in spacings and steps, as those of
:class:`~npde_fem.networks.kinds.transport.Transport` are: a step of Adam changes W by as much as it would change
the weight of ``nn.Linear``, whatever h and dt are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, prod, sqrt
from typing import Any

from npde_fem.discretize import FD
from npde_fem.discretize.scalar import components, lower, partial
from npde_fem.equation import NPDE
from npde_fem.networks.evolution import Evolution
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.network import Network
from npde_fem.networks.phases import Phase
from npde_fem.networks.places import sampled
from npde_fem.networks.reactions import FromEquation, Reaction, reaction_named
from npde_fem.nonlocal_terms import Integral
from npde_fem.parameter import Parameter, abstract_domain, terminals_of
from npde_fem.solve.schemes import Scheme, Stage

import basix.ufl
import numpy as np
import numpy.typing as npt
import torch
import ufl
from mpi4py import MPI
from torch.nn.functional import linear, softplus
from torch.nn.utils import parametrize
from ufl.core.expr import Expr

__all__ = ["LocalMLP", "LocalStep", "NonlocalMLP", "NonlocalStep", "mlp"]

Array = npt.NDArray[np.float64]

_MOST_NEURONS = 4096
"""Neurons of the largest local network: its matrices are dense, 128 MiB in float64."""

_FIELDS = ("mass", "drift", "diffusion", "source")


class NonlocalStep(torch.nn.Module):
    """``u -> W u + b``, one step of ``u_t = int K(x, y) u(y) dy + s`` between two numbers of neurons.

    The parameters are ``kernel`` = dt h K = W - E, shape ``(n_out, n_in)``, and ``source`` = dt s = b, ``(n_out,)``;
    :meth:`coefficients` gives K and s. After the same ``torch.manual_seed`` it is the same map as ``nn.Linear``.

    Parameters
    ----------
    n_in, n_out
        Neurons before and after.
    dt, spacing
        Length of the step, distance of the neurons.
    """

    def __init__(
        self, n_in: int, n_out: int, dt: float = 1.0, spacing: float = 1.0, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.dt, self.spacing = dt, spacing
        self._take(torch.nn.Linear(n_in, n_out, dtype=dtype))

    @classmethod
    def from_linear(cls, layer: torch.nn.Linear, dt: float = 1.0, spacing: float = 1.0) -> NonlocalStep:
        """Read a linear layer as a step."""
        made = cls(layer.in_features, layer.out_features, dt, spacing, layer.weight.dtype)
        made._take(layer)
        return made

    @torch.no_grad()
    def _take(self, layer: torch.nn.Linear) -> None:
        weight, bias = layer.weight, layer.bias
        self.kernel = torch.nn.Parameter(weight - _identity(weight))
        self.source = torch.nn.Parameter(weight.new_zeros(len(weight)) if bias is None else bias.clone())

    def matrix(self) -> torch.Tensor:
        """Return W, shape ``(n_out, n_in)``."""
        return self.kernel + _identity(self.kernel)

    def coefficients(self) -> dict[str, Array]:
        """Return ``kernel``, K in 1 / (length time), and ``source``, s in 1 / time, float64."""
        kernel, source = (p.detach().double().cpu().numpy() / self.dt for p in (self.kernel, self.source))
        return {"kernel": kernel / self.spacing, "source": source}

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        if u.shape[-1:] != self.kernel.shape[1:]:
            raise ValueError(
                f"u of shape {tuple(u.shape)} given; (batch, {self.kernel.shape[1]}) (neurons last) allowed"
            )
        return linear(u, self.matrix(), self.source)


def _identity(like: torch.Tensor) -> torch.Tensor:
    return torch.eye(*like.shape, dtype=like.dtype, device=like.device)


class _MLP(Network):
    """What both kinds share: steps, each followed by the reaction, and a linear observation of the last state."""

    steps: torch.nn.ModuleList

    def __init__(
        self, reaction: Reaction, dt: float, size: int, readout: int | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.reaction, self.dt = reaction, dt
        self.readout = None if readout is None else torch.nn.Linear(size, readout, dtype=dtype)

    def _layers(self) -> list[Any]:
        return list(self.steps)

    def _linear(self, step: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of a step."""
        raise NotImplementedError

    def _react(self, u: torch.Tensor) -> torch.Tensor:
        # Neurons are points, of one channel, which is where reactions look for it.
        return self.reaction(u.unsqueeze(1), self.dt).squeeze(1)

    def _activation(self, neurons: int) -> list[torch.nn.Module]:
        module = self.reaction.as_torch(self.dt)
        if self.reaction.componentwise and not list(self.reaction.parameters()):
            return [module]
        return [torch.nn.Unflatten(1, (1, neurons)), module, torch.nn.Flatten()]

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        if u.ndim != 2:
            raise ValueError(f"u of shape {tuple(u.shape)} given; (batch, neurons) allowed")
        for step in self._layers():
            u = self._react(step(u))
        return u if self.readout is None else self.readout(u)

    def as_torch(self) -> torch.nn.Sequential:
        """Return ``nn.Linear`` layers with activations."""
        made: list[torch.nn.Module] = []
        for step in self._layers():
            with torch.no_grad():
                layer = _linear(*self._linear(step))
            made += [layer, *self._activation(layer.out_features)]
        if self.readout is not None:
            made.append(_linear(self.readout.weight, self.readout.bias))
        return torch.nn.Sequential(*made)

    def _observation(self, size: int, outputs: int) -> tuple[Array, Array | None]:
        """The read-out, or else the output itself, as an observation of ``size`` neurons."""
        weight, bias = np.eye(outputs), None
        if self.readout is not None:
            weight, bias = (p.detach().double().cpu().numpy() for p in (self.readout.weight, self.readout.bias))
        return np.pad(weight, [(0, 0), (0, size - weight.shape[1])]), bias


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Linear:
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made


class NonlocalMLP(_MLP):
    """A perceptron of any widths, each layer a step of an integral equation; see :func:`mlp`.

    Attributes
    ----------
    widths
        Neurons before each layer and after the last.
    steps
        The steps (:class:`NonlocalStep`).
    readout
        Linear observation of the last state, or None.
    """

    def __init__(
        self,
        widths: Sequence[int],
        reaction: Reaction,
        dt: float,
        spacing: float,
        readout: int | None,
        dtype: torch.dtype | None,
    ) -> None:
        # Layers are made before the read-out, in the order in which a stock network draws its weights.
        steps = [NonlocalStep(a, b, dt, spacing, dtype) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        super().__init__(reaction, dt, widths[-1], readout, dtype)
        self.widths, self.spacing, self.steps = tuple(widths), spacing, torch.nn.ModuleList(steps)

    @property
    def lattice(self) -> Lattice:
        """The neurons of the widest layer, on a line; those of others are the first ones."""
        return Lattice((max(3, *self.widths),), (self.spacing,), boundary="replicate")

    def _linear(self, step: NonlocalStep) -> tuple[torch.Tensor, torch.Tensor]:
        return step.matrix(), step.source

    def coefficients(self) -> list[dict[str, Array]]:
        """Return K and s of each layer (see :meth:`NonlocalStep.coefficients`)."""
        return [step.coefficients() for step in self._layers()]

    def as_equation(self) -> Evolution:
        """Return the equations of the layers on the neurons of the widest one; ``observed`` is the network's output.

        ``solve`` takes an input of the network, ``(n_in,)`` or ``(1, n_in)``. Neurons beyond a layer's width count
        nothing: its matrix has zeros there.
        """
        lattice = self.lattice
        phases = [Phase(self._equation(step, k, lattice), lattice, self.dt) for k, step in enumerate(self._layers())]
        return Evolution(phases, self._observation(lattice.size, self.widths[-1]), self.widths[0])

    def _equation(self, step: NonlocalStep, layer: int, lattice: Lattice) -> NPDE:
        (n_out, n_in), n = step.kernel.shape, lattice.size
        matrix, values = np.zeros((n, n)), np.zeros(n)
        matrix[:n_out, :n_in] = step.matrix().detach().double().cpu().numpy()
        values[:n_out] = step.coefficients()["source"]
        source = _field("source", values, lattice)
        return NPDE(
            source=lambda u, x, t: 1.0 * source,
            nonlocal_term=Integral(lattice.coordinates().T, (matrix - np.eye(n)) / self.dt),
            flow=lambda u, x, t, dt: self.reaction.flow(u, dt),
            name=f"layer {layer}",
        )


class LocalStep(torch.nn.Module):
    """One step of ``u_t = div(D grad u - c u) + m u + s`` on a lattice, with coefficients that vary in x.

    The matrix L is that of finite differences as :class:`npde_fem.FD` has them: means of D and c at the faces between
    points, outside of the lattice the state that the boundary says, and coefficients that are those of the nearest
    point (with ``"reflect"`` mirrored, which suits a drift along the normal only where it does not change across the
    boundary). The parameters are fields on the lattice, counted in spacings and steps:

    * ``mass`` = dt m, shape ``(*shape,)``,
    * ``drift`` = dt c_a / h_a, shape ``(d, *shape)``,
    * ``diffusion`` = dt D / h^2, shape ``(*shape,)``, h the geometric mean of the spacings,
    * ``source`` = dt s, shape ``(*shape,)``.

    Parameters
    ----------
    lattice
        The points.
    implicit
        Backward Euler, ``v - dt L v = u + dt s``, or else forward Euler, ``v = u + dt (L u + s)``.
    dt
        Length of the step.
    values
        Values of ``mass``, ``drift``, ``diffusion`` and ``source`` in physical units, by name: numbers or arrays that
        can be broadcast to the shapes above; drift also ``(d,)``. Where some are given the others are 0; by default the
        diffusion is about 1/4 and the others about 0, with the spread that ``nn.Linear`` has.
    positive
        Whether the diffusion stays positive: what is trained is then the inverse of ``log(1 + e^f)`` of it.
    """

    mass: torch.Tensor
    drift: torch.Tensor
    diffusion: torch.Tensor
    source: torch.Tensor

    def __init__(
        self,
        lattice: Lattice,
        *,
        implicit: bool = True,
        dt: float = 1.0,
        values: dict[str, Any] | None = None,
        positive: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.lattice, self.implicit, self.dt = lattice, implicit, dt
        for name, value in (self._given(values) if values else self._random()).items():
            self.register_parameter(name, torch.nn.Parameter(value.to(dtype or torch.get_default_dtype())))
        if positive:
            if not bool((self.diffusion > 0).all()):
                raise ValueError("mlp: diffusion that is not positive given with positive=True")
            parametrize.register_parametrization(self, "diffusion", _Positive())

    @property
    def _units(self) -> dict[str, Array]:
        """What a coefficient is multiplied by to become a parameter."""
        h = np.array(self.lattice.spacing)
        mean = prod(self.lattice.spacing) ** (1 / self.lattice.dim)
        along = self.dt / h.reshape(-1, *(1,) * self.lattice.dim)
        return {
            "mass": np.array(self.dt),
            "drift": along,
            "diffusion": np.array(self.dt / mean**2),
            "source": np.array(self.dt),
        }

    def _shape(self, name: str) -> tuple[int, ...]:
        shape = self.lattice.shape
        return (self.lattice.dim, *shape) if name == "drift" else shape

    def _random(self) -> dict[str, torch.Tensor]:
        bound = 1 / sqrt(self.lattice.size)
        drawn = {name: (2 * torch.rand(self._shape(name)) - 1) * bound for name in _FIELDS}
        drawn["diffusion"] = 0.25 * (1 + drawn["diffusion"])
        return drawn

    def _given(self, values: dict[str, Any]) -> dict[str, torch.Tensor]:
        found = {}
        for name in _FIELDS:
            shape, value = self._shape(name), np.asarray(values.get(name, 0.0), dtype=np.float64)
            if name == "drift" and value.shape == (self.lattice.dim,):
                value = value.reshape(-1, *(1,) * self.lattice.dim)
            try:
                whole = np.broadcast_to(value, shape)
            except ValueError as error:
                raise ValueError(
                    f"mlp: {name} of shape {value.shape} given; what broadcasts to {shape} allowed"
                ) from error
            if not np.isfinite(whole).all():
                raise ValueError(f"mlp: {name} is not finite")
            found[name] = torch.from_numpy(whole * self._units[name])
        return found

    def coefficients(self) -> dict[str, Array]:
        """Return the fields ``mass``, ``drift``, ``diffusion`` and ``source`` in physical units, float64."""
        units = self._units
        return {name: getattr(self, name).detach().double().cpu().numpy() / units[name] for name in _FIELDS}

    def generator(self) -> torch.Tensor:
        """Return dt L, shape ``(n, n)``, differentiably."""
        lattice, like = self.lattice, self.mass
        one = torch.eye(lattice.size, dtype=like.dtype, device=like.device)
        total = torch.diag(self.mass.flatten())
        mean = prod(lattice.spacing) ** (1 / lattice.dim)
        for axis, h in enumerate(lattice.spacing):
            ahead, behind = (_neighbours(lattice, axis, step).to(one) for step in (1, -1))
            for side, state in ((1, ahead), (-1, behind)):
                field = _neighbours(lattice, axis, side, coefficients=True).to(one)
                d, c = (0.5 * (f + field @ f) for f in (self.diffusion.flatten(), self.drift[axis].flatten()))
                total = total + (mean / h) ** 2 * d[:, None] * (state - one) - 0.5 * side * c[:, None] * (state + one)
        return total

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        n = self.lattice.size
        if u.ndim != 2 or u.shape[1] != n:
            raise ValueError(f"u of shape {tuple(u.shape)} given; (batch, {n}) (points, last axis fastest) allowed")
        step, source = self.generator(), self.source.flatten()
        if not self.implicit:
            return u + u @ step.T + source
        return torch.linalg.solve(torch.eye(n).to(step) - step, (u + source).T).T

    def matrix(self) -> torch.Tensor:
        """Return W: the discrete Green's function, or ``I + dt L`` of an explicit step."""
        step = self.generator()
        one = torch.eye(len(step)).to(step)
        return torch.linalg.inv(one - step) if self.implicit else one + step


class _Positive(torch.nn.Module):
    """Positive values as ``log(1 + e^f)`` of free ones."""

    def forward(self, free: torch.Tensor) -> torch.Tensor:
        return softplus(free)

    def right_inverse(self, values: torch.Tensor) -> torch.Tensor:
        return values + torch.log(-torch.expm1(-values))


def _neighbours(lattice: Lattice, axis: int, step: int, *, coefficients: bool = False) -> torch.Tensor:
    """Matrix that takes values at the points to those one step along an axis, beyond the boundary too; of
    coefficients to those that count there."""
    n = lattice.shape[axis]
    line = np.eye(n, k=step)
    last, inner = (n - 1, n - 2) if step > 0 else (0, 1)
    if lattice.boundary == "circular":
        line[last, 0 if step > 0 else n - 1] = 1
    elif lattice.boundary == "reflect":
        line[last, inner] += 1
    elif lattice.boundary == "replicate" or coefficients:
        line[last, last] += 1
    matrix: Array = np.eye(1)
    for a, count in enumerate(lattice.shape):
        matrix = np.kron(matrix, line if a == axis else np.eye(count)).astype(np.float64)
    return torch.from_numpy(matrix)


class LocalMLP(_MLP):
    """A perceptron whose layers are steps of a local equation with coefficients that vary in x; see :func:`mlp`.

    Attributes
    ----------
    lattice
        The neurons; those of a batch's row run along its last axis fastest.
    steps
        The steps (:class:`LocalStep`): one for each layer, or, if shared, one for all.
    count
        Number of layers.
    readout
        Linear observation of the last state, or None.
    """

    def __init__(
        self, steps: Sequence[LocalStep], count: int, reaction: Reaction, readout: int | None, dtype: torch.dtype | None
    ) -> None:
        first = steps[0]
        super().__init__(reaction, first.dt, first.lattice.size, readout, dtype)
        self.lattice, self.implicit, self.count = first.lattice, first.implicit, count
        self.steps = torch.nn.ModuleList(steps)

    def _layers(self) -> list[Any]:
        return [step for step in self.steps for _ in range(self.count // len(self.steps))]

    def _linear(self, step: LocalStep) -> tuple[torch.Tensor, torch.Tensor]:
        matrix, source = step.matrix(), step.source.flatten()
        return matrix, matrix @ source if self.implicit else source

    def coefficients(self) -> list[dict[str, Array]]:
        """Return the fields of each layer (see :meth:`LocalStep.coefficients`)."""
        return [step.coefficients() for step in self._layers()]

    def as_equation(self) -> Evolution:
        """Return the equation, its coefficients as fields; those of shared steps are one. ``observed`` is the output.

        If the network is implicit, so are its steps, by backward Euler, and ``substeps`` of them are not allowed.
        """
        each, phases = self.count // len(self.steps), []
        for k, step in enumerate(self.steps):
            equation = _local_equation(step, self.reaction, f"layer {k}")  # type: ignore[arg-type]
            phases.append(Phase(equation, self.lattice, self.dt, each, scheme=_SCHEME if self.implicit else None))
        return Evolution(phases, self._observation(self.lattice.size, self.lattice.size), self.lattice.size)


_SCHEME = Scheme(
    "lie-backward-euler", 1, (Stage(1.0, (1.0,), implicit=1.0), Stage(1.0, flow=1.0, since=0.0)), checked=False
)


def _local_equation(step: LocalStep, reaction: Reaction, name: str) -> NPDE:
    fields = {label: _field(label, values, step.lattice) for label, values in step.coefficients().items()}

    def flux(u: Expr, x: Expr, t: Expr) -> Expr:
        drift = fields["drift"] if step.lattice.dim > 1 else ufl.as_vector([fields["drift"]])
        return fields["diffusion"] * ufl.grad(u) - u * drift

    return NPDE(
        flux=flux,
        source=lambda u, x, t: fields["mass"] * u + fields["source"],
        flow=lambda u, x, t, dt: reaction.flow(u, dt),
        name=name,
    )


def _field(name: str, values: Array, lattice: Lattice) -> Parameter:
    """A field with values ``(*shape,)`` or ``(d, *shape)`` at the points, multilinear between, constant beyond."""
    beyond = lattice if lattice.boundary != "zeros" else replace(lattice, boundary="replicate")
    whole = values.reshape(-1, *lattice.shape)

    def sample(x: Array) -> Array:
        found = sampled(whole, beyond, x)
        return found[0] if len(whole) == 1 else found

    return Parameter(name, sample, field=True, shape=() if len(whole) == 1 else (len(whole),))


def mlp(
    widths: Sequence[int] | None = None,
    *,
    equation: NPDE | None = None,
    grid: Lattice | None = None,
    steps: int = 1,
    scheme: str = "implicit",
    reaction: Any = None,
    readout: int | None = None,
    dt: float = 1.0,
    spacing: float = 1.0,
    shared: bool = False,
    positive: bool = False,
    mass: Any = None,
    drift: Any = None,
    diffusion: Any = None,
    source: Any = None,
    dtype: torch.dtype | None = None,
) -> NonlocalMLP | LocalMLP:
    """Return a multi-layer perceptron of layers ``u -> Phi(W u + b)``; see the module's text.

    Called with ``widths``, its layers are steps of an integral equation, and W is any matrix. Called with ``grid``,
    they are steps of a local equation with coefficients that vary in x.

    Parameters
    ----------
    widths
        Neurons before each layer and after the last; at least two numbers.
    equation
        An equation of one component, linear but for its flow, whose coefficients the parameters start with: ``flux =
        D grad(u) - c u`` with one D for all directions, ``source = m u + s``.
    grid
        The neurons, at most 4096.
    steps
        Number of layers on a grid.
    scheme
        ``"implicit"``, backward Euler, or ``"explicit"``, of the local equation.
    reaction
        A :class:`~npde_fem.networks.reactions.Reaction`, its name, or torch's activation: Phi is its flow over dt. By
        default the equation's flow, if it has one, else "relu".
    readout
        Outputs of a linear layer after the last one; None for none.
    dt
        Length of a step.
    spacing
        Distance of the neurons of ``widths``.
    shared
        Whether all layers on a grid have the same coefficients: an equation that does not depend on time.
    positive
        Whether the diffusion stays positive.
    mass, drift, diffusion, source
        Instead of an equation, values that the parameters start with (see :class:`LocalStep`).
    dtype
        Of the parameters; torch's default by default.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or one of the other kind of network is given.
    """
    _check_positive(dt=dt, spacing=spacing)
    if readout is not None and not _is_count(readout):
        raise ValueError(f"mlp: readout = {readout!r} given; a positive integer, or None, allowed")
    coefficients = {"mass": mass, "drift": drift, "diffusion": diffusion, "source": source}
    given = {name: value for name, value in coefficients.items() if value is not None}
    if (widths is None) == (grid is None):
        raise ValueError("mlp: either widths or a grid of neurons must be given")
    if widths is not None:
        local = [*(["equation"] if equation is not None else []), *given]
        if local:
            raise ValueError(f"mlp: {', '.join(local)} given with widths; with grid=Lattice(...) allowed")
        widths = list(widths)
        if len(widths) < 2 or not all(_is_count(n) for n in widths):
            raise ValueError(f"mlp: widths {widths} given; at least two positive integers allowed")
        return NonlocalMLP(widths, reaction_named(reaction or "relu"), float(dt), float(spacing), readout, dtype)
    if not isinstance(grid, Lattice):
        raise TypeError(f"mlp: grid must be a Lattice, not {grid!r}")
    if grid.size > _MOST_NEURONS:
        raise ValueError(f"mlp: a grid of {grid.size} neurons given; {_MOST_NEURONS} allowed, as matrices are dense")
    if scheme not in ("implicit", "explicit"):
        raise ValueError(f"mlp: unknown scheme {scheme!r}; allowed: implicit, explicit")
    if not _is_count(steps):
        raise ValueError(f"mlp: steps = {steps!r} given; a positive integer allowed")
    if equation is not None:
        if given:
            raise ValueError(f"mlp: {', '.join(given)} given beside an equation; one of them allowed")
        given = dict(_fields_of(equation, grid))
        if reaction is None and equation.flow is not None:
            reaction = FromEquation(NPDE(flow=equation.flow, name=equation.name))
    made = [
        LocalStep(grid, implicit=scheme == "implicit", dt=float(dt), values=given, positive=positive, dtype=dtype)
        for _ in range(1 if shared else steps)
    ]
    return LocalMLP(made, steps, reaction_named(reaction or "relu"), readout, dtype)


def _is_count(n: Any) -> bool:
    return isinstance(n, int | np.integer) and not isinstance(n, bool) and bool(n >= 1)


def _check_positive(**numbers: Any) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value > 0):
            raise ValueError(f"mlp: {name} = {value!r} given; a positive number allowed")


def _fields_of(equation: NPDE, lattice: Lattice) -> dict[str, Array]:
    """The coefficients of an equation at the points of a lattice."""
    if not isinstance(equation, NPDE):
        raise TypeError(f"mlp: equation must be an NPDE, not {equation!r}")
    if equation.components != 1 or equation.is_complex or equation.nonlocal_term is not None:
        raise ValueError(
            f"mlp: equation {equation.name!r}: a real one of one component, without nonlocal term, allowed"
        )
    domain, d = abstract_domain(lattice.dim), lattice.dim
    x, t = ufl.SpatialCoordinate(domain), ufl.Constant(domain)

    def symbol(*shape: int) -> ufl.Coefficient:
        element = basix.ufl.element("Lagrange", domain.ufl_cell().cellname, 5, shape=shape or None)
        return ufl.Coefficient(ufl.FunctionSpace(domain, element))

    u, slope = symbol(), symbol(d)
    terms = equation.terms(domain, u, x, t)
    if terms.inertia != 0 or terms.damping != 1:
        raise ValueError(f"mlp: equation {equation.name!r}: one of first order in time with damping 1 allowed")
    flux, source = (ufl.replace(lower(term), {ufl.grad(u): slope}) for term in (terms.flux, terms.source))
    zero = {u: ufl.zero(), slope: ufl.zero(d)}
    diffusion = partial(flux, slope)
    parts = {"mass": partial(source, u), "drift": -partial(flux, u), "source": lower(ufl.replace(source, zero))}
    dependent = any({u, slope} & terminals_of(part) for part in (diffusion, *parts.values()))
    if dependent or components(lower(ufl.replace(flux, zero))):
        raise ValueError(
            f"mlp: equation {equation.name!r} is not linear: flux D grad(u) - c u and source m u + s allowed, and a "
            "reaction as its flow or by reaction=..."
        )
    points = FD(NPDE(name="coefficients"), lattice.grid(MPI.COMM_SELF), lattice.conditions)

    def sample(expression: Expr) -> Array:
        values = points.interpolate(lambda here, now: ufl.replace(expression, {x: here, t: now}))
        return points.layout.on_grid(values, 1)

    entries = {index: sample(part) for index, part in components(diffusion).items()}
    along = [entries.pop((a, a), np.zeros(lattice.shape)) for a in range(d)]
    scale = 1e-12 * max(np.abs(values).max() for values in along)
    if any(np.abs(v - along[0]).max() > scale for v in along) or any(np.abs(v).max() > scale for v in entries.values()):
        raise ValueError(f"mlp: equation {equation.name!r} has a diffusion tensor; one D for all directions allowed")
    drifts = np.zeros((d, *lattice.shape))
    for (a,), part in components(parts["drift"]).items():
        drifts[a] = sample(part)
    return {"mass": sample(parts["mass"]), "drift": drifts, "diffusion": along[0], "source": sample(parts["source"])}
