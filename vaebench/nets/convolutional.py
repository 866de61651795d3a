"""Convolutional networks between images and vectors: gated networks and residual networks.

One list of widths gives all sizes: ``hidden = [c_1, ..., c_n, f]`` are the channels of n stages, each of which halves
the sides of the image, and the number f of features. A decoder has the same stages in reverse order.

An image has the shape (C, H, W), and X = C * H * W. Sides that are odd are halved upwards: 7 becomes 4, and a decoder
makes 7 of 4. Trunks map images (..., X) to features (..., f). Decoders map (..., Z) to P numbers for each pixel and
channel, (..., P * X), the first number of all pixels first. All leading axes form one batch. No layer mixes the images
of a batch, so an image's output does not depend on other images, and is the same in training and evaluation.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from vaebench.arguments import widths
from vaebench.nets.activations import ACTIVATIONS
from vaebench.nets.dense import Trunk
from vaebench.runtime import ByDevice

__all__ = ["GatedConv", "GatedConvDecoder", "GatedConvTrunk", "ResNetDecoder", "ResNetTrunk", "Shape"]

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

_Layer = TypeVar("_Layer", nn.Conv2d, nn.ConvTranspose2d, nn.Linear)

# Images computed at a time without gradients, so that thousands of samples of an image fit into memory.
_ROWS = ByDevice(250, 5_000)
_GATED = 4.0
# Initial output of a residual block relative to an ordinary layer: small, but large enough to learn from.
_RESIDUAL_GAIN = 0.3


class _Sizes(NamedTuple):
    """The sizes that a list of widths defines."""

    channels: list[int]
    """Channels of the image, then of the stages."""
    sides: list[tuple[int, int]]
    """Height and width of the image, then after each stage."""
    features: int

    @classmethod
    def of(cls, shape: Shape, hidden: Sequence[int]) -> "_Sizes":
        widths(hidden=hidden)
        *channels, features = hidden
        sides = [shape[1:]]
        for _ in channels:
            sides.append(((sides[-1][0] + 1) // 2, (sides[-1][1] + 1) // 2))
        if channels and min(sides[-2]) < 2:
            raise ValueError(
                f"hidden must have fewer stages for images of {shape[1]}x{shape[2]} pixels, which {len(channels)} "
                f"stages halve to less than 1, got {list(hidden)}"
            )
        return cls([shape[0], *channels], sides, features)

    @property
    def smallest(self) -> Shape:
        """Channels, height and width of the last feature map."""
        return (self.channels[-1], *self.sides[-1])

    @property
    def way_down(self) -> list[tuple[int, int]]:
        """Channels before and after each stage of a trunk."""
        return list(pairwise(self.channels))

    @property
    def way_up(self) -> list[tuple[int, int, tuple[int, int]]]:
        """Channels before and after each stage of a decoder, and the sides after it."""
        if len(self.channels) == 1:
            return []
        stages = self.channels[1:]
        return [
            (*pair, sides)
            for pair, sides in zip(pairwise([*reversed(stages), stages[0]]), reversed(self.sides[:-1]), strict=True)
        ]

    @property
    def last_channels(self) -> int:
        """Channels before the last layer of a decoder."""
        return self.channels[1] if len(self.channels) > 1 else self.channels[0]


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
    """An activation, then a layer."""

    def __init__(self, activation: str, layer: nn.Module) -> None:
        super().__init__()
        self.activation, self.layer = ACTIVATIONS[activation], layer

    def forward(self, value: Tensor) -> Tensor:
        return self.layer(self.activation(value))


class _ByRows(nn.Module, ABC):
    """A map of (..., inputs) to (..., outputs) that flattens the leading axes to one batch of N rows."""

    @abstractmethod
    def rows(self, value: Tensor, /) -> Tensor:
        """Map (N, inputs) to (N, outputs)."""

    def forward(self, value: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs), without gradients some rows at a time."""
        flat = value.reshape(-1, value.shape[-1])
        count = _ROWS.on(value.device)
        if torch.is_grad_enabled() or len(flat) <= count:
            result = self.rows(flat)
        else:
            result = torch.cat([self.rows(part) for part in flat.split(count)])
        return result.reshape(*value.shape[:-1], result.shape[-1])


class GatedConvDecoder(_ByRows):
    """Latents to pixels by gated transposed convolutions: the stages of :class:`GatedConvTrunk` in reverse order.

    Source: van den Berg et al. 2018, https://arxiv.org/abs/1803.05649
    """

    def __init__(self, inputs: int, shape: Shape, outputs: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        del activation
        sizes = _Sizes.of(shape, hidden)
        self.map = sizes.smallest
        self.spread = _dense(inputs, 2 * math.prod(self.map), _GATED)
        layers: list[nn.Module] = []
        channels = sizes.last_channels
        for before, after, sides in sizes.way_up:
            layers.append(GatedConv(_convolution(before, 2 * before, 5, gain=_GATED)))
            layers.append(GatedConv(_transposed(before, 2 * after, 5, sides, gain=_GATED)))
        if layers:
            layers.append(GatedConv(_convolution(channels, 2 * channels, 5, gain=_GATED)))
        self.layers = nn.Sequential(*layers)
        self.brush = _pixel_layer(channels, outputs * shape[0], 1)

    def rows(self, z: Tensor) -> Tensor:
        maps = _gated(self.spread(z)).reshape(-1, *self.map)
        return self.brush(self.layers(maps)).flatten(1)


class GatedConvTrunk(_ByRows, Trunk):
    """Images to features by gated 5 x 5 convolutions: two per stage, one more, then one over the whole feature map.

    With ``hidden = [32, 64, 256]`` and 28 x 28 pixels this is the encoder of the Sylvester paper.

    Source: van den Berg et al. 2018, https://arxiv.org/abs/1803.05649
    """

    decoder = GatedConvDecoder

    def __init__(self, shape: Shape, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        del activation  # the gates are the nonlinearity
        sizes = _Sizes.of(shape, hidden)
        layers: list[nn.Module] = []
        for before, after in sizes.way_down:
            layers.append(GatedConv(_convolution(before, 2 * after, 5, gain=_GATED)))
            layers.append(GatedConv(_convolution(after, 2 * after, 5, 2, gain=_GATED)))
        if layers:
            layers.append(GatedConv(_convolution(sizes.channels[-1], 2 * sizes.channels[-1], 5, gain=_GATED)))
        self.layers = nn.Sequential(*layers)
        # A convolution with a kernel of the size of the feature map is a dense layer.
        self.summary = _dense(math.prod(sizes.smallest), 2 * sizes.features, _GATED)
        self.shape = shape
        self.width = sizes.features

    def rows(self, images: Tensor) -> Tensor:
        maps = self.layers(images.reshape(-1, *self.shape))
        return _gated(self.summary(maps.flatten(1)))


class ResNetDecoder(_ByRows):
    """Latents to pixels: dense layers, then a residual block and a doubling convolution per stage.

    Source: He et al. 2016, https://arxiv.org/abs/1603.05027
    """

    def __init__(self, inputs: int, shape: Shape, outputs: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        sizes = _Sizes.of(shape, hidden)
        self.map = sizes.smallest
        self.dense = _dense(inputs, sizes.features)
        self.spread = _dense(sizes.features, math.prod(self.map))
        self.activation = ACTIVATIONS[activation]
        layers: list[nn.Module] = []
        for before, after, sides in sizes.way_up:
            layers.append(ResidualBlock(before, activation))
            layers.append(_Activated(activation, _transposed(before, after, 3, sides)))
        self.layers = nn.Sequential(*layers)
        self.brush = _Activated(activation, _pixel_layer(sizes.last_channels, outputs * shape[0], 3))

    def rows(self, z: Tensor) -> Tensor:
        maps = self.spread(self.activation(self.dense(z))).reshape(-1, *self.map)
        return self.brush(self.layers(maps)).flatten(1)


class ResNetTrunk(_ByRows, Trunk):
    """Images to features: a residual block and a halving convolution per stage, then a dense layer.

    Source: He et al. 2016, https://arxiv.org/abs/1603.05027
    """

    decoder = ResNetDecoder

    def __init__(self, shape: Shape, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        sizes = _Sizes.of(shape, hidden)
        layers: list[nn.Module] = []
        for before, after in sizes.way_down:
            shrink = _convolution(before, after, 3, 2)
            layers.append(_Activated(activation, shrink) if layers else shrink)
            layers.append(ResidualBlock(after, activation))
        self.layers = nn.Sequential(*layers)
        self.summary = _dense(math.prod(sizes.smallest), sizes.features)
        self.activation = ACTIVATIONS[activation]
        self.shape = shape
        self.width = sizes.features

    def rows(self, images: Tensor) -> Tensor:
        maps = self.layers(images.reshape(-1, *self.shape)).flatten(1)
        if len(self.layers):  # without stages these are the pixels
            maps = self.activation(maps)
        return self.activation(self.summary(maps))


def _gated(value: Tensor) -> Tensor:
    opened, gate = value.chunk(2, 1)
    return opened * gate.sigmoid()


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, gain: float = 2.0) -> nn.Conv2d:
    """Make a convolution that keeps the sides of an image, or divides them by ``stride``, rounding up."""
    return _initialised(nn.Conv2d(inputs, outputs, size, stride, padding=size // 2), inputs * size**2, gain)


def _transposed(inputs: int, outputs: int, size: int, sides: tuple[int, int], gain: float = 2.0) -> nn.ConvTranspose2d:
    """Make a transposed convolution that doubles the sides of an image, to ``sides`` even or odd."""
    padding = ((sides[0] - 1) % 2, (sides[1] - 1) % 2)
    layer = nn.ConvTranspose2d(inputs, outputs, size, 2, padding=size // 2, output_padding=padding)
    # A quarter of the kernel contributes to each output pixel.
    return _initialised(layer, inputs * size**2 / 4, gain)


def _dense(inputs: int, outputs: int, gain: float = 2.0) -> nn.Linear:
    return _initialised(nn.Linear(inputs, outputs), inputs, gain)


def _pixel_layer(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    """Make the last layer of a decoder, without biases: ConvolutionalDecoder has its own for each pixel."""
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)


def _initialised(layer: _Layer, inputs: float, gain: float) -> _Layer:
    """Initialise a layer so that its outputs have about the variance of its inputs, at any depth.

    ``inputs`` is the number of inputs of each output. ``gain`` is the inverse of the fraction of the variance that the
    nonlinearity after the layer keeps: about 1/2 for an activation, 1/4 for a half-open gate.

    Source: He et al. 2015, https://arxiv.org/abs/1502.01852
    """
    limit = (3 * gain / inputs) ** 0.5
    nn.init.uniform_(layer.weight, -limit, limit)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
