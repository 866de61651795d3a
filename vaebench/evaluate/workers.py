"""Worker processes of an evaluation, each with its own device or its own part of the threads.

Every process builds the run from its configuration and best weights, and gets one task after another. Its numbers
depend on the task alone, so that several processes give the result of one.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import torch

from vaebench import plugins
from vaebench.config import Config
from vaebench.errors import RunFailed, UserError
from vaebench.evaluate.job import EstimatorInputs
from vaebench.evaluate.loop import Evaluator, Task, TaskResults, TaskRunner
from vaebench.experiment import build, load_best
from vaebench.records import RunFolder
from vaebench.runtime import resolve_device

__all__ = ["process_configs", "worker_pool"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 5.0
"""Seconds that a process without work gets to exit."""


class Failed(NamedTuple):
    """The error that a worker sends in place of numbers."""

    kind: type[Exception]
    message: str


def process_configs(config: Config, processes: int) -> list[Config]:
    """Return the configuration of each process, with the next GPU, or its part of the CPU's threads.

    ``estimator.processes`` then counts the processes on the same device.
    """
    kind, count = resolve_device(config.device).type, torch.accelerator.device_count()
    spread = kind in ("cuda", "xpu") and config.device in ("auto", kind)
    devices = [f"{kind}:{i % count}" if spread else config.device for i in range(processes)]
    threads = max(1, (config.trainer.threads or torch.get_num_threads()) // processes)
    trainer = replace(config.trainer, threads=threads, progress=False)
    return [
        replace(
            config,
            device=device,
            trainer=trainer,
            estimator=replace(config.estimator, processes=devices.count(device)),
        )
        for device in devices
    ]


def worker_pool(config: Config, folder: Path, weights: str) -> TaskRunner:
    """Return a runner of tasks in ``config.estimator.processes`` processes; ``weights`` is the digest of the weights.

    It raises the error of a worker that failed, and RunFailed if a worker was killed.
    """

    def run(todo: Sequence[Task], stopping: Callable[[], bool]) -> TaskResults:
        configs = process_configs(config, min(config.estimator.processes, len(todo)))
        with _Workers(configs, folder, weights) as workers:
            yield from workers.results(list(reversed(todo)), stopping)

    return run


class _Workers:
    """Processes that compute tasks."""

    def __init__(self, configs: Sequence[Config], folder: Path, weights: str) -> None:
        self._configs, self._folder, self._weights = configs, folder, weights
        self._processes: list[BaseProcess] = []
        self._idle: list[Connection] = []

    def __enter__(self) -> "_Workers":
        # Not fork: CUDA and thread pools do not work in a forked process.
        context = multiprocessing.get_context("spawn")
        with _signals_ignored():
            for config in self._configs:
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, config, self._folder, self._weights, plugins.given()), daemon=True
                )
                process.start()
                theirs.close()
                self._processes.append(process)
                self._idle.append(ours)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for process in self._processes:
            if kind is None:
                process.join(PATIENCE)
            # A worker still computing: its result is not needed, and it ignores every signal but SIGKILL.
            process.kill()
            process.join()

    def results(self, left: list[Task], stopping: Callable[[], bool]) -> TaskResults:
        """Send tasks from the end of ``left``, and yield their numbers as they arrive."""
        busy = [connection for connection in self._idle if _send_next(connection, left, stopping)]
        while busy:
            for connection in wait(busy):
                assert isinstance(connection, Connection)
                try:
                    result = _received(connection)
                except (EOFError, ConnectionResetError) as error:
                    raise RunFailed(self._ended(connection)) from error
                if not _send_next(connection, left, stopping):
                    busy.remove(connection)
                yield result

    def _ended(self, connection: Connection) -> str:
        """Return a message: why the process behind a connection ended without a result."""
        process = self._processes[self._idle.index(connection)]
        process.join(PATIENCE)
        if process.exitcode is None or process.exitcode <= 0:
            return (
                "a process of the evaluation was killed (out of memory?); finished images are saved: run the same "
                "command to resume, with fewer processes if memory is short"
            )
        return (
            f"a process of the evaluation failed at its start with exit code {process.exitcode}; its error is above. "
            "Each process runs the script that started the evaluation again, up to its main part: write "
            '`if __name__ == "__main__":` before the main part of the script, or use processes=1'
        )


def _send_next(connection: Connection, left: list[Task], stopping: Callable[[], bool]) -> bool:
    """Send the next task, or close the connection if there is none; return whether there was one."""
    if not left or stopping():
        connection.close()
        return False
    with contextlib.suppress(BrokenPipeError):  # a killed process: `_received` reports it
        connection.send(left.pop())
    return True


def _received(connection: Connection) -> tuple[Task, torch.Tensor]:
    result = connection.recv()
    if isinstance(result, Failed):
        raise result.kind(result.message)
    task, numbers = result
    return task, torch.from_numpy(numbers)


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """Let processes started in the block ignore the signals that Ctrl-C and a scheduler send to all processes.

    The process that started them handles the signal, and lets them finish their tasks.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _exit_with_parent() -> None:
    """End this process as soon as the process that started it has ended, also while it computes.

    A killed process cannot end its workers, and they read nothing from the connection while they compute.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="exit with parent", daemon=True).start()


def _serve(connection: Connection, config: Config, folder: Path, weights: str, given: Sequence[str]) -> None:
    """Compute tasks until the other end closes the connection, or the process that started this one has ended."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _exit_with_parent()
    with contextlib.suppress(EOFError, OSError):
        try:
            plugins.use(*given)
            experiment = build(config)
            if load_best(experiment, RunFolder.open(folder)).weights != weights:
                raise UserError(f"{folder} got new best weights during this evaluation: run the same command again")
            evaluator = Evaluator(EstimatorInputs.of(experiment))
            while True:
                task = connection.recv()
                connection.send((task, evaluator.compute(task).numpy()))
        except (UserError, RunFailed) as error:
            connection.send(Failed(type(error), str(error)))
        except (EOFError, OSError):
            raise
        except Exception:
            connection.send(Failed(RuntimeError, f"in a process of the evaluation:\n{traceback.format_exc()}"))
