"""Importance sampling as an estimator: IWAE's, and DIWHVI's for hierarchical encoders."""

from collections.abc import Iterator

from torch import Tensor

from vaebench.encoders import Encoder
from vaebench.evaluation import log_likelihoods
from vaebench.experiment.assembly import Experiment
from vaebench.experiment.estimators.plan import Batch, Finding, Plan, chosen

__all__ = ["importance_weighted"]


def importance_weighted(experiment: Experiment) -> Plan:
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
