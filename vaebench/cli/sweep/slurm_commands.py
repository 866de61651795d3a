"""Slurm's commands, and how a job puts itself back into the queue."""

import os
import re
import signal
import subprocess

from vaebench.errors import RunFailed

__all__ = ["answer", "requeue"]

SECONDS = 120  # Slurm's commands retry for a while if the controller does not answer


def answer(*words: str) -> str:
    """Return the output of a command.

    Raises:
        RunFailed: it fails, as all do while the controller does not answer.
    """
    # In a session of its own: Ctrl-C in the terminal does not reach it.
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, start_new_session=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunFailed(f"{words[0]} failed: {error}") from error
    if done.returncode != 0:
        raise RunFailed(f"{words[0]} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def requeue(stop: BaseException) -> Exception | None:
    """Put this job back into the queue after a signal that calls for it, by the batch system's handler.

    The handler ends this process. If it fails instead, its exception is returned. None: the job is not put back.
    """
    number = stop.code - 128 if isinstance(stop, SystemExit) and isinstance(stop.code, int) else signal.SIGINT
    try:
        if number == signal.SIGTERM and _preempted():
            number = signal.SIGUSR2
        if number in (signal.SIGINT, signal.SIGTERM) or not callable(handler := signal.getsignal(number)):
            return None
        # As soon as the job is back in the queue, Slurm sends SIGTERM to this process, which is ending.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        handler(number, None)
    except Exception as error:
        return error
    return None


def _preempted() -> bool:
    """Whether this is a job that Slurm has asked to make room for another job.

    Slurm sends SIGTERM in four cases. It leaves a preempted job in the state RUNNING until its grace time is over.
    After scancel, ``scontrol requeue``, or a preemption without grace time, the state is another one, and Slurm itself
    does what is left to do. A person who sends SIGTERM wants the job to stop.

    Raises:
        RunFailed: the controller does not answer.
    """
    array, number = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{number}" if array else os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    facts = dict(re.findall(r"(\w+)=(\S+)", answer("scontrol", "show", "job", "--oneliner", job)))
    return facts.get("JobState") == "RUNNING" and facts.get("PreemptTime", "None") != "None"
