"""The estimators ``ais`` and ``bdmc``: annealed importance sampling, and bidirectional Monte Carlo."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor

from vaebench.direction import Direction
from vaebench.encoders.base import Encoder
from vaebench.encoders.moments import MomentMatchedEncoder
from vaebench.errors import UserError, did_you_mean
from vaebench.estimators.ais import (
    LARGEST_TAIL,
    AISResult,
    AnnealingSettings,
    ais,
    batch_size,
    has_density,
    refuse_unmixed,
)
from vaebench.estimators.bdmc import BDMCResult, anneal_both_ways, simulated
from vaebench.estimators.importance import PerImage
from vaebench.evaluate.compile import model_for
from vaebench.evaluate.job import Estimate, EstimatorInputs, EstimatorJob
from vaebench.model import GenerativeModel
from vaebench.runtime import forked_randomness

__all__ = ["CHAINS_VERSION", "Annealing", "Simulated", "annealed", "bidirectional", "stated_chain_error"]

OWN_ROWS = len(AISResult._fields)
CHAINS_VERSION = "tail of chains"
"""Part of the key of every job whose rows are AISResults: files of earlier versions have other rows."""
INITIALS = ("prior", "encoder", "moments")


@dataclass(frozen=True)
class Annealing:
    """Annealing with the settings of a run's evaluation."""

    inputs: EstimatorInputs
    settings: AnnealingSettings
    initial: str
    """The initial density: ``prior``, ``encoder``, or ``moments``, also for encoders without an exact density."""
    encoder: Encoder | None
    """The encoder with this density; None for the prior."""
    batch: int

    @classmethod
    def of(cls, inputs: EstimatorInputs) -> "Annealing":
        """Read the settings; UserError for unknown words."""
        given = inputs.settings
        if given.initial not in INITIALS:
            hint = did_you_mean(str(given.initial), INITIALS)
            raise UserError(f"estimator.initial must be one of {', '.join(INITIALS)}, got '{given.initial}'{hint}")
        names = ("temperatures", "chains", "leapfrog", "schedule")
        try:
            settings = AnnealingSettings(**{name: getattr(given, name) for name in names})
        except ValueError as error:
            raise UserError(f"estimator.{error}") from error
        initial, encoder = initial_encoder(inputs, given.initial)
        return cls(inputs, settings, initial, encoder, given.batch or batch_size(inputs.device, settings.chains))

    def model(self, images: int, directions: int = 1) -> GenerativeModel:
        """Return p(x, z) for chains of this number of images, in one direction or in two."""
        calls = directions * self.settings.temperatures * (self.settings.leapfrog + 1)
        return model_for(self.inputs, self.batch, images, calls, self.settings.chains, differentiated=True)

    def forward(self, model: GenerativeModel, x: Tensor, numbers: Tensor) -> AISResult:
        """Estimate log p(x) of the images with these numbers."""
        return ais(
            model,
            x,
            self.encoder,
            seed=self.inputs.settings.seed,
            images=numbers,
            batch=self.batch,
            strict=False,  # the chains of all images are judged at the end
            **vars(self.settings),
        )

    def both_ways(self, model: GenerativeModel, x: Tensor, z: Tensor, numbers: Tensor) -> BDMCResult:
        """Return both bounds on log p(x) of simulated images."""
        return anneal_both_ways(model, x, z, self.encoder, self.settings, self.inputs.settings.seed, numbers)

    def shown(self) -> dict[str, Any]:
        """Return the settings as results show them."""
        return vars(self.settings) | {"initial": self.initial}


def initial_encoder(inputs: EstimatorInputs, word: str) -> tuple[str, Encoder | None]:
    """Return the name of the initial density, and its encoder."""
    encoder = inputs.encoder
    if word == "prior":
        return "prior", None
    if word == "encoder":
        with torch.no_grad(), forked_randomness(inputs.device, seed=0):
            if has_density(encoder, encoder.encode(inputs.blank())):
                return "encoder", encoder
    return "moments", MomentMatchedEncoder(encoder, inputs.model)


@dataclass(frozen=True)
class Simulated:
    """Images simulated by the run's model, and the latents that generated them."""

    inputs: EstimatorInputs
    count: int

    @classmethod
    def of(cls, inputs: EstimatorInputs) -> "Simulated":
        """Read ``estimator.images``; UserError if it is null."""
        if inputs.settings.images is None:
            raise UserError(
                "estimator.images must be the number of images to simulate, got null: for example estimator.images=100"
            )
        return cls(inputs, inputs.settings.images)

    @cached_property
    def pairs(self) -> tuple[Tensor, Tensor]:
        """x, (N, X), and z, (N, D). They are drawn at the first use: then the model is in evaluation mode."""
        return simulated(self.inputs.model, self.count, self.inputs.settings.seed)

    @property
    def numbers(self) -> Tensor:
        """The images' numbers, (N,)."""
        return torch.arange(self.count)

    @property
    def protocol(self) -> str:
        """The images depend on the model: numbers of different runs are not comparable."""
        return f"own-model/seed{self.inputs.settings.seed}"


def annealed(inputs: EstimatorInputs) -> EstimatorJob:
    """Return the job of annealed importance sampling, with a BDMC check beside the first few images."""
    images, annealing = inputs.images, Annealing.of(inputs)
    model = cache(partial(annealing.model, len(images.numbers)))
    check = BDMCCheck(annealing, Simulated(inputs, min(_simulated_count(inputs), len(images.numbers))), model)

    def numbers(part: slice) -> Tensor:
        with inputs.seeded(part):
            result = annealing.forward(model(), inputs.observed(part), images.numbers[part])
        return torch.cat([torch.stack(result).cpu(), check.rows(part)])

    def summarise(rows: Tensor) -> list[Estimate]:
        estimate = annealing_estimate("AIS", Direction.LOWER_BOUND, AISResult(*rows[:OWN_ROWS]), annealing)
        extra, note = check.summarise(rows[OWN_ROWS:])
        notes = "; ".join(line for line in (note, estimate.note) if line)
        return [replace(estimate, extra=estimate.extra | extra, note=notes)]

    return EstimatorJob(
        split=inputs.settings.split,
        protocol=images.protocol,
        images=images.numbers,
        key=["annealed", CHAINS_VERSION, inputs.settings.seed, check.simulated.count, *annealing.shown().items()],
        rows=(*AISResult._fields, *check.names),
        batch=annealing.batch,
        numbers=numbers,
        summarise=summarise,
        compiles=True,
    )


def _simulated_count(inputs: EstimatorInputs) -> int:
    """Return ``estimator.bdmc``, 0 for null; the config of an old run may not have it."""
    return inputs.settings.arguments.get("bdmc") or 0


@dataclass(frozen=True)
class BDMCCheck:
    """Bidirectional Monte Carlo with the settings of an evaluation by annealing: it limits the error of these settings.

    The n-th simulated image is computed with the n-th real one, and is saved and resumed with it.
    """

    annealing: Annealing
    simulated: Simulated
    """No images for no check."""
    model: Callable[[], GenerativeModel]
    """p(x, z) for the chains."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of its rows: both bounds of a simulated image, and whether its chains mixed."""
        return ("bdmc_lower", "bdmc_upper", "bdmc_mixed") if self.simulated.count else ()

    def rows(self, part: slice) -> Tensor:
        """Return the rows beside the real images ``part``, (3, part); NaN beyond the last simulated image."""
        rows = torch.full((len(self.names), part.stop - part.start), math.nan, dtype=torch.float64)
        if part.start >= self.simulated.count:
            return rows
        numbers, (x, z) = self.simulated.numbers[part], self.simulated.pairs
        with self.annealing.inputs.seeded(part):
            found = self.annealing.both_ways(self.model(), x[numbers], z[numbers], numbers)
        mixed = found.forward.mixed & found.reverse.mixed
        rows[:, : len(numbers)] = torch.stack([found.lower, found.upper, mixed.double()])
        return rows

    def summarise(self, rows: Tensor) -> tuple[dict[str, Any], str]:
        """Return the result of the check, as numbers and as one line; nothing without simulated images."""
        if not self.simulated.count:
            return {}, ""
        lower, upper, mixed = rows[:, ~rows[0].isnan()]
        gap, count, unmixed = PerImage(upper - lower), len(lower), int((mixed == 0).sum())
        largest = gap.values.max().item()
        extra = {"bdmc_gap": gap.mean, "bdmc_gap_stderr": gap.stderr, "bdmc_gap_largest": largest}
        extra |= {"bdmc_images": count, "bdmc_unmixed": unmixed}
        failed = f"; the chains of {unmixed} of them did not mix" if unmixed else ""
        return extra, (
            f"BDMC check with the same settings on {count} simulated images: the bounds differ by {gap.mean:.2f} +- "
            f"{gap.stderr:.2f} nats on average, which limits the mean error of AIS there, and by {largest:.2f} at "
            f"most{failed}"
        )


def bidirectional(inputs: EstimatorInputs) -> EstimatorJob:
    """Return the job of bidirectional Monte Carlo on images simulated by the run's model."""
    images, annealing = Simulated.of(inputs), Annealing.of(inputs)
    model, places = cache(partial(annealing.model, images.count, directions=2)), images.numbers

    def numbers(part: slice) -> Tensor:
        x, z = images.pairs
        with inputs.seeded(part):
            found = annealing.both_ways(model(), x[part], z[part], places[part])
        return torch.stack([*found.forward, *found.reverse])

    def summarise(rows: Tensor) -> list[Estimate]:
        both = BDMCResult(AISResult(*rows[:OWN_ROWS]), AISResult(*rows[OWN_ROWS:]))
        # The largest error of these settings, beside each of the two numbers.
        gap = {"gap": both.gap, "gap_stderr": both.gap_stderr}
        return [
            annealing_estimate("BDMC", Direction.LOWER_BOUND, both.forward, annealing, **gap),
            annealing_estimate("BDMC", Direction.UPPER_BOUND, both.reverse, annealing, **gap),
        ]

    return EstimatorJob(
        split="simulated",
        protocol=images.protocol,
        images=places,
        key=["bidirectional", CHAINS_VERSION, inputs.settings.seed, images.count, *annealing.shown().items()],
        rows=tuple(f"{side}_{name}" for side in ("lower", "upper") for name in AISResult._fields),
        batch=annealing.batch,
        numbers=numbers,
        summarise=summarise,
        compiles=True,
    )


def annealing_estimate(
    estimator: str, direction: Direction, result: AISResult, annealing: Annealing, **extra: float
) -> Estimate:
    """Return the estimate of chains and their diagnostics; RunFailed if they did not mix."""
    refuse_unmixed(result)
    note = ""
    if annealing.settings.temperatures:  # else there are no moves
        extra["acceptance"] = result.acceptance.mean().item()
        extra["lowest_acceptance"] = result.lowest_acceptance.min().item()
    extra["mixed_images"] = int(result.mixed.sum())
    if annealing.settings.chains > 1:
        # A single chain has no spread, hence no error.
        extra["ess"] = result.ess.mean().item()
        chain_error, note = stated_chain_error(result)
        extra |= chain_error
    return Estimate(
        estimator=estimator,
        direction=direction,
        values=result.log_likelihood,
        settings=annealing.shown(),
        extra=extra,
        note=note,
    )


def stated_chain_error(result: AISResult) -> tuple[dict[str, float], str]:
    """Return the error of the mean that is due to the chains, or the reason why it is unknown, as one line."""
    tail = result.mean_tail
    found = {"chain_tail": tail} if math.isfinite(tail) else {}
    if not result.heavy_tailed:
        return found | {"chain_stderr": result.mean_stderr}, ""
    if math.isnan(tail):
        return found, "the error due to the chains is unknown: it needs at least 3 chains, none with weight 0"
    return found, (
        "the error due to the chains is unknown: few of them carry most of the weight (log E w^3/(E w)^3 is "
        f"{tail:.1f}, more than {LARGEST_TAIL:g}); use more temperatures, or another initial density"
    )
