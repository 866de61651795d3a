"""Monotone rational-quadratic splines on an interval, the identity outside it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["RationalQuadraticSpline", "settings_count"]

# Least width and height of a bin, as a share of the interval, and least slope at a knot.
_SMALLEST_SHARE = 1e-3
_SMALLEST_SLOPE = 1e-3


def settings_count(bins: int) -> int:
    """Return how many numbers define one spline."""
    return 3 * bins - 1


class _Bin(NamedTuple):
    """The bin in which each value falls, (..., N)."""

    left: Tensor
    width: Tensor
    bottom: Tensor
    height: Tensor
    slope_left: Tensor
    slope_right: Tensor

    @property
    def mean_slope(self) -> Tensor:
        return self.height / self.width

    @property
    def bend(self) -> Tensor:
        """The sum of the excesses of both knots' slopes over the mean slope."""
        return self.slope_left + self.slope_right - 2 * self.mean_slope


class RationalQuadraticSpline:
    """An increasing map of [-bound, bound] to itself with a continuous slope; the identity outside the interval.

    Between two knots, with t = (x - x_l)/(x_r - x_l), mean slope s and slopes d_l, d_r at the knots,

        y = y_l + (y_r - y_l) (s t^2 + d_l t (1 - t)) / (s + (d_l + d_r - 2 s) t (1 - t)).

    Source: Durkan, Bekasov, Murray and Papamakarios 2019, https://arxiv.org/abs/1906.04032

    Args:
        settings: (..., 3 bins - 1, N), one spline for each of the values, (..., N): logits of widths and heights, and
            raw slopes at the inner knots. All zero is the identity.
        bins: number of bins.
        bound: half the length of the interval.
    """

    def __init__(self, settings: Tensor, bins: int, bound: float) -> None:
        widths, heights, slopes = settings.split([bins, bins, bins - 1], -2)
        self.bound = bound
        self.across, self.up = _knots(widths, bound), _knots(heights, bound)
        # The ends have the slope of the identity, 1.
        self.raw_slopes = F.pad(slopes, (0, 0, 1, 1))

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log dy/dx, (..., N) each."""
        inside = value.abs() < self.bound
        # Values outside the interval are replaced, so that their unused results are finite.
        x = torch.where(inside, value, 0.0)
        part = self._bin(x, self.across)
        t = (x - part.left) / part.width
        hill = t * (1 - t)
        s = part.mean_slope
        denominator = s + part.bend * hill
        y = part.bottom + part.height * (s * t.square() + part.slope_left * hill) / denominator
        numerator = part.slope_right * t.square() + 2 * s * hill + part.slope_left * (1 - t).square()
        log_slope = 2 * s.log() + numerator.log() - 2 * denominator.log()
        return torch.where(inside, y, value), torch.where(inside, log_slope, 0.0)

    def inverse(self, value: Tensor) -> Tensor:
        """Return x, (..., N): t solves a quadratic."""
        inside = value.abs() < self.bound
        y = torch.where(inside, value, 0.0)
        part = self._bin(y, self.up)
        s, rise = part.mean_slope, y - part.bottom
        a = part.height * (s - part.slope_left) + rise * part.bend
        b = part.height * part.slope_left - rise * part.bend
        c = -s * rise
        # The form without cancellation; the clamp removes negative rounding errors under the root.
        t = 2 * c / (-b - (b.square() - 4 * a * c).clamp_min(0).sqrt())
        return torch.where(inside, part.left + t * part.width, value)

    def _bin(self, value: Tensor, knots: Tensor) -> _Bin:
        """Find each value, (..., N), between ``knots``, (..., bins + 1, N)."""
        index = (value.unsqueeze(-2) >= knots[..., 1:-1, :]).sum(-2, keepdim=True)

        def at(table: Tensor, index: Tensor) -> Tensor:
            return table.gather(-2, index).squeeze(-2)

        left, bottom = at(self.across, index), at(self.up, index)
        return _Bin(
            left,
            at(self.across, index + 1) - left,
            bottom,
            at(self.up, index + 1) - bottom,
            _slope(at(self.raw_slopes, index)),
            _slope(at(self.raw_slopes, index + 1)),
        )


def _slope(raw: Tensor) -> Tensor:
    """Map the reals to (_SMALLEST_SLOPE, inf), 0 to 1."""
    return F.softplus(raw + math.log(math.expm1(1 - _SMALLEST_SLOPE))) + _SMALLEST_SLOPE


def _knots(logits: Tensor, bound: float) -> Tensor:
    """Return increasing knots from -bound to bound, (..., bins + 1, N)."""
    bins = logits.shape[-2]
    shares = _SMALLEST_SHARE + (1 - _SMALLEST_SHARE * bins) * logits.softmax(-2)
    inner = (2 * shares[..., :-1, :].cumsum(-2) - 1) * bound
    ends = F.pad(inner, (0, 0, 1, 0), value=-bound)
    return F.pad(ends, (0, 0, 0, 1), value=bound)
