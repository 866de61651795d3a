"""The Gaussian encoder with a full covariance."""

import torch
from torch import Tensor

from vaebench.distributions import FullNormal, at_least_float32
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder
from vaebench.flows.flow import small_linear
from vaebench.nets.dense import TrunkGaussian

__all__ = ["FullGaussianEncoder"]


class FullGaussianEncoder(Encoder):
    """q(z|x) = N(mean(x), L(x) L(x)^T) with L the Cholesky factor of the covariance, at first about diagonal.

    Source: Kingma and Welling 2019, "Full-covariance Gaussian posterior", https://arxiv.org/abs/1906.02691

    Args:
        posterior: maps x, (B, X), to the mean and the diagonal of L; its trunk maps x to features.
        dim: latent coordinates D.
    """

    direction = Direction.EXACT

    def __init__(self, posterior: TrunkGaussian, dim: int) -> None:
        super().__init__()
        self.posterior = posterior
        self.register_buffer("below", torch.tril_indices(dim, dim, -1), persistent=False)
        self.below: Tensor
        self.mixing = small_linear(posterior.trunk.width, self.below.shape[1]) if dim > 1 else None

    @classmethod
    def build(cls, context: BuildContext) -> "FullGaussianEncoder":
        """Build the encoder with the configured networks."""
        return cls(context.networks.gaussian(context.x_dim, context.latent_dim), context.latent_dim)

    def encode(self, x: Tensor) -> FullNormal:
        """Return q(z|x) for x of shape (B, X)."""
        features = self.posterior.trunk(x)
        diagonal = self.posterior.head(features)
        return FullNormal(diagonal, self._strictly_lower(features, diagonal.mean))

    def posterior_mean(self, x: Tensor) -> Tensor:
        """Return the mean of q(z|x), (B, D)."""
        return self.encode(x).diagonal.mean

    def sample(
        self, encoded: FullNormal, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        """Draw z, (K, B, D), with its exact log density."""
        del inner_k, inner_chunk  # the density is known
        z, log_q = encoded.rsample_and_log_prob((k,))
        return Draw(z, encoded.detached().log_prob(z), (z,)) if path_only else Draw(z, log_q)

    def _strictly_lower(self, features: Tensor, mean: Tensor) -> Tensor:
        lower = mean.new_zeros(*mean.shape, mean.shape[-1])
        if self.mixing is not None:
            rows, columns = self.below
            lower[:, rows, columns] = at_least_float32(self.mixing(features))
        return lower
