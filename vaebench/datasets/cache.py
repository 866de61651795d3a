"""Keep the pixels of each protocol in one compact file, so that a second start reads only that file."""

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from vaebench.datasets.arrays import Arrays
from vaebench.datasets.checksum import CorruptFile
from vaebench.datasets.protocol import Protocol
from vaebench.files import replacing, user_cache

__all__ = ["cache_paths", "cached_files", "read", "write"]

_FOLDER = "vaebench"
_LEVEL = 3  # of zip compression
_PARTS = ("train", "validation", "test", "grey_validation", "grey_test")


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
    """Read a protocol's pixels and verify their fingerprint.

    Raises:
        CorruptFile: the file is not a cache file, is for another protocol, or its pixels have another fingerprint.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            header = json.loads(stored["header"].item())
            arrays = Arrays(**{name: stored[name] for name in _PARTS if name in stored.files})
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFile(path, str(error)) from error
    if header != {"protocol": str(protocol), "fingerprint": arrays.fingerprint()}:
        raise CorruptFile(path, "its pixels do not match its header")
    return arrays


def _roots(data_dir: Path) -> list[Path]:
    return [data_dir / _FOLDER, user_cache() / "prepared"]
