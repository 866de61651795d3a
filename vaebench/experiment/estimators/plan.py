"""What an estimator is to the rest of an evaluation: a plan of which images it sees, how its numbers are made, and what
is reported of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.experiment.assembly import Experiment

__all__ = ["Batch", "Estimator", "Finding", "Images", "Plan", "chosen"]

Batch = tuple[slice, Tensor]
"""Which images, and their numbers: one row for each name of ``Plan.rows``, (R, images), float64."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A result but for where and when it was found: the fields are those of a result record."""

    estimator: str
    direction: Literal["exact", "lower_bound", "upper_bound", "estimate"]
    values: Tensor
    """Nats per image, (N,)."""
    quantity: str = "log p(x)"
    """What was estimated, as result lines show it."""
    k: int | None = None
    inner_k: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One estimator, applied to one run's weights."""

    split: str
    protocol: str
    """Of the images that are evaluated; a subset has one of its own."""
    count: int
    """Images."""
    key: Sequence[object]
    """All that the numbers depend on, beside the run, its epoch and its data."""
    rows: tuple[str, ...]
    """What is kept of each image; the first is its value."""
    batches: Callable[[int], Iterator[Batch]]
    """Yields the numbers of all images from the given one on, in order."""
    conclude: Callable[[Tensor], list[Finding]]
    """Maps the numbers of all images, (R, N), to results; RunFailed where they are not fit to be reported."""


Estimator = Callable[[Experiment], Plan]
"""UserError where the settings make no sense for the run."""


class Images(NamedTuple):
    """The images that the settings name."""

    numbers: Tensor
    """Their places in the split, (N,)."""
    intensities: Tensor
    """Pixel bytes, (N, X), on the experiment's device."""
    protocol: str


def chosen(experiment: Experiment) -> Images:
    """Return the images that an evaluation is to see."""
    settings, data = experiment.config.estimator, experiment.data
    intensities, protocol = data.split(settings.split), str(data.protocol)
    numbers = torch.arange(len(intensities))
    if settings.images is not None and settings.images < len(intensities):
        generator = torch.Generator().manual_seed(runtime.derived_seed(settings.seed, "subset"))
        numbers = torch.randperm(len(intensities), generator=generator)[: settings.images].sort().values
        # A subset is another test set: a random 1,000 of MNIST's 10,000 can be a nat off.
        protocol += f"/random{len(numbers)}-seed{settings.seed}"
    intensities = intensities[numbers]
    if settings.split == "train" and not data.continuous:
        # The training images of a dynamic protocol are grey: they are drawn once, by the evaluation's seed.
        generator = torch.Generator().manual_seed(runtime.derived_seed(settings.seed, "train"))
        intensities = data.observe(intensities, generator).mul(255).to(torch.uint8)
    return Images(numbers, intensities.to(experiment.device), protocol)
