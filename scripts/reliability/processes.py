"""Run a function in a forked process: an import takes seconds, a fork milliseconds."""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ended", "forked"]

_TIMED_OUT = -1000
_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """The exit code, or minus the number of the signal that killed it."""
    output: str
    """Its stdout and stderr, as they were written."""
    answer: Any
    """What the function returned, as JSON; None if the process was killed."""

    @property
    def timed_out(self) -> bool:
        return self.code == _TIMED_OUT

    @property
    def traceback(self) -> str | None:
        """The last line of the first traceback in the output."""
        if "Traceback (most recent call last)" not in self.output:
            return None
        lines = self.output.split("Traceback (most recent call last)", 1)[1].splitlines()[1:]
        own = [line.strip() for line in lines if line.startswith('  File "') and "vaebench" in line]
        error = next((line for line in lines if line and not line.startswith((" ", "\t"))), "")
        where = own[-1].split("/")[-1].replace('", line ', ":").split(",")[0] if own else "?"
        return f"{error[:160]} ({where})"


def forked(function: Callable[[], Any], seconds: float = 60.0) -> Ended:
    """Return how ``function`` ended in a forked process; kill the process and its children after ``seconds``.

    The parent must have no threads, torch's included. The exit code is 0 if the function returns.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryDirectory(prefix="vaebench-") as temporary:
        output, answer = Path(temporary) / "output", Path(temporary) / "answer"
        child = os.fork()
        if child == 0:
            _child(function, output, answer)
        code = _wait(child, time.monotonic() + seconds)
        text = output.read_text(errors="replace") if output.exists() else ""
        return Ended(code, text, json.loads(answer.read_text()) if answer.exists() else None)


def _child(function: Callable[[], Any], output: Path, answer: Path) -> None:
    """Run ``function`` with its output in a file, write what it returns, and end this process."""
    code = 1
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False, encoding="utf-8")  # noqa: SIM115 (ends with the process)
        sys.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8")  # noqa: SIM115
        returned = function()
        sys.stdout.flush()
        answer.write_text(json.dumps(returned))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(child: int, deadline: float) -> int:
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return _TIMED_OUT
        time.sleep(_POLL_SECONDS)
