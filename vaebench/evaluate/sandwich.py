"""The sandwich as an estimator: log q(z|x) from both sides, and the divergences and informations made of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.encoders.base import Direction, Encoder
from vaebench.errors import UserError
from vaebench.estimators.ais import AISResult, ais, refuse_unmixed
from vaebench.estimators.bdmc import both_ways, simulated
from vaebench.estimators.importance import Chunks
from vaebench.estimators.sandwich import SIDES, Between, SandwichResult, Side, information_about_images, sandwich
from vaebench.evaluate.annealing import Annealing
from vaebench.evaluate.importance import proposal
from vaebench.evaluate.job import Estimate, EstimatorJob, chosen
from vaebench.experiment import Experiment

__all__ = ["sandwiched"]

QUANTITIES = {
    "evidence": "log p(x)",
    "log_q": "log q(z|x)",
    "slack": "q-gap",
    "rate": "KL(q(z|x)||p(z))",
    "elbo": "ELBO",
    "divergence": "KL(q(z|x)||p(z|x))",
    "psi_information": "I_q(z;psi|x)",
    "image_information": "I_q(x;z)",
    "model_information": "I_p(x;z)",
}
"""What results call the fields of a SandwichResult, in the order in which they are reported; of the model's own images,
``image_information`` is that of the model."""

WAYS = ("forward", "reverse")


@dataclass(frozen=True)
class Subject:
    """Images, what makes them, and an exact draw from the posterior of each if they are the model's own."""

    numbers: Tensor
    protocol: str
    images: Callable[[slice], Tensor]
    """Some of them, (B, X)."""
    posterior: Callable[[slice], Tensor | None]
    """(B, D)."""
    simulated: bool

    @classmethod
    def of(cls, experiment: Experiment) -> "Subject":
        """Return the images that the settings name."""
        given = experiment.config.estimator
        if given.split != "simulated":
            images = chosen(experiment)
            observe = experiment.data.observe
            return cls(images.numbers, images.protocol, lambda part: observe(images.intensities[part]), _none, False)
        if given.images is None:
            raise UserError("estimator.images: how many images are to be simulated? estimator.images=100, say")
        pairs = _Simulated(experiment, given.images, given.seed)
        return cls(
            torch.arange(given.images),
            # Images of the model's own: nothing that another run's numbers could be compared with.
            f"own-model/seed{given.seed}",
            lambda part: pairs.drawn[0][part],
            lambda part: pairs.drawn[1][part],
            True,
        )


def _none(part: slice) -> None:
    del part


@dataclass(frozen=True)
class _Simulated:
    """Pairs of the model's own, drawn when they are first asked for: by then its weights are in evaluation mode."""

    experiment: Experiment
    count: int
    seed: int

    @cached_property
    def drawn(self) -> tuple[Tensor, Tensor]:
        """x, (N, X), and z, (N, D)."""
        return simulated(self.experiment.model, self.count, self.seed)


def sandwiched(experiment: Experiment) -> EstimatorJob:
    """Plan bounds from both sides on log q(z|x) and on what is made of it."""
    given = experiment.config.estimator
    measure = _Measure.of(experiment)

    def summarise(rows: Tensor) -> list[Estimate]:
        return estimates(measure, dict(zip(measure.rows, rows, strict=True)))

    return EstimatorJob(
        split=given.split,
        protocol=measure.subject.protocol,
        images=measure.subject.numbers,
        key=["sandwich", given.k, measure.inner_k, given.seed, given.aggregate, *measure.everything_shown().items()],
        rows=measure.rows,
        batch=measure.batch,
        numbers=measure,
        summarise=summarise,
    )


def bounded(experiment: Experiment) -> tuple[Encoder, dict[str, Any]]:
    """Return the encoder and what sets it apart from the trained one; UserError if nothing bounds its log q(z|x).

    An estimate is taken for what it is where ``estimator.proposal=own`` asks for it.
    """
    own = experiment.config.estimator.proposal == "own"
    if experiment.encoder.direction is not Direction.ESTIMATE:
        return proposal(experiment)
    if own:
        return experiment.encoder, {"proposal": "own"}
    raise UserError(
        f"encoder={experiment.config.encoder.name} has draws and no density: nothing bounds its log q(z|x), nor the "
        "divergences made of it. estimator.proposal=own reports what it estimates (~, no bounds); estimator=ais bounds "
        "log p(x) for any encoder"
    )


@dataclass(frozen=True)
class _Measure:
    """Maps a part of the images to their numbers, (R, part)."""

    experiment: Experiment
    encoder: Encoder
    shown: dict[str, Any]
    """What sets the encoder apart from the trained one."""
    subject: Subject
    k: int
    inner_k: int
    seed: int
    batch: int
    group_size: int
    """Images whose mixture stands for q(z); 0 for none."""
    annealing: Annealing | None
    """Where log p(x) comes from; None for the weights of the draws."""

    @classmethod
    def of(cls, experiment: Experiment) -> "_Measure":
        """Read the configuration."""
        given, subject, (encoder, shown) = experiment.config.estimator, Subject.of(experiment), bounded(experiment)
        if given.temperatures is not None and type(given.temperatures) is not int:
            raise UserError(f"estimator.temperatures must be null or a whole number, not {given.temperatures}")
        annealing = None if given.temperatures is None else Annealing.of(experiment)
        return cls(
            experiment,
            encoder,
            shown,
            subject,
            k=given.k,
            inner_k=(given.inner_k or 0) if encoder.direction is Direction.UPPER_BOUND else 0,
            seed=given.seed,
            batch=given.batch or (annealing.batch if annealing else Chunks.automatic(experiment.device).batch),
            # Of the model's own images, what z tells is known without their mixture.
            group_size=0 if subject.simulated else given.aggregate,
            annealing=annealing,
        )

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """The names of an image's numbers."""
        return tuple(self._named(self._blank()))

    def __call__(self, part: slice) -> Tensor:
        with runtime.forked_randomness(self.experiment.device, runtime.derived_seed(self.seed, part.start)):
            return torch.stack(list(self._named(self._found(part)).values()))

    def _named(self, found: tuple[SandwichResult, dict[str, Tensor]]) -> dict[str, Tensor]:
        return found[0].rows() | found[1]

    def _found(self, part: slice) -> tuple[SandwichResult, dict[str, Tensor]]:
        x, z, numbers = self.subject.images(part), self.subject.posterior(part), self.subject.numbers[part]
        evidence, chains = self._annealed(x, z, numbers)
        result = sandwich(
            self.experiment.model,
            self.encoder,
            x,
            self.k,
            self.inner_k,
            posterior=z,
            evidence=evidence,
            seed=self.seed,
            images=numbers,
        )
        if self.group_size:
            result = replace(result, image_information=self._mixture(part))
        return result, chains

    def _blank(self) -> tuple[SandwichResult, dict[str, Tensor]]:
        """Return which numbers there will be, by a look at a blank image."""
        experiment = self.experiment
        x = torch.zeros(2, experiment.data.train.shape[1], device=experiment.device)
        latent = torch.zeros(2, experiment.config.latent_dim, device=experiment.device)
        z = latent if self.subject.simulated else None
        training = experiment.modules.training
        experiment.modules.eval()
        with torch.no_grad(), runtime.forked_randomness(experiment.device, seed=0):
            nothing = torch.zeros(6, 2, dtype=torch.float64)
            evidence, chains = (None, {}) if self.annealing is None else self._kept([nothing] * (1 if z is None else 2))
            result = sandwich(
                experiment.model, self.encoder, x, 1, min(1, self.inner_k), posterior=z, evidence=evidence
            )
            if self.group_size:
                mixed = information_about_images(
                    experiment.model, self.encoder, x, slice(0, 2), 1, min(1, self.inner_k)
                )
                result = replace(result, image_information=mixed)
        experiment.modules.train(training)
        return result, chains

    def settings(self, name: str) -> dict[str, Any]:
        """Return what a result shows beside k and inner_k; ``name`` is a key of ``QUANTITIES``."""
        settings = dict(self.shown)
        if name == "image_information":
            # The lower bound cannot exceed the logarithm of this.
            settings["aggregate"] = max(group.stop - group.start for group in self.groups())
        if self.annealing and name in ("evidence", "divergence", "model_information"):
            settings |= {"evidence": "BDMC" if self.subject.simulated else "AIS", **self.annealing.shown()}
        return settings

    def everything_shown(self) -> dict[str, Any]:
        """Return all that any result shows."""
        return self.shown | (self.annealing.shown() if self.annealing else {})

    # log p(x) by annealing ------------------------------------------------------------------------------------

    def _annealed(self, x: Tensor, z: Tensor | None, numbers: Tensor) -> tuple[Between | None, dict[str, Tensor]]:
        annealing, model = self.annealing, self.experiment.model
        if annealing is None:
            return None, {}
        if z is not None:
            both = both_ways(model, x, z, annealing.encoder, annealing.settings, self.seed, numbers)
            return self._kept([both.forward.rows(), both.reverse.rows()])
        found = ais(
            model,
            x,
            annealing.encoder,
            seed=self.seed,
            images=numbers,
            batch=annealing.batch,
            strict=False,  # judged over all images, at the end
            **vars(annealing.settings),
        )
        return self._kept([found.rows()])

    def _kept(self, ways: list[Tensor]) -> tuple[Between, dict[str, Tensor]]:
        """Return the bounds on log p(x), and all that is known of the chains."""
        results = [AISResult.from_rows(rows) for rows in ways]
        sides = [Side(result.log_likelihood, result.stderr) for result in results]
        chains = {
            f"{way}.{name}": row
            for way, rows in zip(WAYS, ways, strict=False)
            for name, row in zip(AISResult.names(), rows, strict=True)
        }
        return Between(sides[0], sides[1] if len(sides) > 1 else None), chains

    # I_q(x; z) ------------------------------------------------------------------------------------------------

    def groups(self) -> list[slice]:
        """Return the images whose mixture stands for q(z), as evenly cut as can be."""
        if not self.group_size:
            return []
        count = -(-len(self.subject.numbers) // self.group_size)
        cut = torch.arange(len(self.subject.numbers)).tensor_split(count)
        return [slice(int(part[0]), int(part[-1]) + 1) for part in cut]

    def _mixture(self, part: slice) -> Between:
        found: list[Between] = []
        for group in self.groups():
            first, last = max(part.start, group.start), min(part.stop, group.stop)
            if first < last:
                inside = slice(first - group.start, last - group.start)
                x, numbers = self.subject.images(group), self.subject.numbers[group]
                found.append(
                    information_about_images(
                        self.experiment.model, self.encoder, x, inside, 1, self.inner_k, seed=self.seed, images=numbers
                    )
                )
        return Between(*(_joined(sides) for sides in zip(*found, strict=True)))


def _joined(sides: tuple[Side | None, ...]) -> Side | None:
    known = [side for side in sides if side is not None]
    return Side(*(torch.cat(part) for part in zip(*known, strict=True))) if len(known) == len(sides) else None


# Results --------------------------------------------------------------------------------------------------


def estimates(measure: _Measure, rows: dict[str, Tensor]) -> list[Estimate]:
    """Return one estimate for each side of each quantity."""
    for way in WAYS:
        if f"{way}.{AISResult.names()[0]}" in rows:
            refuse_unmixed(AISResult(**{name: rows[f"{way}.{name}"] for name in AISResult.names()}))
    result = SandwichResult.from_rows(rows)
    between = dict(result.quantities())
    if measure.subject.simulated:
        between["model_information"] = between.pop("image_information")
    return [estimate for name in QUANTITIES if name in between for estimate in _found(measure, name, between[name])]


def _found(measure: _Measure, name: str, between: Between) -> Iterator[Estimate]:
    estimate = measure.encoder.direction is Direction.ESTIMATE
    # Annealing asks nothing of log q.
    annealed = name in ("evidence", "model_information") and measure.annealing is not None
    for side in SIDES:
        found: Side | None = getattr(between, side)
        if found is None or (between.single and side == "lower"):
            continue
        direction = (
            Direction.EXACT if between.single else Direction.LOWER_BOUND if side == "lower" else Direction.UPPER_BOUND
        )
        yield Estimate(
            estimator="sandwich",
            quantity=QUANTITIES[name],
            direction=Direction.ESTIMATE if estimate and not annealed else direction,
            values=found.values,
            k=measure.k,
            inner_k=measure.inner_k if measure.encoder.direction is Direction.UPPER_BOUND else None,
            settings=measure.settings(name),
            extra=_draws_error(found.stderr),
        )


def _draws_error(stderr: Tensor) -> dict[str, Any]:
    """Return the standard error that the draws leave in the mean over the images."""
    error = (stderr.square().sum().sqrt() / len(stderr)).item()
    return {"draw_stderr": error} if error == error else {}
