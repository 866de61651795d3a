"""The content of the sections of a page: results, diagnostics and pictures, for the templates."""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from vaebench.direction import Direction
from vaebench.records import Diagnostic
from vaebench.records.current import left_out
from vaebench.records.text import counted, number, with_error
from vaebench.report.baseline import with_differences_from_first
from vaebench.report.charts import BarChart, percent, ticks, typographic
from vaebench.report.formats import TYPOGRAPHIC, cells, difference_text, headings, notes, rank_text
from vaebench.report.groups import RunGroup
from vaebench.report.intervals import LEVEL
from vaebench.report.learning_curves import MOST_SEEDS, group_title, shown_value
from vaebench.report.pairs import ImageReader
from vaebench.report.pictures import Picture, outdated_pictures, pictures, unreadable_pictures
from vaebench.report.set_up import by_value
from vaebench.report.tables import Row, Table

__all__ = [
    "DiagnosticsTable",
    "PicturesOfKind",
    "Results",
    "diagnostics",
    "outdated",
    "pictures_by_kind",
    "results",
]

_SMALL = 300  # pixels
_MOST_NAMES = 4  # of methods with a definition of their own
_SCALE = 16  # letters below the chart of a table
_WORDS = ("estimator", "told apart")
_SHARED = ("estimator", "best epoch")  # columns that become a note if all rows have one text


_TITLES = {
    "rank": "rank",
    "direction": "direction",
    "mean": "mean over seeds (nats)",
    "sd": "sd over seeds (nats)",
    "n": "seeds",
    "stderr": "standard error over images (nats)",
    "difference": "difference (nats)",
    "difference_low": "difference low end (nats)",
    "difference_high": "difference high end (nats)",
    "told_apart": "told apart",
}
"""The facts of a row in the file of a table of results, with their titles."""


# Results --------------------------------------------------------------------------------------------------


class Strip(NamedTuple):
    """A row of a chart on a common scale; places are in percent of the scale."""

    x: str
    direction: Direction
    words: str
    """The value in words, for screen readers."""
    text: str
    """The value beside the picture."""
    bars: Sequence[tuple[tuple[str, str], str]]
    """The ends of each error bar, and its class."""
    seeds: Sequence[tuple[str, str]]
    """The place of each of the first seeds, and its value in words."""


class ResultRow(NamedTuple):
    """A method in a table of results."""

    group: RunGroup
    title: str
    rank: str
    best: bool
    strip: Strip | None
    """None for the baseline, and for a method whose charts the page does not show."""
    cells: Sequence[str]


class Results(NamedTuple):
    """A table of results, with a chart on a common scale."""

    table: Table
    columns: Sequence[tuple[str, bool]]
    """The title of each column behind the name, and whether it holds numbers."""
    place: int
    """The number of columns before the chart."""
    value: int
    """The column of the quantity."""
    rows: Sequence[ResultRow]
    """The methods with charts."""
    more: Sequence[ResultRow]
    """The other methods."""
    ticks: Sequence[tuple[str, str]]
    zero: str | None
    """The place of zero on the scale of differences; None on a scale of results."""
    notes: Sequence[str]

    @property
    def title(self) -> str:
        conditions = self.table.conditions
        words = f"{conditions.split} {conditions.quantity} ({', '.join(conditions.words())}), nats per image"
        return words if self.zero is None else f"difference from the baseline, {words}"

    @property
    def drawn(self) -> list[ResultRow]:
        return [row for row in self.rows if row.strip is not None]

    def lines(self) -> list[tuple[object, ...]]:
        """Return the whole table, all digits, under titles."""
        facts = [row.facts() for row in self._sorted()]
        lines = [
            (shown.title, *(found[name] for name in _TITLES))
            for shown, found in zip([*self.rows, *self.more], facts, strict=True)
        ]
        return [("method", *_TITLES.values()), *lines]

    def _sorted(self) -> Iterator[Row]:
        shown = {row.group.name for row in self.rows}
        yield from (row for row in self.table.rows if row.method in shown)
        yield from (row for row in self.table.rows if row.method not in shown)


def results(table: Table, groups: Mapping[str, RunGroup], shown: set[str]) -> Results:
    """Return the results of one table.

    Without a baseline, its columns have differences from the first row.

    Args:
        table: the table.
        groups: the groups by name.
        shown: the names of the groups with charts.
    """
    compared = any(row.difference for row in table.rows)
    told = list(notes(table))
    full = table if compared else replace(table, rows=with_differences_from_first(table.rows, ImageReader()))
    quantity = table.conditions.measure.named(table.conditions.quantity)
    columns = _columns(full, quantity)
    if not compared and "difference" in columns:
        first = groups[next(row for row in full.rows if row.rank is not None).method]
        columns = {
            f"difference from {first.short}" if head == "difference" else head: column
            for head, column in columns.items()
        }
        told.append(_about_first(full.rows, first.title))
        # The number itself is first, then the two columns of differences.
        columns = {quantity: columns.pop(quantity)} | columns
    if shared := {
        name: columns[name][0] for name in _SHARED if len(full.rows) > 1 and len({*columns.get(name, ())}) == 1
    }:
        told.insert(0, f"in all rows: {'; '.join(f'{name} {text}' for name, text in shared.items())}")
    columns = {head: column for head, column in columns.items() if head not in shared}
    heads = list(columns)
    texts = list(zip(*columns.values(), strict=True))
    low, high = _range([row for row in table.rows if row.method in shown] or table.rows, compared=compared)
    rows = [
        ResultRow(
            groups[row.method],
            group_title(groups[row.method], row),
            "" if row.rank is None else rank_text(row),
            row.best,
            _strip(row, low, high, compared=compared) if row.method in shown else None,
            line,
        )
        for row, line in zip(full.rows, texts, strict=True)
    ]
    return Results(
        full,
        [
            (_heading(f"{head} \u00b1 error over images" if head == quantity else head), head not in _WORDS)
            for head in heads
        ],
        heads.index("told apart") + 1 if compared else 1,
        heads.index(quantity),
        [row for row in rows if row.group.name in shown],
        [row for row in rows if row.group.name not in shown],
        [(percent(low, high, value), typographic(f"{value:g}")) for value in _few_ticks(low, high)],
        percent(low, high, 0.0) if compared else None,
        told,
    )


def _columns(table: Table, quantity: str) -> dict[str, list[str]]:
    """Return the columns of a table behind the name; the quantity and its error, n and the sd are one column each."""
    heads, lines = headings(table, [])[1:], cells(table, [], TYPOGRAPHIC)
    columns = {
        head: [line[place] if head in _WORDS else typographic(line[place]) for line in lines]
        for place, head in enumerate(heads, start=1)
    }
    errors = columns.pop("error over images")
    columns[quantity] = [f"{value} \u00b1 {error}" for value, error in zip(columns[quantity], errors, strict=True)]
    counts = columns.pop("n")
    if set(counts) == {"1"}:
        del columns["sd over seeds"]
        return columns
    same = len(set(counts)) == 1
    spread = f"sd over {counts[0]} seeds" if same else "sd over (n) seeds"
    told = [sd if same else f"{sd} ({n})" for sd, n in zip(columns["sd over seeds"], counts, strict=True)]
    return {
        spread if head == "sd over seeds" else head: told if head == "sd over seeds" else column
        for head, column in columns.items()
    }


def _few_ticks(low: float, high: float) -> list[float]:
    """Return round numbers for a short scale: the first and the last one if there is no room for those between."""
    found = next(found for most in range(3, 9) if len(found := ticks(low, high, most=most)) >= 2)
    return found if sum(len(f"{value:g}") + 1 for value in found) <= _SCALE else [found[0], found[-1]]


def _heading(text: str) -> str:
    """Return a heading that breaks into two lines at most: the last two words of a short one stay together."""
    return re.sub(r"(\d|\(n\)|of|>) (?=\S+$)", "\\1\N{NO-BREAK SPACE}", text)


def _about_first(rows: Sequence[Row], name: str) -> str:
    placed = sum(row.rank is not None for row in rows)
    return (
        f"differences are from {name}, the best rank; intervals: the wider one of those over common seeds and images, "
        f"{LEVEL:.0%} for {counted(placed * (placed - 1) // 2, 'pair')} together (Bonferroni's correction); "
        "told apart: as in the ranks"
    )


def _range(rows: Sequence[Row], *, compared: bool) -> tuple[float, float]:
    if compared:
        found = [row.difference for row in rows if row.difference]
        tips = [0.0, *(one.mean for one in found)]
        tips += [end for one in found if one.interval for end in (one.interval.low, one.interval.high)]
    else:
        tips = [row.mean + sign * max(row.stderr, row.sd or 0.0) for row in rows for sign in (-1, 1)]
        tips += [result.record.mean for row in rows for result in row.results[:MOST_SEEDS]]
    room = 0.05 * (max(tips) - min(tips)) or 0.5
    return min(tips) - room, max(tips) + room


def _strip(row: Row, low: float, high: float, *, compared: bool) -> Strip | None:
    def ends(first: float, last: float) -> tuple[str, str]:
        return percent(low, high, first), percent(low, high, last)

    if compared:
        found = row.difference
        if found is None:
            return None
        text, interval = typographic(difference_text(row)), found.interval
        bars = [(ends(interval.low, interval.high), "error")] if interval else []
        direction = Direction.EXACT if found.of_bounds else Direction.ESTIMATE
        return Strip(percent(low, high, found.mean), direction, f"difference {text}", text, bars, [])
    errors = (row.sd, row.stderr)
    direction, mean, stderr = row.record.direction, number(row.mean, *errors), number(row.stderr, *errors)
    halves = [(half, name) for half, name in ((row.sd, "spread"), (row.stderr, "error")) if half is not None]
    seeds = row.results[:MOST_SEEDS] if row.n > 1 else []
    return Strip(
        percent(low, high, row.mean),
        direction,
        f"{direction.replace('_', ' ')} {mean}, error over images {stderr}",
        f"{TYPOGRAPHIC[direction]} {typographic(mean)}{row.marks} ± {stderr}",
        [(ends(row.mean - half, row.mean + half), name) for half, name in halves],
        [
            (percent(low, high, one.mean), f"seed {run.seed}: {shown_value(one.direction, one.mean, one.stderr)}")
            for run, one in seeds
        ],
    )


# Diagnostics ----------------------------------------------------------------------------------------------


class DiagnosticsTable(NamedTuple):
    """The diagnostics of all diagnosed methods, averaged over seeds."""

    titles: Sequence[str]
    rows: Sequence[tuple[RunGroup, int, Sequence[str]]]
    """The method, its number of diagnosed seeds, and its measures."""
    definitions: Sequence[tuple[str, str]]
    kl: str
    """Which KL divergence the figures show."""
    figures: Sequence[BarChart]
    """The KL by latent coordinate."""


_KL_NAMES = {"kl": "KL", "kl_gaussian_approximation": "KL of the moment-matched Gaussian"}


def diagnostics(place: str, groups: Sequence[RunGroup]) -> DiagnosticsTable | None:
    """Return what the runs' diagnostics.json hold; None where no run has one."""
    by_group = [
        (group, [values for run in group.runs if (values := run.diagnostics.current) is not None]) for group in groups
    ]
    by_group = [(group, found) for group, found in by_group if found]
    every = [values for _, found in by_group for values in found]
    if not every:
        return None
    titles = {name: measure.title for values in reversed(every) for name, measure in values.measures.items()}
    units = {
        name: {
            found[name].unit
            for values in every
            if (found := values.measures).get(name) and found[name].value is not None
        }
        for name in dict.fromkeys(name for values in every for name in values.measures)
    }
    names = [name for name, found in units.items() if found]
    definitions: dict[tuple[str, str], list[str]] = {}
    for group, found in by_group:
        for key in dict.fromkeys((one.title, one.definition) for values in found for one in values.measures.values()):
            definitions.setdefault(key, []).append(group.short)
    coordinates = [
        (group, _KL_NAMES[name], [one.coordinates[name] for one in found if one.coordinates.get(name)])
        for group, found in by_group
        for name in [next((name for name in _KL_NAMES if any(one.coordinates.get(name) for one in found)), "")]
        if name
    ]
    return DiagnosticsTable(
        [_with_unit(titles[name], units[name]) for name in names],
        [
            (
                group,
                len(found),
                [_measure([values.measures.get(name) for values in found], len(units[name]) > 1) for name in names],
            )
            for group, found in by_group
        ],
        [
            # A definition may depend on the encoder.
            (
                title
                if len(names) == len(by_group)
                else f"{title} ({', '.join(names[:_MOST_NAMES])}{', ...' * (len(names) > _MOST_NAMES)})",
                definition,
            )
            for (title, definition), names in definitions.items()
        ],
        by_value({group.short: kl for group, kl, _ in coordinates}) if coordinates else "",
        _kl_figures(place, coordinates),
    )


def _with_unit(title: str, units: set[str]) -> str:
    """Return the heading of a column with its unit, unless that is nats; rows with several units name theirs."""
    unit = next(iter(units)) if len(units) == 1 else ""
    return f"{title}, {unit}".replace(" of ", " of\N{NO-BREAK SPACE}") if unit not in ("", "nats") else title


def _kl_figures(place: str, coordinates: Sequence[tuple[RunGroup, str, Sequence[Sequence[float]]]]) -> list[BarChart]:
    """Return a chart for each method, all on one scale."""
    bars = [
        [
            (statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
            for values in zip(*(sorted(one, reverse=True) for one in found), strict=False)
        ]
        for *_, found in coordinates
    ]
    highest = max((mean + sd for found in bars for mean, sd in found), default=0.0) or 1e-9
    return [
        BarChart(f"{place}-kl-{group.number}", group, f"{group.title}: {kl}, nats", kl, len(found), own, highest)
        for (group, kl, found), own in zip(coordinates, bars, strict=True)
    ]


def _measure(measures: Sequence[Diagnostic | None], with_unit: bool) -> str:
    """Return the mean over seeds with the standard deviation; for one seed the value with its error over images."""
    found = [(one, one.value) for one in measures if one is not None and one.value is not None]
    if not found:
        return "-"
    first, values = found[0][0], [value for _, value in found]
    sign = "" if first.direction is Direction.EXACT else f"{TYPOGRAPHIC[first.direction]} "
    mean = statistics.fmean(values)
    if len(values) > 1:
        text = f"{mean:.4g} ± {statistics.stdev(values):.2g}"
    else:
        text = f"{mean:.4g}" if first.stderr is None else with_error(mean, first.stderr, sign="±")
    return f"{sign}{typographic(text)} {first.unit if with_unit else ''}".strip()


# Pictures -------------------------------------------------------------------------------------------------


class PicturesOfKind(NamedTuple):
    """The pictures with the same title, each with its group and caption."""

    title: str
    large: bool
    """Whether the pictures contain text, which needs room."""
    pictures: list[tuple[Picture, RunGroup, str]]


def pictures_by_kind(groups: Sequence[RunGroup]) -> list[PicturesOfKind]:
    """Return the pictures of each group's first run that has pictures, sorted by kind."""
    kinds: dict[tuple[str, bool], list[tuple[Picture, RunGroup, str]]] = {}
    for group in groups:
        run, found = next(((run, own) for run in group.runs if (own := pictures(run))), (group.runs[0], []))
        for picture in found:
            caption = f"seed {run.seed}, {picture.detail}"
            kinds.setdefault((picture.title, picture.size[0] > _SMALL), []).append((picture, group, caption))
    return [PicturesOfKind(title[:1].upper() + title[1:], large, found) for (title, large), found in kinds.items()]


# Left out -------------------------------------------------------------------------------------------------


def outdated(groups: Sequence[RunGroup]) -> Iterator[str]:
    """Yield lines about changed and corrupt metrics, and about diagnostics and pictures that the page leaves out."""
    runs = [run for group in groups for run in group.runs]
    yield from (fault for group in groups for fault in group.faults)
    yield from (run.metrics_fault for group in groups for run in group.curve_runs if run.metrics_fault)
    yield from (run.diagnostics.unreadable for run in runs if run.diagnostics.unreadable)
    diagnosed = [(run.folder, run.diagnostics.fault) for run in runs if run.diagnostics.fault]
    yield from left_out(diagnosed, "diagnostics file", "diagnose")
    yield from left_out([(run.folder, fault) for run in runs for fault in outdated_pictures(run)], "picture", "sample")
    for run in runs:
        yield from unreadable_pictures(run)
