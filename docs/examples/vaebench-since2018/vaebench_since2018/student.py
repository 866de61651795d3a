"""A prior with heavier tails than the normal: the multivariate t distribution."""

import math
from typing import Any

import torch
from scipy.special import gammaincinv
from torch import Tensor, nn
from torch.distributions import Distribution
from vaebench import noise
from vaebench.arguments import above
from vaebench.priors import Prior, PriorContext

__all__ = ["StudentPrior", "StudentT"]


class StudentT(Distribution):
    """The t distribution over (D,) about 0, with all coordinates in one radius.

    Args:
        degrees: degrees of freedom, > 2, a scalar.
        scale: (D,).
    """

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)

    def __init__(self, degrees: Tensor, scale: Tensor) -> None:
        self.degrees, self.scale = degrees, scale
        super().__init__(torch.Size(), scale.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.scale)

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * self.degrees / (self.degrees - 2)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, D): a normal, divided by the root of a gamma draw with mean 1.

        The gamma draw inverts its distribution function, so that all noise comes from :mod:`vaebench.noise`.
        """
        with torch.no_grad():
            normal = noise.standard_normal((*sample_shape, *self.event_shape), self.scale)
            uniform = noise.uniform((*sample_shape, 1), self.scale)
            half = self.degrees.item() / 2
            gamma = torch.as_tensor(gammaincinv(half, uniform.double().cpu().numpy()) / half).to(normal)
            return self.scale * normal * gamma.rsqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p, (...), for values (..., D)."""
        nu, dim = self.degrees, self.event_shape[0]
        distance = (value / self.scale).square().sum(-1)
        normaliser = torch.lgamma((nu + dim) / 2) - torch.lgamma(nu / 2) - 0.5 * dim * (nu * math.pi).log()
        return normaliser - self.scale.log().sum() - 0.5 * (nu + dim) * (distance / nu).log1p()


class StudentPrior(Prior):
    """p(z) = t(z), with learned degrees of freedom > 2 and learned scales.

    Source: the prior of Kim et al. 2024, https://arxiv.org/abs/2312.01133, there with fixed degrees of freedom and
    another divergence than KL's.

    Args:
        latent_dim: D.
        degrees: initial degrees of freedom, > 2.
    """

    def __init__(self, latent_dim: int, degrees: float) -> None:
        super().__init__()
        above(2, degrees=degrees)
        self.layers = (latent_dim,)
        self.log_excess = nn.Parameter(torch.tensor(float(degrees) - 2).log())
        self.log_scales = nn.Parameter(torch.zeros(latent_dim))

    @classmethod
    def build(cls, context: PriorContext, *, degrees: float) -> "StudentPrior":
        """Build the prior of the model's width."""
        return cls(context.latent_dim, degrees)

    def forward(self) -> StudentT:
        """Return the distribution over (D,)."""
        return StudentT(2 + self.log_excess.exp(), self.log_scales.exp())
