"""The 28x28 Omniglot of the IWAE paper: one MATLAB file, pixels stored column by column."""

import io
from pathlib import Path

import numpy as np

from vaebench.datasets.checked import Damaged, git_blob_id, read_bytes, require

__all__ = ["from_columns", "read_chardata"]

_SIDE = 28


def read_chardata(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Read ``data`` and ``testdata``, uint8 of shape (N, 784), upright and row by row.

    ``expected`` is the file's git blob id. Its grey levels in [0, 1] become the nearest byte.

    Raises:
        Damaged: the id differs, or the two arrays are not 784 grey levels an image.
    """
    del progress  # one read
    from scipy.io import loadmat  # slow to import, and only this reader needs it

    content = read_bytes(path)
    require(path, git_blob_id(content), expected)
    arrays = loadmat(io.BytesIO(content), variable_names=["data", "testdata"])
    return {name: _bytes_of(path, arrays.get(name)) for name in ("data", "testdata")}


def from_columns(pixels: np.ndarray) -> np.ndarray:
    """Turn images stored column by column, (N, 784), into the usual row-by-row order."""
    return pixels.reshape(-1, _SIDE, _SIDE).transpose(0, 2, 1).reshape(-1, _SIDE * _SIDE)


def _bytes_of(path: Path, levels: np.ndarray | None) -> np.ndarray:
    if levels is None or levels.ndim != 2 or levels.shape[0] != _SIDE * _SIDE:
        raise Damaged(path, f"it does not hold {_SIDE * _SIDE} pixels an image")
    if not (levels.min() >= 0 and levels.max() <= 1):
        raise Damaged(path, "grey levels outside [0, 1]")
    return from_columns(np.rint(255 * levels.T).astype(np.uint8))
