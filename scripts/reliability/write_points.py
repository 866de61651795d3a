"""Count every change that this process makes below a folder, and kill it or fill the disk at one of them."""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Fault", "WritePoints"]

FaultKind = Literal["kill", "torn", "full"]


@dataclass(frozen=True)
class Fault:
    """What happens at a write point.

    ``kill``: the process dies before the change. ``torn``: half of the bytes are written, then the process dies.
    ``full``: half of the bytes are written; from then on every write fails for lack of space.
    """

    kind: FaultKind
    at: int
    """The number of the change, from 0; one more than the last one: after it."""


@dataclass
class WritePoints:
    """Patches the functions through which Python changes files; use it in a forked process.

    Code in C that opens files by itself is not seen; the package writes its files in Python.
    """

    root: Path
    fault: Fault | None = None
    log: list[tuple[str, str, int]] = field(default_factory=list)
    """(operation, file name, bytes) of each change so far."""

    def install(self) -> None:
        """Patch this process, for good."""
        self._root = os.path.realpath(self.root) + os.sep
        self._disk_full = False
        for name in ("mkdir", "rmdir", "unlink", "remove", "truncate"):
            setattr(os, name, self._one_path(name, getattr(os, name)))
        for name in ("rename", "replace", "link", "symlink"):
            setattr(os, name, self._two_paths(name, getattr(os, name)))
        self._open, self._write = os.open, os.write
        os.open, os.write, os.ftruncate = self._os_open, self._os_write, self._os_ftruncate(os.ftruncate)
        file_open = io.open
        io.open = builtins.open = self._file_open(file_open)

    def end(self) -> None:
        """Die after the last change, if the fault says so."""
        if self.fault and self.fault.at == len(self.log):
            os.kill(os.getpid(), signal.SIGKILL)

    def point(self, operation: str, path: str, size: int = 0) -> bool:
        """Note one change; return whether only half of it must happen."""
        self.log.append((operation, os.path.basename(path), size))
        if self.fault is None or self.fault.at != len(self.log) - 1:
            return False
        if self.fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return True

    def below(self, path: Any, folder: int | None = None) -> str | None:
        """Return the absolute path, or None if it is not below the root."""
        if isinstance(path, int):
            full = os.readlink(f"/proc/self/fd/{path}")
        elif folder is not None:
            full = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(path))
        else:
            full = os.path.abspath(os.fsdecode(path))
        return full if (full + os.sep).startswith(self._root) else None

    def refuse_if_full(self, path: str) -> None:
        if self._disk_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def write(self, path: str, data: Any, write: Callable[[Any], int]) -> int:
        """Write ``data``, or half of it, or nothing."""
        self.refuse_if_full(path)
        view = memoryview(data).cast("B")
        if not self.point("write", path, len(view)):
            return write(data)
        assert self.fault is not None
        half = len(view) // 2
        written = write(view[:half]) if half else 0
        if self.fault.kind == "torn":
            os.kill(os.getpid(), signal.SIGKILL)
        self._disk_full = True
        if not written:
            self.refuse_if_full(path)
        return written

    def _one_path(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(path: Any, *args: Any, **kwargs: Any) -> Any:
            place = self.below(path, kwargs.get("dir_fd"))
            if place is not None:
                if name == "mkdir" and not os.path.exists(place):
                    self.refuse_if_full(place)
                if self.point(name, place) and name == "mkdir":
                    self._disk_full = True
                    self.refuse_if_full(place)
            return original(path, *args, **kwargs)

        return changed

    def _two_paths(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def changed(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            place = self.below(target, kwargs.get("dst_dir_fd"))
            if place is not None:
                self.point(name, place)
            return original(source, target, *args, **kwargs)

        return changed

    def _os_open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        place = self.below(path, kwargs.get("dir_fd"))
        if place is not None and (flags & os.O_TRUNC or (flags & os.O_CREAT and not os.path.lexists(place))):
            self.point("create", place)
        return self._open(path, flags, *args, **kwargs)

    def _os_write(self, descriptor: int, data: Any) -> int:
        place = self.below(descriptor)
        if place is None:
            return self._write(descriptor, data)
        return self.write(place, data, lambda part: self._write(descriptor, part))

    def _os_ftruncate(self, original: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def changed(descriptor: int, length: int) -> None:
            place = self.below(descriptor)
            if place is not None:
                self.point("truncate", place)
            original(descriptor, length)

        return changed

    def _file_open(self, original: Callable[..., Any]) -> Callable[..., Any]:
        points = self

        class CountedFile(io.FileIO):
            def write(self, data: Any) -> int:
                return points.write(str(self.name), data, super().write)

        def opened(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            writes = set(mode) & set("wax+")
            place = points.below(file) if writes else None
            if place is None:
                return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if set(mode) & set("wx") or not os.path.exists(place):
                points.point("create", place)
            raw = CountedFile(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)

        return opened
