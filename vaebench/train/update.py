"""Updates: all that a trainer knows of what is learned."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebench.train.replicas import Replicas
from vaebench.train.schedules import LearningRate

__all__ = ["Loss", "Settings", "Update", "gradient_norm"]


ALONE = Replicas()


class Settings(NamedTuple):
    """What the schedules say for one step."""

    k: int
    inner_k: int
    beta: float


class Loss(NamedTuple):
    """A scalar to minimise, and scalars to show beside it."""

    value: Tensor
    metrics: dict[str, Tensor]


@dataclass
class Update:
    """One optimiser's share of a training step."""

    name: str
    loss: Callable[[Tensor, Settings], Loss]
    """Maps images x, (B, X)."""
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    repeats: int = 1
    clip_norm: float | None = None
    starts: float = 0.0
    """The epoch before which it rests."""
    ends: float = math.inf
    """The epoch from which on it rests."""
    microbatch: int | None = None
    """Images at a time; their gradients add up to that of the batch, in less memory and more time. None for all."""
    replicas: Replicas = ALONE
    """The processes that divide the images among themselves."""
    parameters: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, x: Tensor, settings: Settings, epoch: float, *, with_norm: bool) -> Loss:
        """Take one optimiser step; ``with_norm`` adds the gradient's norm (before clipping) to the metrics."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(epoch)
        if not self.starts <= epoch < self.ends:
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

    def _backward(self, x: Tensor, settings: Settings) -> Loss:
        """Add the gradient of the mean loss over ``x`` to the parameters', and return the loss without its history."""
        value, metrics = x.new_zeros(()), {}
        alone = self.replicas.count == 1
        for part in x.split(self.microbatch or len(x)):
            with nullcontext((part, 1.0)) if alone else self.replicas.share(part) as (own, weight):
                share, loss = weight * len(part) / len(x), self.loss(own, settings)
                (loss.value * share).backward()
            value = value + share * loss.value.detach()
            metrics = {key: metrics.get(key, 0) + share * number.detach() for key, number in loss.metrics.items()}
        return Loss(value, metrics) if alone else Loss(*self.replicas.add_up(self.parameters, value, metrics))


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the Euclidean norm of all gradients together."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
