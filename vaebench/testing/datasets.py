"""The contract of a data set: shapes, ranges, splits without common images, the same pixels at each load."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaebench.datasets.dataset import Dataset
from vaebench.datasets.dataset import load as load_dataset
from vaebench.selftest.rows import CheckRow, exact
from vaebench.testing.contract import Contract, no_problem, verify

__all__ = ["check_dataset", "dataset_contract"]

SPLITS = ("train", "validation", "test")
SHARED = 0.02
"""The largest share of a split that may also be in the training images: published sets hold some images twice."""


Images = Callable[..., Mapping[str, np.ndarray]]
"""What the entry point of a data set names: (data_dir, **settings) -> arrays of images by name."""


def check_dataset(images: Images, /, *, data_dir: str | Path = "data", **settings: Any) -> None:
    """Print the checks of a data set, and raise AssertionError with one line for each that fails.

    Args:
        images: what the entry point of the data set names: (data_dir, **settings) -> arrays of images by name.
        data_dir: the folder of data sets.
        settings: the keys of its yaml besides ``name``, ``binarization``, ``split`` and ``seed``.
    """
    verify(dataset_contract(partial(_loaded, images, Path(data_dir), settings)))


def _loaded(images: Images, data_dir: Path, settings: Mapping[str, Any]) -> Dataset:
    """Return the data set of arrays, in the protocol that own images have."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        arrays: dict[str, Any] = dict(images(data_dir, **settings))
        np.savez(path, **arrays)
        return load_dataset("own", Path(folder), path=str(path))


def dataset_contract(load: Callable[[], Dataset]) -> Contract:
    """Return the checks of the data set that ``load`` returns."""
    subject = _Subject(load)
    return {check.__name__: partial(check, subject) for check in (shapes, splits, observed, stability)}


@dataclass(frozen=True)
class _Subject:
    """A data set by the function that loads it."""

    load: Callable[[], Dataset]

    @cached_property
    def data(self) -> Dataset:
        """The data set, loaded once."""
        return self.load()


def shapes(subject: _Subject) -> Iterator[CheckRow]:
    """Compare the shapes, dtypes and ranges of the splits."""
    data = subject.data
    channels, height, width = data.image_shape
    for name in SPLITS:
        images, problems = data.split(name), []
        if images.dim() != 2 or images.shape[1] != channels * height * width:
            problems.append(f"it has shape {tuple(images.shape)}, not (N, {channels * height * width})")
        if len(images) < 2:
            problems.append(f"it has {len(images)} images")
        if images.dtype not in (torch.uint8, torch.float32):
            problems.append(f"it is {images.dtype}, not uint8 or float32")
        elif images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
            problems.append(f"pixels lie in [{images.min():.3g}, {images.max():.3g}], not in [0, 1]")
        yield no_problem(f"{name}: {len(images):,} images of {channels}x{height}x{width}", problems)
    sizes = tuple(len(data.split(name)) for name in SPLITS)
    wrong = [f"the protocol has {data.protocol.sizes}"] * (tuple(data.protocol.sizes) != sizes)
    yield no_problem("the sizes are those of the protocol", wrong)
    wrong = ["all pixels are equal"] * bool((data.train == data.train[:1, :1]).all())
    yield no_problem("images differ", wrong)


def splits(subject: _Subject) -> Iterator[CheckRow]:
    """Count the images that two splits share, before binarization."""
    data = subject.data
    images = {"train": data.train} | {name: data.grey.get(name, data.split(name)) for name in SPLITS[1:]}
    rows = {name: _rows(part) for name, part in images.items()}
    for one, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        known = set(rows[other])
        shared = sum(row in known for row in rows[one]) / max(1, len(rows[one]))
        yield exact(f"share of {one} images that are in {other} too", SHARED, shared, 0, "<=")


def _rows(images: Tensor) -> list[bytes]:
    return [row.tobytes() for row in images.cpu().contiguous().numpy()]


def observed(subject: _Subject) -> Iterator[CheckRow]:
    """Compare what a model sees with the kind of pixels that the protocol names."""
    data = subject.data
    for name in SPLITS:
        images = data.split(name)[:200]
        x, problems = data.observe(images), []
        problems += [f"it is {x.dtype}, not float32"] * (x.dtype != torch.float32)
        problems += [f"it has shape {tuple(x.shape)}"] * (x.shape != images.shape)
        problems += ["it lies outside [0, 1]"] * (not bool(((x >= 0) & (x <= 1)).all()))
        if data.pixel_kind == "binary":
            problems += ["it has other values than 0 and 1"] * (not bool(((x == 0) | (x == 1)).all()))
        if data.pixel_kind == "8-bit":
            problems += ["it has other values than bytes / 255"] * (not bool(((255 * x).round() / 255 == x).all()))
        yield no_problem(f"{name}: {data.pixel_kind} pixels", problems)
    mean = data.pixel_mean
    problems = [f"it has shape {tuple(mean.shape)}"] * (mean.shape != data.train.shape[1:])
    problems += ["it lies outside [0, 1]"] * (not bool(((mean >= 0) & (mean <= 1)).all()))
    yield no_problem("mean image", problems)


def stability(subject: _Subject) -> Iterator[CheckRow]:
    """Load the data again."""
    first, again = subject.data, subject.load()
    same = all(torch.equal(first.split(name), again.split(name)) for name in SPLITS)
    yield no_problem("the same pixels at the next load", [] if same else ["other pixels at the next load"])
    problems = [f"{first.fingerprint}, then {again.fingerprint}"] * (first.fingerprint != again.fingerprint)
    problems += ["it is empty"] * (not first.fingerprint)
    yield no_problem(f"fingerprint {first.fingerprint}", problems)
    problems = [f"{first.protocol}, then {again.protocol}"] * (str(first.protocol) != str(again.protocol))
    yield no_problem(f"protocol {first.protocol}", problems)
