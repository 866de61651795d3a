"""A network in which each output depends only on the inputs before it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vaebench.distributions import at_least_float32
from vaebench.flows.flow import small_linear
from vaebench.nets.activations import ACTIVATIONS
from vaebench.nets.dense import linear

__all__ = ["MaskedNetwork"]


class MaskedLinear(nn.Module):
    """An affine layer whose weights are multiplied by ``mask``, (outputs, inputs)."""

    def __init__(self, layer: nn.Linear, mask: Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("mask", mask.to(layer.weight.dtype), persistent=False)
        self.mask: Tensor

    def forward(self, value: Tensor) -> Tensor:
        return F.linear(value, self.layer.weight * self.mask, self.layer.bias)

    def forward_by_setting(self, value: Tensor, settings: int) -> Tensor:
        """Return (..., settings, N) for outputs that are ordered as (N, settings)."""
        weight, bias = self.layer.weight * self.mask, self.layer.bias
        # The weights change their order, because they are fewer than the outputs.
        weight, bias = (part.unflatten(0, (-1, settings)).transpose(0, 1).flatten(0, 1) for part in (weight, bias))
        return F.linear(value, weight, bias).unflatten(-1, (settings, -1))


class MaskedNetwork(nn.Module):
    """(z, features) -> ``settings`` numbers per coordinate i, which depend on z_1..z_{i-1} and all features.

    The masked autoencoder (MADE): coordinates have ranks 1..D, hidden units have ranks 0..D-1. A hidden unit takes
    inputs and hidden units of its rank or less; an output takes hidden units of less than its rank. Hidden units of
    rank 0 take the features alone.

    Source: Germain, Gregor, Murray and Larochelle 2015, https://arxiv.org/abs/1502.03509

    Args:
        features: width of the features.
        dim: coordinates D.
        settings: numbers for each coordinate.
        hidden: widths of the hidden layers.
        activation: a key of ``ACTIVATIONS``.
        backward: whether the last coordinate has rank 1.
        bias: the initial output, (settings,).
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
        layers, input_ranks = [], inputs
        for depth, width in enumerate(hidden):
            units = torch.arange(width) * dim // width
            mask = input_ranks <= units.unsqueeze(-1)
            layers.append(MaskedLinear(linear(len(input_ranks), width, bias=depth > 0), mask))
            input_ranks = units
        self.layers = nn.ModuleList(layers)
        mask = (input_ranks < inputs.unsqueeze(-1)).repeat_interleave(settings, 0)
        self.last = MaskedLinear(small_linear(len(input_ranks), dim * settings, bias.repeat(dim)), mask)

    def condition(self, features: Tensor) -> Tensor:
        """Return the features' share of the first layer, (B, hidden[0])."""
        return self.features(features)

    def forward(self, z: Tensor, conditioned: Tensor) -> Tensor:
        """Map z, (K, B, D), to (K, B, settings, D), float32 or better, in one pass.

        With D last, CPUs vectorise operations over one setting.
        """
        first, *others = self.layers
        value = self.activation(first(z) + conditioned)
        for layer in others:
            value = self.activation(layer(value))
        return at_least_float32(self.last.forward_by_setting(value, self.settings))
