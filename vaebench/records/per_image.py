"""The .npz files with the numbers of each image: written during an evaluation, read for paired comparisons."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from vaebench.errors import UserError
from vaebench.files import read_npz
from vaebench.records.files import write_whole
from vaebench.records.folder import RunFolder
from vaebench.records.provenance import Provenance
from vaebench.records.results import ResultRecord
from vaebench.records.stored import Unreadable, parse_json, read_whole
from vaebench.typed import clipped

__all__ = ["PerImageFile", "PerImageNumbers", "read_per_image"]

_LARGEST = 1 << 30  # bytes, of a file and of its arrays
_KINDS = {"images": (1, "iu"), "done": (2, "b"), "seconds": (1, "f"), "rows": (1, "U")}
_KINDS |= {"key": (0, "U"), "provenance": (0, "U")}
"""The number of axes and numpy's kinds of type of an array; the arrays with other names are (n, N) floats."""


@dataclass(frozen=True)
class PerImageNumbers:
    """The numbers behind one result, for each of N images and n repeats."""

    images: np.ndarray
    """The images' indices in their split, (N,)."""
    repeats: np.ndarray
    """The estimate of each repeat, (n, N), in nats."""
    diagnostics: Mapping[str, np.ndarray]
    """The estimator's other numbers by name, for example ``ess`` and ``pareto_k``, each (n, N)."""

    @property
    def values(self) -> np.ndarray:
        """Return the estimates averaged over repeats, (N,); their mean is the mean of the result."""
        return self.repeats.mean(0)


def read_per_image(folder: RunFolder, record: ResultRecord, *, diagnostics: bool = True) -> PerImageNumbers:
    """Return the numbers of each image behind ``record``, a result of the run in ``folder``.

    ``diagnostics=False`` reads the estimates alone, which takes less time.

    To compare two results on the same images (equal ``images`` and protocol), take the differences of their ``values``:
    their standard error does not contain the variance between images.

    Raises:
        UserError: the record names no file, the file is missing or corrupt, or its numbers are not those of the record.
    """
    if record.per_image is None:
        raise UserError(
            f"{folder.results}: the {record.estimator} result has no numbers per image: run `vaebench evaluate` again"
        )
    name, _, array = record.per_image.rpartition(":")
    try:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise Unreadable("it is not in the run folder")
        needed = ("images", "rows", array)
        arrays = _arrays(folder.path / name, needed, None if diagnostics else (*needed, "key", "provenance"))
    except (FileNotFoundError, Unreadable) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise UserError(f"cannot read {folder.path / name} ({reason}): run `vaebench evaluate` again") from error
    images, repeats = arrays["images"], arrays[array][: record.repeats]
    if fault := _fault(Path(name), arrays, repeats, record):
        raise UserError(
            f"{folder.path / name} is not the file of the {record.estimator} result {record.mean:.2f}: {fault}. Run "
            "`vaebench evaluate` again."
        )
    rows = [str(row) for row in arrays["rows"] if row in arrays and diagnostics]
    return PerImageNumbers(images, repeats, {row: arrays[row][: record.repeats] for row in rows})


def _arrays(path: Path, needed: Sequence[str], chosen: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays in an .npz file by name, each of the type that `PerImageFile` writes.

    ``needed``: the names that the file must have. ``chosen``: the names to read; None for all.

    Unreadable for a link or a corrupt file, FileNotFoundError if there is none.
    """
    try:
        arrays = read_npz(io.BytesIO(read_whole(path, _LARGEST)), _LARGEST, chosen)
    except ValueError as error:
        raise Unreadable(clipped(str(error))) from error
    if missing := [name for name in needed if name not in arrays]:
        raise Unreadable(f"it has no array {missing[0]}")
    for name, array in arrays.items():
        axes, kinds = _KINDS.get(name, (2, "f"))
        if array.ndim != axes or array.dtype.kind not in kinds:
            raise Unreadable(f"its array {clipped(name)} has {array.ndim} axes of type {clipped(str(array.dtype))}")
    return arrays


class _Compared(TypedDict):
    """The part of a provenance that a result shares with its numbers of each image."""

    run: str
    weights: str
    code: str
    data: str


def _fault(path: Path, arrays: Mapping[str, np.ndarray], repeats: np.ndarray, record: ResultRecord) -> str | None:
    """Return why the arrays in the file ``path`` are not the numbers behind ``record``; None if they are."""
    if repeats.shape != (record.repeats, record.n_images) or len(arrays["images"]) != record.n_images:
        return f"it has {repeats.shape} numbers for {record.repeats} repeats of {record.n_images} images"
    if "key" in arrays and str(arrays["key"]) != path.stem:
        return f"it was written as {arrays['key']}.npz"
    if "provenance" in arrays and record.provenance is not None:
        try:
            stored = parse_json(str(arrays["provenance"]).encode(), _Compared)
        except Unreadable as error:
            return f"its provenance cannot be read: {error}"
        for name in _Compared.__required_keys__:
            if stored[name] != getattr(record.provenance, name):
                return f"its numbers are of another run or model ({name} {stored[name]})"
    values = repeats.mean(0)
    n, mean = len(values), values.mean()
    apart = values - mean
    stderr = math.sqrt(apart @ apart / (n - 1) / n) if n > 1 else record.stderr
    pairs = ((mean, record.mean), (stderr, record.stderr))
    if not all(abs(found - told) <= 1e-9 + 1e-6 * abs(told) for found, told in pairs):  # false for nan
        return f"its numbers have the mean {mean:.4f} and the standard error {stderr:.4f}"
    return None


class PerImageFile:
    """The numbers of N images that an evaluation has made so far: R rows for each of n repeats, float64.

    An interrupted evaluation resumes from this file. An evaluation with more repeats adds to it; one with fewer leaves
    the others in the file.

    Args:
        path: the .npz file.
        rows: the names of the R rows.
        images: the images' indices in their split, (N,).
        repeats: the least number of repeats n.
        made_by: the provenance of the numbers.
    """

    def __init__(
        self,
        path: Path,
        rows: Sequence[str],
        images: np.ndarray,
        repeats: int,
        made_by: Provenance | None = None,
    ) -> None:
        self.path, self._made_by = path, made_by
        self._rows, self._images = tuple(rows), images
        self.numbers = np.zeros((len(rows), repeats, len(images)))
        """(R, n, N)."""
        self.done = np.zeros((repeats, len(images)), dtype=bool)
        self.seconds = np.zeros(repeats)
        """Seconds spent on each repeat, (n,)."""
        self._concluded: dict[str, np.ndarray] = {}

    def read(self) -> bool:
        """Read the file, if there is one; return False if it is corrupt."""
        try:
            arrays = _arrays(self.path, ("images", "done", "seconds", *self._rows))
        except FileNotFoundError:
            return True
        except Unreadable:
            return False
        done, seconds = arrays["done"], arrays["seconds"]
        shape = (len(seconds), len(self._images))
        if str(arrays.get("key", self.path.stem)) != self.path.stem or done.shape != shape:
            return False  # a copy of another file, or numbers of other images
        if not (np.isfinite(seconds) & (seconds >= 0)).all():
            return False
        if not np.array_equal(arrays["images"], self._images) or any(arrays[row].shape != shape for row in self._rows):
            return False
        numbers = np.stack([arrays[row] for row in self._rows])
        repeats = max(len(self.done), len(done))
        self.numbers, self.done = _longer(numbers, repeats, 1), _longer(done, repeats, 0)
        self.seconds = _longer(seconds, repeats, 0)
        self._concluded = {name: array for name, array in arrays.items() if name.startswith("values")}
        return True

    def conclude(self, values: Sequence[np.ndarray]) -> list[str]:
        """Write the estimates of each result, (n, N), and return their `ResultRecord.per_image`."""
        names = ["values" if i == 0 else f"values_{i + 1}" for i in range(len(values))]
        for name, array in zip(names, values, strict=True):
            if len(self._concluded.get(name, ())) <= len(array):
                self._concluded[name] = array
        self.write()
        return [f"{self.path.parent.name}/{self.path.name}:{name}" for name in names]

    def write(self) -> None:
        """Replace the file by the current numbers. UserError if it cannot be written."""
        buffer = io.BytesIO()
        arrays = {
            "images": self._images,
            "done": self.done,
            "seconds": self.seconds,
            "rows": np.array(self._rows),
            "key": np.array(self.path.stem),
            **({} if self._made_by is None else {"provenance": np.array(json.dumps(asdict(self._made_by)))}),
            **dict(zip(self._rows, self.numbers, strict=True)),
            **self._concluded,
        }
        np.savez(buffer, **arrays)
        self.path.parent.mkdir(exist_ok=True)
        write_whole(self.path, buffer.getvalue())


def _longer(array: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Return ``array`` extended by zeros to ``length`` along ``axis``."""
    missing = [(0, length - size if i == axis else 0) for i, size in enumerate(array.shape)]
    return np.pad(array, missing)
