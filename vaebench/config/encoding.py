"""The settings of `vaebench encode`. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from vaebench.config.schema import Count, Device, Natural, Seed, Several, Word

__all__ = ["Encoding"]


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """The images, draws and seed of the latents of a run."""

    split: Literal["train", "validation", "test"] = "test"
    images: Count | None = None
    """A random subset of this size; None: all."""
    draws: Natural = 0
    """Draws of q(z|x) that are written for each image."""
    mean_draws: Several = 100
    """Draws whose mean is written if q(z|x) has no mean in closed form."""
    seed: Seed = 0
    batch: Count | None = None
    """Images at a time; changes time and memory, not the results."""
    device: Device = "auto"
    data_dir: Word | None = None
    """None: the run's."""
    threads: Count | None = None
    progress: bool = True
