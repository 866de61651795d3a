"""The settings of `vaebench diagnose`. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from vaebench.config.schema import Count, Device, Natural, Seed, Several, Word
from vaebench.typed import Rule

__all__ = ["Diagnosis"]

Halves = Annotated[int, Rule("an even number >= 4 (two halves)", lambda value: value >= 4 and value % 2 == 0)]
Gradients = Annotated[int, Rule("0 (none) or >= 4", lambda value: value == 0 or value >= 4)]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The images, samples and seed of a diagnosis."""

    split: Literal["train", "validation", "test"] = "test"
    images: Several | None = 500
    """A random subset of this size; None: all."""
    draws: Halves = 100
    """Samples of q(z|x) for each image, in two independent halves."""
    k: Count | None = None
    """Importance weights for the effective sample size and for each gradient; None: as in training."""
    inner_k: Natural | None = None
    """None: as in training."""
    gradients: Gradients = 100
    """Gradients of one batch, from which the noise of the gradient is estimated; 0: none."""
    seed: Seed = 0
    batch: Count | None = None
    """Images at a time; changes time and memory, not the results."""
    device: Device = "auto"
    data_dir: Word | None = None
    """None: the run's."""
    threads: Count | None = None
    progress: bool = True
