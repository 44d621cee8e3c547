"""The laws of migration ``D(u)`` and of growth ``f(u)`` that compete, each written once for UFL and for NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from npde_fem.datasets import ScratchAssay
from npde_fem.equation import NPDE
from npde_fem.parameter import Parameter

import numpy as np
import ufl

__all__ = ["CONFLUENCE", "MODELS", "Model", "model_for"]

CONFLUENCE = 1.7e-3
"""Density of a full layer of PC-3 cells, cells/um^2 (Jin et al. 2016, J. Theor. Biol. 390)."""

Law = Callable[[Mapping[str, Any], Any], Any]
"""Of parameters by name (symbols or numbers) and of the density."""


@dataclass(frozen=True)
class Model:
    """``u_t = div(D(u) grad u) + f(u)`` with its parameters, at the values a fit begins with.

    Attributes
    ----------
    name
        One of :data:`MODELS`.
    parameters
        Numbers and vectors, with their bounds.
    units
        Units of the parameters by name.
    diffusivity, growth
        ``D`` and ``f``.
    """

    name: str
    parameters: tuple[Parameter, ...]
    units: Mapping[str, str]
    diffusivity: Law
    growth: Law

    @property
    def equation(self) -> NPDE:
        """The equation, in these parameters."""
        symbols = {p.name: p for p in self.parameters}
        return NPDE(
            flux=lambda u, x, t: self.diffusivity(symbols, u) * ufl.grad(u),
            source=lambda u, x, t: self.growth(symbols, u),
            name=self.name,
        )


def _logistic(p: Mapping[str, Any], u: Any) -> Any:
    return p["r"] * u * (1 - u / p["K"])


def _capacity(highest: float) -> Parameter:
    # Where K is ten times what was ever measured, growth is exponential for all that the data can tell.
    return Parameter("K", max(CONFLUENCE, 1.1 * highest), bounds=(0.2 * highest, 10 * max(CONFLUENCE, highest)))


_UNITS = {"D": "um^2/h", "r": "1/h", "K": "cells/um^2"}


def _fisher(highest: float) -> Model:
    parameters = (Parameter("D", 600.0, bounds=(0, None)), Parameter("r", 0.05, bounds=(0, None)), _capacity(highest))
    return Model("fisher", parameters, _UNITS, lambda p, u: p["D"], _logistic)


def _porous_fisher(highest: float) -> Model:
    parameters = (Parameter("D", 2500.0, bounds=(0, None)), Parameter("r", 0.05, bounds=(0, None)), _capacity(highest))
    return Model("porous-fisher", parameters, _UNITS, lambda p, u: p["D"] * u / p["K"], _logistic)


def _general(highest: float) -> Model:
    # Of several minima that such polynomials have, the lowest is found from here: some diffusion everywhere, most of
    # it from crowding.
    parameters = (Parameter("D", [100.0, 1500.0, 1500.0], bounds=(0, None)), Parameter("r", [0.05, 0.03, 0.02]))

    def diffusivity(p: Mapping[str, Any], u: Any) -> Any:
        s, d = u / highest, p["D"]
        return d[0] + d[1] * (2 * s - s**2) + d[2] * s**2

    def growth(p: Mapping[str, Any], u: Any) -> Any:
        s, r = u / highest, p["r"]
        return u * (r[0] * (1 - s) ** 2 + r[1] * 2 * s * (1 - s) + r[2] * s**2)

    return Model("general", parameters, {"D": "um^2/h", "r": "1/h"}, diffusivity, growth)


MODELS: dict[str, tuple[str, Callable[[float], Model]]] = {
    "fisher": ("D(u) = D, f(u) = r u (1 - u/K)", _fisher),
    "porous-fisher": ("D(u) = D u/K, f(u) = r u (1 - u/K)", _porous_fisher),
    "general": (
        "D(u) = D0 + D1 (2 s - s^2) + D2 s^2, f(u) = u (r0 (1-s)^2 + 2 r1 s (1-s) + r2 s^2), s = u/u_max",
        _general,
    ),
}
"""The laws by name, each with its formula and what makes it for a largest measured density ``u_max``.

``fisher`` and ``porous-fisher`` are those of Jin et al. (2016). ``general`` contains both: ``D`` is a Bernstein
polynomial of degree 2 that does not fall, as its coefficients D0, D0 + D1, D0 + D1 + D2 do not (all Di >= 0), so that
crowding may only push; ``f(u)/u``, the growth of a cell, one of degree 2 without a sign.
"""


def model_for(assay: ScratchAssay, name: str, capacity: float | None = None) -> Model:
    """Return one of :data:`MODELS` for some data, K at a value if one is given.

    Raises
    ------
    ValueError
        If there is no such model, the data holds no cell, or the capacity is not positive or not the model's.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown; {', '.join(MODELS)} allowed")
    highest = float(assay.mean.max())
    if not highest > 0:
        raise ValueError("assay: all densities are zero; there is nothing to fit")
    model = MODELS[name][1](highest)
    if capacity is not None:
        found = {p.name: p for p in model.parameters}
        if "K" not in found:
            raise ValueError(f"capacity: {capacity!r} given; model {name} has no K")
        if not (np.isfinite(capacity) and capacity > 0):
            raise ValueError(f"capacity must be a positive number (cells/um^2), not {capacity!r}")
        found["K"].bounds = (None, None)
        found["K"].value = capacity
    return model
