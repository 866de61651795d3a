"""The content of the sections of a page: results, learning curves, diagnostics and pictures, for the templates."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from vaebench.direction import Direction
from vaebench.records import Diagnostic, Diagnostics, ResultRecord
from vaebench.records.current import left_out
from vaebench.records.text import number, with_error
from vaebench.report.charts import BarChart, Chart, Point, Series, axes_of, percent, ticks, typographic
from vaebench.report.conditions import encoder_details
from vaebench.report.curves import TRAINING, VALIDATION, Curve
from vaebench.report.formats import TYPOGRAPHIC, cells, duration, headings, rank_text
from vaebench.report.groups import RunGroup, mean_curve
from vaebench.report.pictures import Picture, outdated_pictures, pictures, unreadable_pictures
from vaebench.report.runs import Run
from vaebench.report.tables import Row, Table

__all__ = [
    "MOST_PICTURED",
    "DiagnosticsTable",
    "PicturesOfKind",
    "Results",
    "about_curves",
    "curves",
    "diagnostics",
    "pictures_by_kind",
    "results",
]

MOST_PICTURED = 24  # groups
_SMALL = 300  # pixels


# Results --------------------------------------------------------------------------------------------------


def group_title(group: RunGroup, row: Row) -> str:
    """Return the title of a row: that of its group, with the proposal if it is not the trained encoder."""
    details = encoder_details(row.record)
    return f"{group.title} ({details})" if details else group.title


class ResultRow(NamedTuple):
    """A row of results on a common scale; places are in percent of the scale."""

    group: RunGroup
    title: str
    rank: str
    value: str
    errors: str
    words: str
    """The value in words, for screen readers."""
    direction: Direction
    x: str
    bars: list[tuple[tuple[str, str], str]]
    """The ends of each error bar, and its class."""
    seeds: list[tuple[str, str]]
    """The place of each seed, and its value in words."""


class Results(NamedTuple):
    """A table of results, drawn on a common scale and as numbers."""

    table: Table
    rows: list[ResultRow]
    ticks: list[tuple[str, str]]
    head: list[tuple[str, bool]]
    """The title of each column, and whether it holds numbers."""
    lines: list[list[tuple[str, bool]]]


def results(table: Table, groups: Mapping[str, RunGroup], keys: Sequence[str]) -> Results:
    """Return the results of one table; ``keys`` are the settings to show as columns."""
    low, high = _range(table.rows)
    head = headings(table, keys)
    # All columns are numbers but the settings and the estimator.
    numeric = [i == 0 or (i > len(keys) and name not in ("estimator", "told apart")) for i, name in enumerate(head)]
    lines = [
        [(typographic(text) if end else text, end) for text, end in zip(texts, numeric, strict=True)]
        for texts in cells(table, keys, TYPOGRAPHIC)
    ]
    return Results(
        table,
        rows=[_result_row(row, groups[row.method], low, high) for row in table.rows],
        ticks=[(percent(low, high, value), typographic(f"{value:g}")) for value in ticks(low, high)],
        head=list(zip(head, numeric, strict=True)),
        lines=lines,
    )


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    tips = [row.mean + sign * max(row.stderr, row.sd or 0.0) for row in rows for sign in (-1, 1)]
    tips += [result.record.mean for row in rows for result in row.results]
    room = 0.05 * (max(tips) - min(tips)) or 0.5
    return min(tips) - room, max(tips) + room


def _result_row(row: Row, group: RunGroup, low: float, high: float) -> ResultRow:
    def ends(half: float) -> tuple[str, str]:
        return percent(low, high, row.mean - half), percent(low, high, row.mean + half)

    errors = (row.sd, row.stderr)
    spread = f"sd {number(row.sd, *errors)} (n={row.n})" if row.sd is not None else "n=1"
    direction, mean, stderr = row.record.direction, number(row.mean, *errors), number(row.stderr, *errors)
    seeds = row.results if row.n > 1 else []
    return ResultRow(
        group=group,
        title=group_title(group, row),
        rank="" if row.rank is None else rank_text(row),
        value=f"{TYPOGRAPHIC[direction]} {typographic(mean)}{row.marks}",
        errors=f"± {stderr}, {spread}",
        words=f"{direction.replace('_', ' ')} {mean}, error over images {stderr}",
        direction=direction,
        x=percent(low, high, row.mean),
        bars=[(ends(half), name) for half, name in ((row.sd, "spread"), (row.stderr, "error")) if half is not None],
        seeds=[(percent(low, high, record.mean), f"seed {run.seed}: {_value(record)}") for run, record in seeds],
    )


def _value(record: ResultRecord) -> str:
    """Return the number of one seed, with its direction and its error over images."""
    return f"{TYPOGRAPHIC[record.direction]} {typographic(with_error(record.mean, record.stderr, sign='±'))}"


# Curves ---------------------------------------------------------------------------------------------------

_TAGS = {
    "train/bound": "Bound on log p(x) in training, lower bound",
    "train/reconstruction": "Reconstruction term in training",
    "train/kl": "KL term in training",
}
_CurvesOfGroup = tuple[RunGroup, Sequence[Curve]]


def curves(place: str, groups: Sequence[RunGroup], tables: Sequence[Table]) -> list[Chart]:
    """Return charts of the validation by epoch and by time, of the parts of the bound, and of results by time."""
    meanings = dict.fromkeys(group.runs[0].validation for group in groups)
    # All runs of a section have the same measure.
    title = f"Validation {groups[0].runs[0].measure.named('log p(x)')}, {' or '.join(meanings)}"
    validation = [(group, group.curves(VALIDATION)) for group in groups]
    figures = [
        _curves(f"{place}-epochs", f"{title}, by epoch", "epoch", validation, by_time=False),
        _curves(f"{place}-time", f"{title}, by time", "seconds of training", validation, by_time=True),
    ]
    for tag, title in _TAGS.items():
        found = [(group, group.curves(tag)) for group in groups]
        figures.append(_curves(f"{place}-{tag.split('/')[1]}", title, "epoch", found, by_time=False))
    named = {group.name: group for group in groups}
    figures += [_compute(f"{place}-{i}", table, named) for i, table in enumerate(tables)]
    return [figure for figure in figures if figure is not None]


def about_curves(runs: Sequence[Run]) -> str:
    """Return the text under the charts."""
    devices = sorted({str(run.manifest["device"]) for run in runs if run.manifest.get("device")})
    text = (
        "Curves have no error. Validation is importance-weighted, with the weights at that time. An encoder with a "
        "learned log q has no curve of the bound and the KL term. Time is training time without evaluation"
    )
    if devices:
        text += f", on {devices[0]}" if len(devices) == 1 else f"; on several devices: {', '.join(devices)}"
    return f"{text}. Against compute: small marks are single seeds, vertical lines the standard error over images."


def _curves(name: str, title: str, x_label: str, found: Sequence[_CurvesOfGroup], *, by_time: bool) -> Chart | None:
    """Return one chart; None where no run has such a curve."""

    def line(curve: Curve) -> tuple[Sequence[float], Sequence[float]]:
        return (curve.seconds if by_time else curve.epochs), curve.values

    series = []
    for group, own in found:
        if own:
            mean = mean_curve(own)
            sign = f"{TYPOGRAPHIC[Direction.LOWER_BOUND]} " if mean.tag in (VALIDATION, TRAINING) else ""
            ends = [f": {sign}{typographic(f'{value:.2f}')}" for value in mean.values[-1:]]
            last = "".join(f"{end} at epoch {mean.epochs[-1]:g}" for end in ends)
            seeds = [line(curve) for curve in own] if len(own) > 1 else []
            series.append(Series(group, group.title + last, line(mean), seeds))
    return Chart(name, title, x_label, axes_of(series), series) if series else None


def _compute(name: str, table: Table, groups: Mapping[str, RunGroup]) -> Chart | None:
    """Return results against seconds of training; None where no run recorded its time."""
    found = [(groups[row.method], _points(row, groups[row.method])) for row in table.rows]
    series = [Series(group, group.title, points=points) for group, points in found if points]
    conditions = table.conditions
    title = f"{conditions.split} {conditions.quantity} against compute ({', '.join(conditions.words())})"
    if not series:
        return None
    axes = axes_of(series, spread=True)
    return Chart(f"compute-{name}", title, "seconds of training", axes, series)


def _points(row: Row, group: RunGroup) -> list[Point]:
    """Return a point for the mean over seeds, and a point for each seed if there are several."""
    timed = [(run, record, float(run.last_metrics["wall"])) for run, record in row.results if run.last_metrics]
    if not timed:
        return []
    title, direction = group_title(group, row), row.record.direction
    seeds = []
    for run, record, seconds in timed if len(timed) > 1 else []:
        words = f"{title}, seed {run.seed}: {_value(record)}, {duration(seconds)}"
        seeds.append(Point(seconds, record.mean, 0.0, direction, words, main=False))
    x = sum(seconds for *_, seconds in timed) / len(timed)
    mean = f"{TYPOGRAPHIC[direction]} {typographic(with_error(row.mean, row.stderr, sign='±'))}"
    return [*seeds, Point(x, row.mean, row.stderr, direction, f"{title}: {mean}, {duration(x)}")]


# Diagnostics ----------------------------------------------------------------------------------------------


class DiagnosticsTable(NamedTuple):
    """The diagnostics of all diagnosed runs."""

    titles: list[str]
    rows: list[tuple[RunGroup, Run, list[str]]]
    definitions: list[tuple[str, str]]
    figures: list[BarChart]
    """The KL by latent coordinate."""


_KL_NAMES = {"kl": "KL, nats", "kl_gaussian_approximation": "KL of the moment-matched Gaussian, nats"}


def diagnostics(groups: Sequence[RunGroup]) -> DiagnosticsTable | None:
    """Return what the runs' diagnostics.json hold; None where no run has one."""
    found = [(group, run, values) for group in groups for run in group.runs if (values := run.diagnostics.current)]
    if not found:
        return None
    titles = {name: measure.title for *_, values in reversed(found) for name, measure in values.measures.items()}
    names = list(dict.fromkeys(name for *_, values in found for name in values.measures))
    # A definition may depend on the encoder.
    definitions = dict.fromkeys((m.title, m.definition) for *_, values in found for m in values.measures.values())
    return DiagnosticsTable(
        [titles[name] for name in names],
        [(group, run, [_measure(values.measures.get(name)) for name in names]) for group, run, values in found],
        list(definitions),
        [figure for group, run, values in found for figure in _kl_figures(group, run, values)],
    )


def _kl_figures(group: RunGroup, run: Run, values: Diagnostics) -> Iterator[BarChart]:
    for name, title in _KL_NAMES.items():
        if numbers := values.coordinates.get(name):
            caption = f"{group.title}, seed {run.seed}: {title}"
            yield BarChart(group, caption, f"{title}, {group.title}", numbers)


def _measure(measure: Diagnostic | None) -> str:
    if measure is None or measure.value is None:
        return "-"
    sign = "" if measure.direction is Direction.EXACT else f"{TYPOGRAPHIC[measure.direction]} "
    plain = f"{measure.value:.4g}"
    value = plain if measure.stderr is None else with_error(measure.value, measure.stderr, sign="±")
    return f"{sign}{typographic(value)} {measure.unit}".strip()


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
    for group in groups[:MOST_PICTURED]:
        run, found = next(((run, own) for run in group.runs if (own := pictures(run))), (group.runs[0], []))
        for picture in found:
            caption = f"{group.title}, seed {run.seed}, {picture.detail}"
            kinds.setdefault((picture.title, picture.size[0] > _SMALL), []).append((picture, group, caption))
    return [PicturesOfKind(title[:1].upper() + title[1:], large, found) for (title, large), found in kinds.items()]


# Left out -------------------------------------------------------------------------------------------------


def outdated(runs: Sequence[Run]) -> Iterator[str]:
    """Yield lines about changed metrics, and about diagnostics and pictures that the page leaves out."""
    yield from (run.metrics_fault for run in runs if run.metrics_fault)
    yield from (run.diagnostics.unreadable for run in runs if run.diagnostics.unreadable)
    diagnosed = [(run.folder, run.diagnostics.fault) for run in runs if run.diagnostics.fault]
    yield from left_out(diagnosed, "diagnostics file", "diagnose")
    yield from left_out([(run.folder, fault) for run in runs for fault in outdated_pictures(run)], "picture", "sample")
    for run in runs:
        yield from unreadable_pictures(run)
