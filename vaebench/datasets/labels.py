"""The labels of images, in the order of their splits: read when they are asked for, and part of no fingerprint.

Labels are split by the function that splits the images (``SPLITTERS``, ``split_own``), with labels in their place.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vaebench.datasets.checksum import CorruptFile, git_blob_id, md5, read_bytes, require_digest, sha256
from vaebench.datasets.download import find_or_download
from vaebench.datasets.protocol import OWN, Protocol
from vaebench.datasets.published_files import PUBLISHED_FILES, FileArrays, PublishedFile
from vaebench.datasets.read_omniglot_original import read_omniglot_original
from vaebench.datasets.readers import mat_arrays
from vaebench.datasets.splits import SPLITTERS
from vaebench.errors import UserError

__all__ = ["Labels", "labels_of"]

Labels = dict[str, dict[str, np.ndarray]]
"""By name and split, (N,) each: ``labels``, and ``alphabets`` of both Omniglots."""

_LABELS_MAGIC = b"\0\0\x08\x01"  # unsigned bytes, one dimension
_INTEGERS = ("BININT", "BININT1", "BININT2", "INT", "LONG1")
_WITHOUT_MEANING = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE", "EMPTY_LIST", "MARK", "APPENDS", "APPEND")
_PARTS = ("train", "validation", "test")


def labels_of(protocol: Protocol, data_dir: Path, own: Mapping[str, Any]) -> Labels | str:
    """Return the labels of a protocol's images, or why there are none. Missing files of labels are downloaded.

    Args:
        protocol: of the images.
        data_dir: the folder of the data.
        own: the settings of own images: ``path`` and ``shape``.
    """
    data_dir = data_dir.expanduser()
    try:
        if protocol.dataset.startswith(f"{OWN}-"):
            return _of_own(data_dir, protocol, own)
        if protocol.dataset not in _FILES:
            return f"the files of dataset={protocol.dataset} hold none"
        return _published(protocol, data_dir)
    except UserError as error:
        return str(error)


def _published(protocol: Protocol, data_dir: Path) -> Labels:
    name = protocol.dataset
    files = find_or_download(name, data_dir, _FILES[name], progress=False)
    found: Labels = {}
    for kind in dict.fromkeys(kind for arrays in files for kind in arrays if kind in ("labels", "alphabets")):
        parts = SPLITTERS[name]([_in_place_of_images(arrays, kind) for arrays in files], protocol)
        sizes = tuple(map(len, parts))
        if sizes != protocol.sizes:
            raise UserError(f"the files of dataset={name} give {sizes} {kind}, expected {protocol.sizes}")
        found[kind] = dict(zip(_PARTS, parts, strict=True))
    return found


def _in_place_of_images(arrays: FileArrays, kind: str) -> FileArrays:
    """Return the arrays of a file as a splitter takes them, with labels where it expects images."""
    named = {name.removeprefix(f"{kind}_"): array for name, array in arrays.items() if name.startswith(f"{kind}_")}
    return {**arrays, "images": arrays[kind], **named}


def _of_own(data_dir: Path, protocol: Protocol, own: Mapping[str, Any]) -> Labels | str:
    from vaebench.datasets.own import located, own_labels, read_own, split_own

    path = located(own.get("path"), data_dir)
    images = read_own(path, own.get("shape"))
    found = own_labels(path, images)
    if isinstance(found, str):
        return found
    parts = split_own(replace(images, parts=found), protocol.seed)
    return {"labels": {part: rows[:, 0] for part, rows in zip(_PARTS, parts, strict=True)}}


# Files of labels ------------------------------------------------------------------------------------------


def _idx(path: Path, expected: str, progress: bool = False, *, packed: bool = False) -> FileArrays:
    """Return ``labels`` (N,) from an IDX file.

    Args:
        path: the file.
        expected: the SHA-256 of the unpacked content; with ``packed`` the MD5 of the packed file; "" for no check.
        progress: is not shown.
        packed: whether only the checksum of the packed file is published.
    """
    del progress
    content = read_bytes(path)
    if packed:
        raw = path.read_bytes()
        if raw == content:
            raise CorruptFile(path, "only the packed .gz file has a published checksum", sha256(content))
        require_digest(path, md5(raw), expected)
    elif expected:
        require_digest(path, sha256(content), expected)
    if content[:4] != _LABELS_MAGIC or len(content) != 8 + int.from_bytes(content[4:8], "big"):
        raise CorruptFile(path, "its header does not describe labels")
    return {"labels": np.frombuffer(content, np.uint8, offset=8).astype(np.int64)}


def _cifar(path: Path, expected: str, progress: bool = False) -> FileArrays:
    """Return ``labels`` (N,) from a batch of CIFAR-10, a pickle that is never unpickled: see `readers.read_cifar`."""
    del progress
    content = read_bytes(path)
    require_digest(path, md5(content), expected)
    labels: list[int] = []
    inside = False
    for operation, value, _ in pickletools.genops(content):
        if value in ("labels", b"labels"):
            inside = True
        elif inside and isinstance(value, int) and operation.name in _INTEGERS:
            labels.append(value)
        elif inside and operation.name not in _WITHOUT_MEANING:
            break
    return {"labels": np.array(labels, np.int64)}


def _omniglot(path: Path, expected: str, progress: bool = False) -> FileArrays:
    """Return ``labels``, for example "Greek/character07", and ``alphabets`` of the original drawings, (N,) each."""
    arrays = read_omniglot_original(path, expected, progress)
    names = [folder.split("/")[-2:] for folder in arrays["folders"].tolist()]
    characters, alphabets = ["/".join(pair) for pair in names], [alphabet for alphabet, _ in names]
    return {**arrays, "labels": np.array(characters), "alphabets": np.array(alphabets)}


def _chardata(path: Path, expected: str, progress: bool = False) -> FileArrays:
    """Return ``labels``, for example "alphabet07/character12", and ``alphabets`` from the IWAE paper's chardata.mat.

    The file has numbers in place of names: a column of 50 zeros and a one for the alphabet, and the character in it.
    ``labels`` and ``alphabets`` are of its training images; ``labels_data`` and ``labels_testdata`` are as its images.
    """
    del progress
    content = read_bytes(path)
    require_digest(path, git_blob_id(content), expected)
    found = mat_arrays(path, content, ("target", "targetchar", "testtarget", "testtargetchar"))
    named: FileArrays = {}
    for images, prefix in (("data", ""), ("testdata", "test")):
        alphabets = [f"alphabet{number:02d}" for number in 1 + found[f"{prefix}target"].argmax(0)]
        characters = found[f"{prefix}targetchar"].ravel().astype(np.int64)
        pairs = zip(alphabets, characters, strict=True)
        named[f"labels_{images}"] = np.array([f"{alphabet}/character{number:02d}" for alphabet, number in pairs])
        named[f"alphabets_{images}"] = np.array(alphabets)
    return {**named, "labels": named["labels_data"], "alphabets": named["alphabets_data"]}


def _svhn(path: Path, expected: str, progress: bool = False) -> FileArrays:
    """Return ``labels`` (N,), the digits, from SVHN, which has 10 for a zero."""
    del progress
    content = read_bytes(path)
    require_digest(path, md5(content), expected)
    return {"labels": mat_arrays(path, content, ("y",))["y"].ravel().astype(np.int64) % 10}


def _caltech(path: Path, expected: str, progress: bool = False) -> FileArrays:
    """Return ``labels_train``, ``labels_validation`` and ``labels_test`` (N,) from Marlin's silhouettes."""
    del expected, progress
    found = mat_arrays(path, read_bytes(path), ("train_labels", "val_labels", "test_labels"))
    named = {f"labels_{part}": a.ravel().astype(np.int64) for part, a in zip(_PARTS, found.values(), strict=True)}
    return {"labels": named["labels_train"], **named}


def _labelled(name: str, digests: tuple[str, str], *, packed: bool = False) -> tuple[PublishedFile, ...]:
    """Return the files of labels beside the IDX files of a dataset's images."""

    def beside(file: PublishedFile, digest: str) -> PublishedFile:
        names, urls = (
            tuple(word.replace("images-idx3", "labels-idx1") for word in words) for words in (file.names, file.urls)
        )
        return replace(file, names=names, urls=urls, digest=digest, read=partial(_idx, packed=packed))

    return tuple(beside(file, digest) for file, digest in zip(PUBLISHED_FILES[name], digests, strict=True))


def _inside(name: str, read: Callable[[Path, str, bool], FileArrays] | None = None) -> tuple[PublishedFile, ...]:
    """Return the files of the images, which hold the labels too; ``read`` replaces their reader."""
    return tuple(replace(file, read=read or file.read) for file in PUBLISHED_FILES[name])


_FILES: dict[str, tuple[PublishedFile, ...]] = {
    "mnist5k": _inside("mnist5k"),
    "mnist": _labelled(
        "mnist",
        (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    # The MD5s of the packed files are those that torchvision uses.
    "fashion_mnist": _labelled(
        "fashion_mnist", ("25c81989df183df01b3e8a0aad5dffbe", "bb300cfdad3c16e7a12a480ee83cd310"), packed=True
    ),
    "kmnist": _labelled(
        "kmnist", ("e144d726b3acfaa3e44228e80efcd344", "7320c461ea6c1c855c0b718fb2a4b134"), packed=True
    ),
    **{name: _labelled(name, ("", "")) for name in ("emnist", "emnist_digits", "emnist_letters")},
    "omniglot": _inside("omniglot", _chardata),
    "omniglot_original": _inside("omniglot_original", _omniglot),
    "caltech101_silhouettes": _inside("caltech101_silhouettes", _caltech),
    "cifar10": _inside("cifar10", _cifar),
    "svhn": _inside("svhn", _svhn),
}
