"""The IDX image files of MNIST and Fashion-MNIST."""

import struct
from pathlib import Path

import numpy as np

from vaebench.datasets.checked import Damaged, read_bytes, require, sha256

__all__ = ["read_images"]

_IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions
_HEADER = struct.Struct(">IIII")


def read_images(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Read ``images``, uint8 of shape (N, rows * columns), from an IDX file, plain or gzipped.

    ``expected`` is the SHA-256 of the unpacked file.

    Raises:
        Damaged: the checksum differs, or the header does not describe the bytes that follow.
    """
    del progress  # one read: over before a bar could show
    content = read_bytes(path)
    require(path, sha256(content), expected)
    if len(content) < _HEADER.size:
        raise Damaged(path, "shorter than an IDX header")
    magic, count, rows, columns = _HEADER.unpack_from(content)
    if magic != _IMAGES_MAGIC or len(content) != _HEADER.size + count * rows * columns:
        raise Damaged(path, "its header does not describe its content")
    images = np.frombuffer(content, np.uint8, offset=_HEADER.size)
    return {"images": images.reshape(count, rows * columns)}
