"""Distributions over the last axis, as torch.distributions: ``log_prob`` maps (..., D) to (...), in nats.

They differ from torch's distributions in two ways. Noise comes from :mod:`vaebench.noise`. Log-densities are summed
over D in one pass, in float32 or better under any autocast.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from vaebench import noise

__all__ = [
    "Bernoulli",
    "DiagonalNormal",
    "FullNormal",
    "FullStudentT",
    "at_least_float32",
    "on_cpu",
    "positive",
    "standard_normal",
    "torchs_operators",
]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_TORCHS: ContextVar[bool] = ContextVar("torchs_operators", default=False)


@contextmanager
def torchs_operators() -> Iterator[None]:
    """Use torch's own operators within the block: ``torch.func`` cannot map those that are written for CPUs."""
    token = _TORCHS.set(True)
    try:
        yield
    finally:
        _TORCHS.reset(token)


def on_cpu(value: Tensor) -> bool:
    """Return whether operators that are written for CPUs apply to ``value``."""
    return value.device.type == "cpu" and not _TORCHS.get()


class DiagonalNormal(Distribution):
    """N(mean, diag(scale^2)); ``mean`` and ``scale`` broadcast to (..., D)."""

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)
    has_rsample = True
    support = constraints.real  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        mean, scale = at_least_float32(mean), at_least_float32(scale)
        if mean.shape != scale.shape:
            mean, scale = torch.broadcast_tensors(mean, scale)
        self.mean_parameter, self.scale = mean, scale
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
        return self._draw(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Return draws and their log density, which depends on the noise and the scale alone."""
        draw, epsilon = self._draw(sample_shape)
        return draw, self._log_density(epsilon)

    def _draw(self, sample_shape: Any) -> tuple[Tensor, Tensor]:
        """Return draws and their noise."""
        epsilon = noise.standard_normal((*sample_shape, *self.mean_parameter.shape), self.mean_parameter)
        return torch.addcmul(self.mean_parameter, self.scale, epsilon), epsilon

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_density(self.standardised(value))

    def standardised(self, value: Tensor) -> Tensor:
        """Return (value - mean) / scale: draws of N(0, I) for draws of this distribution."""
        return (value - self.mean_parameter) / self.scale

    def _log_density(self, standardised: Tensor) -> Tensor:
        minus_log_normaliser = torch.rsub(self.scale.log().sum(-1), -_HALF_LOG_2PI * self.scale.shape[-1])
        return torch.sub(minus_log_normaliser, standardised.square().sum(-1), alpha=0.5)

    def detached(self) -> "DiagonalNormal":
        """Return the same distribution with constant parameters."""
        return DiagonalNormal(self.mean_parameter.detach(), self.scale.detach())

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiagonalNormal":
        shape = (*batch_shape, *self.event_shape)
        return DiagonalNormal(self.mean_parameter.expand(shape), self.scale.expand(shape))


@dataclass(frozen=True)
class FullNormal:
    """N(mean, L L^T) for B images, L = diag(scale) (I + strictly lower)."""

    diagonal: DiagonalNormal
    """Mean and scale, batch shape (B,)."""
    lower: Tensor
    """The strictly lower triangle, (B, D, D)."""

    @classmethod
    def of_covariance(cls, mean: Tensor, covariance: Tensor) -> "FullNormal":
        """Return N(mean, covariance) for a mean of (B, D) and covariances of (B, D, D).

        Draws and densities are nan where a covariance is not positive definite.
        """
        with torch.autocast(mean.device.type, enabled=False):
            # linalg.cholesky would make a GPU wait, to raise an error.
            factor, failed = torch.linalg.cholesky_ex(covariance)
            factor = factor.masked_fill(failed.bool()[..., None, None], math.nan)
        scale = factor.diagonal(dim1=-2, dim2=-1)
        return cls(DiagonalNormal(mean, scale), (factor / scale.unsqueeze(-1)).tril(-1))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, B, D), constants."""
        with torch.no_grad():
            return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Return draws, (*sample_shape, B, D), and their log density, which depends on the noise and scales alone."""
        mean, scale = self.diagonal.mean, self.diagonal.scale
        epsilon = noise.standard_normal((*sample_shape, *mean.shape), mean)
        with torch.autocast(mean.device.type, enabled=False):
            mixed = epsilon + torch.einsum("bij,...bj->...bi", self.lower, epsilon)
        return mean + scale * mixed, self._score(epsilon)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log N(value; mean, L L^T), (K, B), for a value of (K, B, D)."""
        return self._score(self.standardised(value))

    def standardised(self, value: Tensor) -> Tensor:
        """Return L^-1 (value - mean), (K, B, D): draws of N(0, I) for draws of this distribution."""
        offset = self.diagonal.standardised(value).movedim(0, -1)
        with torch.autocast(value.device.type, enabled=False):
            solved = torch.linalg.solve_triangular(self.lower, offset, upper=False, unitriangular=True)
        return solved.movedim(-1, 0)

    def _score(self, standardised: Tensor) -> Tensor:
        """Return the log density at mean + L standardised; L and its diagonal have the same determinant."""
        scale = self.diagonal.scale
        return DiagonalNormal(torch.zeros_like(scale), scale).log_prob(scale * standardised)

    def detached(self) -> "FullNormal":
        """Return the same distribution with constant parameters."""
        return FullNormal(self.diagonal.detached(), self.lower.detach())


@dataclass(frozen=True)
class FullStudentT:
    """Student's t with D degrees of freedom over D coordinates, with the location and scale matrix of a normal."""

    normal: FullNormal
    """N(mean, L L^T), batch shape (B,)."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw (*sample_shape, B, D), constants: the normal's noise over the root of a chi-squared mean."""
        mean = self.normal.diagonal.mean
        offset = self.normal.sample(sample_shape) - mean
        return mean + offset * noise.standard_normal(offset.shape, offset).square().mean(-1, keepdim=True).rsqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, (K, B), of a value of (K, B, D)."""
        scale = self.normal.diagonal.scale
        dim = scale.shape[-1]
        constant = math.lgamma(dim) - math.lgamma(dim / 2) - dim / 2 * math.log(dim * math.pi)
        return constant - scale.log().sum(-1) - dim * (self.standardised(value).square().mean(-1)).log1p()

    def standardised(self, value: Tensor) -> Tensor:
        """Return L^-1 (value - mean), (K, B, D)."""
        return self.normal.standardised(value)


class _StandardNormal(DiagonalNormal):
    """N(0, I), whose density needs no mean and no scale."""

    def log_prob(self, value: Tensor) -> Tensor:
        return -0.5 * at_least_float32(value).square().sum(-1) - _HALF_LOG_2PI * value.shape[-1]


def standard_normal(dim: int, like: Tensor | None = None) -> DiagonalNormal:
    """Return N(0, I) over ``dim`` coordinates, with the dtype and device of ``like``."""
    like = torch.zeros(()) if like is None else like
    return _StandardNormal(like.new_zeros(dim), like.new_ones(dim))


def positive(value: Tensor) -> Tensor:
    """Return log(1 + exp(value)), accurate in relative terms for any value: a scale, whose logarithm is taken.

    Beyond a threshold torch's softplus returns its argument. The default of 20 is too small for float64.
    """
    return F.softplus(value, threshold=40)


class Bernoulli(Distribution):
    """Independent Bernoulli pixels from logits, shape (..., D).

    Grey values in [0, 1] are accepted too. They give the usual cross-entropy, which is not a normalised likelihood.
    """

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)
    support = constraints.unit_interval  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    @property
    def logits(self) -> Tensor:
        """The logits, (..., D), in float32 or better."""
        return at_least_float32(self._logits)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw pixels in {0, 1}, (*sample_shape, ..., D)."""
        probabilities = self.mean.expand(*sample_shape, *self._logits.shape)
        return torch.bernoulli(probabilities.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return sum_d x_d l_d - softplus(l_d), computed from the logits, so that it is exact for any logit."""
        if _TORCHS.get():
            return _fused_bernoulli_log_prob(self.logits, at_least_float32(value))
        return _BernoulliLogProb.apply(self._logits, at_least_float32(value))  # pyright: ignore[reportReturnType]


class _BernoulliLogProb(torch.autograd.Function):
    """Saves only the logits for the backward pass, in their dtype; autograd would save three tensors of (K, B, D)."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(logits, value)
        if logits.device.type != "cpu":
            return _fused_bernoulli_log_prob(at_least_float32(logits), value)
        if torch.compiler.is_compiling() or logits.numel() <= _BLOCK:
            return _bernoulli_log_prob(at_least_float32(logits), value)
        return _in_blocks(logits, value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:  # pyright: ignore
        kept, value = ctx.saved_tensors
        logits = at_least_float32(kept)
        # Differentiable operations, because encoders that use the model's gradient need second derivatives.
        gradient = gradient.unsqueeze(-1)
        to_value = (gradient * logits).sum_to_size(value.shape) if ctx.needs_input_grad[1] else None
        return (gradient * (value - logits.sigmoid())).to(kept.dtype), to_value


# Numbers computed at a time on a CPU, so that intermediate results fit into its caches.
_BLOCK = 2**19


def _in_blocks(logits: Tensor, value: Tensor) -> Tensor:
    size = max(1, _BLOCK * len(logits) // logits.numel())
    parts = [logits] if len(value.shape) > len(logits.shape) else logits.split(size)
    values = [value] * len(parts)
    if len(value.shape) == len(logits.shape) and len(value) > 1:
        values = value.split(size)
    return torch.cat([_bernoulli_log_prob(at_least_float32(a), b) for a, b in zip(parts, values, strict=True)])


def _fused_bernoulli_log_prob(logits: Tensor, value: Tensor) -> Tensor:
    """Return the same number by torch's own cross-entropy, which takes half the kernels: for GPUs."""
    logits, value = torch.broadcast_tensors(logits, value)
    return F.binary_cross_entropy_with_logits(logits, value, reduction="none").sum(-1).neg_()


def _bernoulli_log_prob(logits: Tensor, value: Tensor) -> Tensor:
    """Return sum_d x_d l_d - softplus(l_d), where softplus(l) = max(l, 0) - log sigmoid(|l|).

    CPUs vectorise this form, but not softplus or log1p: it is seven times faster. The sigmoids lie in [1/2, 1], so one
    logarithm of the product of eight is enough. The error per pixel is the rounding of a number near 1.
    """
    sigmoids = logits.abs().sigmoid_()
    for _ in range(3):
        half = sigmoids.shape[-1] // 2
        if sigmoids.shape[-1] != 2 * half:
            break
        sigmoids = sigmoids[..., :half] * sigmoids[..., half:]
    return (logits * value).sub_(logits.clamp(min=0)).sum(-1) + sigmoids.log_().sum(-1)


def at_least_float32(value: Tensor) -> Tensor:
    """Return float16 and bfloat16 values as float32, for computations after a network under autocast."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
