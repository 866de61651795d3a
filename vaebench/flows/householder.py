"""Householder flow."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vaebench.distributions import at_least_float32
from vaebench.flows.flow import Conditioned, Flow, FlowContext, Moved, small_linear

__all__ = ["HouseholderFlow"]


class HouseholderFlow(Flow):
    """z' = (I - 2 v v^T / ||v||^2) z, with v from x: a reflection, which keeps every volume.

    Products of reflections are all rotations (and reflections): they turn a diagonal covariance into a full one.
    Two steps that share their mirror undo one another, and so pairs of steps start.

    Source: Tomczak and Welling 2016, https://arxiv.org/abs/1611.09630
    """

    def __init__(self, place: FlowContext) -> None:
        super().__init__()
        start = torch.zeros(place.dim)
        start[place.index // 2 % place.dim] = 1
        self.head = small_linear(place.features, place.dim, start)

    @classmethod
    def build(cls, place: FlowContext) -> "HouseholderFlow":
        """Make one."""
        return cls(place)

    def condition(self, features: Tensor) -> Conditioned:
        """Return the mirror's unit normal, (B, D)."""
        return (F.normalize(at_least_float32(self.head(features)), dim=-1),)

    def forward(self, z: Tensor, conditioned: Conditioned) -> Moved:
        """Reflect (K, B, D)."""
        return Moved(self.inverse(z, conditioned), z.new_zeros(z.shape[:-1]))

    def inverse(self, z: Tensor, conditioned: Conditioned) -> Tensor:
        """Reflect: a reflection is its own inverse."""
        (normal,) = conditioned
        return z - 2 * normal * (normal * z).sum(-1, keepdim=True)

    def solve_transposed(self, z: Tensor, moved: Tensor, conditioned: Conditioned, gradient: Tensor) -> Tensor:
        """Reflect: J = J^T = J^-1."""
        del z, moved
        return self.inverse(gradient, conditioned)
