"""Plan the jobs of a sweep before the first one starts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vaebench.cli.failure import expected, message, report_failure
from vaebench.cli.sweep.records import JobRecord, job_key
from vaebench.config import Config, run_folder
from vaebench.config.compositions import Compositions
from vaebench.config.words import as_typed
from vaebench.records import RunFolder

__all__ = ["PlannedJob", "plan", "planned_jobs"]


@dataclass
class PlannedJob:
    """One job: its overrides and its record. ``config`` is None if the overrides are invalid."""

    overrides: list[str]
    record: JobRecord
    config: Config | None = None
    error: Exception | None = None
    deaths: int = 0
    """How often its process exited without recording a status."""

    @property
    def typed(self) -> list[str]:
        """The overrides as the user typed them."""
        return [as_typed(word) for word in self.overrides]

    @cached_property
    def key(self) -> str:
        assert self.config is not None
        return job_key(self.config)

    @cached_property
    def run(self) -> RunFolder:
        assert self.config is not None
        return RunFolder(run_folder(self.config))

    @property
    def open(self) -> bool:
        return self.record.status in ("waiting", "busy")


def plan(hydra_context: Any, config: DictConfig, jobs: Sequence[list[str]]) -> tuple[list[PlannedJob], int]:
    """Return the jobs, each model once, and the number of repeated jobs, which are left out.

    All overrides are read before the first job starts, so that hydra refuses an unknown key here. On a terminal, a bar
    shows the progress if it takes longer than a second.
    """
    compositions = Compositions(hydra_context.config_loader, config)
    progress = OmegaConf.select(config, "trainer.progress", throw_on_resolution_failure=False) is not False
    with tqdm(
        jobs,
        desc="plan",
        unit="job",
        disable=None if progress else True,
        delay=1.0,
        leave=False,
        dynamic_ncols=True,
    ) as bar:
        found = [config_or_error(compositions, overrides) for overrides in bar]
    common = common_inner_k([made for made in found if isinstance(made, Config)])
    planned: dict[str, PlannedJob] = {}
    for overrides, made in zip(jobs, found, strict=True):
        if common is not None and isinstance(made, Config) and follows_training(made):
            made = replace(made, estimator=replace(made.estimator, inner_k=common))
            overrides = [*overrides, f"estimator.inner_k={common}"]
        if isinstance(made, Exception):
            report_failure(made, overrides)
            failed = JobRecord("failed", error=message(made))
            planned[" ".join(overrides)] = PlannedJob(overrides, failed, error=made)
        else:
            job = PlannedJob(overrides, JobRecord("waiting"), made)
            planned.setdefault(job.key, job)
    found_jobs = list(planned.values())
    for listener in _LISTENERS:
        listener.extend(found_jobs)
    return found_jobs, len(jobs) - len(planned)


_LISTENERS: list[list[PlannedJob]] = []


@contextmanager
def planned_jobs() -> Iterator[list[PlannedJob]]:
    """Yield a list that gets the jobs of every sweep that is planned in the block: hydra returns nothing of a sweep."""
    found: list[PlannedJob] = []
    _LISTENERS.append(found)
    try:
        yield found
    finally:
        _LISTENERS.remove(found)


def follows_training(config: Config) -> bool:
    """Whether the evaluation takes the number of inner samples from the training."""
    return config.estimator.name == "iwae" and config.estimator.inner_k is None


def common_inner_k(configs: Sequence[Config]) -> int | None:
    """Return the number of inner samples with which all jobs of a sweep are evaluated, so that they share a table.

    It is the largest of those in training. None if all jobs have the same number, so that nothing changes.
    """
    found = {list(config.inner_k_by_epoch.values())[-1] for config in configs if follows_training(config)}
    return max(found) if len(found) > 1 else None


def config_or_error(compositions: Compositions, overrides: Sequence[str]) -> Config | Exception:
    """Return the configuration of a job, or the error if its settings are invalid.

    Raises:
        Exception: hydra cannot compose the overrides.
    """
    composed = compositions.composed(overrides)
    try:
        return compositions.checked(*composed)
    except Exception as error:
        if expected(error):  # the frames of its traceback would keep the composition in memory
            error.__traceback__ = error.__cause__ = error.__context__ = None
        return error
