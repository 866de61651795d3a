"""From the arrays of a dataset's files to the grey levels of its three splits."""

from collections.abc import Callable

import numpy as np

from vaebench.datasets.protocol import Protocol
from vaebench.datasets.sources import Content
from vaebench.datasets.splits import shuffled_tail, stratified, stream

__all__ = ["RECIPES", "Splits"]

Splits = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Training, validation and test images, uint8 (N, 784)."""

_BURDA_SEED = 123
_DRAWERS = 20  # each Omniglot character was drawn by 20 people


def _digits(contents: list[Content], protocol: Protocol) -> Splits:
    """MNIST's embedded subset: as many images of each digit in every part."""
    images, labels = contents[0]["images"], contents[0]["labels"]
    classes = len(np.unique(labels))
    train, validation, test = protocol.sizes
    shares = (train // classes, validation // classes, test // classes)
    parts = stratified(labels, shares, stream(protocol.seed, "split"))
    return images[parts[0]], images[parts[1]], images[parts[2]]


def _idx_pair(contents: list[Content], protocol: Protocol) -> Splits:
    """By position: the default split validates on the first training images, the IWAE paper's on the last."""
    pool, test = contents[0]["images"], contents[1]["images"]
    n_train, n_validation, _ = protocol.sizes
    if protocol.split == "iwae":
        return pool[:n_train], pool[n_train:], test
    return pool[n_validation:], pool[:n_validation], test


def _given(contents: list[Content], protocol: Protocol) -> Splits:
    """Larochelle's three files are the three splits."""
    del protocol
    train, validation, test = (content["images"] for content in contents)
    return train, validation, test


def _burda(contents: list[Content], protocol: Protocol) -> Splits:
    """The IWAE paper's Omniglot: shuffled with a seed of its own, whatever the protocol's seed."""
    pool, test = contents[0]["data"], contents[0]["testdata"]
    train, validation = shuffled_tail(len(pool), protocol.sizes[1], np.random.RandomState(_BURDA_SEED))
    return pool[train], pool[validation], test


def _drawings(contents: list[Content], protocol: Protocol) -> Splits:
    """Original Omniglot: a quarter of the drawings of each character test; the rest is shuffled and cut."""
    background, evaluation = (content["characters"] for content in contents)
    characters = np.concatenate([background, background.max() + 1 + evaluation])
    images = np.concatenate([content["images"] for content in contents])
    n_test = _DRAWERS * protocol.sizes[2] // sum(protocol.sizes)
    pool, test = stratified(characters, (_DRAWERS - n_test, n_test), stream(protocol.seed, "split"))
    n_train = protocol.sizes[0]
    return images[pool[:n_train]], images[pool[n_train:]], images[test]


RECIPES: dict[str, Callable[[list[Content], Protocol], Splits]] = {
    "mnist5k": _digits,
    "mnist": _idx_pair,
    "binarized_mnist": _given,
    "omniglot": _burda,
    "omniglot_original": _drawings,
    "fashion_mnist": _idx_pair,
}
