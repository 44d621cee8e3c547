"""The demos run whole, and the main job obeys the physics it claims."""

import os
import re
import subprocess
import sys
from pathlib import Path

import npde_fem as npde
from npde_fem import brain, datasets

import dolfinx
import numpy as np
import pytest
from mpi4py import MPI

COMM = MPI.COMM_WORLD
DEMOS = Path(__file__).parents[1] / "demos"

try:
    import gmsh  # noqa: F401
    import nilearn  # noqa: F401
except (ModuleNotFoundError, OSError) as missing:
    pytest.skip(f"the demos need gmsh and nilearn: {missing}", allow_module_level=True)


def run(demo, *arguments, ranks=1, environment=None):
    """Run a demo on some ranks; return what it printed."""
    command = [sys.executable, DEMOS / demo, *arguments]
    if ranks > 1:
        mpiexec = Path(sys.executable).with_name("mpiexec")
        command = [mpiexec if mpiexec.exists() else "mpiexec", "-n", ranks, *command]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, check=False, env=settings
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_picture(path):
    """A PNG of some 1000 pixels across that is not blank, as its size tells."""
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(header[k : k + 4]) for k in (16, 20))
    assert 900 < width < 3000 and 500 < height < 3000
    assert path.stat().st_size > 50_000


# ------------------------------------------------------------------------------------------------------ the demos


def test_glioma_demo_is_the_same_on_two_ranks(tmp_path):
    tables, learnt = [], []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        printed = run("glioma.py", "--quick", "--output", folder, ranks=ranks)
        check_picture(folder / "glioma_2d.png")
        check_picture(folder / "glioma_2d_learnt.png")
        for method in ("fd", "fem"):
            assert (folder / f"glioma_2d_{method}.bp").is_dir()
        names = {"glioma_2d.png", "glioma_2d_learnt.png", "glioma_2d_fd.bp", "glioma_2d_fem.bp"}
        assert {p.name for p in folder.iterdir()} == names
        tables.append(re.findall(r"^u.*%$", printed, re.MULTILINE))
        learnt.append([float(v) for v in re.findall(r"([-0-9.]+) \+-", printed)])
    assert len(tables[0]) == 3
    assert tables[0] == tables[1]
    assert len(learnt[0]) == 8 and learnt[0] == pytest.approx(learnt[1], rel=1e-3)


def test_glioma_demo_in_3d(tmp_path):
    printed = run(
        "glioma.py",
        "--dim",
        3,
        "--quick",
        "--spacing",
        5,
        "--size",
        6,
        "--days",
        400,
        "--dt",
        10,
        "--output",
        tmp_path,
        ranks=2,
    )
    check_picture(tmp_path / "glioma_3d.png")
    volumes = re.search(r"T2 +([0-9.]+) cm\^3 +([0-9.]+) cm\^3", printed).groups()
    assert float(volumes[0]) > 10
    assert float(volumes[1]) == pytest.approx(float(volumes[0]), rel=0.15)


def test_gray_scott_demo(tmp_path):
    printed = run("gray_scott.py", "--quick", "--output", tmp_path)
    check_picture(tmp_path / "gray_scott.png")
    assert (tmp_path / "gray_scott_fd.bp").is_dir() and (tmp_path / "gray_scott_fem.bp").is_dir()
    # The pattern has grown, and alike on both domains as long as it does not fill them.
    v = [float(value) for value in re.findall(r"v = ([0-9.]+)", printed)]
    assert len(v) == 2 and min(v) > 0.01


def made_up_assay(folder):
    """Files like the measured ones: a wound that closes."""
    rng = np.random.default_rng(1)
    for density in datasets.SCRATCH_ASSAY_SHA256:
        rows = ["Position,Dens1,Dens2,Dens3,AvgDens,Time"]
        for time in (0, 12, 24, 36, 48):
            for position in np.arange(25, 1900, 50):
                crowd = 1.7e-3 / (1 + (34 / density - 1) * np.exp(-0.05 * time))
                level = crowd * (1 - np.exp(-time / 60 - abs(position - 950) / 200))
                wells = level * (1 + 0.05 * rng.standard_normal(3))
                rows.append(",".join(f"{float(v):.9e}" for v in (position, *wells, wells.mean(), time)))
        (folder / f"CellDensity_{density}.csv").write_text("\n".join(rows) + "\n")


def test_scratch_assay_demo(tmp_path):
    measured = os.environ.get("NPDE_FEM_DATA")
    if measured is None:
        made_up_assay(tmp_path)
    where = ("--data", measured or tmp_path, "--output", tmp_path / "out")
    printed = run("scratch_assay.py", "--quick", "--densities", 10, 20, *where)
    check_picture(tmp_path / "out" / "scratch_assay.png")
    rows = re.findall(r"^(?:10|20),000 cells +(?:fisher|porous-fisher) +(?:FEM|FD) .*um\^2/h.*$", printed, re.MULTILINE)
    assert len(rows) == 2 * 2 * 2 + 2 * 2  # K fitted by both methods, then known
    assert float(re.search(r"FEM and FD differ by ([0-9.]+) standard errors", printed)[1]) < 1
    assert len(re.findall(r"^(?:fisher|porous-fisher) +[0-9.]+ +\d+% +[0-9.]+ +\d+%$", printed, re.MULTILINE)) == 4
    if measured:  # as Jin et al. (2016) found: D at a full layer depends on the initial density less for porous-Fisher
        spreads = re.findall(r"^(?:fisher|porous-fisher) +([0-9.]+) +\d+% +([0-9.]+)", printed, re.MULTILINE)
        fisher, porous = ([float(value) for value in pair] for pair in spreads[:2])
        assert porous[0] < 0.8 * fisher[0] and porous[1] < 0.8 * fisher[1]


def test_scratch_assay_demo_says_how_to_get_the_data(tmp_path):
    printed = run("scratch_assay.py", "--data", tmp_path, "--output", tmp_path / "out")
    assert "cannot be had" in printed and "Download" in printed and "CellDensity_10.csv" in printed
    assert not (tmp_path / "out").exists()


def check_film(path):
    """A GIF of several frames that is small enough to be shown on a page."""
    data = path.read_bytes()
    assert data.startswith(b"GIF89a")
    assert data.count(b"\x21\xf9\x04") > 20  # graphic control extensions, one a frame
    assert 50_000 < len(data) < 1_500_000


def numbers(pattern, printed):
    """The numbers that the groups of a pattern's first match hold; a percentage as a share."""
    found = re.search(pattern, printed)
    assert found, printed
    return [float(value.rstrip("%")) / (100 if value.endswith("%") else 1) for value in found.groups()]


def test_tunnelling_demo(tmp_path):
    printed = run("tunnelling.py", "--quick", "--output", tmp_path, ranks=2)
    check_picture(tmp_path / "tunnelling.png")
    check_film(tmp_path / "tunnelling.gif")
    (expected,) = numbers(r"by theory ([0-9.]+) of", printed)
    fem, changed_fem = numbers(r"FEM, Crank.*tunnelled ([0-9.]+), norm changed by (\S+)", printed)
    fd, changed_fd = numbers(r"FD, Strang.*tunnelled ([0-9.]+), norm changed by (\S+)", printed)
    assert fem == pytest.approx(expected, rel=0.02) and fd == pytest.approx(expected, rel=0.2)
    assert max(changed_fem, changed_fd) < 1e-12


def test_double_slit_demo(tmp_path):
    printed = run("double_slit.py", "--quick", "--output", tmp_path)
    check_picture(tmp_path / "double_slit.png")
    dark, fraunhofer = numbers(r"dark fringe at ([0-9.]+) degrees; Fraunhofer: ([0-9.]+)", printed)
    assert dark == pytest.approx(fraunhofer, rel=0.06)
    assert numbers(r"slope computed errs by ([0-9.]+%)", printed)[0] < 0.05
    assert numbers(r"slope of the incoming wave errs by ([0-9.]+%)", printed)[0] < 0.15


def test_lens_demo(tmp_path):
    printed = run("lens.py", "--quick", "--output", tmp_path)
    check_picture(tmp_path / "lens.png")
    rows = re.findall(r"^[0-9.]+ +[0-9.]+ +\d+ .*%$", printed, re.MULTILINE)
    assert len(rows) == 3
    for row in rows:
        wave, helmholtz, fd, fem = (float(value) / 100 for value in re.findall(r"([0-9.]+)%", row))
        assert wave < 0.12 and helmholtz < 0.18 and fd < 0.01 and fem < 0.01
    assert 1.7 < numbers(r"error of u grows as the angle to the power ([0-9.]+)", printed)[0] < 2.6
    computed, rays = numbers(r"focus .* at z = ([0-9.]+); rays ([0-9.]+)", printed)
    assert computed == pytest.approx(rays, rel=0.06)


@pytest.mark.parametrize(("method", "ranks"), [("fem", 2), ("fd", 1)])
def test_inverse_design_demo(tmp_path, method, ranks):
    printed = run("inverse_design.py", "--quick", "--method", method, "--output", tmp_path, ranks=ranks)
    check_picture(tmp_path / "inverse_design.png")
    assert min(numbers(r"Taylor test of the gradient: rates ([0-9.]+) and ([0-9.]+)", printed)) > 1.9
    light, gain = numbers(r"air and material: ([0-9.]+), that is ([0-9.]+) times", printed)
    assert light > 5 and gain > 4


def test_waves_demo(tmp_path):
    printed = run("waves.py", "--quick", "--output", tmp_path, ranks=2)
    check_picture(tmp_path / "waves.png")
    check_film(tmp_path / "waves.gif")
    assert numbers(r"closed, the energy stays within (\S+)", printed)[0] < 0.01
    for method in ("FEM", "FD"):
        assert numbers(rf"{method}, open: .* energy in the end ([0-9.]+) of", printed)[0] < 0.01
    assert numbers(r"FD differs from FEM by ([0-9.]+%) before", printed)[0] < 0.25


def test_wave_memory_demo(tmp_path):
    pytest.importorskip("torch")
    printed = run("wave_memory.py", "--quick", "--output", tmp_path)
    check_picture(tmp_path / "wave_memory.png")
    assert numbers(r"within (\S+) of that in the beginning", printed)[0] < 1e-9
    assert numbers(r"200 steps differ by (\S+)", printed)[0] < 1e-10
    assert 1e-3 < numbers(r"wave: the derivative through 1000 steps is (\S+) of", printed)[0] < 1e3
    for cell in ("stock", "radius 0.9", "radius 1"):
        assert numbers(rf"Elman, {cell}: the derivative through 1000 steps is (\S+) of", printed)[0] < 1e-20


def test_network_on_other_grids_demo(tmp_path):
    pytest.importorskip("torch")
    printed = run("network_on_other_grids.py", "--quick", "--output", tmp_path)
    check_picture(tmp_path / "network_on_other_grids.png")
    for name in ("diffusion", "growth", "competition"):
        assert numbers(rf"{name}: (\S+) % off", printed)[0] < 2
    for points in (32, 64, 128):
        assert numbers(rf"on {points} x {points} points: error (\S+)", printed)[0] < 2e-3
    on_discs = [numbers(rf"on a disc of {nodes} nodes: error (\S+)", printed)[0] for nodes in (81, 289, 1089)]
    assert on_discs[0] < 5e-3 and on_discs[2] < on_discs[0] / 4


def test_digits_as_physics_demo(tmp_path):
    pytest.importorskip("sklearn")
    printed = run("digits_as_physics.py", "--quick", "--output", tmp_path)
    for name in ("digits_as_physics", "digits_as_physics_stable", "digit_in_time"):
        check_picture(tmp_path / f"{name}.png")
    stock, generated, stable = (
        numbers(rf"(?m)^{name} +\d+ numbers: ([0-9.]+) %", printed)[0]
        for name in ("stock network", "generated network", "stable, without N")
    )
    assert min(stock, generated) > 90 and stable > 80
    assert numbers(r"network differ by (\S+)\.", printed)[0] < 1e-12
    least, *shares = numbers(r"(?m)^stable +(\S+) +(\S+) %, (\S+) %, (\S+) %", printed)
    assert least > 0 and max(shares) < 1e-6


# -------------------------------------------------------------------------------------------------- size of a tumour


@pytest.mark.parametrize("dim", [2, 3])
def test_size_on_a_mesh_is_exact_for_linear_functions(dim):
    make = {2: dolfinx.mesh.create_unit_square, 3: dolfinx.mesh.create_unit_cube}[dim]
    mesh = make(COMM, *(5, 4, 3)[:dim])
    problem = npde.FEM(npde.physics.heat(), dolfinx.fem.functionspace(mesh, ("Lagrange", 1)))
    if dim == 2:  # x + y / 3 > 0.4 leaves out a trapezium
        slope, threshold, share = (1.0, 1 / 3), 0.4, 1 - (0.4 + 0.4 - 1 / 3) / 2
    else:  # x + y + z > 1 leaves out a corner of the cube
        slope, threshold, share = (1.0, 1.0, 1.0), 1.0, 5 / 6
    values = problem.initial(lambda x: np.tensordot(slope, x[:dim], 1))
    assert brain.tumour_size(problem, values, threshold) == pytest.approx(share, abs=1e-13)
    assert brain.tumour_size(problem, values, -1.0) == pytest.approx(1.0, abs=1e-13)
    assert brain.tumour_size(problem, values, 9.0) == 0
    flat = np.full_like(values, 0.5)
    assert brain.tumour_size(problem, flat, 0.4) == pytest.approx(1.0, abs=1e-13)
    assert brain.tumour_size(problem, flat, 0.6) == 0


def made_up_brain(shape, white, spacing=1.0):
    """Tissue in a box with one layer of nothing around it; ``white`` of coordinates gives the share of white matter."""
    dim = len(shape)
    mask = np.zeros(shape, dtype=bool)
    mask[(slice(1, -1),) * dim] = True
    lower = -spacing * (np.array(shape) - 1) / 2
    x = np.meshgrid(*(low + spacing * np.arange(n) for low, n in zip(lower, shape, strict=True)), indexing="ij")
    share = np.where(mask, white(*x), 0.0)
    height = 0.0 if dim == 2 else None
    template = np.zeros(shape, np.float32)
    return datasets.Brain(share, mask - share, mask, template, lower, np.full(dim, spacing), height)


def test_size_of_a_disc_by_both_methods():
    tissue = made_up_brain((52, 52), lambda x, y: np.ones_like(x))

    def cone(x):
        return 1 - np.hypot(x[0] - 0.3, x[1] + 0.2) / 30

    for problem in (
        brain.glioma_fd(COMM, tissue),
        brain.glioma_fem(COMM, tissue, 1.5),
        brain.glioma_fem(COMM, tissue, 3, 2),
    ):
        size = brain.tumour_size(problem, problem.initial(cone), 0.5)
        assert size == pytest.approx(np.pi * 15**2, rel=0.01)


def test_size_of_a_ball_by_both_methods():
    tissue = made_up_brain((26, 26, 26), lambda x, y, z: np.ones_like(x), 2.0)

    def cone(x):
        return 1 - np.linalg.norm(x, axis=0) / 30

    for problem in (brain.glioma_fd(COMM, tissue), brain.glioma_fem(COMM, tissue, 2.5)):
        size = brain.tumour_size(problem, problem.initial(cone), 0.5)
        assert size == pytest.approx(4 / 3 * np.pi * 15**3, rel=0.02)


# ------------------------------------------------------------------------------------------------------- physics


@pytest.fixture(scope="module")
def tissue():
    """The default slice at 2 mm."""
    return brain.anatomy(2, 2)


@pytest.fixture(scope="module")
def problems(tissue):
    return brain.glioma_fd(COMM, tissue), brain.glioma_fem(COMM, tissue, 4.0)


def test_anatomy_is_tissue(tissue):
    assert np.all((tissue.white + tissue.grey)[tissue.mask] >= 0.25)
    ventricle = tuple(np.rint((np.array([13.0, -15.0]) - tissue.lower) / tissue.spacing).astype(int))
    assert not tissue.mask[ventricle]
    assert datasets.brain(2, 2).mask[ventricle]


def test_mass_grows_by_the_reaction_alone(tissue, problems):
    for problem in problems:
        growth = brain.simulate(problem, brain.seed(tissue), np.arange(0, 101, 5.0), dt=5.0)
        mass = [problem.total(values)[0] for values in growth.solution.states]
        reaction, state, rate = [], problem.new_state(), np.zeros(problem.n_owned)
        for values in growth.solution.states:
            problem.load(values, state)
            problem.rate(0.0, state, rate, "source")
            reaction.append(rate.sum())
        gained = 5.0 * (np.array(reaction[1:]) + reaction[:-1]) / 2
        np.testing.assert_allclose(np.diff(mass), gained, rtol=1e-7)
        assert mass[-1] > 2 * mass[0]


def test_no_cell_passes_the_staircase_surface(tissue):
    problem = brain.glioma_fd(COMM, tissue, brain.glioma_equation(tissue, rate=0.0))
    u0 = brain.seed(tissue, centre=(61, -21), width=8)  # at the surface of the brain
    solution = npde.solve(problem, u0, (0, 200), 1.0, npde.RK4(), observe=[0, 200])
    before, after = (problem.total(values)[0] for values in solution.states)
    assert after == pytest.approx(before, rel=1e-13)
    assert np.abs(solution.states[1] - solution.states[0]).max() > 0.1
    assert solution.values.min() > -1e-12


def test_fd_and_fem_approach_each_other():
    coarse, fine = brain.compare_resolutions(COMM, 2, (4, 2), days=600)
    assert fine.relative < 0.05 and fine.relative < coarse.relative / 2.5
    for threshold in (brain.T1GD, brain.T2):
        assert fine.in_size(threshold) < 0.06
        assert fine.in_size(threshold) < coarse.in_size(threshold) / 2


def test_a_tumour_grows_faster_along_white_matter():
    tissue = made_up_brain((302, 8), lambda x, y: np.where(x < 0, 1.0, 0.0))
    x = tissue.axes[0]
    problem = brain.glioma_fd(COMM, tissue)
    growth = brain.simulate(problem, brain.seed(tissue, (0, 0)), np.arange(0, 601, 100.0))

    def fronts(values):
        """Where u crosses 1/2, left and right."""
        u = growth.problem.function(values).array[:, 4]
        above = np.flatnonzero(u > 0.5)
        left, right = above[0], above[-1]
        return (
            np.interp(0.5, u[[left - 1, left]], x[[left - 1, left]]),
            np.interp(-0.5, -u[[right, right + 1]], x[[right, right + 1]]),
        )

    (left, right), (left_later, right_later) = (fronts(growth.state(day)) for day in (400.0, 600.0))
    white, grey = (left - left_later) / 200, (right_later - right) / 200
    # A front approaches its speed 2 sqrt(r D) from below, and slowly.
    for speed, diffusivity in ((white, brain.D_WHITE), (grey, brain.D_GREY)):
        assert 0.8 < speed / (2 * np.sqrt(brain.RATE * diffusivity)) < 1.02
    assert white / grey == pytest.approx(np.sqrt(5), rel=0.1)


def test_sampler_reproduces_functions_and_marks_the_outside(problems):
    _, problem = problems
    points = np.array([[31.0, -6.0], [20.3, 30.1], [0.0, 500.0]])
    values = problem.initial(lambda x: 0.01 * x[0] - 0.002 * x[1])
    found = brain.Sampler(problem, points)(values)
    np.testing.assert_allclose(found[:2], 0.01 * points[:2, 0] - 0.002 * points[:2, 1], atol=1e-12)
    assert np.isnan(found[2])


def test_bad_input_is_named(tissue, problems):
    with pytest.raises(ValueError, match="outside the tissue"):
        brain.seed(tissue, (500, 0))
    with pytest.raises(ValueError, match="centre must be 2"):
        brain.seed(tissue, (0, 0, 0))
    with pytest.raises(ValueError, match="width"):
        brain.seed(tissue, width=-1)
    with pytest.raises(ValueError, match="peak"):
        brain.seed(tissue, peak=2)
    with pytest.raises(ValueError, match="times"):
        brain.simulate(problems[0], 0.1, [0.0])
    with pytest.raises(ValueError, match="dim"):
        brain.anatomy(4)
    with pytest.raises(ValueError, match="outside its bounds"):
        brain.glioma_equation(tissue, grey=-1)


def test_learned_laws_demo(tmp_path):
    measured = os.environ.get("NPDE_FEM_DATA")
    if measured is None:
        made_up_assay(tmp_path)
    printed = run("learned_laws.py", "--quick", "--data", measured or tmp_path, "--output", tmp_path / "out", ranks=2)
    check_picture(tmp_path / "out" / "learned_laws.png")
    for method in ("FEM", "FD"):
        before, after = numbers(rf"{method}: loss ([0-9.]+) -> ([0-9.]+)", printed)
        assert after < 0.5 * before
    assert len(re.findall(r"^(?:fisher|porous-fisher|learnt laws, F\w+) +\d+ +[0-9.]+ +[0-9.]+ ", printed, re.M)) == 4
    assert numbers(r"FEM and FD learnt differ by ([0-9.]+) standard", printed)[0] < 0.5


def test_picture_to_pde_demo_is_the_same_on_an_ensemble(tmp_path):
    found = []
    for ranks, space in ((1, 1), (2, 1), (2, 2)):
        folder = tmp_path / f"{ranks}{space}"
        printed = run("picture_to_pde.py", "--quick", "--ranks", space, "--output", folder, ranks=ranks)
        check_picture(folder / "picture_to_pde.png")
        assert numbers(r"(\d) members", printed) == [ranks / space]
        found.append(numbers(r"loss (\S+), D = (\S+), r = (\S+)", printed))
    assert found[0] == found[1] == found[2]
    assert found[0][0] < 0.1
