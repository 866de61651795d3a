"""Run a sweep: plan its jobs, give those that need work to a queue or to hydra's launcher, and print the table."""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig

from vaebench import plugins
from vaebench.cli.failure import message
from vaebench.cli.sweep.follow import Follower
from vaebench.cli.sweep.job import SweepJob
from vaebench.cli.sweep.launchers import MachineShare, has_queue, open_queue, require_launcher
from vaebench.cli.sweep.live import TrainingProgress, live_rows, shown, shows_live
from vaebench.cli.sweep.plan import PlannedJob, plan
from vaebench.cli.sweep.records import JobRecord, Records, skip_reason
from vaebench.cli.sweep.settings import JOBLIB
from vaebench.cli.sweep.table import JobRow, summary, table
from vaebench.config.schema import SweepSettings
from vaebench.config.words import all_as_typed
from vaebench.errors import RunFailed, UserError
from vaebench.records import write_json
from vaebench.records.folder import now
from vaebench.signals import stopping_signals

__all__ = ["raise_failures", "sweep"]

WAIT = 5.0  # seconds between two checks of jobs that another process runs
WRITE = 5.0  # seconds between two writes of sweep.json while jobs are in a queue


def sweep(hydra_context: Any, config: DictConfig, jobs: Sequence[list[str]], batch: int | None) -> None:
    """Run every job through the launcher, and print the table.

    Args:
        hydra_context: hydra's object with the config loader.
        config: the configuration of the sweep, with hydra's part.
        jobs: the overrides of each job.
        batch: jobs that the launcher gets at a time; None: all.

    Raises:
        UserError: all jobs are invalid.
        RunFailed: jobs failed, or are still at work although the sweep was not told to leave them.
        SystemExit: a signal stopped the sweep.
    """
    planned, repeated = plan(hydra_context, config, jobs)
    made = _Sweep(hydra_context, config, planned, batch)
    made.run()
    if repeated:
        print(f"left out {repeated} of {len(jobs)} combinations, which train the same models as others")
    raise_failures(planned, leaves=made.settings.submit_only)


class _Sweep:
    """Gives the jobs that need work to a queue, or calls hydra's launcher with them until none makes progress."""

    def __init__(self, hydra_context: Any, config: DictConfig, jobs: list[PlannedJob], batch: int | None) -> None:
        self.jobs = jobs
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.records = Records(self.folder)
        configs = [job.config for job in jobs if job.config is not None]
        self.settings = configs[0].sweep if configs else SweepSettings()
        self.started = now()
        self.signal: int | None = None
        self.launcher_failure: str | None = None
        launcher = config.hydra.runtime.choices["hydra/launcher"]
        require_launcher([f"hydra/launcher={launcher}"])  # a yaml file may have chosen it
        queue = open_queue(config) if has_queue(config.hydra.launcher) else None
        if self.settings.submit_only and (queue is None or not queue.lasting):
            raise UserError(
                f"sweep.submit_only=true needs a queue that runs jobs without this process, got "
                f"hydra/launcher={launcher}: use hydra/launcher=submitit_slurm"
            )
        share = MachineShare.of(config.hydra.launcher)
        shows = shows_live() and all(c.trainer.progress for c in configs) and not self.settings.submit_only
        self.live = shows and (share.prints_here or queue is not None)
        self.batch = batch
        self.task = SweepJob(
            self.folder,
            numbers={job.key: n for n, job in enumerate(jobs, start=1) if job.config is not None},
            fail_fast=self.settings.fail_fast,
            threads=share.threads(len(configs)),
            share_gpus=share.shared,
            log=self.live and queue is None,
        )
        self.follower: Follower | None = None
        if queue is not None:
            self.follower = Follower(
                queue,
                jobs,
                self.task,
                self.settings,
                batch=batch,
                signalled=lambda: self.signal,
                changed=self._write_soon,
            )
        self._written = 0.0
        self._hydra_context, self._config = hydra_context, config

    def run(self) -> None:
        """Run all jobs and print the table, also after a signal or an error."""
        self._begin()
        try:
            with self._stopped_by_signals(), self._live_view():
                if self.follower is not None:
                    self.follower.run()
                else:
                    self._skip_jobs()
                    self._launch_all()
        except SystemExit as stop:
            if self.signal is None and stop.code in (129, 130, 143):
                self.signal = int(stop.code) - 128
        except KeyboardInterrupt:
            self.signal = signal.SIGINT
        finally:
            self._end()
        if self.signal is not None:
            raise SystemExit(128 + self.signal)

    def _begin(self) -> None:
        try:
            self.records.start()
        except OSError as error:
            raise UserError(f"cannot create {self.folder}: {error.strerror}; use another output_dir=...") from error
        self.records.clean()
        self._write()

    def _live_view(self) -> contextlib.AbstractContextManager[None]:
        if not self.live:
            return contextlib.nullcontext()
        follower, progress = self.follower, TrainingProgress()
        if follower is not None:
            return shown(lambda: follower.rows(progress))
        return shown(lambda: live_rows(self.jobs, self.records, progress))

    def _skip_jobs(self) -> None:
        """Record the jobs that must not start."""
        for job in self.jobs:
            if job.open:
                job.record = skip_reason(job.run, job.config) or job.record  # pyright: ignore[reportArgumentType]
        if self.settings.fail_fast and any(job.record.status == "failed" for job in self.jobs):
            self.records.stop()

    def _launch_all(self) -> None:
        while (pending := [job for job in self.jobs if job.open]) and not self.records.stopped:
            before = _progress(self.jobs)
            # Jobs that another process runs come last: it may have finished them by then.
            pending.sort(key=lambda job: job.record.status == "busy")
            size = self.batch or len(pending)
            for start in range(0, len(pending), size):
                self._launch(pending[start : start + size])
                self._write()
                if self.records.stopped:
                    return
            if _progress(self.jobs) == before:
                if not self.settings.wait:
                    return
                time.sleep(WAIT)

    def _launch(self, batch: list[PlannedJob]) -> None:
        """Give one batch of jobs to the launcher, and read their records."""
        from hydra.core.plugins import Plugins

        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self._hydra_context, task_function=self.task, config=self._config
        )
        getattr(launcher, "joblib", {}).update(JOBLIB)
        self.launcher_failure = None
        try:
            for job, returned in zip(batch, launcher.launch([job.overrides for job in batch], 0), strict=True):
                if isinstance(returned._return_value, Exception):
                    job.error = returned._return_value
        except Exception as error:
            self.launcher_failure = f"the launcher failed: {message(error).splitlines()[0]}"
        finally:
            for job in batch:
                self._settle(job)
        if self.launcher_failure is not None and not self.records.stopped:
            print(f"vaebench: {self.launcher_failure}", file=sys.stderr, flush=True)

    def _settle(self, job: PlannedJob) -> None:
        """Read a job's record. A job whose process died is retried once."""
        record = self.records.read(job.key)
        if record is None:
            if job.error is not None:  # it failed before it could write anything
                job.record = JobRecord("failed", error=message(job.error))
            return
        job.record = record
        if record.status == "running" and not self._alive(job):
            job.deaths += 1
            if self.signal is not None:
                job.record = JobRecord(
                    "interrupted", error="its process was killed; run the same sweep again to resume it"
                )
            elif job.deaths < 2:
                job.record = JobRecord("waiting")
            else:
                error = "its process exited without recording a status (killed or out of memory?)"
                job.record = JobRecord("failed", error=error)

    def _alive(self, job: PlannedJob) -> bool:
        run = job.run
        try:
            return run.read_status().state == "running"
        except (FileNotFoundError, UserError):
            return False

    def _end(self) -> None:
        for job in self.jobs:
            if job.record.status == "waiting":
                given_up = self.launcher_failure is not None and not self.records.stopped
                error = self.launcher_failure if given_up else None
                job.record = JobRecord("failed" if given_up else "not started", error=error)
        self._write(ended=True)
        rows = [JobRow(n, job.typed, job.record) for n, job in enumerate(self.jobs, start=1)]
        print(f"\n{summary([job.record for job in self.jobs])}")
        print(table(self.follower.rows() if self.follower is not None else rows), flush=True)
        if self.task.log:
            print(f"output of the jobs: {self.folder / 'jobs'}/*.log", flush=True)

    def _write_soon(self) -> None:
        """Write sweep.json, unless that was done a moment ago."""
        if time.monotonic() - self._written >= WRITE:
            self._write()

    def _write(self, *, ended: bool = False) -> None:
        """Write sweep.json."""
        self._written = time.monotonic()
        jobs = [
            {"overrides": e.overrides, "folder": str(e.run.path) if e.config else None, **asdict(e.record)}
            for e in self.jobs
        ]
        command = ["vaebench", "train", *plugins.flags(), *all_as_typed(sys.argv[1:])]
        facts = {"command": command, "host": socket.gethostname(), "pid": os.getpid(), "started": self.started}
        times = {"updated": now(), "ended": now() if ended else None}
        write_json(self.folder / "sweep.json", {**facts, **times, "settings": asdict(self.settings), "jobs": jobs})

    @contextlib.contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """Make the stopping signals stop the whole sweep, not only the running job."""
        kept = {number: signal.signal(number, self._stop) for number in stopping_signals()}
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal is not None, number
        if self.follower is not None and not again:
            return  # it looks at the signal: the answer of a queue must not be lost
        self.records.stop()
        working = [] if self.task.here and self.task.at_work else self._working()
        if again or not working:
            raise SystemExit(128 + number)
        print("stopping: waiting for the running jobs to save their state (press Ctrl-C again to exit now)", flush=True)
        for record in working:
            if record.host == socket.gethostname() and record.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(record.pid, signal.SIGTERM)

    def _working(self) -> list[JobRecord]:
        """Return the records of the jobs that workers are running."""
        keys = [job.key for job in self.jobs if job.open]
        return [record for key in keys if (record := self.records.read(key)) and record.status == "running"]


def _progress(jobs: Sequence[PlannedJob]) -> tuple[int, int]:
    """Return two numbers that change whenever a launch made progress."""
    return sum(job.open for job in jobs), sum(job.deaths for job in jobs)


def raise_failures(jobs: Sequence[PlannedJob], *, leaves: bool) -> None:
    """Raise RunFailed if a job failed, or UserError if all jobs are invalid.

    A job that is still at work counts as failed too, unless the sweep was told to leave it (``leaves``).
    """
    failed = [job for job in jobs if job.record.status in ("failed", "interrupted")]
    working = [job for job in jobs if job.record.status in ("queued", "running")]
    if not failed and working and not leaves:
        raise RunFailed(f"{len(working)} of {len(jobs)} jobs are still at work: see the table above")
    if not failed:
        return
    text = f"{len(failed)} of {len(jobs)} jobs failed: see the table above"
    if len(failed) == len(jobs) and all(isinstance(job.error, UserError) for job in failed):
        raise UserError(text)
    raise RunFailed(text)
