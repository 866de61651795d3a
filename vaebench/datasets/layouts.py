"""Search for published files in the forms that people have: other names and folders, zip, npz, csv, arff, unpacked.

Nothing is taken by its name: each form is brought to the published content, and its checksum decides. So the files of
MNIST and Fashion-MNIST, which have the same names, are never confused.
"""

import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vaebench.datasets.array_files import described, read_arrays
from vaebench.datasets.catalog import CATALOG
from vaebench.datasets.checksum import CorruptFile, sha256
from vaebench.datasets.published_files import PUBLISHED_FILES, FileArrays, PublishedFile
from vaebench.datasets.read_omniglot_original import read_omniglot_original
from vaebench.datasets.readers import read_idx

__all__ = ["Search", "explained", "likely"]

_DEPTH, _MOST_ENTRIES = 5, 20_000  # of the folders to search: data_dir may hold anything
_MOST_REMARKS = 3
_LARGEST_CONTAINER = 1 << 30  # bytes; MNIST as csv has 130 MB
_CONTAINERS = (".npz", ".csv", ".arff", ".zip")
_PICKLES = (".pkl", ".pickle", ".pt")
_ARCHIVES = (".tar", ".tgz", ".rar", ".7z")
_UNUSED = (*_PICKLES, *_ARCHIVES, ".parquet", ".h5", ".hdf5", ".tfrecord", ".bin")


class Search:
    """The files below ``data_dir`` that may hold one dataset; ``remarks``: what lies there and cannot be used."""

    def __init__(
        self, name: str, data_dir: Path, progress: bool = False, files: Sequence[PublishedFile] | None = None
    ) -> None:
        """``files``: of the dataset; by default those of its images."""
        self.name = name
        self.remarks: list[str] = []
        self._progress = progress
        self._places = _places(name, data_dir, files)
        self._tables: dict[Path, list[np.ndarray]] = {}

    def read(self, file: PublishedFile) -> FileArrays | None:
        """Return the content of one published file in any form, or None."""
        for path in self._places:
            try:
                found = self._try(path, file)
            except CorruptFile as error:
                self._remark(explained(error, path, self.name))
            except (OSError, ValueError) as error:
                self._remark(f"{path}: {error}")
            else:
                if found is not None:
                    return found
        return None

    def _remark(self, line: str) -> None:
        if line not in self.remarks and len(self.remarks) < _MOST_REMARKS:
            self.remarks.append(line)

    def _try(self, path: Path, file: PublishedFile) -> FileArrays | None:
        """Return the content of ``file`` from one place; None if the place is not for this file."""
        names = {_plain(name) for name in file.names}
        if os.path.isdir(path):
            unpacked = file.read is read_omniglot_original and _fits(path, names)
            return file.read(path, file.digest, self._progress) if unpacked else None
        if _plain(path.name) in names:
            return file.read(path, file.digest, self._progress)
        kind = _suffix(path)
        if kind == ".zip":
            return self._try_zip(path, file)
        if kind in _CONTAINERS and file.read is read_idx:
            return self._try_tables(path, file)
        if kind in _UNUSED:
            what = "packed: unpack it" if kind in _ARCHIVES else "in a format that is not read"
            self._remark(f"{path} is {described(b'?', path.name) or what}")
        return None

    def _try_zip(self, path: Path, file: PublishedFile) -> FileArrays | None:
        names, failure = {_plain(name) for name in file.names}, None
        with zipfile.ZipFile(path) as archive, TemporaryDirectory() as folder:
            for member in archive.infolist():
                base = Path(member.filename).name
                if _plain(base) not in names and not (file.read is read_idx and _suffix(Path(base)) in _CONTAINERS[:3]):
                    continue
                if member.file_size > _LARGEST_CONTAINER:
                    raise ValueError(f"{member.filename} has {member.file_size} bytes")
                copy = Path(folder, base)
                with archive.open(member) as packed, copy.open("wb") as out:
                    left = member.file_size
                    while left > 0 and (chunk := packed.read(min(left, 1 << 20))):
                        left -= len(chunk)
                        out.write(chunk)
                try:
                    if (found := self._try(copy, file)) is not None:
                        return found
                except ValueError as error:  # another member may be the one
                    failure = error
        if failure is not None:
            raise failure
        return None

    def _try_tables(self, path: Path, file: PublishedFile) -> FileArrays | None:
        """Return the images of a table if, written as an IDX file, they have the published checksum."""
        if path not in self._tables:
            self._tables = {path: list(_tables(path, CATALOG[self.name].numbers))}  # one is kept: a table is large
        _, height, width = CATALOG[self.name].shape
        n_test = CATALOG[self.name].splits["default"][2]
        for table in self._tables[path]:
            for rows in (table, table[:-n_test], table[-n_test:]):
                header = struct.pack(">IIII", 0x803, len(rows), height, width)
                if sha256(header + rows.tobytes()) == file.digest:
                    return {"images": rows}
        raise ValueError(f"it does not hold the published images of dataset={self.name} ({file.names[0]})")


def likely(name: str, data_dir: Path) -> list[Path]:
    """Return the paths below ``data_dir`` that may hold all files of a dataset, [] if some are missing.

    Names decide, also those of the members of zip files; no content is read.
    """
    names, hint = [{_plain(published) for published in file.names} for file in PUBLISHED_FILES[name]], _hint(name)
    tables = PUBLISHED_FILES[name][0].read is read_idx
    others = {file.names[0] for other, files in PUBLISHED_FILES.items() if other != name for file in files}
    shared = name != "mnist" and any(file.names[0] in others for file in PUBLISHED_FILES[name])  # MNIST's names
    found: dict[int, Path] = {}
    for path in _places(name, data_dir):
        if shared and hint not in _squeezed(path, data_dir):
            continue
        inside = _members(path) if _suffix(path) == ".zip" else [path]
        for member in inside:
            whole = (
                tables
                and _suffix(member) in _CONTAINERS[:3]
                and (member is not path or hint in _squeezed(path, path.parent))
            )
            for number, some in enumerate(names):
                if whole or _fits(member, some):
                    found.setdefault(number, path)
    return list(dict.fromkeys(found.values())) if len(found) == len(names) else []


def _members(path: Path) -> list[Path]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [path, *(Path(name) for name in archive.namelist())]
    except (OSError, ValueError, zipfile.BadZipFile):
        return [path]


def _hint(name: str) -> str:
    """Return the word that the names of a dataset's containers, or their folders, have."""
    return name.removesuffix("_original").replace("_", "")


def _squeezed(path: Path, root: Path) -> str:
    """Return a path from the folder ``root`` on, its name included, as letters and digits."""
    return re.sub(r"[^a-z0-9]", "", str(path.relative_to(root.absolute().parent)).lower())


def _fits(path: Path, names: set[str]) -> bool:
    """Whether a path has one of a file's plain names, or that of the folder that it unpacks to."""
    return _plain(path.name) in names | {word.removesuffix("-zip") for word in names}


def explained(error: CorruptFile, path: Path, name: str) -> str:
    """Return the message of a file that is not the published one, with what it is instead where that is known."""
    for other, files in PUBLISHED_FILES.items():
        for file in files:
            if error.digest and error.digest == file.digest:
                return f"{path} holds the content of {file.names[0]} of dataset={other}"
    try:
        with path.open("rb") as stream:
            what = described(stream.read(512), path.name)
    except OSError:
        what = ""
    return f"{path} is {what}" if what else str(error)


def _places(name: str, data_dir: Path, files: Sequence[PublishedFile] | None = None) -> list[Path]:
    """Return the files and folders that may hold a dataset: published names first, then containers by their names."""
    names = {_plain(published) for file in files or PUBLISHED_FILES[name] for published in file.names}
    names |= {word.removesuffix("-zip") for word in names}  # the folder of an unpacked zip file
    hint, root = _hint(name), data_dir.absolute()
    named, containers = [], []
    for path in _entries(root):
        if _plain(path.name) in names:
            named.append(path)
        elif _suffix(path) in (*_CONTAINERS, *_UNUSED) and os.path.isfile(path):
            near = hint in _squeezed(path, root) or (path.parent == root and _suffix(path) in _CONTAINERS)
            if near and os.path.getsize(path) <= _LARGEST_CONTAINER:
                containers.append(path)
    return named + containers


def _entries(root: Path) -> Iterator[Path]:
    """Yield files and folders below ``root``, the nearest first; without hidden ones and the cache of vaebench."""
    level, count, seen = [root], 0, set()
    for _ in range(_DEPTH):
        below: list[Path] = []
        for folder in level:
            try:
                state = os.stat(folder)
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                continue
            if (state.st_dev, state.st_ino) in seen:  # links in a circle
                continue
            seen.add((state.st_dev, state.st_ino))
            for entry in entries:
                count += 1
                if count > _MOST_ENTRIES:
                    return
                if entry.name.startswith(".") or (folder == root and entry.name == "vaebench"):
                    continue
                yield Path(entry.path)
                if entry.is_dir():
                    below.append(Path(entry.path))
        level = below


def _plain(name: str) -> str:
    """Return a name without differences that programs make: dots, dashes and underscores, case, ``.gz``."""
    return re.sub(r"[._ ]", "-", name.lower().removesuffix(".gz"))


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _tables(path: Path, numbers: int) -> Iterator[np.ndarray]:
    """Yield the tables of bytes in a file, (N, numbers), with a column of labels left out."""
    for array in read_arrays(path).values():
        if array.ndim < 2 or array.dtype.kind not in "uif" or len(array) == 0:
            continue
        rows = array.reshape(len(array), -1)
        cuts: list[Callable[[np.ndarray], np.ndarray]] = []
        if rows.shape[1] == numbers:
            cuts = [lambda a: a]
        elif rows.shape[1] == numbers + 1:
            cuts = [lambda a: a[:, 1:], lambda a: a[:, :-1]]
        for cut in cuts:
            pixels = cut(rows)
            if pixels.min() >= 0 and pixels.max() <= 255:
                yield np.ascontiguousarray(pixels, np.uint8)
