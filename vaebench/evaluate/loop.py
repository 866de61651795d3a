"""The loop over the images of an evaluation, in this process or in several; numbers are saved as they arrive."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vaebench import runtime
from vaebench.estimators.sampling import ShrinkingBatches
from vaebench.evaluate.job import EstimatorInputs, EstimatorJob, job_for
from vaebench.progress import ItemProgress
from vaebench.records import PerImageFile
from vaebench.signals import Interruption

__all__ = ["Evaluator", "Task", "TaskResults", "TaskRunner", "run_tasks", "unfinished_tasks"]

SAVE_EVERY = 15.0  # seconds


class Task(NamedTuple):
    """Images ``start`` to ``stop`` of one repeat."""

    repeat: int
    start: int
    stop: int


TaskResults = Iterator[tuple[Task, Tensor]]
TaskRunner = Callable[[Sequence[Task], Callable[[], bool]], TaskResults]
"""(tasks, stopping) -> their numbers, in any order; it begins no new task once ``stopping()`` is true."""


class Evaluator:
    """Computes the numbers of images; after running out of memory, of fewer images at a time."""

    def __init__(self, inputs: EstimatorInputs) -> None:
        self._inputs = inputs
        self._jobs: dict[int, EstimatorJob] = {}
        self._batches: ShrinkingBatches | None = None
        inputs.model.eval()
        inputs.encoder.eval()

    def job(self, repeat: int) -> EstimatorJob:
        """Return the job of one repeat."""
        if repeat not in self._jobs:
            self._jobs[repeat] = job_for(self._inputs.for_repeat(repeat))
        return self._jobs[repeat]

    def compute(self, task: Task) -> Tensor:
        """Return the numbers of the task's images, (R, images), float64, on the CPU.

        RunFailed if the memory is too small for a single image.
        """
        job = self.job(task.repeat)

        def numbers(part: slice) -> Tensor:
            with runtime.in_precision(self._inputs.device, self._inputs.settings.precision):
                return job.numbers(part).cpu()

        self._batches = self._batches or ShrinkingBatches(job.batch)
        return torch.cat([found for _, found in self._batches.run(task.start, task.stop, numbers)], 1)

    def run(self, todo: Sequence[Task], stopping: Callable[[], bool]) -> TaskResults:
        """Compute tasks one after another, in this process: a `TaskRunner`."""
        for task in todo:
            if stopping():
                return
            yield task, self.compute(task)


def unfinished_tasks(done: np.ndarray, batch: int) -> list[Task]:
    """Return the remaining tasks, of at most ``batch`` images; ``done`` is (n, N)."""
    left = []
    for repeat, row in enumerate(done):
        # The start and the stop of each run of images that are not done.
        edges = np.flatnonzero(np.diff(np.concatenate([[True], row, [True]]).astype(int)))
        for start, stop in edges.reshape(-1, 2).tolist():
            left += [Task(repeat, first, min(first + batch, stop)) for first in range(start, stop, batch)]
    return left


def run_tasks(
    file: PerImageFile, todo: Sequence[Task], runner: TaskRunner, interruption: Interruption, *, title: str | None
) -> None:
    """Fill ``file`` with the numbers of all tasks, or of those that were finished before a signal.

    Args:
        file: the numbers; written every 15 seconds, and at the end.
        todo: the tasks.
        runner: computes them.
        interruption: records a signal.
        title: of the progress, None to show none.
    """
    display = ItemProgress(title, sum(task.stop - task.start for task in todo), "image", leave=True)
    saved = since = time.monotonic()
    results = runner(todo, lambda: interruption.signal is not None)
    with display, contextlib.closing(results):  # pyright: ignore[reportArgumentType]
        try:
            for task, numbers in results:
                file.numbers[:, task.repeat, task.start : task.stop] = numbers
                file.done[task.repeat, task.start : task.stop] = True
                now = time.monotonic()
                file.seconds[task.repeat] += now - since
                since = now
                display.update(task.stop - task.start)
                if now - saved > SAVE_EVERY:
                    file.write()
                    saved = now
        finally:
            if todo:
                file.write()
