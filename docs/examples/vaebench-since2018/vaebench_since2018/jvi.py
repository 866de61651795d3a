"""Jackknife variational inference: estimates of log p(x) with less bias than the IWAE bound.

JVI-m combines the IWAE bounds of K, K-1, ..., K-m of the same K weights, each averaged over all subsets, so that the
bias falls from O(1/K) to O(1/K^(m+1)). The combination has negative coefficients, so it is no bound on log p(x).

Source: Nowozin 2018, https://openreview.net/forum?id=HyZoi-WRb

Shapes: K samples first, B images; nats.
"""

import math
from functools import partial

import torch
from torch import Tensor
from vaebench.arguments import one_of
from vaebench.bounds import iwae
from vaebench.direction import Direction
from vaebench.errors import UserError
from vaebench.estimators.importance import draws
from vaebench.estimators.sampling import Sampling
from vaebench.evaluate.job import Estimate, EstimatorInputs, EstimatorJob
from vaebench.gradients import GradientEstimator
from vaebench.objective import Objective, weigh

__all__ = ["jackknifed", "jvi", "objective"]

ORDERS = (1, 2)
PAIRS = 2**20
"""Pairs of weights in memory at once."""


def jvi(log_w: Tensor, order: int) -> Tensor:
    """Return JVI-m of the log weights, (K, B) -> (B,), with m = ``order``, 1 or 2.

    JVI-1 = L_K - (K-1) d_1
    JVI-2 = L_K - (K-1)^2 d_1 + (K-2)^2/2 d_2

    d_j is the mean of L_{K-j} - L_K over all subsets of K-j weights. It is a mean of log(1 - share of the weights left
    out), so that no term cancels the large part of log w. Memory is O(K) for m = 1 and O(K^2) for m = 2.

    Raises:
        ValueError: another order, or K <= m.
    """
    one_of(ORDERS, order=order)
    k = len(log_w)
    if k <= order:
        raise ValueError(f"order must be < the number of samples k={k}, got {order}")
    # All terms are symmetric in the weights. The largest one, alone in ``top``, is the only one whose share can be so
    # near to 1 that 1 - share has no correct digits.
    log_w = log_w.sort(0, descending=True).values
    total = log_w.logsumexp(0)
    one_out = _without_one(log_w)
    first = one_out.mean(0) - math.log1p(-1 / k)
    bound = total - math.log(k)
    if order == 1:
        return bound - (k - 1) * first
    # The pairs with the largest weight: leave it out first, then one of the others.
    sums = (one_out[0] + _without_one(log_w[1:])).sum(0)
    share = (log_w[1:] - total).exp()
    for i, j in torch.triu_indices(k - 1, k - 1, 1, device=log_w.device).split(PAIRS, 1):
        # The largest share is at least their mean, so the two have at most 2/3.
        sums = sums + (-(share[i] + share[j])).log1p().sum(0)
    second = sums / math.comb(k, 2) - math.log1p(-2 / k)
    return bound - (k - 1) ** 2 * first + (k - 2) ** 2 / 2 * second


def _without_one(log_w: Tensor) -> Tensor:
    """Return log(1 - share) for the share of each weight in their sum, (K, B); the weights fall along K."""
    total = log_w.logsumexp(0)
    others = log_w[1:]
    return torch.cat([(others.logsumexp(0) - total).unsqueeze(0), (-(others - total).exp()).log1p()])


def objective(gradient: GradientEstimator, *, order: int) -> Objective:
    """Return the objective that maximises JVI-m, and reports the IWAE bound of the same weights."""
    one_of(ORDERS, order=order)
    return Objective(iwae, gradient, target=partial(jvi, order=order))


def jackknifed(inputs: EstimatorInputs) -> EstimatorJob:
    """Return the job of JVI-m's estimate of log p(x); UserError if ``order`` is out of range."""
    settings, images, (encoder, shown) = inputs.settings, inputs.images, inputs.proposal()
    order, inner_k = settings.order, inputs.inner_k if encoder.has_inner_samples else 0
    if order not in ORDERS:
        raise UserError(f"estimator.order must be one of {', '.join(map(str, ORDERS))}, got {order}")
    if settings.k <= order:
        raise UserError(f"estimator.k must be > estimator.order={order}, got {settings.k}")

    def numbers(part: slice) -> Tensor:
        x = inputs.observed(part)
        sampling = Sampling(settings.k, inner_k, settings.seed, images.numbers[part], settings.chunk)
        with inputs.seeded(part), torch.no_grad():
            weights = [weigh(inputs.model, x, draw).log_weights() for draw in draws(encoder, x, sampling)]
            log_w = torch.cat(weights).double()
            return torch.stack([jvi(log_w, order), iwae(log_w)]).cpu()

    def summarise(rows: Tensor) -> list[Estimate]:
        values, bound = rows
        estimate = Estimate(
            estimator=f"JVI-{order}",
            direction=Direction.ESTIMATE,
            values=values,
            k=settings.k,
            inner_k=inner_k if encoder.has_inner_samples else None,
            settings=shown,
            extra={"iwae": bound.mean().item()},
            note=f"no bound; the IWAE bound of the same weights is {bound.mean().item():.2f} nats",
            log_q=encoder.direction,
        )
        return [estimate]

    return EstimatorJob(
        split=settings.split,
        protocol=images.protocol,
        images=images.numbers,
        key=["jvi", order, settings.k, inner_k, settings.seed, type(encoder).__name__, *shown.items()],
        rows=("log_likelihood", "iwae"),
        batch=settings.batch or 20,
        numbers=numbers,
        summarise=summarise,
    )
