"""Networks in finite differences on all ranks; rank 0 saves derivatives of terms and solves to the .npz file named.

Networks stand in every place where one may, among parameters, with inputs of every kind; see tests/test_neural_fd.py.
"""

import sys

import npde_fem as npde

import adjoint
import fd_linearised as cases
import numpy as np
import torch
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD
SCHEMES = ("forward-euler", "rk4", "crank-nicolson", "imex")


class Rational(torch.nn.Module):
    """What UFL has no words for: a cumulative sum, and weights in a matrix exponential."""

    def __init__(self, k, m):
        super().__init__()
        self.mix = torch.nn.Parameter(0.1 * torch.cos(torch.arange(9.0, dtype=torch.float64)).reshape(3, 3))
        self.out = torch.nn.Parameter(torch.sin(1 + torch.arange(3.0 * m, dtype=torch.float64)).reshape(3, m))
        self.spread = torch.nn.Parameter(torch.cos(2 + torch.arange(3.0 * k, dtype=torch.float64)).reshape(k, 3))

    def forward(self, a):
        z = torch.cumsum(a @ self.spread, 1) @ torch.linalg.matrix_exp(self.mix)
        return torch.special.erf(z / (1 + z**2)) @ self.out


def layers(k, m, width=5, seed=0, last=torch.nn.Tanh):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = torch.nn.Sequential(torch.nn.Linear(k, width), last(), torch.nn.Linear(width, m))
    return made.double()


def net(k, m=1, name="net", seed=0):
    return npde.neural(layers(k, m, seed=seed), name)


def line():
    """One network twice, of the state alone and so tabulated; another of everything there is, with data around."""
    D, c, r, q, k = (
        *(cases.number(name, value) for name, value in (("D", 0.4), ("c", 0.3))),
        cases.field("r"),
        cases.number("q", [0.2, 0.5]),
        cases.field("k", cells=True),
    )
    one, many = net(1, name="one"), net(7, name="many", seed=1)
    equation = npde.NPDE(
        flux=lambda u, x, t: D * (1 + one(u) ** 2) * ufl.grad(u) - c * ufl.as_vector([many(u, x, t, u.dx(0), r, q)]),
        source=lambda u, x, t: u * one(c * u) + many(u**2, x, t, k, r.dx(0), q) ** 2,
        damping=lambda x, t: 1 + c * x[0],
    )
    bcs = [npde.Dirichlet(lambda x, t: D * (1 + t), cases.at(0, 0)), npde.Robin(D, c, cases.at(0, 1))]
    return npde.FD(equation, cases.grid(9), bcs)


def plane(mask=None):
    """A vector-valued network of state and slope as a flux, and as a source."""
    D, w = cases.number("D", 0.3), cases.field("w", (2,))
    vector, own = net(3, 2, "vector"), npde.neural(Rational(3, 1), "own", inputs=3)
    equation = npde.NPDE(
        flux=lambda u, x, t: D * ufl.grad(u) + u * vector(u, ufl.grad(u)),
        source=lambda u, x, t: ufl.dot(vector(x[1], w), ufl.grad(u)) + own(u, x) * u,
        damping=D,
    )
    left = cases.at(0, 0) if mask is None else lambda x: x[0] > 0.9
    return npde.FD(equation, cases.grid(7, 6, mask=mask), [npde.Dirichlet(lambda x, t: D * (1 + t), left)])


def disc():
    return plane(lambda x: (x[0] - 0.6) ** 2 + (x[1] - 0.5) ** 2 < 0.23)


def system():
    """Two components on a cylinder: one network for both sources, and diffusion of each by the other."""
    d, F = cases.number("d", [0.2, 0.1]), cases.number("F", 0.3)
    both, across = net(2, 2, "both"), net(1, name="across", seed=2)
    equation = npde.NPDE(
        flux=lambda u, x, t: ufl.as_tensor(
            [
                [d[i] * (1 + across(u[1 - i]) ** 2) * u[i].dx(0), d[i] * u[i].dx(1) + 0.1 * across(u[i].dx(0))]
                for i in (0, 1)
            ]
        ),
        source=lambda u, x, t: both(u) * F + both(u[1], F * t),
        damping=[[1.0, 0.2], [-0.1, 2.0]],
        components=2,
    )
    return npde.FD(equation, cases.grid(6, 7), [npde.Periodic(1), npde.Dirichlet(F, cases.at(0, 1), component=1)])


def room():
    """Three dimensions, periodic along one."""
    D, face = cases.number("D", 0.5), net(4, name="face")
    equation = npde.NPDE(
        flux=lambda u, x, t: D * (1 + face(u, x) ** 2) * ufl.grad(u), source=lambda u, x, t: D * face(u, x) * u
    )
    return npde.FD(equation, cases.grid(5, 6, 4), [npde.Periodic(1), npde.Dirichlet(D, cases.at(0, 0))])


PROBLEMS = {f.__name__: f for f in (line, plane, disc, system, room)}
SOLVED = (line, plane, disc, system)


def start(problem):
    height = npde.Parameter("height", lambda x: 0.4 + 0.3 * np.sin(3 * x[0] + 2 * x[1]), field=True)
    two = bool(problem.equation.state_shape)
    return npde.Initial(lambda x: ufl.as_vector([height, 0.5 * height**2]) if two else height)


class Experiment(adjoint.Experiment):
    """One with fields of vectors among its controls."""

    def direction(self, name, k=2, size=0.1):
        found = super().direction(name, k, size)
        return np.repeat(found, self.at[name].size // found.size) if self.is_spread(name) else found


def experiment(make, scheme):
    """A loss of a solve, by all parameters and the initial data."""
    problem = make()
    end, two = 0.02, bool(problem.equation.state_shape)

    def loss():
        made = npde.solve(problem, start(problem), t=(0, end), dt=end / 4, scheme=npde.scheme_named(scheme))
        target = (lambda x: np.stack([0.1 + x[0], 0.3 + x[1]])) if two else 0.1
        return npde.misfit(made, [target], sigma=0.1) + npde.integral(
            made, lambda u, x, t: 30 * ufl.inner(u, u) * (1 + x[0]) ** 2
        )

    return Experiment(problem, loss)


def main():
    found = cases.measured(PROBLEMS)
    for make, scheme in zip(SOLVED, SCHEMES, strict=True):
        one = experiment(make, scheme)
        along = {name: one.direction(name) for name in one.controls}
        for what, values in (("gradient", one.derivative()), ("hessian", one.hessian(along))):
            for name, d in along.items():
                found[f"{make.__name__} {scheme} {what} {name}"] = np.array(one.dot(values, {name: d}))
    if COMM.rank == 0:
        np.savez(sys.argv[1], **found)


if __name__ == "__main__":
    main()
