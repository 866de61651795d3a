"""What became of the jobs of a sweep: one small file for each, written by whichever process is at it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from vaebench.config import Config, identity
from vaebench.records import RunFolder, format_line, read_results, write_json

__all__ = ["JobRecord", "JobStatus", "Records", "has_checkpoint", "job_key", "results_of", "skip_reason"]

JobStatus = Literal[
    "waiting", "running", "finished", "resumed", "skipped", "failed", "interrupted", "busy", "not started"
]


@dataclass(frozen=True)
class JobRecord:
    """How a job stands. ``results`` are lines that name estimator, direction, protocol and error."""

    status: JobStatus
    seconds: float | None = None
    """Spent on it in this sweep."""
    results: list[str] = field(default_factory=list)
    error: str | None = None
    pid: int | None = None
    host: str | None = None


class Records:
    """The job records of one sweep, and the mark that no further job is to start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, key: str, record: JobRecord) -> None:
        """Say how the job ``key`` stands."""
        (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        write_json(self._path(key), asdict(record))

    def read(self, key: str) -> JobRecord | None:
        """Return how the job ``key`` stands; None if no process has begun it."""
        try:
            return JobRecord(**json.loads(self._path(key).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def stop(self) -> None:
        """Let no job of this sweep start from here on, in any process."""
        (self.folder / "stop").touch()

    @property
    def stopped(self) -> bool:
        return (self.folder / "stop").exists()

    def _path(self, key: str) -> Path:
        return self.folder / "jobs" / f"{key}.json"


def job_key(config: Config) -> str:
    """Return the name of a job's record: two jobs that train the same model are one job."""
    return f"{config.seed}-{identity(config)}"


def skip_reason(run: RunFolder, config: Config) -> JobRecord | None:
    """Return the record of a job that is not to be started, as its run stands; None if it is to be started."""
    if not run.status.exists():
        return None
    status = run.read_status()
    if status.state == "finished":
        return JobRecord("skipped", results=results_of(run, config))
    if status.state == "running":
        return JobRecord("busy", error=f"in progress elsewhere (process {status.pid} on {status.host})")
    if status.state == "failed" and not config.sweep.retry_failed:
        return JobRecord("failed", error=f"in an earlier session: {status.error} (sweep.retry_failed=true tries again)")
    return None


def has_checkpoint(run: RunFolder) -> bool:
    """Whether there is something to go on from."""
    return any((run.checkpoints / name).exists() for name in ("last.pt", "last.previous.pt"))


def results_of(run: RunFolder, config: Config) -> list[str]:
    """Return a run's results as lines: the latest by the estimator that its configuration asks for, or else all."""
    records = read_results(run)
    asked = [r for r in records if (r.split, r.k) == (config.estimator.split, config.estimator.k)]
    latest = (asked or records)[-1:]
    # A pair of bounds is two records, which differ in their direction alone.
    alike = [r for r in records if latest and (r.estimator, r.split, r.k, r.epoch) == _kind(latest[0])]
    return [format_line(record) for record in alike]


def _kind(record: object) -> tuple[object, ...]:
    return tuple(getattr(record, name) for name in ("estimator", "split", "k", "epoch"))
