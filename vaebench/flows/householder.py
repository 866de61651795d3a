"""Householder flow."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vaebench.distributions import at_least_float32
from vaebench.flows.flow import Flow, FlowContext, StepParameters, Transformed, small_linear

__all__ = ["HouseholderFlow"]


class HouseholderFlow(Flow):
    """z' = (I - 2 v v^T / ||v||^2) z, with v from x: a reflection, which keeps every volume.

    Products of reflections are all rotations (and reflections), so they turn a diagonal covariance into a full one. At
    first each pair of steps has one normal in common, so that the second step undoes the first.

    Source: Tomczak and Welling 2016, https://arxiv.org/abs/1611.09630
    """

    def __init__(self, context: FlowContext) -> None:
        super().__init__()
        start = torch.zeros(context.latent_dim)
        start[context.index // 2 % context.latent_dim] = 1
        self.head = small_linear(context.features, context.latent_dim, start)

    def condition(self, features: Tensor) -> StepParameters:
        """Return the mirror's unit normal, (B, D)."""
        return (F.normalize(at_least_float32(self.head(features)), dim=-1),)

    def forward(self, z: Tensor, conditioned: StepParameters) -> Transformed:
        """Return the reflection of z and the log-determinant 0."""
        return Transformed(self.inverse(z, conditioned), z.new_zeros(z.shape[:-1]))

    def inverse(self, z: Tensor, conditioned: StepParameters) -> Tensor:
        """Reflect: a reflection is its own inverse."""
        (normal,) = conditioned
        return z - 2 * normal * (normal * z).sum(-1, keepdim=True)

    def solve_transposed(self, z: Tensor, transformed: Tensor, conditioned: StepParameters, gradient: Tensor) -> Tensor:
        """Reflect: J = J^T = J^-1."""
        del z, transformed
        return self.inverse(gradient, conditioned)
