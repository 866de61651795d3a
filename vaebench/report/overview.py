"""What is in a folder of runs, a line each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from vaebench.records.text import SIGNS
from vaebench.report.formats import number
from vaebench.report.runs import LeftOut, Run

__all__ = ["ago", "overview"]

_ERROR_SHOWN = 80


def overview(runs: Sequence[Run], damaged: Sequence[LeftOut], base: Path) -> Iterator[str]:
    """Yield a line for each run, folders relative to ``base``, and a last one that counts them."""
    lines = [("run", "state", "epoch", "updated", "result")]
    lines += [
        (_place(run.folder.path, base), run.state, _progress(run), ago(run.updated), _outcome(run)) for run in runs
    ]
    lines += [(_place(folder, base), "damaged", "-", "-", reason) for folder, reason in damaged]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    states = Counter([run.state for run in runs] + ["damaged"] * len(damaged))
    total = len(runs) + len(damaged)
    yield f"\n{total} run{'s' * (total != 1)}: {', '.join(f'{count} {state}' for state, count in states.most_common())}"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """Return how long ago a moment was, as in ``3 min ago``."""
    if moment is None:
        return "-"
    seconds = max(0.0, ((now or datetime.now(UTC)) - moment).total_seconds())
    for limit, divisor, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit} ago"
    return f"{seconds / 86400:.0f} days ago"


def _place(path: Path, base: Path) -> str:
    return str(path.relative_to(base)) if path.is_relative_to(base) and path != base else str(path)


def _progress(run: Run) -> str:
    return f"{run.epochs_done:.4g}/{run.config.trainer.epochs}"


def _outcome(run: Run) -> str:
    """The latest result in short; for a run that has none, what ended it."""
    if run.results:
        record = run.results[-1]
        mean = f"{number(record.mean, record.stderr)} +- {number(record.stderr, record.stderr)}"
        more = f" (and {len(run.results) - 1} more)" if len(run.results) > 1 else ""
        effort = f"k={record.k}, " if record.k is not None else ""
        sign = SIGNS[record.direction]
        return f"{record.split} {record.quantity} {sign} {mean} ({record.estimator}, {effort}{record.protocol}){more}"
    error = run.status.error if run.status else None
    return "-" if not error else error if len(error) <= _ERROR_SHOWN else error[: _ERROR_SHOWN - 3] + "..."
