"""Images that a run shows; drawing them leaves the run's random state alone."""

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.experiment.assembly import Experiment, Modules

__all__ = ["reconstructions", "samples"]

COUNT = 64


@torch.no_grad()
def samples(experiment: Experiment, modules: Modules, count: int = COUNT) -> Tensor:
    """Return pixel means of ``count`` draws from the prior, (count, X); the same noise every time."""
    with runtime.forked_randomness(experiment.device, seed=0):
        z = modules.model.prior().sample((count,))
        return modules.model.likelihood(z).mean


@torch.no_grad()
def reconstructions(experiment: Experiment, modules: Modules, count: int = COUNT // 2) -> Tensor:
    """Return the first validation images, each followed by its reconstruction, (2 count, X)."""
    intensities = experiment.data.validation[:count].to(experiment.device)
    with runtime.forked_randomness(experiment.device, seed=0):
        x = experiment.data.observe(intensities)
        z = modules.encoder.draw(x, 1).z[0]
        return torch.stack([x, modules.model.likelihood(z).mean], 1).flatten(0, 1)
