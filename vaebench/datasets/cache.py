"""One compact file per protocol, so that the second start reads pixels and nothing else."""

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from vaebench.datasets.arrays import Arrays
from vaebench.datasets.checked import Damaged
from vaebench.datasets.protocol import Protocol
from vaebench.files import replacing, user_cache

__all__ = ["cached_files", "places", "read", "write"]

_FOLDER = "vaebench"
_LEVEL = 3  # of deflate
_PARTS = ("train", "validation", "test", "grey_validation", "grey_test")


def places(protocol: Protocol, data_dir: Path) -> list[Path]:
    """Where a protocol's file may be: below ``data_dir``, else in the user's cache."""
    return [root / f"{protocol.slug}.npz" for root in _roots(data_dir)]


def cached_files(name: str, data_dir: Path) -> tuple[Path, ...]:
    """The prepared files of every protocol of one dataset."""
    return tuple(path for root in _roots(data_dir) for path in sorted(root.glob(f"{name}-*.npz")))


def write(path: Path, protocol: Protocol, arrays: Arrays) -> None:
    """Write the pixels and their fingerprint, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    header = json.dumps({"protocol": str(protocol), "fingerprint": arrays.fingerprint()})
    members = {"header": np.array(header), **arrays.parts()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as part,
        zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive,
    ):
        for name, array in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read(path: Path, protocol: Protocol) -> Arrays:
    """Read a protocol's pixels and verify them by their fingerprint.

    Raises:
        Damaged: not such a file, another protocol's, or pixels that do not have the fingerprint.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            header = json.loads(stored["header"].item())
            arrays = Arrays(**{name: stored[name] for name in _PARTS if name in stored.files})
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise Damaged(path, str(error)) from error
    if header != {"protocol": str(protocol), "fingerprint": arrays.fingerprint()}:
        raise Damaged(path, "its pixels are not those that its header names")
    return arrays


def _roots(data_dir: Path) -> list[Path]:
    return [data_dir / _FOLDER, user_cache() / "prepared"]
