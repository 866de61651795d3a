"""Split the images of a dataset's files into training, validation and test images."""

from collections.abc import Callable

import numpy as np

from vaebench.datasets.arrays import Splits, stream
from vaebench.datasets.protocol import Protocol
from vaebench.datasets.published_files import FileArrays

__all__ = ["SPLITTERS", "shuffled_tail", "stratified"]

_IWAE_PAPER_SEED = 123
_DRAWERS = 20  # each Omniglot character was drawn by 20 people


def shuffled_tail(count: int, n_tail: int, random: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle 0..count-1 and cut off the last ``n_tail``; return (head, tail)."""
    order = random.permutation(count)
    return order[: count - n_tail], order[count - n_tail :]


def stratified(labels: np.ndarray, shares: tuple[int, ...], random: np.random.RandomState) -> list[np.ndarray]:
    """Return shuffled index arrays, one per share: part i gets ``shares[i]`` random members of each class.

    Raises:
        ValueError: the number of members of a class is not the sum of the shares.
    """
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        if len(members) != sum(shares):
            raise ValueError(f"class {label} has {len(members)} members, not {sum(shares)}")
        for part, chosen in zip(parts, np.split(members, np.cumsum(shares)[:-1]), strict=True):
            part.append(chosen)
    return [random.permutation(np.concatenate(part)) for part in parts]


def _mnist5k(files: list[FileArrays], protocol: Protocol) -> Splits:
    """Put the same number of images of each digit in a split."""
    images, labels = files[0]["images"], files[0]["labels"]
    classes = len(np.unique(labels))
    train, validation, test = protocol.sizes
    shares = (train // classes, validation // classes, test // classes)
    parts = stratified(labels, shares, stream(protocol.seed, "split"))
    return images[parts[0]], images[parts[1]], images[parts[2]]


def _by_position(files: list[FileArrays], protocol: Protocol) -> Splits:
    """Validate on the first training images (default split) or on the last (the IWAE paper's split)."""
    pool, test = files[0]["images"], files[1]["images"]
    n_train, n_validation, _ = protocol.sizes
    if protocol.split == "iwae":
        return pool[:n_train], pool[n_train:], test
    return pool[n_validation:], pool[:n_validation], test


def _last(files: list[FileArrays], protocol: Protocol) -> Splits:
    """Validate on the last training images."""
    pool, n_train = files[0]["images"], protocol.sizes[0]
    return pool[:n_train], pool[n_train:], files[1]["images"]


def _batches(files: list[FileArrays], protocol: Protocol) -> Splits:
    """Validate on the first images of CIFAR-10's five training batches."""
    pool = {"images": np.concatenate([arrays["images"] for arrays in files[:-1]])}
    return _by_position([pool, files[-1]], protocol)


def _named(files: list[FileArrays], protocol: Protocol) -> Splits:
    """Use the three arrays of one file."""
    del protocol
    return files[0]["train"], files[0]["validation"], files[0]["test"]


def _shuffled(files: list[FileArrays], protocol: Protocol) -> Splits:
    """Shuffle the images of one file with the seed; validate and test on the last."""
    images = files[0]["images"][stream(protocol.seed, "split").permutation(len(files[0]["images"]))]
    n_train, n_validation, _ = protocol.sizes
    return images[:n_train], images[n_train : n_train + n_validation], images[n_train + n_validation :]


def _by_file(files: list[FileArrays], protocol: Protocol) -> Splits:
    """Use Larochelle's three files as the three splits."""
    del protocol
    train, validation, test = (arrays["images"] for arrays in files)
    return train, validation, test


def _omniglot(files: list[FileArrays], protocol: Protocol) -> Splits:
    """Shuffle the training images with the IWAE paper's seed, not the protocol's, and validate on the last."""
    pool, test = files[0]["data"], files[0]["testdata"]
    train, validation = shuffled_tail(len(pool), protocol.sizes[1], np.random.RandomState(_IWAE_PAPER_SEED))
    return pool[train], pool[validation], test


def _omniglot_original(files: list[FileArrays], protocol: Protocol) -> Splits:
    """Test on a quarter of the drawings of each character; shuffle the others and validate on the last."""
    background, evaluation = (arrays["characters"] for arrays in files)
    characters = np.concatenate([background, background.max() + 1 + evaluation])
    images = np.concatenate([arrays["images"] for arrays in files])
    n_test = _DRAWERS * protocol.sizes[2] // sum(protocol.sizes)
    pool, test = stratified(characters, (_DRAWERS - n_test, n_test), stream(protocol.seed, "split"))
    n_train = protocol.sizes[0]
    return images[pool[:n_train]], images[pool[n_train:]], images[test]


SPLITTERS: dict[str, Callable[[list[FileArrays], Protocol], Splits]] = {
    "mnist5k": _mnist5k,
    "mnist": _by_position,
    "binarized_mnist": _by_file,
    "omniglot": _omniglot,
    "omniglot_original": _omniglot_original,
    "fashion_mnist": _by_position,
    "kmnist": _by_position,
    "emnist": _last,
    "emnist_digits": _last,
    "emnist_letters": _last,
    "caltech101_silhouettes": _named,
    "frey_faces": _shuffled,
    "cifar10": _batches,
    "svhn": _by_position,
}
