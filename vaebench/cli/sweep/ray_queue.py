"""A queue on ray: each job is a ray task, in a new process on this machine or on a node of a cluster."""

import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import ray
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from vaebench.cli.sweep.job import SweepTask
from vaebench.cli.sweep.queues import Queue, QueueState, Submitted
from vaebench.cli.sweep.records import Records, job_key
from vaebench.errors import RunFailed, UserError

__all__ = ["RayQueue"]

KEY = "hydra.launcher.ray"
PENDING = QueueState("PENDING", ended=False, started=False)

T = TypeVar("T")


@dataclass
class _RayJob:
    stream: ray.ObjectRefGenerator
    """Yields the place of the job when it starts, and its status at its end."""
    state: QueueState = PENDING
    cancelled: bool = False


class RayQueue(Queue):
    """Runs jobs on the cluster that ``hydra.launcher.ray.init`` names, or on a cluster that it starts on this machine.

    The jobs end with the process of the sweep. ray starts at the first submission.
    """

    lasting = False
    slowest_look = 2.0

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Read the settings under ``hydra.launcher``; a value of null leaves the choice to ray."""
        self._init, self._remote = (
            {key: value for key, value in settings["ray"][part].items() if value is not None}
            for part in ("init", "remote")
        )
        # ray itself would also join a cluster that someone else has started on this machine.
        self._address: str = self._init.pop("address", None) or os.environ.get("RAY_ADDRESS") or "local"
        self._jobs: dict[str, _RayJob] = {}

    def submit(self, tasks: Sequence[SweepTask]) -> list[Submitted]:
        """Submit one ray task for each job."""
        options = {"num_returns": "streaming", **self._remote}
        function = _refused_as("remote", self._remote, lambda: ray.remote(**options)(_run))
        if not ray.is_initialized():
            self._connect()
        return [self._submit(task, function) for task in tasks]

    def look(self, ids: Sequence[str]) -> Mapping[str, QueueState]:
        """Return the state of each job; the reason of a running job is the place where it runs."""
        known = {id: self._jobs[id] for id in ids if id in self._jobs}
        try:
            _read_streams([job for job in known.values() if not job.state.ended])
            waiting = any(job.state is PENDING for job in known.values())
            pending = replace(PENDING, reason=self._unmet()) if waiting else PENDING
        except RayError as error:
            raise RunFailed(f"ray does not answer: {_reason(error)}") from error
        return {id: pending if job.state is PENDING else job.state for id, job in known.items()}

    def cancel(self, ids: Sequence[str]) -> None:
        """Stop jobs as Ctrl-C does: they save their state. The second call for a job kills its process."""
        for job in [self._jobs[id] for id in ids if id in self._jobs]:
            if not job.state.ended:
                ray.cancel(job.stream, force=job.cancelled)
                job.cancelled = True

    def close(self) -> None:
        """Leave the cluster, or end the one that runs here; jobs that are still at work are killed."""
        ray.shutdown()

    def _connect(self) -> None:
        if self._address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            if self._address != "local":
                _require_answer(self._address)
            with _own_signals():
                _refused_as("init", self._init, lambda: ray.init(self._address, **self._init))
        except OSError as error:
            advice = (
                "Start a cluster with `ray start --head`, set RAY_AUTH_MODE=token if it asks for a token, "
                "or leave this key out to start ray on this machine."
            )
            raise UserError(f"{KEY}.init.address={self._address}: {_first_sentence(error)}. {advice}") from error
        if self._address == "local" and (unmet := self._unmet()):
            raise UserError(f"{KEY}.remote asks for more than {KEY}.init: {unmet}")

    def _submit(self, task: SweepTask, function: Any) -> Submitted:
        id = f"ray_{len(self._jobs)}"
        # A worker may inherit the number of cores of a Slurm job in which the cluster runs.
        threads = max(1, int(self._remote.get("num_cpus", 1)))
        sweep = replace(task.sweep, log=True, threads=threads)
        stream = function.options(name=f"vaebench {task.number}").remote(replace(task, sweep=sweep))
        self._jobs[id] = _RayJob(stream)
        return Submitted(id, Records(task.sweep.folder).path(job_key(task.config), ".log"))

    def _unmet(self) -> str:
        """Return which resources of a job no living node has, so that the job waits for a new node; "" if one has."""
        asked = {"CPU": self._remote.get("num_cpus", 1), "GPU": self._remote.get("num_gpus", 0)}
        asked |= {"memory": self._remote.get("memory", 0), **self._remote.get("resources", {})}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
            return ""
        return "no node has " + ", ".join(f"{name}={amount}" for name, amount in asked.items() if amount)


def _run(task: SweepTask) -> Iterator[str]:
    """Run a job in a ray worker; yield the place before it, and the status after it."""
    yield f"process {os.getpid()} on {socket.gethostname()}"
    yield task()


def _read_streams(jobs: Sequence[_RayJob]) -> None:
    """Update the state of each job with what its stream has yielded since the last call."""
    by_stream = {job.stream: job for job in jobs}
    while by_stream:
        ready, _ = ray.wait(list(by_stream), num_returns=len(by_stream), timeout=0)
        if not ready:
            return
        for stream in ready:
            job = by_stream[stream]
            job.state = _next_state(job)
            if job.state.ended:
                del by_stream[stream]


def _next_state(job: _RayJob) -> QueueState:
    started = job.state.started
    try:
        text = cast(str, ray.get(next(job.stream)))
    except (StopIteration, RayError) as error:
        if job.cancelled or isinstance(error, StopIteration | TaskCancelledError):
            return QueueState("CANCELLED", ended=True, started=started)
        return QueueState("FAILED", ended=True, started=started, reason=_reason(error))
    return QueueState("FINISHED" if started else "RUNNING", ended=started, reason=text)


def _reason(error: Exception) -> str:
    """Return ray's name of an error, and the first sentence of its text."""
    if isinstance(error, RayTaskError):  # its text is the traceback of the job
        error = cast(Exception, error.cause)
    return f"{type(error).__name__}: {_first_sentence(error)}".removesuffix(": ")


def _first_sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0].removesuffix(".")


def _require_answer(address: str) -> None:
    """Raise OSError if no cluster answers; ray itself tries for six minutes."""
    resolved = _refused_as("init", {"address": address}, lambda: canonicalize_bootstrap_address_or_die(address))
    host, port = resolved.rsplit(":", 1)
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _refused_as(part: str, settings: Mapping[str, Any], call: Callable[[], T]) -> T:
    """Return ``call()``; a setting that ray refuses becomes a UserError that names its key."""
    try:
        return call()
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        words = re.findall(r"\w+", _first_sentence(error))
        keys = [f"{KEY}.{part}.{key}" for key in settings if key in words] or [f"{KEY}.{part}"]
        raise UserError(f"{', '.join(keys)}: {_first_sentence(error)}") from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the signal handlers of this process while ray starts.

    ray replaces the handler of SIGTERM. The processes that it starts inherit that SIGHUP is ignored: so jobs can save
    their state after the terminal was closed.
    """
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if hangup := getattr(signal, "SIGHUP", None):  # Windows has none
        kept[hangup] = signal.signal(hangup, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
