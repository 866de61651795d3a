"""Encoders of models with two stochastic layers, z = (z1, z2) under a prior p(z2) p(z1|z2).

Shapes: z1 is (K, B, D1) and z2 is (K, B, D2); z, (K, B, D1 + D2), is their concatenation.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebench.arguments import widths
from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder, frozen
from vaebench.nets.dense import GaussianHead, Trunk, TrunkGaussian
from vaebench.priors import Prior

__all__ = ["BottomUp", "LadderEncoder", "Layers", "LayersFromTrunk", "TopDown", "TwoLayerEncoder", "gaussian_product"]


class Layers(NamedTuple):
    """The parts of the two layers that depend on the images alone."""

    lower: DiagonalNormal
    """A Gaussian factor in z1, to be multiplied with p(z1|z2); batch shape (B,)."""
    upper: DiagonalNormal
    """q(z2|x), batch shape (B,)."""


class BottomUp(NamedTuple):
    """q(z1|x) q(z2|z1) for B images."""

    lower: DiagonalNormal
    """q(z1|x), batch shape (B,)."""
    upper: Callable[[Tensor], DiagonalNormal]
    """z1 -> q(z2|z1)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x), (K, B), for z of shape (K, B, D1 + D2)."""
        z1, z2 = _split(z, self.lower)
        return self.lower.log_prob(z1) + self.upper(z1).log_prob(z2)


class TopDown(NamedTuple):
    """q(z2|x) q(z1|z2,x) for B images."""

    lower: DiagonalNormal
    upper: DiagonalNormal
    """As in Layers."""
    top_down: Callable[[Tensor], DiagonalNormal]
    """z2 -> p(z1|z2)."""

    def below(self, z2: Tensor) -> DiagonalNormal:
        """Return q(z1|z2,x), batch shape (K, B), for z2 of shape (K, B, D2)."""
        return gaussian_product(self.lower, self.top_down(z2))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z|x), (K, B), for z of shape (K, B, D1 + D2)."""
        z1, z2 = _split(z, self.lower)
        return self.upper.log_prob(z2) + self.below(z2).log_prob(z1)


class TwoLayerEncoder(Encoder):
    """q(z|x) = q(z1|x) q(z2|z1), bottom-up.

    Source: Burda, Grosse and Salakhutdinov 2016, https://arxiv.org/abs/1509.00519

    Args:
        lower: maps x, (B, X), to a DiagonalNormal over (B, D1).
        upper: maps z1, (..., D1), to a DiagonalNormal over (..., D2).
    """

    direction = Direction.EXACT

    def __init__(self, lower: nn.Module, upper: nn.Module) -> None:
        super().__init__()
        self.lower = lower
        self.upper = upper

    @classmethod
    def build(cls, context: BuildContext, *, top_hidden: Sequence[int]) -> "TwoLayerEncoder":
        """Build the encoder with the configured networks; ``top_hidden``: widths of the layers from z1 to z2."""
        widths(top_hidden=top_hidden)
        (first, second), networks = _two_layers(context)[0], context.networks
        return cls(networks.gaussian(context.x_dim, first), networks.dense_gaussian(first, top_hidden, second))

    def encode(self, x: Tensor) -> BottomUp:
        """Return q(z|x) for x of shape (B, X)."""
        return BottomUp(self.lower(x), self.upper)

    def sample(
        self, encoded: BottomUp, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        """Draw z, (K, B, D1 + D2), with its exact log density."""
        del inner_k, inner_chunk  # the density is known
        z1, log_lower = encoded.lower.rsample_and_log_prob((k,))
        z2, log_upper = encoded.upper(z1).rsample_and_log_prob()
        if not path_only:
            return Draw(torch.cat([z1, z2], -1), log_lower + log_upper)
        return _path_draw(z1, z2, BottomUp(encoded.lower.detached(), frozen(self.upper)))


class LadderEncoder(Encoder):
    """q(z|x) = q(z2|x) q(z1|z2,x), top-down, in the order of the model:

    q(z1|z2,x) ~ N(z1; m(x), s(x)^2) p(z1|z2)

    the precision-weighted combination of a Gaussian computed from the image with the model's p(z1|z2). The gradient of
    the bound reaches p(z1|z2) both through the model and through the encoder.

    Source: Sønderby et al. 2016, https://arxiv.org/abs/1602.02282, without batch normalisation

    Args:
        bottom_up: maps x, (B, X), to Layers.
        top_down: maps z2, (..., D2), to the model's p(z1|z2), a DiagonalNormal; it is not a submodule of the encoder.
    """

    direction = Direction.EXACT

    def __init__(self, bottom_up: nn.Module, top_down: nn.Module) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        # In a tuple, so that torch does not register it as a submodule; copies of the encoder copy it too.
        self._top_down = (top_down,)

    @classmethod
    def build(cls, context: BuildContext, *, top_hidden: Sequence[int]) -> "LadderEncoder":
        """Build the encoder with the configured networks; ``top_hidden``: widths of the layers above the trunk."""
        widths(top_hidden=top_hidden)
        ((first, second), top_down), networks = _two_layers(context), context.networks
        reader = networks.reader(context.x_dim)
        upper = networks.dense_gaussian(reader.width, top_hidden, second)
        return cls(LayersFromTrunk(reader, upper, first, networks.scale), top_down)

    def encode(self, x: Tensor) -> TopDown:
        """Compute the bottom-up part from x, (B, X), and return q(z|x)."""
        layers: Layers = self.bottom_up(x)
        return TopDown(layers.lower, layers.upper, self._top_down[0])

    def sample(
        self, encoded: TopDown, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        """Draw z, (K, B, D1 + D2), with its exact log density."""
        del inner_k, inner_chunk  # the density is known
        z2, log_upper = encoded.upper.rsample_and_log_prob((k,))
        z1, log_lower = encoded.below(z2).rsample_and_log_prob()
        if not path_only:
            return Draw(torch.cat([z1, z2], -1), log_upper + log_lower)
        constant = TopDown(encoded.lower.detached(), encoded.upper.detached(), frozen(self._top_down[0]))
        return _path_draw(z1, z2, constant)


class LayersFromTrunk(nn.Module):
    """x, (B, X) -> Layers: a trunk maps x to features, and dense layers map these to q(z2|x).

    Args:
        reader: x -> features.
        upper: features -> a DiagonalNormal over (B, D2).
        width: D1.
        scale: ``softplus`` or ``exp``, which makes standard deviations positive.
    """

    def __init__(self, reader: Trunk, upper: TrunkGaussian, width: int, scale: str) -> None:
        super().__init__()
        self.reader = reader
        self.lower = GaussianHead(reader.width, width, scale)
        self.upper = upper

    def forward(self, x: Tensor) -> Layers:
        features = self.reader(x)
        return Layers(self.lower(features), self.upper(features))


def gaussian_product(first: DiagonalNormal, second: DiagonalNormal) -> DiagonalNormal:
    """Return the normalised product of two Gaussian densities of the same variable."""
    # Shares of the precision 1/a^2 + 1/b^2, b^2/(a^2 + b^2) and a^2/(a^2 + b^2), without squares of small scales.
    length = torch.hypot(first.scale, second.scale)
    sine, cosine = first.scale / length, second.scale / length
    return DiagonalNormal(cosine.square() * first.mean + sine.square() * second.mean, first.scale * cosine)


def _two_layers(context: BuildContext) -> tuple[tuple[int, int], nn.Module]:
    """Return the widths of the model's layers, and its p(z1|z2)."""
    prior = context.model.latent_prior
    if not isinstance(prior, Prior) or (top_down := prior.top_down()) is None:
        raise ValueError("the encoder needs a prior of two layers: leave prior out, or set prior=chained")
    first, second = prior.layers
    return (first, second), top_down


def _split(z: Tensor, lower: DiagonalNormal) -> tuple[Tensor, Tensor]:
    width = lower.event_shape[0]
    return z[..., :width], z[..., width:]


def _path_draw(z1: Tensor, z2: Tensor, constant: BottomUp | TopDown) -> Draw:
    """Return the draw with its log density under ``constant``, the distribution with constant parameters."""
    # Views, so that a hook scales the gradient of the log weights, but not the gradient from one layer to the other.
    paths = (z1.view_as(z1), z2.view_as(z2))
    z = torch.cat(paths, -1)
    return Draw(z, constant.log_prob(z), paths)
