import subprocess
import sys
from pathlib import Path

from npde_fem.optimize.tao import HAS_TAO

import pytest

SCRIPTS = Path(__file__).parent / "mpi"


def pytest_collection_modifyitems(items):
    """Where PETSc has complex scalars, skip what is marked as in need of real ones, or is given a method of TAO."""
    for item in [] if HAS_TAO else items:
        mark, given = item.get_closest_marker("real_scalars"), getattr(item, "callspec", None)
        if given is not None and str(given.params.get("method")).startswith("tao-"):
            mark = pytest.mark.real_scalars("PETSc's TAO").mark
        if mark is not None:
            item.add_marker(pytest.mark.skip(reason=f"{mark.args[0]} knows real scalars only"))


@pytest.fixture
def mpirun():
    """Run ``tests/mpi/SCRIPT`` on n ranks with the mpiexec that belongs to this Python; return the finished process.

    A run that fails, or hangs past the timeout, fails the test and shows what it printed.
    """

    def run(n, script, *args, timeout=150):
        mpiexec = Path(sys.executable).with_name("mpiexec")
        if not mpiexec.exists():
            mpiexec = Path("mpiexec")
        command = [str(part) for part in (mpiexec, "-n", n, sys.executable, SCRIPTS / script, *args)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired as late:
            pytest.fail(f"{' '.join(command)} took over {timeout} s\n{late.stdout}\n{late.stderr}")
        if done.returncode:
            pytest.fail(f"{' '.join(command)} returned {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run
