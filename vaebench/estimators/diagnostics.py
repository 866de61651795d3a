"""What an approximate posterior does with its latents: active coordinates, rates, information, noise of gradients.

All of it is asked of draws, so that it holds for encoders without a density too. What draws estimate with a bias in
the usual way (a variance of means, an aggregate posterior, a signal-to-noise ratio) is estimated here without it, or
with its direction, its cap or its floor beside it; see docs/diagnostics.md.

Shapes: K draws first, N images (B in a batch), D latent coordinates, P parameters; nats, float64.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from vaebench import noise
from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import Draw, Encoder
from vaebench.errors import RunFailed
from vaebench.estimators.importance import ROWS, Chunks
from vaebench.model import GenerativeModel
from vaebench.objective import weigh
from vaebench.runtime import derived_seed

__all__ = [
    "ACTIVE_KL",
    "ACTIVE_VARIANCE",
    "Activity",
    "AggregateDensity",
    "GradientNoise",
    "Seen",
    "Spread",
    "critic",
    "independent_draws",
    "kl_per_coordinate",
    "moment_kl_per_coordinate",
    "seen",
    "snr_floor",
    "spread",
]

ACTIVE_VARIANCE = 0.01
"""Burda, Grosse and Salakhutdinov 2016, https://arxiv.org/abs/1509.00519"""
ACTIVE_KL = 0.1
"""Nats; the released code of NVAE, https://arxiv.org/abs/2007.03898"""
MISCOUNTED = 0.01
"""Chance, at most, that a coordinate below the threshold is among those counted as active."""
VARIANCE_FLOOR = 1e-4
"""Added to the variances of a Gaussian critic: a coordinate that never moves still has a density."""


# Draws ----------------------------------------------------------------------------------------------------


def independent_draws(
    encoder: Encoder,
    x: Tensor,
    draws: int,
    *,
    inner_k: int = 0,
    seed: int = 0,
    images: Tensor | None = None,
    chunk: int | None = None,
) -> Iterator[Draw]:
    """Yield ``draws`` draws for each image of x, (B, X), in chunks; another ``seed`` gives independent ones.

    Args:
        encoder: q(z|x); its network runs once.
        x: images.
        draws: K in all.
        inner_k: inner samples of a hierarchical encoder.
        seed: names the table of random numbers.
        images: the images' numbers, (B,), on which the noise depends; 0..B-1 if None.
        chunk: draws at a time (chosen if None); does not change the draws.
    """
    sizes = Chunks.automatic(x.device, inner_k, batch=len(x), samples=chunk)
    numbers = torch.arange(len(x)) if images is None else images
    # An encoder may draw as it encodes; that has to be new for each seed too, or the halves would share it.
    with noise.keyed(derived_seed(seed, "encode"), numbers):
        context = encoder.encode(x)
    for first in range(0, draws, sizes.samples):
        with noise.keyed(seed, numbers, first):
            yield encoder.sample(
                context, min(sizes.samples, draws - first), inner_k=inner_k, inner_chunk=max(1, sizes.inner)
            )


class Spread(NamedTuple):
    """Mean and variance of q(z|x) in each coordinate, twice, from two independent halves of the draws of each image."""

    means: Tensor
    """(2, N, D)."""
    variances: Tensor
    """Unbiased, (2, N, D)."""
    half: int
    """Draws h in each half."""

    @classmethod
    def joined(cls, parts: Sequence["Spread"]) -> "Spread":
        """Put batches of images, one or more, one after another."""
        means, variances = [part.means for part in parts], [part.variances for part in parts]
        return cls(torch.cat(means, 1), torch.cat(variances, 1), parts[0].half)


class _Moments:
    """Sums over draws of one batch of images."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, z: Tensor) -> None:
        wide = z.double()
        self.count += len(wide)
        self.total = self.total.to(wide) + wide.sum(0)
        self.squares = self.squares.to(wide) + wide.square().sum(0)

    def value(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        return mean, (self.squares - self.count * mean.square()).clamp(min=0) / (self.count - 1)


@torch.no_grad()
def spread(
    encoder: Encoder,
    x: Tensor,
    draws: int,
    *,
    seed: int = 0,
    images: Tensor | None = None,
    chunk: int | None = None,
) -> Spread:
    """Return the moments of ``draws`` (even) draws for each image of x, (B, X), without the model.

    Of two draws in all there are no variances: they are NaN.
    """
    halves = []
    for half in range(2):
        moments = _Moments()
        for draw in independent_draws(
            encoder, x, _half(draws), seed=derived_seed(seed, "half", half), images=images, chunk=chunk
        ):
            moments.add(draw.z)
        halves.append(moments.value())
    means, variances = (torch.stack(parts) for parts in zip(*halves, strict=True))
    return Spread(means, variances, _half(draws))


def _half(draws: int) -> int:
    if draws < 2 or draws % 2:
        raise ValueError(f"draws must be an even number, for two halves, not {draws}")
    return draws // 2


class Seen(NamedTuple):
    """What draws from q(z|x) showed of N images, one row each."""

    spread: Spread
    z: Tensor
    """The last draw of the second half, (N, D), as the encoder made it."""
    log_prior: Tensor
    """log p(z) at that draw, (N,)."""
    log_likelihood: Tensor
    """Mean of log p(x|z) over all draws, (N,)."""
    rate: Tensor
    """Mean of log_q - log p(z) over all draws, (N,)."""

    @classmethod
    def joined(cls, parts: Sequence["Seen"]) -> "Seen":
        """Put batches of images, one or more, one after another."""
        rest = [torch.cat(column) for column in zip(*(part[1:] for part in parts), strict=True)]
        return cls(Spread.joined([part.spread for part in parts]), *rest)

    def check(self) -> "Seen":
        """Return self; RunFailed if any image has a number that is not finite: none is left out of a mean."""
        rows = [self.z, self.log_prior.unsqueeze(-1), self.log_likelihood.unsqueeze(-1), self.rate.unsqueeze(-1)]
        bad = ~torch.cat([*rows, *self.spread.means, *self.spread.variances], -1).isfinite().all(-1)
        if bool(bad.any()):
            raise RunFailed(f"{int(bad.sum())} of {len(bad)} images have draws or densities that are not finite")
        return self


@torch.no_grad()
def seen(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    draws: int,
    *,
    inner_k: int = 0,
    seed: int = 0,
    images: Tensor | None = None,
    chunk: int | None = None,
) -> Seen:
    """Draw and weigh ``draws`` (even, 4 or more) latents for each image of x, (B, X).

    Args:
        model: p(x, z).
        encoder: q(z|x).
        x: images.
        draws: in both halves together.
        inner_k: inner samples of a hierarchical encoder.
        seed: the result is a function of it and of the images' numbers.
        images: the images' numbers, (B,); 0..B-1 if None.
        chunk: draws at a time (chosen if None).
    """
    halves, log_likelihood, rate = [], torch.zeros(len(x)).double(), torch.zeros(len(x)).double()
    z, log_prior = torch.empty(0), torch.empty(0)
    for half in range(2):
        moments = _Moments()
        key = derived_seed(seed, "half", half)
        for draw in independent_draws(encoder, x, _half(draws), inner_k=inner_k, seed=key, images=images, chunk=chunk):
            found = weigh(model, x, draw)
            moments.add(draw.z)
            log_likelihood = log_likelihood.to(x.device) + found.log_likelihood.double().sum(0) / draws
            rate = rate.to(x.device) + (found.log_q - found.log_prior).double().sum(0) / draws
            z, log_prior = draw.z[-1], found.log_prior[-1].double()
        halves.append(moments.value())
    means, variances = (torch.stack(parts) for parts in zip(*halves, strict=True))
    return Seen(Spread(means, variances, _half(draws)), z, log_prior, log_likelihood, rate)


# Active coordinates ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activity:
    """How much the mean of q(z_d|x) moves with x, for each coordinate d."""

    variance: Tensor
    """Var_x(E_q[z_d|x]), (D,), unbiased for any encoder and any number of draws: where q ignores x, its mean is 0."""
    stderr: Tensor
    """Of it, (D,)."""
    images: int

    @classmethod
    def of(cls, found: Spread) -> "Activity":
        """Estimate the variance from the cross product of the two halves, whose noise is independent.

        The plug-in Var_x of the mean over n draws exceeds it by E_x Var(z_d|x) / n; with n = 100, a coordinate that
        has collapsed to N(0, 1) reaches Burda's threshold of 0.01 by that alone.
        """
        first, second = found.means - found.means.mean(1, keepdim=True)
        products, count = first * second, first.shape[0]
        if count < 3:
            raise ValueError(f"a variance over images with an error of its own needs 3 images or more, not {count}")
        return cls(products.sum(0) / (count - 1), products.std(0) * count**0.5 / (count - 1), count)

    @property
    def margin(self) -> float:
        """Standard errors between an estimate and the threshold at which it counts as above or below.

        With them, the chance that any of the D coordinates below the threshold is counted is below ``MISCOUNTED``.
        """
        from scipy.special import stdtrit  # here: a training's first step must not wait a quarter of a second for it

        return float(stdtrit(self.images - 1, 1 - MISCOUNTED / len(self.variance)))

    def active(self, threshold: float = ACTIVE_VARIANCE) -> Tensor:
        """Return which coordinates lie above the threshold, beyond doubt, (D,)."""
        return self.variance - self.margin * self.stderr > threshold

    def undecided(self, threshold: float = ACTIVE_VARIANCE) -> Tensor:
        """Return which coordinates may lie on either side of the threshold, (D,): more draws or images decide."""
        return (self.variance - threshold).abs() <= self.margin * self.stderr


# The KL divergence to the prior, by coordinate ------------------------------------------------------------


def kl_per_coordinate(posterior: DiagonalNormal, prior: DiagonalNormal) -> Tensor:
    """Return KL(q(z_d|x) || p(z_d)), (B, D), exact; over d it adds up to KL(q(z|x) || p(z))."""
    variance, offset = posterior.variance.double(), posterior.mean.double() - prior.mean.double()
    return _gaussian_kl(variance, offset.square(), variance.log(), prior)


def moment_kl_per_coordinate(found: Spread, prior: DiagonalNormal) -> Tensor:
    """Return the KL divergence of the Gaussian with the moments of q(z_d|x) to p(z_d), (N, D), from draws alone.

    A Gaussian has the largest entropy of all densities of its variance, and coordinates that depend on each other lie
    further from a prior of independent ones: so this is a lower bound on KL(q(z_d|x) || p(z_d)), and its sum over d
    one on KL(q(z|x) || p(z)). The noise of the moments is corrected for, exactly where q(z_d|x) is Gaussian.
    """
    first, second = found.means - prior.mean.double()
    variance, freedom = found.variances.mean(0), found.half - 1
    if freedom < 1:
        raise ValueError("a variance needs 2 draws or more in each half")
    # 2 (h - 1) variance / true variance is chi-squared with as many degrees of freedom, if z_d is Gaussian.
    bias = torch.digamma(torch.tensor(float(freedom), dtype=torch.float64)).item() - math.log(freedom)
    return _gaussian_kl(variance, first * second, variance.log() - bias, prior)


def _gaussian_kl(variance: Tensor, squared_offset: Tensor, log_variance: Tensor, prior: DiagonalNormal) -> Tensor:
    scale = prior.scale.double()
    return 0.5 * ((variance + squared_offset) / scale.square() - 1 - log_variance) + scale.log()


# The aggregate posterior ----------------------------------------------------------------------------------


class AggregateDensity(NamedTuple):
    """log q(z_i|x_j) of one draw z_i for each of N images x_i, summed up over j.

    ``log_q`` may be that of any density r(z|x) that was fixed without sight of the draws: a critic. What is said of
    the mutual information I(x; z) under p(x) q(z|x) holds with p(x) the distribution that the images come from.

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
        """Evaluate every density at every draw.

        Args:
            z: one draw for each image, (N, D), in their order.
            densities: batches of images j, and what scores (K, B, D) for them as (K, B).
        """
        own = torch.full((len(z),), -math.inf, dtype=torch.float64, device=z.device)
        others = own.clone()
        for part, density in densities:
            count = part.stop - part.start
            # As many rows as fit; a flow's inverse takes many times their memory.
            rows = max(1, ROWS["cuda" if z.is_cuda else "cpu"] // count)
            for some in torch.arange(len(z), device=z.device).split(rows):
                scored = density.log_prob(z[some].unsqueeze(1).expand(-1, count, -1)).double()
                mine = some.unsqueeze(1) == torch.arange(part.start, part.stop, device=z.device)
                own[some] = torch.logaddexp(own[some], _log_sum(scored, mine))
                others[some] = torch.logaddexp(others[some], _log_sum(scored, ~mine))
        return cls(own, others)

    @property
    def cap(self) -> float:
        """log N: the lower bound cannot exceed it, however large the mutual information is."""
        return math.log(len(self.own))

    def information_at_least(self) -> Tensor:
        """Return log q(z_i|x_i) - log 1/N sum_j q(z_i|x_j), (N,): in the mean at most I(x; z), for any critic."""
        return self.own - self.log_mixture()

    def information_at_most(self) -> Tensor:
        """Return log q(z_i|x_i) - log 1/(N-1) sum_{j != i} q(z_i|x_j), (N,): in the mean at least I(x; z).

        For the density q(z|x) itself alone, not for another critic.
        """
        return self.own - self.log_mixture_of_others()

    def log_mixture(self) -> Tensor:
        """Return log 1/N sum_j q(z_i|x_j), (N,): in the mean at least E log q(z) of the aggregate posterior."""
        return torch.logaddexp(self.own, self.others) - math.log(len(self.own))

    def log_mixture_of_others(self) -> Tensor:
        """Return log 1/(N-1) sum_{j != i} q(z_i|x_j), (N,): in the mean at most E log q(z)."""
        return self.others - math.log(len(self.own) - 1)


def _log_sum(scored: Tensor, chosen: Tensor) -> Tensor:
    return torch.logsumexp(scored.masked_fill(~chosen, -math.inf), 1)


def critic(found: Spread, part: slice) -> DiagonalNormal:
    """Return the Gaussians with the moments of the first half of the draws, which the second has not seen."""
    return DiagonalNormal(found.means[0, part], (found.variances[0, part] + VARIANCE_FLOOR).sqrt())


# Gradients ------------------------------------------------------------------------------------------------


def snr_floor(n: int) -> float:
    """Return E |mean| / sd over n independent N(0, s^2) numbers: what pure noise scores; sqrt(2 / (pi n)) for large n.

    sqrt(n) mean / sd is Student's t with n - 1 degrees of freedom, whose mean absolute value is known. n is 3 or more.
    """
    if n < 3:
        raise ValueError(f"the floor of a signal-to-noise ratio needs 3 gradients or more, not {n}")
    log_ratio = math.lgamma(n / 2) - math.lgamma((n - 1) / 2)
    return 2 * math.sqrt((n - 1) / (math.pi * n)) * math.exp(log_ratio) / (n - 2)


class GradientNoise:
    """Signal-to-noise ratios of a gradient of P numbers, from n independent ones that are seen one at a time.

    Source: the ratio is that of Rainforth et al. 2018, https://arxiv.org/abs/1802.04537, as is the directional one, up
    to its sign and to the mean on which it projects: here that of the first half of the gradients, of which those that
    are projected, the second half, are no part.

    Args:
        n: how many gradients there will be, 4 or more.
    """

    def __init__(self, n: int) -> None:
        if n < 4:
            raise ValueError(f"a signal-to-noise ratio over two halves needs 4 gradients or more, not {n}")
        self.n = n
        self._count = 0
        self._mean = self._squares = torch.zeros(())
        self._direction = torch.zeros(())
        self._along: list[Tensor] = []

    def add(self, gradient: Tensor) -> None:
        """Take in one gradient, (P,)."""
        value = gradient.detach().double()
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
        """P."""
        return self._mean.numel()

    @property
    def constant(self) -> int:
        """Parameters whose gradient was the same n times (0, mostly): they have no ratio, and are left out."""
        return int((~self._varies).sum())

    @property
    def snr(self) -> float:
        """|mean| / sd over the n gradients, averaged over parameters; NaN where no gradient varied."""
        self._complete()
        scale = (self._squares / (self.n - 1)).sqrt()
        return (self._mean.abs() / scale)[self._varies].mean().item()

    @property
    def directional(self) -> tuple[float, float]:
        """Mean of g_along / |g_across| over the second half, and its standard error.

        g_along is signed, so that pure noise averages to 0; the paper takes its absolute value.
        """
        self._complete()
        ratios = torch.stack(self._along)
        return ratios.mean().item(), (ratios.std() / len(ratios) ** 0.5).item()

    @property
    def floor(self) -> float:
        """What ``snr`` is on average for a gradient of pure Gaussian noise."""
        return snr_floor(self.n)

    def _complete(self) -> None:
        if self._count != self.n:
            raise ValueError(f"{self._count} of {self.n} gradients were seen")
