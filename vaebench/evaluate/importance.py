"""The estimator ``iwae``: importance sampling, named DIWHVI for hierarchical encoders."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vaebench.estimators.importance import Chunks, chunks_within, weighed
from vaebench.estimators.sampling import Sampling
from vaebench.estimators.weights import reliable_k_hat
from vaebench.evaluate.compile import model_for
from vaebench.evaluate.job import Estimate, EstimatorInputs, EstimatorJob
from vaebench.model import GenerativeModel

__all__ = ["importance_weighted"]


def importance_weighted(inputs: EstimatorInputs) -> EstimatorJob:
    """Return the job of IWAE's estimate, or of DIWHVI's for hierarchical encoders."""
    settings, images, (encoder, shown) = inputs.settings, inputs.images, inputs.proposal()
    hierarchical = encoder.has_inner_samples
    inner_k = inputs.inner_k if hierarchical else 0
    sampling = Sampling(settings.k, inner_k, settings.seed, chunk=settings.chunk)
    count = len(images.numbers)
    together = inputs.images_per_task(count, count) if settings.batch is None else count
    automatic = Chunks.automatic(inputs.device, sampling, images=together, batch=settings.batch)

    @cache
    def chunks() -> Chunks:
        share = 1 / settings.processes
        return chunks_within(share, inputs.model, encoder, inputs.blank(), sampling, automatic)

    @cache
    def model() -> GenerativeModel:
        """Return p(x, z) for chunks of the usual size: the last ones of a batch, and of all images, are smaller."""
        samples = min(settings.k, chunks().samples)
        return model_for(inputs, automatic.batch, count, settings.k // samples, samples)

    def numbers(part: slice) -> Tensor:
        with inputs.seeded(part):
            x, some = inputs.observed(part), sampling.on(images.numbers[part])
            found = weighed(model(), encoder, x, some, chunks())
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
            log_q=encoder.direction,
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


def reliability(k: int, ess: Tensor, pareto_k: Tensor) -> tuple[dict[str, Any], str]:
    """Return diagnostics of the weights over all images, as numbers and as one line."""
    if k == 1:
        return {}, ""
    extra: dict[str, Any] = {"ess": ess.mean().item(), "ess_lowest": ess.min().item()}
    note = f"weights: mean effective sample size {extra['ess']:.1f} of {k}"
    if bool(pareto_k.isnan().any()):
        return extra, note
    threshold = reliable_k_hat(k)
    median, loose = pareto_k.median().item(), (pareto_k > threshold).double().mean().item()
    extra |= {"pareto_k": median if math.isfinite(median) else None, f"pareto_k_over_{threshold:.2g}": loose}
    meaning = f"Pareto k-hat > {threshold:.2g} (their mean is unreliable, the bound probably loose)"
    return extra, f"{note}; {meaning} for {100 * loose:.1f} % of the images"
