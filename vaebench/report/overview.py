"""The runs in a folder, one row each."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from vaebench.records.text import counted, table, with_error, with_sign
from vaebench.report.runs import LeftOut, Run, outdated_results

__all__ = ["ago", "overview"]

_STYLES = {"finished": "green", "running": "cyan", "failed": "red", "damaged": "red", "interrupted": "yellow"}
_HEAD = ("run", "state", "epoch", "result", "updated", "estimate")


def overview(runs: Sequence[Run], damaged: Sequence[LeftOut], base: Path) -> str:
    """Return a table of runs, with the error of each run without a result, and a last line that counts the states.

    ``base`` is the folder to which the run folders are relative.
    """
    rows: list[Sequence[str] | str] = []
    for run in runs:
        number, estimate = _latest_result(run)
        rows.append((_place(run.folder.path, base), run.state, _progress(run), number, ago(run.updated), estimate))
        if run.status and run.status.error and not run.results:
            rows.append(run.status.error)
    for folder, reason in damaged:
        rows += [(_place(folder, base), "damaged", "-", "-", "-", "-"), reason]
    states = Counter([run.state for run in runs] + ["damaged"] * len(damaged))
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    lines = [table(_HEAD, rows, styles=_STYLES, keep=("state", "epoch", "result")), ""]
    if early := sum(run.stopped_early is not None for run in runs):
        lines.append(f"early: {counted(early, 'run')} stopped before the last epoch (trainer.patience)")
    lines += outdated_results(runs)
    return "\n".join([*lines, f"{counted(len(runs) + len(damaged), 'run')}: {counts}"])


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """Return how long ago a moment was, for example ``3 min ago``."""
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
    return f"{run.epochs_done:.4g}/{run.config.trainer.epochs}{' early' if run.stopped_early else ''}"


def _latest_result(run: Run) -> tuple[str, str]:
    """Return the number of the latest result, and its quantity and estimator."""
    if not run.results:
        return "-", "-"
    record = run.results[-1]
    effort = f"k={record.k}, " if record.k is not None else ""
    more = f" (and {len(run.results) - 1} more)" if len(run.results) > 1 else ""
    estimate = f"{record.split} {record.quantity} ({record.estimator}, {effort}{record.protocol}){more}"
    return with_sign(record.direction, with_error(record.mean, record.stderr)), estimate
