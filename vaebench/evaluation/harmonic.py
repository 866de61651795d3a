"""The harmonic mean estimate of log p(x), to show why it is not one to rely on.

With z_1..K from the posterior p(z|x) and any normalised density h,

    1/p(x) = E h(z) / p(x, z),   log p(x) ~ -log 1/K sum_k h(z_k) / p(x, z_k)

The mean is ruled by the rare z at which h is large and p(x, z) small: where h is wider than the posterior, the terms'
variance is huge or infinite, chains never go where the sum is, and the estimate is too high by many nats, with a small
error to all appearance. See docs/harmonic_mean.md.

Source: Newton and Raftery 1994, https://doi.org/10.1111/j.2517-6161.1994.tb01956.x, with the prior for h; Gelfand and
Dey 1994, https://doi.org/10.1111/j.2517-6161.1994.tb01996.x, with any other

Shapes: N chains first, B images, D latent coordinates; nats.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vaebench.bounds import LogMeanExp
from vaebench.encoders import Encoder
from vaebench.evaluation.ais import Settings, survey, table
from vaebench.evaluation.annealing import Route
from vaebench.model import GenerativeModel

__all__ = ["HarmonicResult", "harmonic_mean_likelihood"]


@dataclass(frozen=True)
class HarmonicResult:
    """Estimates of log p(x), and what is to be known of the draws behind them; one number per image, (B,) each."""

    log_likelihood: Tensor
    """Nats, float64. From exact independent draws, its expectation would be an upper bound on log p(x)."""
    ess: Tensor
    """Effective number of terms, (sum r)^2 / sum r^2 with r = h/p. It cannot see the terms that were never drawn."""
    largest_share: Tensor
    """Of the largest term in the sum, from 1/K to 1."""
    acceptance: Tensor
    """Mean probability with which the posterior's chains accepted a move."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of the rows."""
        return tuple(f.name for f in fields(cls))

    def rows(self) -> Tensor:
        """Return everything as one tensor, (4, B), float64."""
        return torch.stack([getattr(self, name).double() for name in self.names()])


@torch.no_grad()
def harmonic_mean_likelihood(
    model: GenerativeModel,
    x: Tensor,
    initial: Encoder | None = None,
    draws: int = 1000,
    *,
    burn_in: int = 50,
    temperatures: int = 100,
    chains: int = 8,
    leapfrog: int = 10,
    schedule: str = "sigmoid",
    seed: int | None = None,
    images: Tensor | None = None,
) -> HarmonicResult:
    """Estimate log p(x) of each image by the harmonic mean over posterior draws, in nats. An estimate, and a poor one.

    The draws come from chains of HMC, which start where annealing from ``initial`` ends.

    Args:
        model: p(x, z), in evaluation mode where that matters.
        x: images, (B, X).
        initial: h, and where chains start: None for the prior, else as for :func:`vaebench.evaluation.ais.ais`.
        draws: draws kept for each image, over all its chains.
        burn_in: transitions at the posterior before the first one is kept.
        temperatures: on the way to the posterior.
        chains: for each image.
        leapfrog: steps in each transition.
        schedule: of the temperatures.
        seed: makes the result a function of (seed, image number), up to rounding; None draws from the global generator.
        images: the images' numbers, (B,), with ``seed``; 0..B-1 if None.

    Raises:
        ValueError: a setting out of range.
    """
    settings = Settings(temperatures=temperatures, chains=chains, leapfrog=leapfrog, schedule=schedule)
    if draws < 1 or burn_in < 0:
        raise ValueError(f"draws must be at least 1 and burn_in at least 0, not {draws} and {burn_in}")
    numbers = torch.arange(len(x)) if images is None else images
    route = survey(model, initial, x, settings, seed, numbers)
    with table(seed, "forward", numbers):
        position = route.forward(chains).position
    with table(seed, "posterior", numbers):
        return _visited(route, position, burn_in, -(-draws // chains))


def _visited(route: Route, position: Tensor, burn_in: int, kept: int) -> HarmonicResult:
    """Go on from ``position``, (N, B, D), and sum up what ``kept`` transitions of each chain visit."""
    terms, squares = LogMeanExp(), LogMeanExp()
    largest, accepted = position.new_full(position.shape[1:2], -torch.inf).double(), []
    for number, (ends, acceptance) in enumerate(route.stay(position, burn_in + kept)):
        if number < burn_in:
            continue
        log_r = -ends.ratio.double()
        terms.add(log_r)
        squares.add(2 * log_r)
        largest = torch.maximum(largest, log_r.amax(0))
        accepted.append(acceptance.mean(0))
    mean, count = terms.value(), terms.count
    return HarmonicResult(
        log_likelihood=-mean,
        ess=(2 * mean - squares.value()).exp() * count,
        largest_share=(largest - mean).exp() / count,
        acceptance=torch.stack(accepted).mean(0),
    )
