"""Where the checks run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Bench", "default_dtype"]


@dataclass(frozen=True)
class Bench:
    """What a check is given. Within ``with bench.device:`` new tensors are made there."""

    device: torch.device
    folder: Path
    """An empty folder, removed afterwards."""
    seed: int = 0
    """For what takes a seed of its own; torch's generators are seeded with it."""


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make ``dtype`` the one of new tensors within the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
