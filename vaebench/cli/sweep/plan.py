"""Plan the jobs of a sweep before the first one starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vaebench.cli.failure import message, report_failure
from vaebench.cli.sweep.records import JobRecord, job_key
from vaebench.config import Config, from_hydra, run_folder
from vaebench.config.words import as_typed
from vaebench.records import RunFolder

__all__ = ["PlannedJob", "plan"]


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

    @property
    def key(self) -> str:
        assert self.config is not None
        return job_key(self.config)

    @property
    def run(self) -> RunFolder:
        assert self.config is not None
        return RunFolder(run_folder(self.config))

    @property
    def open(self) -> bool:
        return self.record.status in ("waiting", "busy")


def plan(hydra_context: Any, config: DictConfig, jobs: Sequence[list[str]]) -> tuple[list[PlannedJob], int]:
    """Return the jobs, each model once, and the number of repeated jobs, which are left out.

    All overrides are read before the first job starts, so that hydra refuses an unknown key here.
    """
    loaded = [hydra_context.config_loader.load_sweep_config(config, list(overrides)) for overrides in jobs]
    planned: dict[str, PlannedJob] = {}
    for overrides, whole in zip(jobs, loaded, strict=True):
        own = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])
        try:
            found = from_hydra(own, whole.hydra)
        except Exception as error:
            report_failure(error, overrides)
            failed = JobRecord("failed", error=message(error))
            planned[" ".join(overrides)] = PlannedJob(overrides, failed, error=error)
        else:
            planned.setdefault(job_key(found), PlannedJob(overrides, JobRecord("waiting"), found))
    return list(planned.values()), len(jobs) - len(planned)
