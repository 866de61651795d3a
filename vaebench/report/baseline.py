"""Differences of all methods of a table from a baseline."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from vaebench.direction import Direction
from vaebench.report.filters import all_hold, check_known, parse
from vaebench.report.intervals import LEVEL, Difference, holm, p_of_pair, t_interval
from vaebench.report.pairs import ImageReader, agreeing, by_image, by_seed
from vaebench.report.tables import Row

__all__ = ["with_differences", "with_differences_from_first"]


def with_differences(rows: Sequence[Row], baseline: str, reader: ImageReader) -> list[Row]:
    """Return the rows with their differences from the baseline, or as they are if no row is a baseline.

    If several rows meet the condition, each row is compared to the one that agrees with it in all settings that the
    condition does not name. The intervals hold together: their level is corrected for the number of comparisons.

    Args:
        rows: of one table.
        baseline: a condition such as ``encoder=gaussian`` or ``encoder=gaussian,k=1``.
        reader: of the results per image.

    Raises:
        UserError: the condition is invalid, or a file of results per image is corrupt.
    """
    conditions = parse(baseline)
    check_known((condition.key for condition in conditions), {key for row in rows for key in row.settings})
    chosen = {id(row): row for row in rows if all_hold(conditions, row.settings)}
    named = {condition.key for condition in conditions}
    by_others: dict[object, list[Row]] = defaultdict(list)
    for row in chosen.values():
        by_others[agreeing(row, named)].append(row)
    compared: list[tuple[Row, Row]] = []
    for row in rows:
        alike = list(chosen.values()) if len(chosen) == 1 else by_others[agreeing(row, named)]
        if id(row) not in chosen and len(alike) == 1 and by_seed(alike[0], row):
            compared.append((alike[0], row))
    found = {id(row): one for (_, row), one in zip(compared, _differences(compared, reader), strict=True)}
    return [replace(row, difference=found.get(id(row)), is_baseline=id(row) in chosen) for row in rows]


def with_differences_from_first(rows: Sequence[Row], reader: ImageReader) -> list[Row]:
    """Return ranked rows with their differences from the first row; the others as they are.

    The numbers choose the first row. So the intervals hold for all pairs of ranked rows together, and the verdicts are
    those of the ranks.

    Args:
        rows: of one table, as `vaebench.report.ranking.ranked` returns them.
        reader: of the results per image.

    Raises:
        UserError: a file of results per image is corrupt.
    """
    placed = [row for row in rows if row.rank is not None]
    if len(placed) < 2:
        return list(rows)
    first, apart = placed[0], any(row.best for row in placed)
    compared = [(first, row) for row in placed[1:] if by_seed(first, row)]
    differences = _differences(compared, reader, comparisons=len(placed) * (len(placed) - 1) // 2)
    found = {
        id(row): replace(one, told_apart=apart and not row.best)
        for (_, row), one in zip(compared, differences, strict=True)
    }
    return [replace(row, difference=found.get(id(row))) for row in rows]


def _differences(
    compared: Sequence[tuple[Row, Row]], reader: ImageReader, *, comparisons: int | None = None
) -> list[Difference]:
    """Return second minus first of each pair, with intervals of a common level and Holm's verdict.

    The level holds for ``comparisons`` intervals together, by default for those of the pairs.
    """
    if not compared:
        return []
    import numpy

    level = 1 - (1 - LEVEL) / (comparisons or len(compared))
    seeds = [list(by_seed(*pair).values()) for pair in compared]
    images = [by_image(*pair, reader) for pair in compared]
    p = [p_of_pair(*both) for both in zip(seeds, images, strict=True)]
    return [
        Difference(
            statistics.fmean(of_seeds),
            t_interval(of_seeds, level) if len(of_seeds) > 1 else None,
            None if of_images is None else t_interval(of_images.tolist(), level),
            bool(apart),
            Direction.ESTIMATE not in (first.record.direction, second.record.direction),
        )
        for (first, second), of_seeds, of_images, apart in zip(
            compared, seeds, images, holm(numpy.array(p)), strict=True
        )
    ]
