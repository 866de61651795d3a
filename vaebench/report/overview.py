"""The runs in a folder, one row each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vaebench.config import describe
from vaebench.direction import Direction
from vaebench.records import ResultRecord
from vaebench.records.text import counted, table, with_error, with_sign, wrapped
from vaebench.report.conditions import LOG_LIKELIHOOD, SIMULATED, Conditions, Result, comparable, encoder_details
from vaebench.report.runs import LeftOut, Run, outdated_results

__all__ = ["ago", "overview"]

_STYLES = {"finished": "green", "running": "cyan", "failed": "red", "damaged": "red", "interrupted": "yellow"}
_HEAD = ("run", "name", "state", "epoch", "result", "updated")


def overview(runs: Sequence[Run], damaged: Sequence[LeftOut], base: Path) -> str:
    """Return a table of runs, with the error of each run without a result, and a last line that counts the states.

    All numbers in the column of results have the same conditions, which a line above the table names.

    Args:
        runs: the runs to show.
        damaged: the runs that cannot be read.
        base: the folder to which the run folders are relative.
    """
    kind, shown = _most_common(runs)
    details = sorted({words for words in map(encoder_details, shown.values()) if words})
    named = any(run.config.name for run in runs)
    rows: list[Sequence[str] | str] = []
    for run in runs:
        number = _number(run, shown.get(run.folder.path), details)
        name = [run.config.name or "-"] * named
        rows.append((_place(run.folder.path, base), *name, run.state, _progress(run), number, ago(run.updated)))
        if run.status and run.status.error and not run.results:
            rows.append(run.status.error)
    for folder, reason in damaged:
        rows += [(_place(folder, base), *["-"] * named, "damaged", "-", "-", "-"), reason]
    states = Counter([run.state for run in runs] + ["damaged"] * len(damaged))
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    lines = [wrapped(f"result: {kind.heading()}")] if kind else []
    head = [title for title in _HEAD if named or title != "name"]
    lines += [table(head, rows, styles=_STYLES, keep=("name", "state", "epoch", "result")), ""]
    lines += [f"[{mark}] {words}" for mark, words in enumerate(details, start=1)]
    if others := sum(len(run.results) for run in runs) - len(shown):
        where = "`vaebench compare` and `vaebench show RUN` show them"
        lines.append(wrapped(f"others: {counted(others, 'result')} under other conditions; {where}"))
    if early := sum(run.stopped_early is not None for run in runs):
        lines.append(f"early: {counted(early, 'run')} stopped before the last epoch (trainer.patience)")
    lines += map(wrapped, outdated_results(runs))
    return "\n".join([*lines, f"{counted(len(runs) + len(damaged), 'run')}: {counts}"])


def _most_common(runs: Sequence[Run]) -> tuple[Conditions | None, dict[Path, ResultRecord]]:
    """Return the conditions that most runs have a result under, and each run's result under these conditions.

    log p(x) of test images goes first. Of several conditions with equally many runs, the one with the most images is
    chosen, then the one with the highest k.
    """
    results = [Result(run, record) for run in runs for record in run.results if record.split != SIMULATED]
    kinds = comparable(results, lambda result: replace(Conditions.of(result), epochs=None))
    if not kinds:
        return None, {}

    def preference(kind: Conditions) -> tuple[object, ...]:
        first = (kind.quantity == LOG_LIKELIHOOD, kind.split == "test", not kind.upper)
        count = len({result.run.folder.path for result in kinds[kind]})
        return (*first, count, kind.n_images, kind.k or 0, kind.inner_k or 0)

    kind = max(kinds, key=preference)
    # Of several results of a run, a bound goes before an estimate, and the latest before earlier ones.
    bounds_last = sorted(kinds[kind], key=lambda result: result.record.direction is not Direction.ESTIMATE)
    return kind, {result.run.folder.path: result.record for result in bounds_last}


def _number(run: Run, record: ResultRecord | None, details: Sequence[str]) -> str:
    """Return a result with its direction, its error and the number of its footnote."""
    if record is None:
        return f"- ({counted(len(run.results), 'other')})" if run.results else "-"
    words = encoder_details(record)
    mark = f" [{details.index(words) + 1}]" if words else ""
    return with_sign(record.direction, with_error(record.mean, record.stderr)) + mark


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
    words = (f"{run.epochs_done:.4g}/{run.config.trainer.epochs}", "early" if run.stopped_early else "")
    return " ".join(filter(None, (*words, describe.budget(run.config))))
