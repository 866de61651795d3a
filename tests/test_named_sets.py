"""The readers of named datasets beside MNIST and Omniglot, on small made files of the published formats."""

import gzip
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from vaebench.datasets.catalog import CATALOG
from vaebench.datasets.checksum import CorruptFile, md5, sha256
from vaebench.datasets.dataset import Dataset, load
from vaebench.datasets.published_files import PUBLISHED_FILES
from vaebench.datasets.readers import read_caltech, read_cifar, read_emnist, read_frey, read_kmnist, read_svhn
from vaebench.errors import UserError


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, *shape), dtype=np.uint8)


def idx(pixels: np.ndarray) -> bytes:
    return struct.pack(">IIII", 0x803, *pixels.shape) + pixels.tobytes()


def batch(pixels: np.ndarray) -> bytes:
    """A pickle of protocol 2 as Python 2 wrote it: a dict with a string of bytes, and a call that must not run."""
    text = pixels.tobytes()
    call = b"cbuiltins\nexit\nU\x04ranqtq\x85R"
    return b"\x80\x02}q\x00(U\x04dataq\x01T" + struct.pack("<I", len(text)) + text + b"U\x05extra" + call + b"u."


def saved(path: Path, arrays: dict[str, Any]) -> bytes:
    savemat(path, arrays, appendmat=False)
    return path.read_bytes()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Dataset]:
    """Return a function that writes a dataset's files and puts their sizes and checksums in place of the published."""

    def loaded(name: str, sizes: tuple[int, int, int], contents: list[bytes], **words: Any) -> Dataset:
        files = []
        for file, content in zip(PUBLISHED_FILES[name], contents, strict=True):
            (tmp_path / file.folders[0]).mkdir(parents=True, exist_ok=True)
            (tmp_path / file.folders[0] / file.names[0]).write_bytes(content)
            files.append(replace(file, digest=md5(content) if file.digest else "", urls=()))
        monkeypatch.setitem(PUBLISHED_FILES, name, tuple(files))
        monkeypatch.setitem(CATALOG, name, replace(CATALOG[name], splits={"default": sizes}))
        return load(name, tmp_path, download=False, progress=False, say=lambda _: None, **words)

    return loaded


def test_cifar10_is_colour_and_never_unpickled(small: Callable[..., Dataset]):
    batches = [images(10, 3, 32, 32, seed=seed) for seed in range(6)]
    data = small("cifar10", (40, 10, 10), [batch(pixels) for pixels in batches])
    assert data.image_shape == (3, 32, 32)
    assert data.pixel_kind == "8-bit"
    pool = np.concatenate(batches[:5]).reshape(50, -1)
    assert np.array_equal(data.validation, pool[:10])
    assert np.array_equal(data.train, pool[10:])
    assert np.array_equal(data.test, batches[5].reshape(10, -1))
    assert str(data.protocol) == "cifar10/none-v1"
    # A second start reads the cache.
    assert data.cache is not None
    again = load("cifar10", data.cache.parents[1], download=False)
    assert again.fingerprint == data.fingerprint


def test_svhn_is_turned_to_channels_first(small: Callable[..., Dataset], tmp_path: Path):
    train, test = images(30, 3, 32, 32), images(12, 3, 32, 32, seed=1)
    contents = [saved(tmp_path / "x", {"X": a.transpose(2, 3, 1, 0), "y": np.ones((len(a), 1))}) for a in (train, test)]
    data = small("svhn", (25, 5, 12), contents)
    assert np.array_equal(data.train, train[5:].reshape(25, -1))
    assert np.array_equal(data.test, test.reshape(12, -1))


def test_emnist_is_upright_and_validates_on_the_last_images(small: Callable[..., Dataset]):
    train, test = images(30, 28, 28), images(6, 28, 28, seed=1)
    train[0] = 0
    train[0, 3, 5:20] = 255  # a horizontal stroke in row 3
    data = small("emnist", (24, 6, 6), [idx(a.transpose(0, 2, 1)) for a in (train, test)], binarization="none")
    assert np.array_equal(data.train, train[:24].reshape(24, -1))
    assert np.array_equal(data.validation, train[24:].reshape(6, -1))
    assert data.train.view(24, 28, 28)[0, 3, 5:20].eq(255).all()
    assert "not verified" in data.note


def test_kmnist_is_known_by_its_packed_files(small: Callable[..., Dataset], tmp_path: Path):
    train, test = images(30, 28, 28), images(6, 28, 28, seed=1)
    data = small("kmnist", (20, 10, 6), [gzip.compress(idx(a)) for a in (train, test)], binarization="none")
    assert np.array_equal(data.train, train[10:].reshape(20, -1))
    (tmp_path / "plain").write_bytes(idx(train))
    with pytest.raises(CorruptFile, match=r"only the packed \.gz file has a published checksum") as refused:
        read_kmnist(tmp_path / "plain", md5(idx(train)))
    assert refused.value.digest == sha256(idx(train))  # by which MNIST's files are known


def test_caltech_silhouettes_are_upright_and_binary(small: Callable[..., Dataset], tmp_path: Path):
    upright = images(9, 28, 28) % 2
    stored = upright.transpose(0, 2, 1).reshape(9, -1)
    arrays = {
        "train_data": stored[:4],
        "val_data": stored[4:6],
        "test_data": stored[6:],
        "train_labels": np.ones((4, 1)),
    }
    data = small("caltech101_silhouettes", (4, 2, 3), [saved(tmp_path / "x", arrays)])
    assert np.array_equal(data.train, 255 * upright[:4].reshape(4, -1))
    assert np.array_equal(data.test, 255 * upright[6:].reshape(3, -1))
    assert data.pixel_kind == "binary"


def test_frey_faces_are_shuffled_with_the_seed(small: Callable[..., Dataset], tmp_path: Path):
    faces = images(30, 28, 20)
    content = saved(tmp_path / "x", {"ff": faces.reshape(30, -1).T})
    data = small("frey_faces", (20, 4, 6), [content])
    assert data.image_shape == (1, 28, 20)
    rows = {row.tobytes() for row in faces.reshape(30, -1)}
    assert {row.tobytes() for part in (data.train, data.validation, data.test) for row in part.numpy()} == rows
    other = small("frey_faces", (20, 4, 6), [content], seed=1)
    assert other.fingerprint != data.fingerprint
    assert "-seed1-" in str(other.protocol)


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_cifar, b"\x80\x02}.", "no images of 3x32x32"),
        (read_cifar, b"no pickle", "no pickle"),
        (read_svhn, b"<html>", "no mat file"),
        (read_caltech, b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM", "it lacks train_data"),
        (read_frey, b"", "no mat file"),
        (read_emnist, b"<html>", "shorter than an IDX header"),
        (read_emnist, idx(np.zeros((2, 32, 32), np.uint8)), "its images have 1024 pixels"),
    ],
)
def test_what_is_not_the_format_is_corrupt(read: Callable, content: bytes, message: str, tmp_path: Path):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(CorruptFile, match=message):
        read(tmp_path / "f", md5(content))


def test_files_without_a_checksum_that_are_something_else_are_named(tmp_path: Path):
    (tmp_path / "frey_rawface.mat").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"frey_rawface.mat is an HTML page"):
        load("frey_faces", tmp_path, download=False)


def test_checksums_are_those_of_torchvision():
    from torchvision import datasets

    pinned = {file.names[0]: file.digest for name in ("kmnist", "cifar10") for file in PUBLISHED_FILES[name]}
    known = dict(datasets.KMNIST.resources) | dict(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list)
    assert pinned.items() <= known.items()
    svhn = {file.names[0]: file.digest for file in PUBLISHED_FILES["svhn"]}
    assert svhn == {datasets.SVHN.split_list[part][1]: datasets.SVHN.split_list[part][2] for part in ("train", "test")}
