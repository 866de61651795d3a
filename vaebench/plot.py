"""Figures for papers and notebooks: learning curves, results with errors, paired differences, samples.

Each function takes runs (`vaebench.runs`, run folders or folders of runs) and returns a figure. `savefig` writes it as
pdf with TrueType fonts, svg or png. Axes and captions name direction, estimator, protocol and error. The style sheet is
``plot.mplstyle``; the user's own settings of matplotlib change nothing.
"""

import io
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vaebench.cli.selection import nothing_to_compare
from vaebench.config import read
from vaebench.direction import Direction
from vaebench.errors import UserError
from vaebench.notebook import RunOrPath, Runs
from vaebench.notebook import runs as runs_of
from vaebench.records.current import VALIDATION
from vaebench.records.text import counted, decimals, number, with_error
from vaebench.report.charts import typographic
from vaebench.report.comparison import Comparison, compare
from vaebench.report.conditions import LOG_LIKELIHOOD
from vaebench.report.curves import TRAINING, Curve, curve, extremes, shown_range
from vaebench.report.differences import distinguishing_settings
from vaebench.report.formats import baseline_name, method_name
from vaebench.report.frames import method_names
from vaebench.report.runs import Run
from vaebench.report.tables import Row, Table

try:
    from matplotlib import style
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise UserError("vaebench.plot needs matplotlib: pip install 'vaebench[plot]'") from error

__all__ = ["PaperFigure", "curves", "differences", "forest", "grid", "samples"]

Given = RunOrPath | Iterable[RunOrPath]
Time = Literal["epoch", "seconds"]

STYLE = Path(__file__).with_name("plot.mplstyle")
_DASHES = ("-", "--", ":")
_COLOURS = 8  # in the style sheet
_MARKERS = {Direction.LOWER_BOUND: ">", Direction.UPPER_BOUND: "<", Direction.EXACT: "s", Direction.ESTIMATE: "o"}
"""A triangle points to where the true value lies."""
_MARKER_NAMES = {
    Direction.LOWER_BOUND: "▷ lower bound",
    Direction.UPPER_BOUND: "◁ upper bound",
    Direction.EXACT: "□ exact",
    Direction.ESTIMATE: "○ estimate, not a bound",
}
_SIGNS = {Direction.LOWER_BOUND: "≥", Direction.UPPER_BOUND: "≤", Direction.EXACT: "=", Direction.ESTIMATE: "~"}
_WIDTH = 5.5  # inches: the text width of a page
_ROW, _FRAME = 0.27, 1.25  # inches: a row of a chart with a row for each method, and its axis with the caption
_CAPTION_SIZE = 6  # points


class PaperFigure(Figure):
    """A figure that keeps the style sheet when it is saved, and that a notebook shows."""

    def savefig(self, fname: Any, **options: Any) -> None:
        """Write the figure to a file; its name ends in .pdf, .svg or .png. Options are those of matplotlib."""
        with _styled():
            super().savefig(fname, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


# Figures --------------------------------------------------------------------------------------------------


def curves(runs: Given, *, quantity: str = VALIDATION, time: Time = "epoch") -> PaperFigure:
    """Plot a learning curve for each method: the mean over seeds, and the range over seeds as a band.

    Args:
        runs: see the module.
        quantity: the name of a metric, for example ``validation/log_likelihood``, ``train/bound`` or ``train/kl``.
        time: ``epoch``, or ``seconds`` of training.

    Raises:
        UserError: no run has the quantity.
    """
    read_runs = _runs(runs).read
    found = _found_curves(read_runs, quantity)
    legend = _fitting_legend([label for label, _ in found.values()])
    size = (_WIDTH, _CHART + legend.height)
    return _drawn(size, lambda figure: _curves(figure.subplots(), read_runs, found, legend, quantity, time))


def forest(runs: Given, *, quantity: str = LOG_LIKELIHOOD) -> PaperFigure:
    """Plot the results of all methods, best first: the mean over seeds, each seed, and the error over images.

    The methods are those of the largest table of ``vaebench compare``.

    Raises:
        UserError: no run has a result of the quantity.
    """
    comparison, styles = _compared(runs, quantity, None)
    size = (_WIDTH, _FRAME + _ROW * len(comparison.tables[0].rows))
    return _drawn(size, lambda figure: _forest(figure.subplots(), comparison, styles))


def differences(runs: Given, *, baseline: str, quantity: str = LOG_LIKELIHOOD) -> PaperFigure:
    """Plot the paired differences of all methods from one method, with intervals.

    Args:
        runs: see the module.
        baseline: a condition on the method, for example ``encoder=gaussian``.
        quantity: of the results.

    Raises:
        UserError: no run has a result of the quantity, or no method meets the condition, or none can be compared to it.
    """
    comparison, styles = _compared(runs, quantity, baseline)
    count = sum(row.difference is not None for row in comparison.tables[0].rows)
    return _drawn((_WIDTH, _FRAME + _ROW * count), lambda figure: _differences(figure.subplots(), comparison, styles))


def samples(runs: Given, *, n: int = 36, seed: int = 0, device: str = "auto") -> PaperFigure:
    """Show samples of several methods side by side: pixel means of draws from the prior, with a run's best weights.

    Args:
        runs: see the module; of each method, the run with the lowest seed that has saved weights is shown.
        n: samples of each method.
        seed: of the draws.
        device: as in the settings.

    Raises:
        UserError: no run has saved weights, or a checkpoint is corrupt.
    """
    shown = _first_seeds(_runs(runs).read)
    size = (_WIDTH, _samples_height(shown))
    return _drawn(size, lambda figure: _samples(figure, shown, n, seed, device))


def grid(runs: Given, *, baseline: str | None = None, n: int = 36, device: str = "auto") -> PaperFigure:
    """Return one figure with all panels: curves, results, differences from a baseline, samples.

    Args:
        runs: see the module.
        baseline: a condition on the method to compare to; None for no panel of differences.
        n: samples of each method; 0 for no panel of samples.
        device: of the samples.

    Raises:
        UserError: see `forest`, `differences` and `samples`.
    """
    chosen = _runs(runs)
    comparison, styles = _compared(chosen, LOG_LIKELIHOOD, baseline)
    methods, shown = len(comparison.tables[0].rows), _first_seeds(chosen.read) if n else []
    found = _found_curves(chosen.read, VALIDATION)
    legend = _fitting_legend([label for label, _ in found.values()])

    def draw_curves(part: SubFigure) -> None:
        _curves(part.subplots(), chosen.read, found, legend, VALIDATION, "epoch")

    panels: list[tuple[float, Callable[[SubFigure], None]]] = [
        (_CHART + legend.height, draw_curves),
        (_FRAME + _ROW * methods, lambda part: _forest(part.subplots(), comparison, styles)),
    ]
    if baseline is not None:
        height = _FRAME + _ROW * (methods - 1)
        panels.append((height, lambda part: _differences(part.subplots(), comparison, styles)))
    if n:
        panels.append((_samples_height(shown), lambda part: _samples(part, shown, n, 0, device)))
    heights = [height for height, _ in panels]

    def draw(figure: PaperFigure) -> None:
        parts = figure.subfigures(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
        for letter, part, (_, panel) in zip("abcd", parts, panels, strict=False):
            panel(part)
            if part.legends:  # its place is that of a title
                part.legends[0].set_title(letter, {"weight": "bold", "size": 10})
                part.legends[0].set_alignment("left")
            else:
                part.suptitle(letter, x=0.01, ha="left", fontweight="bold", fontsize=10)

    return _drawn((_WIDTH, sum(heights)), draw)


# Their parts ----------------------------------------------------------------------------------------------


class _Look(NamedTuple):
    """How the marks of a method look in every chart of a figure."""

    color: str
    linestyle: str


def _styled() -> AbstractContextManager[Any]:
    return style.context(STYLE, after_reset=True)


def _drawn(size: tuple[float, float], draw: Callable[[PaperFigure], object]) -> PaperFigure:
    with _styled():
        figure = PaperFigure(figsize=size)
        draw(figure)
    return figure


def _runs(given: Given) -> Runs:
    return given if isinstance(given, Runs) else runs_of(given)


def _looks(runs: Sequence[Run]) -> dict[str, _Look]:
    """Return the look of each method, in the order in which the runs name them."""
    methods = list(dict.fromkeys(run.method for run in runs))
    return {name: _Look(f"C{i % _COLOURS}", _DASHES[i // _COLOURS % len(_DASHES)]) for i, name in enumerate(methods)}


def _plain(text: str) -> str:
    """Return a text that matplotlib shows as it is, without formulas."""
    return text.replace("$", r"\$")


def _caption(axes: Axes, *sentences: str, below: int = 30) -> None:
    """Write small text below the axis, at the left edge of the figure; ``below`` is its distance in points."""
    width = int(_WIDTH * 72 / (0.62 * _CAPTION_SIZE))
    text = textwrap.fill(". ".join(filter(None, sentences)) + ".", width)
    axes.annotate(
        _plain(text),
        (0, 0),
        xycoords=("figure fraction", "axes fraction"),
        xytext=(6, -below),
        textcoords="offset points",
        va="top",
        fontsize=_CAPTION_SIZE,
        color="0.3",
    )


_FEW = 4
"""Methods whose names fit into the chart of curves."""
_LINE = 90
"""Letters of a line of its legend."""
_CHART = 3.2
"""Inches: the height of the chart of curves with its axis and caption, without a legend above."""


class _Legend(NamedTuple):
    """Where the names of the methods stand: above the chart, or in it if ``columns`` is 0."""

    columns: int
    height: float
    """Inches that it adds to the figure."""


def _fitting_legend(labels: Sequence[str]) -> _Legend:
    """Return the legend with the most columns that is no wider than the figure."""

    def size(columns: int) -> tuple[float, float]:
        with _styled():
            figure = Figure(figsize=(_WIDTH, 1.0))
            box = figure.legend(handles=[Line2D([], [], label=label) for label in labels], ncols=columns)
            width, height = box.get_window_extent().transformed(figure.dpi_scale_trans.inverted()).size
        return float(width), float(height)

    if len(labels) <= _FEW and size(1)[0] <= 0.6 * _WIDTH:
        return _Legend(0, 0.0)
    columns = next((n for n in (3, 2) if size(n)[0] <= _WIDTH), 1)
    return _Legend(columns, size(columns)[1])


def _found_curves(runs: Sequence[Run], quantity: str) -> dict[str, tuple[str, list[Curve]]]:
    """Return the label and the curves, one for each seed, of each method that has the quantity.

    UserError if none has it.
    """
    found: dict[str, tuple[str, list[Curve]]] = {}
    for run, name in zip(runs, method_names(runs), strict=True):
        if (one := curve(run, quantity)).values:
            found.setdefault(run.method, (name, []))[1].append(one)
    if not found:
        raise UserError(f"no run has a metric '{quantity}': `vaebench curves` lists the metrics of runs")
    unfinished = Counter(run.method for run in runs if run.state != "finished")

    def label(method: str, name: str, seeds: int) -> str:
        rest = f", {unfinished[method]} unfinished" if unfinished[method] else ""
        lines = textwrap.wrap(f"{name} ({counted(seeds, 'seed')}{rest})", _LINE, subsequent_indent="    ")
        return _plain("\n".join(lines))

    return {method: (label(method, name, len(curves)), curves) for method, (name, curves) in found.items()}


def _curves(
    axes: Axes,
    runs: Sequence[Run],
    found: Mapping[str, tuple[str, Sequence[Curve]]],
    legend: _Legend,
    quantity: str,
    time: Time,
) -> None:
    import numpy

    looks = _looks(runs)
    ends: list[float] = []
    for method, (label, curves) in found.items():
        by_epoch = [dict(zip(one.epochs, zip(one.seconds, one.values, strict=True), strict=True)) for one in curves]
        epochs = [epoch for epoch in by_epoch[0] if all(epoch in one for one in by_epoch)]
        seconds, values = numpy.array([[one[epoch] for epoch in epochs] for one in by_epoch]).T
        at = epochs if time == "epoch" else numpy.median(seconds, axis=1).tolist()
        mark = "o" if len(at) == 1 else ""  # a line of one place is not seen
        axes.plot(at, values.mean(1), label=label, marker=mark, **looks[method]._asdict())
        axes.fill_between(at, values.min(1), values.max(1), color=looks[method].color, alpha=0.18, linewidth=0)
        ends += [value for of_seed in values.T for value in extremes(at, of_seed)]
    if quantity in (VALIDATION, TRAINING):
        low, high = shown_range(ends)
        axes.set_ylim(low, high + 0.04 * (high - low))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_xlabel("epoch" if time == "epoch" else "seconds of training, median over seeds")
    title, *sentences = _meaning(runs, quantity)
    axes.set_ylabel(_plain(title))
    if legend.columns:
        axes.figure.legend(loc="outside upper left", ncols=legend.columns)
    else:
        axes.legend(loc="lower right")
    _caption(axes, *sentences, "Line: mean over seeds; band: range over seeds")


def _meaning(runs: Sequence[Run], quantity: str) -> list[str]:
    """Return the label of the axis of a learning curve, and the sentences of its caption."""
    if quantity not in (VALIDATION, TRAINING):
        return [quantity]
    names = " / ".join(dict.fromkeys(run.measure.named("log p(x)") for run in runs))
    data = ", ".join(dict.fromkeys(f"{run.config.dataset.name}/{run.config.dataset.binarization}" for run in runs))
    if quantity == TRAINING:
        return [f"bound on {names} in training\n(lower bound), nats per image", data]
    return [f"validation {names}\n(lower bound), nats per image", f"{data}, {_listed(run.validation for run in runs)}"]


def _listed(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _compared(runs: Given, quantity: str, baseline: str | None) -> tuple[Comparison, Mapping[str, _Look]]:
    chosen = _runs(runs)
    comparison = compare(chosen.folders, quantity=quantity, baseline=baseline)
    if not comparison.tables:
        raise nothing_to_compare(comparison)
    return comparison, _looks(chosen.read)


def _names(table: Table, rows: Sequence[Row]) -> list[str]:
    keys = distinguishing_settings([row.settings for row in table.rows])
    return [_plain(method_name(table, row, keys)) for row in rows]


def _rows_axis(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a chart, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _beside(axes: Axes, row: int, text: str, *, bold: bool = False) -> None:
    """Write a number at the right of a row."""
    weight = "bold" if bold else "normal"
    place = ("axes fraction", "data")
    axes.annotate(text, (1.02, row), xycoords=place, va="center", fontsize=7, fontweight=weight, annotation_clip=False)


def _forest(axes: Axes, comparison: Comparison, looks: Mapping[str, _Look]) -> None:
    table = comparison.tables[0]
    rows = table.rows
    for i, row in enumerate(rows):
        direction, look = row.record.direction, looks[row.method]
        axes.errorbar(
            row.mean,
            i,
            xerr=row.stderr,
            color=look.color,
            marker=_MARKERS[direction],
            markerfacecolor="white" if direction is Direction.ESTIMATE else look.color,
            elinewidth=0.9,
            capsize=2,
            zorder=2,
        )
        if row.n > 1:
            means = [result.record.mean for result in row.results]
            axes.scatter(means, [i + 0.25] * row.n, s=5, color=look.color, alpha=0.7, linewidths=0, zorder=3)
        value = typographic(with_error(row.mean, row.stderr, sign="±"))
        _beside(axes, i, f"{_SIGNS[direction]} {value}{row.marks}", bold=row.best)
    names = [
        name if row.rank is None else f"{f'#{row.rank}' if row.n > 1 else f'(#{row.rank})'}  {name}"
        for name, row in zip(_names(table, rows), rows, strict=True)
    ]
    _rows_axis(axes, names)
    conditions = table.conditions
    axes.set_xlabel(_plain(f"{conditions.split} {conditions.measure.named(conditions.quantity)}, nats per image"))
    present = dict.fromkeys(row.record.direction for row in rows)
    ranked = any(row.rank is not None for row in rows)
    _caption(
        axes,
        f"{conditions.protocol}, {', '.join(conditions.words())}",
        "; ".join(_MARKER_NAMES[direction] for direction in present),
        "Mean over seeds ± standard error over images, which all methods share; dots: seeds"
        if any(row.n > 1 for row in rows)
        else "One seed ± standard error over images",
        "#: rank, shared by methods that paired differences cannot tell apart; in brackets: one seed" if ranked else "",
        "! a looser bound" if table.looser else "",
        _other_tables(comparison),
    )


def _other_tables(comparison: Comparison) -> str:
    count = len(comparison.tables)
    return f"The largest of {count} tables of comparable results" if count > 1 else ""


def _differences(axes: Axes, comparison: Comparison, looks: Mapping[str, _Look]) -> None:
    table = comparison.tables[0]
    rows = [row for row in table.rows if row.difference is not None]
    if not rows:
        raise UserError("no method can be compared to the baseline: train both with the same seeds and other settings")
    axes.axvline(0, color="0.4", linewidth=0.8)
    for i, row in enumerate(rows):
        difference, color = row.difference, looks[row.method].color
        assert difference is not None
        interval = difference.interval
        half = interval.half if interval is not None else None
        axes.errorbar(
            difference.mean,
            i,
            xerr=half,
            color=color,
            marker="o" if difference.of_bounds else "d",
            markerfacecolor=color if difference.told_apart else "white",
            elinewidth=1.1,
            capsize=2.5,
        )
        places = decimals(half)
        ends = "" if half is None else f" ± {number(half, half)}"
        mark = "" if difference.of_bounds else "~ "
        text = typographic(f"{mark}{difference.mean:+.{places}f}{ends}")
        _beside(axes, i, text, bold=difference.told_apart)
    _rows_axis(axes, _names(table, rows))
    conditions = table.conditions
    quantity = conditions.measure.named(conditions.quantity)
    axes.set_xlabel(_plain(f"difference in {conditions.split} {quantity} from {baseline_name(table)}, nats per image"))
    bounds = all(row.difference.of_bounds for row in rows if row.difference)
    _caption(
        axes,
        f"{conditions.protocol}, {', '.join(conditions.words())}",
        f"Intervals: the wider of those over common seeds and over common images, 95% for {len(rows)} "
        f"comparison{'s' * (len(rows) > 1)} together (Bonferroni)",
        "Filled: told apart from the baseline (Holm's test)",
        "Both numbers of a difference are bounds: it is that of log-likelihoods only if they are equally tight"
        if bounds
        else "◇ a difference that involves an estimate, which is not a bound",
        _other_tables(comparison),
    )


_PANELS = 5  # methods beside each other
_LETTERS = 24  # of a line above such a panel


def _first_seeds(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Return the run with the lowest seed of each method that has weights, with the method's name."""
    from vaebench.records.checkpoint import Checkpoints

    first: dict[str, tuple[str, Run]] = {}
    for run, name in sorted(zip(runs, method_names(runs), strict=True), key=lambda both: both[0].seed):
        if run.method not in first and Checkpoints(run.folder.checkpoints).exists("best"):
            first[run.method] = name, run
    if not first:
        raise UserError("no run has saved weights yet, which samples need: train one to its first validation")
    return [first[method] for method in dict.fromkeys(run.method for run in runs) if method in first]


def _samples_height(shown: Sequence[tuple[str, Run]]) -> float:
    columns = min(_PANELS, len(shown))
    lines = max(len(textwrap.wrap(name, _LETTERS)) for name, _ in shown)
    return -(-len(shown) // columns) * (min(1.6, _WIDTH / columns) + 0.15 * lines) + 0.45


def _samples(figure: Figure | SubFigure, shown: Sequence[tuple[str, Run]], n: int, seed: int, device: str) -> None:
    from vaebench import draw
    from vaebench.experiment import load
    from vaebench.isolation import isolated
    from vaebench.records.pictures import grid as arranged

    columns = min(_PANELS, len(shown))
    rows = -(-len(shown) // columns)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, run) in zip(panels, shown, strict=False):
        with isolated():
            experiment = load(run.folder.path, replace(read(run.folder.path), device=device))
            means = draw.samples(experiment, experiment.modules.eval(), n, seed)
        images = arranged(means.reshape(-1, *experiment.data.image_shape), round(n**0.5))
        axes.imshow(images, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(_plain(textwrap.fill(name, _LETTERS)), fontsize=7)
    priors = _listed(run.config.prior.name for _, run in shown)
    seeds = _listed(str(run.seed) for _, run in shown)
    text = f"Pixel means of draws from the prior ({priors}); the weights best in validation, seed {seeds}."
    figure.supxlabel(text, fontsize=_CAPTION_SIZE, color="0.3", x=0.01, ha="left")
