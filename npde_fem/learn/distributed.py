"""Tensors on many ranks: samples over members, dofs over ranks, and losses that are one number.

A tensor is either *replicated*, the same on every rank (a loss, a number, the weights of a network), or *distributed*:
each rank has the dofs that it owns, on its last axis. A loss is replicated. Its gradient by a replicated tensor is
replicated and complete; its gradient by a distributed one is each rank's own part. What leads from one kind to the
other knows that:

    total, mean, mse     distributed -> one number
    gather               distributed -> the whole array, on every rank
    scatter              the whole array -> distributed
    spread_use           replicated -> used by each rank in its own way

All are collective, forwards and backwards, and can be differentiated again.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from npde_fem.discretize.fd import FD
from npde_fem.discretize.fem import FEM
from npde_fem.discretize.semidiscrete import Semidiscrete
from npde_fem.parallel import alike
from npde_fem.parameter import Parameter

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Ensemble", "gather", "mean", "mse", "scatter", "spread_use", "total"]


class Ensemble:
    """A communicator split into members that work on different samples, each on one or more ranks in space.

    Ranks that follow each other make a member. Make problems on :attr:`space`, hand each member its samples
    (:meth:`mine`), let gradients of shared weights be summed over the members (:meth:`share`), and take losses over
    :attr:`comm`, which has all samples and all dofs.

    Parameters
    ----------
    comm
        The communicator (collective).
    ranks_per_member
        Ranks on which one sample is solved.

    Attributes
    ----------
    comm
        All ranks.
    space
        The ranks of this member.
    across
        The ranks that own the same dofs, one of each member.
    members, member
        Number of members, and which one this is.

    Raises
    ------
    TypeError, ValueError
        If ``ranks_per_member`` is no positive integer that divides the number of ranks.
    """

    def __init__(self, comm: MPI.Comm, ranks_per_member: int = 1) -> None:
        if not isinstance(comm, MPI.Comm):
            raise TypeError(f"Ensemble: comm must be a communicator of mpi4py, not {comm!r}")
        if isinstance(ranks_per_member, bool) or not isinstance(ranks_per_member, int | np.integer):
            raise TypeError(f"Ensemble: ranks_per_member must be an integer, not {ranks_per_member!r}")
        if ranks_per_member < 1 or comm.size % ranks_per_member:
            raise ValueError(
                f"Ensemble: ranks_per_member = {ranks_per_member} given; a number that divides the {comm.size} ranks "
                "allowed"
            )
        self.comm, self.members = comm, comm.size // ranks_per_member
        self.member, place = divmod(comm.rank, ranks_per_member)
        self.space, self.across = comm.Split(self.member, comm.rank), comm.Split(place, comm.rank)
        self._shared = WeakIdKeyDictionary()

    def mine(self, batch: Any) -> Any:
        """Return this member's samples of a batch, a tensor or sequence that is the same on every rank: equal shares.

        Raises
        ------
        ValueError
            If the batch cannot be divided by the members.
        """
        samples = len(batch)
        if samples % self.members:
            raise ValueError(
                f"Ensemble: a batch of {samples} samples given; a number of samples that {self.members} members can "
                "share alike allowed"
            )
        share = samples // self.members
        return batch[self.member * share : (self.member + 1) * share]

    def share(self, module: torch.nn.Module) -> torch.nn.Module:
        """Let the members train one set of weights (collective); return the module.

        The weights become those of rank 0, and fields, of which each rank owns a part, those of the first member. From
        then on each gradient that torch computes for one of them is summed over the members, once, in the backward pass
        itself: ``loss.backward()`` must be called on all ranks, and a term of the loss that every member adds, as a
        penalty on the weights themselves, must be divided by :attr:`members`. Weights that are shared already stay so,
        those that need no gradient now are not summed later, and a copy of the module is not shared.
        """
        for p in module.parameters():
            first = (self.across if isinstance(p, Distributed) else self.comm).bcast(p.detach().cpu(), root=0)
            with torch.no_grad():
                p.copy_(first)
            if p.requires_grad and p not in self._shared:
                self._shared[p] = p.register_hook(lambda gradient: spread_sum(gradient, self.across))
        return module

    def free(self) -> None:
        """Free the communicators (collective); problems on :attr:`space` must be gone."""
        self.space.Free()
        self.across.Free()


class Distributed(torch.nn.Parameter):
    """A weight of which each rank has a part of its own, as its copies do."""


# -- sums ------------------------------------------------------------------------------------------------------


def _summed(x: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
    """Return the sum of a tensor over all ranks, elementwise, in double precision."""
    wide = torch.complex128 if x.is_complex() else torch.float64
    values = x.detach().to("cpu", wide, copy=True).contiguous().resolve_conj().resolve_neg()
    comm.Allreduce(MPI.IN_PLACE, values.numpy())
    return values.to(x.device, x.dtype)


class _Sum(torch.autograd.Function):
    """Distributed terms -> their replicated sum; backwards each term has the gradient of the sum."""

    @staticmethod
    def forward(x: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
        return _summed(x, comm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.comm = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        return _Use.apply(gradient, ctx.comm), None


class _Use(torch.autograd.Function):
    """A replicated tensor, used by each rank in its own way; backwards the ranks' gradients are summed."""

    @staticmethod
    def forward(x: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.comm = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        return _Sum.apply(gradient, ctx.comm), None


def _from_cpu(made: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a result on the device of x.

    What communicates has tensors on the CPU only, whose backward pass torch runs on the thread that asks for it.
    """
    return made.to(x.device)


def spread_sum(x: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
    """Return the elementwise sum over the ranks, replicated (collective)."""
    return _from_cpu(_Sum.apply(x.cpu(), comm), x)


def spread_use(x: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
    """Return a replicated tensor for use by each rank in its own way: its gradient is the sum of the ranks'.

    Numbers and weights that a :class:`~npde_fem.learn.Layer` takes need it not: their gradients are summed there.
    """
    return _from_cpu(_Use.apply(x.cpu(), comm), x)


def total(x: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
    """Return the sum of all entries on all ranks, a replicated number (collective).

    Parameters
    ----------
    x
        This rank's entries, of any shape.
    comm
        The ranks over which they are distributed: ``problem.comm``, or the ``comm`` of an :class:`Ensemble`.

    Raises
    ------
    TypeError
        If it is no tensor of real or complex numbers, on any rank.
    """
    with alike(comm):
        _check("total: x", x)
    return spread_sum(x.sum(), comm)


def mean(x: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
    """Return the mean of all entries on all ranks, a replicated number (collective); see :func:`total`.

    Raises
    ------
    TypeError, ValueError
        If it is no tensor of real or complex numbers, on any rank, or there are no entries at all.
    """
    with alike(comm):
        _check("mean: x", x)
    return spread_sum(x.sum(), comm) / _count("mean: x", x, comm)


def mse(x: torch.Tensor, y: torch.Tensor, comm: MPI.Comm) -> torch.Tensor:
    """Return the mean of ``|x - y|^2`` over all entries on all ranks, a replicated real number (collective).

    Parameters
    ----------
    x, y
        This rank's entries, of equal shapes.
    comm
        As of :func:`total`.

    Raises
    ------
    TypeError, ValueError
        If one is no tensor of real or complex numbers, or their shapes differ, on any rank; or there are no entries.
    """
    with alike(comm):
        _check("mse: x", x)
        _check("mse: y", y)
        if x.shape != y.shape:
            raise ValueError(f"mse: shapes {tuple(x.shape)} and {tuple(y.shape)} given; equal ones allowed")
    difference = x - y
    square = (difference * difference.conj()).real if difference.is_complex() else difference * difference
    return spread_sum(square.sum(), comm) / _count("mse: x", x, comm)


def _check(label: str, x: Any) -> None:
    if not isinstance(x, torch.Tensor) or not (x.is_floating_point() or x.is_complex()):
        given = f"a tensor of {x.dtype}" if isinstance(x, torch.Tensor) else f"{type(x).__name__}"
        raise TypeError(f"{label}: {given} given; a tensor of real or complex numbers allowed")


def _count(label: str, x: torch.Tensor, comm: MPI.Comm) -> int:
    count = int(comm.allreduce(x.numel()))
    if not count:
        raise ValueError(f"{label}: no entries on any rank; at least one is needed")
    return count


# -- whole arrays ----------------------------------------------------------------------------------------------


class _Places(NamedTuple):
    """Where a rank's dofs stand in the whole array: this rank's, all ranks' one after the other, and its shape."""

    mine: npt.NDArray[np.int64]
    all: npt.NDArray[np.int64]
    counts: list[int]
    shape: tuple[int, ...]


_known_places: WeakKeyDictionary[Semidiscrete, dict[str | None, _Places]] = WeakKeyDictionary()


def _places(problem: Semidiscrete, of: Parameter | str | None) -> _Places:
    name = of.name if isinstance(of, Parameter) else of
    known = _known_places.setdefault(problem, {})
    if name not in known:
        if isinstance(problem, FD):
            layout, m = problem.layout, problem.equation.components if name is None else problem.field(name).components
            tail = () if m == 1 else (m,)
            numbers = np.arange(int(np.prod((*layout.points, m)))).reshape(*layout.points, *tail)
            shape, mine = numbers.shape, layout.slice_global(numbers, "numbers", m)
        else:
            assert isinstance(problem, FEM)
            space = problem.given_space if name is None else problem.field(name).function_space
            index_map, bs = space.dofmap.index_map, space.dofmap.index_map_bs
            mine = np.arange(*(bs * n for n in index_map.local_range), dtype=np.int64)
            shape = (index_map.size_global,) if bs == 1 else (index_map.size_global, bs)
        parts = problem.comm.allgather(mine)
        known[name] = _Places(mine, np.concatenate(parts), [p.size for p in parts], shape)
    return known[name]


def _take(x: torch.Tensor, places: _Places) -> torch.Tensor:
    """Return this rank's entries of a whole array."""
    axes = x.ndim - len(places.shape)
    return x.reshape(*x.shape[:axes], -1)[..., torch.from_numpy(places.mine).to(x.device)]


def _collect(x: torch.Tensor, places: _Places, comm: MPI.Comm) -> torch.Tensor:
    """Return the whole array of all ranks' entries."""
    lead = x.shape[:-1]
    rows = int(np.prod(lead, dtype=int))
    mine = x.detach().cpu().reshape(rows, -1).T.contiguous().resolve_conj().resolve_neg().numpy()
    all_ranks = np.empty((len(places.all), rows), dtype=mine.dtype)
    comm.Allgatherv(mine, [all_ranks, [n * rows for n in places.counts], MPI._typedict[mine.dtype.char]])
    whole = np.empty_like(all_ranks)
    whole[places.all] = all_ranks
    return torch.from_numpy(whole.T.copy()).to(x.device).reshape(*lead, *places.shape)


class _Scatter(torch.autograd.Function):
    """The whole array -> this rank's entries, of which each is one rank's."""

    @staticmethod
    def forward(x: torch.Tensor, places: _Places, comm: MPI.Comm) -> torch.Tensor:
        return _take(x, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        _, ctx.places, ctx.comm = inputs

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        return _Gather.apply(gradient, ctx.places, ctx.comm), None, None


class _Gather(torch.autograd.Function):
    """This rank's entries -> the whole array."""

    @staticmethod
    def forward(x: torch.Tensor, places: _Places, comm: MPI.Comm) -> torch.Tensor:
        return _collect(x, places, comm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        _, ctx.places, ctx.comm = inputs

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        return _Scatter.apply(gradient, ctx.places, ctx.comm), None, None


def scatter(x: torch.Tensor, problem: Semidiscrete, of: Parameter | str | None = None) -> torch.Tensor:
    """Return this rank's dofs of a whole array that every rank has (collective).

    Parameters
    ----------
    x
        Replicated, shape ``(..., *points)`` on a grid, indexed by x, y, z (a periodic axis lists distinct points
        once), or ``(..., nodes)`` in DOLFINx's global numbering on a mesh; behind that ``(m,)`` for m > 1 components.
        Of a complex state as many complex numbers.
    problem
        Whose dofs they are.
    of
        A field parameter, whose values they are; the state by default.

    Returns
    -------
    Tensor
        Distributed, shape ``(..., n)``, n the dofs that this rank owns.

    Raises
    ------
    TypeError, ValueError
        If it is no tensor of numbers, or has another shape, on any rank.
    """
    places = _places(problem, of)
    with alike(problem.comm):
        _check("scatter: x", x)
        if tuple(x.shape[-len(places.shape) :]) != places.shape:
            raise ValueError(f"scatter: shape {tuple(x.shape)} given; (..., {str(places.shape)[1:]} allowed")
    return _from_cpu(_Scatter.apply(x.cpu(), places, problem.comm), x)


def gather(x: torch.Tensor, problem: Semidiscrete, of: Parameter | str | None = None) -> torch.Tensor:
    """Return the whole array on every rank, given each rank's dofs: the inverse of :func:`scatter` (collective).

    For small problems, pictures and losses that need neighbours; a loss that is a sum needs only :func:`total`.

    Raises
    ------
    TypeError, ValueError
        If it is no tensor of numbers, or its last axis has not the dofs that this rank owns, on any rank.
    """
    places = _places(problem, of)
    with alike(problem.comm):
        _check("gather: x", x)
        if not x.ndim or x.shape[-1] != places.mine.size:
            raise ValueError(
                f"gather: shape {tuple(x.shape)} given; (..., {places.mine.size}), the dofs that this rank owns of "
                f"{places.all.size}, allowed"
            )
    return _from_cpu(_Gather.apply(x.cpu(), places, problem.comm), x)
