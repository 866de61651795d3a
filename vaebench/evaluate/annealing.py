"""Annealing as an estimator: annealed importance sampling, and bidirectional Monte Carlo."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.direction import Direction
from vaebench.encoders.base import Encoder
from vaebench.errors import UserError, did_you_mean
from vaebench.estimators.ais import AISResult, Settings, ais, batch_size, has_density, moment_matched, refuse_unmixed
from vaebench.estimators.bdmc import BDMCResult, both_ways, simulated
from vaebench.evaluate.compile import model_for
from vaebench.evaluate.job import Estimate, EstimatorJob, chosen
from vaebench.experiment import Experiment
from vaebench.model import GenerativeModel

__all__ = ["Annealing", "annealed", "bidirectional"]

OWN_ROWS = len(AISResult.names())
INITIALS = ("prior", "encoder", "moments")


@dataclass(frozen=True)
class Annealing:
    """The settings that ``ais`` and ``bdmc`` share."""

    settings: Settings
    initial: str
    """What the chains start from: ``encoder`` where its density is exact and known anywhere, else ``moments``."""
    encoder: Encoder | None
    """Whose density that is; None for the prior."""
    batch: int
    seed: int
    device: torch.device

    @classmethod
    def of(cls, experiment: Experiment) -> "Annealing":
        """Read the configuration; UserError for unknown words."""
        given = experiment.config.estimator
        if given.initial not in INITIALS:
            hint = did_you_mean(given.initial, INITIALS)
            raise UserError(f"estimator.initial must be one of {', '.join(INITIALS)}, not '{given.initial}'{hint}")
        names = ("temperatures", "chains", "leapfrog", "schedule")
        try:
            settings = Settings(**{name: getattr(given, name) for name in names})
        except ValueError as error:
            raise UserError(f"estimator.{error}") from error
        initial, encoder = start_of_chains(experiment, given.initial)
        batch = given.batch or batch_size(experiment.device, settings.chains)
        return cls(settings, initial, encoder, batch, given.seed, experiment.device)

    def model(self, experiment: Experiment, images: int, walks: int = 1) -> GenerativeModel:
        """Return p(x, z) for chains of so many images, each walking so many times the whole way."""
        calls = walks * self.settings.temperatures * (self.settings.leapfrog + 1)
        return model_for(experiment, self.batch, images, calls, self.settings.chains, differentiated=True)

    def shown(self) -> dict[str, Any]:
        """Return the settings as results show them."""
        return vars(self.settings) | {"initial": self.initial}

    def seeded(self, part: slice) -> AbstractContextManager[None]:
        """Seed distributions that draw from torch's own generator, and leave no trace outside the block."""
        return runtime.forked_randomness(self.device, runtime.derived_seed(self.seed, part.start))


def start_of_chains(experiment: Experiment, word: str) -> tuple[str, Encoder | None]:
    """Return what the chains really start from, and the encoder behind it."""
    encoder = experiment.encoder
    if word == "prior":
        return "prior", None
    if word == "encoder":
        x = torch.zeros(1, experiment.data.train.shape[1], device=experiment.device)
        with torch.no_grad(), runtime.forked_randomness(experiment.device, seed=0):
            if has_density(encoder, encoder.encode(x)):
                return "encoder", encoder
    return "moments", moment_matched(encoder, experiment.model)


def annealed(experiment: Experiment) -> EstimatorJob:
    """Plan annealed importance sampling, with bidirectional Monte Carlo beside the first few images."""
    given, images, annealing = experiment.config.estimator, chosen(experiment), Annealing.of(experiment)
    model = cache(partial(annealing.model, experiment, len(images.numbers)))
    certificate = Certificate.of(experiment, annealing, len(images.numbers), model)

    def numbers(part: slice) -> Tensor:
        with annealing.seeded(part):
            result = ais(
                model(),
                experiment.data.observe(images.intensities[part]),
                annealing.encoder,
                seed=given.seed,
                images=images.numbers[part],
                batch=annealing.batch,
                strict=False,  # judged over all images, at the end
                **vars(annealing.settings),
            )
        return torch.cat([result.rows().cpu(), certificate.rows_beside(part)])

    def summarise(rows: Tensor) -> list[Estimate]:
        estimate = annealing_found(
            "AIS", Direction.LOWER_BOUND, AISResult.from_rows(rows[:OWN_ROWS]), annealing.shown()
        )
        extra, note = certificate.summarise(rows[OWN_ROWS:])
        return [replace(estimate, extra=estimate.extra | extra, note=note)]

    return EstimatorJob(
        split=given.split,
        protocol=images.protocol,
        images=images.numbers,
        key=["annealed", given.seed, certificate.count, *annealing.shown().items()],
        rows=(*AISResult.names(), *certificate.names),
        batch=annealing.batch,
        numbers=numbers,
        summarise=summarise,
        compiles=True,
    )


@dataclass(frozen=True)
class Certificate:
    """Bidirectional Monte Carlo with the settings of an evaluation by annealing: what these settings err at most.

    The n-th simulated image is walked when the n-th real one is, so that it is kept, resumed and shared out likewise.
    """

    experiment: Experiment
    annealing: Annealing
    count: int
    """Simulated images; 0 for none."""
    model: Callable[[], GenerativeModel]
    """Whose log p(x, z) the chains climb."""

    @classmethod
    def of(
        cls, experiment: Experiment, annealing: Annealing, images: int, model: Callable[[], GenerativeModel]
    ) -> "Certificate":
        """Read ``estimator.bdmc``, which earlier runs do not have; UserError unless it is null or a count."""
        count = experiment.config.estimator.arguments.get("bdmc")
        if count is not None and (type(count) is not int or count < 2):
            raise UserError(f"estimator.bdmc must be null, or a number of images from 2 on, not {count}")
        return cls(experiment, annealing, min(count or 0, images), model)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of its rows: both bounds of a simulated image, and whether its chains mixed."""
        return ("bdmc_lower", "bdmc_upper", "bdmc_mixed") if self.count else ()

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """x and z, drawn when they are first asked for: by then the model is in evaluation mode."""
        return simulated(self.experiment.model, self.count, self.annealing.seed)

    def rows_beside(self, part: slice) -> Tensor:
        """Return the rows beside the real images ``part``, (3, part); NaN where there is no simulated image."""
        rows = torch.full((len(self.names), part.stop - part.start), math.nan, dtype=torch.float64)
        if part.start >= self.count:
            return rows
        numbers, annealing, (x, z) = torch.arange(part.start, min(part.stop, self.count)), self.annealing, self.pairs
        with annealing.seeded(part):
            found = both_ways(
                self.model(), x[numbers], z[numbers], annealing.encoder, annealing.settings, annealing.seed, numbers
            )
        mixed = found.forward.mixed & found.reverse.mixed
        rows[:, : len(numbers)] = torch.stack([found.lower, found.upper, mixed.double()])
        return rows

    def summarise(self, rows: Tensor) -> tuple[dict[str, Any], str]:
        """Return what there is to know, as numbers and in one line; nothing without simulated images."""
        if not self.count:
            return {}, ""
        lower, upper, mixed = rows[:, ~rows[0].isnan()]
        gap, stderr = (upper - lower).mean().item(), ((upper - lower).std() / len(lower) ** 0.5).item()
        count, unmixed = len(lower), int((mixed == 0).sum())
        extra = {"bdmc_gap": gap, "bdmc_gap_stderr": stderr, "bdmc_images": count, "bdmc_unmixed": unmixed}
        failed = f"; the chains of {unmixed} of them did not mix" if unmixed else ""
        return extra, (
            f"BDMC, so set, on {count} images of the model's own: bounds {gap:.2f} +- {stderr:.2f} nats apart, "
            f"the most that AIS errs there{failed}"
        )


def bidirectional(experiment: Experiment) -> EstimatorJob:
    """Plan bidirectional Monte Carlo on images simulated from the run's own model."""
    given, annealing = experiment.config.estimator, Annealing.of(experiment)
    if given.images is None:
        raise UserError("estimator.images: how many images are to be simulated? estimator.images=100, say")
    count, half = given.images, len(AISResult.names())

    images = torch.arange(count)

    model = cache(partial(annealing.model, experiment, count, walks=2))

    @cache
    def pairs() -> tuple[Tensor, Tensor]:
        return simulated(experiment.model, count, given.seed)

    def numbers(part: slice) -> Tensor:
        x, z = pairs()
        with annealing.seeded(part):
            found = both_ways(
                model(), x[part], z[part], annealing.encoder, annealing.settings, given.seed, images[part]
            )
        return torch.cat([found.forward.rows(), found.reverse.rows()])

    def summarise(rows: Tensor) -> list[Estimate]:
        both = BDMCResult(AISResult.from_rows(rows[:half]), AISResult.from_rows(rows[half:]))
        # The error that the settings make at most, beside each of the two numbers.
        gap = {"gap": both.gap, "gap_stderr": both.gap_stderr} if count > 1 else {"gap": both.gap}
        return [
            annealing_found("BDMC", Direction.LOWER_BOUND, both.forward, annealing.shown(), **gap),
            annealing_found("BDMC", Direction.UPPER_BOUND, both.reverse, annealing.shown(), **gap),
        ]

    return EstimatorJob(
        split="simulated",
        # Images of the model's own: nothing that another run's numbers could be compared with.
        protocol=f"own-model/seed{given.seed}",
        images=images,
        key=["bidirectional", given.seed, count, *annealing.shown().items()],
        rows=tuple(f"{side}_{name}" for side in ("lower", "upper") for name in AISResult.names()),
        batch=annealing.batch,
        numbers=numbers,
        summarise=summarise,
        compiles=True,
    )


def annealing_found(
    estimator: str,
    direction: Direction,
    result: AISResult,
    settings: dict[str, Any],
    **extra: float,
) -> Estimate:
    """Judge the chains, and report what they found."""
    refuse_unmixed(result)
    extra["acceptance"] = result.acceptance.mean().item()
    extra["lowest_acceptance"] = result.lowest_acceptance.min().item()
    extra["mixed_images"] = int(result.mixed.sum())
    if settings["chains"] > 1:
        # One chain has no spread to tell an error by.
        extra |= {"ess": result.ess.mean().item(), "chain_stderr": result.mean_stderr}
    return Estimate(
        estimator=estimator, direction=direction, values=result.log_likelihood, settings=settings, extra=extra
    )
