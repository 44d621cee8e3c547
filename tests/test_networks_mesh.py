"""Networks on unstructured meshes are stock networks, solves by finite elements and, on uniform meshes, stencils."""

import subprocess
import sys

import npde_fem as npde
from npde_fem.networks import Coefficients, mesh_network
from npde_fem.networks.kinds.mesh_network import MeshOperators

import dolfinx.mesh as dmesh
import numpy as np
import pytest
import torch
from dolfinx import fem
from mpi4py import MPI

SELF = MPI.COMM_SELF
DOUBLE = torch.float64
Cell = dmesh.CellType


def outputs(network, u):
    with torch.no_grad():
        return network(u).numpy()


def crooked(mesh):
    """The mesh with its inner nodes moved."""
    x = mesh.geometry.x
    x[:, 0] += 0.05 * np.sin(np.pi * x[:, 0]) * np.cos(2 * x[:, 1])
    return mesh


MESHES = {
    "interval": lambda: dmesh.create_interval(SELF, 9, (0.0, 1.0)),
    "triangles": lambda: crooked(dmesh.create_unit_square(SELF, 5, 4)),
    "quadrilaterals": lambda: crooked(dmesh.create_unit_square(SELF, 5, 4, Cell.quadrilateral)),
    "tetrahedra": lambda: crooked(dmesh.create_unit_cube(SELF, 2, 3, 2)),
    "periodic": lambda: npde.periodic_mesh(dmesh.create_unit_square(SELF, 4, 4), {0, 1}),
}


@pytest.mark.parametrize("name", MESHES)
def test_network_is_the_stock_one_and_its_equation(name):
    torch.manual_seed(0)
    network = mesh_network(MESHES[name](), channels=(1, 3, 2), reaction="tanh", dt=0.1, dtype=DOUBLE)
    u = torch.randn(2, 1, network.operators.nodes, dtype=DOUBLE)
    expected = outputs(network, u)
    np.testing.assert_allclose(outputs(network.as_torch(), u), expected, atol=1e-12)
    found = network.as_equation().solve(u[1].numpy())
    np.testing.assert_allclose(found.array(), expected[1], atol=1e-10)
    assert [state.shape[0] for state in found.states] == [1, 3, 2]
    np.testing.assert_array_equal(found.function(1).x.array, found.array()[1])


def test_shared_steps_are_one_equation():
    torch.manual_seed(1)
    network = mesh_network(MESHES["triangles"](), channels=2, steps=4, shared=True, reaction="logistic", dtype=DOUBLE,
                           diffusion=1e-3, mass=[[0.0, 0.1], [-0.1, 0.0]])  # fmt: skip
    u = 0.2 + 0.6 * torch.rand(2, 2, network.operators.nodes, dtype=DOUBLE)
    expected, evolution = outputs(network, u), network.as_equation()
    assert len(list(network.parameters())) == 4 and evolution.equation.components == 2
    found = evolution.solve(u[0].numpy())
    assert len(found.states) == 5
    np.testing.assert_allclose(found.array(), expected[0], atol=1e-10)
    assert np.abs(expected - u.numpy()).max() > 0.1


def test_consistent_masses():
    torch.manual_seed(2)
    network = mesh_network(MESHES["triangles"](), channels=2, steps=2, reaction="tanh", lumped=False, dtype=DOUBLE)
    u = torch.randn(1, 2, network.operators.nodes, dtype=DOUBLE)
    expected = outputs(network, u)
    np.testing.assert_allclose(outputs(network.as_torch(), u), expected, atol=1e-12)
    np.testing.assert_allclose(network.as_equation().solve(u[0].numpy()).array(), expected[0], atol=1e-10)


# ------------------------------------------------------------------------------------------------ beside stencils


def periodic(cell, shape=(6, 5), h=0.2):
    """Operators of a uniform periodic mesh, and how to bring an array on its points to the nodes."""
    box = [np.zeros(2), h * np.array(shape)]
    operators = MeshOperators(npde.periodic_mesh(dmesh.create_rectangle(SELF, box, shape, cell), {0, 1}))
    i, j = (np.rint(x / h).astype(int) % n for x, n in zip(operators.coordinates(), shape, strict=True))
    return operators, lambda array: array[..., i, j]


def differences(u, h=0.2):
    """1, -d_x, -d_y, d_xx, 2 d_x d_y and d_yy of a periodic array."""

    def slope(v, axis):
        return (np.roll(v, -1, axis) - np.roll(v, 1, axis)) / (2 * h)

    def bend(axis):
        return (np.roll(u, -1, axis) - 2 * u + np.roll(u, 1, axis)) / h**2

    return u, -slope(u, 0), -slope(u, 1), bend(0), 2 * slope(slope(u, 0), 1), bend(1)


def test_on_rectangles_all_operators_are_stencils():
    operators, at_nodes = periodic(Cell.quadrilateral)
    u = np.random.default_rng(0).normal(size=(6, 5))
    assert operators.width == pytest.approx(0.2)
    for matrix, expected in zip(operators.matrices, differences(u), strict=True):
        np.testing.assert_allclose(matrix @ at_nodes(u), at_nodes(expected), atol=1e-11)


def test_on_right_angled_triangles_some_operators_are_stencils():
    operators, at_nodes = periodic(Cell.triangle)
    u = np.random.default_rng(0).normal(size=(6, 5))
    near = [np.roll(u, steps, (0, 1)) for steps in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1))]
    mass, *drifts, d_xx, d_xy, d_yy = operators.matrices
    stencils = differences(u)
    np.testing.assert_allclose(d_xx @ at_nodes(u), at_nodes(stencils[3]), atol=1e-11)
    np.testing.assert_allclose(d_yy @ at_nodes(u), at_nodes(stencils[5]), atol=1e-11)
    # The consistent mass: a half at the point itself, a twelfth at each of the six neighbours.
    np.testing.assert_allclose(mass @ at_nodes(u), at_nodes(0.5 * u + sum(near) / 12), atol=1e-12)
    # The mixed difference reaches two corners only, those on the diagonal of the triangles.
    corners = (2 * u + near[4] + near[5] - sum(near[:4])) / 0.2**2
    np.testing.assert_allclose(d_xy @ at_nodes(u), at_nodes(corners), atol=1e-11)
    # All are differences of order two: exact for quadratic functions, which a periodic lattice has not, nearly so here.
    for k, matrix in enumerate(drifts):
        assert np.abs(matrix @ at_nodes(u) - at_nodes(stencils[1 + k])).max() > 0.1
        assert abs(matrix.sum(axis=1)).max() < 1e-12


def test_network_on_rectangles_is_the_convolution_of_its_coefficients():
    torch.manual_seed(3)
    shape, h = (6, 5), 0.2
    box = [np.zeros(2), h * np.array(shape)]
    mesh = npde.periodic_mesh(dmesh.create_rectangle(SELF, box, shape, Cell.quadrilateral), {0, 1})
    network = mesh_network(mesh, channels=(2, 3), reaction="relu", dt=0.3, dtype=DOUBLE)
    _, at_nodes = periodic(Cell.quadrilateral)
    (coefficients,) = network.coefficients(h)
    conv = torch.nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", dtype=DOUBLE)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(coefficients.kernel()))
        conv.bias.copy_(torch.from_numpy(coefficients.bias()))
    u = torch.randn(2, 2, *shape, dtype=DOUBLE)
    expected = at_nodes(outputs(torch.nn.Sequential(conv, torch.nn.ReLU()), u))
    np.testing.assert_allclose(outputs(network, torch.from_numpy(at_nodes(u.numpy()))), expected, atol=1e-12)
    assert isinstance(coefficients, Coefficients) and coefficients.remainder == 0


def test_heat_on_other_meshes():
    """exp(-2 D (2 pi)^2 t) of a cosine: the same network, solved on finer meshes of other cells and degree."""
    diffusion, dt, steps = 0.01, 0.05, 4
    errors = []
    for n, cell, degree in (
        (8, Cell.triangle, 1),
        (16, Cell.triangle, 1),
        (32, Cell.triangle, 1),
        (12, Cell.quadrilateral, 2),
    ):
        mesh = dmesh.create_unit_square(SELF, n, n, cell)
        if n == 8:
            settings = dict(channels=1, steps=steps, shared=True, reaction="identity", dt=dt, dtype=DOUBLE)
            network = mesh_network(mesh, diffusion=diffusion, **settings)
            evolution = network.as_equation()

        def start(x):
            return (np.cos(2 * np.pi * x[0]) * np.cos(2 * np.pi * x[1]))[None]

        space = fem.functionspace(mesh, ("Lagrange", degree))
        found = evolution.solve(start, space, substeps=40)
        x = space.tabulate_dof_coordinates().T
        exact = np.exp(-2 * diffusion * (2 * np.pi) ** 2 * steps * dt) * start(x)
        errors.append(np.sqrt(np.mean((found.array() - exact) ** 2)))
    orders = np.log2(np.array(errors[:2]) / errors[1:3])
    assert np.all(orders > 1.6), (errors, orders)
    assert errors[3] < 1e-3


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("channels", [(2, 1), (1, 2)])
def test_gradients(channels):
    torch.manual_seed(4)
    network = mesh_network(dmesh.create_unit_square(SELF, 2, 2), channels=channels, reaction="tanh", dtype=DOUBLE)
    u = torch.rand(2, channels[0], 9, dtype=DOUBLE, requires_grad=True)
    names, values = zip(*network.named_parameters(), strict=True)
    call = torch.func.functional_call
    assert torch.autograd.gradcheck(lambda u, *p: call(network, dict(zip(names, p, strict=True)), u), (u, *values))


def test_training_finds_the_diffusion_and_the_drift():
    torch.manual_seed(5)
    mesh = crooked(dmesh.create_unit_square(SELF, 6, 6))
    settings = dict(channels=1, steps=3, shared=True, reaction="identity", dt=0.01, dtype=DOUBLE)
    truth = mesh_network(mesh, diffusion=0.05, drift=[1.0, -0.5], mass=-1.0, source=0.3, **settings)
    network = mesh_network(mesh, diffusion=0.01, **settings)
    u = torch.rand(20, 1, 49, dtype=DOUBLE)
    wanted = truth(u).detach()
    optimiser = torch.optim.LBFGS(network.parameters(), max_iter=100, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure():
        optimiser.zero_grad()
        loss = 1e3 * ((network(u) - wanted) ** 2).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    (found,), (expected,) = (n.coefficients()[:1] for n in (network, truth))
    for name in ("mass", "drift", "diffusion", "source"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0.01, atol=1e-3)


def test_double_after_the_making_is_exact():
    network = mesh_network(
        MESHES["interval"](), channels=1, steps=1, reaction="tanh", mass=0.5, diffusion=0.25
    ).double()
    u = torch.rand(1, 1, 10, dtype=DOUBLE)
    np.testing.assert_allclose(network.as_equation().solve(u[0].numpy()).array(), outputs(network, u)[0], atol=1e-10)


# --------------------------------------------------------------------------------------------------------- errors


def test_bad_arguments_are_named():
    mesh = dmesh.create_unit_square(SELF, 2, 2)
    for settings, message in [
        (dict(channels=0, steps=1), "channels 0 given"),
        (dict(channels=(2,)), "at least two"),
        (dict(channels=2), "steps = None given"),
        (dict(channels=(1, 2), steps=3), "1 steps, 3 given"),
        (dict(channels=(1, 2), shared=True), "equal channels"),
        (dict(channels=1, steps=1, dt=0.0), "dt = 0"),
        (dict(channels=1, steps=1, reaction="rely"), "rely"),
        (dict(channels=1, steps=1, drift=np.ones(3)), r"drift of shape \(3,\)"),
        (dict(channels=1, steps=1, mass=np.inf), "mass is not finite"),
        (dict(channels=1, steps=1, diffusion=[[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
    ]:
        with pytest.raises(ValueError, match=message):
            mesh_network(mesh, **settings)
    with pytest.raises(TypeError, match="space must be a function space or mesh"):
        mesh_network("mesh", channels=1, steps=1)
    for element in (("Lagrange", 2), ("DG", 1), ("Lagrange", 1, (2,))):
        with pytest.raises(ValueError, match="scalar continuous Lagrange elements of degree 1"):
            mesh_network(fem.functionspace(mesh, element), channels=1, steps=1)
    network = mesh_network(mesh, channels=(2, 1))
    with pytest.raises(ValueError, match=r"\(batch, 2, 9\)"):
        network(torch.zeros(3, 1, 9))
    with pytest.raises(ValueError, match=r"u0: array of shape \(1, 9\) given; \(2, 9\)"):
        network.as_equation().solve(np.zeros((1, 9)))


def test_large_meshes_have_no_dense_form():
    mesh = dmesh.create_unit_square(SELF, 80, 80)
    with pytest.raises(ValueError, match="6561 nodes with lumped=False"):
        mesh_network(mesh, channels=1, steps=1, lumped=False)
    network = mesh_network(mesh, channels=2, steps=1)
    assert network(torch.zeros(1, 2, 6561)).shape == (1, 2, 6561)
    with pytest.raises(ValueError, match="as_torch: a dense layer of 6561 nodes"):
        network.as_torch()


def test_distributed_meshes_are_refused_on_all_ranks(mpirun):
    printed = mpirun(2, "mesh_network.py").stdout
    assert printed.count("COMM_SELF") == 2


def test_torch_is_imported_only_when_networks_are():
    code = "import sys, npde_fem; assert 'torch' not in sys.modules; npde_fem.networks; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
