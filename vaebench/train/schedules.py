"""Quantities that change with the epoch; an epoch may be fractional. Pure functions: nothing to save."""

import math
from collections.abc import Callable, Mapping

__all__ = [
    "LearningRate",
    "burda",
    "constant",
    "cosine",
    "exponential",
    "kl_weight",
    "learning_rate",
    "piecewise",
]

LearningRate = Callable[[float], float]


def constant(lr: float) -> LearningRate:
    """The same rate throughout."""
    return lambda epoch: lr


def exponential(lr: float, decay: float, decay_epochs: int) -> LearningRate:
    """lr * decay^(epoch / decay_epochs), as in IWHVI with 0.95 over every 100 epochs."""
    return lambda epoch: lr * decay ** (epoch / decay_epochs)


def burda(lr: float) -> LearningRate:
    """Stages of 3^i epochs at lr * 10^(-i/7), i = 0..7: 3,280 epochs in all, as in the IWAE paper.

    The authors' code rounds the factor to one decimal of 10 * 10^(-i/7); ``lr`` is its first rate, 1e-3.
    """

    def rate(epoch: float) -> float:
        # Stage i ends after 1 + 3 + ... + 3^i = (3^(i+1) - 1) / 2 epochs.
        stage = next((i for i in range(7) if epoch < (3 ** (i + 1) - 1) / 2), 7)
        return lr * round(10 * 10 ** (-stage / 7), 1) / 10

    return rate


def cosine(lr: float, final_lr: float, epochs: int) -> LearningRate:
    """From lr to final_lr along half a cosine over all epochs."""
    return lambda epoch: final_lr + (lr - final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))


def learning_rate(
    name: str, lr: float, *, decay: float, decay_epochs: int, final_lr: float, epochs: int
) -> LearningRate:
    """Return the schedule of that name."""
    schedules: dict[str, Callable[[], LearningRate]] = {
        "constant": lambda: constant(lr),
        "exponential": lambda: exponential(lr, decay, decay_epochs),
        "burda": lambda: burda(lr),
        "cosine": lambda: cosine(lr, final_lr, epochs),
    }
    return schedules[name]()


def piecewise(default: int, changes: Mapping[int, int] | None) -> Callable[[float], int]:
    """Return ``changes``' value of the latest epoch that has come, ``default`` before the first."""
    steps = sorted((changes or {}).items())

    def value(epoch: float) -> int:
        reached = [value for start, value in steps if start <= epoch]
        return reached[-1] if reached else default

    return value


def kl_weight(warmup_epochs: int) -> Callable[[float], float]:
    """Rise linearly from 0 to 1 over the first epochs; 1 throughout for 0."""
    return lambda epoch: 1.0 if epoch >= warmup_epochs else epoch / warmup_epochs
