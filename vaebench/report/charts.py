"""Charts: the geometry of lines, points and bars that the templates draw as SVG.

SVG with classes follows the style sheet (dark mode, hiding a method) and needs a few kB per chart. Every mark has its
value as a title, which browsers show under the pointer and screen readers read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vaebench.direction import Direction
from vaebench.report.curves import shown_range
from vaebench.report.groups import RunGroup

__all__ = [
    "FRAME",
    "BarChart",
    "Chart",
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

    group: RunGroup
    title: str
    main: Line = ((), ())
    seeds: Sequence[Line] = ()
    """The lines of single seeds, behind the main line."""
    points: Sequence[Point] = ()


class BarChart(NamedTuple):
    """A figure with a bar for each latent coordinate, in nats, the largest first."""

    group: RunGroup
    caption: str
    title: str
    values: Sequence[float]


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
    x_label: str
    axes: _Axes
    series: Sequence[Series]
    """The first one is drawn on top."""


def axes_of(series: Sequence[Series], *, spread: bool = False) -> _Axes:
    """Return axes that fit the series; with ``spread`` x is logarithmic if it spans more than a factor of 20."""
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
