"""One-dimensional encoders whose rows are independent replicates.

Every parameter is a (B, 1) tensor with equal rows. After one backward pass its gradient holds B independent samples of
the gradient estimator, which give a standard error.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.hierarchical import HierarchicalEncoder
from vaebench.nets.dense import Conditional
from vaebench.selftest.oracles.gaussian import LinearGaussian

__all__ = ["GAUSSIAN", "HIERARCHICAL", "IMAGE", "Replicated", "model"]

IMAGE = 0.8

GAUSSIAN = {"mean": 0.7, "log_scale": math.log(1.3)}
HIERARCHICAL = {
    "mixing_mean": 0.3,
    "mixing_log_scale": -0.1,
    "slope": 0.8,
    "offset": 0.2,
    "log_scale": -0.3,
    "reverse_slope": 0.5,
    "reverse_offset": -0.1,
    "reverse_log_scale": -0.4,
}


def model() -> LinearGaussian:
    """Return p(z) = N(0, 1), p(x|z) = N(.9 z + .1, .7^2)."""
    return LinearGaussian(torch.tensor([[0.9]]), torch.tensor([0.1]), 0.7)


class ScalarGaussian(nn.Module):
    """x -> N(mean, exp(log_scale)^2), whatever x."""

    def __init__(self, mean: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(mean), nn.Parameter(log_scale)

    def forward(self, x: Tensor) -> DiagonalNormal:
        del x
        return DiagonalNormal(self.mean, self.log_scale.exp())


class ScalarConditional(Conditional):
    """u -> N(slope u + offset, exp(log_scale)^2)."""

    def __init__(self, slope: Tensor, offset: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.slope, self.offset, self.log_scale = (nn.Parameter(value) for value in (slope, offset, log_scale))

    def forward(self, u: Tensor, conditioned: Any) -> DiagonalNormal:
        del conditioned
        return DiagonalNormal(self.slope * u + self.offset, self.log_scale.exp())


class Replicated:
    """An encoder over B replicates and its parameters by the names of ``GAUSSIAN`` or ``HIERARCHICAL``."""

    def __init__(self, values: Mapping[str, float], replicates: int, *, share_psi: bool = False) -> None:
        rows = {key: torch.full((replicates, 1), value) for key, value in values.items()}
        parts: dict[str, nn.Module] = {}
        self.encoder: Encoder
        if "mean" in values:
            parts[""] = ScalarGaussian(rows["mean"], rows["log_scale"])
            self.encoder = GaussianEncoder(parts[""])
        else:
            parts["mixing_"] = mixing = ScalarGaussian(rows["mixing_mean"], rows["mixing_log_scale"])
            parts[""] = conditional = ScalarConditional(rows["slope"], rows["offset"], rows["log_scale"])
            reverse = None
            if "reverse_slope" in values:
                reverse = ScalarConditional(rows["reverse_slope"], rows["reverse_offset"], rows["reverse_log_scale"])
                parts["reverse_"] = reverse
            self.encoder = HierarchicalEncoder(mixing, conditional, reverse, share_psi=share_psi)
        self.parameters = {f"{key}{name}": p for key, part in parts.items() for name, p in part.named_parameters()}
