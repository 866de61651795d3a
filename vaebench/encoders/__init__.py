"""Encoders: every family of approximate posteriors, seen only through weighted draws."""

from vaebench.encoders.base import Direction, Draw, Encoder, Player
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder

__all__ = [
    "Direction",
    "Draw",
    "Encoder",
    "GaussianEncoder",
    "HierarchicalEncoder",
    "Player",
]
