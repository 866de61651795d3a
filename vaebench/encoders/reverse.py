"""A reverse model that starts out as the mixing distribution."""

from typing import Any

import torch
from torch import Tensor, nn

from vaebench.distributions import DiagonalNormal
from vaebench.nets.heads import AdditiveGaussian, Conditional
from vaebench.nets.trunks import linear

__all__ = ["GatedReverse"]


class GatedReverse(Conditional):
    """tau(psi|z,x) between q(psi|x) and a Gaussian of its own, by a gate g(z, x) in (0, 1) per coordinate.

    mean = m(x) + g (mean' - m(x)),  scale = s(x) + g (scale' - s(x))

    with q(psi|x) = N(m, s^2). A closed gate is SIVI, an open one IWHVI.

    Source: the authors' code of https://arxiv.org/abs/1905.03290, where q(psi) = N(0, I)

    Args:
        proposal: the Gaussian of its own; the gate reads the features under its head.
        mixing: the encoder's q(psi|x), a DiagonalNormal. It stays the encoder's: it is no part of this module.
        dim: width of psi.
        bias: the gate's initial bias; -2 opens it to 12 % at first.
    """

    def __init__(self, proposal: AdditiveGaussian, mixing: nn.Module, dim: int, bias: float) -> None:
        super().__init__()
        self.proposal = proposal
        self.gate = linear(proposal.network.width, dim)
        nn.init.constant_(self.gate.bias, bias)
        # A tuple hides it from the module's parameters and states, and is copied along with the encoder.
        self._mixing = (mixing,)

    def condition(self, x: Tensor) -> Any:
        """Return the network's part of x, and the mean and scale of q(psi|x)."""
        base = self._mixing[0](x)
        return self.proposal.condition(x), base.mean, base.scale

    def forward(self, u: Tensor, conditioned: Any) -> DiagonalNormal:
        own, mean, scale = conditioned
        features = self.proposal.network(u, own)
        tau = self.proposal.head(features)
        gate = self.gate(features).sigmoid()
        return DiagonalNormal(
            torch.lerp(mean.expand_as(tau.mean), tau.mean, gate.to(mean.dtype)),
            torch.lerp(scale.expand_as(tau.scale), tau.scale, gate.to(scale.dtype)),
        )
