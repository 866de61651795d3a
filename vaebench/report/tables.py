"""Tables of results: a row for each method, seeds aggregated, and the notes that a reader needs."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vaebench.records import ResultRecord
from vaebench.report.likeness import FOLLOWS_ENCODER, LOG_LIKELIHOOD, Conditions, Result
from vaebench.report.runs import Run, Scalar

__all__ = ["FACTS", "Row", "Table"]

FACTS = (
    "rank",
    "direction",
    "mean",
    "sd",
    "n",
    "stderr",
    "seeds",
    "estimator",
    "proposal",
    "initial",
    "result.k",
    "result.inner_k",
    "split",
    "protocol",
    "n_images",
    "quantity",
    "epoch",
    "wall_seconds",
    "evaluation_seconds",
    "parameters",
    "device",
    "method",
    "unfinished",
)
"""What can be a column beside the settings; a row's value of each is in :meth:`Row.facts`."""


@dataclass(frozen=True)
class Row:
    """One method: runs that differ in nothing but the seed, and their results under the table's conditions."""

    settings: Mapping[str, Scalar]
    results: Sequence[Result]
    """Sorted by seed."""
    rank: int | None = None
    """From 1, the best lower bound on log p(x); None for estimates, which bound nothing, and for all else."""

    @property
    def method(self) -> str:
        return self.results[0].run.method

    @property
    def record(self) -> ResultRecord:
        """The first seed's record, for what all of them share."""
        return self.results[0].record

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
        """Standard deviation over seeds (n - 1), nats; None for one seed, which has no spread."""
        return statistics.stdev(result.record.mean for result in self.results) if self.n > 1 else None

    @property
    def stderr(self) -> float:
        """The estimator's own standard error, over images, of one seed (root mean square over seeds), nats.

        All seeds see the same images, so that more seeds do not make it smaller.
        """
        return math.sqrt(statistics.fmean(result.record.stderr**2 for result in self.results))

    @property
    def unfinished(self) -> list[Run]:
        return [result.run for result in self.results if result.run.state != "finished"]

    @property
    def epochs(self) -> tuple[float, float]:
        """The fewest and the most epochs that the weights in use were trained for."""
        epochs = [result.record.epoch for result in self.results]
        return min(epochs), max(epochs)

    @property
    def wall_seconds(self) -> float | None:
        """Mean over seeds of the seconds spent on a run; None where one did not record it."""
        seconds = [result.run.wall_seconds for result in self.results]
        known = [value for value in seconds if value is not None]
        return statistics.fmean(known) if len(known) == len(seconds) else None

    def facts(self) -> dict[str, Any]:
        """Return what can be a column beside the settings, by name."""
        record = self.record
        lowest, highest = self.epochs
        return {
            "rank": self.rank,
            "direction": record.direction,
            "mean": self.mean,
            "sd": self.sd,
            "n": self.n,
            "stderr": self.stderr,
            "seeds": " ".join(map(str, self.seeds)),
            "estimator": record.estimator,
            **{name: record.settings.get(name) for name in FOLLOWS_ENCODER},
            "result.k": record.k,
            "result.inner_k": record.inner_k,
            "split": record.split,
            "protocol": record.protocol,
            "n_images": record.n_images,
            "quantity": record.quantity,
            "epoch": f"{lowest:g}" if lowest == highest else f"{lowest:g} to {highest:g}",
            "wall_seconds": self.wall_seconds,
            "evaluation_seconds": statistics.fmean(result.record.seconds for result in self.results),
            "parameters": self.results[0].run.parameters,
            "device": self.results[0].run.manifest.get("device"),
            "method": self.method,
            "unfinished": len(self.unfinished),
        }


@dataclass(frozen=True)
class Table:
    """Methods that may be compared, best first; what is not ranked comes last."""

    conditions: Conditions
    rows: Sequence[Row]

    @property
    def runs(self) -> list[Run]:
        return [result.run for row in self.rows for result in row.results]

    def notes(self) -> Iterator[str]:
        """Yield what a reader must know before believing the order."""
        single = sum(row.n == 1 for row in self.rows)
        if single:
            which = "each method" if single == len(self.rows) else f"{single} of {len(self.rows)} methods"
            yield f"n=1 for {which}: there is no spread over seeds, so a difference may be the seed's luck"
        if any(row.record.direction == "estimate" for row in self.rows):
            yield "~ marks an estimate that bounds nothing: it has no rank among bounds"
        if self.conditions.quantity != LOG_LIKELIHOOD:
            yield f"sorted, but not ranked: of {self.conditions.quantity}, more is not better as such"
        if self.conditions.upper:
            yield "an upper bound that is higher is not a better model: these rows have no rank"
        if unfinished := [run for row in self.rows for run in row.unfinished]:
            done = [run.epochs_done for run in unfinished]
            span = f"{min(done):.0f}" if round(min(done)) == round(max(done)) else f"{min(done):.0f} to {max(done):.0f}"
            runs = _counted(len(unfinished), "run")
            yield f"{runs} (marked *) did not finish: {span} of {self.conditions.epochs} epochs"
        yield from self._code()

    def _code(self) -> Iterator[str]:
        states = [run.manifest.get("git") for run in self.runs]
        commits = {state["commit"][:8] for state in states if state and state.get("commit")}
        if len(commits) > 1:
            yield f"the runs were trained by {len(commits)} versions of the code: {', '.join(sorted(commits))}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
