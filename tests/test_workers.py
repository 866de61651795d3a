"""Worker processes of an evaluation end with the process that started them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vaebench.errors import RunFailed


def start_workers() -> None:
    """Start a worker and one without the mend, print their process ids when they compute, and wait."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in "ab"]
    for (_, theirs), exits_with_parent in zip(ends, (True, False), strict=True):
        context.Process(target=compute_for_long, args=(theirs, exits_with_parent), daemon=True).start()
    print(*(ours.recv() for ours, _ in ends), flush=True)
    time.sleep(60)


def compute_for_long(connection: Connection, exits_with_parent: bool) -> None:
    from vaebench.evaluate import workers  # not above: the process that starts the workers needs no torch

    def build(config: object) -> None:
        connection.send(os.getpid())
        time.sleep(60)

    patched = cast(Any, workers)
    patched.build = build
    if not exits_with_parent:
        patched._exit_with_parent = lambda: None
    workers._serve(connection, cast(Any, None), Path(), "", ())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_worker_that_computes_ends_with_a_killed_parent():
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    words = [sys.executable, "-c", "import test_workers; test_workers.start_workers()"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout
        worker, control = map(int, parent.stdout.readline().split())
        parent.kill()
    try:
        end = time.monotonic() + 20
        while is_alive(worker):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert is_alive(control)
    finally:
        for pid in (worker, control):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that has ended is a zombie until its new parent notices.
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" not in status.read_text()


@pytest.mark.parametrize(("code", "word"), [(-9, "out of memory"), (1, 'if __name__ == "__main__":')])
def test_the_message_says_why_a_process_ended(code: int, word: str):
    """A script without a guard starts itself again in each process, which then fails with exit code 1."""
    from vaebench.evaluate.workers import _Workers

    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    workers = _Workers([], Path(), "")
    workers._idle.append(ours)
    workers._processes.append(cast(Any, SimpleNamespace(exitcode=code, join=lambda seconds: None)))
    with pytest.raises(RunFailed, match="a process of the evaluation") as caught:
        list(workers.results([cast(Any, None)], lambda: False))
    assert word in str(caught.value)
