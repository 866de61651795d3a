"""Validation during training: the fixed estimate, diagnostics of the posterior, and images."""

from collections.abc import Iterator

import torch

from vaebench import runtime
from vaebench.config import describe
from vaebench.datasets.dataset import Dataset
from vaebench.direction import Direction
from vaebench.draw import reconstructions, samples
from vaebench.estimators.ais import AnnealingSettings, ais
from vaebench.estimators.diagnostics import Activity, PosteriorMoments, posterior_moments
from vaebench.estimators.importance import log_likelihoods
from vaebench.estimators.sampling import Sampling
from vaebench.experiment import Experiment, Modules
from vaebench.records import Recorder
from vaebench.train.replicas import Replicas

__all__ = ["described", "diagnose", "log_likelihood_of_pixel_means", "record_pictures", "validate"]

DIAGNOSED_IMAGES, DIAGNOSED_DRAWS = 500, 20


ANNEALED_IMAGES = 100
ANNEALING = AnnealingSettings(temperatures=100, chains=2, leapfrog=3)
"""Of the validation of encoders whose log q is an estimate, from the Gaussian with the moments of their draws.

The weights of that Gaussian get worse as q(z|x) moves away from p(z|x): in a run of 120 epochs they fell by 7 nats
while the model got better by 1.4. Annealing of 60 temperatures from the prior gets worse as the posterior gets
narrower: from epoch 50 to 100 of a run of 100 epochs it fell by 3.7 nats, while the model got better by 1.
"""


def validate(experiment: Experiment, processes: Replicas, modules: Modules) -> float:
    """Return the estimate that chooses the best weights, nats: the same images, k and noise at every epoch.

    For encoders whose log q is an estimate it is annealing from the Gaussian with the moments of their draws.
    """
    if modules.encoder.direction is Direction.ESTIMATE:
        return _annealed(experiment, processes, modules)
    images = experiment.data.validation
    own = processes.part(len(images))
    settings = experiment.config.trainer
    inner_k = experiment.inner_k if settings.validation_inner_k is None else settings.validation_inner_k
    modules.eval()
    with experiment.autocast():
        parts = log_likelihoods(
            modules.model,
            modules.encoder,
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
    mean = (data.pixel_mean.double() * count + 1).div(count + 2)
    x = data.validation.double().mean(0)
    x = x if data.validation.is_floating_point() else x / 255
    return (x * mean.log() + (1 - x) * (1 - mean).log()).sum().item()


def described(experiment: Experiment) -> tuple[int, str]:
    """Return the number of validation images and what `validate` estimates of them, for example a bound by IWAE."""
    count = len(experiment.data.validation)
    if experiment.encoder.direction is not Direction.ESTIMATE:
        return count, describe.validation(experiment.config)
    settings = f"initial=moments, temperatures={ANNEALING.temperatures}, chains={ANNEALING.chains}"
    return min(count, ANNEALED_IMAGES), f"lower bound by AIS, {settings}"


def _annealed(experiment: Experiment, processes: Replicas, modules: Modules) -> float:
    data, device = experiment.data, experiment.device
    numbers = _some("annealed validation", len(data.validation), ANNEALED_IMAGES)
    own = numbers[processes.part(len(numbers))]
    modules.eval()
    # In float32: the rounding of energies would decide which moves are accepted.
    with runtime.in_precision(device, "float32"), runtime.forked_randomness(device, seed=0):
        x = data.observe(data.validation[own].to(device))
        initial = modules.encoder.proposal(modules.model)
        found = ais(modules.model, x, initial, seed=0, images=own, strict=False, **vars(ANNEALING))
    values = processes.joined_up(found.log_likelihood, len(numbers))
    modules.train()
    return values.mean().item()


def _some(purpose: str, total: int, count: int) -> torch.Tensor:
    """Return the numbers of ``count`` random images, the same ones at every epoch."""
    order = torch.Generator().manual_seed(runtime.derived_seed(0, purpose))
    return torch.randperm(total, generator=order)[:count]


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
    numbers = _some("validation diagnostics", len(data.validation), DIAGNOSED_IMAGES)
    modules.eval()
    with experiment.autocast(), runtime.forked_randomness(device, seed=0):
        for some in numbers.split(100):
            x = data.observe(data.validation[some].to(device))
            yield posterior_moments(modules.encoder, x, Sampling(DIAGNOSED_DRAWS, seed=0, images=some))
    modules.train()


def record_pictures(experiment: Experiment, recorder: Recorder, modules: Modules, step: int) -> None:
    """Record samples and reconstructions of ``modules``."""
    shape = experiment.data.image_shape
    recorder.image("samples", samples(experiment, modules).unflatten(-1, shape), step)
    recorder.image("reconstructions", reconstructions(experiment, modules).unflatten(-1, shape), step)
