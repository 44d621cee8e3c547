"""Grids with padding: convolutions of torch, arrays padded by numpy, Jacobians and gradients, any number of ranks."""

import importlib
import sys
from functools import cache
from itertools import product
from pathlib import Path

import npde_fem as npde
from npde_fem.discretize.inner import inner_product
from npde_fem.options import inserted
from npde_fem.solve.batch import Batch
from npde_fem.solve.integrate import solve
from npde_fem.solve.trajectory import Cotangents, Trajectory

import numpy as np
import pytest
import ufl

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
cases = importlib.import_module("padding")
Kit, T = cases.linearised.Kit, cases.linearised.T
NUMPY = {"zeros": "constant", "replicate": "edge", "reflect": "reflect"}
TORCH = {"zeros": "constant", "replicate": "replicate", "reflect": "reflect"}


# -- values ------------------------------------------------------------------------------------------------------


def stencils(dim):
    """Centred differences on 3^dim points: of no, first and second order along every axis."""
    h = cases.SPACINGS

    def made(orders):
        one = [np.array({0: [0, 1, 0], 1: [-0.5, 0, 0.5], 2: [1, -2, 1]}[o]) / h[a] ** o for a, o in enumerate(orders)]
        kernel = one[0]
        for part in one[1:]:
            kernel = np.multiply.outer(kernel, part)
        return kernel

    return made


def kernel_of(dim):
    """The kernel of the linear equation's rate, shape (2, 2, 3, ..)."""
    mass, drift, diffusion = cases.coefficients(dim)
    made, unit = stencils(dim), np.eye(dim, dtype=int)
    kernel = np.zeros((2, 2, *[3] * dim))
    for i, j in product(range(2), repeat=2):
        kernel[i, j] = mass[i, j] * made([0] * dim)
        for a in range(dim):
            kernel[i, j] -= drift[i, j, a] * made(unit[a])
            for b in range(dim):
                kernel[i, j] += diffusion[i, j, a, b] * made(unit[a] + unit[b])
    return kernel


def rate(problem, values, t=0.0):
    """R over the volume of a point, an array over the grid."""
    state, out = problem.new_state(), np.zeros(problem.n_owned)
    problem.load(values, state)
    problem.rate(t, state, out)
    return problem.layout.on_grid(out / np.prod(problem.grid.spacing), problem.components)


@pytest.mark.parametrize("padding", cases.PADDINGS)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_rate_is_a_convolution(dim, padding):
    torch = pytest.importorskip("torch")
    problem = npde.FD(cases.linear(dim), cases.grid(dim, padding))
    u = np.random.default_rng(1).normal(size=(*problem.grid.shape, 2))
    channels = torch.from_numpy(np.moveaxis(u, -1, 0).copy())[None]
    padded = torch.nn.functional.pad(channels, [1, 1] * dim, mode=TORCH[padding])
    convolution = getattr(torch.nn.functional, f"conv{dim}d")
    expected = convolution(padded, torch.from_numpy(kernel_of(dim)))[0].numpy()
    found = np.moveaxis(rate(problem, problem.initial(u)), -1, 0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("padding", cases.PADDINGS)
def test_nonlinear_flux_with_fields(padding):
    """div(k (1 + u^2) grad u - w u) + k u_x u, evaluated on padded arrays."""
    k, w = npde.Parameter("k", lambda x: 1 + x[0] * x[1] ** 2, field=True), npde.Parameter("w", [0.4, -0.7])
    equation = npde.NPDE(
        flux=lambda u, x, t: k * (1 + u**2) * ufl.grad(u) - w * u * x[0], source=lambda u, x, t: k * u.dx(0) * u
    )
    problem = npde.FD(equation, cases.grid(2, padding))
    (hx, hy), x = problem.grid.spacing, problem.layout.on_grid(problem.layout.coordinates()[0], 1)
    u = np.random.default_rng(2).normal(size=problem.grid.shape)
    value = np.pad(u, 1, mode=NUMPY[padding])
    field = np.pad(problem.field("k").array, 1, mode=NUMPY["replicate" if padding == "zeros" else padding])

    def along(axis, h, c):
        """Divergence along one axis."""
        v, f = (np.moveaxis(array, axis, 0)[:, 1:-1] for array in (value, field))
        mean = (v[1:] + v[:-1]) / 2
        places = np.moveaxis(x, axis, 0)
        step = h / 2 if axis == 0 else 0.0
        at = np.concatenate([places[:1] - step, places + step])
        flux = (f[1:] + f[:-1]) / 2 * (1 + mean**2) * (v[1:] - v[:-1]) / h - c * mean * at
        return np.moveaxis((flux[1:] - flux[:-1]) / h, 0, axis)

    slope = (value[2:, 1:-1] - value[:-2, 1:-1]) / (2 * hx)
    expected = along(0, hx, 0.4) + along(1, hy, -0.7) + problem.field("k").array * slope * u
    found = rate(problem, problem.initial(u))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_replicated_values_close_the_domain():
    """No flux passes: diffusion keeps the mass, and an even start stays as it is."""
    problem = npde.FD(npde.physics.heat(0.3), cases.grid(2, "replicate"))
    start = np.random.default_rng(3).random(problem.n_owned)
    after = npde.solve(problem, start, (0, 0.3), 0.1, progress=False)
    np.testing.assert_allclose(problem.total(after.values), problem.total(start), rtol=1e-12)
    assert problem.total(np.ones(problem.n_owned)) == pytest.approx(42 * 0.2 * 0.35)
    assert np.abs(rate(problem, np.ones(problem.n_owned))).max() < 1e-13


def test_mirrored_values_are_those_of_a_grid_without_padding():
    """About the first point an even continuation has no slope: as a grid that ends there, to second order and more."""
    bare = npde.Grid(cases.COMM, (9,), (0,), (1.6,))
    problems = [npde.FD(npde.physics.fisher_kpp(0.3, 1.0), g) for g in (bare, cases.grid(1, "reflect"))]
    ends = [npde.solve(p, lambda x: np.exp(-3 * x[0] ** 2), (0, 0.2), 0.01, progress=False).values for p in problems]
    np.testing.assert_allclose(*ends, rtol=1e-7)


@pytest.mark.parametrize("padding", cases.PADDINGS)
def test_implicit_solve(padding):
    problem = npde.FD(cases.linear(2), cases.grid(2, padding))
    start = np.random.default_rng(4).random(problem.n_owned)
    matrix = np.stack([rate(problem, unit).transpose(1, 0, 2).ravel() for unit in np.eye(problem.n_owned)], axis=1)
    step = 0.05 / 2 * matrix
    one = np.eye(problem.n_owned)
    expected = np.linalg.solve(one - step, (one + step) @ start)
    with inserted({"npde_ksp_type": "preonly", "npde_pc_type": "lu"}):
        found = npde.solve(problem, start, (0, 0.05), 0.05, progress=False).values
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


# -- derivatives -------------------------------------------------------------------------------------------------


@cache
def kit(name):
    return Kit(cases.PROBLEMS[name]())


@pytest.fixture(params=cases.PROBLEMS)
def one(request):
    found = kit(request.param)
    yield found
    found.move(0.0)


def difference(one, evaluate, step=1e-5):
    values = []
    for e in (step, -step):
        one.move(e)
        values.append(evaluate())
    one.move(0.0)
    if isinstance(values[0], dict):
        return {name: (values[0][name] - values[1][name]) / (2 * step) for name in values[0]}
    return (values[0] - values[1]) / (2 * step)


def close(value, expected, tolerance=1e-7):
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * max(1e-3, np.abs(expected).max()))


def test_jacobian(one):
    p, step, values = one.problem, 1e-6, []
    for e in (step, -step):
        p.load(one.u + e * one.v, one.state)
        values.append(one.value("all"))
    p.load(one.u, one.state)
    expected = (values[0] - values[1]) / (2 * step)
    close(cases.jacobian_times(p, one.state, one.v), expected)
    assert np.abs(expected).max() > 1e-2


@pytest.mark.parametrize("term", ["all", "mass"])
def test_tangents_and_adjoints(one, term):
    tangent = one.tangent(term)
    close(tangent, difference(one, lambda: one.value(term)))
    back = one.back(term)
    assert abs(one.paired(back) - one.adjoint @ tangent) < 1e-12 * np.linalg.norm(one.adjoint * tangent)
    slope = difference(one, lambda: one.back(term))
    for name, values in one.back(term, second=True).items():
        close(values, slope[name])


def test_integrals_and_initial_data(one):
    close(one.integral.tangent(), difference(one, lambda: np.array(one.integral.value())))
    assert one.paired(one.back("integral")) == pytest.approx(0.8 * one.integral.tangent(), rel=1e-12)
    tangent = np.zeros(one.problem.n_owned)
    one.initial.tangent(T, tangent)
    close(tangent, difference(one, lambda: one.problem.interpolate(one.start, T)))
    adjoint = cases.linearised.wave(one.problem, 4)
    assert one.paired(one.back_from_nodes(one.initial)) == pytest.approx(adjoint @ tangent, rel=1e-12)


@pytest.mark.parametrize("scheme", [npde.ForwardEuler(), npde.CrankNicolson()], ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["plane-reflect", "plane-replicate-periodic"])
def test_gradient_of_a_solve(name, scheme):
    """Taylor remainders of a loss of the final state fall at rate 2, by the parameters and by the initial state."""
    p = cases.PROBLEMS[name]()
    controls = list(p.parameters.values())
    delta = {c.name: 0.1 * cases.linearised.direction(p, c) for c in controls}
    base = {c.name: p.field_values(c) if c.is_field else c.value for c in controls}
    start, along = 0.7 + 0.2 * cases.linearised.wave(p, 2), 0.2 * cases.linearised.wave(p, 3)

    def run(e, recorder=None):
        with p.holding({n: base[n] + e * delta[n] for n in base}):
            return solve(p, start + e * along, (0, 0.04), 0.01, scheme, progress=False, recorder=recorder).values

    of = Trajectory(p)
    final = run(0.0, of)
    gradient = of.by(controls).adjoint(Cotangents(final=final))
    slope = sum(np.vdot(gradient.parameters[n], delta[n]) for n in delta) + gradient.initial @ along
    tangent = of.tangent(delta, along).final
    assert final @ tangent == pytest.approx(slope, rel=1e-6 if scheme.is_explicit is False else 1e-10)
    steps = 0.5 ** np.arange(4)
    rest = [run(e) @ run(e) / 2 - final @ final / 2 - e * slope for e in steps]
    rates = np.log2(np.abs(np.divide(rest[:-1], rest[1:])))
    assert rates.max() > 1.95, rates


@pytest.mark.parametrize("scheme", [npde.RK4(), npde.CrankNicolson()], ids=lambda s: s.name)
@pytest.mark.parametrize("padding", cases.PADDINGS)
def test_batches_are_single_solves(padding, scheme):
    d = npde.Parameter("d", lambda x: 0.2 + 0.1 * x[0], field=True)
    p = npde.FD(npde.physics.heat(d, 0.3), cases.grid(2, padding))
    some = np.random.default_rng(5)
    starts, by = some.random((2, 3, p.n_owned))
    batch = Batch(p, (0, 0.02), 0.01, scheme)
    _, final = batch.solve(starts)
    gradient = batch.adjoint([d], final=by)
    summed = 0.0
    for b in range(3):
        of = Trajectory(p)
        one = solve(p, starts[b], (0, 0.02), 0.01, scheme, progress=False, recorder=of)
        back = of.by([d]).adjoint(Cotangents(final=by[b]))
        np.testing.assert_allclose(final[b], one.values, rtol=1e-6)
        np.testing.assert_allclose(gradient.initial[b], back.initial, rtol=1e-5, atol=1e-7)
        summed = summed + back.parameters["d"]
    np.testing.assert_allclose(gradient.parameters["d"], summed, rtol=1e-4, atol=1e-6)


# -- what else grids are used for --------------------------------------------------------------------------------


def test_functions_probes_and_inner_products(tmp_path):
    k = npde.Parameter("k", 1.0, field=True)
    p = npde.FD(npde.NPDE(flux=lambda u, x, t: k * ufl.grad(u)), cases.grid(2, "reflect"))
    values = p.interpolate(lambda x, t: 2 * x[0] - x[1])
    points = np.array([[0.0, 0.1], [0.33, 1.2], [1.2, 1.85]])
    np.testing.assert_allclose(npde.Probe(p, points).apply(values)[:, 0], 2 * points[:, 0] - points[:, 1], atol=1e-12)
    riesz = p.function(values)._ad_riesz(np.ones(p.n_owned), "L2")
    np.testing.assert_allclose(riesz, 1 / (0.2 * 0.35), rtol=1e-12)
    matrix = inner_product(p, k, "H1", 0.3)
    assert matrix.isSymmetric(1e-12)
    matrix.destroy()
    with npde.Writer(tmp_path / "u.xdmf", p) as writer:
        writer(0.0, p.function(values))
    npde.save(p, values, tmp_path / "u.petsc")
    np.testing.assert_array_equal(npde.restore(p, tmp_path / "u.petsc"), values)


def test_networks_in_the_source():
    torch = pytest.importorskip("torch")
    net = npde.neural(
        torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double(), name="n"
    )
    heat = npde.NPDE(flux=lambda u, x, t: ufl.grad(u), source=lambda u, x, t: net(u))
    assert npde.solve(npde.FD(heat, cases.grid(1, "zeros")), 0.5, (0, 0.1), 0.05, progress=False).values.size == 9
    with pytest.raises(ValueError, match="flux contains a network; on a grid with padding"):
        npde.FD(npde.NPDE(flux=lambda u, x, t: net(u) * ufl.grad(u)), cases.grid(1, "zeros"))


# -- bad input ---------------------------------------------------------------------------------------------------


def test_bad_paddings():
    with pytest.raises(ValueError, match='padding \'mirror\' given; "zeros", "replicate", "reflect" or None allowed'):
        cases.grid(2, "mirror")
    with pytest.raises(ValueError, match="padding and mask given"):
        npde.Grid(cases.COMM, (4,), (0,), (1,), mask=np.ones(4, dtype=bool), padding="zeros")


@pytest.mark.parametrize("condition", [npde.Dirichlet(0.0), npde.Flux(1.0), npde.Robin(1.0), npde.Absorbing(1.0)])
def test_boundary_conditions_are_refused(condition):
    with pytest.raises(ValueError, match=f"{type(condition).__name__}: given on a grid with padding='zeros'"):
        npde.FD(npde.physics.heat(1.0), cases.grid(2, "zeros"), [npde.Periodic(0), condition])


def test_fields_in_cells_are_refused():
    k = npde.Parameter("k", 1.0, field=("DG", 0))
    with pytest.raises(ValueError, match="'k': on a grid with padding fields live at points"):
        npde.FD(npde.physics.heat(k), cases.grid(2, "reflect"))


# -- ranks -------------------------------------------------------------------------------------------------------


def test_any_number_of_ranks(mpirun, tmp_path):
    one = cases.measured()
    assert len(one) > 300
    for ranks in (2, 3):
        mpirun(ranks, "padding.py", tmp_path / "many.npz")
        many = np.load(tmp_path / "many.npz")
        assert list(one) == many.files
        for name, values in one.items():
            tolerance = 1e-6 if "crank" in name else 1e-12
            scale = max(1e-3, np.abs(values).max())
            np.testing.assert_allclose(many[name], values, rtol=0, atol=tolerance * scale, err_msg=name)
