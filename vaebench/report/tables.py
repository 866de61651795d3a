"""Tables of results: a row for each method, averaged over seeds, and notes for the reader."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from vaebench.config import PublishedResult, describe
from vaebench.direction import Direction
from vaebench.records import ResultRecord
from vaebench.records.text import counted
from vaebench.report.conditions import FOLLOWS_ENCODER, LOG_LIKELIHOOD, Conditions, Result
from vaebench.report.intervals import LEVEL, Difference
from vaebench.report.runs import Run, Scalar

__all__ = ["FACTS", "MOST_RANKED", "Row", "Table", "with_looser_marked"]

MOST_RANKED = 200
"""Rows of a table with ranks: with more rows, there are so many pairs that almost none could be told apart."""
MOST_UNRELIABLE = 0.1
"""The share of images with a k-hat above its limit, from which the bound of a row counts as looser."""
_K_HAT = "pareto_k_over_"
_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Row:
    """One method: runs that differ only in the seed, and their results under the table's conditions."""

    settings: Mapping[str, Scalar]
    results: Sequence[Result]
    """Sorted by seed."""
    rank: int | None = None
    """1 for the highest lower bounds on log p(x), shared by methods that cannot be told apart; None without a rank."""
    best: bool = False
    """Whether it is not told apart from the highest number of a table in which some methods are told apart."""
    better_than: int | None = None
    """The number of methods that are told to have a lower number; None without a rank."""
    looser: bool = False
    """Whether its bound is looser than others of the table; see `with_looser_marked`."""
    difference: Difference | None = None
    """From the baseline; None for the baseline, and for a method without one."""
    is_baseline: bool = False

    @property
    def method(self) -> str:
        return self.results[0].run.method

    @property
    def record(self) -> ResultRecord:
        """The record of the first seed, for the fields that all seeds share."""
        return self.results[0].record

    @property
    def log_q(self) -> Direction | None:
        """The direction of the log_q of the weighted draws; None where a record does not tell, or records differ."""
        found = {result.record.log_q for result in self.results}
        return found.pop() if len(found) == 1 else None

    @property
    def n(self) -> int:
        """Number of seeds."""
        return len(self.results)

    @property
    def seeds(self) -> list[int]:
        return [result.run.seed for result in self.results]

    @property
    def names(self) -> str | None:
        """The names that users gave its runs, ``-`` for runs without one; None if no run has a name."""
        found = dict.fromkeys(result.run.config.name for result in self.results)
        shown = ["-" if name is None else name for name in found]
        more = f" and {len(shown) - _NAMES_SHOWN} more" if len(shown) > _NAMES_SHOWN else ""
        return None if [*found] == [None] else ", ".join(shown[:_NAMES_SHOWN]) + more

    @property
    def mean(self) -> float:
        """Mean over seeds, nats per image."""
        return statistics.fmean(result.record.mean for result in self.results)

    @property
    def sd(self) -> float | None:
        """Standard deviation over seeds (n - 1 in the denominator), nats; None for one seed."""
        return statistics.stdev(result.record.mean for result in self.results) if self.n > 1 else None

    @property
    def stderr(self) -> float:
        """Standard error over images of one seed (root mean square over seeds), nats.

        All seeds are evaluated on the same images, so more seeds do not reduce it.
        """
        return math.sqrt(statistics.fmean(result.record.stderr**2 for result in self.results))

    @property
    def unfinished(self) -> list[Run]:
        return [result.run for result in self.results if result.run.state != "finished"]

    @property
    def stopped_early(self) -> list[Run]:
        return [result.run for result in self.results if result.run.stopped_early]

    @property
    def marks(self) -> str:
        """``*`` for runs that did not finish, ``^`` for runs that stopped early, ``!`` for a looser bound."""
        return "*" * bool(self.unfinished) + "^" * bool(self.stopped_early) + "!" * self.looser

    @property
    def wall_seconds(self) -> float | None:
        """Median over seeds of the seconds spent on a run, because one may stand still; None where one has none."""
        seconds = [result.run.wall_seconds for result in self.results]
        known = [value for value in seconds if value is not None]
        return statistics.median(known) if len(known) == len(seconds) else None

    @property
    def bits_per_dimension(self) -> float | None:
        """Mean over seeds of the bits per pixel and channel; None if images are not 8-bit ones."""
        return self._mean_of("bits_per_dimension")

    @property
    def ess(self) -> float | None:
        """Mean over images and seeds of the effective sample size of the k weights; None without weights."""
        return self._mean_of("ess")

    @property
    def k_hat_limit(self) -> str | None:
        """The largest reliable k-hat of k weights, for example ``0.7``; None if the estimator has no k-hat."""
        return next((key.removeprefix(_K_HAT) for key in self.record.extra if key.startswith(_K_HAT)), None)

    @property
    def k_hat_share(self) -> float | None:
        """Mean over seeds of the share of images with a k-hat above the limit, from 0 to 1."""
        return self._mean_of(f"{_K_HAT}{self.k_hat_limit}")

    @property
    def published(self) -> PublishedResult | None:
        """The published value of the experiment that all its runs have; None for other quantities and splits."""
        found = {run.config.published for run, _ in self.results}
        shown = self.record.quantity == LOG_LIKELIHOOD and self.record.split == "test" and len(found) == 1
        return found.pop() if shown else None

    def _mean_of(self, name: str) -> float | None:
        """Return the mean over seeds of a number in ``extra``; None where a record lacks it."""
        values = [result.record.extra.get(name) for result in self.results]
        known = [float(value) for value in values if isinstance(value, int | float)]
        return statistics.fmean(known) if len(known) == len(values) else None

    def facts(self) -> dict[str, Any]:
        """Return the value of every name in ``FACTS``."""
        return {name: fact(self) for name, fact in FACTS.items()}


def _difference(row: Row, name: str) -> Any:
    """Return the mean, or an end of the wider interval, of the difference from the baseline."""
    found = row.difference if row.difference is None or name == "mean" else row.difference.interval
    return None if found is None else getattr(found, name)


FACTS: dict[str, Callable[[Row], Any]] = {
    "rank": lambda row: row.rank,
    "better_than": lambda row: row.better_than,
    "best": lambda row: row.best,
    "difference": lambda row: _difference(row, "mean"),
    "difference_low": lambda row: _difference(row, "low"),
    "difference_high": lambda row: _difference(row, "high"),
    "told_apart": lambda row: row.difference and row.difference.told_apart,
    "direction": lambda row: row.record.direction,
    "mean": lambda row: row.mean,
    "sd": lambda row: row.sd,
    "n": lambda row: row.n,
    "stderr": lambda row: row.stderr,
    "ess": lambda row: row.ess,
    "k_hat_limit": lambda row: row.k_hat_limit and float(row.k_hat_limit),
    "k_hat_share": lambda row: row.k_hat_share,
    "looser": lambda row: row.looser,
    "published": lambda row: row.published and row.published.value,
    "published_error": lambda row: row.published and row.published.error,
    "published_source": lambda row: row.published and row.published.source,
    "published_checked": lambda row: row.published and row.published.checked,
    "published_protocol": lambda row: row.published and row.published.protocol,
    "seeds": lambda row: " ".join(map(str, row.seeds)),
    "estimator": lambda row: row.record.estimator,
    "log_q": lambda row: row.log_q,
    "proposal": lambda row: row.record.settings.get("proposal"),
    "initial": lambda row: row.record.settings.get("initial"),
    "result.k": lambda row: row.record.k,
    "result.inner_k": lambda row: row.record.inner_k,
    "split": lambda row: row.record.split,
    "protocol": lambda row: row.record.protocol,
    "n_images": lambda row: row.record.n_images,
    "quantity": lambda row: row.record.quantity,
    "measure": lambda row: row.record.measure,
    "bits_per_dimension": lambda row: row.bits_per_dimension,
    "epoch": lambda row: _span([result.record.epoch for result in row.results]),
    "wall_seconds": lambda row: row.wall_seconds,
    "evaluation_seconds": lambda row: statistics.fmean(result.record.seconds for result in row.results),
    "parameters": lambda row: row.results[0].run.parameters,
    "device": lambda row: row.results[0].run.manifest.get("device"),
    "method": lambda row: row.method,
    "name": lambda row: row.names,
    "unfinished": lambda row: len(row.unfinished),
    "stopped_early": lambda row: len(row.stopped_early),
}
"""The columns that are not settings, by name."""


@dataclass(frozen=True)
class Table:
    """Methods that may be compared, the best first, rows without a rank last."""

    conditions: Conditions
    rows: Sequence[Row]

    @property
    def runs(self) -> list[Run]:
        return [result.run for row in self.rows for result in row.results]

    def repeated_details(self) -> list[str]:
        """Return the details of the estimator in which rows of one method differ: without them, rows look the same."""
        of_method: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            of_method[row.method].append(row)

        def differs(name: str) -> bool:
            return any(len({str(FACTS[name](row)) for row in rows}) > 1 for rows in of_method.values())

        return [name for name in FOLLOWS_ENCODER if differs(name)]

    def notes(self) -> Iterator[str]:
        """Yield the facts that limit what the order of the rows means."""
        planned = self.conditions.epochs
        single = sum(row.n == 1 for row in self.rows)
        if single:
            which = "each method" if single == len(self.rows) else f"{single} of {len(self.rows)} methods"
            yield f"n=1 for {which}: the spread over seeds is unknown, so a difference may be due to the seed"
        yield from self._about_ranks()
        if self.looser:
            yield (
                "! marks a looser bound: log q(z|x) of its weights is an upper bound, or more than "
                f"{MOST_UNRELIABLE:.0%} of its images have a k-hat above the limit. A difference may be due to that"
            )
        if any(row.record.direction == "estimate" for row in self.rows):
            yield "~ marks an estimate that is not a bound: it has no rank"
        if self.conditions.quantity != LOG_LIKELIHOOD:
            yield f"sorted, but not ranked: a higher {self.conditions.quantity} is not necessarily better"
        if self.conditions.upper:
            yield "a higher upper bound does not mean a better model: these rows have no rank"
        if cut := [run.epochs_done for row in self.rows for run in row.unfinished]:
            yield f"{counted(len(cut), 'run')} (marked *) did not finish: {_span(cut)} of {planned} epochs"
        if early := [run.stopped_early["epoch"] for run in self.runs if run.stopped_early]:
            yield f"{counted(len(early), 'run')} (marked ^) stopped early: {_span(early)} of {planned} epochs"
        schedules = Counter(note for run in self.runs for note in describe.schedules_past_the_end(run.config))
        yield from (f"{counted(count, 'run')}: {note}" for note, count in schedules.items())
        for told in dict.fromkeys(row.published for row in self.rows if row.published):
            yield f"published {told.value:g}: {told.source}; {told.protocol}; checked: {told.checked}"
        for budget in sorted({run.config.budget for run in self.runs} - {1}):
            count = sum(run.config.budget == budget for run in self.runs)
            paper = "; a published number is of the whole training" if any(row.published for row in self.rows) else ""
            yield f"budget={budget:g} for {counted(count, 'run')}: lengths and schedules are scaled by it{paper}"
        yield from self._code()

    @property
    def looser(self) -> bool:
        return any(row.looser for row in self.rows)

    @property
    def baselines(self) -> list[Row]:
        """The methods from which the others differ; none without a baseline."""
        return [row for row in self.rows if row.is_baseline]

    def _about_ranks(self) -> Iterator[str]:
        """Yield what the ranks and the differences mean."""
        placed = [row for row in self.rows if row.rank is not None]
        if placed:
            pairs, apart = len(placed) * (len(placed) - 1) // 2, sum(row.better_than or 0 for row in placed)
            yield (
                f"#: methods share a rank if paired differences cannot tell them apart, or another method between them "
                f"(t-tests over common seeds and images, Holm's correction for {counted(pairs, 'pair')}, {LEVEL:.0%}); "
                f"{counted(apart, 'pair')} told apart"
            )
            if other_seeds := sum(not set(one.seeds) & set(other.seeds) for one, other in combinations(placed, 2)):
                yield f"{counted(other_seeds, 'pair')} without a common seed: Welch's test where both have several"
            if any(row.n == 1 for row in placed):
                yield "(#) marks a method with one seed: its rank is of one trained model, and never the first alone"
        elif len(self.rows) > MOST_RANKED:
            yield f"no ranks for {len(self.rows)} methods, only for at most {MOST_RANKED}: choose some with --filter"
        if found := [row.difference for row in self.rows if row.difference is not None]:
            yield (
                f"intervals of differences: the wider one of those over common seeds and images, {LEVEL:.0%} for "
                f"{counted(len(found), 'comparison')} together (Bonferroni's correction); told apart: by Holm's test"
            )
            if any(one.told_apart and one.interval and not one.interval.excludes_zero for one in found):
                yield "Holm's test is sharper than these intervals: it tells some apart whose interval contains 0"
            if single := sum(one.over_seeds is None for one in found):
                yield f"(yes), (no): {counted(single, 'difference')} over one common seed: of models, not of methods"

    def _code(self) -> Iterator[str]:
        states = [run.manifest.get("git") for run in self.runs]
        commits = {state["commit"][:8] for state in states if state and state.get("commit")}
        if len(commits) > 1:
            yield f"the runs were trained by {len(commits)} versions of the code: {', '.join(sorted(commits))}"


def _span(epochs: Sequence[float]) -> str:
    low, high = f"{min(epochs):.0f}", f"{max(epochs):.0f}"
    return low if low == high else f"{low} to {high}"


def with_looser_marked(rows: Sequence[Row]) -> list[Row]:
    """Mark the looser bounds, if bounds of unequal tightness stand in one table.

    A bound is looser if log q(z|x) of its weights is an upper bound, or if k-hat is too high for many images. Only
    lower bounds from weights are marked. Where one of them has no k-hat, it tells none of them from the others.
    """
    weighted = [row for row in rows if _is_weighted_bound(row)]
    limit = MOST_UNRELIABLE if all(row.k_hat_share is not None for row in weighted) else math.inf

    def is_looser(row: Row) -> bool:
        return row.log_q is Direction.UPPER_BOUND or (row.k_hat_share or 0.0) > limit

    if len({is_looser(row) for row in weighted}) < 2:
        return list(rows)
    return [replace(row, looser=_is_weighted_bound(row) and is_looser(row)) for row in rows]


def _is_weighted_bound(row: Row) -> bool:
    return row.record.direction is Direction.LOWER_BOUND and row.log_q is not None
