"""What can be said about a picture of a run; each command has a dataclass, and its fields are the command's keys."""

from dataclasses import dataclass
from typing import Annotated, Literal

from vaebench.config.schema import Count, Device, Natural, Positive, Rule, Seed, Word

__all__ = ["Interpolate", "Look", "Reconstruct", "Sample", "Traverse"]

Steps = Annotated[int, Rule("at least 2, both ends", lambda value: value >= 2)]
Scale = Annotated[int, Rule("from 1 to 16", lambda value: 1 <= value <= 16)]
Many = Annotated[int, Rule("from 1 to 4096", lambda value: 1 <= value <= 4096)]
Numbers = Annotated[tuple[Natural, ...], Rule("a list of at least one number, as in [3,17]", len)]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """What all pictures share."""

    seed: Seed = 0
    """Of the draws."""
    scale: Scale = 3
    """Pixels of the picture for one of an image."""
    device: Device = "auto"
    data_dir: Word | None = None
    """None: as in training."""
    threads: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Sample(Look):
    """Draws from the prior."""

    n: Many = 64
    columns: Count = 8


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Look):
    """Images beside their reconstructions."""

    n: Many = 32
    """Images."""
    columns: Count = 4
    """Images in a row, each with its reconstructions."""
    draws: Many = 1
    """Reconstructions of each image."""
    split: Split = "test"
    images: Numbers | None = None
    """Their numbers in the split, from 0; None for the first ``n``."""


@dataclass(frozen=True, kw_only=True)
class Interpolate(Look):
    """Ways from one image to another through latent space."""

    n: Many = 8
    """Pairs."""
    steps: Steps = 8
    path: Literal["linear", "spherical"] = "linear"
    split: Split = "test"
    images: Numbers | None = None
    """Two for each pair; None for the first 2 ``n``."""


@dataclass(frozen=True, kw_only=True)
class Traverse(Look):
    """One latent coordinate at a time."""

    n: Many = 10
    """Coordinates: those in which the images differ most."""
    steps: Steps = 9
    reach: Positive = 2.5
    """Standard deviations of the coordinate over images, to either side."""
    split: Split = "test"
    image: Natural = 0
    """The number of the image to start from."""
    coordinates: Numbers | None = None
    """Their numbers, from 0; None for the ``n`` most active."""
