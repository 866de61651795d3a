"""Ranks that the statistics support: methods that paired differences cannot tell apart share a rank.

Every two methods are compared over their common seeds, where there are several, and over their common images. Both
differences have to differ from zero. Without a common seed, Welch's test compares their seeds. Holm's correction is
over all pairs of the table. So with a probability of at least 95 % no rank separates two equal methods.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vaebench.errors import UserError
from vaebench.report.conditions import LOG_LIKELIHOOD
from vaebench.report.intervals import LEVEL, holm, p_values, p_values_unpaired
from vaebench.report.pairs import ImageReader, by_image
from vaebench.report.tables import MOST_RANKED, Row

if TYPE_CHECKING:
    import numpy

__all__ = ["can_be_ranked", "ranked", "ranks", "told_apart"]

PValue = Callable[[int, int], float | None]
"""The p-value of the difference between two rows over their common images; None without common images."""


def ranked(rows: Sequence[Row], reader: ImageReader) -> list[Row]:
    """Sort the rows, highest first, and rank those that can be ranked; a table of one method has no rank.

    A pair with a corrupt file of results per image is not told apart.
    """
    highest_first = sorted(rows, key=lambda row: -row.mean)
    others = [row for row in highest_first if not can_be_ranked(row)]
    chosen = [row for row in highest_first if can_be_ranked(row)]
    if not 1 < len(chosen) <= MOST_RANKED:
        return [*chosen, *others]
    import numpy

    apart, tested = _told_apart(chosen, reader)
    placed = numpy.flatnonzero(tested.any(0))
    if not len(placed):
        return [*chosen, *others]
    apart = apart[numpy.ix_(placed, placed)]
    found, told = ranks(apart), apart.copy()
    if found.count(1) == 1 and chosen[placed[0]].n == 1:  # one training does not make a method the first
        apart[0, 1] = apart[1, 0] = False
        found = ranks(apart)
    best = ~apart[0] & apart.any()
    for i, row in enumerate(placed):
        beaten = int(told[i, i:].sum())
        chosen[row] = replace(chosen[row], rank=found[i], best=bool(best[i]), better_than=beaten)
    return [*chosen, *others]


def can_be_ranked(row: Row) -> bool:
    """Whether a higher number is better: of lower bounds on log p(x) it is, of gaps or upper bounds it is not."""
    return row.record.quantity == LOG_LIKELIHOOD and row.record.direction in ("lower_bound", "exact")


def _told_apart(rows: Sequence[Row], reader: ImageReader) -> "tuple[numpy.ndarray, numpy.ndarray]":
    import numpy

    seeds = sorted({seed for row in rows for seed in row.seeds})
    by_seed = numpy.full((len(rows), len(seeds)), numpy.nan)
    for place, row in zip(by_seed, rows, strict=True):
        place[numpy.searchsorted(seeds, row.seeds)] = [result.record.mean for result in row.results]

    def over_images(first: int, second: int) -> float | None:
        try:
            found = by_image(rows[first], rows[second], reader, unpaired=True)
        except UserError as error:
            reader.faults[str(error)] = None
            return 1.0
        return None if found is None else float(p_values(found))

    return told_apart(by_seed, over_images)


def told_apart(
    by_seed: "numpy.ndarray", over_images: PValue, level: float = LEVEL
) -> "tuple[numpy.ndarray, numpy.ndarray]":
    """Return which of M methods paired differences tell apart, and which were tested; both (M, M) and symmetric.

    Two methods are tested if they have images or several seeds in common, or several seeds each and none in common.

    Args:
        by_seed: the number of each method for each seed, (M, S), in nats; NaN where there is none.
        over_images: see `PValue`. It is called only for pairs that the seeds leave open.
        level: the least probability that all pairs that are told apart differ.
    """
    import numpy

    first, second = numpy.triu_indices(len(by_seed), 1)
    differences = by_seed[first] - by_seed[second]
    common = (~numpy.isnan(differences)).sum(-1)
    p, several = p_values(differences), common > 1
    unpaired = numpy.flatnonzero(common == 0)
    p[unpaired] = p_values_unpaired(by_seed[first[unpaired]], by_seed[second[unpaired]])
    counts = (~numpy.isnan(by_seed)).sum(-1)
    several[unpaired] = numpy.minimum(counts[first], counts[second])[unpaired] > 1
    # A larger p-value never makes Holm's test reject more: only pairs that the seeds tell apart need their images.
    open_pairs = numpy.flatnonzero(several)[holm(p[several], level)]
    tested = several.copy()
    for pair in [*open_pairs, *numpy.flatnonzero(~several)]:
        found = over_images(int(first[pair]), int(second[pair]))
        if found is not None:
            p[pair], tested[pair] = max(p[pair] if several[pair] else 0.0, found), True
    rejected = tested.copy()
    rejected[tested] = holm(p[tested], level)
    apart, both = numpy.zeros((2, len(by_seed), len(by_seed)), dtype=bool)
    apart[first, second] = apart[second, first] = rejected
    both[first, second] = both[second, first] = tested
    return apart, both


def ranks(apart: "numpy.ndarray") -> list[int]:
    """Return a rank for each of M methods, sorted from the best to the worst: 1, 1, 3, for example.

    A method starts another rank if it and all methods after it are told apart from all methods before it.
    """
    return list(_ranks([int((~row[: i + 1]).argmax()) for i, row in enumerate(apart)]))


def _ranks(first_alike: Sequence[int]) -> Iterator[int]:
    """Yield the ranks; ``first_alike`` is the first method from which each method is not told apart."""
    reach = list(first_alike)
    for i in range(len(reach) - 2, -1, -1):
        reach[i] = min(reach[i], reach[i + 1])
    rank = 1
    for i, lowest in enumerate(reach):
        rank = i + 1 if lowest >= i else rank
        yield rank
