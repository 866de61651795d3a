"""Networks: trunks that map images and latents to features, and heads that map features to distributions."""

from vaebench.nets.activations import ACTIVATIONS
from vaebench.nets.convolutional import GatedPainter, GatedReader, ResidualPainter, ResidualReader
from vaebench.nets.gated import GatedMLP
from vaebench.nets.heads import (
    AdditiveGaussian,
    BernoulliHead,
    Conditional,
    GaussianHead,
    NormalLikelihood,
    PaintedBernoulli,
    TrunkGaussian,
)
from vaebench.nets.networks import TRUNKS, Networks
from vaebench.nets.trunks import MLP, AdditiveMLP, Trunk, linear, weights_of

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "TRUNKS",
    "AdditiveGaussian",
    "AdditiveMLP",
    "BernoulliHead",
    "Conditional",
    "GatedMLP",
    "GatedPainter",
    "GatedReader",
    "GaussianHead",
    "Networks",
    "NormalLikelihood",
    "PaintedBernoulli",
    "ResidualPainter",
    "ResidualReader",
    "Trunk",
    "TrunkGaussian",
    "linear",
    "weights_of",
]
