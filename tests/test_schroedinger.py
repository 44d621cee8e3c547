"""Schroedinger and paraxial equations against exact solutions: what they conserve, and observed orders."""

import npde_fem as npde

import dolfinx
import numpy as np
import pytest
import ufl
from mpi4py import MPI

COMM = MPI.COMM_WORLD
EDGE = [npde.Dirichlet(0.0)]
CUBIC = {
    "implicit-midpoint": npde.ImplicitMidpoint(),
    "strang": npde.Strang(),
    "relaxation": npde.Relaxation(),
}


def discretise(kind, equation, n, lower, upper, bcs=EDGE, mass="consistent"):
    """FD on n cells, or FEM on n cells of the degree that ``kind`` ends in."""
    if kind == "fd":
        return npde.FD(equation, npde.Grid(COMM, (n + 1,), (lower,), (upper,)), bcs)
    shape = () if equation.components == 1 else (equation.components,)
    mesh = dolfinx.mesh.create_interval(COMM, n, (lower, upper))
    return npde.FEM(equation, dolfinx.fem.functionspace(mesh, ("Lagrange", int(kind[-1]), shape)), bcs, mass=mass)


def start(problem, psi):
    """Initial data from a UFL callable (x); of the relaxation scheme's pair (psi, |psi|^2)."""
    if problem.equation.components == 1:
        return npde.Initial(psi)
    return npde.Initial(lambda x: ufl.as_vector([psi(x), abs(psi(x)) ** 2]))


def wave(problem, values):
    """psi of a state, also of the relaxation scheme's pair, as real pairs."""
    return values.reshape(-1, problem.equation.components, 2)[:, 0].ravel()


def norm(problem, values):
    out = np.zeros_like(values)
    problem.gram_times(values, out)
    return float(np.sum(wave(problem, values) * wave(problem, out)))


def energy(problem, values, potential, g):
    """Of a grid the sum that its scheme conserves; of a mesh the integral."""
    psi = wave(problem, values).view(np.complex128)
    if problem.method == "fem":
        density = npde.physics.schrodinger_energy(potential, g=g)
        whole = (lambda u, x, t: density(u[0], x, t)) if problem.equation.components > 1 else density
        return float(npde.integral(npde.Solution(problem, 0.0, values), whole))
    x, h = problem.coordinates()[:, 0], problem.grid.spacing[0]
    local = potential(x[None]) * np.abs(psi) ** 2 + g / 2 * np.abs(psi) ** 4
    return float(np.sum(np.abs(np.diff(psi)) ** 2) / (2 * h) + h * np.sum(local))


def trap(x, t=0):
    return x[0] ** 2 / 2


def off_centre(x):
    return np.pi**-0.25 * ufl.exp(-((x[0] - 1) ** 2) / 2 + 0.5j * x[0])


def equation_of(scheme, potential=0.0, g=0.0):
    kind = npde.physics.relaxed_schrodinger if scheme.name == "relaxation" else npde.physics.schrodinger
    return kind(potential, g=g)


# -- what is conserved -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "scheme", "g"),
    [
        ("fd", "crank-nicolson", 0.0),
        ("fem 2", "crank-nicolson", 0.0),
        ("fd", "implicit-midpoint", 2.0),
        ("fem 2", "implicit-midpoint", 2.0),
        ("fd", "strang", 2.0),
        ("fem 1 lumped", "strang", 2.0),
        ("fd", "relaxation", 2.0),
        ("fem 2", "relaxation", 2.0),
    ],
)
def test_the_norm_stays_over_1000_steps(kind, scheme, g):
    """To 1e-10, with default tolerances. A lumped mass is what makes the flow at the nodes conserve it on a mesh."""
    scheme, lumped = npde.scheme_named(scheme), kind.endswith("lumped")
    equation = equation_of(scheme, trap, g)
    n, mass = 25 if kind == "fem 2" else 50, "lumped" if lumped else "consistent"
    problem = discretise(kind.removesuffix(" lumped"), equation, n, -7.0, 7.0, mass=mass)
    if lumped:

        def size(values):
            out = np.zeros_like(values)
            problem.mass_times(values, out)
            return values @ out
    else:

        def size(values):
            return norm(problem, values)

    u0 = problem.initial(start(problem, off_centre))
    u0[problem.constrained] = 0.0
    solution = npde.solve(problem, u0, t=(0, 10), dt=0.01, scheme=scheme, rescue=None)
    assert len(solution.steps) == 1000
    assert np.abs(solution.values - u0).max() > 0.1
    assert size(solution.values) == pytest.approx(size(u0), rel=1e-10)


@pytest.mark.parametrize("kind", ["fd", "fem 4"])
@pytest.mark.parametrize("scheme", CUBIC)
def test_the_energy_stays_to_the_order_of_the_scheme(kind, scheme):
    """Half the step, a quarter of the drift."""
    scheme, g = CUBIC[scheme], 2.0
    problem = discretise(kind, equation_of(scheme, trap, g), 100 if kind == "fd" else 25, -7.0, 7.0)
    u0 = problem.initial(start(problem, off_centre))
    u0[problem.constrained] = 0.0

    def drift(dt):
        solution = npde.solve(problem, u0, t=(0, 1), dt=dt, scheme=scheme, rescue=None)
        return energy(problem, solution.values, trap, g) - energy(problem, u0, trap, g)

    coarse, fine = drift(0.02), drift(0.01)
    assert 1e-8 < abs(fine) < 1e-3 and coarse / fine == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("kind", ["fd", "fem 4"])
def test_the_energy_of_a_linear_equation_stays(kind):
    problem = discretise(kind, npde.physics.schrodinger(trap), 100 if kind == "fd" else 25, -7.0, 7.0)
    u0 = problem.initial(start(problem, off_centre))
    u0[problem.constrained] = 0.0
    solution = npde.solve(problem, u0, t=(0, 5), dt=0.05, rescue=None)
    assert energy(problem, solution.values, trap, 0.0) == pytest.approx(energy(problem, u0, trap, 0.0), rel=1e-11)


# -- exact solutions -------------------------------------------------------------------------------------------


def packet(x, t):
    """A free packet of width 1 and velocity 2, spreading (hbar = m = 1)."""
    spread = 1 + 1j * t
    return ufl.exp(-((x[0] - 2 * t) ** 2) / (2 * spread) + 2j * x[0] - 2j * t) / ufl.sqrt(spread)


def soliton(x, t):
    """i psi_t = -psi_xx / 2 - |psi|^2 psi: height 1.2, velocity 1 (Zakharov and Shabat 1972)."""
    a, v = 1.2, 1.0
    return a / ufl.cosh(a * (x[0] - v * t)) * ufl.exp(1j * (v * x[0] + (a**2 - v**2) * t / 2))


EXACT = {"packet": (packet, 0.0, (-8.0, 9.0)), "soliton": (soliton, -1.0, (-14.0, 15.0))}


def errors(kind, name, scheme, runs, t):
    """L2 errors of psi for (cells, dt) in ``runs``."""
    exact, g, (lower, upper) = EXACT[name]
    found = []
    for n, dt in runs:
        problem = discretise(kind, equation_of(scheme, g=g), n, lower, upper)
        u0 = start(problem, lambda x: exact(x, 0.0))
        solution = npde.solve(problem, u0, t=(0, t), dt=dt, scheme=scheme, rescue=None)
        plain = discretise(kind, npde.physics.schrodinger(), n, lower, upper)
        found.append(plain.error(wave(problem, solution.values), exact, t)[0])
    return np.array(found)


@pytest.mark.parametrize(
    ("kind", "cells", "order"), [("fd", 100, 2), ("fem 1", 100, 2), ("fem 2", 50, 3), ("fem 4", 20, 5)]
)
@pytest.mark.parametrize("name", EXACT)
def test_order_in_space(name, kind, cells, order):
    cells *= 1 if name == "packet" else 2
    scheme = npde.CrankNicolson() if name == "packet" else npde.ImplicitMidpoint()
    one, two = errors(kind, name, scheme, [(cells, 0.002), (2 * cells, 0.002)], 0.2)
    assert np.log2(one / two) == pytest.approx(order, abs=0.35) and two < 0.02


@pytest.mark.parametrize("method", ["fd", "fem"])
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("packet", npde.CrankNicolson()),
        ("packet", npde.SDIRK2()),
        ("soliton", npde.CrankNicolson()),
        *(("soliton", scheme) for scheme in CUBIC.values()),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_order_in_time(method, name, scheme):
    """On a mesh against the exact solution; on a grid, whose own error is larger, against small steps on it."""
    steps = (0.08, 0.04, 0.02)
    if method == "fem":
        found = errors("fem 4", name, scheme, [(60 if name == "packet" else 150, dt) for dt in steps], 0.4)
    else:
        exact, g, (lower, upper) = EXACT[name]
        problem = discretise("fd", equation_of(scheme, g=g), 150, lower, upper)
        u0 = problem.initial(start(problem, lambda x: exact(x, 0.0)))

        def final(dt):
            return wave(problem, npde.solve(problem, u0, t=(0, 0.4), dt=dt, scheme=scheme, rescue=None).values)

        reference = final(0.0025)
        found = np.array([np.linalg.norm(final(dt) - reference) for dt in steps])
    np.testing.assert_allclose(np.log2(found[:-1] / found[1:]), 2, atol=0.12)


@pytest.mark.parametrize("kind", ["fd", "fem 4"])
def test_a_coherent_state_swings_without_a_change_of_shape(kind):
    """One period of the harmonic oscillator; the phase is that of the ground state and of the classical action."""
    a = 2.0

    def coherent(x, t):
        real = -((x[0] - a * ufl.cos(t)) ** 2) / 2
        phase = t / 2 + a * x[0] * ufl.sin(t) - a**2 / 4 * ufl.sin(2 * t)
        return np.pi**-0.25 * ufl.exp(real - 1j * phase)

    problem = discretise(kind, npde.physics.schrodinger(trap), 800 if kind == "fd" else 40, -8.0, 8.0)
    times = [np.pi / 3, np.pi, 2 * np.pi]
    solution = npde.solve(
        problem, start(problem, lambda x: coherent(x, 0.0)), t=(0, times[-1]), dt=np.pi / 600, observe=times
    )
    for t, values in zip(times, solution.states, strict=True):
        assert problem.error(values, coherent, t)[0] < 6e-4 * (1 + t)
        assert problem.error(-values, coherent, t)[0] > 1.9


# -- beams -----------------------------------------------------------------------------------------------------


def test_gaussian_beam():
    """psi = q0 / q exp(i k r^2 / (2 q)) with the complex beam parameter q = z - i k w0^2 / 2 (Kogelnik and Li 1966)."""
    k, waist = 10.0, 1.0
    reach = k * waist**2 / 2

    def beam(x, z):
        q = z - 1j * reach
        return -1j * reach / q * ufl.exp(1j * k * ufl.dot(x, x) / (2 * q))

    mesh = dolfinx.mesh.create_rectangle(COMM, [[-4, -4], [4, 4]], (16, 16), dolfinx.mesh.CellType.quadrilateral)
    on_mesh = npde.FEM(npde.physics.paraxial(k), dolfinx.fem.functionspace(mesh, ("Lagrange", 3)), EDGE)
    on_grid = npde.FD(npde.physics.paraxial(k), npde.Grid(COMM, (81, 81), (-4, -4), (4, 4)), EDGE)
    size = waist * np.sqrt(np.pi / 2)
    for problem, tolerance in ((on_mesh, 5e-4), (on_grid, 5e-3)):
        u0 = npde.Initial(lambda x: beam(x, 0.0))
        solution = npde.solve(problem, u0, t=(0, reach), dt=reach / 40)
        assert problem.error(solution.values, beam, reach)[0] < tolerance * size


def test_a_lens_focuses_where_it_should():
    """A slab of thickness d with n^2 = 1 - (g x)^2 is a lens of focal length f = 1 / (g sin(g d)), g d small.

    Exact is its matrix (Kogelnik and Li 1966, table I); a thin lens has the waist of a beam with Rayleigh length z_R
    at f / (1 + (f / z_R)^2) behind it.
    """
    k, width, g, d = 40.0, 1.0, 0.28, 1.0
    reach = k * width**2 / 2

    def index(x, z):
        return ufl.sqrt(1 - ufl.conditional(ufl.lt(z, d), g**2, 0.0) * x[0] ** 2)

    problem = discretise("fd", npde.physics.paraxial(k, index), 340, -3.4, 3.4)
    z = np.linspace(8.0, 11.0, 31)
    u0 = npde.Initial(lambda x: ufl.exp(-((x[0] / width) ** 2)))
    solution = npde.solve(problem, u0, t=(0, z[-1]), dt=0.02, scheme=npde.Strang(), observe=z)
    middle = np.argmin(np.abs(problem.coordinates()[:, 0]))
    brightness = np.abs(solution.states.view(np.complex128)[:, middle]) ** 2
    top = np.argmax(brightness)
    curve = np.polyfit(z[top - 4 : top + 5] - z[top], brightness[top - 4 : top + 5], 2)
    focus = z[top] - curve[1] / (2 * curve[0])

    q = -1j * reach
    q = (np.cos(g * d) * q + np.sin(g * d) / g) / (-g * np.sin(g * d) * q + np.cos(g * d))
    assert focus == pytest.approx(d - q.real, rel=2e-3)
    assert brightness[top] == pytest.approx(np.sqrt(reach / -q.imag), rel=2e-3)
    f = 1 / (g * np.sin(g * d))
    assert focus - d / 2 == pytest.approx(f / (1 + (f / reach) ** 2), rel=0.02)


# -- the breather ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def breather():
    """Fourier coefficients of the state at pi / 2, by a split-step method of fourth order (Yoshida 1990)."""
    n, steps = 512, 3000
    x, k = -5 + 10 * np.arange(n) / n, 2 * np.pi * np.fft.fftfreq(n, 10 / n)
    outer = 1 / (2 - 2 ** (1 / 3))
    parts = [w * np.pi / 2 / steps for w in (outer, 1 - 2 * outer, outer)]
    kinetic = [np.exp(-0.5j * k**2 * dt) for dt in parts]
    u = 2 / np.cosh(x) + 0j
    for _ in range(steps):
        for dt, spread in zip(parts, kinetic, strict=True):
            u *= np.exp(0.5j * dt * np.abs(u) ** 2)
            u = np.fft.ifft(spread * np.fft.fft(u))
            u *= np.exp(0.5j * dt * np.abs(u) ** 2)
    return k, np.fft.fft(u) / n


@pytest.mark.parametrize(("kind", "cells", "steps"), [("fd", 3600, 4000), ("fem 4", 160, 3000)])
def test_the_breather_of_raissi(breather, kind, cells, steps):
    """i h_t + h_xx / 2 + |h|^2 h = 0, h(0) = 2 sech x, periodic on [-5, 5], t to pi / 2 (Raissi et al. 2019).

    Its initial data has a kink at the ends, which is what asks for so many steps.
    """
    problem = discretise(kind, npde.physics.schrodinger(g=-1.0), cells, -5.0, 5.0, [npde.Periodic(0)])
    t = np.pi / 2
    solution = npde.solve(
        problem, lambda x: 2 / np.cosh(x[0]), t=(0, t), dt=t / steps, scheme=npde.Strang(), rescue=None
    )
    found, (k, coefficients) = solution.values.view(np.complex128), breather
    exact = np.exp(1j * np.outer(problem.coordinates()[:, 0] + 5, k)) @ coefficients
    assert np.linalg.norm(found - exact) <= 1e-4 * np.linalg.norm(exact)
