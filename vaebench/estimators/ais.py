"""Annealed importance sampling: log p(x) by chains from an initial density to the posterior.

log p(x) ~ log 1/N sum_n w_n over N chains of the same image; see :mod:`vaebench.estimators.annealing` for w_n. The
weights have mean p(x), so that the expectation is a lower bound. With enough temperatures it is close to log p(x), also
for poor or implicit encoders, and without any encoder.

Source: Neal 2001, https://arxiv.org/abs/physics/9803008; for decoders, Wu et al. 2017,
https://arxiv.org/abs/1611.04273

Shapes: N chains first, B images, D latent coordinates; nats.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench import hmc
from vaebench.arguments import at_least, one_of
from vaebench.bounds import log_mean_exp
from vaebench.encoders.base import Density, Direction, Encoder
from vaebench.encoders.moments import MomentMatchedEncoder
from vaebench.errors import RunFailed
from vaebench.estimators.annealing import SCHEDULES, AnnealedChains, AnnealingSchedule, GeometricPath
from vaebench.estimators.sampling import keyed_noise
from vaebench.estimators.weights import effective_sample_size
from vaebench.images import checked_images
from vaebench.model import GenerativeModel
from vaebench.runtime import ByDevice, in_float64

__all__ = ["AISResult", "AnnealingSettings", "ais", "batch_size", "has_density", "refuse_unmixed"]

# Chains x images at a time. More are no faster on a CPU; fewer leave a GPU idle.
ROWS = ByDevice(200, 16_000)
LEAST_ACCEPTANCE, MOST_ACCEPTANCE = 0.2, 0.99
STRETCHES = 10
"""Parts of the temperatures; chains have to move in each of them."""
MOVES_TO_JUDGE = 50
"""The fewest moves of one image, over chains and temperatures, in a stretch."""
LARGEST_DISAGREEMENT = 2.0  # nats
LARGEST_TAIL = 1.5
"""The largest ``tail`` for which the error of the mean of a few weights is known from these weights. In trials with 8
chains, the ratio of true and stated errors was up to 1.2 below it, and up to 3.5 above it."""
UNMIXED_SHARE = 0.05
OTHER_STEPS = "Use more leapfrog steps, more temperatures, or another initial density (prior, encoder, moments)"
MORE_TEMPERATURES = (
    "Chains move but disagree: use several times more temperatures, or an initial density nearer to the posterior "
    "(initial=encoder)"
)


class AISResult(NamedTuple):
    """Estimates of log p(x), and diagnostics of their chains; one float64 per image, (B,) each."""

    log_likelihood: Tensor
    """Nats. Its expectation is a lower bound on log p(x) (from BDMC's reverse chains: an upper bound)."""
    stderr: Tensor
    """Standard error of ``log_likelihood``, nats; NaN for one chain. It comes from the variance of the weights over
    chains, or from the cumulants of their logarithms: the larger one, because each is often too small."""
    acceptance: Tensor
    """Mean probability of accepting a move; NaN without moves."""
    lowest_acceptance: Tensor
    """The lowest of the means over ten equal stretches of the temperatures (fewer stretches for few moves)."""
    ess: Tensor
    """Effective number of chains, (sum w)^2 / sum w^2, from 1 to N."""
    disagreement: Tensor
    """Estimate from the first half of the chains minus that from the second half, nats; NaN for one chain."""
    tail: Tensor
    """An estimate of log (E w^3 / (E w)^3), 3 c_2 + 4 c_3 with the cumulants c of log w over chains. If it is large,
    few weights decide the mean, and most sets of chains do not have one of these. NaN for fewer than 3 chains."""

    @classmethod
    def of(cls, found: AnnealedChains, *, backward: bool = False) -> "AISResult":
        """Summarise chains; ``backward`` if their weights have mean 1/p(x)."""
        log_w, chains = found.log_weights, len(found.log_weights)
        sign = -1 if backward else 1
        ess = effective_sample_size(log_w)
        nan = torch.full_like(ess, math.nan)
        halves = nan if chains < 2 else log_mean_exp(log_w[: chains // 2]) - log_mean_exp(log_w[chains // 2 :])
        variance, third = log_w.var(0) if chains > 1 else nan, third_cumulant(log_w)
        # Two estimates of the relative variance of the mean. log (E w^2 / (E w)^2) = c_2 + c_3 + ..., but c_3 is too
        # noisy to raise the estimate.
        general = (chains / ess - 1).clamp(min=0) / max(1, chains - 1)
        cumulants = (variance + third.nan_to_num().clamp(max=0)).clamp(min=0).expm1() / chains
        moves, length = in_float64(found.acceptance), len(found.acceptance)
        stretches = moves.tensor_split(max(1, min(STRETCHES, length * chains // MOVES_TO_JUDGE)))
        return cls(
            # Weights are averaged over chains before the logarithm is taken.
            log_likelihood=sign * log_mean_exp(log_w),
            stderr=torch.maximum(cumulants.log1p(), general).sqrt(),
            acceptance=moves.mean(0) if length else nan,
            lowest_acceptance=torch.stack([part.mean(0) for part in stretches]).amin(0) if length else nan,
            ess=ess,
            disagreement=sign * halves,
            tail=3 * variance + 4 * third,
        )

    @classmethod
    def joined(cls, parts: Sequence["AISResult"]) -> "AISResult":
        """Concatenate batches of images."""
        return cls(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @property
    def stuck(self) -> Tensor:
        """Images whose chains hardly moved in some stretch, or only by tiny steps, (B,)."""
        return (self.lowest_acceptance < LEAST_ACCEPTANCE) | (self.acceptance > MOST_ACCEPTANCE)

    @property
    def split(self) -> Tensor:
        """Images for which the two halves of the chains disagree, (B,)."""
        return self.disagreement.abs() > LARGEST_DISAGREEMENT

    @property
    def mixed(self) -> Tensor:
        """Images without a sign of chains that did not mix, (B,)."""
        return ~(self.stuck | self.split)

    @property
    def mean_stderr(self) -> float:
        """Root mean square error of the mean over these images that is due to the chains, nats.

        It has two parts: the noise, and the bias that the logarithm of a mean of few weights has. It includes neither
        the choice of images, nor the error of chains that all miss the same part of the posterior. NaN for one chain.
        It is unknown if :attr:`heavy_tailed`.
        """
        squares = self.stderr.square()
        return torch.hypot(squares.sum().sqrt() / len(squares), squares.mean() / 2).item()

    @property
    def mean_tail(self) -> float:
        """Mean of ``tail`` over these images."""
        return self.tail.mean().item()

    @property
    def heavy_tailed(self) -> bool:
        """Whether ``mean_stderr`` must not be stated."""
        return not self.mean_tail <= LARGEST_TAIL


def third_cumulant(log_w: Tensor) -> Tensor:
    """Return the unbiased estimate of the third cumulant from N values, (N, B) -> (B,); NaN for N < 3."""
    count = len(log_w)
    if count < 3:
        return torch.full_like(log_w[0], math.nan)
    return (log_w - log_w.mean(0)).pow(3).sum(0) * count / ((count - 1) * (count - 2))


def refuse_unmixed(result: AISResult) -> None:
    """Raise RunFailed if the chains of more than one image in twenty did not mix.

    An image's chains did not mix if

    - fewer than 0.2 of their moves were accepted in some tenth of the temperatures, or
    - more than 0.99 were accepted overall: the steps are too small to move far, or
    - the estimates of two halves of the chains differ by more than 2 nats.
    """
    count, unmixed = len(result.ess), int((~result.mixed).sum())
    if unmixed <= UNMIXED_SHARE * count:
        return
    stuck, split = int(result.stuck.sum()), int(result.split.sum())
    raise RunFailed(
        f"annealing: no number is reported, because the chains of {unmixed} of {count} images did not mix ({stuck} "
        f"hardly moved, with acceptance below {LEAST_ACCEPTANCE} in a tenth of the temperatures or above "
        f"{MOST_ACCEPTANCE} overall; for {split} the two halves of the chains differ by more than "
        f"{LARGEST_DISAGREEMENT:g} nats). " + (OTHER_STEPS if stuck >= split else MORE_TEMPERATURES)
    )


# The initial density --------------------------------------------------------------------------------------


def has_density(encoder: Encoder, context: Any) -> bool:
    """Return whether the density q(z|x) of ``context = encoder.encode(x)`` can be computed at any z."""
    return encoder.direction is Direction.EXACT and isinstance(context, Density)


class InitialDensity(NamedTuple):
    """The initial density of B images, normalised."""

    draw: Callable[[int], Tensor]
    """(N) -> (N, B, D)."""
    log_density: hmc.LogDensity


def initial_density(model: GenerativeModel, initial: Encoder | None, x: Tensor) -> InitialDensity:
    """Return the prior for None, else the encoder's density if it has one, else that of its widened moments."""
    if initial is None:
        prior = model.prior()
        return InitialDensity(lambda chains: prior.sample((chains, len(x))), prior.log_prob)
    context = initial.encode(x)
    if not has_density(initial, context):
        return initial_density(model, MomentMatchedEncoder(initial, model), x)
    return InitialDensity(lambda chains: initial.sample(context, chains).z, context.log_prob)


# The estimate ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AnnealingSettings:
    """The settings of annealing.

    ValueError for temperatures < 0, chains < 1, leapfrog < 1, and for an unknown schedule.
    """

    temperatures: int = 1000
    """T, strictly between 0 and 1, with one HMC transition at each; 0 is importance sampling with N samples."""
    chains: int = 8
    leapfrog: int = 10
    """Steps in each transition."""
    schedule: str = "sigmoid"

    def __post_init__(self) -> None:
        at_least(0, temperatures=self.temperatures)
        at_least(1, chains=self.chains, leapfrog=self.leapfrog)
        one_of(SCHEDULES, schedule=self.schedule)


def tuned_schedule(
    model: GenerativeModel,
    initial: Encoder | None,
    x: Tensor,
    settings: AnnealingSettings,
    seed: int | None,
    numbers: Tensor,
) -> AnnealingSchedule:
    """Return the schedule from the initial density to p(x, z), from a pilot run with separate noise."""
    with keyed_noise(seed, numbers, "initial"):
        start = initial_density(model, initial, x)

    def log_joint(z: Tensor) -> Tensor:
        log_likelihood, log_prior = model.log_joint(x, z)
        return log_likelihood + log_prior

    with keyed_noise(seed, numbers, "pilot"):
        return AnnealingSchedule.tuned(
            GeometricPath(start.log_density, log_joint),
            start.draw,
            schedule=settings.schedule,
            temperatures=settings.temperatures,
            leapfrog=settings.leapfrog,
        )


def batch_size(device: torch.device, chains: int) -> int:
    """Return the number of images at a time."""
    return max(1, ROWS.on(device) // chains)


@torch.no_grad()
def ais(
    model: GenerativeModel,
    x: Tensor,
    initial: Encoder | None = None,
    temperatures: int = 1000,
    chains: int = 8,
    seed: int | None = None,
    *,
    schedule: str = "sigmoid",
    leapfrog: int = 10,
    images: Tensor | None = None,
    batch: int | None = None,
    strict: bool = True,
) -> AISResult:
    """Estimate log p(x) of each image by annealed importance sampling, in nats.

    The expectation of ``log_likelihood`` is a lower bound on log p(x) for every setting here, and the expectation of
    its exponential is p(x). The bound rises with ``temperatures`` and ``chains``. The chains move by HMC; a pilot run
    with separate noise tunes the step sizes. The cost per image is about ``temperatures * chains * (leapfrog + 1)``
    gradients of log p(x, z).

    Source: Neal 2001, https://arxiv.org/abs/physics/9803008

    Args:
        model: p(x, z), in evaluation mode where that matters.
        x: images, (B, X) or (B, C, H, W); see :func:`vaebench.images.checked_images`.
        initial: the initial density: None for the prior, else an encoder. Its density is used if it is exact and can
            be computed at any z, else the Gaussian with the moments of its draws, widened; a
            :class:`~vaebench.encoders.moments.MomentMatchedEncoder` always gives the latter.
        temperatures: number of temperatures between the initial density and the posterior; 0 is importance sampling.
        chains: chains N for each image.
        seed: makes the result a function of (seed, image number), up to rounding; None draws from the global generator.
        schedule: the spacing of the temperatures: ``linear``, ``sigmoid`` or ``adaptive`` (from the pilot).
        leapfrog: leapfrog steps in each transition.
        images: the images' numbers, (B,), with ``seed``; 0..B-1 if None.
        batch: images at a time (chosen if None).
        strict: call :func:`refuse_unmixed`.

    Raises:
        ValueError: a setting out of range, or unusable images.
        RunFailed: ``strict`` and the chains did not mix.
    """
    x = checked_images(model, initial, x)
    settings = AnnealingSettings(temperatures=temperatures, chains=chains, leapfrog=leapfrog, schedule=schedule)
    numbers = torch.arange(len(x)) if images is None else images
    parts = []
    for some in torch.arange(len(x)).split(batch or batch_size(x.device, chains)):
        annealing = tuned_schedule(model, initial, x[some], settings, seed, numbers[some])
        with keyed_noise(seed, numbers[some], "forward"):
            parts.append(AISResult.of(annealing.forward(chains)))
    result = AISResult.joined(parts)
    if strict:
        refuse_unmixed(result)
    return result
