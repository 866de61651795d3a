"""The prepared pixels of a protocol: intensities as bytes, P(pixel = 1) = byte / 255."""

import hashlib
from dataclasses import dataclass, fields

import numpy as np

from vaebench.datasets.protocol import Protocol
from vaebench.datasets.recipes import Splits
from vaebench.datasets.splits import stream

__all__ = ["Arrays", "arrays_of", "draw_pixels"]


@dataclass(frozen=True)
class Arrays:
    """uint8 (N, 784) each; the ``grey`` ones are what validation and test were drawn from, if known."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    grey_validation: np.ndarray | None = None
    grey_test: np.ndarray | None = None

    def parts(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in named.items() if array is not None}

    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and pixels; the first 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for name, array in self.parts().items():
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]


def draw_pixels(intensities: np.ndarray, seed: int, split: str) -> np.ndarray:
    """Draw each pixel once: 255 with probability byte / 255, else 0.

    A whole number uniform on 0..254 is below the byte with exactly that probability, so 0 never and 255
    always shows ink. The stream depends on the seed and the split's name only.
    """
    threshold = stream(seed, split).randint(0, 255, size=intensities.shape, dtype=np.uint8)
    return (threshold < intensities).astype(np.uint8) * np.uint8(255)


def arrays_of(splits: Splits, protocol: Protocol) -> Arrays:
    """Apply a protocol's binarisation to the grey levels of its splits."""
    train, validation, test = splits
    if protocol.binarization == "threshold":
        return Arrays(*(np.where(split > 127, np.uint8(255), np.uint8(0)) for split in splits))
    if not protocol.drawn:
        return Arrays(train, validation, test)
    return Arrays(
        train if protocol.binarization == "dynamic" else draw_pixels(train, protocol.seed, "train"),
        draw_pixels(validation, protocol.seed, "validation"),
        draw_pixels(test, protocol.seed, "test"),
        grey_validation=validation,
        grey_test=test,
    )
