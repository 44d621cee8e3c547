"""Quadratures of weak forms: fixed degrees, nodes as points, mass lumping."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import basix
import numpy as np
import ufl
from dolfinx import fem
from ufl.algorithms.estimate_degrees import estimate_total_polynomial_degree

__all__ = ["check_nodes", "is_tensor", "lumping", "over_nodes", "told_apart", "with_fixed_degree"]

_TENSOR_CELLS = {1: basix.CellType.interval, 2: basix.CellType.quadrilateral, 3: basix.CellType.hexahedron}


def is_tensor(space: fem.FunctionSpace) -> bool:
    """Whether the cells are intervals, quadrilaterals or hexahedra."""
    return space.mesh.basix_cell() in _TENSOR_CELLS.values()


def over_nodes(space: fem.FunctionSpace) -> ufl.Measure:
    """Return sums over the nodes of the cells, as a quadrature rule: each of its points is one node's."""
    points = space.element.interpolation_points
    rule = {
        "quadrature_rule": "custom",
        "quadrature_points": points,
        "quadrature_weights": np.full(len(points), 1 / len(points)),
    }
    return ufl.Measure("dx", domain=space.mesh, metadata=rule)


def lumping(space: fem.FunctionSpace, dim: int) -> dict[str, Any]:
    """Return metadata of the quadrature at the nodes of cells, or of their facets, of ``dim`` dimensions."""
    if dim == 0:
        return {}
    if is_tensor(space):
        return {"quadrature_rule": "GLL", "quadrature_degree": 2 * space.ufl_element().degree - 1}
    return {"quadrature_rule": "vertex", "quadrature_degree": 1}


def check_nodes(space: fem.FunctionSpace) -> None:
    """Raise ValueError unless the nodes are points of a quadrature of Gauss, Lobatto and Legendre."""
    cell, degree = space.mesh.basix_cell(), space.ufl_element().degree
    if not is_tensor(space):
        raise ValueError(
            f'mass="lumped": degree 1 allowed on a {cell.name}, degree {degree} given; higher degrees are for '
            "intervals, quadrilaterals and hexahedra"
        )
    points, _ = basix.make_quadrature(cell, 2 * degree - 1, rule=basix.QuadratureType.gll)
    nodes = space.element.interpolation_points
    far = np.linalg.norm(points[:, None] - nodes[None], axis=-1).min(axis=1)
    if points.shape != nodes.shape or far.max() > 1e-12:
        raise ValueError(
            'mass="lumped": the nodes of the element must be the points of Gauss, Lobatto and Legendre (the '
            f'lagrange_variant "gll_warped", DOLFINx\'s default); they are at {nodes.round(4).tolist()}'
        )


def told_apart(form: ufl.Form, space: fem.FunctionSpace) -> ufl.Form:
    """Return a form whose quadratures FFCx can tell from those of the space's lumped mass matrices.

    It names a rule by the last three digits of a hash of its points; on an interval those of the rules of Gauss with
    four points and of Lobatto with five are the same. One with more points takes the place of such a rule.
    """

    def name(cell: Any, degree: int, rule: Any) -> str:
        points = np.ascontiguousarray(basix.make_quadrature(cell, degree, rule=rule)[0])
        return hashlib.sha1(points).hexdigest()[-3:]

    def renamed(integral: ufl.Integral) -> ufl.Integral:
        data = dict(integral.metadata())
        dim = space.mesh.topology.dim - int(integral.integral_type() != "cell")
        nodal = lumping(space, dim)
        if nodal.get("quadrature_rule") != "GLL" or data.get("quadrature_rule") == "GLL":
            return integral
        cell = _TENSOR_CELLS[dim]
        taken = name(cell, nodal["quadrature_degree"], basix.QuadratureType.gll)
        while name(cell, data["quadrature_degree"], basix.QuadratureType.default) == taken:
            data["quadrature_degree"] += 1
        return integral.reconstruct(metadata=data)

    return ufl.Form([renamed(integral) for integral in form.integrals()])


def with_fixed_degree(forms: Sequence[ufl.Form]) -> ufl.Form:
    """Return the sum of forms with the degree of quadrature that UFL estimates written into each integral.

    Its derivatives then are integrated by the same rules, so that they are derivatives of what is assembled.
    """
    return ufl.Form(
        [
            integral.reconstruct(metadata={"quadrature_degree": degree, **integral.metadata()})
            for form in forms
            for integral in form.integrals()
            if (degree := _degree(integral)) is not None
        ]
    )


def _degree(integral: ufl.Integral) -> int | None:
    """UFL's estimate of the degree of quadrature that an integral needs, though not 1; None if it vanishes.

    With a rule of one point FFCx takes a coefficient for constant, and lets other rules of the form read that value.
    """
    expanded = ufl.algorithms.expand_derivatives(ufl.Form([integral])).integrals()
    degree = max((estimate_total_polynomial_degree(part) for part in expanded), default=None)
    return 2 if degree == 1 else degree
