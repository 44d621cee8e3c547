"""Fits as lines of a table, as a comparison of models, and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npde_fem.assay.fit import Estimate, Fit
from npde_fem.parallel import on_root

import numpy as np
import numpy.typing as npt
from mpi4py import MPI

__all__ = ["heading", "record", "row", "selection", "write_json"]


def title(fit: Fit) -> str:
    """The data's name: cells at the start, where they are known."""
    return "own data" if fit.assay.density is None else f"{fit.assay.density},000 cells"


def heading() -> str:
    """Return the line above :func:`row`."""
    return (
        f"{'data':<14}{'model':<15}{'method':<8}{'loss':>8}{'AICc':>10}{'BIC':>10}{'iter.':>7}{'s':>6}   "
        "estimates (standard errors)"
    )


def row(fit: Fit) -> str:
    """Return one fit as a line, with another for what it predicts of a held-out time."""
    estimates = ", ".join(f"{name} = {_written(e)} {e.unit}" for name, e in fit.parameters.items())
    line = (
        f"{title(fit):<14}{fit.model.name:<15}{fit.method.upper():<8}{fit.loss:>8.2f}{fit.aicc:>10.1f}{fit.bic:>10.1f}"
        f"{fit.minimum.iterations:>7}{fit.seconds:>6.1f}   {estimates}"
    )
    if fit.hold_out is not None:
        line += f"\n{'':<14}at {fit.hold_out:g} h, left out of the fit: error of the prediction "
        line += f"{fit.error_at(fit.hold_out):.3g} cells/um^2 (one well: {fit.sigma:.3g})"
    return line


def _written(estimate: Estimate) -> str:
    parts = []
    for value, error, at in zip(*map(np.ravel, (estimate.value, estimate.stderr, estimate.at_bound)), strict=True):
        mark = "bound" if at else "given" if error == 0 else "?" if np.isnan(error) else f"{error:.2g}"
        parts.append(f"{value:.4g} ({mark})")
    return parts[0] if estimate.value.ndim == 0 else "[" + ", ".join(parts) + "]"


def selection(fits: Sequence[Fit]) -> str:
    """Return a table of the models fitted to the same data: how much worse each is than the best.

    A difference of AICc or BIC above 10 is strong evidence for the lower one (Burnham and Anderson 2002, section 2.6).
    """
    lines = [f"{'data':<14}{'method':<8}{'model':<15}{'numbers':>8}{'AICc - best':>13}{'BIC - best':>12}"]
    groups: dict[tuple[int, str], list[Fit]] = {}
    for fit in fits:
        groups.setdefault((id(fit.assay), fit.method), []).append(fit)
    for group in groups.values():
        aicc, bic = min(f.aicc for f in group), min(f.bic for f in group)
        for fit in group:
            lines.append(
                f"{title(fit):<14}{fit.method.upper():<8}{fit.model.name:<15}{fit.estimated:>8}"
                f"{fit.aicc - aicc:>13.1f}{fit.bic - bic:>12.1f}"
            )
    return "\n".join(lines)


def record(fit: Fit) -> dict[str, Any]:
    """Return a fit as it stands in JSON.

    ``model``, ``method``, ``density`` (thousands of cells at the start, or null), ``parameters`` (by name ``value``,
    ``stderr``, ``unit`` and ``at_bound``; lists for vectors), ``loss``, ``aicc``, ``bic``, ``prediction_error_48h``
    (or another time held out; null where none is), ``iterations``, ``seconds``; and ``converged``, ``residuals``,
    ``sigma`` and ``u_max``, the largest mean density measured. A standard error that does not exist is null.
    """
    tested = fit.assay.times[-1] if fit.hold_out is None else fit.hold_out
    return {
        "model": fit.model.name,
        "method": fit.method,
        "density": fit.assay.density,
        "parameters": {
            name: {
                "value": e.value.tolist(),
                "stderr": _without_nan(e.stderr),
                "unit": e.unit,
                "at_bound": e.at_bound.tolist(),
            }
            for name, e in fit.parameters.items()
        },
        "loss": fit.loss,
        "aicc": fit.aicc,
        "bic": fit.bic,
        f"prediction_error_{tested:g}h": fit.prediction_error,
        "iterations": fit.minimum.iterations,
        "seconds": fit.seconds,
        "converged": fit.minimum.converged,
        "residuals": fit.residuals,
        "sigma": fit.sigma,
        "u_max": float(fit.assay.mean.max()),
    }


def _without_nan(values: npt.NDArray[np.float64]) -> Any:
    whole = values.astype(object)
    whole[np.isnan(values)] = None
    return whole.tolist()


def write_json(fits: Sequence[Fit], path: str | os.PathLike[str], comm: MPI.Comm) -> None:
    """Write one fit as an object (see :func:`record`), several as a list of such, whole or not at all (collective)."""

    def write() -> None:
        target = Path(path)
        aside = target.with_name(f".{target.name}.part")
        records = [record(fit) for fit in fits]
        aside.write_text(json.dumps(records[0] if len(records) == 1 else records, indent=2) + "\n")
        aside.replace(target)

    on_root(comm, write)
