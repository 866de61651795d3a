"""Results side by side: seeds aggregated, only like with like, and whatever is left out is said.

Two results are alike when they are of one quantity on the same images under one protocol, by the same estimator with
the same effort, of models trained for the same number of epochs. Each set of such conditions is a table of its own.
What an estimator takes from the encoder is the row's and not the table's: the name IWAE or DIWHVI (the latter with an
exact density is the former), whose draws are weighed, what annealing starts from. A number of inner samples must agree
among the rows that have one; an exact density has none, and stands in the table of each.
"""

import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vaebench.errors import UserError, did_you_mean
from vaebench.records import ResultRecord
from vaebench.report.filters import chosen
from vaebench.report.runs import LeftOut, Run, Scalar, read_runs

__all__ = [
    "FACTS",
    "Comparison",
    "Conditions",
    "Result",
    "Row",
    "Table",
    "check_columns",
    "compare",
    "compare_runs",
]

_SAME_ESTIMATOR = {"IWAE": "IWAE/DIWHVI", "DIWHVI": "IWAE/DIWHVI"}
_FOLLOWS_ENCODER = ("proposal", "initial")
_SIMULATED = "simulated"
LOG_LIKELIHOOD = "log p(x)"

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


class Result(NamedTuple):
    """One run's result."""

    run: Run
    record: ResultRecord


@dataclass(frozen=True)
class Conditions:
    """What must agree for two results to stand in one table."""

    quantity: str
    split: str
    protocol: str
    fingerprint: str | None
    """Of the data themselves; None where a run did not record it."""
    n_images: int
    repeats: int
    estimator: str
    k: int | None
    inner_k: int | None
    """Of the rows that have inner samples."""
    settings: tuple[tuple[str, str], ...]
    epochs: int
    """The budget, trainer.epochs."""
    upper: bool
    """Whether the numbers are upper bounds, which rank nothing."""

    @classmethod
    def of(cls, result: Result) -> "Conditions":
        run, record = result
        settings = {k: json.dumps(v) for k, v in record.settings.items() if k not in _FOLLOWS_ENCODER}
        return cls(
            quantity=record.quantity,
            split=record.split,
            protocol=record.protocol,
            fingerprint=run.manifest.get("dataset", {}).get("fingerprint"),
            n_images=record.n_images,
            repeats=record.repeats,
            estimator=_SAME_ESTIMATOR.get(record.estimator, record.estimator),
            k=record.k,
            inner_k=record.inner_k,
            settings=tuple(sorted(settings.items())),
            epochs=run.config.trainer.epochs,
            upper=record.direction == "upper_bound",
        )

    def without_inner(self) -> "Conditions":
        return self.with_inner(None)

    def with_inner(self, inner_k: int | None) -> "Conditions":
        return Conditions(**{**self.__dict__, "inner_k": inner_k})

    def title(self) -> str:
        """Return what the numbers of the table are, for example ``test log p(x), mnist/dynamic-v1``."""
        return f"{self.split} {self.quantity}, {self.protocol}"

    def words(self) -> list[str]:
        """Return the further conditions, each in a few words."""
        words = [f"{self.n_images:,} image{'s' * (self.n_images != 1)}", self.estimator]
        numbers = {"k": self.k, "inner_k": self.inner_k, **dict(self.settings)}
        words += [f"{name}={value}" for name, value in numbers.items() if value is not None]
        words += [f"{self.repeats} repeats"] if self.repeats > 1 else []
        words += ["upper bounds"] if self.upper else []
        return [*words, f"trainer.epochs={self.epochs}"]

    def facts(self) -> dict[str, Any]:
        """Return everything, for programs."""
        return {**self.__dict__, "settings": {name: json.loads(text) for name, text in self.settings}}


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
            **{name: record.settings.get(name) for name in _FOLLOWS_ENCODER},
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


@dataclass(frozen=True)
class Comparison:
    """Tables, the largest first, and what is in none of them."""

    tables: Sequence[Table]
    left_out: Sequence[LeftOut] = ()
    filtered: int = 0
    """Runs that the filters took away."""
    notes: Sequence[str] = field(default=())

    @property
    def rows(self) -> list[Row]:
        """The rows of all tables."""
        return [row for table in self.tables for row in table.rows]

    @property
    def runs(self) -> list[Run]:
        """Every run in some table, once, in the order of the tables."""
        seen = {run.folder.path: run for table in self.tables for run in table.runs}
        return list(seen.values())


def compare(
    paths: Iterable[str | Path],
    *,
    filters: Sequence[str] = (),
    quantity: str = LOG_LIKELIHOOD,
    unfinished: bool = False,
) -> Comparison:
    """Compare the runs at or below ``paths``.

    Args:
        paths: run folders, or folders of runs.
        filters: conditions that must all hold, as in ``encoder=gaussian,hvm`` or ``k>=5``.
        quantity: of the results to compare.
        unfinished: whether runs that did not finish are compared too, marked, where they have a result.

    Raises:
        UserError: a path holds no run, or a filter names a setting that no run has.
    """
    runs, damaged = read_runs(paths)
    return compare_runs(runs, damaged, filters=filters, quantity=quantity, unfinished=unfinished)


def compare_runs(
    runs: Sequence[Run],
    damaged: Sequence[LeftOut] = (),
    *,
    filters: Sequence[str] = (),
    quantity: str = LOG_LIKELIHOOD,
    unfinished: bool = False,
) -> Comparison:
    """Compare runs that were read already; otherwise as :func:`compare`."""
    kept = chosen(runs, filters)
    results, without = _results(kept, quantity, unfinished=unfinished)
    results, doubled = _once(results)
    tables = sorted(_tables(results), key=lambda table: -len(table.runs))
    left_out = [*damaged, *without, *doubled]
    return Comparison(tables, left_out, len(runs) - len(kept), list(_why_several(tables)))


def _results(runs: Sequence[Run], quantity: str, *, unfinished: bool) -> tuple[list[Result], list[LeftOut]]:
    """Return the results that can be compared, and the runs that have none."""
    results: list[Result] = []
    left_out: list[LeftOut] = []
    for run in runs:
        reason = _why_not(run, quantity, unfinished=unfinished)
        if reason:
            left_out.append(LeftOut(run.folder.path, reason))
        else:
            results += [Result(run, record) for record in _latest(run, quantity)]
    return results, left_out


def _why_not(run: Run, quantity: str, *, unfinished: bool) -> str | None:
    """Why a run has no result to compare, or None."""
    records = [record for record in run.results if record.quantity == quantity]
    if run.state != "finished" and not (unfinished and records):
        return _how_it_stands(run)
    if not run.results:
        return "it has no result: `vaebench evaluate` it"
    if not records:
        return f"it has no result of {quantity}, only of {', '.join(sorted({r.quantity for r in run.results}))}"
    if all(record.split == _SIMULATED for record in records):
        return "its only results are on images that its own model simulated, which no other model shares"
    return None


def _how_it_stands(run: Run) -> str:
    if run.state == "not started":
        return "it never started"
    where = f"{run.state} at epoch {run.epochs_done:.4g} of {run.config.trainer.epochs}"
    error = run.status.error if run.status else None
    evaluated = ", with a result (--unfinished shows it)" if run.results else ""
    return where + evaluated + (f": {error}" if error else "")


def _latest(run: Run, quantity: str) -> list[ResultRecord]:
    """The results of one run, each with the weights of the latest epoch it was estimated for."""
    latest: dict[tuple[object, ...], ResultRecord] = {}
    for record in run.results:
        if record.quantity == quantity and record.split != _SIMULATED:
            key = (Conditions.of(Result(run, record)), record.direction)
            if key not in latest or record.epoch >= latest[key].epoch:
                latest[key] = record
    return list(latest.values())


def _once(results: Sequence[Result]) -> tuple[list[Result], list[LeftOut]]:
    """Leave out a run that repeats another one's configuration and seed; the latest stays."""
    places: dict[tuple[str, int], Run] = {}
    for run, _ in results:
        other = places.setdefault((run.method, run.seed), run)
        if _updated(run) > _updated(other):
            places[run.method, run.seed] = run
    kept = [result for result in results if places[result.run.method, result.run.seed] is result.run]
    repeated = (
        {r.run.folder.path: places[r.run.method, r.run.seed] for r in results} if len(kept) < len(results) else {}
    )
    return kept, [
        LeftOut(path, f"it repeats {stays.folder.path}: the same configuration and seed")
        for path, stays in repeated.items()
        if path != stays.folder.path
    ]


def _updated(run: Run) -> str:
    return run.status.updated if run.status else ""


def _tables(results: Iterable[Result]) -> Iterator[Table]:
    """Yield one table for each set of conditions."""
    alike: dict[Conditions, list[tuple[int | None, Result]]] = defaultdict(list)
    for result in results:
        conditions = Conditions.of(result)
        alike[conditions.without_inner()].append((conditions.inner_k, result))
    for conditions, pairs in alike.items():
        inner = sorted({inner_k for inner_k, _ in pairs if inner_k is not None}) or [None]
        for inner_k in inner:
            # An exact density needs no inner samples, and can stand beside any number of them.
            chosen = [result for own, result in pairs if own in (None, inner_k)]
            yield Table(conditions.with_inner(inner_k), _ranked(_rows(chosen)))


def _rows(results: Iterable[Result]) -> list[Row]:
    methods: dict[tuple[object, ...], list[Result]] = defaultdict(list)
    for result in results:
        follows = tuple(result.record.settings.get(name) for name in _FOLLOWS_ENCODER)
        methods[result.run.method, result.record.estimator, result.record.direction, *follows].append(result)
    return [
        Row(results[0].run.settings, sorted(results, key=lambda result: result.run.seed))
        for results in methods.values()
    ]


def _ranked(rows: Iterable[Row]) -> list[Row]:
    """Sort the rows, highest first, and count those that can be ranked."""
    highest_first = sorted(rows, key=lambda row: -row.mean)
    ranked = [row for row in highest_first if _can_be_ranked(row.record)]
    others = [row for row in highest_first if not _can_be_ranked(row.record)]
    return [Row(row.settings, row.results, rank) for rank, row in enumerate(ranked, start=1)] + others


def _can_be_ranked(record: ResultRecord) -> bool:
    """A higher bound on log p(x) is better; of a gap, say, or of an upper bound, nobody knows."""
    return record.quantity == LOG_LIKELIHOOD and record.direction in ("lower_bound", "exact")


def _why_several(tables: Sequence[Table]) -> Iterator[str]:
    """Say in what the conditions of several tables differ, and how to bring them together."""
    if len(tables) < 2:
        return
    facts = [table.conditions.__dict__ for table in tables]
    differing = [name for name in facts[0] if len({fact[name] for fact in facts}) > 1]
    if "protocol" in differing:  # other images have other bytes
        differing = [name for name in differing if name != "fingerprint"]
    names = {"n_images": "number of images", "epochs": "trainer.epochs", "upper": "direction"}
    yield (
        f"{len(tables)} tables, because not all results are alike: they differ in "
        f"{', '.join(names.get(name, name) for name in differing)}"
    )
    pairs = itertools.combinations(tables, 2)
    if any(a.conditions.without_inner() == b.conditions.without_inner() for a, b in pairs):
        most = max(table.conditions.inner_k or 0 for table in tables)
        yield (
            "encoders with inner samples were evaluated with several inner_k: `vaebench evaluate RUN... "
            f"estimator.inner_k={most}` puts them in one table"
        )


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def check_columns(columns: Sequence[str], comparison: Comparison) -> None:
    """Raise UserError for a column that is neither a setting of a run nor a fact about a row."""
    known = {*FACTS, *(key for row in comparison.rows for key in row.settings)}
    if unknown := [column for column in columns if column not in known]:
        facts = ", ".join(FACTS)
        raise UserError(
            f"there is no column '{unknown[0]}'{did_you_mean(unknown[0], known)}; "
            f"columns: the settings of the runs, and {facts}"
        )
