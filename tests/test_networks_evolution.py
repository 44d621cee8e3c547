"""Networks as equations on any number of ranks, and the lattices on which they live."""

from npde_fem.networks import Coefficients, Lattice

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
