"""Radial flow."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vaebench.distributions import at_least_float32
from vaebench.flows.flow import Flow, FlowContext, StepParameters, Transformed, above_minus_one, small_linear

__all__ = ["RadialFlow"]

# alpha is a radius; this is its least value.
_ALPHA_FLOOR = 1e-3


class RadialFlow(Flow):
    """z' = z + beta (z - c) / (alpha + r), r = ||z - c||, with centre c, alpha > 0 and beta > -alpha from x.

    log|det J| = (D - 1) log(1 + beta/(alpha + r)) + log(1 + alpha beta/(alpha + r)^2).

    Source: Rezende and Mohamed 2015, https://arxiv.org/abs/1505.05770
    """

    def __init__(self, context: FlowContext) -> None:
        super().__init__()
        self.dim = context.latent_dim
        # alpha starts at the typical distance of a draw from the centre, where the step has most effect.
        start = [0.0] * context.latent_dim + [math.log(math.expm1(math.sqrt(context.latent_dim))), 0.0]
        self.head = small_linear(context.features, context.latent_dim + 2, start)

    def condition(self, features: Tensor) -> StepParameters:
        """Return c, alpha and beta/alpha > -1."""
        raw = at_least_float32(self.head(features))
        centre, alpha, ratio = raw.split([self.dim, 1, 1], -1)
        return centre, F.softplus(alpha) + _ALPHA_FLOOR, above_minus_one(ratio)

    def forward(self, z: Tensor, conditioned: StepParameters) -> Transformed:
        centre, _, _ = conditioned
        offset = z - centre
        across, along = self._stretch(offset, conditioned)
        log_det = (self.dim - 1) * torch.log1p(across) + torch.log1p(along)
        return Transformed(z + across * offset, log_det.squeeze(-1))

    def inverse(self, z: Tensor, conditioned: StepParameters) -> Tensor:
        """Return the input: r solves the quadratic r^2 + (alpha + beta - r') r - alpha r' = 0."""
        centre, alpha, ratio = conditioned
        offset = z - centre
        radius = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        half = (alpha * (1 + ratio) - radius) / 2
        product = alpha * radius
        root = (half.square() + product).sqrt()
        # The positive root, in the form that adds numbers of one sign.
        before = torch.where(half > 0, product / (half + root), root - half)
        return centre + offset / (1 + ratio * alpha / (alpha + before))

    def solve_transposed(self, z: Tensor, transformed: Tensor, conditioned: StepParameters, gradient: Tensor) -> Tensor:
        """J is symmetric: 1 + along in the direction of z - c, 1 + across in every other."""
        del transformed
        offset = z - conditioned[0]
        across, along = self._stretch(offset, conditioned)
        outward = F.normalize(offset, dim=-1)
        radial = outward * (outward * gradient).sum(-1, keepdim=True)
        return radial / (1 + along) + (gradient - radial) / (1 + across)

    @staticmethod
    def _stretch(offset: Tensor, conditioned: StepParameters) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues of J - I across the radius and along it, (K, B, 1) each."""
        _, alpha, ratio = conditioned
        share = alpha / (alpha + torch.linalg.vector_norm(offset, dim=-1, keepdim=True))
        return ratio * share, ratio * share.square()
