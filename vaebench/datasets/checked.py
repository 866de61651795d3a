"""Reading a file only after its checksum has been compared with the one on record."""

import gzip
import hashlib
import zlib
from pathlib import Path

__all__ = ["Damaged", "git_blob_id", "read_bytes", "require", "sha256"]


class Damaged(Exception):
    """A file that exists but is not the one on record; ``digest`` is its hash, where that is known."""

    def __init__(self, path: Path, reason: str, digest: str = "") -> None:
        super().__init__(f"{path} is truncated or altered ({reason})")
        self.path = path
        self.digest = digest


def sha256(content: bytes) -> str:
    """The SHA-256 of ``content`` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def git_blob_id(content: bytes) -> str:
    """The id under which git stores ``content``: SHA-1 of ``blob <size>``, a zero byte and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_bytes(path: Path) -> bytes:
    """The content of ``path``, unpacked if it is gzip by its first bytes (names may lie).

    Raises:
        Damaged: the file cannot be read or unpacked.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(path, str(error)) from error


def require(path: Path, digest: str, expected: str) -> None:
    """Raise ``Damaged`` unless the digest of ``path`` is the expected one."""
    if digest != expected:
        raise Damaged(path, f"checksum {digest[:12]}..., expected {expected[:12]}...", digest)
