"""The parts of a page: results, learning curves, compute, diagnostics, pictures."""

from collections.abc import Iterator, Mapping, Sequence

from vaebench.records import Diagnostic, Diagnostics, last_metrics, read_diagnostics
from vaebench.report.charts import Point, Series, bars, chart, mark, scale, series_class, ticks
from vaebench.report.curves import VALIDATION, Curve
from vaebench.report.formats import TYPOGRAPHIC, cells, duration, headings, number
from vaebench.report.markup import Markup, element
from vaebench.report.methods import Method, mean_curve
from vaebench.report.pictures import Picture, pictures
from vaebench.report.runs import Run
from vaebench.report.tables import Row, Table

__all__ = ["curves", "diagnostics", "results", "shown_pictures", "switches"]

_MOST_PICTURED = 24  # methods
_SMALL = 300  # pixels


def switches(methods: Sequence[Method]) -> Markup:
    """Return a box for each method that shows and hides it in every chart and picture."""
    labels = [
        element(
            "label",
            element("input", type="checkbox", checked=True, id=f"show{method.number}"),
            _key(method),
            element("span", method.label),
            class_=series_class(method.number).split(" ", 1)[1],
        )
        for method in methods
    ]
    return element("fieldset", element("legend", "Methods (uncheck to hide)"), element("div", labels))


def _key(method: Method) -> Markup:
    line = element("line", x1=0, x2=26, y1=4, y2=4)
    return element("svg", line, class_="key " + series_class(method.number).split(" ", 1)[1], aria_hidden="true")


# Results --------------------------------------------------------------------------------------------------


def results(table: Table, methods: Mapping[str, Method], keys: Sequence[str]) -> Iterator[Markup]:
    """Yield the results of one table as marks on one scale, and as numbers."""
    yield element("h3", f"{table.conditions.split} {table.conditions.quantity}")
    protocol = [] if table.conditions.protocol in (None, "") else [table.conditions.protocol]
    yield element(
        "p", ", ".join([*protocol, *table.conditions.words()]) + "; nats per image, highest first", class_="soft"
    )
    yield _forest(table, methods)
    yield from (element("p", note, class_="note") for note in table.notes())
    yield _numbers(table, keys)


def _forest(table: Table, methods: Mapping[str, Method]) -> Markup:
    low, high = _range(table.rows)
    items = [_strip(row, methods[row.method], low, high) for row in table.rows]
    items.append(element("li", element("span", class_="blank"), _scale(low, high), element("span", class_="blank")))
    return element("div", element("ol", items), class_="forest")


def _range(rows: Sequence[Row]) -> tuple[float, float]:
    tips = [row.mean + sign * max(row.stderr, row.sd or 0.0) for row in rows for sign in (-1, 1)]
    tips += [result.record.mean for row in rows for result in row.results]
    room = 0.05 * (max(tips) - min(tips)) or 0.5
    return min(tips) - room, max(tips) + room


def _strip(row: Row, method: Method, low: float, high: float) -> Markup:
    digits = (row.sd, row.stderr)
    sign, star = TYPOGRAPHIC[row.record.direction], "*" if row.unfinished else ""
    spread = f"sd {number(row.sd, *digits)} (n={row.n})" if row.sd is not None else "n=1"
    value = element(
        "span",
        element("strong", f"{sign} {_minus(number(row.mean, *digits))}{star} "),
        element("small", f"± {number(row.stderr, *digits)}, {spread}"),
        class_="value",
    )
    rank = element("span", "" if row.rank is None else str(row.rank), class_="rank")
    name = element("span", rank, _key(method), element("span", method.title), class_="name")
    return element("li", name, _marks(row, low, high), value, class_=series_class(method.number))


def _marks(row: Row, low: float, high: float) -> Markup:
    def line(half: float, name: str) -> Markup:
        ends = [scale(low, high, row.mean + sign * half) for sign in (-1, 1)]
        return element("line", x1=ends[0], x2=ends[1], y1=13, y2=13, class_=name)

    seeds = [
        element(
            "circle",
            element("title", f"seed {run.seed}: {record.mean:.2f}"),
            cx=scale(low, high, record.mean),
            cy=13,
            r=2.6,
        )
        for run, record in row.results
    ]
    words = {"exact": "exact", "lower_bound": "lower bound", "upper_bound": "upper bound", "estimate": "estimate"}
    title = f"{words[row.record.direction]} {row.mean:.2f}, error over images {row.stderr:.2f}"
    shape = element("g", element("title", title), mark(row.record.direction, 8))
    return element(
        "svg",
        line(row.sd, "spread") if row.sd is not None else None,
        line(row.stderr, "error"),
        element("g", seeds, class_="dot faint") if row.n > 1 else None,
        element("svg", shape, x=scale(low, high, row.mean), y=13, overflow="visible"),
        class_="strip",
        role="img",
        aria_label=title,
    )


def _scale(low: float, high: float) -> Markup:
    marks = []
    for value in ticks(low, high):
        x = scale(low, high, value)
        marks.append(element("line", x1=x, x2=x, y1=0, y2=5, class_="base"))
        marks.append(element("text", _minus(f"{value:g}"), x=x, y=19, class_="tick", text_anchor="middle"))
    base = element("line", x1="0%", x2="100%", y1=0.5, y2=0.5, class_="base")
    return element("svg", base, marks, class_="strip scale", aria_hidden="true")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _numbers(table: Table, keys: Sequence[str]) -> Markup:
    head = headings(table, keys)
    # The rank, the value, n and the errors, the epoch and the time are numbers.
    right = {0, len(keys) + 1, len(keys) + 2, len(keys) + 3, len(keys) + 4, len(keys) + 6, len(keys) + 7}

    def line(kind: str, texts: Sequence[str]) -> Markup:
        return element("tr", [element(kind, t, class_="number" if i in right else None) for i, t in enumerate(texts)])

    rows = [
        line(
            "td", [_minus(text) if i in right else text for i, text in enumerate(cells(table, row, keys, TYPOGRAPHIC))]
        )
        for row in table.rows
    ]
    body = element("table", element("thead", line("th", head)), element("tbody", rows))
    return element("div", body, class_="wide", tabindex=0, role="region", aria_label="results as numbers")


# Curves ---------------------------------------------------------------------------------------------------

_TAGS = {
    "train/bound": "Training objective's bound",
    "train/reconstruction": "Reconstruction term in training",
    "train/kl": "KL term in training",
}


def curves(place: str, methods: Sequence[Method], tables: Sequence[Table]) -> Iterator[Markup]:
    """Yield the learning curves, by epoch and by time, the parts of the bound, and results against time."""
    figures = []
    samples = sorted({method.runs[0].config.trainer.validation_k for method in methods})
    title = f"Validation log p(x), k={' or '.join(map(str, samples))}"
    validation = [(method, method.curves(VALIDATION)) for method in methods]
    figures.append(_curves(f"{place}-epochs", f"{title}, by epoch", "epoch", validation, by_time=False))
    figures.append(_curves(f"{place}-time", f"{title}, by time", "seconds of training", validation, by_time=True))
    for tag, title in _TAGS.items():
        found = [(method, method.curves(tag)) for method in methods]
        figures.append(_curves(f"{place}-{tag.split('/')[1]}", title, "epoch", found, by_time=False))
    named = {method.name: method for method in methods}
    figures += [_compute(f"{place}-{i}", table, named) for i, table in enumerate(tables)]
    if shown := [figure for figure in figures if figure is not None]:
        yield element("h3", "Learning curves and compute")
        yield element("div", shown, class_="charts")
        yield element("p", _about_curves([run for method in methods for run in method.runs]), class_="soft")


def _about_curves(runs: Sequence[Run]) -> str:
    devices = sorted({str(run.manifest["device"]) for run in runs if run.manifest.get("device")})
    text = "Validation is importance-weighted, of the weights at that time. Time is training time, without evaluation"
    if devices:
        text += f", on {devices[0]}" if len(devices) == 1 else f"; on several devices: {', '.join(devices)}"
    return f"{text}. Against compute: small marks are single seeds, vertical lines the standard error over images."


def _curves(
    name: str, title: str, x_label: str, found: Sequence[tuple[Method, Sequence[Curve]]], *, by_time: bool
) -> Markup | None:
    """Return one chart, None where no run has such a curve."""

    def line(curve: Curve) -> tuple[Sequence[float], Sequence[float]]:
        return (curve.seconds if by_time else curve.epochs), curve.values

    series = []
    for method, own in found:
        if own:
            mean = mean_curve(own)
            last = (
                f"{method.title}: {mean.values[-1]:.2f} at epoch {mean.epochs[-1]:g}" if mean.values else method.title
            )
            seeds = [line(curve) for curve in own] if len(own) > 1 else []
            series.append(Series(method.number, last, line(mean), seeds))
    return chart(name, title, x_label, "nats per image", series) if series else None


# Compute --------------------------------------------------------------------------------------------------


def _compute(name: str, table: Table, methods: Mapping[str, Method]) -> Markup | None:
    """Return results against seconds of training, None where no run recorded its time."""
    series = []
    for row in table.rows:
        method = methods[row.method]
        if points := _points(row, method):
            series.append(Series(method.number, method.title, points=points))
    title = f"{table.conditions.split} {table.conditions.quantity}, k={table.conditions.k}, against compute"
    title = title if table.conditions.k is not None else title.replace("k=None, ", "")
    return (
        chart(f"compute-{name}", title, "seconds of training", "nats per image", series, spread=True)
        if series
        else None
    )


def _points(row: Row, method: Method) -> list[Point]:
    """Return a point for the mean over seeds, and one for each seed where there are several."""
    timed = [(run, record, seconds) for run, record in row.results if (seconds := _training_seconds(run)) is not None]
    if not timed:
        return []
    title, direction = method.title, row.record.direction
    seeds = [
        Point(
            seconds,
            record.mean,
            0.0,
            direction,
            f"{title}, seed {run.seed}: {record.mean:.2f}, {duration(seconds)}",
            False,
        )
        for run, record, seconds in timed
    ]
    x = sum(seconds for *_, seconds in timed) / len(timed)
    words = f"{title}: {row.mean:.2f}, {duration(x)}"
    return [*(seeds if len(timed) > 1 else []), Point(x, row.mean, row.stderr, direction, words)]


def _training_seconds(run: Run) -> float | None:
    last = last_metrics(run.folder)
    return None if last is None else float(last["wall"])


# Diagnostics ----------------------------------------------------------------------------------------------


def diagnostics(methods: Sequence[Method]) -> Iterator[Markup]:
    """Yield what diagnostics.json says: a table of measures, and KL by latent coordinate."""
    found = [
        (method, run, values) for method in methods for run in method.runs if (values := read_diagnostics(run.folder))
    ]
    if not found:
        return
    yield element("h3", "Diagnostics")
    yield _measures(found)
    yield element("details", element("summary", "What these numbers are"), element("dl", _definitions(found)))
    figures = [
        element(
            "figure",
            element("figcaption", f"{method.title}, seed {run.seed}: {title}"),
            bars(f"{title}, {method.title}", values.coordinates[name], method.number, "nats"),
            class_=f"chart s{method.number}",
        )
        for method, run, values in found
        for name, title in _KL_NAMES.items()
        if values.coordinates.get(name)
    ]
    if figures:
        yield element("h4", "KL per latent coordinate")
        yield element("div", figures, class_="charts")


_KL_NAMES = {"kl": "KL, nats", "kl_gaussian_approximation": "KL of the moment-matched Gaussian, nats"}


Found = Sequence[tuple[Method, Run, Diagnostics]]


def _measures(found: Found) -> Markup:
    names = dict.fromkeys(name for *_, values in found for name in values.measures)
    titles = {name: next(v.measures[name].title for *_, v in found if name in v.measures) for name in names}
    head = element(
        "tr", element("th", "method"), element("th", "seed"), [element("th", titles[name]) for name in names]
    )
    rows = [
        element(
            "tr",
            element("td", method.title),
            element("td", str(run.seed), class_="number"),
            [element("td", _measure(values.measures.get(name)), class_="number") for name in names],
            class_=f"s{method.number}",
        )
        for method, run, values in found
    ]
    body = element("table", element("thead", head), element("tbody", rows))
    return element("div", body, class_="wide", tabindex=0, role="region", aria_label="diagnostics")


def _measure(measure: Diagnostic | None) -> str:
    if measure is None or measure.value is None:
        return "-"
    # What is counted is exact, or an estimate whose doubts the definition tells.
    sign = "" if measure.direction == "exact" else f"{TYPOGRAPHIC[measure.direction]} "
    if measure.stderr is None:
        return f"{sign}{_minus(f'{measure.value:.4g}')} {measure.unit}".strip()
    mean, error = number(measure.value, measure.stderr), number(measure.stderr, measure.stderr)
    return f"{sign}{_minus(mean)} ± {error} {measure.unit}".strip()


def _definitions(found: Found) -> Iterator[Markup]:
    """Yield each definition once; they may differ with the encoder."""
    seen: dict[tuple[str, str], None] = {}
    for *_, values in found:
        for measure in values.measures.values():
            seen.setdefault((measure.title, measure.definition))
    for title, definition in seen:
        yield element("dt", title)
        yield element("dd", definition)


# Pictures -------------------------------------------------------------------------------------------------


def shown_pictures(methods: Sequence[Method]) -> Iterator[Markup]:
    """Yield the pictures, those of one kind side by side."""
    kinds: dict[tuple[str, bool], list[Markup]] = {}
    for method in methods[:_MOST_PICTURED]:
        run, found = next(((run, own) for run in method.runs if (own := pictures(run))), (method.runs[0], []))
        for picture in found:
            # What has words in it needs room to be read.
            large = picture.size[0] > _SMALL
            kinds.setdefault((picture.title, large), []).append(_picture(picture, method, run))
    for (title, large), figures in kinds.items():
        yield element("h3", title[:1].upper() + title[1:])
        yield element("div", figures, class_="pictures large" if large else "pictures")
    if len(methods) > _MOST_PICTURED:
        yield element("p", f"pictures of the first {_MOST_PICTURED} of {len(methods)} methods", class_="note")


def _picture(picture: Picture, method: Method, run: Run) -> Markup:
    text = f"{method.title}, seed {run.seed}, {picture.detail}"
    width, height = picture.size
    image = element("img", src=picture.uri, alt=f"{picture.title}: {text}", width=width, height=height)
    return element("figure", image, element("figcaption", text), class_=f"s{method.number}")
