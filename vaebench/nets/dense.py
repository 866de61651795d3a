"""Dense networks: trunks map inputs to features, and heads map features to distributions.

Trunks and heads act on the last axis, for any leading axes. Encoders, reverse models and decoders are made of
these modules.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from vaebench.direction import Measure
from vaebench.distributions import Bernoulli, DiagonalNormal, at_least_float32, positive
from vaebench.nets.activations import ACTIVATIONS

__all__ = [
    "MLP",
    "AdditiveGaussian",
    "AdditiveMLP",
    "BernoulliLikelihood",
    "Conditional",
    "ConvolutionalDecoder",
    "DenseDecoder",
    "GaussianHead",
    "Likelihood",
    "NormalLikelihood",
    "Trunk",
    "TrunkGaussian",
    "linear",
    "weights_by_name",
]

# A scale of 0 has no density; softplus is 0 in float32 below -104.
SCALE_FLOOR = 1e-6
# exp(5) is 150 prior standard deviations; with a larger scale one step can overflow the weights.
LOG_SCALE_RANGE = (-10.0, 5.0)


def weights_by_name(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, with their graph; torch.compile cannot trace ``state_dict``."""
    return dict(chain(module.named_parameters(), module.named_buffers()))


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Make an affine layer with Glorot-uniform weights and zero bias, as in the code of IWAE and IWHVI."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


# Trunks ---------------------------------------------------------------------------------------------------


class Trunk(nn.Module):
    """A network over the last axis; ``width`` is the number of features that it returns."""

    width: int


class MLP(Trunk):
    """Dense layers with one activation: (..., inputs) -> (..., hidden[-1])."""

    def __init__(self, inputs: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[activation]
        self.width = widths[-1]

    def forward(self, value: Tensor) -> Tensor:
        """Map (..., inputs) to (..., width)."""
        for layer in self.layers:
            value = self.activation(layer(value))
        return value


class AdditiveMLP(nn.Module):
    """Dense layers over x; a second input ``u`` is added linearly to each layer, as psi is in IWHVI's encoder.

    h_1 = act(W_1 x + U_1 u),  h_i = act(W_i h_{i-1} + U_i u)

    ``condition(x)`` computes the part that depends on x alone. It runs once per image for any number of draws of u.

    Source: the authors' code of https://arxiv.org/abs/1905.03290

    Args:
        x_width: width of x; ignored if there is a ``reader``.
        u_width: width of u.
        hidden: widths of the layers.
        activation: a key of ``ACTIVATIONS``.
        reader: a trunk over x, whose features replace x.
    """

    def __init__(
        self, x_width: int, u_width: int, hidden: Sequence[int], activation: str, reader: Trunk | None = None
    ) -> None:
        super().__init__()
        self.reader = reader
        widths = [reader.width if reader else x_width, *hidden]
        self.layers = nn.ModuleList(linear(a, b) for a, b in pairwise(widths))
        self.injections = nn.ModuleList(linear(u_width, width, bias=False) for width in hidden)
        self.activation = ACTIVATIONS[activation]
        self.width = widths[-1]

    def condition(self, x: Tensor) -> Tensor:
        """Map (B, x_width) to (B, hidden[0])."""
        return self.layers[0](self.reader(x) if self.reader else x)

    def forward(self, u: Tensor, conditioned: Tensor) -> Tensor:
        """Map u, (..., B, u_width), and ``condition(x)`` to (..., B, width)."""
        value = self.activation(conditioned + self.injections[0](u))
        for layer, injection in zip(list(self.layers)[1:], list(self.injections)[1:], strict=True):
            value = self.activation(layer(value) + injection(u))
        return value


# Heads ----------------------------------------------------------------------------------------------------


class Conditional(nn.Module, ABC):
    """A distribution given a latent ``u``, (..., B, U), and an image x, (B, X).

    ``condition(x)`` computes the part that depends on x alone, once per image. Its result, a tensor or a tuple of
    tensors, is passed to every call. The default returns x itself.
    """

    def condition(self, x: Tensor) -> Any:
        """Return the part of the computation that depends on x alone."""
        return x

    @abstractmethod
    def forward(self, u: Tensor, conditioned: Any) -> Distribution:
        """Return the distribution with batch shape (..., B)."""


class GaussianHead(nn.Module):
    """Features (..., H) -> DiagonalNormal over (..., D)."""

    def __init__(self, width: int, dim: int, scale: str = "softplus") -> None:
        super().__init__()
        self.affine = linear(width, 2 * dim)
        self.scale = scale

    def forward(self, features: Tensor) -> DiagonalNormal:
        """Return N(mean, scale^2); scale is softplus or exp of the second half of the outputs."""
        mean, raw = at_least_float32(self.affine(features)).chunk(2, -1)
        if self.scale == "exp":
            return DiagonalNormal(mean, raw.clamp(*LOG_SCALE_RANGE).exp())
        return DiagonalNormal(mean, positive(raw) + SCALE_FLOOR)


class TrunkGaussian(nn.Module):
    """x, (B, X) -> DiagonalNormal over (B, D): the Gaussian encoder's network, or q(psi|x)."""

    def __init__(self, trunk: Trunk, dim: int, scale: str = "softplus") -> None:
        super().__init__()
        self.trunk = trunk
        self.head = GaussianHead(trunk.width, dim, scale)

    def forward(self, x: Tensor) -> DiagonalNormal:
        return self.head(self.trunk(x))


class AdditiveGaussian(Conditional):
    """(u, x) -> DiagonalNormal over (..., B, D); u enters every layer: q(z|psi,x) and tau(psi|z,x)."""

    def __init__(self, network: AdditiveMLP, dim: int, scale: str = "softplus") -> None:
        super().__init__()
        self.network = network
        self.head = GaussianHead(network.width, dim, scale)

    def condition(self, x: Tensor) -> Tensor:
        return self.network.condition(x)

    def forward(self, u: Tensor, conditioned: Tensor) -> DiagonalNormal:
        return self.head(self.network(u, conditioned))


class Likelihood(nn.Module, ABC):
    """A family of p(x|z): the outputs of a decoder's network to a distribution over pixels.

    A network returns ``outputs`` numbers for each of X pixels and channels: (..., outputs * X), the first number of all
    pixels first.
    """

    outputs: int
    """Numbers per pixel and channel."""
    measure: Measure
    """What p(x|z) is, for pixels that the family is meant for."""

    @abstractmethod
    def of(self, outputs: Tensor) -> Distribution:
        """Return the distribution over x, (..., X), for outputs of shape (..., outputs, X)."""

    def first_biases(self, pixel_mean: Tensor) -> Tensor:
        """Return the biases of an untrained decoder, (outputs, X), for the mean of the training images, (X,)."""
        return pixel_mean.new_zeros(self.outputs, len(pixel_mean))

    def forward(self, outputs: Tensor) -> Distribution:
        """Return the distribution over x, (..., X), for outputs of shape (..., outputs * X)."""
        return self.of(outputs.unflatten(-1, (self.outputs, -1)))


class BernoulliLikelihood(Likelihood):
    """Independent binary pixels, by one logit each."""

    outputs, measure = 1, Measure.PROBABILITY

    def of(self, outputs: Tensor) -> Bernoulli:
        return Bernoulli(outputs.squeeze(-2))

    def first_biases(self, pixel_mean: Tensor) -> Tensor:
        """Return the logits of the means, as in IWAE."""
        return torch.logit(pixel_mean.clamp(1e-3, 1 - 1e-3)).unsqueeze(0)

    def forward(self, outputs: Tensor) -> Bernoulli:
        return Bernoulli(outputs)


class DenseDecoder(nn.Module):
    """z, (..., Z) -> p(x|z) over (..., X), by a trunk and an affine layer."""

    def __init__(self, trunk: Trunk, likelihood: Likelihood, pixels: int, pixel_mean: Tensor | None = None) -> None:
        """``pixel_mean``, (X,): the mean of the training images, for the first biases; None for biases of 0."""
        super().__init__()
        self.trunk = trunk
        self.affine = linear(trunk.width, likelihood.outputs * pixels)
        self.likelihood = likelihood
        if pixel_mean is not None:
            with torch.no_grad():
                self.affine.bias.copy_(likelihood.first_biases(pixel_mean).flatten())

    def forward(self, z: Tensor) -> Distribution:
        return self.likelihood(self.affine(self.trunk(z)))


class ConvolutionalDecoder(nn.Module):
    """z, (..., Z) -> p(x|z) over (..., X), by a network that returns all outputs but the biases."""

    def __init__(
        self, painter: nn.Module, likelihood: Likelihood, pixels: int, pixel_mean: Tensor | None = None
    ) -> None:
        """``painter`` maps (..., Z) to (..., outputs * X); ``pixel_mean`` is as for :class:`DenseDecoder`."""
        super().__init__()
        self.painter = painter
        self.likelihood = likelihood
        biases = torch.zeros(likelihood.outputs, pixels) if pixel_mean is None else likelihood.first_biases(pixel_mean)
        self.bias = nn.Parameter(biases.flatten())

    def forward(self, z: Tensor) -> Distribution:
        return self.likelihood(self.painter(z) + self.bias)


class NormalLikelihood(nn.Module):
    """z, (..., Z) -> N(W z + b, scale^2 I): the linear-Gaussian model, whose log p(x) is known exactly."""

    def __init__(self, weight: Tensor, bias: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.scale = scale

    def forward(self, z: Tensor) -> DiagonalNormal:
        mean = F.linear(z, self.weight, self.bias)
        return DiagonalNormal(mean, torch.full_like(mean, self.scale))
