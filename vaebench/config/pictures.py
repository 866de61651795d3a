"""Settings of the picture commands: one dataclass a command, whose fields are the keys on the command line."""

from dataclasses import dataclass
from typing import Annotated, Literal

from vaebench.config.schema import Count, Device, Natural, Positive, Seed, Word
from vaebench.typed import Rule

__all__ = ["Interpolate", "PictureSettings", "Reconstruct", "Sample", "Traverse"]

Steps = Annotated[int, Rule(">= 2 (both ends)", lambda value: value >= 2)]
Scale = Annotated[int, Rule("from 1 to 16", lambda value: 1 <= value <= 16)]
Many = Annotated[int, Rule("from 1 to 4096", lambda value: 1 <= value <= 4096)]
Numbers = Annotated[tuple[Natural, ...], Rule("a list of at least one number, for example [3,17]", len)]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """Settings of all pictures."""

    seed: Seed = 0
    """Seed of the samples."""
    scale: Scale = 3
    """Pixels of the PNG for each pixel of an image, along each axis."""
    device: Device = "auto"
    data_dir: Word | None = None
    """None: as in training."""
    threads: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Sample(PictureSettings):
    """Samples from the prior."""

    n: Many = 64
    """Number of samples."""
    columns: Count = 8
    """Samples in each row."""


@dataclass(frozen=True, kw_only=True)
class Reconstruct(PictureSettings):
    """Images beside their reconstructions."""

    n: Many = 32
    """Number of images."""
    columns: Count = 4
    """Images in each row, each with its reconstructions."""
    draws: Many = 1
    """Reconstructions of each image."""
    split: Split = "test"
    images: Numbers | None = None
    """Indices of the images in the split, from 0; None: the first ``n``."""


@dataclass(frozen=True, kw_only=True)
class Interpolate(PictureSettings):
    """Paths from one image to another through latent space."""

    n: Many = 8
    """Number of pairs."""
    steps: Steps = 8
    """Images of each path, both ends included."""
    path: Literal["linear", "spherical"] = "linear"
    """The form of the paths."""
    split: Split = "test"
    images: Numbers | None = None
    """Indices in the split, two for each pair; None: the first 2 ``n``."""


@dataclass(frozen=True, kw_only=True)
class Traverse(PictureSettings):
    """One latent coordinate changed at a time."""

    n: Many = 10
    """Number of coordinates: those with the largest standard deviation over images."""
    steps: Steps = 9
    """Images of each coordinate."""
    reach: Positive = 2.5
    """The range to either side, in standard deviations of the coordinate over images."""
    split: Split = "test"
    image: Natural = 0
    """The index of the image to start from."""
    coordinates: Numbers | None = None
    """Indices of the coordinates, from 0; None: the ``n`` most active."""
