"""The families of p(x|z) for pixels with more than two values: x is in [0, 1], and x = byte / 255 for 8-bit images.

Given z, pixels and channels are independent. ``log_prob`` maps (..., X) to (...), in nats, computed in float32 or
better. The families for 8-bit images return the log of a probability: the 256 values of a pixel sum to one. The others
return the log of a density of x, and the density integrates to one over the values of x.

A discretized family divides the line into 256 bins of width 1/255 around the values k/255. The first and the last bin
include the tails. Source: Salimans et al. 2017, https://arxiv.org/abs/1701.05517
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from vaebench.arguments import at_least
from vaebench.direction import Measure
from vaebench.distributions import DiagonalNormal, at_least_float32
from vaebench.nets.dense import Likelihood
from vaebench.runtime import in_float64

__all__ = [
    "CategoricalLikelihood",
    "CategoricalPixels",
    "ContinuousBernoulli",
    "ContinuousBernoulliLikelihood",
    "DiscretizedLogistic",
    "DiscretizedNormal",
    "EightBitPixels",
    "GaussianLikelihood",
    "LogisticLikelihood",
    "LogisticMixture",
    "LogisticMixtureLikelihood",
]

LEVELS = 256
_LAST = LEVELS - 1
_HALF_BIN = 0.5 / _LAST
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

LOG_SCALE_RANGE = (-8.0, 3.0)
"""Of scales in units of x. exp(-8) is 0.09 bins: a value in the middle of its bin then has probability 0.994."""
FIRST_SCALE = 0.2
"""The scale of untrained decoders, about that of grey levels around their mean."""


# Continuous Bernoulli -------------------------------------------------------------------------------------


class ContinuousBernoulli(Distribution):
    """Independent densities l e^(l x) / (e^l - 1) of pixels x in [0, 1], from logits l, (..., X).

    This is Bernoulli's formula with the normaliser that makes it a density.

    Source: Loaiza-Ganem and Cunningham 2019, https://arxiv.org/abs/1907.06845
    """

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)

    support = constraints.unit_interval  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    # torch's own class clamps probabilities, so that its density is wrong for large logits.

    def __init__(self, logits: Tensor) -> None:
        self.logits = at_least_float32(logits)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Return 1 / (1 - e^-l) - 1 / l, (..., X)."""
        small, safe = self._split()
        series = 0.5 + self.logits.where(small, 0) / 12 - self.logits.where(small, 0) ** 3 / 720
        return torch.where(small, series, -1 / torch.expm1(-safe) - 1 / safe)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw pixels in [0, 1], (*sample_shape, ..., X), by the inverse of the distribution function."""
        with torch.no_grad():
            size = self.logits.abs().clamp(min=1e-6)  # nearer to 0, the density is 1 within rounding
            uniform = torch.rand((*sample_shape, *size.shape), dtype=size.dtype, device=size.device)
            # For l < 0; 1 - x has the logit -l.
            drawn = (torch.log1p(uniform * torch.expm1(-size)) / -size).clamp(0, 1)
            return torch.where(self.logits > 0, 1 - drawn, drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return sum_d l_d (x_d - 1/2) - log(sinh(l_d / 2) / (l_d / 2)), exact for any logit."""
        return (self.logits * (value - 0.5) - self._log_normaliser()).sum(-1)

    def _log_normaliser(self) -> Tensor:
        small, safe = self._split()
        square = self.logits.where(small, 0).square()
        size = safe.abs()
        exact = size / 2 + torch.log(-torch.expm1(-size)) - size.log()
        return torch.where(small, square / 24 - square.square() / 2880 + square**3 / 181440, exact)

    def _split(self) -> tuple[Tensor, Tensor]:
        """Return where a logit is so small that only the series is exact, and the logits with 1 in these places."""
        limit = 0.02 if self.logits.dtype == torch.float64 else 0.2
        small = self.logits.abs() < limit
        return small, torch.where(small, 1.0, self.logits)


# 8-bit pixels ---------------------------------------------------------------------------------------------


class _Bytes(constraints.Constraint):
    """Multiples of 1/255 in [0, 1], up to rounding in float16."""

    lower_bound, upper_bound = 0.0, 1.0

    def check(self, value: Tensor) -> Tensor:
        level = _LAST * in_float64(value)
        return (value >= 0) & (value <= 1) & ((level - level.round()).abs() < 0.2)

    def __repr__(self) -> str:
        return "bytes / 255"


class EightBitPixels(Distribution, ABC):
    """Independent 8-bit pixels and channels, x = byte / 255, (..., X). ``log_prob`` is the log of a probability."""

    arg_constraints = {}  # noqa: RUF012 # pyright: ignore[reportAssignmentType] (torch's own declaration)
    support = _Bytes()  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self, like: Tensor) -> None:
        """``like`` has the shape (..., X)."""
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the bytes nearest to 255 x, (...), nats."""
        return self.each_log_prob(value).sum(-1)

    def each_log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of each pixel, (..., X)."""
        return self._of_bytes((value * _LAST).round().clamp(0, _LAST))

    @abstractmethod
    def _of_bytes(self, level: Tensor) -> Tensor:
        """Return the log-probability of each byte, given as a whole number in floating point, (..., X)."""


class _Binned(EightBitPixels):
    """The 256 bins of a distribution of the line, whose draws are rounded to the nearest of the 256 values."""

    @abstractmethod
    def _above(self, limit: float) -> Tensor:
        """Return the probability of a draw of the line above ``limit``, (..., X)."""

    @abstractmethod
    def _line(self, shape: tuple[int, ...]) -> Tensor:
        """Return draws of the line, (*shape, ..., X)."""

    @property
    def mean(self) -> Tensor:
        """The exact mean of x, (..., X): the sum of P(x > k/255) / 255 over k from 0 to 254."""
        total = self._above(_HALF_BIN)
        for level in range(1, _LAST):
            total = total + self._above(level / _LAST + _HALF_BIN)
        return total / _LAST

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw x = byte / 255, (*sample_shape, ..., X)."""
        with torch.no_grad():
            return (self._line(tuple(sample_shape)) * _LAST).round().clamp(0, _LAST) / _LAST


class DiscretizedLogistic(_Binned):
    """The bins of logistic distributions with ``location`` and scale exp(``log_scale``), (..., X)."""

    def __init__(self, location: Tensor, log_scale: Tensor) -> None:
        self.location = at_least_float32(location)
        self.log_scale = at_least_float32(log_scale).clamp(*LOG_SCALE_RANGE)
        super().__init__(self.location)

    def _of_bytes(self, level: Tensor) -> Tensor:
        return _log_logistic_bin(level, self.location, self.log_scale)

    def _above(self, limit: float) -> Tensor:
        return ((self.location - limit) * (-self.log_scale).exp()).sigmoid()

    def _line(self, shape: tuple[int, ...]) -> Tensor:
        return self.location + self.log_scale.exp() * _logistic_noise(shape, self.location)


class LogisticMixture(_Binned):
    """The bins of mixtures of logistic distributions; every pixel and channel has its own mixture.

    Channels are independent given z: unlike in PixelCNN++, they share no component, and no channel is the input of
    another.

    Args:
        logits: of the components, (..., M, X).
        location: (..., M, X).
        log_scale: (..., M, X).
    """

    def __init__(self, logits: Tensor, location: Tensor, log_scale: Tensor) -> None:
        self.log_weights = at_least_float32(logits).log_softmax(-2)
        self.location = at_least_float32(location)
        self.log_scale = at_least_float32(log_scale).clamp(*LOG_SCALE_RANGE)
        super().__init__(self.location.select(-2, 0))

    def _of_bytes(self, level: Tensor) -> Tensor:
        each = _log_logistic_bin(level.unsqueeze(-2), self.location, self.log_scale)
        return (self.log_weights + each).logsumexp(-2)

    def _above(self, limit: float) -> Tensor:
        each = ((self.location - limit) * (-self.log_scale).exp()).sigmoid()
        return (self.log_weights.exp() * each).sum(-2)

    def _line(self, shape: tuple[int, ...]) -> Tensor:
        chosen = _draw_index(self.log_weights, shape).unsqueeze(-2)
        wide = (*shape, *self.location.shape)
        location, log_scale = (v.expand(wide).gather(-2, chosen).squeeze(-2) for v in (self.location, self.log_scale))
        return location + log_scale.exp() * _logistic_noise((), location)


class DiscretizedNormal(_Binned):
    """The bins of normal distributions with mean ``location`` and scale exp(``log_scale``), (..., X)."""

    def __init__(self, location: Tensor, log_scale: Tensor) -> None:
        self.location = at_least_float32(location)
        self.log_scale = at_least_float32(log_scale).clamp(*LOG_SCALE_RANGE)
        super().__init__(self.location)

    def _of_bytes(self, level: Tensor) -> Tensor:
        inverse = (-self.log_scale).exp()
        middle, half = (level / _LAST - self.location) * inverse, _HALF_BIN * inverse
        edge = torch.where(level < 0.5, middle + half, half - middle)
        return torch.where(_is_edge(level), _log_normal_cdf(edge), _log_normal_interval(middle, half))

    def _above(self, limit: float) -> Tensor:
        return torch.special.ndtr((self.location - limit) * (-self.log_scale).exp())

    def _line(self, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn((*shape, *self.location.shape), dtype=self.location.dtype, device=self.location.device)
        return self.location + self.log_scale.exp() * noise


class CategoricalPixels(EightBitPixels):
    """One probability for each of the 256 values of a pixel, from logits, (..., 256, X)."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = at_least_float32(logits)
        super().__init__(self.logits.select(-2, 0))

    @property
    def mean(self) -> Tensor:
        """The mean of x, (..., X)."""
        levels = torch.arange(LEVELS, dtype=self.logits.dtype, device=self.logits.device).unsqueeze(-1)
        return (self.logits.softmax(-2) * levels).sum(-2) / _LAST

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw x = byte / 255, (*sample_shape, ..., X)."""
        with torch.no_grad():
            return _draw_index(self.logits, tuple(sample_shape)).to(self.logits.dtype) / _LAST

    def _of_bytes(self, level: Tensor) -> Tensor:
        index = level.long().expand(torch.broadcast_shapes(level.shape, self.batch_shape + self.event_shape))
        # The normaliser once for each image of the decoder; the logits are never copied.
        logits = self.logits.expand(*index.shape[:-1], *self.logits.shape[-2:])
        return logits.gather(-2, index.unsqueeze(-2)).squeeze(-2) - self.logits.logsumexp(-2)


def _is_edge(level: Tensor) -> Tensor:
    return (level < 0.5) | (level > _LAST - 0.5)


def _draw_index(logits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw the index along the second last axis, (*shape, ..., X), from logits (..., M, X): Gumbel's maximum."""
    noise = torch.empty((*shape, *logits.shape), dtype=logits.dtype, device=logits.device).exponential_()
    return (logits - noise.log()).argmax(-2)


def _logistic_noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    uniform = torch.rand((*shape, *like.shape), dtype=like.dtype, device=like.device)
    return torch.logit(uniform, eps=torch.finfo(like.dtype).tiny)


def _log_logistic_bin(level: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Return the log-probability of the bin of each byte.

    With b < a the ends of a bin, s(a) - s(b) = s(a) s(-b) (1 - e^(b - a)): no difference of nearly equal numbers. A
    tail replaces one end of the first and of the last bin, so that one factor remains.
    """
    inverse = (-log_scale).exp()
    middle, half = (level / _LAST - location) * inverse, _HALF_BIN * inverse
    below, above = F.logsigmoid(middle + half), F.logsigmoid(half - middle)
    inside = below + above + torch.log(-torch.expm1(-2 * half))
    return torch.where(level < 0.5, below, torch.where(level > _LAST - 0.5, above, inside))


def _log_normal_cdf(end: Tensor) -> Tensor:
    """Return log Phi(end), with finite gradients far into the left tail."""
    tail, bulk = end.clamp(max=-1), end.clamp(min=-1)
    in_tail = -0.5 * tail.square() + torch.log(0.5 * torch.special.erfcx(-tail * math.sqrt(0.5)))
    return torch.where(end < -1, in_tail, torch.log1p(-0.5 * torch.special.erfc(bulk * math.sqrt(0.5))))


def _log_normal_interval(middle: Tensor, half: Tensor) -> Tensor:
    """Return log(Phi(m + h) - Phi(m - h)) without a difference of nearly equal numbers.

    By symmetry m <= 0 is enough. There are three cases, each computed at safe values where another one holds:
    a narrow interval by Taylor's series around m, an interval that contains 0 by its two tails, and an interval in the
    tail by the scaled function erfcx(t) = e^(t^2) erfc(t).
    """
    middle, half = torch.broadcast_tensors(-middle.abs(), half)
    root = math.sqrt(0.5)
    slope = -2 * middle * half  # the log-density changes by about this over the interval
    narrow, central = (half < 0.125) & (slope < 0.5), -middle < half

    m, h = middle.where(narrow, 0), half.where(narrow, 0.125)
    y, q = (m * h).square(), h.square()
    # The even derivatives of the density are the density times Hermite's polynomials.
    series = (y - q) / 6 + (y * y - 6 * y * q + 3 * q * q) / 120
    series = series + (y**3 - 15 * y * y * q + 45 * y * q * q - 15 * q**3) / 5040
    in_narrow = -0.5 * m.square() - _HALF_LOG_2PI + torch.log(2 * h) + torch.log1p(series)

    m, h = middle.where(central, 0), half.where(central, 1)
    in_centre = torch.log1p(-0.5 * (torch.special.erfc((m + h) * root) + torch.special.erfc((h - m) * root)))

    tail = ~(narrow | central)
    m, h = middle.where(tail, -2), half.where(tail, 1)
    near, far = torch.special.erfcx(-(m + h) * root), torch.special.erfcx((h - m) * root)
    in_tail = -0.5 * (m + h).square() + torch.log(0.5 * near) + torch.log1p(-torch.exp(2 * m * h) * far / near)
    return torch.where(narrow, in_narrow, torch.where(central, in_centre, in_tail))


# Families -------------------------------------------------------------------------------------------------


class ContinuousBernoulliLikelihood(Likelihood):
    """A density of grey levels in [0, 1], by one logit for each pixel and channel."""

    outputs, measure = 1, Measure.DENSITY

    def of(self, outputs: Tensor) -> ContinuousBernoulli:
        return ContinuousBernoulli(outputs.squeeze(-2))


class GaussianLikelihood(Likelihood):
    """Normal distributions by a mean and the log of a scale for each pixel and channel.

    Args:
        discretized: give the probability of an 8-bit image. Otherwise give the density of x, which is not bounded: it
            grows without limit where a pixel is constant, up to the smallest scale, exp(-8).
    """

    outputs = 2

    def __init__(self, *, discretized: bool = True) -> None:
        super().__init__()
        self.discretized = discretized
        self.measure = Measure.EIGHT_BIT if discretized else Measure.DENSITY

    def first_biases(self, pixel_mean: Tensor) -> Tensor:
        return torch.stack([pixel_mean, torch.full_like(pixel_mean, math.log(FIRST_SCALE))])

    def of(self, outputs: Tensor) -> Distribution:
        mean, log_scale = outputs.unbind(-2)
        if self.discretized:
            return DiscretizedNormal(mean, log_scale)
        return DiagonalNormal(mean, at_least_float32(log_scale).clamp(*LOG_SCALE_RANGE).exp())


class LogisticLikelihood(Likelihood):
    """Discretized logistic distributions by a location and the log of a scale for each pixel and channel."""

    outputs, measure = 2, Measure.EIGHT_BIT

    def first_biases(self, pixel_mean: Tensor) -> Tensor:
        # The standard deviation of a logistic distribution is pi / sqrt(3) times its scale.
        log_scale = math.log(FIRST_SCALE * math.sqrt(3) / math.pi)
        return torch.stack([pixel_mean, torch.full_like(pixel_mean, log_scale)])

    def of(self, outputs: Tensor) -> DiscretizedLogistic:
        return DiscretizedLogistic(*outputs.unbind(-2))


class LogisticMixtureLikelihood(Likelihood):
    """Mixtures of ``components`` discretized logistic distributions, one mixture for each pixel and channel."""

    measure = Measure.EIGHT_BIT

    def __init__(self, *, components: int) -> None:
        super().__init__()
        at_least(1, components=components)
        self.components = components
        self.outputs = 3 * components

    def first_biases(self, pixel_mean: Tensor) -> Tensor:
        """Return equal weights, and locations that cover [0, 1] evenly."""
        places = (torch.arange(self.components, dtype=pixel_mean.dtype) + 0.5) / self.components
        log_scale = math.log(FIRST_SCALE / self.components)
        columns = torch.cat([torch.zeros_like(places), places, torch.full_like(places, log_scale)])
        return columns.unsqueeze(-1).repeat(1, len(pixel_mean))

    def of(self, outputs: Tensor) -> LogisticMixture:
        return LogisticMixture(*outputs.chunk(3, -2))


class CategoricalLikelihood(Likelihood):
    """256 logits for each pixel and channel."""

    outputs, measure = LEVELS, Measure.EIGHT_BIT

    def of(self, outputs: Tensor) -> CategoricalPixels:
        return CategoricalPixels(outputs)
