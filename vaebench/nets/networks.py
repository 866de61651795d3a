"""The networks of one run: every family takes its parts from here, so that all parts share one architecture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from torch import Tensor

from vaebench.arguments import one_of
from vaebench.nets.dense import (
    MLP,
    AdditiveGaussian,
    AdditiveMLP,
    BernoulliHead,
    ConvolutionalBernoulli,
    Trunk,
    TrunkGaussian,
)

__all__ = ["DECODERS", "TRUNKS", "Networks"]

TRUNKS = {
    "mlp": "dense:MLP",
    "iwae": "dense:MLP",
    "iwhvi": "dense:MLP",
    "gated": "gated:GatedMLP",
    "gated_conv": "convolutional:GatedConvTrunk",
    "resnet": "convolutional:ResNetTrunk",
}
"""(inputs, hidden, activation) -> a network over x. A file is imported when a run uses its network. Dense trunks take
any input, so that they serve as networks over z too."""

DECODERS = {"gated_conv": "convolutional:GatedConvDecoder", "resnet": "convolutional:ResNetDecoder"}
"""(inputs, pixels, hidden, activation) -> a network over z, if it differs from the network over x."""


def _network(place: str) -> Any:
    return resolve_name(f"vaebench.nets.{place}")


@dataclass(frozen=True)
class Networks:
    """An architecture by name; encoders and decoders are made of its networks.

    Args:
        trunk: a key of ``TRUNKS``.
        hidden: widths of the hidden layers. For convolutional networks: the channels, then the width of the features.
        activation: a key of ``ACTIVATIONS``.

    Raises:
        ValueError: ``trunk`` is unknown.
    """

    trunk: str
    hidden: Sequence[int]
    activation: str

    def __post_init__(self) -> None:
        one_of(TRUNKS, trunk=self.trunk)

    @property
    def scale(self) -> str:
        """How standard deviations are made positive: exp in the IWAE paper's network, softplus in IWHVI's."""
        return "exp" if self.trunk == "iwae" else "softplus"

    def reader(self, inputs: int) -> Trunk:
        """Make x, (B, inputs) -> features."""
        return _network(TRUNKS[self.trunk])(inputs, self.hidden, self.activation)

    def gaussian(self, inputs: int, dim: int) -> TrunkGaussian:
        """Make x, (B, inputs) -> DiagonalNormal over (B, dim)."""
        return TrunkGaussian(self.reader(inputs), dim, self.scale)

    def additive(self, inputs: int, given: int) -> AdditiveMLP:
        """Make (u, x) -> features, with u of width ``given``.

        If the trunk has other than plain dense layers, it reads x alone, and two dense layers that take u follow.
        """
        if TRUNKS[self.trunk] == "dense:MLP":
            return AdditiveMLP(inputs, given, self.hidden, self.activation)
        return AdditiveMLP(inputs, given, [self.hidden[-1]] * 2, self.activation, self.reader(inputs))

    def conditional(self, inputs: int, given: int, dim: int) -> AdditiveGaussian:
        """Make (u, x) -> DiagonalNormal over (..., B, dim), with u of width ``given``."""
        return AdditiveGaussian(self.additive(inputs, given), dim, self.scale)

    def dense_gaussian(self, inputs: int, hidden: Sequence[int], dim: int) -> TrunkGaussian:
        """Make (..., inputs) -> DiagonalNormal over (..., dim), by dense layers of the widths ``hidden``."""
        return TrunkGaussian(MLP(inputs, hidden, self.activation), dim, self.scale)

    def bernoulli(
        self, latent_dim: int, pixels: int, pixel_mean: Tensor | None
    ) -> BernoulliHead | ConvolutionalBernoulli:
        """Make z, (..., latent_dim) -> Bernoulli pixels."""
        if self.trunk in DECODERS:
            network = _network(DECODERS[self.trunk])(latent_dim, pixels, self.hidden, self.activation)
            return ConvolutionalBernoulli(network, pixels, pixel_mean)
        return BernoulliHead(self.reader(latent_dim), pixels, pixel_mean)
