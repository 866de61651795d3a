"""An evaluation shared by several processes, each with a device, or a share of the threads, of its own.

Every process builds the run anew from its configuration and best weights, and is dealt batches of images one by one.
What it computes of them depends on nothing else, so that the result is that of one process.
"""

import contextlib
import multiprocessing
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

from vaebench.config import Config
from vaebench.errors import RunFailed, UserError
from vaebench.evaluate.loop import Answers, Numbers, Source, Task
from vaebench.experiment import build, load_best
from vaebench.records import RunFolder

__all__ = ["divided", "shared"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 5.0
"""Seconds that a process without work has to end by itself."""


class Failed(NamedTuple):
    """What a worker sends in the place of numbers."""

    kind: type[Exception]
    message: str


def divided(config: Config, processes: int) -> list[Config]:
    """Return the configuration of each process: GPUs are dealt out in turn, the CPU's threads divided.

    ``estimator.processes`` then counts those on one device.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    spread = count > 0 and config.device in ("auto", "cuda")
    devices = [f"cuda:{i % count}" if spread else config.device for i in range(processes)]
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


def shared(config: Config, folder: Path) -> Source:
    """Return a source of numbers that ``config.estimator.processes`` processes share.

    The source raises what one of them failed with, and RunFailed where one was killed.
    """

    def source(todo: Sequence[Task], stopping: Callable[[], bool]) -> Answers:
        configs = divided(config, min(config.estimator.processes, len(todo)))
        with _Workers(configs, folder) as workers:
            yield from workers.answers(list(reversed(todo)), stopping)

    return source


class _Workers:
    """Processes that answer tasks."""

    def __init__(self, configs: Sequence[Config], folder: Path) -> None:
        self._configs, self._folder = configs, folder
        self._processes: list[BaseProcess] = []
        self._idle: list[Connection] = []

    def __enter__(self) -> "_Workers":
        # Not fork: neither CUDA nor a pool of threads survives it.
        context = multiprocessing.get_context("spawn")
        with _signals_ignored():
            for config in self._configs:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, config, self._folder), daemon=True)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._idle.append(ours)
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for process in self._processes:
            if kind is None:
                process.join(PATIENCE)
            # One that still computes: nobody waits for what. It heeds no other signal.
            process.kill()
            process.join()

    def answers(self, left: list[Task], stopping: Callable[[], bool]) -> Answers:
        """Deal out tasks from the end of ``left``, and yield their numbers as they come."""
        busy = [connection for connection in self._idle if _deal(connection, left, stopping)]
        while busy:
            for connection in wait(busy):
                assert isinstance(connection, Connection)
                answer = _received(connection)
                if not _deal(connection, left, stopping):
                    busy.remove(connection)
                yield answer


def _deal(connection: Connection, left: list[Task], stopping: Callable[[], bool]) -> bool:
    """Send the next task, or hang up; return whether there was one."""
    if not left or stopping():
        connection.close()
        return False
    with contextlib.suppress(BrokenPipeError):  # a process that is gone: found out when its answer is read
        connection.send(left.pop())
    return True


def _received(connection: Connection) -> tuple[Task, torch.Tensor]:
    try:
        answer = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        raise RunFailed(
            "a process of the evaluation was killed (too little memory for so many?); the images done are kept: "
            "the same command goes on, also with fewer processes"
        ) from error
    if isinstance(answer, Failed):
        raise answer.kind(answer.message)
    task, numbers = answer
    return task, torch.from_numpy(numbers)


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """Let processes started in the block ignore, from their first instant, what Ctrl-C and a scheduler send to all:
    the process that started them heeds it, and has them finish what they are at."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _serve(connection: Connection, config: Config, folder: Path) -> None:
    """Answer tasks until the other end hangs up."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        try:
            experiment = build(config)
            load_best(experiment, RunFolder.open(folder))
            numbers = Numbers(experiment)
            while True:
                task = connection.recv()
                connection.send((task, numbers.of(task).numpy()))
        except (UserError, RunFailed) as error:
            connection.send(Failed(type(error), str(error)))
        except (EOFError, OSError):
            raise
        except Exception:
            connection.send(Failed(RuntimeError, f"in a process of the evaluation:\n{traceback.format_exc()}"))
