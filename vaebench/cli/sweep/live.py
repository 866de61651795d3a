"""The live view of a sweep on a terminal: a table of its jobs that is redrawn every second."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vaebench.cli.sweep.plan import PlannedJob
from vaebench.cli.sweep.records import JobRecord, Records
from vaebench.cli.sweep.table import JobRow, summary, table
from vaebench.errors import UserError
from vaebench.records.metrics import last_metrics

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


__all__ = ["live_rows", "progress", "shown", "shows_live"]

# Jobs that changed last are the ones to see if not all fit the terminal.
ORDER = (
    "running",
    "failed",
    "busy",
    "interrupted",
    "queued",
    "waiting",
    "finished",
    "resumed",
    "skipped",
    "not started",
)


def shows_live() -> bool:
    """Whether stdout is a terminal that can redraw lines."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextlib.contextmanager
def shown(rows: Callable[[], Sequence[JobRow]], console: "Console | None" = None) -> Iterator[None]:
    """Show a table of ``rows()`` during the block, and remove it afterwards. Other output appears above the table."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    # This stdout, also while a job redirects sys.stdout to its log.
    console = console or Console(file=sys.stdout)

    def view() -> "Text":
        return Text.from_ansi(view_of(rows(), shutil.get_terminal_size((80, 24)).lines))

    with Live(get_renderable=view, console=console, refresh_per_second=1, transient=True) as live:
        live.refresh()
        yield


def view_of(rows: Sequence[JobRow], height: int) -> str:
    """Return the counts and the table of the rows that fit ``height`` lines."""
    most = max(1, height // 2)
    chosen = sorted(rows, key=lambda row: ORDER.index(row.record.status))[:most]
    more = f"\n({len(rows) - most} more jobs)" if len(rows) > most else ""
    return f"{summary([row.record for row in rows])}\n{table(sorted(chosen))}{more}"


def live_rows(jobs: Sequence[PlannedJob], records: Records) -> list[JobRow]:
    """Return a row for each job, with the records that other processes have written since."""
    return [JobRow(number, job.typed, *_now(job, records)) for number, job in enumerate(jobs, start=1)]


def _now(job: PlannedJob, records: Records) -> tuple[JobRecord, str]:
    """Return the record of a job and its progress."""
    record = (records.read(job.key) if job.open else None) or job.record
    if record.status != "running":
        return record, ""
    try:
        seconds = time.time() - records.path(job.key).stat().st_mtime
    except FileNotFoundError:
        seconds = None
    return replace(record, seconds=seconds), progress(job)


def progress(job: PlannedJob) -> str:
    """Return how far a running job is, for example ``epoch 3/50``; "" if it has recorded nothing."""
    assert job.config is not None
    try:
        line = last_metrics(job.run)
    except UserError:
        return ""
    return f"epoch {int(line['epoch'])}/{job.config.trainer.epochs}" if line else ""
