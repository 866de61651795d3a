"""Adversarial variational Bayes: an encoder that is a sampler, and a discriminator in place of its density.

    T* = argmax_T  E_q(z|x) log sigmoid(T(x, z)) + E_r(z|x) log sigmoid(-T(x, z))  =  log q(z|x) - log r(z|x)
    log_q = log r(z|x) + T(x, z)

    r(z|x) = p(z)                                           AVB
    r(z|x) = N(E_q z, Var_q z + 1e-4), T over (z - mean)/std  AVB with adaptive contrast

T is learned, so log_q is an estimate: the mean of log w may lie on either side of log p(x), and far above it
(the paper reports -83.6 by T for a model whose log-likelihood is about -91.2). Likelihoods are therefore weighed
from the Gaussian with q's moments (:meth:`AdversarialEncoder.proposal`), whose density is known.

Source: Mescheder, Nowozin and Geiger 2017, https://arxiv.org/abs/1701.04722
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from vaebench.batch import batch_max
from vaebench.encoders.base import AuxiliaryLoss, BuildContext, Direction, Draw, Encoder, Scored, frozen
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.errors import UserError
from vaebench.nets.adversarial import (
    BasisSampler,
    LogRatio,
    MomentMatched,
    NoiseFedSampler,
    RatioNetwork,
    Sampler,
    matched,
)

__all__ = ["AdversarialEncoder"]


class _Context(NamedTuple):
    sampler: Any
    contrast: Distribution
    """r(z|x), a constant: batch shape (B,), or () where r does not depend on x."""
    discriminator: Any


class AdversarialEncoder(Encoder):
    """Draws from a sampler, and takes a learned log-ratio for their log density.

    The main loss sees T as a constant function: its gradient reaches the sampler through z alone. That is the
    whole gradient of the ELBO where T = T*, since E_q dT*/dphi = 0 for the parameters phi of q inside T*; for a
    bound of several samples it is not, and DReG is needed.

    Args:
        sampler: z = f(x, noise).
        discriminator: T.
        prior: ``prior()`` is r(z|x) = p(z); None for adaptive contrast. It is not registered as a part.
        steps: discriminator steps for each step of the main loss.
        lr: the discriminator's learning rate; None takes the main one.
        betas: of the discriminator's Adam; None takes the main ones.
    """

    direction = Direction.ESTIMATE
    no_total_gradient = "its learned log q(z|x) is a constant function, so the gradient runs through z alone"

    def __init__(
        self,
        sampler: Sampler,
        discriminator: LogRatio,
        prior: nn.Module | None,
        *,
        steps: int = 1,
        lr: float | None = None,
        betas: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.discriminator = discriminator
        # In a tuple, torch does not take it for a part of this module; copies of model and encoder keep the link.
        self._borrowed = (prior,)
        self._playing = {"repeats": steps, "lr": lr, "betas": betas}

    @classmethod
    def build(
        cls,
        site: BuildContext,
        *,
        adaptive_contrast: bool,
        noise_dim: int,
        discriminator_hidden: Sequence[int],
        discriminator_steps: int,
        discriminator_lr: float,
        discriminator_betas: Sequence[float],
        basis_count: int = 1,
        basis_hidden: Sequence[int] = (),
    ) -> "AdversarialEncoder":
        """Make one with the configured networks; adaptive contrast takes a :class:`BasisSampler`."""
        betas = tuple(discriminator_betas)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"encoder.discriminator_betas must be two numbers from 0 to below 1, not {list(betas)}")
        if not discriminator_hidden:
            raise UserError("encoder.discriminator_hidden must hold at least one width, as in [512,512]")
        networks, x_dim, dim = site.networks, site.x_dim, site.latent_dim
        sampler: Sampler
        if adaptive_contrast:
            sampler = BasisSampler(
                networks.reader(x_dim),
                dim,
                noise_dim=noise_dim,
                count=basis_count,
                hidden=basis_hidden,
            )
        else:
            sampler = NoiseFedSampler(networks.additive(x_dim, noise_dim), noise_dim, dim)
        # Against a Gaussian with q's own moments, T* is near 0 and has no quadratic part to begin with.
        ratio = RatioNetwork(x_dim, dim, discriminator_hidden, "elu", quadratic=not adaptive_contrast)
        prior = None if adaptive_contrast else site.model.latent_prior
        return cls(sampler, ratio, prior, steps=discriminator_steps, lr=discriminator_lr, betas=betas)

    def encode(self, x: Tensor) -> _Context:
        """Run the parts of both networks that depend on x, (B, X), alone."""
        conditioned = self.sampler.condition(x)
        with torch.no_grad():
            seen = self.discriminator.condition(x)
        return _Context(conditioned, self._contrast(conditioned), seen)

    def sample(
        self,
        context: _Context,
        k: int,
        *,
        inner_k: int = 0,
        path_only: bool = False,
        inner_chunk: int | None = None,
    ) -> Draw:
        """Draw z of (K, B, D); log_q = log r(z|x) + T, the same with and without ``path_only``."""
        del inner_k, inner_chunk
        z = self.sampler(context.sampler, k)
        ratio = frozen(self.discriminator)(self._coordinates(z, context.contrast), context.discriminator)
        return Draw(z, context.contrast.log_prob(z) + ratio, (z,) if path_only else ())

    def proposal(self) -> Encoder:
        """Return the Gaussian encoder with q's moments."""
        return GaussianEncoder(MomentMatched(self.sampler))

    def auxiliary_losses(self) -> dict[str, AuxiliaryLoss]:
        """Return the discriminator."""
        parameters = list(self.discriminator.parameters())
        return {"discriminator": AuxiliaryLoss(parameters, self.discriminator_loss, **self._playing)}

    def discriminator_loss(self, x: Tensor) -> Scored:
        """Cross-entropy of T as the logit of "drawn from q, not from r", one draw of each per image.

        2 log 2 - 2 JSD(q, r) at the optimum. Beside it: the accuracy of T's sign (near 1, T has outrun q and its
        values are extrapolations; near 1/2, q and r are told apart no more), and the mean and range of T, nats.
        """
        with torch.no_grad():
            conditioned = self.sampler.condition(x)
            contrast = self._contrast(conditioned)
            drawn = self.sampler(conditioned, 1)
            reference = contrast.sample(drawn.shape[: drawn.dim() - 1 - len(contrast.batch_shape)])
        seen = self.discriminator.condition(x)
        both = torch.cat([drawn, reference])
        from_q, from_r = self.discriminator(self._coordinates(both, contrast), seen)
        loss = F.softplus(-from_q).mean() + F.softplus(from_r).mean()
        with torch.no_grad():
            right = torch.cat([from_q > 0, from_r < 0])
            metrics = {
                "accuracy": right.to(loss.dtype).mean(),
                "ratio": from_q.mean(),
                "ratio_min": -batch_max(-torch.minimum(from_q.min(), from_r.min())),
                "ratio_max": batch_max(torch.maximum(from_q.max(), from_r.max())),
            }
        return Scored(loss, metrics)

    def _contrast(self, conditioned: Any) -> Distribution:
        """Return r(z|x), a constant but for z."""
        (prior,) = self._borrowed
        if prior is None:
            return matched(self.sampler, conditioned)
        return frozen(prior)()

    def _coordinates(self, z: Tensor, contrast: Distribution) -> Tensor:
        """Return z as T sees it: standardised by r under adaptive contrast."""
        if self._borrowed[0] is None:
            return (z - contrast.mean) / contrast.stddev
        return z
