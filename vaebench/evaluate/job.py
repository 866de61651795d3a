"""What an estimator is to the rest of an evaluation: a plan of which images it sees, how their numbers are made, and
what is reported of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.direction import Direction
from vaebench.errors import UserError
from vaebench.experiment import Experiment

__all__ = ["Estimate", "Estimator", "EstimatorJob", "Images", "at_a_time", "chosen", "repeated"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A result but for where and when it was found: the fields are those of a result record."""

    estimator: str
    direction: Direction
    values: Tensor
    """Nats per image, (N,)."""
    quantity: str = "log p(x)"
    """What was estimated, as result lines show it."""
    k: int | None = None
    inner_k: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    """One line about how far the number can be trusted, shown under it."""


@dataclass(frozen=True, kw_only=True)
class EstimatorJob:
    """One estimator, applied to one run's weights."""

    split: str
    protocol: str
    """Of the images that are evaluated; a subset has one of its own."""
    images: Tensor
    """The images' places in their split, (N,)."""
    key: Sequence[object]
    """All that the numbers depend on, beside the run, its epoch and its data."""
    rows: tuple[str, ...]
    """What is kept of each image, by name; the first is its value."""
    batch: int
    """Images at a time. More processes, or less memory, may take fewer."""
    numbers: Callable[[slice], Tensor]
    """Maps a part of the N images to their numbers, one row for each name of ``rows``, (R, part), float64. They depend
    on no other part, nor on what was asked before: parts may come in any order, and in several processes."""
    summarise: Callable[[Tensor], list[Estimate]]
    """Maps the numbers of all images, (R, N), to results; RunFailed where they are not fit to be reported. With n
    repeats they stand side by side, (R, n N), and so do the values of the estimates."""
    compiles: bool = False
    """Whether p(x, z) can be compiled for it: it asks for it at one size, over and over."""


Estimator = Callable[[Experiment], EstimatorJob]
"""UserError where the settings make no sense for the run."""


class Images(NamedTuple):
    """The images that the settings name."""

    numbers: Tensor
    """Their places in the split, (N,)."""
    intensities: Tensor
    """Pixel bytes, (N, X), on the experiment's device."""
    protocol: str


def repeated(experiment: Experiment, repeat: int) -> Experiment:
    """Return the experiment of one repetition: noise of its own, on the same images. The first is the experiment."""
    if repeat == 0:
        return experiment
    settings = experiment.config.estimator
    own = runtime.derived_seed(settings.seed, "repeat", repeat) % 2**32
    return experiment.estimating(seed=own, image_seed=_image_seed(experiment))


def at_a_time(experiment: Experiment, batch: int, left: int) -> int:
    """Return how many images make up a task: so few, unless the user chose, that no process goes without.

    Args:
        experiment: with the settings.
        batch: the most at a time.
        left: images to do.
    """
    settings = experiment.config.estimator
    return batch if settings.batch else max(1, min(batch, math.ceil(left / settings.processes)))


def chosen(experiment: Experiment) -> Images:
    """Return the images that an evaluation is to see."""
    settings, data = experiment.config.estimator, experiment.data
    intensities, protocol = data.split(settings.split), str(data.protocol)
    seed = _image_seed(experiment)
    numbers = torch.arange(len(intensities))
    if settings.images is not None and settings.images < len(intensities):
        generator = torch.Generator().manual_seed(runtime.derived_seed(seed, "subset"))
        numbers = torch.randperm(len(intensities), generator=generator)[: settings.images].sort().values
        # A subset is another test set: a random 1,000 of MNIST's 10,000 can be a nat off.
        protocol += f"/random{len(numbers)}-seed{seed}"
    if settings.binarize == "fresh":
        # Keep this spelling: older results hold it, and the file name of an evaluation is a hash of it.
        protocol += f"/rebinarised-seed{settings.seed}"
    intensities = _drawn(experiment, intensities, seed)[numbers]
    return Images(numbers, intensities.to(experiment.device), protocol)


def _image_seed(experiment: Experiment) -> int:
    settings = experiment.config.estimator
    return settings.seed if settings.image_seed is None else settings.image_seed


def _drawn(experiment: Experiment, intensities: Tensor, seed: int) -> Tensor:
    """Return the pixels of the whole split, drawn afresh where that is asked for, or where they are grey."""
    settings, data = experiment.config.estimator, experiment.data
    fresh = settings.binarize == "fresh"
    if settings.split != "train":
        # Keep this spelling, too: the word is hashed into the seed of the pixels.
        own = runtime.derived_seed(settings.seed, "rebinarise") % 2**32
        return data.rebinarized(settings.split, own) if fresh else intensities
    if fresh and not (data.protocol.drawn and data.protocol.binarization == "dynamic"):
        raise UserError(f"{data.protocol} has no grey levels behind its train images to draw from again")
    if data.continuous:
        return intensities
    # The training images of a dynamic protocol are grey: they are drawn once, by the evaluation's seed.
    generator = torch.Generator().manual_seed(runtime.derived_seed(settings.seed if fresh else seed, "train"))
    return data.observe(intensities, generator).mul(255).to(torch.uint8)
