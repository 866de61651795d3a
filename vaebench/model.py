"""The generative model p(x, z) = p(z) p(x|z).

Shapes: K samples first, B images, D latent coordinates; x is (B, X), z is (K, B, D); nats.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = ["GenerativeModel", "LogJoint"]


class LogJoint(NamedTuple):
    """The two terms of log p(x, z), each of shape (K, B)."""

    log_likelihood: Tensor
    log_prior: Tensor


class GenerativeModel(nn.Module):
    """A prior and a decoder; each is a module that returns a torch distribution.

    Args:
        prior: ``prior()`` is the distribution over z, event shape (D,).
        decoder: ``decoder(z)`` is the distribution over x given z, batch shape (K, B), event shape (X,).
        decoder_inputs: the decoder takes this number of first coordinates of z, the lowest layer; None for all.
    """

    def __init__(self, prior: nn.Module, decoder: nn.Module, decoder_inputs: int | None = None) -> None:
        super().__init__()
        self.latent_prior = prior
        self.decoder = decoder
        self.decoder_inputs = decoder_inputs

    def prior(self) -> Distribution:
        """Return p(z)."""
        return self.latent_prior()

    def likelihood(self, z: Tensor) -> Distribution:
        """Return p(x|z) for z of shape (K, B, D)."""
        return self.decoder(z[..., : self.decoder_inputs])

    def log_joint(self, x: Tensor, z: Tensor) -> LogJoint:
        """Return log p(x|z) and log p(z), (K, B) each, for x (B, X) and z (K, B, D)."""
        return LogJoint(self.likelihood(z).log_prob(x), self.prior().log_prob(z))

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw ``n`` pairs from p(x, z): x of shape (n, X), z of shape (n, D)."""
        z = self.prior().sample((n,))
        return self.likelihood(z).sample(), z
