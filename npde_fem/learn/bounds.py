"""Free values for parameters with bounds.

With lower bound l and upper bound h the value p of a free number f is

    p = l + s(f),   p = h - s(f),   or of both   p = l + (h - l) / (1 + e^-f),      s(f) = log(1 + e^f).
"""

from __future__ import annotations

from npde_fem.discretize.semidiscrete import Array
from npde_fem.parameter import Parameter

import numpy as np
import torch

__all__ = ["free", "value"]


def value(parameter: Parameter, f: torch.Tensor) -> torch.Tensor:
    """Return the parameter's value for a free one."""
    lower, upper = parameter.bounds
    if lower is not None and upper is not None:
        return lower + (upper - lower) * torch.sigmoid(f)
    if lower is not None:
        return lower + _softplus(f)
    return f if upper is None else upper - _softplus(f)


def free(parameter: Parameter, p: Array) -> Array:
    """Return the free value for the parameter's.

    Raises
    ------
    ValueError
        If the value is not strictly inside the bounds.
    """
    lower, upper = parameter.bounds
    if (lower is not None and np.any(p <= lower)) or (upper is not None and np.any(p >= upper)):
        raise ValueError(
            f"Parameter {parameter.name!r}: bounded=True needs a value inside the bounds [{lower}, {upper}], not on "
            f"them; range [{np.min(p):g}, {np.max(p):g}] given"
        )
    if lower is not None and upper is not None:
        return np.log((p - lower) / (upper - p))
    if lower is not None:
        return _inverse_softplus(p - lower)
    return p if upper is None else _inverse_softplus(upper - p)


def _softplus(f: torch.Tensor) -> torch.Tensor:
    return torch.logaddexp(f, torch.zeros_like(f))


def _inverse_softplus(s: Array) -> Array:
    return s + np.log(-np.expm1(-s))
