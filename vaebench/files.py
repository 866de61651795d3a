"""Replace files whole, choose a folder that can be written to, and find the user's cache folder."""

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["first_writable", "remove", "replacing", "user_cache"]


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
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        if keep_old_as is not None and path.exists():
            os.replace(path, keep_old_as)
        os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    if os.name == "posix":
        with contextlib.suppress(OSError):  # the file is already in place; not every file system can sync a folder
            _sync(path.parent, os.O_RDONLY)


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
