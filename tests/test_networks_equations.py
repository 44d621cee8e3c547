"""Trained networks solved as equations: on their own points equal to torch, elsewhere of order 2."""

import npde_fem as npde
from npde_fem.networks.phases import equation_of
from npde_fem.networks.reactions import reaction_named

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SHAPES = {1: (9,), 2: (9, 8), 3: (5, 6, 7)}
BOUNDARIES = ["zeros", "replicate", "reflect", "circular"]


def forward(module, u):
    with torch.no_grad():
        return module(torch.from_numpy(u)[None])[0].numpy()


def convolution(dim, n_in, n_out, size=3, boundary="zeros", stride=1):
    return CONVOLUTIONS[dim](n_in, n_out, size, padding=size // 2, padding_mode=boundary, stride=stride).double()


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_convolutions(dim, boundary):
    torch.manual_seed(dim)
    module = nn.Sequential(
        convolution(dim, 2, 3, boundary=boundary), nn.Tanh(), convolution(dim, 3, 2, boundary=boundary), nn.ReLU()
    )
    u = np.random.default_rng(0).random((2, *SHAPES[dim]))
    evolution = npde.networks.interpret(module, spacing=0.3, dt=0.2).to_npde(SHAPES[dim])
    np.testing.assert_allclose(evolution.solve(u).array(), forward(module, u), atol=1e-12)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Sigmoid(), nn.Tanh(), nn.Identity()])
def test_wide_kernels_strides_and_activations(activation):
    torch.manual_seed(1)
    module = nn.Sequential(
        convolution(2, 1, 4, 5, "circular"), activation, nn.AvgPool2d(2), convolution(2, 4, 2, 3, "zeros", 2)
    )
    u = np.random.default_rng(1).random((1, 16, 12))
    found = npde.networks.interpret(module).to_npde((16, 12)).solve(u).array()
    np.testing.assert_allclose(found, forward(module, u), atol=1e-10)


def local(boundary, n):
    """A step with mass, drift, full diffusion tensors of two coupled channels, on n points of a box of length 1."""
    lattice = {
        "zeros": npde.networks.Lattice((n - 1,) * 2, 1 / n, 1 / n, boundary),
        "replicate": npde.networks.Lattice((n,) * 2, 1 / n, 0.5 / n, boundary),
        "reflect": npde.networks.Lattice((n + 1,) * 2, 1 / n, 0.0, boundary),
        "circular": npde.networks.Lattice((n,) * 2, 1 / n, 0.0, boundary),
    }[boundary]
    mass = np.array([[-0.5, 0.3], [-0.2, 0.1]])
    drift = np.array([[[0.2, -0.1], [0.1, 0.0]], [[0.0, 0.1], [-0.1, 0.3]]])
    tensor = np.array([[0.2, 0.05], [0.05, 0.1]])
    diffusion = np.einsum("ij,ab->ijab", np.array([[1.0, 0.1], [0.2, 0.8]]), tensor)
    coefficients = npde.networks.Coefficients(
        mass, drift, diffusion, np.zeros((2, 2, 3, 3)), np.array([0.1, -0.2]), lattice.spacing, 2e-4
    )
    return coefficients, lattice


def start(boundary, x):
    """Smooth, and as the boundary wants it."""
    p = np.pi * x
    if boundary == "zeros":
        return np.stack([np.sin(p[0]) * np.sin(p[1]), np.sin(2 * p[0]) * np.sin(p[1])])
    factor = 2 if boundary == "circular" else 1
    return np.stack([np.cos(factor * p[0]) * np.cos(factor * p[1]), 1 + np.cos(factor * p[0])])


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_finite_elements_differ_by_order_2(boundary):
    errors = []
    for n in (16, 32, 64):
        coefficients, lattice = local(boundary, n)
        equation = equation_of(coefficients, reaction_named("tanh"), lattice)
        phase = npde.networks.Phase(equation, lattice, coefficients.dt, 5, (2, 2))
        evolution = npde.networks.Evolution([phase])
        u = start(boundary, lattice.coordinates())
        by_fd = evolution.solve(u).array()
        by_fem = evolution.solve(lambda x: start(boundary, x), lattice.mesh(MPI.COMM_WORLD)).array()
        # The data does not fit the drift at the boundary, where a thin layer comes up.
        inside = np.all(np.abs(lattice.coordinates() - 0.5) < 0.26, axis=0)
        errors.append(np.sqrt(np.mean((by_fd - by_fem)[:, inside] ** 2)))
    assert np.log2(errors[1] / errors[2]) > 1.8, errors
