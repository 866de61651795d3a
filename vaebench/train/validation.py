"""Validation during training: the fixed estimate, diagnostics of the posterior, and images."""

from collections.abc import Iterator

import torch

from vaebench import runtime
from vaebench.datasets.dataset import Dataset
from vaebench.draw import reconstructions, samples
from vaebench.estimators.diagnostics import Activity, PosteriorMoments, posterior_moments
from vaebench.estimators.importance import log_likelihoods
from vaebench.estimators.sampling import Sampling
from vaebench.experiment import Experiment, Modules
from vaebench.records import Recorder
from vaebench.train.replicas import Replicas

__all__ = ["diagnose", "log_likelihood_of_pixel_means", "record_pictures", "validate"]

DIAGNOSED_IMAGES, DIAGNOSED_DRAWS = 500, 20


def validate(experiment: Experiment, processes: Replicas, modules: Modules) -> float:
    """Return the estimate that chooses the best weights, nats: the same images, k and noise at every epoch."""
    images = experiment.data.validation
    own = processes.part(len(images))
    settings = experiment.config.trainer
    inner_k = experiment.inner_k if settings.validation_inner_k is None else settings.validation_inner_k
    modules.eval()
    with experiment.autocast():
        parts = log_likelihoods(
            modules.model,
            modules.encoder.proposal(modules.model),
            experiment.data.observe,
            images[: own.stop].to(experiment.device),
            Sampling(settings.validation_k, inner_k, seed=0),
            first=own.start,
        )
        values = processes.joined_up(torch.cat([values for _, values in parts]), len(images))
    modules.train()
    return values.mean().item()


def log_likelihood_of_pixel_means(data: Dataset) -> float:
    """Return the validation log-likelihood of independent pixels with the means of the training images, nats.

    It is the expectation over the binarization. Any model with a use for its latents is above it. One image more of
    each kind keeps the means off 0 and 1.
    """
    count = len(data.train)
    mean = (data.train.double().mean(0).div(255) * count + 1).div(count + 2)
    x = data.validation.double().mean(0).div(255)
    return (x * mean.log() + (1 - x) * (1 - mean).log()).sum().item()


@torch.no_grad()
def diagnose(experiment: Experiment, modules: Modules) -> dict[str, float]:
    """Return diagnostics of the posterior by name. They need no decoder, so they cost little next to a validation.

    ``active_units`` is the count of ``vaebench diagnose``, from few draws: it may miss weak units.
    ``posterior_std`` is the root of the mean variance of q(z_d|x): if it is near the prior's, q has collapsed.
    """
    found = PosteriorMoments.joined(list(_spreads(experiment, modules)))
    return {
        "active_units": float(Activity.of(found).active().sum()),
        "posterior_std": found.variances.mean().sqrt().item(),
    }


def _spreads(experiment: Experiment, modules: Modules) -> Iterator[PosteriorMoments]:
    """Yield the moments of the posterior, for the same random validation images and noise at every epoch."""
    data, device = experiment.data, experiment.device
    order = torch.Generator().manual_seed(runtime.derived_seed(0, "validation diagnostics"))
    numbers = torch.randperm(len(data.validation), generator=order)[:DIAGNOSED_IMAGES]
    modules.eval()
    with experiment.autocast(), runtime.forked_randomness(device, seed=0):
        for some in numbers.split(100):
            x = data.observe(data.validation[some].to(device))
            yield posterior_moments(modules.encoder, x, Sampling(DIAGNOSED_DRAWS, seed=0, images=some))
    modules.train()


def record_pictures(experiment: Experiment, recorder: Recorder, modules: Modules, step: int) -> None:
    """Record samples and reconstructions of ``modules``."""
    recorder.image("samples", samples(experiment, modules), step)
    recorder.image("reconstructions", reconstructions(experiment, modules), step)
