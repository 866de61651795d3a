"""One job of a sweep. A launcher may run it in another process or on another machine."""

import contextlib
import multiprocessing
import os
import re
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vaebench import plugins
from vaebench.cli.argv import command_line, lasting_flags
from vaebench.cli.failure import lasting_output, message, report_failure
from vaebench.cli.sweep.lines import prefixed_output
from vaebench.cli.sweep.records import JobRecord, JobStatus, Records, job_key, results_of, skip_reason
from vaebench.cli.sweep.slurm_commands import requeue
from vaebench.config import Config, from_hydra, run_folder
from vaebench.config.words import as_typed
from vaebench.errors import Busy
from vaebench.files import regular
from vaebench.records import RunFolder

__all__ = ["SweepJob", "SweepTask"]


@dataclass
class SweepJob:
    """hydra's task function: trains one job and records the outcome. A launcher may pickle it.

    It does not raise the error of a failed job, so that every launcher continues with the other jobs. In the process
    of the sweep itself, where jobs run one after another, it raises SystemExit to stop the sweep.
    """

    folder: Path
    """The sweep's folder, absolute."""
    numbers: dict[str, int]
    """Job key -> number in the sweep, from 1."""
    fail_fast: bool = False
    threads: int | None = None
    """CPU threads of a job without trainer.threads; None: torch's default."""
    share_gpus: bool = False
    """Whether worker number n on this machine uses GPU number n, modulo the number of GPUs."""
    log: bool = False
    """Whether the output of each job goes to a file beside its record."""
    process: tuple[str, int] = field(default_factory=lambda: (socket.gethostname(), os.getpid()))
    """Host and process id of the sweep."""
    place: Path = field(default_factory=Path.cwd)
    """The working folder, for relative paths."""
    at_work: bool = False
    """Whether a job is running in the process of the sweep itself."""
    flags: list[str] = field(default_factory=lasting_flags)
    """The flags of the command that each job's recorded command needs."""
    plugin_words: tuple[str, ...] = field(default_factory=plugins.given)
    """The files and modules of ``--plugin``, for `plugins.use`."""
    worker: int | None = None
    """The number of the worker; None: that of joblib's worker, or of hydra's job."""

    @property
    def here(self) -> bool:
        """Whether this is the process of the sweep itself."""
        return self.process == (socket.gethostname(), os.getpid())

    def __call__(self, cfg: DictConfig) -> str:
        """Run the job that hydra composed; return its status."""
        from hydra.core.hydra_config import HydraConfig

        if Records(self.folder).stopped or self._orphaned():
            return "not started"
        self._join()
        # Unresolved: an override may contain a reference.
        words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        return self.run(from_hydra(cfg), words)

    def run(self, config: Config, words: Sequence[str], number: str | None = None) -> str:
        """Run one job; return its status.

        Args:
            config: the settings of the job.
            words: its overrides, as hydra got them.
            number: the job's number in the sweep, for example "job 3 of 12"; None: from ``numbers``.
        """
        records = Records(self.folder)
        self._join()
        overrides = [as_typed(word) for word in words]
        key = job_key(config)
        number = number or self._number(key, " of ")
        run = RunFolder(run_folder(config))
        record = skip_reason(run, config)
        if record is None:
            records.write(key, JobRecord("running", pid=os.getpid(), host=socket.gethostname()))
            # Again: a sweep writes this mark, and then signals the jobs whose records say running. Not in a queue,
            # which may start a job again after the mark.
            if records.stopped and _worker_of_joblib():
                records.write(key, JobRecord("not started"))
                return "not started"
            with lasting_output(), self._output(key, records), self._stopped_with_sweep():
                print(f"\n== {number}: {shlex.join(overrides)}", flush=True)
                record = self._run(run, config, overrides, records)
        else:
            records.write(key, record)
        if self._orphaned():
            os._exit(1)  # nothing takes the result, and an idle worker would wait for more jobs
        if record.status == "failed" and self.fail_fast:
            records.stop()
            if self.here:
                raise SystemExit(1)
        return record.status

    def _join(self) -> None:
        """Give a worker the working folder and the plug-ins of the sweep."""
        if not self.here:
            os.chdir(self.place)
            plugins.use(*self.plugin_words)

    def _orphaned(self) -> bool:
        """Whether this is a worker of joblib, and the sweep that started it has ended."""
        return _worker_of_joblib() and os.getppid() != self.process[1]

    def _number(self, key: str, of: str) -> str:
        return f"job {self.numbers.get(key, '?')}{of}{len(self.numbers)}"

    @contextlib.contextmanager
    def _stopped_with_sweep(self) -> Iterator[None]:
        """Stop the job in this block as SIGTERM does, once the sweep of a joblib worker has ended, even if killed."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(1.0):
                if self._orphaned():
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

        if not self.here:
            threading.Thread(target=watch, name="stop with the sweep", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    @contextlib.contextmanager
    def _output(self, key: str, records: Records) -> Iterator[None]:
        """Redirect stdout and stderr to a file, if ``log`` is set; else mark each line with the number of its job."""
        if not self.log:
            # A terminal names the job once, before its bar.
            shares = len(self.numbers) > 1 and (_worker_of_joblib() or not sys.stderr.isatty())
            with prefixed_output(f"[{self._number(key, '/')}] ") if shares else contextlib.nullcontext():
                yield
            return
        with (
            open(records.path(key, ".log"), "a", encoding="utf-8", buffering=1, opener=regular) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            yield

    def _run(self, run: RunFolder, config: Config, overrides: list[str], records: Records) -> JobRecord:
        """Train, and write the record of the outcome, also after an error."""
        key, started = job_key(config), time.monotonic()

        def record(status: JobStatus, error: str | None = None, results: Sequence[str] = ()) -> JobRecord:
            seconds = time.monotonic() - started
            made = JobRecord(status, seconds, list(results), error, os.getpid(), socket.gethostname())
            records.write(key, made)
            return made

        self.at_work = self.here
        try:
            # Here, because it imports torch: a signal in these seconds interrupts the job, too.
            from vaebench.records.checkpoint import Checkpoints

            done: JobStatus = "resumed" if Checkpoints(run.checkpoints).exists() else "finished"
            self._train(config, overrides)
            return record(done, results=results_of(run, config))
        except Busy as error:
            return record("busy", str(error))
        except (SystemExit, KeyboardInterrupt) as stop:
            made = record("interrupted", "run the same sweep again to resume it")
            if self.here:
                raise
            refusal = requeue(stop)
            return record("failed", f"saved, but could not be requeued: {refusal}") if refusal else made
        except Exception as error:
            report_failure(error, overrides)
            return record("failed", message(error))
        finally:
            self.at_work = False

    def _train(self, config: Config, overrides: list[str]) -> None:
        from vaebench.isolation import isolated
        from vaebench.train.session import train

        self._share_machine()
        with command_line(["vaebench", "train", *self.flags, *overrides]), isolated():
            train(config)

    def _share_machine(self) -> None:
        """Limit this job to its share of the CPU cores and GPUs."""
        from vaebench import runtime

        if self.here:
            return
        # torch would use all cores of the machine, not only those that the batch system has assigned.
        threads = self.threads or int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
        if threads:
            runtime.set_default_threads(threads)
        if self.share_gpus:
            runtime.use_gpu_in_turn(worker_number() if self.worker is None else self.worker)


@dataclass(frozen=True)
class SweepTask:
    """One job of a sweep, as a queue gets it: a function without arguments that can be pickled."""

    sweep: SweepJob
    config: Config
    overrides: list[str]
    number: str
    """For example "job 3 of 12"."""

    @classmethod
    def of(cls, sweep: SweepJob, config: Config, overrides: list[str], number: str, worker: int) -> "SweepTask":
        """Return the task without the numbers of all jobs: it must not grow with the sweep."""
        # No process is that of the sweep itself: the job may get its process id on a machine with the same name.
        return cls(replace(sweep, numbers={}, process=("", 0), worker=worker), config, overrides, number)

    def __call__(self) -> str:
        """Run the job; return its status.

        A job that the queue starts again continues also after the sweep was stopped: it has a record.
        """
        records = Records(self.sweep.folder)
        if records.stopped and records.read(job_key(self.config)) is None:
            return "not started"
        return self.sweep.run(self.config, self.overrides, self.number)


def _worker_of_joblib() -> bool:
    return multiprocessing.current_process().name.startswith("LokyProcess")


def worker_number() -> int:
    """Return the number of this process in its pool of workers, or else the number of hydra's job."""
    from hydra.core.hydra_config import HydraConfig

    numbered = re.search(r"-(\d+)$", multiprocessing.current_process().name)
    return int(numbered[1]) - 1 if numbered else int(HydraConfig.get().job.num)
