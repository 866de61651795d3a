"""Paired differences between two methods, over common seeds and over common images, with confidence intervals."""

import statistics
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from vaebench.direction import Direction
from vaebench.errors import UserError
from vaebench.records import ResultRecord
from vaebench.report.conditions import Result
from vaebench.report.differences import differing_settings
from vaebench.report.filters import Condition, all_hold, check_known, parse
from vaebench.report.intervals import LEVEL, Interval, t_interval
from vaebench.report.tables import MOST_RANKED, Row, Table

if TYPE_CHECKING:
    import numpy

__all__ = [
    "ImageReader",
    "NoPair",
    "Pair",
    "agreeing",
    "by_image",
    "by_seed",
    "other_settings",
    "paired",
    "pairs",
    "row_pairs",
]


_MOST_KEPT = 2 * MOST_RANKED
"""Averages of rows that a reader keeps: more than a table with ranks needs, so that each file is read once."""


_MOST_TRIED = 1000
"""Pairs of rows in which a message looks for the two that differ least: there may be millions."""


class NoPair(UserError):
    """A table without two rows as asked; another table may have them."""


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
    comparisons: int = 1
    """The pairs whose intervals hold together, each at the level that Bonferroni's correction gives."""

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
        return Direction.ESTIMATE not in (self.first.record.direction, self.second.record.direction)


def pairs(table: Table, first: str, second: str) -> list[Pair]:
    """Return the pairs of rows of ``table`` in which one row meets ``first`` and the other meets ``second``.

    Both are conditions such as ``encoder=gaussian`` or ``encoder=hvm,k=5``. The two rows agree in every setting that
    neither condition names. A condition on a choice, for example the encoder, includes the settings of that choice.
    The intervals of several pairs hold together: their level is corrected for the number of pairs.

    Raises:
        NoPair: there are no two such rows; the message says why.
        UserError: a condition is invalid, or a file of results per image is corrupt.
    """
    return paired(row_pairs(table, first, second))


def row_pairs(table: Table, first: str, second: str) -> list[tuple[Row, Row]]:
    """Return the rows of `pairs`, with the same errors, without reading results per image."""
    one, other = parse(first), parse(second)
    try:
        check_known((c.key for c in [*one, *other]), {key for row in table.rows for key in row.settings})
    except UserError as error:
        raise NoPair(str(error)) from error
    left = [row for row in table.rows if all_hold(one, row.settings)]
    right = [row for row in table.rows if all_hold(other, row.settings)]
    named = {condition.key for condition in [*one, *other]}
    alike: dict[object, list[Row]] = defaultdict(list)
    for row in right:
        alike[agreeing(row, named)].append(row)
    found = [(a, b) for a in left for b in alike[agreeing(a, named)] if a is not b and by_seed(a, b)]
    if not found:
        raise NoPair(_why_none(left, right, one, other, named))
    return found


def paired(rows: Sequence[tuple[Row, Row]]) -> list[Pair]:
    """Return the differences of several pairs of rows with common seeds, with intervals that hold together.

    Raises:
        UserError: a file of results per image is corrupt.
    """
    reader, level = ImageReader(), 1 - (1 - LEVEL) / max(1, len(rows))
    found = []
    for first, second in rows:
        seeds, images = by_seed(first, second), by_image(first, second, reader)
        differences = list(seeds.values())
        found.append(
            Pair(
                first,
                second,
                list(seeds),
                statistics.fmean(differences),
                t_interval(differences, level) if len(differences) > 1 else None,
                None if images is None else t_interval(images.tolist(), level),
                len(rows),
            )
        )
    return found


class ImageReader:
    """Reads the results of each image, and keeps the averages over seeds of the last few rows."""

    def __init__(self) -> None:
        self._averages: OrderedDict[object, tuple[numpy.ndarray, numpy.ndarray] | None] = OrderedDict()
        self.faults: dict[str, None] = {}
        """The messages about corrupt files, each once."""

    def average(self, row: Row, seeds: Sequence[int]) -> "tuple[numpy.ndarray, numpy.ndarray] | None":
        """Return the images of ``row``, (N,), and their results averaged over ``seeds``, (N,).

        None if a seed has no results per image, or seeds have other images. UserError if a file is corrupt.
        """
        wanted = set(seeds)
        chosen = [result for result in row.results if result.run.seed in wanted]
        key = tuple((result.run.folder.path, result.record.per_image) for result in chosen)
        if key in self._averages:
            self._averages.move_to_end(key)
        else:
            self._averages[key] = _average(chosen)
            if len(self._averages) > _MOST_KEPT:
                self._averages.popitem(last=False)
        return self._averages[key]


def _average(results: Sequence[Result]) -> "tuple[numpy.ndarray, numpy.ndarray] | None":
    import numpy  # here, because a table of one method does not need it

    from vaebench.records import read_per_image

    if any(record.per_image is None for _, record in results):
        return None
    images, total = None, None
    for run, record in results:  # one file after another: there may be thousands
        found = read_per_image(run.folder, record, diagnostics=False)
        if images is not None and not numpy.array_equal(found.images, images):
            return None
        images, total = found.images, found.values if total is None else total + found.values
    return None if images is None or total is None else (images, total / len(results))


def by_seed(first: Row, second: Row) -> dict[int, float]:
    """Return ``second`` minus ``first`` for each common seed, in nats per image."""
    means = [{result.run.seed: result.record.mean for result in row.results} for row in (first, second)]
    return {seed: means[1][seed] - means[0][seed] for seed in sorted(means[0].keys() & means[1].keys())}


def by_image(first: Row, second: Row, reader: ImageReader, *, unpaired: bool = False) -> "numpy.ndarray | None":
    """Return ``second`` minus ``first`` for each image, (N,), averaged over the common seeds, in nats.

    The results of two methods on one image are correlated, so these differences vary far less than the results. None
    without a common seed, without results per image, and for other images or fewer than two.

    Args:
        unpaired: where there is no common seed, average each method over its own seeds.

    Raises:
        UserError: a file of results per image is corrupt.
    """
    import numpy

    seeds = list(by_seed(first, second))
    if not (seeds or unpaired):
        return None
    one, other = (reader.average(row, seeds or row.seeds) for row in (first, second))
    if one is None or other is None or len(one[0]) < 2 or not numpy.array_equal(one[0], other[0]):
        return None
    return other[1] - one[1]


def agreeing(row: Row, named: set[str]) -> frozenset[tuple[str, object]]:
    """Return the settings in which two rows of a pair agree: those that `other_settings` looks at; null is missing."""
    return frozenset(
        (key, value)
        for key, value in row.settings.items()
        if value is not None and key not in named and key.partition(".")[0] not in named
    )


def other_settings(first: Row, second: Row, named: set[str]) -> list[str]:
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
    alike: dict[object, set[int]] = defaultdict(set)
    for row in left:
        alike[agreeing(row, named)].add(id(row))
    if any(alike[agreeing(row, named)] - {id(row)} for row in right):
        return "the two methods have no seed in common: train both with the same seeds"
    candidates = list(islice(((a, b) for a in left for b in right if a is not b), _MOST_TRIED))
    if not candidates:
        return "both conditions select the same row: give conditions on two different rows"
    closest = min((other_settings(a, b, named) for a, b in candidates), key=len)
    return f"no two rows agree in all other settings: they also differ in {', '.join(closest)}; name these settings too"
