"""Adversarial variational Bayes: the encoder is a sampler, and a discriminator replaces its density.

    T* = argmax_T  E_q(z|x) log sigmoid(T(x, z)) + E_r(z|x) log sigmoid(-T(x, z))  =  log q(z|x) - log r(z|x)
    log_q = log r(z|x) + T(x, z)

    r(z|x) = p(z)                                           AVB
    r(z|x) = t_D(E_q z, C + 1e-4 I), T over L^-1 (z - E_q z)  AVB with adaptive contrast, C + 1e-4 I = L L^T

C is the covariance of q. The paper's r is the Gaussian with the diagonal of C. Training raises log w by the nats that
T does not find, and from that r they are many. A sampler can correlate its coordinates until q has all but collapsed to
a few directions, which is tens of nats. And a Gaussian as wide as the posterior cancels the force of log p(x, z) on
draws however far away. Student's t with D degrees of freedom has the Gaussian's slope where |L^-1 (z - E_q z)|^2 = D,
and beyond it leaves most of that force.

T is learned, so log_q is an estimate. The mean of log w may lie on either side of log p(x), and far above it: the
paper reports -83.6 by T for a model whose log-likelihood is about -91.2. Likelihood estimates therefore use the
Gaussian with q's moments, widened (:meth:`AdversarialEncoder.proposal`), whose density is known.

Source: Mescheder, Nowozin and Geiger 2017, https://arxiv.org/abs/1701.04722
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from vaebench.arguments import above, at_least, one_of, widths
from vaebench.batch import batch_max
from vaebench.distributions import DiagonalNormal, FullStudentT
from vaebench.encoders.base import AuxiliaryLoss, BuildContext, Direction, Draw, Encoder, LossWithMetrics, frozen
from vaebench.encoders.moments import MomentMatchedEncoder
from vaebench.model import GenerativeModel
from vaebench.nets.adversarial import (
    BasisSampler,
    LogRatio,
    NoiseFedSampler,
    RatioNetwork,
    Sampler,
    matched,
)

__all__ = ["AdversarialEncoder"]


class _Encoded(NamedTuple):
    sampler: Any
    contrast: Distribution | FullStudentT
    """r(z|x), a constant: batch shape (B,), or () if r does not depend on x."""
    discriminator: Any


class AdversarialEncoder(Encoder):
    """Draws come from a sampler, and a learned log-ratio gives their log density.

    T is a constant function in the main loss, so its gradient reaches the sampler through z alone. For T = T* this is
    the complete gradient of the ELBO, because E_q dT*/dphi = 0 for the parameters phi of q inside T*. A bound of
    several samples has further terms, and needs DReG.

    Args:
        sampler: z = f(x, noise).
        discriminator: T.
        prior: ``prior()`` is r(z|x) = p(z); None for adaptive contrast. It is not a submodule of the encoder.
        full: under adaptive contrast, whether r is Student's t with the sampler's covariance, or the Gaussian with its
            variances.
        steps: discriminator steps for each step of the main loss.
        lr: the discriminator's learning rate; None takes the rate of the main loss.
        betas: betas of the discriminator's Adam; None takes the betas of the main loss.
    """

    direction = Direction.ESTIMATE
    no_total_gradient = "its learned log q(z|x) is a constant function, so the gradient flows through z alone"

    def __init__(
        self,
        sampler: Sampler,
        discriminator: LogRatio,
        prior: nn.Module | None,
        *,
        full: bool = True,
        steps: int = 1,
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.discriminator = discriminator
        # In a tuple, so that torch does not register it as a submodule; copies of model and encoder keep the link.
        self._prior = (prior,)
        self.full = full
        self._optimisation = {"repeats": steps, "lr": lr, "betas": betas}

    @classmethod
    def build(
        cls,
        context: BuildContext,
        *,
        adaptive_contrast: bool,
        noise_dim: int,
        discriminator_hidden: Sequence[int],
        discriminator_steps: int,
        discriminator_lr: float,
        discriminator_betas: Sequence[float],
        basis_count: int = 1,
        basis_hidden: Sequence[int] = (),
        basis_bound: float = 0.0,
        contrast: str = "student",
    ) -> "AdversarialEncoder":
        """Build the encoder with the configured networks; adaptive contrast uses a :class:`BasisSampler`."""
        at_least(1, noise_dim=noise_dim, discriminator_steps=discriminator_steps, basis_count=basis_count)
        at_least(0, basis_bound=basis_bound)
        above(0, discriminator_lr=discriminator_lr)
        one_of(["student", "diagonal"], contrast=contrast)
        betas = tuple(discriminator_betas)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"discriminator_betas must be two numbers >= 0 and < 1, got {list(betas)}")
        widths(discriminator_hidden=discriminator_hidden)
        networks, x_dim, dim = context.networks, context.x_dim, context.latent_dim
        sampler: Sampler
        if adaptive_contrast:
            sampler = BasisSampler(
                networks.reader(x_dim),
                dim,
                noise_dim=noise_dim,
                count=basis_count,
                hidden=basis_hidden,
                bound=basis_bound or None,
            )
        else:
            sampler = NoiseFedSampler(networks.additive(x_dim, noise_dim), noise_dim, dim)
        # The log-ratio to a Gaussian with q's moments is near 0 and has no quadratic part at first.
        ratio = RatioNetwork(x_dim, dim, discriminator_hidden, "elu", quadratic=not adaptive_contrast)
        prior = None if adaptive_contrast else context.model.latent_prior
        full = contrast == "student"
        return cls(sampler, ratio, prior, full=full, steps=discriminator_steps, lr=discriminator_lr, betas=betas)

    def encode(self, x: Tensor) -> _Encoded:
        """Compute the parts of both networks that depend on x, (B, X), alone."""
        conditioned = self.sampler.condition(x)
        with torch.no_grad():
            discriminator = self.discriminator.condition(x)
        return _Encoded(conditioned, self._contrast(conditioned), discriminator)

    def sample(
        self, encoded: _Encoded, k: int, *, inner_k: int = 0, path_only: bool = False, inner_chunk: int | None = None
    ) -> Draw:
        """Draw z of (K, B, D); log_q = log r(z|x) + T, the same with and without ``path_only``."""
        del inner_k, inner_chunk
        z = self.sampler(encoded.sampler, k)
        ratio = frozen(self.discriminator)(self._coordinates(z, encoded.contrast), encoded.discriminator)
        return Draw(z, encoded.contrast.log_prob(z) + ratio, (z,) if path_only else ())

    def latents(self, x: Tensor, k: int) -> Tensor:
        """Draw z, (K, B, D), without T."""
        return self.sampler(self.sampler.condition(x), k)

    def proposal(self, model: GenerativeModel) -> Encoder:
        """Return the Gaussian encoder with q's moments, widened."""
        return MomentMatchedEncoder(self, model)

    def auxiliary_losses(self) -> dict[str, AuxiliaryLoss]:
        """Return the discriminator's loss."""
        parameters = list(self.discriminator.parameters())
        return {"discriminator": AuxiliaryLoss(parameters, self.discriminator_loss, **self._optimisation)}

    def discriminator_loss(self, x: Tensor) -> LossWithMetrics:
        """Return the cross-entropy of T as the logit of "drawn from q, not from r", one draw of each per image.

        It is 2 log 2 - 2 JSD(q, r) at the optimum. The metrics are the accuracy of T's sign, and the mean and range of
        T in nats. An accuracy near 1 means that T is extrapolated; near 1/2, T does not distinguish q from r.
        """
        with torch.no_grad():
            conditioned = self.sampler.condition(x)
            contrast = self._contrast(conditioned)
            drawn = self.sampler(conditioned, 1)
            reference = contrast.sample(drawn.shape[:1] if self._prior[0] is None else drawn.shape[:-1])
        both = torch.cat([drawn, reference])
        from_q, from_r = self.discriminator(self._coordinates(both, contrast), self.discriminator.condition(x))
        loss = F.softplus(-from_q).mean() + F.softplus(from_r).mean()
        with torch.no_grad():
            right = torch.cat([from_q > 0, from_r < 0])
            metrics = {
                "accuracy": right.to(loss.dtype).mean(),
                "ratio": from_q.mean(),
                "ratio_min": -batch_max(-torch.minimum(from_q.min(), from_r.min())),
                "ratio_max": batch_max(torch.maximum(from_q.max(), from_r.max())),
            }
        return LossWithMetrics(loss, metrics)

    def _contrast(self, conditioned: Any) -> Distribution | FullStudentT:
        """Return r(z|x) with constant parameters."""
        (prior,) = self._prior
        if prior is None:
            return matched(self.sampler, conditioned, full=self.full)
        return frozen(prior)()

    def _coordinates(self, z: Tensor, contrast: Distribution | FullStudentT) -> Tensor:
        """Return the input of T: z, or under adaptive contrast z standardised by r."""
        if self._prior[0] is not None:
            return z
        assert isinstance(contrast, DiagonalNormal | FullStudentT)
        return contrast.standardised(z)
