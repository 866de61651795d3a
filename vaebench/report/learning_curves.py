"""The charts of a page about training: validation, the parts of the bound, and results against compute."""

from collections.abc import Mapping, Sequence
from statistics import median

from vaebench.direction import Direction
from vaebench.records.text import with_error
from vaebench.report.charts import Chart, Line, Point, Series, axes_of, typographic
from vaebench.report.conditions import encoder_details
from vaebench.report.curves import TRAINING, VALIDATION, Curve
from vaebench.report.formats import TYPOGRAPHIC, duration
from vaebench.report.groups import CURVE_SEEDS, RECONSTRUCTION, TERM_KL, RunGroup
from vaebench.report.set_up import by_value
from vaebench.report.tables import Row, Table

__all__ = ["MOST_SEEDS", "about_curves", "curves", "group_title", "parts_of_bound", "shown_value"]

MOST_SEEDS = 20
"""The marks of single seeds that a chart shows for each method."""
_PARTS = {
    TRAINING: "Bound on log p(x) in training, lower bound",
    RECONSTRUCTION: "Reconstruction term in training",
    TERM_KL: "KL term in training",
}


def curves(place: str, groups: Sequence[RunGroup], tables: Sequence[Table]) -> list[Chart]:
    """Return charts of the validation by epoch and by time, and of results by time.

    Args:
        place: the start of the names of the charts.
        groups: the methods to draw, of one measure.
        tables: of the same data, the largest first; the first one is drawn.
    """
    meanings = dict.fromkeys(group.runs[0].validation for group in groups)
    caption = f"Validation {groups[0].runs[0].measure.named('log p(x)')}, lower bound"
    title = f"Validation {groups[0].runs[0].measure.named('log p(x)')}, {' or '.join(meanings)}"
    by_epoch = _curves(f"{place}-validation-by-epoch", title, caption, groups, VALIDATION)
    by_time = by_epoch and _curves(
        f"{place}-validation-by-time", title, f"{caption}, by time", groups, VALIDATION, heights=by_epoch.axes.y
    )
    compute = _compute(f"{place}-compute", tables[0], {group.name: group for group in groups}) if tables else None
    return [figure for figure in (by_epoch, by_time, compute) if figure is not None]


def parts_of_bound(place: str, groups: Sequence[RunGroup]) -> list[Chart]:
    """Return charts of the bound, the reconstruction term and the KL term in training."""
    figures = [_curves(f"{place}-{tag.split('/')[1]}", name, name, groups, tag) for tag, name in _PARTS.items()]
    return [figure for figure in figures if figure is not None]


def about_curves(groups: Sequence[RunGroup], charts: Sequence[Chart]) -> str:
    """Return the text under the charts."""
    validation = by_value({group.short: group.runs[0].validation for group in groups})
    runs = [run for group in groups for run in group.runs]
    seeds = max((len(group.runs) for group in groups), default=0)
    devices = sorted({str(run.manifest["device"]) for run in runs if run.manifest.get("device")})
    where = (
        f", on {devices[0]}" if len(devices) == 1 else f"; on several devices: {', '.join(devices)}" if devices else ""
    )
    points = any(one.points for chart in charts for one in chart.series)
    marks = (
        " Results by time: small marks are single seeds, vertical lines are standard errors over images."
        if points
        else ""
    )
    fewer = (
        f" Curves are of the first {CURVE_SEEDS} seeds of a method; the largest has {seeds:,} seeds."
        if seeds > CURVE_SEEDS
        else ""
    )
    return (
        f"Validation: {validation}, with the weights at that time. Lines are means over seeds, without an error, "
        "at the median of their times. The scale fits the second half of each training: earlier values may be outside."
        f"{fewer}{marks} Time is without evaluation{where}"
    )


def _curves(
    name: str,
    title: str,
    caption: str,
    groups: Sequence[RunGroup],
    tag: str,
    *,
    heights: tuple[float, float] | None = None,
) -> Chart | None:
    """Return one chart; None where no run has such a curve.

    Args:
        heights: the range of y of another chart; the chart is then by time, on that scale.
    """

    def line(curve: Curve) -> Line:
        return (curve.seconds if heights else curve.epochs), curve.values

    series = []
    for group in groups:
        found = group.curves.get(tag)
        if found is not None and found.mean.values:
            mean = found.mean
            direction = Direction.LOWER_BOUND if tag in (VALIDATION, TRAINING) else None
            sign = f"{TYPOGRAPHIC[direction]} " if direction else ""
            end = f"{group.title}: {sign}{typographic(f'{mean.values[-1]:.2f}')} at epoch {mean.epochs[-1]:g}"
            seeds = [(seed, line(curve)) for seed, curve in found.seeds]
            series.append(Series(group, end, line(mean), seeds, direction=direction))
    if not series:
        return None
    axes = axes_of(series, logarithmic=True, heights=heights) if heights else axes_of(series, zoom=True)
    return Chart(name, title, caption, "seconds of training" if heights else "epoch", axes, series)


def _compute(name: str, table: Table, groups: Mapping[str, RunGroup]) -> Chart | None:
    """Return results against seconds of training; None where no run recorded its time."""
    found = [(groups[row.method], _points(row, groups[row.method])) for row in table.rows if row.method in groups]
    series = [Series(group, group.title, points=points) for group, points in found if points]
    conditions = table.conditions
    caption = f"{conditions.split.capitalize()} {conditions.measure.named(conditions.quantity)} by training time"
    title = f"{caption} ({', '.join(conditions.words())})"
    if not series:
        return None
    xs = [point.x for one in series for point in one.points]
    axes = axes_of(series, logarithmic=min(xs) > 0 and max(xs) / min(xs) > 5)
    return Chart(name, title, caption, "seconds of training", axes, series)


def _points(row: Row, group: RunGroup) -> list[Point]:
    """Return a point for each of the first seeds if there are several, and one for the mean over all seeds."""
    timed = [(run, record, float(run.last_metrics["wall"])) for run, record in row.results if run.last_metrics]
    if not timed:
        return []
    title, direction = group_title(group, row), row.record.direction
    seeds = []
    for run, record, seconds in timed[:MOST_SEEDS] if len(timed) > 1 else []:
        words = f"{title}, seed {run.seed}: {shown_value(direction, record.mean, record.stderr)}, {duration(seconds)}"
        seeds.append(Point(seconds, record.mean, record.stderr, direction, words, run.seed))
    x = median(seconds for *_, seconds in timed)
    mean = f"{title}: {shown_value(direction, row.mean, row.stderr)}, {duration(x)}"
    return [*seeds, Point(x, row.mean, row.stderr, direction, mean)]


def group_title(group: RunGroup, row: Row) -> str:
    """Return the title of a row: that of its group, with the proposal if it is not the trained encoder."""
    details = encoder_details(row.record)
    return f"{group.title} ({details})" if details else group.title


def shown_value(direction: Direction, mean: float, error: float) -> str:
    """Return a number with its direction and its error over images."""
    return f"{TYPOGRAPHIC[direction]} {typographic(with_error(mean, error, sign='±'))}"
