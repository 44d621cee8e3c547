"""Networks on unstructured meshes: each layer is one explicit step of finite elements.

An equation whose coefficients are constant in space, Lagrange elements of degree 1 and a lumped mass matrix M make the
layer (THEORY: *On a finite-element mesh*)

    u^{k+1} = Phi(u^k + dt (sum_q C_q M^-1 K_q u^k + s)),

with the matrices K_q of the operators 1, -d_a and d_a d_b of mass, drift and diffusion, and channel matrices C_q, their
coefficients. A node hears only its neighbours on the mesh: the locality of the network is the mesh's. No flux passes
the boundary; a mesh made by :func:`npde_fem.periodic_mesh` has none.

*What coincides with a stencil.* On a uniform mesh of intervals, rectangles or boxes, whose integrals over cells are at
the nodes, all these matrices are, away from the boundary, the differences of a convolution 3 wide with the same
:class:`~npde_fem.networks.Coefficients`. On one of right-angled triangles the second differences along the axes are;
the mixed one reaches only the corners on the triangles' diagonal, the first differences are means over the neighbours,
and the matrix of the mass, as the source is integrated exactly, is M^-1 times the consistent mass matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from npde_fem.discretize import FEM
from npde_fem.equation import NPDE
from npde_fem.networks.coefficients import Coefficients, split_kernel
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.network import Network
from npde_fem.networks.phases import equation_of
from npde_fem.networks.reactions import Reaction, reaction_named
from npde_fem.parameter import Parameter
from npde_fem.solve import Lie, solve

import dolfinx.mesh as dmesh
import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
import ufl
from dolfinx import fem

__all__ = ["MeshEvolution", "MeshNetwork", "MeshOperators", "MeshPhase", "MeshStep", "mesh_network"]

Array = npt.NDArray[np.float64]

_MOST_ENTRIES = 2**25
"""Entries of the largest dense matrix that is made: 256 MiB."""


class MeshOperators:
    """The matrices M^-1 K_q of a mesh, assembled once by :class:`~npde_fem.FEM`.

    Parameters
    ----------
    space
        Scalar Lagrange space of degree 1, or the mesh it shall be made on; its communicator has one rank.
    lumped
        Whether M is lumped. If not, the matrices are dense, so that the mesh must be small.

    Attributes
    ----------
    space
        The space. Its dofs, in their order, are the nodes of the network.
    pairs
        Index pairs (a, b), a <= b, of the diffusions.
    matrices
        scipy's sparse matrices of mass, of the drift along each axis, and of the diffusions of :attr:`pairs`. For a < b
        the coefficient D_ab stands for D_ba too.

    width
        The mesh's mean width h: of its volume, each node has h^d.

    Raises
    ------
    TypeError, ValueError
        If ``space`` is neither, or of another element, its mesh is distributed, or too large for dense matrices.
    """

    def __init__(self, space: fem.FunctionSpace | dmesh.Mesh, lumped: bool = True) -> None:
        self.space, self.lumped = _checked_space(space), lumped
        self.dim = d = self.space.mesh.geometry.dim
        self.nodes = int(self.space.dofmap.index_map.size_local)
        if not lumped and self.nodes**2 > _MOST_ENTRIES:
            raise ValueError(
                f"mesh_network: {self.nodes} nodes with lumped=False make dense matrices of {self.nodes**2} entries; "
                f"{_MOST_ENTRIES} allowed. With lumped=True they are sparse"
            )
        self.pairs = [(a, b) for a in range(d) for b in range(a, d)]
        self.matrices, volume = self._assemble()
        self.width = (volume / self.nodes) ** (1 / d)
        self._tensors: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    @property
    def mass(self) -> str:
        """How :class:`~npde_fem.FEM` calls the mass matrix."""
        return "lumped" if self.lumped else "consistent"

    def coordinates(self) -> Array:
        """Coordinates of the nodes, shape ``(d, nodes)``."""
        return np.ascontiguousarray(self.space.tabulate_dof_coordinates()[: self.nodes, : self.dim].T)

    def _assemble(self) -> tuple[list[scipy.sparse.csr_matrix], float]:
        """The matrices, and the volume of the mesh."""
        d = self.dim
        mass, drift = Parameter("mass", 0.0), Parameter("drift", np.zeros(d))
        diffusion = Parameter("diffusion", np.zeros((d, d)))
        equation = NPDE(
            flux=lambda u, x, t: diffusion * ufl.grad(u) - u * drift, source=lambda u, x, t: mass * u, name="operators"
        )
        problem = FEM(equation, self.space, mass=self.mass)
        state, matrix = problem.new_state(), problem.new_matrix()

        def assembled(mass_factor: float, rate_factor: float) -> scipy.sparse.csr_matrix:
            problem.update()
            problem.jacobian(0.0, state, mass_factor, -rate_factor, matrix)
            pointers, columns, values = matrix.getValuesCSR()
            found = scipy.sparse.csr_matrix((values, columns, pointers), shape=(self.nodes, self.nodes))
            found.eliminate_zeros()
            return found

        try:
            whole = assembled(1.0, 0.0)
            inverse = scipy.sparse.diags(1 / whole.diagonal()) if self.lumped else np.linalg.inv(whole.toarray())
            found = []
            for parameter, unit in self._units(mass, drift, diffusion):
                zero, parameter.value = parameter.value, unit
                found.append(scipy.sparse.csr_matrix(inverse @ assembled(0.0, 1.0)))
                parameter.value = zero
            return found, float(whole.sum())
        finally:
            matrix.destroy()

    def _units(self, mass: Parameter, drift: Parameter, diffusion: Parameter) -> list[tuple[Parameter, Array]]:
        unit = np.eye(self.dim)
        drifts = [(drift, unit[a]) for a in range(self.dim)]
        diffusions = [
            (diffusion, np.maximum(np.outer(unit[a], unit[b]), np.outer(unit[b], unit[a]))) for a, b in self.pairs
        ]
        return [(mass, np.ones(())), *drifts, *diffusions]

    def tensor(self, like: torch.Tensor) -> torch.Tensor:
        """Return all matrices, one below the other, as a sparse tensor of a tensor's type and device."""
        key = (like.dtype, like.device)
        if key not in self._tensors:
            tall = scipy.sparse.vstack(self.matrices).tocoo()
            places = torch.from_numpy(np.stack([tall.row, tall.col]).astype(np.int64))
            made = torch.sparse_coo_tensor(places, torch.from_numpy(tall.data), tall.shape, check_invariants=False)
            self._tensors[key] = made.to(dtype=like.dtype, device=like.device).coalesce()
        return self._tensors[key]


class MeshStep(torch.nn.Module):
    """One linear step on a mesh: ``u + dt (sum_q C_q M^-1 K_q u + s)``.

    The parameters are what an optimiser sees, and are counted in steps and in the mesh's mean width h, as those of
    :class:`~npde_fem.networks.kinds.transport.Transport` are; :meth:`coefficients` gives them in physical units:

    * ``mass`` = dt m, shape ``(C_out, C_in)``,
    * ``drift`` = dt c_a / h, shape ``(C_out, C_in, d)``,
    * ``diffusion`` = dt D_ab / h^2, the independent entries a <= b, shape ``(C_out, C_in, d (d + 1) / 2)``,
    * ``source`` = dt s, shape ``(C_out,)``.

    At the start they are what a convolution 3 wide of torch draws at random, read as coefficients.

    Parameters
    ----------
    operators
        The mesh's matrices.
    channels
        Channels that go in and out. Channels that are new start at 0, those dropped end.
    dt
        Length of the step.
    values
        Values of ``mass``, ``drift``, ``diffusion`` ``(C_out, C_in, d, d)`` and ``source`` in physical units, by name:
        anything that can be broadcast to their shapes; a number is a mass or an isotropic diffusion of each channel.
        Where some are given the others are 0.
    """

    mass: torch.Tensor
    drift: torch.Tensor
    diffusion: torch.Tensor
    source: torch.Tensor

    def __init__(
        self,
        operators: MeshOperators,
        channels: tuple[int, int],
        dt: float,
        values: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.operators, self.channels, self.dt = operators, channels, dt
        found = self._given(values) if values else self._random()
        for name, value in found.items():
            entries = torch.stack([value[..., a, b] for a, b in operators.pairs], -1) if name == "diffusion" else value
            self.register_parameter(name, torch.nn.Parameter(entries.to(dtype or torch.get_default_dtype())))

    def _random(self) -> dict[str, torch.Tensor]:
        d, (n_in, n_out) = self.operators.dim, self.channels
        conv = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[d - 1](n_in, n_out, 3)
        with torch.no_grad():
            mass, drift, diffusion, _ = split_kernel(conv.weight.double(), (1.0,) * d, 1.0)
            assert conv.bias is not None
            return {"mass": mass, "drift": drift, "diffusion": diffusion, "source": conv.bias.clone()}

    def _given(self, values: dict[str, Any]) -> dict[str, torch.Tensor]:
        pair, d, h, dt = self.channels[::-1], self.operators.dim, self.operators.width, self.dt
        shapes = {"mass": pair, "drift": (*pair, d), "diffusion": (*pair, d, d), "source": pair[:1]}
        units = {"mass": dt, "drift": dt / h, "diffusion": dt / h**2, "source": dt}
        found = {k: units[k] * _broadcast(k, values.get(k, 0.0), shape) for k, shape in shapes.items()}
        if not torch.equal(found["diffusion"], found["diffusion"].mT):
            raise ValueError("mesh_network: diffusion must be symmetric in its last two axes")
        return found

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        (n_in, n_out), n = self.channels, self.operators.nodes
        if u.ndim != 3 or u.shape[1:] != (n_in, n):
            raise ValueError(f"u of shape {tuple(u.shape)} given; (batch, {n_in}, {n}) (channels, nodes) allowed")
        parts = torch.sparse.mm(self.operators.tensor(u), u.permute(2, 0, 1).reshape(n, -1))
        step = torch.einsum("qnbj,ijq->bin", parts.reshape(-1, n, len(u), n_in), self._matrices())
        kept = u[:, :n_out]
        if n_out > n_in:
            kept = torch.nn.functional.pad(kept, (0, 0, 0, n_out - n_in))
        return kept + step + self.source[:, None]

    def _matrices(self) -> torch.Tensor:
        """Channel matrices dt C_q, shape (C_out, C_in, Q)."""
        h = self.operators.width
        return torch.cat([self.mass[..., None], h * self.drift, h**2 * self.diffusion], -1)

    @torch.no_grad()
    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return matrix ``(C_out nodes, C_in nodes)`` and bias of the step, float64, without gradients."""
        (n_in, n_out), n = self.channels, self.operators.nodes
        weight = np.kron(np.eye(n_out, n_in), np.eye(n))
        for channel, matrix in zip(self._matrices().double().cpu().numpy().T, self.operators.matrices, strict=True):
            weight += np.kron(channel.T, matrix.toarray())
        return torch.from_numpy(weight), self.source.double().repeat_interleave(n)

    def coefficients(self, spacing: float | tuple[float, ...] = 1.0) -> Coefficients:
        """Return the coefficients, as those of a convolution 3 wide on points of some spacing."""
        d, pair, h = self.operators.dim, self.channels[::-1], self.operators.width
        entries = {k: p.detach().double().cpu().numpy() / self.dt for k, p in self.named_parameters()}
        diffusion = np.zeros((*pair, d, d))
        for k, (a, b) in enumerate(self.operators.pairs):
            diffusion[..., a, b] = diffusion[..., b, a] = h**2 * entries["diffusion"][..., k]
        rest, steps = np.zeros((*pair, *(3,) * d)), tuple(np.broadcast_to(spacing, (d,)).tolist())
        mass, drift, source = entries["mass"], h * entries["drift"], entries["source"]
        return Coefficients(mass, drift, diffusion, rest, source, steps, self.dt)


class MeshNetwork(Network):
    """What :func:`mesh_network` makes: layers ``Phi(step(u))`` on a mesh, for u of shape ``(batch, C, nodes)``.

    Attributes
    ----------
    operators
        The mesh's matrices; ``operators.coordinates()`` tells where the nodes are.
    steps
        The steps: one for each layer, or, if shared, one for all.
    count
        Number of layers.
    """

    def __init__(self, steps: Sequence[MeshStep], reaction: Reaction, count: int) -> None:
        super().__init__()
        self.operators, self.dt, self.count = steps[0].operators, steps[0].dt, count
        self.steps, self.reaction = torch.nn.ModuleList(steps), reaction

    def _layers(self) -> list[MeshStep]:
        shared = len(self.steps) < self.count
        return [self.steps[0]] * self.count if shared else list(self.steps)  # type: ignore[arg-type,list-item]

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        for step in self._layers():
            u = self.reaction(step(u), self.dt)
        return u

    def as_torch(self) -> torch.nn.Sequential:
        """Return dense ``nn.Linear`` layers with activations.

        Raises
        ------
        ValueError
            If a matrix would have more than 2^25 entries.
        """
        n, made = self.operators.nodes, []
        for step in self._layers():
            n_in, n_out = step.channels
            if n_in * n_out * n**2 > _MOST_ENTRIES:
                raise ValueError(
                    f"as_torch: a dense layer of {n} nodes and {n_in} to {n_out} channels has {n_in * n_out * n**2} "
                    f"entries; {_MOST_ENTRIES} allowed. On a larger mesh the network itself is the sparse form"
                )
            linear = torch.nn.Linear(n_in * n, n_out * n, dtype=step.mass.dtype, device=step.mass.device)
            with torch.no_grad():
                for own, value in zip((linear.weight, linear.bias), step.dense(), strict=True):
                    own.copy_(value)
            made += [torch.nn.Flatten(), linear, torch.nn.Unflatten(1, (n_out, n)), self.reaction.as_torch(self.dt)]
        return torch.nn.Sequential(*made)

    def coefficients(self, spacing: float | tuple[float, ...] = 1.0) -> list[Coefficients]:
        """Return the coefficients of each layer (see :meth:`MeshStep.coefficients`)."""
        return [step.coefficients(spacing) for step in self._layers()]

    def as_equation(self) -> MeshEvolution:
        """Return the equation with the values that the parameters have now; shared steps are one equation."""
        found: list[MeshStep] = list(self.steps)  # type: ignore[arg-type]
        each = self.count // len(found)
        h, d = self.operators.width, self.operators.dim
        # The lattice tells the scale of lengths; without a rest the equation does not depend on it.
        lattice = Lattice((3,) * d, (h,))
        phases = []
        for k, step in enumerate(found):
            equation = equation_of(step.coefficients(h), self.reaction, lattice, name=f"layer {k}")
            phases.append(MeshPhase(equation, step.channels, self.dt, each))
        return MeshEvolution(phases, self.operators)


@dataclass(frozen=True)
class MeshPhase:
    """An equation during some steps of a network.

    Attributes
    ----------
    equation
        The NPDE, with as many components as the larger number of channels.
    channels
        Channels that go in and out.
    dt, steps
        Length and number of the steps.
    """

    equation: NPDE
    channels: tuple[int, int]
    dt: float
    steps: int = 1


@dataclass(frozen=True)
class MeshEvolution:
    """The equations of a network's layers, one after the other, to be solved by finite elements.

    Attributes
    ----------
    phases
        The equations.
    operators
        The mesh's matrices.
    """

    phases: list[MeshPhase]
    operators: MeshOperators

    @property
    def equation(self) -> NPDE:
        """The equation, of a network whose layers share one; ValueError for others."""
        if len(self.phases) > 1:
            raise ValueError(f"the network has {len(self.phases)} layers with an equation each: see phases")
        return self.phases[0].equation

    def solve(
        self,
        u0: npt.ArrayLike | Callable,
        on: fem.FunctionSpace | dmesh.Mesh | None = None,
        *,
        mass: str | None = None,
        substeps: int = 1,
        implicit: bool = False,
    ) -> MeshEvolutionResult:
        """Solve the equations by :func:`npde_fem.solve`, with FEM and the scheme ``Lie``.

        Parameters
        ----------
        u0
            Values at the nodes ``(C, nodes)``, or a callable of coordinates ``(3, nodes)`` that returns them.
        on
            Another mesh, or scalar Lagrange space, of one rank; by default that of the network, on which the result of
            one substep equals the network's.
        mass
            "lumped" or "consistent"; by default as in the network.
        substeps, implicit
            As of :func:`npde_fem.Lie`.

        Raises
        ------
        TypeError, ValueError
            If ``u0`` has another shape, or ``on`` does not fit.
        """
        space = self.operators.space if on is None else _checked_space(on, any_degree=True)
        x = space.tabulate_dof_coordinates()[: space.dofmap.index_map.size_local]
        shape = (self.phases[0].channels[0], len(x))
        u = np.asarray(u0(x.T) if callable(u0) else u0, dtype=np.float64)
        if u.shape != shape:
            raise ValueError(f"u0: array of shape {u.shape} given; {shape} (channels, nodes) allowed")
        scheme = Lie(substeps, implicit, checked=False)
        states, t = [u], 0.0
        for phase in self.phases:
            m = phase.equation.components
            element = (*(space.ufl_element().family_name, space.ufl_element().degree), phase.equation.shape)
            own = space if m == 1 else fem.functionspace(space.mesh, element)
            problem = FEM(phase.equation, own, mass=mass or self.operators.mass)
            start = np.zeros((shape[1], m))
            start[:, : phase.channels[0]] = u.T
            times = [t + (k + 1) * phase.dt for k in range(phase.steps)]
            solution = solve(
                problem, start.ravel(), (t, times[-1]), phase.dt, scheme, times, rescue=None, progress=False
            )
            found = solution.states.reshape(len(times), shape[1], m)[..., : phase.channels[1]].swapaxes(1, 2)
            states += list(found)
            u, t = found[-1], times[-1]
        return MeshEvolutionResult(space, states)


@dataclass(frozen=True)
class MeshEvolutionResult:
    """What :meth:`MeshEvolution.solve` found.

    Attributes
    ----------
    space
        Scalar space whose dofs are the nodes.
    states
        State at the start and after each layer, each ``(C, nodes)``.
    """

    space: fem.FunctionSpace
    states: list[Array]

    def array(self) -> Array:
        """Return the state after the last layer, ``(C, nodes)``."""
        return self.states[-1]

    def function(self, channel: int = 0) -> fem.Function:
        """Return a channel of the state after the last layer as a DOLFINx function."""
        made = fem.Function(self.space, name=f"u{channel}", dtype=np.float64)
        made.x.array[:] = self.array()[channel]
        return made


def mesh_network(
    space: fem.FunctionSpace | dmesh.Mesh,
    *,
    channels: int | Sequence[int],
    steps: int | None = None,
    reaction: Any = "relu",
    dt: float = 1.0,
    shared: bool = False,
    mass: Any = None,
    drift: Any = None,
    diffusion: Any = None,
    source: Any = None,
    lumped: bool = True,
    dtype: torch.dtype | None = None,
) -> MeshNetwork:
    """Return a network on an unstructured mesh, of layers ``Phi(u + dt (L u + s))``; see the module's text.

    Parameters
    ----------
    space
        Scalar Lagrange space of degree 1, or the mesh it shall be made on: any cells, a communicator of one rank. The
        nodes of tensors ``(batch, C, nodes)`` are its dofs in their order.
    channels
        Their number C, or that before each layer and after the last.
    steps
        Number of layers; by default as many as ``channels`` tells.
    reaction
        A :class:`~npde_fem.networks.reactions.Reaction`, its name, or torch's activation: Phi is its flow over dt.
    dt
        Length of a step, in the unit that coefficients have.
    shared
        Whether all layers have the same coefficients: an autonomous equation.
    mass, drift, diffusion, source
        Values, in physical units, that the parameters start with (see :class:`MeshStep`); random if none is given. An
        explicit step is stable only below a bound of the order of width^2 / diffusion.
    lumped
        Whether the mass matrix is lumped. The consistent one makes dense matrices, for small meshes only.
    dtype
        Of the parameters; torch's default by default.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.
    """
    operators = MeshOperators(space, lumped)
    widths = _widths(channels, steps)
    if shared and len(set(widths)) > 1:
        raise ValueError(f"mesh_network: channels {widths} given; layers that share weights have equal channels")
    if isinstance(dt, bool) or not isinstance(dt, int | float) or not (0 < dt < float("inf")):
        raise ValueError(f"mesh_network: dt = {dt!r} given; a positive number allowed")
    values = {"mass": mass, "drift": drift, "diffusion": diffusion, "source": source}
    given = {name: value for name, value in values.items() if value is not None}
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    made = [MeshStep(operators, pair, float(dt), given, dtype) for pair in (pairs[:1] if shared else pairs)]
    return MeshNetwork(made, reaction_named(reaction), len(pairs))


def _widths(channels: int | Sequence[int], steps: int | None) -> list[int]:
    """Channels before each layer and after the last."""
    if isinstance(channels, int | np.integer):
        if not isinstance(steps, int | np.integer) or steps < 1:
            raise ValueError(f"mesh_network: steps = {steps!r} given; a positive integer allowed")
        widths = [int(channels)] * (int(steps) + 1)
    else:
        widths = list(channels)
        if steps not in (None, len(widths) - 1):
            raise ValueError(f"mesh_network: channels {widths} are those of {len(widths) - 1} steps, {steps} given")
    if len(widths) < 2 or not all(isinstance(n, int | np.integer) and n >= 1 for n in widths):
        raise ValueError(f"mesh_network: channels {channels!r} given; a positive integer, or at least two, allowed")
    return widths


def _checked_space(space: Any, any_degree: bool = False) -> fem.FunctionSpace:
    if not isinstance(space, fem.FunctionSpace | dmesh.Mesh):
        raise TypeError(f"mesh_network: space must be a function space or mesh of DOLFINx, not {type(space).__name__}")
    mesh = space if isinstance(space, dmesh.Mesh) else space.mesh
    if mesh.comm.size > 1:
        raise ValueError(
            f"mesh_network: the mesh is spread over {mesh.comm.size} ranks; a mesh on MPI.COMM_SELF allowed, as torch "
            "holds all nodes in one tensor"
        )
    if isinstance(space, dmesh.Mesh):
        return fem.functionspace(space, ("Lagrange", 1))
    element = space.ufl_element()
    lagrange = element.family_name in ("P", "Q") and not element.discontinuous
    if not lagrange or tuple(space.value_shape) or not (any_degree or element.degree == 1):
        degree = "" if any_degree else " of degree 1"
        raise ValueError(
            f"mesh_network: element {element.family_name} of degree {element.degree} and value shape "
            f"{tuple(space.value_shape)} given; scalar continuous Lagrange elements{degree} allowed"
        )
    return space


def _broadcast(name: str, value: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """A coefficient of one shape, float64, from what a user gives."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    if not torch.isfinite(tensor).all():
        raise ValueError(f"mesh_network: {name} is not finite")
    if tensor.ndim == 0 and name in ("mass", "diffusion"):
        channels, unit = torch.eye(*shape[:2]).double(), torch.eye(shape[-1]).double()
        tensor = tensor * (channels if name == "mass" else torch.einsum("ij,ab->ijab", channels, unit))
    try:
        return tensor.broadcast_to(shape).clone()
    except RuntimeError as error:
        raise ValueError(
            f"mesh_network: {name} of shape {tuple(tensor.shape)} given; what broadcasts to {shape} allowed"
        ) from error
