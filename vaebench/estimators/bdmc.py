"""Bidirectional Monte Carlo: lower and upper bounds on log p(x) of simulated images.

A simulated image comes with one exact draw from its posterior: its latent. Chains from the initial density to the
posterior give a lower bound on log p(x), as in annealed importance sampling. Chains that start at the exact draw and
follow the same schedule in reverse have weights of mean 1/p(x), and give an upper bound:

E log 1/N sum_n w_n  <=  log p(x)  <=  E -log 1/N sum_n w'_n

The gap between the bounds limits the error of annealed importance sampling with these settings on images like the
simulated ones. Real images have no exact draw: the same limit for them is an extrapolation.

Source: Grosse, Ghahramani and Adams 2015, https://arxiv.org/abs/1511.02543
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from vaebench.arguments import at_least
from vaebench.encoders.base import Encoder
from vaebench.estimators.ais import AISResult, AnnealingSettings, batch_size, refuse_unmixed, tuned_schedule
from vaebench.estimators.sampling import keyed_noise
from vaebench.model import GenerativeModel
from vaebench.runtime import derived_seed, forked_randomness

__all__ = ["BDMCResult", "anneal_both_ways", "bdmc", "simulated"]


@dataclass(frozen=True)
class BDMCResult:
    """Both bounds on log p(x) of n simulated images, in nats."""

    forward: AISResult
    """From the initial density to the posterior."""
    reverse: AISResult
    """From the exact draw back. All chains of an image share that draw, and its ``stderr`` does not include this."""

    @property
    def lower(self) -> Tensor:
        """(n,), float64; its expectation lies below log p(x)."""
        return self.forward.log_likelihood

    @property
    def upper(self) -> Tensor:
        """(n,), float64; its expectation over x and z lies above E log p(x)."""
        return self.reverse.log_likelihood

    @property
    def gap(self) -> float:
        """Mean of upper - lower over the images: in expectation, the largest error of the mean of either bound."""
        return (self.upper - self.lower).mean().item()

    @property
    def gap_stderr(self) -> float:
        """Standard error of ``gap``, over images and chains; NaN for one image."""
        return ((self.upper - self.lower).std() / len(self.upper) ** 0.5).item()


@torch.no_grad()
def simulated(model: GenerativeModel, n: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Draw images and their latents, x (n, X) and z (n, D); with a seed, the same draws on the same device."""
    if seed is None:
        return model.simulate(n)
    device = next(chain(model.parameters(), model.buffers())).device
    with forked_randomness(device, derived_seed(seed, "simulate")):
        return model.simulate(n)


@torch.no_grad()
def anneal_both_ways(
    model: GenerativeModel,
    x: Tensor,
    z: Tensor,
    initial: Encoder | None,
    settings: AnnealingSettings,
    seed: int | None,
    numbers: Tensor,
) -> BDMCResult:
    """Return both bounds on log p(x), given z ~ p(z|x), (B, D); see :func:`bdmc`."""
    schedule = tuned_schedule(model, initial, x, settings, seed, numbers)
    with keyed_noise(seed, numbers, "forward"):
        forward = schedule.forward(settings.chains)
    with keyed_noise(seed, numbers, "reverse"):
        reverse = schedule.backward(z, settings.chains)
    return BDMCResult(AISResult.of(forward), AISResult.of(reverse, backward=True))


def bdmc(
    model: GenerativeModel,
    n: int,
    initial: Encoder | None = None,
    temperatures: int = 1000,
    chains: int = 8,
    seed: int | None = None,
    *,
    schedule: str = "sigmoid",
    leapfrog: int = 10,
    batch: int | None = None,
    strict: bool = True,
) -> BDMCResult:
    """Simulate ``n`` images from ``model`` and return both bounds on log p(x) of each, in nats.

    The lower bounds come from :func:`vaebench.estimators.ais.ais`; the upper bounds double the cost. All arguments
    but ``n`` are the same as there.

    Source: Grosse, Ghahramani and Adams 2015, https://arxiv.org/abs/1511.02543

    Raises:
        ValueError: n < 1 or a setting out of range.
        RunFailed: ``strict`` and the chains of either direction did not mix.
    """
    at_least(1, n=n)
    settings = AnnealingSettings(temperatures=temperatures, chains=chains, leapfrog=leapfrog, schedule=schedule)
    x, z = simulated(model, n, seed)
    parts = [
        anneal_both_ways(model, x[some], z[some], initial, settings, seed, some)
        for some in torch.arange(n).split(batch or batch_size(x.device, chains))
    ]
    forward = AISResult.joined([part.forward for part in parts])
    reverse = AISResult.joined([part.reverse for part in parts])
    if strict:
        refuse_unmixed(forward)
        refuse_unmixed(reverse)
    return BDMCResult(forward, reverse)
