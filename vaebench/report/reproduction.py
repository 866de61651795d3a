"""The rows of a paper: published results beside measured ones, and whether their order and differences agree."""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from vaebench.config import Config, PublishedResult
from vaebench.direction import Direction
from vaebench.errors import UserError
from vaebench.records import ResultRecord, RunFolder
from vaebench.records.text import counted, encodable, number, wrapped
from vaebench.records.text import table as text_table
from vaebench.report.conditions import LOG_LIKELIHOOD, Conditions, Result
from vaebench.report.formats import csv_text, duration, markdown_table, markdown_text, value_text
from vaebench.report.intervals import LEVEL, Interval, t_interval, wider
from vaebench.report.pairs import ImageReader, by_image, by_seed
from vaebench.report.runs import Run
from vaebench.report.tables import Row, with_looser_marked

__all__ = ["FORMATS", "Job", "PairOfRows", "PaperRow", "Reproduction", "reproduction"]

_SAME_ESTIMATOR = {"iwae": ("IWAE", "DIWHVI"), "diwhvi": ("IWAE", "DIWHVI"), "ais": ("AIS",)}


class Job(NamedTuple):
    """One training of a row."""

    row: str
    config: Config | None
    """None if its settings are invalid."""
    folder: RunFolder | None
    error: str = ""


@dataclass(frozen=True)
class PaperRow:
    """A row of a paper with its runs, which differ only in the seed."""

    name: str
    published: PublishedResult
    config: Config | None
    """Of the first run; None if the settings are invalid."""
    runs: Sequence[Run]
    planned: int
    """The number of runs that the command asked for."""
    measured: Row | None
    """The results of the finished runs; None if there are none."""
    faults: Sequence[str]
    """Why runs have no result."""

    @property
    def data(self) -> str:
        """The data set and its binarization; rows of other data are never compared."""
        return f"{self.config.dataset.name}/{self.config.dataset.binarization}" if self.config else "invalid settings"

    @property
    def is_paper_s(self) -> bool:
        """Whether the settings are those of the experiment, but for the seed, the budget and the number of epochs."""
        return self.config is not None and self.config.published is not None

    @property
    def difference(self) -> float | None:
        """Measured minus published, nats per image."""
        return None if self.measured is None else self.measured.mean - self.published.value

    @property
    def state(self) -> str:
        """``finished``, or the number of runs in each state."""
        states = [run.state for run in self.runs] + ["not started"] * (self.planned - len(self.runs))
        names = dict.fromkeys(states)
        return states[0] if len(names) == 1 else ", ".join(f"{states.count(name)} {name}" for name in names)


@dataclass(frozen=True)
class PairOfRows:
    """Two rows on the same images, ``better`` with the higher published value."""

    better: PaperRow
    worse: PaperRow
    measured: float
    """The measured value of ``better`` minus that of ``worse``, nats per image."""
    interval: Interval | None
    """The wider one of those over common seeds and common images; None without an interval."""

    @property
    def published(self) -> float:
        """The published difference, nats per image; 0 for equal values."""
        return self.better.published.value - self.worse.published.value

    @property
    def verdict(self) -> str:
        """``agrees``, ``disagrees``, ``not told apart``, or ``published equal``."""
        if self.published == 0:
            return "published equal"
        if self.interval is None or not self.interval.excludes_zero:
            return "not told apart"
        return "agrees" if self.measured > 0 else "disagrees"

    @property
    def contains_published(self) -> bool | None:
        """Whether the interval contains the published difference; None without an interval."""
        interval = self.interval
        return None if interval is None else interval.low <= self.published <= interval.high


@dataclass(frozen=True)
class Reproduction:
    """The rows of a paper, and the pairs of measured rows on the same images."""

    paper: str
    rows: Sequence[PaperRow]
    pairs: Sequence[PairOfRows]

    def by_data(self) -> dict[str, list[PaperRow]]:
        """Return the rows on each data set, the highest published value first."""
        found: dict[str, list[PaperRow]] = defaultdict(list)
        for row in sorted(self.rows, key=lambda row: -row.published.value):
            found[row.data].append(row)
        return found

    def pairs_on(self, data: str) -> list[PairOfRows]:
        """Return the pairs of rows on a data set."""
        return [pair for pair in self.pairs if pair.better.data == data]


def reproduction(paper: str, published: Mapping[str, PublishedResult], jobs: Sequence[Job]) -> Reproduction:
    """Return the results of the jobs beside the published ones.

    Args:
        paper: its name.
        published: row -> the published result.
        jobs: the trainings of these rows.
    """
    rows = [_row(name, one, [job for job in jobs if job.row == name]) for name, one in published.items()]
    marked = iter(with_looser_marked([row.measured for row in rows if row.measured is not None]))
    rows = [row if row.measured is None else replace(row, measured=next(marked)) for row in rows]
    return Reproduction(paper, rows, _pairs(rows))


def _row(name: str, published: PublishedResult, jobs: Sequence[Job]) -> PaperRow:
    runs, faults = [], list(dict.fromkeys(job.error for job in jobs if job.error))
    for job in jobs:
        if job.folder is not None and (job.folder.path / "config.yaml").is_file():
            try:
                runs.append(Run.read(job.folder))
            except UserError as error:
                faults.append(str(error))
    finished = [run for run in runs if run.state == "finished"]
    results = [Result(run, record) for run in finished if (record := _record(run)) is not None]
    alike = [one for one in results if Conditions.of(one) == Conditions.of(results[0])]
    if len(alike) < len(results):
        faults.append(f"{counted(len(results) - len(alike), 'seed')} left out: evaluated in another way")
    alike.sort(key=lambda result: result.run.seed)
    config = next((job.config for job in jobs if job.config is not None), None)
    measured = Row(alike[0].run.settings, alike) if alike else None
    return PaperRow(name, published, config, runs, len(jobs), measured, faults)


def _record(run: Run) -> ResultRecord | None:
    """Return the latest log p(x) of test images, by the run's own estimator where there is one."""
    found = [one for one in run.results if one.quantity == LOG_LIKELIHOOD and one.split == "test"]
    settings = run.config.estimator
    own = [
        one for one in found if one.estimator in _SAME_ESTIMATOR.get(settings.name, ()) and one.k in (None, settings.k)
    ]
    return (own or found or [None])[-1]


def _pairs(rows: Sequence[PaperRow]) -> list[PairOfRows]:
    """Return all pairs of rows that were measured on the same images, with intervals that hold together."""
    measured = [row for row in rows if row.measured is not None]
    found = [pair for pair in combinations(measured, 2) if _images(pair[0]) == _images(pair[1])]
    level, reader = 1 - (1 - LEVEL) / max(1, len(found)), ImageReader()
    ordered = [sorted(pair, key=lambda row: -row.published.value) for pair in found]
    return [_pair(better, worse, level, reader) for better, worse in ordered]


def _images(row: PaperRow) -> tuple[object, ...]:
    assert row.measured is not None
    conditions = Conditions.of(row.measured.results[0])
    return conditions.protocol, conditions.fingerprint, conditions.n_images, conditions.measure


def _pair(better: PaperRow, worse: PaperRow, level: float, reader: ImageReader) -> PairOfRows:
    first, second = worse.measured, better.measured
    assert first is not None
    assert second is not None
    seeds = list(by_seed(first, second).values())
    try:
        images = by_image(first, second, reader)
    except UserError:  # `vaebench compare` names the corrupt file
        images = None
    over_seeds = t_interval(seeds, level) if len(seeds) > 1 else None
    over_images = None if images is None else t_interval(images.tolist(), level)
    mean = statistics.fmean(seeds) if seeds else second.mean - first.mean
    return PairOfRows(better, worse, mean, wider(over_seeds, over_images))


# Agreement in words -------------------------------------------------------------------------------------------


def kendall_tau(pairs: Sequence[PairOfRows]) -> float | None:
    """Return the share of pairs in the published order minus the share in the other order, -1 to 1.

    Pairs with equal published values do not count. Without such pairs it is Kendall's tau. None without a pair.
    """
    signs = [math.copysign(1, pair.measured) if pair.measured else 0.0 for pair in pairs if pair.published != 0]
    return statistics.fmean(signs) if signs else None


def agreement(pairs: Sequence[PairOfRows]) -> Iterator[str]:
    """Yield whether the order and the differences of the rows on one data set agree with the published ones."""
    counts = {name: sum(pair.verdict == name for pair in pairs) for name in ("agrees", "disagrees", "not told apart")}
    tau = kendall_tau(pairs)
    if tau is None:
        return
    count = counted(sum(counts.values()), "pair")
    yield (
        f"order: Kendall's tau is {tau:.2f} (1: as published, -1: reversed); of {count}, "
        f"{counts['agrees']} agree, {counts['disagrees']} disagree, {counts['not told apart']} are not told apart"
    )
    with_interval = [pair for pair in pairs if pair.contains_published is not None]
    if with_interval:
        inside = sum(bool(pair.contains_published) for pair in with_interval)
        yield (
            f"differences: {inside} of {counted(len(with_interval), 'interval')} contain the published difference "
            f"({LEVEL:.0%} for all pairs together; the wider one of those over common seeds and common images)"
        )


def _neighbours(rows: Sequence[PaperRow], pairs: Sequence[PairOfRows]) -> list[PairOfRows]:
    """Return the pairs of measured rows that are next to each other in the published order."""
    measured = [row.name for row in rows if row.measured is not None]
    wanted = {frozenset(names) for names in pairwise(measured)}
    return [pair for pair in pairs if frozenset((pair.better.name, pair.worse.name)) in wanted]


def notes(result: Reproduction) -> Iterator[str]:
    """Yield what limits the comparison, and the sources of the published values."""
    budgets = sorted({row.config.budget for row in result.rows if row.config is not None} - {1})
    if budgets:
        words = ", ".join(f"{budget:g}" for budget in budgets)
        yield f"budget={words}: lengths and schedules are scaled by it; published values are of the whole training"
    if others := [row.name for row in result.rows if row.config is not None and not row.is_paper_s]:
        yield f"settings differ from the paper's, so the published values are of other models: {', '.join(others)}"
    measured = [row.measured for row in result.rows if row.measured is not None]
    if any(row.n == 1 for row in measured):
        yield "seeds=1: the spread over seeds is unknown, so a difference may be due to the seed"
    if any(row.record.direction is Direction.ESTIMATE for row in measured):
        yield "~ marks an estimate that is not a bound"
    if any(row.looser for row in measured):
        yield "! marks a looser bound than others: a difference from them may be due to that"
    for row in result.rows:
        yield from (f"{row.name}: {fault}" for fault in row.faults)
    sources: dict[str, list[str]] = defaultdict(list)
    for row in result.rows:
        one = row.published
        sources[f"{one.source}; {one.protocol}; checked: {one.checked}"].append(row.name)
    yield from (f"published ({', '.join(names)}): {source}" for source, names in sources.items())


# Formats -----------------------------------------------------------------------------------------------------

_HEAD = ("row", "published", "measured", "measured - published", "seeds", "sd over seeds", "error over images")
_KEEP = ("published", "measured", "measured - published", "seeds")


def _head(rows: Sequence[PaperRow]) -> list[str]:
    return [*_HEAD, "estimator", "epochs", "time", "state"]


def _cells(row: PaperRow) -> list[str]:
    one, error = row.measured, row.published.error
    published = f"{row.published.value:g}" + ("" if error is None else f" +- {error:g}")
    epochs = "-" if row.config is None else str(row.config.trainer.epochs)
    if one is None:
        return [row.name, published, "-", "-", "0", "-", "-", "-", epochs, "-", row.state]
    record = one.record
    words = [
        record.estimator,
        *(f"{key}={value}" for key, value in (("k", record.k), ("inner_k", record.inner_k)) if value),
    ]
    return [
        row.name,
        published,
        value_text(one),
        f"{row.difference:+.2f}",
        str(one.n),
        number(one.sd, one.sd),
        number(one.stderr, one.stderr),
        " ".join(words),
        epochs,
        duration(one.wall_seconds),
        row.state,
    ]


def _pair_cells(pair: PairOfRows) -> list[str]:
    interval = pair.interval
    ends = "no interval" if interval is None else f"[{interval.low:+.2f}, {interval.high:+.2f}]"
    return [
        f"{pair.better.name} - {pair.worse.name}",
        f"{pair.published:+.2f}",
        f"{pair.measured:+.2f} {ends}",
        pair.verdict,
    ]


_PAIR_HEAD = ("neighbours", "published", "measured", "verdict")


def _terminal(result: Reproduction) -> str:
    sections = []
    for data, rows in result.by_data().items():
        pairs = result.pairs_on(data)
        near = [_pair_cells(pair) for pair in _neighbours(rows, pairs)]
        lines = [wrapped(f"{result.paper}, log p(x) of test images, nats per image, {data}")]
        lines.append(text_table(_head(rows), [_cells(row) for row in rows], keep=_KEEP, hint="--format csv"))
        lines += ["", text_table(_PAIR_HEAD, near, keep=_PAIR_HEAD)] if near else []
        sections.append("\n".join([*lines, *map(wrapped, agreement(pairs))]))
    sections.append("\n".join(wrapped(f"note: {note}") for note in notes(result)))
    return encodable("\n\n".join(sections)) + "\n"


def _markdown(result: Reproduction) -> str:
    sections = []
    for data, rows in result.by_data().items():
        pairs = result.pairs_on(data)
        sections += [
            f"**{markdown_text(result.paper)}**, log p(x) of test images, nats per image, {markdown_text(data)}"
        ]
        sections += ["\n".join(markdown_table(_head(rows), [_cells(row) for row in rows]))]
        near = [_pair_cells(pair) for pair in _neighbours(rows, pairs)]
        sections += ["\n".join(markdown_table(_PAIR_HEAD, near))] if near else []
        sections += ["\n".join(f"- {markdown_text(line)}" for line in agreement(pairs))]
    sections.append("\n".join(f"- {markdown_text(note)}" for note in notes(result)))
    return "\n\n".join(filter(None, sections)) + "\n"


def _facts(row: PaperRow) -> dict[str, Any]:
    """Return everything about a row, for programs."""
    one, config = row.measured, row.config
    record = None if one is None else one.record
    return {
        "row": row.name,
        "data": row.data,
        "published": row.published.value,
        "published_error": row.published.error,
        "published_source": row.published.source,
        "published_checked": row.published.checked,
        "published_protocol": row.published.protocol,
        "settings_of_paper": row.is_paper_s,
        "measured": one and one.mean,
        "direction": record and record.direction.value,
        "difference": row.difference,
        "seeds": None if one is None else " ".join(map(str, one.seeds)),
        "sd": one and one.sd,
        "stderr": one and one.stderr,
        "estimator": record and record.estimator,
        "result.k": record and record.k,
        "result.inner_k": record and record.inner_k,
        "n_images": record and record.n_images,
        "protocol": record and record.protocol,
        "epochs": config and config.trainer.epochs,
        "budget": config and config.budget,
        "wall_seconds": one and one.wall_seconds,
        "state": row.state,
    }


def _csv(result: Reproduction) -> str:
    return csv_text([{"paper": result.paper} | _facts(row) for row in result.rows])


def _json(result: Reproduction) -> str:
    def ends(interval: Interval | None) -> list[float] | None:
        return None if interval is None else [interval.low, interval.high]

    pairs = [
        {
            "better": pair.better.name,
            "worse": pair.worse.name,
            "published": pair.published,
            "measured": pair.measured,
            "interval": ends(pair.interval),
            "verdict": pair.verdict,
        }
        for pair in result.pairs
    ]
    tau = {data: kendall_tau(result.pairs_on(data)) for data in result.by_data()}
    values = {
        "paper": result.paper,
        "rows": [_facts(row) for row in result.rows],
        "pairs": pairs,
        "level": LEVEL,
        "kendall_tau": tau,
        "notes": list(notes(result)),
    }
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[Reproduction], str]] = {"table": _terminal, "md": _markdown, "csv": _csv, "json": _json}
"""The formats of ``vaebench reproduce``."""
