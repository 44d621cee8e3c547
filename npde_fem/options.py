"""PETSc options on the command line, those with the prefix ``npde_``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from petsc4py import PETSc

__all__ = ["inserted", "option_given", "petsc_options"]


def petsc_options(argv: Sequence[str] | None = None) -> list[str]:
    """Hand options that begin with ``-npde_``, with their values, to PETSc; return the other arguments.

    ``import npde_fem`` does this for the arguments of the running program. A script with options of its own parses what
    is left: ``parser.parse_args(npde_fem.petsc_options())``.

    Parameters
    ----------
    argv
        Arguments, by default those of the running program without its name.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    rest: list[str] = []
    options = PETSc.Options()
    while given:
        word = given.pop(0)
        if not word.startswith("-npde_"):
            rest.append(word)
            continue
        has_value = bool(given) and (not given[0].startswith("-") or _is_number(given[0]))
        options.setValue(word[1:], given.pop(0) if has_value else "")
    return rest


def option_given(name: str) -> bool:
    """Whether the user has set the PETSc option ``-npde_NAME``."""
    return bool(PETSc.Options("npde_").hasName(name))


@contextmanager
def inserted(options: Mapping[str, Any]) -> Iterator[None]:
    """Let PETSc know options, by their whole names, for a while; those it had before come back."""
    database = PETSc.Options()
    before = {name: database.getString(name) for name in options if database.hasName(name)}
    for name, value in options.items():
        database.setValue(name, value)
    try:
        yield
    finally:
        for name in options:
            database.delValue(name)
        for name, value in before.items():
            database.setValue(name, value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
