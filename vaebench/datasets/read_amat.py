"""Read Larochelle's binarized MNIST: text files of zeros and ones, one image per line."""

from pathlib import Path

import numpy as np

from vaebench.datasets.checksum import CorruptFile, git_blob_id, read_bytes, require_digest

__all__ = ["read_amat"]

_PIXELS = 784
_ZERO, _ONE, _WHITESPACE = ord("0"), ord("1"), b" \t\r\n"


def read_amat(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images``, uint8 of shape (N, 784) with values 0 and 255, from an ``.amat`` file.

    ``expected`` is the file's git blob id.

    Raises:
        CorruptFile: the id differs, or the text is not rows of 784 zeros and ones.
    """
    del progress  # takes one second
    content = read_bytes(path)
    require_digest(path, git_blob_id(content), expected)
    characters = np.frombuffer(content, np.uint8)
    digits = characters[(characters == _ZERO) | (characters == _ONE)]
    spaces = sum(content.count(bytes([space])) for space in _WHITESPACE)
    if digits.size + spaces != characters.size or digits.size % _PIXELS:
        raise CorruptFile(path, f"not rows of {_PIXELS} zeros and ones")
    return {"images": ((digits - _ZERO) * np.uint8(255)).reshape(-1, _PIXELS)}
