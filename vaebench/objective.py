"""The only maker of log importance weights, in training and in evaluation."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from vaebench.bounds import Bound
from vaebench.encoders import Draw, Encoder
from vaebench.gradients import GradientEstimator, rescale_paths
from vaebench.model import GenerativeModel

__all__ = ["Evidence", "Objective", "evidence", "weigh"]


class Evidence(NamedTuple):
    """What K draws per image say about log p(x); each term has shape (K, B), in nats."""

    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor
    paths: tuple[Tensor, ...]
    """See :class:`vaebench.encoders.Draw`."""

    def log_weights(self, beta: float = 1.0) -> Tensor:
        """Return log p(x|z) + beta (log p(z) - log_q), (K, B); ``beta`` other than 1 is a KL warm-up."""
        return self.log_likelihood + beta * (self.log_prior - self.log_q)


def evidence(
    model: GenerativeModel, encoder: Encoder, x: Tensor, k: int, *, inner_k: int = 0, path_only: bool = False
) -> Evidence:
    """Draw K latents for each of the images x, (B, X), and weigh them: E[exp(log_weights())] = p(x).

    Args:
        model: p(x, z).
        encoder: q(z|x).
        x: images, (B, X), in [0, 1].
        k: number of draws K.
        inner_k: number of inner samples of a hierarchical encoder.
        path_only: see :meth:`vaebench.encoders.Encoder.sample`.
    """
    return weigh(model, x, encoder.draw(x, k, inner_k=inner_k, path_only=path_only))


def weigh(model: GenerativeModel, x: Tensor, draw: Draw) -> Evidence:
    """Put the model's log densities beside a draw's log_q."""
    log_likelihood, log_prior = model.log_joint(x, draw.z)
    return Evidence(log_likelihood, log_prior, draw.log_q, draw.paths)


@dataclass(frozen=True)
class Objective:
    """A bound and the way to differentiate it: two independent choices."""

    bound: Bound
    gradient: GradientEstimator = GradientEstimator.REPARAM

    def __call__(
        self, model: GenerativeModel, encoder: Encoder, x: Tensor, k: int, *, inner_k: int = 0, beta: float = 1.0
    ) -> tuple[Tensor, Evidence]:
        """Return the bound for each image, (B,), with its gradient attached, and the evidence behind it."""
        drawn = evidence(model, encoder, x, k, inner_k=inner_k, path_only=self.gradient.path_only)
        log_w = drawn.log_weights(beta)
        if self.gradient is GradientEstimator.DREG:
            rescale_paths(drawn.paths, log_w, self.bound, beta)
        return self.bound(log_w), drawn
