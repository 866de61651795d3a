"""The job records of a sweep: one small file for each job, written by the process that runs the job."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from vaebench.config import Config, identity
from vaebench.config.schema import NonNegative
from vaebench.errors import UserError
from vaebench.files import clean_temporaries, regular
from vaebench.records import ResultRecord, RunFolder, format_line, write_json
from vaebench.records.current import split_results
from vaebench.records.folder import ProcessId
from vaebench.records.stored import read_json

__all__ = ["JobRecord", "JobStatus", "Records", "job_key", "results_of", "skip_reason"]

JobStatus = Literal[
    "waiting", "running", "finished", "resumed", "skipped", "failed", "interrupted", "busy", "not started"
]


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


class Records:
    """The job records of one sweep, and the mark that stops it."""

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

    def stop(self) -> None:
        """Prevent all processes from starting further jobs of this sweep."""
        with open(self.folder / "stop", "ab", opener=regular):
            pass

    def clean(self) -> None:
        """Delete the temporary files of killed processes, of this sweep and of the sweeps in the folders beside it.

        Each sweep has a folder of its own, so the next sweep cleans that of a killed one.
        """
        beside = self.folder.parent.iterdir() if self.folder.parent.name == FOLDER else [self.folder]
        for sweep in beside:
            for folder in (sweep, sweep / "jobs"):
                if folder.is_dir() and not folder.is_symlink() and not sweep.is_symlink():
                    clean_temporaries(folder)

    @property
    def stopped(self) -> bool:
        return (self.folder / "stop").exists()

    def path(self, key: str, suffix: str = ".json") -> Path:
        """Return the path of a file about the job ``key``."""
        return self.folder / "jobs" / f"{key}{suffix}"


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
        return JobRecord("busy", error=run.busy())
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
