"""Learning curves: reading them from metrics.jsonl, thinning them, and plotting them as text."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from vaebench.records import read_metrics
from vaebench.records.current import VALIDATION
from vaebench.report.runs import Run

__all__ = [
    "TRAINING",
    "VALIDATION",
    "Curve",
    "curve",
    "extremes",
    "meaning",
    "read_curves",
    "shown_range",
    "text_plot",
    "thinned",
]

TRAINING = "train/bound"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille letter, by row and column


def meaning(run: Run, tag: str) -> str:
    """Return what the values of ``VALIDATION`` or ``TRAINING`` are. Both are lower bounds, shown without an error.

    A run whose log q is only an estimate has no values of ``TRAINING``.
    """
    if tag == VALIDATION:
        return f"validation {run.measure.named('log p(x)')}, {run.validation}"
    return f"bound on {run.measure.named('log p(x)')} in training, lower bound"


class Curve(NamedTuple):
    """The finite values of one tag, in the order of steps."""

    tag: str
    epochs: list[float]
    seconds: list[float]
    """Training time so far, summed over sessions."""
    values: list[float]


def curve(run: Run, tag: str) -> Curve:
    """Return the curve of ``tag``; its lists are empty if the run has none.

    UserError if a line of its metrics is corrupt.
    """
    return _curve(read_metrics(run.folder), tag)


def read_curves(run: Run, tags: Iterable[str], most: int) -> dict[str, Curve]:
    """Return the curves of a run that are not empty, thinned; the file is read once and its lines are not kept.

    UserError if a line is corrupt.
    """
    lines = read_metrics(run.folder)
    found = {tag: thinned(_curve(lines, tag), most) for tag in tags}
    return {tag: one for tag, one in found.items() if one.values}


def _curve(lines: Sequence[Mapping[str, Any]], tag: str) -> Curve:
    lines = [line for line in lines if tag in line and math.isfinite(line[tag])]
    return Curve(
        tag,
        [float(line["epoch"]) for line in lines],
        [float(line["wall"]) for line in lines],
        [float(line[tag]) for line in lines],
    )


def thinned(curve: Curve, most: int) -> Curve:
    """Return at most about ``most`` points, each the mean of a few neighbours at the place of the last of them."""
    n = len(curve.values)
    if n <= most:
        return curve
    size = math.ceil(n / most)
    parts = [slice(max(0, end - size), end) for end in range(n, 0, -size)][::-1]
    return Curve(
        curve.tag,
        [curve.epochs[part][-1] for part in parts],
        [curve.seconds[part][-1] for part in parts],
        [statistics.fmean(curve.values[part]) for part in parts],
    )


def shown_range(values: Sequence[float]) -> tuple[float, float]:
    """Return the range of nats to show; it cuts off the start of training, which lies far below the rest."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    quarter = ordered[len(ordered) // 4]
    low = max(low, high - 4 * (high - quarter)) if high > quarter else low
    if high > low:
        return low, high
    margin = max(0.5, 1e-6 * abs(high))  # 0.5 is nothing beside 1e20
    return low - margin, high + margin


def extremes(at: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the largest value in the second half of a training, where they differ by few nats.

    Two numbers of each curve, so that in `shown_range` a curve with few points counts as much as one with many.
    """
    middle = 0.5 * max(at)
    later = [value for x, value in zip(at, values, strict=True) if x >= middle]
    return min(later), max(later)


def text_plot(
    xs: Sequence[float], ys: Sequence[float], *, width: int = 60, height: int = 10, letters: Literal["braille", "ascii"]
) -> list[str]:
    """Return ``height`` lines of text with a scale at the left; values below the scale are drawn on its edge."""
    low, high = shown_range(ys)
    per_row, per_column = (4, 2) if letters == "braille" else (1, 1)
    rows, columns = height * per_row, width * per_column
    grid = [[False] * columns for _ in range(rows)]
    first, span = min(xs), (max(xs) - min(xs)) or 1.0  # all at one place, for example in a damaged file
    for x, y in zip(xs, ys, strict=True):
        across = round((x - first) / span * (columns - 1))
        down = round((high - max(y, low)) / (high - low) * (rows - 1))
        grid[down][across] = True
    texts = [
        "".join(_letter(grid, row * per_row, column * per_column, letters) for column in range(width)).rstrip()
        for row in range(height)
    ]
    return _with_scale(texts, low, high, letters)


def _letter(grid: list[list[bool]], top: int, left: int, letters: str) -> str:
    if letters == "ascii":
        return "*" if grid[top][left] else " "
    dots = sum(
        bit for row, bits in enumerate(_DOTS) for column, bit in enumerate(bits) if grid[top + row][left + column]
    )
    return chr(0x2800 + dots) if dots else " "


def _with_scale(texts: list[str], low: float, high: float, letters: str) -> list[str]:
    """Add the values of the first, middle and last line at the left."""
    marked = {0: high, len(texts) // 2: high - (high - low) * (len(texts) // 2) / (len(texts) - 1), len(texts) - 1: low}
    labels = [f"{marked[row]:.1f}" if row in marked else "" for row in range(len(texts))]
    width = max(map(len, labels))
    ticks = ("┤", "│") if letters == "braille" else ("+", "|")
    return [f"{label:>{width}} {ticks[0 if label else 1]}{text}" for label, text in zip(labels, texts, strict=True)]
