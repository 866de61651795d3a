"""Diagnostics of the importance weights of an estimate: their mean, effective sample size and tail.

Shapes: K samples first, B images; nats.
"""

import math

import torch
from torch import Tensor

from vaebench.bounds import LogMeanExp
from vaebench.runtime import in_float64

__all__ = ["RELIABLE", "WAITING", "WeightSummary", "effective_sample_size", "pareto_k", "reliable_k_hat", "tail_length"]

RELIABLE = 0.7
"""The largest k-hat for which the mean of some thousands of weights is reliable; see :func:`reliable_k_hat`."""

FEWEST = 5
"""The fewest weights in a tail that can be fitted."""
LEAST_SPREAD = 1e-12
"""Of the tail, relative to the largest weight: weights that differ by less are equal up to rounding."""
WAITING = 200
"""Weights of an image that are collected between two searches for the largest."""
PRIOR_WEIGHTS, PRIOR_K = 10, 0.5
"""A prior for the fit of the tail: ten further weights with k = 0.5."""


def effective_sample_size(log_w: Tensor) -> Tensor:
    """Return (sum w)^2 / sum w^2 over the K samples, (B,): from 1 (one weight dominates) to K (all weights are equal).

    Source: Kong 1992; it is K / (1 + the weights' squared coefficient of variation)
    """
    return (2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)).exp()


class WeightSummary:
    """A running summary of ``k`` weights per image that arrive in chunks; memory grows as sqrt(k)."""

    def __init__(self, k: int) -> None:
        self._mean, self._square = LogMeanExp(), LogMeanExp()
        self._kept = tail_length(k) + 1
        self._largest: list[Tensor] = []

    def add(self, log_w: Tensor) -> None:
        """Add log weights, (K_chunk, B)."""
        self._mean.add(log_w)
        self._square.add(2 * in_float64(log_w))
        self._largest.append(log_w)
        # Not after each chunk: the search for the largest takes longer than the sums.
        if sum(map(len, self._largest)) > self._kept + WAITING:
            self._largest = [self._tail()]

    def log_mean(self) -> Tensor:
        """Return the log-mean-exp of the weights, (B,), float64."""
        return self._mean.value()

    def ess(self) -> Tensor:
        """Return the effective sample size (sum w)^2 / sum w^2, (B,), from 1 to K."""
        return (2 * self._mean.value() - self._square.value()).exp() * self._mean.count

    def pareto_k(self) -> Tensor:
        """Return k-hat of the weights, (B,); NaN for fewer than 21 weights. See :func:`pareto_k`."""
        if not self._largest:
            raise ValueError("WeightSummary: no weights were added")
        return pareto_k(self._tail())

    def _tail(self) -> Tensor:
        """Return the largest weights so far, at most M + 1, (M + 1, B), in descending order."""
        by_image = torch.cat([part.T for part in self._largest], 1)
        return by_image.topk(min(self._kept, by_image.shape[1]), 1).values.T


def tail_length(k: int) -> int:
    """Return the number of the largest of ``k`` weights that are fitted, min(k/5, 3 sqrt(k)); 0 if it is too small."""
    length = math.ceil(min(0.2 * k, 3 * k**0.5))
    return length if length >= FEWEST else 0


def reliable_k_hat(k: int) -> float:
    """Return the largest k-hat for which the mean of ``k`` > 1 weights is reliable, min(0.7, 1 - 1/log10 k).

    It is 0.5 for 100 weights and 0.7 from 2,155 on.

    Source: Vehtari et al. 2024, https://www.jmlr.org/papers/v25/19-556.html
    """
    return min(RELIABLE, 1 - 1 / math.log10(k))


def pareto_k(largest: Tensor) -> Tensor:
    """Return the shape k-hat of the generalised Pareto distribution that fits the largest weights, (B,), float64.

    Moments of order 1/k and above of the weights' distribution are infinite. For k >= 1/2 the variance is infinite, and
    the central limit theorem fails; for k >= 1 the mean is infinite. Above :func:`reliable_k_hat` the mean
    is unreliable: an estimate of log p(x) is then usually too low, and its error is unknown.

    Equal weights have no tail: -inf. Weights that almost vanish compared with the largest give +inf.

    Source: Vehtari et al. 2024, https://arxiv.org/abs/1507.02646; the fit is from Zhang and Stephens 2009,
    https://doi.org/10.1198/tech.2009.08017

    Args:
        largest: the M + 1 largest log weights, (M + 1, B), in descending order. The tail begins at the smallest. Fewer
            than 6 give NaN.
    """
    largest = in_float64(largest)
    count = len(largest) - 1
    if count < FEWEST:
        return torch.full_like(largest[0], math.nan)
    scaled = (largest - largest[0]).exp()
    excess = (scaled[:-1] - scaled[-1]).flip(0)
    spread, quartile = excess[-1], excess[int(count / 4 + 0.5) - 1]
    k = _shape(excess, quartile)
    # A weak prior stabilises short tails.
    k = (count * k + PRIOR_WEIGHTS * PRIOR_K) / (count + PRIOR_WEIGHTS)
    k = torch.where(quartile > 0, k, math.inf)
    return torch.where(spread > LEAST_SPREAD, k, -math.inf)


def _shape(excess: Tensor, quartile: Tensor) -> Tensor:
    """Return Zhang and Stephens's estimate of k from the excess of weights over the threshold, (M, B), ascending."""
    count, points = len(excess), 30 + int(len(excess) ** 0.5)
    theta = torch.stack([1 / excess[-1] + (1 - math.sqrt(points / (j + 0.5))) / (3 * quartile) for j in range(points)])
    # One point of the grid at a time: (points, M, B) could be large.
    shapes = torch.stack([torch.log1p(-point * excess).mean(0) for point in theta])
    profile = count * ((-theta / shapes).log() - shapes - 1)
    mean = (profile.softmax(0) * theta).sum(0)
    return torch.log1p(-mean * excess).mean(0)
