"""Binarize the splits of a protocol: pixels are bytes, with P(pixel = 1) = byte / 255.

Random numbers come from numpy's RandomState: numpy guarantees that its streams never change.
"""

import hashlib
from dataclasses import dataclass, fields, replace

import numpy as np

from vaebench.datasets.catalog import FINGERPRINTS, IMAGES
from vaebench.datasets.protocol import Protocol

__all__ = [
    "STREAMS",
    "Arrays",
    "Splits",
    "binarize_splits",
    "departure",
    "draw_pixels",
    "hash_of_images",
    "static_from_dynamic",
    "stream",
]

Splits = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Training, validation and test images: uint8 (N, C * H * W), or float32 in [0, 1]."""

STREAMS = ("train", "validation", "test", "split")
"""The purposes of a protocol's seed; each has its own stream, so that no draw depends on another."""


def stream(seed: int, purpose: str) -> np.random.RandomState:
    """Return the random numbers of one of ``STREAMS`` for ``seed``."""
    return np.random.RandomState([STREAMS.index(purpose), seed])


@dataclass(frozen=True)
class Arrays:
    """The pixels of a protocol, (N, C * H * W): bytes, or float32 in [0, 1] where a dataset has such levels.

    ``grey_*``: the grey levels that a binarized split was drawn from.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    grey_validation: np.ndarray | None = None
    grey_test: np.ndarray | None = None

    def parts(self) -> dict[str, np.ndarray]:
        """Return the arrays that are not None, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    def fingerprint(self) -> str:
        """Return the first 16 hexadecimal digits of the SHA-256 of names, shapes and pixels."""
        digest = hashlib.sha256()
        for name, array in self.parts().items():
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def draw_pixels(intensities: np.ndarray, seed: int, split: str) -> np.ndarray:
    """Draw each pixel once: 255 with probability byte / 255 (or the level itself if it is a float), else 0.

    An integer uniform on 0..254 is below the byte with exactly that probability: byte 0 never gives 255, and byte 255
    always does. The stream depends only on the seed and the split's name.
    """
    if intensities.dtype != np.uint8:
        uniform = stream(seed, split).random_sample(intensities.shape)  # in [0, 1)
        return (uniform < intensities).astype(np.uint8) * np.uint8(255)
    threshold = stream(seed, split).randint(0, 255, size=intensities.shape, dtype=np.uint8)
    return (threshold < intensities).astype(np.uint8) * np.uint8(255)


def binarize_splits(splits: Splits, protocol: Protocol) -> Arrays:
    """Return the pixels of a protocol from the grey levels of its splits."""
    train, validation, test = splits
    if protocol.binarization == "threshold":
        middle = 0.5 if protocol.info.floats else 127
        return Arrays(*(np.where(split > middle, np.uint8(255), np.uint8(0)) for split in splits))
    if not protocol.drawn:
        return Arrays(train, validation, test)
    return Arrays(
        train if protocol.binarization == "dynamic" else draw_pixels(train, protocol.seed, "train"),
        draw_pixels(validation, protocol.seed, "validation"),
        draw_pixels(test, protocol.seed, "test"),
        grey_validation=validation,
        grey_test=test,
    )


def static_from_dynamic(arrays: Arrays, protocol: Protocol) -> Arrays:
    """Return the pixels of a static protocol from those of the dynamic one with the same split and seed."""
    return replace(arrays, train=draw_pixels(arrays.train, protocol.seed, "train"))


def departure(arrays: Arrays, protocol: Protocol) -> str:
    """Return how the pixels differ from the published ones; "" if they do not, as far as the catalog tells.

    A protocol in `FINGERPRINTS` is held exactly. With another seed, validation and test are drawn again from their grey
    levels. These and the training images are compared with `FINGERPRINTS` or, where the seed decides the split, with
    `IMAGES`: these hold the images, not which part they are in. The catalog knows nothing of the remaining datasets.
    """
    if (pinned := FINGERPRINTS.get(str(protocol))) is not None:
        return "" if arrays.fingerprint() == pinned else "its pixels are not the published ones"
    train, validation, test = arrays.train, arrays.validation, arrays.test
    if protocol.drawn:
        if arrays.grey_validation is None or arrays.grey_test is None:
            return "it lacks grey levels"
        for split, pixels, grey in (
            ("validation", validation, arrays.grey_validation),
            ("test", test, arrays.grey_test),
        ):
            if not np.array_equal(pixels, draw_pixels(grey, protocol.seed, split)):
                return f"its {split} images are not those that seed {protocol.seed} draws"
        validation, test = arrays.grey_validation, arrays.grey_test
    if protocol.binarization == "static":
        return ""  # the grey levels of the training images are not in the file
    levels = "none" if protocol.drawn else protocol.binarization
    if protocol.info.seeded_split:
        pinned = IMAGES.get((protocol.dataset, levels))
        same = pinned is None or hash_of_images((train, validation, test)) == pinned
    else:
        pinned = FINGERPRINTS.get(str(replace(protocol, binarization=levels, seed=0)))
        same = pinned is None or Arrays(train, validation, test).fingerprint() == pinned
    return "" if same else "its images are not the published ones"


def hash_of_images(splits: Splits) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of all images in sorted order."""
    images = sorted(image.tobytes() for split in splits for image in split)
    return hashlib.sha256(b"".join(images)).hexdigest()[:16]
