"""Importance sampling as an estimator: IWAE's, and DIWHVI's for hierarchical encoders."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vaebench.encoders.base import Encoder
from vaebench.errors import UserError
from vaebench.estimators.importance import Chunks, chunks_within, weighed
from vaebench.estimators.weights import RELIABLE
from vaebench.evaluate.compile import model_for
from vaebench.evaluate.job import Estimate, EstimatorJob, chosen
from vaebench.experiment import Experiment
from vaebench.model import GenerativeModel
from vaebench.runtime import derived_seed, forked_randomness

__all__ = ["importance_weighted"]


def importance_weighted(experiment: Experiment) -> EstimatorJob:
    """Plan IWAE's estimate, or DIWHVI's for hierarchical encoders."""
    settings, images = experiment.config.estimator, chosen(experiment)
    encoder, shown = proposal(experiment)
    hierarchical = encoder.has_inner_samples
    inner_k = experiment.inner_k if settings.inner_k is None else settings.inner_k
    inner_k = inner_k if hierarchical else 0
    automatic = Chunks.automatic(experiment.device, inner_k, settings.batch, settings.chunk)

    @cache
    def chunks() -> Chunks:
        x = torch.zeros(1, images.intensities.shape[1], device=experiment.device)
        share = 1 / settings.processes
        return chunks_within(share, experiment.model, encoder, x, inner_k, automatic.batch, settings.chunk)

    @cache
    def model() -> GenerativeModel:
        """Return p(x, z) for chunks of the usual size: the last ones of a batch, and of all images, are smaller."""
        samples = min(settings.k, chunks().samples)
        return model_for(experiment, automatic.batch, len(images.numbers), settings.k // samples, samples)

    def numbers(part: slice) -> Tensor:
        # Distributions that draw from torch's own generator are seeded too, and leave no trace outside.
        with forked_randomness(experiment.device, derived_seed(settings.seed, part.start)):
            x = experiment.data.observe(images.intensities[part])
            places = images.numbers[part]
            found = weighed(model(), encoder, x, settings.k, inner_k, chunks(), settings.seed, places)
        return torch.stack([found.log_mean(), found.ess(), found.pareto_k()])

    def summarise(rows: Tensor) -> list[Estimate]:
        values, ess, pareto_k = rows
        extra, note = reliability(settings.k, ess, pareto_k)
        estimate = Estimate(
            estimator="DIWHVI" if hierarchical else "IWAE",
            direction=encoder.direction.of_log_likelihood,
            values=values,
            k=settings.k,
            inner_k=inner_k if hierarchical else None,
            settings=shown,
            extra=extra,
            note=note,
        )
        return [estimate]

    return EstimatorJob(
        split=settings.split,
        protocol=images.protocol,
        images=images.numbers,
        key=["importance", settings.k, inner_k, settings.seed, type(encoder).__name__, *shown.items()],
        rows=("log_likelihood", "ess", "pareto_k"),
        batch=automatic.batch,
        numbers=numbers,
        summarise=summarise,
        compiles=True,
    )


def proposal(experiment: Experiment) -> tuple[Encoder, dict[str, Any]]:
    """Return the encoder whose draws are weighed, and what sets it apart from the one that was trained.

    UserError where it has not the inner samples asked for.
    """
    settings, trained = experiment.config.estimator, experiment.encoder
    encoder = trained if settings.proposal == "own" else trained.proposal()
    shown: dict[str, Any] = {} if trained.proposal() is trained else {"proposal": type(encoder).__name__}
    asked = {"tau": settings.tau, "share_psi": settings.share_psi}
    asked = {key: value for key, value in asked.items() if value is not None}
    try:
        rescored = encoder.with_inner_samples(**asked)
    except ValueError as error:
        words = " ".join(f"estimator.{key}={str(value).lower()}" for key, value in asked.items())
        hint = "; with estimator.tau=prior they can" if settings.share_psi and encoder.has_inner_samples else ""
        raise UserError(f"{words} is not for encoder={experiment.config.encoder.name}: {error}{hint}") from error
    return rescored, shown if rescored is encoder else shown | asked


def reliability(k: int, ess: Tensor, pareto_k: Tensor) -> tuple[dict[str, Any], str]:
    """Return what the weights say of the estimate, over all images: as numbers, and in one line."""
    if k == 1:
        return {}, ""
    extra: dict[str, Any] = {"ess": ess.mean().item(), "ess_lowest": ess.min().item()}
    note = f"weights: mean effective sample size {extra['ess']:.1f} of {k}"
    if bool(pareto_k.isnan().any()):
        return extra, note
    median, loose = pareto_k.median().item(), (pareto_k > RELIABLE).double().mean().item()
    extra |= {"pareto_k": median if math.isfinite(median) else None, f"pareto_k_over_{RELIABLE}": loose}
    meaning = f"Pareto k-hat > {RELIABLE} (their mean is unreliable, the bound probably loose)"
    return extra, f"{note}; {meaning} for {100 * loose:.1f} % of the images"
