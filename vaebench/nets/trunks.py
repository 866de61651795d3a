"""Trunks: from an input (..., D) to features (..., H), for any leading axes."""

from collections.abc import Sequence
from itertools import chain, pairwise

from torch import Tensor, nn

from vaebench.nets.activations import ACTIVATIONS

__all__ = ["MLP", "AdditiveMLP", "Trunk", "linear", "weights_of"]


class Trunk(nn.Module):
    """A network over the last axis; ``width`` is the number of features it returns."""

    width: int


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, as they are; torch.compile cannot follow ``state_dict``."""
    return dict(chain(module.named_parameters(), module.named_buffers()))


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Make an affine layer with Glorot-uniform weights and zero bias, as in the IWAE and IWHVI code."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


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
    """Dense layers over x to each of which a second input ``u`` is added linearly, as psi is in IWHVI's encoder.

    h_1 = act(W_1 x + U_1 u),  h_i = act(W_i h_{i-1} + U_i u)

    ``condition(x)`` is all that depends on x alone; it runs once per image, whatever the number of draws of u. With a
    ``reader``, a trunk over x, its features take the place of x.

    Source: the authors' code of https://arxiv.org/abs/1905.03290
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
