"""The estimator ``sandwich``: bounds from both sides on log q(z|x), divergences and informations."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vaebench.direction import Direction
from vaebench.encoders.base import Encoder
from vaebench.errors import UserError
from vaebench.estimators.ais import AISResult, refuse_unmixed
from vaebench.estimators.importance import Chunks
from vaebench.estimators.sampling import Sampling
from vaebench.estimators.sandwich import (
    SIDES,
    Bounds,
    BoundValue,
    SandwichResult,
    concatenated,
    information_about_images,
    sandwich,
)
from vaebench.evaluate.annealing import CHAINS_VERSION, Annealing, Simulated, stated_chain_error
from vaebench.evaluate.job import Estimate, EstimatorInputs, EstimatorJob, Images
from vaebench.runtime import forked_randomness

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
"""The names of the fields of a SandwichResult in results, in the order of the report. For simulated images,
``image_information`` is the model's information."""

OF_EVIDENCE = ("evidence", "divergence", "model_information")
"""The quantities that use log p(x), which may come from annealing."""

WAYS = ("forward", "reverse")


def sandwiched(inputs: EstimatorInputs) -> EstimatorJob:
    """Return the job of bounds from both sides on log q(z|x), and on the quantities that contain it."""
    given, measure = inputs.settings, _Measure.of(inputs)

    def summarise(rows: Tensor) -> list[Estimate]:
        return estimates(measure, dict(zip(measure.rows, rows, strict=True)))

    return EstimatorJob(
        split=given.split,
        protocol=measure.images.protocol,
        images=measure.images.numbers,
        key=["sandwich", given.k, measure.inner_k, given.seed, given.aggregate, *measure.key()],
        rows=measure.rows,
        batch=measure.batch,
        numbers=measure,
        summarise=summarise,
    )


def bounded_encoder(inputs: EstimatorInputs) -> tuple[Encoder, dict[str, Any]]:
    """Return the encoder and the settings by which it differs from the trained one.

    UserError if nothing bounds its log q(z|x), unless ``estimator.proposal=own`` accepts an estimate.
    """
    if inputs.encoder.direction is not Direction.ESTIMATE:
        return inputs.proposal()
    if inputs.settings.proposal == "own":
        return inputs.encoder, {"proposal": "own"}
    raise UserError(
        f"estimator=sandwich is invalid for encoder={inputs.encoder_name}, which has no density: nothing bounds its "
        "log q(z|x). Use estimator.proposal=own for estimates (~) without bounds, or estimator=ais for a bound on "
        "log p(x)"
    )


@dataclass(frozen=True)
class _Measure:
    """Maps a part of the images to their numbers, (R, part)."""

    inputs: EstimatorInputs
    encoder: Encoder
    shown: dict[str, Any]
    """The settings by which the encoder differs from the trained one."""
    images: Images | Simulated
    inner_k: int
    batch: int
    group_size: int
    """Images in the mixture that replaces q(z); 0 for no mixture."""
    annealing: Annealing | None
    """The source of log p(x); None for the weights of the draws."""

    @classmethod
    def of(cls, inputs: EstimatorInputs) -> "_Measure":
        """Read the settings."""
        given, (encoder, shown) = inputs.settings, bounded_encoder(inputs)
        images = Simulated.of(inputs) if given.split == "simulated" else inputs.images
        annealing = None if given.temperatures is None else Annealing.of(inputs)
        inner_k = (given.inner_k or 0) if encoder.direction is Direction.UPPER_BOUND else 0
        automatic = Chunks.automatic(inputs.device, Sampling(given.k, inner_k), images=len(images.numbers))
        return cls(
            inputs,
            encoder,
            shown,
            images,
            inner_k,
            batch=given.batch or (annealing.batch if annealing else automatic.batch),
            # For simulated images, the information is known without a mixture.
            group_size=0 if isinstance(images, Simulated) else given.aggregate,
            annealing=annealing,
        )

    @property
    def simulated(self) -> bool:
        """Whether the images come with an exact draw from the posterior of each."""
        return isinstance(self.images, Simulated)

    def observed(self, part: slice) -> tuple[Tensor, Tensor | None]:
        """Return a part of the images, (B, X), and their posterior draws, (B, D), if they are simulated."""
        if isinstance(self.images, Simulated):
            x, z = self.images.pairs
            return x[part], z[part]
        return self.inputs.observed(part), None

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """The names of an image's numbers."""
        return tuple(self._blank())

    def __call__(self, part: slice) -> Tensor:
        """Return the numbers of a part of the images."""
        with self.inputs.seeded(part):
            return torch.stack(list(self._computed(part).values()))

    def _computed(self, part: slice) -> dict[str, Tensor]:
        given = self.inputs.settings
        (x, z), numbers = self.observed(part), self.images.numbers[part]
        evidence, chains = self._annealed(x, z, numbers)
        sampling = Sampling(given.k, self.inner_k, given.seed, numbers)
        result = sandwich(self.inputs.model, self.encoder, x, sampling, posterior=z, evidence=evidence)
        if self.group_size:
            result = result._replace(image_information=self._mixture(part))
        return result.rows() | chains

    def _blank(self) -> dict[str, Tensor]:
        """Return the numbers of two blank images, for their names."""
        inputs, x = self.inputs, self.inputs.blank(2)
        z = torch.zeros(2, inputs.latent_dim, device=inputs.device) if self.simulated else None
        modules, least = (inputs.model, inputs.encoder), Sampling(1, min(1, self.inner_k))
        training = [module.training for module in modules]
        for module in modules:
            module.eval()
        with torch.no_grad(), forked_randomness(inputs.device, seed=0):
            nothing = AISResult(*torch.zeros(len(AISResult._fields), 2, dtype=torch.float64))
            evidence, chains = (None, {}) if self.annealing is None else _kept([nothing] * (1 if z is None else 2))
            result = sandwich(inputs.model, self.encoder, x, least, posterior=z, evidence=evidence)
            if self.group_size:
                mixed = information_about_images(inputs.model, self.encoder, x, slice(0, 2), least)
                result = result._replace(image_information=mixed)
        for module, mode in zip(modules, training, strict=True):
            module.train(mode)
        return result.rows() | chains

    def settings(self, name: str) -> dict[str, Any]:
        """Return the settings that a result shows in addition to k and inner_k; ``name`` is a key of ``QUANTITIES``."""
        settings = dict(self.shown)
        if name == "image_information":
            # The lower bound is at most the logarithm of this.
            settings["aggregate"] = max(group.stop - group.start for group in self.groups())
        if self.annealing and name in OF_EVIDENCE:
            settings |= {"evidence": "BDMC" if self.simulated else "AIS", **self.annealing.shown()}
        return settings

    def key(self) -> list[object]:
        """Return the settings that change the numbers, except k, inner_k, the seed and the size of the mixture."""
        if self.annealing is None:
            return [*self.shown.items()]
        return [*(self.shown | self.annealing.shown()).items(), CHAINS_VERSION]

    # log p(x) by annealing ------------------------------------------------------------------------------------

    def _annealed(self, x: Tensor, z: Tensor | None, numbers: Tensor) -> tuple[Bounds | None, dict[str, Tensor]]:
        annealing, model = self.annealing, self.inputs.model
        if annealing is None:
            return None, {}
        if z is None:
            return _kept([annealing.forward(model, x, numbers)])
        both = annealing.both_ways(model, x, z, numbers)
        return _kept([both.forward, both.reverse])

    # I_q(x; z) ------------------------------------------------------------------------------------------------

    def groups(self) -> list[slice]:
        """Return the images of each mixture that replaces q(z); the groups differ by at most one image."""
        if not self.group_size:
            return []
        count = len(self.images.numbers)
        cut = torch.arange(count).tensor_split(-(-count // self.group_size))
        return [slice(int(part[0]), int(part[-1]) + 1) for part in cut]

    def _mixture(self, part: slice) -> Bounds:
        found: list[Bounds] = []
        for group in self.groups():
            first, last = max(part.start, group.start), min(part.stop, group.stop)
            if first < last:
                inside = slice(first - group.start, last - group.start)
                x, numbers = self.inputs.observed(group), self.images.numbers[group]
                sampling = Sampling(1, self.inner_k, self.inputs.settings.seed, numbers)
                found.append(information_about_images(self.inputs.model, self.encoder, x, inside, sampling))
        return Bounds(*(_if_complete(sides) for sides in zip(*found, strict=True)))


def _kept(ways: list[AISResult]) -> tuple[Bounds, dict[str, Tensor]]:
    """Return the bounds on log p(x) from one or two directions of chains, and the rows of the chains."""
    values = [BoundValue(result.log_likelihood, result.stderr) for result in ways]
    chains = {
        f"{way}.{name}": row for way, result in zip(WAYS, ways, strict=False) for name, row in result._asdict().items()
    }
    return Bounds(values[0], values[1] if len(values) > 1 else None), chains


def _if_complete(parts: tuple[BoundValue | None, ...]) -> BoundValue | None:
    known = [part for part in parts if part is not None]
    return concatenated(known) if len(known) == len(parts) else None


# Results --------------------------------------------------------------------------------------------------


def estimates(measure: _Measure, rows: dict[str, Tensor]) -> list[Estimate]:
    """Return one estimate for each bound on each quantity."""
    unknown = ""
    for way in WAYS:
        if f"{way}.log_likelihood" in rows:
            chains = AISResult(*(rows[f"{way}.{name}"] for name in AISResult._fields))
            refuse_unmixed(chains)
            unknown = unknown or stated_chain_error(chains)[1]
    result = SandwichResult.from_rows(rows)
    found = result._asdict()
    if measure.simulated:
        found["model_information"] = found.pop("image_information")
    found_all = [each for name in QUANTITIES if name in found for each in _estimates(measure, name, found[name])]
    of_chains = {QUANTITIES[name] for name in OF_EVIDENCE} if unknown else set()
    return [replace(each, extra={}, note=unknown) if each.quantity in of_chains else each for each in found_all]


def _estimates(measure: _Measure, name: str, bounds: Bounds) -> Iterator[Estimate]:
    estimate = measure.encoder.direction is Direction.ESTIMATE
    # Annealing does not use log q.
    annealed = name in ("evidence", "model_information") and measure.annealing is not None
    for side in SIDES:
        found: BoundValue | None = getattr(bounds, side)
        if found is None or (bounds.single and side == "lower"):
            continue
        direction: Direction = (
            Direction.EXACT if bounds.single else Direction.LOWER_BOUND if side == "lower" else Direction.UPPER_BOUND
        )
        yield Estimate(
            estimator="sandwich",
            quantity=QUANTITIES[name],
            direction=Direction.ESTIMATE if estimate and not annealed else direction,
            values=found.values,
            k=measure.inputs.settings.k,
            inner_k=measure.inner_k if measure.encoder.direction is Direction.UPPER_BOUND else None,
            settings=measure.settings(name),
            extra=_draws_error(found.stderr),
            log_q=None if annealed else measure.encoder.direction,
        )


def _draws_error(stderr: Tensor) -> dict[str, Any]:
    """Return the standard error of the mean over the images that is due to the draws."""
    error = (stderr.square().sum().sqrt() / len(stderr)).item()
    return {"draw_stderr": error} if error == error else {}
