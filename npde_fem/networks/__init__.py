"""Networks that an equation generates, and equations read from trained networks (THEORY, section 2)."""

from npde_fem.networks.coefficients import Coefficients
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.network import Network

__all__ = ["Coefficients", "Lattice", "Network"]
