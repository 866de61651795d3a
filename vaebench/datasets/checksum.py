"""Read a file and compare its checksum with the published one."""

import gzip
import hashlib
import zlib
from pathlib import Path

__all__ = ["LARGEST", "CorruptFile", "git_blob_id", "md5", "read_bytes", "require_digest", "sha256"]


LARGEST = 1 << 28
"""A number of bytes above the size of every published file, unpacked."""


class CorruptFile(Exception):
    """A file is not the published one; ``digest`` is the digest found, or empty where the file is unreadable."""

    def __init__(self, path: Path, reason: str, digest: str = "") -> None:
        super().__init__(f"{path} is truncated or altered ({reason})")
        self.digest = digest


def sha256(content: bytes) -> str:
    """Return the SHA-256 of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def md5(content: bytes) -> str:
    """Return the MD5 of ``content`` in hexadecimal: the only published checksum of some files."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def git_blob_id(content: bytes) -> str:
    """Return the id under which git stores ``content``: SHA-1 of ``blob <size>``, a zero byte and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Return the content of ``path``, unpacked if its first bytes mark gzip, under any name.

    Raises:
        CorruptFile: the file cannot be read or unpacked, or is larger than any published file.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if packed else raw as file:
                content = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptFile(path, str(error)) from error
    if len(content) > LARGEST:
        raise CorruptFile(path, f"it has more than {LARGEST} bytes")
    return content


def require_digest(path: Path, digest: str, expected: str) -> None:
    """Raise ``CorruptFile`` unless the digest of ``path`` is the expected one."""
    if digest != expected:
        raise CorruptFile(path, f"checksum {digest[:12]}..., expected {expected[:12]}...", digest)
