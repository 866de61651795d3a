"""The manifest: which code, data and machine made a run, and for how long."""

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from vaebench.errors import UserError
from vaebench.records.files import write_json
from vaebench.records.folder import RunFolder, now

__all__ = ["Manifest", "git_state", "read_manifest", "versions"]

_PACKAGES = ("vaebench", "torch", "torchvision", "numpy", "scipy", "hydra-core", "omegaconf", "tensorboard")
_GIT_SECONDS = 10


class Manifest:
    """Keeps manifest.json through one session of a run, adding to what earlier sessions wrote.

    At the top stand the facts of the first session; each later one is an entry of ``restarts``, with the
    step that it went on from.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        device: str,
        protocol: str,
        fingerprint: str,
        parameters: Mapping[str, int],
        resume_step: int | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """Gather the facts of this session; nothing is written before `save`.

        ``parameters``: counts by part, ``{"encoder": 1234, ...}``. ``resume_step``: the step that the
        session goes on from, None at the start. ``command``: the command line, by default this process's.
        UserError when a resumed run would go on with other data than it began with.
        """
        before = read_manifest(folder)
        dataset = {"protocol": protocol, "fingerprint": fingerprint}
        earlier = before.get("dataset", dataset)
        if resume_step is not None and earlier != dataset:
            raise UserError(
                f"{folder.path} was trained on {earlier}, but the data are now {dataset}: a run cannot go on "
                "with other data. Restore them, or train anew in another folder (output_dir=...)."
            )
        session = _session(device, sys.argv if command is None else command)
        first = {name: before[name] for name in session if name in before} or session
        restarts = [*before.get("restarts", []), *([{"step": resume_step, **session}] if before else [])]
        self.facts: dict[str, Any] = {
            **first,
            "dataset": dataset,
            "parameters": {**parameters, "total": sum(parameters.values())},
            "restarts": restarts,
        }
        self._folder = folder
        self._earlier_seconds = float(before.get("wall_seconds", 0.0))
        self._start = time.monotonic()

    @property
    def wall_seconds(self) -> float:
        """Seconds spent on the run so far, summed over its sessions."""
        return self._earlier_seconds + time.monotonic() - self._start

    def save(self) -> None:
        """Write manifest.json with the time spent so far: at the start, at each checkpoint, at the end."""
        write_json(self._folder.manifest, {**self.facts, "wall_seconds": round(self.wall_seconds, 2)})


def _session(device: str, command: Sequence[str]) -> dict[str, Any]:
    """The facts of the session that begins now in this process."""
    return {
        "time": now(),
        "command": list(command),
        "device": device,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "git": git_state(),
        "versions": versions(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of python and of the packages that decide a result, None for an absent one."""
    return {"python": platform.python_version(), "platform": platform.platform()} | {
        package: _version(package) for package in _PACKAGES
    }


def git_state(source: Path = Path(__file__)) -> dict[str, Any] | None:
    """Return ``{"commit": ..., "dirty": ...}`` of the checkout that holds the file ``source``, else None.

    An installed package may lie inside somebody else's checkout, in its virtual environment, so the file
    must be tracked.
    """
    if _git(source, "ls-files", "--error-unmatch", source.name) is None:
        return None
    commit, changes = _git(source, "rev-parse", "HEAD"), _git(source, "status", "--porcelain", "-uno")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(source: Path, *arguments: str) -> str | None:
    """The output of a git command run beside ``source``; None when git is absent or refuses."""
    try:
        done = subprocess.run(
            ["git", "-C", str(source.parent), *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read_manifest(folder: RunFolder) -> dict[str, Any]:
    """Return the facts in manifest.json, {} when there is none. UserError when it is damaged."""
    try:
        return json.loads(folder.manifest.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder.manifest}: {error}. Repair it, or move it away.") from error
