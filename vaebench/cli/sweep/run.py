"""A sweep: which jobs there are, which of them need work, how often a launcher is asked, and the table at the end."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vaebench.cli.failure import message, report_failure
from vaebench.cli.sweep.job import SweepJob
from vaebench.cli.sweep.launchers import require_launcher
from vaebench.cli.sweep.records import JobRecord, Records, job_key, skip_reason
from vaebench.cli.sweep.table import table
from vaebench.config import Config, from_hydra, run_folder
from vaebench.config.schema import Sweep as Settings
from vaebench.errors import RunFailed, UserError
from vaebench.records import RunFolder, write_json
from vaebench.records.folder import now

__all__ = ["sweep"]

WAIT = 5.0  # seconds between two looks at jobs that another process is at


@dataclass
class Entry:
    """One job: its words, and how it stands. ``config`` is None for words that make no run."""

    overrides: list[str]
    record: JobRecord
    config: Config | None = None
    error: Exception | None = None
    deaths: int = 0
    """How often its process ended without a word."""

    @property
    def key(self) -> str:
        assert self.config is not None
        return job_key(self.config)

    @property
    def run(self) -> RunFolder:
        assert self.config is not None
        return RunFolder(run_folder(self.config))

    @property
    def open(self) -> bool:
        return self.record.status in ("waiting", "busy")


def sweep(hydra_context: Any, config: DictConfig, jobs: Sequence[list[str]], batch: int | None) -> None:
    """Run every job, through hydra's launcher, and print the table.

    Args:
        hydra_context: hydra's, with the loader of configurations.
        config: of the sweep, with hydra's part.
        jobs: the overrides of each.
        batch: how many jobs the launcher gets at a time; None: as many as it takes.

    Raises:
        UserError: no job was one that could start.
        RunFailed: jobs failed.
        SystemExit: a signal stopped the sweep.
    """
    entries, doubles = composed(hydra_context, config, jobs)
    _Sweep(hydra_context, config, entries, batch).run()
    if doubles:
        print(f"left out: {doubles} of {len(jobs)} combinations, as others train the same model")
    _raise_verdict(entries)


def composed(hydra_context: Any, config: DictConfig, jobs: Sequence[list[str]]) -> tuple[list[Entry], int]:
    """Return the jobs, each model once, and how many were left out as repetitions.

    All words are read before the first job starts: what hydra refuses, as an unknown key, ends the sweep here.
    """
    loaded = [hydra_context.config_loader.load_sweep_config(config, list(overrides)) for overrides in jobs]
    entries: dict[str, Entry] = {}
    for overrides, whole in zip(jobs, loaded, strict=True):
        own = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        try:
            found = from_hydra(own, whole.hydra)
        except Exception as error:
            report_failure(error, overrides)
            failed = JobRecord("failed", error=message(error))
            entries[" ".join(overrides)] = Entry(overrides, failed, error=error)
        else:
            entries.setdefault(job_key(found), Entry(overrides, JobRecord("waiting"), found))
    return list(entries.values()), len(jobs) - len(entries)


class _Sweep:
    """Asks the launcher for the jobs that need work until none is left, or none moves on."""

    def __init__(self, hydra_context: Any, config: DictConfig, entries: list[Entry], batch: int | None) -> None:
        self.entries = entries
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.records = Records(self.folder)
        configs = [entry.config for entry in entries if entry.config is not None]
        self.settings = configs[0].sweep if configs else Settings()
        self.started = now()
        self.signal: int | None = None
        self.launcher_failure: str | None = None
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        require_launcher([f"hydra/launcher={launcher}"])  # a yaml file may have chosen it
        share = _Share.of(launcher, config.hydra.launcher)
        self.batch = batch or share.batch
        self.job = SweepJob(
            self.folder,
            numbers={entry.key: n for n, entry in enumerate(entries, start=1) if entry.config is not None},
            fail_fast=self.settings.fail_fast,
            threads=share.threads(len(configs)),
            share_gpus=share.machine,
        )
        self._hydra_context, self._config = hydra_context, config

    def run(self) -> None:
        """Run all jobs; print the table, whatever ends the sweep."""
        self._begin()
        try:
            with self._watching():
                self._look()
                self._launch_all()
        except SystemExit as stop:
            if self.signal is None and stop.code in (130, 143):
                self.signal = int(stop.code) - 128
        except KeyboardInterrupt:
            self.signal = signal.SIGINT
        finally:
            self._end()
        if self.signal is not None:
            raise SystemExit(128 + self.signal)

    def _begin(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {self.folder}: {error.strerror}; choose another output_dir=...") from error
        self._write()

    def _look(self) -> None:
        """Settle the jobs that need no work."""
        for entry in self.entries:
            if entry.open:
                entry.record = skip_reason(entry.run, entry.config) or entry.record  # pyright: ignore[reportArgumentType]
        if self.settings.fail_fast and any(entry.record.status == "failed" for entry in self.entries):
            self.records.stop()

    def _launch_all(self) -> None:
        while (pending := [entry for entry in self.entries if entry.open]) and not self.records.stopped:
            before = _moves(self.entries)
            # Those that another process is at come last: by then it may have finished them.
            pending.sort(key=lambda entry: entry.record.status == "busy")
            size = self.batch or len(pending)
            for start in range(0, len(pending), size):
                self._launch(pending[start : start + size])
                self._write()
                if self.records.stopped:
                    return
            if _moves(self.entries) == before:
                if not self.settings.wait:
                    return
                time.sleep(WAIT)

    def _launch(self, batch: list[Entry]) -> None:
        """Give one batch of jobs to the launcher, and read what became of them."""
        from hydra.core.plugins import Plugins

        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._hydra_context, task_function=self.job, config=self._config
        )
        self.launcher_failure = None
        try:
            for entry, returned in zip(batch, launcher.launch([e.overrides for e in batch], 0), strict=True):
                if isinstance(returned._return_value, Exception):
                    entry.error = returned._return_value
        except Exception as error:
            self.launcher_failure = f"the launcher gave up: {message(error).splitlines()[0]}"
        finally:
            for entry in batch:
                self._settle(entry)
        if self.launcher_failure is not None and not self.records.stopped:
            print(f"vaebench: {self.launcher_failure}", file=sys.stderr, flush=True)

    def _settle(self, entry: Entry) -> None:
        """Read a job's record; one whose process died is tried once more."""
        record = self.records.read(entry.key)
        if record is None:
            if entry.error is not None:  # it failed before it could write anything
                entry.record = JobRecord("failed", error=message(entry.error))
            return
        entry.record = record
        if record.status == "running" and not self._alive(entry):
            entry.deaths += 1
            again = entry.deaths < 2 and self.signal is None
            died = JobRecord("failed", error="its process ended without a word (killed, or out of memory?)")
            entry.record = JobRecord("waiting") if again else died

    def _alive(self, entry: Entry) -> bool:
        run = entry.run
        return run.status.exists() and run.read_status().state == "running"

    def _end(self) -> None:
        for entry in self.entries:
            if entry.record.status == "waiting":
                given_up = self.launcher_failure is not None and not self.records.stopped
                error = self.launcher_failure if given_up else None
                entry.record = JobRecord("failed" if given_up else "not started", error=error)
        self._write(ended=True)
        print(f"\n{table([(entry.overrides, entry.record) for entry in self.entries])}", flush=True)

    def _write(self, *, ended: bool = False) -> None:
        """Write sweep.json."""
        jobs = [
            {"overrides": e.overrides, "folder": str(e.run.path) if e.config else None, **asdict(e.record)}
            for e in self.entries
        ]
        facts = {"command": sys.argv, "host": socket.gethostname(), "pid": os.getpid(), "started": self.started}
        times = {"updated": now(), "ended": now() if ended else None}
        write_json(self.folder / "sweep.json", {**facts, **times, "settings": asdict(self.settings), "jobs": jobs})

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM stop the whole sweep, not only the job under way."""
        kept = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, number
        self.records.stop()
        working = [] if self.job.here and self.job.at_work else self._working()
        if again or not working:
            raise SystemExit(128 + number)
        print("stopping: waiting for jobs to save what they have (once more to leave at once)", flush=True)
        for record in working:
            if record.host == socket.gethostname() and record.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(record.pid, signal.SIGTERM)

    def _working(self) -> list[JobRecord]:
        """Return the records of jobs that workers are at."""
        keys = [entry.key for entry in self.entries if entry.open]
        return [record for key in keys if (record := self.records.read(key)) and record.status == "running"]


@dataclass(frozen=True)
class _Share:
    """How jobs of one launcher divide this machine."""

    machine: bool = False
    """Whether the jobs run here side by side, with nobody else to give each its part."""
    at_once: int = 1
    batch: int | None = None

    @staticmethod
    def of(launcher: str, settings: DictConfig) -> "_Share":
        """Return the share for the launcher of that name; Slurm and ray hand out cores and GPUs themselves."""
        if launcher == "joblib":
            wanted = int(settings.n_jobs)
            return _Share(True, wanted if wanted > 0 else max(1, cores() + 1 + wanted))
        if launcher == "submitit_local":
            at_once = max(1, cores() // (settings.cpus_per_task or 1))
            return _Share(True, at_once, batch=at_once)
        return _Share()

    def threads(self, jobs: int) -> int | None:
        """Return CPU threads for each job; None where that is somebody else's to say."""
        if not self.machine or "OMP_NUM_THREADS" in os.environ:
            return None
        return max(1, cores() // max(1, min(self.at_once, jobs)))


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _moves(entries: Sequence[Entry]) -> tuple[int, int]:
    """Return what changes whenever a launch has led anywhere."""
    return sum(entry.open for entry in entries), sum(entry.deaths for entry in entries)


def _raise_verdict(entries: Sequence[Entry]) -> None:
    """Raise RunFailed if a job failed, UserError if no job was one that could start."""
    failed = [entry for entry in entries if entry.record.status in ("failed", "interrupted")]
    if not failed:
        return
    text = f"{len(failed)} of {len(entries)} jobs failed; the lines above say which and why"
    if len(failed) == len(entries) and all(isinstance(entry.error, UserError) for entry in failed):
        raise UserError(text)
    raise RunFailed(text)
