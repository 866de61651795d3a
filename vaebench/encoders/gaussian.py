"""The Gaussian encoder of the variational autoencoder."""

from torch import Tensor, nn

from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import BuildContext, Direction, Draw, Encoder

__all__ = ["GaussianEncoder"]


class GaussianEncoder(Encoder):
    """q(z|x) = N(mean(x), diag(scale(x)^2)).

    Source: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114

    Args:
        posterior: maps x, (B, X), to a DiagonalNormal over (B, D).
    """

    direction = Direction.EXACT

    def __init__(self, posterior: nn.Module) -> None:
        super().__init__()
        self.posterior = posterior

    @classmethod
    def build(cls, context: BuildContext) -> "GaussianEncoder":
        """Build the encoder with the configured networks."""
        return cls(context.networks.gaussian(context.x_dim, context.latent_dim))

    def encode(self, x: Tensor) -> DiagonalNormal:
        """Return q(z|x) for x of shape (B, X)."""
        return self.posterior(x)

    def exact_posterior(self, x: Tensor) -> DiagonalNormal:
        """Return q(z|x)."""
        return self.posterior(x)

    def sample(
        self,
        encoded: DiagonalNormal,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        """Draw z, (K, B, D), with its exact log density."""
        del inner_k, inner_chunk  # the density is known
        z, log_q = encoded.rsample_and_log_prob((k,))
        return Draw(z, encoded.detached().log_prob(z), (z,)) if path_only else Draw(z, log_q)
