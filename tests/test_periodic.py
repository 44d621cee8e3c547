"""Finite elements on periodic boxes: orders, conservation, the same as FD, on any number of ranks, files, gradients."""

import importlib
import subprocess
import sys
from pathlib import Path

import npde_fem as npde
from npde_fem.output import Writer

import dolfinx
import numpy as np
import pyadjoint
import pytest
import ufl
from mpi4py import MPI

sys.path.insert(0, str(Path(__file__).parent / "mpi"))
script = importlib.import_module("periodic")
COMM = MPI.COMM_WORLD


def orders(errors, sizes):
    return np.log(np.array(errors[:-1]) / errors[1:]) / np.log(np.array(sizes[1:]) / sizes[:-1])


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    return tmp_path_factory.mktemp("serial") / "1.npz"


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_gives_the_same_answer(ranks, serial, mpirun, tmp_path):
    if not serial.exists():
        mpirun(1, "periodic.py", serial)
    mpirun(ranks, "periodic.py", tmp_path / "many.npz", timeout=300)
    one, many = np.load(serial), np.load(tmp_path / "many.npz")
    assert one.files == many.files and len(one.files) == 5
    for name in one.files:
        np.testing.assert_allclose(many[name], one[name], rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(("kind", "axes"), list(script.every_choice()))
def test_every_cell_and_axis(kind, axes):
    script.check_mesh(kind, axes, script.GHOSTS.shared_facet)


# -- against exact solutions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("kind", ["interval", "triangle", "quadrilateral"])
def test_travelling_wave(kind, degree):
    """u_t + b . grad u = D lap u: a wave that travels through the seam and fades."""
    dim, D = (1 if kind == "interval" else 2), 0.02
    b, k = ufl.as_vector([0.8, -0.5][:dim]), ufl.as_vector([np.pi, 2 * np.pi][:dim])
    equation = npde.physics.heat(D).with_source(lambda u, x, t: -ufl.dot(b, ufl.grad(u)))

    def exact(x, t):
        return 2 + ufl.exp(-D * ufl.dot(k, k) * t) * ufl.sin(ufl.dot(k, x) - ufl.dot(k, b) * t)

    sizes, errors = ((8, 16) if degree < 3 else (6, 12)), []
    for n in sizes:
        mesh = script.box(kind, (2 * n, n))
        space = dolfinx.fem.functionspace(mesh, ("Lagrange", degree))
        problem = npde.FEM(equation, space, [npde.Periodic(a) for a in range(dim)])
        assert problem.n_global == 2 * n * degree * (n * degree if dim == 2 else 1)
        start = npde.Initial(exact)
        found = npde.solve(problem, start, t=(0, 0.1), dt=0.1 / 64, scheme=npde.RK4(), rescue=None)
        errors.append(problem.error(found.values, exact, 0.1)[0])
    assert orders(errors, sizes) > degree + 0.85, errors


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.parametrize(
    ("kind", "axes"), [("tetrahedron", (0, 1, 2)), ("hexahedron", (0, 1, 2)), ("hexahedron", (1,))]
)
def test_stationary_in_space(kind, axes, degree):
    lengths = np.subtract(script.UPPER, script.LOWER)

    def exact(x, t):
        return 1 + sum((1 + a) * ufl.sin(2 * np.pi / lengths[a] * (x[a] - 0.1)) for a in range(3))

    flux = lambda u, x, t: ufl.grad(u) - u * ufl.as_vector([0.4 if a in axes else 0.0 for a in range(3)])  # noqa: E731
    equation = npde.manufactured(npde.NPDE(flux=flux, source=lambda u, x, t: -u, damping=0), exact)
    sizes, errors = (4, 8), []
    for n in sizes:
        space = dolfinx.fem.functionspace(script.box(kind, (n, n, n)), ("Lagrange", degree))
        bcs = [npde.Periodic(a) for a in axes] + ([npde.Dirichlet(exact)] if len(axes) < 3 else [])
        problem = npde.FEM(equation, space, bcs)
        errors.append(problem.error(npde.solve(problem, rescue=None).values, exact)[0])
    assert orders(errors, sizes) > degree + 0.75, errors


def test_cubic_cells_in_space():
    """Degree three in 3D, where faces have dofs of their own: a function that the space holds but for its order."""
    errors = []
    for n in (3, 6):
        mesh = npde.periodic_mesh(script.box("tetrahedron", (n, n, n)), (0, 1, 2))
        problem = npde.FEM(npde.physics.heat(), dolfinx.fem.functionspace(mesh, ("Lagrange", 3)))

        def exact(x, t=0):
            return ufl.sin(np.pi * x[0]) * ufl.cos(2 * np.pi * x[1]) + ufl.sin(4 * np.pi / 3 * x[2] + np.pi * x[0])

        errors.append(problem.error(problem.interpolate(exact), exact)[0])
    assert orders(errors, (3, 6)) > 3.7, errors


def test_equals_finite_differences():
    """On even intervals P1 with lumped mass is the stencil of finite differences."""
    n, axis = 12, [npde.Periodic(0)]
    equation = npde.NPDE(flux=lambda u, x, t: 0.1 * ufl.grad(u) - 0.6 * u * ufl.as_vector([1.0]))
    fem = npde.FEM(
        equation, dolfinx.fem.functionspace(script.box("interval", (n,)), ("Lagrange", 1)), axis, mass="lumped"
    )
    fd = npde.FD(equation, npde.Grid(COMM, (n + 1,), script.LOWER[:1], script.UPPER[:1]), axis)
    assert fem.n_global == fd.n_global == n
    found = [npde.solve(p, script.bump, t=(0, 1), dt=0.02, scheme=npde.RK4(), rescue=None).values for p in (fem, fd)]
    order = np.argsort(fem.coordinates()[:, 0])
    np.testing.assert_allclose(fem.coordinates()[order, 0], fd.coordinates()[:, 0], atol=1e-14)
    np.testing.assert_allclose(found[0][order], found[1], rtol=0, atol=1e-13)
    assert np.ptp(found[1]) > 0.1


@pytest.mark.parametrize(("kind", "axes"), [("interval", (0,)), ("triangle", (0, 1)), ("hexahedron", (0, 2))])
def test_mass_is_conserved_to_round_off(kind, axes):
    problem = script.problem_of(kind, axes, mass="lumped", quadrature_degree=3)
    start = problem.initial(script.bump)
    end = npde.solve(problem, start, t=(0, 0.5), dt=0.01, scheme=npde.RK4(), rescue=None).values
    assert np.abs(end - start).max() > 0.05
    np.testing.assert_allclose(problem.total(end), problem.total(start), rtol=1e-13)


def test_a_system():
    """Two components, one of them held on the sides that remain."""
    equation = npde.physics.gray_scott()
    mesh = script.box("quadrilateral", (6, 6))
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 2, (2,)))
    problem = npde.FEM(equation, space, [npde.Periodic(0), npde.Dirichlet(1.0, component=0)])
    assert problem.n_global == 2 * 12 * 13 and problem.constrained.size == 2 * 12
    values = npde.solve(problem, lambda x: [1 + 0 * x[0], 0.3 + 0.1 * np.sin(np.pi * x[0])], t=(0, 1), dt=0.25).values
    assert np.all(np.isfinite(values)) and problem.function(values).function_space == problem.space


def test_curved_cells():
    """Cells of degree two, bent inside of the box; their area, and what a function's integral is, remain."""
    space = dolfinx.fem.functionspace(script.box("triangle"), ("Lagrange", 2))
    x, cells = space.tabulate_dof_coordinates()[:, :2], space.dofmap.list.astype(np.int64)
    x[:, 1] += 0.05 * np.sin(np.pi * x[:, 0]) * np.sin(np.pi * x[:, 1])
    element = dolfinx.fem.functionspace(space.mesh, ("Lagrange", 2, (2,))).ufl_element()
    before = dolfinx.mesh.create_mesh(MPI.COMM_SELF, cells, element, x)
    mesh = npde.periodic_mesh(before, [0, 1])
    found = [script.functional(m, (1 + ufl.SpatialCoordinate(m)[0] ** 2) * ufl.dx) for m in (before, mesh)]
    assert found[1] == pytest.approx(found[0], rel=1e-13) and found[0] == pytest.approx(8 / 3, rel=1e-3)


# -- what else works on it ---------------------------------------------------------------------------------------


def test_axes_add_up():
    before = script.box("triangle")
    once = npde.periodic_mesh(before, 0)
    twice = npde.periodic_mesh(once, 1)
    assert once.axes == (0,) and twice.axes == (0, 1) and twice.original is before
    assert npde.periodic_mesh(twice, (1, 0)) is twice
    space = dolfinx.fem.functionspace(twice, ("Lagrange", 1))
    assert npde.FEM(npde.physics.heat(), space, [npde.Periodic(1)]).space is space


@pytest.mark.parametrize("degree", [1, 2])
def test_files_show_both_sides(degree, tmp_path):
    problem = script.problem_of("triangle", (0, 1), degree, npde.physics.heat())

    def shown(x):
        return np.sin(np.pi * x[0]) + np.cos(2 * np.pi * x[1])

    state = problem.function(problem.initial(shown))
    for name in ("u.xdmf", "u.bp", "u.png"):
        with Writer(tmp_path / name, problem) as writer:
            writer(0.5, state)
    assert (tmp_path / "u.bp").is_dir() and (tmp_path / "u.png").stat().st_size > 1000
    frame = writer._frames[0][1]
    corners = frame["x"][frame["triangles"]]
    assert np.ptp(corners, axis=1).max() < 0.51  # no triangle from one side to the other
    np.testing.assert_allclose(frame["values"][:, 0], shown(frame["x"].T), atol=1e-12)
    # h5py brings another HDF5 than DOLFINx's wheel; the two do not load into one process in this order.
    read = (
        "import h5py, numpy, sys; file = h5py.File('u.h5'); (values,) = (v[:] for v in file['Function/u'].values());"
        "numpy.savez('u.npz', x=file['Mesh/mesh/geometry'][:], values=values)"
    )
    subprocess.run([sys.executable, "-c", read], cwd=tmp_path, check=True)
    with np.load(tmp_path / "u.npz") as found:
        assert len(found["x"]) == 5 * 6
        np.testing.assert_allclose(found["values"].ravel(), shown(found["x"].T), atol=1e-12)


def test_complex_state():
    """A free wave of Schroedinger's goes round the box."""
    space = dolfinx.fem.functionspace(script.box("interval", (24,)), ("Lagrange", 2))
    problem = npde.FEM(npde.physics.schrodinger(), space, [npde.Periodic(0)])
    k, end = np.pi, 0.3
    found = npde.solve(
        problem, lambda x: np.exp(1j * k * x[0]), t=(0, end), dt=end / 200, scheme=npde.CrankNicolson(), rescue=None
    )
    exact = np.exp(1j * (k * problem.coordinates()[:, 0] - 0.5 * k**2 * end))
    np.testing.assert_allclose(found.values.view(np.complex128), exact, atol=2e-4)


def test_gradient():
    """Taylor: a field, and the height of the initial data, of a periodic problem."""
    field, height = (
        npde.Parameter("D", lambda x: 0.1 + 0.02 * np.sin(np.pi * x[0]), field=True),
        npde.Parameter("h", 0.8),
    )
    equation = npde.NPDE(
        flux=lambda u, x, t: field * (1 + u**2) * ufl.grad(u) - 0.5 * u * ufl.as_vector([1.0, 0.3]),
        source=lambda u, x, t: u * (1 - u),
    )
    space = dolfinx.fem.functionspace(script.box("triangle"), ("Lagrange", 1))
    problem = npde.FEM(equation, space, [npde.Periodic(0), npde.Periodic(1)], quadrature_degree=4)
    start = npde.Initial(lambda x: height * (1 + 0.5 * ufl.sin(ufl.pi * x[0]) * ufl.cos(2 * ufl.pi * x[1])))
    with pyadjoint.set_working_tape(pyadjoint.Tape()) as tape:
        pyadjoint.continue_annotation()
        solution = npde.solve(problem, start, t=(0, 0.2), dt=0.05, scheme=npde.CrankNicolson())
        loss = npde.misfit(solution, np.array([[0.2, 0.4]]), at=[(-1.0, 0.0), (0.9, 0.97)], sigma=0.3)
        loss = loss + npde.integral(solution, lambda u, x, t: u**3)
        pyadjoint.pause_annotation()
        controls = [field, height]
        reduced = pyadjoint.ReducedFunctional(loss, [pyadjoint.Control(c) for c in controls], tape=tape)
    direction = [field.like(np.cos(np.arange(20.0))), height.like(3.0)]
    rates = pyadjoint.taylor_to_dict(reduced, [c._ad_copy() for c in controls], direction)
    assert min(rates["R1"]["Rate"]) > 1.9 and min(rates["R2"]["Rate"]) > 2.8, rates
