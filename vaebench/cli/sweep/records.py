"""The job records of a sweep: one small file for each job, written by the process that runs the job.

What the sweep itself knows of its jobs in a queue is in another file, so that no two processes write the same one.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from vaebench.config import Config, identity
from vaebench.config.schema import NonNegative
from vaebench.errors import UserError
from vaebench.files import clean_temporaries, regular, remove
from vaebench.records import ResultRecord, RunFolder, format_line, write_json
from vaebench.records.current import split_results
from vaebench.records.files import Appender, exclusive, is_held
from vaebench.records.folder import ProcessId
from vaebench.records.stored import Unreadable, parse_json, read_json, read_whole
from vaebench.typed import Rule

__all__ = [
    "FINAL",
    "JobRecord",
    "JobStatus",
    "Records",
    "SubmittedJob",
    "job_key",
    "results_of",
    "skip_reason",
    "sweeps_beside",
]

JobStatus = Literal[
    "waiting", "queued", "running", "finished", "resumed", "skipped", "failed", "interrupted", "busy", "not started"
]
FINAL: tuple[JobStatus, ...] = ("finished", "resumed", "skipped", "failed")
"""The states that a job in a queue does not leave by itself."""

QueueId = Annotated[
    str,
    Rule("letters, digits, _, . and -, the first a letter or digit", re.compile(r"[A-Za-z0-9][\w.-]{0,99}").fullmatch),
]
"""An option of a command, such as ``--all``, must not be taken for a job."""


FOLDER = ".sweeps"
"""The folder in ``output_dir`` with a folder for each sweep, unless ``hydra.sweep.dir`` says otherwise."""


@dataclass(frozen=True)
class JobRecord:
    """The state of a job. ``results`` are lines with estimator, direction, protocol and error."""

    status: JobStatus
    seconds: NonNegative | None = None
    """Time spent on the job in this sweep."""
    results: list[str] = field(default_factory=list)
    error: str | None = None
    pid: ProcessId | None = None
    host: str | None = None
    id: str | None = None
    """The queue's name for the job. This and the fields below are in sweep.json alone."""
    log: str | None = None
    """The file with the job's output."""
    state: str | None = None
    """The job's state in the queue's word."""


@dataclass(frozen=True)
class SubmittedJob:
    """A line of submitted.jsonl: a job that a queue has accepted."""

    key: str
    id: QueueId
    queue: str
    """The name of the queue, see `vaebench.cli.sweep.queues.Queue`."""
    log: str | None = None


class Records:
    """The job records of one sweep, the jobs that it submitted to a queue, and the mark that stops it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, key: str, record: JobRecord) -> None:
        """Write the record of the job ``key``."""
        (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        write_json(self.path(key), asdict(record))

    def read(self, key: str) -> JobRecord | None:
        """Return the record of the job ``key``; None if no process has started it.

        The record of a corrupt file is that of a failed job, so that the sweep continues with the others.
        """
        try:
            return read_json(self.path(key), JobRecord, "Delete it.")
        except FileNotFoundError:
            return None
        except UserError as error:
            return JobRecord("failed", error=str(error))

    def forget(self, key: str) -> None:
        """Delete the record of the job ``key``, before a further process starts it."""
        remove(self.path(key))

    def changed(self, seen: dict[str, tuple[int, int]]) -> list[str]:
        """Return the keys of the records that changed since the last call with ``seen``, which is updated."""
        keys: list[str] = []
        with suppress(OSError), os.scandir(self.folder / "jobs") as entries:
            for entry in entries:
                if entry.name.endswith(".json") and not entry.name.startswith("."):
                    with suppress(OSError):
                        version = entry.inode(), entry.stat(follow_symlinks=False).st_mtime_ns
                        if seen.get(entry.name) != version:
                            seen[entry.name] = version
                            keys.append(entry.name.removesuffix(".json"))
        return keys

    def add_submitted(self, jobs: Iterable[SubmittedJob]) -> None:
        """Append jobs to the list of those that a queue has accepted. Only the sweep itself writes it.

        If the sweep is killed between the queue's answer and this call, no process knows of these jobs. The next sweep
        then submits them again. Of two jobs for one run, the run's lock and its status let only one train: the other
        ends as "busy" or "skipped", and the sweep waits for the run itself.
        """
        file = Appender(self.folder / "submitted.jsonl")
        try:
            file.write("".join(json.dumps(asdict(job)) + "\n" for job in jobs).encode())
        finally:
            file.close()

    def submitted(self) -> Iterator[SubmittedJob]:
        """Yield the jobs that a queue has accepted, the first one first; leave out lines that are not readable."""
        with suppress(FileNotFoundError, Unreadable):
            for line in read_whole(self.folder / "submitted.jsonl").split(b"\n"):
                with suppress(Unreadable):
                    yield parse_json(line, SubmittedJob)

    def attended(self) -> AbstractContextManager[None]:
        """Hold the mark that a process waits for the jobs of this sweep. Busy if another process holds it."""
        return exclusive(
            self._lock, wait=0.5, busy=lambda holder: f"another sweep works in {self.folder} ({holder}): wait for it."
        )

    @property
    def is_attended(self) -> bool:
        """Whether a process waits for the jobs of this sweep."""
        return is_held(self._lock)

    @property
    def _lock(self) -> Path:
        return self.folder / ".lock"

    def stop(self) -> None:
        """Prevent all processes from starting further jobs of this sweep."""
        with open(self.folder / "stop", "ab", opener=regular):
            pass

    def start(self) -> None:
        """Create the folder; delete the mark of a sweep that was stopped, if ``hydra.sweep.dir`` names its folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove(self.folder / "stop")

    def clean(self) -> None:
        """Delete the temporary files of killed processes, of this sweep and of the sweeps in the folders beside it.

        Each sweep has a folder of its own, so the next sweep cleans that of a killed one.
        """
        for sweep in sweeps_beside(self.folder):
            for folder in (sweep, sweep / "jobs"):
                if folder.is_dir() and not folder.is_symlink():
                    clean_temporaries(folder)

    @property
    def stopped(self) -> bool:
        return (self.folder / "stop").exists()

    def path(self, key: str, suffix: str = ".json") -> Path:
        """Return the path of a file about the job ``key``."""
        return self.folder / "jobs" / f"{key}{suffix}"


def sweeps_beside(folder: Path) -> list[Path]:
    """Return the folder of a sweep and those of the other sweeps beside it, the oldest first; no links."""
    folders = sorted(folder.parent.iterdir()) if folder.parent.name == FOLDER else [folder]
    return [each for each in folders if each.is_dir() and not each.is_symlink()]


def job_key(config: Config) -> str:
    """Return the name of a job's record; it is the same for two jobs that train the same model."""
    return f"{config.seed}-{identity(config)}"


def skip_reason(run: RunFolder, config: Config) -> JobRecord | None:
    """Return the record of a job that must not start, with the reason; None if it can start."""
    try:
        status = run.read_status()
        if status.state == "finished":
            return JobRecord("skipped", results=results_of(run, config))
    except FileNotFoundError:
        return None
    except UserError as error:
        return JobRecord("failed", error=str(error))
    if status.state == "running":
        return JobRecord("busy", error=f"running in another process ({status.pid} on {status.host})")
    if status.state == "failed" and not config.sweep.retry_failed:
        return JobRecord("failed", error=f"in an earlier sweep: {status.error} (retry with sweep.retry_failed=true)")
    return None


def results_of(run: RunFolder, config: Config) -> list[str]:
    """Return the latest result of a run as lines: by the configured estimator, or else by any."""
    records, _ = split_results(run, identity(config))
    asked = [r for r in records if (r.split, r.k) == (config.estimator.split, config.estimator.k)]
    latest = (asked or records)[-1:]
    # A pair of bounds is two records that differ only in their direction.
    return [format_line(record) for record in records if latest and _kind(record) == _kind(latest[0])]


def _kind(record: ResultRecord) -> tuple[object, ...]:
    return record.estimator, record.split, record.k, record.epoch
