"""The parts of the gap between an encoder's bound and log p(x): its family, its amortisation, the bound itself.

    log p(x) - L[q]  =  (log p(x) - L[q*])  +  (L[q*] - L[q])      approximation gap + amortisation gap

q(z|x) is the amortised posterior, q* the best one of its family for this one image, L the ELBO.

Source: Cremer, Li and Duvenaud 2018, https://arxiv.org/abs/1801.03558

Shapes: K draws first, B images, D latent coordinates; nats.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from vaebench import bounds
from vaebench.arguments import above, at_least
from vaebench.distributions import DiagonalNormal, torchs_operators
from vaebench.encoders.base import Direction, Encoder
from vaebench.encoders.gaussian import GaussianEncoder
from vaebench.encoders.moments import MOMENT_DRAWS
from vaebench.estimators.importance import draws, estimated
from vaebench.estimators.sampling import Sampling, keyed_noise
from vaebench.gradients import GradientEstimator
from vaebench.images import checked_images
from vaebench.model import GenerativeModel
from vaebench.objective import Objective, weigh
from vaebench.runtime import derived_seed, in_float64, notice, out_of_memory

__all__ = [
    "Optimisation",
    "PerImageEstimator",
    "best_gaussian",
    "best_of_family",
    "elbo",
    "per_image",
    "selected_log_likelihood",
]

VARIANCE_FLOOR = 1e-4
"""Added to the variances of draws, so that a collapsed coordinate has a density too."""
TOLERANCE = 0.05
"""Of gradients, relative to their norm: well above rounding in bf16, well below the effect of other noise."""

PerImageEstimator = Callable[[Encoder, Tensor, Sampling], Tensor]
"""Maps an encoder, images (B, X) and how to sample them to one number per image, (B,)."""


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How a posterior is fitted to single images, by Adam on the ELBO; ValueError for steps < 1 or lr <= 0."""

    steps: int = 500
    lr: float = 0.05
    """Of the first step; it falls to 0 along half a cosine."""

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        above(0, lr=self.lr)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return 0.5 * self.lr * (1 + math.cos(math.pi * step / self.steps))


@torch.no_grad()
def elbo(model: GenerativeModel, encoder: Encoder, x: Tensor, sampling: Sampling) -> Tensor:
    """Return the mean of k log weights of each image of x, (B, X): an unbiased estimate of its ELBO, (B,).

    Two encoders with the same seed share their noise, so that their difference has little. With more inner samples, the
    bound of a hierarchical encoder is tighter.
    """
    x = checked_images(model, encoder, x)
    total = in_float64(x.new_zeros(len(x)))
    for draw in draws(encoder, x, sampling):
        total += in_float64(weigh(model, x, draw).log_weights()).sum(0)
    return total / sampling.k


# The best posterior of each image -------------------------------------------------------------------------


class _Free(nn.Module):
    """Separate parameters of a diagonal Gaussian for each of B images."""

    def __init__(self, start: DiagonalNormal) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros_like(start.mean))
        self.log_stretch = nn.Parameter(torch.zeros_like(start.scale))
        self.start = DiagonalNormal(start.mean.detach(), start.scale.detach())

    def forward(self, x: Tensor) -> DiagonalNormal:
        del x  # the same images every time
        # In units of the start, so that one step size suits narrow and wide coordinates.
        return DiagonalNormal(
            self.start.mean + self.start.scale * self.offset, self.start.scale * self.log_stretch.exp()
        )


def best_gaussian(
    model: GenerativeModel, encoder: Encoder, x: Tensor, how: Optimisation, sampling: Sampling
) -> list[Encoder]:
    """Return the diagonal Gaussian of largest ELBO for each image of x, (B, X), one encoder for each.

    The fit starts from ``encoder``'s own Gaussian, or from the Gaussian with the moments of its draws. All are fitted
    at once, and no image influences another. ``sampling`` is for the ELBO at each step.
    """
    x = checked_images(model, encoder, x)
    with torch.no_grad(), sampling.noise(x, "start"):
        start = encoder.exact_posterior(x) or _moments(encoder.latents(x, MOMENT_DRAWS))
    free = _Free(start)
    fit, numbers = _Fit(model, GaussianEncoder(free), sampling), sampling.numbers(x).to(x.device)
    _raise_elbo(list(fit.fitted().values()), partial(fit.gradients, x, numbers), how)
    with torch.no_grad():
        best = free(x)
    each = zip(best.mean.split(1), best.scale.split(1), strict=True)
    return [GaussianEncoder(_Free(DiagonalNormal(mean, scale))) for mean, scale in each]


def _moments(draws: Tensor) -> DiagonalNormal:
    """Return the diagonal Gaussian with the moments of draws, (N, B, D)."""
    variance, mean = torch.var_mean(draws, 0)
    return DiagonalNormal(mean, (variance + VARIANCE_FLOOR).sqrt())


def best_of_family(
    model: GenerativeModel, encoder: Encoder, x: Tensor, how: Optimisation, sampling: Sampling
) -> list[Encoder]:
    """Return one copy of ``encoder`` for each image of x, (B, X), trained on this image alone.

    The network of a copy serves one image, so it is no longer amortised: its output is free. This works for every
    family. The copies of all images are fitted at once where the encoder's code allows that. The model is not trained.
    ``sampling`` is for the ELBO at each step.
    """
    x = checked_images(model, encoder, x)
    fit = _Fit(model, encoder, sampling)
    return _fitted_together(fit, x, how) or _fitted_one_by_one(fit, x, how)


class _Fit(nn.Module):
    """The negative ELBO of images, summed over them, as a function of the parameters of the encoder."""

    def __init__(self, model: GenerativeModel, encoder: Encoder, sampling: Sampling) -> None:
        super().__init__()
        self.encoder = encoder
        # In a tuple, so that torch does not register it as a submodule: it is not fitted.
        self._model, self.sampling = (model,), sampling
        # At its optimum the path gradient has no noise if the posterior is in the family.
        path = encoder.direction is Direction.EXACT and encoder.no_path_gradient is None
        self._objective = Objective(bounds.elbo, GradientEstimator.STL if path else GradientEstimator.REPARAM)

    def forward(self, x: Tensor, numbers: Tensor, step: int) -> Tensor:
        """Return the loss of the images x, (B, X), with these numbers, (B,), at a step."""
        sampling = self.sampling
        with keyed_noise(derived_seed(sampling.known_seed(), "optimise", step), numbers):
            value, _ = self._objective(self._model[0], self.encoder, x, sampling.k, inner_k=sampling.inner_k)
        return -value.sum()

    def of(self, encoder: Encoder) -> "_Fit":
        """Return the fit of another encoder."""
        return _Fit(self._model[0], encoder, self.sampling)

    def fitted(self) -> dict[str, nn.Parameter]:
        """Return the parameters to fit, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def gradients(self, x: Tensor, numbers: Tensor, step: int) -> list[Tensor | None]:
        """Return the gradient of each of ``fitted``; None for one that is not used."""
        with torch.enable_grad():
            loss = self(x, numbers, step)
        return list(torch.autograd.grad(loss, list(self.fitted().values()), allow_unused=True))


def _raise_elbo(
    parameters: Sequence[Tensor], gradients: Callable[[int], Sequence[Tensor | None]], how: Optimisation
) -> None:
    """Fit ``parameters`` by the gradients of each step."""
    optimizer = torch.optim.Adam(parameters, lr=how.lr)
    for step in range(how.steps):
        optimizer.param_groups[0]["lr"] = how.rate(step)
        for parameter, found in zip(parameters, gradients(step), strict=True):
            parameter.grad = found
        optimizer.step()
    optimizer.zero_grad()


def _fitted_one_by_one(fit: _Fit, x: Tensor, how: Optimisation) -> list[Encoder]:
    numbers, tuned = fit.sampling.numbers(x).to(x.device), []
    for one in _singles(x):
        own = fit.of(copy.deepcopy(fit.encoder))
        _raise_elbo(list(own.fitted().values()), partial(own.gradients, x[one], numbers[one]), how)
        tuned.append(own.encoder)
    return tuned


def _fitted_together(fit: _Fit, x: Tensor, how: Optimisation) -> list[Encoder] | None:
    """Fit the copies of all images at once: each kernel runs once for all of them.

    Returns None, and prints the reason, if the encoder's code cannot be mapped over images, or if the first gradients
    differ from those of single images by more than rounding.
    """
    numbers, start = fit.sampling.numbers(x).to(x.device), fit.fitted()
    stacked = {name: value.detach().expand(len(x), *value.shape).clone() for name, value in start.items()}

    def loss(parameters: dict[str, Tensor], x: Tensor, number: Tensor, step: int) -> Tensor:
        return functional_call(fit, parameters, (x.unsqueeze(0), number.unsqueeze(0), step))

    each = vmap(grad(loss), in_dims=(0, 0, 0, None), randomness="different")

    def gradients(step: int) -> list[Tensor]:
        with torchs_operators():
            found = each(stacked, x, numbers, step)
        return [found[name] for name in stacked]

    try:
        off = max(_difference(fit, x[one], numbers[one], [g[one] for g in gradients(0)]) for one in _singles(x)[:2])
    except Exception as error:  # of any type, for any code of an encoder
        if out_of_memory(error):
            raise
        return _refused(f"{type(error).__name__}: {str(error).strip():.60}")
    if not off <= TOLERANCE:
        return _refused(f"the gradients differ by {off:.1e}")
    _raise_elbo(list(stacked.values()), gradients, how)
    return [_with(fit, {name: value[place] for name, value in stacked.items()}) for place in range(len(x))]


def _difference(fit: _Fit, x: Tensor, number: Tensor, found: list[Tensor]) -> float:
    """Return the error of the first gradients of one image, relative to their norm."""
    wanted = [torch.zeros_like(g) if w is None else w for w, g in zip(fit.gradients(x, number, 0), found, strict=True)]
    error, size = (
        torch.stack([part.norm() for part in parts]).norm()
        for parts in ([w - g[0] for w, g in zip(wanted, found, strict=True)], wanted)
    )
    return (error / size.clamp(min=1e-12)).item()


@cache
def _refused(reason: str) -> None:
    notice(f"each image is fitted alone, which takes longer: {reason}")


@torch.no_grad()
def _with(fit: _Fit, parameters: dict[str, Tensor]) -> Encoder:
    """Return a copy of the encoder with these parameters."""
    own = fit.of(copy.deepcopy(fit.encoder))
    for name, parameter in own.fitted().items():
        parameter.copy_(parameters[name])
    return own.encoder


def _singles(x: Tensor) -> list[slice]:
    """Return one slice for each image."""
    return [slice(place, place + 1) for place in range(len(x))]


# log p(x) -------------------------------------------------------------------------------------------------


def selected_log_likelihood(
    model: GenerativeModel, proposals: Sequence[Encoder | Sequence[Encoder]], x: Tensor, sampling: Sampling
) -> Tensor:
    """Return the importance-weighted estimate of log p(x), (B,) float64, from the best proposal of each image.

    A pilot of k/10 draws chooses the proposal of largest ELBO. The largest of their estimates of log p(x) would favour
    heavy tails, whose estimates have the most noise. The k weights of the result are new, so that its expectation is a
    lower bound on log p(x) for any choice. The weights of several proposals are not pooled: a poor proposal would add
    nothing to the sum, and all of its draws to the count.

    Args:
        model: p(x, z).
        proposals: encoders whose log_q keeps the contract, or lists with one encoder for each image.
        x: images, (B, X).
        sampling: with a seed; the inner samples are for hierarchical encoders.
    """
    numbers = sampling.numbers(x)

    def with_own_noise(k: int, purpose: str) -> Sampling:
        return replace(sampling, k=k, seed=derived_seed(sampling.known_seed(), purpose), images=numbers)

    estimate = partial(estimated, model)
    pilot, final = with_own_noise(-(-sampling.k // 10), "pilot"), with_own_noise(sampling.k, "final")
    choice = torch.stack([per_image(partial(elbo, model), each, x, pilot) for each in proposals]).argmax(0)
    found = in_float64(x.new_empty(len(x)))
    for index, proposal in enumerate(proposals):
        chosen = (choice == index).nonzero().squeeze(1)
        if len(chosen):
            fitting = proposal if isinstance(proposal, Encoder) else [proposal[i] for i in chosen.tolist()]
            found[chosen] = per_image(estimate, fitting, x[chosen], final.on(numbers[chosen.cpu()]))
    return found


def per_image(
    estimate: PerImageEstimator, encoder: Encoder | Sequence[Encoder], x: Tensor, sampling: Sampling
) -> Tensor:
    """Estimate something of all images x at once, (B,), or of each with its own encoder.

    Encoders without inner samples get none.
    """
    if isinstance(encoder, Encoder):
        return estimate(encoder, x, sampling if encoder.has_inner_samples else replace(sampling, inner_k=0))
    numbers = sampling.numbers(x)
    each = zip(encoder, _singles(x), strict=True)
    return torch.cat([per_image(estimate, own, x[one], sampling.on(numbers[one])) for own, one in each])
