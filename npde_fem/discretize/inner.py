"""Inner products of a field parameter's values: L2, and H1 with a length.

    (a, b) = int a . b dx + length^2 int grad a : grad b dx

They make gradients and optimisation independent of the mesh (Schwedes, Ham, Funke and Piggott 2017, Mesh Dependence in
PDE-Constrained Optimisation, Springer).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from npde_fem.boundary import Periodic
from npde_fem.discretize.fd import FD
from npde_fem.discretize.fem import FEM
from npde_fem.discretize.matrices import Assembler
from npde_fem.discretize.packing import Packed
from npde_fem.discretize.real import compiled, values_in
from npde_fem.discretize.semidiscrete import Array, Semidiscrete
from npde_fem.equation import NPDE
from npde_fem.parameter import Parameter

import numpy as np
import ufl
from dolfinx import fem
from petsc4py import PETSc

__all__ = ["InnerKind", "inner_product", "lumped_mass", "lumped_mass_on", "riesz", "riesz_solver"]

InnerKind = Literal["L2", "H1"]


def inner_product(problem: Semidiscrete, parameter: Parameter, kind: InnerKind, length: float = 1.0) -> PETSc.Mat:
    """Return the matrix of an inner product of a field's values in a problem (collective); the caller destroys it.

    On a mesh it is the finite-element matrix of the field's space, on a grid the control volumes and, for H1, the
    stencil of ``length^2 div grad``.

    Raises
    ------
    ValueError
        If the kind is neither "L2" nor "H1", or is "H1" for a field that is constant in every cell.
    """
    if kind not in ("L2", "H1"):
        raise ValueError(f'inner product of field {parameter.name!r}: "L2" or "H1" allowed, {kind!r} given')
    if isinstance(problem, FEM):
        return _on_mesh(problem.field(parameter).function_space, kind, length, parameter.name)
    if isinstance(problem, FD):
        return _on_grid(problem, parameter, kind, length)
    raise TypeError(f"inner product of field {parameter.name!r}: FEM or FD allowed, {type(problem).__name__} given")


def _on_mesh(space: fem.FunctionSpace, kind: InnerKind, length: float, name: str) -> PETSc.Mat:
    u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
    form = ufl.inner(u, v) * ufl.dx
    if kind == "H1":
        if space.ufl_element().discontinuous:
            raise _no_gradient(name)
        squared = fem.Constant(space.mesh, length**2)
        form += squared * ufl.inner(ufl.grad(u), ufl.grad(v)) * ufl.dx
    assembler = Assembler(space.mesh.comm, Packed(compiled(form)))
    matrix = assembler.new_matrix()
    assembler.fill(matrix)
    return matrix


def _on_grid(problem: FD, parameter: Parameter, kind: InnerKind, length: float) -> PETSc.Mat:
    if kind == "L2":
        volumes = lumped_mass(problem, parameter)
        diagonal = PETSc.Vec().createMPI((volumes.size, None), comm=problem.comm)
        diagonal.array[:] = volumes
        matrix = PETSc.Mat().createDiagonal(diagonal)
        diagonal.destroy()
        return matrix
    if parameter.element is not None:
        raise _no_gradient(parameter.name)
    equation = NPDE(
        flux=lambda u, x, t: length**2 * ufl.grad(u),
        source=lambda u, x, t: -u,
        damping=0.0,
        components=int(np.prod(parameter.ufl_shape, dtype=int)),
    )
    sides = [Periodic(axis) for axis, periodic in enumerate(problem.layout.periodic) if periodic]
    # Of the paddings this one alone makes the stencil symmetric, and leaves constants alone.
    grid = problem.grid if problem.grid.padding is None else replace(problem.grid, padding="replicate")
    helper = FD(equation, grid, sides)
    matrix = helper.new_matrix()
    helper.jacobian(0.0, helper.new_state(), 0.0, 1.0, matrix)
    return matrix


def _no_gradient(name: str) -> ValueError:
    return ValueError(
        f'inner product of field {name!r}: it is constant in every cell and has no gradient; "L2" allowed'
    )


def lumped_mass(problem: Semidiscrete, parameter: Parameter) -> Array:
    """Return a positive weight for each owned value of a field, the measure that it stands for (collective).

    On a grid the control volumes (of a cell, where values live in cells); on a mesh the diagonal of the mass matrix,
    scaled to the measure of the domain (Hinton, Rock and Zienkiewicz 1976, Earthq. Eng. Struct. Dyn. 4), which unlike
    row sums is positive for every degree.
    """
    if isinstance(problem, FD):
        size = int(np.prod(parameter.ufl_shape, dtype=int))
        layout = problem.layout
        cell = float(np.prod(problem.grid.spacing))
        volumes = layout.control_volumes() if parameter.element is None else np.full(layout.n_points, cell)
        return np.repeat(volumes, size)
    if isinstance(problem, FEM):
        return lumped_mass_on(problem.field(parameter).function_space)
    raise TypeError(f"lumped mass of field {parameter.name!r}: FEM or FD allowed, {type(problem).__name__} given")


def lumped_mass_on(space: fem.FunctionSpace) -> Array:
    """Return the lumped mass of a finite-element space, as :func:`lumped_mass` of a field in it (collective)."""
    matrix = _on_mesh(space, "L2", 1.0, "")
    ones, mass = matrix.createVecs()
    ones.set(1.0)
    matrix.mult(ones, mass)
    total = mass.sum()
    matrix.getDiagonal(mass)
    mass.scale(total / mass.sum())
    weights = values_in(mass).copy()
    for thing in (ones, mass, matrix):
        thing.destroy()
    return weights


def riesz_solver(matrix: PETSc.Mat) -> PETSc.KSP:
    """Return the solver of systems with an inner product's matrix; PETSc options have the prefix ``npde_riesz_``."""
    ksp = PETSc.KSP().create(matrix.comm)
    ksp.setOptionsPrefix("npde_riesz_")
    ksp.setOperators(matrix)
    ksp.setType(PETSc.KSP.Type.CG)
    ksp.getPC().setType(PETSc.PC.Type.JACOBI)
    ksp.setTolerances(rtol=1e-12, max_it=100_000)
    ksp.setErrorIfNotConverged(True)
    ksp.setFromOptions()
    return ksp


def riesz(problem: Semidiscrete, parameter: Parameter, values: Array, kind: InnerKind) -> Array:
    """Return the field whose inner product with any other is the l2 product of ``values`` with it (collective)."""
    matrix = inner_product(problem, parameter, kind)
    ksp = riesz_solver(matrix)
    x, y = matrix.createVecs()
    y.array[:] = values
    ksp.solve(y, x)
    result = values_in(x).copy()
    for thing in (x, y, ksp, matrix):
        thing.destroy()
    return result
