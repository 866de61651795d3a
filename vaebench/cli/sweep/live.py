"""The live view of a sweep on a terminal: its jobs, the time left and the best so far, redrawn every second."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from vaebench.cli.sweep.plan import PlannedJob
from vaebench.cli.sweep.records import JobRecord, Records
from vaebench.cli.sweep.table import JobRow, summary, table
from vaebench.direction import Direction
from vaebench.errors import UserError
from vaebench.progress import clock
from vaebench.records.current import VALIDATION
from vaebench.records.metrics import MetricsTail
from vaebench.records.text import with_sign

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


__all__ = ["TrainingProgress", "live_rows", "shown", "shows_live"]

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
    head = "; ".join(filter(None, [summary([row.record for row in rows]), time_left(rows)]))
    return f"{head}\n{table(sorted(chosen))}{more}"


class TrainingProgress:
    """How far running jobs are, from the metrics of their runs; of each run, only new lines are read."""

    def __init__(self) -> None:
        self._tails: dict[str, MetricsTail] = {}

    def __call__(self, job: PlannedJob) -> tuple[str, float | None]:
        """Return, for example, ``epoch 3/50, 0:12:31 left, validation >= -95.20``, and the seconds left.

        After the last epoch it says ``evaluating``; how long that takes is unknown. The validation is the best so far,
        in nats. ("", None) if the run has recorded nothing.
        """
        assert job.config is not None
        tail = self._tails.setdefault(job.key, MetricsTail(job.run, VALIDATION))
        with contextlib.suppress(UserError):
            tail.read()
        if tail.last is None:
            return "", None
        epoch, trainer = tail.last["epoch"], job.config.trainer
        epochs = trainer.epochs
        left = tail.last["wall"] * (epochs - epoch) / epoch if epoch else None
        words = [f"epoch {int(epoch)}/{epochs}"]
        words += [f"{clock(left)} left"] if left is not None and epoch < epochs else []
        words += ["evaluating"] if epoch >= epochs and trainer.evaluate else []
        words += [] if tail.best is None else [f"validation {with_sign(Direction.LOWER_BOUND, f'{tail.best:.2f}')}"]
        return ", ".join(words), left


def live_rows(jobs: Sequence[PlannedJob], records: Records, progress: TrainingProgress) -> list[JobRow]:
    """Return a row for each job, with the records that other processes have written since."""
    return [JobRow(number, job.typed, *_now(job, records, progress)) for number, job in enumerate(jobs, start=1)]


def _now(job: PlannedJob, records: Records, progress: TrainingProgress) -> tuple[JobRecord, str, float | None]:
    """Return the record of a job, its progress and the seconds left."""
    record = (records.read(job.key) if job.open else None) or job.record
    if record.status != "running":
        return record, "", None
    try:
        seconds = time.time() - records.path(job.key).stat().st_mtime
    except FileNotFoundError:
        seconds = None
    return replace(record, seconds=seconds), *progress(job)


def time_left(rows: Sequence[JobRow]) -> str:
    """Return about how long the sweep still takes, "" if that is unknown.

    Each job that waits is taken to need the mean time of the jobs that trained from the start, or else that of the
    running ones; as many jobs as now run at once.
    """
    running = [row for row in rows if row.record.status == "running"]
    known = [(row.record.seconds, row.left) for row in running]
    if not running or any(seconds is None or left is None for seconds, left in known):
        return ""
    left = sum(left or 0.0 for _, left in known)
    waiting = sum(row.record.status in ("waiting", "queued") for row in rows)
    whole = [row.record.seconds for row in rows if row.record.status == "finished" and row.record.seconds is not None]
    mean = fmean(whole or [(seconds or 0.0) + (left or 0.0) for seconds, left in known])
    return f"about {clock((left + waiting * mean) / len(running))} left"
