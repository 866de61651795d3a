"""Charts as SVG: lines, points and bars on axes that fit a phone as well as a laptop.

A series is drawn in the class ``c<N>`` (its colour) and ``d<N>`` (its dashes) and belongs to ``s<N>``, by which the
page shows and hides it. Every mark carries its value as a title, which browsers show under the pointer and read aloud.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vaebench.direction import Direction
from vaebench.report.curves import curves_span
from vaebench.report.markup import Markup, element

__all__ = ["STYLES", "Line", "Point", "Series", "bars", "chart", "mark", "scale", "series_class", "ticks"]

COLOURS, DASHES = 8, 3
"""How many colours there are before they come again with other dashes, and how many of those."""
STYLES = COLOURS * DASHES
WIDTH, HEIGHT = 400, 285
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 28, 44

Line = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Point:
    """A value with its error, at a place on the horizontal axis."""

    x: float
    y: float
    error: float
    direction: Direction
    title: str
    main: bool = True
    """Whether it stands for all seeds; a single seed's is small."""


@dataclass(frozen=True)
class Series:
    """What one method shows in a chart."""

    number: int
    title: str
    main: Line = ((), ())
    seeds: Sequence[Line] = ()
    """The single seeds' lines behind the main one."""
    points: Sequence[Point] = field(default=())


def series_class(number: int) -> str:
    """Return the classes of everything that a series draws."""
    return f"s{number} c{number % COLOURS} d{number // COLOURS % DASHES}"


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers in a range, at most about ``most``."""
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten in a range, or the powers alone where those are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [f * 10.0**p for p in powers for f in factors if low * (1 - 1e-9) <= f * 10.0**p <= high * (1 + 1e-9)]


@dataclass(frozen=True)
class _Axes:
    """From values to places in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]
    logarithmic: bool

    def across(self, x: float) -> float:
        low, high = self.x
        part = math.log(x / low) / math.log(high / low) if self.logarithmic else (x - low) / (high - low)
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def down(self, y: float) -> float:
        low, high = self.y
        return TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)


def chart(
    name: str, title: str, x_label: str, y_label: str, series: Sequence[Series], *, spread: bool = False
) -> Markup:
    """Return a figure with axes.

    Args:
        name: unique in the page.
        title: what the chart shows.
        x_label: with its unit.
        y_label: with its unit.
        series: in the order of drawing, the first one on top.
        spread: whether the horizontal axis may become logarithmic where values span more than a factor of 20.
    """
    axes = _axes(series, spread=spread)
    marks = [_drawn(one, axes) for one in reversed(series)]
    clip = element("rect", x=LEFT, y=TOP - 4, width=WIDTH - LEFT - RIGHT + 6, height=HEIGHT - TOP - BOTTOM + 8)
    svg = element(
        "svg",
        element("title", title),
        element("clipPath", clip, id=f"clip-{name}"),
        list(_grid(axes)),
        element("text", y_label, x=4, y=14, class_="axis"),
        element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, class_="axis", text_anchor="middle"),
        element("g", marks, clip_path=f"url(#clip-{name})"),
        viewbox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )
    return element("figure", element("figcaption", title), svg, class_="chart")


def _axes(series: Sequence[Series], *, spread: bool) -> _Axes:
    xs = [x for one in series for line in (one.main, *one.seeds) for x in line[0]]
    xs += [point.x for one in series for point in one.points]
    ys = [y for one in series for line in (one.main, *one.seeds) for y in line[1]]
    tips = [point.y + sign * point.error for one in series for point in one.points for sign in (-1, 1)]
    low, high = curves_span(ys) if ys else (min(tips), max(tips))
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


def _grid(axes: _Axes) -> Iterator[Markup]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in ticks(*axes.y):
        y = axes.down(value)
        yield element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid")
        yield element("text", _tick(value), x=LEFT - 6, y=y + 4, class_="tick", text_anchor="end")
    for value in _decades(*axes.x) if axes.logarithmic else ticks(*axes.x):
        x = axes.across(value)
        yield element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="base")
        yield element("text", _tick(value), x=x, y=bottom + 18, class_="tick", text_anchor="middle")
    yield element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="base")


def _tick(value: float) -> str:
    text = f"{value:,.10g}" if abs(value) >= 1e-9 else "0"
    return text.replace("-", "\N{MINUS SIGN}")


def _drawn(series: Series, axes: _Axes) -> Markup:
    title = element("title", series.title)
    lines = [element("path", d=_path(line, axes), class_="seed") for line in series.seeds]
    if series.main[0]:
        lines.append(element("path", title, d=_path(series.main, axes), class_="mean"))
        if len(series.main[0]) == 1:
            ((x,), (y,)) = series.main
            lines.append(element("circle", title, cx=axes.across(x), cy=axes.down(y), r=3, class_="dot"))
    points = [_point(point, axes) for point in series.points]
    return element("g", lines, points, class_=series_class(series.number))


def _path(line: Line, axes: _Axes) -> str:
    places = [f"{axes.across(x):.1f} {axes.down(y):.1f}" for x, y in zip(*line, strict=True)]
    return "M" + "L".join(places)


def _point(point: Point, axes: _Axes) -> Markup:
    x = axes.across(point.x)
    bar = None
    if point.main:
        tips = [axes.down(point.y + sign * point.error) for sign in (-1, 1)]
        bar = element("line", x1=x, x2=x, y1=tips[0], y2=tips[1], class_="error")
    inner = mark(point.direction, 6 if point.main else 3.5, up=True)
    place = f"translate({x:.1f} {axes.down(point.y):.1f})"
    return element("g", bar, element("g", element("title", point.title), inner, transform=place), class_=_faint(point))


def _faint(point: Point) -> str | None:
    return None if point.main else "faint"


def mark(direction: Direction, size: float, *, up: bool = False) -> Markup:
    """Return the mark of a number around the origin: a triangle points to where the truth lies.

    With ``up`` larger numbers lie above, else to the right. A ring bounds nothing; a disc is exact.
    """
    if direction in ("exact", "estimate"):
        return element("circle", r=0.8 * size, class_="disc" if direction == "exact" else "ring")
    tip = size if direction == "lower_bound" else -size
    corners = [(tip, 0.0), (-0.7 * tip, -0.85 * size), (-0.7 * tip, 0.85 * size)]
    places = [(y, -x) if up else (x, y) for x, y in corners]
    return element("path", d="M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + "Z", class_="disc")


def scale(low: float, high: float, value: float) -> str:
    """Return where ``value`` lies in a range, in percent."""
    return f"{100 * (value - low) / (high - low):.2f}%"


def bars(name: str, values: Sequence[float], number: int, unit: str) -> Markup:
    """Return one bar for each latent coordinate, the largest first."""
    ordered = sorted(values, reverse=True)
    high = max(ordered[0], 1e-9)
    width, height, left, top, bottom = 320, 130, 34, 8, 20
    step = (width - left) / len(ordered)
    shapes = [
        element(
            "rect",
            element("title", f"{value:.3g} {unit}"),
            x=left + i * step,
            y=top + (1 - max(value, 0.0) / high) * (height - top - bottom),
            width=max(step - 1, 0.5 * step),
            height=max(value, 0.0) / high * (height - top - bottom),
            class_="bar",
        )
        for i, value in enumerate(ordered)
    ]
    base = height - bottom
    axis = [
        element("line", x1=left, x2=width, y1=base, y2=base, class_="base"),
        element("text", f"{high:.2g}", x=left - 4, y=top + 8, class_="tick", text_anchor="end"),
        element("text", "0", x=left - 4, y=base, class_="tick", text_anchor="end"),
        element("text", f"{len(ordered)} coordinates, largest first", x=left, y=height - 5, class_="tick"),
    ]
    return element(
        "svg",
        element("title", name),
        axis,
        element("g", shapes, class_=series_class(number)),
        viewbox=f"0 0 {width} {height}",
        role="img",
    )
