"""A network whose outputs see only the inputs before them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebench.distributions import at_least_float32
from vaebench.flows.flow import small_linear
from vaebench.nets.activations import ACTIVATIONS
from vaebench.nets.trunks import linear

__all__ = ["MaskedNetwork"]


class MaskedLinear(nn.Module):
    """An affine layer in which a unit of rank r hears only the inputs that ``mask``, (outputs, inputs), lets by."""

    def __init__(self, layer: nn.Linear, mask: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", mask.to(layer.weight.dtype), persistent=False)
        self.mask: Tensor

    def forward(self, value: Tensor) -> Tensor:
        return F.linear(value, self.layer.weight * self.mask, self.layer.bias)


class MaskedNetwork(nn.Module):
    """(z, features) -> ``settings`` numbers per coordinate; those of the i-th see z_1..z_{i-1} and all features.

    The masked autoencoder (MADE): coordinates have ranks 1..D, hidden units ranks 0..D-1; a hidden unit hears
    inputs and hidden units of its rank or less, an output hears hidden units of less than its rank. Hidden units
    of rank 0 hear the features alone.

    Source: Germain, Gregor, Murray and Larochelle 2015, https://arxiv.org/abs/1502.03509

    Args:
        features: width of the features.
        dim: coordinates D.
        settings: numbers for each coordinate.
        hidden: widths of the hidden layers.
        activation: a key of ``ACTIVATIONS``.
        backward: rank the coordinates from the last to the first.
        bias: what to return at the start, (settings,).
    """

    def __init__(
        self,
        features: int,
        dim: int,
        settings: int,
        *,
        hidden: list[int],
        activation: str,
        backward: bool,
        bias: Tensor,
    ) -> None:
        super().__init__()
        ranks = torch.arange(1, dim + 1)
        inputs = ranks.flip(0) if backward else ranks
        self.settings = settings
        self.activation = ACTIVATIONS[activation]
        self.features = linear(features, hidden[0])
        layers, heard = [], inputs
        for depth, width in enumerate(hidden):
            units = torch.arange(width) * dim // width
            mask = heard <= units.unsqueeze(-1)
            layers.append(MaskedLinear(linear(len(heard), width, bias=depth > 0), mask))
            heard = units
        self.layers = nn.ModuleList(layers)
        mask = (heard < inputs.unsqueeze(-1)).repeat_interleave(settings, 0)
        self.last = MaskedLinear(small_linear(len(heard), dim * settings, bias.repeat(dim)), mask)

    def condition(self, features: Tensor) -> Tensor:
        """Return the features' share of the first layer, (B, hidden[0])."""
        return self.features(features)

    def forward(self, z: Tensor, conditioned: Tensor) -> Tensor:
        """Map z, (K, B, D), to (K, B, D, settings), float32 or better, in one pass."""
        first, *others = self.layers
        value = self.activation(first(z) + conditioned)
        for layer in others:
            value = self.activation(layer(value))
        return at_least_float32(self.last(value)).unflatten(-1, (-1, self.settings))
