"""Modules that return distributions: what encoders, reverse models and decoders are made of."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from vaebench.distributions import Bernoulli, DiagonalNormal, at_least_float32
from vaebench.nets.activations import positive
from vaebench.nets.trunks import AdditiveMLP, Trunk, linear

__all__ = [
    "AdditiveGaussian",
    "BernoulliHead",
    "Conditional",
    "GaussianHead",
    "NormalLikelihood",
    "PaintedBernoulli",
    "TrunkGaussian",
]

# A scale of zero has no density; softplus reaches zero in float32 at -104.
SCALE_FLOOR = 1e-6
# exp(5) is 150 prior standard deviations; beyond it a single step can overflow the weights.
LOG_SCALE_RANGE = (-10.0, 5.0)


class Conditional(nn.Module, ABC):
    """A distribution given a latent ``u``, (..., B, U), and an image x, (B, X).

    ``condition(x)`` does the work that depends on x alone, once per image; its result (a tensor or a tuple of
    tensors) is handed to every call. The default hands on x itself.
    """

    def condition(self, x: Tensor) -> Any:
        """Return what ``forward`` needs to know of x."""
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
        """Return N(mean, scale^2), with scale = softplus or exp of the second half of the outputs."""
        mean, raw = at_least_float32(self.affine(features)).chunk(2, -1)
        if self.scale == "exp":
            return DiagonalNormal(mean, raw.clamp(*LOG_SCALE_RANGE).exp())
        return DiagonalNormal(mean, positive(raw) + SCALE_FLOOR)


class TrunkGaussian(nn.Module):
    """x, (B, X) -> DiagonalNormal over (B, D): the Gaussian encoder's network and q(psi|x)."""

    def __init__(self, trunk: Trunk, dim: int, scale: str = "softplus") -> None:
        super().__init__()
        self.trunk = trunk
        self.head = GaussianHead(trunk.width, dim, scale)

    def forward(self, x: Tensor) -> DiagonalNormal:
        return self.head(self.trunk(x))


class AdditiveGaussian(Conditional):
    """(u, x) -> DiagonalNormal over (..., B, D), u entering every layer: q(z|psi,x) and tau(psi|z,x)."""

    def __init__(self, network: AdditiveMLP, dim: int, scale: str = "softplus") -> None:
        super().__init__()
        self.network = network
        self.head = GaussianHead(network.width, dim, scale)

    def condition(self, x: Tensor) -> Tensor:
        return self.network.condition(x)

    def forward(self, u: Tensor, conditioned: Tensor) -> DiagonalNormal:
        return self.head(self.network(u, conditioned))


class BernoulliHead(nn.Module):
    """z, (..., Z) -> Bernoulli pixels (..., D)."""

    def __init__(self, trunk: Trunk, pixels: int, pixel_mean: Tensor | None = None) -> None:
        """``pixel_mean``, (D,): the training images' mean; the output bias starts at its logit, as in IWAE."""
        super().__init__()
        self.trunk = trunk
        self.affine = linear(trunk.width, pixels)
        if pixel_mean is not None:
            with torch.no_grad():
                self.affine.bias.copy_(_logit(pixel_mean))

    def forward(self, z: Tensor) -> Bernoulli:
        return Bernoulli(self.affine(self.trunk(z)))


class PaintedBernoulli(nn.Module):
    """z, (..., Z) -> Bernoulli pixels (..., D), by a network that ends in one number per pixel."""

    def __init__(self, painter: nn.Module, pixels: int, pixel_mean: Tensor | None = None) -> None:
        """``painter`` maps (..., Z) to (..., D); ``pixel_mean`` is as for :class:`BernoulliHead`."""
        super().__init__()
        self.painter = painter
        self.bias = nn.Parameter(torch.zeros(pixels) if pixel_mean is None else _logit(pixel_mean))

    def forward(self, z: Tensor) -> Bernoulli:
        return Bernoulli(self.painter(z) + self.bias)


def _logit(pixel_mean: Tensor) -> Tensor:
    return torch.logit(pixel_mean.clamp(1e-3, 1 - 1e-3))


class NormalLikelihood(nn.Module):
    """z, (..., Z) -> N(W z + b, scale^2 I): the linear-Gaussian toy, whose log p(x) is known exactly."""

    def __init__(self, weight: Tensor, bias: Tensor, scale: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.scale = scale

    def forward(self, z: Tensor) -> DiagonalNormal:
        mean = F.linear(z, self.weight, self.bias)
        return DiagonalNormal(mean, torch.full_like(mean, self.scale))
