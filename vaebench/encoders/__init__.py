"""Encoders: every family of approximate posteriors, seen only through weighted draws."""

from vaebench.encoders.adversarial import AdversarialEncoder
from vaebench.encoders.base import Density, Direction, Draw, Enclosed, Encoder, Player, Scored, Site
from vaebench.encoders.flow import FlowEncoder
from vaebench.encoders.full_gaussian import FullGaussianEncoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hamiltonian import HamiltonianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.encoders.langevin import LangevinEncoder
from vaebench.encoders.layered import LadderEncoder, TwoLayerEncoder
from vaebench.encoders.unbiased import UnbiasedEncoder

__all__ = [
    "AdversarialEncoder",
    "Density",
    "Direction",
    "Draw",
    "Enclosed",
    "Encoder",
    "FlowEncoder",
    "FullGaussianEncoder",
    "GaussianEncoder",
    "HamiltonianEncoder",
    "HierarchicalEncoder",
    "LadderEncoder",
    "LangevinEncoder",
    "Player",
    "Scored",
    "Site",
    "TwoLayerEncoder",
    "UnbiasedEncoder",
]
