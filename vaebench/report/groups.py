"""Groups of runs that differ only in the seed, as a page shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import NamedTuple

from vaebench.errors import UserError
from vaebench.report.curves import TRAINING, VALIDATION, Curve, read_curves
from vaebench.report.runs import Run, Scalar

__all__ = ["CURVE_SEEDS", "RECONSTRUCTION", "STYLES", "TERM_KL", "GroupCurves", "MeanCurve", "RunGroup"]

RECONSTRUCTION, TERM_KL = "train/reconstruction", "train/kl"
_COLOURS, _DASHES = 8, 3
STYLES = _COLOURS * _DASHES
"""The number of different looks of a group: every colour with every kind of dashes."""

_POINTS = 160  # of a curve: enough for a chart on a page
CURVE_SEEDS = 20
"""The seeds of a group whose metrics are read: the file of each has thousands of numbers."""
_SEEDS = 5  # single curves of a group: with more of them, a chart shows a band of one colour


class GroupCurves(NamedTuple):
    """The curves of one tag."""

    mean: Curve
    """Over the first seeds."""
    seeds: Sequence[tuple[int, Curve]]
    """The seed and the curve of the first few runs; empty for one seed."""


class MeanCurve:
    """The mean over seeds of values, and the median of times, at the epochs that all curves have.

    The median, because a training that stood still for an hour would move the mean.
    """

    def __init__(self) -> None:
        self._count = 0
        self._found: dict[float, tuple[list[float], float]] = {}
        """Epoch -> the times and the sum of the values."""

    def add(self, curve: Curve) -> None:
        self._count += 1
        for epoch, seconds, value in zip(curve.epochs, curve.seconds, curve.values, strict=True):
            times, total = self._found.get(epoch, ([], 0.0))
            self._found[epoch] = ([*times, seconds], total + value)

    def curve(self, tag: str) -> Curve:
        """Return the mean so far."""
        n = self._count
        kept = sorted((epoch, *found) for epoch, found in self._found.items() if len(found[0]) == n)
        return Curve(tag, [e for e, *_ in kept], [median(times) for _, times, _ in kept], [v / n for *_, v in kept])


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in the seed; a page calls such a group a method."""

    number: int
    """Selects the colour and dashes in charts."""
    title: str
    short: str
    """The part of the title that differs between the groups, for the ends of curves."""
    settings: Mapping[str, Scalar]
    runs: Sequence[Run]
    """Sorted by seed."""

    @property
    def name(self) -> str:
        """The hash that all runs of the group share."""
        return self.runs[0].method

    @property
    def colour(self) -> str:
        """The classes of its colour and dashes."""
        return f"c{self.number % _COLOURS} d{self.number // _COLOURS % _DASHES}"

    @property
    def classes(self) -> str:
        """The classes of every mark of the group: its check box hides them."""
        return f"s{self.number} {self.colour}"

    @property
    def label(self) -> str:
        """The title, with the number of unfinished runs if there are any."""
        unfinished = sum(run.state != "finished" for run in self.runs)
        return f"{self.title} ({unfinished} of {len(self.runs)} unfinished)" if unfinished else self.title

    @property
    def curve_runs(self) -> Sequence[Run]:
        """The runs with curves: those of the first seeds."""
        return self.runs[:CURVE_SEEDS]

    @property
    def curves(self) -> Mapping[str, GroupCurves]:
        """The curves by tag; a tag without a value is missing."""
        return self._read[0]

    @property
    def faults(self) -> Sequence[str]:
        """A line about each run whose metrics are corrupt: the curves are without it."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[dict[str, GroupCurves], list[str]]:
        """Read the metrics of one run after another, each once."""
        means: dict[str, MeanCurve] = {}
        seeds: dict[str, list[tuple[int, Curve]]] = {}
        faults = []
        for run in self.curve_runs:
            try:
                found = read_curves(run, (VALIDATION, TRAINING, RECONSTRUCTION, TERM_KL), _POINTS)
            except UserError as error:
                faults.append(f"{error} The curves are without this run")
                continue
            for tag, one in found.items():
                means.setdefault(tag, MeanCurve()).add(one)
                seeds.setdefault(tag, [])
                if len(self.curve_runs) > 1 and len(seeds[tag]) < _SEEDS:
                    seeds[tag].append((run.seed, one))
        return {tag: GroupCurves(mean.curve(tag), seeds[tag]) for tag, mean in means.items()}, faults
