"""What installs npde_fem: its metadata, the provider of DOLFINx, make, Docker and CI. Needs no network."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROVIDERS = {"real": "packaging/fenics-dolfinx", "complex": "packaging/fenics-dolfinx-complex"}
"""By the scalars of the PETSc in the wheel."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SECOND_PETSC = {"petsc", "petsc4py", "slepc", "slepc4py"}


def build(source: Path, folder: Path, kind: str) -> Path:
    """Build the project in ``source`` into ``folder``; ``kind`` is "wheel" or "sdist"."""
    folder.mkdir(parents=True, exist_ok=True)
    program = f"import hatchling.build as b; print(b.build_{kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def requirements(wheel: Path) -> dict[str, Requirement]:
    """Return what a wheel requires without extras, by name."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Metadata.from_email(archive.read(name), validate=True)
    needed = (r for r in metadata.requires_dist or [] if r.marker is None or "extra" not in str(r.marker))
    return {canonicalize_name(r.name): r for r in needed}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheels of npde_fem ("npde") and of the providers."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = {"npde": ROOT, **{scalars: ROOT / provider for scalars, provider in PROVIDERS.items()}}
    return {name: build(source, folder / name, "wheel") for name, source in sources.items()}


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    """The checks that come before an installation."""
    spec = importlib.util.spec_from_file_location("preflight", ROOT / "packaging" / "preflight.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """An empty virtual environment in which distributions are said to be installed that are not."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(command, check=True)
        self.python = folder / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = folder / "lib" / version / "site-packages"

    def has(self, name: str, version: str) -> None:
        """Leave the traces of an installed distribution."""
        info = self.packages / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "INSTALLER").write_text("conda\n")
        (info / "RECORD").write_text("")

    def resolve(self, *what: Path) -> tuple[set[str], str]:
        """Let pip resolve, with no registry: what it would install, and what it said."""
        pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(self.python)]
        options = ["install", "--dry-run", "--no-index", "--disable-pip-version-check", *map(str, what)]
        done = subprocess.run([*pip, *options], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        line = re.search(r"^Would install (.*)$", done.stdout, re.MULTILINE)
        return (set(line[1].split()) if line else set()), done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path, wheels: dict[str, Path]) -> Machine:
    """A machine with all that npde_fem needs but FEniCSx."""
    machine = Machine(tmp_path / "machine")
    for name in requirements(wheels["npde"]):
        if name != "fenics-dolfinx":
            machine.has(name, "9999")
    return machine


def test_dependencies_leave_petsc_to_dolfinx(wheels: dict[str, Path]) -> None:
    needed = requirements(wheels["npde"])
    assert not needed.keys() & SECOND_PETSC
    assert not [name for name in needed if name.startswith("dolfinx-solver")]
    for version in ("0.11.0", "0.11.0.post0", "0.12.0"):
        assert needed["fenics-dolfinx"].specifier.contains(version)
    assert not needed["fenics-dolfinx"].specifier.contains("0.10.0")


@pytest.mark.parametrize("scalars", PROVIDERS)
def test_provider_is_the_name_and_one_dependency(wheels: dict[str, Path], scalars: str) -> None:
    npde, provider = wheels["npde"], wheels[scalars]
    name, version = provider.name.split("-")[:2]
    assert canonicalize_name(name) == "fenics-dolfinx"
    assert requirements(npde)["fenics-dolfinx"].specifier.contains(version)
    needed = requirements(provider)
    assert list(needed) == [f"dolfinx-solver-{scalars}"]
    specifier = needed[f"dolfinx-solver-{scalars}"].specifier
    assert [v for v in ("0.10.0", "0.11.0", "0.11.0.post0", "0.12.0") if specifier.contains(v)] == [
        "0.11.0",
        "0.11.0.post0",
    ]
    with zipfile.ZipFile(provider) as archive:
        assert all(".dist-info/" in name for name in archive.namelist())


@pytest.mark.parametrize("version", ["0.11.0", "0.11.0.post0"])
def test_plain_install_where_fenicsx_is_there(machine: Machine, wheels: dict[str, Path], version: str) -> None:
    machine.has("fenics-dolfinx", version)
    would, said = machine.resolve(wheels["npde"])
    assert would == {f"npde-fem-{PROJECT['version']}"}, said


@pytest.mark.parametrize("version", [None, "0.10.0"])
def test_plain_install_refused_without_fenicsx(machine: Machine, wheels: dict[str, Path], version: str | None) -> None:
    if version is not None:
        machine.has("fenics-dolfinx", version)
    would, said = machine.resolve(wheels["npde"])
    assert not would
    assert "fenics-dolfinx>=0.11" in said


@pytest.mark.parametrize("scalars", PROVIDERS)
def test_one_command_with_the_provider(machine: Machine, wheels: dict[str, Path], scalars: str) -> None:
    machine.has(f"dolfinx-solver-{scalars}", "0.11.0.post0")
    would, said = machine.resolve(wheels[scalars], wheels["npde"])
    assert would == {"fenics-dolfinx-0.11.0", f"npde-fem-{PROJECT['version']}"}, said


def test_wheel_and_sdist_hold_the_sources(wheels: dict[str, Path], tmp_path: Path) -> None:
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "npde_fem").rglob("*.py")}
    sources |= {"npde_fem/py.typed"}
    with zipfile.ZipFile(wheels["npde"]) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "npde = npde_fem.cli:main" in archive.read(entry_points).decode()
    assert sources <= names
    assert all(name.startswith("npde_fem/") or ".dist-info/" in name for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)

    sdist = build(ROOT, tmp_path, "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert sources | {"README.md", "LICENSE", "CITATION.cff", "Makefile"} <= files
    assert {f"{provider}/pyproject.toml" for provider in PROVIDERS.values()} <= files
    assert not [name for name in files if name.startswith((".venv", "figures"))]
    with zipfile.ZipFile(build(unpacked, tmp_path / "again", "wheel")) as archive:
        assert set(archive.namelist()) == names


def test_preflight_passes_here(installer: ModuleType) -> None:
    assert installer.check_python(sys.version_info) is None
    assert installer.check_python((3, 12, 0)) is None
    assert installer.check_platform("Linux", "x86_64", ("glibc", "2.34")) is None
    assert installer.check_platform("Linux", "x86_64", ("", "")) is None


def test_preflight_says_what_is_wrong_with_python(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    old = installer.check_python((3, 11, 7))
    assert "3.12" in old and "3.11.7" in old and "PYTHON=" in old
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    assert "python3-venv" in installer.check_venv()


def test_preflight_says_which_platform(installer: ModuleType) -> None:
    for system, machine, libc in (
        ("Darwin", "arm64", ("", "")),
        ("Linux", "aarch64", ("glibc", "2.36")),
        ("Linux", "x86_64", ("glibc", "2.31")),
    ):
        message = installer.check_platform(system, machine, libc)
        assert system in message and machine in message and libc[1] in message and "conda" in message


def test_preflight_says_what_is_wrong_with_the_compiler(installer: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "Python.h").write_text("#error no use\n")
    assert "no-such-cc" in installer.check_compiler(["no-such-cc"], str(tmp_path))
    assert "python3-dev" in installer.check_compiler([sys.executable], str(tmp_path / "empty"))
    assert "cannot build" in installer.check_compiler(["false"], str(tmp_path))


def test_preflight_stops_with_one_message() -> None:
    env = {**os.environ, "CC": "no-such-cc -O2"}
    script = str(ROOT / "packaging" / "preflight.py")
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no-such-cc" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("scalars", PROVIDERS)
def test_make_installs_no_more_than_it_must(tmp_path: Path, scalars: str) -> None:
    provider = PROVIDERS[scalars]
    for name in ("Makefile", "pyproject.toml", f"{provider}/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    target, environment = {"real": ("install", ".venv"), "complex": ("test-complex", ".venv-complex")}[scalars]
    module, stamp = tmp_path / "npde_fem" / "a.py", tmp_path / environment / ".installed"
    module.parent.mkdir()
    module.touch()
    everything = f'{environment}/bin/pip install ./{provider} ".[test]"'

    def pip() -> list[str]:
        done = subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "pip install" in line]

    def changed(path: Path, later: int) -> None:
        os.utime(path, (stamp.stat().st_mtime + later,) * 2)

    assert pip() == [everything]
    stamp.parent.mkdir()
    stamp.touch()
    assert pip() == []
    changed(module, 1)
    (quick,) = pip()
    assert "--no-deps" in quick and quick.endswith(" .")
    changed(tmp_path / "pyproject.toml", 1)
    assert pip() == [everything]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_says_that_there_is_no_such_python(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "packaging/fenics-dolfinx/pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "npde_fem").mkdir()
    command = ["make", "install", "PYTHON=no-such-python"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no-such-python" in done.stderr and "3.12" in done.stderr and "PYTHON=" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_runs_nothing_from_outside_the_environment() -> None:
    recipes = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t")]
    assert not [line for line in recipes if re.match(r"(\w+=\w+ )*(python3?|pip|pytest|ruff|mypy)\b", line)]


def test_dockerfile_installs_as_a_user_does() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text().replace("\\\n", "")
    steps = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    assert steps[0] == ["FROM", "debian:trixie-slim"]
    assert {word for word, _ in steps} <= {"FROM", "COPY", "RUN", "USER", "WORKDIR", "ENV", "CMD"}
    words = [word for word, _ in steps]
    runs = [rest for word, rest in steps if word == "RUN"]
    assert "apt-packages.txt" in runs[0] and "apt-get install" in runs[0]
    assert runs[-1].split()[-2:] == ["make", "install"]
    user = words.index("USER")
    assert steps[user][1] != "root"
    assert user < max(k for k, word in enumerate(words) if word == "RUN")
    folder = steps[words.index("WORKDIR")][1]
    assert f"PATH={folder}/.venv/bin:$PATH" in steps[words.index("ENV")][1]


def test_ci_and_docker_read_one_list_of_debian_packages() -> None:
    ci, docker = ROOT / ".ci" / "run", ROOT / "docker" / "Dockerfile"
    if not ci.exists():
        pytest.skip(".ci is not part of a source distribution")
    for script in (ci, docker):
        assert "packaging/apt-packages.txt" in script.read_text()
    assert os.access(ci, os.X_OK)
    subprocess.run(["bash", "-n", str(ci)], check=True)
    for target in ("test", "test-complex"):
        assert re.search(rf"^make {target}(\s|$)", ci.read_text(), re.MULTILINE)
    lines = (re.sub(r"#.*", "", line).strip() for line in (ROOT / "packaging" / "apt-packages.txt").open())
    packages = [line for line in lines if line]
    assert len(packages) == len(set(packages))
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", package) for package in packages)


def test_gmsh_finds_every_library_it_is_linked_with() -> None:
    gmsh = pytest.importorskip("gmsh", reason="gmsh is not installed: pip install 'npde-fem[demo]'")
    if shutil.which("ldd") is None:
        pytest.skip("ldd is not installed")
    done = subprocess.run(["ldd", gmsh.libpath], capture_output=True, text=True, check=True)
    assert "not found" not in done.stdout


def test_citation_and_licence_agree_with_the_metadata() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    fields = dict(re.findall(r"^([a-z-]+): (.+)$", citation, re.MULTILINE))
    assert fields["version"] == PROJECT["version"]
    assert fields["license"] == PROJECT["license"] == "MIT"
    assert "npde_fem contributors" in citation
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith("MIT License") and "npde_fem contributors" in licence
