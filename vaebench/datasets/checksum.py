"""Read a file and compare its checksum with the published one."""

import gzip
import hashlib
import zlib
from pathlib import Path

__all__ = ["CorruptFile", "git_blob_id", "read_bytes", "require_digest", "sha256"]


class CorruptFile(Exception):
    """A file is not the published one; ``digest`` is the digest found, or empty where the file is unreadable."""

    def __init__(self, path: Path, reason: str, digest: str = "") -> None:
        super().__init__(f"{path} is truncated or altered ({reason})")
        self.digest = digest


def sha256(content: bytes) -> str:
    """Return the SHA-256 of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def git_blob_id(content: bytes) -> str:
    """Return the id under which git stores ``content``: SHA-1 of ``blob <size>``, a zero byte and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Return the content of ``path``, unpacked if its first bytes mark gzip, under any name.

    Raises:
        CorruptFile: the file cannot be read or unpacked.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptFile(path, str(error)) from error


def require_digest(path: Path, digest: str, expected: str) -> None:
    """Raise ``CorruptFile`` unless the digest of ``path`` is the expected one."""
    if digest != expected:
        raise CorruptFile(path, f"checksum {digest[:12]}..., expected {expected[:12]}...", digest)
