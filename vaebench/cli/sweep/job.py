"""One job of a sweep, in whichever process or on whichever machine a launcher runs it."""

import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vaebench.cli.argv import command_line
from vaebench.cli.failure import message, report_failure
from vaebench.cli.sweep.records import JobRecord, JobStatus, Records, has_checkpoint, job_key, results_of, skip_reason
from vaebench.config import Config, from_hydra, run_folder
from vaebench.errors import Busy
from vaebench.records import RunFolder

__all__ = ["SweepJob"]


@dataclass
class SweepJob:
    """hydra's task function: trains one job, and writes down what became of it. A launcher may pickle it.

    It raises nothing for a job that fails, so that every launcher carries on with the others. In the process of the
    sweep itself, where jobs run one after another, it raises SystemExit when the sweep has to stop.
    """

    folder: Path
    """Of the sweep, absolute."""
    numbers: dict[str, int]
    """Place in the sweep by job key, from 1."""
    fail_fast: bool = False
    threads: int | None = None
    """CPU threads of a job that does not ask for a number itself; None: as torch finds."""
    share_gpus: bool = False
    """Whether the workers of this machine have to divide its GPUs among themselves."""
    process: tuple[str, int] = field(default_factory=lambda: (socket.gethostname(), os.getpid()))
    """Of the sweep."""
    place: Path = field(default_factory=Path.cwd)
    """The working folder, which relative paths start from."""
    at_work: bool = False
    """Whether a job is under way in the process of the sweep itself."""

    @property
    def here(self) -> bool:
        """Whether this is the process of the sweep itself."""
        return self.process == (socket.gethostname(), os.getpid())

    def __call__(self, cfg: DictConfig) -> str:
        """Run the job that hydra composed; return its status."""
        from hydra.core.hydra_config import HydraConfig

        records = Records(self.folder)
        if records.stopped:
            return "not started"
        if not self.here:
            os.chdir(self.place)
        # Unresolved: an override may hold a reference.
        overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        config = from_hydra(cfg)
        key = job_key(config)
        run = RunFolder(run_folder(config))
        record = skip_reason(run, config)
        if record is None:
            print(f"\n== job {self.numbers.get(key, '?')} of {len(self.numbers)}: {' '.join(overrides)}", flush=True)
            records.write(key, JobRecord("running", pid=os.getpid(), host=socket.gethostname()))
            record = self._run(run, config, overrides, records)
        else:
            records.write(key, record)
        if record.status == "failed" and self.fail_fast:
            records.stop()
            if self.here:
                raise SystemExit(1)
        return record.status

    def _run(self, run: RunFolder, config: Config, overrides: list[str], records: Records) -> JobRecord:
        """Train, and write the record of it whatever happens."""
        key, started = job_key(config), time.monotonic()
        done: JobStatus = "resumed" if has_checkpoint(run) else "finished"

        def record(status: JobStatus, error: str | None = None, results: Sequence[str] = ()) -> JobRecord:
            seconds = time.monotonic() - started
            made = JobRecord(status, seconds, list(results), error, os.getpid(), socket.gethostname())
            records.write(key, made)
            return made

        self.at_work = self.here
        try:
            self._train(config, overrides)
            return record(done, results=results_of(run, config))
        except Busy as error:
            return record("busy", str(error))
        except (SystemExit, KeyboardInterrupt) as stop:
            made = record("interrupted", "the same sweep goes on with it")
            if self.here:
                raise
            refusal = requeue(stop)
            return record("failed", f"saved, but not to be started again: {refusal}") if refusal else made
        except Exception as error:
            report_failure(error, overrides)
            return record("failed", message(error))
        finally:
            self.at_work = False

    def _train(self, config: Config, overrides: list[str]) -> None:
        from vaebench.isolation import isolated
        from vaebench.train.session import train

        self._share_machine()
        with command_line(["vaebench", "train", *overrides]), isolated():
            train(config)

    def _share_machine(self) -> None:
        """Keep the jobs that run beside this one from fighting over the machine."""
        from vaebench import runtime

        if self.here:
            return
        # A batch system says how many it gave; torch would take all that the machine has.
        threads = self.threads or int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
        if threads:
            runtime.set_default_threads(threads)
        if self.share_gpus:
            runtime.use_gpu_in_turn(worker_number())


def requeue(stop: BaseException) -> Exception | None:
    """Give a batch system the signal that it sent, now that all is saved: it puts the job back into its queue.

    Doing so it ends this process; the exception returned says why it did not.
    """
    number = stop.code - 128 if isinstance(stop, SystemExit) and isinstance(stop.code, int) else signal.SIGINT
    if number in (signal.SIGINT, signal.SIGTERM) or not callable(handler := signal.getsignal(number)):
        return None
    try:
        handler(number, None)
    except Exception as error:
        return error
    return None


def worker_number() -> int:
    """Return this process's number among the workers of its pool, or else among hydra's jobs."""
    from hydra.core.hydra_config import HydraConfig

    numbered = re.search(r"-(\d+)$", multiprocessing.current_process().name)
    return int(numbered[1]) - 1 if numbered else int(HydraConfig.get().job.num)
