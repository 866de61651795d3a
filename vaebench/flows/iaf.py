"""Inverse autoregressive flow."""

import torch
from torch import Tensor

from vaebench.arguments import at_least
from vaebench.flows.flow import Flow, FlowContext, StepParameters, Transformed, gradient_of
from vaebench.flows.masked import MaskedNetwork

__all__ = ["IAFFlow"]

# The gate's initial bias: each step keeps 0.95 of its input. (The paper's +1 to +2 keeps 0.73 to 0.88.)
_GATE_BIAS = 3.0
# No step shrinks a coordinate by more than this factor.
_SMALLEST_GATE = 1e-3


class IAFFlow(Flow):
    """z'_i = g_i z_i + (1 - g_i) m_i, with the gate g_i in (0, 1) and m_i from z_1..z_{i-1} and x.

    One pass of the network transforms all coordinates, and log|det J| = sum_i log g_i. The inverse takes D passes;
    sampling does not need it. The order of the coordinates is reversed from step to step.

    Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling 2016, https://arxiv.org/abs/1606.04934

    Args:
        context: the widths of the step.
        width: hidden units in a layer of the network.
        depth: hidden layers.
    """

    def __init__(self, context: FlowContext, width: int, depth: int) -> None:
        super().__init__()
        at_least(1, width=width, depth=depth)
        self.network = MaskedNetwork(
            context.features,
            context.latent_dim,
            2,
            hidden=[width] * depth,
            activation=context.activation,
            backward=context.index % 2 == 1,
            bias=torch.tensor([0.0, _GATE_BIAS]),
        )

    def condition(self, features: Tensor) -> StepParameters:
        """Return the features' share of the network's first layer, (B, width)."""
        return (self.network.condition(features),)

    def forward(self, z: Tensor, conditioned: StepParameters) -> Transformed:
        """Return z' and the log-determinant, in one pass."""
        gate, target = self._gate_and_target(z, conditioned)
        return Transformed(gate * z + (1 - gate) * target, gate.log().sum(-1))

    def inverse(self, z: Tensor, conditioned: StepParameters) -> Tensor:
        """Solve for z by D passes; after pass i the first i coordinates in the step's order are exact."""
        before = z
        with torch.no_grad():
            for _ in range(z.shape[-1]):
                gate, target = self._gate_and_target(before, conditioned)
                before = (z - (1 - gate) * target) / gate
        return before

    def solve_transposed(self, z: Tensor, transformed: Tensor, conditioned: StepParameters, gradient: Tensor) -> Tensor:
        """Solve the triangular system by fixed-point iteration in all coordinates.

        After i rounds the last i coordinates in the step's order are exact, so D rounds are exact. If the step is near
        the identity, a few rounds suffice, and the iteration stops.
        """
        del transformed
        gate, target = self._gate_and_target(z, conditioned)
        # The dependence on z through the network alone: coordinate i depends on the coordinates before it.
        through_network = gate * z.detach() + (1 - gate) * target
        gate = gate.detach()
        solved = gradient / gate
        for _ in range(z.shape[-1]):
            update = (gradient - gradient_of((through_network * solved).sum(), z)) / gate
            change, solved = (update - solved).abs().max(), update
            if change <= torch.finfo(z.dtype).eps * solved.abs().max():
                break
        return solved

    def _gate_and_target(self, z: Tensor, conditioned: StepParameters) -> tuple[Tensor, Tensor]:
        target, raw = self.network(z, conditioned[0]).unbind(-2)
        return _SMALLEST_GATE + (1 - _SMALLEST_GATE) * raw.sigmoid(), target
