"""Eigenmodes against exact spectra; ground states against published ones."""

import npde_fem as npde

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD
pytestmark = pytest.mark.real_scalars("MUMPS's count of eigenvalues")
EDGE = [npde.Dirichlet(0.0)]


def line(n, lower=0.0, upper=1.0, degree=4, components=1):
    mesh = dolfinx.mesh.create_interval(COMM, n, (lower, upper))
    return dolfinx.fem.functionspace(mesh, ("Lagrange", degree, () if components == 1 else (components,)))


def square(n, degree=2, cell="triangle"):
    mesh = dolfinx.mesh.create_unit_square(COMM, n, n, getattr(dolfinx.mesh.CellType, cell))
    return dolfinx.fem.functionspace(mesh, ("Lagrange", degree))


def grid(*shape, lower=0.0, upper=1.0):
    return npde.Grid(COMM, shape, (lower,) * len(shape), (upper,) * len(shape))


def harmonic(x, t):
    return ufl.dot(x, x) / 2


def gram(problem, modes):
    """Inner products of modes, as the matrices say; complex numbers for a complex equation."""
    out = np.zeros_like(modes)
    for row, mode in zip(out, modes, strict=True):
        problem.gram_times(mode, row)
    if problem.equation.is_complex:
        modes, out = modes.view(np.complex128), out.view(np.complex128)
    return modes.conj() @ out.T


def check(modes, exact, rtol):
    """Eigenvalues are the exact ones, residuals small, modes orthonormal (of symmetric problems)."""
    np.testing.assert_allclose(modes.values, exact, rtol=rtol, atol=1e-9)
    assert np.all(modes.residuals < 1e-9)
    np.testing.assert_allclose(gram(modes.problem, modes.modes), np.eye(len(exact)), atol=1e-9)


def test_heat_on_a_square_with_degenerate_modes():
    """One of (1, 2) and (2, 1) is not another's multiple, and none of Dirichlet's dofs brings an eigenvalue."""
    modes = npde.eigenmodes(npde.FEM(npde.physics.heat(2.0), square(8, 4), EDGE), 6)
    check(modes, -2 * np.pi**2 * np.array([2, 5, 5, 8, 10, 10]), 1e-5)
    assert modes.modes.dtype == np.float64
    assert modes.function(0).x.array.min() > -1e-12 and modes.function(0).x.array.max() == pytest.approx(2, rel=1e-4)


def test_closed_box_has_a_constant_mode_and_the_grid_its_known_eigenvalues():
    n = 12
    modes = npde.eigenmodes(npde.FD(npde.physics.heat(), grid(n, n)), 6)
    one = -4 * (n - 1) ** 2 * np.sin(np.pi * np.arange(3) / (2 * (n - 1))) ** 2
    check(modes, np.array([0, one[1], one[1], 2 * one[1], one[2], one[2]]), 1e-12)
    np.testing.assert_allclose(modes.modes[0], 1.0, rtol=1e-10)


def test_masked_points_bring_no_eigenvalues():
    mask = np.ones((9, 9), dtype=bool)
    mask[5:, :] = False
    whole = npde.FD(npde.physics.heat(), npde.Grid(COMM, (9, 9), (0, 0), (1, 1), mask=mask))
    values = npde.eigenmodes(whole, 4).values.real
    assert abs(values[0]) < 1e-10 and np.all(values[1:] < -1)


@pytest.mark.parametrize("problem", ["fem", "fd"])
def test_harmonic_oscillator_in_one_dimension(problem):
    """Energies n + 1/2: FEM of degree 4 to 1e-6; FD by the second order on a grid, and to 1e-6 on a fine one."""
    equation = npde.physics.schrodinger(harmonic)

    def energies(n):
        if problem == "fem":
            return npde.eigenmodes(npde.FEM(equation, line(n, -9.0, 9.0), EDGE), 5).energies
        return npde.eigenmodes(npde.FD(equation, grid(n, lower=-9.0, upper=9.0), EDGE), 5).energies

    exact = np.arange(5) + 0.5
    if problem == "fem":
        np.testing.assert_allclose(energies(60), exact, atol=1e-6)
    else:
        errors = np.array([np.abs(energies(n + 1) - exact) for n in (200, 400)])
        np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 2, atol=0.01)
        np.testing.assert_allclose(energies(30001), exact, atol=1e-6)


def test_harmonic_oscillator_in_the_plane():
    mesh = dolfinx.mesh.create_rectangle(
        COMM, [[-6.5, -6.5], [6.5, 6.5]], (13, 13), dolfinx.mesh.CellType.quadrilateral
    )
    space = dolfinx.fem.functionspace(mesh, ("Lagrange", 4))
    modes = npde.eigenmodes(npde.FEM(npde.physics.schrodinger(harmonic), space, EDGE), 6)
    check(modes, -1j * np.array([1, 2, 2, 3, 3, 3]), 3e-5)
    x = space.tabulate_dof_coordinates()
    ground = modes.function(0).x.array
    np.testing.assert_allclose(ground, np.exp(-(x[:, 0] ** 2 + x[:, 1] ** 2) / 2) / np.sqrt(np.pi), atol=1e-4)


def test_bound_states_of_a_well_come_first_though_they_lie_below_zero():
    """Even states of the well of depth V and half width 1 satisfy q tan q = sqrt(2 V - q^2), E = q^2 / 2 - V."""
    depth = 10.0
    equation = npde.physics.schrodinger(lambda x, t: ufl.conditional(ufl.lt(abs(x[0]), 1.0), -depth, 0.0))
    problem = npde.FEM(equation, line(64, -8.0, 8.0), EDGE)
    energies = npde.eigenmodes(problem, 3).energies
    q = np.sqrt(2 * (energies + depth))
    outside = np.sqrt(2 * depth - q**2)
    np.testing.assert_allclose(q[::2] * np.tan(q[::2]), outside[::2], rtol=1e-6)
    np.testing.assert_allclose(-q[1] / np.tan(q[1]), outside[1], rtol=1e-6)
    near = npde.eigenmodes(problem, 1, target=-1j * energies[1])
    np.testing.assert_allclose(near.energies, energies[1:2], rtol=1e-9)


def test_a_magnetic_ring_couples_real_and_imaginary_parts():
    """(k - a)^2 / 2 for whole k: no conjugates, and each once."""
    a = 0.3

    def flux(u, x, t):
        return 0.5j * (ufl.grad(u) - 1j * a * ufl.as_vector([u]))

    def source(u, x, t):
        return 0.5j * (-1j * a * ufl.grad(u)[0] - a * a * u)

    equation = npde.NPDE(flux=flux, source=source, dtype=complex)
    problem = npde.FEM(equation, line(16, 0.0, 2 * np.pi), [npde.Periodic(0)])
    modes = npde.eigenmodes(problem, 5)
    check(modes, -0.5j * np.sort((np.arange(-4, 5) - a) ** 2)[:5], 1e-6)
    assert modes.function(1).x.array.dtype == np.complex128


def test_a_lossy_potential_has_complex_energies():
    problem = npde.FEM(npde.physics.schrodinger(lambda x, t: (1 - 0.2j) * x[0] ** 2 / 2), line(48, -7.0, 7.0), EDGE)
    modes = npde.eigenmodes(problem, 3)
    np.testing.assert_allclose(modes.values, -1j * (np.arange(3) + 0.5) * np.sqrt(1 - 0.2j), rtol=1e-5)
    assert np.all(modes.values.real < 0)


def test_open_and_closed_cavities_of_helmholtz():
    """u'' + k^2 u = lambda u, q^2 = k^2 - lambda: between two impedance boundaries a wave returns as it was."""
    k, space = 2.0, line(16)
    closed = npde.eigenmodes(npde.FEM(npde.physics.helmholtz(k), space, EDGE), 3)
    check(closed, k**2 - np.pi**2 * np.arange(1, 4) ** 2, 1e-6)
    modes = npde.eigenmodes(npde.FEM(npde.physics.helmholtz(k), space, [npde.Robin(-1j * k)]), 3)
    q = np.sqrt(k**2 - modes.values)
    np.testing.assert_allclose(((q - k) / (q + k)) ** 2 * np.exp(2j * q), 1.0, rtol=1e-5)


def test_frequencies_of_a_cavity_filled_with_glass():
    """u'' = -k^2 n^2 u, n = 1.5: the index stands in the damping."""
    equation = npde.NPDE(flux=lambda u, x, t: ufl.grad(u), damping=1.5**2)
    modes = npde.eigenmodes(npde.FEM(equation, line(8), EDGE), 3)
    np.testing.assert_allclose(np.sqrt(-modes.values.real), np.pi * np.arange(1, 4) / 1.5, rtol=1e-6)


def test_drift_and_diffusion():
    """u_t = u'' - c u' has the eigenvalues -c^2 / 4 - (k pi)^2 and the modes exp(c x / 2) sin(k pi x)."""
    equation = npde.NPDE(flux=lambda u, x, t: ufl.grad(u) - 4 * ufl.as_vector([u]))
    problem = npde.FEM(equation, line(12), EDGE)
    modes = npde.eigenmodes(problem, 3)
    np.testing.assert_allclose(modes.values, -4 - np.pi**2 * np.arange(1, 4) ** 2, rtol=1e-6)
    x = problem.coordinates()[:, 0]
    exact = np.exp(2 * x) * np.sin(np.pi * x)
    np.testing.assert_allclose(modes.modes[0], exact / np.sqrt(gram(problem, exact[None])[0, 0]), atol=1e-6)


def test_one_of_two_conjugates_stands_for_both():
    """Two components that turn around each other: -k^2 + 30 i."""
    turning = npde.NPDE(
        flux=lambda u, x, t: ufl.grad(u),
        source=lambda u, x, t: 30 * ufl.as_vector([u[1], -u[0]]),
        components=2,
    )
    n = 15
    modes = npde.eigenmodes(npde.FD(turning, grid(n)), 3)
    exact = -4 * (n - 1) ** 2 * np.sin(np.pi * np.arange(3) / (2 * (n - 1))) ** 2 + 30j
    np.testing.assert_allclose(modes.values, exact, rtol=1e-10)
    np.testing.assert_allclose(modes.frequencies, 30, rtol=1e-10)
    assert np.iscomplexobj(modes.modes) and np.iscomplexobj(modes.function(0).values)


def test_equal_components_have_each_mode_twice():
    """Krylov methods alone would miss copies; Sylvester's law counts them."""
    same = npde.physics.reaction_diffusion(1.0, lambda u, x, t: -3 * u, components=3)
    modes = npde.eigenmodes(npde.FD(same, grid(31), EDGE), 6)
    exact = -3 - 4 * 900 * np.sin(np.pi * np.arange(1, 3) / 60) ** 2
    check(modes, np.repeat(exact, 3), 1e-10)


@pytest.mark.parametrize("kind", ["fem", "fem lumped", "fd"])
def test_frequencies_of_a_string(kind):
    """+- i c k pi, of a lumped mass and of a grid with their own dispersion."""
    c, equation = 3.0, npde.physics.wave(3.0)
    if kind == "fd":
        problem, n = npde.FD(equation, grid(41), EDGE), 40
        exact = 2 * c * n * np.sin(np.pi * np.arange(1, 5) / (2 * n))
    else:
        mass = "lumped" if kind.endswith("lumped") else "consistent"
        problem, exact = npde.FEM(equation, line(16), EDGE, mass=mass), c * np.pi * np.arange(1, 5)
    modes = npde.eigenmodes(problem, 4)
    np.testing.assert_allclose(modes.values, 1j * exact, rtol=1e-10 if kind == "fd" else 1e-6)
    assert modes.modes.dtype == np.float64 and np.all(modes.residuals < 1e-9)
    near = npde.eigenmodes(problem, 1, target=3.1j * c * np.pi)
    np.testing.assert_allclose(near.values, modes.values[2:3], rtol=1e-9)


def test_damped_waves():
    """lambda^2 + b lambda + (c k pi)^2 = 0: one of two conjugates, or both of two real ones."""
    c, b = 3.0, 20.0
    modes = npde.eigenmodes(npde.FEM(npde.physics.wave(c, damping=b), line(12), EDGE), 4)
    roots = [np.sqrt(complex((b / 2) ** 2 - (c * np.pi * k) ** 2)) for k in (1, 2, 3)]
    exact = [-b / 2 + roots[0], -b / 2 - roots[0], -b / 2 + roots[1], -b / 2 + roots[2]]
    np.testing.assert_allclose(modes.values, exact, rtol=1e-5)
    assert np.all(modes.residuals < 1e-8)


def test_waves_behind_walls_that_absorb_a_part():
    """Walls of impedance c / 2 reflect a third: lambda = c (i k pi - log 3), and the constant mode."""
    c = 3.0
    modes = npde.eigenmodes(npde.FEM(npde.physics.wave(c), line(12), [npde.Absorbing(c / 2)]), 4)
    exact = [0, *(c * (1j * k * np.pi - np.log(3)) for k in range(3))]
    np.testing.assert_allclose(modes.values, exact, rtol=1e-6, atol=1e-8)
    assert np.all(modes.residuals < 1e-8)


def test_a_mixture_unmixes_at_its_known_rates():
    """Cahn and Hilliard about c = 0, a singular M: lambda = k^2 (1 - eps^2 k^2), k^2 that of the grid."""
    problem = npde.FD(npde.physics.cahn_hilliard(0.1), grid(41))
    modes = npde.eigenmodes(problem, 4, at=(0.0, 0.0))
    k2 = 6400 * np.sin(np.pi * np.arange(4) / 80) ** 2
    np.testing.assert_allclose(modes.values, np.sort(k2 * (1 - 0.01 * k2))[::-1], rtol=1e-9, atol=1e-9)


def test_excitations_of_a_condensate():
    """Linearised about sqrt(rho): Bogoliubov's frequencies sqrt(e (e + 2 g rho)) with e = k^2 / 2 of the grid."""
    g, rho, n = 3.0, 2.0, 16
    equation = npde.physics.schrodinger(potential=-g * rho, g=g)
    problem = npde.FD(equation, grid(n + 1, upper=2 * np.pi), [npde.Periodic(0)])
    with pytest.raises(ValueError, match="nonlinear; at=u"):
        npde.eigenmodes(problem, 2)
    modes = npde.eigenmodes(problem, 6, at=np.sqrt(rho), target=2.0)
    h = 2 * np.pi / n
    e = (1 - np.cos(h * np.arange(1, 3))) / h**2
    found = modes.frequencies[modes.frequencies > 1e-3]  # the others are the phase's
    np.testing.assert_allclose(found[:4], np.repeat(np.sqrt(e * (e + 2 * g * rho)), 2), rtol=1e-9)


def test_an_eigenmode_keeps_its_density_in_time():
    problem = npde.FD(npde.physics.schrodinger(harmonic), grid(121, lower=-7.0, upper=7.0), EDGE)
    modes = npde.eigenmodes(problem, 3)
    solution = npde.solve(problem, modes.modes[2], t=(0, 1), dt=0.01)
    before, after = modes.modes[2].view(np.complex128), solution.values.view(np.complex128)
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-10)
    e, dt = modes.energies[2], 0.01  # Crank-Nicolson turns by 2 atan(E dt / 2) a step
    np.testing.assert_allclose(after, before * np.exp(-2j * np.arctan(e * dt / 2) / dt), atol=1e-10)


def test_bad_input():
    heat = npde.FD(npde.physics.heat(), grid(6), EDGE)
    for n in (0, -1, 5):
        with pytest.raises(ValueError, match=f"n = {n} given; 1 to 4, the number of unknowns, allowed"):
            npde.eigenmodes(heat, n)
    with pytest.raises(TypeError, match="n must be an integer, not 2.5"):
        npde.eigenmodes(heat, 2.5)
    with pytest.raises(TypeError, match="FEM or FD, not NPDE"):
        npde.eigenmodes(npde.physics.heat(), 1)
    with pytest.raises(ValueError, match="target = 1j given; real numbers allowed"):
        npde.eigenmodes(heat, 1, target=1j)
    with pytest.raises(ValueError, match="nonlinear"):
        npde.eigenmodes(npde.FD(npde.physics.fisher_kpp(), grid(6)), 1)
    changing = npde.FD(npde.NPDE(flux=lambda u, x, t: (1 + t) * ufl.grad(u)), grid(6), EDGE)
    with pytest.raises(ValueError, match="depends on time; t=..."):
        npde.eigenmodes(changing, 1)
    np.testing.assert_allclose(npde.eigenmodes(changing, 2, t=2.0).values, 3 * npde.eigenmodes(heat, 2).values)
    assert len(npde.eigenmodes(heat, 4).values) == 4


def test_modes_that_do_not_converge():
    problem = npde.FD(npde.physics.heat(), grid(200), EDGE)
    npde.petsc_options(["-npde_eps_max_it", "1", "-npde_eps_tol", "1e-30"])
    try:
        with pytest.raises(RuntimeError, match="of 30 modes converged"):
            npde.eigenmodes(problem, 30)
    finally:
        from petsc4py import PETSc

        for name in ("npde_eps_max_it", "npde_eps_tol"):
            PETSc.Options().delValue(name)


# -- ground states ---------------------------------------------------------------------------------------------

TRAP_STRENGTH = npde.Parameter("g", 0.0)
TRAP = npde.physics.schrodinger(harmonic, g=TRAP_STRENGTH)


def bump(x):
    return np.exp(-(x[0] ** 2) - x[1] ** 2)


@pytest.fixture(scope="module")
def trap():
    return npde.FEM(TRAP, line(64, -16.0, 16.0), EDGE)


# Bao and Du 2004, SIAM J. Sci. Comput. 25, table 2.1: strength, energy, chemical potential.
@pytest.mark.parametrize(
    ("g", "energy", "mu"),
    [
        (0.0, 0.5, 0.5),
        (3.1371, 1.0441, 1.5266),
        (12.5484, 2.2330, 3.5966),
        (31.371, 3.9810, 6.5527),
        (62.742, 6.2570, 10.369),
        (156.855, 11.464, 19.070),
        (313.71, 18.171, 30.259),
    ],
)
def test_ground_states_of_a_trap_are_those_published(trap, g, energy, mu):
    TRAP_STRENGTH.value = g
    ground = npde.ground_state(trap, bump)
    assert ground.energy == pytest.approx(energy, rel=5e-5) and ground.mu == pytest.approx(mu, rel=5e-5)
    assert np.all(np.diff(ground.energies) <= 0)
    assert gram(trap, ground.values[None])[0, 0] == pytest.approx(1, rel=1e-12)
    density = npde.physics.schrodinger_energy(harmonic, g=TRAP_STRENGTH)
    assert npde.integral(npde.Solution(trap, 0.0, ground.values), density) == pytest.approx(ground.energy, rel=1e-10)


def test_strong_repulsion_makes_a_parabola():
    """Thomas and Fermi: mu = (3 g / 2)^(2/3) / 2, density (mu - x^2 / 2) / g, up to a small part at the rim."""
    TRAP_STRENGTH.value = g = 1000.0
    problem = npde.FD(TRAP, grid(801, lower=-16.0, upper=16.0), EDGE)
    ground = npde.ground_state(problem, lambda x: np.exp(-(x[0] ** 2) / 50))
    mu = 0.5 * (1.5 * g) ** (2 / 3)
    assert ground.mu == pytest.approx(mu, rel=1e-3)
    x, density = problem.coordinates()[:, 0], np.abs(ground.u.values) ** 2
    inner = np.abs(x) < 9
    np.testing.assert_allclose(density[inner], (mu - x[inner] ** 2 / 2) / g, rtol=0.01)
    # It is the lowest mode of the equation with its own density as potential.
    field = npde.Parameter("density", density, field=True)
    frozen = npde.FD(npde.physics.schrodinger(lambda x, t: harmonic(x, t) + g * field), problem.grid, EDGE)
    assert npde.eigenmodes(frozen, 1).energies[0] == pytest.approx(ground.mu, rel=1e-9)


@pytest.mark.parametrize("dt", [None, 0.5])
def test_any_way_leads_to_the_ground_state(dt):
    """From a moving state off the centre, in steps of any length, with energies that fall."""
    TRAP_STRENGTH.value = 20.0
    problem = npde.FD(TRAP, grid(161, lower=-8.0, upper=8.0), EDGE)
    ground = npde.ground_state(problem, lambda x: bump(x - 1.5) * np.exp(2j * x[0]), dt=dt, tol=1e-7)
    best = npde.ground_state(problem, bump)
    assert ground.energy == pytest.approx(best.energy, rel=1e-10) and ground.mu == pytest.approx(best.mu, rel=1e-6)
    assert np.all(np.diff(ground.energies) <= 1e-12 * ground.energy)


def test_a_ground_state_is_stationary_in_time():
    TRAP_STRENGTH.value = 20.0
    problem = npde.FD(TRAP, grid(161, lower=-8.0, upper=8.0), EDGE)
    ground = npde.ground_state(problem, bump, tol=1e-9)
    solution = npde.solve(problem, ground.values, t=(0, 0.5), dt=0.01, scheme=npde.ImplicitMidpoint())
    before, after = ground.values.view(np.complex128), solution.values.view(np.complex128)
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-4)  # but for the step's error, (mu dt)^2
    assert -np.angle(np.vdot(before, after)) == pytest.approx(0.5 * ground.mu % (2 * np.pi), rel=2e-3)


def test_bound_ground_states_lie_below_zero():
    well = npde.physics.schrodinger(lambda x, t: -10 * ufl.exp(-(x[0] ** 2)))
    problem = npde.FD(well, grid(201, lower=-6.0, upper=6.0), EDGE)
    assert npde.ground_state(problem, bump).mu == pytest.approx(npde.eigenmodes(problem, 1).energies[0], rel=1e-10)


def test_bad_input_of_ground_states():
    g = grid(21, lower=-4.0, upper=4.0)
    free = npde.physics.schrodinger(harmonic)
    with pytest.raises(ValueError, match="damping 1 and inertia 0, such as"):
        npde.ground_state(npde.FD(npde.physics.heat(), g), 1.0)
    with pytest.raises(ValueError, match="u0 vanishes"):
        npde.ground_state(npde.FD(free, g, EDGE), 0.0)
    with pytest.raises(ValueError, match="Dirichlet values other than zero"):
        npde.ground_state(npde.FD(free, g, [npde.Dirichlet(1.0)]), bump)
    with pytest.raises(ValueError, match="Flux and Robin"):
        npde.ground_state(npde.FD(free, g, [npde.Robin(-1j)]), bump)
    with pytest.raises(ValueError, match="real potentials"):
        npde.ground_state(npde.FD(npde.physics.schrodinger(lambda x, t: -1j * x[0] ** 2), g, EDGE), bump)
    with pytest.raises(ValueError, match="not finite at u0"):
        npde.ground_state(npde.FD(npde.physics.schrodinger(lambda x, t: ufl.sqrt(x[0])), g, EDGE), bump)
    with pytest.raises(ValueError, match="depend on time"):
        npde.ground_state(npde.FD(npde.physics.schrodinger(lambda x, t: t * x[0] ** 2), g, EDGE), bump)
    with pytest.raises(ValueError, match="tol must be a positive number, not -1"):
        npde.ground_state(npde.FD(free, g, EDGE), bump, tol=-1)
    with pytest.raises(RuntimeError, match="after 2 steps"):
        npde.ground_state(npde.FD(free, g, EDGE), lambda x: 1 + x[0], max_steps=2)


def test_every_number_of_ranks_gives_the_same(mpirun, tmp_path):
    """Eigenvalues and modes, degenerate ones too, to their signs and phases; ground states."""
    for ranks, which in ((1, "all"), (2, "all"), (3, "heat")):
        mpirun(ranks, "eigen.py", tmp_path / f"{ranks}.npz", which)
    with np.load(tmp_path / "1.npz") as one:
        for ranks in (2, 3):
            with np.load(tmp_path / f"{ranks}.npz") as many:
                assert len(many.files) == (10 if ranks == 2 else 2)
                for name in many.files:
                    np.testing.assert_allclose(many[name], one[name], rtol=1e-8, atol=1e-7, err_msg=name)
