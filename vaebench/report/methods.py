"""Methods as a page shows them: a number (its colour), a name, and the runs that differ in nothing but the seed."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vaebench.report.curves import Curve, curve, thinned
from vaebench.report.runs import Run, Scalar

__all__ = ["Method", "mean_curve"]

_POINTS = 160  # of a curve: more than a screen shows


@dataclass(frozen=True)
class Method:
    """One method in a page."""

    number: int
    title: str
    settings: Mapping[str, Scalar]
    runs: Sequence[Run]
    """Sorted by seed."""

    @property
    def name(self) -> str:
        return self.runs[0].method

    @property
    def label(self) -> str:
        """The title, and how many of its runs are not finished."""
        unfinished = sum(run.state != "finished" for run in self.runs)
        return f"{self.title} ({unfinished} of {len(self.runs)} unfinished)" if unfinished else self.title

    def curves(self, tag: str) -> list[Curve]:
        """Return each run's curve of ``tag``, thinned; runs without one are left out."""
        found = [thinned(curve(run, tag), _POINTS) for run in self.runs]
        return [one for one in found if one.values]


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean over seeds at the epochs that all of them have, times averaged too."""
    at = [dict(zip(c.epochs, zip(c.seconds, c.values, strict=True), strict=True)) for c in curves]
    epochs = [epoch for epoch in curves[0].epochs if all(epoch in one for one in at)]
    return Curve(
        curves[0].tag,
        epochs,
        [statistics.fmean(one[epoch][0] for one in at) for epoch in epochs],
        [statistics.fmean(one[epoch][1] for one in at) for epoch in epochs],
    )
