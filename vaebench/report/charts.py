"""Charts: the geometry of lines, points and bars that the templates draw as SVG.

SVG with classes follows the style sheet (dark mode, hiding a method) and needs a few kB per chart. Every mark has its
value as a title, which browsers show under the pointer and screen readers read.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vaebench.direction import Direction
from vaebench.report.curves import extremes, shown_range
from vaebench.report.groups import RunGroup

__all__ = [
    "FRAME",
    "BarChart",
    "Chart",
    "EndLabel",
    "Point",
    "Series",
    "axes_of",
    "percent",
    "tick_text",
    "ticks",
    "triangle",
    "typographic",
]

Line = tuple[Sequence[float], Sequence[float]]


class _Frame(NamedTuple):
    """The size of a chart, and the place of its axes in it."""

    width: int = 400
    height: int = 204
    left: int = 50
    right: int = 296
    top: int = 24
    bottom: int = 164


FRAME = _Frame()
_MOST_DECADES = 6  # ticks of a logarithmic axis
_LABEL = 11.5  # between the lines of two labels
_LETTERS = 16  # of a label: as many as there is room for
_LETTER = 6.0  # the width of a letter of a label
_NEAR = 48  # an end that is not further from the right border has its label in the margin
_CROWD = 2  # ends at one place that have labels beside them


@dataclass(frozen=True)
class Point:
    """A value with its error, at a place on the horizontal axis."""

    x: float
    y: float
    error: float
    direction: Direction
    title: str
    seed: int | None = None
    """The seed of a small mark; None for the mean over seeds."""


@dataclass(frozen=True)
class Series:
    """The lines and points of one group of runs."""

    group: RunGroup
    title: str
    main: Line = ((), ())
    seeds: Sequence[tuple[int, Line]] = ()
    """The seeds and the lines of single runs, behind the main line."""
    points: Sequence[Point] = ()
    direction: Direction | None = None
    """Of the lines; None for a term of a bound, which is no estimate of log p(x)."""

    @property
    def end(self) -> tuple[float, float]:
        """The place of its label: the end of the main line, or the mean point."""
        return (self.main[0][-1], self.main[1][-1]) if self.main[0] else (self.points[-1].x, self.points[-1].y)

    def rows(self) -> Iterator[tuple[object, ...]]:
        """Yield method, seed ("mean" for the mean), direction, x, y and the error of what is drawn."""
        for seed, line in (("mean", self.main), *self.seeds):
            yield from ((self.group.title, seed, self.direction, x, y, None) for x, y in zip(*line, strict=True))
        for point in self.points:
            seed = "mean" if point.seed is None else point.seed
            yield self.group.title, seed, point.direction, point.x, point.y, point.error


class EndLabel(NamedTuple):
    """The name of a series, in the margin or beside its end."""

    classes: str
    text: str
    x: float
    y: float
    anchor: str
    leader: str
    """The path from the end to the text in the margin; "" for a text beside the end."""


class BarChart(NamedTuple):
    """A figure with a bar for each latent coordinate, in nats, the largest first; its name is unique in the page."""

    name: str
    group: RunGroup
    title: str
    kl: str
    """Which KL divergence it shows."""
    n: int
    """The number of seeds."""
    bars: Sequence[tuple[float, float]]
    """The mean over seeds of each bar, and their standard deviation (0 for one seed)."""
    highest: float
    """The end of the scale, which all methods share."""

    def rows(self) -> list[tuple[object, ...]]:
        """Return what is drawn, under titles."""
        found = [(self.group.title, self.kl, place, *bar) for place, bar in enumerate(self.bars, start=1)]
        return [("method", "quantity", "coordinate by size", "mean over seeds (nats)", "sd over seeds (nats)"), *found]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers in a range, at most about ``most``."""
    raw = (high - low) / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten in a range, or fewer of them if the range is wide."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**p for p in powers for f in factors if low * (1 - 1e-9) <= f * 10.0**p <= high * (1 + 1e-9)]
        if len(ticks) <= _MOST_DECADES:
            break
    return ticks


def tick_text(value: float) -> str:
    """Return the label of a tick."""
    return typographic(f"{value:,.10g}" if abs(value) >= 1e-9 else "0")


def typographic(text: str) -> str:
    """Return ``text`` with typographic minus signs."""
    return text.replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class _Axes:
    """The map from values to coordinates of the SVG."""

    x: tuple[float, float]
    y: tuple[float, float]
    logarithmic: bool

    @property
    def x_ticks(self) -> list[float]:
        return _decades(*self.x) if self.logarithmic else ticks(*self.x)

    @property
    def y_ticks(self) -> list[float]:
        return ticks(*self.y)

    def across(self, x: float) -> float:
        low, high = self.x
        x = max(x, 0.9 * low) if self.logarithmic else x
        part = math.log(x / low) / math.log(high / low) if self.logarithmic else (x - low) / (high - low)
        return FRAME.left + part * (FRAME.right - FRAME.left)

    def down(self, y: float) -> float:
        low, high = self.y
        return FRAME.top + (high - y) / (high - low) * (FRAME.bottom - FRAME.top)

    def path(self, line: Line) -> str:
        return "M" + "L".join(f"{self.across(x):.1f} {self.down(y):.1f}" for x, y in zip(*line, strict=True))


class Chart(NamedTuple):
    """A figure of nats per image with axes; ``name`` is unique in the page."""

    name: str
    title: str
    """With all conditions, for a picture outside the page."""
    caption: str
    """The short title in the page."""
    x_label: str
    axes: _Axes
    series: Sequence[Series]
    """The first one is drawn on top."""

    def labels(self) -> list[EndLabel]:
        """Return the names at the ends of the series, none over another one. An arrow marks an end out of the frame.

        A name is in the right margin, with a line to its end, or beside an end that is alone and far from the margin.
        """
        places = sorted(
            (
                (self.axes.down(y), min(self.axes.across(x), FRAME.right), one)
                for one in self.series
                for x, y in [one.end]
            ),
            key=lambda place: place[0],
        )
        near = [
            (y, x, one)
            for y, x, one in places
            if x > FRAME.right - _NEAR
            or y > FRAME.bottom + 4
            or sum(abs(x - other) < _LABEL and abs(y - height) < 2 * _LABEL for height, other, _ in places) > _CROWD
        ]
        heights = _apart([min(max(down, FRAME.top), FRAME.bottom) for down, *_ in near])
        found = [
            _in_margin(one, across, down, height) for height, (down, across, one) in zip(heights, near, strict=True)
        ]
        taken = [(x - 5, x + 5, y + 4) for y, x, one in places if one.points]
        return found + [_beside(one, x, y, taken) for y, x, one in places if (y, x, one) not in near]

    def rows(self) -> list[tuple[object, ...]]:
        """Return what is drawn, under titles."""
        titles = ("method", "seed", "direction", self.x_label, "nats per image", "standard error over images (nats)")
        return [titles, *(row for one in self.series for row in one.rows())]


def _in_margin(one: Series, x: float, y: float, height: float) -> EndLabel:
    outside = y > FRAME.bottom + 4
    x, y = FRAME.right if outside else x, min(max(y, FRAME.top), FRAME.bottom)
    text = ("\N{DOWNWARDS ARROW} " if outside else "") + _clipped(one.group.short)
    leader = f"M{x + 3:.1f} {y:.1f}L{FRAME.right + 9:.1f} {height:.1f}"
    return EndLabel(one.group.classes, text, FRAME.right + 11, height + 4, "start", leader)


def _beside(one: Series, x: float, y: float, taken: list[tuple[float, float, float]]) -> EndLabel:
    """Return a label beside an end; ``taken`` has the places of other labels.

    It is above the end of a line, to the left, where a rising curve has room, and to the right of a point.
    """
    text = _clipped(one.group.short)
    width = _LETTER * len(text)
    right = x + 9 + width < FRAME.right if one.points else x - 5 - width < FRAME.left
    left, height = (x + 9, y + 4) if right else (x - 5 - width, max(y - 6, FRAME.top + 2.0))
    steps = (sign * number * _LABEL for number in range(len(taken) + 1) for sign in (1, -1))
    height += next(
        step
        for step in steps
        if all(
            abs(height + step - other) >= _LABEL or left > end or left + width < start for start, end, other in taken
        )
    )
    taken.append((left - 4, left + width + 4, height))
    return EndLabel(one.group.classes, text, left if right else left + width, height, "start" if right else "end", "")


def _apart(heights: Sequence[float]) -> list[float]:
    """Return sorted heights of labels so that no two overlap and each group of neighbours is around its true place."""
    blocks: list[tuple[float, int]] = []  # the height of the first label, and the number of labels
    for height in heights:
        top, n = height, 1
        while blocks and blocks[-1][0] + blocks[-1][1] * _LABEL > top:
            above, m = blocks.pop()
            top, n = (above * m + (top - m * _LABEL) * n) / (m + n), m + n
        blocks.append((min(max(top, FRAME.top - 10.0), FRAME.height - 6.0 - (n - 1) * _LABEL), n))
    return [top + place * _LABEL for top, n in blocks for place in range(n)]


def _clipped(text: str) -> str:
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


def axes_of(
    series: Sequence[Series],
    *,
    logarithmic: bool = False,
    zoom: bool = False,
    heights: tuple[float, float] | None = None,
) -> _Axes:
    """Return axes that fit the series.

    Args:
        series: at least one, with a line or a point.
        logarithmic: whether x is logarithmic; zeros and negative numbers are then left out of the frame.
        zoom: fit y to the second half of each line, where it is near to its end, and x to what is then visible.
        heights: the range of y of another chart, on whose scale this one is drawn; x fits what is then visible.
    """
    lines = [line for one in series for line in (one.main, *(line for _, line in one.seeds))]
    places = [place for line in lines for place in zip(*line, strict=True)]
    xs = [x for x, _ in places] + [point.x for one in series for point in one.points]
    ys = [y for line in lines if line[0] for y in (extremes(*line) if zoom else line[1])]
    tips = [point.y + sign * point.error for one in series for point in one.points for sign in (-1, 1)]
    low, high = shown_range(ys) if ys else (min(tips), max(tips))
    room = 0.04 * (high - low) or 0.5
    y_range = heights or (low - room, high + room)
    if zoom or heights:
        xs = [x for x, y in places if y >= y_range[0]] or xs
    positive = [x for x in xs if x > 0]
    logarithmic = logarithmic and bool(positive) and max(positive) > min(positive)
    x_range = _x_range(positive if logarithmic else xs, logarithmic=logarithmic, points=not places)
    return _Axes(x_range, y_range, logarithmic)


def _x_range(xs: Sequence[float], *, logarithmic: bool, points: bool) -> tuple[float, float]:
    low, high = min(xs), max(xs)
    if logarithmic:
        return (low / 1.15, high * 1.15) if points else (low, high)
    if points:
        return 0.0, 1.1 * high or 1.0
    return (low, high) if high > low else (min(0.0, low), high) if high > min(0.0, low) else (0.0, 1.0)


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
