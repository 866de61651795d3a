"""Read the arrays of a file in any of the usual formats; the content decides the format, not the name.

No reader unpickles, runs or imports anything from a file, and none takes more memory than ``LARGEST_ARRAYS`` bytes and
a few times the size of the file.
"""

import gzip
import importlib.util
import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vaebench.files import npy_array, read_npz

__all__ = ["LARGEST_ARRAYS", "described", "kind_of", "read_arrays", "read_limited"]

LARGEST_ARRAYS = 1 << 33
"""The largest number of bytes of a file's arrays; images are kept in memory."""

_SNIFFED = 512  # bytes at the head of a file that tell its format
_GZIP = b"\x1f\x8b"
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}  # by the third byte of an IDX file
_ARFF_DATA = re.compile(rb"^\s*@data[^\n]*\n", re.IGNORECASE | re.MULTILINE)
_ARFF_NAME = re.compile(rb"^\s*@attribute\s+(\S+)", re.IGNORECASE | re.MULTILINE)
_ARFF_HEAD = 1 << 20  # bytes before the data
_IMAGE_HEADS = (b"\x89PNG", b"\xff\xd8\xff")
_LABELS = ("label", "labels", "class", "target", "y")
_PICKLES = (".pkl", ".pickle", ".p", ".pt", ".pth")


def described(head: bytes, name: str = "") -> str:
    """Return what a file is that cannot be used, by its first bytes and its name, as in "a pickle"; "" if unknown."""
    start = head.lstrip()[:200].lower()
    if head.startswith(b"version https://git-lfs.github.com/spec"):
        return "a Git LFS pointer, not the file itself: run `git lfs pull` where it comes from"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "an HTML page, not the file itself: download it again"
    suffixes = [suffix.lower() for suffix in Path(name).suffixes[-2:]]
    if re.match(rb"\x80[\x02-\x05]", head) or any(suffix in _PICKLES for suffix in suffixes):
        return "a pickle and is never opened, because a pickle can run code"
    if head.startswith(b"PAR1"):
        return "a parquet file; convert it to npz"
    return "" if head else "an empty file"


def kind_of(head: bytes) -> str:
    """Return the format of a file by its first bytes, unpacked: npz, npy, mat, hdf5, idx, image, text or ""."""
    if head.startswith(b"PK"):
        return "npz"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"MATLAB"):
        return "hdf5" if head.startswith(b"MATLAB 7.3") else "mat"
    if head.startswith(b"\x89HDF"):
        return "hdf5"
    if head[:2] == b"\0\0" and len(head) > 3 and head[2] in _IDX_TYPES and 0 < head[3] <= 4:
        return "idx"
    if head.startswith(_IMAGE_HEADS):
        return "image"
    return "text" if head and not re.search(rb"[\x00-\x08\x0e-\x1f\x7f-\xff]", head) else ""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of numbers in a file, by name; "" is the name of the array in a file that holds just one.

    Raises:
        ValueError: the file is none of the formats, is damaged, or is too large.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_SNIFFED)
    if head.startswith(_GZIP):
        content = read_limited(path)
        head = content[:_SNIFFED]
    else:
        content = None
    if what := described(head, path.name):
        raise ValueError(f"it is {what}")
    kind = kind_of(head)
    if kind not in _READERS:
        raise ValueError("it is none of: npz, npy, mat, hdf5, idx, amat, csv, a folder of images")
    try:
        return _READERS[kind](path.read_bytes() if content is None and kind in ("npy", "idx") else content or path)
    except (EOFError, KeyError, TypeError, OverflowError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"its {kind} content is damaged: {error}") from error


def read_limited(path: Path, largest: int = LARGEST_ARRAYS) -> bytes:
    """Return the content of ``path``, unpacked if its first bytes mark gzip. ValueError if it is larger or damaged."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            with gzip.open(raw) if packed else raw as file:
                content = file.read(largest + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"its gzip content is damaged: {error}") from error
    if len(content) > largest:
        raise ValueError(f"it has more than {largest} bytes")
    return content


Source = Path | bytes
"""A file, or its unpacked content."""


def _stream(source: Source) -> Any:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _npz(source: Source) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(_stream(source)) as archive:
        if other := next((name for name in archive.namelist() if not name.endswith(".npy")), None):
            raise ValueError(f"it is a zip file with {other}, not npz: unpack it and give the folder")
    return read_npz(_stream(source), LARGEST_ARRAYS)


def _npy(source: Source) -> dict[str, np.ndarray]:
    assert isinstance(source, bytes)
    return {"": npy_array(source)}


def _idx(source: Source) -> dict[str, np.ndarray]:
    assert isinstance(source, bytes)
    kind, dimensions = np.dtype(_IDX_TYPES[source[2]]), source[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack_from(f">{dimensions}I", source, 4)
    if math.prod(shape) * kind.itemsize != len(source) - start:
        raise ValueError(f"its header claims {shape} numbers of {kind.itemsize} bytes, but it has {len(source)} bytes")
    return {"": np.frombuffer(source, kind, offset=start).reshape(shape)}


def _mat(source: Source) -> dict[str, np.ndarray]:
    from scipy.io import loadmat, whosmat  # slow to import, and no other reader needs it
    from scipy.io.matlab import MatReadError

    try:
        listed = whosmat(_stream(source))
        numeric = [name for name, _, kind in listed if re.fullmatch(r"u?int\d+|single|double|logical", kind)]
        _check_size(sum(8 * math.prod(shape) for name, shape, _ in listed if name in numeric))
        arrays = loadmat(_stream(source), variable_names=numeric) if numeric else {}
    except (MatReadError, NotImplementedError, MemoryError) as error:
        raise ValueError(f"its mat content is damaged: {error}") from error
    return {name: arrays[name] for name in numeric if isinstance(arrays.get(name), np.ndarray)}


def _hdf5(source: Source) -> dict[str, np.ndarray]:
    if importlib.util.find_spec("h5py") is None:
        raise ValueError("it is an hdf5 file (or a mat file v7.3), which needs h5py: run `pip install h5py`")
    import h5py  # pyright: ignore[reportMissingImports]

    found: dict[str, Any] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf" and item.external is None:
            found[name] = item

    with h5py.File(_stream(source), "r") as file:
        file.visititems(keep)
        _check_size(sum(item.nbytes for item in found.values()))
        return {name: item[()] for name, item in found.items()}


def _text(source: Source) -> dict[str, np.ndarray]:
    """Read a table of numbers, one image a row, with commas (csv, arff) or spaces (amat) between them.

    A header line is optional. A column with the name of a label becomes the array ``labels``, no part of the images.
    """
    import pandas as pd  # slow to import, and no other reader needs it

    lines = source if isinstance(source, bytes) else source.read_bytes()
    names: list[str] = []
    if arff := _ARFF_DATA.search(lines[:_ARFF_HEAD]):
        names = [name.decode("utf-8", "replace").strip("\"'") for name in _ARFF_NAME.findall(lines[: arff.end()])]
        lines = lines[arff.end() :]
    if b"\0" in lines:
        raise ValueError("it is neither text nor another known format")
    first = lines[: lines.find(b"\n") + 1 or None].decode("utf-8", errors="replace").strip()
    cells = [cell.strip().strip("\"'") for cell in (first.split(",") if "," in first else first.split())]
    header = any(cell and not _is_number(cell) for cell in cells)  # an empty cell is a missing number
    separator = "," if "," in first else r"\s+"
    named = cells if header else names
    labels = [i for i, name in enumerate(named[: len(cells)]) if name.lower() in _LABELS]
    try:
        table = pd.read_csv(
            io.BytesIO(lines),
            sep=separator,
            header=None,
            skiprows=int(header),
            dtype={i: object if i in labels else np.float32 for i in range(len(cells))},  # exact up to 2**24
            skip_blank_lines=True,
            keep_default_na=False,
        )
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"its text is no table of numbers: {str(error).splitlines()[0]}") from error
    found = {"": table.drop(columns=labels).to_numpy(np.float32)}
    if len(labels) == 1:
        words = [str(word).strip("\"'") for word in table[labels[0]]]
        whole = all(re.fullmatch(r"-?\d{1,18}", word) for word in words)
        found["labels"] = np.array(words, np.int64) if whole else np.array(words)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_size(size: int) -> None:
    if size > LARGEST_ARRAYS:
        raise ValueError(f"its arrays have {size} bytes, expected at most {LARGEST_ARRAYS}")


_READERS: dict[str, Callable[[Any], dict[str, np.ndarray]]] = {
    "npz": _npz,
    "npy": _npy,
    "mat": _mat,
    "hdf5": _hdf5,
    "idx": _idx,
    "text": _text,
}
