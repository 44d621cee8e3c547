"""Nonlocal terms: convolutions and integrals on their lattice, and what they become on other grids and meshes."""

import itertools

import npde_fem as npde
from npde_fem.nonlocal_terms import Integral, Stencil
from npde_fem.solve.batch import Batch
from npde_fem.solve.integrate import solve
from npde_fem.solve.newton import Newton
from npde_fem.solve.trajectory import Cotangents, Trajectory

import dolfinx
import numpy as np
import pytest
import torch
import ufl
from dolfinx.mesh import CellType
from mpi4py import MPI

COMM = MPI.COMM_WORLD
PADDINGS = ("zeros", "replicate", "reflect", "circular")


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def own_grid(equation, shape, lower, spacing, padding):
    """The grid of a lattice's own points."""
    lower, spacing, shape = np.array(lower), np.array(spacing), np.array(shape)
    if padding != "circular":
        return npde.FD(equation, npde.Grid(COMM, tuple(shape), lower, lower + (shape - 1) * spacing))
    sides = [npde.Periodic(a) for a in range(len(shape))]
    return npde.FD(equation, npde.Grid(COMM, tuple(shape + 1), lower, lower + shape * spacing), sides)


def channels_first(problem, values):
    """Values of a grid as torch has them, shape (m, *shape)."""
    array = problem.layout.on_grid(values, problem.components)
    return array[None] if problem.components == 1 else np.moveaxis(array, -1, 0)


def from_channels(problem, array):
    return problem.initial(array[0] if problem.components == 1 else np.moveaxis(array, 0, -1))


def convolution(weights, padding, u):
    """What torch makes of u, shape (m, *shape), with so wide a padding that the shape stays."""
    dim = u.ndim - 1
    mode = "constant" if padding == "zeros" else padding
    widths = [size // 2 for size in reversed(weights.shape[2:]) for _ in range(2)]
    padded = torch.nn.functional.pad(torch.from_numpy(u)[None], widths, mode=mode)
    return getattr(torch.nn.functional, f"conv{dim}d")(padded, torch.tensor(weights))[0].numpy()


def on_lattice(shape, m, sizes, padding, **terms):
    """A problem on a lattice's own grid, and the kernel of its nonlocal term."""
    dim = len(shape)
    lower, spacing = np.array([0.3, -1.1, 2.0][:dim]), np.array([0.1, 0.23, 0.3][:dim])
    weights = random(m, m, *sizes)
    term = Stencil(weights, spacing, padding, lower, lower + (np.array(shape) - 1) * spacing)
    return own_grid(npde.NPDE(components=m, nonlocal_term=term, **terms), shape, lower, spacing, padding), weights


def applied(problem, values):
    out = np.full(problem.n_owned, np.nan)
    problem.nonlocal_operator.apply(values, out)
    return out


# -- on the lattice's own grid -----------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_rate_is_torchs_convolution(dim, padding):
    shape = (7, 6, 5)[:dim]
    for m, size in itertools.product((1, 2, 3), (3, 5)):
        problem, weights = on_lattice(shape, m, (size,) * dim, padding)
        u = random(m, *shape, seed=m)
        state, rate = problem.new_state(), np.zeros(problem.n_owned)
        problem.load(from_channels(problem, u), state)
        for part in ("all", "source"):
            problem.rate(0.0, state, rate, part)
            found = channels_first(problem, rate / problem.nodal_weights)
            np.testing.assert_allclose(found, convolution(weights, padding, u), rtol=0, atol=1e-12)
        problem.rate(0.0, state, rate, "flux")
        assert not rate.any()


def test_sizes_may_differ_between_axes():
    problem, weights = on_lattice((6, 8), 2, (1, 7), "replicate")
    u = random(2, 6, 8, seed=3)
    found = channels_first(problem, applied(problem, from_channels(problem, u)))
    np.testing.assert_allclose(found, convolution(weights, "replicate", u), rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2])
def test_integral_is_a_matrix_product(m):
    shape, spacing, lower = (4, 5), (0.5, 0.2), (-1.0, 0.0)
    axes = [low + h * np.arange(n) for low, h, n in zip(lower, spacing, shape, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    weights = random(m * 20, m * 20)
    u = random(m, *shape, seed=2)
    expected = (weights @ u.ravel()).reshape(u.shape)
    order = np.random.default_rng(1).permutation(20)
    shuffled = weights.reshape(m, 20, m, 20)[:, order][..., order]
    for term in (Integral(points, weights), Integral(points[order], shuffled)):
        problem = own_grid(npde.NPDE(components=m, nonlocal_term=term), shape, lower, spacing, "zeros")
        found = channels_first(problem, applied(problem, from_channels(problem, u)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
def test_forward_euler_is_a_loop_of_convolutions(padding):
    problem, weights = on_lattice((6, 5), 2, (3, 3), padding, source=lambda u, x, t: -3 * u)
    u = random(2, 6, 5, seed=4)
    solution = solve(problem, from_channels(problem, u), (0, 0.05), 0.01, npde.ForwardEuler())
    for _ in range(5):
        u = u + 0.01 * (convolution(weights, padding, u) - 3 * u)
    np.testing.assert_allclose(channels_first(problem, solution.values), u, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["zeros", "replicate", "reflect"])
def test_lie_on_padded_grids_is_a_residual_network(padding):
    """Diffusion and a nonlocal term, then tanh: layers of one convolution and an activation."""
    weights, dt = random(2, 2, 3, 3), 0.02
    term = Stencil(weights, 1.0, padding, 0, (5, 4))
    equation = npde.NPDE(
        flux=lambda u, x, t: 0.7 * ufl.grad(u),
        flow=lambda u, x, t, dt: ufl.as_vector([ufl.tanh(u[0]), ufl.tanh(u[1])]),
        components=2,
        nonlocal_term=term,
    )
    problem = npde.FD(equation, npde.Grid(COMM, (6, 5), (0, 0), (5, 4), padding=padding))
    u = random(2, 6, 5, seed=4)
    solution = solve(problem, from_channels(problem, u), (0, 3 * dt), dt, npde.Lie(checked=False))
    laplace = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]]) * 0.7 * np.eye(2)[:, :, None, None]
    for _ in range(3):
        u = np.tanh(u + dt * convolution(weights + laplace, padding, u))
    np.testing.assert_allclose(channels_first(problem, solution.values), u, rtol=0, atol=1e-12)


def test_leapfrog():
    problem, weights = on_lattice((6, 5), 1, (3, 3), "zeros", inertia=2.0, damping=0.5)
    u, v, dt = random(1, 6, 5, seed=4), random(1, 6, 5, seed=5), 0.01
    solution = solve(problem, u[0], (0, 0.05), dt, npde.Leapfrog(), velocity=v[0])
    a = (convolution(weights, "zeros", u) - 0.5 * v) / 2.0
    for _ in range(5):
        u, v = u + dt * v + 0.5 * dt**2 * a, v + 0.5 * dt * a
        a = (convolution(weights, "zeros", u) - 0.5 * v) / (2.0 + 0.25 * dt)
        v = v + 0.5 * dt * a
    np.testing.assert_allclose(channels_first(problem, solution.values), u, rtol=0, atol=1e-12)
    np.testing.assert_allclose(channels_first(problem, solution.velocity_values), v, rtol=0, atol=1e-12)


# -- elsewhere ---------------------------------------------------------------------------------------------------


def smooth(padding, h):
    """A function on the plane that a lattice in the unit square continues by its padding, and the lattice's corners."""

    def value(x):
        if padding == "zeros":
            return np.where((x > 0) & (x < 1), np.sin(np.pi * x), 0).prod(axis=0)
        if padding == "circular":
            return np.sin(2 * np.pi * x[0] + 0.3) * np.cos(2 * np.pi * x[1])
        if padding == "reflect":
            x = 1 - np.abs(np.mod(x, 2) - 1)
        x = np.clip(x, 0, 1)
        return np.cos(1.3 * x[0] + 0.2) * np.exp(0.3 * x[1])

    # The unit square is the domain of these lattices: at its sides their boundary condition holds.
    box = {"zeros": (h, 1 - h), "replicate": (0.5 * h, 1 - 0.5 * h), "reflect": (0, 1), "circular": (0, 1 - h)}
    return value, box[padding]


def displaced(term, value, x):
    """``sum_o w_o value(x + o h)``, x of shape (2, n)."""
    total = np.zeros(x.shape[1])
    for offset in np.ndindex(*term.sizes):
        step = (np.array(offset) - np.array(term.sizes) // 2) * term.spacing
        total += term.weights[(0, 0, *offset)] * value(x + step[:, None])
    return total


def error(problem, term, value):
    x = problem.coordinates().T[:2]
    found = applied(problem, problem.initial(lambda x: value(x[:2])))
    return np.abs(found - displaced(term, value, x)).max()


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("padding", PADDINGS)
def test_finer_grids_are_of_order_two(padding, size):
    """The unit square is meshed finer and finer; the lattice stays."""
    h = 0.2
    value, (lower, upper) = smooth(padding, h)
    term = Stencil(random(1, 1, size, size), h, padding, lower, upper)
    sides = [npde.Periodic(0), npde.Periodic(1)] if padding == "circular" else []
    errors = []
    for n in (13, 26, 52):
        grid = npde.Grid(COMM, (n + 1, n + 2), (0, 0), (1, 1))
        errors.append(error(npde.FD(npde.NPDE(nonlocal_term=term), grid, sides), term, value))
    assert np.log2(errors[0] / errors[2]) / 2 > 1.8, errors


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("padding", ["zeros", "replicate", "reflect"])
def test_finer_padded_grids_are_of_order_two(padding, size):
    """The finer grids end where their own padding's condition holds at the sides of the unit square."""
    h, errors = 0.2, []
    value, (lower, upper) = smooth(padding, h)
    if padding == "replicate":

        def value(x):
            return np.cos(np.pi * np.clip(x, 0, 1)).prod(axis=0)

    term = Stencil(random(1, 1, size, size), h, padding, lower, upper)
    for n in (13, 26, 52):
        end = {"zeros": 1 / n, "replicate": 0.5 / n, "reflect": 0.0}[padding]
        points = n + {"zeros": -1, "replicate": 0, "reflect": 1}[padding]
        grid = npde.Grid(COMM, (points, points), (end, end), (1 - end, 1 - end), padding=padding)
        errors.append(error(npde.FD(npde.NPDE(nonlocal_term=term), grid), term, value))
    assert np.log2(errors[0] / errors[2]) / 2 > 1.8, errors


def test_finer_grids_with_the_lattices_points_are_exact_there():
    term = Stencil(random(1, 1, 3, 3), 0.25, "zeros", 0, 1)
    coarse, fine = (npde.FD(npde.NPDE(nonlocal_term=term), npde.Grid(COMM, (n, n), (0, 0), (1, 1))) for n in (5, 9))
    u = random(9, 9)
    found = [applied(p, p.initial(values)) for p, values in ((coarse, u[::2, ::2]), (fine, u))]
    on_fine = fine.layout.on_grid(found[1], 1)[::2, ::2]
    np.testing.assert_allclose(on_fine, coarse.layout.on_grid(found[0], 1), rtol=0, atol=1e-13)


def test_zeros_fall_linearly_beyond_a_grid_that_ends_with_the_lattice():
    term = Stencil([[[0, 0, 1]]], 0.5, "zeros", 0, 1)
    problem = npde.FD(npde.NPDE(nonlocal_term=term), npde.Grid(COMM, (9,), (0,), (1,)))
    found = applied(problem, problem.initial(lambda x: 2 + x[0]))
    np.testing.assert_allclose(found[:5], 2.5 + np.arange(5) / 8, atol=1e-14)
    np.testing.assert_allclose(found[5:], 3 * np.array([0.75, 0.5, 0.25, 0]), atol=1e-14)


@pytest.mark.parametrize("padding", ["replicate", "zeros"])
def test_meshes_are_of_order_two(padding):
    h = 0.2
    value, (lower, upper) = smooth(padding, h)
    term = Stencil(random(1, 1, 3, 3), h, padding, lower, upper)
    errors = []
    for n in (7, 14, 28):
        space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_square(COMM, n, n), ("Lagrange", 1))
        errors.append(error(npde.FEM(npde.NPDE(nonlocal_term=term), space), term, value))
    assert np.log2(errors[0] / errors[2]) / 2 > 1.8, errors


def disc(n):
    """The unit disc: a square whose lines through the middle are stretched."""
    mesh = dolfinx.mesh.create_rectangle(COMM, [(-1, -1), (1, 1)], (n, n), CellType.quadrilateral)
    x, y = mesh.geometry.x[:, 0].copy(), mesh.geometry.x[:, 1].copy()
    mesh.geometry.x[:, 0], mesh.geometry.x[:, 1] = x * np.sqrt(1 - y**2 / 2), y * np.sqrt(1 - x**2 / 2)
    return mesh


def test_beyond_a_disc_is_its_nearest_point():
    """The nearest one of the polygon that the mesh is, to points that the padding has left in the box around it."""
    step = np.array([0.4, 0.4])
    term = Stencil(np.eye(9)[8].reshape(1, 1, 3, 3), 0.4, "replicate", -0.8, 0.8)
    problem = npde.FEM(npde.NPDE(nonlocal_term=term), dolfinx.fem.functionspace(disc(8), ("Lagrange", 1)))
    x, u = problem.coordinates()[:, :2], random(problem.n_owned)
    rim = np.flatnonzero(np.hypot(*x.T) > 1 - 1e-12)
    rim = rim[np.argsort(np.arctan2(*x[rim].T))]
    first, edge = x[rim], x[np.roll(rim, -1)] - x[rim]
    found, y = applied(problem, u), np.clip(x + step, -1, 1)
    outside = np.flatnonzero(np.hypot(*y.T) > 1)
    assert rim.size == 32 and outside.size > 10
    for k in outside:
        along = np.clip(np.sum((y[k] - first) * edge, axis=1) / np.sum(edge**2, axis=1), 0, 1)
        best = np.argmin(np.linalg.norm(first + along[:, None] * edge - y[k], axis=1))
        expected = (1 - along[best]) * u[rim[best]] + along[best] * u[np.roll(rim, -1)[best]]
        assert found[k] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [CellType.tetrahedron, CellType.hexahedron])
def test_beyond_a_cube_is_its_nearest_point(kind):
    term = Stencil(random(1, 1, 3, 3, 3), 0.6, "replicate", -0.7, 1.7)
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_cube(COMM, 2, 3, 2, kind), ("Lagrange", 1))
    problem, expected = npde.FEM(npde.NPDE(nonlocal_term=term), space), 0.0
    for offset in np.ndindex(3, 3, 3):
        y = np.clip(problem.coordinates() + 0.6 * (np.array(offset) - 1), 0, 1)
        expected = expected + term.weights[(0, 0, *offset)] * (y @ [1, -2, 3])
    found = applied(problem, problem.initial(lambda x: x[0] - 2 * x[1] + 3 * x[2]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_beyond_prisms_nothing_is_found():
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_cube(COMM, 2, 2, 2, CellType.prism), ("Lagrange", 1))
    term = Stencil(np.ones((1, 1, 3, 1, 1)), 1.0, "replicate", (-1, 0, 0), (2, 1, 1))
    with pytest.raises(ValueError, match="outside of a mesh of cells of the kind prism"):
        _ = npde.FEM(npde.NPDE(nonlocal_term=term), space).nonlocal_operator


def test_beyond_a_mask_is_its_nearest_point():
    mask = np.zeros((6, 7), dtype=bool)
    mask[1:4, 2:6] = True
    term = Stencil(random(2, 2, 5, 3), 1.0, "replicate", (0, 0), (5, 6))
    equation = npde.NPDE(components=2, nonlocal_term=term)
    problem = npde.FD(equation, npde.Grid(COMM, (6, 7), (0, 0), (5, 6), mask=mask))
    u = random(2, 6, 7, seed=8) * mask
    found = channels_first(problem, applied(problem, from_channels(problem, u)))
    inner = convolution(term.weights, "replicate", u[:, 1:4, 2:6])
    np.testing.assert_allclose(found[:, 1:4, 2:6], inner, rtol=0, atol=1e-12)
    assert not found[:, ~mask].any()


def test_a_cubic_element_is_exact_for_cubics():
    """Where the lattice reaches beyond the mesh too: the mesh's end is the nearest point."""
    term = Stencil(random(1, 1, 5), 0.25, "replicate", -0.5, 1.5)
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_interval(COMM, 7, (0, 1)), ("Lagrange", 3))
    problem = npde.FEM(npde.NPDE(nonlocal_term=term), space)
    x = problem.coordinates()[:, 0]
    expected = sum(w * np.clip(x + (o - 2) / 4, 0, 1) ** 3 for o, w in enumerate(term.weights.ravel()))
    np.testing.assert_allclose(applied(problem, problem.initial(lambda x: x[0] ** 3)), expected, atol=1e-13)


def test_integrals_on_meshes_are_of_order_two():
    """Of a smooth kernel, given on finer and finer lattices."""
    errors = []
    for n in (32, 64, 128):
        y = (np.arange(n) + 0.5) / n
        weights = np.exp(-((y[:, None] - y) ** 2)) / n
        space = dolfinx.fem.functionspace(dolfinx.mesh.create_interval(COMM, n + 3, (0, 1)), ("Lagrange", 1))
        problem = npde.FEM(npde.NPDE(nonlocal_term=Integral(y, weights)), space)
        x, fine = problem.coordinates()[:, 0], (np.arange(4000) + 0.5) / 4000
        exact = (np.exp(-((x[:, None] - fine) ** 2)) * np.sin(3 * fine)).mean(axis=1)
        inside = (x > 0.1) & (x < 0.9)
        found = applied(problem, problem.initial(lambda x: np.sin(3 * x[0])))
        errors.append(np.abs(found - exact)[inside].max())
    assert np.log2(errors[0] / errors[2]) / 2 > 1.8, errors


@pytest.mark.parametrize("mass", ["consistent", "lumped"])
def test_meshes_step_by_nodal_values(mass):
    term = Stencil(random(2, 2, 3, 3), 0.25, "replicate", 0, 1)
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_square(COMM, 5, 4), ("Lagrange", 1, (2,)))
    problem = npde.FEM(npde.NPDE(components=2, nonlocal_term=term), space, mass=mass)
    u = problem.initial(lambda x: np.array([np.sin(3 * x[0]), x[1] ** 2]))
    solution = solve(problem, u, (0, 0.02), 0.01, npde.ForwardEuler())
    for _ in range(2):
        u = u + 0.01 * applied(problem, u)
    np.testing.assert_allclose(solution.values, u, rtol=0, atol=1e-11)


# -- stability and derivatives -----------------------------------------------------------------------------------


def test_the_stability_limit_knows_of_it():
    term = Stencil([[[0.0, -40.0, 0.0]]], 0.1, "zeros", 0, 1)
    problem = npde.FD(npde.NPDE(nonlocal_term=term), npde.Grid(COMM, (11,), (0,), (1,)))
    assert npde.spectral_radius(problem, 0.0, np.ones(problem.n_owned)) == pytest.approx(40, rel=1e-3)
    with pytest.raises(ValueError, match="above the stability limit 0.05"):
        solve(problem, 1.0, (0, 1), 0.1, npde.ForwardEuler())


def differentiable(kind, **terms):
    """Diffusion and growth with a nonlocal term, a field, and boundary data that is a parameter."""
    D, r, g = npde.Parameter("D", 0.05), npde.Parameter("r", 0.8), npde.Parameter("g", 0.3)
    s = npde.Parameter("s", lambda x: 0.1 + 0.2 * x[0], field=True)
    term = Stencil(0.5 * random(2, 2, 3, 3), 0.25, "replicate", 0, 1)
    if kind.endswith("integral"):
        y = np.array(list(itertools.product([0.1, 0.5, 0.9], [0.2, 0.8])))
        term = Integral(y, 0.5 * random(2, 6, 2, 6))
    equation = npde.NPDE(
        flux=lambda u, x, t: D * ufl.grad(u) + s * ufl.outer(u, x),
        source=lambda u, x, t: r * u - ufl.inner(u, u) * u,
        components=2,
        nonlocal_term=term,
        flow=lambda u, x, t, dt: u + dt * r * ufl.as_vector([u[1] ** 2, u[0]]),
        **terms,
    )
    bcs = [npde.Dirichlet(lambda x, t: g * (1 + t), lambda x: np.isclose(x[0], 0), component=0)]
    if kind.startswith("fd"):
        return npde.FD(equation, npde.Grid(COMM, (6, 5), (0, 0), (1, 1)), bcs)
    space = dolfinx.fem.functionspace(dolfinx.mesh.create_unit_square(COMM, 3, 3), ("Lagrange", 1, (2,)))
    return npde.FEM(equation, space, bcs, mass="lumped" if "lumped" in kind else "consistent")


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [
        ("fd", npde.ForwardEuler()),
        ("fd", npde.RK4()),
        ("fd", npde.Leapfrog()),
        ("fd", npde.Lie(2)),
        ("fd integral", npde.RK4()),
        ("fem", npde.RK4()),
        ("fem lumped", npde.ForwardEuler()),
        ("fem lumped", npde.Leapfrog()),
        ("fem integral", npde.ForwardEuler()),
        ("fem lumped", npde.Lie()),
    ],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_derivatives(kind, scheme):
    """Gradients by all parameters and by the initial state: Taylor's rate 2, with the Hessian 3, and the tangent."""
    moving = isinstance(scheme, npde.Newmark)
    problem = differentiable(kind, **({"inertia": 1.0, "damping": 0.2} if moving else {}))
    rng, controls = np.random.default_rng(3), tuple(problem.parameters.values())
    u0, du, weights = rng.random((3, problem.n_owned))
    first = {p.name: problem.field_values(p) if p.is_field else p.value for p in controls}
    along = {name: 0.3 * rng.random(np.shape(value)) for name, value in first.items()}

    def value(e, recorder=None):
        moved = {name: values + e * along[name] for name, values in first.items()}
        with problem.holding(moved):
            final = solve(problem, u0 + e * du, (0, 0.08), 0.02, scheme, recorder=recorder).values
        return 0.5 * float(weights @ final**2), final

    record = Trajectory(problem)
    before, final = value(0.0, record)
    by = Cotangents(final=weights * final)
    tangent = record.by(controls).tangent(along, du).final
    gradient = record.adjoint(by)
    slope = float(gradient.initial @ du) + sum(np.sum(gradient.parameters[n] * along[n]) for n in along)
    assert float(by.final @ tangent) == pytest.approx(slope, rel=1e-8)
    second = record.second(by, Cotangents(final=weights * tangent), along, du)
    bend = float(second.initial @ du) + sum(np.sum(second.parameters[n] * along[n]) for n in along)
    steps = (0.04, 0.02, 0.01)
    values = [value(e)[0] for e in steps]
    remainders = [[abs(v - before - e * slope) for v, e in zip(values, steps, strict=True)]]
    remainders.append([abs(v - before - e * slope - 0.5 * e**2 * bend) for v, e in zip(values, steps, strict=True)])
    for order, left in zip((2, 3), remainders, strict=True):
        assert np.log2(left[0] / left[1]) > order - 0.1 and np.log2(left[1] / left[2]) > order - 0.1, (order, left)


def test_it_counts_in_the_derivatives():
    """Without it the derivatives are others: the test above could fail."""
    problem = differentiable("fd")
    record = Trajectory(problem)
    u0 = np.random.default_rng(3).random(problem.n_owned)
    solve(problem, u0, (0, 0.08), 0.02, npde.RK4(), recorder=record)
    by = Cotangents(final=np.ones(problem.n_owned))
    found = record.adjoint(by).initial
    problem.__dict__["nonlocal_operator"] = None
    assert np.abs(record.adjoint(by).initial - found).max() > 1e-2


def test_batches_share_nothing():
    problem, _ = on_lattice((5, 4), 1, (3, 3), "zeros")
    assert not problem.fuses and not Batch.shares(problem, npde.ForwardEuler(), (), 0.1)
    assert not Batch.shares(problem, npde.CrankNicolson(), (), 0.1)


def test_layer():
    """The torch layer solves the samples of a batch one by one."""
    from npde_fem import learn

    problem, weights = on_lattice((5, 4), 1, (3, 3), "reflect")
    layer = learn.Layer(problem, t=(0, 0.02), dt=0.01, scheme=npde.ForwardEuler())
    u0 = torch.from_numpy(random(3, 20)).requires_grad_()
    found = layer(u0)
    for sample, row in zip(u0.detach().numpy(), found.detach().numpy().reshape(3, -1), strict=True):
        u = channels_first(problem, sample)
        for _ in range(2):
            u = u + 0.01 * convolution(weights, "reflect", u)
        np.testing.assert_allclose(channels_first(problem, row), u, rtol=0, atol=1e-12)
    found.sum().backward()
    assert u0.grad.shape == u0.shape and torch.isfinite(u0.grad).all()


# -- ranks and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks(ranks, mpirun):
    mpirun(ranks, "nonlocal_terms.py")


def stencil(weights=((((1.0, 2.0, 1.0)),),), spacing=0.1, padding="zeros", lower=0.0, upper=1.0):
    return Stencil(weights, spacing, padding, lower, upper)


@pytest.mark.parametrize(
    ("error", "words", "make"),
    [
        (ValueError, r"even sizes \[4\] in \(3, 4\)", lambda: stencil(np.ones((1, 1, 3, 4)))),
        (ValueError, r"weights of shape \(1, 2, 3\)", lambda: stencil(np.ones((1, 2, 3)))),
        (ValueError, r"weights of shape \(3,\)", lambda: stencil(np.ones(3))),
        (ValueError, "weights has 1 values that are NaN", lambda: stencil([[[1, np.nan, 2]]])),
        (TypeError, "weights must be made of numbers", lambda: stencil("kernel")),
        (TypeError, "weights is complex", lambda: stencil(np.ones((1, 1, 3)) * 1j)),
        (ValueError, "spacing .* positive", lambda: stencil(spacing=0)),
        (ValueError, r"lower of shape \(2,\)", lambda: stencil(lower=(0, 0))),
        (ValueError, "'valid' given; zeros, replicate, reflect, circular", lambda: stencil(padding="valid")),
        (ValueError, "whole number", lambda: stencil(upper=0.97)),
        (ValueError, "whole number", lambda: stencil(upper=-1)),
        (
            ValueError,
            "size 5 on 2 points .* 'reflect' reaches 1",
            lambda: stencil(np.ones((1, 1, 5)), 1.0, "reflect", 0, 1),
        ),
        (ValueError, r"points of shape \(2, 4\)", lambda: Integral(np.ones((2, 4)), np.ones((2, 2)))),
        (ValueError, "point 1 at .* off the uniform lattice", lambda: Integral([0, 0.4, 1], np.ones((3, 3)))),
        (ValueError, "3 points given, not those of a lattice", lambda: Integral([[0, 0], [0, 1], [1, 1]], np.eye(3))),
        (ValueError, "not those of a lattice", lambda: Integral([0, 1, 1], np.eye(3))),
        (ValueError, r"weights of shape \(4, 4\) given; \(m, 3, m, 3\)", lambda: Integral([0, 1, 2], np.eye(4))),
        (TypeError, "a Stencil or an Integral", lambda: npde.NPDE(nonlocal_term=np.ones(3))),
        (ValueError, "1 components; 2", lambda: npde.NPDE(components=2, nonlocal_term=stencil())),
        (ValueError, "complex", lambda: npde.NPDE(dtype=complex, nonlocal_term=stencil())),
        (ValueError, "stationary", lambda: npde.NPDE(damping=0, nonlocal_term=stencil())),
        (
            ValueError,
            "nonlocal_term is one in 1 dimensions; the domain has 2",
            lambda: npde.FD(npde.NPDE(nonlocal_term=stencil()), npde.Grid(COMM, (5, 5), (0, 0), (1, 1))),
        ),
        (
            ValueError,
            "manufactured: .* nonlocal",
            lambda: npde.manufactured(npde.NPDE(nonlocal_term=stencil()), lambda x, t: x[0]),
        ),
    ],
)
def test_refused(error, words, make):
    with pytest.raises(error, match=words):
        make()


SCHEMES = [
    npde.BackwardEuler(),
    npde.CrankNicolson(),
    npde.SDIRK2(),
    npde.IMEX(),
    npde.ImplicitMidpoint(),
    npde.Lie(implicit=True),
    None,
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name if s else "default")
def test_implicit_schemes_are_refused(scheme):
    problem = npde.FD(npde.NPDE(nonlocal_term=stencil()), npde.Grid(COMM, (11,), (0,), (1,)))
    with pytest.raises(ValueError, match=r"scheme .*explicit.*ForwardEuler\(\), RK4\(\), Lie\(\).*Leapfrog\(\)"):
        solve(problem, 1.0, (0, 1), 0.1, scheme)
    assert "nonlocal_operator" not in vars(problem)


def test_matrices_are_refused():
    problem = npde.FD(npde.NPDE(nonlocal_term=stencil(), inertia=1.0), npde.Grid(COMM, (11,), (0,), (1,)))
    with pytest.raises(ValueError, match="eigenmodes.*nonlocal"):
        npde.eigenmodes(problem, 2)
    with pytest.raises(ValueError, match="newmark.*nonlocal"):
        solve(problem, 1.0, (0, 1), 0.1, npde.Newmark())
    with pytest.raises(ValueError, match="Newton's method.*nonlocal"):
        Newton.borrow(problem, "all", False)
    with pytest.raises(ValueError, match="jacobian.*nonlocal"):
        problem.jacobian(0.0, problem.new_state(), 1.0, 1.0, problem.new_matrix())


def test_an_integrals_points_lie_in_the_domain():
    problem = npde.FD(npde.NPDE(nonlocal_term=Integral([0, 2], np.eye(2))), npde.Grid(COMM, (11,), (0,), (1,)))
    with pytest.raises(ValueError, match=r"point 1 at \(2.0,\) lies outside of the grid"):
        _ = problem.nonlocal_operator


def test_equations_keep_it():
    equation = npde.NPDE(nonlocal_term=stencil())
    assert equation.with_source(lambda u, x, t: u).nonlocal_term is equation.nonlocal_term
