"""Updates: one optimiser, its loss and its share of a training step. The trainer knows nothing else of the model."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy
import torch
from torch import Tensor, nn

from vaebench.train.replicas import Replicas
from vaebench.train.schedules import LearningRate, StepSettings

__all__ = ["ALONE", "Loss", "LossFunction", "Update", "gradient_norm"]


ALONE = Replicas()
"""The processes of a run in one process."""


class Loss(NamedTuple):
    """A scalar to minimise, and scalars to log with it."""

    value: Tensor
    metrics: dict[str, Tensor]


LossFunction = Callable[[Tensor, StepSettings], Loss]
"""Maps images x, (B, X), and the settings of the step."""


@dataclass
class Update:
    """One optimiser's share of a training step."""

    name: str
    loss: LossFunction
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    shares: list[float] = field(default_factory=lambda: [1.0])
    """The share of the learning rate that each group of the optimiser's parameters takes."""
    repeats: int = 1
    """Optimiser steps in each training step."""
    clip_norm: float | None = None
    """Largest norm of the gradient; None: no limit."""
    starts: float = 0.0
    """The epoch before which it does nothing."""
    ends: float = math.inf
    """The epoch from which it does nothing."""
    microbatch: int | None = None
    """Images computed at a time: less memory, more time, the same gradient. None: the whole batch."""
    replicas: Replicas = ALONE
    """The processes that divide a batch among themselves."""
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._rounds_rate = any(parameter.is_cuda for parameter in self.parameters)

    def active(self, epoch: float) -> bool:
        """Whether the update does something at ``epoch``."""
        return self.starts <= epoch < self.ends

    def set_rates(self, epoch: float) -> list[float]:
        """Give each group of the optimiser its learning rate at ``epoch``, and return these rates.

        On CUDA they are rounded to float32: torch's fused Adam reads the rate of a graph as float32, and an eager step
        has to take the same step.
        """
        rate = self.learning_rate(epoch)
        rates = [share * rate for share in self.shares]
        if self._rounds_rate:
            rates = [numpy.float32(rate).item() for rate in rates]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return rates

    def step(self, x: Tensor, settings: StepSettings, epoch: float, *, with_norm: bool) -> Loss:
        """Take one optimiser step for images x, (B, X).

        ``with_norm`` adds the norm of the gradient before clipping to the metrics. A step that a graph records finds a
        tensor as the learning rate, and keeps it.
        """
        if not isinstance(self.optimizer.param_groups[0]["lr"], Tensor):
            self.set_rates(epoch)
        if not self.active(epoch):
            return Loss(x.new_zeros(()), {})
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(x, settings)
        metrics = dict(loss.metrics)
        if self.clip_norm is not None:
            metrics["gradient_norm"] = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        elif with_norm:
            metrics["gradient_norm"] = gradient_norm(self.parameters)
        self.optimizer.step()
        return Loss(loss.value, metrics)

    def _backward(self, x: Tensor, settings: StepSettings) -> Loss:
        """Add the gradient of the mean loss over ``x`` to the parameters' gradients; return the loss, detached."""
        divided, size = self.replicas.count > 1, self.microbatch or len(x)
        if not divided and size >= len(x):
            # The sums below with one part, in fewer kernels: they take 3 % of a step of 20 images.
            loss = self.loss(x, settings)
            loss.value.backward()
            return Loss(loss.value.detach(), {key: number.detach() for key, number in loss.metrics.items()})
        value, metrics = x.new_zeros(()), {}
        for part in x.split(size):
            with self.replicas.share(part) if divided else nullcontext((part, 1.0)) as (own, weight):
                share, loss = weight * len(part) / len(x), self.loss(own, settings)
                (loss.value * share).backward()
            value = value + share * loss.value.detach()
            metrics = {key: metrics.get(key, 0) + share * number.detach() for key, number in loss.metrics.items()}
        return Loss(*self.replicas.add_up(self.parameters, value, metrics)) if divided else Loss(value, metrics)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of all gradients together."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
