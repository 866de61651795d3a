"""The numbers of all images of an evaluation, made in this process or in several, and kept as they come."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vaebench import runtime
from vaebench.errors import RunFailed, UserError
from vaebench.evaluate.job import EstimatorJob, repeated
from vaebench.experiment import Experiment
from vaebench.records import PerImageFile
from vaebench.registry import ESTIMATORS, registered

__all__ = ["Numbers", "Source", "Task", "gather", "planned", "tasks"]

SAVE_EVERY = 15.0  # seconds


class Task(NamedTuple):
    """Images ``start`` to ``stop`` of one repetition."""

    repeat: int
    start: int
    stop: int


Answers = Iterator[tuple[Task, Tensor]]
Source = Callable[[Sequence[Task], Callable[[], bool]], Answers]
"""(tasks, stopping) -> their numbers, in any order; no new task is begun once ``stopping()``."""


def planned(experiment: Experiment) -> EstimatorJob:
    """Return what the configured estimator is going to do; UserError if it makes no sense for this run."""
    settings = experiment.config.estimator
    plan = registered("estimator", ESTIMATORS, settings.name)(experiment)
    if settings.compile is True and not plan.compiles:
        raise UserError(f"compile=true is not for estimator={settings.name}: leave it out")
    return plan


class Numbers:
    """The numbers of any images of any repetition; of fewer images at a time once memory has run out."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._plans: dict[int, EstimatorJob] = {}
        self._most: int | None = None
        experiment.modules.eval()

    def plan(self, repeat: int) -> EstimatorJob:
        """Return the plan of one repetition."""
        if repeat not in self._plans:
            self._plans[repeat] = planned(repeated(self._experiment, repeat))
        return self._plans[repeat]

    def of(self, task: Task) -> Tensor:
        """Return the numbers of the task's images, (R, images), float64, on the CPU.

        RunFailed where memory does not suffice for a single image.
        """
        found, plan, start = [], self.plan(task.repeat), task.start
        while start < task.stop:
            part = slice(start, min(task.stop, start + (self._most or plan.batch)))
            numbers = runtime.unless_memory_runs_out(lambda part=part: self._computed(plan, part))
            if numbers is None:
                self._fewer(part)
            else:
                found.append(numbers)
                start = part.stop
        return torch.cat(found, 1)

    def alone(self, todo: Sequence[Task], stopping: Callable[[], bool]) -> Answers:
        """Answer tasks one after another: a `Source`."""
        for task in todo:
            if stopping():
                return
            yield task, self.of(task)

    def _computed(self, plan: EstimatorJob, part: slice) -> Tensor:
        with self._experiment.autocast(self._experiment.config.estimator.precision):
            return plan.numbers(part).cpu()

    def _fewer(self, part: slice) -> None:
        """Take half as many images at a time as ``part`` has, from now on."""
        self._most = (part.stop - part.start) // 2
        if self._most == 0:
            raise RunFailed("memory does not suffice for one image: free some, or take another device")
        runtime.notice(f"out of memory: going on with {self._most} images at a time, which does not change the result")


def tasks(done: np.ndarray, batch: int) -> list[Task]:
    """Return what is left to do, in batches; ``done`` is (n, N)."""
    left = []
    for repeat, row in enumerate(done):
        # Where runs of undone images begin and end.
        edges = np.flatnonzero(np.diff(np.concatenate([[True], row, [True]]).astype(int)))
        for start, stop in edges.reshape(-1, 2).tolist():
            left += [Task(repeat, first, min(first + batch, stop)) for first in range(start, stop, batch)]
    return left


def gather(
    file: PerImageFile, todo: Sequence[Task], source: Source, interruption: runtime.Interruption, *, bar: str | None
) -> None:
    """Fill ``file`` with the answers to all tasks, or with those that there were when a signal came.

    Args:
        file: what is known already, and the place of what is going to be; written now and then, and at the end.
        todo: what to do.
        source: who does it.
        interruption: where a signal is noted.
        bar: what a progress bar says, None for no bar.
    """
    display = tqdm(
        total=sum(task.stop - task.start for task in todo),
        unit="image",
        desc=bar,
        disable=True if bar is None else None,
        dynamic_ncols=True,
    )
    saved = since = time.monotonic()
    answers = source(todo, lambda: interruption.signal is not None)
    with display, contextlib.closing(answers):  # pyright: ignore[reportArgumentType]
        try:
            for task, numbers in answers:
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
