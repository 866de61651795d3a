"""The numbers of each image behind a result: kept while they are made, and read for paired comparisons."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaebench.errors import UserError
from vaebench.records.files import write_whole
from vaebench.records.folder import RunFolder
from vaebench.records.results import ResultRecord

__all__ = ["PerImageFile", "PerImageNumbers", "read_per_image"]

DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class PerImageNumbers:
    """What is known of each of N images, over n repetitions."""

    images: np.ndarray
    """The images' places in their split, (N,)."""
    repeats: np.ndarray
    """What was estimated, nats, of each repetition, (n, N)."""
    diagnostics: Mapping[str, np.ndarray]
    """Everything else that the estimator keeps of an image, by name, such as ``ess`` and ``pareto_k``; (n, N) each."""

    @property
    def values(self) -> np.ndarray:
        """What was estimated, averaged over repetitions, (N,): the mean of these is the result's."""
        return self.repeats.mean(0)


def read_per_image(folder: RunFolder, record: ResultRecord) -> PerImageNumbers:
    """Return the numbers of each image behind ``record``, one of the results of the run in ``folder``.

    Two results on the same images (equal ``images``, equal protocol) are best compared by the differences of their
    ``values``, whose standard error knows nothing of how much the images vary.

    UserError when the record names no file, or the file is gone or damaged.
    """
    if record.per_image is None:
        raise UserError(f"{folder.results}: the {record.estimator} result keeps no numbers per image: evaluate again")
    name, _, array = record.per_image.rpartition(":")
    try:
        with np.load(folder.path / name, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
            images, repeats = arrays["images"], arrays[array][: record.repeats]
    except DAMAGED as error:
        raise UserError(f"cannot read {folder.path / name} ({error}): evaluate again") from error
    if repeats.shape != (record.repeats, len(images)) or len(images) != record.n_images:
        raise UserError(f"{folder.path / name} is not the file of this result: evaluate again")
    rows = [str(row) for row in arrays["rows"] if row in arrays]
    return PerImageNumbers(images, repeats, {row: arrays[row][: record.repeats] for row in rows})


class PerImageFile:
    """The numbers of N images, so far: R rows of them for each of n repetitions, float64.

    A stopped evaluation goes on from here, and one with more repetitions adds to those there are; one with fewer
    leaves the others as they are.

    Args:
        path: the .npz file.
        rows: names of the R rows.
        images: the images' places in their split, (N,).
        repeats: n, at least.
    """

    def __init__(self, path: Path, rows: Sequence[str], images: np.ndarray, repeats: int) -> None:
        self.path = path
        self._rows, self._images = tuple(rows), images
        self.numbers = np.zeros((len(rows), repeats, len(images)))
        """(R, n, N)."""
        self.done = np.zeros((repeats, len(images)), dtype=bool)
        self.seconds = np.zeros(repeats)
        """Spent on each repetition."""
        self._concluded: dict[str, np.ndarray] = {}

    def read(self) -> bool:
        """Take over what the file holds; False if it is damaged."""
        try:
            with np.load(self.path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            numbers, done, seconds = np.stack([arrays[row] for row in self._rows]), arrays["done"], arrays["seconds"]
            if done.shape != (len(seconds), len(self._images)) or numbers.shape[1:] != done.shape:
                return False
        except FileNotFoundError:
            return True
        except DAMAGED:
            return False
        repeats = max(len(self.done), len(done))
        self.numbers, self.done = _longer(numbers, repeats, 1), _longer(done, repeats, 0)
        self.seconds = _longer(seconds, repeats, 0)
        self._concluded = {name: array for name, array in arrays.items() if name.startswith("values")}
        return True

    def conclude(self, values: Sequence[np.ndarray]) -> list[str]:
        """Keep what was concluded, (n, N) for each result, and return where: what `ResultRecord.per_image` holds."""
        names = ["values" if i == 0 else f"values_{i + 1}" for i in range(len(values))]
        for name, array in zip(names, values, strict=True):
            if len(self._concluded.get(name, ())) <= len(array):
                self._concluded[name] = array
        self.write()
        return [f"{self.path.parent.name}/{self.path.name}:{name}" for name in names]

    def write(self) -> None:
        """Replace the file by what is known now. UserError where that is impossible."""
        buffer = io.BytesIO()
        arrays = {
            "images": self._images,
            "done": self.done,
            "seconds": self.seconds,
            "rows": np.array(self._rows),
            **dict(zip(self._rows, self.numbers, strict=True)),
            **self._concluded,
        }
        np.savez(buffer, **arrays)
        self.path.parent.mkdir(exist_ok=True)
        write_whole(self.path, buffer.getvalue())


def _longer(array: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Return ``array`` with zeros after it along ``axis``."""
    missing = [(0, length - size if i == axis else 0) for i, size in enumerate(array.shape)]
    return np.pad(array, missing)
