"""Planar flow."""

import torch
from torch import Tensor

from vaebench.distributions import at_least_float32
from vaebench.flows.flow import (
    Flow,
    FlowContext,
    StepParameters,
    Transformed,
    above_minus_one,
    increasing_root,
    small_linear,
)

__all__ = ["PlanarFlow", "invertible_direction"]


def invertible_direction(u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return u', the nearest to u for which z + u' tanh(w.z + b) is invertible, and w.u', for u and w (..., D).

    u' = u + (m(w.u) - w.u) w / ||w||^2 has w.u' = m(w.u), and m > -1 makes the map invertible. The paper's
    m(a) = -1 + softplus(a) turns u = 0 into a contraction. Here m(0) = 0, so that u = 0 is the identity.
    """
    product = (w * u).sum(-1, keepdim=True)
    slope = above_minus_one(product)
    squared_norm = w.square().sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    return u + (slope - product) * w / squared_norm, slope


class PlanarFlow(Flow):
    """z' = z + u tanh(w.z + b), with u, w and b from x, and log|det J| = log(1 + w.u tanh'(w.z + b)).

    Source: Rezende and Mohamed 2015, https://arxiv.org/abs/1505.05770
    """

    def __init__(self, context: FlowContext) -> None:
        super().__init__()
        self.dim = context.latent_dim
        # u about 0 is the identity; w of length 1 gives u a gradient.
        start = torch.zeros(2 * context.latent_dim + 1)
        start[context.latent_dim : -1] = torch.nn.functional.normalize(torch.randn(context.latent_dim), dim=0)
        self.head = small_linear(context.features, 2 * context.latent_dim + 1, start)

    def condition(self, features: Tensor) -> StepParameters:
        """Return u', w.u', w and b."""
        raw = at_least_float32(self.head(features))
        u, w, b = raw.split([self.dim, self.dim, 1], -1)
        return *invertible_direction(u, w), w, b

    def forward(self, z: Tensor, conditioned: StepParameters) -> Transformed:
        u, slope, w, b = conditioned
        bent = torch.tanh((z * w).sum(-1, keepdim=True) + b)
        log_det = torch.log1p(slope * (1 - bent.square())).squeeze(-1)
        return Transformed(z + u * bent, log_det)

    def inverse(self, z: Tensor, conditioned: StepParameters) -> Tensor:
        """Solve a + w.u tanh(a + b) = w.z' for the scalar a = w.z."""
        u, slope, w, b = conditioned
        target = (z * w).sum(-1, keepdim=True)
        reach = slope.abs()
        along = increasing_root(lambda a: a + slope * torch.tanh(a + b) - target, target - reach, target + reach)
        return z - u * torch.tanh(along + b)

    def solve_transposed(self, z: Tensor, transformed: Tensor, conditioned: StepParameters, gradient: Tensor) -> Tensor:
        """Invert J^T = I + tanh' w u^T by Sherman and Morrison's formula."""
        del transformed
        u, slope, w, b = conditioned
        steepness = 1 - torch.tanh((z * w).sum(-1, keepdim=True) + b).square()
        along = (u * gradient).sum(-1, keepdim=True) / (1 + steepness * slope)
        return gradient - steepness * w * along
