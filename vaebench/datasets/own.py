"""Read a user's own images: a file of arrays, or a folder of such files or of images; imports no torch.

The images are first brought to one form, so that their fingerprint depends on the pixels alone and not on the format:
parts ``train``, ``validation`` and ``test``, each (N, C, H, W), bytes or float32 in [0, 1].
"""

import hashlib
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vaebench.datasets.array_files import LARGEST_ARRAYS, read_arrays
from vaebench.datasets.arrays import Splits, stream
from vaebench.datasets.catalog import GREY, DatasetInfo, Shape
from vaebench.datasets.image_folder import image_files, read_images, walk
from vaebench.datasets.protocol import OWN, Protocol, protocol_of
from vaebench.errors import UserError

__all__ = [
    "OwnImages",
    "fingerprint_of",
    "images_of",
    "located",
    "own_labels",
    "own_protocol",
    "read_own",
    "split_own",
]

PARTS = ("train", "validation", "test")
_PART_OF = (  # the first that fits: "x_valid" before "train" in "train_val"
    ("validation", re.compile(r"val(?!ue)|(?<![a-z])dev(?![a-z])")),
    ("test", re.compile(r"test|t10k")),
    ("train", re.compile(r"train")),
)
_FOLDERS: dict[str, str] = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_FOLDERS |= {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
_LABELS = re.compile(r"(?<![a-z])(y|ys|ids?|attrs?)(?![a-z])|label|target|class(?!ic)")
_CHANNELS = (1, 3)  # of images whose array does not say which axis holds the channels
_TENTH = 10
_GRID = 1e-6  # a float32 multiple of 1/255 is nearer to it than this


@dataclass(frozen=True)
class OwnImages:
    """The images of a file or folder; ``fingerprint``: a hash of names, shapes and pixels of the parts.

    ``parts``: (N, C, H, W) of bytes, or of float32 in [0, 1]. ``binary``: all bytes are 0 or 255.
    """

    parts: dict[str, np.ndarray]
    binary: bool
    fingerprint: str

    @property
    def shape(self) -> Shape:
        """Channels, height and width."""
        channels, height, width = self.parts["train"].shape[1:]
        return channels, height, width


def located(path: Any, data_dir: Path) -> Path:
    """Return the absolute path of own images: at ``path``, below ``data_dir``, or of the same name in ``data_dir``.

    The last place serves a run whose images were moved. Its fingerprint tells whether they are the same.

    Raises:
        UserError: ``path`` is not a text, or nothing is there.
    """
    if not isinstance(path, str) or not path:
        raise UserError("dataset=own needs dataset.path=FILE_OR_FOLDER: npz, npy, mat, hdf5, idx, amat, csv or images")
    given, data_dir = Path(path).expanduser(), data_dir.expanduser()
    for place in (given, data_dir / given, data_dir / given.name):
        if os.path.exists(place):
            return place.absolute()
    raise UserError(
        f"dataset.path={path} does not exist, nor does {data_dir / given.name}: correct dataset.path, or give the new "
        "folder of the images (data_dir=...)"
    )


def fingerprint_of(path: Path, shape: Any = None) -> str:
    """Return the fingerprint of own images; files that did not change since the last call are not read again."""
    return _fingerprint(path, *_key(path, shape))


def read_own(path: Path, shape: Any = None) -> OwnImages:
    """Return the images at ``path``.

    Args:
        path: a file or a folder.
        shape: (channels, height, width) where the arrays do not say it; None to infer it.

    Raises:
        UserError: there are no images, or they have no usable shape, split or range.
    """
    return _read(path, *_key(path, shape))


def images_of(arrays: Mapping[str, np.ndarray], place: str) -> OwnImages:
    """Return the images in arrays named ``train``, ``validation`` and ``test``, or in one array of any name.

    ``place`` names them in messages. UserError as for `read_own`.
    """
    with _naming(place):
        return _own_images(_by_part(dict(arrays)), None)


def own_protocol(images: OwnImages, binarization: str, split: str, seed: int, name: str = OWN) -> Protocol:
    """Return the protocol of own images, whose name includes their fingerprint; binary images are always static.

    ``name``: of the dataset of a plug-in.
    """
    missing = [part for part in PARTS if part not in images.parts]
    sizes = _sizes(images)
    whose = "own images" if name == OWN else f"images of dataset={name}"
    how = f"{whose} in their own split"
    if missing:
        how = f"{whose}; {' and '.join(missing)}: a tenth of the training images each, drawn with dataset.seed"
    if not images.binary and (images.shape[0] != 1 or images.parts["train"].dtype != np.uint8):
        kind = "bytes" if images.parts["train"].dtype == np.uint8 else "numbers in [0, 1]"
        how += f"; {images.shape[0]} x {images.shape[1]} x {images.shape[2]} {kind}"
    info = DatasetInfo(
        name=f"{name}-{images.fingerprint[:12]}",
        summary=whose,
        splits={"default": sizes},
        how_split={"default": how},
        binarizations=("static",) if images.binary else GREY,
        seeded_split=bool(missing),
        shape=images.shape,
        floats=images.parts["train"].dtype != np.uint8,
    )
    return protocol_of(info, name, "static" if images.binary else binarization, split, seed)


def split_own(images: OwnImages, seed: int) -> Splits:
    """Return the splits, one row an image; a missing part is a tenth of the training images, drawn with ``seed``."""
    rows = {name: part.reshape(len(part), -1) for name, part in images.parts.items()}
    missing = [part for part in PARTS if part not in rows]
    if missing:
        pool, tenth = rows["train"], len(rows["train"]) // _TENTH
        order = stream(seed, "split").permutation(len(pool))
        for part in missing:
            rows[part], order = pool[order[:tenth]], order[tenth:]
        rows["train"] = pool[np.sort(order)]
    return rows["train"], rows["validation"], rows["test"]


def _sizes(images: OwnImages) -> tuple[int, int, int]:
    count = {name: len(part) for name, part in images.parts.items()}
    tenth, missing = count["train"] // _TENTH, [part for part in PARTS if part not in count]
    count |= {"train": count["train"] - tenth * len(missing)} | dict.fromkeys(missing, tenth)
    return count["train"], count["validation"], count["test"]


def _key(path: Path, shape: Any) -> tuple[Any, ...]:
    """Return what a cached answer depends on: the shape, and the names, sizes and times of the files."""
    if shape is not None and not (
        isinstance(shape, list | tuple) and len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
    ):
        raise UserError(f"dataset.shape must be [channels,height,width], for example [1,28,28], got {shape}")
    with _naming(f"dataset.path={path}"):
        files = list(walk(path)) if path.is_dir() else [path]
        states = [(str(file), os.stat(file)) for file in files]
        if other := next((name for name, state in states if not stat.S_ISREG(state.st_mode)), None):
            raise ValueError(f"{other} is not a regular file")
    digest = hashlib.sha256(repr([(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in states]).encode())
    return (None if shape is None else tuple(shape)), digest.hexdigest()


@lru_cache(maxsize=1024)
def _fingerprint(path: Path, shape: Shape | None, files: str) -> str:
    return _read(path, shape, files).fingerprint


@lru_cache(maxsize=1)  # composing a run and loading its images read them once
def _read(path: Path, shape: Shape | None, files: str) -> OwnImages:
    del files
    with _naming(f"dataset.path={path}"):
        return _own_images(_folder(path) if path.is_dir() else _by_part(read_arrays(path)), shape)


def _own_images(found: dict[str, np.ndarray], shape: Shape | None) -> OwnImages:
    parts = _levels({part: _images(found[part], shape, part) for part in PARTS if part in found})
    _check_parts(parts)
    digest = hashlib.sha256()
    for name, part in parts.items():
        digest.update(f"{name} {part.dtype} {part.shape}\n".encode())
        digest.update(part.data)
    bytes_only = parts["train"].dtype == np.uint8
    binary = bytes_only and all(_every(part, lambda rows: (rows == 0) | (rows == 255)) for part in parts.values())
    return OwnImages(parts, binary, digest.hexdigest()[:16])


class _naming:
    """Turn the errors of readers into UserErrors that name the place of the images."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, OSError | ValueError | MemoryError):
            words = getattr(error, "strerror", None) or str(error) or "out of memory"
            raise UserError(f"{self.place}: {words}") from error


# Parts


def part_of(name: str) -> str:
    """Return the part that a name speaks of, "" for none; ``labels`` for labels."""
    words = name.lower()
    if _LABELS.search(words):
        return "labels"
    return next((part for part, pattern in _PART_OF if pattern.search(words)), "")


def _by_part(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of images by part: ``train`` is the array without a part in its name if there is just one."""
    images = {name: a for name, a in arrays.items() if a.dtype.kind in "biuf" and _has_images(a.shape)}
    named: dict[str, list[str]] = {}
    for name in images:
        named.setdefault(part_of(name), []).append(name)
    named.pop("labels", None)
    if "train" not in named and "" in named:
        named["train"] = named.pop("")
    listed = ", ".join(f"{name or 'one'} {a.shape}" for name, a in list(arrays.items())[:10]) or "none"
    several = [names for part, names in named.items() if part and len(names) > 1]
    if "train" not in named or several:
        raise ValueError(
            "keep one array of images, or name the arrays train, validation and test, one row an image; its arrays: "
            + listed
        )
    return {part: images[names[0]] for part, names in named.items() if part}


def _has_images(shape: tuple[int, ...]) -> bool:
    """Whether an array may hold images: a vector, a column or a row of labels holds none."""
    return len(shape) > 2 or (len(shape) == 2 and min(shape) > 1)


def _folder(path: Path) -> dict[str, np.ndarray]:
    """Return the images in a folder by part: folders of parts, folders of classes, or files."""
    files = list(walk(path))
    if not (pictures := image_files(iter(files))):
        return _array_files(path, files)
    return {part: read_images(some, LARGEST_ARRAYS) for part, some in _pictures_by_part(path, pictures).items()}


def _pictures_by_part(path: Path, pictures: list[Path]) -> dict[str, list[Path]]:
    """Return the files of a folder of images by part."""
    parts: dict[str, list[Path]] = {}
    for file in pictures:
        above = file.relative_to(path).parts[:-1]
        parts.setdefault(_FOLDERS.get(above[0].lower(), "") if above else "", []).append(file)
    if set(parts) == {""}:  # folders of classes, or no folders
        parts = {"train": pictures}
    elif "" in parts:
        first = parts[""][0].relative_to(path)
        raise ValueError(f"{first} lies beside folders named train, validation or test: move it away")
    elif "train" not in parts:
        raise ValueError(f"it has a folder for {' and '.join(parts)}, but none named train")
    return parts


def _array_files(path: Path, files: list[Path]) -> dict[str, np.ndarray]:
    """Return the arrays of a folder that holds a file for each part, as in train.npy and test.npy."""
    if not files:
        raise ValueError("the folder is empty")
    named: dict[str, np.ndarray] = {}
    unpacked = set(files)  # a packed copy beside the unpacked file is not read
    used = [file for file in files if part_of(file.name) in PARTS]
    used = [file for file in used if file.suffix != ".gz" or file.with_suffix("") not in unpacked]
    if not used:
        raise ValueError("the folder holds neither images nor files with train, validation or test in their names")
    for file in used:
        try:
            arrays = _by_part(read_arrays(file))
        except ValueError as error:
            raise ValueError(f"{file.relative_to(path)}: {error}") from error
        for array in arrays.values():
            if part_of(file.name) in named:
                raise ValueError(f"several files for {part_of(file.name)}, one is {file.relative_to(path)}")
            named[part_of(file.name)] = array
    if "train" not in named:
        raise ValueError("no file has train in its name")
    return named


def _check_parts(parts: dict[str, np.ndarray]) -> None:
    shapes = {name: part.shape[1:] for name, part in parts.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise ValueError(f"the images have different shapes: {listed}")
    least = 2 if len(parts) == len(PARTS) else 2 * _TENTH
    for name, part in parts.items():
        needed = least if name == "train" else 2
        if len(part) < needed:
            raise ValueError(f"{name} has {len(part)} images, at least {needed} are needed")


# Labels


def own_labels(path: Path, images: OwnImages) -> dict[str, np.ndarray] | str:
    """Return the label of each image by part, (N, 1) each, or why there are none.

    Labels are the names of folders of classes, a column of a table with the name of a label, or arrays and files with
    such a name: y, labels, train_labels.

    Raises:
        UserError: the files cannot be read any more.
    """
    with _naming(str(path)):
        files = list(walk(path)) if path.is_dir() else []
        pictures = image_files(iter(files))
        found = _class_names(path, pictures) if pictures else _label_arrays(path, files)
    lacking = [part for part, pixels in images.parts.items() if len(found.get(part, ())) != len(pixels)]
    if lacking:
        return f"{path} has no label for each image of {' and '.join(lacking)}"
    return {part: found[part].reshape(-1, 1) for part in images.parts}


def _class_names(path: Path, pictures: list[Path]) -> dict[str, np.ndarray]:
    """Return the folder of each image below the folder of its part; parts with images outside such a folder lack."""
    found = {}
    for part, files in _pictures_by_part(path, pictures).items():
        above = [file.relative_to(path).parts[:-1] for file in files]
        if all(words and words[0].lower() in _FOLDERS for words in above):
            above = [words[1:] for words in above]
        if all(above):
            found[part] = np.array([words[0] for words in above])
    return found


def _label_arrays(path: Path, files: list[Path]) -> dict[str, np.ndarray]:
    """Return the vectors with the name of labels in a file, or in the files of a folder, by part."""
    found: dict[str, np.ndarray] = {}
    for file in files or [path]:
        try:
            arrays = read_arrays(file)
        except ValueError:
            continue  # not an array: the images were read without it too
        for name, array in arrays.items():
            words = f"{file.name if files else ''} {name}".lower()
            if _LABELS.search(words) and array.dtype.kind in "biufU" and array.size == max(array.shape, default=0):
                part = next((part for part, pattern in _PART_OF if pattern.search(words)), "train")
                whole = array.dtype.kind == "f" and bool((array == np.rint(array)).all())
                found.setdefault(part, array.ravel().astype(np.int64) if whole else array.ravel())
    return found


# Shapes


def _images(array: np.ndarray, shape: Shape | None, part: str) -> np.ndarray:
    """Return an array of images as (N, C, H, W)."""
    fits = _layouts(array.shape, shape)
    if len(fits) == 1:
        return next(iter(fits.values()))(array)
    found = "x".join(map(str, array.shape))
    if shape is not None:
        raise ValueError(f"{part} is {found}, which does not hold images of dataset.shape={list(shape)}")
    if array.ndim == 2:
        raise ValueError(
            f"{part} is {found}: rows of {array.shape[1]} numbers are no square image; set "
            "dataset.shape=[channels,height,width], and remove a column of labels or name it label in a header line"
        )
    raise ValueError(f"{part} is {found}: set dataset.shape=[channels,height,width], or give it as (N, C, H, W)")


def _layouts(found: tuple[int, ...], shape: Shape | None) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the ways in which an array of shape ``found`` can be read as images."""
    fits: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    if shape is None:
        if len(found) == 2 and math.isqrt(found[1]) ** 2 == found[1]:
            side = math.isqrt(found[1])
            fits["rows"] = lambda a: a.reshape(-1, 1, side, side)
        elif len(found) == 3:
            fits["grey"] = lambda a: a[:, None]
        elif len(found) == 4:
            if found[1] in _CHANNELS:
                fits["chw"] = lambda a: a
            if found[3] in _CHANNELS:
                fits["hwc"] = lambda a: a.transpose(0, 3, 1, 2)
            if found[2] in _CHANNELS:
                fits["hwcn"] = lambda a: a.transpose(3, 2, 0, 1)  # MATLAB's habit, as in SVHN
        return fits
    c, h, w = shape
    if found[1:] == (c * h * w,):
        fits["rows"] = lambda a: a.reshape(-1, c, h, w)
    elif found[1:] == (c, h, w):
        fits["chw"] = lambda a: a
    elif found[1:] == (h, w, c):
        fits["hwc"] = lambda a: a.transpose(0, 3, 1, 2)
    elif c == 1 and found[1:] == (h, w):
        fits["grey"] = lambda a: a[:, None]
    elif found[:-1] == (h, w, c):
        fits["hwcn"] = lambda a: a.transpose(3, 2, 0, 1)
    elif c == 1 and found[:-1] == (h, w):
        fits["hwn"] = lambda a: a.transpose(2, 0, 1)[:, None]
    return fits


# Levels


def _levels(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the pixels as bytes, or as float32 in [0, 1] where they lie off the grid of bytes.

    Zeros and ones become 0 and 255, and whole numbers from 0 to 255 are bytes. All parts are read in the same way.

    Raises:
        ValueError: a pixel is not finite, or the pixels lie in neither range.
    """
    arrays = list(parts.values())
    if any(array.size == 0 for array in arrays):
        raise ValueError("it holds no pixels")
    if not all(_every(array, np.isfinite) for array in arrays if array.dtype.kind == "f"):
        raise ValueError("some pixels are not finite (NaN or infinity)")
    low, high = min(array.min() for array in arrays), max(array.max() for array in arrays)
    whole = all(array.dtype.kind != "f" or _every(array, lambda rows: rows == np.rint(rows)) for array in arrays)
    if not (low >= 0 and (high <= 1 or (whole and high <= 255))):
        raise ValueError(
            f"pixels lie in [{low:.6g}, {high:.6g}]: give 8-bit images (whole numbers from 0 to 255) or numbers in "
            "[0, 1]; divide by the largest level, or undo Normalize"
        )
    if whole:
        factor = np.uint8(255 if high <= 1 else 1)
        return {name: np.ascontiguousarray(array, np.uint8) * factor for name, array in parts.items()}
    if all(_every(array, lambda rows: np.abs(255.0 * rows - np.rint(255.0 * rows)) < 255 * _GRID) for array in arrays):
        return {name: _rounded(array) for name, array in parts.items()}
    return {name: np.ascontiguousarray(array, np.float32) for name, array in parts.items()}


def _rounded(array: np.ndarray) -> np.ndarray:
    rounded = np.empty(array.shape, np.uint8)
    for rows in _chunks(array):
        rounded[rows] = np.rint(255.0 * array[rows])
    return rounded


def _every(array: np.ndarray, holds: Callable[[np.ndarray], np.ndarray]) -> bool:
    return all(bool(holds(array[rows]).all()) for rows in _chunks(array))


def _chunks(array: np.ndarray) -> Iterator[slice]:
    """Yield slices of an array's images that keep temporary arrays small."""
    step = max(1, (1 << 22) * len(array) // array.size)
    return (slice(start, start + step) for start in range(0, len(array), step))
