"""Keep the pixels of each protocol in one compact file, so that a second start reads only that file."""

import json
import zipfile
from pathlib import Path

import numpy as np

from vaebench.datasets.arrays import Arrays, departure
from vaebench.datasets.checksum import CorruptFile
from vaebench.datasets.protocol import Protocol
from vaebench.files import read_npz, replacing, user_cache

__all__ = ["cache_paths", "cached_files", "read", "write"]

_FOLDER = "vaebench"
_LEVEL = 3  # of zip compression
_HEADERS = 1 << 16  # bytes, more than the headers of a file's members need


def cache_paths(protocol: Protocol, data_dir: Path) -> list[Path]:
    """Return the paths that a protocol's file may have: below ``data_dir``, then in the user's cache folder."""
    return [root / f"{protocol.slug}.npz" for root in _roots(data_dir)]


def cached_files(name: str, data_dir: Path) -> list[Path]:
    """Return the existing cache files of all protocols of a dataset."""
    return [path for root in _roots(data_dir) for path in root.glob(f"{name}-*.npz")]


def write(path: Path, protocol: Protocol, arrays: Arrays) -> None:
    """Write the pixels and their fingerprint; create missing folders.

    Raises:
        OSError: the folder cannot be written to.
    """
    header = json.dumps({"protocol": str(protocol), "fingerprint": arrays.fingerprint()})
    members = {"header": np.array(header), **arrays.parts()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive,
    ):
        for name, array in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read(path: Path, protocol: Protocol) -> Arrays:
    """Read a protocol's pixels and verify them against the file's header and the catalog.

    Raises:
        CorruptFile: the file is not a cache file, is for another protocol, or its pixels have another fingerprint or
            are not the published ones.
    """
    train, validation, test = protocol.sizes
    sizes = {"train": train, "validation": validation, "test": test}
    if protocol.drawn:
        sizes |= {"grey_validation": validation, "grey_test": test}
    try:
        stored = read_npz(path, sum(sizes.values()) * protocol.info.numbers + _HEADERS)
        header = json.loads(stored.pop("header").item())
        found = {name: (array.shape, array.dtype) for name, array in stored.items()}
        if found != {name: ((size, protocol.info.numbers), np.uint8) for name, size in sizes.items()}:
            raise ValueError("its arrays have other shapes or types")
        arrays = Arrays(**stored)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(path, str(error)) from error
    if header != {"protocol": str(protocol), "fingerprint": arrays.fingerprint()}:
        raise CorruptFile(path, "its pixels do not match its header")
    if reason := departure(arrays, protocol):
        raise CorruptFile(path, reason)
    return arrays


def _roots(data_dir: Path) -> list[Path]:
    return [data_dir / _FOLDER, user_cache() / "prepared"]
