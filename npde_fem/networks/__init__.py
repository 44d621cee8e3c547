"""Networks that an equation generates, and equations read from trained networks (THEORY, section 2)."""

from npde_fem.networks.cnn import cnn, resnet
from npde_fem.networks.coefficients import Coefficients
from npde_fem.networks.evolution import Evolution, Phase, Pooling
from npde_fem.networks.interpret import Interpretation, interpret
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.mesh_network import mesh_network
from npde_fem.networks.mlp import mlp
from npde_fem.networks.network import Network
from npde_fem.networks.reactions import reaction_named
from npde_fem.networks.rnn import rnn
from npde_fem.networks.waves import wave_rnn

__all__ = [
    "Coefficients",
    "Evolution",
    "Interpretation",
    "Lattice",
    "Network",
    "Phase",
    "Pooling",
    "cnn",
    "interpret",
    "mesh_network",
    "mlp",
    "reaction_named",
    "resnet",
    "rnn",
    "wave_rnn",
]
