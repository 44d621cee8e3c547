"""The Elman network: a recurrent network that is an equation of first order in time, its input a source."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, TypedDict

from npde_fem.networks.kinds.interpolation import check_count, checked_points, interpolation, lattice_of
from npde_fem.networks.kinds.waves import Readout, WaveNetwork, wave_rnn
from npde_fem.networks.network import Network
from npde_fem.networks.reactions import ReLU, Tanh, reaction_named

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

if TYPE_CHECKING:
    from npde_fem.networks.kinds.driven import DrivenElman

__all__ = ["ElmanNetwork", "StockElman", "WaveNetwork", "rnn", "wave_rnn"]


class _Kind(TypedDict, total=False):
    dtype: torch.dtype
    device: torch.device


class ElmanNetwork(Network):
    """A recurrent network that is ``u_t = N u + U x(t) + s`` with a reaction, by Lie splitting; see :func:`rnn`.

    Attributes
    ----------
    lattice
        The neurons' places: ``hidden`` points, in a row at a distance of 1 if no grid is given.
    dt
        The step.
    kernel
        N as a matrix (hidden, hidden), if it is not local.
    mass, drift, diffusion
        The coefficients at the points, if it is local: shapes ``shape``, ``(d, *shape)`` and ``shape``.
    source_positions
        U, shape (hidden, inputs): where, and how strongly, each input enters.
    source
        s, shape (hidden,).
    probes
        Interpolation to the probes, shape (probes, hidden); None if all neurons are observed.
    readout
        Linear layer behind the observations, or None.
    """

    probes: Tensor | None

    def __init__(
        self,
        inputs: int,
        hidden: int | None = None,
        outputs: int | None = None,
        *,
        reaction: Any = "tanh",
        dt: float = 1.0,
        local: bool = False,
        grid: Any = None,
        boundary: str | None = None,
        probes: Any = None,
        observe: Readout = "last",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if (hidden is None) == (grid is None):
            raise ValueError("rnn: either hidden, the number of neurons, or a grid of them must be given")
        if not (math.isfinite(dt) and dt > 0):
            raise ValueError(f"rnn: dt = {dt} given; a positive finite number allowed")
        if observe not in ("last", "all"):
            raise ValueError(f"rnn: observe {observe!r} given; 'last' or 'all' allowed")
        check_count("rnn: inputs", inputs)
        if outputs is not None:
            check_count("rnn: outputs", outputs)
        self.lattice = lattice = lattice_of("rnn", hidden if grid is None else grid, boundary)
        self.inputs, self.dt, self.local, self.observe = inputs, float(dt), local, observe
        self.reaction = reaction_named(reaction)
        n, real = lattice.size, _Kind(dtype=torch.get_default_dtype() if dtype is None else dtype)
        bound = 1 / math.sqrt(n)
        if local:
            self.mass = nn.Parameter(torch.zeros(lattice.shape, **real))
            self.drift = nn.Parameter(torch.zeros(lattice.dim, *lattice.shape, **real))
            # A fourth of the explicit step's limit of stability.
            mixing = 0.125 / (self.dt * sum(1 / h**2 for h in lattice.spacing))
            self.diffusion = nn.Parameter(torch.full(lattice.shape, mixing, **real))
        else:
            step = torch.empty(n, n, **real).uniform_(-bound, bound)
            self.kernel = nn.Parameter((step - torch.eye(n, **real)) / self.dt)
        self.source_positions = nn.Parameter(torch.empty(n, inputs, **real).uniform_(-bound, bound) / self.dt)
        self.source = nn.Parameter(torch.empty(n, **real).uniform_(-bound, bound) / self.dt)
        self.register_buffer("probes", None)
        if probes is not None:
            at = checked_points("rnn probes", probes, lattice)
            self.probes = torch.tensor(interpolation(lattice, at, "replicate").toarray(), **real)
        observed = n if self.probes is None else len(self.probes)
        self.readout = None if outputs is None else nn.Linear(observed, outputs, **real)
        self.reaction.to(**real)

    @classmethod
    def from_torch(
        cls, cell: nn.RNN, readout: nn.Linear | None = None, *, dt: float = 1.0, observe: Readout = "last"
    ) -> ElmanNetwork:
        """Return the network that a stock one is, with copies of its weights.

        Raises
        ------
        ValueError
            If it has more than one layer or direction, or fewer than 3 neurons.
        """
        if cell.num_layers != 1 or cell.bidirectional:
            raise ValueError(
                f"rnn: an nn.RNN of {cell.num_layers} layers{' in both directions' if cell.bidirectional else ''} "
                "given; one layer in one direction allowed"
            )
        outputs = None if readout is None else readout.out_features
        given = dict(cell.named_parameters())
        weight = given["weight_hh_l0"].detach()
        found = cls(
            cell.input_size,
            cell.hidden_size,
            outputs,
            reaction=cell.nonlinearity,
            dt=dt,
            observe=observe,
            dtype=weight.dtype,
        ).to(weight.device)
        with torch.no_grad():
            found.kernel.copy_((weight - torch.eye(len(weight), dtype=weight.dtype, device=weight.device)) / dt)
            found.source_positions.copy_(given["weight_ih_l0"] / dt)
            found.source.zero_()
            if cell.bias:
                found.source.copy_((given["bias_ih_l0"] + given["bias_hh_l0"]) / dt)
        if readout is not None:
            found.readout = copy.deepcopy(readout)
        return found

    def step_matrix(self) -> Tensor:
        """Return ``W = E + dt N``, shape (hidden, hidden), differentiably."""
        n = self.lattice.size
        eye = torch.eye(n, dtype=self.source.dtype, device=self.source.device)
        if not self.local:
            return eye + self.dt * self.kernel
        return eye + self.dt * self._transport(eye.unflatten(1, self.lattice.shape)).flatten(1).T

    def _transport(self, u: Tensor) -> Tensor:
        """``div(D grad u - c u) + m u`` of states ``(n, *shape)``, with means of D, c and u at faces, as FD has it."""
        lattice = self.lattice
        mode = {"zeros": "constant"}.get(lattice.boundary, lattice.boundary)
        fields = "replicate" if lattice.boundary == "zeros" else lattice.boundary
        total = self.mass * u
        for axis, h in enumerate(lattice.spacing):
            d, c = (_longer(f, axis, fields) for f in (self.diffusion, self.drift[axis]))
            v = _longer(u, axis + 1, mode)
            flux = 0.5 * (d[..., 1:] + d[..., :-1]) * (v[..., 1:] - v[..., :-1]) / h
            flux = flux - 0.25 * (c[..., 1:] + c[..., :-1]) * (v[..., 1:] + v[..., :-1])
            total = total + ((flux[..., 1:] - flux[..., :-1]) / h).movedim(-1, axis + 1)
        return total

    def forward(
        self, x: Tensor, state: Tensor | None = None, *, states: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the outputs for inputs ``(batch, T, inputs)``; with ``states`` also the states.

        Parameters
        ----------
        x
            One input a step.
        state
            At the start, ``(batch, hidden)``; zero by default.
        states
            Whether to return the states after all steps too, shape ``(batch, T, hidden)``.

        Returns
        -------
        Tensor
            With ``observe="last"`` ``(batch, outputs)``, else ``(batch, T, outputs)``; without readout the observed
            neurons or probes.

        Raises
        ------
        ValueError
            If the shape of the inputs or the state is wrong.
        """
        n = self.lattice.size
        if x.ndim != 3 or x.shape[2] != self.inputs or not x.shape[1]:
            raise ValueError(
                f"rnn: inputs of shape {tuple(x.shape)} given; (batch, steps, {self.inputs}) allowed, at least one step"
            )
        if state is not None and tuple(state.shape) != (len(x), n):
            raise ValueError(f"rnn: state of shape {tuple(state.shape)} given; {(len(x), n)} allowed")
        u = x.new_zeros(len(x), n) if state is None else state
        step = self.step_matrix().T
        seen = []
        for push in (self.dt * linear(x, self.source_positions, self.source)).unbind(1):
            u = self.reaction(torch.addmm(push, u, step)[:, None], self.dt)[:, 0]
            seen.append(u)
        every = torch.stack(seen, 1) if states or self.observe == "all" else u[:, None]
        out = self.read(every)
        return (out, every) if states else out

    def read(self, states: Tensor) -> Tensor:
        """Return the outputs that states ``(batch, T, hidden)`` mean."""
        seen = states[:, -1] if self.observe == "last" else states
        seen = seen if self.probes is None else seen @ self.probes.T
        return seen if self.readout is None else self.readout(seen)

    def as_torch(self) -> StockElman:
        """Return the same network as ``nn.RNN`` and ``nn.Linear``, with copies of the weights.

        Raises
        ------
        ValueError
            If the reaction is neither ReLU nor the driven tanh, which ``nn.RNN`` has.
        """
        if isinstance(self.reaction, ReLU):
            nonlinearity = "relu"
        elif isinstance(self.reaction, Tanh) and self.reaction.driven:
            nonlinearity = "tanh"
        else:
            raise ValueError(f"rnn: nn.RNN has no reaction {self.reaction.name!r}; 'tanh' and 'relu' allowed")
        return StockElman(self, nonlinearity)

    def as_equation(self) -> DrivenElman:
        """Return the equation that the network solves, driven by inputs; see :class:`DrivenElman`."""
        from npde_fem.networks.kinds.driven import DrivenElman

        return DrivenElman(self)


def _longer(values: Tensor, axis: int, mode: str) -> Tensor:
    """Return values with one more layer at both ends of an axis, which comes last then."""
    lines = values.movedim(axis, -1)
    flat = lines.reshape(1, -1, lines.shape[-1])
    return pad(flat, (1, 1), mode=mode).reshape(*lines.shape[:-1], lines.shape[-1] + 2)


class StockElman(nn.Module):
    """The Elman network of stock parts: ``nn.RNN`` and ``nn.Linear``. Outputs are those of :class:`ElmanNetwork`."""

    def __init__(self, network: ElmanNetwork, nonlinearity: str) -> None:
        super().__init__()
        n, real = network.lattice.size, _Kind(dtype=network.source.dtype, device=network.source.device)
        self.observe = network.observe
        self.rnn = nn.RNN(network.inputs, n, nonlinearity=nonlinearity, batch_first=True, **real)
        readout, probes = network.readout, network.probes
        weight = None if readout is None else readout.weight.detach()
        if probes is not None:
            weight = probes if weight is None else weight @ probes
        self.readout: nn.Module = nn.Identity()
        with torch.no_grad():
            own = dict(self.rnn.named_parameters())
            own["weight_hh_l0"].copy_(network.step_matrix())
            own["weight_ih_l0"].copy_(network.dt * network.source_positions)
            own["bias_ih_l0"].copy_(network.dt * network.source)
            own["bias_hh_l0"].zero_()
            if weight is not None:
                self.readout = layer = nn.Linear(n, len(weight), bias=readout is not None, **real)
                layer.weight.copy_(weight)
                if readout is not None:
                    layer.bias.copy_(readout.bias)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        every, last = self.rnn(x, None if state is None else state[None])
        return self.readout(last[0] if self.observe == "last" else every)


def rnn(
    inputs: int,
    hidden: int | None = None,
    outputs: int | None = None,
    *,
    reaction: Any = "tanh",
    dt: float = 1.0,
    local: bool = False,
    grid: Any = None,
    boundary: str | None = None,
    probes: Any = None,
    observe: Readout = "last",
    dtype: torch.dtype | None = None,
) -> ElmanNetwork:
    """Return a recurrent network that is an equation of first order in time (Elman 1990, Cogn. Sci. 14).

    ``u' = Phi(W u + dt (U x + s))`` with ``W = E + dt N`` is a step of Lie splitting: N is transport, the input x
    enters by the source ``U x + s``, and Phi is the flow of the reaction. Weights shared by all steps are coefficients
    constant in time. At the start W, U and s have the distribution that ``nn.RNN`` has, but for a local one, which
    begins as a diffusion.

    Parameters
    ----------
    inputs
        Numbers that enter at a step.
    hidden
        Number of neurons, at least 3; or give a grid.
    outputs
        Outputs of a linear readout of what is observed; None: the observations are the outputs.
    reaction
        Name of a reaction, one of :mod:`npde_fem.networks.reactions`, or one of torch's activations.
    dt
        The step.
    local
        Whether N is ``div(D grad u - c u) + m u`` with fields m, c and D; by default it is nonlocal, any matrix.
    grid
        Places of the neurons: :class:`~npde_fem.networks.Lattice` or the shape of one with spacing 1.
    boundary
        Of the lattice if ``grid`` is none: ``"zeros"`` (the default), ``"replicate"``, ``"reflect"``, ``"circular"``.
    probes
        Positions ``(p, d)`` at which the state is observed; by default at all neurons.
    observe
        The ``"last"`` step or ``"all"``.
    dtype
        torch's default by default.

    Raises
    ------
    TypeError, ValueError
        If an argument is not what it must be, the reaction is unknown, or a probe lies outside.
    """
    return ElmanNetwork(
        inputs,
        hidden,
        outputs,
        reaction=reaction,
        dt=dt,
        local=local,
        grid=grid,
        boundary=boundary,
        probes=probes,
        observe=observe,
        dtype=dtype,
    )
