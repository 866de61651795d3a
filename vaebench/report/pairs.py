"""Paired differences between two methods, over common seeds and over common images, with confidence intervals."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vaebench.errors import UserError
from vaebench.records import ResultRecord
from vaebench.report.differences import differing_settings
from vaebench.report.filters import Condition, all_hold, check_known, parse
from vaebench.report.tables import Row, Table

__all__ = ["LEVEL", "Interval", "NoPair", "Pair", "pairs", "t_interval"]

LEVEL = 0.95


class NoPair(UserError):
    """A table without two rows as asked; another table may have them."""


@dataclass(frozen=True)
class Interval:
    """A mean of differences and its t-interval of level ``LEVEL``, nats per image."""

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
class Pair:
    """``second`` minus ``first``: two methods that agree in all settings except the named ones."""

    first: Row
    second: Row
    seeds: Sequence[int]
    """The seeds that both methods have."""
    difference: float
    """Mean over these seeds, nats per image; positive where ``second`` has the higher number."""
    over_seeds: Interval | None
    """The uncertainty from training; None for one common seed."""
    over_images: Interval | None
    """The uncertainty from the choice of images, for these trained models; None without results per image."""

    @property
    def records(self) -> list[ResultRecord]:
        """The records of both methods."""
        return [result.record for row in (self.first, self.second) for result in row.results]

    @property
    def narrowest(self) -> float | None:
        """Half of the width of the narrower interval, nats; None without an interval."""
        return min((interval.half for interval in (self.over_seeds, self.over_images) if interval), default=None)

    @property
    def of_bounds(self) -> bool:
        """Whether both numbers are bounds (or exact), and neither is an estimate."""
        return "estimate" not in (self.first.record.direction, self.second.record.direction)


def pairs(table: Table, first: str, second: str) -> list[Pair]:
    """Return the pairs of rows of ``table`` in which one row meets ``first`` and the other meets ``second``.

    Both are conditions such as ``encoder=gaussian`` or ``encoder=hvm,k=5``. The two rows agree in every setting that
    neither condition names. A condition on a choice, for example the encoder, includes the settings of that choice.

    Raises:
        NoPair: there are no two such rows; the message says why.
        UserError: a condition is invalid, or a file of results per image is corrupt.
    """
    one, other = parse(first), parse(second)
    try:
        check_known((c.key for c in [*one, *other]), {key for row in table.rows for key in row.settings})
    except UserError as error:
        raise NoPair(str(error)) from error
    left = [row for row in table.rows if all_hold(one, row.settings)]
    right = [row for row in table.rows if all_hold(other, row.settings)]
    named = {condition.key for condition in [*one, *other]}
    found = [pair for a in left for b in right if a is not b and not _others(a, b, named) for pair in _pair(a, b)]
    if not found:
        raise NoPair(_why_none(left, right, one, other, named))
    return found


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the mean of ``values`` with Student's interval for it. ValueError for fewer than two values."""
    if len(values) < 2:
        raise ValueError("an interval needs at least two values")
    from scipy.special import stdtrit  # here, because a table without pairs does not need it

    mean, n = statistics.fmean(values), len(values)
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def _pair(first: Row, second: Row) -> Iterator[Pair]:
    """Yield the pair, if the two have a seed in common."""
    means = [{result.run.seed: result.record.mean for result in row.results} for row in (first, second)]
    seeds = sorted(means[0].keys() & means[1].keys())
    if seeds:
        differences = [means[1][seed] - means[0][seed] for seed in seeds]
        interval = t_interval(differences) if len(seeds) > 1 else None
        yield Pair(first, second, seeds, statistics.fmean(differences), interval, _over_images(first, second, seeds))


def _over_images(first: Row, second: Row, seeds: Sequence[int]) -> Interval | None:
    """Return the interval over images of the difference averaged over seeds; None without results per image.

    The results of two methods on one image are correlated, so this interval is far narrower than the two errors over
    images suggest.
    """
    import numpy  # here, because a table without pairs does not need it

    from vaebench.records import read_per_image

    signed = [(sign, result) for row, sign in ((second, 1.0), (first, -1.0)) for result in row.results]
    signed = [(sign, result) for sign, result in signed if result.run.seed in seeds]
    if any(result.record.per_image is None for _, result in signed):
        return None
    found = [(sign, read_per_image(result.run.folder, result.record)) for sign, result in signed]
    images = found[0][1].images
    if len(images) < 2 or not all(numpy.array_equal(numbers.images, images) for _, numbers in found):
        return None
    differences = numpy.sum([sign * numbers.values for sign, numbers in found], axis=0) / len(seeds)
    return t_interval(differences.tolist())


def _others(first: Row, second: Row, named: set[str]) -> list[str]:
    """Return the settings in which two rows differ, without the named settings and the settings of a named choice."""
    return [
        key
        for key in differing_settings([first.settings, second.settings])
        if key not in named and key.partition(".")[0] not in named
    ]


def _why_none(
    left: Sequence[Row], right: Sequence[Row], one: list[Condition], other: list[Condition], named: set[str]
) -> str:
    for rows, conditions in ((left, one), (right, other)):
        if not rows:
            return f"no row of the table has {', '.join(map(str, conditions))}, so there is no pair"
    candidates = [(a, b) for a in left for b in right if a is not b]
    if any(not _others(a, b, named) for a, b in candidates):
        return "the two methods have no seed in common: train both with the same seeds"
    if not candidates:
        return "both conditions select the same row: give conditions on two different rows"
    closest = min((_others(a, b, named) for a, b in candidates), key=len)
    return f"no two rows agree in all other settings: they also differ in {', '.join(closest)}; name these settings too"
