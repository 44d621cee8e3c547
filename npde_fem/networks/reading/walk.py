"""The layers of a torch module in the order in which they run."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from npde_fem.networks.network import Network
from npde_fem.networks.reactions import FixedStep, Reaction, Skip

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = ["Step", "Take", "is_reaction", "steps_of"]


class Step(NamedTuple):
    """A layer on its way: its dotted name (that of its node where a function was called), and the layer."""

    name: str
    layer: nn.Module


class Take(nn.Module):
    """What an index takes of a value: the outputs of a recurrent layer, or its last state."""

    def __init__(self, index: Any) -> None:
        super().__init__()
        self.index = index

    def forward(self, u: Any) -> Any:
        """Return ``u[index]``."""
        return u[self.index]

    def extra_repr(self) -> str:
        return repr(self.index)


_FUNCTIONS: dict[Any, Callable[..., nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    F.sigmoid: nn.Sigmoid,
    torch.sigmoid: nn.Sigmoid,
    "sigmoid": nn.Sigmoid,
    F.tanh: nn.Tanh,
    torch.tanh: nn.Tanh,
    "tanh": nn.Tanh,
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.softplus: nn.Softplus,
    F.softmax: nn.Softmax,
    F.log_softmax: nn.LogSoftmax,
    torch.flatten: nn.Flatten,
    "flatten": nn.Flatten,
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.avg_pool3d: nn.AvgPool3d,
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
    F.max_pool3d: nn.MaxPool3d,
}
"""Functions, and methods by name, that a layer does as well, with the same further arguments."""

_ALLOWED = "layers that run one after the other, activations, pooling and flattening allowed"


def steps_of(module: nn.Module) -> list[Step]:
    """Return the layers that a module runs, one after the other, by following its ``forward``.

    A layer that runs several times (shared weights) is listed so often. Of functions (``torch.relu``,
    ``F.max_pool2d``, ``torch.flatten``, ``x.view(n, -1)``) the layers that do the same are listed. A network of this
    package is listed as what its ``as_torch()`` consists of.

    Raises
    ------
    ValueError
        If ``forward`` cannot be followed, adds or joins branches, or calls what is no layer; the place is named.
    """
    return list(_expanded("", module))


def _expanded(prefix: str, module: nn.Module) -> Iterator[Step]:
    if isinstance(module, Network):
        yield from _expanded(prefix, module.as_torch())
    elif _is_layer(module):
        yield Step(prefix, module)
    else:
        for name, layer in _followed(prefix, module):
            yield from _expanded(name, layer)


def is_reaction(module: nn.Module) -> bool:
    """Whether a module is an activation of this package, the flow of a reaction."""
    return isinstance(module, Reaction | FixedStep | Skip)


def _is_layer(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential):
        return False
    return isinstance(module, Network | Take) or is_reaction(module) or type(module).__module__.startswith("torch.nn")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_layer(m)


def _followed(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Follow a module's forward from its first argument to what it returns."""

    def named(name: str) -> str:
        return f"{prefix}.{name}" if prefix else name

    kind = type(module).__name__
    where = f"{prefix!r}, a {kind}," if prefix else kind
    try:
        left_out = {name: None for name, p in inspect.signature(module.forward).parameters.items() if p.default is None}
        graph = fx.GraphModule(module, _Tracer().trace(module, concrete_args=left_out)).graph
    except Exception as error:
        raise ValueError(f"interpret: forward of {where} cannot be followed ({error}); {_ALLOWED}") from error
    graph.eliminate_dead_code()  # such as the one of two outputs of a recurrent layer that nobody wants
    head: fx.Node | None = None
    numbers: set[fx.Node] = set()  # sizes, and arguments other than the first
    for node in graph.nodes:
        if node.op == "placeholder":
            if head is None:
                head = node
            else:
                numbers.add(node)
            continue
        if node.op == "output":
            if node.args[0] is not head:
                raise ValueError(f"interpret: {where} returns {node.args[0]}, not its last value {head}; {_ALLOWED}")
            return
        if _is_shape(node, numbers):
            numbers.add(node)
            continue
        inputs = [n for n in node.all_input_nodes if n not in numbers]
        first = node.args[0] if node.args else None
        extra = [n for n in inputs if n is not first]
        if first is not head or extra:
            raise ValueError(
                f"interpret: {where} combines {', '.join(map(str, inputs)) or 'constants'} at {node.name!r} "
                f"({_target(node)}), a branch; {_ALLOWED}"
            )
        layer = module.get_submodule(node.target) if node.op == "call_module" else _layer_of(node, where)
        yield named(str(node.target) if node.op == "call_module" else node.name), layer
        head = node


def _target(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _is_shape(node: fx.Node, numbers: set[fx.Node]) -> bool:
    """Whether a node is a size of a tensor, or made of sizes."""
    if node.op == "call_method" and node.target in ("size", "dim"):
        return True
    if node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    return bool(node.all_input_nodes) and all(n in numbers for n in node.all_input_nodes)


def _layer_of(node: fx.Node, where: str) -> nn.Module:
    """Return the layer that does what a function or method does."""
    arguments: tuple[Any, ...] = node.args[1:]
    kwargs: dict[str, Any] = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "_stacklevel")}
    if node.target is operator.getitem:
        return Take(arguments[0])
    if node.target in ("view", "reshape") and len(arguments) == 2 and arguments[1] == -1:
        return nn.Flatten()
    if node.target is F.dropout:
        names: dict[str, Any] = dict(zip(("p", "training"), arguments, strict=False)) | kwargs
        return nn.Dropout(names.get("p", 0.5)).train(names.get("training", True))
    made: Callable[..., nn.Module] | None = _FUNCTIONS.get(node.target)
    if made is None:
        raise ValueError(f"interpret: {where} calls {_target(node)} at {node.name!r}; {_ALLOWED}")
    if made is nn.Flatten and not (arguments or kwargs):
        return nn.Flatten(0)
    if made in (nn.Softmax, nn.LogSoftmax):
        kwargs.pop("dtype", None)
    return made(*arguments, **kwargs)
