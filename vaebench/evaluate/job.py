"""The interface of an estimator: its inputs, its images, and the job that an evaluation runs for it."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench import runtime
from vaebench.config.schema import EstimatorSettings
from vaebench.datasets.dataset import Dataset
from vaebench.direction import Direction
from vaebench.encoders.base import Encoder
from vaebench.errors import UserError
from vaebench.evaluate.ranges import check_ranges
from vaebench.experiment import Experiment
from vaebench.model import GenerativeModel
from vaebench.registry import ESTIMATORS, registered

__all__ = ["Estimate", "EstimatorInputs", "EstimatorJob", "Images", "choose_images", "job_for", "random_subset"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The result of an estimator. All fields but ``values`` are fields of a result record, with the same names."""

    estimator: str
    direction: Direction
    values: Tensor
    """Nats per image, (N,)."""
    quantity: str = "log p(x)"
    """The estimated quantity, as result lines show it."""
    k: int | None = None
    inner_k: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    """One line about the reliability of the number, shown below it."""
    log_q: Direction | None = None
    """The direction of the encoder that made the weighted draws; None if the number does not depend on log q(z|x)."""

    def record_fields(self) -> dict[str, Any]:
        """Return the fields of the result record that the estimator knows."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "values"}


@dataclass(frozen=True, kw_only=True)
class EstimatorJob:
    """One estimator, applied to the weights of one run."""

    split: str
    protocol: str
    """Of the evaluated images; each subset has its own."""
    images: Tensor
    """The images' places in their split, (N,)."""
    key: Sequence[object]
    """All settings that change the numbers; the run, its epoch and its data are not part of it."""
    rows: tuple[str, ...]
    """Names of the numbers that are kept of each image; the first is its value."""
    batch: int
    """Images at a time. With more processes, or less memory, there may be fewer."""
    numbers: Callable[[slice], Tensor]
    """Maps a part of the N images to their numbers, one row for each name of ``rows``, (R, part), float64. They do not
    depend on other parts, or on earlier calls: several processes may compute the parts in any order."""
    summarise: Callable[[Tensor], list[Estimate]]
    """Maps the numbers of all images, (R, N), to results; RunFailed if they must not be reported. The n repeats are
    concatenated, (R, n N), and so are the values of the estimates."""
    compiles: bool = False
    """Whether p(x, z) can be compiled: the estimator calls it many times at one size."""


class Images(NamedTuple):
    """The images of an evaluation."""

    numbers: Tensor
    """Their places in the split, (N,)."""
    intensities: Tensor
    """Pixel bytes, (N, X), on the device of the run."""
    protocol: str


@dataclass(frozen=True, eq=False)
class EstimatorInputs:
    """The objects and settings that an estimator needs of a run."""

    settings: EstimatorSettings
    model: GenerativeModel
    encoder: Encoder
    encoder_name: str
    """As a user types it."""
    data: Dataset
    device: torch.device
    latent_dim: int
    trained_k: int
    """Weights per image at the end of training."""
    trained_inner_k: int
    """Inner samples at the end of training."""

    @classmethod
    def of(cls, experiment: Experiment) -> "EstimatorInputs":
        """Return the inputs from a run; UserError for a setting out of range."""
        config = experiment.config
        check_ranges(config.estimator)
        return cls(
            settings=config.estimator,
            model=experiment.model,
            encoder=experiment.encoder,
            encoder_name=config.encoder.name,
            data=experiment.data,
            device=experiment.device,
            latent_dim=config.latent_dim,
            trained_k=experiment.k,
            trained_inner_k=experiment.inner_k,
        )

    def for_repeat(self, repeat: int) -> "EstimatorInputs":
        """Return the inputs of one repeat: the same images with separate noise. The first repeat has ``self``."""
        if repeat == 0:
            return self
        seed = runtime.derived_seed(self.settings.seed, "repeat", repeat) % 2**32
        return replace(self, settings=replace(self.settings, seed=seed, image_seed=_image_seed(self.settings)))

    @cached_property
    def images(self) -> Images:
        """The images that the settings name."""
        return choose_images(self.data, self.settings, self.device)

    @property
    def inner_k(self) -> int:
        """Inner samples: from the settings, else as in training."""
        return self.trained_inner_k if self.settings.inner_k is None else self.settings.inner_k

    def observed(self, part: slice) -> Tensor:
        """Return a part of the images, x in [0, 1], (B, X)."""
        return self.data.observe(self.images.intensities[part])

    def blank(self, count: int = 1) -> Tensor:
        """Return blank images, (count, X), to try something with."""
        return torch.zeros(count, self.data.train.shape[1], device=self.device)

    def seeded(self, part: slice) -> AbstractContextManager[None]:
        """Seed distributions that draw from torch's own generator, and restore its state after the block."""
        return runtime.forked_randomness(self.device, runtime.derived_seed(self.settings.seed, part.start))

    def images_per_task(self, batch: int, left: int) -> int:
        """Return the number of images in a task: small enough for all processes, unless the user chose it.

        Args:
            batch: the most images at a time.
            left: images to evaluate.
        """
        return batch if self.settings.batch else max(1, min(batch, math.ceil(left / self.settings.processes)))

    def proposal(self) -> tuple[Encoder, dict[str, Any]]:
        """Return the encoder that makes the weighted draws, and the settings by which it differs from the trained one.

        UserError if it does not have the inner samples that the settings name.
        """
        settings, trained, valid = self.settings, self.encoder, self.encoder.proposal(self.model)
        own = settings.proposal == "own"
        encoder, shown = trained if own else valid, {}
        if valid is not trained:
            shown = {"proposal": "own" if own else valid.proposal_label}
        changes = {"tau": settings.tau, "share_psi": settings.share_psi}
        changes = {key: value for key, value in changes.items() if value is not None}
        try:
            rescored = encoder.with_inner_samples(**changes)
        except ValueError as error:
            words = " ".join(f"estimator.{key}={str(value).lower()}" for key, value in changes.items())
            hint = ": use estimator.tau=prior too" if settings.share_psi and encoder.has_inner_samples else ""
            raise UserError(f"{words} is invalid for encoder={self.encoder_name}: {error}{hint}") from error
        return rescored, shown if rescored is encoder else shown | changes


def job_for(inputs: EstimatorInputs) -> EstimatorJob:
    """Return the job of the configured estimator; UserError if its settings are invalid for this run."""
    settings = inputs.settings
    job = registered("estimator", ESTIMATORS, settings.name)(inputs)
    if settings.compile is True and not job.compiles:
        raise UserError(f"compile=true is unsupported for estimator={settings.name}: leave it out")
    return job


def choose_images(data: Dataset, settings: EstimatorSettings, device: torch.device) -> Images:
    """Return the images that the settings name, on a device."""
    intensities, protocol = data.split(settings.split), str(data.protocol)
    seed = _image_seed(settings)
    numbers = torch.arange(len(intensities))
    if settings.images is not None and settings.images < len(intensities):
        numbers = random_subset(len(intensities), settings.images, seed)
        # A subset is another test set: the mean of a random 1,000 of MNIST's 10,000 can differ by a nat.
        protocol += f"/random{len(numbers)}-seed{seed}"
    if settings.binarize == "fresh":
        # Keep this spelling: older results hold it, and the file name of an evaluation is a hash of it.
        protocol += f"/rebinarised-seed{settings.seed}"
    intensities = _binarized(data, settings, intensities, seed)[numbers]
    return Images(numbers, intensities.to(device), protocol)


def random_subset(total: int, count: int, seed: int) -> Tensor:
    """Return the numbers of ``count`` random images out of ``total``, sorted, (count,)."""
    generator = torch.Generator().manual_seed(runtime.derived_seed(seed, "subset"))
    return torch.randperm(total, generator=generator)[:count].sort().values


def _image_seed(settings: EstimatorSettings) -> int:
    return settings.seed if settings.image_seed is None else settings.image_seed


def _binarized(data: Dataset, settings: EstimatorSettings, intensities: Tensor, seed: int) -> Tensor:
    """Return the pixels of the whole split, binarized again for ``binarize=fresh`` and for grey pixels."""
    fresh = settings.binarize == "fresh"
    if settings.split != "train":
        # Keep this spelling, too: the word is hashed into the seed of the pixels.
        own = runtime.derived_seed(settings.seed, "rebinarise") % 2**32
        return data.rebinarized(settings.split, own) if fresh else intensities
    if fresh and not (data.protocol.drawn and data.protocol.binarization == "dynamic"):
        raise UserError(
            f"estimator.binarize=fresh is invalid for {data.protocol}: its train images have no grey levels; use "
            "estimator.binarize=fixed"
        )
    if data.continuous:
        return intensities
    # The training images of a dynamic protocol are grey: they are binarized once, with the seed of the evaluation.
    generator = torch.Generator().manual_seed(runtime.derived_seed(settings.seed if fresh else seed, "train"))
    return data.observe(intensities, generator).mul(255).to(torch.uint8)
