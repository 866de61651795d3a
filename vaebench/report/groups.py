"""Groups of runs that differ only in the seed, as a page shows them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vaebench.report.curves import Curve, curve, thinned
from vaebench.report.runs import Run, Scalar

__all__ = ["STYLES", "RunGroup", "mean_curve"]

_COLOURS, _DASHES = 8, 3
STYLES = _COLOURS * _DASHES
"""The number of different looks of a group: every colour with every kind of dashes."""

_POINTS = 160  # of a curve: enough for a chart on a page


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in the seed; a page calls such a group a method."""

    number: int
    """Selects the colour and dashes in charts."""
    title: str
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

    def curves(self, tag: str) -> list[Curve]:
        """Return the curve of ``tag`` of each run that has one, thinned."""
        found = [thinned(curve(run, tag), _POINTS) for run in self.runs]
        return [one for one in found if one.values]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean over seeds of values and times, at the epochs that all curves have."""
    at = [dict(zip(c.epochs, zip(c.seconds, c.values, strict=True), strict=True)) for c in curves]
    epochs = [epoch for epoch in curves[0].epochs if all(epoch in one for one in at)]
    return Curve(
        curves[0].tag,
        epochs,
        [statistics.fmean(one[epoch][0] for one in at) for epoch in epochs],
        [statistics.fmean(one[epoch][1] for one in at) for epoch in epochs],
    )
