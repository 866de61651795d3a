"""Bidirectional Monte Carlo: log p(x) from below and from above, for images drawn from the model itself.

An image that was simulated with its latent comes with one exact draw from its posterior. Chains from the initial
density to the posterior bound log p(x) from below, as in annealed importance sampling; chains that start at the exact
draw and walk the same way back have weights of mean 1/p(x), and bound it from above:

E log 1/N sum_n w_n  <=  log p(x)  <=  E -log 1/N sum_n w'_n

What lies between is the most that annealed importance sampling, with these settings, errs on images like the model's
own. On real images there is no exact draw: that it errs no more there is an extrapolation.

Source: Grosse, Ghahramani and Adams 2015, https://arxiv.org/abs/1511.02543
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from vaebench.encoders.base import Encoder
from vaebench.estimators.ais import AISResult, Settings, batch_size, refuse_unmixed, survey, table
from vaebench.model import GenerativeModel
from vaebench.runtime import derived_seed, forked_randomness

__all__ = ["BDMCResult", "bdmc", "both_ways", "simulated"]


@dataclass(frozen=True)
class BDMCResult:
    """Both bounds on log p(x) of n simulated images, in nats."""

    forward: AISResult
    """From the initial density to the posterior."""
    reverse: AISResult
    """From the exact draw back. All chains of an image share that draw, which its ``stderr`` does not know of."""

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
        """Mean of upper - lower over the images: what the mean of either bound errs by at most, in expectation."""
        return (self.upper - self.lower).mean().item()

    @property
    def gap_stderr(self) -> float:
        """Standard error of ``gap``, over images and chains; NaN for one image."""
        return ((self.upper - self.lower).std() / len(self.upper) ** 0.5).item()


@torch.no_grad()
def simulated(model: GenerativeModel, n: int, seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Draw images and their latents, x (n, X) and z (n, D); with a seed, the same each time on the same device."""
    if seed is None:
        return model.simulate(n)
    device = next(chain(model.parameters(), model.buffers())).device
    with forked_randomness(device, derived_seed(seed, "simulate")):
        return model.simulate(n)


@torch.no_grad()
def both_ways(
    model: GenerativeModel,
    x: Tensor,
    z: Tensor,
    initial: Encoder | None,
    settings: Settings,
    seed: int | None,
    numbers: Tensor,
) -> BDMCResult:
    """Bound log p(x) from both sides, given z ~ p(z|x), (B, D); see :func:`bdmc`."""
    route = survey(model, initial, x, settings, seed, numbers)
    with table(seed, "forward", numbers):
        forward = route.forward(settings.chains)
    with table(seed, "reverse", numbers):
        reverse = route.backward(z, settings.chains)
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
    """Simulate ``n`` images from ``model`` and bound log p(x) of each from both sides, in nats.

    Lower bounds are those of :func:`vaebench.estimators.ais.ais`; the upper bounds cost as much again. All arguments
    but ``n`` are as there.

    Source: Grosse, Ghahramani and Adams 2015, https://arxiv.org/abs/1511.02543

    Raises:
        ValueError: n < 1 or a setting out of range.
        RunFailed: ``strict`` and the chains, of either way, did not mix.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    settings = Settings(temperatures=temperatures, chains=chains, leapfrog=leapfrog, schedule=schedule)
    x, z = simulated(model, n, seed)
    parts = [
        both_ways(model, x[some], z[some], initial, settings, seed, some)
        for some in torch.arange(n).split(batch or batch_size(x.device, chains))
    ]
    forward = AISResult.joined([part.forward for part in parts])
    reverse = AISResult.joined([part.reverse for part in parts])
    if strict:
        refuse_unmixed(forward)
        refuse_unmixed(reverse)
    return BDMCResult(forward, reverse)
