"""Networks: trunks that map images and latents to features, and heads that map features to distributions."""

from vaebench.nets.activations import ACTIVATIONS
from vaebench.nets.heads import AdditiveGaussian, BernoulliHead, Conditional, GaussianHead, NormalLikelihood, TrunkGaussian
from vaebench.nets.networks import TRUNKS, Networks
from vaebench.nets.trunks import MLP, AdditiveMLP, Trunk, linear

__all__ = [
    "ACTIVATIONS",
    "TRUNKS",
    "MLP",
    "AdditiveGaussian",
    "AdditiveMLP",
    "BernoulliHead",
    "Conditional",
    "GaussianHead",
    "Networks",
    "NormalLikelihood",
    "Trunk",
    "TrunkGaussian",
    "linear",
]
