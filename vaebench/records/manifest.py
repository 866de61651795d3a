"""manifest.json: the code, data and machine of a run, and its wall time."""

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, TypedDict

from vaebench import plugins
from vaebench.direction import Measure
from vaebench.errors import UserError
from vaebench.records.files import write_json
from vaebench.records.folder import ProcessId, RunFolder, now
from vaebench.records.metrics import Natural, Written
from vaebench.records.stored import read_json
from vaebench.typed import Rule

__all__ = ["Manifest", "RememberedPlugin", "git_state", "read_manifest", "require_plugins", "trained_code", "versions"]

_PACKAGES = ("vaebench", "torch", "torchvision", "numpy", "scipy", "hydra-core", "omegaconf", "tensorboard")
_GIT_SECONDS = 10


class _Git(TypedDict):
    commit: str
    dirty: bool


class _Data(TypedDict, total=False):
    protocol: str
    fingerprint: str


class _Best(TypedDict):
    epoch: Natural
    weights: str


class _Stopped(TypedDict):
    epoch: Natural
    of: Natural


class RememberedPlugin(TypedDict):
    """What a run remembers of a plug-in: of an installed package, or (``file``) of a file or module of ``--plugin``."""

    kind: str
    name: str
    distribution: str | None
    version: str | None
    file: str | None
    digest: str
    """Of its source: see `vaebench.records.source`."""


class _Session(TypedDict, total=False):
    time: str
    command: list[str]
    device: str
    host: str
    pid: ProcessId
    git: _Git | None
    versions: dict[str, str | None]
    code: str
    plugins: list[RememberedPlugin]
    step: Natural | None


class _Stored(_Session, total=False):
    """The keys of manifest.json that vaebench reads. A file of an earlier version may lack some."""

    identity: str
    dataset: _Data
    parameters: dict[str, Natural]
    restarts: list[_Session]
    wall_seconds: Annotated[float, Rule(">= 0", lambda value: value >= 0)]
    stopped_early: _Stopped
    best: _Best
    written: Written
    validation: str
    measure: Measure


class Manifest:
    """Writes manifest.json during one session of a run, and keeps the facts of earlier sessions.

    The top level describes the first session. Each later session is an entry of ``restarts``, with the step from which
    it resumed. ``continues`` names the shorter run whose training was copied.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        device: str,
        protocol: str,
        fingerprint: str,
        parameters: Mapping[str, int],
        code: str | None = None,
        identity: str | None = None,
        resume_step: int | None = None,
        command: Sequence[str] | None = None,
        used: Sequence[RememberedPlugin] = (),
    ) -> None:
        """Collect the facts of this session; `save` writes them.

        Args:
            folder: the run folder.
            device: the name of the device.
            protocol: the data protocol.
            fingerprint: the hash of the data.
            parameters: counts of parameters by part, for example ``{"encoder": 1234}``.
            code: the digest of the source of the model's classes.
            identity: the identity of the configuration; None leaves it out.
            resume_step: the step from which the session resumes; None for a new run.
            command: the command line; None for the command line of this process.
            used: the plug-ins that the run uses.

        Raises:
            UserError: the data of a resumed run have changed, or manifest.json is that of another configuration.
        """
        before = read_manifest(folder, identity)
        dataset = {"protocol": protocol, "fingerprint": fingerprint}
        earlier = before.get("dataset", dataset)
        if resume_step is not None and earlier != dataset:
            raise UserError(
                f"{folder.path} was trained on {earlier}, but the data are now {dataset}: a run cannot resume with "
                "other data. Restore the data, or train in another folder (output_dir=...)."
            )
        session = _session(device, sys.argv if command is None else command)
        session |= {} if code is None else {"code": code}
        session |= {"plugins": list(used)} if used else {}
        first = {name: before[name] for name in session if name in before} or session
        restarts = [*before.get("restarts", []), *([{"step": resume_step, **session}] if before else [])]
        self.facts: dict[str, Any] = {
            **first,
            **({} if identity is None else {"identity": identity}),
            "dataset": dataset,
            "parameters": {**parameters, "total": sum(parameters.values())},
            "restarts": restarts,
            **({"continues": before["continues"]} if "continues" in before else {}),
        }
        self._folder = folder
        self._earlier_seconds = float(before.get("wall_seconds", 0.0))
        self._start = time.monotonic()

    @property
    def wall_seconds(self) -> float:
        """Return the seconds spent on the run so far, over all sessions."""
        return self._earlier_seconds + time.monotonic() - self._start

    def save(self) -> None:
        """Write manifest.json, with the time spent so far."""
        write_json(self._folder.manifest, {**self.facts, "wall_seconds": round(self.wall_seconds, 2)})


def trained_code(manifest: Mapping[str, Any]) -> str | None:
    """Return the digest of the code that trained a run last; None where the manifest has none."""
    return [manifest, *manifest.get("restarts", [])][-1].get("code")


def require_plugins(folder: RunFolder, *, estimator: bool = False) -> None:
    """Check that the plug-ins of a run are there; UserError says which one is needed.

    ``estimator``: also that of its estimator, which a command that does not use it does not need.
    """
    manifest = read_manifest(folder)
    session = [manifest, *manifest.get("restarts", [])][-1]
    plugins.require([p for p in session.get("plugins", []) if estimator or p["kind"] != "estimator"], folder.path)


def _session(device: str, command: Sequence[str]) -> dict[str, Any]:
    """Return the facts of the session that starts now in this process."""
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
    """Return the versions of python and of the packages that affect results, None for a missing package."""
    return {"python": platform.python_version(), "platform": platform.platform()} | {
        package: _version(package) for package in _PACKAGES
    }


def git_state(source: Path = Path(__file__)) -> dict[str, Any] | None:
    """Return ``{"commit": ..., "dirty": ...}`` of the git checkout that tracks the file ``source``, else None.

    The file must be tracked, because an installed package may be inside another project's checkout.
    """
    if _git(source, "ls-files", "--error-unmatch", source.name) is None:
        return None
    commit, changes = _git(source, "rev-parse", "HEAD"), _git(source, "status", "--porcelain", "-uno")
    return None if commit is None else {"commit": commit, "dirty": bool(changes)}


def _git(source: Path, *arguments: str) -> str | None:
    """Return the output of a git command in the folder of ``source``; None if git is missing or fails."""
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


def read_manifest(folder: RunFolder, identity: str | None = None) -> dict[str, Any]:
    """Return the content of manifest.json, {} if there is no such file.

    Args:
        folder: the run folder.
        identity: that of the configuration in config.yaml. A manifest of an early version has none to compare.

    Raises:
        UserError: the file is corrupt, or it is the manifest of another configuration.
    """
    try:
        facts: dict[str, Any] = {**read_json(folder.manifest, _Stored, "Repair it, or move it away.")}
    except FileNotFoundError:
        return {}
    if identity is not None and facts.get("identity", identity) != identity:
        raise UserError(
            f"{folder.config} is not the configuration of this run: its identity is {identity}, and that in "
            f"{folder.manifest.name} is {facts['identity']}. Restore config.yaml, or train the changed configuration "
            "in another folder."
        )
    return facts
