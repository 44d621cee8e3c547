"""Says what this machine lacks for `make install`, before anything is downloaded.

Run by the interpreter that the environment is to be made from. Prints nothing and exits 0 if all is there;
otherwise prints one message and exits 1. Readable by any Python from 2.7 on, so that an old one can say so.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile

PYTHON = (3, 12)
GLIBC = (2, 34)


def check_python(version):
    """Return a message if `version`, a tuple such as (3, 11, 7), is too old, else None."""
    if tuple(version[:2]) >= PYTHON:
        return None
    return (
        "Python %s or newer is needed, but %s is Python %s.\n"
        "Name a newer one, for example: make install PYTHON=python3.12"
        % (dotted(PYTHON), sys.executable, dotted(version[:3]))
    )


def check_platform(system, machine, libc):
    """Return a message if the DOLFINx wheel does not run on this platform, else None.

    The arguments are what `platform.system()`, `platform.machine()` and `platform.libc_ver()` return.
    """
    name, number = libc
    old = name == "glibc" and tuple(int(part) for part in number.split(".")[:2]) < GLIBC
    if system == "Linux" and machine == "x86_64" and not old:
        return None
    found = " ".join(part for part in (system, machine, name, number) if part)
    return (
        "The DOLFINx wheel of PyPI needs Linux on x86_64 with glibc %s or newer; this is %s.\n"
        "Install FEniCSx from conda and type there: pip install .\n"
        "Or use the container of docker/README.md." % (dotted(GLIBC), found)
    )


def check_venv():
    """Return a message if Python cannot make virtual environments, else None."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        return "%s cannot make virtual environments (%s).\nOn Debian and Ubuntu: apt-get install python3-venv" % (
            sys.executable,
            error,
        )
    return None


def check_compiler(command, include):
    """Return a message if FFCx could not compile a Python module here, else None.

    `command` is the compiler and its first arguments, `include` the folder that should hold Python.h.
    """
    if shutil.which(command[0]) is None:
        return (
            "A C compiler is needed: FFCx compiles forms when the program runs. There is no '%s'.\n"
            "On Debian and Ubuntu: apt-get install gcc libc6-dev\n"
            "To use another one: export CC=/path/to/cc" % command[0]
        )
    if not os.path.exists(os.path.join(include, "Python.h")):
        return (
            "The C headers of %s are needed: FFCx compiles forms when the program runs.\n"
            "There is no Python.h in %s.\n"
            "On Debian and Ubuntu: apt-get install python3-dev" % (sys.executable, include)
        )
    folder = tempfile.mkdtemp()
    try:
        source = os.path.join(folder, "probe.c")
        with open(source, "w") as stream:
            stream.write("#include <Python.h>\nint probe(void) { return 0; }\n")
        options = ["-shared", "-fPIC", "-I" + include, "-I" + sysconfig.get_path("platinclude")]
        build = command + options + [source, "-o", os.path.join(folder, "probe.so")]
        done = subprocess.run(build, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    finally:
        shutil.rmtree(folder)
    if done.returncode == 0:
        return None
    return (
        "The C compiler cannot build a Python module. '%s' said:\n%s\n"
        "On Debian and Ubuntu: apt-get install gcc libc6-dev python3-dev"
        % (" ".join(command), done.stdout.decode("utf-8", "replace").strip())
    )


def dotted(version):
    """Return a tuple of numbers as text with dots."""
    return ".".join(str(part) for part in version)


def main():
    """Print the first thing that is missing and return the exit status."""
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    message = (
        check_python(sys.version_info)
        or check_platform(platform.system(), platform.machine(), platform.libc_ver())
        or check_venv()
        or check_compiler(shlex.split(compiler), sysconfig.get_path("include"))
    )
    if message is None:
        return 0
    sys.stderr.write(message + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
