"""Networks that an equation generates, and equations read from trained networks (THEORY, section 2)."""

from npde_fem.networks.coefficients import Coefficients
from npde_fem.networks.evolution import Evolution
from npde_fem.networks.kinds.cnn import cnn, resnet
from npde_fem.networks.kinds.mesh_network import mesh_network
from npde_fem.networks.kinds.mlp import mlp
from npde_fem.networks.kinds.rnn import rnn
from npde_fem.networks.kinds.waves import wave_rnn
from npde_fem.networks.lattice import Lattice
from npde_fem.networks.network import Network
from npde_fem.networks.phases import Phase, Pooling
from npde_fem.networks.reactions import reaction_named
from npde_fem.networks.reading.interpret import Interpretation, interpret

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
