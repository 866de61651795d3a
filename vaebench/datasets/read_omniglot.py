"""Read the IWAE paper's 28x28 Omniglot: the MATLAB file chardata.mat, with pixels stored column by column."""

import io
from pathlib import Path

import numpy as np

from vaebench.datasets.checksum import CorruptFile, git_blob_id, read_bytes, require_digest

__all__ = ["read_omniglot"]

_SIDE = 28


def read_omniglot(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``data`` and ``testdata``, uint8 of shape (N, 784), upright and row by row.

    ``expected`` is the file's git blob id. Grey levels in [0, 1] become the nearest byte.

    Raises:
        CorruptFile: the id differs, or an array does not hold 784 grey levels per image.
    """
    del progress  # takes a tenth of a second
    from scipy.io import loadmat  # slow to import, and no other reader needs it

    content = read_bytes(path)
    require_digest(path, git_blob_id(content), expected)
    arrays = loadmat(io.BytesIO(content), variable_names=["data", "testdata"])
    return {name: _upright_bytes(path, arrays.get(name)) for name in ("data", "testdata")}


def _upright_bytes(path: Path, levels: np.ndarray | None) -> np.ndarray:
    """Turn grey levels (784, N), column by column, into bytes (N, 784), row by row."""
    if levels is None or levels.ndim != 2 or levels.shape[0] != _SIDE * _SIDE:
        raise CorruptFile(path, f"it does not hold {_SIDE * _SIDE} pixels an image")
    if not (levels.min() >= 0 and levels.max() <= 1):
        raise CorruptFile(path, "grey levels outside [0, 1]")
    columns = np.rint(255 * levels.T).astype(np.uint8).reshape(-1, _SIDE, _SIDE)
    return columns.transpose(0, 2, 1).reshape(-1, _SIDE * _SIDE)
