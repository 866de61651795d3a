"""Charts: the geometry of lines, points and bars that the templates draw as SVG.

SVG with classes follows the style sheet (dark mode, hiding a method) and needs a few kB per chart. Every mark has its
value as a title, which browsers show under the pointer and screen readers read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vaebench.direction import Direction
from vaebench.report.curves import shown_range

__all__ = [
    "STYLES",
    "BarChart",
    "Chart",
    "Line",
    "Point",
    "Series",
    "bar_chart",
    "chart",
    "colour_class",
    "percent",
    "tick_text",
    "ticks",
    "triangle",
]

COLOURS, DASHES = 8, 3
STYLES = COLOURS * DASHES
"""The number of different looks of a series: every colour with every kind of dashes."""

Line = tuple[Sequence[float], Sequence[float]]
Tick = tuple[float, str]


class _Frame(NamedTuple):
    """The size of a chart, and the place of its axes in it."""

    width: int = 400
    height: int = 285
    left: int = 54
    right: int = 386
    top: int = 28
    bottom: int = 241


FRAME = _Frame()


@dataclass(frozen=True)
class Point:
    """A value with its error, at a place on the horizontal axis."""

    x: float
    y: float
    error: float
    direction: Direction
    title: str
    main: bool = True
    """Whether it is the mean over seeds; a single seed has a small mark."""


@dataclass(frozen=True)
class Series:
    """The lines and points of one group of runs."""

    number: int
    title: str
    main: Line = ((), ())
    seeds: Sequence[Line] = ()
    """The lines of single seeds, behind the main line."""
    points: Sequence[Point] = field(default=())


class _PlacedPoint(NamedTuple):
    """A point in the coordinates of the SVG; ``low`` and ``high`` are the ends of its error bar."""

    x: float
    low: float
    high: float
    place: str
    direction: Direction
    title: str
    main: bool


class _PlacedSeries(NamedTuple):
    """A series in the coordinates of the SVG."""

    classes: str
    title: str
    seed_paths: list[str]
    main_path: str | None
    dot: tuple[float, float] | None
    """The only point of a line that has one."""
    points: list[_PlacedPoint]


class Chart(NamedTuple):
    """A figure with axes, in the coordinates of the SVG."""

    name: str
    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[_PlacedSeries]
    frame: _Frame = FRAME


class _Bar(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    title: str


class BarChart(NamedTuple):
    """A figure with a bar for each latent coordinate."""

    number: int
    classes: str
    caption: str
    title: str
    highest: str
    bars: list[_Bar]
    width: int = 320
    height: int = 130
    left: int = 34
    top: int = 8
    base: int = 110


def colour_class(number: int) -> str:
    """Return the classes of the colour and the dashes of a series."""
    return f"c{number % COLOURS} d{number // COLOURS % DASHES}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers in a range, at most about ``most``."""
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten in a range, or only the powers if the range is wide."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [f * 10.0**p for p in powers for f in factors if low * (1 - 1e-9) <= f * 10.0**p <= high * (1 + 1e-9)]


def tick_text(value: float, digits: int = 10) -> str:
    """Return the label of a tick, with a typographic minus sign."""
    text = f"{value:,.{digits}g}" if abs(value) >= 1e-9 else "0"
    return text.replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class _Axes:
    """The map from values to coordinates of the SVG."""

    x: tuple[float, float]
    y: tuple[float, float]
    logarithmic: bool

    def across(self, x: float) -> float:
        low, high = self.x
        part = math.log(x / low) / math.log(high / low) if self.logarithmic else (x - low) / (high - low)
        return FRAME.left + part * (FRAME.right - FRAME.left)

    def down(self, y: float) -> float:
        low, high = self.y
        return FRAME.top + (high - y) / (high - low) * (FRAME.bottom - FRAME.top)

    def path(self, line: Line) -> str:
        return "M" + "L".join(f"{self.across(x):.1f} {self.down(y):.1f}" for x, y in zip(*line, strict=True))


def chart(
    name: str, title: str, x_label: str, y_label: str, series: Sequence[Series], *, spread: bool = False
) -> Chart:
    """Return a figure with axes.

    Args:
        name: unique in the page.
        title: the caption.
        x_label: the label of the horizontal axis, with its unit.
        y_label: the label of the vertical axis, with its unit.
        series: the first one is drawn on top.
        spread: whether the horizontal axis may be logarithmic, if the values span more than a factor of 20.
    """
    axes = _axes(series, spread=spread)
    x_values = _decades(*axes.x) if axes.logarithmic else ticks(*axes.x)
    return Chart(
        name,
        title,
        x_label,
        y_label,
        [(axes.across(value), tick_text(value)) for value in x_values],
        [(axes.down(value), tick_text(value)) for value in ticks(*axes.y)],
        [_placed(one, axes) for one in series],
    )


def _axes(series: Sequence[Series], *, spread: bool) -> _Axes:
    xs = [x for one in series for line in (one.main, *one.seeds) for x in line[0]]
    xs += [point.x for one in series for point in one.points]
    ys = [y for one in series for line in (one.main, *one.seeds) for y in line[1]]
    tips = [point.y + sign * point.error for one in series for point in one.points for sign in (-1, 1)]
    low, high = shown_range(ys) if ys else (min(tips), max(tips))
    room = 0.04 * (high - low) or 0.5
    logarithmic = spread and min(xs) > 0 and max(xs) / min(xs) > 20
    return _Axes(_x_range(xs, logarithmic=logarithmic, points=not ys), (low - room, high + room), logarithmic)


def _x_range(xs: Sequence[float], *, logarithmic: bool, points: bool) -> tuple[float, float]:
    low, high = min(xs), max(xs)
    if logarithmic:
        return low / 1.15, high * 1.15
    if points:
        return 0.0, 1.1 * high or 1.0
    return (min(0.0, low), high) if high > min(0.0, low) else (0.0, 1.0)


def _placed(series: Series, axes: _Axes) -> _PlacedSeries:
    xs, ys = series.main
    return _PlacedSeries(
        f"s{series.number} {colour_class(series.number)}",
        series.title,
        [axes.path(line) for line in series.seeds],
        axes.path(series.main) if xs else None,
        (axes.across(xs[0]), axes.down(ys[0])) if len(xs) == 1 else None,
        [_placed_point(point, axes) for point in series.points],
    )


def _placed_point(point: Point, axes: _Axes) -> _PlacedPoint:
    x = axes.across(point.x)
    low, high = (axes.down(point.y + sign * point.error) for sign in (-1, 1))
    place = f"{x:.1f} {axes.down(point.y):.1f}"
    return _PlacedPoint(x, low, high, place, point.direction, point.title, point.main)


def triangle(direction: Direction, size: float, *, up: bool = False) -> str:
    """Return the path of a triangle around the origin that points from the bound to the true value.

    Larger values are to the right, or above with ``up``.
    """
    tip = size if direction is Direction.LOWER_BOUND else -size
    corners = [(tip, 0.0), (-0.7 * tip, -0.85 * size), (-0.7 * tip, 0.85 * size)]
    places = [(y, -x) if up else (x, y) for x, y in corners]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + "Z"


def percent(low: float, high: float, value: float) -> str:
    """Return the place of ``value`` in a range, in percent."""
    return f"{100 * (value - low) / (high - low):.2f}%"


def bar_chart(caption: str, title: str, values: Sequence[float], number: int, unit: str) -> BarChart:
    """Return one bar for each latent coordinate, the largest first."""
    ordered = sorted(values, reverse=True)
    high = max(ordered[0], 1e-9)
    found = BarChart(number, f"s{number} {colour_class(number)}", caption, title, f"{high:.2g}", [])
    step = (found.width - found.left) / len(ordered)
    for index, value in enumerate(ordered):
        height = max(value, 0.0) / high * (found.base - found.top)
        place = found.left + index * step
        found.bars.append(_Bar(place, found.base - height, max(step - 1, 0.5 * step), height, f"{value:.3g} {unit}"))
    return found
