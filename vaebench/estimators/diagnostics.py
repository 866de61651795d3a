"""Diagnostics of an encoder from its draws: active coordinates, rate, mutual information, noise of gradients.

The functions use draws, so that they also work for encoders without a density. Some usual estimates from draws are
biased: the variance of a mean, the density of the aggregate posterior, a signal-to-noise ratio. Here each estimate is
unbiased, or its direction, its cap or its noise floor is known; see docs/diagnostics.md.

Shapes: K draws first, N images (B in a batch), D latent coordinates, P parameters. Units: nats. Precision: float64.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import Draw, Encoder
from vaebench.errors import RunFailed
from vaebench.estimators.importance import ROWS, draws
from vaebench.estimators.sampling import Sampling
from vaebench.model import GenerativeModel
from vaebench.objective import weigh
from vaebench.runtime import derived_seed, in_float64

__all__ = [
    "ACTIVE_KL",
    "ACTIVE_VARIANCE",
    "Activity",
    "AggregateDensity",
    "DrawSummary",
    "GradientNoise",
    "PosteriorMoments",
    "gaussian_critic",
    "kl_per_coordinate",
    "moment_kl_per_coordinate",
    "posterior_moments",
    "snr_floor",
    "summarise_draws",
]

ACTIVE_VARIANCE = 0.01
"""Threshold of Burda, Grosse and Salakhutdinov 2016, https://arxiv.org/abs/1509.00519"""
ACTIVE_KL = 0.1
"""Threshold in nats in the released code of NVAE, https://arxiv.org/abs/2007.03898"""
MISCOUNT_PROBABILITY = 0.01
"""Upper limit of the probability that any coordinate below the threshold is counted as active."""
VARIANCE_FLOOR = 1e-4
"""Added to the variances of a Gaussian critic, so that a coordinate without variance has a density."""


# Draws ----------------------------------------------------------------------------------------------------


class PosteriorMoments(NamedTuple):
    """Mean and variance of each coordinate of q(z|x), from two independent halves of the draws of each image."""

    means: Tensor
    """(2, N, D)."""
    variances: Tensor
    """Unbiased, (2, N, D); NaN for one draw in each half."""
    half_draws: int
    """Draws in each half."""

    @classmethod
    def joined(cls, batches: Sequence["PosteriorMoments"]) -> "PosteriorMoments":
        """Concatenate batches of images."""
        means, variances = [batch.means for batch in batches], [batch.variances for batch in batches]
        return cls(torch.cat(means, 1), torch.cat(variances, 1), batches[0].half_draws)


class _RunningMoments:
    """Sums over draws of one batch of images."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, z: Tensor) -> None:
        wide = in_float64(z)
        self.count += len(wide)
        self.total = self.total.to(wide) + wide.sum(0)
        self.squares = self.squares.to(wide) + wide.square().sum(0)

    def value(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean, (self.squares - self.count * mean.square()).clamp(min=0) / (self.count - 1)


@torch.no_grad()
def posterior_moments(
    encoder: Encoder, x: Tensor, sampling: Sampling, visit: Callable[[Draw], None] = lambda draw: None
) -> PosteriorMoments:
    """Return the moments of q(z|x) for each image of x, (B, X), from two independent halves of the draws.

    Args:
        encoder: q(z|x).
        x: images.
        sampling: with a seed, and an even k: the draws in both halves together.
        visit: called with each chunk of draws.
    """
    if sampling.k % 2:
        raise ValueError(f"k must be an even number >= 2 (two halves of the draws), got {sampling.k}")
    halves = []
    for half in range(2):
        moments, seed = _RunningMoments(), derived_seed(sampling.known_seed(), "half", half)
        for draw in draws(encoder, x, replace(sampling, k=sampling.k // 2, seed=seed)):
            moments.add(draw.z)
            visit(draw)
        halves.append(moments.value())
    means, variances = (torch.stack(parts) for parts in zip(*halves, strict=True))
    return PosteriorMoments(means, variances, sampling.k // 2)


class DrawSummary(NamedTuple):
    """Moments of the draws from q(z|x), and means of the terms of the ELBO, for each of N images."""

    moments: PosteriorMoments
    z: Tensor
    """The last draw of the second half, (N, D), in the encoder's precision."""
    log_prior: Tensor
    """log p(z) at that draw, (N,)."""
    log_likelihood: Tensor
    """Mean of log p(x|z) over all draws, (N,)."""
    rate: Tensor
    """Mean of log_q - log p(z) over all draws, (N,)."""

    @classmethod
    def joined(cls, batches: Sequence["DrawSummary"]) -> "DrawSummary":
        """Concatenate batches of images."""
        rest = [torch.cat(column) for column in zip(*(batch[1:] for batch in batches), strict=True)]
        return cls(PosteriorMoments.joined([batch.moments for batch in batches]), *rest)

    def check(self) -> "DrawSummary":
        """Return self. RunFailed if a number of any image is not finite, so that no image is left out of a mean."""
        sums = [self.log_prior, self.log_likelihood, self.rate]
        rows = [in_float64(self.z), *(values.unsqueeze(-1) for values in sums)]
        bad = ~torch.cat([*rows, *self.moments.means, *self.moments.variances], -1).isfinite().all(-1)
        if bool(bad.any()):
            raise RunFailed(f"{int(bad.sum())} of {len(bad)} images have draws or densities that are not finite")
        return self


@torch.no_grad()
def summarise_draws(model: GenerativeModel, encoder: Encoder, x: Tensor, sampling: Sampling) -> DrawSummary:
    """Draw k latents for each image of x, (B, X), and evaluate p(x, z) and log_q at each of them.

    ``sampling`` is as for `posterior_moments`, with k >= 4.
    """
    log_likelihood = rate = in_float64(x.new_zeros(len(x)))
    z = log_prior = torch.empty(0)

    def visit(draw: Draw) -> None:
        nonlocal log_likelihood, rate, z, log_prior
        terms = weigh(model, x, draw)
        log_likelihood = log_likelihood + in_float64(terms.log_likelihood).sum(0) / sampling.k
        rate = rate + in_float64(terms.log_q - terms.log_prior).sum(0) / sampling.k
        z, log_prior = draw.z[-1], in_float64(terms.log_prior[-1])

    moments = posterior_moments(encoder, x, sampling, visit)
    return DrawSummary(moments, z, log_prior, log_likelihood, rate)


# Active coordinates ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activity:
    """How much the mean of q(z_d|x) varies with x, for each coordinate d."""

    variance: Tensor
    """Unbiased estimate of Var_x(E_q[z_d|x]) for any encoder and number of draws, (D,)."""
    stderr: Tensor
    """Standard error of ``variance``, (D,)."""
    images: int

    @classmethod
    def of(cls, moments: PosteriorMoments) -> "Activity":
        """Estimate the variance from the product of the two halves' means, whose noise is independent.

        The usual estimate, Var_x of the mean over n draws, is too large by E_x Var(z_d|x) / n. With n = 100, that alone
        lifts a coordinate that has collapsed to N(0, 1) to the threshold of 0.01.

        Raises:
            ValueError: fewer than 3 images.
        """
        first, second = moments.means - moments.means.mean(1, keepdim=True)
        products, count = first * second, first.shape[0]
        if count < 3:
            raise ValueError(f"the standard error of a variance over images needs 3 images or more, got {count}")
        return cls(products.sum(0) / (count - 1), products.std(0) * count**0.5 / (count - 1), count)

    @property
    def margin(self) -> float:
        """How many standard errors above the threshold an estimate must be to count as active.

        The probability that any of the D coordinates below the threshold is counted is then at most
        ``MISCOUNT_PROBABILITY``.
        """
        from scipy.special import stdtrit  # here: the import would delay the first training step by 0.25 s

        return float(stdtrit(self.images - 1, 1 - MISCOUNT_PROBABILITY / len(self.variance)))

    def active(self, threshold: float = ACTIVE_VARIANCE) -> Tensor:
        """Return which coordinates are above the threshold by more than the margin, (D,)."""
        return self.variance - self.margin * self.stderr > threshold

    def undecided(self, threshold: float = ACTIVE_VARIANCE) -> Tensor:
        """Return which coordinates are within the margin of the threshold, (D,); more draws or images decide."""
        return (self.variance - threshold).abs() <= self.margin * self.stderr


# The KL divergence to the prior, by coordinate ------------------------------------------------------------


def kl_per_coordinate(posterior: DiagonalNormal, prior: DiagonalNormal) -> Tensor:
    """Return the exact KL(q(z_d|x) || p(z_d)), (B, D); its sum over d is KL(q(z|x) || p(z))."""
    variance, offset = in_float64(posterior.variance), in_float64(posterior.mean) - in_float64(prior.mean)
    return _gaussian_kl(variance, offset.square(), variance.log(), prior)


def moment_kl_per_coordinate(moments: PosteriorMoments, prior: DiagonalNormal) -> Tensor:
    """Return the KL divergence from the Gaussian with the moments of q(z_d|x) to p(z_d), (N, D), from draws only.

    It is a lower bound on KL(q(z_d|x) || p(z_d)), because a Gaussian has the largest entropy for its variance. Its sum
    over d is a lower bound on KL(q(z|x) || p(z)), because dependence between coordinates adds to that divergence. The
    bias from the noise of the moments is corrected; the correction is exact if q(z_d|x) is Gaussian.

    Raises:
        ValueError: fewer than 2 draws in each half.
    """
    first, second = moments.means - in_float64(prior.mean)
    variance, freedom = moments.variances.mean(0), moments.half_draws - 1
    if freedom < 1:
        raise ValueError("a variance needs 2 draws or more in each half")
    # If z_d is Gaussian, 2 (h - 1) variance / true variance is chi-squared with 2 (h - 1) degrees of freedom.
    bias = torch.digamma(torch.tensor(float(freedom), dtype=torch.float64)).item() - math.log(freedom)
    return _gaussian_kl(variance, first * second, variance.log() - bias, prior)


def _gaussian_kl(variance: Tensor, squared_offset: Tensor, log_variance: Tensor, prior: DiagonalNormal) -> Tensor:
    scale = in_float64(prior.scale)
    return 0.5 * ((variance + squared_offset) / scale.square() - 1 - log_variance) + scale.log()


# The aggregate posterior ----------------------------------------------------------------------------------


class AggregateDensity(NamedTuple):
    """Sums over j of q(z_i|x_j), with one draw z_i for each of N images x_i.

    In place of q a critic may be used: any density r(z|x) that does not depend on the draws z_i. The bounds on the
    mutual information I(x; z) under p(x) q(z|x) hold for the distribution p(x) of which the images are a sample.

    Source: Poole et al. 2019, https://arxiv.org/abs/1905.06922; the critic's bound van den Oord et al. 2018,
    https://arxiv.org/abs/1807.03748
    """

    own: Tensor
    """log q(z_i|x_i), (N,)."""
    others: Tensor
    """log sum_{j != i} q(z_i|x_j), (N,)."""

    @classmethod
    @torch.no_grad()
    def of(cls, z: Tensor, densities: Iterator[tuple[slice, Distribution | Any]]) -> "AggregateDensity":
        """Evaluate the density of every image at the draw of every image.

        Args:
            z: one draw for each image, (N, D).
            densities: batches: the indices j of some images, and their density, whose ``log_prob`` maps (K, B, D) to
                (K, B).
        """
        own = in_float64(z.new_full((len(z),), -math.inf))
        others = own.clone()
        for part, density in densities:
            count = part.stop - part.start
            # A flow's inverse takes many times the memory of its rows.
            rows = max(1, ROWS.on(z.device) // count)
            for first in range(0, len(z), rows):
                some = slice(first, min(first + rows, len(z)))
                log_q = in_float64(density.log_prob(z[some].unsqueeze(1).expand(-1, count, -1)))
                numbers = torch.arange(len(z), device=log_q.device)
                is_own = numbers[some].unsqueeze(1) == numbers[part]
                own[some] = torch.logaddexp(own[some], _log_sum(log_q, is_own))
                others[some] = torch.logaddexp(others[some], _log_sum(log_q, ~is_own))
        return cls(own, others)

    @property
    def cap(self) -> float:
        """log N, which the lower bound on the mutual information cannot exceed."""
        return math.log(len(self.own))

    def information_lower_bound(self) -> Tensor:
        """Return log q(z_i|x_i) - log 1/N sum_j q(z_i|x_j), (N,); its mean is at most I(x; z) for any critic."""
        return self.own - self.log_mixture()

    def information_upper_bound(self) -> Tensor:
        """Return log q(z_i|x_i) - log 1/(N-1) sum_{j != i} q(z_i|x_j), (N,); its mean is at least I(x; z).

        It is a bound only with the density q(z|x) itself, not with a critic.
        """
        return self.own - self.log_mixture_of_others()

    def log_mixture(self) -> Tensor:
        """Return log 1/N sum_j q(z_i|x_j), (N,); its expectation is at least E log q(z), the aggregate posterior's."""
        return torch.logaddexp(self.own, self.others) - math.log(len(self.own))

    def log_mixture_of_others(self) -> Tensor:
        """Return log 1/(N-1) sum_{j != i} q(z_i|x_j), (N,); its expectation is at most E log q(z)."""
        return self.others - math.log(len(self.own) - 1)


def _log_sum(log_q: Tensor, included: Tensor) -> Tensor:
    return torch.logsumexp(log_q.masked_fill(~included, -math.inf), 1)


def gaussian_critic(moments: PosteriorMoments, part: slice) -> DiagonalNormal:
    """Return Gaussians with the moments of the first half of the draws, which are independent of the second half."""
    return DiagonalNormal(moments.means[0, part], (moments.variances[0, part] + VARIANCE_FLOOR).sqrt())


# Gradients ------------------------------------------------------------------------------------------------


def snr_floor(n: int) -> float:
    """Return E |mean| / sd over n >= 3 independent N(0, s^2) numbers: the ratio of pure noise.

    sqrt(n) mean / sd has Student's t distribution with n - 1 degrees of freedom. The result is the mean absolute value
    of that distribution over sqrt(n), about sqrt(2 / (pi n)) for large n.
    """
    if n < 3:
        raise ValueError(f"the floor of a signal-to-noise ratio needs 3 gradients or more, got {n}")
    log_ratio = math.lgamma(n / 2) - math.lgamma((n - 1) / 2)
    return 2 * math.sqrt((n - 1) / (math.pi * n)) * math.exp(log_ratio) / (n - 2)


class GradientNoise:
    """Signal-to-noise ratios of a gradient of P numbers, from n independent gradients that are added one at a time.

    Source: Rainforth et al. 2018, https://arxiv.org/abs/1802.04537. The directional ratio differs from theirs: it is
    signed, and it projects the second half of the gradients on the mean of the first half, which is independent.

    Args:
        n: the number of gradients, 4 or more.
    """

    def __init__(self, n: int) -> None:
        if n < 4:
            raise ValueError(f"a signal-to-noise ratio over two halves needs 4 gradients or more, got {n}")
        self.n = n
        self._count = 0
        self._mean = self._squares = torch.zeros(())
        self._direction = torch.zeros(())
        self._along: list[Tensor] = []

    def add(self, gradient: Tensor) -> None:
        """Add one gradient, (P,)."""
        value = in_float64(gradient.detach())
        if self._count == self.n // 2:
            self._direction = self._mean / self._mean.norm()
        if self._count >= self.n // 2:
            along = self._direction @ value
            self._along.append(along / (value.square().sum() - along.square()).clamp(min=0).sqrt())
        self._count += 1
        offset = value - self._mean
        self._mean = self._mean + offset / self._count
        self._squares = self._squares + offset * (value - self._mean)

    @property
    def _varies(self) -> Tensor:
        return self._squares > 0

    @property
    def parameters(self) -> int:
        """Number of parameters P."""
        return self._mean.numel()

    @property
    def constant(self) -> int:
        """Number of parameters whose gradient never varied (mostly 0); they have no ratio and are left out."""
        return int((~self._varies).sum())

    @property
    def snr(self) -> float:
        """|mean| / sd over the n gradients, averaged over parameters; NaN if no gradient varied."""
        self._complete()
        scale = (self._squares / (self.n - 1)).sqrt()
        return (self._mean.abs() / scale)[self._varies].mean().item()

    @property
    def directional(self) -> tuple[float, float]:
        """Mean and standard error of g_along / |g_across| over the second half.

        g_along is signed, so that the ratio of pure noise is 0 on average; the paper takes its absolute value.
        """
        self._complete()
        ratios = torch.stack(self._along)
        return ratios.mean().item(), (ratios.std() / len(ratios) ** 0.5).item()

    @property
    def floor(self) -> float:
        """Expected ``snr`` of a gradient of pure Gaussian noise."""
        return snr_floor(self.n)

    def _complete(self) -> None:
        if self._count != self.n:
            raise ValueError(f"only {self._count} of {self.n} gradients were added")
