"""The run folder: the names of its files, its lock, and the state of its run."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, get_args

from vaebench.errors import Busy, TakenOver, UserError, did_you_mean
from vaebench.files import regular
from vaebench.records.files import (
    exclusive,
    holder,
    is_held,
    reading,
    release_marker,
    write_failed,
    write_json,
    write_whole,
)
from vaebench.records.process import Process, this_process
from vaebench.records.stored import read_json
from vaebench.typed import Rule

__all__ = ["RunFolder", "State", "Status", "now"]

State = Literal["running", "finished", "failed", "interrupted"]

_SHOWN = 5  # run folders named in a message
_SIGN_SECONDS = 5.0  # between two signs of life of a process that trains
_WATCH_SECONDS = 12.0  # two signs, and the delay of a network file system
_LOOK_SECONDS = 0.5
_REPLACED = ".replaced-"
_FOLDERS = ("checkpoints", "evaluations", "pictures", "latents", "projector")
_PREFIXES = (".lock", ".results.lock", ".projector.lock", "events.out.")


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


Time = Annotated[str, Rule("a time such as 2026-01-31T12:00:00+00:00", _is_time)]
ProcessId = Annotated[int, Rule("the number of a process", lambda value: 1 <= value < 2**31)]


@dataclass(frozen=True)
class Status:
    """The state of a run, as in status.json. Times are UTC, ISO 8601."""

    state: State
    error: str | None
    pid: ProcessId
    host: str
    started: Time
    updated: Time
    instance: str = ""
    """What distinguishes the process from others with its number and host; empty in files of earlier versions."""

    @property
    def process(self) -> Process:
        return Process(self.pid, self.host, self.instance)


class _File:
    """The path of a file in a run folder, as an attribute of the folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: "RunFolder", owner: type) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """One run on disk. A folder is a run folder if it has a config.yaml."""

    path: Path

    config = _File("config.yaml")
    manifest = _File("manifest.json")
    metrics = _File("metrics.jsonl")
    results = _File("results.json")
    diagnostics = _File("diagnostics.json")
    status = _File("status.json")
    projector = _File("projector_config.pbtxt")
    checkpoints = _File("checkpoints")
    lock_file = _File(".lock")

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return the run at ``path``, a run folder or a file of `vaebench export`.

        Raises:
            UserError: it is not a run folder (the message names those nearby), or it has links.
        """
        path = _unpacked(path)
        if not _is_run(path):
            raise UserError(_why_not_a_run(path))
        run = cls(path)
        run.refuse_links()
        return run

    @classmethod
    def find(cls, paths: Iterable[Path]) -> "list[RunFolder]":
        """Return the runs at or below each of ``paths``, sorted below each path, without repetitions.

        A run that ``set_aside`` replaced is returned only if its own folder is among ``paths``.

        UserError if there is no run at or below one of the paths.
        """
        found: dict[Path, RunFolder] = {}
        for path in map(_unpacked, paths):
            runs = list(_runs_below(path))
            if not runs:
                raise UserError(_why_not_a_run(path))
            start = path.resolve()
            for run in runs:  # below a path there are no links
                found.setdefault(start / run.relative_to(path), cls(run))
        return list(found.values())

    @contextmanager
    def opened(self, config_text: str, identity: Callable[[str], object] = str) -> Iterator["RunFolder"]:
        """Lock the folder, then `create` it, and yield it: a process that is refused changes no file.

        Raises:
            Busy: another process trains here.
            UserError: as `create`, or the folder has links.
        """
        self.refuse_links()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(self.path, error) from error
        with self.lock():
            yield self.create(config_text, identity)

    def refuse_links(self) -> None:
        """Raise UserError if a file or folder of the run is a link, or is neither a file nor a folder.

        Through a link in a folder from a stranger, vaebench would write to other files of the user.
        """
        for entry in _entries(self.path):
            if entry.is_symlink():
                raise UserError(f"{entry.path} is a symbolic link: replace it by the file or folder itself.")
            if not (entry.is_file() or entry.is_dir()):
                raise UserError(f"{entry.path} is neither a file nor a folder: move it away.")

    def create(self, config_text: str, identity: Callable[[str], object] = str) -> "RunFolder":
        """Create the folder with its config.yaml, or reuse it for the same configuration; return self.

        The new text, from the latest session, replaces an existing config.yaml.

        Args:
            config_text: the text of config.yaml.
            identity: maps the text to a value that is equal for two configurations of the same run.

        Raises:
            UserError: the folder has another configuration, or cannot be written.
        """
        old = self.read_config() if self.config.exists() else None
        if old is not None and identity(old) != identity(config_text):
            raise UserError(
                f"{self.path} has a run of another configuration (see its config.yaml): choose another folder "
                "(output_dir=...), or move that run away."
            )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_failed(self.path, error) from error
        if old != config_text:
            write_whole(self.config, config_text.encode())
        return self

    def set_aside(self) -> "RunFolder":
        """Rename the folder to ``<name>.replaced-<n>`` and return it under that name; ``find`` passes it over.

        Busy if another process trains here.
        """
        with self.lock():
            number = next(n for n in itertools.count(1) if not self._replaced(n).path.exists())
            kept = self._replaced(number)
            try:
                self.path.rename(kept.path)
            except OSError as error:
                raise write_failed(kept.path, error) from error
            release_marker(kept.lock_file)
        return kept

    def _replaced(self, number: int) -> "RunFolder":
        return RunFolder(self.path.with_name(f"{self.path.name}{_REPLACED}{number}"))

    def read_config(self) -> str:
        """Return the text of config.yaml. UserError if it cannot be read."""
        with reading(self.config, "Restore it from a copy."):
            return self.config.read_text(encoding="utf-8")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder's lock, so that no other process trains here, until the context or this process ends.

        Raises:
            Busy: another process holds it; the message names its process id and host.
        """
        # wait: a reader that tests the lock holds it for an instant
        with exclusive(self.lock_file, wait=0.5, busy=self.busy):
            if trainer := self._trains_elsewhere():
                raise Busy(self.busy(str(trainer)))
            yield

    def busy(self, trainer: str | None = None) -> str:
        """Return a message: who trains here, and what to do. ``trainer`` is None for the holder of the lock."""
        return f"another run is training in {self.path} ({trainer or holder(self.lock_file)}): wait for it or stop it."

    def _trains_elsewhere(self) -> Process | None:
        """Return the process on another machine that trains here although this process got the lock, or None.

        Some network file systems lock for the processes of one machine only: NFS with ``local_lock``, Lustre with
        ``localflock``. So watch for a sign of life; the clocks of two machines may differ.
        """
        with suppress(UserError, FileNotFoundError):
            status = self._stored_status()
            if status.state != "running" or not status.instance or status.process.is_here():
                return None
            first, end = self._sign_of_life(), time.monotonic() + _WATCH_SECONDS
            while time.monotonic() < end:
                time.sleep(_LOOK_SECONDS)
                if self._sign_of_life() != first:
                    status = self._stored_status()
                    return status.process if status.state == "running" else None
        return None

    def _sign_of_life(self) -> int:
        """Return the time of the last change of status.json, in nanoseconds of the file system's clock."""
        # NFS asks the server for the time when it opens a file, but not for `stat`.
        with open(self.status, "rb", opener=regular) as file:
            return os.fstat(file.fileno()).st_mtime_ns

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Show that this process, which status.json names, still exists: change the time of status.json.

        Raises:
            TakenOver: at the end, whichever way the block ends, as `check_claim`.
        """
        done = threading.Event()
        thread = threading.Thread(target=self._give_signs, args=(done,), name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.check_claim()

    def _give_signs(self, done: threading.Event) -> None:
        while not done.wait(_SIGN_SECONDS):
            with suppress(OSError, UserError):  # the file system may fail for a while
                self.check_claim()
                os.utime(self.status)

    def check_claim(self) -> None:
        """Raise TakenOver unless status.json names this process: another process may have got the lock too."""
        try:
            trainer = self._stored_status().process
        except FileNotFoundError:
            trainer = None
        if trainer != this_process():
            raise TakenOver(
                f"{trainer or 'another process'} now trains in {self.path}, so this process stopped and saved nothing "
                "further: start a run on one machine only, because this file system does not lock files for several."
            )

    def write_status(self, state: State, error: str | None = None) -> None:
        """Write status.json; ``error`` is the message of the exception that ended the run."""
        if state not in get_args(State):
            raise ValueError(f"state must be one of {', '.join(get_args(State))}, got {state!r}")
        started = now()
        if state != "running":
            with suppress(UserError, FileNotFoundError):  # a corrupt file is replaced
                started = self._stored_status().started
        me = this_process()
        write_json(self.status, asdict(Status(state, error, me.pid, me.host, started, now(), me.instance)))

    def read_status(self) -> Status:
        """Return the state of the run; "interrupted" if the file has "running" but no process holds the lock.

        FileNotFoundError if there is no status.json, UserError if it is corrupt.
        """
        status = self._stored_status()
        if status.state != "running" or is_held(self.lock_file):
            return status
        error = f"process {status.pid} on {status.host} exited without recording a status (killed?)"
        return replace(status, state="interrupted", error=error)

    def _stored_status(self) -> Status:
        return read_json(self.status, Status, "Delete it.")


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the files and folders in a run folder that vaebench reads or writes."""
    folders = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        for entry in entries:
            if entry.name in _known() or entry.name.startswith(_PREFIXES):
                folders += [entry.path] if entry.name in _FOLDERS and not entry.is_symlink() else []
                yield entry
    for folder in folders:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            yield from entries


@cache
def _known() -> frozenset[str]:
    """Return the names of the files and folders in a run folder."""
    return frozenset({each.name for each in vars(RunFolder).values() if isinstance(each, _File)} | {*_FOLDERS})


def _unpacked(path: Path) -> Path:
    """Return the run folder of a file of `vaebench export`; all other paths as they are."""
    if path.suffix != ".zip" or not path.is_file():
        return path
    from vaebench.records.exported import unpacked

    return unpacked(path)


def _is_run(path: Path) -> bool:
    try:
        return (path / "config.yaml").is_file()
    except OSError:
        return True  # it cannot be searched; reading the run names the reason


def _runs_below(path: Path) -> Iterator[Path]:
    """Yield the run folders at or below ``path``, sorted."""
    if _is_run(path):
        yield path
    elif path.is_dir():
        with os.scandir(path) as entries:
            # hydra writes another config.yaml in .hydra, which is not a run
            found = [e.name for e in entries if not (e.name.startswith(".") or _REPLACED in e.name) and _is_folder(e)]
        for name in sorted(found):
            yield from _runs_below(path / name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _why_not_a_run(path: Path) -> str:
    """Return a message: why ``path`` is not a run folder, and the run folders nearby."""
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        return f"there is no folder {path}{did_you_mean(path.name, siblings)}."
    start = f"{path} is not a run folder: "
    start += "it has no config.yaml" if path.is_dir() else "it is a file"
    for parent in path.resolve().parents:
        if _is_run(parent):
            return f"{start}; it is inside the run folder {parent}."
    below = [str(run) for run in _runs_below(path)]
    if not below:
        return f"{start}. `vaebench train` creates run folders: outputs/<dataset>/<method>/<seed>-<hash>."
    more = f" and {len(below) - _SHOWN} more" if len(below) > _SHOWN else ""
    return f"{start}; the run folders below it are {', '.join(below[:_SHOWN])}{more}."
