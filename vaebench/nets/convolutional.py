"""Convolutional networks between square images and vectors: gated ones, and residual ones.

Both take their plan from one list of widths: ``hidden = [c_1, ..., c_n, f]`` are the channels of n stages, each of
which halves the sides of the image, and the number f of features at the end; a painter goes the same way back.

Readers map images (..., X), rows of pixels, to features (..., f). Painters map (..., Z) to one number per pixel,
(..., X). Leading axes are free: they are one batch to the convolutions. No layer looks across that batch, so that
an image's numbers depend on no other image, and are the same in training and evaluation.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vaebench.errors import UserError
from vaebench.nets.activations import ACTIVATIONS
from vaebench.nets.trunks import Trunk

__all__ = ["GatedConv", "GatedPainter", "GatedReader", "ResidualPainter", "ResidualReader"]

_Layer = TypeVar("_Layer", nn.Conv2d, nn.ConvTranspose2d, nn.Linear)

# Images in flight where no gradient is asked for: thousands of samples of an image do not fill the memory.
_ROWS = {"cpu": 250, "cuda": 5_000}
_GATED = 4.0
# What a residual block adds at first, relative to an ordinary layer: enough to learn from, little to disturb.
_RESIDUAL_GAIN = 0.3


class _Plan(NamedTuple):
    """The sizes that a list of widths stands for."""

    channels: list[int]
    """Of the stages; those of the image itself, 1, come before."""
    sides: list[int]
    """Of the image, then after each stage."""
    features: int

    @classmethod
    def of(cls, pixels: int, hidden: Sequence[int]) -> "_Plan":
        side = math.isqrt(pixels)
        if side * side != pixels:
            raise UserError(f"a convolutional network needs square images, and {pixels} pixels make none")
        *channels, features = hidden
        sides = [side]
        for _ in channels:
            sides.append((sides[-1] + 1) // 2)
        if channels and sides[-2] < 2:
            raise UserError(f"hidden={list(hidden)}: {len(channels)} halvings of an image of side {side} are too many")
        return cls(channels, sides, features)

    @property
    def smallest(self) -> tuple[int, int, int]:
        """Channels and sides of the last map."""
        return (self.channels[-1] if self.channels else 1, self.sides[-1], self.sides[-1])

    @property
    def way_down(self) -> list[tuple[int, int]]:
        """Channels before and after each stage of a reader."""
        return list(pairwise([1, *self.channels]))

    @property
    def way_up(self) -> list[tuple[int, int, int]]:
        """Channels before and after each stage of a painter, and the sides after it."""
        if not self.channels:
            return []
        channels = [*reversed(self.channels), self.channels[0]]
        return [(*pair, side) for pair, side in zip(pairwise(channels), reversed(self.sides[:-1]), strict=True)]


class GatedConv(nn.Module):
    """Half the channels of a convolution times the sigmoid of the other half: (N, C, H, W).

    Source: van den Oord et al. 2016, https://arxiv.org/abs/1606.05328
    """

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, value: Tensor) -> Tensor:
        return _gated(self.convolution(value))


class ResidualBlock(nn.Module):
    """v + conv(act(conv(act(v)))), 3 x 3, the channels unchanged.

    Source: He et al. 2016, https://arxiv.org/abs/1603.05027, without the normalisation
    """

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.first = _convolution(channels, channels, 3)
        self.second = _convolution(channels, channels, 3)
        self.activation = ACTIVATIONS[activation]
        with torch.no_grad():
            self.second.weight.mul_(_RESIDUAL_GAIN)

    def forward(self, value: Tensor) -> Tensor:
        return value + self.second(self.activation(self.first(self.activation(value))))


class _Activated(nn.Module):
    """A layer after an activation."""

    def __init__(self, activation: str, layer: nn.Module) -> None:
        super().__init__()
        self.activation, self.layer = ACTIVATIONS[activation], layer

    def forward(self, value: Tensor) -> Tensor:
        return self.layer(self.activation(value))


class GatedReader(Trunk):
    """Images to features by gated convolutions, 5 x 5: two per stage, one more, and one over the whole map.

    With ``hidden = [32, 64, 256]`` and 28 x 28 pixels this is the encoder of the Sylvester paper.

    Source: van den Berg et al. 2018, https://arxiv.org/abs/1803.05649
    """

    def __init__(self, inputs: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        del activation  # the gates are the nonlinearity
        plan = _Plan.of(inputs, hidden)
        layers: list[nn.Module] = []
        for before, after in plan.way_down:
            layers.append(GatedConv(_convolution(before, 2 * after, 5, gain=_GATED)))
            layers.append(GatedConv(_convolution(after, 2 * after, 5, 2, gain=_GATED)))
        if plan.channels:
            layers.append(GatedConv(_convolution(plan.channels[-1], 2 * plan.channels[-1], 5, gain=_GATED)))
        self.layers = nn.Sequential(*layers)
        # A kernel as large as the map sees all of it: a dense layer.
        self.summary = _dense(math.prod(plan.smallest), 2 * plan.features, _GATED)
        self.side = plan.sides[0]
        self.width = plan.features

    def forward(self, value: Tensor) -> Tensor:
        """Map (..., X) to (..., width)."""
        return _by_rows(self._read, value)

    def _read(self, images: Tensor) -> Tensor:
        maps = self.layers(images.view(-1, 1, self.side, self.side))
        return _gated(self.summary(maps.flatten(1)))


class GatedPainter(nn.Module):
    """Latents to pixels by gated transposed convolutions: :class:`GatedReader` the other way round.

    Source: van den Berg et al. 2018, https://arxiv.org/abs/1803.05649
    """

    def __init__(self, inputs: int, pixels: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        del activation
        plan = _Plan.of(pixels, hidden)
        self.map = plan.smallest
        self.spread = _dense(inputs, 2 * math.prod(self.map), _GATED)
        layers: list[nn.Module] = []
        for before, after, side in plan.way_up:
            layers.append(GatedConv(_convolution(before, 2 * before, 5, gain=_GATED)))
            layers.append(GatedConv(_transposed(before, 2 * after, 5, side, gain=_GATED)))
        channels = plan.channels[0] if plan.channels else 1
        if plan.channels:
            layers.append(GatedConv(_convolution(channels, 2 * channels, 5, gain=_GATED)))
        self.layers = nn.Sequential(*layers)
        self.brush = _brush(channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        """Map (..., Z) to (..., X)."""
        return _by_rows(self._paint, z)

    def _paint(self, z: Tensor) -> Tensor:
        maps = _gated(self.spread(z)).view(-1, *self.map)
        return self.brush(self.layers(maps)).flatten(1)


class ResidualReader(Trunk):
    """Images to features: a residual block and a halving convolution per stage, then a dense layer.

    Source: He et al. 2016, https://arxiv.org/abs/1603.05027
    """

    def __init__(self, inputs: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        plan = _Plan.of(inputs, hidden)
        layers: list[nn.Module] = []
        for before, after in plan.way_down:
            shrink = _convolution(before, after, 3, 2)
            layers.append(_Activated(activation, shrink) if layers else shrink)
            layers.append(ResidualBlock(after, activation))
        self.layers = nn.Sequential(*layers)
        self.summary = _dense(math.prod(plan.smallest), plan.features)
        self.activation = ACTIVATIONS[activation]
        self.side = plan.sides[0]
        self.width = plan.features

    def forward(self, value: Tensor) -> Tensor:
        """Map (..., X) to (..., width)."""
        return _by_rows(self._read, value)

    def _read(self, images: Tensor) -> Tensor:
        maps = self.layers(images.view(-1, 1, self.side, self.side)).flatten(1)
        if len(self.layers):  # else these are the pixels themselves
            maps = self.activation(maps)
        return self.activation(self.summary(maps))


class ResidualPainter(nn.Module):
    """Latents to pixels: dense layers, then a residual block and a doubling convolution per stage.

    Source: He et al. 2016, https://arxiv.org/abs/1603.05027
    """

    def __init__(self, inputs: int, pixels: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        plan = _Plan.of(pixels, hidden)
        self.map = plan.smallest
        self.dense = _dense(inputs, plan.features)
        self.spread = _dense(plan.features, math.prod(self.map))
        self.activation = ACTIVATIONS[activation]
        layers: list[nn.Module] = []
        for before, after, side in plan.way_up:
            layers.append(ResidualBlock(before, activation))
            layers.append(_Activated(activation, _transposed(before, after, 3, side)))
        self.layers = nn.Sequential(*layers)
        channels = plan.channels[0] if plan.channels else 1
        self.brush = _Activated(activation, _brush(channels, 3))

    def forward(self, z: Tensor) -> Tensor:
        """Map (..., Z) to (..., X)."""
        return _by_rows(self._paint, z)

    def _paint(self, z: Tensor) -> Tensor:
        maps = self.spread(self.activation(self.dense(z))).view(-1, *self.map)
        return self.brush(self.layers(maps)).flatten(1)


def _gated(value: Tensor) -> Tensor:
    opened, gate = value.chunk(2, 1)
    return opened * gate.sigmoid()


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, gain: float = 2.0) -> nn.Conv2d:
    """Make a convolution that keeps the sides of an image, or divides them by ``stride``, rounding up."""
    return _started(nn.Conv2d(inputs, outputs, size, stride, padding=size // 2), inputs * size**2, gain)


def _transposed(inputs: int, outputs: int, size: int, side: int, gain: float = 2.0) -> nn.ConvTranspose2d:
    """Make a transposed convolution that doubles the sides of an image, to ``side`` even or odd."""
    layer = nn.ConvTranspose2d(inputs, outputs, size, 2, padding=size // 2, output_padding=(side - 1) % 2)
    # Each new pixel sees a quarter of the kernel.
    return _started(layer, inputs * size**2 / 4, gain)


def _dense(inputs: int, outputs: int, gain: float = 2.0) -> nn.Linear:
    return _started(nn.Linear(inputs, outputs), inputs, gain)


def _brush(inputs: int, size: int) -> nn.Conv2d:
    """Make the last layer of a painter, onto one channel; the pixels have biases of their own."""
    return nn.Conv2d(inputs, 1, size, padding=size // 2, bias=False)


def _started(layer: _Layer, seen: float, gain: float) -> _Layer:
    """Set a layer's weights so that numbers are of about the same size in each layer, however deep.

    ``seen`` is the number of inputs to each output, ``gain`` the inverse of the part of the variance that what follows
    lets through: about 1/2 for an activation, 1/4 for a gate that is half open.

    Source: He et al. 2015, https://arxiv.org/abs/1502.01852
    """
    limit = (3 * gain / seen) ** 0.5
    nn.init.uniform_(layer.weight, -limit, limit)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _by_rows(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Apply a map of (N, *) to (..., *), a part of N at a time where no gradient is wanted."""
    flat = value.reshape(-1, value.shape[-1])
    rows = _ROWS["cuda" if value.device.type == "cuda" else "cpu"]
    if torch.is_grad_enabled() or len(flat) <= rows:
        result = function(flat)
    else:
        result = torch.cat([function(part) for part in flat.split(rows)])
    return result.view(*value.shape[:-1], result.shape[-1])
