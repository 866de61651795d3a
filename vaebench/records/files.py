"""Write files whole, append records to files, and lock files for one process.

The filelock package does not serve here: it neither names the process and host that hold a lock nor tests a lock
without taking it. Of the errors of file systems without flock, it handles only ENOSYS.
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vaebench.errors import Busy, UserError
from vaebench.files import clean_temporaries, fcntl, regular, remove, replacing
from vaebench.records.process import Process, this_process
from vaebench.records.stored import Unreadable, read_whole
from vaebench.typed import clipped

__all__ = [
    "Appender",
    "exclusive",
    "holder",
    "is_held",
    "reading",
    "release_marker",
    "write_failed",
    "write_json",
    "write_whole",
]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_POLL_SECONDS = 0.05
_LOCK_BYTES = 1024  # more than the text of any lock


@contextlib.contextmanager
def reading(path: Path, advice: str) -> Iterator[None]:
    """Turn an error in reading ``path`` or in interpreting its content into a UserError that ends in ``advice``."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"cannot read {path}: {error}. {advice}") from error


def write_failed(path: Path, error: OSError) -> UserError:
    """Return the UserError for an ``error`` in writing ``path``; its message says what to do."""
    if error.errno in _FULL:
        reason = f"the disk is full or over its quota ({os.strerror(error.errno)})"
        return UserError(
            f"cannot write {path}: {reason}. The old file is intact: free some space and run the same command again."
        )
    reason = error.strerror or str(error)
    if error.errno == errno.ELOOP:
        return UserError(f"cannot write {path}: {reason}. Replace it by a regular file.")
    if error.errno in _FORBIDDEN:
        return UserError(f"cannot write {path}: {reason}. Choose a folder that you can write to (output_dir=...).")
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


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:  # a disk that fills up accepts a part, and complains at the next write
        left = left[os.write(descriptor, left) :]


class Appender:
    """A file that grows by whole records. Readers see each write immediately; no write is synced to the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "ab", buffering=0, opener=regular)  # noqa: SIM115 (closed by close)
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
    """Hold the lock ``path``. The system releases it if this process dies.

    Delete the temporary files of killed writers in the lock's folder and in the folders in it.

    Without flock (Windows, some network file systems) the lock is a marker file. It remains after a crash. The next
    process takes it over if its holder was a process of this machine that has ended. Otherwise the message names the
    file to delete. On Windows no marker is taken over.

    Args:
        path: the lock file; it is created if it does not exist, and stays.
        wait: how many seconds to wait for another process.
        busy: returns the message for a holder such as "process 12 on host".

    Raises:
        Busy: another process holds the lock for longer than ``wait``.
        UserError: the file is a link, or not a lock that vaebench wrote.
    """
    deadline = time.monotonic() + wait
    while (release := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise Busy(busy(holder(path)))
        time.sleep(_POLL_SECONDS)
    try:
        clean_temporaries(path.parent)
        for below in path.parent.iterdir():
            if below.is_dir() and not below.is_symlink():
                clean_temporaries(below)
        yield
    finally:
        release()


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock ``path``."""
    marker = _marker(path)
    if marker.exists() and not _is_stale(marker):
        return True
    if fcntl is None:
        return False
    try:
        with open(path, "rb", opener=regular) as file:
            return not _flock(file.fileno(), fcntl.LOCK_SH)
    except OSError:
        return False  # there is no lock that a process could hold; without flock, the marker would exist


def _try_lock(path: Path) -> Callable[[], None] | None:
    """Take the lock ``path`` and return a function that releases it; None if another process holds the lock."""
    if fcntl is None:
        return _try_marker(_marker(path))
    try:
        descriptor = regular(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise write_failed(path, error) from error
    with contextlib.ExitStack() as failed:
        failed.callback(os.close, descriptor)
        if not _is_ours(descriptor):
            raise UserError(f"{path} is not a lock that vaebench wrote: move it away.")
        try:
            if not _flock(descriptor, fcntl.LOCK_EX):
                return None
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise write_failed(path, error) from error
            return _try_marker(_marker(path))
        if not _without_marker(_marker(path)):
            return None
        with contextlib.suppress(OSError):  # the text is only for messages; the lock works without it
            os.ftruncate(descriptor, 0)
            os.write(descriptor, this_process().text.encode())
        failed.pop_all()
    return partial(os.close, descriptor)


def _is_ours(descriptor: int) -> bool:
    """Return whether a file is empty or has the text of a lock: only such a file is overwritten."""
    text = os.pread(descriptor, _LOCK_BYTES + 1, 0)
    return not text or (text.startswith(b"process ") and len(text) <= _LOCK_BYTES)


def _flock(descriptor: int, operation: int) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _marker(path: Path) -> Path:
    return path.with_name(path.name + ".held")


def _try_marker(marker: Path) -> Callable[[], None] | None:
    """Create ``marker`` and return a function that deletes it; None if another process holds it."""
    if _create(marker) or (_is_stale(marker) and _took_over(marker)):
        return partial(_remove_own, marker)
    return None


def _create(marker: Path) -> bool:
    """Create ``marker``, which names this process; return False if it exists."""
    try:
        descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    except OSError as error:
        raise write_failed(marker, error) from error
    try:
        _write_all(descriptor, this_process().text.encode())
    except OSError as error:  # a marker without its text could not be taken over
        remove(marker)
        raise write_failed(marker, error) from error
    finally:
        os.close(descriptor)
    return True


def _took_over(marker: Path) -> bool:
    """Replace a stale marker by one of this process; return False if another process was faster.

    Two processes may find the same stale marker. Only the holder of a second marker may delete the first one, and only
    if it is still stale. The second marker is taken over in the same way if its holder was killed.
    """
    release = _try_marker(marker.with_name(marker.name + ".next"))
    if release is None:
        return False
    try:
        if _is_stale(marker):
            remove(marker)
        return _create(marker)
    finally:
        release()


def _without_marker(marker: Path) -> bool:
    """Delete a stale marker; return False if a process holds it, for example from a mount without flock."""
    release = _try_marker(marker) if marker.exists() else lambda: None
    if release is not None:
        release()
    return release is not None


def _is_stale(marker: Path) -> bool:
    """Return whether the process that holds ``marker`` has certainly ended."""
    process = _named_in(marker)
    return process is not None and process.has_ended()


def _named_in(file: Path) -> Process | None:
    """Return the process that a lock or marker names; None if there is none."""
    try:
        return Process.parse(read_whole(file, _LOCK_BYTES).decode())
    except (OSError, Unreadable, UnicodeDecodeError):
        return None


def _remove_own(marker: Path) -> None:
    if _named_in(marker) == this_process():
        remove(marker)


def release_marker(path: Path) -> None:
    """Delete the marker of the lock ``path``, whose folder was renamed while this process held the lock."""
    _remove_own(_marker(path))


def holder(path: Path) -> str:
    """Return who holds the lock ``path``, and for a marker what to do with a stale one, for a message."""
    marker = _marker(path)
    marked = marker.exists()
    process = _named_in(marker if marked else path)
    advice = f"; if that process does not exist, delete {marker}" if marked else ""
    return clipped(str(process or "an unknown process")) + advice
