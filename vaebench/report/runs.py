"""Run folders as read for lists, tables and pages: config, status, results and manifest."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from vaebench.config import Config, describe
from vaebench.config.identity import SeedlessConfig
from vaebench.config.run import read_shared
from vaebench.direction import Measure
from vaebench.errors import UserError
from vaebench.records import (
    Diagnostics,
    ResultRecord,
    RunFolder,
    Status,
    flatten,
    last_metrics,
    read_diagnostics,
    read_manifest,
)
from vaebench.records.current import Current, left_out, split_results
from vaebench.records.metrics import are_altered

__all__ = ["LeftOut", "Run", "Scalar", "outdated_results", "read_runs", "settings_of"]

Scalar = str | float | bool | None


class LeftOut(NamedTuple):
    """A run, or one of its results, that is in no table, with the reason."""

    folder: Path
    reason: str


class RunDiagnostics(NamedTuple):
    """What a run's diagnostics.json holds."""

    current: Diagnostics | None = None
    """None if there are none, or none of the run as it is now."""
    fault: str | None = None
    """What they were made with, if it is not what the run has now."""
    unreadable: str = ""
    """The message, if the file is corrupt."""


@dataclass(frozen=True)
class Run:
    """The contents of one run folder."""

    folder: RunFolder
    config: Config
    status: Status | None
    """None where the run has not written status.json."""
    results: list[ResultRecord]
    """Of the weights, the code and the data that the run has now."""
    manifest: dict[str, Any]
    shared: SeedlessConfig
    """What it shares with the runs that differ only in the seed."""
    outdated: Sequence[tuple[ResultRecord, str]] = ()
    """The other results, each with what is not that of the run now; see `vaebench.records.current`."""

    @classmethod
    def read(cls, folder: RunFolder) -> "Run":
        """Read everything but the metrics. UserError when a file is corrupt."""
        folder.refuse_links()
        try:
            status = folder.read_status()
        except FileNotFoundError:
            status = None
        config, shared = read_shared(folder.path)
        own = shared.identity(config.seed)
        manifest = read_manifest(folder, own)
        results, outdated = split_results(folder, own, manifest)
        return cls(folder, config, status, results, manifest, shared, outdated)

    @cached_property
    def current(self) -> Current:
        """What numbers of this run must have been made with to be its numbers now."""
        return Current.of(self.folder, self.shared.identity(self.seed), self.manifest)

    @cached_property
    def diagnostics(self) -> RunDiagnostics:
        """The diagnostics of the run."""
        try:
            found = read_diagnostics(self.folder)
        except UserError as error:
            return RunDiagnostics(unreadable=str(error))
        fault = None if found is None else self.current.fault(found.provenance, found.epoch)
        return RunDiagnostics(None if fault else found, fault)

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def method(self) -> str:
        """The hash that runs share which differ only in the seed."""
        return self.shared.method

    @property
    def model(self) -> str:
        """The hash that trainings of the same model share, whatever their seed and the name of their objective."""
        return self.shared.model

    @property
    def settings(self) -> Mapping[str, Scalar]:
        """The settings that define the trained model, flat, without the seed."""
        return _settings(self.shared)

    @property
    def state(self) -> str:
        """running, finished, failed, interrupted, or "not started"."""
        return "not started" if self.status is None else self.status.state

    @property
    def validation(self) -> str:
        """What a validation of the run estimates; runs of earlier versions have not recorded it."""
        return self.manifest.get("validation") or describe.validation(self.config)

    @property
    def measure(self) -> Measure:
        """What p(x) is; runs of earlier versions have not recorded it."""
        protocol = f"{self.config.dataset.name}/{self.config.dataset.binarization}"
        return self.manifest.get("measure") or Measure.of_early_version(protocol)

    @property
    def stopped_early(self) -> dict[str, Any] | None:
        """``{"epoch": reached, "of": planned}`` of a run that early stopping ended; None for all others."""
        return self.manifest.get("stopped_early") or getattr(self.status, "stopped_early", None)

    @cached_property
    def metrics_fault(self) -> str:
        """A line if metrics.jsonl is not as the run wrote it, "" if it is or the manifest does not tell."""
        written = self.manifest.get("written")
        if written is None or not are_altered(self.folder, written, complete=self.state == "finished"):
            return ""
        return f"{self.folder.metrics} is not as the run wrote it: its curves may be wrong"

    @cached_property
    def last_metrics(self) -> dict[str, Any] | None:
        return last_metrics(self.folder)

    @property
    def epochs_done(self) -> float:
        """The number of epochs trained so far."""
        return float(self.last_metrics["epoch"]) if self.last_metrics else 0.0

    @property
    def updated(self) -> datetime | None:
        """The time of the last record, UTC."""
        times = [datetime.fromtimestamp(p.stat().st_mtime, UTC) for p in (self.folder.metrics,) if p.exists()]
        times += [datetime.fromisoformat(self.status.updated)] if self.status else []
        return max(times, default=None)

    @property
    def wall_seconds(self) -> float | None:
        """Seconds spent on the run, with the evaluation at its end."""
        seconds = self.manifest.get("wall_seconds")
        return None if seconds is None else float(seconds)

    @property
    def parameters(self) -> int | None:
        """The number of trained parameters."""
        return self.manifest.get("parameters", {}).get("total")


@cache
def _settings(shared: SeedlessConfig) -> Mapping[str, Scalar]:
    """Return its settings, flat; cached, because thousands of runs share them."""
    return settings_of(shared.defining)


def settings_of(values: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return nested settings as one mapping with the keys that a user types: ``encoder`` for ``encoder.name``."""
    return {key.removesuffix(".name"): value for key, value in flatten(values).items()}


def outdated_results(runs: Iterable[Run]) -> Iterator[str]:
    """Yield a line for each kind of result that no table shows, because it is not of the run as it is now."""
    yield from left_out((run.folder, fault) for run in runs for _, fault in run.outdated)


def read_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[LeftOut]]:
    """Return the runs at or below ``paths``, and those that cannot be read.

    Args:
        paths: run folders, or folders of runs.

    Raises:
        UserError: there is no run at or below a path.
    """
    runs: list[Run] = []
    damaged: list[LeftOut] = []
    for folder in RunFolder.find(Path(path) for path in paths):
        try:
            run = Run.read(folder)
            _ = run.last_metrics
            runs.append(run)
        except UserError as error:
            damaged.append(LeftOut(folder.path, str(error)))
    return runs, damaged
