"""Why an encoder's bound is loose: how far its family, its amortisation and the bound itself are from log p(x).

    log p(x) - L[q]  =  (log p(x) - L[q*])  +  (L[q*] - L[q])      approximation gap + amortisation gap

q(z|x) is the amortised posterior, q* the best one of its family for this one image, L the ELBO.

Source: Cremer, Li and Duvenaud 2018, https://arxiv.org/abs/1801.03558

Shapes: K draws first, B images, D latent coordinates; nats.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vaebench import bounds, noise
from vaebench.distributions import DiagonalNormal
from vaebench.encoders.base import Direction, Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.estimators.ais import moment_matched
from vaebench.estimators.diagnostics import independent_draws
from vaebench.estimators.importance import log_likelihood
from vaebench.gradients import GradientEstimator
from vaebench.model import GenerativeModel
from vaebench.objective import Objective, weigh
from vaebench.runtime import derived_seed

__all__ = [
    "Estimate",
    "Optimisation",
    "best_gaussian",
    "best_of_family",
    "elbo",
    "per_image",
    "selected_log_likelihood",
]

Estimate = Callable[[Encoder, Tensor, Tensor, int], Tensor]
"""Maps an encoder, images (B, X), their numbers (B,) and the number of inner samples to one number per image, (B,)."""


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How a posterior is fitted to single images, by Adam on the ELBO; ValueError for what cannot be."""

    steps: int = 500
    draws: int = 16
    """Of the ELBO at each step."""
    lr: float = 0.05
    """At first; it falls to 0 along half a cosine."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.draws < 1 or not self.lr > 0:
            raise ValueError(f"steps, draws and lr must be more than 0, not {self.steps}, {self.draws}, {self.lr}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return 0.5 * self.lr * (1 + math.cos(math.pi * step / self.steps))


@torch.no_grad()
def elbo(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    draws: int,
    *,
    inner_k: int = 0,
    seed: int = 0,
    images: Tensor | None = None,
) -> Tensor:
    """Return the mean of ``draws`` log weights of each image of x, (B, X): an unbiased estimate of its ELBO, (B,).

    Args:
        model: p(x, z).
        encoder: q(z|x).
        x: images.
        draws: K.
        inner_k: inner samples of a hierarchical encoder; with more of them the bound is tighter.
        seed: two encoders with the same seed share their noise, so that their difference has little.
        images: the images' numbers, (B,); 0..B-1 if None.
    """
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for draw in independent_draws(encoder, x, draws, inner_k=inner_k, seed=seed, images=images):
        total += weigh(model, x, draw).log_weights().double().sum(0)
    return total / draws


# The best posterior of each image -------------------------------------------------------------------------


class _Free(nn.Module):
    """A diagonal Gaussian for each of B images, with parameters of its own."""

    def __init__(self, start: DiagonalNormal) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros_like(start.mean))
        self.log_stretch = nn.Parameter(torch.zeros_like(start.scale))
        self.start = DiagonalNormal(start.mean.detach(), start.scale.detach())

    def forward(self, x: Tensor) -> DiagonalNormal:
        del x  # these images and no others
        # In units of the start: a step of one size suits narrow coordinates as well as wide ones.
        return DiagonalNormal(
            self.start.mean + self.start.scale * self.offset, self.start.scale * self.log_stretch.exp()
        )


def best_gaussian(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    how: Optimisation,
    *,
    seed: int = 0,
    images: Tensor | None = None,
) -> list[Encoder]:
    """Return the diagonal Gaussian of largest ELBO for each image of x, (B, X), one encoder for each.

    It starts from ``encoder``'s own Gaussian, or from the one with the moments of its draws. All are fitted at once,
    and none influences another.
    """
    numbers = torch.arange(len(x)) if images is None else images
    with torch.no_grad(), noise.keyed(derived_seed(seed, "start"), numbers):
        start = encoder.exact_posterior(x) or moment_matched(encoder).encode(x)
    free = _Free(start)
    _raise_elbo(model, GaussianEncoder(free), x, how, 0, seed, numbers)
    with torch.no_grad():
        best = free(x)
    each = zip(best.mean.split(1), best.scale.split(1), strict=True)
    return [GaussianEncoder(_Free(DiagonalNormal(mean, scale))) for mean, scale in each]


def best_of_family(
    model: GenerativeModel,
    encoder: Encoder,
    x: Tensor,
    how: Optimisation,
    *,
    inner_k: int = 0,
    seed: int = 0,
    images: Tensor | None = None,
) -> list[Encoder]:
    """Return one copy of ``encoder`` for each image of x, (B, X), trained on this image alone.

    A network that serves one image only is no longer amortised: its output is free. So this works for every family;
    it takes a forward and a backward pass for each image and step. The model is not trained.
    """
    numbers = torch.arange(len(x)) if images is None else images
    tuned = []
    for place in range(len(x)):
        one = slice(place, place + 1)
        own = copy.deepcopy(encoder)
        _raise_elbo(model, own, x[one], how, inner_k, seed, numbers[one])
        tuned.append(own)
    return tuned


def _raise_elbo(
    model: GenerativeModel, encoder: Encoder, x: Tensor, how: Optimisation, inner_k: int, seed: int, numbers: Tensor
) -> None:
    """Train ``encoder`` on the images x alone, each of whose ELBO counts the same."""
    # At its optimum the path gradient has no noise where the posterior is in the family.
    path = encoder.direction is Direction.EXACT and encoder.no_path_gradient is None
    gradient = GradientEstimator.STL if path else GradientEstimator.REPARAM
    objective = Objective(bounds.elbo, gradient)
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=how.lr)
    for step in range(how.steps):
        optimizer.param_groups[0]["lr"] = how.rate(step)
        with torch.enable_grad(), noise.keyed(derived_seed(seed, "optimise", step), numbers):
            value, _ = objective(model, encoder, x, how.draws, inner_k=inner_k)
        gradients = torch.autograd.grad(-value.sum(), parameters, allow_unused=True)
        for parameter, found in zip(parameters, gradients, strict=True):
            parameter.grad = found
        optimizer.step()
    encoder.zero_grad(set_to_none=True)


# log p(x) -------------------------------------------------------------------------------------------------


def selected_log_likelihood(
    model: GenerativeModel,
    proposals: Sequence[Encoder | Sequence[Encoder]],
    x: Tensor,
    k: int,
    *,
    inner_k: int = 0,
    seed: int = 0,
    images: Tensor | None = None,
) -> Tensor:
    """Return the importance-weighted estimate of log p(x), (B,) float64, each image's from its best proposal.

    A pilot of k/10 draws chooses the proposal, by its own estimate; the k weights of the result are new, so that its
    expectation is a lower bound on log p(x) whatever was chosen. Weights of several proposals are not pooled: one that
    is far off adds nothing to the sum and all of its draws to the count.

    Args:
        model: p(x, z).
        proposals: encoders whose log_q keeps the contract, or lists with one encoder for each image.
        x: images, (B, X).
        k: weights of each image.
        inner_k: inner samples of hierarchical encoders.
        seed: the result is a function of it and of the images' numbers.
        images: the images' numbers, (B,); 0..B-1 if None.
    """
    numbers = torch.arange(len(x)) if images is None else images

    def estimated(draws: int, stream: str) -> Estimate:
        return lambda encoder, x, numbers, inner_k: log_likelihood(
            model, encoder, x, draws, inner_k, seed=derived_seed(seed, stream), images=numbers
        )

    pilot, final = estimated(-(-k // 10), "pilot"), estimated(k, "final")
    choice = torch.stack([per_image(pilot, each, x, numbers, inner_k) for each in proposals]).argmax(0)
    found = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for index, proposal in enumerate(proposals):
        chosen = (choice == index).nonzero().squeeze(1)
        if len(chosen):
            fitting = proposal if isinstance(proposal, Encoder) else [proposal[i] for i in chosen.tolist()]
            found[chosen] = per_image(final, fitting, x[chosen], numbers[chosen.cpu()], inner_k)
    return found


def per_image(
    estimate: Estimate, encoder: Encoder | Sequence[Encoder], x: Tensor, numbers: Tensor, inner_k: int
) -> Tensor:
    """Estimate something of all images x at once, (B,), or of each with its own encoder.

    Encoders without inner samples take none.
    """
    if isinstance(encoder, Encoder):
        return estimate(encoder, x, numbers, inner_k if encoder.has_inner_samples else 0)
    singles = [slice(place, place + 1) for place in range(len(x))]
    each = zip(encoder, singles, strict=True)
    return torch.cat([per_image(estimate, own, x[one], numbers[one], inner_k) for own, one in each])
