"""Inverse autoregressive flow."""

import torch
from torch import Tensor

from vaebench.flows.flow import Conditioned, Flow, FlowContext, Moved, gradient_of
from vaebench.flows.masked import MaskedNetwork

__all__ = ["IAFFlow"]

# The gate's start: each step keeps 0.95 of its input. (The paper's +1 to +2 keeps 0.73 to 0.88.)
_GATE_BIAS = 3.0
# One step never shrinks a coordinate by more.
_SMALLEST_GATE = 1e-3


class IAFFlow(Flow):
    """z'_i = g_i z_i + (1 - g_i) m_i, with the gate g_i in (0, 1) and m_i from z_1..z_{i-1} and x.

    All coordinates move at once, in one pass of the network, and log|det J| = sum_i log g_i. The inverse takes D
    passes, and sampling never needs it. The order of the coordinates is reversed from step to step.

    Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling 2016, https://arxiv.org/abs/1606.04934

    Args:
        place: where the step stands.
        width: hidden units in a layer of the network.
        depth: hidden layers.
    """

    def __init__(self, place: FlowContext, width: int, depth: int) -> None:
        super().__init__()
        self.network = MaskedNetwork(
            place.features,
            place.dim,
            2,
            hidden=[width] * depth,
            activation=place.activation,
            backward=place.index % 2 == 1,
            bias=torch.tensor([0.0, _GATE_BIAS]),
        )

    @classmethod
    def build(cls, place: FlowContext, *, width: int, depth: int) -> "IAFFlow":
        """Make one whose network has ``depth`` hidden layers of ``width`` units."""
        return cls(place, width, depth)

    def condition(self, features: Tensor) -> Conditioned:
        """Return the features' share of the network's first layer, (B, width)."""
        return (self.network.condition(features),)

    def forward(self, z: Tensor, conditioned: Conditioned) -> Moved:
        """Map (K, B, D) forward in one pass."""
        gate, target = self._gate_and_target(z, conditioned)
        return Moved(gate * z + (1 - gate) * target, gate.log().sum(-1))

    def inverse(self, z: Tensor, conditioned: Conditioned) -> Tensor:
        """Solve for z by D passes: after the i-th, the first i coordinates in the step's order are right."""
        before = z
        with torch.no_grad():
            for _ in range(z.shape[-1]):
                gate, target = self._gate_and_target(before, conditioned)
                before = (z - (1 - gate) * target) / gate
        return before

    def solve_transposed(self, z: Tensor, moved: Tensor, conditioned: Conditioned, gradient: Tensor) -> Tensor:
        """Solve the triangular system by substitution in all coordinates at once.

        After i rounds the last i coordinates in the step's order are what plain back-substitution makes them,
        so D rounds are exact; where the step is gentle a few are, and the rest are saved.
        """
        del moved
        gate, target = self._gate_and_target(z, conditioned)
        # What z does through the network alone: the gradient of coordinate i reaches only those before it.
        through_network = gate * z.detach() + (1 - gate) * target
        gate = gate.detach()
        solved = gradient / gate
        for _ in range(z.shape[-1]):
            update = (gradient - gradient_of((through_network * solved).sum(), z)) / gate
            change, solved = (update - solved).abs().max(), update
            if change <= torch.finfo(z.dtype).eps * solved.abs().max():
                break
        return solved

    def _gate_and_target(self, z: Tensor, conditioned: Conditioned) -> tuple[Tensor, Tensor]:
        target, raw = self.network(z, conditioned[0]).unbind(-1)
        return _SMALLEST_GATE + (1 - _SMALLEST_GATE) * raw.sigmoid(), target
