"""Read the images of a folder: png, jpg and what else Pillow decodes safely, all of one size.

Pillow decodes, not torchvision: a run is composed without torch, and composing needs the pixels' fingerprint.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["MOST_FILES", "image_files", "read_images", "walk"]

MOST_FILES = 1_000_000
"""The most files of a folder of images."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"]
_CHANNELS = {"1": 1, "L": 1, "RGB": 3, "P": 3}
_DAMAGES = (OSError, EOFError, ValueError, SyntaxError, Image.DecompressionBombError)
_THREADS = min(8, os.cpu_count() or 1)
_CHUNK = 512  # images decoded at once


def walk(folder: Path, most: int = MOST_FILES) -> Iterator[Path]:
    """Yield the files below ``folder`` in natural order (img2 before img10), hidden ones and links to folders left out.

    Raises:
        ValueError: there are more than ``most``.
    """
    count = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted((name for name in folders if not name.startswith((".", "__MACOSX"))), key=natural)
        for name in sorted(names, key=natural):
            if name.startswith("."):
                continue
            count += 1
            if count > most:
                raise ValueError(f"it holds more than {most:,} files")
            yield Path(place, name)


def natural(name: str) -> tuple[list[object], str]:
    """Return a key that sorts numbers in names by value."""
    words = re.split(r"(\d+)", name.lower())
    return [int(word) if i % 2 else word for i, word in enumerate(words)], name


def image_files(paths: Iterator[Path]) -> list[Path]:
    """Return those of ``paths`` that are images by their suffix."""
    return [path for path in paths if path.suffix.lower() in SUFFIXES]


def read_images(paths: list[Path], largest: int) -> np.ndarray:
    """Return images as uint8 (N, C, H, W), C being 1 for grey and black-and-white images and 3 for colour.

    Raises:
        ValueError: an image is damaged, transparent or of another size or kind than the first; or the pixels have
            more than ``largest`` bytes.
    """
    first = _decoded(paths[0])
    if (size := first.size * len(paths)) > largest:
        raise ValueError(f"its {len(paths)} images have {size} bytes of pixels, expected at most {largest}")
    images = np.empty((len(paths), *first.shape), np.uint8)
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            for i, image in enumerate(pool.map(_decoded, chunk)):
                if image.shape != first.shape:
                    raise ValueError(
                        f"{paths[0].name} is {_kind(first)} and {chunk[i].name} is {_kind(image)}: give all images one "
                        "size and one number of channels"
                    )
                images[start + i] = image
    # A black-and-white image has levels 0 and 255 here, as in every other format.
    return images


def _kind(image: np.ndarray) -> str:
    channels, height, width = image.shape
    return f"{height}x{width} {'grey' if channels == 1 else 'colour'}"


def _decoded(path: Path) -> np.ndarray:
    """Return one image, uint8 (C, H, W)."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise ValueError("it has several frames")
            mode, transparent = image.mode, image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            if transparent:
                alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
                if alpha.min() < 255:
                    raise ValueError("it is transparent: draw it on a background")
                mode = "L" if mode in ("L", "LA") else "RGB"
            if mode not in _CHANNELS:
                raise ValueError(f"its mode is {mode}: convert it to 8-bit grey or RGB")
            pixels = np.asarray(image.convert("L" if _CHANNELS[mode] == 1 else "RGB"))
    except _DAMAGES as error:
        raise ValueError(f"{path.name} is no usable image: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
