"""What an equation written in UFL is as a layer of a network: coefficients of a convolution, and a reaction.

The linear part L of ``B u_t = div F + S + N u`` is read off by symbolic differentiation, ``D = dF / d(grad u)``,
``c = -dF / du`` and so on, divided by B; what is no convolution is refused. A source that is not linear becomes the
reaction as a whole, without its terms in grad u, which must be linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from npde_fem.discretize.scalar import components, lower, partial
from npde_fem.equation import NPDE
from npde_fem.networks.coefficients import Coefficients
from npde_fem.networks.reactions.activations import Identity
from npde_fem.networks.reactions.reaction import Reaction, Step
from npde_fem.networks.reactions.torch_function import torch_function
from npde_fem.nonlocal_terms import Stencil
from npde_fem.parameter import Composite, Parameter, abstract_domain, parameters_of, terminals_of

import basix.ufl
import numpy as np
import numpy.typing as npt
import torch
import ufl
from torch import nn
from ufl.classes import Grad, SpatialCoordinate
from ufl.core.expr import Expr
from ufl.corealg.traversal import unique_pre_traversal

__all__ = ["FromEquation", "coefficients_of", "torch_function"]

Array = npt.NDArray[np.float64]


class _Written:
    """An equation in symbols: ``u``, its gradient ``slope``, ``dt``, and parameters.

    Attributes
    ----------
    flux, source
        F and S, divided by B, lowered.
    flow
        The flow of the equation; None if it has none.
    """

    def __init__(self, equation: NPDE, dim: int) -> None:
        if dim not in (1, 2, 3):
            raise ValueError(f"dim = {dim!r} given; 1, 2 or 3 allowed")
        label = self.label = f"equation {equation.name!r}"
        if equation.is_complex:
            raise ValueError(f"{label} is complex; real ones allowed: channels of a network are real")
        domain = abstract_domain(dim)
        element = basix.ufl.element("Lagrange", domain.ufl_cell().cellname, 5, shape=equation.shape or None)
        self.dim, self.shape, self.components = dim, equation.shape, equation.components
        self.u = ufl.Coefficient(ufl.FunctionSpace(domain, element))
        self.slope = ufl.Constant(domain, shape=(*equation.shape, dim))
        self.dt = ufl.Constant(domain)
        self._x, self._t = ufl.SpatialCoordinate(domain), ufl.Constant(domain)
        terms = equation.terms(domain, self.u, self._x, self._t)
        if not isinstance(lower(terms.inertia), ufl.classes.Zero):
            raise ValueError(
                f"{label} has inertia and is of second order in time; first order allowed (a wave is a recurrent "
                "network: wave_rnn)"
            )
        damping = lower(terms.damping)
        self._check("damping", damping)
        if damping.ufl_shape != ():
            raise ValueError(f"{label} has a matrix for its damping; a number allowed: solve for u_t")
        self.parameters = parameters_of(terms)
        fields = [name for name, p in self.parameters.items() if p.is_field]
        if fields:
            raise ValueError(
                f"{label} contains the fields {', '.join(fields)}; numbers allowed: a convolution is the same "
                "everywhere"
            )
        if float(self.value_of(damping)) == 0.0:
            raise ValueError(f"{label} is stationary, its damping is 0; one with a time derivative allowed")
        self.flux, self.source = (self._local(n, getattr(terms, n) / damping) for n in ("flux", "source"))
        self.flow = None
        if equation.flow is not None:
            flow = equation.write_flow(domain, self.u, self._x, self._t, self.dt)
            self.parameters = parameters_of([*terms, flow])
            self.flow = self._local("flow", flow)

    def __deepcopy__(self, memo: dict) -> _Written:
        return self  # symbols that nobody changes

    def _local(self, term: str, expression: Expr) -> Expr:
        """Return a lowered term with the symbol for grad u, or raise ValueError for what no convolution has."""
        lowered = lower(expression)
        if any(isinstance(n, Grad) and n.ufl_operands[0] != self.u for n in unique_pre_traversal(lowered)):
            raise ValueError(f"the {term} of {self.label} contains second derivatives; grad(u) allowed")
        local = ufl.replace(lowered, {ufl.grad(self.u): self.slope})
        self._check(term, local)
        return local

    def _check(self, term: str, expression: Expr) -> None:
        for terminal in terminals_of(expression):
            if isinstance(terminal, SpatialCoordinate) or terminal == self._t:
                what = "x" if isinstance(terminal, SpatialCoordinate) else "t"
                raise ValueError(
                    f"the {term} of {self.label} depends on {what}; constant coefficients allowed: a convolution is "
                    "the same everywhere, and at all times"
                )
            if isinstance(terminal, Composite):
                raise ValueError(f"the {term} of {self.label} contains the network {terminal}; UFL allowed")
            known = isinstance(terminal, Parameter) or terminal in (self.u, self.slope, self.dt)
            if isinstance(terminal, ufl.Coefficient | ufl.Constant) and not known:
                raise ValueError(
                    f"the {term} of {self.label} contains {terminal}; u and parameters that are numbers allowed"
                )

    def value_of(self, expression: Expr) -> Array:
        """Value of an expression of parameters, at theirs."""
        numbers = [torch.tensor(p.value, dtype=torch.float64) for p in self.parameters.values()]
        value: Array = torch_function(expression, list(self.parameters.values()))(*numbers).numpy()
        return value

    def derivative(self, term: str, expression: Expr, symbol: Expr, refusal: str) -> Array:
        """Value of a derivative by u or by its gradient, which must be constant."""
        derivative = partial(expression, symbol)
        for part in components(derivative).values():
            if terminals_of(part) & {self.u, self.slope}:
                raise ValueError(f"the {term} of {self.label} {refusal}")
        return self.value_of(derivative)

    @property
    def pointwise(self) -> Expr:
        """The source where grad u = 0, divided by B."""
        return lower(ufl.replace(self.source, {self.slope: ufl.zero(*self.slope.ufl_shape)}))

    @property
    def is_linear(self) -> bool:
        """Whether :attr:`pointwise` is linear in u."""
        parts = components(partial(self.pointwise, self.u)).values()
        return not any(self.u in terminals_of(part) for part in parts)

    @property
    def flow_is_of_source(self) -> bool:
        """Whether the flow is u at dt = 0 and changes there by :attr:`pointwise`, at some states."""
        assert self.flow is not None
        symbols = [self.u, self.dt, *self.parameters.values()]
        samples = np.random.default_rng(0).uniform(0.1, 0.9, (*self.shape, 16))
        values = [torch.from_numpy(samples), torch.zeros((), dtype=torch.float64)]
        values += [torch.tensor(p.value, dtype=torch.float64) for p in self.parameters.values()]
        pairs = [(self.flow, self.u), (partial(self.flow, self.dt), self.pointwise)]
        for found, wanted in pairs:
            a, b = (torch_function(e, symbols)(*values).broadcast_to(samples.shape) for e in (found, wanted))
            if not torch.allclose(a, b, rtol=1e-8, atol=1e-8 * float(1 + b.abs().max())):
                return False
        return True


@dataclass(frozen=True)
class _Maps:
    """The reaction of an equation in its symbols: one step, and the rate if there is one."""

    written: _Written
    step: Expr
    rate: Expr | None
    is_flow: bool

    def __deepcopy__(self, memo: dict) -> _Maps:
        return self

    @property
    def parameters(self) -> list[Parameter]:
        """Those that occur, in order of their making."""
        present = terminals_of(self.step) | (set() if self.rate is None else terminals_of(self.rate))
        return [parameter for parameter in self.written.parameters.values() if parameter in present]


def _maps(written: _Written) -> _Maps:
    if written.flow is None:
        rate = written.pointwise
        return _Maps(written, written.u + written.dt * rate, rate, False)
    if written.flow_is_of_source:
        return _Maps(written, written.flow, written.pointwise, True)
    if not written.is_linear:
        raise ValueError(
            f"the flow of {written.label} is not that of its source, which is not linear; the exact flow of "
            "u_t = S(u), or a linear source besides the flow, allowed"
        )
    return _Maps(written, written.flow, None, False)


class FromEquation(Reaction):
    """The pointwise source of an equation as a reaction, whose numbers are trained as physics.

    Phi is the flow that the equation has; without one, a residual step u + dt f(u) with f = S / B at grad u = 0. If
    the source is linear, and the flow is not its own, the flow alone is the reaction, and has no rate.

    Parameters
    ----------
    equation
        A real equation of first order in time, with constant coefficients.
    dim
        Space dimension that it is written in.

    Attributes
    ----------
    numbers
        The equation's parameters in Phi as ``nn.Parameter`` in float64, which leave the type of a state as it is:
        first with the values that they have in the equation. They are named as there, with ``_`` in the place of dots,
        and after names that torch keeps for itself. Bounds are not looked at.

    Raises
    ------
    ValueError
        If the equation is complex or stationary, of second order in time, or has coefficients that vary; or if it has a
        flow which is not that of its nonlinear source.
    """

    _why_no_rate = "its flow is not that of the equation's source"
    invertible = True

    def __init__(self, equation: NPDE, dim: int = 1) -> None:
        super().__init__()
        maps = self._maps = _maps(_Written(equation, dim))
        self._equation_name = equation.name
        self.componentwise = maps.written.components == 1
        self.is_flow, self.has_rate = maps.is_flow, maps.rate is not None
        self.numbers = nn.ParameterDict()
        self._keys = []
        for parameter in maps.parameters:
            key = parameter.name.replace(".", "_")
            while hasattr(self.numbers, key):
                key += "_"
            self._keys.append(key)
            self.numbers[key] = nn.Parameter(torch.tensor(parameter.value, dtype=torch.float64))
        symbols = [maps.written.u, maps.written.dt, *maps.parameters]
        self._step = torch_function(maps.step, symbols)
        self._rate = None if maps.rate is None else torch_function(maps.rate, symbols)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the equation."""
        return self._equation_name

    def _values(self) -> list[torch.Tensor]:
        return [self.numbers[key] for key in self._keys]

    def _evaluate(self, function: Any, u: torch.Tensor, dt: Step) -> torch.Tensor:
        m = self._maps.written.components
        if m > 1 and (u.ndim < 2 or u.shape[1] != m):
            raise ValueError(f"reaction {self.name!r}: input of shape {tuple(u.shape)} given; {m} channels on axis 1")
        time = torch.as_tensor(dt, dtype=torch.float64)
        state = u if m == 1 else u.movedim(1, 0)
        value: torch.Tensor = function(state, time, *self._values()).expand_as(state)
        return value if m == 1 else value.movedim(0, 1)

    def forward(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return the flow over dt, or u + dt f(u)."""
        return self._evaluate(self._step, u, dt)

    def rate(self, u: torch.Tensor) -> torch.Tensor:
        """Return f(u) = S(u) / B at grad u = 0."""
        return super().rate(u) if self._rate is None else self._evaluate(self._rate, u, 0.0)

    def _bound(self, expression: Expr, u: Expr, dt: Any) -> Expr:
        pairs = zip(self._maps.parameters, self._values(), strict=True)
        symbols = {parameter: self.symbol(parameter.name, value) for parameter, value in pairs}
        return ufl.replace(expression, {self._maps.written.u: u, self._maps.written.dt: ufl.as_ufl(dt), **symbols})

    def flow(self, u: Expr, dt: Any = 1.0) -> Expr:
        """Return Phi(u) in UFL, with parameters named as the equation's that have the values of :attr:`numbers`."""
        return self._bound(self._maps.step, u, dt)

    def source(self, u: Expr) -> Expr:
        """Return f(u) in UFL."""
        return super().source(u) if self._maps.rate is None else self._bound(self._maps.rate, u, 0.0)


def coefficients_of(
    equation: NPDE, dim: int, spacing: float | Sequence[float] = 1.0, dt: float = 1.0
) -> tuple[Coefficients, Reaction]:
    """Return an equation as one layer of a network, coefficients and reaction, with the values of its parameters.

    A source that is linear in u and grad u counts as mass, source and drift. Any other is the reaction as a whole (see
    :class:`FromEquation`), but for its terms in grad u, which must be linear. Where the source is linear and the flow
    not its own, as a network's equation has it, the flow is the reaction. A constant flux has no divergence and is
    left out; a :class:`~npde_fem.nonlocal_terms.Stencil` of the same spacing is the rest of the kernel.

    Parameters
    ----------
    equation
        Real, of first order in time, with a flux linear in u and grad u and coefficients that are numbers.
    dim
        Space dimension.
    spacing, dt
        Distance of the points along each axis (one number: all the same), length of the step.

    Raises
    ------
    ValueError
        If the equation is no convolution and reaction at a point; the message says why.
    """
    written = _Written(equation, dim)
    m = written.components
    wide = "is not linear in u and grad(u); linear ones allowed: a convolution is linear"
    diffusion = written.derivative("flux", written.flux, written.slope, wide).reshape(m, dim, m, dim)
    drift = 0.0 - written.derivative("flux", written.flux, written.u, wide).reshape(m, dim, m)
    advection = written.derivative(
        "source",
        written.source,
        written.slope,
        "is not linear in grad(u); terms as dot(b, grad(u)) with a constant b allowed",
    )
    diffusion, drift = diffusion.transpose(0, 2, 1, 3), drift.transpose(0, 2, 1) - advection.reshape(m, m, dim)
    maps = _maps(written)
    mass, source, reaction = np.zeros((m, m)), np.zeros(m), _reaction(equation, written, maps)
    if written.is_linear:
        mass = written.value_of(partial(written.pointwise, written.u)).reshape(m, m)
        still = ufl.replace(written.pointwise, {written.u: ufl.zero(*written.shape)})
        source = written.value_of(still).reshape(m)
    coefficients = Coefficients(
        mass,
        drift,
        0.5 * (diffusion + diffusion.swapaxes(2, 3)),
        _rest(equation, dim, np.broadcast_to(np.asarray(spacing, dtype=np.float64), dim)),
        source,
        tuple(np.broadcast_to(np.asarray(spacing, dtype=np.float64), dim).tolist()),
        dt,
    )
    if equation.nonlocal_term is not None:  # which may have moments of its own
        coefficients = Coefficients.of_kernel(
            coefficients.kernel(), coefficients.bias(), coefficients.spacing, coefficients.dt
        )
    return coefficients, reaction


def _reaction(equation: NPDE, written: _Written, maps: _Maps) -> Reaction:
    own = not written.is_linear or maps.rate is None
    return FromEquation(equation, written.dim) if own else Identity()


def _rest(equation: NPDE, dim: int, spacing: Array) -> Array:
    """The nonlocal term as a kernel, at least 3 wide."""
    term, m = equation.nonlocal_term, equation.components
    if term is None:
        return np.zeros((m, m, *(3,) * dim))
    if not isinstance(term, Stencil):
        raise ValueError(f"equation {equation.name!r} has an integral; a convolution has a Stencil")
    if term.dim != dim or not np.allclose(term.spacing, spacing, rtol=1e-12):
        raise ValueError(
            f"equation {equation.name!r} has a stencil in {term.dim} dimensions of spacing {term.spacing}; "
            f"{dim} dimensions and spacing {tuple(spacing.tolist())} allowed"
        )
    pads = [(0, 0), (0, 0), *((1, 1) if n == 1 else (0, 0) for n in term.sizes)]
    return np.pad(term.weights, pads)
