"""Annealed importance sampling: log p(x) by chains from an initial density to the posterior.

log p(x) ~ log 1/N sum_n w_n over N chains of the same image; see :mod:`vaebench.estimators.annealing` for w_n. The
weights have mean p(x), so that the expectation is a lower bound, close to log p(x) where there are temperatures
enough, also for encoders that are poor, implicit or absent.

Source: Neal 2001, https://arxiv.org/abs/physics/9803008; for decoders, Wu et al. 2017,
https://arxiv.org/abs/1611.04273

Shapes: N chains first, B images, D latent coordinates; nats.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench import hmc, noise
from vaebench.bounds import log_mean_exp
from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import Density, Direction, Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.errors import RunFailed, did_you_mean
from vaebench.estimators.annealing import SCHEDULES, Path, Route, Walk
from vaebench.estimators.weights import effective_sample_size
from vaebench.model import GenerativeModel
from vaebench.runtime import derived_seed

__all__ = ["AISResult", "Settings", "ais", "batch_size", "has_density", "moment_matched", "refuse_unmixed"]

# Chains x images in flight. A CPU gains nothing from more; a GPU is kept waiting by fewer.
ROWS = {"cpu": 200, "cuda": 16_000}
MOMENT_DRAWS = 256
VARIANCE_FLOOR = 1e-4
"""Added to matched variances: a coordinate that has collapsed still has a density."""
WIDENING = 0.05
"""Share of the prior's variance that is added to those of a density to start from. Chains find their way from a
density that is too wide, and not from one that is too narrow: where an encoder's draws hardly move in some coordinates,
as those of adversarial encoders may, f_0^(1-b) holds the chains back until b is all but 1. With a scale of 0.01 for a
quarter of the coordinates of a model of MNIST, the bound from 100 temperatures was 12 nats too low; so widened, half a
nat, and where no coordinate had collapsed the widening cost 0.1."""

LEAST_ACCEPTANCE, MOST_ACCEPTANCE = 0.2, 0.99
STRETCHES = 10
"""Parts of the walk in each of which chains have to move."""
MOVES_TO_JUDGE = 50
"""Moves of one image, over chains and temperatures, that make up a stretch at least."""
LARGEST_DISAGREEMENT = 2.0  # nats
UNMIXED_SHARE = 0.05
OTHER_STEPS = "Try more leapfrog steps, more temperatures, or another initial density (prior, encoder, moments)"
MORE_TEMPERATURES = (
    "Where chains move and disagree, there are too few temperatures for the way: try several times as many, or a start "
    "nearer to the posterior (initial=encoder)"
)


@dataclass(frozen=True)
class AISResult:
    """Estimates of log p(x) and what is to be known of the chains behind them; one number per image, (B,) each."""

    log_likelihood: Tensor
    """Nats, float64. Its expectation is a lower bound on log p(x) (from BDMC's reverse chains: an upper bound)."""
    stderr: Tensor
    """Standard error of ``log_likelihood``, nats, from the spread of the weights over chains; NaN for one chain."""
    acceptance: Tensor
    """Mean probability with which a move was accepted; NaN where there was none."""
    lowest_acceptance: Tensor
    """The least of the means over ten equal stretches of the walk (fewer for short walks)."""
    ess: Tensor
    """Effective number of chains, (sum w)^2 / sum w^2, from 1 to N."""
    disagreement: Tensor
    """Estimate from the first half of the chains minus that from the second half, nats; NaN for one chain."""

    @classmethod
    def of(cls, walk: Walk, *, backward: bool = False) -> "AISResult":
        """Sum up a walk; ``backward`` if its weights have mean 1/p(x)."""
        log_w, chains = walk.log_weights, len(walk.log_weights)
        sign = -1 if backward else 1
        ess = effective_sample_size(log_w)
        nan = torch.full_like(ess, math.nan)
        halves = nan if chains < 2 else log_mean_exp(log_w[: chains // 2]) - log_mean_exp(log_w[chains // 2 :])
        moves, length = walk.acceptance.double(), len(walk.acceptance)
        stretches = moves.tensor_split(max(1, min(STRETCHES, length * chains // MOVES_TO_JUDGE)))
        return cls(
            # Weights are averaged over chains before the logarithm is taken.
            log_likelihood=sign * log_mean_exp(log_w),
            # Relative standard error of a mean of N weights, which N / ess - 1 is the relative variance of.
            stderr=((chains / ess - 1).clamp(min=0) / (chains - 1)).sqrt() if chains > 1 else nan,
            acceptance=moves.mean(0) if length else nan,
            lowest_acceptance=torch.stack([part.mean(0) for part in stretches]).amin(0) if length else nan,
            ess=ess,
            disagreement=sign * halves,
        )

    @classmethod
    def joined(cls, parts: Sequence["AISResult"]) -> "AISResult":
        """Put batches of images one after another."""
        return cls.from_rows(torch.cat([part.rows() for part in parts], 1))

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the rows."""
        return tuple(f.name for f in fields(cls))

    @classmethod
    def from_rows(cls, rows: Tensor) -> "AISResult":
        """Undo :meth:`rows`."""
        return cls(*rows)

    def rows(self) -> Tensor:
        """Return everything as one tensor, (6, B), float64."""
        return torch.stack([getattr(self, name).double() for name in self.names()])

    @property
    def stuck(self) -> Tensor:
        """Images whose chains hardly moved somewhere on the way, or only by tiny steps, (B,)."""
        return (self.lowest_acceptance < LEAST_ACCEPTANCE) | (self.acceptance > MOST_ACCEPTANCE)

    @property
    def split(self) -> Tensor:
        """Images about which the two halves of the chains disagree, (B,)."""
        return self.disagreement.abs() > LARGEST_DISAGREEMENT

    @property
    def mixed(self) -> Tensor:
        """Images that show neither sign of chains that did not mix, (B,)."""
        return ~(self.stuck | self.split)

    @property
    def mean_stderr(self) -> float:
        """Standard error of the mean over these images that comes from the chains, nats; not from the choice of images.

        It cannot see chains that all miss the same part of the posterior.
        """
        return (self.stderr.square().sum().sqrt() / len(self.stderr)).item()


def refuse_unmixed(result: AISResult) -> None:
    """Raise RunFailed if the chains of more than one image in twenty did not mix.

    An image's chains did not mix if, in some tenth of the walk, fewer than 0.2 of their moves were accepted; if more
    than 0.99 were accepted overall, by steps too small to lead anywhere; or if two halves of the chains give
    estimates that differ by more than 2 nats.
    """
    count, unmixed = len(result.ess), int((~result.mixed).sum())
    if unmixed <= UNMIXED_SHARE * count:
        return
    stuck, split = int(result.stuck.sum()), int(result.split.sum())
    raise RunFailed(
        f"annealing: the chains of {unmixed} of {count} images did not mix ({stuck} hardly moved, with acceptance "
        f"below {LEAST_ACCEPTANCE} in a tenth of the walk or above {MOST_ACCEPTANCE} overall; for {split} the two "
        f"halves of the chains differ by more than {LARGEST_DISAGREEMENT:g} nats), so no number is reported. "
        + (OTHER_STEPS if stuck >= split else MORE_TEMPERATURES)
    )


# The initial density --------------------------------------------------------------------------------------


class _Moments(nn.Module):
    """x -> the diagonal Gaussian with the moments of an encoder's draws, with something added to the variances."""

    def __init__(self, encoder: Encoder, model: GenerativeModel | None) -> None:
        super().__init__()
        self.encoder, self.model = encoder, model

    @torch.no_grad()
    def forward(self, x: Tensor) -> DiagonalNormal:
        variance, mean = torch.var_mean(self.encoder.draw(x, MOMENT_DRAWS).z, 0)
        return DiagonalNormal(mean, (variance + self.added(len(x))).sqrt())

    def added(self, count: int) -> Tensor | float:
        """Return what the variances of ``count`` images gain."""
        if self.model is None:
            return VARIANCE_FLOOR
        # Draws of its own for each image, so that nothing depends on which images come together.
        return WIDENING * self.model.prior().sample((MOMENT_DRAWS, count)).var(0)


def moment_matched(encoder: Encoder, model: GenerativeModel | None = None) -> GaussianEncoder:
    """Return the Gaussian encoder whose mean and variances are those of ``encoder``'s draws, (B, D) each.

    Only draws are asked of ``encoder``: where its log density is a bound, an estimate or unknown, this one's is exact.
    With a ``model``, 5 % of its prior's variance is added to the variances, so that chains can start from there.
    """
    return GaussianEncoder(_Moments(encoder, model))


def has_density(encoder: Encoder, context: Any) -> bool:
    """Tell whether the density behind ``context``, which the encoder made of images, can be computed anywhere."""
    return encoder.direction is Direction.EXACT and isinstance(context, Density)


class Start(NamedTuple):
    """The initial density of B images, normalised."""

    draw: Callable[[int], Tensor]
    """(N) -> (N, B, D)."""
    log_density: hmc.LogDensity


def starting(model: GenerativeModel, initial: Encoder | None, x: Tensor) -> Start:
    """Return the prior, or the encoder's density where it has one, else the Gaussian with its moments."""
    if initial is None:
        prior = model.prior()
        return Start(lambda chains: prior.sample((chains, len(x))), prior.log_prob)
    context = initial.encode(x)
    if not has_density(initial, context):
        return starting(model, moment_matched(initial, model), x)
    return Start(lambda chains: initial.sample(context, chains).z, context.log_prob)


# The estimate ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to anneal.

    ValueError for fewer than no temperature, one chain or one leapfrog step, and for an unknown schedule.
    """

    temperatures: int = 1000
    """T, strictly between 0 and 1, with one HMC transition at each; 0 is importance sampling with N samples."""
    chains: int = 8
    leapfrog: int = 10
    """Steps in each transition."""
    schedule: str = "sigmoid"

    def __post_init__(self) -> None:
        for name, least in (("temperatures", 0), ("chains", 1), ("leapfrog", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            hint = did_you_mean(self.schedule, SCHEDULES)
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}{hint}")


def table(seed: int | None, purpose: str, numbers: Tensor) -> AbstractContextManager[None]:
    """Return a source of noise for one purpose: for the pilot, say, one that the measured chains never see."""
    return nullcontext() if seed is None else noise.keyed(derived_seed(seed, purpose), numbers)


def survey(
    model: GenerativeModel, initial: Encoder | None, x: Tensor, settings: Settings, seed: int | None, numbers: Tensor
) -> Route:
    """Lay the way from the initial density to p(x, z), by a pilot with noise of its own."""
    with table(seed, "initial", numbers):
        start = starting(model, initial, x)

    def log_joint(z: Tensor) -> Tensor:
        log_likelihood, log_prior = model.log_joint(x, z)
        return log_likelihood + log_prior

    with table(seed, "pilot", numbers):
        return Route.surveyed(
            Path(start.log_density, log_joint),
            start.draw,
            schedule=settings.schedule,
            temperatures=settings.temperatures,
            leapfrog=settings.leapfrog,
        )


def batch_size(device: torch.device, chains: int) -> int:
    """Return how many images to take at a time."""
    return max(1, ROWS["cuda" if device.type == "cuda" else "cpu"] // chains)


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

    The expectation of ``log_likelihood`` is a lower bound on log p(x) for every setting here, and that of its
    exponential is p(x); it rises with ``temperatures`` and ``chains``. The chains move by HMC, whose step sizes come
    from a pilot run with noise of its own. Time is that of about ``temperatures * chains * (leapfrog + 1)`` gradients
    of log p(x, z) for each image.

    Source: Neal 2001, https://arxiv.org/abs/physics/9803008

    Args:
        model: p(x, z), in evaluation mode where that matters.
        x: images, (B, X).
        initial: where chains start: None for the prior; else an encoder, for its density if that is exact and can be
            computed anywhere, or for the Gaussian with the moments of its draws; :func:`moment_matched` asks for the
            latter always.
        temperatures: number of temperatures between the initial density and the posterior; 0 is importance sampling.
        chains: chains N for each image.
        seed: makes the result a function of (seed, image number), up to rounding; None draws from the global generator.
        schedule: how the temperatures are spaced: ``linear``, ``sigmoid`` or ``adaptive`` (by the pilot).
        leapfrog: leapfrog steps in each transition.
        images: the images' numbers, (B,), with ``seed``; 0..B-1 if None.
        batch: images at a time (chosen if None).
        strict: refuse to return what :func:`refuse_unmixed` refuses.

    Raises:
        ValueError: a setting out of range.
        RunFailed: ``strict`` and the chains did not mix.
    """
    settings = Settings(temperatures=temperatures, chains=chains, leapfrog=leapfrog, schedule=schedule)
    numbers = torch.arange(len(x)) if images is None else images
    parts = []
    for some in torch.arange(len(x)).split(batch or batch_size(x.device, chains)):
        route = survey(model, initial, x[some], settings, seed, numbers[some])
        with table(seed, "forward", numbers[some]):
            parts.append(AISResult.of(route.forward(chains)))
    result = AISResult.joined(parts)
    if strict:
        refuse_unmixed(result)
    return result
