"""Bounds on log p(x) as functions of log importance weights.

Every function takes ``log_w``, shape (K, B): K samples for each of B images, in nats, with
E[exp(log_w)] = p(x), and returns one number per image, shape (B,), in nats.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vaebench.arguments import at_least, between
from vaebench.runtime import in_float64

__all__ = [
    "Bound",
    "LogMeanExp",
    "ciwae",
    "elbo",
    "harmonic_mean",
    "iwae",
    "log_mean_exp",
    "miwae",
    "renyi",
    "tvo",
    "tvo_schedule",
]

Bound = Callable[[Tensor], Tensor]


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """Return log (1/K) sum_k exp(log_w_k) along ``dim``, without overflow."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def elbo(log_w: Tensor) -> Tensor:
    """Evidence lower bound: the mean of the log weights.

    Source: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114
    """
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    """Importance-weighted bound L_K = log (1/K) sum_k w_k; rises with K towards log p(x).

    Source: Burda, Grosse and Salakhutdinov 2016, https://arxiv.org/abs/1509.00519
    """
    return log_mean_exp(log_w)


def ciwae(log_w: Tensor, beta: float) -> Tensor:
    """Combination beta * ELBO + (1 - beta) * L_K; ``beta`` in [0, 1].

    Source: Rainforth et al. 2018, https://arxiv.org/abs/1802.04537
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be >= 0 and <= 1, got {beta}")
    return beta * elbo(log_w) + (1 - beta) * iwae(log_w)


def miwae(log_w: Tensor, groups: int) -> Tensor:
    """Mean of ``groups`` (M) importance-weighted bounds of K/M samples each.

    Source: Rainforth et al. 2018, https://arxiv.org/abs/1802.04537
    """
    k = log_w.shape[0]
    if groups < 1 or k % groups:
        raise ValueError(f"groups must be >= 1 and divide the number of samples k={k}, got {groups}")
    return log_mean_exp(log_w.unflatten(0, (groups, k // groups)), dim=1).mean(0)


def renyi(log_w: Tensor, alpha: float) -> Tensor:
    """Variational Rényi bound 1/(1-alpha) log (1/K) sum_k w_k^(1-alpha).

    alpha = 1 is the ELBO, 0 is L_K and -inf is the largest weight (VR-max). For alpha < 0 the exact quantity is greater
    than log p(x), so the value is not a lower bound; with K samples it is biased downward.

    Source: Li and Turner 2016, https://arxiv.org/abs/1602.02311
    """
    if alpha == 1:
        return elbo(log_w)
    if alpha == -math.inf:
        return log_w.amax(0)
    return log_mean_exp((1 - alpha) * log_w) / (1 - alpha)


def harmonic_mean(log_r: Tensor) -> Tensor:
    """Variational harmonic mean bound on log q(z): -log (1/K) sum_k tau(psi_k|z) / q(z, psi_k), an upper bound.

    For demonstration only. All K samples must come from the posterior q(psi|z), and only the sample that made z costs
    nothing. If tau is wider than the posterior, the terms have infinite variance, so more samples hardly help.
    See docs/harmonic_mean.md.

    Args:
        log_r: log q(z, psi_k) - log tau(psi_k|z), (K, B), psi_k ~ q(psi|z).
    """
    return -log_mean_exp(-log_r)


def tvo(log_w: Tensor, betas: Sequence[float], *, upper: bool = False) -> Tensor:
    """Thermodynamic variational objective: a Riemann sum of int_0^1 E_{pi_beta}[log w] dbeta = log p(x).

    pi_beta is proportional to q^(1-beta) p^beta; its expectations are self-normalised over the K samples. With exact
    expectations the left sum is a lower and the right sum an upper bound; with K samples neither need be, so that this
    is an objective and never a reported bound.

    Source: Masrani, Le and Wood 2019, https://arxiv.org/abs/1907.00031

    Args:
        log_w: (K, B).
        betas: rising from 0 to 1.
        upper: take the right sum.
    """
    if betas[0] != 0 or betas[-1] != 1 or any(b <= a for a, b in pairwise(betas)):
        raise ValueError(f"tvo: betas must rise from 0 to 1, got {list(betas)}")
    # Point by point: a tensor of them would be copied to the device at each step.
    parts = [
        (high - low) * (((high if upper else low) * log_w).softmax(0) * log_w).sum(0) for low, high in pairwise(betas)
    ]
    return torch.stack(parts).sum(0)


def tvo_schedule(partitions: int, first: float) -> list[float]:
    """Return 0 and ``partitions`` points from ``first`` to 1, evenly spaced in their logarithm."""
    at_least(1, partitions=partitions)
    between(0, 1, first=first)
    if partitions == 1:
        return [0.0, 1.0]
    return [0.0, *(first ** (1 - i / (partitions - 1)) for i in range(partitions - 1)), 1.0]


class LogMeanExp:
    """A running log-mean-exp over chunks of samples; memory does not depend on their number.

    It counts the samples, so that chunks of any sizes give the mean over all samples.
    """

    def __init__(self) -> None:
        self.count = 0
        self._log_sum: Tensor | None = None

    def add(self, log_w: Tensor) -> None:
        """Add ``log_w``, shape (K_chunk, ...)."""
        # In float64, because the sum of thousands of float32 terms would lose the last digits.
        log_sum = torch.logsumexp(in_float64(log_w), 0)
        self._log_sum = log_sum if self._log_sum is None else torch.logaddexp(self._log_sum, log_sum)
        self.count += log_w.shape[0]

    def value(self) -> Tensor:
        """Return the log-mean-exp of all samples so far, float64."""
        if self._log_sum is None:
            raise ValueError("LogMeanExp has no samples: call add first")
        return self._log_sum - math.log(self.count)
