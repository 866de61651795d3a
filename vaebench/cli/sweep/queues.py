"""The contract between a sweep and a queue: a system that runs jobs outside the process of the sweep."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vaebench.cli.sweep.job import SweepTask

__all__ = ["Queue", "QueueState", "Submitted"]


@dataclass(frozen=True)
class Submitted:
    """A job that a queue has accepted."""

    id: str
    """The queue's name for the job. Another process can ask for it, if the queue is ``lasting``."""
    log: Path | None = None
    """The file with the job's output, on this machine or a shared file system."""


@dataclass(frozen=True)
class QueueState:
    """What a queue knows about one job now."""

    word: str
    """The state in the queue's own word: PENDING, RUNNING, OUT_OF_MEMORY, NODE_FAIL, ...

    The sweep itself knows two words: a job that ended as CANCELLED is not submitted again, and one that ended as
    PREEMPTED is, as often as needed.
    """
    ended: bool
    """Whether the job neither runs nor will run again by itself. False for a job that the queue will start again."""
    started: bool = True
    """Whether the job has left the state of waiting."""
    reason: str = ""
    """Why it waits or why it ended, in the queue's own words; "" if the queue does not say."""
    seconds_left: float | None = None
    """Time until the queue stops the job."""


class Queue(ABC):
    """Runs the jobs of a sweep. Its answers are about processes; the outcome of a job is in the job's record.

    `vaebench.cli.sweep.launchers.QUEUES` lists the queues. Each is called with the settings under ``hydra.launcher``,
    as plain containers. UserError if they are invalid, or if this machine has no such queue.
    """

    lasting: ClassVar[bool]
    """Whether jobs run on after the process that submitted them has ended."""
    name: str = ""
    """The queue itself, such as the name of a cluster: ids of jobs are those of another queue with this name."""
    slowest_look: float = 15.0
    """Seconds between two looks, once the jobs have been in the queue for a minute. Looks are closer before that."""
    at_once: int | None = None
    """Jobs that may be submitted and not ended; None: the queue holds any number."""

    @abstractmethod
    def submit(self, tasks: Sequence[SweepTask]) -> list[Submitted]:
        """Submit one job for each task.

        SIGINT from the terminal must not reach the command that submits: its answer has the ids.

        Raises:
            UserError: the queue refuses a setting; the message names the key under ``hydra.launcher``.
            RunFailed: the queue cannot be reached. The sweep tries again later, unless this was the first submission.
        """

    @abstractmethod
    def look(self, ids: Sequence[str]) -> Mapping[str, QueueState]:
        """Return the state of each job. A job that is absent is gone: the queue knows nothing of it.

        Raises:
            RunFailed: the queue does not answer now. The sweep asks again later, and settles nothing meanwhile.
        """

    @abstractmethod
    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs. A running job gets a signal first, so that it saves its state. Return at once.

        Raises:
            RunFailed: the queue cannot be reached.
        """

    def cancel_command(self, ids: Sequence[str]) -> str | None:
        """Return the shell command that cancels the jobs; None if there is none."""
        return None

    def close(self) -> None:  # noqa: B027 (most queues have nothing to release)
        """Release what this process holds of the queue. Called once, after the last job or after a second signal."""
