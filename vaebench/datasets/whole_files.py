"""Writing a file whole or not at all, however many processes write it at once."""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["first_writable", "replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to, and move it there when the block ends well.

    Missing folders are made. Whatever fails, ``path`` keeps its old content and the temporary file goes.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def first_writable(folders: Iterable[Path]) -> Path | None:
    """The first of ``folders`` that can be written to, or made, if there is one; leaves nothing behind."""
    return next((folder for folder in folders if _writable(folder)), None)


def _writable(folder: Path) -> bool:
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        # The permission bits come first: root, the usual user in a container, could write to a folder that
        # its owner has marked read-only. Then a trial, for the bits know nothing of read-only mounts.
        if not existing.is_dir() or not existing.stat().st_mode & 0o222:
            return False
        probe = existing / f".{uuid.uuid4().hex}.part"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
