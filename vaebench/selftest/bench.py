"""The device, folder and seed of a check."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Bench", "default_dtype"]


@dataclass(frozen=True)
class Bench:
    """The argument of every check. New tensors within ``with bench.device:`` are on the device."""

    device: torch.device
    folder: Path
    """An empty folder, deleted after the check."""
    seed: int = 0
    """For functions with a seed argument. Torch's generators are seeded with it before the check."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set the default dtype within the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
