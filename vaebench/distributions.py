"""Distributions over the last axis, as torch.distributions: ``log_prob`` maps (..., D) to (...), in nats.

They differ from torch's own in two ways: noise comes from :mod:`vaebench.noise`, and log-densities are
summed over D in one pass, in float32 or better under any autocast.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributions import Distribution

from vaebench import noise

__all__ = ["Bernoulli", "DiagonalNormal", "at_least_float32", "standard_normal"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class DiagonalNormal(Distribution):
    """N(mean, diag(scale^2)); ``mean`` and ``scale`` broadcast to (..., D)."""

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)
    has_rsample = True

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        self.mean_parameter, self.scale = torch.broadcast_tensors(at_least_float32(mean), at_least_float32(scale))
        shape = self.mean_parameter.shape
        super().__init__(shape[:-1], shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.mean_parameter

    @property
    def variance(self) -> Tensor:
        return self.scale.square()

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, ..., D), differentiable in mean and scale."""
        return self.rsample_and_log_prob(sample_shape)[0]

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, ..., D), without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draw and score at once: the density of a draw needs only its noise and the scale."""
        epsilon = noise.standard_normal((*sample_shape, *self.mean_parameter.shape), self.mean_parameter)
        draw = torch.addcmul(self.mean_parameter, self.scale, epsilon)
        log_prob = -0.5 * epsilon.square().sum(-1) - self._log_normaliser()
        return draw, log_prob

    def log_prob(self, value: Tensor) -> Tensor:
        standardised = (value - self.mean_parameter) / self.scale
        return -0.5 * standardised.square().sum(-1) - self._log_normaliser()

    def _log_normaliser(self) -> Tensor:
        return self.scale.log().sum(-1) + _HALF_LOG_2PI * self.scale.shape[-1]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalNormal":
        shape = (*batch_shape, *self.event_shape)
        return DiagonalNormal(self.mean_parameter.expand(shape), self.scale.expand(shape))


def standard_normal(dim: int, like: Tensor | None = None) -> DiagonalNormal:
    """Return N(0, I) over ``dim`` coordinates, with the dtype and device of ``like``."""
    like = torch.zeros(()) if like is None else like
    return DiagonalNormal(like.new_zeros(dim), like.new_ones(dim))


class Bernoulli(Distribution):
    """Independent Bernoulli pixels from logits, shape (..., D).

    Grey values in [0, 1] are accepted as well and give the usual cross-entropy, which is then no
    normalised likelihood.
    """

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)

    def __init__(self, logits: Tensor) -> None:
        self.logits = at_least_float32(logits)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw pixels in {0, 1}, (*sample_shape, ..., D)."""
        probabilities = self.mean.expand(*sample_shape, *self.logits.shape)
        return torch.bernoulli(probabilities.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return sum_d x_d l_d - softplus(l_d), from the logits alone: exact for any confident pixel."""
        return _BernoulliLogProb.apply(self.logits, at_least_float32(value))  # pyright: ignore[reportReturnType]


class _BernoulliLogProb(torch.autograd.Function):
    """Keeps only the logits for the backward pass; autograd would keep three tensors of (K, B, D)."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(logits, value)
        # softplus(l) = max(l, 0) - log sigmoid(|l|): vectorised on CPUs where softplus and log1p are not, seven
        # times faster; each pixel errs by at most the rounding of a number near 1.
        log_sigmoid = logits.abs().sigmoid_().log_()
        return (logits * value).sub_(logits.clamp(min=0)).add_(log_sigmoid).sum(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:  # pyright: ignore
        logits, value = ctx.saved_tensors
        # Differentiable operations, so that second derivatives (samplers inside an encoder) exist.
        gradient = gradient.unsqueeze(-1)
        to_value = (gradient * logits).sum_to_size(value.shape) if ctx.needs_input_grad[1] else None
        return gradient * (value - logits.sigmoid()), to_value


def at_least_float32(value: Tensor) -> Tensor:
    """Undo autocast: what follows a network is computed in float32."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
