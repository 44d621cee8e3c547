"""Neural networks as terms of an equation: a torch module as a callable of UFL.

:func:`neural` wraps a module that maps k numbers to m at every point. Called with UFL expressions, the
:class:`Network` returns a terminal of UFL, a :class:`NetworkValue`, which may stand in a flux or a source wherever
another expression may. A discretisation evaluates the network at its quadrature or grid points and differentiates
through it; what it needs for that is :meth:`Network.values` and :meth:`Network.pull`. All arithmetic is in float64.

The trainable numbers are one :class:`Weights`, a parameter of the equation whose values are the module's own: who
trains the one trains the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from npde_fem.parameter import Composite, Parameter, as_numbers

import numpy as np
import numpy.typing as npt
import ufl
from ufl.core.expr import Expr

# torch takes a second to import, and is here only for who hands over a module.
if TYPE_CHECKING:
    import torch

__all__ = ["Network", "NetworkValue", "Weights", "neural"]

Array = npt.NDArray[np.float64]

_CHUNK = 4096
"""Points that pass through a network at once: few enough that what is between layers stays in a cache."""

_REFUSED = {
    "BatchNorm": "its statistics depend on which points a rank has; LayerNorm, or none, allowed",
    "InstanceNorm": "it mixes points; LayerNorm, or none, allowed",
    "GroupNorm": "a network of an equation sees one point at a time; LayerNorm, or none, allowed",
    "Conv": "it mixes neighbours; derivatives such as grad(u) as inputs of the network do that in an equation",
    "Pool": "it mixes neighbours; leave it out",
    "Upsample": "it makes points; leave it out",
    "RNN": "a state in time belongs to the equation: make it a component; Linear layers allowed",
    "LSTM": "a state in time belongs to the equation: make it a component; Linear layers allowed",
    "GRU": "a state in time belongs to the equation: make it a component; Linear layers allowed",
    "Embedding": "it takes integers; Linear layers allowed",
    "Transformer": "it mixes points; Linear layers allowed",
    "MultiheadAttention": "it mixes points; Linear layers allowed",
}
"""Layers, by the words in their names, that make no function of one point."""


class Weights(Parameter):
    """All trainable numbers of a network in one vector, in the order of ``module.parameters()``.

    :attr:`value` reads and writes the module's own tensors; on pyadjoint's tape it is a vector like any other.

    Attributes
    ----------
    network
        The network.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        super().__init__(network.name, np.zeros(sum(p.numel() for p in network.module.parameters())))

    @property
    def value(self) -> Array:
        """The weights, float64, read-only, one after the other; assigned to, they go into the module.

        Those made by :meth:`like` are no module's.
        """
        if self._stands_alone:
            return np.asarray(self._value)
        parts = [p.detach().cpu().double().numpy().ravel() for p in self.network.module.parameters()]
        value = np.concatenate([np.zeros(0), *parts])
        value.flags.writeable = False
        return value

    @value.setter
    def value(self, value: Any) -> None:
        if self._value is None:  # made just now: the module has the values
            self._value = np.zeros(0)
            return
        label = f"weights of {self.name!r}"
        array = as_numbers(label, value)
        if array.shape != self.ufl_shape:
            raise ValueError(f"{label}: shape {array.shape} given; {self.ufl_shape} allowed")
        self.check(array)
        self._ad_assign(array)
        self.leave_tape(array)

    def _ad_values(self) -> Array:
        return np.array(self.value)

    def _ad_assign(self, values: Array) -> None:
        import torch

        if self._stands_alone:
            super()._ad_assign(values)
            return
        if np.array_equal(values, self.value):
            return
        first = 0
        for p in self.network.module.parameters():
            part = torch.from_numpy(np.array(values[first : first + p.numel()])).view(p.shape)
            # Of a value on its way through a solve and back torch's graphs need not know.
            p.data.copy_(part)
            first += p.numel()

    def _ad_like(self, values: Array) -> Weights:
        other = Weights(self.network)
        other._stands_alone = True
        other._ad_assign(values)
        return other


class NetworkValue(Composite):
    """Values of a network at the values of some expressions, as UFL sees them.

    Attributes
    ----------
    network
        The network.
    argument
        Its k inputs, UFL of shape (k,).
    """

    def __init__(self, network: Network, argument: Expr) -> None:
        shape = () if network.outputs == 1 else (network.outputs,)
        super().__init__(shape, [argument, network.weights])
        self.network, self.argument = network, argument

    def __str__(self) -> str:
        return f"{self.network.name}({self.argument})"


class Network:
    """A torch module as a function that an equation may contain; made by :func:`neural`.

    Attributes
    ----------
    module
        The module.
    name
        Name of its weights among the parameters of an equation.
    inputs, outputs
        k and m: numbers it takes and gives at a point.
    weights
        Its trainable numbers, a parameter.
    """

    def __init__(self, module: torch.nn.Module, name: str, inputs: int) -> None:
        self.module, self.name, self.inputs, self.outputs = module, name, inputs, 0
        self.weights = Weights(self)
        self.outputs = self._measure()

    def __call__(self, *inputs: Any) -> Expr:
        """Return the network's value at scalars and vectors of UFL, which together are its k inputs.

        Returns
        -------
        Expr
            UFL of shape ``()`` for m = 1, else ``(m,)``.

        Raises
        ------
        TypeError, ValueError
            If an input is no UFL or number, has more than one axis, contains a network, or their number is not k.
        """
        parts: list[Any] = []
        for given in inputs:
            try:
                e = ufl.as_ufl(given) if np.ndim(given) == 0 else ufl.as_vector(given)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"{self.name}: an input {given!r} given; UFL expressions and numbers allowed"
                ) from error
            if len(e.ufl_shape) > 1:
                raise ValueError(f"{self.name}: an input of shape {e.ufl_shape} given; scalars and vectors allowed")
            parts += [e] if e.ufl_shape == () else [e[k] for k in range(e.ufl_shape[0])]
        if len(parts) != self.inputs:
            raise ValueError(f"{self.name}: {len(parts)} inputs given; the network takes {self.inputs}")
        argument = ufl.as_vector(parts)
        if any(isinstance(t, Composite) for t in ufl.corealg.traversal.traverse_unique_terminals(argument)):
            raise ValueError(f"{self.name}: an input contains a network; compose them in torch (nn.Sequential) instead")
        return NetworkValue(self, argument)

    # -- evaluation ------------------------------------------------------------------------------------------

    def circumstances(self) -> tuple[tuple[tuple[type, bool], ...], list[torch.Tensor]]:
        """Return what values depend on besides the weights: layers, training or not, and copies of the buffers."""
        import torch

        layers = tuple((type(layer), layer.training) for layer in self.module.modules())
        with torch.inference_mode(False):
            return layers, [b.detach().to("cpu", copy=True) for b in self.module.buffers()]

    def check(self) -> None:
        """Raise what :func:`neural` does if the module's layers, or their modes, are such now."""
        _refuse_layers(self.module)
        self._measure()

    def values(
        self,
        weights: Array,
        a: Array,
        order: int,
        delta: Array | None = None,
        out: Sequence[Array] | None = None,
    ) -> list[Array]:
        """Return the network n and its derivatives by the inputs at some points.

        Parameters
        ----------
        weights
            W, shape ``(P,)``.
        a
            Inputs, shape ``(points, k)``.
        order
            0: n; 1: also dn/da; 2: also d2n/da2.
        delta
            A direction of the weights: the derivative along it, ``dn/dW delta`` and its derivatives by the inputs,
            takes the place of n.
        out
            Arrays to write to; new ones by default.

        Returns
        -------
        list of ndarray
            Shapes ``(points, m)``, ``(points, m, k)``, ``(points, m, k, k)``.
        """
        import torch

        if out is None:
            out = [np.empty((len(a), self.outputs, *[self.inputs] * n)) for n in range(order + 1)]
        with _computing(gradients=False):
            w, along = torch.from_numpy(np.array(weights)), None if delta is None else torch.from_numpy(np.array(delta))
            for first in range(0, len(a), _CHUNK):
                part = torch.from_numpy(np.ascontiguousarray(a[first : first + _CHUNK]))
                for target, made in zip(out, self._derivatives(w, part, order, along, False), strict=True):
                    target[first : first + _CHUNK] = made.numpy()
        return list(out)

    def pull(
        self,
        weights: Array,
        a: Array,
        by: tuple[Array, ...],
        delta: Array | None = None,
        by_along: tuple[Array, ...] = (),
    ) -> Array:
        """Return the derivative by the weights of a weighted sum of what :meth:`values` gives, shape ``(P,)``.

        Parameters
        ----------
        weights, a, delta
            As of :meth:`values`.
        by
            Weights of n, and of dn/da if there is a second one, shaped like these.
        by_along
            Weights of the derivatives along ``delta``, likewise.
        """
        import torch

        total = np.zeros(len(weights))
        with _computing(gradients=True):
            w = torch.from_numpy(np.array(weights)).requires_grad_()
            along = None if delta is None else torch.from_numpy(np.array(delta))
            for first in range(0, len(a), _CHUNK):
                chunk = slice(first, first + _CHUNK)
                part = torch.from_numpy(np.ascontiguousarray(a[chunk]))
                sums = []
                for weighted, direction in ((by, None), (by_along, along)):
                    if weighted:
                        made = self._derivatives(w, part, len(weighted) - 1, direction, True)
                        sums += [(torch.from_numpy(g[chunk]) * n).sum() for g, n in zip(weighted, made, strict=True)]
                if sums and (total_of := torch.stack(sums).sum()).requires_grad:
                    (found,) = torch.autograd.grad(total_of, w, allow_unused=True)
                    total += 0.0 if found is None else found.numpy()
        return total

    def _derivatives(
        self, w: torch.Tensor, a: torch.Tensor, order: int, delta: torch.Tensor | None, keep_graph: bool
    ) -> list[torch.Tensor]:
        """Return n (or its derivative along delta) and its derivatives by the inputs, backwards through the module."""
        import torch

        a = a.clone().requires_grad_()
        with torch.set_grad_enabled(keep_graph or order > 0 or delta is not None):
            found = [self._at(w, a) if delta is None else self._along(w, a, delta)]
            for n in range(order):
                graph = keep_graph or n + 1 < order
                columns = found[-1].flatten(1).unbind(1)
                rows = [self._slope(column, a, graph) for column in columns]
                found.append(torch.stack(rows, 1).view(*found[-1].shape, self.inputs))
        return found if keep_graph else [f.detach() for f in found]

    def _along(self, w: torch.Tensor, a: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Return the derivative of n along delta, which torch can differentiate on.

        It is the derivative by c of ``(c . n)_W delta``: backward twice, which more modules know than torch's forward
        mode.
        """
        import torch

        w = w if w.requires_grad else w.clone().requires_grad_()
        n = self._at(w, a)
        if not n.requires_grad:
            return torch.zeros_like(n)
        c = torch.ones_like(n, requires_grad=True)
        (by_weights,) = torch.autograd.grad((c * n).sum(), w, create_graph=True, allow_unused=True)
        if by_weights is None:
            return torch.zeros_like(n)
        (along,) = torch.autograd.grad(by_weights @ delta, c, create_graph=True)
        return along

    @staticmethod
    def _slope(column: torch.Tensor, a: torch.Tensor, keep_graph: bool) -> torch.Tensor:
        """Return the derivative of a value at each point by the inputs there; a point's depends on no other's."""
        import torch

        if not column.requires_grad:
            return torch.zeros_like(a)
        (made,) = torch.autograd.grad(column.sum(), a, create_graph=keep_graph, retain_graph=True, allow_unused=True)
        return torch.zeros_like(a) if made is None else made

    def _at(self, w: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Return n(a; w) in float64, shape (points, m)."""
        import torch

        state: dict[str, torch.Tensor] = {
            name: b.cpu().double() if b.is_floating_point() else b.cpu() for name, b in self.module.named_buffers()
        }
        first = 0
        for name, p in self.module.named_parameters():
            state[name] = w[first : first + p.numel()].view(p.shape)
            first += p.numel()
        made: torch.Tensor = torch.func.functional_call(self.module, state, (a,))
        return made

    def _measure(self) -> int:
        """Return the number of outputs; raise unless the module is a smooth enough function of one point."""
        import torch

        a = torch.from_numpy(np.linspace(-1.0, 1.0, 3 * self.inputs)).view(3, self.inputs)
        label = f"neural: the module {type(self.module).__name__}"
        with _computing(gradients=False):
            w = torch.from_numpy(np.array(self.weights.value))
            try:
                made = self._at(w, a)
            except Exception as error:
                raise TypeError(
                    f"{label} failed on a float64 tensor of shape (3, {self.inputs}), one row a point: {error}"
                ) from error
            shape = tuple(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            if not isinstance(made, torch.Tensor) or made.dtype != torch.float64 or made.ndim != 2 or len(made) != 3:
                raise ValueError(f"{label} gave {shape} for inputs of shape (3, {self.inputs}); float64 (3, m) allowed")
            if not torch.isfinite(made).all():
                raise ValueError(f"{label} gave NaN or infinity for inputs between -1 and 1")
            alone = torch.cat([self._at(w, row[None]) for row in a])
            again = self._at(w, a)
        if not torch.allclose(made, alone, rtol=1e-10, atol=1e-12):
            raise ValueError(f"{label} gives a point another value in other company; functions of one point allowed")
        if not torch.equal(made, again):
            raise ValueError(f"{label} gives other values each time; take out what is random (module.eval())")
        return int(made.shape[1])


@contextmanager
def _computing(gradients: bool) -> Iterator[None]:
    """Leave the modes of torch that the caller may be in."""
    import torch

    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield


def _refuse_layers(module: torch.nn.Module) -> None:
    """Raise ValueError if a layer makes no function of one point, or a random one."""
    import torch

    for where, layer in module.named_modules():
        kind = type(layer).__name__
        for word, reason in _REFUSED.items():
            if type(layer).__module__.startswith("torch.nn") and word in kind:
                raise ValueError(f"neural: layer {where or 'itself'!r} is a {kind}: {reason}")
        if isinstance(layer, torch.nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            raise ValueError(
                f"neural: layer {where!r} is a {kind} in training; an equation is no game of chance: .eval()"
            )


def neural(module: torch.nn.Module, name: str = "net", *, inputs: int | None = None) -> Network:
    """Return a torch module as a function for fluxes and sources: ``source=lambda u, x, t: net(u)``.

    The module sees one point at a time, as a row of ``(points, k)``, and gives ``(points, m)``: Linear layers,
    activations, residual sums, modules of your own. In equations it is evaluated in float64 on the CPU, whatever the
    type and device of its weights; weights in single precision are rounded to it when they are assigned to.

    Parameters
    ----------
    module
        The module; its parameters are trained as those of the equation, and the other way round.
    name
        Name of its :class:`Weights` among the parameters of an equation.
    inputs
        k; by default that of its first Linear layer.

    Returns
    -------
    Network
        To be called with UFL expressions: ``net(u)``, ``net(u, x[0])``, ``net(u, ufl.grad(u))``.

    Raises
    ------
    TypeError, ValueError
        If it is no module, has no parameters, contains a layer that mixes points (named, with what to use instead),
        fails on float64 rows, or is not a function of one point alone.
    """
    import torch

    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"neural: a torch.nn.Module allowed, {module!r} given")
    _refuse_layers(module)
    if inputs is None:
        linear = next((layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)), None)
        if linear is None:
            raise ValueError("neural: inputs, the numbers that the module takes at a point, is needed without a Linear")
        inputs = linear.in_features
    if isinstance(inputs, bool) or not isinstance(inputs, int) or inputs < 1:
        raise ValueError(f"neural: inputs = {inputs!r} given; a positive integer allowed")
    if not sum(p.numel() for p in module.parameters()):
        raise ValueError("neural: the module has no parameters; a module with some to train allowed, else write UFL")
    return Network(module, name, inputs)
