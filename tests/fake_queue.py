"""A queue of processes on this machine whose faults a test chooses. Its state is in files, so it outlives a sweep."""

import contextlib
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vaebench.cli.sweep.job import SweepTask
from vaebench.cli.sweep.queues import Queue, QueueState, Submitted
from vaebench.errors import RunFailed, UserError

__all__ = ["FakeQueue", "ShortQueue", "ended", "flag", "jobs", "state_of", "wait_for"]

FOLDER = Path("queue")
_TICK = 0.01


def flag(name: str, text: str = "") -> Path:
    """Set a fault: ``silent``, ``refuses``, ``held``, ``held-ID``, ``lost-ID``, ``says-ID`` (a word), ``again-ID``."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / name).write_text(text)
    return FOLDER / name


def jobs() -> list[dict[str, Any]]:
    """Return the states of all jobs that were ever submitted, the first one first."""
    return [_read(path) for path in sorted(FOLDER.glob("job_*.json"), key=lambda path: int(path.stem[4:]))]


def state_of(job: str) -> dict[str, Any]:
    """Return the state of the job with that id."""
    return _read(FOLDER / f"{job}.json")


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    """Wait until ``condition()`` is true and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s; the queue has {jobs()}"
        time.sleep(_TICK)
    return value


def ended() -> None:
    """Kill the processes of all jobs."""
    for job in jobs():
        for pid in (job.get("keeper"), job.get("pid")):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class FakeQueue(Queue):
    """Starts each job at once, unless it is held. Jobs outlive the process that submitted them."""

    lasting = True
    slowest_look = 0.2

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        FOLDER.mkdir(exist_ok=True)

    def submit(self, tasks: Sequence[SweepTask]) -> list[Submitted]:
        self._fail("submit")
        return [self._start(task) for task in tasks]

    def look(self, ids: Sequence[str]) -> Mapping[str, QueueState]:
        self._fail("look")
        return {each: self._state(each) for each in ids if not (FOLDER / f"lost-{each}").exists()}

    def cancel(self, ids: Sequence[str]) -> None:
        self._fail("cancel")
        for each in ids:
            (FOLDER / f"cancelled-{each}").touch()
            if pid := _read(FOLDER / f"{each}.json").get("pid"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def cancel_command(self, ids: Sequence[str]) -> str | None:
        return f"fcancel {' '.join(ids)}"

    def _fail(self, what: str) -> None:
        with open(FOLDER / "calls", "a") as file:
            file.write(f"{what}\n")
        if (FOLDER / "silent").exists():
            raise RunFailed("Unable to contact the controller")
        if what == "submit" and (FOLDER / "refuses").exists():
            raise UserError("hydra.launcher.partition=gpu does not exist")

    def _state(self, each: str) -> QueueState:
        job = _read(FOLDER / f"{each}.json")
        said = FOLDER / f"says-{each}"
        if said.exists():
            return QueueState(said.read_text(), ended=True)
        reason = "Priority" if job["word"] == "PENDING" else ""
        left = 3661.0 if job["word"] == "RUNNING" else None
        return QueueState(job["word"], job["ended"], job["word"] != "PENDING", reason, left)

    def _start(self, task: SweepTask) -> Submitted:
        each = f"job_{len(jobs())}"
        log = FOLDER.absolute() / f"{each}.out"
        (FOLDER / f"{each}.pkl").write_bytes(pickle.dumps(task))
        _write(each, word="PENDING", ended=False, key=task.config.seed)
        if os.fork() == 0:
            self._keep(each, log)
        return Submitted(each, log)

    def _keep(self, each: str, log: Path) -> None:
        """Be the process that starts the job, waits for it, and writes its state."""
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.closerange(3, 256)  # among them the lock of the sweep
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        try:
            while True:
                _write(each, word="PENDING", ended=False, keeper=os.getpid(), pid=None)
                held = (FOLDER / "held", FOLDER / f"held-{each}")
                while any(path.exists() for path in held):
                    if self._cancelled(each):
                        return
                    time.sleep(_TICK)
                if (job := os.fork()) == 0:
                    os._exit(self._be(each))
                _write(each, word="RUNNING", ended=False, keeper=os.getpid(), pid=job)
                code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
                if (FOLDER / f"again-{each}").exists():
                    (FOLDER / f"again-{each}").unlink()
                    continue
                if not self._cancelled(each):
                    word = "COMPLETED" if code == 0 else "OUT_OF_MEMORY" if code == -9 else "FAILED"
                    _write(each, word=word, ended=True, pid=None)
                return
        finally:
            os._exit(0)

    def _cancelled(self, each: str) -> bool:
        cancelled = (FOLDER / f"cancelled-{each}").exists()
        if cancelled:
            _write(each, word="CANCELLED", ended=True, pid=None)
        return cancelled

    def _be(self, each: str) -> int:
        try:
            pickle.loads((FOLDER / f"{each}.pkl").read_bytes())()
            sys.stdout.flush()
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            return 1
        return 0


class ShortQueue(FakeQueue):
    """Holds two jobs at once. Other processes cannot ask for them."""

    lasting = False
    at_once = 2


def _write(each: str, **values: Any) -> None:
    path = FOLDER / f"{each}.json"
    known = _read(path) if path.exists() else {}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(known | values))
    os.replace(temporary, path)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
