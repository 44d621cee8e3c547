"""What a reaction is: a pointwise map over a time step, with its derivative and its inverse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from npde_fem.parameter import Parameter

import torch
import ufl
from torch import nn
from ufl.core.expr import Expr

__all__ = ["FixedStep", "Reaction", "Step", "each", "newton", "number"]

Step = float | torch.Tensor
"""Length of a time step: a number, or a tensor of one."""


class Reaction(nn.Module):
    """A pointwise map ``Phi`` of a state over a time step, in torch and in UFL.

    Tensors have their channels on axis 1; if :attr:`componentwise`, and without numbers of their own for each channel,
    they may have any shape.

    Attributes
    ----------
    name
        What messages, tables and :func:`reaction_named` call it.
    invertible
        Whether :meth:`inverse` exists, at least for short steps.
    componentwise
        Whether each channel depends on itself only.
    is_flow
        Whether Phi over a + b is Phi over b after Phi over a: Phi solves u' = f(u).
    has_rate
        Whether there is an f(u), of which Phi is the flow or an approximation of it.
    """

    name = "reaction"
    invertible = False
    componentwise = True
    is_flow = False
    has_rate = False
    _why_no_rate = "it is no flow"
    _why_no_inverse = "it is not one-to-one"

    def __init__(self) -> None:
        super().__init__()
        self._symbols: dict[str, Parameter] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_symbols": {}}

    def symbol(self, name: str, value: torch.Tensor) -> Parameter:
        """Return the parameter that stands in UFL for numbers of this module, with the values that they have now.

        It is always the same one: an equation written again finds it in its other terms too. A copy of the module has
        its own.
        """
        numbers = value.detach().cpu().double().numpy()
        if name not in self._symbols:
            self._symbols[name] = Parameter(name, numbers)
        self._symbols[name].value = numbers
        return self._symbols[name]

    def forward(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return Phi(u) over the time ``dt``."""
        raise NotImplementedError

    def rate(self, u: torch.Tensor) -> torch.Tensor:
        """Return f(u).

        Raises
        ------
        ValueError
            If the reaction has no rate.
        """
        raise ValueError(f"reaction {self.name!r} has no rate f(u): {self._why_no_rate}")

    def derivative(self, u: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return dPhi / du, that of the computed map.

        Returns
        -------
        torch.Tensor
            Of the shape of ``u`` if :attr:`componentwise`; else ``(batch, C, C, ...)``, the derivative of the first
            channel named by the second.
        """
        if self.componentwise:
            slope: torch.Tensor = torch.func.jvp(lambda v: self(v, dt), (u,), (torch.ones_like(u),))[1]
            return slope
        columns = []
        for channel in range(u.shape[1]):
            along = torch.zeros_like(u)
            along[:, channel] = 1.0
            columns.append(torch.func.jvp(lambda v: self(v, dt), (u,), (along,))[1])
        return torch.stack(columns, dim=2)

    def inverse(self, v: torch.Tensor, dt: Step = 1.0) -> torch.Tensor:
        """Return the u with Phi(u) = v.

        Raises
        ------
        ValueError
            If the reaction has no inverse, or none for this step.
        """
        if not self.invertible:
            raise ValueError(f"reaction {self.name!r} has no inverse: {self._why_no_inverse}")
        return self(v, -dt) if self.is_flow else newton(self, v, dt)

    def as_torch(self, dt: float = 1.0) -> nn.Module:
        """Return the same map as a module of one argument: torch's own where there is one, with copies of weights."""
        return FixedStep(copy.deepcopy(self), dt)

    def flow(self, u: Expr, dt: Any = 1.0) -> Expr:
        """Return Phi(u) in UFL.

        Parameters
        ----------
        u
            State of shape ``()`` or ``(m,)``.
        dt
            Number or UFL.
        """
        return each(u, lambda v, k: self._flow(v, k, ufl.as_ufl(dt)))

    def source(self, u: Expr) -> Expr:
        """Return f(u) in UFL, of the shape of ``u``.

        Raises
        ------
        ValueError
            If the reaction has no rate.
        """
        if not self.has_rate:
            raise ValueError(f"reaction {self.name!r} has no rate f(u): {self._why_no_rate}")
        return each(u, self._source)

    def _flow(self, u: Expr, channel: int, dt: Expr) -> Expr:
        """Phi in UFL for one channel, of a componentwise reaction."""
        raise NotImplementedError

    def _source(self, u: Expr, channel: int) -> Expr:
        """f in UFL for one channel, of a componentwise reaction."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return what torch prints of the module."""
        return self.name


class FixedStep(nn.Module):
    """A reaction over a step whose length is fixed: a module of one argument."""

    def __init__(self, reaction: Reaction, dt: float) -> None:
        super().__init__()
        self.reaction, self.dt = reaction, dt

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """Return Phi(u)."""
        value: torch.Tensor = self.reaction(u, self.dt)
        return value


def each(u: Expr, function: Callable[[Expr, int], Expr]) -> Expr:
    """Return ``function(u_k, k)`` for every component of a UFL state, in the state's shape."""
    if u.ufl_shape == ():
        return function(u, 0)
    return ufl.as_vector([function(u[k], k) for k in range(u.ufl_shape[0])])


def number(dt: Step, like: torch.Tensor) -> torch.Tensor:
    """Return dt as a tensor of the type of ``like``."""
    return torch.as_tensor(dt, dtype=like.dtype, device=like.device)


_NEWTON_STEPS = 60


def newton(reaction: Reaction, v: torch.Tensor, dt: Step) -> torch.Tensor:
    """Solve Phi(u) = v by Newton's method, halving steps at points where they do not help.

    The last step is one that torch can differentiate: the result has the derivatives of the inverse.

    Raises
    ------
    ValueError
        If the derivative is not positive somewhere on the way, or the method does not converge.
    """
    together = () if reaction.componentwise else (1,)

    def slopes(u: torch.Tensor) -> torch.Tensor:
        slope = reaction.derivative(u, dt)
        sign = slope if reaction.componentwise else torch.linalg.det(slope.movedim((1, 2), (-2, -1)))
        if not bool(torch.all(sign > 0)):
            raise ValueError(
                f"inverse of reaction {reaction.name!r} over dt = {float(dt):g}: the derivative of the map "
                f"(1 + dt f' of a residual step) is not positive at {int((~(sign > 0)).sum())} points; shorter "
                "steps allowed, where the map is one-to-one"
            )
        return slope

    def solved(slope: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        if reaction.componentwise:
            return residual / slope
        matrix, right = slope.movedim((1, 2), (-2, -1)), residual.movedim(1, -1)
        return torch.linalg.solve(matrix, right).movedim(-1, 1)

    def size(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vector_norm(x, dim=together, keepdim=True) if together else x.abs()

    tolerance = 4 * torch.finfo(v.dtype).eps
    with torch.no_grad():
        u, residual = v.clone(), reaction(v, dt) - v
        for _ in range(_NEWTON_STEPS):
            if bool(torch.all(size(residual) <= tolerance * (size(v) + size(u)))):
                break
            step = solved(slopes(u), residual)
            if bool(torch.all(size(step) <= tolerance * size(u))):
                break
            share = torch.ones_like(size(residual))
            for _ in range(_NEWTON_STEPS):
                trial = reaction(u - share * step, dt) - v
                worse = ~(size(trial) <= size(residual) * (1 + tolerance) + tolerance * size(v))
                if not bool(worse.any()):
                    break
                share = torch.where(worse, 0.5 * share, share)
            u = u - share * step
            residual = reaction(u, dt) - v
        else:
            raise ValueError(
                f"inverse of reaction {reaction.name!r} over dt = {float(dt):g}: Newton's method did not converge, the "
                f"residual is {float(size(residual).max()):.3g}; values that the map takes, and shorter steps, allowed"
            )
        slope = slopes(u)
    return u - solved(slope, reaction(u, dt) - v)
