"""Log importance weights, for training and evaluation alike, and the objective that training maximises."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from vaebench.arguments import at_least
from vaebench.batch import batch_mean
from vaebench.bounds import Bound, elbo
from vaebench.encoders.base import Draw, Encoder
from vaebench.gradients import GradientEstimator, rescale_inner_paths, rescale_paths
from vaebench.images import checked_images, refuse_estimate
from vaebench.model import GenerativeModel

__all__ = ["Evidence", "Objective", "evidence", "weigh"]


class Evidence(NamedTuple):
    """The terms of the log weights of K draws per image; each has shape (K, B), in nats."""

    log_likelihood: Tensor
    log_prior: Tensor
    log_q: Tensor
    paths: tuple[Tensor, ...]
    """See :class:`vaebench.encoders.base.Draw`."""
    inner_paths: tuple[Tensor, ...] = ()

    def log_weights(self, beta: float | Tensor = 1.0) -> Tensor:
        """Return log p(x|z) + beta (log p(z) - log_q), (K, B); ``beta`` other than 1 is a KL warm-up."""
        minus_kl = self.log_prior - self.log_q
        return self.log_likelihood + (minus_kl if isinstance(beta, float) and beta == 1 else beta * minus_kl)


def evidence(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    k: int,
    *,
    inner_k: int = 0,
    path_only: bool = False,
    estimate: bool = False,
) -> Evidence:
    """Draw K latents for each of the images x and compute their weights.

    E[exp(log_weights())] = p(x). The images are checked once for each call; an :class:`Objective` does not check.

    Args:
        model: p(x, z).
        encoder: q(z|x); ``encoder.proposal(model)`` where its log_q is an estimate.
        x: images, (B, X) or (B, C, H, W); see :func:`vaebench.images.checked_images`.
        k: draws K.
        inner_k: see :meth:`vaebench.encoders.base.Encoder.sample`, also for ``path_only``.
        path_only: see there.
        estimate: accept an encoder whose log_q is an estimate: no number made from the weights is then a bound.

    Raises:
        ValueError: unusable images, or an encoder whose log_q is an estimate.
    """
    refuse_estimate(encoder, estimate)
    x = checked_images(model, encoder, x)
    return weigh(model, x, encoder.draw(x, k, inner_k=inner_k, path_only=path_only))


def weigh(model: GenerativeModel, x: Tensor, draw: Draw) -> Evidence:
    """Return the evidence of a draw: the model's log densities at z, and the draw's log_q."""
    log_likelihood, log_prior = model.log_joint(x, draw.z)
    return Evidence(log_likelihood, log_prior, draw.log_q, draw.paths, draw.inner_paths)


@dataclass(frozen=True)
class Objective:
    """The quantity that training maximises, its gradient estimator, and the bound that is reported."""

    bound: Bound
    """The reported lower bound on log p(x), always with KL weight 1."""
    gradient: GradientEstimator = GradientEstimator.REPARAM
    target: Bound | None = None
    """The maximised function of the log weights; None for the bound."""
    encoder_target: Bound | None = None
    """The function that the encoder maximises; None for the same function as the model (other than in PIWAE)."""
    kl_weight: float = 1.0
    """A constant factor of the KL term (beta-VAE), >= 0."""
    free_bits: float = 0.0
    """Nats of KL, on average over the batch, that do not lower the objective, >= 0."""

    def __post_init__(self) -> None:
        at_least(0, kl_weight=self.kl_weight, nats=self.free_bits)

    @property
    def maximised(self) -> Bound:
        """The maximised function of the log weights."""
        return self.target or self.bound

    @property
    def additive(self) -> bool:
        """Whether the objective of a batch is the mean of the objectives of its parts."""
        return self.free_bits == 0

    @property
    def linear(self) -> bool:
        """Whether the maximised function is the mean of the log weights: STL is then unbiased, and DReG equals STL."""
        return self.maximised is elbo and self.encoder_target is None

    @property
    def maximises_its_bound(self) -> bool:
        """Whether the objective, without a warm-up, equals the reported bound."""
        return self.target is None and self.kl_weight == 1 and self.free_bits == 0

    def for_encoder(self) -> "Objective":
        """Return the objective of the encoder."""
        return self if self.encoder_target is None else replace(self, target=self.encoder_target, encoder_target=None)

    def __call__(
        self,
        model: GenerativeModel,
        encoder: Encoder,
        x: Tensor,
        k: int,
        *,
        inner_k: int = 0,
        beta: float | Tensor = 1.0,
    ) -> tuple[Tensor, Evidence]:
        """Return the objective of each image, (B,), with the chosen gradient, and the evidence."""
        draw = encoder.sample(encoder.encode(x), k, inner_k=inner_k, path_only=self.gradient.path_only)
        drawn = weigh(model, x, draw)
        weight, target = beta * self.kl_weight, self.maximised
        if isinstance(weight, Tensor):  # in float64: rounded once, as a float would be
            weight = weight.to(drawn.log_q.dtype)
        log_w = drawn.log_weights(weight)
        value = target(log_w)
        if self.gradient is GradientEstimator.DREG:
            rescale_paths(drawn.paths, log_w, target, weight)
        if drawn.inner_paths:
            rescale_inner_paths(drawn.inner_paths, log_w, target, weight)
        if self.free_bits:
            # If the KL is below the free nats, this removes the KL term from the value; else it adds 0.
            kl = batch_mean(drawn.log_q - drawn.log_prior)
            value = value + weight * kl.clamp(min=self.free_bits).neg().add(kl)
        return value, drawn
