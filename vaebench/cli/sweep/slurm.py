"""The queues behind submitit: Slurm, and processes on this machine that stand for it."""

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import submitit
from submitit.core.utils import FailedJobError

from vaebench.cli.sweep.job import SweepTask
from vaebench.cli.sweep.launchers import cores
from vaebench.cli.sweep.queues import Queue, QueueState, Submitted
from vaebench.cli.sweep.slurm_commands import answer
from vaebench.errors import RunFailed, UserError

__all__ = ["LocalQueue", "SlurmQueue"]

# States of jobs: https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES
# A job in another state than these runs, or Slurm still ends its processes.
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}
ENDED |= {"DEADLINE", "REVOKED"}

# Words in an answer of sbatch, and the settings that it refuses. The texts are in slurm_errno.c of Slurm.
REFUSALS = {
    "invalid account": ["account", "partition"],
    "invalid partition": ["partition"],
    "invalid qos": ["qos"],
    "cpu": ["cpus_per_task"],
    "processors": ["cpus_per_task"],
    "generic resource": ["gpus_per_node", "gres"],
    "memory": ["mem_gb", "mem_per_cpu", "mem_per_gpu"],
    "time limit is invalid": ["timeout_min"],
    "invalid feature": ["constraint"],
    "invalid node name": ["exclude", "nodelist"],
    "node configuration": ["cpus_per_task", "gpus_per_node", "mem_gb", "constraint"],
}
UNREACHABLE = ("contact slurm controller", "communication", "connect", "timed out", "temporarily")


@dataclass(frozen=True)
class _Restartable:
    """A task that submitit starts again from its beginning; the run folder has the state."""

    task: SweepTask

    def __call__(self) -> str:
        # submitit ignores SIGTERM. Until the training handles it, it ends the job, as SIGINT does.
        signal.signal(signal.SIGTERM, _exit)
        return self.task()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what submitit shall start after the job was put back into the queue."""
        return submitit.helpers.DelayedSubmission(self)


def _exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


class SlurmQueue(Queue):
    """Jobs of Slurm. One submission is one array."""

    lasting: ClassVar[bool] = True

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Read the settings under ``hydra.launcher``.

        Raises:
            UserError: a setting is invalid, or this machine has no sbatch.
            RunFailed: the controller does not answer.
        """
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise UserError("there is no sbatch on this machine: run the command on a login node of the cluster")
        given = {name: value for name, value in settings.items() if value is not None}
        _require_one_process(given)
        self._settings = dict(given)
        more = given["additional_parameters"] = dict(given.get("additional_parameters", {}))
        if "no-requeue" not in more and "no_requeue" not in more:
            more.setdefault("requeue", True)  # also on a cluster with JobRequeue=0
        folder, timeouts = given.pop("submitit_folder"), given.pop("max_num_timeout", 20)
        known = submitit.AutoExecutor._typed_parameters()
        self._executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=timeouts)
        _update(self._executor, {name if name in known else f"slurm_{name}": given[name] for name in given})
        facts = dict(re.findall(r"^(\w+)\s*= (.*)$", answer("scontrol", "show", "config"), re.MULTILINE))
        self.name = facts.get("ClusterName", "")
        self._largest = facts.get("MaxArraySize", "")

    def submit(self, tasks: Sequence[SweepTask]) -> list[Submitted]:
        with _without_terminal_signals(), contextlib.redirect_stderr(io.StringIO()):
            try:
                jobs = self._executor.submit_array([_Restartable(task) for task in tasks])
            except FailedJobError as error:
                raise self._refusal(str(error), len(tasks)) from error
        return [Submitted(job.job_id, job.paths.stdout) for job in jobs]

    def look(self, ids: Sequence[str]) -> Mapping[str, QueueState]:
        # One line for each element of an array, with hidden partitions. Ended jobs stay for MinJobAge, 300 seconds.
        words = ("squeue", "--user", str(os.getuid()), "--noheader", "--array", "--all", "--states=all")
        lines = [line.strip().split("|", 3) for line in answer(*words, "--format=%i|%T|%L|%r").splitlines()]
        wanted = set(ids)
        found = {id: _state(word, reason, left) for id, word, left, reason in lines if id in wanted}
        if unknown := [id for id in ids if id not in found]:
            found |= _recorded(unknown)
        return found

    def cancel(self, ids: Sequence[str]) -> None:
        if ids:
            answer("scancel", *_arrays(ids))

    def cancel_command(self, ids: Sequence[str]) -> str:
        return shlex.join(["scancel", *_arrays(ids)])

    def _refusal(self, text: str, jobs: int) -> UserError | RunFailed:
        """Return the error for an answer of sbatch that is not the id of a job."""
        lines = [line for line in text.splitlines() if "--help" not in line]
        prefix = r"^sbatch: (error: |fatal: )?(Batch job submission failed: )?"
        words = "; ".join(re.sub(prefix, "", line) for line in lines) or "it gave no reason"
        answer = words.lower()
        if any(part in answer for part in UNREACHABLE):
            return RunFailed(f"sbatch failed: {words}")
        if "job array" in answer:
            size = self._largest
            return UserError(
                f"sbatch refused an array of {jobs} jobs: set hydra.sweeper.max_batch_size={size} ({words})"
            )
        if "submit limit" in answer:
            advice = "lower hydra.sweeper.max_batch_size or hydra.launcher.timeout_min"
            return UserError(f"sbatch refused {jobs} jobs: {advice} ({words})")
        keys = next((keys for part, keys in REFUSALS.items() if part in answer), [])
        given = [f"hydra.launcher.{key}={self._settings[key]}" for key in keys if key in self._settings]
        return UserError(f"sbatch refused {' '.join(given) or 'the settings in hydra.launcher'}: {words}")


def _recorded(ids: Sequence[str]) -> dict[str, QueueState]:
    """Return the states of ended jobs from the accounting of the cluster; none if there is no accounting."""
    try:
        lines = answer("sacct", "-n", "-P", "-X", "-o", "JobID,State", "-j", ",".join(ids)).splitlines()
    except RunFailed:
        return {}
    pairs = [line.split("|", 1) for line in lines]
    wanted = set(ids)
    # The state may have more words: "CANCELLED by 1000".
    found = {id: _state(word.split()[0]) for id, word in pairs if id in wanted and word}
    # The accounting may not have heard yet that a job ended; the queue has.
    return {id: state for id, state in found.items() if state.ended}


def _state(word: str, reason: str = "", left: str = "") -> QueueState:
    reason = "" if reason == "None" else reason
    return QueueState(word, word in ENDED, started=word not in WAITING, reason=reason, seconds_left=_seconds(left))


def _seconds(text: str) -> float | None:
    """Return the seconds of a time such as 1-02:03:04, 02:03:04 or 03:04; None for UNLIMITED and other words."""
    time = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if time is None:
        return None
    days, hours, minutes, seconds = (float(number or 0) for number in time.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _arrays(ids: Sequence[str]) -> list[str]:
    """Return ids for a command: those of one array as one word, such as 12_[0,2-9]."""
    elements: dict[str, list[int]] = {}
    for id in ids:
        array, _, element = id.partition("_")
        elements.setdefault(array, []).extend([int(element)] if element else [])
    return [f"{array}_[{_ranges(found)}]" if found else array for array, found in elements.items()]


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as text, such as 0,2-9."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _update(executor: submitit.AutoExecutor, parameters: Mapping[str, Any]) -> None:
    try:
        executor.update_parameters(**parameters)
    except NameError as error:
        names = re.findall(r"Unknown argument '(\w+)'", str(error))
        raise UserError(
            f"there is no hydra.launcher.{', '.join(names)}: "
            "write other options of sbatch as hydra.launcher.additional_parameters"
        ) from error
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"hydra.launcher: {str(error).splitlines()[0]}") from error


def _require_one_process(settings: Mapping[str, Any]) -> None:
    for name in ("nodes", "tasks_per_node"):
        if settings.get(name, 1) != 1:
            raise UserError(f"hydra.launcher.{name} must be 1, got {settings[name]}: a job is one process")


@contextlib.contextmanager
def _without_terminal_signals() -> Iterator[None]:
    """Let the processes that start in this block not be stopped by Ctrl-C or by a closed terminal."""
    kept = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, kept)


class LocalQueue(Queue):
    """Processes on this machine, each with a process of submitit that stops and restarts it as Slurm does."""

    lasting: ClassVar[bool] = True
    slowest_look = 2.0

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Read the settings under ``hydra.launcher``.

        Raises:
            UserError: a setting is invalid.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        _require_one_process(given)
        self.name = socket.gethostname()
        self.at_once = max(1, cores() // given.get("cpus_per_task", 1))
        self._gpus = range(given.pop("gpus_per_node", 0))
        self._executor = submitit.LocalExecutor(given.pop("submitit_folder"))
        self._executor.update_parameters(**given)
        self._submitted = 0

    def submit(self, tasks: Sequence[SweepTask]) -> list[Submitted]:
        return [self._submit(task) for task in tasks]

    def _submit(self, task: SweepTask) -> Submitted:
        if self._gpus:
            gpu = self._gpus[self._submitted % len(self._gpus)]
            self._executor.update_parameters(visible_gpus=[gpu], gpus_per_node=1)
        self._submitted += 1
        with _without_terminal_signals():
            job = self._executor.submit(_Restartable(task))
        return Submitted(job.job_id, job.paths.stdout)

    def look(self, ids: Sequence[str]) -> Mapping[str, QueueState]:
        if not ids:
            return {}
        # ps exits with 1 if it finds none of the processes.
        done = subprocess.run(["ps", "-ww", "-o", "pid=,args=", "-p", ",".join(ids)], capture_output=True, text=True)
        lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
        # Another process may have the id of one that ended.
        return {id: QueueState("RUNNING", ended=False) for id, words in lines if "submitit.local._local" in words}

    def cancel(self, ids: Sequence[str]) -> None:
        for id in self.look(ids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(id), signal.SIGTERM)

    def cancel_command(self, ids: Sequence[str]) -> str:
        return shlex.join(["kill", *ids])
