"""The table of a sweep: printed at its end, and shown live while it runs."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from vaebench.cli.sweep.records import JobRecord
from vaebench.progress import clock
from vaebench.records.text import counted
from vaebench.records.text import table as text_table

__all__ = ["JobRow", "distinct", "summary", "table"]

LINE = re.compile(r"(?P<quantity>.*) (?P<number>(=|>=|<=|~) \S+ \+- \S+) \((?P<method>.*)\)")
STYLES = {
    "finished": "green",
    "resumed": "green",
    "running": "cyan",
    "queued": "blue",
    "failed": "red",
    "interrupted": "yellow",
}


class JobRow(NamedTuple):
    """One job of the table."""

    number: int
    overrides: list[str]
    record: JobRecord
    progress: str = ""
    """Shown in place of a result, for example ``epoch 3/50``."""
    left: float | None = None
    """Seconds that a running job needs to the end of its training, if known."""


def table(jobs: Sequence[JobRow]) -> str:
    """Return the table of jobs with status, time, result, settings; each error is on a separate line.

    Lines below the table describe the settings that all jobs share, and each kind of result.
    """
    common, kinds = _common([job.overrides for job in jobs]), _kinds([job.record for job in jobs])
    rows: list[list[str] | str] = []
    for (number, _, record, progress, _), own in zip(jobs, distinct([job.overrides for job in jobs]), strict=True):
        result = ", ".join(_short(line, kinds) for line in record.results) or progress
        rows.append([str(number), record.status, clock(record.seconds), result, " ".join(own)])
        # Only of a job in a queue: otherwise the reason is the signal that stopped the sweep.
        told = record.status in ("failed", "busy") or (record.status == "interrupted" and record.id is not None)
        if record.error and told:
            rows.append(f"{record.error}; log: {record.log}" if record.log else record.error)
    head = ["job", "status", "time", "result", "settings"]
    lines = [text_table(head, rows, wrap="settings", keep=("status", "result", "settings"), styles=STYLES)]
    if common:
        lines.append(f"all jobs: {' '.join(common)}")
    lines += [f"result{mark}: {kind}; nats, standard error over images" for kind, mark in kinds.items()]
    return "\n".join(lines)


def summary(records: Sequence[JobRecord]) -> str:
    """Return the number of jobs with each status, for example ``3 jobs: 2 finished, 1 failed``."""
    counts = Counter(record.status for record in records)
    return f"{counted(len(records), 'job')}: {', '.join(f'{count} {status}' for status, count in counts.items())}"


def distinct(overrides: Sequence[list[str]]) -> list[list[str]]:
    """Return the words of each job without those that all jobs share."""
    common = set(_common(overrides))
    return [[word for word in words if word not in common] for words in overrides]


def _common(overrides: Sequence[list[str]]) -> list[str]:
    """Return the words that all jobs share, if there are several jobs."""
    if len(overrides) < 2:
        return []
    shared = set(overrides[0]).intersection(*overrides)
    return [word for word in overrides[0] if word in shared]


def _kinds(records: Sequence[JobRecord]) -> dict[str, str]:
    """Return a mark for each kind of result; "" if there is only one kind."""
    kinds = list(dict.fromkeys(_kind(line) for record in records for line in record.results))
    return {kind: "" if len(kinds) == 1 else f" [{letter(n)}]" for n, kind in enumerate(kinds)}


def letter(number: int) -> str:
    """Return a, b, ..., z, then a1, b1, ..."""
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")


def _kind(line: str) -> str:
    match = LINE.fullmatch(line)
    return f"{match['quantity']} by {match['method']}" if match else line


def _short(line: str, kinds: dict[str, str]) -> str:
    """Return the number of a result with its direction, its error and the mark of its kind."""
    match = LINE.fullmatch(line)
    return f"{match['number'] if match else '?'}{kinds[_kind(line)]}"
