"""A prepared protocol as torch tensors of bytes, small enough to live on the device."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vaebench.datasets.arrays import draw_pixels
from vaebench.datasets.binarization import binarize
from vaebench.datasets.preparation import Prepared, Say, prepare, to_stderr
from vaebench.datasets.protocol import Protocol
from vaebench.errors import UserError

__all__ = ["Dataset", "load"]


@dataclass(frozen=True)
class Dataset:
    """The images of one protocol as intensities, uint8 (N, 784): P(pixel = 1) = byte / 255.

    A split that is binarised once holds only 0 and 255, so ``observe`` serves every protocol. ``grey`` holds
    the intensities that validation and test were drawn from, or the same tensors where there are none.
    ``fingerprint`` is a hash of all pixels, ``note`` one line for people, ``cache`` the file that holds them.
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
        """Whether pixels are grey levels, not draws; a Bernoulli likelihood of them is not a proper one."""
        return self.protocol.continuous

    def split(self, name: str) -> Tensor:
        """The intensities of ``train``, ``validation`` or ``test``: uint8 (N, 784)."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        if name not in parts:
            raise UserError(f"unknown split={name}; there are: {', '.join(parts)}")
        return parts[name]

    def observe(self, intensities: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What a model sees of a batch, drawn pixels or grey levels: uint8 (B, 784) -> float32 in [0, 1]."""
        return intensities.float() / 255 if self.continuous else binarize(intensities, generator)

    def rebinarized(self, split: str, seed: int) -> Tensor:
        """Validation or test drawn afresh: uint8 (N, 784) of 0 and 255; the protocol's seed repeats its draw.

        Raises:
            UserError: the protocol keeps no grey levels for this split.
        """
        if split not in self.grey or not self.protocol.drawn:
            raise UserError(f"{self.protocol} has no grey levels behind its {split} images to draw from again")
        grey = self.grey[split]
        return torch.from_numpy(draw_pixels(grey.cpu().numpy(), seed, split)).to(grey.device)


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
) -> Dataset:
    """Prepare a protocol and return it as tensors; the arguments are those of ``prepare``.

    Raises:
        UserError: an unknown word; files that are damaged, or absent and not to be had.
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
    )
    return _as_tensors(prepared)


def _as_tensors(prepared: Prepared) -> Dataset:
    # .copy() where numpy only lends read-only memory (an IDX file's bytes), which torch would warn about
    parts = {
        name: torch.from_numpy(array if array.flags.writeable else array.copy())
        for name, array in prepared.arrays.parts().items()
    }
    grey = {split: parts.get(f"grey_{split}", parts[split]) for split in ("validation", "test")}
    return Dataset(
        protocol=prepared.protocol,
        image_shape=(1, 28, 28),
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        grey=grey,
        fingerprint=prepared.fingerprint,
        note=prepared.note,
        cache=prepared.cache,
    )
