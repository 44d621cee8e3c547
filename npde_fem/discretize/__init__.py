"""Equation + mesh or grid -> a semidiscrete operator (:class:`~npde_fem.discretize.semidiscrete.Semidiscrete`)."""

from npde_fem.discretize.fd import FD
from npde_fem.discretize.fem import FEM
from npde_fem.discretize.grid import Grid, GridFunction
from npde_fem.discretize.periodic import PeriodicMesh, periodic_mesh
from npde_fem.discretize.probe import Probe
from npde_fem.discretize.semidiscrete import Semidiscrete

__all__ = ["FD", "FEM", "Grid", "GridFunction", "PeriodicMesh", "Probe", "Semidiscrete", "periodic_mesh"]
