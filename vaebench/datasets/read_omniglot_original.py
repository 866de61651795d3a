"""Read the original Omniglot: zip files of 105x105 black-and-white PNG drawings, reduced to 28x28 grey levels.

Each output pixel is the exact mean of the ink in a cell 3.75 pixels wide, rounded to a byte in integer arithmetic.
Every platform gives the same bytes.
"""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vaebench.datasets.checksum import CorruptFile, require_digest
from vaebench.datasets.image_folder import walk
from vaebench.files import member_of
from vaebench.progress import ItemProgress

__all__ = ["ink_records", "read_omniglot_original", "reduce_ink"]

_SIDE, _REDUCED = 105, 28
_CHUNK = 500  # drawings decoded at once: limits memory and updates the progress bar often
# RuntimeError: a password; NotImplementedError: an unknown compression; SyntaxError: a broken PNG file.
_DAMAGES = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    Image.DecompressionBombError,
)
_MOST_DRAWINGS, _LARGEST_DRAWING = 1 << 15, 1 << 16  # above those of the published files; the second in bytes


def read_omniglot_original(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Read a zip file of drawings, or the folder that it unpacks to.

    Return ``images`` (N, 784) uint8, ``characters`` (N,), the number of each drawing's character, and ``folders`` (N,),
    its folder, which ends in the names of the alphabet and the character.

    Drawings are sorted by name, and characters are numbered in that order. ``expected`` is the SHA-256 of the names
    and pixels (``ink_records``), so that any zip file or folder with the same drawings is accepted.

    Raises:
        CorruptFile: the file is not a zip of PNG files of 105x105 pixels, or its digest differs.
    """
    names, chunks, digest = [], [], hashlib.sha256()
    try:
        for chunk_names, ink in _chunks_of_ink(path, progress):
            digest.update(ink_records(chunk_names, ink))
            names += chunk_names
            chunks.append(reduce_ink(ink))
    except _DAMAGES as error:
        raise CorruptFile(path, str(error)) from error
    require_digest(path, digest.hexdigest(), expected)
    folders, characters = np.unique([name.rsplit("/", 1)[0] for name in names], return_inverse=True)
    return {"images": np.concatenate(chunks), "characters": characters, "folders": folders[characters]}


def ink_records(names: list[str], ink: np.ndarray) -> bytes:
    """Return the bytes to hash: for each drawing its name, a zero byte and its ink packed to bits."""
    packed = np.packbits(ink.reshape(len(ink), -1), axis=1)
    return b"".join(name.encode() + b"\0" + bits.tobytes() for name, bits in zip(names, packed, strict=True))


def reduce_ink(ink: np.ndarray) -> np.ndarray:
    """Average the ink in each cell of a 28x28 grid: bool (N, 105, 105) -> uint8 (N, 784), 255 for a full cell."""
    weights = _overlaps()
    cells = weights @ ink.astype(np.float64) @ weights.T  # integers below 2**53: exact
    full = int(weights[0].sum()) ** 2
    return ((2 * 255 * cells.astype(np.int64) + full) // (2 * full)).astype(np.uint8).reshape(len(ink), -1)


def _overlaps() -> np.ndarray:
    """Return how much of pixel j lies in cell i, in quarter pixels: (28, 105), each row sums to 15."""
    # A cell is 105/28 pixels = 15 quarters wide; pixel j covers the quarters 4j to 4j + 4.
    start = np.maximum(15 * np.arange(_REDUCED)[:, None], 4 * np.arange(_SIDE)[None, :])
    stop = np.minimum(15 * np.arange(1, _REDUCED + 1)[:, None], 4 * np.arange(1, _SIDE + 1)[None, :])
    return np.maximum(stop - start, 0).astype(np.float64)


def _chunks_of_ink(path: Path, progress: bool) -> Iterator[tuple[list[str], np.ndarray]]:
    with zipfile.ZipFile(path) if path.is_file() else _Unpacked(path) as archive:
        names = sorted({name for name in archive.namelist() if name.endswith(".png")})
        if not 0 < len(names) <= _MOST_DRAWINGS:
            raise ValueError(f"it holds {len(names)} PNG files")
        with ItemProgress("drawings" if progress else None, len(names), "image") as bar:
            for start in range(0, len(names), _CHUNK):
                chunk = names[start : start + _CHUNK]
                yield chunk, np.stack([_ink_of(_png(archive, name), name) for name in chunk])
                bar.update(len(chunk))


class _Unpacked:
    """The folder of an unpacked zip file: names as in the zip file, which begin with the folder's name."""

    def __init__(self, folder: Path) -> None:
        self.parent, self._folder = folder.parent, folder

    def __enter__(self) -> "_Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def namelist(self) -> list[str]:
        return [path.relative_to(self.parent).as_posix() for path in walk(self._folder, _MOST_DRAWINGS)]


def _png(archive: zipfile.ZipFile | _Unpacked, name: str) -> bytes:
    if isinstance(archive, _Unpacked):
        with (archive.parent / name).open("rb") as file:
            return file.read(_LARGEST_DRAWING)
    member = archive.getinfo(name)
    if member.file_size > _LARGEST_DRAWING:
        raise ValueError(f"{name} has {member.file_size} bytes, expected at most {_LARGEST_DRAWING}")
    return member_of(archive, member)


def _ink_of(png: bytes, name: str) -> np.ndarray:
    """Return the strokes of one drawing, bool (105, 105); the file holds them black on white."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        if image.size != (_SIDE, _SIDE):
            raise ValueError(f"{name} is not {_SIDE}x{_SIDE} pixels")
        return ~np.asarray(image.convert("1"))
