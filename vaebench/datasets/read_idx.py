"""Read the IDX image files of MNIST and Fashion-MNIST."""

import struct
from pathlib import Path

import numpy as np

from vaebench.datasets.checksum import CorruptFile, read_bytes, require_digest, sha256

__all__ = ["read_idx"]

_IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions
_HEADER = struct.Struct(">IIII")


def read_idx(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images``, uint8 of shape (N, rows * columns), from an IDX file, plain or gzipped.

    ``expected`` is the SHA-256 of the unpacked file.

    Raises:
        CorruptFile: the checksum differs, or the header does not fit the bytes that follow.
    """
    del progress  # takes a tenth of a second
    content = read_bytes(path)
    require_digest(path, sha256(content), expected)
    if len(content) < _HEADER.size:
        raise CorruptFile(path, "shorter than an IDX header")
    magic, count, rows, columns = _HEADER.unpack_from(content)
    if magic != _IMAGES_MAGIC or len(content) != _HEADER.size + count * rows * columns:
        raise CorruptFile(path, "its header does not describe its content")
    images = np.frombuffer(content, np.uint8, offset=_HEADER.size)
    return {"images": images.reshape(count, rows * columns)}
