"""Networks as equations on any number of ranks, and the lattices on which they live."""

from npde_fem.networks import Coefficients, Lattice
from npde_fem.networks.coefficients import higher_stencils, split_kernel
from npde_fem.networks.places import sampled

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn


def test_any_number_of_ranks(mpirun, tmp_path):
    mpirun(1, "evolution.py", tmp_path / "1.npz")
    one = np.load(tmp_path / "1.npz")
    assert {name: one[name].shape for name in one} == {
        "own": (3, 12, 10),
        "finer": (1, 12, 10),
        "mesh": (1, 12, 10),
        "implicit": (1, 12, 10),
        "circular": (3, 9, 8),
        "perceptron": (3,),
    }
    for ranks in (2, 3):
        mpirun(ranks, "evolution.py", tmp_path / f"{ranks}.npz")
        many = np.load(tmp_path / f"{ranks}.npz")
        for name in one:
            # implicit steps end where the linear solver's tolerance lets them
            assert np.abs(one[name] - many[name]).max() < (1e-8 if name == "implicit" else 1e-13), name


# The place where a condition holds: u = 0 one spacing beyond the last point, du/dn = 0 half a spacing or none beyond.
MARGINS = {"zeros": (1, 1), "replicate": (0.5, 0.5), "reflect": (0, 0), "circular": (0, 1)}


@pytest.mark.parametrize("boundary", MARGINS)
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_finer_lattices_fill_the_same_domain(boundary, factor):
    lattice = Lattice((5, 4), (0.5, 0.2), (1.0, -2.0), boundary)
    below, above = MARGINS[boundary]
    (x0, y0), (x1, y1) = lattice.domain
    assert (x0, y0) == pytest.approx((1.0 - 0.5 * below, -2.0 - 0.2 * below))
    assert (x1, y1) == pytest.approx((3.0 + 0.5 * above, -1.4 + 0.2 * above))
    finer = lattice.refined(factor)
    assert np.ravel(finer.domain) == pytest.approx(np.ravel(lattice.domain))
    assert finer.spacing == pytest.approx((0.5 / factor, 0.2 / factor))
    # cells between the sides, plus one where both ends are points
    cells = [round((b - a) / h) for a, b, h in zip(*finer.domain, finer.spacing, strict=True)]
    assert finer.shape == tuple(int(n + 1 - below - above) for n in cells)


@pytest.mark.parametrize("centred", [False, True])
def test_coarser_lattices_have_the_points_of_strides_and_pooling(centred):
    lattice = Lattice((9, 8), (0.5, 0.2), (1.0, -2.0))
    coarse = lattice.coarsened(2, centred=centred)
    x = torch.from_numpy(lattice.coordinates())[None]
    expected = nn.functional.avg_pool2d(x, 2) if centred else x[..., ::2, ::2]
    assert coarse.coordinates() == pytest.approx(expected[0].numpy())


@pytest.mark.parametrize("boundary", MARGINS)
def test_a_lattice_s_grid_and_mesh_have_its_points_and_domain(boundary):
    lattice = Lattice((5, 4), (0.5, 0.2), (1.0, -2.0), boundary)
    grid, mesh = lattice.grid(MPI.COMM_SELF), lattice.mesh(MPI.COMM_SELF)
    assert grid.spacing == pytest.approx(lattice.spacing)
    corners = mesh.geometry.x[:, :2]
    assert np.array([corners.min(axis=0), corners.max(axis=0)]) == pytest.approx(np.array(lattice.domain))


def test_coefficients_make_the_kernels_of_the_finite_difference_formulas():
    # one channel: u + dt (m u - div(c u) + div(D grad u)) with central differences written out
    h, k, dt = 0.5, 0.2, 0.01
    m, c, D = 0.7, np.array([1.1, -0.4]), np.array([[0.3, 0.05], [0.05, 0.2]])
    made = Coefficients([[m]], [[c]], [[D]], np.zeros((1, 1, 3, 3)), [0.0], (h, k), dt).kernel()[0, 0]
    expected = np.zeros((3, 3))
    expected[1, 1] = 1 + dt * (m - 2 * D[0, 0] / h**2 - 2 * D[1, 1] / k**2)
    expected[2, 1] = dt * (D[0, 0] / h**2 - c[0] / (2 * h))
    expected[0, 1] = dt * (D[0, 0] / h**2 + c[0] / (2 * h))
    expected[1, 2] = dt * (D[1, 1] / k**2 - c[1] / (2 * k))
    expected[1, 0] = dt * (D[1, 1] / k**2 + c[1] / (2 * k))
    for i in (0, 2):
        for j in (0, 2):
            expected[i, j] = dt * 2 * D[0, 1] * (i - 1) * (j - 1) / (4 * h * k)
    assert made == pytest.approx(expected)


@pytest.mark.parametrize("boundary", MARGINS)
@pytest.mark.parametrize("factor", [2, 3])
def test_finer_lattices_have_the_points_of_the_coarse_one(boundary, factor):
    if boundary == "replicate" and factor == 2:
        return  # cells of an even number have no middle
    lattice = Lattice((4, 5, 3), (0.5, 0.2, 1.0), (1.0, -2.0, 0.0), boundary)
    first = {"zeros": factor - 1, "replicate": (factor - 1) // 2}.get(boundary, 0)
    every = slice(first, None, factor)
    fine = lattice.refined(factor).coordinates()[:, every, every, every]
    assert fine[:, :4, :5, :3] == pytest.approx(lattice.coordinates())


@pytest.mark.parametrize("boundary", MARGINS)
def test_states_go_on_beyond_the_lattice_as_torch_pads(boundary):
    lattice = Lattice((5, 4), (0.5, 0.2), (1.0, -2.0), boundary)
    u = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mode = {} if boundary == "zeros" else {"mode": boundary}
    padded = nn.functional.pad(u[None], (1, 1, 1, 1), **({"mode": "constant"} | mode))[0].numpy()
    i, j = np.meshgrid(np.arange(-1, 6), np.arange(-1, 5), indexing="ij")
    points = np.stack([1.0 + 0.5 * i.ravel(), -2.0 + 0.2 * j.ravel()])
    assert sampled(u.numpy(), lattice, points) == pytest.approx(padded.reshape(2, -1))
    # between points: the mean of the neighbours
    between = sampled(u.numpy(), lattice, points.reshape(2, 7, 6)[:, :-1].reshape(2, -1) + [[0.25], [0.0]])
    assert between == pytest.approx(0.5 * (padded[:, 1:] + padded[:, :-1]).reshape(2, -1))


def shifted(u, *steps):
    """u(x + steps h) on a circular lattice."""
    return np.roll(u, [-s for s in steps], axis=tuple(range(len(steps))))


def unit(dim, a):
    return np.eye(dim, dtype=int)[a]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_step_is_that_of_finite_differences(dim):
    """Two channels into three, all coefficients at random, against differences of arrays."""
    some, shape, h, dt = np.random.default_rng(dim), (5, 4, 6)[:dim], (0.5, 0.2, 1.3)[:dim], 0.07
    m, c, s = some.normal(size=(3, 2)), some.normal(size=(3, 2, dim)), some.normal(size=3)
    D = some.normal(size=(3, 2, dim, dim))
    D = D + D.swapaxes(2, 3)
    made = Coefficients(m, c, D, np.zeros((3, 2, *(3,) * dim)), s, h, dt)
    u = some.normal(size=(2, *shape))
    expected = np.stack([u[0], u[1], 0 * u[0]])  # a channel that is new begins at 0
    for i in range(3):
        expected[i] += dt * s[i]
        for j in range(2):
            change = m[i, j] * u[j]
            for a in range(dim):
                ahead, behind = shifted(u[j], *unit(dim, a)), shifted(u[j], *-unit(dim, a))
                change = change - c[i, j, a] * (ahead - behind) / (2 * h[a])
                change = change + D[i, j, a, a] * (ahead - 2 * u[j] + behind) / h[a] ** 2
                for b in range(a):
                    p, q = unit(dim, a) + unit(dim, b), unit(dim, a) - unit(dim, b)
                    corners = shifted(u[j], *p) + shifted(u[j], *-p) - shifted(u[j], *q) - shifted(u[j], *-q)
                    change = change + 2 * D[i, j, a, b] * corners / (4 * h[a] * h[b])
            expected[i] += dt * change
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dim - 1](2, 3, 3, padding=1, padding_mode="circular").double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(made.kernel()))
        layer.bias.copy_(torch.from_numpy(made.bias()))
        found = layer(torch.from_numpy(u)[None])[0].numpy()
    assert np.abs(found - expected).max() < 1e-12
    again = split_kernel(torch.from_numpy(made.kernel()), h, dt)
    for part, wanted in zip(again, (m, c, D, made.rest), strict=True):
        assert np.abs(part.numpy() - wanted).max() < 1e-11


def test_a_wide_kernel_is_read_by_its_moments():
    """The Laplacian and the slope of fourth order: what they add to those of second order is the rest."""
    h, dt = 0.3, 0.01
    laplacian = np.array([-1, 16, -30, 16, -1]) / (12 * h**2)
    slope = np.array([1, -8, 0, 8, -1]) / (12 * h)
    step = 0.7 * laplacian - 1.9 * slope
    found = Coefficients.of_kernel((np.eye(5)[2] + dt * step)[None, None], None, h, dt)
    assert found.diffusion.item() == pytest.approx(0.7) and found.drift.item() == pytest.approx(1.9)
    assert found.mass.item() == pytest.approx(0.0, abs=1e-11)
    fourth, third = np.array([1, -4, 6, -4, 1]), np.array([-1, 2, 0, -2, 1]) / 2
    assert found.rest[0, 0] == pytest.approx(-0.7 * fourth / (12 * h**2) + 1.9 * third / (6 * h))
    assert found.kernel()[0, 0] == pytest.approx(np.eye(5)[2] + dt * step)
    assert found.has_rest and found.remainder == pytest.approx(np.linalg.norm(found.rest) / np.linalg.norm(step))


@pytest.mark.parametrize(("dim", "count"), [(1, 0), (2, 3), (3, 17)])
def test_higher_differences_have_no_mass_drift_or_diffusion(dim, count):
    stencils = higher_stencils(dim)
    assert stencils.shape == (count, *(3,) * dim)
    assert count == 0 or np.linalg.matrix_rank(stencils.flatten(1).numpy()) == count
    middle = torch.zeros((3,) * dim, dtype=torch.float64)
    middle[(1,) * dim] = 1.0  # the kernel that leaves a state as it is
    for stencil in stencils:
        mass, drift, diffusion, rest = split_kernel((middle + stencil)[None, None], (1.0,) * dim, 1.0)
        assert max(float(part.abs().max()) for part in (mass, drift, diffusion)) < 1e-15
        assert torch.allclose(rest[0, 0], stencil, rtol=0, atol=1e-15)
    if dim == 2:
        slope, bend = np.array([-0.5, 0, 0.5]), np.array([1.0, -2, 1])
        written = [np.outer(slope, bend), np.outer(bend, slope), np.outer(bend, bend)]
        assert stencils.numpy() == pytest.approx(np.array(written))
