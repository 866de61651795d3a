"""The networks of one run: every family takes its parts from here, so that all parts share one architecture."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from torch import Tensor

from vaebench.arguments import one_of
from vaebench.nets.dense import (
    MLP,
    AdditiveGaussian,
    AdditiveMLP,
    ConvolutionalDecoder,
    DenseDecoder,
    Likelihood,
    Trunk,
    TrunkGaussian,
)

__all__ = ["TRUNKS", "Networks", "network_of"]

TRUNKS = {
    "mlp": "dense:MLP",
    "iwae": "dense:MLP",
    "iwhvi": "dense:MLP",
    "gated": "gated:GatedMLP",
    "gated_conv": "convolutional:GatedConvTrunk",
    "resnet": "convolutional:ResNetTrunk",
}
"""(inputs, hidden, activation) -> a network over x; convolutional networks take the shape of the images for ``inputs``.
A file is imported when a run uses its network. Dense trunks take any input, so that they serve as networks over z too.
"""


def network_of(trunk: str) -> Any:
    """Return what makes the network over x of a key of ``TRUNKS``.

    If it has an attribute ``decoder``, that makes the network over z, of (inputs, shape, outputs, hidden, activation).
    """
    return resolve_name(f"vaebench.nets.{TRUNKS[trunk]}")


@dataclass(frozen=True)
class Networks:
    """An architecture by name; encoders and decoders are made of its networks.

    Args:
        trunk: a key of ``TRUNKS``.
        hidden: widths of the hidden layers. For convolutional networks: the channels, then the width of the features.
        activation: a key of ``ACTIVATIONS``.
        image_shape: channels, height and width of the images, (C, H, W). None: square images of one channel.
        network: what makes the network in place of an entry of ``TRUNKS``, for a ``trunk`` that is not there. If it has
            an attribute ``decoder``, that makes the network over z, as `network_of` has it.

    Raises:
        ValueError: ``trunk`` is unknown.
    """

    trunk: str
    hidden: Sequence[int]
    activation: str
    image_shape: tuple[int, int, int] | None = None
    network: Callable[..., Trunk] | None = None

    def __post_init__(self) -> None:
        if self.network is None:
            one_of(TRUNKS, trunk=self.trunk)

    @property
    def _painter(self) -> Any:
        """What makes the network over z from the shape of the images; None for a dense network over any input."""
        return getattr(self._reader, "decoder", None)

    @property
    def _reader(self) -> Any:
        """What makes the network over x."""
        return self.network or network_of(self.trunk)

    @property
    def scale(self) -> str:
        """How standard deviations are made positive: exp in the IWAE paper's network, softplus in IWHVI's."""
        return "exp" if self.trunk == "iwae" else "softplus"

    def reader(self, inputs: int) -> Trunk:
        """Make x, (B, inputs) -> features."""
        size = self._shape(inputs) if self._painter is not None else inputs
        return self._reader(size, self.hidden, self.activation)

    def gaussian(self, inputs: int, dim: int) -> TrunkGaussian:
        """Make x, (B, inputs) -> DiagonalNormal over (B, dim)."""
        return TrunkGaussian(self.reader(inputs), dim, self.scale)

    def additive(self, inputs: int, given: int) -> AdditiveMLP:
        """Make (u, x) -> features, with u of width ``given``.

        If the trunk has other than plain dense layers, it reads x alone, and two dense layers that take u follow.
        """
        if TRUNKS.get(self.trunk) == "dense:MLP":
            return AdditiveMLP(inputs, given, self.hidden, self.activation)
        return AdditiveMLP(inputs, given, [self.hidden[-1]] * 2, self.activation, self.reader(inputs))

    def conditional(self, inputs: int, given: int, dim: int) -> AdditiveGaussian:
        """Make (u, x) -> DiagonalNormal over (..., B, dim), with u of width ``given``."""
        return AdditiveGaussian(self.additive(inputs, given), dim, self.scale)

    def dense_gaussian(self, inputs: int, hidden: Sequence[int], dim: int) -> TrunkGaussian:
        """Make (..., inputs) -> DiagonalNormal over (..., dim), by dense layers of the widths ``hidden``."""
        return TrunkGaussian(MLP(inputs, hidden, self.activation), dim, self.scale)

    def decoder(
        self, latent_dim: int, pixels: int, likelihood: Likelihood, pixel_mean: Tensor | None
    ) -> DenseDecoder | ConvolutionalDecoder:
        """Make z, (..., latent_dim) -> p(x|z) over (..., pixels); a pixel of a colour image counts once per channel."""
        if self._painter is not None:
            make, shape = self._painter, self._shape(pixels)
            network = make(latent_dim, shape, likelihood.outputs, self.hidden, self.activation)
            return ConvolutionalDecoder(network, likelihood, pixels, pixel_mean)
        return DenseDecoder(self.reader(latent_dim), likelihood, pixels, pixel_mean)

    def _shape(self, pixels: int) -> tuple[int, int, int]:
        """Return the shape of the images. ValueError if they do not have ``pixels``."""
        side = math.isqrt(pixels)
        shape = self.image_shape or (1, side, side)
        if math.prod(shape) != pixels:
            what = f"images of shape {shape}" if self.image_shape else "square images"
            raise ValueError(f"a convolutional network needs {what}, got {pixels} pixels")
        return shape
