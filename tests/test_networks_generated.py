"""Generated networks equal stock ones, and their equations."""

import npde_fem as npde

import numpy as np
import pytest
import torch
from mpi4py import MPI

DOUBLE = torch.float64


def outputs(network, u):
    with torch.no_grad():
        return network(u).numpy()


def test_perceptrons_of_any_matrix():
    torch.manual_seed(0)
    network = npde.networks.mlp((6, 9, 4), reaction="tanh", readout=3, dt=0.3, spacing=0.5, dtype=DOUBLE)
    u = torch.rand(5, 6, dtype=DOUBLE)
    np.testing.assert_allclose(outputs(network.as_torch(), u), outputs(network, u), atol=1e-12)
    at_rest = np.zeros(3)  # the widest layer has 9 neurons
    solved = network.as_equation().solve(np.concatenate([u[0].numpy(), at_rest])[None])
    np.testing.assert_allclose(solved.observed, outputs(network, u[:1])[0], atol=1e-10)


@pytest.mark.parametrize("shape", [(9,), (6, 5)])
@pytest.mark.parametrize("scheme", ["implicit", "explicit"])
def test_perceptrons_of_local_equations(shape, scheme):
    torch.manual_seed(1)
    lattice = npde.networks.Lattice(shape, 0.2, 0.0, "replicate")
    rng = np.random.default_rng(0)
    network = npde.networks.mlp(
        grid=lattice,
        steps=2,
        scheme=scheme,
        reaction="tanh",
        dt=0.1,
        diffusion=0.1 + 0.1 * rng.random(shape),
        mass=rng.random(shape),
        drift=0.1 * rng.random((len(shape), *shape)),
        source=rng.random(shape),
        dtype=DOUBLE,
    )
    u = torch.rand(2, lattice.size, dtype=DOUBLE)
    expected = outputs(network, u)
    np.testing.assert_allclose(outputs(network.as_torch(), u), expected, atol=1e-12)
    found = network.as_equation().solve(u[0].numpy().reshape(1, *shape)).array()
    np.testing.assert_allclose(found.ravel(), expected[0], atol=1e-10)


def test_networks_on_meshes():
    import dolfinx

    mesh = dolfinx.mesh.create_unit_square(MPI.COMM_SELF, 5, 4)
    torch.manual_seed(2)
    network = npde.networks.mesh_network(mesh, channels=2, steps=3, reaction="tanh", dtype=DOUBLE)
    nodes = mesh.geometry.x.shape[0]
    u = torch.rand(2, 2, nodes, dtype=DOUBLE)
    expected = outputs(network, u)
    np.testing.assert_allclose(outputs(network.as_torch(), u), expected, atol=1e-12)
    assert np.abs(expected - u.numpy()).max() > 1e-3
