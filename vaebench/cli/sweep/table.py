"""The table at the end of a sweep."""

import re
from collections import Counter
from collections.abc import Sequence

from vaebench.cli.sweep.records import JobRecord

__all__ = ["table"]

LINE = re.compile(r"(?P<what>.*) (?P<number>(=|>=|<=|~) \S+ \+- \S+) \((?P<how>.*)\)")


def table(jobs: Sequence[tuple[list[str], JobRecord]]) -> str:
    """Return the jobs of a sweep, (overrides, record), as text: status, time, result and why one failed.

    What a result is and how it was made stands below, once for each kind.
    """
    records = [record for _, record in jobs]
    common, kinds = _common([overrides for overrides, _ in jobs]), _kinds(records)
    rows = [["job", "status", "time", "result", "settings"]]
    for number, (overrides, record) in enumerate(jobs, start=1):
        own = " ".join(word for word in overrides if word not in common)
        result = ", ".join(_short(line, kinds) for line in record.results)
        rows.append([str(number), record.status, _clock(record.seconds), result, own])
    widths = [max(len(row[column]) for row in rows) for column in range(4)] + [0]
    lines = []
    for row, record in zip(rows, [None, *records], strict=True):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if record is not None and record.error and record.status in ("failed", "busy"):
            lines.append(f"{'':{widths[0]}}  {record.error}")
    if common:
        lines.append(f"all jobs: {' '.join(common)}")
    lines += [f"result{mark}: {kind}; nats, standard error over images" for kind, mark in kinds.items()]
    return "\n".join([_counts(records), *lines])


def _counts(records: Sequence[JobRecord]) -> str:
    counts = Counter(record.status for record in records)
    things = "job" if len(records) == 1 else "jobs"
    return f"{len(records)} {things}: {', '.join(f'{count} {status}' for status, count in counts.items())}"


def _common(overrides: Sequence[list[str]]) -> list[str]:
    """Return the words that all jobs share, where there are several jobs."""
    if len(overrides) < 2:
        return []
    return [word for word in overrides[0] if all(word in other for other in overrides)]


def _kinds(records: Sequence[JobRecord]) -> dict[str, str]:
    """Return a mark for each kind of result, "" where there is only one kind."""
    kinds = list(dict.fromkeys(_kind(line) for record in records for line in record.results))
    return {kind: "" if len(kinds) == 1 else f" [{letter(n)}]" for n, kind in enumerate(kinds)}


def letter(number: int) -> str:
    """Return a, b, ..., z, then a1, b1, ..."""
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")


def _kind(line: str) -> str:
    match = LINE.fullmatch(line)
    return f"{match['what']} by {match['how']}" if match else line


def _short(line: str, kinds: dict[str, str]) -> str:
    """Return a result's number with its direction, its error and the mark of its kind."""
    match = LINE.fullmatch(line)
    return f"{match['number'] if match else '?'}{kinds[_kind(line)]}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
