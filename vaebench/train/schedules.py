"""Quantities that change with the epoch, which may be fractional. Pure functions: a checkpoint stores none of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = [
    "Course",
    "LearningRate",
    "StepSettings",
    "burda",
    "constant",
    "cosine",
    "exponential",
    "kl_weight",
    "learning_rate",
    "piecewise",
]

LearningRate = Callable[[float], float]


class StepSettings(NamedTuple):
    """The settings of one step."""

    k: int
    """Importance samples per image."""
    inner_k: int
    """Inner samples of a hierarchical encoder."""
    beta: float | Tensor
    """Weight of the KL term; a tensor in a step that a graph records during a warm-up."""


@dataclass(frozen=True)
class Course:
    """The schedules of a training and how often it logs, validates and saves; in epochs unless a field says steps."""

    epochs: int
    k: Callable[[float], int]
    inner_k: Callable[[float], int]
    beta: Callable[[float], float]
    settled: int = 0
    """The epoch from which the objective no longer changes; early stopping starts to count there."""
    ema: float | None = None
    """Decay of the averaged weights, which are then the weights to validate and keep; None: no averaging."""
    patience: int | None = None
    """Validations without a gain after which training stops; None: never."""
    validate_every: int = 1
    log_every: int = 50
    """Steps."""
    image_every: int = 0
    """0: no images."""
    checkpoint_every: int = 1

    def settings(self, epoch: float) -> StepSettings:
        """Return the settings of a step at ``epoch``."""
        return StepSettings(self.k(epoch), self.inner_k(epoch), self.beta(epoch))

    def changing(self) -> list[str]:
        """Return the names of the settings that are not constant."""
        values = zip(*(self.settings(epoch) for epoch in range(self.epochs + 1)), strict=True)
        return [name for name, found in zip(StepSettings._fields, values, strict=True) if len(set(found)) > 1]


def constant(lr: float) -> LearningRate:
    """Return a constant rate."""
    return lambda epoch: lr


def exponential(lr: float, decay: float, decay_epochs: int) -> LearningRate:
    """Return the rate lr * decay^(epoch / decay_epochs), as in IWHVI with 0.95 over every 100 epochs.

    Source: Sobolev and Vetrov 2019, https://arxiv.org/abs/1905.03290
    """
    return lambda epoch: lr * decay ** (epoch / decay_epochs)


def burda(lr: float, budget: float = 1.0) -> LearningRate:
    """Return the rate of the IWAE paper: stages of 3^i epochs at lr * 10^(-i/7), i = 0..7: 3,280 epochs in total.

    The authors' code rounds the factor to one decimal of 10 * 10^(-i/7); ``lr`` is its first rate, 1e-3.
    ``budget`` scales the lengths of the stages.

    Source: Burda, Grosse and Salakhutdinov 2016, https://arxiv.org/abs/1509.00519
    """

    def rate(epoch: float) -> float:
        # Stage i ends after 1 + 3 + ... + 3^i = (3^(i+1) - 1) / 2 epochs.
        stage = next((i for i in range(7) if epoch < budget * (3 ** (i + 1) - 1) / 2), 7)
        return lr * round(10 * 10 ** (-stage / 7), 1) / 10

    return rate


def cosine(lr: float, final_lr: float, epochs: int) -> LearningRate:
    """Return a rate that falls from ``lr`` to ``final_lr`` along half a cosine over all epochs."""
    return lambda epoch: final_lr + (lr - final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))


def learning_rate(
    name: str, lr: float, *, decay: float, decay_epochs: int, final_lr: float, epochs: int, budget: float = 1.0
) -> LearningRate:
    """Return the schedule called ``name``. All lengths are given as scaled by ``budget``, except those of burda."""
    schedules: dict[str, Callable[[], LearningRate]] = {
        "constant": lambda: constant(lr),
        "exponential": lambda: exponential(lr, decay, decay_epochs),
        "burda": lambda: burda(lr, budget),
        "cosine": lambda: cosine(lr, final_lr, epochs),
    }
    return schedules[name]()


def piecewise(values: Mapping[int, int]) -> Callable[[float], int]:
    """Return a step function: the value of the latest epoch in ``values`` that has been reached; epoch 0 is there."""
    steps = sorted(values.items(), reverse=True)
    return lambda epoch: next(value for start, value in steps if start <= epoch)


def kl_weight(warmup_epochs: int) -> Callable[[float], float]:
    """Return a weight that rises linearly from 0 to 1 over the first epochs; for 0 epochs it is 1 throughout."""
    return lambda epoch: 1.0 if epoch >= warmup_epochs else epoch / warmup_epochs
