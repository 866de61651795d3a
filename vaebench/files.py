"""Replace files whole, open no links, choose a folder that can be written to, and find the user's cache folder."""

import contextlib
import errno
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["clean_temporaries", "fcntl", "first_writable", "regular", "remove", "replacing", "user_cache"]

_ABANDONED_SECONDS = 86400  # where a lock cannot tell whether the writer of a temporary file still exists


@contextlib.contextmanager
def replacing(path: Path, *, keep_old_as: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, and move that file to ``path`` if the block succeeds.

    A kill or a power cut leaves the old file or the new one at ``path``, never a part. If the block fails, the
    old file stays and the temporary file is removed. Any number of processes may write to ``path`` at once.

    Args:
        path: the file to replace; its folder must exist.
        keep_old_as: move the old file there first. A kill between the two moves leaves no file at ``path``.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    release = _claimed(temporary)
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        if keep_old_as is not None and path.exists():
            os.replace(path, keep_old_as)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    finally:
        release()
    if os.name == "posix":
        with contextlib.suppress(OSError):  # the file is already in place; not every file system can sync a folder
            _sync(path.parent, os.O_RDONLY)


def clean_temporaries(folder: Path) -> None:
    """Delete the temporary files of killed writers in ``folder``, and none of a writer that still exists."""
    for temporary in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process may move or delete it meanwhile
            if _is_abandoned(temporary):
                remove(temporary)


def regular(path: str | Path, flags: int) -> int:
    """Return a descriptor of the regular file ``path``, for the ``opener`` of `open`.

    A folder from a stranger may hold a link to another file of the user, or a pipe that keeps its reader waiting.

    Raises:
        OSError: it is a link, is not a regular file, or cannot be opened.
    """
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if Path(path).is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def remove(path: Path) -> None:
    """Delete a file, if it exists and can be deleted."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def first_writable(folders: Iterable[Path]) -> Path | None:
    """Return the first folder that can be written to or created, or None; create nothing."""
    return next((folder for folder in folders if _writable(folder)), None)


def user_cache() -> Path:
    """Return the user's cache folder for vaebench: ``~/.cache/vaebench`` on Linux, or below ``$XDG_CACHE_HOME``."""
    from platformdirs import user_cache_path

    return user_cache_path("vaebench", appauthor=False, opinion=False)


def _claimed(temporary: Path) -> Callable[[], None]:
    """Create the file and lock it, so that `clean_temporaries` keeps it; return a function that ends the lock."""
    if fcntl is None:  # Windows, where an open file cannot be moved
        return lambda: None
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    with contextlib.suppress(OSError):  # without flock, its age decides
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return lambda: os.close(descriptor)


def _is_abandoned(temporary: Path) -> bool:
    """Return whether no process writes ``temporary`` any more."""
    try:
        with open(temporary, "rb+", opener=regular) as file:
            if fcntl is not None:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks here
    return time.time() - temporary.lstat().st_mtime > _ABANDONED_SECONDS


def _sync(path: Path, flags: int) -> None:
    """Write a file's or folder's content through to the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _writable(folder: Path) -> bool:
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        # Check the permission bits first: root (the usual user in a container) can write to a folder that its owner
        # has marked read-only. Then try to write: the bits do not show a read-only mount.
        if not existing.is_dir() or not existing.stat().st_mode & 0o222:
            return False
        probe = existing / f".{uuid.uuid4().hex}.tmp"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
