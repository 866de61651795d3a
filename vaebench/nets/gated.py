"""Gated dense layers: the sigmoid of one linear map multiplies another linear map."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vaebench.nets.dense import Trunk, linear

__all__ = ["GatedDense", "GatedMLP"]


class GatedDense(nn.Module):
    """(A v + a) * sigmoid(B v + b), over the last axis.

    Source: Dauphin et al. 2017, https://arxiv.org/abs/1612.08083
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.value = linear(inputs, outputs)
        self.gate = linear(inputs, outputs)

    def forward(self, value: Tensor) -> Tensor:
        return self.value(value) * self.gate(value).sigmoid()


class GatedMLP(Trunk):
    """Gated dense layers: (..., inputs) -> (..., hidden[-1]).

    The gates are the only nonlinearity; ``activation`` is ignored.

    Source: Tomczak and Welling 2018, https://arxiv.org/abs/1705.07120
    """

    def __init__(self, inputs: int, hidden: Sequence[int], activation: str) -> None:
        super().__init__()
        del activation
        self.layers = nn.Sequential(*(GatedDense(a, b) for a, b in pairwise([inputs, *hidden])))
        self.width = hidden[-1]

    def forward(self, value: Tensor) -> Tensor:
        """Map (..., inputs) to (..., width)."""
        return self.layers(value)
