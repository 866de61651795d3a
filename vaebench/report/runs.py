"""Runs as a comparison sees them: what was asked for, how it stands, what was measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from vaebench.config import Config, identity, read
from vaebench.config.identity import defining
from vaebench.errors import UserError
from vaebench.records import (
    ResultRecord,
    RunFolder,
    Status,
    flatten,
    last_metrics,
    read_manifest,
    read_metrics,
    read_results,
)

__all__ = ["LeftOut", "Run", "Scalar", "read_runs", "settings_of"]

Scalar = str | float | bool | None


class LeftOut(NamedTuple):
    """A run, or one of its results, that is in no table, and why."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Run:
    """One run folder, read."""

    folder: RunFolder
    config: Config
    status: Status | None
    """None where the run never wrote one."""
    results: list[ResultRecord]
    manifest: dict[str, Any]

    @classmethod
    def read(cls, folder: RunFolder) -> "Run":
        """Read everything but the metrics. UserError when a file is damaged."""
        status = folder.read_status() if folder.status.exists() else None
        return cls(folder, read(folder.path), status, read_results(folder), read_manifest(folder))

    @property
    def seed(self) -> int:
        return self.config.seed

    @cached_property
    def method(self) -> str:
        """The name of all repetitions of this run: a hash of what defines its model, but for the seed."""
        return identity(self.config, with_seed=False)

    @cached_property
    def settings(self) -> dict[str, Scalar]:
        """What defines the trained model, flat, without the seed."""
        return settings_of({key: value for key, value in defining(self.config).items() if key != "seed"})

    @property
    def state(self) -> str:
        """running, finished, failed, interrupted, or "not started"."""
        return "not started" if self.status is None else self.status.state

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.folder)

    @cached_property
    def epochs_done(self) -> float:
        """How far the training came, in epochs."""
        last = last_metrics(self.folder)
        return 0.0 if last is None else float(last["epoch"])

    @property
    def updated(self) -> datetime | None:
        """When anything was last recorded, UTC."""
        times = [datetime.fromtimestamp(p.stat().st_mtime, UTC) for p in (self.folder.metrics,) if p.exists()]
        times += [datetime.fromisoformat(self.status.updated)] if self.status else []
        return max(times, default=None)

    @property
    def wall_seconds(self) -> float | None:
        """Seconds spent on the run, evaluation at its end included."""
        seconds = self.manifest.get("wall_seconds")
        return None if seconds is None else float(seconds)

    @property
    def parameters(self) -> int | None:
        """How many numbers were trained."""
        return self.manifest.get("parameters", {}).get("total")


def settings_of(values: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return nested settings flat, in the words that a user types: ``encoder`` for ``encoder.name``."""
    return {key.removesuffix(".name"): value for key, value in flatten(values).items()}


def read_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[LeftOut]]:
    """Return the runs at or below ``paths``, and those that cannot be read.

    Raises:
        UserError: a path holds no run at all.
    """
    runs: list[Run] = []
    damaged: list[LeftOut] = []
    for folder in RunFolder.find(Path(path) for path in paths):
        try:
            runs.append(Run.read(folder))
        except UserError as error:
            damaged.append(LeftOut(folder.path, str(error)))
    return runs, damaged
