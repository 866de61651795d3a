"""The only maker of log importance weights, in training and in evaluation."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from vaebench.batch import batch_mean
from vaebench.bounds import Bound
from vaebench.encoders.base import Draw, Encoder
from vaebench.gradients import GradientEstimator, rescale_inner_paths, rescale_paths
from vaebench.model import GenerativeModel

__all__ = ["Evidence", "Objective", "evidence", "weigh"]


class Evidence(NamedTuple):
    """What K draws per image say about log p(x); each term has shape (K, B), in nats."""

    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor
    paths: tuple[Tensor, ...]
    """See :class:`vaebench.encoders.base.Draw`."""
    inner_paths: tuple[Tensor, ...] = ()

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
        path_only: see :meth:`vaebench.encoders.base.Encoder.sample`.
    """
    return weigh(model, x, encoder.draw(x, k, inner_k=inner_k, path_only=path_only))


def weigh(model: GenerativeModel, x: Tensor, draw: Draw) -> Evidence:
    """Put the model's log densities beside a draw's log_q."""
    log_likelihood, log_prior = model.log_joint(x, draw.z)
    return Evidence(log_likelihood, log_prior, draw.log_q, draw.paths, draw.inner_paths)


@dataclass(frozen=True)
class Objective:
    """What is maximised, how it is differentiated, and the bound that is reported beside it."""

    bound: Bound
    """The reported lower bound on log p(x), always with KL weight 1."""
    gradient: GradientEstimator = GradientEstimator.REPARAM
    target: Bound | None = None
    """What is maximised in place of the bound, as a function of the log weights."""
    encoder_target: Bound | None = None
    """What the encoder maximises where it differs from the model (PIWAE)."""
    kl_weight: float = 1.0
    """A constant factor of the KL term (beta-VAE)."""
    free_bits: float = 0.0
    """Nats of KL, on average over the batch, that are not paid for."""

    @property
    def maximised(self) -> Bound:
        """What is maximised, as a function of the log weights."""
        return self.target or self.bound

    @property
    def additive(self) -> bool:
        """Whether what is maximised over a batch is the mean of what is maximised over its parts."""
        return self.free_bits == 0

    @property
    def maximises_its_bound(self) -> bool:
        """Whether, without a warm-up, the maximised quantity is the reported bound."""
        return self.target is None and self.kl_weight == 1 and self.free_bits == 0

    def for_encoder(self) -> "Objective":
        """Return the encoder's own objective; this one where there is none."""
        return self if self.encoder_target is None else replace(self, target=self.encoder_target, encoder_target=None)

    def __call__(
        self,
        model: GenerativeModel,
        encoder: Encoder,
        x: Tensor,
        k: int,
        *,
        inner_k: int = 0,
        beta: float = 1.0,
    ) -> tuple[Tensor, Evidence]:
        """Return what is maximised for each image, (B,), with its gradient attached, and the evidence behind it."""
        drawn = evidence(model, encoder, x, k, inner_k=inner_k, path_only=self.gradient.path_only)
        weight, target = beta * self.kl_weight, self.maximised
        log_w = drawn.log_weights(weight)
        if self.gradient is GradientEstimator.DREG:
            rescale_paths(drawn.paths, log_w, target, weight)
        rescale_inner_paths(drawn.inner_paths, log_w, target, weight)
        value = target(log_w)
        if self.free_bits:
            # Below the allowance this takes the KL term out of the value; above it, it adds nothing.
            kl = batch_mean(drawn.log_q - drawn.log_prior)
            value = value + weight * kl.clamp(min=self.free_bits).neg().add(kl)
        return value, drawn
