"""The settings of `vaebench diagnose`; free of torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from vaebench.config.schema import Count, Device, Natural, Rule, Seed, Several, Word

__all__ = ["Diagnosis"]

Halves = Annotated[int, Rule("an even number from 4 on: two halves", lambda value: value >= 4 and value % 2 == 0)]
Gradients = Annotated[int, Rule("0 (none) or 4 and more", lambda value: value == 0 or value >= 4)]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What to look at, and how closely."""

    split: Literal["train", "validation", "test"] = "test"
    images: Several | None = 500
    """At random; None for all."""
    draws: Halves = 100
    """Of q(z|x) for each image, in two independent halves."""
    k: Count | None = None
    """Weights whose effective number is estimated, and that a gradient is made of; None: as in training."""
    inner_k: Natural | None = None
    """None: as in training."""
    gradients: Gradients = 100
    seed: Seed = 0
    batch: Count | None = None
    """Images at a time; changes time and memory, never a result."""
    device: Device = "auto"
    data_dir: Word | None = None
    """None: the run's."""
    threads: Count | None = None
    progress: bool = True
