"""Files that neither a kill nor a full disk leaves half written, and locks that die with their process."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from vaebench.errors import Busy, UserError
from vaebench.files import remove, replacing

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "Appender",
    "clean_temporaries",
    "exclusive",
    "is_held",
    "write_failed",
    "write_json",
    "write_whole",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_POLL_SECONDS = 0.05


def write_failed(path: Path, error: OSError) -> UserError:
    """Turn the ``error`` of writing ``path`` into the exception to raise, with what to do about it."""
    if error.errno in _FULL:
        reason = f"the disk is full, or over its quota ({os.strerror(error.errno)})"
        return UserError(
            f"cannot write {path}: {reason}. What was there before is intact: free some space, then repeat the command."
        )
    reason = error.strerror or str(error)
    if error.errno in _FORBIDDEN:
        return UserError(f"cannot write {path}: {reason}. Choose a folder that you may write to (output_dir=...).")
    return UserError(f"cannot write {path}: {reason}.")


def write_whole(path: Path, data: bytes, *, keep_old_as: Path | None = None) -> None:
    """Replace the file ``path`` by ``data`` as `vaebench.files.replacing` does, with the errors of `write_failed`."""
    try:
        # Unbuffered: a buffer that could not be written is written again, and fails again, on close.
        with replacing(path, keep_old_as=keep_old_as) as temporary, open(temporary, "wb", buffering=0) as file:
            _write_all(file.fileno(), data)
    except OSError as error:
        raise write_failed(path, error) from error


def write_json(path: Path, obj: object) -> None:
    """Write ``obj`` as indented JSON with `write_whole`. ValueError for NaN and infinity: JSON has none."""
    write_whole(path, (json.dumps(obj, indent=2, allow_nan=False) + "\n").encode())


def clean_temporaries(folder: Path) -> None:
    """Remove what killed writers left in ``folder``; only for the holder of its lock, who writes alone."""
    for temporary in folder.glob(".*.tmp"):
        remove(temporary)


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:  # a disk that fills up accepts a part, and complains at the next write
        left = left[os.write(descriptor, left) :]


class Appender:
    """A file that grows by whole records: each write is at once visible to readers, and none is fsynced."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise write_failed(path, error) from error

    def write(self, data: bytes) -> None:
        try:
            _write_all(self._file.fileno(), data)
        except OSError as error:
            raise write_failed(self.path, error) from error

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def exclusive(path: Path, *, wait: float, busy: Callable[[str], str]) -> Iterator[None]:
    """Hold the lock ``path``, waiting up to ``wait`` seconds; the system frees it if this process dies.

    Raises Busy with ``busy(holder)`` when another process keeps it, where holder is like "process 12
    on host". Where the system or the file system has no flock, a marker file is made instead. It outlives a
    crash, so the message then says which file to delete.
    """
    deadline = time.monotonic() + wait
    while (release := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise Busy(busy(_holder(path)))
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        release()


def is_held(path: Path) -> bool:
    """Whether some process holds the lock ``path``."""
    if _marker(path).exists():
        return True
    if fcntl is None or not path.exists():
        return False
    with open(path, "rb") as file:
        try:
            return not _flock(file.fileno(), fcntl.LOCK_SH)
        except OSError:
            return False  # no flock here: then the marker would exist


def _try_lock(path: Path) -> Callable[[], None] | None:
    """Take the lock ``path`` and return how to release it, or None when another process has it."""
    try:
        if fcntl is None:
            return _try_marker(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise write_failed(path, error) from error
    try:
        taken = _flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in _NO_FLOCK:
            raise write_failed(path, error) from error
        return _try_marker(path)
    if not taken:
        os.close(descriptor)
        return None
    with contextlib.suppress(OSError):  # the text only serves a message; the lock holds without it
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _me().encode())
    return lambda: os.close(descriptor)


def _flock(descriptor: int, operation: int) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_marker(path: Path) -> Callable[[], None] | None:
    marker = _marker(path)
    try:
        descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return None
    with contextlib.suppress(OSError):
        os.write(descriptor, _me().encode())
    os.close(descriptor)
    return lambda: remove(marker)


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".held")


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _holder(path: Path) -> str:
    """Who holds ``path``, for a message."""
    marker = _marker(path)
    for file, advice in [(marker, f"; if that process is gone, delete {marker}"), (path, "")]:
        with contextlib.suppress(OSError):
            return (file.read_text() or "an unknown process") + advice
    return "an unknown process"
