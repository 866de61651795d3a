"""A reverse model that is about equal to the mixing distribution at the start of training."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.distributions import DiagonalNormal
from vaebench.nets.dense import AdditiveGaussian, Conditional, linear

__all__ = ["GatedReverse"]


class GatedReverse(Conditional):
    """tau(psi|z,x) between q(psi|x) and its own Gaussian, by a gate g(z, x) in (0, 1) per coordinate.

    mean = m(x) + g (mean' - m(x)),  scale = s(x) + g (scale' - s(x))

    with q(psi|x) = N(m, s^2). A closed gate (g = 0) is SIVI, an open gate (g = 1) is IWHVI.

    Source: the authors' code of https://arxiv.org/abs/1905.03290, where q(psi) = N(0, I)

    Args:
        proposal: tau's own Gaussian; the gate takes the features under its head.
        mixing: the encoder's q(psi|x), a DiagonalNormal; it is not a submodule of this module.
        dim: width of psi.
        tau_gate: the gate's initial bias; -2 gives g = 0.12 at first.

    Raises:
        ValueError: ``tau_gate`` is not a finite number.
    """

    def __init__(self, proposal: AdditiveGaussian, mixing: nn.Module, dim: int, tau_gate: float) -> None:
        super().__init__()
        if isinstance(tau_gate, bool) or not isinstance(tau_gate, int | float) or not math.isfinite(tau_gate):
            raise ValueError(f"tau_gate must be a finite number or null, got {tau_gate!r}")
        self.proposal = proposal
        self.gate = linear(proposal.network.width, dim)
        nn.init.constant_(self.gate.bias, tau_gate)
        # In a tuple, so that torch does not register it as a submodule; copies of the encoder copy it too.
        self._mixing = (mixing,)

    def condition(self, x: Tensor) -> Any:
        """Return the part of the network that depends on x, and the mean and scale of q(psi|x)."""
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
