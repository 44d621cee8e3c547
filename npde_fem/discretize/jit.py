"""Compiled code: compiler flags, the cache that names the CPU, and C sources made into functions."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import dolfinx.jit
from mpi4py import MPI

__all__ = ["cache_directory", "compile_c", "compiler", "compiler_flags", "cpu_key", "form_options"]

# -ffast-math would set flush-to-zero for the whole process and lose NaN, so the safe flags stand one by one.
_DEFAULT_FLAGS = (
    "-O3 -march=native -g0 -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math "
    "-freciprocal-math -ffp-contract=fast"
)


def compiler_flags() -> list[str]:
    """Return the C compiler's flags; the environment variable ``NPDE_FEM_CFLAGS`` replaces them."""
    return shlex.split(os.environ.get("NPDE_FEM_CFLAGS", _DEFAULT_FLAGS))


def compiler() -> str:
    """Return the C compiler's path: ``$CC``, else ``cc`` or ``gcc``.

    Raises
    ------
    RuntimeError
        If there is none.
    """
    for name in (os.environ.get("CC"), "cc", "gcc"):
        if name and (path := shutil.which(name)):
            return path
    raise RuntimeError("no C compiler found: install one (Debian: apt install gcc) or name it in the variable CC")


@functools.cache
def cpu_key() -> str:
    """Return a short key of this CPU's model and instruction set.

    Code made by ``-march=native`` must not be shared by unlike nodes of a cluster: it is cached under this key.
    """
    text = platform.machine() + platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
        text += "".join(line for line in lines if line.startswith(("model name", "flags", "Features")))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cache_directory() -> Path:
    """Return the folder for compiled code: ``$XDG_CACHE_HOME/npde_fem/CPU`` (``~/.cache`` by default)."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    flags = hashlib.sha256(" ".join([compiler(), *compiler_flags()]).encode()).hexdigest()[:8]
    return base / "npde_fem" / f"{cpu_key()}-{flags}"


def form_options() -> dict:
    """Return the JIT options with which every DOLFINx form and expression is compiled."""
    return {
        "cffi_extra_compile_args": compiler_flags(),
        "cache_dir": cache_directory() / "ffcx",
        "timeout": 120,
    }


def _wide_vectors() -> list[str]:
    """Return the flag that lets stencils use all of a vector register: they wait for memory, not for the clock."""
    return ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []


def _compile(source: str) -> str:
    """Compile C source to a shared library in the cache unless it is there; return its path."""
    flags = [*_wide_vectors(), *compiler_flags(), "-shared", "-fPIC"]
    folder = cache_directory() / "stencils"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / (hashlib.sha256(f"{flags}{source}".encode()).hexdigest()[:24] + ".so")
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            code, made = Path(scratch) / "stencil.c", Path(scratch) / "stencil.so"
            code.write_text(source)
            command = [compiler(), *flags, "-o", str(made), str(code), "-lm"]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise RuntimeError(f"the C compiler failed:\n{shlex.join(command)}\n{run.stderr}\n{source}")
            code.replace(library.with_suffix(".c"))
            made.replace(library)
    return str(library)


_compile_once = dolfinx.jit.mpi_jit_decorator(_compile)


def compile_c(comm: MPI.Comm, source: str) -> ctypes.CDLL:
    """Compile C source on rank 0 and load it on every rank (collective on ``comm``).

    Parameters
    ----------
    comm
        Communicator whose ranks share the cache's file system, as DOLFINx's own JIT presumes.
    source
        A C translation unit.

    Raises
    ------
    RuntimeError
        On every rank, if there is no compiler or it fails.
    """
    return ctypes.CDLL(_compile_once(comm, source))
