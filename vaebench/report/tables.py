"""Tables of results: a row for each method, averaged over seeds, and notes for the reader."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vaebench.config import describe
from vaebench.direction import Direction
from vaebench.records import ResultRecord
from vaebench.records.text import counted
from vaebench.report.conditions import FOLLOWS_ENCODER, LOG_LIKELIHOOD, Conditions, Result
from vaebench.report.runs import Run, Scalar

__all__ = ["FACTS", "Row", "Table"]


@dataclass(frozen=True)
class Row:
    """One method: runs that differ only in the seed, and their results under the table's conditions."""

    settings: Mapping[str, Scalar]
    results: Sequence[Result]
    """Sorted by seed."""
    rank: int | None = None
    """1 for the best lower bound on log p(x); None for results that cannot be ranked."""

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
        """``*`` for runs that did not finish, ``^`` for runs that stopped early."""
        return "*" * bool(self.unfinished) + "^" * bool(self.stopped_early)

    @property
    def wall_seconds(self) -> float | None:
        """Mean over seeds of the seconds spent on a run; None where a run did not record them."""
        seconds = [result.run.wall_seconds for result in self.results]
        known = [value for value in seconds if value is not None]
        return statistics.fmean(known) if len(known) == len(seconds) else None

    @property
    def bits_per_dimension(self) -> float | None:
        """Mean over seeds of the bits per pixel and channel; None if images are not 8-bit ones."""
        bits = [result.record.extra.get("bits_per_dimension") for result in self.results]
        known = [value for value in bits if value is not None]
        return statistics.fmean(known) if known and len(known) == len(bits) else None

    def facts(self) -> dict[str, Any]:
        """Return the value of every name in ``FACTS``."""
        return {name: fact(self) for name, fact in FACTS.items()}


FACTS: dict[str, Callable[[Row], Any]] = {
    "rank": lambda row: row.rank,
    "direction": lambda row: row.record.direction,
    "mean": lambda row: row.mean,
    "sd": lambda row: row.sd,
    "n": lambda row: row.n,
    "stderr": lambda row: row.stderr,
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
        rows = itertools.combinations(self.rows, 2)
        pairs = [(a.facts(), b.facts()) for a, b in rows if a.method == b.method]
        return [name for name in FOLLOWS_ENCODER if any(a[name] != b[name] for a, b in pairs)]

    def notes(self) -> Iterator[str]:
        """Yield the facts that limit what the order of the rows means."""
        planned = self.conditions.epochs
        single = sum(row.n == 1 for row in self.rows)
        if single:
            which = "each method" if single == len(self.rows) else f"{single} of {len(self.rows)} methods"
            yield f"n=1 for {which}: the spread over seeds is unknown, so a difference may be due to the seed"
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
        yield from self._code()

    def _code(self) -> Iterator[str]:
        states = [run.manifest.get("git") for run in self.runs]
        commits = {state["commit"][:8] for state in states if state and state.get("commit")}
        if len(commits) > 1:
            yield f"the runs were trained by {len(commits)} versions of the code: {', '.join(sorted(commits))}"


def _span(epochs: Sequence[float]) -> str:
    low, high = f"{min(epochs):.0f}", f"{max(epochs):.0f}"
    return low if low == high else f"{low} to {high}"
