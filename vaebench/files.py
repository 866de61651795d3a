"""Replace files whole, open no links, read arrays, choose a writable folder, and find the user's cache folder."""

import contextlib
import errno
import glob
import io
import math
import os
import stat
import struct
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    "clean_temporaries",
    "fcntl",
    "first_writable",
    "member_of",
    "npy_array",
    "read_npz",
    "regular",
    "remove",
    "replacing",
    "user_cache",
]

_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags of a member
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_USUAL_HEADER = 256  # bytes, of an array in an .npz file
_ABANDONED_SECONDS = 86400  # where a lock cannot tell whether the writer of a temporary file still exists


@contextlib.contextmanager
def replacing(path: Path, *, keep_old_as: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to, and move that file to ``path`` if the block succeeds.

    A kill or a power cut leaves the old file or the new one at ``path``, never a part. If the block fails, the
    old file stays and the temporary file is removed. Any number of processes may write to ``path`` at once. The
    temporary files of killed writers of ``path`` are removed first.

    Args:
        path: the file to replace; its folder must exist.
        keep_old_as: move the old file there first. A kill between the two moves leaves no file at ``path``.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    _clean(path.parent, f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.tmp")
    temporary, release = _claimed(path)
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
    _clean(folder, ".*.tmp")


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


def read_npz(file: Path | IO[bytes], largest: int, names: Collection[str] | None = None) -> "dict[str, np.ndarray]":
    """Read the arrays of an .npz file; their bytes, unpacked and with headers, are at most ``largest``.

    With ``names``, read only the arrays with these names, as far as they are there.

    A file can claim any size, and packed bytes can unpack to any size: a claim is compared before memory is allocated.
    Python objects are refused, so no code of the file runs.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is larger, corrupt, or no .npz file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if before := min((member.header_offset for member in members), default=0):
                raise ValueError(f"{before} bytes precede its arrays")
            size = sum(member.file_size for member in members)
            if size > largest:
                raise ValueError(f"its arrays have {size} bytes, expected at most {largest}")
            named = {member.filename.removesuffix(".npy"): member for member in members}
            chosen = named if names is None else [name for name in named if name in names]
            return {name: npy_array(_array_bytes(archive, named[name])) for name in chosen}
    # RuntimeError: a password, or an unknown compression.
    except (EOFError, RuntimeError, TypeError, OverflowError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise ValueError(str(error)) from error


def member_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return a member's bytes. It is unpacked up to the size that it claims; `ZipFile.read` would unpack everything."""
    with archive.open(member) as file:
        return file.read(member.file_size)


def _array_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return `member_of`; of a member that is not packed in a third of the time, because thousands are read."""
    file = archive.fp
    if file is None or member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        return member_of(archive, member)
    file.seek(member.header_offset)
    mark, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    coding = "utf-8" if member.flag_bits & _UTF8 else "cp437"
    if mark != b"PK\x03\x04" or file.read(name).decode(coding) != member.orig_filename:
        raise ValueError(f"the directory and the header of {member.filename!r} differ")
    file.seek(extra, os.SEEK_CUR)
    content = file.read(member.file_size)
    if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
        raise ValueError(f"the checksum of {member.filename!r} is wrong")
    return content


def npy_array(content: bytes) -> "np.ndarray":
    """Return the array in the content of an .npy file. ValueError if it is damaged or holds Python objects."""
    import numpy as np

    # The header of version 1.0 that numpy writes; thousands of arrays have the same one.
    length = 10 + int.from_bytes(content[8:10], "little")
    usual = content[6:8] == b"\x01\x00" and length <= _USUAL_HEADER
    shape, fortran_order, dtype, start = (_usual_header if usual else _header)(content[:length] if usual else content)
    if dtype.hasobject:
        raise ValueError("an array holds Python objects")
    if math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError("an array's header does not describe its content")
    order = "F" if fortran_order else "C"
    # A copy of the bytes that can be written to.
    return np.ndarray(shape, dtype, bytearray(content), start, order=order)


def _header(content: bytes) -> "tuple[tuple[int, ...], bool, np.dtype, int]":
    """Return the shape, whether the order is Fortran's, the type, and where the numbers start."""
    import numpy as np

    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an array has format {version}, expected one of {', '.join(map(str, readers))}")
    try:
        return *readers[version](stream), stream.tell()
    except Exception as error:  # numpy parses the header with Python's own parsers, which raise errors of many kinds
        raise ValueError(f"an array's header is not readable ({type(error).__name__})") from error


_usual_header = lru_cache(maxsize=256)(_header)


def first_writable(folders: Iterable[Path]) -> Path | None:
    """Return the first folder that can be written to or created, or None; create nothing."""
    return next((folder for folder in folders if _writable(folder)), None)


def user_cache() -> Path:
    """Return the user's cache folder for vaebench: ``~/.cache/vaebench`` on Linux, or below ``$XDG_CACHE_HOME``."""
    from platformdirs import user_cache_path

    return user_cache_path("vaebench", appauthor=False, opinion=False)


def _claimed(path: Path) -> tuple[Path, Callable[[], None]]:
    """Create and lock a temporary file of ``path``, so that no process cleans it; return it and what ends the lock."""
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        if fcntl is None:  # Windows, where an open file cannot be moved
            return temporary, lambda: None
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # another process cleans it at this moment
        except OSError:
            return temporary, partial(os.close, descriptor)  # without flock, its age decides
        else:
            if os.fstat(descriptor).st_nlink:  # 0 where another process cleaned it before the lock
                return temporary, partial(os.close, descriptor)
        os.close(descriptor)


def _clean(folder: Path, pattern: str) -> None:
    """Delete the temporary files in ``folder`` that no process writes any more."""
    for temporary in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may move or delete it meanwhile
            _remove_abandoned(temporary)


def _remove_abandoned(temporary: Path) -> None:
    """Delete ``temporary`` if no process writes it any more; the lock is held until it is deleted."""
    try:
        with open(temporary, "rb+", opener=regular) as file:
            if fcntl is not None:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(temporary)
                return
    except BlockingIOError:
        return
    except OSError:
        pass  # no locks here
    if time.time() - temporary.lstat().st_mtime > _ABANDONED_SECONDS:
        remove(temporary)


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
