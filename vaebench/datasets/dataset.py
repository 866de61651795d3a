"""Load a protocol as torch tensors of bytes, small enough to keep on the device."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaebench.datasets.arrays import draw_pixels
from vaebench.datasets.binarization import binarize
from vaebench.datasets.preparation import Say, prepare, to_stderr
from vaebench.datasets.protocol import PixelKind, Protocol
from vaebench.errors import UserError

__all__ = ["Dataset", "load"]


@dataclass(frozen=True)
class Dataset:
    """The images of one protocol as intensities, uint8 (N, C * H * W): P(pixel = 1) = byte / 255.

    ``image_shape`` is (C, H, W). Intensities off the grid of bytes are float32 in [0, 1] (``pixel_kind`` continuous).
    A split that was binarized once holds only 0 and 255, so that ``observe`` works for every protocol. ``grey``: the
    intensities that validation and test were drawn from, or the split itself if it was not drawn. ``fingerprint``: a
    hash of all pixels. ``note``: a one-line description. ``cache``: the cache file, or None.
    """

    protocol: Protocol
    image_shape: tuple[int, int, int]
    train: Tensor
    validation: Tensor
    test: Tensor
    grey: Mapping[str, Tensor]
    fingerprint: str
    note: str
    cache: Path | None

    @property
    def continuous(self) -> bool:
        """Whether pixels are grey levels; a Bernoulli likelihood of them is not a proper log-likelihood."""
        return self.protocol.continuous

    @property
    def pixel_kind(self) -> PixelKind:
        """The kind of pixels that ``observe`` returns."""
        return self.protocol.pixel_kind

    @property
    def pixel_mean(self) -> Tensor:
        """The mean of each pixel of the training images, float32 (C * H * W,) in [0, 1]."""
        return _levels(self.train.double().mean(0), self.train.dtype).float()

    def split(self, name: str) -> Tensor:
        """Return the intensities of ``train``, ``validation`` or ``test``: uint8 or float32 (N, C * H * W)."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in parts:
            raise UserError(f"unknown split={name}; choose from: {', '.join(parts)}")
        return parts[name]

    def observe(self, intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a batch as a model sees it, binarized or grey: (B, C * H * W) -> float32 in [0, 1]."""
        return _levels(intensities, intensities.dtype).float() if self.continuous else binarize(intensities, generator)

    def rebinarized(self, split: str, seed: int) -> Tensor:
        """Draw validation or test again: uint8 of 0 and 255; the protocol's own seed gives its own pixels.

        Raises:
            UserError: the protocol has no grey levels for this split.
        """
        if split not in self.grey or not self.protocol.drawn:
            raise UserError(f"{self.protocol} has no grey levels for {split}, so that its pixels cannot be drawn again")
        grey = self.grey[split]
        return torch.from_numpy(draw_pixels(grey.cpu().numpy(), seed, split)).to(grey.device)


def _levels(numbers: Tensor, intensities: torch.dtype) -> Tensor:
    """Return numbers in the units of ``intensities`` as numbers in [0, 1]."""
    return numbers if intensities.is_floating_point else numbers / 255


def load(
    name: str,
    data_dir: Path,
    *,
    binarization: str | None = None,
    split: str = "default",
    seed: int = 0,
    download: bool = True,
    progress: bool = True,
    say: Say = to_stderr,
    **own: Any,
) -> Dataset:
    """Prepare a protocol and return it as tensors; for the arguments, also ``own``, see ``prepare``.

    Raises:
        UserError: an unknown setting; corrupt files, or missing files that cannot be downloaded.
    """
    prepared = prepare(
        name,
        data_dir,
        binarization=binarization,
        split=split,
        seed=seed,
        download=download,
        progress=progress,
        say=say,
        **own,
    )
    # Copy read-only memory (an IDX file's bytes): torch warns about it.
    parts = {
        name: torch.from_numpy(array if array.flags.writeable else array.copy())
        for name, array in prepared.arrays.parts().items()
    }
    grey = {split: parts.get(f"grey_{split}", parts[split]) for split in ("validation", "test")}
    return Dataset(
        protocol=prepared.protocol,
        image_shape=prepared.protocol.info.shape,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        grey=grey,
        fingerprint=prepared.fingerprint,
        note=prepared.note,
        cache=prepared.cache,
    )
