"""The estimators of log p(x) that a user can name, each as a plan for one run: how its numbers are made, image by
image, and what is reported of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.encoders import Encoder
from vaebench.errors import UserError, did_you_mean
from vaebench.evaluation import log_likelihoods
from vaebench.evaluation.ais import AISResult, Settings, ais, batch_size, has_density, moment_matched, refuse_unmixed
from vaebench.evaluation.bdmc import BDMCResult, sandwich, simulated
from vaebench.experiment.assembly import Experiment

__all__ = ["ESTIMATORS", "Batch", "Estimator", "Finding", "Plan"]

INITIALS = ("prior", "encoder", "moments")

Batch = tuple[slice, Tensor]
"""Which images, and their numbers: one row for each name of ``Plan.rows``, (R, images), float64."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A result but for where and when it was found: the fields are those of a result record."""

    estimator: str
    direction: Literal["exact", "lower_bound", "upper_bound", "estimate"]
    values: Tensor
    """Nats per image, (N,)."""
    k: int | None = None
    inner_k: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One estimator, applied to one run's weights."""

    split: str
    protocol: str
    """Of the images that are evaluated; a subset has one of its own."""
    count: int
    """Images."""
    key: Sequence[object]
    """All that the numbers depend on, beside the run, its epoch and its data."""
    rows: tuple[str, ...]
    """What is kept of each image; the first is its value."""
    batches: Callable[[int], Iterator[Batch]]
    """Yields the numbers of all images from the given one on, in order."""
    conclude: Callable[[Tensor], list[Finding]]
    """Maps the numbers of all images, (R, N), to results; RunFailed where they are not fit to be reported."""


Estimator = Callable[[Experiment], Plan]
"""UserError where the settings make no sense for the run."""


class Images(NamedTuple):
    """The images that the settings name."""

    numbers: Tensor
    """Their places in the split, (N,)."""
    intensities: Tensor
    """Pixel bytes, (N, X), on the experiment's device."""
    protocol: str


def chosen(experiment: Experiment) -> Images:
    """Return the images that an evaluation is to see."""
    settings, data = experiment.config.estimator, experiment.data
    intensities, protocol = data.split(settings.split), str(data.protocol)
    numbers = torch.arange(len(intensities))
    if settings.images is not None and settings.images < len(intensities):
        generator = torch.Generator().manual_seed(runtime.derived_seed(settings.seed, "subset"))
        numbers = torch.randperm(len(intensities), generator=generator)[: settings.images].sort().values
        # A subset is another test set: a random 1,000 of MNIST's 10,000 can be a nat off.
        protocol += f"/random{len(numbers)}-seed{settings.seed}"
    intensities = intensities[numbers]
    if settings.split == "train" and not data.continuous:
        # The training images of a dynamic protocol are grey: they are drawn once, by the evaluation's seed.
        generator = torch.Generator().manual_seed(runtime.derived_seed(settings.seed, "train"))
        intensities = data.observe(intensities, generator).mul(255).to(torch.uint8)
    return Images(numbers, intensities.to(experiment.device), protocol)


# Importance sampling --------------------------------------------------------------------------------------


def importance(experiment: Experiment) -> Plan:
    """Plan IWAE's estimate, or DIWHVI's for hierarchical encoders."""
    settings, images = experiment.config.estimator, chosen(experiment)
    encoder = experiment.encoder if settings.proposal == "own" else experiment.encoder.proposal()
    hierarchical = encoder.has_inner_samples
    inner_k = experiment.inner_k if settings.inner_k is None else settings.inner_k
    inner_k = inner_k if hierarchical else 0

    def batches(first: int) -> Iterator[Batch]:
        for part, values in log_likelihoods(
            experiment.model,
            encoder,
            experiment.data.observe,
            images.intensities,
            k=settings.k,
            inner_k=inner_k,
            seed=settings.seed,
            batch=settings.batch,
            chunk=settings.chunk,
            images=images.numbers,
            first=first,
        ):
            yield part, values.unsqueeze(0)

    def conclude(rows: Tensor) -> list[Finding]:
        finding = Finding(
            estimator="DIWHVI" if hierarchical else "IWAE",
            direction=encoder.direction.of_log_likelihood,
            values=rows[0],
            k=settings.k,
            inner_k=inner_k if hierarchical else None,
            settings=proposal_shown(experiment.encoder, encoder),
        )
        return [finding]

    return Plan(
        split=settings.split,
        protocol=images.protocol,
        count=len(images.numbers),
        key=["importance", settings.k, inner_k, settings.seed, type(encoder).__name__],
        rows=("values",),
        batches=batches,
        conclude=conclude,
    )


def proposal_shown(trained: Encoder, weighed: Encoder) -> dict[str, str]:
    """Name the encoder whose draws were weighed, where the trained one has another proposal than itself."""
    return {} if trained.proposal() is trained else {"proposal": type(weighed).__name__}


# Annealing ------------------------------------------------------------------------------------------------


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

    def shown(self) -> dict[str, Any]:
        """Return the settings as results show them."""
        return vars(self.settings) | {"initial": self.initial}

    def parts(self, count: int, first: int) -> Iterator[slice]:
        """Yield the images, batch by batch."""
        for start in range(first, count, self.batch):
            yield slice(start, min(start + self.batch, count))

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
    return "moments", moment_matched(encoder)


def annealed(experiment: Experiment) -> Plan:
    """Plan annealed importance sampling."""
    given, images, annealing = experiment.config.estimator, chosen(experiment), Annealing.of(experiment)

    def batches(first: int) -> Iterator[Batch]:
        for part in annealing.parts(len(images.numbers), first):
            with annealing.seeded(part):
                result = ais(
                    experiment.model,
                    experiment.data.observe(images.intensities[part]),
                    annealing.encoder,
                    seed=given.seed,
                    images=images.numbers[part],
                    batch=annealing.batch,
                    strict=False,  # judged over all images, at the end
                    **vars(annealing.settings),
                )
            yield part, result.rows()

    def conclude(rows: Tensor) -> list[Finding]:
        return [annealing_found("AIS", "lower_bound", AISResult.from_rows(rows), annealing.shown())]

    return Plan(
        split=given.split,
        protocol=images.protocol,
        count=len(images.numbers),
        key=["annealed", given.seed, *annealing.shown().items()],
        rows=AISResult.names(),
        batches=batches,
        conclude=conclude,
    )


def bidirectional(experiment: Experiment) -> Plan:
    """Plan bidirectional Monte Carlo on images simulated from the run's own model."""
    given, annealing = experiment.config.estimator, Annealing.of(experiment)
    if given.images is None:
        raise UserError("estimator.images: how many images are to be simulated? estimator.images=100, say")
    count, half = given.images, len(AISResult.names())

    def batches(first: int) -> Iterator[Batch]:
        x, z = simulated(experiment.model, count, given.seed)
        for part in annealing.parts(count, first):
            numbers = torch.arange(part.start, part.stop)
            with annealing.seeded(part):
                found = sandwich(
                    experiment.model, x[part], z[part], annealing.encoder, annealing.settings, given.seed, numbers
                )
            yield part, torch.cat([found.forward.rows(), found.reverse.rows()])

    def conclude(rows: Tensor) -> list[Finding]:
        both = BDMCResult(AISResult.from_rows(rows[:half]), AISResult.from_rows(rows[half:]))
        # The error that the settings make at most, beside each of the two numbers.
        gap = {"gap": both.gap, "gap_stderr": both.gap_stderr} if count > 1 else {"gap": both.gap}
        return [
            annealing_found("BDMC", "lower_bound", both.forward, annealing.shown(), **gap),
            annealing_found("BDMC", "upper_bound", both.reverse, annealing.shown(), **gap),
        ]

    return Plan(
        split="simulated",
        # Images of the model's own: nothing that another run's numbers could be compared with.
        protocol=f"own-model/seed{given.seed}",
        count=count,
        key=["bidirectional", given.seed, count, *annealing.shown().items()],
        rows=tuple(f"{side}_{name}" for side in ("lower", "upper") for name in AISResult.names()),
        batches=batches,
        conclude=conclude,
    )


def annealing_found(
    estimator: str,
    direction: Literal["lower_bound", "upper_bound"],
    result: AISResult,
    settings: dict[str, Any],
    **extra: float,
) -> Finding:
    """Judge the chains, and report what they found."""
    refuse_unmixed(result)
    extra["acceptance"] = result.acceptance.mean().item()
    extra["lowest_acceptance"] = result.lowest_acceptance.min().item()
    extra["mixed_images"] = int(result.mixed.sum())
    if settings["chains"] > 1:
        # One chain has no spread to tell an error by.
        extra |= {"ess": result.ess.mean().item(), "chain_stderr": result.mean_stderr}
    return Finding(
        estimator=estimator, direction=direction, values=result.log_likelihood, settings=settings, extra=extra
    )


# One line makes a new estimator known; its yaml's keys are in ``experiment.config.estimator``.
ESTIMATORS: dict[str, Estimator] = {
    "ais": annealed,
    "bdmc": bidirectional,
    "iwae": importance,
}
