"""Student's intervals and tests of differences, Welch's test, and Holm's correction for the number of comparisons."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy

__all__ = [
    "LEVEL",
    "Difference",
    "Interval",
    "holm",
    "p_of_pair",
    "p_values",
    "p_values_unpaired",
    "t_interval",
    "wider",
]

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean of differences and its t-interval, nats per image."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half of its width, nats."""
        return self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline of its table, over their common seeds, nats per image."""

    mean: float
    over_seeds: Interval | None
    """The uncertainty from training; None for one common seed."""
    over_images: Interval | None
    """The uncertainty from the choice of images, for these trained models; None without results per image."""
    told_apart: bool
    """Whether Holm's test over all comparisons of the table tells the two methods apart."""
    of_bounds: bool
    """Whether both numbers are bounds (or exact), and neither is an estimate."""

    @property
    def interval(self) -> Interval | None:
        """The wider interval: both intervals leave out zero if it does. None without an interval."""
        return wider(self.over_seeds, self.over_images)


def wider(*intervals: Interval | None) -> Interval | None:
    """Return the widest interval, the first of equal ones; None if there is none."""
    given = [interval for interval in intervals if interval is not None]
    return max(given, key=lambda interval: interval.half, default=None)


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the mean of ``values`` with Student's interval for it. ValueError for fewer than two values."""
    if len(values) < 2:
        raise ValueError("an interval needs at least two values")
    from scipy.special import stdtrit  # here, because a table of one method does not need it

    mean, n = statistics.fmean(values), len(values)
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def p_values(differences: "numpy.ndarray") -> "numpy.ndarray":
    """Return the two-sided p-values of Student's test that a mean is zero.

    Args:
        differences: (..., n), NaN for a missing one.

    Returns:
        Shape (...); 1 for fewer than two differences, and for differences that are all zero.
    """
    import numpy
    from scipy.special import stdtr

    n, mean, square = _means(differences)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(numpy.maximum(n - 1.0, 1.0), -numpy.abs(mean) / numpy.sqrt(square))
    return numpy.where((n < 2) | (mean == 0), 1.0, p)


def p_values_unpaired(first: "numpy.ndarray", second: "numpy.ndarray") -> "numpy.ndarray":
    """Return the two-sided p-values of Welch's test that two means are equal.

    Source: Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28

    Args:
        first, second: (..., n) and (..., m), NaN for a missing value.

    Returns:
        Shape (...); 1 for fewer than two values of either, and for equal means.
    """
    import numpy
    from scipy.special import stdtr

    (n, mean, square), (m, other, other_square) = _means(first), _means(second)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        t = numpy.abs(mean - other) / numpy.sqrt(square + other_square)
        freedom = (square + other_square) ** 2 / (square**2 / (n - 1.0) + other_square**2 / (m - 1.0))
        p = 2 * stdtr(numpy.where(freedom > 0, freedom, 1.0), -t)
    return numpy.where((n < 2) | (m < 2) | (mean == other), 1.0, p)


def _means(values: "numpy.ndarray") -> "tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]":
    """Return the counts, the means and the squares of their standard errors along the last axis, without NaN."""
    import numpy

    there = ~numpy.isnan(values)
    n, known = there.sum(-1), numpy.where(there, values, 0.0)
    mean = known.sum(-1) / numpy.maximum(n, 1)
    squares = (numpy.where(there, values - mean[..., None], 0.0) ** 2).sum(-1)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        return n, mean, squares / (n * (n - 1.0))


def p_of_pair(over_seeds: Sequence[float], over_images: "numpy.ndarray | None") -> float:
    """Return the larger p-value of the differences over seeds and over images; 1 where there are no two of either."""
    import numpy

    found = [values for values in (over_seeds, over_images) if values is not None and len(values) > 1]
    return max((float(p_values(numpy.asarray(values))) for values in found), default=1.0)


def holm(p: "numpy.ndarray", level: float = LEVEL) -> "numpy.ndarray":
    """Return which of m hypotheses Holm's step-down test rejects.

    With probability ``level`` it rejects no true hypothesis, whatever the dependence between the tests.
    Source: Holm 1979, A simple sequentially rejective multiple test procedure

    Args:
        p: p-values, (m,).
        level: 1 minus the largest probability of a false rejection.
    """
    import numpy

    order = numpy.argsort(p, kind="stable")
    passed = p[order] <= (1 - level) / numpy.arange(len(p), 0, -1)
    rejected = numpy.zeros(len(p), dtype=bool)
    rejected[order] = numpy.logical_and.accumulate(passed)
    return rejected
