"""The run folder: the names of its files, who may write in it, and how its run stands."""

import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from vaebench.errors import UserError, did_you_mean
from vaebench.records.files import exclusive, is_held, write_failed, write_json, write_whole

__all__ = ["RunFolder", "State", "Status", "now"]

State = Literal["running", "finished", "failed", "interrupted"]

_SHOWN = 5  # run folders named in a message


@dataclass(frozen=True)
class Status:
    """How a run stands: what status.json holds. Times are UTC, ISO 8601."""

    state: State
    error: str | None
    pid: int
    host: str
    started: str
    updated: str


@dataclass(frozen=True)
class RunFolder:
    """One run on disk; a folder is a run folder when it holds config.yaml."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def diagnostics(self) -> Path:
        return self.path / "diagnostics.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return the run at ``path``. UserError, with the run folders nearby, when it is not one."""
        if not _is_run(path):
            raise UserError(_why_not_a_run(path))
        return cls(path)

    @classmethod
    def find(cls, paths: Iterable[Path]) -> "list[RunFolder]":
        """Return the runs at or below each of ``paths``, sorted below each, none twice.

        UserError when one of the paths holds no run at all.
        """
        found: dict[Path, RunFolder] = {}
        for path in paths:
            runs = list(_runs_below(path))
            if not runs:
                raise UserError(_why_not_a_run(path))
            for run in runs:
                found.setdefault(run.resolve(), cls(run))
        return list(found.values())

    def create(self, config_text: str, identity: Callable[[str], object] = str) -> "RunFolder":
        """Make the folder with its config.yaml, or enter it again for the same configuration; return self.

        ``identity`` maps a config text to what must agree for two texts to mean the same run (by default
        the text itself). Where it agrees, config.yaml takes the new text: that of the latest session.
        UserError when the folder holds another configuration or cannot be written.
        """
        old = self.read_config() if self.config.exists() else None
        if old is not None and identity(old) != identity(config_text):
            raise UserError(
                f"{self.path} holds a run of another configuration (compare its config.yaml): choose another "
                "folder (output_dir=...), or move that one away."
            )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(self.path, error) from error
        if old != config_text:
            write_whole(self.config, config_text.encode())
        return self

    def read_config(self) -> str:
        """Return the text of config.yaml. UserError when it cannot be read."""
        return _read(self.config)

    def lock(self) -> AbstractContextManager[None]:
        """Keep every other process from training here while the context lasts and this process lives.

        Busy with the holder's process id and host when the folder is taken.
        """
        return exclusive(
            self._lock_file,
            wait=0.5,  # a reader that looks whether the lock is held has it for an instant
            busy=lambda holder: f"another run is training in {self.path} ({holder}): wait for it, or stop it first.",
        )

    def write_status(self, state: State, error: str | None = None) -> None:
        """Record how the run stands; ``error`` is the message of what ended it."""
        if state not in get_args(State):
            raise ValueError(f"state must be one of {get_args(State)}, not {state!r}")
        started = now()
        if state != "running" and self.status.exists():
            started = self._stored_status().started
        status = Status(state, error, os.getpid(), socket.gethostname(), started, now())
        write_json(self.status, asdict(status))

    def read_status(self) -> Status:
        """Return how the run stands; one that says it runs, but whose process is gone, was interrupted.

        UserError when there is no readable status.json.
        """
        status = self._stored_status()
        if status.state != "running" or is_held(self._lock_file):
            return status
        gone = f"process {status.pid} on {status.host} ended without a word (killed?)"
        return Status("interrupted", gone, status.pid, status.host, status.started, status.updated)

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"

    def _stored_status(self) -> Status:
        try:
            return Status(**json.loads(_read(self.status)))
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.status} is not a status that this version reads ({error}); delete it.") from error


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}.") from error


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def _runs_below(path: Path) -> Iterator[Path]:
    """Yield the run folders at or below ``path``, sorted."""
    if _is_run(path):
        yield path
    elif path.is_dir():
        for below in sorted(path.iterdir()):
            # hydra keeps a config.yaml of its own in .hydra, which is no run
            if below.is_dir() and not below.is_symlink() and not below.name.startswith("."):
                yield from _runs_below(below)


def _why_not_a_run(path: Path) -> str:
    """Say why ``path`` is not a run folder, and which one may have been meant."""
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        return f"there is no folder {path}{did_you_mean(path.name, siblings)}."
    start = f"{path} is not a run folder: "
    start += "it holds no config.yaml" if path.is_dir() else "it is a file"
    for parent in path.resolve().parents:
        if _is_run(parent):
            return f"{start}; the run folder around it is {parent}."
    below = [str(run) for run in _runs_below(path)]
    if not below:
        return f"{start}. A run folder is what `vaebench train` makes: outputs/<dataset>/<method>/<seed>-<hash>."
    more = f" and {len(below) - _SHOWN} more" if len(below) > _SHOWN else ""
    return f"{start}; the run folders below it are {', '.join(below[:_SHOWN])}{more}."
