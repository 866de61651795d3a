"""Annealing as an estimator: annealed importance sampling, and bidirectional Monte Carlo."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.encoders import Encoder
from vaebench.errors import UserError, did_you_mean
from vaebench.evaluation.ais import AISResult, Settings, ais, batch_size, has_density, moment_matched, refuse_unmixed
from vaebench.evaluation.bdmc import BDMCResult, sandwich, simulated
from vaebench.experiment.assembly import Experiment
from vaebench.experiment.estimators.plan import Finding, Plan, chosen

__all__ = ["annealed", "bidirectional"]

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
    return "moments", moment_matched(encoder)


def annealed(experiment: Experiment) -> Plan:
    """Plan annealed importance sampling."""
    given, images, annealing = experiment.config.estimator, chosen(experiment), Annealing.of(experiment)

    def numbers(part: slice) -> Tensor:
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
        return result.rows()

    def conclude(rows: Tensor) -> list[Finding]:
        return [annealing_found("AIS", "lower_bound", AISResult.from_rows(rows), annealing.shown())]

    return Plan(
        split=given.split,
        protocol=images.protocol,
        images=images.numbers,
        key=["annealed", given.seed, *annealing.shown().items()],
        rows=AISResult.names(),
        batch=annealing.batch,
        numbers=numbers,
        conclude=conclude,
    )


def bidirectional(experiment: Experiment) -> Plan:
    """Plan bidirectional Monte Carlo on images simulated from the run's own model."""
    given, annealing = experiment.config.estimator, Annealing.of(experiment)
    if given.images is None:
        raise UserError("estimator.images: how many images are to be simulated? estimator.images=100, say")
    count, half = given.images, len(AISResult.names())

    images = torch.arange(count)

    @cache
    def pairs() -> tuple[Tensor, Tensor]:
        return simulated(experiment.model, count, given.seed)

    def numbers(part: slice) -> Tensor:
        x, z = pairs()
        with annealing.seeded(part):
            found = sandwich(
                experiment.model, x[part], z[part], annealing.encoder, annealing.settings, given.seed, images[part]
            )
        return torch.cat([found.forward.rows(), found.reverse.rows()])

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
        images=images,
        key=["bidirectional", given.seed, count, *annealing.shown().items()],
        rows=tuple(f"{side}_{name}" for side in ("lower", "upper") for name in AISResult.names()),
        batch=annealing.batch,
        numbers=numbers,
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
