"""Images that a run shows; drawing them leaves the run's random state alone.

Shapes: X pixels, D latent coordinates; pixel means from 0 to 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.experiment import Experiment, Modules

__all__ = ["Spread", "decoded", "interpolations", "latents", "observed", "reconstructions", "samples", "spread"]

COUNT = 64
SPREAD_IMAGES, SPREAD_DRAWS = 500, 8


@torch.no_grad()
def samples(experiment: Experiment, modules: Modules, count: int = COUNT, seed: int = 0) -> Tensor:
    """Return pixel means of ``count`` draws from the prior, (count, X); the same noise every time."""
    with runtime.forked_randomness(experiment.device, seed):
        z = modules.model.prior().sample((count,))
        return modules.model.likelihood(z).mean


@torch.no_grad()
def observed(experiment: Experiment, intensities: Tensor, seed: int = 0) -> Tensor:
    """Return what the encoder sees of pixel bytes, (B, X): the same pixels every time."""
    with runtime.forked_randomness(experiment.device, seed):
        return experiment.data.observe(intensities.to(experiment.device))


@torch.no_grad()
def reconstructions(
    experiment: Experiment, modules: Modules, intensities: Tensor | None = None, draws: int = 1, seed: int = 0
) -> Tensor:
    """Return images, each followed by ``draws`` reconstructions, (N (1 + draws), X), from draws of z ~ q(z|x).

    ``intensities``: pixel bytes, (N, X); None for the first validation images.
    """
    x = observed(experiment, experiment.data.validation[: COUNT // 2] if intensities is None else intensities, seed)
    with runtime.forked_randomness(experiment.device, seed):
        z = modules.encoder.draw(x, draws).z
        means = modules.model.likelihood(z).mean
        return torch.cat([x.unsqueeze(0), means]).transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def latents(experiment: Experiment, modules: Modules, x: Tensor, seed: int = 0) -> tuple[Tensor, bool]:
    """Return a place in latent space for each image, (B, D), and whether it is the mean of q(z|x).

    That is known where q(z|x) is a Gaussian in closed form; elsewhere one draw stands for it.
    """
    known = modules.encoder.exact_posterior(x)
    if known is not None:
        return known.mean, True
    with runtime.forked_randomness(experiment.device, seed):
        return modules.encoder.draw(x, 1).z[0], False


@torch.no_grad()
def interpolations(modules: Modules, start: Tensor, end: Tensor, steps: int, path: str = "linear") -> Tensor:
    """Return pixel means along the way between pairs of latents, (P, steps, X), both ends included.

    ``linear`` is the straight line; ``spherical`` turns at a constant rate from one direction to the other while the
    length changes evenly, so that in many dimensions it stays where N(0, I) has its mass.

    Args:
        modules: the weights.
        start: (P, D).
        end: (P, D).
        steps: at least 2.
        path: ``linear`` or ``spherical``.
    """
    share = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).view(-1, 1, 1)
    way = torch.lerp(start, end, share) if path == "linear" else _turned(start, end, share)
    return modules.model.likelihood(way).mean.transpose(0, 1)


def _turned(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Return points on the arc from ``start`` to ``end``, (S, P, D), at each ``share``, (S, 1, 1), of its angle."""
    near, far = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    first, last = start / near.clamp(min=1e-12), end / far.clamp(min=1e-12)
    # By the chord, which is exact for small angles too, where the cosine is not.
    angle = 2 * torch.asin(((first - last).norm(dim=-1, keepdim=True) / 2).clamp(max=1))
    sine = angle.sin()
    # Almost the same direction, opposite ones, between which no arc is the shortest, or none: a straight line.
    straight = (sine < 1e-6) | (near == 0) | (far == 0)
    sine = torch.where(straight, torch.ones_like(sine), sine)
    arc = (((1 - share) * angle).sin() * first + (share * angle).sin() * last) / sine
    return torch.where(straight, torch.lerp(start, end, share), arc * torch.lerp(near, far, share))


class Spread(NamedTuple):
    """How the latents of images are spread, over images and draws; one number per coordinate, (D,)."""

    std: Tensor
    """Standard deviation of z."""
    activity: Tensor
    """Share of the variance of z that lies between images: near 0 where the posterior ignores the image."""


@torch.no_grad()
def spread(experiment: Experiment, modules: Modules, intensities: Tensor, seed: int = 0) -> Spread:
    """Return the spread over the first of these images, pixel bytes (N, X)."""
    x = observed(experiment, intensities[:SPREAD_IMAGES], seed)
    with runtime.forked_randomness(experiment.device, seed):
        z = modules.encoder.draw(x, SPREAD_DRAWS).z
    total = z.flatten(0, 1).var(0)
    within = z.var(0).mean(0)
    return Spread(total.sqrt(), ((total - within) / total.clamp(min=1e-12)).clamp(0, 1))


@torch.no_grad()
def decoded(modules: Modules, z: Tensor) -> Tensor:
    """Return pixel means, (..., X), of latents, (..., D)."""
    return modules.model.likelihood(z).mean
